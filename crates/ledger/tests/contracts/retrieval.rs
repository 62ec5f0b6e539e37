//! Hosts: questions, answers, what is earned and what is lost.

use alloy_primitives::{Address, B256, U256};
use assay_core::id::Hash;
use assay_core::merkle;
use assay_ledger::contracts::{Registry, Retrieval};

use crate::network::{Actor, DOLLAR, HOST, Network, b, some};

fn chunks() -> Vec<Vec<u8>> {
    (0..5u8).map(|i| vec![i; 1024]).collect()
}

fn leaves() -> Vec<Hash> {
    chunks().iter().map(|c| merkle::leaf(c)).collect()
}

fn model() -> B256 {
    some("model").into()
}

/// A listed model with its author, and a host that keeps it.
fn hosted(n: &mut Network) -> (Actor, Actor) {
    let registry = n.parts.at.registry;
    let author = n.rich("author", 0);
    let call = Registry::listCall {
        modelRoot: model(),
        royaltyPpm: 0,
        contentRoot: b(merkle::root(leaves())),
        chunks: 5,
        manifest: String::new(),
    };
    n.send(&author, registry, call).unwrap();
    let host = n.rich("host", 100);
    n.enrol(&host, HOST, 60 * DOLLAR);
    pledge(n, &host, author.address).unwrap();
    (author, host)
}

fn pledge(n: &mut Network, host: &Actor, listing: Address) -> Result<(), assay_ledger::evm::Failure> {
    let retrieval = n.parts.at.retrieval;
    let call = Retrieval::pledgeCall { host: host.address, modelRoot: model(), listing };
    n.send(host, retrieval, call).map(|_| ())
}

fn answer(host: &Actor, listing: Address, epoch: u64, index: usize) -> Retrieval::answerCall {
    Retrieval::answerCall {
        host: host.address,
        modelRoot: model(),
        listing,
        epoch,
        chunk: chunks()[index].clone().into(),
        proof: (&merkle::prove(&leaves(), index).unwrap()).into(),
    }
}

#[test]
fn an_answer_in_time_keeps_the_pledge() {
    let mut n = Network::new();
    let retrieval = n.parts.at.retrieval;
    let (author, host) = hosted(&mut n);
    n.draw(1);
    let question = Retrieval::questionForCall {
        host: host.address,
        modelRoot: model(),
        listing: author.address,
        epoch: 1,
    };
    let question = n.chain.read(retrieval, &question).unwrap();
    assert!(question.asked);
    let index = question.index as usize;
    let wrong = answer(&host, author.address, 1, (index + 1) % 5);
    assert!(n.send(&host, retrieval, wrong).unwrap_err().is::<Retrieval::WrongChunk>());
    let mut forged = answer(&host, author.address, 1, index);
    forged.chunk = vec![9; 1024].into();
    assert!(n.send(&host, retrieval, forged).unwrap_err().is::<Retrieval::BadProof>());
    n.send(&host, retrieval, answer(&host, author.address, 1, index)).unwrap();
    let failure = Retrieval::proveFailureCall {
        host: host.address,
        modelRoot: model(),
        listing: author.address,
        epoch: 1,
    };
    n.chain.mine(1, 100_000);
    assert!(n.send(&host, retrieval, failure).unwrap_err().is::<Retrieval::AlreadyAnswered>());
}

#[test]
fn silence_costs_the_pledge_and_goes_where_the_document_says() {
    let mut n = Network::new();
    let retrieval = n.parts.at.retrieval;
    let (author, host) = hosted(&mut n);
    let reporter = n.rich("reporter", 0);
    n.draw(1);
    let failure = Retrieval::proveFailureCall {
        host: host.address,
        modelRoot: model(),
        listing: author.address,
        epoch: 1,
    };
    assert!(n.send(&reporter, retrieval, failure.clone()).unwrap_err().is::<Retrieval::TooSoon>());
    let wait = u64::from(n.p.times.retrievalSeconds);
    n.chain.mine(1, wait + 1);
    let treasury = n.treasury;
    let before = n.balance(treasury);
    n.send(&reporter, retrieval, failure.clone()).unwrap();
    assert_eq!(n.balance(reporter.address), 5 * DOLLAR);
    assert_eq!(n.balance(treasury) - before, 45 * DOLLAR);
    assert_eq!(n.node(host.address).stake, u128::from(10 * DOLLAR));
    assert_eq!(n.node(host.address).reserved, 0);
    assert!(n.send(&reporter, retrieval, failure).unwrap_err().is::<Retrieval::AlreadyAnswered>());
    n.check_money();
}

#[test]
fn who_comes_after_the_draw_is_not_asked_and_who_goes_still_is() {
    let mut n = Network::new();
    let retrieval = n.parts.at.retrieval;
    let (author, host) = hosted(&mut n);
    let late = n.rich("late", 100);
    n.enrol(&late, HOST, 50 * DOLLAR);
    n.end_epoch(0);
    pledge(&mut n, &late, author.address).unwrap();
    let unpledge =
        Retrieval::unpledgeCall { host: host.address, modelRoot: model(), listing: author.address };
    n.send(&host, retrieval, unpledge).unwrap();
    n.draw(1);
    let mut asked = |who: &Actor, epoch: u64| {
        let call = Retrieval::questionForCall {
            host: who.address,
            modelRoot: model(),
            listing: author.address,
            epoch,
        };
        n.chain.read(retrieval, &call).unwrap().asked
    };
    assert!(asked(&host, 1) && !asked(&late, 1));
    n.draw(2);
    let mut asked = |who: &Actor, epoch: u64| {
        let call = Retrieval::questionForCall {
            host: who.address,
            modelRoot: model(),
            listing: author.address,
            epoch,
        };
        n.chain.read(retrieval, &call).unwrap().asked
    };
    assert!(!asked(&host, 2) && asked(&late, 2));
    assert!(pledge(&mut n, &host, author.address).unwrap_err().is::<Retrieval::AlreadyPledged>());
    let registry = n.parts.at.registry;
    let unbond = Registry::unbondCall { node: host.address, amount: U256::from(60 * DOLLAR) };
    n.send(&host, registry, unbond).unwrap();
}
