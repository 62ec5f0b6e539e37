//! Posting, the beacon, release, objections and refunds.

use std::collections::BTreeMap;

use alloy_primitives::{B256, U256};
use assay_chain::scratch::header;
use assay_core::merkle;
use assay_core::receipt::Receipt;
use assay_ledger::contracts::{Channels, Epochs, Objections, Registry};

use crate::network::{Actor, DOLLAR, Network, PROVIDER, Posted, b, receipt, signed, some};

const FEE: u64 = 100_000;
const LEAF: u8 = 0;

/// A provider with stake and a pot, its payer, and the channel between them.
pub struct Market {
    pub payer: Actor,
    pub provider: Actor,
    pub author: Actor,
    pub config: Channels::ChannelConfig,
    pub channel: B256,
    pub model: [u8; 32],
}

pub fn market(n: &mut Network, pot: u64) -> Market {
    let (payer, provider, author) = (n.rich("payer", 1000), n.rich("provider", 1000), n.rich("author", 0));
    n.enrol(&provider, PROVIDER, 10 * DOLLAR);
    let model = some("model");
    let registry = n.parts.at.registry;
    let list = Registry::listCall {
        modelRoot: model.into(),
        royaltyPpm: 50_000,
        contentRoot: B256::ZERO,
        chunks: 0,
        manifest: String::new(),
    };
    n.send(&author, registry, list).unwrap();
    let config = n.config(&payer, &provider, 0);
    n.fund(&payer, &config, 500 * DOLLAR).unwrap();
    n.earn(&payer, &provider, &config, pot).unwrap();
    let channel = n.channel_id(&config);
    Market { payer, provider, author, config, channel, model }
}

impl Market {
    /// `count` receipts from `first` on, with a gap at the third.
    pub fn posted(&self, n: &Network, first: u64, count: u64, epoch: u64) -> Posted {
        let receipts = (0..count)
            .map(|i| {
                (i != 2).then(|| receipt(&self.provider, first + i, self.model, FEE, self.channel, epoch))
            })
            .collect();
        Posted::of(&n.domain(), first, receipts, &BTreeMap::from([(self.model, self.author.address)]))
    }
}

#[test]
pub fn receipts_hash_as_the_contract_says() {
    let mut n = Network::new();
    let m = market(&mut n, DOLLAR);
    let posted = m.posted(&n, 0, 5, 0);
    n.end_epoch(0);
    n.post(&m.provider, 0, &posted).unwrap();
    // An opened leaf is the core's hash of the same receipt, or the contract would refuse the path.
    let objections = n.parts.at.objections;
    for index in 0..5 {
        let demand = Objections::demandLeafCall { provider: m.provider.address, epoch: 0, index };
        n.send(&m.payer, objections, demand).unwrap();
        let opening = posted.opening(index as usize, 50_000, 30_000);
        let answer = Objections::answerLeafCall { provider: m.provider.address, epoch: 0, index, opening };
        n.send(&m.provider, objections, answer).unwrap();
    }
    n.check_money();
}

#[test]
pub fn posting_has_its_time_and_its_order() {
    let mut n = Network::new();
    let m = market(&mut n, 10 * DOLLAR);
    let first = m.posted(&n, 7, 5, 0);
    assert!(n.post(&m.provider, 0, &first).unwrap_err().is::<Epochs::NotPosting>());
    n.end_epoch(0);
    let thief = Actor::named("thief");
    let epochs = n.parts.at.epochs;
    let stolen = n.send(&thief, epochs, first.call(m.provider.address, 0)).unwrap_err();
    assert!(stolen.is::<Epochs::NotNode>());
    n.post(&m.provider, 0, &first).unwrap();
    assert!(n.post(&m.provider, 0, &first).unwrap_err().is::<Epochs::AlreadyPosted>());
    n.end_epoch(1);
    let gap = m.posted(&n, 13, 2, 1);
    assert!(n.post(&m.provider, 1, &gap).unwrap_err().is::<Epochs::SequenceGap>());
    let much = m.posted(&n, 12, 200, 1);
    assert!(n.post(&m.provider, 1, &much).unwrap_err().is::<Epochs::TotalTooHigh>());
    let next = m.posted(&n, 12, 2, 1);
    n.draw(1);
    assert!(n.post(&m.provider, 1, &next).unwrap_err().is::<Epochs::NotPosting>());
    // Late, without guilt.
    n.end_epoch(2);
    n.post(&m.provider, 2, &next).unwrap();
    n.check_money();
}

