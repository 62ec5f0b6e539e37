//! The whole story, on the embedded chain and unchanged on anvil: money comes in, requests are paid by voucher, receipts are posted, a beacon
//! draws audits, auditors execute again, honest work is paid and split, a cheat is disputed down to one operation that the contract
//! computes, loses its stake, its payer gets its fees back, and everyone takes out what is theirs.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod actors;
#[path = "../../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../chains/mod.rs"]
mod chains;
#[path = "../../../verify/tests/miniature/mod.rs"]
#[allow(dead_code)]
mod miniature;

use std::collections::BTreeMap;
use std::sync::Mutex;

use alloy_primitives::U256;
use assay_ledger::amount::Amount;
use assay_ledger::contracts::{Audits, Channels, Epochs, Registry, TestToken, Vault};
use assay_ledger::ledger::Phase;
use assay_ledger::standing::score_ppm;
use assay_verify::dispute::{Outcome, Party, Reason};

use actors::{Auditor, Host, Market, Provider, Verdict};
use chains::{DOLLAR, Node, PURSE, on_both, parameters};

const STAKE: u64 = 20 * DOLLAR;
const ANSWERS: u64 = 4;
const ROYALTY_PPM: u32 = 50_000;
/// Which of its answers the cheat did not execute: one of its tokens is another than the model's.
const CHEATED: usize = 2;
const EPOCH: u64 = 1;

/// Gas of each kind of action, which must be the same on both chains.
type Gas = BTreeMap<String, Vec<u64>>;

#[test]
fn honest_work_is_paid_and_a_cheat_is_slashed() {
    let seen: Mutex<Vec<Gas>> = Mutex::default();
    on_both(async |node| {
        let gas = story(&node).await;
        println!("{:?}", node.kind);
        for (action, used) in &gas {
            println!("| {action} | {used:?} |");
        }
        seen.lock().unwrap().push(gas);
    });
    let seen = seen.into_inner().unwrap();
    for other in seen.iter().skip(1) {
        assert_eq!(&seen[0], other, "gas differs between the chains");
    }
}

