//! Bytes that come and go: what is a host's to keep is fetched and kept under its release's name; what others keep is let go, if they
//! show it at that moment.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use assay_hub::blob::{BlobHash, TILE_BYTES};
use assay_hub::cold::ColdError;
use assay_hub::cut::Cut;
use assay_hub::erasure::RestoreError;
use assay_hub::exchange::HostCard;
use assay_hub::fetch::{FetchError, fetch};
use assay_hub::keeping::{KeepError, keep, release_tag};
use assay_hub::limits::PEERS_MAX;
use assay_hub::peer::PeerAddress;
use assay_hub::release::Release;
use assay_hub::replication::{Drop, Fetch, HostId, Part, Source};
use assay_hub::store::{Blob, Collect, StoreError};

use super::{Event, Host, Releases, blocking, id};

/// Arrivals that nobody went on with for this long are deleted.
pub(super) const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

impl Host {
    pub(super) async fn fetch(&self, wanted: &Fetch, releases: &Releases) -> Result<(), RoundError> {
        let Some(demanded) = releases.get(&wanted.release) else { return Ok(()) };
        match (wanted.part, &demanded.cut, &wanted.from) {
            (Part::Whole, _, Source::Hosts(hosts)) => self.fetch_whole(&demanded.signed.record, hosts).await,
            (Part::Shard(index), Some(cut), from) => self.fetch_shard(cut, index, from).await,
            // The planner asks for neither.
            (Part::Whole, _, _) | (Part::Shard(_), None, _) => Ok(()),
        }
    }

    async fn fetch_whole(&self, release: &Release, hosts: &[HostId]) -> Result<(), RoundError> {
        let (blob, size) = (release.blob, release.size);
        self.arrive(blob, size, hosts).await?;
        let (store, release) = (self.store.clone(), release.clone());
        blocking(move || {
            let blob = store.blob(release.blob)?.ok_or(KeepError::Absent { blob: release.blob })?;
            let kept = keep(&store, &release, &blob);
            std::mem::drop(blob);
            if matches!(kept, Err(KeepError::Content { .. })) {
                // Nothing keeps it, and nobody asks for it again.
                store.gc(Collect::Delete, PARTIAL_AGE)?;
            }
            kept?;
            store.index(release.blob)?;
            Ok::<_, KeepError>(())
        })
        .await?;
        self.say(Event::Kept { blob, size });
        Ok(())
    }

    /// Fetches a blob into the store.
    pub(super) async fn arrive(&self, blob: BlobHash, size: u64, hosts: &[HostId]) -> Result<(), RoundError> {
        let peers = self.peers(hosts);
        let listener = Arc::clone(&self.listener);
        let mut progress = move |p: assay_hub::fetch::Progress| {
            listener(Event::Arriving { blob, verified: p.verified, size: p.size });
        };
        let options = &self.options.fetch;
        let fetched =
            fetch(&self.store, blob, Some(size), &peers, &self.dialer, options, &mut progress).await;
        let peers = match &fetched {
            Ok(fetched) => &fetched.report.peers[..],
            Err(FetchError::NoPeerLeft { peers, .. }) => peers,
            Err(_) => &[],
        };
        self.metrics.fetched(peers.iter().map(|peer| peer.bytes).sum());
        fetched?;
        Ok(())
    }

    pub(super) fn peers(&self, hosts: &[HostId]) -> Vec<PeerAddress> {
        let urls = hosts.iter().filter_map(|host| self.known.get(host)).map(|known| &known.url);
        urls.filter_map(|url| url.parse().ok()).take(PEERS_MAX).collect()
    }

    /// Lets a part go, if every host that is relied on gives a piece of what it keeps, chosen now, and stays. What something else than its
    /// releases keeps here, a pin for example, stays.
    pub(super) async fn drop(&self, drop: &Drop, releases: &Releases) -> Result<(), RoundError> {
        let cut = releases.get(&drop.release).and_then(|demanded| demanded.cut.as_ref());
        match (drop.part, cut) {
            (Part::Whole, cut) => self.drop_whole(drop, cut).await,
            (Part::Shard(index), Some(cut)) => self.drop_shard(drop, cut, index).await,
            (Part::Shard(_), None) => Ok(()),
        }
    }

