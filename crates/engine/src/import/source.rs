//! What every checkpoint format gives the lowering: one configuration, and weights by canonical names.

use std::path::Path;

use assay_core::id::Hash;

use super::{ImportError, blocks};
use crate::program::check::{CONTEXT_MAX, DIMENSION_MAX, HEAD_DIM_MAX, ROWS_MAX};

/// Most layers: their operations fit into a program.
const LAYERS_MAX: u32 = 400;

/// Numbers of a Llama-family model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    /// Width of the residual stream.
    pub(super) dim: u32,
    /// Layers.
    pub(super) layers: u32,
    /// Query heads.
    pub(super) heads: u32,
    /// Key and value heads.
    pub(super) kv_heads: u32,
    /// Numbers per head.
    pub(super) head_dim: u32,
    /// Width of the gated layer.
    pub(super) hidden: u32,
    /// Token ids.
    pub(super) vocabulary: u32,
    /// Positions of the window.
    pub(super) context: u32,
    /// Base of the rotary angles.
    pub(super) rope_theta: f64,
    /// Epsilon of the norms.
    pub(super) epsilon: f64,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
    /// Beginning of a sequence.
    pub(super) bos: Option<u32>,
    /// Ends of a sequence.
    pub(super) eos: Vec<u32>,
}

impl Config {
    /// Refuses what no program can hold, before any number is multiplied or anything sized by it.
    pub(super) fn check(&self, path: &Path) -> Result<(), ImportError> {
        let within = |field: &str, got: u32, max: u32| {
            if (1..=max).contains(&got) {
                Ok(())
            } else {
                Err(refuse(path, field, got, format!("1 to {max} is")))
            }
        };
        within("number of layers", self.layers, LAYERS_MAX)?;
        within("hidden size", self.dim, DIMENSION_MAX)?;
        within("intermediate size", self.hidden, DIMENSION_MAX)?;
        within("vocabulary size", self.vocabulary, ROWS_MAX)?;
        within("context", self.context, CONTEXT_MAX)?;
        within("head size", self.head_dim, HEAD_DIM_MAX)?;
        within("number of heads", self.heads, DIMENSION_MAX / self.head_dim)?;
        within("number of KV heads", self.kv_heads, self.heads)?;
        if !self.head_dim.is_multiple_of(4) {
            return Err(refuse(path, "head size", self.head_dim, "a multiple of 4 is".into()));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("a divisor of the {} heads is", self.heads);
            return Err(refuse(path, "number of KV heads", self.kv_heads, reason));
        }
        Ok(())
    }
}

fn refuse(path: &Path, field: &str, got: u32, reason: String) -> ImportError {
    ImportError::Unsupported { path: path.to_owned(), field: field.to_owned(), got: got.to_string(), reason }
}

/// Number format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// IEEE 754 binary32, little-endian.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// ggml's Q8_0.
    Q8_0,
    /// ggml's Q4_0.
    Q4_0,
    /// ggml's Q4_K.
    Q4K,
    /// ggml's Q6_K.
    Q6K,
}

impl Format {
    /// Numbers and bytes of a block; a row is a whole number of blocks.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::Bf16 => (1, 2),
            Format::Q8_0 => (blocks::SMALL, blocks::Q8_0_BYTES),
            Format::Q4_0 => (blocks::SMALL, blocks::Q4_0_BYTES),
            Format::Q4K => (blocks::LARGE, blocks::Q4_K_BYTES),
            Format::Q6K => (blocks::LARGE, blocks::Q6_K_BYTES),
        }
    }

    /// Appends the numbers of whole blocks, exactly; bytes after the last whole block are left out.
    pub(super) fn read(self, bytes: &[u8], out: &mut Vec<f64>) {
        match self {
            Format::F32 => {
                out.extend(bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))));
            }
            Format::F16 => {
                out.extend(bytes.as_chunks().0.iter().map(|b| f64::from(half(u16::from_le_bytes(*b)))));
            }
            Format::Bf16 => {
                let read = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                out.extend(bytes.as_chunks().0.iter().map(|b| f64::from(read(b))));
            }
            Format::Q8_0 => bytes.as_chunks().0.iter().for_each(|b| blocks::q8_0(b, out)),
            Format::Q4_0 => bytes.as_chunks().0.iter().for_each(|b| blocks::q4_0(b, out)),
            Format::Q4K => bytes.as_chunks().0.iter().for_each(|b| blocks::q4_k(b, out)),
            Format::Q6K => bytes.as_chunks().0.iter().for_each(|b| blocks::q6_k(b, out)),
        }
    }
}

