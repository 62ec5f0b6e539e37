//! Which errands a batch asks for, and what is written down of what they bring: what was drawn, its records, and what they came to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alloy_primitives::{Address, B256};
use assay_api::audits::{AuditLeaf, RECORDS_ASKED_MAX};
use assay_api::traces::{self, Span, SpanKind};
use assay_core::canonical::Canonical as _;
use assay_core::consent::WithheldRecord;
use assay_core::embedding::Record;
use assay_core::id::{Hash, ModelRoot, ReceiptId};
use assay_core::merkle;
use assay_core::receipt::Receipt;
use assay_ledger::contracts::Directory::Rates;
use assay_ledger::contracts::{Epochs, Objections};
use assay_ledger::docket::DemandKind;

use super::errands::{About, Asker, Brought};
use super::told::{Draw, Drawn};
use super::{Auditor, BatchId, Done, Event, Refused, Revealed, Undone, Work};
use crate::execution::{Executed, ExecutionError, LibraryError, Shown, Verdict};

/// A batch that is audited.
#[derive(Debug)]
pub(super) struct Audit {
    pub(super) batch: Epochs::Batch,
    pub(super) beacon: B256,
    /// How many places the panel has, and which are the auditor's.
    pub(super) panel: u8,
    pub(super) members: Vec<u8>,
    /// All leaves, once the provider has told them.
    pub(super) leaves: Option<Vec<Option<AuditLeaf>>>,
    /// What was drawn for this auditor, as far as it is known.
    pub(super) drawn: BTreeMap<u64, Drawn>,
    /// Receipts that are known, with their proof under the posted root.
    pub(super) receipts: BTreeMap<u64, (Receipt, Option<Objections::Proof>)>,
    /// What the provider did not give when it was asked last.
    pub(super) refused: BTreeSet<u64>,
    /// Receipts whose model is not here.
    pub(super) lacking: BTreeMap<u64, ModelRoot>,
    /// What others revealed, once that is over.
    pub(super) revealed: Option<Revealed>,
    /// Receipts about which nobody can be doubted.
    pub(super) undoubted: BTreeSet<u64>,
    /// What is in the journal.
    pub(super) work: Work,
}

/// The place of a receipt among all leaves of a batch that begins with `first`.
pub fn place_in(leaves: &[Option<AuditLeaf>], first: u64, sequence: u64) -> Option<Objections::Proof> {
    let hash =
        |leaf: &Option<AuditLeaf>| merkle::leaf(leaf.map_or(Hash::ZERO, |leaf| leaf.signing_hash).as_bytes());
    let hashes: Vec<Hash> = leaves.iter().map(hash).collect();
    let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
    Some((&merkle::prove(&hashes, index)?).into())
}

impl Audit {
    pub(super) fn draw<'a>(&'a self, provider: Address, rates: &'a Rates) -> Draw<'a> {
        Draw { provider, beacon: self.beacon, batch: &self.batch, rates, members: &self.members }
    }

    /// Receipts that wait to be executed.
    pub(super) fn pending(&self) -> impl Iterator<Item = u64> {
        self.drawn.keys().copied().filter(|sequence| !self.work.done.contains_key(sequence))
    }

    /// What the provider refuses, and what can be demanded of it: a record by who has its receipt, a leaf by anyone.
    pub(super) fn refusals(&self) -> Vec<Refused> {
        let open = self.refused.iter().copied().filter(|sequence| !self.work.done.contains_key(sequence));
        let of = |sequence: u64| {
            let record = self.receipts.contains_key(&sequence);
            let kind = if record { DemandKind::Record } else { DemandKind::Leaf };
            Refused { sequence, kind }
        };
        let asked = |r: &Refused| self.work.demanded.contains(&(r.sequence, r.kind == DemandKind::Record));
        open.map(of).filter(|refused| !asked(refused)).collect()
    }

    /// A receipt that is known, and its place under the posted root.
    pub(super) fn place(&self, sequence: u64) -> Option<(&Receipt, Objections::Proof)> {
        let (receipt, shown) = self.receipts.get(&sequence)?;
        let proof = match (shown, &self.leaves) {
            (Some(proof), _) => proof.clone(),
            (None, Some(leaves)) => place_in(leaves, self.batch.first, sequence)?,
            (None, None) => return None,
        };
        Some((receipt, proof))
    }

