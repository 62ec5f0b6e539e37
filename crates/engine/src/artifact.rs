//! The `.assay` artifact: a program, its constants, and what turns text into ids, in one file that is memory-mapped.
//!
//! # Layout
//!
//! `ASSAY\0\0` and a byte that says how matrices are stored ([`Profile`]), the model root (32 bytes), the manifest's length (8 bytes, little-endian), the canonical [`Manifest`], the
//! tokenizer's bytes, and, from the next multiple of 16 KiB on, the constants in order of the program, every one at the next multiple
//! of 64 bytes (matrices: 4096). So versions of a model with the same program have what they share at the same places of a grid of
//! 16 KiB, which is what stores and transfers compare.
//! A matrix is its weights in the layout of [`crate::matrix`], or packed as [`crate::matrix::packed`] has them, followed, at the next multiple of 64, by its row scales (u16); a table
//! or vector is i32, a rotary table i16, all little-endian. Where each constant lies follows from profile and program alone, and the file
//! ends with the last one.
//!
//! The model root does not depend on this layout: see [`root`].

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use assay_core::canonical::{Canonical, CanonicalError};
use assay_core::id::{Hash, ModelRoot};
pub use assay_core::text::{END_TOKENS_MAX, TEMPLATE_BYTES_MAX, TextModel};
use borsh::{BorshDeserialize, BorshSerialize};

use crate::constants::{Constants, Reads};
use crate::kernel::USUAL;
use crate::matrix::packed::{PACKED_BLOCK, PACKED_GROUP};
use crate::matrix::{BIAS, GROUP, Matrix, TILE_ROWS};
use crate::presence::{Lack, Presence};
use crate::program::{
    Checked, Op, Program, ProgramError, ROTARY_FRAC, Shape, TABLE_LEN, Tensor, TensorId, VECTOR_MAX,
};

#[cfg(feature = "native")]
mod arriving;
mod lacking;
pub mod layer;
#[cfg(feature = "native")]
mod mapped;
pub mod opening;
pub mod root;
pub mod tree;
#[cfg(feature = "native")]
pub mod writer;

/// First bytes of every artifact; another one follows, and says which [`Profile`] it has.
pub const MAGIC: [u8; 7] = *b"ASSAY\0\0";

/// Name of a model's arithmetic and of how its weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Every weight is a byte.
    #[default]
    Int8,
    /// Matrices that are multiplied are packed into four bits a weight ([`crate::matrix::packed`]). They are worth int8 numbers, so
    /// that the arithmetic is the same.
    Int4,
}

impl Profile {
    /// All there are.
    pub const ALL: [Profile; 2] = [Profile::Int8, Profile::Int4];

    /// The name that stands under a model's root.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Int8 => "int8-v1",
            Profile::Int4 => "int4-v1",
        }
    }

    /// The profile with this name.
    pub fn named(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|p| p.name() == name)
    }

    /// First bytes of an artifact.
    pub(crate) const fn magic(self) -> [u8; 8] {
        let [a, b, c, d, e, f, g] = MAGIC;
        let version = match self {
            Profile::Int8 => 2,
            Profile::Int4 => 3,
        };
        [a, b, c, d, e, f, g, version]
    }

    /// Which matrices of a program are packed: those of products, where all their weights are read for every token, but for those that
    /// are tables too.
    pub fn packed(self, program: &Program) -> Vec<bool> {
        let mut packed = vec![false; program.tensors.len()];
        let mut set = |t: TensorId, to: bool| {
            if let Some(p) = packed.get_mut(usize::from(t)) {
                *p = to;
            }
        };
        if self == Profile::Int4 {
            let multiplied = program.ops.iter().filter_map(|op| match op {
                Op::MatMul { weights, .. } => Some(*weights),
                _ => None,
            });
            multiplied.for_each(|t| set(t, true));
            let looked_up = program.ops.iter().filter_map(|op| match op {
                Op::Embed { table } | Op::Position { table } => Some(*table),
                _ => None,
            });
            looked_up.for_each(|t| set(t, false));
        }
        packed
    }
}

