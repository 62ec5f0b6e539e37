//! `docs/benchmarks/economics.{json,md}` and its charts: everything that they say follows from what was measured.

use std::fmt::Write as _;

use assay_chart as chart;
use serde_json::{Map, Value, json};

use crate::economy::Outcome;
use crate::statistics::Mean;
use crate::sweep::{Curve, Figure, Table};

mod cases;

pub use cases::{Against, CASES, Case};

const COLOURS: [&str; 4] = ["#1f5fa8", "#d1490c", "#2b8a57", "#7b2f8f"];
const GUIDE: &str = "#55595e";
const DOLLAR: f64 = 1e6;

/// What a case gained an epoch over who it is compared with, in units.
pub fn gain(outcome: &Outcome, case: &Case) -> Mean {
    match case.against {
        Against::Twin => outcome.advantage(case.team),
        Against::Team(other) => outcome.advantage_over(case.team, other),
        Against::Nobody => outcome.profit(case.team),
    }
}

/// Dollars with so many digits that an interval can be read.
fn dollars(v: f64) -> String {
    let v = v / DOLLAR;
    match v.abs() {
        a if a >= 1000.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 0.1 || a == 0.0 => format!("{v:.2}"),
        _ => format!("{v:.4}"),
    }
}

fn interval(m: Mean) -> String {
    format!("{} ± {}", dollars(m.mean), dollars(m.spread))
}

fn verdict(m: Mean) -> &'static str {
    match m.sign() {
        Some(true) => "**pays**",
        Some(false) => "loses",
        None => "neither",
    }
}

/// The cases of a run as a table.
pub fn strategies(outcome: &Outcome) -> String {
    let mut out = String::from(
        "| strategy | profit an epoch | over the honest one | | the document says |\n|---|---|---|---|---|\n",
    );
    for case in CASES.iter().filter(|c| outcome.team(c.team).is_some_and(|t| !t.profits.is_empty())) {
        let gain = gain(outcome, case);
        let profit = interval(outcome.profit(case.team));
        let (over, verdict) = match case.against {
            Against::Nobody => (String::new(), ""),
            _ => (interval(gain), verdict(gain)),
        };
        let _ = writeln!(out, "| {} | {profit} | {over} | {verdict} | {} |", case.team, case.predicted);
    }
    out
}

/// What griefers paid, and what others lost by them.
fn griefing(outcome: &Outcome) -> String {
    let mut out = String::from(
        "| griefing | costs an epoch | harms others by | harm for a dollar |\n|---|---|---|---|\n",
    );
    for team in outcome.teams.iter().filter(|t| !t.harms.is_empty()) {
        let (cost, harm) = (-outcome.profit(&team.name).mean, outcome.harm(&team.name).mean);
        let ratio = if cost > 0.0 { format!("{:.2}", harm / cost) } else { String::new() };
        let _ = writeln!(out, "| {} | {} | {} | {ratio} |", team.name, dollars(cost), dollars(harm));
    }
    out
}

/// Strategies that gain, with what they need for it.
fn paying(outcome: &Outcome) -> String {
    let mut out = String::new();
    for case in CASES.iter().filter(|c| c.against != Against::Nobody && outcome.team(c.team).is_some()) {
        let gain = gain(outcome, case);
        if gain.sign() == Some(true) {
            let _ =
                writeln!(out, "- **{}**: {} dollars an epoch. {}", case.team, interval(gain), case.condition);
        }
    }
    if out.is_empty() { "None.\n".into() } else { out }
}

fn totals(outcome: &Outcome) -> String {
    let t = &outcome.totals;
    let percent = |part: u64, of: u64| format!("{:.2} %", 100.0 * part as f64 / of.max(1) as f64);
    format!(
        "| | |\n|---|---|\n| receipts | {} |\n| fees, dollars | {} |\n| batches posted | {} |\n| receipts drawn | {} ({}) |\n\
         | auditors' work, of what executing cost | {} |\n| auditors' pay, of fees | {} |\n| providers struck | {} |\n\
         | members penalised: silent, lazy | {}, {} |\n| pledges failed | {} |\n| back to payers, dollars | {} |\n| treasury, dollars | {} |\n",
        t.receipts,
        dollars(t.fees as f64),
        t.posted,
        t.drawn,
        percent(t.drawn, t.receipts),
        percent(t.audit_cost, t.execution),
        percent(t.audit_pay, t.fees),
        t.struck,
        t.silent,
        t.lazy,
        t.failed,
        dollars(t.refunded as f64),
        dollars(t.treasury as f64),
    )
}

fn number(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 1.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}

/// A number at an axis, as short as it can be said.
fn tick(v: f64) -> String {
    let text = format!("{v:.2}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0".into() } else { short.into() }
}

