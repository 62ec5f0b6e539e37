//! What follows from the numbers: the answer, the targets, exponents, crossings, and what a network pays.

use super::tables::FITTED;
use super::{LIGHT_TARGETS, T, bytes, curve, law, length, measured, percent, sig, table};
use crate::commands::bench::verification::fit::crossings;
use crate::commands::bench::verification::row::{Row, Tier, find};

/// Shares of answers that are audited.
const RATES: [f64; 5] = [0.01, 0.03, 0.10, 0.30, 1.0];
/// The network may spend this share of a busy provider's work on audits at [`RATE`].
const NETWORK_MOST: f64 = 0.01;
const RATE: f64 = 0.03;

/// The question's answer, in numbers.
pub fn answer(rows: &[Row]) -> String {
    let t = length(rows);
    let light: Vec<&Row> = rows.iter().filter(|r| (r.t, r.tier) == (t, Tier::Light)).collect();
    let cost = |tier| law(rows, t, tier, |r| r.core_ms_per_token);
    let mut out = String::from("## In short\n\n");
    if let Some(law) = cost(Tier::Reexec) {
        out.push_str(&format!(
            "- Re-execution of a token grows with the width as d^{} ({t} positions).\n",
            law.shown()
        ));
    }
    if let (Some(first), Some(last), Some(law)) = (light.first(), light.last(), cost(Tier::Light)) {
        out.push_str(&format!(
            "- A light audit's opened token grows as d^{}: from {} core-ms at d = {} to {} at d = {}.\n- Its share of re-executing a \
             token goes from {} to {}{}.\n",
            law.shown(),
            sig(first.core_ms_per_token),
            first.d,
            sig(last.core_ms_per_token),
            last.d,
            percent(first.share_of_reexecution),
            percent(last.share_of_reexecution),
            if falls(rows, t) { ": it falls with d" } else { "" },
        ));
        let whole = |r: &Row| f64::from(r.checked) / f64::from(r.t) * r.share_of_reexecution;
        let prover = |r: &Row| r.prover_core_ms_per_token / r.reexecution_core_ms_per_token;
        out.push_str(&format!(
            "- A whole light audit, of {} positions, takes {} of re-executing the answer at d = {}, {} at d = {}. Its price is paid \
             by the prover, who executes the answer twice to commit and to open ({} to {} times a re-execution), and in bytes ({} to \
             {} for each position).\n",
            last.checked,
            percent(whole(first)),
            first.d,
            percent(whole(last)),
            last.d,
            sig(light.iter().map(|r| prover(r)).fold(f64::INFINITY, f64::min)),
            sig(light.iter().map(|r| prover(r)).fold(0.0, f64::max)),
            bytes(first.bytes_per_token),
            bytes(last.bytes_per_token),
        ));
    }
    for tier in [Tier::Shard, Tier::Batch] {
        let of: Vec<&Row> = rows.iter().filter(|r| (r.t, r.tier) == (t, tier)).collect();
        if let (Some(first), Some(last)) = (of.first(), of.last()) {
            out.push_str(&format!(
                "- {}: {} of re-execution at d = {}, {} at d = {}.\n",
                tier.label(),
                percent(first.share_of_reexecution),
                first.d,
                percent(last.share_of_reexecution),
                last.d
            ));
        }
    }
    out
}

/// Whether the light audit's share of re-execution falls with the width: the whole interval of its exponent is below 0.
fn falls(rows: &[Row], t: u32) -> bool {
    let law = law(rows, t, Tier::Light, |r| r.share_of_reexecution);
    law.is_some_and(|l| l.margin.is_some_and(|m| l.exponent + m < 0.0))
}

/// The targets, and what is between a cost and its target.
pub fn targets(rows: &[Row]) -> String {
    let mut lines = vec![];
    for (d, most) in LIGHT_TARGETS {
        let Some(r) = find(rows, d, T, Tier::Light) else { continue };
        lines.push(vec![
            format!("light audit, d = {d}, {T} positions: at most {most} core-ms per opened token, attention included"),
            format!("{} core-ms", sig(r.core_ms_per_token)),
            verdict(r, most),
        ]);
    }
    if let Some(law) = law(rows, length(rows), Tier::Light, |r| r.share_of_reexecution) {
        let says = if falls(rows, length(rows)) { "met: it falls with d" } else { "missed" };
        lines.push(vec![
            "light audit: share of re-execution falls with d".into(),
            format!("exponent {}", law.shown()),
            says.into(),
        ]);
    }
    let reexecution = curve(rows, length(rows), Tier::Reexec, |r| r.share_of_generation_16);
    let share = |pick: fn(f64, f64) -> f64| reexecution.iter().map(|(_, s)| *s).reduce(pick);
    if let (Some(least), Some(most)) = (share(f64::min), share(f64::max)) {
        let says = if RATE * most <= NETWORK_MOST {
            "met at every width".to_owned()
        } else {
            format!(
                "missed: a re-execution takes {} to {} of what 16 streams spend on an answer, since it saves little more than reading \
                 the weights once for all tokens; at {} of answers audited it is met at every width",
                percent(least),
                percent(most),
                percent(NETWORK_MOST / most)
            )
        };
        lines.push(vec![
            format!(
                "re-executing {} of answers costs a network of busy providers at most {}",
                percent(RATE),
                percent(NETWORK_MOST)
            ),
            format!("{} to {}, by width", percent(RATE * least), percent(RATE * most)),
            says,
        ]);
    }
    if lines.is_empty() {
        return String::new();
    }
    format!("## Targets\n\n{}", table(&["target", "measured", ""], lines))
}

