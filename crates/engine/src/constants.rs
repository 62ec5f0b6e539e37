//! Where an executor reads a program's constants from.

use std::ops::Range;

use crate::artifact::Profile;
use crate::matrix::Matrix;
use crate::presence::Lack;
use crate::program::{Checked, Op, TensorId};

/// What a batch reads of tables that have a row for each token or position.
#[derive(Clone, Copy, Debug)]
pub struct Reads<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Their positions, a run for each sequence.
    pub positions: &'a [Range<usize>],
}

/// A checked program with its constants. A tensor asked for by the kind that the program declares is always there.
pub trait Constants: Send + Sync {
    /// The program.
    fn program(&self) -> &Checked;
    /// How its matrices are stored, which is under the model's root.
    fn profile(&self) -> Profile {
        Profile::Int8
    }
    /// Weights and row scales.
    fn matrix(&self, t: TensorId) -> Matrix<'_>;
    /// [`crate::program::TABLE_LEN`] entries.
    fn table(&self, t: TensorId) -> &[i32];
    /// `[position][pair][cos, sin]`.
    fn rotary(&self, t: TensorId) -> &[i16];
    /// Fixed-point numbers.
    fn vector(&self, t: TensorId) -> &[i32];

    /// What `op` reads for a batch and is not there yet. Constants that are all there lack nothing; only of others must this be asked
    /// before each operation.
    fn lacks(&self, op: &Op, reads: Reads<'_>) -> Option<Lack> {
        let _ = (op, reads);
        None
    }
}
