//! One request while it is executed: what it has read and written, and what it does next.

use assay_core::digest::DigestBuilder;
use assay_core::transcript::TokenLogprobs;

use super::draft::Drafter;
use super::draft::model::{Ahead, Asking};
use super::prefix::Prefixes;
use super::{Event, Job, JobId, Spared};
use crate::cache::{BLOCK_TOKENS, Sequence};
use crate::forward::Segment;
use crate::kernel::Kernel;
use crate::semantics::adjust::History;
use crate::semantics::logprobs::logprobs;
use crate::text::guide::Guided;
use crate::transcribe::Transcriber;

/// A request that is executed.
pub(super) struct Active<'t> {
    pub(super) job: Job,
    pub(super) sequence: Sequence,
    pub(super) cache_bytes: usize,
    /// Ids chosen so far.
    pub(super) output: Vec<u32>,
    /// Blocks of the sequence that were taken from those kept, or offered to them.
    pub(super) blocks: usize,
    /// Tokens of the prompt that others had executed.
    pub(super) cached_tokens: u32,
    pub(super) history: History,
    pub(super) logprobs: Vec<TokenLogprobs>,
    pub(super) digests: DigestBuilder,
    pub(super) drafter: Drafter,
    /// What the draft model has of it.
    pub(super) ahead: Option<Ahead>,
    /// Whether the draft model made the last proposal.
    pub(super) by_model: bool,
    pub(super) transcriber: Transcriber<'t>,
    /// Dropped while a pass is under way that it may be in: it goes with the end of the pass.
    pub(super) cancelled: bool,
    /// It ends with the token that it is at.
    pub(super) stopping: bool,
}

impl Active<'_> {
    /// Tokens that are still to be executed before the next one can be chosen.
    pub(super) fn pending(&self) -> &[u32] {
        let done = self.sequence.position();
        match done.checked_sub(self.job.prompt.len()) {
            None => &self.job.prompt[done..],
            Some(fed) => &self.output[fed..],
        }
    }

    /// At most `most` tokens that may follow the last one, all within what may still be executed.
    pub(super) fn propose(&mut self, most: usize) -> Vec<u32> {
        self.by_model = false;
        self.drafter.propose(&self.job.prompt, &self.output, most.min(self.left()))
    }

    /// Most tokens that may be proposed: the last token of an answer is not executed.
    fn left(&self) -> usize {
        (self.sequence.capacity() - self.sequence.position()).saturating_sub(2)
    }

    /// Asks the draft model for at most `most` tokens that may follow those that are executed next, if that pays.
    pub(super) fn ask<'a>(&'a mut self, most: usize, tokens: &'a mut Vec<u32>) -> Option<Asking<'a>> {
        let (most, total) = (most.min(self.left()), self.job.prompt.len() + self.output.len());
        let ahead = self.ahead.as_mut()?;
        let most = ahead.due(total, most);
        if most == 0 {
            return None;
        }
        self.by_model = true;
        let Active { job, output, history, .. } = self;
        Some(Asking { ahead, job, output, history, most, tokens })
    }

    /// Learns what became of the proposal.
    pub(super) fn learn(&mut self, proposed: usize, chosen: usize) {
        let Some(ahead) = &mut self.ahead else { return self.drafter.learn(proposed, chosen) };
        ahead.follow(self.job.prompt.len() + self.output.len());
        if self.by_model {
            ahead.learn(proposed, chosen);
        } else {
            self.drafter.learn(proposed, chosen);
        }
    }

    /// Chooses the next token by its logits.
    pub(super) fn choose(&mut self, kernel: Kernel, logits: &[i32], report: &mut dyn FnMut(JobId, Event)) {
        let Job { id: job, sampling, seed, guide, logprobs: likeliest, .. } = &mut self.job;
        let mask = guide.as_mut().map(Guided::mask);
        let at = self.output.len() as u32;
        let id = kernel.choose(logits, &self.history, mask.as_ref(), sampling, seed, at);
        let likely = likeliest.map(|count| logprobs(logits, id, count));
        self.history.push(id);
        if let Some(guide) = guide {
            guide.push(id);
        }
        self.logprobs.extend(likely.clone());
        if self.output.is_empty() {
            report(*job, Event::Started { cached_tokens: self.cached_tokens });
        }
        self.output.push(id);
        self.transcriber.push(id);
        let text = self.transcriber.take_text().to_owned();
        report(*job, Event::Token { id, text, logprobs: likely });
    }

    /// Goes on after blocks that are kept, if it is at the start of one.
    pub(super) fn resume(&mut self, prefixes: &mut Prefixes, spared: &mut Spared) {
        if !self.sequence.position().is_multiple_of(BLOCK_TOKENS) {
            return;
        }
        let tokens = prefixes.resume(&self.job.prompt, &mut self.sequence, &mut self.digests);
        if tokens > 0 {
            self.blocks = self.sequence.position() / BLOCK_TOKENS;
            spared.prefix_tokens += tokens as u64;
            spared.prefix_hits += u64::from(self.cached_tokens == 0);
            self.cached_tokens += tokens as u32;
        }
    }

    /// Offers the blocks that have become whole.
    pub(super) fn keep(&mut self, prefixes: &mut Prefixes) {
        let (position, whole) = (self.sequence.position(), self.sequence.position() / BLOCK_TOKENS);
        if whole > self.blocks {
            self.blocks = whole;
            let executed: Vec<u32> =
                self.job.prompt.iter().chain(&self.output).copied().take(position).collect();
            prefixes.keep(&executed, &self.sequence, self.digests.complete());
        }
    }
}

/// The segments of a pass.
pub(super) fn segments<'a>(
    running: &'a mut [Active<'_>],
    taking: &[usize],
    tokens: &'a [(Vec<u32>, usize)],
) -> Vec<Segment<'a>> {
    let mut taking = taking.iter().peekable();
    let taken = running.iter_mut().enumerate().filter(|(i, _)| taking.next_if_eq(&i).is_some());
    taken
        .zip(tokens)
        .map(|((_, a), (tokens, logits_from))| Segment {
            sequence: &mut a.sequence,
            logits_from: *logits_from,
            tokens,
        })
        .collect()
}
