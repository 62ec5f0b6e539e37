//! Disks on which nothing more can be written, as full ones are: who cannot store what it says does not say it, nothing is charged that is not in the
//! books, and all goes on by itself when there is room again. Files may not grow here (`RLIMIT_FSIZE`), which any user can do to its processes; the chaos test
//! fills whole file systems.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Node, assay, chat, client, stderr, stdout};
use serde_json::Value;

/// Bytes that a file may have where there is no room.
const NO_ROOM: &str = "512";

/// A daemon whose writes fail where a file may not grow, instead of ending it.
fn daemon(home: &Path, args: &[&str]) -> Node {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_assay")]).args(args);
    command.env("ASSAY_HOME", home).env_remove("ASSAY_LISTEN");
    Node::at(command, "127.0.0.1:0")
}

/// How large the files of a process may grow.
fn files(node: &Node, most: &str) {
    let of = node.child.id().to_string();
    let limit = format!("--fsize={most}:unlimited");
    assert!(Command::new("prlimit").args(["--pid", &of, &limit]).status().unwrap().success());
}

/// The id of the answer's receipt, or the code of the refusal.
async fn ask(node: &Node, secret: &str, seed: u64) -> Result<String, String> {
    let asked = client().post(node.chat_url()).bearer_auth(secret);
    let response = asked.json(&chat("Once upon a time", seed, 8)).send().await.unwrap();
    if response.status().is_success() {
        return Ok(response.headers()["x-assay-receipt"].to_str().unwrap().to_owned());
    }
    let answer: Value = response.json().await.unwrap();
    Err(answer["error"]["code"].as_str().unwrap().to_owned())
}

/// Asks until there is an answer again.
async fn recovers(node: &Node, secret: &str, seed: u64) {
    for _ in 0..200 {
        if ask(node, secret, seed).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not answer again");
}

/// How many answers were charged. What is left of five dollars is what they did not cost.
fn charged(home: &Path) -> usize {
    let said = |args: &[&str]| {
        let output = assay(home, &[args, &["--json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let charges: Vec<Value> =
        said(&["keys", "usage"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum: u64 = charges.iter().map(|charge| charge["amount"].as_u64().unwrap()).sum();
    let listed: Value = serde_json::from_str(&said(&["keys", "list"])).unwrap();
    assert_eq!(listed["accounts"][0]["balance"], 5_000_000 - sum);
    charges.len()
}

#[tokio::test]
async fn a_provider_without_room_says_nothing_that_it_cannot_store_and_goes_on_when_there_is_room() {
    let home = tempfile::tempdir().unwrap();
    let node = daemon(home.path(), &["up"]);
    let mut told = vec![ask(&node, "", 1).await.unwrap()];
    files(&node, NO_ROOM);
    for seed in 10..14 {
        assert_eq!(ask(&node, "", seed).await.unwrap_err(), "internal_error");
    }
    files(&node, "unlimited");
    recovers(&node, "", 20).await;
    for seed in 30..33 {
        told.push(ask(&node, "", seed).await.unwrap());
    }
    for receipt in told {
        let shown = client().get(format!("{}/v1/receipts/{receipt}", node.url)).send().await.unwrap();
        assert_eq!(shown.status(), 200, "{receipt}");
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_write_its_books_refuses_and_charges_nothing() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let home = homes[1].path();
    let provider = daemon(homes[0].path(), &["up", "--price", "100/100"]);
    let made = assay(home, &["keys", "create", "test", "--credit", "5", "--json"]);
    let made: Value = serde_json::from_str(&stdout(&made)).unwrap();
    let secret = made["secret"].as_str().unwrap();
    let node = daemon(home, &["gateway", "--provider", &provider.url]);
    ask(&node, secret, 1).await.unwrap();
    assert_eq!(charged(home), 1);
    files(&node, NO_ROOM);
    for seed in 10..14 {
        assert_eq!(ask(&node, secret, seed).await.unwrap_err(), "internal_error");
    }
    files(&node, "unlimited");
    recovers(&node, secret, 20).await;
    ask(&node, secret, 21).await.unwrap();
    assert_eq!(charged(home), 3);
}

#[tokio::test]
async fn a_daemon_whose_log_is_full_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = harness::command(home.path());
    command.args(["up", "--listen", &at.to_string()]).stdin(Stdio::null());
    // Nothing can be written there.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let child = command.stdout(full.try_clone().unwrap()).stderr(full).spawn().unwrap();
    let node = Node { url: format!("http://{at}"), child };
    let health = format!("{}/health", node.url);
    for _ in 0..600 {
        if client().get(&health).send().await.is_ok_and(|health| health.status() == 200) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ask(&node, "", 1).await.unwrap();
    node.signal("TERM");
    assert!(node.exit().success());
}
