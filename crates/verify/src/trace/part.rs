//! Parts: tables of integers with one row for each position of a block, and the Merkle trees over them.
//!
//! Numbers are written big-endian in two's complement, in the width of the part. By *rows*, the leaves are each row's numbers
//! in runs of 256, row by row. By *columns*, they are each column's numbers in runs of 32 positions, column by column: for
//! short rows, and for the values of attention, of which one channel is read at many positions.

use assay_core::id::Hash;
use assay_engine::kernel::keccak;
use assay_engine::program::ValueId;

use crate::microstep::Cell;

/// Numbers of a leaf, by rows.
pub const CHUNK: usize = 256;
/// Positions of a leaf, by columns.
pub const COLUMN_CHUNK: usize = 32;

/// Bytes of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 1.
    Byte,
    /// 4.
    Word,
    /// 8.
    Long,
}

impl Width {
    /// As a number.
    pub fn bytes(self) -> usize {
        match self {
            Width::Byte => 1,
            Width::Word => 4,
            Width::Long => 8,
        }
    }
}

/// The numbers of a part, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Of 1 byte.
    Byte(Vec<i8>),
    /// Of 4 bytes.
    Word(Vec<i32>),
    /// Of 8 bytes.
    Long(Vec<i64>),
}

impl Numbers {
    /// Bytes of a number.
    pub fn width(&self) -> Width {
        match self {
            Numbers::Byte(_) => Width::Byte,
            Numbers::Word(_) => Width::Word,
            Numbers::Long(_) => Width::Long,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Numbers::Byte(v) => v.len(),
            Numbers::Word(v) => v.len(),
            Numbers::Long(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `i`-th.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, i: usize) -> i64 {
        match self {
            Numbers::Byte(v) => i64::from(v[i]),
            Numbers::Word(v) => i64::from(v[i]),
            Numbers::Long(v) => v[i],
        }
    }

    /// Writes `count` numbers from `first` on, `step` apart.
    fn write(&self, first: usize, step: usize, count: usize, out: &mut Vec<u8>) {
        match self {
            Numbers::Byte(v) if step == 1 => {
                out.extend(v[first..first + count].iter().map(|n| n.cast_unsigned()));
            }
            Numbers::Byte(v) => {
                out.extend(v[first..].iter().step_by(step).take(count).map(|n| n.cast_unsigned()));
            }
            Numbers::Word(v) => {
                out.extend(v[first..].iter().step_by(step).take(count).flat_map(|n| n.to_be_bytes()));
            }
            Numbers::Long(v) => {
                out.extend(v[first..].iter().step_by(step).take(count).flat_map(|n| n.to_be_bytes()));
            }
        }
    }
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    shape: Shape,
    numbers: Numbers,
}

impl Part {
    /// From its numbers, row by row.
    ///
    /// # Panics
    /// When they are not `rows × columns`.
    pub fn new(rows: usize, columns: usize, layout: Layout, numbers: Numbers) -> Part {
        assert_eq!(numbers.len(), rows * columns, "a part has all its numbers");
        Part { shape: Shape { rows, columns, width: numbers.width(), layout }, numbers }
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its numbers, row by row.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Its numbers, row by row.
    pub fn into_numbers(self) -> Numbers {
        self.numbers
    }

    /// The number of a row and column.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, row: usize, column: usize) -> i64 {
        assert!(column < self.shape.columns, "a part is read where it is");
        self.numbers.get(row * self.shape.columns + column)
    }

    /// A row of numbers of one byte; empty for wider ones.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn bytes(&self, row: usize) -> &[i8] {
        match &self.numbers {
            Numbers::Byte(v) => &v[row * self.shape.columns..(row + 1) * self.shape.columns],
            Numbers::Word(_) | Numbers::Long(_) => &[],
        }
    }

    /// The bytes of a leaf.
    pub fn leaf(&self, leaf: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.leaf_into(leaf, &mut bytes);
        bytes
    }

    fn leaf_into(&self, leaf: usize, out: &mut Vec<u8>) {
        let (row, column, count) = self.shape.leaf(leaf);
        let (first, step) = match self.shape.layout {
            Layout::Rows => (row * self.shape.columns + column, 1),
            Layout::Columns => (row * self.shape.columns + column, self.shape.columns),
        };
        if count > 0 {
            self.numbers.write(first, step, count, out);
        }
    }

    /// The hashes of all leaves, in order.
    pub fn leaves(&self) -> Vec<Hash> {
        let (lines, len, chunk) = self.shape.lines();
        let (full, rest, width) = (len / chunk, len % chunk, self.shape.width.bytes());
        // Leaves of one length are hashed together.
        let (mut fulls, mut rests) = (Vec::new(), Vec::new());
        fulls.reserve(lines * full * chunk * width);
        for line in 0..lines {
            let first = line * (full + usize::from(rest > 0));
            (first..first + full).for_each(|leaf| self.leaf_into(leaf, &mut fulls));
            if rest > 0 {
                self.leaf_into(first + full, &mut rests);
            }
        }
        let fulls = keccak::leaves(&fulls, chunk * width);
        let rests = keccak::leaves(&rests, (rest * width).max(1));
        let (mut fulls, mut rests) = (fulls.into_iter(), rests.into_iter());
        let mut leaves = Vec::with_capacity(self.shape.leaves());
        for _ in 0..lines {
            leaves.extend(fulls.by_ref().take(full));
            leaves.extend(rests.by_ref().take(usize::from(rest > 0)));
        }
        leaves
    }

    /// Its Merkle root.
    pub fn root(&self) -> Hash {
        keccak::root(self.leaves())
    }
}

/// Reads a leaf's numbers; `None` when it is not whole numbers of this width.
pub fn read_leaf(bytes: &[u8], width: Width) -> Option<Vec<i64>> {
    let chunks = bytes.chunks_exact(width.bytes());
    chunks.remainder().is_empty().then(|| chunks.filter_map(read_number).collect())
}

/// The `at`-th number of a leaf.
pub fn number_at(bytes: &[u8], width: Width, at: usize) -> Option<i64> {
    let from = at.checked_mul(width.bytes())?;
    read_number(bytes.get(from..from.checked_add(width.bytes())?)?)
}

/// A number of 1, 4 or 8 bytes.
fn read_number(bytes: &[u8]) -> Option<i64> {
    match *bytes {
        [a] => Some(i64::from(a.cast_signed())),
        [a, b, c, d] => Some(i64::from(i32::from_be_bytes([a, b, c, d]))),
        _ => bytes.try_into().ok().map(i64::from_be_bytes),
    }
}

/// How numbers become leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Runs of [`CHUNK`] of a row.
    Rows,
    /// Runs of [`COLUMN_CHUNK`] of a column.
    Columns,
}

