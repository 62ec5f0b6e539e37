//! Files and batches at a gateway: each account sees its own, and its keys pay for the lines, also when who made the batch has left.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../node/src/files.rs"]
#[allow(dead_code)]
mod folder;
mod providers;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use assay_api::{FileOptions, ServerOptions, serve_with_files};
use assay_gateway::accounts::{Accounts, Limits, MicroUsd, Secret};
use assay_gateway::network::{Network, NetworkOptions};
use folder::FolderStore;
use providers::{Manner, Provider};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// 100 dollars for a million tokens: 10 read and 5 written cost 1500 millionths.
const PRICE: Option<&str> = Some("100/100");
const FEE: u64 = 1_500;
const CHAT: &str = "/v1/chat/completions";

struct Gateway {
    url: String,
    client: reqwest::Client,
    accounts: Accounts,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Gateway {
    async fn open(folder: &Path, provider: &Provider) -> Gateway {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let books = format!("sqlite:{}", folder.join("books.sqlite").display());
        let accounts = Accounts::open(&books).await.unwrap();
        let network = Network::new(Some(accounts.clone()), NetworkOptions::default());
        assert_eq!(network.refresh(std::slice::from_ref(&provider.url)).await, []);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = serve_with_files(
            listener,
            Arc::new(network),
            ServerOptions::default(),
            Arc::new(FolderStore::open(&folder.join("files")).unwrap()),
            FileOptions::default(),
            axum::Router::new(),
            std::future::pending(),
        );
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Gateway { url, client, accounts, serving: tokio::spawn(serving) }
    }

    async fn key(&self, account: &str, balance: u64) -> (String, Secret) {
        self.accounts
            .credit(account, MicroUsd(balance), &format!("first of {account}"), "", 0)
            .await
            .unwrap();
        let (key, secret) = self.accounts.create_key(account, "k", Limits::default(), 0).await.unwrap();
        (key.id, secret)
    }

    async fn ask(&self, request: reqwest::RequestBuilder, key: &Secret) -> (u16, Value) {
        let response = request.bearer_auth(key.reveal()).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str, key: &Secret) -> (u16, Value) {
        self.ask(self.client.get(format!("{}{path}", self.url)), key).await
    }

    /// Uploads a file of so many questions. Its id.
    async fn upload(&self, key: &Secret, lines: usize) -> String {
        let line = |i: usize| {
            let messages = json!([{"role": "user", "content": format!("Question {i}")}]);
            let body = json!({"model": "org/model", "max_tokens": 8, "messages": messages});
            format!(
                "{}\n",
                json!({"custom_id": format!("q{i}"), "method": "POST", "url": CHAT, "body": body})
            )
        };
        let text: String = (0..lines).map(line).collect();
        let boundary = "boundary-of-the-form";
        let form = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
             --{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{text}\r\n--{boundary}--\r\n"
        );
        let request = self.client.post(format!("{}/v1/files", self.url));
        let request =
            request.header("content-type", format!("multipart/form-data; boundary={boundary}")).body(form);
        let (status, file) = self.ask(request, key).await;
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    async fn batch(&self, key: &Secret, input: &str) -> (u16, Value) {
        let body = json!({"input_file_id": input, "endpoint": CHAT, "completion_window": "24h"});
        let request = self.client.post(format!("{}/v1/batches", self.url));
        self.ask(request.header("content-type", "application/json").body(body.to_string()), key).await
    }

    async fn ended(&self, key: &Secret, id: &str) -> Value {
        loop {
            let (_, batch) = self.get(&format!("/v1/batches/{id}"), key).await;
            if ["completed", "failed", "cancelled"].contains(&batch["status"].as_str().unwrap()) {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What is left of an account, and what was charged.
    async fn sums(&self, account: &str) -> (u64, u64) {
        loop {
            let sums = self.accounts.books(account).await.unwrap();
            assert!(sums.agree(), "{sums:?}");
            if sums.held == MicroUsd(0) {
                return (sums.balance.0, sums.charged.0);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn an_account_has_files_and_batches_of_its_own_and_pays_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(Manner::Honest, PRICE).await;
    let gateway = Gateway::open(folder.path(), &provider).await;
    let (_, ann) = gateway.key("ann", 1_000_000).await;
    let (_, other_of_ann) = gateway.key("ann", 1_000_000).await;
    let (_, bob) = gateway.key("bob", 1_000_000).await;
    let input = gateway.upload(&ann, 3).await;
    let (status, batch) = gateway.batch(&ann, &input).await;
    assert_eq!(status, 200, "{batch}");
    let id = batch["id"].as_str().unwrap();
    // Somebody else hears nothing of it.
    assert_eq!(gateway.get("/v1/files", &bob).await.1["data"], json!([]));
    assert_eq!(gateway.get("/v1/batches", &bob).await.1["data"], json!([]));
    for path in
        [format!("/v1/files/{input}"), format!("/v1/files/{input}/content"), format!("/v1/batches/{id}")]
    {
        assert_eq!(gateway.get(&path, &bob).await.0, 404, "{path}");
    }
    assert_eq!(gateway.batch(&bob, &input).await.0, 404);
    let (status, _) =
        gateway.ask(gateway.client.delete(format!("{}/v1/files/{input}", gateway.url)), &bob).await;
    assert_eq!(status, 404);
    let cancel = gateway.client.post(format!("{}/v1/batches/{id}/cancel", gateway.url));
    assert_eq!(gateway.ask(cancel, &bob).await.0, 404);
    // Without a key, or with one that is not known, there is nothing either.
    let (status, refused) = gateway.get("/v1/files", &Secret::draw()).await;
    assert_eq!((status, refused["error"]["code"].as_str().unwrap()), (401, "invalid_api_key"));
    let bare = gateway.client.get(format!("{}/v1/files", gateway.url)).send().await.unwrap();
    assert_eq!(bare.status().as_u16(), 401);

    let ended = gateway.ended(&ann, id).await;
    assert_eq!(ended["request_counts"], json!({"total": 3, "completed": 3, "failed": 0}), "{ended}");
    // Another key of the same account reads the answers.
    let output = ended["output_file_id"].as_str().unwrap();
    let (status, text) = gateway.get(&format!("/v1/files/{output}/content"), &other_of_ann).await;
    assert_eq!((status, text.as_str().unwrap().lines().count()), (200, 3));
    assert!(text.as_str().unwrap().contains("Hello"));
    assert_eq!(gateway.get(&format!("/v1/files/{output}/content"), &bob).await.0, 404);
    // The credit of one name counted once.
    assert_eq!(gateway.sums("ann").await, (1_000_000 - 3 * FEE, 3 * FEE));
    assert_eq!(gateway.sums("bob").await, (1_000_000, 0));
}

#[tokio::test]
async fn a_batch_goes_on_after_kill_without_its_secret_and_ends_where_its_key_may_do_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(Manner::Silent, PRICE).await;
    let gateway = Gateway::open(folder.path(), &provider).await;
    let (_, ann) = gateway.key("ann", 1_000_000).await;
    let (of_bob, bob) = gateway.key("bob", 1_000_000).await;
    let mut ids = Vec::new();
    for key in [&ann, &bob] {
        let input = gateway.upload(key, 2).await;
        ids.push(gateway.batch(key, &input).await.1["id"].as_str().unwrap().to_owned());
    }
    // Nothing is answered, and the gateway is gone.
    gateway.serving.abort();
    let _ = gateway.serving.await;
    provider.node.becomes(Manner::Honest);
    let gateway = Gateway::open(folder.path(), &provider).await;
    let ended = gateway.ended(&ann, &ids[0]).await;
    assert_eq!(ended["request_counts"], json!({"total": 2, "completed": 2, "failed": 0}), "{ended}");
    gateway.ended(&bob, &ids[1]).await;
    // What the first gateway had set aside is held until its time is over: what was charged is what counts.
    for account in ["ann", "bob"] {
        let sums = gateway.accounts.books(account).await.unwrap();
        assert!(sums.agree() && sums.charged == MicroUsd(2 * FEE), "{account}: {sums:?}");
    }
    // A key that is revoked pays for no more lines.
    provider.node.becomes(Manner::Busy);
    let input = gateway.upload(&bob, 2).await;
    let id = gateway.batch(&bob, &input).await.1["id"].as_str().unwrap().to_owned();
    gateway.accounts.revoke(&of_bob, 1).await.unwrap();
    provider.node.becomes(Manner::Honest);
    assert_eq!(gateway.get(&format!("/v1/batches/{id}"), &bob).await.0, 401);
    let (_, second) = gateway.accounts.create_key("bob", "second", Limits::default(), 0).await.unwrap();
    let ended = gateway.ended(&second, &id).await;
    let counts = &ended["request_counts"];
    // Lines that had begun before are answered; what began afterwards is not.
    assert_eq!(counts["total"], 2, "{ended}");
    let answered = counts["completed"].as_u64().unwrap();
    let sums = gateway.accounts.books("bob").await.unwrap();
    assert_eq!(sums.charged, MicroUsd((2 + answered) * FEE));
}
