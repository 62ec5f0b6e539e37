//! The tables of the report.

use super::{Of, bytes, measured, percent, sig, table};
use crate::commands::bench::verification::row::{Row, Tier, find};

/// What generation and re-execution cost.
pub fn executions(rows: &[Row]) -> String {
    let (widths, lengths, _) = measured(rows);
    let mut out = "## Generation and re-execution\n\nCore-milliseconds per token.\n".to_owned();
    for t in lengths {
        let lines: Vec<Vec<String>> = widths
            .iter()
            .filter_map(|d| find(rows, *d, t, Tier::Reexec))
            .map(|r| {
                vec![
                    r.d.to_string(),
                    r.shape.clone(),
                    r.layers.to_string(),
                    r.layers_measured.to_string(),
                    sig(r.generation_core_ms_per_token),
                    sig(r.generation_16_core_ms_per_token),
                    sig(r.core_ms_per_token),
                    percent(r.share_of_generation),
                    percent(r.share_of_generation_16),
                ]
            })
            .collect();
        let head = [
            "d",
            "proportions of",
            "layers",
            "measured",
            "generation, 1 stream",
            "16 streams",
            "re-execution",
            "share of 1 stream",
            "share of 16",
        ];
        if !lines.is_empty() {
            out.push_str(&format!("\n{t} positions:\n\n{}", table(&head, lines)));
        }
    }
    out
}

/// What each tier costs.
pub fn tiers(rows: &[Row]) -> String {
    let (widths, lengths, tiers) = measured(rows);
    let mut out = "## What checking costs\n\n\
        Core-milliseconds of the verifier per token (light audit: per opened token); in brackets the share of re-executing a token.\n"
        .to_owned();
    let head: Vec<&str> = std::iter::once("d").chain(tiers.iter().map(|t| t.label())).collect();
    for t in lengths {
        let lines = widths.iter().map(|d| {
            let cell = |tier: &Tier| match find(rows, *d, t, *tier) {
                Some(r) if *tier == Tier::Reexec => sig(r.core_ms_per_token),
                Some(r) => format!("{} ({})", sig(r.core_ms_per_token), percent(r.share_of_reexecution)),
                None => String::new(),
            };
            std::iter::once(d.to_string()).chain(tiers.iter().map(cell)).collect()
        });
        out.push_str(&format!("\n{t} positions:\n\n{}", table(&head, lines)));
    }
    out + &whole_audits(rows)
}

