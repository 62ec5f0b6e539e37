//! Continuous batching: many requests share each pass over the weights, joining and leaving between passes.
//!
//! A pass holds one token of every request that is decoding, and fills up with chunks of waiting prompts. None of this
//! shows in the answers: each equals what the request would have got alone. The batcher has no threads, clocks or
//! channels of its own; its owner calls [`Batcher::step`] in a loop.
//!
//! What a request has executed is kept as blocks of its cache (`prefix`), and whoever begins with the same tokens goes on after them: tokens,
//! digests and probabilities are those of a request that executed everything itself. Where few requests decode, a pass also executes tokens that
//! are likely to follow (`draft`; some of them by another model): those that are then chosen need no pass of their own, and the others are taken back.

use std::collections::VecDeque;

use assay_core::digest::{DigestBuilder, ExecutionDigests};
use assay_core::request::Sampling;
use assay_core::transcript::{StopReason, TokenLogprobs};

use crate::cache::Sequence;
use crate::forward::{Executor, Pass};
use crate::presence::Lack;
use crate::semantics::adjust::History;
use crate::text::Tokenizer;
use crate::text::guide::Guided;
use crate::transcribe::{StopRules, Transcriber};

mod active;
mod draft;
mod memory;
mod prefix;

use active::{Active, segments};
pub use draft::model::{Draft, DraftError};
pub use memory::Memory;

use draft::Drafter;
use draft::model::DraftModel;
use prefix::Prefixes;

/// Names a job to its owner.
pub type JobId = u64;

/// One generation.
#[derive(Clone, Debug)]
pub struct Job {
    /// Chosen by the owner, unique among live jobs.
    pub id: JobId,
    /// At least one id, each below the vocabulary, fewer than the context.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the sampler.
    pub seed: [u8; 32],
    /// Most tokens to generate; 0 for as many as fit.
    pub max_tokens: u32,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// The form that the answer must have.
    pub guide: Option<Guided>,
    /// Record probabilities, and so many of the likeliest tokens beside the chosen one.
    pub logprobs: Option<u8>,
}

/// How much a batcher takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Requests that are executed at the same time.
    pub running_max: usize,
    /// Requests that wait for their turn.
    pub waiting_max: usize,
    /// Bytes of KV caches.
    pub cache_bytes_max: usize,
    /// Bytes of caches that are kept of requests, beside those of the ones that run, for others that begin alike; 0 for none.
    pub prefix_bytes_max: usize,
    /// Tokens in one pass.
    pub rows_max: usize,
    /// Tokens up to which a pass in which all requests decode is filled up with proposals of what follows; 0 for no proposals.
    pub draft_rows_max: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        BatchLimits {
            running_max: 64,
            waiting_max: 256,
            cache_bytes_max: 2 << 30,
            prefix_bytes_max: 512 << 20,
            rows_max: 256,
            draft_rows_max: 16,
        }
    }
}

/// Why a job was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The prompt and one token do not fit the window.
    #[error("the prompt has {prompt} tokens, but the model's window holds {window} including the answer")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the window.
        window: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty; give the model at least one token")]
    PromptEmpty,
    /// A token id does not exist.
    #[error("token id {id} is not below the vocabulary of {vocabulary}")]
    TokenUnknown {
        /// The id.
        id: u32,
        /// Number of ids.
        vocabulary: u32,
    },
    /// The caches of this request alone exceed the memory limit.
    #[error("the request needs {needed} bytes of cache, but the server has {limit}; lower max_tokens")]
    CacheTooSmall {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        limit: usize,
    },
    /// Too many requests wait.
    #[error("{waiting} requests are waiting already; try again later")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
}

/// What happens to a job.
#[derive(Debug)]
pub enum Event {
    /// It left the queue: the next pass executes some of its prompt.
    Admitted,
    /// The whole prompt has been read and the first token chosen.
    Started {
        /// Tokens of the prompt that were not executed, since an earlier request had executed the same beginning.
        cached_tokens: u32,
    },
    /// A token was chosen.
    Token {
        /// The token.
        id: u32,
        /// What text has become certain, perhaps none.
        text: String,
        /// How likely it was, if the job asks for that.
        logprobs: Option<TokenLogprobs>,
    },
    /// The answer was stopped, and this text of it was held back until now. Its end follows.
    Rest(String),
    /// The answer is complete, or was stopped.
    Done(Box<Answer>),
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the model read.
    pub prompt: Vec<u32>,
    /// What it wrote, the end token included.
    pub output: Vec<u32>,
    /// The text of it.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Digests of the execution.
    pub digests: ExecutionDigests,
    /// How likely each token was, if the job asks for that.
    pub logprobs: Vec<TokenLogprobs>,
}

/// What a batcher is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests being executed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Bytes of KV caches in use.
    pub cache_bytes: usize,
}

