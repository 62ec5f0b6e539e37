//! The epoch builder of a provider: it keeps what every receipt brings into an epoch's trees as the receipts come, seals a batch when
//! the epoch is over, and proves any leaf of it afterwards (`docs/ledger.md`, sections 7 and 8).
//!
//! A receipt is given to nobody before [`Builder::append`] has returned for it. So a receipt that somebody has stands in a batch, and a
//! number that a batch declares unused cannot be signed any more: appending it is refused.
//!
//! **Files**, in one folder: `journal-N`, receipts in the order in which they came, flushed once for each call; `batch-E`, the leaves of a
//! sealed epoch in the order of their numbers, with the nodes of its trees; `state`, which batches there are and how far each has
//! come. Only `state` is ever replaced, by a rename; journals grow at their ends; a batch's file is complete before `state` names it. A crash
//! between any two steps leaves the state before or after; what is half done is removed or cut at the next opening, which reports what it cut.
//!
//! **Order.** Numbers come in any order, within [`limits::SPAN_MAX`] of the last batch's end. Sealing reads the journals by number, a window
//! at a time.
//!
//! **Memory** is bounded by construction: 4 bytes for each number that waits (16 KiB for every 4096 with any; at most 64 MiB), one
//! group ([`limits::GROUP_MAX`]) of 100 bytes a receipt while appending; while sealing, [`limits::WINDOWS_MAX`] windows of 100 KiB, one
//! block, and 64 bytes, half as much again for a level, for every [`limits::BLOCK_LEAVES`] leaves.
//!
//! **After a loss.** Whatever is damaged is refused by the name of its file. A batch's file is written again by [`Builder::repair`]. At its start a
//! node appends again what its own store has from [`Builder::next`] on: what is there already is ignored. If all is lost, it appends the
//! store's receipts to an empty folder and seals each open batch again with the first number and count that the ledger has of it:
//! the roots come out the same.
//!
//! It refuses: receipts of another provider or ledger, another receipt at a number that has one, numbers that have passed. It checks no
//! signature and looks for no conflict of two numbers (protocol 11.1): receipts are the node's own. It knows no chain: what was posted, undone,
//! missed and settled it is told.

pub mod batch;
pub mod disk;
mod journal;
pub mod limits;
mod progress;
mod proofs;
mod record;
mod seal;
mod shelf;
mod state;
mod storage;
mod tree;
mod waiting;

use std::collections::BTreeMap;
use std::path::Path;

use assay_core::id::{Hash, ModelRoot};
use assay_core::receipt::SignedReceipt;

pub use batch::{Batch, End, Listing, Share, ShareTree};
pub use disk::{Disk, Folder};
pub use journal::Torn;
pub use progress::ProgressError;
pub use proofs::{LeafOpening, LeafProof, ProofError, TallyProof};
pub use record::{Leaf, leaf_hash};
pub use seal::{RepairError, SealError, Terms};
pub use shelf::Shelf;
pub use state::{Entry, Identity, Posting, Progress};
pub use storage::{Remedy, StorageError};

use journal::{Journals, Windows};
use limits::{GROUP_MAX, SEQUENCE_MAX, SPAN_MAX};
use record::Record;
use state::State;
use storage::{damaged, disk};
use tree::Layout;
use waiting::Waiting;

/// End of the name of a file that is being written.
const NEW: &str = ".new";

/// What was found at opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The end of the last journal was torn and has been cut.
    pub torn: Option<Torn>,
    /// Epochs whose batch's file is missing or has another length: to be repaired.
    pub damaged: Vec<u64>,
}

/// Why a folder was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{folder}: another process has this folder open; stop it, or choose another folder")]
    InUse {
        /// The folder.
        folder: String,
    },
    /// A file.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why receipts were not appended. None of the call's were, unless a write failed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// It is of another provider or for another ledger.
    #[error("receipt {sequence} is of another provider or for another ledger than this folder")]
    Foreign {
        /// Its number.
        sequence: u64,
    },
    /// The number has another receipt: whoever gave out both has proved itself dishonest.
    #[error(
        "sequence number {sequence} has the receipt that signs {kept}; one that signs {given} must not be given out"
    )]
    Conflict {
        /// The number.
        sequence: u64,
        /// Signing hash of what is kept.
        kept: Hash,
        /// Signing hash of what was given.
        given: Hash,
    },
    /// A batch declares that nothing was signed for this number.
    #[error(
        "the batch of epoch {epoch} says that nothing was signed for sequence number {sequence}: its receipt must not be given out"
    )]
    GivenUp {
        /// The number.
        sequence: u64,
        /// Epoch of the batch.
        epoch: u64,
    },
    /// The number lies before the first batch, or in one that was pruned.
    #[error(
        "sequence number {sequence} has passed, batches go on at {next}: its receipt must not be given out"
    )]
    Passed {
        /// The number.
        sequence: u64,
        /// Where the next batch begins.
        next: u64,
    },
    /// The number lies too far from the end of the last batch.
    #[error("sequence number {sequence} is {SPAN_MAX} or more from {from}; seal and post a batch first")]
    TooFar {
        /// The number.
        sequence: u64,
        /// The other end.
        from: u64,
    },
    /// The ledger knows no model 0, so its fee could never be posted.
    #[error("receipt {sequence} has a fee and no model")]
    NoModel {
        /// Its number.
        sequence: u64,
    },
    /// The number is no provider's count of requests.
    #[error("sequence number {sequence} is more than {SEQUENCE_MAX}")]
    TooLarge {
        /// The number.
        sequence: u64,
    },
    /// Too many at once.
    #[error("{given} receipts at once; at most {GROUP_MAX}")]
    TooMany {
        /// How many.
        given: usize,
    },
    /// A file.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// How many receipts were appended, and how many were there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// New.
    pub new: usize,
    /// There already.
    pub known: usize,
}

