//! What a light audit costs, for models of four sizes with random weights that all layers share.
//!
//!     cargo run --release -p assay-verify --example light_cost -- WIDTH [LAYERS [POSITIONS [TOKENS [ROUNDS]]]]
//!
//! Widths are 576, 2048, 4096 and 8192 (SmolLM2-135M's shape, Llama 3's of 1, 8 and 70 billion). Times of checks are those of one core; the others are
//! of two threads, by the clock.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../tests/honest/mod.rs"]
mod honest;
#[path = "../tests/small/mod.rs"]
mod small;

use std::sync::Arc;
use std::time::Instant;

use assay_core::canonical::Canonical as _;
use assay_core::id::Hash;
use assay_core::request::Sampling;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::Reach;
use assay_verify::light::{Challenge, Checker, Fed, Key, Known, Model, Opening, Prover, Secret, Seed};
use small::{Plan, Random, small};

/// Width, layers, heads, KV heads, head size, gated width, vocabulary.
const SHAPES: [[u32; 7]; 4] = [
    [576, 30, 9, 3, 64, 1536, 49_152],
    [2048, 16, 32, 8, 64, 8192, 128_256],
    [4096, 32, 32, 8, 128, 14_336, 128_256],
    [8192, 80, 64, 8, 128, 28_672, 128_256],
];

fn main() {
    let arguments: Vec<u32> =
        std::env::args().skip(1).map(|a| a.parse().expect("arguments are numbers")).collect();
    let width = arguments.first().copied().unwrap_or(576);
    let [d, layers, heads, kv_heads, head_dim, ff, vocabulary] =
        *SHAPES.iter().find(|s| s[0] == width).expect("a width that is known");
    let layers = arguments.get(1).copied().unwrap_or(layers);
    let positions = arguments.get(2).copied().unwrap_or(512);
    let tokens = arguments.get(3).copied().unwrap_or(8);
    let plan = Plan {
        d,
        heads,
        per_kv: heads / kv_heads,
        head_dim,
        ff,
        layers,
        reach: Reach::Past,
        positions: false,
        tied: false,
        vocabulary,
        context: 4096,
        packed: false,
        alike: true,
        seed: 1,
    };
    let model = Arc::new(small(&plan));
    let kernel = Kernel::available()[0];
    let pool = Arc::new(Pool::new(2));
    let mut timed = Instant::now();
    let mut lap = |what: &str| {
        println!("{:>10.1} ms  {what}", timed.elapsed().as_secs_f64() * 1e3);
        timed = Instant::now();
    };
    let secret = Secret { seed: Seed::from_bytes([1; 32]), epoch: 1 };
    let source = Model { constants: model.as_ref(), root: model.root(), kernel, pool: &pool };
    let key = Key::make(&source, secret, positions).unwrap();
    lap("key made");
    let bytes = key.to_canonical_bytes();
    lap(&format!("key written, {} bytes", bytes.len()));
    let key = Key::from_canonical_bytes(&bytes).unwrap();
    lap("key read");
    let mut checker = Checker::new(&key, kernel, Arc::new(Pool::new(1))).unwrap();
    lap("key expanded");
    let mut random = Random(7);
    let written = 16.min(positions - 1);
    let prompt = (0..=positions - written).map(|_| (random.next() % u64::from(vocabulary)) as u32).collect();
    let sampling = Sampling { temperature_micro: 700_000, top_p_micro: 950_000, ..Sampling::GREEDY };
    let record = model.answer(prompt, written as usize, sampling, None);
    lap("answered");
    let fed = Fed::of(&record.transcript).unwrap();
    let mut executor = Executor::new(model.clone(), kernel, pool);
    let mut prover = Prover::new(&mut executor).unwrap();
    let challenge = Challenge { beacon: Hash::ZERO, trace: prover.commit(&fed), tokens };
    lap("committed");
    let opening = prover.open(&fed, &challenge.draw(record.receipt.receipt.id(), &fed));
    lap("opened");
    let bytes = opening.to_canonical_bytes();
    lap(&format!("opening written, {} bytes", bytes.len()));
    let opening = Opening::from_canonical_bytes(&bytes).unwrap();
    lap("opening read");
    let rounds = arguments.get(4).copied().unwrap_or(5);
    let mut best = f64::MAX;
    for round in 0..rounds {
        let opening = opening.clone();
        let start = on_core();
        let audit = checker.check(&record, &challenge, opening, Known::default()).unwrap();
        best = best.min((on_core() - start) as f64 / 1e6);
        assert!(audit.verdict.holds, "{audit:?}");
        if round == 0 {
            println!("{:?}", audit.cost);
        }
    }
    println!(
        "{best:>10.1} ms  checked, the fastest of {rounds}: {:.2} core-ms a token",
        best / f64::from(tokens)
    );
}

/// Nanoseconds that this thread was on a core.
fn on_core() -> u64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    times.split(' ').next().unwrap().parse().unwrap()
}
