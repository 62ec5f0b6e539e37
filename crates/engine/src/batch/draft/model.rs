//! Proposals of a draft model: a smaller one with the same tokens, which executes ahead of the one that answers.
//!
//! It chooses as that one does, by the request's parameters and seed, so that where both see the same likelihoods they draw the same token. A guide's
//! mask and the penalties for what it has itself proposed are left to the model that answers, which judges every proposal anyway.
//!
//! Invariant: what it has executed of a request are the first of the request's own tokens. It reads a prompt when it is first asked for a proposal,
//! in shares, so that nobody waits long for it.

use std::sync::Arc;

use super::super::Job;
use super::Pace;
use crate::artifact::Artifact;
use crate::cache::Sequence;
use crate::constants::Constants as _;
use crate::forward::{Executor, Segment};
use crate::kernel::Kernel;
use crate::pool::Pool;
use crate::program::Head;
use crate::semantics::adjust::History;

/// Tokens that it reads in one go, of all requests together.
pub(in super::super) const ROWS_MAX: usize = 64;

/// Why a model cannot propose tokens for another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// One of them writes nothing.
    #[error("`{draft}` cannot draft for `{model}`: both must be models that write")]
    NoDecoder {
        /// Who was to propose.
        draft: String,
        /// For whom.
        model: String,
    },
    /// They cut texts into other tokens.
    #[error("`{draft}` cannot draft for `{model}`: their tokenizers are not the same bytes")]
    OtherTokenizer {
        /// Who was to propose.
        draft: String,
        /// For whom.
        model: String,
    },
    /// One of them has more tokens.
    #[error("`{draft}` cannot draft for `{model}`: it has {got} tokens, and not {expected}")]
    OtherVocabulary {
        /// Who was to propose.
        draft: String,
        /// For whom.
        model: String,
        /// Its tokens.
        got: u32,
        /// Those of the model that answers.
        expected: u32,
    },
}

impl DraftError {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        match self {
            DraftError::NoDecoder { .. } => "draft_no_decoder",
            DraftError::OtherTokenizer { .. } => "draft_other_tokenizer",
            DraftError::OtherVocabulary { .. } => "draft_other_vocabulary",
        }
    }
}

/// A model whose tokens are those of the model that it is to propose for.
#[derive(Clone)]
pub struct Draft(Arc<Artifact>);

impl Draft {
    /// Whether `draft` has the tokens of `model`: the same bytes of a tokenizer, and as many ids.
    pub fn of(draft: &Arc<Artifact>, model: &Artifact) -> Result<Draft, DraftError> {
        let names = || (draft.provenance().name.clone(), model.provenance().name.clone());
        let programs = [draft, model].map(|artifact| artifact.program().program());
        if programs.iter().any(|program| matches!(program.head, Head::Vector { .. })) {
            let (draft, model) = names();
            return Err(DraftError::NoDecoder { draft, model });
        }
        if draft.tokenizer_json() != model.tokenizer_json() {
            let (draft, model) = names();
            return Err(DraftError::OtherTokenizer { draft, model });
        }
        let [got, expected] = programs.map(|program| program.vocabulary);
        if got != expected {
            let (draft, model) = names();
            return Err(DraftError::OtherVocabulary { draft, model, got, expected });
        }
        Ok(Draft(Arc::clone(draft)))
    }

    /// The artifact.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.0
    }

    /// What executes it.
    pub fn executor(&self, kernel: Kernel, pool: Arc<Pool>) -> Executor {
        Executor::new(self.0.shared(), kernel, pool)
    }
}

/// The draft model of a batcher.
pub(in super::super) struct DraftModel {
    executor: Executor,
}

/// What it has of one request.
pub(in super::super) struct Ahead {
    sequence: Sequence,
    pace: Pace,
}

