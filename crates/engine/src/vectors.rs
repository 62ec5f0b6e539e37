//! Conformance vectors: hashes that every engine for a profile must reproduce, on any machine.
//!
//! Inputs come from a fixed generator (xorshift64 with shifts 13, 7, 17, from the seed that each vector names); each hash is
//! Keccak-256 over the results, numbers big-endian in their width. The programs exercise every operation over shapes with
//! tails and weights at their ends. Packed matrices are put group by group, row by row: a scale of -63 to 63, then 32 numbers of -8
//! to 7, of which the last group needs fewer.

use std::sync::Arc;

use assay_core::id::Hash;
use assay_core::keccak::keccak256;
use assay_core::request::Sampling;

use crate::artifact::Profile;
use crate::cache::Sequence;
use crate::constants::Constants;
use crate::forward::{Executor, Segment};
use crate::kernel::Kernel;
use crate::matrix::{Matrix, packed, store};
use crate::pool::Pool;
use crate::program::{
    Checked, Head, LOGIT_FRAC, Op, Pooling, Program, Reach, Shape, SoftCap, TABLE_LEN, Tensor, TensorId,
    ValueId,
};
use crate::reference::Reference;
use crate::semantics::exp2::{exp2_likelihood, exp2_weight};
use crate::semantics::fixed::{isqrt, rsh, shift_sat};
use crate::semantics::norm::rms_scale;
use crate::semantics::quantise::quantise;
use crate::semantics::sample::sample;
use crate::semantics::scale::Scale;

/// One vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// What it covers.
    pub name: String,
    /// The hash.
    pub hash: Hash,
}

/// Matrices whose rows are looked up: no profile packs them.
const TABLES: [&str; 2] = ["embed", "positions"];

/// Whether a matrix is packed, its weights as they are stored, and its row scales.
type Stored = (bool, Vec<u8>, Vec<u16>);

/// The generator of all inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A matrix of any weights, with its row scales.
    fn matrix(&mut self, packed: bool, rows: u32, cols: u32) -> Stored {
        let (rows, cols) = (rows as usize, cols as usize);
        let stored = if packed {
            packed::store(rows, cols, |_, cols| {
                let g = (self.next() % 127) as i32 - 63;
                (g, cols.map(|_| (self.next() % 16) as i8 - 8).collect())
            })
        } else {
            let w: Vec<i8> = (0..rows * cols).map(|_| self.next() as i8).collect();
            store(rows, cols, &w)
        };
        (packed, stored, (0..rows).map(|_| self.next() as u16).collect())
    }

    /// A 32-bit number of random size.
    fn sized(&mut self) -> i32 {
        let bits = self.next() % 32;
        (self.next() as i32) >> bits
    }
}

/// Computes all vectors of a profile; programs run on the reference, or on a kernel, which must give the same.
pub fn compute(profile: Profile, kernel: Option<Kernel>) -> Vec<Vector> {
    let functions = match profile {
        Profile::Int8 => vec![
            ("rounding", rounding()),
            ("scales", scales()),
            ("powers", powers()),
            ("quantise", quantised()),
            ("norm", norms()),
            ("sample", samples()),
        ],
        Profile::Int4 => vec![("worth", worths())],
    };
    let mut all: Vec<Vector> = functions
        .iter()
        .map(|(name, bytes)| Vector { name: (*name).to_owned(), hash: keccak256(&[bytes]) })
        .collect();
    for (i, shape) in SHAPES.iter().enumerate() {
        let bytes = execute(&Arc::new(Model::new(shape, profile)), kernel);
        all.push(Vector { name: format!("program-{}", i + 1), hash: keccak256(&[&bytes]) });
    }
    for (i, shape) in SHAPES.iter().enumerate() {
        let bytes = encode(&Arc::new(Model::encoder(shape, profile)), kernel);
        all.push(Vector { name: format!("encoder-{}", i + 1), hash: keccak256(&[&bytes]) });
    }
    all
}

