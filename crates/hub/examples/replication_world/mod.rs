//! Hosts with lifetimes and absences under one seed, each doing what its planner says.

use std::collections::{BTreeMap, BTreeSet};

use assay_hub::blob::BlobHash;
use assay_hub::replication::{
    DEAD_AFTER_S, Host, HostId, Intent, Keeping, LEAVE_NOTICE_S, PATIENCE_S, Part, Plan, Planner, Release,
    Source, Times, should_keep,
};

pub(crate) const HOUR_S: u64 = 3600;
pub(crate) const DAY_S: u64 = 24 * HOUR_S;
/// After as long without a change nothing happens before the next event.
const QUIET_S: u64 = LEAVE_NOTICE_S + PATIENCE_S;
const PART_BYTES: u64 = 1 << 30;
const CAPACITY: u64 = 1 << 40;

/// How hosts behave. Times are means of exponential distributions, but for the tick and the fetch.
#[derive(Clone, Copy)]
pub(crate) struct Hosts {
    pub(crate) lifetime_s: u64,
    /// From a return to the next absence.
    pub(crate) away_every_s: Option<u64>,
    pub(crate) away_s: u64,
    pub(crate) tick_s: u64,
    pub(crate) fetch_s: u64,
}

/// What was seen, over all releases.
#[derive(Clone, Copy, Default)]
pub(crate) struct Costs {
    /// Blobs read: for what was lost, for what was away for too long, and for better ranked newcomers.
    pub(crate) read: f64,
    /// Seconds in which fewer parts than asked were on hosts that are up.
    pub(crate) short_s: u64,
    pub(crate) losses: u64,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Exponentially distributed.
    fn after(&mut self, mean_s: u64) -> u64 {
        let fraction = (self.next() >> 11) as f64 + 1.0;
        (-(fraction / (1u64 << 53) as f64).ln() * mean_s as f64) as u64
    }
}

struct Node {
    planner: Planner,
    dies_s: u64,
    /// When it goes away or comes back.
    turns_s: u64,
    up: bool,
    /// What it fetches, and when that is done.
    begun: BTreeMap<BlobHash, (Part, u64)>,
}

pub(crate) struct World {
    random: Random,
    hosts: Hosts,
    now_s: u64,
    changed_s: u64,
    releases: Vec<Release>,
    nodes: BTreeMap<HostId, Node>,
    /// What everyone knows, the dead included while they may still be away.
    facts: BTreeMap<HostId, Host>,
    pub(crate) costs: Costs,
}

impl World {
    pub(crate) fn new(seed: u64, hosts: Hosts, nodes: usize, releases: u64, keeping: Keeping) -> World {
        let releases = (0..releases)
            .map(|i| Release::new(BlobHash::of(&i.to_le_bytes()), PART_BYTES, keeping).unwrap())
            .collect();
        let mut world = World {
            random: Random(seed),
            hosts,
            now_s: 0,
            changed_s: 0,
            releases,
            nodes: BTreeMap::new(),
            facts: BTreeMap::new(),
            costs: Costs::default(),
        };
        for _ in 0..nodes {
            world.join();
        }
        for release in world.releases.clone() {
            world.publish(&release);
        }
        world
    }

    pub(crate) fn now_s(&self) -> u64 {
        self.now_s
    }

