//! Hosting on the ledger: what is listed, who keeps it, what a beacon asks, and what hosts are owed (`docs/ledger.md`, section 10).
//!
//! Purpose: what a host, a publisher and whoever watches them ask and do, typed. Invariant: every action may be repeated by a daemon that
//! crashed: what stands on the ledger already is said to ([`Once::Before`]) and is no error. It refuses to keep or read content:
//! chunks and their proofs come from who has them.

#![allow(non_snake_case)] // fields of calls are called as in Solidity

mod fetch;
mod kept;
mod questions;
mod roll;

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256, Bytes};
pub use alloy_sol_types::Eip712Domain;
use alloy_sol_types::{SolCall, SolError};
use assay_core::id::{Hash, ModelRoot};
use assay_core::merkle::Proof;
use serde::{Deserialize, Serialize};

pub use self::fetch::{FETCHED_BYTES_MAX, Fetch, FetchError, FetchReceipt, check, domain, fetch_hash, sign};
pub use self::kept::KeptError;
pub use self::questions::{Open, Questions, Time};
pub use self::roll::{Last, Names, Outcome, Roll};
use crate::amount::Amount;
use crate::client::ClientError;
use crate::contracts::{Epochs, Registry, Retrieval, b256};
use crate::follow::FollowError;
use crate::ledger::Ledger;
use crate::sender::{Mined, SendError, Sender};

/// Bytes of a chunk, the unit of questions: `Retrieval.CHUNK_BYTES_MAX`. The last of a content may be shorter.
pub const CHUNK_BYTES_MAX: usize = 4_096;

/// A model's entry by one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListingId {
    /// The model.
    pub model: ModelRoot,
    /// Whose entry.
    pub owner: Address,
}

/// A host's promise to keep a listing's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PledgeId {
    /// Whose promise.
    pub host: Address,
    /// What it keeps.
    pub listing: ListingId,
}

/// What hosts keep of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Merkle root over its chunks (protocol, section 2).
    pub root: Hash,
    /// How many chunks.
    pub chunks: u64,
}

/// A listing as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Which.
    pub id: ListingId,
    /// The owner's part of each fee, in millionths.
    pub royalty_ppm: u32,
    /// When it was listed first.
    pub listed_at: u64,
    /// What hosts keep, if they are asked to.
    pub content: Option<Content>,
    /// Where more is said about it, in the owner's words.
    pub manifest: String,
}

/// A node that is enrolled in a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledNode {
    /// Its key's address.
    pub node: Address,
    /// Whom it pays.
    pub owner: Address,
    /// Where it says that it answers.
    pub endpoint: String,
    /// What it has at stake.
    pub stake: Amount,
    /// What of it pledges and seats need.
    pub reserved: Amount,
    /// When it last said that it is there.
    pub heartbeat: u64,
    /// Whether it was proved to lie.
    pub struck: bool,
}

/// A pledge in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pledge {
    /// Which.
    pub id: PledgeId,
    /// The first epoch in which it can be asked.
    pub since: u64,
    /// Its share of the pool that the next answer confirms.
    pub unconfirmed: Amount,
    /// What answers have confirmed and nobody collected.
    pub earned: Amount,
}

/// What an epoch's beacon asks of a pledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// There is no beacon yet.
    Pending,
    /// Nothing.
    NotAsked,
    /// One chunk, until a time of the chain.
    Asked {
        /// Its index.
        chunk: u64,
        /// The last second in which an answer is taken.
        until: u64,
    },
    /// It was asked, and that is over: it was answered, or its silence was shown.
    Closed,
}

/// Something that a daemon does once, and may try again.
#[derive(Clone, Debug)]
pub enum Once {
    /// This transaction did it.
    Now(Mined),
    /// It stood on the ledger before.
    Before,
}

/// A provider's word for a host, as it was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Whose pledge it was, and for what.
    pub pledge: PledgeId,
    /// Who fetched.
    pub provider: Address,
    /// How much, since ever.
    pub bytes: u64,
    /// What the host can collect for it now.
    pub owed: Amount,
}

impl ListingId {
    /// The model's root as contracts have it.
    pub(crate) fn root(&self) -> B256 {
        B256::from(*self.model.as_bytes())
    }
}