/// What a batcher was spared, since it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// Tokens of the prompts of requests that were admitted.
    pub prompt_tokens: u64,
    /// Requests that went on after what others had executed.
    pub prefix_hits: u64,
    /// Tokens of prompts that were not executed for that.
    pub prefix_tokens: u64,
    /// Bytes of caches that are kept now for others that begin alike.
    pub prefix_bytes: usize,
    /// Tokens that were executed as proposals.
    pub drafted: u64,
    /// Those of them that were then chosen: each is a pass that its request was spared.
    pub drafts_chosen: u64,
    /// Those of the proposals that a draft model made.
    pub model_drafted: u64,
    /// Those of them that were then chosen.
    pub model_drafts_chosen: u64,
}

/// The pass under way, of requests that stay where they are among those that run until it ends.
struct UnderWay {
    pass: Pass,
    /// Which requests are in it.
    taking: Vec<usize>,
    /// Their tokens, and the first of them after which a next one is to be chosen: those behind it are proposals.
    tokens: Vec<(Vec<u32>, usize)>,
    /// Where their sequences were before.
    positions: Vec<usize>,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// The pass is done, or there was nothing to do.
    Done,
    /// The pass stopped before an operation of the program that lacks something: the next step goes on there.
    Lacks {
        /// The operation.
        op: usize,
        /// What it lacks.
        lack: Lack,
    },
}

/// The batcher of one model.
pub struct Batcher<'t> {
    executor: Executor,
    draft: Option<DraftModel>,
    tokenizer: &'t Tokenizer,
    end_tokens: Vec<u32>,
    limits: BatchLimits,
    waiting: VecDeque<Job>,
    running: Vec<Active<'t>>,
    cache_bytes: usize,
    prefixes: Prefixes,
    spared: Spared,
    under_way: Option<UnderWay>,
}

impl<'t> Batcher<'t> {
    /// An idle batcher. `end_tokens` end every answer.
    pub fn new(
        executor: Executor,
        tokenizer: &'t Tokenizer,
        end_tokens: Vec<u32>,
        limits: BatchLimits,
    ) -> Self {
        let prefixes = Prefixes::new(executor.constants().program().caches(), limits.prefix_bytes_max);
        Batcher {
            executor,
            draft: None,
            tokenizer,
            end_tokens,
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            cache_bytes: 0,
            prefixes,
            spared: Spared::default(),
            under_way: None,
        }
    }

    /// The same with a draft model, which proposes tokens where the request's own text has nothing to propose. No answer is another for it; requests
    /// take the memory of its caches too.
    ///
    /// # Panics
    /// When it has not as many tokens as the model that answers: [`Draft::of`] checks that, and that they are the same.
    #[must_use]
    pub fn drafting(mut self, draft: Executor) -> Self {
        let draft = DraftModel::new(draft);
        let vocabulary = self.executor.constants().program().program().vocabulary;
        assert_eq!(draft.vocabulary(), vocabulary, "a draft model has the tokens of the model that answers");
        self.draft = Some(draft);
        self
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// What it is busy with.
    pub fn load(&self) -> Load {
        let running = self.running.iter().filter(|a| !a.cancelled).count();
        Load { running, waiting: self.waiting.len(), cache_bytes: self.cache_bytes }
    }

    /// What it was spared.
    pub fn spared(&self) -> Spared {
        Spared { prefix_bytes: self.prefixes.bytes(), ..self.spared }
    }

    /// The executor.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    fn context(&self) -> usize {
        self.executor.constants().program().program().context as usize
    }

    fn capacity(&self, job: &Job) -> usize {
        let asked = if job.max_tokens == 0 { usize::MAX } else { job.max_tokens as usize };
        job.prompt.len().saturating_add(asked).min(self.context())
    }

    /// Bytes of the caches of a request of so many positions.
    fn cache_bytes_for(&self, capacity: usize) -> usize {
        let draft = self.draft.as_ref().map(DraftModel::executor);
        memory::cache_bytes(&self.executor, draft, capacity)
    }

    /// Takes a job on, to be started when there is room.
    pub fn submit(&mut self, job: Job) -> Result<(), SubmitError> {
        let vocabulary = self.executor.constants().program().program().vocabulary;
        if job.prompt.is_empty() {
            return Err(SubmitError::PromptEmpty);
        }
        if job.prompt.len() >= self.context() {
            return Err(SubmitError::PromptTooLong { prompt: job.prompt.len(), window: self.context() });
        }
        if let Some(id) = job.prompt.iter().find(|id| **id >= vocabulary) {
            return Err(SubmitError::TokenUnknown { id: *id, vocabulary });
        }
        let needed = self.cache_bytes_for(self.capacity(&job));
        if needed > self.limits.cache_bytes_max {
            return Err(SubmitError::CacheTooSmall { needed, limit: self.limits.cache_bytes_max });
        }
        if self.waiting.len() >= self.limits.waiting_max {
            return Err(SubmitError::QueueFull { waiting: self.waiting.len() });
        }
        self.waiting.push_back(job);
        Ok(())
    }

