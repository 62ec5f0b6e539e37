//! Files and batches of one server: what is in the store, seen from memory.
//!
//! Everything is written under one lock, to the store first and to memory after it, on threads that may block. Reading
//! waits for nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assay_core::keccak::keccak256;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use super::{FileOptions, FileStore, StorageError};
use crate::batches::{Batch, results};
use crate::{Owner, Refusal};

const FILES: &str = "files";
const BATCHES: &str = "batches";

/// A file as it is described in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileObject {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) owner: Owner,
    pub(crate) bytes: u64,
    /// Nanoseconds since 1970.
    pub(crate) created_ns: u64,
    pub(crate) filename: String,
    pub(crate) purpose: String,
}

impl FileObject {
    pub(crate) fn view(&self) -> Value {
        json!({"id": self.id, "object": "file", "bytes": self.bytes, "created_at": self.created_ns / 1_000_000_000,
               "expires_at": null, "filename": self.filename, "purpose": self.purpose, "status": "processed",
               "status_details": null})
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
pub(crate) fn seconds() -> u64 {
    now_ns() / 1_000_000_000
}

/// Files and batches of one server.
pub(crate) struct Desk {
    pub(crate) store: Arc<dyn FileStore>,
    pub(crate) options: FileOptions,
    /// Silence after which an upload is given up.
    pub(crate) patience: Duration,
    pub(crate) uploads: Semaphore,
    files: Mutex<BTreeMap<String, FileObject>>,
    batches: Mutex<BTreeMap<String, Batch>>,
    /// Held by whoever writes.
    writing: Mutex<()>,
    /// Counts what the runner should look at.
    pub(crate) changes: watch::Sender<u64>,
    next: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn documents<T: DeserializeOwned>(
    store: &dyn FileStore,
    collection: &str,
) -> Result<BTreeMap<String, T>, StorageError> {
    let mut all = BTreeMap::new();
    for key in store.keys(collection)? {
        let Some(bytes) = store.get(collection, &key)? else { continue };
        let document = serde_json::from_slice(&bytes)
            .map_err(|e| StorageError { place: format!("{collection}/{key}"), reason: e.to_string() })?;
        all.insert(key, document);
    }
    Ok(all)
}

pub(crate) fn to_bytes<T: Serialize>(name: &str, document: &T) -> Result<Vec<u8>, StorageError> {
    serde_json::to_vec(document).map_err(|e| StorageError { place: name.to_owned(), reason: e.to_string() })
}

impl Desk {
    /// Reads what the store has, and removes what a crash left over.
    pub(crate) async fn open(
        store: Arc<dyn FileStore>,
        options: FileOptions,
        patience: Duration,
    ) -> Result<Arc<Desk>, Refusal> {
        let read = move || -> Result<Desk, StorageError> {
            let files: BTreeMap<String, FileObject> = documents(&*store, FILES)?;
            let batches: BTreeMap<String, Batch> = documents(&*store, BATCHES)?;
            for blob in store.blobs()? {
                if !files.contains_key(&blob) {
                    store.delete_blob(&blob)?;
                }
            }
            for batch in batches.values().filter(|b| !b.is_open()) {
                for key in store.keys(&results(&batch.id))? {
                    store.delete(&results(&batch.id), &key)?;
                }
            }
            Ok(Desk {
                store,
                options,
                patience,
                uploads: Semaphore::new(options.uploads_max),
                files: Mutex::new(files),
                batches: Mutex::new(batches),
                writing: Mutex::new(()),
                changes: watch::channel(0).0,
                next: AtomicU64::new(0),
            })
        };
        let desk = tokio::task::spawn_blocking(read).await;
        let desk = desk.map_err(|_| Refusal::Internal { message: "reading the file store failed".into() })?;
        Ok(Arc::new(desk?))
    }

    /// Runs what may block; it runs to its end even if nobody waits for it any more.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Desk>,
        work: impl FnOnce(&Desk) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let desk = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&desk)).await;
        done.map_err(|_| Refusal::Internal { message: "work on the file store was cut off".into() })?
    }

    /// An id that nothing has.
    pub(crate) fn fresh_id(&self, prefix: &str) -> String {
        let count = self.next.fetch_add(1, Relaxed);
        derived_id(prefix, &[&now_ns().to_be_bytes(), &count.to_be_bytes()])
    }

    /// All files of an account, the oldest first.
    pub(crate) fn files(&self, owner: &Owner) -> Vec<FileObject> {
        let files = lock(&self.files);
        let own = files.values().filter(|file| file.owner.account == owner.account);
        let mut all: Vec<FileObject> = own.cloned().collect();
        all.sort_by(|a, b| (a.created_ns, &a.id).cmp(&(b.created_ns, &b.id)));
        all
    }

    /// A file.
    pub(crate) fn file(&self, id: &str) -> Result<FileObject, Refusal> {
        let found = lock(&self.files).get(id).cloned();
        found.ok_or_else(|| Refusal::UnknownFile { asked: id.chars().take(80).collect() })
    }

