//! Verdicts, as people read them.

use assay_core::id::ReceiptId;
use assay_core::verdict::{Outcome, Verdict};
use comfy_table::{Cell, Color, Table, presets};

/// Prints what was checked, and what was not.
pub fn print_checks(verdict: &Verdict) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for c in &verdict.checks {
        let mark = match c.outcome {
            Outcome::Passed => Cell::new("✓").fg(Color::Green),
            Outcome::Failed => Cell::new("✗").fg(Color::Red),
            Outcome::NotRun => Cell::new("–").fg(Color::Yellow),
        };
        table.add_row([mark, Cell::new(&c.name), Cell::new(&c.detail)]);
    }
    println!("{table}");
    println!("Not checked:");
    for u in &verdict.unchecked {
        println!("  · {u}");
    }
}

/// What came out, in a line; `held` is what holds if nothing failed.
pub fn conclusion(held: &str, verdict: &Verdict, receipt: ReceiptId) -> String {
    match &verdict.failure {
        None if verdict.holds => format!("{held} holds: receipt {receipt}"),
        None => format!("THE ANSWER IS NOT SHOWN TO HOLD: receipt {receipt}"),
        Some(f) => format!("THE ANSWER DOES NOT HOLD ({}): {}", f.code.as_str(), f.message),
    }
}
