//! Parts: tables of integers with one row for each position of a block, and the Merkle trees over them.
//!
//! Numbers are written big-endian in two's complement, in the width of the part. By *rows*, the leaves are each row's numbers
//! in runs of 256, row by row. By *columns*, they are each column's numbers in runs of 32 positions, column by column: for
//! short rows, and for the values of attention, of which one channel is read at many positions. Of the latter, four columns
//! share a leaf: it costs no more hashing than one, and a proof of it is two levels shorter.

use assay_core::id::Hash;
use assay_engine::kernel::keccak;
use assay_engine::program::ValueId;

use crate::microstep::Cell;

/// Numbers of a leaf, by rows.
pub const CHUNK: usize = 256;
/// Positions of a leaf, by columns.
pub const COLUMN_CHUNK: usize = 32;
/// Columns that share a leaf of one-byte numbers, by columns: 4 · 32 bytes are hashed in one permutation, as 32 would be.
pub const BAND: usize = 4;
/// Parts of one shape that are hashed together: enough for every lane up to the tops of their trees, few enough for near
/// caches.
const TOGETHER: usize = 16;

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

    /// Writes `rows` runs of `wide` numbers, the first from `first` on, the others `step` further each.
    fn write(&self, first: usize, step: usize, rows: usize, wide: usize, out: &mut Vec<u8>) {
        let starts = (0..rows).map(|r| first + r * step);
        match self {
            Numbers::Byte(v) if wide == BAND => {
                let end = out.len();
                out.resize(end + rows * BAND, 0);
                for (out, at) in out[end..].as_chunks_mut::<BAND>().0.iter_mut().zip(starts) {
                    *out = v[at..].first_chunk::<BAND>().unwrap_or(&[0; BAND]).map(i8::cast_unsigned);
                }
            }
            Numbers::Byte(v) => {
                starts.for_each(|at| out.extend(v[at..at + wide].iter().map(|n| n.cast_unsigned())));
            }
            Numbers::Word(v) => {
                starts.for_each(|at| out.extend(v[at..at + wide].iter().flat_map(|n| n.to_be_bytes())));
            }
            Numbers::Long(v) => {
                starts.for_each(|at| out.extend(v[at..at + wide].iter().flat_map(|n| n.to_be_bytes())));
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
        let wide = self.shape.wide(column).min(count).max(1);
        let first = row * self.shape.columns + column;
        self.numbers.write(first, self.shape.columns, count / wide, wide, out);
    }

    /// The hashes of all leaves, in order.
    pub fn leaves(&self) -> Vec<Hash> {
        leaves(&[self])
    }

    /// Its Merkle root.
    pub fn root(&self) -> Hash {
        keccak::root(self.leaves())
    }

    /// The Merkle roots of several parts. Those of one shape are hashed together, which is faster than one after the other.
    pub fn roots(parts: &[&Part]) -> Vec<Hash> {
        let mut by_shape: Vec<(Shape, Vec<usize>)> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            match by_shape.iter_mut().find(|(shape, all)| *shape == part.shape && all.len() < TOGETHER) {
                Some((_, all)) => all.push(i),
                None => by_shape.push((part.shape, vec![i])),
            }
        }
        let mut roots = vec![Hash::ZERO; parts.len()];
        for (shape, all) in by_shape {
            let alike: Vec<&Part> = all.iter().map(|i| parts[*i]).collect();
            let made = match shape.leaves() {
                0 => vec![keccak::root(vec![]); all.len()],
                count => keccak::roots(leaves(&alike), count),
            };
            all.into_iter().zip(made).for_each(|(i, root)| roots[i] = root);
        }
        roots
    }
}

