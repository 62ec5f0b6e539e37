//! What a chain's contracts logged, block by block, with what reorganisations took back.
//!
//! Invariant: applying every change in order leaves exactly the logs of the chain that the node calls canonical. A cursor keeps the hashes of
//! the last blocks; whoever stores it with what was derived from the logs goes on there after a crash. It refuses to guess: a
//! reorganisation deeper than the cursor is an error, after which one begins anew.

use std::collections::VecDeque;

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Log};
use alloy_provider::Provider as _;
use alloy_rpc_types_eth::Filter;
use serde::{Deserialize, Serialize};

use crate::client::{Client, ClientError};

/// Blocks that a cursor remembers: the deepest reorganisation that is followed.
pub const DEPTH_MAX: usize = 64;
/// Blocks whose logs are asked for at once.
const RANGE: u64 = 1_000;

/// Why following stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FollowError {
    /// The chain did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The chain is another one than it was.
    #[error(
        "the chain changed further back than {DEPTH_MAX} blocks; what was read from it must be read again"
    )]
    TooDeep,
}

/// One step of what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A block with logs, or the newest one.
    Applied(Applied),
    /// A block that is no longer part of the chain. Blocks are undone newest first.
    Undone {
        /// Its number.
        number: u64,
        /// Its hash.
        hash: B256,
    },
}

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// What the contracts logged in it, in order.
    pub logs: Vec<Log>,
}

/// How far a follower came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The first block that is read.
    pub from: u64,
    /// The last blocks, oldest first, without gaps.
    pub blocks: VecDeque<(u64, B256)>,
}

impl Cursor {
    /// Before a block.
    pub fn from(block: u64) -> Cursor {
        Cursor { from: block, blocks: VecDeque::new() }
    }

    /// The next block to read.
    pub fn next(&self) -> u64 {
        self.blocks.back().map_or(self.from, |(number, _)| number.saturating_add(1))
    }

    fn push(&mut self, number: u64, hash: B256) {
        self.blocks.push_back((number, hash));
        if self.blocks.len() > DEPTH_MAX {
            self.blocks.pop_front();
        }
    }
}

/// Follows some contracts.
#[derive(Clone, Debug)]
pub struct Follower {
    client: Client,
    contracts: Vec<Address>,
    cursor: Cursor,
    /// Whether the cursor's first block was the first of all, so that there is nothing before it to be changed.
    whole: bool,
}

impl Follower {
    /// Follows the logs of `contracts` after a cursor.
    pub fn new(client: Client, contracts: Vec<Address>, cursor: Cursor) -> Follower {
        let whole = cursor.blocks.front().is_none_or(|(number, _)| *number == cursor.from);
        Follower { client, contracts, cursor, whole }
    }

    /// How far it came. Store it with what the changes so far led to.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// What changed since the last time, at most some thousand blocks of it; nothing if the chain stands still.
    pub async fn poll(&mut self) -> Result<Vec<Change>, FollowError> {
        let mut changes = Vec::new();
        self.undo(&mut changes).await?;
        let head = self.client.head().await?;
        let next = self.cursor.next();
        if next > head {
            return Ok(changes);
        }
        // What is deeper than a cursor remembers is read by ranges, the rest block by block, each by its own hash.
        let shallow = head.saturating_sub(DEPTH_MAX as u64).saturating_add(1).max(next);
        if next < shallow {
            let last = shallow.saturating_sub(1).min(next.saturating_add(RANGE).saturating_sub(1));
            self.range(next, last, &mut changes).await?;
            if last.saturating_add(1) < shallow {
                return Ok(changes);
            }
        }
        for number in shallow..=head {
            if !self.block(number, &mut changes).await? {
                break;
            }
        }
        Ok(changes)
    }

    /// Takes back the blocks that are no longer the chain's.
    async fn undo(&mut self, changes: &mut Vec<Change>) -> Result<(), FollowError> {
        while let Some(&(number, hash)) = self.cursor.blocks.back() {
            if self.header(number).await?.is_some_and(|(found, _)| found == hash) {
                return Ok(());
            }
            self.cursor.blocks.pop_back();
            changes.push(Change::Undone { number, hash });
            if self.cursor.blocks.is_empty() {
                self.cursor.from = number;
                if !self.whole {
                    return Err(FollowError::TooDeep);
                }
            }
        }
        Ok(())
    }

    async fn header(&self, number: u64) -> Result<Option<(B256, B256)>, ClientError> {
        let header = self.client.header(BlockId::Number(BlockNumberOrTag::Number(number))).await?;
        Ok(header.map(|h| (h.hash, h.parent_hash)))
    }

    /// Reads many blocks that are too deep to change. Only the last one of them is remembered.
    async fn range(&mut self, first: u64, last: u64, changes: &mut Vec<Change>) -> Result<(), FollowError> {
        let Some((hash, _)) = self.header(last).await? else { return Ok(()) };
        let filter = Filter::new().address(self.contracts.clone()).from_block(first).to_block(last);
        let logs = self.client.provider().get_logs(&filter).await.map_err(|e| self.client.failed(e))?;
        let mut blocks: Vec<Applied> = Vec::new();
        for log in logs {
            let (Some(number), Some(block)) = (log.block_number, log.block_hash) else {
                return Err(ClientError::Malformed("eth_getLogs").into());
            };
            match blocks.last_mut() {
                Some(applied) if applied.hash == block => applied.logs.push(log.inner),
                Some(applied) if applied.number >= number => {
                    return Err(ClientError::Malformed("eth_getLogs").into());
                }
                _ => blocks.push(Applied { number, hash: block, logs: vec![log.inner] }),
            }
        }
        if blocks.last().is_none_or(|b| b.number != last) {
            blocks.push(Applied { number: last, hash, logs: Vec::new() });
        }
        changes.extend(blocks.into_iter().map(Change::Applied));
        // Its predecessors are not remembered: a change below it is deeper than what is followed.
        self.cursor.blocks.clear();
        self.cursor.push(last, hash);
        self.whole = false;
        Ok(())
    }

    /// Reads one block, unless the chain changed meanwhile.
    async fn block(&mut self, number: u64, changes: &mut Vec<Change>) -> Result<bool, FollowError> {
        let Some((hash, parent)) = self.header(number).await? else { return Ok(false) };
        if self.cursor.blocks.back().is_some_and(|(_, last)| *last != parent) {
            return Ok(false);
        }
        let filter = Filter::new().address(self.contracts.clone()).at_block_hash(hash);
        let logs = match self.client.provider().get_logs(&filter).await {
            Ok(logs) => logs.into_iter().map(|log| log.inner).collect(),
            // A node that no longer has the block says so in words of its own; the next poll finds out.
            Err(error) => match self.client.failed(error) {
                ClientError::Refused { .. } => return Ok(false),
                other => return Err(other.into()),
            },
        };
        if self.cursor.blocks.len() == DEPTH_MAX {
            self.whole = false;
        }
        self.cursor.push(number, hash);
        changes.push(Change::Applied(Applied { number, hash, logs }));
        Ok(true)
    }
}
