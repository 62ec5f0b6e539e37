//! What a provider shows of its receipts: leaves, records, and what disputes are about.

use alloy_primitives::{B256, Bytes};
use assay_core::answer::AnswerRecord;
use assay_core::embedding::Record;
use assay_ledger::contracts::{Objections, b256};
use assay_ledger::epochs::{Batch, ProofError};

use super::{PAGE, Settlement, Undone};

/// Items of a record's request and of its transcript, by which a contract knows them.
pub(super) fn items(record: &Record) -> (Vec<Bytes>, Vec<Bytes>) {
    let bytes = |items: Vec<Vec<u8>>| items.into_iter().map(Bytes::from).collect();
    match record {
        Record::Answer(r) => (bytes(r.request.items().to_vec()), bytes(r.transcript.items())),
        Record::Embedding(r) => (bytes(r.request.items().to_vec()), bytes(r.transcript.items())),
    }
}

impl Settlement {
    /// The record at a sequence number, if its receipt is of this ledger.
    fn record(&self, sequence: u64) -> Result<Option<Record>, Undone> {
        let found = self.store.from_sequence(sequence, 1)?.pop();
        Ok(found
            .filter(|record| record.receipt().receipt.sequence == sequence && self.is_own(record.receipt())))
    }

    fn batch(&self, epoch: u64) -> Option<&Batch> {
        self.builder.batches().iter().find(|entry| entry.batch.epoch == epoch).map(|entry| &entry.batch)
    }

    /// The leaf at a place of a batch, with all that shows that it is in order.
    pub(super) async fn opening(&self, epoch: u64, index: u64) -> Result<Objections::Opening, Undone> {
        let lost = |what: &str| Undone::Lost(format!("the batch of epoch {epoch} {what}"));
        let sequence = match self.batch(epoch) {
            Some(batch) => batch.first.saturating_add(index),
            None => return Err(lost("is not here")),
        };
        let shares = self.share_tree(epoch).await?.ok_or_else(|| lost("has unknown shares"))?;
        let opened = |e: ProofError| lost(&format!("cannot be opened: {e}"));
        let opening = self.builder.opening(sequence).map_err(opened)?;
        let record = self.record(sequence)?;
        opening.answer(record.as_ref().map(|record| record.receipt()), &shares).map_err(opened)
    }

    /// The record at a place of a batch.
    pub(super) fn record_at(&self, epoch: u64, index: u64) -> Result<Record, Undone> {
        let first = self.batch(epoch).map(|batch| batch.first);
        let record = match first {
            Some(first) => self.record(first.saturating_add(index))?,
            None => None,
        };
        let lost = || Undone::Lost(format!("the record at place {index} of epoch {epoch} is not here"));
        record.ok_or_else(lost)
    }

    /// The answer whose receipt signs this hash: looked for among posted leaves, the newest first, and then among what waits.
    pub(super) fn signed(&self, name: B256) -> Result<Option<AnswerRecord>, Undone> {
        for entry in self.builder.batches().iter().rev() {
            let mut sequence = entry.batch.first;
            while sequence < entry.batch.next() {
                let lost = |e: ProofError| Undone::Lost(e.to_string());
                let leaves = self.builder.leaves(sequence).map_err(lost)?;
                if leaves.is_empty() {
                    break;
                }
                let found =
                    leaves.iter().position(|leaf| leaf.is_some_and(|leaf| b256(&leaf.signing_hash) == name));
                if let Some(found) = found {
                    let record = self.record(sequence.saturating_add(found as u64))?;
                    return Ok(record.and_then(answer));
                }
                sequence = sequence.saturating_add(leaves.len() as u64);
            }
        }
        let mut from = self.builder.batches().last().map_or(0, |entry| entry.batch.next());
        loop {
            let page = self.store.from_sequence(from, PAGE)?;
            let Some(last) = page.last() else { return Ok(None) };
            from = last.receipt().receipt.sequence.saturating_add(1);
            let signs = |record: &Record| {
                let signed = record.receipt();
                self.is_own(signed) && b256(&signed.receipt.signing_hash(&signed.domain)) == name
            };
            if let Some(found) = page.into_iter().find(signs) {
                return Ok(answer(found));
            }
        }
    }
}

fn answer(record: Record) -> Option<AnswerRecord> {
    match record {
        Record::Answer(record) => Some(*record),
        Record::Embedding(_) => None,
    }
}
