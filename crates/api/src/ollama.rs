//! Ollama's native API: the routes under `/api`. `docs/compatibility.md` says what is honoured, ignored and refused; [`parse`]
//! does it, [`cards`] shows models, this file answers.

mod cards;
mod embed;
mod parse;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use assay_core::answer::GenerationCost;
use assay_core::transcript::{StopReason, Usage};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::dialect::{self, Dialect, Part};
use crate::refusal::Refused;
use crate::server::{Shared, find};
use crate::{Event, Inference, ModelCard, Refusal};
use parse::Shape;

/// The version of Ollama whose API this is: clients ask before they use newer parts of it.
const VERSION: &str = "0.12.6";

/// The routes of this surface.
pub(crate) fn routes<I: Inference>() -> Router<Shared<I>> {
    Router::new()
        .route("/api/version", get(async || Json(json!({"version": VERSION}))))
        .route("/api/tags", get(cards::tags::<I>))
        .route("/api/ps", get(cards::running::<I>))
        .route("/api/show", post(cards::show::<I>))
        .route("/api/chat", post(chat::<I>))
        .route("/api/generate", post(complete::<I>))
        .route("/api/embed", post(embed::many::<I>))
        .route("/api/embeddings", post(embed::one::<I>))
        .route("/api/pull", any(not_here))
        .route("/api/push", any(not_here))
        .route("/api/create", any(not_here))
        .route("/api/copy", any(not_here))
        .route("/api/delete", any(not_here))
        .route("/api/blobs/{*digest}", any(not_here))
        .route("/api/{*rest}", any(unknown))
        .method_not_allowed_fallback(wrong_method)
}

/// Whether this is one of Ollama's own clients, which look at `/` to see whether their server runs.
pub(crate) fn is_client(headers: &HeaderMap) -> bool {
    headers.get(header::USER_AGENT).is_some_and(|v| v.as_bytes().starts_with(b"ollama"))
}

/// What those clients expect at `/`.
pub(crate) const RUNNING: &str = "Ollama is running";

/// A refusal in Ollama's words.
pub(crate) struct Failure(Refusal);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure(refusal)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = error(&self.0);
        dialect::reworded(self.0, &body)
    }
}

fn error(refusal: &Refusal) -> Value {
    json!({"error": refusal.to_string()})
}

async fn unknown(uri: Uri) -> Failure {
    Failure(Refusal::UnknownRoute { path: uri.path().to_owned() })
}

async fn wrong_method(method: Method) -> Failure {
    Failure(Refusal::Method { method: method.to_string() })
}

async fn not_here() -> Response {
    let message =
        "models are not managed over HTTP here; use assay import, and restart the server with the model";
    let mut response = (StatusCode::NOT_IMPLEMENTED, Json(json!({"error": message}))).into_response();
    response.extensions_mut().insert(Refused("not_implemented"));
    response
}

/// The model of that name, with or without the tag that Ollama adds.
pub(crate) fn find_tagged<I: Inference>(inference: &I, name: &str) -> Result<ModelCard, Refusal> {
    find(inference, name).or_else(|refusal| {
        let plain = name.strip_suffix(":latest").ok_or(refusal)?;
        find(inference, plain)
    })
}

async fn chat<I: Inference>(State(s): State<Shared<I>>, request: Request) -> Result<Response, Failure> {
    Ok(answer(&s, Shape::Chat, request).await?)
}

async fn complete<I: Inference>(State(s): State<Shared<I>>, request: Request) -> Result<Response, Failure> {
    Ok(answer(&s, Shape::Generate, request).await?)
}

async fn answer<I: Inference>(s: &Shared<I>, shape: Shape, request: Request) -> Result<Response, Refusal> {
    let received = dialect::receive(s, request).await?;
    let body = dialect::object(&received.body)?;
    let parsed = parse::parse(shape, &body)?;
    let card = find_tagged(s.inference.as_ref(), &parsed.model)?;
    parsed.fits(&card)?;
    let Some(request) = parsed.request(&card)? else {
        // Nothing is asked: Ollama's clients load a model so, and ours are loaded.
        let line = Frame::new(shape, parsed.model, received.started, received.inline).loaded();
        return Ok(Json(line).into_response());
    };
    let (generation, meter) = dialect::generate(s, &received, &card, request).await?;
    let promised = dialect::Promised::by(&generation);
    let frame = Frame::new(shape, parsed.model, received.started, received.inline);
    if parsed.stream {
        let lines = Lines { frame, call: None, first: None };
        let body = dialect::stream(generation, lines, meter, s.options.keep_alive).await?;
        return Ok(dialect::streamed(body, "application/x-ndjson", promised));
    }
    let whole = dialect::collect(generation, meter).await?;
    let (mut text, mut calls) = (String::new(), Vec::new());
    for part in &whole.parts {
        match part {
            Part::Text(more) => text.push_str(more),
            Part::Call { id, name, arguments } => calls.extend(call_json(calls.len(), id, name, arguments)),
        }
    }
    let end = End {
        stop: whole.stop,
        usage: whole.usage,
        cost: whole.record.generation.as_ref(),
        first: whole.first,
    };
    let mut line = frame.last(&text, calls, &end);
    if frame.inline {
        line["assay_receipt"] = json!(*whole.record);
    }
    Ok(promised.on(Json(line).into_response()))
}