impl PledgeId {
    /// Host, model and listing as contracts have them.
    fn parts(&self) -> (Address, B256, Address) {
        (self.host, self.listing.root(), self.listing.owner)
    }
}

/// Why a listing was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The entry names another content, and a content that is set stays.
    #[error(
        "the listing names content {} of {} chunks, which stays, and {} of {} chunks were given; list another content under another \
         owner, or as another model", listed.root, listed.chunks, given.root, given.chunks
    )]
    ContentStays {
        /// On the ledger.
        listed: Content,
        /// Here.
        given: Content,
    },
    /// The transaction failed, or waits.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl PublishError {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        match self {
            PublishError::ContentStays { .. } => "listing_content_stays",
            PublishError::Send(_) => "listing_not_sent",
        }
    }
}

/// Takes a refusal that says that something is done already for what it is.
fn once<E: SolError>(sent: Result<Mined, SendError>) -> Result<Once, SendError> {
    match sent {
        Ok(mined) => Ok(Once::Now(mined)),
        Err(SendError::Reverted { reason, .. }) if reason.is::<E>() => Ok(Once::Before),
        Err(error) => Err(error),
    }
}

impl Ledger {
    /// The domain of fetch receipts.
    pub fn retrieval_domain(&self) -> Eip712Domain {
        domain(self.client().chain_id(), self.parts().at.retrieval)
    }

    /// Everything that was logged about hosting until now. A daemon keeps it and updates it; the questions below that need the log read all of it.
    pub async fn roll(&self) -> Result<Roll, FollowError> {
        let mut roll = Roll::begin(self.clone()).await?;
        roll.update().await?;
        Ok(roll)
    }

    /// All nodes that are enrolled as hosts.
    pub async fn hosts(&self) -> Result<Vec<EnrolledNode>, FollowError> {
        Ok(self.roll().await?.hosts().await?)
    }

    /// All listings.
    pub async fn listings(&self) -> Result<Vec<Listing>, FollowError> {
        Ok(self.roll().await?.listings().await?)
    }

    /// The pledges in force for a listing.
    pub async fn pledges(&self, listing: ListingId) -> Result<Vec<Pledge>, FollowError> {
        Ok(self.roll().await?.pledges(listing).await?)
    }

    /// A listing, if there is one.
    pub async fn listing(&self, id: ListingId) -> Result<Option<Listing>, ClientError> {
        self.listing_at(BlockId::latest(), id).await
    }

    pub(crate) async fn listing_at(
        &self,
        block: BlockId,
        id: ListingId,
    ) -> Result<Option<Listing>, ClientError> {
        let call = Registry::listingOfCall { modelRoot: id.root(), owner: id.owner };
        let found = self.view(block, self.parts().at.registry, &call).await?;
        let listed_at = found.listedAt.to::<u64>();
        if listed_at == 0 {
            return Ok(None);
        }
        let hosted = found.contentRoot != B256::ZERO && found.chunks > 0;
        let content =
            hosted.then(|| Content { root: Hash::from_bytes(found.contentRoot.0), chunks: found.chunks });
        Ok(Some(Listing { id, royalty_ppm: found.royaltyPpm, listed_at, content, manifest: found.manifest }))
    }

    /// Lists a model under the sender's name, or changes its entry: a royalty can only fall, a content that is set stays. An entry that
    /// stands so already is not sent again.
    pub async fn publish(
        &self,
        sender: &Sender,
        model: ModelRoot,
        royalty_ppm: u32,
        content: Option<Content>,
        manifest: String,
    ) -> Result<Once, PublishError> {
        let id = ListingId { model, owner: sender.account() };
        if let Some(found) = self.listing(id).await.map_err(SendError::from)? {
            // The contract would keep the old one without a word.
            if let (Some(listed), Some(given)) = (found.content, content)
                && listed != given
            {
                return Err(PublishError::ContentStays { listed, given });
            }
            let kept = found.content.is_some() || content.is_none();
            if kept && found.royalty_ppm == royalty_ppm && found.manifest == manifest {
                return Ok(Once::Before);
            }
        }
        let (root, chunks) = content.map_or((B256::ZERO, 0), |c| (b256(&c.root), c.chunks));
        let call = Registry::listCall {
            modelRoot: id.root(),
            royaltyPpm: royalty_ppm,
            contentRoot: root,
            chunks,
            manifest,
        };
        Ok(Once::Now(sender.send("list the model", self.parts().at.registry, &call).await?))
    }

