//! Blobs that are whole: reading them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use super::Inner;
use super::error::StoreError;
use super::file::{Mapped, Segment, StoredFile, map_file};
use super::folder::metadata;
use super::index::BlobRow;
use super::layout::{self, Run};
use crate::blob::{BlobHash, tiles};
use crate::outboard::outboard_bytes;

/// A whole blob of the store; cheap to clone. While it is held, nothing that it reads is deleted.
#[derive(Clone)]
pub struct Blob(Arc<Whole>);

struct Whole {
    hash: BlobHash,
    size: u64,
    runs: Vec<Run>,
    own: Arc<StoredFile>,
    donors: HashMap<BlobHash, Arc<StoredFile>>,
    outboard: Option<Mmap>,
    tile_list: OnceLock<Arc<StoredFile>>,
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("hash", &self.0.hash).field("size", &self.0.size).finish_non_exhaustive()
    }
}

impl Blob {
    /// Opens what a row names; the caller holds the store's structure.
    pub(super) fn open(inner: &Arc<Inner>, hash: BlobHash, row: BlobRow) -> Result<Blob, StoreError> {
        let path = inner.folder.blob(hash);
        let own = inner.files.open(hash, &path)?;
        let length = own.metadata().map_err(StoreError::io("look at", &path))?.len();
        if length != row.size {
            return Err(StoreError::Damaged { hash, what: "its file has another length" });
        }
        let mut donors = HashMap::new();
        for run in &row.runs {
            if let Entry::Vacant(entry) = donors.entry(run.donor) {
                entry.insert(inner.files.open(run.donor, &inner.folder.blob(run.donor))?);
            }
        }
        let outboard = match outboard_bytes(row.size) {
            0 => None,
            expected => {
                let path = inner.folder.outboard(hash);
                let missing =
                    StoreError::Damaged { hash, what: "its outboard is missing or has another length" };
                match metadata(&path)? {
                    Some(found) if found.len() == expected => {}
                    _ => return Err(missing),
                }
                Some(
                    File::open(&path)
                        .and_then(|file| map_file(&file))
                        .map_err(StoreError::io("map", &path))?,
                )
            }
        };
        let inner = inner.clone();
        let (size, runs, tile_list) = (row.size, row.runs, OnceLock::new());
        Ok(Blob(Arc::new(Whole { hash, size, runs, own, donors, outboard, tile_list, inner })))
    }

    /// Its name.
    pub fn hash(&self) -> BlobHash {
        self.0.hash
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// How many tiles it has.
    pub fn tiles(&self) -> u64 {
        tiles(self.0.size)
    }

    /// Whether all of its bytes are in its own file, in order.
    pub fn is_contiguous(&self) -> bool {
        self.0.runs.is_empty()
    }

    /// Fills `buffer` from byte `offset` on.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.0.size);
        let end = end.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        read_segments(&self.segments(offset..end), buffer)
    }

    /// Where the bytes of `range`, cut to the blob, lie: open files with places in them, in order.
    pub fn segments(&self, range: Range<u64>) -> Vec<Segment> {
        let range = range.start.min(self.0.size)..range.end.min(self.0.size);
        segments(&self.0.own, &self.0.donors, &self.0.runs, range)
    }

    /// Its outboard; empty for a blob of one tile.
    pub fn outboard(&self) -> &[u8] {
        self.0.outboard.as_deref().unwrap_or_default()
    }

    /// Its tile list, once [`Store::index`](super::Store::index) has made it.
    pub fn tile_list(&self) -> Result<Option<Mapped>, StoreError> {
        let hash = self.0.hash;
        let expected = tiles(self.0.size) * 32;
        let file = match self.0.tile_list.get() {
            Some(file) => file,
            None => {
                let path = self.0.inner.folder.tile_list(hash);
                let Some(found) = metadata(&path)? else { return Ok(None) };
                if found.len() != expected {
                    return Err(StoreError::Damaged { hash, what: "its tile list has another length" });
                }
                let file = File::open(&path).map_err(StoreError::io("open", &path))?;
                self.0.tile_list.get_or_init(|| Arc::new(StoredFile::new(file)))
            }
        };
        let all = Segment { file: file.clone(), offset: 0, len: expected };
        all.mapped().map(Some).map_err(StoreError::io("map", &self.0.inner.folder.tile_list(hash)))
    }

    pub(super) fn own_file(&self) -> &Arc<StoredFile> {
        &self.0.own
    }
}

/// The bytes `range` as segments. A donor that is not among `donors` ends them.
pub(super) fn segments(
    own: &Arc<StoredFile>,
    donors: &HashMap<BlobHash, Arc<StoredFile>>,
    runs: &[Run],
    range: Range<u64>,
) -> Vec<Segment> {
    let file = |donor: Option<BlobHash>| match donor {
        None => Some(own.clone()),
        Some(donor) => donors.get(&donor).cloned(),
    };
    layout::pieces(runs, range)
        .into_iter()
        .map_while(|piece| Some(Segment { file: file(piece.donor)?, offset: piece.offset, len: piece.len }))
        .collect()
}

/// Fills `buffer` with what the segments hold, which must be as long.
pub(super) fn read_segments(segments: &[Segment], buffer: &mut [u8]) -> io::Result<()> {
    let mut rest = buffer;
    for segment in segments {
        let length = usize::try_from(segment.len).map_err(io::Error::other)?.min(rest.len());
        let (now, later) = rest.split_at_mut(length);
        segment.read_at(0, now)?;
        rest = later;
    }
    if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
