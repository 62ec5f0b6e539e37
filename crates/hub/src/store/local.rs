//! Tiles that are here already: tile lists, and taking equal tiles over from other blobs.
//!
//! A tile list is a hint from anyone. Every tile to which it leads is read and checked with the outboard of the blob that is wanted
//! before it is taken over.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use super::arrival::{Arrival, Incoming, PIECE_TILES};
use super::error::StoreError;
use super::file::{Mapped, StoredFile};
use super::folder::write_whole;
use super::index::BlobRow;
use super::layout::{self, Run, own_tiles};
use super::{Blob, Inner, Store};
use crate::blob::{BlobHash, TILE_BYTES, tiles};
use crate::crew;
use crate::outboard::{TileVerifier, tile_bytes};
use crate::tile_set::TileSet;

/// Bytes of a tile's entry in a tile list.
pub const TILE_HASH_BYTES: u64 = 32;

/// A blob of which tiles can be taken over.
struct Donor {
    hash: BlobHash,
    size: u64,
    /// The tiles in its own file.
    own: TileSet,
    list: Mapped,
    file: Arc<StoredFile>,
}

/// Where a tile is that looks like a wanted one.
#[derive(Clone, Copy)]
struct Place {
    donor: usize,
    tile: u64,
}

/// Makes the tile list of a blob if it has none.
pub(super) fn index(store: &Store, hash: BlobHash) -> Result<(), StoreError> {
    let blob = store.blob(hash)?.ok_or(StoreError::Absent { hash })?;
    if matches!(blob.tile_list(), Ok(Some(_))) {
        return Ok(());
    }
    let list = list_of(&blob)?;
    // The blob is held, so that it is not deleted meanwhile.
    write_whole(&store.0.folder.tile_list(hash), &list)
}

/// The BLAKE3 of every tile of a blob, as it is on disk.
pub(super) fn list_of(blob: &Blob) -> Result<Vec<u8>, StoreError> {
    let count = tiles(blob.size());
    let mut list = vec![[0u8; 32]; count as usize];
    let parts: Vec<Mutex<&mut [[u8; 32]]>> = list.chunks_mut(PIECE_TILES as usize).map(Mutex::new).collect();
    let piece = |buffer: &mut Vec<u8>, index: u64| {
        let start = index * PIECE_TILES * TILE_BYTES;
        buffer.resize((blob.size() - start).min(PIECE_TILES * TILE_BYTES) as usize, 0);
        let mut part = parts[index as usize].lock().unwrap_or_else(PoisonError::into_inner);
        blob.read_at(start, buffer)?;
        hash_tiles(buffer, &mut part);
        Ok::<u64, std::io::Error>(0)
    };
    let unread = |_| StoreError::Damaged { hash: blob.hash(), what: "a file with its bytes cannot be read" };
    crew::work(count.div_ceil(PIECE_TILES), &piece, &mut |_| {}).map_err(unread)?;
    drop(parts);
    Ok(list.into_flattened())
}

/// The hash of each tile in `bytes` alone; no bytes are one tile, which is empty.
pub(crate) fn hash_tiles(bytes: &[u8], hashes: &mut [[u8; 32]]) {
    for (index, hash) in hashes.iter_mut().enumerate() {
        let start = (index as u64 * TILE_BYTES) as usize;
        let end = bytes.len().min(start + TILE_BYTES as usize);
        *hash = *blake3::hash(bytes.get(start..end).unwrap_or_default()).as_bytes();
    }
}

/// Takes over the missing tiles that other blobs have; how many they are.
pub(super) fn take(arrival: &mut Arrival, list: &[u8]) -> Result<u64, StoreError> {
    let inner = arrival.inner().clone();
    let (hash, size) = (arrival.hash(), arrival.size());
    let expected = tiles(size) * TILE_HASH_BYTES;
    if list.len() as u64 != expected {
        return Err(StoreError::TileList { hash, expected, got: list.len() as u64 });
    }
    let verifier = arrival.verifier()?;
    let missing = arrival.missing();
    // Garbage collection waits until the runs are in the index.
    let _structure = inner.read_structure();
    let donors = donors(&inner, hash)?;
    let found = find(&missing, list, &donors);
    let good = verify(&verifier, &found, &donors)?;
    // What others keep in this blob's former file must be in its new one too, which replaces it: a copy, not a run.
    let owed = match inner.index.donor(hash)? {
        Some(row) => row.held,
        None => Vec::new(),
    };
    let mut must_own = TileSet::empty(tiles(size));
    owed.iter().for_each(|(first, count)| must_own.insert(*first..first.saturating_add(*count)));
    let mut runs = Vec::new();
    for (tile, place) in found.iter().filter(|(tile, _)| good.contains(*tile)) {
        let donor = &donors[place.donor];
        if must_own.contains(*tile) {
            copy(arrival.incoming(), donor, *tile, place.tile, &verifier)?;
        } else {
            layout::push(&mut runs, *tile, donor.hash, place.tile);
        }
    }
    arrival.take_runs(runs, donors.into_iter().map(|donor| (donor.hash, donor.file)));
    arrival.save()?;
    Ok(missing.count() - arrival.missing().count())
}

