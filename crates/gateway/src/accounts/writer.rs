//! Who writes while requests run. All that waits is taken into one transaction, so that concurrent requests share it.
//!
//! SQLite has a thread, which does everything for a batch by itself: to hand each statement to a thread and to wait for each row of it costs more changes of
//! threads than the statements' own time. Postgres has tasks.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::AccountsError;
use super::batch::{Asked, Deed, Outcome};
use super::script::{run, run_here};
use super::store::{Engine, Store};

/// Requests that may wait to be written.
const WAITING_MAX: usize = 4096;
/// Most that one transaction takes.
const BATCH_MAX: usize = 256;
/// Transactions of Postgres at a time. SQLite has one.
const WRITERS: usize = 4;

/// Something to write, and who waits for it.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) deed: Deed,
    pub(super) done: oneshot::Sender<Result<Outcome, AccountsError>>,
}

/// Starts them. They end when nobody can hand them work any more.
pub(super) fn start(store: Store) -> Result<mpsc::Sender<Work>, AccountsError> {
    let (work, mut waiting) = mpsc::channel(WAITING_MAX);
    match store.engine() {
        Engine::Sqlite => {
            let mut connection = Some(store.here()?);
            let thread = std::thread::Builder::new().name("books".into());
            thread.spawn(move || {
                let mut batch = Vec::new();
                while waiting.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
                    let (deeds, waiting) = split(&mut batch);
                    tell(write_here(&store, &mut connection, &deeds), waiting);
                }
            })?;
        }
        Engine::Postgres => {
            let waiting = Arc::new(Mutex::new(waiting));
            for _ in 0..WRITERS {
                tokio::spawn(write(store.clone(), Arc::clone(&waiting)));
            }
        }
    }
    Ok(work)
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

/// Reads, decides and writes in one transaction. If it fails nothing of it has happened, and what was begun ends with the connection.
fn write_here(
    store: &Store,
    connection: &mut Option<rusqlite::Connection>,
    deeds: &[Deed],
) -> Result<Vec<Outcome>, AccountsError> {
    let held = match connection.take() {
        Some(held) => held,
        None => store.here()?,
    };
    let (asked, statements) = Asked::of(Engine::Sqlite, deeds);
    let (outcomes, statements) = asked.decide(run_here(&held, statements)?)?;
    run_here(&held, statements)?;
    *connection = Some(held);
    Ok(outcomes)
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
                let (asked, statements) = Asked::of(Engine::Postgres, &deeds);
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