    /// A receipt's place under the posted root, if all leaves are here or it was shown on the ledger.
    pub(super) fn place_of(&self, sequence: u64) -> Option<Objections::Proof> {
        let shown = self.receipts.get(&sequence).and_then(|(_, shown)| shown.clone());
        shown.or_else(|| place_in(self.leaves.as_ref()?, self.batch.first, sequence))
    }

    /// The call that demands a record.
    pub(super) fn record_demand(
        &self,
        epoch: u64,
        sequence: u64,
    ) -> Option<(Objections::demandRecordCall, String)> {
        let (receipt, proof) = self.place(sequence)?;
        let member = self.drawn.get(&sequence)?.members.first().copied()?;
        let member = alloy_primitives::U256::from(member);
        let call = Objections::demandRecordCall { epoch, member, receipt: receipt.into(), proof };
        Some((call, format!("demand record {sequence} of epoch {epoch}")))
    }
}

/// The span of an execution: the request's own trace is not known here.
fn span(id: BatchId, receipt: &Receipt) -> Span {
    let span = traces::root(SpanKind::Internal, "audit");
    if span.is_on() {
        span.does("audit", &receipt.model_root.to_string());
        span.responds(&receipt.id());
        span.used(receipt.prompt_tokens, receipt.completion_tokens);
        span.set("assay.provider", id.provider.to_string());
        span.count("assay.epoch", id.epoch);
    }
    span
}

/// What a provider gave for a receipt that was drawn.
enum Given {
    /// Its record.
    Record(Box<Record>),
    /// That its client withholds its consent; what is named is its receipt.
    Withheld(ReceiptId),
}

impl Auditor {
    fn asker(&self) -> Asker {
        let (ledger, key) = (self.ledger.clone(), self.sender.key().clone());
        Asker { ledger, http: self.http.clone(), auditor: self.auditor, key }
    }

    /// A batch as it is audited now; nothing if it is not.
    fn about(&self, id: BatchId) -> Option<About> {
        self.audits.get(&id).map(|audit| About { id, beacon: audit.beacon })
    }

    fn refuse(
        &mut self,
        id: BatchId,
        sequences: impl IntoIterator<Item = u64>,
        code: &'static str,
        reason: String,
    ) {
        if let Some(audit) = self.audits.get_mut(&id) {
            let before = audit.refused.len();
            audit.refused.extend(sequences);
            if audit.refused.len() > before {
                self.say(Event::Refused { batch: id, code, reason });
            }
        }
    }

    /// Reads what was shown on the ledger, and sends for what is missing: leaves, or records, also those that were refused before.
    pub(super) async fn work(&mut self, id: BatchId) -> Result<(), Undone> {
        self.read_shown(id).await?;
        // Leaves are not kept: they are asked for again where a record is still to be compared with one.
        let untold = |audit: &Audit| {
            audit.leaves.is_none() && (audit.work.drawn.is_none() || audit.pending().next().is_some())
        };
        let Some(about) = self.about(id).filter(|_| self.errands.may_ask(id)) else { return Ok(()) };
        if let Some(audit) = self.audits.get(&id).filter(|audit| untold(audit)) {
            let batch = audit.batch.clone();
            self.errands.leaves(about, self.asker(), batch);
            return Ok(());
        }
        let (mut wanted, later) = self.wanted(id);
        wanted.extend(later);
        self.send_for(about, wanted);
        Ok(())
    }

    /// Sends for more records of a batch that were not refused, where there is room for some: what a round begins goes on until the next one.
    pub(super) fn go_on(&mut self, id: BatchId) {
        // In one go for several, not one by one.
        let many = self.errands.executing().saturating_mul(2) > self.options.executed_at_once;
        if let Some(about) = self.about(id).filter(|_| self.errands.may_ask(id) && !many) {
            let (wanted, _) = self.wanted(id);
            self.send_for(about, wanted);
        }
    }

    fn send_for(&mut self, about: About, mut wanted: Vec<u64>) {
        let room = self.options.executed_at_once.max(1).saturating_sub(self.errands.executing());
        wanted.truncate(room.min(RECORDS_ASKED_MAX));
        wanted.sort_unstable();
        if !wanted.is_empty() {
            self.errands.records(about, self.asker(), wanted);
        }
    }

