//! `assay gateway`: the network behind one API.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use assay_api::{Class, FileOptions, ServerOptions, serve_with_files};
use assay_gateway::accounts::Accounts;
use assay_gateway::callers::Callers;
use assay_gateway::lanes::LaneTerms;
use assay_gateway::lanes::payer::{Deposits, Payer, PayerOptions, instance};
use assay_gateway::network::{Network, NetworkOptions};
use assay_ledger::amount::Amount;
use assay_ledger::contracts::node_address;
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::Sender;
use assay_node::files::FolderStore;
use clap::{Args, Subcommand};
use tokio::net::TcpListener;

mod lanes;
mod witness;

use super::keys::AccountsArgs;
use super::ledger::connection::{KeyArgs, LedgerArgs, open_sender};
use super::ledger::nodes::{Nodes, urls};
use super::up::stop_signal;
use crate::home::{Daemon, Home};

/// Where a gateway listens: 127.0.0.1:11731.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:11731";
/// How often offers are read again.
const EVERY: Duration = Duration::from_secs(30);
/// Lines of a batch that are asked at the same time: providers are several.
const LINES_IN_FLIGHT_MAX: usize = 32;

/// Put the network behind one API: each request goes to the provider that is expected to answer first, and to another one if that fails
/// before anything came. Keys are made by `assay keys`.
///
/// With --pay, providers are paid by vouchers out of channels that are filled from the key's balance on the ledger (`assay deposit`); without,
/// only those are asked that want no payment.
///
/// With --x402, requests without a key are answered too: each is paid out of the caller's wallet by a signature that comes with it (x402, schemes `exact`
/// and `upto`), to the key's account on the ledger, which needs the chain's coin for gas.
///
/// What is not here yet: encryption towards clients: put a server with TLS in front. Prompts travel to providers sealed to their keys.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Gateway {
    #[command(subcommand)]
    what: Option<What>,
    /// Address and port to listen on.
    #[arg(long, env = "ASSAY_GATEWAY_LISTEN", default_value = DEFAULT_LISTEN, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// URLs of providers, besides those on the ledger.
    #[arg(long, value_name = "URL")]
    provider: Vec<String>,
    /// Answer everyone, without keys and for nothing.
    #[arg(long, conflicts_with = "accounts")]
    open: bool,
    /// Seconds that a provider has for its first word before another one is asked too; more if it usually needs more.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// Who checks answers of requests that do not say so: none, sampled (auditors, if the beacon draws them) or full (a second provider, too).
    #[arg(long, default_value_t = Class::default(), value_name = "CLASS")]
    verification: Class,
    /// Pay providers that want to be paid, from the key's balance on the ledger.
    #[arg(long)]
    pay: bool,
    /// Answer also callers without a key, who pay by signature to the key's account on the ledger.
    #[arg(long, conflicts_with = "open")]
    x402: bool,
    /// Channels to one provider, at most: so many requests to it run at the same time.
    #[arg(long, default_value_t = 16, value_name = "N", requires = "pay", value_parser = clap::value_parser!(u16).range(1..=256))]
    lanes: u16,
    /// What is put into a channel at a time, in dollars.
    #[arg(long, default_value = "1", value_name = "DOLLARS", requires = "pay")]
    lane_deposit: Amount,
    /// Seconds that a request waits for a free channel before another provider is asked.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", requires = "pay", value_parser = clap::value_parser!(u64).range(0..=3600))]
    lane_wait: u64,
    /// Seconds between two looks at what paid providers post: a receipt that one gave and left out is proved to the ledger.
    #[arg(long, default_value_t = 15, value_name = "SECONDS", requires = "pay", value_parser = clap::value_parser!(u64).range(1..=3600))]
    witness_every: u64,
    #[command(flatten)]
    accounts: AccountsArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Subcommand)]
enum What {
    Lanes(lanes::Lanes),
}

/// Who answers callers without an account.
async fn open_callers(ledger: Ledger, sender: Arc<Sender>, accounts: Accounts) -> Result<Arc<Callers>> {
    let account = sender.account();
    if ledger.holdings(account).await?.coin.is_zero() {
        note!("warning: {account} has none of the chain's coin, and settling needs it for gas");
    }
    let callers = Callers::open(ledger, sender, accounts).await?;
    let schemes = match callers.schemes() {
        (true, true) => "upto and exact",
        (true, false) => "exact (the chain has no Permit2 with x402's proxy for upto)",
        _ => "upto (the token takes no transferWithAuthorization)",
    };
    note!("callers without a key pay {account} by x402: {schemes}");
    Ok(callers)
}

