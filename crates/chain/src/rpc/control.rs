//! `evm_*` and `anvil_*` methods: what tests do to a chain and no network allows. Hardhat's names for them are understood too.

use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U256};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{RpcError, quantity, value};
use super::parameters::Parameters;
use crate::chain::{Chain, Mining, locked};
use crate::limits;
use crate::mining::Spacing;

/// The longest interval between blocks, in seconds.
const INTERVAL_MAX: u64 = 86_400 * 365;

/// The parameter of `evm_mine`: a time, or how many blocks and from when.
#[derive(Deserialize)]
#[serde(untagged)]
enum MineOptions {
    Time(U256),
    Options { timestamp: Option<U256>, blocks: Option<U256> },
}

impl Chain {
    /// Answers a method of this module; none if it is not one.
    pub(super) fn control(&self, name: &str, params: &Parameters) -> Result<Option<Value>, RpcError> {
        let answer = match name {
            "mine" => self.mine_answer(params)?,
            "increaseTime" => {
                let seconds = required(params, 0, "seconds")?;
                if seconds > limits::TIME_MAX {
                    return Err(RpcError::invalid(format!("more than {} seconds", limits::TIME_MAX)));
                }
                json!(self.advance(seconds)?)
            }
            "setNextBlockTimestamp" => {
                self.set_next_time(required(params, 0, "time")?)?;
                Value::Null
            }
            "snapshot" => quantity(self.snapshot()?.into()),
            "revert" => self.revert(required(params, 0, "snapshot")?)?.into(),
            "setAutomine" => {
                let mining = match (params.required::<bool>(0, "on")?, self.terms().mining) {
                    (true, _) => Mining::OnDemand,
                    (false, Mining::OnDemand) => Mining::Manual,
                    (false, other) => other,
                };
                self.set_mining(mining)?;
                Value::Null
            }
            "getAutomine" => (self.terms().mining == Mining::OnDemand).into(),
            "setIntervalMining" => {
                let seconds = required(params, 0, "seconds")?.min(INTERVAL_MAX);
                let mining = match (seconds, self.terms().mining) {
                    (0, Mining::Every(_)) => Mining::Manual,
                    (0, other) => other,
                    (seconds, _) => Mining::Every(Duration::from_secs(seconds)),
                };
                self.set_mining(mining)?;
                Value::Null
            }
            "setBalance" => {
                let balance: U256 = params.required(1, "balance")?;
                self.edit_account(params.required(0, "address")?, |account| account.balance = balance)?;
                Value::Null
            }
            "setNonce" => {
                let nonce = required(params, 1, "nonce")?;
                self.edit_account(params.required(0, "address")?, |account| account.nonce = nonce)?;
                Value::Null
            }
            "setCode" => {
                let code: Bytes = params.required(1, "code")?;
                self.edit_code(params.required(0, "address")?, code)?;
                Value::Null
            }
            "setStorageAt" => {
                let value: B256 = params.required(2, "value")?;
                self.edit_slot(params.required(0, "address")?, params.required(1, "slot")?, value)?;
                true.into()
            }
            "impersonateAccount" => {
                let address: Address = params.required(0, "address")?;
                let mut impersonated = locked(&self.impersonated);
                if impersonated.len() >= limits::IMPERSONATED_MAX {
                    return Err(RpcError::new(RpcError::LIMIT, "too many accounts are impersonated"));
                }
                impersonated.insert(address);
                Value::Null
            }
            "stopImpersonatingAccount" => {
                let address: Address = params.required(0, "address")?;
                locked(&self.impersonated).remove(&address);
                Value::Null
            }
            "rollback" => {
                self.rollback(params.number(0, "depth")?.unwrap_or(1))?;
                Value::Null
            }
            "dropTransaction" => {
                let hash: B256 = params.required(0, "hash")?;
                if locked(&self.pool).remove(hash) {
                    self.settle()?;
                    value(hash)?
                } else {
                    Value::Null
                }
            }
            "setNextBlockBaseFeePerGas" => {
                let fee = required(params, 0, "base fee")?;
                let _writer = locked(&self.writer);
                locked(&self.terms).next_base_fee = Some(fee);
                Value::Null
            }
            _ => return Ok(None),
        };
        Ok(Some(answer))
    }

    /// `evm_mine`: a block, at a time if one is given; or as many as the options say.
    pub(super) fn mine_at(&self, params: &Parameters) -> Result<Value, RpcError> {
        let (time, blocks) = match params.optional(0, "options")? {
            None => (None, None),
            Some(MineOptions::Time(time)) => (Some(time), None),
            Some(MineOptions::Options { timestamp, blocks }) => (timestamp, blocks),
        };
        if let Some(time) = time {
            self.set_next_time(u64::try_from(time).unwrap_or(u64::MAX))?;
        }
        self.mine_some(blocks.unwrap_or(U256::ONE), Spacing::Clock)?;
        Ok("0x0".into())
    }

    /// `anvil_mine`: a number of blocks, and the seconds between them.
    fn mine_answer(&self, params: &Parameters) -> Result<Value, RpcError> {
        let blocks = params.optional::<U256>(0, "blocks")?.unwrap_or(U256::ONE);
        let spacing = params.number(1, "interval")?.map_or(Spacing::Clock, Spacing::Seconds);
        self.mine_some(blocks, spacing)?;
        Ok(Value::Null)
    }

    fn mine_some(&self, blocks: U256, spacing: Spacing) -> Result<(), RpcError> {
        let blocks = u64::try_from(blocks).ok().filter(|blocks| *blocks <= limits::MINE_MAX);
        let blocks =
            blocks.ok_or_else(|| RpcError::invalid(format!("more than {} blocks", limits::MINE_MAX)))?;
        let mut writer = locked(&self.writer);
        self.mine_with(&mut writer, blocks, spacing)?;
        Ok(())
    }

    fn set_next_time(&self, time: u64) -> Result<(), RpcError> {
        let _writer = locked(&self.writer);
        let last = self.store.view()?.head()?.header.timestamp;
        if time < last {
            let words = format!("Timestamp error: {time} is lower than previous block's timestamp");
            return Err(RpcError::invalid(words));
        }
        if time > limits::TIME_MAX {
            return Err(RpcError::invalid(format!("Timestamp error: {time} is beyond {}", limits::TIME_MAX)));
        }
        locked(&self.terms).next_time = Some(time);
        Ok(())
    }
}

fn required(params: &Parameters, at: usize, name: &str) -> Result<u64, RpcError> {
    let number = params.number(at, name)?;
    number.ok_or_else(|| RpcError::invalid(format!("missing value for required argument {at} ({name})")))
}
