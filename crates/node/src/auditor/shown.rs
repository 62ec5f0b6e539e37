//! What a provider showed on the ledger because it was demanded: a leaf, then the record.
//!
//! Invariant: what is read here hashes to what the receipt says, or the contract would not have taken it. It is executed and disputed like any other
//! record: what stands in for the signature, which a contract never saw, is the receipt's place under the posted root.

use assay_core::answer::{AnswerRecord, Format};
use assay_core::digest::ExecutionDigests;
use assay_core::id::SignatureBytes;
use assay_core::receipt::{Receipt, SignedReceipt};
use assay_core::request::Request;
use assay_core::transcript::Transcript;
use assay_ledger::contracts::Objections;
use assay_ledger::docket::{DemandId, DemandKind};

use super::told::Drawn;
use super::{Auditor, BatchId, Undone};
use crate::execution::Shown;

impl Auditor {
    /// Reads what was shown of a batch since the last time, and has it executed.
    pub(super) async fn read_shown(&mut self, id: BatchId) -> Result<(), Undone> {
        let Some(audit) = self.audits.get(&id) else { return Ok(()) };
        let (first, asked) = (audit.batch.first, audit.work.demanded.clone());
        for (sequence, is_record) in asked {
            let Some(audit) = self.audits.get(&id) else { return Ok(()) };
            let known = if is_record {
                audit.work.done.contains_key(&sequence) || self.errands.executes(id, sequence)
            } else {
                audit.receipts.contains_key(&sequence)
            };
            if known {
                continue;
            }
            let kind = if is_record { DemandKind::Record } else { DemandKind::Leaf };
            let index = sequence.saturating_sub(first);
            let demand = DemandId { provider: id.provider, epoch: id.epoch, index, kind };
            // A demand that the log has not named yet cannot have been answered.
            let Some(from) = self.docket.entries().demands.get(&demand).copied() else { continue };
            if is_record {
                let receipt = audit.receipts.get(&sequence).map(|(receipt, _)| receipt.id());
                if let Some(call) = self.ledger.shown(&demand, from).await? {
                    self.execute_shown(id, sequence, &call);
                } else if let Some(receipt) = receipt
                    && self.ledger.withheld(&demand, from).await?
                {
                    self.note_withheld(id, sequence, receipt)?;
                }
            } else if let Some(opening) = self.ledger.opened(&demand, from).await? {
                self.learn(id, sequence, opening);
            }
        }
        Ok(())
    }

    /// Learns a receipt from a leaf that was opened.
    fn learn(&mut self, id: BatchId, sequence: u64, opening: Objections::Opening) {
        let rates = self.ledger.parameters().rates.clone();
        let Some(audit) = self.audits.get_mut(&id) else { return };
        if opening.isVoid {
            // Nothing was signed for it: there is nothing to execute.
            audit.refused.remove(&sequence);
            audit.drawn.remove(&sequence);
            return;
        }
        let found = Receipt::from(&opening.receipt);
        let members = audit.draw(id.provider, &rates).members_for(sequence, found.fee_micro_usd);
        audit.receipts.insert(sequence, (found, Some(opening.proof)));
        if members.is_empty() {
            audit.refused.remove(&sequence);
        } else {
            audit.drawn.entry(sequence).or_insert(Drawn { leaf: None, members });
        }
    }

    fn execute_shown(&mut self, id: BatchId, sequence: u64, call: &Objections::answerRecordCall) {
        let Some(audit) = self.audits.get(&id) else { return };
        let Some((receipt, _)) = audit.receipts.get(&sequence).cloned() else { return };
        let request: Vec<&[u8]> = call.request.iter().map(|item| item.as_ref()).collect();
        let transcript: Vec<&[u8]> = call.transcript.iter().map(|item| item.as_ref()).collect();
        let (Some(request), Some(transcript)) =
            (Request::from_items(&request), Transcript::from_items(&transcript))
        else {
            // Embeddings, or what hashes right and is nothing: nobody can execute it from this.
            let what = format!("reading what was shown of receipt {sequence} of {}", id.provider);
            self.failed(&what, "record_unreadable", &"it is no request and answer");
            return;
        };
        let record = AnswerRecord {
            format: Format::V2,
            receipt: SignedReceipt {
                receipt,
                domain: self.ledger.receipt_domain(),
                signature: SignatureBytes::ZERO,
            },
            request,
            transcript,
            digests: ExecutionDigests::default(),
            generation: None,
        };
        self.execute(id, sequence, Shown::OnLedger(Box::new(record)));
    }
}
