//! What providers and auditors decide to do, by table: a view of ledger and disk, and the duties that follow.
#![allow(clippy::unwrap_used, unreachable_pub)]

use alloy_primitives::{Address, B256};
use assay_ledger::docket::{DemandId, DemandKind, DisputeId};
use assay_ledger::ledger::Phase;
use assay_node::auditor::{
    self, AccusationView, BatchId, Bonds, MemberPhase, MemberView, Refused, SeatsView, WorkView,
};
use assay_node::disputes::Standing;
use assay_node::settlement::{
    self, BatchView, CLAIMS_AT_ONCE, ChannelView, DemandView, Described, DisputeView, Duty, EpochView,
    OwnView, View,
};
use assay_verify::dispute::Party;

const NOW: u64 = 100_000;
const ME: Address = Address::repeat_byte(1);

fn due(view: &View) -> Vec<Duty> {
    settlement::due(view, &Described::default())
}

fn view() -> View {
    View::at(NOW, 500)
}

fn channel(id: u8, owed: u128, balance: u128, claimed: u128, leaving: bool) -> ChannelView {
    ChannelView { id: B256::repeat_byte(id), owed, balance, claimed, leaving }
}

fn batch(epoch: u64, settled: bool, previous: Option<u64>, open_until: u64) -> BatchView {
    BatchView { epoch, settled, previous, open_until, released: 0, payable: 0 }
}

fn dispute(party: Party, standing: Standing) -> DisputeView {
    let id = DisputeId { name: B256::ZERO, challenger: ME, defender: ME };
    DisputeView { id, party, standing }
}

#[test]
fn nothing_is_due_where_nothing_is_open() {
    assert_eq!(due(&view()), []);
    let mut v = view();
    v.epochs = vec![
        EpochView { epoch: 3, phase: Phase::Posting },
        EpochView { epoch: 2, phase: Phase::Closing },
        EpochView { epoch: 1, phase: Phase::Awaiting { block: 1 } },
    ];
    assert_eq!(due(&v), [], "who has no batch in an epoch has no interest in its beacon");
}

#[test]
fn channels_are_claimed_before_something_is_posted_and_where_the_payer_leaves() {
    let mut v = view();
    v.channels = vec![
        channel(1, 500, 1_000, 100, false),
        channel(2, 500, 500, 500, false),
        channel(3, 900, 400, 400, false),
        channel(4, 900, 400, 399, false),
        channel(5, 10, 1_000, 0, true),
    ];
    let id = |n: u8| B256::repeat_byte(n);
    assert_eq!(due(&v), [Duty::Claim(vec![id(5)]), Duty::SettleIncome]);
    v.own.ready = Some(7);
    v.epochs = vec![EpochView { epoch: 7, phase: Phase::Posting }];
    let claims = Duty::Claim(vec![id(1), id(4), id(5)]);
    assert_eq!(due(&v), [claims, Duty::SettleIncome, Duty::Post(7)], "what holds no more is left out");
    v.channels.clear();
    assert_eq!(due(&v), [Duty::Post(7)]);
    v.unsettled = 5;
    assert_eq!(due(&v), [Duty::SettleIncome, Duty::Post(7)], "of an earlier life");
    v.channels = (0..CLAIMS_AT_ONCE + 1).map(|_| channel(9, 2, 2, 1, false)).collect();
    assert!(
        matches!(&due(&v)[..], [Duty::Claim(a), Duty::Claim(b), ..] if a.len() == CLAIMS_AT_ONCE && b.len() == 1)
    );
}

