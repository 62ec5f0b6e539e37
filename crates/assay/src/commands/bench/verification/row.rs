//! One measured cost: a line of `verification.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A way to check, by what it costs and convinces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The whole answer is executed again.
    Reexec,
    /// One layer is, from the states at its boundary.
    Shard,
    /// A few opened tokens, with a secret key.
    Light,
    /// The whole trace, with public coins.
    Batch,
}

impl Tier {
    /// All, in order of the ladder.
    pub const ALL: [Tier; 4] = [Tier::Reexec, Tier::Shard, Tier::Light, Tier::Batch];

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Tier::Reexec => "re-execution",
            Tier::Shard => "layer shard",
            Tier::Light => "light audit",
            Tier::Batch => "batch check",
        }
    }
}

/// The cost of one tier for one shape and length. Milliseconds are of one core; "per token" is per position of the sequence,
/// and for the light audit per opened position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Width of the residual stream.
    pub d: u32,
    /// Positions of the sequence, half of them prompt.
    pub t: u32,
    /// What was measured.
    pub tier: Tier,
    /// The verifier's work.
    pub core_ms_per_token: f64,
    /// It beside what a provider of one stream spends on a position.
    pub share_of_generation: f64,
    /// It beside what re-execution spends on a position.
    pub share_of_reexecution: f64,
    /// Bytes that the verifier receives for this answer, for each position that it checks.
    pub bytes_per_token: f64,
    /// Bytes that the verifier keeps for this model: weights for the first two tiers.
    pub key_bytes: u64,
    /// A wrong number in what is checked passes with a chance of at most 2 to the minus this.
    pub soundness_bits: u32,
    /// Beside a provider that decodes 16 streams together.
    pub share_of_generation_16: f64,
    /// Work of the prover to answer, for each position of the sequence; none of it while generating.
    pub prover_core_ms_per_token: f64,
    /// Positions that are checked: all, or those opened.
    pub checked: u32,
    /// Memory of the verifier, from sizes.
    pub memory_bytes: u64,
    /// What the work consists of.
    pub parts: BTreeMap<String, f64>,
    /// The model whose proportions these are.
    pub shape: String,
    /// Its layers.
    pub layers: u32,
    /// Layers that were executed for this; the others are their multiples.
    pub layers_measured: u32,
    /// The same cost from a single layer, where more were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_one_layer: Option<f64>,
    /// What generation costs a position, single stream and 16 streams; beside it the latter from a single layer.
    pub generation_core_ms_per_token: f64,
    pub generation_16_core_ms_per_token: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_from_one_layer: Option<f64>,
    /// What re-execution costs a position.
    pub reexecution_core_ms_per_token: f64,
    /// Rounds of which this is the median.
    pub rounds: u32,
    /// What was measured, and on what.
    pub commit: String,
    pub machine: String,
}

/// The rows of a width, length and tier.
pub fn find(rows: &[Row], d: u32, t: u32, tier: Tier) -> Option<&Row> {
    rows.iter().find(|r| (r.d, r.t, r.tier) == (d, t, tier))
}

/// Old rows with new ones in their places, in order.
pub fn merged(old: Vec<Row>, new: Vec<Row>) -> Vec<Row> {
    let key = |r: &Row| (r.t, r.d, r.tier);
    let mut all: BTreeMap<_, Row> = old.into_iter().map(|r| (key(&r), r)).collect();
    all.extend(new.into_iter().map(|r| (key(&r), r)));
    all.into_values().collect()
}

/// What a column of a table or an axis has.
pub fn distinct(rows: &[Row], of: impl Fn(&Row) -> u32) -> Vec<u32> {
    let mut all: Vec<u32> = rows.iter().map(of).collect();
    all.sort_unstable();
    all.dedup();
    all
}
