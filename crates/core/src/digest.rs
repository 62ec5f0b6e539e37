//! Execution digests: hashes of the final hidden vectors, one for every [`DIGEST_TOKENS`] tokens (semantics 8.3).
//!
//! They cost a hash of a few hundred bytes per token, catch a provider that guessed the tokens without running the model,
//! and say where two executions part. Each is over two Merkle roots, so that a contract opens up to [`DIGEST_NUMBERS`]
//! numbers of one token, or the scales of a block, and never reads the rest.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::id::{DigestRoot, Hash};
use crate::keccak::keccak256;
use crate::merkle;

/// Tokens that one digest covers.
pub const DIGEST_TOKENS: u32 = 32;
/// Most numbers of a hidden vector in one leaf.
pub const DIGEST_NUMBERS: usize = 256;

/// The digests of one execution, in order of positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecutionDigests(pub Vec<Hash>);

impl ExecutionDigests {
    /// Merkle root with one leaf per digest.
    pub fn root(&self) -> DigestRoot {
        DigestRoot::from_bytes(*merkle::root(self.0.iter().map(|d| merkle::leaf(d.as_bytes()))).as_bytes())
    }

    /// The first block in which two executions differ.
    pub fn first_difference(&self, other: &ExecutionDigests) -> Option<usize> {
        let shared = self.0.iter().zip(&other.0).position(|(a, b)| a != b);
        shared.or_else(|| (self.0.len() != other.0.len()).then(|| self.0.len().min(other.0.len())))
    }
}

/// The digest of one block of tokens, from the roots over its scales and its numbers (semantics 8.3).
pub fn block_digest(block: u64, scales: &Hash, numbers: &Hash) -> Hash {
    keccak256(&[b"assay/digest/1", &block.to_be_bytes(), scales.as_bytes(), numbers.as_bytes()])
}

/// Makes digests while an execution goes on, in memory of one block's scales.
#[derive(Clone, Debug, Default)]
pub struct DigestBuilder {
    done: Vec<Hash>,
    position: u32,
    /// Of the open block: the tree over its numbers, and the bytes of the two leaves of its scales.
    numbers: merkle::Builder,
    mantissas: Vec<u8>,
    exponents: Vec<u8>,
}

impl DigestBuilder {
    /// Nothing executed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the final hidden vector at `position`: its int8 numbers and their scale.
    ///
    /// # Panics
    /// When positions do not come in order from 0: that would be our own mistake.
    pub fn push(&mut self, position: u32, numbers: &[i8], mantissa: u16, exponent: i16) {
        assert_eq!(position, self.position, "hidden vectors come in order of positions");
        self.mantissas.extend_from_slice(&u32::from(mantissa).to_be_bytes());
        self.exponents.extend_from_slice(&i32::from(exponent).to_be_bytes());
        // Through a buffer, since int8 numbers are no bytes to the hash and this crate has no unsafe code.
        let mut buffer = [0u8; DIGEST_NUMBERS];
        for run in numbers.chunks(DIGEST_NUMBERS) {
            for (b, n) in buffer.iter_mut().zip(run) {
                *b = n.cast_unsigned();
            }
            self.numbers.push(merkle::leaf(buffer.get(..run.len()).unwrap_or_default()));
        }
        self.position = self.position.saturating_add(1);
        if self.position.checked_rem(DIGEST_TOKENS) == Some(0) {
            self.close();
        }
    }

    /// The digests of the blocks that are complete.
    pub fn complete(&self) -> &[Hash] {
        &self.done
    }

    /// Goes on after blocks that another execution of the same tokens at the same positions has computed: with the digests of these blocks.
    ///
    /// # Panics
    /// When a block is open: that would be our own mistake.
    pub fn resume(&mut self, digests: &[Hash]) {
        assert!(self.mantissas.is_empty(), "whole blocks follow whole blocks");
        for digest in digests {
            self.done.push(*digest);
            self.position = self.position.saturating_add(DIGEST_TOKENS);
        }
    }

