//! The specification made runnable: a program executed one token at a time, in plain scalar integer code.
//!
//! This is what every kernel, batch and thread count must equal to the byte. It is written to be read beside
//! `docs/semantics.md`; it is never made faster.

use crate::constants::Constants;
use crate::matrix::Matrix;
use crate::program::{Op, ROTARY_FRAC, ValueId};
use crate::semantics::exp2::exp2_weight;
use crate::semantics::fixed::{bits32, bits64, rsh, rsh_u32, sat32, shift_sat};
use crate::semantics::norm::rms_scale;
use crate::semantics::quantise::{max_abs, normal_shift, quantise};
use crate::semantics::sample::LOGIT_FRAC;
use crate::semantics::scale::Scale;

/// A value at one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Integers and what one unit is worth.
    Integers {
        /// The numbers.
        v: Vec<i32>,
        /// Their unit.
        scale: Scale,
    },
    /// int8 numbers, and what one unit is worth in each group.
    Int8 {
        /// The numbers.
        q: Vec<i8>,
        /// One scale per group.
        scales: Vec<Scale>,
    },
}

impl Value {
    /// The integers and their scale.
    pub fn integers(&self) -> (&[i32], Scale) {
        match self {
            Value::Integers { v, scale } => (v, *scale),
            Value::Int8 { .. } => unreachable!("a checked program reads integers where integers are"),
        }
    }

    /// The int8 numbers and their scales.
    pub fn int8(&self) -> (&[i8], &[Scale]) {
        match self {
            Value::Int8 { q, scales } => (q, scales),
            Value::Integers { .. } => unreachable!("a checked program reads int8 where int8 is"),
        }
    }
}

/// Keys and values of one attend operation, position by position.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    /// One entry per position: int8 keys of all heads, one scale per head.
    pub keys: Vec<(Vec<i8>, Vec<Scale>)>,
    /// Likewise the values.
    pub values: Vec<(Vec<i8>, Vec<Scale>)>,
}

/// A sequence being executed: the program's constants and the KV caches so far.
pub struct Reference<'a> {
    constants: &'a dyn Constants,
    caches: Vec<LayerCache>,
    position: usize,
}

impl<'a> Reference<'a> {
    /// An empty sequence.
    pub fn new(constants: &'a dyn Constants) -> Self {
        let caches = vec![LayerCache::default(); constants.program().caches().len()];
        Reference { constants, caches, position: 0 }
    }

    /// Executes the next token and returns all values it made; without logits, only those up to the hidden vector.
    ///
    /// # Panics
    /// When `token` is not below the vocabulary or the context is full: the caller checks both.
    pub fn step(&mut self, token: u32, logits: bool) -> Vec<Value> {
        let program = self.constants.program().program();
        assert!(token < program.vocabulary, "token {token} is outside the vocabulary");
        assert!(self.position < program.context as usize, "the context is full");
        let last = if logits { program.logits } else { program.hidden };
        let mut values = Vec::with_capacity(usize::from(last) + 1);
        for op in &program.ops[..=usize::from(last)] {
            let value = self.execute(op, token, &values);
            values.push(value);
        }
        self.position += 1;
        values
    }

