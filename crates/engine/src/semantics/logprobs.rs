//! Probabilities of tokens from integer logits (semantics 7.7), for clients that ask for them.

use assay_core::transcript::TokenLogprobs;

use super::exp2::exp2_likelihood;
use super::fixed::{bits64, rsh, sat32, shift_sat};

/// `floor(2^20 · log2(e))`: logits to exponents of two.
const LOG2E_Q20: i64 = 1_512_775;
/// `round(2^16 · ln(2))`: exponents of two to nats.
const LN2_Q16: i64 = 45_426;

/// The chosen token's probability and those of the `count` likeliest tokens.
pub fn logprobs(logits: &[i32], chosen: u32, count: u8) -> TokenLogprobs {
    let exponent = |l: i32| shift_sat(i64::from(l) * LOG2E_Q20, 20);
    let best = exponent(logits.iter().copied().max().unwrap_or(0));
    let distance = |l: i32| best.wrapping_sub(exponent(l)) as u32;
    let sum: u64 = logits.iter().map(|l| u64::from(exp2_likelihood(distance(*l)))).sum();
    let over = log2(sum.max(1)) - log2(u64::from(exp2_likelihood(0)));
    let of = |l: i32| sat32(rsh((-i64::from(distance(l)) - over) * LN2_Q16, 16));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let rank = |id: &u32| (std::cmp::Reverse(logits[*id as usize]), *id);
    let count = usize::from(count).min(ids.len());
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by_key(count - 1, rank);
    }
    ids.truncate(count);
    ids.sort_unstable_by_key(rank);
    TokenLogprobs {
        chosen: of(logits[chosen as usize]),
        top: ids.into_iter().map(|id| (id, of(logits[id as usize]))).collect(),
    }
}

/// The binary logarithm of a number above 0 with 16 fraction bits, rounded down: the mantissa is squared 16 times.
const fn log2(v: u64) -> i64 {
    let n = bits64(v) - 1;
    let mut log = (n as i64) << 16;
    // 1 to 2 with 31 fraction bits.
    let mut m = if n > 31 { v >> (n - 31) } else { v << (31 - n) };
    let mut bit = 1i64 << 15;
    while bit > 0 {
        m = (m * m) >> 31;
        if m >= 1 << 32 {
            m >>= 1;
            log += bit;
        }
        bit >>= 1;
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_right() {
        for v in [1u64, 2, 3, 10, 65_024 << 16, u64::MAX] {
            let want = (v as f64).log2();
            assert!((log2(v) as f64 / 65_536.0 - want).abs() < 3e-5, "{v}");
        }
    }

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits: Vec<i32> = (0..50).map(|i| (i * 7_919 % 400_000) - 100_000).collect();
        let sum: f64 = logits.iter().map(|l| (f64::from(*l) / 65_536.0).exp()).sum();
        let got = logprobs(&logits, 7, 5);
        assert!(got.top.windows(2).all(|w| w[0].1 >= w[1].1));
        for (id, p) in got.top.iter().chain([&(7, got.chosen)]) {
            let want = f64::from(logits[*id as usize]) / 65_536.0 - sum.ln();
            assert!((f64::from(*p) / 65_536.0 - want).abs() < 2e-4, "{id}: {p} for {want}");
        }
        assert_eq!(logprobs(&[5], 0, 0), TokenLogprobs { chosen: 0, top: vec![] });
        assert_eq!(logprobs(&[i32::MIN, i32::MAX], 1, 20).chosen, 0);
    }
}
