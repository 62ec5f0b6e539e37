//! What a provider told of its batch, checked against what it posted; and what the beacon drew of it.
//!
//! Invariant: leaves that were taken are those under the posted root, and their fees add up to the posted running totals. So a fee that is told
//! otherwise than it was posted is found at once, and one that was posted otherwise than it was signed is found with the record.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256};
use assay_api::audits::AuditLeaf;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_ledger::audits::{assigned, is_drawn};
use assay_ledger::contracts::Directory::Rates;
use assay_ledger::contracts::{Epochs, b256};

/// Numbers among which one is looked for that is drawn whatever its fee is.
pub(super) const SEARCHED_MAX: u32 = 65_536;

/// Why leaves are not those of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// There are more or fewer.
    #[error("the provider gave {got} leaves, and its batch has {expected}")]
    Count {
        /// Of the batch.
        expected: u32,
        /// That were given.
        got: usize,
    },
    /// They hash to something else.
    #[error("the leaves that the provider gave are not those under the root that it posted")]
    Root,
    /// Their fees do not add up to the posted totals.
    #[error("the fees that the provider gave do not add up to the totals that it posted")]
    Tally,
}

impl TellError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            TellError::Count { .. } => "leaves_count",
            TellError::Root => "leaves_root",
            TellError::Tally => "leaves_tally",
        }
    }
}

/// A receipt that was drawn for an auditor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// What the provider told of it; none where a demand brought it.
    pub leaf: Option<AuditLeaf>,
    /// The auditor's places to which it was assigned.
    pub members: Vec<u8>,
}

/// What decides about draws.
#[derive(Clone, Debug)]
pub struct Draw<'a> {
    /// Whose batch.
    pub provider: Address,
    /// The epoch's beacon.
    pub beacon: B256,
    /// The batch.
    pub batch: &'a Epochs::Batch,
    /// The ledger's rates.
    pub rates: &'a Rates,
    /// The auditor's places on the panel.
    pub members: &'a [u8],
}

impl Draw<'_> {
    /// The auditor's places that execute a receipt with this fee; none if it is not drawn.
    pub fn members_for(&self, sequence: u64, fee: u64) -> Vec<u8> {
        let batch = self.batch;
        if !is_drawn(&self.beacon, self.provider, sequence, fee, batch.backing, self.rates) {
            return vec![];
        }
        let who = assigned(&self.beacon, self.provider, sequence, batch.panel, self.rates.secondPpm);
        let mine = self.members.iter().copied().filter(|member| who.is_some_and(|who| who.has(*member)));
        mine.collect()
    }

    /// What was drawn of the leaves of a whole batch.
    pub fn of(&self, leaves: &[Option<AuditLeaf>]) -> BTreeMap<u64, Drawn> {
        let told = (self.batch.first..).zip(leaves).filter_map(|(sequence, leaf)| Some((sequence, (*leaf)?)));
        let drawn = told.filter_map(|(sequence, leaf)| {
            let members = self.members_for(sequence, leaf.fee_micro_usd);
            (!members.is_empty()).then_some((sequence, Drawn { leaf: Some(leaf), members }))
        });
        drawn.collect()
    }

    /// A sequence number to ask for where the provider tells nothing: the first that is drawn whatever its fee is and is not done, if there is one
    /// among the first [`SEARCHED_MAX`].
    pub fn first_drawn(&self, done: impl Fn(&u64) -> bool) -> Option<u64> {
        let mut numbers = (self.batch.first..).take(self.batch.count.min(SEARCHED_MAX) as usize);
        numbers.find(|n| !done(n) && !self.members_for(*n, 0).is_empty())
    }
}

/// Checks that leaves are those of a batch.
pub fn check(batch: &Epochs::Batch, leaves: &[Option<AuditLeaf>]) -> Result<(), TellError> {
    if leaves.len() != batch.count as usize {
        return Err(TellError::Count { expected: batch.count, got: leaves.len() });
    }
    let hash =
        |leaf: &Option<AuditLeaf>| merkle::leaf(leaf.map_or(Hash::ZERO, |leaf| leaf.signing_hash).as_bytes());
    if b256(&merkle::root(leaves.iter().map(hash))) != batch.root {
        return Err(TellError::Root);
    }
    let mut totals = BTreeMap::new();
    for leaf in leaves.iter().flatten().filter(|leaf| leaf.fee_micro_usd > 0) {
        totals.insert(leaf.model_root, 0u64);
    }
    let mut root = merkle::Builder::new();
    for leaf in leaves {
        if let Some(total) =
            leaf.and_then(|leaf| Some((totals.get_mut(&leaf.model_root)?, leaf.fee_micro_usd)))
        {
            *total.0 = total.0.saturating_add(total.1);
        }
        let tally: Vec<u8> = totals.values().flat_map(|total| total.to_be_bytes()).collect();
        root.push(merkle::leaf(&tally));
    }
    if b256(&root.root()) != batch.tallyRoot || totals.len() != usize::from(batch.shares) {
        return Err(TellError::Tally);
    }
    Ok(())
}
