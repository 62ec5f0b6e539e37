//! Blobs that arrive: one writer, many readers of what is verified.
//!
//! A tile is readable as soon as it is written, and claimed in the index only after it was flushed; claims are verified again
//! when an arrival is resumed. So a crash at any moment leaves a whole blob or a part that goes on.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use super::error::StoreError;
use super::file::{Segment, StoredFile, map_file};
use super::folder::{metadata, remove, sync_folder, write_whole};
use super::index::{Change, PartialRow, Stage, page_of};
use super::layout::{self, Run};
use super::usage::{footprint, now_s};
use super::whole::{Blob, read_segments, segments};
use super::{Inner, local, settle};
use crate::blob::{BLOB_BYTES_MAX, BlobHash, TILE_BYTES, tiles};
use crate::crew;
use crate::outboard::{Outboard, TileVerifier, outboard_bytes, tile_bytes};
use crate::tile_set::TileSet;

/// Tiles that one thread verifies at a time.
pub(super) const PIECE_TILES: u64 = 64;

/// What has arrived of a blob.
pub(super) struct Progress {
    /// Tiles that are there: verified, in the own file or in a run.
    pub(super) have: TileSet,
    pub(super) runs: Vec<Run>,
    pub(super) donors: HashMap<BlobHash, Arc<StoredFile>>,
    /// Pages of claims that are behind `have`.
    dirty: BTreeSet<u64>,
}

impl Progress {
    /// The tiles of `range`, which is not empty, are there.
    pub(super) fn mark(&mut self, range: Range<u64>) {
        self.dirty.extend(page_of(range.start)..=page_of(range.end - 1));
        self.have.insert(range);
    }
}

/// What the writer and the readers of an arriving blob share.
pub(super) struct Incoming {
    pub(super) hash: BlobHash,
    pub(super) size: u64,
    pub(super) file: Arc<StoredFile>,
    outboard: OnceLock<Arc<Outboard>>,
    pub(super) progress: RwLock<Progress>,
    /// Claims that wait for an outboard to be verified with.
    unverified: Mutex<Option<TileSet>>,
}

/// The right to write a blob; one at a time.
struct Turn {
    inner: Arc<Inner>,
    hash: BlobHash,
}

/// The arrivals of a store; an entry without a value is about to begin.
pub(super) type Arrivals = Mutex<HashMap<BlobHash, Weak<Incoming>>>;

impl Turn {
    fn take(inner: &Arc<Inner>, hash: BlobHash) -> Result<Turn, StoreError> {
        let mut arrivals = inner.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if arrivals.contains_key(&hash) {
            return Err(StoreError::Arriving { hash });
        }
        arrivals.insert(hash, Weak::new());
        Ok(Turn { inner: inner.clone(), hash })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner.arrivals.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.hash);
    }
}

/// The single writer of an arriving blob. Dropping it keeps what was saved; arriving again goes on from there.
pub struct Arrival {
    incoming: Arc<Incoming>,
    inner: Arc<Inner>,
    /// Saves come one after another, so that none takes back what a later one claims.
    saving: Mutex<()>,
    _turn: Turn,
}

/// A reader of what has arrived of a blob so far; cheap to clone.
#[derive(Clone)]
pub struct Partial(Arc<Incoming>);

impl Partial {
    /// Of an arrival that is under way.
    pub(super) fn of(inner: &Inner, hash: BlobHash) -> Option<Partial> {
        let arrivals = inner.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.get(&hash).and_then(Weak::upgrade).map(Partial)
    }

    /// The blob's name.
    pub fn hash(&self) -> BlobHash {
        self.0.hash
    }

    /// Bytes that the blob will have.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// The tiles that are there.
    pub fn have(&self) -> TileSet {
        self.0.progress.read().unwrap_or_else(PoisonError::into_inner).have.clone()
    }

    /// The outboard, once it is known.
    pub fn outboard(&self) -> Option<Arc<Outboard>> {
        self.0.outboard.get().cloned()
    }

