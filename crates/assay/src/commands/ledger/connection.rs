//! Which ledger a command speaks to, and with which key.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context as _, Result, bail};
use assay_chain::CHAIN_ID;
use assay_ledger::client::Client;
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::{Policy, Sender};
use assay_node::key::NodeKey;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::progress;

/// Where `assay chain` listens.
pub const DEFAULT_RPC: &str = "http://127.0.0.1:8545";

/// Which ledger.
#[derive(Args, Clone)]
pub struct LedgerArgs {
    /// JSON-RPC URL of the chain's node [default: the one named last, else http://127.0.0.1:8545].
    #[arg(long, env = "ASSAY_RPC", value_name = "URL", hide_env_values = true)]
    pub rpc: Option<String>,
    /// Address of the ledger's directory contract [default: the one named last].
    #[arg(long, env = "ASSAY_LEDGER", value_name = "ADDRESS")]
    pub directory: Option<Address>,
}

/// Whose transactions.
#[derive(Args, Clone)]
pub struct KeyArgs {
    /// File with the account's secret key, 64 hex digits [default: this node's key].
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// Which ledger, whose transactions, and how it is said what came of them.
#[derive(Args, Clone)]
pub struct AccountArgs {
    #[command(flatten)]
    pub ledger: LedgerArgs,
    #[command(flatten)]
    pub key: KeyArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The ledger that was named last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    pub rpc: String,
    pub chain_id: u64,
    /// Hash of the chain's first block.
    pub genesis: B256,
    pub directory: Address,
}

impl Named {
    fn path(home: &Home) -> PathBuf {
        home.ledger().join("ledger.json")
    }

    /// The one that was named, if one was.
    pub fn read(home: &Home) -> Result<Option<Named>> {
        read_json(&Self::path(home))
    }

    pub fn write(&self, home: &Home) -> Result<()> {
        write_json(&Self::path(home), self)
    }
}

/// What a file of this data directory holds, if it is there.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?,
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// Writes a file whole or not at all, readable by its owner alone: a URL may hold a secret.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let write = || -> Result<()> {
        let folder = path.parent().context("no folder")?;
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

impl LedgerArgs {
    /// The chain's node.
    pub async fn client(&self, home: &Home) -> Result<Client> {
        let named = Named::read(home)?;
        let url = self.rpc.clone().or(named.map(|n| n.rpc)).unwrap_or_else(|| DEFAULT_RPC.to_owned());
        let client = Client::connect(&url).await;
        client.with_context(|| {
            let local = url == DEFAULT_RPC;
            if local {
                "no chain is running here; start one with `assay chain`, or name one with --rpc"
            } else {
                "the chain cannot be asked"
            }
        })
    }

    /// Whether one is named, here or before.
    pub fn is_named(&self, home: &Home) -> Result<bool> {
        Ok(self.directory.is_some() || Named::read(home)?.is_some())
    }

    /// The ledger.
    pub async fn ledger(&self, home: &Home) -> Result<Ledger> {
        let client = self.client(home).await?;
        let directory = match (self.directory, Named::read(home)?) {
            (Some(directory), _) => directory,
            (None, Some(named)) => {
                let genesis = client.genesis().await?;
                if (client.chain_id(), genesis) != (named.chain_id, named.genesis) {
                    bail!(
                        "the ledger named last is on another chain than the one at {} (chain {}, first block {genesis}); \
                         name one with --directory, or deploy one with `assay ledger deploy`",
                        client.host(),
                        client.chain_id()
                    );
                }
                named.directory
            }
            (None, None) => bail!(
                "no ledger is known here: deploy one with `assay ledger deploy`, or name one with `assay ledger use DIRECTORY`"
            ),
        };
        Ledger::at(client, directory).await.with_context(|| format!("{directory} is no ledger's directory"))
    }
}

impl AccountArgs {
    /// The ledger, and the account's sender.
    pub async fn open(&self, home: &Home) -> Result<(Ledger, Sender)> {
        let ledger = self.ledger.ledger(home).await?;
        let sender = open_sender(home, ledger.client(), self.key.load(home)?).await?;
        Ok((ledger, sender))
    }
}

impl KeyArgs {
    /// The key, if there is one already.
    pub fn existing(&self, home: &Home) -> Result<Option<PrivateKeySigner>> {
        if self.key.is_none() && !home.key().exists() { Ok(None) } else { self.load(home).map(Some) }
    }

    pub fn load(&self, home: &Home) -> Result<PrivateKeySigner> {
        let path = self.key.clone().unwrap_or_else(|| home.key());
        if self.key.is_some() && !path.exists() {
            bail!("there is no key file {}", path.display());
        }
        Ok(NodeKey::load_or_create(&path)?.signer().clone())
    }
}

/// A sender whose transactions are kept in the data directory. What waits from before is finished first.
pub async fn open_sender(home: &Home, client: &Client, key: PrivateKeySigner) -> Result<Sender> {
    let policy = if client.chain_id() == CHAIN_ID { Policy::DEVELOPMENT } else { Policy::PUBLIC };
    let sender = Sender::open(client.clone(), key, &home.ledger().join("outbox"), policy).await?;
    let waiting = sender.waiting().await;
    if !waiting.is_empty() {
        let spinner = progress::spinner(&format!("waiting for what was sent before: {}", waiting.join(", ")));
        for (purpose, ended) in sender.resume().await {
            match ended {
                Ok(mined) => eprintln!("{purpose}: done (transaction {})", mined.hash),
                Err(error) if error.may_retry() => return Err(error).with_context(|| purpose),
                Err(error) => eprintln!("{purpose}: {error}"),
            }
        }
        spinner.finish_and_clear();
    }
    Ok(sender)
}

/// Runs what speaks to a chain.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
