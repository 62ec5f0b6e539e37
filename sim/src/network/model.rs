//! Inference by a model of two layers: the smallest that the engine's vectors have. Answers are made by the engine's reference, one token at a time, and
//! traced by its executor, which gives the same bits.
//!
//! Everything of a record is real: canonical requests and transcripts, tokens, digests, roots, signed receipts; and so is the trace behind it, which a
//! dispute walks. Where an answer ends is drawn from its request and nonce. A liar's execution is another one ([`By`]).
//! What was executed is remembered for a run: providers, auditors and accusers ask for the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use assay_core::answer::{AnswerRecord, Format};
use assay_core::consent::Consent;
use assay_core::digest::{DigestBuilder, ExecutionDigests};
use assay_core::id::{ChannelId, Hash, ModelRoot, Nonce, RequestHash, TranscriptRoot};
use assay_core::keccak::keccak256;
use assay_core::payment;
use assay_core::price::Price;
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Prompt, Request, Sampling, sampler_seed};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use assay_engine::artifact::TextModel;
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::reference::Reference;
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::sample::choose as draw_token;
use assay_engine::vectors;
use assay_verify::dispute::parties::Player;
use assay_verify::microstep::{Choice, choose};
use assay_verify::trace::part::{Numbers, Part};
use assay_verify::trace::walk::{Block, Subject, Trace};

use super::chain::Actor;

/// Positions of the model's window.
pub(super) const WINDOW: u32 = 64;
/// Most tokens of an answer.
pub(super) const ANSWER_TOKENS_MAX: u32 = 24;

/// Places of the model that everybody serves, and of the one that a cheap provider executes, among those of the vectors.
const SERVED: usize = 2;
const CHEAP: usize = 4;

/// A model, and its hashes.
pub(super) struct Model {
    pub(super) constants: Arc<dyn Constants>,
    pub(super) tree: ModelTree,
}

/// The caller's thread, and no other.
static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Arc::new(Pool::new(1)));

static MODELS: LazyLock<[Model; 2]> = LazyLock::new(|| {
    let of = |place: usize| {
        let text = TextModel {
            bos: None,
            add_bos: false,
            end_tokens: vec![],
            chat_template: String::new(),
            has_chat_template: false,
        };
        let constants = vectors::models().swap_remove(place);
        Model { tree: ModelTree::new(constants.as_ref(), &text, b"{}"), constants }
    };
    [of(SERVED), of(CHEAP)]
});

/// The model that everybody serves.
pub(super) fn served() -> &'static Model {
    &MODELS[0]
}

/// Its root.
pub(super) fn root() -> ModelRoot {
    served().tree.root()
}

fn vocabulary() -> u32 {
    served().constants.program().program().vocabulary
}

/// What providers ask for it, in millionths of a dollar for a million tokens.
pub(super) fn price() -> Price {
    Price::new(20_000_000_000, 60_000_000_000).expect("a price below the limit")
}

/// The request of a client with this number.
pub(super) fn request(client: usize, number: u64, prompt_tokens: u32) -> Request {
    let (number, many) = (u32::try_from(number).unwrap_or(0), vocabulary());
    let mut ids = vec![client as u32 + 1, number % many, number / many % many];
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

/// How an answer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum By {
    /// By the model and the prompt that were asked for.
    Asked,
    /// By another model.
    Cheap,
    /// By the model, of another prompt.
    Skims,
    /// As it was asked for, but for the last token, which is another one.
    Swaps,
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

thread_local! {
    static MADE: RefCell<BTreeMap<(By, RequestHash, Nonce), Made>> = const { RefCell::new(BTreeMap::new()) };
    static TRACED: RefCell<BTreeMap<(By, TranscriptRoot), Hash>> = const { RefCell::new(BTreeMap::new()) };
}

/// Tokens of an answer, and its digests.
type Made = (Vec<u32>, ExecutionDigests);

/// Forgets what was executed in another run.
pub(super) fn forget() {
    MADE.with_borrow_mut(BTreeMap::clear);
    TRACED.with_borrow_mut(BTreeMap::clear);
}

/// The prompt that is executed.
fn prompt_by(by: By, prompt: &[u32]) -> Vec<u32> {
    let mut prompt = prompt.to_vec();
    if let (By::Skims, Some(first)) = (by, prompt.first_mut()) {
        *first = (*first + 40) % vocabulary();
    }
    prompt
}

fn made(by: By, request: &Request, nonce: Nonce) -> Made {
    let key = (by, request.hash(), nonce);
    if let Some(known) = MADE.with_borrow(|made| made.get(&key).cloned()) {
        return known;
    }
    let made = if by == By::Swaps {
        let (mut tokens, digests) = made(By::Asked, request, nonce);
        // The last token is not read by anything: digests are as they were.
        tokens.iter_mut().last().into_iter().for_each(|last| *last = (*last + 1) % vocabulary());
        (tokens, digests)
    } else {
        generate(by, request, nonce)
    };
    MADE.with_borrow_mut(|all| all.insert(key, made.clone()));
    made
}

fn generate(by: By, request: &Request, nonce: Nonce) -> Made {
    let hash = request.hash();
    let drawn = keccak256(&[b"length", hash.as_bytes(), nonce.as_bytes()]);
    let count = 2 + usize::from(drawn.as_bytes()[0]) % (ANSWER_TOKENS_MAX as usize - 2);
    let model = if by == By::Cheap { &MODELS[1] } else { served() };
    let (hidden, logits) = model.constants.program().program().tokens();
    let seed = sampler_seed(nonce, hash, request.model);
    let mut reference = Reference::new(model.constants.as_ref());
    let (mut digests, mut output) = (DigestBuilder::new(), Vec::new());
    let mut tokens = prompt_by(by, &prompt_ids(request));
    let (prompt, mut history) = (tokens.len(), History::new(&tokens));
    for position in 0.. {
        let Some(token) = tokens.get(position).filter(|_| output.len() < count) else { break };
        let values = reference.step(*token, true);
        let (q, s) = values[usize::from(hidden)].int8();
        digests.push(position as u32, q, s[0].mantissa, s[0].exponent);
        if position + 1 >= prompt {
            let logits = values[usize::from(logits)].integers().0;
            let id = draw_token(logits, &history, None, &request.sampling, &seed, output.len() as u32);
            history.push(id);
            output.push(id);
            tokens.push(id);
        }
    }
    (output, digests.finish())
}

/// What an execution gives.
pub(super) fn execute(by: By, request: &Request, nonce: Nonce) -> (Transcript, ExecutionDigests) {
    let (output_ids, digests) = made(by, request, nonce);
    let transcript = Transcript {
        request_hash: request.hash(),
        nonce,
        nonce_source: NonceSource::Client,
        prompt_ids: prompt_ids(request),
        text: format!("{output_ids:?}"),
        output_ids,
        stop: StopReason::EndToken,
        logprobs: vec![],
    };
    (transcript, digests)
}

/// The trace of a record's tokens, as the model makes it or as a liar says.
fn traced(by: By, request: &Request, transcript: &Transcript) -> Trace<'static> {
    let fed = transcript.output_ids.len().saturating_sub(1);
    let prompt = prompt_by(by, &transcript.prompt_ids);
    let subject = Subject {
        prompt: prompt.len() as u32,
        tokens: prompt.into_iter().chain(transcript.output_ids.iter().take(fed).copied()).collect(),
        choice: Choice {
            sampling: request.sampling.clone(),
            guided: false,
            seed: sampler_seed(transcript.nonce, request.hash(), request.model),
        },
        masks: vec![],
    };
    Trace::new(served().constants.as_ref(), subject, &mut executor())
}

