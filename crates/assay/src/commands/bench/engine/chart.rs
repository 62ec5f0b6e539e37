//! `engine.svg`: everything in it follows from the rows of `engine.json`.

use assay_chart::{Panel, Scale, Series, draw};
use serde::Deserialize;

/// What `scripts/benchmarks/run.py` writes of a shape, a phase and a number of threads.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    phase: String,
    threads: u32,
    tokens_per_s: f64,
    peer: String,
    peer_tokens_per_s: f64,
    /// Millions of weights.
    weights_m: f64,
    /// What reading and multiplying leave possible.
    limit_tokens_per_s: f64,
}

/// Speed over the size of the model, with as many threads as there were at most.
pub fn svg(mut rows: Vec<Row>) -> String {
    rows.sort_by(|a, b| a.weights_m.total_cmp(&b.weights_m));
    let threads = rows.iter().map(|r| r.threads).max().unwrap_or(0);
    let peer = rows.first().map_or("", |r| r.peer.as_str());
    let of = |phase: &str| -> Vec<&Row> {
        rows.iter().filter(|r| (r.phase.as_str(), r.threads) == (phase, threads)).collect()
    };
    let panel = |title: &str, rows: &[&Row]| {
        let series = |label: &str, colour, broken, speed: fn(&Row) -> f64| Series {
            label: label.into(),
            colour,
            broken,
            points: rows.iter().map(|r| (r.weights_m.round(), speed(r))).collect(),
            spreads: vec![],
        };
        Panel {
            title: format!("{title}, {threads} threads"),
            y_label: "tokens per second".into(),
            scales: (Scale::Log, Scale::Log),
            tick: |v| format!("{v}"),
            series: vec![
                series("limit", "#7a7f85", true, |r| r.limit_tokens_per_s),
                series("Assay", "#1f5fa8", false, |r| r.tokens_per_s),
                series(peer, "#d1490c", false, |r| r.peer_tokens_per_s),
            ],
            marks: vec![],
            guides: vec![],
        }
    };
    let panels = [panel("prefill", &of("prefill")), panel("decode", &of("decode"))];
    draw("Tokens per second, and what memory and multipliers leave possible", "millions of weights", &panels)
}

#[cfg(test)]
mod tests {
    use assay_chart::is_well_formed;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_drawn_follows_from_the_rows() {
        let row = |phase: &str, threads: u32, weights: f64| {
            json!({"shape": "s", "phase": phase, "threads": threads, "tokens_per_s": 9e4 / weights, "peer": "other",
                   "peer_tokens_per_s": 3e4 / weights, "ratio": 3.0, "weights_m": weights, "limit_tokens_per_s": 2e5 / weights})
        };
        let all = [
            row("prefill", 1, 135.0),
            row("prefill", 2, 1100.0),
            row("decode", 2, 1100.0),
            row("decode", 2, 135.0),
        ];
        let svg = svg(serde_json::from_value(json!(all)).unwrap());
        assert!(is_well_formed(&svg), "{svg}");
        assert!(
            svg.contains("prefill, 2 threads") && svg.contains(">other<") && svg.contains(">limit<"),
            "{svg}"
        );
        assert_eq!(
            svg.matches("<circle").count(),
            2 + 4,
            "only rows with two threads, in the order of their weights"
        );
        assert!(super::svg(vec![]).ends_with("</svg>\n"));
    }
}
