//! `assay host`: keeps models for others.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context as _, Result, bail};
use assay_core::id::NodeAddress;
use assay_hub::exchange::Admission;
use assay_hub::fetch::FetchOptions;
use assay_hub::peer::{Endpoint, PeerAddress, Relays, SecretKey, endpoint};
use assay_hub::rate::Rate;
use assay_hub::replication::{DEAD_AFTER_S, LEAVE_NOTICE_S, PATIENCE_S, Times};
use assay_hub::server::{ServerOptions, serve, serve_iroh};
use assay_hub::store::Quota;
use assay_ledger::amount::Amount;
use assay_ledger::ledger::Role;
use assay_node::host::duties::{Duties, DutyOptions};
use assay_node::host::fetches::Worth;
use assay_node::host::{Host, HostOptions};
use assay_node::key::endpoint_secret;
use clap::{Args, ValueEnum};
use tokio::net::TcpListener;

use super::ledger::connection::{KeyArgs, LedgerArgs, open_sender};
use super::up::stop_signal;
use crate::home::{Daemon, Home};

mod watch;

/// Heading of the options that a network has in common.
const OWN_NETWORK: &str = "For networks of one's own (all hosts must have the same)";

/// Whose relays help hosts behind routers to reach each other over iroh.
#[derive(Clone, Copy, ValueEnum)]
pub enum RelaysArg {
    /// Nobody's: hosts are reached at the addresses that are named.
    None,
    /// The public ones of iroh's makers, who learn who looks for whom.
    Public,
}

impl From<RelaysArg> for Relays {
    fn from(arg: RelaysArg) -> Relays {
        match arg {
            RelaysArg::None => Relays::None,
            RelaysArg::Public => Relays::Public,
        }
    }
}

/// Where a host listens: 127.0.0.1:11721.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:11721";

/// Keep models for others: serve what is here, and fetch what the rule of replication asks of this host.
#[derive(Args)]
pub struct HostArgs {
    /// Address and port to listen on.
    #[arg(long, env = "ASSAY_HOST_LISTEN", default_value = DEFAULT_LISTEN, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Listen on iroh too, at this UDP address and port: http://…'s like, but encrypted, and reached by a name that stays. The name's secret is
    /// made once and kept beside the node's key.
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = DEFAULT_LISTEN)]
    iroh: Option<SocketAddr>,
    /// Whose relays help to find and reach hosts over iroh.
    #[arg(long, value_enum, default_value = "none", requires = "iroh")]
    relays: RelaysArg,
    /// Addresses of other hosts: http://…, https://… or iroh:…
    #[arg(long, value_name = "URL")]
    peer: Vec<String>,
    /// Disk that blobs may occupy, in GiB.
    #[arg(long, default_value_t = 100.0, value_name = "GIB")]
    disk: f64,
    /// Bytes a second that are sent, in MiB [default: as many as there are].
    #[arg(long, value_name = "MIB")]
    upload: Option<f64>,
    /// Bytes a second that are fetched, in MiB [default: as many as there are].
    #[arg(long, value_name = "MIB")]
    download: Option<f64>,
    /// Publishers whose releases are taken; without any, those of everybody.
    #[arg(long, value_name = "ADDRESS")]
    publisher: Vec<NodeAddress>,
    /// Seconds between two rounds of asking, fetching and dropping.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// Do a host's duties on the ledger too: find the other hosts there, pledge what is kept, answer what beacons ask, collect. The node
    /// must be enrolled as a host (`assay stake 60 --role host --endpoint http://…`).
    #[arg(long)]
    pledge: bool,
    /// Collect from the ledger when at least this much is there, in dollars.
    #[arg(long, default_value = "1", value_name = "DOLLARS")]
    collect: Amount,
    /// Have what a provider says that it fetched counted on the ledger when it is this many GiB more than was counted, which costs gas; less
    /// than that is counted after seven epochs.
    #[arg(long, default_value_t = 1.0, value_name = "GIB")]
    post_fetches: f64,
    /// A host counts as dead after so many seconds of silence.
    #[arg(long, default_value_t = DEAD_AFTER_S, value_name = "SECONDS", help_heading = OWN_NETWORK)]
    dead_after: u64,
    /// Those who should keep a release have so many seconds before the next host stands in.
    #[arg(long, default_value_t = PATIENCE_S, value_name = "SECONDS", help_heading = OWN_NETWORK)]
    patience: u64,
    /// A host says for so many seconds that it is leaving before it drops what others keep.
    #[arg(long, default_value_t = LEAVE_NOTICE_S, value_name = "SECONDS", help_heading = OWN_NETWORK)]
    leave_notice: u64,
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
}

fn rate(mib: Option<f64>) -> Result<Rate> {
    match mib {
        None => Ok(Rate::UNLIMITED),
        Some(mib) if (0.001..=1e9).contains(&mib) => {
            Ok(Rate::bytes_per_second((mib * f64::from(1 << 20)) as u64))
        }
        Some(mib) => bail!("{mib} MiB a second cannot be; give at least 0.001"),
    }
}

