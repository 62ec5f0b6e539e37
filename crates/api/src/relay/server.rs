//! A provider's side: opens orders, has them answered, seals the frames.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use assay_core::canonical::Canonical as _;
use assay_core::id::{Hash, ModelRoot, NodeAddress, SignatureBytes};
use assay_core::offer::{Offer, OfferedModel, SignedOffer};
use assay_core::receipt::Domain;
use assay_core::transcript::Usage;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::Stream;
use futures_util::stream::poll_fn;
use serde_json::json;
use tokio::sync::mpsc;

use super::seal::{Frames, SALT_BYTES, STOP_BYTES, Unsealer};
use super::{Frame, ORDER_BYTES_MAX, ORDER_S_MAX, ORDERS, RelayOrder, STOP, Work};
use crate::answer::Meter;
use crate::inference::{Caller, EmbeddingOrder, Event, Generation, Inference, Order, Stop, Task};
use crate::metrics::{Finish, Metrics};
use crate::server::now_s;
use crate::{ModelCard, Refusal, traces};

/// Orders whose ids are remembered. More cannot be under way within [`ORDER_S_MAX`] without being refused.
const REMEMBERED_MAX: usize = 1 << 20;
/// Frames that may wait for a slow reader.
const FRAMES: usize = 64;

/// Signs an offer with the node's key; nothing if the key cannot.
pub type OfferSigner = Box<dyn Fn(&Hash) -> Option<SignatureBytes> + Send + Sync>;

/// How a provider takes orders.
#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    /// Seconds that an offer is for.
    pub offer_s: u64,
    /// Silence after which a frame says that the provider is there.
    pub alive: Duration,
    /// Time in which an order must have come.
    pub body: Duration,
    /// The ledger by which the provider wants to be paid.
    pub settles: Option<Domain>,
}

impl Default for RelayOptions {
    fn default() -> Self {
        RelayOptions {
            offer_s: 24 * 3600,
            alive: Duration::from_secs(5),
            body: Duration::from_secs(60),
            settles: None,
        }
    }
}

/// The routes of a provider that takes orders.
pub struct Relay<I> {
    inference: Arc<I>,
    provider: NodeAddress,
    unsealer: Unsealer,
    sign: OfferSigner,
    options: RelayOptions,
    /// Ids of orders, and until when each could be sent again.
    taken: Mutex<HashMap<[u8; 16], u64>>,
    /// Answers under way, by what their orders are stopped by.
    stops: Mutex<HashMap<[u8; STOP_BYTES], Stop>>,
}

/// Where an answer under way can be asked to stop. Dropped, it cannot any more.
struct Listed<'a, I> {
    relay: &'a Relay<I>,
    name: [u8; STOP_BYTES],
}

