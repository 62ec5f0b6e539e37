//! Inference without a model: what an execution gives is a function of model, request and nonce, and what a liar says is another one.
//!
//! Records are real: canonical requests and transcripts, roots, signed receipts. What is abstract is where tokens, digests and traces come from.

use assay_core::answer::{AnswerRecord, Format};
use assay_core::consent::Consent;
use assay_core::digest::ExecutionDigests;
use assay_core::id::{ChannelId, Hash, ModelRoot, Nonce};
use assay_core::keccak::keccak256;
use assay_core::payment;
use assay_core::price::Price;
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Prompt, Request, Sampling};
use assay_core::transcript::{NonceSource, StopReason, Transcript};

use super::chain::Actor;

/// Positions of the model's window.
pub(super) const WINDOW: u32 = 64;
/// Most tokens of an answer.
pub(super) const ANSWER_TOKENS_MAX: u32 = 24;

/// The model that everybody serves.
pub(super) fn root() -> ModelRoot {
    ModelRoot::from_bytes(*keccak256(&[b"the simulator's model"]).as_bytes())
}

/// What providers ask for it, in millionths of a dollar for a million tokens.
pub(super) fn price() -> Price {
    Price::new(20_000_000_000, 60_000_000_000).expect("a price below the limit")
}

/// The request of a client with this number.
pub(super) fn request(client: usize, number: u64, prompt_tokens: u32) -> Request {
    let mut ids = vec![client as u32 + 1, u32::try_from(number).unwrap_or(0)];
    ids.extend(0..prompt_tokens);
    Request {
        model: root(),
        prompt: Prompt::Tokens(ids),
        sampling: Sampling::GREEDY,
        max_tokens: ANSWER_TOKENS_MAX,
        stop: vec![],
        choice: 0,
        guide: None,
        logprobs: None,
        audit: Consent::Given,
    }
}

/// By which model an answer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The one that was asked for.
    Asked,
    /// A smaller one, which is not.
    Cheap,
}

/// The most that a request costs: its prompt, and as long an answer as it may have.
pub(super) fn most(request: &Request) -> u64 {
    price().fee(prompt_ids(request).len() as u32, request.max_tokens)
}

fn prompt_ids(request: &Request) -> Vec<u32> {
    match &request.prompt {
        Prompt::Tokens(ids) => ids.clone(),
        _ => vec![],
    }
}

/// What an execution gives.
pub(super) fn execute(by: By, request: &Request, nonce: Nonce) -> (Transcript, ExecutionDigests) {
    let which: &[u8] = match by {
        By::Asked => b"asked",
        By::Cheap => b"cheap",
    };
    let hash = request.hash();
    let draw = |what: &[u8]| keccak256(&[what, which, hash.as_bytes(), nonce.as_bytes()]);
    let tokens = draw(b"tokens");
    let count = 2 + usize::from(tokens.as_bytes()[0]) % (ANSWER_TOKENS_MAX as usize - 2);
    let transcript = Transcript {
        request_hash: hash,
        nonce,
        nonce_source: NonceSource::Client,
        prompt_ids: prompt_ids(request),
        output_ids: tokens.as_bytes().iter().map(|b| u32::from(*b)).take(count).collect(),
        text: format!("{tokens}"),
        stop: StopReason::EndToken,
        logprobs: vec![],
    };
    (transcript, ExecutionDigests(vec![draw(b"digest")]))
}

/// The root of an execution's trace.
pub(super) fn trace(by: By, request: &Request, nonce: Nonce) -> Hash {
    let which: &[u8] = if by == By::Asked { b"asked" } else { b"cheap" };
    keccak256(&[b"trace", which, request.hash().as_bytes(), nonce.as_bytes()])
}

/// What a receipt says of money and time.
pub(super) struct Billing {
    pub(super) channel: ChannelId,
    pub(super) epoch: u64,
    pub(super) domain: Domain,
}

/// A signed record.
pub(super) fn record(
    provider: &Actor,
    sequence: u64,
    by: By,
    request: &Request,
    nonce: Nonce,
    billing: &Billing,
) -> AnswerRecord {
    let (transcript, digests) = execute(by, request, nonce);
    let usage = transcript.usage();
    let receipt = Receipt {
        provider: provider.node(),
        sequence,
        model_root: request.model,
        request_hash: transcript.request_hash,
        transcript_root: transcript.root(),
        digest_root: digests.root(),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        fee_micro_usd: payment::fee(Some(price()), &transcript),
        payer_channel: billing.channel,
        client_nonce: nonce,
        epoch: billing.epoch,
    };
    let signature = provider.sign(&receipt.signing_hash(&billing.domain));
    AnswerRecord {
        format: Format::V2,
        receipt: SignedReceipt { receipt, domain: billing.domain, signature },
        request: request.clone(),
        transcript,
        digests,
        generation: None,
    }
}

/// Whether an execution of what the record asks for gives what it says.
pub(super) fn stands(request: &Request, transcript: &Transcript, receipt: &Receipt) -> bool {
    let (own, digests) = execute(By::Asked, request, transcript.nonce);
    own.output_ids == transcript.output_ids && digests.root() == receipt.digest_root
}

/// A nonce that a client draws.
pub(super) fn nonce(bits: [u64; 4]) -> Nonce {
    let mut bytes = [0; 32];
    for (part, bits) in bytes.chunks_mut(8).zip(bits) {
        part.copy_from_slice(&bits.to_be_bytes());
    }
    Nonce::from_bytes(bytes)
}
