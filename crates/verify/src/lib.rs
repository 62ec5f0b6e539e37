//! Receipts to verdicts.
//!
//! No I/O, no async, no clock: records, models and ways to execute come in as parameters. A verdict says what was checked
//! and what was not. Foreign records never panic here.
#![forbid(unsafe_code)]

pub mod embedding;
pub mod microstep;
pub mod reexecution;
pub mod shard;
mod tokens;
pub mod trace;
