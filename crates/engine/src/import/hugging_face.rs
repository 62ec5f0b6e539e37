//! Hugging Face folders: `config.json`, one or several `*.safetensors`, `tokenizer.json` or else `tokenizer.model`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use assay_core::id::Hash;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;

use super::source::{Config, Format, RowOrder, Source, TextHints, Weights};
use super::{ImportError, digest, map, read_small, tokenizer};

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
    config: Config,
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
        let config = read_config(&path, &config_bytes, folder)?;
        let files = weight_files(folder)?;
        let mut shards = Vec::new();
        let mut tensors = BTreeMap::new();
        for path in files {
            let map = map(&path)?;
            index(&path, &map, shards.len(), &mut tensors)?;
            shards.push(Shard { path, map });
        }
        let hints = read_hints(folder)?;
        Ok(HuggingFace { folder: folder.to_owned(), config, config_bytes, shards, tensors, hints })
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

fn read_config(path: &Path, bytes: &[u8], folder: &Path) -> Result<Config, ImportError> {
    let malformed = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
    let json: Value = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    let unsupported = |field: &str, reason: &str| ImportError::Unsupported {
        path: path.to_owned(),
        field: field.to_owned(),
        got: json.get(field).map(Value::to_string).unwrap_or_else(|| "missing".into()),
        reason: reason.to_owned(),
    };
    if json["architectures"][0] != "LlamaForCausalLM" {
        return Err(unsupported("architectures", "this version imports LlamaForCausalLM"));
    }
    if !matches!(json["hidden_act"].as_str(), None | Some("silu")) {
        return Err(unsupported("hidden_act", "this version imports silu"));
    }
    for field in ["attention_bias", "mlp_bias", "rope_interleaved"] {
        if json[field] == true {
            return Err(unsupported(field, "this version imports models that say false"));
        }
    }
    for field in ["rope_scaling", "quantization_config", "sliding_window"] {
        if !json[field].is_null() {
            return Err(unsupported(field, "this version imports models without it"));
        }
    }
    let rope = &json["rope_parameters"];
    if !matches!(rope["rope_type"].as_str(), None | Some("default")) {
        return Err(unsupported("rope_parameters", "this version imports the default rotary embedding"));
    }
    let number = |field: &str| -> Result<u32, ImportError> {
        let v = json[field].as_u64().and_then(|v| u32::try_from(v).ok());
        v.filter(|v| (1..=1 << 24).contains(v))
            .ok_or_else(|| malformed(format!("{field} is {}", json[field])))
    };
    let optional = |field: &str, otherwise: u32| -> Result<u32, ImportError> {
        if json[field].is_null() { Ok(otherwise) } else { number(field) }
    };
    let real = |v: &Value, otherwise: f64, field: &str| -> Result<f64, ImportError> {
        let v = if v.is_null() { Some(otherwise) } else { v.as_f64() };
        v.filter(|v| *v > 0.0 && *v < 1e12).ok_or_else(|| malformed(format!("{field} is no positive number")))
    };
    let (dim, heads) = (number("hidden_size")?, number("num_attention_heads")?);
    let vocabulary = number("vocab_size")?;
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok()).filter(|v| *v < vocabulary);
    let ids = |v: &Value| -> Vec<u32> {
        v.as_array().map_or_else(|| id(v).into_iter().collect(), |a| a.iter().filter_map(id).collect())
    };
    let mut eos = ids(&json["eos_token_id"]);
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        let bytes = read_small(&generation, JSON_MAX)?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|e| ImportError::Malformed { path: generation, reason: e.to_string() })?;
        eos.extend(ids(&json["eos_token_id"]));
    }
    let theta = if rope["rope_theta"].is_null() { &json["rope_theta"] } else { &rope["rope_theta"] };
    Ok(Config {
        dim,
        layers: number("num_hidden_layers")?,
        heads,
        kv_heads: optional("num_key_value_heads", heads)?,
        head_dim: optional("head_dim", dim / heads)?,
        hidden: number("intermediate_size")?,
        vocabulary,
        context: optional("max_position_embeddings", 2048)?,
        rope_theta: real(theta, 10_000.0, "rope_theta")?,
        epsilon: real(&json["rms_norm_eps"], 1e-6, "rms_norm_eps")?,
        tied: json["tie_word_embeddings"] == true,
        bos: id(&json["bos_token_id"]),
        eos,
    })
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

/// The name of a canonical tensor in a checkpoint.
fn checkpoint_name(layer: Option<u32>, name: &str) -> String {
    let inner = match name {
        "embed" => return "model.embed_tokens.weight".into(),
        "norm" => return "model.norm.weight".into(),
        "head" => return "lm_head.weight".into(),
        "attention_norm" => "input_layernorm",
        "mlp_norm" => "post_attention_layernorm",
        "q" => "self_attn.q_proj",
        "k" => "self_attn.k_proj",
        "v" => "self_attn.v_proj",
        "out" => "self_attn.o_proj",
        "gate" => "mlp.gate_proj",
        "up" => "mlp.up_proj",
        other => {
            debug_assert_eq!(other, "down");
            "mlp.down_proj"
        }
    };
    format!("model.layers.{}.{inner}.weight", layer.unwrap_or(0))
}

impl Source for HuggingFace {
    fn path(&self) -> &Path {
        &self.folder
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn weights(
        &self,
        layer: Option<u32>,
        name: &str,
        rows: u32,
        cols: u32,
    ) -> Result<Weights<'_>, ImportError> {
        let tensor = checkpoint_name(layer, name);
        let vector = matches!(name, "norm" | "attention_norm" | "mlp_norm");
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
            bytes: &shard.map[place.from..place.from + place.len],
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

    fn digests(&self) -> Vec<(String, Hash)> {
        let config = digest(Path::new("config.json"), &self.config_bytes);
        std::iter::once(config).chain(self.shards.iter().map(|s| digest(&s.path, &s.map))).collect()
    }
}
