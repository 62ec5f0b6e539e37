//! A blob as a plain file, for programs that map files.
//!
//! A hard link costs nothing and shares pages with what the store serves; whoever changes such a file damages the blob. The store
//! punches no holes into a file while it has other links.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::error::StoreError;
use super::file::Segment;
use super::folder::{metadata, sync_folder, temporary};
use super::{Blob, Store};
use crate::blob::BlobHash;

/// Bytes that are read and written at a time where the system does not copy.
const COPY_BYTES: u64 = 1 << 20;

/// How a file was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Materialised {
    /// It is the store's own file under another name.
    Linked,
    /// It is a copy; where the file system can, it shares blocks with the store.
    Copied,
}

pub(super) fn materialise(store: &Store, hash: BlobHash, path: &Path) -> Result<Materialised, StoreError> {
    let blob = store.blob(hash)?.ok_or(StoreError::Absent { hash })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(StoreError::io("make", folder))?;
    let how = if blob.is_contiguous() && link(store, &blob, folder, path)? {
        Materialised::Linked
    } else {
        copy(&blob, folder, path)?;
        Materialised::Copied
    };
    sync_folder(folder)?;
    Ok(how)
}

/// Another name for the store's file; false if the file system of `path` is another one or has no links.
fn link(store: &Store, blob: &Blob, folder: &Path, path: &Path) -> Result<bool, StoreError> {
    let own = store.0.folder.blob(blob.hash());
    // Linked under a name that nobody else has, then renamed: who has the old file mapped keeps it.
    let free = temporary(folder).map_err(StoreError::io("write", path))?.into_temp_path();
    let name = free.to_path_buf();
    fs::remove_file(&name).map_err(StoreError::io("write", path))?;
    if fs::hard_link(&own, &name).is_err() {
        return Ok(false);
    }
    let renamed = fs::rename(&name, path).map_err(StoreError::io("write", path));
    // Renaming onto another name of the same file does nothing and leaves both.
    if metadata(&name)?.is_some() {
        fs::remove_file(&name).map_err(StoreError::io("write", path))?;
    }
    renamed.map(|()| true)
}

fn copy(blob: &Blob, folder: &Path, path: &Path) -> Result<(), StoreError> {
    let error = || StoreError::io("write", path);
    let mut file = temporary(folder).map_err(error())?;
    for segment in blob.segments(0..blob.size()) {
        copy_segment(&segment, file.as_file_mut()).map_err(error())?;
    }
    file.as_file().sync_all().map_err(error())?;
    file.persist(path).map_err(|failed| error()(failed.error))?;
    Ok(())
}

/// Appends a segment to a file.
fn copy_segment(segment: &Segment, to: &mut File) -> io::Result<()> {
    let mut done = 0;
    #[cfg(target_os = "linux")]
    while done < segment.len {
        let length = usize::try_from(segment.len - done).unwrap_or(usize::MAX).min(1 << 30);
        let mut from = segment.offset + done;
        // Where the system cannot copy between these files, or stops, reading and writing go on.
        match rustix::fs::copy_file_range(&**segment.file, Some(&mut from), &*to, None, length) {
            Ok(0) | Err(_) => break,
            Ok(copied) => done += copied as u64,
        }
    }
    let mut buffer = vec![0; COPY_BYTES.min(segment.len - done) as usize];
    while done < segment.len {
        let length = (segment.len - done).min(COPY_BYTES) as usize;
        segment.read_at(done, &mut buffer[..length])?;
        to.write_all(&buffer[..length])?;
        done += length as u64;
    }
    Ok(())
}
