//! A whole network of processes: it starts, answers who pays, every token is accounted for, and it says of itself what the documents say that it does.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use harness::{chat, client, command, stderr, stdout};
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../../docs/operations.md");
const BOARD: &str = include_str!("../../../ops/grafana/assay.json");
const SCRAPED: &str = include_str!("../../../ops/prometheus.yml");

/// Metrics that a network of whole models does not have: of models on their way.
const OF_ARRIVALS: [&str; 3] = ["assay_arriving_bytes", "assay_arriving_size", "assay_arriving_layer"];

/// Names of metrics by daemon.
type Names = BTreeMap<String, BTreeSet<String>>;

/// The table of metrics: which daemons have which.
fn documented() -> Names {
    let mut names = Names::new();
    let section = DOCUMENT.split("### Metrics").nth(1).unwrap().split("### Traces").next().unwrap();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`').to_owned();
        for daemon in cells[2].split(", ") {
            let daemon = daemon.trim_matches(['(', ')']);
            assert!(["provider", "gateway", "host", "auditor"].contains(&daemon), "{row}");
            assert!(names.entry(daemon.to_owned()).or_default().insert(name.clone()), "{name} stands twice");
        }
    }
    names
}

/// Names of what is exposed, as queries have them.
fn exposed(text: &str) -> BTreeSet<String> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let name = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
    };
    text.lines().filter_map(name).collect()
}

/// Asks every daemon of a network for its metrics and how it is until it is told to stop. The metrics, and who was ready.
async fn watch(network: PathBuf, mut stop: tokio::sync::oneshot::Receiver<()>) -> (Names, BTreeSet<String>) {
    let (client, mut seen, mut asked) = (client(), Names::new(), BTreeSet::new());
    let mut ready = BTreeSet::new();
    while stop.try_recv().is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Ok(text) = std::fs::read_to_string(&network) else { continue };
        let network: Value = serde_json::from_str(&text).unwrap();
        let members = network["members"].as_array().unwrap();
        for member in members.iter().filter(|member| member["part"] != "operator") {
            let (part, Some(at)) = (member["part"].as_str().unwrap(), member["at"].as_str()) else {
                continue;
            };
            // Where there may be answers, a wrong question makes a refusal.
            if ["provider", "gateway"].contains(&part) && asked.insert(at.to_owned()) {
                let mut wrong = chat("hi", 1, 1);
                wrong["model"] = "no-such-model".into();
                let url = format!("http://{at}/v1/chat/completions");
                let refused = client.post(url).json(&wrong).send().await;
                assert!(refused.is_err() || refused.unwrap().status() == 404);
            }
            // It may have been stopped meanwhile.
            let Ok(response) = client.get(format!("http://{at}/metrics")).send().await else { continue };
            let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
            let Ok(text) = response.text().await else { continue };
            assert!(kind.starts_with("application/openmetrics-text"), "{part}: {kind}");
            seen.entry(part.to_owned()).or_default().extend(exposed(&text));
            let health = client.get(format!("http://{at}/health")).send().await;
            if health.is_ok_and(|health| health.status() == 200) {
                ready.insert(part.to_owned());
            }
        }
    }
    (seen, ready)
}

#[tokio::test]
async fn a_network_starts_answers_says_how_it_is_and_ends_with_all_its_money() {
    let home = tempfile::tempdir().unwrap();
    let mut up = command(home.path());
    up.args(["devnet", "up", "--providers", "2", "--auditors", "1", "--hosts", "1", "--epoch", "15"]);
    up.args(["--load", "4", "--for", "12", "--listen", "127.0.0.1:0", "--fault", "slow:1"]);
    let (over, stop) = tokio::sync::oneshot::channel();
    let watching = tokio::spawn(watch(home.path().join("devnet/network.json"), stop));
    let output = tokio::task::spawn_blocking(move || up.output().unwrap()).await.unwrap();
    over.send(()).unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let said = stdout(&output);
    let line = said.lines().find(|line| line.starts_with("requests: ")).unwrap();
    let answered: u64 = line.split(", ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(answered > 0, "{said}");
    assert!(said.contains("tokens are accounted for") && said.contains("provider-2"), "{said}");

    // What daemons count is what the table says, both ways.
    let ((seen, ready), mut documented) = (watching.await.unwrap(), documented());
    for names in documented.values_mut() {
        names.retain(|name| !OF_ARRIVALS.contains(&name.as_str()));
    }
    assert_eq!(seen, documented);
    assert!(ready.iter().eq(documented.keys()), "{ready:?}");

    let scraped = std::fs::read_to_string(home.path().join("devnet/prometheus.yml")).unwrap();
    for member in ["gateway", "provider-1", "provider-2", "auditor-1", "host-1"] {
        assert!(scraped.contains(&format!("member: {member} ")), "{scraped}");
    }
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

/// Everything in a query that can only be a metric of ours.
fn metrics_of(query: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = query.split(|c| !is_name(c));
    words
        .filter(|w| ["assay_", "hub_", "vllm:"].iter().any(|p| w.starts_with(p)))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_board_asks_for_what_daemons_expose() {
    let board: Value = serde_json::from_str(BOARD).unwrap();
    let known: BTreeSet<String> = documented().into_values().flatten().collect();
    let panels = board["panels"].as_array().unwrap();
    let (mut rows, mut asked) = (Vec::new(), BTreeSet::new());
    for panel in panels {
        if panel["type"] == "row" {
            rows.push(panel["title"].as_str().unwrap());
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", panel["title"]);
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let names = metrics_of(query);
            assert!(!names.is_empty(), "{query}");
            for name in names {
                // A histogram is asked for by its parts.
                let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
                let whole = whole.filter(|whole| known.contains(*whole)).unwrap_or(&name).to_owned();
                assert!(known.contains(&whole), "{name} in `{query}`");
                asked.insert(whole);
            }
        }
    }
    assert_eq!(rows, ["Gateway", "Providers", "Auditors", "Hosts", "Money"]);
    // Nothing that is counted is forgotten, but what another panel says better.
    let unseen: Vec<&String> = known.difference(&asked).collect();
    assert_eq!(unseen, [&"assay_arriving_layer".to_owned()]);
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for at in ["127.0.0.1:11711", "127.0.0.1:11721", "127.0.0.1:11731", "127.0.0.1:11741"] {
        assert!(SCRAPED.contains(at) && DOCUMENT.contains(at), "{at}");
    }
}
