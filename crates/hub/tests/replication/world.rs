//! Hosts that hear of each other, fetch, drop, lie, fall silent and die under one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use assay_hub::blob::BlobHash;
use assay_hub::replication::{
    DEAD_AFTER_S, Host, HostId, Intent, Keeping, LEAVE_NOTICE_S, PATIENCE_S, Part, Planner, Release, Source,
    Times,
};

/// Seconds between two steps: less than the freshness that a drop relies on.
pub(crate) const STEP_S: u64 = 850;
/// Steps within which everything settles after the last change: a silence, notices, and a few patiences.
pub(crate) const SETTLE_STEPS: u64 = (DEAD_AFTER_S + 3 * LEAVE_NOTICE_S + 12 * PATIENCE_S) / STEP_S;
/// After as many steps without a change nothing changes any more: a notice is over, and so many patiences that all idle hosts are stood in for.
const QUIET_STEPS: u64 = (LEAVE_NOTICE_S + PATIENCE_S).div_ceil(STEP_S);
/// Most hosts that never fetch.
pub(crate) const IDLE_MAX: usize = 3;
const _: () = assert!(QUIET_STEPS * STEP_S > (IDLE_MAX as u64 + 1) * PATIENCE_S);

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Whether a host that may drop asks those it relies on, as it must, or believes its facts.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Trust {
    Asks,
    Believes,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Shown,
    Lied,
    None,
}

pub(crate) struct Node {
    pub(crate) capacity: u64,
    pub(crate) up: bool,
    /// Hosts hear only those of their own side.
    pub(crate) side: u8,
    /// Never fetches anything.
    pub(crate) idle: bool,
    /// What is really there.
    pub(crate) truth: BTreeMap<BlobHash, Part>,
    pub(crate) says: BTreeMap<BlobHash, (Part, Intent)>,
    begun: BTreeMap<BlobHash, Part>,
    planner: Planner,
    view: BTreeMap<HostId, Arc<Host>>,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now_s: u64,
    pub(crate) releases: Vec<Release>,
    pub(crate) nodes: BTreeMap<HostId, Node>,
    /// What the ledger says of failed challenges.
    pub(crate) failed: BTreeMap<HostId, BTreeSet<BlobHash>>,
    pub(crate) trust: Trust,
    /// Of a hundred messages, how many arrive.
    pub(crate) arrive: u64,
    pub(crate) fetched: u64,
    pub(crate) dropped: u64,
    /// Drops that were not done because somebody relied on did not keep what it said.
    pub(crate) refused_lies: u64,
    /// Drops that were not done because somebody relied on did not answer, or is leaving.
    pub(crate) refused_silence: u64,
}

impl World {
    pub(crate) fn new(seed: u64, trust: Trust) -> World {
        World {
            random: Random(seed),
            now_s: 1_000_000,
            releases: Vec::new(),
            nodes: BTreeMap::new(),
            failed: BTreeMap::new(),
            trust,
            arrive: 100,
            fetched: 0,
            dropped: 0,
            refused_lies: 0,
            refused_silence: 0,
        }
    }

