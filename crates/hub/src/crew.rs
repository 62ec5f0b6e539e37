//! Work that is cut into equal pieces and done by a few threads: hashing and verifying.
//!
//! The threads end with the call. The first error ends the work; pieces that were begun are finished.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

/// Most threads that one piece of work is given.
const THREADS_MAX: usize = 8;

/// One piece of work: a thread's buffer and the piece's index in, an amount out.
pub(crate) type Piece<'a, E> = dyn Fn(&mut Vec<u8>, u64) -> Result<u64, E> + Sync + 'a;

/// Does `piece(buffer, index)` for every index below `pieces`, each once, in order of beginning. `buffer` is the thread's own and
/// keeps its memory between pieces. What a piece returns is added up; `progress` hears the sum, on the calling thread.
pub(crate) fn work<E: Send>(
    pieces: u64,
    piece: &Piece<'_, E>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), E> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(THREADS_MAX).min(usize::try_from(pieces).unwrap_or(THREADS_MAX));
    let mut sum = 0;
    if threads <= 1 {
        let mut buffer = Vec::new();
        for index in 0..pieces {
            sum += piece(&mut buffer, index)?;
            progress(sum);
        }
        return Ok(());
    }
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let error = Mutex::new(None);
    let (done, heard) = mpsc::sync_channel::<u64>(threads * 4);
    thread::scope(|scope| {
        for _ in 0..threads {
            let done = done.clone();
            let (next, failed, error) = (&next, &failed, &error);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= pieces {
                        break;
                    }
                    match piece(&mut buffer, index) {
                        Ok(amount) => {
                            if done.send(amount).is_err() {
                                break;
                            }
                        }
                        Err(got) => {
                            failed.store(true, Ordering::Relaxed);
                            if let Ok(mut error) = error.lock() {
                                error.get_or_insert(got);
                            }
                        }
                    }
                }
            });
        }
        drop(done);
        for amount in heard {
            sum += amount;
            progress(sum);
        }
    });
    match error.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}
