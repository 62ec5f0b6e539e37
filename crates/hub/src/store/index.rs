//! The store's index: one redb file with a row for every blob, donor, arrival and tag.
//!
//! Every commit is durable when it returns and changes all it lists or nothing. Rows say what the files must hold; they never hold
//! a blob's bytes.

use std::panic::catch_unwind;
use std::path::Path;

use borsh::{BorshDeserialize, BorshSerialize};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::error::StoreError;
use super::layout::Run;
use crate::blob::BlobHash;
use crate::lasting::Lasting;
use crate::tile_set::TileSet;

/// The format of the folder.
const FORMAT: u64 = 1;
/// Words of a page of claims: 4 KiB, which are 32 768 tiles.
const PAGE_WORDS: usize = 512;
/// Memory that the index may use to cache its file.
const CACHE_BYTES: usize = 32 << 20;

const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");
const BLOBS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("blobs");
const DONORS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("donors");
const PARTIALS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("partials");
const CLAIMS: TableDefinition<(&[u8; 32], u64), &[u8]> = TableDefinition::new("claims");
const TAGS: TableDefinition<&str, &[u8; 32]> = TableDefinition::new("tags");

/// A whole blob.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct BlobRow {
    pub(crate) size: u64,
    pub(crate) runs: Vec<Run>,
}

/// A blob that is no longer kept, whose file still holds tiles of others.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct DonorRow {
    pub(crate) size: u64,
    /// First tile and count of what the file holds, in order.
    pub(crate) held: Vec<(u64, u64)>,
}

/// How far an arrival is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) enum Stage {
    /// Tiles are missing, or were not flushed yet.
    Arriving,
    /// Everything was verified and flushed; the files are on their way to their good names.
    Settling,
}

/// A blob that arrives.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct PartialRow {
    pub(crate) size: u64,
    pub(crate) runs: Vec<Run>,
    pub(crate) stage: Stage,
    /// When it was begun, resumed or saved last, in seconds since 1970.
    pub(crate) touched_s: u64,
}

