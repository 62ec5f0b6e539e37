//! The journals: every receipt that was appended, in the order in which it came.
//!
//! Invariant: what `append` returned for is durable. A record says where the group that it was flushed with begins, so that at opening what
//! was never acknowledged (a torn end, which is cut) is told from what was (damage, which is refused): everything before a group had
//! been flushed when the group was written. A sector is written whole, so that a bad record in one sector with a good one is damage too.

use std::collections::VecDeque;

use assay_core::id::Hash;

use super::disk::Disk;
use super::limits::{GROUP_MAX, JOURNAL_BYTES_MAX, JOURNAL_RECORDS, WINDOW_RECORDS, WINDOWS_MAX};
use super::record::{Fields, RECORD_BYTES, Record, checked, put_check};
use super::storage::{Remedy, StorageError, damaged, disk};

const PREFIX: &str = "journal-";
const TAG: &[u8; 16] = b"assay/journal/1\0";
/// A header is as long as a record.
const HEADER_BYTES: u64 = RECORD_BYTES as u64;
/// What a disk writes whole.
const SECTOR: u64 = 512;

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Journal {
    number: u64,
    /// How many records the journals before it have had.
    start: u64,
    count: u32,
    /// The largest sequence number in it.
    most: u64,
}

impl Journal {
    fn end(&self) -> u64 {
        self.start + u64::from(self.count)
    }
}

/// An end that was cut at opening: of receipts that were never acknowledged, unless a disk lost what it had flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub file: String,
    /// How many bytes were cut.
    pub bytes: u64,
}

/// All journals that are there.
#[derive(Debug)]
pub(super) struct Journals {
    /// Of provider and ledger: journals of others are refused.
    identity: Hash,
    files: Vec<Journal>,
    /// Number of the first one.
    first: u64,
}

fn name(number: u64) -> String {
    format!("{PREFIX}{number:010}")
}

/// The number that a file's name says.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

fn header(identity: &Hash, number: u64, start: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(RECORD_BYTES);
    out.extend_from_slice(TAG);
    out.extend_from_slice(identity.as_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&start.to_be_bytes());
    out.resize(RECORD_BYTES - 8, 0);
    put_check(&mut out, 0, TAG);
    out
}

/// Identity, number and start.
fn header_from(bytes: &[u8]) -> Option<(Hash, u64, u64)> {
    let mut fields = Fields(checked(bytes, TAG)?);
    let tag: [u8; 16] = fields.take()?;
    (tag == *TAG).then_some(())?;
    Some((Hash::from_bytes(fields.take()?), fields.number()?, fields.number()?))
}

/// Where a record begins.
fn place(index: u32) -> u64 {
    HEADER_BYTES + u64::from(index) * RECORD_BYTES as u64
}

/// The sector in which a record lies, if it is one.
fn sector(index: u32) -> Option<u64> {
    let (first, last) = (place(index) / SECTOR, (place(index) + RECORD_BYTES as u64 - 1) / SECTOR);
    (first == last).then_some(first)
}

/// The first thing in a journal that cannot be read.
#[derive(Clone, Copy, Debug)]
enum Bad {
    Header,
    Record(u32),
}

/// What a journal's bytes are, as far as they can be read.
struct Read {
    journal: Journal,
    /// The first thing that cannot be read, and how many bytes there are from it on.
    bad: Option<(Bad, u64)>,
}

