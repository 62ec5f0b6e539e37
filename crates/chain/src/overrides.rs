//! What a call may pretend: other balances, nonces, code and storage, and another block around it.
//!
//! Invariant: nothing of it outlives the call. It refuses more than its limits, and to move precompiles.

use alloy_consensus::Header;
use alloy_primitives::{KECCAK256_EMPTY, U256, keccak256};
use alloy_rpc_types_eth::BlockOverrides;
use alloy_rpc_types_eth::state::StateOverride;

use crate::evm::{BlockEnv, Bytecode, CacheDB, Database as _};
use crate::state::StateAt;
use crate::store::StoreError;
use crate::{block, limits};

/// Why a call's pretences were refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverrideError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{what}: {value} is beyond {max}")]
    Limit { what: &'static str, value: usize, max: usize },
    #[error("account {0} has both state and stateDiff")]
    Both(alloy_primitives::Address),
    #[error("precompiles cannot be moved on this chain")]
    Precompile,
    #[error("the code of account {0} is malformed")]
    Code(alloy_primitives::Address),
    #[error("{0} is too large")]
    Size(&'static str),
}

fn limit(what: &'static str, value: usize, max: usize) -> Result<(), OverrideError> {
    if value > max { Err(OverrideError::Limit { what, value, max }) } else { Ok(()) }
}

/// Puts other accounts in the place of those of a state.
pub(crate) fn pretend(db: &mut CacheDB<StateAt<'_>>, accounts: StateOverride) -> Result<(), OverrideError> {
    limit("overridden accounts", accounts.len(), limits::OVERRIDE_ACCOUNTS_MAX)?;
    let slots = accounts.values().flat_map(|a| [&a.state, &a.state_diff]).flatten().map(|s| s.len()).sum();
    limit("overridden slots", slots, limits::OVERRIDE_SLOTS_MAX)?;
    for (address, account) in accounts {
        if account.move_precompile_to.is_some() {
            return Err(OverrideError::Precompile);
        }
        if account.state.is_some() && account.state_diff.is_some() {
            return Err(OverrideError::Both(address));
        }
        let mut info = db.basic(address)?.unwrap_or_default();
        info.balance = account.balance.unwrap_or(info.balance);
        info.nonce = account.nonce.unwrap_or(info.nonce);
        if let Some(code) = account.code {
            info.code_hash = if code.is_empty() { KECCAK256_EMPTY } else { keccak256(&code) };
            info.code = Some(Bytecode::new_raw_checked(code).map_err(|_| OverrideError::Code(address))?);
        }
        db.insert_account_info(address, info);
        if let Some(all) = account.state {
            let all = all.into_iter().map(|(slot, value)| (slot.into(), value.into())).collect();
            db.replace_account_storage(address, all)?;
        }
        for (slot, value) in account.state_diff.into_iter().flatten() {
            db.insert_account_storage(address, slot.into(), value.into())?;
        }
    }
    Ok(())
}

/// The block around a call.
pub(crate) fn surround(
    db: &mut CacheDB<StateAt<'_>>,
    header: &Header,
    overrides: Option<BlockOverrides>,
) -> Result<BlockEnv, OverrideError> {
    let mut env = block::environment(header);
    let Some(overrides) = overrides else { return Ok(env) };
    let hashes = overrides.block_hash.unwrap_or_default();
    limit("overridden block hashes", hashes.len(), limits::OVERRIDE_HASHES_MAX)?;
    for (number, hash) in hashes {
        db.cache.block_hashes.insert(U256::from(number), hash);
    }
    env.number = overrides.number.unwrap_or(env.number);
    env.difficulty = overrides.difficulty.unwrap_or(env.difficulty);
    env.timestamp = overrides.time.map_or(env.timestamp, U256::from);
    env.gas_limit = overrides.gas_limit.unwrap_or(env.gas_limit);
    env.beneficiary = overrides.coinbase.unwrap_or(env.beneficiary);
    env.prevrandao = overrides.random.or(env.prevrandao);
    if let Some(fee) = overrides.base_fee {
        env.basefee = u64::try_from(fee).map_err(|_| OverrideError::Size("baseFeePerGas"))?;
    }
    Ok(env)
}
