//! The formulas by which the contracts count, over the same whole numbers (`docs/ledger.md`, sections 4, 7, 9 and 10).
//!
//! Invariant: for every input that the contracts accept, the result is theirs to the unit; `tests/model` compares in revm. Nothing
//! here holds money or decides what happens.

use assay_ledger::audits::assigned_by;
pub use assay_ledger::audits::{average_rate_ppm, receipts_max};
use assay_ledger::contracts::Directory::Parameters;

use crate::random::Chance;

/// A million millionths.
pub const PPM: u64 = 1_000_000;

fn part(amount: u64, ppm: u64) -> u64 {
    (u128::from(amount) * u128::from(ppm) / u128::from(PPM)) as u64
}

/// The lottery's chance for a receipt (7.4), as the number of draws of 64 bits that win: `u` does if `u · 10⁶ < rateMin · 2⁶⁴` or
/// `u · 10⁶ · (fee + backing) < savings · fee · 2⁶⁴`.
pub fn chance(fee: u64, backing: u64, savings_ppm: u32, rate_min_ppm: u32) -> Chance {
    let least = (u128::from(rate_min_ppm) << 64).div_ceil(u128::from(PPM));
    let wins = u128::from(savings_ppm) * u128::from(fee);
    let of = u128::from(PPM) * (u128::from(fee) + u128::from(backing));
    Chance::of_draws(least.max(scaled_up(wins, of)))
}

/// `⌈wins · 2⁶⁴ / of⌉`, for both below 2⁸⁶; 2⁶⁴ where `wins` is not below `of`, and 0 where there is nothing to divide by.
fn scaled_up(wins: u128, of: u128) -> u128 {
    if of == 0 || wins == 0 {
        return 0;
    }
    if wins >= of {
        return 1 << 64;
    }
    let (high, rest) = ((wins << 32) / of, (wins << 32) % of);
    let (low, rest) = ((rest << 32) / of, (rest << 32) % of);
    (high << 32) + low + u128::from(rest > 0)
}

/// Members of a batch's panel (7.4); none where more audits are expected than a panel can do, and the batch is refused.
pub fn panel(count: u32, rate_ppm: u64, p: &Parameters) -> Option<u8> {
    let expected = (u64::from(count) * rate_ppm).div_ceil(PPM);
    if expected > u64::from(p.rates.panelMax) * u64::from(p.rates.auditsPerMember) {
        return None;
    }
    let members = expected.div_ceil(u64::from(p.rates.auditsPerMember));
    Some((members as u8).max(p.rates.panelMin))
}

/// Where a batch's fees go (7.3). Parts sum to the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// The model's owner.
    pub royalty: u64,
    /// Its hosts.
    pub hosts: u64,
    /// The treasury.
    pub protocol: u64,
    /// The panel, in equal parts.
    pub auditors: u64,
    /// The provider: what is left.
    pub provider: u64,
}

/// The split of a batch of one model. `royalty_ppm` is 0 for a model without a listing.
pub fn split(total: u64, rate_ppm: u64, members: u8, royalty_ppm: u32, p: &Parameters) -> Split {
    let auditors_ppm = (rate_ppm * u64::from(p.split.auditCostPpm) / PPM).max(p.split.auditorsMinPpm.into());
    let auditors = part(total, auditors_ppm) / u64::from(members) * u64::from(members);
    let (royalty, hosts) = (part(total, royalty_ppm.into()), part(total, p.split.hostsPpm.into()));
    let protocol = part(total, p.split.protocolPpm.into());
    Split { royalty, hosts, protocol, auditors, provider: total - auditors - protocol - royalty - hosts }
}

/// What a receipt of a struck provider's open batch is worth to its payer (7.5), before the caps of channel and escrow.
pub fn refund(fee: u64, total: u64, auditors: u64) -> u64 {
    match total {
        0 => fee,
        _ => (u128::from(fee) * u128::from(total - auditors) / u128::from(total)) as u64,
    }
}

/// What a slash takes, and who gets it (4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slash {
    /// Of the stake.
    pub stake: u64,
    /// Of what is unbonding.
    pub unbonding: u64,
    /// The reporter's part of both.
    pub reporter: u64,
    /// The treasury's.
    pub treasury: u64,
}

/// Takes `amount`, the stake first.
pub fn slash(stake: u64, unbonding: u64, amount: u64, reporter_ppm: u32) -> Slash {
    let from_stake = amount.min(stake);
    let from_unbonding = (amount - from_stake).min(unbonding);
    let taken = from_stake + from_unbonding;
    let reporter = part(taken, reporter_ppm.into());
    Slash { stake: from_stake, unbonding: from_unbonding, reporter, treasury: taken - reporter }
}

/// The member of a panel that audits a drawn receipt, and the one that does so again, if any (7.4). The three numbers are 8 bytes of the draw
/// each, from its end.
pub fn members(draw: [u64; 3], panel: u8, second_ppm: u32) -> (usize, Option<usize>) {
    let assigned = assigned_by(draw, panel, second_ppm).expect("a batch that is audited has a panel");
    (assigned.first.into(), assigned.second.map(usize::from))
}

/// Fractions of a unit that sources' income is kept in: 2^-56.
pub const FRACTION_BITS: u32 = 56;

/// A listing's pledges and what they share equally (10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Income of one pledge from the beginning on.
    pub per_pledge: u128,
    /// How many are in force.
    pub pledges: u64,
    /// What did not divide.
    pub dust: u64,
}

