//! int8 matrices in the layout that kernels read (semantics 6.4): one layout for every instruction set, straight from
//! the mapped artifact.
//!
//! Rows come in tiles of 64, columns in groups of 4. A row tile holds its column groups one after the other; a column
//! group holds, for each of the 64 rows, 4 bytes. Each byte is the weight plus 128. Rows and columns that exist only to
//! fill a tile or group hold weight 0. So 16 rows × 4 columns are one 64-byte vector, and a row tile is read in order.
//!
//! Matrices of the profile `int4-v1` are stored in half of that: [`packed`] says how, and that they are int8 matrices all the same.

pub mod packed;

/// Rows of a tile.
pub const TILE_ROWS: usize = 64;
/// Columns of a tile: what one Merkle leaf holds of a row.
pub const TILE_COLS: usize = 256;
/// Columns of a group.
pub const GROUP: usize = 4;
/// What is added to a weight to store it.
pub const BIAS: u8 = 128;

/// A matrix and its row scales, borrowed from an artifact.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    rows: usize,
    cols: usize,
    shift: i16,
    weights: Weights<'a>,
    scales: &'a [u16],
}

/// The stored weights of a matrix, or of one of its row tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weights<'a> {
    /// A byte for each weight.
    Plain(&'a [u8]),
    /// As [`packed`] has them.
    Packed(&'a [u8]),
}

/// Length in bytes of the stored weights of a matrix.
pub const fn stored_len(rows: usize, cols: usize) -> usize {
    rows.next_multiple_of(TILE_ROWS) * cols.next_multiple_of(GROUP)
}

/// Position of a weight in the stored bytes.
#[inline(always)]
pub const fn stored_index(cols: usize, row: usize, col: usize) -> usize {
    let tile = (row / TILE_ROWS) * TILE_ROWS * cols.next_multiple_of(GROUP);
    tile + (col / GROUP) * TILE_ROWS * GROUP + (row % TILE_ROWS) * GROUP + col % GROUP
}

impl<'a> Matrix<'a> {
    /// A matrix over stored bytes; `None` when the lengths do not fit the shape.
    pub fn new(rows: usize, cols: usize, shift: i16, bytes: &'a [u8], scales: &'a [u16]) -> Option<Self> {
        (bytes.len() == stored_len(rows, cols) && scales.len() == rows).then_some(Matrix {
            rows,
            cols,
            shift,
            weights: Weights::Plain(bytes),
            scales,
        })
    }

    /// A matrix over packed bytes; `None` when the lengths do not fit the shape.
    pub fn packed(rows: usize, cols: usize, shift: i16, bytes: &'a [u8], scales: &'a [u16]) -> Option<Self> {
        (bytes.len() == packed::stored_len(rows, cols) && scales.len() == rows).then_some(Matrix {
            rows,
            cols,
            shift,
            weights: Weights::Packed(bytes),
            scales,
        })
    }

    /// A matrix of which only shape and row scales are known: for who is given its products. Asking it for weights panics.
    pub fn without_weights(cols: usize, shift: i16, scales: &'a [u16]) -> Self {
        Matrix { rows: scales.len(), cols, shift, weights: Weights::Plain(&[]), scales }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Binary exponent: weights are `w · scale · 2^-shift`.
    pub fn shift(&self) -> i16 {
        self.shift
    }

    /// Whether its weights are stored packed.
    pub fn is_packed(&self) -> bool {
        matches!(self.weights, Weights::Packed(_))
    }

    /// One scale per row.
    pub fn scales(&self) -> &'a [u16] {
        self.scales
    }

    /// One weight.
    #[inline(always)]
    pub fn weight(&self, row: usize, col: usize) -> i8 {
        match self.weights {
            Weights::Plain(bytes) => (bytes[stored_index(self.cols, row, col)] ^ BIAS) as i8,
            Weights::Packed(bytes) => packed::weight(bytes, self.cols, row, col),
        }
    }

    /// Makes numbers of all weights of a row, in the order of their columns.
    #[inline(always)]
    pub(crate) fn map_row(&self, row: usize, out: &mut [i32], make: impl Fn(i8) -> i32) {
        match self.stored_tile(row / TILE_ROWS) {
            Weights::Plain(tile) => {
                let at = row % TILE_ROWS * GROUP;
                let out = out[..self.cols].chunks_mut(GROUP);
                for (out, group) in out.zip(tile.chunks_exact(TILE_ROWS * GROUP)) {
                    out.iter_mut().zip(&group[at..at + GROUP]).for_each(|(o, w)| *o = make((w ^ BIAS) as i8));
                }
            }
            Weights::Packed(_) => {
                out[..self.cols].iter_mut().enumerate().for_each(|(c, o)| *o = make(self.weight(row, c)));
            }
        }
    }

    /// Number of row tiles.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The weights of a row tile as they are stored.
    #[inline(always)]
    pub(crate) fn stored_tile(&self, tile: usize) -> Weights<'a> {
        let part = |bytes: &'a [u8], len: usize| &bytes[tile * len..(tile + 1) * len];
        match self.weights {
            Weights::Plain(bytes) => {
                Weights::Plain(part(bytes, TILE_ROWS * self.cols.next_multiple_of(GROUP)))
            }
            Weights::Packed(bytes) => Weights::Packed(part(bytes, packed::tile_len(self.cols))),
        }
    }

    /// The bytes of a row tile as they are stored.
    pub fn tile(&self, tile: usize) -> &'a [u8] {
        match self.stored_tile(tile) {
            Weights::Plain(bytes) | Weights::Packed(bytes) => bytes,
        }
    }
}

/// Stores rows of int8 weights (row-major) in the layout of this module.
pub fn store(rows: usize, cols: usize, weights: &[i8]) -> Vec<u8> {
    let mut bytes = vec![BIAS; stored_len(rows, cols)];
    for (r, row) in weights.chunks_exact(cols).take(rows).enumerate() {
        for (c, &w) in row.iter().enumerate() {
            bytes[stored_index(cols, r, c)] = (w as u8) ^ BIAS;
        }
    }
    bytes
}
