//! Walking an answer's execution: its blocks, and every part of one of them.
//!
//! A first pass gives the carries of all blocks, and keeps keys, values and hidden vectors; after it any block can be walked,
//! which gives all of its parts. Memory is the KV cache and one block.
//!
//! Numbers, scales and accumulators are the execution's own. Everything else of a part is evaluated by
//! [`crate::microstep`], but for attention's scores and sums, which are computed here over whole rows and are the same.

use std::collections::BTreeMap;

use assay_core::digest::{DIGEST_TOKENS, ExecutionDigests, block_digest};
use assay_core::id::Hash;
use assay_engine::constants::Constants;
use assay_engine::program::{Head, Op, Program, Shape as TensorShape, SoftCap, TensorId, ValueId, ValueType};
use assay_engine::reference::{Value, bend, score};
use assay_engine::replay::{Execution, Made};
use assay_engine::semantics::adjust::Mask;
use assay_engine::semantics::quantise::max_abs;
use assay_engine::semantics::scale::Scale;

use super::part::{Numbers, Part, Width};
use super::{block_positions, blocks, carry, operation, root};
use crate::microstep::{
    Cell, Choice, Extent, PartSpec, Source, adjust, choice_parts, choose, evaluate, parts, seen,
};

/// What was executed: the tokens of an answer's prompt and all of its output but the last, or those of a text.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The ids, in order of positions.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt: u32,
    /// How tokens are chosen; only for a program that makes tokens.
    pub choice: Choice,
    /// What a guide leaves, for each output token.
    pub masks: Vec<Mask>,
}

/// The parts of the operations that a block carries.
type Carried = BTreeMap<ValueId, Vec<Part>>;

/// An answer's execution, ready to be walked.
pub struct Trace<'a> {
    constants: &'a dyn Constants,
    subject: Subject,
    extent: Extent,
    carried: Vec<Carried>,
}

/// All parts of a block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its index.
    pub index: u32,
    /// Its positions.
    pub positions: std::ops::Range<u32>,
    /// The first of its positions that has logits.
    logits_from: u32,
    hidden: Option<ValueId>,
    parts: Vec<Vec<Part>>,
}

impl Block {
    /// Number of steps: the operations of the program, and for answers the two halves of the choice of a token.
    pub fn steps(&self) -> usize {
        self.parts.len()
    }

    /// The parts of a step.
    pub fn parts(&self, op: ValueId) -> Option<&[Part]> {
        self.parts.get(usize::from(op)).map(Vec::as_slice)
    }

    /// First position of a step's rows.
    pub fn first(&self, op: ValueId) -> u32 {
        match self.hidden {
            Some(hidden) if op > hidden => self.logits_from,
            _ => self.positions.start,
        }
    }

    /// The number of a cell, if it is in this block.
    pub fn get(&self, cell: Cell) -> Option<i64> {
        let part = self.parts.get(usize::from(cell.op))?.get(usize::from(cell.part))?;
        read(part, cell, self.first(cell.op))
    }

    /// Replaces a step's part: what a cheat would do.
    pub fn replace(&mut self, op: ValueId, part: u8, by: Part) {
        if let Some(p) = self.parts.get_mut(usize::from(op)).and_then(|p| p.get_mut(usize::from(part))) {
            *p = by;
        }
    }

    /// Commitments of all steps, in order.
    pub fn commitments(&self) -> Vec<Hash> {
        self.parts.iter().map(|p| commitment(p)).collect()
    }
}

/// Commitment of a step with these parts.
pub fn commitment(parts: &[Part]) -> Hash {
    let roots: Vec<Hash> = parts.iter().map(Part::root).collect();
    operation(&roots)
}

fn read(part: &Part, cell: Cell, first: u32) -> Option<i64> {
    let (row, column) = (cell.position.checked_sub(first)? as usize, cell.column as usize);
    let shape = part.shape();
    (row < shape.rows && column < shape.columns).then(|| part.get(row, column))
}

