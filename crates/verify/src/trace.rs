//! Traces: what an execution computed on its way, committed so that any number of it can be opened.
//!
//! Positions come in blocks of [`DIGEST_TOKENS`] (an encoder's sequence is one block). In a block, every operation of the
//! program has a few *parts*: tables with a row for each position (see [`part`]), each with a Merkle root. Nothing of this is
//! stored or sent when an answer is made: who needs it executes again.
//!
//! - An operation's commitment is the Keccak of its parts' roots, in order.
//! - A block's *carry* is the root over the commitments of the operations that later blocks or the receipt depend on
//!   ([`Program::carried`]): keys, values, and the hidden vector that the execution digests hash.
//! - The trace root is the root over the carries of all blocks. So it costs no more than hashing the KV cache, and the
//!   rest of a block is committed only when a dispute walks into it.

use assay_core::digest::DIGEST_TOKENS;
use assay_core::id::Hash;
use assay_core::keccak::keccak256;
use assay_core::merkle;
use assay_engine::program::{Head, Program};

pub mod part;
#[cfg(feature = "native")]
mod subject;
pub mod walk;

#[cfg(feature = "native")]
pub use subject::NotExecutable;

/// Commitment of an operation: over the roots of its parts.
pub fn operation(parts: &[Hash]) -> Hash {
    let bytes: Vec<&[u8]> = parts.iter().map(|h| h.as_bytes().as_slice()).collect();
    keccak256(&bytes)
}

/// Carry of a block, from the commitments of its carried operations in order.
pub fn carry(commitments: &[Hash]) -> Hash {
    merkle::root(commitments.iter().copied())
}

/// Root of a trace, from the carries of its blocks in order.
pub fn root(carries: &[Hash]) -> Hash {
    merkle::root(carries.iter().copied())
}

/// Number of blocks of an answer's execution.
pub fn block_count(positions: u32) -> u32 {
    positions.div_ceil(DIGEST_TOKENS)
}

/// The block of an answer's execution that a position lies in.
pub fn block_of(position: u32) -> u32 {
    position.checked_div(DIGEST_TOKENS).unwrap_or(0)
}

/// Positions of a block of an answer's execution.
pub fn block_range(positions: u32, block: u32) -> std::ops::Range<u32> {
    let first = block.saturating_mul(DIGEST_TOKENS).min(positions);
    first..first.saturating_add(DIGEST_TOKENS).min(positions)
}

/// Positions of block `block` of a sequence of `positions` tokens.
pub fn block_positions(program: &Program, positions: u32, block: u32) -> std::ops::Range<u32> {
    match program.head {
        Head::Tokens { .. } => block_range(positions, block),
        Head::Vector { .. } => 0..positions,
    }
}

/// Number of blocks of a sequence.
pub fn blocks(program: &Program, positions: u32) -> u32 {
    match program.head {
        Head::Tokens { .. } => block_count(positions),
        Head::Vector { .. } => 1,
    }
}