/// One change of the index.
pub(crate) enum Change<'a> {
    PutBlob(BlobHash, &'a BlobRow),
    DropBlob(BlobHash),
    PutDonor(BlobHash, &'a DonorRow),
    DropDonor(BlobHash),
    PutPartial(BlobHash, &'a PartialRow),
    /// With its claims.
    DropPartial(BlobHash),
    /// Claims the tiles of the set that are in the given pages.
    Claim(BlobHash, &'a TileSet, &'a [u64]),
    Tag(&'a str, BlobHash),
    Untag(&'a str),
}

/// The page of claims that a tile is in.
pub(crate) fn page_of(tile: u64) -> u64 {
    tile / (PAGE_WORDS as u64 * 64)
}

pub(crate) struct Index {
    database: Lasting,
}

/// Opens the file, or makes it. redb panics on some damaged files: all of it is checked first, so that later reads meet only what is right.
fn checked(path: &Path) -> Result<Database, redb::Error> {
    let opened = catch_unwind(|| -> Result<Database, redb::DatabaseError> {
        let mut database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        database.check_integrity()?;
        Ok(database)
    });
    match opened {
        Ok(opened) => Ok(opened?),
        Err(_) => Err(redb::Error::Corrupted("the file is damaged".to_owned())),
    }
}

impl Index {
    pub(crate) fn open(path: &Path, folder: &Path) -> Result<Index, StoreError> {
        let database = match checked(path) {
            Ok(database) => Lasting::new(path, database, checked),
            Err(redb::Error::DatabaseAlreadyOpen) => {
                return Err(StoreError::Busy { folder: folder.to_owned() });
            }
            Err(other) => return Err(other.into()),
        };
        let start = |database: &Database| -> Result<u64, redb::Error> {
            let write = database.begin_write()?;
            let format = {
                let mut about = write.open_table(ABOUT)?;
                for table in [BLOBS, DONORS, PARTIALS] {
                    write.open_table(table)?;
                }
                write.open_table(CLAIMS)?;
                write.open_table(TAGS)?;
                let format = about.get("format")?.map(|format| format.value());
                if format.is_none() {
                    about.insert("format", FORMAT)?;
                }
                format.unwrap_or(FORMAT)
            };
            write.commit()?;
            Ok(format)
        };
        let got = database.with(start)?;
        if got != FORMAT {
            return Err(StoreError::Format { folder: folder.to_owned(), expected: FORMAT, got });
        }
        Ok(Index { database })
    }

    pub(crate) fn commit(&self, changes: &[Change<'_>]) -> Result<(), StoreError> {
        let commit = |database: &Database| -> Result<(), redb::Error> {
            let write = database.begin_write()?;
            {
                let mut blobs = write.open_table(BLOBS)?;
                let mut donors = write.open_table(DONORS)?;
                let mut partials = write.open_table(PARTIALS)?;
                let mut claims = write.open_table(CLAIMS)?;
                let mut tags = write.open_table(TAGS)?;
                for change in changes {
                    match change {
                        Change::PutBlob(hash, row) => {
                            blobs.insert(hash.as_bytes(), encode(*row).as_slice())?;
                        }
                        Change::DropBlob(hash) => {
                            blobs.remove(hash.as_bytes())?;
                        }
                        Change::PutDonor(hash, row) => {
                            donors.insert(hash.as_bytes(), encode(*row).as_slice())?;
                        }
                        Change::DropDonor(hash) => {
                            donors.remove(hash.as_bytes())?;
                        }
                        Change::PutPartial(hash, row) => {
                            partials.insert(hash.as_bytes(), encode(*row).as_slice())?;
                        }
                        Change::DropPartial(hash) => {
                            partials.remove(hash.as_bytes())?;
                            let of = (hash.as_bytes(), 0)..=(hash.as_bytes(), u64::MAX);
                            claims.retain_in(of, |_, _| false)?;
                        }
                        Change::Claim(hash, set, pages) => {
                            for page in *pages {
                                let from = *page as usize * PAGE_WORDS;
                                let words = set.words().iter().skip(from).take(PAGE_WORDS);
                                let bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
                                claims.insert((hash.as_bytes(), *page), bytes.as_slice())?;
                            }
                        }
                        Change::Tag(name, hash) => {
                            tags.insert(*name, hash.as_bytes())?;
                        }
                        Change::Untag(name) => {
                            tags.remove(*name)?;
                        }
                    }
                }
            }
            write.commit()?;
            Ok(())
        };
        Ok(self.database.with(commit)?)
    }

    pub(crate) fn blob(&self, hash: BlobHash) -> Result<Option<BlobRow>, StoreError> {
        self.row(BLOBS, "blobs", hash)
    }

    pub(crate) fn blobs(&self) -> Result<Vec<(BlobHash, BlobRow)>, StoreError> {
        self.rows(BLOBS, "blobs")
    }

    pub(crate) fn donor(&self, hash: BlobHash) -> Result<Option<DonorRow>, StoreError> {
        self.row(DONORS, "donors", hash)
    }

    pub(crate) fn donors(&self) -> Result<Vec<(BlobHash, DonorRow)>, StoreError> {
        self.rows(DONORS, "donors")
    }

    pub(crate) fn partial(&self, hash: BlobHash) -> Result<Option<PartialRow>, StoreError> {
        self.row(PARTIALS, "partials", hash)
    }

    pub(crate) fn partials(&self) -> Result<Vec<(BlobHash, PartialRow)>, StoreError> {
        self.rows(PARTIALS, "partials")
    }

    /// The rows that can be read, for who looks for the others.
    pub(crate) fn readable_blobs(&self) -> Result<Vec<(BlobHash, BlobRow)>, StoreError> {
        self.readable(BLOBS)
    }

    pub(crate) fn readable_donors(&self) -> Result<Vec<(BlobHash, DonorRow)>, StoreError> {
        self.readable(DONORS)
    }

    pub(crate) fn readable_partials(&self) -> Result<Vec<(BlobHash, PartialRow)>, StoreError> {
        self.readable(PARTIALS)
    }

    fn readable<R: Row>(
        &self,
        table: TableDefinition<&[u8; 32], &[u8]>,
    ) -> Result<Vec<(BlobHash, R)>, StoreError> {
        Ok(self.raw(table)?.into_iter().filter_map(|(hash, bytes)| Some((hash, decode(&bytes)?))).collect())
    }

    /// Which of a blob's `tiles` are claimed to be on disk.
    pub(crate) fn claims(&self, hash: BlobHash, tiles: u64) -> Result<TileSet, StoreError> {
        let read = |database: &Database| -> Result<TileSet, redb::Error> {
            let mut set = TileSet::empty(tiles);
            let table = database.begin_read()?.open_table(CLAIMS)?;
            for row in table.range((hash.as_bytes(), 0)..=(hash.as_bytes(), u64::MAX))? {
                let (key, words) = row?;
                set.set_words((key.value().1 as usize).saturating_mul(PAGE_WORDS), words.value());
            }
            Ok(set)
        };
        Ok(self.database.with(read)?)
    }

    pub(crate) fn tags(&self) -> Result<Vec<(String, BlobHash)>, StoreError> {
        let read = |database: &Database| -> Result<Vec<_>, redb::Error> {
            let table = database.begin_read()?.open_table(TAGS)?;
            let mut found = Vec::new();
            for row in table.iter()? {
                let (name, hash) = row?;
                found.push((name.value().to_owned(), BlobHash::from_bytes(*hash.value())));
            }
            Ok(found)
        };
        Ok(self.database.with(read)?)
    }

    /// The keys of rows that cannot be read, with their tables.
    pub(crate) fn unreadable(&self) -> Result<Vec<(&'static str, BlobHash)>, StoreError> {
        let mut found = Vec::new();
        for (hash, bytes) in self.raw(BLOBS)? {
            if decode::<BlobRow>(&bytes).is_none() {
                found.push(("blobs", hash));
            }
        }
        for (hash, bytes) in self.raw(DONORS)? {
            if decode::<DonorRow>(&bytes).is_none() {
                found.push(("donors", hash));
            }
        }
        for (hash, bytes) in self.raw(PARTIALS)? {
            if decode::<PartialRow>(&bytes).is_none() {
                found.push(("partials", hash));
            }
        }
        Ok(found)
    }

    fn raw(&self, table: TableDefinition<&[u8; 32], &[u8]>) -> Result<Vec<(BlobHash, Vec<u8>)>, StoreError> {
        let read = |database: &Database| -> Result<Vec<_>, redb::Error> {
            let table = database.begin_read()?.open_table(table)?;
            let mut found = Vec::new();
            for row in table.iter()? {
                let (hash, bytes) = row?;
                found.push((BlobHash::from_bytes(*hash.value()), bytes.value().to_vec()));
            }
            Ok(found)
        };
        Ok(self.database.with(read)?)
    }

    fn rows<R: Row>(
        &self,
        table: TableDefinition<&[u8; 32], &[u8]>,
        name: &'static str,
    ) -> Result<Vec<(BlobHash, R)>, StoreError> {
        let read = |(hash, bytes): (BlobHash, Vec<u8>)| {
            decode(&bytes)
                .map(|row| (hash, row))
                .ok_or(StoreError::Row { table: name, key: hash.to_string() })
        };
        self.raw(table)?.into_iter().map(read).collect()
    }

    fn row<R: Row>(
        &self,
        table: TableDefinition<&[u8; 32], &[u8]>,
        name: &'static str,
        hash: BlobHash,
    ) -> Result<Option<R>, StoreError> {
        let read = |database: &Database| -> Result<Option<Vec<u8>>, redb::Error> {
            let table = database.begin_read()?.open_table(table)?;
            Ok(table.get(hash.as_bytes())?.map(|bytes| bytes.value().to_vec()))
        };
        let bytes = match self.database.with(read)? {
            Some(bytes) => bytes,
            None => return Ok(None),
        };
        decode(&bytes).map(Some).ok_or(StoreError::Row { table: name, key: hash.to_string() })
    }
}

/// A row that is checked as a whole: what it says fits the blob's size.
trait Row: BorshSerialize + BorshDeserialize {
    fn is_right(&self) -> bool;
}

impl Row for BlobRow {
    fn is_right(&self) -> bool {
        super::layout::fits(self.size, &self.runs)
    }
}

impl Row for DonorRow {
    fn is_right(&self) -> bool {
        let donor = BlobHash::from_bytes([0; 32]);
        let runs: Vec<Run> = self
            .held
            .iter()
            .map(|(first, count)| Run { first: *first, count: *count, donor, donor_first: 0 })
            .collect();
        super::layout::fits(self.size, &runs)
    }
}

impl Row for PartialRow {
    fn is_right(&self) -> bool {
        super::layout::fits(self.size, &self.runs)
    }
}

fn encode(row: &impl Row) -> Vec<u8> {
    borsh::to_vec(row).expect("a row in memory is written without an error")
}

fn decode<R: Row>(bytes: &[u8]) -> Option<R> {
    R::try_from_slice(bytes).ok().filter(R::is_right)
}
