//! An EVM chain for development, in the process.
//!
//! Purpose: to run contracts where no chain is, with the EVM that test networks run. A [`Chain`] keeps every state it was ever in,
//! acknowledges nothing before it is on the disk, and is spoken to in Ethereum's JSON-RPC, with a socket ([`serve`]) or without
//! ([`Chain::request`]). [`scratch::Scratch`] is a state to try contracts on, with no history and no fees. Invariant: only `evm`
//! names revm. It refuses to know what the contracts are for, to talk to other chains, and to be a chain for value: whoever
//! reaches it can make ether, turn its clock and undo its blocks.

#![forbid(unsafe_code)]

mod block;
mod call;
mod chain;
pub mod development;
mod evm;
mod fees;
mod filters;
pub mod limits;
mod logs;
mod mining;
mod overrides;
mod pool;
mod records;
mod rewind;
mod rpc;
pub mod scratch;
mod server;
mod signing;
mod state;
mod store;
mod submit;

pub use chain::{Chain, Clock, Config, Mining, OpenError};
pub use rpc::RpcError;
pub use server::serve;
pub use store::StoreError;

/// Chain id of development chains.
pub const CHAIN_ID: u64 = 31_337;