#[test]
pub fn the_beacon_is_of_a_block_that_nobody_chose() {
    let mut n = Network::new();
    let epochs = n.parts.at.epochs;
    let anyone = Actor::named("anyone");
    n.end_epoch(0);
    let close = Epochs::closeCall { epoch: 0 };
    assert!(n.send(&anyone, epochs, close.clone()).unwrap_err().is::<Epochs::PostingOpen>());
    n.chain.mine(1, 900);
    n.send(&anyone, epochs, close.clone()).unwrap();
    let named = n.chain.number() + 4;
    assert_eq!(n.chain.read(epochs, &Epochs::beaconOfCall { epoch: 0 }).unwrap().number, named);
    let fix = |number: u64| Epochs::fixBeaconCall { epoch: 0, header: header(number).into() };
    assert!(n.send(&anyone, epochs, fix(named)).unwrap_err().is::<Epochs::WrongHeader>());
    n.chain.mine(4, 48);
    assert!(n.send(&anyone, epochs, fix(named)).unwrap_err().is::<Epochs::WrongHeader>(), "its own block");
    n.chain.mine(1, 12);
    assert!(n.send(&anyone, epochs, fix(named - 1)).unwrap_err().is::<Epochs::WrongHeader>());
    assert!(n.send(&anyone, epochs, close.clone()).unwrap_err().is::<Epochs::BeaconPending>());
    // Forgotten: another block is named.
    n.chain.mine(300, 3600);
    assert!(n.send(&anyone, epochs, fix(named)).unwrap_err().is::<Epochs::WrongHeader>());
    n.send(&anyone, epochs, close.clone()).unwrap();
    let named = n.chain.number() + 4;
    n.chain.mine(5, 60);
    n.send(&anyone, epochs, fix(named)).unwrap();
    assert!(n.send(&anyone, epochs, fix(named)).unwrap_err().is::<Epochs::BeaconAlreadyFixed>());
    assert!(n.send(&anyone, epochs, close).unwrap_err().is::<Epochs::BeaconAlreadyFixed>());
}

