//! Embeddings: honest records hold, and every single change is found.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use alloy_primitives::B256;
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_core::canonical::Canonical as _;
use assay_core::consent::Consent;
use assay_core::embedding::{
    EmbeddingFormat, EmbeddingInput, EmbeddingRecord, EmbeddingRequest, EmbeddingTranscript, pooled_digests,
};
use assay_core::id::{ChannelId, NodeAddress, Nonce, SignatureBytes};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::import::{ImportOptions, import};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::layers::Layers;
use assay_engine::replay::{ByReference, Execution};
use assay_engine::semantics::embedding::embedding;
use assay_engine::text::Tokenizer;
use assay_verify::embedding::{check_embedding_by_reexecution, check_embedding_record};
use assay_verify::reexecution::Subject;
use assay_verify::shard::{Boundary, Evidence, Shard, boundaries, check_shard};
use proptest::prelude::*;
use serde_json::json;

const DIM: usize = 16;
const HIDDEN: usize = 24;
const WORDS: [&str; 8] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "cat", "tree", "runs"];

/// Writes a small encoder with random weights in Hugging Face's layout.
fn checkpoint(folder: &Path) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 2001) as f32 / 1000.0 - 1.0
    };
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), DIM]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![12, DIM]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, DIM]),
    ];
    let norm = |name: &str, shapes: &mut Vec<(String, Vec<usize>)>| {
        shapes.push((format!("{name}.weight"), vec![DIM]));
        shapes.push((format!("{name}.bias"), vec![DIM]));
    };
    norm("embeddings.LayerNorm", &mut shapes);
    for l in 0..2 {
        for (name, rows, cols) in [
            ("attention.self.query", DIM, DIM),
            ("attention.self.key", DIM, DIM),
            ("attention.self.value", DIM, DIM),
            ("attention.output.dense", DIM, DIM),
            ("intermediate.dense", HIDDEN, DIM),
            ("output.dense", DIM, HIDDEN),
        ] {
            shapes.push((format!("encoder.layer.{l}.{name}.weight"), vec![rows, cols]));
            shapes.push((format!("encoder.layer.{l}.{name}.bias"), vec![rows]));
        }
        norm(&format!("encoder.layer.{l}.attention.output.LayerNorm"), &mut shapes);
        norm(&format!("encoder.layer.{l}.output.LayerNorm"), &mut shapes);
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in shapes {
        let from = data.len();
        let count: usize = shape.iter().product();
        data.extend((0..count).flat_map(|_| random().to_le_bytes()));
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    let config = json!({"architectures": ["BertModel"], "hidden_size": DIM, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": HIDDEN, "vocab_size": WORDS.len(), "hidden_act": "gelu",
        "max_position_embeddings": 12, "type_vocab_size": 2, "layer_norm_eps": 1e-12});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    std::fs::write(
        folder.join("1_Pooling/config.json"),
        json!({"pooling_mode_mean_tokens": true}).to_string(),
    )
    .unwrap();
    let vocab: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(i, w)| ((*w).to_owned(), json!(i))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let template = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2), special(3)], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": [template("[CLS]"), sequence("A"), template("[SEP]")],
            "pair": [sequence("A"), sequence("B")],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                               "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}});
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

struct Node {
    artifact: Arc<Artifact>,
    tokenizer: Tokenizer,
    key: PrivateKeySigner,
    _folder: tempfile::TempDir,
}

static NODE: LazyLock<Node> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path());
    let out = folder.path().join("out.assay");
    import(folder.path(), &ImportOptions::default(), &out, &mut |_| {}).unwrap();
    let artifact = Arc::new(Artifact::open(&out).unwrap());
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    Node { artifact, tokenizer, key, _folder: folder }
});

static RECORD: LazyLock<EmbeddingRecord> = LazyLock::new(|| NODE.embed(NODE.request()));

impl Node {
    fn executor(&self) -> Executor {
        Executor::new(self.artifact.shared(), Kernel::available()[0], Arc::new(Pool::new(1)))
    }

