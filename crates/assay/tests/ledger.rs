//! The ledger from the command line: a chain, a deployment, money in and out, stake; and what happens when processes are killed.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use harness::{Chain, assay, command, stderr, stdout};
use serde_json::Value;

fn json(home: &Path, chain: &Chain, args: &[&str]) -> Value {
    let output = on(home, chain, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn on(home: &Path, chain: &Chain, args: &[&str]) -> Output {
    command(home).env("ASSAY_RPC", &chain.url).args(args).output().unwrap()
}

fn fine(home: &Path, chain: &Chain, args: &[&str]) -> String {
    let output = on(home, chain, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

fn refused(home: &Path, chain: &Chain, args: &[&str]) -> String {
    let output = on(home, chain, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stdout(&output));
    stderr(&output)
}

#[test]
fn money_goes_in_is_staked_and_comes_out() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let chain = Chain::start(home, &[]);
    // Before there is a ledger, commands say what to do.
    let none = refused(home, &chain, &["balance"]);
    assert!(none.contains("assay ledger deploy"), "{none}");
    let file = home.join("numbers.toml");
    std::fs::write(&file, "[times]\nrefundSeconds = 86400\n").unwrap();
    let deployed = json(home, &chain, &["ledger", "deploy", "--parameters", file.to_str().unwrap()]);
    assert_eq!(deployed["chain_id"], 31_337);
    let params = json(home, &chain, &["ledger", "params"]);
    assert_eq!(params["times"]["refundSeconds"], 86_400);
    assert_eq!(params["times"]["epochSeconds"], 86_400);

    let poor = refused(home, &chain, &["deposit", "25"]);
    assert!(poor.contains("has 0.00 of the token"), "{poor}");
    fine(home, &chain, &["ledger", "faucet", "--amount", "100"]);
    let deposited = json(home, &chain, &["deposit", "60.5"]);
    assert_eq!((&deposited["deposited"], &deposited["balance"]), (&60_500_000.into(), &60_500_000.into()));
    let staked = json(home, &chain, &["stake", "20", "--endpoint", "https://node.example"]);
    assert_eq!(staked["stake"], 20_000_000);
    let much = refused(home, &chain, &["stake", "41"]);
    assert!(much.contains("has 40.50 on the ledger"), "{much}");
    let leaving = json(home, &chain, &["unstake", "5"]);
    assert_eq!((&leaving["stake"], &leaving["unbonding"]), (&15_000_000.into(), &5_000_000.into()));
    let early = refused(home, &chain, &["unstake"]);
    assert!(early.contains("5.00 are leaving"), "{early}");
    fine(home, &chain, &["withdraw", "40.5", "--to", "0x4242424242424242424242424242424242424242"]);
    let balance = json(home, &chain, &["balance"]);
    assert_eq!(
        ["wallet", "ledger", "stake", "unbonding"].map(|name| balance[name].as_u64().unwrap()),
        [39_500_000, 0, 15_000_000, 5_000_000]
    );
    let other = json(home, &chain, &["balance", "0x4242424242424242424242424242424242424242"]);
    assert_eq!(other["wallet"], 40_500_000);
    let status = json(home, &chain, &["ledger", "status"]);
    assert_eq!((&status["chain"]["id"], &status["epoch"]), (&31_337.into(), &0.into()));
    assert_eq!(status["contracts"]["directory"], deployed["directory"]);
    for table in [["ledger", "status"], ["ledger", "params"]] {
        assert!(fine(home, &chain, &table).contains("epoch"));
    }
    assert!(fine(home, &chain, &["balance"]).contains("39.50"));

    // Somebody else uses the same ledger by its address.
    let elsewhere = tempfile::tempdir().unwrap();
    let directory = deployed["directory"].as_str().unwrap();
    fine(elsewhere.path(), &chain, &["ledger", "use", directory]);
    assert_eq!(json(elsewhere.path(), &chain, &["balance"])["wallet"], 0);
    let wrong =
        refused(elsewhere.path(), &chain, &["ledger", "use", "0x4242424242424242424242424242424242424242"]);
    assert!(wrong.contains("no contract at"), "{wrong}");
}

#[test]
fn a_killed_chain_has_everything_that_it_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut chain = Chain::start(home, &[]);
    json(home, &chain, &["ledger", "deploy"]);
    fine(home, &chain, &["ledger", "faucet"]);
    json(home, &chain, &["deposit", "7"]);
    // As by kill -9: no handler runs.
    chain.child.kill().unwrap();
    chain.child.wait().unwrap();
    let gone = refused(home, &chain, &["balance"]);
    assert!(gone.contains("the chain cannot be asked") || gone.contains("assay chain"), "{gone}");
    let chain = Chain::start(home, &[]);
    assert_eq!(json(home, &chain, &["balance"])["ledger"], 7_000_000);
    // Another chain with the same id is not taken for it.
    let another = tempfile::tempdir().unwrap();
    let other = Chain::start(another.path(), &["--in-memory"]);
    let refusal = refused(home, &other, &["balance"]);
    assert!(refusal.contains("on another chain"), "{refusal}");
    // Two processes on one folder would be two chains.
    let second = command(home).args(["chain", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(stderr(&second).contains("another process has this chain open"), "{}", stderr(&second));
}

/// Killed between any two contracts, a deployment goes on where it was.
#[test]
fn a_killed_deployment_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let chain = Chain::start(home, &["--block-time", "0.1"]);
    let mut kills = 0;
    for wait in [400, 700, 500, 900] {
        let mut deploy =
            command(home).env("ASSAY_RPC", &chain.url).args(["ledger", "deploy"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        if deploy.try_wait().unwrap().is_none() {
            deploy.kill().unwrap();
            kills += 1;
        }
        deploy.wait().unwrap();
    }
    assert!(kills > 0, "the deployment was never interrupted");
    json(home, &chain, &["ledger", "deploy"]);
    fine(home, &chain, &["ledger", "faucet", "--amount", "3"]);
    assert_eq!(json(home, &chain, &["deposit", "2"])["balance"], 2_000_000);
    // The defaults are shown without any chain.
    let defaults = assay(home, &["ledger", "params", "--defaults", "--json"]);
    assert!(stdout(&defaults).contains("\"epochSeconds\":86400"));
}

#[test]
fn an_auditor_says_what_it_lacks_takes_its_seats_and_stops() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let chain = Chain::start(home, &[]);
    fine(home, &chain, &["ledger", "deploy"]);
    let unknown = refused(home, &chain, &["auditor"]);
    assert!(unknown.contains("a seat needs 100.00") && unknown.contains("--role auditor"), "{unknown}");
    fine(home, &chain, &["ledger", "faucet", "--amount", "1000"]);
    fine(home, &chain, &["deposit", "250"]);
    fine(home, &chain, &["stake", "250", "--role", "auditor"]);
    let mut auditor = command(home)
        .env("ASSAY_RPC", &chain.url)
        .args(["auditor", "--listen", "127.0.0.1:0", "--seats", "3", "--every", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(auditor.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = |wanted: &str| assert!(lines.any(|line| line.contains(wanted)), "it never said: {wanted}");
    said("`assay deposit` brings more in");
    said("seats taken");
    said("seats are missing, and so is stake: `assay stake 50.00`");
    let status = std::process::Command::new("kill").args(["-TERM", &auditor.id().to_string()]).status();
    assert!(status.unwrap().success());
    said("stopping");
    assert!(auditor.wait().unwrap().success());
    let reserved = refused(home, &chain, &["unstake", "100"]);
    assert!(reserved.contains("has 50.00 at stake that no seat or pledge needs"), "{reserved}");
}
