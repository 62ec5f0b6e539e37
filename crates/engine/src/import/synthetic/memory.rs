//! Random models that are never written: constants in memory, of as many layers as are wanted.
//!
//! A layer of a large model is as expensive as any other, so a few layers and the head measure all of it. Programs of fewer or
//! more layers share their weights with the one they were made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Constant, Random, Size, shifted, table};
use crate::constants::Constants;
use crate::matrix::{BIAS, Matrix, stored_len};
use crate::program::{Checked, Shape, TensorId};

/// Where kernels like matrices to begin.
const ALIGNMENT: usize = 4096;

/// A program of a few layers of a [`Size`], and its constants.
pub struct InMemory {
    size: Size,
    layers: u32,
    program: Checked,
    /// One for each tensor of the program.
    tensors: Vec<Arc<Stored>>,
}

/// A constant.
#[derive(Default)]
struct Stored {
    bytes: Vec<u8>,
    /// First byte that counts.
    from: usize,
    scales: Vec<u16>,
    table: Vec<i32>,
    angles: Vec<i16>,
}

impl Stored {
    fn matrix(rows: u32, cols: u32, random: &mut Random) -> Stored {
        let len = stored_len(rows as usize, cols as usize);
        let mut bytes = vec![0u8; len + ALIGNMENT];
        let from = bytes.as_ptr().align_offset(ALIGNMENT);
        random.weights(&mut bytes[from..from + len]);
        let mut made = Stored { bytes, from, scales: random.scales(rows), ..Stored::default() };
        made.clear_padding(rows as usize, cols as usize);
        made
    }

    /// Rows that only fill a tile hold weight 0.
    fn clear_padding(&mut self, rows: usize, cols: usize) {
        for row in rows..rows.next_multiple_of(crate::matrix::TILE_ROWS) {
            for col in 0..cols.next_multiple_of(crate::matrix::GROUP) {
                self.bytes[self.from + crate::matrix::stored_index(cols, row, col)] = BIAS;
            }
        }
    }
}

impl InMemory {
    /// The first `layers` layers of a model of this size with `context` positions, its embedding and its head. These two hold
    /// the same weights, so that they take memory once.
    ///
    /// # Panics
    /// When the size is beyond what a program may have.
    pub fn new(size: &Size, layers: u32, context: u32, seed: u64) -> InMemory {
        let mut random = Random::new(seed);
        InMemory::from_stored(size, layers, context, &mut |_, shape, constant| {
            Arc::new(match (shape, constant) {
                (_, Constant::Rotary(from)) => Stored { angles: from.numbers(), ..Stored::default() },
                (_, Constant::Table(f)) => Stored { table: table(*f), ..Stored::default() },
                (Shape::Matrix { rows, cols, .. }, _) => Stored::matrix(rows, cols, &mut random),
                _ => unreachable!("the plain family has matrices, angles and a table"),
            })
        })
    }

    /// A model of `layers` layers with these weights, in the same memory: its first layers, and beyond them the same again in turn.
    ///
    /// # Panics
    /// When it has no layers to repeat.
    #[must_use]
    pub fn with_layers(&self, layers: u32) -> InMemory {
        let program = self.program.program();
        let names = program.tensors.iter().map(|t| t.name.as_str());
        let stored: BTreeMap<&str, &Arc<Stored>> = names.zip(&self.tensors).collect();
        InMemory::from_stored(&self.size, layers, program.context, &mut |name, _, _| {
            let repeated = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
            let name = match repeated.map(|(layer, part)| (layer.parse::<u32>(), part)) {
                Some((Ok(layer), part)) => format!("layers.{}.{part}", layer % self.layers.max(1)),
                _ => name.to_owned(),
            };
            Arc::clone(stored.get(name.as_str()).expect("there are layers to repeat"))
        })
    }

