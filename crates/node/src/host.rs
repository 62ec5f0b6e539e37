//! A host: keeps the models that the rule of replication gives it, serves them to whoever asks, and lets go of them only when others
//! have shown that they keep them.
//!
//! A round does, in this order: 1. take in what publishers on this machine left; 2. ask the other hosts what they know and keep; 3. plan
//! (`assay_hub::replication`); 4. fetch what is this host's to keep; 5. drop what is not, if those it relies on answer for it. A round
//! may be cut off anywhere: what was durable stays, the next round goes on.
//!
//! What counts as kept is what a release's own tag keeps: its content root was computed from the bytes and is the release's. An artifact with
//! another is neither counted nor asked for again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use assay_core::id::{Hash, NodeAddress};
use assay_hub::blob::BlobHash;
use assay_hub::catalogue::{Catalogue, CatalogueError};
use assay_hub::cut::Cut;
use assay_hub::discovery::{Wanted, gather};
use assay_hub::exchange::{Admission, Exchange, HostCard, Records};
use assay_hub::fetch::FetchOptions;
use assay_hub::inbox::{Inbox, InboxError};
use assay_hub::keeping::{Kept, is_refused, keep};
use assay_hub::peer::{Dialer, Endpoint, PeerAddress, address_of};
use assay_hub::release::{Release, Signed};
use assay_hub::replication::{
    Host as Facts, HostId, Intent, Keeping, Part, Plan, Planner, Release as Asked, Times,
};
use assay_hub::server::{ServerOptions, router_with};
use assay_hub::store::{Quota, Store, StoreError};
use axum::Router;
use futures_util::future::join_all;

pub mod duties;
mod event;
pub mod fetches;
mod metrics;
mod parts;
mod shards;

pub use event::{Event, Listener};

use metrics::Metrics;

/// Most other addresses that a host is believed to have.
const ENDPOINTS_MAX: usize = 4;

/// How a host behaves.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Folder of the store, the records and the inbox.
    pub folder: PathBuf,
    /// Bytes that the store may occupy.
    pub quota: Quota,
    /// Addresses of other hosts, as [`PeerAddress`] reads them.
    pub peers: Vec<String>,
    /// Whose records are taken from strangers.
    pub admission: Admission,
    /// How it serves.
    pub server: ServerOptions,
    /// How it fetches.
    pub fetch: FetchOptions,
    /// The times of replication; the same for all hosts of a network.
    pub times: Times,
    /// From where it reaches peers over iroh, and where they reach it if somebody serves there.
    pub endpoint: Option<Endpoint>,
}

/// Why a host does not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl HostError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            HostError::Store(e) => e.code(),
            HostError::Catalogue(e) => e.code(),
        }
    }
}

/// A host.
pub struct Host {
    store: Store,
    catalogue: Arc<Catalogue>,
    inbox: Inbox,
    exchange: Arc<Exchange>,
    records: Records,
    dialer: Dialer,
    planner: Planner,
    /// Other hosts as they were when they last answered.
    known: BTreeMap<HostId, Known>,
    /// Who failed to show what it keeps.
    failed: BTreeMap<HostId, BTreeSet<BlobHash>>,
    /// Releases whose shards were right and did not make the artifact: their publisher lied, and nobody restores them.
    false_cuts: BTreeSet<Hash>,
    options: HostOptions,
    metrics: Metrics,
    listener: Listener,
}

struct Known {
    url: String,
    seen_s: u64,
    card: HostCard,
}

/// Which part of which artifact a host keeps.
type Keeps = BTreeMap<BlobHash, (Part, Intent)>;

fn id(address: NodeAddress) -> HostId {
    HostId(*address.as_bytes())
}

/// What is asked of an artifact: by a release, and in shards if every release of it was cut.
struct Demanded {
    signed: Signed<Release>,
    cut: Option<Cut>,
}

/// What is asked of artifacts. Of several releases of one, that which asks for most copies.
type Releases = BTreeMap<BlobHash, Demanded>;

