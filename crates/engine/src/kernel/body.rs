//! Elementwise passes as plain loops. Each instruction set compiles them anew (`instantiate!`), so that the compiler
//! vectorises them for it; what they compute is written once.

use super::{HeadScales, WeightSums};
use crate::matrix::packed::{EIGHT, PACKED_BLOCK, PLAIN_BLOCK, group_scale};
use crate::matrix::{BIAS, GROUP, TILE_ROWS};
use crate::program::ROTARY_FRAC;
use crate::reference::{Affine, GATE_FRAC, activation, gate_product, score, value_weight};
use crate::semantics::exp2::exp2_weight;
use crate::semantics::fixed::{rsh, sat32, shift_sat};
use crate::semantics::quantise::Quantiser;
use crate::semantics::sample::Against;
use crate::semantics::scale::Scale;

#[inline(always)]
pub(super) fn max_abs(v: &[i32]) -> u32 {
    v.iter().fold(0, |m, x| m.max(x.unsigned_abs()))
}

#[inline(always)]
pub(super) fn sum_squares(v: &[i32], shift: u32) -> u64 {
    let (half, shift) = if shift == 0 { (0, 0) } else { (1i64 << (shift - 1), shift) };
    v.iter().fold(0, |sum, &x| {
        let y = ((i64::from(x) + half) >> shift) as i32;
        sum + u64::from((y * y) as u32)
    })
}

#[inline(always)]
pub(super) fn quantise(q: Quantiser, v: &[i32], out: &mut [i8]) -> i32 {
    let mut sum = 0;
    if q.shift == 0 {
        for (o, &x) in out.iter_mut().zip(v) {
            let b = (x.wrapping_mul(q.factor).wrapping_add(1 << 23)) >> 24;
            sum += b;
            *o = b as i8;
        }
    } else {
        // (x + 2^(s-1)) >> s without leaving 32 bits: the bit below the cut is the carry.
        let below = q.shift - 1;
        for (o, &x) in out.iter_mut().zip(v) {
            let y = (x >> q.shift) + ((x >> below) & 1);
            let b = (y.wrapping_mul(q.factor).wrapping_add(1 << 23)) >> 24;
            sum += b;
            *o = b as i8;
        }
    }
    sum
}

#[inline(always)]
pub(super) fn apply_row_scales(acc: &[i32], correction: i32, scales: &[u16], headroom: u32, out: &mut [i32]) {
    let half = 1i64 << (headroom - 1);
    for ((o, &a), &s) in out.iter_mut().zip(acc).zip(scales) {
        let a = a.wrapping_sub(correction);
        *o = ((i64::from(a) * i64::from(s) + half) >> headroom) as i32;
    }
}

/// Runs `each` over products with a common shift, the usual shifts on a path without branches.
#[inline(always)]
fn fixed_loop(v: &[i32], scale: Scale, frac: u32, mut each: impl FnMut(usize, i32)) {
    let s = -i32::from(scale.exponent) - frac as i32;
    let m = i64::from(scale.mantissa);
    if (1..=62).contains(&s) {
        let half = 1i64 << (s - 1);
        for (i, &x) in v.iter().enumerate() {
            each(i, sat32((i64::from(x) * m + half) >> s));
        }
    } else {
        for (i, &x) in v.iter().enumerate() {
            each(i, shift_sat(i64::from(x) * m, s));
        }
    }
}

#[inline(always)]
pub(super) fn add_scaled(x: &[i32], y: &[i32], scale: Scale, frac: u32, out: &mut [i32]) {
    let n = out.len();
    let (x, y) = (&x[..n], &y[..n]);
    fixed_loop(y, scale, frac, |i, y| out[i] = x[i].saturating_add(y));
}

#[inline(always)]
pub(super) fn to_fixed(x: &[i32], scale: Scale, frac: u32, out: &mut [i32]) {
    let n = out.len();
    fixed_loop(&x[..n], scale, frac, |i, y| out[i] = y);
}

#[inline(always)]
pub(super) fn rotate(v: &[i32], angles: &[i16], out: &mut [i32]) {
    let half = v.len() / 2;
    let (a, b) = v.split_at(half);
    let (x, y) = out.split_at_mut(half);
    let angles = &angles[..2 * half];
    for i in 0..half {
        let (c, s) = (i64::from(angles[2 * i]), i64::from(angles[2 * i + 1]));
        let (p, q) = (i64::from(a[i]), i64::from(b[i]));
        x[i] = sat32(rsh(p * c - q * s, ROTARY_FRAC));
        y[i] = sat32(rsh(q * c + p * s, ROTARY_FRAC));
    }
}