    /// What can be asked for: receipts that nobody executes now and whose models are here; apart from them those that were
    /// refused, or whose models were not here or damaged.
    fn wanted(&mut self, id: BatchId) -> (Vec<u64>, Vec<u64>) {
        let Some(audit) = self.audits.get(&id) else { return Default::default() };
        let model = |sequence: u64| Some((sequence, audit.drawn.get(&sequence)?.leaf?.model_root));
        let free = audit.pending().filter(|sequence| !self.errands.executes(id, *sequence));
        let pending: Vec<(u64, ModelRoot)> = free.filter_map(model).collect();
        let roots: BTreeSet<ModelRoot> = pending.iter().map(|(_, root)| *root).collect();
        let missing: BTreeSet<ModelRoot> =
            roots.into_iter().filter(|root| !self.library.is_installed(*root)).collect();
        for root in &missing {
            if !audit.lacking.values().any(|known| known == root) {
                self.say(Event::ModelMissing { model: *root });
            }
        }
        let Some(audit) = self.audits.get_mut(&id) else { return Default::default() };
        let is_missing = |(_, root): &&(u64, ModelRoot)| missing.contains(root);
        audit.lacking.extend(pending.iter().filter(is_missing).copied());
        let here = pending.iter().filter(|pair| !is_missing(pair)).map(|(sequence, _)| *sequence);
        here.partition(|sequence| !audit.refused.contains(sequence) && !audit.lacking.contains_key(sequence))
    }

    /// Takes in what an errand brought, and writes it down. Says whether that went well.
    pub(super) fn take_in(&mut self, about: About, brought: Brought) -> bool {
        let id = about.id;
        if self.about(id) != Some(about) {
            // The batch is over, or a reorganisation has given it another beacon.
            return true;
        }
        let taken = match brought {
            Brought::Leaves(told) => self.take_leaves(id, told),
            Brought::Records(wanted, given) => self.take_records(id, wanted, given),
            Brought::Again(sequence, receipt, given) => self.take_again(id, sequence, receipt, given),
            Brought::Executed(sequence, record, executed) => {
                self.take_executed(id, sequence, *record, executed)
            }
        };
        if let Err(e) = &taken {
            self.failed(&format!("auditing {} in epoch {}", id.provider, id.epoch), e.code(), e);
        }
        taken.is_ok()
    }

