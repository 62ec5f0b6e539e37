//! Answers on disk: what `put` returned for is there after kill -9 and after a power cut.
//!
//! A disk that fails, as a full one does, fails those who wait; the database is opened again for whoever comes next ([`Lasting`]).
//! One writer thread commits whatever has gathered since its last commit, so that many answers share one flush.
//! Shutdown: 1. the last handle drops its sender; 2. the thread commits what is queued; 3. it is joined.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use alloy_sol_types::SolValue as _;
use assay_core::embedding::Record;
use assay_core::id::{ChannelId, ReceiptId};
use assay_hub::lasting::Lasting;
use assay_ledger::contracts::Channels::VoucherClaim;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};

const ANSWERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("answers");
/// Sequence to receipt id: newest last.
const ORDER: TableDefinition<'_, u64, &[u8; 32]> = TableDefinition::new("order");
/// Channel to what is owed from it, as the contract takes it (`VoucherClaim`, ABI encoded).
const CLAIMS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("claims");
const STATE: TableDefinition<'_, &str, u64> = TableDefinition::new("state");
const NEXT_SEQUENCE: &str = "next_sequence";

/// Sequence numbers set aside at once: as many may be lost to a crash, none is used twice. On a ledger a lost number is a leaf of its epoch, and who
/// has nothing at stake may post 4096 leaves an epoch: so few are set aside.
const SEQUENCE_BLOCK: u64 = 128;
/// Answers that wait for a commit.
const QUEUE: usize = 1024;
/// Answers of one commit.
const COMMIT_MAX: usize = 256;

/// Why an answer cannot be stored or found.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct StoreError {
    path: PathBuf,
    reason: String,
}

struct Put {
    id: ReceiptId,
    sequence: u64,
    bytes: Vec<u8>,
    claim: Option<(ChannelId, Vec<u8>)>,
    done: SyncSender<Result<(), StoreError>>,
}

#[derive(Debug)]
struct Sequences {
    next: u64,
    end: u64,
    /// Numbers that were given out and may still be signed.
    in_flight: BTreeSet<u64>,
}

/// A sequence number that was given out for one request. As long as it is held, its receipt may still be signed and stored; when it is dropped,
/// either the receipt is stored or there will never be one.
#[derive(Debug)]
pub struct Sequence {
    number: u64,
    sequences: Arc<Mutex<Sequences>>,
}

impl Sequence {
    /// The number.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.sequences.lock().unwrap_or_else(PoisonError::into_inner).in_flight.remove(&self.number);
    }
}

/// The store of one node.
pub struct ReceiptStore {
    path: PathBuf,
    database: Arc<Lasting>,
    sequences: Arc<Mutex<Sequences>>,
    queue: Option<SyncSender<Put>>,
    writer: Option<JoinHandle<()>>,
}