impl Journals {
    /// Reads all journals from number `first` on and shows every record with its ordinal. Cuts the torn end of the last one.
    pub(super) fn replay<D: Disk>(
        on: &mut D,
        identity: Hash,
        first: u64,
        mut visit: impl FnMut(&Record, u64),
    ) -> Result<(Journals, Option<Torn>), StorageError> {
        let names = disk(on.names(), "the folder", "list")?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|n| number_of(n)).collect();
        numbers.sort_unstable();
        // Removed ones, of which a crash has left the files.
        for old in numbers.iter().filter(|n| **n < first) {
            disk(on.remove(&name(*old)), &name(*old), "remove")?;
        }
        numbers.retain(|n| *n >= first);
        let mut journals = Journals { identity, files: Vec::new(), first };
        let mut torn = None;
        for (expected, number) in (first..).zip(&numbers) {
            if *number != expected {
                return Err(damaged(&name(expected), "the file is missing", Remedy::Rebuild));
            }
            let last = numbers.last() == Some(number);
            let read = journals.read_file(on, *number, &mut visit)?;
            let file = name(*number);
            let cut = match read.bad {
                None => None,
                Some((bad, bytes)) if last && bytes <= HEADER_BYTES + (GROUP_MAX * RECORD_BYTES) as u64 => {
                    Some((bad, bytes))
                }
                Some((bad, _)) => return Err(damaged(&file, bad.to_string(), Remedy::Rebuild)),
            };
            if let Some((bad, bytes)) = cut {
                match bad {
                    Bad::Header => disk(on.remove(&file), &file, "remove")?,
                    Bad::Record(index) => disk(on.cut(&file, place(index)), &file, "cut")?,
                }
                torn = Some(Torn { file: file.clone(), bytes });
            }
            if !matches!(cut, Some((Bad::Header, _))) {
                journals.files.push(read.journal);
            }
        }
        // What a crash of the process left unflushed counts from now on, and so it must be durable.
        if let Some(last) = journals.files.last() {
            disk(on.flush(&name(last.number)), &name(last.number), "flush")?;
        }
        disk(on.flush_names(), "the folder", "flush")?;
        Ok((journals, torn))
    }

    /// Reads one journal, which follows those read before.
    fn read_file<D: Disk>(
        &self,
        on: &D,
        number: u64,
        visit: &mut impl FnMut(&Record, u64),
    ) -> Result<Read, StorageError> {
        let file = name(number);
        let size = disk(on.size(&file), &file, "measure")?;
        let wrong = |what: String, remedy| damaged(&file, what, remedy);
        if size > HEADER_BYTES + JOURNAL_BYTES_MAX {
            let what = format!("{size} bytes are more than a journal has");
            return Err(wrong(what, Remedy::Rebuild));
        }
        let mut bytes = vec![0; RECORD_BYTES];
        let head = if size < HEADER_BYTES {
            None
        } else {
            disk(on.read(&file, 0, &mut bytes), &file, "read")?;
            header_from(&bytes)
        };
        let mut journal = Journal { number, start: self.end(), count: 0, most: 0 };
        let mut bad = None;
        match head {
            Some((identity, ..)) if identity != self.identity => {
                return Err(wrong("it is of another provider or another ledger".into(), Remedy::OtherFolder));
            }
            Some((_, n, start)) => {
                let follows = n == number && (self.files.is_empty() || start == self.end());
                if !follows {
                    let what = format!(
                        "it says that it is journal {n} after {start} records, but it is journal {number} after {}",
                        self.end()
                    );
                    return Err(wrong(what, Remedy::Rebuild));
                }
                journal.start = start;
            }
            None => bad = Some((Bad::Header, size)),
        }
        let records = u32::try_from(size.saturating_sub(HEADER_BYTES) / RECORD_BYTES as u64).unwrap_or(0);
        let mut index = 0;
        while index < records {
            let many = (records - index).min(WINDOW_RECORDS);
            bytes.resize(many as usize * RECORD_BYTES, 0);
            disk(on.read(&file, place(index), &mut bytes), &file, "read")?;
            for (i, record) in (index..).zip(bytes.chunks_exact(RECORD_BYTES)) {
                match (Record::from_bytes(record), bad) {
                    (Some(record), None) => {
                        visit(&record, journal.start + u64::from(i));
                        journal.count = i + 1;
                        journal.most = journal.most.max(record.sequence);
                    }
                    (Some(record), Some((what, _))) => {
                        let acknowledged = match what {
                            Bad::Header => record.group > 0 || i == 0,
                            Bad::Record(b) => {
                                record.group > b || sector(b).is_some() && sector(b) == sector(i)
                            }
                        };
                        if acknowledged {
                            return Err(wrong(what.to_string(), Remedy::Rebuild));
                        }
                    }
                    (None, None) => bad = Some((Bad::Record(i), size - place(i))),
                    (None, Some(_)) => {}
                }
            }
            index += many;
        }
        let rest = size.saturating_sub(place(records));
        if bad.is_none() && rest > 0 {
            bad = Some((Bad::Record(records), rest));
        }
        Ok(Read { journal, bad })
    }

    /// How many records there have ever been.
    fn end(&self) -> u64 {
        self.files.last().map_or(0, Journal::end)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Writes receipts and waits until they are durable; returns the ordinal of the first. After an error nobody knows what is there.
    pub(super) fn append<D: Disk>(
        &mut self,
        on: &mut D,
        records: impl Iterator<Item = Record>,
    ) -> Result<u64, StorageError> {
        let start = self.end();
        let (mut journal, fresh) = match self.files.last() {
            Some(last) if last.count < JOURNAL_RECORDS => (*last, false),
            Some(full) => (Journal { number: full.number + 1, start, count: 0, most: 0 }, true),
            None => (Journal { number: self.first, start, count: 0, most: 0 }, true),
        };
        let mut bytes =
            if fresh { header(&self.identity, journal.number, journal.start) } else { Vec::new() };
        let group = journal.count;
        for record in records {
            Record { group, ..record }.put(&mut bytes);
            journal.count += 1;
            journal.most = journal.most.max(record.sequence);
        }
        let file = name(journal.number);
        disk(on.append(&file, &bytes), &file, "append to")?;
        disk(on.flush(&file), &file, "flush")?;
        if fresh {
            disk(on.flush_names(), "the folder", "flush")?;
            self.files.push(journal);
        } else if let Some(last) = self.files.last_mut() {
            *last = journal;
        }
        Ok(start)
    }

    fn locate(&self, ordinal: u64) -> Option<(&Journal, u32)> {
        let after = self.files.partition_point(|j| j.start <= ordinal);
        let journal = self.files.get(after.checked_sub(1)?)?;
        let index = u32::try_from(ordinal - journal.start).ok()?;
        (index < journal.count).then_some((journal, index))
    }

    /// How many journals from the first on hold nothing from the sequence number `end` on. The last one stays, whatever it holds.
    fn spent(&self, end: u64) -> usize {
        let all_but_last = self.files.len().saturating_sub(1);
        self.files.iter().take(all_but_last).take_while(|j| j.most < end).count()
    }

    /// Number of the first journal that is needed for sequence numbers from `end` on.
    pub(super) fn needed_from(&self, end: u64) -> u64 {
        self.first + self.spent(end) as u64
    }

    /// Removes the journals before number `first`; whoever calls has written down that it is the first.
    pub(super) fn remove_before<D: Disk>(&mut self, on: &mut D, first: u64) -> Result<(), StorageError> {
        while let Some(journal) = self.files.first().filter(|j| j.number < first) {
            disk(on.remove(&name(journal.number)), &name(journal.number), "remove")?;
            self.files.remove(0);
        }
        self.first = first;
        disk(on.flush_names(), "the folder", "flush")
    }
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Header => write!(f, "its header is damaged"),
            Bad::Record(index) => write!(f, "record {index}, at byte {}, is damaged", place(*index)),
        }
    }
}

