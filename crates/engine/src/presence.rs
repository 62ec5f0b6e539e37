//! Which bytes of a file are there while it arrives, shared between whoever writes them and whoever executes them.
//!
//! Bytes are announced after they were verified and written; from then on they do not change. Nobody reads others: an executor
//! asks first ([`crate::constants::Constants::lacks`]), stops where something is not there, and goes on when it is. An arrival
//! ends in one of two ways, once: everything was checked ([`Presence::settle`]), or nothing more comes ([`Presence::fail`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why what an operation reads will never be there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Gone {
    /// What ended the arrival.
    pub reason: Arc<str>,
}

/// Why an operation cannot be executed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// These bytes of the file are not there yet.
    Bytes(Vec<Range<u64>>),
    /// They will not come.
    Gone(Gone),
}

/// Which bytes of a file are there.
#[derive(Debug)]
pub struct Presence {
    size: u64,
    settled: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Ends of the runs that are there by their starts; runs neither overlap nor touch.
    runs: BTreeMap<u64, u64>,
    bytes: u64,
    wanted: Vec<Range<u64>>,
    gone: Option<Gone>,
}

impl State {
    fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if let Some((&s, &e)) = self.runs.range(..=start).next_back()
            && e >= start
        {
            (start, end) = (s, end.max(e));
        }
        while let Some((&s, &e)) = self.runs.range(start..=end).next() {
            self.runs.remove(&s);
            self.bytes -= e - s;
            end = end.max(e);
        }
        self.runs.insert(start, end);
        self.bytes += end - start;
    }

    fn has(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self.runs.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }

    fn lack(&self, ranges: &[Range<u64>]) -> Option<Lack> {
        if let Some(gone) = &self.gone {
            return Some(Lack::Gone(gone.clone()));
        }
        let missing: Vec<Range<u64>> = ranges.iter().filter(|r| !self.has(r)).cloned().collect();
        (!missing.is_empty()).then_some(Lack::Bytes(missing))
    }
}

impl Presence {
    /// Of a file of `size` bytes of which none is there.
    pub fn new(size: u64) -> Presence {
        Presence { size, settled: AtomicBool::new(false), state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many of them are there.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// How many are there from the beginning on without a gap.
    pub fn front(&self) -> u64 {
        self.state().runs.get(&0).copied().unwrap_or(0)
    }

    /// These bytes, cut to the file, are there: verified, and written where they are read.
    pub fn announce(&self, range: Range<u64>) {
        let range = range.start.min(self.size)..range.end.min(self.size);
        if range.is_empty() {
            return;
        }
        self.state().insert(range);
        self.changed.notify_all();
    }

    /// Everything is there and was checked: from now on nobody asks any more.
    pub fn settle(&self) {
        self.announce(0..self.size);
        self.settled.store(true, Ordering::Release);
    }

    /// Whether everything is there and was checked.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Nothing more comes, or what came is not to be used. The first reason stands; what was settled stays.
    pub fn fail(&self, reason: &str) {
        let mut state = self.state();
        if !self.is_settled() {
            state.gone.get_or_insert_with(|| Gone { reason: reason.into() });
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What of these ranges is not there.
    pub fn lack(&self, ranges: &[Range<u64>]) -> Option<Lack> {
        self.state().lack(ranges)
    }

    /// Waits until all of these ranges are there, for at most `patience`; what is not there then. Meanwhile they are
    /// [`wanted`](Presence::wanted).
    pub fn wait(&self, ranges: &[Range<u64>], patience: Duration) -> Option<Lack> {
        let mut state = self.state();
        state.wanted = match state.lack(ranges) {
            Some(Lack::Bytes(missing)) => missing,
            _ => Vec::new(),
        };
        let lacks = |s: &mut State| matches!(s.lack(ranges), Some(Lack::Bytes(_)));
        let (state, _) =
            self.changed.wait_timeout_while(state, patience, lacks).unwrap_or_else(PoisonError::into_inner);
        state.lack(ranges)
    }

    /// What an operation waits for, or waited for last: what should come first.
    pub fn wanted(&self) -> Vec<Range<u64>> {
        let state = self.state();
        state.wanted.iter().filter(|r| !state.has(r)).cloned().collect()
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges are what is meant")]
mod tests {
    use super::*;

    #[test]
    fn what_was_announced_is_there_in_any_order() {
        let presence = Presence::new(100);
        for range in [40..50, 0..10, 90..200, 50..90, 5..20] {
            presence.announce(range);
        }
        assert_eq!((presence.front(), presence.bytes(), presence.size()), (20, 80, 100));
        assert_eq!(presence.lack(&[0..20, 40..100, 7..7]), None);
        assert_eq!(presence.lack(&[0..5, 15..21, 39..41]), Some(Lack::Bytes(vec![15..21, 39..41])));
        presence.announce(20..40);
        assert_eq!((presence.front(), presence.bytes()), (100, 100));
    }

    #[test]
    fn who_waits_is_woken_by_bytes_and_by_the_end() {
        let presence = Presence::new(10);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| presence.wait(&[2..4, 8..9], Duration::MAX));
            while presence.wanted().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(presence.wanted(), [2..4, 8..9]);
            presence.announce(8..9);
            assert_eq!(presence.wanted(), [2..4]);
            presence.announce(0..5);
            assert_eq!(waiting.join().unwrap(), None);
            let waiting = scope.spawn(|| presence.wait(&[9..10], Duration::MAX));
            presence.fail("nobody has it");
            presence.fail("another reason");
            let gone = Gone { reason: "nobody has it".into() };
            assert_eq!(waiting.join().unwrap(), Some(Lack::Gone(gone.clone())));
            assert_eq!(presence.lack(&[0..1]), Some(Lack::Gone(gone)), "what came is not used either");
        });
        assert!(matches!(Presence::new(1).wait(&[0..1], Duration::ZERO), Some(Lack::Bytes(_))));
    }

    #[test]
    fn what_was_settled_stays() {
        let presence = Presence::new(10);
        presence.settle();
        presence.fail("too late");
        assert!(presence.is_settled());
        assert_eq!(presence.lack(&[0..10]), None);
    }
}
