//! From events to answers: what all routes share. A route's own module says how an answer looks, whole and in a stream.

pub(crate) mod chat;
pub(crate) mod completions;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use assay_core::answer::AnswerRecord;
use assay_core::id::ReceiptId;
use assay_core::request::ToolCall;
use assay_core::transcript::{StopReason, Usage};
use futures_util::Stream;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::metrics::{Finish, Metrics};
use crate::traces::{self, Span};
use crate::{Event, Generation, Logprob, Refusal, Source};

/// Parts of a stream that are ready to be sent.
pub(crate) type Ready = VecDeque<String>;

/// What every part of an answer of OpenAI's older routes repeats.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) id: String,
    /// The model as it was asked for.
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    pub(crate) created: u64,
    pub(crate) include_usage: bool,
    /// Whether the records go into the answer.
    pub(crate) inline: bool,
    /// Choices of each prompt.
    pub(crate) n: u32,
}

impl Frame {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model,
               "system_fingerprint": self.fingerprint, "choices": choices})
    }

    fn chunk(&self, kind: &str, choices: Value) -> Value {
        let mut chunk = self.object(kind, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// A whole answer of these choices.
    fn whole(&self, kind: &str, choices: Vec<Value>, answers: &[Answer]) -> Value {
        let mut whole = self.object(kind, Value::Array(choices));
        whole["usage"] = usage_json(self.n, answers.iter().map(|a| &a.end));
        if self.inline {
            inline(&mut whole, answers.iter().map(|a| &a.end));
        }
        whole
    }
}

/// How an answer ended.
#[derive(Clone)]
pub(crate) struct End {
    pub(crate) stop: StopReason,
    pub(crate) usage: Usage,
    pub(crate) cached_tokens: u32,
    pub(crate) record: Arc<AnswerRecord>,
}

/// A complete answer.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<Logprob>,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) end: End,
}

/// As OpenAI's `finish_reason`: calls are why an answer ended, unless it was cut off.
pub(crate) fn finish_reason(stop: StopReason, has_calls: bool) -> &'static str {
    match stop.finish_reason() {
        "stop" if has_calls => "tool_calls",
        other => other,
    }
}

/// The usage of `n` choices for each prompt: a prompt is counted once, and of its choices the first says how much of it was executed before.
fn usage_json<'a>(n: u32, ends: impl Iterator<Item = &'a End>) -> Value {
    let (mut prompt, mut cached, mut completion) = (0u64, 0u64, 0u64);
    for (i, end) in (0u32..).zip(ends) {
        if i.checked_rem(n).is_none_or(|choice| choice == 0) {
            prompt = prompt.saturating_add(end.usage.prompt_tokens.into());
            cached = cached.saturating_add(end.cached_tokens.into());
        }
        completion = completion.saturating_add(end.usage.completion_tokens.into());
    }
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt.saturating_add(completion),
           "prompt_tokens_details": {"cached_tokens": cached}})
}

/// Puts the records into an answer: one as it is, several in order of their indices.
pub(crate) fn inline<'a>(into: &mut Value, ends: impl Iterator<Item = &'a End>) {
    let records: Vec<&AnswerRecord> = ends.map(|e| &*e.record).collect();
    match records.as_slice() {
        [one] => into["assay_receipt"] = json!(one),
        all => into["assay_receipts"] = json!(all),
    }
}

/// A logarithm of a probability as JSON: a multiple of 2^-16, which is exact.
pub(crate) fn logprob_json(units: i32) -> Value {
    json!(f64::from(units) / 65_536.0)
}

/// Measures one answer; counts it as aborted if it is dropped before its end.
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    model: String,
    started: Instant,
    last: Option<Instant>,
    finished: bool,
    /// Of the request: it is open as long as an answer to it is told.
    span: Span,
}

impl Meter {
    pub(crate) fn new(metrics: Arc<Metrics>, model: String, started: Instant) -> Meter {
        Meter { metrics, model, started, last: None, finished: false, span: traces::current() }
    }

