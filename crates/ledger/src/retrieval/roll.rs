//! Who is on the ledger: the names that contracts logged, and what stands under each of them now.
//!
//! Invariant: the log gives names alone; every number is read from the contracts, at one block for each question. So a name that a
//! reorganisation took back is found to stand for nothing, and is not shown. It refuses to guess amounts from events: how a question ended
//! alone is taken from the log, since the contracts keep one mark for an answer and a silence, and forgotten with the block that said it.

use std::collections::{BTreeMap, BTreeSet};

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256, Log};
use alloy_provider::Provider as _;
use alloy_sol_types::SolEvent;
use assay_core::id::ModelRoot;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::{EnrolledNode, Listing, ListingId, Pledge, PledgeId, Served};
use crate::amount::Amount;
use crate::client::ClientError;
use crate::contracts::{Registry, Retrieval};
use crate::follow::{Change, Cursor, FollowError, Follower};
use crate::ledger::{Ledger, Role};

/// Questions to the node that wait for their answers at the same time.
const READS_AT_ONCE: usize = 16;

/// How a beacon's question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The chunk was shown.
    Answered,
    /// The silence was.
    Failed,
}

/// How the last question that a pledge was asked ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Last {
    /// Of which epoch.
    pub epoch: u64,
    /// The block that says so.
    pub block: u64,
    /// How.
    pub outcome: Outcome,
}

/// What the log has named, and how far it was read. Whoever stores it goes on there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// How far it was read.
    pub cursor: Cursor,
    /// Nodes that were enrolled as hosts.
    pub hosts: BTreeSet<Address>,
    /// Nodes that were enrolled as providers.
    pub providers: BTreeSet<Address>,
    /// Listings.
    pub listings: BTreeSet<ListingId>,
    /// Pledges.
    pub pledges: BTreeSet<PledgeId>,
    /// Hosts, and providers that fetched from them.
    pub served: BTreeSet<(PledgeId, Address)>,
    /// How pledges' last questions ended.
    #[serde(with = "pairs")]
    pub last: BTreeMap<PledgeId, Last>,
}

/// A map as a list of pairs: keys of JSON are texts.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Last, PledgeId};

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<PledgeId, Last>, s: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<PledgeId, Last>, D::Error> {
        Ok(Vec::<(PledgeId, Last)>::deserialize(d)?.into_iter().collect())
    }
}

/// Hosts, providers, listings and pledges of one ledger.
#[derive(Clone, Debug)]
pub struct Roll {
    ledger: Ledger,
    from: u64,
    names: Names,
    /// Blocks that were taken back since this was made.
    undone: u64,
}

impl Roll {
    /// An empty one that will read from the block of the deployment on.
    pub async fn begin(ledger: Ledger) -> Result<Roll, ClientError> {
        let from = ledger.first_block().await?;
        Ok(Roll { ledger, from, names: Names { cursor: Cursor::from(from), ..Names::default() }, undone: 0 })
    }

    /// Goes on where names were stored.
    pub async fn resume(ledger: Ledger, names: Names) -> Result<Roll, ClientError> {
        let from = ledger.first_block().await?;
        Ok(Roll { ledger, from, names, undone: 0 })
    }

    /// What to store.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How many blocks were taken back since this was made: what was read before one of them may not hold any more.
    pub fn undone(&self) -> u64 {
        self.undone
    }

    /// The last block that was read. What is asked of the chain at this block stands until [`Roll::undone`] grows.
    pub fn block(&self) -> Option<BlockId> {
        self.names.cursor.blocks.back().map(|(_, hash)| BlockId::from(*hash))
    }

    /// Reads the log up to the block that is the newest now. A chain that changed deeper than can be followed is read again from the beginning:
    /// names that stand for nothing do no harm.
    pub async fn update(&mut self) -> Result<(), FollowError> {
        match self.read().await {
            Err(FollowError::TooDeep) => {
                self.names.cursor = Cursor::from(self.from);
                self.names.last.clear();
                self.undone = self.undone.saturating_add(1);
                self.read().await
            }
            other => other,
        }
    }

    async fn read(&mut self) -> Result<(), FollowError> {
        let at = &self.ledger.parts().at;
        let contracts = vec![at.registry, at.retrieval];
        let client = self.ledger.client().clone();
        let head = client.head().await?;
        let mut follower = Follower::new(client, contracts, self.names.cursor.clone());
        loop {
            let changes = follower.poll().await?;
            let still = changes.is_empty();
            for change in changes {
                match change {
                    Change::Applied(block) => {
                        block.logs.iter().for_each(|log| self.names.take(block.number, log));
                    }
                    Change::Undone { number, .. } => {
                        self.undone = self.undone.saturating_add(1);
                        self.names.last.retain(|_, last| last.block < number);
                    }
                }
            }
            self.names.cursor = follower.cursor().clone();
            if still || self.names.cursor.next() > head {
                return Ok(());
            }
        }
    }

