//! Nonces and fees when things go wrong: stuck, forgotten, taken, undone, crashed.

use std::time::Duration;

use alloy_primitives::U256;
use alloy_provider::Provider as _;
use assay_ledger::contracts::{TestToken, Vault};
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::{Policy, SendError, Sender};
use serde_json::json;

use crate::chains::{Node, on_both, parameters, policy};

fn mint(sender: &Sender, amount: u64) -> TestToken::mintCall {
    TestToken::mintCall { to: sender.account(), amount: U256::from(amount) }
}

async fn balance(ledger: &Ledger, sender: &Sender) -> u128 {
    ledger.holdings(sender.account()).await.unwrap().wallet.0
}

/// Until something is so, without an assertion on how long it takes.
async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    for _ in 0..3_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be so");
}

async fn pending_fee(node: &Node, sender: &Sender) -> Option<u128> {
    let block = node.ask("eth_getBlockByNumber", json!(["pending", true])).await;
    let own = |tx: &&serde_json::Value| {
        tx["from"].as_str().is_some_and(|from| from.eq_ignore_ascii_case(&sender.account().to_string()))
    };
    let tx = block["transactions"].as_array()?.iter().find(own)?;
    let fee = tx["maxFeePerGas"].as_str()?;
    u128::from_str_radix(fee.trim_start_matches("0x"), 16).ok()
}

#[test]
fn a_stuck_transaction_is_sent_again_with_higher_fees() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let sender = node.sender(&node.actor("stuck").await).await;
        let count = node.client.provider().get_transaction_count(sender.account()).await.unwrap();
        node.ask("evm_setAutomine", json!([false])).await;
        let call = mint(&sender, 7);
        let sent = sender.send("mint", ledger.parts().at.token, &call);
        let unstick = async {
            until(async || pending_fee(&node, &sender).await.is_some()).await;
            let first = pending_fee(&node, &sender).await.unwrap();
            until(async || pending_fee(&node, &sender).await.is_some_and(|fee| fee * 10 > first * 12)).await;
            node.mine(1).await;
        };
        let (mined, ()) = tokio::join!(sent, unstick);
        mined.unwrap();
        assert_eq!(balance(&ledger, &sender).await, 7);
        let after = node.client.provider().get_transaction_count(sender.account()).await.unwrap();
        assert_eq!(after, count + 1);
        assert!(sender.waiting().await.is_empty());
    });
}

#[test]
fn many_at_once_take_one_number_each() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let sender = node.sender(&node.actor("busy").await).await;
        let token = ledger.parts().at.token;
        let call = mint(&sender, 1);
        let sends = (0..20).map(|_| sender.send("mint", token, &call));
        for sent in futures_util::future::join_all(sends).await {
            sent.unwrap();
        }
        assert_eq!(balance(&ledger, &sender).await, 20);
    });
}

/// The process ends while a transaction waits; the node forgets it, too.
#[test]
fn what_waited_when_the_process_ended_goes_on() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let key = node.actor("crashed").await;
        let impatient = Policy { deadline: Duration::ZERO, ..policy() };
        node.ask("evm_setAutomine", json!([false])).await;
        let sender = node.patient_sender(&key, impatient).await;
        let call = mint(&sender, 5);
        let error = sender.send("mint five", ledger.parts().at.token, &call).await.unwrap_err();
        let SendError::Waiting { hash, .. } = error else { panic!("{error}") };
        assert!(error.may_retry() && error.to_string().contains("mint five"));
        drop(sender);
        node.ask("anvil_dropTransaction", json!([hash])).await;
        node.ask("evm_setAutomine", json!([true])).await;
        let sender = node.sender(&key).await;
        assert_eq!(sender.waiting().await, ["mint five"]);
        let ended = sender.resume().await;
        let [(purpose, Ok(_))] = ended.as_slice() else { panic!("{ended:?}") };
        assert_eq!(purpose, "mint five");
        assert_eq!(balance(&ledger, &sender).await, 5);
        assert!(sender.waiting().await.is_empty());
        // There is nothing left to go on with.
        drop(sender);
        assert!(node.sender(&key).await.resume().await.is_empty());
    });
}

/// A node that took it and mined it while nobody waited.
#[test]
fn what_was_mined_meanwhile_is_not_sent_twice() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let key = node.actor("slept").await;
        let impatient = Policy { deadline: Duration::ZERO, confirmations: 3, ..policy() };
        let sender = node.patient_sender(&key, impatient).await;
        let error = sender.send("mint", ledger.parts().at.token, &mint(&sender, 5)).await.unwrap_err();
        assert!(matches!(error, SendError::Waiting { .. }), "{error}");
        drop(sender);
        node.mine(5).await;
        let sender = node.patient_sender(&key, Policy { confirmations: 3, ..policy() }).await;
        let ended = sender.resume().await;
        assert!(matches!(ended.as_slice(), [(_, Ok(_))]), "{ended:?}");
        assert_eq!(balance(&ledger, &sender).await, 5);
    });
}

