//! Execution digests: hashes of the final hidden vectors, one for every [`DIGEST_TOKENS`] tokens (semantics 8.3).
//!
//! They cost a hash of a few hundred bytes per token, catch a provider that guessed the tokens without running the model,
//! and say where two executions part.

use alloy_primitives::Keccak256;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::id::{DigestRoot, Hash};
use crate::merkle;

/// Tokens that one digest covers.
pub const DIGEST_TOKENS: u32 = 32;

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

/// Makes digests while an execution goes on.
#[derive(Clone)]
pub struct DigestBuilder {
    done: Vec<Hash>,
    open: Keccak256,
    position: u32,
}

impl Default for DigestBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl DigestBuilder {
    /// Nothing executed yet.
    pub fn new() -> Self {
        DigestBuilder { done: Vec::new(), open: Keccak256::new(), position: 0 }
    }

    /// Takes the final hidden vector at `position`: its int8 numbers and their scale.
    ///
    /// # Panics
    /// When positions do not come in order from 0: that would be our own mistake.
    pub fn push(&mut self, position: u32, numbers: &[i8], mantissa: u16, exponent: i16) {
        assert_eq!(position, self.position, "hidden vectors come in order of positions");
        if position.checked_rem(DIGEST_TOKENS) == Some(0) {
            self.close();
            let block = u64::from(position).checked_div(u64::from(DIGEST_TOKENS)).unwrap_or(0);
            self.open.update(b"assay/digest/1");
            self.open.update(block.to_be_bytes());
        }
        self.open.update(mantissa.to_be_bytes());
        self.open.update(exponent.to_be_bytes());
        // Through a buffer, since int8 numbers are no bytes to the hash and this crate has no unsafe code.
        let mut buffer = [0u8; 512];
        for run in numbers.chunks(buffer.len()) {
            for (b, n) in buffer.iter_mut().zip(run) {
                *b = n.cast_unsigned();
            }
            self.open.update(buffer.get(..run.len()).unwrap_or_default());
        }
        self.position = self.position.saturating_add(1);
    }

    fn close(&mut self) {
        if self.position > 0 {
            let closed = std::mem::take(&mut self.open);
            self.done.push(Hash::from_bytes(closed.finalize().0));
        }
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
    use crate::keccak::keccak256;

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
        let mut bytes = b"assay/digest/1".to_vec();
        bytes.extend(1u64.to_be_bytes());
        bytes.extend([0x80, 0, 0xff, 0xfd, 32, 0xff]);
        assert_eq!(digests(33).0[1], keccak256(&[&bytes]));
    }

    #[test]
    fn differences_are_found_at_their_block() {
        assert_eq!(digests(64).first_difference(&digests(64)), None);
        assert_eq!(digests(64).first_difference(&digests(63)), Some(1));
        assert_eq!(digests(64).first_difference(&digests(65)), Some(2));
    }
}
