//! llama2.c checkpoints: the legacy format (version 0) and version 1, both f32, and version 2 in int8.
//!
//! Layouts as in llama2.c's `export.py`: version 0 is seven 32-bit integers (dim, hidden_dim, n_layers, n_heads, n_kv_heads,
//! vocab_size — negative when the classifier is not the embedding —, seq_len) and the weights in the order of [`V0`], with the
//! rotary tables before the classifier. Version 1 begins with `ak42`, the version, the integers (vocab_size positive), one byte
//! for a shared classifier, zeros up to 256 bytes, and then norms first. Version 2
//! has the group's size after that byte, norms in f32, and every matrix of every layer as int8 numbers followed by one f32 scale for each
//! group of them, counted through the matrix. Rotary pairs lie side by side.

use std::path::{Path, PathBuf};

use assay_core::id::Hash;
use memmap2::Mmap;

use super::source::{Architecture, Config, Format, RowOrder, Source, TextHints, Weights};
use super::{ImportError, digest_map, map, release, tokenizer};

const MAGIC_V1: u32 = 0x616b_3432;
const HEADER_V0: usize = 28;
const HEADER_V1: usize = 256;
/// Most of any dimension: larger ones are hostile or damaged.
const DIMENSION_MAX: u32 = 1 << 20;

/// Tensors of version 0 in order, each for all layers at once.
const V0: [&str; 11] =
    ["embed", "attention_norm", "q", "k", "v", "out", "mlp_norm", "gate", "down", "up", "norm"];
/// Tensors of version 1.
const V1: [&str; 11] =
    ["attention_norm", "mlp_norm", "norm", "embed", "q", "k", "v", "out", "gate", "down", "up"];

/// A mapped checkpoint.
pub(super) struct Llama2c {
    path: PathBuf,
    map: Mmap,
    architecture: Architecture,
    head_dim: u32,
    /// Numbers that share a scale, in version 2.
    group: Option<usize>,
    /// Name, offset and length in bytes; layers one after the other.
    tensors: Vec<(&'static str, usize, usize)>,
    hints: TextHints,
}

impl Llama2c {
    pub(super) fn open(path: &Path) -> Result<Llama2c, ImportError> {
        let map = map(path)?;
        let fail = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
        let word = |i: usize| -> Result<u32, ImportError> {
            let bytes = map.get(4 * i..4 * i + 4).and_then(|b| b.first_chunk::<4>());
            bytes.map(|b| u32::from_le_bytes(*b)).ok_or_else(|| fail("the header is cut off".into()))
        };
        let v1 = word(0)? == MAGIC_V1;
        if v1 && !(1..=2).contains(&word(1)?) {
            return Err(ImportError::Unsupported {
                path: path.to_owned(),
                field: "version".into(),
                got: word(1)?.to_string(),
                reason: "versions 0, 1 and 2 are; export the model in one of them".into(),
            });
        }
        let first = if v1 { 2 } else { 0 };
        let vocabulary = word(first + 5)? as i32;
        let shared = if v1 { map.get(36).copied() == Some(1) } else { vocabulary > 0 };
        let field = |i: usize, name: &str| -> Result<u32, ImportError> {
            let v = if i == 5 { vocabulary.unsigned_abs() } else { word(first + i)? };
            if (1..=DIMENSION_MAX).contains(&v) { Ok(v) } else { Err(fail(format!("{name} is {v}"))) }
        };
        let (dim, hidden, layers) = (field(0, "dim")?, field(1, "hidden_dim")?, field(2, "n_layers")?);
        let (heads, kv_heads) = (field(3, "n_heads")?, field(4, "n_kv_heads")?);
        let (vocabulary, context) = (field(5, "vocab_size")?, field(6, "seq_len")?);
        if !dim.is_multiple_of(heads) || !heads.is_multiple_of(kv_heads) || layers > 1024 {
            return Err(fail(format!(
                "dim {dim}, {heads} heads, {kv_heads} KV heads, {layers} layers do not fit"
            )));
        }
        let config = Config {
            dim,
            layers,
            heads,
            kv_heads,
            head_dim: dim / heads,
            hidden,
            vocabulary,
            context,
            epsilon: 1e-5,
            tied: shared,
            // Fixed by the format: llama2.c uses SentencePiece's ids.
            bos: Some(1).filter(|id| *id < vocabulary),
            eos: Some(2).filter(|id| *id < vocabulary).into_iter().collect(),
            ..Config::PLAIN
        };
        let group = if v1 && word(1)? == 2 {
            let bytes = map.get(37..41).and_then(|b| b.first_chunk::<4>());
            let size = bytes.map_or(0, |b| u32::from_le_bytes(*b)) as usize;
            if !(1..=1 << 16).contains(&size) {
                return Err(fail(format!("group_size is {size}")));
            }
            Some(size)
        } else {
            None
        };
        let mut at = if v1 { HEADER_V1 } else { HEADER_V0 };
        let mut tensors = Vec::new();
        for name in if v1 { V1 } else { V0 } {
            let floats = tensor_len(&config, name).ok_or_else(|| fail(format!("{name} is too large")))?;
            let each = floats / 4 / if matches!(name, "embed" | "norm") { 1 } else { layers as usize };
            let len = match group {
                Some(size) if !name.ends_with("norm") => {
                    if !each.is_multiple_of(size) {
                        return Err(fail(format!("{name} has no whole groups of {size}")));
                    }
                    floats / 4 + floats / size
                }
                _ => floats,
            };
            tensors.push((name, at, len));
            at = at.checked_add(len).ok_or_else(|| fail("the tensors are too large".into()))?;
        }
        if !v1 {
            // Rotary tables that readers recompute: cosine and sine, seq_len × head_dim / 2 each.
            at = at.saturating_add(4 * context as usize * config.head_dim as usize);
        }
        if !shared {
            let numbers = vocabulary as usize * dim as usize;
            let len = group.map_or(4 * numbers, |size| numbers + 4 * (numbers / size));
            tensors.push(("head", at, len));
            at = at.saturating_add(len);
        }
        if map.len() != at {
            return Err(fail(format!("{} bytes where the header describes {at}", map.len())));
        }
        let head_dim = config.head_dim;
        let architecture = Architecture::Decoder(config);
        Ok(Llama2c {
            path: path.to_owned(),
            map,
            architecture,
            head_dim,
            group,
            tensors,
            hints: TextHints::default(),
        })
    }
}

/// Bytes of a tensor, all layers together.
fn tensor_len(c: &Config, name: &str) -> Option<usize> {
    let (dim, layers) = (c.dim as usize, c.layers as usize);
    let (q, kv) = ((c.heads * c.head_dim) as usize, (c.kv_heads * c.head_dim) as usize);
    let numbers = match name {
        "embed" => (c.vocabulary as usize).checked_mul(dim)?,
        "norm" => dim,
        "attention_norm" | "mlp_norm" => layers.checked_mul(dim)?,
        "q" | "out" => layers.checked_mul(dim)?.checked_mul(q)?,
        "k" | "v" => layers.checked_mul(dim)?.checked_mul(kv)?,
        _ => layers.checked_mul(dim)?.checked_mul(c.hidden as usize)?,
    };
    numbers.checked_mul(4)
}

/// int8 numbers and the scales of their groups as f32, little-endian.
fn unpack(bytes: &[u8], numbers: usize, group: usize) -> Vec<u8> {
    let (q, scales) = bytes.split_at(numbers);
    let scales = scales.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let groups = q.chunks(group).zip(scales);
    groups.flat_map(|(q, s)| q.iter().flat_map(move |v| (f32::from(*v as i8) * s).to_le_bytes())).collect()
}

impl Source for Llama2c {
    fn path(&self) -> &Path {
        &self.path
    }

    fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    fn weights(
        &self,
        layer: Option<u32>,
        name: &str,
        rows: u32,
        cols: u32,
    ) -> Result<Weights<'_>, ImportError> {
        let found = self.tensors.iter().find(|(n, ..)| *n == name);
        let numbers = rows as usize * cols as usize;
        let group = self.group.filter(|_| !name.ends_with("norm"));
        let len = group.map_or(4 * numbers, |size| numbers + 4 * (numbers / size));
        let (at, whole) = found.map_or((0, 0), |(_, at, whole)| (*at, *whole));
        let from = at + layer.unwrap_or(0) as usize * len;
        if from + len > at + whole {
            return Err(ImportError::Tensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: format!("{rows} × {cols}"),
                got: format!("{whole} bytes"),
            });
        }
        let order = match name {
            "q" | "k" => RowOrder::PairsToHalves(self.head_dim),
            _ => RowOrder::Straight,
        };
        Ok(Weights {
            path: &self.path,
            name: layer.map_or(name.to_owned(), |l| format!("{name}.{l}")),
            rows: rows as usize,
            cols: cols as usize,
            format: Format::F32,
            bytes: match group {
                None => self.map[from..from + len].into(),
                Some(size) => unpack(&self.map[from..from + len], numbers, size).into(),
            },
            order,
        })
    }

    fn tokenizer(&self, given: Option<&Path>) -> Result<Vec<u8>, ImportError> {
        match given {
            Some(path) => tokenizer::load(path),
            None => tokenizer::beside(&self.path),
        }
    }

    fn text_hints(&self) -> &TextHints {
        &self.hints
    }

    fn release(&self) {
        release(&self.map);
    }

    fn digests(&self) -> Vec<(String, Hash)> {
        vec![digest_map(&self.path, &self.map)]
    }
}
