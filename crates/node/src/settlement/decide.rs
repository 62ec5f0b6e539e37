//! What a provider has to do now, from what stands on the ledger and on its disk: no clock, no chain, no disk.
//!
//! Invariant: every duty follows from the view alone, so that doing one and looking again is all there is to it; a duty that was done is not
//! due any more, and one that was done twice is refused by the contracts. The order of duties is the order in which they are done.

use alloy_primitives::{Address, B256};
use assay_ledger::docket::{DemandId, DisputeId};
use assay_ledger::ledger::Phase;
use assay_verify::dispute::Party;

use crate::disputes::Standing;

/// Claims of one transaction: each takes some 60 000 gas of the 16 million that one may use.
pub const CLAIMS_AT_ONCE: usize = 128;

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Time of the chain's newest block.
    pub now: u64,
    /// Its number.
    pub block: u64,
    /// When the epoch began that runs.
    pub epoch_began: u64,
    /// The provider's node.
    pub node: NodeView,
    /// What was claimed and not settled.
    pub unsettled: u128,
    /// Its last posted epoch.
    pub last_posted: Option<u64>,
    /// Its last settled epoch.
    pub last_settled: Option<u64>,
    /// Channels that owe it something.
    pub channels: Vec<ChannelView>,
    /// Epochs in which it has, or may have, a batch.
    pub epochs: Vec<EpochView>,
    /// Its batches on the ledger, by rising epoch.
    pub batches: Vec<BatchView>,
    /// What it is asked to show.
    pub demands: Vec<DemandView>,
    /// Disputes that it takes part in.
    pub disputes: Vec<DisputeView>,
    /// What is here and not on the ledger.
    pub own: OwnView,
}

impl View {
    /// A provider that is enrolled and has nothing, at a time.
    pub fn at(now: u64, block: u64) -> View {
        View {
            now,
            block,
            epoch_began: 0,
            node: NodeView { struck: false, heartbeat: now, endpoint: String::new(), price_list: B256::ZERO },
            unsettled: 0,
            last_posted: None,
            last_settled: None,
            channels: vec![],
            epochs: vec![],
            batches: vec![],
            demands: vec![],
            disputes: vec![],
            own: OwnView::default(),
        }
    }
}

/// The provider's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Whether it was proved to lie.
    pub struck: bool,
    /// When it last said that it is there.
    pub heartbeat: u64,
    /// Where it says that it answers.
    pub endpoint: String,
    /// What it says of its prices.
    pub price_list: B256,
}

/// A channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelView {
    /// Its id.
    pub id: B256,
    /// What it owes, all in all.
    pub owed: u128,
    /// What is deposited in it.
    pub balance: u128,
    /// What was claimed.
    pub claimed: u128,
    /// Whether its payer has announced to take the rest back.
    pub leaving: bool,
}

impl ChannelView {
    /// What can be claimed now, all in all; nothing if that is no more than was.
    pub fn claimable(&self) -> Option<u128> {
        let total = self.owed.min(self.balance);
        (total > self.claimed).then_some(total)
    }
}

/// An epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochView {
    /// Which.
    pub epoch: u64,
    /// Where it stands.
    pub phase: Phase,
}

/// A batch on the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchView {
    /// Its epoch.
    pub epoch: u64,
    /// Whether it is settled.
    pub settled: bool,
    /// The provider's posted epoch before it.
    pub previous: Option<u64>,
    /// The last second in which it cannot be settled; for ever, while there is no beacon.
    pub open_until: u64,
    /// Shares that were released, a bit for each.
    pub released: u16,
    /// Shares of which there is something to release, likewise.
    pub payable: u16,
}

/// A demand that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemandView {
    /// Which.
    pub id: DemandId,
    /// When the answer is due. A later one is taken too, until somebody has proved the silence.
    pub until: u64,
}

