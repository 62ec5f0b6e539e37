//! What a record says follows from the hidden vectors and logits of its execution: digests, ids, probabilities. Takes them
//! row by row, whoever executes.

use assay_core::answer::AnswerRecord;
use assay_core::digest::DigestBuilder;
use assay_core::id::ModelRoot;
use assay_core::request::sampler_seed;
use assay_core::transcript::TokenLogprobs;
use assay_core::verdict::FailureCode;
use assay_engine::replay::Row;
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::logprobs::logprobs;

use crate::report::{Report, first_difference};
use crate::subject::{Guided, Subject, guided};

/// The ids that the execution of an answer feeds: the prompt's, and all of the answer's but the last.
pub(crate) fn fed(record: &AnswerRecord) -> Vec<u32> {
    let t = &record.transcript;
    let count = t.output_ids.len().saturating_sub(1);
    t.prompt_ids.iter().chain(t.output_ids.iter().take(count)).copied().collect()
}

/// The position from which on logits choose ids.
pub(crate) fn logits_from(record: &AnswerRecord) -> usize {
    record.transcript.prompt_ids.len().saturating_sub(1)
}

/// What leaves only some tokens to choose from.
pub(crate) enum Form {
    /// Nothing: the request has no guide.
    Free,
    /// The request's guide.
    Guided(Box<Guided>),
    /// A guide that cannot be followed here, and why: ids are not checked.
    Unknown(String),
}

impl Form {
    /// That of a record's request, for whoever has a tokenizer or not; why it is none.
    pub(crate) fn of(record: &AnswerRecord, subject: Option<&Subject<'_>>) -> Result<Form, String> {
        match (&record.request.guide, subject) {
            (None, _) => Ok(Form::Free),
            (Some(_), None) => Ok(Form::Unknown("the guide needs the tokenizer".into())),
            (Some(_), Some(subject)) => {
                let guide = guided(record, subject)?;
                Ok(guide.map_or(Form::Free, |g| Form::Guided(Box::new(g))))
            }
        }
    }
}

/// A record's tokens and digests, as far as they have been seen.
pub(crate) struct TokenCheck<'a> {
    record: &'a AnswerRecord,
    seed: [u8; 32],
    form: Form,
    history: History,
    digests: DigestBuilder,
    likely: Vec<TokenLogprobs>,
    wrong: Option<(usize, u32, u32)>,
}

impl<'a> TokenCheck<'a> {
    /// Nothing seen yet; `model` is the root that whoever checks vouches for.
    pub(crate) fn new(record: &'a AnswerRecord, model: ModelRoot, form: Form) -> TokenCheck<'a> {
        TokenCheck {
            record,
            seed: sampler_seed(record.transcript.nonce, record.request.hash(), model),
            form,
            history: History::new(&record.transcript.prompt_ids),
            digests: DigestBuilder::new(),
            likely: Vec::new(),
            wrong: None,
        }
    }

    /// Takes what the execution of [`fed`] computed at the next position, with logits from [`logits_from`] on.
    pub(crate) fn row(&mut self, row: &Row<'_>) {
        let (numbers, scale) = row.hidden;
        let position = u32::try_from(row.position).unwrap_or(u32::MAX);
        self.digests.push(position, numbers, scale.mantissa, scale.exponent);
        let Some(i) = row.position.checked_sub(logits_from(self.record)) else { return };
        let (Some(logits), Some(got)) = (row.logits, self.record.transcript.output_ids.get(i)) else {
            return;
        };
        let request = &self.record.request;
        self.likely.extend(request.logprobs.map(|count| logprobs(logits, *got, count)));
        let mask = match &mut self.form {
            Form::Free => None,
            Form::Guided(guide) => Some(guide.mask()),
            Form::Unknown(_) => return,
        };
        let index = u32::try_from(i).unwrap_or(u32::MAX);
        let want =
            row.kernel.choose(logits, &self.history, mask.as_ref(), &request.sampling, &self.seed, index);
        if want != *got && self.wrong.is_none() {
            self.wrong = Some((i, want, *got));
        }
        self.history.push(*got);
        if let Form::Guided(guide) = &mut self.form {
            guide.push(*got);
        }
    }

    /// Says what was found, after the last position.
    pub(crate) fn report(self, report: &mut Report) {
        let t = &self.record.transcript;
        match (self.form, self.wrong) {
            (Form::Unknown(reason), _) => report.not_run("tokens", &reason),
            (_, None) => {
                let count = t.output_ids.len();
                report.pass("tokens", format!("all {count} follow from the model, the request and the seed"));
            }
            (_, Some((i, want, got))) => {
                let message = format!("output token {i}: the model chooses {want}, the transcript has {got}");
                report.fail("tokens", FailureCode::OutputId, Some(i), message);
            }
        }
        match first_difference(&self.likely, &t.logprobs) {
            None if self.likely.is_empty() => {}
            None => report.pass("probabilities", format!("of {} tokens, replayed", self.likely.len())),
            Some(at) => {
                let message = format!("the probabilities of output token {at} are not the model's");
                report.fail("probabilities", FailureCode::Logprobs, Some(at), message);
            }
        }
        match self.record.digests.first_difference(&self.digests.finish()) {
            None => report.pass("execution digests", format!("all {} equal", self.record.digests.0.len())),
            Some(at) => {
                let message =
                    format!("digest {at} (positions {} on) is of another execution", at.saturating_mul(32));
                report.fail("execution digests", FailureCode::Digest, Some(at), message);
            }
        }
    }
}
