//! Walking down one Merkle tree, some levels at a time.

use assay_core::id::Hash;
use assay_core::merkle::{above, height, seal};

/// Which tree is walked down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Over the carries of all blocks.
    Blocks,
    /// Over the steps of a block, which are claimed by the roots of their parts.
    Steps,
    /// Over the leaves of a part.
    Part,
}

impl Tree {
    /// Levels that one claim of nodes may go down.
    const fn most(self) -> u32 {
        match self {
            Tree::Blocks | Tree::Steps => 7,
            Tree::Part => 8,
        }
    }

    /// The highest tree for which another claim and another pick cost more than they save.
    const fn at_once(self) -> u32 {
        match self {
            Tree::Blocks => 7,
            Tree::Steps => 5,
            Tree::Part => 6,
        }
    }

    /// How much one of its leaves weighs in a claim, as levels.
    const fn leaf_levels(self) -> u32 {
        match self {
            Tree::Steps => 2,
            Tree::Blocks | Tree::Part => 0,
        }
    }

    /// Levels that each claim goes down in a tree of this height.
    fn levels(self, height: u32) -> u32 {
        let least = if height > self.at_once() { 2 } else { 1 };
        height.saturating_add(self.leaf_levels()).div_ceil(height.div_ceil(self.most()).max(least))
    }
}

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

    /// Height of the nodes that are claimed next. A walk takes as few claims as cost least, and each goes down as far.
    pub fn next(&self, tree: Tree) -> u32 {
        self.height.saturating_sub(tree.levels(height(self.leaves)))
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
            for tree in [Tree::Blocks, Tree::Steps, Tree::Part] {
                for target in [0, n / 3, n - 1] {
                    let mut at = Descent::top(n);
                    let h = at.next(tree);
                    let nodes = at.nodes(h, &leaves);
                    assert_eq!(at.root(h, &nodes), Some(merkle::root(leaves.iter().copied())));
                    assert_eq!(at.root(h, &nodes[1..]), None);
                    let mut rounds = 0;
                    let mut hash = at.lead(h, &nodes).unwrap();
                    loop {
                        let h = at.next(tree);
                        let nodes = at.nodes(h, &leaves);
                        assert_eq!(at.lead(h, &nodes), Some(hash));
                        assert!(nodes.len() <= 1 << (tree.most() + tree.leaf_levels()));
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
                    let least = 1 + u32::from(merkle::height(n) > tree.at_once());
                    assert_eq!(rounds, merkle::height(n).div_ceil(tree.most()).max(least), "{tree:?} of {n}");
                }
            }
        }
        let empty = Descent::top(0);
        assert_eq!(empty.root(0, &[]), Some(merkle::root([])));
        assert_eq!(empty.count(0), 0);
    }
}
