//! The tasks that write while requests run. Each takes all that waits into one transaction, so that concurrent requests share it.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::AccountsError;
use super::batch::{Deed, Outcome, perform};
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

/// Starts the tasks. They end when nobody can hand them work any more.
pub(super) fn start(store: Store) -> mpsc::Sender<Work> {
    let (work, waiting) = mpsc::channel(WAITING_MAX);
    let writers = match store.engine() {
        Engine::Sqlite => 1,
        Engine::Postgres => WRITERS,
    };
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..writers {
        tokio::spawn(write(store.clone(), Arc::clone(&waiting)));
    }
    work
}

async fn write(store: Store, waiting: Arc<Mutex<mpsc::Receiver<Work>>>) {
    let mut connection = None;
    loop {
        let mut batch = Vec::new();
        if waiting.lock().await.recv_many(&mut batch, BATCH_MAX).await == 0 {
            return;
        }
        let (deeds, waiting): (Vec<Deed>, Vec<_>) = batch.into_iter().map(|w| (w.deed, w.done)).unzip();
        let written = async {
            let mut held = match connection.take() {
                Some(held) => held,
                None => store.connection().await?,
            };
            match perform(&mut held, store.engine(), &deeds).await {
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
        match written.await {
            // Whoever stopped waiting finds the hold when its time is over.
            Ok(outcomes) => {
                waiting.into_iter().zip(outcomes).for_each(|(done, outcome)| drop(done.send(Ok(outcome))));
            }
            Err(e) => {
                tracing::error!(reason = %e, "the books could not be written");
                waiting.into_iter().for_each(|done| drop(done.send(Err(again(&e)))));
            }
        }
    }
}

/// The same failure, for another who waited.
fn again(e: &AccountsError) -> AccountsError {
    AccountsError::Database(sqlx::Error::Protocol(e.to_string()))
}
