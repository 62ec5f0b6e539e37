//! How far batches have come on the ledger: what the builder is told of it, and what it forgets.
//!
//! Invariant: batches are posted and settled in order, as the ledger takes them; every change is one replacement of the file of states,
//! and files that it no longer names are removed after it.

use super::disk::Disk;
use super::state::{Entry, Posting, Progress};
use super::storage::{StorageError, disk};
use super::{Builder, replay, tree};

/// Why the builder does not take over what the ledger is said to have done.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// There is no such batch.
    #[error("epoch {epoch} has no batch here")]
    NoBatch {
        /// Its epoch.
        epoch: u64,
    },
    /// Another batch comes first.
    #[error("epoch {epoch} cannot be {to} while epoch {other} is {found:?}")]
    OutOfOrder {
        /// What was asked for.
        epoch: u64,
        /// To become what.
        to: &'static str,
        /// The epoch that comes first.
        other: u64,
        /// How far that one is.
        found: Progress,
    },
    /// A file.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A batch that has to come first, and how far it is.
type InTheWay = (u64, Progress);

fn in_the_way(entry: &Entry) -> InTheWay {
    (entry.batch.epoch, entry.progress)
}

fn is_settled(entry: &Entry) -> bool {
    matches!(entry.progress, Progress::Settled(_))
}

impl<D: Disk> Builder<D> {
    /// The batch was posted. Saying so again, of another block, is fine: a reorganisation may have moved it.
    pub fn posted(&mut self, epoch: u64, posting: Posting) -> Result<(), ProgressError> {
        self.turn(epoch, "posted", |before, at| {
            if let Some(other) = before.iter().find(|e| e.progress == Progress::Sealed) {
                return Err(in_the_way(other));
            }
            match at.first_mut() {
                Some(settled) if is_settled(settled) => Err(in_the_way(settled)),
                Some(entry) => {
                    entry.progress = Progress::Posted(posting);
                    Ok(())
                }
                None => Ok(()),
            }
        })
    }

    /// The posting was undone by a reorganisation, and so was that of every later batch: the same batches are posted again.
    pub fn unposted(&mut self, epoch: u64) -> Result<(), ProgressError> {
        self.turn(epoch, "unposted", |_, from| {
            if let Some(settled) = from.iter().find(|e| is_settled(e)) {
                return Err(in_the_way(settled));
            }
            from.iter_mut().for_each(|e| e.progress = Progress::Sealed);
            Ok(())
        })
    }

    /// The batch was settled.
    pub fn settled(&mut self, epoch: u64) -> Result<(), ProgressError> {
        self.turn(epoch, "settled", |before, at| {
            if let Some(other) = before.iter().find(|e| !is_settled(e)) {
                return Err(in_the_way(other));
            }
            let Some(entry) = at.first_mut() else { return Ok(()) };
            match entry.progress {
                Progress::Sealed => return Err(in_the_way(entry)),
                Progress::Posted(posting) | Progress::Settled(posting) => {
                    entry.progress = Progress::Settled(posting);
                }
            }
            Ok(())
        })
    }

    /// Changes how far batches have come, if `change`, which sees those before an epoch's and those from it on, finds nothing in the way.
    fn turn(
        &mut self,
        epoch: u64,
        to: &'static str,
        change: impl FnOnce(&[Entry], &mut [Entry]) -> Result<(), InTheWay>,
    ) -> Result<(), ProgressError> {
        self.running()?;
        let index = self.state.position(epoch).ok_or(ProgressError::NoBatch { epoch })?;
        let mut state = self.state.clone();
        let (before, from) = state.batches.split_at_mut(index);
        change(before, from).map_err(|(other, found)| ProgressError::OutOfOrder {
            epoch,
            to,
            other,
            found,
        })?;
        let written = state.write(&mut self.disk);
        self.stopping(written)?;
        self.state = state;
        Ok(())
    }

    /// The time for posting the last batch passed and it is not on the ledger: its receipts wait for a later epoch.
    pub fn missed(&mut self, epoch: u64) -> Result<(), ProgressError> {
        self.running()?;
        let index = self.state.position(epoch).ok_or(ProgressError::NoBatch { epoch })?;
        let from = self.state.batches.get(index..).unwrap_or_default();
        let wrong = |e: &&Entry| e.batch.epoch != epoch || e.progress != Progress::Sealed;
        if let Some((other, found)) = from.iter().rev().find(wrong).map(in_the_way) {
            return Err(ProgressError::OutOfOrder { epoch, to: "missed", other, found });
        }
        let dropped = self.drop_last(&tree::name(epoch));
        Ok(self.stopping(dropped)?)
    }

    fn drop_last(&mut self, file: &str) -> Result<(), StorageError> {
        let mut state = self.state.clone();
        state.batches.pop();
        state.write(&mut self.disk)?;
        self.state = state;
        if disk(self.disk.names(), "the folder", "list")?.iter().any(|n| n == file) {
            disk(self.disk.remove(file), file, "remove")?;
        }
        (self.journals, self.waiting, _) = replay(&mut self.disk, &self.state)?;
        Ok(())
    }

    /// Forgets settled batches of epochs before `before`, and the receipts in them: nothing is proved of them any more. Returns how many.
    pub fn prune(&mut self, before: u64) -> Result<usize, StorageError> {
        self.running()?;
        let old = |e: &&Entry| e.batch.epoch < before && is_settled(e);
        let many = self.state.batches.iter().take_while(old).count();
        if many == 0 {
            return Ok(0);
        }
        let pruned = self.forget(many);
        self.stopping(pruned)?;
        Ok(many)
    }

    fn forget(&mut self, many: usize) -> Result<(), StorageError> {
        let mut state = self.state.clone();
        let gone: Vec<Entry> = state.batches.drain(..many).collect();
        if let Some(last) = gone.last() {
            state.pruned = Some((last.batch.epoch, last.batch.next()));
            state.journals_from = self.journals.needed_from(last.batch.next());
        }
        state.write(&mut self.disk)?;
        self.state = state;
        let names = disk(self.disk.names(), "the folder", "list")?;
        for file in gone.iter().map(|e| tree::name(e.batch.epoch)).filter(|f| names.contains(f)) {
            disk(self.disk.remove(&file), &file, "remove")?;
        }
        self.journals.remove_before(&mut self.disk, self.state.journals_from)
    }
}
