//! What a chain is opened with, what moves it, and who may have it.
#![allow(clippy::unwrap_used)]

mod harness;

use std::time::Duration;

use alloy_consensus::TxEip1559;
use alloy_primitives::{Address, B256, TxKind, U256};
use assay_chain::development::ADDRESSES;
use assay_chain::{Chain, Clock, Config, Mining, OpenError};
use harness::{GENESIS_TIME, Node, number, signed, signer, until};
use serde_json::{Value, json};

fn standing(mining: Mining) -> Config {
    Config {
        genesis_time: Some(GENESIS_TIME),
        seed: Some(B256::repeat_byte(1)),
        clock: Clock::Standing,
        mining,
        ..Config::default()
    }
}

fn ok(chain: &Chain, method: &str, params: Value) -> Value {
    chain.request(method, params.clone()).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
}

fn height(chain: &Chain) -> u64 {
    number(&ok(chain, "eth_blockNumber", json!([])))
}

fn send(chain: &Chain, value: u64) -> Value {
    let value = format!("{value:#x}");
    ok(chain, "eth_sendTransaction", json!([{"from": ADDRESSES[0], "to": ADDRESSES[1], "value": value}]))
}

#[test]
fn the_same_seed_and_clock_make_the_same_chain() {
    let hash = |seed: u8| {
        let chain =
            Chain::in_memory(Config { seed: Some(B256::repeat_byte(seed)), ..standing(Mining::OnDemand) })
                .unwrap();
        send(&chain, 1);
        chain.advance(77).unwrap();
        send(&chain, 2);
        assert_eq!(chain.time(), GENESIS_TIME + 77);
        ok(&chain, "eth_getBlockByNumber", json!(["latest", false]))["hash"].clone()
    };
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1), hash(2));
}