/// The builder over one folder.
#[derive(Debug)]
pub struct Builder<D: Disk = Folder> {
    disk: D,
    /// Hash of [`State::identity`].
    identity: Hash,
    state: State,
    journals: Journals,
    waiting: Waiting,
    /// A write failed.
    stopped: bool,
}

impl Builder<Folder> {
    /// Opens a folder, making it if there is none.
    pub fn open(path: &Path, identity: Identity) -> Result<(Self, Opened), OpenError> {
        let folder = path.display().to_string();
        let on = match Folder::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Err(OpenError::InUse { folder }),
            other => disk(other, &folder, "open")?,
        };
        Ok(Self::on(on, identity)?)
    }
}

impl<D: Disk> Builder<D> {
    /// Opens what lies on a disk.
    pub fn on(mut on: D, identity: Identity) -> Result<(Self, Opened), StorageError> {
        let Lying { state, journals, waiting, opened } = lying(&mut on, identity)?;
        let identity = state.identity.hash();
        Ok((Builder { disk: on, identity, state, journals, waiting, stopped: false }, opened))
    }

    /// Whether a write failed: nothing is written any more until what lies on the disk is read again.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Reads what lies on the disk again, as [`Builder::on`] does. Whatever a failed write left behind is cut off. As it was, if that fails.
    pub fn reopen(&mut self) -> Result<Opened, StorageError> {
        let Lying { state, journals, waiting, opened } = lying(&mut self.disk, self.state.identity)?;
        (self.state, self.journals, self.waiting, self.stopped) = (state, journals, waiting, false);
        Ok(opened)
    }

    /// Whose receipts.
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// Where the next batch begins; `None` before the first, unless receipts say.
    pub fn next(&self) -> Option<u64> {
        self.state.next().or(self.waiting.span().map(|(least, _)| least))
    }

    /// How many receipts no batch holds yet.
    pub fn waiting(&self) -> u64 {
        self.waiting.count()
    }

    /// All batches that were not pruned, by rising epoch.
    pub fn batches(&self) -> &[Entry] {
        &self.state.batches
    }

    fn running(&self) -> Result<(), StorageError> {
        if self.stopped { Err(StorageError::Stopped) } else { Ok(()) }
    }

    /// After an error in the middle of writing nobody knows what is on the disk but who reads it again.
    fn stopping<T>(&mut self, done: Result<T, StorageError>) -> Result<T, StorageError> {
        self.stopped |= done.is_err();
        done
    }

    /// Keeps a receipt. When it returns, the receipt is durable and may be given out.
    pub fn append(&mut self, receipt: &SignedReceipt) -> Result<Appended, AppendError> {
        self.append_many(std::slice::from_ref(receipt))
    }

