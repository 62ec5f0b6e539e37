//! A whole network of processes: it starts, answers who pays, and every token is accounted for.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use harness::{command, stderr, stdout};

#[test]
fn a_network_starts_answers_and_ends_with_all_its_money() {
    let home = tempfile::tempdir().unwrap();
    let mut up = command(home.path());
    up.args(["devnet", "up", "--providers", "2", "--auditors", "1", "--hosts", "1", "--epoch", "15"]);
    up.args(["--load", "4", "--for", "6", "--listen", "127.0.0.1:0", "--fault", "slow:1"]);
    let output = up.output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let said = stdout(&output);
    let line = said.lines().find(|line| line.starts_with("requests: ")).unwrap();
    let answered: u64 = line.split(", ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(answered > 0, "{said}");
    assert!(said.contains("tokens are accounted for") && said.contains("provider-2"), "{said}");
    // What they did stays, and an earlier network's data goes when the next one starts.
    assert!(home.path().join("devnet/report.json").exists());
    let kept = command(home.path()).args(["devnet", "report", "--json"]).output().unwrap();
    let kept: serde_json::Value = serde_json::from_str(&stdout(&kept)).unwrap();
    assert_eq!(kept["conserved"], true);
    assert_eq!(kept["found"]["requests"]["answered"], answered);
    assert_eq!(kept["found"]["lines"].as_array().unwrap().len(), 6);
    let wrong = command(home.path()).args(["devnet", "up", "--fault", "slow:9"]).output().unwrap();
    assert!(
        stderr(&wrong).contains("9 faults are asked for, and there are 4 providers"),
        "{}",
        stderr(&wrong)
    );
    std::fs::remove_file(home.path().join("devnet/report.json")).unwrap();
    let report = command(home.path()).args(["devnet", "report"]).output().unwrap();
    assert!(stderr(&report).contains("no report was kept"), "{}", stderr(&report));
}