    /// Promises that a host keeps a listing's content from the next epoch on. The sender is the host's key or its owner.
    pub async fn pledge(&self, sender: &Sender, id: PledgeId) -> Result<Once, SendError> {
        // Who ended a pledge a short time ago is refused in the same words as who has one.
        if self.pledge_at(BlockId::latest(), id).await?.is_some() {
            return Ok(Once::Before);
        }
        let (host, modelRoot, listing) = id.parts();
        let call = Retrieval::pledgeCall { host, modelRoot, listing };
        match self.retrieve(sender, "pledge to host", &call).await {
            // A transaction of an earlier start may have come in between.
            Err(SendError::Reverted { reason, .. })
                if reason.is::<Retrieval::AlreadyPledged>()
                    && self.pledge_at(BlockId::latest(), id).await?.is_some() =>
            {
                Ok(Once::Before)
            }
            sent => sent.map(Once::Now),
        }
    }

    /// Ends a pledge with this epoch.
    pub async fn unpledge(&self, sender: &Sender, id: PledgeId) -> Result<Once, SendError> {
        let (host, modelRoot, listing) = id.parts();
        let call = Retrieval::unpledgeCall { host, modelRoot, listing };
        once::<Retrieval::NotPledged>(self.retrieve(sender, "end a pledge", &call).await)
    }

    /// A pledge, if it is in force.
    pub async fn pledge_of(&self, id: PledgeId) -> Result<Option<Pledge>, ClientError> {
        self.pledge_at(BlockId::from(self.client().latest().await?.hash), id).await
    }

    pub(crate) async fn pledge_at(
        &self,
        block: BlockId,
        id: PledgeId,
    ) -> Result<Option<Pledge>, ClientError> {
        let (host, modelRoot, listing) = id.parts();
        let at = self.parts().at.retrieval;
        let found = self.view(block, at, &Retrieval::pledgeOfCall { host, modelRoot, listing }).await?;
        let since = found.since.to::<u64>();
        if since == 0 || found.until.to::<u64>() != 0 {
            return Ok(None);
        }
        let pool = self.view(block, at, &Retrieval::poolOfCall { modelRoot, listing }).await?;
        let unconfirmed = Amount(pool.perPledge.saturating_sub(found.seen));
        Ok(Some(Pledge { id, since, unconfirmed, earned: Amount(found.earned.into()) }))
    }

    /// What an epoch's beacon asks of a pledge.
    pub async fn question(&self, id: PledgeId, epoch: u64) -> Result<Question, ClientError> {
        self.question_at(BlockId::latest(), id, epoch).await
    }

    pub(crate) async fn question_at(
        &self,
        block: BlockId,
        id: PledgeId,
        epoch: u64,
    ) -> Result<Question, ClientError> {
        let (host, modelRoot, listing) = id.parts();
        let at = self.parts().at.retrieval;
        let call = Retrieval::questionForCall { host, modelRoot, listing, epoch };
        let asked = match self.view(block, at, &call).await {
            Err(ClientError::Reverted(reason)) if reason.is::<Epochs::BeaconPending>() => {
                return Ok(Question::Pending);
            }
            other => other?,
        };
        if !asked.asked {
            return Ok(Question::NotAsked);
        }
        let pledgeKey = self.view(block, at, &Retrieval::pledgeKeyCall { host, modelRoot, listing }).await?;
        let closed = self.view(block, at, &Retrieval::isAnsweredCall { pledgeKey, epoch }).await?;
        let until = u64::try_from(asked.until).unwrap_or(u64::MAX);
        Ok(if closed { Question::Closed } else { Question::Asked { chunk: asked.index, until } })
    }