    pub(crate) fn join(&mut self, capacity: u64) -> HostId {
        let mut id = [0; 20];
        for byte in &mut id {
            *byte = self.random.below(256) as u8;
        }
        let id = HostId(id);
        let node = Node {
            capacity,
            up: true,
            side: 0,
            idle: false,
            truth: BTreeMap::new(),
            says: BTreeMap::new(),
            begun: BTreeMap::new(),
            planner: Planner::new(id, Times::DEFAULT),
            view: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
        id
    }

    pub(crate) fn give(&mut self, host: HostId, release: BlobHash, part: Part) {
        let node = self.nodes.get_mut(&host).unwrap();
        node.truth.insert(release, part);
        node.says.insert(release, (part, Intent::Keeps));
    }

    /// A host and its disk are gone.
    pub(crate) fn die(&mut self, host: HostId) {
        self.nodes.remove(&host);
    }

    pub(crate) fn any(&mut self) -> HostId {
        let at = self.random.below(self.nodes.len() as u64) as usize;
        *self.nodes.keys().nth(at).unwrap()
    }

    /// How many of each part really are on hosts that are up.
    pub(crate) fn parts(&self, release: BlobHash) -> BTreeMap<Part, usize> {
        let mut parts = BTreeMap::new();
        for node in self.nodes.values().filter(|node| node.up) {
            if let Some(part) = node.truth.get(&release) {
                *parts.entry(*part).or_default() += 1;
            }
        }
        parts
    }

    pub(crate) fn restorable(&self, release: &Release) -> bool {
        let parts = self.parts(release.blob());
        let whole = parts.contains_key(&Part::Whole);
        match release.keeping() {
            Keeping::Copies(_) => whole,
            Keeping::Shards { code, .. } => whole || parts.len() >= usize::from(code.needed()),
        }
    }

    fn public(&self, id: HostId) -> Host {
        let node = &self.nodes[&id];
        let bytes = |blob: &BlobHash| {
            self.releases.iter().find(|release| release.blob() == *blob).map_or(0, Release::part_bytes)
        };
        let used: u64 = node.says.keys().map(bytes).sum();
        Host {
            capacity: node.capacity,
            left: node.capacity.saturating_sub(used),
            seen_s: self.now_s,
            keeps: node.says.clone(),
            failed: self.failed.get(&id).cloned().unwrap_or_default(),
        }
    }

    /// Everyone who is up says what it keeps, and does what its plan says. Returns whether anything changed.
    pub(crate) fn step(&mut self) -> bool {
        self.now_s += STEP_S;
        let up: Vec<HostId> = self.nodes.iter().filter(|(_, node)| node.up).map(|(id, _)| *id).collect();
        for from in &up {
            let public = Arc::new(self.public(*from));
            let side = self.nodes[from].side;
            for to in &up {
                let arrives = self.random.below(100) < self.arrive;
                let to_node = self.nodes.get_mut(to).unwrap();
                if from == to || (to_node.side == side && arrives) {
                    to_node.view.insert(*from, Arc::clone(&public));
                }
            }
        }
        let mut changed = false;
        for id in up {
            changed |= self.act(id);
        }
        changed
    }

    fn act(&mut self, id: HostId) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        // Failed challenges are on the ledger, for everyone at once.
        for (other, failed) in &self.failed {
            if let Some(facts) = node.view.get_mut(other)
                && facts.failed != *failed
            {
                Arc::make_mut(facts).failed = failed.clone();
            }
        }
        let plan = node.planner.step(self.now_s, &self.releases, &node.view).unwrap();
        let before = node.says.clone();
        let mut held: Vec<BlobHash> = plan.unasked.clone();
        held.extend(plan.keep.iter().chain(&plan.leave).map(|(blob, _)| *blob));
        held.sort();
        assert!(held.iter().eq(node.view[&id].keeps.keys()), "what is kept is in one list each");
        for (intent, list) in [(Intent::Keeps, &plan.keep), (Intent::Leaves, &plan.leave)] {
            for (blob, part) in list {
                node.says.insert(*blob, (*part, intent));
            }
        }
        let bytes: u64 = plan
            .fetch
            .iter()
            .map(|f| self.releases.iter().find(|r| r.blob() == f.release).unwrap().part_bytes())
            .sum();
        assert!(bytes <= node.view[&id].left, "a plan fits into what is left");

        let mut begun = BTreeMap::new();
        for fetch in plan.fetch {
            if self.nodes[&id].idle || !self.can_fetch(id, &fetch.from, fetch.part, fetch.release) {
                continue;
            }
            // A fetch takes two steps, and is given up when the plan no longer wants it.
            if self.nodes[&id].begun.get(&fetch.release) == Some(&fetch.part) {
                self.give(id, fetch.release, fetch.part);
                self.fetched += 1;
            } else {
                begun.insert(fetch.release, fetch.part);
            }
        }
        let working = !begun.is_empty();
        self.nodes.get_mut(&id).unwrap().begun = begun;
        for drop in plan.drop {
            if self.trust == Trust::Asks {
                let answers = drop.relies_on.iter().map(|other| self.ask(id, *other, drop.release));
                let answers: Vec<Answer> = answers.collect();
                if answers.contains(&Answer::Lied) {
                    self.refused_lies += 1;
                    continue;
                }
                if answers.contains(&Answer::None) {
                    self.refused_silence += 1;
                    continue;
                }
            }
            let release = *self.releases.iter().find(|r| r.blob() == drop.release).unwrap();
            let was = self.restorable(&release);
            let node = self.nodes.get_mut(&id).unwrap();
            let had = node.truth.remove(&drop.release).is_some();
            node.says.remove(&drop.release);
            self.dropped += u64::from(had);
            assert!(!was || self.restorable(&release), "the last copy was dropped");
            if self.trust == Trust::Asks && had && drop.part == Part::Whole {
                let left = self.parts(drop.release).get(&Part::Whole).copied().unwrap_or(0);
                let asked = usize::from(release.hosts());
                let cold = matches!(release.keeping(), Keeping::Shards { .. });
                assert!(cold || left >= asked, "a drop left {left} of {asked} copies");
            }
        }
        working || self.nodes[&id].says != before
    }

