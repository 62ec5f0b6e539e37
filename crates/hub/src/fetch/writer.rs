//! The writer of a fetch: a thread that owns the arrival and writes verified tiles, and one that saves meanwhile. Dropping its handle
//! waits until they have saved and let the arrival go.
//!
//! More threads would not write faster: file systems let one writer into a file at a time.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::FetchOptions;
use crate::limits::{BUFFER_BYTES, WRITES_WAITING_MAX};
use crate::store::{Arrival, StoreError};

/// Buffers that are used again, so that their pages are there already.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    pub(crate) fn take(&self) -> Vec<u8> {
        let kept = lock(&self.0).pop();
        kept.unwrap_or_else(|| vec![0; BUFFER_BYTES])
    }

    pub(crate) fn give(&self, buffer: Vec<u8>) {
        let mut kept = lock(&self.0);
        if kept.len() < 2 * WRITES_WAITING_MAX {
            kept.push(buffer);
        }
    }
}

/// Verified bytes of whole tiles.
pub(crate) struct Write {
    pub(crate) first_tile: u64,
    pub(crate) buffer: Vec<u8>,
    /// Where in the buffer they are.
    pub(crate) at: std::ops::Range<usize>,
}

pub(crate) struct Writer {
    writes: Option<mpsc::Sender<Write>>,
    done: Option<oneshot::Receiver<Result<Arrival, StoreError>>>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(
    arrival: &Arrival,
    waiting: mpsc::Receiver<Write>,
    buffers: &Buffers,
    options: &FetchOptions,
) -> Result<(), StoreError> {
    std::thread::scope(|scope| {
        let (due, saves) = sync_channel(1);
        let saver = scope.spawn(move || saves.iter().try_for_each(|()| arrival.save()));
        let written = write_all(arrival, waiting, buffers, options, &due);
        drop(due);
        let saved = saver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(saved)
    })?;
    // What is whole is flushed once, when it gets its name.
    if arrival.missing().is_empty() { Ok(()) } else { arrival.save() }
}

/// Writes until nothing more comes, or until the saver has failed.
fn write_all(
    arrival: &Arrival,
    mut waiting: mpsc::Receiver<Write>,
    buffers: &Buffers,
    options: &FetchOptions,
    due: &SyncSender<()>,
) -> Result<(), StoreError> {
    let (mut unsaved, mut saved_at) = (0, Instant::now());
    while let Some(write) = waiting.blocking_recv() {
        let bytes = write.buffer.get(write.at).unwrap_or_default();
        unsaved += bytes.len() as u64;
        arrival.write(write.first_tile, bytes)?;
        buffers.give(write.buffer);
        if unsaved >= options.save_bytes || saved_at.elapsed() >= options.save_time {
            match due.try_send(()) {
                Ok(()) => (unsaved, saved_at) = (0, Instant::now()),
                // The save before is still under way.
                Err(TrySendError::Full(())) => {}
                Err(TrySendError::Disconnected(())) => break,
            }
        }
    }
    Ok(())
}

impl Writer {
    pub(crate) fn start(arrival: Arrival, buffers: Buffers, options: Arc<FetchOptions>) -> Writer {
        let (writes, waiting) = mpsc::channel::<Write>(WRITES_WAITING_MAX);
        let (finished, done) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let result = write(&arrival, waiting, &buffers, &options);
            drop(finished.send(result.map(|()| arrival)));
        });
        Writer { writes: Some(writes), done: Some(done), thread: Some(thread) }
    }

    /// Hands bytes over; waits while the writer is behind. False if it has failed, which [`Writer::end`] explains.
    pub(crate) async fn write(&self, write: Write) -> bool {
        match &self.writes {
            Some(writes) => writes.send(write).await.is_ok(),
            None => false,
        }
    }

    /// Everything is written, and what is not whole is saved.
    pub(crate) async fn end(mut self) -> Option<Result<Arrival, StoreError>> {
        self.writes = None;
        let done = self.done.take()?;
        done.await.ok()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has let the arrival go too.
            drop(thread.join());
        }
    }
}