impl HostArgs {
    pub fn run(self, home: &Home) -> Result<()> {
        if !(0.001..=1e9).contains(&self.disk) {
            bail!("{} GiB cannot be; give at least 0.001", self.disk);
        }
        let _held = home.hold(Daemon::Host)?;
        let key = self.key.load(home)?;
        let address = NodeAddress::from_bytes(key.address().into_array());
        let admission = if self.publisher.is_empty() {
            Admission::Anyone
        } else {
            Admission::Publishers(self.publisher.iter().copied().collect())
        };
        let times = Times::new(self.dead_after, self.patience, self.leave_notice)?;
        let peers: Vec<String> = self.peer.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        for peer in &peers {
            peer.parse::<PeerAddress>()?;
        }
        let server = ServerOptions { rate: rate(self.upload)?, ..ServerOptions::default() };
        let fetch = FetchOptions { rate: rate(self.download)?, ..FetchOptions::default() };
        let every = Duration::from_secs(self.every);
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
            let endpoint = self.endpoint(home).await?;
            let options = HostOptions {
                folder: home.hub(),
                quota: Quota::bytes((self.disk * f64::from(1 << 30)) as u64),
                peers: peers.clone(),
                admission,
                server: server.clone(),
                fetch,
                times,
                endpoint: endpoint.clone(),
            };
            let mut host = Host::open(address, options, watch::listener())?;
            let mut duties =
                if self.pledge { Some(self.duties(home, key, address, &host).await?) } else { None };
            let listener = TcpListener::bind(self.listen)
                .await
                .with_context(|| format!("{} cannot be listened on", self.listen))?;
            let at = listener.local_addr()?;
            say!("host {address} on http://{at}, {} GiB offered", self.disk);
            if let Some(endpoint) = host.endpoint() {
                say!("and on {endpoint}");
            }
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let until_stopped = || {
                let mut waiting = stopped.clone();
                // The sender lives until the end of the command.
                async move { drop(waiting.wait_for(|stopped| *stopped).await) }
            };
            let router = match &duties {
                Some(duties) => host.router().merge(duties.routes()),
                None => host.router(),
            };
            let mut serving = tokio::task::JoinSet::new();
            serving.spawn(serve(listener, router.clone(), server.clone(), until_stopped()));
            if let Some(endpoint) = endpoint {
                serving.spawn(serve_iroh(endpoint, router, server, until_stopped()));
            }
            let rounds = async {
                loop {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                    host.round(now).await;
                    if let Some(duties) = &mut duties {
                        match duties.round().await {
                            Ok(()) => host.set_failed(duties.failures()),
                            Err(e) => tracing::warn!(code = e.code(), reason = %e, "the ledger could not be asked"),
                        }
                        match duties.hosts().await {
                            Ok(found) => host.set_peers([peers.clone(), found].concat()),
                            Err(e) => tracing::warn!(code = e.code(), reason = %e, "the ledger's hosts are not known"),
                        }
                    }
                    tokio::time::sleep(every).await;
                }
            };
            tokio::select! {
                () = rounds => {}
                () = stop_signal() => {}
            }
            tracing::info!("stopping");
            stop.send(true)?;
            serving.join_all().await;
            Ok(())
        })
    }

    /// The endpoint of iroh, if one is asked for.
    async fn endpoint(&self, home: &Home) -> Result<Option<Endpoint>> {
        let Some(at) = self.iroh else { return Ok(None) };
        let secret = SecretKey::from_bytes(&endpoint_secret(&home.iroh_secret())?);
        Ok(Some(endpoint(secret, at, self.relays.into()).await?))
    }

    async fn duties(
        &self,
        home: &Home,
        key: PrivateKeySigner,
        address: NodeAddress,
        host: &Host,
    ) -> Result<Duties> {
        let ledger = self.ledger.ledger(home).await?;
        let enrolled = ledger.node(key.address()).await?;
        if enrolled.is_none_or(|node| node.roles & Role::Host as u8 == 0) {
            bail!(
                "{} is not enrolled as a host; put stake behind it: `assay stake 60 --role host --endpoint URL`",
                key.address()
            );
        }
        if !(0.0..=1e9).contains(&self.post_fetches) {
            bail!("{} GiB cannot be; give at least 0", self.post_fetches);
        }
        let sender = open_sender(home, ledger.client(), key).await?;
        let defaults = DutyOptions::at(home.hub().join("ledger"));
        let bytes = (self.post_fetches * f64::from(1 << 30)) as u64;
        let post = Worth { bytes, ..defaults.post };
        let options = DutyOptions { collect_min: self.collect, post, ..defaults };
        Ok(Duties::open(ledger, sender, address, host, options).await?)
    }
}
