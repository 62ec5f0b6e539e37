//! Executing a known sequence from its beginning (teacher forcing): what a verifier does.

use std::ops::Range;

use crate::cache::Sequence;
use crate::constants::Constants;
use crate::forward::{Alone, Companion, Executor, Segment, Values};
use crate::kernel::Kernel;
use crate::program::{Head, Op, ValueId, ValueType};
use crate::reference::{Reference, Value, accumulators};
use crate::semantics::scale::Scale;

mod layer;

pub use layer::{LayerExecution, LayerRow, LayerRun};

/// Rows of a pass: enough to be fast, few enough that their logits stay small.
const CHUNK: usize = 128;
/// Tokens of one pass of an encoder: enough to be fast, few enough that their values stay in the caches.
pub(crate) const ENCODER_ROWS: usize = 512;

/// What an execution computed at one position.
pub struct Row<'a> {
    /// The position.
    pub position: usize,
    /// The final hidden vector.
    pub hidden: (&'a [i8], Scale),
    /// The logits, where they were asked for.
    pub logits: Option<&'a [i32]>,
    /// The kernel that made them, for whoever goes on from here.
    pub kernel: Kernel,
}

/// What one operation made in a traced execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The operation.
    pub op: ValueId,
    /// Position of the first row. An encoder's pooled vector is one row, whatever its position.
    pub first: usize,
    /// One value for each row: the positions traced, after the hidden vector those of them with logits.
    pub values: Vec<Value>,
    /// For a matrix product the accumulators of each row (semantics 6.4), otherwise empty.
    pub accumulators: Vec<Vec<i32>>,
}

/// A way to execute a program. All ways give the same rows.
pub trait Execution {
    /// Executes `tokens` from position 0, in order, with logits from position `logits_from` on.
    ///
    /// # Panics
    /// When a token is not below the vocabulary or there are more tokens than the context: callers check both.
    fn replay(&mut self, tokens: &[u32], logits_from: usize, visit: &mut dyn FnMut(Row<'_>));

    /// Executes an encoder over whole sequences and returns the pooled vector of each.
    ///
    /// # Panics
    /// When a sequence is empty or longer than the context, a token is not below the vocabulary, or the program is no
    /// encoder: callers check.
    fn encode(&mut self, inputs: &[&[u32]]) -> Vec<Vec<i32>>;

    /// Executes `tokens` up to the end of `positions` and tells every value made at these, operation by operation in the
    /// order of the program, with logits from position `logits_from` on. An encoder is traced over all its tokens.
    ///
    /// # Panics
    /// As [`Execution::replay`]; when `positions` is empty or longer than [`crate::forward::BATCH_ROWS_MAX`]; for an encoder
    /// when it is not all tokens.
    fn trace(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        logits_from: usize,
        visit: &mut dyn FnMut(Made),
    ) {
        let run = positions.len();
        self.trace_runs(tokens, positions, run, logits_from, visit);
    }

    /// Like [`Execution::trace`], in runs of `run` positions: all operations of one run before the next, so that what is
    /// told stays small.
    ///
    /// # Panics
    /// As [`Execution::trace`]; `run` is what is limited to a batch.
    fn trace_runs(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        run: usize,
        logits_from: usize,
        visit: &mut dyn FnMut(Made),
    );
}

/// Tells a visitor what an executor makes.
struct Tracing<'a> {
    constants: std::sync::Arc<dyn Constants>,
    first: usize,
    logits_first: usize,
    visit: &'a mut dyn FnMut(Made),
}

impl Companion for Tracing<'_> {
    fn made(&mut self, op: usize, values: &Values<'_>) {
        let program = self.constants.program();
        let after_hidden =
            matches!(program.program().head, Head::Tokens { hidden, .. } if op > usize::from(hidden));
        let v = op as ValueId;
        let value = |row: usize| match program.value_type(v) {
            ValueType::Int8 { .. } => {
                let (q, scales) = values.int8(v, row);
                Value::Int8 { q: q.to_vec(), scales: scales.to_vec() }
            }
            ValueType::Fixed { .. } | ValueType::Integers(_) => {
                let (v, scale) = values.integers(v, row);
                Value::Integers { v: v.to_vec(), scale }
            }
        };
        let accumulators = match program.program().ops[op] {
            Op::MatMul { weights, x } => {
                let (rows, _, _) = program.matrix_shape(weights);
                let all = values.accumulators(weights, x);
                all.chunks_exact(rows as usize).map(<[i32]>::to_vec).collect()
            }
            _ => vec![],
        };
        (self.visit)(Made {
            op: v,
            first: if after_hidden { self.logits_first } else { self.first },
            values: (0..values.rows()).map(value).collect(),
            accumulators,
        });
    }
}

