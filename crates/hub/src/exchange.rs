//! How records travel: every host tells which releases and labels it knows and which it keeps, and takes new ones from anyone.
//!
//! What arrives is believed by its signature (`release`), and kept where the host's own rule admits it: a host is not obliged to
//! remember what strangers publish.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use assay_core::id::{Hash, ModelRoot, NodeAddress};
use axum::body::{Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::blob::BlobHash;
use crate::catalogue::{Added, Catalogue, CatalogueError};
use crate::cut::Cut;
use crate::keeping::Kept;
use crate::name::{ModelName, Version};
use crate::release::{LabelRecord, RECORD_JSON_BYTES_MAX, Release, Signed};
use crate::store::Store;

mod client;

pub use client::{ExchangeError, Records};

/// Releases that a host tells of at once; the rest follow by `after`.
pub const INDEX_PAGE: usize = 256;
/// Most pages that a reader asks one host for.
pub const INDEX_PAGES_MAX: usize = 100;
/// Most bytes of a page of an index.
pub const INDEX_BYTES_MAX: usize = 4 << 20;
/// Most releases that a host may say it keeps.
pub const KEPT_MAX: usize = 65_536;
/// Time in which an exchange of records must be over.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Whose releases a host takes, from those who post them and from other hosts.
#[derive(Clone, Debug)]
pub enum Admission {
    /// Anyone's.
    Anyone,
    /// These publishers'.
    Publishers(BTreeSet<NodeAddress>),
}

impl Admission {
    /// Whether releases of `publisher` are taken.
    pub fn admits(&self, publisher: NodeAddress) -> bool {
        match self {
            Admission::Anyone => true,
            Admission::Publishers(known) => known.contains(&publisher),
        }
    }
}

/// A release in an index: enough to choose by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its id.
    pub id: Hash,
    /// Whose it is.
    pub publisher: NodeAddress,
    /// Its name.
    pub name: ModelName,
    /// Its version.
    pub version: Version,
    /// What computes.
    pub root: ModelRoot,
    /// The artifact.
    pub blob: BlobHash,
    /// Whether this host has all of it.
    pub kept: bool,
    /// The id of its cut, if it is to be kept in shards.
    #[serde(default)]
    pub cut: Option<Hash>,
    /// Which of its shards this host has.
    #[serde(default)]
    pub shards: Vec<u8>,
}

/// A page of what a host knows, by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Releases.
    pub releases: Vec<Entry>,
    /// Ask again with this id, if there are more.
    pub after: Option<Hash>,
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCard {
    /// Its node's address.
    pub address: NodeAddress,
    /// Bytes that it offers in all.
    pub bytes_total: u64,
    /// Bytes that it may still take.
    pub bytes_free: u64,
    /// The ids of releases whose artifact it keeps whole.
    pub keeps: Vec<Hash>,
    /// Releases of whose artifact it keeps a shard, and the shard.
    #[serde(default)]
    pub shards: Vec<(Hash, u8)>,
    /// Releases of which it will drop what it keeps, unless it is needed.
    pub leaves: Vec<Hash>,
    /// Addresses of iroh at which it is reached too.
    #[serde(default)]
    pub endpoints: Vec<String>,
}

/// What the routes serve.
pub struct Exchange {
    /// Records.
    pub catalogue: Arc<Catalogue>,
    /// Bytes.
    pub store: Store,
    /// This host.
    pub address: NodeAddress,
    /// Whose records are taken.
    pub admission: RwLock<Admission>,
    /// Artifacts that it will drop, unless they are needed.
    pub leaving: RwLock<BTreeSet<BlobHash>>,
    /// Addresses of iroh at which it is reached too.
    pub endpoints: RwLock<Vec<String>>,
}

/// The routes of records: `/v1/releases`, `/v1/labels` and `/v1/host`.
pub fn routes(exchange: Arc<Exchange>) -> Router {
    Router::new()
        .route("/v1/releases", get(index).post(take_release))
        .route("/v1/releases/{id}", get(release))
        .route("/v1/labels", get(labels).post(take_label))
        .route("/v1/cuts", post(take_cut))
        .route("/v1/cuts/{release}", get(cut))
        .route("/v1/host", get(card))
        .with_state(exchange)
}

fn error(status: StatusCode, code: &str, message: impl ToString) -> Response {
    (status, Json(json!({"error": {"code": code, "message": message.to_string()}}))).into_response()
}

async fn index(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let after = request.uri().query().and_then(|q| q.strip_prefix("after=")).map(str::parse::<Hash>);
    let after = match after.transpose() {
        Ok(after) => after,
        Err(e) => return error(StatusCode::BAD_REQUEST, "after_malformed", e),
    };
    let mut all: Vec<(Hash, Signed<Release>)> =
        exchange.catalogue.releases().into_iter().map(|s| (s.id(), s)).collect();
    all.sort_unstable_by_key(|(id, _)| *id);
    let from = all.partition_point(|(id, _)| after.is_some_and(|after| *id <= after));
    let page = &all[from..all.len().min(from + INDEX_PAGE)];
    let more = from + page.len() < all.len();
    let kept = match Kept::of(&exchange.store) {
        Ok(kept) => kept,
        Err(e) => return error(StatusCode::INTERNAL_SERVER_ERROR, e.code(), e),
    };
    let entry = |(id, signed): &(Hash, Signed<Release>)| {
        let r = &signed.record;
        let cut = exchange.catalogue.cut(*id);
        Entry {
            id: *id,
            publisher: r.publisher,
            name: r.name.clone(),
            version: r.version.clone(),
            root: r.root,
            blob: r.blob,
            kept: kept.has(r),
            cut: cut.as_ref().map(Signed::id),
            shards: cut.map(|cut| kept.shards(&cut.record.set).collect()).unwrap_or_default(),
        }
    };
    let after = page.last().filter(|_| more).map(|(id, _)| *id);
    Json(Index { releases: page.iter().map(entry).collect(), after }).into_response()
}

