//! `assay ledger status` and `params`.

use anyhow::Result;
use assay_ledger::amount::Amount;
use assay_ledger::deployment;
use assay_ledger::ledger::{Ledger, Phase};
use assay_ledger::parameters::{Entry, Unit, entries};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanDuration;
use serde_json::{Value, json};
use std::time::Duration;

use super::connection::{LedgerArgs, block_on};
use crate::home::Home;

/// Epochs that `status` shows.
const EPOCHS_SHOWN: u64 = 4;

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Params {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Show the defaults of a new deployment instead, without asking any chain.
    #[arg(long)]
    defaults: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn phase_name(phase: Phase) -> String {
    match phase {
        Phase::Running => "running".into(),
        Phase::Posting => "providers post".into(),
        Phase::Closing => "posting is over, nobody closed it".into(),
        Phase::Awaiting { block } => format!("closed, its beacon is block {block}"),
        Phase::Committing => "auditors commit".into(),
        Phase::Revealing => "auditors reveal".into(),
        Phase::Objecting => "objections are open".into(),
        Phase::Final => "final".into(),
    }
}

fn parts(ledger: &Ledger) -> Vec<(&'static str, alloy_primitives::Address)> {
    let at = &ledger.parts().at;
    vec![
        ("directory", ledger.parts().directory),
        ("token", at.token),
        ("vault", at.vault),
        ("registry", at.registry),
        ("channels", at.channels),
        ("epochs", at.epochs),
        ("objections", at.objections),
        ("audits", at.audits),
        ("retrieval", at.retrieval),
        ("disputes", at.disputes),
        ("treasury", at.treasury),
    ]
}

impl Status {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let ledger = self.ledger.ledger(home).await?;
            let client = ledger.client();
            let head = client.latest().await?;
            let current = ledger.epoch().await?;
            let mut phases = Vec::new();
            for epoch in current.saturating_sub(EPOCHS_SHOWN - 1)..=current {
                phases.push((epoch, ledger.phase(epoch).await?));
            }
            let times = &ledger.parameters().times;
            let next =
                times.genesis.saturating_add(current.saturating_add(1) * u64::from(times.epochSeconds));
            let left = next.saturating_sub(head.timestamp);
            if self.json {
                let parts: serde_json::Map<String, Value> =
                    parts(&ledger).into_iter().map(|(name, at)| (name.to_owned(), json!(at))).collect();
                let epochs: Vec<Value> = phases
                    .iter()
                    .map(|(epoch, phase)| json!({"epoch": epoch, "phase": phase_name(*phase)}))
                    .collect();
                let chain = json!({"id": client.chain_id(), "node": client.host(), "block": head.number, "time": head.timestamp});
                let status = json!({
                    "chain": chain, "contracts": parts, "epoch": current, "epoch_ends_in_seconds": left, "epochs": epochs
                });
                println!("{status}");
                return Ok(());
            }
            let mut table = Table::new();
            table.load_style(presets::UTF8_BORDERS_ONLY);
            table.add_row(["chain".to_owned(), format!("{} at {}", client.chain_id(), client.host())]);
            table.add_row(["block".to_owned(), head.number.to_string()]);
            for (name, at) in parts(&ledger) {
                table.add_row([name.to_owned(), at.to_string()]);
            }
            for (epoch, phase) in phases {
                let mut said = phase_name(phase);
                if epoch == current {
                    said = format!("{said}, {} left", HumanDuration(Duration::from_secs(left)));
                }
                table.add_row([format!("epoch {epoch}"), said]);
            }
            println!("{table}");
            Ok(())
        })
    }
}

/// A time in the largest unit that it is a whole number of.
fn seconds(value: u64) -> String {
    let units = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let whole = units.iter().find(|(unit, _)| value > 0 && value.is_multiple_of(*unit));
    let (unit, name) = whole.copied().unwrap_or((1, "second"));
    let count = value / unit;
    if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") }
}

/// A number as people say it.
fn said(entry: &Entry) -> String {
    match entry.unit {
        Unit::Seconds => seconds(entry.value),
        Unit::Time if entry.value == 0 => "when it is deployed".to_owned(),
        Unit::Ppm => format!(
            "{} %",
            Amount(u128::from(entry.value) * 100).to_string().trim_end_matches("0").trim_end_matches('.')
        ),
        Unit::Money => format!("${}", Amount(entry.value.into())),
        Unit::Time | Unit::Blocks | Unit::Count => entry.value.to_string(),
    }
}

impl Params {
    pub fn run(self, home: &Home) -> Result<()> {
        let parameters = if self.defaults {
            deployment::parameters()
        } else {
            block_on(async { Ok(self.ledger.ledger(home).await?.parameters().clone()) })?
        };
        let all = entries(&parameters);
        if self.json {
            let mut sections = serde_json::Map::new();
            for entry in &all {
                let section = sections.entry(entry.section).or_insert_with(|| json!({}));
                section[entry.name] = json!(entry.value);
            }
            println!("{}", Value::Object(sections));
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["section", "number", "value", "unit", ""]);
        if let Some(column) = table.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for entry in &all {
            table.add_row([
                entry.section.to_owned(),
                entry.name.to_owned(),
                entry.value.to_string(),
                entry.unit.name().to_owned(),
                said(entry),
            ]);
        }
        println!("{table}");
        Ok(())
    }
}
