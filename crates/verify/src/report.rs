//! What a check found so far, on its way to a verdict.

use assay_core::answer::{AnswerRecord, BindingError};
use assay_core::id::NodeAddress;
use assay_core::request::RequestError;
use assay_core::transcript::NonceSource;
use assay_core::verdict::{Check, Failure, FailureCode, Outcome, Verdict};
use assay_engine::program::{Head, Program};

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
    #[cfg(feature = "native")]
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

    pub(crate) fn finish(self, record: &AnswerRecord) -> Verdict {
        self.verdict(record.transcript.nonce_source == NonceSource::Provider)
    }

    /// The verdict; `drawn` when the provider chose the nonce.
    pub(crate) fn verdict(mut self, drawn: bool) -> Verdict {
        let mut unchecked = std::mem::take(&mut self.unseen);
        unchecked.extend([
            "that the receipt stands in the epoch that the provider posted (no ledger was asked)".to_owned(),
            "the price: fees are not part of this version".to_owned(),
        ]);
        if drawn {
            unchecked.push(
                "that the provider did not try several nonces and keep the answer it liked: send a nonce or a seed".into(),
            );
        }
        Report { unseen: unchecked, ..self }.part()
    }

    /// The verdict on a part of an answer: what it cannot see is what was said so.
    pub(crate) fn part(self) -> Verdict {
        let first_with_position = self.failures.iter().find(|f| f.position.is_some());
        let failure = first_with_position.or(self.failures.first()).cloned();
        Verdict { holds: self.failures.is_empty(), checks: self.checks, unchecked: self.unseen, failure }
    }
}

pub(crate) fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
    let shared = a.iter().zip(b).position(|(a, b)| a != b);
    shared.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}