/// A dispute that the node takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisputeView {
    /// Which.
    pub id: DisputeId,
    /// As whom.
    pub party: Party,
    /// Where it stands.
    pub standing: Standing,
}

/// What is on the provider's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnView {
    /// The epoch of the first receipt that no batch has, if its number is not in flight and nothing below it is.
    pub ready: Option<u64>,
    /// An epoch that is sealed and not known to be posted.
    pub sealed: Option<u64>,
    /// Whether that batch stands on the ledger.
    pub stands: bool,
}

/// How the node wants to be described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// Where it answers; nothing leaves what stands there.
    pub endpoint: Option<String>,
    /// What it says of its prices; likewise.
    pub price_list: Option<B256>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Show what a demand asks for.
    Answer(DemandId),
    /// Make the next move in a dispute.
    Move(DisputeId, Party),
    /// End a dispute in which the other party's move is late.
    TimeOut(DisputeId),
    /// Claim what these channels owe.
    Claim(Vec<B256>),
    /// Have what was claimed added to the pot.
    SettleIncome,
    /// Take back a batch that was sealed and did not come onto the ledger in time.
    Missed(u64),
    /// Post an epoch.
    Post(u64),
    /// End an epoch's posting.
    Close(u64),
    /// Fix an epoch's beacon.
    FixBeacon(u64),
    /// Have a batch's fees paid.
    Settle(u64),
    /// Pay the royalty and the hosts of a share, by its place in the batch.
    Release(u64, u8),
    /// Say where the node answers, and for which prices.
    Describe,
    /// Say that the node is there.
    Heartbeat,
}

impl Duty {
    /// Whether it is one of [`pressing`]: being late with it costs the stake, or a bond.
    pub fn is_pressing(&self) -> bool {
        matches!(self, Duty::Answer(_) | Duty::Move(..) | Duty::TimeOut(_))
    }
}

/// What must not wait for anything else: answers to demands, and moves. What costs the whole stake when it is late comes first.
pub fn pressing(now: u64, demands: &[DemandView], disputes: &[DisputeView]) -> Vec<Duty> {
    let mut duties: Vec<Duty> = demands.iter().map(|demand| Duty::Answer(demand.id)).collect();
    duties.extend(in_disputes(disputes, now));
    duties
}

/// What to do now, in this order.
pub fn due(view: &View, described: &Described) -> Vec<Duty> {
    let mut duties = Vec::new();
    if view.node.struck {
        // What was posted goes back to payers, and the node can never earn again: whatever it did would cost gas for nothing.
        return duties;
    }
    duties.extend(pressing(view.now, &view.demands, &view.disputes));
    let missed = missed(view);
    let posts = if missed.is_some() { vec![] } else { posts(view) };
    let claims = claims(view, !posts.is_empty());
    if !claims.is_empty() || view.unsettled > 0 {
        duties.extend(claims.chunks(CLAIMS_AT_ONCE).map(|some| Duty::Claim(some.to_vec())));
        duties.push(Duty::SettleIncome);
    }
    duties.extend(missed.map(Duty::Missed));
    duties.extend(posts.into_iter().map(Duty::Post));
    let posted = |epoch: u64| view.batches.iter().any(|batch| batch.epoch == epoch && !batch.settled);
    for epoch in view.epochs.iter().filter(|e| posted(e.epoch)) {
        duties.extend(beacon(epoch.epoch, epoch.phase, view.block));
    }
    duties.extend(
        view.batches.iter().filter(|batch| is_payable(batch, view)).map(|batch| Duty::Settle(batch.epoch)),
    );
    for batch in view.batches.iter().filter(|batch| batch.settled) {
        let left = batch.payable & !batch.released;
        duties
            .extend((0..16u8).filter(|bit| left >> bit & 1 == 1).map(|bit| Duty::Release(batch.epoch, bit)));
    }
    let another = described.endpoint.as_ref().is_some_and(|endpoint| *endpoint != view.node.endpoint)
        || described.price_list.is_some_and(|list| list != view.node.price_list);
    if another {
        duties.push(Duty::Describe);
    } else if view.node.heartbeat < view.epoch_began {
        duties.push(Duty::Heartbeat);
    }
    duties
}

