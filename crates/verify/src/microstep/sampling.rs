//! The choice of a token (semantics 7), part by part, without sorting.
//!
//! A candidate's *key* is its likelihood above its id turned round, so that keys differ and fall in the order in which
//! candidates are kept. What top-k and top-p keep is then "every key from a threshold on", and the threshold is found bit by
//! bit, the highest first: a bit is set if what reaches the threshold with it is still enough. Each bit costs one fold over
//! the vocabulary: a count for top-k, a sum of likelihoods for top-p.

use assay_engine::semantics::adjust::{repeated, sixteen};
use assay_engine::semantics::exp2::exp2_likelihood;
use assay_engine::semantics::fixed::{sat32, shift_sat};
use assay_engine::semantics::sample::{GREEDY_BELOW_MICRO, LOG2E_MILLION_Q20, draw};

use super::{Cell, Choice, Columns, IDS_RUN, KEY_BITS, LOWEST, PartSpec, RUN, Rule, Source, adjust, run_of};
use crate::trace::part::{Layout, Width};

/// Bits of an id in a key.
const ID_BITS: u32 = 20;
const ID_MASK: i64 = (1 << ID_BITS) - 1;
const MILLION: i64 = 1_000_000;

// Parts of `adjust`.
const SEEN: u8 = 0;
const MASK: u8 = 1;
const ADJUSTED: u8 = 2;
const BEST: u8 = 3;
// Parts of `choose`.
const LIKELIHOODS: u8 = 0;
const KTH: u8 = 1;
const NUCLEUS: u8 = 2;
const FOUND: u8 = 3;
/// The part of [`super::choose`] that holds the id.
pub(super) const CHOSEN: u8 = 4;

fn penalised(c: &Choice) -> bool {
    let s = &c.sampling;
    s.presence_micro != 0 || s.frequency_micro != 0 || i64::from(s.repetition_micro) != MILLION
}

fn greedy(c: &Choice) -> bool {
    c.sampling.temperature_micro < GREEDY_BELOW_MICRO
}

fn limits_mass(c: &Choice) -> bool {
    !greedy(c) && i64::from(c.sampling.top_p_micro) < MILLION
}

fn limits_count(c: &Choice) -> bool {
    !greedy(c) && c.sampling.top_k != 0
}

pub(super) fn parts(c: &Choice, vocabulary: u32) -> [Vec<PartSpec>; 2] {
    // All by rows: whoever reads a threshold's bit reads those before it, which then stand in one leaf.
    let when = |yes: bool, n: u32| Columns::Fixed(if yes { n } else { 0 });
    let row = |name, columns, width| PartSpec { name, columns, width, layout: Layout::Rows };
    [
        vec![
            row("seen", when(penalised(c), vocabulary), Width::Word),
            row("mask", when(c.guided, vocabulary), Width::Byte),
            row("adjusted", when(true, vocabulary), Width::Word),
            row("best", when(true, 2), Width::Long),
        ],
        vec![
            row("likelihoods", when(!greedy(c), vocabulary), Width::Long),
            row("top-k", when(limits_count(c), KEY_BITS), Width::Long),
            row("top-p", when(limits_mass(c), KEY_BITS + 1), Width::Long),
            row("found", when(!greedy(c), 2), Width::Long),
            row("chosen", when(true, 1), Width::Word),
        ],
    ]
}

pub(super) fn rule(src: &mut impl Source, cell: Cell) -> Option<Rule> {
    let extent = src.extent();
    let over = |len: u32, size: u32, from: i64| Some(Rule::Fold { runs: len.div_ceil(size), from });
    match (cell.op == adjust(extent.ops), cell.part) {
        (true, SEEN) => over(cell.position.checked_add(1)?, IDS_RUN, 0),
        (true, MASK) => Some(Rule::Given),
        (true, ADJUSTED) => Some(Rule::Map),
        (true, BEST) => over(extent.vocabulary, RUN, if cell.column == 0 { 0 } else { LOWEST }),
        (false, LIKELIHOODS | CHOSEN) => Some(Rule::Map),
        (false, KTH | NUCLEUS | FOUND) => over(extent.vocabulary, RUN, 0),
        _ => None,
    }
}

/// A number of `adjust` at the cell's position.
fn adjusting(src: &mut impl Source, cell: Cell, part: u8, column: u32) -> Option<i64> {
    let op = adjust(src.extent().ops);
    src.cell(Cell { op, part, column, ..cell })
}

fn adjusted(src: &mut impl Source, cell: Cell, id: u32) -> Option<i32> {
    i32::try_from(adjusting(src, cell, ADJUSTED, id)?).ok()
}

