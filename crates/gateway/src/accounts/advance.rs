//! Advances: money that is set aside for a key's next requests, so that most of them begin without a word to the database.
//!
//! An advance is a hold like any other in the tables. Of it, requests are given *parts*, which are known to this process alone: a request that begins
//! takes one, and its charge takes what it cost out of the hold. Invariant: an advance's parts are together at most what its hold has, so that nobody
//! else, of this process or another, can spend what a request was given. A process that dies leaves a hold, which ends by itself.
//!
//! It refuses keys that have limits, whose requests are counted one by one, and accounts in which every unit counts.

use std::collections::BTreeMap;

use super::store::timely_id;
use super::{Ask, HoldId};

/// Accounts with less than ten dollars give none.
const BALANCE_MIN: i64 = 10_000_000;
/// No more of a balance than its 64th part is set aside for what may come …
const SHARE_BITS: u32 = 6;
/// … and no more than a quarter of a dollar.
const ADVANCE_MAX: i64 = 250_000;
/// How much longer than its first request an advance lasts: for so long requests are given parts, in milliseconds.
pub(super) const LASTS_MS: i64 = 5 * 60 * 1000;
/// After so long without a request it is given back, in milliseconds.
const IDLE_MS: i64 = 60 * 1000;

/// What is set aside for requests to come, of an account with this much.
pub(super) fn beyond(balance: i64) -> i64 {
    if balance < BALANCE_MIN { 0 } else { (balance >> SHARE_BITS).min(ADVANCE_MAX) }
}

/// An advance, and the hold that it is.
#[derive(Clone, Debug)]
pub(super) struct Advance {
    pub(super) key: String,
    pub(super) account: String,
    /// The day, for the limit per day.
    pub(super) day: i64,
    pub(super) expires_ms: i64,
    /// What the hold has.
    pub(super) amount: i64,
    /// What its parts have together.
    given: i64,
    parts: usize,
    /// When the last part was taken.
    used_ms: i64,
}

impl Advance {
    fn free(&self) -> i64 {
        self.amount.saturating_sub(self.given).max(0)
    }
}

/// What a request was given of an advance.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) advance: String,
    pub(super) amount: i64,
    pub(super) request: String,
}

/// This process's advances.
#[derive(Debug, Default)]
pub(super) struct Advances {
    all: BTreeMap<String, Advance>,
    /// By key: of which new parts are taken.
    current: BTreeMap<String, String>,
    parts: BTreeMap<String, Part>,
    /// Parts taken in the transaction that is under way.
    taken: Vec<String>,
}

impl Advances {
    /// Whose key a part or an advance is of.
    pub(super) fn key(&self, id: &str) -> Option<&str> {
        let id = self.parts.get(id).map_or(id, |part| &part.advance);
        self.all.get(id).map(|advance| &*advance.key)
    }

    pub(super) fn get(&self, advance: &str) -> Option<&Advance> {
        self.all.get(advance)
    }

    /// Ids of all.
    pub(super) fn ids(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }

    /// Those that nobody has used for a while.
    pub(super) fn idle(&self, now_ms: i64) -> Vec<HoldId> {
        let idle =
            |advance: &Advance| advance.parts == 0 && advance.used_ms <= now_ms.saturating_sub(IDLE_MS);
        self.all.iter().filter(|(_, advance)| idle(advance)).map(|(id, _)| HoldId(id.clone())).collect()
    }

    /// Requests that run on parts beyond the holds that they are counted by.
    pub(super) fn running_beyond_holds(&self, key: &str) -> i64 {
        let of_key = self.all.values().filter(|advance| advance.key == key);
        of_key.fold(0, |sum, advance| sum + i64::try_from(advance.parts).unwrap_or(i64::MAX) - 1)
    }

