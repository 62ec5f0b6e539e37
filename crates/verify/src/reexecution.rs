//! Verification by re-execution: one teacher-forced prefill over prompt and answer checks everything.
//!
//! A mistake does not stop the check: a record that was altered after it was signed fails by its hashes, and the execution
//! says which token, digest or character it was.

use assay_core::answer::AnswerRecord;
use assay_core::digest::DigestBuilder;
use assay_core::request::sampler_seed;
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::replay::{Execution, Row};
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::logprobs::logprobs;
use assay_engine::semantics::sample::choose;
use assay_engine::text::guide::Guided;

use crate::report::{Report, first_difference};
pub use crate::subject::Subject;
use crate::subject::guided;

/// Checks a record without a model: that its parts fit together and the provider signed them.
pub fn check_record(record: &AnswerRecord) -> Verdict {
    let mut report = Report::default();
    report.bindings(record);
    for name in REEXECUTED {
        report.not_run(name, "needs the model");
    }
    report.finish(record)
}

const REEXECUTED: [&str; 5] = ["prompt", "tokens", "execution digests", "text", "stop"];

/// Checks a record by executing it again with `execution`, which must execute the subject's program.
pub fn check_by_reexecution(
    record: &AnswerRecord,
    subject: &Subject<'_>,
    execution: &mut dyn Execution,
) -> Verdict {
    let mut report = Report::default();
    report.bindings(record);
    report.model(record.receipt.receipt.model_root, subject);
    report.prompt(record, subject);
    if report.runnable(record, subject.program) {
        report.execution(record, subject, &mut |tokens, from, visit| execution.replay(tokens, from, visit));
    }
    report.text(record, subject);
    report.finish(record)
}

/// A way to execute tokens from position 0, with logits from a position on: see [`Execution::replay`].
pub(crate) type Replay<'a> = &'a mut dyn FnMut(&[u32], usize, &mut dyn FnMut(Row<'_>));

impl Report {
    pub(crate) fn execution(&mut self, record: &AnswerRecord, subject: &Subject<'_>, replay: Replay<'_>) {
        let t = &record.transcript;
        let seed = sampler_seed(t.nonce, record.request.hash(), subject.root);
        let fed = t.output_ids.len().saturating_sub(1);
        let tokens: Vec<u32> = t.prompt_ids.iter().chain(t.output_ids.iter().take(fed)).copied().collect();
        let first = t.prompt_ids.len().saturating_sub(1);
        let mut digests = DigestBuilder::new();
        let mut wrong: Option<(usize, u32, u32)> = None;
        let mut history = History::new(&t.prompt_ids);
        let mut guide = match guided(record, subject) {
            Ok(guide) => guide,
            Err(message) => {
                self.fail("tokens", FailureCode::Limits, None, message);
                return;
            }
        };
        let mut likely = Vec::new();
        replay(&tokens, first, &mut |row| {
            let (numbers, scale) = row.hidden;
            let position = u32::try_from(row.position).unwrap_or(u32::MAX);
            digests.push(position, numbers, scale.mantissa, scale.exponent);
            let (Some(logits), Some(i)) = (row.logits, row.position.checked_sub(first)) else { return };
            let Some(got) = t.output_ids.get(i) else { return };
            let index = u32::try_from(i).unwrap_or(u32::MAX);
            let mask = guide.as_mut().map(Guided::mask);
            let sampling = &record.request.sampling;
            let want = choose(logits, &history, mask.as_ref(), sampling, &seed, index);
            if want != *got && wrong.is_none() {
                wrong = Some((i, want, *got));
            }
            likely.extend(record.request.logprobs.map(|count| logprobs(logits, *got, count)));
            history.push(*got);
            if let Some(guide) = &mut guide {
                guide.push(*got);
            }
        });
        match wrong {
            None => self
                .pass("tokens", format!("all {} follow from the model, the request and the seed", fed + 1)),
            Some((i, want, got)) => {
                let message = format!("output token {i}: the model chooses {want}, the transcript has {got}");
                self.fail("tokens", FailureCode::OutputId, Some(i), message);
            }
        }
        match first_difference(&likely, &t.logprobs) {
            None if likely.is_empty() => {}
            None => self.pass("probabilities", format!("of {} tokens, replayed", likely.len())),
            Some(at) => {
                let message = format!("the probabilities of output token {at} are not the model's");
                self.fail("probabilities", FailureCode::Logprobs, Some(at), message);
            }
        }
        match record.digests.first_difference(&digests.finish()) {
            None => self.pass("execution digests", format!("all {} equal", record.digests.0.len())),
            Some(at) => {
                let message =
                    format!("digest {at} (positions {} on) is of another execution", at.saturating_mul(32));
                self.fail("execution digests", FailureCode::Digest, Some(at), message);
            }
        }
    }
}
