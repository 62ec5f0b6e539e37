//! What actions cost. `ASSAY_REPORT=docs/benchmarks/ledger.json cargo test -p assay-ledger --test contracts gas -- --nocapture` prints the
//! tables of `docs/benchmarks/ledger.md` and writes them to the file.

use alloy_primitives::{B256, U256};
use assay_core::id::Hash;
use assay_core::merkle;
use assay_ledger::audits::{average_rate_ppm, digests_root, revealed_digests};
use assay_ledger::contracts::{Audits, Channels, Disputes, Epochs};
use serde_json::{Map, Value, json};

use crate::epochs::market;
use crate::network::{AUDITOR, Actor, DOLLAR, GAS, Network, b, core_hash, signed, some};
use crate::report;

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
    sum += GAS.with_borrow(|gas| gas["Epochs.close"] + gas["Epochs.fixBeacon"]);
    let panel = n.batch(provider, 1).panel;
    // Each member reveals as many as the rate gives it.
    let batch = n.batch(provider, 1);
    let rates = crate::network::parameters().rates;
    let rate = average_rate_ppm(DOLLAR, count, batch.backing, rates.savingsPpm, rates.rateMinPpm);
    let each = (u64::from(count) * rate).div_ceil(1_000_000 * u64::from(panel));
    let digest = |i: u64| (i * 1_000, core_hash(alloy_primitives::keccak256(i.to_be_bytes())));
    let own: Vec<(u64, Hash)> = (0..each).map(digest).collect();
    let own = || own.iter().map(|(sequence, digest)| (*sequence, digest));
    let (root, digests) = (b(digests_root(own())), revealed_digests(own()));
    let salt: B256 = some("salt").into();
    for member in (0..panel).map(U256::from) {
        let call =
            Audits::commitmentOfCall { auditor: auditor.address, provider, epoch: 1, member, root, salt };
        let commitment = n.chain.read(audits, &call).unwrap();
        let commit = Audits::commitCall { provider, epoch: 1, member, commitment };
        sum += n.send(&auditor, audits, commit).unwrap().gas;
    }
    n.chain.warp(fixed + 7201);
    for member in (0..panel).map(U256::from) {
        let reveal = Audits::revealCall { provider, epoch: 1, member, digests: digests.clone(), salt };
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
    let mut by_count = Map::new();
    for count in [1000, 100_000, 1_000_000] {
        let (gas, panel, _) = epoch(count);
        let each = |gas: u64| (gas as f64 / f64::from(count) * 10.0).round() / 10.0;
        println!(
            "| {count} | {panel} | {gas} | {} | {} | of a request, alone and with the claims",
            each(gas),
            each(gas + by_channels)
        );
        by_count.insert(count.to_string(), json!(each(gas + by_channels)));
        assert!(count < 100_000 || gas + by_channels < 100 * u64::from(count));
    }
    report::merge("gas_per_request", Value::Object(by_count));
}

/// A dispute that ends with its first move, and an accusation that is contested.
fn rulings() {
    let mut p = crate::network::parameters();
    p.rates.rateMinPpm = 300_000;
    let mut n = Network::with_disputes(p);
    let panel = crate::audits::panel(&mut n);
    panel.audit(&mut n);
    let (member, receipt) = panel.busy();
    let (accuser, anyone) = (n.rich("accuser", 100), Actor::named("anyone"));
    let disputes = n.parts.at.disputes;
    let id = panel.accuse(&mut n, &accuser, member, &receipt, some("false")).unwrap();
    let stated = || (&receipt).into();
    n.send(&panel.actor(member), disputes, Disputes::contestCall { id, stated: stated() }).unwrap();
    let signature = signed(&n, &panel.m.provider, &receipt);
    n.send(&accuser, disputes, Disputes::openCall { stated: stated(), signature, epoch: 1 }).unwrap();
    let hold = Disputes::holdCall { stated: stated(), challenger: accuser.address, epoch: 1 };
    n.send(&anyone, disputes, hold).unwrap();
    n.chain.mine(1, 7200 / 22 + 1);
    let defender = panel.m.provider.address;
    let receipt = b(receipt.signing_hash(&n.domain()));
    let timeout = Disputes::timeoutCall { receipt, challenger: accuser.address, defender };
    n.send(&anyone, disputes, timeout).unwrap();
}

