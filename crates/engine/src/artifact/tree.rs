//! The Merkle tree of a model, and openings from it.
//!
//! The tree holds one hash for every 16 KiB of weights and for every leaf of everything else: after one pass over the model an
//! opening reads a single tile. It keeps no content: who opens passes the same constants again.

use assay_core::id::{Hash, ModelRoot};
use assay_core::text::TextOpening;

use super::TextModel;
use super::opening::{Item, ModelOpening, Part, Way};
use super::root::{self, ANGLES_RUN, BEFORE_TENSORS, Branch, NUMBERS_RUN, PROGRAM, SCALES_RUN};
use crate::constants::Constants;
use crate::kernel::{USUAL, keccak};
use crate::matrix::{TILE_COLS, TILE_ROWS};
use crate::program::{Program, Shape, TensorId};

/// The hashes of one model.
pub struct ModelTree {
    components: Vec<Hash>,
    program: Vec<Hash>,
    tensors: Vec<Branch>,
}

impl std::fmt::Debug for ModelTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelTree").field("root", &self.root()).finish_non_exhaustive()
    }
}

impl ModelTree {
    /// Hashes a whole model, as [`root::model_root`] does.
    pub fn new(c: &dyn Constants, text: &TextModel, tokenizer: &[u8]) -> ModelTree {
        let program = c.program().program();
        let checked = c.program();
        let branch = |(i, t): (usize, &crate::program::Tensor)| Branch::of(c, i as TensorId, t.shape);
        let tensors: Vec<Branch> = program.tensors.iter().enumerate().map(branch).collect();
        let hashes = tensors.iter().map(Branch::hash);
        ModelTree {
            components: root::component_leaves((c.profile(), checked), text, tokenizer, hashes).collect(),
            program: root::program_leaves(checked),
            tensors,
        }
    }

    /// The model root.
    pub fn root(&self) -> ModelRoot {
        ModelRoot::from_bytes(*keccak::root(self.components.clone()).as_bytes())
    }

    /// The leaf hashes of the model root, in order.
    pub fn leaves(&self) -> &[Hash] {
        &self.components
    }

    /// Opens what the model says of text. `text` is what the tree was made with.
    pub fn open_text(&self, text: &TextModel) -> Option<TextOpening> {
        TextOpening::of(text, &self.components)
    }

    /// Opens an item; `None` if the model has none such. `c` is what the tree was made of: openings of anything else
    /// verify under no root.
    pub fn open(&self, c: &dyn Constants, item: Item) -> Option<ModelOpening> {
        let program = c.program().program();
        let (leaf, part) = match item {
            Item::Facts => (0, None),
            Item::Op(op) => (1 + program.tensors.len() + usize::from(op), None),
            Item::Tensor(tensor) => (declared(program, tensor)?, None),
            Item::Weights { tensor, row, col_tile } => {
                (declared(program, tensor)?, Some(self.weights(c, tensor, row as usize, col_tile as usize)?))
            }
            Item::Scales { tensor, run } => {
                (declared(program, tensor)?, Some(self.scales(c, tensor, run as usize)?))
            }
            Item::Run { tensor, index } => {
                (declared(program, tensor)?, Some(self.run(c, tensor, index as usize)?))
            }
        };
        Some(ModelOpening {
            statement: root::statements(c.program()).nth(leaf)?,
            statement_proof: keccak::prove(&self.program, leaf)?,
            program_proof: keccak::prove(&self.components, PROGRAM)?,
            part,
        })
    }

    fn weights(&self, c: &dyn Constants, t: TensorId, row: usize, col_tile: usize) -> Option<Part> {
        let Branch::Matrix { tiles, scales } = self.tensors.get(usize::from(t))? else { return None };
        let w = c.matrix(t);
        let col_tiles = w.cols().div_ceil(TILE_COLS);
        if row >= w.rows() || col_tile >= col_tiles {
            return None;
        }
        let (row_tile, row) = (row / TILE_ROWS, row % TILE_ROWS);
        let mut tile = Vec::new();
        root::append_tile(&w, &USUAL.plain_tile(&w, row_tile), row_tile, col_tile, &mut tile);
        let len = root::tile_cols(w.cols(), col_tile).len();
        let way = Way::Weights {
            row: keccak::prove(&keccak::leaves(&tile, len), row)?,
            tile: keccak::prove(tiles, row_tile * col_tiles + col_tile)?,
            scales: keccak::root(scales.clone()),
        };
        self.part(t, tile.chunks(len).nth(row)?.to_vec(), way)
    }

    fn scales(&self, c: &dyn Constants, t: TensorId, run: usize) -> Option<Part> {
        let Branch::Matrix { tiles, scales } = self.tensors.get(usize::from(t))? else { return None };
        let way = Way::Scales { run: keccak::prove(scales, run)?, weights: keccak::root(tiles.clone()) };
        self.part(t, nth_run(c.matrix(t).scales(), SCALES_RUN, run, u16::to_be_bytes)?, way)
    }

    fn run(&self, c: &dyn Constants, t: TensorId, index: usize) -> Option<Part> {
        let Branch::Runs(runs) = self.tensors.get(usize::from(t))? else { return None };
        let bytes = match c.program().program().tensors.get(usize::from(t))?.shape {
            Shape::Matrix { .. } => return None,
            Shape::Table => nth_run(c.table(t), NUMBERS_RUN, index, i32::to_be_bytes)?,
            Shape::Vector { .. } => nth_run(c.vector(t), NUMBERS_RUN, index, i32::to_be_bytes)?,
            Shape::Rotary { .. } => nth_run(c.rotary(t), ANGLES_RUN, index, i16::to_be_bytes)?,
        };
        self.part(t, bytes, Way::Run(keccak::prove(runs, index)?))
    }

    fn part(&self, t: TensorId, bytes: Vec<u8>, way: Way) -> Option<Part> {
        let tensor_proof = keccak::prove(&self.components, BEFORE_TENSORS + usize::from(t))?;
        Some(Part { bytes, way, tensor_proof })
    }
}

/// The leaf of the program that declares a tensor.
fn declared(program: &Program, t: TensorId) -> Option<usize> {
    program.tensors.get(usize::from(t)).map(|_| 1 + usize::from(t))
}

/// The bytes of one run of numbers.
fn nth_run<T: Copy, const N: usize>(
    numbers: &[T],
    run: usize,
    index: usize,
    bytes: fn(T) -> [u8; N],
) -> Option<Vec<u8>> {
    Some(numbers.chunks(run).nth(index)?.iter().flat_map(|n| bytes(*n)).collect())
}
