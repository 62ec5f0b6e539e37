//! Sets of tiles of one blob: what is there, what is missing.
//!
//! One bit a tile, whatever the set looks like: foreign ranges cannot make it large.

use std::ops::Range;

/// A set of the tiles of a blob that has [`tiles`](TileSet::tiles) of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileSet {
    tiles: u64,
    count: u64,
    words: Vec<u64>,
}

impl TileSet {
    /// No tile of a blob of `tiles` tiles.
    pub fn empty(tiles: u64) -> TileSet {
        TileSet { tiles, count: 0, words: vec![0; tiles.div_ceil(64) as usize] }
    }

    /// Every tile of a blob of `tiles` tiles.
    pub fn full(tiles: u64) -> TileSet {
        let mut set = TileSet::empty(tiles);
        set.insert(0..tiles);
        set
    }

    /// How many tiles the blob has.
    pub fn tiles(&self) -> u64 {
        self.tiles
    }

    /// How many tiles are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether no tile is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every tile of the blob is in the set.
    pub fn is_full(&self) -> bool {
        self.count == self.tiles
    }

    /// Whether `tile` is in the set; never beyond the blob's end.
    pub fn contains(&self, tile: u64) -> bool {
        tile < self.tiles && self.words[(tile / 64) as usize] >> (tile % 64) & 1 == 1
    }

    /// Whether all of `range` is in the set.
    pub fn contains_all(&self, range: Range<u64>) -> bool {
        range.end <= self.tiles && !self.pieces(&range).any(|(word, mask)| self.words[word] & mask != mask)
    }

    /// Adds the tiles of `range` that the blob has.
    pub fn insert(&mut self, range: Range<u64>) {
        for (word, mask) in self.pieces(&range) {
            self.count += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
    }

    /// Takes the tiles of `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        for (word, mask) in self.pieces(&range) {
            self.count -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
    }

    /// The tiles of the blob that are not in the set.
    pub fn complement(&self) -> TileSet {
        let mut set = TileSet::full(self.tiles);
        for (word, mine) in set.words.iter_mut().zip(&self.words) {
            *word &= !mine;
        }
        set.count = self.tiles - self.count;
        set
    }

    /// The set as ranges, in order; neighbours are one range.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, |word| word)?;
            let end = self.next(start, |word| !word).unwrap_or(self.tiles);
            at = end;
            Some(start..end)
        })
    }

    /// Every tile in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges().flatten()
    }

    /// The bits, tile `i` being bit `i % 64` of word `i / 64`.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Replaces words from `first` on by those of `bytes`, little-endian; bits beyond the blob's end are dropped.
    pub(crate) fn set_words(&mut self, first: usize, bytes: &[u8]) {
        for (word, bytes) in self.words.iter_mut().skip(first).zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes"));
        }
        if let (Some(last), rest @ 1..) = (self.words.last_mut(), self.tiles % 64) {
            *last &= (1 << rest) - 1;
        }
        self.count = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
    }

    /// The first tile at `from` or later whose bit is set in what `of` makes of its word.
    fn next(&self, from: u64, of: impl Fn(u64) -> u64) -> Option<u64> {
        if from >= self.tiles {
            return None;
        }
        let first = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        for (index, word) in self.words.iter().enumerate().skip(first) {
            let found = of(*word) & mask;
            if found != 0 {
                let tile = index as u64 * 64 + u64::from(found.trailing_zeros());
                return (tile < self.tiles).then_some(tile);
            }
            mask = u64::MAX;
        }
        None
    }

    /// The words that `range`, cut to the blob, touches, and which of their bits.
    fn pieces(&self, range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
        let (start, end) = (range.start.min(self.tiles), range.end.min(self.tiles));
        let words = if start < end { start / 64..end.div_ceil(64) } else { 0..0 };
        words.map(move |word| {
            let first = word * 64;
            let low = start.saturating_sub(first);
            let high = (end - first).min(64);
            (word as usize, (u64::MAX >> (64 - (high - low))) << low)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_is_what_a_plain_set_says(
            tiles in 0u64..300,
            acts in prop::collection::vec((any::<bool>(), 0u64..320, 0u64..140), 0..40),
        ) {
            let mut set = TileSet::empty(tiles);
            let mut plain = BTreeSet::new();
            for (add, start, length) in acts {
                let range = start..start + length;
                if add {
                    set.insert(range.clone());
                    plain.extend(range.clone().filter(|tile| *tile < tiles));
                } else {
                    set.remove(range.clone());
                    plain.retain(|tile| !range.contains(tile));
                }
                prop_assert_eq!(set.contains_all(range.clone()), range.clone().all(|tile| plain.contains(&tile)) && range.end <= tiles);
            }
            prop_assert_eq!(set.count(), plain.len() as u64);
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), plain.clone());
            prop_assert!((0..330).all(|tile| set.contains(tile) == plain.contains(&tile)));
            let ranges: Vec<_> = set.ranges().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let other = set.complement();
            prop_assert!((0..tiles).all(|tile| other.contains(tile) != set.contains(tile)));
            prop_assert_eq!(other.count(), tiles - set.count());
            let bytes: Vec<u8> = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut again = TileSet::empty(tiles);
            again.set_words(0, &bytes);
            prop_assert_eq!(again, set);
        }
    }
}
