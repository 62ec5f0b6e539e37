//! kill -9, at moments that nobody chose, while several senders send: what was acknowledged is there afterwards, and nothing is there
//! by halves.
#![allow(clippy::unwrap_used)]

mod harness;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alloy_consensus::proofs::calculate_transaction_root;
use alloy_consensus::{TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Decodable2718 as _;
use alloy_primitives::{B256, Bytes, TxKind, U256, keccak256};
use assay_chain::{Chain, Config, Mining, development};
use harness::{client, number, signed, signer};
use serde_json::{Value, json};

const FOLDER: &str = "ASSAY_CHAIN_FOLDER";
const MINING: &str = "ASSAY_CHAIN_MINING";
const SENDERS: usize = 6;

/// The process that is killed; it is this program, started again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the tests start it as a process of its own"]
async fn child() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("started by a test"));
    let mining = match std::env::var(MINING).unwrap().as_str() {
        "by hand" => Mining::Manual,
        _ => Mining::OnDemand,
    };
    let chain = Chain::open(&folder, Config { mining, ..Config::default() }).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\nat http://{}", listener.local_addr().unwrap());
    assay_chain::serve(listener, chain, std::future::pending()).await.unwrap();
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _: Result<(), _> = self.0.kill();
        let _: Result<_, _> = self.0.wait();
    }
}

fn start(folder: &Path, mining: &str) -> (Process, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .envs([(FOLDER, folder.as_os_str()), (MINING, mining.as_ref())])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("at ").map(str::to_owned));
    (Process(child), url.expect("the child serves"))
}

async fn ask(client: &reqwest::Client, url: &str, method: &str, params: Value) -> Option<Value> {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let sent = client.post(url).header("content-type", "application/json").body(body.to_string()).send();
    let answer: Value = serde_json::from_slice(&sent.await.ok()?.bytes().await.ok()?).unwrap();
    assert!(answer.get("error").is_none(), "{answer}");
    Some(answer["result"].clone())
}

/// Sends from several accounts until the process is killed, which happens after so many acknowledgements.
async fn send_and_kill(child: Process, url: String, after: usize) -> Vec<B256> {
    let client = client();
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let count = Arc::new(AtomicUsize::new(0));
    let senders = (0..SENDERS).map(|index| {
        let (client, url) = (client.clone(), url.clone());
        let (acknowledged, count) = (acknowledged.clone(), count.clone());
        tokio::spawn(async move {
            let key = signer(index);
            let params = json!([key.address(), "pending"]);
            let Some(nonce) = ask(&client, &url, "eth_getTransactionCount", params).await else { return };
            for nonce in number(&nonce).. {
                let (hash, raw) = signed(transfer(nonce), &key);
                if ask(&client, &url, "eth_sendRawTransaction", json!([raw])).await.is_none() {
                    return;
                }
                acknowledged.lock().unwrap().push(hash);
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    harness::until(async || (count.load(Ordering::SeqCst) >= after).then_some(())).await;
    // SIGKILL, and the wait for its end.
    drop(child);
    for sender in senders {
        sender.await.unwrap();
    }
    Arc::into_inner(acknowledged).unwrap().into_inner().unwrap()
}

fn transfer(nonce: u64) -> TxEip1559 {
    TxEip1559 {
        chain_id: assay_chain::CHAIN_ID,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 20_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        to: TxKind::Call(alloy_primitives::Address::repeat_byte(0xbb)),
        value: U256::from(1),
        ..TxEip1559::default()
    }
}

/// Everything in the file fits together; returns the transactions that are in blocks.
fn whole(chain: &Chain) -> Vec<B256> {
    let ask = |method: &str, params: Value| chain.request(method, params).unwrap();
    let (mut all, mut parent) = (Vec::new(), Value::Null);
    let height = number(&ask("eth_blockNumber", json!([])));
    let mut nonces = [0u64; SENDERS];
    for height in 0..=height {
        let block = ask("eth_getBlockByNumber", json!([format!("{height:#x}"), true]));
        assert!(parent.is_null() || block["parentHash"] == parent, "block {height}");
        parent = block["hash"].clone();
        assert_eq!(ask("eth_getBlockByHash", json!([parent, true])), block);
        let receipts = ask("eth_getBlockReceipts", json!([format!("{height:#x}")]));
        let (receipts, transactions) =
            (receipts.as_array().unwrap(), block["transactions"].as_array().unwrap());
        assert_eq!(receipts.len(), transactions.len());
        let mut envelopes = Vec::new();
        for (receipt, tx) in receipts.iter().zip(transactions) {
            assert_eq!(receipt["transactionHash"], tx["hash"]);
            assert_eq!(receipt["blockHash"], block["hash"]);
            assert_eq!(ask("eth_getTransactionReceipt", json!([tx["hash"]])), *receipt);
            let raw: Bytes =
                serde_json::from_value(ask("eth_getRawTransactionByHash", json!([tx["hash"]]))).unwrap();
            envelopes.push(TxEnvelope::decode_2718_exact(&raw).unwrap());
            all.push(keccak256(&raw));
            let from = development::ADDRESSES
                .iter()
                .position(|a| json!(a).as_str().unwrap().eq_ignore_ascii_case(tx["from"].as_str().unwrap()));
            let from = from.unwrap();
            assert_eq!(number(&tx["nonce"]), nonces[from], "nonces follow each other");
            nonces[from] += 1;
        }
        let root = calculate_transaction_root(&envelopes);
        assert_eq!(json!(root), block["transactionsRoot"]);
    }
    for (index, nonce) in nonces.iter().enumerate() {
        let count = ask("eth_getTransactionCount", json!([development::ADDRESSES[index], "latest"]));
        assert_eq!(number(&count), *nonce, "the state is the one after these blocks");
    }
    let sunk = ask("eth_getBalance", json!([alloy_primitives::Address::repeat_byte(0xbb), "latest"]));
    assert_eq!(number(&sunk), all.len() as u64);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_mines_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for after in [1, 7, 23, 40, 64] {
        let (child, url) = start(folder.path(), "on demand");
        acknowledged.extend(send_and_kill(child, url, after).await);
        let chain = Chain::open(folder.path(), Config::default()).unwrap();
        let mined = whole(&chain);
        let missing: Vec<_> = acknowledged.iter().filter(|hash| !mined.contains(hash)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
    assert!(acknowledged.len() >= 1 + 7 + 23 + 40 + 64);
}

/// What was acknowledged and waits is not lost either.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_transactions_wait() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for after in [3, 31] {
        let (child, url) = start(folder.path(), "by hand");
        acknowledged.extend(send_and_kill(child, url, after).await);
        let by_hand = Config { mining: Mining::Manual, ..Config::default() };
        let chain = Chain::open(folder.path(), by_hand).unwrap();
        assert!(whole(&chain).is_empty());
        for hash in &acknowledged {
            let waits = chain.request("eth_getTransactionByHash", json!([hash])).unwrap();
            assert_eq!(waits["hash"], json!(hash));
            assert!(waits["blockNumber"].is_null());
        }
    }
    // A chain that mines on demand takes them up when it is opened.
    let chain = Chain::open(folder.path(), Config::default()).unwrap();
    let mined = whole(&chain);
    assert!(acknowledged.iter().all(|hash| mined.contains(hash)));
}