impl<I> Drop for Listed<'_, I> {
    fn drop(&mut self) {
        self.relay.stops.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

type Shared<I> = Arc<Relay<I>>;

impl<I: Inference> Relay<I> {
    /// A provider with a new sealing key.
    pub fn new(
        inference: Arc<I>,
        provider: NodeAddress,
        sign: OfferSigner,
        options: RelayOptions,
    ) -> Relay<I> {
        let (taken, stops) = (Mutex::default(), Mutex::default());
        Relay { inference, provider, unsealer: Unsealer::draw(provider), sign, options, taken, stops }
    }

    /// `GET /v1/offer`, `GET /v1/texts/ROOT`, `POST /v1/orders` and `POST /v1/orders/stop`.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/v1/offer", get(offer::<I>))
            .route(ORDERS, post(take::<I>))
            .route(STOP, post(stop::<I>))
            .route("/v1/texts/{root}", get(text::<I>))
            .with_state(Arc::new(self))
    }

    fn offer(&self) -> Option<SignedOffer> {
        let issued_s = now_s();
        let offered = |card: ModelCard| OfferedModel {
            root: card.root,
            name: card.id,
            profile: card.profile,
            context_length: card.context_length,
            parameters: card.parameters,
            bytes: card.bytes,
            has_chat_template: card.has_chat_template,
            dimensions: match card.task {
                Task::Generate => None,
                Task::Embed { dimensions } => Some(dimensions),
            },
            price: card.price,
            price_private: card.price_private,
        };
        let offer = Offer {
            provider: self.provider,
            issued_s,
            until_s: issued_s.saturating_add(self.options.offer_s),
            sealing_key: self.unsealer.public(),
            settles: self.options.settles,
            models: self.inference.models().into_iter().map(offered).collect(),
        };
        (self.sign)(&offer.signing_hash()).map(|signature| SignedOffer { offer, signature })
    }

    /// Lists an answer by what its order is stopped by.
    fn list(&self, name: [u8; STOP_BYTES], stop: Stop) -> Listed<'_, I> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner).insert(name, stop);
        Listed { relay: self, name }
    }

    /// Whether an order may be taken now, which it may once.
    fn admit(&self, order: &RelayOrder, now_s: u64) -> Result<(), Refusal> {
        let stale = |message: &str| Refusal::Invalid { param: "order".into(), message: message.into() };
        if order.until_s < now_s {
            return Err(stale("the order's time is over; seal it again"));
        }
        if order.until_s > now_s.saturating_add(ORDER_S_MAX) {
            return Err(stale("an order is for an hour at most"));
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= REMEMBERED_MAX {
            taken.retain(|_, until_s| *until_s >= now_s);
            if taken.len() >= REMEMBERED_MAX {
                return Err(Refusal::Busy { retry_after_s: 60 });
            }
        }
        match taken.insert(order.id, order.until_s) {
            None => Ok(()),
            Some(_) => Err(stale("this order was taken before; seal it again under another id")),
        }
    }
}

/// An error that is not sealed, since there is nobody to seal it to.
fn refused(status: StatusCode, code: &str, message: impl std::fmt::Display) -> Response {
    let error = json!({"error": {"message": message.to_string(), "type": "invalid_request_error", "param": null, "code": code}});
    (status, Json(error)).into_response()
}

