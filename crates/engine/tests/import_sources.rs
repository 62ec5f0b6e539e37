//! Importing: every format gives the same model, wrong files give one clear error each and leave nothing behind.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use assay_core::id::ModelRoot;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::import::{ImportError, ImportOptions, Rotation, import};
use assay_engine::text::Tokenizer;
use tempfile::TempDir;

#[path = "checkpoint/small.rs"]
mod small;

fn options(tokenizer: Option<&Path>) -> ImportOptions {
    ImportOptions { name: Some("test".into()), tokenizer: tokenizer.map(Into::into), ..Default::default() }
}

fn import_to(source: &Path, options: &ImportOptions, out: &Path) -> Result<ModelRoot, ImportError> {
    let report = import(source, options, out, &mut |_| {})?;
    let artifact = Artifact::open(out).expect("what was imported opens");
    assert_eq!((artifact.root(), artifact.parameters()), (report.root, report.parameters));
    artifact.check_root(&|_| {}).expect("the root is the content's");
    Ok(report.root)
}

/// The error of an import that must leave no file.
fn refused(source: &Path, options: &ImportOptions) -> ImportError {
    let out = TempDir::new().unwrap();
    let error =
        import(source, options, &out.path().join("x.assay"), &mut |_| {}).expect_err("must be refused");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "a refused import leaves nothing: {error}");
    assert!(!error.to_string().is_empty());
    error
}

fn refused_folder(change: impl FnOnce(&Path)) -> ImportError {
    let folder = TempDir::new().unwrap();
    small::write_folder(folder.path());
    small::write(folder.path(), "tokenizer.json", &small::tokenizer_json());
    change(folder.path());
    refused(folder.path(), &ImportOptions::default())
}

fn refused_config(from: &str, to: &str) -> ImportError {
    assert!(small::CONFIG.contains(from));
    refused_folder(|f| drop(small::write(f, "config.json", small::CONFIG.replace(from, to).as_bytes())))
}

#[test]
fn every_format_gives_the_same_root_and_the_same_bytes_each_time() {
    let d = TempDir::new().unwrap();
    let tokenizer = small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    let v0 = small::write(d.path(), "v0.bin", &small::llama2c_v0());
    let v1 = small::write(d.path(), "v1.bin", &small::llama2c_v1());
    let hf = d.path().join("hf");
    small::write_folder(&hf);
    // A file that the index does not name must not matter.
    let sharded = d.path().join("sharded");
    small::write_folder(&sharded);
    let all = small::tensors();
    std::fs::rename(sharded.join("model.safetensors"), sharded.join("other.safetensors")).unwrap();
    small::write(&sharded, "a.safetensors", &small::safetensors(&all[..7]));
    small::write(&sharded, "b.safetensors", &small::safetensors(&all[7..]));
    let map: serde_json::Map<_, _> = all
        .iter()
        .enumerate()
        .map(|(i, t)| (t.name.clone(), (if i < 7 { "a.safetensors" } else { "b.safetensors" }).into()))
        .collect();
    let index = serde_json::json!({"weight_map": map}).to_string();
    small::write(&sharded, "model.safetensors.index.json", index.as_bytes());

    for rotation in [Rotation::None, Rotation::Hadamard] {
        let options = ImportOptions { rotation, ..options(Some(&tokenizer)) };
        let root = |source: &Path, out: &str| import_to(source, &options, &d.path().join(out)).unwrap();
        let first = root(&v0, "0.assay");
        assert_eq!(first, root(&v1, "1.assay"));
        assert_eq!(first, root(&hf, "2.assay"));
        assert_eq!(first, root(&sharded, "3.assay"));
        assert_eq!(first, root(&v0, "4.assay"));
        let bytes = |name: &str| std::fs::read(d.path().join(name)).unwrap();
        assert!(bytes("0.assay") == bytes("4.assay"), "the same source gives the same file");
    }
}

