//! Models of real shapes with random weights: for measuring speed, not for reading.
//!
//! They are written as artifacts ([`write()`]), or stay in memory ([`memory`]), where a few layers can stand for all of them.

use std::path::Path;

use assay_core::id::ModelRoot;
use serde_json::json;

use super::ImportError;
use super::llama::program;
use super::lower::{Constant, table};
use super::rotate::Rotation;
use super::source::Config;
use crate::artifact::writer::Writer;
use crate::artifact::{Manifest, Profile, Provenance, TextModel};
use crate::matrix::{packed, stored_len};
use crate::program::{Program, Shape};
use crate::text::template::JOIN_MESSAGES;

pub mod memory;

/// Proportions of a decoder of the Llama family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// What it is called.
    pub name: &'static str,
    /// Width of the residual stream: a multiple of four times the heads.
    pub dim: u32,
    /// Layers.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of the gated layer.
    pub hidden: u32,
    /// Token ids.
    pub vocabulary: u32,
}

impl Size {
    /// Weights of one layer, which are as many bytes.
    pub fn layer_weights(&self) -> u64 {
        let [d, h] = [self.dim, self.hidden].map(u64::from);
        let kv = d / u64::from(self.heads) * u64::from(self.kv_heads);
        d * (d + 2 * kv) + d * d + 3 * d * h
    }

    /// Weights of the head, which are as many bytes.
    pub fn head_weights(&self) -> u64 {
        u64::from(self.dim) * u64::from(self.vocabulary)
    }

    fn config(&self, layers: u32, context: u32) -> Config {
        Config {
            dim: self.dim,
            layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim / self.heads,
            hidden: self.hidden,
            vocabulary: self.vocabulary,
            context,
            epsilon: 1e-5,
            tied: false,
            bos: Some(0),
            eos: vec![0],
            ..Config::PLAIN
        }
    }
}

/// Shapes that [`write()`] knows: SmolLM2-135M's, SmolLM2-360M's and Llama-3.2-1B's, with a vocabulary of 32 000.
pub const SHAPES: [Size; 3] = [
    size("135M", [576, 30, 9, 3, 1536]),
    size("360M", [960, 32, 15, 5, 2560]),
    size("1B", [2048, 16, 32, 8, 8192]),
];

const VOCABULARY: u32 = 32_000;

const fn size(name: &'static str, [dim, layers, heads, kv_heads, hidden]: [u32; 5]) -> Size {
    Size { name, dim, layers, heads, kv_heads, hidden, vocabulary: VOCABULARY }
}

/// Writes a model of the named shape, with 4096 positions. `None` for a shape that is not in [`SHAPES`].
pub fn write(shape: &str, profile: Profile, seed: u64, out: &Path) -> Option<Result<ModelRoot, ImportError>> {
    let size = SHAPES.iter().find(|s| s.name == shape)?;
    Some(write_config(&size.config(size.layers, 4096), (shape, profile), seed, out))
}

/// The program of a shape, with shifts, and what its constants are.
fn shifted(config: &Config) -> (Program, Vec<Constant>) {
    let (mut program, constants) = program(config, Rotation::None);
    for t in &mut program.tensors {
        if let Shape::Matrix { cols, shift, .. } = &mut t.shape {
            // Uniform int8 numbers have a deviation of 73: scales near 2^15 · 2^-shift make outputs about as large as inputs.
            *shift = 15 + 6 + (cols.ilog2() / 2) as i16;
        }
    }
    (program, constants)
}

/// Random bits, the same for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Stored weights of -127 to 127.
    fn weights(&mut self, stored: &mut [u8]) {
        for eight in stored.chunks_mut(8) {
            // Biased bytes 1 to 255.
            let bytes = self.next().to_le_bytes();
            eight.iter_mut().zip(bytes).for_each(|(o, b)| *o = b.max(1));
        }
    }

    /// Packed weights: numbers of -8 to 7 in groups whose scales are 32 to 63.
    fn packed(&mut self, rows: usize, cols: usize) -> Vec<u8> {
        packed::store(rows, cols, |_, cols| {
            let (bits, scale) = ([self.next(), self.next()], 32 + (self.next() % 32) as i32);
            (scale, (0..cols.len()).map(|i| (bits[i / 16] >> (i % 16 * 4) & 15) as i8 - 8).collect())
        })
    }

    fn scales(&mut self, rows: u32) -> Vec<u16> {
        (0..rows).map(|_| 32_768 + (self.next() % 8_192) as u16).collect()
    }
}

fn write_config(
    config: &Config,
    (shape, profile): (&str, Profile),
    seed: u64,
    out: &Path,
) -> Result<ModelRoot, ImportError> {
    let (program, constants) = shifted(config);
    let (text, tokenizer) = text(VOCABULARY);
    let provenance =
        Provenance { name: format!("synthetic-{shape}"), licence: "none".into(), sources: vec![] };
    let manifest = Manifest { program: program.clone(), text, provenance, tokenizer_len: 0 };
    let mut writer = Writer::create(out, profile, manifest, tokenizer)?;
    let mut random = Random::new(seed);
    for (t, constant) in program.tensors.iter().zip(&constants) {
        match (t.shape, constant) {
            (_, Constant::Rotary(from)) => writer.rotary(&from.numbers())?,
            (_, Constant::Table(f)) => writer.table(&table(*f))?,
            (Shape::Matrix { rows, cols, .. }, _) => {
                let stored = if writer.packs_next() {
                    random.packed(rows as usize, cols as usize)
                } else {
                    let mut stored = vec![0u8; stored_len(rows as usize, cols as usize)];
                    random.weights(&mut stored);
                    stored
                };
                writer.matrix(&stored, &random.scales(rows))?;
            }
            _ => unreachable!("the plain family has matrices, angles and a table"),
        }
    }
    Ok(writer.finish()?)
}

/// Text settings, and a tokenizer with a word for each of so many ids.
pub fn text(words: u32) -> (TextModel, Vec<u8>) {
    let text = TextModel {
        bos: Some(0),
        add_bos: true,
        end_tokens: vec![0],
        chat_template: JOIN_MESSAGES.to_owned(),
        has_chat_template: false,
    };
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..words).map(|i| (if i == 0 { "<s>".into() } else { format!("w{i}") }, json!(i))).collect();
    let special = json!([{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}]);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w1"},
    });
    (text, tokenizer.to_string().into_bytes())
}
