//! Root mean square normalisation (semantics 6.2).

use super::fixed::{bits64, isqrt, rsh};
use super::quantise::{max_abs, normal_shift};
use super::scale::Scale;

/// The scale that turns the numbers of `x` into `x / rms(x)`: the numbers themselves stay as they are.
///
/// `epsilon` is in units of the square of one unit of `x`. `x` holds 1 to 2^17 numbers, `epsilon` is below 2^44.
pub fn rms_scale(x: &[i32], epsilon: u64) -> Scale {
    let shift = normal_shift(max_abs(x));
    let sum = x.iter().map(|&v| square(v, shift)).sum();
    rms_scale_of(sum, shift, x.len() as u64, epsilon)
}

/// The square of one normalised number, at most 2^30.
#[inline(always)]
pub const fn square(v: i32, shift: u32) -> u64 {
    let y = rsh(v as i64, shift);
    (y * y) as u64
}

/// The scale from the sum of squares of `n` numbers, normalised by `shift`.
pub const fn rms_scale_of(sum: u64, shift: u32, n: u64, epsilon: u64) -> Scale {
    let total = sum + ((n * epsilon) >> (2 * shift));
    if total == 0 {
        return Scale::ZERO;
    }
    // An even shift that leaves a quotient of 33 to 36 bits, and so a root of 17 or 18.
    let up = 2 * ((bits64(total) + 35 - bits64(n)) / 2);
    let quotient = ((n as u128) << up) / total as u128;
    Scale::from_u64(isqrt(quotient as u64) as u64, -(up as i32 / 2) - shift as i32)
}

/// The mean, rounded to the nearest integer, halves away from zero.
pub fn mean(v: &[i32]) -> i32 {
    let sum: i64 = v.iter().map(|x| i64::from(*x)).sum();
    mean_of(sum, v.len() as u64)
}

/// The mean of `n` numbers from their sum.
pub const fn mean_of(sum: i64, n: u64) -> i32 {
    let m = ((sum.unsigned_abs() + n / 2) / n) as i64;
    (if sum < 0 { -m } else { m }) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_round_to_the_nearest() {
        assert_eq!([mean(&[1, 2]), mean(&[-1, -2]), mean(&[-1, 1]), mean(&[0, 0, 1])], [2, -2, 0, 0]);
        assert_eq!([mean(&[i32::MAX; 9]), mean(&[i32::MIN; 9])], [i32::MAX, i32::MIN]);
    }

    #[test]
    fn the_scale_is_one_over_the_root_of_the_mean_square() {
        for (x, eps) in [
            (vec![3 << 16, -(4 << 16)], 0u64),
            (vec![1, 0, 0, 0], 0),
            (vec![i32::MIN; 1000], 0),
            (vec![5; 131_072], 1 << 40),
            (vec![0; 7], 42_950),
        ] {
            let mean = x.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / x.len() as f64 + eps as f64;
            let s = rms_scale(&x, eps);
            let got = s.mantissa as f64 * (s.exponent as f64).exp2();
            let want = mean.sqrt().recip();
            assert!((got / want - 1.0).abs() < 1e-4, "{got} for {want}");
        }
        assert_eq!(rms_scale(&[0; 4], 0), Scale::ZERO);
    }
}
