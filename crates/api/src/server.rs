//! Routes, limits, and a shutdown that lets answers finish.
//!
//! Shutdown: 1. the signal resolves: no new connections, new requests on old ones are refused as draining; 2. running answers
//! finish, for at most [`ServerOptions::drain_s`]; 3. what is left is dropped, which cancels its work.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use assay_core::embedding::EmbeddingRequest;
use assay_core::id::{Nonce, ReceiptId};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_http::cors::CorsLayer;

use crate::answer::chat::ChatStream;
use crate::answer::completions::CompletionStream;
use crate::answer::{self, Choices, Frame, Meter};
use crate::files::{self, Desk, FileOptions, FileStore, MaybeDesk};
use crate::metrics::{Metrics, OPENMETRICS};
use crate::parameters::{Route, parse};
use crate::refusal::Refused;
use crate::verification::with_classes;
use crate::x402::{self, Paid, Sent};
use crate::{
    ApiKey, Arriving, Caller, Class, EmbeddingOrder, Inference, ModelCard, Order, Owner, Refusal, Source,
    Task, batches, embeddings, messages, ollama, relay, responses, traces,
};

pub(crate) const RECEIPT_HEADER: HeaderName = HeaderName::from_static("x-assay-receipt");
const PROVIDER_HEADER: HeaderName = HeaderName::from_static("x-assay-provider");
const ASKED_HEADER: HeaderName = HeaderName::from_static("x-assay-price");
const NONCE_HEADER: &str = "x-assay-nonce";
const PRICE_HEADER: &str = "x-assay-price-max";
/// What OpenAI's clients count their retries in.
const RETRY_HEADER: &str = "x-stainless-retry-count";
/// When to ask again for a model whose first bytes are arriving.
const ARRIVING_RETRY_S: u32 = 1;
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// How the server behaves.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Most bytes of a body.
    pub body_bytes_max: usize,
    /// Seconds in which a body must have come.
    pub body_s: u64,
    /// Silence after which a stream says that it lives, and for which the first byte waits for a failure.
    pub keep_alive: Duration,
    /// Seconds that running answers have to finish at shutdown.
    pub drain_s: u64,
    /// Who checks answers of requests that do not say so.
    pub class: Class,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            body_bytes_max: 8 << 20,
            body_s: 60,
            keep_alive: Duration::from_secs(10),
            drain_s: 60,
            class: Class::default(),
        }
    }
}

pub(crate) struct Server<I> {
    pub(crate) inference: Arc<I>,
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) draining: AtomicBool,
    next_request: AtomicU64,
    started_ns: u128,
}

pub(crate) type Shared<I> = Arc<Server<I>>;

/// Serves until `shutdown` resolves and running answers have finished.
pub async fn serve<I: Inference>(
    listener: TcpListener,
    inference: Arc<I>,
    options: ServerOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    serve_desk(listener, inference, options, None, Router::new(), shutdown).await
}

/// Serves, files and batches included, and `more` routes beside. Batches that are not finished go on where they were; at shutdown their lines in flight are
/// dropped, to be asked again at the next start.
pub async fn serve_with_files<I: Inference>(
    listener: TcpListener,
    inference: Arc<I>,
    options: ServerOptions,
    store: Arc<dyn FileStore>,
    file_options: FileOptions,
    more: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let patience = Duration::from_secs(options.body_s);
    let desk = Desk::open(store, file_options, patience).await.map_err(std::io::Error::other)?;
    serve_desk(listener, inference, options, Some(desk), more, shutdown).await
}

