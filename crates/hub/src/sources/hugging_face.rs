//! The Hugging Face Hub's protocol: what a revision holds, and its files.
//!
//! A revision is resolved once, to a commit; every file is asked for by that commit, so that a branch that moves meanwhile cannot mix
//! two versions. Each file is compared with the digest that the Hub lists: SHA-256 for what lies in LFS, Git's own for the rest. The
//! token goes to the Hub and to nobody that it redirects to, and no message holds it.

use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::AtomicU64;

use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, HeaderName};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::Report;
use super::address::said;
use super::client::{Answer, Client, Request};
use super::digest::{Digest, DigestKind};
use super::error::{SourceError, shown};
use super::folder::{Fetched, Folder, check_name};
use super::part::Promise;
use super::transfer::{Meter, Wanted, blocking, fetch};

mod choice;
mod environment;
mod refusal;

use choice::{Choice, INDEX};
pub use environment::Hub;
pub use environment::Token;

/// Files that are fetched at the same time.
const FILES_AT_ONCE: usize = 4;
/// Most files of a repository.
const FILES_MAX: usize = 100_000;
/// The revision, if none is named.
const REVISION: &str = "main";
/// Most bytes of a repository's, file's or revision's name.
const NAME_BYTES_MAX: usize = 255;

const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");

/// What is wanted of the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    name: String,
    file: Option<String>,
    revision: Option<String>,
}

