//! Micro-steps: how one number of a trace follows from others.
//!
//! Every operation of a program, and the choice of a token, is cut into *parts* (tables of numbers, see
//! [`crate::trace::part`]) so that each number follows from numbers before it by one of two rules:
//!
//! - a *map*: a few numbers in, one number out (a table look-up, one elementwise result, one score);
//! - a *fold*: a run of at most 256 inputs at a time goes into an accumulator (a dot product, a sum, a maximum), which starts
//!   at a constant and in the end is the number.
//!
//! A map, or one run of a fold, is a micro-step: what a contract computes. Inputs come from a [`Source`]. The provider
//! evaluates over its trace, which tells what to open; the referee evaluates the same code over what was opened; so both
//! speak of the same numbers by construction. The integers are those of [`assay_engine::semantics`]; a test compares every
//! number of every part with the reference.
//!
//! "Before" is the order of blocks, then operations, parts and leaves. It is what makes the first difference between two
//! traces decide who is wrong.

use assay_core::request::Sampling;
use assay_engine::program::{Op, Reach, Shape as TensorShape, TensorId, ValueId, ValueType};

use crate::trace::part::{Layout, Shape, Width};

mod operations;
mod sampling;

/// Inputs of one run of a fold over numbers.
pub const RUN: u32 = 256;
/// Positions of one run of a fold over attended positions: those of a leaf by columns.
pub const ATTENDED_RUN: u32 = 32;
/// Positions of one run of a fold over token ids: those of a leaf of a transcript.
pub const IDS_RUN: u32 = 64;
/// Bits of a candidate's key: its likelihood above its id.
pub const KEY_BITS: u32 = 52;
/// Where a maximum starts.
pub const LOWEST: i64 = i64::MIN;

/// A number of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// Operation of the program; [`adjust`] and [`choose`] stand for the two halves of the choice of a token.
    pub op: ValueId,
    /// Part of the operation.
    pub part: u8,
    /// Position of the token.
    pub position: u32,
    /// Column of the part.
    pub column: u32,
}

/// The step that changes logits: penalties, biases, mask.
pub fn adjust(program_ops: usize) -> ValueId {
    ValueId::try_from(program_ops).unwrap_or(ValueId::MAX)
}

/// The step that chooses the token.
pub fn choose(program_ops: usize) -> ValueId {
    adjust(program_ops).saturating_add(1)
}

/// What a part holds, and how its numbers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSpec {
    /// For people.
    pub name: &'static str,
    /// Numbers of a row; what [`Columns`] says where it depends on the block.
    pub columns: Columns,
    /// Bytes of a number.
    pub width: Width,
    /// How numbers become leaves.
    pub layout: Layout,
}

impl PartSpec {
    /// The shape in a block that ends before position `end` and has so many rows for the step.
    pub fn shape(&self, rows: usize, end: u32) -> Shape {
        Shape { rows, columns: self.columns.count(end), width: self.width, layout: self.layout }
    }
}

/// Numbers of a row of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// So many.
    Fixed(u32),
    /// So many for each position up to the end of the block.
    PerPosition(u32),
}

impl Columns {
    /// For a block that ends before position `end`.
    pub fn count(self, end: u32) -> usize {
        match self {
            Columns::Fixed(n) => n as usize,
            Columns::PerPosition(n) => n as usize * end as usize,
        }
    }
}

/// How a number follows from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It is taken as it is: which tokens a guide leaves is outside what a contract computes.
    Given,
    /// By [`map`].
    Map,
    /// By [`fold`] over so many runs, from `from`.
    Fold {
        /// Runs.
        runs: u32,
        /// Accumulator before the first.
        from: i64,
    },
}

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The request's parameters.
    pub sampling: Sampling,
    /// Whether a guide leaves only some tokens.
    pub guided: bool,
    /// Of the sampler.
    pub seed: [u8; 32],
}

/// What holds for the whole trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Operations of the program.
    pub ops: usize,
    /// Number of token ids.
    pub vocabulary: u32,
    /// Fraction bits of embeddings.
    pub residual_frac: u8,
    /// The logits, for a program that makes tokens.
    pub logits: Option<ValueId>,
    /// Positions executed.
    pub positions: u32,
    /// Tokens of the prompt.
    pub prompt: u32,
}

impl Extent {
    /// End of the block that a position lies in.
    pub fn block_end(&self, position: u32) -> u32 {
        match self.logits {
            None => self.positions,
            Some(_) => {
                (position / ATTENDED_RUN).saturating_add(1).saturating_mul(ATTENDED_RUN).min(self.positions)
            }
        }
    }
}

