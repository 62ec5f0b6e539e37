//! What this machine computes, in lines to compare with those of another: for the reference and every kernel that runs
//! here, the conformance vectors, and a greedy answer of the built-in model with the digests of its execution.
//!
//! A line is an engine's name, what was computed, and the result. But for the name, all engines of all machines must print
//! the same lines; `.ci/cross` sees to it. In WebAssembly the lines are the bytes at `report_start`, `report_len` of them.

use std::io::{self, Write};
use std::sync::Arc;

use assay_core::digest::{DigestBuilder, ExecutionDigests};
use assay_engine::artifact::{Artifact, Profile};
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants as _;
use assay_engine::forward::{Executor, Segment};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::reference::Reference;
use assay_engine::semantics::sample::argmax;
use assay_engine::semantics::scale::Scale;
use assay_engine::vectors;

/// The built-in model.
const MODEL: &[u8] = include_bytes!("../../../models/stories-1.7m.assay");
/// Any ids below the vocabulary: enough for every block of a kernel.
const PROMPT: std::ops::Range<u32> = 1..24;
/// Ids of the answer.
const ANSWER_TOKENS: usize = 64;

fn main() -> io::Result<()> {
    report(&mut io::stdout().lock())
}

fn report(out: &mut dyn Write) -> io::Result<()> {
    let model = Arc::new(Artifact::from_bytes("stories-1.7m", MODEL).expect("the built-in model is valid"));
    for kernel in std::iter::once(None).chain(Kernel::available().into_iter().map(Some)) {
        let name = kernel.map_or("reference", |k| k.name());
        for profile in Profile::ALL {
            for v in vectors::compute(profile, kernel) {
                writeln!(out, "{name} {} {} {}", profile.name(), v.name, v.hash)?;
            }
        }
        let (ids, digests) = match kernel {
            None => answer_by_reference(&model),
            Some(kernel) => answer(&model, kernel),
        };
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        let digests: Vec<String> = digests.0.iter().map(ToString::to_string).collect();
        writeln!(out, "{name} ids {}", ids.join(","))?;
        writeln!(out, "{name} digests {}", digests.join(","))?;
    }
    Ok(())
}

/// The prompt in one pass, then a pass per id.
fn answer(model: &Arc<Artifact>, kernel: Kernel) -> (Vec<u32>, ExecutionDigests) {
    let mut executor = Executor::new(model.shared(), kernel, Arc::new(Pool::new(2)));
    let mut sequence = Sequence::new(model.program().caches(), PROMPT.len() + ANSWER_TOKENS);
    let mut answer = Answer::default();
    let mut next: Vec<u32> = PROMPT.collect();
    while answer.ids.len() < ANSWER_TOKENS {
        let segment = Segment { sequence: &mut sequence, tokens: &next, logits_from: next.len() - 1 };
        let output = executor.forward(&mut [segment]);
        (0..next.len()).for_each(|row| answer.hidden(output.hidden(row)));
        next = vec![answer.choose(output.logits(0))];
    }
    (answer.ids, answer.digests.finish())
}

/// Token by token.
fn answer_by_reference(model: &Artifact) -> (Vec<u32>, ExecutionDigests) {
    let program = model.program().program();
    let mut reference = Reference::new(model);
    let mut answer = Answer::default();
    let mut prompt = PROMPT;
    let mut next = prompt.next();
    while let Some(token) = next {
        let values = reference.step(token, true);
        let (numbers, scales) = values[usize::from(program.tokens().0)].int8();
        answer.hidden((numbers, scales[0]));
        next = prompt.next().or_else(|| {
            let chosen = answer.choose(values[usize::from(program.tokens().1)].integers().0);
            (answer.ids.len() < ANSWER_TOKENS).then_some(chosen)
        });
    }
    (answer.ids, answer.digests.finish())
}

#[derive(Default)]
struct Answer {
    ids: Vec<u32>,
    digests: DigestBuilder,
    position: u32,
}

impl Answer {
    fn hidden(&mut self, (numbers, scale): (&[i8], Scale)) {
        self.digests.push(self.position, numbers, scale.mantissa, scale.exponent);
        self.position += 1;
    }

    fn choose(&mut self, logits: &[i32]) -> u32 {
        self.ids.push(argmax(logits));
        self.ids[self.ids.len() - 1]
    }
}

#[cfg(target_family = "wasm")]
mod exports {
    use std::sync::LazyLock;

    static REPORT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut lines = Vec::new();
        super::report(&mut lines).expect("memory takes text");
        lines
    });

    // SAFETY: no other symbol has this name.
    #[unsafe(no_mangle)]
    extern "C" fn report_start() -> *const u8 {
        REPORT.as_ptr()
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn report_len() -> usize {
        REPORT.len()
    }
}