#[test]
fn an_epoch_is_posted_once_in_its_time_and_in_order() {
    let posting = |epochs: &[u64], ready, last_posted, sealed, stands| {
        let mut v = view();
        v.epochs = epochs.iter().map(|e| EpochView { epoch: *e, phase: Phase::Posting }).collect();
        v.own = OwnView { ready, sealed, stands };
        v.last_posted = last_posted;
        due(&v)
    };
    assert_eq!(posting(&[6, 7], Some(6), None, None, false), [Duty::Post(6)]);
    assert_eq!(posting(&[6, 7], Some(7), None, None, false), [Duty::Post(7)]);
    assert_eq!(posting(&[6, 7], Some(5), Some(6), None, false), [Duty::Post(7)]);
    assert_eq!(posting(&[6, 7], Some(8), None, None, false), [], "signed in a later epoch");
    assert_eq!(posting(&[6, 7], None, None, None, false), [], "in flight, or nothing there");
    assert_eq!(posting(&[7], Some(7), Some(7), None, false), []);
    assert_eq!(posting(&[7], Some(7), None, Some(7), false), [Duty::Post(7)], "sealed before a crash");
    let mut v = view();
    v.own = OwnView { ready: Some(7), sealed: Some(6), stands: false };
    for (phase, wanted) in [
        (Phase::Closing, vec![Duty::Missed(6)]),
        (Phase::Awaiting { block: 9 }, vec![Duty::Missed(6)]),
        (Phase::Committing, vec![Duty::Missed(6)]),
        (Phase::Posting, vec![Duty::Post(6)]),
    ] {
        v.epochs = vec![EpochView { epoch: 6, phase }];
        assert_eq!(due(&v), wanted, "{phase:?}");
    }
    // It stands: the builder has to hear of it, in whatever phase.
    v.own.stands = true;
    v.batches = vec![batch(6, false, None, u64::MAX)];
    v.epochs = vec![EpochView { epoch: 6, phase: Phase::Committing }];
    assert_eq!(due(&v), [Duty::Post(6)]);
}

#[test]
fn beacons_come_and_batches_are_settled_in_order() {
    let mut v = view();
    v.batches = vec![batch(4, false, None, NOW - 1), batch(5, false, Some(4), NOW - 1)];
    v.epochs = vec![EpochView { epoch: 5, phase: Phase::Closing }];
    assert_eq!(due(&v), [Duty::Close(5), Duty::Settle(4)]);
    v.epochs = vec![EpochView { epoch: 5, phase: Phase::Awaiting { block: 500 } }];
    assert_eq!(due(&v), [Duty::Settle(4)], "the named block is the newest one");
    v.epochs = vec![EpochView { epoch: 5, phase: Phase::Awaiting { block: 499 } }];
    assert_eq!(due(&v), [Duty::FixBeacon(5), Duty::Settle(4)]);
    v.epochs.clear();
    v.batches = vec![batch(4, false, None, NOW)];
    assert_eq!(due(&v), [], "the last second of objections, or of a hold");
    v.batches = vec![BatchView { payable: 0b101, released: 0b001, ..batch(3, true, None, 0) }];
    assert_eq!(due(&v), [Duty::Release(3, 2)]);
}

#[test]
fn what_costs_the_stake_when_it_is_late_comes_first_and_the_struck_do_nothing() {
    let mut v = view();
    let demand = DemandId { provider: ME, epoch: 3, index: 0, kind: DemandKind::Leaf };
    v.demands = vec![DemandView { id: demand, until: NOW - 5 }];
    v.unsettled = 1;
    v.node.heartbeat = 3;
    v.epoch_began = 4;
    let turn = |of, until| Standing::Turn { of, until };
    let table = [
        (Party::Defender, turn(Party::Defender, NOW), Some(true)),
        (Party::Defender, turn(Party::Defender, NOW - 1), None),
        (Party::Defender, turn(Party::Challenger, NOW), None),
        (Party::Defender, turn(Party::Challenger, NOW - 1), Some(false)),
        (Party::Challenger, turn(Party::Challenger, NOW), Some(true)),
        (Party::Challenger, turn(Party::Defender, NOW - 1), Some(false)),
        (Party::Challenger, Standing::Over { winner: Party::Challenger }, None),
        (Party::Challenger, Standing::None, None),
    ];
    for (party, standing, wanted) in table {
        let d = dispute(party, standing);
        v.disputes = vec![d];
        let moves = wanted.map(|own| if own { Duty::Move(d.id, party) } else { Duty::TimeOut(d.id) });
        let all: Vec<Duty> =
            [Some(Duty::Answer(demand)), moves, Some(Duty::SettleIncome), Some(Duty::Heartbeat)]
                .into_iter()
                .flatten()
                .collect();
        assert_eq!(due(&v), all, "{party:?} {standing:?}");
    }
    v.node.struck = true;
    assert_eq!(due(&v), []);
}

