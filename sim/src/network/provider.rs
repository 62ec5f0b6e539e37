//! A provider: its till, its records, and what it shows to auditors.
//!
//! What is durable is what the daemon keeps on its disk: records and vouchers, which are stored together in one step before anything of an answer is said; the
//! block of sequence numbers that was set aside; the folder of epochs; names read from the ledger's log. All else is forgotten when it is killed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use alloy_primitives::{Address, B256, Bytes, U256};
use assay_core::answer::AnswerRecord;
use assay_core::id::{Nonce, SealingKey, SignatureBytes};
use assay_core::offer::{Offer, OfferedModel, SignedOffer};
use assay_core::payment::Payment;
use assay_core::receipt::SignedReceipt;
use assay_core::request::Request;
use assay_ledger::audits::{assigned, is_drawn};
use assay_ledger::contracts::Channels::{ChannelConfig, VoucherClaim};
use assay_ledger::contracts::{Channels, Registry, channel_id};
use assay_ledger::docket::Entries;
use assay_ledger::epochs::{Builder, Identity, Leaf, Listing};
use assay_ledger::voucher;
use assay_node::auditor::BatchId;
use assay_node::settlement::Duty;
use assay_node::till::{self, Doubt, Holds};

use super::auditor::Leaves;
use super::chain::{Actor, Chain, TxId};
use super::disk::Memory;
use super::model::{self, Billing, By};
use super::wire::{Alarm, Message, Wanted, Who};
use super::{Held, Mutant, Options, World};
use crate::random::Random;

/// Numbers that are set aside at a time: what the daemon's store does.
const SEQUENCE_BLOCK: u64 = 16;
/// How long what was read of a channel is believed.
const FRESH_MS: u64 = till::FRESH.as_millis() as u64;
/// Stake of a provider, in dollars.
pub(super) const STAKE: u64 = 40;
/// How long an offer is valid, and after how long another one is made, in seconds.
const OFFER_S: u64 = 7_200;
const NEW_OFFER_S: u64 = 3_600;
/// A client that there is not, and how many of its requests are tried for one that is cheap.
const NOBODY: usize = 20;
const TRIES: u64 = 16;

/// What a provider is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Honest,
    /// It executes something else than it is paid for, and makes so many moves where that is disputed.
    Lies {
        by: By,
        moves_max: usize,
    },
    /// It shows nothing of what it signed, to nobody.
    ShowsNothing,
    /// It answers as it should, and keeps and posts the receipt of a request that nobody made in the place of the one that it gave.
    LeavesOut,
}

/// Why an order was not taken.
#[derive(Clone, Debug)]
pub(super) enum Refused {
    /// A request runs on the channel.
    Busy,
    /// The voucher is none of ours.
    Invalid(String),
    /// So much was charged before; and the voucher that proves it.
    Stale {
        charged: u128,
        shown: Option<Box<(u128, SignatureBytes)>>,
    },
    /// The channel holds too little, or its payer leaves.
    Unfunded,
    Closing,
    /// It takes no requests.
    Struck,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Busy => f.write_str("busy"),
            Refused::Invalid(reason) => write!(f, "invalid: {reason}"),
            Refused::Stale { charged, .. } => write!(f, "stale charged={charged}"),
            Refused::Unfunded => f.write_str("unfunded"),
            Refused::Closing => f.write_str("closing"),
            Refused::Struck => f.write_str("struck"),
        }
    }
}

/// A request under way.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) attempt: u64,
    from: Who,
    request: Request,
    nonce: Nonce,
    config: ChannelConfig,
    id: B256,
    charged: u128,
    voucher: (u128, Bytes),
    sequence: u64,
    /// What was stored, and is to be said.
    record: Option<AnswerRecord>,
}

/// A voucher that pays for a request.
struct Admitted {
    config: ChannelConfig,
    id: B256,
    /// What was charged before.
    charged: u128,
    /// The highest voucher of the channel.
    voucher: (u128, Bytes),
}

/// A panel that was seen.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) beacon: B256,
    pub(super) auditors: Vec<Address>,
}

