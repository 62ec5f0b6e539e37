//! Whatever is done to a chain, and undone: every block's state reads as a model says, and the same transactions make the same chain.
#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};
use assay_chain::development::ADDRESSES;
use assay_chain::{Chain, Clock, Config, Mining};
use harness::{GENESIS_TIME, deploying, number};
use proptest::prelude::*;
use serde_json::{Value, json};

/// SSTORE of the call's second word at its first; what it held before is logged.
const STORE: &[u8] =
    &[0x5f, 0x35, 0x80, 0x54, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xa0, 0x60, 0x20, 0x35, 0x90, 0x55];

#[derive(Clone, Debug)]
enum Step {
    Pay(u8, u64),
    Store(u8, u8),
    Mine(u8),
    Edit(u8, u64),
    Snapshot,
    Revert(u8),
    Rollback(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4u8, 1..1000u64).prop_map(|(to, value)| Step::Pay(to, value)),
        6 => (0..4u8, 0..4u8).prop_map(|(slot, value)| Step::Store(slot, value)),
        1 => (1..4u8).prop_map(Step::Mine),
        2 => (0..4u8, 0..1000u64).prop_map(|(who, balance)| Step::Edit(who, balance)),
        2 => Just(Step::Snapshot),
        1 => any::<u8>().prop_map(Step::Revert),
        1 => (1..5u8).prop_map(Step::Rollback),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the state is after a block: balances of accounts that only receive, and the contract's slots.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    balances: BTreeMap<u8, u64>,
    slots: BTreeMap<u8, u8>,
}

fn payee(index: u8) -> Address {
    Address::repeat_byte(0xe0 + index)
}

fn ok(chain: &Chain, method: &str, params: Value) -> Value {
    chain.request(method, params.clone()).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
}

fn config(mining: Mining) -> Config {
    Config {
        genesis_time: Some(GENESIS_TIME),
        seed: Some(B256::ZERO),
        clock: Clock::Standing,
        mining,
        ..Config::default()
    }
}

fn send(chain: &Chain, transaction: Value) {
    let hash = ok(chain, "eth_sendTransaction", json!([transaction]));
    assert_eq!(ok(chain, "eth_getTransactionReceipt", json!([hash]))["status"], "0x1");
}

fn contract(chain: &Chain) -> Address {
    let data = alloy_primitives::Bytes::from(deploying(STORE));
    let hash = ok(chain, "eth_sendTransaction", json!([{"from": ADDRESSES[0], "data": data}]));
    let receipt = ok(chain, "eth_getTransactionReceipt", json!([hash]));
    receipt["contractAddress"].as_str().unwrap().parse().unwrap()
}

fn store(contract: Address, slot: u8, value: u8) -> Value {
    let word = |byte: u8| B256::with_last_byte(byte);
    let data = alloy_primitives::Bytes::from([word(slot), word(value)].concat());
    json!({"from": ADDRESSES[0], "to": contract, "data": data, "gas": "0x186a0"})
}

/// Every state of the past, beside its model.
fn check(chain: &Chain, contract: Address, blocks: &[Model]) {
    assert_eq!(number(&ok(chain, "eth_blockNumber", json!([]))) as usize, blocks.len() - 1);
    for (height, model) in blocks.iter().enumerate() {
        let at = format!("{height:#x}");
        for index in 0..4u8 {
            let balance = number(&ok(chain, "eth_getBalance", json!([payee(index), at])));
            assert_eq!(balance, model.balances.get(&index).copied().unwrap_or(0), "balance at {height}");
            let slot = ok(chain, "eth_getStorageAt", json!([contract, U256::from(index), at]));
            let slot: B256 = serde_json::from_value(slot).unwrap();
            assert_eq!(
                slot,
                B256::with_last_byte(model.slots.get(&index).copied().unwrap_or(0)),
                "slot at {height}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_past_reads_as_it_was(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let chain = Chain::open(folder.path(), config(Mining::OnDemand)).unwrap();
        let contract = contract(&chain);
        // One model for each block; of the last one, as it is now.
        let mut blocks = vec![Model::default(), Model::default()];
        let mut snapshots: Vec<(Value, Vec<Model>)> = Vec::new();
        for step in steps {
            let mut next = blocks.last().unwrap().clone();
            match step {
                Step::Pay(to, value) => {
                    send(&chain, json!({"from": ADDRESSES[0], "to": payee(to), "value": format!("{value:#x}")}));
                    *next.balances.entry(to).or_default() += value;
                    blocks.push(next);
                }
                Step::Store(slot, value) => {
                    send(&chain, store(contract, slot, value));
                    next.slots.insert(slot, value);
                    blocks.push(next);
                }
                Step::Mine(count) => {
                    chain.mine(count.into()).unwrap();
                    blocks.extend((0..count).map(|_| next.clone()));
                }
                Step::Edit(who, balance) => {
                    ok(&chain, "anvil_setBalance", json!([payee(who), format!("{balance:#x}")]));
                    next.balances.insert(who, balance);
                    *blocks.last_mut().unwrap() = next;
                }
                Step::Snapshot => snapshots.push((ok(&chain, "evm_snapshot", json!([])), blocks.clone())),
                Step::Revert(choice) => {
                    if snapshots.is_empty() { continue }
                    snapshots.truncate(usize::from(choice) % snapshots.len() + 1);
                    let (id, then) = snapshots.pop().unwrap();
                    if ok(&chain, "evm_revert", json!([id])) == true {
                        blocks = then;
                    }
                }
                Step::Rollback(depth) => {
                    let depth = usize::from(depth).min(blocks.len() - 2);
                    ok(&chain, "anvil_rollback", json!([depth]));
                    blocks.truncate(blocks.len() - depth);
                    // Edits of a block stay with it; snapshots that were before are still there.
                }
            }
        }
        check(&chain, contract, &blocks);
        drop(chain);
        let chain = Chain::open(folder.path(), config(Mining::OnDemand)).unwrap();
        check(&chain, contract, &blocks);
    }

    #[test]
    fn the_same_transactions_make_the_same_chain(stores in proptest::collection::vec((0..8u8, any::<u8>(), 0..3u8), 1..30)) {
        let first = Chain::in_memory(config(Mining::OnDemand)).unwrap();
        let contract = contract(&first);
        for (slot, value, wait) in stores {
            first.advance(wait.into()).unwrap();
            send(&first, store(contract, slot, value));
        }
        let second = Chain::in_memory(config(Mining::Manual)).unwrap();
        prop_assert_eq!(replayed(&first, &second), ok(&first, "eth_getBlockByNumber", json!(["latest", true])));
    }
}

/// Puts the transactions of one chain into another, block by block at its times; the last block.
fn replayed(from: &Arc<Chain>, to: &Arc<Chain>) -> Value {
    for height in 1..=number(&ok(from, "eth_blockNumber", json!([]))) {
        let block = ok(from, "eth_getBlockByNumber", json!([format!("{height:#x}"), false]));
        for hash in block["transactions"].as_array().unwrap() {
            let raw = ok(from, "eth_getRawTransactionByHash", json!([hash]));
            ok(to, "eth_sendRawTransaction", json!([raw]));
        }
        ok(to, "evm_mine", json!([block["timestamp"]]));
    }
    ok(to, "eth_getBlockByNumber", json!(["latest", true]))
}
