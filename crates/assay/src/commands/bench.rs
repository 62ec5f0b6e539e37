//! `assay bench`: measurements. Floats here are for printing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use assay_engine::artifact::Artifact;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants as _;
use assay_engine::forward::{Executor, Segment};
use assay_engine::import::synthetic;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::semantics::sample::LOGIT_FRAC;
use assay_engine::text::Tokenizer;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::home::Home;

#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write a model of a known shape with random weights.
    Synthetic {
        /// 135M, 360M or 1B.
        shape: String,
        /// The artifact to write.
        out: PathBuf,
    },
    /// Prefill and decode speed: `rounds` times 512 tokens of prompt, then 64 tokens one by one.
    Engine {
        /// Model: a name, root or file.
        model: String,
        /// Threads of the engine.
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// How often.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Loss of a model on a text, in nats per token: windows of the model's context, each beginning with BOS.
    Loss {
        /// Model: a name, root or file.
        model: String,
        /// The text.
        text: PathBuf,
    },
}

impl Bench {
    pub fn run(self, home: &Home) -> Result<()> {
        match self.what {
            What::Synthetic { shape, out } => {
                let names: Vec<_> = synthetic::SHAPES.iter().map(|s| s.0).collect();
                let made = synthetic::write(&shape, 1, &out)
                    .with_context(|| format!("no shape `{shape}`; there are {}", names.join(", ")))?;
                println!("{}", made?);
                Ok(())
            }
            What::Engine { model, threads, rounds } => engine(&home.model(&model)?, threads, rounds),
            What::Loss { model, text } => loss(&home.model(&model)?, &text),
        }
    }
}

fn engine(artifact: &Arc<Artifact>, threads: usize, rounds: usize) -> Result<()> {
    const PROMPT: usize = 512;
    const DECODE: usize = 64;
    let program = artifact.program().program();
    if (program.context as usize) < PROMPT + DECODE {
        bail!("the model's window of {} tokens is too short for this measurement", program.context);
    }
    let mut executor =
        Executor::new(artifact.shared(), Kernel::from_environment()?, Arc::new(Pool::new(threads)));
    let tokens: Vec<u32> = (0..PROMPT as u32).map(|i| i.wrapping_mul(7919) % program.vocabulary).collect();
    for _ in 0..rounds {
        let mut sequence = Sequence::new(artifact.program().caches(), PROMPT + DECODE);
        let started = Instant::now();
        for chunk in tokens.chunks(256) {
            let logits_from = chunk.len() - 1;
            executor.forward(&mut [Segment { sequence: &mut sequence, tokens: chunk, logits_from }]);
        }
        let prefill = PROMPT as f64 / started.elapsed().as_secs_f64();
        let started = Instant::now();
        for t in &tokens[..DECODE] {
            executor.forward(&mut [Segment { sequence: &mut sequence, tokens: &[*t], logits_from: 0 }]);
        }
        let decode = DECODE as f64 / started.elapsed().as_secs_f64();
        println!(
            "{}",
            json!({"model": artifact.provenance().name, "threads": threads, "kernel": executor.kernel().name(),
                   "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode})
        );
    }
    Ok(())
}

fn loss(artifact: &Arc<Artifact>, text: &PathBuf) -> Result<()> {
    let text = std::fs::read_to_string(text).with_context(|| text.display().to_string())?;
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
    let ids = tokenizer.encode_text(&text)?;
    let pool = Arc::new(Pool::new(std::thread::available_parallelism().map_or(1, usize::from)));
    let mut executor = Executor::new(artifact.shared(), Kernel::from_environment()?, pool);
    let context = artifact.program().program().context as usize;
    let bos = artifact.text().bos;
    let body = if bos.is_some_and(|b| ids.first() == Some(&b)) { &ids[1..] } else { &ids[..] };
    let (mut sum, mut count) = (0f64, 0usize);
    for run in body.chunks(context - 1) {
        let window: Vec<u32> = bos.into_iter().chain(run.iter().copied()).collect();
        let mut sequence = Sequence::new(artifact.program().caches(), window.len());
        let mut next = 1;
        for chunk in window.chunks(128) {
            let output =
                executor.forward(&mut [Segment { sequence: &mut sequence, tokens: chunk, logits_from: 0 }]);
            for i in 0..chunk.len() {
                let Some(id) = window.get(next) else { break };
                sum += negative_log_likelihood(output.logits(i), *id);
                count += 1;
                next += 1;
            }
        }
    }
    println!(
        "{}",
        json!({"model": artifact.provenance().name, "tokens": count, "nats_per_token": sum / count as f64})
    );
    Ok(())
}

fn negative_log_likelihood(logits: &[i32], id: u32) -> f64 {
    let unit = f64::from(1u32 << LOGIT_FRAC);
    let top = f64::from(logits.iter().copied().max().unwrap_or(0));
    let total: f64 = logits.iter().map(|l| ((f64::from(*l) - top) / unit).exp()).sum();
    total.ln() - (f64::from(logits[id as usize]) - top) / unit
}
