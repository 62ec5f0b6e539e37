//! Embeddings: what was asked, what came out, and the record of it. The receipt is the same as for answers; it counts no
//! completion tokens.
//!
//! The transcript root is a Merkle root (see [`crate::merkle`]) over a header leaf — `"assay/embedding-transcript/1"`, the
//! request hash, the number of inputs as 4 bytes — and one leaf for each input: the Keccak-256 of its ids followed by the
//! Keccak-256 of its vector, 4 bytes a number. The digest of an input is `keccak("assay/pooled/1" ‖ index as 8 bytes ‖ the pooled
//! vector, 4 bytes a number)`. All numbers are big-endian.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::answer::{AnswerRecord, BindingError, GenerationCost};
use crate::canonical::Canonical;
use crate::consent::{Consent, WithheldRecord};
use crate::digest::ExecutionDigests;
use crate::id::{Hash, ModelRoot, Nonce, RequestHash, TranscriptRoot};
use crate::keccak::keccak256;
use crate::limits;
use crate::merkle::{self, Proof};
use crate::receipt::SignedReceipt;
use crate::request::RequestError;

/// Fraction bits of a vector's numbers: a 32-bit float holds each exactly.
pub const EMBEDDING_FRAC: u32 = 24;

/// Leaves of a request's hash: the model with the consent, and the rest.
const LEAVES: usize = 2;

/// Texts to be embedded.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingRequest {
    /// Root of the model that must do it.
    pub model: ModelRoot,
    /// 1 to [`limits::EMBEDDING_INPUTS_MAX`].
    pub inputs: Vec<EmbeddingInput>,
    /// Keep only so many numbers of each vector, and make its length 1 again; at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Cut inputs that are longer than the model reads, instead of refusing them.
    #[serde(default)]
    pub truncate: bool,
    /// Whether auditors may see it.
    pub audit: Consent,
}

/// One text.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingInput {
    /// Text, tokenised with the model's special tokens around it.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

impl Canonical for EmbeddingRequest {
    const TAG: &'static str = "assay/embedding-request/2";
}

impl EmbeddingRequest {
    /// The hash that receipts carry: a Merkle root over [`EmbeddingRequest::items`], so that the consent can be shown without the inputs.
    pub fn hash(&self) -> RequestHash {
        RequestHash::from_bytes(*merkle::root(self.leaves()).as_bytes())
    }

    /// What the leaves below the hash are of, in order: with these a provider shows a contract the request of a receipt.
    pub fn items(&self) -> [Vec<u8>; LEAVES] {
        // borsh writes to memory, which cannot fail.
        let asked = borsh::to_vec(&(&self.inputs, self.dimensions, self.truncate)).unwrap_or_default();
        [self.audit.item(EmbeddingRequest::TAG, self.model), asked]
    }

    /// The consent's place under the hash: it shows nothing of the rest.
    pub fn consent_proof(&self) -> Proof {
        // The first of two leaves has a place.
        merkle::prove(&self.leaves(), 0).unwrap_or(Proof { index: 0, count: 0, path: vec![] })
    }

    fn leaves(&self) -> [Hash; LEAVES] {
        self.items().map(|item| merkle::leaf(&item))
    }