fn executor() -> Executor {
    Executor::new(served().constants.clone(), Kernel::available()[0], Arc::clone(&POOL))
}

/// The root of that trace.
pub(super) fn trace(by: By, request: &Request, transcript: &Transcript) -> Hash {
    let key = (by, transcript.root());
    if let Some(known) = TRACED.with_borrow(|traced| traced.get(&key).copied()) {
        return known;
    }
    let root = traced(by, request, transcript).root();
    TRACED.with_borrow_mut(|all| all.insert(key, root));
    root
}

/// Who plays a dispute over a record with what it says was executed. Who says that the last token is another one says so of the step that chose it.
pub(super) fn player(by: By, record: &AnswerRecord) -> Player<'static> {
    let trace = traced(by, &record.request, &record.transcript);
    let step = choose(trace.extent().ops);
    let said = record.transcript.output_ids.last().copied();
    let last = trace.extent().positions.saturating_sub(1);
    let player = Player::new(trace, Box::new(executor()));
    if by != By::Swaps {
        return player;
    }
    player.altering(move |block: &mut Block| {
        if !block.positions.contains(&last) {
            return;
        }
        let row = last.saturating_sub(block.first(step)) as usize;
        let parts = block.parts(step).unwrap_or_default();
        let (Some(part), Some(said)) = (parts.last(), said) else { return };
        let (place, other) = (parts.len() - 1, with_token(part, row, said));
        block.replace(step, place as u8, other);
    })
}

/// A part of chosen tokens with another one in a row.
fn with_token(part: &Part, row: usize, token: u32) -> Part {
    let shape = part.shape();
    let number = |i: usize| match (i / shape.columns, i % shape.columns) {
        (at, 0) if at == row => i64::from(token),
        (at, column) => part.get(at, column),
    };
    let all = (0..shape.rows * shape.columns).map(number);
    let numbers = match shape.width.bytes() {
        1 => Numbers::Byte(all.map(|v| v as i8).collect()),
        4 => Numbers::Word(all.map(|v| v as i32).collect()),
        _ => Numbers::Long(all.collect()),
    };
    Part::new(shape.rows, shape.columns, shape.layout, numbers)
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

/// Whether an execution of what the record asks for gives what it says: tokens and digests are what the model makes of the prompt, as the first execution
/// has found.
pub(super) fn stands(request: &Request, transcript: &Transcript, receipt: &Receipt) -> bool {
    let (own, digests) = execute(By::Asked, request, transcript.nonce);
    own.output_ids == transcript.output_ids && digests.root() == receipt.digest_root
}

/// The digests of what a record's tokens were made of.
pub(super) fn digests(request: &Request, transcript: &Transcript) -> ExecutionDigests {
    traced(By::Asked, request, transcript).digests()
}

/// A nonce that a client draws.
pub(super) fn nonce(bits: [u64; 4]) -> Nonce {
    let mut bytes = [0; 32];
    for (part, bits) in bytes.chunks_mut(8).zip(bits) {
        part.copy_from_slice(&bits.to_be_bytes());
    }
    Nonce::from_bytes(bytes)
}
