//! Small models with every operation, and answers of theirs: what disputes are played over.

use std::sync::Arc;

use assay_core::answer::{AnswerRecord, Format};
use assay_core::consent::Consent;
use assay_core::digest::DigestBuilder;
use assay_core::id::{ChannelId, NodeAddress, Nonce, SignatureBytes};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Prompt, Request, Sampling, sampler_seed};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use assay_engine::artifact::TextModel;
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants;
use assay_engine::program::Head;
use assay_engine::reference::Reference;
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::sample::choose;
use assay_engine::vectors;
use assay_verify::dispute::Statement;
use assay_verify::microstep::Choice;
use assay_verify::trace::walk::Subject;

/// A model and its hashes.
pub struct Small {
    pub constants: Arc<dyn Constants>,
    pub tree: ModelTree,
}

/// Hashes of a model without a tokenizer.
pub fn tree(constants: &Arc<dyn Constants>) -> ModelTree {
    let text = TextModel {
        bos: None,
        add_bos: false,
        end_tokens: vec![],
        chat_template: String::new(),
        has_chat_template: false,
    };
    ModelTree::new(constants.as_ref(), &text, b"{}")
}

/// The models of the vectors that make tokens.
pub fn models() -> Vec<Small> {
    let decoders =
        vectors::models().into_iter().filter(|m| matches!(m.program().program().head, Head::Tokens { .. }));
    decoders.map(|constants| Small { tree: tree(&constants), constants }).collect()
}

pub fn ids(count: u32, vocabulary: u32, seed: u64) -> Vec<u32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % u64::from(vocabulary)) as u32
    };
    (0..count).map(|_| next()).collect()
}

/// How a token is drawn where everything takes part.
pub fn sampling() -> Sampling {
    Sampling {
        temperature_micro: 900_000,
        top_k: 40,
        top_p_micro: 950_000,
        min_p_micro: 1_000,
        seed: Some(5),
        presence_micro: 100_000,
        frequency_micro: 50_000,
        repetition_micro: 1_100_000,
        bias: vec![(3, 500_000)],
    }
}

impl Small {
    /// An honest answer, executed by the reference. Nobody signs it: disputes are about what stands in it.
    pub fn answer(&self, prompt: u32, output: u32, sampling: Sampling) -> AnswerRecord {
        let program = self.constants.program().program();
        let model = self.tree.root();
        let prompt_ids = ids(prompt, program.vocabulary, 17);
        let request = Request {
            model,
            prompt: Prompt::Tokens(prompt_ids.clone()),
            sampling,
            max_tokens: output,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: None,
            audit: Consent::Given,
        };
        let seed = sampler_seed(Nonce::ZERO, request.hash(), model);
        let (hidden, logits) = program.tokens();
        let mut reference = Reference::new(self.constants.as_ref());
        let mut digests = DigestBuilder::new();
        let mut history = History::new(&prompt_ids);
        let mut output_ids = Vec::new();
        let mut tokens = prompt_ids.clone();
        let mut position = 0;
        while (output_ids.len() as u32) < output {
            let values = reference.step(tokens[position], true);
            let (q, s) = values[usize::from(hidden)].int8();
            digests.push(position as u32, q, s[0].mantissa, s[0].exponent);
            position += 1;
            if position < prompt_ids.len() {
                continue;
            }
            let l = values[usize::from(logits)].integers().0;
            let id = choose(l, &history, None, &request.sampling, &seed, output_ids.len() as u32);
            history.push(id);
            output_ids.push(id);
            tokens.push(id);
        }
        let transcript = Transcript {
            request_hash: request.hash(),
            nonce: Nonce::ZERO,
            nonce_source: NonceSource::Seed,
            prompt_ids,
            output_ids,
            text: String::new(),
            stop: StopReason::Length,
            logprobs: vec![],
        };
        let mut record = AnswerRecord {
            format: Format::V2,
            receipt: SignedReceipt {
                receipt: Receipt {
                    provider: NodeAddress::ZERO,
                    sequence: 1,
                    model_root: model,
                    request_hash: request.hash(),
                    transcript_root: transcript.root(),
                    digest_root: digests.clone().finish().root(),
                    prompt_tokens: prompt,
                    completion_tokens: output,
                    fee_micro_usd: 0,
                    payer_channel: ChannelId::ZERO,
                    client_nonce: Nonce::ZERO,
                    epoch: 0,
                },
                domain: Domain::DEVELOPMENT,
                signature: SignatureBytes::from_bytes([0; 65]),
            },
            request,
            transcript,
            digests: digests.finish(),
            generation: None,
        };
        bind(&mut record);
        record
    }
}

/// Makes the receipt fit what the record says: what a provider who cheats would sign.
pub fn bind(record: &mut AnswerRecord) {
    record.transcript.request_hash = record.request.hash();
    let receipt = &mut record.receipt.receipt;
    receipt.request_hash = record.request.hash();
    receipt.transcript_root = record.transcript.root();
    receipt.digest_root = record.digests.root();
}

/// What a receipt states.
pub fn statement(record: &AnswerRecord) -> Statement {
    Statement::of(&record.receipt.receipt)
}

/// What was executed for a record.
pub fn subject(record: &AnswerRecord) -> Subject {
    let t = &record.transcript;
    let fed = t.output_ids.len() - 1;
    Subject {
        tokens: t.prompt_ids.iter().chain(&t.output_ids[..fed]).copied().collect(),
        prompt: t.prompt_ids.len() as u32,
        choice: Choice {
            sampling: record.request.sampling.clone(),
            guided: record.request.guide.is_some(),
            seed: sampler_seed(t.nonce, record.request.hash(), record.request.model),
        },
        masks: vec![],
    }
}
