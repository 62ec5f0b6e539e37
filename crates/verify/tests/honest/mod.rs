//! An honest provider in a few lines: generates with the engine, signs, and can sign again what was altered.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;

use alloy_primitives::B256;
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_core::answer::{AnswerRecord, Format};
use assay_core::consent::Consent;
use assay_core::digest::ExecutionDigests;
use assay_core::id::{ChannelId, NodeAddress, Nonce, SignatureBytes};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Message, Prompt, Request, Role, Sampling, Tool, sampler_seed};
use assay_core::transcript::{NonceSource, Transcript};
use assay_core::verdict::Verdict;
use assay_engine::artifact::Artifact;
use assay_engine::batch::{Answer, BatchLimits, Batcher, Event, Job};
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;
use assay_verify::reexecution::{Subject, check_by_reexecution};

/// The provider's key.
pub fn provider() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap()
}

/// The signed record of an answer.
pub fn record(
    key: &PrivateKeySigner,
    request: Request,
    transcript: Transcript,
    digests: ExecutionDigests,
) -> AnswerRecord {
    let receipt = Receipt {
        provider: NodeAddress::from_bytes(key.address().into_array()),
        sequence: 1,
        model_root: request.model,
        request_hash: request.hash(),
        transcript_root: transcript.root(),
        digest_root: digests.root(),
        prompt_tokens: transcript.usage().prompt_tokens,
        completion_tokens: transcript.usage().completion_tokens,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: transcript.nonce,
        epoch: 0,
    };
    let signature = SignatureBytes::from_bytes([0; 65]);
    let receipt = SignedReceipt { receipt, domain: Domain::DEVELOPMENT, signature };
    let mut record =
        AnswerRecord { format: Format::V2, receipt, request, transcript, digests, generation: None };
    sign(key, &mut record);
    record
}

/// Makes the receipt fit what the record says, and signs it: what a provider who cheats would do.
pub fn sign(key: &PrivateKeySigner, record: &mut AnswerRecord) {
    record.transcript.request_hash = record.request.hash();
    let usage = record.transcript.usage();
    let receipt = &mut record.receipt.receipt;
    receipt.model_root = record.request.model;
    receipt.client_nonce = record.transcript.nonce;
    receipt.request_hash = record.request.hash();
    receipt.transcript_root = record.transcript.root();
    receipt.digest_root = record.digests.root();
    receipt.prompt_tokens = usage.prompt_tokens;
    receipt.completion_tokens = usage.completion_tokens;
    let hash = receipt.signing_hash(&record.receipt.domain);
    let signature = key.sign_hash_sync(&B256::from(*hash.as_bytes())).unwrap();
    record.receipt.signature = SignatureBytes::from_bytes(signature.as_bytes());
}

fn tools(request: &Request) -> &[Tool] {
    match &request.prompt {
        Prompt::Chat { tools, .. } => tools,
        _ => &[],
    }
}

/// A model, ready to answer and to check.
pub struct Node {
    pub artifact: Arc<Artifact>,
    pub tokenizer: Tokenizer,
    key: PrivateKeySigner,
}

impl Node {
    /// With the model that ships in the repository.
    pub fn new() -> Node {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
        let artifact = Arc::new(Artifact::open(&path).unwrap());
        let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
        Node { artifact, tokenizer, key: provider() }
    }

    /// The fast engine with the model.
    pub fn executor(&self) -> Executor {
        Executor::new(self.artifact.shared(), Kernel::from_environment().unwrap(), Arc::new(Pool::new(1)))
    }

    pub fn request(&self) -> Request {
        let content = "Once upon a time there was a little dog".to_owned();
        Request {
            model: self.artifact.root(),
            prompt: Prompt::Chat { messages: vec![Message::text(Role::User, content)], tools: vec![] },
            sampling: Sampling {
                temperature_micro: 900_000,
                top_k: 200,
                top_p_micro: 950_000,
                min_p_micro: 1_000,
                seed: Some(7),
                ..Sampling::GREEDY
            },
            max_tokens: 80,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: None,
            audit: Consent::Given,
        }
    }

    /// Answers and signs.
    pub fn answer(&self, request: Request) -> AnswerRecord {
        self.answer_by(self.executor(), request)
    }

    /// Answers with an engine that may hold another model, and signs.
    pub fn answer_by(&self, executor: Executor, request: Request) -> AnswerRecord {
        self.execute(executor, request, usize::MAX)
    }

    /// Answers until it is asked to stop after so many tokens, and signs.
    pub fn stopped(&self, request: Request, tokens: usize) -> AnswerRecord {
        self.execute(self.executor(), request, tokens)
    }

    fn execute(&self, executor: Executor, request: Request, stop_after: usize) -> AnswerRecord {
        let prompt = self.tokenizer.encode_prompt(&request.prompt).unwrap();
        let nonce = Nonce::ZERO;
        let job = Job {
            id: 1,
            prompt,
            sampling: request.sampling.clone(),
            seed: sampler_seed(nonce, request.hash(), request.model),
            max_tokens: request.max_tokens,
            stop: request.stop.clone(),
            guide: request.guide.as_ref().map(|g| self.tokenizer.guide(g, tools(&request)).unwrap()),
            logprobs: request.logprobs,
        };
        let end_tokens = self.artifact.text().end_tokens.clone();
        let mut batcher = Batcher::new(executor, &self.tokenizer, end_tokens, BatchLimits::default());
        batcher.submit(job).unwrap();
        let mut answer: Option<Answer> = None;
        let mut tokens = 0;
        while answer.is_none() {
            let mut report = |_, event| match event {
                Event::Done(a) => answer = Some(*a),
                Event::Token { .. } => tokens += 1,
                _ => {}
            };
            batcher.step(&mut report);
            if tokens >= stop_after {
                batcher.stop(1, &mut |_, event| {
                    if let Event::Done(a) = event {
                        answer = Some(*a);
                    }
                });
            }
        }
        let answer = answer.unwrap();
        let transcript = Transcript {
            request_hash: request.hash(),
            nonce,
            nonce_source: NonceSource::Seed,
            prompt_ids: answer.prompt,
            output_ids: answer.output,
            text: answer.text,
            stop: answer.stop,
            logprobs: answer.logprobs,
        };
        record(&self.key, request, transcript, answer.digests)
    }

    /// See [`sign`].
    pub fn sign(&self, record: &mut AnswerRecord) {
        sign(&self.key, record);
    }

    /// Checks with the fast engine.
    pub fn check(&self, record: &AnswerRecord) -> Verdict {
        let subject = Subject {
            root: self.artifact.root(),
            program: self.artifact.program().program(),
            text: self.artifact.text(),
            tokenizer: &self.tokenizer,
        };
        check_by_reexecution(record, &subject, &mut self.executor())
    }
}
