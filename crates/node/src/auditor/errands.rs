//! What takes its time: asking a provider, and executing a receipt again. Each is a task of its own beside the rounds, which wait for none of them.
//!
//! Invariant: an errand changes nothing; what it brings is taken in, written down and only then counted, one receipt at a time. One that was cut off is run
//! again, and comes to the same. What was sent out under one beacon is of no use under another, and is dropped. Receipts are executed one at a time, in
//! the order in which they came, and none is begun while a move of a dispute is computed, which has an end. They are executed at the lowest priority; what has
//! a time by which it must be sent is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::{Address, B256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_api::audits::{AuditAnswer, AuditClient, AuditError, AuditLeaf, Wanted};
use assay_api::traces::Span;
use assay_core::id::{Hash, ReceiptId, SignatureBytes};
use assay_ledger::contracts::{Epochs, node_address};
use assay_ledger::ledger::Ledger;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use super::metrics::Metrics;
use super::{BatchId, Undone, check};
use crate::execution::{Executed, ExecutionError, Library, Shown, Verdict};

/// The lowest priority there is.
#[cfg(unix)]
const NICEST: i32 = 19;

/// Gives this thread, and those that it begins, the lowest priority: what it executes takes what paid work leaves.
/// Where threads have none of their own (systems other than Linux), it is the process's.
pub fn go_last() {
    #[cfg(unix)]
    if let Err(e) = rustix::process::nice(NICEST) {
        tracing::warn!(reason = %e, "what audits execute keeps the priority of the process");
    }
}

/// Providers that are asked at the same time: one that lets its auditor wait keeps none of these others waiting.
const ASKED_AT_ONCE: usize = 64;

/// What an errand was about: a batch, under a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) id: BatchId,
    pub(super) beacon: B256,
}

/// What an errand brought.
pub(super) enum Brought {
    /// All leaves of a batch, checked.
    Leaves(Result<Vec<Option<AuditLeaf>>, Undone>),
    /// Records, for these sequence numbers.
    Records(Vec<u64>, Result<Vec<Vec<u8>>, Undone>),
    /// The record of a receipt that was executed before, for a dispute.
    Again(u64, ReceiptId, Result<Vec<Vec<u8>>, Undone>),
    /// What a record came to.
    Executed(u64, Box<Shown>, Result<Executed, ExecutionError>),
}

/// Asks providers in an auditor's name.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) ledger: Ledger,
    pub(super) http: AuditClient,
    pub(super) auditor: Address,
    pub(super) key: PrivateKeySigner,
}

impl Asker {
    async fn ask(&self, id: BatchId, wanted: Wanted) -> Result<AuditAnswer, Undone> {
        let endpoint = self.ledger.node(id.provider).await?.map(|node| node.endpoint).unwrap_or_default();
        let provider = node_address(id.provider);
        let auditor = node_address(self.auditor);
        let sign = |hash: &Hash| {
            let signed = self.key.sign_hash_sync(&B256::from(*hash.as_bytes())).ok()?;
            Some(SignatureBytes::from_bytes(signed.as_bytes()))
        };
        if endpoint.is_empty() {
            let reason = "the ledger names no endpoint".to_owned();
            return Err(Undone::Ask(AuditError::Unreachable { endpoint: id.provider.to_string(), reason }));
        }
        Ok(self.http.ask(&endpoint, provider, auditor, id.epoch, wanted, &sign).await?)
    }

    async fn records(&self, id: BatchId, wanted: Vec<u64>) -> Result<Vec<Vec<u8>>, Undone> {
        Ok(match self.ask(id, Wanted::Records(wanted)).await? {
            AuditAnswer::Records(records) => records,
            AuditAnswer::Leaves(_) => vec![],
        })
    }

    async fn leaves(&self, id: BatchId, batch: &Epochs::Batch) -> Result<Vec<Option<AuditLeaf>>, Undone> {
        let mut leaves: Vec<Option<AuditLeaf>> = Vec::new();
        while leaves.len() < batch.count as usize {
            let from = batch.first.saturating_add(leaves.len() as u64);
            match self.ask(id, Wanted::Leaves { from }).await? {
                AuditAnswer::Leaves(more) if !more.is_empty() => leaves.extend(more),
                _ => break,
            }
        }
        check(batch, &leaves)?;
        Ok(leaves)
    }
}

/// The errands of an auditor. Dropping them ends them.
pub(super) struct Errands {
    under_way: JoinSet<(About, Brought)>,
    /// Batches whose provider is being asked.
    asked: BTreeSet<BatchId>,
    /// What is asked for again.
    again: BTreeSet<(BatchId, u64)>,
    /// Receipts that wait to be executed, or are, by batch.
    executing: BTreeMap<BatchId, BTreeSet<u64>>,
    /// One receipt at a time.
    turn: Arc<Semaphore>,
    /// How many moves are computed.
    moves: watch::Sender<usize>,
}

/// While it lives, no receipt is begun.
pub(super) struct Move(watch::Sender<usize>);

