//! Receipts to verdicts.
//!
//! No I/O, no async, no clock: records, models and ways to execute come in as parameters. A verdict says what was checked
//! and what was not. Foreign records never panic here.
//!
//! Without the feature `native`, which is on by default, what needs a tokenizer is left out (re-execution of answers, embeddings); the other
//! rungs also run in a browser.
#![forbid(unsafe_code)]

#[cfg(feature = "native")]
pub mod batch;
pub mod dispute;
#[cfg(feature = "native")]
pub mod embedding;
pub mod freivalds;
pub mod light;
pub mod microstep;
pub mod receipts;
#[cfg(feature = "native")]
pub mod reexecution;
mod report;
pub mod shard;
#[cfg(feature = "native")]
mod subject;
#[cfg(not(feature = "native"))]
#[path = "textless.rs"]
mod subject;
mod tokens;
pub mod trace;
