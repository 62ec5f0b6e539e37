//! A server on this machine that speaks the Hugging Face Hub's protocol, and a second one that its large files are redirected to.
//! That it speaks it right is tested with the Hub's own client. It can be told to misbehave.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A token that the server knows.
pub const TOKEN: &str = "hf_knownToken";
/// Bytes of a piece of a body.
const PIECE: usize = 16 << 10;

/// Who may read a repository.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Public,
    /// Its files need the token.
    Gated,
    /// Nobody without the token learns that it is there.
    Private,
}

/// How much the list of files says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    Digests,
    Names,
}

pub struct Repository {
    pub access: Access,
    pub detail: Detail,
    /// Branches and tags.
    pub references: BTreeMap<String, String>,
    pub commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// What the next request for a file's bytes meets.
#[derive(Clone)]
pub enum Fault {
    /// A status, and how long to wait.
    Status(u16, Option<&'static str>),
    /// The connection breaks after so many bytes.
    Break(usize),
    /// A bit is wrong at this place of what is sent.
    Flip(usize),
    /// Another length is announced, and sent.
    Length(usize),
    /// No length is announced, and the body never ends.
    Endless,
    /// The range is ignored.
    Whole,
    /// Another range is sent than was asked for.
    OtherRange,
    /// 206 without saying which part.
    NoRange,
    /// The content has changed: another tag.
    OtherTag,
    /// A range cannot be satisfied.
    NotSatisfiable,
    /// The answer claims to be compressed.
    Compressed,
    /// Nothing comes after the head.
    Silence,
    /// Another commit is named.
    OtherCommit,
    /// Another digest is announced before the redirect.
    OtherLink,
    /// A redirect to this address.
    Redirect(String),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub cdn: bool,
    pub method: Method,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    pub if_range: Option<String>,
}

#[derive(Default)]
pub struct Contents {
    pub repositories: BTreeMap<String, Repository>,
    /// Old names of repositories.
    pub renamed: BTreeMap<String, String>,
    /// Other files, by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Faults in order: of `api`, of `hub:FILE`, of `cdn:NAME` (the last part of a large file's), and of the paths of other files.
    pub faults: BTreeMap<String, VecDeque<Fault>>,
    pub seen: Vec<Seen>,
    /// Instead of any list of files.
    pub list: Option<String>,
    blobs: BTreeMap<String, Vec<u8>>,
}

pub struct Server {
    pub url: String,
    pub cdn: String,
    contents: Arc<Mutex<Contents>>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Side {
    contents: Arc<Mutex<Contents>>,
    /// Where large files are; `None` for that server itself.
    cdn: Option<String>,
}

impl Server {
    pub fn start() -> Server {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let contents = Arc::new(Mutex::new(Contents::default()));
        let serve = |cdn: Option<String>| {
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let side = Side { contents: contents.clone(), cdn };
            runtime.spawn(async move {
                axum::serve(listener, Router::new().fallback(answer).with_state(side)).await
            });
            url
        };
        let cdn = serve(None);
        let url = serve(Some(cdn.clone()));
        Server { url, cdn, contents, runtime }
    }

    pub fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }

    /// Adds a commit to a repository and moves `main` to it. Its name follows from the files.
    pub fn commit(&self, repository: &str, files: &[(&str, &[u8])]) -> String {
        let mut hasher = Sha1::new();
        for (name, bytes) in files {
            hasher.update(format!("{name}\0{}", git_blob(bytes)));
        }
        let commit = hex(&hasher.finalize());
        let mut contents = self.contents();
        for (_, bytes) in files.iter().filter(|(name, _)| is_large(name)) {
            contents.blobs.insert(hex(&Sha256::digest(bytes)), bytes.to_vec());
        }
        let repository = contents.repositories.entry(repository.to_owned()).or_insert_with(|| Repository {
            access: Access::Public,
            detail: Detail::Digests,
            references: BTreeMap::new(),
            commits: BTreeMap::new(),
        });
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
        repository.commits.insert(commit.clone(), files);
        repository.references.insert("main".into(), commit.clone());
        commit
    }