/// Reads records by ordinal, a window at a time, keeping the last [`WINDOWS_MAX`].
#[derive(Debug, Default)]
pub(super) struct Windows {
    /// By the journal's number and the index of the window's first record; most recently used last.
    kept: VecDeque<((u64, u32), Vec<u8>)>,
}

impl Windows {
    pub(super) fn record<D: Disk>(
        &mut self,
        journals: &Journals,
        on: &D,
        sequence: u64,
        ordinal: u64,
    ) -> Result<Record, StorageError> {
        let lost =
            || damaged("the journals", format!("no record has the ordinal {ordinal}"), Remedy::Rebuild);
        let (journal, index) = journals.locate(ordinal).ok_or_else(lost)?;
        let file = name(journal.number);
        let first = index - index % WINDOW_RECORDS;
        let key = (journal.number, first);
        if self.kept.back().is_none_or(|(k, _)| *k != key) {
            let found = self.kept.iter().position(|(k, _)| *k == key).and_then(|i| self.kept.remove(i));
            let window = match found {
                Some(window) => window,
                None => {
                    if self.kept.len() >= WINDOWS_MAX {
                        self.kept.pop_front();
                    }
                    let many = (journal.count - first).min(WINDOW_RECORDS) as usize;
                    let mut bytes = vec![0; many * RECORD_BYTES];
                    disk(on.read(&file, place(first), &mut bytes), &file, "read")?;
                    (key, bytes)
                }
            };
            self.kept.push_back(window);
        }
        let at = (index - first) as usize * RECORD_BYTES;
        let bytes = self.kept.back().and_then(|(_, bytes)| bytes.get(at..at + RECORD_BYTES));
        let record = bytes.and_then(Record::from_bytes).filter(|r| r.sequence == sequence);
        record.ok_or_else(|| damaged(&file, Bad::Record(index).to_string(), Remedy::Rebuild))
    }
}