impl ReceiptStore {
    /// Opens the store in `path`, making it if there is none. One process at a time may hold it.
    pub fn open(path: &Path) -> Result<ReceiptStore, StoreError> {
        let fail = |reason: String| StoreError { path: path.to_owned(), reason };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| fail(e.to_string()))?;
        }
        let database = Database::create(path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => fail(
                "another node is using this data directory; stop it, or choose another with --data-dir"
                    .into(),
            ),
            other => fail(other.to_string()),
        })?;
        let start = |database: &Database| -> Result<u64, redb::Error> {
            let write = database.begin_write()?;
            write.open_table(ANSWERS)?;
            write.open_table(ORDER)?;
            write.open_table(CLAIMS)?;
            let next = write.open_table(STATE)?.get(NEXT_SEQUENCE)?.map_or(0, |v| v.value());
            write.commit()?;
            Ok(next)
        };
        let next = start(&database).map_err(|e| fail(e.to_string()))?;
        let database = Arc::new(Lasting::new(path, database, |path| Ok(Database::open(path)?)));
        let (queue, puts) = sync_channel(QUEUE);
        let writer = {
            let (database, path) = (Arc::clone(&database), path.to_owned());
            std::thread::Builder::new()
                .name("assay-receipts".into())
                .spawn(move || write_loop(&database, &path, &puts))
                .map_err(|e| fail(e.to_string()))?
        };
        let sequences = Arc::new(Mutex::new(Sequences { next, end: next, in_flight: BTreeSet::new() }));
        Ok(ReceiptStore {
            path: path.to_owned(),
            database,
            sequences,
            queue: Some(queue),
            writer: Some(writer),
        })
    }

    fn fail(&self, e: impl std::fmt::Display) -> StoreError {
        StoreError { path: self.path.clone(), reason: e.to_string() }
    }

    /// A number that this node has never used and never will again. Whoever has it keeps it until the receipt is stored.
    pub fn reserve_sequence(&self) -> Result<Sequence, StoreError> {
        let mut s = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        if s.next == s.end {
            let end = s.next + SEQUENCE_BLOCK;
            let set_aside = |database: &Database| -> Result<(), redb::Error> {
                let write = database.begin_write()?;
                write.open_table(STATE)?.insert(NEXT_SEQUENCE, end)?;
                write.commit()?;
                Ok(())
            };
            self.database.with(set_aside).map_err(|e| self.fail(e))?;
            s.end = end;
        }
        let number = s.next;
        s.next += 1;
        s.in_flight.insert(number);
        Ok(Sequence { number, sequences: Arc::clone(&self.sequences) })
    }

    /// Gives back numbers that were set aside and not given out, unless one is still in flight.
    fn give_back(&self) -> Result<(), redb::Error> {
        let s = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        if s.next == s.end || !s.in_flight.is_empty() {
            return Ok(());
        }
        self.database.with(|database| {
            let write = database.begin_write()?;
            write.open_table(STATE)?.insert(NEXT_SEQUENCE, s.next)?;
            Ok(write.commit()?)
        })
    }

    /// The least sequence number for which a receipt may still be stored. Every number below it has its receipt here, or never will.
    pub fn in_flight(&self) -> u64 {
        let s = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        s.in_flight.first().copied().unwrap_or(s.next)
    }

    /// Stores an answer; it is durable when this returns. Blocks for a flush of the disk.
    pub fn put(&self, record: &Record) -> Result<(), StoreError> {
        self.put_with(record, None)
    }

    /// Stores an answer and, in the same commit, what its channel owes from now on.
    pub fn put_paid(
        &self,
        record: &Record,
        channel: ChannelId,
        claim: &VoucherClaim,
    ) -> Result<(), StoreError> {
        self.put_with(record, Some((channel, claim.abi_encode())))
    }

    fn put_with(&self, record: &Record, claim: Option<(ChannelId, Vec<u8>)>) -> Result<(), StoreError> {
        let receipt = &record.receipt().receipt;
        let (done, result) = sync_channel(1);
        let bytes = record.to_canonical_bytes();
        let put = Put { id: receipt.id(), sequence: receipt.sequence, bytes, claim, done };
        let closed = || self.fail("the writer has stopped");
        self.queue.as_ref().ok_or_else(closed)?.send(put).map_err(|_| closed())?;
        result.recv().map_err(|_| closed())?
    }

    /// The answer of a receipt.
    pub fn get(&self, id: ReceiptId) -> Result<Option<Record>, StoreError> {
        let read = |database: &Database| -> Result<Option<Vec<u8>>, redb::Error> {
            let table = database.begin_read()?.open_table(ANSWERS)?;
            Ok(table.get(id.as_bytes())?.map(|v| v.value().to_vec()))
        };
        let bytes = self.database.with(read).map_err(|e| self.fail(e))?;
        bytes.map(|b| Record::from_canonical_bytes(&b)).transpose().map_err(|e| self.fail(e))
    }

    /// Ids of the newest answers.
    pub fn newest(&self, most: usize) -> Result<Vec<ReceiptId>, StoreError> {
        let read = |database: &Database| -> Result<Vec<ReceiptId>, redb::Error> {
            let table = database.begin_read()?.open_table(ORDER)?;
            let newest = table.iter()?.rev().take(most);
            newest.map(|entry| Ok(ReceiptId::from_bytes(*entry?.1.value()))).collect()
        };
        self.database.with(read).map_err(|e| self.fail(e))
    }

    /// What is owed from a channel, all in all, with the voucher that lets it be claimed.
    pub fn claim(&self, channel: ChannelId) -> Result<Option<VoucherClaim>, StoreError> {
        let read = |database: &Database| -> Result<Option<Vec<u8>>, redb::Error> {
            let table = database.begin_read()?.open_table(CLAIMS)?;
            Ok(table.get(channel.as_bytes())?.map(|v| v.value().to_vec()))
        };
        let bytes = self.database.with(read).map_err(|e| self.fail(e))?;
        bytes.map(|b| VoucherClaim::abi_decode(&b)).transpose().map_err(|e| self.fail(e))
    }

    /// What is owed from all channels, claimed or not: the ledger knows what was claimed.
    pub fn claims(&self) -> Result<Vec<VoucherClaim>, StoreError> {
        let read = |database: &Database| -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = database.begin_read()?.open_table(CLAIMS)?;
            table.iter()?.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        };
        let all = self.database.with(read).map_err(|e| self.fail(e))?;
        all.iter().map(|b| VoucherClaim::abi_decode(b).map_err(|e| self.fail(e))).collect()
    }

    /// Answers by rising sequence number from `first` on, at most so many.
    pub fn from_sequence(&self, first: u64, most: usize) -> Result<Vec<Record>, StoreError> {
        let read = |database: &Database| -> Result<Vec<Vec<u8>>, redb::Error> {
            let database = database.begin_read()?;
            let (order, answers) = (database.open_table(ORDER)?, database.open_table(ANSWERS)?);
            let mut found = Vec::new();
            for entry in order.range(first..)?.take(most) {
                if let Some(bytes) = answers.get(entry?.1.value())? {
                    found.push(bytes.value().to_vec());
                }
            }
            Ok(found)
        };
        let all = self.database.with(read).map_err(|e| self.fail(e))?;
        all.iter().map(|b| Record::from_canonical_bytes(b).map_err(|e| self.fail(e))).collect()
    }

    /// Number of answers.
    pub fn count(&self) -> Result<u64, StoreError> {
        let read = |database: &Database| -> Result<u64, redb::Error> {
            Ok(database.begin_read()?.open_table(ANSWERS)?.len()?)
        };
        self.database.with(read).map_err(|e| self.fail(e))
    }
}

