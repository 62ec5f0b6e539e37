//! Channels, batches, release and refunds (`docs/ledger.md`, sections 5 and 7).

use super::{Flow, Ledger, Place, Who};
use crate::formulas::{self, Source, Sources, Split};

/// Which channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelId(usize);

/// A payer's deposit for one provider.
#[derive(Clone, Debug)]
pub struct Channel {
    payer: Who,
    receiver: Who,
    pub(super) balance: u64,
    pub(super) claimed: u64,
    /// Claims by the receiver's periods, the three latest that had any: period, what was claimed in it, what of it came back.
    periods: [Option<(u32, u64, u64)>; 3],
}

impl Channel {
    fn period(&mut self, period: u32) -> Option<&mut (u32, u64, u64)> {
        self.periods.iter_mut().flatten().find(|(p, ..)| *p == period)
    }
}

/// Receipts of one fee in one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lot {
    /// Whose.
    pub channel: ChannelId,
    /// Of each.
    pub fee: u64,
    /// How many.
    pub count: u64,
}

/// A posted epoch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Of which epoch.
    pub epoch: u64,
    /// How many receipts.
    pub count: u32,
    /// Sum of their fees.
    pub total: u64,
    /// Stake when it was posted.
    pub backing: u64,
    /// Members of its panel.
    pub panel: u8,
    /// Where the total goes.
    pub split: Split,
    /// Who gets a member's part: nobody where it has no auditor or was penalised.
    pub paid: Vec<Option<Who>>,
    model: usize,
    period: u32,
    lots: Vec<Lot>,
}

/// Why a batch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are no receipts, or more than a batch can have.
    BadCount,
    /// More than what was claimed.
    TotalTooHigh,
    /// More audits than a panel can do.
    TooManyAudits,
}

/// What `Epochs` keeps of a provider, and what `Retrieval` keeps of its sources.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    pot: u64,
    posts: u32,
    open: Vec<Batch>,
    channels: Vec<ChannelId>,
    pub(super) sources: Sources,
    pub(super) fetched: Vec<(Who, Source)>,
}

impl Book {
    pub(super) fn owed(&self) -> u64 {
        self.pot + self.open.iter().map(|b| b.total).sum::<u64>()
    }

    pub(super) fn owed_to_sources(&self) -> u128 {
        let owed: u128 = self.fetched.iter().map(|(_, s)| s.owed(&self.sources)).sum();
        owed + u128::from(self.sources.dust)
    }
}

const COUNT_MAX: u64 = 1 << 24;

impl Ledger {
    // ---- channels

    /// A channel without a deposit.
    pub fn open_channel(&mut self, payer: Who, receiver: Who) -> ChannelId {
        let id = ChannelId(self.channels.len());
        self.channels.push(Channel { payer, receiver, balance: 0, claimed: 0, periods: [None; 3] });
        self.books[receiver.at()].channels.push(id);
        id
    }

    /// Brings what can be claimed from a channel to at least `amount`, by a deposit of up to ten times that; as far as its payer has money.
    pub fn fund(&mut self, channel: ChannelId, amount: u64) -> u64 {
        let c = &mut self.channels[channel.0];
        let free = c.balance - c.claimed;
        if free >= amount {
            return amount;
        }
        let payer = &mut self.accounts[c.payer.at()];
        let deposit = amount.saturating_mul(10).min(payer.vault);
        payer.vault -= deposit;
        payer.deposited += deposit;
        payer.gas += self.prices.fund;
        c.balance += deposit;
        self.shift(Place::Vault, Place::Channels, deposit);
        (free + deposit).min(amount)
    }

