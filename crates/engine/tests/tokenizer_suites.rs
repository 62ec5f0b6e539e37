//! Tokenizers of every kind against the ids that their originals give, and back to text.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use assay_engine::artifact::TextModel;
use assay_engine::import::tokenizer_json;
use assay_engine::text::Tokenizer;

#[path = "checkpoint/small.rs"]
#[allow(dead_code)]
mod small;

/// A tokenizer without BOS and template.
fn load(path: &Path) -> Tokenizer {
    let json = tokenizer_json(path).unwrap_or_else(|e| panic!("{e}"));
    let text = TextModel {
        bos: None,
        add_bos: false,
        end_tokens: Vec::new(),
        chat_template: String::new(),
        has_chat_template: false,
    };
    Tokenizer::new(&text, &json).unwrap()
}

/// The strings of a vocabulary's suite with their ids.
fn suite(vocabulary: &Path) -> Vec<(String, Vec<u32>)> {
    let beside = |ending: &str| {
        let mut path = vocabulary.as_os_str().to_owned();
        path.push(ending);
        std::fs::read_to_string(PathBuf::from(path)).unwrap()
    };
    let (strings, ids) = (beside(".inp"), beside(".out"));
    let strings: Vec<&str> = strings.split("\n__ggml_vocab_test__\n").collect();
    let ids = ids.lines().map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let cases: Vec<(String, Vec<u32>)> = strings[..46].iter().map(|s| (*s).to_owned()).zip(ids).collect();
    assert_eq!((strings.len(), cases.len()), (47, 46));
    cases
}

/// What holds for every tokenizer: the text of ids is the stream of their pieces, none of which splits a character.
fn check_stream(t: &Tokenizer, ids: &[u32], text: &str, lossless: bool) {
    let mut stream = t.stream();
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    pieces.push(stream.finish());
    assert_eq!(pieces.concat(), t.decode(ids), "{text:?}");
    if lossless {
        assert_eq!(t.decode(ids), text);
        assert!(pieces.iter().all(|p| text.contains('\u{FFFD}') || !p.contains('\u{FFFD}')), "{pieces:?}");
    }
}

/// The bytes of tokens one by one are the bytes of the text, after the space that some tokenizers put in front.
fn check_bytes(t: &Tokenizer, ids: &[u32], text: &str, prefix: &str) {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| t.token_bytes(*id)).collect();
    let expected = if text.is_empty() { String::new() } else { format!("{prefix}{text}") };
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

fn check_vocabulary(name: &str, prefix: Option<&str>) {
    let Some(data) = small::test_data(name) else { return };
    let path = data.join(format!("gguf-vocab/ggml-vocab-{name}.gguf"));
    let t = load(&path);
    for (text, ids) in suite(&path) {
        assert_eq!(t.encode_text(&text).unwrap(), ids, "{text:?}");
        check_stream(&t, &ids, &text, prefix.is_some());
        if let Some(prefix) = prefix {
            check_bytes(&t, &ids, &text, prefix);
        }
    }
}

#[test]
fn llama_spm_gives_the_ids_of_its_suite() {
    check_vocabulary("llama-spm", Some(" "));
}

#[test]
fn phi_3_gives_the_ids_of_its_suite() {
    check_vocabulary("phi-3", Some(" "));
}

#[test]
fn gpt_2_gives_the_ids_of_its_suite() {
    check_vocabulary("gpt-2", Some(""));
}

#[test]
fn bert_bge_gives_the_ids_of_its_suite() {
    check_vocabulary("bert-bge", None);
}