/// binary16 to binary32, exactly.
pub(super) fn half(h: u16) -> f32 {
    let sign = u32::from(h >> 15) << 31;
    let (e, m) = (u32::from(h >> 10) & 31, u32::from(h) & 1023);
    match (e, m) {
        (0, m) => f32::from_bits(sign | (m as f32 * (1.0 / 16_777_216.0)).to_bits()),
        (31, m) => f32::from_bits(sign | 0x7f80_0000 | (m << 13)),
        (e, m) => f32::from_bits(sign | ((e + 112) << 23) | (m << 13)),
    }
}

/// In which order a tensor's rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As they are.
    Straight,
    /// Heads of this size have rotary pairs side by side; they are read with pairs half a head apart.
    PairsToHalves(u32),
}

/// A float matrix or vector (one row) in a mapped file.
pub(super) struct Weights<'a> {
    /// File, for messages.
    pub(super) path: &'a Path,
    /// Name in the file, for messages.
    pub(super) name: String,
    /// Rows.
    pub(super) rows: usize,
    /// Columns.
    pub(super) cols: usize,
    /// Number format.
    pub(super) format: Format,
    /// Row-major numbers, in whole blocks for each row.
    pub(super) bytes: &'a [u8],
    /// Order of rows.
    pub(super) order: RowOrder,
}

impl Weights<'_> {
    /// Reads row `r` into `out`, refusing what is not finite.
    pub(super) fn row(&self, r: usize, out: &mut Vec<f64>) -> Result<(), ImportError> {
        let r = match self.order {
            RowOrder::Straight => r,
            RowOrder::PairsToHalves(head) => {
                let (head, half) = (head as usize, head as usize / 2);
                let (base, i) = (r / head * head, r % head);
                base + if i < half { 2 * i } else { 2 * (i - half) + 1 }
            }
        };
        let (numbers, bytes) = self.format.block();
        let len = self.cols / numbers * bytes;
        out.clear();
        self.format.read(&self.bytes[r * len..(r + 1) * len], out);
        match out.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(c) => Err(ImportError::NotFinite {
                path: self.path.to_owned(),
                tensor: self.name.clone(),
                index: r * self.cols + c,
                value: out[c].to_string(),
            }),
        }
    }
}

/// What the template of a model is, and whether prompts begin with BOS.
#[derive(Clone, Debug, Default)]
pub(super) struct TextHints {
    /// Jinja chat template.
    pub(super) chat_template: Option<String>,
    /// What the source says about BOS, if anything.
    pub(super) add_bos: Option<bool>,
    /// The token that ends an answer, by name.
    pub(super) eos_token: Option<String>,
}

/// A checkpoint. Canonical names: `embed`, `norm`, `head`, and per layer `q`, `k`, `v`, `out`, `gate`, `up`, `down`,
/// `attention_norm`, `mlp_norm`.
pub(super) trait Source {
    /// Folder or file.
    fn path(&self) -> &Path;
    /// The numbers.
    fn config(&self) -> &Config;
    /// A matrix of `rows` × `cols`, or a vector if `rows` is 1. `layer` is `None` for tensors outside the layers.
    fn weights(
        &self,
        layer: Option<u32>,
        name: &str,
        rows: u32,
        cols: u32,
    ) -> Result<Weights<'_>, ImportError>;
    /// The tokenizer as `tokenizer.json`; `given` is the user's choice.
    fn tokenizer(&self, given: Option<&Path>) -> Result<Vec<u8>, ImportError>;
    /// Template and BOS.
    fn text_hints(&self) -> &TextHints;
    /// Names and digests of the files.
    fn digests(&self) -> Vec<(String, Hash)>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_numbers_are_exact() {
        for (h, f) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65_504.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
        ] {
            assert_eq!(half(h), f, "{h:#x}");
        }
        assert!(half(0x7e00).is_nan() && half(0x7c00).is_infinite());
        let mut one = Vec::new();
        Format::Bf16.read(&[0x80, 0x3f], &mut one);
        assert_eq!(one, [1.0]);
    }
}