/// Shape of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows: positions of the block, or those with logits.
    pub rows: usize,
    /// Numbers of a row.
    pub columns: usize,
    /// Bytes of a number.
    pub width: Width,
    /// How numbers become leaves.
    pub layout: Layout,
}

/// Where a number stands among the leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the leaf.
    pub leaf: usize,
    /// Index of the number in it.
    pub at: usize,
}

impl Shape {
    /// Lines (rows or columns), numbers of a line, and numbers of a leaf.
    fn lines(&self) -> (usize, usize, usize) {
        match self.layout {
            Layout::Rows => (self.rows, self.columns, CHUNK),
            Layout::Columns => (self.columns, self.rows, COLUMN_CHUNK),
        }
    }

    /// Number of leaves.
    pub fn leaves(&self) -> usize {
        let (lines, len, chunk) = self.lines();
        lines.saturating_mul(len.div_ceil(chunk))
    }

    /// Where the number of a row and column stands.
    pub fn place(&self, row: usize, column: usize) -> Place {
        let (_, len, chunk) = self.lines();
        let (line, i) = match self.layout {
            Layout::Rows => (row, column),
            Layout::Columns => (column, row),
        };
        Place { leaf: line * len.div_ceil(chunk) + i / chunk, at: i % chunk }
    }

