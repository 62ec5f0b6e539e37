//! A block: which waiting transactions go into it, what they do, and its header.
//!
//! Invariant: a block executes as a mainnet block of [`crate::evm::SPEC`] would, and its header's hash, transactions' root,
//! receipts' root and bloom are Ethereum's. Three fields mean something else: the state root is a running hash, `prevRandao` is
//! drawn from the chain's seed, and the extra data says what kind of chain this is.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use alloy_consensus::constants::{EMPTY_OMMER_ROOT_HASH, EMPTY_ROOT_HASH, EMPTY_WITHDRAWALS};
use alloy_consensus::{Header, Transaction as _, proofs};
use alloy_eips::eip1559::BaseFeeParams;
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_eips::eip2935::{HISTORY_SERVE_WINDOW, HISTORY_STORAGE_ADDRESS};
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{Address, B256, Bloom, Bytes, U256, keccak256};

use crate::evm::{
    self, BlockEnv, CacheDB, EVMError, ExecuteCommitEvm as _, ExecuteEvm as _, ExecutionResult, Rules,
};
use crate::limits;
use crate::pool::Waiting;
use crate::records::{Head, Mined, encoded};
use crate::state::{Changes, StateAt};
use crate::store::{StoreError, block_size};

/// What every header says in its extra data.
pub(crate) const EXTRA: &[u8] = b"development chain, no value";

/// A block that nobody has seen yet.
#[derive(Debug)]
pub(crate) struct Built {
    pub head: Head,
    pub mined: Vec<(B256, Mined)>,
    pub changes: Changes,
}

/// Where a block stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub chain_id: u64,
    pub seed: B256,
    pub time: u64,
    pub base_fee: u64,
}

/// The base fee that follows from a block, by EIP-1559. The first block's follows from nothing: the genesis counts as half full.
pub(crate) fn next_base_fee(parent: &Header) -> u64 {
    if parent.number == 0 {
        return parent.base_fee_per_gas.unwrap_or(limits::BASE_FEE_FIRST);
    }
    parent.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or(limits::BASE_FEE_FIRST)
}

/// The randomness of the block after one with this hash.
pub(crate) fn randao(seed: B256, parent: B256) -> B256 {
    keccak256([seed.as_slice(), parent.as_slice()].concat())
}

/// The machine's view of a block.
pub(crate) fn environment(header: &Header) -> BlockEnv {
    BlockEnv {
        number: U256::from(header.number),
        beneficiary: header.beneficiary,
        timestamp: U256::from(header.timestamp),
        gas_limit: header.gas_limit,
        basefee: header.base_fee_per_gas.unwrap_or(0),
        prevrandao: Some(header.mix_hash),
        ..BlockEnv::default()
    }
}

