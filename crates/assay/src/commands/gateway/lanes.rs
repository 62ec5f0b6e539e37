//! `assay gateway lanes`: what lies in channels to providers, and how it comes back.

use anyhow::Result;
use assay_ledger::amount::Amount;
use assay_ledger::channels::Opened;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanDuration;
use serde_json::json;
use std::time::Duration;

use crate::commands::ledger::connection::{AccountArgs, block_on};
use crate::home::Home;
use crate::progress;

/// Show the key's channels to providers, all that it ever opened, and take back what is in them.
///
/// A gateway that pays does not stop by itself to use its channels: stop it first. `--close` announces that what was not claimed is taken back, which providers
/// have an hour to claim from; `--collect` then moves it to the key's balance on the ledger, from where `assay withdraw` takes it.
#[derive(Args)]
pub struct Lanes {
    /// Announce that all that is not claimed is taken back.
    #[arg(long)]
    close: bool,
    /// Take back what was announced and whose time has come.
    #[arg(long, conflicts_with = "close")]
    collect: bool,
    #[command(flatten)]
    account: AccountArgs,
}

impl Lanes {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let account = self.account.key.load(home)?.address();
            let ledger = self.account.ledger.ledger(home).await?;
            let spinner = progress::spinner("reading the ledger");
            let mut channels = ledger.channels_of(account).await?;
            spinner.finish_and_clear();
            let now = ledger.client().latest().await?.timestamp;
            if self.close || self.collect {
                let due = |channel: &Opened| match channel.leaves_at() {
                    None => self.close && channel.left() > 0,
                    Some(at) => self.collect && at <= now,
                };
                let (_, sender) = self.account.open(home).await?;
                for channel in channels.iter().filter(|channel| due(channel)) {
                    if self.close {
                        ledger.leave_channel(&sender, channel).await?;
                    } else {
                        ledger.empty_channel(&sender, channel).await?;
                    }
                }
                channels = ledger.channels_of(account).await?;
            }
            let balance = ledger.holdings(account).await?.vault;
            if self.account.json {
                let channel = |c: &Opened| {
                    json!({
                        "id": c.id, "provider": c.config.receiver, "balance": c.state.balance, "claimed": c.state.claimed,
                        "leaves_at": c.leaves_at(),
                    })
                };
                let channels: Vec<_> = channels.iter().map(channel).collect();
                println!("{}", json!({"account": account, "balance": balance, "channels": channels}));
                return Ok(());
            }
            let mut table = Table::new();
            table.load_style(presets::UTF8_BORDERS_ONLY);
            table.set_header(["channel", "provider", "claimed", "left", ""]);
            for column in [2, 3] {
                if let Some(column) = table.column_mut(column) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            for channel in &channels {
                let leaves = match channel.leaves_at() {
                    None => String::new(),
                    Some(at) if at <= now => "can be collected".to_owned(),
                    Some(at) => format!("leaves in {}", HumanDuration(Duration::from_secs(at - now))),
                };
                table.add_row([
                    channel.id.to_string(),
                    channel.config.receiver.to_string(),
                    Amount(channel.state.claimed.into()).to_string(),
                    Amount(channel.left().into()).to_string(),
                    leaves,
                ]);
            }
            println!("{table}\n{account} has {balance} on the ledger beside");
            Ok(())
        })
    }
}
