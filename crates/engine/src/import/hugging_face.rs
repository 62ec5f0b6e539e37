//! Hugging Face folders: `config.json`, one or several `*.safetensors`, `tokenizer.json` or else `tokenizer.model`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use assay_core::id::Hash;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;

use super::source::{Architecture, Format, RowOrder, Source, TextHints, Weights};
use super::{ImportError, digest, digest_map, map, read_small, release, tokenizer};

mod config;

/// Most bytes of a JSON file other than the tokenizer.
const JSON_MAX: u64 = 64 << 20;
/// Most files of a sharded checkpoint.
const SHARDS_MAX: usize = 1024;

struct Shard {
    path: PathBuf,
    map: Mmap,
}

/// Where a tensor lies.
struct Place {
    shard: usize,
    format: Format,
    shape: Vec<usize>,
    from: usize,
    len: usize,
}

/// A folder with its weights mapped.
pub(super) struct HuggingFace {
    folder: PathBuf,
    architecture: Architecture,
    config_bytes: Vec<u8>,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Place>,
    hints: TextHints,
}

impl HuggingFace {
    pub(super) fn open(folder: &Path) -> Result<HuggingFace, ImportError> {
        let path = folder.join("config.json");
        if !path.exists() {
            let reason = "the folder has no config.json".to_owned();
            return Err(ImportError::UnknownSource { path: folder.to_owned(), reason });
        }
        let config_bytes = read_small(&path, JSON_MAX)?;
        let architecture = config::read(&path, &config_bytes, folder)?;
        let files = weight_files(folder)?;
        let mut shards = Vec::new();
        let mut tensors = BTreeMap::new();
        for path in files {
            let map = map(&path)?;
            index(&path, &map, shards.len(), &mut tensors)?;
            shards.push(Shard { path, map });
        }
        let hints = read_hints(folder)?;
        Ok(HuggingFace { folder: folder.to_owned(), architecture, config_bytes, shards, tensors, hints })
    }
}

/// The files that hold the weights: those that the index names, else `model.safetensors`, else every one there is.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let index = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    let mut files: Vec<PathBuf> = if index.exists() {
        let malformed = |reason: String| ImportError::Malformed { path: index.clone(), reason };
        let json: Value =
            serde_json::from_slice(&read_small(&index, JSON_MAX)?).map_err(|e| malformed(e.to_string()))?;
        let map = json["weight_map"].as_object().ok_or_else(|| malformed("it has no weight_map".into()))?;
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        if let Some(bad) = names.iter().find(|n| n.contains(['/', '\\']) || !n.ends_with(".safetensors")) {
            return Err(malformed(format!("`{bad}` is no .safetensors file of the folder")));
        }
        names.into_iter().map(|n| folder.join(n)).collect()
    } else if single.exists() {
        vec![single]
    } else {
        std::fs::read_dir(folder)
            .map_err(|source| ImportError::Io { path: folder.to_owned(), source })?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect()
    };
    files.sort();
    if files.is_empty() || files.len() > SHARDS_MAX {
        let reason =
            format!("the folder has {} .safetensors files; 1 to {SHARDS_MAX} are expected", files.len());
        return Err(ImportError::UnknownSource { path: folder.to_owned(), reason });
    }
    Ok(files)
}

/// Adds the tensors of one file, refusing headers that lie about it.
fn index(
    path: &Path,
    bytes: &[u8],
    shard: usize,
    all: &mut BTreeMap<String, Place>,
) -> Result<(), ImportError> {
    let fail = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
    let file = SafeTensors::deserialize(bytes).map_err(|e| fail(e.to_string()))?;
    for (name, view) in file.iter() {
        let format = match view.dtype() {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::Bf16,
            // Other tensors (position ids, say) matter only if the model needs them: then they are missing.
            _ => continue,
        };
        let data = view.data();
        let from = data.as_ptr() as usize - bytes.as_ptr() as usize;
        let place = Place { shard, format, shape: view.shape().to_vec(), from, len: data.len() };
        if all.insert(name.to_owned(), place).is_some() {
            return Err(fail(format!("tensor `{name}` is in two files")));
        }
    }
    Ok(())
}

