//! The ledger's contracts as Rust sees them.
//!
//! So far only tests: every micro-step and every message of a dispute, computed by the contracts and by `assay-verify` alike.
