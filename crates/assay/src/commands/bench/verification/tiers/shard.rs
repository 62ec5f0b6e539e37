//! The layer shard: one layer, from the states at its boundaries.

use std::ops::ControlFlow;

use anyhow::{Result, anyhow, bail};
use assay_core::canonical::Canonical as _;
use assay_engine::constants::Constants as _;
use assay_engine::program::layers::Layers;
use assay_verify::shard::{Boundary, Evidence, Shard, boundaries, check_shard};

use super::answer::ROOT;
use super::{HASH_BITS, Measured, cache_bytes};
use crate::commands::bench::tokens;
use crate::commands::bench::verification::Setup;
use crate::commands::bench::verification::clock::core_ms;
use crate::commands::bench::verification::execution::{Base, executor};
use crate::commands::bench::verification::parts::Parts;
use crate::commands::bench::verification::row::Tier;
use crate::commands::bench::verification::shapes::Model;

/// The layer that is checked: the first that attends.
const LAYER: usize = 1;

/// Measures the tier.
pub fn measure(model: &Model, t: u32, setup: &Setup, base: &Base) -> Result<Measured> {
    let one = model.single();
    let (checked, layers) = (one.program(), Layers::of(one.program()));
    let program = checked.program();
    let mut executor = executor(one, setup.kernel);
    let mut states: Vec<Vec<u8>> = vec![];
    boundaries(checked, &mut executor, &tokens(t as usize, program.vocabulary), &mut |_, state| {
        states.push(state.to_canonical_bytes());
        ControlFlow::Continue(())
    });
    let [input, output] = states.as_slice() else { bail!("a layer lies between two states") };
    let shard = Shard { model: ROOT, program: checked, layers: &layers, layer: LAYER };
    let mut rounds = vec![];
    for _ in 0..setup.rounds {
        let mut read = None;
        let decoding = core_ms(|| read = both(input, output));
        let (input, output) = read.ok_or_else(|| anyhow!("states are read as they were written"))?;
        let evidence = Evidence { input: Some(&input), output: Some(&output), ..Evidence::default() };
        let mut verdict = None;
        let checking = core_ms(|| verdict = check_shard(&shard, &evidence, &mut executor).ok());
        if !verdict.is_some_and(|v| v.verdict.holds) {
            bail!("an honest layer does not hold");
        }
        let hashing = core_ms(|| [input.commitment(program), output.commitment(program)]);
        let round = Parts::of("decoding", decoding)
            .plus(&Parts::of("hashing boundaries", hashing))
            .plus(&Parts::of("the layer", (checking - hashing).max(0.0)));
        rounds.push(round.times(1.0 / f64::from(t)));
    }
    let parts = Parts::median(&rounds);
    let (size, positions) = (model.size, f64::from(t));
    // The provider executes all layers once and hashes the state after each.
    let states = f64::from(size.layers + 1);
    let prover = base.reexecution.total() + parts.get("hashing boundaries") / 2.0 * states;
    Ok(Measured {
        tier: Tier::Shard,
        parts,
        from_one_layer: None,
        layers: 1,
        prover_core_ms_per_token: prover,
        bytes_per_token: (input.len() + output.len()) as f64 / positions,
        key_bytes: size.layer_weights() as f64,
        memory_bytes: size.layer_weights() as f64
            + cache_bytes(model, t)
            + (input.len() + output.len()) as f64,
        checked: t,
        soundness_bits: HASH_BITS,
    })
}

fn both(input: &[u8], output: &[u8]) -> Option<(Boundary, Boundary)> {
    Some((Boundary::from_canonical_bytes(input).ok()?, Boundary::from_canonical_bytes(output).ok()?))
}