/// A provider.
pub(super) struct Provider {
    pub(super) actor: Actor,
    pub(super) plan: Plan,
    pub(super) identity: Identity,
    // What is on its disk.
    pub(super) store: BTreeMap<u64, AnswerRecord>,
    pub(super) claims: BTreeMap<B256, VoucherClaim>,
    numbers_until: u64,
    pub(super) disk: Memory,
    pub(super) entries: Entries,
    pub(super) heard: usize,
    pub(super) listings: BTreeMap<u64, BTreeMap<assay_core::id::ModelRoot, Listing>>,
    // What is in its memory.
    next: u64,
    in_flight: BTreeSet<u64>,
    seen: BTreeMap<B256, (Holds, u64)>,
    busy: BTreeSet<B256>,
    attempts: BTreeSet<u64>,
    pub(super) jobs: BTreeMap<u64, Job>,
    last_job: u64,
    epoch: u64,
    offered: Option<SignedOffer>,
    pub(super) builder: Option<Builder<Memory>>,
    pub(super) fed: u64,
    pub(super) claimed: BTreeMap<B256, u128>,
    pub(super) claimed_in: u64,
    pub(super) done: BTreeSet<u64>,
    pub(super) panels: BTreeMap<u64, Panel>,
    pub(super) duties: VecDeque<Duty>,
    pub(super) doing: Option<(TxId, Duty)>,
}

/// For how many moves a liar goes on in a dispute: none, some, or all that there are.
pub(super) fn moves_max(random: &mut Random) -> usize {
    match random.below(4) {
        0 => 0,
        1 => 1 + random.below(4) as usize,
        _ => usize::MAX,
    }
}

/// All providers, enrolled and with their stakes.
pub(super) fn all(
    chain: &mut Chain,
    options: &Options,
    random: &mut Random,
    leaves_out: bool,
) -> Vec<Provider> {
    let mut plans = vec![Plan::Honest; 3];
    if options.liars {
        let mut liar = || {
            let by = [By::Cheap, By::Skims, By::Swaps][random.below(3) as usize];
            Plan::Lies { by, moves_max: moves_max(random) }
        };
        let (one, other) = (liar(), liar());
        match random.below(4) {
            0 => plans.push(one),
            1 => plans.push(Plan::ShowsNothing),
            2 => plans.extend([one, Plan::ShowsNothing]),
            _ => plans.extend([one, other]),
        }
        plans.extend(leaves_out.then_some(Plan::LeavesOut));
    }
    let mut all = Vec::new();
    for (i, plan) in plans.into_iter().enumerate() {
        let actor = Actor::named(&format!("provider {i}"));
        enrol(chain, &actor, 1, STAKE, 100);
        all.push(Provider::new(actor, plan, chain));
    }
    all
}

/// Enrols a node that is its own owner, with stake, and as much in the vault.
pub(super) fn enrol(chain: &mut Chain, actor: &Actor, roles: u8, stake: u64, free: u64) {
    let registry = chain.parts.at.registry;
    chain.rich(actor.address, stake + free);
    let call = Registry::enrolCall {
        node: actor.address,
        roles,
        endpoint: "https://node.example".into(),
        priceList: B256::ZERO,
        signature: Bytes::new(),
    };
    chain.begin(actor.address, registry, &call);
    if stake > 0 {
        let call = Registry::bondCall { node: actor.address, amount: U256::from(stake * 1_000_000) };
        chain.begin(actor.address, registry, &call);
    }
}

impl Provider {
    fn new(actor: Actor, plan: Plan, chain: &Chain) -> Provider {
        let identity = Identity { provider: actor.node(), domain: chain.receipts };
        Provider {
            actor,
            plan,
            identity,
            store: BTreeMap::new(),
            claims: BTreeMap::new(),
            numbers_until: 0,
            disk: Memory::default(),
            entries: Entries::default(),
            heard: 0,
            listings: BTreeMap::new(),
            next: 0,
            in_flight: BTreeSet::new(),
            seen: BTreeMap::new(),
            busy: BTreeSet::new(),
            attempts: BTreeSet::new(),
            jobs: BTreeMap::new(),
            last_job: 0,
            epoch: 0,
            offered: None,
            builder: None,
            fed: 0,
            claimed: BTreeMap::new(),
            claimed_in: 0,
            done: BTreeSet::new(),
            panels: BTreeMap::new(),
            duties: VecDeque::new(),
            doing: None,
        }
    }

    /// It is killed.
    pub(super) fn forget(&mut self) {
        self.in_flight.clear();
        self.offered = None;
        self.seen.clear();
        self.busy.clear();
        self.attempts.clear();
        self.jobs.clear();
        self.builder = None;
        self.claimed.clear();
        self.done.clear();
        self.panels.clear();
        self.duties.clear();
        self.doing = None;
    }

