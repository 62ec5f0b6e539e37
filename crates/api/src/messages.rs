//! Anthropic's `POST /v1/messages` and `POST /v1/messages/count_tokens`. `docs/compatibility.md` says what is honoured,
//! ignored and refused; [`parse`] does it, this file answers.

mod parse;

use std::collections::VecDeque;

use assay_core::transcript::{StopReason, Usage};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::dialect::{self, Dialect, Part, Whole};
use crate::server::{Shared, find};
use crate::{Event, Inference, Refusal};

const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("request-id");

/// The routes of this surface.
pub(crate) fn routes<I: Inference>() -> Router<Shared<I>> {
    Router::new()
        .route("/v1/messages", post(create::<I>))
        .route("/v1/messages/count_tokens", post(count::<I>))
        .route("/v1/messages/{*rest}", any(unknown))
        .method_not_allowed_fallback(wrong_method)
}

async fn create<I: Inference>(State(s): State<Shared<I>>, request: Request) -> Response {
    let id = dialect::request_id(&request);
    finish(answer(&s, request).await, &id)
}

async fn count<I: Inference>(State(s): State<Shared<I>>, request: Request) -> Response {
    let id = dialect::request_id(&request);
    finish(count_tokens(&s, request).await, &id)
}

async fn unknown(uri: Uri, request: Request) -> Response {
    finish(Err(Refusal::UnknownRoute { path: uri.path().to_owned() }), &dialect::request_id(&request))
}

async fn wrong_method(method: Method, request: Request) -> Response {
    finish(Err(Refusal::Method { method: method.to_string() }), &dialect::request_id(&request))
}

fn finish(outcome: Result<Response, Refusal>, request_id: &str) -> Response {
    let mut response = outcome.unwrap_or_else(|refusal| {
        let body = error(&refusal, request_id);
        dialect::reworded(refusal, &body)
    });
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    response
}