#[inline(always)]
pub(super) fn gate(g: &[i32], u: &[i32], scale: Scale, table: &[i32], shift: u32, out: &mut [i32]) {
    let n = out.len();
    let u = &u[..n];
    let table = &table[..crate::program::TABLE_LEN];
    // In two passes: what a closure of this size computes is not always compiled for the instruction set of its caller.
    to_fixed(g, scale, GATE_FRAC, out);
    for (out, u) in out.iter_mut().zip(u) {
        *out = gate_product(activation(*out, table), *u, shift);
    }
}

#[inline(always)]
pub(super) fn sum(v: &[i32]) -> i64 {
    v.iter().map(|x| i64::from(*x)).sum()
}

#[inline(always)]
pub(super) fn shift_by(v: &[i32], mean: i32, out: &mut [i32]) {
    for (o, x) in out.iter_mut().zip(v) {
        *o = x.saturating_sub(mean);
    }
}

#[inline(always)]
pub(super) fn affine(v: &mut [i32], scale: Scale, by: Affine<'_>) {
    let n = v.len();
    let gain = &by.gain[..n];
    let normal = u32::from(crate::program::check::NORMAL_FRAC);
    let s = -i32::from(scale.exponent) - normal as i32;
    let half = if by.shift == 0 { 0 } else { 1i64 << (by.shift - 1) };
    match by.bias {
        Some(bias) if (1..=62).contains(&s) => {
            let bias = &bias[..n];
            let (m, up) = (i64::from(scale.mantissa), 1i64 << (s - 1));
            for i in 0..n {
                let x = sat32((i64::from(v[i]) * m + up) >> s);
                let y = sat32((i64::from(x) * i64::from(gain[i]) + half) >> by.shift);
                v[i] = y.saturating_add(bias[i]);
            }
        }
        _ => {
            for (i, x) in v.iter_mut().enumerate() {
                *x = by.apply(i, scale.to_fixed(*x, normal));
            }
        }
    }
}

#[inline(always)]
pub(super) fn activate(v: &[i32], scale: Scale, table: &[i32], out: &mut [i32]) {
    let n = out.len();
    let table = &table[..crate::program::TABLE_LEN];
    to_fixed(&v[..n], scale, GATE_FRAC, out);
    for out in out {
        *out = activation(*out, table);
    }
}

#[inline(always)]
pub(super) fn bend(v: &mut [i32], limit: u32, table: &[i32]) {
    let table = &table[..crate::program::TABLE_LEN];
    for z in v {
        *z = crate::reference::bend(*z, limit, table);
    }
}

