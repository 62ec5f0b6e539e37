//! The ledger: whether it is the one that was named, what it says of this node, and whether there is money for what the daemons do there.

use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, U256};
use anyhow::{Context as _, Result};
use assay_chain::CHAIN_ID;
use assay_core::id::NodeAddress;
use assay_ledger::amount::Amount;
use assay_ledger::client::Client;
use assay_ledger::contracts::{Registry, address};
use assay_ledger::ledger::{Ledger, Role};
use tokio::time::timeout;

use super::{ANSWER, Findings, Wanted, daemons};
use crate::commands::ledger::connection::{DEFAULT_RPC, LedgerArgs, Named};
use crate::home::{Daemon, Home};

/// A chain whose last block is older than this stands still, or this clock is ahead.
const STALE_S: u64 = 300;
/// A chain whose last block is so far in the future says that this clock is behind.
const AHEAD_S: u64 = 15;
/// Fewer coins than this, in wei, are used up soon: a hundredth of one.
const COINS_LOW: u64 = 10_000_000_000_000_000;

pub(super) async fn examine(
    home: &Home,
    args: &LedgerArgs,
    wanted: &Wanted,
    key: Option<NodeAddress>,
    found: &mut Findings,
) {
    let named = match Named::read(home) {
        Ok(named) => named,
        Err(e) => {
            found.wrong(
                "ledger_file",
                "ledger",
                format!("{e:#}"),
                "name it again: `assay ledger use DIRECTORY`",
            );
            return;
        }
    };
    let Some(directory) = args.directory.or(named.as_ref().map(|named| named.directory)) else {
        unnamed(home, wanted, found);
        return;
    };
    let Some(client) = connect(args, named.as_ref(), found).await else { return };
    match timeout(ANSWER, time(&client, found)).await {
        Ok(Ok(())) => {}
        failed => {
            gave_up(failed, found);
            return;
        }
    }
    // A directory that was given is on whatever chain was given with it.
    let remembered = named.filter(|_| args.directory.is_none());
    if let Some(named) = remembered {
        match timeout(ANSWER, client.genesis()).await {
            Ok(Ok(genesis)) if (client.chain_id(), genesis) == (named.chain_id, named.genesis) => {}
            Ok(Ok(genesis)) => {
                let detail = format!(
                    "{} is chain {} with first block {genesis}; the ledger is on chain {} with {}",
                    client.host(),
                    client.chain_id(),
                    named.chain_id,
                    named.genesis
                );
                let next = "ask the right chain with --rpc, or name a ledger on this one: `assay ledger use DIRECTORY`";
                found.wrong("ledger_other_chain", "ledger", detail, next);
                return;
            }
            failed => {
                gave_up(failed.map(|read| read.map(drop)), found);
                return;
            }
        }
    }
    let ledger = match timeout(ANSWER, Ledger::at(client, directory)).await {
        Ok(Ok(ledger)) => ledger,
        Ok(Err(e)) => {
            let next = "name the ledger's directory again: `assay ledger use DIRECTORY`";
            found.wrong(
                "ledger_no_contracts",
                "ledger",
                format!("{directory} is no ledger's directory: {e}"),
                next,
            );
            return;
        }
        Err(_) => {
            gave_up(Ok(Err(anyhow::anyhow!("no answer in time"))), found);
            return;
        }
    };
    let chain = ledger.client().chain_id();
    found.ok("ledger", "ledger", format!("{directory} on chain {chain} at {}", ledger.client().host()));
    let Some(key) = key else { return };
    if let Err(e) = account(home, &ledger, wanted, key, found).await {
        gave_up(Ok(Err(e)), found);
    }
}

/// A read that did not come, in time or at all.
fn gave_up<E: std::fmt::Display>(
    failed: Result<Result<(), E>, tokio::time::error::Elapsed>,
    found: &mut Findings,
) {
    let reason = match failed {
        Ok(Err(e)) => e.to_string(),
        _ => "no answer in time".to_owned(),
    };
    found.wrong(
        "ledger_unread",
        "ledger",
        reason,
        "see that the chain's node is well, or ask another one with --rpc",
    );
}

