//! A host: blobs of a store as static files over HTTP ([docs/hub.md](../../../docs/hub.md), Wire), over TCP and over iroh.
//!
//! Bytes go from the page cache into sockets without a copy in between. What is still arriving is served as far as it was verified.
//! It refuses work beyond its limits with 503 instead of queueing it.

mod connection;
mod range;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use connection::{serve, serve_iroh};

use self::range::{Wanted, wanted};
use crate::blob::BlobHash;
use crate::limits;
use crate::rate::Rate;
use crate::store::{Blob, Partial, Segment, Store, StoreError};

/// How a host behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Bytes a second of all bodies together.
    pub rate: Rate,
    /// Requests answered at the same time.
    pub requests_max: usize,
    /// Connections held at the same time.
    pub connections_max: usize,
    /// Time in which the head of a request must be there.
    pub request_head_timeout: Duration,
    /// Time for which a client may take nothing of an answer.
    pub send_stall_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            rate: Rate::UNLIMITED,
            requests_max: limits::REQUESTS_MAX,
            connections_max: limits::SERVER_CONNECTIONS_MAX,
            request_head_timeout: limits::REQUEST_HEAD_TIMEOUT,
            send_stall_timeout: limits::SEND_STALL_TIMEOUT,
        }
    }
}

/// The content type of metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Host {
    store: Store,
    rate: Rate,
    requests: Arc<Semaphore>,
    registry: Registry,
    answered: Counter,
    refused: Counter,
    sent: Counter,
}

/// The routes of a host's blobs.
pub fn router(store: Store, options: &ServerOptions) -> Router {
    router_with(store, options, Registry::default())
}

/// The routes of a host's blobs; `/metrics` tells what is in `registry` too.
pub fn router_with(store: Store, options: &ServerOptions, mut registry: Registry) -> Router {
    let (answered, refused, sent) = (Counter::default(), Counter::default(), Counter::default());
    registry.register("hub_requests", "Requests for blobs that were admitted", answered.clone());
    registry.register("hub_requests_refused", "Requests refused as busy", refused.clone());
    registry.register("hub_bytes", "Bytes of bodies handed to connections", sent.clone());
    let requests = Arc::new(Semaphore::new(options.requests_max));
    let host = Host { store, rate: options.rate.clone(), requests, registry, answered, refused, sent };
    Router::new()
        .route("/v1/blobs/{hash}", get(bytes))
        .route("/v1/blobs/{hash}/outboard", get(outboard))
        .route("/v1/blobs/{hash}/tiles", get(tile_list))
        .route("/v1/blobs/{hash}/have", get(have))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(host))
}

/// Why a request got no bytes.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("a blob is named by 64 hex digits in lower case")]
    BadHash,
    #[error("this host does not have the blob")]
    BlobUnknown,
    #[error("the blob is still arriving here, and what was asked for is not all there yet; ask /have")]
    RangeNotHere,
    #[error("the outboard of the blob is not here yet")]
    OutboardUnknown,
    #[error("the tile list of the blob is not made yet")]
    TilesUnknown,
    #[error("the range begins behind the blob's {size} bytes")]
    RangeBeyond { size: u64 },
    #[error("the host answers as many requests as it may; ask again later")]
    Busy,
    #[error("the host's store failed; its operator finds why in the log")]
    Store,
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        tracing::error!(%error, "the store failed");
        Refusal::Store
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code) = match self {
            Refusal::BadHash => (StatusCode::BAD_REQUEST, "bad_hash"),
            Refusal::BlobUnknown => (StatusCode::NOT_FOUND, "blob_unknown"),
            Refusal::RangeNotHere => (StatusCode::NOT_FOUND, "range_not_here"),
            Refusal::OutboardUnknown => (StatusCode::NOT_FOUND, "outboard_unknown"),
            Refusal::TilesUnknown => (StatusCode::NOT_FOUND, "tiles_unknown"),
            Refusal::RangeBeyond { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "range_beyond"),
            Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Refusal::Store => (StatusCode::INTERNAL_SERVER_ERROR, "store_failed"),
        };
        let body = Json(json!({"error": {"code": code, "message": self.to_string()}}));
        let mut response = (status, [(header::CACHE_CONTROL, "no-store")], body).into_response();
        let headers = response.headers_mut();
        match self {
            Refusal::Busy => drop(headers.insert(header::RETRY_AFTER, limits::RETRY_AFTER_S.into())),
            Refusal::RangeBeyond { size } => {
                if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
                    headers.insert(header::CONTENT_RANGE, value);
                }
            }
            _ => {}
        }
        response
    }
}

enum Found {
    Whole(Blob),
    Arriving(Partial),
}

impl Host {
    fn admit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let permit = self.requests.clone().try_acquire_owned();
        if permit.is_ok() {
            self.answered.inc()
        } else {
            self.refused.inc()
        };
        permit.map_err(|_| Refusal::Busy)
    }

    async fn find(self: &Arc<Self>, hash: &str) -> Result<(BlobHash, Found), Refusal> {
        let hash: BlobHash = hash.parse().map_err(|_| Refusal::BadHash)?;
        let host = self.clone();
        let found = tokio::task::spawn_blocking(move || -> Result<_, StoreError> {
            Ok(match host.store.blob(hash)? {
                Some(blob) => Some(Found::Whole(blob)),
                None => host.store.arriving(hash).map(Found::Arriving),
            })
        });
        let found = found.await.map_err(|_| Refusal::Store)??;
        Ok((hash, found.ok_or(Refusal::BlobUnknown)?))
    }
}

type Hosted = State<Arc<Host>>;