#[test]
fn a_node_is_described_when_that_changes_and_is_there_every_epoch() {
    let mut v = view();
    v.epoch_began = NOW - 10;
    let here = Described { endpoint: Some("http://here".into()), price_list: None };
    v.node.heartbeat = NOW - 11;
    assert_eq!(settlement::due(&v, &here), [Duty::Describe]);
    v.node.endpoint = "http://here".into();
    assert_eq!(settlement::due(&v, &here), [Duty::Heartbeat]);
    v.node.heartbeat = NOW - 10;
    assert_eq!(settlement::due(&v, &here), []);
    let prices = Described { price_list: Some(B256::repeat_byte(1)), ..here };
    assert_eq!(settlement::due(&v, &prices), [Duty::Describe]);
}

// ---- auditors

const ID: BatchId = BatchId { epoch: 9, provider: Address::repeat_byte(2) };
const FIXED: u64 = NOW - 100;

fn audits(phase: Phase, member: MemberPhase, work: WorkView) -> auditor::View {
    let member = MemberView { member: 1, phase: member, journalled: true, accusations: 0 };
    auditor::View {
        now: NOW,
        block: 500,
        seats: SeatsView { have: 1, wanted: 1, free: 0, each: 100 },
        vault: 100,
        bonds: Bonds { dispute: 20, accusation: 20, demand: 5 },
        batches: vec![auditor::BatchView {
            id: ID,
            phase,
            fixed_at: FIXED,
            commit_until: FIXED + 800,
            struck: false,
            members: vec![member],
            absent: vec![],
            work,
        }],
        demands: vec![],
        disputes: vec![],
        accusations: vec![],
        accused: vec![],
    }
}

fn done() -> WorkView {
    WorkView { known: true, ..WorkView::default() }
}

#[test]
fn an_auditor_executes_commits_reveals_and_collects() {
    use auditor::Duty;
    let of = |phase, member, work| auditor::due(&audits(phase, member, work));
    let (committing, none) = (Phase::Committing, MemberPhase::None);
    assert_eq!(of(committing, none, WorkView::default()), [Duty::Work(ID)]);
    assert_eq!(of(committing, none, WorkView { left: 3, ..done() }), [Duty::Work(ID)]);
    assert_eq!(of(committing, none, done()), [Duty::Commit(ID, 1)]);
    assert_eq!(of(committing, MemberPhase::Committed, done()), []);
    assert_eq!(
        of(committing, none, WorkView { lacking: 1, ..done() }),
        [Duty::Work(ID)],
        "a model is missing"
    );
    assert_eq!(of(Phase::Revealing, MemberPhase::Committed, done()), [Duty::Reveal(ID, 1)]);
    assert_eq!(of(Phase::Revealing, none, done()), [], "it is too late to commit");
    assert_eq!(of(Phase::Objecting, MemberPhase::Revealed, done()), []);
    assert_eq!(of(Phase::Final, MemberPhase::Revealed, done()), [Duty::Collect(ID, 1)]);
    assert_eq!(of(Phase::Final, MemberPhase::Over, done()), []);
    assert_eq!(of(Phase::Closing, none, WorkView::default()), [Duty::Close(9)]);
    assert_eq!(of(Phase::Awaiting { block: 499 }, none, WorkView::default()), [Duty::FixBeacon(9)]);
    let mut lost = audits(Phase::Revealing, MemberPhase::Committed, done());
    lost.batches[0].members[0].journalled = false;
    assert_eq!(auditor::due(&lost), [], "without its salt nothing can be revealed");
    let mut doubted = audits(Phase::Final, MemberPhase::Revealed, done());
    doubted.batches[0].members[0].accusations = 1;
    assert_eq!(auditor::due(&doubted), []);
    let mut beside = audits(Phase::Objecting, MemberPhase::Revealed, done());
    beside.batches[0].absent = vec![0];
    assert_eq!(auditor::due(&beside), [Duty::ProveAbsence(ID, 0)]);
    let mut elsewhere = audits(committing, none, WorkView::default());
    elsewhere.batches[0].members.clear();
    assert_eq!(auditor::due(&elsewhere), [], "another's panel");
}

