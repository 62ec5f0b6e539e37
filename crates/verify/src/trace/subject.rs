//! What a record says was executed, for whoever walks its trace.

use assay_core::answer::AnswerRecord;
use assay_core::request::{RequestError, sampler_seed};
use assay_engine::program::{Head, Program};
use assay_engine::semantics::adjust::Mask;

use super::walk::Subject;
use crate::microstep::Choice;
use crate::subject::{Subject as Model, guided};
use crate::tokens::fed;

/// Why an answer cannot be executed again, whoever is right about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotExecutable {
    /// The model makes vectors.
    #[error("the model makes vectors, not answers")]
    Encoder,
    /// There is nothing to execute.
    #[error("the transcript has no prompt or no answer")]
    Empty,
    /// It is longer than the model's window.
    #[error("prompt and answer have {got} tokens, the model's window has {context}")]
    Window {
        /// Tokens of prompt and answer.
        got: usize,
        /// Most positions of the model.
        context: u32,
    },
    /// A token does not exist.
    #[error("token {at} of prompt and answer is {id}; the model has ids below {vocabulary}")]
    Vocabulary {
        /// Its place, the prompt's first being 0.
        at: usize,
        /// Its id.
        id: u32,
        /// Number of ids.
        vocabulary: u32,
    },
    /// The request breaks a limit.
    #[error("the request breaks a limit: {0}")]
    Request(#[from] RequestError),
    /// The form of the answer cannot be followed.
    #[error("the form that the request asks for cannot be followed: {0}")]
    Guide(String),
}

impl Subject {
    /// What was executed for a record's answer by `model`, with the masks of its guide replayed. What comes back can be given to
    /// [`super::walk::Trace::new`] with the model's program. Whether the record is its receipt's is not asked.
    pub fn of(record: &AnswerRecord, model: &Model<'_>) -> Result<Subject, NotExecutable> {
        executable(record, model.program)?;
        let t = &record.transcript;
        Ok(Subject {
            tokens: fed(record),
            prompt: t.usage().prompt_tokens,
            choice: Choice {
                sampling: record.request.sampling.clone(),
                guided: record.request.guide.is_some(),
                seed: sampler_seed(t.nonce, record.request.hash(), record.request.model),
            },
            masks: masks(record, model)?,
        })
    }
}

fn executable(record: &AnswerRecord, program: &Program) -> Result<(), NotExecutable> {
    if !matches!(program.head, Head::Tokens { .. }) {
        return Err(NotExecutable::Encoder);
    }
    record.request.check()?;
    let t = &record.transcript;
    if t.prompt_ids.is_empty() || t.output_ids.is_empty() {
        return Err(NotExecutable::Empty);
    }
    let got = t.prompt_ids.len().saturating_add(t.output_ids.len());
    if got > program.context as usize {
        return Err(NotExecutable::Window { got, context: program.context });
    }
    let vocabulary = program.vocabulary;
    let unknown = t.prompt_ids.iter().chain(&t.output_ids).enumerate().find(|(_, id)| **id >= vocabulary);
    match unknown {
        Some((at, id)) => Err(NotExecutable::Vocabulary { at, id: *id, vocabulary }),
        None => Ok(()),
    }
}

/// What the guide left for each output token; none without a guide.
fn masks(record: &AnswerRecord, model: &Model<'_>) -> Result<Vec<Mask>, NotExecutable> {
    let Some(mut guided) = guided(record, model).map_err(NotExecutable::Guide)? else { return Ok(vec![]) };
    let mask = |id: &u32| {
        let mask = guided.mask();
        guided.push(*id);
        mask
    };
    Ok(record.transcript.output_ids.iter().map(mask).collect())
}
