//! The opening of a fetch: who takes part, the outboard, and what other blobs here have already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::{Session, blocking, ending};
use crate::blob::{BLOB_BYTES_MAX, TILE_BYTES, tiles};
use crate::fetch::flight::{Context, Event};
use crate::fetch::plan::{Ending, Has, PeerId};
use crate::fetch::report::{FetchError, PeerFault};
use crate::limits::{ASK_NEXT_AFTER, BACKOFF, BACKOFF_MAX, HAVE_ASKS_MAX, PAUSES_MAX, RETRIES_MAX};
use crate::outboard::{Outboard, TileVerifier};
use crate::peer::PeerAddress;
use crate::store::Arrival;

impl Session {
    pub(super) fn ask_everyone(&mut self) {
        self.joining = self.report.peers.len();
        self.tries = vec![Tries::default(); self.joining];
        (0..self.joining).for_each(|id| self.ask(PeerId(id), Duration::ZERO));
    }

    /// Asks a peer after a pause whether and with what it takes part.
    fn ask(&mut self, peer: PeerId, pause: Duration) {
        let (context, address) = (self.context.clone(), self.address(peer));
        self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            let answer = context.have(&address).await;
            drop(context.events.send(Event::Joined { peer, answer }).await);
        });
    }

    /// A peer could not say what it has, or not give an outboard: it is asked again, or takes part no longer.
    fn ask_again(&mut self, peer: PeerId, fault: PeerFault) {
        match self.tries[peer.0].pause(&fault) {
            Some(pause) => {
                self.report.peers[peer.0].retries += 1;
                self.report.peers[peer.0].fault = Some(fault);
                self.joining += 1;
                self.ask(peer, pause);
            }
            None => self.drop_peer(peer, fault),
        }
    }

    /// A peer has too little yet.
    fn ask_later(&mut self, peer: PeerId, fault: PeerFault) {
        self.tries[peer.0].too_early += 1;
        let asks = self.tries[peer.0].too_early;
        if asks > HAVE_ASKS_MAX {
            return self.drop_peer(peer, fault);
        }
        self.report.peers[peer.0].fault = Some(fault);
        self.joining += 1;
        self.ask(peer, self.context.options.have_again * 2_u32.pow(asks.min(4)));
    }

    /// An arrival with a right outboard, and who answered meanwhile; whoever gave the outboard first.
    pub(super) async fn begin(
        &mut self,
        given: Option<u64>,
    ) -> Result<(Arrival, Vec<(PeerId, Has)>), FetchError> {
        let (hash, store) = (self.context.hash, self.store.clone());
        let mut known = match given {
            Some(size) => Some(blocking(move || store.arrive(hash, size)).await?),
            None => None,
        };
        let mut answered: Vec<(PeerId, u64, Has)> = Vec::new();
        // A slow peer must not be what everything waits for: after a while the next one is asked too.
        let mut to_ask = VecDeque::new();
        let mut asked = FuturesUnordered::new();
        let mut ask_next = Instant::now();
        loop {
            let ready = |arrival: &mut Arrival| !arrival.outboard_needed() && !answered.is_empty();
            if let Some(arrival) = known.take_if(ready) {
                let size = arrival.size();
                for (peer, got, _) in answered.extract_if(.., |(_, got, _)| *got != size) {
                    self.drop_peer(peer, PeerFault::WrongSize { expected: size, got });
                }
                return Ok((arrival, answered.into_iter().map(|(peer, _, has)| (peer, has)).collect()));
            }
            if (asked.is_empty() || Instant::now() >= ask_next)
                && let Some((peer, claimed)) = to_ask.pop_front()
            {
                let outboard = outboard(self.context.clone(), self.address(peer), claimed, given);
                asked.push(async move { (peer, claimed, outboard.await) });
                ask_next = Instant::now() + ASK_NEXT_AFTER;
            }
            if self.joining == 0 && asked.is_empty() {
                return Err(self.nobody());
            }
            tokio::select! {
                event = self.inbox.recv() => {
                    let Some(Event::Joined { peer, answer }) = event else { continue };
                    self.joining -= 1;
                    if let Some((claimed, has)) = self.judge_have(peer, answer, given) {
                        answered.push((peer, claimed, has));
                        to_ask.push_back((peer, claimed));
                    }
                }
                Some((peer, claimed, outboard)) = asked.next() => match outboard {
                    Ok(bytes) => {
                        let (store, before) = (self.store.clone(), known.take());
                        let arrival = blocking(move || {
                            let mut arrival = before.map_or_else(|| store.arrive(hash, claimed), Ok)?;
                            arrival.set_outboard(&bytes)?;
                            Ok(arrival)
                        });
                        known = Some(arrival.await?);
                        answered.sort_by_key(|(other, ..)| *other != peer);
                    }
                    Err(fault) => {
                        let found = answered.iter().position(|(other, ..)| *other == peer);
                        match found.map(|at| answered.remove(at)) {
                            // What is still arriving there may lack the outboard or the last tile for a while.
                            Some((_, _, Has::Some(_))) if ending(&fault) == Ending::NotHere => {
                                self.ask_later(peer, fault);
                            }
                            _ => self.ask_again(peer, fault),
                        }
                    }
                },
                () = tokio::time::sleep_until(ask_next.into()), if !to_ask.is_empty() => {}
            }
        }
    }

    /// Takes over tiles that other blobs have. The list is a hint; without it, everything is fetched.
    pub(super) async fn take_local(
        &mut self,
        mut arrival: Arrival,
        answered: &[(PeerId, Has)],
    ) -> Result<Arrival, FetchError> {
        self.report.resumed_tiles = tiles(arrival.size()) - arrival.missing().count();
        let store = self.store.clone();
        let others = blocking(move || store.blobs()).await?;
        if others.is_empty() {
            return Ok(arrival);
        }
        let size = arrival.size();
        let mut lists = FuturesUnordered::new();
        for (i, (peer, _)) in (0..).zip(answered.iter().filter(|(_, has)| *has == Has::All)) {
            let (context, address) = (self.context.clone(), self.address(*peer));
            lists.push(async move {
                tokio::time::sleep(ASK_NEXT_AFTER * i).await;
                context.tile_list(&address, size).await
            });
        }
        while let Some(list) = lists.next().await {
            let Ok(list) = list else { continue };
            let taken = blocking(move || {
                let taken = arrival.take_local(&list);
                Ok((arrival, taken))
            });
            let (arrival, taken) = taken.await?;
            // A list that leads nowhere costs nothing but what it could have saved.
            self.report.local_tiles = taken.unwrap_or_default();
            return Ok(arrival);
        }
        Ok(arrival)
    }

    /// What a peer has, unless it was dropped because of its answer or will be asked again.
    pub(super) fn judge_have(
        &mut self,
        peer: PeerId,
        answer: Result<(u64, Has), PeerFault>,
        size: Option<u64>,
    ) -> Option<(u64, Has)> {
        match answer {
            Ok((got, has)) => match size.filter(|size| *size != got) {
                None => return Some((got, has)),
                Some(expected) => self.drop_peer(peer, PeerFault::WrongSize { expected, got }),
            },
            Err(fault) => self.ask_again(peer, fault),
        }
        None
    }
}

