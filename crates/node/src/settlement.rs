//! A provider's part on the ledger: it claims what it was paid, posts its receipts, sees that beacons come, has its fees paid, and answers for
//! what it signed.
//!
//! [`due`] decides, without a clock, a chain or a disk; a round reads, decides, does, and tells. Invariant: a round may be cut off after any
//! step and repeated, by this process or the next one: what is on the ledger is read from the ledger, receipts and what was sealed are on disk before they
//! count, and a transaction is on disk before it is sent. It refuses to post what is not of this ledger and this key, and to decide what is
//! signed.
//!
//! Work on the disk and waiting for the chain happen on the thread that drives it: give it one of its own ([`Settlement::start`]).

mod decide;
mod desk;
mod event;
mod leaves;
mod metrics;
mod perform;
mod read;
mod records;
mod shares;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256};
use assay_core::id::ModelRoot;
use assay_core::receipt::SignedReceipt;
use assay_ledger::amount::Amount;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::node_address;
use assay_ledger::docket::Docket;
use assay_ledger::epochs::{AppendError, Builder, Identity, OpenError, Opened, ProgressError};
use assay_ledger::follow::FollowError;
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::posting::PostError;
use assay_ledger::sender::{SendError, Sender};
use axum::Router;
use prometheus_client::registry::Registry;

pub use self::decide::{
    BatchView, CLAIMS_AT_ONCE, ChannelView, DemandView, Described, DisputeView, Duty, EpochView, NodeView,
    OwnView, View, beacon, due, in_dispute, in_disputes, party, pressing,
};
pub use self::desk::{AuditDesk, DeskError};
pub use self::event::{Event, Listener};
use self::leaves::LeavesDesk;
use self::metrics::Metrics;
use self::perform::name;
pub use self::perform::take_back;
use crate::disputes::{self, MoveError};
use crate::execution::Library;
use crate::sending::send_code;
use crate::store::{ReceiptStore, StoreError};

/// Records that are read at once.
const PAGE: usize = 64;
/// Settled batches are kept for so many epochs: proofs are made from them, as for refunds.
const EPOCHS_KEPT: u64 = 64;

/// How a provider settles.
#[derive(Clone)]
pub struct SettlementOptions {
    /// Folder of what is remembered between starts: the epochs' journals and batches, names that the ledger logged.
    pub folder: PathBuf,
    /// Whose entry of a model is paid its royalty and hosts. A model without one pays nobody's.
    pub owners: BTreeMap<ModelRoot, Address>,
    /// How the node is described on the ledger.
    pub described: Described,
}

/// Why there is no settlement, or a round ended early. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum SettlementError {
    /// The chain could not be read.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its log could not be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The receipts cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The epochs' folder cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The epochs' folder cannot be written.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// A receipt cannot be kept for posting.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The ledger does not know the node as a provider.
    #[error(
        "{node} is not enrolled as a provider on this ledger: `assay stake 0 --role provider --endpoint URL` enrols it"
    )]
    NotProvider {
        /// The node's key.
        node: Address,
    },
    /// A transaction of an earlier round waits.
    #[error(transparent)]
    Waiting(SendError),
}

impl SettlementError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            SettlementError::Client(_) => "ledger_unread",
            SettlementError::Follow(_) => "ledger_unfollowed",
            SettlementError::Store(_) => "receipts_unread",
            SettlementError::Open(_) => "epochs_folder",
            SettlementError::Progress(_) => "epochs_progress",
            SettlementError::Append(_) => "epochs_append",
            SettlementError::NotProvider { .. } => "not_enrolled",
            SettlementError::Waiting(_) => "transaction_waiting",
        }
    }
}

/// Why a duty was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undone {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Post(#[from] PostError),
    #[error(transparent)]
    Progress(#[from] ProgressError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error("{0}")]
    Lost(String),
}

impl Undone {
    fn code(&self) -> &'static str {
        match self {
            Undone::Client(_) => "ledger_unread",
            Undone::Send(e) => send_code(e),
            Undone::Post(PostError::Another { .. }) => "another_batch",
            Undone::Post(PostError::Send(e)) => send_code(e),
            Undone::Post(_) => "epoch_not_posted",
            Undone::Progress(_) => "epochs_progress",
            Undone::Store(_) => "receipts_unread",
            Undone::Move(e) => e.code(),
            Undone::Lost(_) => "record_lost",
        }
    }
}

/// A provider's settlement.
pub struct Settlement {
    ledger: Ledger,
    sender: Sender,
    provider: Address,
    identity: Identity,
    store: Arc<ReceiptStore>,
    builder: Builder,
    docket: Docket,
    library: Arc<Library>,
    desk: Arc<AuditDesk>,
    leaves: Arc<LeavesDesk>,
    options: SettlementOptions,
    listener: Listener,
    metrics: Metrics,
    /// Every receipt below this number is in the builder, if it has a place there.
    fed: u64,
    /// The least number that might still be signed when receipts were read last.
    in_flight: u64,
    /// What was claimed from channels that owe nothing more, as it was read last.
    claimed: BTreeMap<B256, u128>,
    /// In which epoch that was.
    claimed_in: u64,
    /// Epochs of which nothing is left to do.
    done: BTreeSet<u64>,
    ended: disputes::Ended,
    /// Channels of which it was told that they are short, with what they owed.
    short: BTreeMap<B256, u128>,
    struck: bool,
}

