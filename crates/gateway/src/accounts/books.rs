//! What requests that begin and end do to the rows of the tables: each is decided in its order, in memory, by what was read, and what is to be written is
//! said in statements.

use std::collections::{BTreeMap, BTreeSet};

use super::advance::{self, Advance, Advances, Part};
use super::batch::{Deed, Outcome, Read};
use super::limits::{Used, admit, day};
use super::script::{Row, Statement, Value, marks};
use super::store::{CHARGE_COLUMNS_COUNT, Engine, KEY_COLUMNS_COUNT, charge_of, key_of, timely_id};
use super::{
    AccountsError, Answered, Ask, Attempt, Charge, Hold, HoldId, Key, KeyName, Limits, MicroUsd, Refused,
    Reserved, Retried, Settled,
};

/// A hold's columns, in the order in which [`Books::hold`] reads them.
pub(super) const HOLD_COLUMNS: &str = "id, key_id, account, amount, request, day, expires_ms";

/// What is written of an answer.
const CHARGE_ROW_COLUMNS: &str =
    "id, key_id, account, amount, request, at_ms, receipt, provider, model, prompt_tokens, completion_tokens";

/// A hold as the tables have it.
#[derive(Clone, Debug)]
struct HoldRow {
    id: String,
    key: String,
    account: String,
    amount: i64,
    request: String,
    day: i64,
    expires_ms: i64,
}

struct ChargeRow {
    hold: HoldRow,
    kept: i64,
    answer: Answered,
    at_ms: i64,
    /// What is kept to be told again.
    told: Option<Vec<u8>>,
}

/// A key, and what it has used.
struct KeyState {
    key: Key,
    used: Used,
    changed: bool,
}

/// What the tables say of what deeds concern, and what they will say. Once that is written, both are the same.
#[derive(Default)]
pub(super) struct Books {
    keys: BTreeMap<String, KeyState>,
    by_secret: BTreeMap<String, String>,
    balances: BTreeMap<String, i64>,
    holds: BTreeMap<String, HoldRow>,
    /// What holds that have ended were charged, if anything.
    ended: BTreeMap<String, i64>,
    /// What earlier attempts were charged, by the deed's place.
    answered: BTreeMap<usize, (Charge, Option<Vec<u8>>)>,
    /// What balances change by.
    moved: BTreeMap<String, i64>,
    made: Vec<HoldRow>,
    /// What holds of advances have now.
    altered: BTreeMap<String, i64>,
    gone: BTreeSet<String>,
    charged: Vec<ChargeRow>,
    /// SQLite's: what it knows stays right from one request to the next. Postgres's tables are changed by everyone.
    advances: Option<Advances>,
}

impl Books {
    /// Those of a process that gives advances.
    pub(super) fn advancing() -> Books {
        Books { advances: Some(Advances::default()), ..Books::default() }
    }

    /// Lets go of all that tables say. Advances stay, and are to be read again: their ids.
    pub(super) fn forget(&mut self) -> Vec<String> {
        let advances = self.advances.take();
        let ids = advances.as_ref().map(Advances::ids).unwrap_or_default();
        *self = Books { advances, ..Books::default() };
        ids
    }

    /// The transaction that was under way has succeeded or failed.
    pub(super) fn over(&mut self, succeeded: bool) {
        if let Some(advances) = &mut self.advances {
            advances.over(succeeded);
        }
    }

    /// What a table says of an advance's hold.
    pub(super) fn advanced(&mut self, id: &str, row: Option<&Row>) -> Result<(), AccountsError> {
        let amount = row.map(|row| row.number(0)).transpose()?;
        if let Some(advances) = &mut self.advances {
            advances.found(id, amount);
        }
        Ok(())
    }

    /// Advances that nobody has used for a while.
    pub(super) fn idle(&self, now_ms: i64) -> Vec<HoldId> {
        self.advances.as_ref().map(|advances| advances.idle(now_ms)).unwrap_or_default()
    }

    /// Begins a request of a key without limits by a part of its advance, if there is one: nothing is written then.
    pub(super) fn part(&mut self, ask: &Ask) -> Option<Hold> {
        let advances = self.advances.as_mut().filter(|_| ask.attempt == Attempt::First)?;
        let KeyState { key, .. } = self.keys.get(key_id(&self.by_secret, &ask.key)?)?;
        if key.revoked_ms.is_some() || key.limits != Limits::default() {
            return None;
        }
        let id = advances.part(&key.id, day(ask.now_ms), ask)?;
        Some(Hold { id, key_id: key.id.clone(), amount: ask.amount })
    }