    /// Where the bytes of `range`, cut to the blob, lie; none unless all tiles that it touches are there.
    pub fn segments(&self, range: Range<u64>) -> Option<Vec<Segment>> {
        let range = range.start.min(self.0.size)..range.end.min(self.0.size);
        self.0.segments(range)
    }

    /// Fills `buffer` from byte `offset` on; an error unless all tiles that are read are there.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.0.size);
        let found = end.and_then(|end| self.0.segments(offset..end));
        read_segments(&found.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?, buffer)
    }
}

impl Incoming {
    fn segments(&self, range: Range<u64>) -> Option<Vec<Segment>> {
        let progress = self.progress.read().unwrap_or_else(PoisonError::into_inner);
        let touched = range.start / TILE_BYTES..range.end.div_ceil(TILE_BYTES);
        if !range.is_empty() && !progress.have.contains_all(touched) {
            return None;
        }
        Some(segments(&self.file, &progress.donors, &progress.runs, range))
    }

    /// Puts verified tiles where they belong; what is there already is left as it is.
    pub(super) fn place(&self, first_tile: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let (hash, size) = (self.hash, self.size);
        let length = bytes.len() as u64;
        let wrong = StoreError::Tiles { hash, size, first_tile, bytes: length };
        let start =
            first_tile.checked_mul(TILE_BYTES).filter(|start| *start < size || (*start == 0 && size == 0));
        let Some(start) = start else { return Err(wrong) };
        let whole = start + length == size
            || (length > 0 && length.is_multiple_of(TILE_BYTES) && start + length < size);
        if !whole {
            return Err(wrong);
        }
        let range = first_tile..first_tile + tiles(length);
        let mut wanted = TileSet::empty(0);
        {
            let progress = self.progress.read().unwrap_or_else(PoisonError::into_inner);
            if range.clone().any(|tile| progress.have.contains(tile)) {
                wanted = TileSet::full(tiles(size));
                wanted.remove(0..range.start);
                wanted.remove(range.end..u64::MAX);
                range
                    .clone()
                    .filter(|tile| progress.have.contains(*tile))
                    .for_each(|tile| wanted.remove(tile..tile + 1));
            }
        }
        let pieces: Vec<Range<u64>> =
            if wanted.tiles() == 0 { vec![range] } else { wanted.ranges().collect() };
        for piece in pieces {
            let from = (piece.start - first_tile) * TILE_BYTES;
            let to = ((piece.end - first_tile) * TILE_BYTES).min(length);
            self.file
                .write_all_at(&bytes[from as usize..to as usize], start + from)
                .map_err(StoreError::io("write", Path::new(&format!("{hash}.blob"))))?;
            self.progress.write().unwrap_or_else(PoisonError::into_inner).mark(piece);
        }
        Ok(())
    }

    pub(super) fn verifier(&self) -> Result<TileVerifier, StoreError> {
        let outboard = self.outboard.get().ok_or(StoreError::OutboardNeeded { hash: self.hash })?;
        Ok(TileVerifier::new(outboard.clone()))
    }

