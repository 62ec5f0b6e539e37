//! The KV cache of one sequence, in the layouts that attention reads: keys as matrix rows by position, values as matrix
//! columns by position (see [`crate::matrix`] for the layout).
//!
//! Keys and values are in pages of [`BLOCK_TOKENS`] positions. A page that is full may be shared with other sequences that begin with the
//! same tokens ([`Sequence::block`], [`Sequence::attach`]): it is read in place by all of them, and whoever writes a shared page writes a copy of it.

use std::ops::Range;
use std::sync::Arc;

use crate::kernel::HeadScales;
use crate::matrix::{BIAS, GROUP, TILE_ROWS};
use crate::program::check::CacheShape;
use crate::semantics::scale::Scale;

/// Rows of a vector register of int8 products.
const LANES: usize = 16;
/// Marks that no value scale so far is above zero.
const NONE: i32 = i32::MIN;
/// Positions that sequences share or do not share as a whole: those of a page, which is a tile of the kernels, so that a shared one is read where
/// it is and no slower than one's own; and whole blocks of digests, so that what a block contributes to a receipt is kept beside it.
pub const BLOCK_TOKENS: usize = TILE_ROWS;

/// Keys and values of one KV head.
pub(crate) struct HeadCache {
    head_dim: usize,
    capacity: usize,
    /// The last ones may be spare.
    pages: Vec<Arc<Page>>,
    key_mantissas: Vec<u16>,
    key_exponents: Vec<i16>,
    value_mantissas: Vec<u16>,
    value_exponents: Vec<i16>,
    /// Largest exponent of the value scales up to each position.
    highest: Vec<i32>,
}

/// Keys and values of one KV head at [`BLOCK_TOKENS`] positions: a tile of keys, then runs of value channels.
#[derive(Clone)]
struct Page(Vec<u8>);

impl Page {
    fn bytes(head_dim: usize) -> usize {
        TILE_ROWS * (head_dim + head_dim.next_multiple_of(LANES))
    }

    fn empty(head_dim: usize) -> Arc<Page> {
        Arc::new(Page(vec![0; Page::bytes(head_dim)]))
    }
}

/// A run of value rows (channels) that one product covers.
#[derive(Clone, Copy)]
pub(crate) struct ValueRows {
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

impl HeadCache {
    fn new(head_dim: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(TILE_ROWS);
        HeadCache {
            head_dim,
            capacity,
            pages: Vec::with_capacity(capacity / TILE_ROWS),
            key_mantissas: Vec::with_capacity(capacity),
            key_exponents: Vec::with_capacity(capacity),
            value_mantissas: Vec::with_capacity(capacity),
            value_exponents: Vec::with_capacity(capacity),
            highest: Vec::with_capacity(capacity),
        }
    }

    /// Appends a position.
    pub(crate) fn push(&mut self, key: (&[i8], Scale), value: (&[i8], Scale)) {
        let p = self.key_mantissas.len();
        assert!(p < self.capacity, "a sequence stays within the capacity it was made for");
        let (n, within) = (self.head_dim, p % TILE_ROWS);
        let (keys, values) = self.page_mut(p).split_at_mut(TILE_ROWS * n);
        for (g, four) in key.0.chunks_exact(GROUP).enumerate() {
            let at = (g * TILE_ROWS + within) * GROUP;
            for (o, k) in keys[at..at + GROUP].iter_mut().zip(four) {
                *o = biased(*k);
            }
        }
        for ValueRows { first, rows } in value_rows(n) {
            let at = first * TILE_ROWS + (within / GROUP) * rows * GROUP + within % GROUP;
            for (i, v) in value.0[first..(first + TILE_ROWS).min(n)].iter().enumerate() {
                values[at + i * GROUP] = biased(*v);
            }
        }
        self.push_scales(key.1, value.1);
    }

    /// The page of position `p`, the next one of the cache or one before.
    fn page_mut(&mut self, p: usize) -> &mut [u8] {
        let index = p / TILE_ROWS;
        if index == self.pages.len() {
            self.pages.push(Page::empty(self.head_dim));
        }
        &mut Arc::make_mut(&mut self.pages[index]).0
    }