    /// What was found by [`reads`].
    pub(super) fn of(reads: &[Read], found: Vec<Vec<Row>>) -> Result<Books, AccountsError> {
        let mut books = Books::default();
        let rows = reads.iter().zip(&found).flat_map(|(read, rows)| rows.iter().map(move |row| (read, row)));
        for (read, row) in rows {
            match read {
                Read::Begin => {}
                Read::Keys => {
                    books.key(row)?;
                }
                Read::Balances => books.balance(row)?,
                Read::Running => books.running(row)?,
                Read::Holds => books.hold(row)?,
                Read::Ended => books.ended(row)?,
                Read::Answered(at) => books.answered(*at, row)?,
            }
        }
        Ok(books)
    }

    /// Takes a row of [`KEY_STATE_COLUMNS`]. The key's id, and its account.
    pub(super) fn key(&mut self, row: &Row) -> Result<[String; 2], AccountsError> {
        let key = key_of(row)?;
        let (secret, rest) = (row.text(KEY_COLUMNS_COUNT)?, KEY_COLUMNS_COUNT + 1);
        let used = Used {
            due_ms: row.number(rest)?,
            day: row.number(rest + 1)?,
            day_spent: row.number(rest + 2)?,
            running: 0,
        };
        let names = [key.id.clone(), key.account.clone()];
        self.by_secret.insert(secret, key.id.clone());
        self.keys.insert(key.id.clone(), KeyState { key, used, changed: false });
        Ok(names)
    }

    /// Takes an account's name and its balance.
    pub(super) fn balance(&mut self, row: &Row) -> Result<(), AccountsError> {
        self.balances.insert(row.text(0)?, row.number(1)?);
        Ok(())
    }

    /// Takes a key's id and how many holds it has.
    pub(super) fn running(&mut self, row: &Row) -> Result<(), AccountsError> {
        if let Some(state) = self.keys.get_mut(&row.text(0)?) {
            state.used.running = row.number(1)?;
        }
        Ok(())
    }

    /// Takes a row of [`HOLD_COLUMNS`].
    pub(super) fn hold(&mut self, row: &Row) -> Result<(), AccountsError> {
        let hold = HoldRow {
            id: row.text(0)?,
            key: row.text(1)?,
            account: row.text(2)?,
            amount: row.number(3)?,
            request: row.text(4)?,
            day: row.number(5)?,
            expires_ms: row.number(6)?,
        };
        self.holds.insert(hold.id.clone(), hold);
        Ok(())
    }

    /// Takes the id of a hold that is no more, and what it was charged.
    pub(super) fn ended(&mut self, row: &Row) -> Result<(), AccountsError> {
        self.ended.insert(row.text(0)?, row.number(1)?);
        Ok(())
    }

    /// Takes what [`answered`] finds for the deed at this place.
    pub(super) fn answered(&mut self, at: usize, row: &Row) -> Result<(), AccountsError> {
        let told = row.bytes_if_any(CHARGE_COLUMNS_COUNT)?;
        self.answered.insert(at, (charge_of(row)?, told));
        Ok(())
    }

    /// Whether it is known whose key this is, and what that has used.
    pub(super) fn knows_key(&self, key: &KeyName) -> bool {
        match key {
            KeyName::Secret(secret) => self.by_secret.contains_key(&secret.to_string()),
            KeyName::Id(id) => self.keys.contains_key(id),
        }
    }

    /// Whether an account's balance is known.
    pub(super) fn knows_account(&self, account: &str) -> bool {
        self.balances.contains_key(account)
    }

    /// Whose key a hold is of, if the hold is known.
    pub(super) fn holder(&self, hold: &HoldId) -> Option<KeyName> {
        let advanced = || self.advances.as_ref()?.key(&hold.0);
        let key = self.holds.get(&hold.0).map(|hold| &*hold.key).or_else(advanced)?;
        Some(KeyName::Id(key.to_owned()))
    }

