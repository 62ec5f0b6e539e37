//! The network as one [`Inference`]: each request is given to a provider, and to another one if that fails before anything came.
//!
//! A request's way: 1. its key may begin it (`accounts`), or the payment that came with it is reserved (`callers`), and the most that it can cost is set aside; 2. providers are ranked (`routing`); 3. the
//! first is asked, with a voucher if it is paid (`lanes`), and if nothing has come within its patience, the next one too: the first that gives
//! something answers, the others are taken back; 4. the record is checked against the request, the provider's key, the text that was told and the
//! price that was offered; 5. what it costs is charged, and only then does the answer end. Whatever fails before costs the client nothing.
//!
//! It refuses to judge whether a model computed the answer: that is what receipts and audits are for.

mod attempt;
mod kept;
mod metrics;
mod money;
mod opening;
mod resume;
mod telling;
mod twice;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy_primitives::{B128, B256};
use assay_api::relay::{Destination, Frame, RelayClient, Work};
use assay_api::{
    Caller, Class, EmbeddingOrder, Generation, Inference, Load, ModelCard, Order, Owner, Refusal, Settlement,
    Source, Stop, Task, traces,
};
use assay_core::authorization::Authorization;
use assay_core::consent::Consent;
use assay_core::embedding::{EmbeddingRecord, EmbeddingRequest, Record};
use assay_core::id::{Hash, ModelRoot, NodeAddress, Nonce, ReceiptId};
use assay_core::keccak::keccak256;
use assay_core::offer::{Offer, OfferedModel};
use assay_core::price::Price;
use assay_core::request::Prompt;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use self::attempt::{Candidate, Nothing, Question, Whole, race};
use self::kept::{Kept, Records};
use self::metrics::Metrics;
use self::money::Purse;
use self::opening::{OTHER_ANSWER, Opening};
use self::resume::Told;
use self::telling::{Telling, agreed};
use crate::accounts::Accounts;
use crate::callers::{self, Callers};
use crate::lanes::payer::Payer;
use crate::queue::{Queue, QueueOptions, Turn};
use crate::routing::{BUSY_MS, Outcome, Routing, Want};

/// Clocks of providers and gateways may differ by this much, in seconds.
const SKEW_S: u64 = 60;
/// Models of which one provider is asked at once what ends their answers; it is asked for others the next time.
const SHOWN_AT_ONCE: usize = 8;
/// Pieces of text that may wait for a slow client.
const PIECES: usize = 64;
/// Characters of a prompt's beginning by which requests are recognised as alike.
const BEGINNING_CHARS: usize = 1024;
/// Tokens of an answer that a request without `max_tokens` is expected to have.
const TOKENS_EXPECTED: u32 = 256;

/// How the gateway asks.
#[derive(Clone, Copy, Debug)]
pub struct NetworkOptions {
    /// The least time that a provider is waited for before the next one is asked too.
    pub patience: Duration,
    /// Silence after which a provider is given up in the middle of an answer; it says at least that it is there.
    pub silence: Duration,
    /// How long the end of an answer is waited for that its provider was asked to stop: as long as a pass of its engine may take, and the way there and back.
    /// What has not ended by then costs the client nothing.
    pub stopped: Duration,
    /// Providers that are asked for one request at the same time or after each other before one answers, at most; and as many times an answer
    /// that breaks off is gone on with by another one.
    pub attempts_max: usize,
    /// How requests wait where all providers are busy.
    pub queue: QueueOptions,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        NetworkOptions {
            patience: Duration::from_secs(5),
            silence: Duration::from_secs(20),
            stopped: Duration::from_secs(10),
            attempts_max: 3,
            queue: QueueOptions::default(),
        }
    }
}

