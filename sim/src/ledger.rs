//! The money of the contracts as a model: who has what, where every fee goes, and what a slash takes (`docs/ledger.md`).
//!
//! Invariant: [`Ledger::check`]. What each part holds is what it owes, to the unit, and everybody has what was brought in plus what its account of
//! flows says. Formulas are [`crate::formulas`], which are compared with the contracts. The model has no hashes, signatures, proofs or blocks: its
//! clock counts epochs, receipts with one fee are counted together, and what takes a few hours happens at once.
//!
//! It refuses what the contracts refuse for money's sake; that a caller may do what it does is taken for granted.

use std::collections::VecDeque;

use assay_ledger::contracts::Directory::Parameters;

use crate::formulas::{self, FRACTION_BITS};
use crate::gas::Gas;

mod books;
mod hosting;

pub use books::{Batch, Channel, ChannelId, Lot, Refused};
pub use hosting::{Listing, Pledge, PledgeId};

use books::Book;

/// Who has an account, and may be a node of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who(pub u32);

impl Who {
    fn at(self) -> usize {
        self.0 as usize
    }
}

/// Why an account changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Fees that were claimed from its channels.
    Paid,
    /// A provider's part.
    Earned,
    /// A listing's.
    Royalty,
    /// A member's of a panel.
    Audits,
    /// A host's.
    Hosting,
    /// Stake that was taken.
    Slashed,
    /// A reporter's part of somebody's stake.
    Reported,
    /// Bonds given and got.
    Bonds,
    /// Fees that came back.
    Refunded,
}

/// How many kinds of flows there are.
pub const FLOWS: usize = 9;

/// Where money lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Vault,
    Treasury,
    Stakes,
    Channels,
    Fees,
    Bonds,
    Hosts,
}

/// A node's stake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stake {
    /// What answers for it.
    pub stake: u64,
    /// Of it, what seats and pledges need.
    pub reserved: u64,
    /// What is on its way out.
    pub unbonding: u64,
    /// Epoch from which that may leave.
    pub leaves: u64,
}

/// What a participant has and had. Amounts are units.
#[derive(Clone, Debug, Default)]
struct Account {
    vault: u64,
    minted: u64,
    deposited: u64,
    node: Stake,
    flows: [i64; FLOWS],
    /// Outside the ledger: gas it paid for.
    gas: u64,
    /// Outside the ledger: what its work cost.
    compute: u64,
}

/// The ledger of one deployment.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The deployment's numbers.
    pub p: Parameters,
    /// Gas of actions.
    pub prices: Gas,
    /// What a million gas costs, in units.
    pub gas_price: u64,
    epoch: u64,
    held: [u64; 7],
    accounts: Vec<Account>,
    books: Vec<Book>,
    channels: Vec<Channel>,
    listings: Vec<Listing>,
    /// What struck providers' payers have not asked back, and in which epoch it is swept.
    forfeited: VecDeque<(u64, u64)>,
    /// Fractions of sources that no host can collect any more.
    stranded: u128,
}

impl Ledger {
    /// A deployment without participants.
    pub fn new(p: Parameters, gas_price: u64) -> Ledger {
        Ledger {
            p,
            prices: Gas::measured(),
            gas_price,
            epoch: 0,
            held: [0; 7],
            accounts: Vec::new(),
            books: Vec::new(),
            channels: Vec::new(),
            listings: Vec::new(),
            forfeited: VecDeque::new(),
            stranded: 0,
        }
    }

    /// Somebody with this much in the vault.
    pub fn join(&mut self, amount: u64) -> Who {
        let who = Who(self.accounts.len() as u32);
        self.accounts.push(Account { vault: amount, minted: amount, ..Account::default() });
        self.books.push(Book::default());
        self.held[Place::Vault as usize] += amount;
        who
    }

