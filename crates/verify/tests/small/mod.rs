//! Small random models in memory, and their honest answers.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use assay_core::answer::AnswerRecord;
use assay_core::consent::Consent;
use assay_core::digest::{DigestBuilder, ExecutionDigests};
use assay_core::id::{ModelRoot, Nonce};
use assay_core::request::{Prompt, Request, Sampling, sampler_seed};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants;
use assay_engine::forward::{Executor, Segment};
use assay_engine::kernel::Kernel;
use assay_engine::matrix::{Matrix, packed, store};
use assay_engine::pool::Pool;
use assay_engine::program::{Checked, Head, Op, Program, Reach, Shape, TABLE_LEN, Tensor};
use assay_engine::replay::Execution;
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::logprobs::logprobs;
use assay_engine::semantics::sample::choose;
use assay_engine::semantics::scale::Scale;
use proptest::prelude::*;

use crate::honest::{provider, record};

pub const VOCABULARY: u32 = 19;
pub const CONTEXT: u32 = 160;

/// A model in memory.
#[derive(Clone)]
pub struct Small {
    pub program: Checked,
    pub matrices: Vec<(Arc<Vec<u8>>, Vec<u16>)>,
    /// Which of them are packed.
    packed: Vec<bool>,
    table: Vec<i32>,
    rotary: Vec<i16>,
    bias: Vec<i32>,
}

impl Constants for Small {
    fn program(&self) -> &Checked {
        &self.program
    }

    fn matrix(&self, t: u16) -> Matrix<'_> {
        let (rows, cols, shift) = self.program.matrix_shape(t);
        let (bytes, scales) = &self.matrices[usize::from(t)];
        let of = if self.packed[usize::from(t)] { Matrix::packed } else { Matrix::new };
        of(rows as usize, cols as usize, shift, bytes, scales).unwrap()
    }

    fn table(&self, _: u16) -> &[i32] {
        &self.table
    }

    fn vector(&self, _: u16) -> &[i32] {
        &self.bias
    }

    fn rotary(&self, _: u16) -> &[i16] {
        &self.rotary
    }
}

/// What a random model looks like.
#[derive(Clone, Debug)]
pub struct Plan {
    pub d: u32,
    pub heads: u32,
    pub per_kv: u32,
    pub head_dim: u32,
    pub ff: u32,
    pub layers: u32,
    pub reach: Reach,
    /// Whether positions are embedded by a table, and logits made by the embedding's matrix.
    pub positions: bool,
    pub tied: bool,
    pub vocabulary: u32,
    pub context: u32,
    /// Whether weights of products have four bits.
    pub packed: bool,
    /// Whether matrices of one shape have the same weights: large models in little memory.
    pub alike: bool,
    pub seed: u64,
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Any weights in four bits each.
    fn packed(&mut self, rows: usize, cols: usize) -> Vec<u8> {
        packed::store(rows, cols, |_, cols| {
            let q = cols.map(|_| (self.next() % 16) as i8 - 8).collect();
            ((self.next() % 127) as i32 - 63, q)
        })
    }
}

pub fn plans() -> impl Strategy<Value = Plan> {
    let heads = prop_oneof![Just((1, 1)), Just((2, 1)), Just((4, 2)), Just((6, 3))];
    let head_dim = prop_oneof![Just(4u32), Just(8), Just(20), Just(64), Just(132)];
    let reach = prop_oneof![Just(Reach::Past), (1u32..50).prop_map(Reach::Window)];
    let kinds = (any::<bool>(), any::<bool>(), any::<bool>());
    (1u32..300, heads, head_dim, 1u32..150, 1u32..3, reach, kinds, any::<u64>()).prop_map(
        |(d, (heads, per_kv), head_dim, ff, layers, reach, (positions, tied, packed), seed)| Plan {
            d,
            heads,
            per_kv,
            head_dim,
            ff,
            layers,
            reach,
            positions,
            tied,
            vocabulary: VOCABULARY,
            context: CONTEXT,
            packed,
            alike: false,
            seed: seed | 1,
        },
    )
}

/// The program's ops, one after the other.
struct Ops(Vec<Op>);

