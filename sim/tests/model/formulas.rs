//! Each formula on random inputs.

use alloy_primitives::{Address, B256, U256, keccak256};
use assay_chain::scratch::Failure;
use assay_ledger::contracts::{Audits, Directory, Epochs, Registry};
use assay_sim::formulas::{self, PPM};
use assay_sim::random::Random;

use crate::network::{Actor, Network, PROVIDER, parameters, receipt, some};

const TRILLION: u64 = 1_000_000_000_000;

/// Numbers of every size, as often small as large.
fn any(random: &mut Random, max: u64) -> u64 {
    let bits = random.below(65);
    let bound = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
    random.below(bound.min(max).saturating_add(1).max(1))
}

/// Rates and a split within what a directory accepts.
fn random_parameters(random: &mut Random) -> Directory::Parameters {
    let mut p = parameters();
    p.rates.savingsPpm = random.between(1, PPM) as u32;
    p.rates.rateMinPpm = any(random, PPM) as u32;
    p.rates.secondPpm = any(random, PPM) as u32;
    p.rates.auditsPerMember = random.between(1, 300) as u32;
    p.rates.panelMin = random.between(1, 4) as u8;
    p.rates.panelMax = random.between(4, 64) as u8;
    p.split.royaltyMaxPpm = 200_000;
    p.split.hostsPpm = random.below(100_000) as u32;
    p.split.protocolPpm = random.below(100_000) as u32;
    p.split.auditorsMinPpm = random.below(100_000) as u32;
    p.split.auditCostPpm = random.below(300_000) as u32;
    p.split.reporterPpm = random.below(500_001) as u32;
    p
}

/// A provider with this stake and this much in its pot.
fn provider(n: &mut Network, name: &str, stake: u64, pot: u64) -> Actor {
    let who = n.rich(name, TRILLION / 1_000_000);
    n.enrol(&who, PROVIDER, stake);
    if pot > 0 {
        let payer = n.rich(&format!("payer of {name}"), pot.div_ceil(1_000_000));
        let config = n.config(&payer, &who, 0);
        n.fund(&payer, &config, pot).unwrap();
        n.earn(&payer, &who, &config, pot).unwrap();
    }
    who
}

fn post(n: &mut Network, by: &Actor, count: u32, total: u64, listing: Address) -> Result<(), Failure> {
    let epochs = n.parts.at.epochs;
    let shares = match total {
        0 => vec![],
        _ => vec![Epochs::Share { modelRoot: some("model").into(), listing, total }],
    };
    let (root, tallyRoot) = (some("root").into(), some("tallies").into());
    let call = Epochs::postCall { provider: by.address, epoch: 0, root, tallyRoot, first: 0, count, shares };
    n.send(by, epochs, call).map(|_| ())
}

#[test]
fn panels_and_splits_are_the_contracts() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..10 {
        let mut random = Random::stream(seed, "splits", &[]);
        let p = random_parameters(&mut random);
        let mut n = Network::with(p.clone(), 0);
        let author = n.rich("author", 0);
        let royaltyPpm = random.below(200_001) as u32;
        let list = Registry::listCall {
            modelRoot: some("model").into(),
            royaltyPpm,
            contentRoot: B256::ZERO,
            chunks: 0,
            manifest: String::new(),
        };
        let registry = n.parts.at.registry;
        n.send(&author, registry, list).unwrap();
        let batches: Vec<(Actor, u64, u32, u64)> = (0..25)
            .map(|i| {
                let (stake, total) = (any(&mut random, TRILLION), any(&mut random, TRILLION));
                let count = any(&mut random, 1 << 20).max(1) as u32;
                let name = format!("provider {i}");
                (provider(&mut n, &name, stake, total), stake, count, total)
            })
            .collect();
        n.end_epoch(0);
        for (who, stake, count, total) in batches {
            let rate =
                formulas::average_rate_ppm(total, count, stake, p.rates.savingsPpm, p.rates.rateMinPpm);
            let posted = post(&mut n, &who, count, total, author.address);
            let Some(panel) = formulas::panel(count, rate, &p) else {
                assert!(posted.unwrap_err().is::<Epochs::TooManyAudits>(), "seed {seed}: {count} at {rate}");
                refused += 1;
                continue;
            };
            posted.unwrap();
            accepted += 1;
            let batch = n.batch(who.address, 0);
            // A batch without fees names no model, so that there is nothing to round.
            let split = formulas::split(total, rate, panel, royaltyPpm, &p);
            let what = format!("seed {seed}: {count} receipts of {total}, stake {stake}");
            assert_eq!((batch.panel, batch.backing), (panel, stake), "{what}");
            assert_eq!((batch.auditorsPart, batch.providerPart), (split.auditors, split.provider), "{what}");
            let all = split.royalty + split.hosts + split.protocol + split.auditors + split.provider;
            assert_eq!(all, total, "{what}");
        }
    }
    assert!(accepted > 50 && refused > 20, "{accepted} accepted, {refused} refused");
}

