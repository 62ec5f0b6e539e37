//! What keeps a release: its artifact in the store under a tag, and the tree from which the ledger's questions are answered.
//!
//! A release has its tag only after its content root was computed from the bytes. One whose root is another is refused, and that is
//! remembered in a file: the blob's name says what its bytes are, so that no other copy of it would be right.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use tempfile::NamedTempFile;

use crate::blob::BlobHash;
use crate::content::{ChunkProof, ContentTree};
use crate::erasure::ShardSet;
use crate::release::Release;
use crate::store::{Blob, Store, StoreError};

/// Why a release is not kept, or a question not answered.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content is not what the release says.
    #[error("the content root of {blob} is not the one that the release names; publish the artifact again")]
    Content {
        /// Which blob.
        blob: BlobHash,
    },
    /// The store has not got it.
    #[error("{blob} is not in the store; fetch it again")]
    Absent {
        /// Which blob.
        blob: BlobHash,
    },
    /// A chunk that is not there.
    #[error("{blob} has {chunks} chunks, and not one numbered {chunk}")]
    Chunk {
        /// Which blob.
        blob: BlobHash,
        /// Which chunk.
        chunk: u64,
        /// How many there are.
        chunks: u64,
    },
    /// The bytes in the store are not the blob's.
    #[error("{blob} is damaged around chunk {chunk}; run `assay hub fsck --repair` and fetch it again")]
    Damaged {
        /// Which blob.
        blob: BlobHash,
        /// Which chunk.
        chunk: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeepError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            KeepError::Io { .. } => "keep_io",
            KeepError::Content { .. } => "content_root",
            KeepError::Absent { .. } => "blob_absent",
            KeepError::Chunk { .. } => "chunk_unknown",
            KeepError::Damaged { .. } => "blob_damaged",
            KeepError::Store(e) => e.code(),
        }
    }
}

/// The tag that keeps a release's artifact.
pub fn release_tag(release: &Release) -> String {
    format!("release/{}/{}@{}", release.publisher, release.name, release.version)
}

/// Which releases are kept, by the tags of one moment.
pub struct Kept {
    store: Store,
    tags: BTreeMap<String, BlobHash>,
}

impl Kept {
    /// Those of a store.
    pub fn of(store: &Store) -> Result<Kept, StoreError> {
        Ok(Kept { store: store.clone(), tags: store.tags()?.into_iter().collect() })
    }

    /// Whether the release's artifact is whole here and is what the release says.
    pub fn has(&self, release: &Release) -> bool {
        // A store that cannot be read keeps nothing that others could fetch.
        self.tags.get(&release_tag(release)) == Some(&release.blob)
            && self.store.blob(release.blob).is_ok_and(|found| found.is_some())
    }
}

/// The tag that keeps a shard of a set.
pub fn shard_tag(set: &ShardSet, index: u8) -> String {
    format!("shard/{}/{index}", set.blob())
}

impl Kept {
    /// Which shards of a set are kept.
    pub fn shards<'a>(&'a self, set: &'a ShardSet) -> impl Iterator<Item = u8> + 'a {
        (0..set.geometry().code().shards()).filter(|index| {
            let name = set.name(*index);
            self.tags.get(&shard_tag(set, *index)).copied() == name
                && name.is_some_and(|name| self.store.blob(name).is_ok_and(|found| found.is_some()))
        })
    }
}

/// Where it is remembered that a blob has not the content root and size that a release names.
fn refusal_path(store: &Store, release: &Release) -> PathBuf {
    let Release { blob, content_root, size, .. } = release;
    store.folder().join("content").join(format!("{blob}.not-{content_root}-{size}"))
}

/// Whether the release's artifact was here, and was not what the release says.
pub fn is_refused(store: &Store, release: &Release) -> bool {
    refusal_path(store, release).exists()
}

/// Where a blob's content tree is kept.
fn content_path(store: &Store, blob: BlobHash) -> PathBuf {
    store.folder().join("content").join(blob.to_string())
}

