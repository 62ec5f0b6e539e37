//! What goes wrong, from the seed: which fault, whom, when and for how long.
//!
//! Invariant: faults end with the last epoch that has demand, and none lasts so long that a daemon that comes back could not do in time what costs stake
//! when it is late. What is beyond that is no fault of the network's but of who runs a node.

use std::collections::BTreeSet;

use super::chain::{BLOCK_S, GENESIS_S};
use super::wire::{Event, State, Who};
use super::{Options, World};
use crate::random::Random;

/// Longest time that a process is away, in milliseconds: a quarter of the shortest window.
const AWAY_MS_MAX: u64 = 600_000;
/// Longest time that the chain stands still.
const STALL_MS_MAX: u64 = 400_000;
/// Most blocks of a branch that is given up.
const DEPTH_MAX: u64 = 6;

/// Something that begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process stands still.
    Pause(Who),
    /// It goes on.
    Resume(Who),
    /// A process is killed.
    Kill(Who),
    /// It is started.
    Start(Who),
    /// No message passes between two.
    Part(Who, Who),
    /// Messages pass again.
    Join(Who, Who),
    /// There are no blocks until that time, in milliseconds.
    Stall(u64),
    /// The chain's next blocks will be given up.
    Fork,
    /// They are.
    Reorganise,
    /// Blocks have no place for who closes epochs and fixes beacons until that time, in milliseconds.
    Censor(u64),
    /// From now on messages are lost, doubled and late by such parts of a million.
    Weather { lost_ppm: u64, doubled_ppm: u64, late_ppm: u64 },
}

/// The plan of a run.
pub(super) fn plan(options: &Options, seed: u64, everybody: &[Who]) -> Vec<(u64, Fault)> {
    let mut random = Random::stream(seed, "faults", &[]);
    let mut plan = Vec::new();
    if !options.faults {
        return plan;
    }
    let (from_ms, until_ms) = (400_000, options.demand_ends_ms().saturating_sub(AWAY_MS_MAX));
    let weather = Fault::Weather {
        lost_ppm: random.below(30_000),
        doubled_ppm: random.below(50_000),
        late_ppm: random.below(50_000),
    };
    plan.push((from_ms, weather));
    plan.push((options.demand_ends_ms(), Fault::Weather { lost_ppm: 0, doubled_ppm: 0, late_ppm: 0 }));
    // Of one process or pair one fault at a time: two in a row would be one that is longer.
    let mut busy: Vec<(Who, u64, u64)> = Vec::new();
    let mut free = |who: Who, at: u64, until: u64| {
        let clear = busy.iter().all(|(other, from, to)| {
            *other != who || until + AWAY_MS_MAX < *from || at > *to + 2 * AWAY_MS_MAX
        });
        if clear {
            busy.push((who, at, until));
        }
        clear
    };
    let often: Vec<Who> = everybody
        .iter()
        .flat_map(|who| vec![*who; if matches!(who, Who::Gateway | Who::Provider(_)) { 3 } else { 1 }])
        .collect();
    for _ in 0..20 + random.below(40) {
        let at = random.between(from_ms, until_ms);
        let who = often[random.below(often.len() as u64) as usize];
        let lasts = random.between(5_000, AWAY_MS_MAX);
        let kind = random.below(3);
        if !free(who, at, at + lasts) {
            continue;
        }
        match kind {
            0 => plan.extend([(at, Fault::Pause(who)), (at + lasts, Fault::Resume(who))]),
            1 => plan.extend([(at, Fault::Kill(who)), (at + lasts, Fault::Start(who))]),
            _ => {
                let others: Vec<Who> = everybody.iter().copied().filter(|other| *other != who).collect();
                let other = others[random.below(others.len() as u64) as usize];
                plan.extend([(at, Fault::Part(who, other)), (at + lasts, Fault::Join(who, other))]);
            }
        }
    }
    // The chain: one thing at a time.
    let mut at = from_ms;
    loop {
        at += random.between(100_000, 1_200_000);
        if at >= until_ms {
            break;
        }
        let lasts = random.between(60_000, STALL_MS_MAX);
        match random.below(8) {
            0 => plan.push((at, Fault::Stall(at + lasts))),
            // Whose transaction is kept out can send no other after it, and is as if it were away.
            1 => plan.push((at, Fault::Censor(at + (3 * lasts).min(AWAY_MS_MAX)))),
            _ => {
                let depth = random.between(1, DEPTH_MAX);
                plan.extend([(at, Fault::Fork), (at + depth * BLOCK_S * 1000, Fault::Reorganise)]);
                at += DEPTH_MAX * BLOCK_S * 1000;
                continue;
            }
        }
        at += 3 * lasts;
    }
    plan
}

