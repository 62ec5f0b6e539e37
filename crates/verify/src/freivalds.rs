//! Freivalds' check: whether claimed accumulators are a matrix times its inputs, without the multiplication.
//!
//! All of it is arithmetic modulo the prime `p = 2^61 - 1` ([`PRIME`]). For a matrix `W` of `R` rows, `r` is a vector of `R` numbers
//! drawn uniformly from `0..p`. With `s = rᵀW mod p` known beforehand, claimed accumulators `a` for int8 inputs `q` are believed
//! when `Σ r_i a_i ≡ Σ s_c q_c (mod p)`.
//!
//! **Soundness.** Let `Δ = a - Wq`. The check holds exactly when `Σ r_i Δ_i ≡ 0`. If `Δ_i ≠ 0` for some `i`, then `0 < |Δ_i| < 2^32 < p`,
//! since claimed and true accumulators both are 32-bit numbers: `Δ_i` has an inverse modulo `p`, and whatever the other numbers of
//! `r` are, exactly one `r_i` of the `p` possible makes the sum 0. Whoever chooses `a` without knowing anything about `r` therefore
//! passes with a chance of `1/p`, below 2^-60.9, for any matrix and any number of wrong accumulators. After `m` refused attempts against the
//! same `r` the chance of the next is at most `1/(p - m)`.
//!
//! **Arithmetic.** A number of the field is held in two halves, the low 31 bits and the high 30, so that every product is one of two
//! signed 32-bit numbers. Sums of halves are exact ([`assay_engine::kernel::wide`]) and reduced once at the end. Two combinations
//! with weights of 32 bits modulo 2^64, and four with weights of 16 bits over the integers, are as sound; they need twice as many bytes
//! for each column and are slower (`cargo run --release -p assay-verify --example freivalds`).

use assay_core::keccak::keccak256;
use assay_engine::kernel::Kernel;
use assay_engine::kernel::wide::{Halves, WEIGH_MAX};
use assay_engine::matrix::Matrix;
use assay_engine::semantics::fixed::bits64;

/// The modulus.
pub const PRIME: u64 = (1 << 61) - 1;
/// Chance that one check misses a mistake: below 2 to the minus this.
pub const SOUNDNESS_BITS: u32 = 60;
/// Bits of a low half.
const LOW_BITS: u32 = 31;
/// Accumulators beyond what the kernel takes are cut here.
const CUT_BITS: u32 = 12;

/// A stream of uniform numbers of the field, fixed by what it is made of: word `j` is the `(j mod 4)`-th 8 bytes, big-endian, of
/// `keccak(prefix ‖ floor(j / 4) as 8 bytes)`; its low 61 bits are the next number, unless they are all ones.
#[derive(Clone, Debug)]
pub struct Coins {
    prefix: Vec<u8>,
    mask: u64,
}

impl Coins {
    /// The stream whose prefix is the parts one after the other.
    pub fn new(parts: &[&[u8]]) -> Coins {
        Coins { prefix: parts.concat(), mask: PRIME }
    }

    /// The same stream with numbers of only `bits` bits, at most 60: to measure soundness, never to check.
    #[must_use]
    pub fn weak(self, bits: u32) -> Coins {
        Coins { mask: (1u64 << bits.min(SOUNDNESS_BITS)) - 1, ..self }
    }

    /// The first `count` numbers.
    pub fn weights(&self, count: usize) -> Weights {
        Weights::new(self.numbers().take(count))
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let words = (0u64..).flat_map(|counter| {
            let hash = keccak256(&[&self.prefix, &counter.to_be_bytes()]);
            let mut words = [0u64; 4];
            for (w, bytes) in words.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
                *w = bytes.try_into().map_or(0, u64::from_be_bytes);
            }
            words
        });
        words.map(|w| w & self.mask).filter(|w| *w < PRIME)
    }
}

/// Numbers of the field, in halves.
#[derive(Clone, PartialEq, Eq)]
pub struct Weights {
    low: Vec<i32>,
    high: Vec<i32>,
}

impl std::fmt::Debug for Weights {
    /// How many: what they are may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({})", self.low.len())
    }
}

