//! GGUF files, whole or in shards: llama.cpp's format with the tokenizer inside.
//!
//! What a file says that the lowering cannot express is refused by name: other architectures, settings without a meaning here,
//! tensors that the architecture does not have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assay_core::id::Hash;
use memmap2::Mmap;

use super::source::{self, Activation, Config, Local, RopeScaling, RowOrder, Source, TextHints, Weights};
use super::{ImportError, digest_map, map, release, tokenizer};

pub(super) mod names;
pub(super) mod reader;

use names::{Architecture, Rotary, general, key};
use reader::{Header, Metadata, Place, Value};

/// Most files of a model.
const SHARDS_MAX: u32 = 1024;

struct Shard {
    path: PathBuf,
    map: Mmap,
}

/// A mapped model.
pub(super) struct Gguf {
    path: PathBuf,
    family: &'static Architecture,
    architecture: source::Architecture,
    head_dim: u32,
    shards: Vec<Shard>,
    /// Tensors by GGUF's names, with the shard that each lies in.
    tensors: BTreeMap<String, (usize, Place)>,
    /// Header of the first file, which has the metadata.
    header: Header,
    hints: TextHints,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Gguf, ImportError> {
        let map = map(path)?;
        let header = Header::read(path, &map)?;
        let (shards, tensors) = shards(path, map, &header)?;
        let metadata = Metadata::new(path, &shards[0].map, &header);
        let name = metadata.text(general::ARCHITECTURE)?.ok_or_else(|| {
            let reason = format!("it has no {}", general::ARCHITECTURE);
            ImportError::Malformed { path: path.to_owned(), reason }
        })?;
        let architecture = architecture(path, name)?;
        only_known_tensors(path, architecture, &tensors)?;
        let mut config = read_config(metadata, architecture, &tensors)?;
        if let Some(divisors) = rope_divisors(path, &shards, &tensors, &config)? {
            config.rope_scaling = divisors;
        }
        let hints = tokenizer::gguf::hints(metadata)?;
        Ok(Gguf {
            path: path.to_owned(),
            family: architecture,
            head_dim: config.head_dim,
            architecture: source::Architecture::Decoder(config),
            shards,
            tensors,
            header,
            hints,
        })
    }
}

/// The tokenizer in a GGUF file, as `tokenizer.json`; the file need not hold a model.
pub(super) fn tokenizer_json(path: &Path) -> Result<Vec<u8>, ImportError> {
    let map = map(path)?;
    let header = Header::read(path, &map)?;
    tokenizer::gguf::convert(Metadata::new(path, &map, &header))
}

/// What is known of an architecture. Refuses the ones that the lowering cannot execute.
fn architecture(path: &Path, name: &str) -> Result<&'static Architecture, ImportError> {
    let all = &names::ARCHITECTURES;
    all.iter().find(|a| a.name == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|a| a.name).collect();
        unsupported(path, general::ARCHITECTURE, name, &format!("this version imports {}", names.join(", ")))
    })
}

fn unsupported(path: &Path, field: &str, got: impl ToString, reason: &str) -> ImportError {
    ImportError::Unsupported {
        path: path.to_owned(),
        field: field.to_owned(),
        got: got.to_string(),
        reason: reason.to_owned(),
    }
}

type Tensors = BTreeMap<String, (usize, Place)>;

