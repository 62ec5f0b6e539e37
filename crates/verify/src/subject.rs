//! The model that an answer is checked against, text included: what replays prompt, text, end and guide of an answer.

use assay_core::answer::AnswerRecord;
use assay_core::id::ModelRoot;
use assay_core::request::{Prompt, Tool};
use assay_core::transcript::StopReason;
use assay_core::verdict::FailureCode;
use assay_engine::artifact::TextModel;
use assay_engine::program::Program;
use assay_engine::text::Tokenizer;
pub(crate) use assay_engine::text::guide::Guided;
use assay_engine::transcribe::{StopRules, Transcriber};

use crate::report::{Report, first_difference};

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

impl Subject<'_> {
    pub(crate) fn root(&self) -> ModelRoot {
        self.root
    }
}

impl Report {
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
            // No rule ends it, and there is something of it.
            (None, None) if t.stop == StopReason::Cancelled && last.is_some() => {
                transcriber.cancel();
                self.pass("stop", format!("Cancelled after {} tokens", t.output_ids.len()));
                self.unseen("that who ordered the answer asked for its end, as its record says: only who ordered it knows");
            }
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
