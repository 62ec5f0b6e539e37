//! Blobs: immutable byte strings, named by what they hash to.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a tile, the unit in which blobs are verified, transferred and shared between versions: one chunk group of BLAKE3 and as
/// many weights as a tile of a matrix has. The last tile of a blob may be shorter.
pub const TILE_BYTES: u64 = 16 << 10;
/// Bytes of a chunk, the unit in which the ledger asks for content. The last chunk of a blob may be shorter.
pub const CHUNK_BYTES: u64 = 4 << 10;
/// Most bytes of a blob: 16 TiB.
pub const BLOB_BYTES_MAX: u64 = 16 << 40;

/// How many tiles a blob of `size` bytes has. An empty blob has one, which is empty.
pub const fn tiles(size: u64) -> u64 {
    if size == 0 { 1 } else { size.div_ceil(TILE_BYTES) }
}

/// A blob's name: the BLAKE3 of its bytes, written as 64 hex digits, as `b3sum` prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct BlobHash([u8; 32]);

/// Text that names no blob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a blob is named by 64 hex digits, not by {got:?}")]
pub struct BlobHashError {
    got: String,
}

impl BlobHash {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> BlobHash {
        BlobHash(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name of `bytes`.
    pub fn of(bytes: &[u8]) -> BlobHash {
        BlobHash(*blake3::hash(bytes).as_bytes())
    }

    /// The first eight hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobHash({self})")
    }
}

impl FromStr for BlobHash {
    type Err = BlobHashError;

    fn from_str(text: &str) -> Result<BlobHash, BlobHashError> {
        let mut bytes = [0; 32];
        let ok =
            !text.bytes().any(|b| b.is_ascii_uppercase()) && hex::decode_to_slice(text, &mut bytes).is_ok();
        if ok { Ok(BlobHash(bytes)) } else { Err(BlobHashError { got: text.chars().take(80).collect() }) }
    }
}

impl Serialize for BlobHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BlobHash, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let hash = BlobHash::of(b"assay");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_string(), blake3::hash(b"assay").to_hex().to_string());
        let wrong = [
            String::new(),
            "0x".to_owned() + &hash.to_string(),
            hash.to_string().to_uppercase(),
            hash.to_string() + "00",
            "é".repeat(32),
        ];
        for text in wrong {
            assert!(text.parse::<BlobHash>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_tile_may_be_short() {
        for (size, count) in [(0, 1), (1, 1), (TILE_BYTES, 1), (TILE_BYTES + 1, 2), (3 * TILE_BYTES, 3)] {
            assert_eq!(tiles(size), count, "{size}");
        }
    }
}