/// What a light audit costs as a whole.
fn whole_audits(rows: &[Row]) -> String {
    let lines: Vec<Vec<String>> = rows
        .iter()
        .filter(|r| r.tier == Tier::Light)
        .map(|r| {
            let audit = r.core_ms_per_token * f64::from(r.checked);
            let whole = r.reexecution_core_ms_per_token * f64::from(r.t);
            let each = [audit, whole, r.prover_core_ms_per_token * f64::from(r.t)].map(sig);
            let [audit_ms, whole_ms, prover_ms] = each;
            vec![
                r.t.to_string(),
                r.d.to_string(),
                r.checked.to_string(),
                audit_ms,
                whole_ms,
                percent(audit / whole),
                prover_ms,
            ]
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let head = ["positions", "d", "opened", "light audit, ms", "re-execution, ms", "share", "prover, ms"];
    format!(
        "\nA whole light audit beside re-executing the whole answer, and what it asks of the prover (executing again, hashing and \
         opening; nothing while it generates):\n\n{}",
        table(&head, lines)
    )
}

/// What the work of each tier consists of.
pub fn parts(rows: &[Row]) -> String {
    let t = super::length(rows);
    let (widths, _, tiers) = measured(rows);
    let mut out = format!("## Where the time goes\n\nCore-milliseconds per token at {t} positions.\n");
    for tier in tiers {
        let of: Vec<&Row> = widths.iter().filter_map(|d| find(rows, *d, t, tier)).collect();
        let Some(widest) = of.last() else { continue };
        // The largest part of the largest model first.
        let mut names: Vec<(&String, &f64)> = widest.parts.iter().filter(|(_, ms)| **ms > 0.0).collect();
        names.sort_by(|a, b| b.1.total_cmp(a.1));
        let head: Vec<&str> = std::iter::once("d").chain(names.iter().map(|n| n.0.as_str())).collect();
        let lines = of.iter().map(|r| {
            let part = |name: &&String| {
                let ms = r.parts.get(*name).copied().unwrap_or(0.0);
                format!("{} ({})", sig(ms), percent(ms / r.core_ms_per_token.max(f64::MIN_POSITIVE)))
            };
            let cells = names.iter().map(|n| part(&n.0));
            std::iter::once(r.d.to_string()).chain(cells).collect()
        });
        out.push_str(&format!("\n{}:\n\n{}", tier.label(), table(&head, lines)));
    }
    out
}

/// Bytes, keys, memory, prover's work and soundness.
pub fn sizes(rows: &[Row]) -> String {
    let t = super::length(rows);
    let (widths, _, tiers) = measured(rows);
    let mut out = format!(
        "## Bytes, memory, soundness\n\nAt {t} positions. *Opened* is what the verifier receives per token checked; *kept* what it holds \
         of the model (weights, or a key); memory is computed from sizes. *Bits*: a verdict holds though a number is wrong with a chance of \
         at most 2 to the minus this, since the first wrong product must pass its check. Tiers without chance stand on the collision \
         resistance of Keccak-256, 128 bits.\n"
    );
    for tier in tiers {
        let lines: Vec<Vec<String>> = widths
            .iter()
            .filter_map(|d| find(rows, *d, t, tier))
            .map(|r| {
                vec![
                    r.d.to_string(),
                    bytes(r.bytes_per_token),
                    bytes(r.key_bytes as f64),
                    bytes(r.memory_bytes as f64),
                    sig(r.prover_core_ms_per_token),
                    r.soundness_bits.to_string(),
                    format!("{} of {}", r.layers_measured, r.layers),
                ]
            })
            .collect();
        if !lines.is_empty() {
            let head =
                ["d", "opened", "kept", "memory", "prover's core-ms per position", "bits", "layers measured"];
            out.push_str(&format!("\n{}:\n\n{}", tier.label(), table(&head, lines)));
        }
    }
    out
}

/// How well one layer stands for all of them.
pub fn extrapolation(rows: &[Row]) -> String {
    let whole = rows.iter().filter(|r| r.layers == r.layers_measured);
    let lines: Vec<Vec<String>> = whole
        .filter_map(|r| {
            let one = r.from_one_layer?;
            let generated = (r.tier == Tier::Reexec).then_some(r.generation_from_one_layer).flatten();
            let compared = |one: f64, whole: f64| format!("{:+.0} %", 100.0 * (one / whole - 1.0));
            Some(vec![
                r.t.to_string(),
                r.d.to_string(),
                r.tier.label().into(),
                sig(r.core_ms_per_token),
                sig(one),
                compared(one, r.core_ms_per_token),
                generated.map_or(String::new(), |g| compared(g, r.generation_core_ms_per_token)),
            ])
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let head = ["positions", "d", "tier", "whole model", "from one layer", "difference", "of generation"];
    format!(
        "## One layer for all of them\n\nModels that were measured whole, and what a single layer would have made of them: how far the \
         large ones, of which {} measured, can be trusted. A layer that stays in the processor's caches (below d = 2048) decodes faster \
         than one that does not.\n\n{}",
        partial(rows),
        table(&head, lines)
    )
}

fn partial(rows: &[Row]) -> String {
    let (widths, _, _) = measured(rows);
    let parts: Vec<String> = widths
        .iter()
        .filter_map(|d| {
            rows.iter().find(|r| (r.d, r.tier) == (*d, Tier::Reexec) && r.layers_measured < r.layers)
        })
        .map(|r| format!("{} of {} layers at d = {}", r.layers_measured, r.layers, r.d))
        .collect();
    if parts.is_empty() { "none was partly".into() } else { format!("{} were", parts.join(", ")) }
}

/// A value of a row for a fit, by name.
pub const FITTED: [(&str, Of); 2] =
    [("core-ms per token", |r| r.core_ms_per_token), ("share of re-execution", |r| r.share_of_reexecution)];
