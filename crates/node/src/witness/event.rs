//! What a witness tells whoever watches it.

use std::sync::Arc;

use alloy_primitives::Address;
use assay_ledger::docket::DemandId;

use crate::auditor::BatchId;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Receipts stand in a batch where they should.
    Compared {
        /// In which.
        batch: BatchId,
        /// How many.
        receipts: usize,
    },
    /// A receipt does not stand in the batch that has its number.
    LeftOut {
        /// In which.
        batch: BatchId,
        /// Its number.
        sequence: u64,
    },
    /// Two receipts of a provider exclude each other.
    Conflicting {
        /// Whose.
        provider: Address,
    },
    /// That was shown to the ledger: a receipt was left out.
    ProvedLeftOut {
        /// Of which batch.
        batch: BatchId,
        /// Its number.
        sequence: u64,
    },
    /// That was shown to the ledger: two receipts exclude each other.
    ProvedConflict {
        /// Whose.
        provider: Address,
    },
    /// A provider did not show what it posted; it is asked again.
    NotShown {
        /// Of which batch.
        batch: BatchId,
        /// Stable code.
        code: &'static str,
        /// Why.
        reason: String,
    },
    /// It was asked on the ledger.
    Demanded {
        /// For what.
        demand: DemandId,
    },
    /// It showed there what is right: the bond is its.
    InVain {
        /// For what it was asked.
        demand: DemandId,
    },
    /// It was silent there.
    Silent {
        /// For what it was asked.
        demand: DemandId,
    },
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
            Event::Compared { .. } => "compared",
            Event::LeftOut { .. } => "left_out",
            Event::Conflicting { .. } => "conflicting",
            Event::ProvedLeftOut { .. } => "proved_left_out",
            Event::ProvedConflict { .. } => "proved_conflict",
            Event::NotShown { .. } => "not_shown",
            Event::Demanded { .. } => "demanded",
            Event::InVain { .. } => "in_vain",
            Event::Silent { .. } => "silent",
            Event::Failed { .. } => "failed",
        }
    }
}

/// Who hears of events.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;
