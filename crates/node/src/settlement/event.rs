//! What a provider's settlement tells whoever watches it, step by step.

use std::sync::Arc;

use alloy_primitives::{Address, B256};
use assay_core::id::ModelRoot;
use assay_ledger::amount::Amount;
use assay_ledger::docket::{DemandId, DisputeId};
use assay_verify::dispute::Party;

/// What happened in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Channels were claimed from.
    Claimed {
        /// How many.
        channels: usize,
    },
    /// What was claimed is in the pot.
    Income,
    /// A channel holds less than it owes. What is missing cannot be claimed, and receipts on it wait.
    Short {
        /// Which.
        channel: B256,
        /// What it owes, all in all.
        owed: Amount,
        /// What it has, all in all.
        balance: Amount,
    },
    /// An epoch was posted.
    Posted {
        /// Which.
        epoch: u64,
        /// How many receipts and gaps.
        count: u32,
        /// Fees.
        total: Amount,
    },
    /// A sealed batch was not posted in time; its receipts wait for the next epoch.
    Missed {
        /// Of which epoch.
        epoch: u64,
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
    /// A batch's fees were paid.
    Settled {
        /// Of which epoch.
        epoch: u64,
        /// What the provider earned.
        earned: Amount,
    },
    /// A model's royalty and hosts were paid.
    Released {
        /// Of which epoch.
        epoch: u64,
        /// Of which model.
        model: ModelRoot,
    },
    /// A demand was answered.
    Answered {
        /// Which.
        demand: DemandId,
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
    /// The node said where it answers.
    Described,
    /// The node said that it is there.
    Heartbeat,
    /// An auditor was given what it asked for.
    Audited {
        /// Who.
        auditor: Address,
        /// Of which epoch.
        epoch: u64,
        /// How many leaves or records.
        count: usize,
    },
    /// The node was proved to lie. It can earn nothing any more.
    Struck,
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
            Event::Claimed { .. } => "claimed",
            Event::Income => "income",
            Event::Short { .. } => "short",
            Event::Posted { .. } => "posted",
            Event::Missed { .. } => "missed",
            Event::Closed { .. } => "closed",
            Event::BeaconFixed { .. } => "beacon_fixed",
            Event::Settled { .. } => "settled",
            Event::Released { .. } => "released",
            Event::Answered { .. } => "answered",
            Event::Moved { .. } => "moved",
            Event::TimedOut { .. } => "timed_out",
            Event::Ended { .. } => "ended",
            Event::Described => "described",
            Event::Heartbeat => "heartbeat",
            Event::Audited { .. } => "audited",
            Event::Struck => "struck",
            Event::Failed { .. } => "failed",
        }
    }
}

/// Who hears of events.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;