    fn request(&self) -> EmbeddingRequest {
        let text = |t: &str| EmbeddingInput::Text(t.into());
        let long = "dog ".repeat(30);
        EmbeddingRequest {
            model: self.artifact.root(),
            inputs: vec![
                text("dog runs"),
                text(""),
                text("[CLS] tree"),
                text(&long),
                EmbeddingInput::Tokens(vec![4, 5]),
            ],
            dimensions: Some(12),
            truncate: true,
            audit: Consent::Given,
        }
    }

    fn embed(&self, request: EmbeddingRequest) -> EmbeddingRecord {
        let context = self.artifact.program().program().context as usize;
        let input_ids: Vec<Vec<u32>> = request
            .inputs
            .iter()
            .map(|i| match i {
                EmbeddingInput::Text(t) => self.tokenizer.encode_for_embedding(t, context).unwrap(),
                EmbeddingInput::Tokens(t) => t.clone(),
            })
            .collect();
        let inputs: Vec<&[u32]> = input_ids.iter().map(Vec::as_slice).collect();
        let pooled = Execution::encode(&mut self.executor(), &inputs);
        let dimensions = request.dimensions.unwrap() as usize;
        let vectors = pooled.iter().map(|p| embedding(p, dimensions)).collect();
        let transcript = EmbeddingTranscript { request_hash: request.hash(), input_ids, vectors };
        let receipt = Receipt {
            provider: NodeAddress::from_bytes(self.key.address().into_array()),
            sequence: 1,
            model_root: request.model,
            request_hash: request.hash(),
            transcript_root: transcript.root(),
            digest_root: pooled_digests(pooled.iter().map(Vec::as_slice)).root(),
            prompt_tokens: transcript.tokens(),
            completion_tokens: 0,
            fee_micro_usd: 0,
            payer_channel: ChannelId::ZERO,
            client_nonce: Nonce::ZERO,
            epoch: 0,
        };
        let signature = SignatureBytes::from_bytes([0; 65]);
        let mut record = EmbeddingRecord {
            format: EmbeddingFormat::V2,
            receipt: SignedReceipt { receipt, domain: Domain::DEVELOPMENT, signature },
            digests: pooled_digests(pooled.iter().map(Vec::as_slice)),
            request,
            transcript,
            generation: None,
        };
        self.sign(&mut record);
        record
    }

    fn sign(&self, record: &mut EmbeddingRecord) {
        record.transcript.request_hash = record.request.hash();
        let receipt = &mut record.receipt.receipt;
        receipt.request_hash = record.request.hash();
        receipt.transcript_root = record.transcript.root();
        receipt.digest_root = record.digests.root();
        receipt.prompt_tokens = record.transcript.tokens();
        let hash = receipt.signing_hash(&record.receipt.domain);
        let signature = self.key.sign_hash_sync(&B256::from(*hash.as_bytes())).unwrap();
        record.receipt.signature = SignatureBytes::from_bytes(signature.as_bytes());
    }

    fn check_with(&self, record: &EmbeddingRecord, execution: &mut dyn Execution) -> Verdict {
        let subject = Subject {
            root: self.artifact.root(),
            program: self.artifact.program().program(),
            text: self.artifact.text(),
            tokenizer: &self.tokenizer,
        };
        check_embedding_by_reexecution(record, &subject, execution)
    }

    fn check(&self, record: &EmbeddingRecord) -> Verdict {
        self.check_with(record, &mut self.executor())
    }
}

#[test]
fn honest_embeddings_hold_by_engine_and_reference() {
    assert_eq!(RECORD.transcript.input_ids[2], [2, 1, 1, 1, 6, 3], "a special token in a text is text");
    assert_eq!(RECORD.transcript.input_ids[3].len(), 12, "a long text is cut");
    for verdict in [NODE.check(&RECORD), NODE.check_with(&RECORD, &mut ByReference(NODE.artifact.as_ref()))] {
        assert!(verdict.holds, "{verdict:?}");
    }
    assert!(check_embedding_record(&RECORD).holds);
}

