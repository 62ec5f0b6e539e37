//! Executing one layer of a known sequence: what an auditor does who holds no more of the model than that.

use std::sync::Arc;

use super::{ByReference, CHUNK, Row};
use crate::cache::Sequence;
use crate::forward::{Executor, LayerOutput, Segment};
use crate::kernel::Kernel;
use crate::program::Head;
use crate::program::layers::Layer;
use crate::reference::{Reference, Value};

/// A layer, and a whole sequence to execute it for.
#[derive(Clone, Copy)]
pub struct LayerRun<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// The ids, from position 0 on. To a layer that embeds none of them, only their number matters.
    pub tokens: &'a [u32],
    /// Positions × length fixed-point numbers of the value that the layer reads; none for the first layer.
    pub state: &'a [i32],
    /// The last layer makes logits from this position on.
    pub logits_from: usize,
}

/// What a layer makes.
pub enum LayerRow<'a> {
    /// What it hands on at a position.
    State {
        /// The position.
        position: usize,
        /// Its fixed-point numbers.
        numbers: &'a [i32],
    },
    /// What the last layer makes at a position.
    Token(Row<'a>),
    /// What an encoder's last layer makes of the sequence.
    Pooled(&'a [i32]),
}

/// A way to execute layers. All ways give the same rows, and the layers of a program one after the other give what
/// [`super::Execution`] gives.
pub trait LayerExecution {
    /// Executes a layer of the execution's program over a sequence, and tells what it makes, in order of positions.
    ///
    /// # Panics
    /// When there are no tokens or more than the context, one is not below the vocabulary, the layer is of another program,
    /// or `state` has another length: callers check.
    fn execute_layer(&mut self, run: &LayerRun<'_>, visit: &mut dyn FnMut(LayerRow<'_>));
}

impl LayerRun<'_> {
    /// The state at some positions.
    fn state(&self, positions: std::ops::Range<usize>) -> &[i32] {
        let width = self.state.len() / self.tokens.len();
        &self.state[positions.start * width..positions.end * width]
    }
}

impl LayerExecution for Executor {
    fn execute_layer(&mut self, run: &LayerRun<'_>, visit: &mut dyn FnMut(LayerRow<'_>)) {
        let constants = Arc::clone(self.constants());
        let program = constants.program();
        let count = run.tokens.len();
        let mut sequence = Sequence::with_caches(program.caches(), run.layer.caches.clone(), count);
        let chunk = match program.program().head {
            Head::Tokens { .. } => CHUNK,
            Head::Vector { .. } => count,
        };
        let mut position = 0;
        for tokens in run.tokens.chunks(chunk) {
            let logits_from = run.logits_from.saturating_sub(position).min(tokens.len());
            let segment = Segment { sequence: &mut sequence, tokens, logits_from };
            let state = run.state(position..position + tokens.len());
            let kernel = self.kernel();
            match self.forward_layer(&mut [segment], run.layer, state) {
                LayerOutput::State(numbers) => {
                    let width = numbers.len() / tokens.len();
                    for (i, numbers) in numbers.chunks_exact(width).enumerate() {
                        visit(LayerRow::State { position: position + i, numbers });
                    }
                }
                LayerOutput::Tokens(output) => {
                    for i in 0..tokens.len() {
                        let logits = (i >= logits_from).then(|| output.logits(i - logits_from));
                        visit(LayerRow::Token(Row {
                            position: position + i,
                            hidden: output.hidden(i),
                            logits,
                            kernel,
                        }));
                    }
                }
                LayerOutput::Pooled(vectors) => vectors.iter().for_each(|v| visit(LayerRow::Pooled(v))),
            }
            position += tokens.len();
        }
    }
}

impl LayerExecution for ByReference<'_> {
    fn execute_layer(&mut self, run: &LayerRun<'_>, visit: &mut dyn FnMut(LayerRow<'_>)) {
        let (layer, program) = (run.layer, self.0.program().program());
        let output = usize::from(layer.output);
        let given = |state| layer.input.map(|v| (v, state));
        let (hidden, logits) = match program.head {
            Head::Tokens { hidden, logits } => (hidden, usize::from(logits)),
            Head::Vector { pooled } => {
                let rows = Reference::encode_part(self.0, layer.ops.clone(), given(run.state), run.tokens);
                let made = rows.iter().filter_map(|values| values.get(output));
                for (position, value) in made.enumerate() {
                    let numbers = value.integers().0;
                    visit(match layer.output == pooled {
                        true => LayerRow::Pooled(numbers),
                        false => LayerRow::State { position, numbers },
                    });
                }
                return;
            }
        };
        let mut reference = Reference::new(self.0);
        for (position, token) in run.tokens.iter().enumerate() {
            let wanted = layer.output == hidden && position >= run.logits_from;
            let ops = layer.ops.start..if wanted { logits + 1 } else { layer.ops.end };
            let values = reference.step_part(ops, given(run.state(position..position + 1)), *token);
            match &values[output] {
                Value::Integers { v, .. } => visit(LayerRow::State { position, numbers: v }),
                Value::Int8 { q, scales } => {
                    let logits = wanted.then(|| values[logits].integers().0);
                    let hidden = (&q[..], scales[0]);
                    visit(LayerRow::Token(Row { position, hidden, logits, kernel: Kernel::SCALAR }));
                }
            }
        }
    }
}
