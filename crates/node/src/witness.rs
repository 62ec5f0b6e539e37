//! A witness: whoever was given receipts and has a key on the ledger, as a gateway that pays. It compares what it was given with what was posted, and
//! shows the ledger what a provider left out (`docs/daemons.md`).
//!
//! [`due`] decides, without a clock, a chain or a disk; a round reads, decides, does, and tells. Invariant: a round may be cut off after any step and
//! repeated, by this process or the next one: what is proved is in the book before it is said, a transaction is on disk before it is sent, and everything else is read from the ledger. It
//! accuses nobody of what does not stand under a root on the ledger: what a provider says is checked against that, and its silence is asked about there.
//!
//! Work on the disk and waiting for providers and the chain happen on a thread of its own ([`Witness::start`]): whoever gives receipts waits for nothing.

mod book;
mod compare;
mod decide;
mod event;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256};
use alloy_sol_types::SolCall;
use assay_api::leaves::LeavesClient;
use assay_core::receipt::SignedReceipt;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Epochs, Objections, Registry, Vault};
use assay_ledger::docket::{DemandId, DemandKind, Docket};
use assay_ledger::follow::FollowError;
use assay_ledger::ledger::{Ledger, Phase};
use assay_ledger::sender::{Mined, SendError, Sender};
use tokio::sync::mpsc;

pub use self::book::{Book, BookError, Omission, RECEIPTS_MAX, Taken};
pub use self::decide::{BatchView, DEMANDS_MAX, Duty, PATIENCE_PART, VAIN_MAX, View, due};
pub use self::event::{Event, Listener};
use self::metrics::Metrics;
use crate::auditor::BatchId;
use crate::sending::{once, send_code};

/// Receipts of a batch that are compared. Of more, so many are chosen, which their provider does not know.
pub const COMPARED_MAX: usize = 4096;
/// Receipts that may wait to be written into the book.
pub const WAITING_MAX: usize = 4096;
/// Receipts of one write.
const WRITE_MAX: usize = 256;
/// Epochs for which a batch is looked at, and a receipt kept that was never posted.
const EPOCHS_BACK: u64 = 64;
/// For how many epochs it is remembered that a demand was in vain.
const VAIN_EPOCHS: u64 = 256;
/// How the purposes of its transactions begin, by which it knows its own.
const PURPOSE: &str = "objection: ";

/// Where a provider is reached, if whoever asks it for answers knows.
pub type Endpoints = Arc<dyn Fn(Address) -> Option<String> + Send + Sync>;

/// Why there is no witness, or a round ended early. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The chain could not be read.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its log could not be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The book cannot be used.
    #[error(transparent)]
    Book(#[from] BookError),
    /// A transaction of an earlier round waits.
    #[error(transparent)]
    Waiting(SendError),
}

impl WitnessError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            WitnessError::Client(_) => "ledger_unread",
            WitnessError::Follow(_) => "ledger_unfollowed",
            WitnessError::Book(_) => "book_io",
            WitnessError::Waiting(_) => "transaction_waiting",
        }
    }
}

/// Why a duty was not done.
#[derive(Debug, thiserror::Error)]
enum Undone {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Book(#[from] BookError),
}

impl Undone {
    fn code(&self) -> &'static str {
        match self {
            Undone::Client(_) => "ledger_unread",
            Undone::Send(e) => send_code(e),
            Undone::Book(_) => "book_io",
        }
    }
}

/// A batch that is compared.
#[derive(Debug)]
struct Held {
    batch: Epochs::Batch,
    /// What is left of the receipts that are compared, in a secret order.
    left: Vec<u64>,
    /// One that the provider did not show when it was asked last.
    refused: Option<u64>,
    /// How often receipts had been taken when these were chosen.
    taken: u64,
}

