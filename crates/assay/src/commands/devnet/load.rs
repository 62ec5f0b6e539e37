//! Clients: requests at an even pace through the gateway.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use assay_core::answer::AnswerRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::network::State;

const PROMPTS: [&str; 4] = ["Once upon a time", "The little dog", "One day, Tom went", "In the garden"];
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Tokens of an answer.
const TOKENS: u32 = 32;

/// What became of the requests.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<Counts>>);

/// A request that a client got no answer to.
#[derive(Clone, Debug)]
pub struct Failure {
    pub began: Instant,
    pub ended: Instant,
    pub code: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    pub sent: u64,
    pub answered: u64,
    /// Milliseconds, unsorted.
    #[serde(skip)]
    took_ms: Vec<u64>,
    /// By the code of the failure.
    pub failed: BTreeMap<String, u64>,
    #[serde(skip)]
    failures: Vec<Failure>,
    /// What answers were told to be: the receipt's id and the provider.
    #[serde(skip)]
    receipts: Vec<(String, String)>,
}

impl Asked {
    /// Those without an answer.
    pub fn failures(&self) -> Vec<Failure> {
        self.counts().failures.clone()
    }

    /// Receipts and providers of the answers.
    pub fn receipts(&self) -> Vec<(String, String)> {
        self.counts().receipts.clone()
    }

    /// What became of them so far.
    pub fn now(&self) -> Counts {
        self.counts().clone()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts();
        let mut took = counts.took_ms.clone();
        took.sort_unstable();
        write!(f, "requests: {} sent, {} answered", counts.sent, counts.answered)?;
        if let Some(median) = took.get(took.len() / 2) {
            write!(f, " (median {median} ms)")?;
        }
        counts.failed.iter().try_for_each(|(code, count)| write!(f, ", {count} {code}"))
    }
}

/// Whom clients ask, and for what.
pub struct Clients {
    url: String,
    secret: String,
    model: String,
}

impl Clients {
    /// Clients of a network's gateway.
    pub fn of(state: &State) -> Clients {
        let url = format!("http://{}/v1/chat/completions", state.gateway);
        Clients { url, secret: state.secret.clone(), model: state.model.clone() }
    }
}

/// Sends for ever; nothing at a pace of 0.
pub async fn run(clients: Clients, per_second: f64, asked: Asked) {
    if per_second <= 0.0 {
        return std::future::pending().await;
    }
    let client = reqwest::Client::new();
    let mut due = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
    for seed in 0u64.. {
        due.tick().await;
        let prompt = PROMPTS[(seed % PROMPTS.len() as u64) as usize];
        let body = json!({
            "model": clients.model, "seed": seed, "max_tokens": TOKENS, "temperature": 1,
            "messages": [{"role": "user", "content": prompt}],
        });
        let request = client.post(&clients.url).bearer_auth(&clients.secret).timeout(PATIENCE).json(&body);
        let request = request.header("x-assay-receipt", "inline");
        let asked = asked.clone();
        asked.counts().sent += 1;
        tokio::spawn(async move {
            let begun = Instant::now();
            let answer = async { request.send().await?.json::<Value>().await }.await;
            let mut counts = asked.counts();
            let code = match answer {
                Ok(mut answer) if answer["choices"].is_array() => {
                    counts.answered += 1;
                    counts.took_ms.push(begun.elapsed().as_millis() as u64);
                    match serde_json::from_value::<AnswerRecord>(answer["assay_receipt"].take()) {
                        Ok(AnswerRecord { receipt, .. }) => {
                            let provider = receipt.receipt.provider.to_string();
                            counts.receipts.push((receipt.receipt.id().to_string(), provider));
                            return;
                        }
                        Err(_) => "no_record".to_owned(),
                    }
                }
                Ok(answer) => answer["error"]["code"].as_str().unwrap_or("unknown").to_owned(),
                Err(_) => "unreachable".to_owned(),
            };
            *counts.failed.entry(code.clone()).or_default() += 1;
            counts.failures.push(Failure { began: begun, ended: Instant::now(), code });
        });
    }
}