impl Settlement {
    /// The settlement of the sender's key, which must be enrolled as a provider. Goes on where an earlier start ended.
    pub async fn open(
        ledger: Ledger,
        sender: Sender,
        store: Arc<ReceiptStore>,
        library: Arc<Library>,
        options: SettlementOptions,
        listener: Listener,
    ) -> Result<Settlement, SettlementError> {
        let provider = sender.account();
        let node = ledger.node(provider).await?;
        if node.is_none_or(|node| node.roles & Role::Provider as u8 == 0) {
            return Err(SettlementError::NotProvider { node: provider });
        }
        let identity = Identity { provider: node_address(provider), domain: ledger.receipt_domain() };
        // Two ledgers may be on one chain, and two chains may share an id.
        let genesis = ledger.client().genesis().await?;
        let folder = options.folder.join(format!("{genesis:x}-{}-{provider:x}", identity.domain.contract));
        let (builder, opened) = Builder::open(&folder, identity)?;
        let docket = Docket::open(ledger.clone(), provider, &options.folder).await?;
        let metrics = Metrics::default();
        let listener = metrics.counting(provider, listener);
        let desk = Arc::new(AuditDesk::new(&ledger, identity, Arc::clone(&store), Arc::clone(&listener)));
        let leaves = Arc::new(LeavesDesk::new(&folder, identity));
        let options = SettlementOptions { folder, ..options };
        let fed = builder.next().unwrap_or(0);
        let mut settlement = Settlement {
            ledger,
            sender,
            provider,
            identity,
            store,
            builder,
            docket,
            library,
            desk,
            leaves,
            options,
            listener,
            metrics,
            fed,
            in_flight: 0,
            claimed: BTreeMap::new(),
            claimed_in: 0,
            done: BTreeSet::new(),
            ended: disputes::Ended::default(),
            short: BTreeMap::new(),
            struck: false,
        };
        settlement.opened(opened);
        settlement.restore().await?;
        settlement.leaves.see(&settlement.builder);
        Ok(settlement)
    }

    /// Says what was found of the epochs' folder, and writes batches again that are not whole.
    fn opened(&mut self, opened: Opened) {
        if opened.torn.is_some() {
            // What was cut is in the store of receipts.
            tracing::info!("the end of the epochs' journal was torn; it is written again");
        }
        for epoch in opened.damaged {
            if let Err(e) = self.builder.repair(epoch) {
                self.failed(&format!("repairing the batch of epoch {epoch}"), "epochs_folder", &e);
            }
        }
    }

    /// Goes on after a disk that failed, as one does that was full: what lies there is read again.
    async fn mend(&mut self) -> Result<(), SettlementError> {
        if self.builder.is_stopped() {
            let opened = self.builder.reopen().map_err(OpenError::from)?;
            self.fed = self.builder.next().unwrap_or(0);
            self.opened(opened);
            self.restore().await?;
        }
        Ok(())
    }

    /// What it counts, for whoever shows it.
    pub fn metrics(&self) -> Registry {
        self.metrics.registry()
    }

    /// What auditors use, `POST /v1/audits`, and whoever holds receipts, `POST /v1/leaves`.
    pub fn routes(&self) -> Router {
        self.desk.routes().merge(self.leaves.routes())
    }

    /// Drives rounds on a thread of its own, `every` so often, until `stop` resolves. The routes are answered as long as the thread runs.
    pub fn start(
        mut self,
        every: Duration,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("assay-settlement".into()).spawn(move || {
            runtime.block_on(async {
                let rounds = async {
                    loop {
                        if let Err(e) = self.round().await {
                            self.failed("a round of settlement", e.code(), &e);
                        }
                        tokio::time::sleep(every).await;
                    }
                };
                tokio::select! {
                    () = rounds => {}
                    () = stop => {}
                }
            });
        })
    }

    /// One round: everything that is due, once. Says how many duties were done.
    pub async fn round(&mut self) -> Result<usize, SettlementError> {
        self.some(usize::MAX).await
    }

