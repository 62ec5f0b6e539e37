//! Tokenizer files: Hugging Face's `tokenizer.json` as it is, llama2.c's `tokenizer.bin` turned into one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{ImportError, read_small};
use crate::artifact::TOKENIZER_BYTES_MAX;

/// Most bytes of a piece.
const PIECE_MAX: usize = 256;
/// Most bytes of a `tokenizer.bin`; Llama 2's has 434 kB.
const LLAMA2C_BYTES_MAX: u64 = 8 << 20;

/// The tokenizer in `path`, as `tokenizer.json`.
pub(super) fn load(path: &Path) -> Result<Vec<u8>, ImportError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => read_small(path, TOKENIZER_BYTES_MAX as u64),
        Some("bin") => from_llama2c(path, &read_small(path, LLAMA2C_BYTES_MAX)?),
        _ => Err(ImportError::Tokenizer {
            path: path.to_owned(),
            reason: "a tokenizer is a tokenizer.json, or a llama2.c tokenizer.bin".into(),
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
        reason: "no tokenizer lies with the weights; give one with --tokenizer FILE (tokenizer.json or tokenizer.bin)"
            .into(),
    }
}

/// llama2.c's format: the longest piece's length, then for each id a score (f32), a length and that many bytes. It is a
/// SentencePiece BPE model: of all neighbouring pairs that form a piece, the one with the highest score merges first.
fn from_llama2c(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, ImportError> {
    let fail = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
    let mut rest = bytes.get(4..).ok_or_else(|| fail("it is cut off".into()))?;
    let mut pieces: Vec<(String, f32)> = Vec::new();
    while !rest.is_empty() {
        let id = pieces.len();
        let cut = || fail(format!("piece {id} is cut off"));
        let (score, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > PIECE_MAX || length > after.len() {
            return Err(fail(format!("piece {id} has {length} bytes")));
        }
        let (piece, after) = after.split_at(length);
        let piece = std::str::from_utf8(piece).map_err(|_| fail(format!("piece {id} is not UTF-8")))?;
        let score = f32::from_le_bytes(*score);
        if score.is_nan() {
            return Err(fail(format!("piece {id} has no score")));
        }
        pieces.push((piece.to_owned(), score));
        rest = after;
    }
    if pieces.len() < 259 {
        return Err(fail(format!(
            "{} pieces; the three special ones and 256 bytes are needed at least",
            pieces.len()
        )));
    }
    to_json(pieces).ok_or_else(|| fail("two pieces are the same".into()))
}

fn to_json(pieces: Vec<(String, f32)>) -> Option<Vec<u8>> {
    // Ids 0 to 2 are <unk>, <s> and </s>, written with line breaks by llama2.c; spaces stand for SentencePiece's ▁.
    let name = |id: usize, piece: &str| match id {
        0 => "<unk>".to_owned(),
        1 => "<s>".to_owned(),
        2 => "</s>".to_owned(),
        _ => piece.replace(' ', "▁"),
    };
    let named: Vec<(String, f32)> = pieces.iter().enumerate().map(|(id, (p, s))| (name(id, p), *s)).collect();
    let ids: HashMap<&str, usize> = named.iter().enumerate().map(|(id, (p, _))| (p.as_str(), id)).collect();
    if ids.len() != named.len() {
        return None;
    }
    let mut merges: Vec<(usize, usize, usize, usize)> = Vec::new();
    for (id, (piece, _)) in named.iter().enumerate().skip(3) {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((id, at, *l, *r));
            }
        }
    }
    merges.sort_by(|a, b| named[b.0].1.total_cmp(&named[a.0].1).then_with(|| (a.0, a.1).cmp(&(b.0, b.1))));
    let merges: Vec<[&str; 2]> = merges.iter().map(|(_, _, l, r)| [&*named[*l].0, &*named[*r].0]).collect();
    let vocab: serde_json::Map<String, serde_json::Value> =
        named.iter().enumerate().map(|(id, (p, _))| (p.clone(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": named[id].0, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    });
    serde_json::to_vec(&tokenizer).ok()
}