/// A call as Ollama shows it, or nothing if it was cut off: nobody should execute half of one.
fn call_json(index: usize, id: &str, name: &str, arguments: &str) -> Option<Value> {
    let arguments = dialect::whole_object(arguments)?;
    Some(json!({"id": id, "function": {"index": index, "name": name, "arguments": arguments}}))
}

/// What every part of an answer repeats.
struct Frame {
    shape: Shape,
    /// The model as it was asked for.
    model: String,
    started: Instant,
    inline: bool,
}

/// How an answer ended.
struct End<'a> {
    stop: StopReason,
    usage: Usage,
    cost: Option<&'a GenerationCost>,
    first: Instant,
}

impl Frame {
    fn new(shape: Shape, model: String, started: Instant, inline: bool) -> Frame {
        Frame { shape, model, started, inline }
    }

    fn piece(&self, text: &str, calls: Vec<Value>) -> Value {
        let mut line = json!({"model": self.model, "created_at": cards::now()});
        match self.shape {
            Shape::Chat => {
                line["message"] = json!({"role": "assistant", "content": text});
                if !calls.is_empty() {
                    line["message"]["tool_calls"] = Value::Array(calls);
                }
            }
            Shape::Generate => line["response"] = json!(text),
        }
        line["done"] = json!(false);
        line
    }

    fn loaded(&self) -> Value {
        let mut line = self.piece("", vec![]);
        line["done"] = json!(true);
        line["done_reason"] = json!("load");
        line
    }

    fn last(&self, text: &str, calls: Vec<Value>, end: &End<'_>) -> Value {
        let mut line = self.piece(text, calls);
        line["done"] = json!(true);
        line["done_reason"] = json!(end.stop.finish_reason());
        let ns = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let (prefill, decode) = match end.cost {
            Some(cost) => (cost.prefill_ns, cost.decode_ns),
            None => (ns(end.first.duration_since(self.started)), ns(end.first.elapsed())),
        };
        line["total_duration"] = json!(ns(self.started.elapsed()));
        line["load_duration"] = json!(0);
        line["prompt_eval_count"] = json!(end.usage.prompt_tokens);
        line["prompt_eval_duration"] = json!(prefill);
        line["eval_count"] = json!(end.usage.completion_tokens);
        line["eval_duration"] = json!(decode);
        line
    }
}

/// A call whose arguments are still coming.
struct Open {
    index: usize,
    id: String,
    name: String,
    arguments: String,
}

/// The lines of one stream. A call is one line: Ollama's clients do not put fragments together.
struct Lines {
    frame: Frame,
    call: Option<Open>,
    first: Option<Instant>,
}

impl Lines {
    fn close(&mut self, out: &mut VecDeque<String>) {
        let Some(open) = self.call.take() else { return };
        if let Some(call) = call_json(open.index, &open.id, &open.name, &open.arguments) {
            out.push_back(line(&self.frame.piece("", vec![call])));
        }
    }
}

impl Dialect for Lines {
    fn open(&mut self, _: &mut VecDeque<String>) {}

    fn event(&mut self, event: Event, out: &mut VecDeque<String>) -> bool {
        let first = *self.first.get_or_insert_with(Instant::now);
        match event {
            Event::Text { text, .. } => {
                if !text.is_empty() {
                    self.close(out);
                    out.push_back(line(&self.frame.piece(&text, vec![])));
                }
                false
            }
            Event::Call { index, id, name } => {
                self.close(out);
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                self.call = Some(Open { index, id, name, arguments: String::new() });
                false
            }
            Event::Arguments { json, .. } => {
                if let Some(open) = &mut self.call {
                    open.arguments.push_str(&json);
                }
                false
            }
            Event::Failed(refusal) => {
                out.push_back(line(&error(&refusal)));
                true
            }
            Event::End { stop, usage, record, .. } => {
                self.close(out);
                let end = End { stop, usage, cost: record.generation.as_ref(), first };
                let mut last = self.frame.last("", vec![], &end);
                if self.frame.inline {
                    last["assay_receipt"] = json!(*Arc::clone(&record));
                }
                out.push_back(line(&last));
                true
            }
        }
    }

    fn keep_alive(&self) -> String {
        // Every line must be an object; one that says nothing is understood by all clients.
        line(&self.frame.piece("", vec![]))
    }
}

fn line(v: &Value) -> String {
    format!("{v}\n")
}
