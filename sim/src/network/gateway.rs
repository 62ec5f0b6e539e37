//! The gateway: each request is reserved, given to a provider out of a lane, to another one if that is slow or fails, checked, charged and answered.
//!
//! Routing, lanes and turns are the gateway's own state machines; the way of a request between them is written as events. What is durable is what the
//! daemon keeps: the books, an instance's id, and the chain.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::aliases::U40;
use alloy_primitives::{Address, B256};
use alloy_sol_types::SolCall;
use assay_core::answer::AnswerRecord;
use assay_core::id::{Hash, NodeAddress, Nonce, SignatureBytes};
use assay_core::keccak::keccak256;
use assay_core::payment::{self, Payment};
use assay_core::request::Request;
use assay_gateway::lanes::{LaneTerms, Lanes, Mistrust, OnChain, Taken};
use assay_gateway::queue::{Entered, Turns};
use assay_gateway::routing::{Outcome, Routing, Want};
use assay_ledger::contracts::{Channels, Registry, address, b256, channel_id};
use assay_ledger::voucher;

use super::books::{Books, Reserved};
use super::chain::{Actor, Chain, TxId};
use super::model;
use super::provider::Refused;
use super::wire::{Alarm, Ask, Message, Who};
use super::witness::Witness;
use super::{Held, Mutant, World};

/// Lanes to one provider, and what is put into each, in millionths of a dollar.
const TERMS: LaneTerms = LaneTerms { lanes_max: 4, deposit: 20_000_000 };
/// How often offers and strikes are read.
const LOOK_MS: u64 = 300_000;
/// The least time that a provider is waited for before another is asked too.
const PATIENCE_MS: u64 = 5_000;
/// How long one is waited for at all.
const SILENCE_MS: u64 = 20_000;
/// How long an attempt waits for a lane, and how often it looks.
const LANE_WAIT_MS: u64 = 120_000;
const LANE_LOOK_MS: u64 = 2_000;
/// Providers that are asked for one request.
const ATTEMPTS_MAX: usize = 3;
/// Clocks may differ by so much, in seconds.
const SKEW_S: u64 = 60;
/// Requests that run and wait.
const RUNNING_MAX: usize = 8;
const WAITING_MAX: usize = 32;
/// Dollars of the gateway's account, and of each client's.
const PURSE: u64 = 5_000;
const CREDIT: u64 = 1_000;
/// Seconds that a provider has to claim when a lane is withdrawn from.
const WITHDRAW_DELAY_S: u64 = 3_600;

/// A request that runs.
#[derive(Clone, Debug)]
struct Running {
    request: Request,
    nonce: Nonce,
    hold: u64,
    want: Want,
    asked: BTreeSet<NodeAddress>,
    open: BTreeSet<u64>,
}

/// Asking one provider.
#[derive(Clone, Debug)]
struct Attempt {
    ask: Ask,
    provider: NodeAddress,
    began_ms: u64,
    lane: Option<Taken>,
    corrected: bool,
    lane_until_ms: u64,
    /// What the provider knows this try by: a corrected order is another one.
    name: u64,
}

/// The gateway.
pub(super) struct Gateway {
    pub(super) actor: Actor,
    // What is on its disk.
    pub(super) books: Books,
    /// What was told, in the commit of its charge.
    kept: BTreeMap<Ask, AnswerRecord>,
    instance: Hash,
    pub(super) witness: Witness,
    // What is in its memory.
    routing: Routing,
    pub(super) struck: BTreeSet<NodeAddress>,
    lanes: BTreeMap<NodeAddress, Lanes>,
    turns: Turns<Ask>,
    waiting: BTreeMap<Ask, (Request, Nonce, u64)>,
    running: BTreeMap<Ask, Running>,
    attempts: BTreeMap<u64, Attempt>,
    deposits: BTreeMap<TxId, (NodeAddress, usize)>,
    last: u64,
    /// The highest ceiling that was signed for each channel, for invariants.
    pub(super) signed: BTreeMap<B256, u128>,
}