impl<'a> Trace<'a> {
    /// Executes `subject` with `execution`, which must execute `constants`' program, and keeps what blocks carry.
    ///
    /// # Panics
    /// As [`Execution::replay`]: callers check ids and lengths.
    pub fn new(constants: &'a dyn Constants, subject: Subject, execution: &mut dyn Execution) -> Trace<'a> {
        let program = constants.program().program();
        let positions = u32::try_from(subject.tokens.len()).unwrap_or(u32::MAX);
        let logits = match program.head {
            Head::Tokens { logits, .. } => Some(logits),
            Head::Vector { .. } => None,
        };
        let extent = Extent {
            ops: program.ops.len(),
            vocabulary: program.vocabulary,
            residual_frac: program.residual_frac,
            logits,
            positions,
            prompt: subject.prompt,
        };
        let mut trace = Trace { constants, subject, extent, carried: Vec::new() };
        let wanted = program.carried();
        let run = block_positions(program, positions, 0).len().max(1);
        // Logits are not carried: none are computed.
        let (tokens, none) = (trace.subject.tokens.clone(), positions as usize);
        let mut walker = Walker::new(&trace, 0);
        let mut all: Vec<Carried> = (0..blocks(program, positions)).map(|_| Carried::new()).collect();
        // What carried operations quantise, of the run being executed.
        let mut read: BTreeMap<ValueId, Vec<Value>> =
            wanted.iter().filter_map(|v| Some((quantised(program, *v)?.0, vec![]))).collect();
        execution.trace_runs(&tokens, 0..positions as usize, run, none, &mut |made| {
            if wanted.binary_search(&made.op).is_ok()
                && let Some((x, offset, len)) = quantised(program, made.op)
                && let Some(carried) = all.get_mut(made.first / run)
                && let Some(inputs) = read.get(&x)
            {
                let parts = walker.quantised(&made, |row| {
                    let (v, _) = inputs[row].integers();
                    &v[offset as usize..(offset + len) as usize]
                });
                carried.insert(made.op, parts);
            }
            if let Some(values) = read.get_mut(&made.op) {
                *values = made.values;
            }
        });
        trace.carried = all;
        trace
    }

    /// What was executed.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What holds for all of it.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The program's constants.
    pub fn constants(&self) -> &'a dyn Constants {
        self.constants
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.carried.len()).unwrap_or(u32::MAX)
    }

    /// The parts that a block carries of an operation.
    pub fn carried_parts(&self, block: u32, op: ValueId) -> Option<&[Part]> {
        self.carried.get(block as usize)?.get(&op).map(Vec::as_slice)
    }

    /// Replaces parts that a block carries: what a cheat would do.
    pub fn replace_carried(&mut self, block: u32, op: ValueId, parts: Vec<Part>) {
        if let Some(carried) = self.carried.get_mut(block as usize) {
            carried.insert(op, parts);
        }
    }

    /// Commitments of what a block carries, in order of operations.
    pub fn carried_commitments(&self, block: u32) -> Vec<Hash> {
        let carried = self.carried.get(block as usize);
        carried.into_iter().flatten().map(|(_, parts)| commitment(parts)).collect()
    }

    /// The carries of all blocks.
    pub fn carries(&self) -> Vec<Hash> {
        (0..self.blocks()).map(|b| carry(&self.carried_commitments(b))).collect()
    }

    /// The execution digests (semantics 8.3) of an answer's trace.
    pub fn digests(&self) -> ExecutionDigests {
        let Head::Tokens { hidden, .. } = self.constants.program().program().head else {
            return ExecutionDigests::default();
        };
        let digest = |b: u32| {
            let parts = self.carried_parts(b, hidden)?;
            let [_, scales, numbers] = parts else { return None };
            Some(block_digest(u64::from(b), &scales.root(), &numbers.root()))
        };
        ExecutionDigests((0..self.blocks()).filter_map(digest).collect())
    }

    /// The trace root.
    pub fn root(&self) -> Hash {
        root(&self.carries())
    }

    /// A number that stands in an earlier block.
    pub fn earlier(&self, cell: Cell) -> Option<i64> {
        let program = self.constants.program().program();
        let size = block_positions(program, self.extent.positions, 0).len().max(1);
        let block = cell.position as usize / size;
        let part = self.carried.get(block)?.get(&cell.op)?.get(usize::from(cell.part))?;
        read(part, cell, u32::try_from(block * size).ok()?)
    }

    /// Walks one block: executes up to its end and gives all its parts.
    ///
    /// # Panics
    /// As [`Trace::new`].
    pub fn block(&self, execution: &mut dyn Execution, block: u32) -> Block {
        let program = self.constants.program().program();
        let positions = block_positions(program, self.extent.positions, block);
        let range = positions.start as usize..positions.end as usize;
        let logits_from = self.subject.prompt.saturating_sub(1) as usize;
        let mut walker = Walker::new(self, block);
        execution.trace(&self.subject.tokens, range, logits_from, &mut |made| walker.take(&made));
        walker.finish()
    }
}

