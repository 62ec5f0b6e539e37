//! BERT's kind of tokenizer: words, then the longest pieces from the left.

use serde_json::{Value, json};

/// Longest word that is cut into pieces; longer ones are unknown. As in all published models.
const WORD_MAX: u32 = 100;

/// A token as BERT's vocabularies spell it. GGUF files mark the pieces that begin a word with ▁, as SentencePiece does; BERT marks
/// the others with ##.
pub(super) fn spelling(token: &str) -> String {
    match token.strip_prefix('▁') {
        Some(word) => word.to_owned(),
        None if token.starts_with('[') && token.ends_with(']') => token.to_owned(),
        None => format!("##{token}"),
    }
}

/// A tokenizer of these tokens, by id. A vocabulary without capital letters is for text in small letters without accents.
pub(super) fn json(
    tokens: &[String],
    unknown: &str,
    added: Vec<Value>,
    post: Option<Value>,
) -> Result<Value, String> {
    let mut vocab = serde_json::Map::new();
    let mut lowercase = true;
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(token.clone(), json!(id)).is_some() {
            return Err(format!("token {id} is there twice"));
        }
        lowercase &= token.starts_with('[') || !token.contains(|c: char| c.is_ascii_uppercase());
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": post, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": WORD_MAX, "vocab": vocab},
    }))
}
