//! Who gained and lost what, who was found out, and whether all the money is there.

use std::collections::BTreeMap;
use std::path::Path;

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256};
use alloy_sol_types::SolEvent as _;
use anyhow::{Result, bail};
use assay_ledger::amount::Amount;
use assay_ledger::client::Client;
use assay_ledger::contracts::{Channels, Disputes, Epochs, Registry, TestToken, Vault};
use assay_ledger::follow::{Change, Cursor, Follower};
use assay_ledger::ledger::Ledger;
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::ledger::connection::{read_json, write_json};
use super::fault::Kind;
use super::load::Counts;
use super::network::{Member, Part, State};
use super::suffered::Suffered;

/// One member's account.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    pub part: Part,
    pub fault: Option<Kind>,
    pub account: Address,
    pub given: Amount,
    /// Wallet, vault, stake, what is leaving, what a provider has claimed and not posted, what a payer has in channels.
    pub has: Amount,
    pub profit: i128,
    pub struck: bool,
    /// Seconds of the chain from the posting of the first wrong batch to the strike.
    pub struck_after_s: Option<u64>,
    pub epochs_posted: u64,
    pub disputes_lost: u64,
    /// Gas that its transactions have used since everyone was started, at the end.
    pub gas: Option<u64>,
    /// Its answers that do not hold when their clients execute them again, as they do in a network with cheats.
    pub refuted: u64,
    /// Seconds of processor time that its process has used since everyone was started.
    pub processor_s: Option<f64>,
}

/// What there is to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub lines: Vec<Line>,
    /// What became of the requests that were sent.
    pub requests: Option<Counts>,
    /// What chaos did, if there was any.
    pub chaos: Option<Suffered>,
    pub epoch: u64,
    /// Tokens that exist.
    pub supply: Amount,
    /// What wallets and the vault hold of them.
    pub held: Amount,
    /// What the vault's accounts sum up to, by its own count.
    pub vault_total: Amount,
    pub vault_tokens: Amount,
}

/// What the log says.
#[derive(Debug, Default)]
pub struct Logged {
    posted: BTreeMap<Address, Vec<u64>>,
    struck: BTreeMap<Address, u64>,
    lost: BTreeMap<Address, u64>,
    /// What each payer has put into channels and not got back, and what was claimed of it.
    channels: BTreeMap<B256, (Address, u128, u128)>,
}

pub async fn open(state: &State) -> Result<Ledger> {
    Ok(Ledger::at(Client::connect(&state.rpc).await?, state.directory).await?)
}

async fn logged(ledger: &Ledger) -> Result<Logged> {
    let at = &ledger.parts().at;
    let contracts = vec![at.registry, at.epochs, at.disputes, at.channels];
    let mut follower = Follower::new(ledger.client().clone(), contracts, Cursor::from(0));
    let mut found = Logged::default();
    loop {
        let changes = follower.poll().await?;
        if changes.is_empty() {
            return Ok(found);
        }
        for change in changes {
            let Change::Applied(block) = change else { continue };
            for log in &block.logs {
                if let Ok(event) = Epochs::Posted::decode_log_data(&log.data) {
                    found.posted.entry(event.provider).or_default().push(block.number);
                } else if let Ok(event) = Registry::Struck::decode_log_data(&log.data) {
                    found.struck.entry(event.node).or_insert(block.number);
                } else if let Ok(event) = Disputes::Ended::decode_log_data(&log.data) {
                    if !event.upheld {
                        *found.lost.entry(event.challenger).or_default() += 1;
                    }
                } else if let Ok(event) = Channels::Opened::decode_log_data(&log.data) {
                    found.channels.entry(event.channelId).or_insert((event.payer, 0, 0));
                } else if let Ok(event) = Channels::Funded::decode_log_data(&log.data) {
                    if let Some(channel) = found.channels.get_mut(&event.channelId) {
                        channel.1 = event.balance;
                    }
                } else if let Ok(event) = Channels::Claimed::decode_log_data(&log.data)
                    && let Some(channel) = found.channels.get_mut(&event.channelId)
                {
                    channel.2 = event.claimed;
                }
            }
        }
    }
}

async fn time(ledger: &Ledger, block: u64) -> Result<u64> {
    let id = BlockId::Number(BlockNumberOrTag::Number(block));
    let Some(header) = ledger.client().header(id).await? else { bail!("block {block} is gone") };
    Ok(header.timestamp)
}

