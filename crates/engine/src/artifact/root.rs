//! The model root: a Keccak Merkle root over the content of a model, whatever the file looks like.
//!
//! Trees are those of [`assay_core::merkle`]. The root has these leaves, in this order, each a name and a hash
//! (the name's length as one byte, the name, 32 bytes):
//!
//! | name | hash |
//! |---|---|
//! | `profile` | Keccak of the profile's name: `int8-v1` or `int4-v1` |
//! | `program` | Merkle root over, each in borsh: the program's facts (context u32, vocabulary u32, residual fraction bits u8, head, number of operations u16, what is carried: a list of u16), each tensor's declaration, each operation as declared |
//! | `text` | Keccak of the canonical [`TextModel`] |
//! | `tokenizer` | Keccak of the tokenizer's bytes |
//! | `tensor`, once per tensor | see below |
//!
//! A matrix is the Keccak of its weights' root followed by its scales' root. The weights' root has one leaf per tile of 64
//! rows × 256 columns, row tile by row tile: the root over the tile's rows, each leaf being the up to 256 int8 weights of one
//! row in that tile, as two's complement bytes. (Tile roots stand in the tree as they are, without being hashed as leaves.)
//! So one leaf is what a contract needs to check one part of a dot product, and hashing a model is
//! parallel. Scales are leaves of 128 numbers of 2 bytes, tables and vectors leaves of 64 numbers of 4 bytes, angles leaves of 128 of 2,
//! big-endian. [`super::opening`] proves each of these leaves under the root.
//!
//! Not under the root: the model's name, licence and source files. The same weights from another file format are the same
//! model.

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot};
use assay_core::keccak::keccak256;
use assay_core::merkle;
pub(super) use assay_core::text::component;

use super::{Profile, TextModel};
use crate::constants::Constants;
use crate::kernel::{USUAL, keccak};
use crate::matrix::{BIAS, GROUP, Matrix, TILE_COLS, TILE_ROWS};
use crate::program::{Checked, Shape, TensorId, ValueId};

/// Row scales in one leaf.
pub(super) const SCALES_RUN: usize = 128;
/// Numbers of a table or a vector in one leaf.
pub(super) const NUMBERS_RUN: usize = 64;
/// Numbers of a rotary table in one leaf.
pub(super) const ANGLES_RUN: usize = 128;

/// The root of a model. `progress` hears how many weights each matrix had.
pub fn model_root(
    c: &dyn Constants,
    text: &TextModel,
    tokenizer: &[u8],
    progress: &dyn Fn(u64),
) -> ModelRoot {
    let tensors = c.program().program().tensors.iter().enumerate().map(|(i, t)| {
        let hash = Branch::of(c, i as TensorId, t.shape).hash();
        progress(t.shape.parameters());
        hash
    });
    assemble((c.profile(), c.program()), text, tokenizer, tensors)
}

/// The hashes that stand under one tensor's.
pub(super) enum Branch {
    /// Roots of the tiles of a matrix, row tile by row tile, and the leaves of its row scales.
    Matrix {
        /// The roots.
        tiles: Vec<Hash>,
        /// The leaves.
        scales: Vec<Hash>,
    },
    /// Leaves of a table, a vector or a rotary table.
    Runs(Vec<Hash>),
}

impl Branch {
    /// Of the tensor `t` as the program declares it.
    pub(super) fn of(c: &dyn Constants, t: TensorId, shape: Shape) -> Branch {
        match shape {
            Shape::Matrix { .. } => Branch::matrix(&c.matrix(t)),
            Shape::Table => Branch::numbers(c.table(t)),
            Shape::Vector { .. } => Branch::numbers(c.vector(t)),
            Shape::Rotary { .. } => Branch::angles(c.rotary(t)),
        }
    }

    /// Of a matrix.
    pub(super) fn matrix(w: &Matrix<'_>) -> Branch {
        Branch::Matrix { tiles: tile_roots(w), scales: leaves(w.scales(), SCALES_RUN, u16::to_be_bytes) }
    }

    /// Of a table or a vector.
    pub(super) fn numbers(numbers: &[i32]) -> Branch {
        Branch::Runs(leaves(numbers, NUMBERS_RUN, i32::to_be_bytes))
    }

    /// Of a rotary table.
    pub(super) fn angles(angles: &[i16]) -> Branch {
        Branch::Runs(leaves(angles, ANGLES_RUN, i16::to_be_bytes))
    }

    /// The tensor's hash.
    pub(super) fn hash(&self) -> Hash {
        let root = |hashes: &Vec<Hash>| keccak::root(hashes.clone());
        match self {
            Branch::Matrix { tiles, scales } => join(&root(tiles), &root(scales)),
            Branch::Runs(runs) => root(runs),
        }
    }
}

/// The root from the hashes of all tensors, in order.
pub(super) fn assemble(
    model: (Profile, &Checked),
    text: &TextModel,
    tokenizer: &[u8],
    tensors: impl Iterator<Item = Hash>,
) -> ModelRoot {
    let root = merkle::root(component_leaves(model, text, tokenizer, tensors));
    ModelRoot::from_bytes(*root.as_bytes())
}

/// Leaves of the root before the tensors.
pub(super) const BEFORE_TENSORS: usize = 4;
/// Which of them is the program.
pub(super) const PROGRAM: usize = 1;

