//! Verification by re-execution: one teacher-forced prefill over prompt and answer checks everything.
//!
//! A mistake does not stop the check: a record that was altered after it was signed fails by its hashes, and the execution
//! says which token, digest or character it was.

use assay_core::answer::{AnswerRecord, BindingError};
use assay_core::id::{ModelRoot, NodeAddress};
use assay_core::request::{Prompt, RequestError, Tool};
use assay_core::transcript::NonceSource;
use assay_core::verdict::{Check, Failure, FailureCode, Outcome, Verdict};
use assay_engine::artifact::TextModel;
use assay_engine::program::{Head, Program};
use assay_engine::replay::Execution;
use assay_engine::text::Tokenizer;
use assay_engine::text::guide::Guided;
use assay_engine::transcribe::{StopRules, Transcriber};

use crate::tokens::{Form, TokenCheck, fed, logits_from};

/// The model that an answer is checked against.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Root of the model's content, recomputed by whoever vouches for it.
    pub root: ModelRoot,
    /// Its program.
    pub program: &'a Program,
    /// Its text settings.
    pub text: &'a TextModel,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
}

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
        report.execution(record, subject, execution);
    }
    report.text(record, subject);
    report.finish(record)
}

/// What was found so far.
#[derive(Default)]
pub(crate) struct Report {
    checks: Vec<Check>,
    failures: Vec<Failure>,
    unseen: Vec<String>,
}

impl Report {
    pub(crate) fn pass(&mut self, name: &str, detail: impl Into<String>) {
        self.checks.push(Check { name: name.into(), outcome: Outcome::Passed, detail: detail.into() });
    }

    pub(crate) fn fail(&mut self, name: &str, code: FailureCode, position: Option<usize>, message: String) {
        self.checks.push(Check { name: name.into(), outcome: Outcome::Failed, detail: message.clone() });
        let position = position.map(|p| u32::try_from(p).unwrap_or(u32::MAX));
        self.failures.push(Failure { code, position, message });
    }

    pub(crate) fn not_run(&mut self, name: &str, detail: &str) {
        self.checks.push(Check { name: name.into(), outcome: Outcome::NotRun, detail: detail.into() });
    }

    /// Takes over what another check found.
    pub(crate) fn take(&mut self, other: &Verdict) {
        self.checks.extend_from_slice(&other.checks);
        self.failures.extend(other.failure.clone());
    }

    /// Says what this kind of check cannot see.
    pub(crate) fn unseen(&mut self, what: impl Into<String>) {
        self.unseen.push(what.into());
    }

    pub(crate) fn bindings(&mut self, record: &AnswerRecord) {
        self.whole(record.broken_bindings(), record.receipt.receipt.provider, record.request.check());
    }

    /// What [`AnswerRecord::broken_bindings`] and [`EmbeddingRecord::broken_bindings`] found, and the limits.
    pub(crate) fn whole(
        &mut self,
        broken: Vec<BindingError>,
        provider: NodeAddress,
        limits: Result<(), RequestError>,
    ) {
        let signature = broken.iter().find(|b| matches!(b, BindingError::Signature(_)));
        match signature {
            None => self.pass("signature", format!("by {provider}")),
            Some(e) => self.fail("signature", FailureCode::Signature, None, e.to_string()),
        }
        if broken.iter().all(|b| matches!(b, BindingError::Signature(_))) {
            self.pass(
                "hashes",
                "request, transcript, digests, token counts and nonce are the receipted ones",
            );
        }
        for b in broken {
            let code = match b {
                BindingError::Signature(_) => continue,
                BindingError::RequestHash => FailureCode::RequestHash,
                BindingError::TranscriptRequest | BindingError::TranscriptRoot => FailureCode::TranscriptRoot,
                BindingError::ModelRoot => FailureCode::ModelRoot,
                BindingError::DigestRoot => FailureCode::DigestRoot,
                BindingError::TokenCounts => FailureCode::TokenCounts,
                BindingError::Nonce => FailureCode::Nonce,
            };
            self.fail("hashes", code, None, b.to_string());
        }
        if let Err(e) = limits {
            self.fail("limits", FailureCode::Limits, None, e.to_string());
        }
    }

    pub(crate) fn model(&mut self, receipted: ModelRoot, subject: &Subject<'_>) {
        if receipted == subject.root {
            self.pass("model", format!("{receipted}"));
        } else {
            let message = format!("the receipt is for model {receipted}, not {}", subject.root);
            self.fail("model", FailureCode::ModelRoot, None, message);
        }
    }

    pub(crate) fn prompt(&mut self, record: &AnswerRecord, subject: &Subject<'_>) {
        let got = &record.transcript.prompt_ids;
        match subject.tokenizer.encode_prompt(&record.request.prompt) {
            Err(e) => {
                self.fail("prompt", FailureCode::PromptIds, None, format!("the prompt does not render: {e}"))
            }
            Ok(want) => match first_difference(&want, got) {
                None => self.pass("prompt", format!("{} tokens, template and tokenizer replayed", got.len())),
                Some(at) => {
                    let show = |ids: &[u32]| ids.get(at).map_or("nothing".into(), |id| id.to_string());
                    let message = format!(
                        "prompt token {at}: the request renders to {}, the transcript has {}",
                        show(&want),
                        show(got)
                    );
                    self.fail("prompt", FailureCode::PromptIds, Some(at), message);
                }
            },
        }
    }

