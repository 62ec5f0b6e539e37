//! Every family computes what `transformers` computes with the same checkpoint, as far as int8 numbers allow; and the
//! comparison is close enough to notice when any one feature of a family is left out.
//!
//! Checkpoints are small and random (`data/recipe/families.py`), ids drawn from the reference's own distribution.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use assay_engine::artifact::Artifact;
use assay_engine::forward::Executor;
use assay_engine::import::{ImportError, ImportOptions, ImportReport, Rotation, import};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::LOGIT_FRAC;
use assay_engine::replay::{ByReference, Execution};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "checkpoint/family.rs"]
mod family;
#[path = "checkpoint/small.rs"]
mod small;

use family::Family;

/// The largest logit must be the reference's where the reference has the second one further below it than this many standard
/// deviations of the position's logits. Rounding to int8 moves a logit of these models by 0.02 to 0.04 of them on average
/// (0.10 at the worst position), a difference of two by up to 0.06: this is twice as much and more.
const CLEAR: f64 = 0.125;
/// Least share of clear positions: fewer, and the comparison says little.
const CLEAR_SHARE: f64 = 0.6;
/// Most that the loss may differ, relative to the reference's.
const LOSS_WITHIN: f64 = 0.01;
/// Least that the loss differs when a feature is left out.
const LEFT_OUT: f64 = 0.03;
/// Least cosine of an encoder's vector and the reference's.
const COSINE: f64 = 0.999;

fn imported(family: &Family, config: &Value) -> Arc<Artifact> {
    let d = TempDir::new().unwrap();
    let folder = d.path().join("model");
    family.write(&folder, config);
    import_folder(&folder)
}

/// Imports a folder that has no tokenizer of its own.
fn import_folder(folder: &Path) -> Arc<Artifact> {
    let d = TempDir::new().unwrap();
    let out = d.path().join("x.assay");
    let report = import_rotated(folder, Rotation::None, &out).unwrap_or_else(|e| panic!("{e}"));
    opened(&out, &report)
}

fn import_rotated(folder: &Path, rotation: Rotation, out: &Path) -> Result<ImportReport, ImportError> {
    let d = TempDir::new().unwrap();
    let tokenizer = small::write(d.path(), "tokenizer.json", &small::tokenizer_json());
    let options = ImportOptions { tokenizer: Some(tokenizer), rotation, ..Default::default() };
    import(folder, &options, out, &mut |_| {})
}

fn opened(file: &Path, report: &ImportReport) -> Arc<Artifact> {
    let artifact = Artifact::from_bytes("x", &std::fs::read(file).unwrap()).unwrap();
    assert_eq!(artifact.root(), report.root);
    Arc::new(artifact)
}

fn executor(artifact: &Arc<Artifact>) -> Executor {
    Executor::new(artifact.shared(), Kernel::from_environment().unwrap(), Arc::new(Pool::new(2)))
}

fn logits(execution: &mut dyn Execution, ids: &[u32]) -> Vec<Vec<i32>> {
    let mut all = Vec::new();
    execution.replay(ids, 0, &mut |row| all.push(row.logits.unwrap().to_vec()));
    all
}

/// Nats of an id under logits.
fn nats(logits: &[i32], id: u32) -> f64 {
    let unit = f64::from(1u32 << LOGIT_FRAC);
    let top = f64::from(logits.iter().copied().max().unwrap());
    let total: f64 = logits.iter().map(|l| ((f64::from(*l) - top) / unit).exp()).sum();
    total.ln() - (f64::from(logits[id as usize]) - top) / unit
}

/// Mean loss of every id but the first.
fn loss(logits: &[Vec<i32>], ids: &[u32]) -> f64 {
    let sum: f64 = logits.iter().zip(&ids[1..]).map(|(l, id)| nats(l, *id)).sum();
    sum / (ids.len() - 1) as f64
}

/// A recorded position: loss of the next id, the largest logit's id, and its margin in standard deviations.
fn positions(family: &Family) -> Vec<(f64, u32, f64)> {
    let one = |v: &Value| (v[0].as_f64().unwrap(), v[1].as_u64().unwrap() as u32, v[2].as_f64().unwrap());
    family.result("positions").as_array().unwrap().iter().map(one).collect()
}

