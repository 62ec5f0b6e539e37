//! Matrices in four bits a weight (profile `int4-v1`, semantics 10): stored small, worth the int8 numbers that they unpack to.
//!
//! A weight is `rsh(q · g, 2)` for a `q` of -8 to 7 of its own and a `g` of -63 to 63 that 32 columns of a row share: at most 126 in
//! size. So everything that reads weights (products, model roots, light checks, openings, disputes) reads the int8 matrix, and
//! only what holds and moves the bytes knows of this layout. Several packings may be worth the same weights: such files differ,
//! and are one model.
//!
//! A row tile of 64 rows holds groups of 32 columns, one after the other, each 64 bytes of `g`, one for each row (a signed byte; one
//! beyond ±63 counts as ±63), and 1024 bytes of weights: for each 8 columns, row by row, two 16-bit words, little-endian. The first
//! has columns 0, 1, 4 and 5 from its lowest bits up, the second 2, 3, 6 and 7, four bits each, which hold `q + 8`. So a kernel
//! that splits words gets the layout of [`super`] without moving a byte to another lane. What only fills a tile or a group
//! is worth 0.

use std::ops::Range;

use super::{GROUP, TILE_ROWS};

/// Columns that share a scale.
pub const PACKED_GROUP: usize = 32;
/// Largest size of a group's scale.
pub const GROUP_SCALE_MAX: i32 = 63;
/// Largest size of a weight: 8 · 63 / 4.
pub const PACKED_WEIGHT_MAX: i32 = 126;
/// Stored bytes of 64 rows × 32 columns: 64 scales, then 1024 bytes of weights.
pub(crate) const PACKED_BLOCK: usize = TILE_ROWS + TILE_ROWS * PACKED_GROUP / 2;
/// The same, a byte for each weight.
pub(crate) const PLAIN_BLOCK: usize = TILE_ROWS * PACKED_GROUP;
/// Stored bytes of 64 rows × 8 columns.
pub(crate) const EIGHT: usize = TILE_ROWS * 4;

/// Stored bytes of a row tile.
pub(crate) const fn tile_len(cols: usize) -> usize {
    cols.div_ceil(PACKED_GROUP) * PACKED_BLOCK
}

/// Length in bytes of the stored weights of a matrix.
pub const fn stored_len(rows: usize, cols: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * tile_len(cols)
}

/// A group's scale as its byte says it.
#[inline(always)]
pub(crate) fn group_scale(byte: u8) -> i32 {
    i32::from(byte as i8).clamp(-GROUP_SCALE_MAX, GROUP_SCALE_MAX)
}

/// What a number of -8 to 7 is worth in a group with this scale: `rsh(q · g, 2)`.
#[inline(always)]
pub const fn worth(q: i32, g: i32) -> i32 {
    (q * g + 2) >> 2
}

/// Where the block of a weight begins, the weight's row in it, and the byte and the shift of its four bits.
#[inline(always)]
const fn place(cols: usize, row: usize, col: usize) -> (usize, usize, usize, u32) {
    let (r, c) = (row % TILE_ROWS, col % PACKED_GROUP);
    let block = row / TILE_ROWS * tile_len(cols) + col / PACKED_GROUP * PACKED_BLOCK;
    // Of eight columns, the second four lie in the second byte of each word.
    let (word, second, high) = (c % GROUP / 2, c % 8 / GROUP, c % 2);
    let byte = block + TILE_ROWS + c / 8 * EIGHT + 4 * r + 2 * word + second;
    (block, r, byte, 4 * high as u32)
}

/// One weight of stored bytes.
#[inline(always)]
pub(super) fn weight(bytes: &[u8], cols: usize, row: usize, col: usize) -> i8 {
    let (block, r, byte, shift) = place(cols, row, col);
    worth(i32::from((bytes[byte] >> shift) & 15) - 8, group_scale(bytes[block + r])) as i8
}

