//! What a publisher on this machine hands to the store: an artifact and the records that name it, left in a folder that whoever has
//! the store open takes in. A running host has it open; without one, the publisher itself takes it in.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use assay_core::id::Hash;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::blob::BlobHash;
use crate::catalogue::{Catalogue, CatalogueError};
use crate::cut::Cut;
use crate::keeping::{KeepError, keep, shard_tag};
use crate::release::{LabelRecord, RECORD_JSON_BYTES_MAX, Release, Signed};
use crate::store::{Store, StoreError};

/// Most parcels that are taken in at once; the rest waits.
pub const PARCELS_MAX: usize = 64;

/// Why a parcel was not taken in, or not left.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds no records.
    #[error("{path} holds no parcel: {reason}; remove it, and publish again")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is not the artifact that the release names.
    #[error("{path} is blob {got}, and the release names {expected}; publish the artifact again")]
    Artifact {
        /// Which file.
        path: PathBuf,
        /// What the release names.
        expected: BlobHash,
        /// What the file is.
        got: BlobHash,
    },
    /// It cannot be kept.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The store refused it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalogue refused it.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl InboxError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            InboxError::Io { .. } => "inbox_io",
            InboxError::Malformed { .. } => "inbox_malformed",
            InboxError::Artifact { .. } => "inbox_artifact",
            InboxError::Keep(e) => e.code(),
            InboxError::Store(e) => e.code(),
            InboxError::Catalogue(e) => e.code(),
        }
    }
}

/// A release with its artifact and where its label goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parcel {
    /// The release.
    pub release: Signed<Release>,
    /// A label that shall stand for it.
    pub label: Option<Signed<LabelRecord>>,
    /// The artifact's file.
    pub artifact: PathBuf,
    /// How it was cut, if it is to be kept in shards. They lie in the inbox ([`Inbox::shards`]) under their names.
    #[serde(default)]
    pub cut: Option<Signed<Cut>>,
}

/// A folder of parcels.
#[derive(Clone, Debug)]
pub struct Inbox {
    folder: PathBuf,
}

impl Inbox {
    /// The inbox in `folder`, which is made when something is left there.
    pub fn at(folder: &Path) -> Inbox {
        Inbox { folder: folder.to_owned() }
    }

    /// Where the shards of a release lie until its parcel is taken in, which removes the folder.
    pub fn shards(&self, release: Hash) -> PathBuf {
        self.folder.join(format!("shards-{release}"))
    }

    /// Leaves a parcel; it is durable on return. The artifact must stay where it is until the parcel is taken in.
    pub fn leave(&self, parcel: &Parcel) -> Result<(), InboxError> {
        let io = |source| InboxError::Io { path: self.folder.clone(), source };
        fs::create_dir_all(&self.folder).map_err(io)?;
        let mut file = NamedTempFile::new_in(&self.folder).map_err(io)?;
        serde_json::to_writer(&mut file, parcel).map_err(|e| io(e.into()))?;
        file.flush().and_then(|()| file.as_file().sync_all()).map_err(io)?;
        file.persist(self.folder.join(format!("{}.json", parcel.release.id()))).map_err(|e| io(e.error))?;
        File::open(&self.folder).and_then(|f| f.sync_all()).map_err(io)
    }

