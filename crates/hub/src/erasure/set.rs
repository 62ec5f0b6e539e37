//! The record that says of which shards a blob can be restored. It is parsed into a value whose numbers fit together, or refused.

use std::io;

use assay_core::canonical::Canonical;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::blob::{BLOB_BYTES_MAX, BlobHash, TILE_BYTES};

/// Most shards of a blob.
pub const SHARDS_MAX: u8 = 64;
/// Bytes that a stripe takes of each shard, unless a set says otherwise: four tiles. With ten shards needed, a stripe is 640 KiB.
pub const UNIT_BYTES: u32 = 4 * TILE_BYTES as u32;
/// Most bytes that a stripe may take of each shard, so that a stripe of all shards is at most 64 MiB.
pub const UNIT_BYTES_MAX: u32 = 1 << 20;
/// What the last stripe's units are rounded up to: the field's arithmetic works on this many bytes at once.
pub const LANE_BYTES: u64 = 64;
/// Most bytes of a set's canonical form.
pub const SHARD_SET_BYTES_MAX: usize = 4 << 10;

/// How many shards there are, and how many of them, no matter which, restore the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code {
    needed: u8,
    shards: u8,
}

/// Numbers that make no set of shards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardSetError {
    /// A code that keeps nothing, adds nothing, or has more shards than a set may have.
    #[error("{needed} of {shards} shards is no code: give 1 to {} needed, and more shards than that, at most {SHARDS_MAX}", SHARDS_MAX - 1)]
    Code {
        /// Shards needed.
        needed: u8,
        /// Shards in all.
        shards: u8,
    },
    /// A blob that is empty or too large.
    #[error("a blob of {got} bytes is not cut into shards: it must have 1 to {BLOB_BYTES_MAX}")]
    Size {
        /// Bytes of the blob.
        got: u64,
    },
    /// A unit that is no whole number of tiles, or too large.
    #[error("a unit of {got} bytes is refused: give a multiple of {TILE_BYTES}, at most {UNIT_BYTES_MAX}")]
    Unit {
        /// Bytes of the unit.
        got: u32,
    },
    /// Not one name for each shard.
    #[error("{got} names for {expected} shards")]
    Names {
        /// Shards in all.
        expected: u8,
        /// Names given.
        got: usize,
    },
}

impl ShardSetError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ShardSetError::Code { .. } => "shards_code",
            ShardSetError::Size { .. } => "shards_size",
            ShardSetError::Unit { .. } => "shards_unit",
            ShardSetError::Names { .. } => "shards_names",
        }
    }
}

impl Code {
    /// `needed` of `shards`.
    pub const fn new(needed: u8, shards: u8) -> Result<Code, ShardSetError> {
        if needed == 0 || shards <= needed || shards > SHARDS_MAX {
            return Err(ShardSetError::Code { needed, shards });
        }
        Ok(Code { needed, shards })
    }

    /// How many shards restore the blob: *k*.
    pub const fn needed(self) -> u8 {
        self.needed
    }

    /// How many shards there are: *n*.
    pub const fn shards(self) -> u8 {
        self.shards
    }
}

/// How the bytes of a blob lie in its shards.
///
/// The blob is read in stripes of `needed` units; unit *i* of a stripe goes to shard *i* (a *data shard*), and the shards beyond
/// are computed of a stripe's units (*parity shards*). The last stripe's units are as short as its bytes allow, in lanes, and filled up with
/// zeros. So every tile of the blob, but those of the last stripe, lies whole in one data shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    code: Code,
    unit: u32,
}

impl Geometry {
    /// The geometry of a blob of `size` bytes.
    pub const fn new(size: u64, code: Code, unit: u32) -> Result<Geometry, ShardSetError> {
        if size == 0 || size > BLOB_BYTES_MAX {
            return Err(ShardSetError::Size { got: size });
        }
        if unit == 0 || !(unit as u64).is_multiple_of(TILE_BYTES) || unit > UNIT_BYTES_MAX {
            return Err(ShardSetError::Unit { got: unit });
        }
        Ok(Geometry { size, code, unit })
    }

    /// Bytes of the blob.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// How many shards, and how many of them are needed.
    pub const fn code(self) -> Code {
        self.code
    }