/// Whether the mask leaves an id.
fn allowed(src: &mut impl Source, cell: Cell, id: u32) -> Option<bool> {
    if !src.choice()?.guided {
        return Some(true);
    }
    Some(adjusting(src, cell, MASK, id)? == 1)
}

/// Whether an id can be chosen: a mask that leaves none leaves all.
fn eligible(src: &mut impl Source, cell: Cell, id: u32) -> Option<bool> {
    if !src.choice()?.guided {
        return Some(true);
    }
    Some(adjusting(src, cell, BEST, 0)? == 0 || allowed(src, cell, id)?)
}

/// The largest logit above the id turned round.
fn rank(logit: i32, id: u32) -> i64 {
    (i64::from(logit) << (ID_BITS + 1)) + ID_MASK - i64::from(id)
}

/// Logit and id of the best token.
fn best(src: &mut impl Source, cell: Cell) -> Option<(i32, u32)> {
    let rank = adjusting(src, cell, BEST, 1)?;
    let id = ID_MASK.checked_sub(rank & ID_MASK)?;
    Some((i32::try_from(rank >> (ID_BITS + 1)).ok()?, u32::try_from(id).ok()?))
}

fn exponent(logit: i32, temperature_micro: u32) -> Option<i32> {
    let temperature = Some(temperature_micro).filter(|t| *t >= GREEDY_BELOW_MICRO)?;
    let factor = LOG2E_MILLION_Q20.checked_div(i64::from(temperature))?;
    Some(shift_sat(i64::from(logit) * factor, 20))
}

fn likelihood(src: &mut impl Source, cell: Cell, id: u32) -> Option<i64> {
    src.cell(Cell { part: LIKELIHOODS, column: id, ..cell }).filter(|l| (0..1 << 32).contains(l))
}

/// A candidate's key; 0 for what is no candidate.
fn key(likelihood: i64, id: u32) -> i64 {
    if likelihood == 0 { 0 } else { (likelihood << ID_BITS) | (ID_MASK - i64::from(id)) }
}

/// The threshold that the first `bits` bits of a search give.
fn threshold(src: &mut impl Source, cell: Cell, part: u8, bits: u32) -> Option<i64> {
    let mut found = 0;
    for bit in 0..bits {
        let column = if part == NUCLEUS { bit + 1 } else { bit };
        let measure = src.cell(Cell { part, column, ..cell })?;
        if enough(src, cell, part, measure)? {
            found |= 1i64 << (KEY_BITS - 1 - bit);
        }
    }
    Some(found)
}

fn enough(src: &mut impl Source, cell: Cell, part: u8, measure: i64) -> Option<bool> {
    let s = &src.choice()?.sampling;
    if part == KTH {
        return Some(measure >= i64::from(s.top_k));
    }
    let wanted = i128::from(s.top_p_micro);
    let total = src.cell(Cell { part: NUCLEUS, column: 0, ..cell })?;
    Some(i128::from(measure) * i128::from(MILLION) >= (wanted * i128::from(total)).max(1))
}

/// What the searches left: the smallest keys that top-k and top-p keep.
#[derive(Clone, Copy)]
struct Kept {
    from: i64,
    min_p: i64,
}

fn after_top_k(src: &mut impl Source, cell: Cell) -> Option<Kept> {
    let from = if limits_count(src.choice()?) { threshold(src, cell, KTH, KEY_BITS)? } else { 0 };
    Some(Kept { from, min_p: 0 })
}

fn kept(src: &mut impl Source, cell: Cell) -> Option<Kept> {
    let Kept { mut from, .. } = after_top_k(src, cell)?;
    if limits_mass(src.choice()?) {
        from = from.max(threshold(src, cell, NUCLEUS, KEY_BITS)?);
    }
    Some(Kept { from, min_p: i64::from(src.choice()?.sampling.min_p_micro) })
}

impl Kept {
    fn keeps(&self, likelihood: i64, id: u32) -> bool {
        // The likeliest candidate, the best token, has the likelihood of distance 0.
        let floor = i128::from(exp2_likelihood(0)) * i128::from(self.min_p);
        likelihood > 0
            && key(likelihood, id) >= self.from
            && i128::from(likelihood) * i128::from(MILLION) >= floor
    }
}