    /// Drops a job, waiting or running; false if there is none of that id.
    pub fn cancel(&mut self, id: JobId) -> bool {
        if let Some(i) = self.waiting.iter().position(|j| j.id == id) {
            self.waiting.remove(i);
            return true;
        }
        let Some(i) = self.running.iter().position(|a| a.job.id == id && !a.cancelled) else { return false };
        self.running[i].cancelled = true;
        // A pass that nobody in it waits for ends here; otherwise it is what keeps requests in their places.
        let running = &self.running;
        if self.under_way.take_if(|w| w.taking.iter().all(|i| running[*i].cancelled)).is_some()
            || self.under_way.is_none()
        {
            self.drop_cancelled();
        }
        true
    }

    /// Ends a job after the token that it is at: what there is of its answer is reported, now or by the step that ends the pass under way. One whose
    /// prompt is being read ends with its first token. One that waits is dropped. False if nothing is reported: it waited, or there is none of that id.
    pub fn stop(&mut self, id: JobId, report: &mut dyn FnMut(JobId, Event)) -> bool {
        if let Some(i) = self.waiting.iter().position(|j| j.id == id) {
            self.waiting.remove(i);
            return false;
        }
        let Some(a) = self.running.iter_mut().find(|a| a.job.id == id && !a.cancelled) else { return false };
        a.stopping = true;
        // A pass keeps requests in their places.
        if self.under_way.is_none() {
            self.retire(report);
        }
        true
    }

    fn drop_cancelled(&mut self) {
        let gone: usize = self.running.iter().filter(|a| a.cancelled).map(|a| a.cache_bytes).sum();
        self.cache_bytes -= gone;
        self.running.retain(|a| !a.cancelled);
    }

    fn admit(&mut self, report: &mut dyn FnMut(JobId, Event)) {
        while self.running.len() < self.limits.running_max {
            let Some(job) = self.waiting.front() else { return };
            let capacity = self.capacity(job);
            let cache_bytes = self.cache_bytes_for(capacity);
            if self.cache_bytes + cache_bytes > self.limits.cache_bytes_max {
                return;
            }
            let Some(job) = self.waiting.pop_front() else { return };
            report(job.id, Event::Admitted);
            let rules = StopRules {
                end_tokens: self.end_tokens.clone(),
                stop: job.stop.clone(),
                max_tokens: job.max_tokens,
                context: self.context() as u32,
                prompt_tokens: job.prompt.len() as u32,
            };
            self.cache_bytes += cache_bytes;
            self.spared.prompt_tokens += job.prompt.len() as u64;
            self.running.push(Active {
                sequence: Sequence::new(self.executor.constants().program().caches(), capacity),
                cache_bytes,
                output: Vec::new(),
                blocks: 0,
                cached_tokens: 0,
                history: History::new(&job.prompt),
                logprobs: Vec::new(),
                digests: DigestBuilder::new(),
                drafter: Drafter::new(),
                ahead: self.draft.as_ref().map(|draft| draft.ahead(capacity)),
                by_model: false,
                transcriber: Transcriber::new(self.tokenizer, rules),
                cancelled: false,
                stopping: false,
                job,
            });
        }
    }

