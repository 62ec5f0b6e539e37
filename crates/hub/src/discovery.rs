//! Who has a model: what hosts say they know and keep, gathered into the catalogue that this machine remembers.
//!
//! A host is asked, not trusted: records are believed by their signatures, and what a version was once is what it stays, so that a
//! publisher who signs two releases of one version is found out by whoever saw the first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use assay_core::id::{Hash, ModelRoot};
use futures_util::future::join_all;

use crate::catalogue::{Added, Catalogue, CatalogueError};
use crate::erasure::SHARDS_MAX;
use crate::exchange::{Admission, Entry, ExchangeError, Records};
use crate::name::Reference;
use crate::release::{LabelRecord, Signed};

/// Most hosts that are asked.
pub const HOSTS_MAX: usize = 256;
/// Most records that one gathering learns.
pub const LEARN_MAX: usize = 4096;

/// Which releases are looked for.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// Those of publishers that a host admits.
    Admitted(&'a Admission),
    /// Those of a name.
    Named(&'a Reference),
    /// Those of a model.
    Root(ModelRoot),
}

impl Wanted<'_> {
    fn takes(&self, entry: &Entry) -> bool {
        match self {
            Wanted::Admitted(admission) => admission.admits(entry.publisher),
            Wanted::Named(r) => {
                entry.name == r.name && r.publisher.is_none_or(|publisher| publisher == entry.publisher)
            }
            Wanted::Root(root) => entry.root == *root,
        }
    }
}

/// What hosts said.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Which hosts say that they keep a release, by its id.
    pub keepers: BTreeMap<Hash, Vec<String>>,
    /// Which hosts say that they keep a shard of a release, by its id and the shard's index.
    pub shards: BTreeMap<Hash, BTreeMap<u8, Vec<String>>>,
    /// Ids of releases that were not known before.
    pub learnt: BTreeSet<Hash>,
    /// Hosts that could not be asked, and why.
    pub silent: Vec<(String, ExchangeError)>,
    /// Records that were not taken, and why.
    pub refused: Vec<CatalogueError>,
}

type Told = (Vec<Entry>, Vec<Signed<LabelRecord>>);

async fn ask(records: &Records, host: &str) -> Result<Told, ExchangeError> {
    Ok((records.index(host).await?, records.labels(host).await?))
}

/// Asks `hosts` for what is wanted, and adds to the catalogue what it did not know.
pub async fn gather(
    records: &Records,
    hosts: &[String],
    wanted: Wanted<'_>,
    catalogue: &Arc<Catalogue>,
) -> Gathered {
    let mut gathered = Gathered::default();
    let hosts = &hosts[..hosts.len().min(HOSTS_MAX)];
    let told = join_all(hosts.iter().map(|host| ask(records, host))).await;
    let mut labels = Vec::new();
    for (host, told) in hosts.iter().zip(told) {
        let (entries, some) = match told {
            Ok(told) => told,
            Err(e) => {
                gathered.silent.push((host.clone(), e));
                continue;
            }
        };
        labels.extend(some);
        for entry in entries.into_iter().filter(|entry| wanted.takes(entry)) {
            let known = catalogue.by_id(entry.id).is_some();
            if !known && gathered.learnt.len() < LEARN_MAX {
                match records.release(host, entry.id).await {
                    Ok(signed) => match add(catalogue, move |catalogue| catalogue.add(signed)).await {
                        Ok(()) => drop(gathered.learnt.insert(entry.id)),
                        Err(e) => {
                            gathered.refused.push(e);
                            continue;
                        }
                    },
                    // A host that does not give what it names is not asked for the rest.
                    Err(e) => {
                        gathered.silent.push((host.clone(), e));
                        break;
                    }
                }
            }
            if entry.cut.is_some() && catalogue.cut(entry.id).is_none() {
                match records.cut(host, entry.id).await {
                    Ok(cut) => match add(catalogue, move |catalogue| catalogue.add_cut(cut)).await {
                        Ok(()) => {}
                        Err(e) => gathered.refused.push(e),
                    },
                    Err(e) => {
                        gathered.silent.push((host.clone(), e));
                        break;
                    }
                }
            }
            let shards = entry.shards.iter().take(usize::from(SHARDS_MAX));
            for index in shards {
                let of_release = gathered.shards.entry(entry.id).or_default();
                of_release.entry(*index).or_default().push(host.clone());
            }
            if entry.kept {
                gathered.keepers.entry(entry.id).or_default().push(host.clone());
            }
        }
    }
    // Labels in order, so that the last move is the last; one that stands for what is not known here says nothing to anyone.
    labels.sort_by_key(|l| l.record.sequence);
    let known: BTreeSet<_> =
        catalogue.releases().into_iter().map(|s| (s.record.publisher, s.record.name)).collect();
    labels.retain(|l| known.contains(&(l.record.publisher, l.record.name.clone())));
    let taking = Arc::clone(catalogue);
    let work = tokio::task::spawn_blocking(move || {
        let moved = labels.into_iter().filter_map(|label| taking.move_label(label).err());
        moved.filter(|e| !matches!(e, CatalogueError::Stale { .. })).collect::<Vec<_>>()
    });
    gathered.refused.extend(work.await.expect("taking labels does not panic"));
    gathered
}

async fn add(
    catalogue: &Arc<Catalogue>,
    record: impl FnOnce(&Catalogue) -> Result<Added, CatalogueError> + Send + 'static,
) -> Result<(), CatalogueError> {
    let catalogue = Arc::clone(catalogue);
    let work = tokio::task::spawn_blocking(move || record(&catalogue).map(drop));
    work.await.expect("taking a record does not panic")
}
