//! The operations of a program, part by part (semantics 6).

use assay_engine::program::check::{EPSILON_MAX, NORMAL_FRAC};
use assay_engine::program::{
    Op, Pooling, ROTARY_FRAC, Shape, SoftCap, TensorId, VECTOR_MAX, ValueId, ValueType,
};
use assay_engine::reference::{GATE_FRAC, Share, gate_product, headroom, row_scaled, score, value_weight};
use assay_engine::semantics::exp2::exp2_weight;
use assay_engine::semantics::fixed::{rsh, sat32, shift_sat};
use assay_engine::semantics::norm::{mean_of, rms_scale_of, square};
use assay_engine::semantics::quantise::{Quantiser, normal_shift};
use assay_engine::semantics::scale::Scale;

use super::{ATTENDED_RUN, Cell, Columns, LOWEST, PartSpec, RUN, Rule, Source, run_of, seen};
use crate::trace::part::{Layout, Width};

/// The part of each operation that holds its numbers; a norm's are its input's.
fn numbers_part(op: &Op) -> u8 {
    match op {
        Op::Embed { .. }
        | Op::Position { .. }
        | Op::Rotary { .. }
        | Op::Add { .. }
        | Op::Fix { .. }
        | Op::Bias { .. }
        | Op::Activate { .. }
        | Op::Bend { .. }
        | Op::RmsNorm { .. } => 0,
        Op::MatMul { .. } | Op::Gate { .. } | Op::Hadamard { .. } | Op::Pool { .. } => 1,
        Op::Quantise { .. } | Op::Normalise { .. } => 2,
        Op::Attend { .. } => 4,
    }
}

pub(super) fn parts(op: &Op, made: ValueType, attended: bool) -> Vec<PartSpec> {
    let (len, groups) = match made {
        ValueType::Fixed { len, .. } | ValueType::Integers(len) => (len, 1),
        ValueType::Int8 { len, groups } => (len, groups),
    };
    let row = |name, columns, width| PartSpec { name, columns, width, layout: Layout::Rows };
    let column = |name, columns, width| PartSpec { name, columns, width, layout: Layout::Columns };
    let fixed = Columns::Fixed;
    let numbers = row("numbers", fixed(len), Width::Word);
    match *op {
        Op::Embed { .. }
        | Op::Position { .. }
        | Op::Rotary { .. }
        | Op::Add { .. }
        | Op::Fix { .. }
        | Op::Bias { .. }
        | Op::Activate { .. }
        | Op::Bend { .. } => vec![numbers],
        Op::RmsNorm { .. } => {
            vec![column("measures", fixed(2), Width::Long), column("scale", fixed(2), Width::Word)]
        }
        Op::Quantise { .. } => {
            let layout = if attended { Layout::Columns } else { Layout::Rows };
            vec![
                column("largest", fixed(groups), Width::Long),
                column("scales", fixed(groups.saturating_mul(2)), Width::Word),
                PartSpec { name: "numbers", columns: fixed(len), width: Width::Byte, layout },
            ]
        }
        Op::MatMul { .. } => vec![row("accumulators", fixed(len), Width::Word), numbers],
        Op::Gate { .. } | Op::Hadamard { .. } => {
            vec![column("largest", fixed(1), Width::Long), numbers]
        }
        Op::Normalise { groups, .. } => vec![
            column("measures", fixed(groups.saturating_mul(3)), Width::Long),
            column("scales", fixed(groups.saturating_mul(2)), Width::Word),
            numbers,
        ],
        Op::Attend { heads, .. } => vec![
            row("scores", Columns::PerPosition(heads), Width::Word),
            column("measures", fixed(heads.saturating_mul(3)), Width::Long),
            row("weights", Columns::PerPosition(heads), Width::Word),
            row("sums", fixed(len), Width::Long),
            numbers,
        ],
        Op::Pool { .. } => vec![row("sums", fixed(len), Width::Long), numbers],
    }
}

