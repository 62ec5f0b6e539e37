//! Blocks of KV caches that outlive their requests, so that of requests which begin alike only the first executes the beginning.
//!
//! A block is kept under the tokens that it holds and all before them, compared one by one: who asks is no part of it, and no collision of hashes
//! can bring somebody another's block. With it are the digests of its positions, so that a receipt does not show who executed them.
//!
//! Two things hold at any time: the blocks kept take at most the budget, and a block is kept only with all before it. The second follows from how
//! uses are ordered: using a block uses all before it, later, so that the one whose use is longest ago has none after it, and is the one to go.

use std::collections::BTreeMap;
use std::sync::Arc;

use assay_core::digest::{DIGEST_TOKENS, DigestBuilder};
use assay_core::id::Hash;

use crate::cache::{BLOCK_TOKENS, Block, Sequence};
use crate::program::check::CacheShape;

/// Digests that a block completes.
const DIGESTS: usize = BLOCK_TOKENS / DIGEST_TOKENS as usize;
const _: () = assert!(BLOCK_TOKENS.is_multiple_of(DIGEST_TOKENS as usize), "a block ends with a digest");
/// What comes before the first block.
const ROOT: u64 = 0;

/// A block by its content: the block before it, and its tokens.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    before: u64,
    tokens: [u32; BLOCK_TOKENS],
}

struct Kept {
    /// Never given twice.
    id: u64,
    /// When it was used last, in uses.
    used: u64,
    block: Block,
    digests: [Hash; DIGESTS],
}

/// The blocks that are kept of one model.
pub(super) struct Prefixes {
    block_bytes: usize,
    blocks_max: usize,
    blocks: BTreeMap<Arc<Key>, Kept>,
    /// The same by their last use.
    by_use: BTreeMap<u64, Arc<Key>>,
    next_id: u64,
    uses: u64,
}

impl Prefixes {
    /// None yet, and at most as many as fit into `bytes_max` bytes.
    pub(super) fn new(caches: &[CacheShape], bytes_max: usize) -> Prefixes {
        // Beside the block, its key and its places in both orders, whose nodes are at least half full.
        let places = size_of::<Kept>() + size_of::<u64>() + 2 * size_of::<Arc<Key>>();
        let block_bytes = Block::bytes(caches) + size_of::<Key>() + 2 * size_of::<usize>() + 2 * places;
        Prefixes {
            block_bytes,
            blocks_max: bytes_max / block_bytes,
            blocks: BTreeMap::new(),
            by_use: BTreeMap::new(),
            next_id: ROOT + 1,
            uses: 0,
        }
    }

