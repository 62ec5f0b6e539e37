//! What a gateway counts, for `/metrics`: requests and attempts by how they ended, the queue, its providers, lanes, and what keys paid.
//!
//! Counters are atomics that a request's own path adds to; everything that can be read is read when somebody asks. The number of series is
//! bounded: of providers, at most [`PROVIDERS_SHOWN_MAX`] are named, those that run the most first.

use std::sync::atomic::AtomicU64;

use assay_core::id::NodeAddress;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::Inner;
use crate::accounts::Tally;
use crate::lanes::payer::Payer;
use crate::queue::Queue;
use crate::routing::{Outcome, Standing};

/// Most providers that are shown one by one.
const PROVIDERS_SHOWN_MAX: usize = 64;

type Labelled<M> = Family<Vec<(&'static str, String)>, M>;

/// Handles of the metrics.
pub(super) struct Metrics {
    registry: Registry,
    /// Requests whose answers were told to their end.
    pub(super) answered: Counter,
    /// Requests whose answers were told before, and again.
    pub(super) repeated: Counter,
    /// Requests that nobody began to answer.
    pub(super) refused: Counter,
    /// Answers that broke off for good.
    pub(super) failed: Counter,
    /// Answers whose client left, or that could not be charged.
    pub(super) left: Counter,
    attempts: [Counter; 4],
    /// Providers that were asked beside a slow one.
    pub(super) hedges: Counter,
    /// Answers that another provider went on with.
    pub(super) resumed: Counter,
    running: Gauge,
    waiting: Gauge,
    limit: Gauge,
    providers: Labelled<Gauge>,
    provider_running: Labelled<Gauge>,
    provider_first: Labelled<Gauge<f64, AtomicU64>>,
    provider_token: Labelled<Gauge<f64, AtomicU64>>,
    provider_failures: Labelled<Gauge>,
    lanes: Labelled<Gauge>,
    lanes_balance: Gauge,
    lanes_charged: Gauge,
    lanes_waiting: Gauge,
}

/// A counter for each value of a label, known before anything happens.
fn counters<const N: usize>(
    family: &Labelled<Counter>,
    label: &'static str,
    values: [&str; N],
) -> [Counter; N] {
    values.map(|value| family.get_or_create_owned(&labelled(label, value)))
}

fn micro_usd() -> Unit {
    Unit::Other("micro_usd".to_owned())
}

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn labelled(label: &'static str, value: &str) -> Vec<(&'static str, String)> {
    vec![(label, value.to_owned())]
}

impl Metrics {
    pub(super) fn new(queue: &Queue, tally: Option<&Tally>) -> Metrics {
        let (requests, attempts) = (Labelled::<Counter>::default(), Labelled::<Counter>::default());
        let outcomes = ["answered", "repeated", "refused", "failed", "left"];
        let [answered, repeated, refused, failed, left] = counters(&requests, "outcome", outcomes);
        let ended = counters(&attempts, "outcome", ["completed", "failed", "busy", "unused"]);
        let mut m = Metrics {
            registry: Registry::default(),
            answered,
            repeated,
            refused,
            failed,
            left,
            attempts: ended,
            hedges: Counter::default(),
            resumed: Counter::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            limit: Gauge::default(),
            providers: Family::default(),
            provider_running: Family::default(),
            provider_first: Family::default(),
            provider_token: Family::default(),
            provider_failures: Family::default(),
            lanes: Family::default(),
            lanes_balance: Gauge::default(),
            lanes_charged: Gauge::default(),
            lanes_waiting: Gauge::default(),
        };
        let r = m.registry.sub_registry_with_prefix("assay_gateway");
        r.register("requests", "Requests that may run, by how they ended", requests);
        r.register("attempts", "Attempts at providers, by how they ended", attempts);
        r.register("hedges", "Providers that were asked beside a slow one", m.hedges.clone());
        r.register("resumed", "Answers that another provider went on with", m.resumed.clone());
        r.register("queue_running", "Requests that run", m.running.clone());
        r.register("queue_waiting", "Requests that wait for their key's turn", m.waiting.clone());
        r.register("queue_limit", "As many run as providers are thought to take", m.limit.clone());
        r.register("queue_waits", "Requests that had to wait", queue.waits.clone());
        let waited = "Time that requests had to wait, all in all";
        r.register_with_unit("queue_wait", waited, Unit::Seconds, queue.waited.clone());
        let providers = "Providers: with an offer, and of those left alone because they failed or are busy";
        r.register("providers", providers, m.providers.clone());
        r.register("provider_running", "Requests that run at a provider for us", m.provider_running.clone());
        let first = "Time that a provider is expected to need for its first token";
        r.register_with_unit("provider_first_token", first, Unit::Seconds, m.provider_first.clone());
        let token = "Time that a provider is expected to need for a further token";
        r.register_with_unit("provider_token", token, Unit::Seconds, m.provider_token.clone());
        let failures = "Failures of a provider in a row; 0 closes the circuit";
        r.register("provider_failures_in_a_row", failures, m.provider_failures.clone());
        let lanes =
            "Channels to providers: with a request, idle, leaving; and of those waiting for a deposit";
        r.register("lanes", lanes, m.lanes.clone());
        let balance = "What was put into channels to providers and did not leave them";
        r.register_with_unit("lanes_balance", balance, micro_usd(), m.lanes_balance.clone());
        let charged = "What providers are believed to have charged on them, all in all";
        r.register_with_unit("lanes_charged", charged, micro_usd(), m.lanes_charged.clone());
        r.register("lanes_waiting", "Requests that wait for a channel", m.lanes_waiting.clone());
        if let Some(tally) = tally {
            r.register("holds", "Times that money was set aside for a request", tally.holds.clone());
            r.register("charges", "Holds that ended with a charge", tally.charges.clone());
            r.register_with_unit("charged", "What keys were charged", micro_usd(), tally.charged.clone());
            r.register("releases", "Holds that ended without one", tally.releases.clone());
        }
        m
    }

    /// Counts what the payer does, too.
    pub(super) fn paying(&mut self, payer: &Payer) {
        let r = self.registry.sub_registry_with_prefix("assay_gateway");
        r.register("lane_deposits", "Deposits into channels that arrived", payer.deposits.clone());
        let failed = "Deposits into channels that did not arrive; they are tried again";
        r.register("lane_deposits_failed", failed, payer.deposits_failed.clone());
        let dropped = "Receipts that came faster than they could be kept, and are compared with nothing";
        r.register("receipts_dropped", dropped, payer.receipts_dropped.clone());
    }

    /// An attempt ended.
    pub(super) fn attempt(&self, outcome: Outcome) {
        let [completed, failed, busy, unused] = &self.attempts;
        match outcome {
            Outcome::Completed { .. } => completed.inc(),
            Outcome::Failed => failed.inc(),
            Outcome::Busy => busy.inc(),
            Outcome::Neither => unused.inc(),
        };
    }

    /// An answer was told, as far as it went: `Failed` is one that nobody went on with.
    pub(super) fn told(&self, outcome: Outcome) {
        match outcome {
            Outcome::Completed { .. } => self.answered.inc(),
            Outcome::Failed => self.failed.inc(),
            Outcome::Busy | Outcome::Neither => self.left.inc(),
        };
    }

    /// All of them, without an end.
    pub(super) fn text(&self, inner: &Inner, text: &mut String) {
        let (running, limit) = inner.queue.running();
        self.running.set(gauge(running));
        self.limit.set(gauge(limit));
        self.waiting.set(gauge(inner.queue.waiting()));
        self.see_providers(inner);
        if let Some(payer) = &inner.payer {
            let seen = payer.seen();
            let states = [("running", seen.running), ("idle", seen.idle), ("leaving", seen.leaving)];
            for (state, count) in states.into_iter().chain([("depositing", seen.depositing)]) {
                self.lanes.get_or_create(&labelled("state", state)).set(gauge(count));
            }
            self.lanes_balance.set(gauge(seen.balance));
            self.lanes_charged.set(gauge(seen.charged));
            self.lanes_waiting.set(gauge(seen.waiting));
        }
        // Writing to a string does not fail.
        for registry in std::iter::once(&self.registry).chain(&inner.beside) {
            let _ = prometheus_client::encoding::text::encode_registry(text, registry);
        }
    }

    fn see_providers(&self, inner: &Inner) {
        let now_ms = inner.clock_ms();
        let mut known: Vec<(NodeAddress, Standing)> = {
            let routing = inner.routing();
            routing.offers().filter_map(|o| Some((o.provider, routing.standing(o.provider)?))).collect()
        };
        let resting = known.iter().filter(|(_, s)| s.rests_until_ms > now_ms).count();
        self.providers.get_or_create(&labelled("state", "offering")).set(gauge(known.len()));
        self.providers.get_or_create(&labelled("state", "resting")).set(gauge(resting));
        known.sort_by_key(|(provider, s)| (std::cmp::Reverse((s.running, s.completed)), *provider));
        self.provider_running.clear();
        self.provider_first.clear();
        self.provider_token.clear();
        self.provider_failures.clear();
        for (provider, s) in known.into_iter().take(PROVIDERS_SHOWN_MAX) {
            let label = labelled("provider", &provider.to_string());
            self.provider_running.get_or_create(&label).set(s.running.into());
            self.provider_first.get_or_create(&label).set(s.first_ms as f64 / 1e3);
            self.provider_token.get_or_create(&label).set(s.token_us as f64 / 1e6);
            self.provider_failures.get_or_create(&label).set(s.failures.into());
        }
    }
}
