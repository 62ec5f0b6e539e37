//! Callers without an account, on a chain: both of x402's schemes, what is refused, what is told again, and that no unit is lost or made.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;
mod market;
#[path = "../../ledger/tests/permit2/mod.rs"]
mod permit2;
mod postgres;
mod providers;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use alloy_primitives::B256;
use assay_core::authorization::{Authorization, Scheme};
use assay_core::canonical::Canonical as _;
use assay_core::id::{AccountAddress, Hash, SignatureBytes};
use assay_gateway::accounts::{Answered, MicroUsd, Pledge, Pledged, RequestKey, Stage};
use chains::{Node, PURSE, on_both};
use market::{FEE, Gateway, MOST, Market, Payer, ask, code, said, settled, streamed};
use providers::{Manner, Provider};
use serde_json::{Value, json};

#[test]
fn both_schemes_pay_for_answers() {
    on_both(async |chain| {
        let market = Market::on(chain).await;
        let gateway = market.gateway().await;
        let payer = market.payer("payer").await;

        // Who sends nothing hears what it costs, and how it is paid.
        let unpaid = gateway.ask(&ask("Hello"), None).await;
        assert_eq!(unpaid.status(), 402);
        let required = said(&unpaid, "payment-required");
        assert_eq!(
            (&required["x402Version"], &required["error"]),
            (&json!(2), &json!("PAYMENT-SIGNATURE header is required"))
        );
        assert_eq!(required["resource"]["url"], format!("{}/v1/chat/completions", gateway.url));
        let accepts = required["accepts"].as_array().unwrap();
        let schemes: Vec<&Value> = accepts.iter().map(|accept| &accept["scheme"]).collect();
        assert_eq!(schemes, ["upto", "exact"]);
        for accept in accepts {
            assert_eq!(accept["amount"], MOST.to_string());
            assert_eq!(accept["payTo"], format!("{:#x}", gateway.account()));
        }
        assert_eq!(code(unpaid).await, "payment_required");

        // What the answer cost is moved, and no more.
        let paid = gateway.ask(&ask("Hello"), Some(&payer.upto(MOST))).await;
        assert_eq!(paid.status(), 200);
        let response = settled(&paid);
        assert_eq!((&response["success"], &response["amount"]), (&json!(true), &json!(FEE.to_string())));
        assert_eq!(response["payer"], payer.address().to_string());
        let answer: Value = paid.json().await.unwrap();
        assert_eq!(answer["choices"][0]["message"]["content"], "Hello");
        let hash: B256 = response["transaction"].as_str().unwrap().parse().unwrap();
        let found = market.chain.ask("eth_getTransactionReceipt", json!([hash])).await;
        assert_eq!(found["status"], "0x1");
        assert_eq!(market.wallet(payer.account()).await, PURSE - FEE);
        assert_eq!(market.wallet(gateway.account()).await, FEE);

        // The other scheme moves all that was signed for.
        let paid = gateway.ask(&ask("Again"), Some(&payer.exact(MOST))).await;
        assert_eq!(paid.status(), 200);
        assert_eq!(settled(&paid)["amount"], MOST.to_string());
        assert_eq!(market.wallet(payer.account()).await, PURSE - FEE - MOST);

        // A stream says at its end what was moved.
        let mut asked = ask("Third");
        asked["stream"] = json!(true);
        let stream = gateway.ask(&asked, Some(&payer.upto(MOST))).await;
        assert_eq!(stream.status(), 200);
        assert_eq!(stream.headers().get("payment-response"), None);
        let text = stream.text().await.unwrap();
        assert_eq!(streamed(&text).0, "Hello");
        assert!(text.contains("data: [DONE]"), "{text}");
        assert_eq!(streamed(&text).1.unwrap()["amount"], FEE.to_string());

        // The books have the same, to the unit.
        let books = market.books(&payer).await;
        let total = 2 * FEE + MOST;
        assert_eq!((books.credited.0, books.balance.0, books.held.0, books.charged.0), (total, 0, 0, total));
        assert_eq!(market.wallet(gateway.account()).await, total);
        assert_eq!(market.wallet(payer.account()).await, PURSE - total);
        let charges = market.charges().await;
        assert_eq!(charges.iter().map(|c| c.amount.0).collect::<Vec<_>>(), [FEE, MOST, FEE]);
        assert!(charges.iter().all(|c| c.account == market.account(&payer) && c.answer.model == "org/model"));
        gateway.dies().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_good_payment_is_refused_before_anything_runs() {
    let market = Market::start().await;
    let gateway = market.gateway().await;
    let payer = market.payer("payer").await;
    let now = payer.now();
    type Change<'a> = &'a dyn Fn(&mut Authorization);
    type Case<'a> = (&'a str, bool, Change<'a>, &'a str, &'a str);
    let other = AccountAddress::from_bytes([7; 20]);
    let late = |a: &mut Authorization| a.valid_before -= 1_300;
    let cases: [Case<'_>; 13] = [
        ("less", true, &|a| a.amount -= 1, "payment_invalid", "permit2_amount_mismatch"),
        (
            "less",
            false,
            &|a| a.amount -= 1,
            "payment_invalid",
            "invalid_exact_evm_payload_authorization_value_mismatch",
        ),
        (
            "another receiver",
            true,
            &|a| a.pay_to = other,
            "payment_invalid",
            "invalid_permit2_recipient_mismatch",
        ),
        (
            "another receiver",
            false,
            &|a| a.pay_to = other,
            "payment_invalid",
            "invalid_exact_evm_recipient_mismatch",
        ),
        ("another token", true, &|a| a.token = other, "payment_invalid", "permit2_token_mismatch"),
        ("another token", false, &|a| a.token = other, "payment_invalid", "invalid_exact_evm_token_mismatch"),
        ("another chain", true, &|a| a.chain_id += 1, "payment_invalid", "invalid_upto_evm_network_mismatch"),
        ("soon over", true, &late, "payment_invalid", "permit2_deadline_expired"),
        (
            "soon over",
            false,
            &late,
            "payment_invalid",
            "invalid_exact_evm_payload_authorization_valid_before",
        ),
        (
            "not yet",
            true,
            &|a| a.valid_after = a.valid_before - 100,
            "payment_invalid",
            "permit2_not_yet_valid",
        ),
        (
            "another spender",
            true,
            &|a| {
                if let Scheme::Upto { spender, .. } = &mut a.scheme {
                    *spender = other
                }
            },
            "payment_invalid",
            "invalid_permit2_spender",
        ),
        (
            "another facilitator",
            true,
            &|a| {
                if let Scheme::Upto { facilitator, .. } = &mut a.scheme {
                    *facilitator = other
                }
            },
            "payment_invalid",
            "upto_facilitator_mismatch",
        ),
        ("far too much", true, &|a| a.amount = u128::MAX, "payment_invalid", "invalid_payload"),
    ];
    let check = async |what: &str, signed: &Authorization, status: u16, ours: &str, theirs: &str| {
        let refused = gateway.ask(&ask("Hello"), Some(signed)).await;
        assert_eq!(refused.status(), status, "{what}");
        let required = said(&refused, "payment-required");
        assert_eq!(required["error"], theirs, "{what}");
        assert_eq!(required["accepts"].as_array().unwrap().len(), 2);
        assert_eq!(code(refused).await, ours, "{what}");
    };
    for (what, upto, change, ours, theirs) in cases {
        let mut signed = if upto { payer.upto(MOST) } else { payer.exact(MOST) };
        change(&mut signed);
        payer.sign(&mut signed);
        check(what, &signed, 402, ours, theirs).await;
    }
    // Signed by somebody else, or about something else.
    for mut signed in [payer.upto(MOST), payer.exact(MOST)] {
        signed.nonce = Hash::from_bytes([9; 32]);
        let theirs = match signed.scheme {
            Scheme::Exact => "invalid_exact_evm_signature",
            Scheme::Upto { .. } => "invalid_permit2_signature",
        };
        check("unsigned", &signed, 402, "payment_invalid", theirs).await;
        signed.signature = SignatureBytes::from_bytes([0xff; 65]);
        check("unsigned", &signed, 402, "payment_invalid", theirs).await;
    }
    // Nothing behind it.
    let poor = market.poor("poor", 0).await;
    check("no tokens", &poor.exact(MOST), 402, "payment_unfunded", "insufficient_funds").await;
    let unapproved = market.poor("unapproved", MOST).await;
    let theirs = "permit2_allowance_required";
    check("no allowance", &unapproved.upto(MOST), 412, theirs, theirs).await;
    let used = payer.exact(MOST);
    payer.moves_itself(&used).await;
    let before = market.wallet(gateway.account()).await;
    check("used on the chain", &used, 409, "payment_used", "payment_used").await;
    assert_eq!(market.wallet(gateway.account()).await, before);

    // No payment at all.
    let malformed = gateway.send(&ask("Hello"), Some("!!!".into()), &[]).await;
    assert_eq!((malformed.status().as_u16(), code(malformed).await.as_str()), (400, "invalid_value"));
    let mut two = ask("Hello");
    two["n"] = json!(2);
    for payment in [None, Some(payer.upto(MOST))] {
        let refused = gateway.ask(&two, payment.as_ref()).await;
        assert_eq!((refused.status().as_u16(), code(refused).await.as_str()), (400, "unsupported_value"));
    }
    // Keys are what they were.
    let unknown = gateway.send(&ask("Hello"), None, &[("authorization", "Bearer unused")]).await;
    assert_eq!((unknown.status().as_u16(), code(unknown).await.as_str()), (401, "invalid_api_key"));

    assert_eq!(market.provider.node.started.load(SeqCst), 0);
    assert_eq!(market.charges().await, []);
    assert!(payer.now() - now < 1_000, "the tests' payments were in time");
    gateway.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_sent_again_is_told_the_same_answer() {
    let market = Market::start().await;
    let gateway = market.gateway().await;
    let payer = market.payer("payer").await;
    let payment = payer.upto(MOST);
    let first = gateway.ask(&ask("Hello"), Some(&payment)).await;
    let (said, receipt) = (settled(&first), first.headers()["x-assay-receipt"].clone());
    assert_eq!(first.status(), 200);
    let first: Value = first.json().await.unwrap();

    let again = async |gateway: &Gateway| {
        let again = gateway.ask(&ask("Hello"), Some(&payment)).await;
        assert_eq!((again.status().as_u16(), settled(&again)), (200, said.clone()));
        assert_eq!(again.headers()["x-assay-receipt"], receipt);
        let again: Value = again.json().await.unwrap();
        assert_eq!((&again["id"], &again["choices"]), (&first["id"], &first["choices"]));
        // As a stream it says at once what was moved.
        let mut asked = ask("Hello");
        asked["stream"] = json!(true);
        let stream = gateway.ask(&asked, Some(&payment)).await;
        assert_eq!(settled(&stream), said);
        assert_eq!(streamed(&stream.text().await.unwrap()), ("Hello".into(), None));
    };
    again(&gateway).await;
    // For another request it is no payment.
    let other = gateway.ask(&ask("Other"), Some(&payment)).await;
    assert_eq!((other.status().as_u16(), code(other).await.as_str()), (409, "payment_used"));
    // A client that counts its retries signs anew each time: it pays once.
    let retried = payer.upto(MOST);
    let retry =
        gateway.send(&ask("Hello"), Some(payer.header(&retried)), &[("x-stainless-retry-count", "1")]).await;
    assert_eq!((retry.status().as_u16(), retry.headers()["x-assay-receipt"].clone()), (200, receipt.clone()));
    assert_eq!(market.provider.node.started.load(SeqCst), 1);

    // The answer is kept with the books: another gateway tells it too.
    gateway.dies().await;
    let gateway = market.gateway().await;
    again(&gateway).await;
    assert_eq!(market.provider.node.started.load(SeqCst), 1);
    assert_eq!(market.books(&payer).await.charged.0, FEE);
    assert_eq!(market.wallet(payer.account()).await, PURSE - FEE);
    // The payment that was not needed was not used: it pays for something else.
    let other = gateway.ask(&ask("Other"), Some(&retried)).await;
    assert_eq!(other.status(), 200);
    gateway.dies().await;
}

/// Of `upto` what there is of the answer is moved; `exact` moves the same for any answer, so all of it is made, and told to who sends the payment again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_pays_by_its_scheme() {
    let market = Market::start().await;
    let gateway = market.gateway().await;
    let payer = market.payer("payer").await;
    let mut body = ask("Hello");
    body["stream"] = json!(true);
    let leaves = async |payment: &Authorization, after: &str| {
        let mut answer = gateway.ask(&body, Some(payment)).await;
        let mut text = String::new();
        while !text.contains(after) {
            text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
        }
    };
    market.provider.node.becomes(Manner::Paced);
    market.provider.node.go.add_permits(1);
    let upto = payer.upto(MOST);
    leaves(&upto, "la ").await;
    market.settled(&id(&upto)).await;
    // 10 tokens read and 1 written.
    let charges = market.charges().await;
    assert_eq!((charges.len(), charges[0].amount.0, charges[0].answer.completion_tokens), (1, 1_100, 1));
    assert_eq!(market.wallet(payer.account()).await, PURSE - 1_100);
    let again = gateway.ask(&body, Some(&upto)).await;
    assert_eq!((again.status().as_u16(), code(again).await.as_str()), (409, "payment_used"));

    market.provider.node.becomes(Manner::Late);
    let exact = payer.exact(MOST);
    leaves(&exact, "Hel").await;
    market.provider.node.go.add_permits(1);
    market.settled(&id(&exact)).await;
    assert_eq!(market.wallet(payer.account()).await, PURSE - 1_100 - MOST);
    let again = gateway.ask(&body, Some(&exact)).await;
    assert_eq!(streamed(&again.text().await.unwrap()).0, "Hello");
    assert_eq!(market.provider.node.started.load(SeqCst), 2);
    assert!(market.books(&payer).await.agree());
    gateway.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_answer_moves_nothing_and_its_payment_is_good_again() {
    let market = Market::start().await;
    let gateway = market.gateway().await;
    let payer = market.payer("payer").await;
    market.provider.node.becomes(Manner::BreaksOff);
    for payment in [payer.upto(MOST), payer.exact(MOST)] {
        market.provider.node.becomes(Manner::BreaksOff);
        let failed = gateway.ask(&ask("Hello"), Some(&payment)).await;
        assert_eq!(failed.status(), 502);
        assert_eq!(failed.headers().get("payment-response"), None);
        assert_eq!(market.wallet(payer.account()).await, PURSE - market.books(&payer).await.charged.0);
        market.provider.node.becomes(Manner::Honest);
        let paid = gateway.until_answered(&ask("Hello"), &payment).await;
        assert_eq!(settled(&paid)["success"], true);
    }
    assert_eq!(market.books(&payer).await.charged.0, FEE + MOST);
    gateway.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_wallet_costs_one_answer() {
    let market = Market::start().await;
    let gateway = market.gateway().await;
    market.provider.node.becomes(Manner::Late);
    let go = || market.provider.node.go.add_permits(1);

    // A newcomer has one payment under way, whatever its wallet holds.
    let thief = market.payer("thief").await;
    let mut asked = ask("Hello");
    asked["stream"] = json!(true);
    let payment = thief.upto(MOST);
    let mut stream = gateway.ask(&asked, Some(&payment)).await;
    assert_eq!(stream.status(), 200);
    assert!(stream.chunk().await.unwrap().is_some());
    let second = gateway.ask(&ask("Extra"), Some(&thief.exact(MOST))).await;
    assert_eq!((second.status().as_u16(), code(second).await.as_str()), (429, "payer_busy"));
    let same = gateway.ask(&asked, Some(&payment)).await;
    assert_eq!((same.status().as_u16(), code(same).await.as_str()), (409, "payment_busy"));
    // It takes its tokens away.
    thief.sends_away(PURSE).await;
    go();
    let rest = stream.text().await.unwrap();
    assert!(rest.contains("payment_failed") && !rest.contains("[DONE]"), "{rest}");
    let (_, last) = streamed(&rest);
    assert_eq!(last.unwrap()["errorReason"], "insufficient_funds");
    // It stays refused when it has tokens again, by this payment and by others.
    market.mint(thief.account(), PURSE).await;
    let refused = gateway.ask(&asked, Some(&payment)).await;
    assert_eq!((refused.status().as_u16(), settled(&refused)["success"].clone()), (402, json!(false)));
    assert_eq!(code(refused).await, "payment_failed");
    let refused = gateway.ask(&ask("Newer"), Some(&thief.upto(MOST))).await;
    assert_eq!((refused.status().as_u16(), code(refused).await.as_str()), (402, "payer_refused"));
    assert_eq!(market.books(&thief).await.charged.0, 0);

    // Not streamed, the answer is kept back.
    let another = market.payer("another").await;
    let (ask_it, payment) = (ask("Hello"), another.upto(MOST));
    let (answer, ()) = tokio::join!(gateway.ask(&ask_it, Some(&payment)), async {
        market.started(2).await;
        another.cancels(&payment).await;
        go();
    });
    assert_eq!(
        (answer.status().as_u16(), settled(&answer)["errorReason"].clone()),
        (402, json!("invalid_transaction_state"))
    );
    let body = answer.text().await.unwrap();
    assert!(body.contains("payment_failed") && !body.contains("Hello"), "{body}");

    // Who moves the tokens itself meanwhile has paid.
    let eager = market.payer("eager").await;
    let payment = eager.exact(MOST);
    let (answer, ()) = tokio::join!(gateway.ask(&ask_it, Some(&payment)), async {
        market.started(3).await;
        eager.moves_itself(&payment).await;
        go();
    });
    assert_eq!(
        (answer.status().as_u16(), settled(&answer)["amount"].clone()),
        (200, json!(MOST.to_string()))
    );
    // Who uses the nonce for itself, and sends a little beside, has not.
    let sly = market.payer("sly").await;
    let payment = sly.exact(MOST);
    let (answer, ()) = tokio::join!(gateway.ask(&ask_it, Some(&payment)), async {
        market.started(4).await;
        sly.uses_nonce_for_itself(&payment).await;
        go();
    });
    assert_eq!(answer.status(), 402);
    assert_eq!(market.wallet(gateway.account()).await, MOST);
    assert_eq!(market.all_credits().await, MOST);
    gateway.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_that_died_left_is_settled_once() {
    let market = Market::start().await;
    let payer = market.payer("payer").await;
    let account = market.account(&payer);
    let gateway = market.gateway().await;
    let receiver = format!("eip155:{}:{:#x}", market.chain.client.chain_id(), gateway.account());
    gateway.dies().await;
    let request = RequestKey([1; 32]);
    let pledge = |signed: &Authorization| Pledge {
        id: id(signed),
        payer: account.clone(),
        receiver: receiver.clone(),
        request,
        most: MicroUsd(u64::try_from(signed.amount).unwrap()),
        cover: u128::MAX,
        signed: hex::encode(signed.to_canonical_bytes()),
        from_block: 0,
        again: false,
        now_ms: 0,
    };
    let answer = Answered {
        receipt: "0x01".into(),
        provider: "0x02".into(),
        model: "m".into(),
        prompt_tokens: 1,
        completion_tokens: 1,
    };
    // Died in an answer: the payment is good again.
    let running = payer.upto(MOST);
    assert_eq!(market.accounts.pledge(&pledge(&running)).await.unwrap(), Pledged::Run);
    let gateway = market.gateway().await;
    assert_eq!(gateway.ask(&ask("Hello"), Some(&running)).await.status(), 200);
    gateway.dies().await;
    assert_eq!(market.wallet(payer.account()).await, PURSE - FEE);

    // Died between answer and settlement, and after the tokens moved but before they were booked.
    let (answered, moved, exact) = (payer.upto(MOST), payer.upto(MOST), payer.exact(MOST));
    for (signed, cost) in [(&answered, 70), (&moved, 80)] {
        assert_eq!(market.accounts.pledge(&pledge(signed)).await.unwrap(), Pledged::Run);
        assert!(
            market.accounts.pledge_answered(&id(signed), MicroUsd(cost), &answer, Some(&[])).await.unwrap()
        );
    }
    let sender = market.gateway_sender().await;
    market.ledger.move_authorized(&sender, "before it died", &moved, 80).await.unwrap();
    drop(sender);
    let gateway = market.gateway().await;
    market.settled(&id(&answered)).await;
    market.settled(&id(&moved)).await;
    assert_eq!(market.wallet(payer.account()).await, PURSE - FEE - 150);
    assert_eq!(market.books(&payer).await.charged.0, FEE + 150);

    // Died while its transaction waited: it is waited for, and no second one is sent.
    market.chain.ask("evm_setAutomine", json!([false])).await;
    let body = ask("Adieu");
    let waits = async {
        loop {
            let known = market.accounts.caller_payment(&id(&exact)).await.unwrap();
            let count =
                market.chain.ask("eth_getTransactionCount", json!([gateway.account(), "pending"])).await;
            let mined =
                market.chain.ask("eth_getTransactionCount", json!([gateway.account(), "latest"])).await;
            if known.is_some_and(|known| known.stage == Stage::Answered) && count != mined {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = gateway.ask(&body, Some(&exact)) => panic!("it is answered when it is mined"),
        () = waits => {}
    }
    gateway.dies().await;
    market.chain.ask("evm_setAutomine", json!([true])).await;
    market.chain.mine(1).await;
    let gateway = market.gateway().await;
    market.settled(&id(&exact)).await;
    let again = gateway.ask(&body, Some(&exact)).await;
    assert_eq!((again.status().as_u16(), settled(&again)["amount"].clone()), (200, json!(MOST.to_string())));
    let total = FEE + 150 + MOST;
    assert_eq!(market.wallet(payer.account()).await, PURSE - total);
    assert_eq!(market.wallet(gateway.account()).await, total);
    assert_eq!(market.books(&payer).await.charged.0, total);
    assert!(market.books(&payer).await.agree());
    gateway.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_waits_is_waited_for_and_not_sent_again() {
    let market = Market::start().await;
    let payer = market.payer("payer").await;
    let payment = payer.upto(MOST);
    let sender = market.gateway_sender().await;
    market.chain.ask("evm_setAutomine", json!([false])).await;
    let moving = market.ledger.move_authorized(&sender, "settle", &payment, 70);
    let sent = async {
        while sender.waiting().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        moved = moving => panic!("nothing is mined: {moved:?}"),
        () = sent => {}
    }
    market.chain.ask("evm_setAutomine", json!([true])).await;
    market.chain.mine(1).await;
    let moved = market.ledger.move_authorized(&sender, "settle", &payment, 70).await.unwrap();
    assert_eq!(moved.arrived, 70);
    assert_eq!(market.ledger.moved_by(&payment, 0).await.unwrap(), Some(moved));
    assert_eq!(market.ledger.moved_by(&payer.upto(MOST), 0).await.unwrap(), None);
    assert!(market.ledger.move_authorized(&sender, "again", &payment, 70).await.is_err());
    assert_eq!(market.wallet(payer.account()).await, PURSE - 70);
}

fn id(signed: &Authorization) -> String {
    hex::encode(signed.id().as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn free_answers_stay_free() {
    let market = Market::start().await;
    let free = Provider::start(Manner::Honest, None).await;
    let gateway = market.gateway_with(&[&free]).await;
    let answer = gateway.ask(&ask("Hello"), None).await;
    assert_eq!(answer.status(), 200);
    // Beside one that wants to be paid, who sends no payment is answered by the free one.
    gateway.dies().await;
    let gateway = market.gateway_with(&[&free, &market.provider]).await;
    for _ in 0..3 {
        assert_eq!(gateway.ask(&ask("Hello"), None).await.status(), 200);
    }
    assert_eq!(market.provider.node.started.load(SeqCst), 0);
    assert_eq!(free.node.started.load(SeqCst), 4);
    assert_eq!(market.charges().await, []);
    gateway.dies().await;
}

/// Whoever asks, whatever fails: what left the wallets is what arrived, what was credited and what was charged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unit_is_lost_or_made() {
    conserved(Market::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unit_is_lost_or_made_on_postgres() {
    let Some(postgres) = postgres::Postgres::start() else { return };
    conserved(Market::with(Node::embedded().await, &postgres.database("callers")).await).await;
}

async fn conserved(market: Market) {
    let gateway = market.gateway().await;
    let mut payers: Vec<Payer> = Vec::new();
    for i in 0..4 {
        payers.push(market.payer(&format!("payer {i}")).await);
    }
    let market = &market;
    let asking = payers.iter().enumerate().map(|(i, payer)| {
        let gateway = &gateway;
        async move {
            let mut moved = 0;
            for round in 0..6 {
                let payment = if (i + round) % 3 == 0 { payer.exact(MOST) } else { payer.upto(MOST + 7) };
                let mut asked = ask(&format!("{i}: {round}?"));
                asked["stream"] = json!(round % 2 == 1);
                if (i + round) % 4 == 3 {
                    // Somebody leaves.
                    let _ =
                        tokio::time::timeout(Duration::from_millis(3), gateway.ask(&asked, Some(&payment)))
                            .await;
                }
                let mut left = 100;
                let amount = loop {
                    let answer = gateway.ask(&asked, Some(&payment)).await;
                    if answer.status() == 200 {
                        let said =
                            answer.headers().contains_key("payment-response").then(|| settled(&answer));
                        let text = answer.text().await.unwrap();
                        break said.or(streamed(&text).1).unwrap()["amount"].clone();
                    }
                    // It is under way, or another of the payer's is.
                    let status = answer.status().as_u16();
                    let refused = answer.text().await.unwrap();
                    assert!([409, 429, 503].contains(&status), "{refused}");
                    left -= 1;
                    assert!(left > 0, "{refused}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                };
                moved += amount.as_str().unwrap().parse::<u64>().unwrap();
            }
            moved
        }
    });
    let moved: Vec<u64> = futures_util::future::join_all(asking).await;
    let mut total = 0;
    for (payer, moved) in payers.iter().zip(&moved) {
        assert_eq!(market.wallet(payer.account()).await, PURSE - moved);
        let books = market.books(payer).await;
        assert!(books.agree(), "{books:?}");
        assert_eq!((books.credited.0, books.balance.0, books.held.0), (*moved, 0, 0));
        total += moved;
    }
    assert_eq!(market.wallet(gateway.account()).await, total);
    assert_eq!(market.all_credits().await, total);
    assert_eq!(market.charges().await.iter().map(|c| c.amount.0).sum::<u64>(), total);
    assert_eq!(market.charges().await.len(), 24);
    gateway.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_without_permit2_offers_exact_alone() {
    let market = Market::bare(Node::embedded().await).await;
    let gateway = market.gateway().await;
    let unpaid = gateway.ask(&ask("Hello"), None).await;
    let required = said(&unpaid, "payment-required");
    let accepts = required["accepts"].as_array().unwrap();
    assert_eq!((accepts.len(), &accepts[0]["scheme"]), (1, &json!("exact")));
    let payer = market.poor("payer", PURSE).await;
    let refused = gateway.ask(&ask("Hello"), Some(&payer.upto(MOST))).await;
    assert_eq!(said(&refused, "payment-required")["error"], "unsupported_scheme");
    assert_eq!(gateway.ask(&ask("Hello"), Some(&payer.exact(MOST))).await.status(), 200);
    gateway.dies().await;
}
