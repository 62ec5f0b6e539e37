//! What layer shards cost beside a full check: an artifact's own layers, on two threads.
//!
//!     cargo run --release -p assay-verify --example shard_cost -- MODEL.assay [POSITIONS [ROUNDS]]
//!
//! Times are by the clock, the fastest of the rounds; ids are arbitrary.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use assay_core::canonical::Canonical as _;
use assay_engine::artifact::Artifact;
use assay_engine::artifact::layer::{LayerModel, extract};
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::layers::Layers;
use assay_engine::replay::{Execution as _, LayerExecution as _, LayerRun};
use assay_verify::shard::{Boundary, Evidence, Shard, boundaries, check_shard};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, or: usize| arguments.get(i).map_or(or, |a| a.parse().expect("a number"));
    let (count, rounds) = (number(1, 512), number(2, 3));
    let artifact = Arc::new(Artifact::open(Path::new(&arguments[0])).unwrap());
    let checked = artifact.program();
    let program = checked.program();
    let tokens: Vec<u32> = (0..count as u32).map(|i| i.wrapping_mul(7919) % program.vocabulary).collect();
    let pool = Arc::new(Pool::new(2));
    let engine = |c: Arc<dyn Constants>| Executor::new(c, Kernel::available()[0], Arc::clone(&pool));
    let best = |work: &mut dyn FnMut()| {
        let time = |_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        };
        (0..rounds).map(time).fold(f64::MAX, f64::min)
    };

    let mut whole = engine(artifact.shared());
    let full = best(&mut || whole.replay(&tokens, count - 1, &mut |_| {}));
    println!("{full:>10.1} ms  full execution of {count} positions, {} bytes of model", artifact.len());
    let mut states: Vec<Boundary> = Vec::new();
    let told = best(&mut || {
        states.clear();
        boundaries(checked, &mut whole, &tokens, &mut |_, state| {
            states.push(state.clone());
            ControlFlow::Continue(())
        });
    });
    println!("{told:>10.1} ms  the states of {} boundaries", states.len());
    let committed = best(&mut || {
        states.iter().for_each(|s| {
            std::hint::black_box(s.commitment(program));
        });
    });
    println!(
        "{committed:>10.1} ms  their commitments; a state has {} bytes",
        states[0].to_canonical_bytes().len()
    );
    let start = Instant::now();
    let tree = ModelTree::new(artifact.as_ref(), artifact.text(), artifact.tokenizer_json());
    println!("{:>10.1} ms  the model's tree", start.elapsed().as_secs_f64() * 1e3);

    let layers = Layers::of(checked);
    let mut all = 0.0;
    for (layer, of) in layers.all().iter().enumerate() {
        let bytes = extract(artifact.as_ref(), &tree, layer).unwrap();
        let start = Instant::now();
        let model = Arc::new(LayerModel::read(&bytes, tree.root()).unwrap());
        let read = start.elapsed().as_secs_f64() * 1e3;
        let mut executor = engine(model.clone());
        let input = layer.checked_sub(1).map(|i| &states[i]);
        let evidence = Evidence { input, output: states.get(layer), ..Evidence::default() };
        let ends = layer == 0 || layer + 1 == layers.all().len();
        let time = best(&mut || match ends {
            // The ends are checked against a record, which random ids have none of: this is their execution.
            true => {
                let state = input.map_or(&[][..], Boundary::numbers);
                let run = LayerRun { layer: of, tokens: &tokens, state, logits_from: count - 1 };
                executor.execute_layer(&run, &mut |_| {});
            }
            false => {
                let verdict = check_shard(&Shard::of(&model), &evidence, &mut executor).unwrap();
                assert!(verdict.verdict.holds);
            }
        });
        all += time;
        println!("{time:>10.1} ms  layer {layer}: {} bytes, read and proved in {read:.1} ms", bytes.len());
    }
    println!("{all:>10.1} ms  all layers together: {:.2} of the full execution", all / full);
}
