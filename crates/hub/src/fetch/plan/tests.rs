//! The plan against simulated peers: slow, dying, lying, partial, and one that is honest and whole.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use proptest::prelude::*;

use super::*;

const AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
struct Behaviour {
    tile_time: Duration,
    slots: usize,
    /// After so many tiles the connection breaks, for so many times; then it never answers again.
    breaks_after: Option<u64>,
    /// After so many tiles comes a wrong one.
    lies_after: Option<u64>,
    /// After so many tiles comes nothing more, and nobody says so before a timeout.
    stalls_after: Option<u64>,
    /// Has only every n-th run of 7 tiles at first; one class more each time it is asked.
    partial: Option<u64>,
    busy_every: Option<u64>,
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let some = |most: u64| prop::option::weighted(0.3, 0..most);
    (
        10..20_000_u64,
        1..4_usize,
        some(200),
        some(200),
        some(200),
        prop::option::weighted(0.3, 2..6_u64),
        some(9),
    )
        .prop_map(|(micros, slots, breaks_after, lies_after, stalls_after, partial, busy)| Behaviour {
            tile_time: Duration::from_micros(micros),
            slots,
            breaks_after,
            lies_after,
            stalls_after,
            partial,
            busy_every: busy.map(|n| n + 2),
        })
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tile(u64),
    Stalled(u64),
    Busy(u64),
    Have(usize),
    Wake,
}

#[derive(Debug, Default)]
struct Outcome {
    fresh: u64,
    delivered: u64,
    stolen: u64,
    by_peer: BTreeMap<usize, u64>,
    given_up: BTreeSet<usize>,
    took: Duration,
}

fn has(behaviour: &Behaviour, tiles: u64, asked: u64) -> Has {
    match behaviour.partial {
        Some(n) if asked < n - 1 => Has::Some(
            (0..tiles.div_ceil(7))
                .filter(|run| run % n <= asked)
                .map(|run| run * 7..(run * 7 + 7).min(tiles))
                .collect(),
        ),
        _ => Has::All,
    }
}

