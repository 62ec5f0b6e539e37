//! Keccak-256 and Merkle trees over many messages of one length at once: what hashing a model costs.
//!
//! A processor with wide registers runs one permutation in every 64-bit lane: eight messages at a time with AVX-512, four
//! with AVX2. What comes out is what [`assay_core::keccak`] and [`assay_core::merkle`] say; they are also what runs where
//! there are no such registers. Everything here is single-threaded.

use assay_core::id::Hash;
use assay_core::keccak::keccak256;
use assay_core::merkle::{self, LEAF, NODE, Proof, ROOT};

use super::{Kernel, USUAL};

#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// A hash, where many lie one after the other.
type Digest = [u8; 32];

/// Fills the last argument with the hashes of messages. Each is the first argument and then a run of the second, in order;
/// runs are as long as the third says, which is at least 1, and there are as many as places.
pub(super) type Keccak = unsafe fn(&[u8], &[u8], usize, &mut [Digest]);

/// One message after the other.
pub(super) fn scalar(prefix: &[u8], bytes: &[u8], len: usize, out: &mut [Digest]) {
    for (out, run) in out.iter_mut().zip(bytes.chunks_exact(len)) {
        *out = *keccak256(&[prefix, run]).as_bytes();
    }
}

/// Keccak-256 of each run of `len` bytes of `messages`, the last of which may be shorter.
///
/// # Panics
/// When `len` is 0.
pub fn keccak_equal(messages: &[u8], len: usize) -> Vec<Hash> {
    named(hash(*USUAL, &[], messages, len))
}

/// [`merkle::leaf`] of each run of `leaf_len` bytes, the last of which may be shorter.
///
/// # Panics
/// When `leaf_len` is 0.
pub fn leaves(bytes: &[u8], leaf_len: usize) -> Vec<Hash> {
    named(hash(*USUAL, &[LEAF], bytes, leaf_len))
}

/// [`merkle::root`] of leaf hashes.
pub fn root(leaves: Vec<Hash>) -> Hash {
    let width = leaves.len();
    roots(leaves, width).pop().unwrap_or_else(|| merkle::root([]))
}

/// [`merkle::root`] of each run of `width` leaf hashes. The upper levels of one tree have too few nodes for wide registers;
/// those of many trees together have not.
///
/// # Panics
/// When the leaves are no whole number of runs.
pub fn roots(leaves: Vec<Hash>, width: usize) -> Vec<Hash> {
    named(roots_by(*USUAL, leaves, width))
}

/// [`merkle::prove`]: the proof for the leaf at `index`, or `None` if there is none.
pub fn prove(leaves: &[Hash], index: usize) -> Option<Proof> {
    leaves.get(index)?;
    let mut level: Vec<Digest> = leaves.iter().map(|l| *l.as_bytes()).collect();
    let mut path = Vec::new();
    let mut i = index;
    while level.len() > 1 {
        path.extend(level.get(i ^ 1).copied().map(Hash::from_bytes));
        level = above(*USUAL, &level, level.len());
        i /= 2;
    }
    Some(Proof { index: index as u64, count: leaves.len() as u64, path })
}

fn roots_by(kernel: Kernel, leaves: Vec<Hash>, width: usize) -> Vec<Digest> {
    if leaves.is_empty() {
        return Vec::new();
    }
    assert!(leaves.len().is_multiple_of(width), "trees have the same number of leaves");
    let mut level: Vec<Digest> = leaves.into_iter().map(|l| *l.as_bytes()).collect();
    let mut wide = width;
    while wide > 1 {
        level = above(kernel, &level, wide);
        wide = wide.div_ceil(2);
    }
    let mut seal = vec![ROOT];
    seal.extend((width as u64).to_be_bytes());
    hash(kernel, &seal, level.as_flattened(), size_of::<Digest>())
}

/// The next level of trees whose level has `wide` nodes each, at least 2.
fn above(kernel: Kernel, level: &[Digest], wide: usize) -> Vec<Digest> {
    let pair = 2 * size_of::<Digest>();
    if wide.is_multiple_of(2) {
        return hash(kernel, &[NODE], level.as_flattened(), pair);
    }
    let paired: Vec<Digest> = level.chunks_exact(wide).flat_map(|tree| &tree[..wide - 1]).copied().collect();
    let nodes = hash(kernel, &[NODE], paired.as_flattened(), pair);
    let trees = nodes.chunks_exact(wide / 2).zip(level.chunks_exact(wide));
    trees.flat_map(|(nodes, tree)| nodes.iter().chain(tree.last())).copied().collect()
}

