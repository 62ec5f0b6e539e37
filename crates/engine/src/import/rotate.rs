//! Hadamard rotations that leave a model's function unchanged and spread its outliers (QuaRot's R1 and R2).
//!
//! A [`Turn`] multiplies vectors by an orthonormal matrix: fixed signs, then a Walsh-Hadamard transform of each run whose
//! length is the largest power of two that divides the vector's. Only additions, subtractions and products in one fixed
//! order, so the numbers are the same on every machine.

/// Which rotations an import applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rotation {
    /// None.
    #[default]
    None,
    /// Of the residual stream, and of each head's values. Decoders with biases in attention or with norms after their layers
    /// are refused; encoders have transforms of their own and stay as they are.
    Hadamard,
}

/// An orthonormal matrix for vectors whose length is a multiple of [`Turn::period`].
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// Length of one transform, a power of two that divides the period.
    block: usize,
    /// 1.0 or -1.0 for each place of a period.
    signs: Vec<f64>,
    /// 1 / sqrt(block).
    unit: f64,
}

impl Turn {
    /// For vectors made of runs of `period` numbers, each run turned alike.
    pub(super) fn new(period: u32) -> Turn {
        let block = 1usize << period.trailing_zeros();
        // The signs are part of what an import is: xorshift64 from a constant, the top bit of each state.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let signs = (0..period)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if state >> 63 == 0 { 1.0 } else { -1.0 }
            })
            .collect();
        Turn { block, signs, unit: 1.0 / libm::sqrt(block as f64) }
    }

    /// The transform alone, of runs of `block` numbers, a power of two that divides `period`; over `sqrt(block)` once more,
    /// so that it undoes [`crate::program::Op::Hadamard`].
    pub(super) fn plain(period: u32, block: u32) -> Turn {
        Turn { block: block as usize, signs: vec![1.0; period as usize], unit: 1.0 / f64::from(block) }
    }

    /// Length of one transform: rows that [`Turn::columns`] needs at once.
    pub(super) fn block(&self) -> usize {
        self.block
    }

    /// Turns one vector.
    pub(super) fn row(&self, row: &mut [f64]) {
        let period = self.signs.len();
        for run in row.chunks_mut(period) {
            run.iter_mut().zip(&self.signs).for_each(|(v, s)| *v *= s);
        }
        for run in row.chunks_exact_mut(self.block) {
            let mut half = 1;
            while half < run.len() {
                for pair in run.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    butterfly(a, b);
                }
                half *= 2;
            }
        }
        row.iter_mut().for_each(|v| *v *= self.unit);
    }

    /// Turns every column of [`Turn::block`] rows of `cols` numbers, the first being row `first` of its matrix.
    pub(super) fn columns(&self, rows: &mut [f64], cols: usize, first: usize) {
        for (r, row) in rows.chunks_exact_mut(cols).enumerate() {
            let sign = self.signs[(first + r) % self.signs.len()];
            row.iter_mut().for_each(|v| *v *= sign);
        }
        let mut half = cols;
        while half < rows.len() {
            for pair in rows.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                butterfly(a, b);
            }
            half *= 2;
        }
        rows.iter_mut().for_each(|v| *v *= self.unit);
    }
}

fn butterfly(a: &mut [f64], b: &mut [f64]) {
    for (x, y) in a.iter_mut().zip(b) {
        (*x, *y) = (*x + *y, *x - *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_both_sides_of_a_product_changes_nothing() {
        // (w · Rᵀ)(R · x) = w · x, and the columns of a matrix turn as its outputs do.
        for n in [1u32, 6, 12, 16, 40] {
            let turn = Turn::new(n);
            let x: Vec<f64> = (0..n).map(|i| f64::from(i * i % 7) - 3.0).collect();
            let w: Vec<f64> = (0..n).map(|i| f64::from(i * 5 % 11) - 4.0).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (mut tx, mut tw) = (x.clone(), w.clone());
            turn.row(&mut tx);
            turn.row(&mut tw);
            assert!((dot(&tx, &tw) - dot(&x, &w)).abs() < 1e-9, "{n}");
            let mut columns: Vec<f64> = x.iter().flat_map(|v| [*v, 2.0 * v]).collect();
            for (i, rows) in columns.chunks_exact_mut(2 * turn.block()).enumerate() {
                turn.columns(rows, 2, i * turn.block());
            }
            for (c, t) in columns.chunks_exact(2).zip(&tx) {
                assert_eq!(c, [*t, 2.0 * t]);
            }
        }
    }
}
