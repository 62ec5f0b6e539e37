//! The one source of chance: every draw of a run follows from its seed, on every machine alike.
//!
//! Streams are named, so that one part's draws do not move another's: a cheating provider and its honest twin are asked for the same
//! work. Chances are whole numbers of 2^-64, because the ledger's lottery compares 64 bits with a bound, and draws of many trials
//! at once are **exact**: no float decides.

/// A chance as the number of the 2^64 draws of 64 bits that win, 0 to 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u128);

impl Chance {
    /// It never happens.
    pub const NEVER: Chance = Chance(0);
    /// It always does.
    pub const ALWAYS: Chance = Chance(1 << 64);

    /// Of so many of the 2^64 draws; more than all of them is always.
    pub fn of_draws(winning: u128) -> Chance {
        Chance(winning.min(Self::ALWAYS.0))
    }

    /// Of millionths, rounded down to a 2^-64.
    pub fn ppm(ppm: u64) -> Chance {
        Self::of_draws((u128::from(ppm) << 64) / 1_000_000)
    }

    /// Whether 64 bits win.
    pub fn includes(self, draw: u64) -> bool {
        u128::from(draw) < self.0
    }

    /// As a number between 0 and 1, for statistics.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / 18_446_744_073_709_551_616.0
    }
}