#[test]
fn what_a_provider_refuses_is_demanded_after_a_while_and_committed_without_in_the_end() {
    use auditor::Duty;
    let refused = Refused { sequence: 4, kind: DemandKind::Leaf };
    let work = WorkView { known: true, waiting: 1, refused: vec![refused], ..WorkView::default() };
    let mut v = audits(Phase::Committing, MemberPhase::None, work.clone());
    let at = |v: &mut auditor::View, after: u64| {
        v.now = FIXED + after;
        auditor::due(v)
    };
    assert_eq!(at(&mut v, 199), [Duty::Work(ID)]);
    assert_eq!(at(&mut v, 200), [Duty::Work(ID), Duty::Demand(ID, refused)]);
    assert_eq!(at(&mut v, 699), [Duty::Work(ID), Duty::Demand(ID, refused)]);
    assert_eq!(at(&mut v, 700), [Duty::Commit(ID, 1), Duty::Work(ID), Duty::Demand(ID, refused)]);
    v.vault = 4;
    assert_eq!(at(&mut v, 200), [Duty::Work(ID)], "it cannot pay the bond");
    v.vault = 100;
    v.batches[0].work.demanded = auditor::DEMANDS_MAX;
    assert_eq!(at(&mut v, 200), [Duty::Work(ID)], "it pays for so many and no more");
    v.batches[0].work.demanded = 0;
    v.batches[0].struck = true;
    assert_eq!(at(&mut v, 199), [Duty::Work(ID)]);
    let commits = [Duty::Commit(ID, 1), Duty::Work(ID)];
    assert_eq!(at(&mut v, 200), commits, "of who is struck nothing is demanded, and nothing waited for");
    v.batches[0].work = WorkView { lacking: 1, ..work };
    v.batches[0].struck = true;
    assert_eq!(at(&mut v, 700), [Duty::Work(ID)], "who lacks a model is silent");
    let id = DemandId { provider: ID.provider, epoch: 9, index: 4, kind: DemandKind::Leaf };
    v.batches.clear();
    v.demands = vec![(id, FIXED + 300)];
    assert_eq!(at(&mut v, 300), []);
    assert_eq!(at(&mut v, 301), [Duty::ProveSilence(id)]);
}

#[test]
fn what_does_not_stand_is_disputed_as_far_as_bonds_go() {
    use auditor::Duty;
    let wrong = WorkView { wrong: vec![5, 6, 7], ..done() };
    let mut v = audits(Phase::Objecting, MemberPhase::Revealed, wrong);
    v.vault = 45;
    let others =
        [7, 8].map(|epoch| auditor::BatchView { id: BatchId { epoch, ..ID }, ..v.batches[0].clone() });
    v.batches.extend(others);
    let opens: Vec<u64> = auditor::due(&v)
        .into_iter()
        .filter_map(|duty| match duty {
            Duty::Open(id, 5) => Some(id.epoch),
            _ => None,
        })
        .collect();
    assert_eq!(opens, [9, 7], "one of each batch");
    v.batches.truncate(1);
    v.accusations = vec![
        AccusationView { id: B256::repeat_byte(1), until: NOW, stated_is_own: true },
        AccusationView { id: B256::repeat_byte(2), until: NOW, stated_is_own: false },
        AccusationView { id: B256::repeat_byte(3), until: NOW - 1, stated_is_own: false },
    ];
    let defended =
        [Duty::Acquit(B256::repeat_byte(1)), Duty::Contest(B256::repeat_byte(2)), Duty::Open(ID, 5)];
    assert_eq!(auditor::due(&v), defended, "its own stake comes first");
    v.accusations.clear();
    v.batches[0].struck = true;
    assert_eq!(auditor::due(&v), []);
    v.batches[0].struck = false;
    v.batches[0].phase = Phase::Final;
    assert_eq!(auditor::due(&v), [Duty::Collect(ID, 1)], "objections are over");
}

