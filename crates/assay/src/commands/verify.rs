//! `assay verify`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use assay_core::answer::AnswerRecord;
use assay_core::id::ReceiptId;
use assay_core::limits::CANONICAL_BYTES_MAX;
use assay_core::verdict::{Check, Failure, FailureCode, Outcome, Verdict};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::replay::{ByReference, Execution};
use assay_engine::text::Tokenizer;
use assay_node::store::ReceiptStore;
use assay_verify::reexecution::{Subject, check_by_reexecution, check_record};
use clap::Args;
use comfy_table::{Table, presets};
use serde_json::Value;

use super::up::{DEFAULT_LISTEN, EngineArgs};
use crate::home::Home;
use crate::progress;

/// JSON writes a record in at most this many bytes.
const RECORD_BYTES_MAX: usize = 4 * CANONICAL_BYTES_MAX;

#[derive(Args)]
pub struct Verify {
    /// A record (JSON file, `-` for standard input) or a receipt id.
    #[arg(value_name = "RECEIPT")]
    receipt: String,
    /// Check against this model instead of the installed one with the receipt's root.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The node to ask for a receipt id that is not in the data directory [default: the one that runs on the data directory].
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    /// Execute with the reference, the plain specification: slow, and the same bits.
    #[arg(long)]
    reference: bool,
    /// Print the verdict as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What verification took, beside what generation took.
struct Cost {
    /// Hashing the artifact, once a model.
    root: Duration,
    /// Loading tokenizer and engine, once a process.
    load: Duration,
    /// Executing again.
    check: Duration,
}

impl Verify {
    pub fn run(self, home: &Home) -> Result<ExitCode> {
        let Loaded { record, answer } = self.load(home)?;
        let root = record.receipt.receipt.model_root;
        let artifact = match &self.model {
            Some(name) => Some(home.model(name)?),
            None => home.model_by_root(root)?,
        };
        let Some(artifact) = artifact else {
            let mut verdict = check_record(&record);
            compare(answer.as_ref(), &record, &mut verdict);
            if verdict.holds {
                bail!(
                    "model {root} is not installed, so nothing was executed; import it, or name a file with --model"
                );
            }
            self.print(&record, &verdict, None)?;
            return Ok(ExitCode::from(1));
        };
        let started = Instant::now();
        progress::check_root(&artifact)?;
        let root = started.elapsed();
        let (mut verdict, load, check) = self.check(&record, &artifact)?;
        compare(answer.as_ref(), &record, &mut verdict);
        self.print(&record, &verdict, Some(&Cost { root, load, check }))?;
        Ok(if verdict.holds { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn check(
        &self,
        record: &AnswerRecord,
        artifact: &Arc<Artifact>,
    ) -> Result<(Verdict, Duration, Duration)> {
        let started = Instant::now();
        let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
        let subject = Subject {
            root: artifact.root(),
            program: artifact.program().program(),
            text: artifact.text(),
            tokenizer: &tokenizer,
        };
        let mut fast;
        let mut slow;
        let execution: &mut dyn Execution = if self.reference {
            slow = ByReference(artifact.as_ref());
            &mut slow
        } else {
            fast = Executor::new(artifact.shared(), Kernel::from_environment()?, self.engine.pool());
            &mut fast
        };
        let (load, started) = (started.elapsed(), Instant::now());
        let verdict = check_by_reexecution(record, &subject, execution);
        Ok((verdict, load, started.elapsed()))
    }

    fn load(&self, home: &Home) -> Result<Loaded> {
        if let Ok(id) = self.receipt.parse::<ReceiptId>() {
            return Ok(Loaded { record: self.fetch(home, id)?, answer: None });
        }
        let text = if self.receipt == "-" {
            std::io::read_to_string(std::io::stdin())?
        } else {
            let length = std::fs::metadata(&self.receipt).with_context(|| self.receipt.clone())?.len();
            if length > RECORD_BYTES_MAX as u64 {
                bail!("{}: {length} bytes are more than any record has", self.receipt);
            }
            std::fs::read_to_string(&self.receipt).with_context(|| self.receipt.clone())?
        };
        parse(&text).with_context(|| format!("{} is no answer record", self.receipt))
    }

    fn fetch(&self, home: &Home, id: ReceiptId) -> Result<AnswerRecord> {
        // A running node holds the store, and answers for it.
        if home.receipts().exists()
            && let Ok(store) = ReceiptStore::open(&home.receipts())
            && let Some(record) = store.get(id)?
        {
            return Ok(record);
        }
        let node = match &self.node {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => {
                let running = std::fs::read_to_string(home.node_address());
                format!("http://{}", running.as_deref().map_or(DEFAULT_LISTEN, str::trim))
            }
        };
        let url = format!("{node}/v1/receipts/{id}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let text = runtime.block_on(get(&url)).with_context(|| {
            format!("receipt {id} is not in {}, and could not be fetched from {node}", home.path().display())
        })?;
        let record = parse(&text)?.record;
        if record.receipt.receipt.id() != id {
            bail!("{url} gave the record of another receipt");
        }
        Ok(record)
    }

    fn print(&self, record: &AnswerRecord, verdict: &Verdict, cost: Option<&Cost>) -> Result<()> {
        let generated = record.generation.as_ref().map(|g| g.prefill_ns.saturating_add(g.decode_ns));
        if self.json {
            let mut json = serde_json::to_value(verdict)?;
            json["receipt"] = serde_json::json!(record.receipt.receipt.id());
            json["cost"] = serde_json::json!({
                "verify_ns": cost.map(|c| c.check.as_nanos() as u64),
                "load_ns": cost.map(|c| c.load.as_nanos() as u64),
                "model_root_ns": cost.map(|c| c.root.as_nanos() as u64),
                "generation_ns": generated,
            });
            println!("{}", serde_json::to_string_pretty(&json)?);
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for c in &verdict.checks {
            let mark = match c.outcome {
                Outcome::Passed => "✓",
                Outcome::Failed => "✗",
                Outcome::NotRun => "–",
            };
            table.add_row([mark, &c.name, &c.detail]);
        }
        println!("{table}");
        println!("Not checked:");
        for u in &verdict.unchecked {
            println!("  · {u}");
        }
        if let Some(cost) = cost {
            let check = cost.check.as_secs_f64();
            print!("Cost: {:.1} ms to execute again", check * 1e3);
            if let Some(ns) = generated.filter(|ns| *ns > 0) {
                let share = 100.0 * check / (ns as f64 / 1e9);
                print!("; generating took {:.1} ms on the provider ({share:.0} %)", ns as f64 / 1e6);
            }
            println!();
            let [load, root] = [cost.load, cost.root].map(|d| d.as_secs_f64() * 1e3);
            println!("      (before that, once: {load:.1} ms to load the model, {root:.1} ms to hash it)");
        }
        match &verdict.failure {
            None => println!("The answer holds: receipt {}", record.receipt.receipt.id()),
            Some(f) => println!("THE ANSWER DOES NOT HOLD ({}): {}", f.code.as_str(), f.message),
        }
        Ok(())
    }
}

/// The body at `url`, if it is not longer than a record can be.
async fn get(url: &str) -> Result<String> {
    let mut response = reqwest::get(url).await.map_err(|e| e.without_url())?;
    let status = response.status();
    if !status.is_success() {
        bail!("it answers with status {status}");
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > RECORD_BYTES_MAX {
            bail!("its answer is longer than any record");
        }
    }
    Ok(String::from_utf8(body)?)
}

/// A record, and the API answer around it if there was one.
struct Loaded {
    record: AnswerRecord,
    answer: Option<Value>,
}

/// A record, or an API answer that carries one as `assay_receipt`.
fn parse(text: &str) -> Result<Loaded> {
    let mut json: Value = serde_json::from_str(text)?;
    match json.as_object_mut().and_then(|o| o.remove("assay_receipt")) {
        Some(record) => Ok(Loaded { record: serde_json::from_value(record)?, answer: Some(json) }),
        None => Ok(Loaded { record: serde_json::from_value(json)?, answer: None }),
    }
}

/// Whether an API answer says what its record says: whoever keeps the answer reads its text, not the record's.
fn compare(answer: Option<&Value>, record: &AnswerRecord, verdict: &mut Verdict) {
    let Some(answer) = answer else { return };
    let (t, choice) = (&record.transcript, &answer["choices"][0]);
    let said = choice["message"]["content"].as_str().or(choice["text"].as_str());
    let usage = t.usage();
    let message = if said != Some(&t.text) {
        let at = said.unwrap_or("").bytes().zip(t.text.bytes()).take_while(|(a, b)| a == b).count();
        format!("the text around the record differs from the record's, from byte {at} on")
    } else if choice["finish_reason"] != t.stop.finish_reason() {
        "the finish_reason around the record is not the record's".to_owned()
    } else if answer["usage"]["prompt_tokens"] != usage.prompt_tokens
        || answer["usage"]["completion_tokens"] != usage.completion_tokens
    {
        "the usage around the record is not the record's".to_owned()
    } else {
        let detail = "text, finish_reason and usage are the record's".to_owned();
        verdict.checks.push(Check { name: "answer".into(), outcome: Outcome::Passed, detail });
        return;
    };
    verdict.checks.push(Check { name: "answer".into(), outcome: Outcome::Failed, detail: message.clone() });
    verdict.holds = false;
    verdict.failure.get_or_insert(Failure { code: FailureCode::Text, position: None, message });
}
