//! Providers and auditors that play their parts by themselves: an honest epoch from paid receipts to payout, to the unit, with the provider killed after
//! every step; a cheat that is drawn, disputed and struck; an auditor that dies between commitment and reveal; a provider that refuses.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;
mod economy;
#[path = "../../verify/tests/honest/mod.rs"]
mod honest;

use alloy_primitives::Bytes;
use assay_core::answer::AnswerRecord;
use assay_ledger::contracts::Directory::Parameters;
use assay_ledger::contracts::{Channels, Epochs};
use assay_ledger::ledger::Phase;
use assay_node::auditor;
use assay_node::execution::Verdict;
use assay_node::settlement::Event;
use assay_verify::dispute::Party;
use assay_verify::trace::walk::{Subject, Trace};
use chains::{DOLLAR, parameters};
use economy::{Checker, Economy, FEE, Provider, ROYALTY_PPM};

const ANSWERS: u64 = 4;
const STAKE: u64 = 20;

/// Every receipt is drawn, so that nothing depends on the beacon.
fn all_drawn() -> Parameters {
    let mut p = parameters();
    p.rates.rateMinPpm = 1_000_000;
    p
}

/// Closes the posting of an epoch and has the beacon fixed, by the provider's own steps.
async fn draw(e: &Economy, provider: &Provider, epoch: u64) {
    e.node.advance(1_800).await;
    assert_eq!(e.ledger.phase(epoch).await.unwrap(), Phase::Closing);
    provider.steps(e).await;
    e.node.mine(6).await;
    provider.steps(e).await;
    assert_eq!(e.ledger.phase(epoch).await.unwrap(), Phase::Committing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_epoch_is_paid_to_the_unit_however_often_its_provider_dies() {
    let e = Economy::new(all_drawn()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let auditors = [Checker::new(&e, "auditor 0", 2).await, Checker::new(&e, "auditor 1", 2).await];
    for auditor in &auditors {
        auditor.rounds(&e).await;
        assert_eq!(auditor.count("seated"), 1, "{:?}", auditor.events);
    }
    // Free answers from before the provider joined have no place on this ledger.
    {
        let store = provider.store();
        let mut free = provider.answer(&e, &store, 0, 99);
        free.receipt.receipt.fee_micro_usd = 0;
        store.put(&assay_core::embedding::Record::Answer(Box::new(free))).unwrap();
    }
    provider.steps(&e).await;
    assert_eq!(e.node_of(provider.account).await.endpoint, provider.front.url);
    e.node.advance(3_600).await;
    let epoch = e.ledger.epoch().await.unwrap();
    {
        let store = provider.store();
        for seed in 0..ANSWERS {
            provider.serve(&e, &store, epoch, seed);
        }
    }
    // While the epoch runs there is nothing to post, and no payer leaves.
    provider.steps(&e).await;
    assert_eq!((provider.count("claimed"), provider.count("posted")), (0, 0), "{:?}", provider.events);
    e.node.advance(3_600).await;
    provider.steps(&e).await;
    let batch = e.batch(provider.account, epoch).await;
    let total = ANSWERS * FEE;
    assert_eq!((batch.state, batch.total, u64::from(batch.count)), (1, total, ANSWERS));
    draw(&e, &provider, epoch).await;

    // Auditors come for the records to the provider as it lives now.
    let mut living = provider.live(&e).await;
    living.settlement.round().await.unwrap();
    let before: u128 = e.vault(auditors[0].account).await + e.vault(auditors[1].account).await;
    for auditor in &auditors {
        auditor.rounds(&e).await;
        assert!(auditor.failures().is_empty(), "{:?}", auditor.failures());
    }
    assert!(provider.count("audited") >= 2, "{:?}", provider.events);
    drop(living);
    e.node.advance(3_601).await;
    for auditor in &auditors {
        auditor.rounds(&e).await;
    }
    e.node.advance(3_601).await;
    e.node.advance(3_601).await;
    assert_eq!(e.ledger.phase(epoch).await.unwrap(), Phase::Final);
    provider.steps(&e).await;
    for auditor in &auditors {
        auditor.rounds(&e).await;
        assert!(auditor.failures().is_empty(), "{:?}", auditor.failures());
    }
    assert!(provider.failures().is_empty(), "{:?}", provider.failures());

    let part = |ppm: u32| u128::from(total * u64::from(ppm) / 1_000_000);
    let split = &e.ledger.parameters().split;
    let (royalty, hosts, protocol) = (part(ROYALTY_PPM), part(split.hostsPpm), part(split.protocolPpm));
    let audits = part(split.auditCostPpm) / u128::from(batch.panel) * u128::from(batch.panel);
    assert_eq!(u128::from(batch.auditorsPart), audits);
    let earned = u128::from(total) - royalty - hosts - protocol - audits;
    assert_eq!(e.node_of(provider.account).await.stake, u128::from(STAKE * DOLLAR) + earned);
    assert_eq!(e.vault(e.author.account()).await, royalty);
    let paid = e.vault(auditors[0].account).await + e.vault(auditors[1].account).await - before;
    assert_eq!(paid, audits, "{:?}", [&auditors[0].events, &auditors[1].events]);
    let at = e.ledger.parts().at.clone();
    assert_eq!(e.vault(at.treasury).await + e.held(at.retrieval).await, protocol + hosts);
    assert_eq!(e.held(at.epochs).await, 0, "nothing is left that nobody owns");
    let posted = |event: &Event| {
        *event == Event::Posted { epoch, count: 4, total: assay_ledger::amount::Amount(total.into()) }
    };
    assert!(provider.events.lock().unwrap().iter().any(posted));
    assert_eq!((provider.count("settled"), provider.count("released"), provider.count("missed")), (1, 1, 0));
    // It can leave now: nothing of it is open.
    let mut living = provider.live(&e).await;
    assert!(living.settlement.is_clear().await.unwrap());
}

/// One of the answers with a token that the model did not choose, executed as if it had.
fn swapped(e: &Economy, mut record: AnswerRecord) -> AnswerRecord {
    let id = &mut record.transcript.output_ids[5];
    *id = (*id + 1) % 1024;
    let model = assay_verify::reexecution::Subject {
        root: e.model_root(),
        program: assay_engine::constants::Constants::program(e.model.artifact.as_ref()).program(),
        text: e.model.artifact.text(),
        tokenizer: &e.model.tokenizer,
    };
    let subject = Subject::of(&record, &model).unwrap();
    record.digests = Trace::new(e.model.artifact.as_ref(), subject, &mut e.model.executor()).digests();
    let receipt = &mut record.receipt.receipt;
    receipt.transcript_root = record.transcript.root();
    receipt.digest_root = record.digests.root();
    record
}

/// An epoch in which a provider has answered, with its second answer changed by `change`, up to its beacon.
async fn epoch_with(
    e: &Economy,
    provider: &Provider,
    auditors: &[&Checker],
    change: impl Fn(AnswerRecord) -> AnswerRecord,
) -> (u64, Vec<AnswerRecord>) {
    for auditor in auditors {
        auditor.rounds(e).await;
    }
    e.node.advance(3_600).await;
    let epoch = e.ledger.epoch().await.unwrap();
    let mut records = Vec::new();
    {
        let store = provider.store();
        for seed in 0..3 {
            let record = provider.answer(e, &store, epoch, seed);
            let record = if seed == 1 { change(record) } else { record };
            records.push(provider.keep(e, &store, record));
        }
    }
    e.node.advance(3_600).await;
    provider.steps(e).await;
    draw(e, provider, epoch).await;
    (epoch, records)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cheat_is_drawn_disputed_and_struck_and_its_payer_gets_the_fee_back() {
    let e = Economy::new(all_drawn()).await;
    let cheat = Provider::new(&e, "cheat", STAKE).await;
    let auditor = Checker::new(&e, "auditor", 1).await;
    let (epoch, records) = epoch_with(&e, &cheat, &[&auditor], |record| swapped(&e, record)).await;
    let before = e.vault(auditor.account).await;

    let mut living = cheat.live(&e).await;
    living.settlement.round().await.unwrap();
    // Both play by themselves; the auditor dies after every step.
    for _ in 0..60 {
        let mut alive = auditor.live(&e).await;
        alive.some(1).await.unwrap();
        // Leaves, records, and what one of them came to: what else was under way is lost.
        for _ in 0..3 {
            alive.worked().await;
        }
        drop(alive);
        if e.node_of(cheat.account).await.struck {
            break;
        }
        living.settlement.round().await.unwrap();
    }
    assert!(e.node_of(cheat.account).await.struck, "{:?} {:?}", auditor.events, cheat.events);
    assert_eq!(auditor.count("opened"), 1, "{:?}", auditor.events);
    assert!(
        auditor.count("moved") >= 3 && cheat.count("moved") >= 3,
        "{:?} {:?}",
        auditor.events,
        cheat.events
    );
    assert!(auditor.failures().is_empty(), "{:?}", auditor.failures());
    auditor.rounds(&e).await;
    let ended =
        |event: &auditor::Event| matches!(event, auditor::Event::Ended { winner: Party::Challenger, .. });
    assert!(auditor.events.lock().unwrap().iter().any(ended), "{:?}", auditor.events);
    // The bond is back, and a tenth of the stake with it.
    assert_eq!(e.vault(auditor.account).await - before, u128::from(STAKE * DOLLAR / 10));
    living.settlement.round().await.unwrap();
    assert_eq!((cheat.count("struck"), living.settlement.round().await.unwrap()), (1, 0));

    // Its payer has the fee of the wrong answer back, less what the audit costs.
    let batch = e.batch(cheat.account, epoch).await;
    let has = e.vault(e.payer.account()).await;
    let builder_folder = std::fs::read_dir(cheat.folder.join("epochs")).unwrap();
    assert!(builder_folder.count() > 0);
    let leaves: Vec<_> = records
        .iter()
        .map(|r| {
            let signed = &r.receipt;
            assay_core::merkle::leaf(signed.receipt.signing_hash(&signed.domain).as_bytes())
        })
        .collect();
    let proof = assay_core::merkle::prove(&leaves, 1).unwrap();
    let config = Epochs::ChannelConfig {
        payer: cheat.config.payer,
        payerAuthorizer: cheat.config.payerAuthorizer,
        receiver: cheat.config.receiver,
        receiverAuthorizer: cheat.config.receiverAuthorizer,
        token: cheat.config.token,
        withdrawDelay: cheat.config.withdrawDelay,
        salt: cheat.config.salt,
    };
    let refund = Epochs::refundCall {
        receipt: (&records[1].receipt.receipt).into(),
        config,
        epoch,
        proof: (&proof).into(),
        signature: Bytes::new(),
    };
    e.payer.send("refund", e.ledger.parts().at.epochs, &refund).await.unwrap();
    let back = FEE * (batch.total - batch.auditorsPart) / batch.total;
    assert_eq!(e.vault(e.payer.account()).await - has, u128::from(back));
    // The audit of a struck provider is paid all the same.
    auditor.rounds(&e).await;
    for _ in 0..3 {
        e.node.advance(3_601).await;
        auditor.rounds(&e).await;
    }
    assert_eq!(auditor.count("collected"), usize::from(batch.panel), "{:?}", auditor.events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auditor_that_dies_between_commitment_and_reveal_reveals() {
    let e = Economy::new(all_drawn()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let auditor = Checker::new(&e, "auditor", 1).await;
    let (epoch, _) = epoch_with(&e, &provider, &[&auditor], |record| record).await;
    let mut living = provider.live(&e).await;
    living.settlement.round().await.unwrap();
    // It dies after every step; what it executed and committed to is on disk.
    for _ in 0..20 {
        let mut alive = auditor.live(&e).await;
        alive.some(1).await.unwrap();
        for _ in 0..3 {
            alive.worked().await;
        }
    }
    let panel = e.batch(provider.account, epoch).await.panel;
    assert_eq!(auditor.count("committed"), usize::from(panel), "{:?}", auditor.events);
    assert_eq!(auditor.count("executed"), 3, "nothing is executed twice: {:?}", auditor.events);
    // Meanwhile the provider is gone: nothing more is needed of it.
    drop(living);
    provider.front.put(None);
    e.node.advance(3_601).await;
    auditor.rounds(&e).await;
    for member in 0..panel {
        assert_eq!(e.member(provider.account, epoch, member).await.phase, 2, "{:?}", auditor.events);
    }
    assert!(auditor.failures().is_empty(), "{:?}", auditor.failures());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_refuses_is_asked_on_the_ledger() {
    let e = Economy::new(all_drawn()).await;
    let mut provider = Provider::new(&e, "provider", STAKE).await;
    provider.answers = false;
    let auditor = Checker::new(&e, "auditor", 1).await;
    let (epoch, _) = epoch_with(&e, &provider, &[&auditor], |record| record).await;
    let mut living = provider.live(&e).await;
    // An auditor is patient at first.
    auditor.rounds(&e).await;
    assert_eq!((auditor.count("refused"), auditor.count("demanded")), (1, 0), "{:?}", auditor.events);
    e.node.advance(901).await;
    // A leaf, then the record of the same receipt: the provider's daemon shows both.
    for _ in 0..4 {
        auditor.rounds(&e).await;
        living.settlement.round().await.unwrap();
    }
    assert_eq!(provider.count("answered"), 4, "{:?} {:?}", provider.events, auditor.events);
    assert!(provider.failures().is_empty(), "{:?}", provider.failures());
    // When time runs out the auditor commits to what it has.
    e.node.advance(3_600 - 901 - 300).await;
    auditor.rounds(&e).await;
    let panel = e.batch(provider.account, epoch).await.panel;
    assert_eq!(auditor.count("committed"), usize::from(panel), "{:?}", auditor.events);
    assert_eq!((auditor.count("executed"), auditor.count("demanded")), (2, 4), "{:?}", auditor.events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cheat_that_shows_its_auditors_no_signature_is_disputed_all_the_same() {
    let e = Economy::new(all_drawn()).await;
    let mut cheat = Provider::new(&e, "cheat", STAKE).await;
    cheat.answers = false;
    let auditor = Checker::new(&e, "auditor", 1).await;
    epoch_with(&e, &cheat, &[&auditor], |record| swapped(&e, record)).await;
    let mut living = cheat.live(&e).await;
    auditor.rounds(&e).await;
    e.node.advance(901).await;
    // It answers what it is asked on the ledger, and so what it posted is executed and disputed.
    for _ in 0..30 {
        auditor.rounds(&e).await;
        if e.node_of(cheat.account).await.struck {
            break;
        }
        living.settlement.round().await.unwrap();
    }
    assert!(e.node_of(cheat.account).await.struck, "{:?} {:?}", auditor.events, cheat.events);
    assert_eq!((auditor.count("opened"), cheat.count("audited")), (1, 0), "{:?}", auditor.events);
    assert!(auditor.failures().is_empty(), "{:?}", auditor.failures());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_shows_nothing_anywhere_is_struck() {
    let e = Economy::new(all_drawn()).await;
    let mut provider = Provider::new(&e, "provider", STAKE).await;
    provider.answers = false;
    let auditor = Checker::new(&e, "auditor", 1).await;
    epoch_with(&e, &provider, &[&auditor], |record| record).await;
    let before = e.vault(auditor.account).await;
    e.node.advance(901).await;
    auditor.rounds(&e).await;
    assert_eq!(auditor.count("demanded"), 1, "{:?}", auditor.events);
    e.node.advance(1_801).await;
    auditor.rounds(&e).await;
    assert_eq!(auditor.count("silent"), 1, "{:?}", auditor.events);
    assert!(e.node_of(provider.account).await.struck);
    assert_eq!(e.vault(auditor.account).await - before, u128::from(STAKE * DOLLAR / 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_that_leaves_is_claimed_from_at_once() {
    let e = Economy::new(all_drawn()).await;
    let provider = Provider::new(&e, "provider", 0).await;
    e.node.advance(3_600).await;
    let epoch = e.ledger.epoch().await.unwrap();
    {
        let store = provider.store();
        provider.serve(&e, &store, epoch, 1);
    }
    provider.steps(&e).await;
    assert_eq!(provider.count("claimed"), 0, "{:?}", provider.events);
    let leave = Channels::startWithdrawalCall { config: provider.config.clone(), amount: u128::MAX };
    e.payer.send("leave", e.ledger.parts().at.channels, &leave).await.unwrap();
    provider.steps(&e).await;
    assert_eq!((provider.count("claimed"), provider.count("income")), (1, 1), "{:?}", provider.events);
    let call = Epochs::accountOfCall { provider: provider.account };
    let pot = e.ledger.client().read(e.ledger.parts().at.epochs, &call).await.unwrap().pot;
    assert_eq!(pot, u128::from(FEE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_lost_its_journals_goes_on_from_its_receipts() {
    let e = Economy::new(all_drawn()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let (epoch, _) = epoch_with(&e, &provider, &[], |record| record).await;
    std::fs::remove_dir_all(provider.folder.join("epochs")).unwrap();
    let mut living = provider.live(&e).await;
    living.settlement.round().await.unwrap();
    drop(living);
    for _ in 0..3 {
        e.node.advance(3_601).await;
        provider.steps(&e).await;
    }
    assert_eq!(provider.count("settled"), 1, "{:?}", provider.events);
    assert_eq!(e.batch(provider.account, epoch).await.state, 2);
    assert!(provider.failures().is_empty(), "{:?}", provider.failures());
}

/// A branch is given up on which a batch was posted for good, as far as its provider could know. In time it is posted again, with the claims that the
/// branch had; too late, its receipts stand in the next batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deep_reorganisation_takes_back_is_posted_again_or_later() {
    for late in [false, true] {
        let e = Economy::new(all_drawn()).await;
        let provider = Provider::new(&e, "provider", STAKE).await;
        e.node.advance(3_600).await;
        let epoch = e.ledger.epoch().await.unwrap();
        {
            let store = provider.store();
            provider.serve(&e, &store, epoch, 1);
        }
        e.node.advance(3_600).await;
        let mut living = provider.live(&e).await;
        let fork = e.node.ask("evm_snapshot", serde_json::json!([])).await;
        living.settlement.round().await.unwrap();
        assert_eq!(e.batch(provider.account, epoch).await.count, 1, "{:?}", provider.events);
        // The next round hears that nothing more is owed.
        living.settlement.round().await.unwrap();
        assert_eq!(e.node.ask("evm_revert", serde_json::json!([fork])).await, serde_json::json!(true));
        assert_eq!(e.batch(provider.account, epoch).await.count, 0);
        let mut stands = epoch;
        if late {
            provider.serve(&e, &living.store, epoch + 1, 2);
            e.node.advance(3_600).await;
            stands += 1;
        } else {
            // Who is killed meanwhile reads everything anew.
            drop(living);
            living = provider.live(&e).await;
        }
        for _ in 0..3 {
            living.settlement.round().await.unwrap();
        }
        let batch = e.batch(provider.account, stands).await;
        assert_eq!(
            (batch.first, batch.count),
            (0, 1 + u32::from(late)),
            "late: {late}, {:?}",
            provider.events
        );
        assert_eq!(provider.count("missed"), usize::from(late), "{:?}", provider.events);
        assert_eq!(u128::from(batch.total), u128::from(FEE) * u128::from(batch.count));
    }
}

#[test]
fn executions_say_what_a_dispute_would() {
    let model = honest::Node::new();
    let installed: assay_node::execution::Installed = {
        let artifact = std::sync::Arc::clone(&model.artifact);
        std::sync::Arc::new(move |root| (root == artifact.root()).then(|| std::sync::Arc::clone(&artifact)))
    };
    let kernel = assay_engine::kernel::Kernel::from_environment().unwrap();
    let pool = std::sync::Arc::new(assay_engine::pool::Pool::new(1));
    let library = assay_node::execution::Library::new(installed, kernel, pool);
    let mut request = model.request();
    request.max_tokens = 8;
    let record = model.answer(request);
    let of = |record: &AnswerRecord| {
        let shown = assay_node::execution::Shown::ByProvider(assay_core::embedding::Record::Answer(
            Box::new(record.clone()),
        ));
        library.execute(&shown)
    };
    let honest = of(&record).unwrap();
    assert_eq!(honest.verdict, Verdict::Stands);
    let mut other = record.clone();
    other.digests.0[0] = assay_core::id::Hash::from_bytes([1; 32]);
    assert_eq!(of(&other).unwrap().verdict, Verdict::Wrong);
    let mut other = record.clone();
    other.transcript.output_ids[3] ^= 1;
    assert_eq!(of(&other).unwrap().verdict, Verdict::Wrong);
    assert_ne!(of(&other).unwrap().trace, honest.trace);
    let mut other = record.clone();
    other.transcript.output_ids[3] = 5_000;
    assert!(of(&other).is_err(), "there is no such token");
    let mut other = record.clone();
    other.receipt.receipt.model_root = assay_core::id::ModelRoot::from_bytes([7; 32]);
    assert!(of(&other).is_err(), "there is no such model");
    // What a provider showed on the ledger is the same execution.
    let items = |all: Vec<Vec<u8>>| all;
    let request_items = items(record.request.items().to_vec());
    let request_items: Vec<&[u8]> = request_items.iter().map(Vec::as_slice).collect();
    let transcript_items = items(record.transcript.items());
    let transcript_items: Vec<&[u8]> = transcript_items.iter().map(Vec::as_slice).collect();
    let shown = AnswerRecord {
        request: assay_core::request::Request::from_items(&request_items).unwrap(),
        transcript: assay_core::transcript::Transcript::from_items(&transcript_items).unwrap(),
        digests: Default::default(),
        ..record.clone()
    };
    let executed = library.execute(&assay_node::execution::Shown::OnLedger(Box::new(shown))).unwrap();
    assert_eq!((executed.trace, executed.verdict), (honest.trace, honest.verdict));
    assert_eq!(executed.digests, Some(record.digests.clone()), "they are made again");
    // Without its digests too, another token is what a dispute ends with; other digests alone are not.
    let shown = |record: AnswerRecord| {
        let digests = Default::default();
        let shown = assay_node::execution::Shown::OnLedger(Box::new(AnswerRecord { digests, ..record }));
        library.execute(&shown).unwrap().verdict
    };
    let mut other = record.clone();
    other.transcript.output_ids[3] ^= 1;
    assert_eq!(shown(other), Verdict::Wrong);
    let mut other = record;
    other.receipt.receipt.digest_root = assay_core::id::DigestRoot::from_bytes([1; 32]);
    assert_eq!(shown(other), Verdict::Undisputable);
}
