//! Openings: that one item of a model stands under its root, as a contract checks it (protocol 3).
//!
//! An opening is a *statement*, which is a leaf of the program, with its way up to the model root; and, for the content of
//! a tensor, a leaf of that tensor beside the statement that declares it. Which item was opened follows from where the leaves
//! stand and from the declaration, and nothing has to be believed. Openings are foreign data: no function here panics.
//!
//! An opening does not say that the program is valid or that constants are in their ranges: whoever takes a model into use
//! checks that, once.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot};
use assay_core::merkle::{self, Proof};
use borsh::{BorshDeserialize, BorshSerialize};

use super::root::{self, ANGLES_RUN, BEFORE_TENSORS, NUMBERS_RUN, PROGRAM, SCALES_RUN};
use crate::matrix::{TILE_COLS, TILE_ROWS};
use crate::program::check::OPS_MAX;
use crate::program::{Declared, Facts, Shape, TABLE_LEN, Tensor, TensorId, ValueId};

/// Most bytes of a statement: the facts of a program that carries what every operation made. No operation and no
/// declaration is as long.
pub const STATEMENT_BYTES_MAX: usize = 20 + 2 * OPS_MAX;

/// One thing that a model root commits to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum Item {
    /// What holds for the whole program.
    Facts,
    /// An operation.
    Op(ValueId),
    /// The declaration of a tensor.
    Tensor(TensorId),
    /// Up to 256 weights of one row of a matrix.
    Weights {
        /// The matrix.
        tensor: TensorId,
        /// The row.
        row: u32,
        /// Which 256 columns.
        col_tile: u32,
    },
    /// Up to 128 row scales of a matrix.
    Scales {
        /// The matrix.
        tensor: TensorId,
        /// Which 128 rows.
        run: u32,
    },
    /// Up to 64 numbers of a table or a vector, or 128 of a rotary table.
    Run {
        /// The tensor.
        tensor: TensorId,
        /// Which of its leaves.
        index: u32,
    },
}

/// What an opening shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What was opened.
    pub item: Item,
    /// What it is.
    pub content: Content,
}

/// The content of an [`Item`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Of [`Item::Facts`].
    Facts(Facts),
    /// Of [`Item::Op`].
    Op(Declared),
    /// Of [`Item::Tensor`].
    Tensor(Tensor),
    /// Of [`Item::Weights`].
    Weights {
        /// The matrix.
        declaration: Tensor,
        /// Its weights from column `256 · col_tile` on.
        weights: Vec<i8>,
    },
    /// Of [`Item::Scales`].
    Scales {
        /// The matrix.
        declaration: Tensor,
        /// The scales from row `128 · run` on.
        scales: Vec<u16>,
    },
    /// Of [`Item::Run`] for a table or a vector.
    Integers {
        /// The table or vector.
        declaration: Tensor,
        /// Its numbers from number `64 · index` on.
        numbers: Vec<i32>,
    },
    /// Of [`Item::Run`] for a rotary table.
    Angles {
        /// The rotary table.
        declaration: Tensor,
        /// Its numbers from number `128 · index` on, in the order `[position][pair][cos, sin]`.
        angles: Vec<i16>,
    },
}

/// Proves one [`Item`] under a model root. [`super::tree::ModelTree`] makes openings.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ModelOpening {
    /// The program's facts, a tensor's declaration or an operation, in borsh; at most [`STATEMENT_BYTES_MAX`].
    pub statement: Vec<u8>,
    /// The statement under the program.
    pub statement_proof: Proof,
    /// The program under the model root.
    pub program_proof: Proof,
    /// Content of the tensor that the statement declares.
    pub part: Option<Part>,
}

impl Canonical for ModelOpening {
    const TAG: &'static str = "assay/opening/1";
}

/// A leaf of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Part {
    /// The leaf's bytes: as many as the declaration gives the leaf at this place.
    pub bytes: Vec<u8>,
    /// The leaf under the tensor.
    pub way: Way,
    /// The tensor under the model root.
    pub tensor_proof: Proof,
}

/// From a leaf to the hash of its tensor.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Way {
    /// Of a row in a tile of a matrix.
    Weights {
        /// The row under its tile.
        row: Proof,
        /// The tile under the weights.
        tile: Proof,
        /// Root of the row scales.
        scales: Hash,
    },
    /// Of row scales of a matrix.
    Scales {
        /// The run under the scales.
        run: Proof,
        /// Root of the weights.
        weights: Hash,
    },
    /// Of a table, a vector or a rotary table.
    Run(Proof),
}

impl ModelOpening {
    /// What stands under `model`, or `None` if this proves nothing.
    pub fn verify(&self, model: &ModelRoot) -> Option<Opened> {
        if self.statement.len() > STATEMENT_BYTES_MAX {
            return None;
        }
        let program = merkle::root_from(merkle::leaf(&self.statement), &self.statement_proof)?;
        if place_under(model, "program", &program, &self.program_proof)? != wide(PROGRAM) {
            return None;
        }
        let stated = self.stated()?;
        match (&self.part, stated) {
            (None, stated) => Some(stated),
            (Some(part), Opened { item: Item::Tensor(tensor), content: Content::Tensor(declaration) }) => {
                // First the shape: it bounds what is hashed.
                let opened = part.opened(tensor, declaration)?;
                let place = place_under(model, "tensor", &part.hash()?, &part.tensor_proof)?;
                (place.checked_sub(wide(BEFORE_TENSORS))? == u64::from(tensor)).then_some(opened)
            }
            _ => None,
        }
    }