/// The leaves of the root.
pub(super) fn component_leaves(
    (profile, program): (Profile, &Checked),
    text: &TextModel,
    tokenizer: &[u8],
    tensors: impl Iterator<Item = Hash>,
) -> impl Iterator<Item = Hash> {
    let parts = [
        ("profile", keccak256(&[profile.name().as_bytes()])),
        ("program", merkle::root(program_leaves(program))),
        ("text", text.canonical_hash()),
        ("tokenizer", keccak256(&[tokenizer])),
    ];
    parts.into_iter().chain(tensors.map(|t| ("tensor", t))).map(|(name, hash)| component(name, &hash))
}

/// What a program says, leaf after leaf: its numbers, then every tensor's declaration, then every operation.
pub(super) fn statements(checked: &Checked) -> impl Iterator<Item = Vec<u8>> {
    let bytes = |written: std::io::Result<Vec<u8>>| written.expect("borsh writes to memory");
    let p = checked.program();
    let ops = (0..p.ops.len()).filter_map(|i| checked.declared(i as ValueId));
    std::iter::once(bytes(borsh::to_vec(&p.facts())))
        .chain(p.tensors.iter().map(move |t| bytes(borsh::to_vec(t))))
        .chain(ops.map(move |o| bytes(borsh::to_vec(&o))))
}

/// The leaves of a program.
pub(super) fn program_leaves(p: &Checked) -> Vec<Hash> {
    statements(p).map(|s| merkle::leaf(&s)).collect()
}

/// Columns of a column tile.
pub(super) fn tile_cols(cols: usize, col_tile: usize) -> std::ops::Range<usize> {
    col_tile * TILE_COLS..((col_tile + 1) * TILE_COLS).min(cols)
}

/// Rows of a row tile.
pub(super) fn tile_rows(rows: usize, row_tile: usize) -> std::ops::Range<usize> {
    row_tile * TILE_ROWS..((row_tile + 1) * TILE_ROWS).min(rows)
}

/// Appends the bytes of one tile, row by row, what its leaves hold. `plain` is its row tile, a byte for each weight.
pub(super) fn append_tile(
    w: &Matrix<'_>,
    plain: &[u8],
    row_tile: usize,
    col_tile: usize,
    bytes: &mut Vec<u8>,
) {
    let rows = tile_rows(w.rows(), row_tile).len();
    let cols = tile_cols(w.cols(), col_tile);
    let (groups, _) = plain.as_chunks::<{ TILE_ROWS * GROUP }>();
    let groups = &groups[cols.start / GROUP..];
    let at = bytes.len();
    bytes.resize(at + rows * cols.len(), 0);
    for (r, row) in bytes[at..].chunks_exact_mut(cols.len()).enumerate() {
        let stored = groups.iter().map(|group| &group.as_chunks::<GROUP>().0[r]);
        let (whole, rest) = row.as_chunks_mut::<GROUP>();
        for (to, from) in whole.iter_mut().zip(stored.clone()) {
            *to = from.map(|b| b ^ BIAS);
        }
        for (to, from) in rest.iter_mut().zip(stored.skip(whole.len()).flatten()) {
            *to = from ^ BIAS;
        }
    }
}

/// Roots of the tiles of some row tiles, row tile by row tile.
fn tile_roots_of(w: &Matrix<'_>, row_tiles: std::ops::Range<usize>) -> Vec<Hash> {
    let (whole, rest) = (w.cols() / TILE_COLS, w.cols() % TILE_COLS);
    let mut roots = Vec::with_capacity(row_tiles.len() * w.cols().div_ceil(TILE_COLS));
    let mut bytes = Vec::new();
    for row_tile in row_tiles {
        let rows = tile_rows(w.rows(), row_tile).len();
        let plain = USUAL.plain_tile(w, row_tile);
        bytes.clear();
        (0..whole).for_each(|col_tile| append_tile(w, &plain, row_tile, col_tile, &mut bytes));
        roots.extend(keccak::roots(keccak::leaves(&bytes, TILE_COLS), rows));
        if rest > 0 {
            bytes.clear();
            append_tile(w, &plain, row_tile, whole, &mut bytes);
            roots.push(keccak::root(keccak::leaves(&bytes, rest)));
        }
    }
    roots
}

/// Roots of all tiles, row tile by row tile; shared between threads when there are many.
fn tile_roots(w: &Matrix<'_>) -> Vec<Hash> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(w.tiles());
    if threads == 1 || w.rows() * w.cols() < 1 << 20 {
        return tile_roots_of(w, 0..w.tiles());
    }
    let each = w.tiles().div_ceil(threads);
    let part = |t: usize| (t * each).min(w.tiles())..((t + 1) * each).min(w.tiles());
    std::thread::scope(|s| {
        let runs: Vec<_> = (0..threads).map(|t| s.spawn(move || tile_roots_of(w, part(t)))).collect();
        runs.into_iter().flat_map(|r| r.join().expect("hashing does not panic")).collect()
    })
}

/// Leaves of runs of numbers.
fn leaves<T: Copy, const N: usize>(numbers: &[T], run: usize, bytes: fn(T) -> [u8; N]) -> Vec<Hash> {
    // In parts, so that a long table is not in memory a second time.
    let parts = numbers.chunks(run << 10);
    parts
        .flat_map(|part| keccak::leaves(&part.iter().flat_map(|n| bytes(*n)).collect::<Vec<u8>>(), run * N))
        .collect()
}

/// Hash of a matrix from the roots of its weights and scales.
pub(super) fn join(weights: &Hash, scales: &Hash) -> Hash {
    keccak256(&[weights.as_bytes(), scales.as_bytes()])
}
