//! What an auditor has to do now, from what stands on the ledger and in its journal: no clock, no chain, no disk, no engine.
//!
//! Invariant: as in [`crate::settlement::due`], a duty that was done is not due any more, and the order of duties is the order in which they are
//! done. What an honest auditor can lose, it can lose by being late alone: so what has an end comes before what has none, and what ends first comes first.

use alloy_primitives::{Address, B256};
use assay_ledger::docket::{DemandId, DemandKind, DisputeId};
use assay_ledger::ledger::Phase;
use assay_verify::dispute::Party;

use crate::disputes::Standing;
use crate::settlement::{DisputeView, Duty as Common, beacon, in_disputes};

/// What part of the time for commitments is kept for what was refused: from then on an auditor commits to what it has.
pub const LAST_PART: u64 = 8;
/// After what part of the time for commitments a provider that gave nothing is asked on the ledger.
pub const PATIENCE_PART: u64 = 4;
/// Demands for one batch: each costs gas, and a bond until it is answered.
pub const DEMANDS_MAX: usize = 4;

/// Duties that cost no stake when they are late, of which so many are done in a round: the next one reads again whether something has one.
pub const UNHURRIED_MAX: usize = 32;

/// A batch, by provider and epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId {
    /// Its epoch.
    pub epoch: u64,
    /// Whose.
    pub provider: Address,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Time of the chain's newest block.
    pub now: u64,
    /// Its number.
    pub block: u64,
    /// The auditor's seats and stake.
    pub seats: SeatsView,
    /// What it has in the vault, for bonds.
    pub vault: u128,
    /// What a dispute, an accusation and a demand take.
    pub bonds: Bonds,
    /// Batches of epochs that are not over.
    pub batches: Vec<BatchView>,
    /// Demands of this auditor that are open, with the time at which the answer is due.
    pub demands: Vec<(DemandId, u64)>,
    /// Disputes that it takes part in.
    pub disputes: Vec<DisputeView>,
    /// Accusations of it that are open.
    pub accusations: Vec<AccusationView>,
    /// Accusations by it that nobody has answered, with the last second in which that is possible.
    pub accused: Vec<(B256, u64)>,
}

/// What must not wait, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pressing {
    /// Time of the chain's newest block.
    pub now: u64,
    /// What the auditor has in the vault.
    pub vault: u128,
    /// What an accused auditor that contests sets aside.
    pub accusation_bond: u128,
    /// Disputes that it takes part in.
    pub disputes: Vec<DisputeView>,
    /// Accusations of it that are open.
    pub accusations: Vec<AccusationView>,
}

/// The auditor's seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeatsView {
    /// Seats that it has and has not left.
    pub have: u64,
    /// Seats that it should have at least.
    pub wanted: u64,
    /// Stake that nothing reserves.
    pub free: u128,
    /// What a seat reserves.
    pub each: u128,
}

/// What is set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bonds {
    /// By a challenger.
    pub dispute: u128,
    /// By an accused auditor that contests.
    pub accusation: u128,
    /// By who demands a leaf or a record.
    pub demand: u128,
}

/// A batch on the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchView {
    /// Which.
    pub id: BatchId,
    /// Where its epoch stands.
    pub phase: Phase,
    /// When its beacon was fixed; 0 before.
    pub fixed_at: u64,
    /// The last second in which commitments are taken.
    pub commit_until: u64,
    /// Whether its provider was struck.
    pub struck: bool,
    /// This auditor's places on its panel.
    pub members: Vec<MemberView>,
    /// Others' places of which nothing was revealed in time.
    pub absent: Vec<u8>,
    /// How far its work is.
    pub work: WorkView,
}

/// What the contract knows of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberPhase {
    /// Nothing.
    None,
    /// Its commitment.
    Committed,
    /// Its root.
    Revealed,
    /// It was penalised, or paid.
    Over,
}

impl MemberPhase {
    /// As `Audits.memberOf` numbers them.
    pub fn numbered(number: u8) -> MemberPhase {
        match number {
            0 => MemberPhase::None,
            1 => MemberPhase::Committed,
            2 => MemberPhase::Revealed,
            _ => MemberPhase::Over,
        }
    }
}

/// A place on a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its number.
    pub member: u8,
    /// What the contract knows of it.
    pub phase: MemberPhase,
    /// Whether root and salt of what was committed to are in the journal.
    pub journalled: bool,
    /// Accusations of it that are open.
    pub accusations: u16,
}

/// How far the work on a batch is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkView {
    /// Whether it is known which receipts were drawn for this auditor.
    pub known: bool,
    /// Receipts that wait to be executed, were not refused, and whose models are here.
    pub left: usize,
    /// Receipts that were refused and are not executed.
    pub waiting: usize,
    /// What the provider has not given when it was asked, and was not demanded yet.
    pub refused: Vec<Refused>,
    /// Receipts whose model is not here.
    pub lacking: usize,
    /// Receipts that do not stand, and could be disputed.
    pub wrong: Vec<u64>,
    /// Receipts that were disputed.
    pub disputed: usize,
    /// Demands that were made for this batch, open or over.
    pub demanded: usize,
    /// What others revealed and is to be doubted: of each auditor one digest, and none of whom this one has accused in this batch.
    pub doubts: Vec<Doubt>,
}