/// Programs that vectors execute, with their constants: first those that make tokens, then encoders. Small, odd in every
/// dimension, and with every operation, they serve other tests, too. Of those with packed matrices there is a plain one, one with every
/// operation, and an encoder.
pub fn models() -> Vec<Arc<dyn Constants>> {
    let decoders = SHAPES.iter().map(|s| Model::new(s, Profile::Int8));
    let packed = [&SHAPES[0], &SHAPES[3]].map(|s| Model::new(s, Profile::Int4));
    let encoders = SHAPES.iter().map(|s| Model::encoder(s, Profile::Int8));
    let all = decoders.chain(packed).chain(encoders).chain([Model::encoder(&SHAPES[1], Profile::Int4)]);
    all.map(|m| Arc::new(m) as Arc<dyn Constants>).collect()
}

/// What every number is worth with every scale.
fn worths() -> Vec<u8> {
    (-63..=63).flat_map(|g| (-8..8).map(move |q| packed::worth(q, g) as i8 as u8)).collect()
}

fn rounding() -> Vec<u8> {
    let mut r = Random(1);
    let mut out = Vec::new();
    for _ in 0..4096 {
        let v = (r.next() as i64) >> (2 + r.next() % 60);
        let s = (r.next() % 63) as u32;
        out.extend(rsh(v, s).to_be_bytes());
        out.extend(shift_sat(v, (r.next() % 140) as i32 - 50).to_be_bytes());
        out.extend(isqrt(v.unsigned_abs()).to_be_bytes());
    }
    out
}

fn push_scale(out: &mut Vec<u8>, s: Scale) {
    out.extend(s.mantissa.to_be_bytes());
    out.extend(s.exponent.to_be_bytes());
}

fn scales() -> Vec<u8> {
    let mut r = Random(2);
    let mut out = Vec::new();
    for _ in 0..4096 {
        let a = Scale::from_u64(r.next() >> (r.next() % 64), (r.next() % 200) as i32 - 100);
        let b = Scale::from_u64(r.next() >> (r.next() % 64), (r.next() % 70_000) as i32 - 35_000);
        push_scale(&mut out, a);
        push_scale(&mut out, a.times(b));
        out.extend(a.to_fixed(r.sized(), (r.next() % 29) as u32).to_be_bytes());
    }
    out
}

fn powers() -> Vec<u8> {
    (0..=40u32 << 16)
        .step_by(97)
        .chain([u32::MAX])
        .flat_map(|d| [exp2_weight(d), exp2_likelihood(d)])
        .flat_map(u32::to_be_bytes)
        .collect()
}

fn quantised() -> Vec<u8> {
    let mut r = Random(3);
    let mut out = Vec::new();
    for n in 1..200 {
        let shift = r.next() % 32;
        let v: Vec<i32> = (0..n).map(|_| (r.next() as i32) >> shift).collect();
        let mut q = vec![0i8; n];
        let s = quantise(&v, Scale::power(-16), &mut q);
        out.extend(q.iter().map(|q| *q as u8));
        push_scale(&mut out, s);
    }
    out
}

fn norms() -> Vec<u8> {
    let mut r = Random(4);
    let mut out = Vec::new();
    for n in 1..200 {
        let x: Vec<i32> = (0..n).map(|_| r.sized()).collect();
        push_scale(&mut out, rms_scale(&x, r.next() >> (20 + r.next() % 40)));
    }
    out
}

fn samples() -> Vec<u8> {
    let mut r = Random(5);
    let mut out = Vec::new();
    for i in 0..512u32 {
        let logits: Vec<i32> = (0..97).map(|_| (r.next() % (1 << 20)) as i32 - (1 << 19)).collect();
        let sampling = Sampling {
            temperature_micro: (r.next() % 2_000_001) as u32,
            top_k: (r.next() % 50) as u32,
            top_p_micro: 1 + (r.next() % 1_000_000) as u32,
            min_p_micro: (r.next() % 200_000) as u32,
            ..Sampling::GREEDY
        };
        out.extend(sample(&logits, None, &sampling, &[i as u8; 32], i).to_be_bytes());
    }
    out
}

