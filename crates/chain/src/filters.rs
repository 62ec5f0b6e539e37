//! Filters that clients ask again and again: for new logs, new blocks, new waiting transactions.
//!
//! Invariant: what is new is told once, in its order. A filter that nobody asks for [`limits::FILTER_IDLE`] is gone; the clock for that is
//! the machine's, never the chain's. After a rewind a filter goes on from the last block that is left.

use std::collections::HashMap;
use std::time::Instant;

use alloy_primitives::B256;
use alloy_rpc_types_eth::{Filter, FilterBlockOption, Log};

use crate::chain::{Chain, locked};
use crate::limits;
use crate::logs::{self, LogsError};
use crate::store::StoreError;

/// Why a filter did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Logs(#[from] LogsError),
    #[error("filter not found")]
    Unknown,
    #[error("too many filters: {max} are open", max = limits::FILTERS_MAX)]
    TooMany,
    #[error("a filter cannot be for one block's hash")]
    BlockHash,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The next block to look at.
    Logs(Box<Filter>, u64),
    Blocks(u64),
    /// The next arrival in the pool.
    Pending(u64),
}

#[derive(Debug)]
struct Open {
    kind: Kind,
    asked: Instant,
}

/// The filters that are open.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    open: HashMap<u64, Open>,
    next: u64,
}

impl Filters {
    fn add(&mut self, kind: Kind) -> Result<u64, FilterError> {
        self.open.retain(|_, filter| filter.asked.elapsed() < limits::FILTER_IDLE);
        if self.open.len() >= limits::FILTERS_MAX {
            return Err(FilterError::TooMany);
        }
        self.next = self.next.saturating_add(1);
        self.open.insert(self.next, Open { kind, asked: Instant::now() });
        Ok(self.next)
    }

    fn get(&mut self, id: u64) -> Result<&mut Kind, FilterError> {
        self.open.retain(|_, filter| filter.asked.elapsed() < limits::FILTER_IDLE);
        let filter = self.open.get_mut(&id).ok_or(FilterError::Unknown)?;
        filter.asked = Instant::now();
        Ok(&mut filter.kind)
    }

    pub(crate) fn remove(&mut self, id: u64) -> bool {
        self.open.remove(&id).is_some()
    }

    /// Blocks after `head` are gone.
    pub(crate) fn rewound(&mut self, head: u64) {
        for filter in self.open.values_mut() {
            if let Kind::Logs(_, next) | Kind::Blocks(next) = &mut filter.kind {
                *next = (*next).min(head.saturating_add(1));
            }
        }
    }
}

/// What a filter has to tell.
#[derive(Debug)]
pub(crate) enum News {
    Logs(Vec<Log>),
    Hashes(Vec<B256>),
}

impl Chain {
    pub(crate) fn log_filter(&self, filter: Filter) -> Result<u64, FilterError> {
        logs::check(&filter)?;
        if matches!(filter.block_option, FilterBlockOption::AtBlockHash(_)) {
            return Err(FilterError::BlockHash);
        }
        let next = self.store.view()?.head()?.header.number.saturating_add(1);
        locked(&self.filters).add(Kind::Logs(Box::new(filter), next))
    }

    pub(crate) fn block_filter(&self) -> Result<u64, FilterError> {
        let next = self.store.view()?.head()?.header.number.saturating_add(1);
        locked(&self.filters).add(Kind::Blocks(next))
    }

    pub(crate) fn pending_filter(&self) -> Result<u64, FilterError> {
        let next = locked(&self.pool).next_arrival();
        locked(&self.filters).add(Kind::Pending(next))
    }

    /// What is new since a filter was asked the last time.
    pub(crate) fn news(&self, id: u64) -> Result<News, FilterError> {
        let mut filters = locked(&self.filters);
        let kind = filters.get(id)?;
        let view = self.store.view()?;
        let head = view.head()?.header.number;
        match kind {
            Kind::Logs(filter, next) => {
                let FilterBlockOption::Range { from_block, to_block } = filter.block_option else {
                    return Err(FilterError::BlockHash);
                };
                let from = from_block.map_or(*next, |tag| logs::tagged(tag, 0).max(*next));
                let to = to_block.map_or(head, |tag| logs::tagged(tag, head).min(head));
                let found = logs::logs(&view, filter, from, to)?;
                *next = (*next).max(head.saturating_add(1));
                Ok(News::Logs(found))
            }
            Kind::Blocks(next) => {
                let last = head.min(next.saturating_add(limits::LOG_RANGE_MAX));
                let heads = view.heads(*next, last.max(*next))?;
                let hashes = heads.map(|head| Ok(head?.hash)).collect::<Result<Vec<_>, StoreError>>()?;
                *next = next.saturating_add(hashes.len() as u64);
                Ok(News::Hashes(hashes))
            }
            Kind::Pending(next) => {
                let pool = locked(&self.pool);
                let hashes = pool.arrived(*next);
                *next = pool.next_arrival();
                Ok(News::Hashes(hashes))
            }
        }
    }

    /// All that a filter for logs lets through, new or not.
    pub(crate) fn filter_logs(&self, id: u64) -> Result<Vec<Log>, FilterError> {
        let Kind::Logs(filter, _) = locked(&self.filters).get(id)?.clone() else {
            return Err(FilterError::Unknown);
        };
        let view = self.store.view()?;
        let (from, to) = logs::range(&view, &filter)?;
        Ok(logs::logs(&view, &filter, from, to)?)
    }
}