    /// Keeps receipts, which share one flush: all of them, or none if one is refused.
    pub fn append_many(&mut self, receipts: &[SignedReceipt]) -> Result<Appended, AppendError> {
        self.running()?;
        if receipts.len() > GROUP_MAX {
            return Err(AppendError::TooMany { given: receipts.len() });
        }
        let mut new: Vec<Record> = Vec::with_capacity(receipts.len());
        let mut of_call: BTreeMap<u64, Leaf> = BTreeMap::new();
        let mut windows = Windows::default();
        let next = self.state.next();
        let (mut least, mut most) = match (next, self.waiting.span()) {
            (Some(next), span) => (next, span.map_or(next, |(_, most)| most)),
            (None, Some(span)) => span,
            (None, None) => receipts.first().map_or((0, 0), |r| (r.receipt.sequence, r.receipt.sequence)),
        };
        for receipt in receipts {
            let sequence = receipt.receipt.sequence;
            let identity = &self.state.identity;
            if receipt.receipt.provider != identity.provider || receipt.domain != identity.domain {
                return Err(AppendError::Foreign { sequence });
            }
            if sequence > SEQUENCE_MAX {
                return Err(AppendError::TooLarge { sequence });
            }
            if receipt.receipt.fee_micro_usd > 0 && receipt.receipt.model_root == ModelRoot::ZERO {
                return Err(AppendError::NoModel { sequence });
            }
            let leaf = Leaf::of(receipt);
            let kept = match of_call.get(&sequence) {
                Some(leaf) => Some(*leaf),
                None => self.kept(sequence, &mut windows)?,
            };
            match kept {
                Some(kept) if kept == leaf => continue,
                Some(kept) => {
                    let (kept, given) = (kept.signing_hash, leaf.signing_hash);
                    return Err(AppendError::Conflict { sequence, kept, given });
                }
                None => {}
            }
            least = least.min(sequence);
            most = most.max(sequence);
            if most - least >= SPAN_MAX {
                let from = if sequence == most { least } else { most };
                return Err(AppendError::TooFar { sequence, from });
            }
            of_call.insert(sequence, leaf);
            new.push(Record { sequence, leaf, group: 0 });
        }
        if !new.is_empty() {
            let written = self.journals.append(&mut self.disk, new.iter().copied());
            let start = self.stopping(written)?;
            for (ordinal, record) in (start..).zip(&new) {
                self.waiting.put(record.sequence, ordinal);
            }
        }
        Ok(Appended { new: new.len(), known: receipts.len() - new.len() })
    }

    /// What is kept at a number; an error if none may be kept there any more.
    fn kept(&self, sequence: u64, windows: &mut Windows) -> Result<Option<Leaf>, AppendError> {
        if let Some(ordinal) = self.waiting.get(sequence) {
            let record = windows.record(&self.journals, &self.disk, sequence, ordinal)?;
            return Ok(Some(record.leaf));
        }
        let Some(next) = self.state.next().filter(|next| sequence < *next) else { return Ok(None) };
        let Some(entry) = self.state.holding(sequence) else {
            return Err(AppendError::Passed { sequence, next });
        };
        match self.leaf(sequence) {
            Ok(Some(leaf)) => Ok(Some(leaf)),
            Ok(None) => Err(AppendError::GivenUp { sequence, epoch: entry.batch.epoch }),
            Err(ProofError::Storage(e)) => Err(e.into()),
            Err(_) => Err(AppendError::Passed { sequence, next }),
        }
    }
}

/// What lies on a disk.
struct Lying {
    state: State,
    journals: Journals,
    waiting: Waiting,
    opened: Opened,
}

fn lying<D: Disk>(on: &mut D, identity: Identity) -> Result<Lying, StorageError> {
    let names = disk(on.names(), "the folder", "list")?;
    for name in names.iter().filter(|n| n.ends_with(NEW)) {
        disk(on.remove(name), name, "remove")?;
    }
    let state = match State::read(on, &identity)? {
        Some(state) => state,
        None if names.iter().any(|n| tree::epoch_of(n).is_some() || journal::number_of(n).is_some()) => {
            return Err(damaged(state::FILE, "the file is missing", Remedy::Rebuild));
        }
        None => {
            let state = State::new(identity);
            state.write(on)?;
            state
        }
    };
    for name in &names {
        if tree::epoch_of(name).is_some_and(|epoch| state.position(epoch).is_none()) {
            disk(on.remove(name), name, "remove")?;
        }
    }
    let mut damaged = Vec::new();
    for entry in &state.batches {
        let file = tree::name(entry.batch.epoch);
        let whole = names.contains(&file)
            && disk(on.size(&file), &file, "measure")? == Layout::of(entry.batch.count).size();
        if !whole {
            damaged.push(entry.batch.epoch);
        }
    }
    let (journals, waiting, torn) = replay(on, &state)?;
    Ok(Lying { state, journals, waiting, opened: Opened { torn, damaged } })
}

/// Reads the journals, and finds what no batch holds.
fn replay<D: Disk>(on: &mut D, state: &State) -> Result<(Journals, Waiting, Option<Torn>), StorageError> {
    let next = state.next();
    let mut waiting = Waiting::default();
    let (journals, torn) =
        Journals::replay(on, state.identity.hash(), state.journals_from, |record, ordinal| {
            if next.is_none_or(|next| record.sequence >= next) {
                waiting.put(record.sequence, ordinal);
            }
        })?;
    if journals.is_empty() && (next.is_some() || state.journals_from > 1) {
        return Err(damaged("the journals", "the files are missing", Remedy::Rebuild));
    }
    Ok((journals, waiting, torn))
}