fn read_hints(folder: &Path) -> Result<TextHints, ImportError> {
    let mut hints = TextHints::default();
    let path = folder.join("tokenizer_config.json");
    if path.exists() {
        let bytes = read_small(&path, JSON_MAX)?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|e| ImportError::Malformed { path: path.clone(), reason: e.to_string() })?;
        hints.chat_template = match &json["chat_template"] {
            Value::String(t) => Some(t.clone()),
            // Several named templates: the default one is for chats.
            Value::Array(all) => all
                .iter()
                .find(|t| t["name"] == "default")
                .and_then(|t| t["template"].as_str())
                .map(str::to_owned),
            _ => None,
        };
        let eos = json["eos_token"].as_str().or_else(|| json["eos_token"]["content"].as_str());
        hints.eos_token = eos.map(str::to_owned);
        hints.add_bos =
            Some(json["add_bos_token"].as_bool().unwrap_or(false) || post_processor_adds(folder, &json));
    }
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let bytes = read_small(&path, JSON_MAX)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| ImportError::Malformed { path, reason: "the template is not UTF-8".into() })?;
        hints.chat_template = Some(text);
    }
    Ok(hints)
}

/// Whether the tokenizer's post-processor puts BOS in front of texts, when `add_bos_token` does not say.
fn post_processor_adds(folder: &Path, config: &Value) -> bool {
    if config["add_bos_token"].is_boolean() {
        return false;
    }
    let bos = config["bos_token"].as_str().or_else(|| config["bos_token"]["content"].as_str());
    let json = read_small(&folder.join("tokenizer.json"), JSON_MAX).ok();
    let json: Option<Value> = json.and_then(|b| serde_json::from_slice(&b).ok());
    match (bos, json) {
        (Some(bos), Some(json)) => json["post_processor"].to_string().contains(&format!("\"{bos}\"")),
        _ => false,
    }
}

/// Names of a decoder's tensors within a layer.
const DECODER: [(&str, &str); 17] = [
    ("q", "self_attn.q_proj.weight"),
    ("k", "self_attn.k_proj.weight"),
    ("v", "self_attn.v_proj.weight"),
    ("out", "self_attn.o_proj.weight"),
    ("gate", "mlp.gate_proj.weight"),
    ("up", "mlp.up_proj.weight"),
    ("down", "mlp.down_proj.weight"),
    ("q_bias", "self_attn.q_proj.bias"),
    ("k_bias", "self_attn.k_proj.bias"),
    ("v_bias", "self_attn.v_proj.bias"),
    ("q_norm", "self_attn.q_norm.weight"),
    ("k_norm", "self_attn.k_norm.weight"),
    ("attention_norm", "input_layernorm.weight"),
    ("mlp_norm", "post_attention_layernorm.weight"),
    // Where the output of attention is normalised, that norm has the name of the one before the gated layer.
    ("post_attention_norm", "post_attention_layernorm.weight"),
    ("post_mlp_norm", "post_feedforward_layernorm.weight"),
    ("mlp_norm", "pre_feedforward_layernorm.weight"),
];

/// Names of an encoder's tensors within a layer.
const ENCODER: [(&str, &str); 16] = [
    ("q", "attention.self.query.weight"),
    ("k", "attention.self.key.weight"),
    ("v", "attention.self.value.weight"),
    ("out", "attention.output.dense.weight"),
    ("up", "intermediate.dense.weight"),
    ("down", "output.dense.weight"),
    ("q_bias", "attention.self.query.bias"),
    ("k_bias", "attention.self.key.bias"),
    ("v_bias", "attention.self.value.bias"),
    ("out_bias", "attention.output.dense.bias"),
    ("up_bias", "intermediate.dense.bias"),
    ("down_bias", "output.dense.bias"),
    ("attention_norm", "attention.output.LayerNorm.weight"),
    ("attention_norm_bias", "attention.output.LayerNorm.bias"),
    ("mlp_norm", "output.LayerNorm.weight"),
    ("mlp_norm_bias", "output.LayerNorm.bias"),
];