#[test]
fn half_precision_weights_import_as_their_values() {
    let roots = ["F32", "F16", "BF16"].map(|dtype| {
        let d = TempDir::new().unwrap();
        small::write_folder(d.path());
        small::write(d.path(), "tokenizer.json", &small::tokenizer_json());
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for t in small::tensors() {
            let from = data.len();
            for v in &t.numbers {
                // Signs and quarters are exact in every format.
                let v = (v * 4.0).round() / 4.0;
                let bf16 = (v.to_bits() >> 16) as u16;
                let f16 = if v == 0.0 {
                    0
                } else {
                    (bf16 & 0x8000) | (((v.to_bits() >> 13) as u16 & 0x7fff).wrapping_sub(112 << 10) & 0x7fff)
                };
                match dtype {
                    "F32" => data.extend(v.abs().copysign(if v == 0.0 { 1.0 } else { v }).to_le_bytes()),
                    "F16" => data.extend(f16.to_le_bytes()),
                    _ => data.extend(bf16.to_le_bytes()),
                }
            }
            header.insert(
                t.name,
                serde_json::json!({"dtype": dtype, "shape": t.shape, "data_offsets": [from, data.len()]}),
            );
        }
        let file = small::with_header(&serde_json::Value::Object(header).to_string(), &data);
        small::write(d.path(), "model.safetensors", &file);
        import_to(d.path(), &options(None), &d.path().join("x.assay")).unwrap()
    });
    assert_eq!(roots[0], roots[1]);
    assert_eq!(roots[0], roots[2]);
}

#[test]
fn stories260k_is_one_model_in_three_formats_and_its_tokenizer_agrees_with_the_original() {
    let Some(data) = small::test_data("stories260K") else { return };
    let source = data.join("llm/stories260K");
    let d = TempDir::new().unwrap();
    let options = options(Some(&source.join("tok512.bin")));
    let roots = ["stories260K.bin", "stories260K_v1.bin", "hf"]
        .map(|s| import_to(&source.join(s), &options, &d.path().join(format!("{s}.assay"))).unwrap());
    assert!(roots.iter().all(|r| *r == roots[0]), "{roots:?}");
    let beside =
        import_to(&source.join("stories260K.bin"), &ImportOptions::default(), &d.path().join("b.assay"));
    assert_eq!(beside.unwrap(), roots[0], "the tokenizer beside the file is found");

    let artifact = Artifact::open(&d.path().join("hf.assay")).unwrap();
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let text = std::fs::read_to_string(source.join("expected_greedy_200.txt")).unwrap();
    let text = text.trim_end_matches('\n');
    let ids = std::fs::read_to_string(source.join("expected_greedy_200_ids.json")).unwrap();
    let ids: Vec<u32> = serde_json::from_str(&ids).unwrap();
    assert_eq!(tokenizer.encode_text(text).unwrap(), ids);
    assert_eq!(tokenizer.decode(&ids), text);
    let sample = std::fs::read_to_string(data.join("text/tinystories_sample.txt")).unwrap();
    let ids = tokenizer.encode_text(&sample).unwrap();
    assert_eq!(tokenizer.decode(&ids), sample);
    assert_eq!(artifact.text().end_tokens, [2, 1]);
}

#[test]
fn the_tiny_story_model_imports() {
    let Some(data) = small::test_data("llm/tiny") else { return };
    let d = TempDir::new().unwrap();
    let out = d.path().join("tiny.assay");
    import_to(&data.join("llm/tiny"), &ImportOptions::default(), &out).unwrap();
    let artifact = Artifact::open(&out).unwrap();
    assert_eq!(artifact.provenance().name, "tiny");
    assert_eq!(artifact.program().program().context, 256);
    assert!(artifact.bytes().len() <= 4 << 20);
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let sample = std::fs::read_to_string(data.join("llm/tiny/validation.txt")).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode_text(&sample).unwrap()), sample);
}

