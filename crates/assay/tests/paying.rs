//! Payment with the binary alone: a chain, a provider that settles, a gateway that pays, both killed in between, and books that agree.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::path::Path;

use assay_core::id::ReceiptId;
use assay_ledger::client::Client;
use assay_ledger::contracts::Channels;
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::{Policy, Sender};
use assay_node::key::NodeKey;
use assay_node::store::ReceiptStore;
use harness::{Chain, Node, assay, chat, client, command, fine, stderr, stdout};
use serde_json::{Value, json};

const PRICE: &str = "100/100";

fn told(home: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&fine(home, &[args, &["--json"]].concat()))).unwrap()
}

fn usage(home: &Path) -> Vec<Value> {
    let output = fine(home, &["keys", "usage", "--json"]);
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The listening half of an address; the provider comes back to it.
fn address(node: &Node) -> String {
    node.url.trim_start_matches("http://").to_owned()
}

struct Asker {
    client: reqwest::Client,
    secret: String,
}

impl Asker {
    async fn ask(&self, gateway: &Node, text: &str, seed: u64, tokens: u32) -> reqwest::Response {
        let asked = self.client.post(gateway.chat_url()).bearer_auth(&self.secret);
        asked.json(&chat(text, seed, tokens)).send().await.unwrap()
    }

    async fn answer(&self, gateway: &Node, text: &str, seed: u64) -> ReceiptId {
        let response = self.ask(gateway, text, seed, 6).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        response.headers()["x-assay-receipt"].to_str().unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn a_gateway_pays_a_provider_and_the_books_agree() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [operator, seller, buyer] = [homes[0].path(), homes[1].path(), homes[2].path()];
    let chain = Chain::start(operator, &["--in-memory"]);
    let directory = {
        let deployed = told(operator, &["ledger", "deploy", "--rpc", &chain.url]);
        deployed["directory"].as_str().unwrap().to_owned()
    };
    for home in [seller, buyer] {
        fine(home, &["ledger", "use", &directory, "--rpc", &chain.url]);
        fine(home, &["ledger", "faucet", "--amount", "100"]);
    }
    // Who is not enrolled hears how to become it, and who names no price what is missing.
    let refused = assay(seller, &["up", "--settle", "--price", PRICE]);
    assert!(!refused.status.success() && stderr(&refused).contains("assay stake 0 --role provider"));
    let refused = assay(seller, &["up", "--settle"]);
    assert!(!refused.status.success() && stderr(&refused).contains("--price"));
    fine(seller, &["stake", "0", "--role", "provider"]);
    let settle = ["--settle", "--price", PRICE];
    let mut provider = Node::up(seller, false, &settle);

    // What is not paid for is not answered.
    let http = client();
    let unpaid = http.post(provider.chat_url()).json(&chat("Hello", 1, 4)).send().await.unwrap();
    assert_eq!(unpaid.status(), 402);
    let unpaid: Value = unpaid.json().await.unwrap();
    assert_eq!(unpaid["error"]["code"], "payment_required");

    fine(buyer, &["deposit", "20"]);
    let made = told(buyer, &["keys", "create", "test", "--credit", "5"]);
    let asker = Asker { client: http, secret: made["secret"].as_str().unwrap().to_owned() };
    let start = |at: &str, url: &str| {
        let mut gateway = command(buyer);
        gateway.args(["gateway", "--pay", "--lanes", "2", "--lane-deposit", "0.05", "--provider", url]);
        Node::at(gateway, at)
    };
    let mut gateway = start("127.0.0.1:0", &provider.url);
    let mut receipts = Vec::new();
    for seed in 0..4 {
        receipts.push(asker.answer(&gateway, "Once upon a time", seed).await);
    }

    // The provider is killed while it answers, and comes back with what it has charged.
    let cut = asker.ask(&gateway, "Tell me all", 90, 0);
    let (cut, ()) = tokio::join!(cut, async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        provider.signal("KILL");
    });
    drop(cut);
    let at = address(&provider);
    let mut up = command(seller);
    up.arg("up").args(settle);
    provider = Node::at(up, &at);
    for seed in 10..13 {
        receipts.push(asker.answer(&gateway, "The cat", seed).await);
    }
    // The gateway is killed: the next one knows its lanes by the chain and by what the provider shows.
    gateway.signal("KILL");
    gateway = start("127.0.0.1:0", &provider.url);
    for seed in 20..24 {
        receipts.push(asker.answer(&gateway, "The dog", seed).await);
    }
    gateway.signal("TERM");
    assert!(gateway.exit().success());
    provider.signal("TERM");
    assert!(provider.exit().success());

    // Every answer has its receipt, for what its client was charged; and what channels owe is what the receipts say.
    let store = ReceiptStore::open(&seller.join("node/receipts.redb")).unwrap();
    let charges = usage(buyer);
    let charged = |receipt: &ReceiptId| {
        let found = charges.iter().find(|c| c["receipt"] == receipt.to_string().as_str());
        found.and_then(|c| c["amount"].as_u64())
    };
    for receipt in &receipts {
        let record = store.get(*receipt).unwrap().expect("it was answered");
        let signed = &record.receipt().receipt;
        assert_eq!(Some(signed.fee_micro_usd), charged(receipt));
        assert_eq!(signed.fee_micro_usd, 100 * u64::from(signed.prompt_tokens + signed.completion_tokens));
    }
    let all = store.from_sequence(0, usize::MAX).unwrap();
    let fees: u128 = all.iter().map(|r| u128::from(r.receipt().receipt.fee_micro_usd)).sum();
    let claims = store.claims().unwrap();
    assert_eq!(claims.iter().map(|claim| claim.totalClaimed).sum::<u128>(), fees);
    assert!((1..=2).contains(&claims.len()));
    // The one that was cut off may have been completed; nothing else was charged beside what was answered.
    assert!([receipts.len(), receipts.len() + 1].contains(&all.len()));

    // The provider claims it; the gateway's owner takes the rest back, when the provider has had its time.
    let rpc = Client::connect(&chain.url).await.unwrap();
    let ledger = Ledger::at(rpc.clone(), directory.parse().unwrap()).await.unwrap();
    let key = NodeKey::load_or_create(&seller.join("node/key")).unwrap().signer().clone();
    let sender = Sender::open(rpc, key, &seller.join("claims"), Policy::DEVELOPMENT).await.unwrap();
    let channels = ledger.parts().at.channels;
    sender.send("claim", channels, &Channels::claimCall { claims }).await.unwrap();
    let lanes = |args: &[&str]| told(buyer, &[&["gateway", "lanes"], args].concat());
    let held = lanes(&[]);
    let sum = |lanes: &Value, what: &str| {
        let all = lanes["channels"].as_array().unwrap().iter();
        all.map(|channel| u128::from(channel[what].as_u64().unwrap())).sum::<u128>()
    };
    assert_eq!(held["channels"].as_array().unwrap().len(), 2);
    assert_eq!(sum(&held, "claimed"), fees);
    let beside = u128::from(held["balance"].as_u64().unwrap());
    assert_eq!(beside + sum(&held, "balance"), 20_000_000);
    let closing = lanes(&["--close"]);
    assert!(closing["channels"].as_array().unwrap().iter().all(|channel| channel["leaves_at"].is_u64()));
    let early = lanes(&["--collect"]);
    assert_eq!(early["balance"], held["balance"], "the provider has an hour");
    for call in [json!(["evm_increaseTime", [3_601]]), json!(["evm_mine", []])] {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": call[0], "params": call[1]});
        let done: Value =
            asker.client.post(&chain.url).json(&call).send().await.unwrap().json().await.unwrap();
        assert_eq!(done.get("error"), None, "{done}");
    }
    let back = lanes(&["--collect"]);
    assert_eq!(u128::from(back["balance"].as_u64().unwrap()), 20_000_000 - fees);
    assert_eq!((sum(&back, "balance"), sum(&back, "claimed")), (fees, fees));
}
