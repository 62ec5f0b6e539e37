//! An auditor: what stands on the ledger and in its journal is read, `assay_node::auditor::due` decides, and one thing after the other is done.
//!
//! The journal is what the daemon keeps on its disk: what was drawn, what came of it, what was committed to with its salt, what was demanded and disputed, and
//! the records of what does not stand. Asking a provider is a message whose answer comes in later; the round goes on meanwhile.

mod rounds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolCall;
use assay_api::audits::AuditLeaf;
use assay_core::answer::{AnswerRecord, Format};
use assay_core::id::{Hash, SignatureBytes};
use assay_core::receipt::{Receipt, SignedReceipt};
use assay_core::request::Request;
use assay_core::transcript::Transcript;
use assay_ledger::contracts::{Audits, Epochs, Objections, Registry};
use assay_ledger::docket::{DemandId, DemandKind, Entries};
use assay_ledger::ledger::Phase;
use assay_node::auditor::{
    AccusationView, BatchId, BatchView, Bonds, Done, Draw, Drawn, Duty, MemberPhase, MemberView, Refused,
    SeatsView, View, Work, WorkView, place_in,
};
use assay_node::disputes::{Ended, Standing, name_of};
use assay_node::execution::Verdict;
use assay_node::settlement::{DisputeView, party};
use assay_verify::receipts::audit_digest;

use super::Options;
use super::chain::{Actor, Chain, TxId};
use super::model::{self, By};
use super::provider::enrol;
use super::settling::{auditors_of, demand, standing};
use crate::random::Random;

/// Seats of an auditor that does its work, and of one that does not.
const SEATS: u64 = 3;
const SEATS_OF_LIARS: u64 = 1;
/// Dollars that an auditor has for bonds.
const FREE: u64 = 500;
/// Records that are asked for at once.
const AT_ONCE: usize = 32;
/// How long an auditor waits for what it asked for.
const UNHEARD_MS: u64 = 30_000;
/// Epochs back for which batches are looked at.
const EPOCHS_BACK: u64 = 64;

/// The leaves of a batch, as a provider tells them.
pub(super) type Leaves = Vec<Option<AuditLeaf>>;

/// What an auditor is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Honest,
    /// It makes its digests up.
    Lazy,
    /// It takes seats and does nothing.
    Absent,
}

/// A batch that is audited.
struct Audit {
    batch: Epochs::Batch,
    beacon: B256,
    members: Vec<u8>,
    leaves: Option<Leaves>,
    drawn: BTreeMap<u64, Drawn>,
    receipts: BTreeMap<u64, (Receipt, Option<Objections::Proof>)>,
    refused: BTreeSet<u64>,
    /// It waits for an answer.
    asked: bool,
    work: Work,
}

/// An auditor.
pub(super) struct Auditor {
    pub(super) actor: Actor,
    pub(super) plan: Plan,
    // What is on its disk.
    journal: BTreeMap<BatchId, Work>,
    kept: BTreeMap<(BatchId, u64), AnswerRecord>,
    entries: Entries,
    heard: usize,
    // What is in its memory.
    audits: BTreeMap<BatchId, Audit>,
    over: BTreeSet<BatchId>,
    ended: Ended,
    duties: VecDeque<Duty>,
    doing: Option<TxId>,
    salts: u64,
}

