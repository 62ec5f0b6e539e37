//! `assay chain`: an EVM chain for development.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use assay_chain::{CHAIN_ID, Config, Mining, serve};
use clap::Args;

use crate::home::Home;

/// Where it listens unless told otherwise: where wallets and tools look for a development chain.
const DEFAULT_LISTEN: &str = "127.0.0.1:8545";

/// Run an EVM chain for development.
///
/// It speaks Ethereum's JSON-RPC, so that wallets, scripts and tools can use it, and keeps its blocks in the data directory: what it has
/// acknowledged survives a crash. Ten accounts with public keys have coins, and whoever reaches it can make more, turn its clock and undo
/// its blocks. Nothing on it has value.
#[derive(Args)]
pub struct Chain {
    /// Address and port. Whoever reaches it can do everything with it.
    #[arg(long, default_value = DEFAULT_LISTEN, value_name = "ADDR:PORT")]
    listen: String,
    /// Make a block at this interval, in seconds, instead of one for what has arrived.
    #[arg(long, value_name = "SECONDS")]
    block_time: Option<f64>,
    /// Its id.
    #[arg(long, default_value_t = CHAIN_ID, value_name = "ID")]
    chain_id: u64,
    /// Keep nothing.
    #[arg(long)]
    in_memory: bool,
    /// Print the accounts' secret keys. Everybody knows them.
    #[arg(long)]
    keys: bool,
}

impl Chain {
    pub fn run(self, home: &Home) -> Result<()> {
        let mining = match self.block_time {
            None => Mining::OnDemand,
            Some(seconds) if (0.01..=86_400.0).contains(&seconds) => {
                Mining::Every(Duration::from_secs_f64(seconds))
            }
            Some(_) => bail!("--block-time is between 0.01 and 86400 seconds"),
        };
        let config = Config { chain_id: self.chain_id, mining, ..Config::default() };
        let folder = home.chain();
        let chain = if self.in_memory {
            assay_chain::Chain::in_memory(config)?
        } else {
            assay_chain::Chain::open(&folder, config)
                .with_context(|| format!("the chain in {}", folder.display()))?
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(&self.listen)
                .await
                .with_context(|| format!("cannot listen on {}", self.listen))?;
            say!("development chain {} at http://{}", self.chain_id, listener.local_addr()?);
            match self.in_memory {
                true => say!("kept nowhere: it ends with this process"),
                false => say!("kept in {}", folder.display()),
            }
            if self.keys {
                for (i, key) in assay_chain::development::KEYS.iter().enumerate() {
                    say!("account {i}: {key}");
                }
            }
            let stop = async {
                // Without a signal handler, the process ends at once, which loses nothing either.
                let _ = tokio::signal::ctrl_c().await;
            };
            serve(listener, chain, stop).await?;
            Ok(())
        })
    }
}
