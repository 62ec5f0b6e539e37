//! What the ledger's log names that a node may have to act upon: batches, demands, disputes, accusations; and what was said in a dispute.
//!
//! Invariant: as in [`crate::retrieval::Roll`], the log gives names alone. What stands under a name is asked of the contracts, so that one that a
//! reorganisation took back is found to stand for nothing. The file of names is a memory of what the chain says: one that is damaged, or
//! is of another chain, is begun anew. It refuses to keep what others owe each other: demands, disputes and accusations of one node
//! alone are named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256, Bytes, Log};
use alloy_provider::Provider as _;
use alloy_rpc_types_eth::Filter;
use alloy_sol_types::{SolCall, SolEvent};
use serde::{Deserialize, Serialize};

use crate::client::ClientError;
use crate::contracts::{Audits, Disputes, Epochs, Objections};
use crate::follow::{Change, Cursor, FollowError, Follower};
use crate::ledger::Ledger;

/// Most bytes of a file of names.
const NAMES_BYTES_MAX: u64 = 64 << 20;
/// Blocks whose logs are asked for at once.
const RANGE: u64 = 1_000;
/// Most bytes of a transaction that is searched for a message.
const INPUT_BYTES_MAX: usize = 1 << 20;

/// What a provider is asked to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DemandKind {
    /// A leaf of a batch, with all that shows that it is in order.
    Leaf,
    /// Request and transcript of a drawn receipt.
    Record,
}

impl DemandKind {
    /// As the contract numbers it.
    pub fn number(self) -> u8 {
        match self {
            DemandKind::Leaf => 0,
            DemandKind::Record => 1,
        }
    }
}

/// A demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemandId {
    /// Who is asked.
    pub provider: Address,
    /// Epoch of the batch.
    pub epoch: u64,
    /// Place of the leaf in it.
    pub index: u64,
    /// For what.
    pub kind: DemandKind,
}

/// A dispute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisputeId {
    /// The hash that the receipt's signature signs, or an accusation's id.
    pub name: B256,
    /// Who says that it is wrong.
    pub challenger: Address,
    /// Who says that it is right.
    pub defender: Address,
}

/// What the log has named, and how far it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    /// How far it was read.
    pub cursor: Cursor,
    /// Batches, by epoch and provider.
    pub batches: BTreeSet<(u64, Address)>,
    /// Demands from the node or by it, with the block that says so.
    #[serde(with = "pairs")]
    pub demands: BTreeMap<DemandId, u64>,
    /// Disputes that it takes part in, with the block in which they began.
    #[serde(with = "pairs")]
    pub disputes: BTreeMap<DisputeId, u64>,
    /// Accusations of it or by it, with the block that says so.
    #[serde(with = "pairs")]
    pub accusations: BTreeMap<B256, u64>,
}

/// A map as a list of pairs: keys of JSON are texts.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, S: Serializer>(
        map: &BTreeMap<K, u64>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(s)
    }

    pub(super) fn deserialize<'de, K: Ord + Deserialize<'de>, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeMap<K, u64>, D::Error> {
        Ok(Vec::<(K, u64)>::deserialize(d)?.into_iter().collect())
    }
}

/// Why what was said cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SaidError {
    /// The chain did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A move was made by a transaction that does not show its message.
    #[error("transaction {transaction} made a move of the dispute over {name} and does not show its message")]
    Hidden {
        /// Which dispute.
        name: B256,
        /// Which transaction.
        transaction: B256,
    },
}

/// The docket of one node.
#[derive(Debug)]
pub struct Docket {
    ledger: Ledger,
    of: Address,
    from: u64,
    path: PathBuf,
    entries: Entries,
}

impl Docket {
    /// Goes on where names were stored in `folder`, or begins.
    pub async fn open(ledger: Ledger, of: Address, folder: &Path) -> Result<Docket, ClientError> {
        let genesis = ledger.client().genesis().await?;
        let (chain, directory) = (ledger.client().chain_id(), ledger.parts().directory);
        let path = folder.join(format!("docket-{chain}-{genesis:x}-{directory:x}-{of:x}.json"));
        let from = ledger.first_block().await?;
        let begun = || Entries { cursor: Cursor::from(from), ..Entries::default() };
        let entries = read(&path).unwrap_or_else(begun);
        Ok(Docket { ledger, of, from, path, entries })
    }

