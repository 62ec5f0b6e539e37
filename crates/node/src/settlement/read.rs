//! Reading what a provider's duties follow from: at one block of the chain, and from the disk.

use std::collections::BTreeSet;

use alloy_eips::BlockId;
use alloy_primitives::B256;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Channels, Epochs, Objections, Registry};
use assay_ledger::docket::DemandId;
use assay_ledger::epochs::{Builder, Disk, Progress, Terms};
use assay_ledger::ledger::Phase;
use assay_ledger::voucher;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::desk::Panel;
use super::{
    BatchView, ChannelView, DemandView, DisputeView, Duty, EpochView, NodeView, OwnView, Settlement,
    SettlementError, View, party, pressing,
};
use crate::disputes::{Standing, standing};
use crate::sending::auditors_of;

/// Questions to the node that wait for their answers at the same time.
const READS_AT_ONCE: usize = 16;
/// Batches that are open at once and looked at.
const OPEN_MAX: usize = 64;
/// Epochs before the running one of which some may still be posted.
const RECENT_MAX: u64 = 8;

impl OwnView {
    /// What the builder has, beside the batches that are on the ledger; `ready` as the view has it. A batch that was posted and is not on the
    /// ledger was undone by a reorganisation, deeper than its sender waited for: it is sealed again, and posted or taken back.
    pub fn of<D: Disk>(builder: &Builder<D>, batches: &[BatchView], ready: Option<u64>) -> OwnView {
        let on_ledger = |epoch: u64| batches.iter().any(|batch| batch.epoch == epoch);
        let open = |progress: &Progress, epoch: u64| match progress {
            Progress::Sealed => true,
            Progress::Posted(_) => !on_ledger(epoch),
            Progress::Settled(_) => false,
        };
        let sealed = builder.batches().iter().find(|entry| open(&entry.progress, entry.batch.epoch));
        let sealed = sealed.map(|entry| entry.batch.epoch);
        OwnView { ready, sealed, stands: sealed.is_some_and(on_ledger) }
    }
}

impl Settlement {
    /// Reads everything.
    pub(super) async fn read(&mut self) -> Result<View, SettlementError> {
        let header = self.ledger.client().latest().await?;
        let (now, number) = (header.timestamp, header.number);
        let block = BlockId::from(header.hash);
        let at = self.ledger.parts().at.clone();
        let provider = self.provider;
        let node = self.ledger.view(block, at.registry, &Registry::nodeOfCall { node: provider }).await?;
        let account = self.ledger.view(block, at.epochs, &Epochs::accountOfCall { provider }).await?;
        let unsettled =
            self.ledger.view(block, at.channels, &Channels::unsettledOfCall { receiver: provider }).await?;
        let epoch = self.ledger.view(block, at.epochs, &Epochs::currentCall {}).await?;
        let times = self.ledger.parameters().times.clone();
        if self.claimed_in != epoch {
            // A reorganisation may have taken a claim back.
            self.claimed_in = epoch;
            self.claimed.clear();
        }
        let epoch_began = times.genesis.saturating_add(epoch.saturating_mul(times.epochSeconds.into()));
        let last_posted = u64::from(account.lastPosted).checked_sub(1);
        let batches = self.batches(block, last_posted, account.lastSettled).await?;
        let own = self.own(&batches)?;
        let mut wanted: BTreeSet<u64> = batches.iter().filter(|b| !b.settled).map(|b| b.epoch).collect();
        wanted.extend(own.sealed);
        let back = u64::from(times.postSeconds.div_ceil(times.epochSeconds.max(1))).min(RECENT_MAX);
        wanted.extend(epoch.saturating_sub(back)..epoch);
        let mut epochs = Vec::with_capacity(wanted.len());
        for epoch in wanted {
            let beacon = self.ledger.view(block, at.epochs, &Epochs::beaconOfCall { epoch }).await?;
            let phase = self.ledger.phase_at(epoch, now, beacon.number, beacon.fixedAt);
            epochs.push(EpochView { epoch, phase });
        }
        self.see(block, &epochs).await?;
        let view = View {
            now,
            block: number,
            epoch_began,
            node: NodeView {
                struck: node.struck,
                heartbeat: node.heartbeat.to(),
                endpoint: node.endpoint,
                price_list: node.priceList,
            },
            unsettled: u128::try_from(unsettled).unwrap_or(u128::MAX),
            last_posted,
            last_settled: u64::from(account.lastSettled).checked_sub(1),
            channels: self.channels(block).await?,
            epochs,
            batches,
            demands: self.demands(block).await?,
            disputes: self.disputes().await?,
            own,
        };
        Ok(view)
    }

    /// Reads what must not wait, and says what is due of it.
    pub(super) async fn read_pressing(&mut self) -> Result<Vec<Duty>, SettlementError> {
        let header = self.ledger.client().latest().await?;
        let demands = self.demands(BlockId::from(header.hash)).await?;
        Ok(pressing(header.timestamp, &demands, &self.disputes().await?))
    }

