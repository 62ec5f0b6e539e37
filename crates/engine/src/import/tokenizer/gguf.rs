//! The vocabulary inside a GGUF file.
//!
//! Token types decide what text can become: user-defined tokens are found in any text, as llama.cpp finds them; control and unknown
//! ones never are, which is what llama.cpp calls not parsing special tokens.

use super::super::ImportError;
use super::super::gguf::names::general;
use super::super::gguf::reader::Metadata;
use super::super::source::TextHints;
use super::pieces::{Piece, Spaces, Vocabulary};
use super::{Kind, added_tokens, around, byte_level, word_pieces, write};

/// Tokens that end an answer by their name, whatever the file says of them.
const END_NAMES: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<|return|>",
];

/// Kinds of vocabulary that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// SentencePiece BPE by scores.
    SentencePiece,
    /// BPE over bytes.
    ByteLevel,
    /// BERT's.
    WordPieces,
}

fn family(m: Metadata<'_>) -> Result<Option<Family>, ImportError> {
    match m.text(general::TOKENIZER)? {
        None => Ok(None),
        Some("llama") => Ok(Some(Family::SentencePiece)),
        Some("gpt2") => Ok(Some(Family::ByteLevel)),
        Some("bert") => Ok(Some(Family::WordPieces)),
        Some(other) => Err(unsupported(m, general::TOKENIZER, other, "llama, gpt2 and bert are")),
    }
}

fn unsupported(m: Metadata<'_>, field: &str, got: &str, reason: &str) -> ImportError {
    ImportError::Unsupported {
        path: m.path().to_owned(),
        field: field.to_owned(),
        got: got.to_owned(),
        reason: reason.to_owned(),
    }
}

fn malformed(m: Metadata<'_>) -> impl Fn(String) -> ImportError {
    move |reason| ImportError::Malformed { path: m.path().to_owned(), reason }
}