#[test]
fn randomness_comes_from_the_seed_and_the_parent() {
    let chain = Chain::in_memory(standing(Mining::OnDemand)).unwrap();
    chain.mine(3).unwrap();
    for number in 1..=3u64 {
        let block = ok(&chain, "eth_getBlockByNumber", json!([format!("{number:#x}"), false]));
        let parent: B256 = serde_json::from_value(block["parentHash"].clone()).unwrap();
        let expected = alloy_primitives::keccak256([[1u8; 32], parent.0].concat());
        assert_eq!(block["mixHash"], json!(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_come_at_intervals() {
    let mining = Mining::Every(Duration::from_millis(20));
    let chain = Chain::in_memory(Config { mining, ..Config::default() }).unwrap();
    let node = Node::serving(chain.clone()).await;
    until(async || (node.number("eth_blockNumber", json!([])).await >= 3).then_some(())).await;
    let hash = send(&chain, 1);
    let receipt = until(async || {
        let receipt = node.ok("eth_getTransactionReceipt", json!([hash])).await;
        (!receipt.is_null()).then_some(receipt)
    })
    .await;
    assert_eq!(receipt["status"], "0x1");
    // Stopped, it stands still; started again, it goes on.
    node.ok("evm_setIntervalMining", json!([0])).await;
    let stopped = height(&chain);
    let hash = send(&chain, 2);
    assert!(node.ok("eth_getTransactionReceipt", json!([hash])).await.is_null());
    assert_eq!(height(&chain), stopped);
    node.ok("evm_setIntervalMining", json!([1])).await;
    until(async || (height(&chain) > stopped).then_some(())).await;
    assert!(!node.ok("eth_getTransactionReceipt", json!([hash])).await.is_null());
}

#[test]
fn a_chain_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (hash, last, time) = {
        let chain = Chain::open(folder.path(), standing(Mining::OnDemand)).unwrap();
        let hash = send(&chain, 5);
        chain.advance(1_000).unwrap();
        (hash, ok(&chain, "eth_getBlockByNumber", json!(["latest", true])), chain.time())
    };
    // Another seed and other accounts change nothing now.
    let other = Config { seed: None, accounts: Vec::new(), ..standing(Mining::OnDemand) };
    let chain = Chain::open(folder.path(), other).unwrap();
    assert_eq!(ok(&chain, "eth_getBlockByNumber", json!(["latest", true])), last);
    assert_eq!(ok(&chain, "eth_getTransactionReceipt", json!([hash]))["blockNumber"], "0x1");
    assert_eq!(chain.time(), time);
    send(&chain, 6);
    assert_eq!(height(&chain), 2);
}

#[test]
fn a_folder_is_one_chains_and_one_processs() {
    let folder = tempfile::tempdir().unwrap();
    let chain = Chain::open(folder.path(), Config::default()).unwrap();
    assert!(matches!(Chain::open(folder.path(), Config::default()), Err(OpenError::InUse)));
    drop(chain);
    let other = Config { chain_id: 5, ..Config::default() };
    let refused = Chain::open(folder.path(), other).unwrap_err();
    assert!(matches!(refused, OpenError::ChainId { expected: 5, found: 31_337 }), "{refused}");
    Chain::open(folder.path(), Config::default()).unwrap();
}

#[test]
fn a_file_that_is_no_chain_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("chain.redb"), b"something else").unwrap();
    assert!(matches!(Chain::open(folder.path(), Config::default()), Err(OpenError::Store(_))));
}

#[test]
fn a_rewind_restores_everything() {
    let chain = Chain::in_memory(standing(Mining::OnDemand)).unwrap();
    send(&chain, 1);
    let state = |chain: &Chain| {
        let of = |who: Address| {
            (
                ok(chain, "eth_getBalance", json!([who, "latest"])),
                ok(chain, "eth_getTransactionCount", json!([who, "pending"])),
            )
        };
        (height(chain), of(ADDRESSES[0]), of(ADDRESSES[1]), chain.time())
    };
    let before = state(&chain);
    let first = ok(&chain, "evm_snapshot", json!([]));
    // Edits of a block's state are undone as blocks are.
    ok(&chain, "anvil_setBalance", json!([ADDRESSES[1], "0x7"]));
    let second = ok(&chain, "evm_snapshot", json!([]));
    ok(&chain, "anvil_setBalance", json!([ADDRESSES[1], "0x8"]));
    send(&chain, 2);
    ok(&chain, "anvil_setNonce", json!([ADDRESSES[1], "0x9"]));
    chain.advance(500).unwrap();
    ok(&chain, "evm_setAutomine", json!([false]));
    let waits = send(&chain, 3);
    assert_eq!(ok(&chain, "evm_revert", json!([second])), true);
    assert_eq!(ok(&chain, "eth_getBalance", json!([ADDRESSES[1], "latest"])), "0x7");
    assert!(ok(&chain, "eth_getTransactionByHash", json!([waits])).is_null());
    assert_eq!(ok(&chain, "evm_revert", json!([first])), true);
    assert_eq!(ok(&chain, "evm_revert", json!([second])), false);
    assert_eq!(state(&chain), before);
    let back = chain.request("anvil_rollback", json!([2])).unwrap_err();
    assert_eq!(back.code, -32602);
    ok(&chain, "anvil_rollback", json!([1]));
    assert_eq!(height(&chain), 0);
}

/// However many send at once: each transaction is mined once, in its account's order, and a sender's hash is in a block when it has it.
#[tokio::test(flavor = "multi_thread")]
async fn many_senders_at_once() {
    let node = Node::chain().await;
    let sends = (0..8usize).map(|index| {
        let node = &node;
        async move {
            for nonce in 0..20 {
                let tx = TxEip1559 {
                    chain_id: 31_337,
                    nonce,
                    gas_limit: 21_000,
                    max_fee_per_gas: 20_000_000_000,
                    max_priority_fee_per_gas: 1,
                    to: TxKind::Call(Address::repeat_byte(0xcc)),
                    value: U256::from(1),
                    ..TxEip1559::default()
                };
                let raw = signed(tx, &signer(index)).1;
                let hash = node.ok("eth_sendRawTransaction", json!([raw])).await;
                assert!(!node.ok("eth_getTransactionReceipt", json!([hash])).await.is_null());
            }
        }
    });
    harness::all(sends).await;
    assert_eq!(node.number("eth_getBalance", json!([Address::repeat_byte(0xcc), "latest"])).await, 160);
}

/// What uses more gas than a block has goes into the next one, which comes at once.
#[test]
fn a_full_block_is_followed_by_another() {
    let chain = Chain::in_memory(standing(Mining::Manual)).unwrap();
    // An endless loop uses all the gas that it is given: two blocks' worth are needed for two of them.
    let code = "0x5b5f56";
    ok(&chain, "anvil_setCode", json!([Address::repeat_byte(0xdd), code]));
    for from in &ADDRESSES[..3] {
        ok(
            &chain,
            "eth_sendTransaction",
            json!([{"from": from, "to": Address::repeat_byte(0xdd), "gas": "0x1000000"}]),
        );
    }
    ok(&chain, "evm_setAutomine", json!([true]));
    let count = |n: &str| number(&ok(&chain, "eth_getBlockTransactionCountByNumber", json!([n])));
    assert_eq!((height(&chain), count("0x1"), count("0x2"), count("0x3")), (3, 1, 1, 1));
}

#[test]
fn a_transaction_that_closes_a_gap_brings_the_next_one_along() {
    let chain = Chain::in_memory(standing(Mining::OnDemand)).unwrap();
    let transfer =
        |nonce: u64| json!([{"from": ADDRESSES[0], "to": ADDRESSES[1], "nonce": format!("{nonce:#x}")}]);
    let late = ok(&chain, "eth_sendTransaction", transfer(1));
    assert_eq!(height(&chain), 0);
    ok(&chain, "eth_sendTransaction", transfer(0));
    assert_eq!(height(&chain), 1);
    assert_eq!(ok(&chain, "eth_getTransactionReceipt", json!([late]))["transactionIndex"], "0x1");
}

/// A reorganisation: blocks are undone, others come, and what was undone can be sent again.
#[test]
fn what_was_undone_can_be_sent_again() {
    let chain = Chain::in_memory(standing(Mining::OnDemand)).unwrap();
    let filter = ok(&chain, "eth_newBlockFilter", json!([]));
    let hash = send(&chain, 1);
    let raw = ok(&chain, "eth_getRawTransactionByHash", json!([hash]));
    let undone = ok(&chain, "eth_getBlockByNumber", json!(["latest", false]))["hash"].clone();
    assert_eq!(ok(&chain, "eth_getFilterChanges", json!([filter])), json!([undone]));
    ok(&chain, "anvil_rollback", json!([1]));
    assert!(ok(&chain, "eth_getTransactionReceipt", json!([hash])).is_null());
    assert!(ok(&chain, "eth_getBlockByHash", json!([undone, false])).is_null());
    chain.advance(9).unwrap();
    chain.mine(1).unwrap();
    ok(&chain, "eth_sendRawTransaction", json!([raw]));
    let receipt = ok(&chain, "eth_getTransactionReceipt", json!([hash]));
    assert_eq!(receipt["blockNumber"], "0x2");
    // The filter tells of the new blocks, from the last one on that was left.
    let news = ok(&chain, "eth_getFilterChanges", json!([filter]));
    let hashes =
        ["0x1", "0x2"].map(|n| ok(&chain, "eth_getBlockByNumber", json!([n, false]))["hash"].clone());
    assert_eq!(news, json!(hashes));
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_those_of_anvil() {
    let Some(anvil) = Node::anvil("accounts") else { return };
    assert_eq!(anvil.ok("eth_accounts", json!([])).await, json!(ADDRESSES));
}