    /// Channels that owe more than was claimed from them.
    async fn channels(&mut self, block: BlockId) -> Result<Vec<ChannelView>, SettlementError> {
        let at = self.ledger.parts().at.channels;
        let domain = voucher::domain(self.ledger.client().chain_id(), at);
        let claims = self.store.claims()?.into_iter();
        let own = claims.filter(|claim| claim.voucher.channel.receiver == self.provider);
        let owed =
            own.map(|claim| (voucher::channel_id(&claim.voucher.channel, &domain), claim.totalClaimed));
        let open: Vec<(B256, u128)> =
            owed.filter(|(id, owed)| self.claimed.get(id).is_none_or(|claimed| owed > claimed)).collect();
        let this = &*self;
        let read = stream::iter(open).map(async |(id, owed)| {
            let channel = this.ledger.view(block, at, &Channels::channelOfCall { id }).await?;
            Ok::<_, ClientError>(ChannelView {
                id,
                owed,
                balance: channel.balance.into(),
                claimed: channel.claimed.into(),
                leaving: channel.leavesAt.to::<u64>() != 0,
            })
        });
        let found: Vec<ChannelView> = read.buffered(READS_AT_ONCE).try_collect().await?;
        // A claim that a reorganisation takes back is found again in the next epoch, or when more is owed.
        let done = found.iter().filter(|channel| channel.owed <= channel.claimed);
        self.claimed.extend(done.map(|channel| (channel.id, channel.claimed)));
        Ok(found.into_iter().filter(|channel| channel.owed > channel.claimed).collect())
    }

    /// Batches on the ledger that are open, and settled ones of which something may be left to release.
    async fn batches(
        &mut self,
        block: BlockId,
        last_posted: Option<u64>,
        last_settled: u32,
    ) -> Result<Vec<BatchView>, SettlementError> {
        let (at, provider) = (self.ledger.parts().at.epochs, self.provider);
        let mut found = Vec::new();
        let mut next = last_posted;
        while let Some(epoch) =
            next.filter(|epoch| *epoch >= u64::from(last_settled) && found.len() < OPEN_MAX)
        {
            let batch = self.ledger.view(block, at, &Epochs::batchOfCall { provider, epoch }).await?;
            next = u64::from(batch.previous).checked_sub(1).filter(|previous| *previous < epoch);
            found.push((epoch, batch));
        }
        let sealed = self.builder.batches().iter().filter(|entry| entry.progress != Progress::Sealed);
        let older: Vec<u64> = sealed
            .map(|entry| entry.batch.epoch)
            .filter(|epoch| !self.done.contains(epoch) && !found.iter().any(|(of, _)| of == epoch))
            .collect();
        for epoch in older {
            found.push((epoch, self.ledger.view(block, at, &Epochs::batchOfCall { provider, epoch }).await?));
        }
        found.sort_by_key(|(epoch, _)| *epoch);
        let mut views = Vec::with_capacity(found.len());
        for (epoch, batch) in found.into_iter().filter(|(_, batch)| batch.state != 0) {
            let settled = batch.state == 2;
            let call = Epochs::finalAtCall { epoch };
            let end = self.ledger.view(block, at, &call).await?;
            let end = u64::try_from(end).unwrap_or(u64::MAX);
            // Listings are found while they are what they were when the batch was posted.
            let tree = self.share_tree(epoch).await?;
            let payable = tree.map_or(0, |tree| tree.payable());
            if settled {
                self.note_settled(epoch);
                if payable & !batch.released == 0 {
                    self.done.insert(epoch);
                }
            }
            views.push(BatchView {
                epoch,
                settled,
                previous: u64::from(batch.previous).checked_sub(1),
                open_until: end.max(batch.heldUntil.to()),
                released: batch.released,
                payable,
            });
        }
        Ok(views)
    }

    /// The builder hears of it, if it has the batch and heard of everything before.
    fn note_settled(&mut self, epoch: u64) {
        let posted = |entry: &assay_ledger::epochs::Entry| {
            entry.batch.epoch == epoch && matches!(entry.progress, Progress::Posted(_))
        };
        if self.builder.batches().iter().any(posted)
            && let Err(e) = self.builder.settled(epoch)
        {
            self.failed(&format!("noting that epoch {epoch} is settled"), "epochs_progress", &e);
        }
    }

    fn own(&self, batches: &[BatchView]) -> Result<OwnView, SettlementError> {
        let ready = if self.builder.waiting() > 0 { self.first_waiting()? } else { None };
        Ok(OwnView::of(&self.builder, batches, ready))
    }

    /// The epoch of the first receipt that no batch has, unless its number or one before it may still be signed.
    fn first_waiting(&self) -> Result<Option<u64>, SettlementError> {
        let Some(mut from) = self.builder.next() else { return Ok(None) };
        while from < self.in_flight {
            let page = self.store.from_sequence(from, super::PAGE)?;
            let Some(last) = page.last() else { break };
            let own = page.iter().map(|record| record.receipt()).find(|signed| self.is_own(signed));
            if let Some(signed) = own {
                let receipt = &signed.receipt;
                return Ok((receipt.sequence < self.in_flight).then_some(receipt.epoch));
            }
            from = last.receipt().receipt.sequence.saturating_add(1);
        }
        Ok(None)
    }

