//! The provider: takes a request, runs the engine, signs a receipt, stores the record, and only then ends the answer.
//!
//! Of a model that arrives, text is told as it is made; a receipt is signed only after the model's content was compared with the
//! root that the receipt names.

mod embedding;
mod spared;
mod stock;
mod teller;

use std::sync::{Arc, OnceLock, RwLock};
use std::time::Instant;

use assay_api::relay::{OfferSigner, Relay, RelayOptions};
use assay_api::traces::{self, Span, SpanKind};
use assay_api::{
    Caller, ChannelState, Class, EmbeddingOrder, Event, Generation, Inference, Load, ModelCard, Order,
    Refusal, Source, Stop, Task,
};
use assay_core::answer::{AnswerRecord, Format, GenerationCost};
use assay_core::consent::Consent;
use assay_core::embedding::{EmbeddingRecord, Record};
use assay_core::id::{ChannelId, ModelRoot, NodeAddress, Nonce, ReceiptId};
use assay_core::payment;
use assay_core::price::{self, Price};
use assay_core::receipt::{Domain, Receipt, receipt_id};
use assay_core::request::{Guide, Prompt, Request, Tool, sampler_seed};
use assay_core::text::TextOpening;
use assay_core::transcript::{NonceSource, Transcript};
use assay_engine::artifact::Artifact;
use assay_engine::batch::{Answer, Event as EngineEvent, Job, SubmitError};
use assay_engine::constants::Constants as _;
use assay_engine::text::tools::CallFinder;
use axum::Router;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::key::NodeKey;
use crate::secret;
use crate::serving::{Running, ServedModel, Watched, Withdrawn};
use crate::store::{ReceiptStore, Sequence};
use crate::till::{Paid, Ticket, Till};
use embedding::dimensions;
use teller::Teller;
pub use teller::call_id;

/// Pieces of text that may wait for a slow client before its request stops drawing from the engine's queue.
const PIECES: usize = 64;
/// When to come back to a full queue.
const RETRY_AFTER_S: u32 = 1;

/// A node that answers.
pub struct Provider {
    models: RwLock<Vec<Arc<ServedModel>>>,
    /// Models of which nothing can be executed yet.
    expected: RwLock<Vec<stock::Expected>>,
    key: Arc<NodeKey>,
    store: Arc<ReceiptStore>,
    created: u64,
    threads: u32,
    price: Option<Price>,
    /// Where the client withholds its consent to audits.
    price_private: Option<Price>,
    till: Option<Arc<Till>>,
    /// What is counted beside answers.
    shown: OnceLock<Registry>,
}

impl Provider {
    /// A provider of `models`, which must have different names. `created` is in seconds since 1970, for model lists.
    pub fn new(
        models: Vec<ServedModel>,
        key: NodeKey,
        store: ReceiptStore,
        created: u64,
        threads: u32,
    ) -> Provider {
        let models = RwLock::new(models.into_iter().map(Arc::new).collect());
        let (key, store) = (Arc::new(key), Arc::new(store));
        Provider {
            models,
            expected: RwLock::default(),
            key,
            store,
            created,
            threads,
            price: None,
            price_private: None,
            till: None,
            shown: OnceLock::new(),
        }
    }

    /// Says this price beside every model. It is advertised here, and charged by gateways; without a till, not by the node.
    pub fn advertising(self, price: Option<Price>) -> Provider {
        Provider { price, ..self }
    }

    /// Answers only who pays this price by vouchers that the till takes.
    pub fn settling(self, till: Arc<Till>, price: Price) -> Provider {
        Provider { price: Some(price), till: Some(till), ..self }
    }

    /// Shows these metrics beside those of its answers: those of its settlement. What is shown once stays.
    pub fn show(&self, metrics: Registry) {
        let _ = self.shown.set(metrics);
    }

    /// Answers for this price also where the client withholds its consent to audits. Without one, a provider that has a price refuses that; a free
    /// one does not.
    pub fn private(self, price: Option<Price>) -> Provider {
        Provider { price_private: price, ..self }
    }

    /// What a request with this consent costs.
    fn price_for(&self, consent: Consent, model: &ServedModel) -> Result<Option<Price>, Refusal> {
        let asked = || model.artifact().provenance().name.clone();
        price::asked(self.price, self.price_private, consent)
            .ok_or_else(|| Refusal::ConsentRequired { asked: asked() })
    }

