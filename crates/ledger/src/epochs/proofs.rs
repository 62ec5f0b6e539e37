//! What a batch proves: a receipt's place, the totals up to it, and the whole opening that a demand asks for (ledger, 8.3).
//!
//! Invariant: a proof that is returned holds under the batch's root; it was checked. Cost: one block is read and hashed, and one node for
//! every level above.

use alloy_primitives::Bytes;
use assay_core::id::Hash;
use assay_core::merkle::Proof;
use assay_core::receipt::SignedReceipt;

use super::Builder;
use super::batch::{Batch, ShareTree};
use super::disk::Disk;
use super::limits::BLOCK_LEAVES;
use super::record::Leaf;
use super::storage::StorageError;
use super::tree::{Reader, Tree};
use crate::contracts::Objections;

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// No batch has this number.
    #[error(
        "no batch here holds sequence number {sequence}: it waits for the next one, or its batch was pruned"
    )]
    NotHeld {
        /// The number.
        sequence: u64,
    },
    /// The batch has another leaf at the receipt's number.
    #[error("the batch has {found} at sequence number {sequence}, not the receipt that signs {given}")]
    OtherReceipt {
        /// The number.
        sequence: u64,
        /// Signing hash there; zero: a gap.
        found: Hash,
        /// Signing hash of what was given.
        given: Hash,
    },
    /// The tree of shares is of another batch, or of other listings.
    #[error("the tree of shares has {got} models, the batch has {expected}")]
    OtherShares {
        /// Of the batch.
        expected: usize,
        /// Of the tree.
        got: usize,
    },
    /// A file.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A leaf in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafProof {
    /// Epoch of the batch.
    pub epoch: u64,
    /// What stands there; `None`: nothing was signed.
    pub leaf: Option<Leaf>,
    /// Under the batch's root.
    pub proof: Proof,
}

/// Running totals in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TallyProof {
    /// For each share, 8 bytes.
    pub tally: Vec<u8>,
    /// Under the batch's tally root.
    pub proof: Proof,
}

/// Everything that shows that a leaf is in order, but for the receipt itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafOpening {
    /// The sequence number.
    pub sequence: u64,
    /// The leaf.
    pub leaf: LeafProof,
    /// Totals up to it.
    pub tally: TallyProof,
    /// Totals up to the leaf before; `None` at the first.
    pub before: Option<TallyProof>,
}

impl LeafOpening {
    /// The answer to `demandLeaf`, with the receipt from the node's own store: none for a gap.
    pub fn answer(
        &self,
        receipt: Option<&SignedReceipt>,
        shares: &ShareTree,
    ) -> Result<Objections::Opening, ProofError> {
        let given = receipt.map_or(Hash::ZERO, |r| r.receipt.signing_hash(&r.domain));
        let found = self.leaf.leaf.map_or(Hash::ZERO, |l| l.signing_hash);
        if given != found {
            return Err(ProofError::OtherReceipt { sequence: self.sequence, found, given });
        }
        let expected = self.tally.tally.len() / 8;
        if shares.leaves.len() != expected {
            return Err(ProofError::OtherShares { expected, got: shares.leaves.len() });
        }
        // At the first leaf the contract reads nothing of what was before.
        let before = self.before.clone();
        let before = before.unwrap_or(TallyProof {
            tally: Vec::new(),
            proof: Proof { index: 0, count: self.tally.proof.count, path: Vec::new() },
        });
        Ok(Objections::Opening {
            receipt: receipt.map(|r| (&r.receipt).into()).unwrap_or_default(),
            isVoid: receipt.is_none(),
            proof: (&self.leaf.proof).into(),
            tally: Bytes::from(self.tally.tally.clone()),
            tallyProof: (&self.tally.proof).into(),
            before: Bytes::from(before.tally),
            beforeProof: (&before.proof).into(),
            shares: shares.objections_leaves(),
        })
    }
}

impl<D: Disk> Builder<D> {
    fn place(&self, sequence: u64) -> Result<(&Batch, u32), ProofError> {
        let held = self.state.holding(sequence).and_then(|e| {
            let index = u32::try_from(sequence.checked_sub(e.batch.first)?).ok()?;
            Some((&e.batch, index))
        });
        held.ok_or(ProofError::NotHeld { sequence })
    }

    fn reader<'a>(&'a self, batch: &'a Batch) -> Reader<'a, D> {
        Reader::new(&self.disk, self.identity, batch)
    }

    /// The leaf at a sequence number, with its proof: what refunds, audits and objections ask for.
    pub fn proof(&self, sequence: u64) -> Result<LeafProof, ProofError> {
        let (batch, index) = self.place(sequence)?;
        let reader = self.reader(batch);
        let block = reader.block(index)?;
        let proof = reader.proof(Tree::Receipts, &block, index)?;
        let leaf = block.leaves.get(index as usize % BLOCK_LEAVES).copied().flatten();
        Ok(LeafProof { epoch: batch.epoch, leaf, proof })
    }

    /// The running totals up to a sequence number, with their proof.
    pub fn tally_proof(&self, sequence: u64) -> Result<TallyProof, ProofError> {
        let (batch, index) = self.place(sequence)?;
        let reader = self.reader(batch);
        let block = reader.block(index)?;
        let proof = reader.proof(Tree::Tallies, &block, index)?;
        let tally = block.tallies.get(index as usize % BLOCK_LEAVES).cloned();
        Ok(TallyProof { tally: tally.unwrap_or_default(), proof })
    }

    /// What answers a demand for the leaf at a sequence number.
    pub fn opening(&self, sequence: u64) -> Result<LeafOpening, ProofError> {
        let (batch, index) = self.place(sequence)?;
        let reader = self.reader(batch);
        let block = reader.block(index)?;
        let at = index as usize % BLOCK_LEAVES;
        let leaf = block.leaves.get(at).copied().flatten();
        let tally = block.tallies.get(at).cloned().unwrap_or_default();
        let before = match (index.checked_sub(1), at.checked_sub(1).and_then(|at| block.tallies.get(at))) {
            (None, _) => None,
            (Some(index), Some(tally)) => {
                let proof = reader.proof(Tree::Tallies, &block, index)?;
                Some(TallyProof { tally: tally.clone(), proof })
            }
            // The leaf before is in the block before.
            (Some(_), None) => Some(self.tally_proof(sequence - 1)?),
        };
        Ok(LeafOpening {
            sequence,
            leaf: LeafProof { epoch: batch.epoch, leaf, proof: reader.proof(Tree::Receipts, &block, index)? },
            tally: TallyProof { tally, proof: reader.proof(Tree::Tallies, &block, index)? },
            before,
        })
    }

    /// The leaf at a sequence number that a batch holds; `None` where nothing was signed.
    pub fn leaf(&self, sequence: u64) -> Result<Option<Leaf>, ProofError> {
        let (batch, index) = self.place(sequence)?;
        Ok(self.reader(batch).leaves(index)?.first().copied().flatten())
    }

    /// Leaves from a sequence number on, at most a block of them and of one batch: with these, anyone adds up what was posted.
    pub fn leaves(&self, from: u64) -> Result<Vec<Option<Leaf>>, ProofError> {
        let (batch, index) = self.place(from)?;
        Ok(self.reader(batch).leaves(index)?)
    }
}
