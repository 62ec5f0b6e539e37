//! Tokenizers of every kind against the ids that their originals give, and back to text.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use assay_engine::artifact::TextModel;
use assay_engine::import::tokenizer_json;
use assay_engine::text::Tokenizer;

#[path = "checkpoint/gguf.rs"]
mod gguf;
#[path = "checkpoint/small.rs"]
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

/// The strings and ids that `tests/data/recipe/ids.py` wrote.
fn reference(name: &str, data: &Path) -> Vec<(String, Vec<u32>)> {
    let json: serde_json::Value = serde_json::from_str(include_str!("data/tokenizers/ids.json")).unwrap();
    let suite = suite(&data.join("gguf-vocab/ggml-vocab-gpt-2.gguf"));
    let more: Vec<String> = serde_json::from_value(json["more"].clone()).unwrap();
    let strings: Vec<String> = suite.into_iter().map(|(text, _)| text).chain(more).collect();
    let ids: Vec<Vec<u32>> = serde_json::from_value(json["ids"][name].clone()).unwrap();
    assert_eq!(strings.len(), ids.len());
    strings.into_iter().zip(ids).collect()
}

/// A file of the tests' own.
fn own_data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers").join(name)
}

#[test]
fn published_tokenizers_give_the_ids_of_the_original_package() {
    let Some(data) = small::test_data("ids of published tokenizers") else { return };
    for name in ["smollm2", "gpt2"] {
        let t = load(&data.join("tokenizers").join(name).join("tokenizer.json"));
        for (text, ids) in reference(name, &data) {
            assert_eq!(t.encode_text(&text).unwrap(), ids, "{name}: {text:?}");
            check_stream(&t, &ids, &text, true);
            check_bytes(&t, &ids, &text, "");
        }
    }
}

#[test]
fn a_sentencepiece_bpe_model_gives_the_ids_of_the_original_package() {
    let Some(data) = small::test_data("ids of a SentencePiece model") else { return };
    let folder = data.join("llm/stories260K");
    let t = load(&folder.join("tok512.model"));
    for (text, ids) in reference("tok512", &data) {
        assert_eq!(t.encode_text(&text).unwrap(), ids, "{text:?}");
        check_stream(&t, &ids, &text, false);
        let plain = !text.contains("  ") && text == text.trim_matches(' ') && !text.contains('▁');
        if plain {
            check_stream(&t, &ids, &text, true);
            check_bytes(&t, &ids, &text, " ");
        }
    }
    // The model trims spaces, which llama2.c's file cannot say; the vocabulary is the same.
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&tokenizer_json(&folder.join(name)).unwrap()).unwrap()
    };
    let (mut model, mut bin) = (json("tok512.model"), json("tok512.bin"));
    assert_ne!(model["normalizer"], bin["normalizer"]);
    (model["normalizer"], bin["normalizer"]) = (0.into(), 0.into());
    assert_eq!(model, bin);
    // A file that says nothing of spaces gives the same bytes.
    let gguf = tokenizer_json(&folder.join("stories260K-f32.gguf")).unwrap();
    assert_eq!(gguf, tokenizer_json(&folder.join("tok512.bin")).unwrap());
}

#[test]
fn a_sentencepiece_unigram_model_gives_the_ids_of_the_original_package() {
    let Some(data) = small::test_data("strings for a unigram model") else { return };
    let t = load(&own_data("unigram.model"));
    for (text, ids) in reference("unigram", &data) {
        if text.starts_with("<s>") {
            // The vocabulary has no `<`: such names are text (below), but cut where the original does not cut.
            continue;
        }
        assert_eq!(t.encode_text(&text).unwrap(), ids, "{text:?}");
        check_stream(&t, &ids, &text, false);
    }
}

#[test]
fn names_of_special_pieces_are_text_in_a_unigram_model() {
    let t = load(&own_data("unigram.model"));
    for name in ["<s>", "</s>", "<mask>", "<0x41>", "<pad><s>", "a<mask>b</s>"] {
        let ids = t.encode_text(name).unwrap();
        for special in ["<s>", "</s>", "<mask>", "<0x41>"] {
            assert!(!ids.contains(&t.id(special).unwrap()), "{name}: {ids:?}");
        }
        assert_eq!(t.decode(&ids), name);
    }
    let sep = t.id("<sep>").unwrap();
    assert!(t.encode_text("a<sep>b").unwrap().contains(&sep), "a user-defined piece is text");
    assert_eq!(t.token_bytes(sep), b"<sep>");
    assert_eq!(t.token_bytes(t.id("<mask>").unwrap()), b"");
    assert_eq!(t.token_bytes(t.id("<0x41>").unwrap()), b"A");
    assert_eq!(t.token_bytes(1_000_000), b"");
}