fn reference_loss(family: &Family) -> f64 {
    let all = positions(family);
    all.iter().map(|p| p.0).sum::<f64>() / all.len() as f64
}

/// The decoder `name` computes what the reference does, by the executor and by the specification alike.
fn agrees(name: &str) {
    let family = Family::read(name);
    let ids = Family::ids(family.result("ids"));
    let artifact = imported(&family, &family.config());
    let got = logits(&mut executor(&artifact), &ids);
    let specified = logits(&mut ByReference(artifact.as_ref()), &ids);
    assert!(got == specified, "{name}: the executor differs from the specification");

    let expected = positions(&family);
    let clear: Vec<usize> = (0..expected.len()).filter(|p| expected[*p].2 > CLEAR).collect();
    let argmax = |p: usize| (0..got[p].len()).rev().max_by_key(|i| got[p][*i]).unwrap() as u32;
    let same = |p: &&usize| argmax(**p) == expected[**p].1;
    let (loss, wanted) = (loss(&got, &ids), reference_loss(&family));
    eprintln!(
        "{name}: loss {loss:.4}, reference {wanted:.4} ({:+.2} %); largest logit the same at {} of {} clear of {} positions",
        100.0 * (loss / wanted - 1.0),
        clear.iter().filter(same).count(),
        clear.len(),
        expected.len(),
    );
    assert!(clear.len() as f64 >= CLEAR_SHARE * expected.len() as f64, "{name}: {} clear", clear.len());
    for p in clear {
        assert_eq!(argmax(p), expected[p].1, "{name} at {p}, margin {}", expected[p].2);
    }
    assert!((loss / wanted - 1.0).abs() < LOSS_WITHIN, "{name}: loss {loss}, reference {wanted}");
}

#[test]
fn llama_with_the_scaled_angles_of_llama_3() {
    agrees("llama");
}

#[test]
fn mistral_with_a_window_in_several_files() {
    agrees("mistral");
}

#[test]
fn qwen2_with_biases() {
    agrees("qwen2");
}

#[test]
fn qwen3_with_a_window_in_its_last_layers() {
    agrees("qwen3_window");
}

#[test]
fn qwen3_with_head_norms_and_wide_heads() {
    agrees("qwen3");
}

#[test]
fn smollm2_with_nine_heads_and_a_tied_head() {
    agrees("smollm2");
}

#[test]
fn gemma() {
    agrees("gemma");
}

#[test]
fn gemma2_with_soft_caps_windows_and_post_norms() {
    agrees("gemma2");
}

#[test]
fn gemma3_with_two_kinds_of_layers() {
    agrees("gemma3");
}