/// What each action cost at most in the tests of it: the order of a few large numbers, not a bound.
#[test]
fn gas_of_every_action() {
    use crate::{audits, channels, epochs, registry, retrieval, serving, tokens};
    for scenario in [
        audits::members_are_paid_equal_parts_when_objections_are_over,
        audits::silence_costs_its_penalty_and_the_part,
        audits::an_honest_auditor_is_acquitted_and_keeps_the_bond,
        audits::a_digest_of_nothing_is_lost_by_silence,
        audits::a_refused_record_is_demanded_by_its_auditor_alone,
        audits::a_member_has_the_bond_of_its_demand_back,
        audits::a_seat_counts_from_the_next_epoch_and_a_left_one_is_not_given_away_at_once,
        channels::the_payers_exit_leaves_the_receiver_time_to_claim,
        channels::authorizers_sign_claims_and_refunds,
        channels::a_providers_claims_go_to_its_escrow_and_others_to_their_balance,
        epochs::receipts_hash_as_the_contract_says,
        epochs::fees_are_split_to_the_unit,
        epochs::two_truths_strike_and_payers_get_their_fees_back,
        epochs::a_receipt_left_out_and_a_false_count_strike,
        epochs::a_batch_out_of_order_has_a_leaf_that_cannot_be_opened,
        registry::stake_leaves_after_its_time_and_not_before,
        registry::a_royalty_only_falls_and_a_root_belongs_to_no_one,
        registry::a_token_that_takes_a_fee_breaks_nothing,
        registry::nodes_say_where_they_are,
        retrieval::an_answer_in_time_keeps_the_pledge,
        retrieval::silence_costs_the_pledge_and_goes_where_the_document_says,
        retrieval::who_comes_after_the_draw_is_not_asked_and_who_goes_still_is,
        retrieval::what_a_model_earns_is_its_hosts_once_they_answer_again,
        serving::fees_of_an_epoch_are_released_to_whom_the_provider_fetched_from,
        serving::a_receipt_counts_once_and_only_what_is_new_of_it,
        tokens::anyone_sends_what_a_payer_signed_and_can_do_nothing_else_with_it,
        rulings,
    ] {
        scenario();
    }
    let all = GAS.take();
    let parts = ["Vault", "Registry", "Channels", "Epochs", "Objections", "Audits", "Retrieval", "Disputes"];
    // What parts do to each other, and moves within a dispute, which are measured as a whole.
    let within =
        ["Vault.give", "Vault.take", "Registry.slash", "Registry.strike", "Epochs.hold", "Retrieval.income"];
    let mut shown = Map::new();
    for (action, gas) in all.iter().filter(|(action, _)| !within.contains(&action.as_str())) {
        println!("| `{action}` | {gas} |");
        shown.insert(action.clone(), json!(gas));
    }
    for part in parts {
        assert!(all.keys().any(|action| action.starts_with(part)), "{part}");
    }
    let wanted = [
        "Vault.deposit Vault.withdraw Registry.enrol Registry.addRoles Registry.describe Registry.heartbeat",
        "Registry.bond Registry.unbond Registry.withdraw Registry.list Channels.deposit Channels.claim",
        "Channels.depositWithAuthorization Channels.claimWithSignature Channels.settle Channels.refund",
        "Channels.startWithdrawal Channels.withdraw Epochs.post Epochs.close Epochs.fixBeacon Epochs.settle",
        "Epochs.release Epochs.refund Epochs.sweep Objections.demandLeaf Objections.demandLeafAsMember",
        "Objections.answerLeaf Objections.demandRecord Objections.proveConflict Objections.proveLeftOut",
        "Objections.proveMiscount",
        "Objections.proveSilence Audits.takeSeats Audits.leaveSeats Audits.commit Audits.reveal Audits.collect",
        "Audits.accuse Audits.acquit Audits.lapse Audits.proveAbsence Retrieval.pledge Retrieval.unpledge",
        "Retrieval.answer Retrieval.collect Retrieval.proveFailure Retrieval.served Retrieval.collectServed",
        "Disputes.open Disputes.contest Disputes.hold Disputes.timeout",
    ];
    for action in wanted.iter().flat_map(|line| line.split(' ')) {
        assert!(shown.contains_key(action), "{action} was not measured");
    }
    report::merge("gas", Value::Object(shown));
}
