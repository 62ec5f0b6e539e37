//! Traces by OpenTelemetry, with its conventions for generative AI: what a request did, where, and how long each part of it took.
//!
//! Off until a tracer is [`install`]ed: then a span is nothing, and whoever asks for one reads one word. A span ends when its last clone is gone, so
//! that whoever tells an answer keeps the request's span open by holding it. It travels with a task ([`Span::within`]), and between processes as
//! W3C's `traceparent`; `tracestate` is not passed on.
//!
//! Invariant: attributes are names, numbers, addresses and codes. Prompts, answers, keys and vouchers are never among them: nothing here takes a
//! request's text.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use assay_core::id::ReceiptId;
use assay_core::request::Prompt;
use axum::http::{HeaderMap, Method, Uri};
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue, Value};
use tokio::task::JoinHandle;

use crate::relay::{ORDERS, Work};

/// The header by which a span is continued elsewhere: <https://www.w3.org/TR/trace-context/>.
pub const TRACEPARENT: &str = "traceparent";
/// Who answers, in the conventions' words.
const PROVIDER: &str = "assay";

pub use opentelemetry::trace::SpanKind;

static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

tokio::task_local! {
    static CURRENT: Span;
}

/// Switches traces on, for as long as the process lives. The first tracer stays.
pub fn install(tracer: BoxedTracer) {
    let _ = TRACER.set(tracer);
}

/// Something that takes time, or nothing while traces are off. Clones are the same span; it ends with the last one.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<Open>>);

struct Open {
    context: Context,
    /// Tokens of all answers under it.
    input: AtomicU64,
    output: AtomicU64,
    failed: AtomicBool,
    named: AtomicBool,
    answered: AtomicBool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let span = self.context.span();
        let usage =
            [("gen_ai.usage.input_tokens", &self.input), ("gen_ai.usage.output_tokens", &self.output)];
        for (key, tokens) in usage {
            let tokens = tokens.load(Relaxed);
            if tokens > 0 {
                span.set_attribute(KeyValue::new(key, whole(tokens)));
            }
        }
        span.end();
    }
}

/// A number as an attribute's.
fn whole(value: u64) -> Value {
    Value::I64(i64::try_from(value).unwrap_or(i64::MAX))
}

/// The span of the task that asks. Nothing outside of [`Span::within`].
pub fn current() -> Span {
    match TRACER.get() {
        None => Span::default(),
        Some(_) => CURRENT.try_with(Clone::clone).unwrap_or_default(),
    }
}

/// A span that nobody is above.
pub fn root(kind: SpanKind, name: impl Into<Cow<'static, str>>) -> Span {
    start(kind, name, &Context::new())
}

/// The span of an HTTP request that asks for work, below the client's own if it names one; nothing for other routes.
pub(crate) fn request(method: &Method, path: &str, headers: &HeaderMap) -> Span {
    if TRACER.get().is_none() || *method != Method::POST {
        return Span::default();
    }
    // Names of routes, so that a path that somebody made up is no name of a span.
    let Some((route, operation)) = ROUTES.iter().find(|(route, _)| *route == path) else {
        return Span::default();
    };
    let parent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(parent);
    let context = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
    let span = start(SpanKind::Server, format!("POST {route}"), &context);
    span.set("http.request.method", "POST");
    span.set("http.route", *route);
    if let Some(operation) = operation {
        span.set("gen_ai.operation.name", *operation);
        span.set("gen_ai.provider.name", PROVIDER);
    }
    span
}

/// Routes that ask for work, and the operation that they ask for.
const ROUTES: [(&str, Option<&str>); 9] = [
    ("/v1/chat/completions", Some("chat")),
    ("/v1/responses", Some("chat")),
    ("/v1/messages", Some("chat")),
    ("/api/chat", Some("chat")),
    ("/v1/completions", Some("text_completion")),
    ("/api/generate", Some("text_completion")),
    ("/v1/embeddings", Some("embeddings")),
    ("/api/embed", Some("embeddings")),
    (ORDERS, None),
];

/// What a work is called.
pub fn operation(work: &Work) -> &'static str {
    match work {
        Work::Generate { request, .. } => asked(&request.prompt),
        Work::Embed { .. } => "embeddings",
        Work::CountTokens { .. } => "count_tokens",
    }
}

/// What answering a prompt is called.
pub fn asked(prompt: &Prompt) -> &'static str {
    match prompt {
        Prompt::Chat { .. } => "chat",
        Prompt::Text(_) | Prompt::Tokens(_) => "text_completion",
    }
}

/// Reads `traceparent`: version 00, a trace and a span that are not zero, flags.
fn parent(header: &str) -> Option<SpanContext> {
    let mut parts = header.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    // A later version may say more behind these four.
    let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !known || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & TraceFlags::SAMPLED.to_u8());
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

fn build(kind: SpanKind, name: impl Into<Cow<'static, str>>) -> SpanBuilder {
    SpanBuilder::from_name(name).with_kind(kind)
}

fn start(kind: SpanKind, name: impl Into<Cow<'static, str>>, parent: &Context) -> Span {
    let Some(tracer) = TRACER.get() else { return Span::default() };
    let span = build(kind, name).start_with_context(tracer, parent);
    Span(Some(Arc::new(Open {
        context: parent.with_span(span),
        input: AtomicU64::new(0),
        output: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        named: AtomicBool::new(false),
        answered: AtomicBool::new(false),
    })))
}

