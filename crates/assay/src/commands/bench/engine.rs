//! Speed of prefill and decode, of the engine alone.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use assay_engine::artifact::Artifact;
use assay_engine::batch::BatchLimits;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants as _;
use assay_engine::forward::{Executor, Segment};
use assay_engine::kernel::Kernel;
use serde_json::{Value, json};

use super::tokens;
use crate::commands::up::EngineArgs;

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
    let mut executor = Executor::new(artifact.shared(), Kernel::from_environment()?, pool);
    let tokens = tokens(PROMPT, program.vocabulary);
    for _ in 0..rounds {
        let mut sequence = Sequence::new(artifact.program().caches(), PROMPT + DECODE);
        let started = Instant::now();
        let mut left = PROMPT;
        for chunk in tokens.chunks(BatchLimits::default().rows_max) {
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
        print(
            json!({"model": artifact.provenance().name, "threads": threads, "kernel": executor.kernel().name(),
                     "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}),
        );
    }
    Ok(())
}
