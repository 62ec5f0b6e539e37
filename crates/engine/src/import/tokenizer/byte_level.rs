//! GPT-2's kind of tokenizer: BPE over bytes, after a pattern has cut the text.
//!
//! A GGUF file names the pattern only. The table holds those whose original `tokenizer.json` is known to be the same; a name that
//! is not in it is refused, for a similar pattern would give other ids on some texts.

use serde_json::{Value, json};

/// Which original a file's name for its pattern means.
pub(super) struct Pattern {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Expressions: each cuts the pieces that the ones before have left.
    cuts: &'static [&'static str],
    /// A piece that is a token is not merged.
    ignore_merges: bool,
    /// Text is brought into Unicode's composed form first.
    compose: bool,
    /// Texts begin with BOS unless the file says otherwise.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PATTERNS: [Pattern; 7] = [
    // What llama.cpp does for files whose converter did not know the tokenizer.
    Pattern {
        names: &["default"],
        cuts: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        compose: false,
        add_bos: false,
    },
    Pattern {
        names: &["gpt-2", "phi-2"],
        cuts: &[GPT2],
        ignore_merges: false,
        compose: false,
        add_bos: false,
    },
    Pattern {
        names: &["smollm", "starcoder"],
        cuts: &[r"\p{N}", GPT2],
        ignore_merges: false,
        compose: false,
        add_bos: false,
    },
    Pattern {
        names: &["llama-bpe", "llama3", "llama-v3"],
        cuts: &[LLAMA3],
        ignore_merges: true,
        compose: false,
        add_bos: true,
    },
    Pattern { names: &["qwen2"], cuts: &[QWEN2], ignore_merges: false, compose: true, add_bos: false },
    Pattern { names: &["tekken"], cuts: &[TEKKEN], ignore_merges: true, compose: false, add_bos: true },
    Pattern { names: &["gpt-4o"], cuts: &[GPT4O], ignore_merges: false, compose: false, add_bos: false },
];

/// The pattern of a name, if it is known.
pub(super) fn pattern(name: &str) -> Option<&'static Pattern> {
    PATTERNS.iter().find(|p| p.names.contains(&name))
}

/// Names of all patterns, for messages.
pub(super) fn names() -> String {
    let all: Vec<&str> = PATTERNS.iter().flat_map(|p| p.names).copied().collect();
    all.join(", ")
}

/// The two tokens of a merge. The first may begin with a space, but not hold one further on.
fn halves(merge: &str) -> Option<[&str; 2]> {
    let second = merge.char_indices().nth(1)?.0;
    let at = second + merge.get(second..)?.find(' ')?;
    Some([&merge[..at], &merge[at + 1..]])
}

impl Pattern {
    /// A tokenizer of these tokens, by id; a merge names two of them with a space between.
    pub(super) fn json(
        &self,
        tokens: &[&str],
        merges: &[&str],
        added: Vec<Value>,
        post: Option<Value>,
    ) -> Result<Value, String> {
        let mut vocab = serde_json::Map::new();
        for (id, token) in tokens.iter().enumerate() {
            if vocab.insert((*token).to_owned(), json!(id)).is_some() {
                return Err(format!("token {id} is there twice"));
            }
        }
        let known = |token: &str| vocab.contains_key(token);
        let mut pairs = Vec::with_capacity(merges.len());
        for (i, merge) in merges.iter().enumerate() {
            let pair = halves(merge).filter(|[l, r]| known(l) && known(r) && known(&[*l, *r].concat()));
            pairs.push(pair.ok_or_else(|| format!("merge {i} is not of two tokens to a third"))?);
        }
        let cut = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut before: Vec<Value> = self.cuts.iter().map(cut).collect();
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        before.push(bytes.clone());
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": self.compose.then(|| json!({"type": "NFC"})),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": before},
            "post_processor": post, "decoder": bytes,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.ignore_merges, "vocab": vocab, "merges": pairs},
        }))
    }
}
