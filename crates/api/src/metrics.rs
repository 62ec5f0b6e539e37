//! What Prometheus sees. vLLM's names where the meaning is the same, ours (`assay_`) elsewhere.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use assay_core::transcript::Usage;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::{Arriving, Load};

/// The content type of metrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishLabel {
    model_name: String,
    finished_reason: Finish,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Finish {
    /// End token or stop string.
    Stop,
    /// Limit of tokens.
    Length,
    /// The client left.
    Abort,
    /// It failed.
    Error,
}

impl EncodeLabelValue for Finish {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Abort => "abort",
            Finish::Error => "error",
        })
    }
}

type Histograms = Family<ModelLabel, Histogram, fn() -> Histogram>;

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    running: Family<ModelLabel, Gauge>,
    waiting: Family<ModelLabel, Gauge>,
    cache: Family<ModelLabel, Gauge<f64, AtomicU64>>,
    prompt_tokens: Family<ModelLabel, Counter>,
    generation_tokens: Family<ModelLabel, Counter>,
    success: Family<FinishLabel, Counter>,
    first_token: Histograms,
    between_tokens: Histograms,
    whole: Histograms,
    refused: Family<CodeLabel, Counter>,
    arriving_bytes: Family<ModelLabel, Gauge>,
    arriving_size: Family<ModelLabel, Gauge>,
    arriving_layer: Family<ModelLabel, Gauge>,
}

fn seconds() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    ])
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let histograms = || Histograms::new_with_constructor(seconds as fn() -> Histogram);
        let mut m = Metrics {
            registry: Registry::default(),
            running: Family::default(),
            waiting: Family::default(),
            cache: Family::default(),
            prompt_tokens: Family::default(),
            generation_tokens: Family::default(),
            success: Family::default(),
            first_token: histograms(),
            between_tokens: histograms(),
            whole: histograms(),
            refused: Family::default(),
            arriving_bytes: Family::default(),
            arriving_size: Family::default(),
            arriving_layer: Family::default(),
        };
        let r = &mut m.registry;
        r.register("vllm:num_requests_running", "Requests being executed", m.running.clone());
        r.register("vllm:num_requests_waiting", "Requests that wait", m.waiting.clone());
        r.register("vllm:kv_cache_usage_perc", "Share of the cache memory in use, 0 to 1", m.cache.clone());
        r.register("vllm:prompt_tokens", "Tokens read", m.prompt_tokens.clone());
        r.register("vllm:generation_tokens", "Tokens written", m.generation_tokens.clone());
        r.register("vllm:request_success", "Requests by how they ended", m.success.clone());
        r.register("vllm:time_to_first_token_seconds", "From request to first text", m.first_token.clone());
        r.register("vllm:inter_token_latency_seconds", "Between pieces of text", m.between_tokens.clone());
        r.register("vllm:e2e_request_latency_seconds", "From request to end", m.whole.clone());
        r.register("assay_requests_refused", "Requests refused, by code", m.refused.clone());
        r.register("assay_arriving_bytes", "Bytes here of a model on its way", m.arriving_bytes.clone());
        r.register("assay_arriving_size", "Bytes that a model on its way has", m.arriving_size.clone());
        let layer = "Layers that the furthest pass over a model on its way has executed";
        r.register("assay_arriving_layer", layer, m.arriving_layer.clone());
        m
    }

    /// All of them, without an end: the implementor's own may follow.
    pub(crate) fn text(&self, load: Load, models: &[String], arriving: &[Arriving]) -> String {
        let gauges = [&self.arriving_bytes, &self.arriving_size, &self.arriving_layer];
        gauges.iter().for_each(|gauge| gauge.clear());
        for a in arriving {
            let values = [a.bytes, a.size, u64::from(a.layers_executed)];
            for (gauge, value) in gauges.iter().zip(values) {
                gauge.get_or_create(&label(&a.id)).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
        let model_name = if let [one] = models { one.clone() } else { String::new() };
        let label = ModelLabel { model_name };
        self.running.get_or_create(&label).set(i64::from(load.running));
        self.waiting.get_or_create(&label).set(i64::from(load.waiting));
        self.cache.get_or_create(&label).set(f64::from(load.kv_cache_used_ppm) / 1e6);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode_registry(&mut text, &self.registry);
        text
    }

    pub(crate) fn first_token(&self, model: &str, after: Duration) {
        self.first_token.get_or_create(&label(model)).observe(after.as_secs_f64());
    }

    pub(crate) fn next_token(&self, model: &str, after: Duration) {
        self.between_tokens.get_or_create(&label(model)).observe(after.as_secs_f64());
    }

    pub(crate) fn tokens(&self, model: &str, usage: Usage) {
        self.prompt_tokens.get_or_create(&label(model)).inc_by(u64::from(usage.prompt_tokens));
        self.generation_tokens.get_or_create(&label(model)).inc_by(u64::from(usage.completion_tokens));
    }

    pub(crate) fn finished(&self, model: &str, finish: Finish, after: Duration) {
        let l = FinishLabel { model_name: model.to_owned(), finished_reason: finish };
        self.success.get_or_create(&l).inc();
        self.whole.get_or_create(&label(model)).observe(after.as_secs_f64());
    }

    pub(crate) fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&CodeLabel { code }).inc();
    }
}

fn label(model: &str) -> ModelLabel {
    ModelLabel { model_name: model.to_owned() }
}