/// A request that wants proposals.
pub(in super::super) struct Asking<'a> {
    pub(in super::super) ahead: &'a mut Ahead,
    pub(in super::super) job: &'a Job,
    pub(in super::super) output: &'a [u32],
    pub(in super::super) history: &'a History,
    /// How many, at least one.
    pub(in super::super) most: usize,
    /// What it executes, after which proposals are put.
    pub(in super::super) tokens: &'a mut Vec<u32>,
}

/// A request while proposals are made for it.
struct Writing<'a> {
    asking: Asking<'a>,
    /// What is executed next.
    next: Vec<u32>,
    /// Whether a token is chosen after that.
    chooses: bool,
    /// Tokens that were proposed.
    proposed: usize,
}

impl Ahead {
    /// How many tokens are to be proposed now, at most `most`, for a request that has `total` tokens.
    pub(in super::super) fn due(&mut self, total: usize, most: usize) -> usize {
        // The last proposal is not executed.
        let room = (self.sequence.capacity() + 1).saturating_sub(total);
        self.pace.due(most.min(room))
    }

    pub(in super::super) fn learn(&mut self, proposed: usize, chosen: usize) {
        self.pace.learn(proposed, chosen);
    }

    /// Forgets what is not among the request's tokens, of which the last was chosen and was not executed here.
    pub(in super::super) fn follow(&mut self, total: usize) {
        if self.sequence.position() >= total {
            self.sequence.rewind(total.saturating_sub(1));
        }
    }
}

impl DraftModel {
    pub(in super::super) fn new(executor: Executor) -> DraftModel {
        DraftModel { executor }
    }

    pub(in super::super) fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(in super::super) fn vocabulary(&self) -> u32 {
        self.executor.constants().program().program().vocabulary
    }

    /// For a request of so many positions.
    pub(in super::super) fn ahead(&self, capacity: usize) -> Ahead {
        let checked = self.executor.constants().program();
        // Its window may be a shorter one.
        let capacity = capacity.min(checked.program().context as usize);
        Ahead { sequence: Sequence::new(checked.caches(), capacity), pace: Pace::new() }
    }

    /// Proposes for all who ask, in passes that they share. Whose tokens it has not all read yet gets nothing this time.
    pub(in super::super) fn propose<'a>(
        &mut self,
        asking: impl Iterator<Item = Asking<'a>>,
        end_tokens: &[u32],
    ) {
        let mut left = ROWS_MAX;
        let mut all: Vec<Writing<'_>> = Vec::new();
        for asking in asking {
            let tokens = asking.job.prompt.iter().chain(asking.output);
            let next: Vec<u32> = tokens.copied().skip(asking.ahead.sequence.position()).take(left).collect();
            left -= next.len();
            let read = asking.ahead.sequence.position() + next.len();
            let chooses = !next.is_empty() && read == asking.job.prompt.len() + asking.output.len();
            all.push(Writing { asking, next, chooses, proposed: 0 });
        }
        let kernel = self.executor.kernel();
        loop {
            all.retain(|w| !w.next.is_empty());
            if all.is_empty() {
                return;
            }
            let mut segments: Vec<Segment<'_>> = all
                .iter_mut()
                .map(|w| Segment {
                    sequence: &mut w.asking.ahead.sequence,
                    logits_from: w.next.len() - usize::from(w.chooses),
                    tokens: &w.next,
                })
                .collect();
            let output = self.executor.forward(&mut segments);
            let mut row = 0;
            for w in &mut all {
                w.next.clear();
                if !w.chooses {
                    continue;
                }
                let Asking { job, output: written, history, most, tokens, .. } = &mut w.asking;
                let at = (written.len() + w.proposed) as u32;
                let id = kernel.choose(output.logits(row), history, None, &job.sampling, &job.seed, at);
                row += 1;
                // An answer that ends executes nothing more: its end is not worth a row.
                if end_tokens.contains(&id) {
                    continue;
                }
                tokens.push(id);
                w.proposed += 1;
                if w.proposed < *most {
                    w.next.push(id);
                }
            }
        }
    }
}