impl Gateway {
    pub fn run(mut self, home: &Home) -> Result<()> {
        if let Some(What::Lanes(lanes)) = self.what.take() {
            return lanes.run(home);
        }
        let _held = home.hold(Daemon::Gateway)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let accounts = if self.open { None } else { Some(self.accounts.open(home).await?) };
            if let Some(accounts) = &accounts
                && !self.x402
                && accounts.keys(None).await?.is_empty()
            {
                note!("no key is known yet; make one with `assay keys create NAME --credit 5`, or give --open");
            }
            let options =
                NetworkOptions { patience: Duration::from_secs(self.patience), ..NetworkOptions::default() };
            let differing = home.path().join("gateway").join("differing");
            let mut network = Network::new(accounts.clone(), options).keeping(differing);
            let (mut deposits, mut callers) = (None, None);
            // Until the gateway ends.
            let mut _witness = None;
            if self.pay || self.x402 {
                let ledger = self.ledger.ledger(home).await?;
                let sender = Arc::new(open_sender(home, ledger.client(), self.key.load(home)?).await?);
                if self.pay {
                    let (payer, task) = self.payer(home, ledger.clone(), Arc::clone(&sender)).await?;
                    let every = Duration::from_secs(self.witness_every);
                    // It has a thread of its own, and so a connection of its own to the chain.
                    let own = self.ledger.ledger(home).await?;
                    let sender = Arc::clone(&sender);
                    let (working, shown) =
                        witness::start(home, own, sender, &payer, network, every).await?;
                    _witness = Some(working);
                    network = shown.paying(payer);
                    deposits = Some(task);
                }
                if let Some(accounts) = accounts.filter(|_| self.x402) {
                    let opened = open_callers(ledger, sender, accounts).await?;
                    network = network.calling(Arc::clone(&opened));
                    callers = Some(opened);
                }
            }
            let network = Arc::new(network);
            let endpoints = self.endpoints(home, &network).await?;
            if endpoints.is_empty() {
                bail!(
                    "name a provider with --provider http://HOST:11711, or a ledger that does with `assay ledger use DIRECTORY`"
                );
            }
            for (endpoint, reason) in network.refresh(&endpoints).await {
                note!("warning: {endpoint}: {reason}");
            }
            let listener = TcpListener::bind(self.listen)
                .await
                .with_context(|| format!("{} cannot be listened on", self.listen))?;
            let at = listener.local_addr()?;
            let count = network.providers().len();
            note!("gateway on http://{at}/v1, {count} of {} providers answer", endpoints.len());
            let files = Arc::new(FolderStore::open(&home.path().join("gateway").join("files"))?);
            let serving = serve_with_files(
                listener,
                Arc::clone(&network),
                ServerOptions { class: self.verification, ..ServerOptions::default() },
                files,
                FileOptions { lines_in_flight_max: LINES_IN_FLIGHT_MAX, ..FileOptions::default() },
                Default::default(),
                stop_signal(),
            );
            let watching = async {
                loop {
                    tokio::time::sleep(EVERY).await;
                    match self.endpoints(home, &network).await {
                        Ok(endpoints) => {
                            for (endpoint, reason) in network.refresh(&endpoints).await {
                                tracing::warn!(endpoint, reason, "gives no offer");
                            }
                        }
                        Err(e) => tracing::warn!(reason = %e, "the ledger's providers are not known"),
                    }
                    network.expire().await;
                }
            };
            let depositing = async {
                match deposits {
                    Some(deposits) => deposits.run().await,
                    None => std::future::pending().await,
                }
            };
            let settling = async {
                match &callers {
                    Some(callers) => callers.run().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                served = serving => served?,
                () = watching => {}
                () = depositing => {}
                () = settling => {}
            }
            network.close().await;
            note!("Stopped.");
            Ok(())
        })
    }

    /// Who pays, from the key's balance on the ledger.
    async fn payer(
        &self,
        home: &Home,
        ledger: Ledger,
        sender: Arc<Sender>,
    ) -> Result<(Arc<Payer>, Deposits)> {
        let account = sender.account();
        let deposit = u64::try_from(self.lane_deposit.0).ok().filter(|deposit| *deposit > 0);
        let Some(deposit) = deposit else { bail!("--lane-deposit is more than nothing") };
        let has = ledger.holdings(account).await?;
        if has.vault < self.lane_deposit {
            note!(
                "warning: {account} has {} on the ledger, and a channel needs {}; `assay deposit` brings more in",
                has.vault,
                self.lane_deposit
            );
        }
        let instance = instance(&home.path().join("gateway").join("instance"))
            .context("the gateway's instance is not known")?;
        let options = PayerOptions {
            terms: LaneTerms { lanes_max: self.lanes.into(), deposit },
            wait: Duration::from_secs(self.lane_wait),
        };
        note!("paying from {account}: up to {} channels of {} to a provider", self.lanes, self.lane_deposit);
        Ok(Payer::new(ledger, sender, instance, options))
    }

    /// The providers that are named here and on the ledger, which also tells the network what is publicly known of them.
    async fn endpoints(&self, home: &Home, network: &Network) -> Result<Vec<String>> {
        let mut endpoints: BTreeSet<String> =
            self.provider.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        if let Some(nodes) = Nodes::read(home, &self.ledger).await? {
            let providers = nodes.roll.providers().await.context("the ledger's providers cannot be read")?;
            let struck =
                providers.iter().filter(|node| node.struck).map(|node| node_address(node.node)).collect();
            let standings = nodes.ledger.standings().await.context("providers' standings cannot be read")?;
            let standings =
                standings.into_iter().map(|(node, standing)| (node_address(node), standing.score_ppm));
            network.stand(standings.collect(), struck);
            let reached = urls(&providers).into_iter().map(|(_, url)| url);
            endpoints.extend(reached.filter(|url| url.starts_with("http")));
        }
        Ok(endpoints.into_iter().collect())
    }
}
