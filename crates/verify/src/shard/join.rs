//! The verdicts on all layers as one.

use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_core::verdict::{FailureCode, Outcome, Verdict};
use assay_engine::program::Checked;
use assay_engine::program::layers::Layers;

use super::check::{AnswerHashes, ShardVerdict, embeds};
use crate::reexecution::Subject;
use crate::report::Report;
use crate::tokens::fed;

/// Joins what the auditors of all layers found, and checks beside it what needs no weights: signature, hashes, prompt, text and
/// end. `program` is the subject's.
///
/// When every layer was checked once and holds, and each began with what the one before handed on, the verdict is that of
/// [`crate::reexecution::check_by_reexecution`]. A layer without a verdict, with two, or with one about something else is listed as
/// not run; then the verdict does not hold, and has a failure only if something failed beside.
///
/// The verdicts themselves are believed: who made them is the caller's to know.
pub fn join(
    record: &AnswerRecord,
    subject: &Subject<'_>,
    program: &Checked,
    verdicts: &[ShardVerdict],
) -> Verdict {
    let mut report = Report::default();
    report.bindings(record);
    report.model(record.receipt.receipt.model_root, subject);
    report.prompt(record, subject);
    let layers = Layers::of(program);
    let whole = Whole {
        model: subject,
        program,
        answer: AnswerHashes::of(record),
        positions: fed(record).len(),
        layers: &layers,
    };
    let complete = report.runnable(record, subject.program) && whole.layers(&mut report, verdicts);
    report.text(record, subject);
    report.unseen("the executions themselves: the verdicts of the layers' auditors are believed");
    let mut verdict = report.finish(record);
    verdict.holds &= complete;
    verdict
}

/// What verdicts have to be about.
struct Whole<'a> {
    model: &'a Subject<'a>,
    program: &'a Checked,
    answer: AnswerHashes,
    positions: usize,
    layers: &'a Layers,
}

impl Whole<'_> {
    /// Whether every layer was checked, and the layers meet.
    fn layers(&self, report: &mut Report, verdicts: &[ShardVerdict]) -> bool {
        let last = self.layers.all().len().saturating_sub(1);
        let mut complete = true;
        // What the layer before handed on; none after one that is not known.
        let mut handed: Option<Hash> = None;
        for i in 0..=last {
            let name = format!("layer {i}");
            let verdict = match self.about(i, verdicts) {
                Ok(verdict) => verdict,
                Err(reason) => {
                    report.not_run(&name, &reason);
                    if i == last {
                        report.not_run("tokens", &reason);
                        report.not_run("execution digests", &reason);
                    }
                    (complete, handed) = (false, None);
                    continue;
                }
            };
            if let (Some(handed), Some(input)) = (handed, verdict.input)
                && handed != input
            {
                let message = format!(
                    "layer {i} began with another state than layer {} handed on",
                    i.saturating_sub(1)
                );
                report.fail(&name, FailureCode::Boundary, None, message);
            }
            handed = verdict.output;
            complete &= self.found(report, &name, verdict, i == last);
        }
        complete
    }

    /// The one verdict on a layer of this execution, or why there is none.
    fn about<'v>(&self, layer: usize, verdicts: &'v [ShardVerdict]) -> Result<&'v ShardVerdict, String> {
        let mut of = verdicts.iter().filter(|v| v.layer as usize == layer);
        let verdict = of.next().ok_or("nobody checked it")?;
        if of.next().is_some() {
            return Err("it has several verdicts, of which one must be chosen".into());
        }
        let all = self.layers.all();
        let last = layer.saturating_add(1) == all.len();
        let answer = last || embeds(self.program, self.layers, layer);
        let shape = (verdict.input.is_some(), verdict.output.is_some(), verdict.answer.is_some());
        let wanted = (all.get(layer).is_some_and(|l| l.input.is_some()), !last, answer);
        if verdict.model != self.model.root || verdict.layers as usize != all.len() || shape != wanted {
            return Err(format!("its verdict is about another model than {}", self.model.root));
        }
        if verdict.answer.is_some_and(|a| a != self.answer) || verdict.positions as usize != self.positions {
            return Err("its verdict is about another answer".into());
        }
        Ok(verdict)
    }

    /// Takes over what a verdict says; whether it left nothing out.
    fn found(&self, report: &mut Report, name: &str, verdict: &ShardVerdict, last: bool) -> bool {
        let inner = &verdict.verdict;
        let run = inner.checks.iter().all(|c| c.outcome != Outcome::NotRun);
        if last {
            // These are what a full check calls tokens, probabilities and digests.
            report.take(inner);
        } else {
            match &inner.failure {
                Some(f) => {
                    let position = f.position.map(|p| p as usize);
                    report.fail(name, f.code, position, format!("{name}: {}", f.message));
                }
                None if inner.holds => {
                    report.pass(name, format!("checked for all {} positions", self.positions));
                }
                None => report.not_run(name, "its verdict does not say why it does not hold"),
            }
        }
        run && (inner.holds || inner.failure.is_some())
    }
}