/// A witness.
pub struct Witness {
    ledger: Ledger,
    sender: Arc<Sender>,
    book: Arc<Book>,
    docket: Docket,
    http: LeavesClient,
    endpoints: Endpoints,
    listener: Listener,
    metrics: Metrics,
    held: BTreeMap<BatchId, Held>,
    /// Batches of which nothing is left to do.
    over: BTreeSet<BatchId>,
    /// How often receipts were taken.
    taken: Arc<AtomicU64>,
    /// The epoch in which old receipts were let go of last.
    forgot_in: u64,
    /// Providers that could not be asked in this round, and why.
    unreached: BTreeMap<Address, (&'static str, String)>,
}

impl Witness {
    /// The witness with the sender's key, whose book is in `folder`. Goes on where an earlier start ended. Needs a TLS provider to be installed.
    pub async fn open(
        ledger: Ledger,
        sender: Arc<Sender>,
        folder: PathBuf,
        listener: Listener,
    ) -> Result<Witness, WitnessError> {
        let account = sender.account();
        let genesis = ledger.client().genesis().await?;
        let name = format!("{genesis:x}-{:x}-{account:x}.redb", ledger.parts().directory);
        let book = Arc::new(Book::open(&folder.join(name), ledger.receipt_domain())?);
        let docket = Docket::open(ledger.clone(), account, &folder).await?;
        let metrics = Metrics::default();
        let listener = metrics.counting(listener);
        Ok(Witness {
            ledger,
            sender,
            book,
            docket,
            http: LeavesClient::new(),
            endpoints: Arc::new(|_| None),
            listener,
            metrics,
            held: BTreeMap::new(),
            over: BTreeSet::new(),
            taken: Arc::default(),
            forgot_in: 0,
            unreached: BTreeMap::new(),
        })
    }

    /// Asks providers where they are reached for answers, and those of whom that is not known where the ledger says.
    pub fn asking(mut self, endpoints: Endpoints) -> Witness {
        self.endpoints = endpoints;
        self
    }

    /// What it counts, for whoever shows it.
    pub fn metrics(&self) -> prometheus_client::registry::Registry {
        self.metrics.registry()
    }

    fn taker(&self) -> Taker {
        Taker {
            book: Arc::clone(&self.book),
            listener: Arc::clone(&self.listener),
            metrics: self.metrics.clone(),
            taken: Arc::clone(&self.taken),
        }
    }

    /// Writes receipts into the book. They are durable when this returns; what cannot be kept is counted.
    pub fn take(&self, receipts: &[SignedReceipt]) {
        self.taker().take(receipts);
    }

    /// Takes what is `given` and drives rounds, on a thread of its own, `every` so often, until `stop` resolves; what has been given by then is written.
    pub fn start(
        mut self,
        mut given: mpsc::Receiver<SignedReceipt>,
        every: Duration,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("assay-witness".into()).spawn(move || {
            runtime.block_on(async {
                let taker = self.taker();
                let taking = async {
                    let mut some = Vec::with_capacity(WRITE_MAX);
                    while given.recv_many(&mut some, WRITE_MAX).await > 0 {
                        taker.take(&some);
                        some.clear();
                    }
                    std::future::pending().await
                };
                let rounds = async {
                    loop {
                        if let Err(e) = self.round().await {
                            self.failed("a round of comparing", e.code(), &e);
                        }
                        tokio::time::sleep(every).await;
                    }
                };
                tokio::select! {
                    () = taking => {}
                    () = rounds => {}
                    () = stop => {}
                }
                given.close();
                let mut rest = Vec::new();
                while let Ok(receipt) = given.try_recv() {
                    rest.push(receipt);
                }
                rest.chunks(WRITE_MAX).for_each(|some| taker.take(some));
            });
        })
    }

    /// One round: everything that is due, once. Says how many duties were done.
    pub async fn round(&mut self) -> Result<usize, WitnessError> {
        self.some(usize::MAX).await
    }

