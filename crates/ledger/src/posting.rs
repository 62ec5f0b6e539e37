//! A provider's epoch, from its receipts to the ledger.
//!
//! Invariant: [`post`] may be called again after a crash at any step, and after a reorganisation: it asks the ledger what stands there, and does what
//! is missing. The steps: 1. wait for what was sent before; 2. seal; 3. send the posting; 4. when it is mined for good, say so to the
//! builder. It refuses to post a second batch beside one that it did not seal.

use std::collections::BTreeMap;

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256};
use assay_core::id::{Hash, ModelRoot};

use crate::audits::receipts_max;
use crate::client::ClientError;
use crate::contracts::Directory::Parameters;
use crate::contracts::{Epochs, Registry, address, b256};
use crate::epochs::{Batch, Builder, Disk, Listing, Posting, Progress, ProgressError, SealError, Terms};
use crate::ledger::Ledger;
use crate::sender::{SendError, Sender};

/// Why an epoch was not posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Its batch cannot be made.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The builder cannot note how far it came.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// The chain did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The transaction failed, or waits.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Another batch stands on the ledger.
    #[error(
        "the ledger has a batch of epoch {epoch} with root {found}, and {sealed} was sealed here: was this key used elsewhere?"
    )]
    Another {
        /// Of which epoch.
        epoch: u64,
        /// There.
        found: B256,
        /// Here.
        sealed: B256,
    },
}

/// Posts an epoch's batch, or finds that it stands on the ledger already. `owners` says whose entry of a model is paid its royalty; a
/// model without one pays nobody's. `in_flight` is the least sequence number that may still be signed.
pub async fn post<D: Disk>(
    ledger: &Ledger,
    sender: &Sender,
    builder: &mut Builder<D>,
    epoch: u64,
    owners: &BTreeMap<ModelRoot, Address>,
    in_flight: Option<u64>,
) -> Result<Batch, PostError> {
    for (_, ended) in sender.resume().await {
        match ended {
            Err(error) if error.may_retry() => return Err(error.into()),
            // What failed for good is asked of the ledger like everything else.
            _ => {}
        }
    }
    let epochs = ledger.parts().at.epochs;
    let identity = *builder.identity();
    let provider = address(&identity.provider);
    let client = ledger.client();
    let head = BlockId::from(client.latest().await?.hash);
    let account = Epochs::accountOfCall { provider };
    let account = client.read_at(head, Address::ZERO, epochs, &account).await?;
    let call = Epochs::batchOfCall { provider, epoch };
    let there = client.read_at(head, Address::ZERO, epochs, &call).await?;
    let sealed = builder.batches().iter().find(|b| b.batch.epoch == epoch).cloned();
    if there.root == B256::ZERO && sealed.as_ref().is_some_and(|s| s.progress != Progress::Sealed) {
        // What was posted was undone: the same batch is posted again.
        builder.unposted(epoch)?;
    }
    let batch = match sealed {
        Some(sealed) => sealed.batch,
        None => {
            let next = u64::try_from(account.nextSequence).unwrap_or(u64::MAX);
            let total_max = u64::try_from(account.pot).unwrap_or(u64::MAX);
            let stake = Registry::stakeOfCall { node: provider };
            let stake = client.read_at(head, Address::ZERO, ledger.parts().at.registry, &stake).await?;
            let backing = u64::try_from(stake).unwrap_or(u64::MAX);
            let terms = Terms { first: next.checked_sub(1), in_flight, total_max, ..Terms::default() };
            seal(builder, epoch, terms, ledger.parameters(), backing)?
        }
    };
    let root = b256(&batch.root);
    if there.root != B256::ZERO {
        if there.root != root {
            return Err(PostError::Another { epoch, found: there.root, sealed: root });
        }
        // It was sent before a crash. Where it was mined is asked for by whoever needs it; that it stands is what counts.
        let stands =
            builder.batches().iter().any(|b| b.batch.epoch == epoch && b.progress != Progress::Sealed);
        if !stands {
            let block = client.head().await?;
            builder.posted(epoch, Posting { block, transaction: Hash::ZERO })?;
        }
        return Ok(batch);
    }
    let listings = listings(ledger, owners).await?;
    let call = batch.post_call(identity.provider, &listings);
    let mined = sender.send(&format!("post epoch {epoch}"), epochs, &call).await?;
    let posting = Posting { block: mined.block, transaction: Hash::from_bytes(mined.hash.0) };
    builder.posted(epoch, posting)?;
    Ok(batch)
}

/// Seals as many receipts as a panel can audit; the rest waits for the next epoch. `backing` is the provider's stake.
pub fn seal<D: Disk>(
    builder: &mut Builder<D>,
    epoch: u64,
    mut terms: Terms,
    parameters: &Parameters,
    backing: u64,
) -> Result<Batch, PostError> {
    loop {
        let batch = builder.seal(epoch, &terms)?;
        let most = receipts_max(batch.total(), batch.count, backing, parameters);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        if batch.count <= most {
            return Ok(batch);
        }
        builder.missed(epoch)?;
        // Fees that are left out may raise the mean of the others: each turn leaves out at least one.
        terms.count_max = most.min(batch.count.saturating_sub(1)).max(1);
    }
}

/// The entries of some models as they stand now.
pub async fn listings(
    ledger: &Ledger,
    owners: &BTreeMap<ModelRoot, Address>,
) -> Result<BTreeMap<ModelRoot, Listing>, ClientError> {
    let mut listings = BTreeMap::new();
    for (model, owner) in owners {
        let call = Registry::royaltyOfCall { modelRoot: B256::from(*model.as_bytes()), owner: *owner };
        let found = ledger.client().read(ledger.parts().at.registry, &call).await?;
        if found.listed {
            listings.insert(*model, Listing { owner: *owner, royalty_ppm: found.royaltyPpm });
        }
    }
    Ok(listings)
}
