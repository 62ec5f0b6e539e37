//! The rule for one release: what this host should do about it.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use super::rank::{Cost, toll, weight};
use super::times::Moment;
use super::{Drop, Fetch, Host, HostId, Intent, Keeping, Memory, Part, Release, Source, Times};

/// What this host should do about one release. Whether it is leaving is in its memory.
#[derive(Default)]
pub(super) struct Decision {
    pub(super) fetch: Option<Fetch>,
    pub(super) drop: Option<Drop>,
    pub(super) lost: bool,
    /// Copies, or different shards.
    pub(super) counted: u8,
}

/// A host that may keep the release, in its place in the ranking.
struct Ranked<'a> {
    host: HostId,
    facts: &'a Host,
    says: Option<(Part, Intent)>,
}

impl Ranked<'_> {
    /// The part that others may count on.
    fn counted(&self) -> Option<Part> {
        self.says.filter(|(_, intent)| *intent == Intent::Keeps).map(|(part, _)| part)
    }
}

pub(super) fn decide<H: Borrow<Host>>(
    release: &Release,
    hosts: &BTreeMap<HostId, H>,
    me: HostId,
    at: Moment,
    memory: &mut Memory,
) -> Decision {
    let (ranked, otherwise) = rank(release, hosts, Some(me), at);
    let place = ranked.iter().position(|other| other.host == me);
    let mine =
        hosts.get(&me).and_then(|facts| facts.borrow().keeps.get(&release.blob())).map(|(part, _)| *part);
    let better = &ranked[..place.unwrap_or(ranked.len())];

    let kept = kept(release, &ranked);
    let short = kept < release.hosts();
    let wholes: Vec<HostId> =
        otherwise.iter().filter(|(_, part)| *part == Part::Whole).map(|(host, _)| *host).collect();
    let repairs = match release.keeping() {
        Keeping::Copies(_) => short,
        // Once begun, a repair goes on until nothing is missing. While somebody keeps the whole, a shard costs no more than itself, and the
        // whole may go only when all are there.
        Keeping::Shards { repair_at, .. } => {
            short && (kept <= repair_at || memory.short_since.is_some() || !wholes.is_empty())
        }
    };
    memory.short_since = if repairs { memory.short_since.or(Some(at.now_s)) } else { None };
    let needed = match release.keeping() {
        Keeping::Copies(_) => 1,
        Keeping::Shards { code, .. } => code.needed(),
    };
    let lost = wholes.is_empty() && there(release, &ranked) < needed;
    let mut decision = Decision { lost, counted: kept, ..Decision::default() };

    if let Some(part) = mine {
        decision.drop = if fits(release, part) {
            // While shards are missing, a host with a shard that another keeps is needed for a missing one.
            let notice = if short { 0 } else { at.times.leave_notice_s() };
            let others = better.iter().filter(|other| other.counted() == Some(part));
            let enough = if part == Part::Whole { release.hosts() } else { 1 };
            leave(release, part, others, enough, notice, at, memory)
        } else {
            // Kept in another way than is asked now: it may be all there is, until everything that is asked is there.
            let others = first_of_each(release, &ranked);
            let notice = at.times.leave_notice_s();
            leave(release, part, others.into_iter(), release.hosts(), notice, at, memory)
        };
        return decision;
    }
    memory.leaving_since = None;
    let waits = short && !repairs;
    if let Some(place) = place
        && !waits
        && !decision.lost
    {
        let waited = memory.short_since.map_or(0, |since| at.since(since) / at.times.patience_s());
        let should = usize::from(release.hosts());
        let may = should.saturating_add(usize::try_from(waited).unwrap_or(usize::MAX));
        if place < may {
            decision.fetch = part_for(release, &ranked, place).map(|part| Fetch {
                release: release.blob(),
                part,
                from: source(&ranked, part, &wholes),
                spare: kept.saturating_sub(needed),
            });
        }
    }
    decision
}

/// The hosts that should keep the release by these facts, best first: as many as are asked, or as there are.
pub fn should_keep<H: Borrow<Host>>(
    release: &Release,
    hosts: &BTreeMap<HostId, H>,
    times: Times,
    now_s: u64,
) -> Vec<HostId> {
    let (ranked, _) = rank(release, hosts, None, Moment { times, now_s });
    ranked.iter().take(usize::from(release.hosts())).map(|other| other.host).collect()
}

