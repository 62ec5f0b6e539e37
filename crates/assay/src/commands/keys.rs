//! `assay keys`: who may ask the gateway, and what it costs them.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use assay_gateway::accounts::{Accounts, CSV_HEAD, Key, Limits, MicroUsd, Period};
use assay_ledger::amount::Amount;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::json;

use super::ledger::connection::block_on;
use crate::home::Home;

const DAY_MS: i64 = 86_400_000;

/// Make, list, limit and revoke the API keys of a gateway, add credit, and see what was spent.
///
/// A key spends the balance of its account. A request sets aside the most that it can cost, and is charged what it did cost; a failed
/// answer costs nothing.
#[derive(Args)]
pub struct Keys {
    #[command(subcommand)]
    command: Command,
}

/// Which database.
#[derive(Args)]
pub struct AccountsArgs {
    /// The gateway's database: sqlite:PATH or postgres://USER@HOST/NAME [default: accounts.sqlite in the data directory].
    #[arg(long, env = "ASSAY_ACCOUNTS", value_name = "URL", hide_env_values = true)]
    accounts: Option<String>,
}

#[derive(Args)]
struct Where {
    #[command(flatten)]
    accounts: AccountsArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct LimitArgs {
    /// Requests a minute.
    #[arg(long, value_name = "N")]
    per_minute: Option<u32>,
    /// Requests that run at the same time.
    #[arg(long, value_name = "N")]
    at_once: Option<u32>,
    /// Dollars a day (UTC).
    #[arg(long, value_name = "DOLLARS")]
    per_day: Option<Amount>,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key. Its secret is shown once and stored nowhere.
    Create {
        /// What it is for.
        name: String,
        /// Whose balance it spends; made if there is none.
        #[arg(long, default_value = "default")]
        account: String,
        /// Dollars to add to the account's balance.
        #[arg(long, value_name = "DOLLARS")]
        credit: Option<Amount>,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        at: Where,
    },
    /// List keys and balances.
    List {
        /// Of this account alone.
        #[arg(long)]
        account: Option<String>,
        #[command(flatten)]
        at: Where,
    },
    /// Set what a key may do. What is not given is not limited any more.
    Limit {
        /// The key's id, as `assay keys list` shows it.
        key: String,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        at: Where,
    },
    /// Stop a key at once. Requests that run are finished and charged.
    Revoke {
        /// The key's id, as `assay keys list` shows it.
        key: String,
        #[command(flatten)]
        at: Where,
    },
    /// Add to an account's balance.
    Credit {
        /// Whose; made if there is none.
        account: String,
        /// How much, in dollars: 25 or 0.5.
        amount: Amount,
        /// Names the payment: the same one counts once [default: one that was never used].
        #[arg(long, value_name = "ID")]
        payment: Option<String>,
        /// For your own books.
        #[arg(long, default_value = "")]
        note: String,
        #[command(flatten)]
        at: Where,
    },
    /// Show what was spent, by key and model; with --csv or --json each answer and its receipt.
    Usage {
        /// Of this account alone.
        #[arg(long)]
        account: Option<String>,
        /// Of this key alone.
        #[arg(long, value_name = "ID")]
        key: Option<String>,
        /// Of the last days.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Print each answer as a line of CSV.
        #[arg(long, conflicts_with = "json")]
        csv: bool,
        #[command(flatten)]
        at: Where,
    },
}

impl AccountsArgs {
    /// Opens the database, which is made if there is none.
    pub async fn open(&self, home: &Home) -> Result<Accounts> {
        if self.accounts.is_none() {
            std::fs::create_dir_all(home.path())?;
        }
        let url = self.accounts.clone().unwrap_or_else(|| accounts_url(home));
        Ok(Accounts::open(&url).await?)
    }
}

/// The URL of the database in the data directory.
pub fn accounts_url(home: &Home) -> String {
    // A path may hold what means something in a URL.
    let path = home.accounts().display().to_string();
    let path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    format!("sqlite:{path}")
}

impl Where {
    async fn open(&self, home: &Home) -> Result<Accounts> {
        self.accounts.open(home).await
    }
}

impl LimitArgs {
    fn limits(&self) -> Result<Limits> {
        let per_day = self.per_day.map(money).transpose()?;
        Ok(Limits { per_minute: self.per_minute, at_once: self.at_once, per_day })
    }
}

fn money(amount: Amount) -> Result<MicroUsd> {
    let Ok(units) = u64::try_from(amount.0) else { bail!("{amount} dollars are more than anybody has") };
    Ok(MicroUsd(units))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Keys {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(self.command.run(home))
    }
}

impl Command {
    async fn run(self, home: &Home) -> Result<()> {
        match self {
            Command::Create { name, account, credit, limits, at } => {
                let books = at.open(home).await?;
                let (key, secret) = books.create_key(&account, &name, limits.limits()?, now_ms()).await?;
                if let Some(credit) = credit {
                    let payment = format!("with {}", key.id);
                    books.credit(&account, money(credit)?, &payment, "", now_ms()).await?;
                }
                let balance = books.account(&account).await?.context("the account was just made")?.balance;
                if at.json {
                    println!("{}", json!({"key": key, "secret": secret.reveal(), "balance": balance}));
                    return Ok(());
                }
                println!("{}", secret.reveal());
                eprintln!(
                    "key {} `{name}` of account `{account}`, which has {balance} dollars; the line above is its secret and is not shown again",
                    key.id
                );
                Ok(())
            }
            Command::List { account, at } => {
                let books = at.open(home).await?;
                let keys = books.keys(account.as_deref()).await?;
                let mut accounts = books.accounts().await?;
                accounts.retain(|a| account.as_ref().is_none_or(|name| a.name == *name));
                if at.json {
                    println!("{}", json!({"accounts": accounts, "keys": keys}));
                    return Ok(());
                }
                if accounts.is_empty() {
                    eprintln!("there are no keys yet; make one: assay keys create NAME --credit 5");
                    return Ok(());
                }
                let mut table = Table::new();
                table.load_style(presets::UTF8_BORDERS_ONLY);
                table.set_header(["account", "balance", "key", "name", "secret", "limits", "state"]);
                for a in &accounts {
                    let of: Vec<&Key> = keys.iter().filter(|k| k.account == a.name).collect();
                    if of.is_empty() {
                        table.add_row([a.name.clone(), a.balance.to_string()]);
                    }
                    for (i, key) in of.into_iter().enumerate() {
                        let first = |text: String| if i == 0 { text } else { String::new() };
                        let state = if key.revoked_ms.is_some() { "revoked" } else { "" };
                        table.add_row([
                            first(a.name.clone()),
                            first(a.balance.to_string()),
                            key.id.clone(),
                            key.name.clone(),
                            key.hint.clone(),
                            shown(&key.limits),
                            state.to_owned(),
                        ]);
                    }
                }
                println!("{table}");
                Ok(())
            }
            Command::Limit { key, limits, at } => {
                let limits = limits.limits()?;
                at.open(home).await?.limit(&key, limits).await?;
                if at.json {
                    println!("{}", json!({"key": key, "limits": limits}));
                } else {
                    println!(
                        "{key}: {}",
                        if limits == Limits::default() { "no limits".into() } else { shown(&limits) }
                    );
                }
                Ok(())
            }
            Command::Revoke { key, at } => {
                let now = at.open(home).await?.revoke(&key, now_ms()).await?;
                if at.json {
                    println!("{}", json!({"key": key, "revoked": true, "before": !now}));
                } else {
                    println!("{key} is revoked{}", if now { "" } else { ", and was before" });
                }
                Ok(())
            }
            Command::Credit { account, amount, payment, note, at } => {
                let books = at.open(home).await?;
                let payment = payment.unwrap_or_else(|| format!("by hand {}", now_ms()));
                let counted = books.credit(&account, money(amount)?, &payment, &note, now_ms()).await?;
                let balance = books.account(&account).await?.context("the account was just made")?.balance;
                if at.json {
                    println!("{}", json!({"account": account, "balance": balance, "counted": counted}));
                } else if counted {
                    println!("{account} has {balance} dollars");
                } else {
                    println!("payment `{payment}` was counted before; {account} has {balance} dollars");
                }
                Ok(())
            }
            Command::Usage { account, key, days, csv, at } => {
                let books = at.open(home).await?;
                // What was noted while the clock was ahead is there, too.
                let (from_ms, until_ms) =
                    (now_ms().saturating_sub(i64::from(days).saturating_mul(DAY_MS)), i64::MAX);
                let period = Period { from_ms, until_ms, account, key_id: key };
                if csv || at.json { each(&books, &period, csv).await } else { totals(&books, &period).await }
            }
        }
    }
}

fn shown(limits: &Limits) -> String {
    let parts = [
        limits.per_minute.map(|n| format!("{n} a minute")),
        limits.at_once.map(|n| format!("{n} at once")),
        limits.per_day.map(|n| format!("{n} dollars a day")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Each answer as a line, of CSV or JSON.
async fn each(books: &Accounts, period: &Period, csv: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if csv {
        writeln!(out, "{CSV_HEAD}")?;
    }
    let mut offset = 0;
    loop {
        let page = books.charges(period, offset).await?;
        if page.is_empty() {
            return Ok(());
        }
        for charge in &page {
            if csv {
                writeln!(out, "{}", charge.csv())?;
            } else {
                writeln!(out, "{}", serde_json::to_string(charge)?)?;
            }
        }
        offset += i64::try_from(page.len())?;
    }
}

async fn totals(books: &Accounts, period: &Period) -> Result<()> {
    let totals = books.totals(period).await?;
    if totals.is_empty() {
        eprintln!("nothing was charged in this time");
        return Ok(());
    }
    let names = books.keys(None).await?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["key", "name", "model", "answers", "tokens read", "written", "dollars"]);
    for t in totals {
        let name = names.iter().find(|k| k.id == t.key_id).map(|k| k.name.clone()).unwrap_or_default();
        table.add_row([
            t.key_id,
            name,
            t.model,
            t.requests.to_string(),
            t.prompt_tokens.to_string(),
            t.completion_tokens.to_string(),
            t.amount.to_string(),
        ]);
    }
    println!("{table}");
    Ok(())
}
