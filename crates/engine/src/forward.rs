//! Executes a program for many tokens of many sequences at once, on every thread, with the chosen kernel.
//!
//! A batch is a list of [`Segment`]s: some next tokens of one sequence each, whether it is a whole prompt, a chunk of
//! one, or a single token being decoded. Rows (tokens) are independent but for attention, which reads the caches.
//! What comes out equals `reference` to the byte for any batch, chunking, thread count and kernel.

use std::sync::Arc;

use crate::cache::Sequence;
use crate::constants::Constants;
use crate::kernel::Kernel;
use crate::plan::{Place, Plan};
use crate::pool::{Parts, Pool};
use crate::program::{Op, ValueId, ValueType};
use crate::semantics::fixed::shift_sat;
use crate::semantics::norm::rms_scale_of;
use crate::semantics::quantise::{Quantiser, normal_shift};
use crate::semantics::sample::LOGIT_FRAC;
use crate::semantics::scale::Scale;

mod attend;
mod matmul;

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

/// Executes one program.
pub struct Executor {
    constants: Arc<dyn Constants>,
    kernel: Kernel,
    pool: Arc<Pool>,
    plan: Plan,
    buffers: Buffers,
    hidden: Hidden,
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
        Executor { constants, kernel, pool, plan, buffers, hidden: Hidden::default() }
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