/// Anthropic's error object.
fn error(refusal: &Refusal, request_id: &str) -> Value {
    let kind = match refusal.status() {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": refusal.to_string()}, "request_id": request_id})
}

async fn answer<I: Inference>(s: &Shared<I>, request: Request) -> Result<Response, Refusal> {
    let received = dialect::receive(s, request).await?;
    let body = dialect::object(&received.body)?;
    let parsed = parse::message(&body)?;
    let card = find(s.inference.as_ref(), &parsed.model)?;
    let (generation, meter) = dialect::generate(s, &received, &card, parsed.request(card.root)).await?;
    let (receipt, promised) = (generation.receipt_id, dialect::Promised::by(&generation));
    let frame = Frame {
        id: format!("msg_{}", receipt.to_string().get(2..34).unwrap_or_default()),
        model: parsed.model,
        stops: parsed.stop,
        request_id: received.request_id,
        inline: received.inline,
    };
    if parsed.stream {
        let prompt_tokens = generation.prompt_tokens;
        let events = Events { frame, prompt_tokens, open: None, blocks: 0, pinged: false, called: false };
        let body = dialect::stream(generation, events, meter, s.options.keep_alive).await?;
        return Ok(dialect::streamed(body, "text/event-stream; charset=utf-8", promised));
    }
    let whole = dialect::collect(generation, meter).await?;
    Ok(promised.on(Json(frame.whole(whole)).into_response()))
}

async fn count_tokens<I: Inference>(s: &Shared<I>, request: Request) -> Result<Response, Refusal> {
    let received = dialect::receive(s, request).await?;
    let body = dialect::object(&received.body)?;
    let (model, prompt) = parse::countable(&body)?;
    let card = find(s.inference.as_ref(), &model)?;
    let tokens = s.inference.count_tokens(card.root, prompt).await?;
    Ok(Json(json!({"input_tokens": tokens})).into_response())
}

/// What every part of an answer repeats.
struct Frame {
    id: String,
    /// The model as it was asked for.
    model: String,
    stops: Vec<String>,
    request_id: String,
    inline: bool,
}

impl Frame {
    fn message(&self, content: Value, reason: (Value, Value), usage: Value) -> Value {
        let (stop_reason, stop_sequence) = reason;
        json!({"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
               "stop_reason": stop_reason, "stop_sequence": stop_sequence, "usage": usage})
    }

    /// Why an answer ended, and the stop sequence it ended at.
    fn reason(&self, stop: StopReason, called: bool) -> (Value, Value) {
        match stop {
            StopReason::Length | StopReason::Window | StopReason::Cancelled => {
                (json!("max_tokens"), Value::Null)
            }
            _ if called => (json!("tool_use"), Value::Null),
            StopReason::EndToken => (json!("end_turn"), Value::Null),
            StopReason::StopString(i) => (json!("stop_sequence"), json!(self.stops.get(usize::from(i)))),
        }
    }

    fn whole(&self, whole: Whole) -> Value {
        let mut called = false;
        let mut content = Vec::new();
        for part in whole.parts {
            match part {
                Part::Text(text) => content.push(json!({"type": "text", "text": text, "citations": null})),
                // A call that was cut off is left out: nobody should execute half of one.
                Part::Call { id, name, arguments } => {
                    if let Some(input) = dialect::whole_object(&arguments) {
                        called = true;
                        content.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
                    }
                }
            }
        }
        let reason = self.reason(whole.stop, called);
        let mut message = self.message(json!(content), reason, usage_json(whole.usage));
        if self.inline {
            message["assay_receipt"] = json!(*whole.record);
        }
        message
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({"input_tokens": usage.prompt_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
           "output_tokens": usage.completion_tokens, "service_tier": "standard"})
}

/// A block of a stream that has begun and not ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Call,
}

/// The events of one stream.
struct Events {
    frame: Frame,
    prompt_tokens: u32,
    open: Option<Block>,
    /// Blocks begun.
    blocks: u32,
    pinged: bool,
    called: bool,
}

impl Events {
    fn begin(&mut self, block: Block, content: &Value, out: &mut VecDeque<String>) {
        self.end(out);
        let index = self.blocks;
        self.blocks = self.blocks.saturating_add(1);
        self.open = Some(block);
        out.push_back(event(
            &json!({"type": "content_block_start", "index": index, "content_block": content}),
        ));
        if !self.pinged {
            self.pinged = true;
            out.push_back(self.keep_alive());
        }
    }

    fn delta(&self, delta: &Value, out: &mut VecDeque<String>) {
        let index = self.blocks.saturating_sub(1);
        out.push_back(event(&json!({"type": "content_block_delta", "index": index, "delta": delta})));
    }

    fn end(&mut self, out: &mut VecDeque<String>) {
        if self.open.take().is_some() {
            let index = self.blocks.saturating_sub(1);
            out.push_back(event(&json!({"type": "content_block_stop", "index": index})));
        }
    }
}

impl Dialect for Events {
    fn open(&mut self, out: &mut VecDeque<String>) {
        let usage = usage_json(Usage { prompt_tokens: self.prompt_tokens, completion_tokens: 0 });
        let message = self.frame.message(json!([]), (Value::Null, Value::Null), usage);
        out.push_back(event(&json!({"type": "message_start", "message": message})));
    }

    fn event(&mut self, step: Event, out: &mut VecDeque<String>) -> bool {
        match step {
            Event::Text { text, .. } => {
                if !text.is_empty() {
                    if self.open != Some(Block::Text) {
                        self.begin(Block::Text, &json!({"type": "text", "text": "", "citations": null}), out);
                    }
                    self.delta(&json!({"type": "text_delta", "text": text}), out);
                }
                false
            }
            Event::Call { id, name, .. } => {
                self.called = true;
                self.begin(
                    Block::Call,
                    &json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                    out,
                );
                false
            }
            Event::Arguments { json: more, .. } => {
                if self.open == Some(Block::Call) {
                    self.delta(&json!({"type": "input_json_delta", "partial_json": more}), out);
                }
                false
            }
            Event::Failed(refusal) => {
                out.push_back(event(&error(&refusal, &self.frame.request_id)));
                true
            }
            Event::End { stop, usage, record, .. } => {
                self.end(out);
                let (stop_reason, stop_sequence) = self.frame.reason(stop, self.called);
                let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
                let mut last = json!({"type": "message_delta", "delta": delta, "usage": usage_json(usage)});
                if self.frame.inline {
                    last["assay_receipt"] = json!(*record);
                }
                out.push_back(event(&last));
                out.push_back(event(&json!({"type": "message_stop"})));
                true
            }
        }
    }

    fn keep_alive(&self) -> String {
        event(&json!({"type": "ping"}))
    }
}

/// A server-sent event under the name that its data has as `type`.
fn event(data: &Value) -> String {
    let name = data["type"].as_str().unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}
