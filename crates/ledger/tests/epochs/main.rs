//! The epoch builder: against a naive model, against the contracts, with the power cut after every step, killed, and with damaged files.

#![allow(clippy::unwrap_used, unreachable_pub, non_snake_case)] // fields of calls are called as in Solidity

mod crashes;
mod damage;
#[path = "../deployed/mod.rs"]
mod deployed;
mod killed;
mod ledger;
mod limits;
mod naive;
#[path = "../contracts/network.rs"]
#[allow(dead_code)]
mod network;
mod power;
mod progress;
mod properties;