async fn serve_desk<I: Inference>(
    listener: TcpListener,
    inference: Arc<I>,
    options: ServerOptions,
    desk: MaybeDesk,
    more: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let server = shared(inference, options);
    let (signal, mut stopping) = tokio::sync::watch::channel(false);
    let marked = Arc::clone(&server);
    let graceful = async move {
        shutdown.await;
        marked.draining.store(true, Relaxed);
        // The receiver below lives as long as the server.
        let _ = signal.send(true);
    };
    let routes = routes(server, desk.clone(), more);
    let batches = desk.map(|desk| batches::run(desk, routes.clone(), stopping.clone()));
    let batches = async {
        if let Some(batches) = batches {
            batches.await;
        }
    };
    // Pieces of an answer are small, and each is wanted at once.
    let listener = listener.tap_io(|tcp| drop(tcp.set_nodelay(true)));
    let running = axum::serve(listener, routes).with_graceful_shutdown(graceful).into_future();
    let deadline = async {
        // An error means that the sender is gone: then the server has ended anyway.
        let _ = stopping.wait_for(|s| *s).await;
        tokio::time::sleep(Duration::from_secs(options.drain_s)).await;
    };
    let serving = async {
        tokio::select! {
            ended = running => ended,
            () = deadline => {
                tracing::warn!("answers were still running {} s after the signal and are dropped", options.drain_s);
                Ok(())
            }
        }
    };
    tokio::join!(serving, batches).0
}

/// The routes alone, for tests and for embedding.
pub fn router<I: Inference>(inference: Arc<I>, options: ServerOptions) -> Router {
    routes(shared(inference, options), None, Router::new())
}

fn shared<I: Inference>(inference: Arc<I>, options: ServerOptions) -> Shared<I> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Arc::new(Server {
        inference,
        options,
        metrics: Arc::new(Metrics::new()),
        draining: AtomicBool::new(false),
        next_request: AtomicU64::new(0),
        started_ns: now.as_nanos(),
    })
}

fn routes<I: Inference>(server: Shared<I>, desk: MaybeDesk, more: Router) -> Router {
    let exposed =
        [RECEIPT_HEADER, REQUEST_ID_HEADER, PROVIDER_HEADER, ASKED_HEADER, x402::REQUIRED, x402::RESPONSE];
    let cors = CorsLayer::permissive().expose_headers(exposed);
    Router::new()
        .route("/v1/chat/completions", post(chat::<I>))
        .route("/v1/completions", post(completions::<I>))
        .route("/v1/responses", post(responses::route::<I>))
        .route("/v1/embeddings", post(embeddings::route::<I>))
        .route("/v1/models", get(list_models::<I>))
        .route("/v1/models/{*id}", get(one_model::<I>))
        .route("/v1/receipts/{id}", get(receipt::<I>))
        .route("/health", get(health::<I>))
        .route("/metrics", get(metrics::<I>))
        .route("/", get(hint::<I>))
        // Anthropic's, Ollama's, and OpenAI's files and batches.
        .merge(messages::routes())
        .merge(ollama::routes())
        .merge(files::routes(desk).route_layer(from_fn_with_state(Arc::clone(&server), owned::<I>)))
        .fallback(async |uri: Uri| Refusal::UnknownRoute { path: uri.path().to_owned() })
        .method_not_allowed_fallback(async |method: Method| Refusal::Method { method: method.to_string() })
        .with_state(Arc::clone(&server))
        .merge(more)
        .layer(from_fn_with_state(server, around::<I>))
        .layer(cors)
}

/// Gives every response its request id, says what must be or was paid, and counts refusals.
async fn around<I: Inference>(State(s): State<Shared<I>>, mut request: Request, next: Next) -> Response {
    let own = request.headers().get(REQUEST_ID_HEADER).and_then(|v| v.to_str().ok()).filter(|v| is_sane(v));
    let id = match own {
        Some(id) => id.to_owned(),
        None => format!("req-{:x}-{:x}", s.started_ns, s.next_request.fetch_add(1, Relaxed)),
    };
    request.extensions_mut().insert(RequestId(id.clone()));
    if request.uri().path() == relay::ORDERS {
        // Its answer is sealed: whoever makes it counts it.
        request.extensions_mut().insert(Arc::clone(&s.metrics));
    }
    let paid = Paid::of(&request);
    let span = traces::request(request.method(), request.uri().path(), request.headers());
    let mut response = span.clone().within(next.run(request)).await;
    span.count("http.response.status_code", response.status().as_u16().into());
    paid.tell(&s.inference, &mut response).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    if let Some(Refused(code)) = response.extensions().get::<Refused>() {
        s.metrics.refused(code);
        span.fail(code);
    }
    response
}