    /// At most `most` of the duties that are due.
    pub async fn some(&mut self, most: usize) -> Result<usize, SettlementError> {
        for (_, ended) in self.sender.resume().await {
            match ended {
                Err(error) if error.may_retry() => return Err(SettlementError::Waiting(error)),
                // What failed for good is asked of the ledger like everything else.
                _ => {}
            }
        }
        self.mend().await?;
        self.feed()?;
        self.docket.update().await?;
        let view = self.read().await?;
        if view.node.struck && !self.struck {
            self.struck = true;
            (self.listener)(Event::Struck);
        }
        let mut duties = VecDeque::from(due(&view, &self.options.described));
        let (mut done, mut tried) = (0, 0);
        while let Some(duty) = duties.pop_front().filter(|_| tried < most) {
            tried += 1;
            match self.perform(&duty).await {
                Ok(event) => {
                    done += usize::from(event.is_some());
                    event.into_iter().for_each(|event| (self.listener)(event));
                }
                Err(e) => self.failed(&name(&duty), e.code(), &e),
            }
            // A transaction may have taken its time, and a move may be due that was not.
            if !duty.is_pressing() && !duties.is_empty() {
                self.docket.update().await?;
                for duty in self.read_pressing().await?.into_iter().rev() {
                    duties.push_front(duty);
                }
            }
        }
        self.tidy(&view)?;
        self.leaves.see(&self.builder);
        let coins = self.ledger.client().coin(self.provider, BlockId::latest()).await?;
        self.metrics.read(&view, self.builder.waiting(), coins);
        Ok(done)
    }

    /// Whether nothing of this provider is open on the ledger: no batch, no claim, no receipt that waits. Who wants to leave waits for it.
    pub async fn is_clear(&mut self) -> Result<bool, SettlementError> {
        self.feed()?;
        let view = self.read().await?;
        let owed = view.channels.iter().any(|channel| channel.claimable().is_some());
        let open = view.batches.iter().any(|batch| !batch.settled);
        Ok(!owed && !open && view.unsettled == 0 && self.builder.waiting() == 0 && view.own.sealed.is_none())
    }

    /// Gives the builder the receipts of this ledger that it does not have.
    fn feed(&mut self) -> Result<(), SettlementError> {
        // Asked before reading: what is below has been stored, or never will be.
        let in_flight = self.store.in_flight();
        let mut from = self.fed;
        loop {
            let page = self.store.from_sequence(from, PAGE)?;
            let Some(last) = page.last() else { break };
            let next = last.receipt().receipt.sequence.saturating_add(1);
            let own: Vec<SignedReceipt> =
                page.iter().map(|record| record.receipt()).filter(|r| self.is_own(r)).cloned().collect();
            self.append(&own)?;
            from = next;
            if page.len() < PAGE {
                break;
            }
        }
        self.fed = in_flight.max(self.fed);
        self.in_flight = in_flight;
        Ok(())
    }

    /// Whether a receipt has a place on this ledger. Those for another, as of free answers before the node joined, have none.
    fn is_own(&self, signed: &SignedReceipt) -> bool {
        signed.domain == self.identity.domain && signed.receipt.provider == self.identity.provider
    }

    fn append(&mut self, receipts: &[SignedReceipt]) -> Result<(), SettlementError> {
        match self.builder.append_many(receipts) {
            Ok(_) => return Ok(()),
            Err(e @ AppendError::Storage(_)) => return Err(e.into()),
            Err(_) => {}
        }
        // One of them has no place: the others have.
        for receipt in receipts {
            match self.builder.append(receipt) {
                Ok(_) => {}
                Err(e @ AppendError::Storage(_)) => return Err(e.into()),
                Err(e) => {
                    let what = format!("keeping receipt {} for posting", receipt.receipt.sequence);
                    self.failed(&what, "receipt_not_kept", &e);
                }
            }
        }
        Ok(())
    }

    /// Forgets what is over, and tells the builder what the ledger has done.
    fn tidy(&mut self, view: &View) -> Result<(), SettlementError> {
        for dispute in &view.disputes {
            let new = self.ended.see(dispute.id, dispute.standing, view.now);
            if let (true, disputes::Standing::Over { winner }) = (new, dispute.standing) {
                (self.listener)(Event::Ended { dispute: dispute.id, winner });
            }
        }
        for id in self.ended.forgotten(view.now) {
            self.docket.forget_dispute(&id);
        }
        for channel in &view.channels {
            if channel.owed > channel.balance
                && self.short.insert(channel.id, channel.owed) != Some(channel.owed)
            {
                let (owed, balance) = (Amount(channel.owed), Amount(channel.balance));
                (self.listener)(Event::Short { channel: channel.id, owed, balance });
            }
        }
        if let Some(oldest) =
            view.batches.iter().filter(|b| !b.settled).map(|b| b.epoch).min().or(view.last_settled)
        {
            let before = oldest.saturating_sub(EPOCHS_KEPT);
            self.docket.forget_batches(before);
            self.builder.prune(before).map_err(ProgressError::from)?;
        }
        Ok(())
    }

    fn failed(&self, what: &str, code: &'static str, reason: &dyn std::fmt::Display) {
        (self.listener)(Event::Failed { what: what.to_owned(), code, reason: reason.to_string() });
    }
}
