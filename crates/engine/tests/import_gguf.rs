//! GGUF: the same weights give the same root as in every other format, whatever block format they come in the loss is what its
//! precision allows, and files that lie or say more than the engine executes are refused by name.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use assay_core::id::ModelRoot;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::import::{ImportError, ImportOptions, import, tokenizer_json};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::LOGIT_FRAC;
use assay_engine::replay::Execution as _;
use assay_engine::text::Tokenizer;
use tempfile::TempDir;

#[path = "checkpoint/gguf.rs"]
mod gguf;
#[path = "checkpoint/small.rs"]
mod small;

use gguf::{Entry, Metadata, Value};

fn options() -> ImportOptions {
    ImportOptions { name: Some("test".into()), ..Default::default() }
}

fn import_to(source: &Path, out: &Path) -> ModelRoot {
    let report = import(source, &options(), out, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    let artifact = Artifact::open(out).unwrap();
    assert_eq!(artifact.root(), report.root);
    artifact.check_root(&|_| {}).unwrap();
    report.root
}

/// The error of a file that must be refused and leave nothing.
fn refused(bytes: &[u8]) -> ImportError {
    let d = TempDir::new().unwrap();
    let source = small::write(d.path(), "x.gguf", bytes);
    let out = TempDir::new().unwrap();
    let error = import(&source, &options(), &out.path().join("x.assay"), &mut |_| {}).unwrap_err();
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{error}");
    error
}

/// The error of the small model with other metadata.
fn refused_with(key: &str, value: Value) -> ImportError {
    let mut metadata: Metadata = gguf::metadata().into_iter().filter(|(name, _)| name != key).collect();
    metadata.push((key.to_owned(), value));
    refused(&gguf::file(&metadata, &gguf::tensors()))
}

/// The error of the small model with one tensor changed.
fn refused_tensor(name: &str, change: impl FnOnce(&mut Entry)) -> ImportError {
    let mut tensors = gguf::tensors();
    change(tensors.iter_mut().find(|t| t.name == name).unwrap());
    refused(&gguf::file(&gguf::metadata(), &tensors))
}

#[test]
fn a_gguf_file_is_the_same_model_as_its_checkpoint() {
    let d = TempDir::new().unwrap();
    small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    let v0 = import_to(&small::write(d.path(), "v0.bin", &small::llama2c_v0()), &d.path().join("0.assay"));
    let whole = small::write(d.path(), "whole.gguf", &gguf::model());
    assert_eq!(import_to(&whole, &d.path().join("1.assay")), v0);
    // Version 2 differs in nothing but its number.
    let mut second = gguf::model();
    second[4] = 2;
    assert_eq!(import_to(&small::write(d.path(), "v2.gguf", &second), &d.path().join("2.assay")), v0);
    let digests = Artifact::open(&d.path().join("1.assay")).unwrap().provenance().sources.clone();
    assert_eq!(digests.len(), 1);
}

#[test]
fn shards_are_one_model_and_must_all_be_there() {
    let d = TempDir::new().unwrap();
    let root =
        import_to(&small::write(d.path(), "whole.gguf", &gguf::model()), &d.path().join("whole.assay"));
    let tensors = gguf::tensors();
    let number = |key: &str, v: u32| (key.to_owned(), gguf::u32(v));
    let mut first = gguf::metadata();
    first.extend([number("split.no", 0), number("split.count", 2), number("split.tensors.count", 21)]);
    let second = [number("split.no", 1), number("split.count", 2), number("split.tensors.count", 21)];
    assert_eq!(tensors.len(), 21);
    let source = small::write(d.path(), "m-00001-of-00002.gguf", &gguf::file(&first, &tensors[..8]));
    let refuse = |source: &Path| {
        import(source, &options(), &d.path().join("no.assay"), &mut |_| {}).unwrap_err().code()
    };
    assert_eq!(refuse(&source), "import_io", "the second file is missing");
    let other = small::write(d.path(), "m-00002-of-00002.gguf", &gguf::file(&second, &tensors[8..]));
    assert_eq!(import_to(&source, &d.path().join("x.assay")), root);
    assert_eq!(Artifact::open(&d.path().join("x.assay")).unwrap().provenance().sources.len(), 2);
    assert_eq!(refuse(&other), "import_unsupported", "the second file is not the first");
    small::write(d.path(), "m-00002-of-00002.gguf", &gguf::file(&second, &tensors[7..]));
    assert_eq!(refuse(&source), "import_malformed", "a tensor is in two files");
    small::write(d.path(), "m-00002-of-00002.gguf", &gguf::file(&second, &tensors[9..]));
    assert_eq!(refuse(&source), "import_malformed", "a tensor is missing");
    small::write(d.path(), "m-00002-of-00002.gguf", &gguf::file(&[], &tensors[8..]));
    assert_eq!(refuse(&source), "import_malformed", "the second file does not say that it is one");
    let renamed = small::write(d.path(), "renamed.gguf", &gguf::file(&first, &tensors[..8]));
    assert_eq!(refuse(&renamed), "import_malformed", "the others cannot be found");
}

#[test]
fn what_the_engine_does_not_execute_is_named() {
    for (key, value, named) in [
        ("general.architecture", gguf::text("phi3"), "phi3"),
        ("general.architecture", gguf::text("mamba"), "mamba"),
        ("llama.rope.scaling.type", gguf::text("yarn"), "rope.scaling.type"),
        ("llama.rope.dimension_count", gguf::u32(4), "rope.dimension_count"),
        ("llama.attention.value_length", gguf::u32(4), "value_length"),
        ("llama.attn_logit_softcapping", gguf::f32(50.0), "attn_logit_softcapping"),
        ("llama.final_logit_softcapping", gguf::f32(30.0), "final_logit_softcapping"),
        ("llama.expert_count", gguf::u32(8), "expert_count"),
        ("llama.attention.causal", gguf::truth(false), "causal"),
        ("llama.attention.head_count_kv", gguf::array(4, 2, &[1, 0, 0, 0, 1, 0, 0, 0]), "head_count_kv"),
        ("tokenizer.ggml.model", gguf::text("rwkv"), "rwkv"),
        ("llama.block_count", gguf::u32(100_000), "number of layers"),
        ("llama.context_length", gguf::u32(1 << 30), "context"),
    ] {
        let error = refused_with(key, value);
        assert_eq!(error.code(), "import_unsupported", "{key}: {error}");
        assert!(error.to_string().contains(named), "{key}: {error}");
    }
    for name in [
        "rope_freqs.weight",
        "blk.0.attn_q.bias",
        "blk.0.attn_q_norm.weight",
        "blk.1.ffn_gate_inp.weight",
        "x",
    ] {
        let mut tensors = gguf::tensors();
        let extra = Entry { name: name.into(), dimensions: vec![4], kind: 0, bytes: vec![0; 16] };
        tensors.push(extra);
        let error = refused(&gguf::file(&gguf::metadata(), &tensors));
        assert_eq!(error.code(), "import_unsupported", "{name}: {error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    let error = refused_tensor("blk.0.ffn_up.weight", |t| t.kind = 10);
    assert_eq!(error.code(), "import_unsupported");
    assert!(error.to_string().contains("Q2_K") && error.to_string().contains("Q4_K"), "{error}");
    let mut big_endian = gguf::model();
    big_endian[4..8].copy_from_slice(&[0, 0, 0, 3]);
    assert!(refused(&big_endian).to_string().contains("big-endian"));
    let mut first = gguf::model();
    first[4] = 1;
    assert_eq!(refused(&first).code(), "import_unsupported");
}

#[test]
fn files_that_lie_are_refused() {
    let whole = gguf::model();
    for cut in [0, 3, 8, 23, 24, 40, 200, 2000, whole.len() / 2, whole.len() - ALIGNED_TAIL] {
        let error = refused(&whole[..cut]);
        assert_eq!(error.code(), "import_malformed", "{cut}: {error}");
    }
    for (at, what) in [(8, "tensors"), (16, "entries")] {
        for count in [u64::MAX, 1 << 63, 1 << 32, 100_000] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let error = refused(&bytes);
            assert_eq!(error.code(), "import_malformed", "{what} {count}: {error}");
        }
    }
    let nested = (0..100_000).fold(Vec::new(), |mut all: Vec<u8>, _| {
        all.extend(9u32.to_le_bytes());
        all.extend(1u64.to_le_bytes());
        all
    });
    for (key, value) in [
        ("x", Value(99, vec![0; 64])),
        ("x", Value(9, nested)),
        ("x", gguf::array(8, 1 << 60, &[])),
        ("x", gguf::array(4, 1 << 62, &[0; 64])),
        ("x", gguf::array(77, 1, &[0; 64])),
        ("x", Value(8, (1u64 << 60).to_le_bytes().to_vec())),
        ("x", Value(7, vec![2])),
        ("general.architecture", Value(8, [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat())),
        ("general.alignment", gguf::u32(0)),
        ("general.alignment", gguf::u32(24)),
        ("general.alignment", gguf::u32(1 << 30)),
        ("general.architecture", gguf::u32(1)),
        ("llama.embedding_length", gguf::text("24")),
        ("llama.embedding_length", gguf::u32(0)),
        ("llama.attention.layer_norm_rms_epsilon", gguf::f32(f32::NAN)),
        ("llama.rope.freq_base", gguf::f32(-1.0)),
        ("tokenizer.ggml.tokens", gguf::f32s(&[0.0; 264])),
        ("tokenizer.ggml.tokens", gguf::texts(&["a"; 264])),
        ("tokenizer.ggml.scores", gguf::f32s(&[0.0; 263])),
        ("tokenizer.ggml.scores", gguf::f32s(&[f32::NAN; 264])),
        ("tokenizer.ggml.token_type", gguf::i32s(&[7; 264])),
        ("tokenizer.ggml.unknown_token_id", gguf::u32(264)),
        ("tokenizer.chat_template", gguf::truth(true)),
    ] {
        let error = refused_with(key, value);
        assert_eq!(error.code(), "import_malformed", "{key}: {error}");
    }
    let twice = |n: usize| [&gguf::metadata()[..], &gguf::metadata()[n..=n]].concat();
    assert_eq!(refused(&gguf::file(&twice(1), &gguf::tensors())).code(), "import_malformed");
    let missing: Metadata = gguf::metadata().into_iter().filter(|(n, _)| n != "llama.block_count").collect();
    assert_eq!(refused(&gguf::file(&missing, &gguf::tensors())).code(), "import_malformed");
}

/// More than the zeros after the last tensor.
const ALIGNED_TAIL: usize = 64;

#[test]
fn tensors_that_lie_are_refused() {
    let name = "blk.0.ffn_up.weight";
    for (what, code, change) in [
        ("rows", "import_tensor", (|t| t.dimensions[1] = 19) as fn(&mut Entry)),
        ("no dimensions", "import_malformed", |t| t.dimensions.clear()),
        ("five dimensions", "import_malformed", |t| t.dimensions = vec![1; 5]),
        ("nothing", "import_malformed", |t| t.dimensions[0] = 0),
        ("overflow", "import_malformed", |t| t.dimensions = vec![1 << 40, 1 << 40]),
        ("larger than the file", "import_malformed", |t| t.dimensions = vec![24, 1 << 40]),
        ("overlap", "import_malformed", |t| t.dimensions[1] = 21),
        ("no whole blocks", "import_malformed", |t| t.kind = 8),
        ("twice", "import_malformed", |t| t.name = "blk.1.ffn_up.weight".into()),
        ("no name", "import_malformed", |t| t.name.clear()),
        ("gone", "import_unsupported", |t| t.name = "blk.0.ffn_upp.weight".into()),
        ("number", "import_unsupported", |t| t.kind = 77),
    ] {
        let error = refused_tensor(name, change);
        assert_eq!(error.code(), code, "{what}: {error}");
    }
    let mut tensors = gguf::tensors();
    tensors.retain(|t| t.name != name);
    assert_eq!(refused(&gguf::file(&gguf::metadata(), &tensors)).code(), "import_tensor");
    let error = refused_tensor(name, |t| t.bytes[37 * 4..38 * 4].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert_eq!(error.code(), "import_not_finite");
    assert!(error.to_string().contains(name) && error.to_string().contains("index 37"), "{error}");
}

#[test]
fn a_vocabulary_alone_is_a_tokenizer() {
    let d = TempDir::new().unwrap();
    let alone = small::write(d.path(), "vocabulary.gguf", &gguf::file(&gguf::vocabulary(), &[]));
    let bin = small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    assert_eq!(tokenizer_json(&alone).unwrap(), tokenizer_json(&bin).unwrap());
    let none = small::write(d.path(), "none.gguf", &gguf::file(&[], &[]));
    assert_eq!(tokenizer_json(&none).unwrap_err().code(), "import_malformed");
    let without: Metadata = gguf::metadata().into_iter().take(10).collect();
    let error = refused(&gguf::file(&without, &gguf::tensors()));
    assert_eq!(error.code(), "import_tokenizer");
    assert!(error.to_string().contains("--tokenizer"), "{error}");
}

#[test]
fn a_given_tokenizer_replaces_one_that_is_not_known() {
    let d = TempDir::new().unwrap();
    let tokenizer = small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    let given = ImportOptions { tokenizer: Some(tokenizer), ..options() };
    let out = d.path().join("x.assay");
    let root = |bytes: &[u8]| {
        let source = small::write(d.path(), "x.gguf", bytes);
        import(&source, &given, &out, &mut |_| {}).unwrap_or_else(|e| panic!("{e}")).root
    };
    let own = root(&gguf::model());
    for (key, value) in [("tokenizer.ggml.model", "rwkv"), ("tokenizer.ggml.pre", "my-own")] {
        let mut metadata = gguf::metadata();
        metadata.retain(|(name, _)| name != key);
        metadata.push((key.into(), gguf::text(value)));
        assert_eq!(root(&gguf::file(&metadata, &gguf::tensors())), own);
    }
}

/// Nats per token as `assay bench loss` measures them: windows as long as the model's, each beginning with BOS.
fn loss(artifact: &Path, text: &str) -> f64 {
    let artifact = Arc::new(Artifact::open(artifact).unwrap());
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let ids = tokenizer.encode_text(text).unwrap();
    let pool = Arc::new(Pool::new(2));
    let mut executor = Executor::new(artifact.shared(), Kernel::from_environment().unwrap(), pool);
    let context = artifact.program().program().context as usize;
    let (mut sum, mut count) = (0f64, 0usize);
    for run in ids[1..].chunks(context - 1) {
        let window: Vec<u32> = ids[..1].iter().chain(run).copied().collect();
        executor.replay(&window, 0, &mut |row| {
            if let (Some(logits), Some(next)) = (row.logits, window.get(row.position + 1)) {
                let unit = f64::from(1u32 << LOGIT_FRAC);
                let top = f64::from(logits.iter().copied().max().unwrap());
                let total: f64 = logits.iter().map(|l| ((f64::from(*l) - top) / unit).exp()).sum();
                sum += total.ln() - (f64::from(logits[*next as usize]) - top) / unit;
                count += 1;
            }
        });
    }
    sum / count as f64
}

#[test]
fn stories260k_is_one_model_in_four_formats_and_loses_what_its_precision_allows() {
    let Some(data) = small::test_data("stories260K as GGUF") else { return };
    let source = data.join("llm/stories260K");
    let d = TempDir::new().unwrap();
    let root = |name: &str| import_to(&source.join(name), &d.path().join(format!("{name}.assay")));
    let first = root("stories260K.bin");
    assert_eq!(root("stories260K_v1.bin"), first);
    assert_eq!(root("stories260K-f32.gguf"), first);
    // A part of the sample, or all of it for the figures of the documentation.
    let text = std::fs::read_to_string(data.join("text/tinystories_sample.txt")).unwrap();
    let part = text.char_indices().map(|(at, _)| at).nth(40_000).unwrap_or(text.len());
    let text = if std::env::var_os("ASSAY_WHOLE_LOSS").is_some() { &text } else { &text[..part] };
    let f32 = loss(&d.path().join("stories260K.bin.assay"), text);
    eprintln!("f32: {f32:.5} nats per token");
    for (name, most) in [
        ("stories260K-f16.gguf", 0.003),
        ("stories260K-q8_0.gguf", 0.005),
        ("stories260K-q8.bin", 0.005),
        ("stories260K-q4_0.gguf", 0.15),
    ] {
        assert_ne!(root(name), first);
        let got = loss(&d.path().join(format!("{name}.assay")), text);
        eprintln!("{name}: {got:.5} nats per token, {:+.5}", got - f32);
        assert!((got - f32).abs() < most, "{name}: {got} beside {f32}");
    }
}