    /// Appends four positions, the first a multiple of four: both layouts take them side by side.
    fn push_four(&mut self, keys: [(&[i8], Scale); GROUP], values: [(&[i8], Scale); GROUP]) {
        let p = self.key_mantissas.len();
        assert!(
            p.is_multiple_of(GROUP) && p < self.capacity,
            "a sequence stays within the capacity it was made for"
        );
        let (n, within) = (self.head_dim, p % TILE_ROWS);
        let (key_tile, value_tile) = self.page_mut(p).split_at_mut(TILE_ROWS * n);
        let keys_of = keys.map(|(k, _)| k[..n].as_chunks::<GROUP>().0);
        let groups = key_tile[within * GROUP..].chunks_mut(TILE_ROWS * GROUP).take(n / GROUP);
        for (g, out) in groups.enumerate() {
            let (out, _) = out.as_chunks_mut::<GROUP>();
            out.iter_mut().zip(keys_of).for_each(|(out, key)| *out = key[g].map(biased));
        }
        for ValueRows { first, rows } in value_rows(n) {
            let at = first * TILE_ROWS + (within / GROUP) * rows * GROUP;
            let channels = first..(first + TILE_ROWS).min(n);
            interleave(values.map(|(v, _)| &v[channels.clone()]), &mut value_tile[at..at + rows * GROUP]);
        }
        for (key, value) in keys.into_iter().zip(values) {
            self.push_scales(key.1, value.1);
        }
    }

    /// Forgets all positions from `positions` on. What their pages hold of them is never read: weights of positions that are not there are zero.
    fn truncate(&mut self, positions: usize) {
        self.key_mantissas.truncate(positions);
        self.key_exponents.truncate(positions);
        self.value_mantissas.truncate(positions);
        self.value_exponents.truncate(positions);
        self.highest.truncate(positions);
    }

    /// The whole page of positions from `first` on, a multiple of [`BLOCK_TOKENS`].
    fn share(&self, first: usize) -> HeadBlock {
        let run = first..first + TILE_ROWS;
        let scale = |mantissas: &[u16], exponents: &[i16], p: usize| Scale {
            mantissa: mantissas[p],
            exponent: exponents[p],
        };
        let scales = run.map(|p| {
            let key = scale(&self.key_mantissas, &self.key_exponents, p);
            (key, scale(&self.value_mantissas, &self.value_exponents, p))
        });
        HeadBlock { scales: scales.collect(), page: Arc::clone(&self.pages[first / TILE_ROWS]) }
    }

    /// Appends a page; the cache ends at a multiple of [`BLOCK_TOKENS`].
    fn attach(&mut self, block: &HeadBlock) {
        let p = self.key_mantissas.len();
        assert!(p.is_multiple_of(TILE_ROWS) && p < self.capacity, "whole pages follow whole pages");
        self.pages.truncate(p / TILE_ROWS);
        self.pages.push(Arc::clone(&block.page));
        block.scales.iter().for_each(|(key, value)| self.push_scales(*key, *value));
    }

    fn push_scales(&mut self, key: Scale, value: Scale) {
        self.key_mantissas.push(key.mantissa);
        self.key_exponents.push(key.exponent);
        self.value_mantissas.push(value.mantissa);
        self.value_exponents.push(value.exponent);
        let before = self.highest.last().copied().unwrap_or(NONE);
        let here = if value.mantissa == 0 { NONE } else { i32::from(value.exponent) };
        self.highest.push(before.max(here));
    }

    /// The key tile with positions `64 · tile ..`: column groups of 64 positions × 4 bytes.
    pub(crate) fn key_tile(&self, tile: usize) -> &[u8] {
        &self.pages[tile].0[..TILE_ROWS * self.head_dim]
    }

    /// The runs of value channels.
    pub(crate) fn value_rows(&self) -> impl Iterator<Item = ValueRows> + use<> {
        value_rows(self.head_dim)
    }

    /// The values of a run of channels at positions `64 · tile ..`: column groups of 4 positions.
    pub(crate) fn value_tile(&self, tile: usize, run: ValueRows) -> &[u8] {
        let at = TILE_ROWS * (self.head_dim + run.first);
        &self.pages[tile].0[at..at + TILE_ROWS * run.rows]
    }

    pub(crate) fn key_scales(&self) -> HeadScales<'_> {
        HeadScales { mantissas: &self.key_mantissas, exponents: &self.key_exponents }
    }

    pub(crate) fn value_scales(&self) -> HeadScales<'_> {
        HeadScales { mantissas: &self.value_mantissas, exponents: &self.value_exponents }
    }

    /// Largest exponent among value scales above zero up to `position`; 0 if there is none.
    pub(crate) fn highest(&self, position: usize) -> i16 {
        match self.highest[position] {
            NONE => 0,
            e => e as i16,
        }
    }
}