/// Most bytes of a tokenizer.
pub const TOKENIZER_BYTES_MAX: usize = 64 << 20;
const HEADER: usize = 48;
/// Constants begin at a multiple of this: the tile of the hub.
const GRID: usize = 16 << 10;

/// What an artifact holds beside its constants.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Manifest {
    /// What computes.
    pub program: Program,
    /// What turns text into ids.
    pub text: TextModel,
    /// Where it came from: for people, not under the root.
    pub provenance: Provenance,
    /// Bytes of the tokenizer.
    pub tokenizer_len: u64,
}

impl Canonical for Manifest {
    const TAG: &'static str = "assay/manifest/1";
}

/// Where an artifact came from. Anyone can check it by importing the same sources; nothing depends on it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Provenance {
    /// The name it is served under.
    pub name: String,
    /// Licence of the weights.
    pub licence: String,
    /// Source files and their BLAKE3.
    pub sources: Vec<(String, Hash)>,
}

/// Why a file is no usable artifact.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is something else, or of another version.
    #[error("{path} is not an Assay artifact of this version; import the model again with `assay import`")]
    Magic {
        /// Which file.
        path: PathBuf,
    },
    /// The file is shorter or longer than its manifest says.
    #[error(
        "{path}: {got} bytes where the manifest needs {expected}: the file is damaged; import or fetch it again"
    )]
    Length {
        /// Which file.
        path: PathBuf,
        /// Bytes there are.
        got: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The manifest does not parse.
    #[error("{path}: manifest: {source}")]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: CanonicalError,
    },
    /// The program is not valid.
    #[error("{path}: {source}")]
    Program {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: ProgramError,
    },
    /// A constant or a text setting is out of its range.
    #[error("{path}: {what}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What and where.
        what: String,
    },
    /// The content is not what the root says.
    #[error(
        "{path}: the content's root is {got}, but the file says {stored}: it was damaged or altered; fetch it again"
    )]
    Root {
        /// Which file.
        path: PathBuf,
        /// Root of the content.
        got: ModelRoot,
        /// Root in the header.
        stored: ModelRoot,
    },
    /// This machine stores numbers the other way round.
    #[error("artifacts are mapped as they are, which needs a little-endian machine")]
    Endianness,
}

impl ArtifactError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ArtifactError::Io { .. } => "artifact_io",
            ArtifactError::Magic { .. } => "artifact_magic",
            ArtifactError::Length { .. } => "artifact_length",
            ArtifactError::Manifest { .. } => "artifact_manifest",
            ArtifactError::Program { .. } => "artifact_program",
            ArtifactError::Content { .. } => "artifact_content",
            ArtifactError::Root { .. } => "artifact_root",
            ArtifactError::Endianness => "artifact_endianness",
        }
    }
}

/// Byte range of one constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Weights, table or angles.
    pub(crate) data: (usize, usize),
    /// Row scales; empty but for matrices.
    pub(crate) scales: (usize, usize),
    /// Whether it is a matrix that is stored packed.
    pub(crate) packed: bool,
}

/// Where the constants lie, and the length of the file; `None` when it would not fit this machine.
pub(crate) fn layout(profile: Profile, program: &Program, after: usize) -> Option<(Vec<Place>, usize)> {
    let mut at = after.checked_next_multiple_of(GRID)?;
    let mut place = |align: usize, len: Option<usize>| -> Option<(usize, usize)> {
        let from = at.checked_next_multiple_of(align)?;
        at = from.checked_add(len?)?;
        Some((from, len?))
    };
    let numbers = |a: u32, b: u32, bytes: usize| {
        let [a, b] = [a, b].map(usize::try_from);
        a.ok()?.checked_mul(b.ok()?)?.checked_mul(bytes)
    };
    let mut places = Vec::with_capacity(program.tensors.len());
    for (t, packed) in program.tensors.iter().zip(profile.packed(program)) {
        let mut plain = |len| Some(Place { data: place(64, len)?, scales: (0, 0), packed: false });
        places.push(match t.shape {
            Shape::Matrix { rows, cols, .. } => {
                let tile_rows = rows.next_multiple_of(TILE_ROWS as u32);
                let stored = match packed {
                    true => numbers(
                        tile_rows / TILE_ROWS as u32,
                        cols.div_ceil(PACKED_GROUP as u32),
                        PACKED_BLOCK,
                    ),
                    false => numbers(tile_rows, cols.next_multiple_of(GROUP as u32), 1),
                };
                Place { data: place(4096, stored)?, scales: place(64, numbers(rows, 1, 2))?, packed }
            }
            Shape::Table => plain(numbers(TABLE_LEN as u32, 1, 4))?,
            Shape::Rotary { positions, pairs } => plain(numbers(positions, pairs, 4))?,
            Shape::Vector { len, .. } => plain(numbers(len, 1, 4))?,
        });
    }
    Some((places, at))
}