fn crossing(curve: &Curve) -> String {
    match curve.crossing() {
        Some(x) => number(x),
        None if curve.pays() => "pays everywhere".into(),
        None => "pays nowhere".into(),
    }
}

fn figure(f: &Figure) -> String {
    let mut out = format!("### {}\n\n![{}]({}.svg)\n\n", f.title, f.title, f.name);
    let _ = writeln!(out, "| panel | curve | changes sign at | the document says |\n|---|---|---|---|");
    for panel in &f.panels {
        for curve in &panel.curves {
            let says = match panel.predicted {
                Some(x) => format!("{}, by {}", number(x), panel.formula),
                None => panel.formula.clone(),
            };
            let _ = writeln!(out, "| {} | {} | {} | {says} |", panel.title, curve.label, crossing(curve));
        }
    }
    for panel in &f.panels {
        let heads: Vec<&str> = panel.curves.iter().map(|c| c.label.as_str()).collect();
        let _ = write!(
            out,
            "\n{}, {} (95 %):\n\n| {} | {} |\n|---|{}\n",
            panel.title,
            panel.y_label,
            f.x_label,
            heads.join(" | "),
            "---|".repeat(heads.len())
        );
        let xs = panel.curves.first().map(|c| c.points.as_slice()).unwrap_or_default();
        for (i, (x, _)) in xs.iter().enumerate() {
            let cells: Vec<String> = panel
                .curves
                .iter()
                .map(|c| format!("{} ± {}", number(c.points[i].1.mean), number(c.points[i].1.spread)))
                .collect();
            let _ = writeln!(out, "| {x} | {} |", cells.join(" | "));
        }
    }
    out.push('\n');
    out
}

/// A figure's chart.
pub fn svg(f: &Figure) -> String {
    let x_scale = if f.by_tens { chart::Scale::Log } else { chart::Scale::Linear };
    let panels: Vec<chart::Panel> = f
        .panels
        .iter()
        .map(|p| chart::Panel {
            title: p.title.clone(),
            y_label: p.y_label.clone(),
            scales: (x_scale, chart::Scale::Linear),
            tick,
            series: p
                .curves
                .iter()
                .enumerate()
                .map(|(i, c)| chart::Series {
                    label: c.label.clone(),
                    colour: COLOURS[i % COLOURS.len()],
                    broken: false,
                    points: c.points.iter().map(|(x, m)| (*x, m.mean)).collect(),
                    spreads: c.points.iter().map(|(_, m)| m.spread).collect(),
                })
                .collect(),
            marks: Vec::new(),
            guides: p
                .predicted
                .map(|x| chart::Guide { x, label: format!("predicted: {}", number(x)), colour: GUIDE })
                .into_iter()
                .collect(),
        })
        .collect();
    chart::draw(&f.title, &f.x_label, &panels)
}

