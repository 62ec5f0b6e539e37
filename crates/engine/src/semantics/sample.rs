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
///
/// [`crate::kernel::Kernel::choose`] is the same, faster.
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
    let each = |logits: &[i32], against: Against, out: &mut [u32]| {
        out.iter_mut().zip(logits).for_each(|(o, l)| *o = against.likelihood(*l));
    };
    sample_by(&each, logits, mask, sampling, seed, position)
}

/// Makes the likelihood of each logit.
pub(crate) type Each<'a> = &'a dyn Fn(&[i32], Against, &mut [u32]);

/// [`sample`] with whatever makes the likelihoods of all logits.
pub(crate) fn sample_by(
    each: Each<'_>,
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
    let best = logits.iter().enumerate().filter(|(id, _)| allowed(*id)).map(|(_, l)| *l).max();
    let against = Against::new(best.unwrap_or(0), sampling.temperature_micro);
    let mut all = vec![0u32; logits.len()];
    each(logits, against, &mut all);
    if let Some(mask) = mask {
        all.iter_mut().enumerate().filter(|(id, _)| !mask.allows(*id)).for_each(|(_, l)| *l = 0);
    }
    let chosen = if cuts(sampling) {
        let mut kept = candidates(&all);
        keep_top(&mut kept, sampling);
        kept.sort_unstable_by_key(|c| c.id);
        drawn(kept.iter().map(|c| (c.id, c.likelihood)), seed, position)
    } else {
        drawn((0u32..).zip(all.iter().copied()), seed, position)
    };
    chosen.unwrap_or_else(|| argmax_of(logits, allowed))
}

/// Whether some tokens are left out for being unlikely.
fn cuts(sampling: &Sampling) -> bool {
    sampling.top_k != 0 || u128::from(sampling.top_p_micro) < MILLION || sampling.min_p_micro > 0
}

/// The token that the draw falls on, of tokens in order of their ids.
fn drawn(kept: impl Iterator<Item = (u32, u32)> + Clone, seed: &[u8; 32], position: u32) -> Option<u32> {
    let total: u64 = kept.clone().map(|(_, l)| u64::from(l)).sum();
    let target = ((u128::from(draw(seed, position)) * u128::from(total)) >> 64) as u64;
    let mut sum = 0;
    for (id, likelihood) in kept {
        sum += u64::from(likelihood);
        if sum > target {
            return Some(id);
        }
    }
    None
}

/// The best logit at a temperature: what likelihoods are relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Against {
    factor: i32,
    best: i32,
}

impl Against {
    fn new(best: i32, temperature_micro: u32) -> Against {
        // Temperatures that get here are at least 10 000: the quotient has 28 bits.
        let factor = (LOG2E_MILLION_Q20 / i64::from(temperature_micro.max(GREEDY_BELOW_MICRO))) as i32;
        Against { factor, best: exponent(best, factor) }
    }

    /// The likelihood of a logit no larger than the best; of a larger one, anything.
    #[inline(always)]
    pub(crate) const fn likelihood(self, logit: i32) -> u32 {
        exp2_likelihood(self.best.wrapping_sub(exponent(logit, self.factor)) as u32)
    }
}

#[inline(always)]
const fn exponent(logit: i32, factor: i32) -> i32 {
    shift_sat(logit as i64 * factor as i64, 20)
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// Tokens whose likelihood does not round to 0, in order of ids.
fn candidates(likelihoods: &[u32]) -> Vec<Candidate> {
    // Which round to 0 is as good as random: writing all, and over those, is faster than a branch.
    let mut kept = vec![Candidate::default(); likelihoods.len()];
    let mut count = 0;
    for (id, likelihood) in (0u32..).zip(likelihoods) {
        kept[count] = Candidate { likelihood: *likelihood, id };
        count += usize::from(*likelihood > 0);
    }
    kept.truncate(count);
    kept
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
            let against = Against::new(*logits.iter().max().unwrap(), 1_000_000);
            let mut fast = candidates(&logits.iter().map(|l| against.likelihood(*l)).collect::<Vec<_>>());
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
