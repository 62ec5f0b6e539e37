//! Verification of embeddings: tokenise, execute and pool every input again.

use assay_core::embedding::{EmbeddingInput, EmbeddingRecord, pooled_digests};
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::program::Head;
use assay_engine::replay::Execution;
use assay_engine::semantics::embedding::embedding;

use crate::report::{Report, first_difference};
use crate::subject::Subject;

/// Checks a record of embeddings without a model: that its parts fit together and the provider signed them.
pub fn check_embedding_record(record: &EmbeddingRecord) -> Verdict {
    let mut report = Report::default();
    bindings(&mut report, record);
    for name in ["inputs", "execution digests", "vectors"] {
        report.not_run(name, "needs the model");
    }
    report.verdict(false)
}

fn bindings(report: &mut Report, record: &EmbeddingRecord) {
    let provider = record.receipt.receipt.provider;
    report.whole(record.broken_bindings(), provider, record.request.check());
}

/// Checks a record of embeddings by executing it again with `execution`, which must execute the subject's program.
pub fn check_embedding_by_reexecution(
    record: &EmbeddingRecord,
    subject: &Subject<'_>,
    execution: &mut dyn Execution,
) -> Verdict {
    let mut report = Report::default();
    bindings(&mut report, record);
    report.model(record.receipt.receipt.model_root, subject);
    inputs(&mut report, record, subject);
    if runnable(&mut report, record, subject) {
        vectors(&mut report, record, execution);
    } else {
        report.not_run("execution digests", "the transcript cannot be executed");
        report.not_run("vectors", "the transcript cannot be executed");
    }
    report.verdict(false)
}

/// Replays the tokenizer.
fn inputs(report: &mut Report, record: &EmbeddingRecord, subject: &Subject<'_>) {
    let context = subject.program.context as usize;
    let t = &record.transcript;
    let most = if record.request.truncate { context } else { usize::MAX };
    for (i, input) in record.request.inputs.iter().enumerate() {
        let want = match input {
            EmbeddingInput::Text(text) => subject.tokenizer.encode_for_embedding(text, most),
            EmbeddingInput::Tokens(ids) => Ok(ids[..ids.len().min(most)].to_vec()),
        };
        let message = match (want, t.input_ids.get(i)) {
            (Ok(want), Some(got)) if want == *got => continue,
            (Ok(_), Some(_)) => format!("input {i} has other ids than the transcript"),
            (Ok(_), None) => format!("input {i} is not in the transcript"),
            (Err(e), _) => format!("input {i} has no ids: {e}"),
        };
        report.fail("inputs", FailureCode::PromptIds, Some(i), message);
        return;
    }
    if t.input_ids.len() != record.request.inputs.len() {
        let message = "the transcript has more inputs than the request".to_owned();
        report.fail("inputs", FailureCode::PromptIds, Some(record.request.inputs.len()), message);
        return;
    }
    report.pass("inputs", format!("{} inputs, {} tokens, tokenizer replayed", t.input_ids.len(), t.tokens()));
}

/// Whether the transcript can be executed at all; says why not.
fn runnable(report: &mut Report, record: &EmbeddingRecord, subject: &Subject<'_>) -> bool {
    let program = subject.program;
    let fits = |ids: &Vec<u32>| {
        (1..=program.context as usize).contains(&ids.len()) && ids.iter().all(|id| *id < program.vocabulary)
    };
    let reason = if !matches!(program.head, Head::Vector { .. }) {
        "the model makes answers, not vectors"
    } else if !record.transcript.input_ids.iter().all(fits) {
        "an input is empty, longer than the window, or has an id that is not in the vocabulary"
    } else {
        return true;
    };
    report.fail("limits", FailureCode::Limits, None, reason.to_owned());
    false
}

fn vectors(report: &mut Report, record: &EmbeddingRecord, execution: &mut dyn Execution) {
    let t = &record.transcript;
    let inputs: Vec<&[u32]> = t.input_ids.iter().map(Vec::as_slice).collect();
    let pooled = execution.encode(&inputs);
    match record.digests.first_difference(&pooled_digests(pooled.iter().map(Vec::as_slice))) {
        None => report.pass("execution digests", format!("all {} equal", record.digests.0.len())),
        Some(at) => {
            let message = format!("digest {at} is of another execution");
            report.fail("execution digests", FailureCode::Digest, Some(at), message);
        }
    }
    let asked = record.request.dimensions.map_or(usize::MAX, |d| d as usize);
    let made: Vec<Vec<i32>> = pooled.iter().map(|p| embedding(p, asked.min(p.len()))).collect();
    match first_difference(&made, &t.vectors) {
        None => report.pass("vectors", format!("{} vectors, equal to the last bit", made.len())),
        Some(at) => {
            let message = format!("vector {at} is not the model's");
            report.fail("vectors", FailureCode::Vector, Some(at), message);
        }
    }
}
