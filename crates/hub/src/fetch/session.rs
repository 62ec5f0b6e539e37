//! The course of a fetch: peers answer, one gives the outboard, the plan is carried out, the blob gets its name.

mod opening;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::opening::Tries;
use super::FetchOptions;
use super::flight::{Context, Event, Flight};
use super::http::Connection;
use super::plan::{Ending, FlightId, Has, Output, PeerId, Plan};
use super::report::{FetchError, FetchReport, Fetched, PeerFault, PeerReport, Progress};
use super::writer::{Buffers, Write, Writer};
use crate::blob::{BlobHash, TILE_BYTES, tiles};
use crate::limits::PEERS_MAX;
use crate::outboard::TileVerifier;
use crate::peer::{Dialer, PeerAddress};
use crate::store::{Arrival, Store, StoreError};

const EVENTS_WAITING_MAX: usize = 64;

/// Fetches a blob into the store. `size` is what the caller knows of it, from a release for example; without it, peers are asked,
/// and a lie is found by the outboard. A blob that the store has is not asked for. `progress` is called in order, often, and must
/// not block.
pub async fn fetch(
    store: &Store,
    hash: BlobHash,
    size: Option<u64>,
    peers: &[PeerAddress],
    dialer: &Dialer,
    options: &FetchOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Fetched, FetchError> {
    let begun = Instant::now();
    if peers.len() > PEERS_MAX {
        return Err(FetchError::TooManyPeers { got: peers.len(), most: PEERS_MAX });
    }
    let (events, inbox) = mpsc::channel(EVENTS_WAITING_MAX);
    let options = Arc::new(options.clone());
    let buffers = Buffers::default();
    let context = Context { hash, dialer: dialer.clone(), options, events, buffers };
    let report = |address: &PeerAddress| PeerReport {
        address: address.clone(),
        bytes: 0,
        tiles: 0,
        retries: 0,
        fault: None,
        dropped: false,
    };
    let report = FetchReport {
        peers: peers.iter().map(report).collect(),
        local_tiles: 0,
        resumed_tiles: 0,
        stolen_tiles: 0,
        duration: Duration::ZERO,
        arrived: Duration::ZERO,
        first_tile: None,
    };
    let found = store.clone();
    if let Some(blob) = blocking(move || found.blob(hash)).await? {
        return Ok(Fetched { blob, report });
    }
    if peers.is_empty() {
        return Err(FetchError::NoPeers { hash });
    }
    let mut session = Session {
        store: store.clone(),
        context,
        inbox,
        tasks: JoinSet::new(),
        report,
        joining: 0,
        tries: Vec::new(),
        begun,
    };
    session.ask_everyone();
    let (arrival, answered) = session.begin(size).await?;
    let arrival = session.take_local(arrival, &answered).await?;
    let arrival = session.carry_out(arrival, answered, progress).await?;
    session.report.arrived = begun.elapsed();
    let blob = blocking(move || arrival.finish()).await?;
    session.report.duration = begun.elapsed();
    Ok(Fetched { blob, report: session.report })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| FetchError::WriterLost)??)
}

struct Session {
    store: Store,
    context: Context,
    inbox: mpsc::Receiver<Event>,
    /// Dropped with the session, and with them their connections.
    tasks: JoinSet<()>,
    report: FetchReport,
    /// Peers of which it is not known yet whether they take part.
    joining: usize,
    tries: Vec<Tries>,
    begun: Instant,
}

impl Session {
    fn address(&self, peer: PeerId) -> PeerAddress {
        self.report.peers[peer.0].address.clone()
    }

    fn drop_peer(&mut self, peer: PeerId, fault: PeerFault) {
        let report = &mut self.report.peers[peer.0];
        tracing::warn!(peer = %report.address, code = fault.code(), %fault, "a peer is dropped");
        report.fault = Some(fault);
        report.dropped = true;
    }