/// One of a value's numbers.
fn number(src: &mut impl Source, v: ValueId, position: u32, column: u32) -> Option<i64> {
    let (op, _) = src.op(v)?;
    if let Op::RmsNorm { x, .. } = op {
        return number(src, before(x, v)?, position, column);
    }
    src.cell(Cell { op: v, part: numbers_part(&op), position, column })
}

/// A value that an operation reads, if it is made before the operation's own: nobody has checked the program.
fn before(read: ValueId, made: ValueId) -> Option<ValueId> {
    (read < made).then_some(read)
}

/// A logit.
pub(super) fn logit(src: &mut impl Source, logits: ValueId, position: u32, id: u32) -> Option<i64> {
    number(src, logits, position, id)
}

/// One of a value's numbers that is known to fit 32 bits.
fn word(src: &mut impl Source, v: ValueId, position: u32, column: u32) -> Option<i32> {
    i32::try_from(number(src, v, position, column)?).ok()
}

/// The scale that stands in two columns of a part.
fn scale_at(src: &mut impl Source, op: ValueId, part: u8, position: u32, group: u32) -> Option<Scale> {
    let column = group.checked_mul(2)?;
    let mantissa = src.cell(Cell { op, part, position, column })?;
    let exponent = src.cell(Cell { op, part, position, column: column.checked_add(1)? })?;
    Some(Scale { mantissa: u16::try_from(mantissa).ok()?, exponent: i16::try_from(exponent).ok()? })
}

/// The scale of a group of an int8 value.
fn group_scale(src: &mut impl Source, v: ValueId, position: u32, group: u32) -> Option<Scale> {
    scale_at(src, v, 1, position, group)
}

/// Rows, columns and shift of a matrix.
fn matrix(src: &mut impl Source, t: TensorId) -> Option<(u32, u32, i16)> {
    match src.shape(t)? {
        Shape::Matrix { rows, cols, shift } => Some((rows, cols, shift)),
        _ => None,
    }
}

/// The scale of a value of integers.
fn scale(src: &mut impl Source, v: ValueId, position: u32) -> Option<Scale> {
    let (op, made) = src.op(v)?;
    if let ValueType::Fixed { frac, .. } = made {
        return Some(Scale::power(-i16::from(frac)));
    }
    Some(match op {
        Op::RmsNorm { .. } => scale_at(src, v, 1, position, 0)?,
        Op::MatMul { weights, x } => {
            let (_, cols, shift) = matrix(src, weights)?;
            let change = headroom(cols as usize) as i32 - i32::from(shift);
            group_scale(src, before(x, v)?, position, 0)?.shifted(change)
        }
        Op::Rotary { x, .. } => scale(src, before(x, v)?, position)?,
        Op::Gate { x, .. } => {
            let k = shift_of(src, v, position)? as i32;
            scale(src, before(x, v)?, position)?.shifted(k - GATE_FRAC as i32 + 10)
        }
        Op::Hadamard { x, .. } => {
            let k = shift_of(src, v, position)? as i32;
            scale(src, before(x, v)?, position)?.shifted(k)
        }
        _ => return None,
    })
}

/// The normalising shift of an operation whose first part's first column is a largest absolute value.
fn shift_of(src: &mut impl Source, op: ValueId, position: u32) -> Option<u32> {
    largest_at(src, op, position, 0).map(normal_shift)
}

fn largest_at(src: &mut impl Source, op: ValueId, position: u32, column: u32) -> Option<u32> {
    u32::try_from(src.cell(Cell { op, part: 0, position, column })?).ok()
}

/// An entry of a constant, if it is in the range of its kind: an opening does not say that it is.
fn entry(
    src: &mut impl Source,
    t: TensorId,
    index: u32,
    range: std::ops::RangeInclusive<i32>,
) -> Option<i32> {
    src.entry(t, index).filter(|v| range.contains(v))
}

/// Cosine or sine.
fn angle(src: &mut impl Source, table: TensorId, index: u32) -> Option<i64> {
    let one = 1 << ROTARY_FRAC;
    entry(src, table, index, -one..=one).map(i64::from)
}

