//! Asking hosts for records and telling them, over whatever they are reached by: HTTP, HTTPS or a stream of iroh.
//!
//! Nothing that a host says is believed here but by a signature or a name. Redirects and encodings are not followed, and no answer is longer than
//! its limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assay_core::id::Hash;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{EXCHANGE_TIMEOUT, Entry, HostCard, INDEX_BYTES_MAX, INDEX_PAGES_MAX, Index};
use crate::blob::BlobHash;
use crate::cut::Cut;
use crate::fetch::http::{Connection, Head, Method};
use crate::fetch::{FetchOptions, PeerFault};
use crate::limits::JSON_BYTES_MAX;
use crate::peer::{Dialer, PeerAddress};
use crate::release::{LabelRecord, RECORD_JSON_BYTES_MAX, Record, Release, Signed};

/// Most connections that wait for another question, one a host.
const IDLE_MAX: usize = 64;
/// Most characters of what a host says when it refuses.
const MESSAGE_CHARS_MAX: usize = 500;

/// Why a host told or took nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It cannot be reached, or did not answer in time.
    #[error("{url}: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        reason: String,
    },
    /// It refused.
    #[error("{url}: {status}: {message}")]
    Refused {
        /// What was asked for.
        url: String,
        /// HTTP's status.
        status: u16,
        /// What the host says, shortened.
        message: String,
    },
    /// Its answer is beyond a limit or malformed.
    #[error("{url}: the answer is not what it should be: {reason}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

impl ExchangeError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ExchangeError::Unreachable { .. } => "host_unreachable",
            ExchangeError::Refused { .. } => "host_refused",
            ExchangeError::Malformed { .. } => "host_malformed",
        }
    }
}

/// Asks hosts for records. A host is an address as [`PeerAddress`] reads it. Clones share their connections.
#[derive(Clone)]
pub struct Records {
    dialer: Dialer,
    timeout: Duration,
    options: Arc<FetchOptions>,
    idle: Arc<Mutex<HashMap<String, Connection>>>,
}

/// One question.
#[derive(Clone, Copy)]
enum Ask<'a> {
    /// For what is there, or for a first to a last byte of it.
    Get(Option<(u64, u64)>),
    /// To take this JSON.
    Post(&'a [u8]),
}

impl Default for Records {
    fn default() -> Records {
        Records::new()
    }
}

impl Records {
    /// Asks over HTTP and HTTPS. Needs no TLS provider to be installed.
    pub fn new() -> Records {
        Records::over(Dialer::new())
    }

    /// Asks whomever `dialer` reaches.
    pub fn over(dialer: Dialer) -> Records {
        let (options, idle) = (Arc::default(), Arc::default());
        Records { dialer, timeout: EXCHANGE_TIMEOUT, options, idle }
    }

    /// With another time in which an answer must be there than [`EXCHANGE_TIMEOUT`].
    pub fn within(self, timeout: Duration) -> Records {
        Records { timeout, ..self }
    }

    /// What a host says of itself.
    pub async fn card(&self, host: &str) -> Result<HostCard, ExchangeError> {
        self.get(host, "/v1/host", INDEX_BYTES_MAX).await
    }

    /// All that a host knows, up to [`INDEX_PAGES_MAX`] pages.
    pub async fn index(&self, host: &str) -> Result<Vec<Entry>, ExchangeError> {
        let (mut all, mut after) = (Vec::new(), None::<Hash>);
        for _ in 0..INDEX_PAGES_MAX {
            let path = match after {
                None => "/v1/releases".to_owned(),
                Some(after) => format!("/v1/releases?after={after}"),
            };
            let page: Index = self.get(host, &path, INDEX_BYTES_MAX).await?;
            all.extend(page.releases);
            match page.after {
                Some(next) if after.is_none_or(|after| next > after) => after = Some(next),
                _ => break,
            }
        }
        Ok(all)
    }

    /// The labels that a host knows; those that nobody signed are left out.
    pub async fn labels(&self, host: &str) -> Result<Vec<Signed<LabelRecord>>, ExchangeError> {
        let all: Vec<Signed<LabelRecord>> = self.get(host, "/v1/labels", INDEX_BYTES_MAX).await?;
        Ok(all.into_iter().filter_map(|s| s.verified().ok()).collect())
    }

    /// The release with this id.
    pub async fn release(&self, host: &str, id: Hash) -> Result<Signed<Release>, ExchangeError> {
        let path = format!("/v1/releases/{id}");
        let signed: Signed<Release> = self.signed(host, &path).await?;
        if signed.id() == id { Ok(signed) } else { Err(malformed(host, &path, "it is another release")) }
    }

    /// How the release with this id was cut.
    pub async fn cut(&self, host: &str, release: Hash) -> Result<Signed<Cut>, ExchangeError> {
        let path = format!("/v1/cuts/{release}");
        let signed: Signed<Cut> = self.signed(host, &path).await?;
        let same = signed.record.release == release;
        if same { Ok(signed) } else { Err(malformed(host, &path, "it is another release's cut")) }
    }

