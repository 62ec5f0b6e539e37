//! What an auditor tells whoever watches it, step by step.

use std::sync::Arc;

use assay_core::id::ModelRoot;
use assay_ledger::amount::Amount;
use assay_ledger::docket::{DemandId, DisputeId};
use assay_verify::dispute::Party;

use super::decide::BatchId;

/// What happened in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Seats were taken: they count from the next epoch on.
    Seated {
        /// How many.
        seats: u64,
    },
    /// There is too little stake for the seats that are wanted.
    LacksStake {
        /// How many seats are missing.
        seats: u64,
        /// How much more is needed at stake.
        needed: Amount,
    },
    /// It is known which receipts of a batch were drawn for this auditor.
    Drawn {
        /// Of which batch.
        batch: BatchId,
        /// How many receipts.
        receipts: usize,
    },
    /// A model that was drawn is not installed here.
    ModelMissing {
        /// Which.
        model: ModelRoot,
    },
    /// A receipt was executed again.
    Executed {
        /// Of which batch.
        batch: BatchId,
        /// Its sequence number.
        sequence: u64,
        /// Whether it stands.
        stands: bool,
    },
    /// A receipt was drawn whose client withholds its consent: it is not executed.
    Withheld {
        /// Of which batch.
        batch: BatchId,
        /// Its sequence number.
        sequence: u64,
    },
    /// A provider did not give what was asked for.
    Refused {
        /// Of which batch.
        batch: BatchId,
        /// Stable code.
        code: &'static str,
        /// Why.
        reason: String,
    },
    /// A provider is asked on the ledger.
    Demanded {
        /// For what.
        demand: DemandId,
    },
    /// A provider's silence was shown.
    Silent {
        /// About what.
        demand: DemandId,
    },
    /// Digests were committed to.
    Committed {
        /// Of which batch.
        batch: BatchId,
        /// As which member.
        member: u8,
    },
    /// They were revealed.
    Revealed {
        /// Of which batch.
        batch: BatchId,
        /// As which member.
        member: u8,
    },
    /// A member's part was collected.
    Collected {
        /// Of which batch.
        batch: BatchId,
        /// As which member.
        member: u8,
    },
    /// The absence of another member was shown.
    Absent {
        /// From the panel of which batch.
        batch: BatchId,
        /// Which member.
        member: u8,
    },
    /// An epoch's posting was closed.
    Closed {
        /// Which.
        epoch: u64,
    },
    /// An epoch's beacon was fixed.
    BeaconFixed {
        /// Which.
        epoch: u64,
    },
    /// A receipt is disputed.
    Opened {
        /// Of which batch.
        batch: BatchId,
        /// Its sequence number.
        sequence: u64,
    },
    /// A move was made in a dispute.
    Moved {
        /// In which.
        dispute: DisputeId,
    },
    /// A dispute was ended in which the other party's move was late.
    TimedOut {
        /// Which.
        dispute: DisputeId,
    },
    /// A dispute ended.
    Ended {
        /// Which.
        dispute: DisputeId,
        /// Who has won.
        winner: Party,
    },
    /// Another auditor was accused of a digest.
    Accused {
        /// In which batch.
        batch: BatchId,
        /// Its place on the panel.
        member: u8,
        /// Of which receipt.
        sequence: u64,
    },
    /// An accusation by this auditor was not answered: it was right.
    Lapsed,
    /// A doubt about this auditor was answered with the digest.
    Acquitted,
    /// A trace root that somebody stated is contested.
    Contested,
    /// Something failed; the next round tries again.
    Failed {
        /// What was tried.
        what: String,
        /// Stable code.
        code: &'static str,
        /// Why.
        reason: String,
    },
}

impl Event {
    /// A word for its kind, by which events are counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Seated { .. } => "seated",
            Event::LacksStake { .. } => "lacks_stake",
            Event::Drawn { .. } => "drawn",
            Event::ModelMissing { .. } => "model_missing",
            Event::Executed { .. } => "executed",
            Event::Withheld { .. } => "withheld",
            Event::Refused { .. } => "refused",
            Event::Demanded { .. } => "demanded",
            Event::Silent { .. } => "silent",
            Event::Committed { .. } => "committed",
            Event::Revealed { .. } => "revealed",
            Event::Collected { .. } => "collected",
            Event::Absent { .. } => "absent",
            Event::Closed { .. } => "closed",
            Event::BeaconFixed { .. } => "beacon_fixed",
            Event::Opened { .. } => "opened",
            Event::Moved { .. } => "moved",
            Event::TimedOut { .. } => "timed_out",
            Event::Ended { .. } => "ended",
            Event::Accused { .. } => "accused",
            Event::Lapsed => "lapsed",
            Event::Acquitted => "acquitted",
            Event::Contested => "contested",
            Event::Failed { .. } => "failed",
        }
    }
}

/// Who hears of events.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;
