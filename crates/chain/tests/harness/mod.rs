//! Nodes to talk to: this chain on a port, and anvil as it is published.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

#[path = "../anvil/mod.rs"]
mod anvil;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction, TxEnvelope, TypedTransaction};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, hex};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_chain::{Chain, Config, development};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Where both chains begin.
pub const GENESIS_TIME: u64 = 1_700_000_000;

/// A node, which is gone when this is.
pub struct Node {
    pub url: String,
    client: reqwest::Client,
    _stop: Option<oneshot::Sender<()>>,
    anvil: Option<Child>,
}

impl Node {
    /// This chain on a port of its own.
    pub async fn serving(chain: Arc<Chain>) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(assay_chain::serve(listener, chain, async move {
            let _: Result<(), _> = stopped.await;
        }));
        Node { url, client: client(), _stop: Some(stop), anvil: None }
    }

    /// This chain in memory.
    pub async fn chain() -> Node {
        let config = Config { genesis_time: Some(GENESIS_TIME), ..Config::default() };
        Node::serving(Chain::in_memory(config).unwrap()).await
    }

    /// Anvil with the cap on a transaction's gas that networks have; none if it is to be skipped.
    pub fn anvil(test: &str) -> Option<Node> {
        if anvil::skipped(test) {
            return None;
        }
        let mut child = Command::new(anvil::program())
            .args(["--port", "0", "--timestamp", &GENESIS_TIME.to_string(), "--enable-tx-gas-limit"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        let address = lines.find_map(|line| line.strip_prefix("Listening on ").map(str::to_owned)).unwrap();
        // Nobody reads what it says later; a full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Node { url: format!("http://{address}"), client: client(), _stop: None, anvil: Some(child) })
    }

    /// Anvil as it comes, and silent: what it would print costs time.
    pub async fn silent_anvil() -> Node {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child =
            Command::new(anvil::program()).args(["--silent", "--port", &port.to_string()]).spawn().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let node = Node { url, client: client(), _stop: None, anvil: Some(child) };
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}).to_string();
        until(async || {
            let asked =
                node.client.post(&node.url).header("content-type", "application/json").body(body.clone());
            asked.send().await.ok()
        })
        .await;
        node
    }

    /// Posts a body; status and what came back.
    pub async fn post(&self, body: impl Into<reqwest::Body>) -> (u16, Vec<u8>) {
        let sent = self.client.post(&self.url).header("content-type", "application/json").body(body).send();
        let answer = sent.await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
    }

    /// Result or error of a request.
    pub async fn ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (_, answer) = self.post(body.to_string()).await;
        let mut answer: Value = serde_json::from_slice(&answer).unwrap();
        match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer["result"].take()),
        }
    }

    /// The result of a request that succeeds.
    pub async fn ok(&self, method: &str, params: Value) -> Value {
        self.ask(method, params.clone()).await.unwrap_or_else(|e| panic!("{method} {params}: {e}"))
    }

    /// The result as a number.
    pub async fn number(&self, method: &str, params: Value) -> u64 {
        number(&self.ok(method, params).await)
    }

    /// A transaction's receipt, as soon as there is one. Anvil answers before it has mined; this chain does not.
    pub async fn mined(&self, hash: &Value) -> Value {
        // Anvil looks into its pool first, and takes a transaction out of there last.
        until(async || {
            let tx = self.ok("eth_getTransactionByHash", json!([hash])).await;
            let receipt = self.ok("eth_getTransactionReceipt", json!([hash])).await;
            (!receipt.is_null() && !tx["blockHash"].is_null()).then_some(receipt)
        })
        .await
    }

    /// Creates a contract whose code is this; its address.
    pub async fn deploy(&self, code: &[u8]) -> Address {
        let data: Bytes = deploying(code).into();
        let from = development::ADDRESSES[0];
        let hash = self.ok("eth_sendTransaction", json!([{"from": from, "data": data}])).await;
        let receipt = self.mined(&hash).await;
        assert_eq!(receipt["status"], "0x1");
        receipt["contractAddress"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(anvil) = &mut self.anvil {
            let _: Result<(), _> = anvil.kill();
            let _: Result<_, _> = anvil.wait();
        }
    }
}

/// A client for HTTP. One that is built beside code that speaks TLS wants to know by which library, though it has no use for it.
pub fn client() -> reqwest::Client {
    let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap()
}

/// Code that returns `code` as a contract's.
pub fn deploying(code: &[u8]) -> Vec<u8> {
    let length = u16::try_from(code.len()).unwrap().to_be_bytes();
    // PUSH2 length, DUP1, PUSH1 11, PUSH0, CODECOPY, PUSH0, RETURN: eleven bytes with the padding.
    let mut all = vec![0x61, length[0], length[1], 0x80, 0x60, 0x0b, 0x5f, 0x39, 0x5f, 0xf3, 0x00];
    all.extend_from_slice(code);
    all
}

pub fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no number: {value}"));
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// The creation code of the token that is worth nothing, without a fee.
pub fn token_code() -> Bytes {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contracts/artifacts/TestToken.json");
    let artifact: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut code = hex::decode(artifact["bytecode"].as_str().unwrap()).unwrap();
    code.extend_from_slice(B256::ZERO.as_slice());
    code.into()
}

/// The key of a development account.
pub fn signer(index: usize) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&development::KEYS[index]).unwrap()
}

/// A signed transaction's bytes.
pub fn signed(tx: impl Into<TypedTransaction>, by: &PrivateKeySigner) -> (B256, Bytes) {
    let tx: TypedTransaction = tx.into();
    let signature = by.sign_hash_sync(&tx.signature_hash()).unwrap();
    let envelope: TxEnvelope = tx.into_envelope(signature);
    (*envelope.tx_hash(), envelope.encoded_2718().into())
}

/// Waits for all of them at once.
pub async fn all<F: Future<Output = ()>>(futures: impl Iterator<Item = F>) {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Asks until the answer is as it should be, and gives up after a minute.
pub async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it did not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
