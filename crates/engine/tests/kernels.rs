//! Every kernel, batch, chunking and thread count against the reference, on random programs of random shapes with
//! extreme weights.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use assay_engine::cache::Sequence;
use assay_engine::constants::Constants;
use assay_engine::forward::{Executor, Segment};
use assay_engine::kernel::Kernel;
use assay_engine::matrix::{Matrix, store};
use assay_engine::pool::Pool;
use assay_engine::program::layers::Layers;
use assay_engine::program::{Checked, Head, Op, Program, Reach, Shape, TABLE_LEN, Tensor};
use assay_engine::reference::{Reference, Value};
use assay_engine::replay::{ByReference, Execution, LayerExecution, LayerRow, LayerRun, Made};
use assay_engine::semantics::scale::Scale;
use proptest::prelude::*;

/// A model in memory.
struct Model {
    program: Checked,
    matrices: Vec<(Vec<u8>, Vec<u16>)>,
    table: Vec<i32>,
    rotary: Vec<i16>,
}

impl Constants for Model {
    fn program(&self) -> &Checked {
        &self.program
    }
    fn matrix(&self, t: u16) -> Matrix<'_> {
        let (rows, cols, shift) = self.program.matrix_shape(t);
        let (bytes, scales) = &self.matrices[usize::from(t)];
        Matrix::new(rows as usize, cols as usize, shift, bytes, scales).unwrap()
    }
    fn table(&self, _: u16) -> &[i32] {
        &self.table
    }
    fn vector(&self, _: u16) -> &[i32] {
        unreachable!("these programs have no vectors; the conformance vectors cover them")
    }

    fn rotary(&self, _: u16) -> &[i16] {
        &self.rotary
    }
}

/// What weights look like.
#[derive(Clone, Copy, Debug)]
enum Weights {
    Random,
    Zero,
    Lowest,
    OneHot,
}