#[test]
fn text_for_encoders_stands_between_special_tokens_and_is_cut_to_fit() {
    let Some(data) = small::test_data("an encoder's tokenizer") else { return };
    let t = load(&data.join("gguf-vocab/ggml-vocab-bert-bge.gguf"));
    let (cls, sep) = (t.id("[CLS]").unwrap(), t.id("[SEP]").unwrap());
    let around = |ids: &[u32]| [&[cls][..], ids, &[sep]].concat();
    for (text, ids) in suite(&data.join("gguf-vocab/ggml-vocab-bert-bge.gguf")) {
        assert_eq!(t.encode_for_embedding(&text, 512).unwrap(), around(&ids), "{text:?}");
        let cut = &ids[..ids.len().min(3)];
        assert_eq!(t.encode_for_embedding(&text, 5).unwrap(), around(cut), "{text:?}");
    }
    assert_eq!(t.encode_for_embedding("x", 2).unwrap(), around(&[]));
    assert!(t.encode_for_embedding("x", 1).is_err());
    let ids = t.encode_for_embedding("a [SEP] b [CLS] [MASK]", 512).unwrap();
    assert_eq!(ids.iter().filter(|id| [cls, sep, t.id("[MASK]").unwrap()].contains(id)).count(), 2);
    assert_eq!(t.decode(&ids), "a [ sep ] b [ cls ] [ mask ]");
    // Settings of training time in a tokenizer.json are not for serving.
    let json = tokenizer_json(&data.join("gguf-vocab/ggml-vocab-bert-bge.gguf")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
    let d = tempfile::TempDir::new().unwrap();
    let path = small::write(d.path(), "tokenizer.json", json.to_string().as_bytes());
    let text = "one two three four five six";
    assert_eq!(
        load(&path).encode_for_embedding(text, 64).unwrap(),
        t.encode_for_embedding(text, 64).unwrap()
    );
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_gguf_vocabulary_of_every_known_pattern_equals_its_tokenizer_json() {
    let Some(data) = small::test_data("vocabularies rewritten as GGUF") else { return };
    let d = tempfile::TempDir::new().unwrap();
    for (name, pre) in [("smollm2", "smollm"), ("gpt2", "gpt-2")] {
        let path = data.join("tokenizers").join(name).join("tokenizer.json");
        let original = load(&path);
        let file = gguf::file(&gguf::byte_level(&read(&path), pre), &[]);
        let t = load(&small::write(d.path(), "v.gguf", &file));
        for (text, ids) in reference(name, &data) {
            assert_eq!(t.encode_text(&text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(t.decode(&ids), original.decode(&ids));
        }
    }
    // Other patterns over the same vocabulary: every text comes back, and numbers are cut as the pattern says.
    let path = data.join("tokenizers/gpt2/tokenizer.json");
    for (pre, numbers) in [
        ("llama-bpe", vec!["123", "456"]),
        ("qwen2", vec!["1", "2", "3", "4", "5", "6"]),
        ("tekken", vec!["1", "2", "3", "4", "5", "6"]),
        ("gpt-4o", vec!["123", "456"]),
        ("default", vec!["123", "456"]),
    ] {
        let file = gguf::file(&gguf::byte_level(&read(&path), pre), &[]);
        let t = load(&small::write(d.path(), "v.gguf", &file));
        for (text, _) in reference("gpt2", &data) {
            // The original of qwen2 composes characters.
            let composed = pre == "qwen2" && (text.contains("e\u{301}") || text.contains('\u{212b}'));
            let ids = t.encode_text(&text).unwrap();
            check_stream(&t, &ids, &text, !composed);
        }
        let ids = t.encode_text("123456").unwrap();
        let pieces: Vec<Vec<u8>> = ids.iter().map(|id| t.token_bytes(*id)).collect();
        assert_eq!(pieces, numbers.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>(), "{pre}");
        let contraction = t.encode_text("I'LL").unwrap();
        assert_eq!(t.decode(&contraction), "I'LL");
    }
    let file = gguf::file(&gguf::byte_level(&read(&path), "deepseek-llm"), &[]);
    let error = tokenizer_json(&small::write(d.path(), "v.gguf", &file)).unwrap_err();
    assert_eq!(error.code(), "import_unsupported");
    assert!(error.to_string().contains("deepseek-llm") && error.to_string().contains("qwen2"), "{error}");
}

/// The small SentencePiece vocabulary with other metadata and two more tokens: ▁▁ (user-defined) and <|im_end|> (of any type).
fn changed_vocabulary(change: &[(&str, gguf::Value)], end_type: i32) -> Tokenizer {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["▁", "a", "b", "ab", "▁ab", "▁▁", "<|im_end|>"].map(str::to_owned));
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let types = [&[2, 3, 3][..], &[6; 256], &[1, 1, 1, 1, 1, 4, end_type]].concat();
    let scores = [&[0.0; 259][..], &[-9.0, -9.0, -9.0, -1.0, -2.0, 0.0, 0.0]].concat();
    let mut metadata = gguf::vocabulary();
    let own = [
        ("tokenizer.ggml.tokens", gguf::texts(&tokens)),
        ("tokenizer.ggml.token_type", gguf::i32s(&types)),
        ("tokenizer.ggml.scores", gguf::f32s(&scores)),
    ];
    for (key, value) in own.iter().chain(change) {
        metadata.retain(|(name, _)| name != key);
        metadata.push(((*key).to_owned(), value.clone()));
    }
    let d = tempfile::TempDir::new().unwrap();
    load(&small::write(d.path(), "v.gguf", &gguf::file(&metadata, &[])))
}

#[test]
fn spaces_are_as_the_file_says() {
    let plain = changed_vocabulary(&[], 3);
    assert_eq!(plain.encode_text("ab").unwrap(), [263]);
    assert_eq!(plain.decode(&[263, 263]), "ab ab");
    // Without the space in front, a user-defined piece of spaces is found before anything merges.
    let bare = changed_vocabulary(&[("tokenizer.ggml.add_space_prefix", gguf::truth(false))], 3);
    assert_eq!(bare.encode_text("ab   ab").unwrap(), [262, 264, 263]);
    assert_eq!(bare.encode_text("   ab").unwrap(), [264, 263]);
    assert_eq!(bare.decode(&[264, 263, 262]), "   abab");
    assert_eq!(bare.token_bytes(264), b"  ");
    let trimmed = changed_vocabulary(&[("tokenizer.ggml.remove_extra_whitespaces", gguf::truth(true))], 3);
    assert_eq!(trimmed.encode_text("  ab   ab ").unwrap(), [263, 263]);
    assert!(trimmed.encode_text("   ").unwrap().is_empty());
}

#[test]
fn tokens_that_end_answers_are_never_text_whatever_their_type() {
    for end_type in [1, 3, 4] {
        let t = changed_vocabulary(&[], end_type);
        let ids = t.encode_text("ab<|im_end|>").unwrap();
        assert!(!ids.contains(&265), "{end_type}: {ids:?}");
        assert_eq!(t.decode(&ids), "ab<|im_end|>");
        assert_eq!(t.decode(&[265]), "");
    }
    let t = changed_vocabulary(&[("tokenizer.ggml.add_eos_token", gguf::truth(true))], 3);
    assert_eq!(t.encode_for_embedding("ab", 8).unwrap(), [1, 263, 2]);
    assert_eq!(t.encode_text("ab").unwrap(), [263], "the engine adds what a prompt needs");
}

#[test]
fn damaged_sentencepiece_models_are_refused() {
    let whole = std::fs::read(own_data("unigram.model")).unwrap();
    let d = tempfile::TempDir::new().unwrap();
    let refused = |bytes: &[u8]| {
        let path = small::write(d.path(), "x.model", bytes);
        tokenizer_json(&path).expect_err("must be refused").code()
    };
    for cut in [0, 1, 5, 100, whole.len() / 2, whole.len() - 1] {
        assert_eq!(refused(&whole[..cut]), "import_malformed", "{cut}");
    }
    let piece = |fields: &[u8]| [&[10, fields.len() as u8][..], fields].concat();
    let unknown = piece(&[10, 5, b'<', b'u', b'n', b'k', b'>', 24, 2]);
    let with = |more: &[&[u8]]| [&unknown[..], &more.concat()].concat();
    for (what, bytes) in [
        ("a length beyond the end", vec![10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ("a number without end", vec![0xff; 32]),
        ("an unknown kind of field", vec![11]),
        ("an unknown type", with(&[&piece(&[10, 1, b'a', 24, 7])])),
        ("a score that is none", with(&[&piece(&[10, 1, b'a', 21, 0, 0, 0xc0, 0x7f])])),
        ("an empty piece", with(&[&piece(&[24, 1])])),
        ("no UTF-8", with(&[&piece(&[10, 1, 0xff])])),
        ("one piece twice", with(&[&piece(&[10, 1, b'a']), &piece(&[10, 1, b'a'])])),
        ("no unknown piece", piece(&[10, 1, b'a'])),
        ("a damaged table", with(&[&[26, 6, 18, 4, 255, 255, 255, 255]])),
    ] {
        assert_eq!(refused(&bytes), "import_malformed", "{what}");
    }
    for (what, field) in [
        ("a model of words", &[18, 2, 24, 3][..]),
        ("spaces after words", &[18, 3, 0xc0, 1, 1]),
        ("spaces as they are", &[26, 2, 40, 0]),
    ] {
        assert_eq!(refused(&with(&[field])), "import_unsupported", "{what}");
    }
}
