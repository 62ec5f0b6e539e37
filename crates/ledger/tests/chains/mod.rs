//! The chains that the client is tested on: the embedded one, and anvil as it is published. Each test gets one of its own.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_provider::Provider as _;
use alloy_signer_local::PrivateKeySigner;
use assay_ledger::client::Client;
use assay_ledger::contracts::{Directory, Epochs, TestToken};
use assay_ledger::deployment::{self, make, plan, test_token};
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::{Policy, Sender};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const DOLLAR: u64 = 1_000_000;
/// What each actor has in its wallet.
pub const PURSE: u64 = 10_000 * DOLLAR;

/// Which chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Embedded,
    Anvil,
}

/// A running chain.
pub struct Node {
    pub kind: Kind,
    pub url: String,
    pub client: Client,
    /// Where outboxes are.
    pub home: TempDir,
    running: Running,
}

enum Running {
    Embedded(tokio::task::JoinHandle<()>),
    Anvil(crate::anvil::Anvil),
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Running::Embedded(task) = &self.running {
            task.abort();
        }
    }
}

/// Runs a test on both chains, one after the other.
pub fn on_both<F: Future<Output = ()>>(test: impl Fn(Node) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        test(Node::embedded().await).await;
        if let Some(anvil) = Node::anvil().await {
            test(anvil).await;
        }
    });
}

impl Node {
    pub async fn embedded() -> Node {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let chain = assay_chain::Chain::in_memory(assay_chain::Config::default()).unwrap();
        let task = tokio::spawn(async move {
            assay_chain::serve(listener, chain, std::future::pending()).await.unwrap();
        });
        Node::at(Kind::Embedded, url, Running::Embedded(task)).await
    }

    /// None if clients are not to be tested, which was said then.
    pub async fn anvil() -> Option<Node> {
        let anvil = crate::anvil::Anvil::start()?;
        let url = anvil.url.clone();
        Some(Node::at(Kind::Anvil, url, Running::Anvil(anvil)).await)
    }

    async fn at(kind: Kind, url: String, running: Running) -> Node {
        let client = Client::connect(&url).await.unwrap();
        Node { kind, url, client, home: tempfile::tempdir().unwrap(), running }
    }

    /// A JSON-RPC method that no provider has.
    pub async fn ask(&self, method: &'static str, params: Value) -> Value {
        self.client
            .provider()
            .raw_request(method.into(), params)
            .await
            .unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    pub async fn mine(&self, blocks: u64) {
        self.ask("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }

    /// Lets time pass, and mines a block.
    pub async fn advance(&self, seconds: u64) {
        self.ask("evm_increaseTime", json!([seconds])).await;
        self.ask("evm_mine", json!([])).await;
    }

    /// Closes the epoch that runs, and fixes its beacon.
    pub async fn draw(&self, ledger: &Ledger, by: &Sender) -> u64 {
        let epoch = ledger.epoch().await.unwrap();
        self.advance(3_600 + 1_800).await;
        by.send("close", ledger.parts().at.epochs, &Epochs::closeCall { epoch }).await.unwrap();
        self.mine(6).await;
        ledger.fix_beacon(by, epoch).await.unwrap();
        epoch
    }

    pub async fn now(&self) -> u64 {
        self.client.latest().await.unwrap().timestamp
    }

    /// Somebody with coin for gas.
    pub async fn actor(&self, name: &str) -> PrivateKeySigner {
        let key = PrivateKeySigner::from_bytes(&keccak256(name)).unwrap();
        self.ask("anvil_setBalance", json!([key.address(), U256::from(10u128.pow(20))])).await;
        key
    }

    pub async fn sender(&self, key: &PrivateKeySigner) -> Sender {
        self.patient_sender(key, policy()).await
    }

    pub async fn patient_sender(&self, key: &PrivateKeySigner, policy: Policy) -> Sender {
        self.sender_in(self.home.path(), key, policy).await
    }

    pub async fn sender_in(&self, dir: &Path, key: &PrivateKeySigner, policy: Policy) -> Sender {
        Sender::open(self.client.clone(), key.clone(), dir, policy).await.unwrap()
    }

    /// Deploys everything, with a token that anyone mints.
    pub async fn deploy(&self, parameters: Directory::Parameters) -> Ledger {
        self.deploy_with_fee(parameters, 0).await.0
    }

    /// The same with a token that takes a fee, and the gas of each creation.
    pub async fn deploy_with_fee(
        &self,
        parameters: Directory::Parameters,
        fee_ppm: u32,
    ) -> (Ledger, Vec<(&'static str, u64)>) {
        let sender = self.sender(&self.actor("deployer").await).await;
        let nonce = sender.nonce().await.unwrap();
        let token = test_token(sender.account(), nonce, fee_ppm);
        let treasury = Address::repeat_byte(0x77);
        let planned = plan(sender.account(), nonce + 1, token.address, treasury, None, parameters);
        let mut gas = Vec::new();
        let creations = [vec![token], planned.creations].concat();
        make(&sender, &creations, |creation, used| gas.push((creation.name, used.unwrap()))).await.unwrap();
        (Ledger::at(self.client.clone(), planned.deployment.directory).await.unwrap(), gas)
    }

    /// Somebody with coin, tokens, and a sender.
    pub async fn member(&self, ledger: &Ledger, name: &str) -> Sender {
        let sender = self.sender(&self.actor(name).await).await;
        let mint = TestToken::mintCall { to: sender.account(), amount: U256::from(PURSE) };
        sender.send("mint", ledger.parts().at.token, &mint).await.unwrap();
        sender
    }
}

/// Quick, for a chain that mines at once.
pub fn policy() -> Policy {
    Policy { poll: Duration::from_millis(10), patience: Duration::from_millis(300), ..Policy::DEVELOPMENT }
}

/// Windows of minutes instead of hours.
pub fn parameters() -> Directory::Parameters {
    let mut p = deployment::parameters();
    p.times.epochSeconds = 3_600;
    p.times.postSeconds = 1_800;
    p.times.beaconBlocks = 4;
    p.times.commitSeconds = 3_600;
    p.times.revealSeconds = 3_600;
    p.times.objectSeconds = 3_600;
    p.times.answerSeconds = 1_800;
    p.times.retrievalSeconds = 1_800;
    p.times.disputeSeconds = 7_200;
    p.times.unbondSeconds = 86_400;
    p
}

/// A hash of a word, for whatever must differ.
pub fn hash(word: &str) -> B256 {
    keccak256(word)
}
