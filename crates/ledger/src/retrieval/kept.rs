//! The names of a roll in a file, so that whoever starts again does not read the whole log again.
//!
//! Invariant: the file is whole or not there. It is a memory of what the chain says: one that cannot be read, or was written for another chain or
//! deployment, is no error and begins anew.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::roll::{Names, Roll};
use crate::client::ClientError;
use crate::ledger::Ledger;

/// Most bytes of a file of names: some hundred thousand of them.
const NAMES_BYTES_MAX: u64 = 64 << 20;

/// Why names were not stored.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct KeptError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

impl KeptError {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        "names_not_stored"
    }
}

/// The file of one deployment on one chain.
async fn file(ledger: &Ledger, folder: &Path) -> Result<PathBuf, ClientError> {
    let genesis = ledger.client().genesis().await?;
    let (chain, directory) = (ledger.client().chain_id(), ledger.parts().directory);
    // Two chains may share an id.
    Ok(folder.join(format!("roll-{chain}-{genesis:x}-{directory:x}.json")))
}

fn read(path: &Path) -> Option<Names> {
    if std::fs::metadata(path).ok()?.len() > NAMES_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

impl Roll {
    /// Goes on where [`Roll::store`] left the names in `folder`, or begins.
    pub async fn open(ledger: Ledger, folder: &Path) -> Result<Roll, ClientError> {
        match read(&file(&ledger, folder).await?) {
            Some(names) => Roll::resume(ledger, names).await,
            None => Roll::begin(ledger).await,
        }
    }

    /// Stores the names in `folder`. Not flushed: what is lost is read from the chain again.
    pub async fn store(&self, folder: &Path) -> Result<Result<(), KeptError>, ClientError> {
        let path = file(self.ledger(), folder).await?;
        let bytes = serde_json::to_vec(self.names()).expect("names are texts, numbers and lists");
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let write = || {
            std::fs::create_dir_all(folder)?;
            File::create(&part)?.write_all(&bytes)?;
            std::fs::rename(&part, &path)
        };
        Ok(write().map_err(|source| KeptError { path, source }))
    }
}