/// All files of a model, of which `first` is given, and where their tensors lie.
fn shards(path: &Path, first: Mmap, header: &Header) -> Result<(Vec<Shard>, Tensors), ImportError> {
    let metadata = Metadata::new(path, &first, header);
    let count = metadata.unsigned(general::SPLIT_COUNT)?.unwrap_or(1).max(1);
    let number = metadata.unsigned(general::SPLIT_NUMBER)?.unwrap_or(0);
    let announced = metadata.unsigned(general::SPLIT_TENSORS)?;
    let mut tensors = Tensors::new();
    let place = |(name, p): (&String, &Place)| (name.clone(), (0, p.clone()));
    tensors.extend(header.tensors.iter().map(place));
    let mut shards = vec![Shard { path: path.to_owned(), map: first }];
    if count == 1 {
        return Ok((shards, tensors));
    }
    if count > SHARDS_MAX || number != 0 {
        let got = format!("{} of {count}", number.saturating_add(1));
        let reason = format!("give the first of at most {SHARDS_MAX} files; the others are found beside it");
        return Err(unsupported(path, general::SPLIT_NUMBER, got, &reason));
    }
    let ending = |n: u32| format!("-{n:05}-of-{count:05}.gguf");
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.strip_suffix(&ending(1)).ok_or_else(|| {
        let reason = format!("it is the first of {count} files, but its name does not end in {}", ending(1));
        ImportError::Malformed { path: path.to_owned(), reason }
    })?;
    for n in 1..count {
        let path = path.with_file_name(format!("{stem}{}", ending(n + 1)));
        let malformed = |reason: String| ImportError::Malformed { path: path.clone(), reason };
        let map = map(&path)?;
        let header = Header::read(&path, &map)?;
        let metadata = Metadata::new(&path, &map, &header);
        let says = (metadata.unsigned(general::SPLIT_NUMBER)?, metadata.unsigned(general::SPLIT_COUNT)?);
        if says != (Some(n), Some(count)) {
            return Err(malformed(format!("it does not say that it is file {} of {count}", n + 1)));
        }
        for (name, place) in header.tensors {
            if tensors.insert(name.clone(), (n as usize, place)).is_some() {
                return Err(malformed(format!("tensor `{name}` is in two files")));
            }
        }
        shards.push(Shard { path, map });
    }
    match announced {
        Some(n) if n as usize != tensors.len() => {
            let reason = format!("the files hold {} tensors where the first announces {n}", tensors.len());
            Err(ImportError::Malformed { path: path.to_owned(), reason })
        }
        _ => Ok((shards, tensors)),
    }
}

/// Refuses tensors that the lowering would leave out: they change what the model computes.
fn only_known_tensors(path: &Path, a: &Architecture, tensors: &Tensors) -> Result<(), ImportError> {
    for name in tensors.keys() {
        let known = match names::canonical(name) {
            Some((None, _)) => true,
            Some((Some(_), inner)) => names::PLAIN.contains(&inner) || a.more.contains(&inner),
            None => false,
        };
        if !known {
            let reason = format!("this version imports {} models without it", a.name);
            return Err(unsupported(path, "tensor", name, &reason));
        }
    }
    Ok(())
}

/// The divisors of rotary speeds that Llama 3's converter writes instead of its four numbers.
fn rope_divisors(
    path: &Path,
    shards: &[Shard],
    tensors: &Tensors,
    config: &Config,
) -> Result<Option<RopeScaling>, ImportError> {
    let Some(name) = names::tensor(None, "rope_factors") else { return Ok(None) };
    let Some((shard, place)) = tensors.get(&name) else { return Ok(None) };
    let pairs = config.head_dim as usize / 2;
    if (place.rows, place.cols) != (1, pairs) {
        return Err(ImportError::Tensor {
            path: path.to_owned(),
            tensor: name,
            expected: format!("{pairs} numbers"),
            got: format!("{} columns and {} rows", place.cols, place.rows),
        });
    }
    let shard = &shards[*shard];
    let weights = Weights {
        path: &shard.path,
        name: name.clone(),
        rows: 1,
        cols: pairs,
        format: place.format,
        bytes: shard.map[place.bytes.clone()].into(),
        order: RowOrder::Straight,
    };
    let mut divisors = Vec::new();
    weights.row(0, &mut divisors)?;
    if let Some(bad) = divisors.iter().find(|d| **d < 1e-3) {
        return Err(unsupported(path, &name, bad, "factors above 0.001 are"));
    }
    Ok(Some(RopeScaling::Divisors(divisors)))
}