    /// How much it remembers.
    pub(super) fn rows(&self) -> usize {
        self.keys.len() + self.holds.len()
    }

    /// Of how many of the answers that are to be written the text is kept, and when the last of them was given.
    pub(super) fn told(&self) -> Option<(usize, i64)> {
        let told = || self.charged.iter().filter(|row| row.told.is_some());
        told().map(|row| row.at_ms).max().map(|last_ms| (told().count(), last_ms))
    }

    /// Decides each deed by what is known and came of those before it.
    pub(super) fn decide(&mut self, deeds: &[Deed]) -> Vec<Outcome> {
        let decide = |(at, deed): (usize, &Deed)| match deed {
            Deed::Reserve(ask) => Outcome::Reserved(self.reserve(at, ask)),
            Deed::Charge { hold, amount, answer, retried, now_ms } => {
                Outcome::Settled(self.end(hold, Some((*amount, answer, retried, *now_ms))))
            }
            Deed::Release { hold } => Outcome::Settled(self.end(hold, None)),
        };
        deeds.iter().enumerate().map(decide).collect()
    }

    fn reserve(&mut self, at: usize, ask: &Ask) -> Result<Reserved, Refused> {
        let id = key_id(&self.by_secret, &ask.key).cloned().ok_or(Refused::UnknownKey)?;
        let Key { revoked_ms, account, limits, .. } =
            self.keys.get(&id).map(|state| state.key.clone()).ok_or(Refused::UnknownKey)?;
        if revoked_ms.is_some() {
            return Err(Refused::Revoked);
        }
        if let Some((charge, told)) = self.answered.remove(&at) {
            return Ok(Reserved::Answered { charge: Box::new(charge), told });
        }
        if let Some(part) = self.part(ask) {
            return Ok(Reserved::Held(part));
        }
        self.retire(&id);
        let amount = ask.amount.column();
        if self.balances.get(&account).is_none_or(|balance| *balance < amount) {
            // What is only set aside for requests to come is there for this one.
            let advanced = self.advances.as_ref().map(|advances| advances.current_of(&account));
            advanced.unwrap_or_default().iter().for_each(|key| self.retire(key));
        }
        let state = self.keys.get_mut(&id).ok_or(Refused::UnknownKey)?;
        let beside = self.advances.as_ref().map_or(0, |advances| advances.running_beyond_holds(&id));
        let running = state.used.running.saturating_add(beside);
        let after = admit(&limits, Used { running, ..state.used }, ask.amount, ask.now_ms)?;
        let balance = self.balances.entry(account.clone()).or_default();
        if *balance < amount {
            return Err(Refused::Balance { balance: MicroUsd::from_column(*balance), needed: ask.amount });
        }
        let advances = self.advances.as_mut().filter(|_| limits == Limits::default());
        let beyond = advances.as_ref().map_or(0, |_| advance::beyond(balance.saturating_sub(amount)));
        let total = amount.saturating_add(beyond);
        *balance = balance.saturating_sub(total);
        let moved = self.moved.entry(account.clone()).or_default();
        *moved = moved.saturating_sub(total);
        let running = state.used.running.saturating_add(1);
        state.used = Used { running, day_spent: after.day_spent.saturating_add(beyond), ..after };
        state.changed = true;
        let mut hold = HoldRow {
            id: timely_id(ask.now_ms),
            key: id,
            account,
            amount: total,
            request: ask.request.column(),
            day: after.day,
            expires_ms: ask.expires_ms,
        };
        let mut reserved = Hold { id: HoldId(hold.id.clone()), key_id: hold.key.clone(), amount: ask.amount };
        match advances.filter(|_| beyond > 0) {
            Some(advances) => {
                hold.expires_ms = hold.expires_ms.saturating_add(advance::LASTS_MS);
                let (key, account) = (hold.key.clone(), hold.account.clone());
                let advance = Advance::new(key, account, hold.day, hold.expires_ms, total);
                reserved.id = advances.begin(hold.id.clone(), advance, ask);
            }
            None => {
                self.holds.insert(hold.id.clone(), hold.clone());
            }
        }
        self.made.push(hold);
        Ok(Reserved::Held(reserved))
    }

