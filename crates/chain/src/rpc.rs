//! Ethereum's JSON-RPC: requests in, answers out, without a socket.
//!
//! Invariant: every request has one answer, and a request that is wrong has an error that says how. Codes are those of EIP-1474 and
//! words those of other clients where libraries look at them. It refuses methods that this chain does not have by their names.

mod answer;
mod blocks;
mod control;
mod envelope;
mod parameters;
mod present;
mod states;

pub use answer::RpcError;
pub(crate) use envelope::respond;

use alloy_primitives::{Bytes, keccak256};
use serde_json::{Value, json};

use crate::chain::Chain;
use crate::limits;
use parameters::Parameters;

/// What `web3_clientVersion` says.
const VERSION: &str = concat!("assay-chain/", env!("CARGO_PKG_VERSION"), " (development chain, no value)");

impl Chain {
    /// Answers one request. `params` is an array, or null for none. It waits for the disk and for the EVM: from async code, call it on a
    /// thread that may.
    pub fn request(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let params = Parameters::new(params)?;
        match method {
            "web3_clientVersion" => Ok(VERSION.into()),
            "web3_sha3" => {
                let bytes: Bytes = params.required(0, "data")?;
                if bytes.len() > limits::HASHED_BYTES_MAX {
                    return Err(RpcError::invalid(format!(
                        "data has more than {} bytes",
                        limits::HASHED_BYTES_MAX
                    )));
                }
                answer::value(keccak256(&bytes))
            }
            "net_version" => Ok(self.id().to_string().into()),
            "net_listening" => Ok(true.into()),
            "net_peerCount" => Ok("0x0".into()),
            "rpc_modules" => Ok(
                json!({"anvil": "1.0", "eth": "1.0", "evm": "1.0", "net": "1.0", "rpc": "1.0", "web3": "1.0"}),
            ),
            _ => {
                let asked = match method.split_once('_') {
                    Some(("eth", name)) => match self.states(name, &params)? {
                        Some(answer) => Some(answer),
                        None => self.blocks(name, &params)?,
                    },
                    // One word, two meanings: a time for one of them, a number of blocks for the others.
                    Some(("evm", "mine")) => Some(self.mine_at(&params)?),
                    Some(("evm" | "anvil" | "hardhat", name)) => self.control(name, &params)?,
                    _ => None,
                };
                asked.ok_or_else(|| RpcError::unknown_method(method))
            }
        }
    }
}
