//! The daemons of this data directory: whether they run and are ready, whether their addresses and stores are theirs, the gateway's books, and
//! where traces go.

use std::fs::{File, TryLockError};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use assay_api::relay::RelayClient;
use assay_core::id::NodeAddress;
use assay_gateway::accounts::Accounts;
use reqwest::Url;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{ANSWER, Findings, Wanted};
use crate::commands::{auditor, gateway, host, keys, up};
use crate::home::{Daemon, Home};
use crate::telemetry;

/// Clocks of providers may differ by this much, in seconds.
const SKEW_S: u64 = 60;

pub(super) async fn examine(home: &Home, wanted: &Wanted, key: Option<NodeAddress>, found: &mut Findings) {
    for daemon in Daemon::ALL {
        // Who has just installed it will start a provider first.
        if wanted.has(daemon) || (wanted.daemons.is_empty() && daemon == Daemon::Provider) {
            is_well(home, wanted, daemon, key, found).await;
        }
    }
    stores(home, found);
    if wanted.has(Daemon::Gateway) {
        books(home, wanted, found).await;
    }
    collector(found).await;
}

/// Where a daemon listens.
fn listens(wanted: &Wanted, daemon: Daemon) -> String {
    let of = |command, variable| wanted.settings.text(command, "listen", Some(variable));
    match daemon {
        Daemon::Provider => of("up", "ASSAY_LISTEN")
            .or_else(|| wanted.settings.text("serve", "listen", None))
            .unwrap_or_else(|| up::DEFAULT_LISTEN.to_owned()),
        Daemon::Host => of("host", "ASSAY_HOST_LISTEN").unwrap_or_else(|| host::DEFAULT_LISTEN.to_owned()),
        Daemon::Gateway => {
            of("gateway", "ASSAY_GATEWAY_LISTEN").unwrap_or_else(|| gateway::DEFAULT_LISTEN.to_owned())
        }
        Daemon::Auditor => {
            of("auditor", "ASSAY_AUDITOR_LISTEN").unwrap_or_else(|| auditor::DEFAULT_LISTEN.to_owned())
        }
    }
}

async fn is_well(
    home: &Home,
    wanted: &Wanted,
    daemon: Daemon,
    key: Option<NodeAddress>,
    found: &mut Findings,
) {
    let (what, command) = (daemon.name(), daemon.command());
    let listens = listens(wanted, daemon);
    let Ok(at) = listens.parse::<SocketAddr>() else {
        let next = format!("set `listen` of `{command}` to ADDR:PORT");
        found.wrong("address_malformed", what, format!("{listens} is no address and port"), next);
        return;
    };
    match home.is_held(daemon) {
        Err(e) => {
            let next = "let this user read the locks in the data directory";
            found.wrong("lock_unreadable", what, e.to_string(), next);
        }
        Ok(true) => running(home, daemon, at, key, found).await,
        Ok(false) => match TcpListener::bind(at).await {
            Ok(_) => found.ok("not_running", what, format!("does not run; {at} is free")),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                let next =
                    format!("stop what listens there, or give `{command}` another address with --listen");
                found.wrong("port_taken", what, format!("{at} is taken by another process"), next);
            }
            Err(e) => {
                let next = format!("give `{command}` an address of this machine with --listen");
                found.wrong("port_unusable", what, format!("{at}: {e}"), next);
            }
        },
    }
}

/// A daemon that runs: is it ready, and is it the one that its address says.
async fn running(
    home: &Home,
    daemon: Daemon,
    configured: SocketAddr,
    key: Option<NodeAddress>,
    found: &mut Findings,
) {
    let what = daemon.name();
    // A provider says where it listens, which the command line may have chosen.
    let said = std::fs::read_to_string(home.node_address()).ok().and_then(|text| text.trim().parse().ok());
    let at: SocketAddr = said.filter(|_| daemon == Daemon::Provider).unwrap_or(configured);
    let url = format!("http://{}", reached(at));
    let next =
        format!("see its log; if `{}` was given another --listen, say so in assay.toml", daemon.command());
    let answered = async { reqwest::Client::new().get(format!("{url}/health")).send().await };
    match timeout(ANSWER, answered).await {
        Ok(Ok(response)) if response.status().is_success() => {
            found.ok("running", what, format!("runs at {at} and is ready"));
        }
        Ok(Ok(response)) => {
            let status = response.status();
            found.wrong("not_ready", what, format!("runs at {at} and is not ready ({status})"), next);
        }
        _ => found.wrong("no_answer", what, format!("runs, and does not answer at {at}"), next),
    }
    if daemon == Daemon::Provider {
        offer(&url, "provider's offer", key, found).await;
    }
}

