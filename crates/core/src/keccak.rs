//! Keccak-256, the hash that contracts have.

use crate::id::Hash;

/// Keccak-256 of the parts one after the other.
pub fn keccak256(parts: &[&[u8]]) -> Hash {
    let mut h = alloy_primitives::Keccak256::new();
    for p in parts {
        h.update(p);
    }
    Hash::from_bytes(h.finalize().0)
}