/// A number of a vector.
fn gain_or_bias(src: &mut impl Source, vector: TensorId, index: u32) -> Option<i32> {
    entry(src, vector, index, 1 - VECTOR_MAX..=VECTOR_MAX - 1)
}

/// A function between the entries of its table (semantics 5.7).
fn table_at(src: &mut impl Source, table: TensorId, a: u32) -> Option<i32> {
    let i = (a >> 10).min(1024);
    let here = entry(src, table, i, 32_768..=65_536)?;
    let next = entry(src, table, (i + 1).min(1024), 32_768..=65_536)?;
    Some(here + rsh((i64::from(next) - i64::from(here)) * i64::from(a & 1023), 10) as i32)
}

fn activation(src: &mut impl Source, table: TensorId, g: i32) -> Option<i32> {
    let t = table_at(src, table, g.unsigned_abs())?;
    let t = if g < 0 { 65_536 - t } else { t };
    Some(rsh(i64::from(g) * i64::from(t), 16) as i32)
}

fn bend(src: &mut impl Source, cap: SoftCap, z: i32) -> Option<i32> {
    let limit = Some(cap.limit).filter(|l| (1 << 16..=1 << 30).contains(l))?;
    let reciprocal = (1u64 << 33) / u64::from(limit);
    let a = ((u64::from(z.unsigned_abs()) * reciprocal) >> 16).min(1 << 20) as u32;
    let t = 2 * table_at(src, cap.table, a)? - 65_536;
    let y = rsh(i64::from(limit) * i64::from(t), 16) as i32;
    Some(if z < 0 { -y } else { y })
}

fn embed(src: &mut impl Source, table: TensorId, row: u32, column: u32) -> Option<i64> {
    let (_, _, shift) = matrix(src, table)?;
    let w = i64::from(src.weight(table, row, column)?);
    let m = i64::from(src.row_scale(table, row)?);
    let frac = src.extent().residual_frac;
    Some(i64::from(shift_sat(w * m, i32::from(shift) - i32::from(frac))))
}

/// The length of a group and the group of a column.
fn groups_of(len: u32, groups: u32, column: u32) -> Option<(u32, u32)> {
    let n = len.checked_div(groups)?;
    Some((n, column.checked_div(n)?))
}

/// The mean of `n` 32-bit numbers; `None` for what is no sum of such.
fn mean(sum: i64, n: u32) -> Option<i32> {
    let possible = n > 0 && sum.unsigned_abs() <= u64::from(n) << 31;
    possible.then(|| mean_of(sum, u64::from(n)))
}

/// The scale of a norm; `None` for what is no sum of `n` squares, or no norm's epsilon.
fn norm_scale(sum: i64, shift: u32, n: u32, epsilon: u64) -> Option<Scale> {
    let sum = u64::try_from(sum).ok().filter(|s| *s <= u64::from(n) << 30)?;
    (n > 0 && epsilon <= EPSILON_MAX).then(|| rms_scale_of(sum, shift, u64::from(n), epsilon))
}

/// A number of a run with its mean taken off, as a norm sees it.
fn centred(src: &mut impl Source, norm: &Norm, position: u32, group: u32, i: u32) -> Option<i32> {
    let v = word(src, norm.x, position, group.checked_mul(norm.n)?.checked_add(i)?)?;
    if !norm.center {
        return Some(v);
    }
    let sum = src.cell(Cell { op: norm.op, part: 0, position, column: group.checked_mul(3)? })?;
    Some(v.saturating_sub(mean(sum, norm.n)?))
}

struct Norm {
    op: ValueId,
    x: ValueId,
    n: u32,
    center: bool,
}

