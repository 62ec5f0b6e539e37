//! Seats, panels, commitments, and what doubts come to.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bytes, U256};
use assay_chain::scratch::Failure;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_core::receipt::Receipt;
use assay_ledger::audits::{self, Seat};
use assay_ledger::contracts::{Audits, Epochs, Objections};

use crate::epochs::{Market, market};
use crate::network::{
    AUDITOR, Actor, DOLLAR, Network, Posted, audit_tree, b, consent, core_hash, parameters, some, trace_root,
};

pub struct Panel {
    pub m: Market,
    pub posted: Posted,
    pub auditors: Vec<Actor>,
    who: Vec<Address>,
    trees: Vec<Vec<(u64, Hash)>>,
    fixed: u64,
}

/// A network in which three of ten receipts are drawn.
fn network() -> Network {
    let mut p = parameters();
    p.rates.rateMinPpm = 300_000;
    Network::with(p, 0)
}

/// A posted epoch 1 of 60 receipts, with its beacon, before commitments.
pub fn panel(n: &mut Network) -> Panel {
    let audits = n.parts.at.audits;
    let m = market(n, 10 * DOLLAR);
    let mut slot = 0u64;
    let auditors: Vec<Actor> = (0..3)
        .map(|i| {
            let auditor = n.rich(&format!("auditor {i}"), 1000);
            n.enrol(&auditor, AUDITOR, 400 * DOLLAR);
            let slots = (slot..slot + 2).map(U256::from).collect();
            slot += 2;
            n.send(&auditor, audits, Audits::takeSeatsCall { auditor: auditor.address, slots }).unwrap();
            auditor
        })
        .collect();
    n.end_epoch(1);
    let posted = m.posted(n, 0, 60, 1);
    n.post(&m.provider, 1, &posted).unwrap();
    let (_, fixed) = n.draw(1);
    let members = n.batch(m.provider.address, 1).panel;
    let receipts: Vec<Receipt> = posted.receipts.iter().flatten().cloned().collect();
    let (mut who, mut trees) = (Vec::new(), Vec::new());
    for member in 0..usize::from(members) {
        let call =
            Audits::auditorOfCall { provider: m.provider.address, epoch: 1, member: U256::from(member) };
        let auditor = n.chain.read(audits, &call).unwrap();
        trees.push(audit_tree(n, 1, member, auditor, &receipts));
        who.push(auditor);
    }
    Panel { m, posted, auditors, who, trees, fixed }
}

impl Panel {
    pub fn actor(&self, member: usize) -> Actor {
        self.auditors.iter().find(|a| a.address == self.who[member]).unwrap().clone()
    }

    fn root(&self, member: usize) -> B256 {
        b(audits::digests_root(self.trees[member].iter().map(|(n, digest)| (*n, digest))))
    }

    fn digests(&self, member: usize) -> Bytes {
        audits::revealed_digests(self.trees[member].iter().map(|(n, digest)| (*n, digest)))
    }

    fn commit(&self, n: &mut Network, member: usize, by: &Actor) -> Result<(), Failure> {
        let audits = n.parts.at.audits;
        let call = Audits::commitmentOfCall {
            auditor: self.who[member],
            provider: self.m.provider.address,
            epoch: 1,
            member: U256::from(member),
            root: self.root(member),
            salt: some("salt").into(),
        };
        let commitment = n.chain.read(audits, &call).unwrap();
        let call = Audits::commitCall {
            provider: self.m.provider.address,
            epoch: 1,
            member: U256::from(member),
            commitment,
        };
        n.send(by, audits, call).map(|_| ())
    }

    fn reveal(&self, n: &mut Network, member: usize) -> Result<(), Failure> {
        let audits = n.parts.at.audits;
        let call = Audits::revealCall {
            provider: self.m.provider.address,
            epoch: 1,
            member: U256::from(member),
            digests: self.digests(member),
            salt: some("salt").into(),
        };
        n.send(&Actor::named("anyone"), audits, call).map(|_| ())
    }

    /// All members commit and reveal.
    pub fn audit(&self, n: &mut Network) {
        for member in 0..self.who.len() {
            self.commit(n, member, &self.actor(member)).unwrap();
        }
        n.chain.warp(self.fixed + 7201);
        for member in 0..self.who.len() {
            self.reveal(n, member).unwrap();
        }
    }

