//! The store: blobs on a disk, each verified before it has a name.
//!
//! ```text
//! index.redb              rows: blobs, donors, arrivals with their claims, tags
//! data/<hash>.blob        a blob's own bytes; holes where its tiles lie in other blobs' files
//! data/<hash>.outboard    the tree that verifies them
//! data/<hash>.tiles       the BLAKE3 of every tile alone, by which equal tiles of other blobs are found
//! partial/<hash>.*        a blob that arrives
//! ```
//!
//! A file has a good name only after everything in it was verified and flushed. kill -9 at any moment leaves whole blobs and parts
//! that can be resumed. Who wants a blob to stay gives it a tag; garbage collection deletes the others.
//!
//! Calls block; none is async. One process has a store open at a time. It never stores a byte that was not verified, and never
//! decides what to keep: tags come from others.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use crate::blob::BlobHash;

mod add;
mod arrival;
mod error;
mod file;
mod folder;
mod fsck;
mod gc;
mod index;
mod layout;
mod local;
mod materialise;
mod settle;
mod usage;
mod whole;

pub use arrival::{Arrival, Partial};
pub use error::StoreError;
pub use file::{Mapped, Segment, StoredFile};
pub use fsck::{Checked, Fsck, Problem};
pub use gc::{Collect, Collected};
pub use local::TILE_HASH_BYTES;
pub use materialise::Materialised;
pub use usage::{Quota, Usage, footprint};
pub use whole::Blob;

use index::{Change, Index, Stage};

/// Most bytes of a tag's name.
pub const TAG_BYTES_MAX: usize = 256;

/// Blobs in a folder; cheap to clone, for many threads.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

pub(crate) struct Inner {
    folder: folder::Folder,
    quota: Quota,
    index: Index,
    /// Held to change which files there are, shared to open files that rows name.
    structure: RwLock<()>,
    /// Held from looking at what is free until it is reserved.
    accounts: Mutex<()>,
    files: file::Files,
    arrivals: arrival::Arrivals,
}

impl Inner {
    fn read_structure(&self) -> RwLockReadGuard<'_, ()> {
        self.structure.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens a store, making it if there is none, and ends what a crash has interrupted.
    pub fn open(folder: &Path, quota: Quota) -> Result<Store, StoreError> {
        let files = folder::Folder::open(folder)?;
        let index = Index::open(&files.index(), folder)?;
        folder::sync_folder(folder)?;
        files.sweep()?;
        let inner = Arc::new(Inner {
            folder: files,
            quota,
            index,
            structure: RwLock::default(),
            accounts: Mutex::default(),
            files: file::Files::default(),
            arrivals: arrival::Arrivals::default(),
        });
        for (hash, row) in inner.index.partials()? {
            if row.stage == Stage::Settling {
                match settle::settle(&inner, hash, &row) {
                    Ok(()) => {}
                    // The blob is an arrival again, which is all that can be done for it here.
                    Err(StoreError::Damaged { .. }) => {
                        tracing::warn!(%hash, "a blob lost a file while it settled")
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Store(inner))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.folder.root()
    }

    /// A whole blob, if it is here.
    pub fn blob(&self, hash: BlobHash) -> Result<Option<Blob>, StoreError> {
        let _structure = self.0.read_structure();
        match self.0.index.blob(hash)? {
            Some(row) => Blob::open(&self.0, hash, row).map(Some),
            None => Ok(None),
        }
    }

    /// The names of all whole blobs, in order.
    pub fn blobs(&self) -> Result<Vec<BlobHash>, StoreError> {
        Ok(self.0.index.blobs()?.into_iter().map(|(hash, _)| hash).collect())
    }

    /// The blobs that are not whole, with their sizes, whether or not anybody writes them now.
    pub fn partials(&self) -> Result<Vec<(BlobHash, u64)>, StoreError> {
        Ok(self.0.index.partials()?.into_iter().map(|(hash, row)| (hash, row.size)).collect())
    }

    /// Begins or resumes the arrival of a blob and reserves room for all of it. There is one arrival of a blob at a time.
    pub fn arrive(&self, hash: BlobHash, size: u64) -> Result<Arrival, StoreError> {
        Arrival::begin(&self.0, hash, size)
    }

    /// A reader of a blob that is arriving now.
    pub fn arriving(&self, hash: BlobHash) -> Option<Partial> {
        Partial::of(&self.0, hash)
    }

    /// Adds a file: hashes it, takes over the tiles that other blobs have, copies the rest and verifies what it copies. `progress`
    /// hears bytes done and bytes in all, for hashing and then again for copying.
    pub fn add_file(&self, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Blob, StoreError> {
        add::add_file(self, path, progress)
    }

    /// Makes the tile list of a whole blob, if it has none: from then on others find its tiles.
    pub fn index(&self, hash: BlobHash) -> Result<(), StoreError> {
        local::index(self, hash)
    }

    /// Keeps a blob under a name, whether or not it is here yet. A name keeps one blob: the last it was given to.
    pub fn tag(&self, name: &str, hash: BlobHash) -> Result<(), StoreError> {
        if name.is_empty() || name.len() > TAG_BYTES_MAX {
            return Err(StoreError::TagName { max: TAG_BYTES_MAX, got: name.len() });
        }
        self.0.index.commit(&[Change::Tag(name, hash)])
    }

    /// Ends what a name keeps; a name that keeps nothing is no error.
    pub fn untag(&self, name: &str) -> Result<(), StoreError> {
        self.0.index.commit(&[Change::Untag(name)])
    }

    /// All tags, in order of their names.
    pub fn tags(&self) -> Result<Vec<(String, BlobHash)>, StoreError> {
        self.0.index.tags()
    }

    /// Deletes blobs that have no tag, arrivals that are not under way, have no tag and were not touched for so long
    /// ([`Duration::MAX`]: none), and what of other files no blob needs any more. What somebody has open stays. A dry run says
    /// exactly what would go, as long as nothing changes; only where the file system has no holes, less is freed.
    pub fn gc(&self, collect: Collect, partials_older_than: Duration) -> Result<Collected, StoreError> {
        gc::collect(self, collect, partials_older_than)
    }

    /// Reads everything and compares it with what the index says. `progress` hears bytes read and bytes in all.
    pub fn fsck(&self, act: Fsck, progress: &mut dyn FnMut(u64, u64)) -> Result<Checked, StoreError> {
        fsck::fsck(self, act, progress)
    }

    /// Makes a plain file of a blob, replacing what is at `path`: a link to the store's file if that is the blob's bytes in order
    /// and on the same file system, else a copy. The file must not be changed.
    pub fn materialise(&self, hash: BlobHash, path: &Path) -> Result<Materialised, StoreError> {
        materialise::materialise(self, hash, path)
    }

    /// What the store occupies, and what it may.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        self.0.usage()
    }
}
