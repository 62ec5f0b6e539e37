//! Cold models: a blob becomes *n* shards, of which any *k* restore it (Reed-Solomon over 2^16, `reed-solomon-simd`).
//!
//! Encoding, restoring and repairing go stripe by stripe over files: memory is less than three stripes of all shards, whatever the blob's
//! size, and the field's tables. A file gets its name only after all its bytes were hashed and are what the [`ShardSet`] says: a wrong shard, or
//! a set whose shards do not make its blob, leaves nothing behind but an error that names it.
//!
//! This module knows no hosts and no store: it refuses to choose where shards lie ([`crate::replication`] does).

mod set;
mod stripes;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

pub use set::{
    Code, Geometry, LANE_BYTES, Place, SHARD_SET_BYTES_MAX, SHARDS_MAX, ShardSet, ShardSetError, UNIT_BYTES,
    UNIT_BYTES_MAX,
};
use stripes::{Parity, Shards};

use crate::blob::BlobHash;

/// Why a blob was not cut into shards.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The blob's size makes no set.
    #[error(transparent)]
    Set(#[from] ShardSetError),
    /// The file is not the blob.
    #[error("{path} is {got}, not {expected}: give the named blob's file")]
    WrongBlob {
        /// The file.
        path: PathBuf,
        /// The name it should have.
        expected: BlobHash,
        /// What it hashes to.
        got: BlobHash,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl EncodeError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            EncodeError::Set(e) => e.code(),
            EncodeError::WrongBlob { .. } => "encode_wrong_blob",
            EncodeError::File { .. } => "encode_file",
        }
    }
}

/// Why a blob or a shard was not made of other shards.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// An index that the set does not have, or has been given twice.
    #[error("shard {index} of {shards} is unknown or given twice: give each shard once, counted from 0")]
    Index {
        /// The index.
        index: u8,
        /// How many shards there are.
        shards: u8,
    },
    /// Too few shards.
    #[error("{got} shards are too few: any {needed} of the set's restore the blob, get more of them")]
    TooFew {
        /// How many are needed.
        needed: u8,
        /// How many different ones were given.
        got: u8,
    },
    /// Shards whose bytes are not what the set says. Nothing was made; without them it may be tried again.
    #[error("shards {indices:?} have other bytes than the set says: fetch them again, or others")]
    WrongShards {
        /// Their indices.
        indices: Vec<u8>,
    },
    /// Every shard is what the set says, and yet they do not make what it names: whoever made the set was wrong.
    #[error("right shards make {got}, not {expected}: the set is false, refuse it")]
    FalseSet {
        /// What the set names.
        expected: BlobHash,
        /// What came out.
        got: BlobHash,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl RestoreError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            RestoreError::Index { .. } => "restore_index",
            RestoreError::TooFew { .. } => "restore_too_few",
            RestoreError::WrongShards { .. } => "restore_wrong_shards",
            RestoreError::FalseSet { .. } => "restore_false_set",
            RestoreError::File { .. } => "restore_file",
        }
    }
}

/// Cuts the file `source`, which must be the blob named `blob`, into shards. They lie in `folder` afterwards, each under its name in
/// hex. Whatever has such a name there is whole and right, after an error too.
pub fn encode(
    source: &Path,
    blob: BlobHash,
    code: Code,
    unit: u32,
    folder: &Path,
) -> Result<ShardSet, EncodeError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| EncodeError::File { path, source }
    };
    let mut file = File::open(source).map_err(at(source))?;
    let size = file.metadata().map_err(at(source))?.len();
    let geometry = Geometry::new(size, code, unit)?;
    let mut shards = Vec::with_capacity(usize::from(code.shards()));
    for _ in 0..code.shards() {
        shards.push(Growing::new(folder).map_err(at(folder))?);
    }

    let mut parity = Parity::new(code);
    let mut hasher = blake3::Hasher::new();
    let mut stripe = Vec::new();
    let mut left = size;
    for index in 0..geometry.stripes() {
        let unit = usize::try_from(geometry.unit_of(index)).expect("at most UNIT_BYTES_MAX");
        stripe.clear();
        stripe.resize(unit * usize::from(code.needed()), 0);
        let here = usize::try_from(left.min(stripe.len() as u64)).expect("at most a stripe");
        file.read_exact(&mut stripe[..here]).map_err(at(source))?;
        left -= here as u64;
        hasher.update(&stripe[..here]);
        let data: Vec<&[u8]> = stripe.chunks_exact(unit).collect();
        for (shard, bytes) in shards.iter_mut().zip(&data) {
            shard.write(bytes).map_err(at(folder))?;
        }
        let parities = parity.of(&data);
        for (shard, bytes) in shards[data.len()..].iter_mut().zip(parities.recovery_iter()) {
            shard.write(bytes).map_err(at(folder))?;
        }
    }
    let got = BlobHash::from_bytes(*hasher.finalize().as_bytes());
    if got != blob {
        return Err(EncodeError::WrongBlob { path: source.to_owned(), expected: blob, got });
    }
    let mut names = Vec::with_capacity(shards.len());
    for shard in &shards {
        names.push(shard.name());
    }
    for (shard, name) in shards.into_iter().zip(&names) {
        shard.keep(&folder.join(name.to_string())).map_err(at(folder))?;
    }
    sync_folder(folder).map_err(at(folder))?;
    Ok(ShardSet::new(blob, geometry, names)?)
}

