//! Sealing: which receipts an epoch's batch holds, and the writing of its file.
//!
//! Invariant: the batch follows from the receipts that were appended, the terms and where the last batch ended, from nothing else;
//! sealing an epoch again returns the same one. Steps: 1. the leaves and nodes go to a new file, which is flushed and renamed; 2. the file
//! of states names it. Before step 2 there is no batch.

use std::collections::BTreeMap;

use super::batch::{Batch, End, Share};
use super::disk::Disk;
use super::journal::{Journals, Windows};
use super::limits::{BATCHES_MAX, COUNT_MAX, SHARES_MAX};
use super::state::{Entry, Progress};
use super::storage::{Remedy, StorageError, damaged, disk};
use super::tree::{self, Writer};
use super::waiting::Waiting;
use super::{Builder, NEW};

/// What the ledger and the node allow a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Where the ledger goes on (`Epochs.accountOf`); `None` where it has nothing of this provider.
    pub first: Option<u64>,
    /// The least sequence number that may still be signed. Numbers below it with no receipt become gaps for good.
    pub in_flight: Option<u64>,
    /// Most leaves: what the panel of auditors can do.
    pub count_max: u32,
    /// Most fees: the provider's pot.
    pub total_max: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Terms { first: None, in_flight: None, count_max: COUNT_MAX, total_max: u64::MAX }
    }
}

/// Why an epoch was not sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A later epoch has a batch.
    #[error("epoch {epoch} cannot be sealed: epoch {last} has been, and the ledger takes batches in order")]
    Passed {
        /// What was asked for.
        epoch: u64,
        /// The last one with a batch.
        last: u64,
    },
    /// An earlier batch is not on the ledger.
    #[error(
        "the batch of epoch {epoch} is sealed and not posted; say that it was posted, or that it missed its time"
    )]
    Unposted {
        /// Its epoch.
        epoch: u64,
    },
    /// The ledger goes on elsewhere than the builder.
    #[error(
        "the next batch begins at {builder} here and at {ledger} on the ledger; say which batches were posted or missed"
    )]
    First {
        /// Here.
        builder: u64,
        /// There.
        ledger: u64,
    },
    /// No receipt can stand in it.
    #[error("nothing to seal: at sequence number {at}, {end}")]
    Nothing {
        /// Where the batch would begin.
        at: u64,
        /// Why it would end there.
        end: End,
    },
    /// There are too many batches.
    #[error("there are {BATCHES_MAX} batches; prune those that are settled")]
    TooManyBatches,
    /// A file.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Which leaves a batch has.
struct Choice {
    first: u64,
    count: u32,
    shares: Vec<Share>,
    end: End,
}

impl<D: Disk> Builder<D> {
    /// Seals an epoch: chooses its receipts, writes the file from which every proof comes, and returns what is to be posted. If
    /// the epoch is sealed already, that batch. Until it is posted or missed, no later epoch is sealed.
    pub fn seal(&mut self, epoch: u64, terms: &Terms) -> Result<Batch, SealError> {
        self.running()?;
        if let Some(entry) = self.state.position(epoch).and_then(|i| self.state.batches.get(i)) {
            return Ok(entry.batch.clone());
        }
        if let Some(last) = self.state.last_epoch().filter(|last| *last >= epoch) {
            return Err(SealError::Passed { epoch, last });
        }
        if let Some(open) = self.state.batches.iter().find(|e| e.progress == Progress::Sealed) {
            return Err(SealError::Unposted { epoch: open.batch.epoch });
        }
        if self.state.batches.len() >= BATCHES_MAX {
            return Err(SealError::TooManyBatches);
        }
        let choice = self.choose(epoch, terms)?;
        let done = self.write_and_name(epoch, choice);
        self.stopping(done).map_err(SealError::Storage)
    }

