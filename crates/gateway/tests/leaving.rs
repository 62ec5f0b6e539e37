//! Clients that leave in the middle of an answer, over real connections: they pay for what there is of it, and for nothing else.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod books;
mod providers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use assay_api::{ServerOptions, router};
use assay_core::answer::AnswerRecord;
use assay_core::transcript::StopReason;
use assay_gateway::accounts::{Accounts, Charge, Limits, Period, Secret};
use assay_gateway::network::{Network, NetworkOptions};
use assay_gateway::queue::QueueOptions;
use books::Books;
use providers::{Manner, Provider};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// 100 dollars for a million tokens.
const PRICE: Option<&str> = Some("100/100");
const CREDIT: u64 = 1_000_000;

const QUICK: NetworkOptions = NetworkOptions {
    patience: Duration::from_secs(10),
    silence: Duration::from_secs(10),
    stopped: Duration::from_secs(30),
    attempts_max: 3,
    queue: QueueOptions { running_max: 64, waiting_max: 64, wait: Duration::from_secs(10) },
};

/// What so many words cost, after the 10 tokens of the prompt.
fn fee(words: u64) -> u64 {
    100 * (10 + words)
}

struct Gateway {
    url: String,
    accounts: Accounts,
    secret: Secret,
    client: reqwest::Client,
    folder: tempfile::TempDir,
}

impl Gateway {
    async fn over(options: NetworkOptions, providers: &[&Provider]) -> Gateway {
        let Books { folder, accounts, secret } = Books::with(CREDIT, Limits::default()).await;
        let network = Network::new(Some(accounts.clone()), options).keeping(folder.path().join("differing"));
        let endpoints: Vec<String> = providers.iter().map(|p| p.url.clone()).collect();
        assert_eq!(network.refresh(&endpoints).await, []);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = router(Arc::new(network), ServerOptions::default());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Gateway { url, accounts, secret, client: reqwest::Client::new(), folder }
    }

    fn ask(&self, class: &str, extra: Value) -> reqwest::RequestBuilder {
        let mut body = json!({
            "model": "org/model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, "stream": true, "seed": 1,
        });
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let post = self.client.post(format!("{}/v1/chat/completions", self.url)).json(&body);
        post.bearer_auth(self.secret.reveal()).header("x-assay-verification", class)
    }

    /// Reads so many words of an answer, and leaves. The answer's receipt.
    async fn reads(&self, class: &str, words: usize) -> String {
        let mut answer = self.ask(class, json!({})).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        let mut text = String::new();
        while text.matches("la ").count() < words {
            text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
        }
        answer.headers()["x-assay-receipt"].to_str().unwrap().to_owned()
    }

