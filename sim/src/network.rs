//! The network itself under one seed: gateway, clients, providers, auditors, hosts, liars and faults over the real contracts.
//!
//! Invariant: a run follows from its seed and its options alone, in one thread, one event after the other; each is one line, and the same seed gives the
//! same lines. What must always hold is checked while it runs ([`Broken`] names it); who fails prints the seed and the number of the event.
//!
//! What is real: the contracts (in revm), the decisions of the daemons (`assay_node::settlement::due`, `assay_node::auditor::due`, `assay_node::disputes`,
//! the till's judgement, `assay_gateway::{routing, lanes, queue}`), the epochs' builder, vouchers, receipts, records, every proof, and inference, by a model of
//! two layers ([`model`]), so that disputes are played move by move ([`moves`]). What is written again, as events: the I/O around those decisions, which in
//! daemons is `async` over a chain, a disk and HTTP.

mod accusers;
mod auditor;
mod books;
mod chain;
mod clients;
mod disk;
mod faults;
mod gateway;
mod hosts;
mod invariants;
mod model;
mod moves;
mod provider;
mod settling;
mod wire;
mod witness;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;

use serde_json::{Value, json};

use self::chain::{BLOCK_S, Chain, GENESIS_S, TxId};
use self::invariants::Truth;
use self::wire::{Alarm, Event, Message, Process, State, Who};
use crate::random::{Chance, Random};

/// Seconds between two rounds of a daemon.
const ROUND_MS: u64 = 120_000;
/// The network's usual delays.
const DELAY_MS: (u64, u64) = (10, 300);
/// Those of a message that is late.
const LATE_MS: (u64, u64) = (2_000, 60_000);

/// A bug that is planted, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutant {
    /// A provider keeps in memory what it was promised, and forgets it when it is started again.
    ForgetsTill,
    /// A provider says an answer before it has stored it.
    SaysBeforeStoring,
    /// A settlement sends every posting twice.
    PostsTwice,
    /// An auditor reveals another salt than it committed to.
    RevealsWrong,
    /// An auditor finds receipts that do not stand, and says nothing.
    DisputesNothing,
    /// A gateway charges a request that is sent again as if it were another one.
    ChargesAgain,
    /// A gateway asks providers that it knows to have lied.
    AsksStruck,
    /// A gateway takes an answer of which a part is missing.
    TakesParts,
    /// A host has all bytes and does not answer.
    AnswersNothing,
    /// A provider whose receipt is right defends it with the execution of another prompt.
    DefendsWrong,
    /// A provider whose receipt is right does not answer in a dispute.
    DefendsNothing,
    /// An auditor that is right stops picking in the middle of a dispute.
    PicksNoFurther,
    /// A gateway does not compare what it was given with what was posted.
    ComparesNothing,
}

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Epochs with demand.
    pub epochs: u64,
    /// Whether anything goes wrong.
    pub faults: bool,
    /// Whether anybody lies.
    pub liars: bool,
    /// A bug that is planted.
    pub mutant: Option<Mutant>,
}

impl Default for Options {
    fn default() -> Self {
        Options { epochs: 4, faults: true, liars: true, mutant: None }
    }
}

impl Options {
    /// When demand and faults are over, in milliseconds: epoch 0 is for taking seats.
    fn demand_ends_ms(&self) -> u64 {
        (self.epochs + 1) * 3_600_000
    }

    /// When everything must be settled: the epochs that [`Options::epochs_to_settle`] says later.
    fn ends_ms(&self) -> u64 {
        self.demand_ends_ms() + Self::epochs_to_settle() * 3_600_000
    }

    /// Epochs after the last fault in which everything outstanding must settle: one to post, and the longest audit with a dispute that is held to its end.
    pub fn epochs_to_settle() -> u64 {
        let t = chain::parameters().times;
        let windows = [t.postSeconds, t.commitSeconds, t.revealSeconds, t.objectSeconds, t.disputeSeconds];
        1 + windows.iter().map(|s| u64::from(*s)).sum::<u64>().div_ceil(t.epochSeconds.into())
    }
}

/// Something that must always hold did not. It says how to see it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Of the run.
    pub seed: u64,
    /// Number of the event.
    pub event: u64,
    /// The invariant's name.
    pub name: &'static str,
    /// What did not hold.
    pub what: String,
    /// The line of the event.
    pub line: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken { seed, event, name, what, line } = self;
        write!(
            f,
            "seed {seed}, event {event}: invariant {name}: {what}; at \"{line}\"; replay with: assay-sim network --seed {seed}"
        )
    }
}