impl Host {
    /// Opens the folder. Needs a TLS provider to be installed.
    pub fn open(address: NodeAddress, options: HostOptions, listener: Listener) -> Result<Host, HostError> {
        let store = Store::open(&options.folder.join("store"), options.quota)?;
        if let Err(e) = assay_hub::cold::sweep(&store) {
            tracing::warn!(error = %e, "what a crash left of shards cannot be removed");
        }
        let catalogue = Arc::new(Catalogue::open(&options.folder.join("records"))?);
        let exchange = Arc::new(Exchange {
            catalogue: Arc::clone(&catalogue),
            store: store.clone(),
            address,
            admission: RwLock::new(options.admission.clone()),
            leaving: RwLock::default(),
            endpoints: RwLock::default(),
        });
        let dialer = match &options.endpoint {
            Some(endpoint) => Dialer::new().with_iroh(endpoint.clone()),
            None => Dialer::new(),
        };
        let metrics = Metrics::default();
        Ok(Host {
            store,
            catalogue,
            inbox: Inbox::at(&options.folder.join("inbox")),
            exchange,
            records: Records::over(dialer.clone()),
            dialer,
            planner: Planner::new(id(address), options.times),
            known: BTreeMap::new(),
            failed: BTreeMap::new(),
            false_cuts: BTreeSet::new(),
            options,
            listener: metrics.counting(listener),
            metrics,
        })
    }

    /// What it serves.
    pub fn router(&self) -> Router {
        router_with(self.store.clone(), &self.options.server, self.metrics.registry())
            .merge(assay_hub::exchange::routes(Arc::clone(&self.exchange)))
    }

    /// Whom it asks from now on.
    pub fn set_peers(&mut self, peers: Vec<String>) {
        self.options.peers = peers;
    }

