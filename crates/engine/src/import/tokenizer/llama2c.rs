//! llama2.c's `tokenizer.bin`: a SentencePiece BPE vocabulary without types.

use std::path::Path;

use super::super::ImportError;
use super::Kind;
use super::pieces::{Piece, Spaces, Vocabulary};

/// Most bytes of a piece.
const PIECE_MAX: usize = 256;
/// The three special pieces, as SentencePiece writes them; llama2.c adds line breaks.
const SPECIAL: [(&str, Kind); 3] =
    [("<unk>", Kind::Unknown), ("<s>", Kind::Control), ("</s>", Kind::Control)];
/// The special pieces and the 256 bytes.
const FIRST_TEXT: usize = 3 + 256;

/// Layout: the longest piece's length, then for each id a score (f32), a length and that many bytes, in which spaces stand
/// for SentencePiece's ▁.
pub(super) fn convert(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, ImportError> {
    let fail = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
    let mut rest = bytes.get(4..).ok_or_else(|| fail("it is cut off".into()))?;
    let mut pieces: Vec<Piece> = Vec::new();
    while !rest.is_empty() {
        let id = pieces.len();
        let cut = || fail(format!("piece {id} is cut off"));
        let (score, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > PIECE_MAX || length > after.len() {
            return Err(fail(format!("piece {id} has {length} bytes")));
        }
        let (text, after) = after.split_at(length);
        let text = std::str::from_utf8(text).map_err(|_| fail(format!("piece {id} is not UTF-8")))?;
        let score = f64::from(f32::from_le_bytes(*score));
        pieces.push(match SPECIAL.get(id) {
            Some((text, kind)) => Piece { text: (*text).to_owned(), score, kind: *kind },
            None if id < FIRST_TEXT => Piece { text: text.to_owned(), score, kind: Kind::Byte },
            None => Piece { text: text.replace(' ', "▁"), score, kind: Kind::Normal },
        });
        rest = after;
    }
    if pieces.len() < FIRST_TEXT {
        return Err(fail(format!(
            "{} pieces; the three special ones and 256 bytes are needed at least",
            pieces.len()
        )));
    }
    Vocabulary { pieces, spaces: Spaces::default(), ends: (None, None) }.bpe().map_err(fail)
}
