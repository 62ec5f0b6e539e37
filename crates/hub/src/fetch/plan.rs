//! Who is asked for which tiles: a machine without I/O and without a clock of its own.
//!
//! Invariant: every tile that is missing is either wanted, or in exactly one flight between what that flight has delivered and its
//! end. Stealing moves the end of a slow flight and gives what lies behind to another peer, so that only what is asked for twice is
//! what was stolen. It refuses nothing that peers say beyond what the caller tells it: whoever reads the answers judges them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::runs::Runs;
use crate::limits::{
    BACKOFF, BACKOFF_MAX, HAVE_ASKS_MAX, PAUSES_MAX, RANGE_FIRST_PARTS, RANGE_TILES_FIRST, RANGE_TILES_MAX,
    RANGE_TILES_MIN, RANGE_TIME, RETRIES_MAX, STEAL_AFTER,
};

/// Time since the fetch began.
pub(crate) type Now = Duration;

/// One of the peers of a fetch, in the order in which they were named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(pub(crate) usize);

/// One request for a range of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FlightId(pub(crate) u64);

/// Which tiles a peer says that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    /// All of them.
    All,
    /// These.
    Some(Runs),
}

impl Has {
    fn runs(&self) -> Option<&Runs> {
        match self {
            Has::All => None,
            Has::Some(runs) => Some(runs),
        }
    }

    fn contains(&self, tile: u64) -> bool {
        self.runs().is_none_or(|runs| runs.contains(tile))
    }
}

/// How a flight ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All that was asked for came, or what had come when it was shortened.
    Complete,
    /// The connection broke or was silent: it is worth another try.
    Broken,
    /// The peer asks for a pause.
    Busy(Duration),
    /// The peer does not have these tiles (yet).
    NotHere,
    /// The peer did what no honest peer does.
    Crime,
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Ask a peer for tiles, on a connection of its own.
    Ask { peer: PeerId, flight: FlightId, tiles: Range<u64> },
    /// Read a flight only up to this tile, and give its connection up if it is there already.
    Shorten { flight: FlightId, end: u64 },
    /// Ask a peer again what it has; answered by [`Plan::has`] or [`Plan::lost`].
    AskHave { peer: PeerId },
    /// A peer failed too often, or had nothing too often: it takes part no longer.
    GiveUp { peer: PeerId },
    /// Nothing changes before this time, unless something is reported.
    Wake { at: Now },
}

#[derive(Debug)]
struct Peer {
    slots: usize,
    flights: usize,
    has: Has,
    /// Time that one connection takes for a tile.
    tile_time: Option<Duration>,
    rest_until: Now,
    failures: u32,
    pauses: u32,
    /// Asks for what it has that brought nothing, and when the next one is due. None while one is under way.
    have_asks: u32,
    have_at: Option<Now>,
    gone: bool,
}

impl Peer {
    /// All its connections break at once when a peer dies: that is one failure.
    fn fail(&mut self, now: Now) {
        if now >= self.rest_until {
            self.failures += 1;
            self.rest_until = now + (BACKOFF * 2_u32.pow(self.failures.min(10))).min(BACKOFF_MAX);
        }
    }

    fn is_hopeless(&self) -> bool {
        self.failures > RETRIES_MAX || self.pauses > PAUSES_MAX || self.have_asks > HAVE_ASKS_MAX
    }
}

#[derive(Debug)]
struct Flight {
    peer: PeerId,
    start: u64,
    next: u64,
    end: u64,
    asked_at: Now,
    progress_at: Now,
}

impl Flight {
    /// Time for one tile: as it was until now, or longer if it has been silent for longer.
    fn tile_time(&self, now: Now, peer: &Peer) -> Duration {
        let silence = now.saturating_sub(self.progress_at);
        match u32::try_from(self.next - self.start) {
            Ok(0) | Err(_) => silence.max(peer.tile_time.unwrap_or_default()),
            Ok(got) => silence.max((self.progress_at - self.asked_at) / got),
        }
    }
}

