//! `verification.md` and `verification.svg`: everything that they say follows from the rows.

use std::collections::BTreeSet;

use assay_chart::{Mark, Panel, Scale, Series, draw};

use super::fit::PowerLaw;
use super::row::{Row, Tier, distinct, find};

mod conclusions;
mod tables;

/// The length whose costs are drawn and held to the targets.
pub const T: u32 = 512;

/// Most that a light audit may cost for an opened token of [`T`] positions, by width.
pub const LIGHT_TARGETS: [(u32, f64); 4] = [(576, 1.0), (2048, 2.0), (4096, 8.0), (8192, 40.0)];

/// Three significant digits, more only of whole numbers.
fn sig(v: f64) -> String {
    if v == 0.0 || !v.is_finite() {
        return "0".into();
    }
    let digits = (2.0 - v.abs().log10().floor()).max(0.0) as usize;
    let shown = format!("{v:.digits$}");
    // Rounding may have made another digit: 9.995 is 10.0, not 10.00.
    let digits = (2.0 - shown.parse::<f64>().unwrap_or(v).abs().log10().floor()).max(0.0) as usize;
    format!("{v:.digits$}")
}

/// A power of ten.
fn sig_tick(v: f64) -> String {
    let digits = (-v.log10().round()).max(0.0) as usize;
    format!("{v:.digits$}")
}

fn percent(share: f64) -> String {
    format!("{} %", sig(100.0 * share))
}

/// Bytes with a unit of thousands.
fn bytes(n: f64) -> String {
    let (unit, name) = match n {
        n if n >= 1e9 => (1e9, "GB"),
        n if n >= 1e6 => (1e6, "MB"),
        n if n >= 1e3 => (1e3, "kB"),
        _ => (1.0, "B"),
    };
    format!("{} {name}", sig(n / unit))
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        out.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    out
}

/// What a row says of a tier.
type Of = fn(&Row) -> f64;

/// Points of a tier over widths.
fn curve(rows: &[Row], t: u32, tier: Tier, of: Of) -> Vec<(f64, f64)> {
    let tier = rows.iter().filter(|r| (r.t, r.tier) == (t, tier));
    tier.map(|r| (f64::from(r.d), of(r))).collect()
}

/// The widths, lengths and tiers that there are.
fn measured(rows: &[Row]) -> (Vec<u32>, Vec<u32>, Vec<Tier>) {
    let tiers = Tier::ALL.into_iter().filter(|t| rows.iter().any(|r| r.tier == *t)).collect();
    (distinct(rows, |r| r.d), distinct(rows, |r| r.t), tiers)
}

/// The length that charts and targets are about: [`T`], or the longest there is.
fn length(rows: &[Row]) -> u32 {
    let all = distinct(rows, |r| r.t);
    if all.contains(&T) { T } else { all.last().copied().unwrap_or(T) }
}

