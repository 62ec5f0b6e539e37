//! What is paid for models, as the ledger's log says it.
//!
//! Invariant: every number is a sum over `Epochs.Posted` of epochs whose posting is over, so that asking later gives the same, but for providers
//! that are struck meanwhile: what they posted goes back to payers and is left out. It refuses to say who paid: a channel's claims
//! name no model.

use std::collections::{BTreeMap, BTreeSet};

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::Address;
use alloy_provider::Provider as _;
use alloy_rpc_types_eth::Filter;
use alloy_sol_types::SolEvent;
use assay_core::id::ModelRoot;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::amount::Amount;
use crate::client::ClientError;
use crate::contracts::{Epochs, Registry};
use crate::ledger::Ledger;

/// Blocks whose logs are asked for at once.
const RANGE: u64 = 1_000;
/// Such questions that wait for their answers at the same time.
const READS_AT_ONCE: usize = 8;

/// What was paid for one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paid {
    /// Fees that providers posted, all parts together.
    pub fees: Amount,
    /// Who posted them.
    pub providers: BTreeSet<Address>,
}

/// What was paid in some epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// How many epochs.
    pub epochs: u64,
    /// How long they took.
    pub seconds: u64,
    /// By model.
    pub paid: BTreeMap<ModelRoot, Paid>,
}

impl Demand {
    /// A model's fees in 24 hours, rounded down; none if no epoch is over.
    pub fn a_day(&self, model: &ModelRoot) -> Option<Amount> {
        let fees = self.paid.get(model).map_or(0, |paid| paid.fees.0);
        fees.saturating_mul(86_400).checked_div(u128::from(self.seconds)).map(Amount)
    }
}

/// Batches of some epochs.
pub(crate) struct Posted {
    /// The block at which the log was read.
    pub(crate) head: BlockId,
    /// The first epoch.
    pub(crate) first: u64,
    /// The one after the last.
    pub(crate) over: u64,
    /// What providers posted of them.
    pub(crate) batches: Vec<Epochs::Posted>,
}

impl Ledger {
    /// What was paid in the last `epochs` epochs whose posting is over; in fewer, where there are not so many.
    pub async fn demand(&self, epochs: u64) -> Result<Demand, ClientError> {
        let Posted { head, first, over, batches } = self.posted(epochs).await?;
        let seconds = (over - first) * u64::from(self.parameters().times.epochSeconds);
        let mut demand = Demand { epochs: over - first, seconds, ..Demand::default() };
        let mut struck = BTreeMap::new();
        for provider in batches.iter().map(|p| p.provider).collect::<BTreeSet<_>>() {
            let call = Registry::nodeOfCall { node: provider };
            struck.insert(provider, self.view(head, self.parts().at.registry, &call).await?.struck);
        }
        for batch in batches.iter().filter(|p| struck.get(&p.provider) == Some(&false)) {
            for share in &batch.shares {
                let paid = demand.paid.entry(ModelRoot::from_bytes(share.modelRoot.0)).or_default();
                paid.fees = Amount(paid.fees.0.saturating_add(share.total.into()));
                paid.providers.insert(batch.provider);
            }
        }
        Ok(demand)
    }

    /// The batches of the last `epochs` epochs whose posting is over, as the log has them.
    pub(crate) async fn posted(&self, epochs: u64) -> Result<Posted, ClientError> {
        let latest = self.client().latest().await?;
        let times = &self.parameters().times;
        let (epoch_s, post_s) = (u64::from(times.epochSeconds), u64::from(times.postSeconds));
        let since = latest.timestamp.saturating_sub(times.genesis).saturating_sub(post_s);
        // Epoch `e` is over, and its posting too, when `(e + 1)` epochs and the time for posting have passed.
        let over = since.checked_div(epoch_s).unwrap_or(0);
        let first = over.saturating_sub(epochs);
        let mut batches = Vec::new();
        if first < over {
            let opens = times.genesis.saturating_add((first + 1) * epoch_s);
            let from = self.first_at(opens, latest.number).await?;
            batches = self.logged::<Epochs::Posted>(self.parts().at.epochs, from, latest.number).await?;
            batches.retain(|batch| (first..over).contains(&batch.epoch));
        }
        Ok(Posted { head: BlockId::from(latest.hash), first, over, batches })
    }

    /// What a contract logged of a kind, in blocks from the first to the last.
    pub(crate) async fn logged<E: SolEvent>(
        &self,
        contract: Address,
        first: u64,
        last: u64,
    ) -> Result<Vec<E>, ClientError> {
        let filter = Filter::new().address(contract).event_signature(E::SIGNATURE_HASH);
        let starts: Vec<u64> = (first..=last).step_by(RANGE as usize).collect();
        let pages =
            stream::iter(starts).map(|start| {
                let filter =
                    filter.clone().from_block(start).to_block(start.saturating_add(RANGE - 1).min(last));
                async move {
                    self.client().provider().get_logs(&filter).await.map_err(|e| self.client().failed(e))
                }
            });
        let pages: Vec<_> = pages.buffered(READS_AT_ONCE).try_collect().await?;
        Ok(pages.into_iter().flatten().filter_map(|log| E::decode_log_data(&log.inner.data).ok()).collect())
    }

    /// The first block of a time or after it; the one after `head` if there is none.
    pub(crate) async fn first_at(&self, time: u64, head: u64) -> Result<u64, ClientError> {
        let (mut before, mut there) = (0, head.saturating_add(1));
        while before < there {
            let middle = before.midpoint(there);
            let number = BlockId::Number(BlockNumberOrTag::Number(middle));
            match self.client().header(number).await? {
                Some(header) if header.timestamp >= time => there = middle,
                // A block that the node has not got (any more) is an old one.
                _ => before = middle.saturating_add(1),
            }
        }
        Ok(there)
    }
}
