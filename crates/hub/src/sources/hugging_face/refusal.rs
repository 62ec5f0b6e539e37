//! What it means that a Hub refuses, and what to do about it.

use reqwest::header::HeaderName;

use super::Hub;
use crate::sources::address::said;
use crate::sources::client::Answer;
use crate::sources::error::SourceError;

const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// The error that a refusing answer is. `file` is `None` where a revision was asked for.
pub(super) fn refusal(
    hub: &Hub,
    repository: &str,
    revision: &str,
    file: Option<&str>,
    answer: &Answer,
) -> SourceError {
    let (response, repository) = (&answer.response, repository.to_owned());
    let status = response.status().as_u16();
    let plain = || SourceError::Status { url: said(response.url()), status };
    // What another server refuses says nothing of the repository.
    if answer.elsewhere {
        return plain();
    }
    let text =
        |name: HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let hidden = || SourceError::RepositoryNotFound {
        endpoint: hub.said(),
        repository: repository.clone(),
        advice: match hub.token() {
            Some(_) => "check its name; if it is private, the token must be allowed to read it",
            None => "check its name; if it is private, set HF_TOKEN to a token that may read it",
        },
    };
    match (text(ERROR_CODE), status) {
        ("GatedRepo", _) => {
            let page = hub.url(repository.split('/')).to_string();
            SourceError::Gated { repository, page }
        }
        ("RepoNotFound", _) => hidden(),
        ("RevisionNotFound", _) => {
            SourceError::RevisionNotFound { repository, revision: revision.to_owned() }
        }
        ("EntryNotFound", _) => SourceError::FileNotFound {
            repository,
            file: file.unwrap_or_default().to_owned(),
            revision: revision.to_owned(),
            choices: vec![],
        },
        // Without a code the Hub says so of a token that it does not know, and of repositories that it hides.
        (_, 401 | 403) if hub.token().is_some() && text(ERROR_MESSAGE).contains("credentials") => {
            SourceError::TokenRefused { endpoint: hub.said() }
        }
        (_, 401 | 403) => hidden(),
        (_, 404) if file.is_none() => hidden(),
        _ => plain(),
    }
}