    /// Takes over what the index claims and is right.
    fn verify_claims(&self) -> Result<(), StoreError> {
        let claims = self.unverified.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(claims) = claims.filter(|claims| !claims.is_empty()) else { return Ok(()) };
        let verifier = self.verifier()?;
        let (runs, donors) = {
            let progress = self.progress.read().unwrap_or_else(PoisonError::into_inner);
            (progress.runs.clone(), progress.donors.clone())
        };
        let good = Mutex::new(TileSet::empty(claims.tiles()));
        let piece = |buffer: &mut Vec<u8>, index: u64| -> Result<u64, StoreError> {
            let first = index * PIECE_TILES;
            let wanted = (first..first + PIECE_TILES).filter(|tile| claims.contains(*tile));
            for tile in wanted {
                let place = tile_bytes(self.size, tile);
                buffer.resize((place.end - place.start) as usize, 0);
                let read = read_segments(&segments(&self.file, &donors, &runs, place), buffer);
                if read.is_ok() && verifier.check(tile, buffer).is_ok() {
                    good.lock().unwrap_or_else(PoisonError::into_inner).insert(tile..tile + 1);
                }
            }
            Ok(0)
        };
        crew::work(claims.tiles().div_ceil(PIECE_TILES), &piece, &mut |_| {})?;
        let good = good.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut progress = self.progress.write().unwrap_or_else(PoisonError::into_inner);
        progress.runs = layout::cut(&progress.runs, &good);
        progress.have = good;
        if progress.have != claims {
            progress.dirty.extend(0..=page_of(claims.tiles() - 1));
        }
        Ok(())
    }
}