async fn story(node: &Node) -> Gas {
    let models = miniature::models();
    let model = &models[3];
    let mut p = parameters();
    // Every receipt is drawn, so that the story does not depend on the beacon.
    p.rates.rateMinPpm = 1_000_000;
    p.rates.retrievalPpm = 1_000_000;
    let ledger = node.deploy(p.clone()).await;
    let mut market = Market { node, ledger: &ledger, model, gas: Gas::new() };
    let at = ledger.parts().at.clone();
    let treasury = at.treasury;

    // Everybody brings money in; nodes put some of it at stake.
    let payer = market.member("payer", 500).await;
    let author = market.member("author", 0).await;
    let mut honest = Provider::new(&mut market, "honest", STAKE).await;
    let mut cheat = Provider::new(&mut market, "cheat", STAKE).await;
    let mut auditors = Vec::new();
    for i in 0..3 {
        auditors.push(Auditor::new(&mut market, &format!("auditor {i}"), i).await);
    }
    let list = Registry::listCall {
        modelRoot: market.root(),
        royaltyPpm: ROYALTY_PPM,
        contentRoot: Host::content().1,
        chunks: 4,
        manifest: String::new(),
    };
    market.send("list", &author, at.registry, &list).await;
    let host = Host::new(&mut market, author.account()).await;

    // Requests are paid by voucher, lane by lane. The cheat chooses another token than its model once.
    node.advance(3_600).await;
    assert_eq!(ledger.epoch().await.unwrap(), EPOCH);
    let mut fees = 0;
    for provider in [&mut honest, &mut cheat] {
        provider.open_channel(&mut market, &payer, 100 * DOLLAR).await;
        for i in 0..ANSWERS {
            fees += provider.serve(&market, &payer, i).await;
        }
    }
    cheat.answers[CHEATED] = cheat.swapped(&market, CHEATED);
    // Both providers fetched the model from the host, and say so.
    for provider in [&honest, &cheat] {
        host.served(&mut market, provider).await;
    }
    assert_eq!(fees, 2 * ANSWERS * Provider::FEE);

    // The epoch ends: vouchers are claimed, receipts posted, and a block that nobody knew is the beacon.
    node.advance(3_600).await;
    for provider in [&mut honest, &mut cheat] {
        provider.claim(&mut market).await;
        provider.post(&mut market, author.account()).await;
    }
    node.advance(1_800).await;
    market.draw(&payer, EPOCH).await;
    host.answer(&mut market, EPOCH).await;

    // Panels execute what was drawn. Whoever finds a receipt that does not stand disputes it.
    for auditor in &mut auditors {
        for provider in [&honest, &cheat] {
            auditor.execute(&market, provider).await;
        }
        auditor.commit(&mut market).await;
    }
    let found: Vec<Verdict> = auditors.iter().flat_map(|a| a.found.clone()).collect();
    assert!(found.iter().all(|v| v.provider == cheat.sender.account() && v.index == CHEATED), "{found:?}");
    assert!(!found.is_empty(), "the cheat was drawn and executed by somebody");
    let accuser = auditors.iter().position(|a| !a.found.is_empty()).unwrap();
    let accuser = &auditors[accuser];
    let bond = u64::try_from(accuser.vault(&ledger).await.0).unwrap();
    let outcome = accuser.dispute(&mut market, &cheat, CHEATED).await;
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails });

    // The cheat's stake is gone: a tenth to who found it, the rest to the treasury.
    let struck = ledger.node(cheat.sender.account()).await.unwrap().unwrap();
    assert!(struck.struck && struck.stake == 0);
    let reward = STAKE / 10;
    assert_eq!(accuser.vault(&ledger).await, Amount(u128::from(bond + reward)));
    assert_eq!(ledger.holdings(treasury).await.unwrap().vault, Amount(u128::from(STAKE - reward)));

    // Digests are revealed, nobody objects, and the honest batch is settled.
    node.advance(3_601).await;
    for auditor in &auditors {
        auditor.reveal(&market).await;
    }
    node.advance(3_601).await;
    node.advance(3_601).await;
    assert_eq!(ledger.phase(EPOCH).await.unwrap(), Phase::Final);
    let (provider, epoch) = (honest.sender.account(), EPOCH);
    market.send("settle", &payer, at.epochs, &Epochs::settleCall { provider, epoch }).await;
    // What everyone can see of the two.
    let standings = ledger.standings().await.unwrap();
    let (of_honest, of_cheat) = (standings[&provider], standings[&cheat.sender.account()]);
    assert_eq!((of_honest.batches, of_honest.settled, of_honest.answers), (1, 1, ANSWERS));
    assert!(of_honest.audits > 0 && !of_honest.struck);
    assert_eq!(of_honest.score_ppm, score_ppm([(0, ANSWERS)]));
    assert_eq!((of_cheat.settled, of_cheat.struck, of_cheat.score_ppm), (0, true, 0));
    let total = ANSWERS * Provider::FEE;
    let part = |ppm: u64| total * ppm / 1_000_000;
    let (royalty, hosts, protocol) =
        (part(ROYALTY_PPM.into()), part(p.split.hostsPpm.into()), part(p.split.protocolPpm.into()));
    let batch = ledger.client().read(at.epochs, &Epochs::batchOfCall { provider, epoch }).await.unwrap();
    // At a rate of 100 % auditors get all that auditing costs.
    assert_eq!(
        batch.auditorsPart,
        part(p.split.auditCostPpm.into()) / u64::from(batch.panel) * u64::from(batch.panel)
    );
    let earned = total - royalty - hosts - protocol - batch.auditorsPart;
    let node_now = ledger.node(provider).await.unwrap().unwrap();
    assert_eq!(node_now.stake, u128::from(STAKE + earned));
    assert_eq!(ledger.holdings(treasury).await.unwrap().vault, Amount(u128::from(STAKE - reward + protocol)));
    honest.release(&mut market, &payer, author.account()).await;
    assert_eq!(ledger.holdings(author.account()).await.unwrap().vault, Amount(royalty.into()));
    let before: u128 = auditors_have(&ledger, &auditors).await;
    for (provider, members) in [(&honest, batch.panel), (&cheat, cheat.panel(&market).await)] {
        for member in 0..members {
            let provider = provider.sender.account();
            let call = Audits::collectCall { provider, epoch, member: U256::from(member) };
            market.send("collect", &payer, at.audits, &call).await;
        }
    }
    // Who audited the cheat is paid as well: its work found it.
    let paid = auditors_have(&ledger, &auditors).await - before;
    assert_eq!(paid, u128::from(2 * batch.auditorsPart));

    // What follows the bytes that it served is the host's own at once; of the cheat's fees there is nothing.
    let fetched = hosts * u64::from(p.split.fetchedPpm) / 1_000_000;
    for provider in [&honest, &cheat] {
        host.collect_served(&mut market, provider).await;
    }
    assert_eq!(ledger.holdings(host.sender.account()).await.unwrap().vault, Amount(fetched.into()));

    // The rest is its own when it answers the next beacon.
    let next = ledger.epoch().await.unwrap();
    node.advance(3_600 + 1_800).await;
    market.draw(&payer, next).await;
    host.answer(&mut market, next).await;
    host.collect(&mut market).await;
    assert_eq!(ledger.holdings(host.sender.account()).await.unwrap().vault, Amount(hosts.into()));

    // The payer gets back what it paid the cheat, less what the audit cost.
    let has = ledger.holdings(payer.account()).await.unwrap().vault.0;
    cheat.refund(&mut market, &payer).await;
    let back = ledger.holdings(payer.account()).await.unwrap().vault.0 - has;
    assert_eq!(back, u128::from(total - batch.auditorsPart));

    // Everyone leaves with what is theirs, and nothing is left that nobody owns.
    node.advance(u64::from(p.times.unbondSeconds) + 1).await;
    exits(&mut market, &payer, &honest, &host, &auditors).await;
    let supply = ledger.client().read(at.token, &TestToken::totalSupplyCall {}).await.unwrap();
    let mut owned = U256::ZERO;
    let members = [&payer, &author, &honest.sender, &cheat.sender, &host.sender];
    for account in members.into_iter().chain(auditors.iter().map(|a| &a.sender)).map(|s| s.account()) {
        let holdings = ledger.holdings(account).await.unwrap();
        owned += (holdings.wallet.checked_add(holdings.vault)).unwrap().to_word();
    }
    owned += ledger.holdings(treasury).await.unwrap().vault.to_word();
    assert_eq!(owned, supply, "conserved to the unit");
    let parts = [at.registry, at.channels, at.epochs, at.audits, at.objections, at.retrieval, at.disputes];
    for account in parts {
        let left = ledger.client().read(at.vault, &Vault::balanceOfCall { account }).await.unwrap();
        assert_eq!(left, U256::ZERO, "left in {account}");
    }
    market.gas
}