    /// At most `most` of the duties that are due.
    pub async fn some(&mut self, most: usize) -> Result<usize, WitnessError> {
        let own = self.sender.waiting().await.into_iter().filter(|purpose| purpose.starts_with(PURPOSE));
        for purpose in own.collect::<Vec<_>>() {
            match self.sender.finish(&purpose).await {
                Some(Err(error)) if error.may_retry() => return Err(WitnessError::Waiting(error)),
                // What failed for good is asked of the ledger like everything else.
                _ => {}
            }
        }
        self.docket.update().await?;
        self.unreached.clear();
        let view = self.read().await?;
        let mut done = 0;
        for duty in due(&view).into_iter().take(most) {
            match self.perform(&duty).await {
                Ok(event) => {
                    done += usize::from(event.is_some());
                    event.into_iter().for_each(|event| self.say(event));
                }
                Err(e) => self.failed(&name(&duty), e.code(), &e),
            }
        }
        self.tidy(&view)?;
        let coins = self.ledger.client().coin(self.sender.account(), BlockId::latest()).await?;
        self.metrics.read(&view, self.book.count()?, coins);
        Ok(done)
    }

    fn say(&self, event: Event) {
        (self.listener)(event);
    }

    fn failed(&self, what: &str, code: &'static str, reason: &dyn std::fmt::Display) {
        self.say(Event::Failed { what: what.to_owned(), code, reason: reason.to_string() });
    }

    /// Reads everything, at one block.
    async fn read(&mut self) -> Result<View, WitnessError> {
        let header = self.ledger.client().latest().await?;
        let (now, block) = (header.timestamp, BlockId::from(header.hash));
        let at = self.ledger.parts().at.clone();
        let epoch = self.ledger.view(block, at.epochs, &Epochs::currentCall {}).await?;
        self.docket.forget_batches(epoch.saturating_sub(EPOCHS_BACK));
        if self.forgot_in != epoch {
            self.forgot_in = epoch;
            self.book.forget_before(epoch.saturating_sub(EPOCHS_BACK))?;
            self.book.forget_vain_before(epoch.saturating_sub(VAIN_EPOCHS))?;
            let is_old = |of: u64| of.saturating_add(EPOCHS_BACK) < epoch;
            self.over.retain(|id| !is_old(id.epoch));
            self.held.retain(|id, _| !is_old(id.epoch));
            let demands = self.docket.entries().demands.keys();
            for id in demands.filter(|id| is_old(id.epoch)).copied().collect::<Vec<_>>() {
                self.docket.forget_demand(&id);
            }
        }
        let account = self.sender.account();
        let vault = self.ledger.view(block, at.vault, &Vault::balanceOfCall { account }).await?;
        let mut view = View {
            now,
            vault: u128::try_from(vault).unwrap_or(u128::MAX),
            bond: self.ledger.parameters().stakes.demandBond.into(),
            batches: vec![],
            demands: self.demands(block).await?,
            conflicts: vec![],
        };
        for provider in self.book.conflicts()?.into_keys() {
            if !self.is_struck(block, provider).await? {
                view.conflicts.push(provider);
            }
        }
        for provider in self.book.providers()? {
            let named = self.docket.entries().batches.iter().filter(|(_, of)| *of == provider);
            let ids = named.map(|(epoch, _)| BatchId { epoch: *epoch, provider });
            let ids: Vec<BatchId> = ids.filter(|id| !self.over.contains(id)).collect();
            if ids.is_empty() {
                continue;
            }
            let struck = self.is_struck(block, provider).await?;
            for id in ids {
                view.batches.extend(self.batch(block, now, id, struck).await?);
            }
        }
        Ok(view)
    }

    async fn is_struck(&self, block: BlockId, node: Address) -> Result<bool, ClientError> {
        self.ledger.view(block, self.ledger.parts().at.registry, &Registry::isStruckCall { node }).await
    }