    /// What is named.
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Reads the log up to the block that is the newest now, and stores the names. A chain that changed deeper than can be followed is read
    /// again from the beginning.
    pub async fn update(&mut self) -> Result<(), FollowError> {
        match self.follow().await {
            Err(FollowError::TooDeep) => {
                self.entries.cursor = Cursor::from(self.from);
                self.follow().await
            }
            other => other,
        }?;
        if let Err(error) = self.store() {
            // What is lost is read from the chain again.
            tracing::warn!(path = %self.path.display(), %error, "names of the ledger's log were not stored");
        }
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), FollowError> {
        let at = &self.ledger.parts().at;
        let contracts = vec![at.epochs, at.objections, at.disputes, at.audits];
        let client = self.ledger.client().clone();
        let head = client.head().await?;
        let mut follower = Follower::new(client, contracts, self.entries.cursor.clone());
        loop {
            let changes = follower.poll().await?;
            let still = changes.is_empty();
            for change in changes {
                if let Change::Applied(block) = change {
                    block.logs.iter().for_each(|log| self.entries.take(self.of, block.number, log));
                }
            }
            self.entries.cursor = follower.cursor().clone();
            if still || self.entries.cursor.next() > head {
                return Ok(());
            }
        }
    }

    fn store(&self) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&self.entries).map_err(std::io::Error::other)?;
        let folder = self.path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
        std::fs::create_dir_all(folder)?;
        let part = self.path.with_extension(format!("{}.part", std::process::id()));
        File::create(&part)?.write_all(&bytes)?;
        std::fs::rename(&part, &self.path)
    }

    /// Forgets batches of epochs before `epoch`.
    pub fn forget_batches(&mut self, epoch: u64) {
        self.entries.batches = self.entries.batches.split_off(&(epoch, Address::ZERO));
    }

    /// Forgets a demand that is over.
    pub fn forget_demand(&mut self, id: &DemandId) {
        self.entries.demands.remove(id);
    }

    /// Forgets a dispute that is over.
    pub fn forget_dispute(&mut self, id: &DisputeId) {
        self.entries.disputes.remove(id);
    }

    /// Forgets an accusation that is over.
    pub fn forget_accusation(&mut self, id: &B256) {
        self.entries.accusations.remove(id);
    }
}