/// A block being walked: the parts so far.
struct Walker<'t, 'a> {
    trace: &'t Trace<'a>,
    block: Block,
    /// Parts of the step being made.
    open: Vec<Part>,
}

impl<'t, 'a> Walker<'t, 'a> {
    fn new(trace: &'t Trace<'a>, index: u32) -> Self {
        let program = trace.constants.program().program();
        let positions = block_positions(program, trace.extent.positions, index);
        let logits_from = positions.clone().start.max(trace.extent.prompt.saturating_sub(1));
        let hidden = match program.head {
            Head::Tokens { hidden, .. } => Some(hidden),
            Head::Vector { .. } => None,
        };
        let logits_from = logits_from.min(positions.end);
        Walker { trace, block: Block { index, positions, logits_from, hidden, parts: vec![] }, open: vec![] }
    }

    fn specs(&self, op: ValueId) -> Vec<PartSpec> {
        let checked = self.trace.constants.program();
        let program = checked.program();
        match program.ops.get(usize::from(op)) {
            Some(o) => parts(o, checked.value_type(op), program.is_attended(op)),
            None => {
                let [adjusting, choosing] = choice_parts(&self.trace.subject.choice, program.vocabulary);
                if op == adjust(program.ops.len()) { adjusting } else { choosing }
            }
        }
    }

