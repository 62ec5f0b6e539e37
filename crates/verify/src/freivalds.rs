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
/// int8 digits of a number of the field: `255^8 > 2 p`.
pub const DIGITS: usize = 8;
/// Most rows that are summed before they are reduced.
const RUN_ROWS: usize = 1024;
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
        low.into_iter().zip(high).map(|(l, h)| reduce_narrow(l, h)).collect()
    }

    /// `Σ_t w_t · a_tc mod p` for each column `c` of a table of accumulators with a row for each weight.
    ///
    /// # Panics
    /// When `a` is not as many rows of `columns` numbers as there are weights.
    pub fn combine_rows(&self, kernel: Kernel, a: &[i32], columns: usize) -> Vec<u64> {
        assert_eq!(a.len(), columns.saturating_mul(self.len()), "every row has a weight");
        // Numbers of b bits, weights of 31 and 2^(31 - b) rows make sums below 2^62.
        let rows = ((1usize << 31) / (kernel.largest(a).max(1) as usize)).clamp(1, RUN_ROWS);
        let mut sums = vec![0u64; columns];
        let runs = self.low.chunks(rows).zip(self.high.chunks(rows));
        for ((low, high), a) in runs.zip(a.chunks(rows.saturating_mul(columns).max(1))) {
            let (low, high) = kernel.weigh_rows(a, columns, Halves { low, high });
            for (sum, (l, h)) in sums.iter_mut().zip(low.into_iter().zip(high)) {
                *sum = add(*sum, reduce_narrow(l, h));
            }
        }
        sums
    }

    /// The same for a table of int8 numbers.
    ///
    /// # Panics
    /// As [`Weights::combine_rows`].
    pub fn combine_byte_rows(&self, kernel: Kernel, q: &[i8], columns: usize) -> Vec<u64> {
        let wide: Vec<i32> = q.iter().map(|v| i32::from(*v)).collect();
        self.combine_rows(kernel, &wide, columns)
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

/// The sum of two numbers of the field.
pub fn add(a: u64, b: u64) -> u64 {
    let sum = a + b;
    if sum >= PRIME { sum - PRIME } else { sum }
}

/// The product of two numbers of the field.
pub fn multiply(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let (low, high) = (product & u128::from(PRIME), product >> 61);
    add(u64::try_from(low).unwrap_or_default() % PRIME, u64::try_from(high).unwrap_or_default())
}

/// [`reduce`] without wide division.
fn reduce_narrow(low: i64, high: i64) -> u64 {
    let high = residue(high);
    // 2^61 is 1: a shift by 31 moves the upper bits to the other end.
    let moved = (high & ((1 << (61 - LOW_BITS)) - 1)) << LOW_BITS | high >> (61 - LOW_BITS);
    add(residue(low), moved)
}

/// A signed number in the field.
pub fn residue(v: i64) -> u64 {
    let folded = (v & PRIME.cast_signed()) + (v >> 61);
    // Between -4 and 2^61 + 2.
    let positive = if folded < 0 { folded + PRIME.cast_signed() } else { folded }.cast_unsigned();
    if positive >= PRIME { positive - PRIME } else { positive }
}

/// Digits of a number of the field: int8 numbers from -127 to 127 with `v ≡ Σ d_i · 255^i`.
pub fn digits(v: u64) -> [i8; DIGITS] {
    let mut rest = v.cast_signed();
    if v > PRIME / 2 {
        rest -= PRIME.cast_signed();
    }
    let mut digits = [0i8; DIGITS];
    for d in &mut digits {
        let r = (rest + 127).rem_euclid(255) - 127;
        rest = (rest - r) / 255;
        *d = i8::try_from(r).unwrap_or_default();
    }
    digits
}

/// `Σ d_i · 255^i mod p` for 32-bit `d_i`: what a matrix makes of a number's digits, put together.
pub fn undigit(products: [i32; DIGITS]) -> u64 {
    let horner = |four: &[i32]| four.iter().rev().fold(0i64, |sum, d| sum * 255 + i64::from(*d));
    let (low, high) = products.split_at(DIGITS / 2);
    add(residue(horner(low)), multiply(residue(horner(high)), 255 * 255 * 255 * 255))
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
    fn the_fields_arithmetic_is_that_of_integers() {
        let mut numbers = vec![0, 1, 2, (1 << 31) - 1, 1 << 31, 1 << 60, PRIME / 2, PRIME / 2 + 1, PRIME - 1];
        numbers.extend(Coins::new(&[b"numbers"]).numbers().take(50));
        for a in &numbers {
            let d = digits(*a);
            assert!(d.iter().all(|d| *d > i8::MIN));
            assert_eq!(undigit(d.map(i32::from)), *a);
            for b in &numbers {
                let (wide_a, wide_b) = (i128::from(*a), i128::from(*b));
                assert_eq!(i128::from(multiply(*a, *b)), wide_a * wide_b % i128::from(PRIME));
                assert_eq!(i128::from(add(*a, *b)), (wide_a + wide_b) % i128::from(PRIME));
                for (low, high) in [(1, -1), (-1, 1), (-1, -1), (1, 1)] {
                    let (low, high) = (low * a.cast_signed() * 3, high * b.cast_signed() * 3);
                    assert_eq!(reduce_narrow(low, high), reduce(low.into(), high.into()));
                }
            }
        }
        for v in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            assert_eq!(i128::from(residue(v)), i128::from(v).rem_euclid(i128::from(PRIME)));
        }
        for ends in [[i32::MIN; DIGITS], [i32::MAX; DIGITS]] {
            let want = ends.iter().rev().fold(0i128, |sum, d| sum * 255 + i128::from(*d));
            assert_eq!(i128::from(undigit(ends)), want.rem_euclid(i128::from(PRIME)));
        }
    }

    #[test]
    fn rows_are_combined_exactly() {
        for (rows, columns, size) in [(1, 1, 8), (5, 20, 31), (70, 17, 24), (3, 40, 0), (1500, 3, 30)] {
            let w = Coins::new(&[b"rows"]).weights(rows);
            let number = |i: usize| {
                ((i as i64 * 7_919_777_333) % (1 << size)) as i32 * if i.is_multiple_of(3) { -1 } else { 1 }
            };
            let a: Vec<i32> = (0..rows * columns).map(number).collect();
            let q: Vec<i8> = a.iter().map(|v| *v as i8).collect();
            let weight = |t: usize| i128::from(w.get(t).0) + (i128::from(w.get(t).1) << 31);
            for kernel in Kernel::available() {
                let (sums, bytes) =
                    (w.combine_rows(kernel, &a, columns), w.combine_byte_rows(kernel, &q, columns));
                for c in 0..columns {
                    let sum = |v: &dyn Fn(usize) -> i128| {
                        let all: i128 = (0..rows).map(|t| weight(t) * v(t * columns + c)).sum();
                        all.rem_euclid(i128::from(PRIME))
                    };
                    assert_eq!(i128::from(sums[c]), sum(&|i| i128::from(a[i])));
                    assert_eq!(i128::from(bytes[c]), sum(&|i| i128::from(q[i])));
                }
            }
        }
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
