//! Every limit of the chain, by name. What comes from outside is refused beyond them, in words that name the limit.

use std::time::Duration;

/// Gas of a block.
pub const BLOCK_GAS: u64 = 30_000_000;
/// Gas that one transaction may use (EIP-7825 allows no more).
pub const TRANSACTION_GAS_MAX: u64 = 1 << 24;
/// Bytes of one encoded transaction, as in other clients' pools.
pub const TRANSACTION_BYTES_MAX: usize = 128 * 1024;
/// Bytes of the code that creates a contract (EIP-3860).
pub const INITCODE_BYTES_MAX: usize = 49_152;
/// Base fee of the first block, in wei.
pub const BASE_FEE_FIRST: u64 = 1_000_000_000;
/// The tip that this chain proposes, in wei.
pub const TIP: u128 = 1_000_000_000;
/// How much more a replacement pays, in percent of both fees.
pub const REPLACEMENT_PERCENT: u128 = 10;

/// Transactions that may wait.
pub const POOL_MAX: usize = 16_384;
/// Transactions of one account that may wait.
pub const POOL_ACCOUNT_MAX: usize = 4_096;
/// How far beyond an account's next nonce a transaction may be.
pub const NONCE_AHEAD_MAX: u64 = 4_096;
/// Arrivals in the pool that filters can still ask for.
pub const ARRIVALS_MAX: usize = 16_384;

/// Bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Requests in a batch.
pub const BATCH_MAX: usize = 1_000;
/// Bytes of a batch's answers together; what is beyond is answered with an error.
pub const BATCH_ANSWER_BYTES_MAX: usize = 64 << 20;
/// Requests that are worked on at once; more wait.
pub const CONCURRENT_MAX: usize = 64;
/// Bytes of a parameter that `web3_sha3` hashes.
pub const HASHED_BYTES_MAX: usize = 4 << 20;

/// Blocks that one query for logs looks at.
pub const LOG_RANGE_MAX: u64 = 100_000;
/// Logs that one query returns.
pub const LOGS_MAX: usize = 20_000;
/// Addresses, or alternatives of one topic, in a query for logs.
pub const LOG_ALTERNATIVES_MAX: usize = 1_000;
/// Filters that are open at once.
pub const FILTERS_MAX: usize = 1_000;
/// How long a filter lives that nobody asks.
pub const FILTER_IDLE: Duration = Duration::from_secs(300);
/// Blocks in one answer to `eth_feeHistory`.
pub const FEE_HISTORY_MAX: u64 = 1_024;
/// Percentiles in one question for a history of fees.
pub const PERCENTILES_MAX: usize = 100;

/// Gas of a call that changes nothing.
pub const CALL_GAS_MAX: u64 = BLOCK_GAS;
/// How often a transaction is executed to find out what it touches.
pub const ACCESS_LIST_ROUNDS_MAX: usize = 16;
/// Accounts that a call may override.
pub const OVERRIDE_ACCOUNTS_MAX: usize = 256;
/// Storage slots that a call may override, in all accounts together.
pub const OVERRIDE_SLOTS_MAX: usize = 16_384;
/// Block hashes that a call may override.
pub const OVERRIDE_HASHES_MAX: usize = 256;

/// Blocks that one request mines.
pub const MINE_MAX: u64 = 100_000;
/// Blocks that are made durable together.
pub const MINE_CHUNK: u64 = 256;
/// The latest time that a block may have (Unix seconds): far enough, and sums cannot overflow.
pub const TIME_MAX: u64 = 1 << 40;
/// Blocks and edits that can be undone.
pub const UNDO_MAX: u64 = 65_536;
/// Snapshots that are kept; the oldest is forgotten.
pub const SNAPSHOTS_MAX: usize = 4_096;
/// Accounts that are impersonated at once.
pub const IMPERSONATED_MAX: usize = 1_024;
/// Accounts of the first block.
pub const GENESIS_ACCOUNTS_MAX: usize = 10_000;