    async fn now(&self) -> Result<BlockId, ClientError> {
        Ok(BlockId::from(self.ledger.client().latest().await?.hash))
    }

    /// All nodes that are enrolled as hosts.
    pub async fn hosts(&self) -> Result<Vec<EnrolledNode>, ClientError> {
        self.enrolled(&self.names.hosts, Role::Host).await
    }

    /// All nodes that are enrolled as providers.
    pub async fn providers(&self) -> Result<Vec<EnrolledNode>, ClientError> {
        self.enrolled(&self.names.providers, Role::Provider).await
    }

    async fn enrolled(
        &self,
        named: &BTreeSet<Address>,
        role: Role,
    ) -> Result<Vec<EnrolledNode>, ClientError> {
        let (block, registry) = (self.now().await?, self.ledger.parts().at.registry);
        let found = read(named, async |&node| {
            let found = self.ledger.view(block, registry, &Registry::nodeOfCall { node }).await?;
            let enrolled = found.owner != Address::ZERO && found.roles & role as u8 != 0;
            Ok(enrolled.then(|| EnrolledNode {
                node,
                owner: found.owner,
                endpoint: found.endpoint,
                stake: Amount(found.stake),
                reserved: Amount(found.reserved),
                heartbeat: found.heartbeat.to(),
                struck: found.struck,
            }))
        });
        found.await
    }

    /// All listings.
    pub async fn listings(&self) -> Result<Vec<Listing>, ClientError> {
        let block = self.now().await?;
        read(&self.names.listings, async |id| self.ledger.listing_at(block, *id).await).await
    }

    /// One owner's listings.
    pub async fn listings_of(&self, owner: Address) -> Result<Vec<Listing>, ClientError> {
        let block = self.now().await?;
        let named: Vec<&ListingId> = self.names.listings.iter().filter(|id| id.owner == owner).collect();
        read(named, async |id| self.ledger.listing_at(block, *id).await).await
    }

    /// The pledges in force for a listing.
    pub async fn pledges(&self, listing: ListingId) -> Result<Vec<Pledge>, ClientError> {
        self.in_force(|id| id.listing == listing).await
    }

    /// A host's pledges in force.
    pub async fn pledges_of(&self, host: Address) -> Result<Vec<Pledge>, ClientError> {
        self.in_force(|id| id.host == host).await
    }

    async fn in_force(&self, wanted: impl Fn(&PledgeId) -> bool) -> Result<Vec<Pledge>, ClientError> {
        let block = self.now().await?;
        let named: Vec<&PledgeId> = self.names.pledges.iter().filter(|id| wanted(id)).collect();
        read(named, async |id| self.ledger.pledge_at(block, *id).await).await
    }

    /// What providers' words have earned a host, also for pledges that have ended.
    pub async fn served(&self, host: Address) -> Result<Vec<Served>, ClientError> {
        let block = self.now().await?;
        let named: Vec<_> = self.names.served.iter().filter(|(pledge, _)| pledge.host == host).collect();
        let found = read(named, async |(pledge, provider)| {
            let found = self.ledger.served_at(block, *pledge, *provider).await?;
            // A name that was taken back.
            Ok((found.bytes > 0).then_some(found))
        });
        found.await
    }

    /// How many pledges each listing has, in force.
    pub async fn pledge_counts(&self) -> Result<BTreeMap<ListingId, u64>, ClientError> {
        let (block, at) = (self.now().await?, self.ledger.parts().at.retrieval);
        let found = read(&self.names.listings, async |id| {
            let call = Retrieval::poolOfCall { modelRoot: id.root(), listing: id.owner };
            Ok(Some((*id, self.ledger.view(block, at, &call).await?.pledges)))
        });
        Ok(found.await?.into_iter().collect())
    }

    /// Bytes of each listing that providers have signed for, since ever.
    pub async fn fetched(&self) -> Result<BTreeMap<ListingId, u64>, ClientError> {
        let (block, at) = (self.now().await?, self.ledger.parts().at.retrieval);
        let named: BTreeSet<(ListingId, Address)> =
            self.names.served.iter().map(|(pledge, provider)| (pledge.listing, *provider)).collect();
        let found = read(named, async |(id, provider)| {
            let call = Retrieval::sourcesOfCall { modelRoot: id.root(), listing: id.owner, provider };
            Ok(Some((id, self.ledger.view(block, at, &call).await?.bytesFetched)))
        });
        let mut fetched = BTreeMap::new();
        for (id, bytes) in found.await? {
            let sum: &mut u64 = fetched.entry(id).or_default();
            *sum = sum.saturating_add(bytes);
        }
        Ok(fetched)
    }

    /// Whether the last question that a pledge was asked ended with its silence.
    pub fn failures(&self) -> impl Iterator<Item = PledgeId> {
        let failed = self.names.last.iter().filter(|(_, last)| last.outcome == Outcome::Failed);
        failed.map(|(pledge, _)| *pledge)
    }
}