pub(super) fn rule(src: &mut impl Source, cell: Cell) -> Option<Rule> {
    let (op, made) = src.op(cell.op)?;
    let sums = |len: u32, run: u32| Rule::Fold { runs: len.div_ceil(run), from: 0 };
    Some(match (op, cell.part) {
        (Op::RmsNorm { .. }, 0) => sums(length(made), RUN),
        (Op::Quantise { len, groups, .. }, 0) => sums(len.checked_div(groups)?, RUN),
        (Op::MatMul { weights, .. }, 0) => sums(matrix(src, weights)?.1, RUN),
        (Op::Gate { len, .. }, 0) => sums(len, RUN),
        (Op::Hadamard { .. }, 0) => sums(length(made), RUN),
        (Op::Hadamard { block, .. }, 1) => sums(block, RUN),
        (Op::Normalise { groups, .. }, 0) => sums(length(made).checked_div(groups)?, RUN),
        (Op::Attend { reach, .. }, 1) => {
            let runs = seen(&src.extent(), reach, cell.position).end.div_ceil(ATTENDED_RUN);
            Rule::Fold { runs, from: if cell.column % 3 == 2 { 0 } else { LOWEST } }
        }
        (Op::Attend { reach, .. }, 3) => sums(seen(&src.extent(), reach, cell.position).end, ATTENDED_RUN),
        (Op::Pool { .. }, 0) => sums(src.extent().positions, 1),
        (_, part) if part <= numbers_part(&op).max(1) => Rule::Map,
        _ => return None,
    })
}

fn length(made: ValueType) -> u32 {
    match made {
        ValueType::Fixed { len, .. } | ValueType::Integers(len) | ValueType::Int8 { len, .. } => len,
    }
}