/// A model of two layers in memory.
struct Model {
    profile: Profile,
    program: Checked,
    matrices: Vec<Stored>,
    vectors: Vec<(TensorId, Vec<i32>)>,
    table: Vec<i32>,
    rotary: Vec<i16>,
}

struct ModelShape {
    dim: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    hidden: u32,
    shift: i16,
    seed: u64,
    /// Biases, head norms, a window, soft caps and norms after the layers.
    rich: bool,
}

/// Tame numbers, tails everywhere, numbers that saturate; then the operations that only some families have.
const SHAPES: [ModelShape; 5] = [
    shape(64, [4, 2, 16], 172, 24, 11, false),
    shape(77, [3, 1, 68], 131, 25, 12, false),
    shape(33, [2, 2, 8], 40, 6, 13, false),
    shape(52, [4, 2, 20], 96, 24, 14, true),
    shape(36, [2, 1, 12], 40, 7, 15, true),
];

const fn shape(
    dim: u32,
    [heads, kv_heads, head_dim]: [u32; 3],
    hidden: u32,
    shift: i16,
    seed: u64,
    rich: bool,
) -> ModelShape {
    ModelShape { dim, heads, kv_heads, head_dim, hidden, shift, seed, rich }
}

const VOCABULARY: u32 = 83;
const CONTEXT: u32 = 96;

impl Model {
    fn new(s: &ModelShape, profile: Profile) -> Model {
        let mut r = Random(s.seed);
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let mut tensors = Vec::new();
        let mut matrices = Vec::new();
        let mut matrix = |name: String, rows: u32, cols: u32| {
            matrices.push(r.matrix(profile == Profile::Int4 && !TABLES.contains(&&*name), rows, cols));
            tensors.push(Tensor { name, shape: Shape::Matrix { rows, cols, shift: s.shift } });
        };
        matrix("embed".into(), VOCABULARY, s.dim);
        for l in 0..2 {
            matrix(format!("{l}.qkv"), q + 2 * kv, s.dim);
            matrix(format!("{l}.out"), s.dim, q);
            matrix(format!("{l}.gate_up"), 2 * s.hidden, s.dim);
            matrix(format!("{l}.down"), s.dim, s.hidden);
        }
        matrix("head".into(), VOCABULARY, s.dim);
        let rotary = Shape::Rotary { positions: CONTEXT, pairs: s.head_dim / 2 };
        tensors.push(Tensor { name: "rotary".into(), shape: rotary });
        tensors.push(Tensor { name: "table".into(), shape: Shape::Table });
        let mut vectors = Vectors { tensors, numbers: Vec::new() };
        let ops = ops(s, &mut vectors, &mut r);
        let last = (ops.len() - 1) as ValueId;
        // With a bend after the logits there is one operation more.
        let hidden = last - if s.rich { 3 } else { 2 };
        Model::finish(
            profile,
            vectors,
            matrices,
            ops,
            Head::Tokens { hidden, logits: last },
            &mut r,
            s.head_dim,
        )
    }

