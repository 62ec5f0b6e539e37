//! What the ledger asks of hosts: the Keccak Merkle tree over a blob's chunks, and proofs that one of them is there.
//!
//! Of the tree only the nodes above blocks of [`BLOCK_CHUNKS`] chunks are kept, 32 bytes for 4 MiB. A proof reads one block again, so
//! that whoever has not got the bytes has no proof.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use assay_core::id::Hash;
use assay_core::merkle::{self, Proof};

use crate::blob::{BLOB_BYTES_MAX, CHUNK_BYTES};

/// Levels of the tree that are below what is kept.
const BLOCK_LEVELS: u32 = 10;
/// Chunks of a block.
pub const BLOCK_CHUNKS: u64 = 1 << BLOCK_LEVELS;
/// Bytes of a block; the last of a blob may be shorter.
pub const BLOCK_BYTES: u64 = BLOCK_CHUNKS * CHUNK_BYTES;

/// The upper part of a blob's content tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentTree {
    size: u64,
    blocks: Vec<Hash>,
}

/// A chunk, and that it stands under a content root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkProof {
    /// The chunk's bytes.
    pub chunk: Vec<u8>,
    /// Its path.
    pub proof: Proof,
}

fn leaves(block: &[u8]) -> Vec<Hash> {
    block.chunks(CHUNK_BYTES as usize).map(merkle::leaf).collect()
}

fn block_hash(block: &[u8]) -> Hash {
    merkle::above(&leaves(block), BLOCK_LEVELS).first().copied().unwrap_or(Hash::ZERO)
}

impl ContentTree {
    /// The tree of a blob of `size` bytes, which `read` gives from an offset on, several blocks at once on `threads` threads.
    /// `done` hears of bytes that were hashed.
    pub fn of(
        size: u64,
        threads: usize,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()> + Sync,
        done: impl Fn(u64) + Sync,
    ) -> io::Result<ContentTree> {
        if size > BLOB_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "beyond the most bytes of a blob"));
        }
        let count = size.div_ceil(BLOCK_BYTES);
        let next = AtomicU64::new(0);
        let work = || -> io::Result<Vec<(u64, Hash)>> {
            let mut found = Vec::new();
            let mut bytes = vec![0; BLOCK_BYTES.min(size) as usize];
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                if block >= count {
                    return Ok(found);
                }
                let from = block * BLOCK_BYTES;
                let len = BLOCK_BYTES.min(size - from);
                let bytes = &mut bytes[..len as usize];
                read(from, bytes)?;
                found.push((block, block_hash(bytes)));
                done(len);
            }
        };
        let found = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("hashing does not panic"))
                .collect::<io::Result<Vec<_>>>()
        })?;
        let mut all: Vec<(u64, Hash)> = found.into_iter().flatten().collect();
        all.sort_unstable_by_key(|(block, _)| *block);
        Ok(ContentTree { size, blocks: all.into_iter().map(|(_, hash)| hash).collect() })
    }

    /// The content root.
    pub fn root(&self) -> Hash {
        let level = merkle::above(&self.blocks, u64::BITS);
        merkle::seal(self.chunks(), level.first().unwrap_or(&Hash::ZERO))
    }

    /// How many chunks the blob has.
    pub fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK_BYTES)
    }

    /// Which bytes of the blob a proof of `chunk` needs.
    pub fn block_of(&self, chunk: u64) -> Option<Range<u64>> {
        let from = (chunk < self.chunks()).then_some(chunk / BLOCK_CHUNKS * BLOCK_BYTES)?;
        Some(from..self.size.min(from + BLOCK_BYTES))
    }

    /// The proof of `chunk` from the bytes that [`block_of`](Self::block_of) names; `None` where they are not the blob's.
    pub fn prove(&self, chunk: u64, block: &[u8]) -> Option<ChunkProof> {
        let range = self.block_of(chunk)?;
        let (at, within) =
            (usize::try_from(chunk / BLOCK_CHUNKS).ok()?, usize::try_from(chunk % BLOCK_CHUNKS).ok()?);
        if block.len() as u64 != range.end - range.start || self.blocks.get(at) != Some(&block_hash(block)) {
            return None;
        }
        let mut path = merkle::prove(&leaves(block), within)?.path;
        path.extend(merkle::prove(&self.blocks, at)?.path);
        let bytes = block.chunks(CHUNK_BYTES as usize).nth(within)?;
        Some(ChunkProof { chunk: bytes.to_vec(), proof: Proof { index: chunk, count: self.chunks(), path } })
    }

    /// The nodes above the blocks, 32 bytes each.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.blocks.iter().flat_map(|hash| hash.as_bytes()).copied().collect()
    }

    /// The tree of a blob of `size` bytes from its nodes; `None` where there are not as many as there should be.
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<ContentTree> {
        let (nodes, rest) = bytes.as_chunks::<32>();
        let fits =
            size <= BLOB_BYTES_MAX && rest.is_empty() && nodes.len() as u64 == size.div_ceil(BLOCK_BYTES);
        fits.then(|| ContentTree { size, blocks: nodes.iter().map(|n| Hash::from_bytes(*n)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(size: u64) -> Vec<u8> {
        let mut out = vec![0; size as usize];
        blake3::Hasher::new().update(&size.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn tree(content: &[u8], threads: usize) -> ContentTree {
        let read = |at: u64, out: &mut [u8]| {
            let at = at as usize;
            out.copy_from_slice(&content[at..at + out.len()]);
            Ok(())
        };
        ContentTree::of(content.len() as u64, threads, read, |_| ()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn proofs_are_those_of_the_whole_tree(
            blocks in 0u64..4, chunks in 0..BLOCK_CHUNKS, rest in 0..CHUNK_BYTES, at in any::<proptest::sample::Index>(), threads in 1usize..4
        ) {
            let size = blocks * BLOCK_BYTES + chunks * CHUNK_BYTES + rest;
            let content = bytes(size);
            let tree = tree(&content, threads);
            let leaves = leaves(&content);
            prop_assert_eq!(tree.root(), merkle::root(leaves.iter().copied()));
            prop_assert_eq!(tree.chunks(), leaves.len() as u64);
            let again = ContentTree::from_bytes(size, &tree.to_bytes());
            prop_assert_eq!(again.as_ref(), Some(&tree));
            prop_assert!(tree.block_of(tree.chunks()).is_none());
            if !leaves.is_empty() {
                let chunk = at.index(leaves.len());
                let block = tree.block_of(chunk as u64).unwrap();
                let block = &content[block.start as usize..block.end as usize];
                let proved = tree.prove(chunk as u64, block).unwrap();
                prop_assert_eq!(&proved.proof, &merkle::prove(&leaves, chunk).unwrap());
                prop_assert_eq!(merkle::leaf(&proved.chunk), leaves[chunk]);
                // Other bytes have no proof, and neither have fewer.
                let mut other = block.to_vec();
                other[0] ^= 1;
                prop_assert!(tree.prove(chunk as u64, &other).is_none());
                prop_assert!(tree.prove(chunk as u64, &block[1..]).is_none());
            }
        }
    }

    #[test]
    fn nodes_of_another_number_are_refused() {
        assert!(ContentTree::from_bytes(BLOCK_BYTES, &[0; 64]).is_none());
        assert!(ContentTree::from_bytes(BLOCK_BYTES + 1, &[0; 64]).is_some());
        assert!(ContentTree::from_bytes(BLOCK_BYTES, &[0; 33]).is_none());
        assert!(ContentTree::from_bytes(u64::MAX, &[]).is_none());
    }
}
