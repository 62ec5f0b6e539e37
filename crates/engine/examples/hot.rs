//! Fixed amounts of every hot loop, for whoever counts instructions: `.ci/instructions` runs this under callgrind and compares what
//! it counted with what is recorded.
//!
//! [`end_of_interval`] is called where an interval ends, and callgrind writes down what it has counted since the call before. At the end
//! the names of all intervals are printed in order, a line each; what is between two measured loops has an empty name. One thread, one
//! sequence of numbers: a second run counts the same. The kernel is the one that `ASSAY_KERNEL` names, or the fastest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use assay_core::digest::DigestBuilder;
use assay_core::request::Sampling;
use assay_engine::artifact::Artifact;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants as _;
use assay_engine::forward::{Companion, Executor, Segment, Values};
use assay_engine::kernel::wide::{Halves, WEIGH_MAX};
use assay_engine::kernel::{Kernel, KernelError, keccak};
use assay_engine::pool::Pool;
use assay_engine::program::{Op, Program, ValueId};
use assay_engine::semantics::adjust::History;

/// The built-in model.
const MODEL: &[u8] = include_bytes!("../../../models/stories-1.7m.assay");
/// Tokens before the measured ones, so that attention has something to attend to.
const BEFORE: usize = 128;
/// Tokens of a measured prefill.
const PREFILL: usize = 64;
/// Passes of one token.
const DECODE: usize = 4;
/// Tokens of which row scales alone are applied.
const SCALED: usize = 16;
/// Numbers of a hidden vector that is hashed, and of a row that is weighed.
const WIDTH: usize = 768;
/// Bytes of a run that is hashed as a model's are.
const MODEL_BYTES: usize = 1 << 16;
/// Bytes of one leaf of it.
const LEAF_BYTES: usize = 256;

static ENDED: AtomicUsize = AtomicUsize::new(0);

/// Where callgrind writes down what it has counted. (It finds the function by its name, and the counter keeps it from being another's.)
#[inline(never)]
fn end_of_interval() {
    ENDED.fetch_add(1, Relaxed);
}

/// The names of the intervals that have ended.
#[derive(Default)]
struct Intervals(Vec<String>);

impl Intervals {
    /// Ends an interval that is nobody's.
    fn start(&mut self) {
        self.0.push(String::new());
        end_of_interval();
    }

    /// Ends an interval of the loop called `name`.
    fn stop(&mut self, name: &str) {
        end_of_interval();
        self.0.push(name.to_owned());
    }

    fn count<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        self.start();
        let made = std::hint::black_box(work());
        self.stop(name);
        made
    }
}

/// Counts every operation of a program by its kind.
struct Operations<'a> {
    phase: &'static str,
    program: &'a Program,
    intervals: &'a mut Intervals,
}

impl Companion for Operations<'_> {
    fn make(&mut self, _: usize, _: &mut Values<'_>) -> bool {
        self.intervals.start();
        false
    }

    fn made(&mut self, op: usize, _: &Values<'_>) {
        // The name of the interval is made after its end.
        end_of_interval();
        self.intervals.0.push(format!("{}: {}", self.phase, kind(&self.program.ops[op])));
    }
}

/// Makes every product of given sums, which leaves their row scales to be applied.
struct RowScales<'a> {
    program: &'a Program,
    intervals: &'a mut Intervals,
}

impl Companion for RowScales<'_> {
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let Op::MatMul { weights, x } = self.program.ops[op] else { return false };
        self.intervals.count("row scales", || {
            let put = &mut |row: usize, _: &[i8], sums: &mut [i32]| sums.fill(77 + 1000 * row as i32);
            values.put_product(op as ValueId, weights, x, put);
        });
        true
    }
}

/// What an operation is called in the program.
fn kind(op: &Op) -> String {
    let all = format!("{op:?}");
    all.split_whitespace().next().unwrap_or_default().to_owned()
}

fn main() -> Result<(), KernelError> {
    let kernel = Kernel::from_environment()?;
    let mut intervals = Intervals::default();
    let logits = passes(kernel, &mut intervals);
    sampling(kernel, &logits, &mut intervals);
    hashing(&mut intervals);
    weighing(kernel, &mut intervals);
    intervals.start();
    assert_eq!(ENDED.load(Relaxed), intervals.0.len(), "every interval that ended has a name");
    intervals.0.iter().for_each(|name| println!("{name}"));
    Ok(())
}