/// A header before anything has been executed.
pub(crate) fn blank(plan: &Plan, parent: &Head) -> Header {
    Header {
        parent_hash: parent.hash,
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        state_root: parent.header.state_root,
        transactions_root: EMPTY_ROOT_HASH,
        receipts_root: EMPTY_ROOT_HASH,
        number: parent.header.number.saturating_add(1),
        gas_limit: limits::BLOCK_GAS,
        timestamp: plan.time,
        extra_data: Bytes::from_static(EXTRA),
        mix_hash: randao(plan.seed, parent.hash),
        base_fee_per_gas: Some(plan.base_fee),
        withdrawals_root: Some(EMPTY_WITHDRAWALS),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}

/// The block with number 0.
pub(crate) fn genesis(time: u64, seed: B256, changes: Changes) -> Built {
    let nothing = Head { hash: B256::ZERO, size: 0, count: 0, header: Header::default() };
    let plan = Plan { chain_id: 0, seed, time, base_fee: limits::BASE_FEE_FIRST };
    let mut header = blank(&plan, &nothing);
    header.number = 0;
    header.parent_hash = B256::ZERO;
    // Two chains that begin in the same second are two chains.
    header.mix_hash = randao(seed, B256::ZERO);
    header.state_root = changes.root(B256::ZERO);
    Built { head: sealed(header, 0, 0), mined: Vec::new(), changes }
}

fn sealed(header: Header, transactions: usize, bytes: usize) -> Head {
    Head {
        hash: header.hash_slow(),
        size: block_size(&header, bytes),
        count: u64::try_from(transactions).unwrap_or(u64::MAX),
        header,
    }
}

/// What could go into the next blocks: of each account the transactions from its nonce on, without a gap.
#[derive(Debug)]
pub(crate) struct Candidates {
    queues: HashMap<Address, VecDeque<Arc<Waiting>>>,
}

impl Candidates {
    /// Sorts out what may be executed after a block.
    pub(crate) fn new(
        waiting: Vec<(Address, Vec<Arc<Waiting>>)>,
        state: StateAt<'_>,
    ) -> Result<Self, StoreError> {
        let mut queues = HashMap::new();
        for (from, all) in waiting {
            let first = state.nonce(from)?;
            let mut nonce = first;
            let mut queue = VecDeque::new();
            for waiting in all.into_iter().skip_while(|w| w.tx.nonce() < first) {
                if waiting.tx.nonce() != nonce {
                    break;
                }
                nonce = nonce.saturating_add(1);
                queue.push_back(waiting);
            }
            if !queue.is_empty() {
                queues.insert(from, queue);
            }
        }
        Ok(Candidates { queues })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

/// Executes what fits into the block after `parent`: the highest tips first, then the first to come. An account whose transaction
/// cannot pay is left out, and what it has waiting stays where it is.
pub(crate) fn build(
    plan: &Plan,
    parent: &Head,
    db: &mut CacheDB<StateAt<'_>>,
    candidates: &mut Candidates,
) -> Result<Built, StoreError> {
    let mut header = blank(plan, parent);
    let mut changes = Changes::default();
    remember_parent(parent, db, &mut changes)?;
    let mut machine = evm::machine(&mut *db, plan.chain_id, environment(&header), Rules::Transaction);
    let tip = |w: &Waiting| w.tx.effective_tip_per_gas(plan.base_fee);
    let mut heap: BinaryHeap<(u128, Reverse<u64>, Address)> = BinaryHeap::new();
    candidates.queues.retain(|&from, queue| match queue.front().and_then(|w| Some((tip(w)?, w.arrival))) {
        Some((tip, arrival)) => {
            heap.push((tip, Reverse(arrival), from));
            true
        }
        None => false,
    });
    let mut done = Done::default();
    while let Some((_, _, from)) = heap.pop() {
        let Some(queue) = candidates.queues.get_mut(&from) else { continue };
        let Some(next) = queue.front() else { continue };
        if next.tx.gas_limit() > header.gas_limit.saturating_sub(done.gas) {
            continue; // The next block has room.
        }
        match machine.transact(evm::transaction(&next.tx, from)) {
            Ok(outcome) => {
                changes.take(&outcome.state);
                machine.commit(outcome.state);
                done.add(next, outcome.result);
                queue.pop_front();
                match queue.front().and_then(|w| Some((tip(w)?, w.arrival))) {
                    Some((tip, arrival)) => heap.push((tip, Reverse(arrival), from)),
                    None => drop(candidates.queues.remove(&from)),
                }
            }
            Err(EVMError::Database(error)) => return Err(error),
            Err(error) => {
                tracing::debug!(hash = %next.hash, %error, "a transaction stays in the pool");
                candidates.queues.remove(&from);
            }
        }
    }
    drop(machine);
    header.gas_used = done.gas;
    header.state_root = changes.root(parent.header.state_root);
    header.transactions_root = proofs::calculate_transaction_root(&done.transactions);
    header.receipts_root = proofs::calculate_receipt_root(&done.receipts);
    header.logs_bloom = done.bloom;
    let bytes = done.transactions.iter().map(|tx| tx.network_len()).sum();
    let head = sealed(header, done.mined.len(), bytes);
    db.cache.block_hashes.insert(U256::from(head.header.number), head.hash);
    Ok(Built { head, mined: done.mined, changes })
}

/// EIP-2935: what its contract does when a block begins.
fn remember_parent(
    parent: &Head,
    db: &mut CacheDB<StateAt<'_>>,
    changes: &mut Changes,
) -> Result<(), StoreError> {
    let slot = U256::from(parent.header.number) % U256::from(HISTORY_SERVE_WINDOW);
    let value = U256::from_be_bytes(parent.hash.0);
    db.insert_account_storage(HISTORY_STORAGE_ADDRESS, slot, value)?;
    changes.storage.insert((HISTORY_STORAGE_ADDRESS, slot), value);
    Ok(())
}

/// What a block has done so far.
#[derive(Default)]
struct Done {
    gas: u64,
    logs: u64,
    bloom: Bloom,
    mined: Vec<(B256, Mined)>,
    transactions: Vec<alloy_consensus::TxEnvelope>,
    receipts: Vec<alloy_consensus::ReceiptEnvelope>,
}

impl Done {
    fn add(&mut self, waiting: &Waiting, result: ExecutionResult) {
        let gas_used = result.tx_gas_used();
        self.gas = self.gas.saturating_add(gas_used);
        let success = result.is_success();
        let logs = if success { result.into_logs() } else { Vec::new() };
        let logs_before = self.logs;
        self.logs = self.logs.saturating_add(u64::try_from(logs.len()).unwrap_or(u64::MAX));
        let mined = Mined {
            from: waiting.from,
            gas_used,
            success,
            cumulative_gas: self.gas,
            logs_before,
            raw: encoded(&waiting.tx),
            logs,
        };
        let receipt = mined.receipt(&waiting.tx);
        self.bloom.accrue_bloom(receipt.logs_bloom());
        self.receipts.push(receipt);
        self.transactions.push(waiting.tx.clone());
        self.mined.push((waiting.hash, mined));
    }
}