    fn collect(&self, n: &mut Network, member: usize) -> Result<(), Failure> {
        let audits = n.parts.at.audits;
        let call =
            Audits::collectCall { provider: self.m.provider.address, epoch: 1, member: U256::from(member) };
        n.send(&Actor::named("anyone"), audits, call).map(|_| ())
    }

    /// A member with work, and the first receipt of it.
    pub fn busy(&self) -> (usize, Receipt) {
        let member = self.trees.iter().position(|t| !t.is_empty()).expect("something was drawn");
        let sequence = self.trees[member][0].0;
        (member, self.posted.receipts[sequence as usize].clone().unwrap())
    }

    pub fn accuse(
        &self,
        n: &mut Network,
        by: &Actor,
        member: usize,
        receipt: &Receipt,
        trace: [u8; 32],
    ) -> Result<B256, Failure> {
        let audits = n.parts.at.audits;
        let call = Audits::accuseCall {
            epoch: 1,
            member: U256::from(member),
            receipt: receipt.into(),
            proof: (&self.posted.proof(receipt.sequence as usize)).into(),
            consent: (&consent(receipt)).into(),
            traceRoot: trace.into(),
        };
        n.send(by, audits, call).map(|d| d.value)
    }

    fn acquit(&self, n: &mut Network, id: B256, member: usize) -> Result<(), Failure> {
        let audits = n.parts.at.audits;
        let leaf = |(n, digest): &(u64, Hash)| audits::digest_leaf(*n, digest);
        let leaves: Vec<Hash> = self.trees[member].iter().map(leaf).collect();
        let proof = merkle::prove(&leaves, 0).unwrap();
        n.send(&Actor::named("anyone"), audits, Audits::acquitCall { id, proof: (&proof).into() }).map(|_| ())
    }
}

#[test]
pub fn commitments_end_before_the_first_reveal() {
    let mut n = network();
    let p = panel(&mut n);
    let other = p.auditors.iter().find(|a| a.address != p.who[0]).unwrap().clone();
    assert!(p.commit(&mut n, 0, &other).unwrap_err().is::<Audits::NotNode>());
    p.commit(&mut n, 0, &p.actor(0)).unwrap();
    n.chain.warp(p.fixed + 7200);
    p.commit(&mut n, 1, &p.actor(1)).unwrap();
    assert!(p.reveal(&mut n, 0).unwrap_err().is::<Audits::TooSoon>());
    n.chain.warp(p.fixed + 7201);
    assert!(p.commit(&mut n, 1, &p.actor(1)).unwrap_err().is::<Audits::TooLate>());
    p.reveal(&mut n, 0).unwrap();
    assert!(p.reveal(&mut n, 0).unwrap_err().is::<Audits::WrongPhase>());
    n.chain.warp(p.fixed + 10_801);
    assert!(p.reveal(&mut n, 1).unwrap_err().is::<Audits::TooLate>());
}

#[test]
pub fn members_are_paid_equal_parts_when_objections_are_over() {
    let mut n = network();
    let p = panel(&mut n);
    p.audit(&mut n);
    assert!(p.collect(&mut n, 0).unwrap_err().is::<Audits::TooSoon>());
    n.chain.warp(p.fixed + 14_401);
    let batch = n.batch(p.m.provider.address, 1);
    let part = batch.auditorsPart / u64::from(batch.panel);
    for member in 0..p.who.len() {
        let held = n.balance(p.who[member]);
        p.collect(&mut n, member).unwrap();
        assert_eq!(n.balance(p.who[member]) - held, part);
        assert!(p.collect(&mut n, member).unwrap_err().is::<Audits::WrongPhase>());
    }
    n.check_money();
}

