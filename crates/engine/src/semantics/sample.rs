//! Choosing the next token from integer logits (semantics 7).
//!
//! Logits are fixed point with [`crate::program::LOGIT_FRAC`] fraction bits. The whole choice is a function of the logits, the sampling
//! parameters, the sampler's seed and the position of the token in the answer.

use assay_core::keccak::keccak256;
use assay_core::request::Sampling;

use super::adjust::{History, Mask};
use super::exp2::exp2_likelihood;
use super::fixed::shift_sat;

/// Temperatures below this many millionths mean: take the most likely token.
pub const GREEDY_BELOW_MICRO: u32 = 10_000;

/// `floor(10^6 · 2^20 · log2(e))`.
pub const LOG2E_MILLION_Q20: i64 = 1_512_775_395_195;

const MILLION: u128 = 1_000_000;

/// The most likely token; of equals the lowest id. 0 for no logits.
pub fn argmax(logits: &[i32]) -> u32 {
    argmax_of(logits, |_| true)
}

fn argmax_of(logits: &[i32], allowed: impl Fn(usize) -> bool) -> u32 {
    let mut best: Option<(usize, i32)> = None;
    for (i, l) in logits.iter().enumerate() {
        if best.is_none_or(|(_, most)| *l > most) && allowed(i) {
            best = Some((i, *l));
        }
    }
    best.map_or(0, |(i, _)| i as u32)
}

