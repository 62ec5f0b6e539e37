//! Who mines, and when.
//!
//! Invariant: nothing is acknowledged before the commit that holds it. Whoever has the writer commits for all who wait for it: their
//! transactions go into one block, and share one flush of the disk.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use alloy_consensus::{Header, Transaction as _};
use alloy_primitives::Address;

use crate::block::{self, Built, Candidates, Plan};
use crate::chain::{Chain, Mining, Terms, Writer, locked};
use crate::evm::CacheDB;
use crate::limits;
use crate::records::Head;
use crate::state::StateAt;
use crate::store::{StoreError, View};

/// How blocks that nobody's transaction asks for are spaced in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spacing {
    /// By the clock.
    Clock,
    /// By so many seconds.
    Seconds(u64),
}

impl Chain {
    /// Makes durable what waits, and mines it if blocks are made on demand.
    pub(crate) fn settle(&self) -> Result<(), StoreError> {
        let mut writer = locked(&self.writer);
        self.settle_with(&mut writer)
    }

    pub(crate) fn settle_with(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let least = 0;
        self.commit_blocks(writer, least, Spacing::Clock).map(drop)
    }

    /// Mines so many blocks, at least one after another; the first takes what waits. Returns the last one's number.
    pub fn mine(&self, blocks: u64) -> Result<u64, StoreError> {
        let mut writer = locked(&self.writer);
        self.mine_with(&mut writer, blocks, Spacing::Clock)
    }

    pub(crate) fn mine_with(
        &self,
        writer: &mut Writer,
        blocks: u64,
        spacing: Spacing,
    ) -> Result<u64, StoreError> {
        let mut left = blocks.min(limits::MINE_MAX);
        let mut number = self.store.view()?.head()?.header.number;
        while left > 0 {
            let chunk = left.min(limits::MINE_CHUNK);
            number = self.commit_blocks(writer, chunk, spacing)?;
            left = left.saturating_sub(chunk);
        }
        Ok(number)
    }

    /// One commit: what is new in the pool, and blocks. On demand, as many as what waits needs, beyond the `least` that are asked for.
    fn commit_blocks(&self, _writer: &mut Writer, least: u64, spacing: Spacing) -> Result<u64, StoreError> {
        let terms = self.terms();
        let demanded = terms.mining == Mining::OnDemand;
        let (fresh, gone, waiting) = {
            let pool = locked(&self.pool);
            let (fresh, gone) = pool.unseen();
            let waiting = if demanded || least > 0 { pool.waiting() } else { Vec::new() };
            (fresh, gone, waiting)
        };
        let view = self.store.view()?;
        let parent = view.head()?;
        let state = StateAt { view: &view, number: parent.header.number };
        let mut candidates = Candidates::new(waiting.clone(), state)?;
        let mut built: Vec<Built> = Vec::new();
        let mut times = Times::new(&terms);
        let mut db = CacheDB::new(state);
        while (built.len() as u64) < least || (demanded && !candidates.is_empty()) {
            let parent = built.last().map_or(&parent, |b| &b.head);
            let plan = self.plan(&terms, parent, &mut times, spacing);
            let next = block::build(&plan, parent, &mut db, &mut candidates)?;
            if next.mined.is_empty() && built.len() as u64 >= least {
                break; // Nothing that waits can pay: no block is made for it.
            }
            built.push(next);
        }
        drop(db);
        if built.is_empty() && fresh.is_empty() && gone.is_empty() {
            return Ok(parent.header.number);
        }

        // The accounts whose nonces moved, and what of the pool is done with.
        let mut nonces: HashMap<Address, u64> = HashMap::new();
        for (&address, account) in built.iter().flat_map(|b| &b.changes.accounts) {
            nonces.insert(address, account.map_or(0, |a| a.nonce));
        }
        for (from, _) in &waiting {
            if !nonces.contains_key(from) {
                nonces.insert(*from, state.nonce(*from)?);
            }
        }
        let passed = |w: &crate::pool::Waiting| nonces.get(&w.from).is_some_and(|n| w.tx.nonce() < *n);

        let writing = self.store.write()?;
        for block in &built {
            writing.block(&block.head, &block.mined, &block.changes)?;
        }
        let mut settled: HashSet<u64> = gone.iter().copied().collect();
        for arrival in gone {
            writing.forget(arrival)?;
        }
        let new: HashSet<u64> = fresh.iter().map(|w| w.arrival).collect();
        for waiting in &fresh {
            if passed(waiting) {
                settled.insert(waiting.arrival);
            } else {
                writing.keep(waiting.arrival, &waiting.kept())?;
            }
        }
        for waiting in waiting.iter().flat_map(|(_, all)| all) {
            if !new.contains(&waiting.arrival) && passed(waiting) {
                settled.insert(waiting.arrival);
                writing.forget(waiting.arrival)?;
            }
        }
        let number = built.last().map_or(parent.header.number, |b| b.head.header.number);
        let offset = built.last().map(|b| self.offset_after(&terms, b.head.header.timestamp, &times));
        if let Some(offset) = offset {
            writing.set_meta("offset", &offset.to_be_bytes())?;
        }
        writing.commit()?;
        {
            let mut terms = locked(&self.terms);
            terms.offset = offset.unwrap_or(terms.offset);
            // A block that was not made used nothing up.
            if !built.is_empty() {
                terms.next_time = times.next;
                terms.next_base_fee = times.base_fee;
            }
        }
        let nonces: Vec<_> = nonces.into_iter().collect();
        locked(&self.pool).seen(&fresh, &nonces, &settled);
        Ok(number)
    }