/// Says to routes of files and batches whose they are.
async fn owned<I: Inference>(
    State(s): State<Shared<I>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let owner = s.inference.owner(&caller(request.headers(), s.options.class)?).await?;
    request.extensions_mut().insert(owner);
    Ok(next.run(request).await)
}

#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);

fn is_sane(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=".contains(&b))
}

async fn chat<I: Inference>(state: State<Shared<I>>, request: Request) -> Result<Response, Refusal> {
    answer_route(state.0, Route::Chat, request).await
}

async fn completions<I: Inference>(state: State<Shared<I>>, request: Request) -> Result<Response, Refusal> {
    answer_route(state.0, Route::Completions, request).await
}

/// A request whose body has come.
pub(crate) struct Received {
    pub(crate) started: Instant,
    pub(crate) nonce: Option<Nonce>,
    /// Whether the record goes into the answer.
    pub(crate) inline: bool,
    pub(crate) request_id: String,
    pub(crate) caller: Caller,
    pub(crate) body: Bytes,
}

impl Received {
    /// Asks for an answer. A body says what is asked, and the class who may see that.
    pub(crate) fn order(&self, request: assay_core::request::Request) -> Order {
        Order {
            request: assay_core::request::Request { audit: self.caller.class.consent(), ..request },
            nonce: self.nonce,
            request_id: self.request_id.clone(),
            caller: self.caller.clone(),
        }
    }

    /// Likewise for vectors.
    pub(crate) fn embedding_order(&self, request: EmbeddingRequest) -> EmbeddingOrder {
        EmbeddingOrder {
            request: EmbeddingRequest { audit: self.caller.class.consent(), ..request },
            request_id: self.request_id.clone(),
            caller: self.caller.clone(),
        }
    }
}

/// Reads a request, unless the server is going away.
pub(crate) async fn receive<I: Inference>(s: &Shared<I>, request: Request) -> Result<Received, Refusal> {
    let started = Instant::now();
    if s.draining.load(Relaxed) {
        return Err(Refusal::Draining);
    }
    let request_id = request.extensions().get::<RequestId>().map(|r| r.0.clone()).unwrap_or_default();
    let (nonce, inline) = our_headers(request.headers())?;
    let mut caller = caller(request.headers(), s.options.class)?;
    caller.behalf = request.extensions().get::<Owner>().cloned();
    let body = read_body(request.into_body(), &s.options).await?;
    Ok(Received { started, nonce, inline, request_id, caller, body })
}

/// Starts an answer to each request. If one is refused, all are: those already started are cancelled.
pub(crate) async fn start<I: Inference>(
    s: &Shared<I>,
    received: &Received,
    card: &ModelCard,
    requests: impl Iterator<Item = assay_core::request::Request> + Send,
) -> Result<Choices, Refusal> {
    let mut choices = Choices::default();
    let span = traces::current();
    span.asks(&card.id);
    let mut requests = requests.peekable();
    while let Some(request) = requests.next() {
        if received.caller.authorization.is_some() && requests.peek().is_some() {
            return Err(one_answer());
        }
        if choices.is_empty() {
            span.limited(request.max_tokens);
        }
        let generation = s.inference.generate(received.order(request)).await;
        if matches!(generation, Err(Refusal::Caller(_))) && requests.peek().is_some() {
            return Err(one_answer());
        }
        let generation = generation?;
        span.responds(&generation.receipt_id);
        choices.push(generation, Meter::new(Arc::clone(&s.metrics), card.id.clone(), received.started));
    }
    Ok(choices.begun())
}

/// A payment by signature moves tokens once.
fn one_answer() -> Refusal {
    let reason = "a payment by x402 is for one answer; send as many requests".into();
    Refusal::Unsupported { param: "n".into(), reason }
}

