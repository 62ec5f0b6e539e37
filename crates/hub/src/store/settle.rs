//! From a verified and flushed part to a whole blob: files get their good names, then the index has a row.
//!
//! The index says first that a blob settles. Every step may be done again, so that a crash between two of them is mended by doing
//! them all when the store is opened next.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::Inner;
use super::error::StoreError;
use super::folder::{metadata, remove, sync_folder};
use super::index::{BlobRow, Change, PartialRow, Stage};
use crate::blob::BlobHash;
use crate::outboard::outboard_bytes;

/// Brings a blob whose row says that it settles to its end.
pub(super) fn settle(inner: &Arc<Inner>, hash: BlobHash, row: &PartialRow) -> Result<(), StoreError> {
    let folder = &inner.folder;
    let (blob, outboard) = (folder.blob(hash), folder.outboard(hash));
    rename(&folder.partial_outboard(hash), &outboard)?;
    rename(&folder.partial_blob(hash), &blob)?;
    sync_folder(&folder.data())?;
    sync_folder(&folder.partial())?;
    let is_right = |path: &Path, expected: u64| -> Result<bool, StoreError> {
        Ok(metadata(path)?.is_some_and(|found| found.len() == expected))
    };
    let outboard_is_right = outboard_bytes(row.size) == 0 || is_right(&outboard, outboard_bytes(row.size))?;
    if !is_right(&blob, row.size)? || !outboard_is_right {
        let row = PartialRow { stage: Stage::Arriving, ..row.clone() };
        inner.index.commit(&[Change::PutPartial(hash, &row)])?;
        return Err(StoreError::Damaged { hash, what: "a file was taken away while it settled" });
    }
    let whole = BlobRow { size: row.size, runs: row.runs.clone() };
    inner.index.commit(&[Change::DropPartial(hash), Change::PutBlob(hash, &whole), Change::DropDonor(hash)])
}

/// Moves a file if it was not moved before.
fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    let Some(source) = metadata(from)? else { return Ok(()) };
    let same =
        metadata(to)?.is_some_and(|target| target.ino() == source.ino() && target.dev() == source.dev());
    // Renaming a file over another name of itself would leave both.
    if same { remove(from) } else { fs::rename(from, to).map_err(StoreError::io("rename", from)) }
}
