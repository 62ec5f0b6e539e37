//! The arithmetic of profile `int8-v1`: what `docs/semantics.md` specifies, as plain integer functions.
//!
//! Every function here is total: no input overflows, divides by zero or panics. Kernels may compute the same numbers in
//! any way they like; they may not compute other numbers. Nothing here knows of floats, threads or instruction sets.

pub mod adjust;
pub mod embedding;
pub mod exp2;
pub mod fixed;
pub mod logprobs;
pub mod norm;
pub mod quantise;
pub mod sample;
pub mod scale;
