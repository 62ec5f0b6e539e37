//! Verdicts: what a check looked at, what it did not, and what came out.

use serde::{Deserialize, Serialize};

/// The outcome of checking one answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether everything that was checked holds.
    pub holds: bool,
    /// What was checked, in order.
    pub checks: Vec<Check>,
    /// What this kind of check cannot see, in plain words.
    pub unchecked: Vec<String>,
    /// The mistake that matters most: the first with a position if there is one.
    pub failure: Option<Failure>,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it came out.
    pub outcome: Outcome,
    /// Counts or the mistake, for people.
    pub detail: String,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// An earlier failure left nothing to check.
    NotRun,
}

/// Why an answer does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable code.
    pub code: FailureCode,
    /// Where: an index into the prompt ids, the output ids, the digests or the sequence, as the code says.
    pub position: Option<u32>,
    /// For people.
    pub message: String,
}

/// Stable codes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The provider did not sign the receipt.
    Signature,
    /// The request is not the receipted one.
    RequestHash,
    /// The request breaks a limit.
    Limits,
    /// The receipt, the request or the installed artifact is of another model.
    ModelRoot,
    /// The transcript is not the receipted one.
    TranscriptRoot,
    /// The digests are not the receipted ones.
    DigestRoot,
    /// The token counts are not the transcript's.
    TokenCounts,
    /// The nonce does not fit.
    Nonce,
    /// The prompt renders to other ids; the position is an index into the prompt ids.
    PromptIds,
    /// The model chooses another token; the position is an index into the output ids.
    OutputId,
    /// The execution differs; the position is the index of the digest.
    Digest,
    /// What a layer hands on is not what it makes of the state before it; the position is that of the sequence.
    Boundary,
    /// The probabilities are not the model's; the position is an index into the output ids.
    Logprobs,
    /// A vector is not the model's; the position is the index of the input.
    Vector,
    /// The opening is not of the positions drawn, or not of the program's shapes; the position is a position of the
    /// sequence or the index of a block.
    Opening,
    /// What was opened is not what was committed.
    TraceRoot,
    /// A row of an embedding table is not the model's; the position is that of the sequence.
    Row,
    /// The accumulators of a matrix product are not those of its matrix and input; the position is that of the sequence, where
    /// one is known.
    Product,
    /// The input of a matrix product is not what the execution makes; the position is that of the sequence.
    Input,
    /// Keys or values are not the committed ones; the position is that of the sequence.
    KeyValue,
    /// The hidden vector is not the committed one; the position is that of the sequence.
    Hidden,
    /// The ids are another text.
    Text,
    /// The answer ends elsewhere or for another reason.
    StopReason,
}

impl FailureCode {
    /// The code as it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureCode::Signature => "signature",
            FailureCode::RequestHash => "request_hash",
            FailureCode::Limits => "limits",
            FailureCode::ModelRoot => "model_root",
            FailureCode::TranscriptRoot => "transcript_root",
            FailureCode::DigestRoot => "digest_root",
            FailureCode::TokenCounts => "token_counts",
            FailureCode::Nonce => "nonce",
            FailureCode::PromptIds => "prompt_ids",
            FailureCode::OutputId => "output_id",
            FailureCode::Digest => "digest",
            FailureCode::Boundary => "boundary",
            FailureCode::Logprobs => "logprobs",
            FailureCode::Vector => "vector",
            FailureCode::Opening => "opening",
            FailureCode::TraceRoot => "trace_root",
            FailureCode::Row => "row",
            FailureCode::Product => "product",
            FailureCode::Input => "input",
            FailureCode::KeyValue => "key_value",
            FailureCode::Hidden => "hidden",
            FailureCode::Text => "text",
            FailureCode::StopReason => "stop_reason",
        }
    }
}