async fn answer_route<I: Inference>(
    s: Shared<I>,
    route: Route,
    request: Request,
) -> Result<Response, Refusal> {
    let received = receive(&s, request).await?;
    let parsed = parse(route, &received.body)?;
    let card = generator(s.inference.as_ref(), &parsed.model)?;
    let choices = start(&s, &received, &card, parsed.requests(card.root)).await?;
    let sources = choices.sources();
    let (receipts, count) = (choices.receipts(), parsed.prompts.len() * parsed.n as usize);
    let frame = Frame {
        id: answer_id(if route == Route::Chat { "chatcmpl-" } else { "cmpl-" }, &receipts),
        model: parsed.model.clone(),
        fingerprint: card.root.to_string(),
        created: now_s(),
        include_usage: parsed.include_usage,
        inline: received.inline,
        n: parsed.n,
    };
    let keep_alive = s.options.keep_alive;
    let (stream, logprobs) = (parsed.stream, parsed.logprobs);
    // A conversation may be long, and its answer long in coming.
    drop((parsed, received));
    let response = match (route, stream) {
        (Route::Chat, true) => {
            events(answer::stream(choices, ChatStream::new(frame, count), keep_alive).await?)
        }
        (Route::Completions, true) => {
            let render = CompletionStream::new(frame, logprobs, count);
            events(answer::stream(choices, render, keep_alive).await?)
        }
        (Route::Chat, false) => {
            let answers = answer::collect(choices).await?;
            Json(answer::chat::whole(&frame, logprobs.is_some(), &answers)).into_response()
        }
        (Route::Completions, false) => {
            let answers = answer::collect(choices).await?;
            Json(answer::completions::whole(&frame, logprobs, &answers)).into_response()
        }
    };
    Ok(with_sources(with_receipts(response, &receipts), &sources))
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An answer's id: a prefix and the first 32 hex digits of its first receipt's.
pub(crate) fn answer_id(prefix: &str, receipts: &[ReceiptId]) -> String {
    let first = receipts.first().map(ReceiptId::to_string).unwrap_or_default();
    format!("{prefix}{}", first.get(2..34).unwrap_or_default())
}

/// A response of server-sent events.
pub(crate) fn events(stream: impl Stream<Item = Result<String, Infallible>> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

/// Names the receipts in the response's header.
pub(crate) fn with_receipts(mut response: Response, receipts: &[ReceiptId]) -> Response {
    let all: Vec<String> = receipts.iter().map(ReceiptId::to_string).collect();
    if let Ok(value) = HeaderValue::from_str(&all.join(", ")) {
        response.headers_mut().insert(RECEIPT_HEADER, value);
    }
    response
}

/// Names who answers, their prices and who checks them, in the order of the receipts.
pub(crate) fn with_sources(mut response: Response, sources: &[Source]) -> Response {
    let providers: Vec<String> = sources.iter().map(|s| s.provider.to_string()).collect();
    let price = |s: &Source| s.price.map_or_else(|| "0.00/0.00".to_owned(), |price| price.to_string());
    let prices: Vec<String> = sources.iter().map(price).collect();
    for (name, values) in [(PROVIDER_HEADER, providers), (ASKED_HEADER, prices)] {
        if !values.is_empty()
            && let Ok(value) = HeaderValue::from_str(&values.join(", "))
        {
            response.headers_mut().insert(name, value);
        }
    }
    with_classes(response, sources)
}

pub(crate) fn our_headers(headers: &HeaderMap) -> Result<(Option<Nonce>, bool), Refusal> {
    let invalid =
        |param: &str, message: &str| Refusal::Invalid { param: param.into(), message: message.into() };
    let nonce = match headers.get(NONCE_HEADER) {
        None => None,
        Some(v) => {
            let nonce = v.to_str().ok().and_then(|v| v.parse().ok());
            let expected = "the header must be 32 bytes as 0x and 64 hex digits";
            Some(nonce.ok_or_else(|| invalid(NONCE_HEADER, expected))?)
        }
    };
    let inline = match headers.get(RECEIPT_HEADER).map(|v| v.as_bytes()) {
        None => false,
        Some(b"inline") => true,
        Some(_) => return Err(invalid("x-assay-receipt", "the header's only value in requests is `inline`")),
    };
    Ok((nonce, inline))
}

/// Who asks, for `class` if it says nothing else. OpenAI's and Ollama's clients send `Authorization: Bearer`, Anthropic's `x-api-key`.
pub(crate) fn caller(headers: &HeaderMap, class: Class) -> Result<Caller, Refusal> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    let bearer = text("authorization").and_then(|v| {
        let (scheme, key) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let key = bearer.or(text("x-api-key")).filter(|key| !key.is_empty()).map(ApiKey::new);
    let again = text(RETRY_HEADER).and_then(|count| count.parse::<u32>().ok()).is_some_and(|n| n > 0);
    let ceiling =
        text(PRICE_HEADER).map(str::parse).transpose().map_err(|e: assay_core::price::PriceError| {
            Refusal::Invalid { param: PRICE_HEADER.into(), message: e.to_string() }
        })?;
    let class = Class::asked(headers)?.unwrap_or(class);
    let (payment, authorization) = match x402::payment(headers)? {
        None => (None, None),
        Some(Sent::Voucher(payment)) => (Some(payment), None),
        Some(Sent::Authorization(authorization)) => (None, Some(authorization)),
    };
    Ok(Caller { key, again, ceiling, class, payment, authorization, behalf: None })
}

pub(crate) async fn read_body(body: Body, options: &ServerOptions) -> Result<Bytes, Refusal> {
    let limit = options.body_bytes_max;
    let read = tokio::time::timeout(Duration::from_secs(options.body_s), to_bytes(body, limit)).await;
    match read {
        Err(_) => Err(Refusal::BodyTimeout { after_s: options.body_s }),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) => {
            let too_large =
                std::error::Error::source(&e).is_some_and(|s| s.to_string().contains("length limit"));
            if too_large {
                Err(Refusal::BodyTooLarge { limit })
            } else {
                Err(Refusal::InvalidJson { reason: "the body broke off".into() })
            }
        }
    }
}

/// The model of that id, alias or root.
pub(crate) fn find<I: Inference>(inference: &I, name: &str) -> Result<ModelCard, Refusal> {
    let root = name.parse().ok();
    let is_meant =
        |m: &ModelCard| m.id == name || m.aliases.iter().any(|a| a == name) || Some(m.root) == root;
    if let Some(found) = inference.models().into_iter().find(is_meant) {
        return Ok(found);
    }
    let asked = name.chars().take(200).collect();
    match inference.arriving().iter().any(|m| m.id == name || Some(m.root) == root) {
        true => Err(Refusal::ModelArriving { asked, retry_after_s: ARRIVING_RETRY_S }),
        false => Err(Refusal::UnknownModel { asked }),
    }
}

/// The model of that name, which must answer.
pub(crate) fn generator<I: Inference>(inference: &I, name: &str) -> Result<ModelCard, Refusal> {
    let card = find(inference, name)?;
    match card.task {
        Task::Generate => Ok(card),
        Task::Embed { .. } => {
            let does = "makes embeddings and cannot answer: send texts to POST /v1/embeddings";
            Err(Refusal::ModelTask { asked: card.id, does: does.into() })
        }
    }
}

/// The model of that name, which must make vectors, and how many numbers they have.
pub(crate) fn encoder<I: Inference>(inference: &I, name: &str) -> Result<(ModelCard, u32), Refusal> {
    let card = find(inference, name)?;
    match card.task {
        Task::Embed { dimensions } => Ok((card, dimensions)),
        Task::Generate => {
            let does = "answers and makes no embeddings: send conversations to POST /v1/chat/completions";
            Err(Refusal::ModelTask { asked: card.id, does: does.into() })
        }
    }
}

fn model_json(m: &ModelCard) -> Value {
    let (task, features): (_, &[&str]) = match m.task {
        Task::Generate if m.has_chat_template => ("generate", &["tools", "structured_outputs", "logprobs"]),
        Task::Generate => ("generate", &["structured_outputs", "logprobs"]),
        Task::Embed { .. } => ("embed", &[]),
    };
    let mut card = json!({"id": m.id, "object": "model", "created": m.created, "owned_by": m.owned_by,
           "root": m.root, "task": task, "context_length": m.context_length, "parameters": m.parameters,
           "quantization": m.profile, "size_bytes": m.bytes, "chat_template": m.has_chat_template,
           "features": features, "aliases": m.aliases});
    if let Task::Embed { dimensions } = m.task {
        card["dimensions"] = json!(dimensions);
    }
    if let Some(price) = m.price {
        let (prompt, completion) = price.per_token();
        card["pricing"] = json!({"prompt": prompt, "completion": completion});
    }
    if let Some(price) = m.price_private {
        let (prompt, completion) = price.per_token();
        card["pricing_private"] = json!({"prompt": prompt, "completion": completion});
    }
    card
}

async fn list_models<I: Inference>(State(s): State<Shared<I>>) -> Json<Value> {
    let data: Vec<Value> = s.inference.models().iter().map(model_json).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn one_model<I: Inference>(
    State(s): State<Shared<I>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(model_json(&find(s.inference.as_ref(), &id)?)))
}

async fn receipt<I: Inference>(
    State(s): State<Shared<I>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let unknown = || Refusal::UnknownReceipt { asked: id.chars().take(80).collect() };
    let parsed: ReceiptId = id.parse().map_err(|_| unknown())?;
    let record = s.inference.receipt(parsed).await?.ok_or_else(unknown)?;
    Ok(Json(record).into_response())
}

async fn health<I: Inference>(State(s): State<Shared<I>>) -> Response {
    let load = s.inference.load();
    let (code, status) = match (s.draining.load(Relaxed), load.ready) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        (false, true) => (StatusCode::OK, "ok"),
    };
    let mut body = json!({"status": status, "running": load.running, "waiting": load.waiting});
    let arriving = s.inference.arriving();
    if !arriving.is_empty() {
        let one = |a: &Arriving| {
            json!({"model": a.id, "root": a.root, "bytes": a.bytes, "size": a.size, "listed": a.listed,
                   "layers_executed": a.layers_executed, "layers": a.layers})
        };
        body["arriving"] = arriving.iter().map(one).collect();
    }
    (code, Json(body)).into_response()
}

async fn metrics<I: Inference>(State(s): State<Shared<I>>) -> Response {
    let models: Vec<String> = s.inference.models().into_iter().map(|m| m.id).collect();
    let mut text = s.metrics.text(s.inference.load(), &models, &s.inference.arriving());
    s.inference.metrics(&mut text);
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode_eof(&mut text);
    ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response()
}

async fn hint<I: Inference>(State(s): State<Shared<I>>, headers: HeaderMap) -> String {
    if ollama::is_client(&headers) {
        return ollama::RUNNING.to_owned();
    }
    let host =
        headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("127.0.0.1:11711").to_owned();
    let model = s.inference.models().into_iter().next().map_or_else(|| "MODEL".to_owned(), |m| m.id);
    format!(
        "Assay: an inference server whose answers anyone can re-execute to the bit.\n\n\
         curl -i http://{host}/v1/chat/completions -H 'content-type: application/json' \\\n  \
         -d '{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Once upon a time\"}}]}}'\n\n\
         Then check the answer with the receipt id from its x-assay-receipt header:  assay verify 0x…\n\n\
         OpenAI's routes: POST /v1/chat/completions, POST /v1/responses, POST /v1/completions, POST /v1/embeddings,\n  \
         POST /v1/files, POST /v1/batches, GET /v1/models\n\
         Anthropic's: POST /v1/messages, POST /v1/messages/count_tokens\n\
         Ollama's: POST /api/chat, POST /api/generate, POST /api/embed, GET /api/tags, GET /api/version\n\
         Its own: GET /v1/receipts/ID, GET /health, GET /metrics\n"
    )
}
