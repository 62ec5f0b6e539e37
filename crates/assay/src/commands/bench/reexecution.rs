//! The cost of checking by re-execution as a share of the cost of generating, on the same machine with the same threads.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use assay_api::{Caller, Event, Inference as _, Order};
use assay_core::answer::AnswerRecord;
use assay_core::consent::Consent;
use assay_core::request::{Prompt, Request, Sampling};
use assay_engine::artifact::Artifact;
use assay_engine::batch::BatchLimits;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::text::Tokenizer;
use assay_node::provider::Provider;
use assay_verify::reexecution::{Subject, check_by_reexecution};
use serde_json::{Value, json};

use super::{milliseconds, tokens};
use crate::commands::up::EngineArgs;
use crate::home::Home;

/// Seeds to try until an answer has the length asked for: end tokens come early now and then.
const ATTEMPTS: u64 = 20;

/// A whole provider, asked directly.
pub struct Generator {
    provider: Provider,
    artifact: Arc<Artifact>,
    runtime: tokio::runtime::Runtime,
    threads: usize,
    last: Mutex<Duration>,
}

impl Generator {
    pub fn new(artifact: &Arc<Artifact>, engine: EngineArgs, folder: &Path) -> Result<Generator> {
        let home = Home::open(Some(folder))?;
        // Every answer is executed as a whole, as whoever checks it does.
        let limits = BatchLimits { prefix_bytes_max: 0, draft_rows_max: 0, ..BatchLimits::default() };
        let provider = engine.provider(&home, vec![Arc::clone(artifact)], limits)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (artifact, threads, last) = (Arc::clone(artifact), engine.pool().threads(), Mutex::default());
        Ok(Generator { provider, artifact, runtime, threads, last })
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// From order to durable record: how long the last answer took.
    pub fn last(&self) -> Duration {
        *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A sampled answer of exactly this length.
    pub fn answer(&self, prompt: u32, answer: u32, seed: u64) -> Result<AnswerRecord> {
        let program = self.artifact.program().program();
        if prompt + answer > program.context {
            bail!("{prompt} and {answer} tokens do not fit the model's window of {}", program.context);
        }
        for attempt in 0..ATTEMPTS {
            let seed = Some(seed * ATTEMPTS + attempt);
            let request = Request {
                model: self.artifact.root(),
                prompt: Prompt::Tokens(tokens(prompt as usize, program.vocabulary)),
                sampling: Sampling { temperature_micro: 1_000_000, seed, ..Sampling::GREEDY },
                max_tokens: answer,
                stop: vec![],
                choice: 0,
                guide: None,
                logprobs: None,
                audit: Consent::Given,
            };
            let started = Instant::now();
            let record = self.runtime.block_on(self.run(request))?;
            *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = started.elapsed();
            if record.receipt.receipt.completion_tokens == answer {
                return Ok(record);
            }
        }
        bail!("the model ends its answers before {answer} tokens")
    }

    async fn run(&self, request: Request) -> Result<AnswerRecord> {
        let order = Order { request, nonce: None, request_id: "bench".into(), caller: Caller::default() };
        let mut generation = self.provider.generate(order).await.map_err(|r| anyhow::anyhow!("{r}"))?;
        while let Some(event) = generation.events.recv().await {
            match event {
                Event::Text { .. } | Event::Call { .. } | Event::Arguments { .. } => {}
                Event::End { record, .. } => return Ok(record.as_ref().clone()),
                Event::Failed(refusal) => bail!("{refusal}"),
            }
        }
        bail!("the engine stopped")
    }
}

pub fn run(
    artifact: &Arc<Artifact>,
    engine: EngineArgs,
    prompt: u32,
    answers: &[u32],
    rounds: usize,
    print: &mut dyn FnMut(Value),
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
    let subject = Subject {
        root: artifact.root(),
        program: artifact.program().program(),
        text: artifact.text(),
        tokenizer: &tokenizer,
    };
    let mut executor = Executor::new(artifact.shared(), Kernel::from_environment()?, engine.pool());
    let generator = Generator::new(artifact, engine, folder.path())?;
    for answer in answers {
        for seed in 0..rounds as u64 {
            let record = generator.answer(prompt, *answer, seed)?;
            let generation = generator.last();
            let started = Instant::now();
            let verdict = check_by_reexecution(&record, &subject, &mut executor);
            let verification = started.elapsed();
            if !verdict.holds {
                bail!("an honest answer does not hold: {verdict:?}");
            }
            print(json!({
                "model": artifact.provenance().name, "threads": generator.threads(), "prompt_tokens": prompt,
                "completion_tokens": answer, "generation_ms": milliseconds(generation),
                "reexecution_ms": milliseconds(verification),
                "share_percent": 100.0 * verification.as_secs_f64() / generation.as_secs_f64(),
            }));
        }
    }
    Ok(())
}