    fn close(&mut self) {
        if self.mantissas.is_empty() {
            return;
        }
        let block = u64::try_from(self.done.len()).unwrap_or(u64::MAX);
        let scales = merkle::root([merkle::leaf(&self.mantissas), merkle::leaf(&self.exponents)]);
        let numbers = std::mem::take(&mut self.numbers).root();
        self.done.push(block_digest(block, &scales, &numbers));
        self.mantissas.clear();
        self.exponents.clear();
    }

    /// The digests, the last of which may cover fewer tokens.
    pub fn finish(mut self) -> ExecutionDigests {
        self.close();
        ExecutionDigests(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(tokens: u32) -> ExecutionDigests {
        let mut b = DigestBuilder::new();
        for p in 0..tokens {
            b.push(p, &[p as i8, -1], 0x8000, -3);
        }
        b.finish()
    }

    #[test]
    fn a_digest_covers_32_tokens_and_the_last_the_rest() {
        for (tokens, blocks) in [(0, 0), (1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)] {
            assert_eq!(digests(tokens).0.len(), blocks, "{tokens}");
        }
        let scales = merkle::root([merkle::leaf(&[0, 0, 0x80, 0]), merkle::leaf(&[0xff, 0xff, 0xff, 0xfd])]);
        let numbers = merkle::root([merkle::leaf(&[32, 0xff])]);
        assert_eq!(digests(33).0[1], block_digest(1, &scales, &numbers));
        let mut bytes = b"assay/digest/1".to_vec();
        bytes.extend(1u64.to_be_bytes());
        bytes.extend(scales.as_bytes());
        bytes.extend(numbers.as_bytes());
        assert_eq!(block_digest(1, &scales, &numbers), keccak256(&[&bytes]));
    }

    /// Widths beside the ends of leaves; a leaf never holds numbers of two tokens.
    #[test]
    fn a_leaf_holds_up_to_256_numbers_of_one_token() {
        for width in [0, 1, 255, 256, 257, 600] {
            let number = |p: u32, i: usize| (i as i8).wrapping_mul(3).wrapping_add(p as i8);
            let mut b = DigestBuilder::new();
            let (mut leaves, mut mantissas, mut exponents) = (vec![], vec![], vec![]);
            for p in 0..5u32 {
                let numbers: Vec<i8> = (0..width).map(|i| number(p, i)).collect();
                b.push(p, &numbers, 40_000 + p as u16, i16::MIN);
                let bytes: Vec<u8> = numbers.iter().map(|n| *n as u8).collect();
                leaves.extend(bytes.chunks(256).map(merkle::leaf));
                mantissas.extend((40_000 + p).to_be_bytes());
                exponents.extend((-32_768i32).to_be_bytes());
            }
            assert_eq!(leaves.len(), 5 * width.div_ceil(256));
            let scales = merkle::root([merkle::leaf(&mantissas), merkle::leaf(&exponents)]);
            let numbers = merkle::root(leaves);
            assert_eq!(b.finish().0, [block_digest(0, &scales, &numbers)], "{width}");
        }
    }

    /// Whoever takes complete blocks from another execution gets its digests.
    #[test]
    fn an_execution_is_resumed_after_whole_blocks() {
        let mut other = DigestBuilder::new();
        (0..70).for_each(|p| other.push(p, &[p as i8, -1], 0x8000, -3));
        assert_eq!(other.complete().len(), 2, "the third is open");
        for blocks in 0..=2 {
            let mut b = DigestBuilder::new();
            b.resume(&other.complete()[..blocks]);
            (32 * blocks as u32..70).for_each(|p| b.push(p, &[p as i8, -1], 0x8000, -3));
            assert_eq!(b.finish(), digests(70));
        }
        let mut open = DigestBuilder::new();
        open.push(0, &[1], 1, 0);
        let digest = other.complete()[0];
        assert!(std::panic::catch_unwind(move || open.resume(&[digest])).is_err());
    }

    #[test]
    fn differences_are_found_at_their_block() {
        assert_eq!(digests(64).first_difference(&digests(64)), None);
        assert_eq!(digests(64).first_difference(&digests(63)), Some(1));
        assert_eq!(digests(64).first_difference(&digests(65)), Some(2));
    }
}