    /// A batch; nothing if there is none, as where a reorganisation took it back.
    async fn batch(
        &mut self,
        block: BlockId,
        now: u64,
        id: BatchId,
        struck: bool,
    ) -> Result<Option<BatchView>, WitnessError> {
        let (at, BatchId { epoch, provider }) = (self.ledger.parts().at.epochs, id);
        let batch = self.ledger.view(block, at, &Epochs::batchOfCall { provider, epoch }).await?;
        if batch.state == 0 {
            self.held.remove(&id);
            return Ok(None);
        }
        let demanded = self.read_shown(block, id, &batch).await?;
        let beacon = self.ledger.view(block, at, &Epochs::beaconOfCall { epoch }).await?;
        let phase = self.ledger.phase_at(epoch, now, beacon.number, beacon.fixedAt);
        let taken = self.taken.load(Relaxed);
        // Receipts may come into the book a little after their batch was posted.
        let late = !matches!(phase, Phase::Revealing | Phase::Objecting | Phase::Final);
        let is_good = |held: &Held| held.batch.root == batch.root && (held.taken == taken || !late);
        if !self.held.get(&id).is_some_and(is_good) {
            let numbers = batch.first..batch.first.saturating_add(batch.count.into());
            let left = self.book.left(provider, numbers, batch.root, COMPARED_MAX)?;
            let before = self.held.remove(&id).filter(|held| held.batch.root == batch.root);
            let refused = before.and_then(|held| held.refused).filter(|n| left.contains(n));
            self.held.insert(id, Held { batch: batch.clone(), left, refused, taken });
        }
        let Some(held) = self.held.get(&id) else { return Ok(None) };
        let stands = |omission: &Omission| omission.epoch == epoch && omission.root == batch.root;
        let found = self.book.found(provider)?;
        let vain = self.book.vain(provider)?;
        let times = u32::try_from(vain.len()).unwrap_or(u32::MAX);
        let commit = u64::from(self.ledger.parameters().times.commitSeconds);
        Ok(Some(BatchView {
            id,
            phase,
            fixed_at: beacon.fixedAt,
            commit_until: beacon.fixedAt.saturating_add(commit),
            struck,
            left: held.left.len(),
            refused: held.refused,
            found: found.iter().find(|(_, omission)| stands(omission)).map(|(sequence, _)| *sequence),
            demanded,
            vain: vain.last().map(|epoch| (times, *epoch)),
        }))
    }

    /// Demands of this witness that are open, with the time at which the answer is due.
    async fn demands(&self, block: BlockId) -> Result<Vec<(DemandId, u64)>, WitnessError> {
        let mut open = Vec::new();
        let of_leaves = |id: &&DemandId| id.kind == DemandKind::Leaf;
        for id in self.docket.entries().demands.keys().filter(of_leaves) {
            let demand = self.demand_of(block, id).await?;
            if demand.from == self.sender.account() && demand.until.to::<u64>() != 0 {
                open.push((*id, demand.until.to()));
            }
        }
        Ok(open)
    }

    async fn demand_of(&self, block: BlockId, id: &DemandId) -> Result<Objections::Demand, ClientError> {
        let DemandId { provider, epoch, index, kind } = *id;
        let call = Objections::demandKeyCall { provider, epoch, index, kind: kind.number() };
        let at = self.ledger.parts().at.objections;
        let key: B256 = self.ledger.view(block, at, &call).await?;
        self.ledger.view(block, at, &Objections::demandOfCall { key }).await
    }

    async fn object<C: SolCall>(&self, what: &str, call: &C) -> Result<Mined, SendError> {
        self.sender.send(&format!("{PURPOSE}{what}"), self.ledger.parts().at.objections, call).await
    }

    async fn perform(&mut self, duty: &Duty) -> Result<Option<Event>, Undone> {
        match duty {
            Duty::ProveLeftOut(id, sequence) => self.prove_left_out(*id, *sequence).await,
            Duty::ProveConflict(provider) => {
                let Some((x, y)) = self.book.conflicts()?.remove(provider) else { return Ok(None) };
                let call = Objections::proveConflictCall {
                    x: (&x.receipt).into(),
                    xSignature: x.signature.as_bytes().to_vec().into(),
                    y: (&y.receipt).into(),
                    ySignature: y.signature.as_bytes().to_vec().into(),
                };
                self.object(&format!("two receipts of {provider} exclude each other"), &call).await?;
                Ok(Some(Event::ProvedConflict { provider: *provider }))
            }
            Duty::ProveSilence(id) => {
                let DemandId { provider, epoch, index, kind } = *id;
                let call = Objections::proveSilenceCall { provider, epoch, index, kind: kind.number() };
                let sent =
                    self.object(&format!("{provider} is silent about {index} of {epoch}"), &call).await;
                Ok(once::<Objections::NothingDemanded>(sent)?.then_some(Event::Silent { demand: *id }))
            }
            Duty::Demand(id, sequence) => self.demand(*id, *sequence).await,
            Duty::Compare(id) => self.compare(*id).await,
        }
    }