    fn take_leaves(
        &mut self,
        id: BatchId,
        told: Result<Vec<Option<AuditLeaf>>, Undone>,
    ) -> Result<(), Undone> {
        match told {
            Ok(leaves) => self.told(id, leaves),
            Err(Undone::Ask(e)) => {
                let first = self.first_drawn(id);
                self.refuse(id, first, e.code(), e.to_string());
                Ok(())
            }
            Err(Undone::Told(e)) => {
                // What is wrong shows in the last leaf at the latest, whose totals must be the batch's.
                let last = self.audits.get(&id).map(|a| a.batch.first + u64::from(a.batch.count) - 1);
                self.refuse(id, last, e.code(), e.to_string());
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn take_records(
        &mut self,
        id: BatchId,
        wanted: Vec<u64>,
        given: Result<Vec<Vec<u8>>, Undone>,
    ) -> Result<(), Undone> {
        let records = match given {
            Ok(records) => records,
            Err(Undone::Ask(e)) => {
                self.refuse(id, wanted, e.code(), e.to_string());
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let first = wanted.first().copied();
        let mut given = 0;
        for (sequence, bytes) in wanted.iter().copied().zip(&records) {
            given += 1;
            match self.is_drawn_record(id, sequence, bytes) {
                Ok(Given::Record(record)) => self.execute(id, sequence, Shown::ByProvider(*record)),
                Ok(Given::Withheld(receipt)) => self.note_withheld(id, sequence, receipt)?,
                Err(reason) => self.refuse(id, [sequence], "record_not_its", reason),
            }
        }
        if given == 0 {
            self.refuse(id, first, "record_not_given", "the provider gave no record".into());
        }
        Ok(())
    }

    fn first_drawn(&self, id: BatchId) -> Option<u64> {
        let audit = self.audits.get(&id)?;
        let done = |sequence: &u64| audit.work.done.contains_key(sequence);
        audit.draw(id.provider, &self.ledger.parameters().rates).first_drawn(done)
    }

    /// Notes what was drawn of all leaves of a batch.
    fn told(&mut self, id: BatchId, leaves: Vec<Option<AuditLeaf>>) -> Result<(), Undone> {
        let rates = self.ledger.parameters().rates.clone();
        let Some(audit) = self.audits.get_mut(&id) else { return Ok(()) };
        let drawn = audit.draw(id.provider, &rates).of(&leaves);
        let told = audit.work.drawn.is_some();
        audit.work.drawn =
            Some(drawn.iter().map(|(sequence, drawn)| (*sequence, drawn.members.clone())).collect());
        audit.drawn.extend(drawn);
        audit.leaves = Some(leaves);
        // Whatever was refused before is asked for again.
        audit.refused.clear();
        self.journal.write(id, &audit.work)?;
        let receipts = audit.drawn.len();
        if !told {
            self.say(Event::Drawn { batch: id, receipts });
        }
        Ok(())
    }

    /// The record in these bytes, if it is that of the leaf, whole, and signed; or that its client withholds its consent, if that is shown.
    fn is_drawn_record(&mut self, id: BatchId, sequence: u64, bytes: &[u8]) -> Result<Given, String> {
        let given = match WithheldRecord::from_canonical_bytes(bytes) {
            Ok(withheld) => Err(withheld),
            Err(_) => Ok(Record::from_canonical_bytes(bytes).map_err(|e| e.to_string())?),
        };
        let signed = match &given {
            Ok(record) => record.receipt(),
            Err(withheld) => &withheld.receipt,
        };
        let domain = self.ledger.receipt_domain();
        let Some(audit) = self.audits.get_mut(&id) else { return Err("the batch is over".into()) };
        let leaf = audit.drawn.get(&sequence).and_then(|drawn| drawn.leaf);
        let hash = signed.receipt.signing_hash(&domain);
        if signed.domain != domain || leaf.is_none_or(|leaf| leaf.signing_hash != hash) {
            return Err(format!("what the provider gave for {sequence} is not the receipt that it posted"));
        }
        if leaf.is_some_and(|leaf| leaf.fee_micro_usd != signed.receipt.fee_micro_usd) {
            // The running totals were posted with another fee than was signed: the leaf has no opening.
            return Err(format!("receipt {sequence} has another fee than was posted for it"));
        }
        audit.receipts.insert(sequence, (signed.receipt.clone(), None));
        let record = match given {
            Ok(record) => record,
            Err(withheld) => {
                withheld.check().map_err(|e| format!("record {sequence}: {e}"))?;
                return Ok(Given::Withheld(withheld.receipt.receipt.id()));
            }
        };
        let broken = match &record {
            Record::Answer(r) => r.broken_bindings(),
            Record::Embedding(r) => r.broken_bindings(),
        };
        match broken.first() {
            None => Ok(Given::Record(Box::new(record))),
            Some(broken) => Err(format!("record {sequence}: {broken}")),
        }
    }

    /// Notes that a receipt is not executed, since its client lets nobody see the request. The duty to execute it is done with that: it has no
    /// digest, and the ledger lets nobody ask for one.
    pub(super) fn note_withheld(
        &mut self,
        id: BatchId,
        sequence: u64,
        receipt: ReceiptId,
    ) -> Result<(), Undone> {
        let Some(audit) = self.audits.get_mut(&id) else { return Ok(()) };
        let members = audit.drawn.get(&sequence).map(|drawn| drawn.members.clone()).unwrap_or_default();
        let done = Done { receipt, members, trace: None, verdict: Verdict::Withheld };
        audit.work.done.insert(sequence, done);
        audit.refused.remove(&sequence);
        audit.lacking.remove(&sequence);
        self.journal.write(id, &audit.work)?;
        self.say(Event::Withheld { batch: id, sequence });
        Ok(())
    }

    /// Has a record executed when it is its turn.
    pub(super) fn execute(&mut self, id: BatchId, sequence: u64, record: Shown) {
        let Some(about) = self.about(id) else { return };
        let span = span(id, record.receipt());
        let means = (Arc::clone(&self.library), self.metrics.clone());
        self.errands.execute(about, sequence, record, means, span);
    }

    fn take_executed(
        &mut self,
        id: BatchId,
        sequence: u64,
        mut record: Shown,
        executed: Result<Executed, ExecutionError>,
    ) -> Result<(), Undone> {
        let Some(audit) = self.audits.get_mut(&id) else { return Ok(()) };
        let receipt = record.receipt().id();
        let mut members = audit.drawn.get(&sequence).map(|drawn| drawn.members.clone()).unwrap_or_default();
        // What comes after a commitment is no part of it.
        members.retain(|member| !audit.work.commitments.contains_key(member));
        let done = match executed {
            Ok(Executed { trace, verdict, digests }) => {
                if let (Shown::OnLedger(record), Some(digests)) = (&mut record, digests) {
                    record.digests = digests;
                }
                Done { receipt, members, trace: Some(trace), verdict }
            }
            Err(ExecutionError::Not(e)) => {
                let what = format!("executing receipt {sequence} of {}", id.provider);
                self.failed(&what, "answer_not_executable", &e);
                Done { receipt, members, trace: None, verdict: Verdict::NotExecutable }
            }
            Err(ExecutionError::Model(e)) => {
                // What is installed in its place may be mended, and is looked at again.
                let root = record.receipt().model_root;
                let known = audit.lacking.values().any(|known| *known == root);
                audit.lacking.insert(sequence, root);
                match e {
                    _ if known => {}
                    LibraryError::Missing { root } => self.say(Event::ModelMissing { model: root }),
                    other => self.failed("loading a model", other.code(), &other),
                }
                return Ok(());
            }
        };
        self.note(id, sequence, done, record)
    }

    /// Writes down what an execution came to.
    fn note(&mut self, id: BatchId, sequence: u64, done: Done, record: Shown) -> Result<(), Undone> {
        if done.verdict == Verdict::Wrong
            && let Shown::ByProvider(Record::Answer(record)) | Shown::OnLedger(record) = &record
        {
            self.journal.keep(id, sequence, record)?;
        }
        let Some(audit) = self.audits.get_mut(&id) else { return Ok(()) };
        let stands = done.verdict == Verdict::Stands;
        self.metrics.executed(done.verdict);
        audit.work.done.insert(sequence, done);
        audit.refused.remove(&sequence);
        audit.lacking.remove(&sequence);
        self.journal.write(id, &audit.work)?;
        self.say(Event::Executed { batch: id, sequence, stands });
        Ok(())
    }

    /// Asks for the record of a receipt that was executed once more, to keep it for a dispute.
    pub(super) fn fetch_again(&mut self, id: BatchId, sequence: u64, receipt: ReceiptId) {
        if let Some(about) = self.about(id) {
            self.errands.again(about, self.asker(), sequence, receipt);
        }
    }

    /// Asks for a batch's leaves once more.
    pub(super) fn tell_again(&mut self, id: BatchId) {
        let batch = self.audits.get(&id).map(|audit| audit.batch.clone());
        if let (Some(about), Some(batch)) = (self.about(id).filter(|_| self.errands.may_ask(id)), batch) {
            self.errands.leaves(about, self.asker(), batch);
        }
    }

    fn take_again(
        &mut self,
        id: BatchId,
        sequence: u64,
        receipt: ReceiptId,
        given: Result<Vec<Vec<u8>>, Undone>,
    ) -> Result<(), Undone> {
        let record = given?.first().and_then(|bytes| Record::from_canonical_bytes(bytes).ok());
        match record {
            Some(Record::Answer(record)) if record.receipt.receipt.id() == receipt => {
                Ok(self.journal.keep(id, sequence, &record)?)
            }
            // No dispute can be about it, and so no doubt.
            Some(Record::Embedding(record)) if record.receipt.receipt.id() == receipt => {
                if let Some(audit) = self.audits.get_mut(&id) {
                    audit.undoubted.insert(sequence);
                }
                Ok(())
            }
            _ => Err(Undone::Lost(B256::from(*receipt.as_bytes()))),
        }
    }
}
