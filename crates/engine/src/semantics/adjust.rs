//! What happens to logits before a token is chosen (semantics 7.3): penalties, biases, and the tokens that a guide leaves.

use std::collections::{BTreeMap, BTreeSet};

use assay_core::request::Sampling;

use super::fixed::sat32;

const MILLION: u64 = 1_000_000;

/// The tokens so far, as far as penalties care.
#[derive(Clone, Debug, Default)]
pub struct History {
    prompt: BTreeSet<u32>,
    answer: BTreeMap<u32, u32>,
}

impl History {
    /// After a prompt.
    pub fn new(prompt: &[u32]) -> History {
        History { prompt: prompt.iter().copied().collect(), answer: BTreeMap::new() }
    }

    /// Takes the next token of the answer.
    pub fn push(&mut self, id: u32) {
        *self.answer.entry(id).or_default() += 1;
    }

    /// The logits with penalties and biases, where there are any. Ids that are no index of `logits` have none.
    pub fn adjust(&self, logits: &[i32], s: &Sampling) -> Option<Vec<i32>> {
        let repeats = u64::from(s.repetition_micro) != MILLION;
        let plain = s.presence_micro == 0 && s.frequency_micro == 0 && s.bias.is_empty() && !repeats;
        if plain {
            return None;
        }
        let mut logits = logits.to_vec();
        if repeats {
            let only_prompt = self.prompt.iter().filter(|id| !self.answer.contains_key(id));
            for id in only_prompt.chain(self.answer.keys()) {
                if let Some(l) = logits.get_mut(*id as usize) {
                    *l = repeated(*l, s.repetition_micro);
                }
            }
        }
        let [presence, frequency] = [s.presence_micro, s.frequency_micro].map(sixteen);
        for (id, count) in &self.answer {
            if let Some(l) = logits.get_mut(*id as usize) {
                *l = sat32(i64::from(*l) - presence - i64::from(*count) * frequency);
            }
        }
        for (id, bias) in &s.bias {
            if let Some(l) = logits.get_mut(*id as usize) {
                *l = sat32(i64::from(*l) + sixteen(*bias));
            }
        }
        Some(logits)
    }
}

/// Millionths as fixed point with 16 fraction bits, halves away from zero.
pub const fn sixteen(micro: i32) -> i64 {
    let size = ((micro.unsigned_abs() as u64 * 65_536 + MILLION / 2) / MILLION) as i64;
    if micro < 0 { -size } else { size }
}

/// A logit of a token that was there before.
pub const fn repeated(logit: i32, micro: u32) -> i32 {
    let size = logit.unsigned_abs() as u64;
    if logit > 0 {
        sat32((size * MILLION / micro as u64) as i64)
    } else {
        sat32(-((size * micro as u64 / MILLION) as i64))
    }
}

/// A set of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(Vec<u32>);

impl Mask {
    /// From words of 32 bits, the lowest bit of the first being id 0.
    pub fn from_words(words: Vec<u32>) -> Mask {
        Mask(words)
    }

    /// Only these ids.
    pub fn only(ids: &[u32]) -> Mask {
        let words = ids.iter().max().map_or(0, |id| *id as usize / 32 + 1);
        let mut mask = vec![0u32; words];
        for id in ids {
            mask[*id as usize / 32] |= 1 << (id % 32);
        }
        Mask(mask)
    }

    /// Whether an id is in it.
    pub fn allows(&self, id: usize) -> bool {
        self.0.get(id / 32).is_some_and(|w| w >> (id % 32) & 1 == 1)
    }

    /// Whether none of the first `count` ids is in it.
    pub fn is_empty(&self, count: usize) -> bool {
        !(0..count).any(|id| self.allows(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_and_biases_are_exact() {
        let mut h = History::new(&[0, 1]);
        h.push(1);
        h.push(1);
        h.push(2);
        let one = 65_536;
        let logits = [2 * one, -2 * one, 4 * one, one];
        assert_eq!(h.adjust(&logits, &Sampling::GREEDY), None);
        let s = Sampling { repetition_micro: 2_000_000, ..Sampling::GREEDY };
        assert_eq!(h.adjust(&logits, &s), Some(vec![one, -4 * one, 2 * one, one]));
        let s = Sampling { presence_micro: 500_000, frequency_micro: -250_000, ..Sampling::GREEDY };
        assert_eq!(h.adjust(&logits, &s), Some(vec![2 * one, -2 * one, 4 * one - one / 4, one]));
        let s = Sampling { bias: vec![(3, -100_000_000), (900, 1)], ..Sampling::GREEDY };
        assert_eq!(h.adjust(&logits, &s), Some(vec![2 * one, -2 * one, 4 * one, -99 * one]));
        let s = Sampling { bias: vec![(0, 100_000_000)], repetition_micro: 10_000, ..Sampling::GREEDY };
        let ends = h.adjust(&[i32::MAX, i32::MIN, 0, 0], &s).unwrap();
        assert_eq!(ends[..2], [i32::MAX, -21_474_836]);
    }

    #[test]
    fn masks_know_their_ids() {
        let m = Mask::only(&[0, 33]);
        let allowed: Vec<usize> = (0..100).filter(|id| m.allows(*id)).collect();
        assert_eq!(allowed, [0, 33]);
        assert!(!m.is_empty(1) && Mask::only(&[33]).is_empty(33) && Mask::only(&[]).is_empty(9));
    }
}
