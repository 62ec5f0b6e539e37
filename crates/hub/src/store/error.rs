//! What goes wrong in a store, each with a code that programs can rely on.

use std::io;
use std::path::{Path, PathBuf};

use crate::blob::{BLOB_BYTES_MAX, BlobHash};
use crate::outboard::OutboardError;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read, written or renamed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The disk, or the limit on files that the system sets, is full. What was verified before is kept.
    #[error("no room on the disk for {}: {source}; free some space and go on", path.display())]
    DiskFull {
        /// The file that was written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The store's index could not be read or written.
    #[error("the store's index: {0}; if it persists, open the store again")]
    Index(Box<redb::Error>),
    /// A row of the index is not what this program writes.
    #[error("row {key} of the store's table {table} cannot be read; run the store's check with repair")]
    Row {
        /// The table.
        table: &'static str,
        /// The row's key.
        key: String,
    },
    /// Another process, or another `Store`, has the folder open.
    #[error("the store in {} is open elsewhere; stop that process first", folder.display())]
    Busy {
        /// The store's folder.
        folder: PathBuf,
    },
    /// The folder was written by another version.
    #[error("the store in {} has format {got}, this program reads {expected}", folder.display())]
    Format {
        /// The store's folder.
        folder: PathBuf,
        /// The format that this program reads and writes.
        expected: u64,
        /// The format of the folder.
        got: u64,
    },
    /// There is no room within the quota.
    #[error(
        "{wanted} bytes are wanted and {free} of the quota of {quota} are free; collect garbage or raise the quota"
    )]
    Quota {
        /// Bytes that were to be reserved.
        wanted: u64,
        /// Bytes that could have been.
        free: u64,
        /// Bytes that the store may occupy.
        quota: u64,
    },
    /// A blob longer than any store keeps.
    #[error("a blob has at most {BLOB_BYTES_MAX} bytes, not {got}")]
    TooLarge {
        /// Bytes that it would have.
        got: u64,
    },
    /// The blob is arriving already: it has one writer.
    #[error("blob {hash} is arriving already; wait for that arrival or read it with `arriving`")]
    Arriving {
        /// The blob.
        hash: BlobHash,
    },
    /// The blob is here.
    #[error("blob {hash} is in the store already")]
    Whole {
        /// The blob.
        hash: BlobHash,
    },
    /// The blob is not here.
    #[error("blob {hash} is not in the store")]
    Absent {
        /// The blob.
        hash: BlobHash,
    },
    /// A blob is said to have another length than was verified.
    #[error("blob {hash} has {expected} bytes, not {got}")]
    Size {
        /// The blob.
        hash: BlobHash,
        /// Bytes that it has.
        expected: u64,
        /// Bytes that it was said to have.
        got: u64,
    },
    /// The arrival has no outboard yet.
    #[error("the outboard of blob {hash} is not known yet; set it first")]
    OutboardNeeded {
        /// The blob.
        hash: BlobHash,
    },
    /// The bytes are not the blob's outboard.
    #[error("{0}")]
    Outboard(#[from] OutboardError),
    /// The bytes cannot be the blob's tile list.
    #[error("the tile list of blob {hash} has {expected} bytes, not {got}")]
    TileList {
        /// The blob.
        hash: BlobHash,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that it has.
        got: u64,
    },
    /// Bytes that are not whole tiles of the blob.
    #[error(
        "{bytes} bytes from tile {first_tile} on are not whole tiles of blob {hash}, which has {size} bytes"
    )]
    Tiles {
        /// The blob.
        hash: BlobHash,
        /// Bytes of the blob.
        size: u64,
        /// The tile where the bytes were to begin.
        first_tile: u64,
        /// How many bytes there were.
        bytes: u64,
    },
    /// An arrival was finished before all of its tiles were there.
    #[error("{missing} tiles of blob {hash} are missing; fetch them, then finish")]
    Incomplete {
        /// The blob.
        hash: BlobHash,
        /// How many tiles are missing.
        missing: u64,
    },
    /// What is on disk is not what was put there.
    #[error("blob {hash} is damaged: {what}; run the store's check with repair")]
    Damaged {
        /// The blob.
        hash: BlobHash,
        /// What was found.
        what: &'static str,
    },
    /// A file changed while it was added.
    #[error("{} changed while it was read; add it again when nobody writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A tag's name is empty or too long.
    #[error("a tag's name has 1 to {max} bytes, not {got}")]
    TagName {
        /// Most bytes of a name.
        max: usize,
        /// Bytes of the name that was given.
        got: usize,
    },
}

impl StoreError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            StoreError::Io { .. } => "store_io",
            StoreError::DiskFull { .. } => "disk_full",
            StoreError::Index(_) => "store_index",
            StoreError::Row { .. } => "store_row",
            StoreError::Busy { .. } => "store_busy",
            StoreError::Format { .. } => "store_format",
            StoreError::Quota { .. } => "quota_exceeded",
            StoreError::TooLarge { .. } => "blob_too_large",
            StoreError::Arriving { .. } => "blob_arriving",
            StoreError::Whole { .. } => "blob_whole",
            StoreError::Absent { .. } => "blob_absent",
            StoreError::Size { .. } => "blob_size",
            StoreError::OutboardNeeded { .. } => "outboard_needed",
            StoreError::Outboard(_) => "outboard_wrong",
            StoreError::TileList { .. } => "tile_list_wrong",
            StoreError::Tiles { .. } => "tiles_not_whole",
            StoreError::Incomplete { .. } => "tiles_missing",
            StoreError::Damaged { .. } => "blob_damaged",
            StoreError::Changed { .. } => "source_changed",
            StoreError::TagName { .. } => "tag_name",
        }
    }

    /// For `map_err`: what was tried with which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::DiskFull { path, source }
            }
            _ => StoreError::Io { doing, path, source },
        }
    }
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> StoreError {
        StoreError::Index(Box::new(error))
    }
}
