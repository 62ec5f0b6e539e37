//! `assay ledger deploy`, `use` and `faucet`.

use std::path::PathBuf;

use alloy_eips::BlockId;
use alloy_primitives::{Address, U256};
use anyhow::{Context as _, Result, bail};
use assay_chain::CHAIN_ID;
use assay_ledger::amount::Amount;
use assay_ledger::client::Client;
use assay_ledger::contracts::TestToken;
use assay_ledger::deployment::{self, Creation, make, plan, test_token};
use assay_ledger::ledger::Ledger;
use assay_ledger::parameters::{entries, set};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::connection::{KeyArgs, LedgerArgs, Named, block_on, read_json, write_json};
use crate::home::Home;
use crate::progress;

/// Coin that a faucet gives, in wei: 100.
const COIN: u128 = 100 * 10u128.pow(18);

/// Deploy the ledger's contracts.
///
/// On a chain with value, name the token that people pay with (six decimals, such as USDC). On a development chain a token that anyone can
/// mint is made. Nobody, not even the deployer, has power over the contracts afterwards; docs/ledger.md lists who may do what.
#[derive(Args)]
pub struct Deploy {
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// The ERC-20 token that is paid with.
    #[arg(long, value_name = "ADDRESS")]
    token: Option<Address>,
    /// Who gets the protocol's part [default: the deployer].
    #[arg(long, value_name = "ADDRESS")]
    treasury: Option<Address>,
    /// TOML file with numbers that differ from the defaults: sections as `assay ledger params` shows them.
    #[arg(long, value_name = "FILE")]
    parameters: Option<PathBuf>,
    /// Begin anew, although a deployment was interrupted.
    #[arg(long)]
    anew: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A deployment that was begun.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    chain_id: u64,
    genesis: alloy_primitives::B256,
    deployer: Address,
    nonce: u64,
    token: Option<Address>,
    treasury: Address,
    parameters: Vec<(String, String, u64)>,
}

impl Begun {
    fn path(home: &Home) -> PathBuf {
        home.ledger().join("deploying.json")
    }

    /// What is created, and where the directory will be.
    fn creations(&self) -> Result<(Vec<Creation>, Address)> {
        let mut parameters = deployment::parameters();
        for (section, name, value) in &self.parameters {
            set(&mut parameters, section, name, *value)?;
        }
        let own = self.token.is_none().then(|| test_token(self.deployer, self.nonce, 0));
        let (token, next) = match (&own, self.token) {
            (Some(creation), _) => (creation.address, self.nonce.saturating_add(1)),
            (None, token) => (token.unwrap_or_default(), self.nonce),
        };
        let planned = plan(self.deployer, next, token, self.treasury, None, parameters);
        let directory = planned.deployment.directory;
        Ok((own.into_iter().chain(planned.creations).collect(), directory))
    }
}

