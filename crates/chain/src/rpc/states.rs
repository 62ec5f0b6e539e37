//! `eth_*` methods about what is: accounts, calls, gas, fees.

use alloy_primitives::{Address, B256, U256};
use alloy_rpc_types_eth::state::StateOverride;
use alloy_rpc_types_eth::{BlockOverrides, TransactionRequest};
use serde_json::{Value, json};

use super::answer::{RpcError, quantity, value};
use super::parameters::{Asked, Parameters};
use crate::call::Call;
use crate::chain::{Chain, locked};
use crate::limits;
use crate::state::StateAt;
use crate::store::View;

/// What a call is executed in, if its client does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    /// The last block.
    Last,
    /// The block that comes next, in which a transaction would be.
    Next,
}

impl Chain {
    /// Answers a method of this module; none if it is not one.
    pub(super) fn states(&self, name: &str, params: &Parameters) -> Result<Option<Value>, RpcError> {
        let answer = match name {
            "chainId" => quantity(self.id().into()),
            "syncing" => false.into(),
            "mining" => true.into(),
            "hashrate" => quantity(0),
            "coinbase" => value(Address::ZERO)?,
            "protocolVersion" => "0x45".into(),
            "maxPriorityFeePerGas" => quantity(limits::TIP),
            "blobBaseFee" => quantity(1),
            "gasPrice" => {
                let view = self.store.view()?;
                quantity(u128::from(self.base_fee(&view)?).saturating_add(limits::TIP))
            }
            "feeHistory" => self.fee_history_answer(params)?,
            "getBalance" => {
                let (view, address) = (self.store.view()?, params.required::<Address>(0, "address")?);
                let number = params.block(1, &view)?.number();
                value(StateAt { view: &view, number }.balance(address)?)?
            }
            "getTransactionCount" => {
                let (view, address) = (self.store.view()?, params.required::<Address>(0, "address")?);
                let asked = params.block(1, &view)?;
                let nonce = StateAt { view: &view, number: asked.number() }.nonce(address)?;
                let pending = matches!(asked, Asked::Pending(_));
                let nonce = if pending { locked(&self.pool).next_nonce(address, nonce) } else { nonce };
                quantity(nonce.into())
            }
            "getCode" => {
                let (view, address) = (self.store.view()?, params.required::<Address>(0, "address")?);
                let number = params.block(1, &view)?.number();
                value(StateAt { view: &view, number }.code(address)?)?
            }
            "getStorageAt" => {
                let (view, address) = (self.store.view()?, params.required::<Address>(0, "address")?);
                let slot: U256 = params.required(1, "slot")?;
                let number = params.block(2, &view)?.number();
                value(B256::from(StateAt { view: &view, number }.slot(address, slot)?))?
            }
            "call" => {
                let view = self.store.view()?;
                value(self.call(self.call_of(params, &view, Around::Last)?)?)?
            }
            "estimateGas" => {
                let view = self.store.view()?;
                quantity(self.estimate(self.call_of(params, &view, Around::Next)?)?.into())
            }
            "createAccessList" => {
                let view = self.store.view()?;
                let (list, gas, error) = self.access_list(self.call_of(params, &view, Around::Next)?)?;
                let mut answer = json!({"accessList": list, "gasUsed": quantity(gas.into())});
                if let (Some(error), Some(answer)) = (error, answer.as_object_mut()) {
                    answer.insert("error".into(), error.into());
                }
                answer
            }
            _ => return Ok(None),
        };
        Ok(Some(answer))
    }

    fn call_of<'a>(&self, params: &Parameters, view: &'a View, around: Around) -> Result<Call<'a>, RpcError> {
        let request: TransactionRequest = params.required(0, "transaction")?;
        let asked = match params.optional::<Value>(1, "block")? {
            None if around == Around::Next => Asked::Pending(view.head()?),
            _ => params.block(1, view)?,
        };
        let state = StateAt { view, number: asked.number() };
        let accounts: Option<StateOverride> = params.optional(2, "state overrides")?;
        let block: Option<BlockOverrides> = params.optional(3, "block overrides")?;
        Ok(Call { request, state, header: asked.header(self, view)?, accounts, block })
    }

    fn fee_history_answer(&self, params: &Parameters) -> Result<Value, RpcError> {
        let view = self.store.view()?;
        let count =
            params.number(0, "block count")?.ok_or_else(|| RpcError::invalid("missing block count"))?;
        let newest = params.block(1, &view)?.number();
        let percentiles: Option<Vec<f64>> = params.optional(2, "percentiles")?;
        if let Some(percentiles) = &percentiles {
            if percentiles.len() > limits::PERCENTILES_MAX {
                let words = format!("more than {} percentiles", limits::PERCENTILES_MAX);
                return Err(RpcError::invalid(words));
            }
            let sorted = percentiles.is_sorted();
            if !sorted || percentiles.iter().any(|p| !(0.0..=100.0).contains(p)) {
                return Err(RpcError::invalid("percentiles have to ascend from 0 to 100"));
            }
        }
        let percentiles = percentiles.filter(|percentiles| !percentiles.is_empty());
        value(self.fee_history(&view, count, newest, percentiles.as_deref())?)
    }
}