/// No ledger is known here.
fn unnamed(home: &Home, wanted: &Wanted, found: &mut Findings) {
    let needs: Vec<&str> =
        Daemon::ALL.into_iter().filter(|d| wanted.on_ledger(home, *d)).map(Daemon::name).collect();
    if needs.is_empty() {
        found.ok("ledger_none", "ledger", "none is named here; nobody is paid");
    } else {
        let detail = format!("none is named here, and needed by: {}", needs.join(", "));
        found.wrong("ledger_missing", "ledger", detail, "name one: `assay ledger use DIRECTORY --rpc URL`");
    }
}

async fn connect(args: &LedgerArgs, named: Option<&Named>, found: &mut Findings) -> Option<Client> {
    let url =
        args.rpc.clone().or(named.map(|named| named.rpc.clone())).unwrap_or_else(|| DEFAULT_RPC.to_owned());
    let reason = match timeout(ANSWER, Client::connect(&url)).await {
        Ok(Ok(client)) => return Some(client),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "the chain's node does not answer".to_owned(),
    };
    let next = "start the chain's node (`assay chain` for development), or ask another one with --rpc";
    found.wrong("ledger_unreachable", "ledger", reason, next);
    None
}

/// The chain's time against this machine's.
async fn time(client: &Client, found: &mut Findings) -> Result<()> {
    let head = client.latest().await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let what = "chain";
    let (age, ahead) = (now.saturating_sub(head.timestamp), head.timestamp.saturating_sub(now));
    let detail = format!("block {}, {age} s old", head.number);
    if ahead > AHEAD_S {
        let detail = format!("block {} is {ahead} s ahead of this clock", head.number);
        let next = "set this machine's clock: offers and orders with wrong times are refused";
        found.wrong("clock_behind", what, detail, next);
    } else if age > STALE_S && client.chain_id() != CHAIN_ID {
        let next = "see that the chain's node follows its chain, and that this machine's clock is right";
        found.warn("chain_stale", what, detail, next);
    } else {
        found.ok("chain", what, detail);
    }
    Ok(())
}

/// What the ledger says of this node and its money.
async fn account(
    home: &Home,
    ledger: &Ledger,
    wanted: &Wanted,
    key: NodeAddress,
    found: &mut Findings,
) -> Result<()> {
    let account = address(&key);
    let node = timeout(ANSWER, ledger.node(account)).await.context("no answer in time")??;
    let roles =
        [(Daemon::Provider, Role::Provider), (Daemon::Host, Role::Host), (Daemon::Auditor, Role::Auditor)];
    let wants = |daemon| wanted.on_ledger(home, daemon);
    match &node {
        None if roles.iter().any(|(daemon, _)| wants(*daemon)) => {
            let next = "enrol it: `assay stake AMOUNT --role provider|host|auditor --endpoint URL`";
            found.wrong("node_not_enrolled", "node", format!("{account} is not enrolled"), next);
        }
        None => found.ok("node_none", "node", format!("{account} is not enrolled, and needs not be")),
        Some(node) if node.struck => {
            let next = "it earns nothing any more: take out what is left with `assay unstake` and `assay withdraw`, and find out what signed for it";
            found.wrong("node_struck", "node", format!("{account} was proved to lie, and struck"), next);
        }
        Some(node) => {
            enrolled(ledger, node, wanted, &roles, wants, found);
            if node.roles & Role::Provider as u8 != 0 {
                endpoint(&node.endpoint, key, wants(Daemon::Provider), found).await;
            }
        }
    }
    money(home, ledger, account, wanted, found).await
}