    /// Who failed to show which artifacts, by the ledger: they are not counted for them from now on, nor asked to keep them.
    pub fn set_failed(&mut self, failed: BTreeMap<HostId, BTreeSet<BlobHash>>) {
        self.failed = failed;
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its records.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// Where it is reached over iroh, if it has an endpoint.
    pub fn endpoint(&self) -> Option<PeerAddress> {
        self.options.endpoint.as_ref().map(address_of)
    }

    fn say(&self, event: Event) {
        (self.listener)(event);
    }

    fn failed(&self, what: impl Into<String>, code: &'static str, reason: &dyn std::fmt::Display) {
        self.say(Event::Failed { what: what.into(), code, reason: reason.to_string() });
    }

    /// One round, at `now_s` seconds since 1970.
    pub async fn round(&mut self, now_s: u64) {
        let begun = Instant::now();
        self.take_in().await;
        self.adopt().await;
        self.ask(now_s).await;
        let (asked, releases) = self.asked();
        let facts = self.facts(now_s, &releases);
        match self.planner.step(now_s, &asked, &facts) {
            Ok(plan) => {
                let kept = facts.get(&id(self.exchange.address)).map_or(0, |me| me.keeps.len());
                self.metrics.planned(&asked, &releases, kept, &plan);
                self.act(plan, &releases).await;
            }
            Err(e) => self.failed("planning", e.code(), &e),
        }
        self.metrics.round(begun.elapsed());
    }

    async fn act(&mut self, plan: Plan, releases: &Releases) {
        let leaving: BTreeSet<BlobHash> = plan.leave.iter().map(|(blob, _)| *blob).collect();
        *self.exchange.leaving.write().unwrap_or_else(PoisonError::into_inner) = leaving;
        for blob in plan.lost {
            self.say(Event::Lost { blob });
        }
        if let Err(e) = self.spare(&plan.counted, releases).await {
            self.failed("letting spare shards go", e.code(), &e);
        }
        for wanted in plan.fetch {
            if let Err(e) = self.fetch(&wanted, releases).await {
                if e.is_false_cut()
                    && let Some(demanded) = releases.get(&wanted.release)
                {
                    self.false_cuts.insert(demanded.signed.id());
                }
                self.failed(format!("fetching {}", wanted.release), e.code(), &e);
            }
        }
        for drop in plan.drop {
            if let Err(e) = self.drop(&drop, releases).await {
                self.failed(format!("dropping {}", drop.release), e.code(), &e);
            }
        }
    }

    async fn take_in(&self) {
        let waiting = match self.inbox.waiting() {
            Ok(waiting) => waiting,
            Err(e) => return self.failed("reading the inbox", e.code(), &e),
        };
        for path in waiting {
            let (inbox, store, catalogue) =
                (self.inbox.clone(), self.store.clone(), Arc::clone(&self.catalogue));
            let what = format!("taking in {}", path.display());
            let work = move || -> Result<Signed<Release>, InboxError> {
                let release = inbox.take(&path, &store, &catalogue, &mut |_, _| ())?;
                store.index(release.record.blob)?;
                Ok(release)
            };
            match blocking(work).await {
                Ok(release) => self.say(Event::Taken { id: release.id(), blob: release.record.blob }),
                Err(e) => self.failed(what, e.code(), &e),
            }
        }
    }

    /// Keeps under its own name every release whose artifact is here already, whole: another release's, or one that was added or pinned.
    async fn adopt(&self) {
        let kept = match Kept::of(&self.store) {
            Ok(kept) => kept,
            Err(e) => return self.failed("reading the store", e.code(), &e),
        };
        for signed in self.catalogue.releases() {
            let (id, release) = (signed.id(), signed.record);
            // What was cut is whole only where it was published; elsewhere it is on its way through.
            if kept.has(&release) || is_refused(&self.store, &release) || self.catalogue.cut(id).is_some() {
                continue;
            }
            let (store, blob, size) = (self.store.clone(), release.blob, release.size);
            let what = format!("keeping {}@{}", release.name, release.version);
            let work = move || match store.blob(blob)? {
                Some(blob) => keep(&store, &release, &blob).map(|_| true),
                None => Ok(false),
            };
            match blocking(work).await {
                Ok(true) => self.say(Event::Kept { blob, size }),
                Ok(false) => {}
                Err(e) => self.failed(what, e.code(), &e),
            }
        }
    }

    /// Asks the peers, and then those that did not answer but had told of another address.
    async fn ask(&mut self, now_s: u64) {
        let endpoints: Vec<String> = self.endpoint().iter().map(ToString::to_string).collect();
        *self.exchange.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
        let peers = self.options.peers.clone();
        let mut silent = self.hear(now_s, peers).await;
        if self.options.endpoint.is_some() {
            let unheard = self.known.values().filter(|known| known.seen_s != now_s);
            let others = unheard.flat_map(|known| known.card.endpoints.iter().take(ENDPOINTS_MAX));
            // Only names that nobody but their owner answers to: a card cannot send this host to anybody's address.
            let others =
                others.filter(|other| other.parse::<PeerAddress>().is_ok_and(|other| other.is_iroh()));
            let others = others.filter(|other| !self.options.peers.contains(other)).cloned().collect();
            silent += self.hear(now_s, others).await;
        }
        // Whoever is dead for so long is found again by its address, if at all.
        let remembered = self.options.times.leave_notice_s();
        self.known.retain(|_, known| now_s.saturating_sub(known.seen_s) <= remembered);
        let answering = self.known.values().filter(|known| known.seen_s == now_s).count();
        self.metrics.peers(answering, silent);
    }

    /// Asks `hosts` what they know and keep; how many did not say it.
    async fn hear(&mut self, now_s: u64, hosts: Vec<String>) -> usize {
        let wanted = Wanted::Admitted(&self.options.admission);
        let gathered = gather(&self.records, &hosts, wanted, &self.catalogue).await;
        let mut silent = gathered.silent.len();
        let unheard: BTreeSet<&String> = gathered.silent.iter().map(|(host, _)| host).collect();
        let answering: Vec<&String> = hosts.iter().filter(|url| !unheard.contains(url)).collect();
        let cards = join_all(answering.iter().map(|url| self.records.card(url))).await;
        let cards: Vec<(String, _)> = answering.into_iter().cloned().zip(cards).collect();
        for id in gathered.learnt {
            self.say(Event::Learnt { id });
        }
        for (host, e) in gathered.silent {
            self.say(Event::Silent { host, reason: e.to_string() });
        }
        for e in gathered.refused {
            self.failed("learning a record", e.code(), &e);
        }
        for (url, card) in cards {
            match card {
                Ok(card) if card.address == self.exchange.address => {}
                Ok(card) => {
                    self.known.insert(id(card.address), Known { url, seen_s: now_s, card });
                }
                Err(e) => {
                    silent += 1;
                    self.say(Event::Silent { host: url, reason: e.to_string() });
                }
            }
        }
        silent
    }

    /// What is to be kept, and the releases behind it. An artifact that is not what its release says is not asked for. It is kept in shards if
    /// every release of it was cut, in the way of the one with the least id: who publishes the same bytes uncut asks for copies.
    fn asked(&self) -> (Vec<Asked>, Releases) {
        let mut releases = Releases::new();
        for signed in self.catalogue.releases() {
            if is_refused(&self.store, &signed.record) {
                continue;
            }
            let id = signed.id();
            let cut = self.catalogue.cut(id).map(|cut| cut.record).filter(|_| !self.false_cuts.contains(&id));
            match releases.entry(signed.record.blob) {
                Entry::Vacant(place) => drop(place.insert(Demanded { signed, cut })),
                Entry::Occupied(mut place) => {
                    let known = place.get();
                    let better = match (&cut, &known.cut) {
                        (None, None) => signed.record.copies > known.signed.record.copies,
                        (Some(cut), Some(known)) => cut.release < known.release,
                        (None, Some(_)) => true,
                        (Some(_), None) => false,
                    };
                    if better {
                        place.insert(Demanded { signed, cut });
                    }
                }
            }
        }
        let ask = |demanded: &Demanded| {
            let r = &demanded.signed.record;
            match &demanded.cut {
                Some(cut) => cut.asked().ok(),
                None => {
                    Asked::new(r.blob, assay_hub::store::footprint(r.size), Keeping::Copies(r.copies)).ok()
                }
            }
        };
        (releases.values().filter_map(ask).collect(), releases)
    }

    /// What a host says it keeps, by what is asked: the whole if it has it, a shard only of the cut that is asked for.
    fn told(card: &HostCard, releases: &Releases, by_id: &BTreeMap<Hash, BlobHash>) -> Keeps {
        let leaves: BTreeSet<_> = card.leaves.iter().collect();
        let intent = |id: &Hash| if leaves.contains(id) { Intent::Leaves } else { Intent::Keeps };
        let shards = card.shards.iter().filter_map(|(id, index)| {
            let blob = by_id.get(id)?;
            let asked = releases.get(blob).and_then(|demanded| demanded.cut.as_ref());
            asked.filter(|cut| cut.release == *id)?;
            Some((*blob, (Part::Shard(*index), intent(id))))
        });
        let wholes = card.keeps.iter().filter_map(|id| Some((*by_id.get(id)?, (Part::Whole, intent(id)))));
        shards.chain(wholes).collect()
    }

    fn facts(&self, now_s: u64, releases: &Releases) -> BTreeMap<HostId, Facts> {
        let all = self.catalogue.releases();
        let by_id: BTreeMap<Hash, BlobHash> = all.iter().map(|s| (s.id(), s.record.blob)).collect();
        let failed = |id: &HostId| self.failed.get(id).cloned().unwrap_or_default();
        let mut facts = BTreeMap::new();
        for (id, known) in &self.known {
            let host = Facts {
                capacity: known.card.bytes_total,
                left: known.card.bytes_free,
                seen_s: known.seen_s,
                keeps: Host::told(&known.card, releases, &by_id),
                failed: failed(id),
            };
            facts.insert(*id, host);
        }
        let leaving = self.exchange.leaving.read().unwrap_or_else(PoisonError::into_inner);
        let intent = |blob: &BlobHash| if leaving.contains(blob) { Intent::Leaves } else { Intent::Keeps };
        // A store that cannot be read keeps nothing that others could fetch.
        let keeps: Keeps = Kept::of(&self.store).map_or_else(
            |_| Keeps::new(),
            |kept| {
                let whole: BTreeSet<BlobHash> =
                    all.iter().filter(|s| kept.has(&s.record)).map(|s| s.record.blob).collect();
                let part = |(blob, demanded): (&BlobHash, &Demanded)| {
                    let shard = || kept.shards(&demanded.cut.as_ref()?.set).next().map(Part::Shard);
                    let part = whole.contains(blob).then_some(Part::Whole).or_else(shard)?;
                    Some((*blob, (part, intent(blob))))
                };
                releases.iter().filter_map(part).collect()
            },
        );
        let usage = self.store.usage().unwrap_or_default();
        let me = id(self.exchange.address);
        let mine = Facts {
            capacity: usage.quota,
            // What is arriving is not kept yet, and its place is still to give.
            left: usage.free().saturating_add(usage.partials),
            seen_s: now_s,
            keeps,
            failed: failed(&me),
        };
        facts.insert(me, mine);
        facts
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on a store does not panic")
}
