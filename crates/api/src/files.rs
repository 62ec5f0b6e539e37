//! OpenAI's files: what batches read and write.
//!
//! This crate knows no disk: a [`FileStore`] keeps blobs and small documents. What a route has acknowledged is in the store.
//! A file is a blob and, written after it, a document that describes it; a blob without one is left over from a crash and
//! removed at the next start.

mod desk;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use crate::parameters::{out_of_range, unsupported};
use crate::{Owner, Refusal, batches};
pub(crate) use desk::{Desk, FileObject, derived_id, now_ns, seconds};

/// Bytes read from a store at once.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a form beside its file.
const FORM_BYTES: usize = 64 << 10;
/// Most files of one page: OpenAI's limit.
const PAGE_MAX: usize = 10_000;

/// Keeps blobs and documents. Names are up to 80 of `a-z`, `0-9`, `-` and `_`. Every method may block; what returned without an
/// error is there after kill -9 and after a power cut, and nothing is ever there in part.
pub trait FileStore: Send + Sync + 'static {
    /// Stores a blob, replacing one of that name.
    fn put_blob(
        &self,
        name: &str,
        parts: &mut dyn Iterator<Item = Result<Vec<u8>, StorageError>>,
    ) -> Result<(), StorageError>;

    /// Up to `bytes_max` bytes of a blob from `offset`; none at its end.
    fn read_blob(&self, name: &str, offset: u64, bytes_max: usize) -> Result<Vec<u8>, StorageError>;

    /// Removes a blob, if it is there.
    fn delete_blob(&self, name: &str) -> Result<(), StorageError>;

    /// Names of all blobs.
    fn blobs(&self) -> Result<Vec<String>, StorageError>;

    /// Stores a document, replacing one of that key.
    fn put(&self, collection: &str, key: &str, document: &[u8]) -> Result<(), StorageError>;

    /// A document.
    fn get(&self, collection: &str, key: &str) -> Result<Option<Vec<u8>>, StorageError>;

    /// Keys of a collection in rising order; none if there is no such collection.
    fn keys(&self, collection: &str) -> Result<Vec<String>, StorageError>;

    /// Removes a document, if it is there.
    fn delete(&self, collection: &str, key: &str) -> Result<(), StorageError>;
}

/// Why a store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct StorageError {
    /// Where: a path, or a name in the store.
    pub place: String,
    /// What happened.
    pub reason: String,
}

impl From<StorageError> for Refusal {
    fn from(e: StorageError) -> Self {
        // The place is the operator's business.
        tracing::error!("files: {e}");
        Refusal::Internal { message: format!("the file store failed: {}", e.reason) }
    }
}

/// Limits on files and batches.
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    /// Most bytes of a file.
    pub file_bytes_max: usize,
    /// Most files kept for one account.
    pub files_max: usize,
    /// Most files being uploaded at the same time, each of them in memory.
    pub uploads_max: usize,
    /// Most lines of a batch: OpenAI's limit.
    pub lines_max: usize,
    /// Most lines of a batch in flight.
    pub lines_in_flight_max: usize,
    /// Most batches of one account that are not finished. Those of an account run one after the other, those of several beside each other.
    pub open_batches_max: usize,
}

impl Default for FileOptions {
    fn default() -> Self {
        FileOptions {
            file_bytes_max: 100 << 20,
            files_max: 10_000,
            uploads_max: 4,
            lines_max: 50_000,
            lines_in_flight_max: 8,
            open_batches_max: 100,
        }
    }
}

/// The desk, where the server has one.
pub(crate) type MaybeDesk = Option<Arc<Desk>>;

/// The desk, or what the routes say without one.
pub(crate) fn here(desk: MaybeDesk) -> Result<Arc<Desk>, Refusal> {
    desk.ok_or_else(|| unsupported("files", "this server was started without a place to keep files"))
}

