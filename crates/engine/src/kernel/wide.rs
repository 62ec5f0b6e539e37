//! Exact sums of products that are wider than 32 bits: what random combinations of accumulators and weights need.
//!
//! A wide weight is two halves, low and high, each an `i32`; who calls decides what they are worth. Sums of the two halves
//! are told apart, so that nothing is rounded, reduced or lost.

use std::borrow::Cow;

use super::Kernel;
use crate::matrix::packed::{PACKED_BLOCK, PLAIN_BLOCK};
use crate::matrix::{GROUP, Matrix, TILE_ROWS, Weights};

/// Numbers that [`Kernel::weigh`] takes are at most this in size.
pub const WEIGH_MAX: u32 = 1 << 23;

/// The low and the high halves of wide weights, as many of each.
#[derive(Clone, Copy, Debug)]
pub struct Halves<'a> {
    /// Low halves.
    pub low: &'a [i32],
    /// High halves.
    pub high: &'a [i32],
}

impl Kernel {
    /// Largest absolute value; 0 for none.
    pub fn largest(self, a: &[i32]) -> u32 {
        // SAFETY: the kernel runs here.
        unsafe { (self.functions.max_abs)(a) }
    }

    /// Little-endian numbers of `width` bytes, 2 to 4: the lower two of all, then the rest of all. Gives back the fewest bytes that
    /// hold each of them, 2 to 4; `None`, and any numbers, when these are not the bytes of `out.len()` numbers.
    pub fn unpack(self, bytes: &[u8], width: u8, out: &mut [i32]) -> Option<u8> {
        let (low, all) = (out.len().checked_mul(2)?, out.len().checked_mul(width.into())?);
        if !(2..=4).contains(&width) || bytes.len() != all {
            return None;
        }
        let (low, high) = bytes.split_at(low);
        // SAFETY: the kernel runs here.
        Some(fewest_bytes(unsafe { (self.functions.unpack)(low, high, width.into(), out) }))
    }

    /// `Σ a_i · w_i` for the low and the high halves of `w`: exact for numbers of at most [`WEIGH_MAX`] in size.
    ///
    /// # Panics
    /// When there are fewer weights than numbers.
    pub fn weigh(self, a: &[i32], w: Halves<'_>) -> (i128, i128) {
        // SAFETY: the kernel runs here.
        unsafe { (self.functions.weigh)(a, w.low, w.high) }
    }

    /// `Σ a_i · w_i` for the low and the high halves of `w`: exact for up to 2^24 numbers.
    ///
    /// # Panics
    /// When there are fewer weights than numbers.
    pub fn weigh_bytes(self, a: &[i8], w: Halves<'_>) -> (i64, i64) {
        // SAFETY: the kernel runs here.
        unsafe { (self.functions.weigh_bytes)(a, w.low, w.high) }
    }

    /// `Σ_r w_r · a_rc` for each column `c` of a table with a row for each weight, for the low and the high halves of `w`. Sums wrap at 64
    /// bits: they are exact as long as numbers' size times weights' size times rows stays below 2^63.
    ///
    /// # Panics
    /// When `a` is not so many rows of `columns` numbers.
    pub fn weigh_rows(self, a: &[i32], columns: usize, w: Halves<'_>) -> (Vec<i64>, Vec<i64>) {
        let (mut low, mut high) = (vec![0i64; columns], vec![0i64; columns]);
        assert!(a.len() == columns * w.low.len() && w.low.len() == w.high.len(), "every row has a weight");
        if columns > 0 {
            // SAFETY: the kernel runs here.
            unsafe { (self.functions.weigh_rows)(a, w.low, w.high, &mut low, &mut high) };
        }
        (low, high)
    }

    /// A row tile, a byte for each weight; columns beyond the matrix's are worth 0.
    pub(crate) fn plain_tile<'a>(self, matrix: &Matrix<'a>, tile: usize) -> Cow<'a, [u8]> {
        match matrix.stored_tile(tile) {
            Weights::Plain(bytes) => Cow::Borrowed(bytes),
            Weights::Packed(bytes) => {
                let mut plain = vec![0; bytes.len() / PACKED_BLOCK * PLAIN_BLOCK];
                // SAFETY: the kernel runs here.
                unsafe { (self.functions.unpack_weights)(bytes, &mut plain) };
                Cow::Owned(plain)
            }
        }
    }

    /// `Σ_r w_r · W[r][c]` for each column `c`, for the low and the high halves of `w`: exact, since a matrix has at most 2^20 rows.
    ///
    /// # Panics
    /// When there are fewer weights than rows.
    pub fn fold(self, matrix: &Matrix<'_>, w: Halves<'_>) -> (Vec<i64>, Vec<i64>) {
        let (mut low, mut high) = (vec![0i64; matrix.cols()], vec![0i64; matrix.cols()]);
        let mut four = (vec![0i32; TILE_ROWS * GROUP], vec![0i32; TILE_ROWS * GROUP]);
        for tile in 0..matrix.tiles() {
            let rows = tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(matrix.rows());
            for (four, w) in [(&mut four.0, w.low), (&mut four.1, w.high)] {
                four.fill(0);
                four.chunks_exact_mut(GROUP).zip(&w[rows.clone()]).for_each(|(f, w)| f.fill(*w));
            }
            // SAFETY: the kernel runs here.
            unsafe {
                (self.functions.fold_tile)(
                    &self.plain_tile(matrix, tile),
                    &four.0,
                    &four.1,
                    &mut low,
                    &mut high,
                )
            };
        }
        (low, high)
    }
}

