//! What publishers sign: releases, which stay, and labels, which move.
//!
//! A record is signed over the Keccak-256 of its canonical bytes by the key of the publisher that it names; the JSON in which it
//! travels is never hashed. Two releases of one version that differ are a lie that anyone can show to anyone.

use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot, NodeAddress, SignatureBytes};
use assay_core::signature::signer;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::blob::{BLOB_BYTES_MAX, BlobHash, CHUNK_BYTES};
use crate::name::{Label, ModelName, Version};
use crate::replication::COPIES_MAX;

/// Most bytes of a model card.
pub const CARD_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a licence's name.
pub const LICENCE_BYTES_MAX: usize = 128;
/// Most bytes of a profile's name.
pub const PROFILE_BYTES_MAX: usize = 32;
/// Most source files that a release names.
pub const SOURCES_MAX: usize = 512;
/// Most bytes of a source file's name.
pub const SOURCE_BYTES_MAX: usize = 256;
/// Most bytes of a signed record as JSON: escaping may take six bytes for one.
pub const RECORD_JSON_BYTES_MAX: usize = 2 << 20;
const PPM: u32 = 1_000_000;

/// One version of a model.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Who says so.
    pub publisher: NodeAddress,
    /// The name, which is the publisher's.
    pub name: ModelName,
    /// The version.
    pub version: Version,
    /// What exactly computes.
    pub root: ModelRoot,
    /// The artifact.
    pub blob: BlobHash,
    /// Bytes of the artifact.
    pub size: u64,
    /// Keccak Merkle root over the artifact's chunks, of which the ledger asks hosts.
    pub content_root: Hash,
    /// Name of the arithmetic.
    pub profile: String,
    /// How many weights.
    pub parameters: u64,
    /// Tokens of its window.
    pub context: u32,
    /// Licence of the weights, in SPDX's words.
    pub licence: String,
    /// The publisher's share of each fee, in millionths.
    pub royalty_ppm: u32,
    /// How many hosts should keep it.
    pub copies: u8,
    /// For people, in Markdown.
    pub card: String,
    /// Files it was imported from, and their BLAKE3: whoever imports them gets the same root.
    pub sources: Vec<(String, BlobHash)>,
    /// When, in seconds since 1970.
    pub published_at: u64,
}

impl Canonical for Release {
    const TAG: &'static str = "assay/release/1";
    const BYTES_MAX: usize = CARD_BYTES_MAX + SOURCES_MAX * (SOURCE_BYTES_MAX + 64) + 4096;
}

/// Which version a label stands for.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelRecord {
    /// Who says so.
    pub publisher: NodeAddress,
    /// The name.
    pub name: ModelName,
    /// The label.
    pub label: Label,
    /// What it stands for.
    pub version: Version,
    /// Counts the label's moves: the highest holds.
    pub sequence: u64,
}

impl Canonical for LabelRecord {
    const TAG: &'static str = "assay/label/1";
    const BYTES_MAX: usize = 1024;
}

/// Why a record is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No key signed it in the accepted form.
    #[error("the record's signature is malformed")]
    Malformed,
    /// Somebody else signed it.
    #[error("the record names {publisher} as publisher, but {signer} signed it")]
    Signer {
        /// Who should have.
        publisher: NodeAddress,
        /// Who did.
        signer: NodeAddress,
    },
    /// A field is beyond its limit.
    #[error("the record's {field} is {got}; at most {max} is allowed")]
    Limit {
        /// Which.
        field: &'static str,
        /// What it has.
        got: u64,
        /// What it may have.
        max: u64,
    },
    /// The key cannot sign.
    #[error("the key cannot sign")]
    Unsigned,
}

impl RecordError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            RecordError::Malformed => "record_malformed",
            RecordError::Signer { .. } => "record_signer",
            RecordError::Limit { .. } => "record_limit",
            RecordError::Unsigned => "record_unsigned",
        }
    }
}

/// What a publisher can sign.
pub trait Record: Canonical {
    /// Who must sign it.
    fn publisher(&self) -> NodeAddress;

    /// Refuses what is beyond a limit.
    fn check(&self) -> Result<(), RecordError>;
}

impl Record for Release {
    fn publisher(&self) -> NodeAddress {
        self.publisher
    }

    fn check(&self) -> Result<(), RecordError> {
        let longest = self.sources.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let limits = [
            ("size", self.size, BLOB_BYTES_MAX),
            ("profile", self.profile.len() as u64, PROFILE_BYTES_MAX as u64),
            ("licence", self.licence.len() as u64, LICENCE_BYTES_MAX as u64),
            ("royalty", u64::from(self.royalty_ppm), u64::from(PPM)),
            ("number of copies", u64::from(self.copies), u64::from(COPIES_MAX)),
            ("card", self.card.len() as u64, CARD_BYTES_MAX as u64),
            ("number of sources", self.sources.len() as u64, SOURCES_MAX as u64),
            ("source's name", longest as u64, SOURCE_BYTES_MAX as u64),
        ];
        match limits.into_iter().find(|(_, got, max)| got > max) {
            Some((field, got, max)) => Err(RecordError::Limit { field, got, max }),
            None => Ok(()),
        }
    }
}

impl Release {
    /// How many chunks the artifact has.
    pub fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK_BYTES)
    }
}

