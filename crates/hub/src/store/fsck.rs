//! The store's check: whether what is on disk is what the index says, to the byte.
//!
//! Every blob is read through its runs, so that donors are read as far as they are needed. Repair never invents a byte: a damaged
//! blob becomes an arrival that has its good tiles, an outboard or a tile list is made again from verified bytes, files that
//! belong to nothing are deleted unless they are a whole blob.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::arrival::{PIECE_TILES, load_outboard};
use super::error::StoreError;
use super::file::StoredFile;
use super::folder::{metadata, names, remove, sync_folder, write_whole};
use super::gc::{Needed, donor_row, need, needed_of};
use super::index::{BlobRow, Change, PartialRow, Stage};
use super::layout::{cut, own_tiles};
use super::usage::now_s;
use super::whole::{read_segments, segments};
use super::{Inner, Store};
use crate::blob::{BlobHash, TILE_BYTES, tiles};
use crate::crew;
use crate::outboard::{Make, TileVerifier, hash_with, outboard_bytes, tile_bytes};
use crate::tile_set::TileSet;

/// Whether what is wrong is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsck {
    /// Only say what is wrong.
    Check,
    /// Mend it as far as that is possible.
    Repair,
}

/// Something that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Tiles are not the blob's. Repaired, the blob is an arrival that has the others.
    Tiles {
        /// The blob.
        hash: BlobHash,
        /// How many tiles; all, if they cannot be told apart because the outboard is wrong too.
        damaged: u64,
    },
    /// An outboard is missing or wrong. Repaired, it is made again, if the blob's bytes are right.
    Outboard {
        /// The blob.
        hash: BlobHash,
    },
    /// A tile list is wrong. Repaired, it is made again, or deleted with a damaged blob.
    TileList {
        /// The blob.
        hash: BlobHash,
    },
    /// The outboard of an arriving blob is wrong. Repaired, it is deleted, and fetched again.
    PartialOutboard {
        /// The blob.
        hash: BlobHash,
    },
    /// A row cannot be read. Repaired, it is deleted; its files are looked at as files without rows.
    Row {
        /// The table.
        table: &'static str,
        /// The row's key.
        hash: BlobHash,
    },
    /// A file belongs to no row. Repaired, it is a blob if it is one, else it is deleted.
    File {
        /// The file.
        path: PathBuf,
    },
}

/// What the check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blobs that were read.
    pub blobs: u64,
    /// Bytes that were read of them.
    pub bytes: u64,
    /// What is wrong, or was before the repair.
    pub problems: Vec<Problem>,
}

/// A blob's bytes, as far as there are files.
struct Files {
    own: Option<Arc<StoredFile>>,
    donors: HashMap<BlobHash, Arc<StoredFile>>,
}

impl Files {
    fn open(inner: &Inner, hash: BlobHash, row: &BlobRow) -> Files {
        let _structure = inner.read_structure();
        let open = |hash| inner.files.open(hash, &inner.folder.blob(hash)).ok();
        let donors = row.runs.iter().filter_map(|run| Some((run.donor, open(run.donor)?))).collect();
        Files { own: open(hash), donors }
    }

