//! Float rows to rows of integers with integer scales.

use super::ImportError;
use super::rotate::Turn;
use super::source::Weights;
use crate::matrix::packed::{self, PACKED_GROUP, PACKED_WEIGHT_MAX};
use crate::matrix::{BIAS, stored_index, stored_len};

/// One checkpoint tensor of a [`Stack`].
pub(super) struct Part<'a> {
    pub(super) weights: Weights<'a>,
    /// Rotation of its outputs.
    pub(super) turn: Option<&'a Turn>,
}

/// A float matrix put together from checkpoint tensors, one below the other.
pub(super) struct Stack<'a> {
    pub(super) parts: Vec<Part<'a>>,
    /// Gain of the norm before, folded into the columns.
    pub(super) gain: Option<Vec<f64>>,
    /// Rotation of the inputs, after the gain.
    pub(super) turn: Option<&'a Turn>,
    pub(super) cols: usize,
}

/// A matrix as it is stored.
pub(super) struct Quantised {
    pub(super) stored: Vec<u8>,
    pub(super) scales: Vec<u16>,
}

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// A byte for each weight.
    Plain,
    /// As [`packed`] has it.
    Packed,
}

impl Storage {
    /// The largest weight.
    fn most(self) -> f64 {
        match self {
            Storage::Plain => 127.0,
            Storage::Packed => f64::from(PACKED_WEIGHT_MAX),
        }
    }

    /// By how much smaller the scales of what rounding leaves over are, in powers of two: of a plain matrix half a step at most;
    /// of a packed one, whose largest groups have steps of 63 quarters and one number fewer above zero than below, up to 16.
    pub(super) fn remainder_shift(self) -> i16 {
        match self {
            Storage::Plain => 7,
            Storage::Packed => 2,
        }
    }
}

impl Stack<'_> {
    /// Calls `each` with every row, in order. Holds one row, or as many as a rotation of outputs mixes.
    fn each_row(&self, mut each: impl FnMut(usize, &[f64])) -> Result<(), ImportError> {
        let (mut row, mut rows, mut at) = (Vec::with_capacity(self.cols), Vec::new(), 0);
        for part in &self.parts {
            let block = part.turn.map_or(1, Turn::block);
            for r in 0..part.weights.rows {
                part.weights.row(r, &mut row)?;
                if let Some(gain) = &self.gain {
                    row.iter_mut().zip(gain).for_each(|(v, g)| *v *= g);
                }
                if let Some(turn) = self.turn {
                    turn.row(&mut row);
                }
                rows.extend_from_slice(&row);
                if rows.len() < block * self.cols {
                    continue;
                }
                if let Some(turn) = part.turn {
                    turn.columns(&mut rows, self.cols, r + 1 - block);
                }
                for row in rows.chunks_exact(self.cols) {
                    each(at, row);
                    at += 1;
                }
                rows.clear();
            }
        }
        Ok(())
    }

    /// The exponent that all rows share: the largest row's scale lies in 2^15 ..= 65 535 times 2^-shift.
    pub(super) fn shift(&self, storage: Storage) -> Result<i16, ImportError> {
        let mut top = 0f64;
        self.each_row(|_, row| top = row.iter().fold(top, |m, v| m.max(v.abs())))?;
        Ok(shift_for(top, storage.most()))
    }

    /// Quantises with a shift from [`Stack::shift`].
    pub(super) fn quantise(&self, storage: Storage, shift: i16) -> Result<Quantised, ImportError> {
        let mut made = self.nothing(storage);
        let unit = exp2(-i32::from(shift));
        self.each_row(|r, row| {
            made.put(r, row, unit);
        })?;
        Ok(made.quantised())
    }

    /// What [`Stack::quantise`] with the shift `first` leaves over, quantised in the same way with `shift`.
    pub(super) fn remainder(
        &self,
        storage: Storage,
        first: i16,
        shift: i16,
    ) -> Result<Quantised, ImportError> {
        let (mut whole, mut made) = (self.nothing(storage), self.nothing(storage));
        let units = [first, shift].map(|s| exp2(-i32::from(s)));
        self.each_row(|r, row| {
            let (step, weights) = whole.put(r, row, units[0]);
            let rest: Vec<f64> = row.iter().zip(weights).map(|(v, w)| v - f64::from(w) * step).collect();
            made.put(r, &rest, units[1]);
        })?;
        Ok(made.quantised())
    }

    fn nothing(&self, storage: Storage) -> Making {
        let rows: usize = self.parts.iter().map(|p| p.weights.rows).sum();
        let stored = match storage {
            Storage::Plain => vec![BIAS; stored_len(rows, self.cols)],
            Storage::Packed => packed::zeros(rows, self.cols),
        };
        Making { storage, cols: self.cols, stored, scales: vec![0; rows] }
    }
}

/// A matrix that is being stored row by row.
struct Making {
    storage: Storage,
    cols: usize,
    stored: Vec<u8>,
    scales: Vec<u16>,
}

impl Making {
    /// Quantises a row. Its scale is rounded up to a whole number of units first, and the weights are rounded against that scale, so
    /// that rounding the scale costs nothing. What one step is worth, and the weights.
    fn put(&mut self, r: usize, row: &[f64], unit: f64) -> (f64, Vec<i8>) {
        let scale = row_scale(row, unit, self.storage.most());
        self.scales[r] = scale as u16;
        let step = scale * unit;
        let mut weights = Vec::with_capacity(row.len());
        match self.storage {
            Storage::Plain => {
                for (c, v) in row.iter().enumerate() {
                    let w = to_int8(*v, step);
                    self.stored[stored_index(self.cols, r, c)] = (w as u8) ^ BIAS;
                    weights.push(w);
                }
            }
            Storage::Packed => {
                for (i, group) in row.chunks(PACKED_GROUP).enumerate() {
                    let (g, q) = group_of(group, step);
                    packed::put(&mut self.stored, self.cols, (r, i), g, &q);
                    weights.extend(q.iter().map(|q| packed::worth(i32::from(*q), g) as i8));
                }
            }
        }
        (step, weights)
    }