/// A generator: xoshiro256**, filled by SplitMix64.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The stream of a seed that a name has: text for what it is for, numbers for which one.
    pub fn stream(seed: u64, name: &str, numbers: &[u64]) -> Random {
        let mut key = mixed(seed.wrapping_add(GOLDEN));
        for part in name.bytes().map(u64::from).chain([u64::MAX]).chain(numbers.iter().copied()) {
            key = mixed((key ^ part).wrapping_add(GOLDEN));
        }
        let state = std::array::from_fn(|i| mixed(key.wrapping_add(GOLDEN.wrapping_mul(i as u64 + 1))));
        Random { state }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number below `n`, each equally often; `n` is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a number below 0");
        // What is left of 2^64 after whole multiples of n would come too often.
        let excess = (u64::MAX % n).wrapping_add(1) % n;
        loop {
            let bits = self.bits();
            if bits <= u64::MAX - excess {
                return bits % n;
            }
        }
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below((high - low).saturating_add(1))
    }

    /// Whether something of this chance happens.
    pub fn happens(&mut self, chance: Chance) -> bool {
        chance.includes(self.bits())
    }

    /// How many of `trials` happen, each with this chance and on its own: exactly as often as if each were drawn alone.
    ///
    /// A trial wins if its 64 bits are below the bound. Bits are compared from the highest on, for all trials together: of those that are equal
    /// to the bound so far, each has a 1 next with one half, so that their number is the number of ones in as many random bits. Where the bound
    /// has a 1, those with a 0 have won; where it has a 0, those with a 1 have lost; the others go on. Half of them leave with each bit, so
    /// that a draw costs about one random bit in every trial, and a 32nd of a comparison.
    pub fn binomial(&mut self, trials: u64, chance: Chance) -> u64 {
        if chance == Chance::ALWAYS {
            return trials;
        }
        let bound = chance.0 as u64;
        let (mut equal, mut won) = (trials, 0);
        for bit in (0..64).rev() {
            // What is equal to the bound up to its last 1 does not get below it any more.
            let rest = bound & (u64::MAX >> (63 - bit));
            if equal == 0 || rest == 0 {
                break;
            }
            let ones = self.ones(equal);
            if bound >> bit & 1 == 1 {
                won += equal - ones;
                equal = ones;
            } else {
                equal -= ones;
            }
        }
        won
    }

    /// How many of `count` random bits are 1.
    fn ones(&mut self, count: u64) -> u64 {
        let mut ones = 0;
        for _ in 0..count / 64 {
            ones += u64::from(self.bits().count_ones());
        }
        let rest = count % 64;
        if rest > 0 {
            ones += u64::from((self.bits() >> (64 - rest)).count_ones());
        }
        ones
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_their_names() {
        let first = |seed, name: &str, numbers: &[u64]| Random::stream(seed, name, numbers).bits();
        assert_eq!(first(1, "a", &[2]), first(1, "a", &[2]));
        let all = [
            first(1, "a", &[2]),
            first(2, "a", &[2]),
            first(1, "b", &[2]),
            first(1, "a", &[3]),
            first(1, "a", &[]),
        ];
        for (i, x) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|y| y != x), "{all:?}");
        }
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // From the reference implementation of xoshiro256**, with this state.
        let mut random = Random { state: [1, 2, 3, 4] };
        let drawn: Vec<u64> = (0..4).map(|_| random.bits()).collect();
        assert_eq!(drawn, [11520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn chances_at_their_ends() {
        let mut random = Random::stream(1, "ends", &[]);
        assert_eq!(random.binomial(1000, Chance::NEVER), 0);
        assert_eq!(random.binomial(1000, Chance::ALWAYS), 1000);
        assert_eq!(random.binomial(0, Chance::ppm(500_000)), 0);
        assert_eq!(Chance::ppm(1_000_000), Chance::ALWAYS);
        assert!(Chance::ALWAYS.includes(u64::MAX) && !Chance::NEVER.includes(0));
        let all_but_one = Chance::of_draws((1 << 64) - 1);
        assert!(all_but_one.includes(u64::MAX - 1) && !all_but_one.includes(u64::MAX));
        assert_eq!(random.binomial(100_000, all_but_one), 100_000);
    }

    /// The distribution of 8 trials, each outcome as often as the formula says, within four standard deviations; and the same draws
    /// one by one.
    #[test]
    fn many_trials_at_once_are_as_often_as_one_by_one() {
        for ppm in [10_000, 300_000, 500_000, 990_000] {
            let chance = Chance::ppm(ppm);
            let p = chance.as_f64();
            let rounds = 40_000u32;
            let (mut together, mut alone) = ([0u32; 9], [0u32; 9]);
            let mut random = Random::stream(3, "binomial", &[ppm]);
            for _ in 0..rounds {
                together[random.binomial(8, chance) as usize] += 1;
                alone[(0..8).filter(|_| random.happens(chance)).count()] += 1;
            }
            let mut choose = 1.0;
            for k in 0..=8u32 {
                let share = choose * p.powi(k as i32) * (1.0 - p).powi(8 - k as i32);
                let (mean, deviation) =
                    (f64::from(rounds) * share, (f64::from(rounds) * share * (1.0 - share)).sqrt());
                for (name, counts) in [("together", together), ("alone", alone)] {
                    let off = (f64::from(counts[k as usize]) - mean).abs();
                    assert!(off <= 4.0 * deviation + 1.0, "{name} {ppm} {k}: {counts:?}, expected {mean}");
                }
                choose *= f64::from(8 - k) / f64::from(k + 1);
            }
        }
    }

    #[test]
    fn large_draws_have_mean_and_variance() {
        let mut random = Random::stream(5, "large", &[]);
        let (trials, rounds, chance) = (100_000u64, 2000u32, Chance::ppm(10_000));
        let drawn: Vec<f64> = (0..rounds).map(|_| random.binomial(trials, chance) as f64).collect();
        let mean = drawn.iter().sum::<f64>() / f64::from(rounds);
        let variance = drawn.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / f64::from(rounds - 1);
        // Standard deviations: of the mean 0.70, of the variance 31.
        assert!((mean - 1000.0).abs() < 2.8 && (variance - 990.0).abs() < 130.0, "{mean} {variance}");
    }

    #[test]
    fn numbers_below_are_all_there() {
        let mut random = Random::stream(7, "below", &[]);
        let mut seen = [0u32; 7];
        for _ in 0..7000 {
            seen[random.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
        assert_eq!((random.below(1), random.between(5, 5)), (0, 5));
    }
}
