//! Requests that begin and end, many in one transaction: 1. what they concern is read, and locked; 2. each is decided in its order, in memory; 3. what
//! came of all of them is written. The cost of a transaction is shared by all that wait for it.
//!
//! Here is what both databases share, and how Postgres reads; SQLite's reading is in `sqlite`. Postgres's rows are locked in one order, keys by id before
//! accounts by name, so that transactions wait for each other and never in a circle; who ends a hold locks its key first.

use std::collections::{BTreeMap, BTreeSet};

use super::limits::{Used, admit};
use super::script::{Row, Statement, Value, marks};
use super::store::{CHARGE_COLUMNS, CHARGE_COLUMNS_COUNT, Engine, KEY_COLUMNS_COUNT, KEY_STATE_COLUMNS};
use super::store::{charge_of, key_of, timely_id};
use super::{
    AccountsError, Answered, Ask, Attempt, Charge, Hold, HoldId, Key, KeyName, MicroUsd, RETRY_WINDOW_MS,
    Refused, Reserved, Retried, Settled,
};

/// Answers that a transaction lets go of, at most: more than one keeps.
pub(super) const FORGOTTEN_MAX: usize = 512;

/// What a request asks of the books.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    /// To begin.
    Reserve(Ask),
    /// To end with an answer.
    Charge { hold: HoldId, amount: MicroUsd, answer: Box<Answered>, retried: Retried, now_ms: i64 },
    /// To end without one.
    Release { hold: HoldId },
}

/// A hold's columns, in the order in which [`Books::hold`] reads them.
pub(super) const HOLD_COLUMNS: &str = "id, key_id, account, amount, request, day, expires_ms";

/// What is written of an answer.
const CHARGE_ROW_COLUMNS: &str =
    "id, key_id, account, amount, request, at_ms, receipt, provider, model, prompt_tokens, completion_tokens";

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Reserved(Result<Reserved, Refused>),
    Settled(Settled),
}

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
    gone: BTreeSet<String>,
    charged: Vec<ChargeRow>,
}

/// What is read for deeds, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// The transaction's begin.
    Begin,
    /// Keys, with what they have used.
    Keys,
    /// Their accounts' balances.
    Balances,
    /// How many holds each key has.
    Running,
    /// Holds that end.
    Holds,
    /// What those that are no more were charged.
    Ended,
    /// What an earlier attempt of the deed at this place was charged.
    Answered(usize),
}

/// The statements by which Postgres reads what deeds concern, each with what it is for.
fn reads(deeds: &[Deed]) -> Vec<(Read, Statement)> {
    let (mut secrets, mut ids, mut holds) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for deed in deeds {
        match deed {
            Deed::Reserve(Ask { key: KeyName::Secret(secret), .. }) => secrets.insert(secret.to_string()),
            Deed::Reserve(Ask { key: KeyName::Id(id), .. }) => ids.insert(id.clone()),
            Deed::Charge { hold, .. } | Deed::Release { hold } => holds.insert(hold.0.clone()),
        };
    }
    let (begins, ends) = (!secrets.is_empty() || !ids.is_empty(), !holds.is_empty());
    // Only what is there: an empty list is not SQL, and what is not asked for costs no time.
    let mut concerned = Vec::new();
    let (marked_secrets, marked_ids, marked) = (marks(secrets.len()), marks(ids.len()), marks(holds.len()));
    if !secrets.is_empty() {
        concerned.push(format!("secret_hash IN ({marked_secrets})"));
    }
    if !ids.is_empty() {
        concerned.push(format!("id IN ({marked_ids})"));
    }
    if ends {
        concerned.push(format!("id IN (SELECT key_id FROM holds WHERE id IN ({marked}))"));
    }
    let concerned = concerned.join(" OR ");
    let all = || secrets.iter().chain(&ids).chain(&holds).map(|name| Value::from(name.as_str()));
    let ending = || holds.iter().map(|name| Value::from(name.as_str()));
    let keys = Statement::new(format!(
        "SELECT {KEY_STATE_COLUMNS} FROM keys WHERE {concerned} ORDER BY id FOR UPDATE"
    ));
    let balances = Statement::new(format!(
        "SELECT name, balance FROM accounts WHERE name IN (SELECT account FROM keys WHERE {concerned}) ORDER BY name FOR UPDATE"
    ));
    let mut reads = vec![
        (Read::Begin, Statement::new("BEGIN")),
        (Read::Keys, keys.with(all())),
        (Read::Balances, balances.with(all())),
    ];
    // Read after the locks: what others did meanwhile is in it.
    if begins {
        let running = Statement::new(format!(
            "SELECT key_id, COUNT(*) FROM holds WHERE key_id IN (SELECT id FROM keys WHERE {concerned}) GROUP BY key_id"
        ));
        reads.push((Read::Running, running.with(all())));
    }
    if ends {
        let holds = Statement::new(format!("SELECT {HOLD_COLUMNS} FROM holds WHERE id IN ({marked})"));
        let ended = Statement::new(format!("SELECT id, amount FROM charges WHERE id IN ({marked})"));
        reads.extend([(Read::Holds, holds.with(ending())), (Read::Ended, ended.with(ending()))]);
    }
    for (at, deed) in deeds.iter().enumerate() {
        let Deed::Reserve(ask @ Ask { attempt: Attempt::Again, .. }) = deed else { continue };
        reads.push((Read::Answered(at), answered(ask)));
    }
    reads
}