#[inline(always)]
pub(super) fn hadamard(v: &[i32], shift: u32, block: usize, out: &mut [i32]) {
    for (o, x) in out.iter_mut().zip(v) {
        *o = rsh(i64::from(*x), shift) as i32;
    }
    for run in out.chunks_exact_mut(block) {
        // The first two rounds on four numbers at once, so that the others work on long runs.
        for four in run.chunks_exact_mut(4) {
            let (a, b, c, d) = (four[0], four[1], four[2], four[3]);
            let (p, q, r, s) = (a + b, a - b, c + d, c - d);
            four.copy_from_slice(&[p + r, q + s, p - r, q - s]);
        }
        let mut half = 4;
        while half < block {
            for pair in run.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
    }
}

#[inline(always)]
pub(super) fn scores(dots: &mut [i32], correction: i32, keys: HeadScales<'_>, query: Scale) -> i32 {
    let n = dots.len();
    let (m, e) = (&keys.mantissas[..n], &keys.exponents[..n]);
    let mut top = i32::MIN;
    for i in 0..n {
        let key = Scale { mantissa: m[i], exponent: e[i] };
        let s = score(i64::from(dots[i].wrapping_sub(correction)), key, query);
        dots[i] = s;
        top = top.max(s);
    }
    top
}

#[inline(always)]
pub(super) fn weights(
    scores: &[i32],
    top: i32,
    values: HeadScales<'_>,
    highest: i16,
    high: &mut [i8],
    low: &mut [i8],
) -> WeightSums {
    let n = scores.len();
    let (m, e) = (&values.mantissas[..n], &values.exponents[..n]);
    let (high, low) = (&mut high[..n], &mut low[..n]);
    let mut sums = WeightSums { total: 0, high: 0, low: 0 };
    for i in 0..n {
        let weight = exp2_weight(top.wrapping_sub(scores[i]) as u32);
        sums.total += u64::from(weight);
        let w = value_weight(weight, Scale { mantissa: m[i], exponent: e[i] }, highest) as i32;
        let h = (w + 128) >> 8;
        let l = w - (h << 8);
        sums.high += h;
        sums.low += l;
        high[i] = h as i8;
        low[i] = l as i8;
    }
    sums
}

/// Numbers of a run whose sums stay within 64 bits: 2^8 products below 2^54.
const RUN: usize = 256;

#[inline(always)]
pub(super) fn weigh(a: &[i32], low: &[i32], high: &[i32]) -> (i128, i128) {
    let n = a.len();
    let (low, high) = (&low[..n], &high[..n]);
    let mut sums = (0i128, 0i128);
    for ((a, low), high) in a.chunks(RUN).zip(low.chunks(RUN)).zip(high.chunks(RUN)) {
        let (mut l, mut h) = (0i64, 0i64);
        for i in 0..a.len().min(low.len()).min(high.len()) {
            l = l.wrapping_add(i64::from(a[i]).wrapping_mul(i64::from(low[i])));
            h = h.wrapping_add(i64::from(a[i]).wrapping_mul(i64::from(high[i])));
        }
        sums.0 += i128::from(l);
        sums.1 += i128::from(h);
    }
    sums
}

#[inline(always)]
pub(super) fn unpack(low: &[u8], high: &[u8], width: usize, out: &mut [i32]) -> u32 {
    let n = out.len();
    let low = &low.as_chunks::<2>().0[..n];
    match width {
        2 => out.iter_mut().zip(low).for_each(|(o, l)| *o = i32::from(i16::from_le_bytes(*l))),
        3 => {
            let high = &high[..n];
            for i in 0..n {
                out[i] = i32::from(high[i] as i8) << 16 | i32::from(u16::from_le_bytes(low[i]));
            }
        }
        _ => {
            let high = &high.as_chunks::<2>().0[..n];
            for i in 0..n {
                let high = i32::from(i16::from_le_bytes(high[i]));
                out[i] = high << 16 | i32::from(u16::from_le_bytes(low[i]));
            }
        }
    }
    used_bits(out)
}

#[inline(always)]
pub(super) fn used_bits(v: &[i32]) -> u32 {
    v.iter().fold(0, |all, v| all | (v ^ (v >> 31)) as u32)
}

#[inline(always)]
pub(super) fn likelihoods(logits: &[i32], against: Against, out: &mut [u32]) {
    out.iter_mut().zip(logits).for_each(|(o, l)| *o = against.likelihood(*l));
}

#[inline(always)]
pub(super) fn weigh_bytes(a: &[i8], low: &[i32], high: &[i32]) -> (i64, i64) {
    let n = a.len();
    let (low, high) = (&low[..n], &high[..n]);
    let (mut l, mut h) = (0i64, 0i64);
    for i in 0..n {
        l = l.wrapping_add(i64::from(a[i]).wrapping_mul(i64::from(low[i])));
        h = h.wrapping_add(i64::from(a[i]).wrapping_mul(i64::from(high[i])));
    }
    (l, h)
}

#[inline(always)]
pub(super) fn weigh_rows(a: &[i32], low: &[i32], high: &[i32], sums_low: &mut [i64], sums_high: &mut [i64]) {
    // As many columns as stay in registers while all rows go by: one cache line of each row.
    const LANES: usize = 16;
    let columns = sums_low.len();
    let whole = columns / LANES * LANES;
    for from in (0..whole).step_by(LANES) {
        let (mut l, mut h) = ([0i64; LANES], [0i64; LANES]);
        for ((row, low), high) in a.chunks_exact(columns).zip(low).zip(high) {
            let row = &row[from..from + LANES];
            for i in 0..LANES {
                l[i] = l[i].wrapping_add(i64::from(row[i]).wrapping_mul(i64::from(*low)));
                h[i] = h[i].wrapping_add(i64::from(row[i]).wrapping_mul(i64::from(*high)));
            }
        }
        sums_low[from..from + LANES].copy_from_slice(&l);
        sums_high[from..from + LANES].copy_from_slice(&h);
    }
    for i in whole..columns {
        let (mut l, mut h) = (0i64, 0i64);
        for ((row, low), high) in a.chunks_exact(columns).zip(low).zip(high) {
            l = l.wrapping_add(i64::from(row[i]).wrapping_mul(i64::from(*low)));
            h = h.wrapping_add(i64::from(row[i]).wrapping_mul(i64::from(*high)));
        }
        (sums_low[i], sums_high[i]) = (l, h);
    }
}

#[inline(always)]
pub(super) fn fold_tile(tile: &[u8], low: &[i32], high: &[i32], sums_low: &mut [i64], sums_high: &mut [i64]) {
    // Eight sums at once: two rows of a group's four columns.
    const LANES: usize = 2 * GROUP;
    let (low, high) = (&low[..TILE_ROWS * GROUP], &high[..TILE_ROWS * GROUP]);
    let sums = sums_low.chunks_mut(GROUP).zip(sums_high.chunks_mut(GROUP));
    for (group, (sums_low, sums_high)) in tile.chunks_exact(TILE_ROWS * GROUP).zip(sums) {
        let (mut l, mut h) = ([0i64; LANES], [0i64; LANES]);
        for from in (0..TILE_ROWS * GROUP).step_by(LANES) {
            for i in 0..LANES {
                let w = i64::from((group[from + i] ^ BIAS) as i8);
                l[i] = l[i].wrapping_add(w.wrapping_mul(i64::from(low[from + i])));
                h[i] = h[i].wrapping_add(w.wrapping_mul(i64::from(high[from + i])));
            }
        }
        for (i, (low, high)) in sums_low.iter_mut().zip(sums_high).enumerate() {
            *low = low.wrapping_add(l[i]).wrapping_add(l[i + GROUP]);
            *high = high.wrapping_add(h[i]).wrapping_add(h[i + GROUP]);
        }
    }
}

/// Asks for what lies [`PACKED_AHEAD`](crate::kernel) of some bytes.
#[inline(always)]
fn ahead(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint neither reads nor faults, wherever it points, and every x86-64 has the instruction.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(crate::kernel::PACKED_AHEAD).cast())
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// A lane for each pair of a group's four columns, of 64 rows.
const PAIRS: usize = TILE_ROWS * GROUP / 2;

/// Blocks of 64 rows × 32 columns as `matrix::packed` has them, a byte for each weight. In 16-bit lanes, which wrap but never
/// need to: `64 · ((q + 8) · g - 8 · g + 2) + 2^15` has the biased weight as its high byte.
#[inline(always)]
pub(super) fn unpack_weights(packed: &[u8], plain: &mut [u8]) {
    let blocks = packed.as_chunks::<PACKED_BLOCK>().0.iter();
    for (block, plain) in blocks.zip(plain.as_chunks_mut::<PLAIN_BLOCK>().0) {
        let (scales, words) = block.split_at(TILE_ROWS);
        let (mut factor, mut offset) = ([[0u16; 2]; TILE_ROWS], [[0u16; 2]; TILE_ROWS]);
        for ((factor, offset), scale) in factor.iter_mut().zip(&mut offset).zip(scales) {
            let g = group_scale(*scale) * 64;
            *factor = [g as u16; 2];
            *offset = [(-8 * g + 2 * 64 + (1 << 15)) as u16; 2];
        }
        let (factor, offset) = (factor.as_flattened(), offset.as_flattened());
        for (words, plain) in
            words.as_chunks::<EIGHT>().0.iter().zip(plain.as_chunks_mut::<{ 2 * EIGHT }>().0)
        {
            ahead(words);
            let words = words.as_chunks::<2>().0;
            let (first, second) = plain.split_at_mut(EIGHT);
            let (first, second) = (first.as_chunks_mut::<2>().0, second.as_chunks_mut::<2>().0);
            for i in 0..PAIRS {
                let word = u16::from_le_bytes(words[i]);
                let weight = |q: u16| (q & 15).wrapping_mul(factor[i]).wrapping_add(offset[i]);
                let both = |low: u16, high: u16| (weight(low) >> 8 | weight(high) & 0xff00).to_le_bytes();
                first[i] = both(word, word >> 4);
                second[i] = both(word >> 8, word >> 12);
            }
        }
    }
}

/// Makes a module of functions with the given processor features from the bodies above.
macro_rules! instantiate {
    (@ $(#[$feature:meta])* $name:ident($($arg:ident: $type:ty),*) -> $result:ty) => {
        $(#[$feature])*
        unsafe fn $name($($arg: $type),*) -> $result {
            body::$name($($arg),*)
        }
    };
    ($(#[$feature:meta])* $dot:path, $keccak:path, $dot_packed:expr) => {
        use crate::kernel::body::{self, instantiate};
        use crate::kernel::{Functions, HeadScales, WeightSums};
        use crate::reference::Affine;
        use crate::semantics::quantise::Quantiser;
        use crate::semantics::sample::Against;
        use crate::semantics::scale::Scale;

        instantiate!(@ $(#[$feature])* max_abs(v: &[i32]) -> u32);
        instantiate!(@ $(#[$feature])* sum_squares(v: &[i32], shift: u32) -> u64);
        instantiate!(@ $(#[$feature])* quantise(q: Quantiser, v: &[i32], out: &mut [i8]) -> i32);
        instantiate!(@ $(#[$feature])* apply_row_scales(acc: &[i32], correction: i32, scales: &[u16], headroom: u32, out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* add_scaled(x: &[i32], y: &[i32], scale: Scale, frac: u32, out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* to_fixed(x: &[i32], scale: Scale, frac: u32, out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* rotate(v: &[i32], angles: &[i16], out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* gate(g: &[i32], u: &[i32], scale: Scale, table: &[i32], shift: u32, out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* sum(v: &[i32]) -> i64);
        instantiate!(@ $(#[$feature])* shift_by(v: &[i32], mean: i32, out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* affine(v: &mut [i32], scale: Scale, by: Affine<'_>) -> ());
        instantiate!(@ $(#[$feature])* activate(v: &[i32], scale: Scale, table: &[i32], out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* bend(v: &mut [i32], limit: u32, table: &[i32]) -> ());
        instantiate!(@ $(#[$feature])* hadamard(v: &[i32], shift: u32, block: usize, out: &mut [i32]) -> ());
        instantiate!(@ $(#[$feature])* scores(dots: &mut [i32], correction: i32, keys: HeadScales<'_>, query: Scale) -> i32);
        instantiate!(@ $(#[$feature])* weights(scores: &[i32], top: i32, values: HeadScales<'_>, highest: i16, high: &mut [i8], low: &mut [i8]) -> WeightSums);
        instantiate!(@ $(#[$feature])* weigh(a: &[i32], low: &[i32], high: &[i32]) -> (i128, i128));
        instantiate!(@ $(#[$feature])* unpack(low: &[u8], high: &[u8], width: usize, out: &mut [i32]) -> u32);
        instantiate!(@ $(#[$feature])* likelihoods(logits: &[i32], against: Against, out: &mut [u32]) -> ());
        instantiate!(@ $(#[$feature])* weigh_bytes(a: &[i8], low: &[i32], high: &[i32]) -> (i64, i64));
        instantiate!(@ $(#[$feature])* weigh_rows(a: &[i32], low: &[i32], high: &[i32], sums_low: &mut [i64], sums_high: &mut [i64]) -> ());
        instantiate!(@ $(#[$feature])* fold_tile(tile: &[u8], low: &[i32], high: &[i32], sums_low: &mut [i64], sums_high: &mut [i64]) -> ());
        instantiate!(@ $(#[$feature])* unpack_weights(packed: &[u8], plain: &mut [u8]) -> ());

        pub(in crate::kernel) static FUNCTIONS: Functions = Functions {
            dot: $dot, max_abs, sum_squares, quantise, apply_row_scales, add_scaled, to_fixed, rotate, gate, sum, shift_by, affine,
            activate, bend, hadamard, scores, weights, keccak: $keccak, weigh, unpack, likelihoods, weigh_bytes, weigh_rows, fold_tile, unpack_weights,
            dot_packed: $dot_packed,
        };
    };
}
pub(super) use instantiate;