impl Ops {
    fn push(&mut self, op: Op) -> u16 {
        self.0.push(op);
        self.0.len() as u16 - 1
    }
}

pub fn small(p: &Plan) -> Small {
    let mut random = Random(p.seed);
    let (mut tensors, mut matrices, mut all_packed) = (Vec::new(), Vec::new(), Vec::new());
    let mut shapes: BTreeMap<(u32, u32, bool), Arc<Vec<u8>>> = BTreeMap::new();
    let mut matrix = |name: String, rows: u32, cols: u32| {
        // No profile packs what rows are looked up in.
        let packed = p.packed && !(name == "embed" || name == "positions");
        let shape = (rows, cols, packed);
        let known = shapes.get(&shape).filter(|_| p.alike).cloned();
        let bytes = known.unwrap_or_else(|| {
            if packed {
                return Arc::new(random.packed(rows as usize, cols as usize));
            }
            let w: Vec<i8> = (0..u64::from(rows) * u64::from(cols)).map(|_| random.next() as i8).collect();
            Arc::new(store(rows as usize, cols as usize, &w))
        });
        shapes.insert(shape, bytes.clone());
        let scales = (0..rows).map(|_| random.next() as u16 | 1 << 15).collect();
        matrices.push((bytes, scales));
        all_packed.push(packed);
        tensors.push(Tensor { name, shape: Shape::Matrix { rows, cols, shift: 24 } });
        tensors.len() as u16 - 1
    };
    let kv = p.heads / p.per_kv;
    let (q_len, kv_len) = (p.heads * p.head_dim, kv * p.head_dim);
    let embed = matrix("embed".into(), p.vocabulary, p.d);
    let places = p.positions.then(|| matrix("positions".into(), p.context, p.d));
    let layers: Vec<[u16; 4]> = (0..p.layers)
        .map(|l| {
            [
                matrix(format!("{l}.qkv"), q_len + 2 * kv_len, p.d),
                matrix(format!("{l}.out"), p.d, q_len),
                matrix(format!("{l}.gate_up"), 2 * p.ff, p.d),
                matrix(format!("{l}.down"), p.d, p.ff),
            ]
        })
        .collect();
    let head = if p.tied { embed } else { matrix("head".into(), p.vocabulary, p.d) };
    let rotary = tensors.len() as u16;
    tensors.push(Tensor {
        name: "rotary".into(),
        shape: Shape::Rotary { positions: p.context, pairs: p.head_dim / 2 },
    });
    tensors.push(Tensor { name: "silu".into(), shape: Shape::Table });
    tensors.push(Tensor { name: "bias".into(), shape: Shape::Vector { len: p.vocabulary, frac: 16 } });
    let mut ops = Ops(vec![]);
    let mut x = ops.push(Op::Embed { table: embed });
    if let Some(table) = places {
        let y = ops.push(Op::Position { table });
        x = ops.push(Op::Add { x, y });
    }
    for (l, [qkv, out, gate_up, down]) in layers.into_iter().enumerate() {
        let n = ops.push(Op::RmsNorm { x, epsilon: 42_950 });
        let a = ops.push(Op::Quantise { x: n, offset: 0, len: p.d, groups: 1 });
        let m = ops.push(Op::MatMul { weights: qkv, x: a });
        let q = ops.push(Op::Rotary { x: m, offset: 0, heads: p.heads, head_dim: p.head_dim, table: rotary });
        let k = ops.push(Op::Rotary { x: m, offset: q_len, heads: kv, head_dim: p.head_dim, table: rotary });
        let q = ops.push(Op::Quantise { x: q, offset: 0, len: q_len, groups: p.heads });
        let k = ops.push(Op::Quantise { x: k, offset: 0, len: kv_len, groups: kv });
        let v = ops.push(Op::Quantise { x: m, offset: q_len + kv_len, len: kv_len, groups: kv });
        let a = ops.push(Op::Attend {
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
        let a = ops.push(Op::Quantise { x: a, offset: 0, len: q_len, groups: 1 });
        let a = ops.push(Op::MatMul { weights: out, x: a });
        x = ops.push(Op::Add { x, y: a });
        let n = ops.push(Op::RmsNorm { x, epsilon: 42_950 });
        let a = ops.push(Op::Quantise { x: n, offset: 0, len: p.d, groups: 1 });
        let m = ops.push(Op::MatMul { weights: gate_up, x: a });
        let g = ops.push(Op::Gate { x: m, gate: 0, up: p.ff, len: p.ff, table: rotary + 1 });
        let a = ops.push(Op::Quantise { x: g, offset: 0, len: p.ff, groups: 1 });
        let a = ops.push(Op::MatMul { weights: down, x: a });
        x = ops.push(Op::Add { x, y: a });
    }
    let n = ops.push(Op::RmsNorm { x, epsilon: 42_950 });
    let hidden = ops.push(Op::Quantise { x: n, offset: 0, len: p.d, groups: 1 });
    let m = ops.push(Op::MatMul { weights: head, x: hidden });
    let logits = ops.push(Op::Bias { x: m, bias: rotary + 2 });
    let head = Head::Tokens { hidden, logits };
    let program = Program {
        context: p.context,
        vocabulary: p.vocabulary,
        residual_frac: 16,
        tensors,
        ops: ops.0,
        head,
    };
    let rotary =
        (0..p.context * p.head_dim).map(|_| ((random.next() % 32_769) as i32 - 16_384) as i16).collect();
    Small {
        program: program.check().unwrap(),
        matrices,
        packed: all_packed,
        table: (0..TABLE_LEN as i32).map(|i| 32_768 + i * 32).collect(),
        rotary,
        bias: (0..p.vocabulary).map(|_| random.next() as i32 >> 15).collect(),
    }
}

impl Small {
    pub fn executor(self: &Arc<Self>, kernel: Kernel) -> Executor {
        Executor::new(self.clone(), kernel, Arc::new(Pool::new(1)))
    }

    /// A root that stands for the model; the tests of roots are elsewhere.
    pub fn root(&self) -> ModelRoot {
        ModelRoot::from_bytes([self.matrices[0].0[0]; 32])
    }

    /// An honest answer of `count` tokens, with the probabilities of so many.
    pub fn answer(
        self: &Arc<Self>,
        prompt: Vec<u32>,
        count: usize,
        sampling: Sampling,
        told: Option<u8>,
    ) -> AnswerRecord {
        let request = Request {
            model: self.root(),
            prompt: Prompt::Tokens(prompt.clone()),
            sampling: Sampling { seed: Some(5), ..sampling },
            max_tokens: count as u32,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: told,
            audit: Consent::Given,
        };
        let seed = sampler_seed(Nonce::ZERO, request.hash(), request.model);
        let mut executor = self.executor(Kernel::available()[0]);
        let (mut history, mut output, mut likely) = (History::new(&prompt), Vec::new(), Vec::new());
        let mut sequence = Sequence::new(self.program.caches(), prompt.len() + count);
        let mut tokens = prompt.clone();
        for i in 0..count {
            let logits_from = tokens.len() - 1;
            let segment = Segment { sequence: &mut sequence, tokens: &tokens, logits_from };
            let out = executor.forward(&mut [segment]);
            let id = choose(out.logits(0), &history, None, &request.sampling, &seed, i as u32);
            likely.extend(told.map(|count| logprobs(out.logits(0), id, count)));
            output.push(id);
            history.push(id);
            tokens = vec![id];
        }
        let digests = digests(&mut executor, &[&prompt[..], &output[..count - 1]].concat());
        let transcript = Transcript {
            request_hash: request.hash(),
            nonce: Nonce::ZERO,
            nonce_source: NonceSource::Seed,
            prompt_ids: prompt,
            output_ids: output,
            text: String::new(),
            stop: StopReason::Length,
            logprobs: likely,
        };
        record(&provider(), request, transcript, digests)
    }
}

/// The digests of an execution.
pub fn digests(executor: &mut Executor, tokens: &[u32]) -> ExecutionDigests {
    let mut digests = DigestBuilder::new();
    executor.replay(tokens, tokens.len(), &mut |row| {
        let (numbers, scale) = row.hidden;
        digests.push(row.position as u32, numbers, scale.mantissa, scale.exponent);
    });
    digests.finish()
}