#[test]
pub fn silence_costs_its_penalty_and_the_part() {
    let mut n = network();
    let p = panel(&mut n);
    let audits = n.parts.at.audits;
    let reporter = n.rich("reporter", 0);
    p.commit(&mut n, 0, &p.actor(0)).unwrap();
    let absent = |member: usize| Audits::proveAbsenceCall {
        provider: p.m.provider.address,
        epoch: 1,
        member: U256::from(member),
    };
    n.chain.warp(p.fixed + 10_800);
    assert!(n.send(&reporter, audits, absent(0)).unwrap_err().is::<Audits::TooSoon>());
    n.chain.warp(p.fixed + 10_801);
    let treasury = n.treasury;
    let batch = n.batch(p.m.provider.address, 1);
    let part = batch.auditorsPart / u64::from(batch.panel);
    for member in 0..2 {
        let (stake, held) = (n.node(p.who[member]).stake, (n.balance(treasury), n.balance(reporter.address)));
        n.send(&reporter, audits, absent(member)).unwrap();
        assert_eq!(stake - n.node(p.who[member]).stake, u128::from(5 * DOLLAR));
        assert_eq!(n.balance(reporter.address) - held.1, DOLLAR / 2);
        assert_eq!(n.balance(treasury) - held.0, 5 * DOLLAR - DOLLAR / 2 + part);
        assert!(n.send(&reporter, audits, absent(member)).unwrap_err().is::<Audits::WrongPhase>());
    }
    n.check_money();
}

#[test]
pub fn an_honest_auditor_is_acquitted_and_keeps_the_bond() {
    let mut n = network();
    let p = panel(&mut n);
    p.audit(&mut n);
    let (member, receipt) = p.busy();
    let accuser = n.rich("accuser", 100);
    let id = p.accuse(&mut n, &accuser, member, &receipt, trace_root(&receipt)).unwrap();
    let again = p.accuse(&mut n, &accuser, member, &receipt, trace_root(&receipt)).unwrap_err();
    assert!(again.is::<Audits::AlreadyAccused>());
    let held = n.balance(p.who[member]);
    p.acquit(&mut n, id, member).unwrap();
    assert_eq!(n.balance(p.who[member]) - held, 20 * DOLLAR);
    n.chain.warp(p.fixed + 14_401);
    p.collect(&mut n, member).unwrap();
    n.check_money();
}

#[test]
pub fn a_false_trace_is_contested_and_a_mismatch_alone_costs_nothing() {
    for right in [false, true] {
        let mut n = network();
        let p = panel(&mut n);
        p.audit(&mut n);
        let audits = n.parts.at.audits;
        let (member, receipt) = p.busy();
        let auditor = p.actor(member);
        let accuser = n.rich("accuser", 100);
        let id = p.accuse(&mut n, &accuser, member, &receipt, some("false")).unwrap();
        assert!(p.acquit(&mut n, id, member).unwrap_err().is::<Audits::WrongDigest>());
        let (stake, held) = (n.node(auditor.address).stake, n.balance(auditor.address));
        let disputes = n.disputes.clone();
        let contest = |caller: &Actor| Audits::contestCall { id, caller: caller.address };
        let refused = n.send(&auditor, audits, contest(&auditor)).unwrap_err();
        assert!(refused.is::<Audits::NotAuthorised>());
        assert!(n.send(&disputes, audits, contest(&accuser)).unwrap_err().is::<Audits::NotNode>());
        n.contest(id, &auditor).unwrap();
        assert!(n.contest(id, &auditor).unwrap_err().is::<Audits::WrongPhase>());
        n.chain.warp(p.fixed + 14_401);
        assert!(p.collect(&mut n, member).unwrap_err().is::<Audits::AccusationsOpen>());
        let lapse = n.send(&accuser, audits, Audits::lapseCall { id }).unwrap_err();
        assert!(lapse.is::<Audits::WrongPhase>(), "its dispute ends it");
        let rule = |accuserIsRight| Audits::ruledCall { id, accuserIsRight };
        assert!(n.send(&accuser, audits, rule(true)).unwrap_err().is::<Audits::NotAuthorised>());
        n.send(&disputes, audits, rule(right)).unwrap();
        assert!(n.send(&disputes, audits, rule(right)).unwrap_err().is::<Audits::WrongPhase>());
        let lost = u64::try_from(stake - n.node(auditor.address).stake).unwrap();
        let (auditor_now, accuser_now) = (n.balance(auditor.address), n.balance(accuser.address));
        if right {
            // The other's bond, and a tenth of the penalty.
            assert_eq!((auditor_now, accuser_now, lost), (held - 20 * DOLLAR, 125 * DOLLAR, 50 * DOLLAR));
        } else {
            assert_eq!((auditor_now, accuser_now, lost), (held + 20 * DOLLAR, 80 * DOLLAR, 0));
        }
        assert_eq!(p.collect(&mut n, member).is_ok(), !right);
        n.check_money();
    }
}