    /// Checks every field against [`limits`].
    pub fn check(&self) -> Result<(), RequestError> {
        let count = self.inputs.len();
        let fail = |param, got: usize, most: usize, least: usize| {
            let expected = format!("{least} to {most}");
            Err(RequestError { param, got: got.to_string(), expected })
        };
        if !(1..=limits::EMBEDDING_INPUTS_MAX).contains(&count) {
            return fail("input", count, limits::EMBEDDING_INPUTS_MAX, 1);
        }
        let (mut bytes, mut ids) = (0usize, 0usize);
        for input in &self.inputs {
            match input {
                EmbeddingInput::Text(t) => bytes = bytes.saturating_add(t.len()),
                EmbeddingInput::Tokens(t) => ids = ids.saturating_add(t.len()),
            }
        }
        if bytes > limits::PROMPT_BYTES_MAX {
            return fail("input", bytes, limits::PROMPT_BYTES_MAX, 0);
        }
        if ids > limits::TOKENS_MAX {
            return fail("input", ids, limits::TOKENS_MAX, 0);
        }
        if self.dimensions == Some(0) {
            return fail("dimensions", 0, limits::TOKENS_MAX, 1);
        }
        Ok(())
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingTranscript {
    /// Hash of the request.
    pub request_hash: RequestHash,
    /// The ids that the model read, for each input.
    pub input_ids: Vec<Vec<u32>>,
    /// A vector of length 1 for each input, with [`EMBEDDING_FRAC`] fraction bits.
    pub vectors: Vec<Vec<i32>>,
}

impl EmbeddingTranscript {
    /// The Merkle root.
    pub fn root(&self) -> TranscriptRoot {
        let leaves = self.items().into_iter().map(|item| merkle::leaf(&item));
        TranscriptRoot::from_bytes(*merkle::root(leaves).as_bytes())
    }

    /// What the leaves below the root are of, in order: with these a provider shows a contract the transcript of a receipt.
    pub fn items(&self) -> Vec<Vec<u8>> {
        let mut header = b"assay/embedding-transcript/1".to_vec();
        header.extend_from_slice(self.request_hash.as_bytes());
        header.extend_from_slice(&u32::try_from(self.input_ids.len()).unwrap_or(u32::MAX).to_be_bytes());
        let mut items = vec![header];
        for (ids, vector) in self.input_ids.iter().zip(&self.vectors) {
            let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
            let vector: Vec<u8> = vector.iter().flat_map(|v| v.to_be_bytes()).collect();
            items.push([*keccak256(&[&ids]).as_bytes(), *keccak256(&[&vector]).as_bytes()].concat());
        }
        items
    }

    /// Tokens read.
    pub fn tokens(&self) -> u32 {
        let count = self.input_ids.iter().fold(0usize, |n, ids| n.saturating_add(ids.len()));
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Digests of an execution: one for each pooled vector.
pub fn pooled_digests<'a>(pooled: impl Iterator<Item = &'a [i32]>) -> ExecutionDigests {
    let digest = |(i, v): (usize, &[i32])| -> Hash {
        let bytes: Vec<u8> = v.iter().flat_map(|v| v.to_be_bytes()).collect();
        let index = u64::try_from(i).unwrap_or(u64::MAX).to_be_bytes();
        keccak256(&[b"assay/pooled/1", &index, &bytes])
    };
    ExecutionDigests(pooled.enumerate().map(digest).collect())
}

/// What a node stores and hands out for each embedding request.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingRecord {
    /// Kind and version of this record.
    pub format: EmbeddingFormat,
    /// The signed receipt.
    pub receipt: SignedReceipt,
    /// What was asked.
    pub request: EmbeddingRequest,
    /// What came out.
    pub transcript: EmbeddingTranscript,
    /// Digests of the execution.
    pub digests: ExecutionDigests,
    /// What it took. Not signed: for comparison only.
    pub generation: Option<GenerationCost>,
}

/// Version of [`EmbeddingRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub enum EmbeddingFormat {
    /// The second: its request says whether auditors may see it.
    #[serde(rename = "assay-embedding/2")]
    V2,
}

impl Canonical for EmbeddingRecord {
    const TAG: &'static str = "assay/embedding/2";
}

impl EmbeddingRecord {
    /// All parts that do not fit; none when the record is whole.
    pub fn broken_bindings(&self) -> Vec<BindingError> {
        let (receipt, t) = (&self.receipt.receipt, &self.transcript);
        let counts = t.tokens() == receipt.prompt_tokens && receipt.completion_tokens == 0;
        let checks = [
            (self.request.hash() == receipt.request_hash, BindingError::RequestHash),
            (t.request_hash == receipt.request_hash, BindingError::TranscriptRequest),
            (self.request.model == receipt.model_root, BindingError::ModelRoot),
            (
                t.root() == receipt.transcript_root && t.input_ids.len() == t.vectors.len(),
                BindingError::TranscriptRoot,
            ),
            (self.digests.root() == receipt.digest_root, BindingError::DigestRoot),
            (counts, BindingError::TokenCounts),
            (receipt.client_nonce == Nonce::ZERO, BindingError::Nonce),
        ];
        let signature = self.receipt.verify().err().map(BindingError::from);
        signature.into_iter().chain(checks.into_iter().filter_map(|(ok, e)| (!ok).then_some(e))).collect()
    }
}

/// A record of either kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Record {
    /// Of an answer.
    Answer(Box<AnswerRecord>),
    /// Of embeddings.
    Embedding(Box<EmbeddingRecord>),
}

impl Record {
    /// The receipt.
    pub fn receipt(&self) -> &SignedReceipt {
        match self {
            Record::Answer(r) => &r.receipt,
            Record::Embedding(r) => &r.receipt,
        }
    }

    /// Whether its client lets auditors see it.
    pub fn consent(&self) -> Consent {
        match self {
            Record::Answer(r) => r.request.audit,
            Record::Embedding(r) => r.request.audit,
        }
    }

    /// What is shown of it to auditors that are not to see it.
    pub fn withheld(&self) -> WithheldRecord {
        let proof = match self {
            Record::Answer(r) => r.request.consent_proof(),
            Record::Embedding(r) => r.request.consent_proof(),
        };
        WithheldRecord { receipt: self.receipt().clone(), proof }
    }

    /// What it took on the provider's machine, if it says.
    pub fn generation(&self) -> Option<&GenerationCost> {
        match self {
            Record::Answer(r) => r.generation.as_ref(),
            Record::Embedding(r) => r.generation.as_ref(),
        }
    }

    /// Canonical bytes of the record.
    pub fn to_canonical_bytes(&self) -> Vec<u8> {
        match self {
            Record::Answer(r) => r.to_canonical_bytes(),
            Record::Embedding(r) => r.to_canonical_bytes(),
        }
    }

    /// The record that `bytes` are.
    pub fn from_canonical_bytes(bytes: &[u8]) -> Result<Record, crate::canonical::CanonicalError> {
        AnswerRecord::from_canonical_bytes(bytes)
            .map(|r| Record::Answer(Box::new(r)))
            .or_else(|_| EmbeddingRecord::from_canonical_bytes(bytes).map(|r| Record::Embedding(Box::new(r))))
    }
}
