//! The specification made runnable: a program executed one operation and one token at a time, in plain scalar integer
//! code.
//!
//! This is what every kernel, batch and thread count must equal to the byte. It is written to be read beside
//! `docs/semantics.md`; it is never made faster.

use std::ops::Range;

use crate::constants::Constants;
use crate::matrix::Matrix;
use crate::program::check::NORMAL_FRAC;
use crate::program::{Head, LOGIT_FRAC, Op, Pooling, ROTARY_FRAC, Reach, SoftCap, ValueId};
use crate::semantics::exp2::exp2_weight;
use crate::semantics::fixed::{bits32, bits64, rsh, rsh_u32, sat32, shift_sat};
use crate::semantics::norm::{mean, rms_scale};
use crate::semantics::quantise::{max_abs, normal_shift, quantise};
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
    /// When `token` is not below the vocabulary, the context is full, or the program makes no tokens: the caller checks
    /// all of them.
    pub fn step(&mut self, token: u32, logits: bool) -> Vec<Value> {
        let (hidden, last) = self.constants.program().program().tokens();
        let last = if logits { last } else { hidden };
        self.step_part(0..usize::from(last) + 1, None, token)
    }

    /// Executes only the operations `ops` for the next token. `given` is the one value made before them that they read, and its
    /// fixed-point numbers. Returns the values up to the end of `ops`; of those made before, all but the given one are empty.
    ///
    /// # Panics
    /// As [`Reference::step`], and when the operations read what they are not given.
    pub fn step_part(
        &mut self,
        ops: Range<usize>,
        given: Option<(ValueId, &[i32])>,
        token: u32,
    ) -> Vec<Value> {
        self.enter(&[token]);
        let mut values = self.before(ops.start, given);
        for op in &self.constants.program().program().ops[ops] {
            if let Op::Attend { .. } = op {
                self.append(op, &values);
            }
            let value = self.execute(op, token, &values);
            values.push(value);
        }
        self.position += 1;
        values
    }

    /// Values of `count` operations that were executed elsewhere: empty, but for the given one.
    fn before(&self, count: usize, given: Option<(ValueId, &[i32])>) -> Vec<Value> {
        let mut values = vec![fixed(vec![], 0); count];
        if let Some((v, numbers)) = given {
            values[usize::from(v)] = fixed(numbers.to_vec(), self.constants.program().frac(v));
        }
        values
    }

    /// Executes a whole sequence with an encoder, operation by operation, and returns the pooled vector.
    ///
    /// # Panics
    /// When there are no tokens or more than the context, one is not below the vocabulary, or the program is no encoder.
    pub fn encode(constants: &dyn Constants, tokens: &[u32]) -> Vec<i32> {
        let mut rows = Reference::encode_all(constants, tokens);
        match rows.swap_remove(0).pop() {
            Some(Value::Integers { v, .. }) => v,
            _ => unreachable!("a checked encoder ends in its pooled vector"),
        }
    }

    /// Like [`Reference::encode`], with all values of every token; the pooled vector is the first token's last value.
    ///
    /// # Panics
    /// As [`Reference::encode`].
    pub fn encode_all(constants: &dyn Constants, tokens: &[u32]) -> Vec<Vec<Value>> {
        let all = 0..constants.program().program().ops.len();
        Reference::encode_part(constants, all, None, tokens)
    }

    /// Executes only the operations `ops` of an encoder over a whole sequence. `given` is the one value made before them that
    /// they read, and its fixed-point numbers for each token, one token after the other. Returns every token's values, as
    /// [`Reference::step_part`] does.
    ///
    /// # Panics
    /// As [`Reference::encode`], and when the operations read what they are not given.
    pub fn encode_part(
        constants: &dyn Constants,
        ops: Range<usize>,
        given: Option<(ValueId, &[i32])>,
        tokens: &[u32],
    ) -> Vec<Vec<Value>> {
        let program = constants.program().program();
        assert!(matches!(program.head, Head::Vector { .. }), "only an encoder reads whole sequences");
        assert!(!tokens.is_empty(), "a sequence has a token");
        let mut sequence = Reference::new(constants);
        sequence.enter(tokens);
        let row = |position: usize| {
            let row = given.map(|(v, numbers)| {
                let len = numbers.len() / tokens.len();
                (v, &numbers[position * len..(position + 1) * len])
            });
            sequence.before(ops.start, row)
        };
        let mut rows: Vec<Vec<Value>> = (0..tokens.len()).map(row).collect();
        for op in &program.ops[ops] {
            if let Op::Pool { x, pooling } = *op {
                let vectors: Vec<&[i32]> = rows.iter().map(|v| v[usize::from(x)].integers().0).collect();
                let pooled = fixed(pool(&vectors, pooling), constants.program().frac(x));
                rows[0].push(pooled);
                return rows;
            }
            if let Op::Attend { .. } = op {
                rows.iter().for_each(|values| sequence.append(op, values));
            }
            for (position, values) in rows.iter_mut().enumerate() {
                sequence.position = position;
                let value = sequence.execute(op, tokens[position], values);
                values.push(value);
            }
        }
        rows
    }

    /// Tokens executed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    fn enter(&self, tokens: &[u32]) {
        let program = self.constants.program().program();
        assert!(tokens.iter().all(|t| *t < program.vocabulary), "every token is below the vocabulary");
        assert!(self.position + tokens.len() <= program.context as usize, "the context holds the sequence");
    }

    /// Appends the keys and values that an attend operation reads to its cache.
    fn append(&mut self, op: &Op, values: &[Value]) {
        let Op::Attend { k, v, layer, .. } = *op else { return };
        let cache = &mut self.caches[usize::from(layer)];
        for (side, made) in [(&mut cache.keys, k), (&mut cache.values, v)] {
            let (q, scales) = values[usize::from(made)].int8();
            side.push((q.to_vec(), scales.to_vec()));
        }
    }

    /// Executes one operation for the token at the current position, whose keys and values are in the caches.
    fn execute(&self, op: &Op, token: u32, values: &[Value]) -> Value {
        let c = self.constants;
        let program = c.program();
        let frac = program.program().residual_frac;
        let get = |v: ValueId| &values[usize::from(v)];
        match *op {
            Op::Embed { table } => embed(c.matrix(table), token as usize, frac),
            Op::Position { table } => embed(c.matrix(table), self.position, frac),
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
            Op::Attend { q, k: _, v: _, layer, heads, kv_heads, head_dim, reach, scale, cap, frac } => {
                let cache = &self.caches[usize::from(layer)];
                let seen = seen(reach, self.position, cache.keys.len());
                let (q, q_scales) = get(q).int8();
                let cap = cap.map(|SoftCap { limit, table }| (limit, c.table(table)));
                let n = head_dim as usize;
                let mut out = Vec::with_capacity(q.len());
                for h in 0..heads as usize {
                    let kv = h / (heads / kv_heads) as usize;
                    let query = &q[h * n..(h + 1) * n];
                    let scale = q_scales[h].times(scale);
                    out.extend(attend_head(query, scale, cache, seen.clone(), kv, cap, u32::from(frac)));
                }
                fixed(out, u32::from(frac))
            }
            Op::Gate { x, gate, up, len, table } => {
                let (v, scale) = get(x).integers();
                let part = |from: u32| &v[from as usize..(from + len) as usize];
                gated(part(gate), part(up), scale, c.table(table))
            }
            Op::Add { x, y } => {
                let (y, scale) = get(y).integers();
                add(get(x).integers().0, y, scale, program.frac(x))
            }
            Op::Fix { x, offset, len, frac } => {
                let (v, scale) = get(x).integers();
                let v = &v[offset as usize..(offset + len) as usize];
                fixed(v.iter().map(|x| scale.to_fixed(*x, u32::from(frac))).collect(), u32::from(frac))
            }
            Op::Bias { x, bias } => {
                let (v, scale) = get(x).integers();
                add(c.vector(bias), v, scale, program.vector_frac(bias))
            }
            Op::Normalise { x, groups, center, epsilon, gain, bias, frac } => {
                let v = get(x).integers().0;
                let affine = Affine {
                    gain: c.vector(gain),
                    shift: u32::from(NORMAL_FRAC) + program.vector_frac(gain) - u32::from(frac),
                    bias: bias.map(|b| c.vector(b)),
                };
                let run = v.len() / groups as usize;
                let out = v.chunks_exact(run).flat_map(|v| normalise(v, center, epsilon, &affine)).collect();
                fixed(out, u32::from(frac))
            }
            Op::Activate { x, table } => {
                let (v, scale) = get(x).integers();
                let table = c.table(table);
                let one = |x: &i32| activation(scale.to_fixed(*x, GATE_FRAC), table);
                fixed(v.iter().map(one).collect(), GATE_FRAC)
            }
            Op::Hadamard { x, block } => {
                let (v, scale) = get(x).integers();
                let k = normal_shift(max_abs(v));
                let mut v: Vec<i32> = v.iter().map(|x| rsh(i64::from(*x), k) as i32).collect();
                v.chunks_exact_mut(block as usize).for_each(hadamard);
                Value::Integers { v, scale: scale.shifted(k as i32) }
            }
            Op::Bend { x, cap } => {
                let table = c.table(cap.table);
                let v = get(x).integers().0.iter().map(|z| bend(*z, cap.limit, table)).collect();
                fixed(v, u32::from(LOGIT_FRAC))
            }
            Op::Pool { .. } => unreachable!("a pooled vector is not one token's"),
        }
    }
}