/// All hosts that may keep the release, best first: alive, with room or a part of it, and no failed challenge. Hosts with a part that
/// is not asked for now (the whole of what is kept in shards) are apart: they are sources, and ranked again when they have dropped it.
fn rank<'a, H: Borrow<Host>>(
    release: &Release,
    hosts: &'a BTreeMap<HostId, H>,
    me: Option<HostId>,
    at: Moment,
) -> (Vec<Ranked<'a>>, Vec<(HostId, Part)>) {
    let mut ranked: Vec<(Cost, Ranked<'a>)> = Vec::new();
    let mut otherwise = Vec::new();
    for (id, facts) in hosts {
        let facts: &Host = facts.borrow();
        let alive = Some(*id) == me || at.is_alive(facts.seen_s);
        if !alive || facts.failed.contains(&release.blob()) {
            continue;
        }
        let says = facts.keeps.get(&release.blob()).copied();
        match says {
            Some((part, _)) if !fits(release, part) => otherwise.push((*id, part)),
            None if facts.left < release.part_bytes() => {}
            _ => {
                let toll = toll(release.blob(), *id);
                let cost = Cost { toll, weight: weight(facts.capacity), host: *id };
                ranked.push((cost, Ranked { host: *id, facts, says }));
            }
        }
    }
    ranked.sort_by_key(|(cost, _)| *cost);
    (ranked.into_iter().map(|(_, ranked)| ranked).collect(), otherwise)
}

/// Whether a release that is kept like this has such a part at all.
fn fits(release: &Release, part: Part) -> bool {
    match (release.keeping(), part) {
        (Keeping::Copies(_), Part::Whole) => true,
        (Keeping::Shards { code, .. }, Part::Shard(index)) => index < code.shards(),
        _ => false,
    }
}

/// How many copies, or different shards, are counted.
fn kept(release: &Release, ranked: &[Ranked<'_>]) -> u8 {
    distinct(release, ranked.iter().filter_map(Ranked::counted))
}

/// How many there are, counted or leaving.
fn there(release: &Release, ranked: &[Ranked<'_>]) -> u8 {
    distinct(release, ranked.iter().filter_map(|other| other.says).map(|(part, _)| part))
}

fn distinct(release: &Release, parts: impl Iterator<Item = Part>) -> u8 {
    let mut shards = 0u64;
    let mut whole = 0u8;
    for part in parts {
        match part {
            Part::Whole => whole = whole.saturating_add(1),
            Part::Shard(index) => shards |= 1u64.checked_shl(u32::from(index)).unwrap_or(0),
        }
    }
    match release.keeping() {
        Keeping::Copies(_) => whole,
        Keeping::Shards { .. } => u8::try_from(shards.count_ones()).expect("at most 64"),
    }
}

/// The best ranked hosts that are counted, one for each shard.
fn first_of_each<'r, 'a>(release: &Release, ranked: &'r [Ranked<'a>]) -> Vec<&'r Ranked<'a>> {
    let mut seen = Vec::new();
    let mut first = Vec::new();
    for other in ranked {
        let Some(part) = other.counted() else { continue };
        let again = matches!(release.keeping(), Keeping::Shards { .. }) && seen.contains(&part);
        if !again {
            seen.push(part);
            first.push(other);
        }
    }
    first
}

/// Whether this host leaves, because `enough` of `others` keep the part, and whether it may drop it already.
fn leave<'r, 'a: 'r>(
    release: &Release,
    part: Part,
    others: impl Iterator<Item = &'r Ranked<'a>>,
    enough: u8,
    notice_s: u64,
    at: Moment,
    memory: &mut Memory,
) -> Option<Drop> {
    let enough = usize::from(enough);
    let others: Vec<&Ranked<'_>> = others.collect();
    if others.len() < enough {
        memory.leaving_since = None;
        return None;
    }
    let since = *memory.leaving_since.get_or_insert(at.now_s);
    let relies_on: Vec<HostId> = others
        .into_iter()
        .filter(|other| at.is_fresh(other.facts.seen_s))
        .map(|other| other.host)
        .take(enough)
        .collect();
    (relies_on.len() == enough && at.since(since) >= notice_s).then_some(Drop {
        release: release.blob(),
        part,
        relies_on,
    })
}

/// The part that the host in `place`, which keeps none, should fetch.
///
/// Shards are dealt so that what lies right stays: each shard belongs to the best host among those who should keep one and do, and the
/// hosts without get the shards without, both in order. Whoever stands in takes one that somebody else should have fetched.
fn part_for(release: &Release, ranked: &[Ranked<'_>], place: usize) -> Option<Part> {
    let Keeping::Shards { code, .. } = release.keeping() else { return Some(Part::Whole) };
    let should = usize::from(release.hosts()).max(place).min(ranked.len());
    let counted = |part: Part| ranked[..should].iter().any(|other| other.counted() == Some(part));
    let open: Vec<Part> = (0..code.shards()).map(Part::Shard).filter(|part| !counted(*part)).collect();
    let before = ranked[..place].iter().filter(|other| other.says.is_none()).count();
    let at = if place < usize::from(release.hosts()) { before } else { before % open.len().max(1) };
    open.get(at).copied()
}

/// Where `part` can be had.
fn source(ranked: &[Ranked<'_>], part: Part, wholes: &[HostId]) -> Source {
    let keeps = |other: &&Ranked<'_>| other.says.is_some_and(|(kept, _)| kept == part);
    let hosts: Vec<HostId> = ranked.iter().filter(keeps).map(|other| other.host).collect();
    if !hosts.is_empty() || part == Part::Whole {
        return Source::Hosts(hosts);
    }
    if !wholes.is_empty() {
        return Source::Wholes(wholes.to_vec());
    }
    let mut shards = BTreeMap::new();
    for other in ranked {
        if let Some((Part::Shard(index), _)) = other.says {
            shards.entry(index).or_insert(other.host);
        }
    }
    Source::Shards(shards.into_iter().collect())
}
