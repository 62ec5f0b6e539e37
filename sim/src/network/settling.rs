//! A provider's settlement: what stands on the ledger and on its disk is read, `assay_node::settlement::due` decides, and one thing after the other is done.
//!
//! A duty that is a transaction is over when that is mined and stays; then comes the next one of the same reading, as in the daemon.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256, Bytes};
use alloy_sol_types::SolCall;
use assay_core::id::ModelRoot;
use assay_ledger::contracts::{Channels, Disputes, Epochs, Objections, Registry, b256};
use assay_ledger::docket::{DemandId, DemandKind, DisputeId};
use assay_ledger::epochs::{Listing, Posting, Progress, Terms};
use assay_ledger::ledger::Phase;
use assay_ledger::posting;
use assay_node::disputes::{Standing, name_of};
use assay_node::settlement::{
    BatchView, ChannelView, DemandView, Described, DisputeView, Duty, EpochView, NodeView, OwnView, View,
    due, party, take_back,
};
use assay_verify::dispute::Party;

use super::chain::{Chain, TxId};
use super::model::By;
use super::moves::Playing;
use super::provider::{Panel, Plan, Provider};
use super::wire::Who;
use super::{Held, Mutant, World, hosts, model};

/// Epochs before the running one of which some may still be posted.
const RECENT: u64 = 1;

/// Stages of a dispute, as the contract numbers them.
const TRACE: u8 = 1;
const DIGEST: u8 = 7;
const PICK_NODE: u8 = 8;
const PICK_NUMBER: u8 = 10;
const OVER: u8 = 11;

/// Where a dispute stands.
pub(super) fn standing(chain: &mut Chain, id: &DisputeId) -> Standing {
    let call = Disputes::disputeOfCall { receipt: id.name, challenger: id.challenger, defender: id.defender };
    let walk = chain.read(chain.parts.at.disputes, &call).walk;
    let until = walk.deadline.to::<u64>();
    match walk.stage {
        TRACE..=DIGEST => Standing::Turn { of: Party::Defender, until },
        PICK_NODE..=PICK_NUMBER => Standing::Turn { of: Party::Challenger, until },
        OVER => Standing::Over { winner: if walk.rows == 1 { Party::Challenger } else { Party::Defender } },
        _ => Standing::None,
    }
}

/// When a demand's answer is due, and whose demand it is; 0 if it is not open.
pub(super) fn demand(chain: &mut Chain, id: &DemandId) -> (u64, Address) {
    let at = chain.parts.at.objections;
    let DemandId { provider, epoch, index, kind } = *id;
    let key = chain.read(at, &Objections::demandKeyCall { provider, epoch, index, kind: kind.number() });
    let found = chain.read(at, &Objections::demandOfCall { key });
    (found.until.to(), found.from)
}

/// Whose seats were drawn for a panel.
pub(super) fn auditors_of(chain: &mut Chain, provider: Address, epoch: u64, panel: u8) -> Vec<Address> {
    let at = chain.parts.at.audits;
    let of = |member: u8| {
        let member = alloy_primitives::U256::from(member);
        chain.read(at, &assay_ledger::contracts::Audits::auditorOfCall { provider, epoch, member })
    };
    (0..panel).map(of).collect()
}

/// The model's entry, as it stands.
fn listings(chain: &mut Chain) -> BTreeMap<ModelRoot, Listing> {
    let owner = hosts::author();
    let call = Registry::royaltyOfCall { modelRoot: B256::from(*model::root().as_bytes()), owner };
    let found = chain.read(chain.parts.at.registry, &call);
    let listing = Listing { owner, royalty_ppm: found.royaltyPpm };
    found.listed.then_some((model::root(), listing)).into_iter().collect()
}

fn is_audited(phase: Phase) -> bool {
    matches!(phase, Phase::Committing | Phase::Revealing | Phase::Objecting)
}

