//! A network of processes that are killed, held, cut off from each other and asked twice at random, on disks that are full and by clocks that are wrong, over
//! a chain that stands still and takes blocks back. What must hold all the same: no honest member is struck or loses money, no receipt that a client was told
//! vanishes, nothing is charged twice, every token is accounted for, and clients see failures only while nobody could have answered them.
//!
//! `ASSAY_CHAOS_SECONDS` plays longer, `ASSAY_CHAOS_SEED` plays other troubles. What this machine does not permit is not played, and said.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use harness::{command, stderr, stdout};

#[test]
fn what_is_killed_held_cut_off_full_or_wrong_loses_nothing_and_nobody() {
    let from = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (seconds, seed) = (from("ASSAY_CHAOS_SECONDS", "120"), from("ASSAY_CHAOS_SEED", "1"));
    let home = tempfile::tempdir().unwrap();
    let mut up = command(home.path());
    up.args(["devnet", "up", "--providers", "3", "--auditors", "2", "--hosts", "2", "--epoch", "30"]);
    up.args([
        "--load",
        "3",
        "--for",
        &seconds,
        "--quiet-for",
        "75",
        "--chaos",
        &seed,
        "--listen",
        "127.0.0.1:0",
    ]);
    let output = up.output().unwrap();
    let said = stdout(&output);
    assert!(output.status.success(), "{said}{}", stderr(&output));
    let report = command(home.path()).args(["devnet", "report", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_str(&stdout(&report)).unwrap();
    let found = &report["found"];
    assert_eq!(report["conserved"], true);
    for line in found["lines"].as_array().unwrap() {
        assert_eq!(line["struck"], false, "{line}\n{said}");
        let earns = ["provider", "auditor", "host"].contains(&line["part"].as_str().unwrap());
        assert!(!earns || line["profit"].as_i64().unwrap() >= 0, "{line}\n{said}");
    }
    let chaos = &found["chaos"];
    assert!(chaos["receipts"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(
        (&chaos["vanished"], &chaos["unexplained"], &chaos["charged_twice"]),
        (&serde_json::json!([]), &serde_json::json!([]), &serde_json::json!(0)),
        "{said}"
    );
    for (kind, times) in chaos["troubles"].as_object().unwrap() {
        eprintln!("played {times} times: {kind}");
    }
    for (kind, why) in chaos["not_played"].as_object().unwrap() {
        eprintln!("NOT PLAYED: {kind}: {why}");
    }
}