    fn quantised(self) -> Quantised {
        Quantised { stored: self.stored, scales: self.scales }
    }
}

/// The scale and the numbers of a group that lie nearest to it, in the sum of squares. The number that is largest in size takes -8 of
/// eight steps or 7 of seven; scales around those that just reach it are tried, as giving it up a little may serve the others.
fn group_of(group: &[f64], step: f64) -> (i32, Vec<i8>) {
    let x: Vec<f64> = group.iter().map(|v| v / step).collect();
    let largest = x.iter().copied().fold(0f64, |m, v| if v.abs() > m.abs() { v } else { m });
    let mut best: Option<(f64, i32)> = None;
    let nearest = |x: f64, g: i32| (4.0 * x / f64::from(g) + 0.5).floor().clamp(-8.0, 7.0) as i32;
    for (reach, sign) in [(8.0, -1.0), (7.0, 1.0)] {
        let just = 4.0 * largest.abs() / reach;
        let (from, to) = ((0.85 * just).floor().max(1.0) as i32, (1.15 * just).ceil().min(63.0) as i32);
        let sign = if largest * sign < 0.0 { -1 } else { 1 };
        for g in (from..=to).map(|g| g * sign) {
            let error = |x: &f64| x - f64::from(packed::worth(nearest(*x, g), g));
            let sum: f64 = x.iter().map(|x| error(x) * error(x)).sum();
            if best.is_none_or(|(least, _)| sum < least) {
                best = Some((sum, g));
            }
        }
    }
    match best {
        Some((_, g)) if largest != 0.0 => (g, x.iter().map(|x| nearest(*x, g) as i8).collect()),
        _ => (0, vec![0; group.len()]),
    }
}

/// The smallest whole number of units at which `most` steps reach the largest of a row, 1 to 65 535.
fn row_scale(row: &[f64], unit: f64, most: f64) -> f64 {
    let top = row.iter().fold(0f64, |m, v| m.max(v.abs()));
    (top / most / unit).ceil().clamp(1.0, 65_535.0)
}

fn to_int8(v: f64, step: f64) -> i8 {
    (v / step + 0.5).floor().clamp(-127.0, 127.0) as i8
}

/// The largest shift at which `top / most` needs at most 65 535 units of 2^-shift; 16 for a matrix of zeros.
fn shift_for(top: f64, most: f64) -> i16 {
    if top == 0.0 {
        return 16;
    }
    let mut shift = 200i32;
    while shift > -200 && (top / most * exp2(shift)).ceil() > 65_535.0 {
        shift -= 1;
    }
    shift as i16
}

/// 2^e, exactly.
pub(super) fn exp2(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_use_the_whole_range_of_a_scale() {
        for top in [1e-6, 0.02, 1.0, 127.0, 3e4] {
            let s = shift_for(top, 127.0);
            let units = (top / 127.0 * exp2(i32::from(s))).ceil();
            assert!((32_768.0..=65_535.0).contains(&units), "{top}: {units} at {s}");
        }
        assert_eq!(shift_for(0.0, 127.0), 16);
    }

    /// Groups that four bits can hold come out as they are, whichever sign their largest number has.
    #[test]
    fn groups_of_four_bits_are_kept() {
        for (g, turn) in [(63, 0), (-63, 3), (17, 5), (-40, 1)] {
            let q: Vec<i8> = (0..32).map(|i| ((i * 5 + turn) % 16 - 8) as i8).collect();
            let step = 0.37;
            let row: Vec<f64> = q.iter().map(|q| f64::from(packed::worth(i32::from(*q), g)) * step).collect();
            let (got, numbers) = group_of(&row, step);
            let back: Vec<i32> = numbers.iter().map(|q| packed::worth(i32::from(*q), got)).collect();
            assert_eq!(back, q.iter().map(|q| packed::worth(i32::from(*q), g)).collect::<Vec<_>>(), "{g}");
        }
        assert_eq!(group_of(&[0.0; 5], 1.0), (0, vec![0; 5]));
    }

    /// No number is further away than half the step of its group, or than what 7 instead of 8 leaves over, beside rounding.
    #[test]
    fn packed_rows_stay_near() {
        let mut state = 5u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f64 / f64::from(1u32 << 24) - 0.5
        };
        let row: Vec<f64> = (0..96).map(|i| random() * if i / 32 == 1 { 10.0 } else { 1.0 }).collect();
        let unit = exp2(-20);
        let mut made =
            Making { storage: Storage::Packed, cols: 96, stored: packed::zeros(1, 96), scales: vec![0] };
        let (step, weights) = made.put(0, &row, unit);
        for (group, weights) in row.chunks(32).zip(weights.chunks(32)) {
            let top = group.iter().fold(0f64, |m, v| m.max(v.abs()));
            for (v, w) in group.iter().zip(weights) {
                let error = (v - f64::from(*w) * step).abs();
                assert!(error <= top / 6.0 + step, "{v} became {w} of {step}");
            }
        }
    }
}