/// Runs of value channels, each filled up to whole registers.
fn value_rows(head_dim: usize) -> impl Iterator<Item = ValueRows> + use<> {
    let rows = move |first: usize| (head_dim - first).min(TILE_ROWS).next_multiple_of(LANES);
    (0..head_dim).step_by(TILE_ROWS).map(move |first| ValueRows { first, rows: rows(first) })
}

/// Keys and values of one KV head at [`BLOCK_TOKENS`] positions, with their scales.
struct HeadBlock {
    page: Arc<Page>,
    scales: Vec<(Scale, Scale)>,
}

/// Keys and values of [`BLOCK_TOKENS`] positions at every attend operation, shared by the sequences that begin alike up to their end.
pub struct Block {
    heads: Vec<HeadBlock>,
}

impl Block {
    /// Bytes that a block of a program takes.
    pub fn bytes(caches: &[CacheShape]) -> usize {
        let head = |c: &CacheShape| {
            let scales = TILE_ROWS * size_of::<(Scale, Scale)>();
            // The page, the counts and lengths before and beside it, the scales.
            let page = Page::bytes(c.head_dim as usize) + size_of::<Page>() + 2 * size_of::<usize>();
            (page + scales + size_of::<HeadBlock>()) * c.kv_heads as usize
        };
        caches.iter().map(head).sum::<usize>() + size_of::<Block>()
    }

    /// Whether a sequence, or another block, has a page of it.
    pub fn is_shared(&self) -> bool {
        self.heads.iter().any(|h| Arc::strong_count(&h.page) > 1)
    }
}

/// A number as it is stored.
const fn biased(v: i8) -> u8 {
    v.cast_unsigned() ^ BIAS
}

/// Four rows of channels as groups of four positions; `out` may have room for more channels than there are.
fn interleave(rows: [&[i8]; GROUP], out: &mut [u8]) {
    let n = rows[0].len();
    let (out, _) = out.as_chunks_mut::<GROUP>();
    let ([a, b, c, d], whole) = (rows.map(|r| r.as_chunks::<LANES>().0), n / LANES);
    for i in 0..whole {
        // Fixed lengths, so that the compiler shuffles registers.
        let out: &mut [[u8; GROUP]] = &mut out[i * LANES..(i + 1) * LANES];
        for j in 0..LANES {
            out[j] = [a[i][j], b[i][j], c[i][j], d[i][j]].map(biased);
        }
    }
    for (i, out) in out.iter_mut().enumerate().take(n).skip(whole * LANES) {
        *out = rows.map(|r| biased(r[i]));
    }
}

/// A sequence being executed: how far it is, and its caches.
pub struct Sequence {
    position: usize,
    capacity: usize,
    kv_heads: Vec<usize>,
    heads: Vec<HeadCache>,
}

impl Sequence {
    /// An empty sequence for at most `capacity` tokens.
    pub fn new(caches: &[CacheShape], capacity: usize) -> Sequence {
        let mut first = 0;
        let mut kv_heads = Vec::with_capacity(caches.len());
        let mut heads = Vec::new();
        for c in caches {
            kv_heads.push(first);
            first += c.kv_heads as usize;
            heads.extend((0..c.kv_heads).map(|_| HeadCache::new(c.head_dim as usize, capacity)));
        }
        Sequence { position: 0, capacity, kv_heads, heads }
    }

    /// An empty sequence with only the caches in `layers`: for whoever executes no other attend operation.
    pub fn with_caches(caches: &[CacheShape], layers: Range<usize>, capacity: usize) -> Sequence {
        let own = |(i, c): (usize, &CacheShape)| {
            let kv_heads = if layers.contains(&i) { c.kv_heads } else { 0 };
            CacheShape { kv_heads, head_dim: c.head_dim }
        };
        let caches: Vec<CacheShape> = caches.iter().enumerate().map(own).collect();
        Sequence::new(&caches, capacity)
    }

    /// Tokens executed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Most tokens this sequence may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that a sequence of `capacity` tokens takes.
    pub fn bytes(caches: &[CacheShape], capacity: usize) -> usize {
        let positions = capacity.next_multiple_of(TILE_ROWS);
        let per_position = |c: &CacheShape| {
            let n = c.head_dim as usize;
            (n + n.next_multiple_of(LANES) + 12) * c.kv_heads as usize
        };
        caches.iter().map(per_position).sum::<usize>() * positions
    }

