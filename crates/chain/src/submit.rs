//! Taking a transaction: what is wrong with it, in the words that clients know, or its hash once it is safe.
//!
//! Invariant: a hash is returned when the transaction is in a block, or waits, on the disk.

use alloy_consensus::transaction::SignerRecoverable as _;
use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_eips::eip2718::Decodable2718 as _;
use alloy_primitives::{Address, B256, U256};

use crate::chain::{Chain, Mining, locked};
use crate::evm::{self, InvalidTransaction};
use crate::pool::PoolError;
use crate::store::StoreError;
use crate::{block, limits};

/// Why a transaction was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubmitError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("failed to decode transaction: {0}")]
    Malformed(String),
    #[error("oversized data: transaction size {0}, limit {max}", max = limits::TRANSACTION_BYTES_MAX)]
    Oversized(usize),
    #[error("transaction type not supported: this chain takes no blobs (EIP-4844)")]
    Blobs,
    #[error("invalid sender")]
    Sender,
    #[error("invalid chain id for signer: have {have} want {want}")]
    ChainId { have: u64, want: u64 },
    #[error("transaction gas limit too high (cap: {max}, tx: {0})", max = limits::TRANSACTION_GAS_MAX)]
    Gas(u64),
    #[error("intrinsic gas too low: gas {have}, minimum needed {want}")]
    Intrinsic { have: u64, want: u64 },
    #[error("{0}")]
    Invalid(InvalidTransaction),
    #[error("max initcode size exceeded: code size {0}, limit {max}", max = limits::INITCODE_BYTES_MAX)]
    Initcode(usize),
    #[error("max priority fee per gas higher than max fee per gas: tip {tip}, fee {fee}")]
    Tip { tip: u128, fee: u128 },
    #[error("EIP-7702 transaction with empty auth list")]
    NoAuthorization,
    #[error("nonce too low: next nonce {next}, tx nonce {have}")]
    NonceLow { next: u64, have: u64 },
    #[error("nonce too high: next nonce {next}, tx nonce {have}, at most {max} ahead", max = limits::NONCE_AHEAD_MAX)]
    NonceHigh { next: u64, have: u64 },
    #[error("insufficient funds for gas * price + value: balance {balance}, tx cost {cost}, overshot {}", cost - balance)]
    Funds { balance: U256, cost: U256 },
    #[error("max fee per gas less than block base fee: maxFeePerGas: {have}, baseFee: {want}")]
    BaseFee { have: u128, want: u64 },
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl Chain {
    /// Takes a signed transaction.
    pub(crate) fn submit_raw(&self, raw: &[u8]) -> Result<B256, SubmitError> {
        if raw.len() > limits::TRANSACTION_BYTES_MAX {
            return Err(SubmitError::Oversized(raw.len()));
        }
        if raw.first() == Some(&3) {
            return Err(SubmitError::Blobs);
        }
        let tx = TxEnvelope::decode_2718_exact(raw).map_err(|e| SubmitError::Malformed(e.to_string()))?;
        let from = tx.recover_signer().map_err(|_| SubmitError::Sender)?;
        self.submit(tx, from)
    }

    /// Takes a transaction whose sender is known.
    pub(crate) fn submit(&self, tx: TxEnvelope, from: Address) -> Result<B256, SubmitError> {
        self.check_alone(&tx, from)?;
        let hash = *tx.tx_hash();
        let nonce = tx.nonce();
        let waiting = {
            let view = self.store.view()?;
            if view.place(hash)?.is_some() {
                return Err(PoolError::Known.into());
            }
            self.check_state(&tx, Chain::latest(&view)?, from)?;
            locked(&self.pool).add(hash, from, tx)?
        };
        let mut writer = locked(&self.writer);
        // Who had the writer before may have done it already.
        let undone = {
            let pool = locked(&self.pool);
            pool.get(hash).is_some_and(|w| !pool.durable(w))
        };
        if undone && let Err(error) = self.settle_with(&mut writer) {
            locked(&self.pool).remove(hash);
            return Err(error.into());
        }
        drop(writer);
        if locked(&self.pool).get(hash).is_some_and(|w| w.arrival == waiting.arrival) {
            return Ok(hash);
        }
        let view = self.store.view()?;
        if view.place(hash)?.is_some() {
            return Ok(hash);
        }
        let next = Chain::latest(&view)?.nonce(from)?;
        if next > nonce {
            return Err(SubmitError::NonceLow { next, have: nonce });
        }
        // Another one replaced it as soon as it had come, or it was dropped by request.
        Ok(hash)
    }

    /// What can be wrong with a transaction whatever the state.
    fn check_alone(&self, tx: &TxEnvelope, from: Address) -> Result<(), SubmitError> {
        if tx.is_eip4844() {
            return Err(SubmitError::Blobs);
        }
        if let Some(have) = tx.chain_id().filter(|id| *id != self.id) {
            return Err(SubmitError::ChainId { have, want: self.id });
        }
        if tx.gas_limit() > limits::TRANSACTION_GAS_MAX {
            return Err(SubmitError::Gas(tx.gas_limit()));
        }
        if tx.kind().is_create() && tx.input().len() > limits::INITCODE_BYTES_MAX {
            return Err(SubmitError::Initcode(tx.input().len()));
        }
        let (fee, tip) = (tx.max_fee_per_gas(), tx.max_priority_fee_per_gas().unwrap_or(0));
        if tip > fee {
            return Err(SubmitError::Tip { tip, fee });
        }
        if tx.authorization_list().is_some_and(|list| list.is_empty()) {
            return Err(SubmitError::NoAuthorization);
        }
        match evm::intrinsic(&evm::transaction(tx, from)) {
            Ok(()) => Ok(()),
            Err(InvalidTransaction::CallGasCostMoreThanGasLimit { initial_gas: want, gas_limit: have })
            | Err(InvalidTransaction::GasFloorMoreThanGasLimit { gas_floor: want, gas_limit: have }) => {
                Err(SubmitError::Intrinsic { have, want })
            }
            Err(error) => Err(SubmitError::Invalid(error)),
        }
    }

    fn check_state(
        &self,
        tx: &TxEnvelope,
        state: crate::state::StateAt<'_>,
        from: Address,
    ) -> Result<(), SubmitError> {
        let account = state.account(from)?.unwrap_or_default();
        let (next, have) = (account.nonce, tx.nonce());
        if have < next {
            return Err(SubmitError::NonceLow { next, have });
        }
        if have > next.saturating_add(limits::NONCE_AHEAD_MAX) {
            return Err(SubmitError::NonceHigh { next, have });
        }
        let cost = evm::cost(tx);
        if cost > account.balance {
            return Err(SubmitError::Funds { balance: account.balance, cost });
        }
        let terms = self.terms();
        if terms.mining == Mining::OnDemand {
            // Nothing lowers the base fee of a chain that makes blocks on demand: it would wait for ever.
            let head = state.view.head()?;
            let want = terms.next_base_fee.unwrap_or_else(|| block::next_base_fee(&head.header));
            let have = tx.max_fee_per_gas();
            if have < u128::from(want) {
                return Err(SubmitError::BaseFee { have, want });
            }
        }
        Ok(())
    }
}
