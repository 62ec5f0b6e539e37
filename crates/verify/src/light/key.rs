//! Keys of light audits: what a verifier holds instead of a model.
//!
//! For each matrix that is multiplied: its row scales, and `rᵀW` for a secret `r` over the field of [`crate::freivalds`]. For each matrix
//! that tokens or positions are embedded by: the Merkle root over its rows, a leaf being `row scale (2 bytes, big-endian) ‖ the int8
//! weights`. Tables, vectors and the angles of the first positions as they are. `r` is not stored: it is the stream
//! ([`crate::freivalds::Coins`]) with the prefix `"assay/light-r/1" ‖ seed ‖ model root ‖ tensor (2 bytes, big-endian)`, expanded once when a
//! key is loaded.
//!
//! A key that was decoded is not trusted to have any shape: [`Expanded`] is what has been checked. That it belongs to its model, only
//! who has the weights can say ([`Key::check_against`]).

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot};
use assay_core::keccak::keccak256;
use assay_core::limits::LIGHT_KEY_BYTES_MAX;
use assay_core::merkle;
use assay_engine::constants::Constants;
use assay_engine::kernel::{Kernel, keccak};
use assay_engine::matrix::Matrix;
use assay_engine::pool::Pool;
use assay_engine::program::{
    Checked, Program, ProgramError, ROTARY_FRAC, Shape, TABLE_LEN, TensorId, VECTOR_MAX,
};
use borsh::{BorshDeserialize, BorshSerialize};

use super::form::Form;
use crate::freivalds::{Coins, Combination, PRIME, Weights};

const STREAM_TAG: &[u8] = b"assay/light-r/1";
const COMMITMENT_TAG: &[u8] = b"assay/light-commitment/1";
/// Rows whose leaves are hashed as one task.
const LEAF_ROWS: usize = 512;

/// 32 secret bytes.
#[derive(Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Seed([u8; 32]);

impl Seed {
    /// From bytes that nobody else knows.
    pub const fn from_bytes(bytes: [u8; 32]) -> Seed {
        Seed(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Seed {
    /// Not the bytes: they are secret while their epoch lasts.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// What fixes a key, beside its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Secret {
    /// Where the randomness comes from.
    pub seed: Seed,
    /// The epoch in which the key is used, after which the seed is revealed.
    pub epoch: u64,
}

impl Secret {
    /// What is published before the epoch: `keccak("assay/light-commitment/1" ‖ seed ‖ model root ‖ epoch as 8 bytes)`.
    pub fn commitment(&self, model: &ModelRoot) -> Hash {
        keccak256(&[COMMITMENT_TAG, self.seed.as_bytes(), model.as_bytes(), &self.epoch.to_be_bytes()])
    }
}

/// A model with its weights, from which keys are made.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// Program and constants.
    pub constants: &'a dyn Constants,
    /// Its root, recomputed by whoever vouches for it.
    pub root: ModelRoot,
    /// What multiplies.
    pub kernel: Kernel,
    /// Who multiplies.
    pub pool: &'a Pool,
}

/// Why a key is no key of a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Encoders have no tokens to check one by one.
    #[error("light audits are of answers; this model is an encoder")]
    Encoder,
    /// The key's program is not valid.
    #[error("light key: {0}")]
    Program(#[from] ProgramError),
    /// The key covers no positions, or more than the model has.
    #[error("light key: covers {got} positions; the model has 1 to {context}")]
    Positions {
        /// Positions covered.
        got: u32,
        /// Most positions of the model.
        context: u32,
    },
    /// What the key holds of a constant does not have the constant's shape or range.
    #[error("light key: what it holds of tensor {tensor} does not fit the tensor's shape and range")]
    Tensor {
        /// Index of the constant.
        tensor: usize,
    },
    /// The key says that it is of another model.
    #[error("light key: it is of model {got}, not of {expected}")]
    Model {
        /// What the key says.
        got: ModelRoot,
        /// The model.
        expected: ModelRoot,
    },
    /// The key is not what the model and the seed make.
    #[error("light key: it was not made from this model's weights with this seed")]
    Content,
}

/// What a verifier holds of one constant.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Held {
    /// Of a matrix.
    Matrix {
        /// Row scales and `rᵀW`, if it is multiplied.
        product: Option<Folded>,
        /// Root over its rows, if something is embedded by it.
        rows: Option<Hash>,
    },
    /// A table or vector.
    Numbers(Vec<i32>),
    /// The angles of the positions that the key covers.
    Angles(Vec<i16>),
}

/// What checks the products of a matrix.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Folded {
    scales: Vec<u16>,
    columns: Vec<u64>,
}

/// A key. Secret while its epoch lasts.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Key {
    model: ModelRoot,
    secret: Secret,
    positions: u32,
    program: Program,
    tensors: Vec<Held>,
}

impl Canonical for Key {
    const TAG: &'static str = "assay/light-key/1";
    const BYTES_MAX: usize = LIGHT_KEY_BYTES_MAX;
}

