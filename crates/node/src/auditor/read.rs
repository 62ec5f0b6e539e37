//! Reading what an auditor's duties follow from: at one block of the chain, and from its journal.

use std::collections::BTreeSet;

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256, U256};
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Audits, Epochs, Objections, Registry, Vault};
use assay_ledger::docket::{DemandId, DisputeId};
use assay_ledger::ledger::Phase;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::told::Drawn;
use super::work::Audit;
use super::{
    AccusationView, Auditor, AuditorError, BatchId, BatchView, Bonds, Doubt, MemberPhase, MemberView, Other,
    Pressing, Revealed, SeatsView, View, WorkView,
};
use crate::disputes::{Standing, standing};
use crate::execution::Verdict;
use crate::sending::auditors_of;
use crate::settlement::{DisputeView, party};

/// Questions to the node that wait for their answers at the same time.
const READS_AT_ONCE: usize = 16;
/// States of an accusation, as `Audits.sol` numbers them.
const ACCUSED: u8 = 1;
const CLOSED: u8 = 3;
/// Epochs back for which batches are looked at: longer than any windows of sane parameters take.
const EPOCHS_BACK: u64 = 64;

/// Accusations by this auditor.
#[derive(Default)]
struct OwnAccusations {
    /// Whom it has accused in which batch, whatever came of it.
    once: BTreeSet<(BatchId, Address)>,
    /// Those that nobody has answered, with the last second for that.
    open: Vec<(B256, u64)>,
}

impl Auditor {
    /// Reads everything.
    pub(super) async fn read(&mut self) -> Result<View, AuditorError> {
        let header = self.ledger.client().latest().await?;
        let block = BlockId::from(header.hash);
        let at = self.ledger.parts().at.clone();
        let epoch = self.ledger.view(block, at.epochs, &Epochs::currentCall {}).await?;
        let vault =
            self.ledger.view(block, at.vault, &Vault::balanceOfCall { account: self.auditor }).await?;
        let stakes = self.ledger.parameters().stakes.clone();
        self.docket.forget_batches(epoch.saturating_sub(EPOCHS_BACK));
        let ids: Vec<BatchId> = self
            .docket
            .entries()
            .batches
            .iter()
            .map(|(epoch, provider)| BatchId { epoch: *epoch, provider: *provider })
            .filter(|id| !self.over.contains(id))
            .collect();
        let mut batches = Vec::with_capacity(ids.len());
        for id in ids {
            batches.extend(self.batch(block, header.timestamp, id).await?);
        }
        let own = self.accused(block, epoch).await?;
        for batch in &mut batches {
            // Who was right takes all there is to take with one accusation, and who was wrong should not go on.
            batch.work.doubts.retain(|doubt| !own.once.contains(&(batch.id, doubt.auditor)));
        }
        Ok(View {
            now: header.timestamp,
            block: header.number,
            seats: self.seats(block, epoch).await?,
            vault: u128::try_from(vault).unwrap_or(u128::MAX),
            bonds: Bonds {
                dispute: stakes.disputeBond.into(),
                accusation: stakes.accusationBond.into(),
                demand: stakes.demandBond.into(),
            },
            batches,
            demands: self.demands(block).await?,
            disputes: self.disputes().await?,
            accusations: self.accusations(block).await?,
            accused: own.open,
        })
    }

    /// Reads what must not wait.
    pub(super) async fn read_pressing(&mut self) -> Result<Pressing, AuditorError> {
        let header = self.ledger.client().latest().await?;
        let block = BlockId::from(header.hash);
        let at = self.ledger.parts().at.vault;
        let vault = self.ledger.view(block, at, &Vault::balanceOfCall { account: self.auditor }).await?;
        Ok(Pressing {
            now: header.timestamp,
            vault: u128::try_from(vault).unwrap_or(u128::MAX),
            accusation_bond: self.ledger.parameters().stakes.accusationBond.into(),
            disputes: self.disputes().await?,
            accusations: self.accusations(block).await?,
        })
    }

