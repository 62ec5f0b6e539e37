//! Why a model could not be fetched.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most characters of foreign text in a message.
const SHOWN_MAX: usize = 200;

/// Why a source gave no model. Every message says what to do; none holds a token or the query of an address, where passwords hide.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The text names nothing that is known.
    #[error(
        "`{got}` names no source that is known; write hf:ORG/NAME, https://HOST/FILE.gguf, pypi:NAME==VERSION, a model's root (64 hex digits), NAME@VERSION, or the path of a folder or file"
    )]
    Unknown {
        /// The text.
        got: String,
    },
    /// The text is of a known kind, and wrong.
    #[error("`{source_text}`: {reason}")]
    Invalid {
        /// The text.
        source_text: String,
        /// What is wrong and what to write.
        reason: String,
    },
    /// An address without TLS.
    #[error(
        "{url} is not encrypted: what comes could be altered and a token could be read on the way; write https://, or allow it with --allow-http"
    )]
    PlainHttp {
        /// Where.
        url: String,
    },
    /// A redirect that is not followed.
    #[error("{from} redirects to {to}: {reason}")]
    Redirect {
        /// Who redirects.
        from: String,
        /// Where to.
        to: String,
        /// Why not.
        reason: String,
    },
    /// A server cannot be reached, or its connections break.
    #[error(
        "{url} cannot be read: {reason} ({attempts} attempts); what has arrived is kept, pull again to go on"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A server has no time for us.
    #[error("{url} answers {status}{}; what has arrived is kept, pull again later to go on", wait_text(.wait))]
    Busy {
        /// Where.
        url: String,
        /// HTTP status.
        status: u16,
        /// How long it asks to wait.
        wait: Option<Duration>,
    },
    /// A server refuses.
    #[error("{url} answers {status}; check the address")]
    Status {
        /// Where.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// A server's answer is not what its protocol says.
    #[error("{url}: {reason}")]
    Answer {
        /// Where.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// No such repository, or a private one.
    #[error("{endpoint} has no model repository `{repository}`, or does not show it: {advice}")]
    RepositoryNotFound {
        /// The Hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// What to do.
        advice: &'static str,
    },
    /// The owner wants conditions accepted first.
    #[error(
        "`{repository}` is gated: accept its conditions at {page}, then set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// The repository.
        repository: String,
        /// Its page.
        page: String,
    },
    /// No such branch, tag or commit.
    #[error(
        "`{repository}` has no revision `{revision}`; name a branch, a tag or a commit of it after the @"
    )]
    RevisionNotFound {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
    },
    /// No such file in the repository.
    #[error("`{repository}` has no file `{file}` at {revision}{}", choices_text(.choices))]
    FileNotFound {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// The revision.
        revision: String,
        /// Files that could be meant.
        choices: Vec<String>,
    },
    /// The Hub does not take the token.
    #[error(
        "{endpoint} refuses the token; set HF_TOKEN to a valid one that may read the repository, or unset it for public models"
    )]
    TokenRefused {
        /// The Hub.
        endpoint: String,
    },
    /// A file came from another commit than the one that the pull is pinned to.
    #[error("`{file}` came from commit {got}, but this pull is pinned to {expected}; pull again")]
    Moved {
        /// The file.
        file: String,
        /// The pinned commit.
        expected: String,
        /// What the server said.
        got: String,
    },
    /// Several files could be meant.
    #[error("`{repository}` has several models, and one must be chosen; write one of: {}", .choices.join(", "))]
    Ambiguous {
        /// The repository.
        repository: String,
        /// Sources that name one.
        choices: Vec<String>,
    },
    /// Nothing that an import could read.
    #[error("`{repository}` has nothing that can be imported: {reason}")]
    NothingToImport {
        /// The repository.
        repository: String,
        /// What is missing.
        reason: String,
    },
    /// A name that could lead out of the folder.
    #[error(
        "{from} names a file `{name}`, which could be written outside the model's folder; nothing was fetched"
    )]
    UnsafeName {
        /// Who.
        from: String,
        /// The name.
        name: String,
    },
    /// The bytes are not those that were promised.
    #[error(
        "{file}: expected {expected}, got {got}: the server sent other bytes than it promised, and they were thrown away; pull again, or from elsewhere"
    )]
    WrongContent {
        /// The file.
        file: String,
        /// Digest that was promised.
        expected: String,
        /// Digest of what came.
        got: String,
    },
    /// More or fewer bytes than were promised.
    #[error("{file}: expected {expected} bytes, but the server sends {got}; pull again, or from elsewhere")]
    WrongLength {
        /// The file.
        file: String,
        /// How many.
        expected: u64,
        /// What came.
        got: String,
    },
    /// Above a limit.
    #[error("{file} has more than the {limit} {unit} that are allowed")]
    TooLarge {
        /// The file.
        file: String,
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The server promises no digest.
    #[error(
        "the server names no digest of {file}, so that nobody could tell whether it is right; pull from another server"
    )]
    Unverifiable {
        /// The file.
        file: String,
    },
    /// Another process pulls the same.
    #[error("another process is pulling this source into {path}; wait for it, or stop it")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl SourceError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            SourceError::Unknown { .. } => "source_unknown",
            SourceError::Invalid { .. } => "source_invalid",
            SourceError::PlainHttp { .. } => "source_plain_http",
            SourceError::Redirect { .. } => "source_redirect",
            SourceError::Unreachable { .. } => "source_unreachable",
            SourceError::Busy { .. } => "source_busy",
            SourceError::Status { .. } => "source_status",
            SourceError::Answer { .. } => "source_answer",
            SourceError::RepositoryNotFound { .. } => "hub_repository_not_found",
            SourceError::Gated { .. } => "hub_gated",
            SourceError::RevisionNotFound { .. } => "hub_revision_not_found",
            SourceError::FileNotFound { .. } => "hub_file_not_found",
            SourceError::TokenRefused { .. } => "hub_token_refused",
            SourceError::Moved { .. } => "hub_commit_moved",
            SourceError::Ambiguous { .. } => "hub_ambiguous",
            SourceError::NothingToImport { .. } => "hub_nothing_to_import",
            SourceError::UnsafeName { .. } => "source_unsafe_name",
            SourceError::WrongContent { .. } => "source_wrong_content",
            SourceError::WrongLength { .. } => "source_wrong_length",
            SourceError::TooLarge { .. } => "source_too_large",
            SourceError::Unverifiable { .. } => "source_unverifiable",
            SourceError::Locked { .. } => "source_locked",
            SourceError::Io { .. } => "source_io",
        }
    }

    /// Whether the same pull may succeed later, and goes on where this one ended.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            SourceError::Unreachable { .. } | SourceError::Busy { .. } | SourceError::Locked { .. }
        )
    }

    pub(super) fn unknown(text: &str) -> SourceError {
        SourceError::Unknown { got: shown(text) }
    }

    pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> SourceError + use<> {
        let path = path.to_owned();
        move |source| SourceError::Io { path: path.clone(), source }
    }
}

/// Two errors are equal if they say the same.
impl PartialEq for SourceError {
    fn eq(&self, other: &SourceError) -> bool {
        self.code() == other.code() && self.to_string() == other.to_string()
    }
}

/// Foreign text as a message may hold it: on one line, without control characters, bounded.
pub(super) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(SHOWN_MAX).collect()
}

fn wait_text(wait: &Option<Duration>) -> String {
    wait.map(|w| format!(" and asks to wait {} s", w.as_secs())).unwrap_or_default()
}

fn choices_text(choices: &[String]) -> String {
    if choices.is_empty() { String::new() } else { format!("; it has {}", choices.join(", ")) }
}
