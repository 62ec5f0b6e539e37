//! Those who doubt digests: a canary, who knows what some receipts should be and finds digests that are not of them, and a griefer, who doubts what is right.
//!
//! An accuser that states a right trace root is acquitted by the opened digest or wins by the accused's silence; one that states a wrong one is contested, and has to defend
//! the execution of another prompt. The griefer disputes right receipts, too. It plays what it began move by move, to the end or until it has had enough, and loses.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolCall;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_core::receipt::Receipt;
use assay_ledger::contracts::{Audits, Disputes, Epochs, b256};
use assay_ledger::docket::{DisputeId, Entries};
use assay_ledger::ledger::Phase;
use assay_node::auditor::Draw;
use assay_node::disputes::Standing;
use assay_node::settlement::party;

use super::auditor;
use super::chain::{Actor, Chain};
use super::model::{self, By};
use super::moves::Playing;
use super::provider::{self, moves_max};
use super::settling::standing;
use super::wire::Who;
use super::{Held, Options, World};
use crate::random::Random;

/// False accusations of a griefer, and right receipts that it disputes.
const GRIEFS: usize = 2;
const DISPUTES: usize = 2;
/// Dollars that an accuser has for bonds.
const PURSE: u64 = 400;

/// Somebody who doubts.
pub(super) struct Accuser {
    pub(super) who: Who,
    pub(super) actor: Actor,
    heard: usize,
    entries: Entries,
    /// For how many moves it goes on in a dispute.
    moves_max: usize,
    revealed: Vec<Audits::Revealed>,
    posted: Vec<Epochs::Posted>,
    doubted: BTreeSet<(u64, B256, u8)>,
    lapsed: BTreeSet<B256>,
    griefs: usize,
    disputes: usize,
}

/// All accusers, with money for bonds.
pub(super) fn all(chain: &mut Chain, options: &Options, random: &mut Random) -> Vec<Accuser> {
    let all = if options.liars { vec![Who::Canary, Who::Griefer] } else { vec![] };
    let accuser = |who: Who| {
        let actor = Actor::named(&who.to_string());
        chain.rich(actor.address, PURSE);
        Accuser {
            who,
            actor,
            heard: 0,
            entries: Entries::default(),
            moves_max: moves_max(random),
            revealed: vec![],
            posted: vec![],
            doubted: BTreeSet::new(),
            lapsed: BTreeSet::new(),
            griefs: 0,
            disputes: 0,
        }
    };
    all.into_iter().map(accuser).collect()
}

