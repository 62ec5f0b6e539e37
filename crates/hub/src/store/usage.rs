//! What a store occupies, and what it may.

use std::time::SystemTime;

use super::Inner;
use super::error::StoreError;
use super::layout::{bytes_of, own_bytes};
use crate::blob::tiles;
use crate::outboard::outboard_bytes;

/// Bytes that a store may occupy: own tiles, outboards and tile lists, of arriving blobs at their full size. The index, some
/// hundred bytes a blob, is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Most bytes.
    pub bytes: u64,
}

impl Quota {
    /// As much as the disk has.
    pub const UNLIMITED: Quota = Quota { bytes: u64::MAX };

    /// At most `bytes`.
    pub const fn bytes(bytes: u64) -> Quota {
        Quota { bytes }
    }
}

/// What a store occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of whole blobs, with outboards and tile lists.
    pub blobs: u64,
    /// Bytes of files that are kept only because other blobs have tiles in them.
    pub donors: u64,
    /// Bytes that are reserved for arriving blobs.
    pub partials: u64,
    /// Bytes that the store may occupy.
    pub quota: u64,
}

impl Usage {
    /// Bytes that count against the quota.
    pub fn total(&self) -> u64 {
        self.blobs.saturating_add(self.donors).saturating_add(self.partials)
    }

    /// Bytes of the quota that are left.
    pub fn free(&self) -> u64 {
        self.quota.saturating_sub(self.total())
    }
}

/// Bytes that are reserved for a blob of `size` bytes: itself, its outboard, its tile list.
pub const fn footprint(size: u64) -> u64 {
    size + overhead(size)
}

/// Bytes of the outboard and the tile list.
pub(crate) const fn overhead(size: u64) -> u64 {
    outboard_bytes(size) + tiles(size) * 32
}

/// Seconds since 1970, by the system's clock.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

impl Inner {
    pub(super) fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage { quota: self.quota.bytes, ..Usage::default() };
        for (_, row) in self.index.blobs()? {
            usage.blobs += own_bytes(row.size, &row.runs) + overhead(row.size);
        }
        for (_, row) in self.index.donors()? {
            usage.donors +=
                row.held.iter().map(|(first, count)| bytes_of(row.size, *first..first + count)).sum::<u64>();
        }
        for (_, row) in self.index.partials()? {
            usage.partials += footprint(row.size);
        }
        Ok(usage)
    }

    /// Whether `wanted` bytes more are within the quota; the caller holds the accounts.
    pub(super) fn reserve(&self, wanted: u64) -> Result<(), StoreError> {
        let usage = self.usage()?;
        if wanted > usage.free() {
            return Err(StoreError::Quota { wanted, free: usage.free(), quota: usage.quota });
        }
        Ok(())
    }
}