impl Drop for ReceiptStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // The thread reports errors to those who wait; it has none of its own.
            let _ = writer.join();
        }
        if let Err(error) = self.give_back() {
            tracing::debug!(%error, "numbers that were set aside stay unused");
        }
    }
}

fn write_loop(database: &Lasting, path: &Path, puts: &Receiver<Put>) {
    while let Ok(first) = puts.recv() {
        let mut batch = vec![first];
        batch.extend(puts.try_iter().take(COMMIT_MAX - 1));
        let result = database
            .with(|database| commit(database, &batch))
            .map_err(|e| StoreError { path: path.to_owned(), reason: e.to_string() });
        for put in batch {
            // Whoever asked may be gone; the answer is stored all the same.
            let _ = put.done.send(result.clone());
        }
    }
}

fn commit(database: &Database, batch: &[Put]) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let (mut answers, mut order) = (write.open_table(ANSWERS)?, write.open_table(ORDER)?);
        let mut claims = write.open_table(CLAIMS)?;
        for put in batch {
            if let Some((channel, claim)) = &put.claim {
                claims.insert(channel.as_bytes(), claim.as_slice())?;
            }
            answers.insert(put.id.as_bytes(), put.bytes.as_slice())?;
            order.insert(put.sequence, put.id.as_bytes())?;
        }
    }
    write.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use assay_core::answer::{AnswerRecord, Format};
    use assay_core::consent::Consent;
    use assay_core::digest::ExecutionDigests;
    use assay_core::id::{
        ChannelId, DigestRoot, ModelRoot, NodeAddress, Nonce, SignatureBytes, TranscriptRoot,
    };
    use assay_core::receipt::{Domain, Receipt, SignedReceipt};
    use assay_core::request::{Prompt, Request, Sampling};
    use assay_core::transcript::{NonceSource, StopReason, Transcript};
    use assay_ledger::contracts::Channels::ChannelConfig;
    use assay_ledger::voucher;

    use super::*;

    fn record(sequence: u64) -> Record {
        let request = Request {
            model: ModelRoot::from_bytes([1; 32]),
            prompt: Prompt::Text(format!("prompt {sequence}")),
            sampling: Sampling::GREEDY,
            max_tokens: 1,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: None,
            audit: Consent::Given,
        };
        let receipt = Receipt {
            provider: NodeAddress::from_bytes([1; 20]),
            sequence,
            model_root: request.model,
            request_hash: request.hash(),
            transcript_root: TranscriptRoot::from_bytes([2; 32]),
            digest_root: DigestRoot::from_bytes([3; 32]),
            prompt_tokens: 1,
            completion_tokens: 1,
            fee_micro_usd: 0,
            payer_channel: ChannelId::ZERO,
            client_nonce: Nonce::ZERO,
            epoch: 0,
        };
        let signature = SignatureBytes::from_bytes([0; 65]);
        let transcript = Transcript {
            request_hash: request.hash(),
            nonce: Nonce::ZERO,
            nonce_source: NonceSource::Seed,
            prompt_ids: vec![1],
            output_ids: vec![2],
            text: "x".into(),
            stop: StopReason::Length,
            logprobs: vec![],
        };
        Record::Answer(Box::new(AnswerRecord {
            format: Format::V2,
            receipt: SignedReceipt { receipt, domain: Domain::DEVELOPMENT, signature },
            request,
            transcript,
            digests: ExecutionDigests(vec![]),
            generation: None,
        }))
    }

    #[test]
    fn answers_of_many_writers_are_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node/receipts.redb");
        let store = ReceiptStore::open(&path).unwrap();
        let ids: BTreeSet<ReceiptId> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8u64)
                .map(|w| {
                    let store = &store;
                    scope.spawn(move || {
                        let put = |i| {
                            let record = record(w * 100 + i);
                            store.put(&record).unwrap();
                            assert_eq!(
                                store.get(record.receipt().receipt.id()).unwrap(),
                                Some(record.clone())
                            );
                            record.receipt().receipt.id()
                        };
                        (0..20).map(put).collect::<Vec<_>>()
                    })
                })
                .collect();
            writers.into_iter().flat_map(|w| w.join().unwrap()).collect()
        });
        assert_eq!((ids.len(), store.count().unwrap()), (160, 160));
        drop(store);
        let store = ReceiptStore::open(&path).unwrap();
        assert!(ids.iter().all(|id| store.get(*id).unwrap().is_some()));
        let newest: Vec<ReceiptId> = (0..3).map(|i| record(719 - i).receipt().receipt.id()).collect();
        assert_eq!(store.newest(3).unwrap(), newest);
        assert_eq!(store.get(ReceiptId::from_bytes([9; 32])).unwrap(), None);
    }

    #[test]
    fn what_a_channel_owes_is_stored_with_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts.redb");
        let channel = ChannelId::from_bytes([5; 32]);
        let claim = |total| voucher::claim(&ChannelConfig::default(), 900, vec![7; 65], total);
        let store = ReceiptStore::open(&path).unwrap();
        assert_eq!(store.claim(channel).unwrap(), None);
        store.put(&record(0)).unwrap();
        for (sequence, total) in [(1, 100), (2, 250)] {
            store.put_paid(&record(sequence), channel, &claim(total)).unwrap();
        }
        drop(store);
        let store = ReceiptStore::open(&path).unwrap();
        assert_eq!(store.claim(channel).unwrap(), Some(claim(250)));
        assert_eq!(store.claims().unwrap(), vec![claim(250)]);
        assert_eq!(store.from_sequence(1, 9).unwrap(), vec![record(1), record(2)]);
        assert_eq!(store.from_sequence(0, 1).unwrap(), vec![record(0)]);
    }

    #[test]
    fn no_sequence_number_is_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts.redb");
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let store = ReceiptStore::open(&path).unwrap();
            for _ in 0..SEQUENCE_BLOCK + 10 {
                assert!(seen.insert(store.reserve_sequence().unwrap().number()));
            }
        }
        // Who stops in order leaves no gap.
        assert_eq!(seen.last().copied(), Some(3 * (SEQUENCE_BLOCK + 10) - 1));
    }

    #[test]
    fn the_least_number_that_may_be_signed_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts.redb");
        let store = ReceiptStore::open(&path).unwrap();
        assert_eq!(store.in_flight(), 0);
        let [first, second, third] = [(); 3].map(|()| store.reserve_sequence().unwrap());
        assert_eq!((store.in_flight(), third.number()), (0, 2));
        drop(second);
        assert_eq!(store.in_flight(), 0, "the first is still held");
        drop(first);
        assert_eq!(store.in_flight(), 2);
        drop(third);
        assert_eq!(store.in_flight(), 3);
        let held = store.reserve_sequence().unwrap();
        drop(store);
        // What was in flight when the process ended is signed by nobody any more.
        let store = ReceiptStore::open(&path).unwrap();
        assert_eq!(store.in_flight(), SEQUENCE_BLOCK);
        drop(held);
    }

    #[test]
    fn a_second_process_is_told_and_a_foreign_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts.redb");
        let first = ReceiptStore::open(&path).unwrap();
        let second = ReceiptStore::open(&path).err().unwrap();
        assert!(second.to_string().contains("--data-dir"));
        drop(first);
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        assert!(ReceiptStore::open(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 10_000], "it stays as it was");
    }
}
