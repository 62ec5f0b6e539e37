//! `assay doctor` beside installations that are broken in one way each: it says what, and changes nothing.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use assay_core::id::{ChannelId, DigestRoot, ModelRoot, Nonce, RequestHash, TranscriptRoot};
use assay_core::receipt::Receipt;
use assay_ledger::client::Client;
use assay_ledger::contracts::Objections;
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::{Policy, Sender};
use assay_node::key::NodeKey;
use harness::{Chain, Node, command, fine, stderr, stdout};
use serde_json::Value;

/// A chain with a ledger, and data directories to which it was named and that have money.
fn ledger(operator: &Path, homes: &[&Path]) -> (Chain, String) {
    let chain = Chain::start(operator, &["--in-memory"]);
    let deployed = stdout(&fine(operator, &["ledger", "deploy", "--rpc", &chain.url, "--json"]));
    let deployed: Value = serde_json::from_str(&deployed).unwrap();
    let directory = deployed["directory"].as_str().unwrap().to_owned();
    for home in homes {
        fine(home, &["ledger", "use", &directory, "--rpc", &chain.url]);
        fine(home, &["ledger", "faucet", "--amount", "100"]);
    }
    (chain, directory)
}

/// What the doctor found.
struct Found {
    output: Output,
    /// Level and text by code; of a code that is given twice, the worse.
    all: BTreeMap<String, (String, String)>,
}

impl Found {
    fn by(mut command: Command) -> Found {
        let output = command.output().unwrap();
        let said: Value = serde_json::from_str(&stdout(&output))
            .unwrap_or_else(|e| panic!("{e}: {}{}", stdout(&output), stderr(&output)));
        let mut all = BTreeMap::new();
        for finding in said["findings"].as_array().unwrap() {
            let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            let level = text("level");
            assert_eq!(finding["ok"] == false, level == "wrong");
            // Whatever is not well says what to do.
            assert_eq!(text("next").is_empty(), level == "ok", "{finding}");
            all.insert(text("code"), (level, format!("{}: {}", text("what"), text("detail"))));
        }
        let wrong = all.values().any(|(level, _)| level == "wrong");
        assert_eq!(output.status.code(), Some(i32::from(wrong)));
        assert_eq!(said["ok"], !wrong);
        Found { output, all }
    }

    fn at(home: &Path, args: &[&str]) -> Found {
        let mut doctor = command(home);
        doctor.args(["doctor", "--json"]).args(args);
        Found::by(doctor)
    }

    fn level(&self, code: &str) -> Option<&str> {
        self.all.get(code).map(|(level, _)| level.as_str())
    }

    fn detail(&self, code: &str) -> &str {
        &self.all.get(code).unwrap_or_else(|| panic!("{code}: {}", stdout(&self.output))).1
    }

    fn wrong(&self) -> Vec<&str> {
        self.all.iter().filter(|(_, (level, _))| level == "wrong").map(|(code, _)| code.as_str()).collect()
    }
}

#[test]
fn nothing_is_wrong_with_a_new_installation_and_nothing_is_made() {
    let above = tempfile::tempdir().unwrap();
    let home = above.path().join("new");
    // Its provider would listen where others may: it is told to listen elsewhere.
    let mut doctor = command(&home);
    doctor.env("ASSAY_LISTEN", "127.0.0.1:0").args(["doctor", "--json"]);
    let found = Found::by(doctor);
    assert_eq!(found.wrong(), Vec::<&str>::new(), "{}", stdout(&found.output));
    for code in ["data_directory", "key", "kernel", "vectors", "model", "not_running", "ledger_none"] {
        assert_eq!(found.level(code), Some("ok"), "{code}");
    }
    assert!(found.detail("key").contains("none yet"));
    assert!(!home.exists() && std::fs::read_dir(above.path()).unwrap().next().is_none());
    // For people.
    let mut doctor = command(&home);
    let said = stdout(&doctor.env("ASSAY_LISTEN", "127.0.0.1:0").arg("doctor").output().unwrap());
    assert!(said.contains("✓ built-in model") && !said.contains('✗'), "{said}");
}

#[test]
#[cfg(unix)]
fn a_secret_that_others_may_read_books_that_are_none_and_a_collector_that_is_gone() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fine(home, &["keys", "create", "test", "--credit", "1"]);
    NodeKey::load_or_create(&home.join("node/key")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!("[gateway]\nlisten = \"{}\"\n", taken.local_addr().unwrap());
    std::fs::write(home.join("assay.toml"), config).unwrap();
    let found = Found::at(home, &[]);
    assert_eq!(found.wrong(), ["port_taken"], "{}", stdout(&found.output));
    assert_eq!(found.level("accounts"), Some("ok"));
    drop(taken);

    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(home.join("node/key"), mode).unwrap();
    for rest in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(home.join(format!("accounts.sqlite{rest}")));
    }
    std::fs::write(home.join("accounts.sqlite"), "this is no database, whatever its name says").unwrap();
    let mut doctor = command(home);
    // Nobody listens at port 1.
    doctor.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1").args(["doctor", "--json"]);
    let found = Found::by(doctor);
    assert_eq!(found.wrong(), ["accounts_unusable", "secret_permissions"], "{}", stdout(&found.output));
    assert!(found.detail("secret_permissions").contains("mode 644"));
    assert_eq!(found.level("collector_unreachable"), Some("warning"));
    // A provider that has never run has not been made one by being looked at.
    assert!(!home.join("node/receipts.redb").exists() && !home.join("locks").exists());
}

