//! One file from anywhere on the web.

use std::sync::atomic::AtomicU64;

use super::Report;
use super::address::{Address, said};
use super::client::{Answer, Client};
use super::error::SourceError;
use super::folder::{Fetched, Folder, check_name};
use super::part::Promise;
use super::transfer::{Meter, Wanted, blocking, fetch};

impl Client {
    /// Fetches the file at an address. With a digest in the address it is that file or an error; without one, it is what the server
    /// sent over TLS, and only the model's root says what that was.
    pub async fn fetch_address(&self, address: &Address, report: Report<'_>) -> Result<Fetched, SourceError> {
        let name = address.file_name();
        check_name(&said(&address.url), &name)?;
        let (pulls, key) = (self.pulls.clone(), address.url.to_string());
        let digest = address.digest.as_ref().map(ToString::to_string).unwrap_or_default();
        let folder = blocking(move || Folder::open(&pulls, &["web", &key, &digest])).await?;
        let to = folder.file(&name)?;
        let wanted = Wanted {
            name: said(&address.url),
            url: address.url.clone(),
            token: None,
            promise: Promise { digest: address.digest.clone(), size: None },
            part: folder.part(&name),
            to: to.clone(),
            inspect: &|_| Ok(()),
            refuse: &refuse,
        };
        let meter = Meter { done: AtomicU64::new(0), total: None, report };
        fetch(self, &wanted, &meter).await?;
        // A wheel and an artifact say themselves what they are called.
        let name = name.strip_suffix(".gguf").map(str::to_owned);
        Ok(Fetched { path: to, name, source: address.to_string(), commit: None, folder })
    }
}

fn refuse(answer: &Answer) -> SourceError {
    let (url, status) = (said(answer.response.url()), answer.response.status().as_u16());
    SourceError::Status { url, status }
}
