//! Weighted rendezvous hashing in integers: every host ranks every host for a release alike, without asking anyone.
//!
//! A host of weight *w* whose hash is the fraction *u* costs `-log2(u) / w`; the cheapest is first. These costs are independent and
//! exponentially distributed with rate *w*, so a host is first with probability *w* over the sum of all weights, and a host
//! that joins or leaves moves only what it gains or loses. The logarithm has 32 fractional bits and is made of multiplications
//! alone; costs are compared exactly, by cross-multiplication.

use std::cmp::Ordering;

use super::HostId;
use crate::blob::BlobHash;

/// Bytes of capacity that make one of weight.
pub const WEIGHT_BYTES: u64 = 1 << 30;
/// Greatest weight: a host that claims more than 64 TiB is asked to keep no more than one with 64 TiB, so that a claim alone attracts
/// a bounded share.
pub const WEIGHT_MAX: u64 = 64 << 10;

/// The weight of a host that offers `capacity` bytes in all: at least 1.
pub const fn weight(capacity: u64) -> u64 {
    let weight = capacity / WEIGHT_BYTES;
    if weight == 0 {
        1
    } else if weight > WEIGHT_MAX {
        WEIGHT_MAX
    } else {
        weight
    }
}

/// `-log2` of the fraction that a release's hash with a host is, in 2^-32: at most 64 · 2^32.
pub(super) fn toll(release: BlobHash, host: HostId) -> u64 {
    // 64 bytes are one block, so that a rank costs one compression.
    let mut block = [0; 64];
    block[..12].copy_from_slice(b"assay/rank/1");
    block[12..44].copy_from_slice(release.as_bytes());
    block[44..].copy_from_slice(&host.0);
    let hash = blake3::hash(&block);
    let draw = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"));
    minus_log2(draw)
}

/// `-log2((draw + 1) / 2^64)` in 2^-32, rounded up.
fn minus_log2(draw: u64) -> u64 {
    const FRACTION_BITS: u32 = 32;
    let Some(value) = draw.checked_add(1) else { return 0 };
    let whole = value.ilog2();
    // The mantissa in [1, 2) with 63 fractional bits; squaring it doubles its logarithm.
    let mut mantissa = value << (63 - whole);
    let mut fraction = 0u64;
    for _ in 0..FRACTION_BITS {
        // One multiplication of words: this loop is most of what a step costs.
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let carry = (square >> 64) as u64;
        fraction = fraction << 1 | carry;
        mantissa = (square >> carry) as u64;
    }
    (64 << FRACTION_BITS) - (u64::from(whole) << FRACTION_BITS | fraction)
}

/// Where a host stands for a release; less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) toll: u64,
    pub(super) weight: u64,
    pub(super) host: HostId,
}

impl Ord for Cost {
    fn cmp(&self, other: &Cost) -> Ordering {
        let mine = u128::from(self.toll) * u128::from(other.weight);
        let theirs = u128::from(other.toll) * u128::from(self.weight);
        mine.cmp(&theirs).then(self.host.cmp(&other.host))
    }
}

impl PartialOrd for Cost {
    fn partial_cmp(&self, other: &Cost) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_right_to_its_last_bits() {
        let draws = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + (1 << bit) / 3]);
        for draw in draws.chain([u64::MAX, u64::MAX - 1, 12_345_678_901_234_567]) {
            let exact = 64.0 - (draw as f64 + 1.0).log2();
            let got = minus_log2(draw) as f64 / (1u64 << 32) as f64;
            assert!((got - exact).abs() < 1e-9, "{draw}: {got} is not {exact}");
        }
        assert_eq!(minus_log2(u64::MAX), 0);
        assert_eq!(minus_log2(0), 64 << 32);
        assert_eq!(minus_log2((1 << 63) - 1), 1 << 32);
    }

    #[test]
    fn weights_have_a_least_and_a_greatest() {
        assert_eq!(weight(0), 1);
        assert_eq!(weight(WEIGHT_BYTES - 1), 1);
        assert_eq!(weight(2 * WEIGHT_BYTES), 2);
        assert_eq!(weight(WEIGHT_MAX * WEIGHT_BYTES), WEIGHT_MAX);
        assert_eq!(weight((WEIGHT_MAX + 1) * WEIGHT_BYTES), WEIGHT_MAX);
        assert_eq!(weight(u64::MAX), WEIGHT_MAX);
    }

    #[test]
    fn first_places_are_as_frequent_as_weights() {
        let hosts = [1u64, 2, 5];
        let mut first = [0u32; 3];
        for release in 0u32..4000 {
            let release = BlobHash::of(&release.to_le_bytes());
            let cost = |i: usize| {
                let host = HostId([i as u8; 20]);
                Cost { toll: toll(release, host), weight: hosts[i], host }
            };
            let best = (0..3).min_by_key(|i| cost(*i)).unwrap();
            first[best] += 1;
        }
        for (got, weight) in first.iter().zip(hosts) {
            let expected = 500 * weight as i64;
            assert!((i64::from(*got) - expected).abs() < 150, "{first:?}");
        }
    }
}