    /// Claims an amount that the channel covers into its receiver's pot.
    pub fn claim(&mut self, channel: ChannelId, amount: u64) {
        let c = &mut self.channels[channel.0];
        assert!(amount <= c.balance - c.claimed, "a voucher without a balance behind it");
        let (payer, receiver) = (c.payer, c.receiver);
        let posts = self.books[receiver.at()].posts;
        c.claimed += amount;
        match c.period(posts) {
            Some(p) => p.1 += amount,
            None => {
                c.periods.rotate_right(1);
                c.periods[0] = Some((posts, amount, 0));
            }
        }
        self.books[receiver.at()].pot += amount;
        self.accounts[payer.at()].deposited -= amount;
        self.shift(Place::Channels, Place::Fees, amount);
        self.flow(payer, Flow::Paid, -(amount as i64));
        self.burn(receiver, self.prices.claim);
    }

    // ---- batches

    /// Posts a provider's receipts of this epoch, all of one model.
    pub fn post(&mut self, provider: Who, model: usize, lots: Vec<Lot>) -> Result<&Batch, Refused> {
        let count = lots.iter().map(|l| l.count).sum::<u64>();
        let total = lots.iter().map(|l| l.fee * l.count).sum::<u64>();
        if count == 0 || count > COUNT_MAX {
            return Err(Refused::BadCount);
        }
        let count = count as u32;
        let book = &mut self.books[provider.at()];
        if total > book.pot {
            return Err(Refused::TotalTooHigh);
        }
        let backing = self.accounts[provider.at()].node.stake;
        let rates = &self.p.rates;
        let rate = formulas::average_rate_ppm(total, count, backing, rates.savingsPpm, rates.rateMinPpm);
        let panel = formulas::panel(count, rate, &self.p).ok_or(Refused::TooManyAudits)?;
        let split = formulas::split(total, rate, panel, self.listings[model].royalty_ppm, &self.p);
        book.pot -= total;
        let period = book.posts;
        book.posts += 1;
        let paid = vec![None; usize::from(panel)];
        book.open.push(Batch {
            epoch: self.epoch,
            count,
            total,
            backing,
            panel,
            split,
            paid,
            model,
            period,
            lots,
        });
        self.burn(provider, self.prices.income + self.prices.post);
        Ok(&self.books[provider.at()].open[self.books[provider.at()].open.len() - 1])
    }

    /// The batch that was posted in this epoch.
    pub fn posted(&self, provider: Who) -> Option<&Batch> {
        self.books[provider.at()].open.last().filter(|b| b.epoch == self.epoch)
    }

    /// Says who did a member's work in the batch of this epoch.
    pub fn did_work(&mut self, provider: Who, member: usize, auditor: Option<Who>) {
        if let Some(batch) = self.books[provider.at()].open.last_mut() {
            batch.paid[member] = auditor;
        }
    }

    /// Pays the panel, settles and releases a provider's batches of earlier epochs: objections to them are over.
    pub fn finish(&mut self, provider: Who) {
        while self.books[provider.at()].open.first().is_some_and(|b| b.epoch < self.epoch) {
            let batch = self.books[provider.at()].open.remove(0);
            self.pay_panel(&batch);
            let split = batch.split;
            self.shift(Place::Fees, Place::Stakes, split.provider);
            self.accounts[provider.at()].node.stake += split.provider;
            self.flow(provider, Flow::Earned, split.provider as i64);
            self.shift(Place::Fees, Place::Treasury, split.protocol);
            let owner = self.listings[batch.model].owner;
            self.give(Place::Fees, owner, split.royalty, Flow::Royalty);
            self.shift(Place::Fees, Place::Hosts, split.hosts);
            let pledges = self.books[provider.at()].sources.take(split.hosts, self.p.split.fetchedPpm);
            let left = self.listings[batch.model].pool.share(pledges);
            self.shift(Place::Hosts, Place::Treasury, left);
            self.burn(provider, self.prices.settle + self.prices.release);
        }
    }

    fn pay_panel(&mut self, batch: &Batch) {
        let part = batch.split.auditors / u64::from(batch.panel);
        for auditor in &batch.paid {
            match auditor {
                Some(auditor) => {
                    self.give(Place::Fees, *auditor, part, Flow::Audits);
                    self.burn(*auditor, self.prices.collect);
                }
                None => self.shift(Place::Fees, Place::Treasury, part),
            }
        }
    }

    // ---- guilt