    /// An encoder of two layers: learned positions, layer norms, transforms, a function of its own, means.
    fn encoder(s: &ModelShape, profile: Profile) -> Model {
        let mut r = Random(s.seed + 100);
        let dim = s.heads * s.head_dim;
        let (mut tensors, mut matrices) = (Vec::new(), Vec::new());
        let mut matrix = |name: String, rows: u32, cols: u32| {
            matrices.push(r.matrix(profile == Profile::Int4 && !TABLES.contains(&&*name), rows, cols));
            tensors.push(Tensor { name, shape: Shape::Matrix { rows, cols, shift: s.shift } });
        };
        let inner = s.hidden.next_multiple_of(8);
        matrix("embed".into(), VOCABULARY, dim);
        matrix("positions".into(), CONTEXT, dim);
        for l in 0..2 {
            matrix(format!("{l}.qkv"), 3 * dim, dim);
            matrix(format!("{l}.out"), dim, dim);
            matrix(format!("{l}.up"), inner, dim);
            matrix(format!("{l}.down"), dim, inner);
        }
        tensors.push(Tensor { name: "table".into(), shape: Shape::Table });
        let mut v = Vectors { tensors, numbers: Vec::new() };
        let (heads, head_dim, table) = (s.heads, s.head_dim, 10);
        let mut ops = vec![Op::Embed { table: 0 }, Op::Position { table: 1 }, Op::Add { x: 0, y: 1 }];
        let mut push = |op| {
            ops.push(op);
            (ops.len() - 1) as ValueId
        };
        let mut x = 2;
        for l in 0..2u16 {
            let mut linear = |push: &mut dyn FnMut(Op) -> ValueId, x, cols: u32, rows, weights| {
                let x = push(Op::Hadamard { x, block: 1 << cols.trailing_zeros().min(7) });
                let x = push(Op::Quantise { x, offset: 0, len: cols, groups: 1 });
                let x = push(Op::MatMul { weights, x });
                let bias = v.vector(rows, 20, &mut r);
                push(Op::Bias { x, bias })
            };
            let qkv = linear(&mut push, x, dim, 3 * dim, 2 + 4 * l);
            let [q, k, values] = [0, dim, 2 * dim]
                .map(|offset| push(Op::Quantise { x: qkv, offset, len: dim, groups: heads }));
            let (scale, cap) = (Scale { mantissa: 47_274, exponent: -17 }, None);
            let (kv_heads, reach) = (heads, Reach::All);
            let a = push(Op::Attend {
                q,
                k,
                v: values,
                layer: l,
                reach,
                heads,
                kv_heads,
                head_dim,
                scale,
                cap,
                frac: 20,
            });
            let y = linear(&mut push, a, dim, dim, 3 + 4 * l);
            x = push(Op::Add { x, y });
            let y = linear(&mut push, x, dim, inner, 4 + 4 * l);
            let y = push(Op::Activate { x: y, table });
            let y = linear(&mut push, y, inner, dim, 5 + 4 * l);
            x = push(Op::Add { x, y });
            let (gain, bias) = (v.vector(dim, 20, &mut r), Some(v.vector(dim, 16, &mut r)));
            x = push(Op::Normalise { x, groups: 1, center: true, epsilon: 42_950, gain, bias, frac: 16 });
        }
        let pooled = push(Op::Pool { x, pooling: Pooling::Mean });
        Model::finish(profile, v, matrices, ops, Head::Vector { pooled }, &mut r, head_dim)
    }

    fn finish(
        profile: Profile,
        vectors: Vectors,
        matrices: Vec<Stored>,
        ops: Vec<Op>,
        head: Head,
        r: &mut Random,
        head_dim: u32,
    ) -> Model {
        let Vectors { tensors, numbers } = vectors;
        let (context, vocabulary) = (CONTEXT, VOCABULARY);
        let program = Program { context, vocabulary, residual_frac: 16, tensors, ops, head };
        // Any rising table and any angles will do: they are data.
        let table = (0..TABLE_LEN as i32).map(|i| 32_768 + i * 32).collect();
        let rotary = (0..CONTEXT * head_dim).map(|_| (r.next() % 32_769) as u16 as i32 - 16_384);
        let rotary = rotary.map(|v| v as i16).collect();
        let program = program.check().expect("the programs of vectors are valid");
        Model { profile, program, matrices, vectors: numbers, table, rotary }
    }
}

/// Tensors so far, and the numbers of those that are vectors.
struct Vectors {
    tensors: Vec<Tensor>,
    numbers: Vec<(TensorId, Vec<i32>)>,
}

impl Vectors {
    /// Numbers of both signs, from small ones to the largest.
    fn vector(&mut self, len: u32, frac: u8, r: &mut Random) -> TensorId {
        let id = self.tensors.len() as TensorId;
        let numbers = (0..len).map(|_| r.sized() >> 2).map(|v| v.max(1 - (1 << 29))).collect();
        self.tensors.push(Tensor { name: format!("vector {id}"), shape: Shape::Vector { len, frac } });
        self.numbers.push((id, numbers));
        id
    }
}

