//! Speed of prefill and decode, of the engine alone, beside what the machine can do at most.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use assay_engine::artifact::Artifact;
use assay_engine::batch::BatchLimits;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants as _;
use assay_engine::forward::{Executor, Segment};
use assay_engine::kernel::Kernel;
use serde_json::{Value, json};

use self::roofline::{Machine, Work, weights};
use super::tokens;
use crate::commands::up::EngineArgs;

mod chart;
mod roofline;

const PROMPT: usize = 512;
const DECODE: usize = 64;

pub fn run(
    artifact: &Arc<Artifact>,
    engine: EngineArgs,
    rounds: usize,
    print: &mut dyn FnMut(Value),
) -> Result<()> {
    let program = artifact.program().program();
    if (program.context as usize) < PROMPT + DECODE {
        bail!("the model's window of {} tokens is too short for this measurement", program.context);
    }
    let pool = engine.pool();
    let threads = pool.threads();
    let kernel = Kernel::from_environment()?;
    let machine = Machine::new(kernel, Arc::clone(&pool))?;
    let mut executor = Executor::new(artifact.shared(), kernel, pool);
    let tokens = tokens(PROMPT, program.vocabulary);
    let chunk = BatchLimits::default().rows_max;
    let (prompt, token) = work(artifact, chunk);
    for _ in 0..rounds {
        // Machines drift: the peaks are those of the round.
        let peaks = machine.peaks();
        let mut sequence = Sequence::new(artifact.program().caches(), PROMPT + DECODE);
        let started = Instant::now();
        let mut left = PROMPT;
        for chunk in tokens.chunks(chunk) {
            left -= chunk.len();
            // Logits of the last position alone: those of a prompt are not needed.
            let logits_from = if left == 0 { chunk.len() - 1 } else { chunk.len() };
            executor.forward(&mut [Segment { sequence: &mut sequence, tokens: chunk, logits_from }]);
        }
        let prefill = PROMPT as f64 / started.elapsed().as_secs_f64();
        let started = Instant::now();
        for t in &tokens[..DECODE] {
            executor.forward(&mut [Segment { sequence: &mut sequence, tokens: &[*t], logits_from: 0 }]);
        }
        let decode = DECODE as f64 / started.elapsed().as_secs_f64();
        let limits =
            [(prompt, PROMPT), (token, 1)].map(|(w, tokens)| tokens as f64 / w.least_seconds(&peaks));
        print(json!({
            "model": artifact.provenance().name, "threads": threads, "kernel": kernel.name(),
            "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode,
            "weights": weights(artifact.program()),
            "memory_gb_per_s": peaks.bytes_per_s / 1e9, "multiply_adds_g_per_s": peaks.multiply_adds_per_s / 1e9,
            "prefill_mb_per_token": prompt.bytes as f64 / PROMPT as f64 / 1e6,
            "prefill_multiply_adds_m_per_token": prompt.multiply_adds as f64 / PROMPT as f64 / 1e6,
            "prefill_limit_tokens_per_s": limits[0], "prefill_share_percent": 100.0 * prefill / limits[0],
            "decode_mb_per_token": token.bytes as f64 / 1e6,
            "decode_multiply_adds_m_per_token": token.multiply_adds as f64 / 1e6,
            "decode_limit_tokens_per_s": limits[1], "decode_share_percent": 100.0 * decode / limits[1],
        }));
    }
    Ok(())
}

/// What a prompt read in such chunks takes, and a token in the middle of the answer.
fn work(artifact: &Artifact, chunk: usize) -> (Work, Work) {
    let of_chunk = |at: usize| {
        let rows = chunk.min(PROMPT - at);
        Work::of_pass(artifact, at, rows, usize::from(at + rows == PROMPT))
    };
    let prompt = (0..PROMPT).step_by(chunk).map(of_chunk).fold(Work::default(), Work::and);
    (prompt, Work::of_pass(artifact, PROMPT + DECODE / 2, 1, 1))
}

/// Writes engine.svg beside engine.json.
pub fn render(folder: &Path) -> Result<()> {
    let (numbers, drawn) = (folder.join("engine.json"), folder.join("engine.svg"));
    let text = std::fs::read(&numbers).with_context(|| numbers.display().to_string())?;
    let rows = serde_json::from_slice(&text).with_context(|| {
        format!("{} has other rows than scripts/benchmarks/run.py writes", numbers.display())
    })?;
    std::fs::write(&drawn, chart::svg(rows)).with_context(|| drawn.display().to_string())
}