    pub(crate) fn see(&mut self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Text { .. } | Event::Call { .. } | Event::Arguments { .. } => {
                match self.last {
                    None => self.metrics.first_token(&self.model, now - self.started),
                    Some(last) => self.metrics.next_token(&self.model, now - last),
                }
                self.last = Some(now);
            }
            Event::End { stop, usage, .. } => {
                let finish = match stop {
                    StopReason::EndToken | StopReason::StopString(_) => Finish::Stop,
                    StopReason::Length | StopReason::Window => Finish::Length,
                    StopReason::Cancelled => Finish::Abort,
                };
                self.finish(finish);
                self.tokens(*usage);
            }
            Event::Failed(refusal) => {
                self.span.fail(refusal.code());
                self.finish(Finish::Error);
            }
        }
    }

    pub(crate) fn tokens(&self, usage: Usage) {
        self.metrics.tokens(&self.model, usage);
        self.span.used(usage.prompt_tokens, usage.completion_tokens);
    }

    /// Nothing was measured: the request was refused.
    pub(crate) fn discard(&mut self) {
        self.finished = true;
    }

    pub(crate) fn finish(&mut self, finish: Finish) {
        self.finished = true;
        self.metrics.finished(&self.model, finish, self.started.elapsed());
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.finished {
            self.span.fail("client_left");
            self.finish(Finish::Abort);
        }
    }
}

/// What stands for the end of an answer that has none.
pub(crate) fn stopped() -> Event {
    Event::Failed(Refusal::Internal { message: "the answer broke off".into() })
}

/// Answers under way, each with an index. They are dropped when their client leaves, which pays for what there is of them: they are asked to stop.
/// Before the client hears of them, and where one of them has failed, they are taken back.
#[derive(Default)]
pub(crate) struct Choices {
    /// Whether who leaves now is answerable for them.
    heard: bool,
    running: Vec<Running>,
    /// Where to look first, so that no choice starves another.
    next: usize,
}

struct Running {
    /// None when it has ended.
    generation: Option<Generation>,
    meter: Meter,
}

impl Choices {
    /// Adds the answer of the next index.
    pub(crate) fn push(&mut self, generation: Generation, meter: Meter) {
        self.running.push(Running { generation: Some(generation), meter });
    }

    /// All of them have begun: from now on the client hears them.
    pub(crate) fn begun(mut self) -> Choices {
        self.heard = true;
        self
    }

    /// Ids of the receipts that complete answers will have, in order of index.
    pub(crate) fn receipts(&self) -> Vec<ReceiptId> {
        self.running.iter().filter_map(|r| r.generation.as_ref().map(|g| g.receipt_id)).collect()
    }

    /// Who answers, in order of index.
    pub(crate) fn sources(&self) -> Vec<Source> {
        self.running.iter().filter_map(|r| r.generation.as_ref()?.source).collect()
    }

    /// Whether there is none yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    fn len(&self) -> usize {
        self.running.len()
    }

    /// The next event and the index of its choice; none when all have ended. Loses nothing if it is dropped.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        poll_fn(|cx| {
            let (count, mut all_ended) = (self.running.len(), true);
            for offset in 0..count {
                let index = (self.next + offset) % count;
                let Some(running) = self.running.get_mut(index) else { continue };
                let Some(generation) = &mut running.generation else { continue };
                all_ended = false;
                let Poll::Ready(event) = generation.events.poll_recv(cx) else { continue };
                let event = event.unwrap_or_else(stopped);
                running.meter.see(&event);
                if matches!(event, Event::End { .. } | Event::Failed(_)) {
                    running.generation = None;
                }
                // The others are not told to their ends.
                self.heard &= !matches!(event, Event::Failed(_));
                self.next = index + 1;
                return Poll::Ready(Some((index, event)));
            }
            if all_ended { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

impl Drop for Choices {
    fn drop(&mut self) {
        let running = self.running.iter().filter_map(|running| running.generation.as_ref());
        running.filter(|_| self.heard).for_each(|generation| generation.stop.ask());
    }
}

#[derive(Default)]
struct Collected {
    text: String,
    logprobs: Vec<Logprob>,
    calls: Vec<ToolCall>,
    end: Option<End>,
}

/// Collects all answers, in order of index.
pub(crate) async fn collect(mut choices: Choices) -> Result<Vec<Answer>, Refusal> {
    let mut all: Vec<Collected> = Vec::new();
    all.resize_with(choices.len(), Collected::default);
    while let Some((index, event)) = choices.next().await {
        let Some(c) = all.get_mut(index) else { continue };
        match event {
            Event::Text { text, logprobs } => {
                c.text.push_str(&text);
                c.logprobs.extend(logprobs);
            }
            Event::Call { id, name, .. } => c.calls.push(ToolCall { id, name, arguments: String::new() }),
            Event::Arguments { json, .. } => {
                if let Some(call) = c.calls.last_mut() {
                    call.arguments.push_str(&json);
                }
            }
            Event::Failed(refusal) => return Err(refusal),
            Event::End { stop, usage, cached_tokens, record } => {
                c.end = Some(End { stop, usage, cached_tokens, record });
            }
        }
    }
    let broke_off = || Refusal::Internal { message: "the answer broke off".into() };
    all.into_iter()
        .map(|c| {
            let end = c.end.ok_or_else(broke_off)?;
            Ok(Answer { text: c.text, logprobs: c.logprobs, calls: c.calls, end })
        })
        .collect()
}

/// How a stream looks.
pub(crate) trait Render: Send + 'static {
    /// What comes before any event.
    fn begin(&mut self, out: &mut Ready);

    /// What an event of a choice looks like. [`Event::Failed`] goes to [`Render::failed`] instead.
    fn event(&mut self, choice: usize, event: Event, out: &mut Ready);

    /// What comes when every choice has ended.
    fn end(&mut self, out: &mut Ready);

    /// What comes when a choice has failed; nothing follows.
    fn failed(&mut self, refusal: &Refusal, out: &mut Ready);
}