    fn nobody(&mut self) -> FetchError {
        FetchError::NoPeerLeft { hash: self.context.hash, peers: std::mem::take(&mut self.report.peers) }
    }

    async fn carry_out(
        &mut self,
        arrival: Arrival,
        answered: Vec<(PeerId, Has)>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Arrival, FetchError> {
        let size = arrival.size();
        if size == 0 {
            // The empty blob is its outboard.
            if !arrival.missing().is_empty() {
                arrival.write(0, &[])?;
            }
            return Ok(arrival);
        }
        let missing = arrival.missing();
        let verifier = arrival.verifier()?;
        let mut there = (tiles(size) - missing.count()) * TILE_BYTES;
        let options = self.context.options.clone();
        let slots =
            (options.connections_max / self.report.peers.len()).clamp(1, options.connections_per_peer.max(1));
        let first = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) % tiles(size);
        let mut plan = Plan::new(missing.ranges().collect(), first, options.have_again);
        for (peer, has) in answered {
            plan.joined(peer, slots, has, self.begun.elapsed());
        }
        let writer = Writer::start(arrival, self.context.buffers.clone(), options.clone());
        let mut air = Air::default();
        while !plan.is_done() {
            let wake = self.act(&mut plan, &mut air, &verifier);
            if self.joining == 0 && self.report.peers.iter().all(|peer| peer.dropped) {
                drop(writer);
                return Err(self.nobody());
            }
            let event = tokio::select! {
                event = self.inbox.recv() => event,
                () = tokio::time::sleep_until((self.begun + wake).into()) => continue,
            };
            let now = self.begun.elapsed();
            match event {
                None => break,
                Some(Event::Verified { flight, first_tile, count, buffer }) => {
                    let peer = air.flights.get(&flight).map(|(peer, _)| *peer);
                    let fresh = plan.verified(flight, count, now);
                    self.report.first_tile.get_or_insert(now);
                    let mut buffer = Some(buffer);
                    for (i, run) in fresh.iter().enumerate() {
                        let at = (run.start - first_tile) * TILE_BYTES;
                        let end = ((run.end - first_tile) * TILE_BYTES).min(size - first_tile * TILE_BYTES);
                        there += end - at;
                        if let Some(PeerId(peer)) = peer {
                            self.report.peers[peer].bytes += end - at;
                            self.report.peers[peer].tiles += run.end - run.start;
                        }
                        // More than one run is rare: only then are bytes copied.
                        let bytes = if i + 1 == fresh.len() { buffer.take() } else { buffer.clone() };
                        let Some(bytes) = bytes else { continue };
                        let write =
                            Write { first_tile: run.start, buffer: bytes, at: at as usize..end as usize };
                        if !writer.write(write).await {
                            return self.end(writer).await;
                        }
                    }
                    if let Some(buffer) = buffer {
                        self.context.buffers.give(buffer);
                    }
                    progress(Progress { verified: there.min(size), size, peer: peer.map(|p| p.0) });
                }
                Some(Event::Ended { peer, flight, result, connection }) => {
                    air.flights.remove(&flight);
                    air.idle.entry(peer).or_default().extend(connection);
                    self.ended(&mut plan, &mut air, peer, flight, result, now);
                }
                Some(Event::Joined { peer, answer }) => {
                    self.joining -= 1;
                    if let Some((_, has)) = self.judge_have(peer, answer, Some(size)) {
                        plan.joined(peer, slots, has, now);
                    }
                }
                Some(Event::Has { peer, answer }) => match answer {
                    Ok((got, has)) if got == size => plan.has(peer, has, now),
                    Ok((got, _)) => {
                        plan.lost(peer);
                        air.ground(peer);
                        self.drop_peer(peer, PeerFault::WrongSize { expected: size, got });
                    }
                    Err(fault) if ending(&fault) == Ending::Crime => {
                        plan.lost(peer);
                        air.ground(peer);
                        self.drop_peer(peer, fault);
                    }
                    Err(fault) => {
                        self.report.peers[peer.0].fault = Some(fault);
                        plan.has_unanswered(peer, now);
                    }
                },
            }
        }
        self.report.stolen_tiles = plan.stolen();
        self.tasks.abort_all();
        self.end(writer).await
    }