    /// Bytes of the blocks that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.blocks.len() * self.block_bytes
    }

    /// The keys of the blocks that are kept of these tokens, from the first on without a gap.
    fn chain(&self, tokens: &[u32]) -> Vec<Arc<Key>> {
        let (mut chain, mut before) = (Vec::new(), ROOT);
        for tokens in tokens.as_chunks::<BLOCK_TOKENS>().0 {
            let Some((key, kept)) = self.blocks.get_key_value(&Key { before, tokens: *tokens }) else {
                break;
            };
            chain.push(Arc::clone(key));
            before = kept.id;
        }
        chain
    }

    /// Uses a chain of blocks, the last first.
    fn touch(&mut self, chain: &[Arc<Key>]) {
        for key in chain.iter().rev() {
            let Some(kept) = self.blocks.get_mut(key) else {
                unreachable!("a chain is of blocks that are kept")
            };
            if let Some(place) = self.by_use.remove(&kept.used) {
                kept.used = self.uses;
                self.by_use.insert(self.uses, place);
            }
            self.uses += 1;
        }
    }

    /// Goes on with a sequence, which is at the start of a block of `prompt`, after the blocks that are kept of what follows; how many tokens these
    /// hold. The last token of the prompt is left to be executed, since the answer begins with its logits.
    pub(super) fn resume(
        &mut self,
        prompt: &[u32],
        sequence: &mut Sequence,
        digests: &mut DigestBuilder,
    ) -> usize {
        let Some((_, prompt)) = prompt.split_last() else { return 0 };
        let (from, executed) = (sequence.position() / BLOCK_TOKENS, sequence.position());
        if self.blocks.is_empty() || prompt.len() < executed + BLOCK_TOKENS {
            return 0;
        }
        let chain = self.chain(prompt);
        if chain.len() <= from {
            return 0;
        }
        self.touch(&chain);
        for kept in chain[from..].iter().filter_map(|key| self.blocks.get(key)) {
            sequence.attach(&kept.block);
            digests.resume(&kept.digests);
        }
        sequence.position() - executed
    }

    /// Keeps the whole blocks of a sequence that has executed `tokens`, as far as they fit, instead of those whose use is longest ago.
    pub(super) fn keep(&mut self, tokens: &[u32], sequence: &Sequence, digests: &[Hash]) {
        let mut chain = self.chain(tokens);
        // Before anything goes: a block of this very chain is never the one whose use is longest ago.
        self.touch(&chain);
        let missing = chain.len();
        for (index, tokens) in tokens.as_chunks::<BLOCK_TOKENS>().0.iter().enumerate().skip(missing) {
            let digests = digests.get(index * DIGESTS..).and_then(|d| d.first_chunk::<DIGESTS>());
            let (Some(digests), true) = (digests, index < self.blocks_max) else { break };
            while self.blocks.len() >= self.blocks_max {
                let Some((_, longest_ago)) = self.by_use.pop_first() else { break };
                self.blocks.remove(&longest_ago);
            }
            let before = chain.last().and_then(|key| self.blocks.get(key)).map_or(ROOT, |kept| kept.id);
            let key = Arc::new(Key { before, tokens: *tokens });
            let (id, used) = (self.next_id, self.uses);
            self.next_id += 1;
            self.uses += 1;
            self.by_use.insert(used, Arc::clone(&key));
            self.blocks
                .insert(Arc::clone(&key), Kept { id, used, block: sequence.block(index), digests: *digests });
            chain.push(key);
            self.touch(&chain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::scale::Scale;
    use proptest::prelude::*;

    const SHAPES: [CacheShape; 2] =
        [CacheShape { kv_heads: 2, head_dim: 4 }, CacheShape { kv_heads: 1, head_dim: 20 }];

    /// An execution whose numbers depend on all tokens up to each position.
    struct Executed {
        tokens: Vec<u32>,
        sequence: Sequence,
        digests: DigestBuilder,
        state: u32,
    }

    impl Executed {
        fn new() -> Executed {
            Executed {
                tokens: vec![],
                sequence: Sequence::new(&SHAPES, 6 * BLOCK_TOKENS),
                digests: DigestBuilder::new(),
                state: 7,
            }
        }

        /// Executes further tokens, of which the first ones may have been taken from elsewhere.
        fn go_on(&mut self, tokens: &[u32]) {
            for token in &tokens[self.tokens.len()..] {
                let position = self.tokens.len();
                self.tokens.push(*token);
                self.state = self.state.wrapping_mul(1_664_525).wrapping_add(token + 1);
                if self.sequence.position() > position {
                    continue;
                }
                for (layer, shape) in SHAPES.iter().enumerate() {
                    let numbers = shape.kv_heads * shape.head_dim;
                    let number = |i: u32| (self.state.rotate_left(i) >> 3) as i8;
                    let key: Vec<i8> = (0..numbers).map(number).collect();
                    let value: Vec<i8> = (0..numbers).map(|i| number(i + 5)).collect();
                    let scales = vec![Scale::from_u64(u64::from(self.state), 3); shape.kv_heads as usize];
                    self.sequence.restore(layer, (&key, &scales), (&value, &scales));
                }
                self.sequence.resume(1);
                self.digests.push(position as u32, &[self.state as i8], self.state as u16 | 0x8000, 0);
            }
        }

        fn assert_same(&self, other: &Executed) {
            assert_eq!(self.sequence.position(), other.sequence.position());
            for (layer, shape) in SHAPES.iter().enumerate() {
                let heads =
                    [&self.sequence, &other.sequence].map(|s| s.layer(layer, shape.kv_heads as usize));
                for (a, b) in heads[0].iter().zip(heads[1]) {
                    for tile in 0..self.sequence.position() / BLOCK_TOKENS {
                        assert!(a.key_tile(tile) == b.key_tile(tile));
                        assert!(a.value_rows().all(|r| a.value_tile(tile, r) == b.value_tile(tile, r)));
                    }
                    for (a, b) in [(a.key_scales(), b.key_scales()), (a.value_scales(), b.value_scales())] {
                        assert!(a.mantissas == b.mantissas && a.exponents == b.exponents);
                    }
                    assert!((0..self.sequence.position()).all(|p| a.highest(p) == b.highest(p)));
                }
            }
            assert_eq!(self.digests.clone().finish(), other.digests.clone().finish());
        }
    }

    /// What must hold at any time.
    fn check(prefixes: &Prefixes, bytes_max: usize) {
        assert!(prefixes.bytes() <= bytes_max, "{} of {bytes_max} bytes", prefixes.bytes());
        assert_eq!(prefixes.blocks.len(), prefixes.by_use.len());
        let before: BTreeMap<u64, u64> = prefixes.blocks.values().map(|k| (k.id, k.used)).collect();
        for (key, kept) in &prefixes.blocks {
            assert!(prefixes.by_use.get(&kept.used).is_some_and(|k| k == key));
            assert!(
                key.before == ROOT || before.get(&key.before).is_some_and(|used| *used > kept.used),
                "all before it is kept, and goes after it"
            );
        }
    }

    /// A text of whole blocks that are one of two, so that there are many that begin alike, and a rest.
    fn text(blocks: &[bool], rest: usize) -> Vec<u32> {
        let of = |b: bool| (0..BLOCK_TOKENS as u32).map(move |i| i * 2 + u32::from(b));
        blocks.iter().copied().flat_map(of).chain((0..rest as u32).map(|i| 1000 + i)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

        /// Whoever goes on after kept blocks is where it had been by itself; the budget holds after every step, and nothing but the kept blocks
        /// holds a page once the sequences are gone.
        #[test]
        fn kept_blocks_are_what_was_executed(
            slots in 0usize..8,
            spare in 0usize..2,
            steps in prop::collection::vec((prop::collection::vec(any::<bool>(), 0..6), 0usize..BLOCK_TOKENS, 0usize..4), 1..40),
        ) {
            let one = Prefixes::new(&SHAPES, 0).block_bytes;
            let bytes_max = slots * one + spare * (one - 1);
            let mut prefixes = Prefixes::new(&SHAPES, bytes_max);
            let mut live: Vec<Executed> = Vec::new();
            for (blocks, rest, leaving) in steps {
                let tokens = text(&blocks, rest);
                let (mut resumed, mut alone) = (Executed::new(), Executed::new());
                let taken = prefixes.resume(&tokens, &mut resumed.sequence, &mut resumed.digests);
                check(&prefixes, bytes_max);
                prop_assert_eq!(taken, resumed.sequence.position());
                prop_assert!(taken.is_multiple_of(BLOCK_TOKENS) && taken < tokens.len().max(1));
                resumed.go_on(&tokens);
                alone.go_on(&tokens);
                resumed.assert_same(&alone);
                prefixes.keep(&tokens, &resumed.sequence, resumed.digests.complete());
                check(&prefixes, bytes_max);
                let kept = prefixes.chain(&tokens).len();
                prop_assert_eq!(kept, blocks.len().min(slots), "as much as fits is kept of what was used last");
                live.push(resumed);
                if let Some(i) = leaving.checked_sub(1).filter(|i| *i < live.len()) {
                    live.swap_remove(i);
                }
            }
            drop(live);
            prop_assert!(prefixes.blocks.values().all(|k| !k.block.is_shared()), "nobody else holds a page");
        }
    }

    /// Of two branches the one that was used longer ago goes, its end first; what both begin with stays.
    #[test]
    fn the_end_of_the_branch_that_was_used_longest_ago_goes_first() {
        let bytes_max = 4 * Prefixes::new(&SHAPES, 0).block_bytes;
        let mut prefixes = Prefixes::new(&SHAPES, bytes_max);
        let kept = |prefixes: &Prefixes, blocks: &[bool]| prefixes.chain(&text(blocks, 0)).len();
        let add = |prefixes: &mut Prefixes, blocks: &[bool]| {
            let mut e = Executed::new();
            e.go_on(&text(blocks, 0));
            prefixes.keep(&e.tokens, &e.sequence, e.digests.complete());
        };
        add(&mut prefixes, &[true, true, true]);
        add(&mut prefixes, &[true, false]);
        assert_eq!(kept(&prefixes, &[true, true, true]), 3);
        add(&mut prefixes, &[true, false, false]);
        assert_eq!(kept(&prefixes, &[true, true, true]), 2);
        add(&mut prefixes, &[true, false, false, true]);
        assert_eq!(
            (kept(&prefixes, &[true, true, true]), kept(&prefixes, &[true, false, false, true])),
            (1, 4)
        );
        add(&mut prefixes, &[false]);
        assert_eq!((kept(&prefixes, &[true, false, false, true]), kept(&prefixes, &[false])), (3, 1));
    }

    /// A chain longer than the budget keeps its beginning, and neither hangs nor takes blocks of its own away.
    #[test]
    fn of_what_does_not_fit_the_beginning_is_kept() {
        let mut prefixes = Prefixes::new(&SHAPES, 2 * Prefixes::new(&SHAPES, 0).block_bytes);
        let mut e = Executed::new();
        e.go_on(&text(&[true, false, true, true, false], 9));
        prefixes.keep(&e.tokens, &e.sequence, e.digests.complete());
        assert_eq!(prefixes.chain(&e.tokens).len(), 2);
        let mut nothing = Prefixes::new(&SHAPES, 0);
        nothing.keep(&e.tokens, &e.sequence, e.digests.complete());
        assert_eq!(nothing.bytes(), 0);
    }
}
