//! The daemons of a node. Today: the provider, which answers requests with the engine and signs a receipt for each answer.
//!
//! Floats and HTTP stay outside; the engine runs on threads of its own and is never waited for by one that serves clients.

pub mod arriving;
pub mod auditor;
pub mod disputes;
pub mod execution;
pub mod fetched;
pub mod files;
pub mod host;
pub mod key;
pub mod observed;
pub mod provider;
pub mod secret;
mod sending;
pub mod serving;
pub mod settlement;
pub mod store;
pub mod till;
pub mod witness;