/// A cheat with many receipts would have all an auditor's bonds, and others would go free.
#[test]
fn a_batch_that_is_disputed_is_disputed_again_when_that_is_over_and_nobody_was_struck() {
    use auditor::Duty;
    let wrong = WorkView { wrong: vec![6, 7], disputed: 1, ..done() };
    let mut v = audits(Phase::Objecting, MemberPhase::Revealed, wrong);
    let (until, challenger) = (NOW + 1, Address::repeat_byte(7));
    let id = DisputeId { name: B256::repeat_byte(5), challenger, defender: ID.provider };
    let dispute = |standing| DisputeView { id, party: Party::Challenger, standing };
    v.disputes = vec![dispute(Standing::Turn { of: Party::Defender, until })];
    assert_eq!(auditor::due(&v), []);
    v.disputes = vec![dispute(Standing::Over { winner: Party::Defender })];
    assert_eq!(auditor::due(&v), [Duty::Open(ID, 6)]);
    v.batches[0].work.disputed = 0;
    v.disputes = vec![dispute(Standing::Turn { of: Party::Defender, until })];
    assert_eq!(auditor::due(&v), [Duty::Open(ID, 6)], "a batch without a dispute is not held by another's");
}

/// Honest auditors lost bonds because moves waited for what had more time.
#[test]
fn what_ends_first_comes_first_and_nothing_comes_before_it() {
    use auditor::{Duty, Pressing};
    let of = |name, of, until| {
        let id = DisputeId { name: B256::repeat_byte(name), challenger: ME, defender: ID.provider };
        DisputeView { id, party: Party::Challenger, standing: Standing::Turn { of, until } }
    };
    let (own, theirs) = (Party::Challenger, Party::Defender);
    let disputes = vec![of(1, own, NOW + 9), of(2, theirs, NOW - 9), of(3, own, NOW), of(4, own, NOW - 1)];
    let accusation =
        |id, until, stated_is_own| AccusationView { id: B256::repeat_byte(id), until, stated_is_own };
    let press = Pressing {
        now: NOW,
        vault: 15,
        accusation_bond: 10,
        disputes: disputes.clone(),
        accusations: vec![
            accusation(1, NOW + 2, false),
            accusation(2, NOW + 1, false),
            accusation(3, NOW, true),
        ],
    };
    let id = |n: usize| disputes[n].id;
    let expected = [
        Duty::Move(id(2), own),
        Duty::Move(id(0), own),
        Duty::Acquit(B256::repeat_byte(3)),
        Duty::Contest(B256::repeat_byte(2)),
        Duty::TimeOut(id(1)),
    ];
    assert_eq!(auditor::pressing(&press), expected, "its bonds suffice for the earlier accusation");
    assert!(expected.iter().all(Duty::is_pressing));
    let mut v = audits(Phase::Revealing, MemberPhase::Committed, done());
    (v.vault, v.bonds.accusation) = (press.vault, press.accusation_bond);
    (v.disputes, v.accusations) = (press.disputes, press.accusations);
    let due = auditor::due(&v);
    assert_eq!(due[..5], expected);
    assert_eq!(due[5..], [Duty::Reveal(ID, 1)]);
    assert!(!due[5].is_pressing());
    // A provider's answers and moves likewise.
    let mut p = view();
    p.disputes = disputes.iter().map(|d| DisputeView { party: theirs, ..*d }).collect();
    p.disputes[0].standing = Standing::Turn { of: theirs, until: NOW + 1 };
    assert_eq!(due_moves(&p), [disputes[0].id]);
    assert_eq!(settlement::pressing(NOW, &p.demands, &p.disputes), self::due(&p)[..2]);
}