impl std::fmt::Debug for Key {
    /// Whose it is, and nothing secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key(model {}, epoch {}, {} positions)", self.model, self.secret.epoch, self.positions)
    }
}

impl Key {
    /// Makes the key of a model for answers of up to `positions` tokens, prompt included. Reads every weight once.
    pub fn make(model: &Model<'_>, secret: Secret, positions: u32) -> Result<Key, KeyError> {
        let checked = model.constants.program();
        let form = Form::new(checked).ok_or(KeyError::Encoder)?;
        let program = checked.program();
        covers(positions, program.context)?;
        let tensors = model.pool.map(program.tensors.len(), &|i| {
            let t = TensorId::try_from(i).unwrap_or(TensorId::MAX);
            match program.tensors.get(i).map(|t| t.shape) {
                Some(Shape::Matrix { .. }) => Held::Matrix {
                    product: form.multiplies(t).then(|| fold(model, &secret, t)),
                    // Below, with all threads at once: there are one or two, and they are large.
                    rows: None,
                },
                Some(Shape::Rotary { pairs, .. }) => {
                    let angles = model.constants.rotary(t);
                    Held::Angles(angles.iter().take(angles_of(positions, pairs)).copied().collect())
                }
                Some(Shape::Table) => Held::Numbers(model.constants.table(t).to_vec()),
                Some(Shape::Vector { .. }) | None => Held::Numbers(model.constants.vector(t).to_vec()),
            }
        });
        let mut key = Key { model: model.root, secret, positions, program: program.clone(), tensors };
        for (i, held) in key.tensors.iter_mut().enumerate() {
            let t = TensorId::try_from(i).unwrap_or(TensorId::MAX);
            if let Held::Matrix { rows, .. } = held
                && form.embeds(t)
            {
                *rows = Some(keccak::root(row_leaves(&model.constants.matrix(t), model.pool)));
            }
        }
        Ok(key)
    }

    /// The model that it says it is of.
    pub fn model(&self) -> ModelRoot {
        self.model
    }

    /// Most tokens, prompt included, of an answer that it can check.
    pub fn positions(&self) -> u32 {
        self.positions
    }

    /// What is published before the epoch: see [`Secret::commitment`].
    pub fn commitment(&self) -> Hash {
        self.secret.commitment(&self.model)
    }

    /// What is published after the epoch, so that anyone can make the same key.
    pub fn reveal(&self) -> Secret {
        self.secret
    }

    /// Whether the key is what this model and its own seed make: reads every weight once.
    pub fn check_against(&self, model: &Model<'_>) -> Result<(), KeyError> {
        if self.model != model.root {
            return Err(KeyError::Model { got: self.model, expected: model.root });
        }
        let want = Key::make(model, self.secret, self.positions)?;
        if *self == want { Ok(()) } else { Err(KeyError::Content) }
    }
}

fn covers(positions: u32, context: u32) -> Result<(), KeyError> {
    if (1..=context).contains(&positions) {
        return Ok(());
    }
    Err(KeyError::Positions { got: positions, context })
}

/// Cosines and sines of some positions.
fn angles_of(positions: u32, pairs: u32) -> usize {
    (positions as usize).saturating_mul(pairs as usize).saturating_mul(2)
}

/// The weights of a matrix's rows.
fn coins(secret: &Secret, model: &ModelRoot, t: TensorId) -> Coins {
    Coins::new(&[STREAM_TAG, secret.seed.as_bytes(), model.as_bytes(), &t.to_be_bytes()])
}

fn fold(model: &Model<'_>, secret: &Secret, t: TensorId) -> Folded {
    let w = model.constants.matrix(t);
    let columns = coins(secret, &model.root, t).weights(w.rows()).fold(model.kernel, &w);
    Folded { scales: w.scales().to_vec(), columns }
}

/// The bytes of the leaf of a row.
fn write_row(scale: u16, row: impl IntoIterator<Item = i8>, out: &mut Vec<u8>) {
    out.extend(scale.to_be_bytes());
    out.extend(row.into_iter().map(i8::cast_unsigned));
}

/// Hash of the leaf of a row.
pub(super) fn row_leaf(scale: u16, row: &[i8]) -> Hash {
    let mut bytes = Vec::with_capacity(row.len().saturating_add(2));
    write_row(scale, row.iter().copied(), &mut bytes);
    merkle::leaf(&bytes)
}

/// Hashes of the leaves of all rows of a matrix.
pub(super) fn row_leaves(w: &Matrix<'_>, pool: &Pool) -> Vec<Hash> {
    let runs = pool.map(w.rows().div_ceil(LEAF_ROWS), &|run| {
        let rows = run * LEAF_ROWS..((run + 1) * LEAF_ROWS).min(w.rows());
        let mut bytes = Vec::with_capacity(rows.len() * (w.cols() + 2));
        for (scale, row) in w.scales().get(rows.clone()).unwrap_or_default().iter().zip(rows) {
            write_row(*scale, (0..w.cols()).map(|c| w.weight(row, c)), &mut bytes);
        }
        keccak::leaves(&bytes, w.cols() + 2)
    });
    runs.concat()
}

