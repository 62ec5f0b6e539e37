//! A provider that executes another model than its receipts name and answers no auditor, in a network of processes: auditors have the ledger make it show what
//! it signed, one of them disputes it, and it is struck. Nobody else is.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use harness::{command, stderr, stdout};

#[test]
fn a_cheat_that_answers_no_auditor_is_struck_all_the_same() {
    let home = tempfile::tempdir().unwrap();
    let mut up = command(home.path());
    up.args(["devnet", "up", "--providers", "1", "--auditors", "2", "--hosts", "1", "--epoch", "15"]);
    up.args(["--load", "2", "--audit-rate", "100", "--fault", "hidden-cheat:1", "--for", "100"]);
    let output = up.args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let said = stdout(&output);
    assert!(output.status.success(), "{said}{}", stderr(&output));
    let report = command(home.path()).args(["devnet", "report", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_str(&stdout(&report)).unwrap();
    assert_eq!(report["conserved"], true);
    for line in report["found"]["lines"].as_array().unwrap() {
        let cheats = line["fault"] == "hidden-cheat";
        assert_eq!(line["struck"], cheats, "{line}\n{said}");
        assert_eq!(line["disputes_lost"], 0, "{line}\n{said}");
        // What it is asked on the ledger earns it nothing.
        assert!(!cheats || line["profit"].as_i64().unwrap() < 0, "{line}\n{said}");
    }
}