    async fn end(&mut self, writer: Writer) -> Result<Arrival, FetchError> {
        Ok(writer.end().await.ok_or(FetchError::WriterLost)??)
    }

    /// Does what the plan says; until when nothing else is to be done.
    fn act(&mut self, plan: &mut Plan, air: &mut Air, verifier: &TileVerifier) -> Duration {
        let now = self.begun.elapsed();
        let mut wake = now + Duration::from_secs(3600);
        plan.ask_first(self.context.options.first.get());
        for output in plan.outputs(now) {
            match output {
                Output::Ask { peer, flight, tiles } => {
                    let (end, watched) = watch::channel(tiles.end);
                    let connection = air.idle.entry(peer).or_default().pop();
                    let task = Flight {
                        context: self.context.clone(),
                        verifier: verifier.clone(),
                        peer,
                        address: self.address(peer),
                        id: flight,
                        tiles,
                        end: watched,
                        connection,
                    };
                    air.flights.insert(flight, (peer, end));
                    while self.tasks.try_join_next().is_some() {}
                    self.tasks.spawn(task.run());
                }
                Output::Shorten { flight, end } => {
                    if let Some((_, stop)) = air.flights.get(&flight) {
                        stop.send_replace(end);
                    }
                }
                Output::AskHave { peer } => {
                    let (context, address) = (self.context.clone(), self.address(peer));
                    self.tasks.spawn(async move {
                        let answer = context.have(&address).await;
                        drop(context.events.send(Event::Has { peer, answer }).await);
                    });
                }
                Output::GiveUp { peer } => {
                    let fault = self.report.peers[peer.0].fault.take().unwrap_or(PeerFault::HasNot);
                    self.drop_peer(peer, fault);
                    air.ground(peer);
                }
                Output::Wake { at } => wake = at,
            }
        }
        wake
    }

    fn ended(
        &mut self,
        plan: &mut Plan,
        air: &mut Air,
        peer: PeerId,
        flight: FlightId,
        result: Result<(), PeerFault>,
        now: Duration,
    ) {
        let Err(fault) = result else { return plan.ended(flight, Ending::Complete, now) };
        let ending = ending(&fault);
        plan.ended(flight, ending, now);
        if air.grounded.contains(&peer) {
            return;
        }
        if ending == Ending::Crime {
            plan.lost(peer);
            air.ground(peer);
            self.drop_peer(peer, fault);
        } else {
            self.report.peers[peer.0].retries += 1;
            self.report.peers[peer.0].fault = Some(fault);
        }
    }
}

/// What a fault means for the peer.
fn ending(fault: &PeerFault) -> Ending {
    match fault {
        PeerFault::Unreachable { .. }
        | PeerFault::Broken { .. }
        | PeerFault::Stalled
        | PeerFault::Failed { .. } => Ending::Broken,
        PeerFault::Busy { retry_after_s, .. } => {
            Ending::Busy(Duration::from_secs(retry_after_s.unwrap_or_default().min(3600)))
        }
        PeerFault::HasNot => Ending::NotHere,
        _ => Ending::Crime,
    }
}

/// Flights under way and connections that wait for one.
#[derive(Default)]
struct Air {
    flights: HashMap<FlightId, (PeerId, watch::Sender<u64>)>,
    idle: HashMap<PeerId, Vec<Connection>>,
    grounded: HashSet<PeerId>,
}

impl Air {
    /// Ends everything with a peer.
    fn ground(&mut self, peer: PeerId) {
        self.grounded.insert(peer);
        self.idle.remove(&peer);
        for (_, stop) in self.flights.values().filter(|(of, _)| *of == peer) {
            stop.send_replace(0);
        }
    }
}