    /// The least number for which a receipt may still be stored.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.first().copied().unwrap_or(self.next)
    }

    fn number(&mut self) -> u64 {
        if self.next == self.numbers_until {
            self.numbers_until += SEQUENCE_BLOCK;
        }
        let number = self.next;
        self.next += 1;
        self.in_flight.insert(number);
        number
    }

    fn by(&self) -> By {
        if let Plan::Lies { by, .. } = self.plan { by } else { By::Asked }
    }

    /// Whether an auditor was drawn for a receipt.
    fn is_assigned(&self, chain: &mut Chain, epoch: u64, sequence: u64, fee: u64, auditor: Address) -> bool {
        let Some(panel) = self.panels.get(&epoch) else { return false };
        let batch = chain.batch(self.actor.address, epoch);
        let rates = &chain.p.rates;
        let members = u8::try_from(panel.auditors.len()).unwrap_or(u8::MAX);
        let who = assigned(&panel.beacon, self.actor.address, sequence, members, rates.secondPpm);
        let of = |member: u8| panel.auditors.get(usize::from(member)) == Some(&auditor);
        is_drawn(&panel.beacon, self.actor.address, sequence, fee, batch.backing, rates)
            && who.is_some_and(|who| of(who.first) || who.second.is_some_and(of))
    }
}

/// A true record of a request that nobody made, with the number of one that was given, that costs no more; that one itself if there is none.
fn in_place_of(actor: &Actor, given: &AnswerRecord) -> AnswerRecord {
    let SignedReceipt { receipt, domain, .. } = &given.receipt;
    let billing = Billing { channel: receipt.payer_channel, epoch: receipt.epoch, domain: *domain };
    let other = |number: u64| {
        let request = model::request(NOBODY, receipt.sequence.wrapping_mul(TRIES).wrapping_add(number), 3);
        model::record(actor, receipt.sequence, By::Asked, &request, receipt.client_nonce, &billing)
    };
    let costs = |record: &AnswerRecord| record.receipt.receipt.fee_micro_usd;
    (0..TRIES).map(other).find(|other| costs(other) <= costs(given)).unwrap_or_else(|| given.clone())
}

