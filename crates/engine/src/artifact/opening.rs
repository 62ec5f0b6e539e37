//! Openings: that up to 256 weights of one row stand under a model root, as a contract checks it.
//!
//! An opening carries its own context: the tensor's declaration is proved under the program, so that row and column follow
//! from where the leaf stands and nothing has to be believed. It says nothing about scales, tables or operations.

use assay_core::id::{Hash, ModelRoot};
use assay_core::merkle::{self, Proof};
use borsh::{BorshDeserialize, BorshSerialize};

use super::TextModel;
use super::root::{self, Branch};
use crate::constants::Constants;
use crate::kernel::keccak;
use crate::matrix::{TILE_COLS, TILE_ROWS};
use crate::program::{Shape, Tensor, TensorId};

/// Leaves of the model root before the tensors, and which of them is the program.
const BEFORE_TENSORS: u64 = 4;
const PROGRAM_INDEX: u64 = 1;

/// Weights of one row in one tile, with the proof that they stand under a model root.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Opening {
    /// Name and shape of the tensor.
    pub declaration: Tensor,
    /// The declaration under the program.
    pub declaration_proof: Proof,
    /// The program's hash.
    pub program: Hash,
    /// The program under the model root.
    pub program_proof: Proof,
    /// The weights.
    pub weights: Vec<i8>,
    /// The row under its tile.
    pub row_proof: Proof,
    /// The tile's root.
    pub tile: Hash,
    /// The tile under the matrix.
    pub tile_proof: Proof,
    /// Root of the matrix's weights.
    pub matrix: Hash,
    /// Root of its row scales.
    pub scales: Hash,
    /// The tensor under the model root.
    pub tensor_proof: Proof,
}

/// Where opened weights stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which tensor.
    pub tensor: u64,
    /// Which row.
    pub row: u64,
    /// Column of the first weight.
    pub col: u64,
}

impl Opening {
    /// Opens the weights of `row` in column tile `col_tile` of a matrix; `None` if there are none. Costs as much as
    /// checking the whole root.
    pub fn prove(
        c: &dyn Constants,
        text: &TextModel,
        tokenizer: &[u8],
        tensor: TensorId,
        row: usize,
        col_tile: usize,
    ) -> Option<Opening> {
        let program = c.program().program();
        let declaration = program.tensors.get(usize::from(tensor))?.clone();
        let Shape::Matrix { .. } = declaration.shape else { return None };
        let w = c.matrix(tensor);
        let col_tiles = w.cols().div_ceil(TILE_COLS);
        if row >= w.rows() || col_tile >= col_tiles {
            return None;
        }
        let row_tile = row / TILE_ROWS;
        let mut bytes = Vec::new();
        root::append_tile(&w, row_tile, col_tile, &mut bytes);
        let rows = keccak::leaves(&bytes, root::tile_cols(w.cols(), col_tile).len());
        let Branch::Matrix { tiles, scales } = Branch::matrix(&w) else { return None };
        let tile_index = row_tile * col_tiles + col_tile;
        let (matrix, scales) = (merkle::root(tiles.iter().copied()), keccak::root(scales));
        let declarations = root::program_leaves(program);
        let tensors = program.tensors.iter().enumerate().map(|(i, t)| match i == usize::from(tensor) {
            true => root::join(&matrix, &scales),
            false => Branch::of(c, i as TensorId, t.shape).hash(),
        });
        let components: Vec<Hash> = root::component_leaves(program, text, tokenizer, tensors).collect();
        Some(Opening {
            declaration,
            declaration_proof: merkle::prove(&declarations, 1 + usize::from(tensor))?,
            program: merkle::root(declarations.iter().copied()),
            program_proof: merkle::prove(&components, PROGRAM_INDEX as usize)?,
            weights: root::tile_cols(w.cols(), col_tile).map(|col| w.weight(row, col)).collect(),
            row_proof: merkle::prove(&rows, row % TILE_ROWS)?,
            tile: *tiles.get(tile_index)?,
            tile_proof: merkle::prove(&tiles, tile_index)?,
            matrix,
            scales,
            tensor_proof: merkle::prove(&components, BEFORE_TENSORS as usize + usize::from(tensor))?,
        })
    }

    /// Where the weights stand under `model`, or `None` if they do not.
    pub fn verify(&self, model: &ModelRoot) -> Option<Place> {
        let model = Hash::from_bytes(*model.as_bytes());
        let Shape::Matrix { rows, cols, .. } = self.declaration.shape else { return None };
        let (rows, cols) = (u64::from(rows), u64::from(cols));
        let tensor = self.tensor_proof.index.checked_sub(BEFORE_TENSORS)?;
        let declaration = merkle::leaf(&borsh::to_vec(&self.declaration).ok()?);
        let bytes: Vec<u8> = self.weights.iter().map(|w| w.cast_unsigned()).collect();
        let col_tiles = cols.div_ceil(TILE_COLS as u64);
        let row_tile = self.tile_proof.index.checked_div(col_tiles)?;
        let row = row_tile * TILE_ROWS as u64 + self.row_proof.index;
        let col = self.tile_proof.index % col_tiles * TILE_COLS as u64;
        let holds = self.declaration_proof.index == tensor + 1
            && merkle::verify(&self.program, declaration, &self.declaration_proof)
            && self.program_proof.index == PROGRAM_INDEX
            && merkle::verify(&model, root::component("program", &self.program), &self.program_proof)
            && row < rows
            && self.weights.len() as u64 == (cols - col).min(TILE_COLS as u64)
            && merkle::verify(&self.tile, merkle::leaf(&bytes), &self.row_proof)
            && merkle::verify(&self.matrix, self.tile, &self.tile_proof)
            && merkle::verify(
                &model,
                root::component("tensor", &root::join(&self.matrix, &self.scales)),
                &self.tensor_proof,
            );
        holds.then_some(Place { tensor, row, col })
    }
}
