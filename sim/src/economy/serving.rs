//! Providers: what they are asked for, what of it they execute, and what they keep at stake.

use super::{Economy, Server, Work};
use crate::events::Events;
use crate::formulas::{self, PPM};
use crate::ledger::{ChannelId, Lot};
use crate::plan::{Backing, Class, Conduct};
use crate::random::{Chance, Random};

/// Demand of an epoch: as the class says, a fifth more or less; small numbers exactly.
fn asked(class: &Class, random: &mut Random) -> u64 {
    match class.requests {
        0..10 => class.requests,
        n => n * random.between(800, 1200) / 1000,
    }
}

impl Server {
    /// Receipts that cost nothing: of its own payments, and without a fee.
    fn extra(&self) -> (u64, u64) {
        match self.plan.conduct {
            Conduct::Washes { receipts, fee } => (receipts, fee),
            Conduct::Pads { receipts } => (receipts, 0),
            _ => (0, 0),
        }
    }

    /// The share of this epoch's answers that are not executed.
    fn wrong(&self, backing: u64) -> Chance {
        match self.plan.conduct {
            Conduct::Cheap { share_ppm, from } if backing >= from => Chance::ppm(share_ppm),
            Conduct::Exits { every, share_ppm, .. } if self.age + 1 == every => Chance::ppm(share_ppm),
            _ => Chance::NEVER,
        }
    }
}

impl Economy {
    /// A provider answers an epoch's requests, claims what they pay and posts them.
    pub(super) fn serve(&mut self, i: usize, open: bool, events: &mut Events<'_>) {
        let server = &mut self.servers[i];
        server.posted.clear();
        if !open || server.leaving.is_some() {
            return;
        }
        let who = server.who;
        let counts: Vec<u64> = server.plan.demand.iter().map(|c| asked(c, &mut server.demand)).collect();
        let backing = self.ledger.stake_of(who).stake;
        let counts = self.auditable(i, counts, backing);
        let server = &self.servers[i];
        let (demand, wrong) = (server.plan.demand.clone(), server.wrong(backing));
        let (lanes, own, cheap_ppm) = (server.lanes.clone(), server.own, server.plan.cheap_ppm);
        let (extra, extra_fee) = server.extra();
        let mut lots = Vec::new();
        let (mut posted, mut cost) = (Vec::new(), 0);
        for (class, n) in demand.iter().zip(counts) {
            let n = self.pay(&lanes, class.fee, n, &mut lots);
            let cheated = self.draws.binomial(n, wrong);
            cost += (n - cheated) * class.cost + cheated * (class.cost * cheap_ppm / PPM);
            let work = Work { fee: class.fee, cost: class.cost, right: n - cheated, wrong: cheated };
            self.totals.answered(&work);
            posted.push(work);
        }
        if extra > 0 {
            let lane: Vec<ChannelId> = own.or(lanes.first().copied()).into_iter().collect();
            let n = self.pay(&lane, extra_fee, extra, &mut lots);
            posted.push(Work { fee: extra_fee, cost: 0, right: n, wrong: 0 });
        }
        self.ledger.work(who, cost);
        self.claim(&lots);
        let model = self.servers[i].plan.model;
        match self.ledger.post(who, model, lots) {
            Ok(batch) => {
                let (count, total, panel) = (batch.count, batch.total, batch.panel);
                self.totals.posted += 1;
                events.tell(self.epoch, || {
                    let wrong: u64 = posted.iter().map(|w| w.wrong).sum();
                    format!(
                        "posted by {}: {count} receipts of {total}, {wrong} wrong, backing {backing}, panel of {panel}",
                        who.0
                    )
                });
                self.servers[i].posted = posted;
            }
            Err(refused) => events.tell(self.epoch, || format!("refused from {}: {refused:?}", who.0)),
        }
        self.servers[i].age += 1;
        self.leave(i);
    }

