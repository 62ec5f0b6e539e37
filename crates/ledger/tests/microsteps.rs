//! Every micro-step in the EVM and in Rust over the same random and extreme inputs: the same number, or both refuse.
//!
//! `ASSAY_INPUTS` says how many inputs each kind of step gets (300 if it is not set; releases run 100 000).
#![allow(clippy::unwrap_used, unreachable_pub)]

mod evm;

use std::collections::BTreeMap;

use assay_core::request::Sampling;
use assay_engine::matrix::TILE_COLS;
use assay_engine::program::{
    Declared, Op, Pooling, Reach, Shape as TensorShape, SoftCap, TensorId, ValueId, ValueType,
};
use assay_engine::semantics::scale::Scale;
use assay_verify::microstep::{Cell, Choice, Extent, Rule, Source, fold, map, parts_of, rule};
use assay_verify::trace::part::number_at;
use assay_verify::trace::{block_of, block_range};
use evm::{Called, Chain, selector, signed, tail, word};
use revm::primitives::Address;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A signed number of any size up to `bits` bits, often at an end.
    fn any(&mut self, bits: u32) -> i64 {
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
struct Made {
    random: Random,
    extent: Extent,
    hidden: ValueId,
    choice: Choice,
    ops: BTreeMap<ValueId, Declared>,
    shapes: BTreeMap<TensorId, TensorShape>,
    items: BTreeMap<[u8; 32], Vec<u8>>,
    /// Largest number of bits of what is made up: of one case, numbers are of one size.
    size: u32,
    /// Whether numbers may be such that no honest trace has them.
    wild: bool,
}

fn name(kind: u8, fields: [u64; 4]) -> [u8; 32] {
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

    fn rows(&self, op: ValueId, block: u32) -> (std::ops::Range<u32>, std::ops::Range<u32>) {
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
        if wild && r.one_in(8) {
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
            (None, _) if width == 8 => match r.below(4) {
                0 => r.any(64),
                1 => r.below(1 << 32) as i64,
                _ => r.below(1 << 53) as i64,
            },
            _ => r.any(bits.min(size)),
        }
    }

    fn blob(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, bytes) in &self.items {
            out.extend_from_slice(name);
            out.extend(word(bytes.len() as u64));
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
        let key = name(
            1,
            [u64::from(block), u64::from(cell.op), u64::from(cell.part), place.leaf as u64],
        );
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

/// The operations that an operation under test may read, with their own.
struct Build<'r> {
    r: &'r mut Random,
    ops: BTreeMap<ValueId, Declared>,
    shapes: BTreeMap<TensorId, TensorShape>,
}

const TABLE: TensorId = 1;
const ANGLES: TensorId = 2;

impl Build<'_> {
    fn put(&mut self, id: ValueId, op: Op, made: ValueType) {
        let attended = self.r.one_in(2);
        self.ops.insert(id, Declared { op, made, attended });
    }

    fn int8(&mut self, id: ValueId, len: u32, groups: u32) {
        self.put(id, Op::Quantise { x: 0, offset: 0, len, groups }, ValueType::Int8 { len, groups });
    }

    fn fixed(&mut self, id: ValueId, len: u32) -> u8 {
        let frac = self.r.below(29) as u8;
        self.put(id, Op::Add { x: 0, y: 1 }, ValueType::Fixed { len, frac });
        frac
    }

    fn matmul(&mut self, id: ValueId, len: u32) {
        let cols = 1 + self.r.below(700) as u32;
        let shift = self.r.any(9).clamp(-256, 256) as i16;
        let weights = 100 + id;
        self.shapes.insert(weights, TensorShape::Matrix { rows: len, cols, shift });
        self.int8(id - 1, cols, 1);
        self.put(id, Op::MatMul { weights, x: id - 1 }, ValueType::Integers(len));
    }

    /// A value of integers of any kind.
    fn integers(&mut self, id: ValueId, len: u32) {
        match self.r.below(6) {
            0 => drop(self.fixed(id, len)),
            1 => {
                self.fixed(id - 1, len);
                self.put(id, Op::RmsNorm { x: id - 1, epsilon: 1 }, ValueType::Integers(len));
            }
            2 => self.matmul(id, len),
            3 => {
                self.matmul(id - 2, len + 5);
                let op = Op::Rotary { x: id - 2, offset: 5, heads: 1, head_dim: len, table: ANGLES };
                self.put(id, op, ValueType::Integers(len));
            }
            4 => {
                self.matmul(id - 2, len * 2);
                let op = Op::Gate { x: id - 2, gate: 0, up: len, len, table: TABLE };
                self.put(id, op, ValueType::Integers(len));
            }
            _ => {
                self.fixed(id - 1, len);
                self.put(id, Op::Hadamard { x: id - 1, block: 4 }, ValueType::Integers(len));
            }
        }
    }
}

const HERE: ValueId = 40;
const X: ValueId = 20;
const Y: ValueId = 30;
const OPS: usize = 60;

/// The kinds of micro-steps: an operation and one of its parts, or a part of the choice of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Op(&'static str, u8),
    Adjust(u8),
    Choose(u8),
}