/// Members with up to 256 receipts reveal them all, and nothing that is not what they committed to.
#[test]
pub fn the_contract_finds_the_root_that_was_committed_to() {
    let mut n = network();
    let at = n.parts.at.audits;
    let digests: Vec<(u64, Hash)> =
        (0..=256u64).map(|i| (i * i + 3, core_hash(alloy_primitives::keccak256(i.to_be_bytes())))).collect();
    let of = |some: &[(u64, Hash)]| audits::revealed_digests(some.iter().map(|(n, digest)| (*n, digest)));
    for count in 0..=256 {
        let (some, digests) = (&digests[..count], of(&digests[..count]));
        let root = n.chain.read(at, &Audits::digestsRootCall { digests: digests.clone() }).unwrap();
        assert_eq!(root, b(audits::digests_root(some.iter().map(|(n, digest)| (*n, digest)))), "{count}");
        assert_eq!(audits::read_digests(&digests), Some(some.iter().copied().collect()));
    }
    // Bytes that are left over, a number twice, and numbers that fall.
    let mut bad = vec![of(&digests[..3])[..119].to_vec().into(), of(&[digests[1], digests[1]])];
    bad.push(of(&[digests[2], digests[1]]));
    bad.push([&of(&digests[..3])[..], &[0]].concat().into());
    for digests in bad {
        assert_eq!(audits::read_digests(&digests), None);
        let refused = n.chain.read(at, &Audits::digestsRootCall { digests }).unwrap_err();
        assert!(refused.is::<Audits::WrongReveal>(), "{refused:?}");
    }
}

/// Others than were committed to are not taken, whoever says them.
#[test]
pub fn digests_that_were_not_committed_to_are_not_revealed() {
    let mut n = network();
    let mut p = panel(&mut n);
    let (member, _) = p.busy();
    p.commit(&mut n, member, &p.actor(member)).unwrap();
    n.chain.warp(p.fixed + 7201);
    let own = p.trees[member].clone();
    p.trees[member][0].1 = Hash::from_bytes([7; 32]);
    assert!(p.reveal(&mut n, member).unwrap_err().is::<Audits::WrongReveal>());
    p.trees[member] = own[1..].to_vec();
    assert!(p.reveal(&mut n, member).unwrap_err().is::<Audits::WrongReveal>());
    p.trees[member] = own;
    p.reveal(&mut n, member).unwrap();
}

#[test]
pub fn a_digest_of_nothing_is_lost_by_silence() {
    let mut n = network();
    let mut p = panel(&mut n);
    let (member, receipt) = p.busy();
    p.trees[member][0].1 = Hash::from_bytes([7; 32]);
    p.audit(&mut n);
    let audits = n.parts.at.audits;
    let accuser = n.rich("accuser", 100);
    let id = p.accuse(&mut n, &accuser, member, &receipt, trace_root(&receipt)).unwrap();
    assert!(p.acquit(&mut n, id, member).unwrap_err().is::<Audits::WrongDigest>());
    n.chain.mine(1, 3600);
    let lapse = Audits::lapseCall { id };
    assert!(n.send(&accuser, audits, lapse.clone()).unwrap_err().is::<Audits::TooSoon>());
    n.chain.mine(1, 1);
    let (treasury, auditor) = (n.treasury, p.actor(member));
    let (held, stake) = (n.balance(treasury), n.node(auditor.address).stake);
    n.send(&accuser, audits, lapse).unwrap();
    let batch = n.batch(p.m.provider.address, 1);
    let part = batch.auditorsPart / u64::from(batch.panel);
    assert_eq!(n.balance(accuser.address), 105 * DOLLAR);
    assert_eq!(n.balance(treasury) - held, 45 * DOLLAR + part);
    assert_eq!(stake - n.node(auditor.address).stake, u128::from(50 * DOLLAR));
    n.check_money();
}

#[test]
pub fn only_drawn_receipts_of_a_member_are_doubted() {
    let mut n = network();
    let p = panel(&mut n);
    p.audit(&mut n);
    let accuser = n.rich("accuser", 1000);
    for member in 0..p.who.len() {
        let assigned: BTreeSet<u64> = p.trees[member].iter().map(|(s, _)| *s).collect();
        for receipt in p.posted.receipts.iter().flatten().take(20) {
            if assigned.contains(&receipt.sequence) {
                continue;
            }
            let refused = p.accuse(&mut n, &accuser, member, receipt, trace_root(receipt)).unwrap_err();
            assert!(refused.is::<Audits::NotAssigned>());
        }
    }
}