/// The plan of one fetch.
#[derive(Debug)]
pub(crate) struct Plan {
    missing: Runs,
    wanted: Runs,
    peers: BTreeMap<PeerId, Peer>,
    flights: BTreeMap<FlightId, Flight>,
    flight_next: u64,
    cursor: u64,
    /// What is asked for before anything else, in this order.
    first: Vec<Range<u64>>,
    stolen: u64,
    have_again: Duration,
}

impl Plan {
    /// A plan for these tiles, begun at tile `first`: hosts that fetch the same blob at the same time begin in different places, so
    /// that they have something to give each other. `have_again` is the pause between asks for what a peer has.
    pub(crate) fn new(missing: Runs, first: u64, have_again: Duration) -> Plan {
        Plan {
            wanted: missing.clone(),
            missing,
            peers: BTreeMap::new(),
            flights: BTreeMap::new(),
            flight_next: 0,
            cursor: first,
            first: Vec::new(),
            stolen: 0,
            have_again,
        }
    }

    /// From now on these tiles are asked for before others, in this order.
    pub(crate) fn ask_first(&mut self, first: Vec<Range<u64>>) {
        self.first = first;
    }

    /// Nothing is missing.
    pub(crate) fn is_done(&self) -> bool {
        self.missing.is_empty()
    }

    /// Tiles that were asked of a second peer because the first was slow.
    pub(crate) fn stolen(&self) -> u64 {
        self.stolen
    }

    /// A peer takes part, with so many connections.
    pub(crate) fn joined(&mut self, peer: PeerId, slots: usize, has: Has, now: Now) {
        let peer_new = Peer {
            slots,
            flights: 0,
            has,
            tile_time: None,
            rest_until: Duration::ZERO,
            failures: 0,
            pauses: 0,
            have_asks: 0,
            have_at: Some(now + self.have_again),
            gone: false,
        };
        self.peers.insert(peer, peer_new);
    }

