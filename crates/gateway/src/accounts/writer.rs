//! The tasks that write while requests run. On SQLite there is one, which takes all that waits into one transaction, so that concurrent requests
//! share a commit; on Postgres several take one each.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::store::{Engine, Store, Tx};
use super::{AccountsError, Answered, Ask, HoldId, MicroUsd, Reserved, Settled};

/// Requests that may wait to be written.
const WAITING_MAX: usize = 4096;
/// Most that one transaction of SQLite takes.
const BATCH_MAX: usize = 256;
/// Transactions of Postgres at a time.
const WRITERS: usize = 8;

type Done<T> = oneshot::Sender<Result<T, AccountsError>>;

/// Something to write, and who waits for it.
#[derive(Debug)]
pub(super) enum Work {
    Reserve { ask: Ask, done: Done<Reserved> },
    Charge { hold: HoldId, amount: MicroUsd, answer: Box<Answered>, now_ms: i64, done: Done<Settled> },
    Release { hold: HoldId, done: Done<Settled> },
}

/// What was written, told only after the commit.
type Told = Box<dyn FnOnce(Result<(), AccountsError>) + Send>;

/// Starts the tasks. They end when nobody can hand them work any more.
pub(super) fn start(store: Store) -> mpsc::Sender<Work> {
    let (work, waiting) = mpsc::channel(WAITING_MAX);
    let (writers, most) = match store.engine() {
        Engine::Sqlite => (1, BATCH_MAX),
        Engine::Postgres => (WRITERS, 1),
    };
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..writers {
        tokio::spawn(write(store.clone(), Arc::clone(&waiting), most));
    }
    work
}

async fn write(store: Store, waiting: Arc<Mutex<mpsc::Receiver<Work>>>, most: usize) {
    loop {
        let mut batch = Vec::new();
        if waiting.lock().await.recv_many(&mut batch, most).await == 0 {
            return;
        }
        together(&store, batch).await;
    }
}

/// Writes a batch in one transaction, and then tells everyone. If the transaction fails, nothing of it happened.
async fn together(store: &Store, batch: Vec<Work>) {
    let mut tx = match store.begin().await {
        Ok(tx) => tx,
        Err(e) => return batch.into_iter().for_each(|work| work.fail(&e)),
    };
    let mut told: Vec<Told> = Vec::new();
    let mut broken = None;
    for work in batch {
        let (tell, failure) = work.write(&mut tx).await;
        told.push(tell);
        // What failed may have been written in part.
        broken = broken.or(failure);
    }
    let committed = match broken {
        None => tx.commit().await,
        Some(e) => {
            tx.roll_back().await;
            Err(e)
        }
    };
    if let Err(e) = &committed {
        tracing::error!(reason = %e, "the books could not be written");
    }
    for tell in told {
        tell(match &committed {
            Ok(()) => Ok(()),
            Err(e) => Err(again(e)),
        });
    }
}

/// The same failure, for another who waited.
fn again(e: &AccountsError) -> AccountsError {
    AccountsError::Database(sqlx::Error::Protocol(e.to_string()))
}

fn later<T: Send + 'static>(
    done: Done<T>,
    result: Result<T, AccountsError>,
) -> (Told, Option<AccountsError>) {
    let failure = result.as_ref().err().filter(|e| matches!(e, AccountsError::Database(_))).map(again);
    // Whoever stopped waiting finds the hold when its time is over.
    let tell = move |committed: Result<(), AccountsError>| drop(done.send(committed.and(result)));
    (Box::new(tell), failure)
}

impl Work {
    async fn write(self, tx: &mut Tx) -> (Told, Option<AccountsError>) {
        match self {
            Work::Reserve { ask, done } => later(done, tx.reserve(&ask).await),
            Work::Charge { hold, amount, answer, now_ms, done } => {
                later(done, tx.charge(&hold, amount, &answer, now_ms).await)
            }
            Work::Release { hold, done } => later(done, tx.release(&hold).await),
        }
    }

    fn fail(self, e: &AccountsError) {
        match self {
            Work::Reserve { done, .. } => drop(done.send(Err(again(e)))),
            Work::Charge { done, .. } | Work::Release { done, .. } => drop(done.send(Err(again(e)))),
        }
    }
}
