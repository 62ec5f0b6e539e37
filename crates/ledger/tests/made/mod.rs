//! A source of micro-steps that makes up what is read.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::collections::BTreeMap;

use alloy_primitives::U256;
use assay_engine::matrix::TILE_COLS;
use assay_engine::program::{Declared, Op, Shape as TensorShape, TensorId, ValueId, ValueType};
use assay_verify::microstep::{Cell, Choice, Extent, Source, parts_of};
use assay_verify::trace::part::number_at;
use assay_verify::trace::{block_of, block_range};

/// A generator of numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A signed number of any size up to `bits` bits, often at an end.
    pub fn any(&mut self, bits: u32) -> i64 {
        let (least, most) = (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits));
        match self.below(12) {
            0 => least,
            1 => most,
            2 => self.below(3) as i64 - 1,
            _ => (self.next() as i64 >> (64 - bits)) >> self.below(u64::from(bits)),
        }
    }
}

/// A source that makes up what is read, leaf by leaf, and keeps it.
pub struct Made {
    pub random: Random,
    pub extent: Extent,
    pub hidden: ValueId,
    pub choice: Choice,
    pub ops: BTreeMap<ValueId, Declared>,
    pub shapes: BTreeMap<TensorId, TensorShape>,
    pub items: BTreeMap<[u8; 32], Vec<u8>>,
    /// Largest number of bits of what is made up: of one case, numbers are of one size.
    pub size: u32,
    /// Whether numbers may be such that no honest trace has them.
    pub wild: bool,
}

/// Name of an item.
pub fn name(kind: u8, fields: [u64; 4]) -> [u8; 32] {
    // kind << 248 | a << 128 | b << 96 | c << 64 | d
    let mut w = [0u8; 32];
    w[0] = kind;
    w[12..16].copy_from_slice(&(fields[0] as u32).to_be_bytes());
    w[16..20].copy_from_slice(&(fields[1] as u32).to_be_bytes());
    w[20..24].copy_from_slice(&(fields[2] as u32).to_be_bytes());
    w[24..32].copy_from_slice(&fields[3].to_be_bytes());
    w
}

impl Made {
    fn keep(&mut self, name: [u8; 32], make: impl FnOnce(&mut Random) -> Vec<u8>) -> Vec<u8> {
        if let Some(bytes) = self.items.get(&name) {
            return bytes.clone();
        }
        let bytes = make(&mut self.random);
        self.items.insert(name, bytes.clone());
        bytes
    }

    pub fn rows(&self, op: ValueId, block: u32) -> (std::ops::Range<u32>, std::ops::Range<u32>) {
        let all = block_range(self.extent.positions, block);
        if self.extent.logits.is_none() {
            return (0..self.extent.positions, 0..self.extent.positions);
        }
        let first = if op > self.hidden {
            all.start.max(self.extent.prompt.saturating_sub(1)).min(all.end)
        } else {
            all.start
        };
        (all.clone(), first..all.end)
    }