    /// Executes a batch of 1 to [`BATCH_ROWS_MAX`] rows.
    ///
    /// # Panics
    /// When a segment breaks what [`Segment`] asks for: callers check tokens and lengths where they enter.
    pub fn forward(&mut self, segments: &mut [Segment<'_>]) -> Output<'_> {
        let constants = Arc::clone(&self.constants);
        let program = constants.program().program();
        let mut tokens = Vec::new();
        let mut runs = Vec::with_capacity(segments.len());
        let mut wanted = Vec::new();
        for s in segments.iter() {
            let position = s.sequence.position();
            let end = position + s.tokens.len();
            assert!(
                end <= s.sequence.capacity().min(program.context as usize),
                "a segment fits its sequence"
            );
            runs.push(Run { first_row: tokens.len(), rows: s.tokens.len(), position });
            wanted.extend((s.logits_from..s.tokens.len()).map(|i| tokens.len() + i));
            tokens.extend_from_slice(s.tokens);
        }
        assert!((1..=BATCH_ROWS_MAX).contains(&tokens.len()), "a batch has 1 to {BATCH_ROWS_MAX} rows");
        assert!(tokens.iter().all(|t| *t < program.vocabulary), "every token is below the vocabulary");

        let hidden = usize::from(program.hidden);
        for (i, op) in program.ops.iter().enumerate().take(hidden + 1) {
            self.execute(i, op, &tokens, &runs, segments, tokens.len());
        }
        for s in segments.iter_mut() {
            s.sequence.advance(s.tokens.len());
        }
        self.keep_hidden(program.hidden, tokens.len());
        if !wanted.is_empty() {
            self.carry(&wanted);
            for (i, op) in
                program.ops.iter().enumerate().take(usize::from(program.logits) + 1).skip(hidden + 1)
            {
                self.execute(i, op, &tokens, &runs, segments, wanted.len());
            }
        }
        let vocabulary = program.vocabulary as usize;
        let logits = match self.plan.places[usize::from(program.logits)] {
            Place::Integers(b) if !wanted.is_empty() => {
                &self.buffers.integers[b][..wanted.len() * vocabulary]
            }
            _ => &[],
        };
        Output { hidden: &self.hidden, logits, vocabulary }
    }

    fn execute(
        &mut self,
        i: usize,
        op: &Op,
        tokens: &[u32],
        runs: &[Run],
        segments: &mut [Segment<'_>],
        rows: usize,
    ) {
        match *op {
            Op::Embed { table } => self.embed(i, table, tokens),
            Op::RmsNorm { x, epsilon } => self.rms_norm(i, x, epsilon, rows),
            Op::Quantise { x, offset, len, groups } => {
                self.quantise(i, x, offset as usize, len as usize, groups as usize, rows);
            }
            Op::MatMul { weights, x } => self.matmul(i, weights, x, rows),
            Op::Rotary { x, offset, heads, head_dim, table } => {
                self.rotary(i, x, offset as usize, heads as usize, head_dim as usize, table, runs);
            }
            Op::Attend { q, k, v, layer, heads, kv_heads, head_dim, scale, frac } => {
                let op = attend::Attention {
                    layer: usize::from(layer),
                    heads: heads as usize,
                    kv_heads: kv_heads as usize,
                    head_dim: head_dim as usize,
                    scale,
                    frac: u32::from(frac),
                };
                self.attend(i, [q, k, v], &op, runs, segments);
            }
            Op::Gate { x, gate, up, len, table } => {
                self.gate(i, x, gate as usize, up as usize, len as usize, table, rows);
            }
            Op::Add { x, y } => self.add(i, x, y, rows),
            Op::Logits { x } => self.logits(i, x, rows),
        }
    }

    fn width(&self, v: ValueId) -> usize {
        match self.constants.program().value_type(v) {
            ValueType::Residual(n) | ValueType::Integers(n) | ValueType::Logits(n) => n as usize,
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
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
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
            for (c, o) in row.iter_mut().enumerate() {
                *o = shift_sat(i64::from(w.weight(*token as usize, c)) * m, shift);
            }
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = vec![Scale::power(-i16::from(frac)); tokens.len()];
    }

    fn rms_norm(&mut self, i: usize, x: ValueId, epsilon: u64, rows: usize) {
        let width = self.width(x);
        let mut scales = std::mem::take(&mut self.buffers.scales[i]);
        scales.resize(rows, Scale::ZERO);
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let parts = Parts::new(&mut scales);
            self.for_rows(rows, width, &|r| {
                let row = &v[r * width..(r + 1) * width];
                // SAFETY: the kernel runs here; each task writes the scale of its own row.
                let (sum, shift, out) = unsafe {
                    let shift = normal_shift((f.max_abs)(row));
                    ((f.sum_squares)(row, shift), shift, parts.part(r..r + 1))
                };
                out[0] = rms_scale_of(sum, shift, width as u64, epsilon);
            });
        }
        self.buffers.scales[i] = scales;
    }

    fn quantise(&mut self, i: usize, x: ValueId, offset: usize, len: usize, groups: usize, rows: usize) {
        let (width, stride, n) = (self.width(x), len.next_multiple_of(4), len / groups);
        let Place::Int8(place) = self.plan.places[i] else { unreachable!("the plan places int8 among int8") };
        let mut out = std::mem::take(&mut self.buffers.int8[place]);
        if out.len() < rows * stride {
            out.resize(rows * stride, 0);
        }
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

    #[allow(clippy::too_many_arguments)]
    fn rotary(
        &mut self,
        i: usize,
        x: ValueId,
        offset: usize,
        heads: usize,
        head_dim: usize,
        table: u16,
        runs: &[Run],
    ) {
        let constants = Arc::clone(&self.constants);
        let angles = constants.rotary(table);
        let (width, made) = (self.width(x), heads * head_dim);
        let positions: Vec<usize> = runs.iter().flat_map(|r| r.position..r.position + r.rows).collect();
        let mut out = self.take_integers(i, positions.len());
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let parts = Parts::new(&mut out);
            self.for_rows(positions.len(), made, &|r| {
                // SAFETY: each task writes its own row.
                let row = unsafe { parts.part(r * made..(r + 1) * made) };
                let angles = &angles[positions[r] * head_dim..(positions[r] + 1) * head_dim];
                let v = &v[r * width + offset..][..made];
                for (v, o) in v.chunks_exact(head_dim).zip(row.chunks_exact_mut(head_dim)) {
                    // SAFETY: the kernel runs here.
                    unsafe { (f.rotate)(v, angles, o) };
                }
            });
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = self.buffers.scales[usize::from(x)].clone();
    }

    #[allow(clippy::too_many_arguments)]
    fn gate(&mut self, i: usize, x: ValueId, gate: usize, up: usize, len: usize, table: u16, rows: usize) {
        let constants = Arc::clone(&self.constants);
        let table = constants.table(table);
        let width = self.width(x);
        let mut out = self.take_integers(i, rows);
        let mut scales = std::mem::take(&mut self.buffers.scales[i]);
        scales.resize(rows, Scale::ZERO);
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let units = &self.buffers.scales[usize::from(x)];
            let (o, s) = (Parts::new(&mut out), Parts::new(&mut scales));
            self.for_rows(rows, len, &|r| {
                let row = &v[r * width..(r + 1) * width];
                let (g, u) = (&row[gate..gate + len], &row[up..up + len]);
                // SAFETY: the kernel runs here; each task writes its own row.
                unsafe {
                    let shift = normal_shift((f.max_abs)(u));
                    (f.gate)(g, u, units[r], table, shift, o.part(r * len..(r + 1) * len));
                    s.part(r..r + 1)[0] =
                        units[r].shifted(shift as i32 - crate::reference::GATE_FRAC as i32 + 10);
                }
            });
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = scales;
    }

    fn add(&mut self, i: usize, x: ValueId, y: ValueId, rows: usize) {
        let frac = u32::from(self.constants.program().program().residual_frac);
        let width = self.width(x);
        let mut out = self.take_integers(i, rows);
        {
            let (a, b, f) = (self.integers(x), self.integers(y), self.kernel.functions);
            let units = &self.buffers.scales[usize::from(y)];
            let parts = Parts::new(&mut out);
            self.for_rows(rows, width, &|r| {
                let run = r * width..(r + 1) * width;
                // SAFETY: the kernel runs here; each task writes its own row.
                unsafe { (f.add_scaled)(&a[run.clone()], &b[run.clone()], units[r], frac, parts.part(run)) };
            });
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = self.buffers.scales[usize::from(x)].clone();
    }

    fn logits(&mut self, i: usize, x: ValueId, rows: usize) {
        let width = self.width(x);
        let mut out = self.take_integers(i, rows);
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let units = &self.buffers.scales[usize::from(x)];
            let parts = Parts::new(&mut out);
            self.for_rows(rows, width, &|r| {
                let run = r * width..(r + 1) * width;
                // SAFETY: the kernel runs here; each task writes its own row.
                unsafe { (f.to_fixed)(&v[run.clone()], units[r], LOGIT_FRAC, parts.part(run)) };
            });
        }
        self.put_integers(i, out);
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

fn move_rows<T: Copy>(v: &mut [T], width: usize, wanted: &[usize]) {
    for (to, from) in wanted.iter().enumerate() {
        v.copy_within(from * width..(from + 1) * width, to * width);
    }
}
