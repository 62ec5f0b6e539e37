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
        self.push_scales(key.1, value.1);
    }

    /// Appends four positions, the first a multiple of four: both layouts take them side by side.
    fn push_four(&mut self, keys: [(&[i8], Scale); GROUP], values: [(&[i8], Scale); GROUP]) {
        let p = self.key_mantissas.len();
        assert!(
            p.is_multiple_of(GROUP) && p < self.capacity,
            "a sequence stays within the capacity it was made for"
        );
        let n = self.head_dim;
        let tile = (p / TILE_ROWS) * TILE_ROWS * n + (p % TILE_ROWS) * GROUP;
        let keys_of = keys.map(|(k, _)| k[..n].as_chunks::<GROUP>().0);
        let groups = self.keys[tile..].chunks_mut(TILE_ROWS * GROUP).take(n / GROUP);
        for (g, out) in groups.enumerate() {
            let (out, _) = out.as_chunks_mut::<GROUP>();
            out.iter_mut().zip(keys_of).for_each(|(out, key)| *out = key[g].map(biased));
        }
        for first in (0..n).step_by(TILE_ROWS) {
            let rows = self.block_rows(first);
            let at = first * self.capacity + (p / GROUP) * rows * GROUP;
            let channels = first..(first + TILE_ROWS).min(n);
            interleave(values.map(|(v, _)| &v[channels.clone()]), &mut self.values[at..at + rows * GROUP]);
        }
        for (key, value) in keys.into_iter().zip(values) {
            self.push_scales(key.1, value.1);
        }
    }

    fn clear(&mut self) {
        self.key_mantissas.clear();
        self.key_exponents.clear();
        self.value_mantissas.clear();
        self.value_exponents.clear();
        self.highest.clear();
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
        self.position = 0;
        self.heads.iter_mut().for_each(HeadCache::clear);
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
                    assert!(a.keys == b.keys && a.values == b.values && a.highest == b.highest);
                    assert!(a.key_mantissas == b.key_mantissas && a.value_exponents == b.value_exponents);
                }
            }
        }
    }
}