    fn plan(&self, terms: &Terms, parent: &Head, times: &mut Times, spacing: Spacing) -> Plan {
        let before = parent.header.timestamp;
        let time = match (times.next.take(), spacing) {
            (Some(time), _) => {
                times.set = true;
                time
            }
            (None, Spacing::Clock) if times.set => before,
            (None, Spacing::Clock) => self.now(terms),
            (None, Spacing::Seconds(seconds)) => {
                let from = if times.set { before } else { before.max(self.now(terms)) };
                times.set = true;
                from.saturating_add(seconds)
            }
        };
        Plan {
            chain_id: self.id,
            seed: self.seed,
            time: time.max(before).min(limits::TIME_MAX),
            base_fee: times.base_fee.take().unwrap_or_else(|| block::next_base_fee(&parent.header)),
        }
    }

    /// The clock goes on from a time that was set for a block.
    fn offset_after(&self, terms: &Terms, time: u64, times: &Times) -> i64 {
        if !times.set {
            return terms.offset;
        }
        let base = self.now(&Terms { offset: 0, ..*terms });
        time.cast_signed().saturating_sub(base.cast_signed())
    }

    /// The block that would be mined now; nothing changes.
    pub(crate) fn pending(&self, view: &View) -> Result<Built, StoreError> {
        let (terms, parent) = (self.terms(), view.head()?);
        let plan = self.plan(&terms, &parent, &mut Times::new(&terms), Spacing::Clock);
        let waiting = locked(&self.pool).waiting();
        let state = Chain::latest(view)?;
        let mut candidates = Candidates::new(waiting, state)?;
        block::build(&plan, &parent, &mut CacheDB::new(state), &mut candidates)
    }

    /// The header of the block that would be mined now, before anything is executed.
    pub(crate) fn next_header(&self, view: &View) -> Result<Header, StoreError> {
        let (terms, parent) = (self.terms(), view.head()?);
        Ok(block::blank(&self.plan(&terms, &parent, &mut Times::new(&terms), Spacing::Clock), &parent))
    }

    /// When blocks are made from now on.
    pub(crate) fn set_mining(&self, mining: Mining) -> Result<(), StoreError> {
        let mut writer = locked(&self.writer);
        locked(&self.terms).mining = mining;
        self.pace.set(mining);
        self.settle_with(&mut writer)
    }
}

/// What was set for the next block alone.
struct Times {
    next: Option<u64>,
    base_fee: Option<u64>,
    /// Whether a block's time was set and not read from the clock.
    set: bool,
}

impl Times {
    fn new(terms: &Terms) -> Self {
        Times { next: terms.next_time, base_fee: terms.next_base_fee, set: false }
    }
}

/// The interval between blocks, and the thread that keeps it.
#[derive(Debug)]
pub(crate) struct Pace {
    state: Mutex<PaceState>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct PaceState {
    every: Option<Duration>,
    generation: u64,
    ended: bool,
}

impl Pace {
    pub(crate) fn new(mining: Mining) -> Self {
        Pace {
            state: Mutex::new(PaceState { every: every(mining), generation: 0, ended: false }),
            changed: Condvar::new(),
        }
    }

    fn set(&self, mining: Mining) {
        let mut state = locked(&self.state);
        state.every = every(mining);
        state.generation = state.generation.wrapping_add(1);
        self.changed.notify_all();
    }

    fn end(&self) {
        locked(&self.state).ended = true;
        self.changed.notify_all();
    }

    /// Waits for the next block's time; false when there will be none.
    fn wait(&self) -> bool {
        let mut state = locked(&self.state);
        let (mut generation, mut since) = (state.generation, Instant::now());
        loop {
            if state.ended {
                return false;
            }
            if generation != state.generation {
                (generation, since) = (state.generation, Instant::now());
            }
            let left = state.every.map(|every| every.saturating_sub(since.elapsed()));
            state = match left {
                Some(Duration::ZERO) => return true,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
            };
        }
    }
}

fn every(mining: Mining) -> Option<Duration> {
    match mining {
        Mining::Every(every) => Some(every.max(Duration::from_millis(1))),
        Mining::OnDemand | Mining::Manual => None,
    }
}

/// Starts the thread that mines at intervals. It ends with the chain.
pub(crate) fn keep_pace(chain: &Arc<Chain>) -> std::io::Result<()> {
    let (pace, chain) = (chain.pace.clone(), Arc::downgrade(chain));
    std::thread::Builder::new().name("assay-chain".into()).spawn(move || pace_blocks(&pace, &chain)).map(drop)
}

fn pace_blocks(pace: &Pace, chain: &Weak<Chain>) {
    while pace.wait() {
        let Some(chain) = chain.upgrade() else { return };
        let mut writer = locked(&chain.writer);
        if matches!(chain.terms().mining, Mining::Every(_))
            && let Err(error) = chain.mine_with(&mut writer, 1, Spacing::Clock)
        {
            tracing::error!(%error, "no block was made");
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.pace.end();
    }
}
