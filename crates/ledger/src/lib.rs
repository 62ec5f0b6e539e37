//! The ledger: contracts that hold stakes, pay for receipts and take from cheats (`docs/ledger.md`), and the way to them on any chain.
//!
//! Purpose: one typed surface over the committed artifacts of `contracts/`, and one client for every chain: the embedded one and those
//! by URL. Invariant: whatever is hashed or signed here is what the contracts hash and check; tests compare the two. It refuses to know
//! an engine or a model.

#![forbid(unsafe_code)]

pub mod amount;
pub mod audits;
pub mod authorization;
pub mod channels;
pub mod client;
pub mod contracts;
pub mod demand;
pub mod deployment;
pub mod docket;
pub mod epochs;
pub mod follow;
pub mod ledger;
pub mod parameters;
pub mod posting;
pub mod retrieval;
pub mod revert;
pub mod sender;
pub mod standing;
pub mod voucher;
