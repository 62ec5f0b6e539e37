//! Shards that are fetched, cut of a whole blob, or made of others, and blobs that are restored of them.
//!
//! What comes out is in the store under its own name, which was computed from its bytes; nothing keeps it until somebody tags it. Shards
//! that were fetched on the way stay in the store, so that another try need not fetch them again, until garbage collection takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use crate::blob::BlobHash;
use crate::erasure::{RestoreError, ShardSet, cut_one, repair, restore};
use crate::fetch::{FetchError, FetchOptions, fetch};
use crate::peer::{Dialer, PeerAddress};
use crate::store::{Blob, Store, StoreError};

/// Who has which shard.
pub type Sources = BTreeMap<u8, Vec<PeerAddress>>;

/// Why a blob or a shard was not made.
#[derive(Debug, thiserror::Error)]
pub enum ColdError {
    /// Too few shards could be fetched.
    #[error("{got} of {needed} shards came{}; any {needed} restore the blob, name more hosts", last.as_ref().map(|e| format!(" ({e})")).unwrap_or_default())]
    TooFew {
        /// How many are needed.
        needed: u8,
        /// How many there are.
        got: usize,
        /// Why one did not come.
        last: Option<Box<FetchError>>,
    },
    /// They could not be joined.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob to cut is not there.
    #[error("{blob} is not in the store; fetch it first")]
    Absent {
        /// Which blob.
        blob: BlobHash,
    },
    /// A folder cannot be made.
    #[error("{path}: {source}")]
    Io {
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ColdError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ColdError::TooFew { .. } => "shards_too_few",
            ColdError::Restore(e) => e.code(),
            ColdError::Store(e) => e.code(),
            ColdError::Absent { .. } => "blob_absent",
            ColdError::Io { .. } => "cold_io",
        }
    }
}

/// Where shards go and how they come.
#[derive(Clone, Copy)]
pub struct Cold<'a> {
    /// Where they go.
    pub store: &'a Store,
    /// How hosts are reached.
    pub dialer: &'a Dialer,
    /// How they are fetched.
    pub options: &'a FetchOptions,
}

/// Hears bytes that came, and bytes that are needed.
pub type Heard<'a> = dyn Fn(u64, u64) + Sync + 'a;

impl Cold<'_> {
    /// Restores the blob of `set` from shards of `sources`.
    pub async fn restore(
        &self,
        set: &ShardSet,
        sources: &Sources,
        heard: &Heard<'_>,
    ) -> Result<Blob, ColdError> {
        let have = self.gather(set, sources, None, heard).await?;
        self.make(set, have, restore).await
    }

    /// Makes shard `index` of others.
    pub async fn repair(
        &self,
        set: &ShardSet,
        index: u8,
        sources: &Sources,
        heard: &Heard<'_>,
    ) -> Result<Blob, ColdError> {
        let have = self.gather(set, sources, Some(index), heard).await?;
        self.make(set, have, move |set, shards, target| repair(set, index, shards, target)).await
    }

    /// Cuts shard `index` of the blob, which is in the store.
    pub async fn cut(&self, set: &ShardSet, index: u8) -> Result<Blob, ColdError> {
        let whole = set.blob();
        self.make_in(set, move |store, set, folder| {
            let source = folder.join("whole");
            if store.blob(whole)?.is_none() {
                return Err(ColdError::Absent { blob: whole });
            }
            store.materialise(whole, &source)?;
            Ok(cut_one(set, index, &source, &folder.join("made"))?)
        })
        .await
    }

    /// As many shards as are needed, data shards first, fetched at the same time.
    async fn gather(
        &self,
        set: &ShardSet,
        sources: &Sources,
        without: Option<u8>,
        heard: &Heard<'_>,
    ) -> Result<BTreeSet<u8>, ColdError> {
        let code = set.geometry().code();
        let (needed, bytes) = (usize::from(code.needed()), set.geometry().shard_bytes());
        let mut have = BTreeSet::new();
        for index in (0..code.shards()).filter(|index| Some(*index) != without) {
            let Some(name) = set.name(index) else { continue };
            if have.len() < needed && self.store.blob(name)?.is_some() {
                have.insert(index);
            }
        }
        let came =
            std::sync::Mutex::new(have.iter().map(|index| (*index, bytes)).collect::<BTreeMap<_, _>>());
        let one = |index: u8, peers: Vec<PeerAddress>| {
            let (came, name) = (&came, set.name(index));
            async move {
                let name = name.expect("only indices of the set are asked for");
                let mut progress = |p: crate::fetch::Progress| {
                    let mut came = came.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    came.insert(index, p.verified);
                    heard(came.values().sum(), bytes * needed as u64);
                };
                let fetched =
                    fetch(self.store, name, Some(bytes), &peers, self.dialer, self.options, &mut progress);
                fetched.await.map(|_| index)
            }
        };
        let mut others: Vec<(u8, Vec<PeerAddress>)> = sources
            .iter()
            .filter(|(i, peers)| {
                **i < code.shards() && Some(**i) != without && !have.contains(i) && !peers.is_empty()
            })
            .map(|(i, peers)| (*i, peers.clone()))
            .collect();
        others.reverse();
        let mut last = None;
        while have.len() < needed {
            let wave: Vec<_> = std::iter::from_fn(|| others.pop()).take(needed - have.len()).collect();
            if wave.is_empty() {
                return Err(ColdError::TooFew { needed: code.needed(), got: have.len(), last });
            }
            for done in join_all(wave.into_iter().map(|(index, peers)| one(index, peers))).await {
                match done {
                    Ok(index) => drop(have.insert(index)),
                    Err(e) => last = Some(Box::new(e)),
                }
            }
        }
        Ok(have)
    }

    async fn make(
        &self,
        set: &ShardSet,
        have: BTreeSet<u8>,
        make: impl FnOnce(&ShardSet, &[(u8, PathBuf)], &Path) -> Result<(), RestoreError> + Send + 'static,
    ) -> Result<Blob, ColdError> {
        self.make_in(set, move |store, set, folder| {
            let mut shards = Vec::new();
            for index in have {
                let name = set.name(index).ok_or(RestoreError::Index { index, shards: index })?;
                let path = folder.join(index.to_string());
                store.materialise(name, &path)?;
                shards.push((index, path));
            }
            Ok(make(set, &shards, &folder.join("made"))?)
        })
        .await
    }

    /// Makes a file `made` in a folder of its own and adds it to the store.
    async fn make_in(
        &self,
        set: &ShardSet,
        make: impl FnOnce(&Store, &ShardSet, &Path) -> Result<(), ColdError> + Send + 'static,
    ) -> Result<Blob, ColdError> {
        let (store, set) = (self.store.clone(), set.clone());
        let work = tokio::task::spawn_blocking(move || {
            let below = store.folder().join("cold");
            let io = |source| ColdError::Io { path: below.clone(), source };
            std::fs::create_dir_all(&below).map_err(io)?;
            // It goes away with the value; what a crash leaves is swept when a host begins.
            let folder = tempfile::tempdir_in(&below).map_err(io)?;
            make(&store, &set, folder.path())?;
            Ok(store.add_file(&folder.path().join("made"), &mut |_, _| ())?)
        });
        work.await.expect("making shards does not panic")
    }
}

/// Removes what a crash left of shards in the making. Only for who has the store for itself and makes none now.
pub fn sweep(store: &Store) -> io::Result<()> {
    match std::fs::remove_dir_all(store.folder().join("cold")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
