//! Transactions that were signed and may not have been mined yet, one file each.
//!
//! Invariant: what was given to a node is in a file before. A file is whole or absent: it is written beside, flushed, and renamed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256, Bytes};
use serde::{Deserialize, Serialize};

/// Why the outbox cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error(
        "{path} is no outgoing transaction: {why}; if the chain knows nothing of it, move it away and try again"
    )]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Another process sends from the same account.
    #[error("another process sends with this key (it holds {path}); wait for it, or use another key")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
}

/// A transaction with every fee that it was signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outgoing {
    /// What it is for, in words.
    pub(super) purpose: String,
    pub(super) nonce: u64,
    pub(super) to: Option<Address>,
    pub(super) data: Bytes,
    pub(super) gas: u64,
    /// The signed forms, cheapest first. One of them is mined, or none.
    pub(super) attempts: Vec<Attempt>,
}

/// One signed form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attempt {
    pub(super) hash: B256,
    pub(super) raw: Bytes,
    pub(super) fee_max: u128,
    pub(super) tip: u128,
}

/// The files of one account on one chain.
#[derive(Debug)]
pub(super) struct Outbox {
    dir: PathBuf,
    waiting: BTreeMap<u64, Outgoing>,
    /// Held while this process sends.
    _lock: File,
}

impl Outbox {
    /// Opens the folder, made if it is not there, and reads what waits in it.
    pub(super) fn open(dir: &Path) -> Result<Outbox, OutboxError> {
        std::fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(|source| io(&path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(OutboxError::Busy { path }),
            Err(std::fs::TryLockError::Error(source)) => return Err(io(&path, source)),
        }
        let mut waiting = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(|source| io(dir, source))? {
            let path = entry.map_err(|source| io(dir, source))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(|source| io(&path, source))?;
            let malformed = |why: String| OutboxError::Malformed { path: path.clone(), why };
            let read: Outgoing = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
            if read.attempts.is_empty() {
                return Err(malformed("it was never signed".into()));
            }
            waiting.insert(read.nonce, read);
        }
        Ok(Outbox { dir: dir.to_owned(), waiting, _lock: lock })
    }

    /// What waits.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Outgoing> {
        self.waiting.values()
    }

    pub(super) fn get(&self, nonce: u64) -> Option<&Outgoing> {
        self.waiting.get(&nonce)
    }

    /// The nonce after the last that waits.
    pub(super) fn next(&self) -> Option<u64> {
        self.waiting.last_key_value().map(|(nonce, _)| nonce.saturating_add(1))
    }

    /// Writes a transaction. When this returns, it survives a crash.
    pub(super) fn put(&mut self, outgoing: Outgoing) -> Result<(), OutboxError> {
        let path = self.path(outgoing.nonce);
        let part = path.with_extension("part");
        let bytes = serde_json::to_vec(&outgoing).expect("strings and numbers are JSON");
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&part, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| io(&path, source))?;
        self.waiting.insert(outgoing.nonce, outgoing);
        Ok(())
    }

    /// Forgets a transaction that is mined for good, or can never be.
    pub(super) fn remove(&mut self, nonce: u64) -> Result<(), OutboxError> {
        let path = self.path(nonce);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(io(&path, source)),
            _ => {}
        }
        self.waiting.remove(&nonce);
        Ok(())
    }

    fn path(&self, nonce: u64) -> PathBuf {
        self.dir.join(format!("{nonce:020}.json"))
    }
}

fn io(path: &Path, source: std::io::Error) -> OutboxError {
    OutboxError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(nonce: u64) -> Outgoing {
        let raw = Bytes::from(vec![2; 9]);
        let attempt = Attempt { hash: B256::repeat_byte(7), raw, fee_max: u128::MAX, tip: 1 };
        Outgoing {
            purpose: "test".into(),
            nonce,
            to: None,
            data: Bytes::new(),
            gas: 21_000,
            attempts: vec![attempt],
        }
    }

    #[test]
    fn what_waits_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(dir.path()).unwrap();
        outbox.put(outgoing(3)).unwrap();
        outbox.put(outgoing(4)).unwrap();
        outbox.remove(3).unwrap();
        assert!(matches!(Outbox::open(dir.path()), Err(OutboxError::Busy { .. })));
        drop(outbox);
        // A crash while writing leaves a part, which is nothing.
        std::fs::write(dir.path().join("00000000000000000005.part"), b"{").unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        assert_eq!(outbox.waiting().collect::<Vec<_>>(), [&outgoing(4)]);
        assert_eq!(outbox.next(), Some(5));
    }

    #[test]
    fn other_files_are_refused_by_name() {
        for bytes in [b"{}".as_slice(), b"", b"[1]", b"\xff"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("00000000000000000000.json"), bytes).unwrap();
            let error = Outbox::open(dir.path()).unwrap_err();
            assert!(matches!(error, OutboxError::Malformed { .. }), "{error}");
        }
    }
}