/// Fixed-point numbers.
fn fixed(v: Vec<i32>, frac: u32) -> Value {
    Value::Integers { v, scale: Scale::power(-(frac as i16)) }
}

/// Semantics 6.1.
pub fn embed(table: Matrix<'_>, token: usize, frac: u8) -> Value {
    let m = i64::from(table.scales()[token]);
    let shift = i32::from(table.shift()) - i32::from(frac);
    let v = (0..table.cols()).map(|i| shift_sat(i64::from(table.weight(token, i)) * m, shift)).collect();
    fixed(v, u32::from(frac))
}

/// Semantics 6.8: fixed point plus integers.
pub fn add(x: &[i32], y: &[i32], scale: Scale, frac: u32) -> Value {
    let one = |(x, y): (&i32, &i32)| x.saturating_add(scale.to_fixed(*y, frac));
    fixed(x.iter().zip(y).map(one).collect(), frac)
}

/// Gain and bias of a norm, and the shift that follows the product with the gain.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// One factor per number.
    pub gain: &'a [i32],
    /// From the product's fraction bits to the result's.
    pub shift: u32,
    /// One summand per number.
    pub bias: Option<&'a [i32]>,
}

/// Semantics 6.12: one run.
pub fn normalise(v: &[i32], center: bool, epsilon: u64, affine: &Affine<'_>) -> Vec<i32> {
    let m = if center { mean(v) } else { 0 };
    let v: Vec<i32> = v.iter().map(|x| x.saturating_sub(m)).collect();
    let scale = rms_scale(&v, epsilon);
    let one = |(i, x): (usize, &i32)| affine.apply(i, scale.to_fixed(*x, u32::from(NORMAL_FRAC)));
    v.iter().enumerate().map(one).collect()
}