    /// The statement. How many tensors come before the first operation follows from the leaves of the model root.
    fn stated(&self) -> Option<Opened> {
        let tensors = self.program_proof.count.checked_sub(wide(BEFORE_TENSORS))?;
        let bytes = self.statement.as_slice();
        let Some(place) = self.statement_proof.index.checked_sub(1) else {
            let content = Content::Facts(Facts::try_from_slice(bytes).ok()?);
            return Some(Opened { item: Item::Facts, content });
        };
        let (item, content) = match place.checked_sub(tensors) {
            None => {
                let content = Content::Tensor(Tensor::try_from_slice(bytes).ok()?);
                (Item::Tensor(place.try_into().ok()?), content)
            }
            Some(op) => (Item::Op(op.try_into().ok()?), Content::Op(Declared::try_from_slice(bytes).ok()?)),
        };
        Some(Opened { item, content })
    }
}

impl Part {
    /// The hash of the tensor.
    fn hash(&self) -> Option<Hash> {
        let leaf = merkle::leaf(&self.bytes);
        Some(match &self.way {
            Way::Weights { row, tile, scales } => {
                let tile_root = merkle::root_from(leaf, row)?;
                root::join(&merkle::root_from(tile_root, tile)?, scales)
            }
            Way::Scales { run, weights } => root::join(weights, &merkle::root_from(leaf, run)?),
            Way::Run(run) => merkle::root_from(leaf, run)?,
        })
    }

    /// Item and content, if the tree has the shape that the declaration gives it.
    fn opened(&self, tensor: TensorId, declaration: Tensor) -> Option<Opened> {
        let (item, content) = match (&self.way, declaration.shape) {
            (Way::Weights { row, tile, .. }, Shape::Matrix { rows, cols, .. }) => {
                let (row, col_tile) = self.place(row, tile, rows.into(), cols.into())?;
                let weights = self.bytes.iter().map(|b| b.cast_signed()).collect();
                (Item::Weights { tensor, row, col_tile }, Content::Weights { declaration, weights })
            }
            (Way::Scales { run, .. }, Shape::Matrix { rows, .. }) => {
                let run = self.index(run, rows.into(), SCALES_RUN, 2)?;
                let scales = self.numbers(u16::from_be_bytes);
                (Item::Scales { tensor, run }, Content::Scales { declaration, scales })
            }
            (Way::Run(run), Shape::Rotary { positions, pairs }) => {
                let count = u64::from(positions).checked_mul(u64::from(pairs))?.checked_mul(2)?;
                let index = self.index(run, count, ANGLES_RUN, 2)?;
                let angles = self.numbers(i16::from_be_bytes);
                (Item::Run { tensor, index }, Content::Angles { declaration, angles })
            }
            (Way::Run(run), Shape::Table) => {
                let index = self.index(run, wide(TABLE_LEN), NUMBERS_RUN, 4)?;
                let numbers = self.numbers(i32::from_be_bytes);
                (Item::Run { tensor, index }, Content::Integers { declaration, numbers })
            }
            (Way::Run(run), Shape::Vector { len, .. }) => {
                let index = self.index(run, len.into(), NUMBERS_RUN, 4)?;
                let numbers = self.numbers(i32::from_be_bytes);
                (Item::Run { tensor, index }, Content::Integers { declaration, numbers })
            }
            _ => return None,
        };
        Some(Opened { item, content })
    }

    /// Row and column tile of weights, if there are as many tiles, rows and columns as the matrix has there.
    fn place(&self, row: &Proof, tile: &Proof, rows: u64, cols: u64) -> Option<(u32, u32)> {
        let col_tiles = cols.div_ceil(wide(TILE_COLS));
        let row_tile = tile.index.checked_div(col_tiles)?;
        let col_tile = tile.index.checked_rem(col_tiles)?;
        let fits = tile.count == rows.div_ceil(wide(TILE_ROWS)).checked_mul(col_tiles)?
            && row.count == run_len(rows, TILE_ROWS, row_tile)?
            && wide(self.bytes.len()) == run_len(cols, TILE_COLS, col_tile)?;
        let row = row_tile.checked_mul(wide(TILE_ROWS))?.checked_add(row.index)?;
        Some((row.try_into().ok()?, col_tile.try_into().ok()?)).filter(|_| fits)
    }

    /// Index of a run of numbers of `width` bytes, if there are as many runs of `each`, and as many bytes in this one, as
    /// `count` numbers have.
    fn index(&self, run: &Proof, count: u64, each: usize, width: u64) -> Option<u32> {
        let bytes = run_len(count, each, run.index)?.checked_mul(width)?;
        let fits = run.count == count.div_ceil(wide(each)) && wide(self.bytes.len()) == bytes;
        run.index.try_into().ok().filter(|_| fits)
    }

    fn numbers<T, const N: usize>(&self, number: fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.as_chunks().0.iter().map(|b| number(*b)).collect()
    }
}

/// Index at which the component `name` stands under a model root.
fn place_under(model: &ModelRoot, name: &str, hash: &Hash, proof: &Proof) -> Option<u64> {
    let root = Hash::from_bytes(*model.as_bytes());
    merkle::verify(&root, root::component(name, hash), proof).then_some(proof.index)
}

/// Length of run `index` of `count` things in runs of `each`; `None` if there is no such run.
fn run_len(count: u64, each: usize, index: u64) -> Option<u64> {
    let left = count.checked_sub(index.checked_mul(wide(each))?)?;
    (left > 0).then_some(left.min(wide(each)))
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
