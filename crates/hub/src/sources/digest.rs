//! What a server promises about a file, and what it is compared with.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// How a file is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestKind {
    /// SHA-256 of the bytes: what Git LFS names a file by.
    Sha256,
    /// SHA-1 of `blob`, a space, the length in decimal, a zero byte, and the bytes: what Git names a file by.
    GitBlob,
    /// BLAKE3 of the bytes.
    Blake3,
}

impl DigestKind {
    fn bytes(self) -> usize {
        match self {
            DigestKind::Sha256 | DigestKind::Blake3 => 32,
            DigestKind::GitBlob => 20,
        }
    }

    fn name(self) -> &'static str {
        match self {
            DigestKind::Sha256 => "sha256",
            DigestKind::GitBlob => "git-sha1",
            DigestKind::Blake3 => "blake3",
        }
    }
}

/// A digest of a file's bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest {
    kind: DigestKind,
    bytes: Vec<u8>,
}

impl Digest {
    /// From hex digits; `None` if they are not as many as the kind has.
    pub fn from_hex(kind: DigestKind, text: &str) -> Option<Digest> {
        let bytes = hex::decode(text).ok().filter(|b| b.len() == kind.bytes())?;
        Some(Digest { kind, bytes })
    }

    /// How it is made.
    pub fn kind(&self) -> DigestKind {
        self.kind
    }

    /// Its hex digits.
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Makes a digest of bytes that come in pieces.
pub(super) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// For a file of `size` bytes, which Git hashes first.
    pub(super) fn new(kind: DigestKind, size: u64) -> Hasher {
        match kind {
            DigestKind::Sha256 => Hasher::Sha256(Sha256::new()),
            DigestKind::GitBlob => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
            DigestKind::Blake3 => Hasher::Blake3(Box::default()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::GitBlob(h) => h.update(bytes),
            Hasher::Blake3(h) => {
                h.update(bytes);
            }
        }
    }

    pub(super) fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(h) => Digest { kind: DigestKind::Sha256, bytes: h.finalize().to_vec() },
            Hasher::GitBlob(h) => Digest { kind: DigestKind::GitBlob, bytes: h.finalize().to_vec() },
            Hasher::Blake3(h) => Digest { kind: DigestKind::Blake3, bytes: h.finalize().as_bytes().to_vec() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf hello | git hash-object --stdin`, `sha256sum` and `b3sum`.
    #[test]
    fn digests_are_those_of_git_sha256sum_and_b3sum() {
        for (kind, expected) in [
            (DigestKind::GitBlob, "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"),
            (DigestKind::Sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"),
            (DigestKind::Blake3, "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"),
        ] {
            let mut hasher = Hasher::new(kind, 5);
            hasher.update(b"he");
            hasher.update(b"llo");
            let digest = hasher.finish();
            assert_eq!(digest.hex(), expected);
            assert_eq!(Digest::from_hex(kind, expected), Some(digest));
            assert_eq!(Digest::from_hex(kind, &expected[2..]), None);
            assert_eq!(Digest::from_hex(kind, &format!("{expected}00")), None);
        }
        assert_eq!(Digest::from_hex(DigestKind::Sha256, &"zz".repeat(32)), None);
    }
}
