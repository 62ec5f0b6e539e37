//! Requests that begin and end, many in one transaction: 1. what they concern is read, and locked; 2. each is decided in its order, in memory; 3. what
//! came of all of them is written. The cost of a transaction is shared by all that wait for it.
//!
//! Here is what is asked, and how Postgres reads; SQLite's reading is in `sqlite`, and what is decided in `books`. Postgres's rows are locked in one order, keys by id before
//! accounts by name, so that transactions wait for each other and never in a circle; who ends a hold locks its key first.

use std::collections::BTreeSet;

use super::books::{Books, HOLD_COLUMNS};
use super::script::{Row, Statement, Value, marks};
use super::store::{CHARGE_COLUMNS, Engine, KEY_STATE_COLUMNS};
use super::{
    AccountsError, Answered, Ask, Attempt, HoldId, KeyName, MicroUsd, RETRY_WINDOW_MS, Refused, Reserved,
    Retried, Settled,
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

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Reserved(Result<Reserved, Refused>),
    Settled(Settled),
}

/// What is read for deeds, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
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
