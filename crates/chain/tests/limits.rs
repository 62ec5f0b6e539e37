//! The limits that one request or one client can reach: at each of them, and one past it.
#![allow(clippy::unwrap_used)]

mod harness;

use alloy_consensus::TxEip1559;
use alloy_primitives::{Address, Bytes, TxKind};
use assay_chain::development::ADDRESSES;
use assay_chain::{Chain, Config, Mining, limits};
use harness::{deploying, signed, signer};
use serde_json::{Value, json};

fn ok(chain: &Chain, method: &str, params: Value) -> Value {
    chain.request(method, params).unwrap_or_else(|e| panic!("{method}: {e}"))
}

fn refused(chain: &Chain, method: &str, params: Value) -> (i64, String) {
    let error = chain.request(method, params).unwrap_err();
    (error.code, error.message)
}

#[test]
fn transactions_of_an_account_that_wait() {
    let chain = Chain::in_memory(Config { mining: Mining::Manual, ..Config::default() }).unwrap();
    let send = |nonce: usize| {
        let tx = TxEip1559 {
            chain_id: 31_337,
            nonce: nonce as u64,
            gas_limit: 21_000,
            max_fee_per_gas: 2_000_000_000,
            to: TxKind::Call(Address::repeat_byte(1)),
            ..TxEip1559::default()
        };
        chain.request("eth_sendRawTransaction", json!([signed(tx, &signer(0)).1]))
    };
    for nonce in 0..limits::POOL_ACCOUNT_MAX {
        send(nonce).unwrap();
    }
    let error = send(limits::POOL_ACCOUNT_MAX).unwrap_err();
    assert_eq!(error.code, -32_003);
    assert!(error.message.starts_with("account limit exceeded"), "{error}");
    assert!(send(limits::POOL_ACCOUNT_MAX + 1).unwrap_err().message.starts_with("nonce too high"));
    // A block has room for 1428 transfers; the third takes the last ones, and then there is room again.
    let transfers = limits::BLOCK_GAS / 21_000;
    chain.mine(3).unwrap();
    for (number, count) in [("0x1", transfers), ("0x2", transfers), ("0x3", 4_096 - 2 * transfers)] {
        let mined = ok(&chain, "eth_getBlockTransactionCountByNumber", json!([number]));
        assert_eq!(harness::number(&mined), count);
    }
    send(limits::POOL_ACCOUNT_MAX).unwrap();
}

#[test]
fn filters() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    let ids: Vec<Value> =
        (0..limits::FILTERS_MAX).map(|_| ok(&chain, "eth_newBlockFilter", json!([]))).collect();
    assert_eq!(refused(&chain, "eth_newFilter", json!([{}])).0, -32_005);
    assert_eq!(ok(&chain, "eth_uninstallFilter", json!([ids[0]])), true);
    ok(&chain, "eth_newFilter", json!([{}]));
    let many = vec![Address::ZERO; limits::LOG_ALTERNATIVES_MAX];
    ok(&chain, "eth_getLogs", json!([{ "address": many }]));
    let many: Vec<Address> = (0..=limits::LOG_ALTERNATIVES_MAX as u64)
        .map(|n| Address::left_padding_from(&n.to_be_bytes()))
        .collect();
    assert_eq!(refused(&chain, "eth_getLogs", json!([{ "address": many }])).0, -32_602);
}

/// A query for too much is an error, and never a part of the answer.
#[test]
fn logs_of_a_query() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    // Logs nothing for as long as there are 50 000 gas.
    let code = [0x5b, 0x5f, 0x5f, 0xa0, 0x5a, 0x61, 0xc3, 0x50, 0x10, 0x5f, 0x57, 0x00];
    let data = Bytes::from(deploying(&code));
    let hash = ok(&chain, "eth_sendTransaction", json!([{"from": ADDRESSES[0], "data": data}]));
    let contract = ok(&chain, "eth_getTransactionReceipt", json!([hash]))["contractAddress"].clone();
    let mut logs = 0;
    let query = json!([{"fromBlock": "0x0"}]);
    while logs <= limits::LOGS_MAX {
        assert_eq!(ok(&chain, "eth_getLogs", query.clone()).as_array().unwrap().len(), logs);
        let call = json!([{"from": ADDRESSES[0], "to": contract, "gas": "0x7a1200"}]);
        let receipt = ok(&chain, "eth_sendTransaction", call);
        let receipt = ok(&chain, "eth_getTransactionReceipt", json!([receipt]));
        assert_eq!(receipt["status"], "0x1");
        logs += receipt["logs"].as_array().unwrap().len();
    }
    let (code, words) = refused(&chain, "eth_getLogs", query);
    assert_eq!((code, words.as_str()), (-32_005, "query returned more than 20000 results"));
}

#[test]
fn overrides_of_a_call() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    let pretend = |count: u64| {
        let accounts = (0..count)
            .map(|n| (Address::left_padding_from(&n.to_be_bytes()).to_string(), json!({"nonce": "0x1"})));
        let accounts = Value::Object(accounts.collect());
        chain.request("eth_call", json!([{"to": ADDRESSES[0]}, "latest", accounts]))
    };
    pretend(limits::OVERRIDE_ACCOUNTS_MAX as u64).unwrap();
    assert_eq!(pretend(limits::OVERRIDE_ACCOUNTS_MAX as u64 + 1).unwrap_err().code, -32_602);
}

#[test]
fn blocks_and_time() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    let many = limits::MINE_MAX + 1;
    assert_eq!(refused(&chain, "anvil_mine", json!([many])).0, -32_602);
    assert_eq!(refused(&chain, "evm_mine", json!([{ "blocks": many }])).0, -32_602);
    assert_eq!(refused(&chain, "evm_increaseTime", json!([limits::TIME_MAX + 1])).0, -32_602);
    assert_eq!(refused(&chain, "evm_setNextBlockTimestamp", json!([limits::TIME_MAX + 1])).0, -32_602);
    ok(&chain, "evm_setNextBlockTimestamp", json!([limits::TIME_MAX]));
    ok(&chain, "anvil_mine", json!([600, "0xffffffffffffffff"]));
    let block = ok(&chain, "eth_getBlockByNumber", json!(["latest", false]));
    assert_eq!(
        (harness::number(&block["number"]), harness::number(&block["timestamp"])),
        (600, limits::TIME_MAX)
    );
    assert_eq!(
        refused(&chain, "eth_feeHistory", json!([1, "latest", vec![1; limits::PERCENTILES_MAX + 1]])).0,
        -32_602
    );
    let history = ok(&chain, "eth_feeHistory", json!(["0xffffffff", "latest"]));
    assert_eq!(history["gasUsedRatio"].as_array().unwrap().len(), 601);
}
