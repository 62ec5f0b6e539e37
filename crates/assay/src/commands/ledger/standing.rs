//! `assay ledger standing`.

use anyhow::Result;
use assay_ledger::standing::{EPOCHS, HALF_LIFE};
use clap::Args;
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use serde_json::{Value, json};

use super::connection::{LedgerArgs, block_on};
use crate::home::Home;
use crate::progress;

/// Show what is publicly known of each provider.
///
/// Everything comes from the ledger's log, so that everyone sees the same. A score is what gateways use: answers of batches that went through
/// their audit, which fade with time; none for who was proved to lie.
#[derive(Args)]
pub struct Standing {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Standing {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let spinner = progress::spinner("reading the ledger");
            let standings = self.ledger.ledger(home).await?.standings().await;
            spinner.finish_and_clear();
            let mut standings: Vec<_> = standings?.into_iter().collect();
            standings.sort_by_key(|(provider, s)| (std::cmp::Reverse(s.score_ppm), *provider));
            if self.json {
                let line = |(provider, s): &(alloy_primitives::Address, assay_ledger::standing::Standing)| {
                    json!({
                        "provider": provider, "score_ppm": s.score_ppm, "batches": s.batches, "settled": s.settled,
                        "answers": s.answers, "audits": s.audits, "struck": s.struck,
                    })
                };
                println!("{}", Value::from(standings.iter().map(line).collect::<Vec<_>>()));
                return Ok(());
            }
            let mut table = Table::new();
            table.load_style(presets::UTF8_BORDERS_ONLY);
            table.set_header(["provider", "score", "answers", "batches", "settled", "audits", ""]);
            for (provider, s) in &standings {
                let number = |n: u64| Cell::new(n).set_alignment(CellAlignment::Right);
                table.add_row([
                    Cell::new(provider),
                    Cell::new(format!("{:.1} %", f64::from(s.score_ppm) / 10_000.0))
                        .set_alignment(CellAlignment::Right),
                    number(s.answers),
                    number(s.batches),
                    number(s.settled),
                    number(s.audits),
                    Cell::new(if s.struck { "struck" } else { "" }).fg(Color::Red),
                ]);
            }
            println!("{table}");
            println!("of the last {EPOCHS} epochs; an answer counts half after {HALF_LIFE}");
            Ok(())
        })
    }
}