impl std::error::Error for Broken {}

/// What an invariant that does not hold says of itself.
pub(crate) struct Wrong {
    name: &'static str,
    what: String,
}

type Held = Result<(), Wrong>;

fn wrong(name: &'static str, what: impl fmt::Display) -> Wrong {
    Wrong { name, what: what.to_string() }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of the run.
    pub seed: u64,
    /// Events that happened.
    pub events: u64,
    /// Numbers, by their names.
    pub numbers: BTreeMap<&'static str, u64>,
}

impl Summary {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "seed": self.seed, "events": self.events, "numbers": self.numbers })
    }
}

/// What waits to happen, ordered by time and then by when it was planned.
struct Planned {
    at_ms: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.order).cmp(&(other.at_ms, other.order))
    }
}

/// Everything.
struct World<'a> {
    seed: u64,
    options: Options,
    now_ms: u64,
    order: u64,
    count: u64,
    line: String,
    sink: &'a mut dyn FnMut(&str),
    queue: BinaryHeap<Reverse<Planned>>,
    random: Random,
    chain: Chain,
    processes: BTreeMap<Who, Process>,
    /// Transactions that their senders wait for, which survive a kill, in the order in which they were sent.
    outboxes: BTreeMap<Who, Vec<TxId>>,
    parted: BTreeSet<(Who, Who)>,
    lost_ppm: u64,
    doubled_ppm: u64,
    late_ppm: u64,
    stalled_until_ms: u64,
    clients: Vec<clients::Client>,
    gateway: gateway::Gateway,
    providers: Vec<provider::Provider>,
    auditors: Vec<auditor::Auditor>,
    hosts: Vec<hosts::Host>,
    accusers: Vec<accusers::Accuser>,
    truth: Truth,
}

/// Plays one network. Every event is told to `sink`, one a line.
pub fn play(seed: u64, options: Options, sink: &mut dyn FnMut(&str)) -> Result<Summary, Box<Broken>> {
    let mut world = World::new(seed, options, sink);
    let held = world.run();
    match held {
        Ok(()) => Ok(world.summary()),
        Err(Wrong { name, what }) => {
            let line = std::mem::take(&mut world.line);
            Err(Box::new(Broken { seed, event: world.count, name, what, line }))
        }
    }
}

