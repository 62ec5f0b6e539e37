//! The attacks of `docs/attacks.md` that processes can play, against networks of processes: providers that execute another model, draw otherwise, sign
//! something else or hide from auditors; and an auditor that disputes what is right. They lose by it, and nobody else does.
//!
//! A network goes on until all of that has happened, and fails when it has not after ten minutes.
#![cfg(unix)]
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::{command, stdout};
use serde_json::Value;

/// Providers whose receipts a referee refutes, or that leave out a receipt, which their gateway shows: they lose their stake.
const STRUCK: [&str; 8] = [
    "hidden-cheat",
    "four-bit-weights",
    "wrong-rotary-table",
    "forged-head",
    "other-temperature",
    "other-seed",
    "swapped-token",
    "left-out-receipt",
];
/// Providers that only their clients refute: no contract reads templates.
const REFUTED: [&str; 1] = ["hidden-system-prompt"];
/// Their gateway takes none of their answers: they have what it signed for before it saw one, and less than it costs to post that.
const UNPAID: [&str; 1] = ["early-stop"];
/// At five cents a million gas, the price of docs/economics.md, 10.
const GAS_PER_UNIT: i64 = 20;
/// Looks at a network, 3 seconds apart.
const LOOKS_MAX: usize = 200;

/// What a network says of itself: live, or at its end.
fn report(home: &Path) -> Option<Value> {
    let said = command(home).args(["devnet", "report", "--json"]).output().unwrap();
    serde_json::from_str(&stdout(&said)).ok()
}

/// Runs a network with one member of each fault until it is over. Its report's lines, by fault, and what it said.
fn play(sizes: &[&str], faults: &[&str], is_over: impl Fn(&Value) -> bool) -> (Vec<(String, Value)>, String) {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("up.log");
    let mut up = command(home.path());
    up.args(["devnet", "up", "--hosts", "1", "--epoch", "15", "--audit-rate", "100"]).args(sizes);
    up.args(["--load", "4", "--listen", "127.0.0.1:0"]);
    up.args(faults.iter().flat_map(|kind| ["--fault".to_owned(), format!("{kind}:1")]));
    let out = File::create(&log).unwrap();
    let mut up = up.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(Duration::from_secs(3));
        assert!(up.try_wait().unwrap().is_none(), "{}", said());
        let lines = report(home.path()).map(|mut report| report["found"]["lines"].take());
        if lines.is_some_and(|lines| lines.as_array().unwrap().iter().all(&is_over)) {
            break;
        }
    }
    assert!(Command::new("kill").args(["-INT", &up.id().to_string()]).status().unwrap().success());
    assert!(up.wait().unwrap().success(), "{}", said());
    let report = report(home.path()).unwrap();
    assert_eq!(report["conserved"], true, "{}", said());
    let by_fault = |line: &Value| (line["fault"].as_str().unwrap_or_default().to_owned(), line.clone());
    let lines: Vec<_> = report["found"]["lines"].as_array().unwrap().iter().map(by_fault).collect();
    let missing = faults.iter().find(|kind| lines.iter().all(|(fault, _)| fault != *kind));
    assert_eq!(missing, None, "{}", said());
    (lines, said())
}

fn number(line: &Value, name: &str) -> i64 {
    line[name].as_i64().unwrap()
}

#[test]
fn who_cheats_is_struck_or_refuted_and_nobody_else_is() {
    let providers = (STRUCK.len() + REFUTED.len() + UNPAID.len() + 1).to_string();
    let faults = [&STRUCK[..], &REFUTED, &UNPAID].concat();
    let is_struck = |line: &Value| line["struck"] == true || STRUCK.iter().all(|kind| line["fault"] != *kind);
    let (lines, said) = play(&["--providers", &providers, "--auditors", "2"], &faults, is_struck);
    for (fault, line) in lines {
        let cheats = STRUCK.contains(&fault.as_str());
        assert_eq!(line["struck"], cheats, "{line}\n{said}");
        assert_eq!(line["disputes_lost"], 0, "{line}\n{said}");
        assert!(!cheats || number(&line, "profit") < 0, "{line}\n{said}");
        let is_paid = !UNPAID.contains(&fault.as_str());
        assert!(is_paid || number(&line, "profit") < number(&line, "gas") / GAS_PER_UNIT, "{line}\n{said}");
        let refuted = cheats || REFUTED.contains(&fault.as_str());
        assert_eq!(number(&line, "refuted") > 0, refuted, "{line}\n{said}");
    }
}

#[test]
fn who_disputes_what_is_right_loses_its_bonds_to_whom_it_disputed() {
    let (liar, lazy) = ("false-challenge", "lazy-auditor");
    let has_lost = |line: &Value| match line["fault"].as_str() {
        Some("false-challenge") => number(line, "disputes_lost") >= 2,
        // Its part of the stake is taken that an auditor loses who cannot open its digest.
        Some("lazy-auditor") => number(line, "profit") < -40_000_000,
        _ => true,
    };
    let (lines, said) = play(&["--providers", "2", "--auditors", "4"], &[liar, lazy], has_lost);
    let mut won = 0;
    for (fault, line) in lines {
        assert_eq!(line["struck"], false, "{line}\n{said}");
        assert_eq!(number(&line, "disputes_lost") > 0, fault == liar, "{line}\n{said}");
        let profit = number(&line, "profit");
        if line["part"] == "provider" {
            assert!(profit >= 0, "{line}\n{said}");
            won += profit;
        }
        assert!(![liar, lazy].contains(&&*fault) || profit < 0, "{line}\n{said}");
    }
    // Two bonds of twenty dollars.
    assert!(won >= 40_000_000, "{won}\n{said}");
}