    /// Tokens executed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    fn execute(&mut self, op: &Op, token: u32, values: &[Value]) -> Value {
        let c = self.constants;
        let frac = c.program().program().residual_frac;
        let get = |v: ValueId| &values[usize::from(v)];
        match *op {
            Op::Embed { table } => embed(c.matrix(table), token as usize, frac),
            Op::RmsNorm { x, epsilon } => {
                let (v, _) = get(x).integers();
                Value::Integers { v: v.to_vec(), scale: rms_scale(v, epsilon) }
            }
            Op::Quantise { x, offset, len, groups } => {
                let (v, scale) = get(x).integers();
                quantise_groups(&v[offset as usize..(offset + len) as usize], scale, groups as usize)
            }
            Op::MatMul { weights, x } => {
                let (q, scales) = get(x).int8();
                matmul(c.matrix(weights), q, scales[0])
            }
            Op::Rotary { x, offset, heads, head_dim, table } => {
                let (v, scale) = get(x).integers();
                let v = &v[offset as usize..(offset + heads * head_dim) as usize];
                let half = head_dim as usize / 2;
                let angles = &c.rotary(table)[self.position * half * 2..(self.position + 1) * half * 2];
                Value::Integers { v: rotate(v, head_dim as usize, angles), scale }
            }
            Op::Attend { q, k, v, layer, heads, kv_heads, head_dim, scale, frac } => {
                let cache = &mut self.caches[usize::from(layer)];
                for (side, made) in [(&mut cache.keys, k), (&mut cache.values, v)] {
                    let (q, scales) = get(made).int8();
                    side.push((q.to_vec(), scales.to_vec()));
                }
                let (q, q_scales) = get(q).int8();
                let n = head_dim as usize;
                let mut out = Vec::with_capacity(q.len());
                for h in 0..heads as usize {
                    let kv = h / (heads / kv_heads) as usize;
                    let query = &q[h * n..(h + 1) * n];
                    out.extend(attend_head(query, q_scales[h].times(scale), cache, kv, u32::from(frac)));
                }
                Value::Integers { v: out, scale: Scale::power(-i16::from(frac)) }
            }
            Op::Gate { x, gate, up, len, table } => {
                let (v, scale) = get(x).integers();
                let part = |from: u32| &v[from as usize..(from + len) as usize];
                gated(part(gate), part(up), scale, c.table(table))
            }
            Op::Add { x, y } => {
                let ((x, unit), (y, scale)) = (get(x).integers(), get(y).integers());
                let add = |(a, b): (&i32, &i32)| a.saturating_add(scale.to_fixed(*b, u32::from(frac)));
                Value::Integers { v: x.iter().zip(y).map(add).collect(), scale: unit }
            }
            Op::Logits { x } => {
                let (v, scale) = get(x).integers();
                let v = v.iter().map(|x| scale.to_fixed(*x, LOGIT_FRAC)).collect();
                Value::Integers { v, scale: Scale::power(-(LOGIT_FRAC as i16)) }
            }
        }
    }
}

/// Semantics 6.1.
pub fn embed(table: Matrix<'_>, token: usize, frac: u8) -> Value {
    let m = i64::from(table.scales()[token]);
    let shift = i32::from(table.shift()) - i32::from(frac);
    let v = (0..table.cols()).map(|i| shift_sat(i64::from(table.weight(token, i)) * m, shift)).collect();
    Value::Integers { v, scale: Scale::power(-i16::from(frac)) }
}

/// Semantics 6.3.
pub fn quantise_groups(v: &[i32], scale: Scale, groups: usize) -> Value {
    let mut q = vec![0i8; v.len()];
    let n = v.len() / groups;
    let scales = v.chunks_exact(n).zip(q.chunks_exact_mut(n)).map(|(v, q)| quantise(v, scale, q)).collect();
    Value::Int8 { q, scales }
}

/// Right shift that brings an accumulator times a row scale below 2^30 in size, for `cols` columns.
pub const fn headroom(cols: usize) -> u32 {
    bits32(cols as u32)
}

/// Semantics 6.4.
pub fn matmul(w: Matrix<'_>, q: &[i8], scale: Scale) -> Value {
    let h = headroom(w.cols());
    let row = |r: usize| {
        let acc: i32 = (0..w.cols()).map(|c| i32::from(w.weight(r, c)) * i32::from(q[c])).sum();
        rsh(i64::from(acc) * i64::from(w.scales()[r]), h) as i32
    };
    let v = (0..w.rows()).map(row).collect();
    Value::Integers { v, scale: scale.shifted(h as i32 - i32::from(w.shift())) }
}

/// Semantics 6.5: `angles` holds cosine and sine of each pair at this position.
pub fn rotate(v: &[i32], head_dim: usize, angles: &[i16]) -> Vec<i32> {
    let half = head_dim / 2;
    let mut out = vec![0; v.len()];
    for (v, out) in v.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        for i in 0..half {
            let (c, s) = (i64::from(angles[2 * i]), i64::from(angles[2 * i + 1]));
            let (a, b) = (i64::from(v[i]), i64::from(v[i + half]));
            out[i] = sat32(rsh(a * c - b * s, ROTARY_FRAC));
            out[i + half] = sat32(rsh(b * c + a * s, ROTARY_FRAC));
        }
    }
    out
}

