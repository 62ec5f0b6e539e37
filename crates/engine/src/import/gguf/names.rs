//! GGUF's vocabulary: what tensors and metadata are called, for every architecture alike.
//!
//! Names as in ggml's `gguf-py/gguf/constants.py`. The tables hold what the architectures of [`ARCHITECTURES`] use; a tensor that
//! an architecture's list does not name is refused, so that nothing that changes a model is ever left out silently.
//!
//! Numbers are not always those of Hugging Face's files: converters permute rows ([`Rotary`]), and add 1 to the gains of Gemma's norms.

/// In which order a file has the rows of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotary {
    /// Rotary pairs side by side: the converter permuted the rows.
    Pairs,
    /// Rotary pairs half a head apart, as in Hugging Face's files.
    Halves,
}

/// A model family.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// `general.architecture`, which is also the prefix of its metadata.
    pub(super) name: &'static str,
    /// Order of queries' and keys' rows.
    pub(super) rotary: Rotary,
    /// Canonical names of tensors in each layer beside [`PLAIN`].
    pub(super) more: &'static [&'static str],
}

/// Tensors of each layer that all families have.
pub(super) const PLAIN: [&str; 9] =
    ["attention_norm", "q", "k", "v", "out", "mlp_norm", "gate", "up", "down"];

/// The families. Mistral's models say `llama`.
pub(super) const ARCHITECTURES: [Architecture; 6] = [
    Architecture { name: "llama", rotary: Rotary::Pairs, more: &[] },
    Architecture { name: "qwen2", rotary: Rotary::Halves, more: &["q_bias", "k_bias", "v_bias"] },
    Architecture { name: "qwen3", rotary: Rotary::Halves, more: &["q_norm", "k_norm"] },
    Architecture { name: "gemma", rotary: Rotary::Halves, more: &[] },
    Architecture { name: "gemma2", rotary: Rotary::Halves, more: &["post_attention_norm", "post_mlp_norm"] },
    Architecture {
        name: "gemma3",
        rotary: Rotary::Halves,
        more: &["q_norm", "k_norm", "post_attention_norm", "post_mlp_norm"],
    },
];

/// Tensors outside the layers: canonical name, GGUF's name.
const OUTER: [(&str, &str); 4] = [
    ("embed", "token_embd.weight"),
    ("norm", "output_norm.weight"),
    ("head", "output.weight"),
    // Factors by which Llama 3 slows its rotary angles.
    ("rope_factors", "rope_freqs.weight"),
];

/// Tensors of a layer: canonical name, GGUF's name after `blk.N.`.
const INNER: [(&str, &str); 20] = [
    ("attention_norm", "attn_norm.weight"),
    ("q", "attn_q.weight"),
    ("k", "attn_k.weight"),
    ("v", "attn_v.weight"),
    ("out", "attn_output.weight"),
    ("q_bias", "attn_q.bias"),
    ("k_bias", "attn_k.bias"),
    ("v_bias", "attn_v.bias"),
    ("out_bias", "attn_output.bias"),
    ("q_norm", "attn_q_norm.weight"),
    ("k_norm", "attn_k_norm.weight"),
    ("post_attention_norm", "post_attention_norm.weight"),
    ("mlp_norm", "ffn_norm.weight"),
    ("gate", "ffn_gate.weight"),
    ("up", "ffn_up.weight"),
    ("down", "ffn_down.weight"),
    ("gate_bias", "ffn_gate.bias"),
    ("up_bias", "ffn_up.bias"),
    ("down_bias", "ffn_down.bias"),
    ("post_mlp_norm", "post_ffw_norm.weight"),
];