async fn line(ledger: &Ledger, member: &Member, logged: &Logged) -> Result<Line> {
    let account = member.account;
    let holdings = ledger.holdings(account).await?;
    let node = ledger.node(account).await?;
    let client = ledger.client();
    let income = client.read(ledger.parts().at.epochs, &Epochs::accountOfCall { provider: account }).await?;
    let channels = logged.channels.values().filter(|(payer, ..)| *payer == account);
    let unspent: u128 = channels.map(|(_, balance, claimed)| balance.saturating_sub(*claimed)).sum();
    let (stake, leaving) = node.as_ref().map_or((0, 0), |n| (n.stake, n.unbonding));
    let parts = [holdings.wallet.0, holdings.vault.0, stake, leaving, income.pot, unspent];
    let has = Amount(parts.iter().sum());
    let struck_after_s = match (logged.struck.get(&account), logged.posted.get(&account)) {
        (Some(struck), Some(posted)) => {
            let first = posted.first().copied().unwrap_or(*struck);
            Some(time(ledger, *struck).await?.saturating_sub(time(ledger, first).await?))
        }
        _ => None,
    };
    Ok(Line {
        name: member.name.clone(),
        part: member.part,
        fault: member.fault,
        account,
        given: member.funded,
        has,
        profit: has.0 as i128 - member.funded.0 as i128,
        struck: node.is_some_and(|n| n.struck),
        struck_after_s,
        epochs_posted: logged.posted.get(&account).map_or(0, |p| p.len() as u64),
        disputes_lost: logged.lost.get(&account).copied().unwrap_or_default(),
        gas: None,
        refuted: 0,
        processor_s: None,
    })
}

/// Reads it from the ledger.
pub async fn read(state: &State) -> Result<Found> {
    let ledger = open(state).await?;
    let logged = logged(&ledger).await?;
    let mut lines = Vec::new();
    for member in &state.members {
        lines.push(line(&ledger, member, &logged).await?);
    }
    let at = ledger.parts().at.clone();
    let client = ledger.client();
    let supply = Amount::from_word(client.read(at.token, &TestToken::totalSupplyCall {}).await?);
    let tokens = client.read(at.token, &TestToken::balanceOfCall { account: at.vault }).await?;
    let vault_tokens = Amount::from_word(tokens);
    let vault_total = Amount::from_word(client.read(at.vault, &Vault::totalCall {}).await?);
    let mut wallets = 0;
    for member in &state.members {
        wallets += ledger.holdings(member.account).await?.wallet.0;
    }
    let held = Amount(wallets.saturating_add(vault_tokens.0));
    let epoch = ledger.epoch().await?;
    Ok(Found { lines, requests: None, chaos: None, epoch, supply, held, vault_total, vault_tokens })
}

/// Gas that each account's transactions have used after a block.
pub async fn gas(state: &State, after: u64) -> Result<BTreeMap<Address, u64>> {
    let ledger = open(state).await?;
    let mut used: BTreeMap<Address, u64> = BTreeMap::new();
    for block in after + 1..=ledger.client().head().await? {
        for (sender, gas) in ledger.client().gas(block).await? {
            *used.entry(sender).or_default() += gas;
        }
    }
    Ok(used)
}

fn dollars(units: i128) -> String {
    let amount = Amount(units.unsigned_abs());
    if units < 0 { format!("-{amount}") } else { format!("+{amount}") }
}

fn millions(gas: u64) -> String {
    format!("{}.{} M", gas / 1_000_000, gas % 1_000_000 / 100_000)
}

impl Found {
    /// Whether every token is where it should be.
    pub fn conserved(&self) -> bool {
        self.supply == self.held && self.vault_total == self.vault_tokens
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["who", "fault", "has", "gained", "gas", "epochs", ""]);
        for line in &self.lines {
            let colour = if line.profit < 0 { Color::Red } else { Color::Green };
            let note = [
                line.struck.then(|| match line.struck_after_s {
                    Some(after) => format!("struck, {after} s after its first batch"),
                    None => "struck".to_owned(),
                }),
                (line.disputes_lost > 0).then(|| format!("{} disputes lost", line.disputes_lost)),
                (line.refuted > 0).then(|| format!("{} answers refuted", line.refuted)),
            ];
            let note: Vec<String> = note.into_iter().flatten().collect();
            table.add_row([
                Cell::new(&line.name),
                Cell::new(line.fault.map(Kind::name).unwrap_or_default()),
                Cell::new(line.has).set_alignment(CellAlignment::Right),
                Cell::new(dollars(line.profit)).set_alignment(CellAlignment::Right).fg(colour),
                Cell::new(line.gas.map(millions).unwrap_or_default()).set_alignment(CellAlignment::Right),
                Cell::new(line.epochs_posted).set_alignment(CellAlignment::Right),
                Cell::new(note.join("; ")).fg(Color::Red),
            ]);
        }
        table
    }

    pub fn print(&self) -> Result<()> {
        println!("{}", self.table());
        if !self.conserved() {
            bail!(
                "money is missing: {} tokens exist, {} are held; the vault has {} for accounts of {}",
                self.supply,
                self.held,
                self.vault_tokens,
                self.vault_total
            );
        }
        println!("epoch {}; all {} tokens are accounted for", self.epoch, self.supply);
        match &self.chaos {
            Some(chaos) => chaos.print(),
            None => Ok(()),
        }
    }

    pub fn print_json(&self) -> Result<()> {
        println!("{}", serde_json::to_string_pretty(&json!({"found": self, "conserved": self.conserved()}))?);
        Ok(())
    }

    /// Keeps it beside the network's data.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join("report.json"), self)
    }

    /// What was kept when a network was stopped.
    pub fn kept(folder: &Path) -> Result<Option<Found>> {
        read_json(&folder.join("report.json"))
    }
}