/// The whole report.
pub fn markdown(rows: &[Row]) -> String {
    let sections = [
        head(rows),
        conclusions::answer(rows),
        "![Cost of each way to check, and its share of re-execution, over the width of the model](verification.svg)\n".into(),
        conclusions::targets(rows),
        conclusions::exponents(rows),
        conclusions::cheapest(rows),
        conclusions::network(rows),
        tables::executions(rows),
        tables::tiers(rows),
        tables::parts(rows),
        tables::sizes(rows),
        tables::extrapolation(rows),
        method(rows),
    ];
    let mut text = sections.join("\n");
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn head(rows: &[Row]) -> String {
    let setups: BTreeSet<(&str, &str)> =
        rows.iter().map(|r| (r.machine.as_str(), r.commit.as_str())).collect();
    let mut out = "# Does verification stay cheap as models grow?\n\n".to_owned();
    out.push_str(
        "`assay bench verification` measures this and writes this page, [its numbers](verification.json) and its chart. The numbers \
         are one core's milliseconds: the time that the measuring thread spent on a processor, one thread at work, medians of a few \
         rounds. *Per token* is per position of the sequence, half of which is prompt; for the light audit per position opened.\n\n",
    );
    for (machine, commit) in &setups {
        let own = |r: &&Row| (r.machine.as_str(), r.commit.as_str()) == (*machine, *commit);
        let widths = if setups.len() == 1 {
            String::new()
        } else {
            let of: Vec<Row> = rows.iter().filter(own).cloned().collect();
            let widths: Vec<String> = distinct(&of, |r| r.d).iter().map(u32::to_string).collect();
            format!(" (widths {})", widths.join(", "))
        };
        out.push_str(&format!("Measured on {machine}, commit `{commit}`{widths}.\n"));
    }
    out
}

fn method(rows: &[Row]) -> String {
    let (_, _, tiers) = measured(rows);
    let mut out = String::from(
        "## How it was measured\n\n\
         - **Models** have the proportions of real ones (table above) and random weights: what is measured does not depend on the weights. \
         Where \"measured\" is less than \"layers\", so many layers and the head were executed, and a cost is `head + layers · (with layers - \
         without) / measured`. The table *One layer for all of them* compares this with whole models.\n\
         - **Generation** reads the prompt in chunks of 256 tokens and then decodes one token at a time; decoding is measured at the \
         beginning, the middle and the end of the answer, between which attention grows linearly, over caches filled with made-up keys and \
         values. Sampling is over the whole distribution at temperature 1. *16 streams* decodes 16 sequences in one pass: what a busy provider \
         does, and the honest denominator.\n\
         - **Re-execution** is one teacher-forced pass over all positions, with logits where tokens are chosen, the choices and the \
         execution digests. Receipts, templates and tokenizers, a fraction of a millisecond an answer, are not in it.\n",
    );
    for tier in tiers {
        out.push_str(match tier {
            Tier::Reexec => "",
            Tier::Shard => {
                "- **Layer shard**: one layer is executed for all positions from the states committed before it; hashing the states before \
                 and after it, and its keys and values, is in it. It convinces of that layer only.\n"
            }
            Tier::Light => {
                "- **Light audit**: the positions drawn are executed with opened accumulators. Decoding the opening, hashing all keys and \
                 values before them, filling the caches, Freivalds' check of every product, attention, everything elementwise and the \
                 choice of the token are in it, and the whole is divided by the positions opened.\n"
            }
            Tier::Batch => {
                "- **Batch check**: the whole trace with public coins: reading the trace, hashing it, folding the weights by the coins, and \
                 everything that is no matrix product, for all positions.\n"
            }
        });
    }
    out.push_str(
        "- **Not measured**: the network's time for the bytes, other processors, several threads, answers with guides. Memory is \
         computed from sizes, not observed.\n",
    );
    out
}

/// The chart.
pub fn svg(rows: &[Row]) -> String {
    let t = length(rows);
    let (_, _, tiers) = measured(rows);
    let series = |of: Of, with: &[Tier]| -> Vec<Series> {
        let of_tier = |tier: &Tier| Series {
            label: tier.label().into(),
            colour: colour(*tier),
            broken: false,
            points: curve(rows, t, *tier, of),
            spreads: vec![],
        };
        with.iter().map(of_tier).collect()
    };
    let mut costs = series(|r| r.core_ms_per_token, &tiers);
    for (label, of) in [
        ("generation", (|r| r.generation_core_ms_per_token) as Of),
        ("16 streams", |r| r.generation_16_core_ms_per_token),
    ] {
        let colour = if label == "generation" { "#7a7f85" } else { "#b0a68f" };
        costs.push(Series {
            label: label.into(),
            colour,
            broken: true,
            points: curve(rows, t, Tier::Reexec, of),
            spreads: vec![],
        });
    }
    let checks: Vec<Tier> = tiers.iter().copied().filter(|t| *t != Tier::Reexec).collect();
    let marks = |wanted: bool| {
        let here = |d: u32| find(rows, d, t, Tier::Light).is_some();
        let all = LIGHT_TARGETS.iter().filter(|(d, _)| wanted && t == T && here(*d));
        all.map(|(d, most)| Mark { at: (f64::from(*d), *most), colour: colour(Tier::Light) }).collect()
    };
    let panels = [
        Panel {
            title: format!("core-milliseconds per token, {t} positions"),
            y_label: "one core's milliseconds".into(),
            scales: (Scale::Log, Scale::Log),
            tick: sig_tick,
            series: costs,
            marks: marks(true),
            guides: vec![],
        },
        Panel {
            title: format!("share of re-execution, {t} positions"),
            y_label: "of re-execution of a token".into(),
            scales: (Scale::Log, Scale::Log),
            tick: |v| format!("{} %", sig_tick(100.0 * v)),
            series: series(|r| r.share_of_reexecution, &checks),
            marks: marks(false),
            guides: vec![],
        },
    ];
    draw("What it costs to check an answer, as models grow", "width of the model (d)", &panels)
}

fn colour(tier: Tier) -> &'static str {
    match tier {
        Tier::Reexec => "#1f5fa8",
        Tier::Shard => "#2b8a57",
        Tier::Light => "#d1490c",
        Tier::Batch => "#7b2f8f",
    }
}