/// Restores the blob of `set` to the file `target` from the first `needed` of `shards` in order of their index, so that nothing is computed when
/// the data shards are there. `target` exists afterwards with the blob's bytes, or is as it was.
pub fn restore(set: &ShardSet, shards: &[(u8, PathBuf)], target: &Path) -> Result<(), RestoreError> {
    let mut growing = Growing::new(folder_of(target)).map_err(at(target))?;
    let mut left = set.geometry().size();
    Shards::open(set, shards)?.each_stripe(|data| {
        for unit in data {
            let here = usize::try_from(left.min(unit.len() as u64)).expect("at most a unit");
            growing.write(&unit[..here]).map_err(at(target))?;
            left -= here as u64;
        }
        Ok(())
    })?;
    finish(growing, set.blob(), target)
}

/// Makes shard `index` of `set` again from the first `needed` of the other `shards`. `target` exists afterwards with the shard's bytes, or is
/// as it was.
pub fn repair(
    set: &ShardSet,
    index: u8,
    shards: &[(u8, PathBuf)],
    target: &Path,
) -> Result<(), RestoreError> {
    let code = set.geometry().code();
    let name = set.name(index).ok_or(RestoreError::Index { index, shards: code.shards() })?;
    let others: Vec<(u8, PathBuf)> = shards.iter().filter(|(i, _)| *i != index).cloned().collect();
    let mut growing = Growing::new(folder_of(target)).map_err(at(target))?;
    let mut parity = Parity::new(code);
    Shards::open(set, &others)?.each_stripe(|data| {
        let written = match data.get(usize::from(index)) {
            Some(unit) => growing.write(unit),
            None => {
                let parities = parity.of(data);
                let beyond = usize::from(index - code.needed());
                growing.write(parities.recovery(beyond).expect("an index of the code"))
            }
        };
        written.map_err(at(target))
    })?;
    finish(growing, name, target)
}

/// Cuts shard `index` of `set` from the blob's file. `target` exists afterwards with the shard's bytes, or is as it was.
pub fn cut_one(set: &ShardSet, index: u8, source: &Path, target: &Path) -> Result<(), RestoreError> {
    let code = set.geometry().code();
    let name = set.name(index).ok_or(RestoreError::Index { index, shards: code.shards() })?;
    let file = File::open(source).map_err(at(source))?;
    let read = |offset: u64, out: &mut [u8]| std::os::unix::fs::FileExt::read_exact_at(&file, out, offset);
    let mut growing = Growing::new(folder_of(target)).map_err(at(target))?;
    for stripe in 0..set.geometry().stripes() {
        let unit = unit(set, index, stripe, &read).map_err(at(source))?;
        growing.write(&unit).map_err(at(target))?;
    }
    finish(growing, name, target)
}

/// What stripe `stripe` gives to shard `index`, computed of the blob, which `read(offset, buffer)` reads.
pub fn unit(
    set: &ShardSet,
    index: u8,
    stripe: u64,
    read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let geometry = set.geometry();
    let (needed, from) = (usize::from(geometry.code().needed()), stripe * geometry.stripe_bytes());
    let unit = usize::try_from(geometry.unit_of(stripe)).expect("at most UNIT_BYTES_MAX");
    let mut bytes = vec![0; unit * needed];
    let left = geometry.size().saturating_sub(from);
    let here = usize::try_from(left.min(bytes.len() as u64)).expect("at most a stripe");
    read(from, &mut bytes[..here])?;
    let data: Vec<&[u8]> = bytes.chunks_exact(unit).collect();
    if let Some(unit) = data.get(usize::from(index)) {
        return Ok(unit.to_vec());
    }
    let mut parity = Parity::new(geometry.code());
    let parities = parity.of(&data);
    let beyond = usize::from(index) - needed;
    Ok(parities.recovery(beyond).expect("an index of the code").to_vec())
}

fn finish(growing: Growing, expected: BlobHash, target: &Path) -> Result<(), RestoreError> {
    let got = growing.name();
    if got != expected {
        return Err(RestoreError::FalseSet { expected, got });
    }
    growing.keep(target).and_then(|()| sync_folder(folder_of(target))).map_err(at(target))
}

/// A file that has no good name yet.
struct Growing {
    file: NamedTempFile,
    hasher: blake3::Hasher,
}

impl Growing {
    fn new(folder: &Path) -> io::Result<Growing> {
        Ok(Growing { file: NamedTempFile::new_in(folder)?, hasher: blake3::Hasher::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    fn name(&self) -> BlobHash {
        BlobHash::from_bytes(*self.hasher.finalize().as_bytes())
    }

    fn keep(self, path: &Path) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(path).map_err(|e| e.error)?;
        Ok(())
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::File { path, source }
}