    /// A batch; nothing if there is none.
    async fn batch(
        &mut self,
        block: BlockId,
        now: u64,
        id: BatchId,
    ) -> Result<Option<BatchView>, AuditorError> {
        let at = self.ledger.parts().at.clone();
        let BatchId { epoch, provider } = id;
        let beacon = self.ledger.view(block, at.epochs, &Epochs::beaconOfCall { epoch }).await?;
        let phase = self.ledger.phase_at(epoch, now, beacon.number, beacon.fixedAt);
        let commit = u64::from(self.ledger.parameters().times.commitSeconds);
        let mut view = BatchView {
            id,
            phase,
            fixed_at: beacon.fixedAt,
            commit_until: beacon.fixedAt.saturating_add(commit),
            struck: false,
            members: vec![],
            absent: vec![],
            work: WorkView::default(),
        };
        if beacon.fixedAt == 0 {
            return Ok(Some(view));
        }
        if self.audits.get(&id).is_none_or(|audit| audit.beacon != beacon.value) {
            let batch = self.ledger.view(block, at.epochs, &Epochs::batchOfCall { provider, epoch }).await?;
            if batch.state == 0 {
                return Ok(None);
            }
            let auditors = auditors_of(&self.ledger, provider, epoch, batch.panel).await?;
            let mine = (0u8..).zip(&auditors).filter(|(_, auditor)| **auditor == self.auditor);
            let members: Vec<u8> = mine.map(|(member, _)| member).collect();
            let panel = batch.panel;
            let work = if members.is_empty() { super::Work::default() } else { self.journal.read(id)? };
            let work = work.under(beacon.value);
            let drawn = work.drawn.iter().flatten();
            let drawn =
                drawn.map(|(s, members)| (*s, Drawn { leaf: None, members: members.clone() })).collect();
            let audit = Audit {
                batch,
                beacon: beacon.value,
                panel,
                members,
                leaves: None,
                drawn,
                receipts: Default::default(),
                refused: Default::default(),
                lacking: Default::default(),
                revealed: None,
                undoubted: Default::default(),
                work,
            };
            self.audits.insert(id, audit);
        }
        let Some(audit) = self.audits.get(&id) else { return Ok(None) };
        if audit.members.is_empty() {
            return Ok(Some(view));
        }
        let node = self.ledger.view(block, at.registry, &Registry::isStruckCall { node: provider }).await?;
        view.struck = node;
        let mut others = Vec::new();
        for member in 0..audit.panel {
            let own = audit.members.contains(&member);
            // What others have revealed is of interest when their time is over.
            if !own && !matches!(phase, Phase::Objecting | Phase::Final) {
                continue;
            }
            let call = Audits::memberOfCall { provider, epoch, member: U256::from(member) };
            let known = self.ledger.view(block, at.audits, &call).await?;
            let phase = MemberPhase::numbered(known.phase);
            if own {
                let journalled = audit.work.commitments.contains_key(&member);
                view.members.push(MemberView { member, phase, journalled, accusations: known.accusations });
            } else if matches!(phase, MemberPhase::None | MemberPhase::Committed) {
                view.absent.push(member);
            } else if phase == MemberPhase::Revealed && known.auditor != self.auditor {
                others.push(Other { member, auditor: known.auditor, root: known.root });
            }
        }
        view.work = work_view(audit);
        if phase == Phase::Objecting && !view.struck {
            view.work.doubts = self.doubts(id, &others, beacon.number).await?;
        }
        Ok(Some(view))
    }

    /// Digests of others that are to be doubted. What they revealed is read once, and again if a reorganisation has brought another.
    async fn doubts(&mut self, id: BatchId, others: &[Other], from: u64) -> Result<Vec<Doubt>, AuditorError> {
        let BatchId { epoch, provider } = id;
        let known = |audit: &Audit| audit.revealed.as_ref().is_some_and(|revealed| revealed.has(others));
        if !others.is_empty() && !self.audits.get(&id).is_none_or(known) {
            let events = self.ledger.revealed(provider, epoch, from).await?;
            let demanders = self.ledger.demanders(provider, epoch, from).await?;
            if let Some(audit) = self.audits.get_mut(&id) {
                audit.revealed = Some(Revealed::of(&events, demanders));
            }
        }
        let Some(audit) = self.audits.get(&id) else { return Ok(vec![]) };
        let Some(revealed) = &audit.revealed else { return Ok(vec![]) };
        let done = audit.work.done.iter().filter(|(sequence, _)| !audit.undoubted.contains(sequence));
        let done = done.map(|(sequence, done)| (*sequence, done.clone())).collect();
        Ok(revealed.doubts(&audit.draw(provider, &self.ledger.parameters().rates), &done, others))
    }

    /// What this auditor has accused others of.
    async fn accused(&mut self, block: BlockId, epoch: u64) -> Result<OwnAccusations, AuditorError> {
        let at = self.ledger.parts().at.audits;
        let named: Vec<B256> = self.docket.entries().accusations.keys().copied().collect();
        let mut own = OwnAccusations::default();
        for id in named {
            let about = self.ledger.view(block, at, &Audits::accusationOfCall { id }).await?;
            if about.accuser != self.auditor || about.state == 0 {
                continue;
            }
            if about.epoch < epoch.saturating_sub(EPOCHS_BACK) && about.state == CLOSED {
                self.docket.forget_accusation(&id);
                continue;
            }
            own.once.insert((BatchId { epoch: about.epoch, provider: about.provider }, about.accused));
            if about.state == ACCUSED {
                own.open.push((id, about.until.to()));
            }
        }
        Ok(own)
    }

