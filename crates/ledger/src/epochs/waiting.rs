//! Where the receipts that no batch holds yet stand in the journals.
//!
//! Invariant: 4 bytes for each number in a segment that has any, at most [`super::limits::SPAN_MAX`] numbers.

use std::collections::BTreeMap;

/// Numbers of a segment.
const SEGMENT: u64 = 4096;
/// No record.
const NONE: u32 = u32::MAX;
/// Ordinals are kept modulo this: the journals never hold so many records.
const MODULUS: u64 = NONE as u64;

/// From sequence numbers to ordinals of records.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    segments: BTreeMap<u64, Box<[u32]>>,
    count: u64,
    least: u64,
    most: u64,
    /// The largest ordinal.
    newest: u64,
}

fn remainder(ordinal: u64) -> u32 {
    u32::try_from(ordinal % MODULUS).unwrap_or(0)
}

impl Waiting {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The least and the largest number, if there are any.
    pub(super) fn span(&self) -> Option<(u64, u64)> {
        (self.count > 0).then_some((self.least, self.most))
    }

    pub(super) fn put(&mut self, sequence: u64, ordinal: u64) {
        let segment = self
            .segments
            .entry(sequence / SEGMENT)
            .or_insert_with(|| vec![NONE; SEGMENT as usize].into_boxed_slice());
        let Some(slot) = usize::try_from(sequence % SEGMENT).ok().and_then(|i| segment.get_mut(i)) else {
            return;
        };
        if *slot == NONE {
            self.least = if self.count == 0 { sequence } else { self.least.min(sequence) };
            self.most = if self.count == 0 { sequence } else { self.most.max(sequence) };
            self.count += 1;
        }
        *slot = remainder(ordinal);
        self.newest = self.newest.max(ordinal);
    }

    pub(super) fn get(&self, sequence: u64) -> Option<u64> {
        let segment = self.segments.get(&(sequence / SEGMENT))?;
        let slot = *segment.get(usize::try_from(sequence % SEGMENT).ok()?)?;
        (slot != NONE).then(|| self.ordinal(slot))
    }

    /// The largest ordinal with this remainder that is at most the newest.
    fn ordinal(&self, slot: u32) -> u64 {
        let behind = (u64::from(remainder(self.newest)) + MODULUS - u64::from(slot)) % MODULUS;
        self.newest.saturating_sub(behind)
    }

    /// Numbers from `from` to before `to`, rising, with their ordinals.
    pub(super) fn range(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let segments = self.segments.range(from / SEGMENT..=to.max(from) / SEGMENT);
        segments
            .flat_map(|(base, slots)| (base * SEGMENT..).zip(slots.iter()))
            .filter(move |(sequence, slot)| **slot != NONE && (from..to).contains(sequence))
            .map(|(sequence, slot)| (sequence, self.ordinal(*slot)))
    }

    /// Forgets all numbers below `end`.
    pub(super) fn drop_below(&mut self, end: u64) {
        self.segments = self.segments.split_off(&(end / SEGMENT));
        if let Some(slots) = self.segments.get_mut(&(end / SEGMENT)) {
            for slot in slots.iter_mut().take((end % SEGMENT) as usize) {
                *slot = NONE;
            }
        }
        let left: Vec<(u64, u64)> = self
            .segments
            .iter()
            .map(|(base, slots)| {
                let full = (base * SEGMENT..).zip(slots.iter()).filter(|(_, slot)| **slot != NONE);
                full.fold((u64::MAX, 0), |(least, n), (s, _)| (least.min(s), n + 1))
            })
            .collect();
        self.count = left.iter().map(|(_, n)| n).sum();
        self.least = left.iter().map(|(least, _)| *least).min().unwrap_or(0);
        if self.count == 0 {
            self.segments.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_to_their_records_and_are_forgotten_from_below() {
        let mut w = Waiting::default();
        assert_eq!((w.span(), w.get(3)), (None, None));
        let far = 3 * MODULUS - 2;
        for (i, s) in [4095u64, 4096, 5, 12_000, 8191].into_iter().enumerate() {
            w.put(s, far + i as u64);
        }
        assert_eq!(w.span(), Some((5, 12_000)));
        assert_eq!(w.get(4095), Some(far));
        assert_eq!(w.get(8191), Some(far + 4), "past a multiple of the modulus");
        let all: Vec<u64> = w.range(0, u64::MAX).map(|(s, _)| s).collect();
        assert_eq!(all, [5, 4095, 4096, 8191, 12_000]);
        assert_eq!(w.range(6, 8191).count(), 2);
        w.drop_below(4096);
        assert_eq!((w.span(), w.count()), (Some((4096, 12_000)), 3));
        w.drop_below(12_001);
        assert_eq!((w.span(), w.segments.len()), (None, 0));
    }
}
