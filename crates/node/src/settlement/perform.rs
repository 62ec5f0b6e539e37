//! Doing what is due: one transaction, or one change on the disk, for each duty.

use std::sync::Arc;

use alloy_primitives::B256;
use assay_core::consent::Consent;
use assay_core::id::ModelRoot;
use assay_ledger::amount::Amount;
use assay_ledger::contracts::{Channels, Disputes, Epochs, Objections, Registry};
use assay_ledger::docket::{DemandId, DemandKind, DisputeId};
use assay_ledger::epochs::{Builder, Disk, Progress, ProgressError, SealError};
use assay_ledger::posting::{PostError, listings, post};
use assay_ledger::sender::SendError;
use assay_ledger::voucher;
use assay_verify::dispute::Party;

use super::records::items;
use super::{Duty, Event, Settlement, Undone};
use crate::disputes::{self, Case};
use crate::sending::{close, fix_beacon, once, once2, send_code};

impl Settlement {
    pub(super) async fn perform(&mut self, duty: &Duty) -> Result<Option<Event>, Undone> {
        let at = self.ledger.parts().at.clone();
        let provider = self.provider;
        match duty {
            Duty::Answer(id) => self.answer(id).await,
            Duty::Move(id, party) => self.move_on(id, *party).await,
            Duty::TimeOut(id) => {
                let ended = disputes::time_out(&self.ledger, &self.sender, id).await;
                let done = once2::<Disputes::NotYourTurn, Disputes::TooEarly>(ended)?;
                Ok(done.then_some(Event::TimedOut { dispute: *id }))
            }
            Duty::Claim(channels) => self.claim(channels).await,
            Duty::SettleIncome => {
                let call = Channels::settleCall { receiver: provider };
                let settled = self.sender.send("settle what was claimed", at.channels, &call).await;
                Ok(once::<Channels::NothingToDo>(settled)?.then_some(Event::Income))
            }
            Duty::Missed(epoch) => {
                take_back(&mut self.builder, *epoch)?;
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
        let before = listings(&self.ledger, &owners).await?;
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
                let record = self.record_at(epoch, index)?;
                match record.consent() {
                    Consent::Given => {
                        let (request, transcript) = items(&record);
                        let call =
                            Objections::answerRecordCall { provider, epoch, index, request, transcript };
                        let what = format!("show record {index} of epoch {epoch}");
                        self.sender.send(&what, objections, &call).await
                    }
                    Consent::Withheld => {
                        let shown = record.withheld();
                        let call = Objections::answerWithheldCall {
                            provider,
                            epoch,
                            index,
                            modelRoot: B256::from(*shown.receipt.receipt.model_root.as_bytes()),
                            consent: (&shown.proof).into(),
                        };
                        let what = format!("show that record {index} of epoch {epoch} is withheld");
                        self.sender.send(&what, objections, &call).await
                    }
                }
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
        let from = self.docket.entries().disputes.get(id).copied().unwrap_or(0);
        let case = Case { id: *id, from, stated: None, record };
        let library = Arc::clone(&self.library);
        let moved = disputes::move_on(&self.ledger, &self.sender, case, library, party).await?;
        Ok(moved.then_some(Event::Moved { dispute: *id }))
    }
}

/// Takes back a batch that is not on the ledger and can no longer be posted, with those after it: their receipts wait for a later epoch.
pub fn take_back<D: Disk>(builder: &mut Builder<D>, epoch: u64) -> Result<(), ProgressError> {
    let from = |builder: &Builder<D>| -> Vec<(u64, Progress)> {
        let batches = builder.batches().iter().filter(|entry| entry.batch.epoch >= epoch);
        batches.map(|entry| (entry.batch.epoch, entry.progress)).collect()
    };
    if from(builder).iter().any(|(_, progress)| *progress != Progress::Sealed) {
        builder.unposted(epoch)?;
    }
    from(builder).into_iter().rev().try_for_each(|(epoch, _)| builder.missed(epoch))
}

/// A duty in words.
pub(super) fn name(duty: &Duty) -> String {
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