#[test]
fn a_chain_that_is_gone_or_another_and_a_node_that_has_nothing() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [operator, home] = [homes[0].path(), homes[1].path()];
    let (chain, directory) = ledger(operator, &[home]);
    let found = Found::at(home, &[]);
    assert_eq!(found.level("ledger"), Some("ok"));
    assert_eq!((found.level("chain"), found.level("coins")), (Some("ok"), Some("ok")));

    // An auditor that was never enrolled, with another key, which has nothing.
    std::fs::write(home.join("assay.toml"), "[auditor]\nseats = 2\n").unwrap();
    let poor = tempfile::tempdir().unwrap();
    let key = poor.path().join("key");
    NodeKey::load_or_create(&key).unwrap();
    let found = Found::at(home, &["--key", key.to_str().unwrap()]);
    let wrong: Vec<&str> = found.wrong().into_iter().filter(|code| *code != "port_taken").collect();
    assert_eq!(wrong, ["no_coins", "node_not_enrolled"], "{}", stdout(&found.output));

    // Another chain answers at the address.
    let other = Chain::start(operator, &["--in-memory", "--chain-id", "4242"]);
    let found = Found::at(home, &["--rpc", &other.url]);
    assert!(found.wrong().contains(&"ledger_other_chain"), "{}", stdout(&found.output));
    assert!(found.detail("ledger_other_chain").contains("chain 4242"));
    let none = "0x00000000000000000000000000000000000000aa";
    let found = Found::at(home, &["--rpc", &chain.url, "--directory", none]);
    assert!(found.wrong().contains(&"ledger_no_contracts"), "{}", stdout(&found.output));
    drop(chain);
    let found = Found::at(home, &[]);
    assert!(found.wrong().contains(&"ledger_unreachable"), "{directory}: {}", stdout(&found.output));
}

/// A receipt that a key signs twice, differently.
fn receipt(provider: &NodeKey, answer: u8) -> Receipt {
    Receipt {
        provider: provider.address(),
        sequence: 7,
        model_root: ModelRoot::from_bytes([1; 32]),
        request_hash: RequestHash::from_bytes([2; 32]),
        transcript_root: TranscriptRoot::from_bytes([answer; 32]),
        digest_root: DigestRoot::from_bytes([4; 32]),
        prompt_tokens: 1,
        completion_tokens: 1,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::ZERO,
        epoch: 0,
    }
}

#[tokio::test]
async fn an_endpoint_of_another_node_and_a_node_that_was_struck() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [operator, home, other] = homes.each_ref().map(|home| home.path());
    let (chain, directory) = ledger(operator, &[home]);
    let (mine, theirs) = (Node::up(home, false, &[]), Node::up(other, false, &[]));
    let enrol = |url: &str| {
        fine(home, &["stake", "0", "--role", "provider", "--endpoint", url]);
    };
    enrol(&theirs.url);
    let found = Found::at(home, &[]);
    assert_eq!(found.wrong(), ["endpoint_other_key"], "{}", stdout(&found.output));
    assert_eq!((found.level("running"), found.level("node")), (Some("ok"), Some("ok")));
    assert_eq!(found.level("stake_none"), Some("warning"));
    enrol(&mine.url);
    let found = Found::at(home, &[]);
    assert_eq!(found.wrong(), Vec::<&str>::new(), "{}", stdout(&found.output));
    // It has stopped, and its endpoint leads nowhere.
    mine.signal("TERM");
    assert!(mine.exit().success());
    let mut doctor = command(home);
    doctor.env("ASSAY_LISTEN", "127.0.0.1:0").args(["doctor", "--json"]);
    let found = Found::by(doctor);
    assert_eq!(found.wrong(), ["endpoint_unreachable"], "{}", stdout(&found.output));

    // It signs one number twice, and somebody shows that.
    let rpc = Client::connect(&chain.url).await.unwrap();
    let ledger = Ledger::at(rpc.clone(), directory.parse().unwrap()).await.unwrap();
    let key = NodeKey::load_or_create(&home.join("node/key")).unwrap();
    let signed = [3, 4].map(|answer| key.sign(receipt(&key, answer), ledger.receipt_domain()).unwrap());
    let [x, y] = &signed;
    let call = Objections::proveConflictCall {
        x: (&x.receipt).into(),
        xSignature: x.signature.as_bytes().to_vec().into(),
        y: (&y.receipt).into(),
        ySignature: y.signature.as_bytes().to_vec().into(),
    };
    let folder = operator.join("proof");
    let sender = Sender::open(rpc, key.signer().clone(), &folder, Policy::DEVELOPMENT).await.unwrap();
    sender.send("show a conflict", ledger.parts().at.objections, &call).await.unwrap();
    let mut doctor = command(home);
    doctor.env("ASSAY_LISTEN", "127.0.0.1:0").args(["doctor", "--json"]);
    let found = Found::by(doctor);
    assert_eq!(found.wrong(), ["node_struck"], "{}", stdout(&found.output));
}
