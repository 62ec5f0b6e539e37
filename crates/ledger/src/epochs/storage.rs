//! What can go wrong with the builder's files, and what to do then.

use std::io;

/// How to come by a file's content again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The journals hold it.
    Repair,
    /// The node's own store of receipts holds it.
    Rebuild,
    /// It is another's folder.
    OtherFolder,
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Remedy::Repair => "have the batch repaired from the journals, or restore the file from a copy",
            Remedy::Rebuild => {
                "restore the file from a copy, or append the receipts of the node's own store to an empty folder and seal each batch \
                 again with the first number and the count that the ledger has of it"
            }
            Remedy::OtherFolder => "open it with its own provider and ledger, or choose another folder",
        })
    }
}

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system refused.
    #[error("{file}: cannot {act}: {source}")]
    Disk {
        /// The file, or the folder.
        file: String,
        /// What was tried.
        act: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{file}: {what}; {remedy}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: Remedy,
    },
    /// An earlier write failed, so that nobody knows what is on the disk.
    #[error("an earlier write failed; open the folder again before anything else")]
    Stopped,
}

/// Names what the system was asked for.
pub(super) fn disk<T>(result: io::Result<T>, file: &str, act: &'static str) -> Result<T, StorageError> {
    result.map_err(|source| StorageError::Disk { file: file.to_owned(), act, source })
}

pub(super) fn damaged(file: &str, what: impl Into<String>, remedy: Remedy) -> StorageError {
    StorageError::Damaged { file: file.to_owned(), what: what.into(), remedy }
}
