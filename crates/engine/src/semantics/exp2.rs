//! Powers of two for softmax and sampling (semantics 3).

use super::fixed::rsh_u32;

/// What `2^0` is: the largest attention weight. A multiple of 127 so that a weight splits into two signed bytes.
pub const EXP2_ONE: u32 = 65_024;

/// Coefficients of the quartic whose value at `f / 65536` is within 1.7 of `65024 · 2^(-f / 65536)`.
const C: [u32; 5] = [EXP2_ONE, 45_065, 15_559, 3_437, 431];

/// `65024 · 2^(-f / 65536)` for `f` in 0..65536, by Horner's rule with a rounding shift of 16 after each product.
#[inline(always)]
pub const fn exp2_fraction(f: u32) -> u32 {
    // No product exceeds 45 065 · 65 535 + 2^15 < 2^32, no difference is negative.
    C[0] - step(C[1] - step(C[2] - step(C[3] - step(C[4], f), f), f), f)
}

#[inline(always)]
const fn step(t: u32, f: u32) -> u32 {
    (t * f + (1 << 15)) >> 16
}

/// `65024 · 2^(-d / 65536)` rounded to an integer: the weight of an attention score that lies `d` below the largest.
#[inline(always)]
pub const fn exp2_weight(d: u32) -> u32 {
    rsh_u32(exp2_fraction(d & 0xffff), d >> 16)
}

/// `65024 · 2^16 · 2^(-d / 65536)`, rounded down: the same with a longer tail, for sampling.
#[inline(always)]
pub const fn exp2_likelihood(d: u32) -> u32 {
    // Beyond 31 bits of shift nothing is left; a 64-bit shift by at most 63 says so without a branch.
    let n = if d >> 16 > 63 { 63 } else { d >> 16 };
    (((exp2_fraction(d & 0xffff) as u64) << 16) >> n) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quartic_stays_within_two_units_and_never_leaves_its_range() {
        for f in 0..65_536u32 {
            let want = 65_024.0 * (-(f as f64) / 65_536.0).exp2();
            let got = exp2_fraction(f);
            assert!((got as f64 - want).abs() < 1.7, "{f}: {got} for {want}");
            assert!((32_512..=EXP2_ONE).contains(&got));
        }
        assert_eq!(exp2_weight(0), EXP2_ONE);
        assert_eq!(exp2_weight(u32::MAX), 0);
        assert_eq!(exp2_likelihood(0), EXP2_ONE << 16);
        assert_eq!(exp2_likelihood(32 << 16), 0);
    }
}