/// Whoever else asks for a leaf pays for the answer; a member of the panel, who has to see it, does not: else a provider earned by showing its auditors
/// nothing but on the ledger.
#[test]
pub fn a_member_has_the_bond_of_its_demand_back() {
    let mut n = network();
    let p = panel(&mut n);
    let (objections, provider) = (n.parts.at.objections, p.m.provider.clone());
    let bond = n.p.stakes.demandBond;
    let asked = |index| Objections::demandLeafAsMemberCall {
        provider: provider.address,
        epoch: 1,
        index,
        member: U256::ZERO,
    };
    let (member, stranger) = (p.actor(0), p.m.payer.clone());
    assert!(n.send(&stranger, objections, asked(0)).unwrap_err().is::<Objections::NotMember>());
    assert!(n.send(&member, objections, asked(60)).unwrap_err().is::<Objections::BadIndex>());
    let of_all = |n: &mut Network| [provider.address, member.address, stranger.address].map(|a| n.balance(a));
    let before = of_all(&mut n);
    n.send(&member, objections, asked(0)).unwrap();
    assert_eq!(n.balance(member.address), before[1] - bond);
    let answer = |index: u64| Objections::answerLeafCall {
        provider: provider.address,
        epoch: 1,
        index,
        opening: p.posted.opening(index as usize, 50_000, 30_000),
    };
    n.send(&provider, objections, answer(0)).unwrap();
    assert_eq!(of_all(&mut n), before);
    let ask = Objections::demandLeafCall { provider: provider.address, epoch: 1, index: 1 };
    n.send(&stranger, objections, ask).unwrap();
    n.send(&provider, objections, answer(1)).unwrap();
    assert_eq!(of_all(&mut n), [before[0] + bond, before[1], before[2] - bond]);
    n.check_money();
}

#[test]
pub fn a_refused_record_is_demanded_by_its_auditor_alone() {
    let mut n = network();
    let p = panel(&mut n);
    let objections = n.parts.at.objections;
    let (member, receipt) = p.busy();
    let call = Objections::demandRecordCall {
        epoch: 1,
        member: U256::from(member),
        receipt: (&receipt).into(),
        proof: (&p.posted.proof(receipt.sequence as usize)).into(),
    };
    assert!(n.send(&p.m.payer, objections, call.clone()).unwrap_err().is::<Objections::NotAssigned>());
    n.send(&p.actor(member), objections, call).unwrap();
    let wrong = Objections::answerRecordCall {
        provider: p.m.provider.address,
        epoch: 1,
        index: receipt.sequence,
        request: vec![vec![1].into()],
        transcript: vec![vec![2].into()],
    };
    assert!(n.send(&p.m.provider, objections, wrong).unwrap_err().is::<Objections::BadRecord>());
    n.chain.mine(1, 3601);
    let silence = Objections::proveSilenceCall {
        provider: p.m.provider.address,
        epoch: 1,
        index: receipt.sequence,
        kind: 1,
    };
    n.send(&p.m.payer, objections, silence).unwrap();
    assert!(n.node(p.m.provider.address).struck);
    // The audit of a struck provider is paid all the same.
    for member in 0..p.who.len() {
        p.commit(&mut n, member, &p.actor(member)).unwrap();
    }
    n.chain.warp(p.fixed + 7201);
    p.reveal(&mut n, 0).unwrap();
    n.chain.warp(p.fixed + 14_401);
    p.collect(&mut n, 0).unwrap();
    n.check_money();
}

#[test]
pub fn a_seat_counts_from_the_next_epoch_and_a_left_one_is_not_given_away_at_once() {
    let mut n = network();
    let p = panel(&mut n);
    let audits = n.parts.at.audits;
    let (auditor, other) = (p.auditors[0].clone(), p.auditors[1].clone());
    let slots = vec![U256::from(0)];
    let leave = Audits::leaveSeatsCall { auditor: auditor.address, slots: slots.clone() };
    n.send(&auditor, audits, leave.clone()).unwrap();
    assert!(n.send(&auditor, audits, leave).unwrap_err().is::<Audits::NotYourSeat>());
    let take = Audits::takeSeatsCall { auditor: other.address, slots };
    assert!(n.send(&other, audits, take.clone()).unwrap_err().is::<Audits::SlotTaken>());
    n.chain.mine(1, 3600 * 20);
    n.send(&other, audits, take).unwrap();
    let epoch = n.epoch();
    let seat = n.chain.read(audits, &Audits::seatOfCall { slot: U256::from(0) }).unwrap();
    assert_eq!((seat.auditor, seat.since.to::<u64>()), (other.address, epoch + 1));
}

