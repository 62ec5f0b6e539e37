//! What libraries look for in errors: geth's words, and the codes of EIP-1474.
#![allow(clippy::unwrap_used)]

mod harness;

use alloy_consensus::{TxEip1559, TxEip4844};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, hex};
use assay_chain::development::ADDRESSES;
use assay_chain::{Chain, Config, RpcError};
use harness::{deploying, number, signed, signer};
use serde_json::{Value, json};

fn refused(chain: &Chain, method: &str, params: Value) -> RpcError {
    chain.request(method, params.clone()).expect_err(&format!("{method} {params}"))
}

fn transfer(nonce: u64) -> TxEip1559 {
    TxEip1559 {
        chain_id: 31_337,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 20_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        to: TxKind::Call(Address::repeat_byte(1)),
        value: U256::from(1),
        ..TxEip1559::default()
    }
}

#[test]
fn of_transactions() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    let raw = |tx: TxEip1559| json!([signed(tx, &signer(0)).1]);
    chain.request("eth_sendRawTransaction", raw(transfer(0))).unwrap();
    let check = |tx: TxEip1559, code: i64, words: &str| {
        let error = refused(&chain, "eth_sendRawTransaction", raw(tx));
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.starts_with(words), "{error}");
    };
    check(
        TxEip1559 { value: U256::from(2), ..transfer(0) },
        -32_003,
        "nonce too low: next nonce 1, tx nonce 0",
    );
    check(transfer(0), -32_003, "already known");
    check(transfer(5_000), -32_003, "nonce too high");
    check(TxEip1559 { gas_limit: 20_999, ..transfer(1) }, -32_000, "intrinsic gas too low");
    check(TxEip1559 { gas_limit: (1 << 24) + 1, ..transfer(1) }, -32_003, "transaction gas limit too high");
    check(
        TxEip1559 { chain_id: 1, ..transfer(1) },
        -32_003,
        "invalid chain id for signer: have 1 want 31337",
    );
    check(
        TxEip1559 { value: U256::MAX >> 1, ..transfer(1) },
        -32_003,
        "insufficient funds for gas * price + value: balance ",
    );
    check(
        TxEip1559 { max_priority_fee_per_gas: 30_000_000_000, ..transfer(1) },
        -32_003,
        "max priority fee per gas higher than max fee per gas",
    );
    check(
        TxEip1559 { max_fee_per_gas: 1, max_priority_fee_per_gas: 1, ..transfer(1) },
        -32_003,
        "max fee per gas less than block base fee",
    );
    let creation = Bytes::from(vec![0; assay_chain::limits::INITCODE_BYTES_MAX + 1]);
    let creation = TxEip1559 { to: TxKind::Create, input: creation, gas_limit: 10_000_000, ..transfer(1) };
    check(creation, -32_003, "max initcode size exceeded");
    let blobs = TxEip4844 {
        chain_id: 31_337,
        nonce: 1,
        gas_limit: 21_000,
        max_fee_per_gas: 20_000_000_000,
        max_priority_fee_per_gas: 1,
        max_fee_per_blob_gas: 1,
        blob_versioned_hashes: vec![B256::with_last_byte(1)],
        ..TxEip4844::default()
    };
    let error = refused(&chain, "eth_sendRawTransaction", json!([signed(blobs, &signer(0)).1]));
    assert_eq!(error.message, "transaction type not supported: this chain takes no blobs (EIP-4844)");
    let long = Bytes::from(vec![2; assay_chain::limits::TRANSACTION_BYTES_MAX + 1]);
    assert!(refused(&chain, "eth_sendRawTransaction", json!([long])).message.starts_with("oversized data"));
}

/// A replacement pays 10 % more in both fees: at the limit, and one below it.
#[test]
fn of_replacements() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    chain.request("evm_setAutomine", json!([false])).unwrap();
    let send = |fee: u128, tip: u128| {
        let tx = TxEip1559 { max_fee_per_gas: fee, max_priority_fee_per_gas: tip, ..transfer(0) };
        chain.request("eth_sendRawTransaction", json!([signed(tx, &signer(0)).1]))
    };
    send(20_000_000_000, 1_000_000_000).unwrap();
    for (fee, tip) in [(21_999_999_999, 1_100_000_000), (22_000_000_000, 1_099_999_999)] {
        assert_eq!(send(fee, tip).unwrap_err().message, "replacement transaction underpriced");
    }
    let hash = send(22_000_000_000, 1_100_000_000).unwrap();
    chain.mine(1).unwrap();
    assert_eq!(chain.request("eth_getTransactionReceipt", json!([hash])).unwrap()["status"], "0x1");
    let count = chain.request("eth_getTransactionCount", json!([ADDRESSES[0], "pending"])).unwrap();
    assert_eq!(number(&count), 1);
}

#[test]
fn of_calls() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    // Error("no"), as Solidity encodes it.
    let reason = hex!(
        "08c379a0"
        "0000000000000000000000000000000000000000000000000000000000000020"
        "0000000000000000000000000000000000000000000000000000000000000002"
        "6e6f000000000000000000000000000000000000000000000000000000000000"
    );
    // CODECOPY what follows the code, REVERT with it.
    let length = u8::try_from(reason.len()).unwrap();
    let mut code = vec![0x60, length, 0x80, 0x60, 0x0a, 0x5f, 0x39, 0x5f, 0xfd, 0x00];
    code.extend_from_slice(&reason);
    let data = Bytes::from(deploying(&code));
    let hash = chain.request("eth_sendTransaction", json!([{"from": ADDRESSES[0], "data": data}])).unwrap();
    let receipt = chain.request("eth_getTransactionReceipt", json!([hash])).unwrap();
    let call = json!([{"to": receipt["contractAddress"]}]);
    for method in ["eth_call", "eth_estimateGas"] {
        let error = refused(&chain, method, call.clone());
        assert_eq!((error.code, error.message.as_str()), (3, "execution reverted: no"));
        assert_eq!(error.data, Some(json!(Bytes::copy_from_slice(&reason))));
    }
    let broke = json!([{"from": Address::repeat_byte(9), "to": ADDRESSES[0], "value": "0x1"}]);
    for method in ["eth_call", "eth_estimateGas"] {
        let error = refused(&chain, method, broke.clone());
        assert!(error.message.starts_with("insufficient funds for gas * price + value"), "{error}");
    }
    let little = json!([{"from": ADDRESSES[0], "to": ADDRESSES[1], "gas": "0x5207"}]);
    assert_eq!(refused(&chain, "eth_estimateGas", little).message, "gas required exceeds allowance (20999)");
    let error = refused(&chain, "eth_nothing", json!([]));
    assert_eq!(
        (error.code, error.message.as_str()),
        (-32_601, "the method eth_nothing does not exist/is not available")
    );
}

/// The gas that is estimated suffices, and one less does not.
#[test]
fn an_estimate_is_the_least() {
    let chain = Chain::in_memory(Config::default()).unwrap();
    let code = harness::token_code();
    let with = |gas: u64| json!([{"from": ADDRESSES[0], "data": code, "gas": format!("{gas:#x}")}]);
    let gas =
        number(&chain.request("eth_estimateGas", json!([{"from": ADDRESSES[0], "data": code}])).unwrap());
    let status = |gas: u64| {
        let hash = chain.request("eth_sendTransaction", with(gas)).unwrap();
        chain.request("eth_getTransactionReceipt", json!([hash])).unwrap()["status"].clone()
    };
    assert_eq!((status(gas), status(gas - 1)), (json!("0x1"), json!("0x0")));
}