    /// Bytes that each stripe but the last takes of each shard.
    pub const fn unit_bytes(self) -> u32 {
        self.unit
    }

    /// Bytes of the blob in a stripe that is not the last.
    pub const fn stripe_bytes(self) -> u64 {
        self.unit as u64 * self.code.needed as u64
    }

    /// How many stripes there are.
    pub const fn stripes(self) -> u64 {
        self.size.div_ceil(self.stripe_bytes())
    }

    /// Bytes that stripe `index` takes of each shard.
    pub const fn unit_of(self, index: u64) -> u64 {
        let rest = self.size.saturating_sub(index * self.stripe_bytes());
        if rest >= self.stripe_bytes() {
            return self.unit as u64;
        }
        rest.div_ceil(self.code.needed as u64).next_multiple_of(LANE_BYTES)
    }

    /// Bytes of each shard.
    pub const fn shard_bytes(self) -> u64 {
        let last = self.stripes() - 1;
        last * self.unit as u64 + self.unit_of(last)
    }

    /// Where byte `offset` of the blob lies: the data shard, the offset in it, and how many bytes of the blob follow there without a
    /// break. `None` beyond the blob's end.
    pub fn place(self, offset: u64) -> Option<Place> {
        let left = self.size.checked_sub(offset).filter(|left| *left > 0)?;
        let stripe = offset / self.stripe_bytes();
        let within = offset % self.stripe_bytes();
        let unit = self.unit_of(stripe);
        Some(Place {
            shard: u8::try_from(within / unit).expect("a stripe has fewer units than SHARDS_MAX"),
            offset: stripe * u64::from(self.unit) + within % unit,
            bytes: left.min(unit - within % unit),
        })
    }
}

/// Where bytes of a blob lie in its data shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The data shard's index.
    pub shard: u8,
    /// The offset in the shard.
    pub offset: u64,
    /// How many bytes of the blob follow there.
    pub bytes: u64,
}

/// Of which shards a blob can be restored. Each shard is a blob of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct ShardSet {
    blob: BlobHash,
    geometry: Geometry,
    names: Vec<BlobHash>,
}

impl ShardSet {
    /// The set of the blob named `blob`, whose shards are named `names` in order of their index.
    pub fn new(blob: BlobHash, geometry: Geometry, names: Vec<BlobHash>) -> Result<ShardSet, ShardSetError> {
        let expected = geometry.code.shards;
        if names.len() != usize::from(expected) {
            return Err(ShardSetError::Names { expected, got: names.len() });
        }
        Ok(ShardSet { blob, geometry, names })
    }

    /// The blob that is restored.
    pub const fn blob(&self) -> BlobHash {
        self.blob
    }

    /// How its bytes lie in the shards.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The shards' names, data shards first. Equal shards have one name.
    pub fn names(&self) -> &[BlobHash] {
        &self.names
    }

    /// The name of shard `index`.
    pub fn name(&self, index: u8) -> Option<BlobHash> {
        self.names.get(usize::from(index)).copied()
    }
}

#[derive(BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    blob: BlobHash,
    size: u64,
    needed: u8,
    shards: u8,
    unit: u32,
    names: Vec<BlobHash>,
}

impl From<ShardSet> for Fields {
    fn from(set: ShardSet) -> Fields {
        let Geometry { size, code, unit } = set.geometry;
        Fields { blob: set.blob, size, needed: code.needed, shards: code.shards, unit, names: set.names }
    }
}

impl TryFrom<Fields> for ShardSet {
    type Error = ShardSetError;

    fn try_from(fields: Fields) -> Result<ShardSet, ShardSetError> {
        let Fields { blob, size, needed, shards, unit, names } = fields;
        let geometry = Geometry::new(size, Code::new(needed, shards)?, unit)?;
        ShardSet::new(blob, geometry, names)
    }
}

impl BorshSerialize for ShardSet {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        BorshSerialize::serialize(&Fields::from(self.clone()), writer)
    }
}

impl BorshDeserialize for ShardSet {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<ShardSet> {
        let set = ShardSet::try_from(Fields::deserialize_reader(reader)?);
        set.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl Canonical for ShardSet {
    const TAG: &'static str = "assay/shards/1";
    const BYTES_MAX: usize = SHARD_SET_BYTES_MAX;
}
