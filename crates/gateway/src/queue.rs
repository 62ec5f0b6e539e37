//! Who goes first when the providers are full: keys take turns.
//!
//! Purpose: requests of one key wait behind each other, and keys go round, so that who sends a thousand requests delays its own. How many run at once is
//! learnt: where all providers said that they are busy, fewer are sent; each round of answers lets one more try. Invariant: a request runs, waits, or
//! was told that it does not; none is forgotten. [`Turns`] is the rule, without I/O; [`Queue`] is who waits for it. It refuses to know what a
//! request is.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use assay_core::id::Hash;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

/// How the queue is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Requests that run at once, at most.
    pub running_max: usize,
    /// Requests that wait, of all keys together.
    pub waiting_max: usize,
    /// How long a request waits.
    pub wait: Duration,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions { running_max: 1024, waiting_max: 4096, wait: Duration::from_secs(60) }
    }
}

/// What became of a request that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered<T> {
    /// It runs.
    Runs(T),
    /// It waits. The last of a longer line was sent away for it, if there was no room.
    Waits(Option<T>),
    /// There is no room, and no line is longer than its own.
    Full(T),
}

/// Whose turn it is, among requests that are named by a `T`.
#[derive(Debug)]
pub struct Turns<T> {
    running: usize,
    running_max: usize,
    /// As many run as providers are thought to take.
    limit: usize,
    /// Answers since the limit changed.
    answered: usize,
    waiting: usize,
    waiting_max: usize,
    lines: HashMap<Hash, VecDeque<T>>,
    /// Keys with a line, each once: whose turn comes first.
    order: VecDeque<Hash>,
}

impl<T> Turns<T> {
    /// Nobody is there.
    pub fn new(running_max: usize, waiting_max: usize) -> Turns<T> {
        let running_max = running_max.max(1);
        Turns {
            running: 0,
            running_max,
            limit: running_max,
            answered: 0,
            waiting: 0,
            waiting_max,
            lines: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// A request of `key` comes.
    pub fn enter(&mut self, key: Hash, request: T) -> Entered<T> {
        if self.running < self.limit && self.waiting == 0 {
            self.running += 1;
            return Entered::Runs(request);
        }
        let mut gone = None;
        if self.waiting >= self.waiting_max {
            let own = self.lines.get(&key).map_or(0, VecDeque::len);
            let longest = self.lines.iter().max_by_key(|(key, line)| (line.len(), **key));
            match longest.map(|(key, line)| (*key, line.len())) {
                Some((longest, length)) if length > own + 1 => gone = self.take(longest, VecDeque::pop_back),
                _ => return Entered::Full(request),
            }
        }
        self.line(key).push_back(request);
        self.waiting += 1;
        Entered::Waits(gone)
    }

    /// A running request ended. `answered` says that a provider took it.
    pub fn ended(&mut self, answered: bool) {
        self.running = self.running.saturating_sub(1);
        if answered {
            self.answered += 1;
            if self.answered >= self.limit && self.limit < self.running_max {
                self.limit += 1;
                self.answered = 0;
            }
        }
    }

    /// A running request found all providers busy, and waits again, before those that came after it.
    pub fn busy(&mut self, key: Hash, request: T) {
        self.running = self.running.saturating_sub(1);
        self.limit = self.running.clamp(1, self.running_max);
        self.answered = 0;
        self.line(key).push_front(request);
        self.waiting += 1;
        if let Some(at) = self.order.iter().position(|k| *k == key) {
            self.order.remove(at);
        }
        self.order.push_front(key);
    }

    /// The next request that runs now.
    pub fn following(&mut self) -> Option<T> {
        if self.running >= self.limit {
            return None;
        }
        let key = self.order.pop_front()?;
        // It is put back by `take` if its line goes on: at the end.
        let request = self.take(key, VecDeque::pop_front)?;
        if self.lines.contains_key(&key) {
            self.order.push_back(key);
        }
        self.running += 1;
        Some(request)
    }

    /// Requests that still wait, of those for which `waits` holds.
    pub fn retain(&mut self, mut waits: impl FnMut(&T) -> bool) {
        for line in self.lines.values_mut() {
            line.retain(&mut waits);
        }
        self.lines.retain(|_, line| !line.is_empty());
        let lines = &self.lines;
        self.order.retain(|key| lines.contains_key(key));
        self.waiting = self.lines.values().map(VecDeque::len).sum();
    }

    fn line(&mut self, key: Hash) -> &mut VecDeque<T> {
        if !self.lines.contains_key(&key) {
            self.order.push_back(key);
        }
        self.lines.entry(key).or_default()
    }

    /// Takes one of a line away, and the line with its last.
    fn take(&mut self, key: Hash, one: fn(&mut VecDeque<T>) -> Option<T>) -> Option<T> {
        let line = self.lines.get_mut(&key)?;
        let taken = one(line);
        if line.is_empty() {
            self.lines.remove(&key);
            self.order.retain(|k| *k != key);
        }
        self.waiting = self.waiting.saturating_sub(usize::from(taken.is_some()));
        taken
    }
}

/// Why a request does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTurn {
    /// As many wait as may.
    #[error("too many requests wait")]
    Full,
    /// Its time to wait is over.
    #[error("the providers are busy")]
    Late,
}

/// Requests that wait for their turn.
#[derive(Debug)]
pub struct Queue {
    turns: Mutex<Turns<oneshot::Sender<()>>>,
    wait: Duration,
    /// Requests that had to wait, and for how many seconds, all in all.
    pub(crate) waits: Counter,
    pub(crate) waited: Counter<f64, AtomicU64>,
}

impl Queue {
    /// An empty one.
    pub fn new(options: QueueOptions) -> Queue {
        let turns = Mutex::new(Turns::new(options.running_max, options.waiting_max));
        Queue { turns, wait: options.wait, waits: Counter::default(), waited: Counter::default() }
    }

