//! Tokenizer files: Hugging Face's `tokenizer.json` as it is, every other kind turned into one.
//!
//! What serves and verifies knows `tokenizer.json` only; the same vocabulary gives the same bytes whatever file it came in.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{ImportError, read_small};
use crate::artifact::TOKENIZER_BYTES_MAX;

mod byte_level;
pub(super) mod gguf;
mod llama2c;
mod pieces;
mod sentencepiece;
mod word_pieces;

/// Most bytes of a `tokenizer.bin`; Llama 2's has 434 kB.
const LLAMA2C_BYTES_MAX: u64 = 8 << 20;
/// Most bytes of a SentencePiece model; Gemma's has 4.7 MB.
const SENTENCEPIECE_BYTES_MAX: u64 = 32 << 20;

/// The tokenizer in `path`, as `tokenizer.json`.
pub(super) fn load(path: &Path) -> Result<Vec<u8>, ImportError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => read_small(path, TOKENIZER_BYTES_MAX as u64),
        Some("bin") => llama2c::convert(path, &read_small(path, LLAMA2C_BYTES_MAX)?),
        Some("model") => sentencepiece::convert(path, &read_small(path, SENTENCEPIECE_BYTES_MAX)?),
        Some("gguf") => super::gguf::tokenizer_json(path),
        _ => Err(ImportError::Tokenizer {
            path: path.to_owned(),
            reason: "a tokenizer is a tokenizer.json, a SentencePiece .model, a .gguf, or a llama2.c tokenizer.bin"
                .into(),
        }),
    }
}

/// The tokenizer that lies beside a llama2.c checkpoint.
pub(super) fn beside(checkpoint: &Path) -> Result<Vec<u8>, ImportError> {
    let folder = checkpoint.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name == "tokenizer.json" || (name.starts_with("tok") && name.ends_with(".bin"))
        })
        .collect();
    found.sort();
    match found.as_slice() {
        [one] => load(one),
        [] => Err(missing(checkpoint)),
        _ => Err(ImportError::Tokenizer {
            path: checkpoint.to_owned(),
            reason: "several tokenizers lie beside it; choose one with --tokenizer FILE".into(),
        }),
    }
}

/// There is no tokenizer.
pub(super) fn missing(path: &Path) -> ImportError {
    ImportError::Tokenizer {
        path: path.to_owned(),
        reason: "no tokenizer lies with the weights; give one with --tokenizer FILE (tokenizer.json, a \
                 SentencePiece .model, a .gguf or llama2.c's tokenizer.bin)"
            .into(),
    }
}

/// Whether a piece of a vocabulary is text, and how text becomes it. Numbers as in SentencePiece and GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Text.
    Normal = 1,
    /// Stands for what the vocabulary does not have.
    Unknown = 2,
    /// Never text: only a template or the engine writes it.
    Control = 3,
    /// Text that is one token wherever it appears.
    UserDefined = 4,
    /// Never used.
    Unused = 5,
    /// One byte, `<0x00>` to `<0xFF>`.
    Byte = 6,
}

impl Kind {
    fn from_number(n: u64) -> Option<Kind> {
        use Kind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|k| *k as u64 == n)
    }
}

/// Entries of `added_tokens` in the order of their ids. A token that only a template writes is special. `in_normal_form` says
/// whether a name is looked for in normalised text.
fn added_tokens<'a>(
    tokens: impl Iterator<Item = (&'a str, Kind)>,
    in_normal_form: impl Fn(&str) -> bool,
) -> Vec<Value> {
    let entry = |(id, (content, kind)): (usize, (&str, Kind))| {
        let special = match kind {
            Kind::Unknown | Kind::Control => true,
            Kind::UserDefined => false,
            Kind::Normal | Kind::Unused | Kind::Byte => return None,
        };
        let normalized = !special && in_normal_form(content);
        let token = json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": special});
        (!content.is_empty()).then_some(token)
    };
    tokens.enumerate().filter_map(entry).collect()
}

/// A post-processor that puts one token before a text and one after it.
fn around(first: Option<(u32, &str)>, last: Option<(u32, &str)>) -> Value {
    let special = |t: &(u32, &str)| json!({"SpecialToken": {"id": t.1, "type_id": 0}});
    let text = |name: &str, number: u32| json!({"Sequence": {"id": name, "type_id": number}});
    let mut single: Vec<Value> = first.iter().map(special).collect();
    single.push(text("A", 0));
    single.extend(last.iter().map(special));
    let mut pair = single.clone();
    pair.push(text("B", 1));
    pair.extend(last.iter().map(|t| json!({"SpecialToken": {"id": t.1, "type_id": 1}})));
    let named = |t: (u32, &str)| (t.1.to_owned(), json!({"id": t.1, "ids": [t.0], "tokens": [t.1]}));
    let tokens: serde_json::Map<String, Value> = first.into_iter().chain(last).map(named).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

/// The bytes of a `tokenizer.json`.
fn write(json: &Value) -> Result<Vec<u8>, String> {
    let bytes = serde_json::to_vec(json).map_err(|e| e.to_string())?;
    if bytes.len() > TOKENIZER_BYTES_MAX {
        return Err(format!("as tokenizer.json it has more than {TOKENIZER_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}