/// Names of tensors outside the layers.
const OUTSIDE: [(&str, &str); 8] = [
    ("embed", "model.embed_tokens.weight"),
    ("norm", "model.norm.weight"),
    ("head", "lm_head.weight"),
    ("embed", "embeddings.word_embeddings.weight"),
    ("positions", "embeddings.position_embeddings.weight"),
    ("types", "embeddings.token_type_embeddings.weight"),
    ("embed_norm", "embeddings.LayerNorm.weight"),
    ("embed_norm_bias", "embeddings.LayerNorm.bias"),
];

impl HuggingFace {
    /// The name of a canonical tensor in this checkpoint.
    fn tensor_name(&self, layer: Option<u32>, name: &str) -> String {
        let find = |table: &[(&str, &'static str)], last: bool| {
            let mut all = table.iter().filter(|(n, _)| *n == name).map(|(_, t)| *t);
            if last { all.next_back() } else { all.next() }.unwrap_or_default()
        };
        let (prefix, inner) = match (&self.architecture, layer) {
            (Architecture::Decoder(_), None) => (String::new(), find(&OUTSIDE, false)),
            (Architecture::Decoder(c), Some(l)) => {
                (format!("model.layers.{l}."), find(&DECODER, c.post_norms))
            }
            (Architecture::Encoder(_), None) => (String::new(), find(&OUTSIDE, true)),
            (Architecture::Encoder(_), Some(l)) => (format!("encoder.layer.{l}."), find(&ENCODER, false)),
        };
        let whole = format!("{prefix}{inner}");
        // An encoder below a head has a prefix.
        let below = format!("bert.{whole}");
        if !self.tensors.contains_key(&whole) && self.tensors.contains_key(&below) { below } else { whole }
    }
}

impl Source for HuggingFace {
    fn path(&self) -> &Path {
        &self.folder
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
        let tensor = self.tensor_name(layer, name);
        let vector = name.ends_with("norm") || name.ends_with("_bias");
        let expected = if vector { vec![cols as usize] } else { vec![rows as usize, cols as usize] };
        let wrong = |path: &Path, got: String| ImportError::Tensor {
            path: path.to_owned(),
            tensor: tensor.clone(),
            expected: format!("{expected:?} in f32, f16 or bf16"),
            got,
        };
        let place = self.tensors.get(&tensor).ok_or_else(|| wrong(&self.folder, "none".into()))?;
        let shard = &self.shards[place.shard];
        if place.shape != expected {
            return Err(wrong(&shard.path, format!("{:?}", place.shape)));
        }
        Ok(Weights {
            path: &shard.path,
            name: tensor,
            rows: rows as usize,
            cols: cols as usize,
            format: place.format,
            bytes: shard.map[place.from..place.from + place.len].into(),
            order: RowOrder::Straight,
        })
    }

    fn tokenizer(&self, given: Option<&Path>) -> Result<Vec<u8>, ImportError> {
        let own = ["tokenizer.json", "tokenizer.model"].map(|name| self.folder.join(name));
        match given.or(own.iter().find(|p| p.exists()).map(PathBuf::as_path)) {
            Some(path) => tokenizer::load(path),
            None => Err(tokenizer::missing(&self.folder)),
        }
    }

    fn text_hints(&self) -> &TextHints {
        &self.hints
    }

    fn release(&self) {
        self.shards.iter().for_each(|s| release(&s.map));
    }

    fn digests(&self) -> Vec<(String, Hash)> {
        let config = digest(Path::new("config.json"), &self.config_bytes);
        std::iter::once(config).chain(self.shards.iter().map(|s| digest_map(&s.path, &s.map))).collect()
    }
}
