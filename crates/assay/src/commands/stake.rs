//! `assay stake` and `unstake`.

use std::time::Duration;

use alloy_primitives::{Address, B256};
use anyhow::{Result, bail};
use assay_ledger::amount::Amount;
use assay_ledger::ledger::Role;
use clap::{Args, ValueEnum};
use indicatif::HumanDuration;
use serde_json::json;

use super::ledger::connection::{AccountArgs, KeyArgs, block_on};
use crate::home::Home;
use crate::progress;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Does {
    /// Executes requests.
    Provider,
    /// Keeps models.
    Host,
    /// Checks what the lottery draws.
    Auditor,
}

impl Does {
    fn role(self) -> u8 {
        match self {
            Does::Provider => Role::Provider as u8,
            Does::Host => Role::Host as u8,
            Does::Auditor => Role::Auditor as u8,
        }
    }
}

/// Put money of the key's balance on the ledger at stake for a node, which is enrolled if it was not.
///
/// A provider needs no stake to begin with: without it every receipt is audited. Stake makes audits rarer; it is lost if an execution was
/// wrong, and leaves by `assay unstake` after the unbonding time.
#[derive(Args)]
pub struct Stake {
    /// How much, in dollars. 0 enrols without stake.
    amount: Amount,
    /// What the node does; beside what it did, if it is enrolled. May be given several times [default: provider].
    #[arg(long = "role", value_enum)]
    roles: Vec<Does>,
    /// Where the node answers.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// File with the node's key, if it is another one than the key that pays.
    #[arg(long, value_name = "FILE")]
    node_key: Option<std::path::PathBuf>,
    #[command(flatten)]
    account: AccountArgs,
}

/// Take stake out.
///
/// With an amount, it starts to leave. Without one, what has finished leaving is moved to the owner's balance on the ledger.
#[derive(Args)]
pub struct Unstake {
    /// How much is to leave, in dollars.
    amount: Option<Amount>,
    /// The node's address [default: the key's].
    #[arg(long, value_name = "ADDRESS")]
    node: Option<Address>,
    #[command(flatten)]
    account: AccountArgs,
}

impl Stake {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let (ledger, sender) = self.account.open(home).await?;
            let node = match &self.node_key {
                Some(path) => KeyArgs { key: Some(path.clone()) }.load(home)?,
                None => sender.key().clone(),
            };
            let has = ledger.holdings(sender.account()).await?;
            if has.vault < self.amount {
                bail!("{} has {} on the ledger; `assay deposit` brings more in", sender.account(), has.vault);
            }
            let spinner = progress::spinner("staking");
            let roles = self.roles.iter().fold(0, |all, role| all | role.role());
            match ledger.node(node.address()).await? {
                None => {
                    let roles = if roles == 0 { Does::Provider.role() } else { roles };
                    let endpoint = self.endpoint.clone().unwrap_or_default();
                    ledger.enrol(&sender, &node, roles, endpoint, B256::ZERO).await?;
                    spinner.println(format!("{} is enrolled", node.address()));
                }
                Some(known) => {
                    if roles & !known.roles != 0 {
                        ledger.add_roles(&sender, node.address(), roles & !known.roles).await?;
                        spinner.println(format!("{} has another role", node.address()));
                    }
                    if let Some(endpoint) = self.endpoint.as_ref().filter(|e| **e != known.endpoint) {
                        ledger.describe(&sender, node.address(), endpoint.clone(), known.priceList).await?;
                        spinner.println(format!("{} answers at {endpoint}", node.address()));
                    }
                }
            }
            if self.amount > Amount(0) {
                ledger.stake(&sender, node.address(), self.amount).await?;
            }
            spinner.finish_and_clear();
            let stake = ledger.node(node.address()).await?.map_or(Amount(0), |n| Amount(n.stake));
            if self.account.json {
                println!("{}", json!({"node": node.address(), "staked": self.amount, "stake": stake}));
            } else {
                println!("{} has {stake} at stake", node.address());
            }
            Ok(())
        })
    }
}

impl Unstake {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let (ledger, sender) = self.account.open(home).await?;
            let node = self.node.unwrap_or(sender.account());
            let Some(before) = ledger.node(node).await? else { bail!("{node} is not enrolled") };
            let now = ledger.client().latest().await?.timestamp;
            let spinner = progress::spinner("unstaking");
            match self.amount {
                Some(amount) => {
                    let free = Amount(before.stake.saturating_sub(before.reserved));
                    if free < amount {
                        bail!(
                            "{node} has {free} at stake that no seat or pledge needs; {amount} are asked for"
                        );
                    }
                    ledger.unstake(&sender, node, amount).await?;
                }
                None if before.unbonding == 0 => {
                    bail!("nothing is leaving; `assay unstake AMOUNT` starts it")
                }
                None if now < before.unbondedAt.to::<u64>() => {
                    let left = Duration::from_secs(before.unbondedAt.to::<u64>().saturating_sub(now));
                    bail!(
                        "{} are leaving, and have left in {}",
                        Amount(before.unbonding),
                        HumanDuration(left)
                    );
                }
                None => drop(ledger.collect_stake(&sender, node).await?),
            }
            spinner.finish_and_clear();
            let Some(after) = ledger.node(node).await? else { bail!("{node} is not enrolled any more") };
            let (stake, leaving) = (Amount(after.stake), Amount(after.unbonding));
            let at = after.unbondedAt.to::<u64>();
            if self.account.json {
                println!("{}", json!({"node": node, "stake": stake, "unbonding": leaving, "leaves_at": at}));
            } else if after.unbonding > 0 {
                let left = HumanDuration(Duration::from_secs(at.saturating_sub(now)));
                println!("{leaving} of {node} are leaving; `assay unstake` takes them out in {left}");
            } else {
                println!("taken out; {node} has {stake} at stake");
            }
            Ok(())
        })
    }
}
