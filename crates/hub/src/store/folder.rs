//! Where a store's files are, and how they get their names: whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::StoreError;
use crate::blob::BlobHash;

/// What the names of files begin with that have no good name yet; they are deleted when a store is opened.
const TEMPORARY: &str = ".new-";

/// The folder of a store.
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes what is missing of it, and deletes what was left half written.
    pub(crate) fn open(root: &Path) -> Result<Folder, StoreError> {
        let folder = Folder { root: root.to_owned() };
        for path in [folder.data(), folder.partial()] {
            fs::create_dir_all(&path).map_err(StoreError::io("make", &path))?;
        }
        sync_folder(root)?;
        Ok(folder)
    }

    /// Deletes what a crash left half written; only for who has the index locked.
    pub(crate) fn sweep(&self) -> Result<(), StoreError> {
        for path in [self.data(), self.partial()] {
            for name in names(&path)? {
                if name.starts_with(TEMPORARY) {
                    remove(&path.join(name))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// A blob's own bytes.
    pub(crate) fn blob(&self, hash: BlobHash) -> PathBuf {
        self.data().join(format!("{hash}.blob"))
    }

    pub(crate) fn outboard(&self, hash: BlobHash) -> PathBuf {
        self.data().join(format!("{hash}.outboard"))
    }

    pub(crate) fn tile_list(&self, hash: BlobHash) -> PathBuf {
        self.data().join(format!("{hash}.tiles"))
    }

    /// An arriving blob's own bytes.
    pub(crate) fn partial_blob(&self, hash: BlobHash) -> PathBuf {
        self.partial().join(format!("{hash}.blob"))
    }

    pub(crate) fn partial_outboard(&self, hash: BlobHash) -> PathBuf {
        self.partial().join(format!("{hash}.outboard"))
    }
}

/// The names in a folder that are text; others are none of ours.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let error = || StoreError::io("list", folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(error())? {
        if let Ok(name) = entry.map_err(error())?.file_name().into_string() {
            found.push(name);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("flush", folder))
}

/// Writes a file that is there with all of `bytes` or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let error = || StoreError::io("write", path);
    let mut file = temporary(folder).map_err(error())?;
    file.write_all(bytes).map_err(error())?;
    file.as_file().sync_all().map_err(error())?;
    file.persist(path).map_err(|failed| error()(failed.error))?;
    sync_folder(folder)
}

/// A file without a good name yet; it is deleted unless it is persisted.
pub(crate) fn temporary(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)
}

/// Whether a file has no good name yet.
pub(crate) fn is_temporary(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(TEMPORARY))
}

/// Deletes a file; it may be gone already.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("delete", path)(error)),
        _ => Ok(()),
    }
}

/// What is known of a file, if it is there.
pub(crate) fn metadata(path: &Path) -> Result<Option<fs::Metadata>, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("look at", path)(error)),
    }
}
