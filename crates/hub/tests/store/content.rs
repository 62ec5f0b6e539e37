//! Blobs for tests: content that anyone can make again from a number.

use assay_hub::blob::TILE_BYTES;
use assay_hub::outboard::{Hashed, Make, hash_bytes};

pub(crate) fn content(size: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn hashed(bytes: &[u8]) -> Hashed {
    hash_bytes(bytes, Make::OutboardAndList)
}

/// The bytes of the tiles `range`.
pub(crate) fn of_tiles(bytes: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    let end = (range.end * TILE_BYTES).min(bytes.len() as u64);
    &bytes[(range.start * TILE_BYTES) as usize..end as usize]
}