impl Pool {
    /// Shares an amount. Gives back what goes to the treasury, because there is no pledge.
    pub fn share(&mut self, amount: u64) -> u64 {
        let whole = amount + self.dust;
        if self.pledges == 0 {
            self.dust = 0;
            return whole;
        }
        self.per_pledge += u128::from(whole / self.pledges);
        self.dust = whole % self.pledges;
        0
    }
}

/// From whom one provider fetched a listing (10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Income of one byte from the beginning on, in fractions.
    pub per_byte: u128,
    /// Bytes of all its hosts.
    pub bytes: u64,
    /// Fractions that did not divide.
    pub dust: u64,
}

impl Sources {
    /// Takes the sources' part of an income; gives back the pledges'.
    pub fn take(&mut self, amount: u64, fetched_ppm: u32) -> u64 {
        if self.bytes == 0 {
            return amount;
        }
        let fetched = part(amount, fetched_ppm.into());
        let whole = (u128::from(fetched) << FRACTION_BITS) + u128::from(self.dust);
        self.per_byte += whole / u128::from(self.bytes);
        self.dust = (whole % u128::from(self.bytes)) as u64;
        amount - fetched
    }
}

/// One host among a provider's sources (10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// What it was credited with.
    pub seen: u128,
    /// Fractions credited and not collected.
    pub earned: u128,
    /// Bytes fetched from it.
    pub bytes: u64,
}

impl Source {
    /// Counts a receipt of so many bytes since ever. One that has nothing new counts for nothing.
    pub fn served(&mut self, all: &mut Sources, bytes: u64) {
        if bytes > self.bytes {
            self.earned = self.owed(all);
            self.seen = all.per_byte;
            all.bytes += bytes - self.bytes;
            self.bytes = bytes;
        }
    }

    /// Fractions that it is owed.
    pub fn owed(&self, all: &Sources) -> u128 {
        self.earned + u128::from(self.bytes) * (all.per_byte - self.seen)
    }

    /// Takes the whole units of what it is owed.
    pub fn collect(&mut self, all: &Sources) -> u64 {
        let owed = self.owed(all);
        let units = owed >> FRACTION_BITS;
        self.earned = owed - (units << FRACTION_BITS);
        self.seen = all.per_byte;
        units as u64
    }
}

#[cfg(test)]
mod tests {
    use assay_ledger::deployment::parameters;

    use super::*;

    #[test]
    fn the_table_of_the_document() {
        // Economics, section 2: p at s/q = 1 for F / f of 0, 1, 9, 99, 999.
        for (backing, p) in [(0, 1.0), (1, 0.5), (9, 0.1), (99, 0.01), (999, 0.01)] {
            let chance = chance(1_000_000, backing * 1_000_000, 1_000_000, 10_000).as_f64();
            assert!((chance - p).abs() < 1e-12, "{backing}: {chance}");
        }
        assert_eq!(chance(0, 0, 1_000_000, 0), Chance::NEVER);
        assert_eq!(chance(u64::MAX, 0, 1_000_000, 0), Chance::ALWAYS);
    }

    #[test]
    fn a_newcomer_and_a_rich_provider() {
        let p = parameters();
        // Nothing at stake: every receipt, 24 % for auditors, protocol and hosts.
        let rate = average_rate_ppm(1_000_000, 100, 0, p.rates.savingsPpm, p.rates.rateMinPpm);
        assert_eq!((rate, panel(100, rate, &p)), (PPM, Some(2)));
        let parts = split(1_000_000, rate, 2, 0, &p);
        assert_eq!(
            (parts.auditors, parts.protocol, parts.hosts, parts.provider),
            (200_000, 10_000, 30_000, 760_000)
        );
        // A hundred mean fees and more: the least rate, 94 %.
        let rate = average_rate_ppm(1_000_000, 100, 1_000_000, p.rates.savingsPpm, p.rates.rateMinPpm);
        assert_eq!(rate, 10_000);
        assert_eq!(split(1_000_000, rate, 2, 0, &p).provider, 940_000);
        // 4096 receipts with nothing at stake, and not one more.
        assert_eq!((panel(4096, PPM, &p), panel(4097, PPM, &p)), (Some(16), None));
        assert_eq!(receipts_max(4096, 4096, 0, &p), 4096);
    }

    #[test]
    fn what_does_not_divide_stays() {
        let mut pool = Pool { pledges: 3, ..Pool::default() };
        assert_eq!((pool.share(10), pool.per_pledge, pool.dust), (0, 3, 1));
        assert_eq!((pool.share(2), pool.per_pledge, pool.dust), (0, 4, 0));
        pool.pledges = 0;
        assert_eq!(pool.share(7), 7);
        let (mut all, mut one, mut two) = (Sources::default(), Source::default(), Source::default());
        assert_eq!(all.take(100, 500_000), 100, "without receipts all is the pledges'");
        one.served(&mut all, 1);
        two.served(&mut all, 2);
        one.served(&mut all, 1);
        assert_eq!(all.take(101, 500_000), 51);
        assert_eq!((one.collect(&all), two.collect(&all)), (16, 33));
        assert_eq!(one.collect(&all), 0);
        let parts = one.owed(&all) + two.owed(&all) + u128::from(all.dust);
        assert_eq!(parts, 1 << FRACTION_BITS, "one unit is left in fractions");
    }

    #[test]
    fn slashes_take_what_there_is() {
        assert_eq!(slash(10, 5, 12, 100_000), Slash { stake: 10, unbonding: 2, reporter: 1, treasury: 11 });
        assert_eq!(slash(10, 5, 100, 500_000), Slash { stake: 10, unbonding: 5, reporter: 7, treasury: 8 });
    }
}