/// Semantics 6.6: one query head over all positions of the cache. `scale` is the query's scale times the operation's.
pub fn attend_head(query: &[i8], scale: Scale, cache: &LayerCache, kv: usize, frac: u32) -> Vec<i32> {
    let n = query.len();
    let dot = |k: &[i8]| -> i64 { query.iter().zip(k).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum() };
    let scores: Vec<i32> = cache
        .keys
        .iter()
        .map(|(k, scales)| score(dot(&k[kv * n..(kv + 1) * n]), scales[kv], scale))
        .collect();
    let top = scores.iter().copied().max().unwrap_or(0);
    let weights: Vec<u32> = scores.iter().map(|s| exp2_weight(top.wrapping_sub(*s) as u32)).collect();
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let highest = highest_exponent(cache.values.iter().map(|(_, scales)| scales[kv]));
    let mut out = vec![0i64; n];
    for (e, (v, scales)) in weights.iter().zip(&cache.values) {
        let w = i64::from(value_weight(*e, scales[kv], highest));
        for (o, x) in out.iter_mut().zip(&v[kv * n..(kv + 1) * n]) {
            *o += w * i64::from(*x);
        }
    }
    let share = Share::new(sum, highest, frac);
    out.into_iter().map(|o| share.apply(o)).collect()
}

/// A score as an exponent of two with 16 fraction bits, saturated.
#[inline(always)]
pub const fn score(dot: i64, key: Scale, query: Scale) -> i32 {
    // |dot| < 2^23, so the product stays below 2^55.
    shift_sat(
        dot * (key.mantissa as i64 * query.mantissa as i64),
        -(key.exponent as i32 + query.exponent as i32 + 16),
    )
}

/// The largest exponent among scales that are not zero; 0 if all are.
pub fn highest_exponent(scales: impl Iterator<Item = Scale>) -> i16 {
    scales.filter(|s| s.mantissa != 0).map(|s| s.exponent).max().unwrap_or(0)
}

/// Attention weight times value scale: 0 to 32 512.
#[inline(always)]
pub const fn value_weight(e: u32, value: Scale, highest: i16) -> u32 {
    if value.mantissa == 0 {
        return 0;
    }
    rsh_u32(e * value.mantissa as u32, 17 + (highest as i32 - value.exponent as i32) as u32)
}

/// Division of a head's sums by the sum of its weights.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    reciprocal: i64,
    shift: i32,
}

impl Share {
    /// For weights that sum to `sum` (at least 1), values whose largest exponent is `highest`, and `frac` fraction bits.
    pub const fn new(sum: u64, highest: i16, frac: u32) -> Share {
        let b = bits64(sum);
        Share {
            reciprocal: ((1u64 << (b + 15)) / sum) as i64,
            shift: b as i32 + 15 - 17 - highest as i32 - frac as i32,
        }
    }

    /// One sum.
    #[inline(always)]
    pub const fn apply(&self, o: i64) -> i32 {
        shift_sat(o * self.reciprocal, self.shift)
    }
}

/// Fraction bits of a gate when it is looked up.
pub const GATE_FRAC: u32 = 16;

/// Semantics 6.7.
pub fn gated(g: &[i32], u: &[i32], scale: Scale, table: &[i32]) -> Value {
    let k = normal_shift(max_abs(u));
    let one = |(g, u): (&i32, &i32)| {
        let act = activation(scale.to_fixed(*g, GATE_FRAC), table);
        gate_product(act, *u, k)
    };
    Value::Integers {
        v: g.iter().zip(u).map(one).collect(),
        scale: scale.shifted(k as i32 - GATE_FRAC as i32 + 10),
    }
}

/// `g · table(g)` with 16 fraction bits.
#[inline(always)]
pub fn activation(g: i32, table: &[i32]) -> i32 {
    let a = g.unsigned_abs();
    let i = (a >> 10).min(1024) as usize;
    let next = (i + 1).min(1024);
    let t = table[i] + rsh(i64::from(table[next] - table[i]) * i64::from(a & 1023), 10) as i32;
    let t = if g < 0 { 65_536 - t } else { t };
    rsh(i64::from(g) * i64::from(t), 16) as i32
}

/// Activated gate times normalised `u`.
#[inline(always)]
pub const fn gate_product(act: i32, u: i32, shift: u32) -> i32 {
    sat32(rsh(act as i64 * rsh(u as i64, shift), 10))
}
