//! A SentencePiece vocabulary, in whatever file it came, as `tokenizer.json`.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Kind, added_tokens, around, write};
use crate::text::charsmap;

/// Most bytes of a piece of text: all its halves are looked up.
const PIECE_MAX: usize = 256;
/// How far below every text the score of a piece lies that text must not become.
const OUT_OF_REACH: f64 = 1e6;

/// A piece: ▁ stands for a space.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f64,
    pub(super) kind: Kind,
}

/// What happens to a text before it is cut into pieces.
#[derive(Clone, Debug)]
pub(super) struct Spaces {
    /// A space is put in front.
    pub(super) prefix: bool,
    /// Spaces at the ends go, runs of them become one.
    pub(super) trim: bool,
    /// SentencePiece's compiled table of replacements, checked.
    pub(super) charsmap: Option<Vec<u8>>,
}

impl Default for Spaces {
    /// As in Llama's vocabularies.
    fn default() -> Spaces {
        Spaces { prefix: true, trim: false, charsmap: None }
    }
}

/// Pieces by id.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    pub(super) pieces: Vec<Piece>,
    pub(super) spaces: Spaces,
    /// Ids of tokens that the post-processor puts around texts.
    pub(super) ends: (Option<u32>, Option<u32>),
}

impl Vocabulary {
    /// As BPE: of all neighbouring pairs that form a piece, the one with the highest score merges first.
    pub(super) fn bpe(&self) -> Result<Vec<u8>, String> {
        let ids = self.ids()?;
        let kind = |id: usize| self.pieces[id].kind;
        let text = |id: usize| self.pieces[id].text.as_str();
        let mut merges: Vec<(usize, usize, usize, usize)> = Vec::new();
        for (id, piece) in self.pieces.iter().enumerate().filter(|(_, p)| p.kind == Kind::Normal) {
            for (at, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(at);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right))
                    && kind(*l) == Kind::Normal
                    && kind(*r) == Kind::Normal
                {
                    merges.push((id, at, *l, *r));
                }
            }
        }
        let score = |id: usize| self.pieces[id].score;
        merges.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)).then_with(|| (a.0, a.1).cmp(&(b.0, b.1))));
        let merges: Vec<[&str; 2]> = merges.iter().map(|(_, _, l, r)| [text(*l), text(*r)]).collect();
        let vocab: serde_json::Map<String, Value> =
            self.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), json!(id))).collect();
        self.json(json!({"type": "BPE", "dropout": null, "unk_token": text(self.unknown()?),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": self.bytes(&ids), "ignore_merges": false, "vocab": vocab, "merges": merges}))
    }

    /// As a unigram model: the pieces with the highest sum of scores.
    pub(super) fn unigram(&self) -> Result<Vec<u8>, String> {
        let ids = self.ids()?;
        let scores = self.pieces.iter().filter(|p| p.kind == Kind::Normal).map(|p| p.score);
        let least = scores.fold(0f64, f64::min) - OUT_OF_REACH;
        // The tokenizers crate looks for every piece in a text: what is no text must never be worth its while.
        let score = |p: &Piece| if p.kind == Kind::Normal { p.score } else { least };
        let vocab: Vec<Value> = self.pieces.iter().map(|p| json!([p.text, score(p)])).collect();
        self.json(json!({"type": "Unigram", "unk_id": self.unknown()?, "vocab": vocab,
            "byte_fallback": self.bytes(&ids)}))
    }

    fn ids(&self) -> Result<HashMap<&str, usize>, String> {
        let mut ids = HashMap::new();
        for (id, piece) in self.pieces.iter().enumerate() {
            if piece.text.len() > PIECE_MAX {
                return Err(format!("piece {id} has {} bytes", piece.text.len()));
            }
            if !piece.score.is_finite() {
                return Err(format!("piece {id} has no score"));
            }
            if let Some(first) = ids.insert(piece.text.as_str(), id) {
                return Err(format!("pieces {first} and {id} are the same"));
            }
        }
        Ok(ids)
    }

    fn unknown(&self) -> Result<usize, String> {
        let unknown = self.pieces.iter().position(|p| p.kind == Kind::Unknown);
        unknown.ok_or_else(|| "no piece stands for what is unknown".to_owned())
    }

    /// Whether there is a piece for every byte.
    fn bytes(&self, ids: &HashMap<&str, usize>) -> bool {
        (0..=255u8).all(|b| ids.contains_key(format!("<0x{b:02X}>").as_str()))
    }

    fn json(&self, model: Value) -> Result<Vec<u8>, String> {
        let mut normalizers = Vec::new();
        if let Some(map) = &self.spaces.charsmap {
            normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": charsmap::base64(map)}));
        }
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        if self.spaces.trim {
            normalizers.push(replace(json!({"Regex": "^ +| +$"}), ""));
            normalizers.push(replace(json!({"Regex": " {2,}"}), " "));
        }
        let mut decoders = vec![
            replace(json!({"String": "▁"}), " "),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.spaces.prefix {
            normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        normalizers.push(replace(json!({"String": " "}), "▁"));
        // A name with ▁ means spaces, which are ▁ only in normalised text; there a prefix would come before the name, too.
        let in_normal_form = |name: &str| !self.spaces.prefix && name.contains('▁');
        let tokens = self.pieces.iter().map(|p| (p.text.as_str(), p.kind));
        let end = |id: Option<u32>| id.and_then(|id| Some((id, self.pieces.get(id as usize)?.text.as_str())));
        let (first, last) = (end(self.ends.0), end(self.ends.1));
        let post = (first.is_some() || last.is_some()).then(|| around(first, last));
        write(&json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added_tokens(tokens, in_normal_form),
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null, "post_processor": post,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": model,
        }))
    }
}
