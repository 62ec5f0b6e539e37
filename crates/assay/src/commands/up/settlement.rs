//! A provider that settles by itself: `assay up --settle`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use anyhow::Result;
use assay_core::id::ModelRoot;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_ledger::ledger::Ledger;
use assay_ledger::retrieval::Roll;
use assay_node::settlement::{Described, Event, Listener, Settlement, SettlementOptions};
use assay_node::store::ReceiptStore;

use crate::commands::auditor::library;
use crate::commands::ledger::connection::open_sender;
use crate::home::Home;

/// Time between two looks at the ledger.
pub const EVERY: Duration = Duration::from_secs(15);
/// Threads that execute again what is disputed: paid work comes first.
const THREADS: usize = 1;

/// The settlement of this node's key, whose `routes` go beside the API's and which `start` drives. `models` are those that it serves.
pub async fn settlement(
    home: &Home,
    ledger: Ledger,
    key: PrivateKeySigner,
    store: Arc<ReceiptStore>,
    models: &[ModelRoot],
    endpoint: Option<String>,
) -> Result<Settlement> {
    let sender = open_sender(home, ledger.client(), key).await?;
    let owners = owners(home, &ledger, models).await?;
    let options = SettlementOptions {
        folder: home.path().join("node").join("epochs"),
        owners,
        described: Described { endpoint, price_list: None },
    };
    let library = library(home, Kernel::from_environment()?, Arc::new(Pool::new(THREADS)));
    Ok(Settlement::open(ledger, sender, store, Arc::new(library), options, listener()).await?)
}

/// Whose entry of each model is paid: the only one that there is. Where several list the same root, nobody is paid until one is named.
async fn owners(home: &Home, ledger: &Ledger, models: &[ModelRoot]) -> Result<BTreeMap<ModelRoot, Address>> {
    let mut roll = Roll::open(ledger.clone(), &home.ledger()).await?;
    roll.update().await?;
    if let Err(e) = roll.store(&home.ledger()).await? {
        tracing::warn!(reason = %e, "names of the ledger's log were not stored");
    }
    let served: BTreeSet<&ModelRoot> = models.iter().collect();
    let mut owners: BTreeMap<ModelRoot, Vec<Address>> = BTreeMap::new();
    for id in roll.names().listings.iter().filter(|id| served.contains(&id.model)) {
        owners.entry(id.model).or_default().push(id.owner);
    }
    let only = |(model, all): (ModelRoot, Vec<Address>)| match all[..] {
        [owner] => Some((model, owner)),
        _ => {
            tracing::warn!(%model, listings = all.len(), "several list this model: its royalty is paid to nobody");
            None
        }
    };
    Ok(owners.into_iter().filter_map(only).collect())
}

/// Events as lines of the log.
fn listener() -> Listener {
    Arc::new(|event| match event {
        Event::Claimed { channels } => tracing::info!(channels, "claimed"),
        Event::Income => tracing::info!("what was claimed is in the pot"),
        Event::Short { channel, owed, balance } => {
            tracing::warn!(%channel, %owed, %balance, "a channel holds less than it owes")
        }
        Event::Posted { epoch, count, total } => tracing::info!(epoch, count, %total, "posted"),
        Event::Missed { epoch } => {
            tracing::warn!(epoch, "not posted in time; receipts wait for the next epoch")
        }
        Event::Closed { epoch } => tracing::info!(epoch, "closed"),
        Event::BeaconFixed { epoch } => tracing::info!(epoch, "beacon fixed"),
        Event::Settled { epoch, earned } => tracing::info!(epoch, %earned, "settled"),
        Event::Released { epoch, model } => tracing::info!(epoch, %model, "royalty and hosts paid"),
        Event::Answered { demand } => {
            tracing::info!(epoch = demand.epoch, index = demand.index, "answered a demand")
        }
        Event::Moved { dispute } => tracing::info!(name = %dispute.name, "moved in a dispute"),
        Event::TimedOut { dispute } => tracing::info!(name = %dispute.name, "the other party was late"),
        Event::Ended { dispute, winner } => tracing::info!(name = %dispute.name, ?winner, "a dispute ended"),
        Event::Described => tracing::info!("described on the ledger"),
        Event::Heartbeat => tracing::debug!("heartbeat"),
        Event::Audited { auditor, epoch, count } => {
            tracing::info!(%auditor, epoch, count, "shown to an auditor")
        }
        Event::Struck => tracing::error!("THIS NODE WAS STRUCK: it can earn nothing any more"),
        Event::Failed { what, code, reason } => tracing::warn!(code, %reason, "{what} failed"),
    })
}