async fn release(State(exchange): State<Arc<Exchange>>, Path(id): Path<String>) -> Response {
    match id.parse::<Hash>().ok().and_then(|id| exchange.catalogue.by_id(id)) {
        Some(signed) => Json(signed).into_response(),
        None => error(StatusCode::NOT_FOUND, "release_unknown", format!("no release {id} is known here")),
    }
}

async fn labels(State(exchange): State<Arc<Exchange>>) -> Response {
    let labels: Vec<_> = exchange.catalogue.labels().into_iter().take(INDEX_PAGE).collect();
    Json(labels).into_response()
}

async fn card(State(exchange): State<Arc<Exchange>>) -> Response {
    let releases = exchange.catalogue.releases();
    let (usage, kept) = match exchange.store.usage().and_then(|u| Ok((u, Kept::of(&exchange.store)?))) {
        Ok(found) => found,
        Err(e) => return error(StatusCode::INTERNAL_SERVER_ERROR, e.code(), e),
    };
    let leaving = exchange.leaving.read().expect("no thread panics with what is leaving");
    let (mut keeps, mut shards, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    for signed in releases {
        if keeps.len() + shards.len() >= KEPT_MAX {
            break;
        }
        let id = signed.id();
        let first = || exchange.catalogue.cut(id).and_then(|cut| kept.shards(&cut.record.set).next());
        if kept.has(&signed.record) {
            keeps.push(id);
        } else if let Some(index) = first() {
            shards.push((id, index));
        } else {
            continue;
        }
        if leaving.contains(&signed.record.blob) {
            leaves.push(id);
        }
    }
    let card = HostCard {
        address: exchange.address,
        bytes_total: usage.quota,
        bytes_free: usage.free(),
        keeps,
        shards,
        leaves,
        endpoints: exchange.endpoints.read().expect("no thread panics with the addresses").clone(),
    };
    Json(card).into_response()
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Response> {
    let bytes: Bytes = match to_bytes(request.into_body(), RECORD_JSON_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(e) => return Err(error(StatusCode::PAYLOAD_TOO_LARGE, "record_too_long", e)),
    };
    serde_json::from_slice(&bytes).map_err(|e| error(StatusCode::BAD_REQUEST, "record_malformed", e))
}

fn taken(result: Result<Added, CatalogueError>) -> Response {
    match result {
        Ok(Added::New) => StatusCode::CREATED.into_response(),
        Ok(Added::Known) => StatusCode::OK.into_response(),
        Err(e) => {
            let status = match &e {
                CatalogueError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
                CatalogueError::Record(_) => StatusCode::BAD_REQUEST,
                CatalogueError::Taken { .. }
                | CatalogueError::Stale { .. }
                | CatalogueError::CutTaken { .. } => StatusCode::CONFLICT,
                CatalogueError::CutUnknown { .. } => StatusCode::NOT_FOUND,
                CatalogueError::Full => StatusCode::INSUFFICIENT_STORAGE,
            };
            error(status, e.code(), e)
        }
    }
}

async fn take_release(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let signed: Signed<Release> = match body(request).await {
        Ok(signed) => signed,
        Err(refused) => return refused,
    };
    let admitted =
        exchange.admission.read().expect("no thread panics with the rule").admits(signed.record.publisher);
    if !admitted {
        let publisher = signed.record.publisher;
        let message =
            format!("this host takes no releases of {publisher}; list it on the ledger, or ask the host");
        return error(StatusCode::FORBIDDEN, "publisher_not_admitted", message);
    }
    let work = tokio::task::spawn_blocking(move || exchange.catalogue.add(signed));
    taken(work.await.expect("taking a record does not panic"))
}

async fn take_label(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let signed: Signed<LabelRecord> = match body(request).await {
        Ok(signed) => signed,
        Err(refused) => return refused,
    };
    let known = exchange.catalogue.releases().iter().any(|s| {
        let (r, l) = (&s.record, &signed.record);
        r.publisher == l.publisher && r.name == l.name && r.version == l.version
    });
    if !known {
        let message = "the label stands for a release that is not known here; tell of the release first";
        return error(StatusCode::NOT_FOUND, "release_unknown", message);
    }
    let work = tokio::task::spawn_blocking(move || exchange.catalogue.move_label(signed));
    taken(work.await.expect("taking a record does not panic"))
}

async fn cut(State(exchange): State<Arc<Exchange>>, Path(release): Path<String>) -> Response {
    match release.parse::<Hash>().ok().and_then(|id| exchange.catalogue.cut(id)) {
        Some(signed) => Json(signed).into_response(),
        None => error(StatusCode::NOT_FOUND, "cut_unknown", format!("no cut of {release} is known here")),
    }
}

async fn take_cut(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let signed: Signed<Cut> = match body(request).await {
        Ok(signed) => signed,
        Err(refused) => return refused,
    };
    let work = tokio::task::spawn_blocking(move || exchange.catalogue.add_cut(signed));
    taken(work.await.expect("taking a record does not panic"))
}