fn due_moves(view: &View) -> Vec<DisputeId> {
    due(view).into_iter().filter_map(|d| if let Duty::Move(id, _) = d { Some(id) } else { None }).collect()
}

#[test]
fn others_are_doubted_when_reveals_are_over_as_far_as_bonds_go() {
    use auditor::{Doubt, Duty};
    let doubt = |of: u8| Doubt { auditor: Address::repeat_byte(of), member: of, sequence: 3 };
    let mut v = audits(
        Phase::Objecting,
        MemberPhase::Revealed,
        WorkView { doubts: vec![doubt(4), doubt(5)], ..done() },
    );
    (v.vault, v.bonds.accusation) = (19, 10);
    assert_eq!(auditor::due(&v), [Duty::Accuse(ID, doubt(4))], "it can pay for one");
    v.batches[0].struck = true;
    assert_eq!(auditor::due(&v), []);
    v.batches[0].struck = false;
    for phase in [Phase::Committing, Phase::Revealing] {
        v.batches[0].phase = phase;
        assert_eq!(auditor::due(&v), [], "{phase:?}");
    }
    v.batches.clear();
    v.accused = vec![(B256::repeat_byte(7), NOW - 1), (B256::repeat_byte(8), NOW)];
    assert_eq!(auditor::due(&v), [Duty::Lapse(B256::repeat_byte(7))], "the other one may still be answered");
}

#[test]
fn what_can_wait_is_done_in_parts() {
    use auditor::Duty;
    let mut v = audits(Phase::Final, MemberPhase::Revealed, done());
    let batch = v.batches[0].clone();
    let many = auditor::UNHURRIED_MAX as u64 + 5;
    v.batches =
        (0..many).map(|epoch| auditor::BatchView { id: BatchId { epoch, ..ID }, ..batch.clone() }).collect();
    v.batches.push(auditor::BatchView { phase: Phase::Revealing, ..batch });
    v.batches.last_mut().unwrap().members[0].phase = MemberPhase::Committed;
    let due = auditor::due(&v);
    assert_eq!(due.len(), auditor::UNHURRIED_MAX + 1);
    assert_eq!(due[0], Duty::Reveal(ID, 1), "what has an end comes first");
    assert_eq!(due[1], Duty::Collect(BatchId { epoch: 0, ..ID }, 1));
}

/// After a reorganisation that brought another beacon, what was committed to under the first one is no use.
#[test]
fn a_commitment_that_is_not_known_here_is_replaced_as_long_as_there_is_time() {
    use auditor::Duty;
    let mut v = audits(Phase::Committing, MemberPhase::Committed, WorkView { left: 1, ..done() });
    assert_eq!(auditor::due(&v), []);
    v.batches[0].members[0].journalled = false;
    assert_eq!(auditor::due(&v), [Duty::Work(ID)]);
    v.batches[0].work.left = 0;
    assert_eq!(auditor::due(&v), [Duty::Commit(ID, 1)]);
}

#[test]
fn seats_are_taken_as_far_as_stake_goes() {
    use auditor::Duty;
    let seats = |have, wanted, free| {
        let mut v = audits(Phase::Running, MemberPhase::None, done());
        v.batches.clear();
        v.seats = SeatsView { have, wanted, free, each: 100 };
        auditor::due(&v)
    };
    assert_eq!(seats(2, 2, 1_000), []);
    assert_eq!(seats(3, 2, 1_000), []);
    assert_eq!(seats(0, 2, 1_000), [Duty::TakeSeats(2)]);
    assert_eq!(seats(0, 2, 199), [Duty::TakeSeats(1)]);
    assert_eq!(seats(0, 2, 99), [Duty::Lack(2)]);
}
