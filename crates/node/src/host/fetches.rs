//! Fetch receipts that a host was given: what downloaders that are providers say they fetched from it, kept until the ledger has counted it.
//!
//! Invariant: what was answered with success is on disk, and of a downloader and a listing the highest receipt stays. It refuses what the
//! contract would refuse, and whoever the ledger does not name as a provider, so that strangers cannot fill the disk. It cannot know what was
//! fetched: a receipt is its downloader's word, and the host gains by any.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use alloy_primitives::Address;
use assay_ledger::ledger::Ledger;
use assay_ledger::retrieval::{Eip712Domain, FetchError, FetchReceipt, ListingId, PledgeId};
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::NamedTempFile;

/// Most bytes of a receipt in JSON: three times what one has.
pub const RECEIPT_JSON_BYTES_MAX: usize = 2 << 10;
/// Most receipts that are kept.
pub const RECEIPTS_MAX: usize = 65_536;

/// Why a receipt is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FetchesError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The receipt is for somebody else.
    #[error("the receipt names host {got}, and this is {expected}")]
    OtherHost {
        /// This host.
        expected: Address,
        /// Whom the receipt names.
        got: Address,
    },
    /// The contract would refuse it.
    #[error(transparent)]
    Receipt(#[from] FetchError),
    /// There is no such pledge.
    #[error("this host has no pledge in force for {}'s listing of {}", listing.owner, listing.model)]
    NotPledged {
        /// What the receipt names.
        listing: ListingId,
    },
    /// The ledger names no such provider.
    #[error("the ledger names no provider {got}, as far as this host has read; try again in a few minutes")]
    DownloaderUnknown {
        /// Whom the receipt names.
        got: Address,
    },
    /// A higher one is here.
    #[error(
        "a receipt of {known} bytes is here already, and this one says {got}; receipts count everything since ever"
    )]
    Stale {
        /// What is here.
        known: u64,
        /// What was offered.
        got: u64,
    },
    /// There are too many.
    #[error("this host keeps {RECEIPTS_MAX} receipts and takes no more")]
    Full,
}

impl FetchesError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            FetchesError::Io { .. } => "fetches_io",
            FetchesError::OtherHost { .. } => "fetch_other_host",
            FetchesError::Receipt(e) => e.code(),
            FetchesError::NotPledged { .. } => "fetch_not_pledged",
            FetchesError::DownloaderUnknown { .. } => "fetch_downloader_unknown",
            FetchesError::Stale { .. } => "fetch_stale",
            FetchesError::Full => "fetches_full",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            FetchesError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            FetchesError::OtherHost { .. } | FetchesError::Receipt(_) => StatusCode::BAD_REQUEST,
            FetchesError::NotPledged { .. } => StatusCode::NOT_FOUND,
            FetchesError::DownloaderUnknown { .. } => StatusCode::FORBIDDEN,
            FetchesError::Stale { .. } => StatusCode::CONFLICT,
            FetchesError::Full => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

/// Whether a receipt was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was.
    New,
    /// It was here.
    Known,
}

/// What the host has last read from the ledger.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The epoch.
    pub epoch: u64,
    /// Nodes that were enrolled as providers.
    pub providers: BTreeSet<Address>,
    /// What the host has pledged to keep, in force.
    pub pledged: BTreeSet<ListingId>,
}

/// A receipt, and how far the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The highest one.
    pub receipt: FetchReceipt,
    /// Bytes that the ledger has counted, as far as this host knows.
    pub counted: u64,
    /// The epoch in which the first byte came that is not counted.
    pub since: u64,
}

/// What makes a receipt worth the gas of posting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// So many bytes more than were counted.
    pub bytes: u64,
    /// Or any, when the first of them has waited for so many epochs.
    pub epochs: u64,
}

impl Held {
    /// Whether it should be posted in an epoch.
    fn is_worth(&self, worth: Worth, epoch: u64) -> bool {
        let more = self.receipt.bytes.saturating_sub(self.counted);
        more > 0 && (more >= worth.bytes || epoch.saturating_sub(self.since) >= worth.epochs)
    }
}

type Key = (Address, ListingId);

fn key(receipt: &FetchReceipt) -> Key {
    (Address::from(*receipt.downloader.as_bytes()), receipt.pledge().listing)
}

/// Receipts of one host on one ledger.
pub struct Fetches {
    folder: PathBuf,
    host: Address,
    domain: Eip712Domain,
    seen: RwLock<Seen>,
    held: Mutex<BTreeMap<Key, Held>>,
}

impl Fetches {
    /// Reads the receipts of `host` in `folder`, which is made if there is none. Files that hold none are left alone.
    pub fn open(ledger: &Ledger, host: Address, folder: &Path) -> Result<Fetches, FetchesError> {
        let folder = folder.join(ledger_folder(ledger)).join(format!("{host:x}"));
        let io = |source| FetchesError::Io { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(io)?;
        let (domain, mut held) = (ledger.retrieval_domain(), BTreeMap::new());
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let short = std::fs::metadata(&path).is_ok_and(|m| m.len() <= 2 * RECEIPT_JSON_BYTES_MAX as u64);
            let Some(bytes) = short.then(|| std::fs::read(&path).ok()).flatten() else { continue };
            let Ok(found) = serde_json::from_slice::<Held>(&bytes) else { continue };
            if found.receipt.pledge().host == host && found.receipt.check(&domain).is_ok() {
                held.insert(key(&found.receipt), found);
            }
        }
        Ok(Fetches { folder, host, domain, seen: RwLock::default(), held: Mutex::new(held) })
    }