pub(super) fn map(src: &mut impl Source, cell: Cell) -> Option<i64> {
    let (op, made) = src.op(cell.op)?;
    let Cell { position, column, .. } = cell;
    let own = |part: u8, column: u32| Cell { part, column, ..cell };
    match (op, cell.part) {
        (Op::Embed { table }, 0) => {
            let token = src.token(position)?;
            embed(src, table, token, column)
        }
        (Op::Position { table }, 0) => embed(src, table, position, column),
        (Op::RmsNorm { epsilon, .. }, 1) => {
            let shift = shift_of(src, cell.op, position)?;
            let sum = src.cell(own(0, 1))?;
            pick(norm_scale(sum, shift, length(made), epsilon)?, column)
        }
        (Op::Quantise { x, .. }, 1) => {
            let unit = Quantiser::new(largest_at(src, cell.op, position, column / 2)?).unit;
            pick(scale(src, x, position)?.times(unit), column)
        }
        (Op::Quantise { x, offset, len, groups }, 2) => {
            let (_, group) = groups_of(len, groups, column)?;
            let by = Quantiser::new(largest_at(src, cell.op, position, group)?);
            Some(i64::from(by.apply(word(src, x, position, offset.checked_add(column)?)?)))
        }
        (Op::MatMul { weights, .. }, 1) => {
            let (_, cols, _) = matrix(src, weights)?;
            let acc = i32::try_from(src.cell(own(0, column))?).ok()?;
            let m = src.row_scale(weights, column)?;
            Some(i64::from(row_scaled(acc, m, headroom(cols as usize))))
        }
        (Op::Rotary { x, offset, head_dim, table, .. }, 0) => {
            let half = head_dim / 2;
            let (head, i) = (column.checked_div(head_dim)?, column.checked_rem(head_dim)?);
            let (pair, upper) = (i.checked_rem(half)?, i >= half);
            let first = offset.checked_add(head.checked_mul(head_dim)?)?.checked_add(pair)?;
            let a = number(src, x, position, first)?;
            let b = number(src, x, position, first.checked_add(half)?)?;
            let at = position.checked_mul(half)?.checked_add(pair)?.checked_mul(2)?;
            let (c, s) = (angle(src, table, at)?, angle(src, table, at.checked_add(1)?)?);
            let turned = if upper { b * c + a * s } else { a * c - b * s };
            Some(i64::from(sat32(rsh(turned, ROTARY_FRAC))))
        }
        (Op::Attend { .. }, _) => attend(src, cell, &op, made),
        (Op::Gate { x, gate, up, table, .. }, 1) => {
            let unit = scale(src, x, position)?;
            let g = unit.to_fixed(word(src, x, position, gate.checked_add(column)?)?, GATE_FRAC);
            let u = word(src, x, position, up.checked_add(column)?)?;
            let k = shift_of(src, cell.op, position)?;
            Some(i64::from(gate_product(activation(src, table, g)?, u, k)))
        }
        (Op::Add { x, y }, 0) => {
            let ValueType::Fixed { frac, .. } = made else { return None };
            let unit = scale(src, y, position)?;
            let y = unit.to_fixed(word(src, y, position, column)?, u32::from(frac));
            Some(i64::from(word(src, x, position, column)?.saturating_add(y)))
        }
        (Op::Fix { x, offset, frac, .. }, 0) => {
            let unit = scale(src, x, position)?;
            let v = word(src, x, position, offset.checked_add(column)?)?;
            Some(i64::from(unit.to_fixed(v, u32::from(frac))))
        }
        (Op::Bias { x, bias }, 0) => {
            let ValueType::Fixed { frac, .. } = made else { return None };
            let unit = scale(src, x, position)?;
            let v = unit.to_fixed(word(src, x, position, column)?, u32::from(frac));
            Some(i64::from(gain_or_bias(src, bias, column)?.saturating_add(v)))
        }
        (Op::Normalise { x, groups, center, epsilon, gain, bias, frac }, part) => {
            let n = length(made).checked_div(groups)?;
            let norm = Norm { op: cell.op, x, n, center };
            if part == 1 {
                let group = column / 2;
                let shift = normal_shift(largest_at(src, cell.op, position, group.checked_mul(3)? + 1)?);
                let sum = src.cell(own(0, group.checked_mul(3)? + 2))?;
                return pick(norm_scale(sum, shift, n, epsilon)?, column);
            }
            let (group, i) = (column.checked_div(n)?, column.checked_rem(n)?);
            let c = centred(src, &norm, position, group, i)?;
            let unit = scale_at(src, cell.op, 1, position, group)?;
            let u = unit.to_fixed(c, u32::from(NORMAL_FRAC));
            let Shape::Vector { frac: gain_frac, .. } = src.shape(gain)? else { return None };
            let shift = (u32::from(NORMAL_FRAC) + u32::from(gain_frac)).checked_sub(u32::from(frac))?;
            let shift = Some(shift).filter(|s| *s <= 62)?;
            let y = sat32(rsh(i64::from(u) * i64::from(gain_or_bias(src, gain, i)?), shift));
            Some(i64::from(match bias {
                Some(b) => y.saturating_add(gain_or_bias(src, b, i)?),
                None => y,
            }))
        }
        (Op::Activate { x, table }, 0) => {
            let unit = scale(src, x, position)?;
            let a = unit.to_fixed(word(src, x, position, column)?, GATE_FRAC);
            Some(i64::from(activation(src, table, a)?))
        }
        (Op::Bend { x, cap }, 0) => {
            let z = word(src, x, position, column)?;
            Some(i64::from(bend(src, cap, z)?))
        }
        (Op::Pool { pooling, .. }, 1) => {
            let sum = src.cell(own(0, column))?;
            Some(match pooling {
                Pooling::First | Pooling::Last => sum,
                Pooling::Mean => i64::from(mean(sum, src.extent().positions)?),
            })
        }
        _ => None,
    }
}

/// Mantissa or exponent of a scale, as an even or odd column.
fn pick(scale: Scale, column: u32) -> Option<i64> {
    Some(if column.is_multiple_of(2) { i64::from(scale.mantissa) } else { i64::from(scale.exponent) })
}

