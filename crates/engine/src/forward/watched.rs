//! Beside an executor: whoever must see its values (a trace), or make some of them (a verifier that was given the products).
//!
//! Values live in buffers that are used again, so a value can be read only until the next operation runs, unless the plan
//! still needs it.

use std::sync::Arc;

use super::attend::Attention;
use super::{Executor, Run};
use crate::cache::Sequence;
use crate::program::{TensorId, ValueId};
use crate::semantics::scale::Scale;

/// Someone beside an executor.
pub trait Companion {
    /// Before operation `op`: makes its value instead of the executor, by one of the `put` functions, and says whether it did.
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let _ = (op, values);
        false
    }

    /// After operation `op`.
    fn made(&mut self, op: usize, values: &Values<'_>) {
        let _ = (op, values);
    }
}

/// Puts the accumulators of a row, one for each row of a matrix: is given the row's index and the int8 numbers that are multiplied.
pub type PutRow<'a> = &'a mut dyn FnMut(usize, &[i8], &mut [i32]);

/// Nobody.
pub(crate) struct Alone;

impl Companion for Alone {}

/// The values of a batch, in rows.
pub struct Values<'a> {
    executor: &'a mut Executor,
    rows: usize,
}

impl<'a> Values<'a> {
    pub(super) fn new(executor: &'a mut Executor, rows: usize) -> Values<'a> {
        Values { executor, rows }
    }

    /// Rows that the current operation is executed for: all of the batch, or after the hidden vector those with logits.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Integers of one row, and their scale.
    pub fn integers(&self, v: ValueId, row: usize) -> (&[i32], Scale) {
        self.executor.row(v, row)
    }

    /// int8 numbers of one row, and the scale of each group.
    pub fn int8(&self, v: ValueId, row: usize) -> (&[i8], &[Scale]) {
        let e = &self.executor;
        let (len, groups) = e.constants.program().int8_shape(v);
        let numbers = &e.int8(v)[row * e.width(v)..][..len as usize];
        (numbers, &e.buffers.scales[usize::from(v)][row * groups as usize..][..groups as usize])
    }

    /// Accumulators of a matrix times the int8 numbers of `x`, for all rows: rows × outputs.
    pub fn accumulators(&self, weights: TensorId, x: ValueId) -> Vec<i32> {
        self.executor.accumulators(weights, x, self.rows)
    }

    /// Makes value `v` of all rows: rows × length numbers, one scale per row.
    ///
    /// # Panics
    /// When the lengths are others.
    pub fn put_integers(&mut self, v: ValueId, numbers: &[i32], scales: Vec<Scale>) {
        let (i, e) = (usize::from(v), &mut *self.executor);
        assert_eq!((numbers.len(), scales.len()), (self.rows * e.width(v), self.rows), "every row is given");
        let mut out = e.take_integers(i, self.rows);
        out[..numbers.len()].copy_from_slice(numbers);
        e.put_integers(i, out);
        e.buffers.scales[i] = scales;
    }

    /// Makes value `v`, the product of `weights` and `x` (semantics 6.4), row by row. Of the matrix only the row
    /// scales are read.
    pub fn put_product(&mut self, v: ValueId, weights: TensorId, x: ValueId, put: PutRow<'_>) {
        self.executor.finish_product(usize::from(v), weights, x, self.rows, put);
    }

    /// Makes value `v`, attention (semantics 6.6), of rows at `positions`, over the keys and values in `cache`, a sequence of a single attend
    /// operation: each row attends to what it sees from its position, whatever later positions the cache holds.
    ///
    /// # Panics
    /// When the operation does not attend, rows and positions are not as many, or the cache has another shape or holds too few.
    pub fn put_attended(&mut self, v: ValueId, positions: &[u32], cache: &Sequence) {
        let constants = Arc::clone(&self.executor.constants);
        let Some((op, [q, ..])) = Attention::of(&constants.program().program().ops[usize::from(v)]) else {
            panic!("only attention is made of keys and values")
        };
        let last = positions.iter().max().map_or(0, |p| *p as usize);
        assert!(positions.len() == self.rows && cache.filled() > last, "every row has its keys and values");
        let run = |(row, p): (usize, &u32)| Run { first_row: row, rows: 1, position: *p as usize };
        let runs: Vec<Run> = positions.iter().enumerate().map(run).collect();
        let caches = vec![cache.layer(0, op.kv_heads); runs.len()];
        self.executor.attend_over(usize::from(v), q, &op, &runs, &caches);
    }
}
