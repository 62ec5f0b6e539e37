//! `assay verify`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use assay_core::embedding::Record;
use assay_core::verdict::Verdict;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::replay::{ByReference, Execution};
use assay_engine::text::Tokenizer;
use assay_verify::embedding::{check_embedding_by_reexecution, check_embedding_record};
use assay_verify::reexecution::{Subject, check_by_reexecution, check_record};
use clap::Args;

use super::record::{Loaded, RecordArgs};
use super::up::EngineArgs;
use super::verdict;
use crate::home::Home;
use crate::progress;

pub mod answer;

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    record: RecordArgs,
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
        for loaded in self.record.load(home)? {
            holds &= self.one(home, &loaded)?;
        }
        Ok(if holds { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn one(&self, home: &Home, loaded: &Loaded) -> Result<bool> {
        let Loaded { record, answer } = loaded;
        let root = record.receipt().receipt.model_root;
        let artifact = self.record.artifact(home, record)?;
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
        verdict::print_checks(verdict);
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
        println!("{}", verdict::conclusion("The answer", verdict, record.receipt().receipt.id()));
        Ok(())
    }
}