    /// A part for a request of this key, if its advance has that much left and lasts as long as the request may.
    pub(super) fn part(&mut self, key: &str, day: i64, ask: &Ask) -> Option<HoldId> {
        let id = self.current.get(key)?;
        let advance = self.all.get_mut(id)?;
        let amount = ask.amount.column();
        if advance.free() < amount || advance.expires_ms < ask.expires_ms || advance.day != day {
            return None;
        }
        Some(take(&mut self.parts, &mut self.taken, id, advance, ask))
    }

    /// A new advance of a key, and a first part of it. What the key had before is to be retired.
    pub(super) fn begin(&mut self, id: String, advance: Advance, ask: &Ask) -> HoldId {
        self.current.insert(advance.key.clone(), id.clone());
        let advance = self.all.entry(id.clone()).or_insert(advance);
        take(&mut self.parts, &mut self.taken, &id, advance, ask)
    }

    /// No more parts are taken of the key's advance. Its id and what is free of it.
    pub(super) fn retire(&mut self, key: &str) -> Option<(String, i64)> {
        let id = self.current.remove(key)?;
        let free = self.all.get(&id)?.free();
        Some((id, free))
    }

    /// Keys of an account of whose advances parts are taken.
    pub(super) fn current_of(&self, account: &str) -> Vec<String> {
        let of = |(key, id): (&String, &String)| (self.all.get(id)?.account == account).then(|| key.clone());
        self.current.iter().filter_map(of).collect()
    }

    /// Takes this much out of an advance's hold. What it has now.
    pub(super) fn lessen(&mut self, id: &str, by: i64) -> Option<i64> {
        let advance = self.all.get_mut(id)?;
        advance.amount = advance.amount.saturating_sub(by);
        Some(advance.amount)
    }

    /// Ends a part. It, and whether its advance is retired.
    pub(super) fn end_part(&mut self, id: &str) -> Option<(Part, bool)> {
        let part = self.parts.remove(id)?;
        let advance = self.all.get_mut(&part.advance)?;
        advance.given = advance.given.saturating_sub(part.amount);
        advance.parts = advance.parts.saturating_sub(1);
        let is_retired = self.current.get(&advance.key) != Some(&part.advance);
        Some((part, is_retired))
    }

    /// Ends an advance that has no part. Nothing while it has one.
    pub(super) fn end(&mut self, id: &str) -> Option<Advance> {
        if self.all.get(id)?.parts > 0 {
            return None;
        }
        let advance = self.all.remove(id)?;
        if self.current.get(&advance.key).is_some_and(|current| current == id) {
            self.current.remove(&advance.key);
        }
        Some(advance)
    }

    /// What a table says of an advance: its hold has this much, or is no more.
    pub(super) fn found(&mut self, id: &str, amount: Option<i64>) {
        match (amount, self.all.get_mut(id)) {
            (Some(amount), Some(advance)) => advance.amount = amount,
            _ => {
                self.all.remove(id);
                self.current.retain(|_, current| current != id);
                self.parts.retain(|_, part| part.advance != id);
            }
        }
    }

    /// The transaction that was under way has succeeded, or failed, and nobody has the parts that were taken in it.
    pub(super) fn over(&mut self, succeeded: bool) {
        for id in std::mem::take(&mut self.taken) {
            if !succeeded {
                self.end_part(&id);
            }
        }
    }
}

fn take(
    parts: &mut BTreeMap<String, Part>,
    taken: &mut Vec<String>,
    id: &str,
    advance: &mut Advance,
    ask: &Ask,
) -> HoldId {
    let amount = ask.amount.column();
    advance.given = advance.given.saturating_add(amount);
    advance.parts += 1;
    advance.used_ms = ask.now_ms;
    let part = timely_id(ask.now_ms);
    parts.insert(part.clone(), Part { advance: id.to_owned(), amount, request: ask.request.column() });
    taken.push(part.clone());
    HoldId(part)
}

impl Advance {
    /// One that has no part yet.
    pub(super) fn new(key: String, account: String, day: i64, expires_ms: i64, amount: i64) -> Advance {
        Advance { key, account, day, expires_ms, amount, given: 0, parts: 0, used_ms: 0 }
    }
}