#[derive(Clone, Debug)]
struct Plan {
    d: u32,
    heads: u32,
    per_kv: u32,
    head_dim: u32,
    ff: u32,
    layers: u32,
    weights: Weights,
    shift: i16,
    reach: Reach,
    seed: u64,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const VOCABULARY: u32 = 19;
const CONTEXT: u32 = 200;

fn model(p: &Plan) -> Model {
    let mut random = Random(p.seed | 1);
    let (mut tensors, mut matrices) = (Vec::new(), Vec::new());
    let mut matrix = |name: String, rows: u32, cols: u32, shift: i16| {
        let w: Vec<i8> = (0..rows * cols)
            .map(|i| match p.weights {
                Weights::Random => random.next() as i8,
                Weights::Zero => 0,
                Weights::Lowest => -128,
                Weights::OneHot => {
                    if i % cols == 3 % cols {
                        127
                    } else {
                        0
                    }
                }
            })
            .collect();
        matrices.push((
            store(rows as usize, cols as usize, &w),
            (0..rows).map(|_| random.next() as u16).collect(),
        ));
        tensors.push(Tensor { name, shape: Shape::Matrix { rows, cols, shift } });
        tensors.len() as u16 - 1
    };
    let kv = p.heads / p.per_kv;
    let (q_len, kv_len) = (p.heads * p.head_dim, kv * p.head_dim);
    let embed = matrix("embed".into(), VOCABULARY, p.d, p.shift);
    let mut layers = Vec::new();
    for l in 0..p.layers {
        layers.push([
            matrix(format!("{l}.qkv"), q_len + 2 * kv_len, p.d, p.shift),
            matrix(format!("{l}.out"), p.d, q_len, p.shift),
            matrix(format!("{l}.gate_up"), 2 * p.ff, p.d, p.shift),
            matrix(format!("{l}.down"), p.d, p.ff, p.shift),
        ]);
    }
    let head = matrix("head".into(), VOCABULARY, p.d, p.shift);
    let rotary = tensors.len() as u16;
    tensors.push(Tensor {
        name: "rotary".into(),
        shape: Shape::Rotary { positions: CONTEXT, pairs: p.head_dim / 2 },
    });
    tensors.push(Tensor { name: "silu".into(), shape: Shape::Table });
    let mut ops = vec![Op::Embed { table: embed }];
    let mut x = 0u16;
    let mut push = |op| {
        ops.push(op);
        ops.len() as u16 - 1
    };
    for (l, [qkv, out, gate_up, down]) in layers.into_iter().enumerate() {
        let n = push(Op::RmsNorm { x, epsilon: 42_950 });
        let a = push(Op::Quantise { x: n, offset: 0, len: p.d, groups: 1 });
        let m = push(Op::MatMul { weights: qkv, x: a });
        let q = push(Op::Rotary { x: m, offset: 0, heads: p.heads, head_dim: p.head_dim, table: rotary });
        let k = push(Op::Rotary { x: m, offset: q_len, heads: kv, head_dim: p.head_dim, table: rotary });
        let q = push(Op::Quantise { x: q, offset: 0, len: q_len, groups: p.heads });
        let k = push(Op::Quantise { x: k, offset: 0, len: kv_len, groups: kv });
        let v = push(Op::Quantise { x: m, offset: q_len + kv_len, len: kv_len, groups: kv });
        let a = push(Op::Attend {
            q,
            k,
            v,
            layer: l as u16,
            heads: p.heads,
            kv_heads: kv,
            head_dim: p.head_dim,
            reach: p.reach,
            scale: Scale::from_u64(94_548, -18),
            cap: None,
            frac: 20,
        });
        let a = push(Op::Quantise { x: a, offset: 0, len: q_len, groups: 1 });
        let a = push(Op::MatMul { weights: out, x: a });
        x = push(Op::Add { x, y: a });
        let n = push(Op::RmsNorm { x, epsilon: 42_950 });
        let a = push(Op::Quantise { x: n, offset: 0, len: p.d, groups: 1 });
        let m = push(Op::MatMul { weights: gate_up, x: a });
        let g = push(Op::Gate { x: m, gate: 0, up: p.ff, len: p.ff, table: rotary + 1 });
        let a = push(Op::Quantise { x: g, offset: 0, len: p.ff, groups: 1 });
        let a = push(Op::MatMul { weights: down, x: a });
        x = push(Op::Add { x, y: a });
    }
    let n = push(Op::RmsNorm { x, epsilon: 42_950 });
    let hidden = push(Op::Quantise { x: n, offset: 0, len: p.d, groups: 1 });
    let m = push(Op::MatMul { weights: head, x: hidden });
    let logits = push(Op::Fix { x: m, offset: 0, len: VOCABULARY, frac: 16 });
    let (context, vocabulary, head) = (CONTEXT, VOCABULARY, Head::Tokens { hidden, logits });
    let program = Program { context, vocabulary, residual_frac: 16, tensors, ops, head };
    let table = (0..TABLE_LEN as i32).map(|i| 32_768 + i * 32).collect();
    let rotary = (0..CONTEXT * p.head_dim)
        .map(|_| (random.next() % 32_769) as i32 - 16_384)
        .map(|v| v as i16)
        .collect();
    Model { program: program.check().unwrap(), matrices, table, rotary }
}

type Trace = (Vec<(Vec<i8>, Scale)>, Vec<Vec<i32>>);

fn by_reference(model: &Model, tokens: &[u32]) -> Trace {
    let program = model.program().program();
    let mut reference = Reference::new(model);
    let (mut hidden, mut logits) = (Vec::new(), Vec::new());
    for t in tokens {
        let values = reference.step(*t, true);
        let (hidden_value, logits_value) = program.tokens();
        let (q, s) = values[usize::from(hidden_value)].int8();
        hidden.push((q.to_vec(), s[0]));
        match &values[usize::from(logits_value)] {
            Value::Integers { v, .. } => logits.push(v.clone()),
            Value::Int8 { .. } => unreachable!(),
        }
    }
    (hidden, logits)
}

/// Executes several token lists in one batch, each cut into chunks of `chunk`.
fn by_batch(
    model: &Arc<Model>,
    kernel: Kernel,
    threads: usize,
    lists: &[Vec<u32>],
    chunk: usize,
) -> Vec<Trace> {
    let constants: Arc<dyn Constants> = model.clone();
    let mut executor = Executor::new(constants, kernel, Arc::new(Pool::new(threads)));
    let mut sequences: Vec<Sequence> =
        lists.iter().map(|l| Sequence::new(model.program().caches(), l.len())).collect();
    let mut traces: Vec<Trace> = vec![(Vec::new(), Vec::new()); lists.len()];
    let longest = lists.iter().map(Vec::len).max().unwrap();
    for from in (0..longest).step_by(chunk) {
        let part = |l: &Vec<u32>| from.min(l.len())..(from + chunk).min(l.len());
        let live: Vec<usize> = (0..lists.len()).filter(|i| !part(&lists[*i]).is_empty()).collect();
        let mut segments: Vec<Segment<'_>> = sequences
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| live.contains(i))
            .map(|(i, sequence)| Segment { sequence, tokens: &lists[i][part(&lists[i])], logits_from: 0 })
            .collect();
        let output = executor.forward(&mut segments);
        let mut row = 0;
        for i in live {
            for _ in part(&lists[i]) {
                let (q, s) = output.hidden(row);
                traces[i].0.push((q.to_vec(), s));
                traces[i].1.push(output.logits(row).to_vec());
                row += 1;
            }
        }
    }
    traces
}