/// The address by which this machine reaches what listens everywhere.
fn reached(at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() { SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), at.port()) } else { at }
}

/// Whether an endpoint gives a valid offer that this node's key has signed.
pub(super) async fn offer(url: &str, what: &str, key: Option<NodeAddress>, found: &mut Findings) {
    let signed = match timeout(ANSWER, RelayClient::new().offer(url)).await {
        Ok(Ok(signed)) => signed,
        answered => {
            let reason = match answered {
                Ok(Err(e)) => e.to_string(),
                _ => format!("{url} does not answer"),
            };
            let next = "start `assay up`, and see that this URL leads to it from outside";
            found.wrong("endpoint_unreachable", what, reason, next);
            return;
        }
    };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match signed.verified(now_s, SKEW_S) {
        Err(e) => {
            let next = "set this machine's clock, and start the provider again";
            found.wrong("offer_invalid", what, format!("{url}: {e}"), next);
        }
        Ok(offer) if key.is_some_and(|key| key != offer.provider) => {
            let detail = format!("{url} is {}, and this node another", offer.provider);
            let next = "let this node's endpoint on the ledger lead to this node: `assay stake 0 --role provider --endpoint URL`";
            found.wrong("endpoint_other_key", what, detail, next);
        }
        Ok(offer) => found.ok("offer", what, format!("{url} offers {} models", offer.models.len())),
    }
}

/// Stores that somebody else has open.
fn stores(home: &Home, found: &mut Findings) {
    let of = [
        (Daemon::Provider, "receipts", home.receipts()),
        (Daemon::Host, "hub's store", home.hub().join("index.redb")),
    ];
    for (daemon, what, path) in of {
        // A daemon has its own store open.
        if home.is_held(daemon).unwrap_or(true) || !is_open(&path) {
            continue;
        }
        let detail = format!("another process has {} open", path.display());
        let next = format!(
            "wait for the command that uses it, or stop it, before `{}` is started",
            daemon.command()
        );
        found.warn("store_open", what, detail, next);
    }
}

fn is_open(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The gateway's database.
async fn books(home: &Home, wanted: &Wanted, found: &mut Findings) {
    let what = "keys and credits";
    let named = wanted.settings.text("gateway", "accounts", Some("ASSAY_ACCOUNTS"));
    if wanted.settings.is_on("gateway", "open") {
        found.ok("accounts_open", what, "none: the gateway answers everyone");
        return;
    }
    if named.is_none() && !home.accounts().exists() {
        found.warn(
            "accounts_none",
            what,
            "there is no key yet",
            "make one: `assay keys create NAME --credit 5`",
        );
        return;
    }
    let url = named.unwrap_or_else(|| keys::accounts_url(home));
    match timeout(ANSWER, Accounts::examine(&url)).await {
        Ok(Ok((0, None))) => {
            found.warn(
                "accounts_none",
                what,
                "there is no key yet",
                "make one: `assay keys create NAME --credit 5`",
            );
        }
        Ok(Ok((count, None))) => found.ok("accounts", what, format!("{count} keys")),
        Ok(Ok((_, Some(damage)))) => {
            let next = "stop the gateway and restore the database from a backup";
            found.wrong("accounts_damaged", what, damage, next);
        }
        Ok(Err(e)) => {
            let next =
                "see that the database runs, is reached with this URL, and was made by `assay keys create`";
            found.wrong("accounts_unusable", what, e.to_string(), next);
        }
        Err(_) => {
            let next = "see that the database runs and is reached from here";
            found.wrong("accounts_unusable", what, "the database does not answer", next);
        }
    }
}

/// Where traces go.
async fn collector(found: &mut Findings) {
    let Some((variable, url)) = telemetry::collector() else { return };
    let what = "traces";
    let at = Url::parse(&url).ok().and_then(|url| {
        Some((url.host_str()?.trim_matches(['[', ']']).to_owned(), url.port_or_known_default()?))
    });
    let Some((host, port)) = at else {
        let next = format!("set {variable} to the URL of a collector, or unset it");
        found.warn("collector_malformed", what, format!("{variable} is no URL"), next);
        return;
    };
    match timeout(ANSWER, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => found.ok("collector", what, format!("go to {host}:{port}")),
        _ => {
            let next = format!("start the collector, or unset {variable}; without it spans are dropped");
            found.warn("collector_unreachable", what, format!("nobody listens at {host}:{port}"), next);
        }
    }
}