    /// The route `POST /v1/fetches`.
    pub fn routes(self: &Arc<Fetches>) -> Router {
        Router::new().route("/v1/fetches", post(take)).with_state(Arc::clone(self))
    }

    /// Says what stands on the ledger now.
    pub fn see(&self, seen: Seen) {
        *self.seen.write().expect("no thread panics with what was seen") = seen;
    }

    /// Takes a receipt; it is durable on return.
    pub fn take(&self, receipt: FetchReceipt) -> Result<Taken, FetchesError> {
        let pledge = receipt.pledge();
        if pledge.host != self.host {
            return Err(FetchesError::OtherHost { expected: self.host, got: pledge.host });
        }
        let (downloader, listing) = key(&receipt);
        let epoch = {
            let seen = self.seen.read().expect("no thread panics with what was seen");
            if !seen.pledged.contains(&listing) {
                return Err(FetchesError::NotPledged { listing });
            }
            if !seen.providers.contains(&downloader) {
                return Err(FetchesError::DownloaderUnknown { got: downloader });
            }
            seen.epoch
        };
        receipt.check(&self.domain)?;
        let mut held = self.held.lock().expect("no thread panics with the receipts");
        let found = match held.get(&key(&receipt)) {
            Some(known) if known.receipt.bytes == receipt.bytes => return Ok(Taken::Known),
            Some(known) if known.receipt.bytes > receipt.bytes => {
                return Err(FetchesError::Stale { known: known.receipt.bytes, got: receipt.bytes });
            }
            Some(known) if known.counted < known.receipt.bytes => Held { receipt, ..known.clone() },
            Some(known) => Held { receipt, since: epoch, ..known.clone() },
            None if held.len() >= RECEIPTS_MAX => return Err(FetchesError::Full),
            None => Held { receipt, counted: 0, since: epoch },
        };
        self.write(&found)?;
        held.insert(key(&found.receipt), found);
        Ok(Taken::New)
    }

    /// Receipts that should be posted in an epoch, for pledges that are in force.
    pub fn worth(&self, worth: Worth, epoch: u64) -> Vec<Held> {
        let seen = self.seen.read().expect("no thread panics with what was seen");
        let held = self.held.lock().expect("no thread panics with the receipts");
        let due = held
            .values()
            .filter(|h| h.is_worth(worth, epoch) && seen.pledged.contains(&h.receipt.pledge().listing));
        due.cloned().collect()
    }

    /// Notes how much of a downloader's word the ledger has counted.
    pub fn counted(&self, pledge: PledgeId, downloader: Address, bytes: u64) -> Result<(), FetchesError> {
        let mut held = self.held.lock().expect("no thread panics with the receipts");
        if let Some(found) = held.get_mut(&(downloader, pledge.listing)) {
            let counted = Held { counted: found.counted.max(bytes), ..found.clone() };
            self.write(&counted)?;
            *found = counted;
        }
        Ok(())
    }

    /// Forgets a downloader whose word counts for nothing any more.
    pub fn forget(&self, downloader: Address) -> Result<(), FetchesError> {
        let mut held = self.held.lock().expect("no thread panics with the receipts");
        let gone: Vec<Key> = held.keys().filter(|(of, _)| *of == downloader).copied().collect();
        for key in gone {
            let path = self.path(&key);
            std::fs::remove_file(&path).map_err(|source| FetchesError::Io { path, source })?;
            held.remove(&key);
        }
        Ok(())
    }

    fn path(&self, (downloader, listing): &Key) -> PathBuf {
        self.folder.join(format!("{downloader:x}_{}_{:x}.json", listing.model, listing.owner))
    }

    fn write(&self, held: &Held) -> Result<(), FetchesError> {
        let path = self.path(&key(&held.receipt));
        durable(&path, held).map_err(|source| FetchesError::Io { path, source })
    }
}

/// The folder of what belongs to one ledger: bytes on one count for nothing on another.
pub(crate) fn ledger_folder(ledger: &Ledger) -> String {
    format!("{}-{:x}", ledger.client().chain_id(), ledger.parts().at.retrieval)
}

/// Writes a file whole or not at all; it survives a crash when this returns.
pub(crate) fn durable(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let folder = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut file = NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut file, value)?;
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    std::fs::File::open(folder)?.sync_all()
}

fn error(status: StatusCode, code: &str, message: impl ToString) -> Response {
    (status, Json(json!({"error": {"code": code, "message": message.to_string()}}))).into_response()
}

async fn take(State(fetches): State<Arc<Fetches>>, request: Request) -> Response {
    let bytes = match to_bytes(request.into_body(), RECEIPT_JSON_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(e) => return error(StatusCode::PAYLOAD_TOO_LARGE, "fetch_too_long", e),
    };
    let receipt: FetchReceipt = match serde_json::from_slice(&bytes) {
        Ok(receipt) => receipt,
        Err(e) => return error(StatusCode::BAD_REQUEST, "fetch_malformed", e),
    };
    match super::blocking(move || fetches.take(receipt)).await {
        Ok(Taken::New) => StatusCode::CREATED.into_response(),
        Ok(Taken::Known) => StatusCode::OK.into_response(),
        Err(e) => error(e.status(), e.code(), &e),
    }
}