#[test]
fn what_cannot_be_expressed_is_named() {
    for (from, to, field) in [
        ("LlamaForCausalLM", "MambaForCausalLM", "architectures"),
        ("LlamaForCausalLM", "Gemma3nForConditionalGeneration", "architectures"),
        ("\"silu\"", "\"relu\"", "hidden_act"),
        ("\"vocab_size\"", "\"attention_bias\":true,\"vocab_size\"", "attention_bias"),
        ("\"vocab_size\"", "\"rope_scaling\":{\"factor\":2},\"vocab_size\"", "rope_scaling"),
        ("\"vocab_size\"", "\"rope_scaling\":{\"type\":\"yarn\"},\"vocab_size\"", "rope_scaling"),
        (
            "\"vocab_size\"",
            "\"rope_parameters\":{\"rope_type\":\"dynamic\"},\"vocab_size\"",
            "rope_parameters",
        ),
        (
            "\"vocab_size\"",
            "\"rope_parameters\":{\"full_attention\":{},\"sliding_attention\":{\"rope_type\":\"linear\"}},\"vocab_size\"",
            "sliding_attention",
        ),
        ("\"vocab_size\"", "\"partial_rotary_factor\":0.5,\"vocab_size\"", "partial_rotary_factor"),
        ("\"vocab_size\"", "\"mlp_bias\":true,\"vocab_size\"", "mlp_bias"),
        (
            "\"vocab_size\"",
            "\"use_bidirectional_attention\":true,\"vocab_size\"",
            "use_bidirectional_attention",
        ),
        (
            "LlamaForCausalLM\"]",
            "Gemma2ForCausalLM\"],\"layer_types\":[\"full_attention\",\"linear_attention\"]",
            "layer_types",
        ),
        (
            "LlamaForCausalLM\"]",
            "MistralForCausalLM\"],\"layer_types\":[\"full_attention\",\"sliding_attention\"]",
            "layer_types",
        ),
        (
            "LlamaForCausalLM\"]",
            "Gemma3ForCausalLM\"],\"attn_logit_softcapping\":50",
            "attn_logit_softcapping",
        ),
        ("\"vocab_size\"", "\"quantization_config\":{},\"vocab_size\"", "quantization_config"),
        ("\"num_hidden_layers\":2", "\"num_hidden_layers\":16000000", "number of layers"),
        ("\"num_attention_heads\":3", "\"num_attention_heads\":16000000", "number of heads"),
        ("\"head_dim\":8", "\"head_dim\":6", "head size"),
        ("\"head_dim\":8", "\"head_dim\":16000000", "head size"),
        ("\"num_key_value_heads\":1", "\"num_key_value_heads\":2", "number of KV heads"),
        ("\"max_position_embeddings\":32", "\"max_position_embeddings\":16000000", "context"),
        ("\"hidden_size\":24", "\"hidden_size\":16000000", "hidden size"),
    ] {
        let error = refused_config(from, to);
        assert_eq!(error.code(), "import_unsupported", "{error}");
        assert!(error.to_string().contains(field), "{field}: {error}");
    }
    for (from, to) in [
        ("\"hidden_size\":24", "\"hidden_size\":-1"),
        ("\"hidden_size\":24", "\"hidden_size\":4294967296"),
        ("\"rope_theta\":10000.0", "\"rope_theta\":0"),
        ("\"rms_norm_eps\":1e-05", "\"rms_norm_eps\":\"x\""),
        ("\"hidden_size\":24,", ""),
        ("{", "["),
    ] {
        assert_eq!(refused_config(from, to).code(), "import_malformed", "{to}");
    }
    // Numbers that fit, but not the tensors.
    for (from, to) in [
        ("\"hidden_size\":24", "\"hidden_size\":32"),
        ("\"num_hidden_layers\":2", "\"num_hidden_layers\":3"),
        ("\"vocab_size\":264", "\"vocab_size\":263"),
        ("\"num_attention_heads\":3", "\"num_attention_heads\":4"),
    ] {
        let error = refused_config(from, to);
        assert!(["import_tensor", "import_tokenizer"].contains(&error.code()), "{to}: {error}");
    }
}

