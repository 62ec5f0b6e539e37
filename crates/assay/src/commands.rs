//! One module per command: its arguments as typed, and what it does.

pub mod audit;
pub mod bench;
pub mod dispute;
pub mod doctor;
pub mod import;
pub mod key;
pub mod models;
pub mod pull;
pub mod record;
pub mod run;
pub mod steps;
pub mod trace;
pub mod up;
pub mod vectors;
pub mod verdict;
pub mod verify;