impl Weights {
    /// From numbers below [`PRIME`]; what is not below it is taken modulo 2^61.
    pub fn new(numbers: impl IntoIterator<Item = u64>) -> Weights {
        let (low, high) = numbers.into_iter().map(halves).unzip();
        Weights { low, high }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.low.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.low.is_empty()
    }

    /// The halves.
    pub fn halves(&self) -> Halves<'_> {
        Halves { low: &self.low, high: &self.high }
    }

    /// The `i`-th number's halves, low and high; zeros beyond the last.
    pub fn get(&self, i: usize) -> (i32, i32) {
        (self.low.get(i).copied().unwrap_or(0), self.high.get(i).copied().unwrap_or(0))
    }

    /// `Σ w_i · a_i mod p`.
    ///
    /// # Panics
    /// When there are fewer weights than numbers.
    pub fn combine(&self, kernel: Kernel, a: &[i32]) -> u64 {
        if kernel.largest(a) <= WEIGH_MAX {
            let (low, high) = kernel.weigh(a, self.halves());
            return reduce(low, high);
        }
        let high_parts: Vec<i32> = a.iter().map(|v| v >> CUT_BITS).collect();
        let low_parts: Vec<i32> = a.iter().map(|v| v & ((1 << CUT_BITS) - 1)).collect();
        let (hl, hh) = kernel.weigh(&high_parts, self.halves());
        let (ll, lh) = kernel.weigh(&low_parts, self.halves());
        reduce((hl << CUT_BITS) + ll, (hh << CUT_BITS) + lh)
    }

    /// `Σ w_i · q_i mod p`.
    ///
    /// # Panics
    /// When there are fewer weights than numbers.
    pub fn combine_bytes(&self, kernel: Kernel, q: &[i8]) -> u64 {
        let (low, high) = kernel.weigh_bytes(q, self.halves());
        reduce(low.into(), high.into())
    }

    /// `wᵀW mod p`, a number for each column.
    ///
    /// # Panics
    /// When there are fewer weights than rows.
    pub fn fold(&self, kernel: Kernel, matrix: &Matrix<'_>) -> Vec<u64> {
        let (low, high) = kernel.fold(matrix, self.halves());
        low.into_iter().zip(high).map(|(l, h)| reduce(l.into(), h.into())).collect()
    }
}

/// Low and high half of a number of the field.
pub fn halves(number: u64) -> (i32, i32) {
    let low = number & ((1 << LOW_BITS) - 1);
    let high = (number >> LOW_BITS) & ((1 << (61 - LOW_BITS)) - 1);
    (low as i32, high as i32)
}

/// `low + 2^31 · high mod p`, for halves below 2^95 in size.
pub fn reduce(low: i128, high: i128) -> u64 {
    let rest = (low + (high << LOW_BITS)).rem_euclid(i128::from(PRIME));
    u64::try_from(rest).unwrap_or_default()
}

/// What checks the products of one matrix: the weights of its rows, and the sums that they make of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Combination {
    /// `r`.
    pub rows: Weights,
    /// `rᵀW mod p`.
    pub columns: Weights,
}

impl Combination {
    /// Whether the accumulators `a` are believed to be the matrix times `q`; not when either has another length than the matrix.
    pub fn holds(&self, kernel: Kernel, q: &[i8], a: &[i32]) -> bool {
        (a.len(), q.len()) == (self.rows.len(), self.columns.len())
            && self.rows.combine(kernel, a) == self.columns.combine_bytes(kernel, q)
    }
}