/// Runs a fetch in time that is only counted. Panics when the plan breaks a promise, or when nothing is left to happen.
fn simulate(tiles: u64, first: u64, peers: &[Behaviour]) -> Outcome {
    let whole = tiles;
    let missing: Runs = std::iter::once(0..tiles).collect();
    let mut woken_at = None;
    let mut plan = Plan::new(missing, first, AGAIN);
    let mut there = BTreeSet::new();
    let mut sent = vec![0_u64; peers.len()];
    let mut requests = vec![0_u64; peers.len()];
    let mut have_asks = vec![0_u64; peers.len()];
    let mut flights: BTreeMap<u64, (usize, Range<u64>)> = BTreeMap::new();
    let mut events = BinaryHeap::new();
    let mut outcome = Outcome::default();
    for (id, peer) in peers.iter().enumerate() {
        plan.joined(PeerId(id), peer.slots, has(peer, tiles, 0), Duration::ZERO);
    }
    events.push(Reverse((Duration::ZERO, Event::Wake)));
    let mut steps = 0;
    while let Some(Reverse((now, event))) = events.pop() {
        steps += 1;
        assert!(steps < 400_000, "the plan does not come to an end");
        outcome.took = now;
        match event {
            Event::Wake => woken_at = None,
            Event::Have(id) => {
                have_asks[id] += 1;
                plan.has(PeerId(id), has(&peers[id], tiles, have_asks[id]), now);
            }
            Event::Stalled(flight) => {
                if flights.remove(&flight).is_some() {
                    plan.ended(FlightId(flight), Ending::Broken, now);
                }
            }
            Event::Busy(flight) => {
                flights.remove(&flight);
                plan.ended(FlightId(flight), Ending::Busy(Duration::from_millis(1)), now);
            }
            Event::Tile(flight) => {
                let Some((id, left)) = flights.get_mut(&flight) else { continue };
                let (id, peer) = (*id, &peers[*id]);
                if left.is_empty() {
                    flights.remove(&flight);
                    plan.ended(FlightId(flight), Ending::Complete, now);
                } else if peer.breaks_after.is_some_and(|most| sent[id] >= most) {
                    flights.remove(&flight);
                    plan.ended(FlightId(flight), Ending::Broken, now);
                } else if peer.lies_after.is_some_and(|most| sent[id] >= most) {
                    flights.retain(|_, (of, _)| *of != id);
                    plan.ended(FlightId(flight), Ending::Crime, now);
                    plan.lost(PeerId(id));
                } else if peer.stalls_after.is_some_and(|most| sent[id] >= most) {
                    events.push(Reverse((now + Duration::from_secs(15), Event::Stalled(flight))));
                } else {
                    sent[id] += 1;
                    outcome.delivered += 1;
                    let tile = left.start;
                    left.start += 1;
                    for fresh in plan.verified(FlightId(flight), 1, now) {
                        assert_eq!(fresh, tile..tile + 1);
                        assert!(there.insert(tile), "tile {tile} was fresh twice");
                        outcome.fresh += 1;
                        *outcome.by_peer.entry(id).or_default() += 1;
                    }
                    events.push(Reverse((now + peer.tile_time, Event::Tile(flight))));
                }
            }
        }
        if plan.is_done() {
            break;
        }
        let mut shortened = false;
        for output in plan.outputs(now) {
            match output {
                Output::Ask { peer: PeerId(id), flight: FlightId(flight), tiles } => {
                    let peer = &peers[id];
                    assert!(!tiles.is_empty() && !outcome.given_up.contains(&id));
                    let busy = flights.values().filter(|(of, _)| *of == id).count();
                    assert!(busy < peer.slots, "more requests than connections");
                    if !std::mem::take(&mut shortened) {
                        assert!(tiles.clone().all(|tile| !there.contains(&tile)), "asked for what is there");
                    }
                    let has = has(peer, whole, have_asks[id]);
                    assert!(tiles.clone().all(|tile| has.contains(tile)), "asked for what the peer has not");
                    requests[id] += 1;
                    flights.insert(flight, (id, tiles));
                    let event = match peer.busy_every {
                        Some(n) if requests[id].is_multiple_of(n) => Event::Busy(flight),
                        _ => Event::Tile(flight),
                    };
                    events.push(Reverse((now + peer.tile_time, event)));
                }
                Output::Shorten { flight: FlightId(flight), end } => {
                    shortened = true;
                    if let Some((_, left)) = flights.get_mut(&flight) {
                        left.end = end.max(left.start);
                        if left.is_empty() {
                            events.push(Reverse((now, Event::Tile(flight))));
                        }
                    }
                }
                Output::AskHave { peer: PeerId(id) } => events.push(Reverse((now, Event::Have(id)))),
                Output::GiveUp { peer: PeerId(id) } => {
                    assert!(outcome.given_up.insert(id));
                    flights.retain(|_, (of, _)| *of != id);
                }
                Output::Wake { at } => {
                    let at = at.max(now + Duration::from_micros(1));
                    if woken_at.is_none_or(|other| at < other) {
                        woken_at = Some(at);
                        events.push(Reverse((at, Event::Wake)));
                    }
                }
            }
        }
    }
    assert!(plan.is_done(), "the plan has stopped: {plan:?}");
    outcome.stolen = plan.stolen();
    outcome
}