impl Span {
    /// Whether anything is kept of what it is told.
    pub fn is_on(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.context.span().is_recording())
    }

    /// A span below this one; nothing if this is nothing.
    pub fn child(&self, kind: SpanKind, name: impl Into<Cow<'static, str>>) -> Span {
        self.0.as_ref().map_or_else(Span::default, |open| start(kind, name, &open.context))
    }

    /// A span below this one that is over already.
    pub fn past(&self, name: &'static str, from: Instant, to: Instant) {
        let (Some(open), Some(tracer)) = (&self.0, TRACER.get()) else { return };
        let (now, clock) = (Instant::now(), SystemTime::now());
        let at = |then: Instant| clock.checked_sub(now.saturating_duration_since(then)).unwrap_or(clock);
        let builder = build(SpanKind::Internal, name).with_start_time(at(from));
        let span = builder.start_with_context(tracer, &open.context);
        open.context.with_span(span).span().end_with_timestamp(at(to));
    }

    /// Says something of it. Nothing secret, and nothing that a client wrote but a model's name.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(open) = &self.0 {
            open.context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says a whole number of it.
    pub fn count(&self, key: &'static str, value: u64) {
        self.set(key, whole(value));
    }

    /// What is done, by this network, with which model.
    pub fn does(&self, operation: &'static str, model: &str) {
        self.set("gen_ai.operation.name", operation);
        self.set("gen_ai.provider.name", PROVIDER);
        self.asks(model);
    }

    /// The model that is asked, by the name that it was asked by. Said once.
    pub fn asks(&self, model: &str) {
        if let Some(open) = self.0.as_ref().filter(|open| !open.named.swap(true, Relaxed)) {
            open.context.span().set_attribute(KeyValue::new("gen_ai.request.model", model.to_owned()));
        }
    }

    /// The most tokens that the answer may have; 0 if that was not said.
    pub fn limited(&self, max_tokens: u32) {
        if max_tokens > 0 {
            self.count("gen_ai.request.max_tokens", max_tokens.into());
        }
    }

    /// The receipt of its answer. Said once: of several answers, the first one's.
    pub fn responds(&self, receipt: &ReceiptId) {
        if let Some(open) = self.0.as_ref().filter(|open| !open.answered.swap(true, Relaxed)) {
            open.context.span().set_attribute(KeyValue::new("gen_ai.response.id", receipt.to_string()));
        }
    }

    /// Who is asked for it, by its URL.
    pub fn server(&self, endpoint: &str) {
        let Some(at) = self.0.as_ref().and_then(|_| endpoint.parse::<Uri>().ok()) else { return };
        if let Some(host) = at.host() {
            self.set("server.address", host.to_owned());
        }
        let usual = if at.scheme_str() == Some("https") { 443 } else { 80 };
        self.count("server.port", at.port_u16().unwrap_or(usual).into());
    }

    /// Tokens that were read and written; of several answers, their sum.
    pub fn used(&self, input: u32, output: u32) {
        if let Some(open) = &self.0 {
            open.input.fetch_add(input.into(), Relaxed);
            open.output.fetch_add(output.into(), Relaxed);
        }
    }

    /// It failed, by a code that stays. The first one is kept.
    pub fn fail(&self, code: &'static str) {
        if let Some(open) = self.0.as_ref().filter(|open| !open.failed.swap(true, Relaxed)) {
            let span = open.context.span();
            span.set_attribute(KeyValue::new("error.type", code));
            span.set_status(Status::error(""));
        }
    }

    /// What another process is told of it, as `traceparent`.
    pub fn traceparent(&self) -> Option<String> {
        let open = self.0.as_ref()?;
        let span = open.context.span();
        let context = span.span_context();
        let flags = context.trace_flags() & TraceFlags::SAMPLED;
        context
            .is_valid()
            .then(|| format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags.to_u8()))
    }

    /// Makes it the span of whatever `future` does: what [`current`] says there.
    pub async fn within<F: Future>(self, future: F) -> F::Output {
        match self.0 {
            None => future.await,
            Some(_) => Box::pin(CURRENT.scope(self, future)).await,
        }
    }

    /// Starts a task whose span it is.
    pub fn spawn<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match self.0 {
            None => tokio::spawn(future),
            Some(_) => tokio::spawn(CURRENT.scope(self, future)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_as_the_specification_says() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let read = parent(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!((read.trace_id().to_string(), read.span_id().to_string()), (trace.into(), span.into()));
        assert!(read.is_sampled() && read.is_remote());
        assert!(!parent(&format!("00-{trace}-{span}-00")).unwrap().is_sampled());
        // Only the flag that is known is passed on, and a later version may say more.
        assert_eq!(parent(&format!("01-{trace}-{span}-ff-more")).unwrap().trace_flags(), TraceFlags::SAMPLED);
        for wrong in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}0-{span}-01"),
            format!("00-{trace}-{span}-0g"),
        ] {
            assert!(parent(&wrong).is_none(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn without_a_tracer_a_span_is_nothing() {
        let span = root(SpanKind::Internal, "nothing");
        assert!(!span.is_on() && span.traceparent().is_none());
        assert!(span.child(SpanKind::Client, "below").0.is_none());
        assert!(span.within(async { current().0.is_none() }).await);
    }
}
