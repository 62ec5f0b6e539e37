//! Whether output ids are what the logits of the opened tokens choose.

use assay_core::request::sampler_seed;
use assay_core::verdict::FailureCode;
use assay_engine::kernel::Kernel;
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::logprobs::logprobs;

use super::{Audited, Cost, Mistake};
use crate::report::Report;
use crate::subject::{Guided, guided};

/// The choices of output ids.
pub(super) struct Choices<'a> {
    audited: &'a Audited<'a>,
    kernel: Kernel,
    seed: [u8; 32],
    history: History,
    guide: Option<Guided>,
    /// Output ids that history and guide have taken in.
    taken: usize,
    without_mask: u64,
}

/// How the choices came out.
pub(super) struct Tokens {
    without_mask: u64,
    probabilities: bool,
}

impl<'a> Choices<'a> {
    pub(super) fn new(audited: &'a Audited<'a>, kernel: Kernel) -> Result<Choices<'a>, Mistake> {
        let (record, known) = (audited.record, audited.known);
        let t = &record.transcript;
        let guide = match known.subject.map(|s| guided(record, s)).transpose() {
            Ok(guide) => guide.flatten(),
            Err(message) => {
                return Err(Mistake { check: "choices", code: FailureCode::Limits, position: None, message });
            }
        };
        let seed = sampler_seed(t.nonce, record.request.hash(), record.receipt.receipt.model_root);
        let history = History::new(&t.prompt_ids);
        Ok(Choices { audited, kernel, seed, history, guide, taken: 0, without_mask: 0 })
    }

    /// Whether `logits` choose the answer's token `index`.
    pub(super) fn check(&mut self, index: usize, logits: &[i32], cost: &mut Cost) -> Result<(), Mistake> {
        let record = self.audited.record;
        let (t, request) = (&record.transcript, &record.request);
        for id in t.output_ids.iter().take(index).skip(self.taken) {
            self.history.push(*id);
            if let Some(guide) = &mut self.guide {
                guide.push(*id);
            }
        }
        self.taken = index;
        let Some(got) = t.output_ids.get(index).copied() else { return Ok(()) };
        let at = u32::try_from(index).unwrap_or(u32::MAX);
        if let Some(count) = request.logprobs
            && t.logprobs.get(index) != Some(&logprobs(logits, got, count))
        {
            let message = format!("the probabilities of output token {index} are not the model's");
            return Err(Mistake::new("choices", FailureCode::Logprobs, at, message));
        }
        let mask = match (&mut self.guide, self.audited.known.mask) {
            (Some(guide), _) => Some(guide.mask()),
            (None, Some(mask)) if request.guide.is_some() => mask(index),
            (None, _) => None,
        };
        if request.guide.is_some() && mask.is_none() {
            self.without_mask += 1;
            return Ok(());
        }
        cost.choices += 1;
        let want =
            self.kernel.choose(logits, &self.history, mask.as_ref(), &request.sampling, &self.seed, at);
        if want == got {
            return Ok(());
        }
        let message = format!("output token {index}: the model chooses {want}, the transcript has {got}");
        Err(Mistake::new("choices", FailureCode::OutputId, at, message))
    }

    pub(super) fn done(self) -> Tokens {
        Tokens {
            without_mask: self.without_mask,
            probabilities: self.audited.record.request.logprobs.is_some(),
        }
    }
}

impl Tokens {
    pub(super) fn report(self, report: &mut Report, cost: &Cost) {
        let probabilities = if self.probabilities { ", probabilities included" } else { "" };
        let detail =
            format!("{} follow from the logits, the request and the seed{probabilities}", cost.choices);
        if self.without_mask == 0 {
            report.pass("choices", detail);
            return;
        }
        let message = format!("{detail}; {} depend on a mask, which was not checked", self.without_mask);
        match cost.choices {
            0 => report.not_run("choices", &message),
            _ => report.pass("choices", message),
        }
        report.unseen("the mask of the guide was not checked: neither a tokenizer nor masks were given");
    }
}
