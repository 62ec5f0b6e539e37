//! A gateway's books: what clients have, what is set aside for requests, what was charged. They are durable.
//!
//! The rules are those of `assay_gateway::accounts`, which keeps them in a database: a request reserves the most that it can cost, and is charged what it did or
//! released; one that is sent again finds what an earlier attempt was charged.

use std::collections::BTreeMap;

use super::wire::Ask;

/// How long a hold lasts by itself: longer than any answer takes.
pub(super) const HOLD_MS: u64 = 3_600_000;

/// A client's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) free: u64,
    pub(super) held: u64,
    pub(super) spent: u64,
}

/// Money set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hold {
    ask: Ask,
    amount: u64,
    until_ms: u64,
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reserved {
    Held(u64),
    /// An earlier attempt was charged.
    Answered,
    /// There is too little.
    Poor,
}

/// The books.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    pub(super) accounts: BTreeMap<usize, Account>,
    holds: BTreeMap<u64, Hold>,
    last: u64,
    /// What was charged for each request, in order.
    pub(super) charges: BTreeMap<Ask, Vec<u64>>,
    /// What was paid in.
    pub(super) credited: u64,
}

impl Books {
    pub(super) fn credit(&mut self, client: usize, amount: u64) {
        self.accounts.entry(client).or_default().free += amount;
        self.credited += amount;
    }

    /// Sets aside the most that a request can cost.
    pub(super) fn reserve(&mut self, ask: Ask, again: bool, amount: u64, now_ms: u64) -> Reserved {
        if again && self.charges.contains_key(&ask) {
            return Reserved::Answered;
        }
        let Some(account) = self.accounts.get_mut(&ask.client) else { return Reserved::Poor };
        let Some(free) = account.free.checked_sub(amount) else { return Reserved::Poor };
        (account.free, account.held) = (free, account.held + amount);
        self.last += 1;
        self.holds.insert(self.last, Hold { ask, amount, until_ms: now_ms + HOLD_MS });
        Reserved::Held(self.last)
    }

    /// Keeps a fee. Whether the hold was there.
    pub(super) fn charge(&mut self, hold: u64, fee: u64) -> bool {
        let Some(Hold { ask, amount, .. }) = self.holds.remove(&hold) else { return false };
        let Some(account) = self.accounts.get_mut(&ask.client) else { return false };
        account.held -= amount;
        account.free += amount.saturating_sub(fee);
        account.spent += fee.min(amount);
        self.charges.entry(ask).or_default().push(fee);
        true
    }

    /// Gives everything back.
    pub(super) fn release(&mut self, hold: u64) {
        if let Some(Hold { ask, amount, .. }) = self.holds.remove(&hold)
            && let Some(account) = self.accounts.get_mut(&ask.client)
        {
            account.held -= amount;
            account.free += amount;
        }
    }

    /// Releases what gateways that died have set aside.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let over: Vec<u64> =
            self.holds.iter().filter(|(_, hold)| hold.until_ms <= now_ms).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.release(id));
    }

    /// What all accounts have, what of it is held and what was spent; and what the holds say.
    pub(super) fn sums(&self) -> (u64, u64, u64, u64) {
        let sum = |of: fn(&Account) -> u64| self.accounts.values().map(of).sum();
        let holds = self.holds.values().map(|hold| hold.amount).sum();
        (sum(|a| a.free), sum(|a| a.held), sum(|a| a.spent), holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_charged_once_or_released() {
        let mut books = Books::default();
        books.credit(0, 100);
        let ask = Ask { client: 0, number: 1 };
        assert_eq!(books.reserve(ask, false, 101, 0), Reserved::Poor);
        assert_eq!(books.reserve(ask, false, 60, 0), Reserved::Held(1));
        assert_eq!(books.reserve(ask, true, 60, 0), Reserved::Poor);
        assert!(books.charge(1, 25) && !books.charge(1, 25));
        assert_eq!(books.reserve(ask, true, 60, 0), Reserved::Answered);
        assert_eq!(books.reserve(ask, false, 60, 0), Reserved::Held(2));
        books.expire(HOLD_MS - 1);
        assert_eq!(books.sums(), (15, 60, 25, 60));
        books.expire(HOLD_MS);
        assert_eq!(books.sums(), (75, 0, 25, 0));
    }
}
