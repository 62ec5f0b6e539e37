//! Shards of cold releases: one a host, fetched from whoever has it, cut of the whole, or made of others.
//!
//! The machine that published a cut release has the whole and all shards. It serves each until somebody else keeps it, and lets the whole go
//! like any copy: when every shard was shown to be kept.

use std::collections::BTreeMap;

use assay_hub::blob::BlobHash;
use assay_hub::cold::{Cold, Sources};
use assay_hub::cut::Cut;
use assay_hub::erasure::unit;
use assay_hub::exchange::HostCard;
use assay_hub::keeping::{Kept, shard_tag};
use assay_hub::replication::{Drop, HostId, Source};
use assay_hub::store::{Blob, Collect};

use super::parts::{PARTIAL_AGE, RoundError, any_below, tile};
use super::{Event, Host, Releases, blocking};

impl Host {
    pub(super) async fn fetch_shard(&self, cut: &Cut, index: u8, from: &Source) -> Result<(), RoundError> {
        let set = &cut.set;
        let (Some(name), size) = (set.name(index), set.geometry().shard_bytes()) else { return Ok(()) };
        let cold = Cold { store: &self.store, dialer: &self.dialer, options: &self.options.fetch };
        match from {
            Source::Hosts(hosts) => self.arrive(name, size, hosts).await?,
            Source::Wholes(hosts) => {
                // Who published it has the shards too. Who has the whole alone gives that, and it is cut here.
                if self.arrive(name, size, hosts).await.is_err() {
                    self.arrive(set.blob(), set.geometry().size(), hosts).await?;
                    cold.cut(set, index).await?;
                }
            }
            Source::Shards(parts) => {
                let mut sources = Sources::new();
                for (index, host) in parts {
                    sources.entry(*index).or_default().extend(self.peers(&[*host]));
                }
                let blob = name;
                let heard = |verified, size| self.say(Event::Arriving { blob, verified, size });
                cold.repair(set, index, &sources, &heard).await?;
            }
        }
        let (store, tag) = (self.store.clone(), shard_tag(set, index));
        blocking(move || {
            store.tag(&tag, name)?;
            store.index(name)?;
            // What was needed to make it is nobody's any more.
            store.gc(Collect::Delete, PARTIAL_AGE).map(drop)
        })
        .await?;
        self.say(Event::Kept { blob: name, size });
        Ok(())
    }

    /// Lets go of shards that this host has besides what it says it keeps, once every shard is kept by somebody.
    pub(super) async fn spare(
        &self,
        counted: &BTreeMap<BlobHash, u8>,
        releases: &Releases,
    ) -> Result<(), RoundError> {
        let all = self.catalogue.releases();
        let kept = Kept::of(&self.store)?;
        let mut spare = Vec::new();
        for (blob, demanded) in releases {
            let Some(cut) = &demanded.cut else { continue };
            let every = cut.set.geometry().code().shards();
            if counted.get(blob).copied().unwrap_or(0) < every {
                continue;
            }
            let whole = all.iter().any(|s| s.record.blob == *blob && kept.has(&s.record));
            let said = usize::from(!whole);
            spare.extend(kept.shards(&cut.set).skip(said).map(|index| shard_tag(&cut.set, index)));
        }
        if spare.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        blocking(move || {
            spare.iter().try_for_each(|tag| store.untag(tag))?;
            store.gc(Collect::Delete, PARTIAL_AGE).map(drop)
        })
        .await?;
        Ok(())
    }

    /// A host shows a piece of its shard, which is computed here of the whole.
    pub(super) async fn shown_shard(&self, host: HostId, cut: &Cut, whole: &Blob) -> Result<(), RoundError> {
        let unproved = RoundError::Unproved { host };
        let card = &self.known.get(&host).ok_or(RoundError::Unproved { host })?.card;
        let index = shard_of(card, cut).ok_or(RoundError::Unproved { host })?;
        let Some(name) = cut.set.name(index) else { return Err(unproved) };
        let (set, whole) = (cut.set.clone(), whole.clone());
        let piece = blocking(move || {
            let geometry = set.geometry();
            let stripe = any_below(geometry.stripes());
            let bytes = unit(&set, index, stripe, &|at, out| whole.read_at(at, out))?;
            Ok::<_, std::io::Error>((stripe * u64::from(geometry.unit_bytes()), bytes))
        });
        let (from, bytes) = piece.await.map_err(|_| RoundError::Unread { blob: cut.set.blob() })?;
        self.shown(host, name, from, &bytes, |card| shard_of(card, cut) == Some(index)).await
    }

    pub(super) async fn drop_shard(&self, drop: &Drop, cut: &Cut, index: u8) -> Result<(), RoundError> {
        let Some(name) = cut.set.name(index) else { return Ok(()) };
        let Some(shard) = self.store.blob(name)? else { return Ok(()) };
        for host in &drop.relies_on {
            let (from, bytes) = tile(&shard)?;
            self.shown(*host, name, from, &bytes, |card| shard_of(card, cut) == Some(index)).await?;
        }
        self.release(name, shard, vec![shard_tag(&cut.set, index)]).await
    }
}

/// The shard that a host says it keeps and goes on keeping.
fn shard_of(card: &HostCard, cut: &Cut) -> Option<u8> {
    let stays = !card.leaves.contains(&cut.release);
    card.shards.iter().find(|(id, _)| *id == cut.release && stays).map(|(_, index)| *index)
}