impl World<'_> {
    /// Something goes wrong, or ends to.
    pub(super) fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Pause(who) => {
                self.tell(who, || "stands still".into());
                self.process(who).state = State::Paused;
            }
            Fault::Resume(who) => {
                self.tell(who, || "goes on".into());
                let process = self.process(who);
                process.state = State::Runs;
                let missed = std::mem::take(&mut process.missed);
                missed.into_iter().for_each(|event| self.after(0, event));
            }
            Fault::Kill(who) => {
                self.tell(who, || "is killed".into());
                let process = self.process(who);
                process.state = State::Dead;
                process.missed.clear();
                self.forget(who);
            }
            Fault::Start(who) => {
                let process = self.process(who);
                process.state = State::Runs;
                process.life += 1;
                self.tell(who, || "is started".into());
                self.start(who);
            }
            Fault::Part(a, b) => {
                self.tell(a, || format!("is cut off from {b}"));
                self.parted.insert((a.min(b), a.max(b)));
            }
            Fault::Join(a, b) => {
                self.tell(a, || format!("reaches {b} again"));
                self.parted.remove(&(a.min(b), a.max(b)));
            }
            Fault::Stall(until_ms) => {
                self.tell(Who::Chain, || "stands still".into());
                self.stalled_until_ms = until_ms;
            }
            Fault::Fork => {
                self.tell(Who::Chain, || "begins a branch that will be given up".into());
                self.chain.may_fork();
            }
            Fault::Reorganise => self.reorganise(),
            Fault::Censor(until_ms) => {
                self.tell(Who::Chain, || "has no place for closing and beacons".into());
                self.chain.censored_until_s = GENESIS_S + until_ms / 1000;
            }
            Fault::Weather { lost_ppm, doubled_ppm, late_ppm } => {
                self.tell(Who::Chain, || {
                    format!("weather lost={lost_ppm} doubled={doubled_ppm} late={late_ppm}")
                });
                (self.lost_ppm, self.doubled_ppm, self.late_ppm) = (lost_ppm, doubled_ppm, late_ppm);
            }
        }
    }

    fn reorganise(&mut self) {
        let time_s = self.chain_time_s();
        let random = &mut self.random;
        let back = self.chain.reorganise(time_s, &mut |_| random.below(4) == 0);
        let Some((depth, back)) = back else { return };
        let lost: BTreeSet<usize> =
            back.iter().copied().filter(|id| self.chain.txs[*id].fate == super::chain::Fate::Lost).collect();
        for id in &back {
            let tx = &self.chain.txs[*id];
            self.truth.took_back(tx.from, &tx.what, self.now_ms);
        }
        self.tell(Who::Chain, || {
            format!("turns back depth={depth} undone={} lost={}", back.len(), lost.len())
        });
    }

    /// What happens later.
    pub(super) fn plan_faults(&mut self, plan: Vec<(u64, Fault)>) {
        for (at, fault) in plan {
            let wait = at.saturating_sub(self.now_ms);
            self.after(wait, Event::Fault(fault));
        }
    }
}
