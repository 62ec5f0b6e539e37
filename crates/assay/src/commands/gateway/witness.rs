//! A gateway's witness: what it was given by providers that it pays, compared with what they post.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use assay_gateway::lanes::payer::Payer;
use assay_gateway::network::Network;
use assay_ledger::contracts::node_address;
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::Sender;
use assay_node::witness::{Endpoints, Event, Listener, WAITING_MAX, Witness};
use tokio::sync::{mpsc, oneshot};

use crate::home::Home;

/// A witness at work. Dropped, it writes what it was given, and ends.
pub struct Working {
    ended: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Working {
    fn drop(&mut self) {
        drop(self.ended.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the witness ended badly");
        }
    }
}

/// Starts the witness of the sender's key, which gets what the payer pays for. The network shows what it counts.
pub async fn start(
    home: &Home,
    ledger: Ledger,
    sender: Arc<Sender>,
    payer: &Payer,
    network: Network,
    every: Duration,
) -> Result<(Working, Network)> {
    let folder = home.path().join("gateway").join("receipts");
    let known = network.endpoints();
    let endpoints: Endpoints = Arc::new(move |provider| known(node_address(provider)));
    let witness = Witness::open(ledger, sender, folder, listener()).await?.asking(endpoints);
    let network = network.beside(witness.metrics());
    let (keeper, given) = mpsc::channel(WAITING_MAX);
    payer.give(keeper);
    let (ended, end) = oneshot::channel();
    let thread = witness.start(given, every, async { drop(end.await) })?;
    Ok((Working { ended: Some(ended), thread: Some(thread) }, network))
}

/// Events as lines of the log.
fn listener() -> Listener {
    Arc::new(|event| match event {
        Event::Compared { batch, receipts } => {
            tracing::debug!(provider = %batch.provider, epoch = batch.epoch, receipts, "receipts stand")
        }
        Event::LeftOut { batch, sequence } => {
            tracing::warn!(provider = %batch.provider, epoch = batch.epoch, sequence, "a receipt was left out")
        }
        Event::Conflicting { provider } => {
            tracing::warn!(%provider, "two of its receipts exclude each other")
        }
        Event::ProvedLeftOut { batch, sequence } => {
            tracing::warn!(provider = %batch.provider, epoch = batch.epoch, sequence, "proved on the ledger: a receipt was left out")
        }
        Event::ProvedConflict { provider } => {
            tracing::warn!(%provider, "proved on the ledger: two of its receipts exclude each other")
        }
        Event::NotShown { batch, code, reason } => {
            tracing::info!(provider = %batch.provider, epoch = batch.epoch, code, %reason, "does not show what it posted")
        }
        Event::Demanded { demand } => {
            tracing::warn!(provider = %demand.provider, epoch = demand.epoch, index = demand.index, "demanded a leaf")
        }
        Event::InVain { demand } => {
            tracing::warn!(provider = %demand.provider, epoch = demand.epoch, index = demand.index, "the leaf that was demanded is right")
        }
        Event::Silent { demand } => {
            tracing::warn!(provider = %demand.provider, epoch = demand.epoch, "proved on the ledger: it is silent")
        }
        Event::Failed { what, code, reason } => tracing::warn!(code, %reason, "{what} failed"),
    })
}
