//! Garbage collection: blobs without a tag, arrivals that nobody goes on with, and what of their files no other blob needs.
//!
//! A plan is made from the rows, and a dry run stops there. The index then says what shall go, the files go, and the rows end. A
//! crash on the way leaves a donor that holds nothing, which the next collection deletes.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use super::error::StoreError;
use super::folder::{metadata, remove, sync_folder};
use super::index::{Change, DonorRow, Stage};
use super::layout::{Run, bytes_of, own_bytes, own_tiles};
use super::usage::{footprint, now_s, overhead};
use super::{Inner, Store};
use crate::blob::{BlobHash, TILE_BYTES, tiles};
use crate::tile_set::TileSet;

/// Whether garbage is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Only say what would be.
    DryRun,
    /// Delete it.
    Delete,
}

/// What garbage collection deletes, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs without a tag.
    pub blobs: Vec<BlobHash>,
    /// Arrivals that nobody went on with.
    pub partials: Vec<BlobHash>,
    /// Files of blobs deleted earlier, in which other blobs now need less or nothing.
    pub donors: Vec<BlobHash>,
    /// Blobs without a tag that stay because somebody has them open.
    pub used: Vec<BlobHash>,
    /// Bytes that [`usage`](Store::usage) becomes less.
    pub freed: u64,
}

/// A file of which only a part stays.
struct Donor {
    hash: BlobHash,
    size: u64,
    before: TileSet,
    after: TileSet,
}

#[derive(Default)]
struct Plan {
    collected: Collected,
    donors: Vec<Donor>,
}

/// The tiles of each blob that lie in runs of others.
pub(super) type Needed = HashMap<BlobHash, BTreeSet<(u64, u64)>>;

/// Notes what the runs of a blob need of others.
pub(super) fn need(needed: &mut Needed, runs: &[Run]) {
    for run in runs {
        let donated = run.donated();
        needed.entry(run.donor).or_default().insert((donated.start, donated.end));
    }
}

/// What is needed of a blob, of what its file holds.
pub(super) fn needed_of(needed: &Needed, hash: BlobHash, held: &TileSet) -> TileSet {
    let mut outside = TileSet::full(held.tiles());
    for (start, end) in needed.get(&hash).into_iter().flatten() {
        outside.remove(*start..*end);
    }
    let mut within = held.clone();
    outside.ranges().for_each(|range| within.remove(range));
    within
}

pub(super) fn collect(
    store: &Store,
    collect: Collect,
    partials_older_than: Duration,
) -> Result<Collected, StoreError> {
    let inner = &store.0;
    let _structure = inner.structure.write().unwrap_or_else(PoisonError::into_inner);
    let plan = plan(inner, partials_older_than)?;
    if collect == Collect::Delete {
        delete(inner, &plan)?;
    }
    Ok(plan.collected)
}

fn plan(inner: &Inner, partials_older_than: Duration) -> Result<Plan, StoreError> {
    let tagged: BTreeSet<BlobHash> = inner.index.tags()?.into_iter().map(|(_, hash)| hash).collect();
    let arriving: BTreeSet<BlobHash> =
        inner.arrivals.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
    let mut plan = Plan::default();
    let mut needed = Needed::new();
    let mut gone = Vec::new();
    for (hash, row) in inner.index.blobs()? {
        if tagged.contains(&hash) || inner.files.is_used(hash) {
            need(&mut needed, &row.runs);
            if !tagged.contains(&hash) {
                plan.collected.used.push(hash);
            }
        } else {
            gone.push((hash, row));
        }
    }
    let latest = now_s().saturating_sub(partials_older_than.as_secs());
    for (hash, row) in inner.index.partials()? {
        let stays = tagged.contains(&hash)
            || arriving.contains(&hash)
            || row.stage == Stage::Settling
            || row.touched_s > latest
            || partials_older_than == Duration::MAX;
        if stays {
            need(&mut needed, &row.runs);
        } else {
            plan.collected.partials.push(hash);
            plan.collected.freed += footprint(row.size);
        }
    }
    for (hash, row) in gone {
        let before = own_tiles(row.size, &row.runs);
        let after = held_after(inner, &needed, hash, &before)?;
        plan.collected.blobs.push(hash);
        plan.collected.freed +=
            own_bytes(row.size, &row.runs) + overhead(row.size) - held_bytes(row.size, &after);
        plan.donors.push(Donor { hash, size: row.size, before, after });
    }
    for (hash, row) in inner.index.donors()? {
        let mut before = TileSet::empty(tiles(row.size));
        row.held.iter().for_each(|(first, count)| before.insert(*first..first + count));
        let after = held_after(inner, &needed, hash, &before)?;
        if after != before || after.is_empty() {
            plan.collected.donors.push(hash);
            plan.collected.freed += held_bytes(row.size, &before) - held_bytes(row.size, &after);
        }
        // Holes are punched again where they are already: a crash may have come between the row and the holes.
        plan.donors.push(Donor { hash, size: row.size, before, after });
    }
    Ok(plan)
}