/// GGUF's name of a canonical tensor.
pub(super) fn tensor(layer: Option<u32>, name: &str) -> Option<String> {
    let find = |table: &[(&str, &'static str)]| table.iter().find(|t| t.0 == name).map(|t| t.1);
    match layer {
        None => find(&OUTER).map(str::to_owned),
        Some(layer) => find(&INNER).map(|name| format!("blk.{layer}.{name}")),
    }
}

/// The canonical name, and layer, of a tensor in a file.
pub(super) fn canonical(tensor: &str) -> Option<(Option<u32>, &'static str)> {
    if let Some((name, _)) = OUTER.iter().find(|t| t.1 == tensor) {
        return Some((None, name));
    }
    let (layer, inner) = tensor.strip_prefix("blk.")?.split_once('.')?;
    // One spelling of a number only: `blk.01` is no layer.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    INNER.iter().find(|t| t.1 == inner).map(|(name, _)| (Some(layer), *name))
}

/// Metadata of the model, after `{architecture}.`.
pub(super) mod key {
    pub(in super::super) const CONTEXT: &str = "context_length";
    pub(in super::super) const WIDTH: &str = "embedding_length";
    pub(in super::super) const LAYERS: &str = "block_count";
    pub(in super::super) const HIDDEN: &str = "feed_forward_length";
    pub(in super::super) const HEADS: &str = "attention.head_count";
    pub(in super::super) const KV_HEADS: &str = "attention.head_count_kv";
    pub(in super::super) const KEY_LENGTH: &str = "attention.key_length";
    pub(in super::super) const VALUE_LENGTH: &str = "attention.value_length";
    pub(in super::super) const EPSILON: &str = "attention.layer_norm_rms_epsilon";
    pub(in super::super) const ROPE_BASE: &str = "rope.freq_base";
    pub(in super::super) const ROPE_NUMBERS: &str = "rope.dimension_count";
    pub(in super::super) const ROPE_SCALING: &str = "rope.scaling.type";
    pub(in super::super) const ROPE_FACTOR: &str = "rope.scaling.factor";
    /// Old files' name for a linear factor.
    pub(in super::super) const ROPE_SCALE: &str = "rope.scale_linear";
    /// Gemma 3's converter leaves the pattern and the base of its local layers out: they are those of the family.
    pub(in super::super) const WINDOW: &str = "attention.sliding_window";
    pub(in super::super) const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";
    pub(in super::super) const LOCAL_ROPE_BASE: &str = "rope.freq_base_swa";
    pub(in super::super) const ATTENTION_CAP: &str = "attn_logit_softcapping";
    pub(in super::super) const LOGIT_CAP: &str = "final_logit_softcapping";
    pub(in super::super) const EXPERTS: &str = "expert_count";
    pub(in super::super) const CAUSAL: &str = "attention.causal";
    pub(in super::super) const CLAMP: &str = "attention.clamp_kqv";
    pub(in super::super) const ATTENTION_SCALE: &str = "attention.scale";
    pub(in super::super) const LOGIT_SCALE: &str = "logit_scale";
    pub(in super::super) const RESIDUAL_SCALE: &str = "residual_scale";
    pub(in super::super) const EMBEDDING_SCALE: &str = "embedding_scale";
}

/// Metadata outside the architecture.
pub(in crate::import) mod general {
    pub(in crate::import) const ARCHITECTURE: &str = "general.architecture";
    pub(in crate::import) const SPLIT_COUNT: &str = "split.count";
    pub(in crate::import) const SPLIT_NUMBER: &str = "split.no";
    pub(in crate::import) const SPLIT_TENSORS: &str = "split.tensors.count";
    pub(in crate::import) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
    pub(in crate::import) const TOKENIZER: &str = "tokenizer.ggml.model";
    pub(in crate::import) const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";
    pub(in crate::import) const TOKENS: &str = "tokenizer.ggml.tokens";
    pub(in crate::import) const SCORES: &str = "tokenizer.ggml.scores";
    pub(in crate::import) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
    pub(in crate::import) const MERGES: &str = "tokenizer.ggml.merges";
    pub(in crate::import) const BOS: &str = "tokenizer.ggml.bos_token_id";
    pub(in crate::import) const EOS: &str = "tokenizer.ggml.eos_token_id";
    pub(in crate::import) const END_OF_TURN: &str = "tokenizer.ggml.eot_token_id";
    pub(in crate::import) const END_OF_MESSAGE: &str = "tokenizer.ggml.eom_token_id";
    pub(in crate::import) const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
    /// As it is spelled.
    pub(in crate::import) const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";
    pub(in crate::import) const CLASS: &str = "tokenizer.ggml.cls_token_id";
    pub(in crate::import) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    pub(in crate::import) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    pub(in crate::import) const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
    pub(in crate::import) const TRIM_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
    pub(in crate::import) const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        for (name, _) in OUTER {
            assert_eq!(canonical(&tensor(None, name).unwrap()), Some((None, name)));
        }
        for (name, _) in INNER {
            assert_eq!(canonical(&tensor(Some(12), name).unwrap()), Some((Some(12), name)));
        }
        for a in &ARCHITECTURES {
            assert!(PLAIN.iter().chain(a.more).all(|n| tensor(Some(0), n).is_some()), "{}", a.name);
        }
        assert_eq!(canonical("blk.01.attn_q.weight"), None);
        assert_eq!(canonical("blk.0.attn_qkv.weight"), None);
    }
}
