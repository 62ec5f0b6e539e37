//! A small Llama checkpoint with fixed pseudo-random weights, written in every format that can be imported. Heads rotate
//! pairs half a head apart in safetensors and side by side in llama2.c, as real files do.
#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};

pub const DIM: usize = 24;
pub const LAYERS: usize = 2;
pub const HEADS: usize = 3;
pub const KV_HEADS: usize = 1;
pub const HEAD: usize = 8;
pub const HIDDEN: usize = 20;
pub const VOCABULARY: usize = 264;
pub const CONTEXT: usize = 32;

pub const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":24,"intermediate_size":20,
"num_hidden_layers":2,"num_attention_heads":3,"num_key_value_heads":1,"head_dim":8,"vocab_size":264,
"max_position_embeddings":32,"rms_norm_eps":1e-05,"rope_theta":10000.0,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2}"#;

/// A generator for tests: xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// A tensor by its name in safetensors.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub numbers: Vec<f32>,
}

pub fn tensors() -> Vec<Tensor> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut tensor = |name: String, shape: &[usize]| {
        let numbers =
            (0..shape.iter().product()).map(|_| (random.next() % 2001) as f32 / 1000.0 - 1.0).collect();
        Tensor { name, shape: shape.to_vec(), numbers }
    };
    let mut all = vec![tensor("model.embed_tokens.weight".into(), &[VOCABULARY, DIM])];
    for l in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| all.push(tensor(format!("model.layers.{l}.{name}.weight"), shape));
        add("input_layernorm", &[DIM]);
        add("self_attn.q_proj", &[HEADS * HEAD, DIM]);
        add("self_attn.k_proj", &[KV_HEADS * HEAD, DIM]);
        add("self_attn.v_proj", &[KV_HEADS * HEAD, DIM]);
        add("self_attn.o_proj", &[DIM, HEADS * HEAD]);
        add("post_attention_layernorm", &[DIM]);
        add("mlp.gate_proj", &[HIDDEN, DIM]);
        add("mlp.up_proj", &[HIDDEN, DIM]);
        add("mlp.down_proj", &[DIM, HIDDEN]);
    }
    all.push(tensor("model.norm.weight".into(), &[DIM]));
    all.push(tensor("lm_head.weight".into(), &[VOCABULARY, DIM]));
    all
}

/// A safetensors file of f32.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for t in tensors {
        let from = data.len();
        data.extend(t.numbers.iter().flat_map(|v| v.to_le_bytes()));
        let info = serde_json::json!({"dtype": "F32", "shape": t.shape, "data_offsets": [from, data.len()]});
        header.insert(t.name.clone(), info);
    }
    with_header(&serde_json::Value::Object(header).to_string(), &data)
}

pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn numbers(layer: Option<usize>, name: &str) -> Vec<u8> {
    let name = layer.map_or(format!("model.{name}.weight"), |l| format!("model.layers.{l}.{name}.weight"));
    let name = if name == "model.lm_head.weight" { "lm_head.weight".into() } else { name };
    let t = tensors().into_iter().find(|t| t.name == name).unwrap();
    let rotary = name.contains("q_proj") || name.contains("k_proj");
    let rows = t.numbers.chunks_exact(*t.shape.last().unwrap());
    let rows: Vec<&[f32]> = rows.collect();
    let order = |r: usize| match rotary {
        // Row 2 i of a head is i, row 2 i + 1 is i + half.
        true => r / HEAD * HEAD + (r % HEAD) / 2 + (r % 2) * HEAD / 2,
        false => r,
    };
    (0..rows.len()).flat_map(|r| rows[order(r)]).flat_map(|v| v.to_le_bytes()).collect()
}

fn integers(numbers: &[i32]) -> Vec<u8> {
    numbers.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn header(vocabulary: i32) -> Vec<u8> {
    let n = |v: usize| v as i32;
    integers(&[n(DIM), n(HIDDEN), n(LAYERS), n(HEADS), n(KV_HEADS), vocabulary, n(CONTEXT)])
}

fn layers(bytes: &mut Vec<u8>, names: &[&str]) {
    for name in names {
        (0..LAYERS).for_each(|l| bytes.extend(numbers(Some(l), name)));
    }
}

/// llama2.c's legacy format with a classifier of its own.
pub fn llama2c_v0() -> Vec<u8> {
    let mut bytes = header(-(VOCABULARY as i32));
    bytes.extend(numbers(None, "embed_tokens"));
    layers(&mut bytes, &["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
    layers(&mut bytes, &["self_attn.o_proj", "post_attention_layernorm"]);
    layers(&mut bytes, &["mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]);
    bytes.extend(numbers(None, "norm"));
    bytes.extend(vec![0x55; 4 * CONTEXT * HEAD]);
    bytes.extend(numbers(None, "lm_head"));
    bytes
}

/// llama2.c's version 1.
pub fn llama2c_v1() -> Vec<u8> {
    let mut bytes = integers(&[0x616b_3432, 1]);
    bytes.extend(header(VOCABULARY as i32));
    bytes.resize(256, 0);
    layers(&mut bytes, &["input_layernorm", "post_attention_layernorm"]);
    bytes.extend(numbers(None, "norm"));
    bytes.extend(numbers(None, "embed_tokens"));
    layers(&mut bytes, &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]);
    layers(&mut bytes, &["mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]);
    bytes.extend(numbers(None, "lm_head"));
    bytes
}

/// llama2.c's tokenizer: specials, bytes and five pieces.
pub fn tokenizer_bin() -> Vec<u8> {
    let mut pieces = vec![("<unk>".to_owned(), 0.0f32), ("\n<s>\n".into(), 0.0), ("\n</s>\n".into(), 0.0)];
    pieces.extend((0..256).map(|b| (format!("<0x{b:02X}>"), 0.0)));
    for (piece, score) in [(" ", -9.0), ("a", -9.0), ("b", -9.0), ("ab", -1.0), (" ab", -2.0)] {
        pieces.push((piece.into(), score));
    }
    let mut bytes = 7u32.to_le_bytes().to_vec();
    for (piece, score) in pieces {
        bytes.extend(score.to_le_bytes());
        bytes.extend((piece.len() as u32).to_le_bytes());
        bytes.extend(piece.as_bytes());
    }
    bytes
}

/// A byte-level tokenizer of 256 bytes, some merges and ChatML's special tokens (256 and 257).
pub fn tokenizer_json() -> Vec<u8> {
    let mut vocab = serde_json::Map::new();
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut hidden = 0;
    for b in 0..=255u8 {
        let c = if visible(b) {
            char::from(b)
        } else {
            hidden += 1;
            char::from_u32(255 + hidden).unwrap()
        };
        vocab.insert(c.to_string(), u32::from(b).into());
    }
    for (i, piece) in ["he", "ll", "hell"].iter().enumerate() {
        vocab.insert((*piece).into(), (258 + i).into());
    }
    vocab.insert("<|im_start|>".into(), 256.into());
    vocab.insert("<|im_end|>".into(), 257.into());
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]},
    })
    .to_string()
    .into_bytes()
}

/// Writes a Hugging Face folder without a tokenizer.
pub fn write_folder(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    std::fs::write(folder.join("model.safetensors"), safetensors(&tensors())).unwrap();
}

/// Writes a file and returns its path.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Folder of test data, or a loud word that the test is skipped.
pub fn test_data(test: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("ASSAY_TEST_DATA").map_or(here, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED {test}: no test data at {}; set ASSAY_TEST_DATA", folder.display());
    None
}