fn honest(tile_time: Duration) -> Behaviour {
    Behaviour {
        tile_time,
        slots: 2,
        breaks_after: None,
        lies_after: None,
        stalls_after: None,
        partial: None,
        busy_every: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_fetch_ends_while_one_honest_whole_peer_stays(
        tiles in 1..3000_u64,
        first in 0..3000_u64,
        mut peers in prop::collection::vec(behaviour(), 0..6),
        micros in 10..5_000_u64,
    ) {
        peers.push(honest(Duration::from_micros(micros)));
        let outcome = simulate(tiles, first, &peers);
        prop_assert_eq!(outcome.fresh, tiles);
        prop_assert!(outcome.delivered <= tiles + outcome.stolen, "{:?}", outcome);
        prop_assert!(outcome.stolen <= 2 * tiles + 64, "{:?}", outcome);
        prop_assert!(!outcome.given_up.contains(&(peers.len() - 1)));
    }
}

#[test]
fn a_slow_peer_does_not_hold_the_end_up() {
    let fast = Duration::from_micros(100);
    let alone = simulate(8192, 0, &[honest(fast), honest(fast), honest(fast)]);
    let slow = [honest(fast), honest(fast), honest(fast), honest(fast * 100)];
    let beside = simulate(8192, 0, &slow);
    assert!(beside.took <= alone.took + STEAL_AFTER * 2, "{:?} beside {:?}", beside.took, alone.took);
    assert!(beside.delivered - beside.fresh <= 128, "{beside:?}");
    assert!(beside.by_peer.get(&3).is_some_and(|tiles| *tiles > 0), "the slow peer helps too");
}

#[test]
fn equal_peers_share_equally_and_steal_nothing() {
    let peers = vec![honest(Duration::from_micros(50)); 4];
    let outcome = simulate(16_384, 0, &peers);
    assert_eq!(outcome.stolen, 0);
    assert!(outcome.by_peer.values().all(|tiles| tiles.abs_diff(4096) <= 1024), "{outcome:?}");
}

#[test]
fn a_peer_that_always_breaks_is_given_up_after_its_tries() {
    let mut plan = Plan::new(std::iter::once(0..10).collect(), 0, AGAIN);
    plan.joined(PeerId(0), 1, Has::All, Duration::ZERO);
    let (mut now, mut asked) = (Duration::ZERO, 0);
    loop {
        let outputs = plan.outputs(now);
        for output in &outputs {
            match output {
                Output::Ask { flight, .. } => {
                    asked += 1;
                    plan.ended(*flight, Ending::Broken, now);
                }
                Output::Wake { at } => now = *at,
                _ => {}
            }
        }
        if outputs.contains(&Output::GiveUp { peer: PeerId(0) }) {
            break;
        }
        assert!(asked <= RETRIES_MAX + 1);
        if !outputs.iter().any(|o| matches!(o, Output::Wake { .. })) {
            now += BACKOFF;
        }
    }
    assert_eq!(asked, RETRIES_MAX + 1);
    assert!(!plan.is_done());
}

#[test]
fn a_host_that_never_gets_anything_is_given_up() {
    let mut plan = Plan::new(std::iter::once(0..10).collect(), 0, AGAIN);
    plan.joined(PeerId(0), 1, Has::Some(Runs::default()), Duration::ZERO);
    let (mut now, mut asked) = (Duration::ZERO, 0);
    for _ in 0..10 * HAVE_ASKS_MAX {
        now += AGAIN * 16;
        for output in plan.outputs(now) {
            match output {
                Output::AskHave { peer } => {
                    asked += 1;
                    plan.has(peer, Has::Some(Runs::default()), now);
                }
                Output::GiveUp { .. } => {
                    assert_eq!(asked, HAVE_ASKS_MAX + 1);
                    return;
                }
                _ => {}
            }
        }
    }
    panic!("it is asked for ever");
}

#[test]
fn what_is_to_come_first_is_asked_for_first() {
    let mut plan = Plan::new(std::iter::once(0..1000).collect(), 500, AGAIN);
    plan.joined(PeerId(0), 1, Has::All, Duration::ZERO);
    plan.joined(PeerId(1), 1, Has::Some(std::iter::once(0..905).collect()), Duration::ZERO);
    let mut next = |first: Vec<Range<u64>>| -> Vec<(usize, Range<u64>)> {
        plan.ask_first(first);
        let asked: Vec<(PeerId, FlightId, Range<u64>)> = plan
            .outputs(Duration::ZERO)
            .into_iter()
            .filter_map(|output| match output {
                Output::Ask { peer, flight, tiles } => Some((peer, flight, tiles)),
                _ => None,
            })
            .collect();
        for (_, flight, tiles) in &asked {
            plan.verified(*flight, tiles.end - tiles.start, Duration::ZERO);
            plan.ended(*flight, Ending::Complete, Duration::ZERO);
        }
        asked.into_iter().map(|(peer, _, tiles)| (peer.0, tiles)).collect()
    };
    assert_eq!(next(vec![900..910, 3..5]), [(0, 900..910), (1, 3..5)]);
    // The list may change; what was asked for is not asked for again, and each is asked for what it has.
    assert_eq!(next(vec![3..5, 905..915, 7..8]), [(0, 910..915), (1, 7..8)]);
    // Without it, and where it is done, everything comes in order from where the plan was to begin.
    let rest = next(vec![900..910, 3..5]);
    assert_eq!((rest[0].0, rest[0].1.start, rest[1].0), (0, 500, 1));
    assert_eq!(rest[1].1.start, rest[0].1.end);
}
