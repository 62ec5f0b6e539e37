//! Nothing that a client can send makes the chain panic, hang, or answer other than with one result or one error.
#![allow(clippy::unwrap_used)]

mod harness;

use std::sync::Arc;

use alloy_consensus::TxEip1559;
use alloy_primitives::{Address, Bytes, TxKind, U256};
use assay_chain::{Chain, Config};
use harness::{Node, client, signed, signer};
use proptest::prelude::*;
use serde_json::{Value, json};

const METHODS: &[&str] = &[
    "web3_sha3",
    "eth_feeHistory",
    "eth_getBalance",
    "eth_getTransactionCount",
    "eth_getCode",
    "eth_getStorageAt",
    "eth_call",
    "eth_estimateGas",
    "eth_createAccessList",
    "eth_sendRawTransaction",
    "eth_sendTransaction",
    "eth_getTransactionByHash",
    "eth_getTransactionByBlockHashAndIndex",
    "eth_getTransactionByBlockNumberAndIndex",
    "eth_getRawTransactionByHash",
    "eth_getTransactionReceipt",
    "eth_getBlockReceipts",
    "eth_getBlockByHash",
    "eth_getBlockByNumber",
    "eth_getBlockTransactionCountByHash",
    "eth_getBlockTransactionCountByNumber",
    "eth_getUncleCountByBlockHash",
    "eth_getUncleCountByBlockNumber",
    "eth_getLogs",
    "eth_newFilter",
    "eth_getFilterChanges",
    "eth_getFilterLogs",
    "eth_uninstallFilter",
    "evm_increaseTime",
    "evm_snapshot",
    "evm_setNextBlockTimestamp",
    "evm_revert",
    "evm_setAutomine",
    "evm_setIntervalMining",
    "anvil_setBalance",
    "anvil_setNonce",
    "anvil_setCode",
    "anvil_setStorageAt",
    "anvil_impersonateAccount",
    "anvil_rollback",
    "anvil_stopImpersonatingAccount",
    "anvil_dropTransaction",
    "anvil_setNextBlockBaseFeePerGas",
    "evm_mine",
];