    /// The routes by which gateways see what is offered and send orders.
    pub fn relay(self: &Arc<Provider>) -> Router {
        let key = Arc::clone(&self.key);
        let sign: OfferSigner = Box::new(move |hash| key.sign_hash(hash).ok());
        let options = RelayOptions { settles: self.settles(), ..RelayOptions::default() };
        Relay::new(Arc::clone(self), self.key.address(), sign, options).routes()
    }

    /// Who signs.
    pub fn address(&self) -> NodeAddress {
        self.key.address()
    }

    /// Answers on disk.
    pub fn store(&self) -> &Arc<ReceiptStore> {
        &self.store
    }

    /// Takes the payment of a request with so many tokens at this price, if this node is paid.
    async fn admit(
        &self,
        caller: &Caller,
        price: Option<Price>,
        prompt_tokens: u32,
        completion_tokens_max: u32,
    ) -> Result<Option<Ticket>, Refusal> {
        let (Some(till), Some(price)) = (&self.till, price) else { return Ok(None) };
        let most = price.fee(prompt_tokens, completion_tokens_max);
        till.admit(caller.payment.as_deref(), most).await.map(Some)
    }

    async fn start(&self, order: Order) -> Result<Generation, Refusal> {
        let Order { request, nonce, request_id, caller } = order;
        let model = self.model(request.model)?;
        let price = self.price_for(request.audit, &model)?;
        alone(&caller)?;
        request
            .check()
            .map_err(|e| Refusal::Invalid { param: e.param.to_owned(), message: e.to_string() })?;
        if model.is_encoder() {
            return Err(wrong_task(&model, "embeds texts; POST /v1/embeddings"));
        }
        let program = model.artifact().program().program();
        let (vocabulary, window) = (program.vocabulary, program.context);
        if let Some((id, _)) = request.sampling.bias.iter().find(|(id, _)| *id >= vocabulary) {
            let message =
                format!("token id {id} of `logit_bias` is not below the vocabulary of {vocabulary}");
            return Err(Refusal::Invalid { param: "logit_bias".into(), message });
        }
        let tokenizer = Arc::clone(model.tokenizer());
        // Rendering and tokenising a long prompt and compiling a grammar take a while: not on a thread that serves others.
        let (request, prompt, guide) = tokio::task::spawn_blocking(move || {
            let ids = tokenizer.encode_prompt(&request.prompt);
            let guide = request.guide.as_ref().map(|g| tokenizer.guide(g, tools(&request)));
            (request, ids, guide.transpose())
        })
        .await
        .map_err(internal)?;
        let prompt =
            prompt.map_err(|e| Refusal::Invalid { param: prompt_param(&request), message: e.to_string() })?;
        let guide =
            guide.map_err(|e| Refusal::Invalid { param: guide_param(&request), message: e.to_string() })?;

        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        if prompt_tokens >= window {
            // Whoever pays hears of this before its voucher is judged.
            return Err(Refusal::ContextExceeded { prompt: prompt_tokens, window });
        }
        let left = window - prompt_tokens;
        let longest = if request.max_tokens == 0 { left } else { request.max_tokens.min(left) };
        let ticket = self.admit(&caller, price, prompt_tokens, longest).await?;

        let (nonce, nonce_source) = match (nonce, request.sampling.seed) {
            // A nonce that is what the seed would have made it is no other choice: one answer has one transcript.
            (Some(Nonce::ZERO), Some(_)) | (None, Some(_)) => (Nonce::ZERO, NonceSource::Seed),
            (Some(nonce), _) => (nonce, NonceSource::Client),
            (None, None) => (random_nonce(), NonceSource::Provider),
        };
        let store = Arc::clone(&self.store);
        let sequence = tokio::task::spawn_blocking(move || store.reserve_sequence())
            .await
            .map_err(internal)?
            .map_err(internal)?;
        let request_hash = request.hash();
        let seed = sampler_seed(nonce, request_hash, request.model);
        let span = execution(traces::asked(&request.prompt), &model);
        span.limited(request.max_tokens);
        let started = Instant::now();
        let job = |id| Job {
            id,
            prompt,
            sampling: request.sampling.clone(),
            seed,
            max_tokens: request.max_tokens,
            stop: request.stop.clone(),
            guide,
            logprobs: request.logprobs,
        };
        let standing = model.standing();
        let name = model.artifact().provenance().name.clone();
        let running = model.submit(job).await.map_err(|e| match standing.withdrawn() {
            Some(withdrawn) => no_receipt(&name, withdrawn),
            None => refusal(e, &request),
        })?;
        let receipt_id = receipt_id(self.key.address(), sequence.number(), request_hash);
        let class = Class::held(request.audit, ticket.is_some());
        // With tools that may be called, calls are told from text.
        let finder = matches!(request.guide, Some(Guide::Tools { .. }))
            .then(|| CallFinder::new(model.tokenizer().call_syntax(), tools(&request)));
        let teller = Teller::new(Arc::clone(model.tokenizer()), finder, receipt_id);
        let answering = Answering {
            teller,
            name,
            standing,
            key: Arc::clone(&self.key),
            store: Arc::clone(&self.store),
            price,
            ticket,
            request,
            nonce,
            nonce_source,
            sequence,
            started,
            admitted: None,
            first: None,
            cached_tokens: 0,
            threads: self.threads,
            kernel: model.kernel().name(),
            request_id,
            span,
        };
        let (events, receiver) = mpsc::channel(PIECES);
        // Owned by the request: it ends with the answer, or when the client's receiver is gone.
        let stop = Stop::default();
        tokio::spawn(answering.forward(running, events, stop.clone()));
        let source = Some(Source { provider: self.key.address(), price, class, second: None });
        Ok(Generation { receipt_id, prompt_tokens, source, stop, events: receiver })
    }
}

