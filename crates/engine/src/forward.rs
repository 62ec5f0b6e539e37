//! Executes a program for many tokens of many sequences at once, on every thread, with the chosen kernel.
//!
//! A batch is a list of [`Segment`]s: some next tokens of one sequence each, whether it is a whole prompt, a chunk of
//! one, or a single token being decoded. Rows (tokens) are independent but for attention, which reads the caches.
//! What comes out equals `reference` to the byte for any batch, chunking, thread count and kernel.

use std::ops::Range;
use std::sync::Arc;

use crate::cache::Sequence;
use crate::constants::{Constants, Reads};
use crate::kernel::Kernel;
use crate::plan::{Place, Plan};
use crate::pool::{Parts, Pool};
use crate::presence::Lack;
use crate::program::{Head, Op, ValueId, ValueType};
use crate::semantics::fixed::shift_sat;
use crate::semantics::quantise::Quantiser;
use crate::semantics::scale::Scale;

mod attend;
mod elementwise;
mod layer;
mod matmul;
mod pass;
mod watched;

pub use layer::LayerOutput;
pub use matmul::products;
pub use pass::Pass;
pub(crate) use watched::Alone;
pub use watched::{Companion, PutRow, Values};

/// Most rows that one batch may have.
pub const BATCH_ROWS_MAX: usize = 4096;
/// Elementwise work below this many numbers is done by the calling thread.
const SHARE_FROM: usize = 16_384;

/// Next tokens of one sequence.
pub struct Segment<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Its next tokens, each below the vocabulary; together with what was executed, at most the capacity and context.
    pub tokens: &'a [u32],
    /// Logits are computed for the tokens from this index on.
    pub logits_from: usize,
}

/// A token at a position of some sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The token, below the vocabulary.
    pub token: u32,
    /// Its position, below the context.
    pub position: u32,
}

/// Executes one program.
pub struct Executor {
    constants: Arc<dyn Constants>,
    kernel: Kernel,
    pool: Arc<Pool>,
    plan: Plan,
    buffers: Buffers,
    hidden: Hidden,
    /// Accumulators of one row of a product that someone else makes.
    sums: Vec<i32>,
}

/// The integers and int8 numbers of all live values, row by row, and the scales of every value.
struct Buffers {
    integers: Vec<Vec<i32>>,
    int8: Vec<Vec<i8>>,
    /// Per value and row: one scale, or one per group.
    scales: Vec<Vec<Scale>>,
    /// Per int8 value and row: the sum of each group.
    sums: Vec<Vec<i32>>,
}

/// Final hidden vectors of a batch.
#[derive(Default)]
struct Hidden {
    width: usize,
    numbers: Vec<i8>,
    scales: Vec<Scale>,
}

/// What a batch computed. Rows are numbered over all segments in order; logit rows over those that asked for them.
pub struct Output<'a> {
    hidden: &'a Hidden,
    logits: &'a [i32],
    vocabulary: usize,
}

impl Output<'_> {
    /// The final hidden vector of a row.
    pub fn hidden(&self, row: usize) -> (&[i8], Scale) {
        let n = self.hidden.width;
        (&self.hidden.numbers[row * n..(row + 1) * n], self.hidden.scales[row])
    }

    /// Logits of the `i`-th row that asked for them.
    pub fn logits(&self, i: usize) -> &[i32] {
        &self.logits[i * self.vocabulary..(i + 1) * self.vocabulary]
    }
}

/// Where the rows of a segment start, and at which position its sequence is.
struct Run {
    first_row: usize,
    rows: usize,
    position: usize,
}

/// All rows of a batch.
struct Batch {
    tokens: Vec<u32>,
    runs: Vec<Run>,
    /// The positions of each run.
    spans: Vec<Range<usize>>,
}

impl Batch {
    fn new(tokens: Vec<u32>, runs: Vec<Run>) -> Batch {
        let spans = runs.iter().map(|r| r.position..r.position + r.rows).collect();
        Batch { tokens, runs, spans }
    }

    /// The position of each row.
    fn positions(&self) -> Vec<u32> {
        self.runs.iter().flat_map(|r| r.position as u32..(r.position + r.rows) as u32).collect()
    }

