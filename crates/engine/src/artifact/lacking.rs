//! What an operation reads of an artifact, byte for byte, and whether it is there.
//!
//! What of a constant the arithmetic relies on is checked here before it is used for the first time; the whole artifact is checked
//! once more when all of it is there. What only fills tiles and groups of a matrix is left to that: no product depends on it.

use std::ops::Range;

use super::{Artifact, are_angles, check_tensor};
use crate::constants::Reads;
use crate::matrix::{GROUP, TILE_ROWS};
use crate::presence::{Lack, Presence};
use crate::program::layers::named;
use crate::program::{Op, Shape, TensorId};

/// What `op` lacks; an arrival with a constant that may not be used fails.
pub(super) fn lacks(a: &Artifact, presence: &Presence, op: &Op, reads: Reads<'_>) -> Option<Lack> {
    let ranges = match *op {
        Op::Embed { table } => a.rows(table, reads.tokens.iter().map(|t| *t as usize)),
        Op::Position { table } => a.rows(table, reads.positions.iter().cloned().flatten()),
        Op::Rotary { table, .. } => reads.positions.iter().map(|run| a.angles(table, run)).collect(),
        _ => named(op).into_iter().flat_map(|t| a.whole(t)).collect(),
    };
    if let Some(lack) = presence.lack(&ranges) {
        return Some(lack);
    }
    if let Err(what) = check(a, op, reads) {
        presence.fail(&what);
    }
    presence.lack(&[])
}

fn check(a: &Artifact, op: &Op, reads: Reads<'_>) -> Result<(), String> {
    let tensors = &a.program.program().tensors;
    if let Op::Rotary { table, .. } = *op {
        let here = |run: &Range<usize>| {
            let bytes = a.angles(table, run);
            are_angles(a.numbers((bytes.start as usize, (bytes.end - bytes.start) as usize)))
        };
        let name = || tensors.get(usize::from(table)).map_or("", |t| &t.name);
        return match reads.positions.iter().all(here) {
            true => Ok(()),
            false => Err(format!("rotary table `{}` has values that are no angles", name())),
        };
    }
    let of = |t: &TensorId| tensors.get(usize::from(*t)).map(|tensor| (*t, tensor));
    named(op)
        .iter()
        .filter_map(of)
        .filter(|(_, t)| !matches!(t.shape, Shape::Matrix { .. }))
        .try_for_each(|(i, t)| check_tensor(a, i, t))
}

fn bytes(from: usize, len: usize) -> Range<u64> {
    from as u64..(from + len) as u64
}

impl Artifact {
    /// The bytes of a tensor.
    fn whole(&self, t: TensorId) -> impl Iterator<Item = Range<u64>> + use<> {
        let place = self.places[usize::from(t)];
        [place.data, place.scales].into_iter().filter(|p| p.1 > 0).map(|(from, len)| bytes(from, len))
    }

    /// The bytes that hold some rows of a matrix.
    fn rows(&self, t: TensorId, rows: impl Iterator<Item = usize>) -> Vec<Range<u64>> {
        let place = self.places[usize::from(t)];
        let (_, cols, _) = self.program.matrix_shape(t);
        // Tables are not packed.
        let tile = TILE_ROWS * (cols as usize).next_multiple_of(GROUP);
        let row =
            |r: usize| [bytes(place.data.0 + r / TILE_ROWS * tile, tile), bytes(place.scales.0 + 2 * r, 2)];
        let mut all: Vec<Range<u64>> = rows.flat_map(row).collect();
        all.sort_unstable_by_key(|r| r.start);
        all.dedup();
        all
    }

    /// The bytes that hold the angles of a run of positions.
    fn angles(&self, t: TensorId, run: &Range<usize>) -> Range<u64> {
        let place = self.places[usize::from(t)];
        let each = match self.program.program().tensors[usize::from(t)].shape {
            Shape::Rotary { positions, .. } => place.data.1 / (positions as usize).max(1),
            _ => 0,
        };
        bytes(place.data.0 + run.start * each, (run.end - run.start) * each)
    }

    /// The bytes of constants in the order in which any batch needs them, each once. What depends on tokens and positions (rows of
    /// embeddings, angles) is not among them.
    pub fn order(&self) -> Vec<Range<u64>> {
        let program = self.program.program();
        let mut seen = vec![false; program.tensors.len()];
        let mut all: Vec<Range<u64>> = Vec::new();
        for op in &program.ops {
            if matches!(op, Op::Embed { .. } | Op::Position { .. } | Op::Rotary { .. }) {
                continue;
            }
            for t in named(op) {
                if std::mem::replace(&mut seen[usize::from(t)], true) {
                    continue;
                }
                for range in self.whole(t) {
                    match all.last_mut() {
                        // Between two constants lie only bytes that fill up to the next place.
                        Some(last) if range.start >= last.end && range.start - last.end < 4096 => {
                            last.end = range.end
                        }
                        _ => all.push(range),
                    }
                }
            }
        }
        all
    }
}
