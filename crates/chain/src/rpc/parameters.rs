//! The parameters of a request: from JSON to what a method works with, or what is wrong with them.

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::U256;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::answer::RpcError;
use crate::chain::Chain;
use crate::logs;
use crate::records::Head;
use crate::store::View;

/// How long the words of a parser may be when they are repeated to a client.
const WORDS_MAX: usize = 300;

/// Parameters by position.
#[derive(Debug)]
pub(super) struct Parameters(Vec<Value>);

impl Parameters {
    pub(super) fn new(params: Value) -> Result<Self, RpcError> {
        match params {
            Value::Array(values) => Ok(Parameters(values)),
            Value::Null => Ok(Parameters(Vec::new())),
            _ => Err(RpcError::invalid("params have to be an array")),
        }
    }

    /// The parameter at a position; null counts as missing.
    pub(super) fn optional<T: DeserializeOwned>(&self, at: usize, name: &str) -> Result<Option<T>, RpcError> {
        match self.0.get(at) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|error| {
                let words: String = error.to_string().chars().take(WORDS_MAX).collect();
                RpcError::invalid(format!("invalid argument {at} ({name}): {words}"))
            }),
        }
    }

    pub(super) fn required<T: DeserializeOwned>(&self, at: usize, name: &str) -> Result<T, RpcError> {
        self.optional(at, name)?
            .ok_or_else(|| RpcError::invalid(format!("missing value for required argument {at} ({name})")))
    }

    /// A number that is written as hex or as a number.
    pub(super) fn number(&self, at: usize, name: &str) -> Result<Option<u64>, RpcError> {
        let Some(number) = self.optional::<U256>(at, name)? else { return Ok(None) };
        let number = u64::try_from(number);
        number.map(Some).map_err(|_| RpcError::invalid(format!("invalid argument {at} ({name}): too large")))
    }

    /// A block, the last one if none is named.
    pub(super) fn block(&self, at: usize, view: &View) -> Result<Asked, RpcError> {
        let id: Option<BlockId> = self.optional(at, "block")?;
        match id.unwrap_or_default() {
            BlockId::Number(BlockNumberOrTag::Pending) => Ok(Asked::Pending(view.head()?)),
            BlockId::Number(tag) => {
                let head = view.head()?.header.number;
                let number = logs::tagged(tag, head);
                let found = view.header(number)?;
                found.map(Asked::Mined).ok_or_else(|| {
                    RpcError::invalid(format!(
                        "BlockOutOfRangeError: block height is {head} but requested was {number}"
                    ))
                })
            }
            BlockId::Hash(hash) => {
                let number = view.number(hash.block_hash)?;
                let found = number.map(|number| view.header(number)).transpose()?.flatten();
                found
                    .map(Asked::Mined)
                    .ok_or_else(|| RpcError::new(RpcError::SERVER, "header for hash not found"))
            }
        }
    }
}

/// A block that was asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Mined(Head),
    /// The next one, after this; its state is read as the last block's.
    Pending(Head),
}

impl Asked {
    /// The block whose state is meant.
    pub(super) fn number(&self) -> u64 {
        match self {
            Asked::Mined(head) | Asked::Pending(head) => head.header.number,
        }
    }

    /// The header around a call.
    pub(super) fn header(self, chain: &Chain, view: &View) -> Result<alloy_consensus::Header, RpcError> {
        match self {
            Asked::Mined(head) => Ok(head.header),
            Asked::Pending(_) => Ok(chain.next_header(view)?),
        }
    }
}