    /// A number of a part: of the size that it can have, or anything.
    fn number(&mut self, op: Option<&Op>, part: u8, column: usize, width: usize) -> i64 {
        let (wild, size) = (self.wild, self.size);
        let r = &mut self.random;
        let bits = width as u32 * 8;
        // Folds over the vocabulary read many numbers: that one of them is impossible must be rare.
        if wild && r.one_in(if op.is_none() && part == 0 { 3000 } else { 8 }) {
            return r.any(bits);
        }
        let scale = |r: &mut Random| match column % 2 {
            0 if r.one_in(9) => 0,
            0 => 32_768 + r.below(32_768) as i64,
            _ if r.one_in(20) => r.any(16),
            _ => r.below(60) as i64 - 45,
        };
        let largest = |r: &mut Random| (r.any(33).unsigned_abs() >> r.below(32)).min(1 << 31) as i64;
        match (op, part) {
            (Some(Op::RmsNorm { .. }), 1)
            | (Some(Op::Quantise { .. }), 1)
            | (Some(Op::Normalise { .. }), 1) => scale(r),
            (Some(Op::RmsNorm { .. }), 0) if column == 0 => largest(r),
            (Some(Op::RmsNorm { .. }), 0) => r.any(60).abs() >> 20,
            (Some(Op::Quantise { .. } | Op::Gate { .. } | Op::Hadamard { .. }), 0) => largest(r),
            (Some(Op::Normalise { .. }), 0) => match column % 3 {
                0 => r.any(36),
                1 => largest(r),
                _ => (r.any(60) >> 20).abs(),
            },
            (Some(Op::Attend { .. }), 1) => match column % 3 {
                0 => r.any(32),
                1 if r.one_in(8) => i64::MIN,
                1 => r.below(30) as i64 - 10,
                _ => 1 + r.below(1 << 33) as i64,
            },
            (Some(Op::Attend { .. }), 3) => r.any(40),
            (None, 0) if width == 8 => r.below(1 << 32) as i64 >> r.below(40),
            (None, _) if width == 8 => match r.below(4) {
                0 => r.any(64),
                1 => r.below(1 << 32) as i64,
                _ => r.below(1 << 53) as i64,
            },
            _ => r.any(bits.min(size)),
        }
    }

    pub fn blob(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, bytes) in &self.items {
            out.extend_from_slice(name);
            out.extend(U256::from(bytes.len()).to_be_bytes::<32>());
            out.extend_from_slice(bytes);
        }
        out
    }
}

impl Source for Made {
    fn extent(&self) -> Extent {
        self.extent
    }

    fn choice(&mut self) -> Option<&Choice> {
        let mut bytes = vec![u8::from(self.choice.guided)];
        bytes.extend_from_slice(&self.choice.seed);
        bytes.extend(borsh::to_vec(&self.choice.sampling).unwrap());
        self.items.insert(name(8, [0; 4]), bytes);
        Some(&self.choice)
    }

    fn op(&mut self, op: ValueId) -> Option<(Op, ValueType)> {
        let declared = *self.ops.get(&op)?;
        self.items.insert(name(2, [0, 0, 0, u64::from(op)]), borsh::to_vec(&declared).unwrap());
        Some((declared.op, declared.made))
    }

    fn shape(&mut self, tensor: TensorId) -> Option<TensorShape> {
        let shape = *self.shapes.get(&tensor)?;
        let (kind, a, b, detail) = match shape {
            TensorShape::Matrix { rows, cols, shift } => (0u8, rows, cols, shift),
            TensorShape::Table => (1, 0, 0, 0),
            TensorShape::Rotary { positions, pairs } => (2, positions, pairs, 0),
            TensorShape::Vector { len, frac } => (3, len, 0, i16::from(frac)),
        };
        let mut bytes = vec![kind];
        bytes.extend(a.to_be_bytes());
        bytes.extend(b.to_be_bytes());
        bytes.extend(detail.to_be_bytes());
        bytes.resize(32, 0);
        self.items.insert(name(3, [0, 0, 0, u64::from(tensor)]), bytes);
        Some(shape)
    }

    fn cell(&mut self, cell: Cell) -> Option<i64> {
        let declared = self.ops.get(&cell.op).copied();
        let attended = declared.is_some_and(|d| d.attended);
        let spec = *parts_of(self, cell.op, attended)?.get(usize::from(cell.part))?;
        let block = if self.extent.logits.is_some() { block_of(cell.position) } else { 0 };
        let (positions, rows) = self.rows(cell.op, block);
        let shape = spec.shape(rows.len(), positions.end);
        let row = cell.position.checked_sub(rows.start)? as usize;
        if row >= shape.rows || cell.column as usize >= shape.columns {
            return None;
        }
        let place = shape.place(row, cell.column as usize);
        let key = name(1, [u64::from(block), u64::from(cell.op), u64::from(cell.part), place.leaf as u64]);
        if !self.items.contains_key(&key) {
            let (_, _, count) = shape.leaf(place.leaf);
            let width = shape.width.bytes();
            let mut bytes = Vec::new();
            for i in 0..count {
                let at = shape.cell(cell.op, cell.part, rows.start, place.leaf, i as u16)?;
                let op = declared.map(|d| d.op);
                let v = self.number(op.as_ref(), cell.part, at.column as usize, width);
                bytes.extend_from_slice(&v.to_be_bytes()[8 - width..]);
            }
            self.items.insert(key, bytes);
        }
        number_at(&self.items[&key], shape.width, place.at)
    }