impl Record for LabelRecord {
    fn publisher(&self) -> NodeAddress {
        self.publisher
    }

    fn check(&self) -> Result<(), RecordError> {
        Ok(())
    }
}

/// A record with a signature, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<R> {
    /// What was signed.
    pub record: R,
    /// The signature.
    pub signature: SignatureBytes,
}

impl<R: Record> Signed<R> {
    /// Signs a record.
    pub fn by(key: &PrivateKeySigner, record: R) -> Result<Signed<R>, RecordError> {
        let hash = record.canonical_hash();
        let signed = key.sign_hash_sync(&hash.as_bytes().into()).map_err(|_| RecordError::Unsigned)?;
        let signed = Signed { record, signature: SignatureBytes::from_bytes(signed.as_bytes()) };
        signed.verified()
    }

    /// The record, if it keeps its limits and its publisher signed it.
    pub fn verified(self) -> Result<Signed<R>, RecordError> {
        self.record.check()?;
        let publisher = self.record.publisher();
        match signer(&self.id(), &self.signature).ok_or(RecordError::Malformed)? {
            signer if signer == publisher => Ok(self),
            signer => Err(RecordError::Signer { publisher, signer }),
        }
    }

    /// Names the record: the hash that is signed.
    pub fn id(&self) -> Hash {
        self.record.canonical_hash()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use alloy_primitives::keccak256;

    use super::*;

    pub(crate) fn key(name: &str) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&keccak256(name)).unwrap()
    }

    pub(crate) fn release(by: &PrivateKeySigner) -> Release {
        Release {
            publisher: NodeAddress::from_bytes(by.address().into_array()),
            name: "stories".parse().unwrap(),
            version: "1.0.0".parse().unwrap(),
            root: ModelRoot::from_bytes([7; 32]),
            blob: BlobHash::of(b"bytes"),
            size: 5,
            content_root: Hash::ZERO,
            profile: "int8-v1".into(),
            parameters: 5,
            context: 256,
            licence: "MIT".into(),
            royalty_ppm: 10_000,
            copies: 3,
            card: "# Stories".into(),
            sources: vec![("model.safetensors".into(), BlobHash::of(b"source"))],
            published_at: 1_700_000_000,
        }
    }

    #[test]
    fn a_record_is_believed_from_its_publisher_only() {
        let (author, other) = (key("author"), key("other"));
        let signed = Signed::by(&author, release(&author)).unwrap();
        assert_eq!(signed.clone().verified(), Ok(signed.clone()));
        let json = serde_json::to_string(&signed).unwrap();
        assert!(json.len() < RECORD_JSON_BYTES_MAX);
        assert_eq!(serde_json::from_str::<Signed<Release>>(&json).unwrap().verified(), Ok(signed.clone()));
        assert!(matches!(Signed::by(&other, release(&author)), Err(RecordError::Signer { .. })));
        let mut changed = signed.clone();
        changed.record.royalty_ppm += 1;
        assert!(matches!(changed.verified(), Err(RecordError::Signer { .. } | RecordError::Malformed)));
        let mut bent = signed.clone();
        bent.signature = SignatureBytes::from_bytes([0xff; 65]);
        assert_eq!(bent.verified(), Err(RecordError::Malformed));
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_past_it() {
        let author = key("author");
        type Change = fn(&mut Release);
        let changes: [(Change, Change); 7] = [
            (|r| r.size = BLOB_BYTES_MAX, |r| r.size = BLOB_BYTES_MAX + 1),
            (|r| r.card = "x".repeat(CARD_BYTES_MAX), |r| r.card.push('x')),
            (|r| r.licence = "x".repeat(LICENCE_BYTES_MAX), |r| r.licence.push('x')),
            (|r| r.profile = "x".repeat(PROFILE_BYTES_MAX), |r| r.profile.push('x')),
            (|r| r.royalty_ppm = PPM, |r| r.royalty_ppm += 1),
            (|r| r.copies = COPIES_MAX, |r| r.copies += 1),
            (
                |r| r.sources = vec![("s".repeat(SOURCE_BYTES_MAX), BlobHash::of(b"")); SOURCES_MAX],
                |r| r.sources.push(("s".into(), BlobHash::of(b""))),
            ),
        ];
        let mut record = release(&author);
        for (at, past) in changes {
            at(&mut record);
            let signed = Signed::by(&author, record.clone()).unwrap();
            let bytes = signed.record.to_canonical_bytes();
            assert_eq!(Release::from_canonical_bytes(&bytes).unwrap(), signed.record);
            let mut beyond = record.clone();
            past(&mut beyond);
            assert!(matches!(Signed::by(&author, beyond), Err(RecordError::Limit { .. })));
        }
    }

    #[test]
    fn foreign_bytes_never_panic() {
        use proptest::prelude::*;
        let author = key("author");
        let bytes = release(&author).to_canonical_bytes();
        proptest!(|(at in 0..bytes.len(), with: u8, cut in 0..bytes.len())| {
            let mut changed = bytes.clone();
            changed[at] = with;
            if let Ok(read) = Release::from_canonical_bytes(&changed) {
                prop_assert_eq!(read.to_canonical_bytes(), changed);
            }
            prop_assert!(Release::from_canonical_bytes(&bytes[..cut]).is_err());
        });
    }
}
