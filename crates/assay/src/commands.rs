//! One module per command: its arguments as typed, and what it does.

pub mod audit;
pub mod bench;
pub mod chain;
pub mod dispute;
pub mod doctor;
pub mod gateway;
pub mod host;
pub mod hub;
pub mod import;
pub mod key;
pub mod keys;
pub mod ledger;
pub mod models;
pub mod money;
pub mod publish;
pub mod pull;
pub mod record;
pub mod run;
pub mod search;
pub mod stake;
pub mod steps;
pub mod trace;
pub mod up;
pub mod vectors;
pub mod verdict;
pub mod verify;