    /// What a peer has now.
    pub(crate) fn has(&mut self, peer: PeerId, has: Has, now: Now) {
        let useful = self.missing.first_common(has.runs(), 0, 1).is_some();
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.have_asks = if useful { 0 } else { peer.have_asks + 1 };
            peer.have_at = Some(now + self.have_again * 2_u32.pow(peer.have_asks.min(4)));
            peer.has = has;
        }
    }

    /// A peer could not say what it has.
    pub(crate) fn has_unanswered(&mut self, peer: PeerId, now: Now) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.have_asks += 1;
            peer.have_at = Some(now + self.have_again * 2_u32.pow(peer.have_asks.min(4)));
        }
    }

    /// A peer takes part no longer. Its flights end here; what it delivered stands.
    pub(crate) fn lost(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.gone = true;
        }
        let its: Vec<FlightId> =
            self.flights.iter().filter(|(_, f)| f.peer == peer).map(|(id, _)| *id).collect();
        for id in its {
            self.land(id);
        }
    }

    /// The next `count` tiles of a flight came and are right. Says which of them nobody had delivered before: those are to be
    /// written.
    pub(crate) fn verified(&mut self, flight: FlightId, count: u64, now: Now) -> Vec<Range<u64>> {
        let Some(f) = self.flights.get_mut(&flight) else { return Vec::new() };
        let tiles = f.next..f.next + count;
        f.next = tiles.end;
        f.progress_at = now;
        if let Some(peer) = self.peers.get_mut(&f.peer) {
            peer.failures = 0;
            peer.pauses = 0;
        }
        let fresh = self.missing.within(tiles.clone());
        self.missing.remove(tiles.clone());
        // A shortened flight may have gone on into what is wanted again.
        self.wanted.remove(tiles);
        fresh
    }

    /// A flight ended: by itself, or because its peer did wrong.
    pub(crate) fn ended(&mut self, flight: FlightId, ending: Ending, now: Now) {
        let Some(f) = self.flights.get(&flight) else { return };
        let (id, whole, got) = (f.peer, f.next >= f.end, f.next - f.start);
        let took = now.saturating_sub(f.asked_at);
        self.land(flight);
        let have_again = self.have_again;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(got) = u32::try_from(got).ok().filter(|got| *got > 0) {
            let measured = took / got;
            peer.tile_time = Some(peer.tile_time.map_or(measured, |old| (old * 3 + measured) / 4));
        }
        match ending {
            // Everything was taken from it before it delivered anything: as slow as that, or silent.
            Ending::Complete if got == 0 => {
                peer.tile_time = Some(peer.tile_time.unwrap_or_default().max(took));
                peer.fail(now);
            }
            Ending::Complete if whole => {}
            Ending::Crime => peer.gone = true,
            Ending::Busy(pause) => {
                if now >= peer.rest_until {
                    peer.pauses += 1;
                }
                peer.rest_until = peer.rest_until.max(now + pause.clamp(BACKOFF, BACKOFF_MAX));
            }
            Ending::NotHere => {
                // Nothing is known of what it has until it says so again. One that says that it has what it does not give fails.
                peer.failures += 1;
                peer.has = Has::Some(Runs::default());
                peer.have_at = peer.have_at.map(|_| now + have_again);
            }
            Ending::Broken | Ending::Complete => {
                peer.fail(now);
            }
        }
    }

    fn land(&mut self, flight: FlightId) {
        let Some(f) = self.flights.remove(&flight) else { return };
        if let Some(peer) = self.peers.get_mut(&f.peer) {
            peer.flights -= 1;
        }
        for back in self.missing.within(f.next..f.end.max(f.next)) {
            self.wanted.insert(back);
        }
    }

    /// What is to be done now. Everything that was asked for before stays asked for.
    pub(crate) fn outputs(&mut self, now: Now) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.is_done() {
            return outputs;
        }
        let failed: Vec<PeerId> =
            self.peers.iter().filter(|(_, p)| !p.gone && p.is_hopeless()).map(|(id, _)| *id).collect();
        for peer in failed {
            self.lost(peer);
            outputs.push(Output::GiveUp { peer });
        }
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        // One range for each peer in turn, so that the first peer does not take everything of a small blob.
        loop {
            let before = outputs.len();
            for &id in &ids {
                if self.is_idle(id, now) {
                    outputs.extend(self.assign(id, now));
                }
            }
            if outputs.len() == before {
                break;
            }
        }
        // The fastest first: what a silent peer took from a silent peer would stay where it is.
        let mut thieves = ids.clone();
        thieves.sort_by_key(|id| self.peers.get(id).and_then(|p| p.tile_time).unwrap_or(Duration::MAX));
        for id in thieves {
            outputs.extend(self.steal(id, now));
        }
        for &id in &ids {
            outputs.extend(self.ask_have(id, now));
        }
        outputs.extend(self.wake(now).map(|at| Output::Wake { at }));
        outputs
    }

    fn is_idle(&self, id: PeerId, now: Now) -> bool {
        self.peers.get(&id).is_some_and(|p| !p.gone && p.flights < p.slots && now >= p.rest_until)
    }

    fn assign(&mut self, id: PeerId, now: Now) -> Option<Output> {
        let slots: usize = self.peers.values().filter(|p| !p.gone).map(|p| p.slots).sum();
        let peer = self.peers.get(&id)?;
        let by_speed = match peer.tile_time {
            None => RANGE_TILES_FIRST,
            Some(time) => {
                (RANGE_TIME.as_nanos() / time.as_nanos().max(1)).min(u128::from(RANGE_TILES_MAX)) as u64
            }
        };
        // Towards the end ranges become short, so that all peers end together.
        let share = self.wanted.count() / (2 * slots.max(1) as u64);
        let most = by_speed.min(share.max(RANGE_TILES_MIN)).max(1);
        let has = peer.has.runs();
        let few = most.div_ceil(RANGE_FIRST_PARTS);
        let first = self.first.iter().find_map(|range| self.wanted.first_common_within(has, range, few));
        let tiles = match first {
            Some(tiles) => tiles,
            None => {
                let tiles = self.wanted.first_common(has, self.cursor, most)?;
                self.cursor = tiles.end;
                tiles
            }
        };
        self.wanted.remove(tiles.clone());
        Some(self.fly(id, tiles, now))
    }

    fn fly(&mut self, id: PeerId, tiles: Range<u64>, now: Now) -> Output {
        let flight = FlightId(self.flight_next);
        self.flight_next += 1;
        let (start, end) = (tiles.start, tiles.end);
        let made = Flight { peer: id, start, next: start, end, asked_at: now, progress_at: now };
        self.flights.insert(flight, made);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.flights += 1;
        }
        Output::Ask { peer: id, flight, tiles }
    }

    /// The end of the flight that will take longest, for an idle peer that would be done with it in half the time.
    fn steal(&mut self, id: PeerId, now: Now) -> Vec<Output> {
        if !self.is_idle(id, now) {
            return Vec::new();
        }
        let Some(thief) = self.peers.get(&id) else { return Vec::new() };
        let mut best: Option<(Duration, FlightId, u64)> = None;
        for (flight, f) in &self.flights {
            let Some(left) = f.end.checked_sub(f.next).filter(|left| *left > 0 && f.peer != id) else {
                continue;
            };
            let Some(victim) = self.peers.get(&f.peer) else { continue };
            let each = f.tile_time(now, victim);
            let takes = each.saturating_mul(left.min(u64::from(u32::MAX)) as u32);
            if takes < STEAL_AFTER || !thief.has.contains(f.end - 1) {
                continue;
            }
            let share = match thief.tile_time {
                None => left.div_ceil(2),
                Some(mine) => {
                    let both = each.as_nanos() + mine.as_nanos();
                    (u128::from(left) * each.as_nanos()).div_ceil(both.max(1)) as u64
                }
            };
            // Of what it would take, only the end that the thief has in one piece.
            let cut = f.end - share.clamp(1, RANGE_TILES_MAX);
            let cut = match thief.has.runs() {
                None => cut,
                Some(runs) => runs.within(cut..f.end).last().map_or(cut, |run| run.start),
            };
            let mine = thief.tile_time.unwrap_or_default().saturating_mul((f.end - cut) as u32);
            if mine * 2 < takes && best.is_none_or(|(most, ..)| takes > most) {
                best = Some((takes, *flight, cut));
            }
        }
        let Some((_, flight, cut)) = best else { return Vec::new() };
        let Some(f) = self.flights.get_mut(&flight) else { return Vec::new() };
        let tiles = cut..f.end;
        f.end = cut;
        self.stolen += tiles.end - tiles.start;
        vec![Output::Shorten { flight, end: cut }, self.fly(id, tiles, now)]
    }

    fn ask_have(&mut self, id: PeerId, now: Now) -> Option<Output> {
        if !self.lacks(id) {
            return None;
        }
        let peer = self.peers.get_mut(&id)?;
        if peer.have_at.is_some_and(|at| now >= at) {
            peer.have_at = None;
            return Some(Output::AskHave { peer: id });
        }
        None
    }

    /// A peer that could work, but has nothing that is wanted.
    fn lacks(&self, id: PeerId) -> bool {
        self.peers.get(&id).is_some_and(|p| {
            !p.gone && p.flights == 0 && self.missing.first_common(p.has.runs(), 0, 1).is_none()
        })
    }

    fn wake(&self, now: Now) -> Option<Now> {
        let mut at: Option<Now> = None;
        let mut sooner = |time: Now| at = Some(at.map_or(time, |at| at.min(time)));
        for (id, peer) in &self.peers {
            if peer.gone {
                continue;
            }
            if now < peer.rest_until {
                sooner(peer.rest_until);
            } else if peer.flights < peer.slots && !self.flights.is_empty() {
                sooner(now + STEAL_AFTER / 2);
            }
            if let Some(have_at) = peer.have_at.filter(|_| self.lacks(*id)) {
                sooner(have_at.max(now));
            }
        }
        at
    }
}

#[cfg(test)]
mod tests;