    /// What `other` shows when `me` asks it, before a drop, whether it keeps `release`.
    fn ask(&self, me: HostId, other: HostId, release: BlobHash) -> Answer {
        let side = self.nodes[&me].side;
        let Some(node) = self.nodes.get(&other).filter(|node| node.up && node.side == side) else {
            return Answer::None;
        };
        match node.says.get(&release) {
            Some((part, Intent::Keeps)) if node.truth.get(&release) == Some(part) => Answer::Shown,
            Some((_, Intent::Keeps)) => Answer::Lied,
            _ => Answer::None,
        }
    }

    /// Everyone who says what is not there fails, in public.
    pub(crate) fn challenge(&mut self) {
        for (id, node) in &self.nodes {
            let lies = node.says.iter().filter(|(blob, (part, _))| node.truth.get(*blob) != Some(part));
            let lies: BTreeSet<BlobHash> = lies.map(|(blob, _)| *blob).collect();
            if !lies.is_empty() {
                self.failed.entry(*id).or_default().extend(lies);
            }
        }
    }

    /// Steps, challenging all the while, until nothing changes any more. Returns whether that came in time.
    pub(crate) fn settle(&mut self, mut at_each_step: impl FnMut(&World)) -> bool {
        let mut quiet = 0;
        for _ in 0..SETTLE_STEPS + QUIET_STEPS {
            self.challenge();
            quiet = if self.step() { 0 } else { quiet + 1 };
            at_each_step(self);
            if quiet == QUIET_STEPS {
                return true;
            }
        }
        false
    }

    fn can_fetch(&self, me: HostId, from: &Source, part: Part, release: BlobHash) -> bool {
        let side = self.nodes[&me].side;
        let has = |host: &HostId, part: Part| {
            self.nodes
                .get(host)
                .is_some_and(|node| node.up && node.side == side && node.truth.get(&release) == Some(&part))
        };
        match from {
            Source::Hosts(hosts) => hosts.iter().any(|host| has(host, part)),
            Source::Wholes(hosts) => hosts.iter().any(|host| has(host, Part::Whole)),
            Source::Shards(shards) => {
                let release = self.releases.iter().find(|r| r.blob() == release).unwrap();
                let Keeping::Shards { code, .. } = release.keeping() else { return false };
                let there = shards.iter().filter(|(index, host)| has(host, Part::Shard(*index))).count();
                there >= usize::from(code.needed())
            }
        }
    }
}