/// What a provider has not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The sequence number.
    pub sequence: u64,
    /// What of it.
    pub kind: DemandKind,
}

/// Another auditor's digest of a receipt that was executed here, and is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Whose.
    pub auditor: Address,
    /// Its place on the panel.
    pub member: u8,
    /// Of which receipt.
    pub sequence: u64,
}

/// An accusation of this auditor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccusationView {
    /// Which.
    pub id: B256,
    /// The last second in which it can be contested.
    pub until: u64,
    /// Whether the stated trace root is that of the own execution.
    pub stated_is_own: bool,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Take so many seats more.
    TakeSeats(u64),
    /// Say that there is too little stake for so many seats.
    Lack(u64),
    /// End an epoch's posting.
    Close(u64),
    /// Fix an epoch's beacon.
    FixBeacon(u64),
    /// Fetch what was drawn, and execute some of it.
    Work(BatchId),
    /// Commit to what was executed.
    Commit(BatchId, u8),
    /// Reveal it.
    Reveal(BatchId, u8),
    /// Collect a member's part.
    Collect(BatchId, u8),
    /// Show that another member has revealed nothing: its part would be nobody's for ever.
    ProveAbsence(BatchId, u8),
    /// Ask on the ledger for what a provider refuses.
    Demand(BatchId, Refused),
    /// Show that a demand was not answered.
    ProveSilence(DemandId),
    /// Dispute a receipt.
    Open(BatchId, u64),
    /// Make the next move in a dispute.
    Move(DisputeId, Party),
    /// End a dispute in which the other party's move is late.
    TimeOut(DisputeId),
    /// Show that the digest is that of the stated trace root.
    Acquit(B256),
    /// Say that the stated trace root is wrong.
    Contest(B256),
    /// Say that another auditor's digest is not that of the own execution.
    Accuse(BatchId, Doubt),
    /// End an accusation that was not answered.
    Lapse(B256),
}

impl Duty {
    /// Whether it is one of [`pressing`]: being late with it costs stake or a bond.
    pub fn is_pressing(&self) -> bool {
        matches!(self, Duty::Move(..) | Duty::TimeOut(_) | Duty::Acquit(_) | Duty::Contest(_))
    }
}

/// What must not wait for anything else: moves, and answers to accusations, the earliest end first.
pub fn pressing(view: &Pressing) -> Vec<Duty> {
    let (mut moves, mut late) = (Vec::new(), Vec::new());
    for duty in in_disputes(&view.disputes, view.now) {
        match duty {
            Common::Move(id, party) => moves.push(Duty::Move(id, party)),
            Common::TimeOut(id) => late.push(Duty::TimeOut(id)),
            _ => {}
        }
    }
    let mut vault = view.vault;
    let mut accusations: Vec<&AccusationView> = view.accusations.iter().collect();
    accusations.sort_by_key(|accusation| accusation.until);
    for accusation in accusations {
        if accusation.stated_is_own {
            moves.push(Duty::Acquit(accusation.id));
        } else if view.now <= accusation.until
            && let Some(left) = vault.checked_sub(view.accusation_bond)
        {
            vault = left;
            moves.push(Duty::Contest(accusation.id));
        }
    }
    // Who is late stays late.
    moves.append(&mut late);
    moves
}