    fn choose(&self, epoch: u64, terms: &Terms) -> Result<Choice, SealError> {
        let first = match (self.state.next(), terms.first) {
            (Some(builder), Some(ledger)) if builder != ledger => {
                return Err(SealError::First { builder, ledger });
            }
            (next, first) => next.or(first).or(self.waiting.span().map(|(least, _)| least)).unwrap_or(0),
        };
        let after = self.waiting.span().map_or(first, |(_, most)| most.saturating_add(1).max(first));
        let full = first.saturating_add(terms.count_max.min(COUNT_MAX).into());
        let open = terms.in_flight.unwrap_or(u64::MAX);
        let stop = after.min(full).min(open);
        let mut end = match stop {
            s if s == after => End::All,
            s if s == full => End::Count,
            _ => End::InFlight,
        };
        let mut held = first;
        let mut totals = BTreeMap::new();
        let mut total = 0u64;
        let mut windows = Windows::default();
        for (sequence, ordinal) in self.waiting.range(first, stop) {
            let leaf = windows.record(&self.journals, &self.disk, sequence, ordinal)?.leaf;
            let fee = leaf.fee_micro_usd;
            let sum = total.checked_add(fee).filter(|sum| *sum <= terms.total_max);
            let new = fee > 0 && !totals.contains_key(&leaf.model_root);
            let (reason, sum) = match sum {
                _ if leaf.epoch > epoch => (Some(End::LaterEpoch), 0),
                _ if new && totals.len() == SHARES_MAX => (Some(End::Models), 0),
                None => (Some(End::Total), 0),
                Some(sum) => (None, sum),
            };
            if let Some(reason) = reason {
                end = reason;
                break;
            }
            total = sum;
            if fee > 0 {
                let of: &mut u64 = totals.entry(leaf.model_root).or_default();
                *of = of.saturating_add(fee);
            }
            held = sequence + 1;
        }
        // A full batch may end in gaps: otherwise receipts behind a long one would wait for ever.
        let next = if end == End::Count { stop } else { held };
        let count = u32::try_from(next.saturating_sub(first)).unwrap_or(0);
        if count == 0 {
            return Err(SealError::Nothing { at: first, end });
        }
        let shares = totals.into_iter().map(|(model_root, total)| Share { model_root, total }).collect();
        Ok(Choice { first, count, shares, end })
    }

    fn write_and_name(&mut self, epoch: u64, choice: Choice) -> Result<Batch, StorageError> {
        let Choice { first, count, shares, end } = choice;
        let nothing = assay_core::id::Hash::ZERO;
        let unwritten =
            Batch { epoch, first, count, gaps: 0, root: nothing, tally_root: nothing, shares, end };
        let waiting = std::mem::take(&mut self.waiting);
        let written = write(self, &waiting, unwritten);
        self.waiting = waiting;
        let batch = written?;
        let mut state = self.state.clone();
        state.batches.push(Entry { batch: batch.clone(), progress: Progress::Sealed });
        state.write(&mut self.disk)?;
        self.state = state;
        self.waiting.drop_below(batch.next());
        Ok(batch)
    }

    /// Writes the file of a batch again from the journals, which hold its receipts until it is pruned. It has the roots that it had.
    pub fn repair(&mut self, epoch: u64) -> Result<(), RepairError> {
        self.running()?;
        let entry = self.state.position(epoch).and_then(|i| self.state.batches.get(i));
        let batch = entry.ok_or(RepairError::NoBatch { epoch })?.batch.clone();
        let done = self.rewrite(&batch);
        self.stopping(done).map_err(RepairError::Storage)
    }

    fn rewrite(&mut self, batch: &Batch) -> Result<(), StorageError> {
        let mut records = Waiting::default();
        let numbers = batch.first..batch.next();
        let keep = |r: &super::record::Record, ordinal| {
            if numbers.contains(&r.sequence) {
                records.put(r.sequence, ordinal);
            }
        };
        let from = self.state.journals_from;
        let (journals, _) = Journals::replay(&mut self.disk, self.identity, from, keep)?;
        self.journals = journals;
        write(self, &records, batch.clone()).and_then(|again| {
            let what = "they do not hold the receipts of this batch";
            if again == *batch { Ok(()) } else { Err(damaged("the journals", what, Remedy::Rebuild)) }
        })
    }
}

/// Writes the file of a batch whose roots and gaps are still to be filled in.
fn write<D: Disk>(b: &mut Builder<D>, records: &Waiting, batch: Batch) -> Result<Batch, StorageError> {
    let file = tree::name(batch.epoch);
    let new = format!("{file}{NEW}");
    let mut windows = Windows::default();
    let mut writer = Writer::new(b.identity, batch.epoch, &new, &batch.shares);
    let mut next = batch.first;
    for (sequence, ordinal) in records.range(batch.first, batch.next()) {
        for _ in next..sequence {
            writer.push(&mut b.disk, None)?;
        }
        let record = windows.record(&b.journals, &b.disk, sequence, ordinal)?;
        writer.push(&mut b.disk, Some(record.leaf))?;
        next = sequence + 1;
    }
    for _ in next..batch.next() {
        writer.push(&mut b.disk, None)?;
    }
    let (root, tally_root) = writer.finish(&mut b.disk)?;
    disk(b.disk.flush(&new), &new, "flush")?;
    disk(b.disk.rename(&new, &file), &file, "replace")?;
    disk(b.disk.flush_names(), "the folder", "flush")?;
    let held = records.range(batch.first, batch.next()).count();
    let gaps = batch.count.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX));
    Ok(Batch { root, tally_root, gaps, ..batch })
}

/// Why a batch's file was not written again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// There is no such batch.
    #[error("epoch {epoch} has no batch here")]
    NoBatch {
        /// Its epoch.
        epoch: u64,
    },
    /// A file.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
