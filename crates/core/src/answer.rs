//! The record of an answer: everything that anyone needs to check it, but the model.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use crate::digest::ExecutionDigests;
use crate::id::Nonce;
use crate::receipt::{ReceiptError, SignedReceipt};
use crate::request::Request;
use crate::transcript::{NonceSource, Transcript};

/// What a node stores and hands out for each answer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerRecord {
    /// Kind and version of this record.
    pub format: Format,
    /// The signed receipt.
    pub receipt: SignedReceipt,
    /// What was asked.
    pub request: Request,
    /// What was answered.
    pub transcript: Transcript,
    /// Digests of the execution.
    pub digests: ExecutionDigests,
    /// What it took. Not signed: for comparison only.
    pub generation: Option<GenerationCost>,
}

/// Version of [`AnswerRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub enum Format {
    /// The second: its request says whether auditors may see it.
    #[serde(rename = "assay-answer/2")]
    V2,
}

/// What a generation took on the provider's machine, by its own clock.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationCost {
    /// From taking the request up to its first token, in nanoseconds.
    pub prefill_ns: u64,
    /// From the first token to the last.
    pub decode_ns: u64,
    /// Threads in use.
    pub threads: u32,
    /// Kernel in use.
    pub kernel: String,
}

impl Canonical for AnswerRecord {
    const TAG: &'static str = "assay/answer/2";
}

/// A part of a record that does not fit another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// The provider did not sign this receipt.
    #[error("signature: {0}")]
    Signature(#[from] ReceiptError),
    /// The request is not the one receipted.
    #[error("the request's hash is not the receipt's: a parameter, the seed or the prompt was changed")]
    RequestHash,
    /// The transcript is for another request.
    #[error("the transcript names another request than the receipt")]
    TranscriptRequest,
    /// The request asks for another model.
    #[error("the request asks for another model than the receipt names")]
    ModelRoot,
    /// The transcript is not the one receipted.
    #[error("the transcript's root is not the receipt's: an id, the text or the stop reason was changed")]
    TranscriptRoot,
    /// The digests are not the ones receipted.
    #[error("the digests' root is not the receipt's")]
    DigestRoot,
    /// The tokens receipted are not those of the transcript.
    #[error("the receipt counts other tokens than the transcript has")]
    TokenCounts,
    /// The nonce is not the one receipted, or its source is not what it says.
    #[error("the nonce of the transcript does not fit the receipt or the request's seed")]
    Nonce,
}

impl AnswerRecord {
    /// All parts that do not fit; none when the record is whole.
    pub fn broken_bindings(&self) -> Vec<BindingError> {
        let (receipt, t) = (&self.receipt.receipt, &self.transcript);
        let usage = t.usage();
        let nonce_fits = t.nonce == receipt.client_nonce
            && (t.nonce_source != NonceSource::Seed
                || (t.nonce == Nonce::ZERO && self.request.sampling.seed.is_some()));
        let checks = [
            (self.request.hash() == receipt.request_hash, BindingError::RequestHash),
            (t.request_hash == receipt.request_hash, BindingError::TranscriptRequest),
            (self.request.model == receipt.model_root, BindingError::ModelRoot),
            (t.root() == receipt.transcript_root, BindingError::TranscriptRoot),
            (self.digests.root() == receipt.digest_root, BindingError::DigestRoot),
            (
                usage.prompt_tokens == receipt.prompt_tokens
                    && usage.completion_tokens == receipt.completion_tokens,
                BindingError::TokenCounts,
            ),
            (nonce_fits, BindingError::Nonce),
        ];
        let signature = self.receipt.verify().err().map(BindingError::from);
        signature.into_iter().chain(checks.into_iter().filter_map(|(ok, e)| (!ok).then_some(e))).collect()
    }
}
