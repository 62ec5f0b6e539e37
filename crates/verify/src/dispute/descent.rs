//! Walking down one Merkle tree, some levels at a time.

use assay_core::id::Hash;
use assay_core::merkle::{above, height, seal};

/// A node of a tree, by its height and place; at first the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descent {
    /// Leaves of the tree.
    pub leaves: u64,
    /// Height of the node: it covers up to `2^height` leaves.
    pub height: u32,
    /// Place among the nodes of its height.
    pub index: u64,
}

impl Descent {
    /// The top of a tree of so many leaves.
    pub fn top(leaves: u64) -> Descent {
        Descent { leaves, height: height(leaves), index: 0 }
    }

    /// Height of the nodes that are claimed next, when at most `2^bits` are claimed at once: rounds are even.
    pub fn next(&self, bits: u32) -> u32 {
        let rounds = self.height.div_ceil(bits.max(1)).max(1);
        self.height.saturating_sub(self.height.div_ceil(rounds))
    }

    /// How many nodes of height `height` are below.
    pub fn count(&self, height: u32) -> u64 {
        let from = self.first(height);
        let all = self.leaves.div_ceil(1u64.checked_shl(height).unwrap_or(u64::MAX));
        all.saturating_sub(from).min(1u64.checked_shl(self.height.saturating_sub(height)).unwrap_or(u64::MAX))
    }

    /// Place of the first node of height `height` below.
    pub fn first(&self, height: u32) -> u64 {
        self.index.checked_shl(self.height.saturating_sub(height)).unwrap_or(u64::MAX)
    }

    /// The node that nodes of height `height` below lead to; `None` when they are not as many as there are.
    pub fn lead(&self, height: u32, nodes: &[Hash]) -> Option<Hash> {
        let whole = !nodes.is_empty() && nodes.len() as u64 == self.count(height);
        let above = above(nodes, self.height.checked_sub(height)?);
        if whole && above.len() == 1 { above.first().copied() } else { None }
    }

    /// Like [`Descent::lead`], for the root of the tree whose top this is. A tree without leaves has no nodes.
    pub fn root(&self, height: u32, nodes: &[Hash]) -> Option<Hash> {
        if self.leaves == 0 {
            return nodes.is_empty().then(|| seal(0, &Hash::ZERO));
        }
        Some(seal(self.leaves, &self.lead(height, nodes)?))
    }

    /// The `i`-th node of height `height` below.
    pub fn down(&self, height: u32, i: u64) -> Option<Descent> {
        (i < self.count(height)).then(|| Descent {
            height,
            index: self.first(height).saturating_add(i),
            ..*self
        })
    }

    /// The nodes of height `height` below, of a tree with these leaves: what an honest party claims.
    pub fn nodes(&self, height: u32, leaves: &[Hash]) -> Vec<Hash> {
        let from = self.first(height).checked_shl(height).unwrap_or(u64::MAX).min(self.leaves);
        let to = self.first(height).saturating_add(self.count(height));
        let to = to.checked_shl(height).unwrap_or(u64::MAX).min(self.leaves);
        above(leaves.get(from as usize..to as usize).unwrap_or_default(), height)
    }
}

#[cfg(test)]
mod tests {
    use assay_core::merkle;

    use super::*;

    #[test]
    fn every_way_down_ends_at_its_leaf() {
        for n in [1u64, 2, 3, 5, 64, 65, 129, 1000] {
            let leaves: Vec<Hash> = (0..n).map(|i| merkle::leaf(&i.to_be_bytes())).collect();
            for bits in [1, 3, 7] {
                for target in [0, n / 3, n - 1] {
                    let mut at = Descent::top(n);
                    let h = at.next(bits);
                    let nodes = at.nodes(h, &leaves);
                    assert_eq!(at.root(h, &nodes), Some(merkle::root(leaves.iter().copied())));
                    assert_eq!(at.root(h, &nodes[1..]), None);
                    let mut rounds = 0;
                    let mut hash = at.lead(h, &nodes).unwrap();
                    loop {
                        let h = at.next(bits);
                        let nodes = at.nodes(h, &leaves);
                        assert_eq!(at.lead(h, &nodes), Some(hash));
                        assert!(nodes.len() <= 1 << bits);
                        let i = (target >> h) - at.first(h);
                        assert_eq!(at.down(h, nodes.len() as u64), None);
                        hash = nodes[i as usize];
                        at = at.down(h, i).unwrap();
                        rounds += 1;
                        if at.height == 0 {
                            break;
                        }
                    }
                    assert_eq!((at.index, hash), (target, leaves[target as usize]));
                    assert_eq!(rounds, merkle::height(n).div_ceil(bits).max(1));
                }
            }
        }
        let empty = Descent::top(0);
        assert_eq!(empty.root(0, &[]), Some(merkle::root([])));
        assert_eq!(empty.count(0), 0);
    }
}
