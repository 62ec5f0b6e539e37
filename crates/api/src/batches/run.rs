//! Has batches answered, one after the other, a bounded number of lines at a time.
//!
//! Results become durable in chunks; a restart goes on after the last of them, so that no answer that was counted is asked for
//! again. The output files' ids follow from the batch's: writing them twice writes the same files. When the server
//! stops, lines in flight are dropped and asked again at the next start.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tower::ServiceExt as _;

use super::lines::{self, Line};
use super::{Batch, Status, results};
use crate::files::{Desk, FileObject, StorageError, derived_id, now_ns, seconds};
use crate::server::{RECEIPT_HEADER, REQUEST_ID_HEADER};
use crate::verification::CLASS_HEADER;
use crate::{Owner, Refusal};

/// Accounts whose batches run at the same time.
const BATCHES_MAX: usize = 16;
/// Results of one chunk.
const CHUNK_LINES: usize = 64;
/// How long a result waits for others before it is made durable.
const CHUNK_AFTER: Duration = Duration::from_millis(500);
/// Bytes read from the store at once.
const PIECE_BYTES: usize = 4 << 20;
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How long a refused line waits, at least and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long a failed store is left alone.
const STORE_RETRY: Duration = Duration::from_secs(10);

/// A result as it waits in the store.
#[derive(Serialize, Deserialize)]
struct Done {
    index: usize,
    failed: bool,
    line: Value,
}

/// Runs batches until `stop` is true or its sender is gone: of each account one at a time, of [`BATCHES_MAX`] accounts beside each other.
pub(crate) async fn run(desk: Arc<Desk>, router: Router, mut stop: watch::Receiver<bool>) {
    let mut changes = desk.changes.subscribe();
    // Batches that the store failed: others come first.
    let mut aside = BTreeSet::new();
    let mut busy: BTreeSet<String> = BTreeSet::new();
    let mut running = JoinSet::new();
    loop {
        changes.mark_unchanged();
        for batch in desk.batches().into_iter().filter(Batch::is_open) {
            let Batch { id, owner: Owner { account, .. }, .. } = batch;
            if running.len() < BATCHES_MAX && !aside.contains(&id) && busy.insert(account.clone()) {
                let (desk, router, mut stop) = (Arc::clone(&desk), router.clone(), stop.clone());
                running.spawn(async move { (one(&desk, &router, &id, &mut stop).await, id, account) });
            }
        }
        tokio::select! {
            () = stopped(&mut stop) => break,
            _ = changes.changed() => {}
            () = sleep(STORE_RETRY), if !aside.is_empty() => aside.clear(),
            Some(ended) = running.join_next() => match ended {
                Ok((ended, id, account)) => {
                    busy.remove(&account);
                    if let Err(e) = ended {
                        tracing::error!("{id}: {e}; it is set aside for {} s", STORE_RETRY.as_secs());
                        aside.insert(id);
                    }
                }
                // It panicked: whose it was is not known, and its account's batches rest until the next start.
                Err(e) => tracing::error!("a batch was cut off: {e}"),
            },
        }
    }
    // Each makes durable what it has.
    while running.join_next().await.is_some() {}
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: then the server has ended.
    let _ = stop.wait_for(|s| *s).await;
}

