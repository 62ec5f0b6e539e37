//! The rungs of the ladder, each measured as it is used.

use anyhow::Result;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants as _;

use super::Setup;
use super::execution::Base;
use super::row::Tier;
use super::shapes::Model;

mod light;

/// Bytes of a receipt, its signature and what else an answer's record holds once.
const RECORD_BYTES: f64 = 400.0;

/// What a tier costs.
pub struct Measured {
    pub tier: Tier,
    pub core_ms_per_token: f64,
    pub parts: Vec<(&'static str, f64)>,
    pub from_one_layer: Option<f64>,
    /// Layers that were executed, if other than for generation.
    pub layers: Option<u32>,
    pub prover_core_ms_per_token: f64,
    pub bytes_per_token: f64,
    pub key_bytes: u64,
    pub memory_bytes: u64,
    pub checked: u32,
    pub soundness_bits: u32,
}

/// Collisions of the hash are all that tiers without chance stand on.
pub const HASH_BITS: u32 = 128;

/// All tiers of a model and length.
pub fn measure(model: &Model, t: u32, setup: &Setup, base: &Base) -> Result<Vec<Measured>> {
    Ok(vec![reexecution(model, t, base), light::measure(model, t, setup, base)?])
}

/// Bytes of a transcript for a position: an id, and its share of a digest and of the record.
pub fn transcript_bytes(t: u32) -> f64 {
    5.0 + RECORD_BYTES / f64::from(t)
}

/// Bytes of all caches of the whole model.
pub fn cache_bytes(model: &Model, t: u32) -> u64 {
    let one = Sequence::bytes(model.single().program().caches(), t as usize) as u64;
    one * u64::from(model.size.layers)
}

fn reexecution(model: &Model, t: u32, base: &Base) -> Measured {
    let size = model.size;
    let weights = size.layer_weights() * u64::from(size.layers) + size.head_weights();
    let cost = base.reexecution;
    Measured {
        tier: Tier::Reexec,
        core_ms_per_token: cost.total(),
        parts: vec![
            ("layers", cost.layers),
            ("embedding and head", cost.rest - base.choosing - base.digests),
            ("choice of tokens", base.choosing),
            ("digests", base.digests),
        ],
        from_one_layer: base.from_one.filter(|_| model.is_whole()).map(|b| b.1),
        layers: None,
        prover_core_ms_per_token: 0.0,
        bytes_per_token: transcript_bytes(t),
        key_bytes: weights,
        memory_bytes: weights + cache_bytes(model, t),
        checked: t,
        soundness_bits: HASH_BITS,
    }
}
