//! A model from the hosts that keep it: found by what they say, verified by what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use assay_core::id::ModelRoot;
use assay_hub::catalogue::Catalogue;
use assay_hub::cold::{Cold, Sources};
use assay_hub::discovery::{Gathered, Wanted, gather};
use assay_hub::exchange::Records;
use assay_hub::fetch::{FetchError, FetchOptions, FetchReport, PeerReport, Progress, fetch};
use assay_hub::keeping::keep;
use assay_hub::limits::PEERS_MAX;
use assay_hub::name::Reference;
use assay_hub::peer::{Dialer, PeerAddress, Relays};
use assay_hub::release::{Release, Signed};
use assay_hub::store::{Quota, Store, StoreError};
use assay_node::fetched::Fetched;
use indicatif::HumanBytes;

use super::listed;
use crate::commands::hub::catalogue;
use crate::commands::import::{Made, adopt, beside_models};
use crate::commands::ledger::connection::{KeyArgs, LedgerArgs};
use crate::commands::ledger::nodes::Nodes;
use crate::home::Home;
use crate::progress;

/// What is asked for.
pub enum Asked<'a> {
    /// A release.
    Release(&'a Reference),
    /// Any release of a model.
    Root(ModelRoot),
}

impl Asked<'_> {
    fn root(&self) -> Option<ModelRoot> {
        match self {
            Asked::Release(_) => None,
            Asked::Root(root) => Some(*root),
        }
    }
}

/// Who is asked.
pub struct Whom<'a> {
    /// These hosts, instead of the ledger's.
    pub from: &'a [String],
    /// Whose relays help to reach hosts over iroh.
    pub relays: Relays,
    /// Where hosts and listings are.
    pub ledger: &'a LedgerArgs,
}

/// A release, and who has it.
pub struct Found {
    pub release: Signed<Release>,
    /// Hosts that keep its artifact whole; none where it is kept in shards alone.
    pub peers: Vec<PeerAddress>,
    pub dialer: Dialer,
    catalogue: Arc<Catalogue>,
    records: Records,
    gathered: Gathered,
    nodes: Option<Nodes>,
}

/// Fetches, checks and installs what is asked for.
pub fn pull(home: &Home, asked: &Asked<'_>, whom: &Whom<'_>, key: &KeyArgs) -> Result<Made> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (release, store) = runtime.block_on(async {
        let found = find(home, asked, whom).await?;
        let store = store(home)?;
        if found.peers.is_empty() {
            found.restore(&store).await?;
        } else {
            let fetched = arrive(&store, &found).await;
            let sent = match &fetched {
                Ok(report) => sent(report),
                // What came is kept, and was served.
                Err(FetchError::NoPeerLeft { peers, .. }) => sent_by(peers),
                Err(_) => Vec::new(),
            };
            found.sign_for(home, key, sent).await;
            say(&fetched?);
        }
        Ok::<_, anyhow::Error>((found.release.record, store))
    })?;
    install(home, &store, &release)
}

/// The release that is asked for, the one that its publisher listed if there is a ledger.
pub async fn find(home: &Home, asked: &Asked<'_>, whom: &Whom<'_>) -> Result<Found> {
    let nodes = match Nodes::read(home, whom.ledger).await {
        Err(e) if !whom.from.is_empty() => {
            eprintln!(
                "warning: the ledger is not asked whether the release is the one that is listed: {e:#}"
            );
            None
        }
        nodes => nodes?,
    };
    let hosts = match &nodes {
        _ if !whom.from.is_empty() => whom.from.to_vec(),
        Some(nodes) => nodes.hosts(asked.root()).await?,
        None => bail!(
            "name a host that may keep it, with --from http://HOST:PORT, or a ledger whose hosts are asked, with `assay ledger use DIRECTORY`"
        ),
    };
    if hosts.is_empty() {
        bail!(
            "the ledger names no host with an address; name one that may keep it, with --from http://HOST:PORT"
        );
    }
    let catalogue = Arc::new(catalogue(home)?);
    let wanted = match asked {
        Asked::Release(reference) => Wanted::Named(reference),
        Asked::Root(root) => Wanted::Root(*root),
    };
    let named: Vec<PeerAddress> = hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>()?;
    let dialer = Dialer::reaching(&named, whom.relays).await?;
    let records = Records::over(dialer.clone());
    let spinner = progress::spinner("asking hosts");
    let gathered = gather(&records, &hosts, wanted, &catalogue).await;
    spinner.finish_and_clear();
    for (host, e) in &gathered.silent {
        eprintln!("warning: {host}: {e}");
    }
    for e in &gathered.refused {
        eprintln!("warning: {e}");
    }
    let release = choose(asked, &catalogue, &gathered)?;
    let mut first = BTreeSet::new();
    if let Some(nodes) = &nodes {
        listed::check(&nodes.roll, &records, &hosts, &catalogue, &release).await?;
        first = nodes.urls_of(&nodes.keepers(release.record.root).await?).await?;
    }
    let peers = peers(&release, &catalogue, &gathered, &first)?;
    Ok(Found { release, peers, dialer, catalogue, records, gathered, nodes })
}

/// Checks and installs a release whose artifact is in the store.
pub fn install(home: &Home, store: &Store, release: &Release) -> Result<Made> {
    let blob = store.blob(release.blob)?.context("what was fetched is not in the store any more")?;
    keep(store, release, &blob)?;
    drop(blob);
    let file = beside_models(home)?.into_temp_path();
    std::fs::remove_file(&file)?;
    store.materialise(release.blob, &file)?;
    let made = adopt(home, file)?;
    if made.root() != release.root {
        bail!(
            "the artifact's root is {}, and its publisher {} said {}: do not trust this release",
            made.root(),
            release.publisher,
            release.root
        );
    }
    store.index(release.blob)?;
    Ok(made)
}