#[test]
fn an_oversized_header_is_refused() {
    for length in [u64::MAX, 1 << 62, 100_000_001, 1 << 20] {
        let mut file = small::safetensors(&small::tensors());
        file[..8].copy_from_slice(&length.to_le_bytes());
        let error = refused_folder(|f| drop(small::write(f, "model.safetensors", &file)));
        assert_eq!(error.code(), "import_malformed", "{length}: {error}");
    }
}

#[test]
fn headers_that_lie_about_tensors_are_refused() {
    let cases = [
        // Two tensors in the same bytes.
        (
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#,
            24,
        ),
        // A hole.
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[16,24]}}"#,
            24,
        ),
        // Beyond the end.
        (r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}"#, 16),
        // Too few bytes for the shape.
        (r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}"#, 8),
        // A shape whose product overflows.
        (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}"#, 16),
        // Unknown number format.
        (r#"{"a":{"dtype":"Q9","shape":[4],"data_offsets":[0,16]}}"#, 16),
        // Backwards.
        (r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, 16),
        // No JSON.
        ("{\"a\":", 16),
    ];
    for (header, data) in cases {
        let file = small::with_header(header, &vec![0; data]);
        let error = refused_folder(|f| drop(small::write(f, "model.safetensors", &file)));
        assert_eq!(error.code(), "import_malformed", "{header}: {error}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut tensors = small::tensors();
        let t = tensors.iter_mut().find(|t| t.name.contains("1.mlp.up_proj")).unwrap();
        t.numbers[37] = bad;
        let file = small::safetensors(&tensors);
        let error = refused_folder(|f| drop(small::write(f, "model.safetensors", &file)));
        assert_eq!(error.code(), "import_not_finite");
        let message = error.to_string();
        assert!(
            message.contains("model.layers.1.mlp.up_proj.weight") && message.contains("index 37"),
            "{message}"
        );
    }
    let mut tensors = small::tensors();
    tensors.iter_mut().find(|t| t.name == "model.norm.weight").unwrap().numbers[3] = f32::NAN;
    let file = small::safetensors(&tensors);
    let error = refused_folder(|f| drop(small::write(f, "model.safetensors", &file)));
    assert_eq!(error.code(), "import_not_finite");
}