/// Where a micro-step reads. `None`: it cannot be read here.
pub trait Source {
    /// What holds for the whole trace.
    fn extent(&self) -> Extent;
    /// How tokens are chosen.
    fn choice(&mut self) -> Option<&Choice>;
    /// An operation and the type of its value.
    fn op(&mut self, op: ValueId) -> Option<(Op, ValueType)>;
    /// The shape of a constant.
    fn shape(&mut self, tensor: TensorId) -> Option<TensorShape>;
    /// A number of the trace that stands before the one being evaluated.
    fn cell(&mut self, cell: Cell) -> Option<i64>;
    /// A weight.
    fn weight(&mut self, tensor: TensorId, row: u32, col: u32) -> Option<i8>;
    /// The scale of a row of weights.
    fn row_scale(&mut self, tensor: TensorId, row: u32) -> Option<u16>;
    /// An entry of a table, a vector or a rotary table.
    fn entry(&mut self, tensor: TensorId, index: u32) -> Option<i32>;
    /// The token read at a position.
    fn token(&mut self, position: u32) -> Option<u32>;
}

/// The parts of an operation of the program; `attended` when attention reads it as its values.
pub fn parts(op: &Op, made: ValueType, attended: bool) -> Vec<PartSpec> {
    operations::parts(op, made, attended)
}

/// The parts of [`adjust`] and of [`choose`].
pub fn choice_parts(choice: &Choice, vocabulary: u32) -> [Vec<PartSpec>; 2] {
    sampling::parts(choice, vocabulary)
}

/// The parts of any step.
pub fn parts_of(src: &mut impl Source, op: ValueId, attended: bool) -> Option<Vec<PartSpec>> {
    let extent = src.extent();
    if usize::from(op) < extent.ops {
        let (op, made) = src.op(op)?;
        return Some(parts(&op, made, attended));
    }
    let [adjusting, choosing] = choice_parts(src.choice()?, extent.vocabulary);
    if op == adjust(extent.ops) { Some(adjusting) } else { (op == choose(extent.ops)).then_some(choosing) }
}

/// How a number follows. `None` for what is no number of the trace, or cannot be read here.
pub fn rule(src: &mut impl Source, cell: Cell) -> Option<Rule> {
    match usize::from(cell.op) < src.extent().ops {
        true => operations::rule(src, cell),
        false => sampling::rule(src, cell),
    }
}

/// A number that follows by [`Rule::Map`].
pub fn map(src: &mut impl Source, cell: Cell) -> Option<i64> {
    match usize::from(cell.op) < src.extent().ops {
        true => operations::map(src, cell),
        false => sampling::map(src, cell),
    }
}

/// The accumulator after run `run` of a number that follows by [`Rule::Fold`], from that before it.
pub fn fold(src: &mut impl Source, cell: Cell, run: u32, before: i64) -> Option<i64> {
    match usize::from(cell.op) < src.extent().ops {
        true => operations::fold(src, cell, run, before),
        false => sampling::fold(src, cell, run, before),
    }
}

/// A number from scratch; `None` for what is [`Rule::Given`] or cannot be read here.
pub fn evaluate(src: &mut impl Source, cell: Cell) -> Option<i64> {
    match rule(src, cell)? {
        Rule::Given => None,
        Rule::Map => map(src, cell),
        Rule::Fold { runs, from } => (0..runs).try_fold(from, |acc, run| fold(src, cell, run, acc)),
    }
}

/// The accumulators after every run of a number that follows by a fold.
pub fn partials(src: &mut impl Source, cell: Cell) -> Option<Vec<i64>> {
    let Rule::Fold { runs, from } = rule(src, cell)? else { return None };
    let mut acc = from;
    let mut next = |run| {
        acc = fold(src, cell, run, acc)?;
        Some(acc)
    };
    (0..runs).map(&mut next).collect()
}

/// The positions that a token sees.
pub(crate) fn seen(extent: &Extent, reach: Reach, position: u32) -> std::ops::Range<u32> {
    match reach {
        Reach::Past => 0..position.saturating_add(1),
        Reach::Window(n) => position.saturating_add(1).saturating_sub(n)..position.saturating_add(1),
        Reach::All => 0..extent.positions,
    }
}

/// The part of `0..len` that run `run` of `size` covers.
fn run_of(run: u32, size: u32, len: u32) -> std::ops::Range<u32> {
    let from = run.saturating_mul(size).min(len);
    from..from.saturating_add(size).min(len)
}
