//! The gateway with the binary alone: real providers, keys with credit, failures that clients do not see.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::path::Path;

use harness::{MODEL, Node, assay, chat, client, command, stderr, stdout};
use serde_json::Value;

/// Dollars for a million tokens, both ways.
const PRICE: &str = "100/100";

struct Gateway {
    node: Node,
    secret: String,
    client: reqwest::Client,
}

fn gateway(home: &Path, providers: &[&Node], at: &str) -> Node {
    let mut command = command(home);
    command.arg("gateway");
    for provider in providers {
        command.args(["--provider", &provider.url]);
    }
    Node::at(command, at)
}

fn json(home: &Path, args: &[&str]) -> Value {
    let output = assay(home, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

impl Gateway {
    async fn ask(&self, body: &Value) -> reqwest::Response {
        let asked = self.client.post(self.node.chat_url()).bearer_auth(&self.secret).json(body);
        asked.send().await.unwrap()
    }

    /// The text, the receipt and the number of tokens.
    async fn answer(&self, body: &Value) -> (String, String, u64) {
        let response = self.ask(body).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        let receipt = response.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
        assert_eq!(response.headers()["x-assay-price"], "100.00/100.00");
        assert_eq!(response.headers()["x-assay-provider"].len(), 42);
        let answer: Value = response.json().await.unwrap();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        (text, receipt, answer["usage"]["total_tokens"].as_u64().unwrap())
    }
}

fn balance(home: &Path) -> u64 {
    json(home, &["keys", "list"])["accounts"][0]["balance"].as_u64().unwrap()
}

fn charged(home: &Path) -> Vec<Value> {
    let output = assay(home, &["keys", "usage", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_gateway_over_two_providers() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut providers: Vec<Node> =
        homes[..2].iter().map(|home| Node::up(home.path(), false, &["--price", PRICE])).collect();
    let home = homes[2].path();
    let made = json(home, &["keys", "create", "test", "--credit", "5", "--at-once", "4"]);
    let secret = made["secret"].as_str().unwrap().to_owned();
    assert_eq!(balance(home), 5_000_000);
    let node = gateway(home, &[&providers[0], &providers[1]], "127.0.0.1:0");
    let mut g = Gateway { node, secret, client: client() };

    // The network is listed, with its price.
    let models: Value =
        g.client.get(format!("{}/v1/models", g.node.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(
        (models["data"].as_array().unwrap().len(), &models["data"][0]["id"]),
        (1, &Value::from(MODEL))
    );
    assert_eq!(models["data"][0]["pricing"]["prompt"], "0.0001");

    // Without a key nothing; with one the very answer that a provider gives, and its price.
    let body = chat("Once upon a time", 7, 12);
    let refused = g.client.post(g.node.chat_url()).json(&body).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "invalid_api_key");
    let (text, receipt, tokens) = g.answer(&body).await;
    let direct: Value =
        g.client.post(providers[0].chat_url()).json(&body).send().await.unwrap().json().await.unwrap();
    assert_eq!(text, direct["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(balance(home), 5_000_000 - 100 * tokens);

    // What a client sends again, as the official ones do, is answered again and charged once.
    let again =
        g.client.post(g.node.chat_url()).bearer_auth(&g.secret).header("x-stainless-retry-count", "1");
    let again = again.json(&body).send().await.unwrap();
    assert_eq!(again.headers()["x-assay-receipt"], receipt.as_str());
    assert_eq!(balance(home), 5_000_000 - 100 * tokens);

    // A stream, to its end.
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["seed"] = 8.into();
    let stream = g.ask(&streamed).await.text().await.unwrap();
    assert!(stream.trim_end().ends_with("data: [DONE]"), "{stream}");

    // One provider is killed: nobody notices. It comes back with another key: nobody notices either.
    providers[0].signal("KILL");
    for seed in 10..16 {
        g.answer(&chat("The cat", seed, 4)).await;
    }
    let address = providers[0].url.trim_start_matches("http://").to_owned();
    let mut up = command(homes[0].path());
    up.args(["up", "--price", PRICE]);
    providers[0] = Node::at(up, &address);
    providers[1].signal("KILL");
    for seed in 20..24 {
        g.answer(&chat("The dog", seed, 4)).await;
    }

    // The gateway is killed: what was charged is charged, and the next one goes on with the same key.
    let before = charged(home);
    assert_eq!(before.len(), 1 + 1 + 6 + 4);
    g.node.signal("KILL");
    g.node = gateway(home, &[&providers[0]], "127.0.0.1:0");
    g.answer(&chat("The end", 30, 4)).await;
    let after = charged(home);
    assert_eq!((after.len(), &after[..before.len()]), (before.len() + 1, &before[..]));
    let sum: u64 = after.iter().map(|charge| charge["amount"].as_u64().unwrap()).sum();
    assert_eq!(balance(home), 5_000_000 - sum);

    // A revoked key is refused at once.
    let id = made["key"]["id"].as_str().unwrap();
    json(home, &["keys", "revoke", id]);
    assert_eq!(g.ask(&chat("Hello", 1, 2)).await.status(), 401);
    let csv = stdout(&assay(home, &["keys", "usage", "--csv"]));
    assert_eq!(csv.lines().count(), after.len() + 1);
    assert!(!std::fs::read_dir(home).unwrap().any(|file| {
        let path = file.unwrap().path();
        path.is_file() && std::fs::read(path).unwrap().windows(40).any(|w| g.secret.as_bytes().starts_with(w))
    }));
}