impl Form {
    fn multiplies(&self, t: TensorId) -> bool {
        self.products.iter().any(|p| p.weights == t)
    }

    fn embeds(&self, t: TensorId) -> bool {
        self.embedded.iter().any(|e| e.table == t)
    }
}

/// A key whose every part has the shape that its program asks for, with `r` expanded: the constants of an executor that is given all
/// products and embedded rows.
pub(super) struct Expanded {
    pub(super) model: ModelRoot,
    pub(super) positions: u32,
    pub(super) form: Form,
    program: Checked,
    tensors: Vec<Ready>,
}

enum Ready {
    Matrix { scales: Vec<u16>, check: Option<Combination>, rows: Option<Hash> },
    Numbers(Vec<i32>),
    Angles(Vec<i16>),
}

impl Expanded {
    pub(super) fn new(key: &Key) -> Result<Expanded, KeyError> {
        let program = key.program.clone().check()?;
        let form = Form::new(&program).ok_or(KeyError::Encoder)?;
        covers(key.positions, program.program().context)?;
        if key.tensors.len() != program.program().tensors.len() {
            return Err(KeyError::Tensor { tensor: key.tensors.len() });
        }
        let mut tensors = Vec::with_capacity(key.tensors.len());
        for (tensor, (held, t)) in key.tensors.iter().zip(&program.program().tensors).enumerate() {
            let id = TensorId::try_from(tensor).unwrap_or(TensorId::MAX);
            let one = expand(key, &form, id, held, t.shape).ok_or(KeyError::Tensor { tensor })?;
            tensors.push(one);
        }
        Ok(Expanded { model: key.model, positions: key.positions, form, program, tensors })
    }

    /// What checks the products of a matrix.
    pub(super) fn check_of(&self, t: TensorId) -> Option<&Combination> {
        match self.tensors.get(usize::from(t)) {
            Some(Ready::Matrix { check, .. }) => check.as_ref(),
            _ => None,
        }
    }

    /// Root over the rows of a table.
    pub(super) fn rows_of(&self, t: TensorId) -> Option<&Hash> {
        match self.tensors.get(usize::from(t)) {
            Some(Ready::Matrix { rows, .. }) => rows.as_ref(),
            _ => None,
        }
    }
}

/// What a key holds of one constant, if it has the constant's shape.
fn expand(key: &Key, form: &Form, t: TensorId, held: &Held, shape: Shape) -> Option<Ready> {
    match (held, shape) {
        (Held::Matrix { product, rows }, Shape::Matrix { rows: count, cols, .. }) => {
            if product.is_some() != form.multiplies(t) || rows.is_some() != form.embeds(t) {
                return None;
            }
            let Some(folded) = product else {
                return Some(Ready::Matrix { scales: vec![], check: None, rows: *rows });
            };
            let fits = folded.scales.len() == count as usize
                && folded.columns.len() == cols as usize
                && folded.columns.iter().all(|c| *c < PRIME);
            fits.then(|| Ready::Matrix {
                scales: folded.scales.clone(),
                check: Some(Combination {
                    rows: coins(&key.secret, &key.model, t).weights(folded.scales.len()),
                    columns: Weights::new(folded.columns.iter().copied()),
                }),
                rows: *rows,
            })
        }
        (Held::Numbers(v), Shape::Table) => {
            let fits = v.len() == TABLE_LEN && v.iter().all(|x| (32_768..=65_536).contains(x));
            fits.then(|| Ready::Numbers(v.clone()))
        }
        (Held::Numbers(v), Shape::Vector { len, .. }) => {
            let fits =
                v.len() == len as usize && v.iter().all(|x| x.unsigned_abs() < VECTOR_MAX.unsigned_abs());
            fits.then(|| Ready::Numbers(v.clone()))
        }
        (Held::Angles(v), Shape::Rotary { pairs, .. }) => {
            let one = 1i16 << ROTARY_FRAC;
            let fits =
                v.len() == angles_of(key.positions, pairs) && v.iter().all(|x| (-one..=one).contains(x));
            fits.then(|| Ready::Angles(v.clone()))
        }
        _ => None,
    }
}

impl Constants for Expanded {
    fn program(&self) -> &Checked {
        &self.program
    }

    fn matrix(&self, t: TensorId) -> Matrix<'_> {
        let (_, cols, shift) = self.program.matrix_shape(t);
        let scales: &[u16] = match self.tensors.get(usize::from(t)) {
            Some(Ready::Matrix { scales, .. }) => scales,
            _ => &[],
        };
        Matrix::without_weights(cols as usize, shift, scales)
    }

    fn table(&self, t: TensorId) -> &[i32] {
        self.vector(t)
    }

    fn rotary(&self, t: TensorId) -> &[i16] {
        match self.tensors.get(usize::from(t)) {
            Some(Ready::Angles(v)) => v,
            _ => &[],
        }
    }

    fn vector(&self, t: TensorId) -> &[i32] {
        match self.tensors.get(usize::from(t)) {
            Some(Ready::Numbers(v)) => v,
            _ => &[],
        }
    }
}
