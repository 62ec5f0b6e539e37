//! What a host counts, for `/metrics`: the state of its releases by the last plan, its rounds, its peers, its bytes, and events by their kind,
//! those of its duties on the ledger included.
//!
//! The number of series is bounded: of releases, at most `RELEASES_SHOWN_MAX` are named, those with the fewest copies first.

use std::sync::Arc;
use std::time::Duration;

use assay_hub::blob::BlobHash;
use assay_hub::replication::{Plan, Release as Asked};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Event, Listener, Releases};

/// Most releases whose copies are shown one by one.
const RELEASES_SHOWN_MAX: usize = 256;
/// Bounds of the histogram of rounds, in seconds.
const ROUND_SECONDS: [f64; 7] = [0.1, 0.5, 2.0, 10.0, 60.0, 600.0, 3600.0];

type Labelled<M> = Family<Vec<(&'static str, String)>, M>;

/// Handles of the metrics; clones count together.
#[derive(Clone)]
pub(super) struct Metrics {
    releases: Labelled<Gauge>,
    copies_asked: Labelled<Gauge>,
    copies_seen: Labelled<Gauge>,
    rounds: Histogram,
    peers: Labelled<Gauge>,
    fetched: Counter,
    events: Labelled<Counter>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            releases: Family::default(),
            copies_asked: Family::default(),
            copies_seen: Family::default(),
            rounds: Histogram::new(ROUND_SECONDS),
            peers: Family::default(),
            fetched: Counter::default(),
            events: Family::default(),
        }
    }
}

impl Metrics {
    /// A registry with all of them.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        registry.register(
            "hub_releases",
            "Artifacts by state: asked for, kept here, with fewer parts than asked, and with too few to restore",
            self.releases.clone(),
        );
        registry.register(
            "hub_copies_asked",
            "Copies or shards that are asked of a release, of the shortest ones",
            self.copies_asked.clone(),
        );
        registry.register(
            "hub_copies_seen",
            "Copies or different shards of a release that live hosts say they keep, of the shortest ones",
            self.copies_seen.clone(),
        );
        registry.register("hub_round_seconds", "How long rounds took", self.rounds.clone());
        registry.register(
            "hub_peers",
            "Hosts that answered in the last round, and that did not",
            self.peers.clone(),
        );
        registry.register(
            "hub_fetched_bytes",
            "Bytes fetched from other hosts and verified",
            self.fetched.clone(),
        );
        registry.register("hub_events", "Events by kind", self.events.clone());
        registry
    }

    /// A listener that counts what `listener` hears. Progress is no event here.
    pub(super) fn counting(&self, listener: Listener) -> Listener {
        let events = self.events.clone();
        Arc::new(move |event| {
            if !matches!(event, Event::Arriving { .. }) {
                events.get_or_create(&vec![("kind", event.kind().to_owned())]).inc();
            }
            listener(event);
        })
    }

    /// What a plan was made of and says.
    pub(super) fn planned(&self, asked: &[Asked], releases: &Releases, kept: usize, plan: &Plan) {
        let seen = |blob: BlobHash| plan.counted.get(&blob).copied().unwrap_or(0);
        let short = asked.iter().filter(|a| seen(a.blob()) < a.hosts()).count();
        let states = [("asked", asked.len()), ("kept", kept), ("short", short), ("lost", plan.lost.len())];
        for (state, count) in states {
            set(&self.releases, "state", state.to_owned(), count);
        }
        let mut shortest: Vec<&Asked> = asked.iter().collect();
        shortest.sort_by_key(|a| (i16::from(seen(a.blob())) - i16::from(a.hosts()), a.blob()));
        self.copies_asked.clear();
        self.copies_seen.clear();
        for asked in shortest.into_iter().take(RELEASES_SHOWN_MAX) {
            let Some(demanded) = releases.get(&asked.blob()) else { continue };
            let r = &demanded.signed.record;
            let name = format!("{}/{}@{}", r.publisher, r.name, r.version);
            set(&self.copies_asked, "release", name.clone(), usize::from(asked.hosts()));
            set(&self.copies_seen, "release", name, usize::from(seen(asked.blob())));
        }
    }

    /// Who answered.
    pub(super) fn peers(&self, answering: usize, silent: usize) {
        set(&self.peers, "state", "answering".to_owned(), answering);
        set(&self.peers, "state", "silent".to_owned(), silent);
    }

    /// Bytes that came and were right.
    pub(super) fn fetched(&self, bytes: u64) {
        self.fetched.inc_by(bytes);
    }

    /// A round that is over.
    pub(super) fn round(&self, took: Duration) {
        self.rounds.observe(took.as_secs_f64());
    }
}

fn set(family: &Labelled<Gauge>, label: &'static str, value: String, to: usize) {
    family.get_or_create(&vec![(label, value)]).set(i64::try_from(to).unwrap_or(i64::MAX));
}
