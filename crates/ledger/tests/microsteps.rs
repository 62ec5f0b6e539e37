//! Every micro-step in the EVM and in Rust over the same random and extreme inputs: the same number, or both refuse.
//!
//! `ASSAY_INPUTS` says how many inputs each kind of step gets (300 if it is not set).
#![allow(clippy::unwrap_used, unreachable_pub)]

mod deployed;
mod made;

use std::collections::BTreeMap;

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolError as _;
use assay_core::request::Sampling;
use assay_engine::program::{
    Declared, Op, Pooling, Reach, Shape as TensorShape, SoftCap, TensorId, ValueId, ValueType,
};
use assay_engine::semantics::scale::Scale;
use assay_ledger::contracts::{IMicroSteps, OperationSteps};

use assay_chain::scratch::{Failure, Scratch};
use assay_verify::microstep::{Cell, Choice, Extent, Rule, fold, map, parts_of, rule};
use deployed::deploy_steps;
use made::{Made, Random};

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
        "matmul" => {
            let rows = 1 + b.r.below(300) as u32;
            b.matmul(HERE, rows);
        }
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
            whole = kind == "pool" || matches!(b.ops[&HERE].op, Op::Attend { reach: Reach::All, .. });
        }
        _ => b.put(
            X,
            Op::Fix { x: 0, offset: 0, len: vocabulary, frac: 16 },
            ValueType::Fixed { len: vocabulary, frac: 16 },
        ),
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
    let position = if late {
        prompt - 1 + random.below(u64::from(positions - prompt) + 1) as u32
    } else {
        random.below(u64::from(positions)) as u32
    };
    let (op, part) = match step {
        Step::Op(_, part) => (HERE, part),
        Step::Adjust(part) => (OPS as u16, part),
        Step::Choose(part) => (OPS as u16 + 1, part),
    };
    let size = 2 + random.below(31) as u32;
    let wild = random.one_in(2);
    let mut made = Made { random, extent, hidden, choice, ops, shapes, items: BTreeMap::new(), size, wild };
    let attended = made.ops.get(&op).is_some_and(|d| d.attended);
    let columns = parts_of(&mut made, op, attended)
        .and_then(|p| p.get(usize::from(part)).map(|s| s.columns.count(extent.block_end(position))))
        .unwrap_or(0);
    let column = made.random.below(columns.max(1) as u64) as u32;
    (made, Cell { op, part, position, column })
}

fn extent(made: &Made) -> IMicroSteps::Extent {
    let e = made.extent;
    IMicroSteps::Extent {
        ops: U256::from(e.ops),
        vocabulary: U256::from(e.vocabulary),
        residualFrac: U256::from(e.residual_frac),
        tokens: e.logits.is_some(),
        hidden: U256::from(made.hidden),
        logits: U256::from(e.logits.unwrap_or(0)),
        positions: U256::from(e.positions),
        prompt: U256::from(e.prompt),
    }
}

fn cell_of(c: Cell) -> IMicroSteps::Cell {
    IMicroSteps::Cell {
        op: U256::from(c.op),
        part: U256::from(c.part),
        position: U256::from(c.position),
        column: U256::from(c.column),
    }
}

/// What the EVM makes of a number, and the gas it took; or that it was refused.
fn ask(
    chain: &mut Scratch,
    to: Address,
    made: &Made,
    c: Cell,
    run: Option<(u32, i64)>,
) -> Option<(i64, u64)> {
    let (items, extent, cell) = (made.blob().into(), extent(made), cell_of(c));
    let said = match run {
        Some((run, before)) => {
            let run = U256::from(run);
            chain.call(to, &IMicroSteps::foldCall { items, extent, cell, run, before })
        }
        None => chain.call(to, &IMicroSteps::mapCall { items, extent, cell }),
    };
    match said {
        Ok(done) => Some((done.value, done.gas)),
        Err(refusal) => {
            let refused = Bytes::from(OperationSteps::Refused::SELECTOR);
            assert_eq!(refusal, Failure::Reverted(refused), "only refusals revert");
            None
        }
    }
}

#[test]
fn the_evm_computes_what_rust_computes() {
    let inputs: u64 = std::env::var("ASSAY_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let only = std::env::var("ASSAY_KIND").ok();
    let mut chain = Scratch::new(1_800_000_000);
    let [operations, attention, sampling] =
        deploy_steps(&mut chain, Address::repeat_byte(0x11)).expect("the artifacts deploy");
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
                    let before =
                        if made.random.one_in(9) { made.random.any(64) } else { made.random.any(50) };
                    let before =
                        if matches!(step, Step::Choose(3)) && made.random.one_in(2) { 0 } else { before };
                    Some((run, before))
                }
                Some(Rule::Map) => None,
                Some(Rule::Given) | None => panic!("{}: {how:?}", about()),
            };
            let want = match run {
                Some((run, before)) => fold(&mut made, cell, run, before),
                None => map(&mut made, cell),
            };
            let got = ask(&mut chain, to, &made, cell, run);
            let number = got.map(|(number, _)| number);
            assert_eq!(number, want, "{}: {cell:?} {run:?} {:?}", about(), made.ops.get(&cell.op));
            if let Some((_, spent)) = got {
                agreed += 1;
                gas += spent;
                most = most.max(spent);
            }
            // The rule, now and then.
            if i % 16 == 0 {
                let call = IMicroSteps::ruleCall {
                    items: made.blob().into(),
                    extent: extent(&made),
                    cell: cell_of(cell),
                };
                let told = chain.read(to, &call).unwrap();
                let (kind, runs, from) = match how.unwrap() {
                    Rule::Given => (0, 0, 0),
                    Rule::Map => (1, 0, 0),
                    Rule::Fold { runs, from } => (2, runs, from),
                };
                let want = (kind, U256::from(runs), from);
                assert_eq!((told.rule, told.runs, told.from), want, "{}", about());
            }
        }
        println!(
            "{name}: {agreed} of {inputs} have a number; gas {} on average, {most} at most",
            gas / agreed.max(1)
        );
        assert!(agreed * 8 > inputs, "{name}: too few inputs have a number");
    }
}