impl World<'_> {
    pub(super) fn provider_starts(&mut self, i: usize) {
        let mutant = self.options.mutant;
        let epoch = self.chain.epoch();
        let p = &mut self.providers[i];
        // Numbers that were set aside and not used are gaps.
        p.next = p.numbers_until;
        p.epoch = epoch;
        if mutant == Some(Mutant::ForgetsTill) {
            p.claims.clear();
        }
        let (builder, _) = Builder::on(p.disk.clone(), p.identity).expect("the folder is whole");
        p.fed = builder.next().unwrap_or(0);
        p.builder = Some(builder);
    }

    pub(super) fn provider_hears(&mut self, i: usize, from: Who, message: Message) -> Held {
        match message {
            Message::WantOffer => {
                let now_s = self.clock_ms(Who::Provider(i)) / 1000;
                let offer = self.offer(i, now_s);
                self.say(Who::Provider(i), from, Message::Offer { offer: Box::new(offer) });
                Ok(())
            }
            Message::Order { attempt, payment, request, nonce } => {
                self.ordered(i, from, attempt, *payment, request, nonce)
            }
            Message::Cancel { attempt } => {
                let p = &mut self.providers[i];
                let job = p.jobs.iter().find(|(_, job)| job.attempt == attempt && job.record.is_none());
                if let Some(job) = job.map(|(job, _)| *job) {
                    self.end_job(i, job);
                    self.tell(Who::Provider(i), || format!("drops attempt={attempt}"));
                }
                Ok(())
            }
            Message::Audit { batch, wanted } => self.audited(i, from, batch, wanted),
            Message::WantLeaves { batch, numbers } => {
                self.leaves_wanted(i, from, batch, numbers);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn offer(&mut self, i: usize, now_s: u64) -> SignedOffer {
        let p = &mut self.providers[i];
        if let Some(made) = p.offered.as_ref().filter(|made| now_s < made.offer.issued_s + NEW_OFFER_S) {
            return made.clone();
        }
        let offer = Offer {
            provider: p.actor.node(),
            issued_s: now_s,
            until_s: now_s + OFFER_S,
            sealing_key: SealingKey::ZERO,
            settles: Some(self.chain.receipts),
            models: vec![OfferedModel {
                root: model::root(),
                name: "simulated".into(),
                profile: "none".into(),
                context_length: model::WINDOW,
                parameters: 1,
                bytes: 1,
                has_chat_template: false,
                dimensions: None,
                price: Some(model::price()),
                price_private: None,
            }],
        };
        let signature = p.actor.sign(&offer.signing_hash());
        let made = SignedOffer { offer, signature };
        p.offered = Some(made.clone());
        made
    }

    fn ordered(
        &mut self,
        i: usize,
        from: Who,
        attempt: u64,
        payment: Payment,
        request: Request,
        nonce: Nonce,
    ) -> Held {
        // An order is taken once: its name is sealed with it.
        if !self.providers[i].attempts.insert(attempt) {
            return Ok(());
        }
        let who = Who::Provider(i);
        match self.admitted(i, &payment, &request) {
            Ok(Admitted { config, id, charged, voucher }) => {
                let p = &mut self.providers[i];
                p.busy.insert(id);
                let sequence = p.number();
                p.last_job += 1;
                let job = p.last_job;
                let begun = Job {
                    attempt,
                    from,
                    request,
                    nonce,
                    config,
                    id,
                    charged,
                    voucher,
                    sequence,
                    record: None,
                };
                p.jobs.insert(job, begun);
                let lasts = self.random.between(200, 4_000);
                self.tell(who, || format!("takes attempt={attempt} sequence={sequence}"));
                self.alarm(who, lasts, Alarm::Executed { job });
            }
            Err(why) => {
                self.tell(who, || format!("refuses attempt={attempt} why={why}"));
                self.say(who, from, Message::Refused { attempt, why: Box::new(why) });
            }
        }
        Ok(())
    }

    /// What a voucher is found to be worth.
    fn admitted(&mut self, i: usize, payment: &Payment, request: &Request) -> Result<Admitted, Refused> {
        let now_ms = self.now_ms;
        let (at, vouchers) = (self.chain.parts.at.clone(), self.chain.vouchers.clone());
        let receiver = self.providers[i].actor.address;
        if self.chain.read(at.registry, &Registry::isStruckCall { node: receiver }) {
            return Err(Refused::Struck);
        }
        let readable = till::readable(payment, receiver, at.token, &vouchers);
        let (config, id) = readable.map_err(Refused::Invalid)?;
        let most = model::most(request);
        let p = &mut self.providers[i];
        if p.busy.contains(&id) {
            return Err(Refused::Busy);
        }
        let known = p.claims.get(&id).cloned();
        let owed = known.as_ref().map_or(0, |claim| claim.totalClaimed);
        let fresh = |(holds, read_ms): &&(Holds, u64)| {
            now_ms < read_ms + FRESH_MS && !holds.closing && till::judge(u128::MAX, most, owed, holds).is_ok()
        };
        let holds = match p.seen.get(&id).filter(fresh) {
            Some((holds, _)) => *holds,
            None => {
                let read = self.chain.read(at.channels, &Channels::channelOfCall { id });
                let closing = read.leavesAt.to::<u64>() != 0;
                let holds = Holds { balance: read.balance, claimed: read.claimed, closing };
                p.seen.insert(id, (holds, now_ms));
                holds
            }
        };
        let charged = till::judge(payment.max, most, owed, &holds).map_err(|doubt| match doubt {
            Doubt::Closing => Refused::Closing,
            Doubt::Unfunded { .. } => Refused::Unfunded,
            Doubt::Stale { charged } => {
                let shown = known.as_ref().and_then(|claim| {
                    let signature = <[u8; 65]>::try_from(claim.signature.as_ref()).ok()?;
                    Some(Box::new((claim.voucher.maxClaimableAmount, SignatureBytes::from_bytes(signature))))
                });
                Refused::Stale { charged, shown }
            }
        })?;
        let shown = (payment.max, Bytes::copy_from_slice(payment.signature.as_bytes()));
        let known = known.map(|claim| (claim.voucher.maxClaimableAmount, claim.signature));
        let voucher = known.filter(|known| known.0 >= shown.0).unwrap_or(shown);
        Ok(Admitted { config, id, charged, voucher })
    }

    fn end_job(&mut self, i: usize, job: u64) {
        let p = &mut self.providers[i];
        if let Some(job) = p.jobs.remove(&job) {
            p.busy.remove(&job.id);
            p.in_flight.remove(&job.sequence);
        }
    }

    pub(super) fn provider_rings(&mut self, i: usize, alarm: Alarm) -> Held {
        match alarm {
            Alarm::Executed { job } => {
                if self.options.mutant == Some(Mutant::SaysBeforeStoring) {
                    self.record(i, job);
                    self.provider_says(i, job);
                    let wait = self.random.between(20_000, 60_000);
                    self.alarm(Who::Provider(i), wait, Alarm::Say { job });
                } else {
                    self.record(i, job);
                    self.store(i, job);
                    let wait = self.random.between(1, 50);
                    self.alarm(Who::Provider(i), wait, Alarm::Say { job });
                }
            }
            Alarm::Say { job } => {
                if self.options.mutant == Some(Mutant::SaysBeforeStoring) {
                    self.store(i, job);
                } else {
                    self.provider_says(i, job);
                }
                self.end_job(i, job);
            }
            _ => {}
        }
        Ok(())
    }

    fn record(&mut self, i: usize, job: u64) {
        let domain = self.chain.receipts;
        let p = &mut self.providers[i];
        let by = p.by();
        let Some(job) = p.jobs.get_mut(&job) else { return };
        let billing = Billing { channel: channel_id(job.id), epoch: p.epoch, domain };
        job.record = Some(model::record(&p.actor, job.sequence, by, &job.request, job.nonce, &billing));
    }

    /// Stores a record and what its channel owes from now on, in one step.
    fn store(&mut self, i: usize, job: u64) {
        let p = &mut self.providers[i];
        let Some(Job { record: Some(record), config, voucher, charged, id, sequence, .. }) = p.jobs.get(&job)
        else {
            return;
        };
        let fee = record.receipt.receipt.fee_micro_usd;
        let claim = voucher::claim(config, voucher.0, voucher.1.clone(), charged + u128::from(fee));
        p.claims.insert(*id, claim);
        let kept = if p.plan == Plan::LeavesOut { in_place_of(&p.actor, record) } else { record.clone() };
        p.store.insert(*sequence, kept);
        let (sequence, epoch) = (*sequence, record.receipt.receipt.epoch);
        self.tell(Who::Provider(i), || format!("stores sequence={sequence} fee={fee} epoch={epoch}"));
    }

    fn provider_says(&mut self, i: usize, job: u64) {
        let Some(Job { record: Some(record), attempt, from, id, .. }) =
            self.providers[i].jobs.get(&job).cloned()
        else {
            return;
        };
        self.truth.said(i, id, &record);
        let sequence = record.receipt.receipt.sequence;
        self.tell(Who::Provider(i), || format!("says attempt={attempt} sequence={sequence}"));
        self.say(Who::Provider(i), from, Message::Record { attempt, record: Box::new(record) });
    }

    /// An auditor asks for what it was drawn to check.
    fn audited(&mut self, i: usize, from: Who, batch: BatchId, wanted: Wanted) -> Held {
        let Who::Auditor(a) = from else { return Ok(()) };
        let auditor = self.auditors[a].actor.address;
        let who = Who::Provider(i);
        let p = &self.providers[i];
        let known = p.panels.get(&batch.epoch).is_some_and(|panel| panel.auditors.contains(&auditor));
        if p.plan == Plan::ShowsNothing || !known {
            self.tell(who, || format!("shows nothing epoch={} to={from}", batch.epoch));
            let answer = match wanted {
                Wanted::Leaves => Message::Leaves { batch, leaves: None },
                Wanted::Records(numbers) => {
                    Message::Records { batch, records: numbers.into_iter().map(|n| (n, None)).collect() }
                }
            };
            self.say(who, from, answer);
            return Ok(());
        }
        let there = self.chain.batch(p.actor.address, batch.epoch);
        let answer = match wanted {
            Wanted::Leaves => {
                let end = there.first + u64::from(there.count);
                let leaf = |n: u64| {
                    p.store.get(&n).map(|record| {
                        let Leaf { epoch, fee_micro_usd, model_root, signing_hash } =
                            Leaf::of(&record.receipt);
                        assay_api::audits::AuditLeaf { epoch, fee_micro_usd, model_root, signing_hash }
                    })
                };
                let leaves: Leaves = (there.first..end).map(leaf).collect();
                Message::Leaves { batch, leaves: Some(leaves) }
            }
            Wanted::Records(numbers) => {
                let mut records = Vec::new();
                for number in numbers {
                    let record = p.store.get(&number);
                    let fee = record.map_or(0, |record| record.receipt.receipt.fee_micro_usd);
                    let given = p.is_assigned(&mut self.chain, batch.epoch, number, fee, auditor);
                    records.push((number, record.filter(|_| given).cloned().map(Box::new)));
                }
                Message::Records { batch, records }
            }
        };
        self.tell(who, || format!("shows {} epoch={} to={from}", answer.name(), batch.epoch));
        self.say(who, from, answer);
        Ok(())
    }

    /// The chain's epoch, as the till asks for it.
    pub(super) fn provider_looks(&mut self, i: usize) {
        self.providers[i].epoch = self.chain.epoch();
    }
}