impl Gateway {
    pub(super) fn new(chain: &mut Chain, seed: u64) -> Gateway {
        let actor = Actor::named("gateway");
        chain.rich(actor.address, PURSE);
        let mut books = Books::default();
        (0..2).for_each(|client| books.credit(client, CREDIT * 1_000_000));
        Gateway {
            actor,
            books,
            kept: BTreeMap::new(),
            instance: keccak256(&[b"instance", &seed.to_be_bytes()]),
            witness: Witness::new(seed),
            routing: Routing::default(),
            struck: BTreeSet::new(),
            lanes: BTreeMap::new(),
            turns: Turns::new(RUNNING_MAX, WAITING_MAX),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            attempts: BTreeMap::new(),
            deposits: BTreeMap::new(),
            last: 0,
            signed: BTreeMap::new(),
        }
    }

    /// It is killed. Names of attempts are drawn, so that none comes twice.
    pub(super) fn forget(&mut self) {
        self.witness.forget();
        self.routing = Routing::default();
        self.struck.clear();
        self.lanes.clear();
        self.turns = Turns::new(RUNNING_MAX, WAITING_MAX);
        self.waiting.clear();
        self.running.clear();
        self.attempts.clear();
        self.deposits.clear();
    }

    /// The channel of a lane, with its id.
    fn channel(&self, chain: &Chain, provider: NodeAddress, index: usize) -> (Channels::ChannelConfig, B256) {
        let salt =
            b256(&keccak256(&[b"assay/lane/1", self.instance.as_bytes(), &(index as u64).to_be_bytes()]));
        let config = Channels::ChannelConfig {
            payer: self.actor.address,
            payerAuthorizer: Address::ZERO,
            receiver: address(&provider),
            receiverAuthorizer: Address::ZERO,
            token: chain.parts.at.token,
            withdrawDelay: U40::from(WITHDRAW_DELAY_S),
            salt,
        };
        let id = voucher::channel_id(&config, &chain.vouchers);
        (config, id)
    }

    fn on_chain(&self, chain: &mut Chain, provider: NodeAddress, index: usize) -> OnChain {
        let (_, id) = self.channel(chain, provider, index);
        let read = chain.read(chain.parts.at.channels, &Channels::channelOfCall { id });
        OnChain { balance: read.balance, claimed: read.claimed, closing: read.leavesAt.to::<u64>() != 0 }
    }

    fn lanes(&mut self, chain: &mut Chain, provider: NodeAddress) -> &mut Lanes {
        if !self.lanes.contains_key(&provider) {
            let seen: Vec<OnChain> =
                (0..TERMS.lanes_max).map(|i| self.on_chain(chain, provider, i)).collect();
            self.lanes.insert(provider, Lanes::new(TERMS, &seen));
        }
        self.lanes.entry(provider).or_insert_with(|| Lanes::new(TERMS, &[]))
    }
}