async fn auditors_have(ledger: &assay_ledger::ledger::Ledger, auditors: &[Auditor]) -> u128 {
    let mut sum = 0;
    for auditor in auditors {
        sum += auditor.vault(ledger).await.0;
    }
    sum
}

/// Channels, seats and stakes are closed, and everything is withdrawn to wallets.
async fn exits(
    market: &mut Market<'_>,
    payer: &assay_ledger::sender::Sender,
    honest: &Provider,
    host: &Host,
    auditors: &[Auditor],
) {
    let (ledger, at) = (market.ledger, market.ledger.parts().at.clone());
    for config in market.channels(payer).await {
        let amount = u128::MAX;
        market
            .send(
                "startWithdrawal",
                payer,
                at.channels,
                &Channels::startWithdrawalCall { config: config.clone(), amount },
            )
            .await;
        market.node.advance(u64::from(config.withdrawDelay.to::<u32>()) + 1).await;
        market.send("channel withdraw", payer, at.channels, &Channels::withdrawCall { config }).await;
    }
    for auditor in auditors {
        auditor.leave(market).await;
    }
    host.leave(market).await;
    let stake = ledger.node(honest.sender.account()).await.unwrap().unwrap().stake;
    ledger.unstake(&honest.sender, honest.sender.account(), Amount(stake)).await.unwrap();
    market.node.advance(u64::from(ledger.parameters().times.unbondSeconds) + 1).await;
    for sender in auditors.iter().map(|a| &a.sender).chain([&honest.sender, &host.sender]) {
        ledger.collect_stake(sender, sender.account()).await.unwrap();
    }
    for sender in auditors.iter().map(|a| &a.sender).chain([&honest.sender, &host.sender, payer]) {
        let all = ledger.holdings(sender.account()).await.unwrap().vault;
        ledger.withdraw(sender, sender.account(), all).await.unwrap();
    }
    let wallet = ledger.holdings(honest.sender.account()).await.unwrap().wallet.0;
    assert!(wallet > u128::from(PURSE), "honest work has paid");
}