fn table(t: &Table) -> String {
    let mut out = format!("| {} |\n|{}\n", t.columns.join(" | "), "---|".repeat(t.columns.len()));
    for row in &t.rows {
        let cells: Vec<String> = row.iter().map(|v| number(*v)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    out
}

/// The page.
pub fn page(nodes: u32, seed: u64, outcome: &Outcome, figures: &[Figure], tables: &[Table]) -> String {
    let mut out = include_str!("report/head.md").to_owned();
    let _ = write!(
        out,
        "\n## Every strategy at the defaults\n\n{nodes} nodes, {} epochs, seed {seed}. Dollars; ± is half an interval of 95 % over the players of a \
         strategy.\n\n{}\n**Strategies that pay, and on what condition:**\n\n{}\n",
        outcome.epochs,
        strategies(outcome),
        paying(outcome),
    );
    let _ =
        write!(out, "{}\nThe whole network:\n\n{}\n## Break-evens\n\n", griefing(outcome), totals(outcome));
    out.push_str(include_str!("report/sweeps.md"));
    out.push('\n');
    for f in figures {
        out.push_str(&figure(f));
    }
    for t in tables {
        let (title, text) = cases::table_text(t.name);
        let _ = write!(out, "### {title}\n\n{text}\n\n{}\n", table(t));
    }
    out.push_str(include_str!("report/tail.md"));
    out
}

fn mean(m: Mean) -> Value {
    json!({ "mean": m.mean, "spread": m.spread, "count": m.count })
}

/// A run's numbers: dollars an epoch.
pub fn run(nodes: u32, seed: u64, outcome: &Outcome) -> Value {
    let in_dollars =
        |m: Mean| mean(Mean { mean: m.mean / DOLLAR, spread: m.spread / DOLLAR, count: m.count });
    let mut teams = Map::new();
    for team in outcome.teams.iter().filter(|t| !t.profits.is_empty()) {
        let mut entry = Map::from_iter([("profit".to_owned(), in_dollars(outcome.profit(&team.name)))]);
        if let Some(case) = CASES.iter().find(|c| c.team == team.name && c.against != Against::Nobody) {
            entry.insert("over_honest".into(), in_dollars(gain(outcome, case)));
        }
        if !team.harms.is_empty() {
            entry.insert("harm".into(), in_dollars(outcome.harm(&team.name)));
        }
        teams.insert(team.name.clone(), entry.into());
    }
    // After so many epochs, the mean profit so far of each strategy, in dollars.
    let history: Vec<Value> = outcome
        .notes
        .iter()
        .map(|(epoch, means)| {
            let shown =
                outcome.teams.iter().zip(means).filter(|(t, _)| CASES.iter().any(|c| c.team == t.name));
            let of: Map<String, Value> = shown.map(|(t, m)| (t.name.clone(), json!(m / DOLLAR))).collect();
            json!({ "epoch": epoch, "profit": of })
        })
        .collect();
    let t = &outcome.totals;
    json!({
        "nodes": nodes,
        "epochs": outcome.epochs,
        "seed": seed,
        "strategies": teams,
        "history": history,
        "totals": {
            "receipts": t.receipts, "fees_micro_usd": t.fees, "wrong": t.wrong, "batches": t.posted, "drawn": t.drawn,
            "execution_micro_usd": t.execution, "audit_cost_micro_usd": t.audit_cost, "audit_pay_micro_usd": t.audit_pay,
            "struck": t.struck, "silent": t.silent, "lazy": t.lazy, "failed": t.failed,
            "refunded_micro_usd": t.refunded, "treasury_micro_usd": t.treasury,
        },
    })
}

/// Everything.
pub fn json(nodes: u32, seed: u64, outcome: &Outcome, figures: &[Figure], tables: &[Table]) -> Value {
    let figures: Map<String, Value> = figures
        .iter()
        .map(|f| {
            let panels: Vec<Value> = f
                .panels
                .iter()
                .map(|p| {
                    let curves: Vec<Value> = p
                        .curves
                        .iter()
                        .map(|c| {
                            let points: Vec<Value> =
                                c.points.iter().map(|(x, m)| json!([x, m.mean, m.spread])).collect();
                            json!({ "label": c.label, "points": points, "crossing": c.crossing() })
                        })
                        .collect();
                    json!({ "title": p.title, "predicted": p.predicted, "formula": p.formula, "curves": curves })
                })
                .collect();
            (f.name.to_owned(), json!({ "x": f.x_label, "panels": panels }))
        })
        .collect();
    let tables: Map<String, Value> =
        tables.iter().map(|t| (t.name.to_owned(), json!({ "columns": t.columns, "rows": t.rows }))).collect();
    json!({ "network": run(nodes, seed, outcome), "figures": figures, "tables": tables })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Panel;

    fn made_up() -> Figure {
        let mean = |mean| Mean { mean, spread: 0.1, count: 9 };
        let curve = |label: &str, sign: f64| Curve {
            label: label.into(),
            points: [(1.0, 2.0), (10.0, 1.0), (100.0, -3.0)].map(|(x, y)| (x, mean(y * sign))).to_vec(),
        };
        Figure {
            name: "made-up",
            title: "a < b".into(),
            x_label: "x".into(),
            by_tens: true,
            panels: vec![Panel {
                title: "t".into(),
                y_label: "y".into(),
                curves: vec![curve("falls", 1.0), curve("rises", -1.0)],
                predicted: Some(30.0),
                formula: "x = 30".into(),
            }],
        }
    }

    #[test]
    fn a_figure_has_its_crossing_beside_the_prediction() {
        let text = figure(&made_up());
        assert!(text.contains("| t | falls | 32.5 | 30.0, by x = 30 |"), "{text}");
        assert!(text.contains("| 10 | 1.00 ± 0.100 | -1.00 ± 0.100 |"), "{text}");
        let drawn = svg(&made_up());
        assert!(chart::is_well_formed(&drawn) && drawn.contains("predicted: 30.0"), "{drawn}");
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, -0.0, 0.4, -1.25, 40.0].map(tick);
        assert_eq!(texts, ["0", "0", "0.4", "-1.25", "40"]);
        assert_eq!([0.0, 0.0654, 4.321, 43.21, 432.1].map(number), ["0", "0.065", "4.32", "43.2", "432"]);
        assert_eq!(dollars(-65_400.0), "-0.0654");
        assert_eq!(dollars(12_345_678.0), "12.3");
    }
}