fn kinds() -> Vec<Step> {
    let ops: [(&'static str, u8); 16] = [
        ("embed", 1),
        ("norm", 2),
        ("quantise", 3),
        ("matmul", 2),
        ("rotary", 1),
        ("attend", 5),
        ("gate", 2),
        ("add", 1),
        ("fix", 1),
        ("position", 1),
        ("bias", 1),
        ("normalise", 3),
        ("activate", 1),
        ("hadamard", 2),
        ("bend", 1),
        ("pool", 2),
    ];
    let mut all: Vec<Step> =
        ops.into_iter().flat_map(|(op, parts)| (0..parts).map(move |p| Step::Op(op, p))).collect();
    all.extend([0, 2, 3].map(Step::Adjust));
    all.extend([0, 1, 2, 3, 4].map(Step::Choose));
    all
}

/// A length, small as a rule.
fn length(r: &mut Random) -> u32 {
    match r.below(8) {
        0 => 1 + r.below(700) as u32,
        1 => 256,
        _ => 1 + r.below(24) as u32,
    }
}

fn operation(b: &mut Build<'_>, kind: &str) {
    let frac = b.r.below(29) as u8;
    let epsilon = b.r.next() >> (18 + b.r.below(46));
    let len = length(b.r).next_multiple_of(4);
    let cap = SoftCap { limit: (1 << 16) + b.r.below((1 << 30) - (1 << 16)) as u32, table: TABLE };
    let offset = b.r.below(9) as u32;
    let vector = 7;
    let vector_frac = b.r.below(29) as u8;
    match kind {
        "embed" | "position" => {
            let shape =
                TensorShape::Matrix { rows: 200, cols: len, shift: b.r.any(9).clamp(-256, 256) as i16 };
            b.shapes.insert(5, shape);
            let op = if kind == "embed" { Op::Embed { table: 5 } } else { Op::Position { table: 5 } };
            b.put(HERE, op, ValueType::Fixed { len, frac });
        }
        "norm" => {
            b.fixed(X, len);
            b.put(HERE, Op::RmsNorm { x: X, epsilon }, ValueType::Integers(len));
        }
        "quantise" => {
            let groups = if b.r.one_in(2) { 1 } else { 4 };
            b.integers(X, len + offset);
            b.put(HERE, Op::Quantise { x: X, offset, len, groups }, ValueType::Int8 { len, groups });
        }
        "matmul" => b.matmul(HERE, 1 + b.r.below(300) as u32),
        "rotary" => {
            b.integers(X, len * 2 + offset);
            let op = Op::Rotary { x: X, offset, heads: 2, head_dim: len, table: ANGLES };
            b.put(HERE, op, ValueType::Integers(len * 2));
            b.shapes.insert(ANGLES, TensorShape::Rotary { positions: 200, pairs: len / 2 });
        }
        "attend" => {
            let head_dim = 4 * (1 + b.r.below(4) as u32);
            let (heads, kv_heads) = (4, [1, 2, 4][b.r.below(3) as usize]);
            b.int8(X, heads * head_dim, heads);
            b.int8(Y, kv_heads * head_dim, kv_heads);
            b.int8(Y + 5, kv_heads * head_dim, kv_heads);
            let reach = match b.r.below(3) {
                0 => Reach::Past,
                1 => Reach::Window(1 + b.r.below(70) as u32),
                _ => Reach::All,
            };
            let scale =
                Scale { mantissa: 32_768 + b.r.below(32_768) as u16, exponent: b.r.below(40) as i16 - 30 };
            let cap = b.r.one_in(2).then_some(cap);
            let (q, k, v) = (X, Y, Y + 5);
            let op = Op::Attend { q, k, v, layer: 0, reach, heads, kv_heads, head_dim, scale, cap, frac };
            b.put(HERE, op, ValueType::Fixed { len: heads * head_dim, frac });
        }
        "gate" => {
            b.integers(X, len * 2 + offset);
            let op = Op::Gate { x: X, gate: offset, up: len + offset, len, table: TABLE };
            b.put(HERE, op, ValueType::Integers(len));
        }
        "add" => {
            let frac = b.fixed(X, len);
            b.integers(Y, len);
            b.put(HERE, Op::Add { x: X, y: Y }, ValueType::Fixed { len, frac });
        }
        "fix" => {
            b.integers(X, len + offset);
            b.put(HERE, Op::Fix { x: X, offset, len, frac }, ValueType::Fixed { len, frac });
        }
        "bias" => {
            b.integers(X, len);
            b.shapes.insert(vector, TensorShape::Vector { len, frac });
            b.put(HERE, Op::Bias { x: X, bias: vector }, ValueType::Fixed { len, frac });
        }
        "normalise" => {
            let groups = [1, 2, 4][b.r.below(3) as usize];
            b.fixed(X, len);
            b.shapes.insert(vector, TensorShape::Vector { len: len / groups, frac: vector_frac });
            b.shapes.insert(8, TensorShape::Vector { len: len / groups, frac });
            let (center, bias) = (b.r.one_in(2), b.r.one_in(2).then_some(8));
            let op = Op::Normalise { x: X, groups, center, epsilon, gain: vector, bias, frac };
            b.put(HERE, op, ValueType::Fixed { len, frac });
        }
        "activate" => {
            b.integers(X, len);
            b.put(HERE, Op::Activate { x: X, table: TABLE }, ValueType::Fixed { len, frac: 16 });
        }
        "hadamard" => {
            let block = [4, 16, 512][b.r.below(3) as usize];
            let len = block * (1 + b.r.below(2) as u32);
            b.integers(X, len);
            b.put(HERE, Op::Hadamard { x: X, block }, ValueType::Integers(len));
        }
        "bend" => {
            b.fixed(X, len);
            b.put(HERE, Op::Bend { x: X, cap }, ValueType::Fixed { len, frac: 16 });
        }
        _ => {
            let frac = b.fixed(X, len);
            let pooling = [Pooling::First, Pooling::Mean, Pooling::Last][b.r.below(3) as usize];
            b.put(HERE, Op::Pool { x: X, pooling }, ValueType::Fixed { len, frac });
        }
    }
}

fn any_sampling(r: &mut Random) -> Sampling {
    let bias = (0..r.below(4)).map(|i| (i as u32 * 3, r.any(28) as i32 % 100_000_001)).collect();
    Sampling {
        temperature_micro: if r.one_in(12) { 0 } else { 10_000 + r.below(1_990_001) as u32 },
        top_k: [0, 1, 5, u32::MAX][r.below(4) as usize],
        top_p_micro: [1, 500_000, 999_999, 1_000_000][r.below(4) as usize],
        min_p_micro: [0, 1, 100_000, 1_000_000][r.below(4) as usize],
        seed: r.one_in(2).then_some(7),
        presence_micro: [0, 300_001, -2_000_000, 2_000_000][r.below(4) as usize],
        frequency_micro: [0, 1, -1_999_999][r.below(3) as usize],
        repetition_micro: [1_000_000, 10_000, 10_000_000, 1_300_000][r.below(4) as usize],
        bias,
    }
}

/// A random case of a kind, and the number that is asked for.
fn case(step: Step, seed: u64) -> (Made, Cell) {
    let mut random = Random(seed | 1);
    for _ in 0..8 {
        random.next();
    }
    let r = &mut random;
    let mut b = Build { r, ops: BTreeMap::new(), shapes: BTreeMap::new() };
    b.shapes.insert(TABLE, TensorShape::Table);
    b.shapes.insert(ANGLES, TensorShape::Rotary { positions: 200, pairs: 2 });
    let mut vocabulary = [1, 83, 256, 257, 600][b.r.below(5) as usize];
    let mut whole = false;
    match step {
        Step::Op(kind, _) => {
            vocabulary = 200;
            operation(&mut b, kind);
            whole = kind == "pool"
                || matches!(b.ops[&HERE].op, Op::Attend { reach: Reach::All, .. });
        }
        _ => b.put(X, Op::Fix { x: 0, offset: 0, len: vocabulary, frac: 16 }, ValueType::Fixed {
            len: vocabulary,
            frac: 16,
        }),
    }
    let (ops, shapes) = (b.ops, b.shapes);
    let positions = 1 + random.below(99) as u32;
    let prompt = 1 + random.below(u64::from(positions)) as u32;
    let hidden = if random.one_in(2) { 10 } else { 50 };
    let extent = Extent {
        ops: OPS,
        vocabulary,
        residual_frac: random.below(29) as u8,
        logits: (!whole).then_some(X),
        positions,
        prompt,
    };
    let choice = Choice {
        sampling: any_sampling(&mut random),
        guided: random.one_in(3),
        seed: [random.below(256) as u8; 32],
    };
    let late = hidden == 10 || !matches!(step, Step::Op(..));
    let position = if late { prompt - 1 + random.below(u64::from(positions - prompt) + 1) as u32 } else {
        random.below(u64::from(positions)) as u32
    };
    let (op, part) = match step {
        Step::Op(_, part) => (HERE, part),
        Step::Adjust(part) => (OPS as u16, part),
        Step::Choose(part) => (OPS as u16 + 1, part),
    };
    let size = 2 + random.below(31) as u32;
    let wild = random.one_in(2);
    let mut made = Made {
        random,
        extent,
        hidden,
        choice,
        ops,
        shapes,
        items: BTreeMap::new(),
        size,
        wild,
    };
    let attended = made.ops.get(&op).is_some_and(|d| d.attended);
    let columns = parts_of(&mut made, op, attended)
        .and_then(|p| p.get(usize::from(part)).map(|s| s.columns.count(extent.block_end(position))))
        .unwrap_or(0);
    let column = made.random.below(columns.max(1) as u64) as u32;
    (made, Cell { op, part, position, column })
}

fn extent_words(made: &Made) -> Vec<u8> {
    let e = made.extent;
    let tokens = e.logits.is_some();
    [
        e.ops as u64,
        u64::from(e.vocabulary),
        u64::from(e.residual_frac),
        u64::from(tokens),
        u64::from(made.hidden),
        u64::from(e.logits.unwrap_or(0)),
        u64::from(e.positions),
        u64::from(e.prompt),
    ]
    .iter()
    .flat_map(|v| word(*v))
    .collect()
}

fn cell_words(c: Cell) -> Vec<u8> {
    [u64::from(c.op), u64::from(c.part), u64::from(c.position), u64::from(c.column)]
        .iter()
        .flat_map(|v| word(*v))
        .collect()
}

const EXTENT: &str = "(uint256,uint256,uint256,bool,uint256,uint256,uint256,uint256)";
const CELL: &str = "(uint256,uint256,uint256,uint256)";

fn ask(chain: &mut Chain, to: Address, made: &Made, c: Cell, run: Option<(u32, i64)>, what: &str) -> Called {
    let mut data = match run {
        Some(_) => selector(&format!("fold(bytes,{EXTENT},{CELL},uint256,int64)")),
        None => selector(&format!("{what}(bytes,{EXTENT},{CELL})")),
    }
    .to_vec();
    let words = 1 + 8 + 4 + if run.is_some() { 2 } else { 0 };
    data.extend(word(words * 32));
    data.extend(extent_words(made));
    data.extend(cell_words(c));
    if let Some((run, before)) = run {
        data.extend(word(u64::from(run)));
        data.extend(signed(before));
    }
    data.extend(tail(&made.blob()));
    chain.call(to, data)
}

/// The number, or that it was refused.
fn said(called: &Called) -> Option<i64> {
    if !called.ok {
        assert_eq!(called.data, selector("Refused()"), "only refusals revert");
        return None;
    }
    assert_eq!(called.data.len(), 32);
    let v = i64::from_be_bytes(called.data[24..].try_into().unwrap());
    assert_eq!(called.data, signed(v));
    Some(v)
}

#[test]
fn the_evm_computes_what_rust_computes() {
    let inputs: u64 = std::env::var("ASSAY_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let only = std::env::var("ASSAY_KIND").ok();
    let mut chain = Chain::new();
    let operations = chain.deploy("OperationSteps", &[]);
    let attention = chain.deploy("AttentionSteps", &[]);
    let sampling = chain.deploy("SamplingSteps", &[]);
    for step in kinds() {
        let name = format!("{step:?}");
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        let to = match step {
            Step::Op("attend", _) => attention,
            Step::Op(..) => operations,
            _ => sampling,
        };
        let (mut agreed, mut gas, mut most) = (0u64, 0u64, 0u64);
        for i in 0..inputs {
            let seed = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name.len() as u64;
            let (mut made, cell) = case(step, seed);
            let about = || format!("{name}, input {i}");
            let how = rule(&mut made, cell);
            let run = match how {
                Some(Rule::Fold { runs, .. }) => {
                    let run = made.random.below(u64::from(runs).max(1)) as u32;
                    let before = if made.random.one_in(9) { made.random.any(64) } else { made.random.any(50) };
                    let before = if matches!(step, Step::Choose(3)) && made.random.one_in(2) { 0 } else { before };
                    Some((run, before))
                }
                Some(Rule::Map) => None,
                Some(Rule::Given) | None => panic!("{}: {how:?}", about()),
            };
            let want = match run {
                Some((run, before)) => fold(&mut made, cell, run, before),
                None => map(&mut made, cell),
            };
            let got = ask(&mut chain, to, &made, cell, run, "map");
            assert_eq!(said(&got), want, "{}: {cell:?} {run:?} {:?}", about(), made.ops.get(&cell.op));
            agreed += u64::from(want.is_some());
            gas += got.gas;
            most = most.max(got.gas);
            // The rule, now and then.
            if i % 16 == 0 {
                let told = ask(&mut chain, to, &made, cell, None, "rule");
                assert!(told.ok, "{}", about());
                let (kind, runs, from) = match how.unwrap() {
                    Rule::Given => (0, 0, 0),
                    Rule::Map => (1, 0, 0),
                    Rule::Fold { runs, from } => (2, runs, from),
                };
                let words = [word(kind), word(u64::from(runs)), signed(from)].concat();
                assert_eq!(told.data, words, "{}", about());
            }
        }
        println!("{name}: {agreed} of {inputs} have a number; gas {} on average, {most} at most", gas / inputs);
        assert!(agreed * 4 > inputs, "{name}: too few inputs have a number");
    }
}
