//! Hosts: questions, answers, what is earned and what is lost.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, U256};
use assay_core::id::Hash;
use assay_core::merkle;
use assay_ledger::contracts::{Epochs, Registry, Retrieval};

use crate::network::{Actor, DOLLAR, HOST, Network, PROVIDER, Posted, b, core_hash, receipt, some};

pub fn chunks() -> Vec<Vec<u8>> {
    (0..5u8).map(|i| vec![i; 1024]).collect()
}

pub fn leaves() -> Vec<Hash> {
    chunks().iter().map(|c| merkle::leaf(c)).collect()
}

pub fn model() -> B256 {
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

pub fn pledge(n: &mut Network, host: &Actor, listing: Address) -> Result<(), assay_chain::scratch::Failure> {
    let retrieval = n.parts.at.retrieval;
    let call = Retrieval::pledgeCall { host: host.address, modelRoot: model(), listing };
    n.send(host, retrieval, call).map(|_| ())
}

pub fn answer(host: &Actor, listing: Address, epoch: u64, index: usize) -> Retrieval::answerCall {
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
pub fn an_answer_in_time_keeps_the_pledge() {
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
pub fn silence_costs_the_pledge_and_goes_where_the_document_says() {
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
pub fn who_comes_after_the_draw_is_not_asked_and_who_goes_still_is() {
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

/// A provider earns two fees of a dollar each in epoch 0, posts them, and what of them is the hosts' is released. How much that is.
pub fn release(n: &mut Network, author: &Actor, provider: &Actor) -> u64 {
    let (epochs, anyone) = (n.parts.at.epochs, Actor::named("anyone"));
    let payer = n.rich("payer", 100);
    let config = n.config(&payer, provider, 0);
    n.fund(&payer, &config, 50 * DOLLAR).unwrap();
    n.earn(&payer, provider, &config, 10 * DOLLAR).unwrap();
    let channel = n.channel_id(&config);
    let receipts = (0..2).map(|i| Some(receipt(provider, i, model().0, DOLLAR, channel, 0))).collect();
    let listings = BTreeMap::from([(model().0, author.address)]);
    let posted = Posted::of(&n.domain(), 0, receipts, &listings);
    n.end_epoch(0);
    n.post(provider, 0, &posted).unwrap();
    let (_, fixed) = n.draw(0);
    n.chain.warp(fixed + 14_401);
    n.send(&anyone, epochs, Epochs::settleCall { provider: provider.address, epoch: 0 }).unwrap();
    let share = posted.share_leaves(0, 30_000)[0].clone();
    let hosts = share.hosts;
    let leaf = n.chain.read(epochs, &Epochs::shareLeafCall { s: share.clone() }).unwrap();
    let proof = (&merkle::prove(&[core_hash(leaf)], 0).unwrap()).into();
    let release = Epochs::releaseCall { provider: provider.address, epoch: 0, share, proof };
    n.send(&anyone, epochs, release).unwrap();
    hosts
}

#[test]
pub fn what_a_model_earns_is_its_hosts_once_they_answer_again() {
    let mut n = Network::new();
    let retrieval = n.parts.at.retrieval;
    let (author, host) = hosted(&mut n);
    let provider = n.rich("provider", 100);
    n.enrol(&provider, PROVIDER, 10 * DOLLAR);
    let hosts = release(&mut n, &author, &provider);
    let collect = Retrieval::collectCall { host: host.address, modelRoot: model(), listing: author.address };
    // Not before it has shown once more that it is there.
    let held = n.balance(host.address);
    let _ = n.send(&host, retrieval, collect.clone());
    assert_eq!(n.balance(host.address), held);
    let epoch = n.epoch();
    n.draw(epoch);
    let question =
        Retrieval::questionForCall { host: host.address, modelRoot: model(), listing: author.address, epoch };
    let index = n.chain.read(retrieval, &question).unwrap().index as usize;
    n.send(&host, retrieval, answer(&host, author.address, epoch, index)).unwrap();
    n.send(&host, retrieval, collect).unwrap();
    assert_eq!(n.balance(host.address) - held, hosts);
    n.check_money();
}
