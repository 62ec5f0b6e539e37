//! A place for a stopwatch: a verifier has no clock, but whoever calls it may.

use std::sync::Arc;

/// What a check spends its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The record's own bindings, signature included, and the shapes of the opening.
    Record,
    /// Hashing keys, values and hidden vectors to the trace root.
    Commitments,
    /// Filling the caches with the keys and values of earlier positions.
    Caches,
    /// Embedded rows: their Merkle proofs.
    Rows,
    /// Unpacking accumulators, and Freivalds' check of them.
    Products,
    /// Attention.
    Attention,
    /// Norms, quantisation, rotation, gates and sums.
    Elementwise,
    /// Comparing keys, values and hidden vectors with the committed ones.
    States,
    /// Choosing output ids.
    Choices,
}

/// Is told of a stage as it ends: what it did since it was last told belongs to that stage.
#[derive(Clone, Default)]
pub(super) struct Watch(Option<Arc<dyn Fn(Stage) + Send + Sync>>);

impl Watch {
    pub(super) fn new(tell: impl Fn(Stage) + Send + Sync + 'static) -> Watch {
        Watch(Some(Arc::new(tell)))
    }

    pub(super) fn done(&self, stage: Stage) {
        if let Some(tell) = &self.0 {
            tell(stage);
        }
    }
}
