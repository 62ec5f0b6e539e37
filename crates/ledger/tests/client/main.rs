//! The client on the embedded chain and on anvil: the same tests, and the same gas.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../chains/mod.rs"]
mod chains;
mod following;
mod hosting;
mod money;
mod posting;
mod sending;
mod web3;
