//! One layer of a program, from the numbers of the one value that it reads.

use std::sync::Arc;

use super::{Executor, Output, Pass, Segment, Values, watched};
use crate::program::layers::Layer;
use crate::program::{Head, Op};
use crate::semantics::scale::Scale;

/// What a layer made of a batch.
pub enum LayerOutput<'a> {
    /// What it hands on: rows × length fixed-point numbers.
    State(&'a [i32]),
    /// Hidden vectors and logits: the last layer of a program that makes tokens.
    Tokens(Output<'a>),
    /// A vector for each segment: the last layer of an encoder.
    Pooled(Vec<Vec<i32>>),
}

impl Executor {
    /// Executes a batch of 1 to [`super::BATCH_ROWS_MAX`] rows by one layer, from `state`: rows × length numbers of the value that it
    /// reads, none for the first layer. Sequences need only the caches of this layer, and constants only its tensors; an
    /// encoder's sequences come whole.
    ///
    /// # Panics
    /// As [`Executor::forward`], and when the layer is of another program or `state` has another length.
    pub fn forward_layer(
        &mut self,
        segments: &mut [Segment<'_>],
        layer: &Layer,
        state: &[i32],
    ) -> LayerOutput<'_> {
        let batch = self.enter(segments);
        let rows = batch.tokens.len();
        let constants = Arc::clone(&self.constants);
        let program = constants.program();
        if let Some(value) = layer.input {
            let scale = Scale::power(-(program.frac(value) as i16));
            Values::new(self, rows).put_integers(value, state, vec![scale; rows]);
        }
        let alone = &mut watched::Alone;
        match program.program().head {
            Head::Tokens { hidden, .. } if layer.output == hidden => {
                let wanted = batch.wanted(segments);
                let mut pass = Pass::new(layer.ops.start, batch, wanted);
                return LayerOutput::Tokens(self.finish(&mut pass, segments, alone));
            }
            Head::Vector { pooled } if layer.output == pooled => {
                let Op::Pool { x, pooling } = program.program().ops[usize::from(pooled)] else {
                    unreachable!("a checked encoder ends in its pooled vector")
                };
                self.execute_all(layer.ops.start..usize::from(pooled), &batch, segments, rows, alone);
                let pooled = batch.runs.iter().map(|run| self.pool_run(x, pooling, run));
                return LayerOutput::Pooled(pooled.collect());
            }
            Head::Tokens { .. } | Head::Vector { .. } => {}
        }
        self.execute_all(layer.ops.clone(), &batch, segments, rows, alone);
        for s in segments.iter_mut() {
            s.sequence.advance(s.tokens.len());
        }
        LayerOutput::State(&self.integers(layer.output)[..rows * self.width(layer.output)])
    }
}