/// Every blob with a tile list, but the one that arrives.
fn donors(inner: &Arc<Inner>, wanted: BlobHash) -> Result<Vec<Donor>, StoreError> {
    let mut donors = Vec::new();
    for (hash, row) in inner.index.blobs()? {
        if hash == wanted {
            continue;
        }
        let BlobRow { size, runs } = row.clone();
        // A damaged blob gives nothing; the store's check says so.
        let Ok(blob) = Blob::open(inner, hash, row) else { continue };
        let Ok(Some(list)) = blob.tile_list() else { continue };
        donors.push(Donor { hash, size, own: own_tiles(size, &runs), list, file: blob.own_file().clone() });
    }
    Ok(donors)
}

/// For each missing tile a place where an equal one seems to be, in order. Neighbours are looked for where neighbours were found,
/// so that runs become long.
fn find(missing: &TileSet, list: &[u8], donors: &[Donor]) -> Vec<(u64, Place)> {
    let entry = |list: &[u8], tile: u64| -> Option<[u8; 32]> {
        let start = usize::try_from(tile * TILE_HASH_BYTES).ok()?;
        list.get(start..start + 32)?.try_into().ok()
    };
    // Eight bytes of a hash are enough for a hint.
    let short = |hash: &[u8; 32]| u64::from_le_bytes(hash[..8].try_into().expect("eight of 32 bytes"));
    let mut wanted: HashMap<u64, Option<Place>> = HashMap::with_capacity(missing.count() as usize);
    for tile in missing.iter() {
        if let Some(hash) = entry(list, tile) {
            wanted.insert(short(&hash), None);
        }
    }
    for (index, donor) in donors.iter().enumerate() {
        for tile in donor.own.iter() {
            let Some(hash) = entry(&donor.list, tile) else { break };
            if let Entry::Occupied(mut place) = wanted.entry(short(&hash)) {
                place.get_mut().get_or_insert(Place { donor: index, tile });
            }
        }
    }
    let mut found: Vec<(u64, Place)> = Vec::new();
    for tile in missing.iter() {
        let Some(hash) = entry(list, tile) else { break };
        let is_here = |place: &Place| {
            let donor = &donors[place.donor];
            donor.own.contains(place.tile) && entry(&donor.list, place.tile) == Some(hash)
        };
        let beside = match found.last() {
            Some((last, place)) if last + 1 == tile => Some(Place { tile: place.tile + 1, ..*place }),
            _ => None,
        };
        let anywhere = wanted.get(&short(&hash)).copied().flatten();
        if let Some(place) = beside.filter(is_here).or(anywhere.filter(is_here)) {
            found.push((tile, place));
        }
    }
    found
}

/// Which of the tiles found are what is wanted.
fn verify(verifier: &TileVerifier, found: &[(u64, Place)], donors: &[Donor]) -> Result<TileSet, StoreError> {
    let good = Mutex::new(TileSet::empty(tiles(verifier.size())));
    let piece = |buffer: &mut Vec<u8>, index: u64| {
        let first = (index * PIECE_TILES) as usize;
        for (tile, place) in found.iter().skip(first).take(PIECE_TILES as usize) {
            if read(&donors[place.donor], place.tile, buffer) && verifier.check(*tile, buffer).is_ok() {
                good.lock().unwrap_or_else(PoisonError::into_inner).insert(*tile..tile + 1);
            }
        }
        Ok::<u64, StoreError>(0)
    };
    crew::work((found.len() as u64).div_ceil(PIECE_TILES), &piece, &mut |_| {})?;
    Ok(good.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Reads a tile of a donor's own file.
fn read(donor: &Donor, tile: u64, buffer: &mut Vec<u8>) -> bool {
    use std::os::unix::fs::FileExt;
    let place = tile_bytes(donor.size, tile);
    buffer.resize((place.end - place.start) as usize, 0);
    donor.file.read_exact_at(buffer, place.start).is_ok()
}

fn copy(
    incoming: &Incoming,
    donor: &Donor,
    tile: u64,
    from: u64,
    verifier: &TileVerifier,
) -> Result<(), StoreError> {
    let mut buffer = Vec::new();
    if read(donor, from, &mut buffer) && verifier.check(tile, &buffer).is_ok() {
        incoming.place(tile, &buffer)?;
    }
    Ok(())
}

impl Arrival {
    /// Verified runs become part of what is there.
    fn take_runs(&mut self, runs: Vec<Run>, donors: impl Iterator<Item = (BlobHash, Arc<StoredFile>)>) {
        let needed: std::collections::BTreeSet<BlobHash> = runs.iter().map(|run| run.donor).collect();
        let mut progress = self.incoming().progress.write().unwrap_or_else(PoisonError::into_inner);
        progress.donors.extend(donors.filter(|(hash, _)| needed.contains(hash)));
        for run in &runs {
            progress.mark(run.first..run.end());
        }
        let before = std::mem::take(&mut progress.runs);
        progress.runs = layout::join(before, runs);
    }
}