/// Bits of soundness that are left when any of `checks` checks may miss.
pub fn soundness_of(checks: u64) -> u32 {
    SOUNDNESS_BITS.saturating_sub(bits64(checks.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_engine::matrix::store;

    #[test]
    fn numbers_survive_their_halves() {
        for n in [0, 1, (1 << 31) - 1, 1 << 31, PRIME - 1, 0x0123_4567_89ab_cdef] {
            let (low, high) = halves(n);
            assert!(low >= 0 && high >= 0);
            assert_eq!(reduce(low.into(), high.into()), n % PRIME);
        }
        assert_eq!(reduce(-1, 0), PRIME - 1);
        assert_eq!(reduce(0, 1 << 30), 1, "2^61 is 1");
    }

    #[test]
    fn honest_products_hold_and_no_other_at_the_ends_of_every_range() {
        for (rows, cols) in [(1, 1), (70, 5), (300, 33)] {
            for weight in [-128i8, 127, 3] {
                for input in [-127i8, 127, 1] {
                    let weights: Vec<i8> =
                        (0..rows * cols).map(|i| weight.wrapping_add((i % 2) as i8)).collect();
                    let (bytes, scales) = (store(rows, cols, &weights), vec![1u16; rows]);
                    let matrix = Matrix::new(rows, cols, 0, &bytes, &scales).unwrap();
                    let q = vec![input; cols];
                    let mut a: Vec<i32> = weights
                        .chunks_exact(cols)
                        .map(|row| row.iter().zip(&q).map(|(w, q)| i32::from(*w) * i32::from(*q)).sum())
                        .collect();
                    let r = Coins::new(&[b"test", &[rows as u8]]).weights(rows);
                    for kernel in Kernel::available() {
                        let columns = Weights::new(r.fold(kernel, &matrix));
                        let check = Combination { rows: r.clone(), columns };
                        assert!(check.holds(kernel, &q, &a));
                        assert!(!check.holds(kernel, &q, &a[1..]) && !check.holds(kernel, &q[1..], &a));
                        for wrong in [i32::MIN, i32::MAX, a[rows - 1] ^ 1, a[rows - 1].wrapping_add(1 << 31)]
                        {
                            let right = std::mem::replace(&mut a[rows - 1], wrong);
                            assert_eq!(check.holds(kernel, &q, &a), wrong == right);
                            a[rows - 1] = right;
                        }
                    }
                }
            }
        }
    }

    /// A single wrong accumulator passes when its weight is 0, two that differ by the same when their weights are equal: with weights
    /// of `b` bits both have a chance of 2^-b, which is what the argument bounds.
    #[test]
    fn with_few_bits_mistakes_pass_as_often_as_the_bound_says() {
        const BITS: u32 = 4;
        const TRIALS: u32 = 40_000;
        let kernel = Kernel::available()[0];
        let (mut one, mut two) = (0u32, 0u32);
        for trial in 0..TRIALS {
            let coins = Coins::new(&[b"measured", &trial.to_be_bytes()]).weak(BITS);
            let r = coins.weights(8);
            // The matrix is zero: true accumulators are zero.
            let check = Combination { rows: r, columns: Weights::new([0, 0]) };
            one += u32::from(check.holds(kernel, &[5, -5], &[0, 0, 0, 77, 0, 0, 0, 0]));
            two += u32::from(check.holds(kernel, &[5, -5], &[0, 9, 0, 0, 0, 0, -9, 0]));
        }
        // 2500 are expected of 40 000, with a standard deviation of 48.
        for passed in [one, two] {
            assert!(passed.abs_diff(TRIALS >> BITS) < 240, "{passed} of {TRIALS}");
        }
    }

    #[test]
    fn streams_are_what_the_protocol_says() {
        let coins = Coins::new(&[b"a", b"b"]);
        let first = keccak256(&[b"ab", &0u64.to_be_bytes()]);
        let second = keccak256(&[b"ab", &1u64.to_be_bytes()]);
        let word = |h: &assay_core::id::Hash, i: usize| {
            u64::from_be_bytes(h.as_bytes()[8 * i..8 * i + 8].try_into().unwrap()) & PRIME
        };
        let want = [word(&first, 0), word(&first, 1), word(&first, 2), word(&first, 3), word(&second, 0)];
        assert_eq!(coins.weights(5), Weights::new(want));
        assert!(coins.weak(3).numbers().take(100).all(|n| n < 8));
        assert_eq!(soundness_of(1), 60);
        assert_eq!(soundness_of(1024), 50);
        assert_eq!(soundness_of(1025), 49);
    }
}
