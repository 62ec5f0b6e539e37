//! Files and documents of the API, in a folder: what a method returned for is there after kill -9 and after a power cut.
//!
//! Everything is written under a temporary name, flushed, renamed, and its folder flushed. Temporary names begin with a dot and
//! are removed when the store is opened. A name that could leave the folder is refused, whoever asks.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use assay_api::{FileStore, StorageError};
use tempfile::NamedTempFile;

/// Longest name of a blob, a collection or a document.
const NAME_BYTES_MAX: usize = 80;

/// A [`FileStore`] in a folder of its own.
#[derive(Debug)]
pub struct FolderStore {
    blobs: PathBuf,
    documents: PathBuf,
}

fn fail<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> StorageError + '_ {
    move |e| StorageError { place: path.display().to_string(), reason: e.to_string() }
}

/// The path of a name in a folder.
fn inside(folder: &Path, name: &str) -> Result<PathBuf, StorageError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(folder.join(name));
    }
    let place = folder.display().to_string();
    Err(StorageError { place, reason: format!("{name:?} is no name of a file") })
}

/// Makes renames and removals in a folder durable.
fn flush(folder: &Path) -> Result<(), StorageError> {
    // Other systems than Unix do not open folders, and order renames themselves.
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(fail(folder))?;
    }
    Ok(())
}

fn make(folder: &Path) -> Result<(), StorageError> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(fail(folder))?;
    folder.parent().map_or(Ok(()), flush)
}

fn write(
    path: &Path,
    parts: &mut dyn Iterator<Item = Result<Vec<u8>, StorageError>>,
) -> Result<(), StorageError> {
    let folder = path.parent().unwrap_or(path);
    let mut file = tempfile::Builder::new().prefix(".").tempfile_in(folder).map_err(fail(folder))?;
    for part in parts {
        file.write_all(&part?).map_err(fail(path))?;
    }
    file.as_file().sync_all().map_err(fail(path))?;
    let persisted: Result<File, _> = NamedTempFile::persist(file, path);
    persisted.map_err(|e| fail(path)(e.error))?;
    flush(folder)
}

fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(fail(path)(e)),
        Ok(()) => path.parent().map_or(Ok(()), flush),
    }
}

/// Names in a folder in rising order, temporary ones left out.
fn names(folder: &Path) -> Result<Vec<String>, StorageError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(fail(folder))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail(folder))?.file_name();
        all.extend(name.to_str().filter(|n| !n.starts_with('.')).map(str::to_owned));
    }
    all.sort();
    Ok(all)
}

/// Removes what was being written when the process ended.
fn sweep(folder: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(folder).map_err(fail(folder))? {
        let entry = entry.map_err(fail(folder))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

impl FolderStore {
    /// Opens the store in `folder`, making it if there is none. One process at a time may use it.
    pub fn open(folder: &Path) -> Result<FolderStore, StorageError> {
        let store = FolderStore { blobs: folder.join("blobs"), documents: folder.join("documents") };
        make(&store.blobs)?;
        make(&store.documents)?;
        sweep(&store.blobs)?;
        for collection in names(&store.documents)? {
            sweep(&store.documents.join(collection))?;
        }
        Ok(store)
    }

    fn document(&self, collection: &str, key: &str) -> Result<PathBuf, StorageError> {
        inside(&inside(&self.documents, collection)?, key)
    }
}

impl FileStore for FolderStore {
    fn put_blob(
        &self,
        name: &str,
        parts: &mut dyn Iterator<Item = Result<Vec<u8>, StorageError>>,
    ) -> Result<(), StorageError> {
        write(&inside(&self.blobs, name)?, parts)
    }

    fn read_blob(&self, name: &str, offset: u64, bytes_max: usize) -> Result<Vec<u8>, StorageError> {
        let path = inside(&self.blobs, name)?;
        let mut file = File::open(&path).map_err(fail(&path))?;
        file.seek(SeekFrom::Start(offset)).map_err(fail(&path))?;
        let mut piece = Vec::new();
        let most = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        file.take(most).read_to_end(&mut piece).map_err(fail(&path))?;
        Ok(piece)
    }

    fn delete_blob(&self, name: &str) -> Result<(), StorageError> {
        remove(&inside(&self.blobs, name)?)
    }

    fn blobs(&self) -> Result<Vec<String>, StorageError> {
        names(&self.blobs)
    }

    fn put(&self, collection: &str, key: &str, document: &[u8]) -> Result<(), StorageError> {
        let path = self.document(collection, key)?;
        path.parent().map_or(Ok(()), make)?;
        write(&path, &mut std::iter::once(Ok(document.to_vec())))
    }

    fn get(&self, collection: &str, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        let path = self.document(collection, key)?;
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(fail(&path)(e)),
        }
    }

    fn keys(&self, collection: &str) -> Result<Vec<String>, StorageError> {
        names(&inside(&self.documents, collection)?)
    }

    fn delete(&self, collection: &str, key: &str) -> Result<(), StorageError> {
        let path = self.document(collection, key)?;
        remove(&path)?;
        // A collection that is empty is none; one that is not stays.
        if let Some(folder) = path.parent() {
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }
}