    fn read(&self, row: &BlobRow, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = offset..offset + buffer.len() as u64;
        // Without an own file every tile outside the runs is unreadable; any donor's file stands in for it and is not read.
        let all_in_runs =
            super::layout::pieces(&row.runs, range.clone()).iter().all(|piece| piece.donor.is_some());
        let own = match &self.own {
            Some(own) => own,
            None if all_in_runs => self.donors.values().next().ok_or(io::ErrorKind::NotFound)?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        read_segments(&segments(own, &self.donors, &row.runs, range), buffer)
    }
}

/// How a blob's bytes are.
struct Reading {
    good: TileSet,
    list: Vec<u8>,
}

pub(super) fn fsck(
    store: &Store,
    act: Fsck,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Checked, StoreError> {
    let inner = &store.0;
    let mut checked = Checked::default();
    for (table, hash) in inner.index.unreadable()? {
        checked.problems.push(Problem::Row { table, hash });
        if act == Fsck::Repair {
            inner.index.commit(&[match table {
                "blobs" => Change::DropBlob(hash),
                "donors" => Change::DropDonor(hash),
                _ => Change::DropPartial(hash),
            }])?;
        }
    }
    let rows = inner.index.readable_blobs()?;
    let all: u64 = rows.iter().map(|(_, row)| row.size).sum();
    for (hash, row) in rows {
        let before = checked.bytes;
        check_blob(inner, hash, &row, act, &mut checked.problems, &mut |done| progress(before + done, all))?;
        checked.blobs += 1;
        checked.bytes += row.size;
    }
    check_partials(inner, act, &mut checked.problems)?;
    check_names(inner, act, &mut checked.problems)?;
    Ok(checked)
}

fn check_blob(
    inner: &Arc<Inner>,
    hash: BlobHash,
    row: &BlobRow,
    act: Fsck,
    problems: &mut Vec<Problem>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    let path = inner.folder.outboard(hash);
    let files = Files::open(inner, hash, row);
    let count = tiles(row.size);
    let Some(outboard) = load_outboard(&path, hash, row.size)? else {
        problems.push(Problem::Outboard { hash });
        let read = |offset: u64, buffer: &mut [u8]| files.read(row, offset, buffer);
        return match hash_with(row.size, Make::Outboard, &read, progress) {
            Ok(made) if made.hash == hash => match act {
                Fsck::Repair => write_whole(&path, &made.outboard),
                Fsck::Check => Ok(()),
            },
            _ => {
                problems.push(Problem::Tiles { hash, damaged: count });
                // Which tiles are good is found out when there is an outboard again.
                if act == Fsck::Repair {
                    demote(inner, hash, row, &TileSet::full(count))?;
                    remove(&inner.folder.partial_outboard(hash))?;
                }
                Ok(())
            }
        };
    };
    let reading = read_blob(&TileVerifier::new(outboard), row, &files, progress)?;
    let damaged = count - reading.good.count();
    let list = inner.folder.tile_list(hash);
    let stored = match fs::read(&list) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StoreError::io("read", &list)(error)),
    };
    let list_wrong = damaged == 0 && stored.is_some_and(|bytes| bytes != reading.list);
    if list_wrong {
        problems.push(Problem::TileList { hash });
        if act == Fsck::Repair {
            write_whole(&list, &reading.list)?;
        }
    }
    if damaged > 0 {
        problems.push(Problem::Tiles { hash, damaged });
        if act == Fsck::Repair {
            demote(inner, hash, row, &reading.good)?;
        }
    }
    Ok(())
}

