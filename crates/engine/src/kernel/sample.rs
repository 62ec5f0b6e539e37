//! Choosing tokens, the likelihoods of all logits made at once.

use assay_core::request::Sampling;

use super::Kernel;
use crate::semantics::adjust::{History, Mask};
use crate::semantics::sample::{Against, sample_by};

impl Kernel {
    /// The token at `position` of an answer: what [`crate::semantics::sample::choose`] says.
    pub fn choose(
        self,
        logits: &[i32],
        history: &History,
        mask: Option<&Mask>,
        sampling: &Sampling,
        seed: &[u8; 32],
        position: u32,
    ) -> u32 {
        let each = |logits: &[i32], against: Against, out: &mut [u32]| {
            // SAFETY: the kernel runs here.
            unsafe { (self.functions.likelihoods)(logits, against, out) }
        };
        let adjusted = history.adjust(logits, sampling);
        sample_by(&each, adjusted.as_deref().unwrap_or(logits), mask, sampling, seed, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::sample::choose;

    #[test]
    fn every_kernel_chooses_as_the_reference_does() {
        let mut state = 3u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mask = Mask::only(&[2, 3, 40, 41, 42]);
        let history = History::new(&[3, 7]);
        for size in [0, 4, 17, 21, 32] {
            for n in [1usize, 15, 16, 17, 300] {
                let logits: Vec<i32> = (0..n).map(|_| (random() >> (64 - size).min(63)) as i32).collect();
                for (temperature_micro, top_k, top_p_micro, min_p_micro, bias) in [
                    (1_000_000, 0, 1_000_000, 0, vec![]),
                    (10_000, 0, 1_000_000, 0, vec![(3, 2_000_000)]),
                    (700_000, 40, 950_000, 0, vec![]),
                    (2_000_000, 0, 999_999, 10_000, vec![(0, -100_000_000)]),
                    (0, 0, 1_000_000, 0, vec![]),
                ] {
                    let sampling = Sampling {
                        temperature_micro,
                        top_k,
                        top_p_micro,
                        min_p_micro,
                        bias,
                        ..Sampling::GREEDY
                    };
                    for mask in [None, Some(&mask)] {
                        for position in 0..20 {
                            let seed = &[n as u8; 32];
                            let want = choose(&logits, &history, mask, &sampling, seed, position);
                            for kernel in Kernel::available() {
                                let got = kernel.choose(&logits, &history, mask, &sampling, seed, position);
                                assert_eq!(got, want, "{kernel:?}: {sampling:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
