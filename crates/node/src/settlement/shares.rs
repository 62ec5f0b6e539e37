//! Which entry of each model a batch pays, as the registry said when it was posted.
//!
//! The contract hashes listings and royalties into a batch's tree of shares, and a royalty may fall afterwards. So what the tree was made of is
//! kept as soon as it is known to be that.

use std::collections::BTreeMap;
use std::path::PathBuf;

use alloy_primitives::Address;
use assay_core::id::ModelRoot;
use assay_ledger::contracts::{Epochs, b256};
use assay_ledger::epochs::{Batch, Listing, ShareTree};
use assay_ledger::posting::listings;
use serde::{Deserialize, Serialize};

use super::{Settlement, Undone};
use crate::host::fetches::durable;
use crate::settlement::SettlementError;

/// Most bytes of a file of listings: 16 models have a quarter of that.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// A model's listing in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    model: ModelRoot,
    owner: Address,
    royalty_ppm: u32,
}

type Listings = BTreeMap<ModelRoot, Listing>;

impl Settlement {
    fn listings_path(&self, epoch: u64) -> PathBuf {
        self.options.folder.join("listings").join(format!("{epoch}.json"))
    }

    fn tree(&self, batch: &Batch, listings: &Listings) -> ShareTree {
        batch.share_tree(listings, self.ledger.parameters().split.hostsPpm)
    }

    /// Keeps the listings with which a batch was posted: those from before, or those that stand now.
    pub(super) async fn keep_listings(
        &self,
        epoch: u64,
        batch: &Batch,
        before: Listings,
    ) -> Result<(), Undone> {
        let call = Epochs::batchOfCall { provider: self.provider, epoch };
        let posted = self.ledger.client().read(self.ledger.parts().at.epochs, &call).await?.sharesRoot;
        let now = listings(&self.ledger, &self.options.owners).await?;
        let fits = |listings: &&Listings| b256(&self.tree(batch, listings).root()) == posted;
        if let Some(listings) = [&before, &now].into_iter().find(fits) {
            self.write_listings(epoch, listings);
        }
        Ok(())
    }

    fn write_listings(&self, epoch: u64, listings: &Listings) {
        let kept: Vec<Kept> = listings
            .iter()
            .map(|(model, listing)| Kept {
                model: *model,
                owner: listing.owner,
                royalty_ppm: listing.royalty_ppm,
            })
            .collect();
        let path = self.listings_path(epoch);
        let folder = path.parent().map(std::fs::create_dir_all).unwrap_or(Ok(()));
        if let Err(error) = folder.and_then(|()| durable(&path, &kept)) {
            // They are looked up again as long as they stand.
            tracing::warn!(path = %path.display(), %error, "listings of a batch were not stored");
        }
    }

    fn read_listings(&self, epoch: u64) -> Option<Listings> {
        let path = self.listings_path(epoch);
        if std::fs::metadata(&path).ok()?.len() > FILE_BYTES_MAX {
            return None;
        }
        let kept: Vec<Kept> = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let listing = |k: Kept| (k.model, Listing { owner: k.owner, royalty_ppm: k.royalty_ppm });
        Some(kept.into_iter().map(listing).collect())
    }

    /// The tree of shares of a posted batch; nothing if the batch is not here, or its listings are not what they were.
    pub(super) async fn share_tree(
        &self,
        epoch: u64,
    ) -> Result<Option<ShareTree>, assay_ledger::client::ClientError> {
        let Some(entry) = self.builder.batches().iter().find(|entry| entry.batch.epoch == epoch) else {
            return Ok(None);
        };
        let batch = entry.batch.clone();
        if let Some(kept) = self.read_listings(epoch) {
            return Ok(Some(self.tree(&batch, &kept)));
        }
        let call = Epochs::batchOfCall { provider: self.provider, epoch };
        let posted = self.ledger.client().read(self.ledger.parts().at.epochs, &call).await?;
        let now = listings(&self.ledger, &self.options.owners).await?;
        // Nothing is paid to an entry that the provider did not name.
        for listings in [now, Listings::new()] {
            let tree = self.tree(&batch, &listings);
            if b256(&tree.root()) == posted.sharesRoot {
                self.write_listings(epoch, &listings);
                return Ok(Some(tree));
            }
        }
        if posted.state != 0 {
            let why = "a royalty has changed since it was posted, and what it was is not on this disk";
            self.failed(&format!("finding the shares of epoch {epoch}"), "shares_unknown", &why);
        }
        Ok(None)
    }
}

impl From<SettlementError> for Undone {
    fn from(error: SettlementError) -> Self {
        match error {
            SettlementError::Client(e) => Undone::Client(e),
            SettlementError::Store(e) => Undone::Store(e),
            SettlementError::Progress(e) => Undone::Progress(e),
            other => Undone::Lost(other.to_string()),
        }
    }
}