    async fn prove_left_out(&mut self, id: BatchId, sequence: u64) -> Result<Option<Event>, Undone> {
        let BatchId { epoch, provider } = id;
        let found = self.book.found(provider)?.into_iter().find(|(of, _)| *of == sequence);
        let (Some((_, omission)), Some(signed)) = (found, self.book.receipt(provider, sequence)?) else {
            return Ok(None);
        };
        let call = Objections::proveLeftOutCall {
            receipt: (&signed.receipt).into(),
            signature: signed.signature.as_bytes().to_vec().into(),
            epoch,
            leaf: assay_ledger::contracts::b256(&omission.leaf),
            proof: (&omission.proof).into(),
        };
        self.object(&format!("{provider} left receipt {sequence} out of epoch {epoch}"), &call).await?;
        Ok(Some(Event::ProvedLeftOut { batch: id, sequence }))
    }

    async fn demand(&mut self, id: BatchId, sequence: u64) -> Result<Option<Event>, Undone> {
        let Some(held) = self.held.get(&id) else { return Ok(None) };
        let BatchId { epoch, provider } = id;
        let index = sequence.saturating_sub(held.batch.first);
        let call = Objections::demandLeafCall { provider, epoch, index };
        let sent = self.object(&format!("demand leaf {index} of {provider} in epoch {epoch}"), &call).await;
        // Somebody else's demand for the same leaf is waited for.
        let asked = once::<Objections::AlreadyDemanded>(sent)?;
        let demand = DemandId { provider, epoch, index, kind: DemandKind::Leaf };
        Ok(asked.then_some(Event::Demanded { demand }))
    }

    /// Forgets what is over: final, and compared or its provider's stake lost.
    fn tidy(&mut self, view: &View) -> Result<(), BookError> {
        for batch in view.batches.iter().filter(|batch| batch.phase == Phase::Final) {
            let BatchId { epoch, provider } = batch.id;
            let left = self.held.get(&batch.id).is_none_or(|held| !held.left.is_empty());
            // What was found in this round is not in the view.
            let found = self.book.found(provider)?.iter().any(|(_, omission)| omission.epoch == epoch);
            let open = view.demands.iter().any(|(id, _)| (id.provider, id.epoch) == (provider, epoch));
            let over = batch.struck || (!left && !found);
            if over
                && !open
                && let Some(held) = self.held.remove(&batch.id)
            {
                let end = held.batch.first.saturating_add(held.batch.count.into());
                self.book.forget(provider, held.batch.first..end)?;
                self.over.insert(batch.id);
            }
        }
        Ok(())
    }
}

/// Writes receipts into the book.
struct Taker {
    book: Arc<Book>,
    listener: Listener,
    metrics: Metrics,
    taken: Arc<AtomicU64>,
}

impl Taker {
    fn take(&self, receipts: &[SignedReceipt]) {
        match self.book.take(receipts) {
            Ok(taken) => {
                self.metrics.not_kept(taken.refused);
                self.taken.fetch_add(1, Relaxed);
                for provider in taken.conflicting {
                    (self.listener)(Event::Conflicting { provider });
                }
            }
            Err(e) => {
                self.metrics.not_kept(receipts.len());
                let what = format!("keeping {} receipts", receipts.len());
                (self.listener)(Event::Failed { what, code: "book_io", reason: e.to_string() });
            }
        }
    }
}

fn name(duty: &Duty) -> String {
    match duty {
        Duty::ProveLeftOut(id, sequence) => {
            format!("showing that {} left out receipt {sequence}", id.provider)
        }
        Duty::ProveConflict(provider) => format!("showing two receipts of {provider}"),
        Duty::ProveSilence(id) => format!("showing the silence of {}", id.provider),
        Duty::Demand(id, sequence) => format!("demanding leaf {sequence} of {}", id.provider),
        Duty::Compare(id) => format!("comparing with what {} posted of epoch {}", id.provider, id.epoch),
    }
}
