//! SentencePiece's `.model`: a protocol buffer, of which only what changes ids or text is read.
//!
//! Fields as in `sentencepiece_model.proto`. Lengths are believed only as far as bytes are there; unknown fields are skipped.

use std::path::Path;

use super::super::ImportError;
use super::Kind;
use super::pieces::{Piece, Spaces, Vocabulary};
use crate::text::charsmap;

/// Most pieces.
const PIECES_MAX: usize = 1 << 21;

/// Numbers of fields.
mod field {
    pub(super) const PIECE: u64 = 1;
    pub(super) const TRAINER: u64 = 2;
    pub(super) const NORMALIZER: u64 = 3;
    pub(super) const DENORMALIZER: u64 = 5;
    pub(super) const PIECE_TEXT: u64 = 1;
    pub(super) const PIECE_SCORE: u64 = 2;
    pub(super) const PIECE_TYPE: u64 = 3;
    pub(super) const MODEL_TYPE: u64 = 3;
    pub(super) const SPACE_AS_SUFFIX: u64 = 24;
    pub(super) const CHARSMAP: u64 = 2;
    pub(super) const DUMMY_PREFIX: u64 = 3;
    pub(super) const TRIM_SPACES: u64 = 4;
    pub(super) const ESCAPE_SPACES: u64 = 5;
}

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// A field's value.
#[derive(Clone, Copy)]
enum Value<'a> {
    Whole(u64),
    Fixed32([u8; 4]),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn whole(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 127).checked_shl(7 * i)?;
            if byte & 128 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.whole()?;
        let value = match tag & 7 {
            0 => Value::Whole(self.whole()?),
            1 => {
                self.0 = self.0.get(8..)?;
                Value::Fixed64
            }
            2 => {
                let length = usize::try_from(self.whole()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            5 => {
                let (bytes, rest) = self.0.split_first_chunk::<4>()?;
                self.0 = rest;
                Value::Fixed32(*bytes)
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| "a field is cut off or of an unknown kind".to_owned());
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// What a model says.
struct Model {
    pieces: Vec<Piece>,
    kind: u64,
    space_as_suffix: bool,
    escape: bool,
    denormalizes: bool,
    spaces: Spaces,
}

/// A SentencePiece model as `tokenizer.json`.
pub(super) fn convert(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, ImportError> {
    let fail = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
    let model = read(bytes).map_err(fail)?;
    let refuse = |field: &str, got: &dyn ToString, reason: &str| ImportError::Unsupported {
        path: path.to_owned(),
        field: field.to_owned(),
        got: got.to_string(),
        reason: reason.to_owned(),
    };
    if model.space_as_suffix {
        return Err(refuse("treat_whitespace_as_suffix", &true, "models that say false are"));
    }
    if !model.escape {
        return Err(refuse("escape_whitespaces", &false, "models that say true are"));
    }
    if model.denormalizes {
        return Err(refuse("denormalizer_spec", &"a table", "models without one are"));
    }
    if let Some(map) = &model.spaces.charsmap {
        charsmap::check(map).map_err(fail)?;
    }
    let vocabulary = Vocabulary { pieces: model.pieces, spaces: model.spaces, ends: (None, None) };
    match model.kind {
        UNIGRAM => vocabulary.unigram().map_err(fail),
        BPE => vocabulary.bpe().map_err(fail),
        other => Err(refuse("model_type", &other, "unigram (1) and BPE (2) are")),
    }
}

fn read(bytes: &[u8]) -> Result<Model, String> {
    // Defaults as in the definition.
    let mut model = Model {
        pieces: Vec::new(),
        kind: UNIGRAM,
        space_as_suffix: false,
        escape: true,
        denormalizes: false,
        spaces: Spaces { prefix: true, trim: true, charsmap: None },
    };
    for entry in Fields(bytes) {
        match entry? {
            (field::PIECE, Value::Bytes(bytes)) => {
                if model.pieces.len() == PIECES_MAX {
                    return Err(format!("it has more than {PIECES_MAX} pieces"));
                }
                let piece = piece(bytes).map_err(|e| format!("piece {}: {e}", model.pieces.len()))?;
                model.pieces.push(piece);
            }
            (field::TRAINER, Value::Bytes(bytes)) => {
                for entry in Fields(bytes) {
                    match entry? {
                        (field::MODEL_TYPE, Value::Whole(v)) => model.kind = v,
                        (field::SPACE_AS_SUFFIX, Value::Whole(v)) => model.space_as_suffix = v != 0,
                        _ => {}
                    }
                }
            }
            (field::NORMALIZER, Value::Bytes(bytes)) => {
                for entry in Fields(bytes) {
                    match entry? {
                        (field::CHARSMAP, Value::Bytes(map)) => {
                            model.spaces.charsmap = (!map.is_empty()).then(|| map.to_vec());
                        }
                        (field::DUMMY_PREFIX, Value::Whole(v)) => model.spaces.prefix = v != 0,
                        (field::TRIM_SPACES, Value::Whole(v)) => model.spaces.trim = v != 0,
                        (field::ESCAPE_SPACES, Value::Whole(v)) => model.escape = v != 0,
                        _ => {}
                    }
                }
            }
            (field::DENORMALIZER, Value::Bytes(bytes)) => {
                for entry in Fields(bytes) {
                    if let (field::CHARSMAP, Value::Bytes(map)) = entry? {
                        model.denormalizes = !map.is_empty();
                    }
                }
            }
            _ => {}
        }
    }
    if model.pieces.is_empty() {
        return Err("it has no pieces".into());
    }
    Ok(model)
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for entry in Fields(bytes) {
        match entry? {
            (field::PIECE_TEXT, Value::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
                text.clone_into(&mut piece.text);
            }
            (field::PIECE_SCORE, Value::Fixed32(score)) => {
                piece.score = f64::from(f32::from_le_bytes(score));
            }
            (field::PIECE_TYPE, Value::Whole(n)) => {
                piece.kind = Kind::from_number(n).ok_or_else(|| format!("it has the unknown type {n}"))?;
            }
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err("it is empty".into());
    }
    Ok(piece)
}
