//! Verification by re-execution: one teacher-forced prefill over prompt and answer checks everything.
//!
//! A mistake does not stop the check: a record that was altered after it was signed fails by its hashes, and the execution
//! says which token, digest or character it was.

use assay_core::answer::AnswerRecord;
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::replay::{Execution, Row};

use crate::report::Report;
pub use crate::subject::Subject;
use crate::tokens::{Form, TokenCheck, fed, logits_from};

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
        let form = match Form::of(record, Some(subject)) {
            Ok(form) => form,
            Err(message) => {
                self.fail("tokens", FailureCode::Limits, None, message);
                return;
            }
        };
        let mut check = TokenCheck::new(record, subject.root, form);
        replay(&fed(record), logits_from(record), &mut |row| check.row(&row));
        check.report(self);
    }
}
