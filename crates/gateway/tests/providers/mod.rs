//! Providers without models: they sign true records, and misbehave as they are told.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_api::relay::{Relay, RelayOptions};
use assay_api::{
    EmbeddingOrder, Event, Generation, Inference, Load, ModelCard, Order, Refusal, ServerOptions, Stop, Task,
};
use assay_core::answer::{AnswerRecord, Format};
use assay_core::canonical::Canonical as _;
use assay_core::consent::Consent;
use assay_core::digest::ExecutionDigests;
use assay_core::embedding::{EmbeddingRecord, Record};
use assay_core::id::{ChannelId, Hash, ModelRoot, NodeAddress, Nonce, ReceiptId, SignatureBytes};
use assay_core::merkle;
use assay_core::price::Price;
use assay_core::receipt::{Domain, Receipt, SignedReceipt, receipt_id};
use assay_core::request::{Prompt, Request};
use assay_core::text::{TextModel, TextOpening, component};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

/// Tokens of a prompt that was executed before, as every provider tells it.
pub const CACHED: u32 = 7;
/// What ends the model's answers.
const END: u32 = 9;

fn opening() -> (ModelRoot, TextOpening) {
    let text = TextModel {
        bos: None,
        add_bos: false,
        end_tokens: vec![END],
        chat_template: String::new(),
        has_chat_template: true,
    };
    let other = |name: &str| component(name, &Hash::ZERO);
    let leaves =
        [other("profile"), other("program"), component("text", &text.canonical_hash()), other("tokenizer")];
    let root = ModelRoot::from_bytes(*merkle::root(leaves).as_bytes());
    (root, TextOpening::of(&text, &leaves).unwrap())
}

/// What all of them offer.
pub fn model() -> ModelRoot {
    opening().0
}

/// What a provider does with every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers.
    Honest,
    /// Answers, and says that it had executed more tokens of the prompt than it has.
    Boasts,
    /// Has no place.
    Busy,
    /// Refuses the request itself.
    Refuses,
    /// Takes it, and says only that it is there.
    Silent,
    /// Stops after the first words.
    BreaksOff,
    /// Says its first words, and goes on when it is told to.
    Late,
    /// Goes on for ever, whatever it is asked.
    Endless,
    /// Says a word when it is told to, and stops when it is asked to.
    Paced,
    /// The same, with other words.
    PacedOther,
    /// Says a word when it is told to, and breaks off when it is asked to stop.
    PacedAndLost,
    /// Stops after the first words, and nobody has asked.
    StopsUnasked,
    /// Answers otherwise than the others do.
    Another,
    /// Signs another text than it told.
    OtherText,
    /// Writes more tokens than it was asked for.
    Padded,
    /// Ends for the number of its tokens, and has fewer than it was asked for.
    CutsShort,
    /// Ends where the model does not end it.
    EndsEarly,
    /// The same, and does not show what its model's root says of that.
    EndsEarlyAndHides,
    /// Goes on where the model ends it.
    GoesOn,
    /// Signs for another request.
    OtherRequest,
    /// Has another key sign.
    OtherKey,
    /// Signs the same words with the digests of another execution.
    OtherDigests,
    /// Signs for the same request without its client's consent to audits.
    MarksPrivate,
}

/// What a provider says, all in all.
struct Said<'a> {
    text: &'a str,
    ids: Vec<u32>,
    stop: StopReason,
}

pub struct Node {
    key: PrivateKeySigner,
    price: Option<Price>,
    price_private: Option<Price>,
    manner: Mutex<Manner>,
    pub started: AtomicU32,
    pub cancelled: AtomicBool,
    /// It was asked to stop, and has.
    pub stopped: AtomicBool,
    /// Lets those that are [`Manner::Late`] or [`Manner::Paced`] go on, one for each permit.
    pub go: Semaphore,
    sequence: AtomicU64,
}

impl Node {
    pub fn address(&self) -> NodeAddress {
        NodeAddress::from_bytes(self.key.address().into_array())
    }

