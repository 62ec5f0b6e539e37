//! `assay pull` from the Hugging Face Hub and the web, against servers on this machine.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;
#[path = "../../hub/tests/hugging_face/mod.rs"]
mod hugging_face;
#[path = "../../engine/tests/checkpoint/small.rs"]
mod small;

use std::path::Path;
use std::process::Output;

use harness::{assay, command, stderr, stdout};
use hugging_face::{Fault, Server, TOKEN};
use serde_json::Value;

/// A small checkpoint in a folder, as a repository has it.
fn checkpoint(folder: &Path) -> Vec<(String, Vec<u8>)> {
    small::write_folder(folder);
    small::write(folder, "tokenizer.json", &small::tokenizer_json());
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    names.map(|n| (n.to_owned(), std::fs::read(folder.join(n)).unwrap())).to_vec()
}

fn commit(server: &Server, repository: &str, files: &[(String, Vec<u8>)]) -> String {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    server.commit(repository, &files)
}

fn pull(home: &Path, server: &Server, args: &[&str]) -> Output {
    let mut command = command(home);
    command.env("HF_ENDPOINT", &server.url).env("HF_TOKEN", TOKEN).env("HF_HOME", home.join("hf"));
    command.arg("pull").args(args).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_str(&stdout(output)).unwrap()
}

#[test]
fn a_repository_has_the_same_root_everywhere() {
    let (server, homes) = (Server::start(), [(); 3].map(|()| tempfile::tempdir().unwrap()));
    let folder = homes[2].path().join("checkpoint");
    std::fs::create_dir(&folder).unwrap();
    let commit = commit(&server, "org/small", &checkpoint(&folder));
    let imported = json(&assay(homes[2].path(), &["import", folder.to_str().unwrap(), "--json"]));
    // The second machine has a worse connection.
    let first = json(&pull(homes[0].path(), &server, &["hf:org/small", "--json"]));
    server.fault("cdn:model.safetensors", [Fault::Status(503, None), Fault::Break(10_000)]);
    let second = json(&pull(homes[1].path(), &server, &["hf:org/small@main", "--json"]));
    for pulled in [&first, &second] {
        assert_eq!(pulled["root"], imported["root"]);
        assert_eq!(pulled["name"], "org/small");
        assert_eq!(pulled["source"], format!("hf:org/small@{commit}"));
    }
    assert_eq!(first["bytes"], second["bytes"]);
    let local =
        json(&assay(homes[0].path(), &["pull", folder.to_str().unwrap(), "--name", "local", "--json"]));
    assert_eq!(local["root"], imported["root"]);
    let shown = json(&assay(homes[0].path(), &["show", "org/small", "--check", "--json"]));
    assert_eq!(shown["root"], imported["root"]);
    assert_eq!(
        std::fs::read_dir(homes[0].path().join("pulls")).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

#[test]
fn an_artifact_is_checked_before_it_is_installed() {
    let (server, home) = (Server::start(), tempfile::tempdir().unwrap());
    let folder = home.path().join("checkpoint");
    std::fs::create_dir(&folder).unwrap();
    checkpoint(&folder);
    let out = home.path().join("made.assay");
    let (source, out) = (folder.to_str().unwrap(), out.to_str().unwrap());
    let made = json(&assay(home.path(), &["import", source, "--name", "org/small", "--out", out, "--json"]));
    let bytes = std::fs::read(out).unwrap();
    server.contents().files.insert("/m.assay".into(), bytes);
    let url = format!("{}/m.assay", server.url);
    let pulled = json(&pull(home.path(), &server, &[&url, "--json"]));
    assert_eq!((&pulled["root"], &pulled["name"]), (&made["root"], &Value::from("org/small")));
    // A bit of a weight is wrong: the root says so, though the transfer was right.
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
    let mut altered = std::fs::read(built_in).unwrap();
    let at = altered.len() / 2;
    altered[at] ^= 1;
    server.contents().files.insert("/altered.assay".into(), altered);
    let refused = pull(home.path(), &server, &[&format!("{}/altered.assay", server.url)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!stderr(&refused).contains(TOKEN));
    assert_eq!(std::fs::read_dir(home.path().join("models")).unwrap().count(), 1);
    assert!(stderr(&pull(home.path(), &server, &[&url, "--name", "x"])).contains("--name"));
}

#[test]
fn what_cannot_be_pulled_is_said_on_one_line() {
    let (server, home) = (Server::start(), tempfile::tempdir().unwrap());
    for (source, says) in [
        ("hf:org/none", "no model repository `org/none`"),
        ("hf:../x", "no repository"),
        ("http://example.org/x.gguf", "--allow-http"),
        ("https://example.org/x.tar", ".gguf"),
        ("nowhere", "neither a file or folder"),
        ("pypi:a", "names no version"),
        ("name@1.0.0", "--from"),
        (&"ab".repeat(32), "--from"),
    ] {
        let output = pull(home.path(), &server, &[source]);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{source}");
        assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
        assert!(message.contains(says) && !message.contains(TOKEN), "{message}");
    }
}
