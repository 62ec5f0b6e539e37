//! The small checkpoint as GGUF files, and GGUF files with anything in them.
#![allow(dead_code, unreachable_pub)]

use super::small::{self, CONTEXT, DIM, HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS, Tensor};

pub const ALIGNMENT: usize = 32;

/// A metadata value as it is written: type and bytes.
#[derive(Clone)]
pub struct Value(pub u32, pub Vec<u8>);

pub fn u32(v: u32) -> Value {
    Value(4, v.to_le_bytes().to_vec())
}

pub fn f32(v: f32) -> Value {
    Value(6, v.to_le_bytes().to_vec())
}

pub fn truth(v: bool) -> Value {
    Value(7, vec![u8::from(v)])
}

pub fn text(v: &str) -> Value {
    Value(8, string(v))
}

pub fn texts(all: &[&str]) -> Value {
    let items: Vec<u8> = all.iter().flat_map(|v| string(v)).collect();
    array(8, all.len(), &items)
}

pub fn f32s(all: &[f32]) -> Value {
    array(6, all.len(), &all.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

pub fn i32s(all: &[i32]) -> Value {
    array(5, all.len(), &all.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

/// An array of any type, with a count of its own.
pub fn array(kind: u32, count: usize, items: &[u8]) -> Value {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((count as u64).to_le_bytes());
    bytes.extend(items);
    Value(9, bytes)
}

pub fn string(v: &str) -> Vec<u8> {
    let mut bytes = (v.len() as u64).to_le_bytes().to_vec();
    bytes.extend(v.as_bytes());
    bytes
}

/// A tensor as it is written: dimensions (columns first), type, bytes.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub dimensions: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

pub type Metadata = Vec<(String, Value)>;

/// A whole file, version 3.
pub fn file(metadata: &[(String, Value)], tensors: &[Entry]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (name, Value(kind, bytes)) in metadata {
        out.extend(string(name));
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    }
    let mut offset = 0;
    for t in tensors {
        out.extend(string(&t.name));
        out.extend((t.dimensions.len() as u32).to_le_bytes());
        t.dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(t.kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += t.bytes.len().next_multiple_of(ALIGNMENT);
    }
    for t in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(&t.bytes);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// The small model's metadata with the vocabulary of `small::tokenizer_bin`.
pub fn metadata() -> Metadata {
    let n = |v: usize| u32(v as u32);
    let mut all: Metadata = [
        ("general.architecture", text("llama")),
        ("llama.context_length", n(CONTEXT)),
        ("llama.embedding_length", n(DIM)),
        ("llama.block_count", n(LAYERS)),
        ("llama.feed_forward_length", n(HIDDEN)),
        ("llama.attention.head_count", n(HEADS)),
        ("llama.attention.head_count_kv", n(KV_HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", f32(1e-5)),
        ("llama.rope.freq_base", f32(10_000.0)),
        ("llama.rope.dimension_count", n(HEAD)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    all.extend(vocabulary());
    all
}

pub fn vocabulary() -> Metadata {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    let (mut scores, mut types) = (vec![0.0; 259], vec![2, 3, 3]);
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    types.extend([6; 256]);
    for (piece, score) in [("▁", -9.0), ("a", -9.0), ("b", -9.0), ("ab", -1.0), ("▁ab", -2.0)] {
        tokens.push(piece.into());
        scores.push(score);
        types.push(1);
    }
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    [
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.scores", f32s(&scores)),
        ("tokenizer.ggml.token_type", i32s(&types)),
        ("tokenizer.ggml.bos_token_id", u32(1)),
        ("tokenizer.ggml.eos_token_id", u32(2)),
        ("tokenizer.ggml.unknown_token_id", u32(0)),
        ("tokenizer.ggml.add_bos_token", truth(true)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The small model's tensors in f32, rotary pairs side by side.
pub fn tensors() -> Vec<Entry> {
    small::tensors().iter().map(entry).collect()
}

fn entry(t: &Tensor) -> Entry {
    let name = name(&t.name);
    let cols = *t.shape.last().unwrap();
    let rotary = name.contains("attn_q") || name.contains("attn_k");
    let order = |r: usize| if rotary { r / HEAD * HEAD + (r % HEAD) / 2 + (r % 2) * HEAD / 2 } else { r };
    let bytes = (0..t.numbers.len() / cols)
        .flat_map(|r| &t.numbers[order(r) * cols..(order(r) + 1) * cols])
        .flat_map(|v| v.to_le_bytes())
        .collect();
    Entry { name, dimensions: t.shape.iter().rev().map(|d| *d as u64).collect(), kind: 0, bytes }
}

fn name(safetensors: &str) -> String {
    match safetensors {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let parts: Vec<&str> = safetensors.split('.').collect();
    let inner = match parts[parts.len() - 2] {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "q_proj" => "attn_q",
        "k_proj" => "attn_k",
        "v_proj" => "attn_v",
        "o_proj" => "attn_output",
        "gate_proj" => "ffn_gate",
        "up_proj" => "ffn_up",
        other => {
            assert_eq!(other, "down_proj");
            "ffn_down"
        }
    };
    format!("blk.{}.{inner}.weight", parts[2])
}

/// The small model in one file.
pub fn model() -> Vec<u8> {
    file(&metadata(), &tensors())
}

/// A byte-level `tokenizer.json` as the vocabulary of a GGUF file.
pub fn byte_level(json: &[u8], pre: &str) -> Metadata {
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    let mut tokens: Vec<(u64, &str)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(t, id)| (id.as_u64().unwrap(), t.as_str()))
        .collect();
    let special: Vec<u64> =
        json["added_tokens"].as_array().unwrap().iter().map(|t| t["id"].as_u64().unwrap()).collect();
    tokens.sort_unstable();
    let types: Vec<i32> = tokens.iter().map(|(id, _)| if special.contains(id) { 3 } else { 1 }).collect();
    let tokens: Vec<&str> = tokens.iter().map(|(_, t)| *t).collect();
    let merge = |m: &serde_json::Value| match m.as_str() {
        Some(m) => m.to_owned(),
        None => format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()),
    };
    let merges: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
    [
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text(pre)),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.token_type", i32s(&types)),
        ("tokenizer.ggml.merges", texts(&merges)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// A vocabulary of words in BERT's manner.
pub fn words() -> Metadata {
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁hello", "▁a", "b", "▁,", "▁é", "llo", "▁he"];
    [
        ("tokenizer.ggml.model", text("bert")),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.token_type", i32s(&[3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1])),
        ("tokenizer.ggml.cls_token_id", u32(2)),
        ("tokenizer.ggml.seperator_token_id", u32(3)),
        ("tokenizer.ggml.unknown_token_id", u32(1)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