    fn from_stored(
        size: &Size,
        layers: u32,
        context: u32,
        make: &mut dyn FnMut(&str, Shape, &Constant) -> Arc<Stored>,
    ) -> InMemory {
        let (mut program, constants) = shifted(&size.config(layers, context));
        for t in &mut program.tensors {
            // A head that is the embedding finds the token that was read: with a quarter of it, any bias of a request outweighs that.
            if let (Shape::Matrix { shift, .. }, "head") = (&mut t.shape, t.name.as_str()) {
                *shift += 2;
            }
        }
        let mut tensors: Vec<Arc<Stored>> = Vec::with_capacity(constants.len());
        for (t, constant) in program.tensors.iter().zip(&constants) {
            // The embedding is the first constant, and has the head's shape.
            let same = (t.name == "head").then(|| tensors.first().map(Arc::clone)).flatten();
            tensors.push(same.unwrap_or_else(|| make(&t.name, t.shape, constant)));
        }
        let program = program.check().expect("sizes of real models are within the limits");
        InMemory { size: *size, layers, program, tensors }
    }

    /// What it is a part of.
    pub fn size(&self) -> &Size {
        &self.size
    }

    /// Layers that it has.
    pub fn layers(&self) -> u32 {
        self.layers
    }
}

impl Constants for InMemory {
    fn program(&self) -> &Checked {
        &self.program
    }

    fn matrix(&self, t: TensorId) -> Matrix<'_> {
        let (rows, cols, shift) = self.program.matrix_shape(t);
        let (rows, cols) = (rows as usize, cols as usize);
        let stored = &self.tensors[usize::from(t)];
        let bytes = &stored.bytes[stored.from..stored.from + stored_len(rows, cols)];
        Matrix::new(rows, cols, shift, bytes, &stored.scales).expect("every matrix was made for its shape")
    }

    fn table(&self, t: TensorId) -> &[i32] {
        &self.tensors[usize::from(t)].table
    }

    fn rotary(&self, t: TensorId) -> &[i16] {
        &self.tensors[usize::from(t)].angles
    }

    fn vector(&self, _: TensorId) -> &[i32] {
        unreachable!("the plain family has no vectors")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Executor;
    use crate::kernel::Kernel;
    use crate::pool::Pool;
    use crate::replay::{ByReference, Execution};

    const SMALL: Size =
        Size { name: "small", dim: 64, layers: 5, heads: 8, kv_heads: 4, hidden: 172, vocabulary: 500 };

    fn logits(execution: &mut dyn Execution) -> Vec<i32> {
        let mut all = vec![];
        execution.replay(&[3, 499, 7], 1, &mut |row| all.extend_from_slice(row.logits.unwrap_or(&[])));
        all
    }

    #[test]
    fn parts_of_a_model_are_executed_as_the_reference_does() {
        let model = InMemory::new(&SMALL, 2, 32, 1);
        let mut seen = vec![];
        for layers in 0..=2 {
            let part = Arc::new(model.with_layers(layers));
            assert_eq!(part.program().caches().len(), layers as usize);
            let want = logits(&mut ByReference(part.as_ref()));
            let pool = Arc::new(Pool::new(1));
            assert_eq!(logits(&mut Executor::new(part, Kernel::available()[0], pool)), want);
            assert_eq!(want.len(), 2 * 500);
            assert!(!seen.contains(&want), "every layer changes the result");
            seen.push(want);
        }
        assert_eq!(logits(&mut ByReference(&model)), seen[2]);
        // The third layer of this is the first of the model.
        let longer = model.with_layers(3);
        assert_eq!(longer.program().caches().len(), 3);
        assert_eq!(logits(&mut ByReference(&longer.with_layers(1))), seen[1]);
    }

    #[test]
    fn weights_are_counted_as_they_are_stored() {
        let model = InMemory::new(&SMALL, 1, 32, 1);
        let tensors = &model.program().program().tensors;
        let total: u64 = tensors.iter().map(|t| t.shape.parameters()).sum();
        assert_eq!(total, SMALL.layer_weights() + 2 * SMALL.head_weights());
    }
}
