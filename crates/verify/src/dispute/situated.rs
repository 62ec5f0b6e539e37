//! What follows from the facts of a program and what a receipt says of an answer.

use std::ops::Range;

use assay_engine::program::{Facts, Head, ValueId};

use super::Statement;
use crate::microstep::Extent;
use crate::trace::block_range;

/// What follows from the facts of a program and a statement.
pub(super) trait Situated {
    fn extent(&self, statement: &Statement) -> Extent;
    /// Positions of a block, and those that a step has rows for.
    fn rows(&self, statement: &Statement, block: u32, step: ValueId) -> Option<(Range<u32>, Range<u32>)>;
}

impl Situated for Facts {
    fn extent(&self, statement: &Statement) -> Extent {
        Extent {
            ops: usize::from(self.ops),
            vocabulary: self.vocabulary,
            residual_frac: self.residual_frac,
            logits: match self.head {
                Head::Tokens { logits, .. } => Some(logits),
                Head::Vector { .. } => None,
            },
            positions: statement.positions(),
            prompt: statement.prompt,
        }
    }

    fn rows(&self, statement: &Statement, block: u32, step: ValueId) -> Option<(Range<u32>, Range<u32>)> {
        let positions = block_range(statement.positions(), block);
        let Head::Tokens { hidden, .. } = self.head else { return None };
        let first = if step > hidden {
            positions.start.max(statement.prompt.saturating_sub(1)).min(positions.end)
        } else {
            positions.start
        };
        Some((positions.clone(), first..positions.end))
    }
}