    async fn demands(&mut self, block: BlockId) -> Result<Vec<DemandView>, SettlementError> {
        let at = self.ledger.parts().at.objections;
        let asked: Vec<DemandId> =
            self.docket.entries().demands.keys().filter(|id| id.provider == self.provider).copied().collect();
        let mut open = Vec::new();
        for id in asked {
            let kind = id.kind.number();
            let call =
                Objections::demandKeyCall { provider: id.provider, epoch: id.epoch, index: id.index, kind };
            let key = self.ledger.view(block, at, &call).await?;
            let until =
                self.ledger.view(block, at, &Objections::demandOfCall { key }).await?.until.to::<u64>();
            if until == 0 {
                self.docket.forget_demand(&id);
            } else {
                open.push(DemandView { id, until });
            }
        }
        Ok(open)
    }

    async fn disputes(&self) -> Result<Vec<DisputeView>, SettlementError> {
        let mut found = Vec::new();
        for id in self.docket.entries().disputes.keys().filter(|id| id.defender == self.provider) {
            let standing = standing(&self.ledger, id).await?;
            if standing != Standing::None {
                found.push(DisputeView { id: *id, party: party(id, self.provider), standing });
            }
        }
        Ok(found)
    }

    /// Tells the desk which auditors were drawn for which batches.
    async fn see(&self, block: BlockId, epochs: &[EpochView]) -> Result<(), SettlementError> {
        let (at, provider) = (self.ledger.parts().at.epochs, self.provider);
        let audited = |phase| matches!(phase, Phase::Committing | Phase::Revealing | Phase::Objecting);
        self.desk.forget(|epoch| !epochs.iter().any(|e| e.epoch == epoch && audited(e.phase)));
        for EpochView { epoch, .. } in epochs.iter().filter(|e| audited(e.phase)) {
            if self.desk.knows(*epoch) {
                continue;
            }
            let batch = self.ledger.view(block, at, &Epochs::batchOfCall { provider, epoch: *epoch }).await?;
            if batch.state == 0 {
                continue;
            }
            let beacon = self.ledger.view(block, at, &Epochs::beaconOfCall { epoch: *epoch }).await?.value;
            let auditors = auditors_of(&self.ledger, provider, *epoch, batch.panel).await?;
            self.desk.see(
                *epoch,
                Panel { first: batch.first, count: batch.count, beacon, backing: batch.backing, auditors },
            );
        }
        Ok(())
    }

    /// Makes the batches again that the ledger has and this folder has lost, so that what is asked of them can be shown.
    pub(super) async fn restore(&mut self) -> Result<(), SettlementError> {
        if !self.builder.batches().is_empty() {
            return Ok(());
        }
        let block = BlockId::from(self.ledger.client().latest().await?.hash);
        let (at, provider) = (self.ledger.parts().at.epochs, self.provider);
        let account = self.ledger.view(block, at, &Epochs::accountOfCall { provider }).await?;
        let mut open = Vec::new();
        let mut next = u64::from(account.lastPosted).checked_sub(1);
        while let Some(epoch) = next.filter(|e| *e >= u64::from(account.lastSettled) && open.len() < OPEN_MAX)
        {
            let batch = self.ledger.view(block, at, &Epochs::batchOfCall { provider, epoch }).await?;
            next = u64::from(batch.previous).checked_sub(1).filter(|previous| *previous < epoch);
            open.push((epoch, batch));
        }
        let Some((_, earliest)) = open.last() else {
            // Everything is settled: what comes next begins where the ledger goes on.
            let next = u64::try_from(account.nextSequence).unwrap_or(0);
            self.fed = self.fed.max(next.saturating_sub(1));
            return Ok(());
        };
        self.fed = earliest.first;
        self.feed()?;
        for (epoch, batch) in open.into_iter().rev() {
            let end = batch.first.saturating_add(batch.count.into());
            let terms = Terms {
                first: Some(batch.first),
                in_flight: Some(end),
                count_max: batch.count,
                ..Terms::default()
            };
            let again = self.builder.seal(epoch, &terms);
            let same =
                again.as_ref().is_ok_and(|again| assay_ledger::contracts::b256(&again.root) == batch.root);
            if !same {
                let why = "its receipts are not here any more; restore the epochs' folder from a copy";
                self.failed(&format!("making the batch of epoch {epoch} again"), "batch_lost", &why);
                return Ok(());
            }
            let block = self.ledger.client().head().await?;
            let transaction = assay_core::id::Hash::ZERO;
            self.builder.posted(epoch, assay_ledger::epochs::Posting { block, transaction })?;
        }
        Ok(())
    }
}
