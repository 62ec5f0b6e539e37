//! Who is on the ledger that this machine uses: the hosts and providers that its log names, read on from where the last command stopped.

use std::collections::BTreeSet;

use alloy_primitives::Address;
use anyhow::{Context as _, Result};
use assay_core::id::ModelRoot;
use assay_hub::discovery::HOSTS_MAX;
use assay_hub::peer::PeerAddress;
use assay_ledger::ledger::Ledger;
use assay_ledger::retrieval::{EnrolledNode, Roll};

use super::connection::LedgerArgs;
use crate::home::Home;
use crate::progress;

/// A ledger and what its log names.
pub struct Nodes {
    pub ledger: Ledger,
    pub roll: Roll,
}

impl Nodes {
    /// Reads what the ledger's log says until now; nothing if no ledger is named.
    pub async fn read(home: &Home, args: &LedgerArgs) -> Result<Option<Nodes>> {
        if !args.is_named(home)? {
            return Ok(None);
        }
        let spinner = progress::spinner("reading the ledger");
        let read = async {
            let ledger = args.ledger(home).await?;
            let mut roll = Roll::open(ledger.clone(), &home.ledger()).await?;
            roll.update().await?;
            if let Err(e) = roll.store(&home.ledger()).await? {
                eprintln!("warning: {e}");
            }
            Ok(Nodes { ledger, roll })
        };
        let read = read.await;
        spinner.finish_and_clear();
        read.map(Some)
    }

    /// URLs of the hosts that nobody struck, at most [`HOSTS_MAX`]. Those that have pledged to keep the model come first; where no model is
    /// named, those that have ever pledged anything.
    pub async fn hosts(&self, model: Option<ModelRoot>) -> Result<Vec<String>> {
        let pledged = match model {
            Some(model) => self.keepers(model).await?,
            None => self.roll.names().pledges.iter().map(|pledge| pledge.host).collect(),
        };
        let mut hosts = self.roll.hosts().await.context("the ledger's hosts cannot be read")?;
        hosts.sort_by_key(|host| (!pledged.contains(&host.node), host.node));
        Ok(urls(&hosts).into_iter().map(|(_, url)| url).take(HOSTS_MAX).collect())
    }

    /// URLs of some hosts.
    pub async fn urls_of(&self, hosts: &BTreeSet<Address>) -> Result<BTreeSet<String>> {
        if hosts.is_empty() {
            return Ok(BTreeSet::new());
        }
        let all = urls(&self.roll.hosts().await?);
        Ok(all.into_iter().filter(|(host, _)| hosts.contains(host)).map(|(_, url)| url).collect())
    }

    /// Hosts with a pledge in force for a listing of the model.
    pub async fn keepers(&self, model: ModelRoot) -> Result<BTreeSet<Address>> {
        let mut keepers = BTreeSet::new();
        for listing in self.roll.names().listings.iter().filter(|id| id.model == model) {
            keepers.extend(self.roll.pledges(*listing).await?.iter().map(|pledge| pledge.id.host));
        }
        Ok(keepers)
    }
}

/// Nodes that nobody struck, with their addresses, each once. What is no address of a peer is left out.
pub fn urls(nodes: &[EnrolledNode]) -> Vec<(Address, String)> {
    let mut seen = BTreeSet::new();
    let standing = nodes.iter().filter(|node| !node.struck);
    let urls =
        standing.filter_map(|node| Some((node.node, node.endpoint.parse::<PeerAddress>().ok()?.to_string())));
    urls.filter(|(_, url)| seen.insert(url.clone())).collect()
}