#[test]
pub fn fees_are_split_to_the_unit() {
    let mut n = Network::new();
    let m = market(&mut n, 10 * DOLLAR);
    n.end_epoch(0);
    let mut posted = m.posted(&n, 0, 6, 0);
    posted.receipts[0].as_mut().unwrap().fee_micro_usd = 33_333;
    let posted = Posted::of(&n.domain(), 0, posted.receipts, &BTreeMap::from([(m.model, m.author.address)]));
    n.post(&m.provider, 0, &posted).unwrap();
    let (_, fixed) = n.draw(0);
    let epochs = n.parts.at.epochs;
    let settle = Epochs::settleCall { provider: m.provider.address, epoch: 0 };
    assert!(n.send(&m.provider, epochs, settle.clone()).unwrap_err().is::<Epochs::AuditOpen>());
    n.chain.warp(fixed + 14_400 + 1);
    let treasury = n.treasury;
    let before = (n.node(m.provider.address).stake, n.balance(treasury));
    n.send(&m.provider, epochs, settle.clone()).unwrap();
    assert!(n.send(&m.provider, epochs, settle).unwrap_err().is::<Epochs::AlreadyDone>());
    let share = posted.share_leaves(50_000, 30_000)[0].clone();
    let leaf = n.chain.read(epochs, &Epochs::shareLeafCall { s: share.clone() }).unwrap();
    let proof = merkle::prove(&[crate::network::core_hash(leaf)], 0).unwrap();
    let mut greedy = share.clone();
    greedy.royalty += 1;
    let release = |share: Epochs::ShareLeaf| Epochs::releaseCall {
        provider: m.provider.address,
        epoch: 0,
        share,
        proof: (&proof).into(),
    };
    assert!(n.send(&m.author, epochs, release(greedy)).unwrap_err().is::<Epochs::BadProof>());
    n.send(&m.author, epochs, release(share.clone())).unwrap();
    assert!(n.send(&m.author, epochs, release(share.clone())).unwrap_err().is::<Epochs::AlreadyDone>());

    let total = posted.total();
    let batch = n.batch(m.provider.address, 0);
    let protocol = total / 100;
    assert_eq!(batch.providerPart + batch.auditorsPart + protocol + share.royalty + share.hosts, total);
    assert_eq!(n.balance(m.author.address), total * 5 / 100);
    // Nobody hosts it: the hosts' part is the treasury's.
    assert_eq!(n.balance(treasury) - before.1, protocol + share.hosts);
    assert_eq!(n.node(m.provider.address).stake - before.0, u128::from(batch.providerPart));
    // No auditor had a seat: the members' parts are the treasury's, once.
    let audits = n.parts.at.audits;
    for member in 0..batch.panel {
        let absent = assay_ledger::contracts::Audits::proveAbsenceCall {
            provider: m.provider.address,
            epoch: 0,
            member: U256::from(member),
        };
        n.send(&m.payer, audits, absent.clone()).unwrap();
        assert!(n.send(&m.payer, audits, absent).is_err());
    }
    assert_eq!(n.balance(epochs), 10 * DOLLAR - total);
    n.check_money();
}

#[test]
pub fn stake_that_answers_for_an_open_epoch_does_not_leave() {
    let mut n = Network::new();
    let m = market(&mut n, 10 * DOLLAR);
    let (registry, epochs) = (n.parts.at.registry, n.parts.at.epochs);
    n.end_epoch(0);
    let posted = m.posted(&n, 0, 6, 0);
    n.post(&m.provider, 0, &posted).unwrap();
    let node = m.provider.address;
    n.send(&m.provider, registry, Registry::unbondCall { node, amount: U256::from(DOLLAR) }).unwrap();
    n.chain.mine(1, 1_000_000);
    // Nobody fixed a beacon for days. The exit waits, and its owner can end the wait alone.
    let withdraw = |nextOpen: u64| Registry::withdrawCall { node, nextOpen };
    assert!(n.send(&m.provider, registry, withdraw(0)).unwrap_err().is::<Registry::EpochsOpen>());
    assert!(n.send(&m.provider, registry, withdraw(5)).unwrap_err().is::<Registry::EpochsOpen>());
    n.draw(0);
    n.chain.mine(1, 14_401);
    n.send(&m.provider, epochs, Epochs::settleCall { provider: node, epoch: 0 }).unwrap();
    n.send(&m.provider, registry, withdraw(0)).unwrap();
    n.check_money();
}

fn conflict(x: &Receipt, y: &Receipt, n: &Network, by: &Actor) -> Objections::proveConflictCall {
    Objections::proveConflictCall {
        x: x.into(),
        xSignature: signed(n, by, x),
        y: y.into(),
        ySignature: signed(n, by, y),
    }
}

