//! The file of states: which batches there are, and how far each has come on the ledger.
//!
//! Invariant: it is replaced whole, by a rename, so that it is the one before or the one after. It is the only file that makes a batch
//! one: a batch's file that it does not name is removed.

use assay_core::id::{Hash, NodeAddress};
use assay_core::keccak::keccak256;
use assay_core::receipt::Domain;
use borsh::{BorshDeserialize, BorshSerialize};

use super::batch::Batch;
use super::disk::Disk;
use super::limits::STATE_BYTES_MAX;
use super::storage::{Remedy, StorageError, damaged, disk};

pub(super) const FILE: &str = "state";
const NEW: &str = "state.new";
const TAG: &[u8] = b"assay/epochs/state/1";

/// Whose receipts, for which ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Identity {
    /// The provider.
    pub provider: NodeAddress,
    /// Chain and `Epochs` contract.
    pub domain: Domain,
}

impl Identity {
    pub(super) fn hash(&self) -> Hash {
        let chain = self.domain.chain_id.to_be_bytes();
        keccak256(&[TAG, self.provider.as_bytes(), &chain, self.domain.contract.as_bytes()])
    }
}

/// Where a batch was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Posting {
    /// Number of the block; of a later one, where the batch was found on the ledger after a crash.
    pub block: u64,
    /// Hash of the transaction; zero, where the batch was found on the ledger after a crash.
    pub transaction: Hash,
}

/// How far a batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Progress {
    /// It can be posted.
    Sealed,
    /// It stands on the ledger.
    Posted(Posting),
    /// Its fees are paid.
    Settled(Posting),
}

/// A batch and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    /// The batch.
    pub batch: Batch,
    /// How far it has come.
    pub progress: Progress,
}

/// Everything that is known of batches.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct State {
    pub(super) identity: Identity,
    /// Number of the first journal.
    pub(super) journals_from: u64,
    /// Epoch and end of the last pruned batch.
    pub(super) pruned: Option<(u64, u64)>,
    /// By rising epoch.
    pub(super) batches: Vec<Entry>,
}

impl State {
    pub(super) fn new(identity: Identity) -> State {
        State { identity, journals_from: 1, pruned: None, batches: Vec::new() }
    }

    /// Where the next batch begins; `None` before the first.
    pub(super) fn next(&self) -> Option<u64> {
        self.batches.last().map(|e| e.batch.next()).or(self.pruned.map(|(_, end)| end))
    }

    /// The last epoch with a batch.
    pub(super) fn last_epoch(&self) -> Option<u64> {
        self.batches.last().map(|e| e.batch.epoch).or(self.pruned.map(|(epoch, _)| epoch))
    }

    pub(super) fn position(&self, epoch: u64) -> Option<usize> {
        self.batches.binary_search_by_key(&epoch, |e| e.batch.epoch).ok()
    }

    /// The batch that has a sequence number.
    pub(super) fn holding(&self, sequence: u64) -> Option<&Entry> {
        let after = self.batches.partition_point(|e| e.batch.first <= sequence);
        let entry = self.batches.get(after.checked_sub(1)?)?;
        (sequence < entry.batch.next()).then_some(entry)
    }

    /// `None` if there is no such file.
    pub(super) fn read<D: Disk>(on: &D, identity: &Identity) -> Result<Option<State>, StorageError> {
        let names = disk(on.names(), "the folder", "list")?;
        if !names.iter().any(|n| n == FILE) {
            return Ok(None);
        }
        let size = disk(on.size(FILE), FILE, "measure")?;
        let wrong = |what: &str| damaged(FILE, what, Remedy::Rebuild);
        if size > STATE_BYTES_MAX {
            return Err(wrong("it is longer than it may be"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        disk(on.read(FILE, 0, &mut bytes), FILE, "read")?;
        let content = bytes
            .split_last_chunk::<32>()
            .and_then(|(content, check)| (keccak256(&[TAG, content]).as_bytes() == check).then_some(content));
        let content = content.ok_or_else(|| wrong("it does not have the hash that it ends with"))?;
        let state = borsh::from_slice::<State>(content)
            .map_err(|_| wrong("it is of another version of this format"))?;
        if state.identity != *identity {
            let of = format!("it is of provider {} on {:?}", state.identity.provider, state.identity.domain);
            return Err(damaged(FILE, of, Remedy::OtherFolder));
        }
        Ok(Some(state))
    }

    /// Replaces the file.
    pub(super) fn write<D: Disk>(&self, on: &mut D) -> Result<(), StorageError> {
        let mut bytes = borsh::to_vec(self).map_err(std::io::Error::other).and_then(|b| {
            if b.len() as u64 + 32 > STATE_BYTES_MAX {
                Err(std::io::Error::other("too many batches"))
            } else {
                Ok(b)
            }
        });
        let bytes = match &mut bytes {
            Ok(b) => {
                let check = keccak256(&[TAG, b]);
                b.extend_from_slice(check.as_bytes());
                std::mem::take(b)
            }
            Err(_) => return disk(bytes.map(|_| ()), NEW, "write"),
        };
        disk(on.append(NEW, &bytes), NEW, "write")?;
        disk(on.flush(NEW), NEW, "flush")?;
        disk(on.rename(NEW, FILE), FILE, "replace")?;
        disk(on.flush_names(), "the folder", "flush")
    }
}