    pub fn access(&self, repository: &str, access: Access) {
        self.contents().repositories.get_mut(repository).unwrap().access = access;
    }

    pub fn fault(&self, place: &str, faults: impl IntoIterator<Item = Fault>) {
        self.contents().faults.entry(place.to_owned()).or_default().extend(faults);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.contents().seen.clone()
    }

    /// Forgets what was asked, and the faults that are left.
    pub fn forget(&self) {
        let mut contents = self.contents();
        contents.seen.clear();
        contents.faults.clear();
    }
}

/// What the Hub keeps in LFS.
fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf", ".assay", ".bin"].iter().any(|e| name.ends_with(e))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn git_blob(bytes: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

/// What LFS leaves in Git of a large file.
fn pointer(bytes: &[u8]) -> Vec<u8> {
    let (digest, size) = (hex(&Sha256::digest(bytes)), bytes.len());
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n").into_bytes()
}

fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).unwrap()
}

fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

fn refuse(status: u16, code: &str, message: &str) -> Response {
    let body = json!({"error": message}).to_string();
    reply(status, &[("x-error-code", code), ("x-error-message", message)], body)
}

async fn answer(State(side): State<Side>, request: Request) -> Response {
    let text =
        |name| request.headers().get(name).map(|v: &header::HeaderValue| v.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    let mut contents = side.contents.lock().unwrap();
    contents.seen.push(Seen {
        cdn: side.cdn.is_none(),
        method: request.method().clone(),
        path: path.clone(),
        authorization: text(header::AUTHORIZATION),
        range: text(header::RANGE),
        if_range: text(header::IF_RANGE),
    });
    match &side.cdn {
        None => store(&mut contents, &request),
        Some(cdn) => hub(&mut contents, cdn, &request, text(header::AUTHORIZATION).as_deref()),
    }
}

/// The store of large files: a signature lets in, and nothing else is taken.
fn store(contents: &mut Contents, request: &Request) -> Response {
    if request.headers().contains_key(header::AUTHORIZATION) {
        return reply(400, &[], "only one way to authorise is allowed");
    }
    let path = request.uri().path().to_owned();
    if let Some(bytes) = contents.files.get(&path).cloned() {
        let tag = hex(&Sha256::digest(&bytes));
        let fault = next_fault(contents, &path);
        return bytes_of(&bytes, &tag, request, fault, &[]);
    }
    let digest = path.trim_start_matches("/blobs/").split('/').next().unwrap_or_default().to_owned();
    let Some(bytes) = contents.blobs.get(&digest).cloned() else { return reply(404, &[], "") };
    if request.uri().query() != Some("X-Signature=secret") {
        return reply(403, &[], "");
    }
    let fault = next_fault(contents, &format!("cdn:{}", path.rsplit('/').next().unwrap()));
    bytes_of(&bytes, &digest, request, fault, &[])
}

fn hub(contents: &mut Contents, cdn: &str, request: &Request, authorization: Option<&str>) -> Response {
    let path = request.uri().path();
    if let Some(bytes) = contents.files.get(path).cloned() {
        let tag = hex(&Sha256::digest(&bytes));
        let fault = next_fault(contents, path);
        return bytes_of(&bytes, &tag, request, fault, &[]);
    }
    if path.starts_with("/api/")
        && let Some(fault) = next_fault(contents, "api")
    {
        return bytes_of(&[], "", request, Some(fault), &[]);
    }
    let known = match authorization {
        None => false,
        Some(text) if text == format!("Bearer {TOKEN}") => true,
        Some(_) => return refuse(401, "", "Invalid credentials in Authorization header"),
    };
    let parts: Vec<String> = path.trim_start_matches('/').split('/').map(unescape).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (name, kind, revision, file) = match parts.as_slice() {
        ["api", "models", org, name, kind @ ("revision" | "tree"), revision, ..] => {
            (format!("{org}/{name}"), *kind, *revision, String::new())
        }
        ["api", "models", org, name] => (format!("{org}/{name}"), "revision", "main", String::new()),
        [org, name, "resolve", revision, file @ ..] => {
            (format!("{org}/{name}"), "resolve", *revision, file.join("/"))
        }
        _ => return refuse(404, "", "Not Found"),
    };
    if let Some(new) = contents.renamed.get(&name) {
        let location = request.uri().to_string().replacen(&name, new, 1);
        return reply(307, &[("location", &location)], "");
    }
    let missing = || refuse(if known { 404 } else { 401 }, "RepoNotFound", "Repository not found");
    let Some(repository) = contents.repositories.get(&name) else { return missing() };
    if repository.access == Access::Private && !known {
        return missing();
    }
    let commit = repository.references.get(revision).map_or(revision, String::as_str).to_owned();
    let Some(files) = repository.commits.get(&commit) else {
        return refuse(404, "RevisionNotFound", "Invalid rev id");
    };
    let digests = repository.detail == Detail::Digests && request.uri().query() == Some("blobs=true");
    match kind {
        "revision" => {
            let siblings: Vec<Value> = files.iter().map(|(n, b)| sibling(n, b, digests)).collect();
            let list = json!({"_id": "1", "id": name, "modelId": name, "sha": commit, "private": false, "gated": false,
                "disabled": false, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings});
            let list = contents.list.clone().unwrap_or_else(|| list.to_string());
            reply(200, &[("content-type", "application/json")], list)
        }
        "tree" => {
            let entries: Vec<Value> = files.iter().map(|(n, b)| entry(n, b)).collect();
            reply(200, &[("content-type", "application/json")], Value::Array(entries).to_string())
        }
        _ => {
            if repository.access == Access::Gated && !known {
                return refuse(403, "GatedRepo", "Access to this model is restricted");
            }
            let Some(bytes) = files.get(&file).cloned() else {
                return refuse(404, "EntryNotFound", "Entry not found");
            };
            let fault = next_fault(contents, &format!("hub:{file}"));
            resolve(cdn, &commit, &file, &bytes, request, fault)
        }
    }
}

fn sibling(name: &str, bytes: &[u8], digests: bool) -> Value {
    if !digests {
        return json!({"rfilename": name});
    }
    if !is_large(name) {
        return json!({"rfilename": name, "size": bytes.len(), "blobId": git_blob(bytes)});
    }
    let pointer = pointer(bytes);
    let lfs =
        json!({"sha256": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": pointer.len()});
    json!({"rfilename": name, "size": bytes.len(), "blobId": git_blob(&pointer), "lfs": lfs})
}

fn entry(name: &str, bytes: &[u8]) -> Value {
    if !is_large(name) {
        return json!({"type": "file", "path": name, "size": bytes.len(), "oid": git_blob(bytes)});
    }
    let pointer = pointer(bytes);
    let lfs = json!({"oid": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": pointer.len()});
    json!({"type": "file", "path": name, "size": bytes.len(), "oid": git_blob(&pointer), "lfs": lfs})
}

fn resolve(
    cdn: &str,
    commit: &str,
    file: &str,
    bytes: &[u8],
    request: &Request,
    fault: Option<Fault>,
) -> Response {
    let other = "0".repeat(40);
    let commit = if matches!(fault, Some(Fault::OtherCommit)) { other.as_str() } else { commit };
    if !is_large(file) {
        return bytes_of(bytes, &git_blob(bytes), request, fault, &[("x-repo-commit", commit)]);
    }
    if let Some(fault @ (Fault::Status(..) | Fault::Redirect(_))) = fault {
        return bytes_of(bytes, "", request, Some(fault), &[]);
    }
    let digest = hex(&Sha256::digest(bytes));
    let tag = match fault {
        Some(Fault::OtherLink) => format!("\"{}\"", "0".repeat(64)),
        _ => format!("\"{digest}\""),
    };
    let name = file.rsplit('/').next().unwrap();
    let location = format!("{cdn}/blobs/{digest}/{name}?X-Signature=secret");
    let size = bytes.len().to_string();
    let headers = [
        ("location", location.as_str()),
        ("x-repo-commit", commit),
        ("x-linked-etag", &tag),
        ("x-linked-size", &size),
    ];
    reply(302, &headers, "")
}

/// The fault that a path meets next, if any.
fn next_fault(contents: &mut Contents, path: &str) -> Option<Fault> {
    contents.faults.get_mut(path)?.pop_front()
}

/// A file's bytes by the rules for ranges, or against them.
fn bytes_of(
    bytes: &[u8],
    tag: &str,
    request: &Request,
    fault: Option<Fault>,
    more: &[(&str, &str)],
) -> Response {
    let mut headers: Vec<(&str, String)> = more.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
    let tag =
        if matches!(fault, Some(Fault::OtherTag)) { format!("\"{tag}-2\"") } else { format!("\"{tag}\"") };
    headers.extend([("etag", tag.clone()), ("accept-ranges", "bytes".to_owned())]);
    let range = range(request.headers(), &tag).filter(|_| !matches!(fault, Some(Fault::Whole)));
    let (status, from) = match range {
        Some(from) if from < bytes.len() => (StatusCode::PARTIAL_CONTENT, from),
        Some(_) => return reply(416, &[("content-range", &format!("bytes */{}", bytes.len()))], ""),
        None => (StatusCode::OK, 0),
    };
    let mut sent = bytes[from..].to_vec();
    if status == StatusCode::PARTIAL_CONTENT {
        let first = if matches!(fault, Some(Fault::OtherRange)) { from + 1 } else { from };
        if !matches!(fault, Some(Fault::NoRange)) {
            headers.push(("content-range", format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len())));
        }
    }
    let mut breaks = None;
    match fault {
        Some(Fault::Status(status, wait)) => {
            let wait: Vec<(&str, &str)> = wait.into_iter().map(|w| ("retry-after", w)).collect();
            return reply(status, &wait, "");
        }
        Some(Fault::Redirect(to)) => return reply(302, &[("location", &to)], ""),
        Some(Fault::NotSatisfiable) => return reply(416, &[], ""),
        Some(Fault::Break(after)) => breaks = Some(after),
        Some(Fault::Flip(at)) => sent[at] ^= 1,
        Some(Fault::Length(length)) => sent.resize(length, 0),
        Some(Fault::Compressed) => headers.push(("content-encoding", "gzip".into())),
        Some(Fault::Endless) => {
            let zeros = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; PIECE])));
            return reply(200, &[("etag", &tag)], Body::from_stream(zeros));
        }
        Some(Fault::Silence) => {
            headers.push(("content-length", sent.len().to_string()));
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            return reply(
                status.as_u16(),
                &headers,
                Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()),
            );
        }
        _ => {}
    }
    headers.push(("content-length", sent.len().to_string()));
    let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    if request.method() == Method::HEAD {
        return reply(status.as_u16(), &headers, "");
    }
    let mut pieces: Vec<Result<Bytes, std::io::Error>> = Vec::new();
    let whole = Bytes::from(sent);
    let end = breaks.unwrap_or(whole.len()).min(whole.len());
    let mut at = 0;
    while at < end {
        let to = (at + PIECE).min(end);
        pieces.push(Ok(whole.slice(at..to)));
        at = to;
    }
    if breaks.is_some() {
        pieces.push(Err(std::io::Error::other("broken on purpose")));
    }
    reply(status.as_u16(), &headers, Body::from_stream(stream::iter(pieces)))
}

/// Where a range begins that is to be answered.
fn range(headers: &HeaderMap, tag: &str) -> Option<usize> {
    let text = headers.get(header::RANGE)?.to_str().unwrap();
    if headers.get(header::IF_RANGE).is_some_and(|t| t != tag) {
        return None;
    }
    text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}