/// A node's roles and stake against what its daemons do.
fn enrolled(
    ledger: &Ledger,
    node: &Registry::Node,
    wanted: &Wanted,
    roles: &[(Daemon, Role); 3],
    wants: impl Fn(Daemon) -> bool,
    found: &mut Findings,
) {
    let stake = Amount(node.stake);
    let mut missing = false;
    for (daemon, role) in roles {
        if wants(*daemon) && node.roles & *role as u8 == 0 {
            missing = true;
            let next = format!("give it the role: `assay stake 0 --role {}`", daemon.name());
            found.wrong("role_missing", "node", format!("is not enrolled as {}", daemon.name()), next);
        }
    }
    let each = u128::from(ledger.parameters().stakes.seatStake);
    if wanted.has(Daemon::Auditor) && node.stake < each {
        let detail = format!("{stake} at stake, and a seat needs {}", Amount(each));
        found.wrong(
            "stake_low",
            "stake",
            detail,
            "put more in: `assay deposit AMOUNT`, then `assay stake AMOUNT`",
        );
    } else if node.stake == 0 {
        let next = "what it can earn in an epoch is limited by its stake: `assay stake AMOUNT`";
        found.warn("stake_none", "stake", "nothing is at stake", next);
    } else {
        let free = Amount(node.stake.saturating_sub(node.reserved));
        found.ok("stake", "stake", format!("{stake} at stake, {free} of it free"));
    }
    if !missing {
        found.ok("node", "node", "is enrolled");
    }
}

/// Where the ledger says that the provider is.
async fn endpoint(endpoint: &str, key: NodeAddress, is_wanted: bool, found: &mut Findings) {
    if endpoint.is_empty() {
        if is_wanted {
            let next = "say where it is: `assay stake 0 --role provider --endpoint http://HOST:PORT`";
            found.warn(
                "endpoint_none",
                "endpoint",
                "the ledger names none: gateways do not find the node",
                next,
            );
        }
    } else if endpoint.starts_with("http") {
        daemons::offer(endpoint, "endpoint", Some(key), found).await;
    }
}

/// Coins for gas, the balance on the ledger, and what lies in channels.
async fn money(
    home: &Home,
    ledger: &Ledger,
    account: Address,
    wanted: &Wanted,
    found: &mut Findings,
) -> Result<()> {
    let acts = Daemon::ALL.into_iter().any(|daemon| wanted.on_ledger(home, daemon));
    let has = timeout(ANSWER, ledger.holdings(account)).await.context("no answer in time")??;
    let coins = f64::from(has.coin) / 1e18;
    let next = format!(
        "send some of the chain's coins to {account}: without gas nothing is posted, answered or disputed"
    );
    match acts {
        true if has.coin.is_zero() => found.wrong("no_coins", "coins for gas", "none", next),
        true if has.coin < U256::from(COINS_LOW) => {
            found.warn("coins_low", "coins for gas", format!("{coins:.6}"), next);
        }
        _ => found.ok("coins", "coins for gas", format!("{coins:.6}")),
    }
    let bond = Amount(ledger.parameters().stakes.disputeBond.into());
    if wanted.has(Daemon::Auditor) && has.vault < bond {
        let detail = format!("{} on the ledger, and a dispute needs {bond}", has.vault);
        found.warn("balance_low", "balance", detail, "bring more in: `assay deposit AMOUNT`");
    } else if wanted.on_ledger(home, Daemon::Gateway) && has.vault == Amount(0) {
        let next = "bring some in, for new channels to providers: `assay deposit AMOUNT`";
        found.warn("balance_low", "balance", "nothing on the ledger", next);
    } else {
        found.ok("balance", "balance", format!("{} on the ledger", has.vault));
    }
    if wanted.on_ledger(home, Daemon::Gateway) {
        let channels = timeout(ANSWER, ledger.channels_of(account)).await.context("no answer in time")??;
        let left = channels.iter().map(|c| u128::from(c.left())).fold(0, u128::saturating_add);
        let detail = format!("{} in {} channels to providers", Amount(left), channels.len());
        if left == 0 && has.vault == Amount(0) {
            let next = "providers cannot be paid: `assay deposit AMOUNT`";
            found.wrong("lanes_empty", "channels", detail, next);
        } else {
            found.ok("lanes", "channels", detail);
        }
    }
    Ok(())
}
