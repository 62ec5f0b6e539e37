//! One layer of a model ([`crate::program::layers`]) with what shows that it is the model's: for those who hold no more of it.
//!
//! # Bytes
//!
//! The tag `assay/layer/1` behind its length as one byte; the length of the header (4 bytes, little-endian) and the header in
//! borsh: the program, the leaf hashes of the model root in order, the index of the layer (u32); then the tensors that the
//! layer's operations name, in the program's order, as they are in an artifact of `int8-v1` and without gaps: a matrix's weights, a byte
//! for each (see [`crate::matrix`]), and its row scales as u16, tables and vectors as i32, angles as i16, all little-endian. Which tensors
//! these are and how long they are follows from the program, so that one layer has one encoding.
//!
//! [`LayerModel::read`] believes nothing but a model root: the leaves must hash to it, the program and every tensor must be
//! under their leaves, and the content must be what an artifact may hold. What it does not have of the model stands there as a
//! hash.
//!
//! An auditor with the whole artifact needs none of this: an artifact is mapped, and executing a layer reads that layer's pages.

use std::collections::BTreeMap;

use assay_core::id::{Hash, ModelRoot};
use assay_core::keccak::keccak256;
use assay_core::merkle;
use borsh::{BorshDeserialize, BorshSerialize};

use super::root::{self, BEFORE_TENSORS, Branch, PROGRAM};
use super::tree::ModelTree;
use super::{Profile, check_tensor};
use crate::constants::Constants;
use crate::kernel::USUAL;
use crate::matrix::{GROUP, Matrix, TILE_ROWS};
use crate::program::layers::Layers;
use crate::program::{Checked, Program, ProgramError, Shape, TABLE_LEN, TensorId};

/// Most bytes of a layer: the embedding of a vocabulary of 256 Ki with 8192 numbers a row is 2 GiB.
pub const LAYER_BYTES_MAX: usize = 3 << 30;
/// Most bytes of its header: a program with as many operations and tensors as it may have, and their leaves.
pub const LAYER_HEADER_BYTES_MAX: usize = 4 << 20;
const TAG: &[u8; 14] = b"\x0dassay/layer/1";

/// Which of the leaves of the model root is the profile.
const PROFILE_INDEX: usize = 0;

/// Why bytes are no layer of the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// More bytes than a layer may have.
    #[error("{got} bytes are more than the {LAYER_BYTES_MAX} that a layer may have")]
    TooLong {
        /// Bytes given.
        got: usize,
    },
    /// The bytes are of another kind or version.
    #[error("these bytes are not an `assay/layer/1`")]
    Tag,
    /// The header does not parse.
    #[error("the layer's header: {reason}")]
    Header {
        /// What the parser says.
        reason: String,
    },
    /// The leaves are of another model.
    #[error("the leaves are of the model {got}, not of {expected}")]
    Root {
        /// Their root.
        got: ModelRoot,
        /// The root that was asked for.
        expected: ModelRoot,
    },
    /// The program, its profile or its number of tensors is not the model's.
    #[error("the {what} is not the model's")]
    Leaf {
        /// Which of them, or which tensor.
        what: String,
    },
    /// The program is not valid.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The program has no such layer.
    #[error("layer {got} of a program with {layers}")]
    Index {
        /// The index given.
        got: u32,
        /// How many layers there are.
        layers: usize,
    },
    /// The tensors are longer or shorter than the program says.
    #[error("{got} bytes of tensors where the program has {expected}")]
    Length {
        /// Bytes there are.
        got: usize,
        /// Bytes there should be.
        expected: u64,
    },
    /// A tensor is out of its range.
    #[error("{what}")]
    Content {
        /// What and where.
        what: String,
    },
}

impl LayerError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            LayerError::TooLong { .. } => "layer_too_long",
            LayerError::Tag => "layer_tag",
            LayerError::Header { .. } => "layer_header",
            LayerError::Root { .. } => "layer_root",
            LayerError::Leaf { .. } => "layer_leaf",
            LayerError::Program(_) => "layer_program",
            LayerError::Index { .. } => "layer_index",
            LayerError::Length { .. } => "layer_length",
            LayerError::Content { .. } => "layer_content",
        }
    }
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Header {
    program: Program,
    leaves: Vec<Hash>,
    layer: u32,
}

/// A layer of a model, ready to be executed.
pub struct LayerModel {
    root: ModelRoot,
    profile: Profile,
    program: Checked,
    layers: Layers,
    layer: usize,
    tensors: BTreeMap<TensorId, Tensor>,
}

enum Tensor {
    Matrix { weights: Vec<u8>, scales: Vec<u16> },
    Integers(Vec<i32>),
    Angles(Vec<i16>),
}