    /// Appends keys and values of one attend operation as someone else computed them: for one or more positions, in rows, all
    /// heads' int8 numbers and a scale per head. Once all operations have theirs, [`Sequence::resume`] goes on after them.
    ///
    /// # Panics
    /// When these are no rows of the cache's, or the capacity is used up.
    pub fn restore(&mut self, layer: usize, key: (&[i8], &[Scale]), value: (&[i8], &[Scale])) {
        let end = self.kv_heads.get(layer + 1).copied().unwrap_or(self.heads.len());
        let heads = &mut self.heads[self.kv_heads[layer]..end];
        let n = heads[0].head_dim;
        let (count, whole) = (heads.len(), heads.len() * n);
        let rows = key.0.len() / whole;
        let all = |(numbers, scales): (&[i8], &[Scale])| {
            (numbers.len(), scales.len()) == (rows * whole, rows * count)
        };
        assert!(all(key) && all(value), "keys and values of all heads are given");
        for (h, cache) in heads.iter_mut().enumerate() {
            let key = |r: usize| (&key.0[r * whole + h * n..][..n], key.1[r * count + h]);
            let value = |r: usize| (&value.0[r * whole + h * n..][..n], value.1[r * count + h]);
            let mut r = 0;
            while r < rows {
                if cache.key_mantissas.len().is_multiple_of(GROUP) && rows - r >= GROUP {
                    let four = [r, r + 1, r + 2, r + 3];
                    cache.push_four(four.map(key), four.map(value));
                    r += GROUP;
                } else {
                    cache.push(key(r), value(r));
                    r += 1;
                }
            }
        }
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.rewind(0);
    }

    /// Forgets what was executed from `position` on: the sequence goes on as if it had not been.
    ///
    /// # Panics
    /// When it is not that far.
    pub fn rewind(&mut self, position: usize) {
        assert!(position <= self.position, "a sequence is rewound to where it was");
        self.position = position;
        self.heads.iter_mut().for_each(|h| h.truncate(position));
    }

    /// The block with positions `BLOCK_TOKENS · index ..`, to be shared.
    ///
    /// # Panics
    /// When not all of them were executed.
    pub fn block(&self, index: usize) -> Block {
        let first = index * BLOCK_TOKENS;
        assert!(first + BLOCK_TOKENS <= self.position, "what is shared was executed");
        Block { heads: self.heads.iter().map(|h| h.share(first)).collect() }
    }

    /// Goes on after a block of another sequence of the same program, which began with the same tokens and had the block's at the positions that
    /// are next here.
    ///
    /// # Panics
    /// When the next position is no multiple of [`BLOCK_TOKENS`], the capacity does not hold the block, or it is of another program.
    pub fn attach(&mut self, block: &Block) {
        assert!(
            self.position + BLOCK_TOKENS <= self.capacity,
            "a sequence stays within the capacity it was made for"
        );
        assert_eq!(self.heads.len(), block.heads.len(), "a block is of the same program");
        for (head, shared) in self.heads.iter_mut().zip(&block.heads) {
            head.attach(shared);
        }
        self.advance(BLOCK_TOKENS);
    }

    /// Positions whose keys and values the first cache holds.
    pub(crate) fn filled(&self) -> usize {
        self.heads.first().map_or(0, |h| h.key_mantissas.len())
    }

    /// Goes on after `positions` more positions, which [`Sequence::restore`] filled for every attend operation.
    pub fn resume(&mut self, positions: usize) {
        self.advance(positions);
        assert!(self.heads.iter().all(|h| h.key_mantissas.len() == self.position), "every cache is filled");
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }

    /// The caches of the heads of one attend operation.
    pub(crate) fn layer(&self, layer: usize, kv_heads: usize) -> &[HeadCache] {
        &self.heads[self.kv_heads[layer]..][..kv_heads]
    }