/// `ORG/NAME[/FILE][@REVISION]`, or `NAME` alone for one of the Hub's oldest repositories.
impl FromStr for Repository {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Repository, SourceError> {
        let invalid = |reason: &str| SourceError::Invalid {
            source_text: shown(&format!("hf:{text}")),
            reason: format!("{reason}; write hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE.gguf"),
        };
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let sane = |r: &str| {
            !r.is_empty()
                && r.len() <= NAME_BYTES_MAX
                && !r.contains(|c: char| c.is_control() || c.is_whitespace())
        };
        if revision.is_some_and(|r| !sane(r) || r.split('/').any(|p| p.is_empty() || p == "." || p == "..")) {
            return Err(invalid("that is no revision"));
        }
        let mut parts = path.splitn(3, '/');
        let name: Vec<&str> = parts.by_ref().take(2).collect();
        let plain = |s: &&str| {
            !s.is_empty()
                && s.len() <= 96
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !s.starts_with(['.', '-'])
                && !s.ends_with(['.', '-'])
                && !s.contains("..")
                && !s.contains("--")
        };
        if !name.iter().all(plain) {
            return Err(invalid("that is no repository"));
        }
        let file = parts.next();
        if let Some(file) = file {
            check_name("the source", file)?;
            if !choice::is_single(file) {
                return Err(invalid("a single file is a .gguf or .assay"));
            }
        }
        Ok(Repository {
            name: name.join("/"),
            file: file.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

/// What the Hub says of a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

/// A file of it.
#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

/// A file that lies outside Git.
#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Sibling {
    /// What is promised of the file, if the listing says all of it.
    fn promise(&self) -> Option<Promise> {
        let (digest, size) = match &self.lfs {
            Some(lfs) => (Digest::from_hex(DigestKind::Sha256, &lfs.sha256)?, lfs.size),
            None => (Digest::from_hex(DigestKind::GitBlob, self.blob_id.as_deref()?)?, self.size?),
        };
        Some(Promise { digest: Some(digest), size: Some(size) })
    }
}

/// A revision of a repository, pinned.
struct Pinned<'a> {
    client: &'a Client,
    hub: &'a Hub,
    repository: &'a str,
    commit: String,
    siblings: Vec<Sibling>,
    folder: Folder,
}

impl Client {
    /// Fetches what an import needs of a repository: a checkpoint's folder, or one file.
    pub async fn fetch_repository(
        &self,
        hub: &Hub,
        wanted: &Repository,
        report: Report<'_>,
    ) -> Result<Fetched, SourceError> {
        let pinned = self.pin(hub, wanted).await?;
        let names: Vec<&str> = pinned.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let choice = choice::choose(&wanted.name, wanted.file.as_deref(), &pinned.commit, &names)?;
        let (name, path) = match choice {
            Choice::Single(file) => {
                pinned.files(std::slice::from_ref(&file), report).await?;
                let stem = Path::new(&file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (
                    if wanted.file.is_some() { stem } else { wanted.name.clone() },
                    pinned.folder.files().join(file),
                )
            }
            Choice::Folder(files) => {
                pinned.files(&files, report).await?;
                (wanted.name.clone(), pinned.folder.files())
            }
            Choice::Sharded(mut files) => {
                pinned.files(&[INDEX.to_owned()], report).await?;
                let index = pinned.folder.files().join(INDEX);
                let bytes = blocking(move || std::fs::read(&index).map_err(SourceError::io(&index))).await?;
                files.extend(choice::shards(&wanted.name, &bytes, &names)?);
                pinned.files(&files, report).await?;
                (wanted.name.clone(), pinned.folder.files())
            }
        };
        let file = wanted.file.as_ref().map(|f| format!("/{f}")).unwrap_or_default();
        let source = format!("hf:{}{file}@{}", wanted.name, pinned.commit);
        let name = Some(name).filter(|_| path.extension().is_none_or(|e| e != "assay"));
        Ok(Fetched { path, name, source, commit: Some(pinned.commit), folder: pinned.folder })
    }

    /// Asks what a revision is, and opens the folder for it.
    async fn pin<'a>(&'a self, hub: &'a Hub, wanted: &'a Repository) -> Result<Pinned<'a>, SourceError> {
        let revision = wanted.revision.as_deref().unwrap_or(REVISION);
        let mut url = hub
            .url(["api", "models"].into_iter().chain(wanted.name.split('/')).chain(["revision", revision]));
        url.set_query(Some("blobs=true"));
        let request =
            Request { method: Method::GET, url: &url, headers: HeaderMap::new(), token: hub.token() };
        let refuse = |answer: &Answer| refusal::refusal(hub, &wanted.name, revision, None, answer);
        let (_, bytes) = self.small(&request, self.limits.list_bytes_max, &refuse).await?;
        let wrong = |reason: String| SourceError::Answer { url: said(&url), reason };
        let listing: Listing = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(format!("no list of a model's files: {}", shown(&e.to_string()))))?;
        if listing.sha.len() != 40 || !listing.sha.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong(format!("`{}` is no commit", shown(&listing.sha))));
        }
        // Whoever names a commit gets that one.
        if is_commit(revision) && listing.sha != revision {
            return Err(wrong(format!("it has commit {} where {revision} was asked for", listing.sha)));
        }
        if listing.siblings.len() > FILES_MAX {
            let (file, limit) = (format!("the list of `{}`", wanted.name), FILES_MAX as u64);
            return Err(SourceError::TooLarge { file, limit, unit: "files" });
        }
        for sibling in &listing.siblings {
            check_name(&format!("`{}`", wanted.name), &sibling.rfilename)?;
        }
        let key =
            [hub.endpoint().as_str(), &wanted.name, &listing.sha, wanted.file.as_deref().unwrap_or_default()];
        let key = key.map(str::to_owned);
        let pulls = self.pulls.clone();
        let folder =
            blocking(move || Folder::open(&pulls, &["hf", &key[0], &key[1], &key[2], &key[3]])).await?;
        let Listing { sha: commit, siblings } = listing;
        Ok(Pinned { client: self, hub, repository: &wanted.name, commit, siblings, folder })
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl Pinned<'_> {
    /// Fetches files, several at a time.
    async fn files(&self, names: &[String], report: Report<'_>) -> Result<(), SourceError> {
        let mut promises = Vec::new();
        for name in names {
            promises.push((name, self.promise(name).await?));
        }
        let sizes = promises.iter().map(|(_, p)| p.size.unwrap_or(0));
        let total = sizes.fold(0u64, u64::saturating_add);
        let meter = Meter { done: AtomicU64::new(0), total: Some(total), report };
        // Large ones first, so that none is left to go on alone at the end.
        promises.sort_by_key(|(_, p)| std::cmp::Reverse(p.size));
        let fetches = promises.into_iter().map(|(name, promise)| self.file(name, promise, &meter));
        futures_util::stream::iter(fetches).buffer_unordered(FILES_AT_ONCE).try_collect::<()>().await
    }

    fn url(&self, name: &str) -> Url {
        let parts = self.repository.split('/').chain(["resolve", self.commit.as_str()]);
        self.hub.url(parts.chain(name.split('/')))
    }

    /// What the Hub promises of a file: from the list, or from its headers where a Hub lists names only.
    async fn promise(&self, name: &str) -> Result<Promise, SourceError> {
        let sibling = self.siblings.iter().find(|s| s.rfilename == name);
        if let Some(promise) = sibling.and_then(Sibling::promise) {
            return Ok(promise);
        }
        let url = self.url(name);
        let token = self.hub.token();
        let request = Request { method: Method::HEAD, url: &url, headers: HeaderMap::new(), token };
        let refuse = |answer: &Answer| self.refuse(name, answer);
        let (headers, _) = self.client.small(&request, 0, &refuse).await?;
        let Some(last) = headers.last() else {
            return Err(SourceError::Unverifiable { file: name.to_owned() });
        };
        self.inspect(name, last)?;
        let text = |h: HeaderName| last.get(h).and_then(|v| v.to_str().ok());
        let etag = text(LINKED_ETAG).or_else(|| text(ETAG)).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let digest = Digest::from_hex(DigestKind::Sha256, etag)
            .or_else(|| Digest::from_hex(DigestKind::GitBlob, etag));
        let size = text(LINKED_SIZE).or_else(|| text(CONTENT_LENGTH)).and_then(|s| s.parse().ok());
        match (digest, size) {
            (Some(digest), Some(size)) => Ok(Promise { digest: Some(digest), size: Some(size) }),
            _ => Err(SourceError::Unverifiable { file: name.to_owned() }),
        }
    }

    async fn file(&self, name: &str, promise: Promise, meter: &Meter<'_>) -> Result<(), SourceError> {
        let digest = promise.digest.clone();
        let wanted = Wanted {
            name: name.to_owned(),
            url: self.url(name),
            token: self.hub.token(),
            promise,
            part: self.folder.part(name),
            to: self.folder.file(name)?,
            inspect: &|headers| {
                self.inspect(name, headers)?;
                linked_digest_agrees(name, digest.as_ref(), headers)
            },
            refuse: &|answer| self.refuse(name, answer),
        };
        fetch(self.client, &wanted, meter).await
    }

    /// Refuses an answer from another commit.
    fn inspect(&self, name: &str, headers: &HeaderMap) -> Result<(), SourceError> {
        match headers.get(REPO_COMMIT) {
            Some(commit) if commit.as_bytes() != self.commit.as_bytes() => Err(SourceError::Moved {
                file: name.to_owned(),
                expected: self.commit.clone(),
                got: shown(&String::from_utf8_lossy(commit.as_bytes())),
            }),
            _ => Ok(()),
        }
    }

    fn refuse(&self, name: &str, answer: &Answer) -> SourceError {
        refusal::refusal(self.hub, self.repository, &self.commit, Some(name), answer)
    }
}