/// A stream of server-sent events. The first event is awaited before the response begins, but not for longer than
/// `keep_alive`: a failure before the first byte has its own status.
pub(crate) async fn stream<R: Render>(
    mut choices: Choices,
    mut render: R,
    keep_alive: Duration,
) -> Result<impl Stream<Item = Result<String, Infallible>> + use<R>, Refusal> {
    let first = timeout(keep_alive, choices.next()).await.ok();
    if let Some(Some((_, Event::Failed(refusal)))) = first {
        return Err(refusal);
    }
    let mut ready = Ready::new();
    render.begin(&mut ready);
    let mut done = false;
    if let Some(step) = first {
        done = take(&mut render, step, &mut ready);
    }
    let state = (choices, render, ready, done);
    Ok(futures_util::stream::unfold(
        state,
        move |(mut choices, mut render, mut ready, mut done)| async move {
            loop {
                if let Some(text) = ready.pop_front() {
                    return Some((Ok(text), (choices, render, ready, done)));
                }
                if done {
                    return None;
                }
                match timeout(keep_alive, choices.next()).await {
                    Err(_) => ready.push_back(": keep-alive\n\n".to_owned()),
                    Ok(step) => done = take(&mut render, step, &mut ready),
                }
            }
        },
    ))
}

/// Appends what a step looks like in the stream; true if it is the last one.
fn take(render: &mut impl Render, step: Option<(usize, Event)>, out: &mut Ready) -> bool {
    match step {
        None => {
            render.end(out);
            true
        }
        Some((_, Event::Failed(refusal))) => {
            render.failed(&refusal, out);
            true
        }
        Some((choice, event)) => {
            render.event(choice, event, out);
            false
        }
    }
}

fn data(v: &Value) -> String {
    format!("data: {v}\n\n")
}

/// What chat and completions streams share: how each choice ended, and what follows the last.
struct Tail {
    frame: Frame,
    kind: &'static str,
    ends: Vec<Option<End>>,
}

impl Tail {
    fn new(frame: Frame, kind: &'static str, choices: usize) -> Tail {
        Tail { frame, kind, ends: vec![None; choices] }
    }

    /// A chunk of one choice.
    fn chunk(&self, choice: Value) -> Value {
        self.frame.chunk(self.kind, json!([choice]))
    }

    /// The last chunk of a choice. That of the choice that ends last carries the records.
    fn last(&mut self, index: usize, end: End, choice: Value) -> String {
        if let Some(slot) = self.ends.get_mut(index) {
            *slot = Some(end);
        }
        let mut chunk = self.chunk(choice);
        if self.frame.inline && self.ends.iter().all(Option::is_some) {
            inline(&mut chunk, self.ends.iter().flatten());
        }
        data(&chunk)
    }

    fn done(&self, out: &mut Ready) {
        if self.frame.include_usage {
            let mut chunk = self.frame.chunk(self.kind, json!([]));
            chunk["usage"] = usage_json(self.frame.n, self.ends.iter().flatten());
            out.push_back(data(&chunk));
        }
        out.push_back("data: [DONE]\n\n".to_owned());
    }
}

/// A map of tokens to logarithms of their probabilities; of equal texts the first counts.
fn chance_map<'a>(chances: impl Iterator<Item = &'a crate::TokenChance>) -> Value {
    let mut map = Map::new();
    for chance in chances {
        map.entry(token_text(&chance.bytes)).or_insert_with(|| logprob_json(chance.logprob));
    }
    Value::Object(map)
}

/// A token as text; what is no whole character is shown as a replacement character.
fn token_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