/// Values of the kinds that parameters have, and of none.
fn value() -> impl Strategy<Value = Value> {
    let address = json!(assay_chain::development::ADDRESSES[0]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        any::<u64>().prop_map(|n| json!(format!("{n:#x}"))),
        any::<[u8; 32]>().prop_map(|b| json!(alloy_primitives::B256::from(b))),
        Just(address),
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(|b| json!(Bytes::from(b))),
        prop_oneof![Just("latest"), Just("pending"), Just("earliest"), Just("0x"), Just("0x0"), Just("")]
            .prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let key = prop_oneof![
            Just("from"),
            Just("to"),
            Just("data"),
            Just("input"),
            Just("gas"),
            Just("gasPrice"),
            Just("maxFeePerGas"),
            Just("maxPriorityFeePerGas"),
            Just("value"),
            Just("nonce"),
            Just("accessList"),
            Just("chainId"),
            Just("fromBlock"),
            Just("toBlock"),
            Just("blockHash"),
            Just("address"),
            Just("topics"),
            Just("timestamp"),
            Just("blocks"),
            Just("balance"),
            Just("stateDiff"),
            Just("time"),
            Just("authorizationList"),
            Just("type"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..5).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

fn chain() -> Arc<Chain> {
    Chain::in_memory(Config::default()).unwrap()
}

fn valid() -> (alloy_primitives::B256, Bytes) {
    let tx = TxEip1559 {
        chain_id: 31_337,
        nonce: 0,
        gas_limit: 50_000,
        max_fee_per_gas: 20_000_000_000,
        max_priority_fee_per_gas: 1,
        to: TxKind::Call(Address::repeat_byte(1)),
        value: U256::from(1),
        input: Bytes::from_static(b"something"),
        ..TxEip1559::default()
    };
    signed(tx, &signer(0))
}

#[test]
fn requests_of_any_shape() {
    let chain = chain();
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 3_000, ..ProptestConfig::default() });
    let strategy = (proptest::sample::select(METHODS), proptest::collection::vec(value(), 0..5));
    runner
        .run(&strategy, |(method, params)| {
            if let Err(error) = chain.request(method, Value::Array(params)) {
                prop_assert!(error.code == 3 || (-32_768..=-32_000).contains(&error.code), "{}", error);
                prop_assert!(
                    error.code != -32_601 && !error.message.is_empty() && error.message.len() < 2_000
                );
            }
            Ok(())
        })
        .unwrap();
    // It still works, and its height is one that these requests can have made.
    chain.request("evm_setAutomine", json!([true])).unwrap();
    chain.request("eth_getBlockByNumber", json!(["latest", true])).unwrap();
}

#[test]
fn transactions_with_a_few_wrong_bytes() {
    let chain = chain();
    let (hash, raw) = valid();
    let change = prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| (0u8, at, byte)),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| (1u8, at, byte)),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| (2u8, at, byte)),
    ];
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 2_000, ..ProptestConfig::default() });
    runner
        .run(&proptest::collection::vec(change, 1..4), |changes| {
            let mut bytes = raw.to_vec();
            for (kind, at, byte) in changes {
                let at = at.index(bytes.len().max(1));
                match kind {
                    0 if at < bytes.len() => bytes[at] ^= byte,
                    1 => bytes.truncate(at),
                    _ => bytes.insert(at.min(bytes.len()), byte),
                }
            }
            if bytes != raw.to_vec() {
                match chain.request("eth_sendRawTransaction", json!([Bytes::from(bytes)])) {
                    Ok(other) => prop_assert_ne!(other, json!(hash)),
                    Err(error) => {
                        prop_assert!([-32_602, -32_003, -32_000].contains(&error.code), "{}", error)
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(chain.request("eth_sendRawTransaction", json!([raw])).unwrap(), json!(hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_kind() {
    let node = Node::chain().await;
    let request = |id: Value| json!({"jsonrpc": "2.0", "id": id, "method": "eth_chainId"});
    let code = |body: &'static [u8]| {
        let node = &node;
        async move {
            let (status, answer) = node.post(body).await;
            assert_eq!(status, 200);
            serde_json::from_slice::<Value>(&answer).unwrap()["error"]["code"].as_i64().unwrap()
        }
    };
    assert_eq!(code(b"").await, -32_700);
    assert_eq!(code(b"{\"jsonrpc\":").await, -32_700);
    assert_eq!(code(b"\xff\xfe").await, -32_700);
    for wrong in [
        &b"[]"[..],
        b"1",
        b"null",
        b"{}",
        br#"{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}"#,
        br#"{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":5}"#,
    ] {
        assert_eq!(code(wrong).await, -32_600, "{}", String::from_utf8_lossy(wrong));
    }
    assert_eq!(code(br#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":{}}"#).await, -32_602);
    // Nesting that would exhaust a parser's stack.
    let deep = "[".repeat(100_000);
    let (_, answer) = node.post(deep).await;
    assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap()["error"]["code"], -32_700);
    for id in [json!(7), json!("seven"), json!(7.5), Value::Null] {
        let (_, answer) = node.post(request(id.clone()).to_string()).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer, json!({"jsonrpc": "2.0", "id": id, "result": "0x7a69"}));
    }
    // A batch is answered in its order, without what asks for no answer.
    let silent = json!({"jsonrpc": "2.0", "method": "evm_mine"});
    let batch = json!([request(json!(1)), silent, 5, request(json!("b"))]);
    let (_, answer) = node.post(batch.to_string()).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let ids: Vec<&Value> = answer.as_array().unwrap().iter().map(|a| &a["id"]).collect();
    assert_eq!(ids, [&json!(1), &Value::Null, &json!("b")]);
    assert_eq!(node.number("eth_blockNumber", json!([])).await, 1);
    let (status, answer) = node.post(silent.to_string()).await;
    assert_eq!((status, answer.len()), (204, 0));
    let many: Vec<Value> = (0..assay_chain::limits::BATCH_MAX + 1).map(|id| request(json!(id))).collect();
    let (_, answer) = node.post(Value::from(many[1..].to_vec()).to_string()).await;
    assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap().as_array().unwrap().len(), many.len() - 1);
    let (_, answer) = node.post(Value::from(many).to_string()).await;
    assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap()["error"]["code"], -32_600);
    let (status, _) = node.post(vec![b' '; assay_chain::limits::BODY_BYTES_MAX + 1]).await;
    assert_eq!(status, 413);
    // A page of another origin can send text, and no more.
    let text = client().post(&node.url).body(request(json!(1)).to_string());
    assert_eq!(text.send().await.unwrap().status(), 415);
}