/// A matrix of this shape over its stored weights and row scales; `None` where they have other lengths.
fn matrix_of<'a>(shape: Shape, packed: bool, stored: &'a [u8], scales: &'a [u16]) -> Option<Matrix<'a>> {
    let Shape::Matrix { rows, cols, shift } = shape else { return None };
    let of = if packed { Matrix::packed } else { Matrix::new };
    of(rows as usize, cols as usize, shift, stored, scales)
}

/// Memory from a multiple of 4096 bytes on.
type Bytes = Box<dyn Deref<Target = [u8]> + Send + Sync>;

/// Bytes in memory, from an offset on.
struct Owned {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Deref for Owned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }
}

/// An artifact, ready to be executed.
pub struct Artifact {
    path: PathBuf,
    bytes: Bytes,
    root: ModelRoot,
    profile: Profile,
    program: Checked,
    text: TextModel,
    provenance: Provenance,
    tokenizer: (usize, usize),
    places: Vec<Place>,
    /// Of an artifact that arrives: what of it is there.
    presence: Option<Arc<Presence>>,
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact").field("path", &self.path).field("root", &self.root).finish_non_exhaustive()
    }
}

impl Artifact {
    /// An artifact in memory; `name` stands for a path in messages.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Artifact, ArtifactError> {
        let len = bytes.len();
        let mut v = vec![0u8; len + 4096];
        let from = v.as_ptr().align_offset(4096);
        v[from..from + len].copy_from_slice(bytes);
        Artifact::new(PathBuf::from(name), Box::new(Owned { bytes: v, from, len }), None)
    }

    /// With a presence, everything before the constants is there, and constants are checked when they are.
    fn new(path: PathBuf, bytes: Bytes, presence: Option<Arc<Presence>>) -> Result<Artifact, ArtifactError> {
        if cfg!(target_endian = "big") {
            return Err(ArtifactError::Endianness);
        }
        let magic = || ArtifactError::Magic { path: path.clone() };
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or_else(magic)?;
        let (front, length) = header.split_last_chunk::<8>().ok_or_else(magic)?;
        let (kind, root) = front.split_first_chunk::<8>().ok_or_else(magic)?;
        let profile = Profile::ALL.into_iter().find(|p| p.magic() == *kind).ok_or_else(magic)?;
        let root = ModelRoot::from_bytes(*root.first_chunk::<32>().ok_or_else(magic)?);
        let got = bytes.len() as u64;
        let length = u64::from_le_bytes(*length);
        let short = |expected: u64| ArtifactError::Length { path: path.clone(), got, expected };
        let end = usize::try_from(length).ok().and_then(|l| l.checked_add(HEADER));
        let manifest = end.and_then(|e| bytes.get(HEADER..e)).ok_or_else(|| short(length))?;
        let manifest = Manifest::from_canonical_bytes(manifest)
            .map_err(|source| ArtifactError::Manifest { path: path.clone(), source })?;
        let tokenizer_at = HEADER + length as usize;
        let tokenizer_len = usize::try_from(manifest.tokenizer_len).unwrap_or(usize::MAX);
        if tokenizer_len > TOKENIZER_BYTES_MAX {
            let what =
                format!("a tokenizer of {tokenizer_len} bytes; at most {TOKENIZER_BYTES_MAX} are allowed");
            return Err(ArtifactError::Content { path, what });
        }
        let program = manifest
            .program
            .check()
            .map_err(|source| ArtifactError::Program { path: path.clone(), source })?;
        let (places, expected) = layout(profile, program.program(), tokenizer_at + tokenizer_len)
            .ok_or_else(|| short(u64::MAX))?;
        if bytes.len() != expected {
            return Err(short(expected as u64));
        }
        let artifact = Artifact {
            path,
            bytes,
            root,
            profile,
            program,
            text: manifest.text,
            provenance: manifest.provenance,
            tokenizer: (tokenizer_at, tokenizer_len),
            places,
            presence,
        };
        artifact.check_text()?;
        if artifact.presence.is_none() {
            artifact.check_tensors()?;
        }
        Ok(artifact)
    }

    /// Checks what the arithmetic relies on beyond the program: tables and angles.
    fn check_tensors(&self) -> Result<(), ArtifactError> {
        for (i, t) in self.program.program().tensors.iter().enumerate() {
            check_tensor(self, i as TensorId, t)
                .map_err(|what| ArtifactError::Content { path: self.path.clone(), what })?;
        }
        Ok(())
    }

    /// Checks ids and lengths of the text model.
    fn check_text(&self) -> Result<(), ArtifactError> {
        let fail = |what: String| Err(ArtifactError::Content { path: self.path.clone(), what });
        let vocabulary = self.program.program().vocabulary;
        let text = &self.text;
        if text.bos.iter().chain(&text.end_tokens).any(|id| *id >= vocabulary) {
            return fail(format!("a special token is not below the vocabulary of {vocabulary}"));
        }
        if text.end_tokens.len() > END_TOKENS_MAX || text.chat_template.len() > TEMPLATE_BYTES_MAX {
            return fail(format!(
                "more than {END_TOKENS_MAX} end tokens, or a chat template above {TEMPLATE_BYTES_MAX} bytes"
            ));
        }
        if self.provenance.name.is_empty() || self.provenance.name.len() > 200 {
            return fail("a name that is empty or above 200 bytes".into());
        }
        Ok(())
    }

    /// Recomputes the root from the content. After each matrix, `progress` hears how many weights it had
    /// ([`Artifact::parameters`] in all). Refuses bytes between the constants that are not zero: no root covers them, and files that differ
    /// in nothing else would be different blobs of one model.
    pub fn check_root(&self, progress: &dyn Fn(u64)) -> Result<(), ArtifactError> {
        if !self.gaps_are_zero() {
            let what = "bytes between its constants that are not zero".to_owned();
            return Err(ArtifactError::Content { path: self.path.clone(), what });
        }
        let got = root::model_root(self, &self.text, self.tokenizer_json(), progress);
        if got == self.root {
            return Ok(());
        }
        Err(ArtifactError::Root { path: self.path.clone(), got, stored: self.root })
    }

    fn gaps_are_zero(&self) -> bool {
        let mut at = self.tokenizer.0 + self.tokenizer.1;
        for (from, len) in self.places.iter().flat_map(|place| [place.data, place.scales]) {
            // What is no matrix has no scales.
            if (from, len) == (0, 0) {
                continue;
            }
            if self.bytes[at..from].iter().any(|byte| *byte != 0) {
                return false;
            }
            at = from + len;
        }
        true
    }

    /// The whole file, as it is stored and transported.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The root as the file says it.
    pub fn root(&self) -> ModelRoot {
        self.root
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: an artifact has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How text becomes ids.
    pub fn text(&self) -> &TextModel {
        &self.text
    }

    /// The tokenizer, in the format of Hugging Face's `tokenizer.json`.
    pub fn tokenizer_json(&self) -> &[u8] {
        &self.bytes[self.tokenizer.0..self.tokenizer.0 + self.tokenizer.1]
    }

    /// Where it came from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        self.program.program().tensors.iter().map(|t| t.shape.parameters()).sum()
    }

    /// As constants to execute.
    pub fn shared(self: &Arc<Self>) -> Arc<dyn Constants> {
        Arc::clone(self) as Arc<dyn Constants>
    }

    fn numbers<T: Number>(&self, (at, len): (usize, usize)) -> &[T] {
        // SAFETY: T is a plain little-endian integer without invalid values; what does not align is left out of the middle.
        let (before, numbers, after) = unsafe { self.bytes[at..at + len].align_to::<T>() };
        assert!(before.is_empty() && after.is_empty(), "constants lie at multiples of 64 bytes");
        numbers
    }
}

