//! The batch check: every product of the trace with public coins, everything else executed.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Result, bail};
use assay_core::id::Hash;
use assay_engine::constants::Constants;
use assay_engine::forward::{Companion, Executor, Values, products};
use assay_engine::import::synthetic::Size;
use assay_engine::import::synthetic::memory::InMemory;
use assay_engine::pool::Pool;
use assay_engine::program::{Op, Shape, TensorId, ValueId};
use assay_verify::batch::{Challenge, MULTIPLIED_ROWS, Trace, check_by_batch};
use assay_verify::freivalds::SOUNDNESS_BITS;

use super::answer::Answer;
use super::{Measured, cache_bytes, model_bytes, transcript_bytes};
use crate::commands::bench::verification::Setup;
use crate::commands::bench::verification::clock::core_ms;
use crate::commands::bench::verification::execution::{Base, CHOICE, executor};
use crate::commands::bench::verification::parts::{Laps, Parts, kind};
use crate::commands::bench::verification::row::Tier;
use crate::commands::bench::verification::shapes::Model;

/// A trace of more bytes is cut to fewer layers, at least one.
const TRACE_BYTES: u64 = 600_000_000;

/// What a check of a model of some layers took, for a position.
#[derive(Clone, Default)]
struct Run {
    parts: Parts,
    trace_bytes: f64,
    prover: f64,
}

impl Run {
    /// What more of the same layers would make of it.
    fn extended(&self, none: &Run, factor: f64) -> Run {
        let line = |some: f64, none: f64| none + (some - none) * factor;
        Run {
            parts: self.parts.beyond(&none.parts, factor).plus(&none.parts),
            trace_bytes: line(self.trace_bytes, none.trace_bytes),
            prover: line(self.prover, none.prover),
        }
    }
}

/// Measures the tier.
pub fn measure(model: &Model, t: u32, setup: &Setup, base: &Base) -> Result<Measured> {
    let size = model.size;
    let affordable = TRACE_BYTES / (layer_bytes(size) * u64::from(t));
    let layers = size.layers.min(u32::try_from(affordable).unwrap_or(u32::MAX)).max(1);
    let run = |part: &Arc<InMemory>| run(part, t, setup, base);
    let (some, none) = (run(&Arc::new(model.made.with_layers(layers)))?, run(&model.none)?);
    let all = f64::from(size.layers);
    let whole = some.extended(&none, all / f64::from(layers));
    let from_one_layer = match layers == size.layers && layers > 1 {
        true => Some(run(model.single())?.extended(&none, all).parts.total()),
        false => None,
    };
    let trace_bytes = whole.trace_bytes * f64::from(t);
    Ok(Measured {
        tier: Tier::Batch,
        parts: whole.parts,
        from_one_layer,
        layers,
        prover_core_ms_per_token: whole.prover,
        bytes_per_token: whole.trace_bytes + transcript_bytes(t),
        key_bytes: model_bytes(model),
        memory_bytes: model_bytes(model) + trace_bytes + cache_bytes(model, t) * all,
        checked: t,
        soundness_bits: 3 * SOUNDNESS_BITS,
    })
}

/// Bytes of a position's inputs and accumulators in one layer.
fn layer_bytes(size: &Size) -> u64 {
    let [d, h] = [size.dim, size.hidden].map(u64::from);
    let kv = d / u64::from(size.heads) * u64::from(size.kv_heads);
    4 * (d + 2 * kv + d + 2 * h + d) + 3 * d + h
}

