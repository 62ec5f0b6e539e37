//! One answer in the words of another API: what Anthropic's and Ollama's routes share.
//!
//! A dialect decides how things look. What is asked, how long anything may take and what is measured is the same for all.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_core::answer::AnswerRecord;
use assay_core::id::ReceiptId;
use assay_core::request::{Request as Asked, RequestError};
use assay_core::transcript::{StopReason, Usage};
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;
use tokio::time::timeout;

use crate::answer::{Meter, stopped};
use crate::metrics::Finish;
pub(crate) use crate::parameters::body_object as object;
use crate::server::{RECEIPT_HEADER, RequestId, Shared, with_sources};
pub(crate) use crate::server::{Received, receive};
use crate::{Event, Generation, Inference, ModelCard, Refusal, Source, Task, traces};

/// The name that the server gave this request.
pub(crate) fn request_id(request: &Request) -> String {
    request.extensions().get::<RequestId>().map(|r| r.0.clone()).unwrap_or_default()
}

/// An answer that a client hears. Dropped before its end, it is asked to stop: its client has left, and pays for what there is of it.
pub(crate) struct Heard(Generation);

impl Deref for Heard {
    type Target = Generation;

    fn deref(&self) -> &Generation {
        &self.0
    }
}

impl DerefMut for Heard {
    fn deref_mut(&mut self) -> &mut Generation {
        &mut self.0
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

/// Starts an answer.
pub(crate) async fn generate<I: Inference>(
    s: &Shared<I>,
    received: &Received,
    card: &ModelCard,
    request: Asked,
) -> Result<(Heard, Meter), Refusal> {
    if card.task != Task::Generate {
        let reason = "this model makes vectors of texts; it does not answer".to_owned();
        return Err(Refusal::Unsupported { param: "model".into(), reason });
    }
    request.check().map_err(|e| invalid(&e))?;
    let span = traces::current();
    span.asks(&card.id);
    span.limited(request.max_tokens);
    let generation = s.inference.generate(received.order(request)).await?;
    span.responds(&generation.receipt_id);
    Ok((Heard(generation), Meter::new(Arc::clone(&s.metrics), card.id.clone(), received.started)))
}

/// What a request's own limits refuse.
pub(crate) fn invalid(e: &RequestError) -> Refusal {
    Refusal::Invalid { param: e.param.to_owned(), message: e.to_string() }
}

/// A part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text, never empty.
    Text(String),
    /// A call of a tool; the arguments are JSON text, cut off where the answer was.
    Call { id: String, name: String, arguments: String },
}

/// Appends what an event adds to the parts.
pub(crate) fn append(parts: &mut Vec<Part>, event: &Event) {
    match (event, parts.last_mut()) {
        (Event::Text { text, .. }, Some(Part::Text(before))) => before.push_str(text),
        (Event::Text { text, .. }, _) if !text.is_empty() => parts.push(Part::Text(text.clone())),
        (Event::Call { id, name, .. }, _) => {
            parts.push(Part::Call { id: id.clone(), name: name.clone(), arguments: String::new() });
        }
        (Event::Arguments { json, .. }, Some(Part::Call { arguments, .. })) => arguments.push_str(json),
        _ => {}
    }
}

/// A complete answer.
pub(crate) struct Whole {
    pub(crate) parts: Vec<Part>,
    pub(crate) stop: StopReason,
    pub(crate) usage: Usage,
    pub(crate) record: Arc<AnswerRecord>,
    /// When the first event came.
    pub(crate) first: Instant,
}

/// Collects an answer.
pub(crate) async fn collect(mut generation: Heard, mut meter: Meter) -> Result<Whole, Refusal> {
    let mut parts = Vec::new();
    let mut first = None;
    loop {
        let event = generation.events.recv().await.unwrap_or_else(stopped);
        meter.see(&event);
        let first = *first.get_or_insert_with(Instant::now);
        match event {
            Event::Failed(refusal) => return Err(refusal),
            Event::End { stop, usage, record, .. } => return Ok(Whole { parts, stop, usage, record, first }),
            event => append(&mut parts, &event),
        }
    }
}

/// How a stream looks.
pub(crate) trait Dialect: Send + 'static {
    /// What stands before everything.
    fn open(&mut self, out: &mut VecDeque<String>);

    /// What an event looks like; true if it is the last one.
    fn event(&mut self, event: Event, out: &mut VecDeque<String>) -> bool;

    /// Says that the stream lives.
    fn keep_alive(&self) -> String;
}

/// A stream. Its first event is awaited before the response begins, but not for longer than `keep_alive`: a failure before
/// the first byte has its own status.
pub(crate) async fn stream<D: Dialect>(
    mut generation: Heard,
    mut dialect: D,
    mut meter: Meter,
    keep_alive: Duration,
) -> Result<Body, Refusal> {
    let first = timeout(keep_alive, generation.events.recv()).await.ok().map(|e| e.unwrap_or_else(stopped));
    if let Some(Event::Failed(refusal)) = first {
        meter.finish(Finish::Error);
        return Err(refusal);
    }
    let mut ready = VecDeque::new();
    dialect.open(&mut ready);
    let mut done = false;
    if let Some(event) = first {
        meter.see(&event);
        done = dialect.event(event, &mut ready);
    }
    let state = (generation, dialect, meter, ready, done);
    let stream = futures_util::stream::unfold(
        state,
        move |(mut generation, mut dialect, mut meter, mut ready, mut done)| async move {
            loop {
                if let Some(text) = ready.pop_front() {
                    let text = Ok::<_, std::convert::Infallible>(text);
                    return Some((text, (generation, dialect, meter, ready, done)));
                }
                if done {
                    return None;
                }
                match timeout(keep_alive, generation.events.recv()).await {
                    Err(_) => ready.push_back(dialect.keep_alive()),
                    Ok(event) => {
                        let event = event.unwrap_or_else(stopped);
                        meter.see(&event);
                        done = dialect.event(event, &mut ready);
                    }
                }
            }
        },
    );
    Ok(Body::from_stream(stream))
}

/// A streamed response of this type, with its receipt's id.
pub(crate) fn streamed(body: Body, content_type: &'static str, promised: Promised) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    promised.on((headers, body).into_response())
}

/// What is known of an answer before it ends.
#[derive(Clone, Copy)]
pub(crate) struct Promised {
    receipt: ReceiptId,
    source: Option<Source>,
}

impl Promised {
    /// Of an answer that has begun.
    pub(crate) fn by(generation: &Generation) -> Promised {
        Promised { receipt: generation.receipt_id, source: generation.source }
    }

    /// Says it in the response's headers.
    pub(crate) fn on(self, response: Response) -> Response {
        with_sources(with_receipt(response, self.receipt), self.source.as_slice())
    }
}

/// Adds the receipt's id.
pub(crate) fn with_receipt(mut response: Response, receipt: ReceiptId) -> Response {
    if let Ok(value) = HeaderValue::from_str(&receipt.to_string()) {
        response.headers_mut().insert(RECEIPT_HEADER, value);
    }
    response
}

/// The refusal's response with another body: status, headers and the mark for the metrics stay.
pub(crate) fn reworded(refusal: Refusal, body: &Value) -> Response {
    let (mut parts, _) = refusal.into_response().into_parts();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(body.to_string()))
}

/// A JSON object, or nothing where it was cut off.
pub(crate) fn whole_object(json: &str) -> Option<Value> {
    // A tool without parameters may be called without any text.
    let json = if json.trim().is_empty() { "{}" } else { json };
    serde_json::from_str(json).ok().filter(Value::is_object)
}
