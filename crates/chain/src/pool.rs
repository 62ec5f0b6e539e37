//! The transactions that wait for a block.
//!
//! Invariant: at most one transaction for each account and nonce; one that replaces it pays more, by both fees. What was acknowledged is
//! in the store too (`durable`); the pool itself can be made again from there. It refuses what is beyond its limits: nothing is
//! thrown out for another sender's sake.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_primitives::{Address, B256};

use crate::limits;
use crate::records::{Kept, encoded};

/// A transaction that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub hash: B256,
    pub from: Address,
    pub tx: TxEnvelope,
    /// Its place in the order of arrival, and its key in the store.
    pub arrival: u64,
}

impl Waiting {
    pub(crate) fn kept(&self) -> Kept {
        Kept { from: self.from, raw: encoded(&self.tx) }
    }
}

/// Why the pool did not take a transaction; in the words that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("already known")]
    Known,
    #[error("replacement transaction underpriced")]
    Underpriced,
    #[error("txpool is full: {0} transactions wait")]
    Full(usize),
    #[error("account limit exceeded: {0} transactions of the account wait")]
    AccountFull(usize),
}

#[derive(Debug, Default)]
pub(crate) struct Pool {
    senders: HashMap<Address, BTreeMap<u64, Arc<Waiting>>>,
    hashes: HashMap<B256, Arc<Waiting>>,
    next: u64,
    /// Arrivals that no commit has seen yet.
    fresh: BTreeMap<u64, Arc<Waiting>>,
    /// Arrivals that were replaced or dropped after a commit had seen them.
    gone: Vec<u64>,
    recent: VecDeque<(u64, B256)>,
}

impl Pool {
    /// Takes a transaction; it is not durable yet.
    pub(crate) fn add(
        &mut self,
        hash: B256,
        from: Address,
        tx: TxEnvelope,
    ) -> Result<Arc<Waiting>, PoolError> {
        if self.hashes.contains_key(&hash) {
            return Err(PoolError::Known);
        }
        let of_account = self.senders.get(&from);
        let replaced = of_account.and_then(|all| all.get(&tx.nonce())).cloned();
        match &replaced {
            Some(old) if !pays_more(&old.tx, &tx) => return Err(PoolError::Underpriced),
            Some(_) => {}
            None if self.hashes.len() >= limits::POOL_MAX => return Err(PoolError::Full(limits::POOL_MAX)),
            None if of_account.is_some_and(|all| all.len() >= limits::POOL_ACCOUNT_MAX) => {
                return Err(PoolError::AccountFull(limits::POOL_ACCOUNT_MAX));
            }
            None => {}
        }
        if let Some(old) = replaced {
            self.remove(old.hash);
        }
        let waiting = self.insert(Waiting { hash, from, tx, arrival: self.next });
        self.fresh.insert(waiting.arrival, waiting.clone());
        self.recent.push_back((waiting.arrival, hash));
        if self.recent.len() > limits::ARRIVALS_MAX {
            self.recent.pop_front();
        }
        Ok(waiting)
    }

    /// Takes what the store kept.
    pub(crate) fn restore(&mut self, waiting: Waiting) {
        self.insert(waiting);
    }

    fn insert(&mut self, waiting: Waiting) -> Arc<Waiting> {
        self.next = self.next.max(waiting.arrival.saturating_add(1));
        let waiting = Arc::new(waiting);
        self.senders.entry(waiting.from).or_default().insert(waiting.tx.nonce(), waiting.clone());
        self.hashes.insert(waiting.hash, waiting.clone());
        waiting
    }

    pub(crate) fn get(&self, hash: B256) -> Option<&Arc<Waiting>> {
        self.hashes.get(&hash)
    }

    /// Takes a transaction out; says whether it was there.
    pub(crate) fn remove(&mut self, hash: B256) -> bool {
        let Some(waiting) = self.hashes.remove(&hash) else { return false };
        if let Some(all) = self.senders.get_mut(&waiting.from) {
            all.remove(&waiting.tx.nonce());
            if all.is_empty() {
                self.senders.remove(&waiting.from);
            }
        }
        if self.fresh.remove(&waiting.arrival).is_none() {
            self.gone.push(waiting.arrival);
        }
        true
    }

    /// Whether a commit has seen a transaction that waits.
    pub(crate) fn durable(&self, waiting: &Waiting) -> bool {
        !self.fresh.contains_key(&waiting.arrival)
    }

    /// What no commit has seen yet: arrivals to keep, arrivals to forget.
    pub(crate) fn unseen(&self) -> (Vec<Arc<Waiting>>, Vec<u64>) {
        (self.fresh.values().cloned().collect(), self.gone.clone())
    }

    /// A commit has seen `fresh`; it knows nothing more of the arrivals in `settled`. Accounts are at these nonces now.
    pub(crate) fn seen(&mut self, fresh: &[Arc<Waiting>], nonces: &[(Address, u64)], settled: &HashSet<u64>) {
        for waiting in fresh {
            // What was replaced meanwhile is in the store now, and has to be forgotten there.
            if self.fresh.remove(&waiting.arrival).is_none() {
                self.gone.push(waiting.arrival);
            }
        }
        for &(from, nonce) in nonces {
            self.passed(from, nonce);
        }
        self.gone.retain(|arrival| !settled.contains(arrival));
    }

    fn passed(&mut self, from: Address, nonce: u64) {
        let Some(all) = self.senders.get(&from) else { return };
        let old: Vec<B256> = all.range(..nonce).map(|(_, w)| w.hash).collect();
        for hash in old {
            self.remove(hash);
        }
    }

    /// Who has transactions waiting.
    pub(crate) fn waiting(&self) -> Vec<(Address, Vec<Arc<Waiting>>)> {
        self.senders.iter().map(|(&from, all)| (from, all.values().cloned().collect())).collect()
    }

    /// The first nonce from `nonce` on that no transaction of the account has.
    pub(crate) fn next_nonce(&self, from: Address, nonce: u64) -> u64 {
        let Some(all) = self.senders.get(&from) else { return nonce };
        let mut next = nonce;
        while all.contains_key(&next) {
            next = next.saturating_add(1);
        }
        next
    }

    /// The arrival that the next transaction will have.
    pub(crate) fn next_arrival(&self) -> u64 {
        self.next
    }

    /// What has arrived since.
    pub(crate) fn arrived(&self, since: u64) -> Vec<B256> {
        self.recent.iter().filter(|(arrival, _)| *arrival >= since).map(|(_, hash)| *hash).collect()
    }

    /// Takes out what arrived since.
    pub(crate) fn drop_since(&mut self, since: u64) {
        let late: Vec<B256> = self.hashes.values().filter(|w| w.arrival >= since).map(|w| w.hash).collect();
        for hash in late {
            self.remove(hash);
        }
    }
}

/// Whether a transaction may take another's place: 10 % more in both fees.
fn pays_more(old: &TxEnvelope, new: &TxEnvelope) -> bool {
    let enough = |old: u128, new: u128| {
        let least = old.saturating_mul(100 + limits::REPLACEMENT_PERCENT).div_ceil(100);
        new >= least && new > old
    };
    let tip = |tx: &TxEnvelope| tx.max_priority_fee_per_gas().unwrap_or(tx.max_fee_per_gas());
    enough(old.max_fee_per_gas(), new.max_fee_per_gas()) && (tip(old) == 0 || enough(tip(old), tip(new)))
}
