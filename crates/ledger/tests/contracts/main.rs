//! The contracts, executed in revm: each action, each refusal, where money goes, and random sequences of everything at once.

#![allow(non_snake_case)] // fields of calls are called as in Solidity
#![allow(clippy::unwrap_used, unreachable_pub)]

mod audits;
mod channels;
mod cheats;
#[path = "../deployed/mod.rs"]
mod deployed;
mod epochs;
mod gas;
mod network;
mod properties;
mod registry;
#[path = "../report/mod.rs"]
mod report;
mod retrieval;
mod serving;
mod tokens;
mod wallets;