/// All auditors, enrolled and with their seats.
pub(super) fn all(chain: &mut Chain, options: &Options, random: &mut Random) -> Vec<Auditor> {
    let mut plans = vec![Plan::Honest; 2];
    if options.liars {
        let some = [vec![], vec![Plan::Lazy], vec![Plan::Absent], vec![Plan::Lazy, Plan::Absent]];
        plans.extend(some[random.below(4) as usize].iter().copied());
    }
    let seat = chain.p.stakes.seatStake / 1_000_000;
    let mut slot = 0;
    let mut all = Vec::new();
    for (i, plan) in plans.into_iter().enumerate() {
        let actor = Actor::named(&format!("auditor {i}"));
        let seats = if plan == Plan::Honest { SEATS } else { SEATS_OF_LIARS };
        enrol(chain, &actor, 4, (seats + 1) * seat, FREE);
        let slots = (slot..slot + seats).map(U256::from).collect();
        slot += seats;
        let call = Audits::takeSeatsCall { auditor: actor.address, slots };
        chain.begin(actor.address, chain.parts.at.audits, &call);
        all.push(Auditor {
            actor,
            plan,
            journal: BTreeMap::new(),
            kept: BTreeMap::new(),
            entries: Entries::default(),
            heard: 0,
            audits: BTreeMap::new(),
            over: BTreeSet::new(),
            ended: Ended::default(),
            duties: VecDeque::new(),
            doing: None,
            salts: 0,
        });
    }
    all
}

impl Audit {
    fn draw<'a>(&'a self, provider: Address, chain: &'a Chain) -> Draw<'a> {
        Draw {
            provider,
            beacon: self.beacon,
            batch: &self.batch,
            rates: &chain.p.rates,
            members: &self.members,
        }
    }

    fn pending(&self) -> impl Iterator<Item = u64> {
        self.drawn.keys().copied().filter(|sequence| !self.work.done.contains_key(sequence))
    }

    fn refusals(&self) -> Vec<Refused> {
        let open = self.refused.iter().copied().filter(|sequence| !self.work.done.contains_key(sequence));
        let of = |sequence: u64| {
            let known = self.receipts.contains_key(&sequence);
            Refused { sequence, kind: if known { DemandKind::Record } else { DemandKind::Leaf } }
        };
        let asked = |r: &Refused| self.work.demanded.contains(&(r.sequence, r.kind == DemandKind::Record));
        open.map(of).filter(|refused| !asked(refused)).collect()
    }

    fn place(&self, sequence: u64) -> Option<(&Receipt, Objections::Proof)> {
        let (receipt, shown) = self.receipts.get(&sequence)?;
        let proof = match (shown, &self.leaves) {
            (Some(proof), _) => proof.clone(),
            (None, Some(leaves)) => place_in(leaves, self.batch.first, sequence)?,
            (None, None) => return None,
        };
        Some((receipt, proof))
    }

    fn view(&self) -> WorkView {
        let is_open = |sequence: &u64| !self.work.done.contains_key(sequence);
        let left = self.pending().filter(|s| !self.refused.contains(s));
        let wrong = self.work.done.iter().filter(|(_, done)| done.verdict == Verdict::Wrong);
        let wrong = wrong.map(|(sequence, _)| *sequence).filter(|s| !self.work.disputed.contains(s));
        WorkView {
            known: self.work.drawn.is_some(),
            left: left.count(),
            waiting: self.refused.iter().filter(|s| is_open(s)).count(),
            refused: self.refusals(),
            lacking: 0,
            wrong: wrong.collect(),
            disputed: self.work.disputed.len(),
            demanded: self.work.demanded.len(),
            doubts: vec![],
        }
    }
}

impl Auditor {
    /// It is killed.
    pub(super) fn forget(&mut self) {
        self.audits.clear();
        self.over.clear();
        self.ended = Ended::default();
        self.duties.clear();
        self.doing = None;
    }

    fn hear(&mut self, chain: &Chain) {
        let new = chain.heard.get(self.heard..).unwrap_or_default();
        new.iter().for_each(|logged| self.entries.take(self.actor.address, logged.block, &logged.log));
        self.heard = chain.heard.len();
    }

    /// Writes down how far the work on a batch is.
    fn write(&mut self, id: BatchId) {
        if let Some(audit) = self.audits.get(&id) {
            self.journal.insert(id, audit.work.clone());
        }
    }