async fn one(
    desk: &Arc<Desk>,
    router: &Router,
    id: &str,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Refusal> {
    let batch = desk.batch(id)?;
    let input = read_input(desk, &batch.input_file_id).await?;
    let (endpoint, lines_max) = (batch.endpoint.clone(), desk.options.lines_max);
    let (input, places, errors) = desk
        .blocking(move |_| {
            let places = lines::places(&input);
            let errors = lines::check(&input, &places, &endpoint, lines_max);
            Ok((input, places, errors))
        })
        .await?;
    let total = places.len();
    let batch = desk
        .change_batch(id, move |b| {
            match b.status {
                Status::Validating if errors.is_empty() => {
                    b.status = Status::InProgress;
                    b.in_progress_at = Some(seconds());
                    b.total = total;
                }
                Status::Validating | Status::Cancelling if !errors.is_empty() => {
                    b.status = Status::Failed;
                    b.failed_at = Some(seconds());
                    b.errors = errors;
                }
                _ => b.total = total,
            }
            Ok(())
        })
        .await?;
    if batch.status == Status::Failed {
        return Ok(());
    }
    let work = Work { desk: Arc::clone(desk), router: router.clone(), batch, input: Arc::new(input), places };
    work.answer(stop).await
}

async fn read_input(desk: &Arc<Desk>, id: &str) -> Result<Vec<u8>, Refusal> {
    let id = id.to_owned();
    desk.blocking(move |d| {
        let mut all = Vec::new();
        loop {
            let offset = u64::try_from(all.len()).unwrap_or(u64::MAX);
            let piece = d.store.read_blob(&id, offset, PIECE_BYTES)?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    })
    .await
}

/// What is already durable of a batch.
struct Progress {
    done: BTreeSet<usize>,
    /// How many of them failed.
    failed: usize,
    next_chunk: u64,
}

/// A batch whose input is good.
struct Work {
    desk: Arc<Desk>,
    router: Router,
    batch: Batch,
    input: Arc<Vec<u8>>,
    places: Vec<Range<usize>>,
}

impl Work {
    async fn answer(&self, stop: &mut watch::Receiver<bool>) -> Result<(), Refusal> {
        let id = &self.batch.id;
        let mut progress = self.progress().await?;
        let mut waiting =
            (0..self.places.len()).filter(|i| !progress.done.contains(i)).collect::<Vec<_>>().into_iter();
        let mut in_flight = JoinSet::new();
        let mut places = HashMap::new();
        let mut ready: Vec<Done> = Vec::new();
        let mut chunk_at = Instant::now();
        let mut changes = self.desk.changes.subscribe();
        let is_cancelled = || self.desk.batch(id).is_ok_and(|b| b.status == Status::Cancelling);
        let finalizing = self.batch.status == Status::Finalizing;
        while !finalizing && !is_cancelled() {
            while in_flight.len() < self.desk.options.lines_in_flight_max {
                let Some(index) = waiting.next() else { break };
                let task = in_flight.spawn(self.line(index));
                places.insert(task.id(), index);
            }
            if in_flight.is_empty() {
                break;
            }
            tokio::select! {
                () = stopped(stop) => {
                    self.store(&mut ready, &mut progress).await?;
                    return Ok(());
                }
                _ = changes.changed() => {}
                () = sleep_until(chunk_at), if !ready.is_empty() => self.store(&mut ready, &mut progress).await?,
                Some(joined) = in_flight.join_next_with_id() => {
                    if ready.is_empty() {
                        chunk_at = Instant::now() + CHUNK_AFTER;
                    }
                    match joined {
                        Ok((task, done)) => {
                            places.remove(&task);
                            ready.push(done);
                        }
                        Err(e) => ready.extend(places.remove(&e.id()).map(|index| {
                            self.unanswered(index, "internal_error", "the request was not answered")
                        })),
                    }
                    if ready.len() >= CHUNK_LINES {
                        self.store(&mut ready, &mut progress).await?;
                    }
                }
            }
        }
        in_flight.shutdown().await;
        self.store(&mut ready, &mut progress).await?;
        self.finish(progress).await?;
        Ok(())
    }

    /// Reads what a run before this one has made durable.
    async fn progress(&self) -> Result<Progress, Refusal> {
        let id = self.batch.id.clone();
        self.desk
            .blocking(move |d| {
                let mut progress = Progress { done: BTreeSet::new(), failed: 0, next_chunk: 0 };
                for key in d.store.keys(&results(&id))? {
                    progress.next_chunk = key.parse::<u64>().unwrap_or(0).saturating_add(1);
                    let chunk = chunk(d, &id, &key)?;
                    progress.failed =
                        progress.failed.saturating_add(chunk.iter().filter(|d| d.failed).count());
                    progress.done.extend(chunk.into_iter().map(|d| d.index));
                }
                Ok(progress)
            })
            .await
    }

    /// Makes results durable, then counts them.
    async fn store(&self, ready: &mut Vec<Done>, progress: &mut Progress) -> Result<(), Refusal> {
        if ready.is_empty() {
            return Ok(());
        }
        let ready = std::mem::take(ready);
        let indices: Vec<usize> = ready.iter().map(|d| d.index).collect();
        let key = format!("{:08}", progress.next_chunk);
        let id = self.batch.id.clone();
        let failed = ready.iter().filter(|d| d.failed).count();
        self.desk
            .blocking(move |d| {
                let bytes = serde_json::to_vec(&ready)
                    .map_err(|e| StorageError { place: key.clone(), reason: e.to_string() })?;
                Ok(d.store.put(&results(&id), &key, &bytes)?)
            })
            .await?;
        progress.next_chunk = progress.next_chunk.saturating_add(1);
        progress.done.extend(indices);
        progress.failed = progress.failed.saturating_add(failed);
        let (done, failed) = (progress.done.len(), progress.failed);
        self.desk
            .change_batch(&self.batch.id, move |b| {
                b.completed = done.saturating_sub(failed);
                b.failed = failed;
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Writes the files, then says so, then forgets the chunks.
    async fn finish(&self, mut progress: Progress) -> Result<(), Refusal> {
        let id = self.batch.id.clone();
        let cancelled = self.desk.batch(&id)?.cancelling_at.is_some();
        if cancelled {
            let mut rest: Vec<Done> = (0..self.places.len())
                .filter(|i| !progress.done.contains(i))
                .map(|i| {
                    self.unanswered(
                        i,
                        "batch_cancelled",
                        "the batch was cancelled before this line was answered",
                    )
                })
                .collect();
            self.store(&mut rest, &mut progress).await?;
        }
        // From here on it cannot be cancelled any more; a batch that is being cancelled keeps its name for that.
        self.desk
            .change_batch(&id, |b| {
                if b.status != Status::Cancelling {
                    b.status = Status::Finalizing;
                    b.finalizing_at.get_or_insert_with(seconds);
                }
                Ok(())
            })
            .await?;
        let batch = self.batch.clone();
        let (output, errors, counts) = self
            .desk
            .blocking(move |d| {
                let (output, completed) = output_file(d, &batch, "output", |done| !done.failed)?;
                let (errors, failed) = output_file(d, &batch, "error", |done| done.failed)?;
                Ok((output, errors, (completed, failed)))
            })
            .await?;
        self.desk
            .change_batch(&id, move |b| {
                (b.output_file_id, b.error_file_id) = (output, errors);
                (b.completed, b.failed) = counts;
                if b.status == Status::Cancelling {
                    b.status = Status::Cancelled;
                    b.cancelled_at = Some(seconds());
                } else {
                    b.status = Status::Completed;
                    b.completed_at = Some(seconds());
                }
                Ok(())
            })
            .await?;
        self.desk
            .blocking(move |d| {
                for key in d.store.keys(&results(&id))? {
                    d.store.delete(&results(&id), &key)?;
                }
                Ok(())
            })
            .await
    }

    fn read_line(&self, index: usize) -> Option<Line> {
        let place = self.places.get(index)?.clone();
        lines::read(self.input.get(place)?, &self.batch.endpoint).ok()
    }

    fn result_id(&self, index: usize) -> String {
        derived_id("batch_req_", &[self.batch.id.as_bytes(), &index.to_be_bytes()])
    }

    /// A line that has no answer, and why.
    fn unanswered(&self, index: usize, code: &str, message: &str) -> Done {
        let custom_id = self.read_line(index).map(|l| l.custom_id);
        let line = json!({"id": self.result_id(index), "custom_id": custom_id, "response": null,
                          "error": {"code": code, "message": message}});
        Done { index, failed: true, line }
    }

    /// Has a line answered, however often the server is busy.
    fn line(&self, index: usize) -> impl Future<Output = Done> + Send + 'static {
        let (router, endpoint) = (self.router.clone(), self.batch.endpoint.clone());
        let (id, owner) = (self.result_id(index), self.batch.owner.clone());
        let class = self.batch.class.and_then(|class| HeaderValue::from_str(&class.to_string()).ok());
        // Every line was checked before the first was answered.
        let (custom_id, body) =
            self.read_line(index).map(|l| (l.custom_id, Bytes::from(l.body))).unwrap_or_default();
        async move {
            loop {
                let mut request = Request::new(Body::from(body.clone()));
                request.extensions_mut().insert(owner.clone());
                *request.method_mut() = axum::http::Method::POST;
                *request.uri_mut() = endpoint.parse().unwrap_or_default();
                request
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                if let Some(class) = &class {
                    request.headers_mut().insert(CLASS_HEADER, class.clone());
                }
                let response = match router.clone().oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                let (parts, body) = response.into_parts();
                if matches!(parts.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                    sleep(retry_after(&parts.headers)).await;
                    continue;
                }
                let bytes = to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_default();
                let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let text = |name| parts.headers.get(&name).and_then(|v| v.to_str().ok());
                let mut response = json!({"status_code": parts.status.as_u16(), "request_id": text(REQUEST_ID_HEADER),
                                          "body": body});
                if let Some(receipt) = text(RECEIPT_HEADER) {
                    response["assay_receipt_id"] = json!(receipt);
                }
                let line = json!({"id": id, "custom_id": custom_id, "response": response, "error": null});
                return Done { index, failed: !parts.status.is_success(), line };
            }
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let after = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    Duration::from_secs(after.unwrap_or(1)).clamp(RETRY.0, RETRY.1)
}

fn chunk(desk: &Desk, id: &str, key: &str) -> Result<Vec<Done>, StorageError> {
    let bytes = desk.store.get(&results(id), key)?.unwrap_or_default();
    serde_json::from_slice(&bytes)
        .map_err(|e| StorageError { place: format!("{}/{key}", results(id)), reason: e.to_string() })
}

/// Writes the file of the results that are wanted; none if there are none.
fn output_file(
    desk: &Desk,
    batch: &Batch,
    kind: &str,
    wanted: impl Fn(&Done) -> bool,
) -> Result<(Option<String>, usize), Refusal> {
    let keys = desk.store.keys(&results(&batch.id))?;
    let count = Cell::new(0usize);
    let lines = |key: &String| -> Result<Vec<u8>, StorageError> {
        let mut text = Vec::new();
        for done in chunk(desk, &batch.id, key)?.iter().filter(|d| wanted(d)) {
            text.extend_from_slice(done.line.to_string().as_bytes());
            text.push(b'\n');
            count.set(count.get().saturating_add(1));
        }
        Ok(text)
    };
    // A first look tells whether there is anything to write.
    for key in &keys {
        lines(key)?;
    }
    let found = count.replace(0);
    if found == 0 {
        return Ok((None, 0));
    }
    let file = FileObject {
        id: derived_id("file-", &[batch.id.as_bytes(), kind.as_bytes()]),
        owner: batch.owner.clone(),
        bytes: 0,
        created_ns: now_ns(),
        filename: format!("{}_{kind}.jsonl", batch.id),
        purpose: "batch_output".to_owned(),
    };
    let file = desk.put_file(file, &mut keys.iter().map(&lines))?;
    Ok((Some(file.id), found))
}
