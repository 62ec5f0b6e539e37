//! A program as large as Llama-3.1-8B's, for what depends on shapes alone.
#![allow(unreachable_pub)]

use assay_engine::program::{Head, Op, Program, Reach, Shape, Tensor};
use assay_engine::semantics::scale::Scale;

/// Llama-3.1-8B's shape: 32 layers of 4096 numbers, 128 256 token ids.
pub fn program() -> Program {
    let (d, q, kv, ff, vocabulary) = (4096, 4096, 1024, 14_336, 128_256);
    let mut tensors = Vec::new();
    let mut tensor = |name: String, shape| {
        tensors.push(Tensor { name, shape });
        tensors.len() as u16 - 1
    };
    let matrix = |rows, cols| Shape::Matrix { rows, cols, shift: 30 };
    let embed = tensor("model.embed_tokens.weight".into(), matrix(vocabulary, d));
    let head = tensor("lm_head.weight".into(), matrix(vocabulary, d));
    let mut layers = Vec::new();
    for l in 0..32 {
        let of = |what: &str| format!("model.layers.{l}.{what}.weight");
        layers.push([
            tensor(of("self_attn.qkv_proj"), matrix(q + 2 * kv, d)),
            tensor(of("self_attn.o_proj"), matrix(d, q)),
            tensor(of("mlp.gate_up_proj"), matrix(2 * ff, d)),
            tensor(of("mlp.down_proj"), matrix(d, ff)),
        ]);
    }
    let rotary = tensor("rotary".into(), Shape::Rotary { positions: 8192, pairs: 64 });
    let silu = tensor("silu".into(), Shape::Table);
    let mut ops = vec![Op::Embed { table: embed }];
    let mut push = |op| {
        ops.push(op);
        ops.len() as u16 - 1
    };
    let mut x = 0;
    for (layer, [qkv, out, gate_up, down]) in (0..).zip(layers) {
        let n = push(Op::RmsNorm { x, epsilon: 1 });
        let a = push(Op::Quantise { x: n, offset: 0, len: d, groups: 1 });
        let m = push(Op::MatMul { weights: qkv, x: a });
        let r = push(Op::Rotary { x: m, offset: 0, heads: 32, head_dim: 128, table: rotary });
        let s = push(Op::Rotary { x: m, offset: q, heads: 8, head_dim: 128, table: rotary });
        let queries = push(Op::Quantise { x: r, offset: 0, len: q, groups: 32 });
        let k = push(Op::Quantise { x: s, offset: 0, len: kv, groups: 8 });
        let v = push(Op::Quantise { x: m, offset: q + kv, len: kv, groups: 8 });
        let (heads, kv_heads, head_dim, reach, cap) = (32, 8, 128, Reach::Past, None);
        let scale = Scale::power(-3);
        let q = queries;
        let a = push(Op::Attend { q, k, v, layer, reach, heads, kv_heads, head_dim, scale, cap, frac: 20 });
        let a = push(Op::Quantise { x: a, offset: 0, len: d, groups: 1 });
        let y = push(Op::MatMul { weights: out, x: a });
        x = push(Op::Add { x, y });
        let n = push(Op::RmsNorm { x, epsilon: 1 });
        let a = push(Op::Quantise { x: n, offset: 0, len: d, groups: 1 });
        let m = push(Op::MatMul { weights: gate_up, x: a });
        let g = push(Op::Gate { x: m, gate: 0, up: ff, len: ff, table: silu });
        let a = push(Op::Quantise { x: g, offset: 0, len: ff, groups: 1 });
        let y = push(Op::MatMul { weights: down, x: a });
        x = push(Op::Add { x, y });
    }
    let n = push(Op::RmsNorm { x, epsilon: 1 });
    let hidden = push(Op::Quantise { x: n, offset: 0, len: d, groups: 1 });
    let m = push(Op::MatMul { weights: head, x: hidden });
    let logits = push(Op::Fix { x: m, offset: 0, len: vocabulary, frac: 16 });
    let head = Head::Tokens { hidden, logits };
    Program { context: 8192, vocabulary, residual_frac: 16, tensors, ops, head }
}
