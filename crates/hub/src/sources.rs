//! Where models come from that no host of the network keeps yet: the Hugging Face Hub, the web, package registries, this machine.
//!
//! What is fetched lies whole and verified below a folder of its own, or is not there. Parts stay for the next try; a source that is
//! pinned (a commit, a digest) gives the same bytes on every machine or an error. Nothing here imports, installs or executes: names
//! and bytes of a server are data, and no file is written outside the folder.
//!
//! Whoever fetches over TLS installs a provider for rustls first.

use std::path::PathBuf;

use assay_core::id::{ModelRoot, NodeAddress};

use crate::name::Reference;

mod address;
mod client;
mod digest;
mod error;
mod folder;
mod hugging_face;
mod part;
mod transfer;
mod web;

pub use address::{Address, PlainHttp};
pub use client::{Client, Limits, Pace};
pub use digest::{Digest, DigestKind};
pub use error::SourceError;
pub use folder::{Abandoned, Fetched, abandoned};
pub use hugging_face::{Hub, Repository, Token};

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes there are.
    pub done: u64,
    /// Bytes in all, once that is known.
    pub total: Option<u64>,
}

/// What hears how far a fetch is.
pub type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// What `assay pull` is asked for. The form of the text decides alone: a path that looks like another source is meant by `./` in
/// front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `hf:ORG/NAME[/FILE][@REVISION]`.
    HuggingFace(Repository),
    /// `https://…[#sha256=…]`.
    Web(Address),
    /// `pypi:NAME==VERSION`.
    PyPi {
        /// The project.
        project: String,
        /// Its version.
        version: String,
    },
    /// A model's root, 64 hex digits: from the hosts that keep it.
    Root(ModelRoot),
    /// `[0xPUBLISHER/]NAME@VERSION`: what publishers mean by it.
    Release(Reference),
    /// A folder or file of this machine.
    Local(PathBuf),
}

impl std::str::FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Source, SourceError> {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(SourceError::unknown(text));
        }
        if let Some(repository) = text.strip_prefix("hf:") {
            return Ok(Source::HuggingFace(repository.parse()?));
        }
        if let Some(package) = text.strip_prefix("pypi:") {
            return package_version(package);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(Source::Web(text.parse()?));
        }
        if text.contains("://") {
            return Err(SourceError::unknown(text));
        }
        if text.starts_with(['.', '/', '~']) {
            return Ok(Source::Local(text.into()));
        }
        if let Ok(root) = text.parse() {
            return Ok(Source::Root(root));
        }
        match text.parse() {
            Ok(reference) if names_release(text) => Ok(Source::Release(reference)),
            _ => Ok(Source::Local(text.into())),
        }
    }
}

/// Whether text that could be a reference is one and no path: it has a version or a publisher.
fn names_release(text: &str) -> bool {
    let publisher =
        text.split_once('/').is_some_and(|(publisher, _)| publisher.parse::<NodeAddress>().is_ok());
    publisher || text.contains('@')
}

/// A package that pip is asked for: a name and one version of it, and nothing that pip could take for an option.
fn package_version(package: &str) -> Result<Source, SourceError> {
    let invalid = |reason: &str| SourceError::Invalid {
        source_text: format!("pypi:{package}"),
        reason: format!("{reason}; write pypi:NAME==VERSION"),
    };
    let Some((project, version)) = package.split_once("==") else {
        return Err(invalid("it names no version, and the same model must come every time"));
    };
    let sane =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
    if !sane(project) || !sane(version) || project.starts_with('-') {
        return Err(invalid("it is no package"));
    }
    Ok(Source::PyPi { project: project.to_owned(), version: version.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_text_decides() {
        let parse = |text: &str| text.parse::<Source>();
        let root = "ab".repeat(32);
        assert_eq!(parse(&root), Ok(Source::Root(root.parse().unwrap())));
        let publisher = format!("0x{}", "ab".repeat(20));
        for text in
            ["small@1.2.0", "small@latest", &format!("{publisher}/small@1"), &format!("{publisher}/small")]
        {
            assert_eq!(parse(text), Ok(Source::Release(text.parse().unwrap())), "{text}");
        }
        for path in [
            "checkpoint",
            "./org/small@1.2.0",
            "/a@b",
            "~/x@1",
            "a@b@c",
            "a@",
            "@b",
            "a@b/c",
            "x.gguf",
            "org/small@1",
        ] {
            assert_eq!(parse(path), Ok(Source::Local(path.into())), "{path}");
        }
        let package = Source::PyPi { project: "a-b".into(), version: "0.1.0".into() };
        assert_eq!(parse("pypi:a-b==0.1.0"), Ok(package));
        for (wrong, code) in [
            ("pypi:a", "source_invalid"),
            ("pypi:-r==1", "source_invalid"),
            ("pypi:a==", "source_invalid"),
            ("pypi:a b==1", "source_invalid"),
            ("ftp://x/y.gguf", "source_unknown"),
            ("", "source_unknown"),
            ("a\0b", "source_unknown"),
            ("a\nb", "source_unknown"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert_eq!(error.code(), code, "{wrong}");
            assert!(!error.to_string().contains(['\n', '\0']), "{error}");
        }
        assert!(matches!(parse("hf:org/name"), Ok(Source::HuggingFace(_))));
        assert!(matches!(parse("https://example.org/a.gguf"), Ok(Source::Web(_))));
    }
}
