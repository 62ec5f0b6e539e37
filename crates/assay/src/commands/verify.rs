//! `assay verify`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use assay_core::embedding::Record;
use assay_core::id::ReceiptId;
use assay_core::limits::CANONICAL_BYTES_MAX;
use assay_core::verdict::{Outcome, Verdict};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::replay::{ByReference, Execution};
use assay_engine::text::Tokenizer;
use assay_node::store::ReceiptStore;
use assay_verify::embedding::{check_embedding_by_reexecution, check_embedding_record};
use assay_verify::reexecution::{Subject, check_by_reexecution, check_record};
use clap::Args;
use comfy_table::{Table, presets};
use serde_json::Value;

use super::up::{DEFAULT_LISTEN, EngineArgs};
use crate::home::Home;
use crate::progress;

mod answer;

use answer::Around;

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
        let mut holds = true;
        for loaded in self.load(home)? {
            holds &= self.one(home, &loaded)?;
        }
        Ok(if holds { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn one(&self, home: &Home, loaded: &Loaded) -> Result<bool> {
        let Loaded { record, answer } = loaded;
        let root = record.receipt().receipt.model_root;
        let artifact = match &self.model {
            Some(name) => Some(home.model(name)?),
            None => home.model_by_root(root)?,
        };
        let Some(artifact) = artifact else {
            let mut verdict = match record {
                Record::Answer(r) => check_record(r),
                Record::Embedding(r) => check_embedding_record(r),
            };
            answer::compare(answer.as_ref(), record, None, &mut verdict);
            if verdict.holds {
                bail!(
                    "model {root} is not installed, so nothing was executed; import it, or name a file with --model"
                );
            }
            self.print(record, &verdict, None)?;
            return Ok(false);
        };
        let started = Instant::now();
        progress::check_root(&artifact)?;
        let root = started.elapsed();
        let started = Instant::now();
        let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
        let mut execution = self.execution(&artifact)?;
        let (load, started) = (started.elapsed(), Instant::now());
        let subject = Subject {
            root: artifact.root(),
            program: artifact.program().program(),
            text: artifact.text(),
            tokenizer: &tokenizer,
        };
        let mut verdict = match record {
            Record::Answer(r) => check_by_reexecution(r, &subject, execution.as_mut()),
            Record::Embedding(r) => check_embedding_by_reexecution(r, &subject, execution.as_mut()),
        };
        let check = started.elapsed();
        answer::compare(answer.as_ref(), record, Some(tokenizer.call_syntax()), &mut verdict);
        self.print(record, &verdict, Some(&Cost { root, load, check }))?;
        Ok(verdict.holds)
    }

    fn execution<'a>(&self, artifact: &'a Arc<Artifact>) -> Result<Box<dyn Execution + 'a>> {
        Ok(if self.reference {
            Box::new(ByReference(artifact.as_ref()))
        } else {
            Box::new(Executor::new(artifact.shared(), Kernel::from_environment()?, self.engine.pool()))
        })
    }

    fn load(&self, home: &Home) -> Result<Vec<Loaded>> {
        if let Ok(id) = self.receipt.parse::<ReceiptId>() {
            return Ok(vec![Loaded { record: self.fetch(home, id)?, answer: None }]);
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

    fn fetch(&self, home: &Home, id: ReceiptId) -> Result<Record> {
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
        let mut records = parse(&text)?;
        let Some(Loaded { record, .. }) = records.pop() else { bail!("{url} gave no record") };
        if record.receipt().receipt.id() != id {
            bail!("{url} gave the record of another receipt");
        }
        Ok(record)
    }

    fn print(&self, record: &Record, verdict: &Verdict, cost: Option<&Cost>) -> Result<()> {
        let generated = record.generation().map(|g| g.prefill_ns.saturating_add(g.decode_ns));
        if self.json {
            let mut json = serde_json::to_value(verdict)?;
            json["receipt"] = serde_json::json!(record.receipt().receipt.id());
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
            None => println!("The answer holds: receipt {}", record.receipt().receipt.id()),
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
    record: Record,
    answer: Option<Around>,
}

/// A record alone, or an API answer that carries one as `assay_receipt` or several as `assay_receipts`.
fn parse(text: &str) -> Result<Vec<Loaded>> {
    let mut json: Value = serde_json::from_str(text)?;
    let Some(object) = json.as_object_mut() else { bail!("it is no JSON object") };
    let several = match object.remove("assay_receipts") {
        Some(Value::Array(all)) => all,
        Some(_) => bail!("assay_receipts is no list"),
        None => vec![],
    };
    let records: Vec<Value> = object.remove("assay_receipt").into_iter().chain(several).collect();
    if records.is_empty() {
        return Ok(vec![Loaded { record: read_record(json)?, answer: None }]);
    }
    let around = |(index, record)| {
        let answer = Some(Around { json: json.clone(), index });
        Ok(Loaded { record: read_record(record)?, answer })
    };
    records.into_iter().enumerate().map(around).collect()
}

fn read_record(json: Value) -> Result<Record> {
    Ok(match json["format"].as_str() {
        Some("assay-embedding/1") => Record::Embedding(Box::new(serde_json::from_value(json)?)),
        _ => Record::Answer(Box::new(serde_json::from_value(json)?)),
    })
}