/// Hashes of `prefix` and each run of `len` bytes, the last of which may be shorter.
fn hash(kernel: Kernel, prefix: &[u8], bytes: &[u8], len: usize) -> Vec<Digest> {
    assert!(len > 0, "messages have a length");
    let mut out = vec![Digest::default(); bytes.len() / len];
    // SAFETY: the kernel runs here.
    unsafe { (kernel.functions.keccak)(prefix, bytes, len, &mut out) };
    let rest = bytes.chunks_exact(len).remainder();
    if !rest.is_empty() {
        out.push(*keccak256(&[prefix, rest]).as_bytes());
    }
    out
}

fn named(hashes: Vec<Digest>) -> Vec<Hash> {
    hashes.into_iter().map(Hash::from_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * i % 251 + i % 7) as u8).collect()
    }

    fn check_leaves(count: usize, len: usize, rest: usize) {
        let bytes = bytes(count * len + rest % len);
        for prefix in [&[][..], &[LEAF], &[7; 140]] {
            let want: Vec<Digest> = bytes.chunks(len).map(|m| *keccak256(&[prefix, m]).as_bytes()).collect();
            for kernel in Kernel::available() {
                let got = hash(kernel, prefix, &bytes, len);
                assert!(got == want, "{kernel:?}: {count} messages of {len} and {rest}, prefix {prefix:?}");
            }
        }
    }

    fn check_roots(trees: usize, width: usize) {
        let leaves: Vec<Hash> = bytes(trees * width).chunks(1).map(merkle::leaf).collect();
        let want: Vec<Digest> =
            leaves.chunks(width.max(1)).map(|t| *merkle::root(t.iter().copied()).as_bytes()).collect();
        for kernel in Kernel::available() {
            assert!(roots_by(kernel, leaves.clone(), width) == want, "{kernel:?}: {trees} trees of {width}");
        }
    }

    /// Lengths beside the ends of blocks, counts beside the widths of registers.
    #[test]
    fn every_kernel_hashes_as_scalar_does() {
        for count in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 255] {
            for len in [1, 7, 8, 32, 64, 134, 135, 136, 137, 255, 256, 257, 271, 272, 600] {
                check_leaves(count, len, 0);
                check_leaves(count, len, len - 1);
            }
        }
        (1..=600).for_each(|len| check_leaves(9, len, 1));
    }

    #[test]
    fn every_kernel_grows_the_same_trees() {
        (0..70).for_each(|width| check_roots(1, width));
        for trees in [0, 2, 3, 8, 9] {
            [1, 2, 3, 5, 6, 7, 8, 9, 31, 33, 64].into_iter().for_each(|width| check_roots(trees, width));
        }
        [255, 256, 257, 1025].into_iter().for_each(|width| check_roots(1, width));
    }

    #[test]
    fn what_others_call_is_the_definition() {
        for len in [0, 1, 255, 256, 257, 5000] {
            let bytes = bytes(len);
            let want: Vec<Hash> = bytes.chunks(256).map(merkle::leaf).collect();
            assert_eq!(leaves(&bytes, 256), want);
            assert_eq!(root(want.clone()), merkle::root(want.iter().copied()));
            for index in 0..=want.len() {
                assert_eq!(prove(&want, index), merkle::prove(&want, index));
            }
            let want: Vec<Hash> = bytes.chunks(100).map(|m| keccak256(&[m])).collect();
            assert_eq!(keccak_equal(&bytes, 100), want);
        }
    }

    /// Throughput of each kernel over leaves of 256 bytes: `cargo test --release -p assay-engine --lib -- --ignored
    /// --nocapture keccak`.
    #[test]
    #[ignore = "a measurement, not a check"]
    fn throughput() {
        let bytes = bytes(1 << 20);
        for kernel in Kernel::available() {
            let nanoseconds = (0..40).map(|_| {
                let started = std::time::Instant::now();
                std::hint::black_box(hash(kernel, &[LEAF], &bytes, 256));
                started.elapsed().as_nanos()
            });
            let best = nanoseconds.min().unwrap_or(1);
            println!("{kernel:?}: {} MB/s", bytes.len() as u128 * 1000 / best);
        }
    }
}
