//! Which positions are opened: drawn by a beacon after the trace was committed.

use assay_core::id::{Hash, ReceiptId};
use assay_core::keccak::keccak256;

use super::Fed;

const TAG: &[u8] = b"assay/light-draw/1";

/// What a provider has to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The beacon, which nobody knew when the trace was committed.
    pub beacon: Hash,
    /// The committed root of the trace.
    pub trace: Hash,
    /// How many tokens are opened, if there are so many: 1 to [`assay_core::limits::LIGHT_TOKENS_MAX`].
    pub tokens: u32,
}

impl Challenge {
    /// The positions to open for the receipt's answer, rising and distinct. The first that is drawn is one whose logits choose an output
    /// token; the others are any. With `v_j` the first 8 bytes, big-endian, of `keccak("assay/light-draw/1" ‖ beacon ‖ receipt id ‖ trace root ‖ j as 8
    /// bytes)`, a draw below `n` takes the next `v_j` that is below the largest multiple of `n` up to 2^64, modulo `n`; a position
    /// that was drawn already is drawn again.
    pub fn draw(&self, receipt: ReceiptId, fed: &Fed) -> Vec<u32> {
        let (positions, first) = (fed.positions(), fed.choices_from());
        let wanted = usize::try_from(self.tokens.min(positions)).unwrap_or(usize::MAX);
        let mut words = (0u64..).map(|j| {
            let hash = keccak256(&[
                TAG,
                self.beacon.as_bytes(),
                receipt.as_bytes(),
                self.trace.as_bytes(),
                &j.to_be_bytes(),
            ]);
            u64::from_be_bytes(hash.as_bytes().first_chunk().copied().unwrap_or_default())
        });
        let mut below = |n: u32| {
            let n = u64::from(n.max(1));
            let beyond = (u64::MAX % n).wrapping_add(1) % n;
            // 2^64 mod n numbers at the end are left out, so that every remainder is as likely.
            let v = words.find(|v| *v <= u64::MAX - beyond).unwrap_or(0);
            u32::try_from(v % n).unwrap_or(0)
        };
        let mut drawn = Vec::with_capacity(wanted);
        if wanted > 0 {
            drawn.push(first + below(positions.saturating_sub(first)));
        }
        while drawn.len() < wanted {
            let position = below(positions);
            if !drawn.contains(&position) {
                drawn.push(position);
            }
        }
        drawn.sort_unstable();
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(beacon: u8, tokens: u32) -> Challenge {
        Challenge { beacon: Hash::from_bytes([beacon; 32]), trace: Hash::ZERO, tokens }
    }

    #[test]
    fn draws_are_distinct_rising_and_hold_a_choice() {
        let fed = Fed::new(vec![1; 40], vec![2; 13]).unwrap();
        assert_eq!((fed.positions(), fed.choices_from()), (52, 39));
        for beacon in 0..200 {
            for tokens in [1, 2, 8, 51, 52, 60] {
                let drawn = challenge(beacon, tokens).draw(ReceiptId::ZERO, &fed);
                assert_eq!(drawn.len() as u32, tokens.min(52));
                assert!(drawn.is_sorted_by(|a, b| a < b));
                assert!(drawn.last().is_some_and(|p| (39..52).contains(p)));
            }
        }
        assert_ne!(challenge(1, 8).draw(ReceiptId::ZERO, &fed), challenge(2, 8).draw(ReceiptId::ZERO, &fed));
        let one = Fed::new(vec![1], vec![2]).unwrap();
        assert_eq!(challenge(1, 3).draw(ReceiptId::ZERO, &one), [0]);
    }

    #[test]
    fn every_position_is_as_likely_as_another() {
        let fed = Fed::new(vec![1; 7], vec![2; 4]).unwrap();
        let (mut counts, trials) = ([0u32; 10], 20_000u32);
        for i in 0..trials {
            let mut beacon = [0; 32];
            beacon[..4].copy_from_slice(&i.to_be_bytes());
            let c = Challenge { beacon: Hash::from_bytes(beacon), trace: Hash::ZERO, tokens: 2 };
            c.draw(ReceiptId::ZERO, &fed).into_iter().for_each(|p| counts[p as usize] += 1);
        }
        // The first draw is one of positions 6 to 9, the second any of the nine others.
        for (p, count) in counts.into_iter().enumerate() {
            let want = if p < 6 { trials / 9 } else { trials / 4 + trials / 12 };
            assert!(count.abs_diff(want) < 300, "position {p}: {count} of {want}");
        }
    }
}