impl Drop for Move {
    fn drop(&mut self) {
        self.0.send_modify(|moves| *moves = moves.saturating_sub(1));
    }
}

impl Errands {
    pub(super) fn new() -> Errands {
        Errands {
            under_way: JoinSet::new(),
            asked: BTreeSet::new(),
            again: BTreeSet::new(),
            executing: BTreeMap::new(),
            turn: Arc::new(Semaphore::new(1)),
            moves: watch::Sender::new(0),
        }
    }

    /// Keeps executions back while a move is computed.
    pub(super) fn before_all(&self) -> Move {
        self.moves.send_modify(|moves| *moves = moves.saturating_add(1));
        Move(self.moves.clone())
    }

    /// Whether a batch's provider can be asked for something now.
    pub(super) fn may_ask(&self, id: BatchId) -> bool {
        self.asked.len() < ASKED_AT_ONCE && !self.asked.contains(&id)
    }

    /// Receipts that wait to be executed, or are.
    pub(super) fn executing(&self) -> usize {
        self.executing.values().map(BTreeSet::len).sum()
    }

    /// Whether a receipt is one of them.
    pub(super) fn executes(&self, id: BatchId, sequence: u64) -> bool {
        self.executing.get(&id).is_some_and(|sequences| sequences.contains(&sequence))
    }

    /// Has a provider tell all leaves of its batch.
    pub(super) fn leaves(&mut self, about: About, asker: Asker, batch: Epochs::Batch) {
        self.asked.insert(about.id);
        self.under_way.spawn(async move { (about, Brought::Leaves(asker.leaves(about.id, &batch).await)) });
    }

    /// Asks for records.
    pub(super) fn records(&mut self, about: About, asker: Asker, wanted: Vec<u64>) {
        self.asked.insert(about.id);
        self.under_way.spawn(async move {
            let given = asker.records(about.id, wanted.clone()).await;
            (about, Brought::Records(wanted, given))
        });
    }

    /// Asks for one record that was executed before, if that is not under way.
    pub(super) fn again(&mut self, about: About, asker: Asker, sequence: u64, receipt: ReceiptId) {
        if self.again.insert((about.id, sequence)) {
            self.under_way.spawn(async move {
                let given = asker.records(about.id, vec![sequence]).await;
                (about, Brought::Again(sequence, receipt, given))
            });
        }
    }

    /// Executes a record when it is its turn.
    pub(super) fn execute(
        &mut self,
        about: About,
        sequence: u64,
        record: Shown,
        (library, metrics): (Arc<Library>, Metrics),
        span: Span,
    ) {
        if !self.executing.entry(about.id).or_default().insert(sequence) {
            return;
        }
        let (turn, mut moves) = (Arc::clone(&self.turn), self.moves.subscribe());
        self.under_way.spawn(async move {
            let turn = turn.acquire_owned().await.expect("nobody closes it");
            // Who sends lives as long as the errands do.
            drop(moves.wait_for(|moves| *moves == 0).await);
            let (tell, told) = oneshot::channel();
            // A thread of its own: one that has gone last cannot come back.
            let worker = std::thread::Builder::new().name("assay-audit".to_owned()).spawn(move || {
                go_last();
                let _turn = turn;
                let began = Instant::now();
                let executed = library.execute(&record);
                metrics.took(began.elapsed());
                // Nobody waits any more when the errands were dropped.
                drop(tell.send((executed, record)));
            });
            worker.expect("the system has a thread");
            let (executed, record) = told.await.expect("executing a record does not panic");
            match &executed {
                Ok(Executed { verdict, .. }) => span.set("assay.stands", *verdict == Verdict::Stands),
                Err(ExecutionError::Not(_)) => span.fail("answer_not_executable"),
                Err(ExecutionError::Model(e)) => span.fail(e.code()),
            }
            drop(span);
            (about, Brought::Executed(sequence, Box::new(record), executed))
        });
    }

    /// What the next errand brings; nothing if none is under way.
    pub(super) async fn next(&mut self) -> Option<(About, Brought)> {
        let ended = self.under_way.join_next().await?;
        Some(self.ended(ended.expect("an errand neither panics nor is ended before its auditor is")))
    }

    /// What an errand has brought by now.
    pub(super) fn brought(&mut self) -> Option<(About, Brought)> {
        let ended = self.under_way.try_join_next()?;
        Some(self.ended(ended.expect("an errand neither panics nor is ended before its auditor is")))
    }

    fn ended(&mut self, (about, brought): (About, Brought)) -> (About, Brought) {
        match &brought {
            Brought::Leaves(_) | Brought::Records(..) => drop(self.asked.remove(&about.id)),
            Brought::Again(sequence, ..) => drop(self.again.remove(&(about.id, *sequence))),
            Brought::Executed(sequence, ..) => {
                if let Some(sequences) = self.executing.get_mut(&about.id) {
                    sequences.remove(sequence);
                    if sequences.is_empty() {
                        self.executing.remove(&about.id);
                    }
                }
            }
        }
        (about, brought)
    }
}
