//! What actions cost: `cargo test -p assay-ledger --test contracts gas -- --nocapture` prints the tables of `docs/benchmarks/ledger.md`.

use alloy_primitives::{B256, U256};
use assay_core::merkle;
use assay_ledger::contracts::{Audits, Channels, Epochs};

use crate::epochs::market;
use crate::network::{AUDITOR, Actor, DOLLAR, Network, core_hash, some};

/// Gas of an epoch of one provider with `count` receipts of a cent, whose panel is what the rate asks for, and its members.
fn epoch(count: u32) -> (u64, u8, Network) {
    let mut p = crate::network::parameters();
    p.rates.panelMax = 64;
    let mut n = Network::with(p, 0);
    let (audits, epochs) = (n.parts.at.audits, n.parts.at.epochs);
    let m = market(&mut n, DOLLAR);
    let auditor = n.rich("auditor", 1000);
    n.enrol(&auditor, AUDITOR, 1000 * DOLLAR);
    let slots = (0..8).map(U256::from).collect();
    n.send(&auditor, audits, Audits::takeSeatsCall { auditor: auditor.address, slots }).unwrap();
    n.bond(&m.provider, 900 * DOLLAR).unwrap();
    let anyone = Actor::named("anyone");
    n.end_epoch(1);
    let (provider, mut sum) = (m.provider.address, 0);
    let post = Epochs::postCall {
        provider,
        epoch: 1,
        root: some("root").into(),
        tallyRoot: some("tallies").into(),
        first: 0,
        count,
        shares: vec![Epochs::Share { modelRoot: m.model.into(), listing: m.author.address, total: DOLLAR }],
    };
    sum += n.send(&m.provider, epochs, post).unwrap().gas;
    let (_, fixed) = n.draw(1);
    sum += n.gas["close"] + n.gas["fixBeacon"];
    let panel = n.batch(provider, 1).panel;
    let (root, salt): (B256, B256) = (some("digests").into(), some("salt").into());
    for member in (0..panel).map(U256::from) {
        let call =
            Audits::commitmentOfCall { auditor: auditor.address, provider, epoch: 1, member, root, salt };
        let commitment = n.chain.read(audits, &call).unwrap();
        let commit = Audits::commitCall { provider, epoch: 1, member, commitment };
        sum += n.send(&auditor, audits, commit).unwrap().gas;
    }
    n.chain.warp(fixed + 7201);
    for member in (0..panel).map(U256::from) {
        let reveal = Audits::revealCall { provider, epoch: 1, member, root, salt };
        sum += n.send(&anyone, audits, reveal).unwrap().gas;
    }
    n.chain.warp(fixed + 14_401);
    for member in (0..panel).map(U256::from) {
        sum += n.send(&anyone, audits, Audits::collectCall { provider, epoch: 1, member }).unwrap().gas;
    }
    sum += n.send(&anyone, epochs, Epochs::settleCall { provider, epoch: 1 }).unwrap().gas;
    let share = Epochs::ShareLeaf {
        modelRoot: m.model.into(),
        listing: m.author.address,
        total: DOLLAR,
        royalty: DOLLAR / 20,
        hosts: DOLLAR * 3 / 100,
    };
    let leaf = n.chain.read(epochs, &Epochs::shareLeafCall { s: share.clone() }).unwrap();
    let proof = (&merkle::prove(&[core_hash(leaf)], 0).unwrap()).into();
    sum += n.send(&anyone, epochs, Epochs::releaseCall { provider, epoch: 1, share, proof }).unwrap().gas;
    (sum, panel, n)
}

/// Gas of claiming from `lanes` channels in one transaction, and of settling, the second time that it is done.
fn claims(lanes: u64) -> u64 {
    let mut n = Network::new();
    let channels = n.parts.at.channels;
    let payer = n.rich("payer", 10_000);
    let provider = n.rich("provider", 0);
    n.enrol(&provider, 1, 0);
    let configs: Vec<_> = (0..lanes).map(|lane| n.config(&payer, &provider, lane)).collect();
    let mut gas = 0;
    for config in &configs {
        n.fund(&payer, config, 10 * DOLLAR).unwrap();
    }
    for total in [DOLLAR, 2 * DOLLAR] {
        let claims = configs.iter().map(|c| n.voucher(&payer, c, total, total)).collect();
        gas = n.send(&provider, channels, Channels::claimCall { claims }).unwrap().gas;
        gas += n.send(&provider, channels, Channels::settleCall { receiver: provider.address }).unwrap().gas;
    }
    gas
}

#[test]
fn gas_of_an_epoch_is_below_a_hundred_a_request() {
    let by_channels = claims(100);
    println!("claims of 100 channels in one transaction, settled: {by_channels}");
    for count in [1000, 100_000, 1_000_000] {
        let (gas, panel, n) = epoch(count);
        let each = |gas: u64| gas as f64 / f64::from(count);
        println!(
            "{count} receipts, {panel} members: {gas} gas, {:.2} a request; with the claims {:.2}",
            each(gas),
            each(gas + by_channels)
        );
        if count == 1000 {
            n.gas.iter().for_each(|(action, gas)| println!("| {action} | {gas} |"));
        }
        assert!(count < 100_000 || gas + by_channels < 100 * u64::from(count));
    }
}