fn read_config(m: Metadata<'_>, a: &Architecture, tensors: &Tensors) -> Result<Config, ImportError> {
    let path = m.path();
    let malformed = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
    let full = |key: &str| format!("{}.{key}", a.name);
    let optional = |key: &str| match m.value(&full(key)) {
        Some(Value::Array(..)) => {
            Err(unsupported(path, &full(key), "an array", "one number for all layers is"))
        }
        _ => m.unsigned(&full(key)),
    };
    let number = |key: &str| -> Result<u32, ImportError> {
        optional(key)?.filter(|v| *v > 0).ok_or_else(|| malformed(format!("{} is missing or 0", full(key))))
    };
    let real = |key: &str, otherwise: f64| -> Result<f64, ImportError> {
        let v = m.real(&full(key))?.unwrap_or(otherwise);
        if v > 0.0 && v < 1e12 { Ok(v) } else { Err(malformed(format!("{} is {v}", full(key)))) }
    };
    let (dim, heads) = (number(key::WIDTH)?, number(key::HEADS)?);
    let head_dim = optional(key::KEY_LENGTH)?.unwrap_or(dim / heads);
    only_plain(m, a, head_dim)?;
    let embed = names::tensor(None, "embed").and_then(|name| tensors.get(&name));
    let rows = embed.map(|(_, place)| place.rows).ok_or_else(|| ImportError::Tensor {
        path: path.to_owned(),
        tensor: names::tensor(None, "embed").unwrap_or_default(),
        expected: format!("a matrix with {dim} columns"),
        got: "none".into(),
    })?;
    let vocabulary = u32::try_from(rows).map_err(|_| malformed(format!("the embedding has {rows} rows")))?;
    let head = names::tensor(None, "head").is_some_and(|name| tensors.contains_key(&name));
    let id = |v: Option<u32>| v.filter(|v| *v < vocabulary);
    let layers = number(key::LAYERS)?;
    let (gemma, gemma2, gemma3) = (a.name.starts_with("gemma"), a.name == "gemma2", a.name == "gemma3");
    let above_zero = |key: &str| Ok::<_, ImportError>(m.real(&full(key))?.filter(|v| *v > 0.0));
    // Gemma 2's first files leave out what all its models share; the reader of the format knows it, too.
    let family = |number: f64| gemma2.then_some(number);
    let cap = |key: &str, number: f64| {
        Ok::<_, ImportError>(m.real(&full(key))?.or(family(number)).filter(|v| *v > 0.0))
    };
    let window = match optional(key::WINDOW)? {
        _ if a.name.starts_with("qwen") => None,
        None => gemma2.then_some(4096),
        said => said.filter(|w| *w > 0),
    };
    let local_layers = |layers: u32| -> Result<Vec<bool>, ImportError> {
        let every = match (gemma2, gemma3) {
            (true, _) => 2,
            (_, true) => optional(key::WINDOW_PATTERN)?.filter(|v| *v > 0).unwrap_or(6),
            _ => u32::MAX,
        };
        Ok((0..layers).map(|l| (l + 1) % every != 0).collect())
    };
    let local = match window {
        // Sizes beyond the program's limits are refused before lists are made of them.
        Some(window) if layers <= source::LAYERS_MAX => Some(Local {
            window,
            layers: local_layers(layers)?,
            rope_theta: if gemma3 { Some(real(key::LOCAL_ROPE_BASE, 10_000.0)?) } else { None },
        }),
        _ => None,
    };
    let factor = match m.text(&full(key::ROPE_SCALING))? {
        // A file may say by what its angles could be slowed down, and that they are not.
        Some("none") => None,
        _ => above_zero(key::ROPE_FACTOR)?.or(above_zero(key::ROPE_SCALE)?),
    };
    Ok(Config {
        dim,
        layers,
        heads,
        kv_heads: optional(key::KV_HEADS)?.unwrap_or(heads),
        head_dim,
        hidden: number(key::HIDDEN)?,
        vocabulary,
        context: number(key::CONTEXT)?,
        rope_theta: real(key::ROPE_BASE, if gemma3 { 1_000_000.0 } else { 10_000.0 })?,
        rope_scaling: factor.filter(|f| *f != 1.0).map_or(RopeScaling::None, RopeScaling::Linear),
        epsilon: real(key::EPSILON, f64::NAN)?,
        // The converter has added Gemma's 1 to every gain.
        gain_plus: 0.0,
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        qkv_bias: a.more.contains(&"q_bias"),
        qk_norm: a.more.contains(&"q_norm"),
        post_norms: a.more.contains(&"post_mlp_norm"),
        local,
        // Gemma 2's and 3's largest models divide by the width of a head as the residual stream would have it.
        query_scale: match (gemma2 || gemma3, layers) {
            (true, 46 | 62) => Some(f64::from(dim) / f64::from(heads)),
            _ => None,
        },
        attention_cap: cap(key::ATTENTION_CAP, 50.0)?,
        logit_cap: cap(key::LOGIT_CAP, 30.0)?,
        embedding_factor: gemma.then(|| libm::sqrt(f64::from(dim))),
        tied: !head,
        bos: id(tokenizer::gguf::bos(m)?),
        eos: tokenizer::gguf::ends(m)?.into_iter().filter(|v| *v < vocabulary).collect(),
    })
}