/// The network, as far as this gateway knows it.
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    client: RelayClient,
    routing: Mutex<Routing>,
    endpoints: Arc<Mutex<BTreeMap<NodeAddress, String>>>,
    accounts: Option<Accounts>,
    /// How somebody without an account pays.
    callers: Option<Arc<Callers>>,
    /// Without one, only providers are asked that want no payment.
    payer: Option<Arc<Payer>>,
    records: Mutex<Records>,
    /// Where records that differ are kept.
    differing: Option<PathBuf>,
    /// Ids that end an answer of a model, as its root has them.
    ends: Mutex<BTreeMap<ModelRoot, Arc<[u32]>>>,
    queue: Arc<Queue>,
    metrics: Metrics,
    /// What daemons beside it count.
    beside: Vec<Registry>,
    options: NetworkOptions,
    started: Instant,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn now_s() -> u64 {
    now().as_secs()
}

impl Inner {
    /// Milliseconds of a clock that never goes back, beside the time of day that offers are dated by.
    fn clock_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn routing(&self) -> std::sync::MutexGuard<'_, Routing> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn destination(&self, provider: NodeAddress) -> Option<Destination> {
        let endpoint = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).get(&provider)?.clone();
        let routing = self.routing();
        let sealing_key = routing.offers().find(|o| o.provider == provider)?.sealing_key;
        Some(Destination { endpoint, provider, sealing_key })
    }

    /// Reads an endpoint's offer. The provider behind it, or why there is none.
    async fn refresh(&self, endpoint: &str) -> Result<NodeAddress, String> {
        let signed = self.client.offer(endpoint).await.map_err(|e| e.to_string())?;
        let offer = signed.verified(now_s(), SKEW_S).map_err(|e| e.to_string())?;
        let provider = offer.provider;
        self.learn(endpoint, &offer).await;
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(provider, endpoint.trim_end_matches('/').to_owned());
        self.routing().offered(offer);
        Ok(provider)
    }

    /// Has a provider show what ends the answers of its models, where nobody has shown it before.
    async fn learn(&self, endpoint: &str, offer: &Offer) {
        let unknown = offer.models.iter().filter(|m| m.dimensions.is_none() && self.ends(m.root).is_none());
        let shown = unknown.take(SHOWN_AT_ONCE).map(|model| async move {
            let opening = self.client.text(endpoint, model.root).await.map_err(|e| e.to_string())?;
            let text = opening.verified(model.root).map_err(|e| e.to_string())?;
            Ok::<_, String>((model.root, text.end_tokens.into()))
        });
        for shown in futures_util::future::join_all(shown).await {
            match shown {
                Ok((root, ends)) => {
                    self.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(root, ends);
                }
                Err(reason) => {
                    tracing::info!(endpoint, reason, "does not show what ends its model's answers")
                }
            }
        }
    }

    /// The ids that end a model's answers, if somebody has shown them.
    fn ends(&self, model: ModelRoot) -> Option<Arc<[u32]>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).get(&model).cloned()
    }

    fn records(&self) -> std::sync::MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a provider asks for a model now, by the client's consent; nothing if it does not offer that.
    fn price(&self, provider: NodeAddress, model: ModelRoot, consent: Consent) -> Option<Option<Price>> {
        let routing = self.routing();
        let offer = routing.offers().find(|offer| offer.provider == provider)?;
        offer.models.iter().find(|m| m.root == model)?.price_for(consent)
    }

    /// Who is asked, the best first.
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        let mut able = self.able(want);
        able.truncate(self.options.attempts_max);
        able
    }

    /// Who can be asked, the best first: those that can be paid, or want no payment.
    fn able(&self, want: &Want) -> Vec<Candidate> {
        let ours = self.payer.as_ref().map(|payer| payer.receipts());
        let routing = self.routing();
        let settles: HashMap<_, _> = routing.offers().map(|offer| (offer.provider, offer.settles)).collect();
        let able = routing.rank(want, self.clock_ms()).into_iter().filter_map(|(provider, price)| {
            let settles = settles.get(&provider).copied().flatten().filter(|_| price.is_some());
            let payable = settles.is_none() || settles == ours;
            payable.then_some(Candidate { provider, price, paid: settles.is_some() })
        });
        able.collect()
    }

    /// An attempt that began is over.
    fn ended(&self, provider: NodeAddress, want: &Want, outcome: Outcome) {
        self.metrics.attempt(outcome);
        let now_ms = self.clock_ms();
        self.routing().ended(provider, want, outcome, now_ms);
    }

    /// Waits until the caller's key has its turn.
    async fn turn(&self, caller: &Caller) -> Result<Turn, Refusal> {
        let key = match (&caller.behalf, &caller.key, &caller.authorization) {
            // Who waits for a batch waits behind its own requests too.
            (Some(owner), _, _) => keccak256(&[owner.key.as_bytes()]),
            (None, Some(key), _) => keccak256(&[key.reveal().as_bytes()]),
            (None, None, Some(paid)) => keccak256(&[paid.payer.as_bytes()]),
            (None, None, None) => Hash::ZERO,
        };
        self.queue.turn(key).await.map_err(|_| Refusal::Busy { retry_after_s: 1 })
    }

    /// Who pays by signature, if the caller is to: it has sent no key.
    fn caller(&self, caller: &Caller) -> Option<&Arc<Callers>> {
        self.callers.as_ref().filter(|_| caller.key.is_none() && caller.behalf.is_none())
    }

    /// Leaves only those who want nothing, if there are any and the caller has sent no payment.
    fn free(&self, caller: &Caller, want: &mut Want) -> bool {
        let Ok(nothing) = Price::new(0, 0) else { return false };
        let free = Want { ceiling: Some(nothing), ..*want };
        let takes = caller.authorization.is_none() && !self.candidates(&free).is_empty();
        if takes {
            *want = free;
        }
        takes
    }

    /// A model of some offer.
    fn offered(&self, model: ModelRoot) -> Option<OfferedModel> {
        self.routing().offers().flat_map(|o| &o.models).find(|m| m.root == model).cloned()
    }
}