    fn turns(&self) -> MutexGuard<'_, Turns<oneshot::Sender<()>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.turns().waiting()
    }

    /// Requests that run, and how many may.
    pub fn running(&self) -> (usize, usize) {
        let turns = self.turns();
        (turns.running(), turns.limit)
    }

    /// Waits until a request of `key` may run.
    pub async fn turn(self: &Arc<Queue>, key: Hash) -> Result<Turn, NoTurn> {
        let (mut granted, mut grant) = (None, None);
        {
            let (sender, receiver) = oneshot::channel();
            let mut turns = self.turns();
            if turns.waiting() >= turns.waiting_max {
                // Who gave up waiting is no reason to send anyone away.
                turns.retain(|waits| !waits.is_closed());
            }
            match turns.enter(key, sender) {
                Entered::Runs(_) => {
                    granted = Some(Turn { queue: Arc::clone(self), key, held: true, answered: false })
                }
                // Whoever was sent away hears of it as its sender is dropped.
                Entered::Waits(_) => grant = Some(receiver),
                Entered::Full(_) => return Err(NoTurn::Full),
            }
        }
        match (granted, grant) {
            (Some(turn), _) => Ok(turn),
            (None, Some(grant)) => Waiting { queue: Arc::clone(self), key, grant }.turn().await,
            (None, None) => Err(NoTurn::Full),
        }
    }

    /// Lets run who can.
    fn grant(&self) {
        let mut turns = self.turns();
        while let Some(next) = turns.following() {
            if next.send(()).is_err() {
                // It has given up.
                turns.ended(false);
            }
        }
    }
}

/// Someone who waits. Dropped after its turn came unseen, it passes the turn on.
struct Waiting {
    queue: Arc<Queue>,
    key: Hash,
    grant: oneshot::Receiver<()>,
}

impl Waiting {
    async fn turn(mut self) -> Result<Turn, NoTurn> {
        let began = Instant::now();
        let granted = tokio::time::timeout(self.queue.wait, &mut self.grant).await;
        self.queue.waits.inc();
        self.queue.waited.inc_by(began.elapsed().as_secs_f64());
        match granted {
            Ok(Ok(())) => {
                Ok(Turn { queue: Arc::clone(&self.queue), key: self.key, held: true, answered: false })
            }
            Ok(Err(_)) => Err(NoTurn::Full),
            Err(_) => Err(NoTurn::Late),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.grant.close();
        if self.grant.try_recv().is_ok() {
            self.queue.turns().ended(false);
            self.queue.grant();
        }
    }
}

/// A request that runs. Its end lets the next one run.
#[derive(Debug)]
pub struct Turn {
    queue: Arc<Queue>,
    key: Hash,
    held: bool,
    answered: bool,
}

impl Turn {
    /// A provider took it.
    pub fn answered(&mut self) {
        self.answered = true;
    }