    pub fn becomes(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn record(
        &self,
        manner: Manner,
        mut request: Request,
        nonce: Nonce,
        sequence: u64,
        said: Said<'_>,
    ) -> AnswerRecord {
        let Said { text, ids, stop } = said;
        let completion_tokens = u32::try_from(ids.len()).unwrap();
        if manner == Manner::MarksPrivate {
            request.audit = Consent::Withheld;
        }
        let request_hash = request.hash();
        let transcript = Transcript {
            request_hash,
            nonce,
            nonce_source: NonceSource::Provider,
            prompt_ids: vec![1; 10],
            output_ids: ids,
            text: if manner == Manner::OtherText { "another text".into() } else { text.into() },
            stop,
            logprobs: vec![],
        };
        let digests = match manner {
            Manner::OtherDigests => ExecutionDigests(vec![Hash::ZERO]),
            _ => ExecutionDigests(vec![]),
        };
        let receipt = Receipt {
            provider: self.address(),
            sequence,
            model_root: request.model,
            request_hash,
            transcript_root: transcript.root(),
            digest_root: digests.root(),
            prompt_tokens: 10,
            completion_tokens,
            fee_micro_usd: 0,
            payer_channel: ChannelId::ZERO,
            client_nonce: nonce,
            epoch: 0,
        };
        if manner == Manner::OtherRequest {
            request.max_tokens += 1;
        }
        let other = PrivateKeySigner::random();
        let key = if manner == Manner::OtherKey { &other } else { &self.key };
        let domain = Domain::DEVELOPMENT;
        let signature = key.sign_hash_sync(&receipt.signing_hash(&domain).as_bytes().into()).unwrap();
        let signature = SignatureBytes::from_bytes(signature.as_bytes());
        let receipt = SignedReceipt { receipt, domain, signature };
        AnswerRecord { format: Format::V2, receipt, request, transcript, digests, generation: None }
    }
}

/// What the relay serves.
pub struct Shared(Arc<Node>);

impl Inference for Shared {
    fn models(&self) -> Vec<ModelCard> {
        vec![ModelCard {
            id: "org/model".into(),
            root: model(),
            created: 1,
            owned_by: "test".into(),
            context_length: 1000,
            profile: "int8-v1".into(),
            bytes: 1,
            has_chat_template: true,
            task: Task::Generate,
            parameters: 1,
            aliases: vec![],
            price: self.0.price,
            price_private: self.0.price_private,
        }]
    }

    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        let node = Arc::clone(&self.0);
        let manner = *node.manner.lock().unwrap();
        match manner {
            Manner::Busy => return Err(Refusal::Busy { retry_after_s: 7 }),
            Manner::Refuses => return Err(Refusal::ContextExceeded { prompt: 9, window: 1 }),
            _ => {}
        }
        node.started.fetch_add(1, SeqCst);
        let sequence = node.sequence.fetch_add(1, SeqCst);
        let id = receipt_id(node.address(), sequence, order.request.hash());
        let (events, receiver) = mpsc::channel(4);
        let stop = Stop::default();
        let asked = stop.clone();
        tokio::spawn(async move {
            let text = |text: &str| Event::Text { text: text.into(), logprobs: vec![] };
            match manner {
                Manner::Silent => {
                    events.closed().await;
                    node.cancelled.store(true, SeqCst);
                }
                Manner::Endless => {
                    while events.send(text("la ")).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    node.cancelled.store(true, SeqCst);
                }
                Manner::StopsUnasked => {
                    let nonce = order.nonce.unwrap_or(Nonce::from_bytes([9; 32]));
                    let said = Said { text: "Hel", ids: vec![2; 2], stop: StopReason::Cancelled };
                    let record = Arc::new(node.record(manner, order.request, nonce, sequence, said));
                    let _ = events.send(text("Hel")).await;
                    let (stop, usage) = (record.transcript.stop, record.transcript.usage());
                    let _ = events.send(Event::End { stop, usage, cached_tokens: CACHED, record }).await;
                }
                Manner::Paced | Manner::PacedOther | Manner::PacedAndLost => {
                    let nonce = order.nonce.unwrap_or(Nonce::from_bytes([9; 32]));
                    let (word, id) = if manner == Manner::PacedOther { ("lo ", 3) } else { ("la ", 2) };
                    let mut words = 0;
                    loop {
                        tokio::select! {
                            biased;
                            () = asked.asked() => break,
                            () = events.closed() => {
                                node.cancelled.store(true, SeqCst);
                                return;
                            }
                            permit = node.go.acquire() => permit.unwrap().forget(),
                        }
                        words += 1;
                        let _ = events.send(text(word)).await;
                    }
                    node.stopped.store(true, SeqCst);
                    if manner == Manner::PacedAndLost {
                        return;
                    }
                    let said =
                        Said { text: &word.repeat(words), ids: vec![id; words], stop: StopReason::Cancelled };
                    let record = Arc::new(node.record(manner, order.request, nonce, sequence, said));
                    let (stop, usage) = (record.transcript.stop, record.transcript.usage());
                    let _ = events.send(Event::End { stop, usage, cached_tokens: CACHED, record }).await;
                }
                Manner::BreaksOff => {
                    let _ = events.send(text("Hel")).await;
                }
                _ => {
                    let nonce = order.nonce.unwrap_or(Nonce::from_bytes([9; 32]));
                    let [begins, ends] = if manner == Manner::Another { ["Go", "od"] } else { ["Hel", "lo"] };
                    let whole = format!("{begins}{ends}");
                    let (tokens, stop) = match manner {
                        Manner::Padded => (order.request.max_tokens as usize + 1, StopReason::EndToken),
                        Manner::CutsShort => (5, StopReason::Length),
                        _ => (5, StopReason::EndToken),
                    };
                    let mut ids = vec![2; tokens];
                    if stop == StopReason::EndToken {
                        ids[tokens - 1] = END;
                    }
                    match manner {
                        Manner::EndsEarly | Manner::EndsEarlyAndHides => ids[tokens - 1] = 2,
                        Manner::GoesOn => ids[1] = END,
                        _ => {}
                    }
                    let said = Said { text: &whole, ids, stop };
                    let record = node.record(manner, order.request, nonce, sequence, said);
                    let record = Arc::new(record);
                    let (stop, usage) = (record.transcript.stop, record.transcript.usage());
                    if events.send(text(begins)).await.is_err() {
                        return;
                    }
                    if manner == Manner::Late {
                        node.go.acquire().await.unwrap().forget();
                    }
                    let cached_tokens = if manner == Manner::Boasts { 1000 } else { CACHED };
                    for event in [text(ends), Event::End { stop, usage, cached_tokens, record }] {
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Generation { receipt_id: id, prompt_tokens: 10, source: None, stop, events: receiver })
    }

    async fn embed(&self, _: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        Err(Refusal::Busy { retry_after_s: 7 })
    }

    async fn count_tokens(&self, _: ModelRoot, _: Prompt) -> Result<u32, Refusal> {
        match *self.0.manner.lock().unwrap() {
            Manner::Busy => Err(Refusal::Busy { retry_after_s: 7 }),
            _ => Ok(10),
        }
    }

    async fn receipt(&self, _: ReceiptId) -> Result<Option<Record>, Refusal> {
        Ok(None)
    }

    async fn text(&self, _: ModelRoot) -> Option<TextOpening> {
        let hides = *self.0.manner.lock().unwrap() == Manner::EndsEarlyAndHides;
        (!hides).then(|| opening().1)
    }

    fn load(&self) -> Load {
        Load::default()
    }
}

/// A provider on loopback.
pub struct Provider {
    pub node: Arc<Node>,
    pub url: String,
    serving: AbortHandle,
}

impl Provider {
    pub async fn start(manner: Manner, price: Option<&str>) -> Provider {
        Provider::with(PrivateKeySigner::random(), manner, price, None).await
    }

    /// One that also has a price for requests whose clients withhold their consent to audits.
    pub async fn private(price: &str, private: &str) -> Provider {
        Provider::with(PrivateKeySigner::random(), Manner::Honest, Some(price), Some(private)).await
    }

    /// One that is asked before `other`, as long as both are expected to take the same time: of equals the lowest address is.
    pub async fn before(other: &Provider, manner: Manner, price: Option<&str>) -> Provider {
        loop {
            let key = PrivateKeySigner::random();
            if NodeAddress::from_bytes(key.address().into_array()) < other.node.address() {
                return Provider::with(key, manner, price, None).await;
            }
        }
    }

    async fn with(
        key: PrivateKeySigner,
        manner: Manner,
        price: Option<&str>,
        private: Option<&str>,
    ) -> Provider {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let node = Arc::new(Node {
            key,
            price: price.map(|p| p.parse().unwrap()),
            price_private: private.map(|p| p.parse().unwrap()),
            manner: Mutex::new(manner),
            started: AtomicU32::new(0),
            cancelled: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            go: Semaphore::new(0),
            sequence: AtomicU64::new(0),
        });
        let (url, serving) = Provider::serve(&node, "127.0.0.1:0").await;
        Provider { node, url, serving }
    }

    async fn serve(node: &Arc<Node>, at: &str) -> (String, AbortHandle) {
        let listener = TcpListener::bind(at).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let key = node.key.clone();
        let sign = move |hash: &assay_core::id::Hash| {
            let signature = key.sign_hash_sync(&hash.as_bytes().into()).ok()?;
            Some(SignatureBytes::from_bytes(signature.as_bytes()))
        };
        let options = RelayOptions { alive: Duration::from_millis(20), ..RelayOptions::default() };
        let shared = Arc::new(Shared(Arc::clone(node)));
        let routes = assay_api::router(Arc::clone(&shared), ServerOptions::default());
        let relay = Relay::new(shared, node.address(), Box::new(sign), options);
        let routes = routes.merge(relay.routes());
        let listener = listener.tap_io(|tcp| drop(tcp.set_nodelay(true)));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
        (url, serving.abort_handle())
    }

    /// Stops listening.
    pub async fn dies(&self) {
        self.serving.abort();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    /// Listens again at the same address, with another sealing key.
    pub async fn comes_back(&mut self) {
        let at = self.url.trim_start_matches("http://").to_owned();
        (_, self.serving) = Provider::serve(&self.node, &at).await;
    }
}