async fn bytes(State(host): Hosted, Path(hash): Path<String>, asked: HeaderMap) -> Result<Response, Refusal> {
    let permit = host.admit()?;
    let (hash, found) = host.find(&hash).await?;
    let size = match &found {
        Found::Whole(blob) => blob.size(),
        Found::Arriving(partial) => partial.size(),
    };
    let etag = format!("\"{hash}\"");
    let text = |name| asked.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let same = |tags: &str| {
        tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag || tag.trim() == "*")
    };
    if text(header::IF_NONE_MATCH).is_some_and(same) {
        return Ok((StatusCode::NOT_MODIFIED, immutable(&etag)).into_response());
    }
    let ranged = text(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let range = match wanted(text(header::RANGE).filter(|_| ranged), size) {
        Wanted::Beyond => return Err(Refusal::RangeBeyond { size }),
        Wanted::All => None,
        Wanted::Part(range) => Some(range),
    };
    let span = range.clone().unwrap_or(0..size);
    let segments = match &found {
        Found::Whole(blob) => blob.segments(span.clone()),
        Found::Arriving(partial) => partial.segments(span.clone()).ok_or(Refusal::RangeNotHere)?,
    };
    let mut response = (immutable(&etag), frames(host, segments, permit)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, (span.end - span.start).into());
    if range.is_some() {
        let value = format!("bytes {}-{}/{size}", span.start, span.end - 1);
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(header::CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

fn immutable(etag: &str) -> [(header::HeaderName, String); 3] {
    [
        (header::ETAG, etag.to_owned()),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable".to_owned()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ]
}

/// A body of mapped pieces of files. It holds the request's permit until it is sent or dropped.
fn frames(host: Arc<Host>, segments: Vec<Segment>, permit: OwnedSemaphorePermit) -> Body {
    let piece = limits::FRAME_BYTES.min(host.rate.piece());
    let start = (segments.into_iter(), None::<(Segment, u64)>, permit);
    let frames = stream::try_unfold(start, move |(mut segments, mut current, permit)| {
        let host = host.clone();
        async move {
            let (segment, at) = loop {
                match current.take().or_else(|| segments.next().map(|s| (s, 0))) {
                    None => return Ok::<_, std::io::Error>(None),
                    Some((segment, at)) if at >= segment.len => {}
                    Some(found) => break found,
                }
            };
            let len = piece.min(segment.len - at);
            let part = Segment { file: segment.file.clone(), offset: segment.offset + at, len };
            let frame = tokio::task::spawn_blocking(move || resident(&part)).await;
            let frame = frame.map_err(std::io::Error::other)??;
            host.rate.take(len).await;
            host.sent.inc_by(len);
            Ok(Some((frame, (segments, Some((segment, at + len)), permit))))
        }
    });
    Body::from_stream(frames)
}

/// The bytes, in memory: what a disk takes its time for is waited for here, not on the threads that serve.
fn resident(part: &Segment) -> std::io::Result<Bytes> {
    let mapped = part.mapped()?;
    let touched = mapped.iter().step_by(4096).fold(0_u8, |sum, byte| sum ^ byte);
    std::hint::black_box(touched);
    Ok(Bytes::from_owner(mapped))
}

async fn outboard(State(host): Hosted, Path(hash): Path<String>) -> Result<Response, Refusal> {
    let permit = host.admit()?;
    let (hash, found) = host.find(&hash).await?;
    let bytes = match found {
        Found::Whole(blob) => Bytes::copy_from_slice(blob.outboard()),
        Found::Arriving(partial) => {
            Bytes::copy_from_slice(partial.outboard().ok_or(Refusal::OutboardUnknown)?.bytes())
        }
    };
    Ok((immutable(&format!("\"{hash}-outboard\"")), flat(host, bytes, permit)).into_response())
}

async fn tile_list(State(host): Hosted, Path(hash): Path<String>) -> Result<Response, Refusal> {
    let permit = host.admit()?;
    let (hash, found) = host.find(&hash).await?;
    let Found::Whole(blob) = found else { return Err(Refusal::TilesUnknown) };
    let list = blob.tile_list()?.ok_or(Refusal::TilesUnknown)?;
    Ok((immutable(&format!("\"{hash}-tiles\"")), flat(host, Bytes::from_owner(list), permit)).into_response())
}

fn flat(host: Arc<Host>, bytes: Bytes, permit: OwnedSemaphorePermit) -> Response {
    let length = bytes.len();
    let piece = (limits::FRAME_BYTES.min(host.rate.piece())) as usize;
    let frames = stream::unfold((bytes, permit), move |(mut bytes, permit)| {
        let host = host.clone();
        async move {
            if bytes.is_empty() {
                return None;
            }
            let frame = bytes.split_to(piece.min(bytes.len()));
            host.rate.take(frame.len() as u64).await;
            host.sent.inc_by(frame.len() as u64);
            Some((Ok::<_, std::io::Error>(frame), (bytes, permit)))
        }
    });
    ([(header::CONTENT_LENGTH, length)], Body::from_stream(frames)).into_response()
}

async fn have(State(host): Hosted, Path(hash): Path<String>) -> Result<Response, Refusal> {
    let _permit = host.admit()?;
    let answer = match host.find(&hash).await?.1 {
        Found::Whole(blob) => json!({"size": blob.size(), "whole": true}),
        Found::Arriving(partial) => {
            let mut runs: Vec<Range<u64>> = partial.have().ranges().collect();
            runs.sort_by_key(|run| std::cmp::Reverse(run.end - run.start));
            runs.truncate(limits::HAVE_RUNS_MAX);
            runs.sort_by_key(|run| run.start);
            let tiles: Vec<[u64; 2]> = runs.iter().map(|run| [run.start, run.end - run.start]).collect();
            json!({"size": partial.size(), "whole": false, "tiles": tiles})
        }
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

async fn metrics(State(host): Hosted) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &host.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