impl Executor {
    /// [`Execution::replay`], with someone beside the executor who sees every value, or makes it.
    ///
    /// # Panics
    /// As [`Execution::replay`].
    pub fn replay_beside(
        &mut self,
        tokens: &[u32],
        logits_from: usize,
        companion: &mut dyn Companion,
        visit: &mut dyn FnMut(Row<'_>),
    ) {
        let constants = std::sync::Arc::clone(self.constants());
        let mut sequence = Sequence::new(constants.program().caches(), tokens.len());
        let mut position = 0;
        for chunk in tokens.chunks(CHUNK) {
            let from = logits_from.saturating_sub(position).min(chunk.len());
            let segment = Segment { sequence: &mut sequence, tokens: chunk, logits_from: from };
            let kernel = self.kernel();
            let output = self.forward_beside(&mut [segment], companion);
            for i in 0..chunk.len() {
                let logits = (i >= from).then(|| output.logits(i - from));
                visit(Row { position: position + i, hidden: output.hidden(i), logits, kernel });
            }
            position += chunk.len();
        }
    }
}

impl Execution for Executor {
    fn replay(&mut self, tokens: &[u32], logits_from: usize, visit: &mut dyn FnMut(Row<'_>)) {
        self.replay_beside(tokens, logits_from, &mut Alone, visit);
    }

    fn encode(&mut self, inputs: &[&[u32]]) -> Vec<Vec<i32>> {
        together(inputs).flat_map(|group| Executor::encode(self, group)).collect()
    }

    fn trace_runs(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        run: usize,
        logits_from: usize,
        visit: &mut dyn FnMut(Made),
    ) {
        let constants = std::sync::Arc::clone(self.constants());
        let program = constants.program().program();
        let mut tracing = Tracing {
            constants: std::sync::Arc::clone(&constants),
            first: positions.start,
            logits_first: logits_from.max(positions.start),
            visit,
        };
        if let Head::Vector { pooled } = program.head {
            assert_eq!(positions, 0..tokens.len(), "an encoder is traced as a whole");
            let mut made = self.encode_beside(&[tokens], &mut tracing);
            visit(pooled_made(constants.as_ref(), pooled, made.pop().unwrap_or_default()));
            return;
        }
        let mut sequence = Sequence::new(constants.program().caches(), positions.end);
        for chunk in tokens[..positions.start].chunks(CHUNK) {
            let segment = Segment { sequence: &mut sequence, tokens: chunk, logits_from: chunk.len() };
            self.forward(&mut [segment]);
        }
        for tokens in tokens[positions].chunks(run) {
            tracing.logits_first = logits_from.max(tracing.first);
            let logits_from = logits_from.saturating_sub(tracing.first).min(tokens.len());
            self.forward_beside(
                &mut [Segment { sequence: &mut sequence, tokens, logits_from }],
                &mut tracing,
            );
            tracing.first += tokens.len();
        }
    }
}

/// The last value of an encoder.
fn pooled_made(constants: &dyn Constants, pooled: ValueId, v: Vec<i32>) -> Made {
    let Op::Pool { x, .. } = constants.program().program().ops[usize::from(pooled)] else {
        unreachable!("a checked encoder ends in its pooled vector")
    };
    let scale = Scale::power(-(constants.program().frac(x) as i16));
    Made { op: pooled, first: 0, values: vec![Value::Integers { v, scale }], accumulators: vec![] }
}

/// Sequences that are executed together: as many as stay within [`ENCODER_ROWS`] tokens.
fn together<'a, 'b>(inputs: &'a [&'b [u32]]) -> impl Iterator<Item = &'a [&'b [u32]]> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let mut rows = 0;
        let count = inputs[from..]
            .iter()
            .take_while(|t| {
                rows += t.len();
                rows <= ENCODER_ROWS
            })
            .count();
        let to = (from + count.max(1)).min(inputs.len());
        let group = &inputs[from..to];
        from = to;
        (!group.is_empty()).then_some(group)
    })
}

