//! Clients: requests at an even pace through the gateway.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use assay_core::answer::AnswerRecord;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;
use assay_verify::reexecution::{Subject, check_by_reexecution};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::network::State;
use crate::home::built_in;

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
    /// Answers that do not hold when they are executed again, by provider.
    pub refuted: BTreeMap<String, u64>,
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

    fn answered(&self, took: Duration, record: Option<&AnswerRecord>) {
        let mut counts = self.counts();
        counts.answered += 1;
        counts.took_ms.push(took.as_millis() as u64);
        let receipt = record.map(|record| &record.receipt.receipt);
        counts.receipts.extend(receipt.map(|r| (r.id().to_string(), r.provider.to_string())));
    }

    async fn check(&self, check: Arc<Check>, record: AnswerRecord) {
        let provider = record.receipt.receipt.provider.to_string();
        if let Ok(false) = tokio::task::spawn_blocking(move || check.holds(&record)).await {
            *self.counts().refuted.entry(provider).or_default() += 1;
        }
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
    check: Option<Arc<Check>>,
}

/// Executes answers again, as `assay verify` does.
pub struct Check {
    artifact: Arc<Artifact>,
    tokenizer: Tokenizer,
    kernel: Kernel,
    pool: Arc<Pool>,
}

impl Check {
    pub fn new() -> Result<Check> {
        let artifact = built_in()?;
        let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
        Ok(Check { artifact, tokenizer, kernel: Kernel::from_environment()?, pool: Arc::new(Pool::new(1)) })
    }

    fn holds(&self, record: &AnswerRecord) -> bool {
        let Check { artifact, tokenizer, kernel, pool } = self;
        let mut executor = Executor::new(artifact.shared(), *kernel, Arc::clone(pool));
        let (program, text) = (artifact.program().program(), artifact.text());
        let subject = Subject { root: artifact.root(), program, text, tokenizer };
        check_by_reexecution(record, &subject, &mut executor).holds
    }
}

impl Clients {
    /// Clients of a network's gateway, who check what they get if they have a check.
    pub fn of(state: &State, check: Option<Check>) -> Clients {
        let url = format!("http://{}/v1/chat/completions", state.gateway);
        let (secret, model) = (state.secret.clone(), state.model.clone());
        Clients { url, secret, model, check: check.map(Arc::new) }
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
        let mut prompt = PROMPTS[(seed % PROMPTS.len() as u64) as usize].to_owned();
        if clients.check.is_some() {
            // Who has seen a prompt is asked again: everybody is asked only where no two are alike.
            prompt.push_str(&format!(" {seed}"));
        }
        let body = json!({
            "model": clients.model, "seed": seed, "max_tokens": TOKENS, "temperature": 1,
            "messages": [{"role": "user", "content": prompt}],
        });
        let request = client.post(&clients.url).bearer_auth(&clients.secret).timeout(PATIENCE).json(&body);
        let request = request.header("x-assay-receipt", "inline");
        let (asked, check) = (asked.clone(), clients.check.clone());
        asked.counts().sent += 1;
        tokio::spawn(async move {
            let begun = Instant::now();
            let answer = async { request.send().await?.json::<Value>().await }.await;
            let code = match answer {
                Ok(mut answer) if answer["choices"].is_array() => {
                    let record = serde_json::from_value::<AnswerRecord>(answer["assay_receipt"].take());
                    asked.answered(begun.elapsed(), record.as_ref().ok());
                    match (record, check) {
                        (Ok(record), Some(check)) => return asked.check(check, record).await,
                        (Ok(_), None) => return,
                        (Err(_), _) => "no_record".to_owned(),
                    }
                }
                Ok(answer) => answer["error"]["code"].as_str().unwrap_or("unknown").to_owned(),
                Err(_) => "unreachable".to_owned(),
            };
            let mut counts = asked.counts();
            *counts.failed.entry(code.clone()).or_default() += 1;
            counts.failures.push(Failure { began: begun, ended: Instant::now(), code });
        });
    }
}
