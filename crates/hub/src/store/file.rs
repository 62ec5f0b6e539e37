//! Open files of a store, pieces of them, and views of their bytes.
//!
//! Files in a store are never written in place where something was verified. They are replaced by renaming, and holes are punched
//! only where no blob refers to them and while nobody holds the file open (`gc` asks [`Files`]).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use memmap2::Mmap;

use super::error::StoreError;
use crate::blob::BlobHash;

/// An open file of the store. While anyone holds it, the store neither deletes it nor punches holes into it.
#[derive(Debug)]
pub struct StoredFile {
    file: File,
    map: OnceLock<Mmap>,
}

impl Deref for StoredFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl StoredFile {
    pub(crate) fn new(file: File) -> StoredFile {
        StoredFile { file, map: OnceLock::new() }
    }

    /// All of the file, mapped once.
    fn map(&self) -> io::Result<&Mmap> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = map_file(&self.file)?;
        Ok(self.map.get_or_init(|| map))
    }
}

/// Maps a file of the store.
pub(crate) fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: files of a store are the store's alone. They are never shortened, verified bytes in them are never overwritten, and
    // holes are punched only while nobody holds the file open.
    unsafe { Mmap::map(file) }
}

/// Neighbouring bytes of a blob in one file.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The file.
    pub file: Arc<StoredFile>,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Segment {
    /// Fills `buffer` from the segment's byte `at` on.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        match at.checked_add(buffer.len() as u64) {
            Some(end) if end <= self.len => self.file.read_exact_at(buffer, self.offset + at),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The bytes without a copy. The file is mapped once, for all segments of it.
    pub fn mapped(&self) -> io::Result<Mapped> {
        let all = self.file.map()?.len() as u64;
        let end = self.offset.checked_add(self.len).filter(|end| *end <= all);
        let end = end.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(Mapped { file: self.file.clone(), range: self.offset as usize..end as usize })
    }
}

/// Bytes of a mapped file of the store; as an owner of bytes it can go into a body of HTTP without a copy.
#[derive(Clone, Debug)]
pub struct Mapped {
    file: Arc<StoredFile>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // Whoever made this value has mapped the file and checked the range.
        self.file.map.get().and_then(|map| map.get(self.range.clone())).unwrap_or_default()
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

/// The files of blobs that are open, each once.
#[derive(Default)]
pub(crate) struct Files {
    open: Mutex<HashMap<BlobHash, Weak<StoredFile>>>,
}

impl Files {
    /// The file of a blob's own bytes.
    pub(crate) fn open(&self, hash: BlobHash, path: &Path) -> Result<Arc<StoredFile>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&hash).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Damaged { hash, what: "a file with its bytes is missing" },
            _ => StoreError::io("open", path)(error),
        })?;
        let file = Arc::new(StoredFile::new(file));
        open.retain(|_, file| file.strong_count() > 0);
        open.insert(hash, Arc::downgrade(&file));
        Ok(file)
    }

    /// A blob's file was replaced: who opens it from now on gets this one.
    pub(crate) fn replace(&self, hash: BlobHash, file: &Arc<StoredFile>) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, Arc::downgrade(file));
    }

    /// A blob's file went away.
    pub(crate) fn forget(&self, hash: BlobHash) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash);
    }

    /// Whether anyone holds a blob's file.
    pub(crate) fn is_used(&self, hash: BlobHash) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&hash).is_some_and(|file| file.strong_count() > 0)
    }
}
