//! Transactions that the chain makes for its clients: for the development accounts, whose keys anyone has, and for accounts that a test
//! impersonates.

use alloy_consensus::{SignableTransaction as _, TxEnvelope};
use alloy_primitives::{Address, B256, Signature, U256};
use alloy_rpc_types_eth::TransactionRequest;
use alloy_signer::SignerSync as _;

use crate::call::{Call, CallError};
use crate::chain::{Chain, locked};
use crate::limits;
use crate::pool::PoolError;
use crate::store::StoreError;
use crate::submit::SubmitError;

/// How often a nonce is chosen again, because another request was quicker.
const NONCE_ATTEMPTS: usize = 64;

/// Why a transaction was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("unknown account: {0} is neither a development account nor impersonated")]
    Account(Address),
    #[error("from is missing")]
    From,
    #[error("the transaction is incomplete or contradicts itself")]
    Incomplete,
}

impl Chain {
    /// The accounts that the chain signs for.
    pub(crate) fn own_accounts(&self) -> Vec<Address> {
        self.signers.iter().map(|signer| signer.address()).collect()
    }

    /// Fills in what a request leaves open, signs, and takes the transaction.
    pub(crate) fn send(&self, request: TransactionRequest) -> Result<B256, SendError> {
        let from = request.from.ok_or(SendError::From)?;
        let chosen = request.nonce.is_none();
        for attempt in 0.. {
            let (tx, sender) = self.made(request.clone(), from)?;
            match self.submit(tx, sender) {
                Err(
                    SubmitError::NonceLow { .. }
                    | SubmitError::Pool(PoolError::Underpriced | PoolError::Known),
                ) if chosen && attempt < NONCE_ATTEMPTS => {}
                taken => return Ok(taken?),
            }
        }
        Err(SendError::Incomplete)
    }

    fn made(
        &self,
        mut request: TransactionRequest,
        from: Address,
    ) -> Result<(TxEnvelope, Address), SendError> {
        let impersonated = locked(&self.impersonated).contains(&from);
        let signer = self.signers.iter().find(|signer| signer.address() == from);
        if signer.is_none() && !impersonated {
            return Err(SendError::Account(from));
        }
        let view = self.store.view()?;
        let state = Chain::latest(&view)?;
        let header = self.next_header(&view)?;
        if request.nonce.is_none() {
            let next = state.nonce(from)?;
            request.nonce = Some(locked(&self.pool).next_nonce(from, next));
        }
        request.chain_id.get_or_insert(self.id);
        request.to.get_or_insert(alloy_primitives::TxKind::Create);
        request.value.get_or_insert_default();
        if request.gas_price.is_none() {
            let tip = *request.max_priority_fee_per_gas.get_or_insert_with(|| {
                request.max_fee_per_gas.map_or(limits::TIP, |fee| fee.min(limits::TIP))
            });
            let base = u128::from(header.base_fee_per_gas.unwrap_or(0));
            request.max_fee_per_gas.get_or_insert(base.saturating_add(tip));
        }
        if request.gas.is_none() {
            let mut asked = request.clone();
            asked.nonce = None;
            request.gas =
                Some(self.estimate(Call { request: asked, state, header, accounts: None, block: None })?);
        }
        let tx = request.build_typed_tx().map_err(|_| SendError::Incomplete)?;
        let signature = match signer {
            Some(signer) => signer.sign_hash_sync(&tx.signature_hash()).map_err(|_| SendError::Incomplete)?,
            // Nobody's signature: the sender stands in it, so that hashes of two senders differ.
            None => Signature::new(U256::from_be_slice(from.as_slice()), U256::ONE, false),
        };
        Ok((tx.into_envelope(signature), from))
    }
}