/// The hashes of all leaves of parts, part by part. Leaves of one length are hashed together.
fn leaves(parts: &[&Part]) -> Vec<Hash> {
    struct Alike {
        len: usize,
        bytes: Vec<u8>,
        places: Vec<usize>,
    }
    let mut by_length: Vec<Alike> = Vec::new();
    let mut count = 0;
    for part in parts {
        let whole = part.numbers.len() * part.shape.width.bytes();
        for leaf in 0..part.shape.leaves() {
            let len = part.shape.leaf(leaf).2 * part.shape.width.bytes();
            let at = by_length.iter().position(|a| a.len == len).unwrap_or(by_length.len());
            if at == by_length.len() {
                let bytes = Vec::with_capacity(if leaf == 0 { whole * parts.len() } else { len });
                by_length.push(Alike { len, bytes, places: Vec::new() });
            }
            part.leaf_into(leaf, &mut by_length[at].bytes);
            by_length[at].places.push(count);
            count += 1;
        }
    }
    let mut all = vec![Hash::ZERO; count];
    for alike in by_length {
        let hashes = keccak::leaves(&alike.bytes, alike.len.max(1));
        alike.places.into_iter().zip(hashes).for_each(|(place, hash)| all[place] = hash);
    }
    all
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
    /// Runs of [`COLUMN_CHUNK`] of a column; of one-byte numbers of [`BAND`] columns, row by row.
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
    /// Bytes of all numbers.
    pub fn bytes(&self) -> usize {
        self.rows.saturating_mul(self.columns).saturating_mul(self.width.bytes())
    }

    /// Lines (rows, or columns that share leaves), numbers along a line, and how many of these a leaf takes.
    fn lines(&self) -> (usize, usize, usize) {
        match self.layout {
            Layout::Rows => (self.rows, self.columns, CHUNK),
            Layout::Columns => (self.columns.div_ceil(self.band()), self.rows, COLUMN_CHUNK),
        }
    }

    /// Columns that share leaves, by columns.
    fn band(&self) -> usize {
        if self.width == Width::Byte { BAND } else { 1 }
    }

    /// Numbers of one row in a leaf whose first column is `column`: by rows as many as it has.
    fn wide(&self, column: usize) -> usize {
        match self.layout {
            Layout::Rows => CHUNK,
            Layout::Columns => self.band().min(self.columns.saturating_sub(column)),
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
        match self.layout {
            Layout::Rows => Place { leaf: row * len.div_ceil(chunk) + column / chunk, at: column % chunk },
            Layout::Columns => {
                let (band, within) = (column / self.band(), column % self.band());
                let wide = self.wide(column - within);
                Place { leaf: band * len.div_ceil(chunk) + row / chunk, at: row % chunk * wide + within }
            }
        }
    }

    /// The cell of a number of a leaf, where `first` is the position of the first row; `None` beyond it.
    pub fn cell(&self, op: ValueId, part: u8, first: u32, leaf: usize, at: u16) -> Option<Cell> {
        let (row, column, count) = self.leaf(leaf);
        let (at, wide) = (usize::from(at), self.wide(column));
        if at >= count {
            return None;
        }
        let (row, column) = (row + at / wide, column + at % wide);
        let position = first.checked_add(u32::try_from(row).ok()?)?;
        Some(Cell { op, part, position, column: u32::try_from(column).ok()? })
    }

    /// Row and column of the first number of a leaf, and how many it has; 0 beyond the last.
    pub fn leaf(&self, leaf: usize) -> (usize, usize, usize) {
        let (lines, len, chunk) = self.lines();
        let per_line = len.div_ceil(chunk).max(1);
        let (line, first) = (leaf / per_line, leaf % per_line * chunk);
        let count = if line < lines { (len - first).min(chunk) } else { 0 };
        match self.layout {
            Layout::Rows => (line, first, count),
            Layout::Columns => {
                let column = line * self.band();
                (first, column, count * self.wide(column))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use assay_core::merkle;

    use super::*;

    fn check(rows: usize, columns: usize, layout: Layout, numbers: Numbers) -> Part {
        let part = Part::new(rows, columns, layout, numbers);
        let shape = part.shape();
        let leaves: Vec<Vec<i64>> =
            (0..shape.leaves()).map(|i| read_leaf(&part.leaf(i), shape.width).unwrap()).collect();
        assert_eq!(leaves.iter().map(Vec::len).sum::<usize>(), rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                let place = shape.place(row, column);
                assert_eq!(leaves[place.leaf][place.at], part.get(row, column));
                assert_eq!(part.get(row, column), part.numbers.get(row * columns + column));
                let cell = shape.cell(3, 1, 64, place.leaf, place.at as u16).unwrap();
                assert_eq!((cell.op, cell.part), (3, 1));
                assert_eq!((cell.position as usize, cell.column as usize), (64 + row, column));
            }
        }
        for (i, numbers) in leaves.iter().enumerate() {
            let (row, column, count) = shape.leaf(i);
            assert_eq!(count, numbers.len());
            assert_eq!(shape.place(row, column), Place { leaf: i, at: 0 });
            assert_eq!(shape.cell(3, 1, 64, i, count as u16), None);
        }
        let hashes: Vec<Hash> = (0..leaves.len()).map(|i| merkle::leaf(&part.leaf(i))).collect();
        assert_eq!(part.leaves(), hashes);
        assert_eq!(part.root(), merkle::root(hashes));
        assert_eq!(shape.leaf(leaves.len()).2, 0);
        part
    }

    #[test]
    fn every_number_stands_in_one_leaf() {
        let mut parts = Vec::new();
        for (rows, columns) in
            [(1, 1), (32, 2), (3, 600), (33, 257), (65, 3), (1, 256), (32, 8), (40, 6), (0, 4)]
        {
            for layout in [Layout::Rows, Layout::Columns] {
                let number = |i: usize| i as i64 * 77_777 - 5;
                let count = rows * columns;
                parts.push(check(
                    rows,
                    columns,
                    layout,
                    Numbers::Byte((0..count).map(|i| number(i) as i8).collect()),
                ));
                parts.push(check(
                    rows,
                    columns,
                    layout,
                    Numbers::Word((0..count).map(|i| number(i) as i32).collect()),
                ));
                parts.push(check(rows, columns, layout, Numbers::Long((0..count).map(number).collect())));
            }
        }
        // Many of one shape, with other shapes between.
        let many: Vec<&Part> =
            (0..7).flat_map(|_| &parts).chain(std::iter::repeat_n(&parts[8], 40)).collect();
        let want: Vec<Hash> = many.iter().map(|p| p.root()).collect();
        assert_eq!(Part::roots(&many), want);
    }

    #[test]
    fn roots_are_over_big_endian_numbers() {
        let part = Part::new(2, 2, Layout::Columns, Numbers::Word(vec![1, -1, 2, -2]));
        let leaf = |a: i32, b: i32| merkle::leaf(&[a.to_be_bytes(), b.to_be_bytes()].concat());
        assert_eq!(part.root(), merkle::root([leaf(1, 2), leaf(-1, -2)]));
        let part = Part::new(1, 3, Layout::Rows, Numbers::Byte(vec![1, -1, 0]));
        assert_eq!(part.root(), merkle::root([merkle::leaf(&[1, 255, 0])]));
        assert_eq!(read_leaf(&[0; 7], Width::Word), None);
        // Bytes by columns: four columns share leaves, row by row.
        let part = Part::new(2, 6, Layout::Columns, Numbers::Byte((0..12).collect()));
        let leaves = [merkle::leaf(&[0, 1, 2, 3, 6, 7, 8, 9]), merkle::leaf(&[4, 5, 10, 11])];
        assert_eq!(part.root(), merkle::root(leaves));
    }
}