    /// What was charged, when nothing is held any more; the books agree at every moment.
    async fn charged(&self) -> u64 {
        loop {
            let sums = self.accounts.books("a").await.unwrap();
            assert!(sums.agree() && sums.credited.0 == CREDIT, "{sums:?}");
            if sums.held.0 == 0 {
                return sums.charged.0;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn charges(&self) -> Vec<Charge> {
        let period = Period { from_ms: 0, until_ms: i64::MAX, account: None, key_id: None };
        self.accounts.charges(&period, 0).await.unwrap()
    }

    async fn record(&self, receipt: &str) -> AnswerRecord {
        let found = self.client.get(format!("{}/v1/receipts/{receipt}", self.url)).send().await.unwrap();
        assert_eq!(found.status(), 200);
        found.json().await.unwrap()
    }
}

async fn happens(what: &AtomicBool) {
    while !what.load(SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_leaves_pays_for_what_there_is_and_its_receipt_says_so() {
    // The client reads some words, and the provider has made as many, or some more that are on their way.
    for (made, read) in [(1, 1), (5, 5), (9, 4)] {
        let provider = Provider::start(Manner::Paced, PRICE).await;
        let gateway = Gateway::over(QUICK, &[&provider]).await;
        provider.node.go.add_permits(made);
        let receipt = gateway.reads("sampled", read).await;
        happens(&provider.node.stopped).await;
        assert_eq!(gateway.charged().await, fee(made as u64));
        let charges = gateway.charges().await;
        let [charge] = &charges[..] else { panic!("{charges:?}") };
        assert_eq!((&charge.answer.receipt, charge.answer.completion_tokens as usize), (&receipt, made));
        let record = gateway.record(&receipt).await;
        assert_eq!(record.broken_bindings(), []);
        assert_eq!(
            (record.transcript.stop, record.transcript.output_ids.len()),
            (StopReason::Cancelled, made)
        );
        assert_eq!(record.transcript.text, "la ".repeat(made));
    }
}

#[tokio::test]
async fn who_waits_for_a_whole_answer_and_leaves_pays_likewise() {
    let provider = Provider::start(Manner::Paced, PRICE).await;
    let gateway = Gateway::over(QUICK, &[&provider]).await;
    provider.node.go.add_permits(3);
    let asked = tokio::spawn(gateway.ask("sampled", json!({"stream": false})).send());
    while provider.node.go.available_permits() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The first word is on its way to the client.
    let heard = "time_to_first_token_seconds_count{model_name=\"org/model\"} 1";
    let metrics =
        async || gateway.client.get(format!("{}/metrics", gateway.url)).send().await.unwrap().text().await;
    while !metrics().await.unwrap().contains(heard) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asked.abort();
    happens(&provider.node.stopped).await;
    assert_eq!(gateway.charged().await, fee(3));
}

/// Who leaves before the first word pays nothing, and what was set aside for it goes back at once.
#[tokio::test]
async fn who_leaves_before_the_first_word_pays_nothing() {
    let provider = Provider::start(Manner::Silent, PRICE).await;
    let gateway = Gateway::over(QUICK, &[&provider]).await;
    let asked = tokio::spawn(gateway.ask("sampled", json!({})).send());
    while provider.node.started.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(gateway.accounts.books("a").await.unwrap().held.0 > 0);
    asked.abort();
    assert_eq!(gateway.charged().await, 0);
    happens(&provider.node.cancelled).await;
}

/// Who asks again wants all of it, and is not told the part that it left.
#[tokio::test]
async fn an_answer_that_was_left_is_another_than_the_one_that_is_asked_for_again() {
    let provider = Provider::start(Manner::Paced, PRICE).await;
    let gateway = Gateway::over(QUICK, &[&provider]).await;
    provider.node.go.add_permits(2);
    let left = gateway.reads("sampled", 2).await;
    happens(&provider.node.stopped).await;
    assert_eq!(gateway.charged().await, fee(2));
    provider.node.becomes(Manner::Honest);
    let again = async || {
        let again = gateway.ask("sampled", json!({"stream": false})).header("x-stainless-retry-count", "1");
        let again = again.send().await.unwrap();
        let receipt = again.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
        let whole: Value = again.json().await.unwrap();
        assert_eq!(whole["choices"][0]["message"]["content"], "Hello");
        receipt
    };
    let whole = again().await;
    assert_ne!(whole, left);
    assert_eq!(gateway.charged().await, fee(2) + fee(5));
    // That one is told again.
    assert_eq!(again().await, whole);
    assert_eq!(gateway.charged().await, fee(2) + fee(5));
    assert_eq!(provider.node.started.load(SeqCst), 2);
}

#[tokio::test]
async fn a_provider_that_stops_and_was_not_asked_is_not_paid() {
    let provider = Provider::start(Manner::StopsUnasked, PRICE).await;
    let gateway = Gateway::over(QUICK, &[&provider]).await;
    let told = gateway.ask("sampled", json!({})).send().await.unwrap().text().await.unwrap();
    assert!(told.contains("Hel") && told.contains("provider_lost") && !told.contains("[DONE]"), "{told}");
    assert_eq!((gateway.charged().await, gateway.charges().await.len()), (0, 0));
    // Another one goes on, and is paid for all of it.
    let honest = Provider::start(Manner::Honest, PRICE).await;
    let cheat = Provider::before(&honest, Manner::StopsUnasked, PRICE).await;
    let gateway = Gateway::over(QUICK, &[&cheat, &honest]).await;
    let told = gateway.ask("sampled", json!({})).send().await.unwrap().text().await.unwrap();
    assert!(told.contains("[DONE]"), "{told}");
    assert_eq!((cheat.node.started.load(SeqCst), honest.node.started.load(SeqCst)), (1, 1));
    assert_eq!(gateway.charged().await, fee(5));
}

#[tokio::test]
async fn a_provider_that_does_not_stop_costs_nothing() {
    let provider = Provider::start(Manner::Endless, PRICE).await;
    let options = NetworkOptions { stopped: Duration::from_millis(200), ..QUICK };
    let gateway = Gateway::over(options, &[&provider]).await;
    gateway.reads("sampled", 3).await;
    assert_eq!(gateway.charged().await, 0);
    // It is hung up on.
    happens(&provider.node.cancelled).await;
}

/// Nobody goes on with an answer that its client has left.
#[tokio::test]
async fn what_breaks_off_when_it_is_stopped_costs_nothing() {
    let spare = Provider::start(Manner::Paced, PRICE).await;
    let lost = Provider::before(&spare, Manner::PacedAndLost, PRICE).await;
    let gateway = Gateway::over(QUICK, &[&lost, &spare]).await;
    lost.node.go.add_permits(2);
    gateway.reads("sampled", 2).await;
    happens(&lost.node.stopped).await;
    assert_eq!((gateway.charged().await, spare.node.started.load(SeqCst)), (0, 0));

    let all = [
        Provider::start(Manner::PacedAndLost, PRICE).await,
        Provider::start(Manner::PacedAndLost, PRICE).await,
        Provider::start(Manner::PacedAndLost, PRICE).await,
    ];
    let gateway = Gateway::over(QUICK, &[&all[0], &all[1], &all[2]]).await;
    all.iter().for_each(|provider| provider.node.go.add_permits(2));
    gateway.reads("full", 2).await;
    assert_eq!(gateway.charged().await, 0);
    let started: u32 = all.iter().map(|provider| provider.node.started.load(SeqCst)).sum();
    assert_eq!(started, 2);
}

#[tokio::test]
async fn who_leaves_an_answer_of_two_pays_for_what_there_is_of_both() {
    let start = async |manner| Provider::start(manner, PRICE).await;
    let (one, two) = (start(Manner::Paced).await, start(Manner::Paced).await);
    let gateway = Gateway::over(QUICK, &[&one, &two]).await;
    one.node.go.add_permits(3);
    two.node.go.add_permits(3);
    gateway.reads("full", 3).await;
    happens(&one.node.stopped).await;
    happens(&two.node.stopped).await;
    let charged = gateway.charged().await;
    // The one that is not told may have made less when it was stopped.
    let charges = gateway.charges().await;
    assert_eq!((charges.len(), charges[0].answer.completion_tokens), (1, 3));
    assert!(charged > fee(3) && charged <= 2 * fee(3), "{charged}");
    assert_eq!(kept(gateway.folder.path()), 0);

    // As far as both went they must agree.
    let (one, two) = (start(Manner::Paced).await, start(Manner::PacedOther).await);
    let gateway = Gateway::over(QUICK, &[&one, &two]).await;
    one.node.go.add_permits(2);
    two.node.go.add_permits(1);
    let mut answer = gateway.ask("full", json!({})).send().await.unwrap();
    let first = answer.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("role"));
    drop(answer);
    happens(&one.node.stopped).await;
    happens(&two.node.stopped).await;
    assert_eq!(gateway.charged().await, 0);
    assert_eq!(kept(gateway.folder.path()), 2);
}

/// Records that were kept because they differ.
fn kept(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("differing")).map_or(0, Iterator::count)
}