impl Network {
    /// A network of nobody yet. With `accounts`, requests need keys and are charged; without, everyone may ask.
    pub fn new(accounts: Option<Accounts>, options: NetworkOptions) -> Network {
        let queue = Arc::new(Queue::new(options.queue));
        let metrics = Metrics::new(&queue, accounts.as_ref().map(Accounts::tally));
        let inner = Inner {
            client: RelayClient::new(),
            routing: Mutex::default(),
            endpoints: Arc::default(),
            accounts,
            callers: None,
            payer: None,
            records: Mutex::default(),
            differing: None,
            ends: Mutex::default(),
            queue,
            metrics,
            beside: Vec::new(),
            options,
            started: Instant::now(),
        };
        Network { inner: Arc::new(inner) }
    }

    /// Pays providers that want to be paid on the payer's ledger.
    pub fn paying(mut self, payer: Arc<Payer>) -> Network {
        let inner = Arc::get_mut(&mut self.inner).expect("nothing runs yet");
        inner.metrics.paying(&payer);
        inner.payer = Some(payer);
        self
    }

    /// Answers also who sends no key and pays by a signature, and who sends neither where a provider wants nothing.
    pub fn calling(mut self, callers: Arc<Callers>) -> Network {
        Arc::get_mut(&mut self.inner).expect("nothing runs yet").callers = Some(callers);
        self
    }

    /// Shows among its own metrics what a daemon beside it counts.
    pub fn beside(mut self, registry: Registry) -> Network {
        Arc::get_mut(&mut self.inner).expect("nothing runs yet").beside.push(registry);
        self
    }

