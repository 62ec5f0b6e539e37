//! What the batcher spares: prompts that begin like another's, and passes for tokens that were foreseen, by the text itself or by a draft model. Each is measured beside the same batcher
//! without, taking turns, and must give the same answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use assay_core::request::Sampling;
use assay_engine::artifact::Artifact;
use assay_engine::batch::{Answer, BatchLimits, Batcher, Draft, Event, Job, Spared};
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;
use serde_json::{Value, json};

use super::{milliseconds, tokens};
use crate::commands::up::EngineArgs;

/// Tokens that a request has of its own, after those that it shares.
const OWN: u32 = 16;
/// Tokens of a prompt whose answer is measured.
const PROMPT: u32 = 128;
/// So many tokens are drawn from, where proposals are mostly wrong.
const FEW: usize = 4;
/// The largest bias: whatever a model prefers, only tokens that have it are chosen.
const BIAS_MICRO: i32 = 100_000_000;

/// Nothing is spared.
pub const PLAIN: BatchLimits = BatchLimits {
    running_max: 64,
    waiting_max: 256,
    cache_bytes_max: 2 << 30,
    prefix_bytes_max: 0,
    rows_max: 256,
    draft_rows_max: 0,
};

struct Measured {
    answer: Answer,
    /// From the request to the first token.
    first: Duration,
    /// From there to the end.
    rest: Duration,
}

struct Measurement<'a> {
    artifact: &'a Arc<Artifact>,
    tokenizer: &'a Tokenizer,
    kernel: Kernel,
    pool: Arc<Pool>,
}

impl Measurement<'_> {
    /// A batcher whose answers end by their length alone.
    fn batcher(&self, limits: BatchLimits) -> Batcher<'_> {
        let executor = Executor::new(self.artifact.shared(), self.kernel, Arc::clone(&self.pool));
        Batcher::new(executor, self.tokenizer, Vec::new(), limits)
    }

    fn answer(
        &self,
        batcher: &mut Batcher<'_>,
        prompt: &[u32],
        max_tokens: u32,
        sampling: &Sampling,
    ) -> Result<Measured> {
        batcher.submit(Job {
            id: 0,
            prompt: prompt.to_vec(),
            sampling: sampling.clone(),
            seed: [1; 32],
            max_tokens,
            stop: vec![],
            guide: None,
            logprobs: None,
        })?;
        let (started, mut first, mut done) = (Instant::now(), None, None);
        while !batcher.is_idle() {
            batcher.step(&mut |_, event| match event {
                Event::Started { .. } => first = Some(Instant::now()),
                Event::Done(answer) => done = Some((*answer, Instant::now())),
                _ => {}
            });
        }
        let (Some(first), Some((answer, ended))) = (first, done) else { bail!("an answer did not end") };
        Ok(Measured { answer, first: first - started, rest: ended - first })
    }
}

/// Ways to choose, and what they make of a model with random weights: the best case, the worst, one in which there is nothing to propose, and what the model
/// says by itself.
fn texts(ids: &[u32]) -> [(&'static str, Sampling); 4] {
    let among = |count: usize| ids.iter().take(count).map(|id| (*id, BIAS_MICRO)).collect();
    let warm = Sampling { temperature_micro: 1_000_000, ..Sampling::GREEDY };
    [
        ("always the same", Sampling { bias: among(1), ..Sampling::GREEDY }),
        ("few words at random", Sampling { bias: among(FEW), ..warm.clone() }),
        ("sampled", warm),
        ("greedy", Sampling::GREEDY),
    ]
}

pub fn run(
    artifact: &Arc<Artifact>,
    draft: Option<&Draft>,
    engine: EngineArgs,
    (shared, answer): (u32, u32),
    rounds: usize,
    print: &mut dyn FnMut(Value),
) -> Result<()> {
    let program = artifact.program().program();
    let longest = (shared + OWN + 1).max(PROMPT + answer);
    ensure!(
        longest <= program.context,
        "{longest} tokens do not fit the model's window of {}",
        program.context
    );
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
    let (kernel, pool) = (Kernel::from_environment()?, engine.pool());
    let threads = pool.threads();
    let m = Measurement { artifact, tokenizer: &tokenizer, kernel, pool };
    let about = |mut line: Value| {
        line["model"] = artifact.provenance().name.clone().into();
        line["threads"] = threads.into();
        line["kernel"] = kernel.name().into();
        line
    };

    let all = tokens((shared + OWN * (rounds as u32 + 1)) as usize, program.vocabulary);
    let (beginning, own) = all.split_at(shared as usize);
    let prompts: Vec<Vec<u32>> = own.chunks(OWN as usize).map(|own| [beginning, own].concat()).collect();
    let prefix_bytes_max = BatchLimits::default().prefix_bytes_max;
    let (mut plain, mut sparing) = (m.batcher(PLAIN), m.batcher(BatchLimits { prefix_bytes_max, ..PLAIN }));
    for (i, prompt) in prompts.iter().enumerate() {
        let without = m.answer(&mut plain, prompt, 1, &Sampling::GREEDY)?;
        let with = m.answer(&mut sparing, prompt, 1, &Sampling::GREEDY)?;
        ensure!(
            without.answer == with.answer,
            "an answer is another after tokens that were not executed again"
        );
        // The first one is what the others go on after.
        if i > 0 {
            print(about(json!({"measures": "prefix", "shared_tokens": shared, "own_tokens": OWN,
                "first_token_ms": milliseconds(without.first), "first_token_shared_ms": milliseconds(with.first),
                "ratio": without.first.as_secs_f64() / with.first.as_secs_f64()})));
        }
    }

    let prompt = tokens(PROMPT as usize, program.vocabulary);
    let draft_rows_max = BatchLimits::default().draft_rows_max;
    for (text, sampling) in texts(&prompt) {
        let (mut plain, mut sparing) = (m.batcher(PLAIN), m.batcher(BatchLimits { draft_rows_max, ..PLAIN }));
        if let Some(draft) = draft {
            sparing = sparing.drafting(draft.executor(kernel, Arc::clone(&m.pool)));
        }
        let mut before = Spared::default();
        for _ in 0..rounds {
            let without = m.answer(&mut plain, &prompt, answer, &sampling)?;
            let with = m.answer(&mut sparing, &prompt, answer, &sampling)?;
            ensure!(without.answer == with.answer, "an answer is another with tokens that were foreseen");
            let now = sparing.spared();
            let speed = |m: &Measured| f64::from(answer - 1) / m.rest.as_secs_f64();
            print(about(json!({"measures": "drafts", "text": text, "tokens": answer,
                "drafted": now.drafted - before.drafted, "chosen": now.drafts_chosen - before.drafts_chosen,
                "drafted_by_model": now.model_drafted - before.model_drafted,
                "chosen_by_model": now.model_drafts_chosen - before.model_drafts_chosen,
                "tokens_per_s": speed(&without), "tokens_per_s_drafted": speed(&with),
                "ratio": without.rest.as_secs_f64() / with.rest.as_secs_f64()})));
            before = now;
        }
    }
    Ok(())
}
