//! Models of real shapes with random weights: for measuring speed, not for reading.

use std::path::Path;

use assay_core::id::ModelRoot;
use serde_json::json;

use super::ImportError;
use super::llama::program;
use super::lower::{Constant, table};
use super::rotate::Rotation;
use super::source::Config;
use crate::artifact::writer::Writer;
use crate::artifact::{Manifest, Provenance, TextModel};
use crate::matrix::stored_len;
use crate::program::Shape;
use crate::text::template::JOIN_MESSAGES;

/// Shapes that can be made: name, width, layers, heads, KV heads, gated width.
pub const SHAPES: [(&str, u32, u32, u32, u32, u32); 3] =
    [("135M", 576, 30, 9, 3, 1536), ("360M", 960, 32, 15, 5, 2560), ("1B", 2048, 16, 32, 8, 8192)];

const VOCABULARY: u32 = 32_000;

/// Writes a model of the named shape (SmolLM2-135M's, SmolLM2-360M's, Llama-3.2-1B's; 32 000 token ids, 4096 positions).
/// `None` for a shape that is not in [`SHAPES`].
pub fn write(shape: &str, seed: u64, out: &Path) -> Option<Result<ModelRoot, ImportError>> {
    let (_, dim, layers, heads, kv_heads, hidden) = *SHAPES.iter().find(|s| s.0 == shape)?;
    let config = Config {
        dim,
        layers,
        heads,
        kv_heads,
        head_dim: dim / heads,
        hidden,
        vocabulary: VOCABULARY,
        context: 4096,
        epsilon: 1e-5,
        tied: false,
        bos: Some(0),
        eos: vec![0],
        ..Config::PLAIN
    };
    Some(write_config(&config, shape, seed, out))
}

fn write_config(config: &Config, shape: &str, seed: u64, out: &Path) -> Result<ModelRoot, ImportError> {
    let (mut program, constants) = program(config, Rotation::None);
    for t in &mut program.tensors {
        if let Shape::Matrix { cols, shift, .. } = &mut t.shape {
            // Uniform int8 numbers have a deviation of 73: scales near 2^15 · 2^-shift make outputs about as large as inputs.
            *shift = 15 + 6 + (cols.ilog2() / 2) as i16;
        }
    }
    let text = TextModel {
        bos: Some(0),
        add_bos: true,
        end_tokens: vec![0],
        chat_template: JOIN_MESSAGES.to_owned(),
        has_chat_template: false,
    };
    let provenance =
        Provenance { name: format!("synthetic-{shape}"), licence: "none".into(), sources: vec![] };
    let manifest = Manifest { program: program.clone(), text, provenance, tokenizer_len: 0 };
    let mut writer = Writer::create(out, manifest, tokenizer())?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (t, constant) in program.tensors.iter().zip(&constants) {
        match (t.shape, constant) {
            (_, Constant::Rotary(from)) => writer.rotary(&from.numbers())?,
            (_, Constant::Table(f)) => writer.table(&table(*f))?,
            (Shape::Matrix { rows, cols, .. }, _) => {
                let mut stored = vec![0u8; stored_len(rows as usize, cols as usize)];
                for eight in stored.chunks_mut(8) {
                    // Biased bytes 1 to 255: weights -127 to 127.
                    let bytes = random().to_le_bytes();
                    eight.iter_mut().zip(bytes).for_each(|(o, b)| *o = b.max(1));
                }
                let scales: Vec<u16> = (0..rows).map(|_| 32_768 + (random() % 8_192) as u16).collect();
                writer.matrix(&stored, &scales)?;
            }
            _ => unreachable!("the plain family has matrices, angles and a table"),
        }
    }
    Ok(writer.finish()?)
}

/// A tokenizer with a word for every id.
fn tokenizer() -> Vec<u8> {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..VOCABULARY).map(|i| (if i == 0 { "<s>".into() } else { format!("w{i}") }, json!(i))).collect();
    let special = json!([{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}]);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w1"},
    });
    tokenizer.to_string().into_bytes()
}