#[test]
fn a_rotation_keeps_the_function_or_is_refused() {
    let d = TempDir::new().unwrap();
    let rotated = |name: &str| {
        let (folder, out) = (d.path().join(name), d.path().join(format!("{name}.assay")));
        let family = Family::read(name);
        family.write(&folder, &family.config());
        let done = import_rotated(&folder, Rotation::Hadamard, &out);
        assert_eq!(out.exists(), done.is_ok(), "{name}: a refused import leaves nothing");
        (family, done.map(|report| opened(&out, &report)))
    };
    for name in ["llama", "mistral", "qwen3", "qwen3_window", "smollm2", "gemma"] {
        let (family, artifact) = rotated(name);
        let (artifact, ids) = (artifact.unwrap(), Family::ids(family.result("ids")));
        assert!(artifact.root() != imported(&family, &family.config()).root(), "{name} is not rotated");
        let (loss, wanted) = (loss(&logits(&mut executor(&artifact), &ids), &ids), reference_loss(&family));
        eprintln!("{name}, rotated: {:+.2} %", 100.0 * (loss / wanted - 1.0));
        assert!((loss / wanted - 1.0).abs() < LOSS_WITHIN, "{name}: loss {loss}, reference {wanted}");
    }
    for (name, reason) in [("qwen2", "biases"), ("gemma2", "normalise"), ("gemma3", "normalise")] {
        let (_, refused) = rotated(name);
        let error = refused.expect_err(name);
        assert_eq!(error.code(), "import_unsupported");
        assert!(error.to_string().contains("rotation = Hadamard"), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_feature_left_out_is_noticed() {
    let architecture = |name: &str| json!({"architectures": [name]});
    let all = |kind: &str, layers: usize| json!({"layer_types": vec![kind; layers]});
    let base = |theta: f64| json!({"rope_theta": theta, "rope_type": "default"});
    let slowed = |theta: f64| json!({"rope_theta": theta, "rope_type": "linear", "factor": 8.0});
    let angles = |all: Value| json!({"rope_parameters": all});
    let two = |full, local| angles(json!({"full_attention": full, "sliding_attention": local}));
    let cases = [
        ("llama", "scaling of angles", angles(base(1e4))),
        ("mistral", "window", json!({"sliding_window": null})),
        ("mistral", "last position of the window", json!({"sliding_window": 11})),
        ("mistral", "end of the window", json!({"sliding_window": 13})),
        ("qwen2", "biases", architecture("LlamaForCausalLM")),
        ("qwen3_window", "window", json!({"use_sliding_window": false})),
        ("qwen3_window", "layers that see everything", all("sliding_attention", 3)),
        ("qwen3", "head norms", architecture("LlamaForCausalLM")),
        ("qwen3", "base of angles", angles(base(1e4))),
        ("gemma", "gains plus 1", architecture("LlamaForCausalLM")),
        ("gemma2", "bound of scores", json!({"attn_logit_softcapping": null})),
        ("gemma2", "bound of logits", json!({"final_logit_softcapping": null})),
        ("gemma2", "divisor of scores", json!({"query_pre_attn_scalar": 256})),
        ("gemma2", "window", all("full_attention", 3)),
        ("gemma2", "layers that see everything", all("sliding_attention", 3)),
        ("gemma2", "norms after the layers", architecture("GemmaForCausalLM")),
        ("gemma3", "window", all("full_attention", 4)),
        ("gemma3", "layers that see everything", all("sliding_attention", 4)),
        ("gemma3", "head norms", architecture("Gemma2ForCausalLM")),
        ("gemma3", "base of layers that see everything", two(slowed(100.0), base(100.0))),
        ("gemma3", "scaling of layers that see everything", two(base(1e4), base(100.0))),
        ("gemma3", "base of layers with a window", two(slowed(1e4), base(1e4))),
    ];
    for (name, feature, change) in cases {
        let family = Family::read(name);
        let ids = Family::ids(family.result("ids"));
        let mut config = family.config();
        for (field, value) in change.as_object().unwrap() {
            config[field] = value.clone();
        }
        let artifact = imported(&family, &config);
        let (loss, wanted) = (loss(&logits(&mut executor(&artifact), &ids), &ids), reference_loss(&family));
        eprintln!("{name} without its {feature}: {:+.1} %", 100.0 * (loss / wanted - 1.0));
        assert!((loss / wanted - 1.0).abs() > LEFT_OUT, "{name}: {feature}: {loss} beside {wanted}");
    }
}

/// The configuration of a family with fields replaced, or removed by null.
fn changed(family: &Family, change: &Value) -> Value {
    let mut config = family.config();
    let fields = config.as_object_mut().unwrap();
    for (field, value) in change.as_object().unwrap() {
        if value.is_null() {
            fields.remove(field);
        } else {
            fields.insert(field.clone(), value.clone());
        }
    }
    config
}

#[test]
fn older_files_say_the_same_in_other_fields() {
    let llama = json!({"rope_parameters": null, "rope_theta": 10_000.0, "rope_scaling": {"rope_type": "llama3",
        "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
    let gemma3 = json!({"rope_parameters": null, "rope_theta": 10_000.0, "rope_local_base_freq": 100.0,
        "rope_scaling": {"type": "linear", "factor": 8.0}, "layer_types": null, "sliding_window_pattern": 2});
    let defaults = json!({"tie_word_embeddings": null, "rope_parameters": null, "layer_types": null});
    for (name, change) in [
        ("llama", llama),
        ("mistral", json!({"rope_parameters": null, "rope_theta": 10_000.0, "head_dim": null})),
        ("qwen3_window", json!({"layer_types": null})),
        ("gemma", json!({"tie_word_embeddings": null, "hidden_act": "gelu"})),
        ("gemma", json!({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"})),
        ("gemma2", defaults),
        ("gemma3", gemma3),
        ("bert", json!({"hidden_act": null, "type_vocab_size": null, "position_embedding_type": "absolute"})),
    ] {
        let family = Family::read(name);
        let (new, old) = (family.config(), changed(&family, &change));
        assert_eq!(imported(&family, &old).root(), imported(&family, &new).root(), "{name}: {change}");
    }
}

#[test]
fn sixteen_bits_that_hold_the_weights_are_the_same_model() {
    let family = Family::read("qwen2");
    let d = TempDir::new().unwrap();
    small::write(d.path(), "config.json", family.config().to_string().as_bytes());
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for t in family.tensors() {
        let from = data.len();
        for v in &t.numbers {
            assert_eq!(v.to_bits() & 0xffff, 0, "{}: {v} is no bfloat16", t.name);
            data.extend(&v.to_le_bytes()[2..]);
        }
        let place = json!({"dtype": "BF16", "shape": t.shape, "data_offsets": [from, data.len()]});
        header.insert(t.name, place);
    }
    let file = small::with_header(&Value::Object(header).to_string(), &data);
    small::write(d.path(), "model.safetensors", &file);
    assert_eq!(import_folder(d.path()).root(), imported(&family, &family.config()).root());
}

fn cosine(got: &[i32], expected: &Value) -> f64 {
    let (mut dot, mut a, mut b) = (0f64, 0f64, 0f64);
    for (x, y) in got.iter().zip(expected.as_array().unwrap()) {
        let (x, y) = (f64::from(*x), y.as_f64().unwrap());
        (dot, a, b) = (dot + x * y, a + x * x, b + y * y);
    }
    dot / (a * b).sqrt()
}

/// Smallest cosine over the recorded texts, having checked that executor and specification agree.
fn worst_cosine(family: &Family, artifact: &Arc<Artifact>, pooling: &str) -> f64 {
    let texts: Vec<Vec<u32>> = family.result("texts").as_array().unwrap().iter().map(Family::ids).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let got = Execution::encode(&mut executor(artifact), &texts);
    assert!(
        got == ByReference(artifact.as_ref()).encode(&texts),
        "{pooling}: differs from the specification"
    );
    let expected = family.result("vectors")[pooling].as_array().unwrap();
    assert_eq!(got.len(), expected.len());
    let all: Vec<f64> = got.iter().zip(expected).map(|(g, e)| cosine(g, e)).collect();
    eprintln!("bert, {pooling}: cosines {all:.5?}");
    all.into_iter().fold(1.0, f64::min)
}

#[test]
fn bert_with_both_poolings() {
    let family = Family::read("bert");
    let d = TempDir::new().unwrap();
    for (pooling, field, other) in
        [("mean", "pooling_mode_mean_tokens", "first"), ("first", "pooling_mode_cls_token", "mean")]
    {
        let folder = d.path().join(pooling);
        family.write(&folder, &family.config());
        std::fs::create_dir(folder.join("1_Pooling")).unwrap();
        small::write(&folder.join("1_Pooling"), "config.json", json!({field: true}).to_string().as_bytes());
        let artifact = import_folder(&folder);
        assert!(worst_cosine(&family, &artifact, pooling) >= COSINE, "{pooling}");
        assert!(worst_cosine(&family, &artifact, other) < COSINE - 0.01, "{other} would not be noticed");
    }
}

#[test]
fn bert_below_a_head_is_the_same_encoder() {
    let family = Family::read("bert");
    let d = TempDir::new().unwrap();
    let mut config = family.config();
    config["architectures"] = json!(["BertForMaskedLM"]);
    small::write(d.path(), "config.json", config.to_string().as_bytes());
    let mut tensors = family.tensors();
    tensors.iter_mut().for_each(|t| t.name = format!("bert.{}", t.name));
    small::write(d.path(), "model.safetensors", &small::safetensors(&tensors));
    assert_eq!(import_folder(d.path()).root(), imported(&family, &family.config()).root());
}