fn plans() -> impl Strategy<Value = Plan> {
    let weights = prop_oneof![
        4 => Just(Weights::Random),
        1 => Just(Weights::Zero),
        1 => Just(Weights::Lowest),
        1 => Just(Weights::OneHot),
    ];
    let heads = prop_oneof![Just((1, 1)), Just((2, 1)), Just((4, 2)), Just((6, 3))];
    let head_dim = prop_oneof![Just(4u32), Just(8), Just(20), Just(64), Just(80), Just(132)];
    // Shifts from tame to saturating.
    let shift = prop_oneof![3 => 20i16..28, 1 => 0i16..20];
    let reach = prop_oneof![Just(Reach::Past), (1u32..150).prop_map(Reach::Window)];
    (1u32..90, heads, head_dim, 1u32..150, 1u32..3, weights, shift, reach, any::<u64>()).prop_map(
        |(d, (heads, per_kv), head_dim, ff, layers, weights, shift, reach, seed)| Plan {
            d,
            heads,
            per_kv,
            head_dim,
            ff,
            layers,
            weights,
            shift,
            reach,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn every_kernel_equals_the_reference(
        plan in plans(),
        lengths in prop::collection::vec(1usize..100, 1..4),
        chunk in 1usize..110,
        threads in 1usize..4,
    ) {
        let model = Arc::new(model(&plan));
        let mut random = Random(plan.seed | 1);
        let lists: Vec<Vec<u32>> = lengths
            .iter()
            .map(|n| (0..*n).map(|_| (random.next() % u64::from(VOCABULARY)) as u32).collect())
            .collect();
        let want: Vec<Trace> = lists.iter().map(|l| by_reference(&model, l)).collect();
        for kernel in Kernel::available() {
            let got = by_batch(&model, kernel, threads, &lists, chunk);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                for p in 0..want.0.len() {
                    prop_assert_eq!(&got.0[p], &want.0[p], "{:?}: hidden vector of list {} at {}", kernel, i, p);
                    prop_assert_eq!(&got.1[p], &want.1[p], "{:?}: logits of list {} at {}", kernel, i, p);
                }
            }
        }
    }

    #[test]
    fn every_trace_equals_the_reference(
        plan in plans(),
        length in 1usize..80,
        ends in (0usize..80, 1usize..40),
        logits_from in 0usize..90,
        run in 1usize..40,
        threads in 1usize..3,
    ) {
        let model = Arc::new(model(&plan));
        let mut random = Random(plan.seed | 1);
        let tokens: Vec<u32> = (0..length).map(|_| (random.next() % u64::from(VOCABULARY)) as u32).collect();
        let start = ends.0 % length;
        let positions = start..(start + ends.1).min(length);
        let trace = |execution: &mut dyn Execution| {
            let mut all: Vec<Made> = Vec::new();
            execution.trace_runs(&tokens, positions.clone(), run, logits_from, &mut |made| all.push(made));
            all
        };
        let want = trace(&mut ByReference(model.as_ref()));
        for kernel in Kernel::available() {
            let constants: Arc<dyn Constants> = model.clone();
            let got = trace(&mut Executor::new(constants, kernel, Arc::new(Pool::new(threads))));
            for (got, want) in got.iter().zip(&want) {
                prop_assert_eq!(got, want, "{:?}", kernel);
            }
            prop_assert_eq!(got.len(), want.len());
        }
    }
}

/// What a layer hands on, or what the last one makes.
fn made(execution: &mut dyn LayerExecution, run: &LayerRun<'_>) -> (Vec<i32>, Trace) {
    let (mut state, mut hidden, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    execution.execute_layer(run, &mut |row| match row {
        LayerRow::State { numbers, .. } => state.extend_from_slice(numbers),
        LayerRow::Token(row) => {
            hidden.push((row.hidden.0.to_vec(), row.hidden.1));
            logits.extend(row.logits.map(<[i32]>::to_vec));
        }
        LayerRow::Pooled(_) => unreachable!("these programs make tokens"),
    });
    (state, (hidden, logits))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// From any numbers, those included that no execution makes.
    #[test]
    fn every_layer_equals_the_reference(
        plan in plans(),
        length in 1usize..160,
        logits_from in 0usize..170,
        size in 0u32..32,
        threads in 1usize..3,
    ) {
        let model = Arc::new(model(&plan));
        let mut random = Random(plan.seed | 1);
        let tokens: Vec<u32> = (0..length).map(|_| (random.next() % u64::from(VOCABULARY)) as u32).collect();
        let layers = Layers::of(model.program());
        prop_assert_eq!(layers.all().len(), plan.layers as usize + 2);
        for (i, layer) in layers.all().iter().enumerate() {
            let numbers = if i == 0 { 0 } else { length * plan.d as usize };
            let state: Vec<i32> = (0..numbers).map(|_| (random.next() as i32) >> size).collect();
            let run = LayerRun { layer, tokens: &tokens, state: &state, logits_from };
            let want = made(&mut ByReference(model.as_ref()), &run);
            for kernel in Kernel::available() {
                let constants: Arc<dyn Constants> = model.clone();
                let got = made(&mut Executor::new(constants, kernel, Arc::new(Pool::new(threads))), &run);
                prop_assert_eq!(&got, &want, "{:?}, layer {}", kernel, i);
            }
        }
    }
}