/// Refuses a file in LFS that is announced with another digest than the list has, before its gigabytes come.
fn linked_digest_agrees(
    name: &str,
    expected: Option<&Digest>,
    headers: &HeaderMap,
) -> Result<(), SourceError> {
    let linked = headers.get(LINKED_ETAG).and_then(|v| v.to_str().ok());
    let linked = linked.and_then(|t| Digest::from_hex(DigestKind::Sha256, t.trim_matches('"')));
    match (linked, expected) {
        (Some(got), Some(expected)) if expected.kind() == DigestKind::Sha256 && got != *expected => {
            let (expected, got) = (expected.to_string(), got.to_string());
            Err(SourceError::WrongContent { file: name.to_owned(), expected, got })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        let parse = |text: &str| text.parse::<Repository>();
        let expect = |text: &str, name: &str, file: Option<&str>, revision: Option<&str>| {
            let r = parse(text).unwrap();
            assert_eq!(
                (r.name.as_str(), r.file.as_deref(), r.revision.as_deref()),
                (name, file, revision),
                "{text}"
            );
        };
        expect("org/name", "org/name", None, None);
        expect("gpt2", "gpt2", None, None);
        expect("org/name@refs/pr/1", "org/name", None, Some("refs/pr/1"));
        expect("org/na.me_1/sub/x-Q8_0.gguf@v1", "org/na.me_1", Some("sub/x-Q8_0.gguf"), Some("v1"));
        let longest = "a".repeat(96);
        expect(&longest, &longest, None, None);
        let revision = "r".repeat(NAME_BYTES_MAX);
        expect(&format!("o/n@{revision}"), "o/n", None, Some(&revision));
        for wrong in [
            "",
            "@main",
            "/name",
            "org/",
            "org/name@",
            "org/../x",
            "../x",
            "org/-x",
            "org/a--b",
            "org/na me",
            "org/name@a b",
            "org/name@../x",
            "org/name@a//b",
            "org/name/x.bin",
            "org/name/",
            "é/x",
            &"a".repeat(97),
            &format!("o/n@{revision}r"),
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("org/name/../../x.gguf").unwrap_err().code(), "source_unsafe_name");
    }
}
