//! Proposals of next tokens: what followed the last few tokens where they stood before, in the prompt or the answer; where they did not, what a draft
//! model writes ([`model`]), if there is one.
//!
//! A pass verifies a proposal by choosing, at each position, the token that it chooses without one; what agrees was executed ahead of its time, and
//! the rest is taken back. So a proposal decides nothing but how long an answer takes, and this module only judges when it is worth its rows.

pub(super) mod model;

/// Tokens that must stand alike before one is proposed.
const MATCH: usize = 3;
/// Tokens of a first proposal.
const FIRST: usize = 3;
/// Tokens of a proposal.
const LONGEST: usize = 12;
/// Proposals of which nothing was chosen, in a row, that make pauses longer.
const MISSES: u32 = 6;

/// How long the proposals of one request are, and when there are none: judged by what became of those before.
#[derive(Clone, Debug)]
struct Pace {
    /// Tokens of the next proposal.
    length: usize,
    /// Proposals in a row of which nothing was chosen.
    misses: u32,
    /// Passes until the next proposal.
    pause: u32,
}

/// Proposes what stood in a request before.
#[derive(Clone, Debug)]
pub(super) struct Drafter {
    pace: Pace,
}

impl Pace {
    fn new() -> Pace {
        Pace { length: FIRST, misses: 0, pause: 0 }
    }

    /// Tokens of the proposal that is due, at most `most`; 0 while proposals do not pay.
    fn due(&mut self, most: usize) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        self.length.min(most)
    }

    /// Learns that of so many proposed tokens so many were chosen.
    fn learn(&mut self, proposed: usize, chosen: usize) {
        if proposed == 0 {
            return;
        }
        self.length = if chosen == proposed { (self.length * 2).min(LONGEST) } else { chosen.max(1) };
        self.misses = if chosen == 0 { (self.misses + 1).min(MISSES) } else { 0 };
        self.pause = if chosen == 0 { 1 << self.misses } else { 0 };
    }
}

impl Drafter {
    pub(super) fn new() -> Drafter {
        Drafter { pace: Pace::new() }
    }

    /// At most `most` tokens that may follow; none while proposals do not pay, or where the last tokens did not stand before.
    pub(super) fn propose(&mut self, prompt: &[u32], output: &[u32], most: usize) -> Vec<u32> {
        let length = self.pace.due(most);
        if length == 0 {
            return Vec::new();
        }
        let end = prompt.len() + output.len();
        let at = |i: usize| prompt.get(i).or_else(|| output.get(i.wrapping_sub(prompt.len()))).copied();
        let same = |start: usize| (0..MATCH).all(|i| at(start + i) == at(end - MATCH + i));
        // The latest place counts: texts repeat what they said last.
        let Some(start) = (0..end.saturating_sub(MATCH)).rev().find(|start| same(*start)) else {
            return Vec::new();
        };
        let mut proposed = Vec::with_capacity(length);
        for i in start + MATCH..start + MATCH + length {
            // A text that goes round in a circle goes on so.
            let Some(next) = at(i).or_else(|| proposed.get(i - end).copied()) else { break };
            proposed.push(next);
        }
        proposed
    }

    /// Learns that of so many proposed tokens so many were chosen.
    pub(super) fn learn(&mut self, proposed: usize, chosen: usize) {
        self.pace.learn(proposed, chosen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(prompt: &[u32], output: &[u32], most: usize) -> Vec<u32> {
        Drafter::new().propose(prompt, output, most)
    }

    #[test]
    fn what_followed_last_time_is_proposed() {
        assert_eq!(proposed(&[1, 2, 3, 9, 1, 2, 3, 4, 5, 6, 7, 0], &[1, 2, 3], 9), [4, 5, 6], "the latest");
        assert_eq!(proposed(&[1, 2], &[3, 4, 5, 1, 2, 3], 9), [4, 5, 1], "over the end of the prompt");
        assert_eq!(proposed(&[1, 2, 3, 4, 5, 6, 1, 2, 3], &[], 2), [4, 5]);
        assert_eq!(proposed(&[7, 8, 7, 8, 7], &[8, 7], 9), [8, 7, 8], "a circle");
        assert_eq!(proposed(&[5], &[5, 5, 5], 9), [5, 5, 5]);
        for (prompt, output) in [(&[][..], &[][..]), (&[1], &[]), (&[1, 2, 3], &[]), (&[2, 3, 9], &[1, 2, 3])]
        {
            assert!(proposed(prompt, output, 9).is_empty());
        }
        assert!(proposed(&[5, 5, 5], &[5, 5], 0).is_empty());
    }

    /// Every proposal is what a search of the whole text finds.
    #[test]
    fn any_text_is_searched_to_its_ends() {
        let mut state = 1u32;
        for case in 0..2000usize {
            let mut next = |n: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) % n
            };
            let text: Vec<u32> = (0..next(24)).map(|_| next(3)).collect();
            let cut = next(text.len() as u32 + 1) as usize;
            let got = proposed(&text[..cut], &text[cut..], 1 + case % 4);
            let places = text.windows(MATCH).take(text.len().saturating_sub(MATCH));
            let found = places.enumerate().rfind(|(_, w)| text.ends_with(w));
            assert_eq!(got.is_empty(), found.is_none());
            let Some((start, _)) = found else { continue };
            let mut long = text.clone();
            (0..8).for_each(|i| long.push(long[start + MATCH + i]));
            assert_eq!(got, long[start + MATCH..][..got.len()]);
            assert_eq!(got.len(), FIRST.min(1 + case % 4));
        }
    }

    #[test]
    fn proposals_grow_while_they_are_chosen_and_pause_while_they_are_not() {
        let mut d = Drafter::new();
        let text = [5; 40];
        let mut lengths = Vec::new();
        for _ in 0..4 {
            let n = d.propose(&text, &[], 64).len();
            lengths.push(n);
            d.learn(n, n);
        }
        assert_eq!(lengths, [3, 6, 12, 12]);
        d.learn(12, 4);
        assert_eq!(d.propose(&text, &[], 64).len(), 4);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            d.learn(4, 0);
            let pause = (0..).take_while(|_| d.propose(&text, &[], 64).is_empty()).count();
            pauses.push(pause);
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 64, 64]);
        d.learn(1, 1);
        assert_eq!(d.propose(&text, &[], 64).len(), 2, "one that was chosen ends the pauses");
        d.learn(0, 0);
        assert_eq!(d.propose(&text, &[], 64).len(), 2, "without a proposal nothing is learnt");
    }
}
