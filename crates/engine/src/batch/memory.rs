//! What serving a model takes of memory: it follows from the program and the limits, before anything is asked.

use super::BatchLimits;
use super::draft::model;
use crate::cache::Sequence;
use crate::forward::{BATCH_ROWS_MAX, Executor};
use crate::program::Head;
use crate::replay::ENCODER_ROWS;

/// Memory that a model takes while it has most to do, in bytes. Its file, which is mapped and can be read again, is beside it, and some kilobytes for each
/// request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// KV caches of what is executed, the draft model's among them.
    pub caches: usize,
    /// Caches that are kept of requests that are over.
    pub prefixes: usize,
    /// What passes are computed with.
    pub passes: usize,
}

impl Memory {
    /// What a batcher takes with an executor, and with a draft model's; or, where the model is an encoder, who encodes with it.
    pub fn of(limits: &BatchLimits, executor: &Executor, draft: Option<&Executor>) -> Memory {
        let checked = executor.constants().program();
        let context = checked.program().context as usize;
        if let Head::Vector { .. } = checked.program().head {
            // Of texts that are encoded together each has whole blocks, and the shortest are one token long.
            let short = ENCODER_ROWS * Sequence::bytes(checked.caches(), 1);
            return Memory {
                caches: short.max(Sequence::bytes(checked.caches(), context)),
                prefixes: 0,
                passes: executor.pass_bytes(ENCODER_ROWS.max(context), 0),
            };
        }
        let running_max = limits.running_max;
        let rows = limits.rows_max.clamp(1, BATCH_ROWS_MAX);
        // Each request wants the logits of one row, or, in a pass that is filled up with proposals, of all its rows.
        let logits = rows.min(running_max.max(limits.draft_rows_max));
        let drafting = |draft: &Executor| draft.pass_bytes(model::ROWS_MAX, model::ROWS_MAX.min(running_max));
        let all = running_max.saturating_mul(cache_bytes(executor, draft, context));
        Memory {
            caches: limits.cache_bytes_max.min(all),
            prefixes: limits.prefix_bytes_max,
            passes: executor.pass_bytes(rows, logits) + draft.map_or(0, drafting),
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.caches.saturating_add(self.prefixes).saturating_add(self.passes)
    }
}

/// Bytes of the caches of a request of so many positions; a draft model's window may be a shorter one.
pub(super) fn cache_bytes(executor: &Executor, draft: Option<&Executor>, capacity: usize) -> usize {
    let of = |executor: &Executor| {
        let checked = executor.constants().program();
        Sequence::bytes(checked.caches(), capacity.min(checked.program().context as usize))
    };
    of(executor) + draft.map_or(0, of)
}
