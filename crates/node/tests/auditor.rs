//! Auditors among others who are not honest: doubts about what they revealed, strangers at a provider's desk, and models that are not installed.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;
mod economy;
#[path = "../../verify/tests/honest/mod.rs"]
mod honest;

use std::collections::BTreeSet;
use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_api::audits::{
    AUDIT_REQUEST_BYTES_MAX, AuditAnswer, AuditClient, AuditError, AuditLeaf, AuditRequest,
    RECORDS_ASKED_MAX, SignedAuditRequest, Wanted,
};
use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical as _;
use assay_core::embedding::Record;
use assay_core::id::{Hash, SealingKey, SignatureBytes};
use assay_core::merkle;
use assay_ledger::amount::Amount;
use assay_ledger::audits::{assigned, commitment, digests_root, revealed_digests};
use assay_ledger::contracts::{Audits, Epochs, b256, node_address};
use assay_ledger::ledger::Phase;
use assay_ledger::sender::Sender;
use assay_node::auditor::{self, TellError, check};
use assay_node::execution::{Library, Shown};
use assay_verify::dispute::Party;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use chains::{DOLLAR, parameters};
use economy::{Checker, Economy, Living, Provider};
use tower::ServiceExt as _;

/// An epoch of three answers, all drawn, with its beacon; the provider lives.
struct Drawn {
    e: Economy,
    provider: Provider,
    living: Living,
    records: Vec<AnswerRecord>,
    epoch: u64,
}

async fn drawn(auditors: &[(&str, u64)], rate_ppm: u32, panel: u8) -> (Drawn, Vec<Checker>) {
    drawn_twice(auditors, rate_ppm, panel, 0).await
}

/// The same, where so many receipts of a million are executed by two members.
async fn drawn_twice(
    auditors: &[(&str, u64)],
    rate_ppm: u32,
    panel: u8,
    second_ppm: u32,
) -> (Drawn, Vec<Checker>) {
    let mut p = parameters();
    p.rates.secondPpm = second_ppm;
    p.rates.rateMinPpm = rate_ppm;
    p.rates.panelMin = panel;
    let e = Economy::new(p).await;
    let provider = Provider::new(&e, "provider", 20).await;
    let mut checkers = Vec::new();
    for (name, seats) in auditors {
        let checker = Checker::new(&e, name, *seats).await;
        checker.rounds(&e).await;
        checkers.push(checker);
    }
    e.node.advance(3_600).await;
    let epoch = e.ledger.epoch().await.unwrap();
    let records = {
        let store = provider.store();
        (0..3).map(|seed| provider.serve(&e, &store, epoch, seed)).collect()
    };
    e.node.advance(3_600).await;
    provider.steps(&e).await;
    e.node.advance(1_800).await;
    provider.steps(&e).await;
    e.node.mine(6).await;
    provider.steps(&e).await;
    assert_eq!(e.ledger.phase(epoch).await.unwrap(), Phase::Committing);
    let mut living = provider.live(&e).await;
    living.settlement.round().await.unwrap();
    (Drawn { e, provider, living, records, epoch }, checkers)
}

impl Drawn {
    fn leaves(&self) -> Vec<Hash> {
        let hash =
            |r: &AnswerRecord| merkle::leaf(r.receipt.receipt.signing_hash(&r.receipt.domain).as_bytes());
        self.records.iter().map(hash).collect()
    }

