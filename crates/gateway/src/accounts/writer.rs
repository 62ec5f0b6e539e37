//! Who writes while requests run. All that waits is taken into one transaction, so that concurrent requests share it.
//!
//! SQLite's transactions are done by one thread at a time. Whoever finds nobody else at it does its own, at once; what comes meanwhile is done together, by
//! a thread for it: to hand a deed to another thread and to wait costs more than the transaction of one request. Postgres has tasks.

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use tokio::sync::{Mutex, mpsc, oneshot};

use super::batch::{Asked, Deed, Outcome};
use super::script::run;
use super::sqlite::{Patience, Sqlite};
use super::store::{Engine, Store};
use super::{AccountsError, HoldId, Reserved};

/// Requests that may wait to be written.
const WAITING_MAX: usize = 4096;
/// Most that one transaction takes.
const BATCH_MAX: usize = 256;
/// Transactions of Postgres at a time. SQLite has one.
const WRITERS: usize = 4;

/// Something to write, and who waits for it.
#[derive(Debug)]
struct Work {
    deed: Deed,
    done: oneshot::Sender<Result<Outcome, AccountsError>>,
}

/// Where deeds are handed in. Thread or tasks end when the last clone is gone.
#[derive(Clone)]
pub(super) struct Writer {
    work: mpsc::Sender<Work>,
    here: Option<Arc<SyncMutex<Sqlite>>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// Starts thread or tasks.
    pub(super) fn start(store: Store) -> Result<Writer, AccountsError> {
        let (work, waiting) = mpsc::channel(WAITING_MAX);
        let here = match store.engine() {
            Engine::Sqlite => {
                let sqlite = Arc::new(SyncMutex::new(Sqlite::open(store)?));
                let thread = std::thread::Builder::new().name("books".into());
                let here = Arc::clone(&sqlite);
                thread.spawn(move || write_here(&here, waiting))?;
                Some(sqlite)
            }
            Engine::Postgres => {
                let waiting = Arc::new(Mutex::new(waiting));
                for _ in 0..WRITERS {
                    tokio::spawn(write(store.clone(), Arc::clone(&waiting)));
                }
                None
            }
        };
        Ok(Writer { work, here })
    }

    /// Does a deed, durably.
    pub(super) async fn hand(&self, deed: Deed) -> Result<Outcome, AccountsError> {
        if let Some(done) = self.at_once(&deed) {
            return done;
        }
        let (done, told) = oneshot::channel();
        self.work.send(Work { deed, done }).await.map_err(|_| AccountsError::Closed)?;
        told.await.map_err(|_| AccountsError::Closed)?
    }

    /// Advances that nobody has used for a while; none where somebody is at it just now.
    pub(super) fn idle(&self, now_ms: i64) -> Vec<HoldId> {
        // Who writes may wait for another transaction, which may need this very thread.
        let here = self.here.as_ref().and_then(|here| here.try_lock().ok());
        here.map(|sqlite| sqlite.idle(now_ms)).unwrap_or_default()
    }

    /// Does a deed here and now, if nobody else is at it or waits.
    fn at_once(&self, deed: &Deed) -> Option<Result<Outcome, AccountsError>> {
        let here = self.here.as_ref()?;
        let mut sqlite = here.try_lock().ok()?;
        if let Deed::Reserve(ask) = deed
            && let Some(part) = sqlite.part(ask)
        {
            return Some(Ok(Outcome::Reserved(Ok(Reserved::Held(part)))));
        }
        if self.work.capacity() < WAITING_MAX || sqlite.is_due() {
            return None;
        }
        let outcomes = sqlite.write(std::slice::from_ref(deed), Patience::None)?;
        Some(outcomes.and_then(|outcomes| outcomes.into_iter().next().ok_or(AccountsError::Closed)))
    }
}

/// Does what waits, until nobody can hand anything in any more.
fn write_here(here: &SyncMutex<Sqlite>, mut waiting: mpsc::Receiver<Work>) {
    let mut batch = Vec::new();
    while waiting.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let (deeds, waiting) = split(&mut batch);
        let mut sqlite = here.lock().unwrap_or_else(PoisonError::into_inner);
        let written = sqlite.write(&deeds, Patience::Some);
        tell(written.unwrap_or(Err(AccountsError::Closed)), waiting);
        if sqlite.is_due() {
            sqlite.checkpoint();
        }
    }
}

type Waiting = Vec<oneshot::Sender<Result<Outcome, AccountsError>>>;

fn split(batch: &mut Vec<Work>) -> (Vec<Deed>, Waiting) {
    batch.drain(..).map(|work| (work.deed, work.done)).unzip()
}

/// Says what came of it to those who wait. Whoever stopped waiting finds the hold when its time is over.
fn tell(written: Result<Vec<Outcome>, AccountsError>, waiting: Waiting) {
    match written {
        Ok(outcomes) => {
            waiting.into_iter().zip(outcomes).for_each(|(done, outcome)| drop(done.send(Ok(outcome))));
        }
        Err(e) => {
            tracing::error!(reason = %e, "the books could not be written");
            let again = || Err(AccountsError::Batch { reason: e.to_string() });
            waiting.into_iter().for_each(|done| drop(done.send(again())));
        }
    }
}

async fn write(store: Store, waiting: Arc<Mutex<mpsc::Receiver<Work>>>) {
    let mut connection = None;
    loop {
        let mut batch = Vec::new();
        if waiting.lock().await.recv_many(&mut batch, BATCH_MAX).await == 0 {
            return;
        }
        let (deeds, waiting) = split(&mut batch);
        let written = async {
            let mut held = match connection.take() {
                Some(held) => held,
                None => store.connection().await?,
            };
            let written = async {
                let (asked, statements) = Asked::of(&deeds);
                let (outcomes, statements) = asked.decide(run(&mut held, statements).await?)?;
                run(&mut held, statements).await?;
                Ok(outcomes)
            };
            match written.await {
                Ok(outcomes) => {
                    connection = Some(held);
                    Ok(outcomes)
                }
                Err(e) => {
                    // What was begun on it ends with it.
                    held.close_on_drop();
                    Err(e)
                }
            }
        };
        tell(written.await, waiting);
    }
}