/// 64 random bits for the token at `position` of the answer.
pub fn draw(seed: &[u8; 32], position: u32) -> u64 {
    let hash = keccak256(&[b"assay/draw/1", seed, &u64::from(position).to_be_bytes()]);
    let mut first = [0u8; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// The token at `position` of an answer whose tokens so far are in `history`; with a mask, one of its tokens.
pub fn choose(
    logits: &[i32],
    history: &History,
    mask: Option<&Mask>,
    sampling: &Sampling,
    seed: &[u8; 32],
    position: u32,
) -> u32 {
    let adjusted = history.adjust(logits, sampling);
    sample(adjusted.as_deref().unwrap_or(logits), mask, sampling, seed, position)
}

/// The token at `position` of the answer, from logits as they are.
pub fn sample(
    logits: &[i32],
    mask: Option<&Mask>,
    sampling: &Sampling,
    seed: &[u8; 32],
    position: u32,
) -> u32 {
    // A guide that leaves nothing leaves everything: there is always a token.
    let mask = mask.filter(|m| !m.is_empty(logits.len()));
    let allowed = |id: usize| mask.is_none_or(|m| m.allows(id));
    if sampling.temperature_micro < GREEDY_BELOW_MICRO || logits.is_empty() {
        return argmax_of(logits, allowed);
    }
    let mut kept = likelihoods(logits, sampling.temperature_micro, allowed);
    keep_top(&mut kept, sampling);
    kept.sort_unstable_by_key(|c| c.id);
    let total: u64 = kept.iter().map(|c| u64::from(c.likelihood)).sum();
    let target = ((u128::from(draw(seed, position)) * u128::from(total)) >> 64) as u64;
    let mut sum = 0;
    for c in &kept {
        sum += u64::from(c.likelihood);
        if sum > target {
            return c.id;
        }
    }
    argmax_of(logits, allowed)
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    likelihood: u32,
    id: u32,
}

impl Candidate {
    /// Sorts the likeliest first, equals by id.
    fn rank(&self) -> (std::cmp::Reverse<u32>, u32) {
        (std::cmp::Reverse(self.likelihood), self.id)
    }
}

/// Likelihoods relative to the best token, without those that round to 0; in order of ids.
fn likelihoods(logits: &[i32], temperature_micro: u32, allowed: impl Fn(usize) -> bool) -> Vec<Candidate> {
    let factor = LOG2E_MILLION_Q20 / i64::from(temperature_micro);
    let exponent = |l: i32| shift_sat(i64::from(l) * factor, 20);
    let allowed = logits.iter().enumerate().filter(|(id, _)| allowed(*id));
    let best = exponent(allowed.clone().map(|(_, l)| *l).max().unwrap_or(0));
    allowed
        .filter_map(|(id, &l)| {
            let likelihood = exp2_likelihood(best.wrapping_sub(exponent(l)) as u32);
            (likelihood > 0).then_some(Candidate { likelihood, id: id as u32 })
        })
        .collect()
}

/// Applies top-k, then top-p, then min-p. Always keeps the likeliest token.
fn keep_top(kept: &mut Vec<Candidate>, sampling: &Sampling) {
    let k = if sampling.top_k == 0 { usize::MAX } else { sampling.top_k as usize };
    if k < kept.len() {
        kept.select_nth_unstable_by_key(k - 1, Candidate::rank);
        kept.truncate(k);
    }
    if u128::from(sampling.top_p_micro) < MILLION {
        keep_nucleus(kept, sampling.top_p_micro);
    }
    if sampling.min_p_micro > 0 {
        let best = kept.iter().map(|c| c.likelihood).max().unwrap_or(0);
        let floor = u128::from(best) * u128::from(sampling.min_p_micro);
        kept.retain(|c| u128::from(c.likelihood) * MILLION >= floor);
    }
}

/// Keeps the shortest run of the likeliest tokens that holds at least `top_p_micro` of the mass.
fn keep_nucleus(kept: &mut Vec<Candidate>, top_p_micro: u32) {
    let total: u128 = kept.iter().map(|c| u128::from(c.likelihood)).sum();
    let wanted = total * u128::from(top_p_micro);
    // The nucleus is usually short: sort growing heads of the list until one holds it.
    let mut head = 64.min(kept.len());
    loop {
        if head < kept.len() {
            kept.select_nth_unstable_by_key(head - 1, Candidate::rank);
        }
        kept[..head].sort_unstable_by_key(Candidate::rank);
        let mut sum = 0u128;
        for i in 0..head {
            sum += u128::from(kept[i].likelihood);
            if sum * MILLION >= wanted {
                kept.truncate(i + 1);
                return;
            }
        }
        if head == kept.len() {
            return;
        }
        head = (head * 8).min(kept.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature_micro: u32, top_k: u32, top_p_micro: u32, min_p_micro: u32) -> Sampling {
        Sampling { temperature_micro, top_k, top_p_micro, min_p_micro, ..Sampling::GREEDY }
    }

    fn histogram(logits: &[i32], s: &Sampling) -> Vec<u32> {
        let mut counts = vec![0; logits.len()];
        for position in 0..4_000 {
            counts[sample(logits, None, s, &[7; 32], position) as usize] += 1;
        }
        counts
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(argmax(&[1, 5, 5, 2]), 1);
        assert_eq!(sample(&[1, 5, 5, 2], None, &sampling(9_999, 0, 1_000_000, 0), &[0; 32], 0), 1);
        assert_eq!(histogram(&[0, 0, 0], &sampling(1_000_000, 1, 1_000_000, 0)), [4_000, 0, 0]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        // Probabilities 0.5, 0.25, 0.25 at temperature 1.
        let ln2 = (std::f64::consts::LN_2 * 65_536.0) as i32;
        let counts = histogram(&[ln2, 0, 0], &sampling(1_000_000, 0, 1_000_000, 0));
        assert!((1_850..2_150).contains(&counts[0]), "{counts:?}");
        let counts = histogram(&[ln2, 0, 0], &sampling(1_000_000, 0, 500_000, 0));
        assert_eq!(counts, [4_000, 0, 0]);
        let counts = histogram(&[ln2, 0, 0], &sampling(1_000_000, 0, 500_001, 0));
        assert_eq!(counts[2], 0);
        let counts = histogram(&[ln2, 0, 0], &sampling(1_000_000, 0, 1_000_000, 510_000));
        assert_eq!(counts[0], 4_000);
    }

    #[test]
    fn masked_tokens_are_never_chosen() {
        let logits = [9, 5, 5, 8].map(|l| l << 16);
        let mask = Mask::only(&[1, 2]);
        for t in [0, 1_000_000] {
            let ids: Vec<u32> = (0..99)
                .map(|p| sample(&logits, Some(&mask), &sampling(t, 0, 1_000_000, 0), &[3; 32], p))
                .collect();
            assert!(
                ids.contains(&1) && (t == 0 || ids.contains(&2)) && ids.iter().all(|id| [1, 2].contains(id))
            );
        }
        assert_eq!(sample(&logits, Some(&Mask::only(&[77])), &sampling(0, 0, 1_000_000, 0), &[3; 32], 0), 0);
    }

    #[test]
    fn extremes_stay_in_range() {
        let logits = [i32::MIN, i32::MAX, 0, i32::MAX];
        for t in [GREEDY_BELOW_MICRO, 1_000_000, 2_000_000] {
            for position in 0..100 {
                let id = sample(&logits, None, &sampling(t, 0, 999_999, 1), &[1; 32], position);
                assert!(id == 1 || id == 3);
            }
        }
    }

    #[test]
    fn a_long_nucleus_equals_a_full_sort() {
        let logits: Vec<i32> = (0..5_000).map(|i| ((i * 7_919) % 5_003) * 20).collect();
        for p in [1, 100_000, 900_000, 999_999] {
            let mut fast = likelihoods(&logits, 1_000_000, |_| true);
            let mut slow = fast.clone();
            keep_nucleus(&mut fast, p);
            slow.sort_unstable_by_key(Candidate::rank);
            let total: u128 = slow.iter().map(|c| u128::from(c.likelihood)).sum();
            let mut sum = 0;
            let n = slow.iter().position(|c| {
                sum += u128::from(c.likelihood);
                sum * MILLION >= total * u128::from(p)
            });
            slow.truncate(n.unwrap() + 1);
            assert_eq!(fast, slow);
        }
    }
}