    /// Tells a host how a release was cut.
    pub async fn tell_cut(&self, host: &str, cut: &Signed<Cut>) -> Result<(), ExchangeError> {
        self.post(host, "/v1/cuts", cut).await
    }

    /// Tells a host of a release.
    pub async fn tell(&self, host: &str, release: &Signed<Release>) -> Result<(), ExchangeError> {
        self.post(host, "/v1/releases", release).await
    }

    /// Tells a host of a label.
    pub async fn tell_label(&self, host: &str, label: &Signed<LabelRecord>) -> Result<(), ExchangeError> {
        self.post(host, "/v1/labels", label).await
    }

    /// Whether a host gives these bytes of a blob, which are there from `offset` on.
    pub async fn gives(
        &self,
        host: &str,
        blob: BlobHash,
        offset: u64,
        bytes: &[u8],
    ) -> Result<bool, ExchangeError> {
        let range = (offset, (offset + bytes.len() as u64).saturating_sub(1));
        let path = format!("/v1/blobs/{blob}");
        Ok(self.ask(host, &path, Ask::Get(Some(range)), bytes.len()).await? == bytes)
    }

    /// Posts a record to a path of a host, and takes any success for an answer.
    pub async fn post<T: Serialize>(&self, host: &str, path: &str, record: &T) -> Result<(), ExchangeError> {
        let json = serde_json::to_vec(record).map_err(|e| malformed(host, path, &e.to_string()))?;
        self.ask(host, path, Ask::Post(&json), INDEX_BYTES_MAX).await.map(drop)
    }

    /// A record that its publisher signed.
    async fn signed<R: Record + DeserializeOwned>(
        &self,
        host: &str,
        path: &str,
    ) -> Result<Signed<R>, ExchangeError> {
        let signed: Signed<R> = self.get(host, path, RECORD_JSON_BYTES_MAX).await?;
        signed.verified().map_err(|e| malformed(host, path, &e.to_string()))
    }

    /// The JSON at a path of a host, at most so many bytes.
    pub async fn get<T: DeserializeOwned>(
        &self,
        host: &str,
        path: &str,
        bytes_max: usize,
    ) -> Result<T, ExchangeError> {
        let bytes = self.ask(host, path, Ask::Get(None), bytes_max).await?;
        serde_json::from_slice(&bytes).map_err(|e| malformed(host, path, &e.to_string()))
    }

    /// The body of a successful answer.
    async fn ask(
        &self,
        host: &str,
        path: &str,
        ask: Ask<'_>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ExchangeError> {
        let url = || format!("{host}{path}");
        let unreachable = |reason: String| ExchangeError::Unreachable { url: url(), reason };
        let address: PeerAddress =
            host.parse().map_err(|e: crate::peer::PeerAddressError| unreachable(e.to_string()))?;
        let work = async {
            // A connection that was kept may have been closed meanwhile: then a fresh one is tried at once.
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
            if let Some(old) = kept {
                match self.exchange(old, host, &address, path, ask, bytes_max).await {
                    Err(PeerFault::Broken { .. }) => {}
                    done => return done,
                }
            }
            let fresh = Connection::open(&self.dialer, &address, &self.options).await?;
            self.exchange(fresh, host, &address, path, ask, bytes_max).await
        };
        let answer = timeout(self.timeout, work).await;
        let (head, body) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(e @ (PeerFault::Unreachable { .. } | PeerFault::Broken { .. } | PeerFault::Stalled))) => {
                return Err(unreachable(e.to_string()));
            }
            Ok(Err(e)) => return Err(malformed(host, path, &e.to_string())),
            Err(_) => return Err(unreachable("no answer in time".into())),
        };
        if (200..300).contains(&head.status) {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        let said = serde_json::from_str::<serde_json::Value>(&text).ok();
        let said = said.and_then(|v| v["error"]["message"].as_str().map(str::to_owned));
        let message = said.unwrap_or(text.into_owned()).chars().take(MESSAGE_CHARS_MAX).collect();
        Err(ExchangeError::Refused { url: url(), status: head.status, message })
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        host: &str,
        address: &PeerAddress,
        path: &str,
        ask: Ask<'_>,
        bytes_max: usize,
    ) -> Result<(Head, Vec<u8>), PeerFault> {
        let head = match ask {
            Ask::Get(range) => connection.request(address, Method::Get, path, range, &self.options).await?,
            Ask::Post(json) => connection.post(address, path, json, &self.options).await?,
        };
        let most = if head.status < 300 { bytes_max } else { JSON_BYTES_MAX };
        let body = connection.body(most as u64, &self.options).await?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_reusable() && idle.len() < IDLE_MAX {
            idle.insert(host.to_owned(), connection);
        }
        Ok((head, body))
    }
}

fn malformed(host: &str, path: &str, reason: &str) -> ExchangeError {
    ExchangeError::Malformed { url: format!("{host}{path}"), reason: reason.to_owned() }
}
