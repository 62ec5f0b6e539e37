//! Records as they are named on a command line: by a receipt's id, by a file, or on standard input.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use assay_core::answer::AnswerRecord;
use assay_core::embedding::Record;
use assay_core::id::ReceiptId;
use assay_core::limits::CANONICAL_BYTES_MAX;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;
use assay_node::store::ReceiptStore;
use assay_verify::reexecution::Subject;
use assay_verify::trace::NotExecutable;
use assay_verify::trace::walk::Subject as Executed;
use clap::Args;
use serde_json::Value;

use super::up::{DEFAULT_LISTEN, EngineArgs};
use crate::home::Home;

/// JSON writes a record in at most this many bytes.
const RECORD_BYTES_MAX: usize = 4 * CANONICAL_BYTES_MAX;

/// Which record.
#[derive(Args)]
pub struct RecordArgs {
    /// A record (JSON file, `-` for standard input) or a receipt id.
    #[arg(value_name = "RECEIPT")]
    receipt: String,
    /// Execute this model instead of the installed one with the receipt's root.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The node to ask for a receipt id that is not in the data directory [default: the one that runs on the data directory].
    #[arg(long, value_name = "URL")]
    node: Option<String>,
}

/// Which answer, and how it is executed again.
#[derive(Args)]
pub struct AnswerArgs {
    #[command(flatten)]
    record: RecordArgs,
    /// Which answer, if the file holds several choices; 0 is the first.
    #[arg(long, default_value_t = 0, value_name = "N")]
    choice: usize,
    #[command(flatten)]
    engine: EngineArgs,
}

/// An API answer, and which of its choices is meant.
pub struct Around {
    pub json: Value,
    pub index: usize,
}

/// A record, and the API answer around it if there was one.
pub struct Loaded {
    pub record: Record,
    pub answer: Option<Around>,
}

/// One answer and its model, ready to be executed again.
pub struct Answer {
    pub record: AnswerRecord,
    pub artifact: Arc<Artifact>,
    pub tokenizer: Tokenizer,
    /// The API answer around the record, if there was one.
    pub around: Option<Around>,
    pub kernel: Kernel,
    pub pool: Arc<Pool>,
}

impl RecordArgs {
    /// All records that are meant: several where an answer has several choices.
    pub fn load(&self, home: &Home) -> Result<Vec<Loaded>> {
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

    /// The model to execute, if it is installed.
    pub fn artifact(&self, home: &Home, record: &Record) -> Result<Option<Arc<Artifact>>> {
        match &self.model {
            Some(name) => home.model(name).map(Some),
            None => home.model_by_root(record.receipt().receipt.model_root),
        }
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
}

impl AnswerArgs {
    /// The answer that is meant, with its model.
    pub fn load(&self, home: &Home) -> Result<Answer> {
        let mut all = self.record.load(home)?;
        if self.choice >= all.len() {
            bail!("there is no answer {}: the file holds {}", self.choice, all.len());
        }
        let Loaded { record, answer: around } = all.swap_remove(self.choice);
        let artifact = self.record.artifact(home, &record)?;
        let root = record.receipt().receipt.model_root;
        let Record::Answer(record) = record else {
            bail!("the receipt is of embeddings; this command is about answers")
        };
        let Some(artifact) = artifact else {
            bail!("model {root} is not installed; import it, or name a file with --model")
        };
        let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
        let (kernel, pool) = (Kernel::from_environment()?, self.engine.pool());
        Ok(Answer { record: *record, artifact, tokenizer, around, kernel, pool })
    }
}

impl Answer {
    /// The engine, executing the answer's model.
    pub fn executor(&self) -> Executor {
        self.executor_of(self.artifact.shared())
    }

    /// The engine, executing other constants.
    pub fn executor_of(&self, constants: Arc<dyn Constants>) -> Executor {
        Executor::new(constants, self.kernel, Arc::clone(&self.pool))
    }

    /// What was executed for a record of this answer's model.
    pub fn subject(&self, record: &AnswerRecord) -> Result<Executed, NotExecutable> {
        Executed::of(record, &self.model())
    }

    /// The model as a verifier knows it, its root being what the artifact says.
    pub fn model(&self) -> Subject<'_> {
        Subject {
            root: self.artifact.root(),
            program: self.artifact.program().program(),
            text: self.artifact.text(),
            tokenizer: &self.tokenizer,
        }
    }
}

/// The body at `url`, if it is not longer than a record can be.
async fn get(url: &str) -> Result<String> {
    let mut client = reqwest::Client::builder();
    if url.starts_with("http:") {
        // Without TLS there need be no certificates on this machine.
        client = client.tls_certs_only([]);
    }
    let mut response = client.build()?.get(url).send().await.map_err(|e| e.without_url())?;
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
        Some("assay-embedding/2") => Record::Embedding(Box::new(serde_json::from_value(json)?)),
        _ => Record::Answer(Box::new(serde_json::from_value(json)?)),
    })
}