    /// Moves the clock to an epoch, and sweeps what was not asked back in time.
    pub fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        while let Some((_, amount)) = self.forfeited.pop_front_if(|(due, _)| *due <= epoch) {
            self.shift(Place::Fees, Place::Treasury, amount);
        }
    }

    fn shift(&mut self, from: Place, to: Place, amount: u64) {
        self.held[from as usize] -= amount;
        self.held[to as usize] += amount;
    }

    fn flow(&mut self, who: Who, flow: Flow, amount: i64) {
        self.accounts[who.at()].flows[flow as usize] += amount;
    }

    /// Pays out of a part into a vault balance.
    fn give(&mut self, from: Place, to: Who, amount: u64, why: Flow) {
        self.shift(from, Place::Vault, amount);
        self.accounts[to.at()].vault += amount;
        self.flow(to, why, amount as i64);
    }

    /// Books gas that somebody paid.
    pub fn burn(&mut self, who: Who, gas: u64) {
        self.accounts[who.at()].gas += gas;
    }

    /// Books what somebody's work cost, in units.
    pub fn work(&mut self, who: Who, cost: u64) {
        self.accounts[who.at()].compute += cost;
    }

    // ---- stakes

    /// Stakes up to `amount` of what is in the vault. Returns what was.
    pub fn bond(&mut self, who: Who, amount: u64) -> u64 {
        let account = &mut self.accounts[who.at()];
        let amount = amount.min(account.vault);
        if amount > 0 {
            account.vault -= amount;
            account.node.stake += amount;
            account.gas += self.prices.bond;
            self.shift(Place::Vault, Place::Stakes, amount);
        }
        amount
    }

    /// Starts taking out up to `amount` of what is not reserved.
    pub fn unbond(&mut self, who: Who, amount: u64) {
        let epochs = u64::from(self.p.times.unbondSeconds).div_ceil(u64::from(self.p.times.epochSeconds));
        let account = &mut self.accounts[who.at()];
        let node = &mut account.node;
        let amount = amount.min(node.stake.saturating_sub(node.reserved));
        if amount > 0 {
            node.stake -= amount;
            node.unbonding += amount;
            node.leaves = self.epoch + epochs;
            account.gas += self.prices.unbond;
        }
    }

    /// Pays out what has finished unbonding. Every epoch that it answers for is settled by then.
    pub fn withdraw(&mut self, who: Who) {
        let account = &mut self.accounts[who.at()];
        let amount = account.node.unbonding;
        if amount > 0 && account.node.leaves <= self.epoch {
            account.node.unbonding = 0;
            account.vault += amount;
            account.gas += self.prices.withdraw;
            self.shift(Place::Stakes, Place::Vault, amount);
        }
    }

    /// Takes stake out without its delay, so that it is the same in every epoch of an experiment. No contract does this.
    pub fn take_out_at_once(&mut self, who: Who, amount: u64) {
        let account = &mut self.accounts[who.at()];
        account.node.stake -= amount;
        account.vault += amount;
        self.shift(Place::Stakes, Place::Vault, amount);
    }

    /// Sets stake aside, and brings in what it lacks. Returns whether there was enough.
    pub fn reserve(&mut self, who: Who, amount: u64) -> bool {
        let node = self.accounts[who.at()].node;
        self.bond(who, (node.reserved + amount).saturating_sub(node.stake));
        let node = &mut self.accounts[who.at()].node;
        let enough = node.stake >= node.reserved + amount;
        if enough {
            node.reserved += amount;
        }
        enough
    }

    /// Brings stake up to what seats and pledges need, as far as there is money.
    pub fn cover(&mut self, who: Who) {
        let node = self.accounts[who.at()].node;
        self.bond(who, node.reserved.saturating_sub(node.stake));
    }

    /// Takes stake: the reporter's part to `reporter`, the rest to the treasury. Returns what was taken.
    pub fn slash(&mut self, who: Who, amount: u64, reporter: Who) -> u64 {
        let node = &mut self.accounts[who.at()].node;
        let taken = formulas::slash(node.stake, node.unbonding, amount, self.p.split.reporterPpm);
        node.stake -= taken.stake;
        node.unbonding -= taken.unbonding;
        let sum = taken.stake + taken.unbonding;
        self.flow(who, Flow::Slashed, -(sum as i64));
        self.give(Place::Stakes, reporter, taken.reporter, Flow::Reported);
        self.shift(Place::Stakes, Place::Treasury, taken.treasury);
        sum
    }

    // ---- bonds

    /// Takes a bond, where there is that much. It is given to somebody with [`Ledger::return_bond`].
    pub fn take_bond(&mut self, who: Who, amount: u64) -> bool {
        let account = &mut self.accounts[who.at()];
        if account.vault < amount {
            return false;
        }
        account.vault -= amount;
        self.shift(Place::Vault, Place::Bonds, amount);
        self.flow(who, Flow::Bonds, -(amount as i64));
        true
    }

    /// Gives a bond to who is right.
    pub fn return_bond(&mut self, to: Who, amount: u64) {
        self.give(Place::Bonds, to, amount, Flow::Bonds);
    }

    // ---- what there is

    /// A node's stake.
    pub fn stake_of(&self, who: Who) -> Stake {
        self.accounts[who.at()].node
    }

    /// What is free in the vault.
    pub fn free(&self, who: Who) -> u64 {
        self.accounts[who.at()].vault
    }

    /// What so much gas costs, in units.
    pub fn gas_cost(&self, gas: u64) -> u64 {
        (u128::from(gas) * u128::from(self.gas_price) / 1_000_000) as u64
    }

    /// What somebody has gained on the ledger, in units, less what its work and its gas cost.
    pub fn profit(&self, who: Who) -> i64 {
        let a = &self.accounts[who.at()];
        let wealth = a.vault + a.deposited + a.node.stake + a.node.unbonding;
        wealth as i64 - a.minted as i64 - a.compute as i64 - self.gas_cost(a.gas) as i64
    }

    /// Everybody who has joined.
    pub fn everyone(&self) -> impl Iterator<Item = Who> + use<> {
        (0..self.accounts.len() as u32).map(Who)
    }

    /// Sum of one kind of flow.
    pub fn flow_of(&self, who: Who, flow: Flow) -> i64 {
        self.accounts[who.at()].flows[flow as usize]
    }

    /// What the treasury has.
    pub fn treasury(&self) -> u64 {
        self.held[Place::Treasury as usize]
    }

    // ---- what must hold

    /// Compares what each part holds with what it owes, and what everybody has with what it got. The error names the first difference.
    pub fn check(&self) -> Result<(), String> {
        let equal = |what: &str, held: u128, owed: u128| {
            if held == owed { Ok(()) } else { Err(format!("{what}: held {held}, owed {owed}")) }
        };
        let held = |place: Place| u128::from(self.held[place as usize]);
        let sum = |of: fn(&Account) -> u64| self.accounts.iter().map(|a| u128::from(of(a))).sum::<u128>();
        equal("balances", held(Place::Vault), sum(|a| a.vault))?;
        equal("stakes", held(Place::Stakes), sum(|a| a.node.stake + a.node.unbonding))?;
        let deposits = self.channels.iter().map(|c| u128::from(c.balance - c.claimed)).sum();
        equal("deposits", held(Place::Channels), deposits)?;
        equal("deposits by payer", held(Place::Channels), sum(|a| a.deposited))?;
        let forfeited: u128 = self.forfeited.iter().map(|(_, amount)| u128::from(*amount)).sum();
        let fees: u128 = self.books.iter().map(|b| u128::from(b.owed())).sum();
        equal("fees", held(Place::Fees), fees + forfeited)?;
        let pledged: u128 = self.listings.iter().map(Listing::owed).sum();
        let sources: u128 = self.books.iter().map(Book::owed_to_sources).sum();
        let fractions = (pledged << FRACTION_BITS) + sources + self.stranded;
        equal("hosts", held(Place::Hosts) << FRACTION_BITS, fractions)?;
        let all: u128 = self.held.iter().map(|h| u128::from(*h)).sum();
        equal("everything", all, sum(|a| a.minted))?;
        for (i, a) in self.accounts.iter().enumerate() {
            let has = a.vault + a.deposited + a.node.stake + a.node.unbonding;
            let got = a.minted as i64 + a.flows.iter().sum::<i64>();
            if has as i64 != got {
                return Err(format!("participant {i} has {has} and should have {got}: {:?}", a.flows));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use assay_ledger::deployment::parameters;

    use super::*;

    fn busy() -> (Ledger, Who) {
        let mut ledger = Ledger::new(parameters(), 0);
        let (payer, provider) = (ledger.join(1000), ledger.join(50));
        let model = ledger.list(payer, 0);
        ledger.bond(provider, 50);
        let channel = ledger.open_channel(payer, provider);
        ledger.fund(channel, 100);
        ledger.claim(channel, 100);
        ledger.post(provider, model, vec![Lot { channel, fee: 50, count: 2 }]).unwrap();
        (ledger, provider)
    }

    #[test]
    fn one_unit_too_many_or_too_few_is_noticed() {
        let (sound, provider) = busy();
        assert_eq!(sound.check(), Ok(()));
        for place in 0..7 {
            let mut ledger = sound.clone();
            ledger.held[place] += 1;
            assert!(ledger.check().is_err(), "place {place}");
        }
        let mut ledger = sound.clone();
        ledger.accounts[provider.at()].node.stake -= 1;
        assert!(ledger.check().unwrap_err().contains("stakes"));
        let mut ledger = sound;
        ledger.flow(provider, Flow::Earned, 1);
        assert!(ledger.check().unwrap_err().contains("participant"));
    }

    #[test]
    fn what_the_contracts_refuse_is_refused() {
        let (mut ledger, provider) = busy();
        let lot = Lot { channel: ledger.open_channel(provider, provider), fee: 1, count: 1 };
        assert_eq!(ledger.post(provider, 0, vec![]).unwrap_err(), Refused::BadCount);
        assert_eq!(ledger.post(provider, 0, vec![lot]).unwrap_err(), Refused::TotalTooHigh);
        let many = Lot { fee: 0, count: 409_601, ..lot };
        assert_eq!(ledger.post(provider, 0, vec![many]).unwrap_err(), Refused::TooManyAudits);
        assert!(!ledger.reserve(provider, 51) && ledger.reserve(provider, 50));
        ledger.unbond(provider, u64::MAX);
        assert_eq!(ledger.stake_of(provider).unbonding, 0, "reserved stake does not leave");
    }

    #[test]
    fn stake_leaves_after_its_time_and_forfeited_fees_are_swept() {
        let (mut ledger, provider) = busy();
        ledger.unbond(provider, 20);
        ledger.begin(6);
        ledger.withdraw(provider);
        assert_eq!(ledger.free(provider), 0);
        ledger.begin(7);
        ledger.withdraw(provider);
        assert_eq!((ledger.free(provider), ledger.stake_of(provider).stake), (20, 30));
        let reporter = ledger.join(0);
        ledger.gas_price = 1_000_000_000;
        assert_eq!(ledger.strike(provider, reporter), 30);
        // Refunds are not worth their gas: after a month all of it is the treasury's, but for the reporter's tenth.
        // Nobody audited: the panel's ten are there at once.
        assert_eq!((ledger.free(reporter), ledger.treasury()), (3, 27 + 10));
        ledger.begin(36);
        assert_eq!(ledger.treasury(), 37);
        ledger.begin(37);
        assert_eq!(ledger.treasury(), 127);
        assert_eq!(ledger.check(), Ok(()));
    }
}
