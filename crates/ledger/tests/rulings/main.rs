//! Disputes beside the rest of the ledger: what their rulings move, and what they hold.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod accusations;
#[path = "../deployed/mod.rs"]
mod deployed;
mod holds;
#[path = "../../../verify/tests/miniature/mod.rs"]
#[allow(dead_code)]
mod miniature;
#[path = "../contracts/network.rs"]
#[allow(dead_code)]
mod network;
#[path = "../report/mod.rs"]
mod report;