/// What a file will hold: what is needed of it, or all, if no holes may be punched into it.
fn held_after(inner: &Inner, needed: &Needed, hash: BlobHash, held: &TileSet) -> Result<TileSet, StoreError> {
    let within = needed_of(needed, hash, held);
    let used = inner.files.is_used(hash);
    let linked =
        !within.is_empty() && metadata(&inner.folder.blob(hash))?.is_some_and(|found| found.nlink() > 1);
    Ok(if used || linked { held.clone() } else { within })
}

fn held_bytes(size: u64, held: &TileSet) -> u64 {
    held.ranges().map(|range| bytes_of(size, range)).sum()
}

/// A row for a file that holds `held`.
pub(super) fn donor_row(size: u64, held: &TileSet) -> DonorRow {
    DonorRow { size, held: held.ranges().map(|range| (range.start, range.end - range.start)).collect() }
}

fn delete(inner: &Inner, plan: &Plan) -> Result<(), StoreError> {
    let folder = &inner.folder;
    let rows: Vec<(BlobHash, DonorRow)> =
        plan.donors.iter().map(|donor| (donor.hash, donor_row(donor.size, &donor.after))).collect();
    let mut changes: Vec<Change<'_>> =
        plan.collected.blobs.iter().map(|hash| Change::DropBlob(*hash)).collect();
    changes.extend(rows.iter().map(|(hash, row)| Change::PutDonor(*hash, row)));
    inner.index.commit(&changes)?;

    for hash in &plan.collected.blobs {
        remove(&folder.outboard(*hash))?;
        remove(&folder.tile_list(*hash))?;
    }
    let mut whole = Vec::new();
    for donor in &plan.donors {
        let path = folder.blob(donor.hash);
        if donor.after.is_empty() {
            remove(&path)?;
            inner.files.forget(donor.hash);
        } else if !inner.files.is_used(donor.hash) && !punch_outside(&path, donor.size, &donor.after)? {
            whole.push((donor.hash, donor_row(donor.size, &donor.before)));
        }
    }
    for hash in &plan.collected.partials {
        remove(&folder.partial_blob(*hash))?;
        remove(&folder.partial_outboard(*hash))?;
    }
    sync_folder(&folder.data())?;
    sync_folder(&folder.partial())?;

    let mut changes: Vec<Change<'_>> =
        plan.collected.partials.iter().map(|hash| Change::DropPartial(*hash)).collect();
    changes.extend(
        plan.donors.iter().filter(|donor| donor.after.is_empty()).map(|donor| Change::DropDonor(donor.hash)),
    );
    changes.extend(whole.iter().map(|(hash, row)| Change::PutDonor(*hash, row)));
    inner.index.commit(&changes)
}

/// Punches holes where `held` is not; false if the file system has no holes, or the file is somebody else's too.
fn punch_outside(path: &Path, size: u64, held: &TileSet) -> Result<bool, StoreError> {
    let error = || StoreError::io("punch holes into", path);
    let Some(found) = metadata(path)? else { return Ok(true) };
    if found.nlink() > 1 {
        return Ok(false);
    }
    let file = File::options().write(true).open(path).map_err(error())?;
    for range in held.complement().ranges() {
        let start = range.start * TILE_BYTES;
        let length = bytes_of(size, range);
        match punch(&file, start, length) {
            Ok(()) => {}
            Err(failed) if failed.kind() == std::io::ErrorKind::Unsupported => return Ok(false),
            Err(failed) => return Err(error()(failed)),
        }
    }
    file.sync_data().map_err(error())?;
    Ok(true)
}

#[cfg(target_os = "linux")]
fn punch(file: &File, start: u64, length: u64) -> std::io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    if length == 0 {
        return Ok(());
    }
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, length)?)
}

#[cfg(not(target_os = "linux"))]
fn punch(_file: &File, _start: u64, _length: u64) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