    /// The rows that want logits.
    fn wanted(&self, segments: &[Segment<'_>]) -> Vec<usize> {
        let of =
            |(s, run): (&Segment<'_>, &Run)| run.first_row + s.logits_from..run.first_row + s.tokens.len();
        segments.iter().zip(&self.runs).flat_map(of).collect()
    }

    fn check(&self, vocabulary: u32) {
        let rows = self.tokens.len();
        assert!((1..=BATCH_ROWS_MAX).contains(&rows), "a batch has 1 to {BATCH_ROWS_MAX} rows");
        assert!(self.tokens.iter().all(|t| *t < vocabulary), "every token is below the vocabulary");
    }
}

impl Executor {
    /// An executor over `constants`, sharing `pool` with others.
    pub fn new(constants: Arc<dyn Constants>, kernel: Kernel, pool: Arc<Pool>) -> Executor {
        let plan = Plan::new(constants.program());
        let ops = constants.program().program().ops.len();
        let buffers = Buffers {
            integers: vec![Vec::new(); plan.integer_buffers],
            int8: vec![Vec::new(); plan.int8_buffers],
            scales: vec![Vec::new(); ops],
            sums: vec![Vec::new(); ops],
        };
        Executor { constants, kernel, pool, plan, buffers, hidden: Hidden::default(), sums: Vec::new() }
    }

    /// The program and its constants.
    pub fn constants(&self) -> &Arc<dyn Constants> {
        &self.constants
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The thread pool in use.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Most bytes that it ever holds for passes of up to `rows` rows, of which up to `logits` want logits: values, their scales, and what its threads
    /// compute them with. The constants and the caches are not among them.
    pub fn pass_bytes(&self, rows: usize, logits: usize) -> usize {
        let checked = self.constants.program();
        let program = checked.program();
        let last = match program.head {
            Head::Tokens { hidden, .. } => usize::from(hidden),
            Head::Vector { .. } => program.ops.len(),
        };
        let (mut integers, mut int8) = (vec![0; self.plan.integer_buffers], vec![0; self.plan.int8_buffers]);
        let (mut beside, mut hidden, mut scratch) = (0, 0, 0);
        for (i, op) in program.ops.iter().enumerate() {
            let width = self.width(i as ValueId);
            let rows = if i > last { logits } else { rows };
            let groups = match checked.value_types()[i] {
                ValueType::Int8 { groups, .. } => groups as usize,
                _ => 1,
            };
            match self.plan.places[i] {
                Place::Integers(b) => integers[b] = integers[b].max(rows * width * size_of::<i32>()),
                Place::Int8(b) => int8[b] = int8[b].max(rows * width),
            }
            beside += rows * groups * (size_of::<Scale>() + size_of::<i32>());
            if i == last {
                hidden = rows * (width + size_of::<Scale>());
            }
            if let Some((op, _)) = attend::Attention::of(op) {
                scratch = scratch.max(attend::scratch_bytes(&op, rows, program.context as usize));
            }
        }
        let values = integers.into_iter().chain(int8).sum::<usize>();
        values + beside + hidden + self.pool.threads() * (scratch + matmul::SCRATCH_BYTES)
    }

    /// Executes a batch of 1 to [`BATCH_ROWS_MAX`] rows.
    ///
    /// # Panics
    /// When a segment breaks what [`Segment`] asks for: callers check tokens and lengths where they enter. When constants are
    /// still arriving: [`Executor::go_on`] executes those.
    pub fn forward(&mut self, segments: &mut [Segment<'_>]) -> Output<'_> {
        self.forward_beside(segments, &mut watched::Alone)
    }

    /// Like [`Executor::forward`], with someone beside it who sees every value, or makes it.
    pub fn forward_beside(
        &mut self,
        segments: &mut [Segment<'_>],
        companion: &mut dyn Companion,
    ) -> Output<'_> {
        let mut pass = self.begin(segments);
        self.finish(&mut pass, segments, companion)
    }

    /// Executes 1 to [`BATCH_ROWS_MAX`] tokens, wherever they stand, in one batch; logits are computed for those from index
    /// `logits_from` on. There are no caches: `companion` makes the value of every attend operation
    /// ([`Values::put_attended`]).
    ///
    /// # Panics
    /// When a token or a position is out of range, or an attend operation is left to the executor.
    pub fn forward_placed(
        &mut self,
        rows: &[Placed],
        logits_from: usize,
        companion: &mut dyn Companion,
    ) -> Output<'_> {
        let program = self.constants.program().program();
        assert!(rows.iter().all(|r| r.position < program.context), "every position is within the context");
        let tokens = rows.iter().map(|r| r.token).collect();
        let run = |(row, r): (usize, &Placed)| Run { first_row: row, rows: 1, position: r.position as usize };
        let batch = Batch::new(tokens, rows.iter().enumerate().map(run).collect());
        batch.check(program.vocabulary);
        let wanted: Vec<usize> = (logits_from..rows.len()).collect();
        self.finish(&mut Pass::new(0, batch, wanted), &mut [], companion)
    }

    /// Executes operations up to one that lacks something; which, and what.
    fn execute_some(
        &mut self,
        ops: Range<usize>,
        batch: &Batch,
        segments: &mut [Segment<'_>],
        rows: usize,
        companion: &mut dyn Companion,
    ) -> Result<(), (usize, Lack)> {
        let constants = Arc::clone(&self.constants);
        let reads = Reads { tokens: &batch.tokens, positions: &batch.spans };
        for (i, op) in constants.program().program().ops.iter().enumerate().take(ops.end).skip(ops.start) {
            if let Some(lack) = constants.lacks(op, reads) {
                return Err((i, lack));
            }
            if !companion.make(i, &mut Values::new(self, rows)) {
                self.execute(i, op, batch, segments, rows);
            }
            companion.made(i, &Values::new(self, rows));
        }
        Ok(())
    }

    /// Executes operations that lack nothing.
    fn execute_all(
        &mut self,
        ops: Range<usize>,
        batch: &Batch,
        segments: &mut [Segment<'_>],
        rows: usize,
        companion: &mut dyn Companion,
    ) {
        let executed = self.execute_some(ops, batch, segments, rows, companion);
        assert_eq!(executed, Ok(()), "constants that are still arriving are executed by passes");
    }

    /// Executes an encoder over whole sequences, together at most [`BATCH_ROWS_MAX`] tokens, and returns the pooled vector
    /// of each.
    ///
    /// # Panics
    /// When a sequence is empty or longer than the context, a token is not below the vocabulary, or the program is no
    /// encoder: callers check.
    pub fn encode(&mut self, inputs: &[&[u32]]) -> Vec<Vec<i32>> {
        self.encode_beside(inputs, &mut watched::Alone)
    }

    /// Like [`Executor::encode`], with someone beside it who sees every value but the pooled ones.
    pub fn encode_beside(&mut self, inputs: &[&[u32]], companion: &mut dyn Companion) -> Vec<Vec<i32>> {
        let constants = Arc::clone(&self.constants);
        let program = constants.program().program();
        assert!(matches!(program.head, Head::Vector { .. }), "only an encoder reads whole sequences");
        let caches = constants.program().caches();
        let mut sequences: Vec<Sequence> = inputs.iter().map(|t| Sequence::new(caches, t.len())).collect();
        let mut segments: Vec<Segment<'_>> = sequences
            .iter_mut()
            .zip(inputs)
            .map(|(sequence, tokens)| Segment { sequence, tokens, logits_from: tokens.len() })
            .collect();
        let batch = self.enter(&segments);
        let Some((Op::Pool { x, pooling }, before)) = program.ops.split_last() else {
            unreachable!("a checked encoder ends in its pooled vector")
        };
        self.execute_all(0..before.len(), &batch, &mut segments, batch.tokens.len(), companion);
        batch.runs.iter().map(|run| self.pool_run(*x, *pooling, run)).collect()
    }

    fn enter(&self, segments: &[Segment<'_>]) -> Batch {
        let program = self.constants.program().program();
        let (mut tokens, mut runs) = (Vec::new(), Vec::with_capacity(segments.len()));
        for s in segments {
            let position = s.sequence.position();
            let end = position + s.tokens.len();
            assert!(
                end <= s.sequence.capacity().min(program.context as usize),
                "a segment fits its sequence"
            );
            runs.push(Run { first_row: tokens.len(), rows: s.tokens.len(), position });
            tokens.extend_from_slice(s.tokens);
        }
        let batch = Batch::new(tokens, runs);
        batch.check(program.vocabulary);
        batch
    }

    fn execute(&mut self, i: usize, op: &Op, batch: &Batch, segments: &mut [Segment<'_>], rows: usize) {
        match *op {
            Op::Embed { table } => self.embed(i, table, &batch.tokens),
            Op::Position { table } => self.embed(i, table, &batch.positions()),
            Op::RmsNorm { x, epsilon } => self.rms_norm(i, x, epsilon, rows),
            Op::Quantise { x, offset, len, groups } => {
                self.quantise(i, x, offset as usize, len as usize, groups as usize, rows);
            }
            Op::MatMul { weights, x } => self.matmul(i, weights, x, rows),
            Op::Rotary { x, offset, heads, head_dim, table } => {
                self.rotary(i, x, offset as usize, heads as usize, head_dim as usize, table, batch);
            }
            Op::Attend { .. } => self.attend(i, op, &batch.runs, segments),
            Op::Gate { x, gate, up, len, table } => {
                self.gate(i, x, gate as usize, up as usize, len as usize, table, rows);
            }
            Op::Add { x, y } => self.add(i, x, y, rows),
            Op::Fix { x, offset, len, frac } => {
                self.fix(i, x, offset as usize, len as usize, u32::from(frac), rows);
            }
            Op::Bias { x, bias } => self.bias(i, x, bias, rows),
            Op::Normalise { x, groups, center, epsilon, gain, bias, frac } => {
                let norm = elementwise::Norm { groups: groups as usize, center, epsilon, gain, bias, frac };
                self.normalise(i, x, &norm, rows);
            }
            Op::Activate { x, table } => self.activate(i, x, table, rows),
            Op::Hadamard { x, block } => self.hadamard(i, x, block as usize, rows),
            Op::Bend { x, cap } => self.bend(i, x, cap, rows),
            Op::Pool { .. } => unreachable!("a pooled vector is not one row's"),
        }
    }

    fn width(&self, v: ValueId) -> usize {
        match self.constants.program().value_type(v) {
            ValueType::Fixed { len: n, .. } | ValueType::Integers(n) => n as usize,
            ValueType::Int8 { len, .. } => (len as usize).next_multiple_of(4),
        }
    }

    fn integers(&self, v: ValueId) -> &[i32] {
        match self.plan.places[usize::from(v)] {
            Place::Integers(b) => &self.buffers.integers[b],
            Place::Int8(_) => unreachable!("checked programs read integers where integers are"),
        }
    }

    fn int8(&self, v: ValueId) -> &[i8] {
        match self.plan.places[usize::from(v)] {
            Place::Int8(b) => &self.buffers.int8[b],
            Place::Integers(_) => unreachable!("checked programs read int8 where int8 is"),
        }
    }

    /// Takes the buffer of the value that operation `i` makes, long enough for `rows` rows.
    fn take_integers(&mut self, i: usize, rows: usize) -> Vec<i32> {
        let len = rows * self.width(i as ValueId);
        let Place::Integers(b) = self.plan.places[i] else {
            unreachable!("the plan places integers among integers")
        };
        let mut buffer = std::mem::take(&mut self.buffers.integers[b]);
        lengthen(&mut buffer, len);
        buffer
    }

    fn put_integers(&mut self, i: usize, buffer: Vec<i32>) {
        if let Place::Integers(b) = self.plan.places[i] {
            self.buffers.integers[b] = buffer;
        }
    }

    /// Runs `each(row)` for all rows, on all threads when there is enough to do.
    fn for_rows(&self, rows: usize, width: usize, each: &(dyn Fn(usize) + Sync)) {
        if rows == 1 || rows * width < SHARE_FROM {
            (0..rows).for_each(each);
            return;
        }
        let piece = rows.div_ceil(self.pool.threads() * 4);
        self.pool.run(rows.div_ceil(piece), &|t| (t * piece..((t + 1) * piece).min(rows)).for_each(each));
    }

    fn embed(&mut self, i: usize, table: u16, tokens: &[u32]) {
        let constants = Arc::clone(&self.constants);
        let frac = constants.program().program().residual_frac;
        let w = constants.matrix(table);
        let mut out = self.take_integers(i, tokens.len());
        for (token, row) in tokens.iter().zip(out.chunks_exact_mut(w.cols())) {
            let m = i64::from(w.scales()[*token as usize]);
            let shift = i32::from(w.shift()) - i32::from(frac);
            w.map_row(*token as usize, row, |w| shift_sat(i64::from(w) * m, shift));
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = vec![Scale::power(-i16::from(frac)); tokens.len()];
    }

    fn quantise(&mut self, i: usize, x: ValueId, offset: usize, len: usize, groups: usize, rows: usize) {
        let (width, stride, n) = (self.width(x), len.next_multiple_of(4), len / groups);
        let Place::Int8(place) = self.plan.places[i] else { unreachable!("the plan places int8 among int8") };
        let mut out = std::mem::take(&mut self.buffers.int8[place]);
        lengthen(&mut out, rows * stride);
        let mut scales = std::mem::take(&mut self.buffers.scales[i]);
        scales.resize(rows * groups, Scale::ZERO);
        let mut sums = std::mem::take(&mut self.buffers.sums[i]);
        sums.resize(rows * groups, 0);
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let units = &self.buffers.scales[usize::from(x)];
            let (q, s, t) = (Parts::new(&mut out), Parts::new(&mut scales), Parts::new(&mut sums));
            self.for_rows(rows, len, &|r| {
                // SAFETY: each task writes its own row.
                let (q, s, t) = unsafe {
                    (
                        q.part(r * stride..(r + 1) * stride),
                        s.part(r * groups..(r + 1) * groups),
                        t.part(r * groups..(r + 1) * groups),
                    )
                };
                let row = &v[r * width + offset..r * width + offset + len];
                for g in 0..groups {
                    let run = &row[g * n..(g + 1) * n];
                    // SAFETY: the kernel runs here.
                    unsafe {
                        let by = Quantiser::new((f.max_abs)(run));
                        t[g] = (f.quantise)(by, run, &mut q[g * n..(g + 1) * n]);
                        s[g] = units[r].times(by.unit);
                    }
                }
                q[len..].fill(0);
            });
        }
        self.buffers.int8[place] = out;
        self.buffers.scales[i] = scales;
        self.buffers.sums[i] = sums;
    }

    fn keep_hidden(&mut self, v: ValueId, rows: usize) {
        let ValueType::Int8 { len, .. } = self.constants.program().value_type(v) else {
            unreachable!("the hidden vector is int8")
        };
        let (width, stride) = (len as usize, self.width(v));
        let mut hidden = std::mem::take(&mut self.hidden);
        hidden.width = width;
        hidden.numbers.clear();
        for row in self.int8(v).chunks_exact(stride).take(rows) {
            hidden.numbers.extend_from_slice(&row[..width]);
        }
        hidden.scales.clear();
        hidden.scales.extend_from_slice(&self.buffers.scales[usize::from(v)][..rows]);
        self.hidden = hidden;
    }

    /// Moves the rows that want logits to the front of every value that later operations read.
    fn carry(&mut self, wanted: &[usize]) {
        let mut moved = Vec::new();
        for v in self.plan.carried.clone() {
            let i = usize::from(v);
            let width = self.width(v);
            let place = self.plan.places[i];
            // A norm shares its input's integers, and they move once.
            if !moved.contains(&place) {
                match place {
                    Place::Integers(b) => move_rows(&mut self.buffers.integers[b], width, wanted),
                    Place::Int8(b) => move_rows(&mut self.buffers.int8[b], width, wanted),
                }
                moved.push(place);
            }
            let groups = self.buffers.scales[i].len() / self.hidden.scales.len();
            move_rows(&mut self.buffers.scales[i], groups, wanted);
            if !self.buffers.sums[i].is_empty() {
                move_rows(&mut self.buffers.sums[i], groups, wanted);
            }
        }
    }
}

/// Makes a buffer at least so long, and no longer than that: it is as large as the largest batch needs.
fn lengthen<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, T::default());
    }
}

fn move_rows<T: Copy>(v: &mut [T], width: usize, wanted: &[usize]) {
    for (to, from) in wanted.iter().enumerate() {
        v.copy_within(from * width..(from + 1) * width, to * width);
    }
}