    fn join(&mut self) {
        let mut id = [0; 20];
        id[..8].copy_from_slice(&self.random.next().to_le_bytes());
        let id = HostId(id);
        let dies_s = self.now_s + self.random.after(self.hosts.lifetime_s);
        let turns_s = self.hosts.away_every_s.map_or(u64::MAX, |mean| self.now_s + self.random.after(mean));
        let node = Node {
            planner: Planner::new(id, Times::DEFAULT),
            dies_s,
            turns_s,
            up: true,
            begun: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
        let (keeps, failed) = (BTreeMap::new(), BTreeSet::new());
        let host = Host { capacity: CAPACITY, left: CAPACITY, seen_s: self.now_s, keeps, failed };
        self.facts.insert(id, host);
    }

    /// Puts every part where it should be.
    fn publish(&mut self, release: &Release) {
        for facts in self.facts.values_mut() {
            facts.keeps.remove(&release.blob());
        }
        let living: BTreeMap<HostId, &Host> = self
            .facts
            .iter()
            .filter(|(id, _)| self.nodes.contains_key(*id))
            .map(|(id, f)| (*id, f))
            .collect();
        let holders = should_keep(release, &living, Times::DEFAULT, self.now_s);
        for (index, holder) in (0..).zip(holders) {
            let part = match release.keeping() {
                Keeping::Copies(_) => Part::Whole,
                Keeping::Shards { .. } => Part::Shard(index),
            };
            let facts = self.facts.get_mut(&holder).unwrap();
            facts.keeps.insert(release.blob(), (part, Intent::Keeps));
        }
    }

    /// Two hosts are gone for good.
    pub(crate) fn lose_two(&mut self) {
        for _ in 0..2 {
            self.nodes.pop_first();
        }
        self.changed_s = self.now_s;
    }

    /// The parts that are on hosts of which `counts` is true: how many copies, or different shards.
    fn parts(&self, release: &Release, counts: impl Fn(&Node) -> bool) -> usize {
        let nodes = self.nodes.iter().filter(|(_, node)| counts(node));
        let parts = nodes.filter_map(|(id, _)| self.facts[id].keeps.get(&release.blob()));
        match release.keeping() {
            Keeping::Copies(_) => parts.count(),
            Keeping::Shards { .. } => parts.map(|(part, _)| *part).collect::<BTreeSet<_>>().len(),
        }
    }

    fn whole(&self, release: &Release) -> bool {
        self.parts(release, |node| node.up) >= usize::from(release.hosts())
    }

    pub(crate) fn all_whole(&self) -> bool {
        self.releases.iter().all(|release| self.whole(release))
    }

    /// One tick, or as many at once as nothing happens in, but not beyond `until_s`.
    pub(crate) fn tick(&mut self, until_s: u64) {
        self.skip_quiet(until_s);
        self.now_s += self.hosts.tick_s;
        let now_s = self.now_s;

        let dead: Vec<HostId> =
            self.nodes.iter().filter(|(_, node)| node.dies_s <= now_s).map(|(id, _)| *id).collect();
        for id in dead {
            self.nodes.remove(&id);
            self.join();
            self.changed_s = now_s;
        }
        for (id, node) in &mut self.nodes {
            if node.turns_s <= now_s {
                node.up = !node.up;
                let mean = if node.up { self.hosts.away_every_s.unwrap() } else { self.hosts.away_s };
                node.turns_s = now_s + self.random.after(mean);
                self.changed_s = now_s;
            }
            if node.up {
                self.facts.get_mut(id).unwrap().seen_s = now_s;
            }
        }
        let nodes = &self.nodes;
        self.facts.retain(|id, facts| nodes.contains_key(id) || now_s - facts.seen_s <= DEAD_AFTER_S);

        for release in self.releases.clone() {
            let needed = match release.keeping() {
                Keeping::Copies(_) => 1,
                Keeping::Shards { code, .. } => usize::from(code.needed()),
            };
            if self.parts(&release, |_| true) < needed {
                self.costs.losses += 1;
                self.publish(&release);
                self.changed_s = now_s;
            }
        }

        let mut plans: Vec<(HostId, Plan)> = Vec::new();
        for (id, node) in self.nodes.iter_mut().filter(|(_, node)| node.up) {
            plans.push((*id, node.planner.step(now_s, &self.releases, &self.facts).unwrap()));
        }
        for (id, plan) in plans {
            self.act(id, plan);
        }
        let short = self.releases.iter().filter(|release| !self.whole(release)).count();
        self.costs.short_s += short as u64 * self.hosts.tick_s;
    }

    /// To the last tick before the next event, if nothing can happen until then.
    fn skip_quiet(&mut self, until_s: u64) {
        let next = self.nodes.values().map(|node| node.dies_s.min(node.turns_s)).min().unwrap();
        let ticks = next.min(until_s).saturating_sub(self.now_s + 1) / self.hosts.tick_s;
        if self.now_s - self.changed_s <= QUIET_S || ticks == 0 {
            return;
        }
        let short = self.releases.iter().filter(|release| !self.whole(release)).count() as u64;
        self.costs.short_s += short * ticks * self.hosts.tick_s;
        self.now_s += ticks * self.hosts.tick_s;
        for (id, _) in self.nodes.iter().filter(|(_, node)| node.up) {
            self.facts.get_mut(id).unwrap().seen_s = self.now_s;
        }
    }

    fn act(&mut self, id: HostId, plan: Plan) {
        let mut facts = self.facts.remove(&id).unwrap();
        for (intent, list) in [(Intent::Keeps, &plan.keep), (Intent::Leaves, &plan.leave)] {
            for (blob, part) in list {
                if facts.keeps.get(blob).is_some_and(|says| says.1 != intent) {
                    facts.keeps.insert(*blob, (*part, intent));
                    self.changed_s = self.now_s;
                }
            }
        }
        for drop in plan.drop {
            let shown = drop.relies_on.iter().all(|other| {
                let up = self.nodes.get(other).is_some_and(|node| node.up);
                let says = self.facts.get(other).and_then(|facts| facts.keeps.get(&drop.release));
                up && says.is_some_and(|(_, intent)| *intent == Intent::Keeps)
            });
            if shown && facts.keeps.remove(&drop.release).is_some() {
                self.changed_s = self.now_s;
            }
        }
        self.facts.insert(id, facts);

        let mut begun = BTreeMap::new();
        for fetch in plan.fetch {
            let release = *self.releases.iter().find(|release| release.blob() == fetch.release).unwrap();
            let Some(read) = self.read(&release, fetch.part, &fetch.from) else { continue };
            self.changed_s = self.now_s;
            let done_s = match self.nodes[&id].begun.get(&fetch.release) {
                Some((part, done_s)) if *part == fetch.part => *done_s,
                _ => self.now_s + self.hosts.fetch_s,
            };
            if done_s > self.now_s {
                begun.insert(fetch.release, (fetch.part, done_s));
                continue;
            }
            self.costs.read += read;
            self.facts.get_mut(&id).unwrap().keeps.insert(fetch.release, (fetch.part, Intent::Keeps));
        }
        self.nodes.get_mut(&id).unwrap().begun = begun;
    }

    /// Blobs that are read to get `part`, or `None` when its sources are not there.
    fn read(&self, release: &Release, part: Part, from: &Source) -> Option<f64> {
        let has = |host: &HostId, part: Part| {
            let up = self.nodes.get(host).is_some_and(|node| node.up);
            up && self
                .facts
                .get(host)
                .and_then(|facts| facts.keeps.get(&release.blob()))
                .is_some_and(|(p, _)| *p == part)
        };
        let needed = match release.keeping() {
            Keeping::Copies(_) => 1,
            Keeping::Shards { code, .. } => usize::from(code.needed()),
        };
        match from {
            Source::Hosts(hosts) => hosts.iter().any(|host| has(host, part)).then_some(1.0 / needed as f64),
            Source::Wholes(hosts) => {
                hosts.iter().any(|host| has(host, Part::Whole)).then_some(1.0 / needed as f64)
            }
            Source::Shards(shards) => {
                let there = shards.iter().filter(|(index, host)| has(host, Part::Shard(*index))).count();
                (there >= needed).then_some(1.0)
            }
        }
    }
}