/// The maps of attention (semantics 6.6).
fn attend(src: &mut impl Source, cell: Cell, op: &Op, made: ValueType) -> Option<i64> {
    let Op::Attend { q, k, v, heads, kv_heads, head_dim, reach, scale: by, cap, .. } = *op else {
        return None;
    };
    let Cell { position, column, .. } = cell;
    let extent = src.extent();
    let measure = |head: u32, which: u32| Cell { part: 1, column: head * 3 + which, ..cell };
    let kv_of = |head: u32| head.checked_div(heads.checked_div(kv_heads)?);
    match cell.part {
        0 | 2 => {
            let span = extent.block_end(position);
            let (head, j) = (column.checked_div(span)?, column.checked_rem(span)?);
            if !seen(&extent, reach, position).contains(&j) {
                return Some(0);
            }
            let kv = kv_of(head)?;
            if cell.part == 0 {
                let mut dot = 0i64;
                for i in 0..head_dim {
                    let a = number(src, q, position, head.checked_mul(head_dim)?.checked_add(i)?)?;
                    let b = number(src, k, j, kv.checked_mul(head_dim)?.checked_add(i)?)?;
                    dot += a * b;
                }
                let query = group_scale(src, q, position, head)?.times(by);
                let z = score(dot, group_scale(src, k, j, kv)?, query);
                return Some(i64::from(match cap {
                    Some(cap) => bend(src, cap, z)?,
                    None => z,
                }));
            }
            let e = weight(src, cell, head, j)?;
            let highest = highest(src.cell(measure(head, 1))?);
            // A maximum that is none was never an honest one.
            let value = group_scale(src, v, j, kv)?;
            (value.mantissa == 0 || value.exponent <= highest)
                .then(|| i64::from(value_weight(e, value, highest)))
        }
        4 => {
            let ValueType::Fixed { frac, .. } = made else { return None };
            let head = column.checked_div(head_dim)?;
            let highest = highest(src.cell(measure(head, 1))?);
            // At most 2^17 positions: weights below 2^16, products below 2^22.
            let total =
                u64::try_from(src.cell(measure(head, 2))?).ok().filter(|t| (1..1 << 34).contains(t))?;
            let sum = src.cell(Cell { part: 3, ..cell }).filter(|s| s.unsigned_abs() < 1 << 40)?;
            Some(i64::from(Share::new(total, highest, u32::from(frac)).apply(sum)))
        }
        _ => None,
    }
}

/// `e_j` of semantics 6.6.
fn weight(src: &mut impl Source, cell: Cell, head: u32, j: u32) -> Option<u32> {
    let span = src.extent().block_end(cell.position);
    let top = src.cell(Cell { part: 1, column: head.checked_mul(3)?, ..cell })?;
    let z = src.cell(Cell { part: 0, column: head.checked_mul(span)?.checked_add(j)?, ..cell })?;
    Some(exp2_weight(u32::try_from(top.checked_sub(z)?).ok()?))
}

/// `X` of semantics 6.6: a maximum over nothing is 0.
fn highest(maximum: i64) -> i16 {
    if maximum == LOWEST { 0 } else { maximum.clamp(-32_768, 32_767) as i16 }
}