    /// Answers an epoch's question with the chunk that was asked for. Anyone may answer for a host.
    /// After its time this is refused, answered or not: who begins again asks [`Ledger::question`] first.
    pub async fn answer(
        &self,
        sender: &Sender,
        id: PledgeId,
        epoch: u64,
        chunk: Vec<u8>,
        proof: &Proof,
    ) -> Result<Once, SendError> {
        let (host, modelRoot, listing) = id.parts();
        let chunk = Bytes::from(chunk);
        let call = Retrieval::answerCall { host, modelRoot, listing, epoch, chunk, proof: proof.into() };
        let sent = self.retrieve(sender, &format!("answer for epoch {epoch}"), &call).await;
        once::<Retrieval::AlreadyAnswered>(sent)
    }

    /// Shows that a question was left without an answer: the pledge's stake is taken, and the sender has a part of it.
    /// [`Once::Before`] says that it was shown, or answered, before: the ledger keeps one mark for both.
    pub async fn prove_failure(&self, sender: &Sender, id: PledgeId, epoch: u64) -> Result<Once, SendError> {
        let (host, modelRoot, listing) = id.parts();
        let call = Retrieval::proveFailureCall { host, modelRoot, listing, epoch };
        let sent = self.retrieve(sender, &format!("show a silence in epoch {epoch}"), &call).await;
        once::<Retrieval::AlreadyAnswered>(sent)
    }

    /// Pays what answers have confirmed into the owner's vault balance, if there is anything; also when the pledge has ended.
    pub async fn collect_hosting(&self, sender: &Sender, id: PledgeId) -> Result<Once, SendError> {
        let (host, modelRoot, listing) = id.parts();
        let call = Retrieval::pledgeOfCall { host, modelRoot, listing };
        if self.client().read(self.parts().at.retrieval, &call).await?.earned == 0 {
            return Ok(Once::Before);
        }
        let call = Retrieval::collectCall { host, modelRoot, listing };
        self.retrieve(sender, "collect for hosting", &call).await.map(Once::Now)
    }

    /// Pays what a host has earned by what one provider fetched from it into its owner's vault balance, if it is a unit or more; also when
    /// the pledge has ended.
    pub async fn collect_served(
        &self,
        sender: &Sender,
        id: PledgeId,
        provider: Address,
    ) -> Result<Once, SendError> {
        let (host, modelRoot, listing) = id.parts();
        if self.served(id, provider).await?.owed == Amount(0) {
            return Ok(Once::Before);
        }
        let call = Retrieval::collectServedCall { host, modelRoot, listing, provider };
        self.retrieve(sender, "collect for serving", &call).await.map(Once::Now)
    }

    /// What one provider's word has earned a host.
    pub async fn served(&self, pledge: PledgeId, provider: Address) -> Result<Served, ClientError> {
        let block = BlockId::from(self.client().latest().await?.hash);
        self.served_at(block, pledge, provider).await
    }

    pub(crate) async fn served_at(
        &self,
        block: BlockId,
        pledge: PledgeId,
        provider: Address,
    ) -> Result<Served, ClientError> {
        let (host, modelRoot, listing) = pledge.parts();
        let at = self.parts().at.retrieval;
        let call = Retrieval::sourceOfCall { host, modelRoot, listing, provider };
        let bytes = self.view(block, at, &call).await?.bytesFetched;
        let call = Retrieval::servedForCall { host, modelRoot, listing, provider };
        let owed = Amount::from_word(self.view(block, at, &call).await?);
        Ok(Served { pledge, provider, bytes, owed })
    }

    /// Has a fetch receipt counted. Anyone may post it; the host gains by it. One that says no more than was counted is nothing new.
    pub async fn post_fetch(
        &self,
        sender: &Sender,
        fetch: &Fetch,
        signature: Bytes,
    ) -> Result<Once, SendError> {
        let call = Retrieval::servedCall { fetch: fetch.clone(), signature };
        once::<Retrieval::NothingNew>(self.retrieve(sender, "post a fetch receipt", &call).await)
    }

    async fn retrieve<C: SolCall>(&self, sender: &Sender, what: &str, call: &C) -> Result<Mined, SendError> {
        sender.send(what, self.parts().at.retrieval, call).await
    }
}
