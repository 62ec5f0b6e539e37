//! A batch on its way through a program. It stops before an operation whose constants are not there yet, and goes on from there:
//! no operation is executed twice.

use std::sync::Arc;

use super::{Batch, Companion, Executor, Output, Segment, watched};
use crate::plan::Place;
use crate::presence::Lack;

/// A batch on its way. It is the only one of its executor until it is done or dropped.
pub struct Pass {
    batch: Batch,
    /// The rows that want logits.
    wanted: Vec<usize>,
    next: usize,
}

impl Pass {
    pub(super) fn new(first: usize, batch: Batch, wanted: Vec<usize>) -> Pass {
        Pass { batch, wanted, next: first }
    }

    /// The operation that is executed next; all before it were.
    pub fn next_op(&self) -> usize {
        self.next
    }
}

impl Executor {
    /// A pass of a batch of 1 to [`super::BATCH_ROWS_MAX`] rows, of which nothing is executed.
    ///
    /// # Panics
    /// As [`Executor::forward`], but for constants that arrive.
    pub fn begin(&self, segments: &[Segment<'_>]) -> Pass {
        let batch = self.enter(segments);
        let wanted = batch.wanted(segments);
        Pass::new(0, batch, wanted)
    }

    /// Goes on with a pass of this executor, with the segments that it was begun with: to its end, or to an operation that
    /// lacks something. Then nothing of this executor or of the sequences may be used for anything else until the pass went on
    /// or was dropped, and with it the sequences.
    pub fn go_on(&mut self, pass: &mut Pass, segments: &mut [Segment<'_>]) -> Result<Output<'_>, Lack> {
        self.advance(pass, segments, &mut watched::Alone)?;
        Ok(self.output(pass))
    }

    /// A pass that lacks nothing, to its end.
    pub(super) fn finish(
        &mut self,
        pass: &mut Pass,
        segments: &mut [Segment<'_>],
        companion: &mut dyn Companion,
    ) -> Output<'_> {
        let advanced = self.advance(pass, segments, companion);
        assert_eq!(advanced, Ok(()), "constants that are still arriving are executed by passes");
        self.output(pass)
    }

    /// Executes the operations up to the hidden vector, and the rest for the rows that want logits.
    fn advance(
        &mut self,
        pass: &mut Pass,
        segments: &mut [Segment<'_>],
        companion: &mut dyn Companion,
    ) -> Result<(), Lack> {
        let constants = Arc::clone(&self.constants);
        let (hidden_value, logits) = constants.program().program().tokens();
        let after_hidden = usize::from(hidden_value) + 1;
        let rows = pass.batch.tokens.len();
        let stop = |next: &mut usize, (op, lack)| {
            *next = op;
            lack
        };
        if pass.next < after_hidden {
            self.execute_some(pass.next..after_hidden, &pass.batch, segments, rows, companion)
                .map_err(|stopped| stop(&mut pass.next, stopped))?;
            for s in segments.iter_mut() {
                s.sequence.advance(s.tokens.len());
            }
            self.keep_hidden(hidden_value, rows);
            if !pass.wanted.is_empty() {
                self.carry(&pass.wanted);
            }
            pass.next = after_hidden;
        }
        let end = usize::from(logits) + 1;
        if !pass.wanted.is_empty() {
            self.execute_some(pass.next..end, &pass.batch, segments, pass.wanted.len(), companion)
                .map_err(|stopped| stop(&mut pass.next, stopped))?;
        }
        pass.next = end;
        Ok(())
    }

    fn output(&self, pass: &Pass) -> Output<'_> {
        let program = self.constants.program().program();
        let vocabulary = program.vocabulary as usize;
        let (_, logits) = program.tokens();
        let logits = match self.plan.places[usize::from(logits)] {
            Place::Integers(b) if !pass.wanted.is_empty() => {
                &self.buffers.integers[b][..pass.wanted.len() * vocabulary]
            }
            _ => &[],
        };
        Output { hidden: &self.hidden, logits, vocabulary }
    }
}