#[test]
pub fn two_truths_strike_and_payers_get_their_fees_back() {
    let mut n = Network::new();
    let m = market(&mut n, 10 * DOLLAR);
    let (objections, epochs) = (n.parts.at.objections, n.parts.at.epochs);
    let reporter = n.rich("reporter", 0);
    n.end_epoch(0);
    let posted = m.posted(&n, 0, 6, 0);
    n.post(&m.provider, 0, &posted).unwrap();
    // Half a receipt's fee is claimed for what is not posted yet.
    n.earn(&m.payer, &m.provider, &m.config, 10 * DOLLAR + FEE / 2).unwrap();

    let x = posted.receipts[0].clone().unwrap();
    let mut y = x.clone();
    y.fee_micro_usd += 1;
    let mut again = x.clone();
    again.sequence = 99;
    // The same answer twice is none; another provider's receipt is none.
    let same = n.send(&reporter, objections, conflict(&x, &again, &n, &m.provider)).unwrap_err();
    assert!(same.is::<Objections::NoConflict>());
    assert!(n.send(&reporter, objections, conflict(&x, &y, &n, &m.payer)).is_err());
    // Nor is an answer that was stopped beside the whole one, whatever else differs.
    let mut stopped = again.clone();
    stopped.completion_tokens += 1;
    stopped.transcript_root = assay_core::id::TranscriptRoot::from_bytes([7; 32]);
    let shorter = n.send(&reporter, objections, conflict(&x, &stopped, &n, &m.provider)).unwrap_err();
    assert!(shorter.is::<Objections::NoConflict>());
    let treasury = n.treasury;
    let before = n.balance(treasury);
    n.send(&reporter, objections, conflict(&x, &y, &n, &m.provider)).unwrap();
    assert_eq!(n.balance(reporter.address), DOLLAR);
    assert_eq!(n.balance(treasury) - before, 9 * DOLLAR);
    n.check_money();

    // Open epochs do not settle, nothing more is posted, payers are refunded less what auditors get.
    n.end_epoch(1);
    let next = m.posted(&n, 6, 2, 1);
    assert!(n.post(&m.provider, 1, &next).unwrap_err().is::<Epochs::NotProvider>());
    let (_, fixed) = n.draw(0);
    n.chain.warp(fixed + 20_000);
    let settle = Epochs::settleCall { provider: m.provider.address, epoch: 0 };
    assert!(n.send(&m.provider, epochs, settle).unwrap_err().is::<Epochs::Forfeit>());
    let refund = |index: usize| Epochs::refundCall {
        receipt: posted.receipts[index].as_ref().unwrap().into(),
        config: Epochs::ChannelConfig {
            payer: m.config.payer,
            payerAuthorizer: m.config.payerAuthorizer,
            receiver: m.config.receiver,
            receiverAuthorizer: m.config.receiverAuthorizer,
            token: m.config.token,
            withdrawDelay: m.config.withdrawDelay,
            salt: m.config.salt,
        },
        epoch: 0,
        proof: (&posted.proof(index)).into(),
        signature: Default::default(),
    };
    let batch = n.batch(m.provider.address, 0);
    let back = FEE * (batch.total - batch.auditorsPart) / batch.total;
    let held = n.balance(m.payer.address);
    n.send(&reporter, epochs, refund(0)).unwrap();
    n.send(&reporter, epochs, refund(1)).unwrap();
    assert!(n.send(&reporter, epochs, refund(1)).unwrap_err().is::<Epochs::AlreadyDone>());
    assert_eq!(n.balance(m.payer.address) - held, 2 * back);

    // What was never posted, by the signature, and not more than was claimed since.
    let late = receipt(&m.provider, 6, m.model, FEE, m.channel, 1);
    let mut call = refund(0);
    call.receipt = (&late).into();
    call.signature = signed(&n, &m.provider, &late);
    n.send(&reporter, epochs, call.clone()).unwrap();
    assert_eq!(n.balance(m.payer.address) - held, 2 * back + FEE / 2);
    // Not what stands in a batch, and nobody else's channel.
    call.receipt = posted.receipts[3].as_ref().unwrap().into();
    call.signature = signed(&n, &m.provider, posted.receipts[3].as_ref().unwrap());
    assert!(n.send(&reporter, epochs, call).unwrap_err().is::<Epochs::BadProof>());
    let mut other = refund(3);
    other.config.salt = B256::repeat_byte(1);
    assert!(n.send(&reporter, epochs, other).unwrap_err().is::<Epochs::WrongChannel>());

    let sweep = Epochs::sweepCall { provider: m.provider.address };
    assert!(n.send(&reporter, epochs, sweep.clone()).unwrap_err().is::<Epochs::RefundsOpen>());
    n.chain.mine(1, 86_400);
    n.send(&reporter, epochs, sweep).unwrap();
    assert_eq!(n.balance(epochs), batch.auditorsPart);
    n.check_money();
}

