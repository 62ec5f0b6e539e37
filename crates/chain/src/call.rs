//! Calls that change nothing: what a contract returns, how much gas a transaction needs, what it touches.
//!
//! Invariant: a call executes by the same machine as a transaction, without nonce and fee. The gas that is estimated is the least
//! with which the transaction succeeds in the next block as things are.

use std::collections::{BTreeMap, BTreeSet};

use alloy_consensus::Header;
use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rpc_types_eth::state::StateOverride;
use alloy_rpc_types_eth::{BlockOverrides, TransactionRequest};

use crate::chain::Chain;
use crate::evm::{
    self, BlockEnv, CacheDB, EVMError, EvmState, ExecuteEvm as _, ExecutionResult, InvalidTransaction,
    Machine, Output, Rules, TxEnv, TxKind,
};
use crate::limits;
use crate::overrides::{self, OverrideError};
use crate::state::StateAt;
use crate::store::StoreError;

/// Why a call returned nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Override(#[from] OverrideError),
    #[error("execution reverted{}", reason(.0))]
    Reverted(Bytes),
    #[error("execution failed: {0}")]
    Halted(String),
    #[error("gas required exceeds allowance ({0})")]
    Allowance(u64),
    #[error("insufficient funds for gas * price + value: balance {balance}, needed {needed}")]
    Funds { balance: U256, needed: U256 },
    #[error("{0}")]
    Invalid(InvalidTransaction),
    #[error("{0}")]
    Request(&'static str),
}

/// The reason in words, if the contract gave one as Solidity does.
fn reason(data: &Bytes) -> String {
    alloy_sol_types::decode_revert_reason(data)
        .and_then(|text| text.strip_prefix("revert: ").map(|reason| format!(": {reason}")))
        .unwrap_or_default()
}

/// A call with all it pretends.
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    pub request: TransactionRequest,
    /// The state that it starts from.
    pub state: StateAt<'a>,
    /// The block that it is in.
    pub header: Header,
    pub accounts: Option<StateOverride>,
    pub block: Option<BlockOverrides>,
}

/// A call that can be executed more than once.
struct Prepared<'a> {
    machine: Machine<CacheDB<StateAt<'a>>>,
    tx: TxEnv,
    balance: U256,
}

impl Prepared<'_> {
    fn run(&mut self, gas: u64) -> Result<(ExecutionResult, EvmState), CallError> {
        let tx = TxEnv { gas_limit: gas, ..self.tx.clone() };
        match self.machine.transact(tx) {
            Ok(outcome) => Ok((outcome.result, outcome.state)),
            Err(EVMError::Database(error)) => Err(error.into()),
            Err(EVMError::Transaction(InvalidTransaction::LackOfFundForMaxFee { fee, balance })) => {
                Err(CallError::Funds { balance: *balance, needed: *fee })
            }
            Err(EVMError::Transaction(error)) => Err(CallError::Invalid(error)),
            Err(error) => Err(CallError::Halted(error.to_string())),
        }
    }

    /// No more gas than the sender can pay.
    fn affordable(&self, gas: u64) -> Result<u64, CallError> {
        if self.tx.gas_price == 0 {
            return Ok(gas);
        }
        let funds = self
            .balance
            .checked_sub(self.tx.value)
            .ok_or(CallError::Funds { balance: self.balance, needed: self.tx.value })?;
        let most = funds / U256::from(self.tx.gas_price);
        Ok(u64::try_from(most).unwrap_or(u64::MAX).min(gas))
    }
}

impl Chain {
    fn prepared<'a>(&self, call: Call<'a>, gas_max: u64) -> Result<(Prepared<'a>, u64), CallError> {
        let mut db = CacheDB::new(call.state);
        if let Some(accounts) = call.accounts {
            overrides::pretend(&mut db, accounts)?;
        }
        let env: BlockEnv = overrides::surround(&mut db, &call.header, call.block)?;
        let gas_max = gas_max.min(env.gas_limit);
        let gas = call.request.gas.unwrap_or(gas_max).min(gas_max);
        let tx = transaction(call.request, gas, self.id)?;
        let balance = evm::Database::basic(&mut db, tx.caller)?.map_or(U256::ZERO, |a| a.balance);
        Ok((Prepared { machine: evm::machine(db, self.id, env, Rules::Call), tx, balance }, gas))
    }

    /// What a call returns.
    pub(crate) fn call(&self, call: Call<'_>) -> Result<Bytes, CallError> {
        let (mut prepared, gas) = self.prepared(call, limits::CALL_GAS_MAX)?;
        let gas = prepared.affordable(gas)?;
        returned(prepared.run(gas)?.0)
    }

    /// The least gas with which a transaction succeeds.
    pub(crate) fn estimate(&self, call: Call<'_>) -> Result<u64, CallError> {
        let (mut prepared, most) = self.prepared(call, limits::TRANSACTION_GAS_MAX)?;
        let most = prepared.affordable(most)?;
        let (result, _) = match prepared.run(most) {
            Err(CallError::Invalid(
                InvalidTransaction::CallGasCostMoreThanGasLimit { .. }
                | InvalidTransaction::GasFloorMoreThanGasLimit { .. },
            )) => return Err(CallError::Allowance(most)),
            other => other?,
        };
        let used = result.tx_gas_used();
        let spent = result.gas().total_gas_spent();
        if matches!(&result, ExecutionResult::Halt { reason, .. } if format!("{reason:?}").starts_with("OutOfGas"))
        {
            return Err(CallError::Allowance(most));
        }
        returned(result)?;
        let (mut low, mut high) = (used.saturating_sub(1), most);
        // What was spent, with what calls hold back, is mostly enough.
        let guess = spent.saturating_add(2_300).saturating_mul(64) / 63;
        for gas in [used, guess] {
            if gas > low && gas < high {
                if prepared.succeeds(gas)? { high = gas } else { low = gas }
            }
        }
        while low.saturating_add(1) < high {
            let middle = low.midpoint(high);
            if prepared.succeeds(middle)? { high = middle } else { low = middle }
        }
        Ok(high)
    }

    /// What a transaction touches, and the gas it uses when it says so beforehand.
    pub(crate) fn access_list(&self, call: Call<'_>) -> Result<(AccessList, u64, Option<String>), CallError> {
        let (mut prepared, gas) = self.prepared(call, limits::TRANSACTION_GAS_MAX)?;
        let gas = prepared.affordable(gas)?;
        prepared.tx.tx_type = prepared.tx.tx_type.max(1);
        let mut known: BTreeMap<Address, BTreeSet<B256>> = BTreeMap::new();
        for _ in 0..limits::ACCESS_LIST_ROUNDS_MAX {
            let (result, state) = prepared.run(gas)?;
            let mut grown = false;
            for (address, slots) in touched(&state, &prepared.tx) {
                grown |= !known.contains_key(&address);
                let all = known.entry(address).or_default();
                let before = all.len();
                all.extend(slots);
                grown |= all.len() > before;
            }
            if !grown {
                let error = returned(result.clone()).err().map(|error| error.to_string());
                return Ok((prepared.tx.access_list, result.tx_gas_used(), error));
            }
            let items = known.iter().map(|(&address, slots)| AccessListItem {
                address,
                storage_keys: slots.iter().copied().collect(),
            });
            prepared.tx.access_list = AccessList(items.collect());
        }
        Err(CallError::Request("what the transaction touches depends on its access list"))
    }
}

