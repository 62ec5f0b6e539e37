//! The model beside the contracts, executed in revm: its formulas on random inputs, and its money through random histories, to the unit.

#![allow(non_snake_case)] // fields of calls are called as in Solidity
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/ledger/tests/deployed/mod.rs"]
mod deployed;
mod formulas;
mod lockstep;
#[path = "../../../crates/ledger/tests/contracts/network.rs"]
#[allow(dead_code, unreachable_pub)] // the ledger's own tests use the rest
mod network;
