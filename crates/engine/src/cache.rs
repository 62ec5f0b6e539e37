//! The KV cache of one sequence, in the layouts that attention reads: keys as matrix rows by position, values as matrix
//! columns by position (see [`crate::matrix`] for the layout).

use std::ops::Range;

use crate::kernel::HeadScales;
use crate::matrix::{BIAS, GROUP, TILE_ROWS};
use crate::program::check::CacheShape;
use crate::semantics::scale::Scale;

/// Rows of a vector register of int8 products.
const LANES: usize = 16;
/// Marks that no value scale so far is above zero.
const NONE: i32 = i32::MIN;

/// Keys and values of one KV head.
pub(crate) struct HeadCache {
    head_dim: usize,
    capacity: usize,
    keys: Vec<u8>,
    key_mantissas: Vec<u16>,
    key_exponents: Vec<i16>,
    values: Vec<u8>,
    value_mantissas: Vec<u16>,
    value_exponents: Vec<i16>,
    /// Largest exponent of the value scales up to each position.
    highest: Vec<i32>,
}

/// A run of value rows (channels) that one product covers.
pub(crate) struct ValueBlock<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

impl HeadCache {
    fn new(head_dim: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(TILE_ROWS);
        HeadCache {
            head_dim,
            capacity,
            keys: vec![0; capacity * head_dim],
            key_mantissas: Vec::with_capacity(capacity),
            key_exponents: Vec::with_capacity(capacity),
            values: vec![0; capacity * head_dim.next_multiple_of(LANES)],
            value_mantissas: Vec::with_capacity(capacity),
            value_exponents: Vec::with_capacity(capacity),
            highest: Vec::with_capacity(capacity),
        }
    }

    /// Appends a position.
    pub(crate) fn push(&mut self, key: (&[i8], Scale), value: (&[i8], Scale)) {
        let p = self.key_mantissas.len();
        assert!(p < self.capacity, "a sequence stays within the capacity it was made for");
        let tile = (p / TILE_ROWS) * TILE_ROWS * self.head_dim + (p % TILE_ROWS) * GROUP;
        for (g, four) in key.0.chunks_exact(GROUP).enumerate() {
            let at = tile + g * TILE_ROWS * GROUP;
            for (o, k) in self.keys[at..at + GROUP].iter_mut().zip(four) {
                *o = (*k as u8) ^ BIAS;
            }
        }
        for first in (0..self.head_dim).step_by(TILE_ROWS) {
            let rows = self.block_rows(first);
            let at = first * self.capacity + (p / GROUP) * rows * GROUP + p % GROUP;
            for (i, v) in value.0[first..(first + TILE_ROWS).min(self.head_dim)].iter().enumerate() {
                self.values[at + i * GROUP] = (*v as u8) ^ BIAS;
            }
        }
        self.key_mantissas.push(key.1.mantissa);
        self.key_exponents.push(key.1.exponent);
        self.value_mantissas.push(value.1.mantissa);
        self.value_exponents.push(value.1.exponent);
        let before = self.highest.last().copied().unwrap_or(NONE);
        let here = if value.1.mantissa == 0 { NONE } else { i32::from(value.1.exponent) };
        self.highest.push(before.max(here));
    }

    /// Rows of the value block that starts at channel `first`: filled up to whole registers.
    fn block_rows(&self, first: usize) -> usize {
        (self.head_dim - first).min(TILE_ROWS).next_multiple_of(LANES)
    }

    /// The key tile with positions `64 · tile ..`: column groups of 64 positions × 4 bytes.
    pub(crate) fn key_tile(&self, tile: usize) -> &[u8] {
        let len = TILE_ROWS * self.head_dim;
        &self.keys[tile * len..(tile + 1) * len]
    }

    /// The value blocks: column groups of 4 positions.
    pub(crate) fn value_blocks(&self) -> impl Iterator<Item = ValueBlock<'_>> {
        (0..self.head_dim).step_by(TILE_ROWS).map(|first| {
            let rows = self.block_rows(first);
            let at = first * self.capacity;
            ValueBlock { bytes: &self.values[at..at + rows * self.capacity], first, rows }
        })
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

    /// Appends a position's keys and values of one attend operation as someone else computed them: all heads' int8 numbers and a
    /// scale per head. Once all operations have theirs, [`Sequence::resume`] goes on after them.
    ///
    /// # Panics
    /// When lengths are not the cache's, or the capacity is used up.
    pub fn restore(&mut self, layer: usize, key: (&[i8], &[Scale]), value: (&[i8], &[Scale])) {
        let end = self.kv_heads.get(layer + 1).copied().unwrap_or(self.heads.len());
        let heads = &mut self.heads[self.kv_heads[layer]..end];
        let n = heads[0].head_dim;
        let whole = heads.len() * n;
        assert!(key.0.len() == whole && value.0.len() == whole, "keys and values of all heads are given");
        for (h, cache) in heads.iter_mut().enumerate() {
            let part = h * n..(h + 1) * n;
            cache.push((&key.0[part.clone()], key.1[h]), (&value.0[part], value.1[h]));
        }
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