/// The span of an execution, below the request's: queue, prefill and decode are below it.
fn execution(operation: &'static str, model: &ServedModel) -> Span {
    let above = traces::current();
    if !above.is_on() {
        return Span::default();
    }
    let name = &model.artifact().provenance().name;
    let span = above.child(SpanKind::Internal, format!("{operation} {name}"));
    span.does(operation, name);
    span.set("assay.kernel", model.kernel().name());
    span
}

fn internal(e: impl std::fmt::Display) -> Refusal {
    Refusal::Internal { message: e.to_string() }
}

fn no_receipt(model: &str, withdrawn: Withdrawn) -> Refusal {
    Refusal::ModelWithdrawn { model: model.to_owned(), reason: withdrawn.to_string() }
}

fn prompt_param(request: &Request) -> String {
    match request.prompt {
        Prompt::Chat { .. } => "messages".to_owned(),
        _ => "prompt".to_owned(),
    }
}

fn refusal(e: SubmitError, request: &Request) -> Refusal {
    match e {
        SubmitError::PromptTooLong { prompt, window } => Refusal::ContextExceeded {
            prompt: u32::try_from(prompt).unwrap_or(u32::MAX),
            window: u32::try_from(window).unwrap_or(u32::MAX),
        },
        SubmitError::QueueFull { .. } => Refusal::Busy { retry_after_s: RETRY_AFTER_S },
        SubmitError::PromptEmpty | SubmitError::TokenUnknown { .. } => {
            Refusal::Invalid { param: prompt_param(request), message: e.to_string() }
        }
        SubmitError::CacheTooSmall { .. } => {
            Refusal::Invalid { param: "max_tokens".into(), message: e.to_string() }
        }
    }
}

fn random_nonce() -> Nonce {
    Nonce::from_bytes(secret::draw())
}

/// The tools of a request.
fn tools(request: &Request) -> &[Tool] {
    match &request.prompt {
        Prompt::Chat { tools, .. } => tools,
        Prompt::Text(_) | Prompt::Tokens(_) => &[],
    }
}

fn guide_param(request: &Request) -> String {
    match request.guide {
        Some(Guide::Tools { .. }) => "tools".to_owned(),
        _ => "response_format".to_owned(),
    }
}

/// A node is one provider.
fn alone(caller: &Caller) -> Result<(), Refusal> {
    if caller.class != Class::Full {
        return Ok(());
    }
    let reason = "`full` takes two providers, and this node is one: ask a gateway, or send `sampled`";
    Err(Refusal::Unsupported { param: "x-assay-verification".into(), reason: reason.into() })
}

fn wrong_task(model: &ServedModel, what: &str) -> Refusal {
    let name = &model.artifact().provenance().name;
    Refusal::Invalid { param: "model".into(), message: format!("model `{name}` {what}") }
}

fn task(artifact: &Artifact) -> Task {
    dimensions(artifact).map_or(Task::Generate, |dimensions| Task::Embed { dimensions })
}