    /// States a trace root of the answer at a place, against the member that was drawn for it.
    async fn accuse(&self, accuser: &Sender, place: usize, trace: Hash) {
        let audits = self.e.ledger.parts().at.audits;
        let receipt: Audits::Receipt = (&self.records[place].receipt.receipt).into();
        for member in 0..self.e.batch(self.provider.account, self.epoch).await.panel {
            let member = U256::from(member);
            let call = Audits::isAssignedCall { epoch: self.epoch, member, receipt: receipt.clone() };
            if !self.e.ledger.client().read(audits, &call).await.unwrap() {
                continue;
            }
            let call = Audits::accuseCall {
                epoch: self.epoch,
                member,
                receipt: receipt.clone(),
                proof: (&merkle::prove(&self.leaves(), place).unwrap()).into(),
                consent: (&self.records[place].request.consent_proof()).into(),
                traceRoot: b256(&trace),
            };
            accuser.send("accuse", audits, &call).await.unwrap();
            return;
        }
        panic!("nobody was drawn");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auditor_that_is_doubted_opens_its_digest_or_wins_the_dispute() {
    let (d, checkers) = drawn(&[("auditor", 1)], 1_000_000, 2).await;
    let (e, auditor) = (&d.e, &checkers[0]);
    auditor.rounds(e).await;
    e.node.advance(3_601).await;
    auditor.rounds(e).await;
    assert_eq!(auditor.count("revealed"), 2, "{:?}", auditor.events);
    let before = e.vault(auditor.account).await;
    let accuser = e.node.member(&e.ledger, "accuser").await;
    e.ledger.deposit(&accuser, Amount(u128::from(100 * DOLLAR))).await.unwrap();
    let own =
        e.library().execute(&Shown::ByProvider(Record::Answer(Box::new(d.records[0].clone())))).unwrap();
    // A doubt that states the right trace root is answered with the digest.
    d.accuse(&accuser, 0, own.trace).await;
    auditor.rounds(e).await;
    assert_eq!(auditor.count("acquitted"), 1, "{:?}", auditor.events);
    let bond = u128::from(e.ledger.parameters().stakes.accusationBond);
    assert_eq!(e.vault(auditor.account).await - before, bond);
    // One that states another is contested; its accuser cannot defend it.
    d.accuse(&accuser, 1, own.trace).await;
    auditor.rounds(e).await;
    assert_eq!(auditor.count("contested"), 1, "{:?}", auditor.events);
    e.node.advance(7_200 / 22 + 1).await;
    auditor.rounds(e).await;
    let ended =
        |event: &auditor::Event| matches!(event, auditor::Event::Ended { winner: Party::Challenger, .. });
    assert!(auditor.events.lock().unwrap().iter().any(ended), "{:?}", auditor.events);
    assert_eq!(e.vault(auditor.account).await - before, 2 * bond, "both bonds of false doubts are its own");
    assert!(auditor.failures().is_empty(), "{:?}", auditor.failures());
    let stake = u128::from(e.ledger.parameters().stakes.seatStake);
    assert_eq!(e.node_of(auditor.account).await.stake, stake);
    drop(d.living);
}

async fn ask(d: &Drawn, key: &PrivateKeySigner, wanted: Wanted) -> Result<AuditAnswer, AuditError> {
    let sign = |hash: &Hash| {
        let signed = key.sign_hash_sync(&B256::from(*hash.as_bytes())).ok()?;
        Some(SignatureBytes::from_bytes(signed.as_bytes()))
    };
    let (provider, auditor) = (node_address(d.provider.account), node_address(key.address()));
    AuditClient::new().ask(&d.provider.front.url, provider, auditor, d.epoch, wanted, &sign).await
}

fn status(answer: Result<AuditAnswer, AuditError>) -> (u16, String) {
    match answer {
        Err(AuditError::Refused { status, message, .. }) => (status, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_desk_gives_what_was_drawn_to_whom_it_was_drawn_for() {
    // Not everything is drawn, and two auditors share the panel or not, as the beacon likes.
    let (d, checkers) = drawn(&[("auditor 0", 2), ("auditor 1", 2)], 500_000, 2).await;
    let e = &d.e;
    let batch = e.batch(d.provider.account, d.epoch).await;
    let stranger = e.node.actor("stranger").await;
    let numbers: Vec<u64> = (batch.first..batch.first + u64::from(batch.count)).collect();
    assert_eq!(numbers.len(), 3);
    let leaves = Wanted::Leaves { from: batch.first };
    assert_eq!(status(ask(&d, &stranger, leaves.clone()).await).0, 403);
    let mut given = 0;
    for checker in &checkers {
        let mut members = BTreeSet::new();
        for member in 0..batch.panel {
            let call = Audits::auditorOfCall {
                provider: d.provider.account,
                epoch: d.epoch,
                member: U256::from(member),
            };
            if e.ledger.client().read(e.ledger.parts().at.audits, &call).await.unwrap() == checker.account {
                members.insert(member);
            }
        }
        if members.is_empty() {
            assert_eq!(status(ask(&d, &checker.key, leaves.clone()).await).0, 403);
            continue;
        }
        let AuditAnswer::Leaves(told) = ask(&d, &checker.key, leaves.clone()).await.unwrap() else {
            panic!()
        };
        assert_eq!(check(&batch, &told), Ok(()));
        // A page may begin anywhere in the batch, and nowhere else.
        let last = Wanted::Leaves { from: numbers[2] };
        let AuditAnswer::Leaves(rest) = ask(&d, &checker.key, last).await.unwrap() else { panic!() };
        assert_eq!(rest, told[2..]);
        assert_eq!(status(ask(&d, &checker.key, Wanted::Leaves { from: numbers[2] + 1 }).await).0, 404);
        lies_show(&batch, &told);
        for (sequence, record) in numbers.iter().zip(&d.records) {
            let receipt: Audits::Receipt = (&record.receipt.receipt).into();
            let mut assigned = false;
            for member in &members {
                let member = U256::from(*member);
                let call = Audits::isAssignedCall { epoch: d.epoch, member, receipt: receipt.clone() };
                assigned |= e.ledger.client().read(e.ledger.parts().at.audits, &call).await.unwrap();
            }
            let answer = ask(&d, &checker.key, Wanted::Records(vec![*sequence])).await;
            if assigned {
                let stored = Record::Answer(Box::new(record.clone())).to_canonical_bytes();
                assert_eq!(answer.unwrap(), AuditAnswer::Records(vec![stored]));
                given += 1;
            } else {
                assert_eq!(status(answer).0, 403, "receipt {sequence} was drawn for somebody else");
            }
        }
        for bad in
            [vec![numbers[1], numbers[0]], vec![numbers[0]; 2], (0..=RECORDS_ASKED_MAX as u64).collect()]
        {
            assert_eq!(status(ask(&d, &checker.key, Wanted::Records(bad)).await).0, 400);
        }
    }
    println!("{given} records given");
    refusals(&d, &checkers[0]).await;
    drop(d.living);
}

/// Leaves that are told otherwise than they were posted are not taken.
fn lies_show(batch: &assay_ledger::contracts::Epochs::Batch, told: &[Option<AuditLeaf>]) {
    let alter = |change: &dyn Fn(&mut AuditLeaf)| {
        let mut altered = told.to_vec();
        change(altered[1].as_mut().unwrap());
        check(batch, &altered)
    };
    assert_eq!(alter(&|leaf| leaf.fee_micro_usd -= 1), Err(TellError::Tally));
    assert_eq!(alter(&|leaf| leaf.fee_micro_usd = 0), Err(TellError::Tally));
    assert_eq!(alter(&|leaf| leaf.signing_hash = Hash::ZERO), Err(TellError::Root));
    let model = assay_core::id::ModelRoot::from_bytes([1; 32]);
    assert_eq!(alter(&|leaf| leaf.model_root = model), Err(TellError::Tally));
    let short = Err(TellError::Count { expected: 3, got: 2 });
    assert_eq!(check(batch, &told[..2]), short);
    let mut gap = told.to_vec();
    gap[2] = None;
    assert_eq!(check(batch, &gap), Err(TellError::Root));
}

/// Bodies that are no request, or not this one.
async fn refusals(d: &Drawn, checker: &Checker) {
    let code = async |body: Vec<u8>| {
        let request = Request::post("/v1/audits").body(Body::from(body)).unwrap();
        let answer = d.living.settlement.routes().oneshot(request).await.unwrap();
        let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        json["error"]["code"].as_str().unwrap().to_owned()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let request = AuditRequest {
        provider: node_address(d.provider.account),
        auditor: node_address(checker.account),
        epoch: d.epoch,
        wanted: Wanted::Records(vec![]),
        key: SealingKey::from_bytes([9; 32]),
        time_s: now,
    };
    let signed = |request: &AuditRequest, key: &PrivateKeySigner| {
        let signature = key.sign_hash_sync(&B256::from(*request.canonical_hash().as_bytes())).unwrap();
        let signature = SignatureBytes::from_bytes(signature.as_bytes());
        SignedAuditRequest { request: request.clone(), signature }.to_canonical_bytes()
    };
    let good = signed(&request, &checker.key);
    for (what, body, wanted) in [
        ("nothing", vec![], "audit_malformed"),
        ("cut", good[..good.len() - 1].to_vec(), "audit_malformed"),
        ("too long", vec![0; AUDIT_REQUEST_BYTES_MAX + 1], "audit_too_long"),
        ("another's key", signed(&request, &d.provider.sender_key), "audit_signature"),
        ("old", signed(&AuditRequest { time_s: now - 1_000, ..request.clone() }, &checker.key), "audit_time"),
        (
            "early",
            signed(&AuditRequest { time_s: now + 1_000, ..request.clone() }, &checker.key),
            "audit_time",
        ),
        (
            "another provider",
            signed(&AuditRequest { provider: node_address(Address::ZERO), ..request.clone() }, &checker.key),
            "audit_other_provider",
        ),
        (
            "another epoch",
            signed(&AuditRequest { epoch: 99, ..request.clone() }, &checker.key),
            "audit_not_open",
        ),
    ] {
        assert_eq!(code(body).await, wanted, "{what}");
    }
}

/// Who sits on a batch's panel.
async fn on_panel(d: &Drawn, panel: u8) -> BTreeSet<Address> {
    let mut on_panel = BTreeSet::new();
    for member in 0..panel {
        let call = Audits::auditorOfCall {
            provider: d.provider.account,
            epoch: d.epoch,
            member: U256::from(member),
        };
        on_panel.insert(d.e.ledger.client().read(d.e.ledger.parts().at.audits, &call).await.unwrap());
    }
    on_panel
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_absent_is_shown_to_be_and_nothing_is_left_that_nobody_owns() {
    // The beacon decides who sits where: of 128 draws one has no place for one of the two.
    let mut tries = 0;
    let (mut d, checkers, panel) = loop {
        let (d, checkers) = drawn(&[("auditor 0", 2), ("auditor 1", 2)], 1_000_000, 8).await;
        let panel = d.e.batch(d.provider.account, d.epoch).await.panel;
        if on_panel(&d, panel).await.len() == 2 {
            break (d, checkers, panel);
        }
        tries += 1;
        assert!(tries < 8, "of eight places each has some");
    };
    // One does its duty; the other one sleeps.
    let awake = &checkers[0];
    for _ in 0..4 {
        awake.rounds(&d.e).await;
        d.e.node.advance(3_601).await;
    }
    awake.rounds(&d.e).await;
    for _ in 0..3 {
        d.living.settlement.round().await.unwrap();
    }
    let mine = awake.count("collected");
    assert_eq!(mine + awake.count("absent"), usize::from(panel), "{:?}", awake.events);
    assert!(mine > 0 && awake.count("absent") > 0, "{:?}", awake.events);
    let at = d.e.ledger.parts().at.clone();
    assert_eq!(d.e.held(at.epochs).await, 0, "{:?} {:?}", awake.events, d.provider.events);
    let penalties = u128::from(d.e.ledger.parameters().stakes.silencePenalty) * awake.count("absent") as u128;
    let stakes: u128 =
        d.e.node_of(checkers[0].account).await.stake + d.e.node_of(checkers[1].account).await.stake;
    let each = u128::from(d.e.ledger.parameters().stakes.seatStake);
    assert_eq!(stakes, 4 * each - penalties);
}

/// A lazy auditor: it makes up what it commits to, and reveals that.
async fn made_up(d: &Drawn, checker: &Checker, member: u8, reveal: bool) {
    let (sender, at) = (
        d.e.node.sender_in(&checker.folder, &checker.key, chains::policy()).await,
        d.e.ledger.parts().at.audits,
    );
    let batch = d.e.batch(d.provider.account, d.epoch).await;
    let numbers = batch.first..batch.first + u64::from(batch.count);
    let beacon =
        d.e.ledger
            .client()
            .read(d.e.ledger.parts().at.epochs, &Epochs::beaconOfCall { epoch: d.epoch })
            .await
            .unwrap()
            .value;
    let second = d.e.ledger.parameters().rates.secondPpm;
    let mine = numbers
        .filter(|n| assigned(&beacon, d.provider.account, *n, batch.panel, second).unwrap().has(member));
    let digests: Vec<(u64, Hash)> = mine.map(|n| (n, Hash::from_bytes([n as u8; 32]))).collect();
    let own = || digests.iter().map(|(n, digest)| (*n, digest));
    let (root, salt) = (b256(&digests_root(own())), B256::repeat_byte(9));
    let (provider, epoch) = (d.provider.account, d.epoch);
    if reveal {
        let digests = revealed_digests(own());
        let call = Audits::revealCall { provider, epoch, member: U256::from(member), digests, salt };
        sender.send("reveal", at, &call).await.unwrap();
    } else {
        let commitment = commitment(checker.account, provider, epoch, member, root, salt);
        let call = Audits::commitCall { provider, epoch, member: U256::from(member), commitment };
        sender.send("commit", at, &call).await.unwrap();
    }
}

/// A panel of two places, one for each of two auditors, and everything is executed twice.
async fn two_on_a_panel() -> (Drawn, Vec<Checker>) {
    // The beacon decides who sits where: of two draws one gives each a place.
    for _ in 0..24 {
        let (d, checkers) = drawn_twice(&[("auditor 0", 1), ("auditor 1", 1)], 1_000_000, 2, 1_000_000).await;
        if on_panel(&d, 2).await.len() == 2 {
            return (d, checkers);
        }
    }
    panic!("one of 2^24 runs comes here");
}

async fn member_of(d: &Drawn, checker: &Checker) -> u8 {
    let (provider, epoch) = (d.provider.account, d.epoch);
    let at = d.e.ledger.parts().at.audits;
    let call = Audits::auditorOfCall { provider, epoch, member: U256::ZERO };
    u8::from(d.e.ledger.client().read(at, &call).await.unwrap() != checker.account)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auditor_that_makes_its_digests_up_is_accused_by_who_executed_the_same_and_loses() {
    let (mut d, checkers) = two_on_a_panel().await;
    let (honest, lazy) = (&checkers[0], &checkers[1]);
    let member = member_of(&d, lazy).await;
    honest.rounds(&d.e).await;
    made_up(&d, lazy, member, false).await;
    d.e.node.advance(3_601).await;
    honest.rounds(&d.e).await;
    made_up(&d, lazy, member, true).await;
    assert_eq!((honest.count("executed"), honest.count("revealed")), (3, 1), "{:?}", honest.events);
    // Reveals are over. It is killed after every step, and accuses once.
    d.e.node.advance(3_601).await;
    let before = d.e.vault(honest.account).await;
    for _ in 0..6 {
        let mut living = honest.live(&d.e).await;
        living.some(1).await.unwrap();
        living.worked().await;
    }
    assert_eq!(honest.count("accused"), 0, "what is to be shown was not kept: {:?}", honest.events);
    honest.rounds(&d.e).await;
    assert_eq!(honest.count("accused"), 1, "{:?}", honest.events);
    let bond = u128::from(d.e.ledger.parameters().stakes.accusationBond);
    assert_eq!(before - d.e.vault(honest.account).await, bond);
    let stake = d.e.node_of(lazy.account).await.stake;
    d.e.node.advance(u64::from(d.e.ledger.parameters().times.answerSeconds) + 1).await;
    honest.rounds(&d.e).await;
    assert_eq!((honest.count("accused"), honest.count("lapsed")), (1, 1), "{:?}", honest.events);
    let penalty = u128::from(d.e.ledger.parameters().stakes.lazinessPenalty);
    assert_eq!(stake - d.e.node_of(lazy.account).await.stake, penalty);
    assert!(d.e.vault(honest.account).await > before, "its bond is back, with the reporter's part");
    assert!(honest.failures().is_empty(), "{:?}", honest.failures());
    d.living.settlement.round().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_auditors_accuse_nobody() {
    let (mut d, checkers) = two_on_a_panel().await;
    for _ in 0..4 {
        for checker in &checkers {
            checker.rounds(&d.e).await;
        }
        d.living.settlement.round().await.unwrap();
        d.e.node.advance(3_601).await;
    }
    for checker in &checkers {
        checker.rounds(&d.e).await;
        let counts = ["executed", "revealed", "collected", "accused"].map(|kind| checker.count(kind));
        assert_eq!(counts, [3, 1, 1, 0], "{:?}", checker.events);
        assert!(checker.failures().is_empty(), "{:?}", checker.failures());
    }
}

/// Moves of disputes and answers to accusations were late because rounds waited for what they had sent for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_waits_neither_for_a_provider_nor_for_an_execution() {
    let (d, checkers) = drawn(&[("auditor", 1)], 1_000_000, 2).await;
    let (e, checker) = (&d.e, &checkers[0]);
    // Hashing a model does not end before it is let go.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (wait, asked) = (std::sync::Mutex::new(wait), std::sync::atomic::AtomicUsize::new(0));
    let artifact = Arc::clone(&e.model.artifact);
    let installed: assay_node::execution::Installed = Arc::new(move |_| {
        // First it is asked whether there is one.
        if asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1 {
            wait.lock().unwrap().recv().unwrap();
        }
        Some(Arc::clone(&artifact))
    });
    let kernel = assay_engine::kernel::Kernel::from_environment().unwrap();
    let library = Arc::new(Library::new(installed, kernel, Arc::new(assay_engine::pool::Pool::new(1))));
    // A provider that takes the question and never answers.
    let mut living = checker.live_with(e, Arc::clone(&library)).await;
    d.provider.front.put(Some(axum::Router::new().fallback(std::future::pending::<()>)));
    for _ in 0..2 {
        living.round().await.unwrap();
    }
    assert_eq!(checker.count("drawn"), 0, "{:?}", checker.events);
    drop(living);
    // One that answers: what it gave is executed, and that takes as long as it takes.
    d.provider.front.put(Some(d.living.settlement.routes()));
    let mut living = checker.live_with(e, Arc::clone(&library)).await;
    living.round().await.unwrap();
    while checker.count("drawn") == 0 {
        living.attend(std::time::Duration::from_millis(20)).await;
    }
    for _ in 0..4 {
        living.round().await.unwrap();
        living.attend(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!((checker.count("executed"), checker.count("committed")), (0, 0), "{:?}", checker.events);
    go.send(()).unwrap();
    while living.worked().await {}
    living.round().await.unwrap();
    assert_eq!((checker.count("executed"), checker.count("committed")), (3, 2), "{:?}", checker.events);
    assert!(checker.failures().is_empty(), "{:?}", checker.failures());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auditor_without_the_model_says_so_and_is_silent() {
    let (d, checkers) = drawn(&[("auditor", 1)], 1_000_000, 2).await;
    let (e, checker) = (&d.e, &checkers[0]);
    let kernel = assay_engine::kernel::Kernel::from_environment().unwrap();
    let library = Library::new(Arc::new(|_| None), kernel, Arc::new(assay_engine::pool::Pool::new(1)));
    let mut living = checker.live_with(e, Arc::new(library)).await;
    for _ in 0..3 {
        living.round().await.unwrap();
        while living.worked().await {}
    }
    assert_eq!(checker.count("model_missing"), 1, "said once: {:?}", checker.events);
    e.node.advance(3_600 - 60).await;
    living.round().await.unwrap();
    assert_eq!(checker.count("committed"), 0, "{:?}", checker.events);
    drop(living);
    // Installed in time, it is not too late.
    checker.rounds(e).await;
    assert_eq!((checker.count("executed"), checker.count("committed")), (3, 2), "{:?}", checker.events);
    drop(d.living);
}