    /// The seats that this auditor has and has not left, counted once an epoch.
    async fn seats(&mut self, block: BlockId, epoch: u64) -> Result<SeatsView, AuditorError> {
        let at = self.ledger.parts().at.clone();
        let node = self.ledger.view(block, at.registry, &Registry::nodeOfCall { node: self.auditor }).await?;
        let have = match self.seats {
            Some((of, have)) if of == epoch => have,
            _ => {
                let slots = self.ledger.view(block, at.audits, &Audits::slotCountCall {}).await?;
                let slots = u64::try_from(slots).unwrap_or(0);
                let this = &*self;
                let read = stream::iter(0..slots).map(async |slot| {
                    let call = Audits::seatOfCall { slot: U256::from(slot) };
                    let seat = this.ledger.view(block, at.audits, &call).await?;
                    Ok::<_, ClientError>(seat.auditor == this.auditor && seat.until.to::<u64>() == 0)
                });
                let found: Vec<bool> = read.buffered(READS_AT_ONCE).try_collect().await?;
                let have = found.into_iter().filter(|own| *own).count() as u64;
                self.seats = Some((epoch, have));
                have
            }
        };
        // A struck node takes no seats.
        let wanted = if node.struck { 0 } else { self.options.seats };
        Ok(SeatsView {
            have,
            wanted,
            free: node.stake.saturating_sub(node.reserved),
            each: self.ledger.parameters().stakes.seatStake.into(),
        })
    }

    async fn demands(&mut self, block: BlockId) -> Result<Vec<(DemandId, u64)>, AuditorError> {
        let at = self.ledger.parts().at.objections;
        let asked: Vec<DemandId> =
            self.docket.entries().demands.keys().filter(|id| id.provider != self.auditor).copied().collect();
        let mut open = Vec::new();
        for id in asked {
            let kind = id.kind.number();
            let call =
                Objections::demandKeyCall { provider: id.provider, epoch: id.epoch, index: id.index, kind };
            let key = self.ledger.view(block, at, &call).await?;
            let demand = self.ledger.view(block, at, &Objections::demandOfCall { key }).await?;
            let until = demand.until.to::<u64>();
            // Names stay until their batch is over: what was shown is read from the block that says so.
            if until != 0 && demand.from == self.auditor {
                open.push((id, until));
            }
        }
        Ok(open)
    }

    async fn disputes(&self) -> Result<Vec<DisputeView>, AuditorError> {
        let mut found = Vec::new();
        let own = |id: &&DisputeId| id.challenger == self.auditor || id.defender == self.auditor;
        for id in self.docket.entries().disputes.keys().filter(own) {
            let standing = standing(&self.ledger, id).await?;
            if standing != Standing::None {
                found.push(DisputeView { id: *id, party: party(id, self.auditor), standing });
            }
        }
        Ok(found)
    }

    async fn accusations(&mut self, block: BlockId) -> Result<Vec<AccusationView>, AuditorError> {
        let at = self.ledger.parts().at.audits;
        let named: Vec<B256> = self.docket.entries().accusations.keys().copied().collect();
        let mut open = Vec::new();
        for id in named {
            let about = self.ledger.view(block, at, &Audits::accusationOfCall { id }).await?;
            if about.state == CLOSED && about.accuser != self.auditor {
                self.docket.forget_accusation(&id);
                continue;
            }
            if about.state != ACCUSED || about.accused != self.auditor {
                continue;
            }
            let batch = BatchId { epoch: about.epoch, provider: about.provider };
            let of = |work: &super::Work| work.done.get(&about.sequence).and_then(|done| done.trace);
            let own = match self.audits.get(&batch) {
                Some(audit) => of(&audit.work),
                None => of(&self.journal.read(batch)?),
            };
            let stated_is_own = own.is_some_and(|own| *own.as_bytes() == about.traceRoot.0);
            open.push(AccusationView { id, until: about.until.to(), stated_is_own });
        }
        Ok(open)
    }
}

fn work_view(audit: &Audit) -> WorkView {
    let is_open = |sequence: &u64| !audit.work.done.contains_key(sequence);
    let left = audit.pending().filter(|s| !audit.refused.contains(s) && !audit.lacking.contains_key(s));
    let wrong = audit.work.done.iter().filter(|(_, done)| done.verdict == Verdict::Wrong);
    let wrong = wrong.map(|(sequence, _)| *sequence).filter(|s| !audit.work.disputed.contains(s));
    WorkView {
        known: audit.work.drawn.is_some(),
        left: left.count(),
        waiting: audit.refused.iter().filter(|s| is_open(s)).count(),
        refused: audit.refusals(),
        lacking: audit.lacking.len(),
        wrong: wrong.collect(),
        disputed: audit.work.disputed.len(),
        demanded: audit.work.demanded.len(),
        doubts: vec![],
    }
}

/// Whether an epoch's digests can still be asked for.
pub(super) fn is_audited(phase: Phase) -> bool {
    matches!(phase, Phase::Committing | Phase::Revealing | Phase::Objecting)
}