/// The pattern of a byte-level vocabulary.
fn pattern(m: Metadata<'_>) -> Result<&'static byte_level::Pattern, ImportError> {
    let name = m.text(general::PRE_TOKENIZER)?.unwrap_or("default");
    byte_level::pattern(name).ok_or_else(|| {
        let reason =
            format!("{} are; give the original tokenizer.json with --tokenizer", byte_level::names());
        unsupported(m, general::PRE_TOKENIZER, name, &reason)
    })
}

/// The token at the beginning of a sequence.
pub(in crate::import) fn bos(m: Metadata<'_>) -> Result<Option<u32>, ImportError> {
    // A kind that is not known is refused where the vocabulary is used.
    let named = match family(m) {
        Ok(Some(Family::WordPieces)) => m.unsigned(general::CLASS)?,
        _ => None,
    };
    Ok(named.or(m.unsigned(general::BOS)?))
}

/// The tokens that end an answer, the most usual one first.
pub(in crate::import) fn ends(m: Metadata<'_>) -> Result<Vec<u32>, ImportError> {
    let mut all = Vec::new();
    for key in [general::EOS, general::END_OF_TURN, general::END_OF_MESSAGE] {
        all.extend(m.unsigned(key)?);
    }
    for (id, token) in m.texts(general::TOKENS)?.unwrap_or_default().iter().enumerate() {
        if END_NAMES.contains(token) {
            all.push(id as u32);
        }
    }
    let mut seen = Vec::new();
    all.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    Ok(all)
}

/// What the file says about prompts.
pub(in crate::import) fn hints(m: Metadata<'_>) -> Result<TextHints, ImportError> {
    let tokens = m.texts(general::TOKENS)?.unwrap_or_default();
    let eos = m.unsigned(general::EOS)?.and_then(|id| tokens.get(id as usize));
    Ok(TextHints {
        chat_template: m.text(general::CHAT_TEMPLATE)?.map(str::to_owned),
        add_bos: add_bos(m)?,
        eos_token: eos.map(|t| (*t).to_owned()),
    })
}

/// What the file says, or else what its kind of vocabulary means by saying nothing.
fn add_bos(m: Metadata<'_>) -> Result<Option<bool>, ImportError> {
    if let Some(said) = m.truth(general::ADD_BOS)? {
        return Ok(Some(said));
    }
    // A kind or pattern that is not known is refused where the vocabulary is used.
    Ok(match family(m) {
        Err(_) | Ok(None) => None,
        Ok(Some(Family::SentencePiece | Family::WordPieces)) => Some(true),
        Ok(Some(Family::ByteLevel)) => Some(pattern(m).is_ok_and(|p| p.add_bos)),
    })
}

/// The vocabulary as `tokenizer.json`.
pub(in crate::import) fn convert(m: Metadata<'_>) -> Result<Vec<u8>, ImportError> {
    let fail = malformed(m);
    let Some(family) = family(m)? else {
        return Err(fail(format!("it has no {}: it holds no vocabulary", general::TOKENIZER)));
    };
    let tokens = m.texts(general::TOKENS)?.ok_or_else(|| fail(format!("it has no {}", general::TOKENS)))?;
    let kinds = kinds(m, &tokens)?;
    let named = |id: Option<u32>| id.and_then(|id| Some((id, *tokens.get(id as usize)?)));
    let (first, last) = (named(bos(m)?), named(m.unsigned(general::EOS)?));
    // BOS is the engine's to add; a vocabulary that wants EOS as well says how texts become whole sequences.
    let add_eos = m.truth(general::ADD_EOS)?.unwrap_or(false) && last.is_some();
    let first = first.filter(|_| add_bos(m).is_ok_and(|add| add == Some(true)));
    let post = add_eos.then(|| around(first, last));
    let added = || added_tokens(tokens.iter().copied().zip(kinds.iter().copied()), |_| false);
    match family {
        Family::SentencePiece => sentence_pieces(m, &tokens, &kinds, add_eos),
        Family::ByteLevel => {
            let merges = m.texts(general::MERGES)?;
            let merges = merges.ok_or_else(|| fail(format!("it has no {}", general::MERGES)))?;
            let json = pattern(m)?.json(&tokens, &merges, added(), post);
            json.and_then(|json| write(&json)).map_err(fail)
        }
        Family::WordPieces => {
            let spelled: Vec<String> = tokens
                .iter()
                .zip(&kinds)
                .map(|(t, k)| if *k == Kind::Control { (*t).to_owned() } else { word_pieces::spelling(t) })
                .collect();
            let separator = named(m.unsigned(general::SEPARATOR)?.or(m.unsigned(general::EOS)?));
            let class = named(bos(m)?);
            let (Some(_), Some(_)) = (class, separator) else {
                return Err(fail("it does not say which tokens stand around a text".into()));
            };
            let unknown = m.unsigned(general::UNKNOWN)?.unwrap_or(100);
            let unknown =
                spelled.get(unknown as usize).ok_or_else(|| fail("its unknown token is none".into()))?;
            let names = spelled.iter().map(String::as_str).zip(kinds.iter().copied());
            let added = added_tokens(names, |_| false);
            let json = word_pieces::json(&spelled, unknown, added, Some(around(class, separator)));
            json.and_then(|json| write(&json)).map_err(fail)
        }
    }
}

fn sentence_pieces(
    m: Metadata<'_>,
    tokens: &[&str],
    kinds: &[Kind],
    add_eos: bool,
) -> Result<Vec<u8>, ImportError> {
    let fail = malformed(m);
    let scores = m.reals(general::SCORES)?.filter(|s| s.len() == tokens.len());
    let scores = scores.ok_or_else(|| fail(format!("{} is not one for each token", general::SCORES)))?;
    if m.value(general::CHARSMAP).is_some() {
        return Err(unsupported(m, general::CHARSMAP, "a table", "vocabularies without one are"));
    }
    let piece = |((text, score), kind): ((&&str, &f64), &Kind)| Piece {
        text: (*text).to_owned(),
        score: *score,
        kind: *kind,
    };
    let ends = match add_eos {
        true => {
            (bos(m)?.filter(|_| add_bos(m).is_ok_and(|add| add == Some(true))), m.unsigned(general::EOS)?)
        }
        false => (None, None),
    };
    let vocabulary = Vocabulary {
        pieces: tokens.iter().zip(&scores).zip(kinds).map(piece).collect(),
        spaces: Spaces {
            prefix: m.truth(general::ADD_SPACE)?.unwrap_or(true),
            trim: m.truth(general::TRIM_SPACES)?.unwrap_or(false),
            charsmap: None,
        },
        ends,
    };
    vocabulary.bpe().map_err(fail)
}

/// What each token is. Tokens that begin or end sequences are never text, whatever their entry says.
fn kinds(m: Metadata<'_>, tokens: &[&str]) -> Result<Vec<Kind>, ImportError> {
    let fail = malformed(m);
    let mut kinds = match m.reals(general::TOKEN_TYPES)? {
        None => vec![Kind::Normal; tokens.len()],
        Some(numbers) if numbers.len() == tokens.len() => {
            let kind = |n: &f64| Kind::from_number(*n as u64).filter(|k| f64::from(*k as u8) == *n);
            let all: Option<Vec<Kind>> = numbers.iter().map(kind).collect();
            all.ok_or_else(|| fail(format!("{} has an unknown type", general::TOKEN_TYPES)))?
        }
        Some(_) => return Err(fail(format!("{} is not one for each token", general::TOKEN_TYPES))),
    };
    if family(m)? == Some(Family::SentencePiece) {
        let unknown = m.unsigned(general::UNKNOWN)?.unwrap_or(0) as usize;
        // The first unknown piece is the one that stands for all others: padding of that kind is never text either.
        for kind in kinds.iter_mut().filter(|k| **k == Kind::Unknown) {
            *kind = Kind::Control;
        }
        *kinds.get_mut(unknown).ok_or_else(|| fail("its unknown token is none".into()))? = Kind::Unknown;
    }
    for id in bos(m)?.into_iter().chain(ends(m)?) {
        match kinds.get_mut(id as usize) {
            Some(Kind::Unknown) | None => {}
            Some(kind) => *kind = Kind::Control,
        }
    }
    Ok(kinds)
}
