//! What an answer consisted of.
//!
//! The transcript root is a Merkle root (see [`crate::merkle`]) over, in this order: a header leaf — `"assay/transcript/1"`,
//! the request hash, the nonce, one byte for its source, two bytes for the stop reason, the numbers of prompt and output ids
//! as 4 bytes each —; the prompt ids in leaves of 64, 4 bytes each; the output ids likewise; the Keccak-256 of the text; and the Keccak-256
//! of the probabilities in borsh (a list; empty unless the request asked for them).
//! All numbers are big-endian. A contract can so open any id without the rest.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::id::{Hash, Nonce, RequestHash, TranscriptRoot};
use crate::keccak::keccak256;
use crate::merkle;

/// Ids in one leaf.
pub const LEAF_IDS: usize = 64;

/// Everything about an answer that its request does not fix.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// Hash of the request.
    pub request_hash: RequestHash,
    /// The nonce of the sampler's seed.
    pub nonce: Nonce,
    /// Who chose it.
    pub nonce_source: NonceSource,
    /// The rendered prompt.
    pub prompt_ids: Vec<u32>,
    /// What the model wrote, the end token included.
    pub output_ids: Vec<u32>,
    /// The text of the answer.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Probabilities of the output ids, if the request asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
}

/// How likely a token was, before sampling parameters and guides: logarithms in units of 2^-16 nats.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprobs {
    /// The chosen token's.
    pub chosen: i32,
    /// The likeliest tokens and theirs, the likeliest first, of equals the lowest id.
    pub top: Vec<(u32, i32)>,
}

/// Who chose the nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonceSource {
    /// The client sent one: the provider could not choose among answers.
    Client,
    /// The request has a seed and no nonce, which is then zero: the answer is fixed by the request.
    Seed,
    /// The provider drew one, and might have drawn until it liked the answer.
    Provider,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model wrote an end token.
    EndToken,
    /// The text came to the stop string of this index.
    StopString(u8),
    /// `max_tokens` were written.
    Length,
    /// The model's window is full.
    Window,
    /// Who ordered it asked for its end: no rule of the request ends it there.
    Cancelled,
}

impl StopReason {
    /// As OpenAI's `finish_reason`. That of an answer that was cancelled is told to nobody as it ends; where its record is shown, it is an answer of
    /// which there would have been more.
    pub fn finish_reason(self) -> &'static str {
        match self {
            StopReason::EndToken | StopReason::StopString(_) => "stop",
            StopReason::Length | StopReason::Window | StopReason::Cancelled => "length",
        }
    }

    fn bytes(self) -> [u8; 2] {
        match self {
            StopReason::EndToken => [0, 0],
            StopReason::StopString(i) => [1, i],
            StopReason::Length => [2, 0],
            StopReason::Window => [3, 0],
            StopReason::Cancelled => [4, 0],
        }
    }
}

/// Tokens that are paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
}

impl Transcript {
    /// The Merkle root.
    pub fn root(&self) -> TranscriptRoot {
        TranscriptRoot::from_bytes(*merkle::root(self.leaves()).as_bytes())
    }

    /// The ids of a leaf, the first of which is the prompt's first, with the proof that they stand under the root.
    pub fn open_ids(&self, leaf: usize) -> Option<(Vec<u32>, merkle::Proof)> {
        let ids = self.prompt_ids.chunks(LEAF_IDS).chain(self.output_ids.chunks(LEAF_IDS)).nth(leaf)?;
        Some((ids.to_vec(), merkle::prove(&self.leaves(), leaf.checked_add(1)?)?))
    }

    fn leaves(&self) -> Vec<Hash> {
        self.items().iter().map(|item| merkle::leaf(item)).collect()
    }

    /// What the leaves below the root are of, in order: with these a provider shows a contract the transcript of a receipt, without
    /// the text, which follows from the ids.
    pub fn items(&self) -> Vec<Vec<u8>> {
        let source = match self.nonce_source {
            NonceSource::Client => 0u8,
            NonceSource::Seed => 1,
            NonceSource::Provider => 2,
        };
        let usage = self.usage();
        let mut header = b"assay/transcript/1".to_vec();
        header.extend_from_slice(self.request_hash.as_bytes());
        header.extend_from_slice(self.nonce.as_bytes());
        header.push(source);
        header.extend_from_slice(&self.stop.bytes());
        header.extend_from_slice(&usage.prompt_tokens.to_be_bytes());
        header.extend_from_slice(&usage.completion_tokens.to_be_bytes());
        let mut items = vec![header];
        for ids in self.prompt_ids.chunks(LEAF_IDS).chain(self.output_ids.chunks(LEAF_IDS)) {
            items.push(id_bytes(ids));
        }
        items.push(keccak256(&[self.text.as_bytes()]).as_bytes().to_vec());
        // borsh writes to memory, which cannot fail.
        let logprobs = borsh::to_vec(&self.logprobs).unwrap_or_default();
        items.push(keccak256(&[&logprobs]).as_bytes().to_vec());
        items
    }

    /// What was executed, of a transcript of which [`Transcript::items`] are these: everything but the text, which follows from the ids, and the
    /// probabilities, of which only a hash is there. Nothing if they are no transcript's.
    pub fn from_items(items: &[&[u8]]) -> Option<Transcript> {
        let (header, rest) = items.split_first()?;
        let mut header = Fields(header.strip_prefix(b"assay/transcript/1")?);
        let request_hash = RequestHash::from_bytes(header.take()?);
        let nonce = Nonce::from_bytes(header.take()?);
        let nonce_source = match header.take()? {
            [0] => NonceSource::Client,
            [1] => NonceSource::Seed,
            [2] => NonceSource::Provider,
            _ => return None,
        };
        let stop = match header.take()? {
            [0, 0] => StopReason::EndToken,
            [1, i] => StopReason::StopString(i),
            [2, 0] => StopReason::Length,
            [3, 0] => StopReason::Window,
            [4, 0] => StopReason::Cancelled,
            _ => return None,
        };
        let [prompt, output] = [(); 2].map(|()| header.take().map(u32::from_be_bytes));
        if !header.0.is_empty() {
            return None;
        }
        let leaves = |ids: u32| usize::try_from(ids).ok().map(|ids| ids.div_ceil(LEAF_IDS));
        let (of_prompt, rest) = rest.split_at_checked(leaves(prompt?)?)?;
        let (of_output, rest) = rest.split_at_checked(leaves(output?)?)?;
        let [_, _] = rest else { return None };
        let (prompt_ids, output_ids) = (ids_of(of_prompt)?, ids_of(of_output)?);
        let transcript = Transcript {
            request_hash,
            nonce,
            nonce_source,
            prompt_ids,
            output_ids,
            text: String::new(),
            stop,
            logprobs: vec![],
        };
        let usage = transcript.usage();
        (Some(usage.prompt_tokens) == prompt && Some(usage.completion_tokens) == output).then_some(transcript)
    }

    /// Tokens read and written.
    pub fn usage(&self) -> Usage {
        let count = |ids: &[u32]| u32::try_from(ids.len()).unwrap_or(u32::MAX);
        Usage { prompt_tokens: count(&self.prompt_ids), completion_tokens: count(&self.output_ids) }
    }
}

/// Reads fixed-length fields one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

/// The ids in leaves of which all but the last are full.
fn ids_of(leaves: &[&[u8]]) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for leaf in leaves {
        for id in leaf.chunks(4) {
            ids.push(u32::from_be_bytes(id.try_into().ok()?));
        }
    }
    Some(ids)
}

fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_be_bytes()).collect()
}
