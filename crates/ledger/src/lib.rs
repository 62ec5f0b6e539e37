//! The ledger: contracts that hold stakes, pay for receipts and take from cheats (`docs/ledger.md`), and a chain in the process to
//! run them on.
//!
//! Purpose: one typed surface over the committed artifacts of `contracts/`. Invariant: whatever is hashed or signed here is what the
//! contracts hash and check; tests compare the two. It refuses to know an engine, a model or a socket.

#![forbid(unsafe_code)]

pub mod contracts;
pub mod deployment;
pub mod evm;
pub mod voucher;
