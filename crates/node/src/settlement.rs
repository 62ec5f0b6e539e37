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
mod read;
mod records;
mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use assay_core::id::{ModelRoot, NodeAddress};
use assay_core::receipt::{Domain, SignedReceipt};
use assay_ledger::amount::Amount;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Audits, Channels, Disputes, Epochs, Objections, Registry};
use assay_ledger::docket::{DemandId, DemandKind, DisputeId, Docket};
use assay_ledger::epochs::{AppendError, Builder, Identity, OpenError, ProgressError, SealError};
use assay_ledger::follow::FollowError;
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::posting::{PostError, post};
use assay_ledger::sender::{SendError, Sender};
use assay_ledger::voucher;
use assay_verify::dispute::Party;
use axum::Router;

pub use self::decide::{
    BatchView, CLAIMS_AT_ONCE, ChannelView, DemandView, Described, DisputeView, Duty, EpochView, NodeView,
    OwnView, View, beacon, due, in_dispute, party,
};
pub use self::desk::{AuditDesk, DeskError};
pub use self::event::{Event, Listener};
use crate::disputes::{self, Case, MoveError};
use crate::execution::Library;
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

/// A stable code for a transaction that failed.
pub(crate) fn send_code(error: &SendError) -> &'static str {
    match error {
        SendError::NoGas { .. } => "no_gas",
        SendError::Waiting { .. } | SendError::TooManyWaiting => "transaction_waiting",
        SendError::Client(_) => "ledger_unread",
        _ => "transaction_failed",
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
    options: SettlementOptions,
    listener: Listener,
    /// Every receipt below this number is in the builder, if it has a place there.
    fed: u64,
    /// The least number that might still be signed when receipts were read last.
    in_flight: u64,
    /// What was claimed from channels that owe nothing more, as it was read last.
    claimed: BTreeMap<B256, u128>,
    /// Epochs of which nothing is left to do.
    done: BTreeSet<u64>,
    /// Disputes whose end was told.
    ended: BTreeSet<DisputeId>,
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
        let contract = NodeAddress::from_bytes(ledger.parts().at.epochs.into_array());
        let domain = Domain { chain_id: ledger.client().chain_id(), contract };
        let identity = Identity { provider: NodeAddress::from_bytes(provider.into_array()), domain };
        // Two ledgers may be on one chain, and two chains may share an id.
        let genesis = ledger.client().genesis().await?;
        let folder = options.folder.join(format!("{genesis:x}-{contract}-{provider:x}"));
        std::fs::create_dir_all(&folder).map_err(|e| {
            SettlementError::Open(OpenError::Storage(assay_ledger::epochs::StorageError::Disk {
                file: folder.display().to_string(),
                act: "make",
                source: e,
            }))
        })?;
        let (builder, opened) = Builder::open(&folder, identity)?;
        let docket = Docket::open(ledger.clone(), provider, &options.folder).await?;
        let desk = Arc::new(AuditDesk::new(&ledger, identity, Arc::clone(&store), Arc::clone(&listener)));
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
            options,
            listener,
            fed,
            in_flight: 0,
            claimed: BTreeMap::new(),
            done: BTreeSet::new(),
            ended: BTreeSet::new(),
            short: BTreeMap::new(),
            struck: false,
        };
        if opened.torn.is_some() {
            // What was cut is in the store of receipts.
            tracing::info!("the end of the epochs' journal was torn; it is written again");
        }
        for epoch in opened.damaged {
            if let Err(e) = settlement.builder.repair(epoch) {
                settlement.failed(&format!("repairing the batch of epoch {epoch}"), "epochs_folder", &e);
            }
        }
        settlement.restore().await?;
        Ok(settlement)
    }

    /// What auditors use: `POST /v1/audits`.
    pub fn routes(&self) -> Router {
        self.desk.routes()
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
        self.feed()?;
        self.docket.update().await?;
        let view = self.read().await?;
        if view.node.struck && !self.struck {
            self.struck = true;
            (self.listener)(Event::Struck);
        }
        let mut done = 0;
        for duty in due(&view, &self.options.described).into_iter().take(most) {
            match self.perform(&duty).await {
                Ok(event) => {
                    done += usize::from(event.is_some());
                    event.into_iter().for_each(|event| (self.listener)(event));
                }
                Err(e) => self.failed(&name(&duty), e.code(), &e),
            }
        }
        self.tidy(&view)?;
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

    async fn perform(&mut self, duty: &Duty) -> Result<Option<Event>, Undone> {
        let at = self.ledger.parts().at.clone();
        let provider = self.provider;
        match duty {
            Duty::Answer(id) => self.answer(id).await,
            Duty::Move(id, party) => self.move_on(id, *party).await,
            Duty::TimeOut(id) => {
                let ended = disputes::time_out(&self.ledger, &self.sender, id).await;
                once2::<Disputes::NotYourTurn, Disputes::TooEarly>(ended)?;
                Ok(None)
            }
            Duty::Claim(channels) => self.claim(channels).await,
            Duty::SettleIncome => {
                let call = Channels::settleCall { receiver: provider };
                let settled = self.sender.send("settle what was claimed", at.channels, &call).await;
                Ok(once::<Channels::NothingToDo>(settled)?.then_some(Event::Income))
            }
            Duty::Missed(epoch) => {
                self.builder.missed(*epoch)?;
                Ok(Some(Event::Missed { epoch: *epoch }))
            }
            Duty::Post(epoch) => self.post(*epoch).await,
            Duty::Close(epoch) => {
                let closed = close(&self.ledger, &self.sender, *epoch).await?;
                Ok(closed.then_some(Event::Closed { epoch: *epoch }))
            }
            Duty::FixBeacon(epoch) => {
                let fixed = fix_beacon(&self.ledger, &self.sender, *epoch).await?;
                Ok(fixed.then_some(Event::BeaconFixed { epoch: *epoch }))
            }
            Duty::Settle(epoch) => {
                let call = Epochs::settleCall { provider, epoch: *epoch };
                let settled = self.sender.send(&format!("settle epoch {epoch}"), at.epochs, &call).await;
                if !once::<Epochs::AlreadyDone>(settled)? {
                    return Ok(None);
                }
                let call = Epochs::batchOfCall { provider, epoch: *epoch };
                let earned = self.ledger.client().read(at.epochs, &call).await?.providerPart;
                Ok(Some(Event::Settled { epoch: *epoch, earned: Amount(earned.into()) }))
            }
            Duty::Release(epoch, bit) => self.release(*epoch, *bit).await,
            Duty::Describe => {
                let Some(node) = self.ledger.node(provider).await? else { return Ok(None) };
                let described = &self.options.described;
                let call = Registry::describeCall {
                    node: provider,
                    endpoint: described.endpoint.clone().unwrap_or(node.endpoint),
                    priceList: described.price_list.unwrap_or(node.priceList),
                };
                self.sender.send("describe the node", at.registry, &call).await?;
                Ok(Some(Event::Described))
            }
            Duty::Heartbeat => {
                let call = Registry::heartbeatCall { node: provider };
                self.sender.send("give a heartbeat", at.registry, &call).await?;
                Ok(Some(Event::Heartbeat))
            }
        }
    }

    async fn claim(&mut self, channels: &[B256]) -> Result<Option<Event>, Undone> {
        let domain = voucher::domain(self.ledger.client().chain_id(), self.ledger.parts().at.channels);
        let mut claims = Vec::with_capacity(channels.len());
        for claim in self.store.claims()? {
            let id = voucher::channel_id(&claim.voucher.channel, &domain);
            if !channels.contains(&id) {
                continue;
            }
            let channel = self.ledger.channel(id).await?;
            let total = claim.totalClaimed.min(channel.balance.into());
            if total > u128::from(channel.claimed) {
                claims.push(Channels::VoucherClaim { totalClaimed: total, ..claim });
            }
        }
        if claims.is_empty() {
            return Ok(None);
        }
        let at = self.ledger.parts().at.channels;
        let what = format!("claim from {} channels", claims.len());
        let together = self.sender.send(&what, at, &Channels::claimCall { claims: claims.clone() }).await;
        let channels = match together {
            Ok(_) => claims.len(),
            Err(SendError::Reverted { .. }) if claims.len() > 1 => {
                // A payer that is a contract can deny its voucher: the others are claimed without it.
                let mut claimed = 0;
                for claim in claims {
                    let payer = claim.voucher.channel.payer;
                    let call = Channels::claimCall { claims: vec![claim] };
                    match self.sender.send("claim from a channel", at, &call).await {
                        Ok(_) => claimed += 1,
                        Err(e) => self.failed(&format!("claiming from {payer}"), send_code(&e), &e),
                    }
                }
                claimed
            }
            Err(e) => return Err(e.into()),
        };
        Ok((channels > 0).then_some(Event::Claimed { channels }))
    }

    async fn post(&mut self, epoch: u64) -> Result<Option<Event>, Undone> {
        let owners = self.options.owners.clone();
        let before = assay_ledger::posting::listings(&self.ledger, &owners).await?;
        let posted =
            post(&self.ledger, &self.sender, &mut self.builder, epoch, &owners, Some(self.in_flight)).await;
        let batch = match posted {
            Ok(batch) => batch,
            // Nothing can stand in it yet.
            Err(PostError::Seal(SealError::Nothing { .. })) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        self.keep_listings(epoch, &batch, before).await?;
        Ok(Some(Event::Posted { epoch, count: batch.count, total: Amount(batch.total().into()) }))
    }

    async fn release(&mut self, epoch: u64, bit: u8) -> Result<Option<Event>, Undone> {
        let Some(tree) = self.share_tree(epoch).await? else { return Ok(None) };
        let Some(leaf) = tree.leaves.get(usize::from(bit)) else { return Ok(None) };
        let model = ModelRoot::from_bytes(leaf.modelRoot.0);
        let Some(call) = tree.release_call(self.identity.provider, epoch, &model) else { return Ok(None) };
        let epochs = self.ledger.parts().at.epochs;
        let released = self.sender.send(&format!("release a share of epoch {epoch}"), epochs, &call).await;
        Ok(once::<Epochs::AlreadyDone>(released)?.then_some(Event::Released { epoch, model }))
    }

    async fn answer(&mut self, id: &DemandId) -> Result<Option<Event>, Undone> {
        let objections = self.ledger.parts().at.objections;
        let DemandId { provider, epoch, index, kind } = *id;
        let sent = match kind {
            DemandKind::Leaf => {
                let opening = self.opening(epoch, index).await?;
                let call = Objections::answerLeafCall { provider, epoch, index, opening };
                self.sender.send(&format!("open leaf {index} of epoch {epoch}"), objections, &call).await
            }
            DemandKind::Record => {
                let (request, transcript) = self.items(epoch, index)?;
                let call = Objections::answerRecordCall { provider, epoch, index, request, transcript };
                self.sender.send(&format!("show record {index} of epoch {epoch}"), objections, &call).await
            }
        };
        Ok(once::<Objections::NothingDemanded>(sent)?.then_some(Event::Answered { demand: *id }))
    }

    async fn move_on(&mut self, id: &DisputeId, party: Party) -> Result<Option<Event>, Undone> {
        let Some(record) = self.signed(id.name)? else {
            return Err(Undone::Lost(format!(
                "the record of the receipt that signs {} is not here",
                id.name
            )));
        };
        let model = self.library.model(record.receipt.receipt.model_root).map_err(MoveError::from)?;
        let from = self.docket.entries().disputes.get(id).copied().unwrap_or(0);
        let case = Case { id: *id, from, stated: None, record };
        let moved = disputes::move_on(&self.ledger, &self.sender, case, model, party).await?;
        Ok(moved.then_some(Event::Moved { dispute: *id }))
    }

    /// Forgets what is over, and tells the builder what the ledger has done.
    fn tidy(&mut self, view: &View) -> Result<(), SettlementError> {
        for dispute in &view.disputes {
            if let disputes::Standing::Over { winner } = dispute.standing
                && self.ended.insert(dispute.id)
            {
                (self.listener)(Event::Ended { dispute: dispute.id, winner });
            }
        }
        let over: Vec<DisputeId> = self.ended.iter().copied().collect();
        over.iter().for_each(|id| self.docket.forget_dispute(id));
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

fn name(duty: &Duty) -> String {
    match duty {
        Duty::Answer(id) => {
            format!("answering a demand for {:?} {} of epoch {}", id.kind, id.index, id.epoch)
        }
        Duty::Move(id, _) => format!("moving in the dispute over {}", id.name),
        Duty::TimeOut(id) => format!("ending the dispute over {}", id.name),
        Duty::Claim(channels) => format!("claiming from {} channels", channels.len()),
        Duty::SettleIncome => "settling what was claimed".into(),
        Duty::Missed(epoch) => format!("taking back the batch of epoch {epoch}"),
        Duty::Post(epoch) => format!("posting epoch {epoch}"),
        Duty::Close(epoch) => format!("closing epoch {epoch}"),
        Duty::FixBeacon(epoch) => format!("fixing the beacon of epoch {epoch}"),
        Duty::Settle(epoch) => format!("settling epoch {epoch}"),
        Duty::Release(epoch, bit) => format!("releasing share {bit} of epoch {epoch}"),
        Duty::Describe => "describing the node".into(),
        Duty::Heartbeat => "giving a heartbeat".into(),
    }
}

/// Whether something was done now: a refusal that says that it stands is no error.
pub(crate) fn once<E: alloy_sol_types::SolError>(
    sent: Result<assay_ledger::sender::Mined, SendError>,
) -> Result<bool, SendError> {
    match sent {
        Ok(_) => Ok(true),
        Err(SendError::Reverted { reason, .. }) if reason.is::<E>() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Likewise with two refusals that say so.
pub(crate) fn once2<E: alloy_sol_types::SolError, F: alloy_sol_types::SolError>(
    sent: Result<(), SendError>,
) -> Result<bool, SendError> {
    match sent {
        Ok(()) => Ok(true),
        Err(SendError::Reverted { reason, .. }) if reason.is::<E>() || reason.is::<F>() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Ends an epoch's posting. Says whether that was done now.
pub(crate) async fn close(ledger: &Ledger, sender: &Sender, epoch: u64) -> Result<bool, SendError> {
    let call = Epochs::closeCall { epoch };
    let sent = sender.send(&format!("close epoch {epoch}"), ledger.parts().at.epochs, &call).await;
    once2::<Epochs::BeaconPending, Epochs::BeaconAlreadyFixed>(sent.map(drop))
}

/// Fixes an epoch's beacon, or names another block if the chain has forgotten the one that was named. Says whether it is fixed now.
pub(crate) async fn fix_beacon(ledger: &Ledger, sender: &Sender, epoch: u64) -> Result<bool, SendError> {
    match ledger.fix_beacon(sender, epoch).await {
        Ok(_) => Ok(true),
        Err(SendError::Reverted { reason, .. }) if reason.is::<Epochs::BeaconAlreadyFixed>() => Ok(false),
        Err(SendError::Reverted { reason, .. }) if reason.is::<Epochs::WrongHeader>() => {
            close(ledger, sender, epoch).await.map(|_| false)
        }
        Err(e) => Err(e),
    }
}

/// Whose seat was drawn for each member of a panel, as the contract says.
pub(crate) async fn auditors_of(
    ledger: &Ledger,
    provider: Address,
    epoch: u64,
    panel: u8,
) -> Result<Vec<Address>, ClientError> {
    let mut auditors = Vec::with_capacity(panel.into());
    for member in 0..panel {
        let call = Audits::auditorOfCall { provider, epoch, member: alloy_primitives::U256::from(member) };
        auditors.push(ledger.client().read(ledger.parts().at.audits, &call).await?);
    }
    Ok(auditors)
}
