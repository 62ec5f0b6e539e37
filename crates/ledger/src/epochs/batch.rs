//! A sealed batch: what `Epochs.post` takes, and its shares.
//!
//! Invariant: totals, roots and count are those of the leaves that were written; they never change afterwards. Listings are not part of
//! it: no root depends on them before the contract computes the tree of shares.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256};
use assay_core::id::{Hash, ModelRoot, NodeAddress};
use assay_core::merkle::{self, Proof};
use borsh::{BorshDeserialize, BorshSerialize};

use crate::contracts::{Epochs, Objections, address, b256};

const PPM: u128 = 1_000_000;

/// Why a batch ends where it does. What comes after waits for the next epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum End {
    /// No later receipt is there.
    All,
    /// The next number may still be signed.
    InFlight,
    /// The next receipt was signed in a later epoch, and no receipt may stand in an earlier one.
    LaterEpoch,
    /// The next receipt has a fee for one more model than a batch may have.
    Models,
    /// The batch has as many leaves as it may have.
    Count,
    /// The next receipt's fee is more than the batch may take out of the pot.
    Total,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            End::All => "there is no receipt",
            End::InFlight => {
                "the request is still being answered; wait for it, or decide that it will not be signed"
            }
            End::LaterEpoch => "its receipt was signed in a later epoch; seal that one",
            End::Models => "the batch may have no model; raise the limit",
            End::Count => "the batch may have no leaf; raise the limit",
            End::Total => "its fee is more than the batch may take; have more settled, or raise the limit",
        })
    }
}

/// A model's fees in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Share {
    /// The model.
    pub model_root: ModelRoot,
    /// The sum of the fees of its receipts.
    pub total: u64,
}

/// Whom a model's share pays, as the registry says when the batch is posted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Whose entry of the model; zero: nobody's.
    pub owner: Address,
    /// The entry's royalty.
    pub royalty_ppm: u32,
}

/// What a provider posts for an epoch.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Batch {
    /// The epoch.
    pub epoch: u64,
    /// Sequence number of the first leaf.
    pub first: u64,
    /// How many leaves.
    pub count: u32,
    /// How many of them are of numbers for which nothing was signed.
    pub gaps: u32,
    /// Root over the leaves.
    pub root: Hash,
    /// Root over the running totals.
    pub tally_root: Hash,
    /// Models with fees, by rising root.
    pub shares: Vec<Share>,
    /// Why it ends where it does.
    pub end: End,
}

impl Batch {
    /// The sequence number at which the next batch begins.
    pub fn next(&self) -> u64 {
        self.first.saturating_add(self.count.into())
    }

    /// What leaves the provider's pot. Sealing refuses what does not fit 64 bits.
    pub fn total(&self) -> u64 {
        self.shares.iter().fold(0, |sum, s| sum.saturating_add(s.total))
    }

    fn listing(listings: &BTreeMap<ModelRoot, Listing>, share: &Share) -> Listing {
        listings.get(&share.model_root).copied().unwrap_or_default()
    }

    /// The call that posts it; models without a listing are paid to nobody's.
    pub fn post_call(
        &self,
        provider: NodeAddress,
        listings: &BTreeMap<ModelRoot, Listing>,
    ) -> Epochs::postCall {
        let share = |s: &Share| Epochs::Share {
            modelRoot: B256::from(*s.model_root.as_bytes()),
            listing: Self::listing(listings, s).owner,
            total: s.total,
        };
        Epochs::postCall {
            provider: address(&provider),
            epoch: self.epoch,
            root: b256(&self.root),
            tallyRoot: b256(&self.tally_root),
            first: self.first,
            count: self.count,
            shares: self.shares.iter().map(share).collect(),
        }
    }

    /// The tree of shares as the contract made it when the batch was posted with these listings, hosts' part being `hosts_ppm`.
    pub fn share_tree(&self, listings: &BTreeMap<ModelRoot, Listing>, hosts_ppm: u32) -> ShareTree {
        let part = |total: u64, ppm: u32| {
            u64::try_from(u128::from(total) * u128::from(ppm) / PPM).unwrap_or(u64::MAX)
        };
        let leaf = |s: &Share| {
            let listing = Self::listing(listings, s);
            Epochs::ShareLeaf {
                modelRoot: B256::from(*s.model_root.as_bytes()),
                listing: listing.owner,
                total: s.total,
                royalty: if listing.owner == Address::ZERO { 0 } else { part(s.total, listing.royalty_ppm) },
                hosts: part(s.total, hosts_ppm),
            }
        };
        ShareTree { leaves: self.shares.iter().map(leaf).collect() }
    }
}

/// The tree of a posted batch's shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareTree {
    /// Its leaves, by rising model root.
    pub leaves: Vec<Epochs::ShareLeaf>,
}

impl ShareTree {
    fn hashes(&self) -> Vec<Hash> {
        let hash = |s: &Epochs::ShareLeaf| {
            let numbers = [s.total, s.royalty, s.hosts].map(u64::to_be_bytes).concat();
            merkle::leaf(&[s.modelRoot.as_slice(), s.listing.as_slice(), &numbers].concat())
        };
        self.leaves.iter().map(hash).collect()
    }

    /// Its root: what `Epochs.batchOf` has as `sharesRoot`, if listings and rates are right.
    pub fn root(&self) -> Hash {
        merkle::root(self.hashes())
    }

    /// The leaves out of which something is paid, as `Epochs.batchOf` counts what was released: the lowest bit is the first leaf's.
    pub fn payable(&self) -> u16 {
        let bits = (0u32..16).zip(&self.leaves).filter(|(_, leaf)| leaf.royalty > 0 || leaf.hosts > 0);
        bits.fold(0, |payable, (bit, _)| payable | 1u16 << bit)
    }

    /// The proof for the share of a model.
    pub fn proof(&self, model: &ModelRoot) -> Option<Proof> {
        let index = self.leaves.iter().position(|s| s.modelRoot.0 == *model.as_bytes())?;
        merkle::prove(&self.hashes(), index)
    }

    /// The call that has a model's royalty and hosts paid, once its batch is settled.
    pub fn release_call(
        &self,
        provider: NodeAddress,
        epoch: u64,
        model: &ModelRoot,
    ) -> Option<Epochs::releaseCall> {
        let proof = self.proof(model)?;
        let share = self.leaves.get(usize::try_from(proof.index).ok()?)?.clone();
        Some(Epochs::releaseCall { provider: address(&provider), epoch, share, proof: (&proof).into() })
    }

    /// The leaves as `Objections` takes them.
    pub(super) fn objections_leaves(&self) -> Vec<Objections::ShareLeaf> {
        let leaf = |s: &Epochs::ShareLeaf| Objections::ShareLeaf {
            modelRoot: s.modelRoot,
            listing: s.listing,
            total: s.total,
            royalty: s.royalty,
            hosts: s.hosts,
        };
        self.leaves.iter().map(leaf).collect()
    }
}
