//! What stands at a sequence number, in memory and in files.
//!
//! Invariant: a record's bytes have a check, so that a record that was read is one that was written. Signatures are not kept and not
//! checked here: the receipts are the provider's own.

use assay_core::id::{Hash, ModelRoot};
use assay_core::keccak::keccak256;
use assay_core::merkle;
use assay_core::receipt::SignedReceipt;

/// Bytes of a [`Leaf`] in files: epoch, fee, model root, signing hash.
pub(super) const LEAF_BYTES: usize = 8 + 8 + 32 + 32;
/// Bytes of a check.
const CHECK_BYTES: usize = 8;
/// Bytes of a record in a journal: sequence number, leaf, start of its group, check.
pub(super) const RECORD_BYTES: usize = 8 + LEAF_BYTES + 4 + CHECK_BYTES;

const RECORD_TAG: &[u8] = b"assay/epochs/record/1";

/// What a signed receipt brings into an epoch's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The epoch in which it was signed.
    pub epoch: u64,
    /// Its fee.
    pub fee_micro_usd: u64,
    /// Its model.
    pub model_root: ModelRoot,
    /// What its signature signs.
    pub signing_hash: Hash,
}

impl Leaf {
    /// Of a receipt.
    pub fn of(receipt: &SignedReceipt) -> Leaf {
        Leaf {
            epoch: receipt.receipt.epoch,
            fee_micro_usd: receipt.receipt.fee_micro_usd,
            model_root: receipt.receipt.model_root,
            signing_hash: receipt.receipt.signing_hash(&receipt.domain),
        }
    }
}

/// The leaf hash at a sequence number: 32 zero bytes stand for a receipt that was never signed (protocol 11.2).
pub fn leaf_hash(leaf: Option<&Leaf>) -> Hash {
    merkle::leaf(leaf.map_or(Hash::ZERO, |l| l.signing_hash).as_bytes())
}

/// Reads fixed-length fields one after the other.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

/// Appends a leaf's bytes; all zero where there is none.
pub(super) fn put_leaf(out: &mut Vec<u8>, leaf: Option<&Leaf>) {
    let Some(leaf) = leaf else {
        out.resize(out.len() + LEAF_BYTES, 0);
        return;
    };
    out.extend_from_slice(&leaf.epoch.to_be_bytes());
    out.extend_from_slice(&leaf.fee_micro_usd.to_be_bytes());
    out.extend_from_slice(leaf.model_root.as_bytes());
    out.extend_from_slice(leaf.signing_hash.as_bytes());
}

/// The next leaf; the outer `None` says that there are too few bytes.
pub(super) fn take_leaf(fields: &mut Fields<'_>) -> Option<Option<Leaf>> {
    let leaf = Leaf {
        epoch: fields.number()?,
        fee_micro_usd: fields.number()?,
        model_root: ModelRoot::from_bytes(fields.take()?),
        signing_hash: Hash::from_bytes(fields.take()?),
    };
    Some((leaf.signing_hash != Hash::ZERO).then_some(leaf))
}

/// A receipt in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) leaf: Leaf,
    /// Index in the journal of the first record that was flushed together with this one: everything before it had been flushed.
    pub(super) group: u32,
}

fn check(tag: &[u8], bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = keccak256(&[tag, bytes]);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Appends the check of what stands in `out` from `from` on.
pub(super) fn put_check(out: &mut Vec<u8>, from: usize, tag: &[u8]) {
    let sum = check(tag, out.get(from..).unwrap_or_default());
    out.extend_from_slice(&sum);
}

/// What stands before the check, if it is that of these bytes.
pub(super) fn checked<'a>(bytes: &'a [u8], tag: &[u8]) -> Option<&'a [u8]> {
    let (content, sum) = bytes.split_last_chunk::<CHECK_BYTES>()?;
    (check(tag, content) == *sum).then_some(content)
}

impl Record {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(&self.sequence.to_be_bytes());
        put_leaf(out, Some(&self.leaf));
        out.extend_from_slice(&self.group.to_be_bytes());
        put_check(out, from, RECORD_TAG);
    }

    /// `None` where the bytes are no record.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Record> {
        let mut fields = Fields(checked(bytes, RECORD_TAG)?);
        let sequence = fields.number()?;
        let leaf = take_leaf(&mut fields)??;
        let group = u32::from_be_bytes(fields.take()?);
        fields.0.is_empty().then_some(Record { sequence, leaf, group })
    }
}
