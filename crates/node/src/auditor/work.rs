//! Fetching what was drawn from its provider, and executing it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::{Address, B256};
use alloy_signer::SignerSync as _;
use assay_api::audits::{AuditAnswer, AuditError, AuditLeaf, RECORDS_ASKED_MAX, Wanted};
use assay_api::traces::{self, Span, SpanKind};
use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical as _;
use assay_core::consent::WithheldRecord;
use assay_core::embedding::Record;
use assay_core::id::{Hash, ModelRoot, ReceiptId, SignatureBytes};
use assay_core::merkle;
use assay_core::receipt::Receipt;
use assay_ledger::contracts::Directory::Rates;
use assay_ledger::contracts::{Epochs, Objections, node_address};
use assay_ledger::docket::DemandKind;

use super::told::{Draw, Drawn, check};
use super::{Auditor, BatchId, Done, Event, Refused, Undone, Work};
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
    async fn ask(&self, id: BatchId, wanted: Wanted) -> Result<AuditAnswer, Undone> {
        let endpoint = self.ledger.node(id.provider).await?.map(|node| node.endpoint).unwrap_or_default();
        let provider = node_address(id.provider);
        let auditor = node_address(self.auditor);
        let key = self.sender.key().clone();
        let sign = move |hash: &Hash| {
            let signed = key.sign_hash_sync(&B256::from(*hash.as_bytes())).ok()?;
            Some(SignatureBytes::from_bytes(signed.as_bytes()))
        };
        if endpoint.is_empty() {
            let reason = "the ledger names no endpoint".to_owned();
            return Err(Undone::Ask(AuditError::Unreachable { endpoint: id.provider.to_string(), reason }));
        }
        Ok(self.http.ask(&endpoint, provider, auditor, id.epoch, wanted, &sign).await?)
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

    /// Finds out what was drawn, and executes some of it.
    pub(super) async fn work(&mut self, id: BatchId) -> Result<(), Undone> {
        self.read_shown(id).await?;
        // Leaves are not kept: they are asked for again where a record is still to be compared with one.
        let untold = |audit: &Audit| {
            audit.leaves.is_none() && (audit.work.drawn.is_none() || audit.pending().next().is_some())
        };
        if self.audits.get(&id).is_some_and(untold) {
            match self.leaves(id).await {
                Ok(()) => {}
                Err(Undone::Ask(e)) => {
                    let first = self.first_drawn(id);
                    self.refuse(id, first, e.code(), e.to_string());
                }
                Err(Undone::Told(e)) => {
                    // What is wrong shows in the last leaf at the latest, whose totals must be the batch's.
                    let last = self.audits.get(&id).map(|a| a.batch.first + u64::from(a.batch.count) - 1);
                    self.refuse(id, last, e.code(), e.to_string());
                }
                Err(e) => return Err(e),
            }
        }
        let mut wanted = self.executable(id).await;
        wanted.truncate(self.options.executed_at_once.clamp(1, RECORDS_ASKED_MAX));
        wanted.sort_unstable();
        if wanted.is_empty() {
            return Ok(());
        }
        let records = match self.ask(id, Wanted::Records(wanted.clone())).await {
            Ok(AuditAnswer::Records(records)) => records,
            Ok(AuditAnswer::Leaves(_)) => vec![],
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
                Ok(Given::Record(record)) => {
                    self.execute(id, sequence, Shown::ByProvider(*record)).await?;
                }
                Ok(Given::Withheld(receipt)) => self.note_withheld(id, sequence, receipt)?,
                Err(reason) => self.refuse(id, [sequence], "record_not_its", reason),
            }
        }
        if given == 0 {
            self.refuse(id, first, "record_not_given", "the provider gave no record".into());
        }
        Ok(())
    }

    /// What is to be asked for next: receipts whose models are here, those that were refused after the others.
    async fn executable(&mut self, id: BatchId) -> Vec<u64> {
        let Some(audit) = self.audits.get(&id) else { return vec![] };
        let model = |sequence: u64| Some((sequence, audit.drawn.get(&sequence)?.leaf?.model_root));
        let pending: Vec<(u64, ModelRoot)> = audit.pending().filter_map(model).collect();
        let mut lacking = BTreeMap::new();
        for root in pending.iter().map(|(_, root)| *root).collect::<BTreeSet<_>>() {
            let library = Arc::clone(&self.library);
            let found = tokio::task::spawn_blocking(move || library.model(root).map(drop)).await;
            if let Err(e) = found.expect("hashing a model does not panic") {
                lacking.insert(root, e);
            }
        }
        for (root, e) in &lacking {
            if audit.lacking.values().any(|known| known == root) {
                continue;
            }
            match e {
                LibraryError::Missing { root } => self.say(Event::ModelMissing { model: *root }),
                other => self.failed("loading a model", other.code(), other),
            }
        }
        let Some(audit) = self.audits.get_mut(&id) else { return vec![] };
        let is_lacking = |(_, root): &&(u64, ModelRoot)| lacking.contains_key(root);
        audit.lacking = pending.iter().filter(is_lacking).copied().collect();
        let here = pending.iter().filter(|pair| !is_lacking(pair)).map(|(sequence, _)| *sequence);
        let (refused, mut wanted): (Vec<u64>, Vec<u64>) =
            here.partition(|sequence| audit.refused.contains(sequence));
        wanted.extend(refused);
        wanted
    }

    fn first_drawn(&self, id: BatchId) -> Option<u64> {
        let audit = self.audits.get(&id)?;
        let done = |sequence: &u64| audit.work.done.contains_key(sequence);
        audit.draw(id.provider, &self.ledger.parameters().rates).first_drawn(done)
    }

    /// Has the provider tell all leaves of its batch.
    async fn leaves(&mut self, id: BatchId) -> Result<(), Undone> {
        let Some(audit) = self.audits.get(&id) else { return Ok(()) };
        let batch = audit.batch.clone();
        let mut leaves: Vec<Option<AuditLeaf>> = Vec::new();
        while leaves.len() < batch.count as usize {
            let from = batch.first.saturating_add(leaves.len() as u64);
            match self.ask(id, Wanted::Leaves { from }).await? {
                AuditAnswer::Leaves(more) if !more.is_empty() => leaves.extend(more),
                _ => break,
            }
        }
        check(&batch, &leaves)?;
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

    /// Executes a record, and notes what came of it.
    pub(super) async fn execute(&mut self, id: BatchId, sequence: u64, record: Shown) -> Result<(), Undone> {
        let (library, receipt) = (Arc::clone(&self.library), record.receipt().id());
        let metrics = self.metrics.clone();
        let span = span(id, record.receipt());
        let worked = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let executed = library.execute(&record);
            metrics.took(began.elapsed());
            (executed, record)
        });
        let (executed, mut record) = worked.await.expect("executing a record does not panic");
        let drawn = self.audits.get(&id).and_then(|audit| audit.drawn.get(&sequence));
        let members = drawn.map(|drawn| drawn.members.clone()).unwrap_or_default();
        let done = match executed {
            Ok(Executed { trace, verdict, digests }) => {
                span.set("assay.stands", verdict == Verdict::Stands);
                if let (Shown::OnLedger(record), Some(digests)) = (&mut record, digests) {
                    record.digests = digests;
                }
                Done { receipt, members, trace: Some(trace), verdict }
            }
            Err(ExecutionError::Not(e)) => {
                span.fail("answer_not_executable");
                let what = format!("executing receipt {sequence} of {}", id.provider);
                self.failed(&what, "answer_not_executable", &e);
                Done { receipt, members, trace: None, verdict: Verdict::NotExecutable }
            }
            Err(ExecutionError::Model(e)) => {
                span.fail(e.code());
                return Err(e.into());
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

    /// Asks for the record of a drawn receipt once more, and keeps it for a dispute.
    pub(super) async fn fetch_again(
        &mut self,
        id: BatchId,
        sequence: u64,
    ) -> Result<Option<AnswerRecord>, Undone> {
        let AuditAnswer::Records(records) = self.ask(id, Wanted::Records(vec![sequence])).await? else {
            return Ok(None);
        };
        let Some(Ok(Record::Answer(record))) =
            records.first().map(|bytes| Record::from_canonical_bytes(bytes))
        else {
            return Ok(None);
        };
        self.journal.keep(id, sequence, &record)?;
        Ok(Some(*record))
    }
}