async fn offer<I: Inference>(State(relay): State<Shared<I>>) -> Response {
    match relay.offer() {
        Some(signed) => Json(signed).into_response(),
        None => refused(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the node's key cannot sign"),
    }
}

async fn text<I: Inference>(State(relay): State<Shared<I>>, Path(root): Path<String>) -> Response {
    let opening = match root.parse() {
        Ok(root) => relay.inference.text(root).await,
        Err(_) => None,
    };
    match opening {
        Some(opening) => Json(opening).into_response(),
        None => refused(StatusCode::NOT_FOUND, "text_unknown", "no model with this root is here as a whole"),
    }
}

async fn stop<I: Inference>(State(relay): State<Shared<I>>, request: Request) -> Response {
    let name = tokio::time::timeout(relay.options.body, to_bytes(request.into_body(), STOP_BYTES)).await;
    let Some(name) =
        name.ok().and_then(Result::ok).and_then(|name| <[u8; STOP_BYTES]>::try_from(&*name).ok())
    else {
        let message = format!("an order is stopped by the {STOP_BYTES} bytes that name it");
        return refused(StatusCode::BAD_REQUEST, "order_malformed", message);
    };
    let stop = relay.stops.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
    match stop {
        Some(stop) => {
            stop.ask();
            StatusCode::NO_CONTENT.into_response()
        }
        None => refused(StatusCode::NOT_FOUND, "order_not_running", "no answer to this order is under way"),
    }
}

async fn take<I: Inference>(State(relay): State<Shared<I>>, request: Request) -> Response {
    let measured = Measured { metrics: request.extensions().get().cloned(), started: Instant::now() };
    let sealed = tokio::time::timeout(relay.options.body, to_bytes(request.into_body(), ORDER_BYTES_MAX));
    let sealed = match sealed.await {
        Err(_) => {
            return refused(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the order did not come in time");
        }
        Ok(Err(_)) => {
            let message = format!("an order has at most {ORDER_BYTES_MAX} bytes");
            return refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message);
        }
        Ok(Ok(sealed)) => sealed,
    };
    let Ok((order, read)) = relay.unsealer.open(&sealed) else {
        let message = "the order is not sealed to this provider's present key; read /v1/offer again";
        return refused(StatusCode::BAD_REQUEST, "order_not_sealed", message);
    };
    drop(sealed);
    let salt: [u8; SALT_BYTES] = crate::relay::seal::salt();
    let (frames, name) = (read.frames(&salt), read.stop());
    let (wire, chunks) = mpsc::channel(FRAMES);
    let alive = relay.options.alive;
    let outcome = RelayOrder::from_canonical_bytes(&order);
    // Owned by the answer's body: it ends when its last frame is sent, or when its reader is gone.
    let telling = traces::current().within(async move {
        let mut teller = Teller { frames, wire, alive };
        teller.say(Bytes::copy_from_slice(&salt)).await;
        let last = match outcome {
            Err(e) => Frame::Failed(Refusal::Invalid { param: "order".into(), message: e.to_string() }),
            Ok(order) => teller.answer(&relay, order, name, &measured).await,
        };
        teller.tell(&last).await;
    });
    let body = Body::from_stream(told(telling, chunks));
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

/// What a telling says, while it is read. What is there at one moment goes in one piece, and the first with the response's head.
fn told(
    telling: impl Future<Output = ()> + Send + 'static,
    mut chunks: mpsc::Receiver<Bytes>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let mut telling = Some(Box::pin(telling));
    poll_fn(move |context| {
        if telling.as_mut().is_some_and(|telling| telling.as_mut().poll(context).is_ready()) {
            telling = None;
        }
        let mut pieces = Vec::new();
        while let Poll::Ready(Some(chunk)) = chunks.poll_recv(context) {
            pieces.push(chunk);
        }
        match (pieces.as_mut_slice(), &telling) {
            ([], Some(_)) => Poll::Pending,
            ([], None) => Poll::Ready(None),
            ([one], _) => Poll::Ready(Some(Ok(std::mem::take(one)))),
            (many, _) => Poll::Ready(Some(Ok(many.concat().into()))),
        }
    })
}

/// Where an order is counted: with what the server counts that it came to, if it came to one.
struct Measured {
    metrics: Option<Arc<Metrics>>,
    started: Instant,
}

impl Measured {
    fn refused(&self, refusal: Refusal) -> Frame {
        if let Some(metrics) = &self.metrics {
            metrics.refused(refusal.code());
        }
        Frame::Failed(refusal)
    }

    fn meter<I: Inference>(&self, relay: &Relay<I>, model: ModelRoot) -> Option<Meter> {
        let metrics = Arc::clone(self.metrics.as_ref()?);
        let card = relay.inference.models().into_iter().find(|card| card.root == model)?;
        Some(Meter::new(metrics, card.id, self.started))
    }
}

/// Stops an answer of which something was told when its reader goes: who reads pays for what there is.
struct Heard {
    stop: Stop,
    told: bool,
}

impl Drop for Heard {
    fn drop(&mut self) {
        if self.told {
            self.stop.ask();
        }
    }
}

/// Writes one answer.
struct Teller {
    frames: Frames,
    wire: mpsc::Sender<Bytes>,
    alive: Duration,
}

impl Teller {
    /// Sends a frame.
    async fn tell(&mut self, frame: &Frame) {
        let sealed = self.frames.seal(&frame.to_canonical_bytes());
        let length = u32::try_from(sealed.len()).expect("a frame has less than four gigabytes").to_be_bytes();
        self.say([length.as_slice(), &sealed].concat().into()).await;
    }

    async fn say(&mut self, bytes: Bytes) {
        // Whoever reads holds what tells it: with the reader, this goes too.
        let _ = self.wire.send(bytes).await;
    }

    /// Waits, and says meanwhile that the provider is there.
    async fn patiently<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(self.alive) => self.tell(&Frame::Alive).await,
            }
        }
    }

    /// Everything but the last frame.
    async fn answer<I: Inference>(
        &mut self,
        relay: &Relay<I>,
        order: RelayOrder,
        name: [u8; STOP_BYTES],
        measured: &Measured,
    ) -> Frame {
        if let Err(refusal) = relay.admit(&order, now_s()) {
            return measured.refused(refusal);
        }
        let request_id = order.request_id;
        let caller = Caller { payment: order.payment.map(Box::new), ..Caller::default() };
        match order.work {
            Work::Embed { request } => {
                let meter = measured.meter(relay, request.model);
                let order = EmbeddingOrder { request, request_id, caller };
                match self.patiently(relay.inference.embed(order)).await {
                    Ok(record) => {
                        if let Some(mut meter) = meter {
                            meter.finish(Finish::Stop);
                            let prompt_tokens = record.transcript.tokens();
                            meter.tokens(Usage { prompt_tokens, completion_tokens: 0 });
                        }
                        Frame::Embedded(Box::new(Arc::unwrap_or_clone(record)))
                    }
                    Err(refusal) => {
                        if let Some(mut meter) = meter {
                            meter.discard();
                        }
                        measured.refused(refusal)
                    }
                }
            }
            Work::CountTokens { model, prompt } => {
                match self.patiently(relay.inference.count_tokens(model, prompt)).await {
                    Ok(count) => Frame::Counted(count),
                    Err(refusal) => measured.refused(refusal),
                }
            }
            Work::Generate { request, nonce } => {
                let model = request.model;
                let order = Order { request, nonce, request_id, caller };
                match self.patiently(relay.inference.generate(order)).await {
                    Err(refusal) => measured.refused(refusal),
                    Ok(generation) => {
                        let meter = measured.meter(relay, model);
                        let _listed = relay.list(name, generation.stop.clone());
                        self.generated(generation, meter).await
                    }
                }
            }
        }
    }

    /// The last frame of an answer, after the others.
    async fn generated(&mut self, mut generation: Generation, mut meter: Option<Meter>) -> Frame {
        // Goes before what it stops: an answer that nobody reads and nobody stopped would be taken back.
        let mut heard = Heard { stop: generation.stop.clone(), told: false };
        let (receipt_id, prompt_tokens) = (generation.receipt_id, generation.prompt_tokens);
        self.tell(&Frame::Queued { receipt_id, prompt_tokens }).await;
        loop {
            let event = self.patiently(generation.events.recv()).await;
            if let (Some(meter), Some(event)) = (&mut meter, &event) {
                meter.see(event);
            }
            if let Some(Event::End { cached_tokens: cached @ 1.., .. }) = event {
                self.tell(&Frame::Cached(cached)).await;
            }
            let frame = frame(event);
            if frame.is_last() {
                heard.told = false;
                return frame;
            }
            self.tell(&frame).await;
            heard.told = true;
        }
    }
}

fn frame(event: Option<Event>) -> Frame {
    match event {
        None => Frame::Failed(Refusal::Internal { message: "the answer stopped without an end".into() }),
        Some(Event::Text { text, logprobs }) => Frame::Text { text, logprobs },
        Some(Event::Call { index, id, name }) => Frame::Call { index, id, name },
        Some(Event::Arguments { index, json }) => Frame::Arguments { index, json },
        Some(Event::End { stop, record, .. }) => {
            Frame::End { stop, record: Box::new(Arc::unwrap_or_clone(record)) }
        }
        Some(Event::Failed(refusal)) => Frame::Failed(refusal),
    }
}
