//! A thread pool for work that comes in pieces of microseconds: workers spin between pieces and sleep only when the
//! engine has been idle for a while.
//!
//! The pool decides who computes what, never what is computed: every task writes its own part of the output. Nobody waits for a
//! thread that has begun nothing: where other programs keep a worker from its processor, the rest do its part.

use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;

/// Spins of a worker before it sleeps: some tens of microseconds.
const SPINS_BEFORE_SLEEP: u32 = 20_000;
/// Spins of the caller before it lets another thread run.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// Most threads of a pool.
pub const THREADS_MAX: usize = 256;

/// The pool. The calling thread takes part, so `threads - 1` workers exist.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

type Task = dyn Fn(usize) + Sync;

struct Shared {
    /// The number of the piece of work, whether workers may still enter it ([`OPEN`]), and how many are inside ([`INSIDE`]).
    piece: AtomicU64,
    job: Mutex<Job>,
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    wake: (Mutex<()>, Condvar),
}

/// Bits of [`Shared::piece`] that count the workers inside.
const INSIDE: u64 = (1 << 16) - 1;
/// The bit of a piece that may be entered.
const OPEN: u64 = 1 << 16;
/// What the next piece is more than the last.
const NEXT: u64 = 1 << 17;

/// Which piece a state is of.
fn number(piece: u64) -> u64 {
    piece / NEXT
}

#[derive(Clone, Copy)]
struct Job {
    task: Option<&'static Task>,
    tasks: usize,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least 1, at most [`THREADS_MAX`], and fewer where the system
    /// has no more to give (in a browser there is the caller alone).
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared::new());
        let workers = (1..threads.clamp(1, THREADS_MAX))
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("assay-engine-{i}"))
                    .spawn(move || shared.work())
                    .ok()
            })
            .collect();
        Pool { shared, workers, running: Mutex::new(()) }
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, and returns when all are done.
    ///
    /// # Panics
    /// When a task does.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(task);
            return;
        }
        let _one_at_a_time = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let s = &self.shared;
        // SAFETY: the reference is used by workers only while they are inside, and they are waited for below.
        let task: &'static Task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        *s.job.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Job { task: Some(task), tasks };
        s.next.store(0, SeqCst);
        // The last piece is closed, and nobody is inside: nobody else changes the state.
        s.piece.fetch_add(NEXT | OPEN, SeqCst);
        if s.sleepers.load(SeqCst) > 0 {
            let _guard = s.wake.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            s.wake.1.notify_all();
        }
        s.take_part(task, tasks);
        // Every task is begun: who has not entered by now has nothing to do.
        s.piece.fetch_and(!OPEN, SeqCst);
        let mut spins = 0u32;
        while s.piece.load(SeqCst) & INSIDE != 0 {
            std::hint::spin_loop();
            spins += 1;
            if spins > SPINS_BEFORE_YIELD {
                std::thread::yield_now();
            }
        }
        assert!(!s.panicked.swap(false, SeqCst), "a task of the engine panicked; its message stands above");
    }
}

impl Pool {
    /// `make(0)` to `make(tasks - 1)`, made by all threads.
    ///
    /// # Panics
    /// When a task does.
    pub fn map<T: Send + Sync>(&self, tasks: usize, make: &(dyn Fn(usize) -> T + Sync)) -> Vec<T> {
        let made: Vec<OnceLock<T>> = (0..tasks).map(|_| OnceLock::new()).collect();
        self.run(tasks, &|i| {
            made[i].get_or_init(|| make(i));
        });
        made.into_iter().map(|one| one.into_inner().expect("every task ran")).collect()
    }
}

impl Shared {
    fn new() -> Shared {
        Shared {
            piece: AtomicU64::new(0),
            job: Mutex::new(Job { task: None, tasks: 0 }),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            wake: (Mutex::new(()), Condvar::new()),
        }
    }

    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            if self.stop.load(SeqCst) {
                return;
            }
            let enter = |piece| (piece & OPEN != 0).then_some(piece + 1);
            let Ok(piece) = self.piece.fetch_update(SeqCst, SeqCst, enter) else { continue };
            seen = number(piece);
            let job = *self.job.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(task) = job.task {
                self.take_part(task, job.tasks);
            }
            self.piece.fetch_sub(1, SeqCst);
        }
    }

    fn take_part(&self, task: &Task, tasks: usize) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, SeqCst);
                if i >= tasks {
                    return;
                }
                task(i);
            }
        }));
        if done.is_err() {
            self.panicked.store(true, SeqCst);
        }
    }

    /// Until there is another piece than `seen`: which.
    fn wait(&self, seen: u64) -> u64 {
        for _ in 0..SPINS_BEFORE_SLEEP {
            let now = number(self.piece.load(SeqCst));
            if now != seen {
                return now;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.wake.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.sleepers.fetch_add(1, SeqCst);
        while number(self.piece.load(SeqCst)) == seen {
            guard = self.wake.1.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
        number(self.piece.load(SeqCst))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.piece.fetch_add(NEXT, SeqCst);
        {
            let _guard = self.shared.wake.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            self.shared.wake.1.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker cannot panic outside a task, and tasks are caught.
            let _ = worker.join();
        }
    }
}

/// A slice whose disjoint parts several tasks write at once.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out only under the promise that they do not overlap.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(all: &'a mut [T]) -> Self {
        Parts { start: all.as_mut_ptr(), len: all.len(), life: PhantomData }
    }

    /// # Safety
    /// No two parts that live at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies within its slice");
        // SAFETY: within the slice by the assertion, and alone by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let mut out = vec![0u32; tasks];
                let parts = Parts::new(&mut out);
                // SAFETY: each task writes its own number.
                pool.run(tasks, &|i| unsafe { parts.part(i..i + 1)[0] += i as u32 + 1 });
                assert!(out.iter().enumerate().all(|(i, v)| *v == i as u32 + 1));
                assert_eq!(pool.map(tasks, &|i| i.to_string()).len(), tasks);
            }
        }
    }

    #[test]
    fn a_worker_that_does_not_come_is_not_waited_for() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let worker = std::thread::spawn(move || held.recv().unwrap_or(()));
        let pool = Pool { shared: Arc::new(Shared::new()), workers: vec![worker], running: Mutex::new(()) };
        assert_eq!(pool.threads(), 2);
        assert_eq!(pool.map(5, &|i| i * 2), [0, 2, 4, 6, 8]);
        drop(release);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|i| assert!(i != 5, "five"))));
        assert!(caught.is_err());
        pool.run(4, &|_| {});
    }
}