    /// All providers are busy: waits for another turn, at the head of its key's line, and for `pause` at least.
    pub async fn busy(mut self, pause: Duration) -> Result<Turn, NoTurn> {
        let (queue, key) = (Arc::clone(&self.queue), self.key);
        let (sender, grant) = oneshot::channel();
        queue.turns().busy(key, sender);
        self.held = false;
        let waiting = Waiting { queue: Arc::clone(&queue), key, grant };
        // Where nothing of this gateway runs nobody's end wakes the next one.
        tokio::time::sleep(pause).await;
        queue.grant();
        waiting.turn().await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.held {
            self.queue.turns().ended(self.answered);
            self.queue.grant();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> Hash {
        Hash::from_bytes([n; 32])
    }

    /// Everyone who runs next, one after the other.
    fn order<T>(turns: &mut Turns<T>) -> Vec<T> {
        std::iter::from_fn(|| {
            turns.ended(false);
            turns.following()
        })
        .collect()
    }

    #[test]
    fn keys_take_turns() {
        let mut turns = Turns::new(1, 100);
        assert_eq!(turns.enter(key(0), (0, 0)), Entered::Runs((0, 0)));
        for n in 1..=4 {
            assert_eq!(turns.enter(key(0), (0, n)), Entered::Waits(None));
        }
        for n in 1..=2 {
            assert_eq!(turns.enter(key(1), (1, n)), Entered::Waits(None));
        }
        assert_eq!(turns.enter(key(2), (2, 1)), Entered::Waits(None));
        assert_eq!(order(&mut turns), [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 3), (0, 4)]);
    }

    #[test]
    fn the_longest_line_makes_room() {
        let mut turns = Turns::new(1, 3);
        assert_eq!(turns.enter(key(0), 'r'), Entered::Runs('r'));
        for name in ['a', 'b', 'c'] {
            assert_eq!(turns.enter(key(0), name), Entered::Waits(None));
        }
        assert_eq!(turns.enter(key(0), 'd'), Entered::Full('d'));
        assert_eq!(turns.enter(key(1), 'x'), Entered::Waits(Some('c')));
        // Now the lines are two and one: another of the shorter one would only turn that around.
        assert_eq!(turns.enter(key(1), 'y'), Entered::Full('y'));
        assert_eq!(order(&mut turns), ['a', 'x', 'b']);
    }

    #[test]
    fn as_many_run_as_providers_take() {
        let mut turns = Turns::new(8, 100);
        for n in 0..8 {
            assert_eq!(turns.enter(key(n), n), Entered::Runs(n));
        }
        // Two of them found everybody busy: they wait, and go first.
        turns.busy(key(7), 7);
        turns.busy(key(6), 6);
        assert_eq!((turns.running(), turns.waiting(), turns.following()), (6, 2, None));
        assert_eq!(turns.enter(key(0), 9), Entered::Waits(None));
        turns.ended(true);
        assert_eq!((turns.following(), turns.following()), (Some(6), None));
        // Six answers later one more is tried.
        for expected in [Some(7), Some(9), None, None] {
            turns.ended(true);
            assert_eq!(turns.following(), expected);
        }
        turns.ended(true);
        assert_eq!((turns.limit, turns.running()), (7, 3));
    }

    #[test]
    fn one_is_always_tried() {
        let mut turns = Turns::new(4, 100);
        assert_eq!(turns.enter(key(0), 0), Entered::Runs(0));
        turns.busy(key(0), 0);
        assert_eq!((turns.limit, turns.running()), (1, 0));
        assert_eq!(turns.following(), Some(0));
    }

    proptest! {
        /// Whatever happens: nobody is lost, no more run than may, and of keys that wait all the time none is a whole round ahead.
        #[test]
        fn nobody_is_forgotten(steps in prop::collection::vec((0u8..6, 0u8..4), 1..400)) {
            let mut turns: Turns<u32> = Turns::new(5, 12);
            let (mut running, mut came, mut ended, mut away) = (Vec::new(), 0u32, 0u32, 0u32);
            for (step, k) in steps {
                match step {
                    0..=2 => {
                        let name = came * 4 + u32::from(k);
                        came += 1;
                        match turns.enter(key(k), name) {
                            Entered::Runs(name) => running.push(name),
                            Entered::Waits(gone) => away += u32::from(gone.is_some()),
                            Entered::Full(_) => away += 1,
                        }
                    }
                    3 if !running.is_empty() => {
                        let name = running.remove(usize::from(k) % running.len());
                        turns.busy(key((name % 4) as u8), name);
                    }
                    _ if !running.is_empty() => {
                        running.remove(usize::from(k) % running.len());
                        ended += 1;
                        turns.ended(step == 4);
                    }
                    _ => {}
                }
                while let Some(next) = turns.following() {
                    prop_assert!(!running.contains(&next));
                    running.push(next);
                }
                prop_assert_eq!(turns.running(), running.len());
                prop_assert!(turns.running() <= 5 && turns.waiting() <= 12 + 5);
                prop_assert_eq!(came, ended + away + (turns.running() + turns.waiting()) as u32);
                prop_assert_eq!(turns.order.len(), turns.lines.len());
                prop_assert!(turns.running() >= turns.limit.min(1) || turns.waiting() == 0);
            }
        }
    }

    #[tokio::test]
    async fn who_gives_up_does_not_hold_a_turn() {
        let queue = Arc::new(Queue::new(QueueOptions { running_max: 1, ..QueueOptions::default() }));
        let first = queue.turn(key(0)).await.unwrap();
        let waits = |k| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.turn(key(k)).await.map(|turn| (k, turn)) })
        };
        let (gives_up, stays) = (waits(1), waits(2));
        while queue.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        gives_up.abort();
        drop(first);
        let (who, turn) = stays.await.unwrap().unwrap();
        assert_eq!((who, queue.waiting()), (2, 0));
        // Busy providers: it is asked again, though nothing else runs.
        let turn = turn.busy(Duration::from_millis(1)).await.unwrap();
        drop(turn);
        assert_eq!(queue.turns().running(), 0);
    }

    #[tokio::test]
    async fn a_request_waits_no_longer_than_it_may() {
        let wait = Duration::from_millis(1);
        let queue = Arc::new(Queue::new(QueueOptions { running_max: 1, waiting_max: 1, wait }));
        let _first = queue.turn(key(0)).await.unwrap();
        assert_eq!(queue.turn(key(0)).await.unwrap_err(), NoTurn::Late);
        // Its place is free again.
        assert_eq!(queue.turn(key(0)).await.unwrap_err(), NoTurn::Late);
    }
}
