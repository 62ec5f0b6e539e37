//! What models were spared, as Prometheus sees it: executed once for many, or ahead of its time. vLLM's names where it has them.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::observed::gauge;
use crate::serving::ServedModel;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model_name: String,
}

/// Appends what each decoder was spared, without an end.
pub(super) fn tell(models: &[Arc<ServedModel>], text: &mut String) {
    let counters: [Family<ModelLabel, Counter>; 7] = Default::default();
    let bytes = Family::<ModelLabel, Gauge>::default();
    for model in models.iter().filter(|m| !m.is_encoder()) {
        let label = ModelLabel { model_name: model.artifact().provenance().name.clone() };
        let s = model.spared();
        let values = [
            s.prompt_tokens,
            s.prefix_tokens,
            s.prefix_hits,
            s.drafted,
            s.drafts_chosen,
            s.model_drafted,
            s.model_drafts_chosen,
        ];
        for (counter, value) in counters.iter().zip(values) {
            counter.get_or_create(&label).inc_by(value);
        }
        bytes.get_or_create(&label).set(gauge(s.prefix_bytes));
    }
    let [asked, hit, requests, drafted, chosen, by_model, by_model_chosen] = counters;
    let mut registry = Registry::default();
    registry.register("vllm:prefix_cache_queries", "Tokens of prompts that were looked up", asked);
    registry.register("vllm:prefix_cache_hits", "Tokens of prompts that others had executed", hit);
    registry.register("assay_prefix_cache_requests", "Requests that had such tokens", requests);
    registry.register("assay_prefix_cache_bytes", "Bytes kept of caches for others that begin alike", bytes);
    registry.register(
        "vllm:spec_decode_num_draft_tokens",
        "Tokens executed before they were chosen",
        drafted,
    );
    registry.register("vllm:spec_decode_num_accepted_tokens", "Those of them that were chosen", chosen);
    registry.register("assay_draft_model_tokens", "Those of them that a draft model proposed", by_model);
    registry.register("assay_draft_model_accepted_tokens", "Those that were then chosen", by_model_chosen);
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode_registry(text, &registry);
}