impl Prepared<'_> {
    fn succeeds(&mut self, gas: u64) -> Result<bool, CallError> {
        match self.run(gas) {
            Ok((result, _)) => Ok(result.is_success()),
            Err(CallError::Invalid(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn touched(state: &EvmState, tx: &TxEnv) -> BTreeMap<Address, BTreeSet<B256>> {
    let precompile = |a: &Address| {
        let number = U256::from_be_slice(a.as_slice());
        number <= U256::from(0x11) || number == U256::from(0x100)
    };
    let created = tx.kind.is_create().then(|| tx.caller.create(tx.nonce));
    let given = |a: &Address| *a == tx.caller || Some(a) == tx.kind.to() || Some(*a) == created;
    let accounts = state.iter().filter(|(address, account)| {
        !account.storage.is_empty() || (!given(address) && !precompile(address) && **address != Address::ZERO)
    });
    accounts
        .map(|(&a, account)| (a, account.storage.keys().map(|slot| B256::from(*slot)).collect()))
        .collect()
}

fn returned(result: ExecutionResult) -> Result<Bytes, CallError> {
    match result {
        ExecutionResult::Success { output: Output::Call(data) | Output::Create(data, _), .. } => Ok(data),
        ExecutionResult::Revert { output, .. } => Err(CallError::Reverted(output)),
        ExecutionResult::Halt { reason, .. } => Err(CallError::Halted(format!("{reason:?}"))),
    }
}

fn transaction(request: TransactionRequest, gas_limit: u64, chain_id: u64) -> Result<TxEnv, CallError> {
    if request.blob_versioned_hashes.is_some()
        || request.sidecar.is_some()
        || request.max_fee_per_blob_gas.is_some()
    {
        return Err(CallError::Request("this chain takes no blobs (EIP-4844)"));
    }
    let priced = request.max_fee_per_gas.is_some() || request.max_priority_fee_per_gas.is_some();
    if request.gas_price.is_some() && priced {
        return Err(CallError::Request("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified"));
    }
    if request.chain_id.is_some_and(|id| id != chain_id) {
        return Err(CallError::Request("chainId is not this chain's"));
    }
    let tx_type = match (&request.authorization_list, priced, &request.access_list) {
        (Some(_), ..) => 4,
        (None, true, _) => 2,
        (None, false, Some(_)) => 1,
        (None, false, None) => 0,
    };
    let kind = request.to.unwrap_or(TxKind::Create);
    let data = request.input.try_into_unique_input();
    let data = data.map_err(|_| CallError::Request("both input and data are given, and they differ"))?;
    let tip = request.max_priority_fee_per_gas.unwrap_or(0);
    let fee = request.gas_price.or(request.max_fee_per_gas).unwrap_or(tip);
    if tip > fee {
        return Err(CallError::Request("max priority fee per gas higher than max fee per gas"));
    }
    Ok(TxEnv {
        tx_type,
        caller: request.from.unwrap_or_default(),
        gas_limit,
        gas_price: fee,
        kind,
        value: request.value.unwrap_or_default(),
        data: data.unwrap_or_default(),
        nonce: request.nonce.unwrap_or_default(),
        chain_id: Some(chain_id),
        access_list: request.access_list.unwrap_or_default(),
        gas_priority_fee: (tx_type == 2 || tx_type == 4).then_some(tip),
        blob_hashes: Vec::new(),
        max_fee_per_blob_gas: 0,
        authorization_list: request
            .authorization_list
            .unwrap_or_default()
            .into_iter()
            .map(evm::authorization)
            .collect(),
    })
}