pub(super) fn fold(src: &mut impl Source, cell: Cell, run: u32, before: i64) -> Option<i64> {
    let (op, made) = src.op(cell.op)?;
    let Cell { position, column, .. } = cell;
    let mut acc = before;
    match (op, cell.part) {
        (Op::RmsNorm { x, .. }, 0) => {
            let shift = if column == 0 { 0 } else { shift_of(src, cell.op, position)? };
            for i in run_of(run, RUN, length(made)) {
                let v = word(src, x, position, i)?;
                acc = match column {
                    0 => acc.max(i64::from(v.unsigned_abs())),
                    _ => acc.checked_add(i64::try_from(square(v, shift)).ok()?)?,
                };
            }
        }
        (Op::Quantise { x, offset, len, groups }, 0) => {
            let n = len.checked_div(groups)?;
            let first = offset.checked_add(column.checked_mul(n)?)?;
            acc = largest(src, x, position, first, run_of(run, RUN, n), acc)?;
        }
        (Op::Gate { x, up, len, .. }, 0) => {
            acc = largest(src, x, position, up, run_of(run, RUN, len), acc)?;
        }
        (Op::Hadamard { x, .. }, 0) => {
            acc = largest(src, x, position, 0, run_of(run, RUN, length(made)), acc)?;
        }
        (Op::Hadamard { x, block }, 1) => {
            let k = shift_of(src, cell.op, position)?;
            let (i, first) = (column.checked_rem(block)?, column.checked_div(block)?.checked_mul(block)?);
            for j in run_of(run, RUN, block) {
                let v = rsh(number(src, x, position, first.checked_add(j)?)?, k);
                acc = acc.checked_add(if (i & j).count_ones() % 2 == 0 { v } else { -v })?;
            }
        }
        (Op::MatMul { weights, x }, 0) => {
            let (_, cols, _) = matrix(src, weights)?;
            for c in run_of(run, RUN, cols) {
                let product = i64::from(src.weight(weights, column, c)?) * number(src, x, position, c)?;
                acc = acc.checked_add(product)?;
            }
        }
        (Op::Normalise { x, groups, center, .. }, 0) => {
            let n = length(made).checked_div(groups)?;
            let norm = Norm { op: cell.op, x, n, center };
            let (group, which) = (column / 3, column % 3);
            let shift = match which {
                2 => normal_shift(largest_at(src, cell.op, position, column.checked_sub(1)?)?),
                _ => 0,
            };
            for i in run_of(run, RUN, n) {
                acc = match which {
                    0 if !center => acc,
                    0 => acc.checked_add(number(src, x, position, group.checked_mul(n)?.checked_add(i)?)?)?,
                    1 => acc.max(i64::from(centred(src, &norm, position, group, i)?.unsigned_abs())),
                    _ => {
                        let c = centred(src, &norm, position, group, i)?;
                        acc.checked_add(i64::try_from(square(c, shift)).ok()?)?
                    }
                };
            }
        }
        (Op::Attend { v, heads, kv_heads, head_dim, reach, .. }, part @ (1 | 3)) => {
            let extent = src.extent();
            let seen = seen(&extent, reach, position);
            let span = extent.block_end(position);
            let head = if part == 1 { column / 3 } else { column.checked_div(head_dim)? };
            let kv = head.checked_div(heads.checked_div(kv_heads)?)?;
            for j in run_of(run, ATTENDED_RUN, seen.end).filter(|j| seen.contains(j)) {
                let at = |part| Some(Cell { part, column: head.checked_mul(span)?.checked_add(j)?, ..cell });
                acc = match (part, column % 3) {
                    (1, 0) => acc.max(src.cell(at(0)?)?),
                    (1, 1) => match group_scale(src, v, j, kv)? {
                        Scale { mantissa: 0, .. } => acc,
                        s => acc.max(i64::from(s.exponent)),
                    },
                    (1, _) => acc.checked_add(i64::from(weight(src, cell, head, j)?))?,
                    _ => {
                        let i = kv.checked_mul(head_dim)?.checked_add(column.checked_rem(head_dim)?)?;
                        let w = src.cell(at(2)?)?;
                        acc.checked_add(w.checked_mul(number(src, v, j, i)?)?)?
                    }
                };
            }
        }
        (Op::Pool { x, pooling }, 0) => {
            let last = src.extent().positions.saturating_sub(1);
            let counts = match pooling {
                Pooling::First => run == 0,
                Pooling::Last => run == last,
                Pooling::Mean => true,
            };
            if counts {
                acc = acc.checked_add(number(src, x, run, column)?)?;
            }
        }
        _ => return None,
    }
    Some(acc)
}

/// The largest absolute value of a run and what came before it.
fn largest(
    src: &mut impl Source,
    x: ValueId,
    position: u32,
    first: u32,
    run: std::ops::Range<u32>,
    before: i64,
) -> Option<i64> {
    let mut acc = before;
    for i in run {
        acc = acc.max(i64::from(word(src, x, position, first.checked_add(i)?)?.unsigned_abs()));
    }
    Some(acc)
}
