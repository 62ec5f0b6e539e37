//! Receipts to verdicts.
//!
//! No I/O, no async, no clock: records, models and ways to execute come in as parameters. A verdict says what was checked
//! and what was not. Foreign records never panic here.
#![forbid(unsafe_code)]

pub mod batch;
pub mod dispute;
pub mod embedding;
pub mod freivalds;
pub mod light;
pub mod microstep;
pub mod receipts;
pub mod reexecution;
pub mod trace;