/// What to do in disputes, the earliest end first; who is late stays late.
pub fn in_disputes(disputes: &[DisputeView], now: u64) -> Vec<Duty> {
    let until = |dispute: &&DisputeView| match dispute.standing {
        Standing::Turn { until, .. } => until,
        Standing::None | Standing::Over { .. } => u64::MAX,
    };
    let mut disputes: Vec<&DisputeView> = disputes.iter().collect();
    disputes.sort_by_key(until);
    let (mut moves, late): (Vec<Duty>, Vec<Duty>) = disputes
        .into_iter()
        .filter_map(|dispute| in_dispute(dispute, now))
        .partition(|duty| matches!(duty, Duty::Move(..)));
    moves.extend(late);
    moves
}

/// What to do in a dispute; nothing while the other party thinks, or when it is over.
pub fn in_dispute(dispute: &DisputeView, now: u64) -> Option<Duty> {
    match dispute.standing {
        Standing::Turn { of, until } if of == dispute.party && now <= until => {
            Some(Duty::Move(dispute.id, dispute.party))
        }
        Standing::Turn { of, until } if of != dispute.party && now > until => Some(Duty::TimeOut(dispute.id)),
        _ => None,
    }
}

/// What to do for an epoch's beacon, by whoever is paid only after it.
pub fn beacon(epoch: u64, phase: Phase, block: u64) -> Option<Duty> {
    match phase {
        Phase::Closing => Some(Duty::Close(epoch)),
        // The contract asks for a block that is below the newest one.
        Phase::Awaiting { block: of } if block > of => Some(Duty::FixBeacon(epoch)),
        _ => None,
    }
}

fn phase(view: &View, epoch: u64) -> Option<Phase> {
    view.epochs.iter().find(|e| e.epoch == epoch).map(|e| e.phase)
}

/// A sealed batch that can no longer be posted.
fn missed(view: &View) -> Option<u64> {
    let sealed = view.own.sealed.filter(|_| !view.own.stands)?;
    match phase(view, sealed) {
        Some(Phase::Running | Phase::Posting) | None => None,
        Some(_) => Some(sealed),
    }
}

/// The epoch to post: the sealed one first, since batches are posted in order; else the earliest that has something.
fn posts(view: &View) -> Vec<u64> {
    if let Some(sealed) = view.own.sealed {
        // One that stands is posted again, so that the builder hears of it.
        let can = view.own.stands || phase(view, sealed) == Some(Phase::Posting);
        return if can { vec![sealed] } else { vec![] };
    }
    let Some(ready) = view.own.ready else { return vec![] };
    let posting = view.epochs.iter().filter(|e| e.phase == Phase::Posting);
    let open = posting.filter(|e| view.last_posted.is_none_or(|last| e.epoch > last) && e.epoch >= ready);
    open.map(|e| e.epoch).min().into_iter().collect()
}

/// Channels to claim from: all before something is posted, so that the pot has what is posted and payers of a provider that turns out to cheat
/// get it back; those whose payer leaves at once.
fn claims(view: &View, posts: bool) -> Vec<B256> {
    let owing = view.channels.iter().filter(|channel| channel.claimable().is_some());
    owing.filter(|channel| posts || channel.leaving).map(|channel| channel.id).collect()
}

fn is_payable(batch: &BatchView, view: &View) -> bool {
    !batch.settled && view.now > batch.open_until && batch.previous == view.last_settled
}

/// Whose word a dispute is about, from the addresses of its parties.
pub fn party(id: &DisputeId, of: Address) -> Party {
    if id.challenger == of { Party::Challenger } else { Party::Defender }
}
