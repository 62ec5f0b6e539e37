//! Dynamic quantisation of an integer vector to int8 (semantics 4).

use super::fixed::{bits32, rsh};
use super::scale::Scale;

/// Bits that a vector keeps when it is normalised before a product.
pub const NORMAL_BITS: u32 = 15;

/// Largest absolute value; `i32::MIN` counts as 2^31.
#[inline(always)]
pub fn max_abs(v: &[i32]) -> u32 {
    v.iter().fold(0, |m, x| m.max(x.unsigned_abs()))
}

/// Right shift that brings numbers up to `max` to at most 2^15 in size.
#[inline(always)]
pub const fn normal_shift(max: u32) -> u32 {
    bits32(max).saturating_sub(NORMAL_BITS)
}

/// How one group of numbers is quantised: derived from its largest absolute value alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiser {
    /// Right shift that normalises the numbers, 0 to 17.
    pub shift: u32,
    /// `floor(127 · 2^24 / M)`, M the normalised largest number; 0 for an all-zero group.
    pub factor: i32,
    /// What one unit of the int8 result is worth, in units of the input.
    pub unit: Scale,
}

impl Quantiser {
    /// For a group whose largest absolute value is `max`.
    pub const fn new(max: u32) -> Quantiser {
        if max == 0 {
            return Quantiser { shift: 0, factor: 0, unit: Scale::ZERO };
        }
        let shift = normal_shift(max);
        let top = rsh(max as i64, shift);
        let factor = ((127i64 << 24) / top) as i32;
        let unit = Scale::from_u64(((top as u64) << 32) / 127, shift as i32 - 32);
        Quantiser { shift, factor, unit }
    }

    /// One number: `round(127 · v / max)` up to the precision of `factor`; within -127..=127 for `|v| <= max`.
    #[inline(always)]
    pub const fn apply(&self, v: i32) -> i8 {
        let y = rsh(v as i64, self.shift) as i32;
        // |y| <= M and M · factor <= 127 · 2^24, so neither product nor sum leaves i32.
        (y.wrapping_mul(self.factor).wrapping_add(1 << 23) >> 24) as i8
    }
}

/// Quantises one group with scale `scale` into `out` and returns the scale of the int8 numbers.
pub fn quantise(v: &[i32], scale: Scale, out: &mut [i8]) -> Scale {
    let q = Quantiser::new(max_abs(v));
    for (o, &x) in out.iter_mut().zip(v) {
        *o = q.apply(x);
    }
    scale.times(q.unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_of_input_fills_the_range() {
        for max in [1u32, 2, 126, 127, 128, 32_767, 32_768, 65_535, 1 << 20, u32::MAX >> 1, 1 << 31] {
            let q = Quantiser::new(max);
            let ends = [(max as i64).min(i32::MAX as i64) as i32, (-(max as i64)) as i32];
            for e in ends {
                assert!(q.apply(e).unsigned_abs() >= 126 && q.apply(e) != -128, "{max}: {}", q.apply(e));
            }
            assert_eq!(q.apply(0), 0);
        }
        let mut out = [1i8; 3];
        assert_eq!(quantise(&[0, 0, 0], Scale::power(0), &mut out), Scale::ZERO);
        assert_eq!(out, [0; 3]);
        let s = quantise(&[127_000, -1_000, 600], Scale::power(0), &mut out);
        assert_eq!(out, [127, -1, 1]);
        assert_eq!(s.to_fixed(127, 0), 127_000);
    }
}