    pub(crate) fn layer_mut(&mut self, layer: usize, kv_heads: usize) -> &mut [HeadCache] {
        &mut self.heads[self.kv_heads[layer]..][..kv_heads]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever restores many positions at once fills the same bytes as who appends them one by one.
    #[test]
    fn rows_are_restored_as_they_are_appended() {
        for (head_dim, kv_heads) in [(4, 1), (20, 2), (64, 1), (132, 3)] {
            let shape = CacheShape { kv_heads, head_dim };
            let whole = (kv_heads * head_dim) as usize;
            let number = |i: usize| (i * i % 255) as u8 as i8;
            let scale = |i: usize| Scale::from_u64(i as u64 % 7 * 1000, i as i32 % 5);
            for runs in [vec![1, 2, 1], vec![4], vec![3, 9, 70], vec![64, 1, 8]] {
                let rows: usize = runs.iter().sum();
                let numbers: Vec<i8> = (0..rows * whole).map(number).collect();
                let scales: Vec<Scale> = (0..rows * kv_heads as usize).map(scale).collect();
                let fill = |runs: &[usize]| {
                    let mut sequence = Sequence::new(&[shape], rows);
                    let mut from = 0;
                    for run in runs {
                        let part = &numbers[from * whole..(from + run) * whole];
                        let heads = kv_heads as usize;
                        let units = &scales[from * heads..(from + run) * heads];
                        let other: Vec<i8> = part.iter().map(|v| v.wrapping_mul(3)).collect();
                        sequence.restore(0, (part, units), (&other, units));
                        sequence.resume(*run);
                        from += run;
                    }
                    sequence
                };
                let (many, one) = (fill(&runs), fill(&vec![1; rows]));
                for (a, b) in many.heads.iter().zip(&one.heads) {
                    assert!(a.pages.iter().map(|p| &p.0).eq(b.pages.iter().map(|p| &p.0)));
                    assert!(a.highest == b.highest);
                    assert!(a.key_mantissas == b.key_mantissas && a.value_exponents == b.value_exponents);
                }
            }
        }
    }

    /// A sequence of one head of 8 channels, and the key and value of each position.
    fn filled(positions: usize, salt: usize) -> Sequence {
        let mut sequence = Sequence::new(&[CacheShape { kv_heads: 1, head_dim: 8 }], 3 * BLOCK_TOKENS);
        extend(&mut sequence, positions, salt);
        sequence
    }

    fn extend(sequence: &mut Sequence, positions: usize, salt: usize) {
        for p in sequence.position()..positions {
            let row: Vec<i8> = (0..8).map(|i| ((p + salt) * 31 + i * 7) as u8 as i8).collect();
            let scale = [Scale::from_u64((p * salt) as u64 % 50, (p % 11) as i32)];
            sequence.restore(0, (&row, &scale), (&row, &scale));
            sequence.resume(1);
        }
    }

    fn same(a: &Sequence, b: &Sequence) -> bool {
        let (a, b) = (&a.heads[0], &b.heads[0]);
        a.highest == b.highest
            && a.key_mantissas == b.key_mantissas
            && a.value_exponents == b.value_exponents
            && a.pages.iter().zip(&b.pages).take(a.highest.len() / TILE_ROWS).all(|(a, b)| a.0 == b.0)
    }

    #[test]
    fn a_sequence_that_was_rewound_goes_on_as_if_it_had_not_been_there() {
        for (from, to) in [(130, 129), (130, 64), (130, 63), (70, 0), (64, 64)] {
            let mut sequence = filled(from, 9);
            sequence.rewind(to);
            extend(&mut sequence, to, 1);
            assert_eq!(sequence.position(), to);
            let mut other = filled(to, 9);
            extend(&mut sequence, 192, 4);
            extend(&mut other, 192, 4);
            assert!(same(&sequence, &other), "{from} to {to}");
        }
    }

    /// Blocks are read in place by whoever attached them; whoever writes into one has a copy.
    #[test]
    fn a_shared_page_is_never_written() {
        let owner = filled(150, 9);
        let blocks = [owner.block(0), owner.block(1)];
        let mut guest = filled(0, 0);
        blocks.iter().for_each(|b| guest.attach(b));
        assert_eq!(guest.position(), 128);
        assert!(Arc::ptr_eq(&guest.heads[0].pages[1], &owner.heads[0].pages[1]));
        extend(&mut guest, 150, 9);
        assert!(same(&guest, &owner));
        guest.rewind(100);
        extend(&mut guest, 192, 5);
        assert!(same(&owner, &filled(150, 9)), "the owner's are its own");
        let mut other = filled(100, 9);
        extend(&mut other, 192, 5);
        assert!(same(&guest, &other));
        assert!(blocks.iter().all(Block::is_shared));
        drop((owner, guest));
        assert!(blocks.iter().all(|b| !b.is_shared()));
    }
}
