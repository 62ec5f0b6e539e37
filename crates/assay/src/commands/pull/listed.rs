//! Which release a version is, where its publisher listed it on the ledger: the listing's manifest is `assay:` and the release's id.
//!
//! Invariant: of a publisher's name and version, a release that the publisher's listing does not name is not installed while another one is
//! named there. It refuses too where a listing names a release of this model that no host shows: it could be another of this version.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use anyhow::Result;
use assay_core::id::Hash;
use assay_hub::catalogue::Catalogue;
use assay_hub::exchange::Records;
use assay_hub::release::{Release, Signed};
use assay_ledger::retrieval::{Content, Listing, Roll};

/// Before a release's id in a listing's manifest.
const MANIFEST: &str = "assay:";
/// Most listings of one publisher whose releases are looked up.
const LISTINGS_MAX: usize = 64;
/// Most hosts that are asked for one of them.
const HOSTS_MAX: usize = 8;

/// Why a release is not what its publisher listed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListedError {
    /// The listing names another release of this version.
    #[error(
        "{version} is release {listed} by its publisher's listing on the ledger, and {got} was given: a host, or a record that this machine \
         heard of before, is not to be believed; look into hub/records of the data directory ({})", self.code()
    )]
    Another {
        /// Publisher, name and version.
        version: String,
        /// On the ledger.
        listed: Hash,
        /// What was given.
        got: Hash,
    },
    /// The listing names another release of this model, and no host shows which version that is.
    #[error(
        "the publisher's listing of this model names release {listed}, which no host shows, and {version} is {got}: ask other hosts \
         with --from ({})", self.code()
    )]
    Unshown {
        /// Publisher, name and version.
        version: String,
        /// On the ledger.
        listed: Hash,
        /// What was given.
        got: Hash,
    },
    /// The listing names the release, and another content.
    #[error(
        "the listing of {version} names content {listed} and the release names {got}: do not trust this release ({})", self.code()
    )]
    Content {
        /// Publisher, name and version.
        version: String,
        /// On the ledger.
        listed: Hash,
        /// In the release.
        got: Hash,
    },
}

impl ListedError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ListedError::Another { .. } => "release_not_as_listed",
            ListedError::Unshown { .. } => "listed_release_unknown",
            ListedError::Content { .. } => "content_not_as_listed",
        }
    }
}

/// The release that a listing names.
fn named(listing: &Listing) -> Option<Hash> {
    listing.manifest.strip_prefix(MANIFEST)?.parse().ok()
}

/// Refuses a release that is not what its publisher's listings say.
pub async fn check(
    roll: &Roll,
    records: &Records,
    hosts: &[String],
    known: &Catalogue,
    release: &Signed<Release>,
) -> Result<()> {
    let publisher = Address::from(*release.record.publisher.as_bytes());
    let listings = roll.listings_of(publisher).await?;
    let mut shown = BTreeMap::new();
    let own = listings.iter().find(|l| l.id.model == release.record.root).and_then(named);
    if own != Some(release.id()) {
        // The one of this model first: it is missed the most.
        let mut ids: Vec<Hash> = own.into_iter().chain(listings.iter().filter_map(named)).collect();
        ids.truncate(LISTINGS_MAX);
        for id in ids {
            if !shown.contains_key(&id)
                && let Some(found) = show(records, hosts, known, id).await
            {
                shown.insert(id, found);
            }
        }
    }
    Ok(decide(&listings, &shown, release)?)
}

async fn show(records: &Records, hosts: &[String], known: &Catalogue, id: Hash) -> Option<Signed<Release>> {
    if let Some(found) = known.by_id(id) {
        return Some(found);
    }
    for host in hosts.iter().take(HOSTS_MAX) {
        if let Ok(found) = records.release(host, id).await {
            return Some(found);
        }
    }
    None
}