    /// Whether the transcript can be executed at all; says why not.
    pub(crate) fn runnable(&mut self, record: &AnswerRecord, program: &Program) -> bool {
        let t = &record.transcript;
        let (prompt, output) = (t.prompt_ids.len(), t.output_ids.len());
        let context = program.context as usize;
        if !matches!(program.head, Head::Tokens { .. }) {
            self.fail("limits", FailureCode::Limits, None, "the model makes vectors, not answers".into());
            return false;
        }
        let unknown = t.prompt_ids.iter().chain(&t.output_ids).position(|id| *id >= program.vocabulary);
        let reason = if prompt == 0 || output == 0 {
            "the transcript has no prompt or no answer".to_owned()
        } else if prompt.saturating_add(output) > context {
            format!("{prompt} and {output} tokens do not fit the window of {context}")
        } else if let Some(at) = unknown {
            match at.checked_sub(prompt) {
                Some(i) => {
                    let message = format!("output token {i} is not in the vocabulary");
                    self.fail("tokens", FailureCode::OutputId, Some(i), message);
                    return false;
                }
                None => format!("prompt token {at} is not in the vocabulary"),
            }
        } else {
            return true;
        };
        self.fail("limits", FailureCode::Limits, None, reason);
        for name in ["tokens", "execution digests"] {
            self.not_run(name, "the transcript cannot be executed");
        }
        false
    }

    fn execution(&mut self, record: &AnswerRecord, subject: &Subject<'_>, execution: &mut dyn Execution) {
        let form = match guided(record, subject) {
            Ok(guide) => guide.map_or(Form::Free, |g| Form::Guided(Box::new(g))),
            Err(message) => {
                self.fail("tokens", FailureCode::Limits, None, message);
                return;
            }
        };
        let mut check = TokenCheck::new(record, subject.root, form);
        execution.replay(&fed(record), logits_from(record), &mut |row| check.row(&row));
        check.report(self);
    }

    /// Replays text and end of the answer from its ids.
    pub(crate) fn text(&mut self, record: &AnswerRecord, subject: &Subject<'_>) {
        let t = &record.transcript;
        let rules = StopRules {
            end_tokens: subject.text.end_tokens.clone(),
            stop: record.request.stop.clone(),
            max_tokens: record.request.max_tokens,
            context: subject.program.context,
            prompt_tokens: t.usage().prompt_tokens,
        };
        let mut transcriber = Transcriber::new(subject.tokenizer, rules);
        let ended = t.output_ids.iter().position(|id| transcriber.push(*id).is_some());
        let last = t.output_ids.len().checked_sub(1);
        match (ended, transcriber.stopped()) {
            (Some(at), Some(stop)) if Some(at) == last && stop == t.stop => {
                self.pass("stop", format!("{stop:?} after {} tokens", t.output_ids.len()));
            }
            (at, stop) => {
                let message = format!(
                    "the answer ends {} ({stop:?}), the transcript says {:?} after {} tokens",
                    at.map_or("nowhere".into(), |a| format!("at token {a}")),
                    t.stop,
                    t.output_ids.len()
                );
                self.fail("stop", FailureCode::StopReason, at.or(last), message);
            }
        }
        if transcriber.text() == t.text {
            self.pass("text", format!("{} bytes", t.text.len()));
        } else {
            let at = first_difference(transcriber.text().as_bytes(), t.text.as_bytes());
            let message = format!("the ids are another text, from byte {} on", at.unwrap_or(0));
            self.fail("text", FailureCode::Text, at, message);
        }
    }

    pub(crate) fn finish(self, record: &AnswerRecord) -> Verdict {
        self.verdict(record.transcript.nonce_source == NonceSource::Provider)
    }

    /// The verdict; `drawn` when the provider chose the nonce.
    pub(crate) fn verdict(self, drawn: bool) -> Verdict {
        let mut unchecked = self.unseen;
        unchecked.extend([
            "that the receipt stands in the epoch that the provider posted (there is no ledger yet)"
                .to_owned(),
            "the price: fees are not part of this version".to_owned(),
        ]);
        if drawn {
            unchecked.push(
                "that the provider did not try several nonces and keep the answer it liked: send a nonce or a seed".into(),
            );
        }
        judged(self.checks, &self.failures, unchecked)
    }

    /// The verdict on a part of an answer: what it cannot see is what was said so.
    pub(crate) fn part(self) -> Verdict {
        judged(self.checks, &self.failures, self.unseen)
    }
}

fn judged(checks: Vec<Check>, failures: &[Failure], unchecked: Vec<String>) -> Verdict {
    let first_with_position = failures.iter().find(|f| f.position.is_some());
    let failure = first_with_position.or(failures.first()).cloned();
    Verdict { holds: failures.is_empty(), checks, unchecked, failure }
}

/// The form that the request asks for; why it cannot be followed.
pub(crate) fn guided(record: &AnswerRecord, subject: &Subject<'_>) -> Result<Option<Guided>, String> {
    let Some(guide) = &record.request.guide else { return Ok(None) };
    let tools: &[Tool] = match &record.request.prompt {
        Prompt::Chat { tools, .. } => tools,
        Prompt::Text(_) | Prompt::Tokens(_) => &[],
    };
    subject.tokenizer.guide(guide, tools).map(Some).map_err(|e| e.to_string())
}

pub(crate) fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
    let shared = a.iter().zip(b).position(|(a, b)| a != b);
    shared.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}