fn ops(s: &ModelShape, vectors: &mut Vectors, r: &mut Random) -> Vec<Op> {
    let (q_len, kv_len) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let (heads, kv_heads, head_dim, table) = (s.heads, s.kv_heads, s.head_dim, 10);
    let cap = s.rich.then_some(SoftCap { limit: 5 << 16, table: 11 });
    let mut ops = vec![Op::Embed { table: 0 }];
    let mut push = |op| {
        ops.push(op);
        (ops.len() - 1) as ValueId
    };
    let mut x = 0;
    for l in 0..2u16 {
        let n = push(Op::RmsNorm { x, epsilon: 42_950 });
        let a = push(Op::Quantise { x: n, offset: 0, len: s.dim, groups: 1 });
        let mut m = push(Op::MatMul { weights: 1 + 4 * l, x: a });
        if s.rich {
            let bias = vectors.vector(q_len + 2 * kv_len, 20, r);
            m = push(Op::Bias { x: m, bias });
        }
        let mut turned = |offset, heads: u32| {
            let len = heads * head_dim;
            let (mut x, mut from) = (m, offset);
            if s.rich {
                let (groups, gain) = (heads, vectors.vector(head_dim, 14, r));
                let x_fixed = push(Op::Fix { x, offset, len, frac: 20 });
                let (epsilon, frac) = (1 << 20, 18);
                let (center, bias) = (false, None);
                x = push(Op::Normalise { x: x_fixed, groups, center, epsilon, gain, bias, frac });
                from = 0;
            }
            let x = push(Op::Rotary { x, offset: from, heads, head_dim, table });
            push(Op::Quantise { x, offset: 0, len, groups: heads })
        };
        let (q, k) = (turned(0, heads), turned(q_len, kv_heads));
        let v = push(Op::Quantise { x: m, offset: q_len + kv_len, len: kv_len, groups: kv_heads });
        let scale = Scale { mantissa: 47_274, exponent: -17 };
        let reach = if s.rich && l == 0 { Reach::Window(17) } else { Reach::Past };
        let a =
            push(Op::Attend { q, k, v, layer: l, reach, heads, kv_heads, head_dim, scale, cap, frac: 20 });
        let a = push(Op::Quantise { x: a, offset: 0, len: q_len, groups: 1 });
        let mut a = push(Op::MatMul { weights: 2 + 4 * l, x: a });
        if s.rich {
            let gain = vectors.vector(s.dim, 14, r);
            a = push(Op::Fix { x: a, offset: 0, len: s.dim, frac: 16 });
            let (groups, center, epsilon, bias, frac) = (1, false, 42_950, None, 16);
            a = push(Op::Normalise { x: a, groups, center, epsilon, gain, bias, frac });
        }
        x = push(Op::Add { x, y: a });
        let n = push(Op::RmsNorm { x, epsilon: 42_950 });
        let a = push(Op::Quantise { x: n, offset: 0, len: s.dim, groups: 1 });
        let m = push(Op::MatMul { weights: 3 + 4 * l, x: a });
        let g = push(Op::Gate { x: m, gate: 0, up: s.hidden, len: s.hidden, table: 11 });
        let a = push(Op::Quantise { x: g, offset: 0, len: s.hidden, groups: 1 });
        let a = push(Op::MatMul { weights: 4 + 4 * l, x: a });
        x = push(Op::Add { x, y: a });
    }
    let n = push(Op::RmsNorm { x, epsilon: 42_950 });
    let hidden = push(Op::Quantise { x: n, offset: 0, len: s.dim, groups: 1 });
    let m = push(Op::MatMul { weights: 9, x: hidden });
    let logits = push(Op::Fix { x: m, offset: 0, len: VOCABULARY, frac: LOGIT_FRAC });
    if let Some(cap) = cap {
        push(Op::Bend { x: logits, cap });
    }
    ops
}