#[test]
pub fn a_receipt_left_out_and_a_false_count_strike() {
    for miscount in [false, true] {
        let mut n = Network::new();
        let m = market(&mut n, 10 * DOLLAR);
        let objections = n.parts.at.objections;
        n.end_epoch(0);
        let posted = m.posted(&n, 0, 6, 0);
        let mut call = posted.call(m.provider.address, 0);
        if miscount {
            call.count = 5;
        }
        let epochs = n.parts.at.epochs;
        n.send(&m.provider, epochs, call).unwrap();
        let prove = |index: usize| Objections::proveMiscountCall {
            provider: m.provider.address,
            epoch: 0,
            leaf: b(posted.leaves[index]),
            proof: (&posted.proof(index)).into(),
        };
        if miscount {
            n.send(&m.payer, objections, prove(1)).unwrap();
        } else {
            assert!(n.send(&m.payer, objections, prove(1)).unwrap_err().is::<Objections::NotMiscounted>());
            let left_out = |receipt: &Receipt, index: usize| Objections::proveLeftOutCall {
                receipt: receipt.into(),
                signature: signed(&n, &m.provider, receipt),
                epoch: 0,
                leaf: b(posted.leaves[index]),
                proof: (&posted.proof(index)).into(),
            };
            let inside = posted.receipts[1].clone().unwrap();
            let honest = left_out(&inside, 1);
            let elsewhere = left_out(&inside, 2);
            let hidden = left_out(&receipt(&m.provider, 2, m.model, FEE, m.channel, 0), 2);
            assert!(n.send(&m.payer, objections, honest).unwrap_err().is::<Objections::NotLeftOut>());
            assert!(n.send(&m.payer, objections, elsewhere).unwrap_err().is::<Objections::NotLeftOut>());
            n.send(&m.payer, objections, hidden).unwrap();
        }
        assert!(n.node(m.provider.address).struck);
        n.check_money();
    }
}

#[test]
pub fn a_batch_out_of_order_has_a_leaf_that_cannot_be_opened() {
    let mut n = Network::new();
    let m = market(&mut n, 10 * DOLLAR);
    let objections = n.parts.at.objections;
    n.end_epoch(0);
    // The last total is right, a step on the way is not: receipt 3 counts twice, receipt 4 not at all.
    let mut posted = m.posted(&n, 0, 6, 0);
    posted.tallies[3] = posted.tallies[4].clone();
    n.post(&m.provider, 0, &posted).unwrap();
    for (index, right) in [(0, true), (2, true), (3, false), (4, false), (5, true)] {
        let demand = Objections::demandLeafCall { provider: m.provider.address, epoch: 0, index };
        n.send(&m.payer, objections, demand).unwrap();
        let opening = posted.opening(index as usize, 50_000, 30_000);
        let answer = Objections::answerLeafCall { provider: m.provider.address, epoch: 0, index, opening };
        let answered = n.send(&m.provider, objections, answer);
        assert_eq!(answered.is_ok(), right, "leaf {index}");
        assert!(right || answered.unwrap_err().is::<Objections::BadOpening>());
    }
    let silence =
        Objections::proveSilenceCall { provider: m.provider.address, epoch: 0, index: 3, kind: LEAF };
    assert!(n.send(&m.payer, objections, silence.clone()).unwrap_err().is::<Objections::TooSoon>());
    n.chain.mine(1, 3601);
    let held = n.balance(m.payer.address);
    n.send(&m.author, objections, silence).unwrap();
    // Who asked has its bond back and is the reporter, whoever calls.
    assert_eq!(n.balance(m.payer.address) - held, 5 * DOLLAR + DOLLAR);
    assert!(n.node(m.provider.address).struck);
    n.check_money();
}