/// This machine's store; while a host has it open, one for what is pulled.
pub fn store(home: &Home) -> Result<Store> {
    match Store::open(&home.hub().join("store"), Quota::UNLIMITED) {
        Err(StoreError::Busy { .. }) => {
            Ok(Store::open(&home.path().join("pulls").join("store"), Quota::UNLIMITED)?)
        }
        opened => Ok(opened?),
    }
}

fn choose(asked: &Asked<'_>, records: &Catalogue, gathered: &Gathered) -> Result<Signed<Release>> {
    match asked {
        Asked::Release(reference) => Ok(records.resolve(reference)?),
        Asked::Root(root) => {
            let known = records.of_root(*root);
            let somewhere = |id| gathered.keepers.contains_key(&id) || gathered.shards.contains_key(&id);
            let kept = known.iter().find(|s| somewhere(s.id()));
            kept.cloned().with_context(|| format!("none of the hosts keeps a release of {root}"))
        }
    }
}

/// Everyone who keeps the artifact whole, under whatever name; those of `first` before the others.
fn peers(
    release: &Signed<Release>,
    records: &Catalogue,
    gathered: &Gathered,
    first: &BTreeSet<String>,
) -> Result<Vec<PeerAddress>> {
    let same = |id: &_| records.by_id(*id).is_some_and(|s| s.record.blob == release.record.blob);
    let mut hosts: Vec<&String> =
        gathered.keepers.iter().filter(|(id, _)| same(id)).flat_map(|(_, h)| h).collect();
    hosts.sort_unstable_by_key(|host| (!first.contains(*host), *host));
    hosts.dedup();
    hosts.into_iter().take(PEERS_MAX).map(|host| host.parse().with_context(|| host.clone())).collect()
}

impl Found {
    /// Restores the artifact from shards, which hosts keep of this release if it was cut.
    async fn restore(&self, store: &Store) -> Result<()> {
        let (id, r) = (self.release.id(), &self.release.record);
        let nobody = || {
            format!(
                "the hosts know {}@{}, and none of them keeps it now; name others with --from",
                r.name, r.version
            )
        };
        let cut = self.catalogue.cut(id).with_context(nobody)?;
        let told = self.gathered.shards.get(&id).with_context(nobody)?;
        let parsed =
            |hosts: &Vec<String>| hosts.iter().filter_map(|host| host.parse().ok()).take(PEERS_MAX).collect();
        let sources: Sources = told.iter().map(|(index, hosts)| (*index, parsed(hosts))).collect();
        let bar = progress::bar("fetching shards {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        let heard = |came, needed| {
            bar.set_length(needed);
            bar.set_position(came);
        };
        let options = FetchOptions::default();
        let cold = Cold { store, dialer: &self.dialer, options: &options };
        let restored = cold.restore(&cut.record.set, &sources, &heard).await;
        bar.finish_and_clear();
        let blob = restored?;
        eprintln!("restored {} from shards of {} hosts", HumanBytes(blob.size()), hosts_of(told));
        Ok(())
    }

    /// If this node is a provider, signs for each of the ledger's hosts what it sent, and hands that over. What fails is said, and keeps no
    /// pull from its end.
    pub async fn sign_for(&self, home: &Home, key: &KeyArgs, sent: Vec<(PeerAddress, u64)>) {
        let Some(nodes) = &self.nodes else { return };
        let signing = async {
            let Some(key) = key.existing(home)? else { return Ok(()) };
            let folder = home.ledger().join("fetched");
            let Some(fetched) = Fetched::open(nodes.ledger.clone(), key, &folder).await? else {
                return Ok(());
            };
            let settled = fetched.settle(&nodes.roll, &self.records, &self.release.record, &sent).await?;
            for (pledge, e) in settled {
                eprintln!(
                    "warning: no fetch receipt for host {}, the next pull tries again: {e} ({})",
                    pledge.host,
                    e.code()
                );
            }
            Ok::<_, anyhow::Error>(())
        };
        if let Err(e) = signing.await {
            eprintln!("warning: what was fetched is not signed for: {e:#}");
        }
    }
}

fn hosts_of(told: &BTreeMap<u8, Vec<String>>) -> usize {
    told.values().flatten().collect::<BTreeSet<_>>().len()
}

async fn arrive(store: &Store, found: &Found) -> Result<FetchReport, FetchError> {
    let bar = progress::bar("fetching {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let shown = bar.clone();
    let mut progress = move |p: Progress| {
        shown.set_length(p.size);
        shown.set_position(p.verified);
    };
    let (options, release) = (FetchOptions::default(), &found.release.record);
    let size = Some(release.size);
    let fetched =
        fetch(store, release.blob, size, &found.peers, &found.dialer, &options, &mut progress).await;
    bar.finish_and_clear();
    Ok(fetched?.report)
}

/// What each peer was the first to send, verified.
pub fn sent(report: &FetchReport) -> Vec<(PeerAddress, u64)> {
    sent_by(&report.peers)
}

fn sent_by(peers: &[PeerReport]) -> Vec<(PeerAddress, u64)> {
    peers.iter().map(|peer| (peer.address.clone(), peer.bytes)).collect()
}

/// Says who sent what, for people.
pub fn say(report: &FetchReport) {
    for peer in &report.peers {
        let fault = peer.fault.as_ref().map(|fault| format!(": {fault}")).unwrap_or_default();
        let dropped = if peer.dropped { ", given up" } else { "" };
        eprintln!("{} sent {}{dropped}{fault}", peer.address, HumanBytes(peer.bytes));
    }
}