#[test]
fn a_number_that_somebody_else_used_is_said_to_be_taken() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let key = node.actor("twice").await;
        let token = ledger.parts().at.token;
        node.ask("evm_setAutomine", json!([false])).await;
        let impatient = Policy { deadline: Duration::ZERO, ..policy() };
        let first = node.patient_sender(&key, impatient).await;
        let error = first.send("mint", token, &mint(&first, 5)).await.unwrap_err();
        let SendError::Waiting { hash, .. } = error else { panic!("{error}") };
        drop(first);
        node.ask("anvil_dropTransaction", json!([hash])).await;
        node.ask("evm_setAutomine", json!([true])).await;
        // The same key elsewhere, with an outbox of its own.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = node.sender_in(elsewhere.path(), &key, policy()).await;
        other.send("mint", token, &mint(&other, 3)).await.unwrap();
        let sender = node.sender(&key).await;
        let ended = sender.resume().await;
        assert!(matches!(ended.as_slice(), [(_, Err(SendError::NonceTaken { .. }))]), "{ended:?}");
        assert_eq!(balance(&ledger, &sender).await, 3);
        sender.send("mint", token, &mint(&sender, 2)).await.unwrap();
        assert_eq!(balance(&ledger, &sender).await, 5);
    });
}

#[test]
fn two_processes_do_not_send_with_one_key() {
    on_both(async |node| {
        let key = node.actor("one").await;
        let first = node.sender(&key).await;
        let second = Sender::open(node.client.clone(), key.clone(), node.home.path(), policy()).await;
        assert!(matches!(second, Err(SendError::Outbox(_))), "{second:?}");
        drop(first);
        node.sender(&key).await;
    });
}

/// A block with the transaction in it is taken back before it is deep enough: the transaction is mined again.
#[test]
fn a_reorganisation_undoes_nothing_for_good() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let sender =
            node.patient_sender(&node.actor("undone").await, Policy { confirmations: 3, ..policy() }).await;
        let before = node.ask("evm_snapshot", json!([])).await;
        let call = mint(&sender, 9);
        let sent = sender.send("mint", ledger.parts().at.token, &call);
        let reorganise = async {
            until(async || balance(&ledger, &sender).await == 9).await;
            node.mine(1).await;
            assert_eq!(node.ask("evm_revert", json!([before])).await, json!(true));
            assert_eq!(balance(&ledger, &sender).await, 0);
            until(async || balance(&ledger, &sender).await == 9).await;
            node.mine(3).await;
        };
        let (mined, ()) = tokio::join!(sent, reorganise);
        let mined = mined.unwrap();
        let header = node.client.header(mined.block.into()).await.unwrap().unwrap();
        assert_eq!(header.hash, mined.block_hash, "it is in the chain that is left");
        assert_eq!(balance(&ledger, &sender).await, 9);
    });
}

#[test]
fn who_cannot_pay_for_gas_is_told_so() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let key = alloy_signer_local::PrivateKeySigner::from_bytes(&crate::chains::hash("poor")).unwrap();
        let sender = node.sender(&key).await;
        let error = sender.send("mint", ledger.parts().at.token, &mint(&sender, 1)).await.unwrap_err();
        assert!(matches!(error, SendError::NoGas { .. }), "{error}");
        assert!(sender.waiting().await.is_empty());
    });
}

/// A transaction that would have worked when it was estimated, and does not when it is mined.
#[test]
fn a_refusal_in_a_block_is_explained() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let payer = node.member(&ledger, "payer").await;
        let drain = node.sender(&node.actor("drain").await).await;
        let (token, vault) = (ledger.parts().at.token, ledger.parts().at.vault);
        let all = U256::from(crate::chains::PURSE);
        for spender in [drain.account(), vault] {
            let approve = TestToken::approveCall { spender, value: all };
            payer.send("approve", token, &approve).await.unwrap();
        }
        node.ask("evm_setAutomine", json!([false])).await;
        let deposit = Vault::depositCall { account: payer.account(), amount: all };
        let sent = payer.send("deposit", vault, &deposit);
        let meanwhile = async {
            until(async || pending_fee(&node, &payer).await.is_some()).await;
            let pending = node.ask("eth_getBlockByNumber", json!(["pending", false])).await;
            node.ask("anvil_dropTransaction", json!([pending["transactions"][0]])).await;
            node.ask("evm_setAutomine", json!([true])).await;
            let take = TestToken::transferFromCall { from: payer.account(), to: drain.account(), value: all };
            drain.send("drain", token, &take).await.unwrap();
        };
        let (refused, ()) = tokio::join!(sent, meanwhile);
        let error = refused.unwrap_err();
        let SendError::Reverted { reason, mined: Some(_) } = &error else { panic!("{error}") };
        assert!(reason.is::<TestToken::ERC20InsufficientBalance>(), "{reason}");
        assert!(payer.waiting().await.is_empty());
    });
}