/// The routes of files and of batches.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(desk: MaybeDesk) -> Router<S> {
    let most = desk.as_ref().map_or(0, |d| d.options.file_bytes_max).saturating_add(FORM_BYTES);
    Router::new()
        .route("/v1/files", post(upload::upload).get(list).layer(DefaultBodyLimit::max(most)))
        .route("/v1/files/{id}", get(one).delete(delete))
        .route("/v1/files/{id}/content", get(content))
        .merge(batches::routes())
        .with_state(desk)
}

/// What a list's query asks.
pub(crate) struct Page {
    pub(crate) after: Option<String>,
    pub(crate) limit: usize,
    pub(crate) rising: bool,
    pub(crate) purpose: Option<String>,
}

pub(crate) type Asked = Result<Query<BTreeMap<String, String>>, QueryRejection>;

impl Page {
    pub(crate) fn read(asked: Asked, most: usize, default: usize) -> Result<Page, Refusal> {
        let Query(mut asked) =
            asked.map_err(|e| Refusal::Invalid { param: "query".into(), message: e.to_string() })?;
        let limit = match asked.remove("limit") {
            None => default,
            Some(text) => {
                let limit = text.parse().ok().filter(|n| (1..=most).contains(n));
                limit.ok_or_else(|| out_of_range("limit", &format!("1 to {most}")))?
            }
        };
        let rising = match asked.remove("order").as_deref() {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return Err(out_of_range("order", "asc or desc")),
        };
        Ok(Page { after: asked.remove("after"), limit, rising, purpose: asked.remove("purpose") })
    }

    /// The page of `all`, which are in rising order.
    pub(crate) fn cut<T>(
        &self,
        mut all: Vec<T>,
        id: impl Fn(&T) -> &str,
        view: impl Fn(&T) -> Value,
    ) -> Result<Value, Refusal> {
        if !self.rising {
            all.reverse();
        }
        let start = match &self.after {
            None => 0,
            Some(after) => {
                let place = all.iter().position(|t| id(t) == after);
                place.ok_or_else(|| out_of_range("after", "an id of this list"))?.saturating_add(1)
            }
        };
        let rest = all.get(start..).unwrap_or_default();
        let page = rest.get(..self.limit).unwrap_or(rest);
        let data: Vec<Value> = page.iter().map(view).collect();
        Ok(
            json!({"object": "list", "data": data, "first_id": page.first().map(&id), "last_id": page.last().map(&id),
                  "has_more": rest.len() > page.len()}),
        )
    }
}

async fn list(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    asked: Asked,
) -> Result<Json<Value>, Refusal> {
    let page = Page::read(asked, PAGE_MAX, PAGE_MAX)?;
    let mut all = here(desk)?.files(&owner);
    all.retain(|f| page.purpose.as_ref().is_none_or(|p| *p == f.purpose));
    Ok(Json(page.cut(all, |f| &f.id, FileObject::view)?))
}

async fn one(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(here(desk)?.file_of(&id, &owner)?.view()))
}

async fn delete(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let file = here(desk)?.delete(&id, owner).await?;
    Ok(Json(json!({"id": file.id, "object": "file", "deleted": true})))
}

async fn content(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let desk = here(desk)?;
    let file = desk.file_of(&id, &owner)?;
    let bytes = file.bytes;
    let pieces = futures_util::stream::unfold((desk, file, 0u64), |(desk, file, offset)| async move {
        if offset >= file.bytes {
            return None;
        }
        let id = file.id.clone();
        let piece = desk.blocking(move |d| Ok(d.store.read_blob(&id, offset, PIECE_BYTES)?)).await;
        match piece {
            // The file was deleted in the middle: breaking off tells the client.
            Ok(piece) if piece.is_empty() => {
                Some((Err(Refusal::UnknownFile { asked: file.id.clone() }), (desk, file, u64::MAX)))
            }
            Ok(piece) => {
                let next = offset.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
                Some((Ok(piece), (desk, file, next)))
            }
            Err(e) => Some((Err(e), (desk, file, u64::MAX))),
        }
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    Ok(response)
}
