//! What a publisher signs when a release is to be kept in shards: which shards its artifact was cut into.
//!
//! Whether shards make the blob can be told only by who has the blob or restores it. So a cut is believed by the signature of the release's
//! publisher, who can spoil nobody's release but its own; whoever restores compares with the blob's name. A release has one cut for ever, as
//! a version is one release for ever: all hosts then mean the same by a shard's number.

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, NodeAddress};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::erasure::{SHARD_SET_BYTES_MAX, ShardSet};
use crate::release::{Record, RecordError, Release, Signed};
use crate::replication::{Keeping, Release as Asked, ReleaseError};
use crate::store::footprint;

/// Of which shards a release's artifact is restored.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Who says so.
    pub publisher: NodeAddress,
    /// The release's id.
    pub release: Hash,
    /// The shards.
    pub set: ShardSet,
}

impl Canonical for Cut {
    const TAG: &'static str = "assay/cut/1";
    const BYTES_MAX: usize = SHARD_SET_BYTES_MAX + 256;
}

impl Record for Cut {
    fn publisher(&self) -> NodeAddress {
        self.publisher
    }

    fn check(&self) -> Result<(), RecordError> {
        Ok(())
    }
}

impl Cut {
    /// Whether it is a cut of this release.
    pub fn is_of(&self, signed: &Signed<Release>) -> bool {
        let r = &signed.record;
        self.publisher == r.publisher
            && self.release == signed.id()
            && (self.set.blob(), self.set.geometry().size()) == (r.blob, r.size)
    }

    /// What it asks of hosts: one shard each, made again as soon as one is missing.
    pub fn asked(&self) -> Result<Asked, ReleaseError> {
        let geometry = self.set.geometry();
        let code = geometry.code();
        let keeping = Keeping::Shards { code, repair_at: code.shards() - 1 };
        Asked::new(self.set.blob(), footprint(geometry.shard_bytes()), keeping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::BlobHash;
    use crate::erasure::{Code, Geometry, UNIT_BYTES};
    use crate::release::tests::{key, release};

    #[test]
    fn a_cut_is_its_publishers_and_one_releases() {
        let (author, other) = (key("author"), key("other"));
        let signed = Signed::by(&author, release(&author)).unwrap();
        let geometry = Geometry::new(signed.record.size, Code::new(2, 3).unwrap(), UNIT_BYTES).unwrap();
        let names = (0..3).map(|i| BlobHash::of(&[i])).collect();
        let set = ShardSet::new(signed.record.blob, geometry, names).unwrap();
        let cut = Cut { publisher: signed.record.publisher, release: signed.id(), set };
        assert!(Signed::by(&other, cut.clone()).is_err());
        let told = Signed::by(&author, cut.clone()).unwrap();
        let json = serde_json::to_string(&told).unwrap();
        assert_eq!(serde_json::from_str::<Signed<Cut>>(&json).unwrap().verified(), Ok(told));
        assert!(serde_json::from_str::<Signed<Cut>>(&json.replace("\"needed\":2", "\"needed\":3")).is_err());
        assert_eq!(Cut::from_canonical_bytes(&cut.to_canonical_bytes()).unwrap(), cut);
        assert!(cut.is_of(&signed));
        let next = Signed::by(&author, Release { version: "2".parse().unwrap(), ..signed.record }).unwrap();
        assert!(!cut.is_of(&next));
        assert_eq!(cut.asked().unwrap().hosts(), 3);
    }
}