impl World<'_> {
    pub(super) fn accuser_round(&mut self, who: Who) -> Held {
        let Some(i) = self.accusers.iter().position(|accuser| accuser.who == who) else { return Ok(()) };
        if !self.is_clear(who) {
            return Ok(());
        }
        let a = &mut self.accusers[i];
        let new = self.chain.heard.get(a.heard..).unwrap_or_default();
        a.revealed.extend(new.iter().filter_map(|logged| logged.as_event::<Audits::Revealed>()));
        let accused: Vec<B256> = new
            .iter()
            .filter_map(|logged| logged.as_event::<Audits::Accused>())
            .filter(|e| e.accuser == a.actor.address)
            .map(|e| e.id)
            .collect();
        a.lapsed.extend(accused);
        if who == Who::Griefer {
            a.posted.extend(new.iter().filter_map(|logged| logged.as_event::<Epochs::Posted>()));
        }
        new.iter().for_each(|logged| a.entries.take(a.actor.address, logged.block, &logged.log));
        a.heard = self.chain.heard.len();
        self.play_on(i);
        self.lapse(i);
        for e in std::mem::take(&mut self.accusers[i].posted) {
            self.dispute(i, e.provider, e.epoch);
        }
        let revealed = std::mem::take(&mut self.accusers[i].revealed);
        let (now, later): (Vec<_>, Vec<_>) =
            revealed.into_iter().partition(|e| self.chain.beacon(e.epoch).2 != Phase::Revealing);
        self.accusers[i].revealed = later;
        for e in now {
            self.doubt(i, &e);
        }
        Ok(())
    }

    /// Ends accusations of its own to which there was no answer.
    fn lapse(&mut self, i: usize) {
        let at = self.chain.parts.at.audits;
        let (who, me) = (self.accusers[i].who, self.accusers[i].actor.address);
        for id in self.accusers[i].lapsed.clone() {
            let about = self.chain.read(at, &Audits::accusationOfCall { id });
            if about.state == 1 && self.chain.time_s() > about.until.to::<u64>() {
                self.tell(who, || format!("sends Lapse({id})"));
                self.send(who, me, at, Audits::lapseCall { id }.abi_encode(), format!("Lapse({id})"));
            } else if about.state == 3 {
                self.accusers[i].lapsed.remove(&id);
            }
        }
    }

    fn doubt(&mut self, i: usize, e: &Audits::Revealed) {
        let (who, me) = (self.accusers[i].who, self.accusers[i].actor.address);
        let at = self.chain.parts.at.audits;
        let member = u8::try_from(e.member).unwrap_or(u8::MAX);
        let provider = self.providers.iter().position(|p| p.actor.address == e.provider);
        let Some(p) = provider.filter(|p| self.providers[*p].plan == provider::Plan::Honest) else { return };
        let call = Audits::memberOfCall { provider: e.provider, epoch: e.epoch, member: e.member };
        let known = self.chain.read(at, &call);
        let accused = self.auditors.iter().find(|a| a.actor.address == known.auditor);
        let Some(plan) = accused.map(|a| a.plan) else { return };
        let wanted = if who == Who::Canary { auditor::Plan::Lazy } else { auditor::Plan::Honest };
        if plan != wanted || known.phase != 2 || (who == Who::Griefer && self.accusers[i].griefs >= GRIEFS) {
            return;
        }
        let batch = self.chain.batch(e.provider, e.epoch);
        let beacon = self.chain.beacon(e.epoch).0;
        let rates = self.chain.p.rates.clone();
        let draw = Draw { provider: e.provider, beacon, batch: &batch, rates: &rates, members: &[member] };
        let records = &self.providers[p].store;
        let end = batch.first + u64::from(batch.count);
        let drawn = records
            .range(batch.first..end)
            .find(|(n, record)| !draw.members_for(**n, record.receipt.receipt.fee_micro_usd).is_empty());
        let Some((number, record)) = drawn else { return };
        let mark = (e.epoch, b256(&Hash::from_bytes(e.provider.into_word().0)), member);
        if !self.accusers[i].doubted.insert(mark) {
            return;
        }
        let by = if who == Who::Canary { By::Asked } else { By::Skims };
        let trace = model::trace(by, &record.request, &record.transcript);
        let Some(proof) = self.place(p, &batch, *number) else { return };
        let receipt: &Receipt = &record.receipt.receipt;
        let (receipt, proof) = (receipt.into(), (&proof).into());
        let (epoch, number) = (e.epoch, *number);
        let call = Audits::accuseCall {
            epoch,
            member: U256::from(member),
            receipt,
            proof,
            consent: (&record.request.consent_proof()).into(),
            traceRoot: b256(&trace),
        };
        self.accusers[i].griefs += 1;
        let what = format!("Accuse(provider={p}, epoch={epoch}, member={member}, sequence={number})");
        self.tell(who, || format!("sends {what}"));
        self.send(who, me, at, call.abi_encode(), what);
    }

    /// Where a receipt stands in a batch.
    fn place(&self, provider: usize, batch: &Epochs::Batch, number: u64) -> Option<merkle::Proof> {
        let records = &self.providers[provider].store;
        let leaf = |n: u64| {
            let hash =
                records.get(&n).map_or(Hash::ZERO, |r| r.receipt.receipt.signing_hash(&self.chain.receipts));
            merkle::leaf(hash.as_bytes())
        };
        let leaves: Vec<Hash> = (batch.first..batch.first + u64::from(batch.count)).map(leaf).collect();
        merkle::prove(&leaves, usize::try_from(number.checked_sub(batch.first)?).ok()?)
    }

    /// Says that the first receipt of an honest provider's batch is wrong.
    fn dispute(&mut self, i: usize, provider: Address, epoch: u64) {
        let (who, me) = (self.accusers[i].who, self.accusers[i].actor.address);
        let found = self.providers.iter().position(|p| p.actor.address == provider);
        let Some(p) = found.filter(|p| self.providers[*p].plan == provider::Plan::Honest) else { return };
        if self.accusers[i].disputes >= DISPUTES {
            return;
        }
        let batch = self.chain.batch(provider, epoch);
        let end = batch.first + u64::from(batch.count);
        let first = self.providers[p].store.range(batch.first..end).next();
        let Some((number, record)) = first.map(|(number, record)| (*number, record.clone())) else { return };
        let Some(proof) = self.place(p, &batch, number) else { return };
        let merkle::Proof { index, count, path } = proof;
        let proof = Disputes::Proof { index, count, path: path.iter().map(b256).collect() };
        let stated = (&record.receipt.receipt).into();
        let call = Disputes::openPostedCall { stated, epoch, proof };
        self.accusers[i].disputes += 1;
        let what = format!("Dispute(provider={p}, epoch={epoch}, sequence={number})");
        self.tell(who, || format!("sends {what}"));
        self.send(who, me, self.chain.parts.at.disputes, call.abi_encode(), what);
    }

    /// Goes on with the disputes that it began, and with those about what it stated.
    fn play_on(&mut self, i: usize) {
        let (who, me) = (self.accusers[i].who, self.accusers[i].actor.address);
        let at = self.chain.parts.at.disputes;
        for (id, from) in self.accusers[i].entries.disputes.clone() {
            let own = party(&id, me);
            let data = match standing(&mut self.chain, &id) {
                Standing::Turn { of, .. } if of == own => self.accuser_moves(i, id, from),
                Standing::Turn { until, .. } if self.chain.time_s() > until => {
                    let DisputeId { name: receipt, challenger, defender } = id;
                    Some(Disputes::timeoutCall { receipt, challenger, defender }.abi_encode())
                }
                _ => None,
            };
            if let Some(data) = data {
                let what = format!("Move({})", id.name);
                self.tell(who, || format!("sends {what}"));
                self.send(who, me, at, data, what);
            }
        }
    }

    fn accuser_moves(&mut self, i: usize, id: DisputeId, from: u64) -> Option<Vec<u8>> {
        let a = &self.accusers[i];
        let (who, party, moves_max) = (a.who, party(&id, a.actor.address), a.moves_max);
        let (stated, record) = match self.record_named(id.name) {
            Some(record) => (None, record),
            None => {
                let call = Audits::accusationOfCall { id: id.name };
                let about = self.chain.read(self.chain.parts.at.audits, &call);
                (Some(Hash::from_bytes(about.traceRoot.0)), self.record_named(about.receiptHash)?)
            }
        };
        // What the canary states is right.
        let by = if who == Who::Canary { By::Asked } else { By::Skims };
        self.next_move(Playing { who, id, from, party, stated, record: &record, by, moves_max })
    }
}
