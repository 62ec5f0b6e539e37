//! What a witness counts, for `/metrics`: events by their kind, and what the last round read.
//!
//! The number of series is bounded: labels are kinds and codes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use alloy_primitives::U256;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Event, Listener, View};
use crate::observed::{coins, count, gauge, now_s};

type Labelled<M> = Family<Vec<(&'static str, &'static str)>, M>;

/// Handles of the metrics; clones count together.
#[derive(Clone, Default)]
pub(super) struct Metrics {
    events: Labelled<Counter>,
    failures: Labelled<Counter>,
    compared: Counter,
    kept: Gauge,
    not_kept: Counter,
    left: Gauge,
    demands: Gauge,
    coins: Gauge<f64, AtomicU64>,
    last_round: Gauge,
}

impl Metrics {
    /// A registry with all of them.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("assay_witness");
        r.register("events", "What was done and seen, by kind", self.events.clone());
        r.register("failures", "What could not be done, by code; it is tried again", self.failures.clone());
        r.register("compared", "Receipts that stand in their batch", self.compared.clone());
        r.register("receipts_kept", "Receipts in the book", self.kept.clone());
        r.register(
            "receipts_not_kept",
            "Receipts that are compared with nothing: the book was full, or could not be written",
            self.not_kept.clone(),
        );
        r.register("receipts_left", "Receipts of posted batches that wait to be compared", self.left.clone());
        r.register("demands_open", "Demands that wait for an answer", self.demands.clone());
        r.register("balance_coins", "The chain's coins that the key has for gas", self.coins.clone());
        r.register_with_unit(
            "last_round_timestamp",
            "When the last round ended that could read the ledger, since 1970",
            Unit::Seconds,
            self.last_round.clone(),
        );
        // What did not happen yet is a zero, so that its first time is a rise.
        for kind in ["left_out", "proved_left_out", "proved_conflict", "not_shown", "demanded", "in_vain"] {
            drop(self.events.get_or_create(&vec![("kind", kind)]));
        }
        drop(self.failures.get_or_create(&vec![("code", "ledger_unread")]));
        registry
    }

    /// A listener that counts what `listener` hears.
    pub(super) fn counting(&self, listener: Listener) -> Listener {
        let metrics = self.clone();
        Arc::new(move |event| {
            metrics.events.get_or_create(&vec![("kind", event.kind())]).inc();
            match &event {
                Event::Compared { receipts, .. } => {
                    metrics.compared.inc_by(count(*receipts));
                }
                Event::Failed { code, .. } => {
                    metrics.failures.get_or_create(&vec![("code", code)]).inc();
                }
                _ => {}
            }
            listener(event);
        })
    }

    /// Receipts were given that are not in the book.
    pub(super) fn not_kept(&self, receipts: usize) {
        self.not_kept.inc_by(count(receipts));
    }

    /// What a round read, with the receipts in the book and the key's coins.
    pub(super) fn read(&self, view: &View, kept: u64, wei: U256) {
        self.kept.set(gauge(kept));
        self.left.set(gauge(view.batches.iter().filter(|b| !b.struck).map(|b| b.left).sum::<usize>()));
        self.demands.set(gauge(view.demands.len()));
        self.coins.set(coins(wei));
        self.last_round.set(now_s());
    }
}