    /// Parcels that wait, by name.
    pub fn waiting(&self) -> Result<Vec<PathBuf>, InboxError> {
        let io = |source| InboxError::Io { path: self.folder.clone(), source };
        if !self.folder.exists() {
            return Ok(vec![]);
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|e| e == "json") {
                found.push(path);
            }
        }
        found.sort();
        found.truncate(PARCELS_MAX);
        Ok(found)
    }

    /// Takes a parcel in: the artifact into the store under the release's tag, the records into the catalogue. May be repeated after a
    /// crash at any step. The parcel is gone when everything is durable.
    pub fn take(
        &self,
        path: &Path,
        store: &Store,
        catalogue: &Arc<Catalogue>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Signed<Release>, InboxError> {
        let io = |source| InboxError::Io { path: path.to_owned(), source };
        let malformed = |reason: String| InboxError::Malformed { path: path.to_owned(), reason };
        let length = fs::metadata(path).map_err(io)?.len();
        if length > 2 * RECORD_JSON_BYTES_MAX as u64 {
            return Err(malformed(format!("{length} bytes are too many")));
        }
        let bytes = fs::read(path).map_err(io)?;
        let parcel: Parcel = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        let release = parcel.release.verified().map_err(|e| malformed(e.to_string()))?;
        let expected = release.record.blob;
        let blob = match store.blob(expected)? {
            Some(blob) => blob,
            None => store.add_file(&parcel.artifact, progress)?,
        };
        if blob.hash() != expected {
            return Err(InboxError::Artifact { path: parcel.artifact, expected, got: blob.hash() });
        }
        keep(store, &release.record, &blob)?;
        catalogue.add(release.clone())?;
        if let Some(cut) = parcel.cut {
            let (set, folder) = (cut.record.set.clone(), self.shards(release.id()));
            catalogue.add_cut(cut)?;
            for index in 0..set.geometry().code().shards() {
                let expected = set.name(index).expect("an index of the set");
                let file = folder.join(expected.to_string());
                let shard = match store.blob(expected)? {
                    Some(shard) => shard,
                    None => store.add_file(&file, &mut |_, _| ())?,
                };
                if shard.hash() != expected {
                    return Err(InboxError::Artifact { path: file, expected, got: shard.hash() });
                }
                store.tag(&shard_tag(&set, index), expected)?;
            }
            fs::remove_dir_all(&folder).or_else(|e| match e.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(io(e)),
            })?;
        }
        if let Some(label) = parcel.label {
            catalogue.move_label(label)?;
        }
        fs::remove_file(path).map_err(io)?;
        Ok(release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::CHUNK_BYTES;
    use crate::keeping::release_tag;
    use crate::release::tests::{key, release};
    use crate::store::Quota;

    struct Shop {
        folder: tempfile::TempDir,
        store: Store,
        catalogue: Arc<Catalogue>,
        inbox: Inbox,
    }

    fn shop() -> Shop {
        let folder = tempfile::tempdir().unwrap();
        Shop {
            store: Store::open(&folder.path().join("store"), Quota::UNLIMITED).unwrap(),
            catalogue: Arc::new(Catalogue::open(&folder.path().join("records")).unwrap()),
            inbox: Inbox::at(&folder.path().join("inbox")),
            folder,
        }
    }

    fn parcel(shop: &Shop, content: &[u8]) -> Parcel {
        let artifact = shop.folder.path().join("artifact");
        fs::write(&artifact, content).unwrap();
        let author = key("author");
        let leaves = content.chunks(CHUNK_BYTES as usize).map(assay_core::merkle::leaf);
        let record = Release {
            blob: BlobHash::of(content),
            size: content.len() as u64,
            content_root: assay_core::merkle::root(leaves),
            ..release(&author)
        };
        Parcel { release: Signed::by(&author, record).unwrap(), label: None, artifact, cut: None }
    }

    impl Shop {
        fn take(&self) -> Result<Signed<Release>, InboxError> {
            let waiting = self.inbox.waiting().unwrap();
            self.inbox.take(&waiting[0], &self.store, &self.catalogue, &mut |_, _| ())
        }
    }

    #[test]
    fn a_parcel_is_taken_in_once() {
        let shop = shop();
        let parcel = parcel(&shop, &[3; 20_000]);
        shop.inbox.leave(&parcel).unwrap();
        shop.inbox.leave(&parcel).unwrap();
        assert_eq!(shop.take().unwrap(), parcel.release);
        assert!(shop.inbox.waiting().unwrap().is_empty());
        assert_eq!(shop.catalogue.releases(), std::slice::from_ref(&parcel.release));
        let tag = (release_tag(&parcel.release.record), parcel.release.record.blob);
        assert_eq!(shop.store.tags().unwrap(), [tag]);
        // A crash before the parcel was removed: taking it again changes nothing.
        shop.inbox.leave(&parcel).unwrap();
        shop.take().unwrap();
        assert_eq!(shop.catalogue.releases().len(), 1);
    }

    #[test]
    fn what_is_not_the_release_is_not_taken() {
        let shop = shop();
        let mut wrong = parcel(&shop, &[3; 20_000]);
        fs::write(&wrong.artifact, b"something else").unwrap();
        shop.inbox.leave(&wrong).unwrap();
        assert_eq!(shop.take().unwrap_err().code(), "inbox_artifact");
        assert!(shop.catalogue.releases().is_empty());
        fs::write(&wrong.artifact, [3; 20_000]).unwrap();
        let mut record = wrong.release.record.clone();
        record.content_root = assay_core::id::Hash::ZERO;
        wrong.release = Signed::by(&key("author"), record).unwrap();
        fs::remove_dir_all(shop.folder.path().join("inbox")).unwrap();
        shop.inbox.leave(&wrong).unwrap();
        assert_eq!(shop.take().unwrap_err().code(), "content_root");
        fs::write(&shop.inbox.waiting().unwrap()[0], b"{}").unwrap();
        assert_eq!(shop.take().unwrap_err().code(), "inbox_malformed");
        assert!(shop.catalogue.releases().is_empty());
    }
}