    /// The parts of a quantised value from what the execution made, and the numbers that each row quantised.
    fn quantised<'v>(&mut self, made: &Made, input: impl Fn(usize) -> &'v [i32]) -> Vec<Part> {
        let (mut largest, mut scales, mut numbers) = (vec![], vec![], vec![]);
        for (row, value) in made.values.iter().enumerate() {
            let (q, s) = value.int8();
            numbers.extend_from_slice(q);
            scales.extend(s.iter().flat_map(|s| columns(*s)));
            let v = input(row);
            largest.extend(v.chunks_exact(v.len() / s.len()).map(|group| i64::from(max_abs(group))));
        }
        let all = [Numbers::Long(largest), Numbers::Word(scales), Numbers::Byte(numbers)];
        let specs = self.specs(made.op);
        specs.iter().zip(all).map(|(spec, numbers)| self.part(spec, made.values.len(), numbers)).collect()
    }

    fn part(&self, spec: &PartSpec, rows: usize, numbers: Numbers) -> Part {
        Part::new(rows, spec.columns.count(self.block.positions.end), spec.layout, numbers)
    }

    /// Adds the step that the execution made.
    fn take(&mut self, made: &Made) {
        let program = self.trace.constants.program().program();
        // Without a row that has logits, the execution skips what follows the hidden vector.
        while self.block.parts.len() < usize::from(made.op) {
            self.skip();
        }
        let specs = self.specs(made.op);
        let op = program.ops[usize::from(made.op)];
        let rows = made.values.len();
        for (part, spec) in specs.iter().enumerate() {
            let numbers = match (&op, spec.name) {
                (_, "numbers") => numbers(&made.values),
                (Op::MatMul { .. }, "accumulators") => Numbers::Word(made.accumulators.concat()),
                (Op::RmsNorm { .. }, "scale") => {
                    Numbers::Word(made.values.iter().flat_map(|v| columns(v.integers().1)).collect())
                }
                (Op::Quantise { .. }, "scales") => {
                    let scales = made.values.iter().flat_map(|v| v.int8().1);
                    Numbers::Word(scales.flat_map(|s| columns(*s)).collect())
                }
                (Op::Attend { .. }, "scores") => self.scores(&op, rows),
                (Op::Attend { .. }, "sums") => self.sums(&op, rows),
                _ => self.evaluated(made.op, part, spec, rows),
            };
            let part = self.part(spec, rows, numbers);
            self.open.push(part);
        }
        self.close();
    }

    /// Adds a step that no row of the block has.
    fn skip(&mut self) {
        let op = ValueId::try_from(self.block.parts.len()).unwrap_or(ValueId::MAX);
        for spec in self.specs(op) {
            let none = match spec.width {
                Width::Byte => Numbers::Byte(vec![]),
                Width::Word => Numbers::Word(vec![]),
                Width::Long => Numbers::Long(vec![]),
            };
            let part = self.part(&spec, 0, none);
            self.open.push(part);
        }
        self.close();
    }

    fn close(&mut self) {
        let made = std::mem::take(&mut self.open);
        self.block.parts.push(made);
    }

    /// The choice of tokens, and the block.
    fn finish(mut self) -> Block {
        let extent = self.trace.extent;
        while self.block.parts.len() < extent.ops {
            self.skip();
        }
        if extent.logits.is_some() {
            let rows = self.block.positions.end - self.block.logits_from;
            for op in [adjust(extent.ops), choose(extent.ops)] {
                for (part, spec) in self.specs(op).iter().enumerate() {
                    let numbers = match spec.name {
                        "mask" => self.masks(rows, spec),
                        _ => self.evaluated(op, part, spec, rows as usize),
                    };
                    let part = self.part(spec, rows as usize, numbers);
                    self.open.push(part);
                }
                self.close();
            }
        }
        self.block
    }

    fn masks(&self, rows: u32, spec: &PartSpec) -> Numbers {
        let columns = spec.columns.count(self.block.positions.end);
        let first = (self.block.logits_from + 1).saturating_sub(self.trace.extent.prompt);
        let masks = (first..first + rows).map(|i| self.trace.subject.masks.get(i as usize));
        Numbers::Byte(
            masks
                .flat_map(|mask| (0..columns).map(move |id| i8::from(mask.is_none_or(|m| m.allows(id)))))
                .collect(),
        )
    }

    /// A part by its rules.
    fn evaluated(&self, op: ValueId, part: usize, spec: &PartSpec, rows: usize) -> Numbers {
        let first = self.block.first(op);
        let part = u8::try_from(part).unwrap_or(u8::MAX);
        let columns = spec.columns.count(self.block.positions.end);
        // Columns of a part may follow from those before them: they are read while they are made.
        let mut growing = Growing { op, part, first, columns: Vec::with_capacity(columns) };
        for column in 0..columns {
            let column = u32::try_from(column).unwrap_or(u32::MAX);
            let one = |position| {
                let mut source = Reading { walker: self, growing: &growing };
                evaluate(&mut source, Cell { op, part, position, column })
                    .expect("an honest trace has every number that a rule reads")
            };
            let made = (first..).take(rows).map(one).collect();
            growing.columns.push(made);
        }
        let columns = growing.columns;
        let by_rows = (0..rows).flat_map(|r| columns.iter().map(move |c| c[r]));
        match spec.width {
            Width::Byte => Numbers::Byte(by_rows.map(|v| v as i8).collect()),
            Width::Word => Numbers::Word(by_rows.map(|v| v as i32).collect()),
            Width::Long => Numbers::Long(by_rows.collect()),
        }
    }

    /// Rows, first position and span of the block's attention.
    fn span(&self) -> usize {
        self.block.positions.end as usize
    }

    /// An int8 value's numbers and scales at a position of this or an earlier block.
    fn int8(&self, v: ValueId, position: u32) -> (&[i8], impl Fn(usize) -> Scale + '_) {
        let (parts, first) = match position.checked_sub(self.block.positions.start) {
            Some(_) => (self.block.parts[usize::from(v)].as_slice(), self.block.positions.start),
            None => {
                let size = DIGEST_TOKENS;
                let carried = &self.trace.carried[(position / size) as usize];
                (carried[&v].as_slice(), position / size * size)
            }
        };
        let row = (position - first) as usize;
        let scale = move |group: usize| {
            let [mantissa, exponent] = [0, 1].map(|i| parts[1].get(row, 2 * group + i));
            Scale { mantissa: mantissa as u16, exponent: exponent as i16 }
        };
        (parts[2].bytes(row), scale)
    }

    /// The scores of attention (semantics 6.6, steps 1 and 2) of all rows.
    fn scores(&self, op: &Op, rows: usize) -> Numbers {
        let Op::Attend { q, k, heads, kv_heads, head_dim, reach, scale, cap, .. } = *op else {
            unreachable!("scores are attention's")
        };
        let (n, span) = (head_dim as usize, self.span());
        let cap = cap.map(|c: SoftCap| (c.limit, self.trace.constants.table(c.table)));
        let mut out = vec![0i32; rows * heads as usize * span];
        for (position, row) in self.block.positions.clone().zip(out.chunks_exact_mut(heads as usize * span)) {
            let (query, query_scale) = self.int8(q, position);
            for j in seen(&self.trace.extent, reach, position) {
                let (key, key_scale) = self.int8(k, j);
                for h in 0..heads as usize {
                    let kv = h / (heads / kv_heads) as usize;
                    let pairs = query[h * n..(h + 1) * n].iter().zip(&key[kv * n..(kv + 1) * n]);
                    let dot: i32 = pairs.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                    let z = score(i64::from(dot), key_scale(kv), query_scale(h).times(scale));
                    row[h * span + j as usize] = cap.map_or(z, |(limit, table)| bend(z, limit, table));
                }
            }
        }
        Numbers::Word(out)
    }

    /// The weighted sums of attention (semantics 6.6, step 6) of all rows.
    fn sums(&self, op: &Op, rows: usize) -> Numbers {
        let Op::Attend { v, heads, kv_heads, head_dim, reach, .. } = *op else {
            unreachable!("sums are attention's")
        };
        let (n, span, width) = (head_dim as usize, self.span(), (heads * head_dim) as usize);
        let weights = &self.open[2];
        let mut out = vec![0i64; rows * width];
        for (r, (position, row)) in self.block.positions.clone().zip(out.chunks_exact_mut(width)).enumerate()
        {
            for j in seen(&self.trace.extent, reach, position) {
                let (value, _) = self.int8(v, j);
                for h in 0..heads as usize {
                    let kv = h / (heads / kv_heads) as usize;
                    let w = weights.get(r, h * span + j as usize);
                    let sums = row[h * n..(h + 1) * n].iter_mut();
                    sums.zip(&value[kv * n..(kv + 1) * n]).for_each(|(s, x)| *s += w * i64::from(*x));
                }
            }
        }
        Numbers::Long(out)
    }
}

