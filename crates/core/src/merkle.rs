//! Binary Keccak Merkle trees that a contract can check.
//!
//! A leaf is `keccak(0x00 ‖ bytes)`, a node `keccak(0x01 ‖ left ‖ right)`; the last of an odd number of nodes moves up
//! unchanged. The root is `keccak(0x02 ‖ count as 8 bytes big-endian ‖ top)`, where the top of no leaves is 32 zero bytes:
//! the count is bound, so that neither a leaf can pass for a node nor a list for a shorter one.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::id::Hash;
use crate::keccak::keccak256;

/// First byte of what is hashed for a leaf.
pub const LEAF: u8 = 0;
/// First byte of what is hashed for a node.
pub const NODE: u8 = 1;
/// First byte of what is hashed for a root.
pub const ROOT: u8 = 2;

/// Hash of a leaf.
pub fn leaf(bytes: &[u8]) -> Hash {
    keccak256(&[&[LEAF], bytes])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    keccak256(&[&[NODE], left.as_bytes(), right.as_bytes()])
}

/// The root of a tree of `count` leaves from its top node.
pub fn seal(count: u64, top: &Hash) -> Hash {
    keccak256(&[&[ROOT], &count.to_be_bytes(), top.as_bytes()])
}

/// Height of a tree: how many times its leaves are paired until one node is left.
pub fn height(count: u64) -> u32 {
    count.checked_sub(1).map_or(0, |last| 64u32.saturating_sub(last.leading_zeros()))
}

/// The nodes one level up: pairs, and the last of an odd number as it is.
fn paired(nodes: &[Hash]) -> Vec<Hash> {
    let up = |pair: &[Hash]| match pair {
        [left, right] => node(left, right),
        [single] => *single,
        _ => Hash::ZERO,
    };
    nodes.chunks(2).map(up).collect()
}

/// The nodes `up` levels above `nodes`, which are neighbours from a multiple of `2^up` on.
pub fn above(nodes: &[Hash], up: u32) -> Vec<Hash> {
    let mut level = nodes.to_vec();
    for _ in 0..up {
        if level.len() <= 1 {
            break;
        }
        level = paired(&level);
    }
    level
}

/// Builds a root from leaf hashes given in order, in memory logarithmic in their number.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    count: u64,
    /// Full subtrees so far, largest first: level and hash.
    peaks: Vec<(u32, Hash)>,
}

impl Builder {
    /// No leaves yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        self.count = self.count.saturating_add(1);
        let (mut level, mut hash) = (0u32, leaf);
        while let Some((l, left)) = self.peaks.last().copied() {
            if l != level {
                break;
            }
            self.peaks.pop();
            hash = node(&left, &hash);
            level = level.saturating_add(1);
        }
        self.peaks.push((level, hash));
    }

    /// The root.
    pub fn root(mut self) -> Hash {
        let mut top = self.peaks.pop().map_or(Hash::ZERO, |(_, h)| h);
        while let Some((_, left)) = self.peaks.pop() {
            top = node(&left, &top);
        }
        seal(self.count, &top)
    }
}

/// The root over leaf hashes.
pub fn root(leaves: impl IntoIterator<Item = Hash>) -> Hash {
    let mut b = Builder::new();
    leaves.into_iter().for_each(|l| b.push(l));
    b.root()
}

/// That one leaf stands under a root. No root has leaves enough for a path longer than 64.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Index of the leaf.
    pub index: u64,
    /// Number of leaves.
    pub count: u64,
    /// Siblings from the leaf upwards; levels at which the node moves up unchanged have none.
    pub path: Vec<Hash>,
}

/// The proof for the leaf at `index`, or `None` if there is none.
pub fn prove(leaves: &[Hash], index: usize) -> Option<Proof> {
    leaves.get(index)?;
    let mut level = leaves.to_vec();
    let mut i = index;
    let mut path = Vec::new();
    while level.len() > 1 {
        if let Some(sibling) = level.get(i ^ 1) {
            path.push(*sibling);
        }
        level = paired(&level);
        i >>= 1;
    }
    Some(Proof { index: u64::try_from(index).ok()?, count: u64::try_from(leaves.len()).ok()?, path })
}

/// The root under which `proof` puts a leaf with `leaf` as its hash; `None` if the path does not fit index and count.
pub fn root_from(leaf: Hash, proof: &Proof) -> Option<Hash> {
    if proof.index >= proof.count {
        return None;
    }
    let (mut index, mut width, mut hash) = (proof.index, proof.count, leaf);
    let mut path = proof.path.iter();
    while width > 1 {
        if index ^ 1 < width {
            let sibling = path.next()?;
            hash = if index & 1 == 0 { node(&hash, sibling) } else { node(sibling, &hash) };
        }
        index >>= 1;
        width = width.div_ceil(2);
    }
    path.next().is_none().then(|| seal(proof.count, &hash))
}

/// Whether `proof` shows that a leaf with `leaf` as its hash stands under `root`.
pub fn verify(root: &Hash, leaf: Hash, proof: &Proof) -> bool {
    root_from(leaf, proof).as_ref() == Some(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_proves_and_nothing_else_does() {
        for n in 0..40u64 {
            let leaves: Vec<Hash> = (0..n).map(|i| leaf(&i.to_be_bytes())).collect();
            let root = root(leaves.iter().copied());
            assert!(prove(&leaves, leaves.len()).is_none());
            for i in 0..leaves.len() {
                let proof = prove(&leaves, i).unwrap();
                assert!(verify(&root, leaves[i], &proof));
                assert!(!verify(&root, leaf(b"other"), &proof));
                assert!(!verify(&root, leaves[i], &Proof { index: proof.index + 1, ..proof.clone() }));
                assert!(!verify(&root, leaves[i], &Proof { count: proof.count + 1, ..proof.clone() }));
                let mut longer = proof.clone();
                longer.path.push(Hash::ZERO);
                assert!(!verify(&root, leaves[i], &longer));
                if !proof.path.is_empty() {
                    let mut shorter = proof.clone();
                    shorter.path.pop();
                    assert!(!verify(&root, leaves[i], &shorter));
                    let mut other = proof;
                    other.path[0] = Hash::ZERO;
                    assert!(!verify(&root, leaves[i], &other));
                }
            }
        }
    }

    #[test]
    fn any_level_leads_to_the_root() {
        for n in 1..40u64 {
            let leaves: Vec<Hash> = (0..n).map(|i| leaf(&i.to_be_bytes())).collect();
            let high = height(n);
            assert!(n <= 1 << high && (high == 0 || n > 1 << (high - 1)));
            for h in 0..=high {
                let nodes = above(&leaves, h);
                assert_eq!(nodes.len() as u64, n.div_ceil(1 << h));
                assert_eq!(seal(n, &above(&nodes, high - h)[0]), root(leaves.iter().copied()));
                for (i, node) in nodes.iter().enumerate() {
                    let below = &leaves[i << h..((i + 1) << h).min(leaves.len())];
                    assert_eq!(above(below, h), [*node]);
                }
            }
        }
    }

    #[test]
    fn roots_are_what_the_definition_says() {
        let (a, b, c) = (leaf(b"a"), leaf(b"b"), leaf(b"c"));
        assert_eq!(root([]), seal(0, &Hash::ZERO));
        assert_eq!(root([a]), seal(1, &a));
        assert_eq!(root([a, b, c]), seal(3, &node(&node(&a, &b), &c)));
    }
}