impl Constants for Model {
    fn program(&self) -> &Checked {
        &self.program
    }

    fn profile(&self) -> Profile {
        self.profile
    }

    fn matrix(&self, t: u16) -> Matrix<'_> {
        let (rows, cols, shift) = self.program.matrix_shape(t);
        let (packed, bytes, scales) = &self.matrices[usize::from(t)];
        let of = if *packed { Matrix::packed } else { Matrix::new };
        of(rows as usize, cols as usize, shift, bytes, scales).expect("lengths follow from the shape")
    }

    fn table(&self, _: u16) -> &[i32] {
        &self.table
    }

    fn rotary(&self, _: u16) -> &[i16] {
        &self.rotary
    }

    fn vector(&self, t: u16) -> &[i32] {
        let found = self.vectors.iter().find(|(id, _)| *id == t);
        found.map(|(_, v)| v.as_slice()).expect("a checked program names vectors as vectors")
    }
}

/// Pooled vectors of sequences of several lengths.
fn encode(model: &Arc<Model>, kernel: Option<Kernel>) -> Vec<u8> {
    let mut r = Random(98);
    let inputs: Vec<Vec<u32>> = [1, 2, 33, CONTEXT]
        .iter()
        .map(|n| (0..*n).map(|_| (r.next() % u64::from(VOCABULARY)) as u32).collect())
        .collect();
    let inputs: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    let pooled: Vec<Vec<i32>> = match kernel {
        None => inputs.iter().map(|tokens| Reference::encode(model.as_ref(), tokens)).collect(),
        Some(kernel) => Executor::new(model.clone(), kernel, Arc::new(Pool::new(2))).encode(&inputs),
    };
    pooled.iter().flatten().flat_map(|v| v.to_be_bytes()).collect()
}

/// Hidden vectors and logits at every position of a full context.
fn execute(model: &Arc<Model>, kernel: Option<Kernel>) -> Vec<u8> {
    let mut r = Random(99);
    let tokens: Vec<u32> = (0..CONTEXT).map(|_| (r.next() % u64::from(VOCABULARY)) as u32).collect();
    let mut out = Vec::new();
    let mut push = |hidden: &[i8], scale: Scale, logits: &[i32]| {
        out.extend(hidden.iter().map(|q| *q as u8));
        push_scale(&mut out, scale);
        out.extend(logits.iter().flat_map(|l| l.to_be_bytes()));
    };
    match kernel {
        None => {
            let mut reference = Reference::new(model.as_ref());
            for t in tokens {
                let values = reference.step(t, true);
                let (hidden, logits) = model.program.program().tokens();
                let (q, s) = values[usize::from(hidden)].int8();
                push(q, s[0], values[usize::from(logits)].integers().0);
            }
        }
        Some(kernel) => {
            let mut executor = Executor::new(model.clone(), kernel, Arc::new(Pool::new(2)));
            let mut sequence = Sequence::new(model.program.caches(), tokens.len());
            for chunk in tokens.chunks(31) {
                let output = executor.forward(&mut [Segment {
                    sequence: &mut sequence,
                    tokens: chunk,
                    logits_from: 0,
                }]);
                for i in 0..chunk.len() {
                    let (q, s) = output.hidden(i);
                    push(q, s, output.logits(i));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_gives_the_published_vectors() {
        let print =
            |all: Vec<Vector>| all.iter().map(|v| format!("{} {}\n", v.name, v.hash)).collect::<String>();
        for (profile, published) in [
            (Profile::Int8, include_str!("../../../docs/vectors/int8-v1.txt")),
            (Profile::Int4, include_str!("../../../docs/vectors/int4-v1.txt")),
        ] {
            let reference = print(compute(profile, None));
            assert_eq!(reference, published, "the reference of {profile:?} moved: that is a new profile");
            for kernel in Kernel::available() {
                assert_eq!(print(compute(profile, Some(kernel))), published, "{kernel:?}");
            }
        }
    }
}
