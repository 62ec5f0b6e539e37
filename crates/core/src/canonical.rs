//! Canonical bytes: one encoding per value, marked with what it is, so that a hash means one thing only.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::id::Hash;
use crate::keccak::keccak256;
use crate::limits::CANONICAL_BYTES_MAX;

/// Bytes that are not the canonical form of the expected value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// More bytes than anything canonical has.
    #[error("{got} bytes are more than the {max} allowed")]
    TooLong {
        /// Bytes given.
        got: usize,
        /// Most bytes of a value of this kind.
        max: usize,
    },
    /// The bytes are of another kind or version.
    #[error("these bytes are not a `{expected}`")]
    Tag {
        /// The tag that should lead.
        expected: &'static str,
    },
    /// The bytes do not parse, or more follow.
    #[error("malformed `{expected}`: {reason}")]
    Malformed {
        /// The tag that leads.
        expected: &'static str,
        /// What the parser says.
        reason: String,
    },
}

/// A value with canonical bytes: the tag's length as one byte, the tag, and the value in borsh.
pub trait Canonical: BorshSerialize + BorshDeserialize {
    /// Kind and version, at most 255 bytes, unique in the project.
    const TAG: &'static str;
    /// Most bytes that a reader takes.
    const BYTES_MAX: usize = CANONICAL_BYTES_MAX;

    /// The canonical bytes.
    fn to_canonical_bytes(&self) -> Vec<u8> {
        let mut bytes = prefix(Self::TAG);
        // Writing borsh to memory fails only for lengths beyond 32 bits, which no limit of ours comes near.
        let written = self.serialize(&mut bytes);
        debug_assert!(written.is_ok());
        bytes
    }

    /// The value that `bytes` encode, if they do so canonically.
    fn from_canonical_bytes(bytes: &[u8]) -> Result<Self, CanonicalError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(CanonicalError::TooLong { got: bytes.len(), max: Self::BYTES_MAX });
        }
        let body = bytes.strip_prefix(prefix(Self::TAG).as_slice());
        let body = body.ok_or(CanonicalError::Tag { expected: Self::TAG })?;
        Self::try_from_slice(body)
            .map_err(|e| CanonicalError::Malformed { expected: Self::TAG, reason: e.to_string() })
    }

    /// Keccak-256 of the canonical bytes.
    fn canonical_hash(&self) -> Hash {
        keccak256(&[&self.to_canonical_bytes()])
    }
}

fn prefix(tag: &str) -> Vec<u8> {
    let length = u8::try_from(tag.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![length];
    bytes.extend_from_slice(tag.as_bytes());
    bytes
}
