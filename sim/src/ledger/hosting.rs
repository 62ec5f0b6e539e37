//! Listings, pledges and what they share (`docs/ledger.md`, section 10).

use super::{Flow, Ledger, Place, Who};
use crate::formulas::Pool;

/// Which pledge of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PledgeId(usize);

/// A host's promise.
#[derive(Clone, Copy, Debug)]
pub struct Pledge {
    host: Who,
    seen: u128,
    earned: u64,
    /// Not ended.
    open: bool,
}

/// A model's entry.
#[derive(Clone, Debug)]
pub struct Listing {
    pub(super) owner: Who,
    pub(super) royalty_ppm: u32,
    pub(super) pool: Pool,
    pledges: Vec<Pledge>,
}

impl Listing {
    pub(super) fn owed(&self) -> u128 {
        let of = |p: &Pledge| u128::from(p.earned) + if p.open { self.pool.per_pledge - p.seen } else { 0 };
        self.pledges.iter().map(of).sum::<u128>() + u128::from(self.pool.dust)
    }
}

impl Ledger {
    /// Lists a model. Returns its number.
    pub fn list(&mut self, owner: Who, royalty_ppm: u32) -> usize {
        self.listings.push(Listing { owner, royalty_ppm, pool: Pool::default(), pledges: Vec::new() });
        self.listings.len() - 1
    }

    /// Pledges to keep a model; none where the stake is not there.
    pub fn pledge(&mut self, model: usize, host: Who) -> Option<PledgeId> {
        if !self.reserve(host, self.p.stakes.pledgeStake) {
            return None;
        }
        self.burn(host, self.prices.pledge);
        let listing = &mut self.listings[model];
        listing.pool.pledges += 1;
        listing.pledges.push(Pledge { host, seen: listing.pool.per_pledge, earned: 0, open: true });
        Some(PledgeId(listing.pledges.len() - 1))
    }

    /// An answer: what the pledge has earned so far is confirmed.
    pub fn answer(&mut self, model: usize, pledge: PledgeId) {
        let listing = &mut self.listings[model];
        let p = &mut listing.pledges[pledge.0];
        if p.open {
            p.earned += (listing.pool.per_pledge - p.seen) as u64;
            p.seen = listing.pool.per_pledge;
        }
        let host = p.host;
        self.burn(host, self.prices.answer);
    }

    /// A question without an answer: the pledge ends, its stake is taken, and what was not confirmed goes to the others.
    pub fn fail(&mut self, model: usize, pledge: PledgeId, reporter: Who) {
        let stake = self.p.stakes.pledgeStake;
        let listing = &mut self.listings[model];
        let p = &mut listing.pledges[pledge.0];
        assert!(p.open, "a pledge ends once");
        p.open = false;
        let (host, unconfirmed) = (p.host, (listing.pool.per_pledge - p.seen) as u64);
        listing.pool.pledges -= 1;
        let left =
            if unconfirmed > 0 || listing.pool.pledges == 0 { listing.pool.share(unconfirmed) } else { 0 };
        self.shift(Place::Hosts, Place::Treasury, left);
        self.accounts[host.at()].node.reserved -= stake;
        self.slash(host, stake, reporter);
        self.burn(reporter, self.prices.failure);
    }

    /// Pays what was confirmed.
    pub fn collect(&mut self, model: usize, pledge: PledgeId) {
        let p = &mut self.listings[model].pledges[pledge.0];
        let (host, amount) = (p.host, std::mem::take(&mut p.earned));
        if amount > 0 {
            self.give(Place::Hosts, host, amount, Flow::Hosting);
            self.burn(host, self.prices.collect_pledge);
        }
    }
}