/// One answer on its way to the client.
struct Answering {
    teller: Teller,
    /// The model's name.
    name: String,
    standing: Watched,
    key: Arc<NodeKey>,
    store: Arc<ReceiptStore>,
    price: Option<Price>,
    /// Out of which it is paid.
    ticket: Option<Ticket>,
    request: Request,
    nonce: Nonce,
    nonce_source: NonceSource,
    /// Held until the record is stored: as long as it is, its number is no gap in an epoch.
    sequence: Sequence,
    started: Instant,
    /// When it left the queue.
    admitted: Option<Instant>,
    first: Option<Instant>,
    /// Tokens of the prompt that were not executed for it.
    cached_tokens: u32,
    threads: u32,
    kernel: &'static str,
    request_id: String,
    span: Span,
}

impl Answering {
    /// Passes events on until the answer ends. A client that is gone drops `running`, which cancels the job; if the answer was asked to stop, it ends with
    /// its receipt, whether anybody listens or not.
    async fn forward(mut self, mut running: Running, events: mpsc::Sender<Event>, stop: Stop) {
        let mut stopped = false;
        loop {
            let event = tokio::select! {
                biased;
                () = stop.asked(), if !stopped => {
                    stopped = true;
                    running.stop();
                    continue;
                }
                () = events.closed(), if !stopped => return,
                event = running.events.recv() => event,
            };
            let last = match event {
                // It waited for its place.
                None if stopped && self.admitted.is_none() => return,
                None => Event::Failed(match self.standing.withdrawn() {
                    Some(withdrawn) => no_receipt(&self.name, withdrawn),
                    None => internal("the engine stopped; see the server's log"),
                }),
                Some(EngineEvent::Admitted) => {
                    self.admitted = Some(Instant::now());
                    continue;
                }
                Some(EngineEvent::Started { cached_tokens }) => {
                    self.first = Some(Instant::now());
                    self.cached_tokens = cached_tokens;
                    continue;
                }
                Some(EngineEvent::Token { id, text, logprobs }) => {
                    for event in self.teller.token(id, &text, logprobs) {
                        // Who is gone is seen above.
                        let _ = events.send(event).await;
                    }
                    continue;
                }
                Some(EngineEvent::Rest(text)) => {
                    for event in self.teller.rest(text) {
                        let _ = events.send(event).await;
                    }
                    continue;
                }
                Some(EngineEvent::Done(answer)) => {
                    for event in self.teller.finish() {
                        let _ = events.send(event).await;
                    }
                    // Nobody signs what a model has computed that may not be the one that it says.
                    let settled = tokio::select! {
                        biased;
                        settled = self.standing.settled() => settled,
                        () = stop.asked(), if !stopped => self.standing.settled().await,
                        () = events.closed(), if !stopped => return,
                    };
                    match settled {
                        Ok(()) => self.conclude(*answer).await,
                        Err(withdrawn) => Event::Failed(no_receipt(&self.name, withdrawn)),
                    }
                }
            };
            // A client that left in this moment finds its receipt on the receipts route.
            let _ = events.send(last).await;
            return;
        }
    }

    /// Signs and stores; the end of the answer is reported only after its record is durable.
    async fn conclude(self, answer: Answer) -> Event {
        let (request_id, span) = (self.request_id.clone(), self.span.clone());
        let cached_tokens = self.cached_tokens;
        let executed = Instant::now();
        let first = self.first.unwrap_or(executed);
        let admitted = self.admitted.unwrap_or(first);
        span.past("queue", self.started, admitted);
        span.past("prefill", admitted, first);
        span.past("decode", first, executed);
        let done = tokio::task::spawn_blocking(move || self.record(answer)).await;
        match done {
            Ok(Ok(record)) => {
                let usage = record.transcript.usage();
                span.past("sign and store", executed, Instant::now());
                span.used(usage.prompt_tokens, usage.completion_tokens);
                span.responds(&record.receipt.receipt.id());
                Event::End { stop: record.transcript.stop, usage, cached_tokens, record: Arc::new(record) }
            }
            Ok(Err(message)) => {
                tracing::error!(request_id, message, "an answer could not be receipted");
                span.fail("no_receipt");
                Event::Failed(Refusal::Internal { message })
            }
            Err(e) => Event::Failed(internal(e)),
        }
    }