    /// No more requests begin by this key's advance. What is free of it goes back; the rest, when its parts have ended.
    fn retire(&mut self, key: &str) {
        let Some((id, free)) = self.advances.as_mut().and_then(|advances| advances.retire(key)) else {
            return;
        };
        if !self.end_advance(&id)
            && let Some(advance) = self.lessen(&id, free)
        {
            self.give_back(&advance.key, &advance.account, advance.day, free);
        }
    }

    /// Takes this much out of an advance's hold.
    fn lessen(&mut self, id: &str, by: i64) -> Option<Advance> {
        let advances = self.advances.as_mut()?;
        let has = advances.lessen(id, by)?;
        match self.made.iter_mut().find(|hold| hold.id == id) {
            Some(made) => made.amount = has,
            None => {
                self.altered.insert(id.to_owned(), has);
            }
        }
        advances.get(id).cloned()
    }

    /// Ends an advance without parts, and gives back what it has. Whether it has ended.
    fn end_advance(&mut self, id: &str) -> bool {
        let Some(advance) = self.advances.as_mut().and_then(|advances| advances.end(id)) else {
            return false;
        };
        self.altered.remove(id);
        self.made.retain(|hold| hold.id != id);
        self.gone.insert(id.to_owned());
        if let Some(state) = self.keys.get_mut(&advance.key) {
            state.used.running = state.used.running.saturating_sub(1);
        }
        self.give_back(&advance.key, &advance.account, advance.day, advance.amount);
        true
    }

    fn give_back(&mut self, key: &str, account: &str, day: i64, back: i64) {
        // What was set aside on a day that is over counts no more.
        if let Some(state) = self.keys.get_mut(key).filter(|state| state.used.day == day) {
            state.used.day_spent = state.used.day_spent.saturating_sub(back);
            state.changed = true;
        }
        let balance = self.balances.entry(account.to_owned()).or_default();
        *balance = balance.saturating_add(back);
        let moved = self.moved.entry(account.to_owned()).or_default();
        *moved = moved.saturating_add(back);
    }

    /// Takes a hold away, keeps what is charged, and gives the rest back.
    fn end(&mut self, id: &HoldId, charged: Option<(MicroUsd, &Answered, &Retried, i64)>) -> Settled {
        let kept_of = |most: i64| charged.as_ref().map_or(0, |(amount, ..)| amount.column().min(most));
        let (hold, kept) = if let Some(hold) = self.holds.remove(&id.0) {
            let kept = kept_of(hold.amount);
            if let Some(state) = self.keys.get_mut(&hold.key) {
                state.used.running = state.used.running.saturating_sub(1);
            }
            self.give_back(&hold.key, &hold.account, hold.day, hold.amount.saturating_sub(kept));
            self.gone.insert(hold.id.clone());
            (hold, kept)
        } else if let Some(ended) = self.end_part(id, kept_of) {
            ended
        } else if self.end_advance(&id.0) {
            return Settled::Now(MicroUsd(0));
        } else {
            return Settled::Before(MicroUsd::from_column(self.ended.get(&id.0).copied().unwrap_or(0)));
        };
        self.ended.insert(hold.id.clone(), kept);
        if let Some((_, answer, retried, at_ms)) = charged {
            self.book(hold, kept, answer.clone(), retried, at_ms);
        }
        Settled::Now(MicroUsd::from_column(kept))
    }

    /// Ends a part of an advance. What is not kept is there for the next request, or goes back if there will be none. The hold that the part stood for, and
    /// what is kept.
    fn end_part(&mut self, id: &HoldId, kept_of: impl Fn(i64) -> i64) -> Option<(HoldRow, i64)> {
        let advances = self.advances.as_mut()?;
        let (Part { advance: of, amount, request }, is_retired) = advances.end_part(&id.0)?;
        let Advance { key, account, day, expires_ms, amount: most, .. } = advances.get(&of)?.clone();
        let kept = kept_of(amount.min(most));
        let taken = if is_retired { amount.min(most) } else { kept };
        if taken > 0 {
            self.lessen(&of, taken);
        }
        if taken > kept {
            self.give_back(&key, &account, day, taken.saturating_sub(kept));
        }
        if is_retired {
            // If it was the last part.
            self.end_advance(&of);
        }
        Some((HoldRow { id: id.0.clone(), key, account, amount, request, day, expires_ms }, kept))
    }