impl<'a> World<'a> {
    fn new(seed: u64, options: Options, sink: &'a mut dyn FnMut(&str)) -> World<'a> {
        model::forget();
        let mut random = Random::stream(seed, "who", &[]);
        let mut chain = Chain::new();
        let clients = clients::all(seed);
        let leaves_out = Random::stream(seed, "leaves out", &[]).below(4) == 0;
        let providers = provider::all(&mut chain, &options, &mut random, leaves_out);
        let auditors = auditor::all(&mut chain, &options, &mut random);
        let hosts = hosts::all(&mut chain, &options, &mut random);
        let accusers = accusers::all(&mut chain, &options, &mut random);
        let gateway = gateway::Gateway::new(&mut chain, seed);
        let truth = Truth::new(&mut chain);
        let mut world = World {
            seed,
            options,
            now_ms: 0,
            order: 0,
            count: 0,
            line: String::new(),
            sink,
            queue: BinaryHeap::new(),
            random: Random::stream(seed, "network", &[]),
            chain,
            processes: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            parted: BTreeSet::new(),
            lost_ppm: 0,
            doubled_ppm: 0,
            late_ppm: 0,
            stalled_until_ms: 0,
            clients,
            gateway,
            providers,
            auditors,
            hosts,
            accusers,
            truth,
        };
        let everybody = world.everybody();
        for who in &everybody {
            let ahead = random.below(40_000) as i64 - 20_000;
            world.processes.insert(*who, Process::new(if options.faults { ahead } else { 0 }));
        }
        everybody.iter().for_each(|who| world.start(*who));
        world.after(BLOCK_S * 1000, Event::Block);
        let faulty: Vec<Who> = everybody.into_iter().filter(|who| !matches!(who, Who::Client(_))).collect();
        let plan = faults::plan(&options, seed, &faulty);
        world.plan_faults(plan);
        world
    }

    fn everybody(&self) -> Vec<Who> {
        let mut everybody: Vec<Who> = (0..self.clients.len()).map(Who::Client).collect();
        everybody.push(Who::Gateway);
        everybody.extend((0..self.providers.len()).map(Who::Provider));
        everybody.extend((0..self.auditors.len()).map(Who::Auditor));
        everybody.extend((0..self.hosts.len()).map(Who::Host));
        everybody.extend(self.accusers.iter().map(|accuser| accuser.who));
        everybody
    }

    fn run(&mut self) -> Held {
        while let Some(Reverse(Planned { at_ms, event, .. })) = self.queue.pop() {
            if at_ms > self.options.ends_ms() {
                break;
            }
            self.now_ms = at_ms;
            self.handle(event)?;
        }
        self.tell(Who::Chain, || "the end".into());
        self.check_end()
    }

    fn handle(&mut self, event: Event) -> Held {
        match event {
            Event::Block => self.block(),
            Event::Fault(fault) => {
                self.suffer(fault);
                Ok(())
            }
            Event::Arrives { from, to, message } => {
                let process = self.process(to);
                match process.state {
                    State::Dead => Ok(()),
                    State::Paused => {
                        process.missed.push(Event::Arrives { from, to, message });
                        Ok(())
                    }
                    State::Runs => self.hear(from, to, *message),
                }
            }
            Event::Rings { who, life, alarm } => {
                let process = self.process(who);
                if process.life != life {
                    return Ok(());
                }
                match process.state {
                    State::Dead => Ok(()),
                    State::Paused => {
                        process.missed.push(Event::Rings { who, life, alarm });
                        Ok(())
                    }
                    State::Runs => self.ring(who, alarm),
                }
            }
        }
    }

    fn hear(&mut self, from: Who, to: Who, message: Message) -> Held {
        match to {
            Who::Gateway => self.gateway_hears(from, message),
            Who::Client(i) => self.client_hears(i, message),
            Who::Provider(i) => self.provider_hears(i, from, message),
            Who::Auditor(i) => self.auditor_hears(i, from, message),
            Who::Chain | Who::Host(_) | Who::Canary | Who::Griefer => Ok(()),
        }
    }

    fn ring(&mut self, who: Who, alarm: Alarm) -> Held {
        if matches!(alarm, Alarm::Round) {
            let jitter = self.random.below(ROUND_MS / 4);
            self.alarm(who, ROUND_MS + jitter, Alarm::Round);
        }
        match (who, alarm) {
            (Who::Client(i), alarm) => self.client_rings(i, alarm),
            (Who::Gateway, alarm) => self.gateway_rings(alarm),
            (Who::Provider(i), Alarm::Round) => self.provider_round(i),
            (Who::Provider(i), alarm) => self.provider_rings(i, alarm),
            (Who::Auditor(i), Alarm::Round) => self.auditor_round(i),
            (Who::Auditor(i), alarm) => self.auditor_rings(i, alarm),
            (Who::Host(i), _) => self.host_round(i),
            (Who::Canary | Who::Griefer, _) => self.accuser_round(who),
            (Who::Chain, _) => Ok(()),
        }
    }

    /// A process begins, with what it finds on its disk.
    fn start(&mut self, who: Who) {
        match who {
            Who::Provider(i) => self.provider_starts(i),
            Who::Gateway => self.gateway_starts(),
            Who::Client(i) => self.client_starts(i),
            _ => {}
        }
        if !matches!(who, Who::Client(_)) {
            let wait = 1_000 + self.random.below(ROUND_MS / 2);
            self.alarm(who, wait, Alarm::Round);
        }
    }

    /// A process ends, and what it had in memory is gone.
    fn forget(&mut self, who: Who) {
        match who {
            Who::Provider(i) => self.providers[i].forget(),
            Who::Auditor(i) => self.auditors[i].forget(),
            Who::Gateway => self.gateway.forget(),
            _ => {}
        }
    }

    fn block(&mut self) -> Held {
        self.after(BLOCK_S * 1000, Event::Block);
        if self.now_ms < self.stalled_until_ms {
            return Ok(());
        }
        let mined = self.chain.mine(self.chain_time_s());
        if !mined.is_empty() {
            let number = self.chain.number();
            self.tell(Who::Chain, || format!("block number={number} transactions={}", mined.len()));
        }
        for id in &mined {
            let (who, line) = self.mined_line(*id);
            self.tell(who, || line);
            self.check_transaction(*id)?;
        }
        if !mined.is_empty() {
            self.check_block()?;
        }
        self.confirm()
    }

    fn mined_line(&self, id: TxId) -> (Who, String) {
        let tx = &self.chain.txs[id];
        let how = if tx.is_refused() { "refused" } else { "mined" };
        (tx.who, format!("{how} {}", tx.what))
    }

    /// Tells those who wait that what they sent stays; what was lost is sent again.
    fn confirm(&mut self) -> Held {
        let waiting: Vec<(Who, Vec<TxId>)> =
            self.outboxes.iter().map(|(who, ids)| (*who, ids.clone())).collect();
        for (who, ids) in waiting {
            if self.process(who).state != State::Runs {
                continue;
            }
            for id in ids {
                self.chain.send_again(id);
                if self.chain.is_done(id) {
                    if let Some(outbox) = self.outboxes.get_mut(&who) {
                        outbox.retain(|other| *other != id);
                    }
                    self.confirmed(who, id)?;
                }
            }
        }
        Ok(())
    }

    fn confirmed(&mut self, who: Who, id: TxId) -> Held {
        match who {
            Who::Provider(i) => self.provider_confirmed(i, id),
            Who::Auditor(i) => self.auditor_confirmed(i, id),
            Who::Gateway => self.gateway_confirmed(id),
            Who::Host(_) | Who::Canary | Who::Griefer | Who::Chain | Who::Client(_) => Ok(()),
        }
    }

    /// Whether nothing that this process sent waits.
    fn is_clear(&self, who: Who) -> bool {
        self.outboxes.get(&who).is_none_or(Vec::is_empty)
    }

    fn process(&mut self, who: Who) -> &mut Process {
        self.processes.get_mut(&who).expect("everybody has a process")
    }

    /// A clock's time, in milliseconds since 1970.
    fn clock_ms(&self, who: Who) -> u64 {
        let skew = self.processes.get(&who).map_or(0, |process| process.skew_ms);
        (GENESIS_S * 1000 + self.now_ms).saturating_add_signed(skew)
    }

    fn chain_time_s(&self) -> u64 {
        GENESIS_S + self.now_ms / 1000
    }

    fn after(&mut self, wait_ms: u64, event: Event) {
        let planned = Planned { at_ms: self.now_ms + wait_ms, order: self.order, event };
        self.order += 1;
        self.queue.push(Reverse(planned));
    }

    fn alarm(&mut self, who: Who, wait_ms: u64, alarm: Alarm) {
        let life = self.process(who).life;
        self.after(wait_ms, Event::Rings { who, life, alarm });
    }

    /// A message sets out. It may be lost, late or doubled.
    fn say(&mut self, from: Who, to: Who, message: Message) {
        let cut = self.parted.contains(&(from.min(to), from.max(to)));
        if cut || self.random.happens(Chance::ppm(self.lost_ppm)) {
            let name = message.name();
            self.tell(from, || format!("lost {name} to={to}"));
            return;
        }
        let doubled = self.random.happens(Chance::ppm(self.doubled_ppm));
        let late = self.random.happens(Chance::ppm(self.late_ppm));
        match message {
            // A request has a connection of its own: who sends it again says so, and does so later.
            Message::Request { ask, request, nonce, again } => {
                let wait = self.random.between(DELAY_MS.0, DELAY_MS.1);
                if doubled {
                    let (request, again) = (request.clone(), true);
                    let message = Box::new(Message::Request { ask, again, request, nonce });
                    self.after(wait + DELAY_MS.1, Event::Arrives { from, to, message });
                }
                let message = Box::new(Message::Request { ask, again, request, nonce });
                self.after(wait, Event::Arrives { from, to, message });
            }
            message => {
                let (least, most) = if late { LATE_MS } else { DELAY_MS };
                for _ in 0..1 + usize::from(doubled) {
                    let wait = self.random.between(least, most);
                    self.after(wait, Event::Arrives { from, to, message: Box::new(message.clone()) });
                }
            }
        }
    }

    /// A line.
    fn tell(&mut self, who: Who, what: impl FnOnce() -> String) {
        self.count += 1;
        let (s, ms) = (self.now_ms / 1000, self.now_ms % 1000);
        self.line = format!("{s}.{ms:03} {who} {}", what());
        (self.sink)(&self.line);
    }

    /// Hands a transaction to the chain, and waits for it.
    fn send(
        &mut self,
        who: Who,
        from: alloy_primitives::Address,
        to: alloy_primitives::Address,
        data: Vec<u8>,
        what: String,
    ) -> TxId {
        let id = self.chain.send(who, from, to, data, what);
        self.outboxes.entry(who).or_default().push(id);
        id
    }
}