/// The formulas off the chain are the contracts', draw by draw.
#[test]
pub fn draws_off_the_chain_are_those_of_the_contracts() {
    let mut n = network();
    let p = panel(&mut n);
    let (audits_at, epochs_at) = (n.parts.at.audits, n.parts.at.epochs);
    let provider = p.m.provider.address;
    let (beacon, _) = n.beacon(1);
    let batch = n.batch(provider, 1);
    let rates = n.p.rates.clone();
    let mut drawn = [0, 0];
    for sequence in 0..300u64 {
        for fee in [0, 1, 1_000, 250_000, 40_000_000, u64::MAX] {
            let call = Epochs::isDrawnCall { provider, epoch: 1, sequence, feeMicroUsd: fee };
            let said = n.chain.read(epochs_at, &call).unwrap();
            let own = audits::is_drawn(&beacon, provider, sequence, fee, batch.backing, &rates);
            assert_eq!(own, said, "receipt {sequence} with fee {fee}");
            drawn[usize::from(own)] += 1;
        }
    }
    assert!(drawn.iter().all(|n| *n > 100), "{drawn:?}");
    // Who executes a receipt, first or second.
    let mut seconds = 0;
    let some_receipt = p.posted.receipts.iter().flatten().next().unwrap().clone();
    for sequence in 0..300 {
        let receipt = &Receipt { sequence, ..some_receipt.clone() };
        let is_drawn =
            audits::is_drawn(&beacon, provider, sequence, receipt.fee_micro_usd, batch.backing, &rates);
        let who = audits::assigned(&beacon, provider, sequence, batch.panel, rates.secondPpm).unwrap();
        seconds += usize::from(who.second.is_some());
        for member in 0..batch.panel {
            let call =
                Audits::isAssignedCall { epoch: 1, member: U256::from(member), receipt: receipt.into() };
            let said = n.chain.read(audits_at, &call).unwrap();
            assert_eq!(is_drawn && who.has(member), said, "receipt {sequence}, member {member}");
        }
    }
    assert_eq!(audits::assigned(&beacon, provider, 0, 0, rates.secondPpm), None);
    assert!(seconds > 0, "none has a second");
    // Whose seats are drawn, of slots some of which do not count.
    let leave = Audits::leaveSeatsCall { auditor: p.auditors[0].address, slots: vec![U256::ZERO] };
    n.send(&p.auditors[0], audits_at, leave).unwrap();
    let slots = n.chain.read(audits_at, &Audits::slotCountCall {}).unwrap().to::<u64>();
    let seats: Vec<Seat> = (0..slots)
        .map(|slot| {
            let seat = n.chain.read(audits_at, &Audits::seatOfCall { slot: U256::from(slot) }).unwrap();
            Seat { auditor: seat.auditor, since: seat.since.to(), until: seat.until.to() }
        })
        .collect();
    for member in 0..batch.panel {
        let call = Audits::auditorOfCall { provider, epoch: 1, member: U256::from(member) };
        let said = n.chain.read(audits_at, &call).unwrap();
        assert_eq!(audits::auditor_of(&beacon, provider, 1, member, &seats), Some(said));
    }
    assert_eq!(audits::auditor_of(&beacon, provider, 1, 0, &[]), None);
    let late = Seat { since: 2, ..seats[1] };
    assert_eq!(audits::auditor_of(&beacon, provider, 1, 0, &[late; 3]), None, "none counts yet");
    // What is committed to.
    let (root, salt) = (some("root").into(), some("salt").into());
    for member in [0u8, 1, 15] {
        let auditor = p.auditors[1].address;
        let call =
            Audits::commitmentOfCall { auditor, provider, epoch: 1, member: U256::from(member), root, salt };
        let said = n.chain.read(audits_at, &call).unwrap();
        assert_eq!(audits::commitment(auditor, provider, 1, member, root, salt), said);
    }
}