    fn read(&mut self, chain: &mut Chain) -> View {
        let epoch = chain.epoch();
        self.entries.batches =
            self.entries.batches.split_off(&(epoch.saturating_sub(EPOCHS_BACK), Address::ZERO));
        let ids: Vec<BatchId> = self
            .entries
            .batches
            .iter()
            .map(|(epoch, provider)| BatchId { epoch: *epoch, provider: *provider })
            .filter(|id| !self.over.contains(id))
            .collect();
        let batches = ids.into_iter().filter_map(|id| self.batch(chain, id)).collect();
        let stakes = chain.p.stakes.clone();
        View {
            now: chain.time_s(),
            block: chain.number(),
            seats: SeatsView { have: SEATS, wanted: SEATS, free: 0, each: stakes.seatStake.into() },
            vault: chain.balance(self.actor.address).into(),
            bonds: Bonds {
                dispute: stakes.disputeBond.into(),
                accusation: stakes.accusationBond.into(),
                demand: stakes.demandBond.into(),
            },
            batches,
            demands: self.demands(chain),
            disputes: self.disputes(chain),
            accusations: self.accusations(chain),
            accused: vec![],
        }
    }

    fn batch(&mut self, chain: &mut Chain, id: BatchId) -> Option<BatchView> {
        let BatchId { epoch, provider } = id;
        let (beacon, fixed_at, phase) = chain.beacon(epoch);
        let mut view = BatchView {
            id,
            phase,
            fixed_at,
            commit_until: fixed_at + u64::from(chain.p.times.commitSeconds),
            struck: false,
            members: vec![],
            absent: vec![],
            work: WorkView::default(),
        };
        if fixed_at == 0 {
            return Some(view);
        }
        if self.audits.get(&id).is_none_or(|audit| audit.beacon != beacon) {
            let batch = chain.batch(provider, epoch);
            if batch.state == 0 {
                return None;
            }
            let auditors = auditors_of(chain, provider, epoch, batch.panel);
            let mine = (0u8..).zip(&auditors).filter(|(_, auditor)| **auditor == self.actor.address);
            let members: Vec<u8> = mine.map(|(member, _)| member).collect();
            let work = if members.is_empty() {
                Work::default()
            } else {
                self.journal.get(&id).cloned().unwrap_or_default().under(beacon)
            };
            let drawn = work.drawn.iter().flatten();
            let drawn =
                drawn.map(|(s, members)| (*s, Drawn { leaf: None, members: members.clone() })).collect();
            let audit = Audit {
                batch,
                beacon,
                members,
                leaves: None,
                drawn,
                receipts: BTreeMap::new(),
                refused: BTreeSet::new(),
                asked: false,
                work,
            };
            self.audits.insert(id, audit);
        }
        let audit = self.audits.get(&id)?;
        if audit.members.is_empty() {
            return Some(view);
        }
        view.struck = chain.read(chain.parts.at.registry, &Registry::isStruckCall { node: provider });
        for member in 0..audit.batch.panel {
            let own = audit.members.contains(&member);
            if !own && !matches!(phase, Phase::Objecting | Phase::Final) {
                continue;
            }
            let call = Audits::memberOfCall { provider, epoch, member: U256::from(member) };
            let known = chain.read(chain.parts.at.audits, &call);
            let phase = MemberPhase::numbered(known.phase);
            if own {
                let journalled = audit.work.commitments.contains_key(&member);
                view.members.push(MemberView { member, phase, journalled, accusations: known.accusations });
            } else if matches!(phase, MemberPhase::None | MemberPhase::Committed) {
                view.absent.push(member);
            }
        }
        view.work = audit.view();
        Some(view)
    }

    fn demands(&self, chain: &mut Chain) -> Vec<(DemandId, u64)> {
        let me = self.actor.address;
        let asked = self.entries.demands.keys().filter(|id| id.provider != me);
        let read = asked.map(|id| (*id, demand(chain, id)));
        read.filter(|(_, (until, from))| *until != 0 && *from == me)
            .map(|(id, (until, _))| (id, until))
            .collect()
    }

