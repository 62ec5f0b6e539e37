//! Where a blob's tiles lie: in its own file, or as runs in files of other blobs.

use std::ops::Range;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::blob::{BLOB_BYTES_MAX, BlobHash, TILE_BYTES, tiles};
use crate::tile_set::TileSet;

/// Neighbouring tiles of a blob that lie in another blob's own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) donor: BlobHash,
    pub(crate) donor_first: u64,
}

impl Run {
    pub(crate) fn end(&self) -> u64 {
        self.first + self.count
    }

    /// The donor's tiles.
    pub(crate) fn donated(&self) -> Range<u64> {
        self.donor_first..self.donor_first + self.count
    }
}

/// Whether runs are in order, apart, not empty and within a blob of `size` bytes.
pub(crate) fn fits(size: u64, runs: &[Run]) -> bool {
    let mut free = 0;
    size <= BLOB_BYTES_MAX
        && runs.iter().all(|run| {
            let Some(end) = run.first.checked_add(run.count) else { return false };
            let right =
                run.first >= free && run.count > 0 && run.donor_first.checked_add(run.count).is_some();
            free = end;
            right && end <= tiles(size)
        })
}

/// Bytes of `range` of tiles of a blob of `size` bytes.
pub(crate) fn bytes_of(size: u64, range: Range<u64>) -> u64 {
    (range.end.saturating_mul(TILE_BYTES)).min(size) - (range.start.saturating_mul(TILE_BYTES)).min(size)
}

/// The tiles that a blob has in its own file.
pub(crate) fn own_tiles(size: u64, runs: &[Run]) -> TileSet {
    let mut own = TileSet::full(tiles(size));
    for run in runs {
        own.remove(run.first..run.end());
    }
    own
}

/// Bytes that a blob has in its own file.
pub(crate) fn own_bytes(size: u64, runs: &[Run]) -> u64 {
    size - runs.iter().map(|run| bytes_of(size, run.first..run.end())).sum::<u64>()
}

/// A piece of a blob in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Whose file; none for the blob's own.
    pub(crate) donor: Option<BlobHash>,
    /// Where in that file.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The bytes `range` of a blob, in order; `range` must not end beyond the blob.
pub(crate) fn pieces(runs: &[Run], range: Range<u64>) -> Vec<Piece> {
    let mut found = Vec::new();
    let mut at = range.start;
    let mut next = runs.partition_point(|run| run.end().saturating_mul(TILE_BYTES) <= at);
    while at < range.end {
        let run = runs.get(next).map(|run| (run, run.first * TILE_BYTES..run.end() * TILE_BYTES));
        let (piece, end) = match run {
            Some((run, bytes)) if bytes.start <= at => {
                next += 1;
                let offset = run.donor_first * TILE_BYTES + (at - bytes.start);
                (Piece { donor: Some(run.donor), offset, len: 0 }, bytes.end.min(range.end))
            }
            Some((_, bytes)) => (Piece { donor: None, offset: at, len: 0 }, bytes.start.min(range.end)),
            None => (Piece { donor: None, offset: at, len: 0 }, range.end),
        };
        found.push(Piece { len: end - at, ..piece });
        at = end;
    }
    found
}

/// Adds tile `tile` as a copy of the donor's, after all that are there already; neighbours become one run.
pub(crate) fn push(runs: &mut Vec<Run>, tile: u64, donor: BlobHash, donor_tile: u64) {
    match runs.last_mut() {
        Some(run) if run.end() == tile && run.donor == donor && run.donor_first + run.count == donor_tile => {
            run.count += 1;
        }
        _ => runs.push(Run { first: tile, count: 1, donor, donor_first: donor_tile }),
    }
}

/// The runs cut to the tiles of `keep`.
pub(crate) fn cut(runs: &[Run], keep: &TileSet) -> Vec<Run> {
    let mut kept = Vec::new();
    for run in runs {
        for tile in (run.first..run.end()).filter(|tile| keep.contains(*tile)) {
            push(&mut kept, tile, run.donor, run.donor_first + (tile - run.first));
        }
    }
    kept
}

/// Two lists of runs that have no tile in common, as one.
pub(crate) fn join(mut runs: Vec<Run>, more: Vec<Run>) -> Vec<Run> {
    runs.extend(more);
    runs.sort_unstable_by_key(|run| run.first);
    runs
}
