//! `config.json` of Hugging Face checkpoints: what each architecture's fields mean.

use std::path::Path;

use serde_json::Value;

use super::JSON_MAX;
use crate::import::source::{Activation, Architecture, Config, EncoderConfig, Local, RopeScaling};
use crate::import::{ImportError, read_small};
use crate::program::Pooling;

/// Architectures that can be imported, for messages.
const KNOWN: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GemmaForCausalLM, \
                     Gemma2ForCausalLM, Gemma3ForCausalLM, BertModel and BertForMaskedLM are";

/// A configuration with what its messages need.
struct Json<'a> {
    path: &'a Path,
    json: &'a Value,
}

/// Reads the configuration of the checkpoint in `folder`.
pub(super) fn read(path: &Path, bytes: &[u8], folder: &Path) -> Result<Architecture, ImportError> {
    let json: Value = serde_json::from_slice(bytes)
        .map_err(|e| ImportError::Malformed { path: path.to_owned(), reason: e.to_string() })?;
    let c = Json { path, json: &json };
    let name = json["architectures"][0].as_str().unwrap_or_default();
    c.refuse_unless_null("quantization_config")?;
    match name {
        "LlamaForCausalLM" | "MistralForCausalLM" | "Qwen2ForCausalLM" | "Qwen3ForCausalLM"
        | "GemmaForCausalLM" | "Gemma2ForCausalLM" | "Gemma3ForCausalLM" => {
            Ok(Architecture::Decoder(c.decoder(name, folder)?))
        }
        "BertModel" | "BertForMaskedLM" => Ok(Architecture::Encoder(c.encoder(folder)?)),
        _ => Err(c.unsupported("architectures", KNOWN)),
    }
}