/// Execution by the reference.
pub struct ByReference<'a>(pub &'a dyn Constants);

impl Execution for ByReference<'_> {
    fn replay(&mut self, tokens: &[u32], logits_from: usize, visit: &mut dyn FnMut(Row<'_>)) {
        let program = self.0.program().program();
        let mut reference = Reference::new(self.0);
        for (position, token) in tokens.iter().enumerate() {
            let wanted = position >= logits_from;
            let values = reference.step(*token, wanted);
            let (hidden, logits) = program.tokens();
            let (numbers, scales) = values[usize::from(hidden)].int8();
            let logits = wanted.then(|| values[usize::from(logits)].integers().0);
            visit(Row { position, hidden: (numbers, scales[0]), logits, kernel: Kernel::SCALAR });
        }
    }

    fn encode(&mut self, inputs: &[&[u32]]) -> Vec<Vec<i32>> {
        inputs.iter().map(|tokens| Reference::encode(self.0, tokens)).collect()
    }

    fn trace_runs(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        run: usize,
        logits_from: usize,
        visit: &mut dyn FnMut(Made),
    ) {
        if let Head::Vector { .. } = self.0.program().program().head {
            assert_eq!(positions, 0..tokens.len(), "an encoder is traced as a whole");
            self.tell(0, Reference::encode_all(self.0, tokens), visit);
            return;
        }
        let mut reference = Reference::new(self.0);
        for (position, token) in tokens[..positions.start].iter().enumerate() {
            reference.step(*token, position >= logits_from);
        }
        for tokens in tokens[positions].chunks(run) {
            let first = reference.position();
            let rows = tokens.iter().map(|t| {
                let logits = reference.position() >= logits_from;
                reference.step(*t, logits)
            });
            let rows = rows.collect();
            self.tell(first, rows, visit);
        }
    }
}

impl ByReference<'_> {
    /// Tells the values of rows, each with those of all operations or up to the hidden vector, operation by operation.
    fn tell(&self, first: usize, mut rows: Vec<Vec<Value>>, visit: &mut dyn FnMut(Made)) {
        for (i, op) in self.0.program().program().ops.iter().enumerate() {
            let Some(skipped) = rows.iter().position(|r| r.len() > i) else { break };
            let rows = &mut rows[skipped..];
            if matches!(op, Op::Pool { .. }) {
                let Value::Integers { v, .. } = &rows[0][i] else { unreachable!("integers are pooled") };
                visit(pooled_made(self.0, i as ValueId, v.clone()));
                break;
            }
            let accumulators = match *op {
                Op::MatMul { weights, x } => {
                    let w = self.0.matrix(weights);
                    rows.iter().map(|r| accumulators(w, r[usize::from(x)].int8().0)).collect()
                }
                _ => vec![],
            };
            let values = rows.iter().map(|r| r[i].clone()).collect();
            visit(Made { op: i as ValueId, first: first + skipped, values, accumulators });
        }
    }
}
