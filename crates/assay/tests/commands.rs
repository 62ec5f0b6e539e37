//! The commands that need no running node.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;
#[path = "../../engine/tests/checkpoint/small.rs"]
mod small;

use std::path::Path;

use harness::{MODEL, assay, stderr, stdout};
use serde_json::Value;

fn json(home: &Path, args: &[&str]) -> Value {
    let output = assay(home, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn a_model_is_imported_listed_shown_run_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("checkpoint");
    std::fs::create_dir(&folder).unwrap();
    small::write_folder(&folder);
    small::write(&folder, "tokenizer.json", &small::tokenizer_json());
    let imported = json(
        home.path(),
        &["import", folder.to_str().unwrap(), "--name", "org/small", "--licence", "MIT", "--json"],
    );
    assert_eq!(imported["name"], "org/small");

    let list = json(home.path(), &["list", "--json"]);
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"org/small"), "{names:?}");
    let root = imported["root"].as_str().unwrap();
    let shown = json(home.path(), &["show", root, "--check", "--json"]);
    assert_eq!(
        (&shown["root"], &shown["licence"], &shown["context"]),
        (&imported["root"], &Value::from("MIT"), &Value::from(32))
    );

    let record = json(home.path(), &["run", "org/small", "ab", "--max-tokens", "3", "--seed", "1", "--json"]);
    assert_eq!(record["request"]["model"], imported["root"]);
    let id = stdout(&assay(home.path(), &["run", "org/small", "ab", "--max-tokens", "3"]));
    assert!(!id.is_empty());
    let file = home.path().join("record.json");
    std::fs::write(&file, record.to_string()).unwrap();
    assert!(assay(home.path(), &["verify", file.to_str().unwrap()]).status.success());

    // Without the model an answer cannot be checked, but an altered one is still found out.
    assert!(assay(home.path(), &["rm", "org/small"]).status.success());
    assert_eq!(assay(home.path(), &["verify", file.to_str().unwrap()]).status.code(), Some(2));
    let mut altered = record.clone();
    altered["request"]["sampling"]["seed"] = Value::from(2);
    std::fs::write(&file, altered.to_string()).unwrap();
    assert_eq!(assay(home.path(), &["verify", file.to_str().unwrap()]).status.code(), Some(1));

    let gone = assay(home.path(), &["show", "org/small"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("assay import"), "{}", stderr(&gone));
    assert!(!assay(home.path(), &["rm", MODEL]).status.success(), "the built-in model stays");
}

/// Every file that cannot be imported gets one line that says why, and leaves nothing behind.
#[test]
fn what_cannot_be_imported() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("checkpoint");
    std::fs::create_dir(&folder).unwrap();
    let refused = |source: &Path, says: &str| {
        let output = assay(home.path(), &["import", source.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        let message = stderr(&output);
        assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
        assert!(message.contains(says), "{message}");
        let models = home.path().join("models");
        let left = std::fs::read_dir(models).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing is left behind");
    };
    refused(Path::new("/nowhere"), "no such file");
    refused(&folder, "config.json");
    small::write_folder(&folder);
    std::fs::write(folder.join("config.json"), small::CONFIG.replace("LlamaForCausalLM", "OtherForCausalLM"))
        .unwrap();
    refused(&folder, "OtherForCausalLM");
    small::write_folder(&folder);
    let mut weights = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
    let weights = weights.find(|p| p.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 10]).unwrap();
    refused(&folder, "malformed");
    let mut hostile = whole.clone();
    hostile[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&weights, hostile).unwrap();
    refused(&folder, "malformed");
    let text = home.path().join("text.txt");
    std::fs::write(&text, "x").unwrap();
    refused(&text, "neither a folder");
}

#[test]
fn the_vectors_are_the_published_ones() {
    let home = tempfile::tempdir().unwrap();
    let printed = stdout(&assay(home.path(), &["vectors"]));
    assert_eq!(printed, include_str!("../../../docs/vectors/int8-v1.txt"));
    let vectors = json(home.path(), &["vectors", "--json"]);
    assert!(vectors["equal"].as_object().unwrap().values().all(|v| *v == true));
}

#[test]
fn the_doctor_finds_a_damaged_model_and_a_damaged_key() {
    let home = tempfile::tempdir().unwrap();
    let find = |what: &str| {
        let output = assay(home.path(), &["doctor", "--json"]);
        let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let all = found["findings"].as_array().unwrap();
        all.iter().find(|f| f["what"].as_str().unwrap() == what).unwrap()["ok"].as_bool().unwrap()
    };
    assert!(find("built-in model") && find("key") && find("vectors scalar"));
    let mut bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::create_dir_all(home.path().join("models")).unwrap();
    std::fs::write(home.path().join("models/damaged.assay"), bytes).unwrap();
    assert!(!find("damaged.assay"));
    std::fs::create_dir_all(home.path().join("node")).unwrap();
    std::fs::write(home.path().join("node/key"), "nonsense").unwrap();
    assert!(!find("key"));
}

#[test]
fn loss_is_measured() {
    let home = tempfile::tempdir().unwrap();
    let text = home.path().join("text.txt");
    std::fs::write(&text, "Once upon a time, there was a little girl named Lily. She loved to play outside.")
        .unwrap();
    let loss = json(home.path(), &["bench", "--json", "loss", MODEL, text.to_str().unwrap()]);
    let nats = loss["nats_per_token"].as_f64().unwrap();
    assert!((0.1..2.5).contains(&nats), "a story model reads a story: {nats}");
}

#[test]
fn help_completions_and_wrong_arguments() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&assay(home.path(), &["completions", shell])).contains("assay"));
    }
    for command in [
        "up", "serve", "run", "import", "list", "show", "rm", "verify", "audit", "key", "trace", "dispute",
        "vectors", "doctor", "bench", "chain", "ledger", "deposit", "withdraw", "balance", "stake",
        "unstake",
    ] {
        assert!(assay(home.path(), &[command, "--help"]).status.success(), "{command}");
    }
    assert_eq!(assay(home.path(), &["serve"]).status.code(), Some(2));
    assert_eq!(assay(home.path(), &["verify"]).status.code(), Some(2));
    let unknown = assay(home.path(), &["serve", "no-such-model"]);
    assert!(stderr(&unknown).contains("assay import"), "{}", stderr(&unknown));
    let kernel = harness::command(home.path())
        .env("ASSAY_KERNEL", "quantum")
        .args(["run", MODEL, "hi"])
        .output()
        .unwrap();
    assert!(stderr(&kernel).contains("quantum") && stderr(&kernel).contains("scalar"), "{}", stderr(&kernel));
}