impl Json<'_> {
    fn malformed(&self, reason: String) -> ImportError {
        ImportError::Malformed { path: self.path.to_owned(), reason }
    }

    fn unsupported(&self, field: &str, reason: &str) -> ImportError {
        ImportError::Unsupported {
            path: self.path.to_owned(),
            field: field.to_owned(),
            got: self.json.get(field).map_or_else(|| "missing".into(), Value::to_string),
            reason: reason.to_owned(),
        }
    }

    fn refuse_unless_null(&self, field: &str) -> Result<(), ImportError> {
        if self.json[field].is_null() {
            return Ok(());
        }
        Err(self.unsupported(field, "models without it are"))
    }

    fn number(&self, field: &str) -> Result<u32, ImportError> {
        let v = self.json[field].as_u64().and_then(|v| u32::try_from(v).ok());
        v.filter(|v| (1..=1 << 24).contains(v))
            .ok_or_else(|| self.malformed(format!("{field} is {}", self.json[field])))
    }

    fn number_or(&self, field: &str, otherwise: u32) -> Result<u32, ImportError> {
        if self.json[field].is_null() { Ok(otherwise) } else { self.number(field) }
    }

    fn real(&self, v: &Value, otherwise: f64, field: &str) -> Result<f64, ImportError> {
        let v = if v.is_null() { Some(otherwise) } else { v.as_f64() };
        v.filter(|v| *v > 0.0 && *v < 1e12)
            .ok_or_else(|| self.malformed(format!("{field} is no positive number")))
    }

    /// A number that null turns off. Files that do not have the field mean the family's number, if it has one.
    fn real_unless_null(&self, field: &str, family: Option<f64>) -> Result<Option<f64>, ImportError> {
        match self.json.get(field) {
            None => Ok(family),
            Some(Value::Null) => Ok(None),
            Some(v) => self.real(v, 0.0, field).map(Some),
        }
    }

    fn activation(&self, field: &str) -> Result<Activation, ImportError> {
        match self.json[field].as_str() {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some(_) => Err(self.unsupported(field, "silu, gelu and gelu_pytorch_tanh are")),
        }
    }

    fn decoder(&self, name: &str, folder: &Path) -> Result<Config, ImportError> {
        let json = self.json;
        let gemma = name.starts_with("Gemma");
        let (gemma2, gemma3) = (name.starts_with("Gemma2"), name.starts_with("Gemma3"));
        let qwen2 = name.starts_with("Qwen2");
        // Qwen 2 has biases without saying so; in the others the field means biases of the output too.
        if json["attention_bias"] == true && !qwen2 {
            return Err(self.unsupported("attention_bias", "models that say false are"));
        }
        for field in ["mlp_bias", "rope_interleaved", "use_bidirectional_attention"] {
            if json[field] == true {
                return Err(self.unsupported(field, "models that say false are"));
            }
        }
        let (dim, heads) = (self.number("hidden_size")?, self.number("num_attention_heads")?);
        let (layers, vocabulary) = (self.number("num_hidden_layers")?, self.number("vocab_size")?);
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
        let head_dim = match name {
            // These say nothing when it is this.
            "GemmaForCausalLM" | "Gemma2ForCausalLM" | "Gemma3ForCausalLM" => {
                self.number_or("head_dim", 256)?
            }
            "Qwen3ForCausalLM" => self.number_or("head_dim", 128)?,
            _ => self.number_or("head_dim", dim / heads)?,
        };
        let activation = if gemma {
            match (json["hidden_activation"].as_str(), json["hidden_act"].as_str()) {
                (Some(_), _) => self.activation("hidden_activation")?,
                // The first Gemma has the other field, says gelu there and means the approximation; the others ignore it.
                (None, Some(act)) if !gemma2 && !gemma3 && act != "gelu" => self.activation("hidden_act")?,
                (None, _) => Activation::GeluTanh,
            }
        } else {
            self.activation("hidden_act")?
        };
        if gemma3 {
            // The reference reads this field of Gemma 3 and does nothing with it.
            self.refuse_unless_null("attn_logit_softcapping")?;
        }
        // What the reference bounds scores and logits of Gemma 2 with when a file says nothing.
        let caps = if gemma2 { (Some(50.0), Some(30.0)) } else { (None, None) };
        let (rope_theta, rope_scaling, local_theta) = self.rope(gemma3)?;
        Ok(Config {
            dim,
            layers,
            heads,
            kv_heads: self.number_or("num_key_value_heads", heads)?,
            head_dim,
            hidden: self.number("intermediate_size")?,
            vocabulary,
            context: self.number_or("max_position_embeddings", if gemma { 8192 } else { 2048 })?,
            rope_theta,
            rope_scaling,
            epsilon: self.real(&json["rms_norm_eps"], 1e-6, "rms_norm_eps")?,
            gain_plus: if gemma { 1.0 } else { 0.0 },
            activation,
            qkv_bias: qwen2,
            qk_norm: name.starts_with("Qwen3") || gemma3,
            post_norms: gemma2 || gemma3,
            local: self.local(name, layers, local_theta)?,
            query_scale: if gemma2 || gemma3 {
                Some(self.real(&json["query_pre_attn_scalar"], 256.0, "query_pre_attn_scalar")?)
            } else {
                None
            },
            attention_cap: self.real_unless_null("attn_logit_softcapping", caps.0)?.filter(|_| gemma2),
            logit_cap: self.real_unless_null("final_logit_softcapping", caps.1)?.filter(|_| gemma2 || gemma3),
            // The reference multiplies by this number as bfloat16 or float32 has it: the difference is below 2^-8 and
            // the embedding's scale does not matter after the first norm but beside what the layers add.
            embedding_factor: gemma.then(|| libm::sqrt(f64::from(dim))),
            tied: json["tie_word_embeddings"] == true || (gemma && json["tie_word_embeddings"].is_null()),
            bos: id(&json["bos_token_id"]),
            eos,
        })
    }

    /// Base, scaling, and the base of layers with a window where it is another.
    fn rope(&self, gemma3: bool) -> Result<(f64, RopeScaling, Option<f64>), ImportError> {
        let json = self.json;
        let parameters = &json["rope_parameters"];
        // One set for all layers, or one for each kind of layer; older files have two fields.
        let global = if parameters["full_attention"].is_object() {
            &parameters["full_attention"]
        } else if parameters.is_object() {
            parameters
        } else {
            &json["rope_scaling"]
        };
        let theta = if global["rope_theta"].is_null() { &json["rope_theta"] } else { &global["rope_theta"] };
        let theta = self.real(theta, if gemma3 { 1e6 } else { 1e4 }, "rope_theta")?;
        let local = &parameters["sliding_attention"]["rope_theta"];
        let local = if local.is_null() { &json["rope_local_base_freq"] } else { local };
        let local = match (local.is_null(), gemma3) {
            (true, false) => None,
            _ => Some(self.real(local, 1e4, "rope_local_base_freq")?),
        };
        let kind = |of: &'_ Value| -> Option<String> {
            let named = of["rope_type"].as_str().or(of["type"].as_str());
            // A factor without a type says neither that there is scaling nor that there is none.
            named.or(of["factor"].is_null().then_some("default")).map(str::to_owned)
        };
        let field = if parameters.is_object() { "rope_parameters" } else { "rope_scaling" };
        // Only angles of layers that see everything are ever slowed down.
        if kind(&parameters["sliding_attention"]).as_deref() != Some("default") {
            return Err(self.unsupported(field, "the type default of sliding_attention is"));
        }
        for partial in [&global["partial_rotary_factor"], &json["partial_rotary_factor"]] {
            if !partial.is_null() && partial.as_f64() != Some(1.0) {
                return Err(self.unsupported(field, "a partial_rotary_factor of 1 is"));
            }
        }
        let part = |field: &str| self.real(&global[field], 0.0, field);
        let scaling = match kind(global).as_deref() {
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear(part("factor")?),
            Some("llama3") => RopeScaling::Llama3 {
                factor: part("factor")?,
                low: part("low_freq_factor")?,
                high: part("high_freq_factor")?,
                original: part("original_max_position_embeddings")?,
            },
            _ => return Err(self.unsupported(field, "the types default, linear and llama3 are")),
        };
        Ok((theta, scaling, local))
    }

    fn local(&self, name: &str, layers: u32, theta: Option<f64>) -> Result<Option<Local>, ImportError> {
        let json = self.json;
        let off = name.starts_with("Qwen") && json["use_sliding_window"] != true;
        if json.get("sliding_window") == Some(&Value::Null)
            || off
            || name.starts_with("Llama")
            || name == "GemmaForCausalLM"
        {
            return Ok(None);
        }
        // Null says that there is none; nothing says that it is the one of every family that has one.
        let window = self.number_or("sliding_window", 4096)?;
        let layers: Vec<bool> = if let Some(types) = json["layer_types"].as_array() {
            // The reference gives every layer of Mistral the window, whatever the file says.
            let known = |t: &Value| {
                *t == "sliding_attention" || *t == "full_attention" && !name.starts_with("Mistral")
            };
            if !types.iter().all(known) {
                return Err(self.unsupported(
                    "layer_types",
                    "sliding_attention and, but for Mistral, full_attention are",
                ));
            }
            types.iter().map(|t| *t == "sliding_attention").collect()
        } else if name.starts_with("Gemma3") {
            let every = self.number_or("sliding_window_pattern", 6)?;
            (0..layers).map(|l| (l + 1) % every != 0).collect()
        } else if name.starts_with("Gemma2") {
            (0..layers).map(|l| l % 2 == 0).collect()
        } else if name.starts_with("Qwen") {
            let from = json["max_window_layers"].as_u64().unwrap_or(28);
            (0..layers).map(|l| u64::from(l) >= from).collect()
        } else {
            vec![true; layers as usize]
        };
        Ok(layers.contains(&true).then_some(Local { window, layers, rope_theta: theta }))
    }

    fn encoder(&self, folder: &Path) -> Result<EncoderConfig, ImportError> {
        let json = self.json;
        if !matches!(json["position_embedding_type"].as_str(), None | Some("absolute")) {
            return Err(self.unsupported("position_embedding_type", "absolute is"));
        }
        for field in ["is_decoder", "add_cross_attention"] {
            if json[field] == true {
                return Err(self.unsupported(field, "models that say false are"));
            }
        }
        let says = !json["hidden_act"].is_null();
        let activation = if says { self.activation("hidden_act")? } else { Activation::Gelu };
        if activation == Activation::Silu {
            return Err(self.unsupported("hidden_act", "gelu and gelu_new are"));
        }
        let positions = self.number("max_position_embeddings")?;
        // sentence-transformers may stop earlier than the positions allow.
        let limit = self.beside(folder, "sentence_bert_config.json")?["max_seq_length"].as_u64();
        let context = limit.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 2);
        Ok(EncoderConfig {
            dim: self.number("hidden_size")?,
            layers: self.number("num_hidden_layers")?,
            heads: self.number("num_attention_heads")?,
            hidden: self.number("intermediate_size")?,
            vocabulary: self.number("vocab_size")?,
            positions,
            context: context.unwrap_or(positions).min(positions),
            token_types: self.number_or("type_vocab_size", 2)?,
            activation,
            epsilon: self.real(&json["layer_norm_eps"], 1e-12, "layer_norm_eps")?,
            pooling: self.pooling(folder)?,
        })
    }

    /// The pooling that sentence-transformers' files say; without them the first token's vector is BERT's.
    fn pooling(&self, folder: &Path) -> Result<Pooling, ImportError> {
        let json = self.beside(folder, "1_Pooling/config.json")?;
        let on = |field: &str| json[field] == true;
        let others = [
            "pooling_mode_max_tokens",
            "pooling_mode_mean_sqrt_len_tokens",
            "pooling_mode_weightedmean_tokens",
        ];
        if let Some(other) = others.into_iter().find(|f| on(f)) {
            return Err(ImportError::Unsupported {
                path: folder.join("1_Pooling/config.json"),
                field: other.to_owned(),
                got: "true".into(),
                reason: "pooling by the first or last token or by the mean is".into(),
            });
        }
        Ok(if on("pooling_mode_mean_tokens") {
            Pooling::Mean
        } else if on("pooling_mode_lasttoken") {
            Pooling::Last
        } else {
            Pooling::First
        })
    }

    /// A JSON file of the folder; null if there is none.
    fn beside(&self, folder: &Path, name: &str) -> Result<Value, ImportError> {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&read_small(&path, JSON_MAX)?)
            .map_err(|e| ImportError::Malformed { path, reason: e.to_string() })
    }
}
