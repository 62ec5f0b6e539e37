//! What a provider's settlement counts, for `/metrics`: events by their kind, what they were worth, and what the last round read.
//!
//! Counters follow from events alone; gauges are what was read for deciding. The number of series is bounded: labels are kinds and codes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use alloy_primitives::{Address, U256};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Event, Listener, View, party};
use crate::disputes::Standing;
use crate::observed::{coins, count, gauge, micro_usd, now_s};

type Labelled<M> = Family<Vec<(&'static str, &'static str)>, M>;

/// Handles of the metrics; clones count together.
#[derive(Clone, Default)]
pub(super) struct Metrics {
    events: Labelled<Counter>,
    failures: Labelled<Counter>,
    posted_receipts: Counter,
    posted: Counter,
    earned: Counter,
    disputes_ended: Labelled<Counter>,
    receipts_waiting: Gauge,
    unsettled: Gauge,
    claimable: Gauge,
    batches: Gauge,
    demands: Gauge,
    disputes: Gauge,
    coins: Gauge<f64, AtomicU64>,
    struck: Gauge,
    last_round: Gauge,
}

impl Metrics {
    /// A registry with all of them.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("assay_settlement");
        r.register("events", "What was done on the ledger, by kind", self.events.clone());
        r.register("failures", "What could not be done, by code; it is tried again", self.failures.clone());
        r.register("posted_receipts", "Receipts and gaps of posted epochs", self.posted_receipts.clone());
        r.register_with_unit("posted", "Fees of posted epochs", micro_usd(), self.posted.clone());
        r.register_with_unit(
            "earned",
            "What the provider got out of settled epochs",
            micro_usd(),
            self.earned.clone(),
        );
        r.register("disputes_ended", "Disputes that ended, by who won", self.disputes_ended.clone());
        r.register(
            "receipts_waiting",
            "Receipts that are in no posted epoch yet",
            self.receipts_waiting.clone(),
        );
        r.register_with_unit(
            "unsettled",
            "What was claimed from channels and is not in the pot yet",
            micro_usd(),
            self.unsettled.clone(),
        );
        r.register_with_unit(
            "claimable",
            "What channels owe and hold, and what was not claimed yet",
            micro_usd(),
            self.claimable.clone(),
        );
        r.register("batches_open", "Posted epochs that are not settled", self.batches.clone());
        r.register("demands_open", "Demands that wait for an answer", self.demands.clone());
        r.register("disputes_open", "Disputes that are not over", self.disputes.clone());
        r.register("balance_coins", "The chain's coins that the node has for gas", self.coins.clone());
        r.register(
            "struck",
            "1 if the node was proved to lie, and can earn nothing any more",
            self.struck.clone(),
        );
        r.register_with_unit(
            "last_round_timestamp",
            "When the last round ended that could read the ledger, since 1970",
            Unit::Seconds,
            self.last_round.clone(),
        );
        // What did not happen yet is a zero, so that its first time is a rise.
        for kind in ["posted", "missed", "settled", "claimed", "struck"] {
            drop(self.events.get_or_create(&vec![("kind", kind)]));
        }
        for result in ["won", "lost"] {
            drop(self.disputes_ended.get_or_create(&vec![("result", result)]));
        }
        drop(self.failures.get_or_create(&vec![("code", "ledger_unread")]));
        registry
    }

    /// A listener that counts what `listener` hears. `provider` is a party to its disputes.
    pub(super) fn counting(&self, provider: Address, listener: Listener) -> Listener {
        let metrics = self.clone();
        Arc::new(move |event| {
            metrics.see(provider, &event);
            listener(event);
        })
    }

    fn see(&self, provider: Address, event: &Event) {
        self.events.get_or_create(&vec![("kind", event.kind())]).inc();
        match event {
            Event::Posted { count: receipts, total, .. } => {
                self.posted_receipts.inc_by((*receipts).into());
                self.posted.inc_by(count(total.0));
            }
            Event::Settled { earned, .. } => {
                self.earned.inc_by(count(earned.0));
            }
            Event::Ended { dispute, winner } => {
                let result = if party(dispute, provider) == *winner { "won" } else { "lost" };
                self.disputes_ended.get_or_create(&vec![("result", result)]).inc();
            }
            Event::Failed { code, .. } => {
                self.failures.get_or_create(&vec![("code", code)]).inc();
            }
            _ => {}
        }
    }

    /// What a round read, with the receipts that wait and the node's coins.
    pub(super) fn read(&self, view: &View, waiting: u64, wei: U256) {
        self.receipts_waiting.set(gauge(waiting));
        self.unsettled.set(gauge(view.unsettled));
        let claimable = view.channels.iter().filter_map(|c| Some(c.claimable()?.saturating_sub(c.claimed)));
        self.claimable.set(gauge(claimable.fold(0u128, u128::saturating_add)));
        self.batches.set(gauge(view.batches.iter().filter(|batch| !batch.settled).count()));
        self.demands.set(gauge(view.demands.len()));
        let open = view.disputes.iter().filter(|d| !matches!(d.standing, Standing::Over { .. }));
        self.disputes.set(gauge(open.count()));
        self.coins.set(coins(wei));
        self.struck.set(i64::from(view.node.struck));
        self.last_round.set(now_s());
    }
}