    fn record(self, answer: Answer) -> Result<AnswerRecord, String> {
        let ended = Instant::now();
        let first = self.first.unwrap_or(ended);
        let nanoseconds =
            |from: Instant, to: Instant| u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
        let transcript = Transcript {
            request_hash: self.request.hash(),
            nonce: self.nonce,
            nonce_source: self.nonce_source,
            prompt_ids: answer.prompt,
            output_ids: answer.output,
            text: answer.text,
            stop: answer.stop,
            logprobs: answer.logprobs,
        };
        let usage = transcript.usage();
        let paid = Paid::by(self.ticket.as_ref(), payment::fee(self.price, &transcript));
        let receipt = Receipt {
            provider: self.key.address(),
            sequence: self.sequence.number(),
            model_root: self.request.model,
            request_hash: transcript.request_hash,
            transcript_root: transcript.root(),
            digest_root: answer.digests.root(),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            fee_micro_usd: paid.fee,
            payer_channel: paid.channel,
            client_nonce: self.nonce,
            epoch: paid.epoch,
        };
        let record = AnswerRecord {
            format: Format::V2,
            receipt: self.key.sign(receipt, paid.domain).map_err(|e| e.to_string())?,
            request: self.request,
            transcript,
            digests: answer.digests,
            generation: Some(GenerationCost {
                prefill_ns: nanoseconds(self.started, first),
                decode_ns: nanoseconds(first, ended),
                threads: self.threads,
                kernel: self.kernel.to_owned(),
            }),
        };
        let stored = Record::Answer(Box::new(record.clone()));
        paid.store(&self.store, &stored)?;
        Ok(record)
    }
}

impl Inference for Provider {
    fn models(&self) -> Vec<ModelCard> {
        self.served()
            .iter()
            .map(|m| {
                let a = m.artifact();
                ModelCard {
                    id: a.provenance().name.clone(),
                    root: a.root(),
                    created: self.created,
                    owned_by: "assay".to_owned(),
                    context_length: a.program().program().context,
                    profile: a.profile().name().to_owned(),
                    bytes: a.len() as u64,
                    has_chat_template: a.text().has_chat_template,
                    task: task(a),
                    parameters: a.parameters(),
                    aliases: vec![],
                    price: self.price,
                    price_private: self.price_private,
                }
            })
            .collect()
    }

    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        self.start(order).await
    }

    async fn embed(&self, order: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        self.embed_texts(order).await
    }

    async fn count_tokens(&self, model: ModelRoot, prompt: Prompt) -> Result<u32, Refusal> {
        let model = self.model(model)?;
        let tokenizer = Arc::clone(model.tokenizer());
        let ids = tokio::task::spawn_blocking(move || tokenizer.encode_prompt(&prompt)).await;
        let ids = ids.map_err(internal)?;
        let ids = ids.map_err(|e| Refusal::Invalid { param: "messages".into(), message: e.to_string() })?;
        Ok(u32::try_from(ids.len()).unwrap_or(u32::MAX))
    }

    async fn text(&self, model: ModelRoot) -> Option<TextOpening> {
        let model = self.model(model).ok()?;
        tokio::task::spawn_blocking(move || model.show_text()).await.ok()?
    }

    async fn receipt(&self, id: ReceiptId) -> Result<Option<Record>, Refusal> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.get(id)).await.map_err(internal)?.map_err(internal)
    }

    fn load(&self) -> Load {
        let mut total = Load { running: 0, waiting: 0, kv_cache_used_ppm: 0, ready: false };
        let models = self.served();
        total.ready = !models.is_empty();
        let (mut used, mut limit) = (0u64, 0u64);
        for m in &models {
            let load = m.load();
            total.running += load.running as u32;
            total.waiting += load.waiting as u32;
            used += load.cache_bytes as u64;
            limit += m.limits().cache_bytes_max as u64;
        }
        total.kv_cache_used_ppm = (used * 1_000_000).checked_div(limit).unwrap_or(0) as u32;
        total
    }

    fn metrics(&self, text: &mut String) {
        spared::tell(&self.served(), text);
        if let Some(shown) = self.shown.get() {
            // Writing to a string does not fail.
            let _ = prometheus_client::encoding::text::encode_registry(text, shown);
        }
    }

    fn settles(&self) -> Option<Domain> {
        self.till.as_ref().map(|till| till.receipts())
    }

    async fn channel(&self, id: ChannelId) -> Option<ChannelState> {
        self.till.as_ref()?.channel(id).await
    }

    fn arriving(&self) -> Vec<assay_api::Arriving> {
        self.on_their_way()
    }
}