/// The bytes of a matrix whose weights are all 0.
pub fn zeros(rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = vec![0x88; stored_len(rows, cols)];
    bytes.chunks_exact_mut(PACKED_BLOCK).for_each(|block| block[..TILE_ROWS].fill(0));
    bytes
}

/// The bytes of a matrix, group by group and row by row: `group` gives the scale and the numbers of a row's columns in a range.
///
/// # Panics
/// As [`put`].
pub fn store(
    rows: usize,
    cols: usize,
    mut group: impl FnMut(usize, Range<usize>) -> (i32, Vec<i8>),
) -> Vec<u8> {
    let mut bytes = zeros(rows, cols);
    for row in 0..rows {
        for (index, first) in (0..cols).step_by(PACKED_GROUP).enumerate() {
            let (g, q) = group(row, first..cols.min(first + PACKED_GROUP));
            put(&mut bytes, cols, (row, index), g, &q);
        }
    }
    bytes
}

/// Puts a group of a row: its scale and up to 32 numbers of -8 to 7.
///
/// # Panics
/// When a number or the scale is out of its range, or the group is not in the matrix.
pub fn put(bytes: &mut [u8], cols: usize, (row, group): (usize, usize), g: i32, q: &[i8]) {
    assert!(g.abs() <= GROUP_SCALE_MAX && q.len() <= PACKED_GROUP, "a scale of six bits and 32 numbers");
    let first = group * PACKED_GROUP;
    let (block, r, ..) = place(cols, row, first);
    bytes[block + r] = g as i8 as u8;
    for (i, &q) in q.iter().enumerate() {
        assert!((-8..8).contains(&q), "numbers of four bits");
        let (_, _, byte, shift) = place(cols, row, first + i);
        bytes[byte] = bytes[byte] & !(15 << shift) | ((q + 8) as u8) << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::USUAL;
    use crate::matrix::{BIAS, Matrix};

    #[test]
    fn what_is_put_is_what_is_there() {
        for (rows, cols) in [(1, 1), (3, 31), (64, 32), (65, 33), (130, 96)] {
            let scale = |row: usize, group: usize| (row * 31 + group * 17) as i32 % 127 - 63;
            let number = |row: usize, col: usize| ((row * 7 + col * 5) % 16) as i8 - 8;
            let bytes = store(rows, cols, |row, cols| {
                (scale(row, cols.start / PACKED_GROUP), cols.map(|col| number(row, col)).collect())
            });
            let scales = vec![1; rows];
            let w = Matrix::packed(rows, cols, 0, &bytes, &scales).unwrap();
            for row in 0..rows {
                for col in 0..cols {
                    let product = i32::from(number(row, col)) * scale(row, col / PACKED_GROUP);
                    assert_eq!(i32::from(w.weight(row, col)), (product + 2).div_euclid(4), "{row} {col}");
                }
            }
            for tile in 0..w.tiles() {
                let plain = USUAL.plain_tile(&w, tile);
                assert_eq!(plain.len(), TILE_ROWS * cols.next_multiple_of(PACKED_GROUP));
                for (at, byte) in plain.iter().enumerate() {
                    let (row, col) = (
                        tile * TILE_ROWS + at / GROUP % TILE_ROWS,
                        at / (TILE_ROWS * GROUP) * GROUP + at % GROUP,
                    );
                    let expected = if row < rows && col < cols { w.weight(row, col) } else { 0 };
                    assert_eq!((byte ^ BIAS) as i8, expected, "{row} {col}");
                }
            }
        }
    }

    #[test]
    fn no_byte_is_worth_more_than_a_weight_may_be() {
        for byte in 0..=255u8 {
            let g = group_scale(byte);
            assert_eq!(g, i32::from(byte as i8).clamp(-63, 63));
            assert!((-8..8).all(|q| worth(q, g).abs() <= PACKED_WEIGHT_MAX), "{g}");
        }
    }
}