fn read(path: &Path) -> Option<Entries> {
    if std::fs::metadata(path).ok()?.len() > NAMES_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

impl Entries {
    /// Takes the names that concern the node `of` out of a block's log. Logs of another form name nothing.
    pub fn take(&mut self, of: Address, block: u64, log: &Log) {
        if let Some(e) = named::<Epochs::Posted>(log) {
            self.batches.insert((e.epoch, e.provider));
        } else if let Some(e) = named::<Objections::Demanded>(log) {
            let kind = match e.kind {
                0 => DemandKind::Leaf,
                1 => DemandKind::Record,
                _ => return,
            };
            if e.provider == of || e.from == of {
                let id = DemandId { provider: e.provider, epoch: e.epoch, index: e.index, kind };
                self.demands.insert(id, block);
            }
        } else if let Some(e) = named::<Disputes::Opened>(log) {
            if e.challenger == of || e.defender == of {
                let id = DisputeId { name: e.receipt, challenger: e.challenger, defender: e.defender };
                // A dispute begins once; a reorganisation may move it.
                self.disputes.insert(id, block);
            }
        } else if let Some(e) = named::<Audits::Accused>(log)
            && (e.auditor == of || e.accuser == of)
        {
            self.accusations.insert(e.id, block);
        }
    }
}

fn named<E: SolEvent>(log: &Log) -> Option<E> {
    (log.data.topics().first() == Some(&E::SIGNATURE_HASH)).then(|| E::decode_log_data(&log.data).ok())?
}

impl Ledger {
    /// The messages of a dispute that the contract took, in their order, from the block in which it began. They stand in the
    /// transactions, not in the contract's log.
    pub async fn said(&self, id: &DisputeId, from: u64) -> Result<Vec<Bytes>, SaidError> {
        let filter = Filter::new()
            .address(self.parts().at.disputes)
            .event_signature(Disputes::Moved::SIGNATURE_HASH)
            .topic1(id.name)
            .topic2(id.challenger.into_word());
        let mut messages = Vec::new();
        for log in self.logs(filter, from).await? {
            let transaction = log.transaction_hash.ok_or(ClientError::Malformed("eth_getLogs"))?;
            let input = self.input(transaction).await?;
            let found = message(&input, id).ok_or(SaidError::Hidden { name: id.name, transaction })?;
            messages.push(found);
        }
        Ok(messages)
    }

    /// The call by which somebody showed what a demand asked for, if it was: the items of request and transcript stand in the transaction.
    pub async fn shown(
        &self,
        id: &DemandId,
        from: u64,
    ) -> Result<Option<Objections::answerRecordCall>, ClientError> {
        let filter = Filter::new()
            .address(self.parts().at.objections)
            .event_signature(Objections::AnsweredRecord::SIGNATURE_HASH)
            .topic1(id.provider.into_word())
            .topic2(B256::from(alloy_primitives::U256::from(id.epoch)));
        for log in self.logs(filter, from).await? {
            let answered = Objections::AnsweredRecord::decode_log_data(&log.inner.data).ok();
            let (Some(event), Some(transaction)) = (answered, log.transaction_hash) else { continue };
            if event.index == id.index {
                let input = self.input(transaction).await?;
                let same = |call: &Objections::answerRecordCall| {
                    (call.provider, call.epoch, call.index) == (id.provider, id.epoch, id.index)
                };
                return Ok(calls::<Objections::answerRecordCall>(&input).find(same));
            }
        }
        Ok(None)
    }

    /// Whether a demand for a record was answered by showing that its client withheld its consent: the contract has checked that.
    pub async fn withheld(&self, id: &DemandId, from: u64) -> Result<bool, ClientError> {
        let filter = Filter::new()
            .address(self.parts().at.objections)
            .event_signature(Objections::AnsweredWithheld::SIGNATURE_HASH)
            .topic1(id.provider.into_word())
            .topic2(B256::from(alloy_primitives::U256::from(id.epoch)));
        let found = self.logs(filter, from).await?;
        let mut events = found
            .iter()
            .filter_map(|log| Objections::AnsweredWithheld::decode_log_data(&log.inner.data).ok());
        Ok(events.any(|event| event.index == id.index))
    }

    /// The opening by which somebody answered a demand for a leaf, if it was.
    pub async fn opened(&self, id: &DemandId, from: u64) -> Result<Option<Objections::Opening>, ClientError> {
        let filter = Filter::new()
            .address(self.parts().at.objections)
            .event_signature(Objections::AnsweredLeaf::SIGNATURE_HASH)
            .topic1(id.provider.into_word())
            .topic2(B256::from(alloy_primitives::U256::from(id.epoch)));
        let found = self.logs(filter, from).await?;
        let events =
            found.iter().filter_map(|log| Objections::AnsweredLeaf::decode_log_data(&log.inner.data).ok());
        Ok(events.into_iter().find(|event| event.index == id.index).map(|event| event.opening))
    }

    /// What members of a batch's panel revealed, from a block on: their digests stand in the log.
    pub async fn revealed(
        &self,
        provider: Address,
        epoch: u64,
        from: u64,
    ) -> Result<Vec<Audits::Revealed>, ClientError> {
        let filter = Filter::new()
            .address(self.parts().at.audits)
            .event_signature(Audits::Revealed::SIGNATURE_HASH)
            .topic1(provider.into_word())
            .topic2(B256::from(alloy_primitives::U256::from(epoch)));
        let found = self.logs(filter, from).await?;
        Ok(found.iter().filter_map(|log| Audits::Revealed::decode_log_data(&log.inner.data).ok()).collect())
    }

    /// Who has demanded something of a batch, from a block on.
    pub async fn demanders(
        &self,
        provider: Address,
        epoch: u64,
        from: u64,
    ) -> Result<BTreeSet<Address>, ClientError> {
        let filter = Filter::new()
            .address(self.parts().at.objections)
            .event_signature(Objections::Demanded::SIGNATURE_HASH)
            .topic1(provider.into_word())
            .topic2(B256::from(alloy_primitives::U256::from(epoch)));
        let found = self.logs(filter, from).await?;
        let events =
            found.iter().filter_map(|log| Objections::Demanded::decode_log_data(&log.inner.data).ok());
        Ok(events.map(|event| event.from).collect())
    }

    /// Logs from a block on, in their order.
    async fn logs(&self, filter: Filter, from: u64) -> Result<Vec<alloy_rpc_types_eth::Log>, ClientError> {
        let head = self.client().head().await?;
        let (mut first, mut logs) = (from, Vec::new());
        while first <= head {
            let last = first.saturating_add(RANGE).saturating_sub(1).min(head);
            let range = filter.clone().from_block(first).to_block(last);
            let found = self.client().provider().get_logs(&range).await;
            logs.extend(found.map_err(|e| self.client().failed(e))?);
            first = last.saturating_add(1);
        }
        Ok(logs)
    }

    async fn input(&self, transaction: B256) -> Result<Bytes, ClientError> {
        let found = self.client().provider().get_transaction_by_hash(transaction).await;
        let found = found.map_err(|e| self.client().failed(e))?;
        Ok(found.ok_or(ClientError::Malformed("eth_getTransactionByHash"))?.input().clone())
    }
}

/// The calls of a kind in a transaction's input: it itself, or in what another contract passes on.
fn calls<C: SolCall>(input: &[u8]) -> impl Iterator<Item = C> {
    let input = input.get(..INPUT_BYTES_MAX).unwrap_or(input);
    let starts = input.windows(4).enumerate().filter(|(_, four)| **four == C::SELECTOR).map(|(at, _)| at);
    starts.filter_map(|at| C::abi_decode(input.get(at..)?).ok())
}

/// The message of a move of this dispute.
fn message(input: &[u8], id: &DisputeId) -> Option<Bytes> {
    let claimed = calls::<Disputes::claimCall>(input)
        .find(|c| (c.receipt, c.challenger, c.defender) == (id.name, id.challenger, id.defender))
        .map(|c| c.message);
    let picked = || {
        calls::<Disputes::pickCall>(input)
            .find(|c| (c.receipt, c.defender) == (id.name, id.defender))
            .map(|c| c.message)
    };
    claimed.or_else(picked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_in_what_a_wallet_passes_on() {
        let id = DisputeId {
            name: B256::repeat_byte(1),
            challenger: Address::repeat_byte(2),
            defender: Address::repeat_byte(3),
        };
        let said = Bytes::from(vec![7; 77]);
        let claim = Disputes::claimCall {
            receipt: id.name,
            challenger: id.challenger,
            defender: id.defender,
            message: said.clone(),
        };
        let pick = Disputes::pickCall { receipt: id.name, defender: id.defender, message: said.clone() };
        for call in [claim.abi_encode(), pick.abi_encode()] {
            assert_eq!(message(&call, &id).as_ref(), Some(&said));
            let passed = [vec![0xab; 101].as_slice(), &call, &[0; 31]].concat();
            assert_eq!(message(&passed, &id).as_ref(), Some(&said));
            let other = DisputeId { name: B256::ZERO, ..id };
            assert_eq!(message(&call, &other), None);
            for cut in 0..call.len() - 20 {
                assert_eq!(message(&call[..cut], &id), None, "{cut} bytes");
            }
        }
    }

    #[test]
    fn names_of_one_node_are_kept_and_read_again() {
        let (me, other) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let mut entries = Entries::default();
        let demanded = |provider, from| {
            let event = Objections::Demanded {
                provider,
                epoch: 3,
                index: 4,
                kind: 1,
                from,
                until: Default::default(),
            };
            Log { address: Address::ZERO, data: event.encode_log_data() }
        };
        entries.take(me, 9, &demanded(other, Address::ZERO));
        assert_eq!(entries, Entries::default());
        entries.take(me, 9, &demanded(me, other));
        let opened = Disputes::Opened { receipt: B256::ZERO, challenger: other, defender: me };
        entries.take(me, 10, &Log { address: Address::ZERO, data: opened.encode_log_data() });
        assert_eq!((entries.demands.len(), entries.disputes.len()), (1, 1));
        let stored = serde_json::to_string(&entries).unwrap();
        assert_eq!(serde_json::from_str::<Entries>(&stored).unwrap(), entries);
    }
}