/// Fewest bytes, of 2 to 4, that hold numbers which differ from their signs in these bits.
const fn fewest_bytes(used: u32) -> u8 {
    match used {
        0..=0x7fff => 2,
        0x8000..=0x7f_ffff => 3,
        _ => 4,
    }
}

/// Fewest bytes, of 2 to 4, that hold every number.
pub fn bytes_of(numbers: &[i32]) -> u8 {
    fewest_bytes(super::body::used_bits(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::store;

    fn random(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        }
    }

    #[test]
    fn every_kernel_weighs_exactly() {
        let mut random = random(9);
        for n in [0, 1, 7, 8, 255, 256, 257, 1000] {
            for extreme in [false, true] {
                let mut number = |bits: u32| match extreme {
                    true => -(1i64 << bits),
                    false => (random() >> (63 - bits)) as i64 - (1 << bits),
                };
                let a: Vec<i32> = (0..n).map(|_| number(23) as i32).collect();
                let q: Vec<i8> = (0..n).map(|_| number(7) as i8).collect();
                let [low, high] = [0, 1].map(|_| (0..n).map(|_| number(31) as i32).collect::<Vec<_>>());
                let w = Halves { low: &low, high: &high };
                let sum = |a: &dyn Fn(usize) -> i128, w: &[i32]| -> i128 {
                    (0..n).map(|i| a(i) * i128::from(w[i])).sum()
                };
                let wide = |i: usize| i128::from(a[i]);
                let byte = |i: usize| i128::from(q[i]);
                for kernel in Kernel::available() {
                    assert_eq!(kernel.weigh(&a, w), (sum(&wide, &low), sum(&wide, &high)), "{kernel:?} {n}");
                    let (l, h) = kernel.weigh_bytes(&q, w);
                    assert_eq!((i128::from(l), i128::from(h)), (sum(&byte, &low), sum(&byte, &high)));
                }
            }
        }
    }

    #[test]
    fn every_kernel_weighs_rows_exactly() {
        let mut random = random(10);
        for (rows, columns) in [(0, 3), (1, 1), (3, 15), (5, 16), (40, 33), (7, 0)] {
            let a: Vec<i32> = (0..rows * columns).map(|_| random() as i32 >> 8).collect();
            let [low, high] = [0, 1].map(|_| (0..rows).map(|_| random() as i32).collect::<Vec<_>>());
            let sum = |w: &[i32], c: usize| -> i64 {
                (0..rows).map(|r| i64::from(w[r]) * i64::from(a[r * columns + c])).sum()
            };
            for kernel in Kernel::available() {
                let (l, h) = kernel.weigh_rows(&a, columns, Halves { low: &low, high: &high });
                assert_eq!((l.len(), h.len()), (columns, columns));
                for c in 0..columns {
                    assert_eq!(
                        (l[c], h[c]),
                        (sum(&low, c), sum(&high, c)),
                        "{kernel:?} {rows} {columns} {c}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_kernel_folds_exactly() {
        let mut random = random(11);
        for (rows, cols) in [(1, 1), (63, 5), (64, 8), (65, 3), (200, 77)] {
            let weights: Vec<i8> = (0..rows * cols).map(|_| random() as i8).collect();
            let (bytes, scales) = (store(rows, cols, &weights), vec![0u16; rows]);
            let matrix = Matrix::new(rows, cols, 0, &bytes, &scales).unwrap();
            let [low, high] = [0, 1].map(|_| (0..rows).map(|_| random() as i32).collect::<Vec<_>>());
            let sum = |w: &[i32], c: usize| -> i64 {
                (0..rows).map(|r| i64::from(w[r]) * i64::from(weights[r * cols + c])).sum()
            };
            for kernel in Kernel::available() {
                let (l, h) = kernel.fold(&matrix, Halves { low: &low, high: &high });
                for c in 0..cols {
                    assert_eq!((l[c], h[c]), (sum(&low, c), sum(&high, c)), "{kernel:?} {rows} {cols} {c}");
                }
            }
        }
    }
}