/// Proves that a chunk of a kept release is there, from the bytes themselves.
pub fn prove(store: &Store, release: &Release, chunk: u64) -> Result<ChunkProof, KeepError> {
    let hash = release.blob;
    let blob = store.blob(hash)?.ok_or(KeepError::Absent { blob: hash })?;
    let tree = keep(store, release, &blob)?;
    let range = tree.block_of(chunk).ok_or(KeepError::Chunk { blob: hash, chunk, chunks: tree.chunks() })?;
    let mut block = vec![0; usize::try_from(range.end - range.start).expect("a block fits memory")];
    blob.read_at(range.start, &mut block)
        .map_err(|source| KeepError::Io { path: store.folder().to_owned(), source })?;
    tree.prove(chunk, &block).ok_or(KeepError::Damaged { blob: hash, chunk })
}

/// Keeps a release's artifact that is whole in the store: makes its content tree, refuses it unless the tree's root is the one that
/// the release names, and tags it.
pub fn keep(store: &Store, release: &Release, blob: &Blob) -> Result<ContentTree, KeepError> {
    let path = content_path(store, blob.hash());
    let io = |source| KeepError::Io { path: path.clone(), source };
    let refused = || KeepError::Content { blob: blob.hash() };
    if is_refused(store, release) {
        return Err(refused());
    }
    let known = fs::read(&path).ok().and_then(|bytes| ContentTree::from_bytes(blob.size(), &bytes));
    let known = known.filter(|tree| tree.root() == release.content_root && blob.size() == release.size);
    let tree = match known {
        Some(tree) => tree,
        None => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let tree =
                ContentTree::of(blob.size(), threads, |at, out| blob.read_at(at, out), |_| ()).map_err(io)?;
            let folder = path.parent().expect("a content tree is in a folder");
            fs::create_dir_all(folder).map_err(io)?;
            if tree.root() != release.content_root || blob.size() != release.size {
                let refusal = refusal_path(store, release);
                fs::File::create(&refusal).map_err(|source| KeepError::Io { path: refusal, source })?;
                fs::File::open(folder).and_then(|f| f.sync_all()).map_err(io)?;
                return Err(refused());
            }
            let mut file = NamedTempFile::new_in(folder).map_err(io)?;
            file.write_all(&tree.to_bytes()).and_then(|()| file.as_file().sync_all()).map_err(io)?;
            file.persist(&path).map_err(|e| io(e.error))?;
            tree
        }
    };
    store.tag(&release_tag(release), blob.hash())?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use assay_core::merkle;

    use super::*;
    use crate::blob::CHUNK_BYTES;
    use crate::release::tests::{key, release};
    use crate::store::Quota;

    #[test]
    fn questions_are_answered_from_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), Quota::UNLIMITED).unwrap();
        let mut content = vec![7; 3 * CHUNK_BYTES as usize + 5];
        content[9_000] = 8;
        let file = folder.path().join("artifact");
        fs::write(&file, &content).unwrap();
        let leaves: Vec<_> = content.chunks(CHUNK_BYTES as usize).map(merkle::leaf).collect();
        let record = Release {
            blob: BlobHash::of(&content),
            size: content.len() as u64,
            content_root: merkle::root(leaves.iter().copied()),
            ..release(&key("author"))
        };
        assert_eq!(prove(&store, &record, 0).unwrap_err().code(), "blob_absent");
        let blob = store.add_file(&file, &mut |_, _| ()).unwrap();
        let other = Release { content_root: leaves[0], ..record.clone() };
        assert_eq!(keep(&store, &other, &blob).unwrap_err().code(), "content_root");
        // Before and after its tree is kept.
        for _ in 0..2 {
            for (at, chunk) in content.chunks(CHUNK_BYTES as usize).enumerate() {
                let proved = prove(&store, &record, at as u64).unwrap();
                assert_eq!(proved.chunk, chunk);
                assert_eq!(proved.proof, merkle::prove(&leaves, at).unwrap());
            }
        }
        assert_eq!(prove(&store, &record, 4).unwrap_err().code(), "chunk_unknown");
        assert_eq!(store.tags().unwrap(), [(release_tag(&record), blob.hash())]);
    }
}