#[test]
fn draws_and_members_are_the_contracts() {
    let (mut drawn, mut missed, mut seconds) = (0, 0, 0);
    for seed in 0..6 {
        let mut random = Random::stream(seed, "draws", &[]);
        let mut p = random_parameters(&mut random);
        p.rates.panelMax = 64;
        p.rates.auditsPerMember = 300;
        p.rates.rateMinPpm %= 200_000;
        let mut n = Network::with(p.clone(), 0);
        let stake = any(&mut random, TRILLION);
        let who = provider(&mut n, "provider", stake, 0);
        n.end_epoch(0);
        let count = random.between(500, 2000) as u32;
        post(&mut n, &who, count, 0, Address::ZERO).unwrap();
        let (beacon, _) = n.draw(0);
        let panel = n.batch(who.address, 0).panel;
        let (epochs, audits) = (n.parts.at.epochs, n.parts.at.audits);
        for _ in 0..150 {
            let sequence = any(&mut random, u64::MAX);
            // Fees about as large as what is at stake: chances of every size.
            let fee = match random.below(3) {
                0 => any(&mut random, u64::MAX),
                _ => any(&mut random, stake.saturating_mul(4).max(4)),
            };
            let number = |tag: &str| {
                keccak256(
                    [tag.as_bytes(), beacon.as_slice(), who.address.as_slice(), &sequence.to_be_bytes()]
                        .concat(),
                )
            };
            let word = |hash: &B256, at: usize| u64::from_be_bytes(hash[at..at + 8].try_into().unwrap());
            let chance = formulas::chance(fee, stake, p.rates.savingsPpm, p.rates.rateMinPpm);
            let expected = chance.includes(word(&number("assay/draw/1"), 0));
            let call = Epochs::isDrawnCall { provider: who.address, epoch: 0, sequence, feeMicroUsd: fee };
            let is = n.chain.read(epochs, &call).unwrap();
            assert_eq!(is, expected, "seed {seed}: sequence {sequence}, fee {fee}, stake {stake}");
            if !is {
                missed += 1;
                continue;
            }
            drawn += 1;
            let members = number("assay/members/1");
            let draw = [word(&members, 24), word(&members, 16), word(&members, 8)];
            let (first, second) = formulas::members(draw, panel, p.rates.secondPpm);
            seconds += usize::from(second.is_some());
            let receipt = receipt(&who, sequence, some("model"), fee, B256::ZERO, 0);
            for member in 0..usize::from(panel) {
                let call = Audits::isAssignedCall {
                    epoch: 0,
                    member: U256::from(member),
                    receipt: (&receipt).into(),
                };
                let assigned = n.chain.read(audits, &call).unwrap();
                assert_eq!(assigned, member == first || Some(member) == second, "seed {seed}: {sequence}");
            }
        }
    }
    assert!(drawn > 100 && missed > 100 && seconds > 20, "{drawn} drawn, {missed} not, {seconds} twice");
}

#[test]
fn slashes_are_the_contracts() {
    let mut random = Random::stream(1, "slashes", &[]);
    let mut n = Network::with(parameters(), 0);
    let (registry, disputes, treasury) = (n.parts.at.registry, n.disputes.clone(), n.treasury);
    for i in 0..60 {
        let who = n.rich(&format!("node {i}"), TRILLION / 1_000_000);
        let stake = any(&mut random, TRILLION);
        n.enrol(&who, PROVIDER, stake);
        let node = who.address;
        let leaving = random.below(stake + 1);
        let unbond = Registry::unbondCall { node, amount: U256::from(leaving) };
        n.send(&who, registry, unbond).unwrap();
        let (amount, share) = (any(&mut random, 2 * TRILLION), random.below(500_001) as u32);
        let before = (n.balance(treasury), n.balance(disputes.address));
        let beneficiary = disputes.address;
        let call = Registry::slashCall { node, amount: U256::from(amount), beneficiary, sharePpm: share };
        n.send(&disputes, registry, call).unwrap();
        let taken = formulas::slash(stake - leaving, leaving, amount, share);
        let after = n.node(node);
        assert_eq!(after.stake, u128::from(stake - leaving - taken.stake));
        assert_eq!(after.unbonding, u128::from(leaving - taken.unbonding));
        assert_eq!(n.balance(treasury) - before.0, taken.treasury);
        assert_eq!(n.balance(disputes.address) - before.1, taken.reporter);
        n.accounts.push(disputes.address);
        n.accounts.sort_unstable();
        n.accounts.dedup();
    }
    n.check_money();
}

/// What a provider may post at once is what the contract takes, and one more is refused.
#[test]
fn the_most_that_can_be_posted_is_the_contracts() {
    let p = parameters();
    let mut n = Network::with(p.clone(), 0);
    let total = 4_096;
    let (full, over) = (provider(&mut n, "full", 0, total), provider(&mut n, "over", 0, total + 1));
    n.end_epoch(0);
    assert_eq!(formulas::receipts_max(total, 4096, 0, &p), 4096);
    post(&mut n, &full, 4096, total, Address::ZERO).unwrap();
    let refused = post(&mut n, &over, 4097, total + 1, Address::ZERO).unwrap_err();
    assert!(refused.is::<Epochs::TooManyAudits>());
    let free = provider(&mut n, "free", 0, 0);
    // Receipts without fees are drawn at the least rate.
    assert_eq!(formulas::receipts_max(0, 1, 0, &p), 409_600);
    post(&mut n, &free, 409_600, 0, Address::ZERO).unwrap();
    assert_eq!(n.batch(free.address, 0).panel, 16);
}
