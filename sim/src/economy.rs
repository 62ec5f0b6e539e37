//! The economy: thousands of participants over the ledger's model, whose inference is abstract. A request has a fee and a cost, and was executed or
//! not; who earns what by that is counted.
//!
//! An epoch goes as on the ledger at its default windows: fees are claimed and the epoch is posted; the epoch before has its objections
//! behind it and is released; the beacon draws panels, receipts and chunks; auditors execute, or do not; who is found is struck at once, before its
//! next batch. So the stake that backs a batch is without the fees of the one before, as it is there.
//!
//! **Exact.** How many receipts of a fee are drawn is binomial with the contract's own chance ([`crate::random::Random::binomial`]); which members get each, and the
//! second ones, is drawn for each receipt. **Not modelled:** network, latency, prices that react, what capital costs, forks, and
//! honest mistakes.

use crate::events::{Events, Failure};
use crate::formulas::PPM;
use crate::ledger::{ChannelId, Ledger, PledgeId, Who};
use crate::plan::{Auditor, Backing, Conduct, Grief, Group, Host, Keeps, Plan, Provider};
use crate::random::Random;

mod audits;
mod griefs;
mod hosts;
mod outcome;
mod serving;

pub use outcome::{Gains, Outcome, Player, Team, Totals};

/// Whoever must not run out of money has this much: a million dollars.
const PURSE: u64 = 1_000_000_000_000;
/// And payers this much.
const PAYERS_PURSE: u64 = 100 * PURSE;
/// Hosts collect as often, in epochs.
const COLLECT_EPOCHS: u64 = 30;
/// Epochs after the last demand, in which what is open is settled.
const LAST_EPOCHS: u64 = 2;
/// How often results are noted on the way.
const NOTES: u64 = 20;

/// Receipts of one fee that a provider posted.
#[derive(Clone, Copy, Debug)]
struct Work {
    fee: u64,
    cost: u64,
    right: u64,
    wrong: u64,
}

#[derive(Debug)]
struct Server {
    who: Who,
    plan: Provider,
    lanes: Vec<ChannelId>,
    /// A channel to itself.
    own: Option<ChannelId>,
    demand: Random,
    posted: Vec<Work>,
    /// It serves nobody before this epoch, while its stake is on its way out.
    leaving: Option<u64>,
    /// Epochs since it came.
    age: u64,
}

#[derive(Debug)]
struct Examiner {
    who: Who,
    plan: Auditor,
}

#[derive(Debug)]
struct Keeper {
    who: Who,
    model: usize,
    keeps: Keeps,
    storage_cost: u64,
    pledges: Vec<PledgeId>,
}

#[derive(Debug)]
struct Griefer {
    who: Who,
    grief: Grief,
    /// What others have lost by it, in units.
    harm: i64,
}

/// A run.
#[derive(Debug)]
pub struct Economy {
    plan: Plan,
    ledger: Ledger,
    epoch: u64,
    servers: Vec<Server>,
    examiners: Vec<Examiner>,
    keepers: Vec<Keeper>,
    /// How many of the keepers are hosts of the plan; the others are providers' own.
    hosts: usize,
    griefers: Vec<Griefer>,
    /// The examiner of each seat.
    seats: Vec<usize>,
    /// Who calls what anyone may call.
    anyone: Who,
    draws: Random,
    teams: Vec<Team>,
    totals: Totals,
    /// Mean profits by team at the ends of parts of the run.
    notes: Vec<(u64, Vec<f64>)>,
}

impl Economy {
    /// Everybody enrols.
    pub fn new(plan: Plan) -> Economy {
        let mut ledger = Ledger::new(plan.parameters.clone(), plan.gas_price);
        let anyone = ledger.join(0);
        for model in &plan.models {
            let owner = ledger.join(0);
            ledger.list(owner, model.royalty_ppm);
        }
        let payers: Vec<Who> = (0..plan.payers).map(|_| ledger.join(PAYERS_PURSE)).collect();
        let draws = Random::stream(plan.seed, "draws", &[]);
        let mut economy = Economy {
            ledger,
            epoch: 0,
            servers: Vec::new(),
            examiners: Vec::new(),
            keepers: Vec::new(),
            hosts: 0,
            griefers: Vec::new(),
            seats: Vec::new(),
            anyone,
            draws,
            teams: Vec::new(),
            totals: Totals::default(),
            notes: Vec::new(),
            plan,
        };
        for group in economy.plan.hosts.clone() {
            economy.enrol_hosts(&group);
        }
        economy.hosts = economy.keepers.len();
        let mut place = Random::stream(economy.plan.seed, "payers", &[]);
        for (g, group) in economy.plan.providers.clone().iter().enumerate() {
            economy.enrol_providers(g as u64, group, &payers, &mut place);
        }
        for group in economy.plan.auditors.clone() {
            economy.enrol_auditors(&group);
        }
        for group in economy.plan.griefers.clone() {
            let first = economy.griefers.len();
            for _ in 0..group.count {
                let who = economy.ledger.join(PURSE);
                economy.griefers.push(Griefer { who, grief: group.plan, harm: 0 });
            }
            let players = economy.griefers[first..].iter().map(|g| Player::alone(g.who)).collect();
            economy.teams.push(Team { name: group.name, players, griefers: Some(first) });
        }
        economy
    }