    async fn drop_whole(&self, drop: &Drop, cut: Option<&Cut>) -> Result<(), RoundError> {
        let Some(blob) = self.store.blob(drop.release)? else { return Ok(()) };
        let named = self.catalogue.releases().into_iter().filter(|s| s.record.blob == drop.release);
        let tags: Vec<String> = named.map(|s| release_tag(&s.record)).collect();
        if self.store.tags()?.iter().any(|(tag, hash)| *hash == drop.release && !tags.contains(tag)) {
            return Ok(());
        }
        for host in &drop.relies_on {
            match cut {
                Some(cut) => self.shown_shard(*host, cut, &blob).await?,
                None => {
                    let (from, bytes) = tile(&blob)?;
                    let keeps = |card: &HostCard| {
                        let kept = card.keeps.iter().filter(|id| !card.leaves.contains(id));
                        let mut kept = kept.filter_map(|id| self.catalogue.by_id(*id));
                        kept.any(|s| s.record.blob == drop.release)
                    };
                    self.shown(*host, drop.release, from, &bytes, keeps).await?;
                }
            }
        }
        self.release(drop.release, blob, tags).await
    }

    /// Unties a blob from its tags and collects it.
    pub(super) async fn release(
        &self,
        hash: BlobHash,
        blob: Blob,
        tags: Vec<String>,
    ) -> Result<(), RoundError> {
        let store = self.store.clone();
        let freed = blocking(move || {
            // Nothing may hold the blob when it is collected.
            std::mem::drop(blob);
            tags.iter().try_for_each(|tag| store.untag(tag))?;
            store.gc(Collect::Delete, PARTIAL_AGE).map(|collected| collected.freed)
        });
        let freed = freed.await?;
        self.say(Event::Dropped { blob: hash, freed });
        Ok(())
    }

    /// A host gives these bytes now, and says now that it keeps the part.
    pub(super) async fn shown(
        &self,
        host: HostId,
        blob: BlobHash,
        from: u64,
        bytes: &[u8],
        keeps: impl Fn(&HostCard) -> bool,
    ) -> Result<(), RoundError> {
        let known = self.known.get(&host).ok_or(RoundError::Unproved { host })?;
        let gives = self.records.gives(&known.url, blob, from, bytes).await;
        let card = self.records.card(&known.url).await;
        let stays = card.is_ok_and(|card| id(card.address) == host && keeps(&card));
        if stays && gives.is_ok_and(|gives| gives) { Ok(()) } else { Err(RoundError::Unproved { host }) }
    }
}

/// A number below `bound` that nobody can foresee.
pub(super) fn any_below(bound: u64) -> u64 {
    RandomState::new().hash_one(bound) % bound.max(1)
}

/// A tile of a blob, chosen now: where it begins, and its bytes.
pub(super) fn tile(blob: &Blob) -> Result<(u64, Vec<u8>), RoundError> {
    let from = any_below(blob.tiles()) * TILE_BYTES;
    let mut bytes = vec![0; TILE_BYTES.min(blob.size() - from) as usize];
    blob.read_at(from, &mut bytes).map_err(|_| RoundError::Unread { blob: blob.hash() })?;
    Ok((from, bytes))
}

/// Why a step of a round was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cold(#[from] ColdError),
    #[error("{blob} cannot be read; run `assay hub fsck`")]
    Unread { blob: BlobHash },
    #[error("{host:?} does not show that it keeps it")]
    Unproved { host: HostId },
}

impl RoundError {
    pub(super) fn code(&self) -> &'static str {
        match self {
            RoundError::Fetch(e) => e.code(),
            RoundError::Keep(e) => e.code(),
            RoundError::Store(e) => e.code(),
            RoundError::Cold(e) => e.code(),
            RoundError::Unread { .. } => "blob_unreadable",
            RoundError::Unproved { .. } => "host_unproved",
        }
    }

    /// Whether right shards did not make what their set names.
    pub(super) fn is_false_cut(&self) -> bool {
        matches!(self, RoundError::Cold(ColdError::Restore(RestoreError::FalseSet { .. })))
    }
}