/// A prompt in one pass, then tokens one by one, and the logits of the last.
fn passes(kernel: Kernel, intervals: &mut Intervals) -> Vec<i32> {
    let positions = BEFORE + PREFILL + DECODE + SCALED;
    let model = Arc::new(Artifact::from_bytes("stories-1.7m", MODEL).expect("the built-in model is valid"));
    let program = model.program().program();
    let mut sequence = Sequence::new(model.program().caches(), positions);
    let tokens: Vec<u32> = (0..positions as u32).map(|i| i * 7919 % program.vocabulary).collect();
    let (before, rest) = tokens.split_at(BEFORE);
    let (prefill, rest) = rest.split_at(PREFILL);
    let (decode, scaled) = rest.split_at(DECODE);
    let mut executor = Executor::new(model.shared(), kernel, Arc::new(Pool::new(1)));
    let mut pass = |tokens: &[u32], companion: &mut dyn Companion| {
        let logits_from = tokens.len() - 1;
        let segment = Segment { sequence: &mut sequence, tokens, logits_from };
        executor.forward_beside(&mut [segment], companion).logits(0).to_vec()
    };
    struct Nobody;
    impl Companion for Nobody {}
    pass(before, &mut Nobody);
    pass(prefill, &mut Operations { phase: "prefill", program, intervals });
    let mut logits = Vec::new();
    for token in decode {
        logits = pass(&[*token], &mut Operations { phase: "decode", program, intervals });
    }
    pass(scaled, &mut RowScales { program, intervals });
    logits
}

fn sampling(kernel: Kernel, logits: &[i32], intervals: &mut Intervals) {
    let warm = Sampling { temperature_micro: 700_000, ..Sampling::GREEDY };
    let cut = Sampling { top_k: 40, top_p_micro: 950_000, ..warm.clone() };
    let history = History::new(&[3, 7, 7]);
    for (name, sampling) in [("greedy", Sampling::GREEDY), ("temperature", warm), ("top-k and top-p", cut)] {
        intervals.count(&format!("sampler: {name}"), || {
            (0..4).map(|at| kernel.choose(logits, &history, None, &sampling, &[1; 32], at)).sum::<u32>()
        });
    }
}

fn hashing(intervals: &mut Intervals) {
    let hidden: Vec<i8> = (0..WIDTH).map(|i| (i * 31) as u8 as i8).collect();
    intervals.count("digests of hidden vectors", || {
        let mut digests = DigestBuilder::new();
        (0..PREFILL as u32).for_each(|position| digests.push(position, &hidden, 40_000, -3));
        digests.finish()
    });
    let bytes: Vec<u8> = (0..MODEL_BYTES).map(|i| (i * i % 251) as u8).collect();
    intervals.count("hashes of a model", || keccak::root(keccak::leaves(&bytes, LEAF_BYTES)));
}

/// What light audits do with products and weights.
fn weighing(kernel: Kernel, intervals: &mut Intervals) {
    let (columns, rows) = (WIDTH, PREFILL);
    let number = |i: usize| (i * 7919 % WEIGH_MAX as usize) as i32;
    let numbers: Vec<i32> = (0..rows * columns).map(number).collect();
    let bytes: Vec<i8> = numbers.iter().map(|n| *n as i8).collect();
    let (low, high): (Vec<i32>, Vec<i32>) = (0..columns).map(|i| (number(i + 1), number(i + 2))).unzip();
    let all = Halves { low: &low, high: &high };
    let each = Halves { low: &low[..rows], high: &high[..rows] };
    intervals
        .count("weigh", || numbers.chunks_exact(columns).map(|row| kernel.weigh(row, all).0).sum::<i128>());
    intervals.count("weigh bytes", || {
        bytes.chunks_exact(columns).map(|row| kernel.weigh_bytes(row, all).0).sum::<i64>()
    });
    intervals.count("weigh rows", || kernel.weigh_rows(&numbers, columns, each));
}