#[test]
pub fn a_demand_holds_the_epoch_and_pays_for_its_answer() {
    let mut n = Network::new();
    let m = market(&mut n, 10 * DOLLAR);
    let (objections, epochs) = (n.parts.at.objections, n.parts.at.epochs);
    n.end_epoch(0);
    let posted = m.posted(&n, 0, 6, 0);
    n.post(&m.provider, 0, &posted).unwrap();
    let (_, fixed) = n.draw(0);
    n.chain.warp(fixed + 14_400);
    let demand = Objections::demandLeafCall { provider: m.provider.address, epoch: 0, index: 1 };
    n.send(&m.payer, objections, demand.clone()).unwrap();
    assert!(n.send(&m.payer, objections, demand).unwrap_err().is::<Objections::AlreadyDemanded>());
    n.chain.mine(1, 1);
    let settle = Epochs::settleCall { provider: m.provider.address, epoch: 0 };
    assert!(n.send(&m.provider, epochs, settle.clone()).unwrap_err().is::<Epochs::AuditOpen>());
    let late = Objections::demandLeafCall { provider: m.provider.address, epoch: 0, index: 2 };
    assert!(n.send(&m.payer, objections, late).unwrap_err().is::<Objections::TooLate>());
    let held = n.balance(m.provider.address);
    let opening = posted.opening(1, 50_000, 30_000);
    let answer = Objections::answerLeafCall { provider: m.provider.address, epoch: 0, index: 1, opening };
    n.send(&m.author, objections, answer).unwrap();
    assert_eq!(n.balance(m.provider.address) - held, 5 * DOLLAR);
    n.chain.mine(1, 7201);
    n.send(&m.provider, epochs, settle).unwrap();
    n.check_money();
}

#[test]
pub fn only_the_dispute_contract_holds_and_not_for_ever() {
    let mut n = Network::new();
    let m = market(&mut n, 10 * DOLLAR);
    let epochs = n.parts.at.epochs;
    n.end_epoch(0);
    let posted = m.posted(&n, 0, 6, 0);
    n.post(&m.provider, 0, &posted).unwrap();
    let (_, fixed) = n.draw(0);
    let hold_at = |sequence| Epochs::holdCall { provider: m.provider.address, epoch: 0, sequence };
    let hold = hold_at(5);
    assert!(n.send(&m.payer, epochs, hold.clone()).unwrap_err().is::<Epochs::NotAuthorised>());
    let disputes = n.disputes.clone();
    n.chain.warp(fixed + 14_400);
    assert!(!n.send(&disputes, epochs, hold_at(6)).unwrap().value, "that number is in no batch yet");
    assert!(n.send(&disputes, epochs, hold.clone()).unwrap().value);
    n.chain.mine(1, 1);
    assert!(!n.send(&disputes, epochs, hold).unwrap().value, "objections are over");
    n.chain.mine(1, 7200);
    n.send(&m.provider, epochs, Epochs::settleCall { provider: m.provider.address, epoch: 0 }).unwrap();
}

#[test]
pub fn who_has_nothing_at_stake_posts_few_receipts() {
    let mut n = Network::new();
    let m = market(&mut n, 500 * DOLLAR);
    let (registry, epochs) = (n.parts.at.registry, n.parts.at.epochs);
    let node = m.provider.address;
    n.send(&m.provider, registry, Registry::unbondCall { node, amount: U256::from(10 * DOLLAR) }).unwrap();
    n.end_epoch(0);
    let posted = m.posted(&n, 0, 2, 0);
    let mut call = posted.call(node, 0);
    call.count = 4097;
    assert!(n.send(&m.provider, epochs, call.clone()).unwrap_err().is::<Epochs::TooManyAudits>());
    call.count = 4096;
    n.send(&m.provider, epochs, call).unwrap();
    assert_eq!(n.batch(node, 0).panel, 16);
}