pub(super) fn map(src: &mut impl Source, cell: Cell) -> Option<i64> {
    let extent = src.extent();
    let id = cell.column;
    match (cell.op == adjust(extent.ops), cell.part) {
        (true, ADJUSTED) => {
            let op = extent.logits?;
            let mut logit = i32::try_from(super::operations::logit(src, op, cell.position, id)?).ok()?;
            let seen = if penalised(src.choice()?) { adjusting(src, cell, SEEN, id)? } else { 0 };
            let s = &src.choice()?.sampling;
            if seen != 0 && i64::from(s.repetition_micro) != MILLION {
                logit = repeated(logit, s.repetition_micro);
            }
            let count = seen >> 1;
            if count > 0 {
                let frequency = count.checked_mul(sixteen(s.frequency_micro))?;
                logit =
                    sat32(i64::from(logit).checked_sub(sixteen(s.presence_micro))?.checked_sub(frequency)?);
            }
            if let Ok(i) = s.bias.binary_search_by_key(&id, |(id, _)| *id) {
                let (_, bias) = s.bias.get(i)?;
                logit = sat32(i64::from(logit) + sixteen(*bias));
            }
            Some(i64::from(logit))
        }
        (false, LIKELIHOODS) => {
            if !eligible(src, cell, id)? {
                return Some(0);
            }
            let (most, _) = best(src, cell)?;
            let temperature = src.choice()?.sampling.temperature_micro;
            let here = exponent(adjusted(src, cell, id)?, temperature)?;
            let distance = exponent(most, temperature)?.wrapping_sub(here).cast_unsigned();
            Some(i64::from(exp2_likelihood(distance)))
        }
        (false, CHOSEN) => {
            if greedy(src.choice()?) {
                return Some(i64::from(best(src, cell)?.1));
            }
            let found = src.cell(Cell { part: FOUND, column: 1, ..cell })?;
            found.checked_neg()?.checked_sub(1).filter(|id| *id >= 0)
        }
        _ => None,
    }
}

pub(super) fn fold(src: &mut impl Source, cell: Cell, run: u32, before: i64) -> Option<i64> {
    let extent = src.extent();
    let mut acc = before;
    if cell.op == adjust(extent.ops) {
        if cell.part == SEEN {
            // 2 for every time the answer has the token, 1 if the prompt has it.
            for p in run_of(run, IDS_RUN, cell.position.checked_add(1)?) {
                if src.token(p)? == cell.column {
                    acc = if p < extent.prompt { acc | 1 } else { acc.checked_add(2)? };
                }
            }
            return Some(acc);
        }
        for id in run_of(run, RUN, extent.vocabulary) {
            acc = match cell.column {
                0 => acc.checked_add(i64::from(allowed(src, cell, id)?))?,
                _ if eligible(src, cell, id)? => acc.max(rank(adjusted(src, cell, id)?, id)),
                _ => acc,
            };
        }
        return Some(acc);
    }
    let ids = run_of(run, RUN, extent.vocabulary);
    match (cell.part, cell.column) {
        (KTH, bit) => {
            let from = threshold(src, cell, KTH, bit)? | 1i64 << (KEY_BITS - 1).checked_sub(bit)?;
            for id in ids {
                acc = acc.checked_add(i64::from(key(likelihood(src, cell, id)?, id) >= from))?;
            }
        }
        (NUCLEUS, 0) => {
            let kept = after_top_k(src, cell)?;
            acc = mass(src, cell, ids, kept, acc)?;
        }
        (NUCLEUS, column) => {
            let bit = column.checked_sub(1)?;
            let from = threshold(src, cell, NUCLEUS, bit)? | 1i64 << (KEY_BITS - 1).checked_sub(bit)?;
            let kept = after_top_k(src, cell)?;
            acc = mass(src, cell, ids, Kept { from: from.max(kept.from), ..kept }, acc)?;
        }
        (FOUND, 0) => {
            let kept = kept(src, cell)?;
            acc = mass(src, cell, ids, kept, acc)?;
        }
        (FOUND, _) => {
            // The running sum, until it exceeds the target; from then on the id that made it, as -1 - id.
            let total = u64::try_from(src.cell(Cell { column: 0, ..cell })?).ok()?;
            let index = cell.position.checked_add(1)?.checked_sub(extent.prompt)?;
            let drawn = draw(&src.choice()?.seed, index);
            let target = i64::try_from((u128::from(drawn) * u128::from(total)) >> 64).ok()?;
            let kept = kept(src, cell)?;
            for id in ids {
                let likelihood = likelihood(src, cell, id)?;
                if acc >= 0 && kept.keeps(likelihood, id) {
                    acc = acc.checked_add(likelihood)?;
                    if acc > target {
                        acc = -1 - i64::from(id);
                    }
                }
            }
        }
        _ => return None,
    }
    Some(acc)
}

/// Adds the likelihoods of the ids that are kept.
fn mass(
    src: &mut impl Source,
    cell: Cell,
    ids: std::ops::Range<u32>,
    kept: Kept,
    before: i64,
) -> Option<i64> {
    let mut acc = before;
    for id in ids {
        let likelihood = likelihood(src, cell, id)?;
        if kept.keeps(likelihood, id) {
            acc = acc.checked_add(likelihood)?;
        }
    }
    Some(acc)
}
