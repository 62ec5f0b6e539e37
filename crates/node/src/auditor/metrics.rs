//! What an auditor counts, for `/metrics`: events by their kind, executions by what came of them, and what the last round read.
//!
//! The number of series is bounded: labels are kinds and codes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Event, Listener, View};
use crate::disputes::Standing;
use crate::execution::Verdict;
use crate::observed::{coins, count, gauge, micro_usd, now_s};
use crate::settlement::party;

/// Bounds of the histogram of executions, in seconds.
const EXECUTION_SECONDS: [f64; 9] = [0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0];

type Labelled<M> = Family<Vec<(&'static str, &'static str)>, M>;

/// Handles of the metrics; clones count together.
#[derive(Clone)]
pub(super) struct Metrics {
    events: Labelled<Counter>,
    failures: Labelled<Counter>,
    executions: Labelled<Counter>,
    execution: Histogram,
    earned: Counter,
    disputes_ended: Labelled<Counter>,
    seats: Gauge,
    seats_wanted: Gauge,
    batches: Gauge,
    receipts_pending: Gauge,
    disputes: Gauge,
    accusations: Gauge,
    balance: Gauge,
    coins: Gauge<f64, AtomicU64>,
    last_round: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            events: Family::default(),
            failures: Family::default(),
            executions: Family::default(),
            execution: Histogram::new(EXECUTION_SECONDS),
            earned: Counter::default(),
            disputes_ended: Family::default(),
            seats: Gauge::default(),
            seats_wanted: Gauge::default(),
            batches: Gauge::default(),
            receipts_pending: Gauge::default(),
            disputes: Gauge::default(),
            accusations: Gauge::default(),
            balance: Gauge::default(),
            coins: Gauge::default(),
            last_round: Gauge::default(),
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Stands => "stands",
        Verdict::Wrong => "wrong",
        Verdict::Undisputable => "undisputable",
        Verdict::NotExecutable => "not_executable",
        Verdict::Withheld => "withheld",
    }
}

impl Metrics {
    /// A registry with all of them.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("assay_auditor");
        r.register("events", "What was done and seen, by kind", self.events.clone());
        r.register("failures", "What could not be done, by code; it is tried again", self.failures.clone());
        r.register(
            "executions",
            "Receipts that were executed again, by what came of it",
            self.executions.clone(),
        );
        r.register_with_unit("execution", "How long executions took", Unit::Seconds, self.execution.clone());
        r.register_with_unit("earned", "Parts of fees that were collected", micro_usd(), self.earned.clone());
        r.register("disputes_ended", "Disputes that ended, by who won", self.disputes_ended.clone());
        r.register("seats", "Seats that the auditor has", self.seats.clone());
        r.register("seats_wanted", "Seats that it was told to have", self.seats_wanted.clone());
        r.register("batches", "Batches under audit on whose panel it sits", self.batches.clone());
        r.register(
            "receipts_pending",
            "Drawn receipts that are still to be executed",
            self.receipts_pending.clone(),
        );
        r.register("disputes_open", "Disputes that are not over", self.disputes.clone());
        r.register(
            "accusations_open",
            "Doubts about its digests that are not answered",
            self.accusations.clone(),
        );
        r.register_with_unit(
            "balance",
            "What it has on the ledger, out of which bonds are paid",
            micro_usd(),
            self.balance.clone(),
        );
        r.register("balance_coins", "The chain's coins that it has for gas", self.coins.clone());
        r.register_with_unit(
            "last_round_timestamp",
            "When the last round ended that could read the ledger, since 1970",
            Unit::Seconds,
            self.last_round.clone(),
        );
        // What did not happen yet is a zero, so that its first time is a rise.
        for kind in ["drawn", "committed", "revealed", "collected", "refused", "opened", "accused"] {
            drop(self.events.get_or_create(&vec![("kind", kind)]));
        }
        for result in [Verdict::Stands, Verdict::Wrong, Verdict::Undisputable, Verdict::NotExecutable] {
            drop(self.executions.get_or_create(&vec![("result", word(result))]));
        }
        for result in ["won", "lost"] {
            drop(self.disputes_ended.get_or_create(&vec![("result", result)]));
        }
        drop(self.failures.get_or_create(&vec![("code", "ledger_unread")]));
        registry
    }

    /// A listener that counts what `listener` hears. `auditor` is a party to its disputes.
    pub(super) fn counting(&self, auditor: Address, listener: Listener) -> Listener {
        let metrics = self.clone();
        Arc::new(move |event| {
            metrics.events.get_or_create(&vec![("kind", event.kind())]).inc();
            match &event {
                Event::Ended { dispute, winner } => {
                    let result = if party(dispute, auditor) == *winner { "won" } else { "lost" };
                    metrics.disputes_ended.get_or_create(&vec![("result", result)]).inc();
                }
                Event::Failed { code, .. } => {
                    metrics.failures.get_or_create(&vec![("code", code)]).inc();
                }
                _ => {}
            }
            listener(event);
        })
    }

    /// A receipt was executed.
    pub(super) fn executed(&self, verdict: Verdict) {
        self.executions.get_or_create(&vec![("result", word(verdict))]).inc();
    }

    /// An execution took so long, whatever came of it.
    pub(super) fn took(&self, time: Duration) {
        self.execution.observe(time.as_secs_f64());
    }

    /// A part of fees came.
    pub(super) fn earned(&self, amount: U256) {
        self.earned.inc_by(count(amount));
    }

    /// What a round read, with the auditor's coins.
    pub(super) fn read(&self, view: &View, wei: U256) {
        self.seats.set(gauge(view.seats.have));
        self.seats_wanted.set(gauge(view.seats.wanted));
        let own = || view.batches.iter().filter(|batch| !batch.members.is_empty());
        self.batches.set(gauge(own().count()));
        self.receipts_pending
            .set(gauge(own().map(|batch| batch.work.left + batch.work.waiting).sum::<usize>()));
        let open = view.disputes.iter().filter(|d| !matches!(d.standing, Standing::Over { .. }));
        self.disputes.set(gauge(open.count()));
        self.accusations.set(gauge(view.accusations.len()));
        self.balance.set(gauge(view.vault));
        self.coins.set(coins(wei));
        self.last_round.set(now_s());
    }
}