    /// How many requests of each class a provider accepts: no more than a panel can audit at the rate of their mean fee. It refuses the others
    /// before it has executed them.
    fn auditable(&self, i: usize, mut counts: Vec<u64>, backing: u64) -> Vec<u64> {
        let server = &self.servers[i];
        let (extra, extra_fee) = server.extra();
        loop {
            let count = counts.iter().sum::<u64>() + extra;
            let fees: u64 = server.plan.demand.iter().zip(&counts).map(|(c, n)| c.fee * n).sum();
            let most = formulas::receipts_max(
                fees + extra * extra_fee,
                u32::try_from(count).unwrap_or(u32::MAX),
                backing,
                &self.ledger.p,
            );
            if count <= most || counts.iter().all(|n| *n == 0) {
                return counts;
            }
            for n in &mut counts {
                *n = (*n * most / count).min(n.saturating_sub(1));
            }
        }
    }

    /// Spreads receipts over channels, as far as these are covered. Returns how many there are.
    fn pay(&mut self, lanes: &[ChannelId], fee: u64, count: u64, lots: &mut Vec<Lot>) -> u64 {
        let (mut left, mut paid) = (count, 0);
        for (i, channel) in lanes.iter().enumerate() {
            let share = left.div_ceil((lanes.len() - i) as u64);
            left -= share;
            let pending: u64 = lots.iter().filter(|l| l.channel == *channel).map(|l| l.fee * l.count).sum();
            let covered = self.ledger.fund(*channel, pending + fee * share);
            let n = covered.saturating_sub(pending).checked_div(fee).unwrap_or(share).min(share);
            if n > 0 {
                lots.push(Lot { channel: *channel, fee, count: n });
                paid += n;
            }
        }
        paid
    }

    fn claim(&mut self, lots: &[Lot]) {
        let mut done: Vec<ChannelId> = Vec::new();
        for lot in lots {
            if !done.contains(&lot.channel) {
                done.push(lot.channel);
                let of_channel = lots.iter().filter(|l| l.channel == lot.channel);
                let amount: u64 = of_channel.map(|l| l.fee * l.count).sum();
                if amount > 0 {
                    self.ledger.claim(lot.channel, amount);
                }
            }
        }
    }

    /// Who leaves takes out everything, before its last epoch is posted or after.
    fn leave(&mut self, i: usize) {
        let server = &self.servers[i];
        let (who, age) = (server.who, server.age);
        if let Conduct::Exits { every, unbonds_first, .. } = server.plan.conduct {
            if age == every {
                self.servers[i].leaving = Some(self.back_again());
            }
            if age == every || (unbonds_first && age + 1 == every) {
                self.ledger.unbond(who, u64::MAX);
            }
        }
    }

    /// When somebody who stops now has all its stake: the last batch is released an epoch later, and takes as long as the rest.
    pub(super) fn back_again(&self) -> u64 {
        let times = &self.ledger.p.times;
        self.epoch + 1 + u64::from(times.unbondSeconds).div_ceil(u64::from(times.epochSeconds))
    }

    /// After a release, a provider keeps what it wants to have at stake.
    pub(super) fn manage(&mut self, i: usize) {
        let server = &self.servers[i];
        let who = server.who;
        let node = self.ledger.stake_of(who);
        match server.plan.backing {
            Backing::Fixed(amount) if node.stake > amount => {
                self.ledger.take_out_at_once(who, node.stake - amount);
            }
            Backing::Fixed(amount) => {
                self.ledger.bond(who, amount - node.stake);
            }
            Backing::Grows(amount) => {
                self.ledger.withdraw(who);
                let node = self.ledger.stake_of(who);
                if let Some(until) = self.servers[i].leaving {
                    self.ledger.unbond(who, node.stake);
                    if self.epoch >= until && self.ledger.stake_of(who).unbonding == 0 {
                        (self.servers[i].leaving, self.servers[i].age) = (None, 0);
                        self.ledger.burn(who, self.ledger.prices.enrol);
                    }
                } else if node.unbonding == 0 && node.stake > amount {
                    self.ledger.unbond(who, node.stake - amount);
                }
            }
        }
    }
}
