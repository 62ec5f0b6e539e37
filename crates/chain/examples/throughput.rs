//! Transactions per second, from a raw signed transaction over HTTP to its receipt: this chain on a disk, this chain in memory, and
//! anvil, one after the other in every round, so that what else the machine does weighs on all of them.
//!
//! `cargo run --release -p assay-chain --example throughput -- [TRANSACTIONS] [ROUNDS] [FOLDER]` prints a table and one line of JSON. FOLDER is
//! where the chain on a disk is kept: where it is decides how long a flush takes.
//!
//! On a disk, this chain has flushed what it acknowledges. Anvil keeps nothing, and answers before it has mined; it is asked for the
//! receipt until there is one. This chain is served by the process that sends, anvil is a process of its own.

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use alloy_consensus::TxEip1559;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy_signer_local::PrivateKeySigner;
use assay_chain::{Chain, Config, development};
use harness::{Node, signed, token_code};
use serde_json::{Value, json};

const SENDERS: [usize; 2] = [1, 16];
const NODES: [&str; 3] = ["on a disk", "in memory", "anvil"];
const KINDS: [&str; 2] = ["transfer", "token"];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let transactions = arguments.first().map_or(Ok(800), |n| n.parse())?;
    let rounds = arguments.get(1).map_or(Ok(3), |n| n.parse())?;
    let folder = arguments.get(2).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder)?;
    let mut measured: BTreeMap<(&str, usize, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for kind in KINDS {
            for senders in SENDERS {
                for name in NODES {
                    let node = match name {
                        "anvil" => Node::silent_anvil().await,
                        "in memory" => Node::serving(Chain::in_memory(Config::default())?).await,
                        _ => {
                            let folder = folder.path().join(format!("{round}-{kind}-{senders}"));
                            Node::serving(Chain::open(&folder, Config::default())?).await
                        }
                    };
                    let rate = run(&node, kind, senders, transactions).await;
                    measured.entry((kind, senders, name)).or_default().push(rate);
                }
            }
        }
    }
    println!("{transactions} transactions a run, median of {rounds} runs, transactions per second");
    println!("| kind | senders | {} |", NODES.join(" | "));
    println!("|---|---|---|---|---|");
    let mut rows = Vec::new();
    for kind in KINDS {
        for senders in SENDERS {
            let medians = NODES.map(|name| median(&measured[&(kind, senders, name)]));
            println!("| {kind} | {senders} | {:.0} | {:.0} | {:.0} |", medians[0], medians[1], medians[2]);
            rows.push(json!({"kind": kind, "senders": senders, "rates": BTreeMap::from_iter(NODES.into_iter().zip(medians))}));
        }
    }
    println!("{}", json!({"transactions": transactions, "rounds": rounds, "rows": rows}));
    Ok(())
}

fn median(rates: &[f64]) -> f64 {
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Sends so many transactions from so many accounts, each of which waits for its receipt before it sends the next one.
async fn run(node: &Node, kind: &str, senders: usize, transactions: usize) -> f64 {
    let (to, data) = match kind {
        "token" => {
            let created = json!([{"from": development::ADDRESSES[0], "data": token_code()}]);
            let receipt = node.mined(&node.ok("eth_sendTransaction", created).await).await;
            let token: Address =
                receipt["contractAddress"].as_str().expect("created").parse().expect("an address");
            let mut data = keccak256("mint(address,uint256)")[..4].to_vec();
            data.extend_from_slice(&U256::from(0xb0b).to_be_bytes::<32>());
            data.extend_from_slice(&U256::from(1).to_be_bytes::<32>());
            (token, Bytes::from(data))
        }
        _ => (Address::repeat_byte(0xb0), Bytes::new()),
    };
    let mut queues = Vec::new();
    for sender in 0..senders {
        let key =
            PrivateKeySigner::from_bytes(&B256::with_last_byte(sender as u8 + 1)).expect("a small number");
        node.ok("anvil_setBalance", json!([key.address(), "0xd3c21bcecceda1000000"])).await;
        let each = (0..transactions / senders)
            .map(|nonce| signed(transaction(nonce as u64, to, data.clone()), &key).1);
        queues.push(each.collect::<Vec<Bytes>>());
    }
    let began = Instant::now();
    let sending = queues.into_iter().map(|queue| async {
        for raw in queue {
            let hash = node.ok("eth_sendRawTransaction", json!([raw])).await;
            while node.ok("eth_getTransactionReceipt", json!([hash])).await == Value::Null {}
        }
    });
    harness::all(sending).await;
    (transactions / senders * senders) as f64 / began.elapsed().as_secs_f64()
}

fn transaction(nonce: u64, to: Address, input: Bytes) -> TxEip1559 {
    TxEip1559 {
        chain_id: assay_chain::CHAIN_ID,
        nonce,
        gas_limit: 100_000,
        max_fee_per_gas: 1_000_000_000_000,
        max_priority_fee_per_gas: 1,
        to: TxKind::Call(to),
        input,
        ..TxEip1559::default()
    }
}