impl Deploy {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(self.deploy(home))
    }

    async fn deploy(self, home: &Home) -> Result<()> {
        let client = self.ledger.client(home).await?;
        let development = client.chain_id() == CHAIN_ID;
        if self.token.is_none() && !development {
            bail!(
                "chain {} is no development chain: name the token that people pay with (--token ADDRESS, six decimals)",
                client.chain_id()
            );
        }
        let key = self.key.load(home)?;
        if development {
            see_to_coin(&client, key.address()).await?;
        }
        let sender = super::connection::open_sender(home, &client, key).await?;
        let genesis = client.genesis().await?;
        let left: Option<Begun> = read_json(&Begun::path(home))?;
        let begun = match left {
            Some(begun) if !self.anew && (begun.chain_id, begun.genesis) == (client.chain_id(), genesis) => {
                if begun.deployer != sender.account() {
                    bail!(
                        "a deployment by {} was interrupted; go on with its key, or begin anew with --anew",
                        begun.deployer
                    );
                }
                eprintln!("a deployment was interrupted; going on with it");
                begun
            }
            _ => Begun {
                chain_id: client.chain_id(),
                genesis,
                deployer: sender.account(),
                nonce: sender.nonce().await?,
                token: self.token,
                treasury: self.treasury.unwrap_or(sender.account()),
                parameters: self.changed()?,
            },
        };
        let (creations, directory) = begun.creations()?;
        write_json(&Begun::path(home), &begun)?;
        let bar = progress::bar("{msg:16} {bar:30} {pos}/{len}");
        bar.set_length(creations.len() as u64);
        let mut gas = 0;
        let made = make(&sender, &creations, |creation, used| {
            bar.set_message(creation.name);
            bar.inc(1);
            gas += used.unwrap_or(0);
        });
        made.await?;
        bar.finish_and_clear();
        let ledger = Ledger::at(client.clone(), directory).await?;
        let rpc = self.ledger.rpc.clone().or(Named::read(home)?.map(|n| n.rpc));
        let rpc = rpc.unwrap_or_else(|| super::connection::DEFAULT_RPC.to_owned());
        Named { rpc, chain_id: begun.chain_id, genesis, directory }.write(home)?;
        std::fs::remove_file(Begun::path(home))?;
        let token = ledger.parts().at.token;
        if self.json {
            println!(
                "{}",
                json!({"directory": directory, "token": token, "chain_id": client.chain_id(), "gas": gas})
            );
        } else {
            println!("ledger {directory} on chain {}", client.chain_id());
            println!(
                "token  {token}{}",
                if begun.token.is_none() { " (for development: anyone can mint it)" } else { "" }
            );
            println!("gas    {gas}");
            if development {
                println!("next: `assay ledger faucet`, then `assay deposit 25`");
            }
        }
        Ok(())
    }

    /// The numbers of the file that differ from the defaults.
    fn changed(&self) -> Result<Vec<(String, String, u64)>> {
        let Some(path) = &self.parameters else { return Ok(vec![]) };
        let named = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(named)?;
        let file: toml::Table = toml::from_str(&text).with_context(named)?;
        let mut parameters = deployment::parameters();
        for (section, numbers) in file {
            let Some(numbers) = numbers.as_table() else {
                bail!("{}: `{section}` is no section", path.display())
            };
            for (name, value) in numbers {
                let value = value.as_integer().and_then(|v| u64::try_from(v).ok());
                let Some(value) = value else {
                    bail!("{}: {section}.{name} is no whole number", path.display())
                };
                set(&mut parameters, &section, name, value).with_context(named)?;
            }
        }
        let defaults = entries(&deployment::parameters());
        let all = entries(&parameters).into_iter().zip(defaults).filter(|(e, d)| e.value != d.value);
        Ok(all.map(|(e, _)| (e.section.to_owned(), e.name.to_owned(), e.value)).collect())
    }
}

/// Use a ledger that is deployed already: commands ask it from now on.
#[derive(Args)]
pub struct Use {
    /// Address of its directory contract.
    directory: Address,
    /// JSON-RPC URL of the chain's node [default: the one named last, else http://127.0.0.1:8545].
    #[arg(long, env = "ASSAY_RPC", value_name = "URL", hide_env_values = true)]
    rpc: Option<String>,
}

impl Use {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let args = LedgerArgs { rpc: self.rpc.clone(), directory: Some(self.directory) };
            let ledger = args.ledger(home).await?;
            let client = ledger.client();
            let rpc = self.rpc.or(Named::read(home)?.map(|n| n.rpc));
            let rpc = rpc.unwrap_or_else(|| super::connection::DEFAULT_RPC.to_owned());
            let (chain_id, genesis) = (client.chain_id(), client.genesis().await?);
            Named { rpc, chain_id, genesis, directory: self.directory }.write(home)?;
            println!("using the ledger {} on chain {chain_id}", self.directory);
            Ok(())
        })
    }
}

/// Give an account coins for gas and test tokens. Development chains only: they are worth nothing.
#[derive(Args)]
pub struct Faucet {
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Who gets them [default: the key's account].
    #[arg(long, value_name = "ADDRESS")]
    to: Option<Address>,
    /// Test tokens, in dollars.
    #[arg(long, default_value = "10000", value_name = "AMOUNT")]
    amount: Amount,
}

impl Faucet {
    pub fn run(self, home: &Home) -> Result<()> {
        block_on(async {
            let ledger = self.ledger.ledger(home).await?;
            let client = ledger.client();
            if client.chain_id() != CHAIN_ID {
                bail!("chain {} is no development chain; there is nothing to give away", client.chain_id());
            }
            let key = self.key.load(home)?;
            let to = self.to.unwrap_or(key.address());
            see_to_coin(client, key.address()).await?;
            see_to_coin(client, to).await?;
            let sender = super::connection::open_sender(home, client, key).await?;
            let mint = TestToken::mintCall { to, amount: self.amount.to_word() };
            sender
                .send("mint test tokens", ledger.parts().at.token, &mint)
                .await
                .context("the token cannot be minted; is it a development token?")?;
            println!("{to} got {} test dollars and has coin for gas", self.amount);
            Ok(())
        })
    }
}

/// Sees to it that an account of a development chain can pay for gas.
async fn see_to_coin(client: &Client, account: Address) -> Result<()> {
    if client.coin(account, BlockId::latest()).await? < U256::from(COIN / 2) {
        client.give_coin(account, U256::from(COIN)).await.context("this chain gives no coins away")?;
    }
    Ok(())
}