impl World<'_> {
    pub(super) fn provider_round(&mut self, i: usize) -> Held {
        let who = Who::Provider(i);
        self.provider_looks(i);
        if !self.is_clear(who) {
            return Ok(());
        }
        let (chain, p) = (&mut self.chain, &mut self.providers[i]);
        p.doing = None;
        p.feed();
        p.hear(chain);
        let view = p.read(chain);
        p.duties = due(&view, &Described::default()).into();
        self.settle_on(i)
    }

    /// Goes on with what is due until something has to be waited for.
    fn settle_on(&mut self, i: usize) -> Held {
        while let Some(duty) = self.providers[i].duties.pop_front() {
            if self.do_duty(i, &duty)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does a duty. Whether a transaction is to be waited for.
    fn do_duty(&mut self, i: usize, duty: &Duty) -> Result<bool, super::Wrong> {
        let who = Who::Provider(i);
        let moved = match duty {
            Duty::Move(id, party) => self.provider_moves(i, *id, *party),
            _ => None,
        };
        let (chain, p) = (&mut self.chain, &mut self.providers[i]);
        let at = chain.parts.at.clone();
        let provider = p.actor.address;
        let call: Option<(Address, Vec<u8>)> = match duty {
            Duty::Answer(id) if p.plan != Plan::ShowsNothing => {
                p.answer(id).map(|data| (at.objections, data))
            }
            Duty::Answer(_) => None,
            Duty::Move(..) => moved.map(|data| (at.disputes, data)),
            Duty::TimeOut(id) => {
                let DisputeId { name: receipt, challenger, defender } = *id;
                Some((at.disputes, Disputes::timeoutCall { receipt, challenger, defender }.abi_encode()))
            }
            Duty::Claim(channels) => {
                let mut claims = Vec::new();
                for id in channels {
                    let Some(claim) = p.claims.get(id) else { continue };
                    let channel = chain.read(at.channels, &Channels::channelOfCall { id: *id });
                    let total = claim.totalClaimed.min(channel.balance.into());
                    if total > u128::from(channel.claimed) {
                        claims.push(Channels::VoucherClaim { totalClaimed: total, ..claim.clone() });
                    }
                }
                let some = !claims.is_empty();
                some.then(|| (at.channels, Channels::claimCall { claims }.abi_encode()))
            }
            Duty::SettleIncome => {
                Some((at.channels, Channels::settleCall { receiver: provider }.abi_encode()))
            }
            Duty::Missed(epoch) => {
                let builder = p.builder.as_mut().expect("it runs");
                take_back(builder, *epoch).expect("what is not on the ledger can be taken back");
                None
            }
            Duty::Post(epoch) => p.post(chain, *epoch).map(|data| (at.epochs, data)),
            Duty::Close(epoch) => Some((at.epochs, Epochs::closeCall { epoch: *epoch }.abi_encode())),
            Duty::FixBeacon(epoch) => Some((at.epochs, chain.fix_beacon(*epoch).abi_encode())),
            Duty::Settle(epoch) => {
                Some((at.epochs, Epochs::settleCall { provider, epoch: *epoch }.abi_encode()))
            }
            Duty::Release(epoch, bit) => p.release(chain, *epoch, *bit).map(|data| (at.epochs, data)),
            Duty::Describe => None,
            Duty::Heartbeat => Some((at.registry, Registry::heartbeatCall { node: provider }.abi_encode())),
        };
        let Some((to, data)) = call else { return Ok(false) };
        let what = format!("{duty:?}");
        self.tell(who, || format!("sends {what}"));
        let twice = self.options.mutant == Some(Mutant::PostsTwice) && matches!(duty, Duty::Post(_));
        let id = self.send(who, provider, to, data.clone(), what.clone());
        if twice {
            self.send(who, provider, to, data, what);
        }
        self.providers[i].doing = Some((id, duty.clone()));
        Ok(true)
    }

    /// A provider's next move in a dispute about what it signed.
    fn provider_moves(&mut self, i: usize, id: DisputeId, party: Party) -> Option<Vec<u8>> {
        let p = &self.providers[i];
        let from = p.entries.disputes.get(&id).copied().unwrap_or(0);
        let record = p.store.values().find(|record| name_of(record) == id.name).cloned()?;
        let (by, moves_max) = match (p.plan, self.options.mutant) {
            (Plan::Honest, Some(Mutant::DefendsWrong)) => (By::Skims, usize::MAX),
            (Plan::Honest, Some(Mutant::DefendsNothing)) | (Plan::ShowsNothing, _) => (By::Asked, 0),
            (Plan::Honest | Plan::LeavesOut, _) => (By::Asked, usize::MAX),
            // Who executed another model than it says has no trace of that one: its daemon defends the receipt as any other.
            (Plan::Lies { by: By::Cheap, moves_max }, _) => (By::Asked, moves_max),
            (Plan::Lies { by, moves_max }, _) => (by, moves_max),
        };
        let who = Who::Provider(i);
        self.next_move(Playing { who, id, from, party, stated: None, record: &record, by, moves_max })
    }

    pub(super) fn provider_confirmed(&mut self, i: usize, id: TxId) -> Held {
        let p = &mut self.providers[i];
        let Some((_, duty)) = p.doing.take_if(|(doing, _)| *doing == id) else { return Ok(()) };
        if let Duty::Post(epoch) = duty
            && !self.chain.txs[id].is_refused()
        {
            let block = self.chain.number();
            p.note_posted(epoch, block);
        }
        // What it sent with it is waited for with it.
        self.settle_on(i)
    }
}

impl Provider {
    fn address(&self) -> Address {
        self.actor.address
    }

    /// Gives the builder the receipts that it does not have.
    fn feed(&mut self) {
        let in_flight = self.in_flight();
        let builder = self.builder.as_mut().expect("it runs");
        let new: Vec<_> = self.store.range(self.fed..).map(|(_, record)| record.receipt.clone()).collect();
        builder.append_many(&new).expect("own receipts have a place");
        self.fed = in_flight.max(self.fed);
    }

    /// Reads names out of the log.
    fn hear(&mut self, chain: &Chain) {
        let new = chain.heard.get(self.heard..).unwrap_or_default();
        new.iter().for_each(|logged| self.entries.take(self.actor.address, logged.block, &logged.log));
        self.heard = chain.heard.len();
    }

    fn note_posted(&mut self, epoch: u64, block: u64) {
        let posting = Posting { block, transaction: assay_core::id::Hash::ZERO };
        let builder = self.builder.as_mut().expect("it runs");
        builder.posted(epoch, posting).expect("what is posted was sealed");
    }

    /// Reads everything.
    fn read(&mut self, chain: &mut Chain) -> View {
        let at = chain.parts.at.clone();
        let provider = self.address();
        let node = chain.read(at.registry, &Registry::nodeOfCall { node: provider });
        let account = chain.read(at.epochs, &Epochs::accountOfCall { provider });
        let unsettled = chain.read(at.channels, &Channels::unsettledOfCall { receiver: provider });
        let epoch = chain.epoch();
        if self.claimed_in != epoch {
            self.claimed_in = epoch;
            self.claimed.clear();
        }
        let last_posted = u64::from(account.lastPosted).checked_sub(1);
        let batches = self.batches(chain, last_posted, account.lastSettled);
        let own = self.own(&batches);
        let mut wanted: BTreeSet<u64> = batches.iter().filter(|b| !b.settled).map(|b| b.epoch).collect();
        wanted.extend(own.sealed);
        wanted.extend(epoch.saturating_sub(RECENT)..epoch);
        let epochs: Vec<EpochView> =
            wanted.into_iter().map(|epoch| EpochView { epoch, phase: chain.beacon(epoch).2 }).collect();
        self.see(chain, &epochs);
        View {
            now: chain.time_s(),
            block: chain.number(),
            epoch_began: chain.p.times.genesis + epoch * u64::from(chain.p.times.epochSeconds),
            node: NodeView {
                struck: node.struck,
                heartbeat: node.heartbeat.to(),
                endpoint: node.endpoint,
                price_list: node.priceList,
            },
            unsettled: unsettled.saturating_to(),
            last_posted,
            last_settled: u64::from(account.lastSettled).checked_sub(1),
            channels: self.channels(chain),
            epochs,
            batches,
            demands: self.demands(chain),
            disputes: self.disputes(chain),
            own,
        }
    }

    fn channels(&mut self, chain: &mut Chain) -> Vec<ChannelView> {
        let at = chain.parts.at.channels;
        let mut found = Vec::new();
        for (id, claim) in &self.claims {
            let owed = claim.totalClaimed;
            if self.claimed.get(id).is_some_and(|claimed| owed <= *claimed) {
                continue;
            }
            let channel = chain.read(at, &Channels::channelOfCall { id: *id });
            if owed <= channel.claimed.into() {
                self.claimed.insert(*id, channel.claimed.into());
                continue;
            }
            found.push(ChannelView {
                id: *id,
                owed,
                balance: channel.balance.into(),
                claimed: channel.claimed.into(),
                leaving: channel.leavesAt.to::<u64>() != 0,
            });
        }
        found
    }

    fn batches(&mut self, chain: &mut Chain, last_posted: Option<u64>, last_settled: u32) -> Vec<BatchView> {
        let provider = self.address();
        let mut found = Vec::new();
        let mut next = last_posted;
        while let Some(epoch) = next.filter(|epoch| *epoch >= u64::from(last_settled)) {
            let batch = chain.batch(provider, epoch);
            next = u64::from(batch.previous).checked_sub(1).filter(|previous| *previous < epoch);
            found.push((epoch, batch));
        }
        let builder = self.builder.as_ref().expect("it runs");
        let sealed = builder.batches().iter().filter(|entry| entry.progress != Progress::Sealed);
        let older: Vec<u64> = sealed
            .map(|entry| entry.batch.epoch)
            .filter(|epoch| !self.done.contains(epoch) && !found.iter().any(|(of, _)| of == epoch))
            .collect();
        found.extend(older.into_iter().map(|epoch| (epoch, chain.batch(provider, epoch))));
        found.sort_by_key(|(epoch, _)| *epoch);
        let mut views = Vec::new();
        for (epoch, batch) in found.into_iter().filter(|(_, batch)| batch.state != 0) {
            let settled = batch.state == 2;
            let end = chain.read(chain.parts.at.epochs, &Epochs::finalAtCall { epoch });
            let end = u64::try_from(end).unwrap_or(u64::MAX);
            let tree = self.share_tree(chain, epoch);
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
        views
    }

    fn note_settled(&mut self, epoch: u64) {
        let builder = self.builder.as_mut().expect("it runs");
        let posted = builder.batches().iter();
        let mut posted =
            posted.filter(|e| e.batch.epoch == epoch && matches!(e.progress, Progress::Posted(_)));
        if posted.next().is_some() {
            // One before it may not have been heard of yet.
            let _ = builder.settled(epoch);
        }
    }

    fn own(&self, batches: &[BatchView]) -> OwnView {
        let builder = self.builder.as_ref().expect("it runs");
        let from = builder.next().unwrap_or(0);
        let first =
            self.store.range(from..self.in_flight().max(from)).next().filter(|_| builder.waiting() > 0);
        OwnView::of(builder, batches, first.map(|(_, record)| record.receipt.receipt.epoch))
    }

    fn demands(&mut self, chain: &mut Chain) -> Vec<DemandView> {
        let asked: Vec<DemandId> =
            self.entries.demands.keys().filter(|id| id.provider == self.address()).copied().collect();
        let mut open = Vec::new();
        for id in asked {
            match demand(chain, &id).0 {
                0 => {
                    self.entries.demands.remove(&id);
                }
                until => open.push(DemandView { id, until }),
            }
        }
        open
    }

    fn disputes(&self, chain: &mut Chain) -> Vec<DisputeView> {
        let me = self.address();
        let of = self.entries.disputes.keys().filter(|id| id.defender == me);
        of.map(|id| DisputeView { id: *id, party: party(id, me), standing: standing(chain, id) })
            .filter(|view| view.standing != Standing::None)
            .collect()
    }

    fn see(&mut self, chain: &mut Chain, epochs: &[EpochView]) {
        self.panels.retain(|epoch, _| epochs.iter().any(|e| e.epoch == *epoch && is_audited(e.phase)));
        let provider = self.address();
        for EpochView { epoch, .. } in epochs.iter().filter(|e| is_audited(e.phase)) {
            let batch = chain.batch(provider, *epoch);
            if self.panels.contains_key(epoch) || batch.state == 0 {
                continue;
            }
            let beacon = chain.beacon(*epoch).0;
            let auditors = auditors_of(chain, provider, *epoch, batch.panel);
            self.panels.insert(*epoch, Panel { beacon, auditors });
        }
    }

    fn share_tree(&self, chain: &Chain, epoch: u64) -> Option<assay_ledger::epochs::ShareTree> {
        let builder = self.builder.as_ref().expect("it runs");
        let batch = &builder.batches().iter().find(|entry| entry.batch.epoch == epoch)?.batch;
        Some(batch.share_tree(self.listings.get(&epoch)?, chain.p.split.hostsPpm))
    }

    /// The bytes of the posting of an epoch, if it is not on the ledger.
    fn post(&mut self, chain: &mut Chain, epoch: u64) -> Option<Vec<u8>> {
        let at = chain.parts.at.clone();
        let (provider, in_flight) = (self.address(), self.in_flight());
        let account = chain.read(at.epochs, &Epochs::accountOfCall { provider });
        let there = chain.batch(provider, epoch);
        let builder = self.builder.as_mut().expect("it runs");
        let sealed = builder.batches().iter().find(|b| b.batch.epoch == epoch).cloned();
        if there.root == B256::ZERO && sealed.as_ref().is_some_and(|s| s.progress != Progress::Sealed) {
            builder.unposted(epoch).expect("what was undone is posted again");
        }
        let batch = match sealed {
            Some(sealed) => sealed.batch,
            None => {
                let next = u64::try_from(account.nextSequence).unwrap_or(u64::MAX);
                let total_max = u64::try_from(account.pot).unwrap_or(u64::MAX);
                let stake = chain.read(at.registry, &Registry::stakeOfCall { node: provider });
                let backing = u64::try_from(stake).unwrap_or(u64::MAX);
                let (first, in_flight) = (next.checked_sub(1), Some(in_flight));
                let terms = Terms { first, in_flight, total_max, ..Terms::default() };
                posting::seal(builder, epoch, terms, &chain.p, backing).ok()?
            }
        };
        if there.root == b256(&batch.root) {
            let stands =
                builder.batches().iter().any(|b| b.batch.epoch == epoch && b.progress != Progress::Sealed);
            if !stands {
                let block = chain.number();
                self.note_posted(epoch, block);
            }
            return None;
        }
        let listings = listings(chain);
        self.listings.insert(epoch, listings.clone());
        Some(batch.post_call(self.identity.provider, &listings).abi_encode())
    }

    fn release(&self, chain: &Chain, epoch: u64, bit: u8) -> Option<Vec<u8>> {
        let tree = self.share_tree(chain, epoch)?;
        let model = ModelRoot::from_bytes(tree.leaves.get(usize::from(bit))?.modelRoot.0);
        Some(tree.release_call(self.identity.provider, epoch, &model)?.abi_encode())
    }

    /// The bytes that show what a demand asks for.
    fn answer(&self, id: &DemandId) -> Option<Vec<u8>> {
        let DemandId { provider, epoch, index, kind } = *id;
        let builder = self.builder.as_ref()?;
        let batch = &builder.batches().iter().find(|entry| entry.batch.epoch == epoch)?.batch;
        let sequence = batch.first.checked_add(index)?;
        let record = self.store.get(&sequence);
        Some(match kind {
            DemandKind::Leaf => {
                let shares = batch.share_tree(self.listings.get(&epoch)?, self.hosts_ppm());
                let opening = builder.opening(sequence).ok()?;
                let opening = opening.answer(record.map(|record| &record.receipt), &shares).ok()?;
                Objections::answerLeafCall { provider, epoch, index, opening }.abi_encode()
            }
            DemandKind::Record => {
                let record = record?;
                let bytes = |items: Vec<Vec<u8>>| items.into_iter().map(Bytes::from).collect();
                let (request, transcript) =
                    (bytes(record.request.items().to_vec()), bytes(record.transcript.items()));
                Objections::answerRecordCall { provider, epoch, index, request, transcript }.abi_encode()
            }
        })
    }

    fn hosts_ppm(&self) -> u32 {
        super::chain::parameters().split.hostsPpm
    }
}
