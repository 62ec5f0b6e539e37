//! A daemon as its operator sees it: whether its rounds succeed, and what it counts. `GET /health` and `GET /metrics`, for daemons that serve
//! nothing else.
//!
//! A daemon is ready while a round has ended well not long ago. It refuses to judge more: what is wrong is in the log and in the counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use alloy_primitives::U256;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::{Registry, Unit};
use serde_json::json;
use tokio::net::TcpListener;

/// The least time after a good round for which a daemon counts as ready.
const READY_LEAST: Duration = Duration::from_secs(120);
/// Or so many times the pause between rounds.
const READY_PAUSES: u32 = 4;

/// Money, in millionths of a dollar.
pub(crate) fn micro_usd() -> Unit {
    Unit::Other("micro_usd".to_owned())
}

/// A number that may be too large for a gauge.
pub(crate) fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// A number that may be too large for a counter.
pub(crate) fn count(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

/// Wei as coins, for people.
pub(crate) fn coins(wei: U256) -> f64 {
    f64::from(wei) / 1e18
}

/// Seconds since 1970.
pub(crate) fn now_s() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    gauge(now.unwrap_or_default().as_secs())
}

/// Whether rounds succeed; clones know the same.
#[derive(Clone)]
pub struct Rounds {
    /// When the last good one ended, in seconds since 1970; 0 before the first.
    last_s: Arc<AtomicI64>,
    ready_s: i64,
}

impl Rounds {
    /// None has ended. There will be one `every` so often.
    pub fn new(every: Duration) -> Rounds {
        let ready = READY_LEAST.max(every.saturating_mul(READY_PAUSES));
        Rounds { last_s: Arc::default(), ready_s: gauge(ready.as_secs()) }
    }

    /// One has ended well.
    pub fn succeeded(&self) {
        self.last_s.store(now_s(), Relaxed);
    }

    fn are_good(&self, now_s: i64) -> bool {
        let last_s = self.last_s.load(Relaxed);
        last_s > 0 && now_s.saturating_sub(last_s) <= self.ready_s
    }
}

struct Observed {
    registry: Registry,
    rounds: Rounds,
}

/// `GET /health`, 200 while rounds succeed and 503 `not_ready` otherwise, and `GET /metrics`, in OpenMetrics text.
pub fn routes(registry: Registry, rounds: Rounds) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(Observed { registry, rounds }))
}

/// Serves them until it is dropped.
pub async fn serve(listener: TcpListener, routes: Router) -> std::io::Result<()> {
    axum::serve(listener, routes).await
}

async fn health(State(observed): State<Arc<Observed>>) -> Response {
    match observed.rounds.are_good(now_s()) {
        true => Json(json!({"status": "ok"})).into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not_ready"}))).into_response(),
    }
}

async fn metrics(State(observed): State<Arc<Observed>>) -> Response {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &observed.registry);
    ([(header::CONTENT_TYPE, assay_api::OPENMETRICS)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_ready_while_rounds_succeed() {
        let rounds = Rounds::new(Duration::from_secs(60));
        let now = now_s();
        assert!(!rounds.are_good(now));
        rounds.clone().succeeded();
        let last = rounds.last_s.load(Relaxed);
        assert!(rounds.are_good(last) && rounds.are_good(last + 240) && !rounds.are_good(last + 241));
        let quick = Rounds::new(Duration::from_secs(1));
        quick.succeeded();
        assert!(quick.are_good(last + 120));
    }
}
