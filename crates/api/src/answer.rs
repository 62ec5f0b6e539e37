//! From events to OpenAI's answers: one JSON object, or a stream of chunks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_core::transcript::Usage;
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::metrics::{Finish, Metrics};
use crate::parameters::Route;
use crate::{Event, Generation, Refusal};

/// What every part of an answer repeats.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) route: Route,
    pub(crate) id: String,
    /// The model as it was asked for.
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    pub(crate) created: u64,
    pub(crate) include_usage: bool,
    /// Whether the record goes into the answer.
    pub(crate) inline: bool,
}

impl Frame {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model,
               "system_fingerprint": self.fingerprint, "choices": choices})
    }

    fn whole(&self, text: &str, finish: &str) -> Value {
        match self.route {
            Route::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                let choice =
                    json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}]);
                self.object("chat.completion", choice)
            }
            Route::Completions => {
                let choice = json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]);
                self.object("text_completion", choice)
            }
        }
    }

    fn chunk(&self, choices: Value) -> Value {
        let kind = if self.route == Route::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.object(kind, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn first(&self) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]);
        (self.route == Route::Chat).then(|| self.chunk(choice))
    }

    fn piece(&self, text: &str) -> Value {
        match self.route {
            Route::Chat => {
                let delta = json!({"content": text});
                self.chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]))
            }
            Route::Completions => {
                self.chunk(json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": null}]))
            }
        }
    }

    fn last(&self, finish: &str) -> Value {
        match self.route {
            Route::Chat => {
                self.chunk(json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": finish}]))
            }
            Route::Completions => {
                self.chunk(json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": finish}]))
            }
        }
    }
}

fn usage_json(usage: Usage) -> Value {
    let total = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
    json!({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "total_tokens": total})
}

/// Measures one answer; counts it as aborted if it is dropped before its end.
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    model: String,
    started: Instant,
    last: Option<Instant>,
    finished: bool,
}

impl Meter {
    pub(crate) fn new(metrics: Arc<Metrics>, model: String, started: Instant) -> Meter {
        Meter { metrics, model, started, last: None, finished: false }
    }

    fn see(&mut self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Delta(_) => {
                match self.last {
                    None => self.metrics.first_token(&self.model, now - self.started),
                    Some(last) => self.metrics.next_token(&self.model, now - last),
                }
                self.last = Some(now);
            }
            Event::End { stop, usage, .. } => {
                let finish = if stop.finish_reason() == "stop" { Finish::Stop } else { Finish::Length };
                self.finish(finish);
                self.metrics.tokens(&self.model, *usage);
            }
            Event::Failed(_) => self.finish(Finish::Error),
        }
    }

    fn finish(&mut self, finish: Finish) {
        self.finished = true;
        self.metrics.finished(&self.model, finish, self.started.elapsed());
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.finished {
            self.finish(Finish::Abort);
        }
    }
}

fn stopped() -> Event {
    Event::Failed(Refusal::Internal { message: "the answer broke off".into() })
}

/// Collects the whole answer.
pub(crate) async fn collect(
    mut generation: Generation,
    frame: &Frame,
    mut meter: Meter,
) -> Result<Value, Refusal> {
    let mut text = String::new();
    loop {
        let event = generation.events.recv().await.unwrap_or_else(stopped);
        meter.see(&event);
        match event {
            Event::Delta(more) => text.push_str(&more),
            Event::Failed(refusal) => return Err(refusal),
            Event::End { stop, usage, record } => {
                let mut whole = frame.whole(&text, stop.finish_reason());
                whole["usage"] = usage_json(usage);
                if frame.inline {
                    whole["assay_receipt"] = json!(*record);
                }
                return Ok(whole);
            }
        }
    }
}

/// A stream of server-sent events. The first event is awaited before the response begins, but not for longer than
/// `keep_alive`: a failure before the first byte has its own status.
pub(crate) async fn stream(
    mut generation: Generation,
    frame: Frame,
    mut meter: Meter,
    keep_alive: Duration,
) -> Result<impl Stream<Item = Result<String, std::convert::Infallible>> + use<>, Refusal> {
    let first = timeout(keep_alive, generation.events.recv()).await.ok().map(|e| e.unwrap_or_else(stopped));
    if let Some(Event::Failed(refusal)) = first {
        meter.finish(Finish::Error);
        return Err(refusal);
    }
    let mut ready = VecDeque::new();
    ready.extend(frame.first().map(|c| data(&c)));
    let mut done = false;
    if let Some(event) = first {
        meter.see(&event);
        done = render(&frame, event, &mut ready);
    }
    let state = (generation, frame, meter, ready, done);
    Ok(futures_util::stream::unfold(
        state,
        move |(mut generation, frame, mut meter, mut ready, mut done)| async move {
            loop {
                if let Some(text) = ready.pop_front() {
                    return Some((Ok(text), (generation, frame, meter, ready, done)));
                }
                if done {
                    return None;
                }
                match timeout(keep_alive, generation.events.recv()).await {
                    Err(_) => ready.push_back(": keep-alive\n\n".to_owned()),
                    Ok(event) => {
                        let event = event.unwrap_or_else(stopped);
                        meter.see(&event);
                        done = render(&frame, event, &mut ready);
                    }
                }
            }
        },
    ))
}

fn data(v: &Value) -> String {
    format!("data: {v}\n\n")
}

/// Appends what an event looks like in the stream; true if it is the last one.
fn render(frame: &Frame, event: Event, out: &mut VecDeque<String>) -> bool {
    match event {
        Event::Delta(text) => {
            out.push_back(data(&frame.piece(&text)));
            false
        }
        Event::Failed(refusal) => {
            out.push_back(data(&refusal.to_json()));
            true
        }
        Event::End { stop, usage, record } => {
            let mut last = frame.last(stop.finish_reason());
            if frame.inline {
                last["assay_receipt"] = json!(*record);
            }
            out.push_back(data(&last));
            if frame.include_usage {
                let mut chunk = frame.chunk(json!([]));
                chunk["usage"] = usage_json(usage);
                out.push_back(data(&chunk));
            }
            out.push_back("data: [DONE]\n\n".to_owned());
            true
        }
    }
}
