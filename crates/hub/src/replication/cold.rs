//! Whether a release is kept in copies or in shards: storage saved against what repairs read. Both are counted in blobs, so that prices come in once,
//! as [`READS_OF_A_STORED_YEAR`].
//!
//! Copies are what is kept wherever the numbers do not clearly say otherwise. `docs/hub.md`, "Cold models", has the measurements.

use super::{Keeping, ReleaseError};
use crate::erasure::Code;

/// The code of cold releases: 8 of 12. It loses less than three copies do, and stores half as much.
pub const COLD_CODE: Code = match Code::new(8, 12) {
    Ok(code) => code,
    Err(_) => panic!("8 of 12 is a code"),
};
/// Most copies whose durability [`COLD_CODE`] has. Who asks for more copies keeps copies.
pub const COLD_COPIES_MAX: u8 = 3;
/// Smaller releases are kept in copies: every shard is kept, challenged and pledged by a host of its own, whatever its size. A judgement.
pub const COLD_BYTES_MIN: u64 = 1 << 30;
/// A release that is fetched more often is kept in copies: what is fetched each week costs more reads than any repair, and whoever
/// fetches it from shards waits for the restoring. A judgement.
pub const COLD_FETCHES_A_YEAR_MAX: u32 = 52;
/// So many reads of a blob cost what storing it for a year does. An assumption about prices: of disks that last five years and of
/// traffic that is bought in bulk. Where traffic costs nothing it is more, where it is bought from a cloud less.
pub const READS_OF_A_STORED_YEAR: u32 = 5;

const DAYS_A_YEAR: u64 = 365;

/// What is known of a release when it is decided how to keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Bytes of the blob.
    pub bytes: u64,
    /// Copies asked.
    pub copies: u8,
    /// How often it is fetched in a year.
    pub fetches_a_year: u32,
    /// Days, on average, from one time that a host is silent for longer than [`super::DEAD_AFTER_S`] to the next: whether it comes back or not, its part
    /// was made again.
    pub silent_every_days: u32,
}

impl Demand {
    /// How to keep it. Refuses copies as [`super::Release::new`] does.
    pub const fn keeping(self) -> Result<Keeping, ReleaseError> {
        if self.copies == 0 || self.copies > super::COPIES_MAX {
            return Err(ReleaseError::Copies { got: self.copies });
        }
        let may = self.bytes >= COLD_BYTES_MIN
            && self.copies <= COLD_COPIES_MAX
            && self.fetches_a_year <= COLD_FETCHES_A_YEAR_MAX;
        if may && self.shards_cost_less() {
            // At once: where hosts are silent so rarely, waiting saves few reads and gives up most of the durability.
            return Ok(Keeping::Shards { code: COLD_CODE, repair_at: COLD_CODE.shards() - 1 });
        }
        Ok(Keeping::Copies(self.copies))
    }

    /// Whether the storage that shards save is worth more than what their repairs read beyond those of copies.
    ///
    /// Each silence costs the part that the host keeps: remaking a shard reads a blob, as remaking a copy does.
    /// Both sides are multiplied by the shards needed and by the days between silences.
    const fn shards_cost_less(self) -> bool {
        let (needed, shards) = (COLD_CODE.needed() as u64, COLD_CODE.shards() as u64);
        let copies = self.copies as u64;
        let saved = (copies * needed).saturating_sub(shards) * READS_OF_A_STORED_YEAR as u64;
        let more_read = shards.saturating_sub(copies) * needed * DAYS_A_YEAR;
        saved * self.silent_every_days as u64 > more_read
    }
}