/// Whether angles are those of a rotary table: sines and cosines.
fn are_angles(angles: &[i16]) -> bool {
    let one = 1i16 << ROTARY_FRAC;
    angles.iter().all(|v| (-one..=one).contains(v))
}

/// Checks what the arithmetic relies on beyond the program in a constant's numbers; what is wrong with them.
fn check_tensor(c: &dyn Constants, i: TensorId, t: &Tensor) -> Result<(), String> {
    let one = 1i16 << ROTARY_FRAC;
    match t.shape {
        Shape::Table if c.table(i).iter().any(|v| !(32_768..=65_536).contains(v)) => {
            Err(format!("table `{}` has values outside 32768 to 65536", t.name))
        }
        Shape::Rotary { .. } if !are_angles(c.rotary(i)) => {
            Err(format!("rotary table `{}` has values outside -{one} to {one}", t.name))
        }
        Shape::Vector { .. } if c.vector(i).iter().any(|v| v.unsigned_abs() >= VECTOR_MAX as u32) => {
            Err(format!("vector `{}` has numbers of {VECTOR_MAX} or more", t.name))
        }
        Shape::Matrix { .. } if !padding_is_zero(&c.matrix(i)) => {
            Err(format!("matrix `{}` has weights beyond its rows and columns", t.name))
        }
        _ => Ok(()),
    }
}