    /// Whom the next pass is for and which tokens it executes; `None` when nobody runs.
    fn compose(&mut self, report: &mut dyn FnMut(JobId, Event)) -> Option<UnderWay> {
        self.admit(report);
        let rows_max = self.limits.rows_max.clamp(1, crate::forward::BATCH_ROWS_MAX);
        // Decoding requests first: each needs one row, and someone is reading along.
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|i| self.running[*i].output.is_empty());
        let mut shares = vec![0usize; self.running.len()];
        let mut left = rows_max;
        for i in order {
            // Whoever gets no row now may find more in the next pass, of somebody who begins alike and is ahead.
            if left > 0 && self.running[i].output.is_empty() {
                self.running[i].resume(&mut self.prefixes, &mut self.spared);
            }
            shares[i] = self.running[i].pending().len().min(left);
            left -= shares[i];
        }
        let taking: Vec<usize> = (0..shares.len()).filter(|i| shares[*i] > 0).collect();
        if taking.is_empty() {
            return None;
        }
        let most = self.draft_most(taking.len(), rows_max - left);
        let mut tokens: Vec<(Vec<u32>, usize)> = taking
            .iter()
            .map(|i| {
                let a = &mut self.running[*i];
                let pending = a.pending();
                let mut tokens = pending[..shares[*i]].to_vec();
                if tokens.len() < pending.len() {
                    return (tokens, shares[*i]);
                }
                tokens.extend(a.propose(most));
                (tokens, shares[*i] - 1)
            })
            .collect();
        if let Some(draft) = self.draft.as_mut().filter(|_| most > 0) {
            // Everybody decodes, and is taken.
            let asking = self.running.iter_mut().zip(&mut tokens);
            let asking = asking.filter(|(_, (tokens, logits_from))| tokens.len() == logits_from + 1);
            draft.propose(asking.filter_map(|(a, (tokens, _))| a.ask(most, tokens)), &self.end_tokens);
        }
        for (i, (tokens, logits_from)) in taking.iter().zip(&tokens) {
            let proposed = tokens.len().saturating_sub(logits_from + 1) as u64;
            self.spared.drafted += proposed;
            self.spared.model_drafted += if self.running[*i].by_model { proposed } else { 0 };
        }
        let positions = taking.iter().map(|i| self.running[*i].sequence.position()).collect();
        let pass = self.executor.begin(&segments(&mut self.running, &taking, &tokens));
        Some(UnderWay { pass, taking, tokens, positions })
    }

    /// Most tokens that may be proposed for each of `requests`, of a pass of `rows` rows: none if it executes prompts, which leave no processor idle.
    fn draft_most(&self, requests: usize, rows: usize) -> usize {
        let decoding = rows == self.running.len() && self.running.iter().all(|a| !a.output.is_empty());
        let rows_max =
            self.limits.draft_rows_max.min(self.limits.rows_max).min(crate::forward::BATCH_ROWS_MAX);
        if decoding { rows_max.saturating_sub(rows) / requests } else { 0 }
    }

    /// One pass: executes the next tokens of running requests and reports what happened to each. With a model that arrives, it may
    /// stop on the way; the next step goes on with it.
    pub fn step(&mut self, report: &mut dyn FnMut(JobId, Event)) -> Stepped {
        let begun = self.under_way.take();
        let Some(mut under_way) = begun.or_else(|| self.compose(report)) else { return Stepped::Done };
        let kernel = self.executor.kernel();
        let UnderWay { pass, taking, tokens, positions } = &mut under_way;
        let executed = self.executor.go_on(pass, &mut segments(&mut self.running, taking, tokens));
        let output = match executed {
            Ok(output) => output,
            Err(lack) => {
                let op = pass.next_op();
                self.under_way = Some(under_way);
                return Stepped::Lacks { op, lack };
            }
        };
        let (mut first_row, mut first_logits) = (0, 0);
        for ((i, position), (tokens, logits_from)) in taking.iter().zip(positions).zip(tokens) {
            let a = &mut self.running[*i];
            let mut executed = 0;
            while let Some(token) = tokens.get(executed) {
                // A proposal stands if it is what was chosen, and an answer that ends executes nothing more.
                let proposed = executed > *logits_from;
                if proposed
                    && (a.output.last() != Some(token) || a.stopping || a.transcriber.stopped().is_some())
                {
                    break;
                }
                let (q, scale) = output.hidden(first_row + executed);
                a.digests.push((*position + executed) as u32, q, scale.mantissa, scale.exponent);
                if let Some(logits) = executed.checked_sub(*logits_from) {
                    a.choose(kernel, output.logits(first_logits + logits), report);
                }
                executed += 1;
            }
            if executed < tokens.len() {
                a.sequence.rewind(*position + executed);
            }
            if let Some(chosen) = executed.checked_sub(*logits_from + 1) {
                a.learn(tokens.len() - *logits_from - 1, chosen);
                self.spared.drafts_chosen += chosen as u64;
                self.spared.model_drafts_chosen += if a.by_model { chosen as u64 } else { 0 };
            }
            first_row += tokens.len();
            first_logits += tokens.len() - *logits_from;
        }
        for i in taking.iter() {
            self.running[*i].keep(&mut self.prefixes);
        }
        self.drop_cancelled();
        self.retire(report);
        Stepped::Done
    }

    fn retire(&mut self, report: &mut dyn FnMut(JobId, Event)) {
        let mut i = 0;
        while i < self.running.len() {
            let a = &mut self.running[i];
            let cancel = a.stopping && !a.output.is_empty();
            let Some(stop) = a.transcriber.stopped().or_else(|| cancel.then(|| a.transcriber.cancel()))
            else {
                i += 1;
                continue;
            };
            let mut a = self.running.remove(i);
            let rest = a.transcriber.take_text().to_owned();
            if !rest.is_empty() {
                report(a.job.id, Event::Rest(rest));
            }
            self.cache_bytes -= a.cache_bytes;
            let answer = Answer {
                text: a.transcriber.text().to_owned(),
                prompt: a.job.prompt,
                output: a.output,
                stop,
                digests: a.digests.finish(),
                logprobs: a.logprobs,
            };
            report(a.job.id, Event::Done(Box::new(answer)));
        }
    }
}
