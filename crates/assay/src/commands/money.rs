//! `assay deposit`, `withdraw` and `balance`.

use alloy_primitives::Address;
use anyhow::{Context as _, Result, bail};
use assay_ledger::amount::Amount;
use assay_ledger::ledger::Ledger;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

use super::ledger::connection::{AccountArgs, block_on};
use crate::home::Home;
use crate::progress;

/// Bring tokens of the key's account into its balance on the ledger, from where channels are funded and stake is taken.
#[derive(Args)]
pub struct Deposit {
    /// How much, in dollars: 25 or 0.5.
    amount: Amount,
    #[command(flatten)]
    account: AccountArgs,
}

/// Send money from the balance on the ledger to an account outside. Nobody can refuse it.
#[derive(Args)]
pub struct Withdraw {
    /// How much, in dollars: 25 or 0.5.
    amount: Amount,
    /// Who gets the tokens [default: the key's account].
    #[arg(long, value_name = "ADDRESS")]
    to: Option<Address>,
    #[command(flatten)]
    account: AccountArgs,
}

/// Show what an account has: tokens in its wallet, its balance on the ledger, its stake, and coin for gas.
#[derive(Args)]
pub struct Balance {
    /// Whose [default: the key's account].
    #[arg(value_name = "ACCOUNT")]
    whose: Option<Address>,
    #[command(flatten)]
    account: AccountArgs,
}

impl Deposit {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let (ledger, sender) = self.account.open(home).await?;
            let account = sender.account();
            let has = ledger.holdings(account).await?;
            if has.wallet < self.amount {
                bail!(
                    "{account} has {} of the token {}; {} are needed",
                    has.wallet,
                    ledger.parts().at.token,
                    self.amount
                );
            }
            let spinner = progress::spinner("depositing");
            let arrived = ledger.deposit(&sender, self.amount).await?;
            spinner.finish_and_clear();
            say(&ledger, account, arrived, "deposited", self.account.json).await
        })
    }
}

impl Withdraw {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let (ledger, sender) = self.account.open(home).await?;
            let account = sender.account();
            let has = ledger.holdings(account).await?;
            if has.vault < self.amount {
                bail!("{account} has {} on the ledger; {} are asked for", has.vault, self.amount);
            }
            let spinner = progress::spinner("withdrawing");
            ledger.withdraw(&sender, self.to.unwrap_or(account), self.amount).await?;
            spinner.finish_and_clear();
            say(&ledger, account, self.amount, "withdrawn", self.account.json).await
        })
    }
}

async fn say(ledger: &Ledger, account: Address, moved: Amount, how: &str, as_json: bool) -> Result<()> {
    let left = ledger.holdings(account).await?.vault;
    if as_json {
        println!("{}", json!({how: moved, "account": account, "balance": left}));
    } else {
        println!("{how} {moved}; {account} has {left} on the ledger");
    }
    Ok(())
}

impl Balance {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let ledger = self.account.ledger.ledger(home).await?;
            let account = match self.whose {
                Some(account) => account,
                None => self.account.key.load(home).context("name an account, or a key")?.address(),
            };
            let has = ledger.holdings(account).await?;
            let node = ledger.node(account).await?;
            let staked = node.as_ref().map_or(Amount(0), |n| Amount(n.stake));
            let unbonding = node.as_ref().map_or(Amount(0), |n| Amount(n.unbonding));
            if self.account.json {
                let said = json!({
                    "account": account, "wallet": has.wallet, "ledger": has.vault, "stake": staked,
                    "unbonding": unbonding, "coin_wei": has.coin.to_string(),
                });
                println!("{said}");
                return Ok(());
            }
            let mut table = Table::new();
            table.load_style(presets::UTF8_BORDERS_ONLY);
            table.set_header([account.to_string(), "dollars".to_owned()]);
            for (name, amount) in [
                ("wallet", has.wallet),
                ("ledger", has.vault),
                ("stake", staked),
                ("stake that is leaving", unbonding),
            ] {
                table.add_row([name.to_owned(), amount.to_string()]);
            }
            if let Some(column) = table.column_mut(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            println!("{table}");
            Ok(())
        })
    }
}