impl std::fmt::Debug for LayerModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (root, layer) = (&self.root, &self.layer);
        f.debug_struct("LayerModel").field("root", root).field("layer", layer).finish_non_exhaustive()
    }
}

/// The bytes of layer `layer` of a model with this tree; `None` when there is no such layer, or it has more than
/// [`LAYER_BYTES_MAX`] bytes.
pub fn extract(constants: &dyn Constants, tree: &ModelTree, layer: usize) -> Option<Vec<u8>> {
    let checked = constants.program();
    let layers = Layers::of(checked);
    layers.all().get(layer)?;
    let program = checked.program();
    let tensors = layers.tensors(checked, layer);
    let shapes = || tensors.iter().map(|t| (*t, program.tensors[usize::from(*t)].shape));
    let header = Header {
        program: program.clone(),
        leaves: tree.leaves().to_vec(),
        layer: u32::try_from(layer).ok()?,
    };
    let header = borsh::to_vec(&header).expect("borsh writes to memory");
    let length: u64 = shapes().map(|(_, shape)| length(shape)).sum();
    let length = usize::try_from(length).ok()?.checked_add(TAG.len() + 4 + header.len())?;
    if length > LAYER_BYTES_MAX || header.len() > LAYER_HEADER_BYTES_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(TAG);
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header);
    for (t, shape) in shapes() {
        match shape {
            Shape::Matrix { .. } => {
                let w = constants.matrix(t);
                // Unpacked blocks are of more columns than the matrix may have.
                let tile_len = TILE_ROWS * w.cols().next_multiple_of(GROUP);
                (0..w.tiles()).for_each(|t| bytes.extend_from_slice(&USUAL.plain_tile(&w, t)[..tile_len]));
                bytes.extend(w.scales().iter().flat_map(|s| s.to_le_bytes()));
            }
            Shape::Table => bytes.extend(constants.table(t).iter().flat_map(|v| v.to_le_bytes())),
            Shape::Vector { .. } => bytes.extend(constants.vector(t).iter().flat_map(|v| v.to_le_bytes())),
            Shape::Rotary { .. } => bytes.extend(constants.rotary(t).iter().flat_map(|v| v.to_le_bytes())),
        }
    }
    Some(bytes)
}

/// Bytes of a tensor.
fn length(shape: Shape) -> u64 {
    match shape {
        Shape::Matrix { rows, cols, .. } => stored(rows, cols) + u64::from(rows) * 2,
        Shape::Table => TABLE_LEN as u64 * 4,
        Shape::Vector { len, .. } => u64::from(len) * 4,
        Shape::Rotary { positions, pairs } => u64::from(positions) * u64::from(pairs) * 4,
    }
}

/// Bytes of a matrix's weights, which may be more than this machine has.
fn stored(rows: u32, cols: u32) -> u64 {
    u64::from(rows).next_multiple_of(TILE_ROWS as u64) * u64::from(cols).next_multiple_of(GROUP as u64)
}

impl LayerModel {
    /// Reads a layer of the model with this root. Memory is that of the bytes, twice.
    pub fn read(bytes: &[u8], root: ModelRoot) -> Result<LayerModel, LayerError> {
        if bytes.len() > LAYER_BYTES_MAX {
            return Err(LayerError::TooLong { got: bytes.len() });
        }
        let rest = bytes.strip_prefix(TAG).ok_or(LayerError::Tag)?;
        let short = || LayerError::Header { reason: "it ends early".into() };
        let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > LAYER_HEADER_BYTES_MAX {
            let reason = format!("{len} bytes are more than {LAYER_HEADER_BYTES_MAX}");
            return Err(LayerError::Header { reason });
        }
        let (header, content) = rest.split_at_checked(len).ok_or_else(short)?;
        let Header { program, leaves, layer } =
            Header::try_from_slice(header).map_err(|e| LayerError::Header { reason: e.to_string() })?;
        let (profile, program) = authenticate(program, &leaves, root)?;
        let layers = Layers::of(&program);
        let index = layer as usize;
        if index >= layers.all().len() {
            return Err(LayerError::Index { got: layer, layers: layers.all().len() });
        }
        let tensors = read_tensors(&program, &layers, index, content)?;
        let model = LayerModel { root, profile, program, layers, layer: index, tensors };
        model.check(&leaves)?;
        Ok(model)
    }

    /// Checks every tensor's range, and its hash against its leaf.
    fn check(&self, leaves: &[Hash]) -> Result<(), LayerError> {
        for t in self.tensors.keys() {
            let declared = &self.program.program().tensors[usize::from(*t)];
            check_tensor(self, *t, declared).map_err(|what| LayerError::Content { what })?;
            let hash = Branch::of(self, *t, declared.shape).hash();
            if leaves.get(BEFORE_TENSORS + usize::from(*t)) != Some(&root::component("tensor", &hash)) {
                return Err(LayerError::Leaf { what: format!("tensor `{}`", declared.name) });
            }
        }
        Ok(())
    }