    fn weight(&mut self, tensor: TensorId, row: u32, col: u32) -> Option<i8> {
        let TensorShape::Matrix { rows, cols, .. } = *self.shapes.get(&tensor)? else { return None };
        if row >= rows || col >= cols {
            return None;
        }
        let tile = col / TILE_COLS as u32;
        let len = (cols - tile * 256).min(256);
        let key = {
            let mut w = name(4, [0, 0, 0, (u64::from(row) << 32) | u64::from(tile)]);
            w[22..24].copy_from_slice(&tensor.to_be_bytes());
            w
        };
        let bytes = self.keep(key, |r| (0..len).map(|_| r.any(8) as u8).collect());
        number_at(&bytes, assay_verify::trace::part::Width::Byte, (col % 256) as usize).map(|v| v as i8)
    }

    fn row_scale(&mut self, tensor: TensorId, row: u32) -> Option<u16> {
        let TensorShape::Matrix { rows, .. } = *self.shapes.get(&tensor)? else { return None };
        if row >= rows {
            return None;
        }
        let run = row / 128;
        let len = (rows - run * 128).min(128) * 2;
        let key = name(5, [0, 0, u64::from(tensor), u64::from(run)]);
        let bytes = self.keep(key, |r| (0..len).map(|_| r.next() as u8).collect());
        let at = (row % 128) as usize * 2;
        Some(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
    }

    fn entry(&mut self, tensor: TensorId, index: u32) -> Option<i32> {
        let (count, range) = match self.shape(tensor)? {
            TensorShape::Table => (1025, 32_768..65_537i64),
            TensorShape::Vector { len, .. } => (len, -(1 << 30) + 1..1 << 30),
            TensorShape::Rotary { positions, pairs } => (2 * positions * pairs, -16_384..16_385),
            TensorShape::Matrix { .. } => return None,
        };
        if index >= count {
            return None;
        }
        let (each, width) = if range.end == 16_385 { (128, 2) } else { (64, 4) };
        let run = index / each;
        let len = (count - run * each).min(each);
        let key = name(6, [0, 0, u64::from(tensor), u64::from(run)]);
        let wild = self.wild;
        let bytes = self.keep(key, |r| {
            let mut bytes = Vec::new();
            for _ in 0..len {
                let within = range.start + r.below((range.end - range.start) as u64) as i64;
                let v = match r.below(40) {
                    0 if wild => r.any(width * 8),
                    1 => range.start,
                    2 => range.end - 1,
                    _ => within,
                };
                bytes.extend_from_slice(&v.to_be_bytes()[8 - width as usize..]);
            }
            bytes
        });
        let at = (index % each) as usize * width as usize;
        Some(match width {
            2 => i32::from(i16::from_be_bytes([bytes[at], bytes[at + 1]])),
            _ => i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()),
        })
    }

    fn token(&mut self, position: u32) -> Option<u32> {
        let prompt = self.extent.prompt;
        let (leaf, at) = match position.checked_sub(prompt) {
            None => (position / 64, position % 64),
            Some(i) => (prompt.div_ceil(64) + i / 64, i % 64),
        };
        let vocabulary = u64::from(self.extent.vocabulary);
        let bytes = self.keep(name(7, [0, 0, 0, u64::from(leaf)]), |r| {
            (0..64).flat_map(|_| (r.below(vocabulary.min(9)) as u32).to_be_bytes()).collect()
        });
        let at = at as usize * 4;
        Some(u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()))
    }
}