/// What to do now, in this order.
pub fn due(view: &View) -> Vec<Duty> {
    let press = Pressing {
        now: view.now,
        vault: view.vault,
        accusation_bond: view.bonds.accusation,
        disputes: view.disputes.clone(),
        accusations: view.accusations.clone(),
    };
    let mut duties = pressing(&press);
    let contested = duties.iter().filter(|duty| matches!(duty, Duty::Contest(_))).count() as u128;
    let mut vault = view.vault.saturating_sub(contested.saturating_mul(view.bonds.accusation));
    let mut afford = |bond: u128| match vault.checked_sub(bond) {
        Some(left) => {
            vault = left;
            true
        }
        None => false,
    };
    for batch in &view.batches {
        let of = |wanted: MemberPhase| batch.members.iter().filter(move |m| m.phase == wanted);
        if batch.phase == Phase::Revealing {
            duties.extend(
                of(MemberPhase::Committed).filter(|m| m.journalled).map(|m| Duty::Reveal(batch.id, m.member)),
            );
        }
        if batch.phase == Phase::Committing && is_ready(batch, view.now) {
            duties.extend(batch.members.iter().filter(is_unheard).map(|m| Duty::Commit(batch.id, m.member)));
        }
        let open = matches!(batch.phase, Phase::Committing | Phase::Revealing | Phase::Objecting);
        if open && !batch.struck && (batch.work.disputed == 0 || !disputes(view, batch.id.provider)) {
            let wrong = batch.work.wrong.first().filter(|_| afford(view.bonds.dispute));
            duties.extend(wrong.map(|sequence| Duty::Open(batch.id, *sequence)));
        }
        // Of who is struck the auditors' parts are all that is left, and nobody was hurt by a digest.
        if batch.phase == Phase::Objecting && !batch.struck {
            let doubts = batch.work.doubts.iter().filter(|_| afford(view.bonds.accusation));
            duties.extend(doubts.map(|doubt| Duty::Accuse(batch.id, *doubt)));
        }
    }
    let mut unhurried = Vec::new();
    let silent = view.demands.iter().filter(|(_, until)| view.now > *until);
    unhurried.extend(silent.map(|(id, _)| Duty::ProveSilence(*id)));
    let unanswered = view.accused.iter().filter(|(_, until)| view.now > *until);
    unhurried.extend(unanswered.map(|(id, _)| Duty::Lapse(*id)));
    for batch in &view.batches {
        unhurried.extend(
            demand(batch, view.now).filter(|_| afford(view.bonds.demand)).map(|r| Duty::Demand(batch.id, r)),
        );
        if is_working(batch) {
            duties.push(Duty::Work(batch.id));
        }
    }
    let mut epochs: Vec<(u64, Phase)> = view.batches.iter().map(|b| (b.id.epoch, b.phase)).collect();
    epochs.sort_by_key(|(epoch, _)| *epoch);
    epochs.dedup_by_key(|(epoch, _)| *epoch);
    for (epoch, phase) in epochs {
        match beacon(epoch, phase, view.block) {
            Some(Common::Close(epoch)) => unhurried.push(Duty::Close(epoch)),
            Some(Common::FixBeacon(epoch)) => unhurried.push(Duty::FixBeacon(epoch)),
            _ => {}
        }
    }
    for batch in view.batches.iter().filter(|b| matches!(b.phase, Phase::Objecting | Phase::Final)) {
        unhurried.extend(batch.absent.iter().map(|member| Duty::ProveAbsence(batch.id, *member)));
    }
    for batch in view.batches.iter().filter(|b| b.phase == Phase::Final) {
        let paid = batch.members.iter().filter(|m| m.phase == MemberPhase::Revealed && m.accusations == 0);
        unhurried.extend(paid.map(|m| Duty::Collect(batch.id, m.member)));
    }
    unhurried.extend(seats(&view.seats));
    duties.extend(unhurried.into_iter().take(UNHURRIED_MAX));
    duties
}

/// Whether a dispute with a provider is under way. One that is won takes its whole stake and gives back all its open fees, and holds the batch meanwhile: a second one of the
/// batch would win nothing more, and its bond is wanted for other cheats.
fn disputes(view: &View, provider: Address) -> bool {
    let of = |dispute: &&DisputeView| dispute.party == Party::Challenger && dispute.id.defender == provider;
    view.disputes.iter().filter(of).any(|dispute| matches!(dispute.standing, Standing::Turn { .. }))
}

/// Whether a place has not committed to anything that could be revealed: a commitment of which nothing is in the journal can be replaced as long as there is time.
fn is_unheard(member: &&MemberView) -> bool {
    member.phase == MemberPhase::None || member.phase == MemberPhase::Committed && !member.journalled
}

/// Whether there is something to fetch or execute, and time to commit to it.
fn is_working(batch: &BatchView) -> bool {
    let unheard = batch.members.iter().any(|m| is_unheard(&m));
    let work = &batch.work;
    let unfinished = !work.known || work.left > 0 || work.lacking > 0 || work.waiting > 0;
    batch.phase == Phase::Committing && unheard && unfinished
}

/// Until when a provider has time to give what it is asked for, before it is asked on the ledger.
fn patience(batch: &BatchView) -> u64 {
    let window = batch.commit_until.saturating_sub(batch.fixed_at);
    batch.fixed_at.saturating_add(window / PATIENCE_PART)
}

/// Whether to commit now: everything was executed; or what is missing is what the provider did not give, and time is running out or the provider is
/// struck, so that nothing more can be got by a demand. Who lacks a model commits to nothing: to be silent costs less than a digest that is
/// missing when somebody doubts it.
fn is_ready(batch: &BatchView, now: u64) -> bool {
    let work = &batch.work;
    if work.lacking > 0 || work.left > 0 {
        return false;
    }
    let last =
        batch.commit_until.saturating_sub(batch.commit_until.saturating_sub(batch.fixed_at) / LAST_PART);
    (work.known && work.waiting == 0) || now >= last || (batch.struck && now >= patience(batch))
}

/// What to ask for on the ledger: one thing at a time, after the provider had some time to give it.
fn demand(batch: &BatchView, now: u64) -> Option<Refused> {
    let open = batch.phase == Phase::Committing && !batch.struck && !batch.members.is_empty();
    let left = open && now >= patience(batch) && batch.work.demanded < DEMANDS_MAX;
    batch.work.refused.first().copied().filter(|_| left)
}

fn seats(seats: &SeatsView) -> Option<Duty> {
    let missing = seats.wanted.checked_sub(seats.have).filter(|n| *n > 0)?;
    let affordable =
        seats.free.checked_div(seats.each).map_or(missing, |n| u64::try_from(n).unwrap_or(u64::MAX));
    Some(match missing.min(affordable) {
        0 => Duty::Lack(missing),
        some => Duty::TakeSeats(some),
    })
}