    fn disputes(&self, chain: &mut Chain) -> Vec<DisputeView> {
        let me = self.actor.address;
        let of = self.entries.disputes.keys().filter(|id| id.challenger == me);
        of.map(|id| DisputeView { id: *id, party: party(id, me), standing: standing(chain, id) })
            .filter(|view| view.standing != Standing::None)
            .collect()
    }

    fn accusations(&mut self, chain: &mut Chain) -> Vec<AccusationView> {
        let mut open = Vec::new();
        for id in self.entries.accusations.keys().copied().collect::<Vec<_>>() {
            let about = chain.read(chain.parts.at.audits, &Audits::accusationOfCall { id });
            if about.state == 3 {
                self.entries.accusations.remove(&id);
                continue;
            }
            if about.state != 1 || about.accused != self.actor.address {
                continue;
            }
            let batch = BatchId { epoch: about.epoch, provider: about.provider };
            let work = self.audits.get(&batch).map(|audit| &audit.work).or(self.journal.get(&batch));
            let own = work.and_then(|work| work.done.get(&about.sequence)).and_then(|done| done.trace);
            let stated_is_own = own.is_some_and(|own| *own.as_bytes() == about.traceRoot.0);
            open.push(AccusationView { id, until: about.until.to(), stated_is_own });
        }
        open
    }

    /// A member's digests, in rising order of sequence numbers.
    fn digests(&self, id: BatchId, member: u8) -> Vec<(u64, Hash)> {
        let Some(audit) = self.audits.get(&id) else { return vec![] };
        let me = self.actor.node();
        let of = |(sequence, done): (&u64, &Done)| {
            let trace = done.trace.filter(|_| done.members.contains(&member))?;
            Some((*sequence, audit_digest(me, &audit.beacon.0, done.receipt, &trace)))
        };
        audit.work.done.iter().filter_map(of).collect()
    }

    /// The digests that it says are its own.
    fn said(&self, id: BatchId, member: u8) -> Vec<(u64, Hash)> {
        let mut digests = self.digests(id, member);
        if self.plan == Plan::Lazy {
            digests.iter_mut().for_each(|(_, digest)| *digest = Hash::from_bytes([0x11; 32]));
        }
        digests
    }

    /// Learns what was shown on the ledger because it was demanded.
    fn read_shown(&mut self, chain: &mut Chain, id: BatchId) {
        let Some(audit) = self.audits.get(&id) else { return };
        let (first, asked) = (audit.batch.first, audit.work.demanded.clone());
        for (sequence, is_record) in asked {
            let Some(audit) = self.audits.get(&id) else { return };
            let known = if is_record {
                audit.work.done.contains_key(&sequence)
            } else {
                audit.receipts.contains_key(&sequence)
            };
            if known {
                continue;
            }
            let kind = if is_record { DemandKind::Record } else { DemandKind::Leaf };
            let index = sequence.saturating_sub(first);
            let wanted = DemandId { provider: id.provider, epoch: id.epoch, index, kind };
            let Some(from) = self.entries.demands.get(&wanted).copied() else { continue };
            if is_record {
                let shown = chain.logs_from(from).find(|logged| {
                    logged
                        .as_event::<Objections::AnsweredRecord>()
                        .is_some_and(|e| (e.provider, e.epoch, e.index) == (id.provider, id.epoch, index))
                });
                let call = shown.and_then(|logged| {
                    Objections::answerRecordCall::abi_decode(&chain.txs[logged.tx].data).ok()
                });
                if let Some(call) = call {
                    self.execute_shown(chain, id, sequence, &call);
                }
            } else {
                let mut opened =
                    chain.logs_from(from).filter_map(|l| l.as_event::<Objections::AnsweredLeaf>());
                let opening =
                    opened.find(|e| (e.provider, e.epoch, e.index) == (id.provider, id.epoch, index));
                if let Some(e) = opening {
                    self.learn(chain, id, sequence, e.opening);
                }
            }
        }
    }