/// How often a peer was asked in vain before it took part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tries {
    failures: u32,
    pauses: u32,
    too_early: u32,
}

impl Tries {
    /// When to ask again after a fault, if at all.
    fn pause(&mut self, fault: &PeerFault) -> Option<Duration> {
        match ending(fault) {
            Ending::Broken => {
                self.failures += 1;
                let pause = (BACKOFF * 2_u32.pow(self.failures.min(10))).min(BACKOFF_MAX);
                (self.failures <= RETRIES_MAX).then_some(pause)
            }
            Ending::Busy(pause) => {
                self.pauses += 1;
                (self.pauses <= PAUSES_MAX).then_some(pause.clamp(BACKOFF, BACKOFF_MAX))
            }
            _ => None,
        }
    }
}

/// A right outboard from a peer. A size that only peers say is proven by the last tile: the outboard proves how many tiles there
/// are, not how long the last one is.
async fn outboard(
    context: Context,
    address: PeerAddress,
    size: u64,
    given: Option<u64>,
) -> Result<Vec<u8>, PeerFault> {
    if size > BLOB_BYTES_MAX {
        return Err(PeerFault::BadAnswer { what: "a size beyond every blob" });
    }
    let bytes = context.outboard(&address, size).await?;
    let hash = context.hash;
    let checked = tokio::task::spawn_blocking(move || Outboard::check(hash, size, bytes));
    let wrong = |why: String| PeerFault::WrongOutboard { why };
    let outboard = checked.await.map_err(|e| wrong(e.to_string()))?.map_err(|e| wrong(e.to_string()))?;
    let bytes = outboard.bytes().to_vec();
    if given.is_none() && size > 0 {
        let last = tiles(size) - 1;
        let tile = context.range(&address, last * TILE_BYTES..size, size).await?;
        TileVerifier::new(Arc::new(outboard)).check(last, &tile)?;
    }
    Ok(bytes)
}