    /// A file, if it is this account's: of others' nobody hears.
    pub(crate) fn file_of(&self, id: &str, owner: &Owner) -> Result<FileObject, Refusal> {
        let file = self.file(id)?;
        let unknown = || Refusal::UnknownFile { asked: id.chars().take(80).collect() };
        if file.owner.account == owner.account { Ok(file) } else { Err(unknown()) }
    }

    /// Stores a file of these parts. Blocks.
    pub(crate) fn put_file(
        &self,
        mut file: FileObject,
        parts: &mut dyn Iterator<Item = Result<Vec<u8>, StorageError>>,
    ) -> Result<FileObject, Refusal> {
        let mut bytes = 0usize;
        let mut counted = parts.inspect(|p| bytes = bytes.saturating_add(p.as_ref().map_or(0, Vec::len)));
        self.store.put_blob(&file.id, &mut counted)?;
        file.bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let _writing = lock(&self.writing);
        self.store.put(FILES, &file.id, &to_bytes(&file.id, &file)?)?;
        lock(&self.files).insert(file.id.clone(), file.clone());
        Ok(file)
    }

    /// Removes a file.
    pub(crate) async fn delete(self: &Arc<Desk>, id: &str, owner: Owner) -> Result<FileObject, Refusal> {
        let id = id.to_owned();
        self.blocking(move |d| {
            let _writing = lock(&d.writing);
            let file = d.file_of(&id, &owner)?;
            let reader = lock(&d.batches)
                .values()
                .find(|b| b.input_file_id == id && b.is_open())
                .map(|b| b.id.clone());
            if let Some(batch) = reader {
                let message = format!("{id} is the input of {batch}, which is not finished");
                return Err(Refusal::Invalid { param: "file_id".into(), message });
            }
            d.store.delete(FILES, &id)?;
            lock(&d.files).remove(&id);
            d.store.delete_blob(&id)?;
            Ok(file)
        })
        .await
    }

    /// All batches, the oldest first.
    pub(crate) fn batches(&self) -> Vec<Batch> {
        let mut all: Vec<Batch> = lock(&self.batches).values().cloned().collect();
        all.sort_by(|a, b| (a.created_ns, &a.id).cmp(&(b.created_ns, &b.id)));
        all
    }

    /// A batch.
    pub(crate) fn batch(&self, id: &str) -> Result<Batch, Refusal> {
        let found = lock(&self.batches).get(id).cloned();
        found.ok_or_else(|| Refusal::UnknownBatch { asked: id.chars().take(80).collect() })
    }

    /// A batch, if it is this account's.
    pub(crate) fn batch_of(&self, id: &str, owner: &Owner) -> Result<Batch, Refusal> {
        let batch = self.batch(id)?;
        let unknown = || Refusal::UnknownBatch { asked: id.chars().take(80).collect() };
        if batch.owner.account == owner.account { Ok(batch) } else { Err(unknown()) }
    }

    /// Stores a new batch, if its input is there.
    pub(crate) async fn add_batch(self: &Arc<Desk>, batch: Batch) -> Result<Batch, Refusal> {
        self.blocking(move |d| {
            let _writing = lock(&d.writing);
            let input = d.file_of(&batch.input_file_id, &batch.owner)?;
            if input.purpose != "batch" {
                let message = format!("{} was not uploaded with the purpose `batch`", input.id);
                return Err(Refusal::Invalid { param: "input_file_id".into(), message });
            }
            let theirs = |b: &&Batch| b.is_open() && b.owner.account == batch.owner.account;
            if lock(&d.batches).values().filter(theirs).count() >= d.options.open_batches_max {
                return Err(Refusal::Busy { retry_after_s: 60 });
            }
            d.store.put(BATCHES, &batch.id, &to_bytes(&batch.id, &batch)?)?;
            lock(&d.batches).insert(batch.id.clone(), batch.clone());
            d.changes.send_modify(|n| *n = n.wrapping_add(1));
            Ok(batch)
        })
        .await
    }

    /// Changes a batch; what `change` refuses stays as it was.
    pub(crate) async fn change_batch(
        self: &Arc<Desk>,
        id: &str,
        change: impl FnOnce(&mut Batch) -> Result<(), Refusal> + Send + 'static,
    ) -> Result<Batch, Refusal> {
        let id = id.to_owned();
        self.blocking(move |d| {
            let _writing = lock(&d.writing);
            let mut batch = d.batch(&id)?;
            change(&mut batch)?;
            d.store.put(BATCHES, &id, &to_bytes(&id, &batch)?)?;
            lock(&d.batches).insert(id, batch.clone());
            d.changes.send_modify(|n| *n = n.wrapping_add(1));
            Ok(batch)
        })
        .await
    }
}

/// An id that follows from these parts.
pub(crate) fn derived_id(prefix: &str, parts: &[&[u8]]) -> String {
    let mut all: Vec<&[u8]> = vec![b"assay/file-id/1", prefix.as_bytes()];
    all.extend_from_slice(parts);
    let hash = keccak256(&all).to_string();
    format!("{prefix}{}", hash.get(2..26).unwrap_or_default())
}
