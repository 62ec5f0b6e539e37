//! The contracts, executed in revm: each action, each refusal, where money goes, and random sequences of everything at once.

mod audits;
mod channels;
mod epochs;
mod network;
mod properties;
mod registry;
mod retrieval;
