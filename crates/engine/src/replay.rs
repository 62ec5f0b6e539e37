//! Executing a known sequence from its beginning (teacher forcing): what a verifier does.

use crate::cache::Sequence;
use crate::constants::Constants;
use crate::forward::{Executor, Segment};
use crate::reference::Reference;
use crate::semantics::scale::Scale;

/// Rows of a pass: enough to be fast, few enough that their logits stay small.
const CHUNK: usize = 128;
/// Tokens of one pass of an encoder: enough to be fast, few enough that their values stay in the caches.
const ENCODER_ROWS: usize = 512;

/// What an execution computed at one position.
pub struct Row<'a> {
    /// The position.
    pub position: usize,
    /// The final hidden vector.
    pub hidden: (&'a [i8], Scale),
    /// The logits, where they were asked for.
    pub logits: Option<&'a [i32]>,
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
}

impl Execution for Executor {
    fn replay(&mut self, tokens: &[u32], logits_from: usize, visit: &mut dyn FnMut(Row<'_>)) {
        let constants = std::sync::Arc::clone(self.constants());
        let mut sequence = Sequence::new(constants.program().caches(), tokens.len());
        let mut position = 0;
        for chunk in tokens.chunks(CHUNK) {
            let from = logits_from.saturating_sub(position).min(chunk.len());
            let segment = Segment { sequence: &mut sequence, tokens: chunk, logits_from: from };
            let output = self.forward(&mut [segment]);
            for i in 0..chunk.len() {
                let logits = (i >= from).then(|| output.logits(i - from));
                visit(Row { position: position + i, hidden: output.hidden(i), logits });
            }
            position += chunk.len();
        }
    }

    fn encode(&mut self, inputs: &[&[u32]]) -> Vec<Vec<i32>> {
        together(inputs).flat_map(|group| Executor::encode(self, group)).collect()
    }
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
            visit(Row { position, hidden: (numbers, scales[0]), logits });
        }
    }

    fn encode(&mut self, inputs: &[&[u32]]) -> Vec<Vec<i32>> {
        inputs.iter().map(|tokens| Reference::encode(self.0, tokens)).collect()
    }
}