/// How a key is found: by which column, and by what.
pub(super) fn key_column(key: &KeyName) -> (&'static str, String) {
    match key {
        KeyName::Secret(secret) => ("secret_hash", secret.to_string()),
        KeyName::Id(id) => ("id", id.clone()),
    }
}

/// Reads what an earlier attempt of a request was charged, and was told.
pub(super) fn answered(ask: &Ask) -> Statement {
    let (column, name) = key_column(&ask.key);
    let since_ms = ask.now_ms.saturating_sub(RETRY_WINDOW_MS);
    let found = Statement::new(format!(
        "SELECT {CHARGE_COLUMNS}, (SELECT answer FROM told WHERE told.at_ms = charges.at_ms AND told.charge = charges.id) \
         FROM charges WHERE key_id = (SELECT id FROM keys WHERE {column} = ?) AND request = ? \
         AND at_ms >= ? ORDER BY at_ms DESC LIMIT 1"
    ));
    found.with([name, ask.request.column()]).with([since_ms])
}

/// The first half of a transaction of Postgres, and what its second half is made of.
pub(super) struct Asked<'a> {
    deeds: &'a [Deed],
    reads: Vec<Read>,
}

impl<'a> Asked<'a> {
    /// The statements that read what deeds concern, in a transaction that they begin.
    pub(super) fn of(deeds: &'a [Deed]) -> (Asked<'a>, Vec<Statement>) {
        let (reads, statements) = reads(deeds).into_iter().unzip();
        (Asked { deeds, reads }, statements)
    }

    /// Decides each deed by what was read for all of them. What came of them, and what is written, which ends the transaction.
    pub(super) fn decide(
        self,
        found: Vec<Vec<Row>>,
    ) -> Result<(Vec<Outcome>, Vec<Statement>), AccountsError> {
        let mut books = Books::of(&self.reads, found)?;
        let outcomes = books.decide(self.deeds);
        let told = books.told();
        let mut statements = books.written(Engine::Postgres);
        if let Some((_, now_ms)) = told {
            statements.push(forgetting(now_ms, Engine::Postgres));
        }
        statements.push(Statement::new("COMMIT"));
        Ok((outcomes, statements))
    }
}

/// Lets go of answers that cannot be asked for again: of some, so that none waits for long, and of more than are kept, so that they do not pile up.
pub(super) fn forgetting(now_ms: i64, engine: Engine) -> Statement {
    // Whoever else is at it lets go of others.
    let skip = match engine {
        Engine::Sqlite => "",
        Engine::Postgres => " FOR UPDATE SKIP LOCKED",
    };
    let delete = Statement::new(format!(
        "DELETE FROM told WHERE (at_ms, charge) IN (SELECT at_ms, charge FROM told WHERE at_ms < ? ORDER BY at_ms, charge \
         LIMIT {FORGOTTEN_MAX}{skip})"
    ));
    delete.with([now_ms.saturating_sub(RETRY_WINDOW_MS)])
}

