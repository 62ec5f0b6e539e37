//! The rungs of the ladder, each measured as it is used.

use anyhow::Result;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants as _;

use super::Setup;
use super::execution::Base;
use super::parts::Parts;
use super::row::Tier;
use super::shapes::Model;

mod answer;
mod batch;
mod light;
mod shard;

/// Bytes of a receipt, its signature and what else an answer's record holds once.
const RECORD_BYTES: f64 = 400.0;
/// Collisions of the hash are all that tiers without chance stand on.
const HASH_BITS: u32 = 128;

/// What a tier costs.
pub struct Measured {
    pub tier: Tier,
    /// Milliseconds of the verifier for a position that is checked.
    pub parts: Parts,
    pub from_one_layer: Option<f64>,
    /// Layers that were executed.
    pub layers: u32,
    pub prover_core_ms_per_token: f64,
    pub bytes_per_token: f64,
    pub key_bytes: f64,
    pub memory_bytes: f64,
    pub checked: u32,
    pub soundness_bits: u32,
}

/// All tiers of a model and length.
pub fn measure(model: &Model, t: u32, setup: &Setup, base: &Base) -> Result<Vec<Measured>> {
    Ok(vec![
        reexecution(model, t, base),
        shard::measure(model, t, setup, base)?,
        light::measure(model, t, setup, base)?,
        batch::measure(model, t, setup, base)?,
    ])
}

/// Bytes of a transcript for a position: an id, and its share of a digest and of the record.
fn transcript_bytes(t: u32) -> f64 {
    5.0 + RECORD_BYTES / f64::from(t)
}

/// Bytes of the caches of one layer.
fn cache_bytes(model: &Model, t: u32) -> f64 {
    Sequence::bytes(model.single().program().caches(), t as usize) as f64
}

/// Bytes of the whole model.
fn model_bytes(model: &Model) -> f64 {
    let size = model.size;
    (size.layer_weights() * u64::from(size.layers) + size.head_weights()) as f64
}

fn reexecution(model: &Model, t: u32, base: &Base) -> Measured {
    let layers = f64::from(model.size.layers);
    Measured {
        tier: Tier::Reexec,
        parts: base.reexecution.clone(),
        from_one_layer: base.from_one.filter(|_| model.is_whole()).map(|b| b.1),
        layers: model.made.layers(),
        prover_core_ms_per_token: 0.0,
        bytes_per_token: transcript_bytes(t),
        key_bytes: model_bytes(model),
        memory_bytes: model_bytes(model) + cache_bytes(model, t) * layers,
        checked: t,
        soundness_bits: HASH_BITS,
    }
}
