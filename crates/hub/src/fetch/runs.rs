//! Sets of tiles as sorted runs. Invariant: runs are not empty, do not overlap and do not touch.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of tiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// End by start.
    ends: BTreeMap<u64, u64>,
    count: u64,
}

impl Runs {
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many tiles are in it.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> {
        self.ends.iter().map(|(&start, &end)| start..end)
    }

    pub(crate) fn contains(&self, tile: u64) -> bool {
        self.ends.range(..=tile).next_back().is_some_and(|(_, &end)| tile < end)
    }

    /// The parts of `range` that are in the set.
    pub(crate) fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let before = self.ends.range(..range.start).next_back().filter(|(_, end)| **end > range.start);
        let inside = self.ends.range(range.start..range.end);
        before.into_iter().chain(inside).map(|(&s, &e)| s.max(range.start)..e.min(range.end)).collect()
    }

    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // What touches from the left, then everything that begins inside or right behind.
        if let Some((&s, &e)) = self.ends.range(..=start).next_back()
            && e >= start
        {
            (start, end) = (s, end.max(e));
        }
        while let Some((&s, &e)) = self.ends.range(start..=end).next() {
            self.ends.remove(&s);
            self.count -= e - s;
            end = end.max(e);
        }
        self.ends.insert(start, end);
        self.count += end - start;
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        for hit in self.within(range) {
            // The run around `hit` exists, since `within` found it.
            let Some((&s, &e)) = self.ends.range(..=hit.start).next_back() else { continue };
            self.ends.remove(&s);
            if s < hit.start {
                self.ends.insert(s, hit.start);
            }
            if hit.end < e {
                self.ends.insert(hit.end, e);
            }
            self.count -= hit.end - hit.start;
        }
    }

    /// The first run at or after `from` that is in both sets, at most `most` tiles of it; from the beginning if there is none behind.
    pub(crate) fn first_common(&self, other: Option<&Runs>, from: u64, most: u64) -> Option<Range<u64>> {
        let search = |from: u64, to: u64| -> Option<Range<u64>> {
            let before = self.ends.range(..from).next_back().filter(|(_, end)| **end > from);
            let runs = before.into_iter().chain(self.ends.range(from..to));
            for (&s, &e) in runs {
                let run = s.max(from)..e.min(to);
                let hit = match other {
                    None => Some(run),
                    Some(other) => other.first_within(run),
                };
                if let Some(hit) = hit {
                    return Some(hit.start..hit.end.min(hit.start.saturating_add(most)));
                }
            }
            None
        };
        search(from, u64::MAX).or_else(|| search(0, from))
    }

    /// The first run that is in both sets and in `range`, at most `most` tiles of it.
    pub(crate) fn first_common_within(
        &self,
        other: Option<&Runs>,
        range: &Range<u64>,
        most: u64,
    ) -> Option<Range<u64>> {
        let hit = self.within(range.clone()).into_iter().find_map(|run| match other {
            None => Some(run),
            Some(other) => other.first_within(run),
        })?;
        Some(hit.start..hit.end.min(hit.start.saturating_add(most)))
    }

    fn first_within(&self, range: Range<u64>) -> Option<Range<u64>> {
        let before = self.ends.range(..=range.start).next_back().filter(|(_, end)| **end > range.start);
        let (&s, &e) = before.or_else(|| self.ends.range(range.start..range.end).next())?;
        Some(s.max(range.start)..e.min(range.end))
    }
}

impl FromIterator<Range<u64>> for Runs {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Runs {
        let mut runs = Runs::default();
        for range in ranges {
            runs.insert(range);
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
        prop::collection::vec((any::<bool>(), 0..60_u64, 0..20_u64), 0..40)
    }

    proptest! {
        #[test]
        fn they_are_sets(steps in ranges(), others in ranges(), from in 0..80_u64, most in 1..9_u64) {
            let make = |steps: &[(bool, u64, u64)]| {
                let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
                for &(add, start, len) in steps {
                    if add {
                        runs.insert(start..start + len);
                        set.extend(start..start + len);
                    } else {
                        runs.remove(start..start + len);
                        set.retain(|t| !(start..start + len).contains(t));
                    }
                }
                (runs, set)
            };
            let (runs, set) = make(&steps);
            let (other, other_set) = make(&others);
            prop_assert_eq!(runs.count(), set.len() as u64);
            prop_assert_eq!(runs.iter().flatten().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            let list: Vec<_> = runs.iter().collect();
            prop_assert!(list.windows(2).all(|w| w[0].end < w[1].start), "runs touch: {:?}", list);
            for tile in 0..90 {
                prop_assert_eq!(runs.contains(tile), set.contains(&tile));
            }
            let within: Vec<_> = runs.within(10..40).into_iter().flatten().collect();
            prop_assert_eq!(within, set.range(10..40).copied().collect::<Vec<_>>());
            let common: BTreeSet<_> = set.intersection(&other_set).copied().collect();
            let first = common.range(from..).next().or(common.first()).copied();
            let hit = runs.first_common(Some(&other), from, most);
            prop_assert_eq!(hit.as_ref().map(|r| r.start), first);
            if let Some(hit) = hit {
                prop_assert!(hit.end - hit.start <= most && hit.clone().all(|t| common.contains(&t)));
            }
            let hit = runs.first_common_within(Some(&other), &(from..from + 20), most);
            prop_assert_eq!(hit.as_ref().map(|r| r.start), common.range(from..from + 20).next().copied());
            if let Some(hit) = hit {
                prop_assert!(hit.end - hit.start <= most && hit.clone().all(|t| common.contains(&t)));
            }
        }
    }
}