/// The numbers of a value of all rows.
fn numbers(values: &[Value]) -> Numbers {
    match values.first() {
        Some(Value::Int8 { .. }) => Numbers::Byte(values.iter().flat_map(|v| v.int8().0).copied().collect()),
        _ => Numbers::Word(values.iter().flat_map(|v| v.integers().0).copied().collect()),
    }
}

/// A scale as two numbers.
fn columns(s: Scale) -> [i32; 2] {
    [i32::from(s.mantissa), i32::from(s.exponent)]
}

/// The value, offset and length that a quantising operation reads.
fn quantised(program: &Program, op: ValueId) -> Option<(ValueId, u32, u32)> {
    match program.ops.get(usize::from(op))? {
        Op::Quantise { x, offset, len, .. } => Some((*x, *offset, *len)),
        _ => None,
    }
}

/// A part while it is made, column by column.
struct Growing {
    op: ValueId,
    part: u8,
    first: u32,
    columns: Vec<Vec<i64>>,
}

/// What a walk reads: the steps before, the parts before, and the columns before.
struct Reading<'r, 't, 'a> {
    walker: &'r Walker<'t, 'a>,
    growing: &'r Growing,
}

impl Source for Reading<'_, '_, '_> {
    fn extent(&self) -> Extent {
        self.walker.trace.extent
    }

    fn choice(&mut self) -> Option<&Choice> {
        Some(&self.walker.trace.subject.choice)
    }

    fn op(&mut self, op: ValueId) -> Option<(Op, ValueType)> {
        self.walker.trace.op(op)
    }

    fn shape(&mut self, tensor: TensorId) -> Option<TensorShape> {
        self.walker.trace.shape(tensor)
    }

    fn cell(&mut self, cell: Cell) -> Option<i64> {
        let g = self.growing;
        if cell.op != g.op {
            return self.walker.block.get(cell).or_else(|| self.walker.trace.earlier(cell));
        }
        if cell.part == g.part {
            let row = cell.position.checked_sub(g.first)? as usize;
            return g.columns.get(cell.column as usize)?.get(row).copied();
        }
        read(self.walker.open.get(usize::from(cell.part))?, cell, g.first)
    }

    fn weight(&mut self, tensor: TensorId, row: u32, col: u32) -> Option<i8> {
        self.walker.trace.weight(tensor, row, col)
    }

    fn row_scale(&mut self, tensor: TensorId, row: u32) -> Option<u16> {
        self.walker.trace.row_scale(tensor, row)
    }

    fn entry(&mut self, tensor: TensorId, index: u32) -> Option<i32> {
        self.walker.trace.entry(tensor, index)
    }

    fn token(&mut self, position: u32) -> Option<u32> {
        self.walker.trace.token(position)
    }
}

