//! What an auditor must not forget: what it executed, what it committed to, and the records that it disputes.
//!
//! One file for each batch, replaced whole and flushed before anything that rests on it leaves: a salt is here before its commitment is sent, so that
//! whoever starts again can reveal; a record that does not stand is here before the journal says so, so that its dispute goes on. Records that stand are
//! not kept: prompts are nobody's business afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alloy_primitives::B256;
use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical as _;
use assay_core::id::{Hash, ReceiptId};
use serde::{Deserialize, Serialize};

use super::decide::BatchId;
use crate::execution::Verdict;
use crate::host::fetches::durable;

/// Most bytes of a journal: a panel's audits of one batch have less.
const JOURNAL_BYTES_MAX: u64 = 16 << 20;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error(
        "{path} is damaged; what was committed to for this batch cannot be revealed any more. Remove it to go on"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

impl JournalError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            JournalError::Io { .. } => "journal_io",
            JournalError::Damaged { .. } => "journal_damaged",
        }
    }
}

/// A receipt that was executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// The receipt.
    pub receipt: ReceiptId,
    /// The auditor's places on the panel to which it was assigned.
    pub members: Vec<u8>,
    /// Root of the trace; none if it cannot be executed.
    pub trace: Option<Hash>,
    /// What it came to.
    pub verdict: Verdict,
}

/// What was committed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitment {
    /// Root over the digests.
    pub root: B256,
    /// What keeps it secret until it is revealed.
    pub salt: B256,
}

/// The work on one batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// The beacon that drew it; none in what was written before anything was drawn.
    #[serde(default)]
    pub beacon: Option<B256>,
    /// What was drawn for this auditor, by sequence number the places on the panel; nothing as long as the provider has not told its leaves.
    pub drawn: Option<BTreeMap<u64, Vec<u8>>>,
    /// What was executed, by sequence number.
    pub done: BTreeMap<u64, Done>,
    /// What was committed to, by member.
    pub commitments: BTreeMap<u8, Commitment>,
    /// Receipts whose dispute was opened, or over: they are not disputed again.
    pub disputed: Vec<u64>,
    /// Demands that were made: sequence number, and whether it was for the record.
    pub demanded: Vec<(u64, bool)>,
}

impl Work {
    /// The same under a beacon. What was drawn and committed to under another one, which a reorganisation took away, says nothing of this one's draw.
    pub fn under(self, beacon: B256) -> Work {
        let own = self.beacon.is_none_or(|known| known == beacon);
        let work = if own { self } else { Work::default() };
        Work { beacon: Some(beacon), ..work }
    }
}

/// The folder of an auditor on one ledger.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// A journal in a folder, which is made if there is none.
    pub fn open(folder: PathBuf) -> Result<Journal, JournalError> {
        std::fs::create_dir_all(&folder)
            .map_err(|source| JournalError::Io { path: folder.clone(), source })?;
        Ok(Journal { folder })
    }

    fn path(&self, id: BatchId) -> PathBuf {
        self.folder.join(format!("{}-{:x}.json", id.epoch, id.provider))
    }

    fn record_path(&self, id: BatchId, sequence: u64) -> PathBuf {
        self.folder.join(format!("{}-{:x}-{sequence}.record", id.epoch, id.provider))
    }

    /// The work on a batch, as it was written last.
    pub fn read(&self, id: BatchId) -> Result<Work, JournalError> {
        let path = self.path(id);
        let Some(bytes) = bytes(&path, JOURNAL_BYTES_MAX)? else { return Ok(Work::default()) };
        serde_json::from_slice(&bytes).map_err(|_| JournalError::Damaged { path })
    }

    /// Writes it; it survives a crash when this returns.
    pub fn write(&self, id: BatchId, work: &Work) -> Result<(), JournalError> {
        let path = self.path(id);
        durable(&path, work).map_err(|source| JournalError::Io { path, source })
    }

    /// Keeps a record for its dispute; likewise.
    pub fn keep(&self, id: BatchId, sequence: u64, record: &AnswerRecord) -> Result<(), JournalError> {
        let path = self.record_path(id, sequence);
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            std::io::Write::write_all(&mut file, &record.to_canonical_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            std::fs::File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| JournalError::Io { path: path.clone(), source })
    }

    /// A record that was kept.
    pub fn kept(&self, id: BatchId, sequence: u64) -> Result<Option<AnswerRecord>, JournalError> {
        let path = self.record_path(id, sequence);
        let Some(bytes) = bytes(&path, assay_core::limits::CANONICAL_BYTES_MAX as u64)? else {
            return Ok(None);
        };
        AnswerRecord::from_canonical_bytes(&bytes).map(Some).map_err(|_| JournalError::Damaged { path })
    }

    /// All records that were kept.
    pub fn all_kept(&self) -> Result<Vec<AnswerRecord>, JournalError> {
        let io = |source| JournalError::Io { path: self.folder.clone(), source };
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|e| e == "record")
                && let Some(bytes) = bytes(&path, assay_core::limits::CANONICAL_BYTES_MAX as u64)?
                && let Ok(record) = AnswerRecord::from_canonical_bytes(&bytes)
            {
                all.push(record);
            }
        }
        Ok(all)
    }
}

fn bytes(path: &Path, most: u64) -> Result<Option<Vec<u8>>, JournalError> {
    let io = |source| JournalError::Io { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(found) if found.len() > most => Err(JournalError::Damaged { path: path.to_owned() }),
        Ok(_) => std::fs::read(path).map(Some).map_err(io),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(e)),
    }
}
