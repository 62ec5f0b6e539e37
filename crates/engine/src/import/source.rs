//! What every checkpoint format gives the lowering: one configuration, and weights by canonical names.

use std::borrow::Cow;
use std::path::Path;

use assay_core::id::Hash;

use super::{ImportError, blocks};
use crate::program::check::{CONTEXT_MAX, DIMENSION_MAX, HEAD_DIM_MAX, ROWS_MAX};

/// Most layers: their operations fit into a program.
pub(super) const LAYERS_MAX: u32 = 400;

/// What a checkpoint is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Architecture {
    /// A decoder of the Llama family.
    Decoder(Config),
    /// An encoder of the BERT family.
    Encoder(EncoderConfig),
}

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
    /// How the angles were slowed down for longer contexts.
    pub(super) rope_scaling: RopeScaling,
    /// Epsilon of the norms.
    pub(super) epsilon: f64,
    /// What is added to every gain: 1 for Gemma.
    pub(super) gain_plus: f64,
    /// Function of the gated layer.
    pub(super) activation: Activation,
    /// Whether queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// Whether queries and keys are normalised head by head.
    pub(super) qk_norm: bool,
    /// Whether what a layer adds to the residual stream is normalised (Gemma 2 and 3).
    pub(super) post_norms: bool,
    /// Layers that see a window.
    pub(super) local: Option<Local>,
    /// Scores are divided by the root of this instead of the head's size.
    pub(super) query_scale: Option<f64>,
    /// Bound of scores.
    pub(super) attention_cap: Option<f64>,
    /// Bound of logits.
    pub(super) logit_cap: Option<f64>,
    /// Factor of the embedding as the first layer sees it.
    pub(super) embedding_factor: Option<f64>,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
    /// Beginning of a sequence.
    pub(super) bos: Option<u32>,
    /// Ends of a sequence.
    pub(super) eos: Vec<u32>,
}

/// Layers that see only the last positions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Local {
    /// How many positions.
    pub(super) window: u32,
    /// Which layers, one entry for each.
    pub(super) layers: Vec<bool>,
    /// Base of their rotary angles, if it is another.
    pub(super) rope_theta: Option<f64>,
}

/// Function of a gated layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// x times the logistic function of x.
    Silu,
    /// x times the normal distribution of x.
    Gelu,
    /// The same by the hyperbolic tangent.
    GeluTanh,
}

/// How rotary angles were slowed down.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RopeScaling {
    /// Not at all.
    None,
    /// All by a factor.
    Linear(f64),
    /// Slow ones by a factor, fast ones not, in between smoothly: Llama 3.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original / low` are slowed down.
        low: f64,
        /// Wavelengths below `original / high` are left alone.
        high: f64,
        /// The context before.
        original: f64,
    },
    /// Each by a divisor of its own.
    Divisors(Vec<f64>),
}

impl RopeScaling {
    /// The speed of pair `i`, slowed down.
    pub(super) fn apply(&self, i: u32, speed: f64) -> f64 {
        match self {
            RopeScaling::None => speed,
            RopeScaling::Linear(factor) => speed / factor,
            RopeScaling::Divisors(all) => speed / all.get(i as usize).copied().unwrap_or(1.0),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let turns = original * speed / (2.0 * std::f64::consts::PI);
                if turns < *low {
                    speed / factor
                } else if turns > *high {
                    speed
                } else {
                    let smooth = (turns - low) / (high - low);
                    (1.0 - smooth) * speed / factor + smooth * speed
                }
            }
        }
    }
}

/// Numbers of a BERT-family encoder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EncoderConfig {
    /// Width.
    pub(super) dim: u32,
    /// Layers.
    pub(super) layers: u32,
    /// Heads.
    pub(super) heads: u32,
    /// Width of the inner layer.
    pub(super) hidden: u32,
    /// Token ids.
    pub(super) vocabulary: u32,
    /// Positions that have an embedding.
    pub(super) positions: u32,
    /// Tokens of the longest input, special ones included.
    pub(super) context: u32,
    /// Whether there are token types.
    pub(super) token_types: u32,
    /// Function of the inner layer.
    pub(super) activation: Activation,
    /// Epsilon of the norms.
    pub(super) epsilon: f64,
    /// How one vector is made.
    pub(super) pooling: crate::program::Pooling,
}

impl EncoderConfig {
    /// Refuses what no program can hold.
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
        within("context", self.context, crate::program::check::WHOLE_CONTEXT_MAX)?;
        within("number of heads", self.heads, self.dim)?;
        if !self.dim.is_multiple_of(self.heads) || !(self.dim / self.heads).is_multiple_of(4) {
            return Err(refuse(
                path,
                "number of heads",
                self.heads,
                "one that cuts the width into multiples of 4 is".into(),
            ));
        }
        within("head size", self.dim / self.heads, HEAD_DIM_MAX)
    }
}

impl Config {
    /// What most of the family agree on; the sizes are to be filled in.
    pub(super) const PLAIN: Config = Config {
        dim: 0,
        layers: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        hidden: 0,
        vocabulary: 0,
        context: 0,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        epsilon: 1e-6,
        gain_plus: 0.0,
        activation: Activation::Silu,
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        local: None,
        query_scale: None,
        attention_cap: None,
        logit_cap: None,
        embedding_factor: None,
        tied: false,
        bos: None,
        eos: Vec::new(),
    };

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
        let cap = |field: &str, v: Option<f64>| match v {
            Some(v) if !(1.0..=10_000.0).contains(&v) => Err(ImportError::Unsupported {
                path: path.to_owned(),
                field: field.to_owned(),
                got: v.to_string(),
                reason: "1 to 10 000 is".into(),
            }),
            _ => Ok(()),
        };
        cap("bound of scores", self.attention_cap)?;
        cap("bound of logits", self.logit_cap)?;
        if let Some(local) = &self.local {
            within("sliding window", local.window, u32::MAX)?;
            if local.layers.len() != self.layers as usize {
                return Err(refuse(
                    path,
                    "layer types",
                    local.layers.len() as u32,
                    "one for each layer is".into(),
                ));
            }
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
    /// Row-major numbers, in whole blocks for each row: mapped, or unpacked where a format scatters them.
    pub(super) bytes: Cow<'a, [u8]>,
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

/// A checkpoint.
///
/// Canonical names of a decoder: `embed`, `norm`, `head`, and per layer `q`, `k`, `v`, `out`, `gate`, `up`, `down`,
/// `attention_norm`, `mlp_norm`; where the configuration says so `q_bias`, `k_bias`, `v_bias`, `q_norm`, `k_norm`,
/// `post_attention_norm`, `post_mlp_norm`. Of an encoder: `embed`, `positions`, `types`, `embed_norm`, `embed_norm_bias`, and per
/// layer `q`, `k`, `v`, `out`, `up`, `down`, each with its `_bias`, `attention_norm`, `mlp_norm` and their `_bias`.
pub(super) trait Source {
    /// Folder or file.
    fn path(&self) -> &Path;
    /// What it is.
    fn architecture(&self) -> &Architecture;
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
    /// Lets go of the memory that what was read so far takes, if any.
    fn release(&self) {}
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