#[test]
fn layers_of_an_encoder_are_checked_one_by_one() {
    let (program, tokens) = (NODE.artifact.program(), &RECORD.transcript.input_ids[3]);
    let layers = Layers::of(program);
    let mut states: Vec<Boundary> = Vec::new();
    boundaries(program, &mut NODE.executor(), tokens, &mut |_, state| {
        states.push(state.clone());
        ControlFlow::Continue(())
    });
    assert_eq!((layers.all().len(), states.len()), (4, 3));
    for layer in [1, 2] {
        let shard = Shard { model: NODE.artifact.root(), program, layers: &layers, layer };
        let mut numbers = states[layer].numbers().to_vec();
        numbers[7 * DIM + 3] -= 1;
        let wrong = Boundary::new(DIM, numbers).unwrap();
        for (output, position) in [(&states[layer], None), (&wrong, Some(7))] {
            let evidence =
                Evidence { input: Some(&states[layer - 1]), output: Some(output), ..Evidence::default() };
            let verdict = check_shard(&shard, &evidence, &mut NODE.executor()).unwrap();
            let reference = &mut ByReference(NODE.artifact.as_ref());
            assert_eq!(check_shard(&shard, &evidence, reference).unwrap(), verdict);
            assert_eq!(verdict.verdict.failure.and_then(|f| f.position), position);
        }
    }
    // Its ends need a record of answers, which it does not make.
    let shard = Shard { model: NODE.artifact.root(), program, layers: &layers, layer: 3 };
    let evidence = Evidence { input: states.last(), ..Evidence::default() };
    assert!(check_shard(&shard, &evidence, &mut NODE.executor()).is_err());
}

#[test]
fn every_kind_of_change_is_found_and_named() {
    type Change = fn(&mut EmbeddingRecord);
    let changes: [(Change, FailureCode); 8] = [
        (|r| r.transcript.vectors[1][3] += 1, FailureCode::Vector),
        (|r| r.transcript.vectors[4].truncate(11), FailureCode::Vector),
        (|r| r.transcript.input_ids[0][1] = 6, FailureCode::PromptIds),
        (|r| r.request.inputs[0] = EmbeddingInput::Text("cat runs".into()), FailureCode::PromptIds),
        (|r| r.request.dimensions = Some(8), FailureCode::Vector),
        (|r| r.request.truncate = false, FailureCode::PromptIds),
        (|r| r.digests.0.swap(0, 1), FailureCode::Digest),
        (|r| drop(r.request.inputs.pop()), FailureCode::PromptIds),
    ];
    for (i, (change, code)) in changes.into_iter().enumerate() {
        let mut record = RECORD.clone();
        change(&mut record);
        assert!(!NODE.check(&record).holds && !check_embedding_record(&record).holds, "{i}: unsigned");
        NODE.sign(&mut record);
        let verdict = NODE.check(&record);
        assert_eq!(verdict.failure.as_ref().map(|f| f.code), Some(code), "{i}: {verdict:?}");
    }
}

#[test]
fn what_cannot_be_executed_is_refused() {
    let mut record = RECORD.clone();
    record.transcript.input_ids[0] = vec![99];
    NODE.sign(&mut record);
    assert!(!NODE.check(&record).holds);
    record.transcript.input_ids[0] = vec![4; 4000];
    NODE.sign(&mut record);
    assert!(!NODE.check(&record).holds);
    record.transcript.input_ids.clear();
    NODE.sign(&mut record);
    assert!(!NODE.check(&record).holds);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_changed_byte_is_found(at in any::<prop::sample::Index>(), change in 1u8..) {
        let mut bytes = RECORD.to_canonical_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(record) = EmbeddingRecord::from_canonical_bytes(&bytes) {
            let said = EmbeddingRecord { generation: None, ..record.clone() } == *RECORD;
            prop_assert_eq!(NODE.check(&record).holds, said, "byte {}", at);
        }
    }
}