impl Books {
    /// What was found by [`reads`].
    fn of(reads: &[Read], found: Vec<Vec<Row>>) -> Result<Books, AccountsError> {
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
        self.holds.get(&hold.0).map(|hold| KeyName::Id(hold.key.clone()))
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
        let id = match &ask.key {
            KeyName::Secret(secret) => self.by_secret.get(&secret.to_string()),
            KeyName::Id(id) => Some(id),
        };
        let state = id.and_then(|id| self.keys.get_mut(id)).ok_or(Refused::UnknownKey)?;
        if state.key.revoked_ms.is_some() {
            return Err(Refused::Revoked);
        }
        if let Some((charge, told)) = self.answered.remove(&at) {
            return Ok(Reserved::Answered { charge: Box::new(charge), told });
        }
        let after = admit(&state.key.limits, state.used, ask.amount, ask.now_ms)?;
        let amount = ask.amount.column();
        let balance = self.balances.entry(state.key.account.clone()).or_default();
        if *balance < amount {
            return Err(Refused::Balance { balance: MicroUsd::from_column(*balance), needed: ask.amount });
        }
        *balance = balance.saturating_sub(amount);
        let moved = self.moved.entry(state.key.account.clone()).or_default();
        *moved = moved.saturating_sub(amount);
        (state.used, state.changed) = (after, true);
        let hold = HoldRow {
            id: timely_id(ask.now_ms),
            key: state.key.id.clone(),
            account: state.key.account.clone(),
            amount,
            request: ask.request.column(),
            day: after.day,
            expires_ms: ask.expires_ms,
        };
        let reserved = Hold { id: HoldId(hold.id.clone()), key_id: hold.key.clone(), amount: ask.amount };
        self.holds.insert(hold.id.clone(), hold.clone());
        self.made.push(hold);
        Ok(Reserved::Held(reserved))
    }

    /// Takes a hold away, keeps what is charged, and gives the rest back.
    fn end(&mut self, id: &HoldId, charged: Option<(MicroUsd, &Answered, &Retried, i64)>) -> Settled {
        let Some(mut hold) = self.holds.remove(&id.0) else {
            return Settled::Before(MicroUsd::from_column(self.ended.get(&id.0).copied().unwrap_or(0)));
        };
        let kept = charged.as_ref().map_or(0, |(amount, ..)| amount.column().min(hold.amount));
        let back = hold.amount.saturating_sub(kept);
        if let Some(state) = self.keys.get_mut(&hold.key) {
            state.used.running = state.used.running.saturating_sub(1);
            // What was set aside on a day that is over counts no more.
            if state.used.day == hold.day {
                state.used.day_spent = state.used.day_spent.saturating_sub(back);
                state.changed = true;
            }
        }
        let balance = self.balances.entry(hold.account.clone()).or_default();
        *balance = balance.saturating_add(back);
        let moved = self.moved.entry(hold.account.clone()).or_default();
        *moved = moved.saturating_add(back);
        self.ended.insert(hold.id.clone(), kept);
        self.gone.insert(hold.id.clone());
        if let Some((_, answer, retried, at_ms)) = charged {
            let told = match retried {
                Retried::Told(told) => Some(told.clone()),
                Retried::Known => None,
                Retried::Anew => {
                    // No request has no name.
                    hold.request.clear();
                    None
                }
            };
            self.charged.push(ChargeRow { hold, kept, answer: answer.clone(), at_ms, told });
        }
        Settled::Now(MicroUsd::from_column(kept))
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

/// An insertion of rows, whose values are to come.
fn inserting(table: &str, columns: &str, count: usize, rows: usize) -> Statement {
    let rows = vec![format!("({})", marks(count)); rows].join(", ");
    Statement::new(format!("INSERT INTO {table} ({columns}) VALUES {rows}"))
}
