//! What receipts say beside each other: conflicts, epochs, and the digest by which an auditor shows that it executed.
//!
//! Rung 0 of the ladder: signatures and hashes alone. No model is needed, and none of this says that an answer is right.

use assay_core::id::{Hash, NodeAddress, ReceiptId};
use assay_core::keccak::keccak256;
use assay_core::merkle::{self, Proof};
use assay_core::receipt::{ReceiptError, SignedReceipt};

/// Two receipts that one provider may not both have signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Different receipts with one sequence number.
    Sequence,
    /// One request with one nonce, and different answers or executions of one length: at most one of them can be the model's. An answer that was stopped is
    /// shorter than the whole one, and both can be.
    Nonce,
}

/// Whether two receipts are in conflict; an error if one of them is not signed by its provider.
pub fn conflict(a: &SignedReceipt, b: &SignedReceipt) -> Result<Option<Conflict>, ReceiptError> {
    a.verify()?;
    b.verify()?;
    let (x, y) = (&a.receipt, &b.receipt);
    if x.provider != y.provider || a.domain != b.domain {
        return Ok(None);
    }
    if x.sequence == y.sequence && x != y {
        return Ok(Some(Conflict::Sequence));
    }
    let asked =
        (x.model_root, x.request_hash, x.client_nonce) == (y.model_root, y.request_hash, y.client_nonce);
    let differ = x.completion_tokens == y.completion_tokens
        && (x.transcript_root, x.digest_root) != (y.transcript_root, y.digest_root);
    // The transcript root covers who chose the nonce, so one answer given twice has one root.
    Ok((asked && differ).then_some(Conflict::Nonce))
}

/// What a provider posts for an epoch: a tree with one leaf per sequence number, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Sequence number of the first leaf.
    pub first: u64,
    /// How many leaves.
    pub count: u64,
    /// Root over the leaves, each the hash that the receipt's signature signs.
    pub root: Hash,
}

/// What an epoch says of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It stands in the epoch.
    Included,
    /// Another leaf stands at its sequence number, or none: the provider left it out.
    LeftOut,
}

/// The leaf of a receipt.
fn epoch_leaf(receipt: &SignedReceipt) -> Hash {
    merkle::leaf(receipt.receipt.signing_hash(&receipt.domain).as_bytes())
}

impl Epoch {
    /// Of receipts in the order of their sequence numbers, the first of which is given; `None` if there is a gap.
    pub fn of(receipts: &[SignedReceipt]) -> Option<Epoch> {
        let first = receipts.first()?.receipt.sequence;
        let follows = (first..).zip(receipts).all(|(s, r)| r.receipt.sequence == s);
        let root = merkle::root(receipts.iter().map(epoch_leaf));
        follows.then_some(Epoch { first, count: u64::try_from(receipts.len()).ok()?, root })
    }

    /// Whether a receipt that its provider signed for this epoch stands in it. `opened` is the leaf hash at its sequence number
    /// with its proof, as anyone who has the epoch's leaves can give it; nothing is needed where the sequence number lies
    /// outside. `None` when what was opened is not under the root.
    pub fn standing(&self, receipt: &SignedReceipt, opened: Option<(Hash, &Proof)>) -> Option<Standing> {
        let index = receipt.receipt.sequence.checked_sub(self.first).filter(|i| *i < self.count);
        let Some(index) = index else { return Some(Standing::LeftOut) };
        let (leaf, proof) = opened?;
        let under =
            proof.index == index && proof.count == self.count && merkle::verify(&self.root, leaf, proof);
        under.then(|| if leaf == epoch_leaf(receipt) { Standing::Included } else { Standing::LeftOut })
    }
}

/// What an auditor commits to and reveals: a digest of the execution that only who executed can make, and only for itself. It is
/// keyed by the auditor, so that another's is of no use, and by the beacon that drew the audit, so that none can be made
/// ahead. `trace` is the trace root (protocol 9.3), which no provider publishes.
pub fn audit_digest(auditor: NodeAddress, beacon: &[u8; 32], receipt: ReceiptId, trace: &Hash) -> Hash {
    keccak256(&[b"assay/audit/1", auditor.as_bytes(), beacon, receipt.as_bytes(), trace.as_bytes()])
}
