//! revm, wrapped once: which rules blocks are executed by, and how transactions and results cross the border.
//!
//! Invariant: everything here runs at [`SPEC`], so that gas is the same wherever a contract is run.

use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_eips::eip7702::{RecoveredAuthorization, SignedAuthorization};
use alloy_primitives::{Address, U256};
use revm::context_interface::either::Either;
use revm::handler::{MainnetContext, MainnetEvm};
use revm::primitives::hardfork::SpecId;
use revm::{Context, MainBuilder, MainContext};

pub(crate) use revm::context::{BlockEnv, TxEnv, tx::TxEnvBuilder};
pub(crate) use revm::context_interface::result::{EVMError, ExecutionResult, InvalidTransaction, Output};
pub(crate) use revm::database::{CacheDB, EmptyDB};
pub(crate) use revm::database_interface::DBErrorMarker;
pub(crate) use revm::primitives::TxKind;
pub(crate) use revm::state::{AccountInfo, Bytecode, EvmState};
pub(crate) use revm::{Database, DatabaseRef, ExecuteCommitEvm, ExecuteEvm};

/// The hardfork whose rules apply from the first block on: anvil's of the version in this crate's tests.
pub(crate) const SPEC: SpecId = SpecId::OSAKA;

/// A machine over a state.
pub(crate) type Machine<DB> = MainnetEvm<MainnetContext<DB>>;

/// Whom the machine serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Transactions: all of consensus, but that accounts with code may send, since tests send for contracts.
    Transaction,
    /// Calls that change nothing: no nonce, no fee, and as much gas as the block has.
    Call,
}

/// A machine for one block.
pub(crate) fn machine<DB: Database>(db: DB, chain_id: u64, block: BlockEnv, rules: Rules) -> Machine<DB> {
    Context::mainnet()
        .with_db(db)
        .modify_cfg_chained(|cfg| {
            cfg.set_spec_and_mainnet_gas_params(SPEC);
            cfg.chain_id = chain_id;
            cfg.disable_eip3607 = true;
            if rules == Rules::Call {
                cfg.disable_nonce_check = true;
                cfg.disable_base_fee = true;
                cfg.tx_gas_limit_cap = Some(u64::MAX);
            }
        })
        .with_block(block)
        .build_mainnet()
}

/// What the machine has to know of a transaction.
pub(crate) fn transaction(tx: &TxEnvelope, from: Address) -> TxEnv {
    let authorization_list =
        tx.authorization_list().unwrap_or_default().iter().cloned().map(authorization).collect();
    TxEnv {
        tx_type: tx.tx_type() as u8,
        caller: from,
        gas_limit: tx.gas_limit(),
        gas_price: tx.max_fee_per_gas(),
        kind: tx.kind(),
        value: tx.value(),
        data: tx.input().clone(),
        nonce: tx.nonce(),
        chain_id: tx.chain_id(),
        access_list: tx.access_list().cloned().unwrap_or_default(),
        gas_priority_fee: tx.max_priority_fee_per_gas(),
        blob_hashes: Vec::new(),
        max_fee_per_blob_gas: 0,
        authorization_list,
    }
}

/// An authorization (EIP-7702) whose signer the machine recovers.
pub(crate) fn authorization(
    signed: SignedAuthorization,
) -> Either<SignedAuthorization, RecoveredAuthorization> {
    Either::Left(signed)
}

/// What a transaction costs at most: its gas at the highest fee, and what it carries.
pub(crate) fn cost(tx: &TxEnvelope) -> U256 {
    U256::from(tx.gas_limit()).saturating_mul(U256::from(tx.max_fee_per_gas())).saturating_add(tx.value())
}

/// Whether a transaction's gas covers what it costs before it executes; the error says how much that is.
pub(crate) fn intrinsic(tx: &TxEnv) -> Result<(), InvalidTransaction> {
    revm::handler::validation::validate_initial_tx_gas(tx, SPEC, false, false, u64::MAX, None).map(drop)
}