impl Arrival {
    /// Begins or resumes.
    pub(super) fn begin(inner: &Arc<Inner>, hash: BlobHash, size: u64) -> Result<Arrival, StoreError> {
        if size > BLOB_BYTES_MAX {
            return Err(StoreError::TooLarge { got: size });
        }
        let turn = Turn::take(inner, hash)?;
        if inner.index.blob(hash)?.is_some() {
            return Err(StoreError::Whole { hash });
        }
        let before = match inner.index.partial(hash)? {
            Some(row) if row.stage == Stage::Settling => {
                settle::settle(inner, hash, &row)?;
                return Err(StoreError::Whole { hash });
            }
            Some(row) if row.size != size => {
                proven_size(inner, hash, row, size)?;
                None
            }
            before => before,
        };
        let incoming = match before {
            Some(row) => resume(inner, hash, row)?,
            None => start(inner, hash, size)?,
        };
        let incoming = Arc::new(incoming);
        inner.arrivals.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, Arc::downgrade(&incoming));
        Ok(Arrival { incoming, inner: inner.clone(), saving: Mutex::new(()), _turn: turn })
    }

    /// The blob's name.
    pub fn hash(&self) -> BlobHash {
        self.incoming.hash
    }

    /// Bytes that the blob will have.
    pub fn size(&self) -> u64 {
        self.incoming.size
    }

    /// A reader of what arrives.
    pub fn partial(&self) -> Partial {
        Partial(self.incoming.clone())
    }

    /// Whether [`set_outboard`](Arrival::set_outboard) must come first. A blob of one tile needs none.
    pub fn outboard_needed(&self) -> bool {
        self.incoming.outboard.get().is_none()
    }

    /// The outboard, from anyone: refused unless it hashes to the blob's name. What an earlier arrival left is verified with it.
    pub fn set_outboard(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if !self.outboard_needed() {
            return Ok(());
        }
        let (hash, size) = (self.incoming.hash, self.incoming.size);
        let outboard = Outboard::check(hash, size, bytes.to_vec())?;
        let path = self.inner.folder.partial_outboard(hash);
        write_whole(&path, outboard.bytes())?;
        drop(outboard);
        match load_outboard(&path, hash, size)? {
            Some(outboard) => drop(self.incoming.outboard.set(outboard)),
            None => {
                return Err(StoreError::Damaged { hash, what: "its outboard changed while it was written" });
            }
        }
        self.incoming.verify_claims()
    }

    /// Takes over the tiles that other blobs of the store have, found by the blob's tile list, which may come from anyone: every
    /// tile is verified. How many they were. Blobs without a tile list of their own ([`Store::index`](super::Store::index)) give none.
    pub fn take_local(&mut self, tile_list: &[u8]) -> Result<u64, StoreError> {
        local::take(self, tile_list)
    }

    /// The tiles that are still wanted.
    pub fn missing(&self) -> TileSet {
        self.incoming.progress.read().unwrap_or_else(PoisonError::into_inner).have.complement()
    }

    /// What checks the blob's tiles; an error until the outboard is known.
    pub fn verifier(&self) -> Result<TileVerifier, StoreError> {
        self.incoming.verifier()
    }

    /// Writes verified tiles: `bytes` are whole tiles from `first_tile` on that the [`verifier`](Arrival::verifier) has found
    /// right. They are not verified again. Tiles that are there already are left as they are.
    pub fn write(&self, first_tile: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.incoming.verifier()?;
        self.incoming.place(first_tile, bytes)
    }

    /// Flushes what was written, then claims it: a crash later than this loses nothing of it. Tiles may be written meanwhile; they
    /// are claimed next time.
    pub fn save(&self) -> Result<(), StoreError> {
        let _one = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = self.incoming.hash;
        let progress = || self.incoming.progress.write().unwrap_or_else(PoisonError::into_inner);
        let (have, runs, dirty) = {
            let mut progress = progress();
            (progress.have.clone(), progress.runs.clone(), std::mem::take(&mut progress.dirty))
        };
        let row = self.row(runs, Stage::Arriving);
        let pages: Vec<u64> = dirty.iter().copied().collect();
        let saved = self.flush().and_then(|()| {
            self.inner.index.commit(&[Change::PutPartial(hash, &row), Change::Claim(hash, &have, &pages)])
        });
        if saved.is_err() {
            progress().dirty.extend(dirty);
        }
        saved
    }

    /// Makes the blob a whole one. If tiles are missing, what is there is saved, and arriving again goes on from there.
    pub fn finish(self) -> Result<Blob, StoreError> {
        let hash = self.incoming.hash;
        let missing = self.missing().count();
        if missing > 0 {
            self.save()?;
            return Err(StoreError::Incomplete { hash, missing });
        }
        self.incoming.verifier()?;
        self.flush()?;
        let runs = self.incoming.progress.read().unwrap_or_else(PoisonError::into_inner).runs.clone();
        let row = self.row(runs, Stage::Settling);
        self.inner.index.commit(&[Change::PutPartial(hash, &row)])?;
        let _structure = self.inner.read_structure();
        settle::settle(&self.inner, hash, &row)?;
        self.inner.files.replace(hash, &self.incoming.file);
        let row = self.inner.index.blob(hash)?.ok_or(StoreError::Absent { hash })?;
        Blob::open(&self.inner, hash, row)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let path = self.inner.folder.partial_blob(self.incoming.hash);
        self.incoming.file.sync_data().map_err(StoreError::io("flush", &path))
    }

    fn row(&self, runs: Vec<Run>, stage: Stage) -> PartialRow {
        PartialRow { size: self.incoming.size, runs, stage, touched_s: now_s() }
    }

    pub(super) fn incoming(&self) -> &Incoming {
        &self.incoming
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

/// Begins an arrival of which nothing is there.
fn start(inner: &Arc<Inner>, hash: BlobHash, size: u64) -> Result<Incoming, StoreError> {
    let path = inner.folder.partial_blob(hash);
    let row = PartialRow { size, runs: Vec::new(), stage: Stage::Arriving, touched_s: now_s() };
    {
        let _accounts = inner.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        inner.reserve(footprint(size))?;
        remove(&path)?;
        remove(&inner.folder.partial_outboard(hash))?;
        inner.index.commit(&[Change::PutPartial(hash, &row)])?;
    }
    match open_own(inner, hash, size)
        .and_then(|file| arriving(inner, hash, row, file, TileSet::empty(tiles(size))))
    {
        Ok(incoming) => Ok(incoming),
        Err(error) => {
            // The room is given back; if even that fails, garbage collection does it.
            let _ = remove(&path);
            let _ = inner.index.commit(&[Change::DropPartial(hash)]);
            Err(error)
        }
    }
}

/// Goes on with an arrival of which a part is there.
fn resume(inner: &Arc<Inner>, hash: BlobHash, row: PartialRow) -> Result<Incoming, StoreError> {
    let mut claims = inner.index.claims(hash, tiles(row.size))?;
    let path = inner.folder.partial_blob(hash);
    if metadata(&path)?.is_none_or(|found| found.len() != row.size) {
        // Only what lies in other blobs can be there.
        let own = layout::own_tiles(row.size, &row.runs);
        own.ranges().for_each(|range| claims.remove(range));
        remove(&path)?;
    }
    let file = open_own(inner, hash, row.size)?;
    let row = PartialRow { touched_s: now_s(), ..row };
    inner.index.commit(&[Change::PutPartial(hash, &row)])?;
    arriving(inner, hash, row, file, claims)
}

/// The file of an arriving blob, as long as the blob.
fn open_own(inner: &Inner, hash: BlobHash, size: u64) -> Result<File, StoreError> {
    let path = inner.folder.partial_blob(hash);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io("make", &path))?;
    file.set_len(size).map_err(StoreError::io("make", &path))?;
    sync_folder(&inner.folder.partial())?;
    Ok(file)
}

