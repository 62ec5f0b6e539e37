//! Answers to audit: signed records of executions that nobody had to generate.
//!
//! Prompt and answer are as long as each other, and the answer repeats one token, made certain by a bias. The execution is that of
//! any answer; only the choice of tokens costs something else, which whoever measures replaces by the usual cost.

use anyhow::{Result, anyhow};
use assay_core::answer::{AnswerRecord, Format};
use assay_core::consent::Consent;
use assay_core::digest::DigestBuilder;
use assay_core::id::{ChannelId, ModelRoot, Nonce};
use assay_core::receipt::{Domain, Receipt};
use assay_core::request::{Prompt, Request, Sampling};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use assay_engine::artifact::TextModel;
use assay_engine::forward::Executor;
use assay_engine::import::synthetic;
use assay_engine::program::Program;
use assay_engine::replay::Execution as _;
use assay_engine::text::Tokenizer;
use assay_engine::transcribe::{StopRules, Transcriber};
use assay_node::key::NodeKey;
use assay_verify::light::Fed;
use assay_verify::reexecution::Subject;

use crate::commands::bench::tokens;
use crate::commands::bench::verification::execution::{REPEATED, sampling};

/// Ids that the tokenizer knows: the one that is repeated is among them.
const WORDS: u32 = 16;
/// Root of models that have no artifact.
pub const ROOT: ModelRoot = ModelRoot::from_bytes([1; 32]);

/// An answer of a model in memory.
pub struct Answer {
    pub record: AnswerRecord,
    pub fed: Fed,
    text: TextModel,
    tokenizer: Tokenizer,
}

impl Answer {
    /// An answer whose execution has `t` positions.
    pub fn new(executor: &mut Executor, t: u32) -> Result<Answer> {
        let constants = std::sync::Arc::clone(executor.constants());
        let program = constants.program().program();
        let (text, json) = synthetic::text(WORDS);
        let tokenizer = Tokenizer::new(&text, &json)?;
        let prompt = tokens((t / 2) as usize, program.vocabulary);
        let request = Request {
            model: ROOT,
            prompt: Prompt::Tokens(prompt.clone()),
            sampling: Sampling { bias: vec![REPEATED], ..sampling() },
            max_tokens: t / 2 + 1,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: None,
            audit: Consent::Given,
        };
        let transcript = transcript(&request, prompt, program, &text, &tokenizer);
        let fed = Fed::of(&transcript).ok_or_else(|| anyhow!("an answer without tokens"))?;
        let record = signed(executor, request, transcript, &fed)?;
        Ok(Answer { record, fed, text, tokenizer })
    }

    /// What it is checked against.
    pub fn subject<'a>(&'a self, program: &'a Program) -> Subject<'a> {
        Subject { root: ROOT, program, text: &self.text, tokenizer: &self.tokenizer }
    }
}

fn transcript(
    request: &Request,
    prompt_ids: Vec<u32>,
    program: &Program,
    text: &TextModel,
    tokenizer: &Tokenizer,
) -> Transcript {
    let rules = StopRules {
        end_tokens: text.end_tokens.clone(),
        stop: vec![],
        max_tokens: request.max_tokens,
        context: program.context,
        prompt_tokens: prompt_ids.len() as u32,
    };
    let output_ids = vec![REPEATED.0; request.max_tokens as usize];
    let mut transcriber = Transcriber::new(tokenizer, rules);
    for id in &output_ids {
        transcriber.push(*id);
    }
    Transcript {
        request_hash: request.hash(),
        nonce: Nonce::ZERO,
        nonce_source: NonceSource::Seed,
        prompt_ids,
        output_ids,
        text: transcriber.text().to_owned(),
        stop: transcriber.stopped().unwrap_or(StopReason::Length),
        logprobs: vec![],
    }
}

fn signed(
    executor: &mut Executor,
    request: Request,
    transcript: Transcript,
    fed: &Fed,
) -> Result<AnswerRecord> {
    let mut builder = DigestBuilder::new();
    executor.replay(fed.tokens(), fed.tokens().len(), &mut |row| {
        let (numbers, scale) = row.hidden;
        builder.push(row.position as u32, numbers, scale.mantissa, scale.exponent);
    });
    let digests = builder.finish();
    let folder = tempfile::tempdir()?;
    let key = NodeKey::load_or_create(&folder.path().join("key"))?;
    let usage = transcript.usage();
    let receipt = Receipt {
        provider: key.address(),
        sequence: 1,
        model_root: request.model,
        request_hash: request.hash(),
        transcript_root: transcript.root(),
        digest_root: digests.root(),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: transcript.nonce,
        epoch: 0,
    };
    let receipt = key.sign(receipt, Domain::DEVELOPMENT)?;
    Ok(AnswerRecord { format: Format::V2, receipt, request, transcript, digests, generation: None })
}