/// Whether the bytes that only fill tiles and groups hold weight 0: no root covers them.
fn padding_is_zero(w: &Matrix<'_>) -> bool {
    let group = if w.is_packed() { PACKED_GROUP } else { GROUP };
    let (rows, cols) = (w.rows() % TILE_ROWS, w.cols() % group);
    let last = |t: usize| t + 1 == w.tiles();
    let tiles = (0..w.tiles()).filter(|t| cols != 0 || last(*t) && rows != 0);
    tiles.into_iter().all(|t| {
        let plain = USUAL.plain_tile(w, t);
        let four = plain.as_chunks::<GROUP>().0.iter().enumerate();
        four.filter(|(_, four)| **four != [BIAS; GROUP]).all(|(at, four)| {
            let (row, col) = (at % TILE_ROWS, at / TILE_ROWS * GROUP);
            let inside = if last(t) && rows != 0 { rows } else { TILE_ROWS };
            row < inside && four.iter().enumerate().all(|(i, b)| col + i < w.cols() || *b == BIAS)
        })
    })
}

/// Integers that constants are made of.
trait Number: Copy {}
impl Number for u16 {}
impl Number for i16 {}
impl Number for i32 {}

impl Constants for Artifact {
    fn program(&self) -> &Checked {
        &self.program
    }

    fn profile(&self) -> Profile {
        self.profile
    }

    fn matrix(&self, t: TensorId) -> Matrix<'_> {
        let place = self.places[usize::from(t)];
        let bytes = &self.bytes[place.data.0..place.data.0 + place.data.1];
        let shape = self.program.program().tensors[usize::from(t)].shape;
        matrix_of(shape, place.packed, bytes, self.numbers(place.scales))
            .expect("the layout gives every matrix its length")
    }

    fn table(&self, t: TensorId) -> &[i32] {
        self.numbers(self.places[usize::from(t)].data)
    }

    fn rotary(&self, t: TensorId) -> &[i16] {
        self.numbers(self.places[usize::from(t)].data)
    }

    fn vector(&self, t: TensorId) -> &[i32] {
        self.numbers(self.places[usize::from(t)].data)
    }

    fn lacks(&self, op: &Op, reads: Reads<'_>) -> Option<Lack> {
        let presence = self.presence.as_ref().filter(|p| !p.is_settled())?;
        lacking::lacks(self, presence, op, reads)
    }
}
