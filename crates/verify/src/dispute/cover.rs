//! The steps that a block carries, shown under the root over all its steps: together, so that no node is said twice.
//!
//! What is shown are, in order, the commitments of the carried steps and, wherever there is none of these below a node, that node.

use assay_core::id::Hash;
use assay_core::merkle;
use assay_engine::program::{Facts, ValueId};

/// What shows the carried steps, from the commitments of all steps; `None` if one of them is not there.
pub fn show(steps: &[Hash], carried: &[ValueId]) -> Option<Vec<Hash>> {
    let mut shown = Vec::new();
    let mut next = |height: u32, index: u64| {
        let from = usize::try_from(index.checked_shl(height)?).ok()?;
        let to = from.saturating_add(1usize.checked_shl(height)?).min(steps.len());
        let node = merkle::above(steps.get(from..to)?, height).first().copied()?;
        shown.push(node);
        Some(node)
    };
    let leaves = steps.len() as u64;
    let mut walk = Walk { leaves, carried, found: vec![] };
    walk.node(merkle::height(leaves), 0, &mut next)?;
    (walk.found.len() == carried.len()).then_some(shown)
}

/// The root over the steps and the commitments of the carried ones, from what is shown; `None` if that is too much or too little.
pub(super) fn read(facts: &Facts, shown: &[Hash]) -> Option<(Hash, Vec<Hash>)> {
    let leaves = u64::from(facts.ops).saturating_add(2);
    let mut nodes = shown.iter().copied();
    let mut walk = Walk { leaves, carried: &facts.carried, found: vec![] };
    let top = walk.node(merkle::height(leaves), 0, &mut |_, _| nodes.next())?;
    let whole = nodes.next().is_none() && walk.found.len() == facts.carried.len();
    whole.then(|| (merkle::seal(leaves, &top), walk.found))
}

struct Walk<'a> {
    leaves: u64,
    carried: &'a [ValueId],
    found: Vec<Hash>,
}

impl Walk<'_> {
    /// The node of a height and place, from what `next` says it is where that is shown.
    fn node(
        &mut self,
        height: u32,
        index: u64,
        next: &mut dyn FnMut(u32, u64) -> Option<Hash>,
    ) -> Option<Hash> {
        let end = index.saturating_add(1).checked_shl(height)?;
        if self.carried.get(self.found.len()).is_none_or(|op| u64::from(*op) >= end) {
            return next(height, index);
        }
        let Some(below) = height.checked_sub(1) else {
            let leaf = next(0, index)?;
            self.found.push(leaf);
            return Some(leaf);
        };
        let left = index.saturating_mul(2);
        let right = left.saturating_add(1);
        let a = self.node(below, left, next)?;
        if right >= self.leaves.div_ceil(1u64.checked_shl(below)?) {
            return Some(a);
        }
        let b = self.node(below, right, next)?;
        merkle::above(&[a, b], 1).first().copied()
    }
}