    fn learn(&mut self, chain: &Chain, id: BatchId, sequence: u64, opening: Objections::Opening) {
        let Some(audit) = self.audits.get_mut(&id) else { return };
        if opening.isVoid {
            audit.refused.remove(&sequence);
            audit.drawn.remove(&sequence);
            return;
        }
        let found = Receipt::from(&opening.receipt);
        let members = audit.draw(id.provider, chain).members_for(sequence, found.fee_micro_usd);
        audit.receipts.insert(sequence, (found, Some(opening.proof)));
        if members.is_empty() {
            audit.refused.remove(&sequence);
        } else {
            audit.drawn.entry(sequence).or_insert(Drawn { leaf: None, members });
        }
    }

    fn execute_shown(
        &mut self,
        chain: &Chain,
        id: BatchId,
        sequence: u64,
        call: &Objections::answerRecordCall,
    ) {
        let Some((receipt, _)) =
            self.audits.get(&id).and_then(|audit| audit.receipts.get(&sequence)).cloned()
        else {
            return;
        };
        let request: Vec<&[u8]> = call.request.iter().map(|item| item.as_ref()).collect();
        let transcript: Vec<&[u8]> = call.transcript.iter().map(|item| item.as_ref()).collect();
        let (Some(request), Some(transcript)) =
            (Request::from_items(&request), Transcript::from_items(&transcript))
        else {
            return;
        };
        if !self.execute(id, sequence, &receipt, &request, &transcript) {
            // What was shown has neither digests nor signature: a dispute is about its tokens.
            let digests = model::digests(&request, &transcript);
            let signature = SignatureBytes::from_bytes([0; 65]);
            let receipt = SignedReceipt { receipt, domain: chain.receipts, signature };
            let (format, generation) = (Format::V2, None);
            let record = AnswerRecord { format, receipt, request, transcript, digests, generation };
            self.kept.insert((id, sequence), record);
        }
    }

    /// What was kept of a receipt, by its name on the ledger.
    fn kept_as(&self, name: B256) -> Option<&AnswerRecord> {
        self.kept.values().find(|record| name_of(record) == name)
    }

    /// Executes a record, and writes down what came of it. Whether it stands.
    fn execute(
        &mut self,
        id: BatchId,
        sequence: u64,
        receipt: &Receipt,
        request: &Request,
        transcript: &Transcript,
    ) -> bool {
        let Some(audit) = self.audits.get_mut(&id) else { return true };
        let stands = model::stands(request, transcript, receipt);
        let members = audit.drawn.get(&sequence).map(|drawn| drawn.members.clone()).unwrap_or_default();
        let trace = Some(model::trace(By::Asked, request, transcript));
        let verdict = if stands { Verdict::Stands } else { Verdict::Wrong };
        audit.work.done.insert(sequence, Done { receipt: receipt.id(), members, trace, verdict });
        audit.refused.remove(&sequence);
        self.write(id);
        stands
    }

    /// Forgets what is over.
    fn tidy(&mut self, view: &View) {
        for batch in &view.batches {
            let audited = matches!(batch.phase, Phase::Committing | Phase::Revealing | Phase::Objecting);
            let unpaid = |m: &MemberView| m.phase == MemberPhase::Revealed;
            let settled = !batch.members.iter().any(unpaid) && batch.absent.is_empty();
            let over = batch.phase == Phase::Final && settled;
            if (audited || batch.phase == Phase::Final) && batch.members.is_empty() || over {
                self.over.insert(batch.id);
                self.audits.remove(&batch.id);
            }
        }
        for dispute in &view.disputes {
            self.ended.see(dispute.id, dispute.standing, view.now);
        }
        for id in self.ended.forgotten(view.now) {
            self.entries.disputes.remove(&id);
        }
    }
}