    /// The cell of a number of a leaf, where `first` is the position of the first row; `None` beyond it.
    pub fn cell(&self, op: ValueId, part: u8, first: u32, leaf: usize, at: u16) -> Option<Cell> {
        let (row, column, count) = self.leaf(leaf);
        let at = usize::from(at);
        let (row, column) = match self.layout {
            Layout::Rows => (row, column + at),
            Layout::Columns => (row + at, column),
        };
        let position = first.checked_add(u32::try_from(row).ok()?)?;
        (at < count).then_some(Cell { op, part, position, column: u32::try_from(column).ok()? })
    }

    /// Row and column of the first number of a leaf, and how many it has; 0 beyond the last.
    pub fn leaf(&self, leaf: usize) -> (usize, usize, usize) {
        let (lines, len, chunk) = self.lines();
        let per_line = len.div_ceil(chunk).max(1);
        let (line, first) = (leaf / per_line, leaf % per_line * chunk);
        let count = if line < lines { (len - first).min(chunk) } else { 0 };
        match self.layout {
            Layout::Rows => (line, first, count),
            Layout::Columns => (first, line, count),
        }
    }
}

#[cfg(test)]
mod tests {
    use assay_core::merkle;

    use super::*;

    #[test]
    fn every_number_stands_in_one_leaf() {
        for (rows, columns) in [(1, 1), (32, 2), (3, 600), (33, 257), (65, 3), (1, 256)] {
            for layout in [Layout::Rows, Layout::Columns] {
                let numbers: Vec<i32> = (0..rows * columns).map(|i| i as i32 * 77_777 - 5).collect();
                let part = Part::new(rows, columns, layout, Numbers::Word(numbers.clone()));
                let leaves: Vec<Vec<i64>> = (0..part.shape().leaves())
                    .map(|i| read_leaf(&part.leaf(i), Width::Word).unwrap())
                    .collect();
                assert_eq!(leaves.iter().map(Vec::len).sum::<usize>(), rows * columns);
                for row in 0..rows {
                    for column in 0..columns {
                        let place = part.shape().place(row, column);
                        assert_eq!(leaves[place.leaf][place.at], part.get(row, column));
                        assert_eq!(part.get(row, column), i64::from(numbers[row * columns + column]));
                    }
                }
                for (i, numbers) in leaves.iter().enumerate() {
                    let (row, column, count) = part.shape().leaf(i);
                    assert_eq!(count, numbers.len());
                    assert_eq!(part.shape().place(row, column), Place { leaf: i, at: 0 });
                }
                let hashes: Vec<Hash> = (0..leaves.len()).map(|i| merkle::leaf(&part.leaf(i))).collect();
                assert_eq!(part.leaves(), hashes);
                assert_eq!(part.root(), merkle::root(hashes));
                assert_eq!(part.shape().leaf(leaves.len()).2, 0);
            }
        }
    }

    #[test]
    fn roots_are_over_big_endian_numbers() {
        let part = Part::new(2, 2, Layout::Columns, Numbers::Word(vec![1, -1, 2, -2]));
        let leaf = |a: i32, b: i32| merkle::leaf(&[a.to_be_bytes(), b.to_be_bytes()].concat());
        assert_eq!(part.root(), merkle::root([leaf(1, 2), leaf(-1, -2)]));
        let part = Part::new(1, 3, Layout::Rows, Numbers::Byte(vec![1, -1, 0]));
        assert_eq!(part.root(), merkle::root([merkle::leaf(&[1, 255, 0])]));
        assert_eq!(read_leaf(&[0; 7], Width::Word), None);
    }
}