fn arriving(
    inner: &Arc<Inner>,
    hash: BlobHash,
    row: PartialRow,
    file: File,
    mut claims: TileSet,
) -> Result<Incoming, StoreError> {
    let mut donors = HashMap::new();
    let mut runs = row.runs;
    {
        let _structure = inner.read_structure();
        runs.retain(|run| {
            if let std::collections::hash_map::Entry::Vacant(entry) = donors.entry(run.donor) {
                match inner.files.open(run.donor, &inner.folder.blob(run.donor)) {
                    Ok(file) => drop(entry.insert(file)),
                    Err(_) => {
                        claims.remove(run.first..run.end());
                        return false;
                    }
                }
            }
            true
        });
    }
    let have = TileSet::empty(tiles(row.size));
    let incoming = Incoming {
        hash,
        size: row.size,
        file: Arc::new(StoredFile::new(file)),
        outboard: OnceLock::new(),
        progress: RwLock::new(Progress { have, runs, donors, dirty: BTreeSet::new() }),
        unverified: Mutex::new(Some(claims)),
    };
    if let Some(outboard) = load_outboard(&inner.folder.partial_outboard(hash), hash, row.size)? {
        drop(incoming.outboard.set(outboard));
        incoming.verify_claims()?;
    }
    if row.size == 0 && hash == BlobHash::of(&[]) {
        incoming.place(0, &[])?;
    }
    Ok(incoming)
}

/// An outboard file, if it is right; a blob of one tile needs none.
pub(super) fn load_outboard(
    path: &Path,
    hash: BlobHash,
    size: u64,
) -> Result<Option<Arc<Outboard>>, StoreError> {
    let expected = outboard_bytes(size);
    if expected == 0 {
        return Ok(Outboard::check(hash, size, Vec::new()).ok().map(Arc::new));
    }
    if metadata(path)?.is_none_or(|found| found.len() != expected) {
        return Ok(None);
    }
    let map = File::open(path).and_then(|file| map_file(&file)).map_err(StoreError::io("map", path))?;
    Ok(Outboard::check_mapped(hash, size, map).ok().map(Arc::new))
}

/// Somebody says that a blob of which a part is there has another size. If its last tile is there, the size is proven and this is
/// an error; otherwise the part was begun under a wrong size, or this one is wrong, and it is begun again.
fn proven_size(inner: &Arc<Inner>, hash: BlobHash, row: PartialRow, got: u64) -> Result<(), StoreError> {
    let expected = row.size;
    let before = resume(inner, hash, row)?;
    let progress = before.progress.read().unwrap_or_else(PoisonError::into_inner);
    if before.outboard.get().is_some() && progress.have.contains(tiles(expected) - 1) {
        return Err(StoreError::Size { hash, expected, got });
    }
    inner.index.commit(&[Change::DropPartial(hash)])?;
    for path in [inner.folder.partial_blob(hash), inner.folder.partial_outboard(hash)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("delete", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