/// Reads and checks every tile.
fn read_blob(
    verifier: &TileVerifier,
    row: &BlobRow,
    files: &Files,
    progress: &mut dyn FnMut(u64),
) -> Result<Reading, StoreError> {
    let count = tiles(row.size);
    let good = Mutex::new(TileSet::empty(count));
    let mut list = vec![[0u8; 32]; count as usize];
    let parts: Vec<Mutex<&mut [[u8; 32]]>> = list.chunks_mut(PIECE_TILES as usize).map(Mutex::new).collect();
    let piece = |buffer: &mut Vec<u8>, index: u64| {
        let first = index * PIECE_TILES;
        let last = (first + PIECE_TILES).min(count);
        let mut part = parts[index as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        for tile in first..last {
            let place = tile_bytes(row.size, tile);
            buffer.resize((place.end - place.start) as usize, 0);
            bytes += buffer.len() as u64;
            if files.read(row, tile * TILE_BYTES, buffer).is_ok() && verifier.check(tile, buffer).is_ok() {
                part[(tile - first) as usize] = *blake3::hash(buffer).as_bytes();
                good.lock().unwrap_or_else(PoisonError::into_inner).insert(tile..tile + 1);
            }
        }
        Ok::<u64, StoreError>(bytes)
    };
    crew::work(count.div_ceil(PIECE_TILES), &piece, progress)?;
    drop(parts);
    Ok(Reading {
        good: good.into_inner().unwrap_or_else(PoisonError::into_inner),
        list: list.into_flattened(),
    })
}

/// Makes an arrival of a whole blob that is damaged. Its file stays under its good name too while other blobs need it: what an
/// arrival writes into it are the blob's own right bytes.
fn demote(inner: &Arc<Inner>, hash: BlobHash, row: &BlobRow, good: &TileSet) -> Result<(), StoreError> {
    let folder = &inner.folder;
    let _structure = inner.structure.write().unwrap_or_else(PoisonError::into_inner);
    let (blob, partial) = (folder.blob(hash), folder.partial_blob(hash));
    link_again(&blob, &partial)?;
    link_again(&folder.outboard(hash), &folder.partial_outboard(hash))?;
    if metadata(&partial)?.is_some_and(|found| found.len() != row.size) {
        // As long as it should be, so that the good tiles are taken over.
        let file = File::options().write(true).open(&partial).map_err(StoreError::io("open", &partial))?;
        file.set_len(row.size).map_err(StoreError::io("make", &partial))?;
    }
    sync_folder(&folder.partial())?;
    let mut needed = Needed::new();
    for (_, other) in inner.index.readable_blobs()? {
        need(&mut needed, &other.runs);
    }
    for (_, other) in inner.index.readable_partials()? {
        need(&mut needed, &other.runs);
    }
    let held = needed_of(&needed, hash, &own_tiles(row.size, &row.runs));
    let arriving =
        PartialRow { size: row.size, runs: cut(&row.runs, good), stage: Stage::Arriving, touched_s: now_s() };
    let pages: Vec<u64> = (0..=super::index::page_of(good.tiles() - 1)).collect();
    let donor = donor_row(row.size, &held);
    let mut changes =
        vec![Change::DropBlob(hash), Change::PutPartial(hash, &arriving), Change::Claim(hash, good, &pages)];
    if !held.is_empty() {
        changes.push(Change::PutDonor(hash, &donor));
    }
    inner.index.commit(&changes)?;
    remove(&folder.outboard(hash))?;
    remove(&folder.tile_list(hash))?;
    if held.is_empty() {
        remove(&blob)?;
        inner.files.forget(hash);
    }
    sync_folder(&folder.data())
}

/// Gives a file, if it is there, another name, whatever had it.
fn link_again(from: &std::path::Path, to: &std::path::Path) -> Result<(), StoreError> {
    remove(to)?;
    if metadata(from)?.is_some() {
        fs::hard_link(from, to).map_err(StoreError::io("link", from))?;
    }
    Ok(())
}

fn check_partials(inner: &Arc<Inner>, act: Fsck, problems: &mut Vec<Problem>) -> Result<(), StoreError> {
    for (hash, row) in inner.index.readable_partials()? {
        let arrivals = inner.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let path = inner.folder.partial_outboard(hash);
        if arrivals.contains_key(&hash) || metadata(&path)?.is_none() {
            continue;
        }
        if load_outboard(&path, hash, row.size)?.is_none() {
            problems.push(Problem::PartialOutboard { hash });
            if act == Fsck::Repair {
                remove(&path)?;
            }
        }
    }
    Ok(())
}

/// Looks for files that belong to no row.
fn check_names(inner: &Arc<Inner>, act: Fsck, problems: &mut Vec<Problem>) -> Result<(), StoreError> {
    let _structure = inner.structure.write().unwrap_or_else(PoisonError::into_inner);
    let folder = &inner.folder;
    let (in_data, in_partial) = (names(&folder.data())?, names(&folder.partial())?);
    let mut known = BTreeSet::new();
    for (hash, row) in inner.index.readable_blobs()? {
        known.extend([folder.blob(hash), folder.tile_list(hash)]);
        if outboard_bytes(row.size) > 0 {
            known.insert(folder.outboard(hash));
        }
    }
    known.extend(inner.index.readable_donors()?.into_iter().map(|(hash, _)| folder.blob(hash)));
    for (hash, row) in inner.index.readable_partials()? {
        known.extend([folder.partial_blob(hash), folder.partial_outboard(hash)]);
        if row.stage == Stage::Settling {
            known.extend([folder.blob(hash), folder.outboard(hash)]);
        }
    }
    let data = in_data.iter().map(|name| folder.data().join(name));
    let partial = in_partial.iter().map(|name| folder.partial().join(name));
    let mut unknown: Vec<PathBuf> = data.chain(partial).filter(|path| !known.contains(path)).collect();
    unknown.retain(|path| !super::folder::is_temporary(path));
    for path in &unknown {
        problems.push(Problem::File { path: path.clone() });
    }
    if act == Fsck::Repair {
        let mut adopted = BTreeSet::new();
        for path in unknown {
            let hash = adopt(inner, &path)?;
            adopted.extend(hash.map(|hash| folder.outboard(hash)));
            if hash.is_none() && !adopted.contains(&path) {
                remove(&path)?;
            }
        }
        sync_folder(&folder.data())?;
        sync_folder(&folder.partial())?;
    }
    Ok(())
}

/// A file of whole blobs without a row that hashes to its name becomes a blob again.
fn adopt(inner: &Inner, path: &std::path::Path) -> Result<Option<BlobHash>, StoreError> {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".blob"));
    let Some(hash) = name.and_then(|name| name.parse::<BlobHash>().ok()) else { return Ok(None) };
    if *path != inner.folder.blob(hash) || inner.index.partial(hash)?.is_some() {
        return Ok(None);
    }
    let error = || StoreError::io("read", path);
    let file = File::open(path).map_err(error())?;
    let size = file.metadata().map_err(error())?.len();
    let read =
        |offset: u64, buffer: &mut [u8]| std::os::unix::fs::FileExt::read_exact_at(&file, buffer, offset);
    let made = hash_with(size, Make::Outboard, &read, &mut |_| {}).map_err(error())?;
    if made.hash != hash {
        return Ok(None);
    }
    file.sync_all().map_err(error())?;
    if !made.outboard.is_empty() {
        write_whole(&inner.folder.outboard(hash), &made.outboard)?;
    }
    inner.index.commit(&[Change::PutBlob(hash, &BlobRow { size, runs: Vec::new() })])?;
    Ok(Some(hash))
}
