//! Queries for logs.
//!
//! Invariant: an answer is complete or an error: none is cut short. A header's bloom says which blocks are read.

use alloy_eips::BlockNumberOrTag;
use alloy_primitives::B256;
use alloy_rpc_types_eth::{Filter, FilterBlockOption, Log};

use crate::limits;
use crate::records::{Head, Mined};
use crate::store::{StoreError, View};

/// Why a query for logs has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("unknown block")]
    UnknownBlock,
    #[error("invalid block range params")]
    Range,
    #[error("query exceeds max block range {max}", max = limits::LOG_RANGE_MAX)]
    TooManyBlocks,
    #[error("query returned more than {max} results", max = limits::LOGS_MAX)]
    TooMany,
    #[error("query has more than {max} addresses or alternatives of a topic", max = limits::LOG_ALTERNATIVES_MAX)]
    Alternatives,
}

/// Refuses queries that are too large to ask.
pub(crate) fn check(filter: &Filter) -> Result<(), LogsError> {
    let most = filter.topics.iter().map(|t| t.len()).chain([filter.address.len()]).max();
    if most.unwrap_or(0) > limits::LOG_ALTERNATIVES_MAX { Err(LogsError::Alternatives) } else { Ok(()) }
}

/// A block's number by its tag; there may be no such block yet.
pub(crate) fn tagged(tag: BlockNumberOrTag, head: u64) -> u64 {
    match tag {
        BlockNumberOrTag::Number(number) => number,
        BlockNumberOrTag::Earliest => 0,
        _ => head,
    }
}

/// The blocks that a query is about, first and last.
pub(crate) fn range(view: &View, filter: &Filter) -> Result<(u64, u64), LogsError> {
    match filter.block_option {
        FilterBlockOption::AtBlockHash(hash) => {
            let number = view.number(hash)?.ok_or(LogsError::UnknownBlock)?;
            Ok((number, number))
        }
        FilterBlockOption::Range { from_block, to_block } => {
            let head = view.head()?.header.number;
            let from = tagged(from_block.unwrap_or_default(), head);
            let to = tagged(to_block.unwrap_or_default(), head);
            if from > to && from_block.is_some() && to_block.is_some() {
                return Err(LogsError::Range);
            }
            Ok((from, to.min(head)))
        }
    }
}

/// The logs in these blocks that a filter lets through.
pub(crate) fn logs(view: &View, filter: &Filter, from: u64, to: u64) -> Result<Vec<Log>, LogsError> {
    check(filter)?;
    if to.saturating_sub(from) >= limits::LOG_RANGE_MAX {
        return Err(LogsError::TooManyBlocks);
    }
    let mut found = Vec::new();
    if from > to {
        return Ok(found);
    }
    for head in view.heads(from, to)? {
        let head = head?;
        if head.count == 0 || !filter.matches_bloom(head.header.logs_bloom) {
            continue;
        }
        for (index, mined) in (0u64..).zip(view.mined_in(head.header.number)?) {
            let hash = alloy_primitives::keccak256(&mined.raw);
            found.extend(presented(&head, &mined, hash, index).filter(|log| filter.matches(&log.inner)));
            if found.len() > limits::LOGS_MAX {
                return Err(LogsError::TooMany);
            }
        }
    }
    Ok(found)
}

/// A transaction's logs as clients see them.
pub(crate) fn presented<'a>(
    head: &'a Head,
    mined: &'a Mined,
    hash: B256,
    index: u64,
) -> impl Iterator<Item = Log> + 'a {
    (mined.logs_before..).zip(&mined.logs).map(move |(position, log)| Log {
        inner: log.clone(),
        block_hash: Some(head.hash),
        block_number: Some(head.header.number),
        block_timestamp: Some(head.header.timestamp),
        transaction_hash: Some(hash),
        transaction_index: Some(index),
        log_index: Some(position),
        removed: false,
    })
}