    fn enrol_providers(&mut self, number: u64, group: &Group<Provider>, payers: &[Who], place: &mut Random) {
        let mut players = Vec::new();
        for i in 0..u64::from(group.count) {
            let lanes = place.below(payers.len().max(1) as u64);
            let who = self.enrol_provider(&group.plan, [number, i], payers, lanes);
            let twin = group.twin.as_ref().map(|twin| self.enrol_provider(twin, [number, i], payers, lanes));
            players.push(Player { whos: who, twin: twin.unwrap_or_default() });
        }
        self.teams.push(Team { name: group.name.clone(), players, griefers: None });
    }

    /// Returns who belongs to it: itself, and its host.
    fn enrol_provider(&mut self, plan: &Provider, name: [u64; 2], payers: &[Who], first: u64) -> Vec<Who> {
        let (capital, washes) = match (plan.backing, plan.conduct) {
            (Backing::Fixed(_), _) => (PURSE, false),
            (_, Conduct::Washes { .. }) => (PURSE, true),
            _ => (0, false),
        };
        let who = self.ledger.join(capital);
        if let Backing::Fixed(amount) = plan.backing {
            self.ledger.bond(who, amount);
        }
        let lane = |i: u32| payers[((first + u64::from(i)) % payers.len() as u64) as usize];
        let lanes = (0..plan.lanes).map(|i| self.ledger.open_channel(lane(i), who)).collect();
        let own = washes.then(|| self.ledger.open_channel(who, who));
        let mut whos = vec![who];
        if plan.pledges {
            let host = self.ledger.join(PURSE);
            let pledge = self.ledger.pledge(plan.model, host);
            // The model lies there anyway.
            let (model, keeps) = (plan.model, Keeps::All);
            let pledges = pledge.into_iter().collect();
            self.keepers.push(Keeper { who: host, model, keeps, storage_cost: 0, pledges });
            whos.push(host);
            if plan.signs_for_itself {
                self.ledger.served(who, host, 1 << 55);
            }
        }
        let mut from = Random::stream(self.plan.seed, "fetched", &name);
        let has_it = |k: &&Keeper| k.model == plan.model && k.keeps != Keeps::Nothing;
        let disks = self.keepers[..self.hosts].iter().filter(has_it);
        let hosts: Vec<Who> = disks.map(|k| k.who).collect();
        if !hosts.is_empty() {
            let host = hosts[from.below(hosts.len() as u64) as usize];
            self.ledger.served(who, host, self.plan.models[plan.model].bytes);
        }
        let demand = Random::stream(self.plan.seed, "demand", &name);
        let plan = plan.clone();
        self.servers.push(Server {
            who,
            plan,
            lanes,
            own,
            demand,
            posted: Vec::new(),
            leaving: None,
            age: 0,
        });
        whos
    }

    fn enrol_auditors(&mut self, group: &Group<Auditor>) {
        let mut players = Vec::new();
        for _ in 0..group.count {
            let who = self.ledger.join(PURSE);
            let stake = u64::from(group.plan.seats) * self.plan.parameters.stakes.seatStake;
            if self.ledger.reserve(who, stake) {
                self.seats.extend((0..group.plan.seats).map(|_| self.examiners.len()));
            }
            self.examiners.push(Examiner { who, plan: group.plan });
            players.push(Player::alone(who));
        }
        self.teams.push(Team { name: group.name.clone(), players, griefers: None });
    }

    fn enrol_hosts(&mut self, group: &Group<Host>) {
        let mut players = Vec::new();
        for _ in 0..group.count {
            let who = self.ledger.join(PURSE);
            let Host { model, names, keeps } = group.plan;
            let pledges = (0..names).filter_map(|_| self.ledger.pledge(model, who)).collect();
            let whole = self.plan.models[model].storage_cost;
            let storage_cost = match keeps {
                Keeps::All => whole,
                Keeps::Share { ppm } => whole * ppm / PPM,
                Keeps::Nothing => 0,
            };
            self.keepers.push(Keeper { who, model, keeps, storage_cost, pledges });
            players.push(Player::alone(who));
        }
        self.teams.push(Team { name: group.name.clone(), players, griefers: None });
    }

    /// Plays to the end. `progress` hears of every epoch that is over.
    pub fn run(mut self, events: &mut Events<'_>, mut progress: impl FnMut(u64)) -> Result<Outcome, Failure> {
        let part = self.plan.epochs.div_ceil(NOTES).max(1);
        for epoch in 0..self.plan.epochs + LAST_EPOCHS {
            self.step(epoch, events);
            let failed = |what| Failure { seed: self.plan.seed, epoch, what };
            self.ledger.check().map_err(failed)?;
            if (epoch + 1).is_multiple_of(part) && epoch < self.plan.epochs {
                let means = self.teams.iter().map(|t| t.mean_profit(&self.ledger)).collect();
                self.notes.push((epoch + 1, means));
            }
            progress(epoch + 1);
        }
        self.answer_all();
        self.collect_all();
        self.ledger.check().map_err(|what| Failure { seed: self.plan.seed, epoch: self.epoch, what })?;
        Ok(self.outcome())
    }

    fn step(&mut self, epoch: u64, events: &mut Events<'_>) {
        self.epoch = epoch;
        self.ledger.begin(epoch);
        let open = epoch < self.plan.epochs;
        for i in 0..self.servers.len() {
            self.serve(i, open, events);
        }
        for i in 0..self.servers.len() {
            self.ledger.finish(self.servers[i].who);
            self.manage(i);
        }
        let prices = self.ledger.prices;
        self.ledger.burn(self.anyone, prices.close + prices.fix_beacon);
        for i in 0..self.servers.len() {
            self.audit(i, events);
        }
        if open {
            self.ask_hosts(events);
            self.grieve(events);
        }
        if (epoch + 1).is_multiple_of(COLLECT_EPOCHS) {
            self.collect_all();
        }
    }
}