    fn book(&mut self, mut hold: HoldRow, kept: i64, answer: Answered, retried: &Retried, at_ms: i64) {
        let told = match retried {
            Retried::Told(told) => Some(told.clone()),
            Retried::Known => None,
            Retried::Anew => {
                // No request has no name.
                hold.request.clear();
                None
            }
        };
        self.charged.push(ChargeRow { hold, kept, answer, at_ms, told });
    }

    /// What is to be written for what was decided. SQLite has one statement for each row, which it keeps prepared; Postgres has one for all rows of a table,
    /// since each statement is a way there and back.
    pub(super) fn written(&mut self, engine: Engine) -> Vec<Statement> {
        let at_once = match engine {
            Engine::Sqlite => 1,
            Engine::Postgres => usize::MAX,
        };
        self.answered.clear();
        self.ended.clear();
        let mut statements = Vec::new();
        let charged = std::mem::take(&mut self.charged);
        let told: Vec<_> = charged.iter().filter_map(|row| Some((row, row.told.as_ref()?))).collect();
        for told in told.chunks(at_once) {
            let insert = inserting("told", "charge, at_ms, answer", 3, told.len());
            statements.push(told.iter().fold(insert, |insert, (row, told)| {
                insert.with([row.hold.id.clone()]).with([row.at_ms]).with([Value::Bytes((*told).clone())])
            }));
        }
        for (account, by) in std::mem::take(&mut self.moved).into_iter().filter(|(_, by)| *by != 0) {
            let update = Statement::new("UPDATE accounts SET balance = balance + ? WHERE name = ?");
            statements.push(update.with([by]).with([account]));
        }
        for (id, state) in self.keys.iter_mut().filter(|(_, state)| state.changed) {
            let update = Statement::new("UPDATE keys SET due_ms = ?, day = ?, day_spent = ? WHERE id = ?");
            let Used { due_ms, day, day_spent, .. } = state.used;
            statements.push(update.with([due_ms, day, day_spent]).with([id.as_str()]));
            state.changed = false;
        }
        for (id, amount) in std::mem::take(&mut self.altered) {
            let update = Statement::new("UPDATE holds SET amount = ? WHERE id = ?");
            statements.push(update.with([amount]).with([id]));
        }
        let gone: Vec<_> = std::mem::take(&mut self.gone).into_iter().collect();
        for gone in gone.chunks(at_once) {
            let delete = format!("DELETE FROM holds WHERE id IN ({})", marks(gone.len()));
            statements.push(Statement::new(delete).with(gone.iter().map(String::as_str)));
        }
        for made in std::mem::take(&mut self.made).chunks(at_once) {
            let insert = inserting("holds", HOLD_COLUMNS, 7, made.len());
            statements.push(made.iter().cloned().fold(insert, |insert, hold| {
                let HoldRow { id, key, account, amount, request, day, expires_ms } = hold;
                insert.with([id, key, account]).with([amount]).with([request]).with([day, expires_ms])
            }));
        }
        for charged in charged.chunks(at_once) {
            let insert = inserting("charges", CHARGE_ROW_COLUMNS, 11, charged.len());
            statements.push(charged.iter().fold(
                insert,
                |insert, ChargeRow { hold, kept, answer, at_ms, .. }| {
                    let insert = insert.with([&*hold.id, &*hold.key, &*hold.account]).with([*kept]);
                    let insert = insert.with([&*hold.request]).with([*at_ms]);
                    let insert = insert.with([&*answer.receipt, &*answer.provider, &*answer.model]);
                    insert.with([i64::from(answer.prompt_tokens), i64::from(answer.completion_tokens)])
                },
            ));
        }
        statements
    }
}

/// The id of a key, if it is known.
fn key_id<'a>(by_secret: &'a BTreeMap<String, String>, key: &'a KeyName) -> Option<&'a String> {
    match key {
        KeyName::Secret(secret) => by_secret.get(&secret.to_string()),
        KeyName::Id(id) => Some(id),
    }
}

/// An insertion of rows, whose values are to come.
fn inserting(table: &str, columns: &str, count: usize, rows: usize) -> Statement {
    let rows = vec![format!("({})", marks(count)); rows].join(", ");
    Statement::new(format!("INSERT INTO {table} ({columns}) VALUES {rows}"))
}
