//! Models that are not the receipt's: what a provider executes who saves work.

use std::collections::BTreeMap;
use std::sync::Arc;

use assay_engine::artifact::Profile;
use assay_engine::constants::Constants;
use assay_engine::matrix::{BIAS, Matrix, stored_index, stored_len};
use assay_engine::program::{Checked, Op, Program, TensorId, ValueId};

/// The matrices that a program multiplies with.
pub fn products(program: &Program) -> Vec<TensorId> {
    let weights = program.ops.iter().filter_map(|op| match op {
        Op::MatMul { weights, .. } => Some(*weights),
        _ => None,
    });
    weights.collect()
}

/// The number of the last layer, and the matrices whose products it adds to what came before.
pub fn last_layer(program: &Program) -> Option<(u16, Vec<TensorId>)> {
    let attend = |(i, op): (usize, &Op)| match op {
        Op::Attend { layer, .. } => Some((i, *layer)),
        _ => None,
    };
    let (from, layer) = program.ops.iter().enumerate().filter_map(attend).next_back()?;
    let added = program.ops.iter().skip(from).filter_map(|op| match op {
        Op::Add { y, .. } => Some(*y),
        _ => None,
    });
    let weights: Vec<TensorId> = added.filter_map(|v| made_by(program, v)).collect();
    (!weights.is_empty()).then_some((layer, weights))
}

/// The matrix whose product a value is, behind norms and biases.
fn made_by(program: &Program, mut value: ValueId) -> Option<TensorId> {
    loop {
        value = match *program.ops.get(usize::from(value))? {
            Op::MatMul { weights, .. } => return Some(weights),
            Op::RmsNorm { x, .. } | Op::Bias { x, .. } | Op::Normalise { x, .. } | Op::Fix { x, .. } => x,
            _ => return None,
        };
    }
}

/// A weight in 4 bits: -7 to 7 times 16.
pub fn four_bits(weight: i8) -> i8 {
    ((i16::from(weight) + 8) >> 4).clamp(-7, 7) as i8 * 16
}

/// Constants of which some matrices have other weights.
pub struct Replaced {
    constants: Arc<dyn Constants>,
    matrices: BTreeMap<TensorId, Vec<u8>>,
}

impl Replaced {
    /// With the weights of `which` changed one by one.
    pub fn new(constants: Arc<dyn Constants>, which: &[TensorId], by: fn(i8) -> i8) -> Replaced {
        let stored = |t: &TensorId| {
            let m = constants.matrix(*t);
            let mut bytes = vec![BIAS; stored_len(m.rows(), m.cols())];
            for row in 0..m.rows() {
                for col in 0..m.cols() {
                    bytes[stored_index(m.cols(), row, col)] = by(m.weight(row, col)).cast_unsigned() ^ BIAS;
                }
            }
            (*t, bytes)
        };
        let matrices = which.iter().map(stored).collect();
        Replaced { constants, matrices }
    }
}

impl Constants for Replaced {
    fn program(&self) -> &Checked {
        self.constants.program()
    }

    fn profile(&self) -> Profile {
        self.constants.profile()
    }

    fn matrix(&self, t: TensorId) -> Matrix<'_> {
        let m = self.constants.matrix(t);
        let Some(bytes) = self.matrices.get(&t) else { return m };
        Matrix::new(m.rows(), m.cols(), m.shift(), bytes, m.scales()).expect("it has the matrix's shape")
    }

    fn table(&self, t: TensorId) -> &[i32] {
        self.constants.table(t)
    }

    fn rotary(&self, t: TensorId) -> &[i16] {
        self.constants.rotary(t)
    }

    fn vector(&self, t: TensorId) -> &[i32] {
        self.constants.vector(t)
    }
}