impl World<'_> {
    pub(super) fn gateway_starts(&mut self) {
        self.alarm(Who::Gateway, 500, Alarm::Look);
    }

    pub(super) fn gateway_hears(&mut self, from: Who, message: Message) -> Held {
        match message {
            Message::Request { ask, again, request, nonce } => self.requested(ask, again, request, nonce),
            Message::Offer { offer } => {
                let now_s = self.clock_ms(Who::Gateway) / 1000;
                if let Ok(offer) = offer.verified(now_s, SKEW_S) {
                    self.gateway.routing.offered(offer);
                }
                Ok(())
            }
            Message::Refused { attempt, why } => self.refused(attempt, *why),
            Message::Record { attempt, record } => self.recorded(attempt, from, *record),
            Message::ShownLeaves { batch, leaves } => {
                self.leaves_shown(batch, leaves);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn gateway_rings(&mut self, alarm: Alarm) -> Held {
        match alarm {
            Alarm::Look => {
                self.look();
                self.alarm(Who::Gateway, LOOK_MS, Alarm::Look);
                Ok(())
            }
            Alarm::Patience { attempt } => {
                let ask = self.gateway.attempts.get(&attempt).map(|attempt| attempt.ask);
                ask.map_or(Ok(()), |ask| self.another(ask))
            }
            Alarm::Silence { attempt } => self.failed(attempt, Outcome::Failed, "silence"),
            Alarm::Lane { attempt } => self.lane(attempt),
            Alarm::Round => self.witness_round(),
            _ => Ok(()),
        }
    }

    /// Reads offers, and what the ledger says of providers.
    fn look(&mut self) {
        let now_ms = self.now_ms;
        let now_s = self.clock_ms(Who::Gateway) / 1000;
        self.gateway.books.expire(now_ms);
        self.gateway.routing.forget(now_s);
        let registry = self.chain.parts.at.registry;
        let mut struck = BTreeSet::new();
        for i in 0..self.providers.len() {
            let node = self.providers[i].actor.address;
            if self.chain.read(registry, &Registry::isStruckCall { node }) {
                struck.insert(self.providers[i].actor.node());
            }
            self.say(Who::Gateway, Who::Provider(i), Message::WantOffer);
        }
        self.gateway.struck = struck.clone();
        if self.options.mutant != Some(Mutant::AsksStruck) {
            self.gateway.routing.stand(BTreeMap::new(), struck);
        }
    }

    fn requested(&mut self, ask: Ask, again: bool, request: Request, nonce: Nonce) -> Held {
        let again = again && self.options.mutant != Some(Mutant::ChargesAgain);
        let most = model::most(&request);
        let now_ms = self.now_ms;
        let g = &mut self.gateway;
        // One that is under way answers both.
        if g.running.contains_key(&ask) || g.waiting.contains_key(&ask) {
            return Ok(());
        }
        let hold = match g.books.reserve(ask, again, most, now_ms) {
            Reserved::Held(hold) => hold,
            Reserved::Poor => {
                self.answer(ask, None);
                return Ok(());
            }
            Reserved::Answered => {
                let record = g.kept.get(&ask).cloned();
                self.tell(Who::Gateway, || format!("answers again request={ask}"));
                self.answer(ask, record);
                return Ok(());
            }
        };
        let key = keccak256(&[&(ask.client as u64).to_be_bytes()]);
        g.waiting.insert(ask, (request, nonce, hold));
        match g.turns.enter(key, ask) {
            Entered::Runs(ask) => self.run_request(ask),
            Entered::Waits(gone) => {
                if let Some(gone) = gone {
                    self.send_away(gone);
                }
                Ok(())
            }
            Entered::Full(ask) => {
                self.send_away(ask);
                Ok(())
            }
        }
    }

    fn send_away(&mut self, ask: Ask) {
        if let Some((_, _, hold)) = self.gateway.waiting.remove(&ask) {
            self.gateway.books.release(hold);
        }
        self.answer(ask, None);
    }

    fn run_request(&mut self, ask: Ask) -> Held {
        let Some((request, nonce, hold)) = self.gateway.waiting.remove(&ask) else { return Ok(()) };
        let want = Want {
            model: request.model,
            ceiling: None,
            tokens: request.max_tokens,
            beginning: None,
            audit: request.audit,
        };
        let running = Running { request, nonce, hold, want, asked: BTreeSet::new(), open: BTreeSet::new() };
        self.gateway.running.insert(ask, running);
        self.tell(Who::Gateway, || format!("runs request={ask}"));
        self.another(ask)
    }

    /// Asks the next provider, if there is one; ends the request if there is none and none is under way.
    fn another(&mut self, ask: Ask) -> Held {
        let clock_ms = self.clock_ms(Who::Gateway);
        let now_ms = self.now_ms;
        let g = &mut self.gateway;
        let Some(running) = g.running.get_mut(&ask) else { return Ok(()) };
        let ranked = g.routing.rank(&running.want, clock_ms);
        let next = ranked.into_iter().map(|(id, _)| id).find(|id| !running.asked.contains(id));
        let next = next.filter(|_| running.asked.len() < ATTEMPTS_MAX);
        let Some(provider) = next else {
            if running.open.is_empty() {
                return self.end_request(ask, None);
            }
            return Ok(());
        };
        running.asked.insert(provider);
        g.last += 1;
        let attempt = g.last;
        running.open.insert(attempt);
        g.routing.began(provider);
        let begun = Attempt {
            ask,
            provider,
            began_ms: now_ms,
            lane: None,
            corrected: false,
            lane_until_ms: now_ms + LANE_WAIT_MS,
            name: attempt,
        };
        g.attempts.insert(attempt, begun);
        let patience = g.routing.patience_ms(provider, PATIENCE_MS);
        self.alarm(Who::Gateway, patience, Alarm::Patience { attempt });
        self.lane(attempt)
    }

    /// Takes a lane for an attempt, or waits for one.
    fn lane(&mut self, attempt: u64) -> Held {
        let now_ms = self.now_ms;
        let (chain, g) = (&mut self.chain, &mut self.gateway);
        let Some(Attempt { provider, ask, lane: None, lane_until_ms, .. }) =
            g.attempts.get(&attempt).cloned()
        else {
            return Ok(());
        };
        let Some(running) = g.running.get(&ask) else { return Ok(()) };
        let most = model::most(&running.request);
        let lanes = g.lanes(chain, provider);
        let taken = lanes.take(most, now_ms);
        let waiting = usize::from(taken.is_none());
        let deposit = lanes.deposit(most, waiting, now_ms);
        if let Some(deposit) = deposit {
            let (config, _) = g.channel(chain, provider, deposit.index);
            let me = g.actor.address;
            let call = Channels::depositCall { config, amount: deposit.amount.into() };
            let at = chain.parts.at.channels;
            let what = format!("Deposit(lane={}, amount={}, to={provider})", deposit.index, deposit.amount);
            let id = self.send(Who::Gateway, me, at, call.abi_encode(), what);
            self.gateway.deposits.insert(id, (provider, deposit.index));
        }
        match taken {
            Some(taken) => {
                if let Some(attempt) = self.gateway.attempts.get_mut(&attempt) {
                    attempt.lane = Some(taken);
                }
                self.alarm(Who::Gateway, SILENCE_MS, Alarm::Silence { attempt });
                self.order(attempt, taken)
            }
            None if now_ms < lane_until_ms => {
                self.alarm(Who::Gateway, LANE_LOOK_MS, Alarm::Lane { attempt });
                Ok(())
            }
            None => self.failed(attempt, Outcome::Neither, "no lane"),
        }
    }

    /// Sends an order with a voucher.
    fn order(&mut self, attempt: u64, taken: Taken) -> Held {
        let (chain, g) = (&self.chain, &mut self.gateway);
        let Some(found) = g.attempts.get(&attempt).cloned() else { return Ok(()) };
        let Some(running) = g.running.get(&found.ask) else { return Ok(()) };
        let (config, id) = g.channel(chain, found.provider, taken.index);
        let signed = voucher::sign(&g.actor.key, id, taken.ceiling, &chain.vouchers).expect("a key signs");
        let signature = SignatureBytes::from_bytes(signed.as_ref().try_into().expect("65 bytes"));
        let payment = Box::new(Payment { channel: voucher::terms(&config), max: taken.ceiling, signature });
        let highest = g.signed.entry(id).or_default();
        *highest = taken.ceiling.max(*highest);
        let (request, nonce) = (running.request.clone(), running.nonce);
        let Some(to) = self.providers.iter().position(|p| p.actor.node() == found.provider) else {
            return Ok(());
        };
        let to = Who::Provider(to);
        let (ask, lane) = (found.ask, taken.index);
        self.tell(Who::Gateway, || format!("orders attempt={attempt} request={ask} of={to} lane={lane}"));
        self.check_asked(found.provider)?;
        self.say(Who::Gateway, to, Message::Order { attempt: found.name, payment, request, nonce });
        Ok(())
    }

    /// An attempt ends without an answer.
    fn failed(&mut self, attempt: u64, outcome: Outcome, why: &str) -> Held {
        let (now_ms, clock_ms) = (self.now_ms, self.clock_ms(Who::Gateway));
        let g = &mut self.gateway;
        let Some(Attempt { ask, provider, lane, name, .. }) = g.attempts.remove(&attempt) else {
            return Ok(());
        };
        if let (Some(taken), Some(lanes)) = (lane, g.lanes.get_mut(&provider)) {
            lanes.release(taken.index, now_ms);
        }
        let Some(running) = g.running.get_mut(&ask) else { return Ok(()) };
        running.open.remove(&attempt);
        g.routing.ended(provider, &running.want, outcome, clock_ms);
        self.tell(Who::Gateway, || format!("ends attempt={attempt} request={ask} why={why}"));
        if let Some(to) = self.providers.iter().position(|p| p.actor.node() == provider) {
            self.say(Who::Gateway, Who::Provider(to), Message::Cancel { attempt: name });
        }
        self.another(ask)
    }

    /// The attempt that a provider knows by a name.
    fn named(&self, name: u64) -> Option<u64> {
        self.gateway.attempts.iter().find(|(_, attempt)| attempt.name == name).map(|(id, _)| *id)
    }

    fn refused(&mut self, name: u64, why: Refused) -> Held {
        let Some(attempt) = self.named(name) else { return Ok(()) };
        let (chain, g) = (&mut self.chain, &mut self.gateway);
        let Some(found) = g.attempts.get(&attempt).cloned() else { return Ok(()) };
        let Some(taken) = found.lane else { return Ok(()) };
        let provider = found.provider;
        match why {
            Refused::Stale { charged, shown } if !found.corrected => {
                let (config, _) = g.channel(chain, provider, taken.index);
                // A voucher of ours proves what it says.
                let ours = |shown: &(u128, SignatureBytes)| {
                    let (max, signature) = shown;
                    voucher::check(&config, *max, signature.as_bytes(), &chain.vouchers).is_ok()
                };
                let shown = shown.filter(|shown| ours(shown)).map(|shown| shown.0);
                let most = taken.most;
                let corrected = g.lanes(chain, provider).correct(taken.index, charged, shown, most);
                match corrected {
                    Ok(again) => {
                        g.last += 1;
                        let name = g.last;
                        if let Some(attempt) = g.attempts.get_mut(&attempt) {
                            (attempt.lane, attempt.corrected, attempt.name) = (Some(again), true, name);
                        }
                        self.order(attempt, again)
                    }
                    Err(Mistrust::Short { .. }) => self.other_lane(attempt),
                    Err(mistrust) => self.failed(attempt, Outcome::Failed, &mistrust.to_string()),
                }
            }
            Refused::Busy => self.other_lane(attempt),
            Refused::Unfunded | Refused::Closing => {
                let seen = g.on_chain(chain, provider, taken.index);
                g.lanes(chain, provider).read(taken.index, seen);
                self.other_lane(attempt)
            }
            Refused::Stale { .. } | Refused::Invalid(_) | Refused::Struck => {
                self.failed(attempt, Outcome::Failed, "refused")
            }
        }
    }

    /// The lane rests, and another one is taken.
    fn other_lane(&mut self, attempt: u64) -> Held {
        let now_ms = self.now_ms;
        let g = &mut self.gateway;
        g.last += 1;
        let name = g.last;
        let Some(found) = g.attempts.get_mut(&attempt) else { return Ok(()) };
        let taken = found.lane.take();
        (found.corrected, found.name) = (false, name);
        let provider = found.provider;
        if let (Some(taken), Some(lanes)) = (taken, g.lanes.get_mut(&provider)) {
            lanes.release(taken.index, now_ms);
        }
        self.alarm(Who::Gateway, LANE_LOOK_MS, Alarm::Lane { attempt });
        Ok(())
    }

    /// A provider has answered.
    fn recorded(&mut self, name: u64, from: Who, record: AnswerRecord) -> Held {
        let Some(attempt) = self.named(name) else {
            // It was taken back, and its provider shows what it charged when it is paid next.
            return Ok(());
        };
        let clock_ms = self.clock_ms(Who::Gateway);
        let now_ms = self.now_ms;
        let chain = &self.chain;
        let g = &mut self.gateway;
        let Some(found) = g.attempts.get(&attempt).cloned() else { return Ok(()) };
        let Some(running) = g.running.get(&found.ask).cloned() else { return Ok(()) };
        let Some(taken) = found.lane else { return Ok(()) };
        let fee = payment::fee(Some(model::price()), &record.transcript);
        let (_, id) = g.channel(chain, found.provider, taken.index);
        let receipt = &record.receipt.receipt;
        let whole = record.broken_bindings().is_empty()
            && record.request == running.request
            && receipt.provider == found.provider
            && receipt.client_nonce == running.nonce
            && record.receipt.domain == chain.receipts
            && receipt.payer_channel == channel_id(id)
            && receipt.fee_micro_usd == fee
            && fee <= taken.most;
        if !whole {
            return self.failed(attempt, Outcome::Failed, "no record of it");
        }
        if let Some(lanes) = g.lanes.get_mut(&found.provider) {
            lanes.settle(taken.index, fee);
        }
        g.witness.take(&record.receipt);
        g.attempts.remove(&attempt);
        let first_ms = now_ms.saturating_sub(found.began_ms);
        let tokens = record.transcript.usage().completion_tokens;
        let outcome = Outcome::Completed { first_ms, rest_ms: 0, tokens };
        g.routing.ended(found.provider, &running.want, outcome, clock_ms);
        if let Some(running) = g.running.get_mut(&found.ask) {
            running.open.remove(&attempt);
        }
        let ask = found.ask;
        self.tell(Who::Gateway, || format!("charges request={ask} fee={fee} for={from}"));
        self.end_request(ask, Some(record))
    }

    /// A request ends: it is charged if there is an answer, and released if there is none.
    fn end_request(&mut self, ask: Ask, record: Option<AnswerRecord>) -> Held {
        let (now_ms, clock_ms) = (self.now_ms, self.clock_ms(Who::Gateway));
        let takes_parts = self.options.mutant == Some(Mutant::TakesParts);
        let g = &mut self.gateway;
        let Some(running) = g.running.remove(&ask) else { return Ok(()) };
        // Others that were asked for it are taken back.
        let mut back = Vec::new();
        for attempt in running.open {
            let Some(other) = g.attempts.remove(&attempt) else { continue };
            if let (Some(taken), Some(lanes)) = (other.lane, g.lanes.get_mut(&other.provider)) {
                lanes.release(taken.index, now_ms);
            }
            g.routing.ended(other.provider, &running.want, Outcome::Neither, clock_ms);
            back.push((other.provider, other.name));
        }
        let answered = record.is_some();
        let mut record = record;
        match &mut record {
            Some(record) => {
                g.books.charge(running.hold, record.receipt.receipt.fee_micro_usd);
                if takes_parts {
                    record.transcript.output_ids.pop();
                }
                g.kept.insert(ask, record.clone());
            }
            None => g.books.release(running.hold),
        }
        g.turns.ended(answered);
        let mut next = Vec::new();
        while let Some(ask) = g.turns.following() {
            next.push(ask);
        }
        for (provider, name) in back {
            if let Some(to) = self.providers.iter().position(|p| p.actor.node() == provider) {
                self.say(Who::Gateway, Who::Provider(to), Message::Cancel { attempt: name });
            }
        }
        if answered {
            self.check_charged(ask)?;
        }
        self.answer(ask, record);
        for ask in next {
            self.run_request(ask)?;
        }
        Ok(())
    }

    fn answer(&mut self, ask: Ask, record: Option<AnswerRecord>) {
        self.say(
            Who::Gateway,
            Who::Client(ask.client),
            Message::Answered { ask, record: record.map(Box::new) },
        );
    }

    pub(super) fn gateway_confirmed(&mut self, id: TxId) -> Held {
        self.witness_confirmed(id);
        let refused = self.chain.txs[id].is_refused();
        let (chain, g) = (&mut self.chain, &mut self.gateway);
        let Some((provider, index)) = g.deposits.remove(&id) else { return Ok(()) };
        let now_ms = self.now_ms;
        let seen = g.on_chain(chain, provider, index);
        let lanes = g.lanes(chain, provider);
        if refused {
            lanes.deposit_failed(index, now_ms);
        } else {
            lanes.deposited(index, seen.balance);
        }
        Ok(())
    }
}
