//! Where an executor reads a program's constants from.

use crate::matrix::Matrix;
use crate::program::{Checked, TensorId};

/// A checked program with its constants. A tensor asked for by the kind that the program declares is always there.
pub trait Constants: Send + Sync {
    /// The program.
    fn program(&self) -> &Checked;
    /// Weights and row scales.
    fn matrix(&self, t: TensorId) -> Matrix<'_>;
    /// [`crate::program::TABLE_LEN`] entries.
    fn table(&self, t: TensorId) -> &[i32];
    /// `[position][pair][cos, sin]`.
    fn rotary(&self, t: TensorId) -> &[i16];
    /// Fixed-point numbers.
    fn vector(&self, t: TensorId) -> &[i32];
}