impl Affine<'_> {
    /// The result for the `i`-th normalised number.
    #[inline(always)]
    pub fn apply(&self, i: usize, n: i32) -> i32 {
        // A gain is below 2^30: the product is below 2^61.
        let y = sat32(rsh(i64::from(n) * i64::from(self.gain[i]), self.shift));
        self.bias.map_or(y, |b| y.saturating_add(b[i]))
    }
}

/// Semantics 6.14: the transform of one run, in place.
pub fn hadamard(v: &mut [i32]) {
    let mut half = 1;
    while half < v.len() {
        for run in v.chunks_exact_mut(2 * half) {
            let (a, b) = run.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// Semantics 6.15.
#[inline(always)]
pub fn bend(z: i32, limit: u32, table: &[i32]) -> i32 {
    let reciprocal = (1u64 << 33) / u64::from(limit);
    let a = ((u64::from(z.unsigned_abs()) * reciprocal) >> 16).min(1 << 20) as u32;
    // tanh(x) = 2 / (1 + e^-2x) - 1
    let t = 2 * table_at(a, table) - 65_536;
    let y = rsh(i64::from(limit) * i64::from(t), 16) as i32;
    if z < 0 { -y } else { y }
}

/// Semantics 6.16.
pub fn pool(rows: &[&[i32]], pooling: Pooling) -> Vec<i32> {
    match pooling {
        Pooling::First => rows[0].to_vec(),
        Pooling::Last => rows[rows.len() - 1].to_vec(),
        Pooling::Mean => (0..rows[0].len())
            .map(|i| {
                let column: Vec<i32> = rows.iter().map(|r| r[i]).collect();
                mean(&column)
            })
            .collect(),
    }
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
    let acc = accumulators(w, q);
    let v = acc.iter().zip(w.scales()).map(|(a, m)| row_scaled(*a, *m, h)).collect();
    Value::Integers { v, scale: scale.shifted(h as i32 - i32::from(w.shift())) }
}

/// The sums of semantics 6.4, one for each row.
pub fn accumulators(w: Matrix<'_>, q: &[i8]) -> Vec<i32> {
    let sum = |r| (0..w.cols()).map(|c| i32::from(w.weight(r, c)) * i32::from(q[c])).sum();
    (0..w.rows()).map(sum).collect()
}

/// An accumulator times its row's scale, with the headroom of the matrix.
#[inline(always)]
pub const fn row_scaled(acc: i32, scale: u16, headroom: u32) -> i32 {
    rsh(acc as i64 * scale as i64, headroom) as i32
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

/// The positions that the token at `position` sees, of `len` in the cache.
pub fn seen(reach: Reach, position: usize, len: usize) -> Range<usize> {
    match reach {
        Reach::Past => 0..position + 1,
        Reach::Window(n) => (position + 1).saturating_sub(n as usize)..position + 1,
        Reach::All => 0..len,
    }
}

/// Semantics 6.6: one query head over the positions `seen`. `scale` is the query's scale times the operation's, `cap`
/// a limit and its table.
pub fn attend_head(
    query: &[i8],
    scale: Scale,
    cache: &LayerCache,
    seen: Range<usize>,
    kv: usize,
    cap: Option<(u32, &[i32])>,
    frac: u32,
) -> Vec<i32> {
    let n = query.len();
    let dot = |k: &[i8]| -> i64 { query.iter().zip(k).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum() };
    let one = |(k, scales): &(Vec<i8>, Vec<Scale>)| {
        let z = score(dot(&k[kv * n..(kv + 1) * n]), scales[kv], scale);
        cap.map_or(z, |(limit, table)| bend(z, limit, table))
    };
    let scores: Vec<i32> = cache.keys[seen.clone()].iter().map(one).collect();
    let values = &cache.values[seen];
    let top = scores.iter().copied().max().unwrap_or(0);
    let weights: Vec<u32> = scores.iter().map(|s| exp2_weight(top.wrapping_sub(*s) as u32)).collect();
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let highest = highest_exponent(values.iter().map(|(_, scales)| scales[kv]));
    let mut out = vec![0i64; n];
    for (e, (v, scales)) in weights.iter().zip(values) {
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
    let t = table_at(g.unsigned_abs(), table);
    let t = if g < 0 { 65_536 - t } else { t };
    rsh(i64::from(g) * i64::from(t), 16) as i32
}

/// A table between its entries, at a non-negative number with 16 fraction bits.
#[inline(always)]
pub fn table_at(a: u32, table: &[i32]) -> i32 {
    let i = (a >> 10).min(1024) as usize;
    let next = (i + 1).min(1024);
    // Entries are 32 768 to 65 536, so that this stays below 2^25; of others, which no artifact has, it is anything.
    let rise = table[next].wrapping_sub(table[i]).wrapping_mul((a & 1023) as i32);
    table[i].wrapping_add(rise.wrapping_add(1 << 9) >> 10)
}

/// Activated gate times normalised `u`.
#[inline(always)]
pub const fn gate_product(act: i32, u: i32, shift: u32) -> i32 {
    // A number of 32 bits shifted right has no more: said so, that the product is of 32 by 32 bits.
    let u = rsh(u as i64, shift) as i32;
    sat32(rsh(act as i64 * u as i64, 10))
}