/// Refuses settings that today's lowering cannot express, unless they say that there is nothing to express.
fn only_plain(m: Metadata<'_>, a: &Architecture, head_dim: u32) -> Result<(), ImportError> {
    let refuse = |field: &str, got: &dyn std::fmt::Debug, reason: &str| {
        Err(unsupported(m.path(), field, format!("{got:?}"), reason))
    };
    for (key, whole) in [(key::ROPE_NUMBERS, head_dim), (key::VALUE_LENGTH, head_dim)] {
        let field = format!("{}.{key}", a.name);
        match m.unsigned(&field)? {
            Some(n) if n != whole => {
                return refuse(&field, &n, "this version imports models with that of a head");
            }
            _ => {}
        }
    }
    let scaling = format!("{}.{}", a.name, key::ROPE_SCALING);
    match m.text(&scaling)? {
        None | Some("none" | "linear") => {}
        Some(kind) => return refuse(&scaling, &kind, "none and linear are"),
    }
    // Each with the value that changes nothing; 0 means "none" for all of them.
    let neutral = [
        (key::EXPERTS, 0.0),
        (key::CLAMP, 0.0),
        (key::ATTENTION_SCALE, 0.0),
        (key::LOGIT_SCALE, 1.0),
        (key::RESIDUAL_SCALE, 1.0),
        (key::EMBEDDING_SCALE, 1.0),
    ];
    // Only these bend scores, or logits.
    let (gemma2, gemma3) = (a.name == "gemma2", a.name == "gemma3");
    let caps = [(key::ATTENTION_CAP, gemma2), (key::LOGIT_CAP, gemma2 || gemma3)];
    let caps = caps.into_iter().filter(|(_, known)| !known).map(|(key, _)| (key, 0.0));
    for (key, neutral) in neutral.into_iter().chain(caps) {
        let field = format!("{}.{key}", a.name);
        match m.real(&field)? {
            Some(v) if v != neutral && v != 0.0 => {
                return refuse(&field, &v, "this version imports models without it");
            }
            _ => {}
        }
    }
    let causal = format!("{}.{}", a.name, key::CAUSAL);
    match m.truth(&causal)? {
        Some(false) => refuse(&causal, &false, "this version imports models that write text"),
        _ => Ok(()),
    }
}

impl Source for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn architecture(&self) -> &source::Architecture {
        &self.architecture
    }

    fn weights(
        &self,
        layer: Option<u32>,
        name: &str,
        rows: u32,
        cols: u32,
    ) -> Result<Weights<'_>, ImportError> {
        let tensor = names::tensor(layer, name).unwrap_or_else(|| name.to_owned());
        let wrong = |path: &Path, got: String| ImportError::Tensor {
            path: path.to_owned(),
            tensor: tensor.clone(),
            expected: format!("{cols} columns and {rows} rows"),
            got,
        };
        let (shard, place) = self.tensors.get(&tensor).ok_or_else(|| wrong(&self.path, "none".into()))?;
        let shard = &self.shards[*shard];
        if (place.rows, place.cols) != (rows as usize, cols as usize) {
            return Err(wrong(&shard.path, format!("{} columns and {} rows", place.cols, place.rows)));
        }
        let order = match (name, self.family.rotary) {
            ("q" | "k", Rotary::Pairs) => RowOrder::PairsToHalves(self.head_dim),
            _ => RowOrder::Straight,
        };
        Ok(Weights {
            path: &shard.path,
            name: tensor,
            rows: rows as usize,
            cols: cols as usize,
            format: place.format,
            bytes: shard.map[place.bytes.clone()].into(),
            order,
        })
    }

    fn tokenizer(&self, given: Option<&Path>) -> Result<Vec<u8>, ImportError> {
        let metadata = Metadata::new(&self.path, &self.shards[0].map, &self.header);
        match given {
            Some(path) => tokenizer::load(path),
            None if metadata.value(general::TOKENIZER).is_some() => tokenizer::gguf::convert(metadata),
            None => Err(tokenizer::missing(&self.path)),
        }
    }

    fn text_hints(&self) -> &TextHints {
        &self.hints
    }

    fn release(&self) {
        self.shards.iter().for_each(|s| release(&s.map));
    }

    fn digests(&self) -> Vec<(String, Hash)> {
        self.shards.iter().map(|s| digest_map(&s.path, &s.map)).collect()
    }
}