/// Reads what stands under each name, several at a time, in their order.
async fn read<N, T>(
    names: impl IntoIterator<Item = N>,
    one: impl AsyncFn(N) -> Result<Option<T>, ClientError>,
) -> Result<Vec<T>, ClientError> {
    let found = stream::iter(names).map(|name| one(name)).buffered(READS_AT_ONCE);
    found.try_filter_map(async |found| Ok(found)).try_collect().await
}

impl Names {
    /// Takes the names out of a block's log. Logs of another form name nothing.
    fn take(&mut self, block: u64, log: &Log) {
        let pledge = |host, model: B256, owner| PledgeId { host, listing: listing(model, owner) };
        if let Some(e) = named::<Registry::Enrolled>(log) {
            self.node(e.node, e.roles);
        } else if let Some(e) = named::<Registry::RolesChanged>(log) {
            self.node(e.node, e.roles);
        } else if let Some(e) = named::<Registry::Listed>(log) {
            self.listings.insert(listing(e.modelRoot, e.owner));
        } else if let Some(e) = named::<Retrieval::Pledged>(log) {
            self.pledges.insert(pledge(e.host, e.modelRoot, e.listing));
        } else if let Some(e) = named::<Retrieval::Served>(log) {
            self.served.insert((pledge(e.host, e.modelRoot, e.listing), e.downloader));
        } else if let Some(e) = named::<Retrieval::Answered>(log) {
            self.ended(pledge(e.host, e.modelRoot, e.listing), e.epoch, block, Outcome::Answered);
        } else if let Some(e) = named::<Retrieval::Failed>(log) {
            self.ended(pledge(e.host, e.modelRoot, e.listing), e.epoch, block, Outcome::Failed);
        }
    }

    fn node(&mut self, node: Address, roles: u8) {
        if roles & Role::Host as u8 != 0 {
            self.hosts.insert(node);
        }
        if roles & Role::Provider as u8 != 0 {
            self.providers.insert(node);
        }
    }

    fn ended(&mut self, pledge: PledgeId, epoch: u64, block: u64, outcome: Outcome) {
        let last = Last { epoch, block, outcome };
        let known = self.last.entry(pledge).or_insert(last);
        if known.epoch <= epoch {
            *known = last;
        }
    }
}

fn named<E: SolEvent>(log: &Log) -> Option<E> {
    (log.data.topics().first() == Some(&E::SIGNATURE_HASH)).then(|| E::decode_log_data(&log.data).ok())?
}

fn listing(model: B256, owner: Address) -> ListingId {
    ListingId { model: ModelRoot::from_bytes(model.0), owner }
}

impl Ledger {
    /// The block in which the deployment's directory was created, or one before it where the node cannot say what stood in old blocks.
    pub async fn first_block(&self) -> Result<u64, ClientError> {
        let (mut before, mut there) = (0, self.client().head().await?);
        while before < there {
            let middle = before.midpoint(there);
            let code =
                self.client().provider().get_code_at(self.parts().directory).block_id(middle.into()).await;
            match code.map_err(|e| self.client().failed(e)) {
                Ok(code) if code.is_empty() => before = middle.saturating_add(1),
                // A node that has forgotten the state of that block: nothing is missed by beginning before it.
                Ok(_) | Err(ClientError::Refused { .. }) => there = middle,
                Err(error) => return Err(error),
            }
        }
        Ok(there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(pledge: &PledgeId, epoch: u64) -> Log {
        let (host, modelRoot, listing) = pledge.parts();
        let event = Retrieval::Answered { host, modelRoot, listing, epoch, confirmed: Default::default() };
        Log { address: Address::ZERO, data: event.encode_log_data() }
    }

    fn failed(pledge: &PledgeId, epoch: u64) -> Log {
        let (host, modelRoot, listing) = pledge.parts();
        let event = Retrieval::Failed { host, modelRoot, listing, epoch, taken: Default::default() };
        Log { address: Address::ZERO, data: event.encode_log_data() }
    }

    #[test]
    fn a_failure_is_over_when_a_later_question_is_answered() {
        let listing = listing(B256::repeat_byte(2), Address::repeat_byte(3));
        let one = PledgeId { host: Address::repeat_byte(1), listing };
        let other = PledgeId { host: Address::repeat_byte(4), listing };
        let mut names = Names::default();
        let silent = |names: &Names| {
            let failed = names.last.iter().filter(|(_, last)| last.outcome == Outcome::Failed);
            failed.map(|(pledge, _)| *pledge).collect::<Vec<_>>()
        };
        names.take(1, &answered(&one, 3));
        names.take(2, &failed(&one, 5));
        names.take(2, &failed(&other, 5));
        assert_eq!(silent(&names), [one, other]);
        // An answer to an earlier question, mined late, changes nothing.
        names.take(3, &answered(&one, 4));
        assert_eq!(silent(&names), [one, other]);
        names.take(4, &answered(&one, 40));
        assert_eq!(silent(&names), [other]);
        let stored = serde_json::to_string(&names).unwrap();
        assert_eq!(serde_json::from_str::<Names>(&stored).unwrap(), names);
    }
}