    /// The model's root.
    pub fn root(&self) -> ModelRoot {
        self.root
    }

    /// The layers of the model's program.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Which of them this is.
    pub fn layer(&self) -> usize {
        self.layer
    }

    fn tensor(&self, t: TensorId) -> &Tensor {
        self.tensors.get(&t).expect("only the operations of the layer that is held are executed")
    }

    fn integers(&self, t: TensorId) -> &[i32] {
        match self.tensor(t) {
            Tensor::Integers(v) => v,
            Tensor::Matrix { .. } | Tensor::Angles(_) => {
                unreachable!("tensors are read as they are declared")
            }
        }
    }
}

/// The profile and the checked program, if they are those under the root's leaves.
fn authenticate(
    program: Program,
    leaves: &[Hash],
    expected: ModelRoot,
) -> Result<(Profile, Checked), LayerError> {
    let got = ModelRoot::from_bytes(*merkle::root(leaves.iter().copied()).as_bytes());
    if got != expected {
        return Err(LayerError::Root { got, expected });
    }
    let is = |index: usize, name: &str, hash: Hash| leaves.get(index) == Some(&root::component(name, &hash));
    let leaf = |what: &str| LayerError::Leaf { what: what.into() };
    let named = |p: &Profile| is(PROFILE_INDEX, "profile", keccak256(&[p.name().as_bytes()]));
    let profile = Profile::ALL.into_iter().find(named).ok_or_else(|| leaf("profile"))?;
    let program = program.check()?;
    if !is(PROGRAM, "program", merkle::root(root::program_leaves(&program))) {
        return Err(leaf("program"));
    }
    if leaves.len() != BEFORE_TENSORS + program.program().tensors.len() {
        return Err(leaf("number of tensors"));
    }
    Ok((profile, program))
}

fn read_tensors(
    checked: &Checked,
    layers: &Layers,
    layer: usize,
    content: &[u8],
) -> Result<BTreeMap<TensorId, Tensor>, LayerError> {
    let named = layers.tensors(checked, layer);
    let shape = |t: TensorId| checked.program().tensors[usize::from(t)].shape;
    let expected = named.iter().map(|t| length(shape(*t))).sum();
    if content.len() as u64 != expected {
        return Err(LayerError::Length { got: content.len(), expected });
    }
    let mut rest = content;
    // What is left is as long as the tensors that are left.
    let mut take = |bytes: u64| {
        let (front, back) = rest.split_at(bytes as usize);
        rest = back;
        front
    };
    let mut tensors = BTreeMap::new();
    for t in named {
        let tensor = match shape(t) {
            Shape::Matrix { rows, cols, .. } => Tensor::Matrix {
                weights: take(stored(rows, cols)).to_vec(),
                scales: numbers(take(u64::from(rows) * 2), u16::from_le_bytes),
            },
            Shape::Rotary { .. } => Tensor::Angles(numbers(take(length(shape(t))), i16::from_le_bytes)),
            Shape::Table | Shape::Vector { .. } => {
                Tensor::Integers(numbers(take(length(shape(t))), i32::from_le_bytes))
            }
        };
        tensors.insert(t, tensor);
    }
    Ok(tensors)
}

fn numbers<T, const N: usize>(bytes: &[u8], number: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| number(*b)).collect()
}

/// Tensors of other layers are not there: whoever asks for one has left the layer, and panics.
impl Constants for LayerModel {
    fn program(&self) -> &Checked {
        &self.program
    }

    fn profile(&self) -> Profile {
        self.profile
    }

    fn matrix(&self, t: TensorId) -> Matrix<'_> {
        let (rows, cols, shift) = self.program.matrix_shape(t);
        let (rows, cols) = (rows as usize, cols as usize);
        let Tensor::Matrix { weights, scales } = self.tensor(t) else {
            unreachable!("tensors are read as they are declared")
        };
        Matrix::new(rows, cols, shift, weights, scales).expect("a matrix was read with its length")
    }

    fn table(&self, t: TensorId) -> &[i32] {
        self.integers(t)
    }

    fn rotary(&self, t: TensorId) -> &[i16] {
        match self.tensor(t) {
            Tensor::Angles(v) => v,
            Tensor::Matrix { .. } | Tensor::Integers(_) => {
                unreachable!("tensors are read as they are declared")
            }
        }
    }

    fn vector(&self, t: TensorId) -> &[i32] {
        self.integers(t)
    }
}
