//! Every decoder family as a GGUF file, written as llama.cpp's converter writes it, is the same model as its checkpoint.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use assay_core::id::ModelRoot;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::import::{ImportOptions, import};
use serde_json::Value as Json;
use tempfile::TempDir;

#[path = "checkpoint/family.rs"]
mod family;
#[path = "checkpoint/gguf.rs"]
mod gguf;
#[path = "checkpoint/small.rs"]
mod small;

use family::Family;
use gguf::{Entry, Metadata, Value};
use small::Tensor;

/// What the converter calls a family, and what it does to its tensors.
struct Converter<'a> {
    architecture: &'a str,
    config: &'a Json,
}

impl Converter<'_> {
    fn number(&self, field: &str) -> Option<u32> {
        self.config[field].as_u64().map(|v| v as u32)
    }

    fn head_dim(&self) -> u32 {
        let whole = self.number("hidden_size").unwrap() / self.number("num_attention_heads").unwrap();
        self.number("head_dim").unwrap_or(whole)
    }

    fn metadata(&self) -> Metadata {
        let mut all: Metadata = vec![("general.architecture".into(), gguf::text(self.architecture))];
        let mut add = |key: &str, value: Option<Value>| {
            all.extend(value.map(|v| (format!("{}.{key}", self.architecture), v)));
        };
        for (key, field) in [
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("block_count", "num_hidden_layers"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("attention.sliding_window", "sliding_window"),
        ] {
            add(key, self.number(field).map(gguf::u32));
        }
        for (key, field) in [
            ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            add(key, self.config[field].as_f64().map(|v| gguf::f32(v as f32)));
        }
        for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            add(key, Some(gguf::u32(self.head_dim())));
        }
        let angles = &self.config["rope_parameters"];
        let global = if angles["full_attention"].is_object() { &angles["full_attention"] } else { angles };
        let real = |v: &Json| v.as_f64().map(|v| gguf::f32(v as f32));
        add("rope.freq_base", real(&global["rope_theta"]));
        add("rope.freq_base_swa", real(&angles["sliding_attention"]["rope_theta"]));
        if global["rope_type"] == "linear" {
            add("rope.scaling.type", Some(gguf::text("linear")));
            add("rope.scaling.factor", real(&global["factor"]));
        }
        if self.architecture == "gemma3" {
            let types = self.config["layer_types"].as_array().unwrap();
            let every = types.iter().position(|t| t == "full_attention").unwrap() + 1;
            add("attention.sliding_window_pattern", Some(gguf::u32(every as u32)));
        }
        all.push(("tokenizer.ggml.bos_token_id".into(), gguf::u32(1)));
        all.push(("tokenizer.ggml.eos_token_id".into(), gguf::u32(2)));
        all
    }

    fn name(&self, tensor: &str) -> String {
        match tensor {
            "model.embed_tokens.weight" => return "token_embd.weight".into(),
            "model.norm.weight" => return "output_norm.weight".into(),
            "lm_head.weight" => return "output.weight".into(),
            _ => {}
        }
        let parts: Vec<&str> = tensor.split('.').collect();
        let post = ["gemma2", "gemma3"].contains(&self.architecture);
        let inner = match parts[parts.len() - 2] {
            "q_proj" => "attn_q",
            "k_proj" => "attn_k",
            "v_proj" => "attn_v",
            "o_proj" => "attn_output",
            "q_norm" => "attn_q_norm",
            "k_norm" => "attn_k_norm",
            "gate_proj" => "ffn_gate",
            "up_proj" => "ffn_up",
            "down_proj" => "ffn_down",
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" if post => "post_attention_norm",
            "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
            other => {
                assert_eq!(other, "post_feedforward_layernorm");
                "post_ffw_norm"
            }
        };
        format!("blk.{}.{inner}.{}", parts[2], parts[parts.len() - 1])
    }

    fn tensor(&self, t: &Tensor) -> Entry {
        let name = self.name(&t.name);
        let cols = *t.shape.last().unwrap();
        let head = self.head_dim() as usize;
        let pairs = self.architecture == "llama" && (name.contains("attn_q.") || name.contains("attn_k."));
        let order = |r: usize| if pairs { r / head * head + (r % head) / 2 + (r % 2) * head / 2 } else { r };
        let gain = self.architecture.starts_with("gemma") && name.ends_with("norm.weight");
        let bytes = (0..t.numbers.len() / cols)
            .flat_map(|r| &t.numbers[order(r) * cols..(order(r) + 1) * cols])
            .flat_map(|v| (if gain { v + 1.0 } else { *v }).to_le_bytes())
            .collect();
        Entry { name, dimensions: t.shape.iter().rev().map(|d| *d as u64).collect(), kind: 0, bytes }
    }

    /// The divisors that the converter makes of Llama 3's four numbers.
    fn divisors(&self) -> Option<Entry> {
        let p = &self.config["rope_parameters"];
        if p["rope_type"] != "llama3" {
            return None;
        }
        let real = |field: &str| p[field].as_f64().unwrap();
        let (factor, low, high) = (real("factor"), real("low_freq_factor"), real("high_freq_factor"));
        let (theta, context) = (real("rope_theta"), real("original_max_position_embeddings"));
        let pairs = self.head_dim() / 2;
        let divisor = |i: u32| {
            let length = 2.0 * std::f64::consts::PI * theta.powf(f64::from(i) / f64::from(pairs));
            if length < context / high {
                1.0
            } else if length > context / low {
                factor
            } else {
                let smooth = (context / length - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        let bytes = (0..pairs).flat_map(|i| (divisor(i) as f32).to_le_bytes()).collect();
        Some(Entry { name: "rope_freqs.weight".into(), dimensions: vec![u64::from(pairs)], kind: 0, bytes })
    }
}

/// The artifact of a source, by a tokenizer given for all.
fn imported(source: &Path) -> Arc<Artifact> {
    let d = TempDir::new().unwrap();
    let tokenizer = small::write(d.path(), "tokenizer.json", &small::tokenizer_json());
    let options =
        ImportOptions { name: Some("test".into()), tokenizer: Some(tokenizer), ..Default::default() };
    let out = d.path().join("x.assay");
    import(source, &options, &out, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    Arc::new(Artifact::from_bytes("x", &std::fs::read(&out).unwrap()).unwrap())
}

/// The checkpoint and the GGUF file of a family, both with `change` in their configuration.
fn both(name: &str, architecture: &str, change: impl FnOnce(&mut Json)) -> [Arc<Artifact>; 2] {
    let family = Family::read(name);
    let mut config = family.config();
    change(&mut config);
    let d = TempDir::new().unwrap();
    let folder = d.path().join("model");
    family.write(&folder, &config);
    let converter = Converter { architecture, config: &config };
    let mut tensors: Vec<Entry> = family.tensors().iter().map(|t| converter.tensor(t)).collect();
    tensors.extend(converter.divisors());
    let file = small::write(d.path(), "x.gguf", &gguf::file(&converter.metadata(), &tensors));
    [imported(&folder), imported(&file)]
}

fn roots(name: &str, architecture: &str, change: impl FnOnce(&mut Json)) -> [ModelRoot; 2] {
    both(name, architecture, change).map(|a| a.root())
}

#[test]
fn a_gguf_file_of_any_family_is_the_same_model() {
    for (name, architecture) in [
        ("mistral", "llama"),
        ("smollm2", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("gemma", "gemma"),
        ("gemma2", "gemma2"),
        ("gemma3", "gemma3"),
    ] {
        let [checkpoint, file] = roots(name, architecture, |config| {
            // The format does not say by what scores are divided: its readers take the size of a head.
            if ["gemma2", "gemma3"].contains(&name) {
                config["query_pre_attn_scalar"] = config["head_dim"].clone();
            }
        });
        assert_eq!(checkpoint, file, "{name}");
    }
}

/// The converter rounds each divisor to binary32, so a few numbers of the table may differ in their last bit.
#[test]
fn the_divisors_of_llama_3_give_the_same_angles() {
    let [checkpoint, file] = both("llama", "llama", |_| {});
    assert_eq!(checkpoint.program().program(), file.program().program());
    let tensors = &checkpoint.program().program().tensors;
    let table = tensors.iter().position(|t| t.name == "rotary").unwrap() as u16;
    let (a, b) = (checkpoint.rotary(table), file.rotary(table));
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 1));
    let differ = a.iter().zip(b).filter(|(a, b)| a != b).count();
    assert!(differ * 100 < a.len(), "{differ} of {} numbers differ", a.len());
}

#[test]
fn what_gemma_2_leaves_out_is_what_its_checkpoint_leaves_out() {
    let [checkpoint, file] = roots("gemma2", "gemma2", |config| {
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
        for field in ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "layer_types"] {
            config.as_object_mut().unwrap().remove(field);
        }
    });
    assert_eq!(checkpoint, file);
    let [said, _] = roots("gemma2", "gemma2", |config| {
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
        config["attn_logit_softcapping"] = 50.0.into();
        config["final_logit_softcapping"] = 30.0.into();
        config["sliding_window"] = 4096.into();
    });
    assert_eq!(said, checkpoint, "silence means the family's numbers");
}