    /// Where providers are reached, as far as it is known when that is asked.
    pub fn endpoints(&self) -> impl Fn(NodeAddress) -> Option<String> + Send + Sync + 'static {
        let endpoints = Arc::clone(&self.inner.endpoints);
        move |provider| endpoints.lock().unwrap_or_else(PoisonError::into_inner).get(&provider).cloned()
    }

    /// Reads the offers of endpoints, all at the same time. Which of them gave none, and why.
    pub async fn refresh(&self, endpoints: &[String]) -> Vec<(String, String)> {
        let reads = endpoints.iter().map(|endpoint| async move {
            let read = self.inner.refresh(endpoint).await;
            read.err().map(|reason| (endpoint.clone(), reason))
        });
        let failed = futures_util::future::join_all(reads).await;
        let offered: BTreeSet<ModelRoot> = {
            let mut routing = self.inner.routing();
            routing.forget(now_s());
            routing.offers().flat_map(|offer| &offer.models).map(|model| model.root).collect()
        };
        let mut ends = self.inner.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.retain(|root, _| offered.contains(root));
        drop(ends);
        failed.into_iter().flatten().collect()
    }

    /// Takes what is publicly known of providers: standings from 0 to a million, and who was proved to lie, and is asked no more.
    pub fn stand(&self, standings: BTreeMap<NodeAddress, u32>, struck: BTreeSet<NodeAddress>) {
        self.inner.routing().stand(standings, struck);
    }

    /// What is known of providers, with their endpoints.
    pub fn providers(&self) -> Vec<(NodeAddress, String, Offer, crate::routing::Standing)> {
        let endpoints = self.inner.endpoints.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let routing = self.inner.routing();
        let known = routing.offers().filter_map(|offer| {
            let endpoint = endpoints.get(&offer.provider)?.clone();
            Some((offer.provider, endpoint, offer.clone(), routing.standing(offer.provider)?))
        });
        known.collect()
    }

    /// Releases what gateways that died have set aside. To be called now and then.
    pub async fn expire(&self) {
        if let Some(accounts) = &self.inner.accounts
            && let Err(e) = accounts.expire(money::now_ms()).await
        {
            tracing::warn!(code = e.code(), reason = %e, "holds that are over could not be released");
        }
    }

    /// Gives back what is set aside for requests to come. To be called when none come any more.
    pub async fn close(&self) {
        if let Some(accounts) = &self.inner.accounts
            && let Err(e) = accounts.close().await
        {
            tracing::warn!(code = e.code(), reason = %e, "what is set aside for keys could not be given back");
        }
    }
}

/// What a request asks of the network.
fn want(model: ModelRoot, audit: Consent, caller: &Caller, max_tokens: u32, prompt: Option<&Prompt>) -> Want {
    let tokens = if max_tokens == 0 { TOKENS_EXPECTED } else { max_tokens.min(TOKENS_EXPECTED) };
    Want { model, ceiling: caller.ceiling, audit, tokens, beginning: prompt.and_then(beginning) }
}

/// What requests with the same beginning have in common: who has seen one may have its cache.
fn beginning(prompt: &Prompt) -> Option<Hash> {
    let text = match prompt {
        Prompt::Chat { messages, .. } => messages.first().map(|m| m.content.as_str())?,
        Prompt::Text(text) => text,
        Prompt::Tokens(_) => return None,
    };
    let end = text.char_indices().nth(BEGINNING_CHARS).map_or(text.len(), |(at, _)| at);
    text.get(..end).map(|text| keccak256(&[text.as_bytes()]))
}

/// Whether a place may become free for a request that was refused for this.
fn may_wait(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Busy { .. } | Refusal::Draining | Refusal::NoLane { .. })
}

fn terms(caller: &Caller) -> String {
    caller
        .ceiling
        .map(|ceiling| format!(" at {ceiling} dollars a million tokens or less"))
        .unwrap_or_default()
}

fn card(model: &OfferedModel, created: u64) -> ModelCard {
    ModelCard {
        id: model.name.clone(),
        root: model.root,
        created,
        owned_by: "assay".to_owned(),
        context_length: model.context_length,
        profile: model.profile.clone(),
        bytes: model.bytes,
        has_chat_template: model.has_chat_template,
        task: model.dimensions.map_or(Task::Generate, |dimensions| Task::Embed { dimensions }),
        parameters: model.parameters,
        aliases: vec![model.root.to_string()],
        price: model.price,
        price_private: model.price_private,
    }
}