/// What a walked block and its constants say: the source of an honest party.
pub struct Walked<'b, 't, 'a> {
    /// The trace.
    pub trace: &'t Trace<'a>,
    /// A block of it.
    pub block: &'b Block,
}

impl Source for Walked<'_, '_, '_> {
    fn extent(&self) -> Extent {
        self.trace.extent
    }

    fn choice(&mut self) -> Option<&Choice> {
        Some(&self.trace.subject.choice)
    }

    fn op(&mut self, op: ValueId) -> Option<(Op, ValueType)> {
        self.trace.op(op)
    }

    fn shape(&mut self, tensor: TensorId) -> Option<TensorShape> {
        self.trace.shape(tensor)
    }

    fn cell(&mut self, cell: Cell) -> Option<i64> {
        self.block.get(cell).or_else(|| self.trace.earlier(cell))
    }

    fn weight(&mut self, tensor: TensorId, row: u32, col: u32) -> Option<i8> {
        self.trace.weight(tensor, row, col)
    }

    fn row_scale(&mut self, tensor: TensorId, row: u32) -> Option<u16> {
        self.trace.row_scale(tensor, row)
    }

    fn entry(&mut self, tensor: TensorId, index: u32) -> Option<i32> {
        self.trace.entry(tensor, index)
    }

    fn token(&mut self, position: u32) -> Option<u32> {
        self.trace.token(position)
    }
}

/// What both sources read of the constants and the subject.
impl Trace<'_> {
    fn op(&self, op: ValueId) -> Option<(Op, ValueType)> {
        let checked = self.constants.program();
        let declared = checked.program().ops.get(usize::from(op))?;
        Some((*declared, checked.value_type(op)))
    }

    fn shape(&self, tensor: TensorId) -> Option<TensorShape> {
        Some(self.constants.program().program().tensors.get(usize::from(tensor))?.shape)
    }

    fn weight(&self, tensor: TensorId, row: u32, col: u32) -> Option<i8> {
        let w = self.constants.matrix(tensor);
        let (row, col) = (row as usize, col as usize);
        (row < w.rows() && col < w.cols()).then(|| w.weight(row, col))
    }

    fn row_scale(&self, tensor: TensorId, row: u32) -> Option<u16> {
        self.constants.matrix(tensor).scales().get(row as usize).copied()
    }

    fn entry(&self, tensor: TensorId, index: u32) -> Option<i32> {
        let i = index as usize;
        match self.shape(tensor)? {
            TensorShape::Table => self.constants.table(tensor).get(i).copied(),
            TensorShape::Vector { .. } => self.constants.vector(tensor).get(i).copied(),
            TensorShape::Rotary { .. } => self.constants.rotary(tensor).get(i).map(|v| i32::from(*v)),
            TensorShape::Matrix { .. } => None,
        }
    }

    fn token(&self, position: u32) -> Option<u32> {
        self.subject.tokens.get(position as usize).copied()
    }
}