    /// Strikes a provider: takes its stake, gives payers back what the caps allow, and leaves it a fresh name without anything. Its payers
    /// take back what is not claimed. Returns what was taken of the stake.
    pub fn strike(&mut self, provider: Who, reporter: Who) -> u64 {
        let node = self.accounts[provider.at()].node;
        assert_eq!(node.reserved, 0, "providers have no other duties here");
        let taken = self.slash(provider, node.stake + node.unbonding, reporter);
        let book = std::mem::take(&mut self.books[provider.at()]);
        let mut escrow = book.pot;
        for batch in &book.open {
            self.pay_panel(batch);
            escrow += batch.total - batch.split.auditors;
        }
        for batch in &book.open {
            for lot in &batch.lots {
                escrow -= self.refund(batch, lot, escrow);
            }
        }
        self.forfeit(escrow);
        // Its hosts collect what they can; the fractions stay where they are.
        let mut fetched = book.fetched;
        for (host, source) in &mut fetched {
            let amount = source.collect(&book.sources);
            self.give(Place::Hosts, *host, amount, Flow::Hosting);
            self.stranded += source.owed(&book.sources);
        }
        self.stranded += u128::from(book.sources.dust);
        for id in &book.channels {
            self.close_channel(*id);
        }
        self.books[provider.at()].channels = book.channels;
        self.burn(provider, self.prices.enrol);
        taken
    }

    /// What the payer of a lot gets back. It is asked for receipt by receipt, by who pays the gas; so for none that is worth less.
    fn refund(&mut self, batch: &Batch, lot: &Lot, escrow: u64) -> u64 {
        let each = formulas::refund(lot.fee, batch.total, batch.split.auditors);
        if each <= self.gas_cost(self.prices.refund) {
            return 0;
        }
        let c = &mut self.channels[lot.channel.0];
        let payer = c.payer;
        let Some((_, claimed, back)) = c.period(batch.period) else { return 0 };
        let amount = (each * lot.count).min(*claimed - *back).min(escrow);
        *back += amount;
        self.give(Place::Fees, payer, amount, Flow::Refunded);
        self.burn(payer, self.prices.refund * amount.div_ceil(each));
        amount
    }

    fn forfeit(&mut self, amount: u64) {
        let epochs = u64::from(self.p.times.refundSeconds).div_ceil(u64::from(self.p.times.epochSeconds));
        self.forfeited.push_back((self.epoch + epochs, amount));
    }

    /// The payer takes back what is not claimed; the channel begins anew, for the receiver's next name.
    fn close_channel(&mut self, id: ChannelId) {
        let c = &mut self.channels[id.0];
        let (payer, free) = (c.payer, c.balance - c.claimed);
        (c.balance, c.claimed, c.periods) = (0, 0, [None; 3]);
        self.accounts[payer.at()].deposited -= free;
        self.accounts[payer.at()].vault += free;
        self.shift(Place::Channels, Place::Vault, free);
    }

    // ---- sources

    /// Counts a provider's receipt for bytes since ever from a host.
    pub fn served(&mut self, provider: Who, host: Who, bytes: u64) {
        let book = &mut self.books[provider.at()];
        let place = match book.fetched.iter().position(|(h, _)| *h == host) {
            Some(place) => place,
            None => {
                book.fetched.push((host, Source::default()));
                book.fetched.len() - 1
            }
        };
        book.fetched[place].1.served(&mut book.sources, bytes);
        self.burn(host, self.prices.served);
    }

    /// Pays every source of a provider what it is owed, in whole units.
    pub fn collect_served(&mut self, provider: Who) {
        let book = &mut self.books[provider.at()];
        let all = book.sources;
        let paid: Vec<(Who, u64)> =
            book.fetched.iter_mut().map(|(host, s)| (*host, s.collect(&all))).collect();
        for (host, amount) in paid.into_iter().filter(|(_, amount)| *amount > 0) {
            self.give(Place::Hosts, host, amount, Flow::Hosting);
            self.burn(host, self.prices.collect_served);
        }
    }
}