impl Inference for Network {
    /// All models that are offered, each root once with its lowest price. A name that providers use for several models stands for none of them:
    /// those are asked for by their roots.
    fn models(&self) -> Vec<ModelCard> {
        let routing = self.inner.routing();
        let mut cards: BTreeMap<ModelRoot, ModelCard> = BTreeMap::new();
        let cost = |price: Option<Price>| price.map_or(0, |p| p.input().saturating_add(p.output()));
        for offer in routing.offers() {
            for model in &offer.models {
                let new = card(model, offer.issued_s);
                let known = cards.entry(model.root).or_insert_with(|| new.clone());
                if cost(new.price) < cost(known.price) {
                    known.price = new.price;
                }
                let private = [known.price_private, new.price_private].into_iter().flatten();
                known.price_private = private.min_by_key(|price| cost(Some(*price)));
                known.created = known.created.min(new.created);
            }
        }
        let mut names: HashMap<String, u32> = HashMap::new();
        cards.values().for_each(|c| *names.entry(c.id.clone()).or_default() += 1);
        for card in cards.values_mut() {
            if names.get(&card.id).is_some_and(|count| *count > 1) {
                card.id = format!("{}@{}", card.id, card.root.short());
            }
        }
        cards.into_values().collect()
    }

    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        if order.caller.class == Class::Full {
            return self.twice(order).await;
        }
        let inner = &self.inner;
        let Order { request, nonce, request_id, caller } = order;
        let mut want = want(request.model, request.audit, &caller, request.max_tokens, Some(&request.prompt));
        let model = inner.offered(request.model);
        let model = model.ok_or(Refusal::UnknownModel { asked: request.model.to_string() })?;
        let candidates = inner.candidates(&want);
        if candidates.is_empty() {
            return Err(Refusal::NoProvider { asked: model.name, terms: terms(&caller) });
        }
        let price = candidates
            .iter()
            .filter_map(|candidate| candidate.price)
            .reduce(|a, b| Price::new(a.input().max(b.input()), a.output().max(b.output())).unwrap_or(a));
        let most = money::most(price, &request, model.context_length);
        let key = money::request_key(request.hash().as_bytes(), nonce.as_ref());
        let purse = match self.purse(&caller, &mut want, key, most).await? {
            Opening::Purse(purse) => purse,
            Opening::Told(generation) => return Ok(generation),
        };
        // What fixes the answer is the client's, or drawn here: another provider can go on with what one breaks off.
        let nonce =
            nonce.or_else(|| request.sampling.seed.is_none().then(|| Nonce::from_bytes(B256::random().0)));
        let work = Work::Generate { request: request.clone(), nonce };
        let window = model.context_length;
        let asked = Question { want: &want, request_id: &request_id, work: &work, window };
        let began = async {
            let mut turn = inner.turn(&caller).await?;
            let until = Instant::now() + inner.options.queue.wait;
            loop {
                match race(inner, &inner.candidates(&want), asked).await {
                    Ok(first) => {
                        turn.answered();
                        return Ok((first, turn));
                    }
                    Err(Some(refusal)) if may_wait(&refusal) && Instant::now() < until => {
                        turn = turn.busy(Duration::from_millis(BUSY_MS)).await.map_err(|_| refusal)?;
                    }
                    Err(Some(refusal)) => return Err(refusal),
                    Err(None) => {
                        let terms = ": none of those asked answered".into();
                        return Err(Refusal::NoProvider { asked: model.name.clone(), terms });
                    }
                }
            }
        };
        let (mut first, turn) = match began.await {
            Ok(began) => began,
            Err(refusal) => {
                inner.metrics.refused.inc();
                if let Some(purse) = purse {
                    purse.release().await;
                }
                return Err(refusal);
            }
        };
        let (events, receiver) = mpsc::channel(PIECES);
        let (receipt_id, prompt_tokens) = (first.receipt_id, first.prompt_tokens);
        let Candidate { provider, price, paid } = first.candidate;
        let class = Class::held(want.audit, paid);
        let source = Some(Source { provider, price, class, second: None });
        let stop = Stop::default();
        let telling = Telling {
            inner: Arc::clone(inner),
            want,
            request,
            work,
            request_id,
            window,
            model: model.name,
            purse,
            paying: first.paying.take(),
            named: receipt_id,
            told: Told::default(),
            kept: Vec::new(),
            leg: None,
            stop: stop.clone(),
            left: false,
            _turn: Some(turn),
        };
        // Owned by the request: it ends with the answer, or when the client's receiver is gone.
        traces::current().spawn(telling.forward(first, events));
        Ok(Generation { receipt_id, prompt_tokens, source, stop, events: receiver })
    }

    async fn embed(&self, order: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        let inner = &self.inner;
        let EmbeddingOrder { request, request_id, caller } = order;
        if caller.class == Class::Full {
            let reason =
                "vectors are made by one provider; send `sampled`, or execute them again with `assay verify`";
            return Err(Refusal::Unsupported { param: "x-assay-verification".into(), reason: reason.into() });
        }
        let mut want = want(request.model, request.audit, &caller, 1, None);
        let model = inner.offered(request.model);
        let model = model.ok_or(Refusal::UnknownModel { asked: request.model.to_string() })?;
        let candidates = inner.candidates(&want);
        let price = candidates.iter().filter_map(|candidate| candidate.price).max();
        let texts = u32::try_from(request.inputs.len()).unwrap_or(u32::MAX);
        let most = price.map_or(0, |p| p.fee(texts.saturating_mul(model.context_length), 0));
        let key = money::request_key(request.hash().as_bytes(), None);
        let purse = match (&inner.accounts, inner.caller(&caller)) {
            (_, Some(_)) if most == 0 || inner.free(&caller, &mut want) => None,
            (_, Some(callers)) => match callers.reserve(&caller, key, most).await? {
                callers::Opened::Reserved(reserved) => Some(Purse::Caller(reserved)),
                callers::Opened::Told(told) => match told.record {
                    Record::Embedding(record) => return Ok(Arc::new(*record)),
                    Record::Answer(_) => return Err(Refusal::Internal { message: OTHER_ANSWER.into() }),
                },
            },
            (None, None) => None,
            (Some(accounts), None) => match Purse::open(accounts, &caller, key, most).await? {
                money::Opened::Purse(purse) => Some(purse),
                money::Opened::Told(told) => {
                    let Record::Embedding(record) = told.record else {
                        return Err(Refusal::Internal { message: OTHER_ANSWER.into() });
                    };
                    inner.metrics.repeated.inc();
                    return Ok(Arc::new(*record));
                }
                money::Opened::Answered(receipt) => {
                    if let Some(Kept { record: Record::Embedding(record), .. }) = inner.records().get(receipt)
                    {
                        inner.metrics.repeated.inc();
                        return Ok(Arc::new((**record).clone()));
                    }
                    Some(Purse::anew(accounts, &caller, key, most).await?)
                }
            },
        };
        let mut last = None;
        let work = Work::Embed { request: request.clone() };
        let window = model.context_length;
        let asked = Question { want: &want, request_id: &request_id, work: &work, window };
        let mut turn = match inner.turn(&caller).await {
            Ok(turn) => Some(turn),
            Err(refusal) => {
                last = Some(refusal);
                None
            }
        };
        let until = Instant::now() + inner.options.queue.wait;
        while let Some(mut held) = turn.take() {
            last = None;
            for candidate in inner.candidates(&want) {
                let whole = match attempt::whole(inner, candidate, asked).await {
                    Ok(whole) => whole,
                    Err(Nothing::Refused(refusal)) => {
                        last = Some(refusal);
                        break;
                    }
                    Err(nothing) => {
                        last = nothing.said(want.model).or(last);
                        continue;
                    }
                };
                let record = match embedded(&whole, &candidate, &request) {
                    Ok(record) => record,
                    Err(reason) => {
                        tracing::warn!(provider = %candidate.provider, reason, "gave no vectors that are taken");
                        whole.failed();
                        last = Some(Refusal::ProviderLost { reason });
                        continue;
                    }
                };
                held.answered();
                let fee = candidate.price.map_or(0, |p| p.fee(record.transcript.tokens(), 0));
                if let Some(paying) = whole.paying {
                    paying.settle(fee, &record.receipt);
                }
                if let Some(purse) = purse {
                    let told = || {
                        let record = Record::Embedding(record.clone());
                        Some(callers::Told { events: vec![], record, second: None })
                    };
                    purse.charge(fee, &record.receipt, candidate.provider, &model.name, told).await?;
                }
                let bytes = record.transcript.vectors.iter().map(|v| v.len() * 4).sum::<usize>() + 4096;
                let kept =
                    Kept { record: Record::Embedding(record.clone()), events: vec![], bytes, named: None };
                inner.records().keep(kept);
                inner.metrics.answered.inc();
                return Ok(Arc::new(*record));
            }
            if last.as_ref().is_some_and(may_wait) && Instant::now() < until {
                turn = held.busy(Duration::from_millis(BUSY_MS)).await.ok();
            }
        }
        inner.metrics.refused.inc();
        if let Some(purse) = purse {
            purse.release().await;
        }
        Err(last.unwrap_or(Refusal::NoProvider { asked: model.name, terms: terms(&caller) }))
    }

    async fn count_tokens(&self, model: ModelRoot, prompt: Prompt) -> Result<u32, Refusal> {
        // What is counted has no receipt, of which an auditor could hear.
        let want = want(model, Consent::Given, &Caller::default(), 1, None);
        let work = Work::CountTokens { model, prompt };
        let asked = Question { want: &want, request_id: "count", work: &work, window: 0 };
        let mut last = None;
        for candidate in self.inner.candidates(&want) {
            // Counting is free.
            let candidate = Candidate { paid: false, ..candidate };
            match attempt::whole(&self.inner, candidate, asked).await {
                Ok(Whole { frame: Frame::Counted(count), .. }) => return Ok(count),
                Ok(whole) => {
                    whole.failed();
                    last = Some(Refusal::ProviderLost { reason: "it answered something else".into() });
                }
                Err(Nothing::Refused(refusal)) => return Err(refusal),
                Err(nothing) => last = nothing.said(model).or(last),
            }
        }
        Err(last.unwrap_or(Refusal::NoProvider { asked: model.to_string(), terms: String::new() }))
    }

    /// A record that this gateway still holds: of the last answers, [`kept::RECORDS_BYTES_MAX`] in all. Providers keep theirs for ever.
    async fn receipt(&self, id: ReceiptId) -> Result<Option<Record>, Refusal> {
        Ok(self.inner.records().get(id).map(|kept| kept.record.clone()))
    }

    async fn settlement(&self, payment: &Authorization) -> Option<Settlement> {
        self.inner.callers.as_ref()?.settlement(payment).await
    }

    async fn owner(&self, caller: &Caller) -> Result<Owner, Refusal> {
        match &self.inner.accounts {
            Some(accounts) => money::owner(accounts, caller).await,
            None => Ok(Owner::default()),
        }
    }

    fn metrics(&self, text: &mut String) {
        self.inner.metrics.text(&self.inner, text);
    }

    fn load(&self) -> Load {
        let routing = self.inner.routing();
        let standings = routing.offers().filter_map(|o| routing.standing(o.provider));
        let running = standings.fold(0u32, |sum, s| sum.saturating_add(s.running));
        let waiting = u32::try_from(self.inner.queue.waiting()).unwrap_or(u32::MAX);
        Load { running, waiting, kv_cache_used_ppm: 0, ready: routing.offers().next().is_some() }
    }
}

/// The record of a request's vectors, if that is what came.
fn embedded(
    whole: &Whole,
    candidate: &Candidate,
    request: &EmbeddingRequest,
) -> Result<Box<EmbeddingRecord>, String> {
    let Frame::Embedded(record) = &whole.frame else { return Err("it answered something else".into()) };
    let bound = record.broken_bindings().is_empty()
        && record.request == *request
        && record.receipt.receipt.provider == candidate.provider;
    if !bound {
        return Err("its record is not of this request".into());
    }
    let fee = candidate.price.map_or(0, |p| p.fee(record.transcript.tokens(), 0));
    agreed(whole.paying.as_ref(), &record.receipt, fee)?;
    Ok(record.clone())
}

fn order_id() -> [u8; 16] {
    B128::random().0
}