/// The law of a tier's curve.
fn law(rows: &[Row], t: u32, tier: Tier, of: Of) -> Option<PowerLaw> {
    PowerLaw::fit(curve(rows, t, tier, of))
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use assay_chart::is_well_formed;

    use super::super::row::merged;
    use super::*;

    /// Rows of made-up costs that follow known laws.
    pub fn made_up() -> Vec<Row> {
        let mut rows = vec![];
        for t in [64, T] {
            for d in [64u32, 288, 576, 2048, 4096, 8192] {
                let w = f64::from(d);
                let reexecution = 3e-6 * w * w;
                for tier in Tier::ALL {
                    let cost = match tier {
                        Tier::Reexec => reexecution,
                        Tier::Shard => reexecution / 30.0,
                        Tier::Light => 1.5e-3 * w,
                        Tier::Batch => 3e-3 * w,
                    };
                    rows.push(Row {
                        d,
                        t,
                        tier,
                        core_ms_per_token: cost,
                        share_of_generation: cost / (3.0 * reexecution),
                        share_of_reexecution: cost / reexecution,
                        bytes_per_token: 1000.0 * w,
                        key_bytes: u64::from(d) * 1000,
                        soundness_bits: 60,
                        share_of_generation_16: cost / (1.2 * reexecution),
                        prover_core_ms_per_token: if tier == Tier::Light { reexecution } else { 0.0 },
                        checked: if tier == Tier::Light { 8 } else { t },
                        memory_bytes: u64::from(d) * 2000,
                        parts: BTreeMap::from([("one".into(), 0.7 * cost), ("two".into(), 0.3 * cost)]),
                        shape: "made-up".into(),
                        layers: 30,
                        layers_measured: if d > 2048 { 1 } else { 30 },
                        from_one_layer: (d <= 2048).then_some(1.05 * cost),
                        generation_core_ms_per_token: 3.0 * reexecution,
                        generation_16_core_ms_per_token: 1.2 * reexecution,
                        generation_from_one_layer: (d <= 2048).then_some(2.9 * reexecution),
                        reexecution_core_ms_per_token: reexecution,
                        rounds: 3,
                        commit: "0".into(),
                        machine: "a machine".into(),
                    });
                }
            }
        }
        rows
    }

    #[test]
    fn numbers_have_three_digits() {
        for (v, want) in [
            (0.0, "0"),
            (1234.5, "1234"),
            (12.345, "12.3"),
            (1.0, "1.00"),
            (9.996, "10.0"),
            (0.001_234_5, "0.00123"),
            (0.099_96, "0.100"),
        ] {
            assert_eq!(sig(v), want);
        }
        assert_eq!(
            (bytes(999.0), bytes(1234.0), bytes(5.6e9)),
            ("999 B".into(), "1.23 kB".into(), "5.60 GB".into())
        );
    }

    #[test]
    fn reports_say_what_rows_say() {
        let rows = made_up();
        let text = markdown(&rows);
        assert!(text.contains("| light audit | 1.00 ± 0.00"), "{text}");
        assert!(text.contains("falls with d"), "{text}");
        assert!(is_well_formed(&svg(&rows)));
        // A target that is missed says so, by how much, and what it is made of.
        assert!(text.contains("missed") && text.contains("met"), "{text}");
        for tables in text.split("\n\n").filter(|p| p.starts_with('|')) {
            let columns: Vec<usize> = tables.lines().map(|l| l.matches('|').count()).collect();
            assert!(columns.windows(2).all(|w| w[0] == w[1]), "{tables}");
        }
    }

    #[test]
    fn parts_of_a_measurement_are_reported_too() {
        let rows = made_up();
        for keep in [
            (|r: &Row| r.tier == Tier::Reexec) as fn(&Row) -> bool,
            |r| r.t == 64,
            |r| r.d == 576,
            |r| r.d == 576 && r.tier == Tier::Light,
            |_| false,
        ] {
            let some: Vec<Row> = rows.iter().filter(|r| keep(r)).cloned().collect();
            let text = markdown(&some);
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            assert!(is_well_formed(&svg(&some)));
        }
    }

    #[test]
    fn measuring_again_replaces_rows() {
        let rows = made_up();
        let mut again: Vec<Row> = rows.iter().filter(|r| r.d == 576).cloned().collect();
        again.iter_mut().for_each(|r| r.commit = "1".into());
        let all = merged(rows.clone(), again);
        assert_eq!(all.len(), rows.len());
        assert!(all.iter().all(|r| (r.commit == "1") == (r.d == 576)));
        assert!(markdown(&all).contains("commit `1` (widths 576)"));
    }

    /// The report in the repository is what its numbers say.
    #[test]
    fn the_published_report_is_of_the_published_numbers() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks");
        let Ok(json) = std::fs::read(folder.join("verification.json")) else {
            panic!("docs/benchmarks/verification.json is missing: run `assay bench verification`");
        };
        let rows: Vec<Row> = serde_json::from_slice(&json).unwrap();
        for (name, want) in [("verification.md", markdown(&rows)), ("verification.svg", svg(&rows))] {
            let got = std::fs::read_to_string(folder.join(name)).unwrap();
            assert!(got == want, "{name} is of other numbers: run `assay bench verification --render`");
        }
    }
}