/// Whether a light audit meets its target; if not, by how much it misses it, what it spends its time on, and what would do.
fn verdict(r: &Row, most: f64) -> String {
    if r.core_ms_per_token <= most {
        return "met".into();
    }
    let mut parts: Vec<(&String, f64)> = r.parts.iter().map(|(name, ms)| (name, *ms)).collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let over = r.core_ms_per_token - most;
    let largest: Vec<String> = parts
        .iter()
        .take(3)
        .map(|(name, ms)| format!("{name} {}", percent(ms / r.core_ms_per_token)))
        .collect();
    let close = match parts.first() {
        Some((name, ms)) if *ms > over => {
            format!("; it would be met with {name} {} times as fast", sig(ms / (ms - over)))
        }
        Some((name, _)) => format!("; even without {name} it would be missed"),
        None => String::new(),
    };
    format!(
        "missed by {} core-ms ({}×): {}{close}",
        sig(over),
        sig(r.core_ms_per_token / most),
        largest.join(", ")
    )
}

/// Fitted exponents.
pub fn exponents(rows: &[Row]) -> String {
    let (_, lengths, tiers) = measured(rows);
    let mut lines = vec![];
    for t in lengths {
        for tier in &tiers {
            let fitted = FITTED.map(|(_, of)| law(rows, t, *tier, of));
            let [Some(cost), share] = fitted else { continue };
            // Re-execution's share of itself says nothing.
            let share = share.filter(|_| *tier != Tier::Reexec);
            lines.push(vec![
                t.to_string(),
                tier.label().into(),
                cost.shown(),
                share.map_or(String::new(), |s| s.shown()),
                cost.points.to_string(),
            ]);
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let [cost, share] = FITTED.map(|(name, _)| name);
    format!(
        "## Exponents\n\nLeast squares on logarithms over the width d, with 95 % confidence intervals of the exponent. Depth, gated width \
         and vocabulary of real models do not grow in step with d, which is part of the scatter.\n\n{}",
        table(&["positions", "tier", cost, share, "points"], lines)
    )
}

/// From which width on a tier is cheaper than another.
pub fn cheapest(rows: &[Row]) -> String {
    let (widths, lengths, tiers) = measured(rows);
    if tiers.len() < 2 {
        return String::new();
    }
    let mut lines = vec![];
    for t in lengths {
        for (i, tier) in tiers.iter().enumerate() {
            let of = |tier: Tier| curve(rows, t, tier, |r| r.core_ms_per_token);
            let than = tiers.iter().enumerate().filter(|(j, _)| *j != i);
            let cells =
                than.map(|(_, other)| format!("{} than {}", from(&of(*tier), &of(*other)), other.label()));
            let cells: Vec<String> = cells.collect();
            let best: Vec<String> = widths
                .iter()
                .filter(|d| {
                    let cost = |tier: &Tier| find(rows, **d, t, *tier).map(|r| r.core_ms_per_token);
                    let least = tiers.iter().filter_map(&cost).fold(f64::INFINITY, f64::min);
                    cost(tier).is_some_and(|c| c <= least)
                })
                .map(u32::to_string)
                .collect();
            let best = if best.is_empty() { "none".into() } else { best.join(", ") };
            lines.push(vec![t.to_string(), tier.label().into(), best, cells.join("; ")]);
        }
    }
    format!(
        "## Which rung is the cheapest\n\nPer token checked. They do not convince of the same: a shard is one layer, a light audit the \
         positions drawn, the others everything.\n\n{}",
        table(&["positions", "tier", "cheapest of all at d =", "cheaper"], lines)
    )
}

/// From where on the first curve lies below the second.
fn from(first: &[(f64, f64)], second: &[(f64, f64)]) -> String {
    let below = |(x, y): &&(f64, f64)| second.iter().any(|(at, z)| at == x && y <= z);
    let cheaper = first.iter().filter(below).count();
    match (cheaper, crossings(first, second).last()) {
        (0, _) => "nowhere".into(),
        (n, _) if n == first.len() => "everywhere".into(),
        (_, Some(at)) => format!("from d ≈ {at:.0}"),
        (_, None) => "for small d".into(),
    }
}

/// What audits cost a network, as a share of generating.
pub fn network(rows: &[Row]) -> String {
    let t = length(rows);
    let (widths, _, tiers) = measured(rows);
    let mut out = format!(
        "## What a network pays\n\nAudit rate times cost of an audit, prover's work included, as a share of generating all answers: beside \
         single streams / beside 16 streams. {t} positions.\n"
    );
    let shown: Vec<String> = RATES.iter().map(|p| percent(*p)).collect();
    let head: Vec<&str> = std::iter::once("d").chain(shown.iter().map(String::as_str)).collect();
    let mut any = false;
    for tier in tiers.into_iter().filter(|t| *t != Tier::Shard) {
        let lines: Vec<Vec<String>> = widths
            .iter()
            .filter_map(|d| find(rows, *d, t, tier))
            .map(|r| {
                let checked = f64::from(r.checked) / f64::from(r.t);
                let audit = r.core_ms_per_token * checked + r.prover_core_ms_per_token;
                let cell = |p: &f64| {
                    let [one, many] = [r.generation_core_ms_per_token, r.generation_16_core_ms_per_token]
                        .map(|g| percent(p * audit / g.max(f64::MIN_POSITIVE)));
                    format!("{one} / {many}")
                };
                std::iter::once(r.d.to_string()).chain(RATES.iter().map(cell)).collect()
            })
            .collect();
        if !lines.is_empty() {
            any = true;
            out.push_str(&format!("\n{}:\n\n{}", tier.label(), table(&head, lines)));
        }
    }
    if any { out } else { String::new() }
}
