//! OpenAI's batches: a file of requests in, a file of answers out. [`lines`] checks requests, [`run`] has them answered by the
//! server's own routes.

mod lines;
mod run;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::files::{Asked, MaybeDesk, Page, here, seconds};
use crate::parameters::{Object, out_of_range, unsupported, wrong_type};
use crate::{Class, Owner, Refusal, dialect};
pub(crate) use run::run;

/// Routes that lines may be for.
const ENDPOINTS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];
/// Most bytes of a body here.
const BODY_BYTES_MAX: usize = 64 << 10;
/// OpenAI's limits on metadata: pairs, bytes of a key, bytes of a value.
const METADATA_MAX: (usize, usize, usize) = (16, 64, 512);
/// Batches of one page: the most and the default.
const PAGE: (usize, usize) = (100, 20);

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Validating,
    InProgress,
    Finalizing,
    Completed,
    Failed,
    Cancelling,
    Cancelled,
}

/// A batch as it is described in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) owner: Owner,
    pub(crate) endpoint: String,
    pub(crate) input_file_id: String,
    pub(crate) completion_window: String,
    pub(crate) metadata: Option<Map<String, Value>>,
    /// Who checks the answers; nothing for whatever the server does without a word.
    #[serde(default)]
    pub(crate) class: Option<Class>,
    pub(crate) status: Status,
    /// Nanoseconds since 1970.
    pub(crate) created_ns: u64,
    pub(crate) in_progress_at: Option<u64>,
    pub(crate) finalizing_at: Option<u64>,
    pub(crate) completed_at: Option<u64>,
    pub(crate) failed_at: Option<u64>,
    pub(crate) cancelling_at: Option<u64>,
    pub(crate) cancelled_at: Option<u64>,
    pub(crate) output_file_id: Option<String>,
    pub(crate) error_file_id: Option<String>,
    pub(crate) errors: Vec<lines::LineError>,
    pub(crate) total: usize,
    pub(crate) completed: usize,
    pub(crate) failed: usize,
}

impl Batch {
    /// Whether there is something left to do.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.status, Status::Completed | Status::Failed | Status::Cancelled)
    }

    fn view(&self) -> Value {
        let errors = (!self.errors.is_empty()).then(|| json!({"object": "list", "data": self.errors}));
        json!({"id": self.id, "object": "batch", "endpoint": self.endpoint, "errors": errors,
               "input_file_id": self.input_file_id, "completion_window": self.completion_window, "status": self.status,
               "output_file_id": self.output_file_id, "error_file_id": self.error_file_id,
               "created_at": self.created_ns / 1_000_000_000, "in_progress_at": self.in_progress_at,
               "expires_at": null, "finalizing_at": self.finalizing_at, "completed_at": self.completed_at,
               "failed_at": self.failed_at, "expired_at": null, "cancelling_at": self.cancelling_at,
               "cancelled_at": self.cancelled_at,
               "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
               "metadata": self.metadata})
    }
}

/// The collection of a batch's results until its files are written.
pub(crate) fn results(id: &str) -> String {
    format!("results-{id}")
}

/// The routes of batches.
pub(crate) fn routes() -> Router<MaybeDesk> {
    Router::new()
        .route("/v1/batches", post(create).get(list).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)))
        .route("/v1/batches/{id}", get(one))
        .route("/v1/batches/{id}/cancel", post(cancel))
}

async fn create(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let desk = here(desk)?;
    let class = Class::asked(&headers)?;
    let body = body.map_err(|_| Refusal::BodyTooLarge { limit: BODY_BYTES_MAX })?;
    let body = dialect::object(&body)?;
    let o = Object(&body);
    let text = |name: &str| -> Result<String, Refusal> {
        let v = o.typed(name, "a string", Value::as_str)?;
        Ok(v.ok_or_else(|| Refusal::Missing { param: name.to_owned() })?.to_owned())
    };
    if o.get("output_expires_after").is_some() {
        return Err(unsupported("output_expires_after", "files stay until they are deleted"));
    }
    let (input_file_id, endpoint) = (text("input_file_id")?, text("endpoint")?);
    if !ENDPOINTS.contains(&endpoint.as_str()) {
        return Err(unsupported("endpoint", &format!("batches are for {}", ENDPOINTS.join(", "))));
    }
    let completion_window = text("completion_window")?;
    if completion_window != "24h" {
        return Err(out_of_range("completion_window", "24h"));
    }
    let metadata = o.typed("metadata", "an object", Value::as_object)?.cloned();
    let (pairs, key, value) = METADATA_MAX;
    for (k, v) in metadata.iter().flatten() {
        let v = v.as_str().ok_or_else(|| wrong_type("metadata", "an object of strings"))?;
        if k.len() > key || v.len() > value {
            return Err(out_of_range("metadata", &format!("keys of {key} and values of {value} bytes")));
        }
    }
    if metadata.as_ref().is_some_and(|m| m.len() > pairs) {
        return Err(out_of_range("metadata", &format!("at most {pairs} pairs")));
    }
    let batch = Batch {
        id: desk.fresh_id("batch_"),
        owner,
        endpoint,
        input_file_id,
        completion_window,
        metadata,
        class,
        status: Status::Validating,
        created_ns: crate::files::now_ns(),
        in_progress_at: None,
        finalizing_at: None,
        completed_at: None,
        failed_at: None,
        cancelling_at: None,
        cancelled_at: None,
        output_file_id: None,
        error_file_id: None,
        errors: vec![],
        total: 0,
        completed: 0,
        failed: 0,
    };
    Ok(Json(desk.add_batch(batch).await?.view()))
}

async fn list(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    asked: Asked,
) -> Result<Json<Value>, Refusal> {
    let page = Page::read(asked, PAGE.0, PAGE.1)?;
    let mut all = here(desk)?.batches();
    all.retain(|batch| batch.owner.account == owner.account);
    Ok(Json(page.cut(all, |b| &b.id, Batch::view)?))
}

async fn one(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(here(desk)?.batch_of(&id, &owner)?.view()))
}

async fn cancel(
    State(desk): State<MaybeDesk>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let desk = here(desk)?;
    desk.batch_of(&id, &owner)?;
    let cancelled = desk.change_batch(&id, |batch| match batch.status {
        Status::Validating | Status::InProgress => {
            batch.status = Status::Cancelling;
            batch.cancelling_at = Some(seconds());
            Ok(())
        }
        Status::Cancelling => Ok(()),
        Status::Finalizing | Status::Completed | Status::Failed | Status::Cancelled => {
            let message = format!("{} has ended and cannot be cancelled", batch.id);
            Err(Refusal::Invalid { param: "batch_id".into(), message })
        }
    });
    Ok(Json(cancelled.await?.view()))
}