/// The rule, over a publisher's listings and the releases behind them that somebody showed.
fn decide(
    listings: &[Listing],
    shown: &BTreeMap<Hash, Signed<Release>>,
    release: &Signed<Release>,
) -> Result<(), ListedError> {
    let (r, got) = (&release.record, release.id());
    let version = || format!("{}/{}@{}", r.publisher, r.name, r.version);
    let own = listings.iter().find(|l| l.id.model == r.root);
    if let Some(listing) = own.filter(|l| named(l) == Some(got)) {
        let content = Content { root: r.content_root, chunks: r.chunks() };
        return match listing.content {
            Some(listed) if listed != content => {
                Err(ListedError::Content { version: version(), listed: listed.root, got: content.root })
            }
            _ => Ok(()),
        };
    }
    for listing in listings {
        let Some(listed) = named(listing) else { continue };
        let found = shown.get(&listed).map(|s| &s.record);
        // Somebody else's release, or that of another model, in a manifest says nothing.
        let found = found.map(|f| {
            f.publisher == r.publisher
                && f.root == listing.id.model
                && f.name == r.name
                && f.version == r.version
        });
        match found {
            Some(true) => return Err(ListedError::Another { version: version(), listed, got }),
            None if listing.id.model == r.root => {
                return Err(ListedError::Unshown { version: version(), listed, got });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloy_primitives::keccak256;
    use alloy_signer_local::PrivateKeySigner;
    use assay_core::id::{ModelRoot, NodeAddress};
    use assay_hub::blob::BlobHash;
    use assay_ledger::retrieval::ListingId;

    use super::*;

    fn release(version: &str, root: u8, content: u8) -> Signed<Release> {
        let key = PrivateKeySigner::from_bytes(&keccak256("author")).unwrap();
        let record = Release {
            publisher: NodeAddress::from_bytes(key.address().into_array()),
            name: "stories".parse().unwrap(),
            version: version.parse().unwrap(),
            root: ModelRoot::from_bytes([root; 32]),
            blob: BlobHash::of(&[content]),
            size: 1,
            content_root: Hash::from_bytes([content; 32]),
            profile: "int8-v1".into(),
            parameters: 1,
            context: 1,
            licence: String::new(),
            royalty_ppm: 0,
            copies: 1,
            card: String::new(),
            sources: vec![],
            published_at: 0,
        };
        Signed::by(&key, record).unwrap()
    }

    fn listing(of: &Signed<Release>, manifest: String) -> Listing {
        let r = &of.record;
        Listing {
            id: ListingId { model: r.root, owner: Address::from(*r.publisher.as_bytes()) },
            royalty_ppm: 0,
            listed_at: 1,
            content: Some(Content { root: r.content_root, chunks: r.chunks() }),
            manifest,
        }
    }

    #[test]
    fn the_listing_decides_which_release_a_version_is() {
        let by = |of: &Signed<Release>| listing(of, format!("assay:{}", of.id()));
        let (one, twin, other_root) = (release("1", 1, 1), release("1", 1, 2), release("1", 2, 3));
        let two = release("2", 1, 4);
        let shown =
            |all: &[&Signed<Release>]| all.iter().map(|s| (s.id(), (*s).clone())).collect::<BTreeMap<_, _>>();
        let code = |listings: &[Listing], known: &[&Signed<Release>], of: &Signed<Release>| {
            decide(listings, &shown(known), of).err().map(|e| e.code())
        };
        // Not listed, or listed as it is.
        assert_eq!(code(&[], &[], &one), None);
        assert_eq!(code(&[by(&one)], &[], &one), None);
        assert_eq!(code(&[listing(&one, "https://example.org".into())], &[], &twin), None);
        // The same version as another release: of the same model, or of another one.
        assert_eq!(code(&[by(&one)], &[&one], &twin), Some("release_not_as_listed"));
        assert_eq!(code(&[by(&one)], &[&one], &other_root), Some("release_not_as_listed"));
        assert_eq!(code(&[by(&one)], &[], &twin), Some("listed_release_unknown"));
        // Another version of the same model is another release.
        assert_eq!(code(&[by(&one)], &[&one], &two), None);
        // A manifest that names a release of another model says nothing about it.
        assert_eq!(code(&[listing(&other_root, format!("assay:{}", one.id()))], &[&one], &twin), None);
        let lying = Listing { content: Some(Content { root: Hash::ZERO, chunks: 1 }), ..by(&one) };
        assert_eq!(code(&[lying], &[], &one), Some("content_not_as_listed"));
    }
}
