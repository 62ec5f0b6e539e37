//! The model root: a Keccak Merkle root over the content of a model, whatever the file looks like.
//!
//! Trees are those of [`assay_core::merkle`]. The root has these leaves, in this order, each a name and a hash
//! (the name's length as one byte, the name, 32 bytes):
//!
//! | name | hash |
//! |---|---|
//! | `profile` | Keccak of `int8-v1` |
//! | `program` | Merkle root over, each in borsh: the program's numbers (context u32, vocabulary u32, residual fraction bits u8, head), each tensor's declaration, each operation |
//! | `text` | Keccak of the canonical [`TextModel`] |
//! | `tokenizer` | Keccak of the tokenizer's bytes |
//! | `tensor`, once per tensor | see below |
//!
//! A matrix is the Keccak of its weights' root followed by its scales' root. The weights' root has one leaf per tile of 64
//! rows × 256 columns, row tile by row tile: the root over the tile's rows, each leaf being the up to 256 int8 weights of one
//! row in that tile, as two's complement bytes. (Tile roots stand in the tree as they are, without being hashed as leaves.)
//! So one leaf is what a contract needs to check one part of a dot product, and hashing a model is
//! parallel. Scales are leaves of 128 numbers of 2 bytes, tables and vectors leaves of 64 numbers of 4 bytes, angles leaves of 128 of 2,
//! big-endian.
//!
//! Not under the root: the model's name, licence and source files. The same weights from another file format are the same
//! model.

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot};
use assay_core::keccak::keccak256;
use assay_core::merkle;

use super::{PROFILE, TextModel};
use crate::constants::Constants;
use crate::matrix::{Matrix, TILE_COLS, TILE_ROWS};
use crate::program::{Program, Shape, TensorId};

/// The root of a model. `progress` hears how many weights each matrix had.
pub fn model_root(
    c: &dyn Constants,
    text: &TextModel,
    tokenizer: &[u8],
    progress: &dyn Fn(u64),
) -> ModelRoot {
    let tensors = c.program().program().tensors.iter().enumerate().map(|(i, t)| {
        let hash = tensor_hash(c, i as TensorId, t.shape);
        progress(t.shape.parameters());
        hash
    });
    assemble(c.program().program(), text, tokenizer, tensors)
}

/// Hash of one tensor.
pub(super) fn tensor_hash(c: &dyn Constants, t: TensorId, shape: Shape) -> Hash {
    match shape {
        Shape::Matrix { .. } => matrix_root(&c.matrix(t)),
        Shape::Table => table_root(c.table(t)),
        Shape::Vector { .. } => table_root(c.vector(t)),
        Shape::Rotary { .. } => rotary_root(c.rotary(t)),
    }
}

/// The root from the hashes of all tensors, in order.
pub(super) fn assemble(
    program: &Program,
    text: &TextModel,
    tokenizer: &[u8],
    tensors: impl Iterator<Item = Hash>,
) -> ModelRoot {
    let root = merkle::root(component_leaves(program, text, tokenizer, tensors));
    ModelRoot::from_bytes(*root.as_bytes())
}

/// The leaves of the root.
pub(super) fn component_leaves(
    program: &Program,
    text: &TextModel,
    tokenizer: &[u8],
    tensors: impl Iterator<Item = Hash>,
) -> impl Iterator<Item = Hash> {
    let parts = [
        ("profile", keccak256(&[PROFILE.as_bytes()])),
        ("program", merkle::root(program_leaves(program))),
        ("text", text.canonical_hash()),
        ("tokenizer", keccak256(&[tokenizer])),
    ];
    parts.into_iter().chain(tensors.map(|t| ("tensor", t))).map(|(name, hash)| component(name, &hash))
}

/// One leaf of the root.
pub(super) fn component(name: &str, hash: &Hash) -> Hash {
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(hash.as_bytes());
    merkle::leaf(&bytes)
}

/// The leaves of a program: its numbers, then every tensor's declaration, then every operation.
pub(super) fn program_leaves(p: &Program) -> Vec<Hash> {
    let leaf = |bytes: std::io::Result<Vec<u8>>| merkle::leaf(&bytes.expect("borsh writes to memory"));
    let numbers = (p.context, p.vocabulary, p.residual_frac, p.head);
    std::iter::once(leaf(borsh::to_vec(&numbers)))
        .chain(p.tensors.iter().map(|t| leaf(borsh::to_vec(t))))
        .chain(p.ops.iter().map(|o| leaf(borsh::to_vec(o))))
        .collect()
}

/// Columns of a column tile.
pub(super) fn tile_cols(cols: usize, col_tile: usize) -> std::ops::Range<usize> {
    col_tile * TILE_COLS..((col_tile + 1) * TILE_COLS).min(cols)
}

/// The leaves of one tile.
pub(super) fn row_leaves(w: &Matrix<'_>, row_tile: usize, col_tile: usize) -> impl Iterator<Item = Hash> {
    let rows = row_tile * TILE_ROWS..((row_tile + 1) * TILE_ROWS).min(w.rows());
    let cols = tile_cols(w.cols(), col_tile);
    let mut bytes = Vec::with_capacity(TILE_COLS);
    rows.map(move |r| {
        bytes.clear();
        bytes.extend(cols.clone().map(|c| w.weight(r, c) as u8));
        merkle::leaf(&bytes)
    })
}

/// Roots of all tiles, row tile by row tile; shared between threads when there are many.
pub(super) fn tile_roots(w: &Matrix<'_>) -> Vec<Hash> {
    let col_tiles = w.cols().div_ceil(TILE_COLS);
    let hashes = |tiles: std::ops::Range<usize>| -> Vec<Hash> {
        tiles
            .flat_map(|rt| (0..col_tiles).map(move |ct| (rt, ct)))
            .map(|(rt, ct)| merkle::root(row_leaves(w, rt, ct)))
            .collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(w.tiles());
    if threads == 1 || w.rows() * w.cols() < 1 << 20 {
        return hashes(0..w.tiles());
    }
    let each = w.tiles().div_ceil(threads);
    std::thread::scope(|s| {
        let runs: Vec<_> = (0..threads)
            .map(|t| s.spawn(move || hashes((t * each).min(w.tiles())..((t + 1) * each).min(w.tiles()))))
            .collect();
        runs.into_iter().flat_map(|r| r.join().expect("hashing does not panic")).collect()
    })
}

/// Root of a matrix's row scales.
pub(super) fn scales_root(scales: &[u16]) -> Hash {
    merkle::root(scales.chunks(128).map(|run| {
        let bytes: Vec<u8> = run.iter().flat_map(|s| s.to_be_bytes()).collect();
        merkle::leaf(&bytes)
    }))
}

/// Hash of a matrix from the roots of its weights and scales.
pub(super) fn join(weights: &Hash, scales: &Hash) -> Hash {
    keccak256(&[weights.as_bytes(), scales.as_bytes()])
}

/// Hash of a matrix.
pub(super) fn matrix_root(w: &Matrix<'_>) -> Hash {
    join(&merkle::root(tile_roots(w)), &scales_root(w.scales()))
}

pub(super) fn table_root(t: &[i32]) -> Hash {
    merkle::root(t.chunks(64).map(|run| {
        let bytes: Vec<u8> = run.iter().flat_map(|v| v.to_be_bytes()).collect();
        merkle::leaf(&bytes)
    }))
}

pub(super) fn rotary_root(t: &[i16]) -> Hash {
    merkle::root(t.chunks(128).map(|run| {
        let bytes: Vec<u8> = run.iter().flat_map(|v| v.to_be_bytes()).collect();
        merkle::leaf(&bytes)
    }))
}