fn run(model: &Arc<InMemory>, t: u32, setup: &Setup, base: &Base) -> Result<Run> {
    let mut executor = executor(model, setup.kernel);
    let answer = Answer::new(&mut executor, t)?;
    let pool = Pool::new(1);
    let (mut trace, mut root) = (None, Hash::ZERO);
    let tracing = core_ms(|| trace = Some(Trace::of(&mut executor, &answer.fed)));
    let Some(trace) = trace else { bail!("an execution has a trace") };
    let committing = core_ms(|| root = trace.root(&pool));
    let challenge = Challenge::new(Hash::from_bytes([9; 32]), root);
    let program = model.program().program();
    let subject = answer.subject(program);
    let (mut rounds, mut bytes) = (vec![], 0);
    for _ in 0..setup.rounds {
        let mut audit = None;
        let all = core_ms(|| {
            audit = Some(check_by_batch(&answer.record, &subject, &mut executor, &trace, &challenge));
        });
        let Some(audit) = audit else { bail!("a check has a verdict") };
        if !audit.verdict.holds {
            bail!("an honest trace does not hold: {:?}", audit.verdict);
        }
        bytes = audit.cost.bytes;
        let hashing = core_ms(|| trace.root(&pool));
        let judging = core_ms(|| trace.wrong_product(model.as_ref(), setup.kernel, &pool, &challenge));
        let weighing = weights(model, setup, &pool);
        let round = Parts::of("hashing the trace", hashing)
            .plus(&Parts::of("weights", weighing))
            .plus(&Parts::of("combining rows", (judging - weighing).max(0.0)))
            .plus(&Parts::of("execution", (all - hashing - judging).max(0.0)));
        rounds.push(round);
    }
    let mut parts = Parts::median(&rounds);
    let all = parts.take("execution");
    let inside = without_products(&mut executor, &answer, trace);
    // The choice is of biased logits: the usual one costs something else.
    let choices = f64::from(t / 2 + 1);
    let mut execution = inside.scaled_to((all - choices * base.choice.biased).max(0.0));
    execution.add(CHOICE, choices * base.choice.plain);
    parts = parts.plus(&execution);
    let positions = f64::from(t);
    Ok(Run {
        parts: parts.times(1.0 / positions),
        trace_bytes: bytes as f64 / positions,
        prover: (tracing + committing) / positions,
    })
}

/// Multiplying every matrix with as many rows as the check does.
fn weights(model: &InMemory, setup: &Setup, pool: &Pool) -> f64 {
    let program = model.program().program();
    let multiplied = program.ops.iter().filter_map(|op| match op {
        Op::MatMul { weights, .. } => Some(*weights),
        _ => None,
    });
    let one = |t: TensorId| match program.tensors[usize::from(t)].shape {
        Shape::Matrix { cols, .. } => {
            let rows: Vec<i8> = (0..cols as usize * MULTIPLIED_ROWS).map(|i| (i * 89) as i8).collect();
            core_ms(|| products(setup.kernel, pool, &model.matrix(t), &rows))
        }
        _ => 0.0,
    };
    multiplied.map(one).sum()
}

/// What executing everything but the products consists of, the choices left out.
fn without_products(executor: &mut Executor, answer: &Answer, trace: Trace) -> Parts {
    let constants = Arc::clone(executor.constants());
    let laps = RefCell::new(Laps::new());
    let mut taking = Taking {
        constants: constants.as_ref(),
        laps: &laps,
        traced: trace.into_numbers().into_iter(),
        left: vec![],
    };
    taking.left = vec![None; constants.program().program().ops.len()];
    let fed = &answer.fed;
    executor.replay_beside(fed.tokens(), fed.choices_from() as usize, &mut taking, &mut |_| {});
    laps.into_inner().parts
}

/// Beside an executor: makes its products of a trace, and notes what each operation took.
struct Taking<'a> {
    constants: &'a dyn Constants,
    laps: &'a RefCell<Laps>,
    traced: std::vec::IntoIter<(Vec<i8>, Vec<i32>)>,
    /// Accumulators of each operation, and how many were taken.
    left: Vec<Option<(Vec<i32>, usize)>>,
}

impl Companion for Taking<'_> {
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let program = self.constants.program();
        let Op::MatMul { weights, x } = program.program().ops[op] else { return false };
        let traced = &mut self.traced;
        let (sums, taken) =
            self.left[op].get_or_insert_with(|| (traced.next().map(|t| t.1).unwrap_or_default(), 0));
        let count = values.rows() * program.matrix_shape(weights).0 as usize;
        let sums = &sums[*taken..*taken + count];
        values.put_product(op as ValueId, weights, x, &mut |row, _, out| {
            out.copy_from_slice(&sums[row * out.len()..(row + 1) * out.len()]);
        });
        *taken += count;
        true
    }

    fn made(&mut self, op: usize, _: &Values<'_>) {
        let program = self.constants.program().program();
        let name = match program.ops[op] {
            Op::MatMul { .. } => "taking products",
            _ => kind(program, op),
        };
        self.laps.borrow_mut().lap(name);
    }
}
