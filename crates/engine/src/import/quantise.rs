//! Float rows to int8 rows with integer scales.

use super::ImportError;
use super::rotate::Turn;
use super::source::Weights;
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

/// An int8 matrix as it is stored.
pub(super) struct Quantised {
    pub(super) stored: Vec<u8>,
    pub(super) scales: Vec<u16>,
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
    pub(super) fn shift(&self) -> Result<i16, ImportError> {
        let mut top = 0f64;
        self.each_row(|_, row| top = row.iter().fold(top, |m, v| m.max(v.abs())))?;
        Ok(shift_for(top))
    }

    /// Quantises with a shift from [`Stack::shift`]. Each row's scale is rounded up to an integer first, and the weights are
    /// rounded against that scale, so that rounding the scale costs nothing.
    pub(super) fn quantise(&self, shift: i16) -> Result<Quantised, ImportError> {
        let rows: usize = self.parts.iter().map(|p| p.weights.rows).sum();
        let mut stored = vec![BIAS; stored_len(rows, self.cols)];
        let mut scales = vec![0u16; rows];
        let unit = exp2(-i32::from(shift));
        self.each_row(|r, row| {
            let scale = row_scale(row.iter().copied(), unit);
            scales[r] = scale as u16;
            for (c, v) in row.iter().enumerate() {
                let q = to_int8(*v, scale * unit);
                stored[stored_index(self.cols, r, c)] = (q as u8) ^ BIAS;
            }
        })?;
        Ok(Quantised { stored, scales })
    }
}

impl Stack<'_> {
    /// What [`Stack::quantise`] with the shift `first` leaves over, quantised in the same way with `shift`.
    pub(super) fn remainder(&self, first: i16, shift: i16) -> Result<Quantised, ImportError> {
        let rows: usize = self.parts.iter().map(|p| p.weights.rows).sum();
        let mut stored = vec![BIAS; stored_len(rows, self.cols)];
        let mut scales = vec![0u16; rows];
        let units = [first, shift].map(|s| exp2(-i32::from(s)));
        self.each_row(|r, row| {
            let step = row_scale(row.iter().copied(), units[0]) * units[0];
            let rest = row.iter().map(|v| v - f64::from(to_int8(*v, step)) * step);
            let scale = row_scale(rest.clone(), units[1]);
            scales[r] = scale as u16;
            for (c, v) in rest.enumerate() {
                let q = to_int8(v, scale * units[1]);
                stored[stored_index(self.cols, r, c)] = (q as u8) ^ BIAS;
            }
        })?;
        Ok(Quantised { stored, scales })
    }
}

/// The smallest whole number of units at which 127 steps reach the largest of a row, 1 to 65 535.
fn row_scale(row: impl Iterator<Item = f64>, unit: f64) -> f64 {
    let top = row.fold(0f64, |m, v| m.max(v.abs()));
    (top / 127.0 / unit).ceil().clamp(1.0, 65_535.0)
}

fn to_int8(v: f64, step: f64) -> i8 {
    (v / step + 0.5).floor().clamp(-127.0, 127.0) as i8
}

/// The largest shift at which `top / 127` needs at most 65 535 units of 2^-shift; 16 for a matrix of zeros.
fn shift_for(top: f64) -> i16 {
    if top == 0.0 {
        return 16;
    }
    let mut shift = 200i32;
    while shift > -200 && (top / 127.0 * exp2(shift)).ceil() > 65_535.0 {
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
            let s = shift_for(top);
            let units = (top / 127.0 * exp2(i32::from(s))).ceil();
            assert!((32_768.0..=65_535.0).contains(&units), "{top}: {units} at {s}");
        }
        assert_eq!(shift_for(0.0), 16);
    }
}