#[test]
fn truncated_and_strange_files_are_refused() {
    let d = TempDir::new().unwrap();
    small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    for whole in [small::llama2c_v0(), small::llama2c_v1()] {
        for cut in [0, 3, 27, 30, 255, 256, whole.len() / 2, whole.len() - 1] {
            let error = refused(&small::write(d.path(), "cut.bin", &whole[..cut]), &ImportOptions::default());
            assert_eq!(error.code(), "import_malformed", "{cut}: {error}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        let error = refused(&small::write(d.path(), "cut.bin", &longer), &ImportOptions::default());
        assert_eq!(error.code(), "import_malformed");
    }
    let mut quantised = small::llama2c_v1();
    for (version, code) in [(3, "import_unsupported"), (2, "import_malformed")] {
        // Version 2 has the size of its groups where this file has zeros.
        quantised[4] = version;
        let error = refused(&small::write(d.path(), "v2.bin", &quantised), &ImportOptions::default());
        assert_eq!(error.code(), code, "{error}");
    }

    let file = small::safetensors(&small::tensors());
    let error = refused_folder(|f| drop(small::write(f, "model.safetensors", &file[..file.len() - 5])));
    assert_eq!(error.code(), "import_malformed");
    let error = refused_folder(|f| std::fs::remove_file(f.join("model.safetensors")).unwrap());
    assert_eq!(error.code(), "import_unknown_source");
    let error = refused_folder(|f| std::fs::remove_file(f.join("config.json")).unwrap());
    assert_eq!(error.code(), "import_unknown_source");
    let error = refused_folder(|f| {
        let map = br#"{"weight_map":{"a":"../../etc/x.safetensors"}}"#;
        small::write(f, "model.safetensors.index.json", map);
    });
    assert_eq!(error.code(), "import_malformed");
    let error = refused_folder(|f| {
        let one = small::safetensors(&small::tensors()[..1]);
        small::write(f, "model.safetensors", &one);
    });
    assert_eq!(error.code(), "import_tensor", "{error}");
    assert_eq!(refused(&d.path().join("nothing"), &ImportOptions::default()).code(), "import_unknown_source");
    assert_eq!(refused(&d.path().join("tok.bin"), &ImportOptions::default()).code(), "import_malformed");
}

#[test]
fn tokenizers_must_exist_and_fit() {
    let none = refused_folder(|f| std::fs::remove_file(f.join("tokenizer.json")).unwrap());
    assert_eq!(none.code(), "import_tokenizer");
    assert!(none.to_string().contains("--tokenizer"), "{none}");
    let bad = refused_folder(|f| drop(small::write(f, "tokenizer.json", b"{}")));
    assert_eq!(bad.code(), "import_tokenizer");
    let json = String::from_utf8(small::tokenizer_json()).unwrap().replace("257", "264");
    let high = refused_folder(|f| drop(small::write(f, "tokenizer.json", json.as_bytes())));
    assert_eq!(high.code(), "import_tokenizer", "{high}");

    // A SentencePiece model is taken where there is no tokenizer.json: this one has 600 pieces.
    let sentencepiece = refused_folder(|f| {
        std::fs::remove_file(f.join("tokenizer.json")).unwrap();
        small::write(f, "tokenizer.model", include_bytes!("data/tokenizers/unigram.model"));
    });
    assert_eq!(sentencepiece.code(), "import_tokenizer");
    assert!(sentencepiece.to_string().contains("599"), "{sentencepiece}");

    let d = TempDir::new().unwrap();
    let model = small::write(d.path(), "model.bin", &small::llama2c_v0());
    assert_eq!(refused(&model, &ImportOptions::default()).code(), "import_tokenizer");
    let whole = small::tokenizer_bin();
    for cut in [0, 2, 5, 11, 13, 3000, whole.len() - 1] {
        let tokenizer = small::write(d.path(), "tok.bin", &whole[..cut]);
        let error = refused(&model, &options(Some(&tokenizer)));
        assert_eq!(error.code(), "import_malformed", "{cut}: {error}");
    }
    let mut nan = whole;
    nan[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let tokenizer = small::write(d.path(), "tok.bin", &nan);
    assert_eq!(refused(&model, &options(Some(&tokenizer))).code(), "import_malformed");
}

#[test]
fn the_end_token_that_templates_know_comes_first_and_bos_ends_too() {
    let d = TempDir::new().unwrap();
    small::write_folder(d.path());
    small::write(d.path(), "tokenizer.json", &small::tokenizer_json());
    small::write(d.path(), "generation_config.json", br#"{"eos_token_id":[2,9]}"#);
    small::write(
        d.path(),
        "tokenizer_config.json",
        br#"{"eos_token":"<|im_end|>","chat_template":"x{{ eos_token }}"}"#,
    );
    let out = d.path().join("x.assay");
    import_to(d.path(), &options(None), &out).unwrap();
    let artifact = Artifact::open(&out).unwrap();
    let text = artifact.text();
    assert_eq!(text.end_tokens, [257, 2, 9, 1]);
    assert!(text.has_chat_template && !text.add_bos);
    let tokenizer = Tokenizer::new(text, artifact.tokenizer_json()).unwrap();
    assert_eq!(tokenizer.encode_chat(&[], &[]).unwrap(), [u32::from(b'x'), 257]);
}

#[test]
fn an_import_over_an_existing_file_replaces_it_whole_or_not_at_all() {
    let d = TempDir::new().unwrap();
    let tokenizer = small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    let model = small::write(d.path(), "model.bin", &small::llama2c_v0());
    let out = small::write(d.path(), "x.assay", b"before");
    let cut = small::write(d.path(), "cut.bin", &small::llama2c_v0()[..500]);
    import(&cut, &options(Some(&tokenizer)), &out, &mut |_| {}).unwrap_err();
    assert_eq!(std::fs::read(&out).unwrap(), b"before");
    import_to(&model, &options(Some(&tokenizer)), &out).unwrap();
    assert_eq!(std::fs::read_dir(d.path()).unwrap().count(), 4);
}
