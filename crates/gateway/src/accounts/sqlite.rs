//! SQLite's side of what requests do: one connection, which does a whole transaction by itself, and what it knows of the rows.
//!
//! Invariant: what is remembered is what the tables say. A transaction begins by asking SQLite whether any other connection, of this process or another, has
//! committed since the last one; if so, all is read again. Nothing is remembered of a transaction that failed, either. Of advances, which are this process's own,
//! parts are remembered in any case, and their holds are read again.

use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::batch::{Deed, FORGOTTEN_MAX, Outcome, answered, forgetting, key_column};
use super::books::{Books, HOLD_COLUMNS};
use super::script::{Row, Statement, run_here};
use super::store::{Engine, KEY_STATE_COLUMNS, Store};
use super::{AccountsError, Ask, Attempt, Hold, HoldId, KeyName};

/// Keys and holds that are remembered at most.
const REMEMBERED_MAX: usize = 16 << 10;
/// After how many deeds the journal is written to the file: it has some 50 MB by then.
const CHECKPOINT: usize = 2000;
/// After how many answers those that are too old are let go of: far fewer than are let go of then.
const FORGET: usize = 64;
const _: () = assert!(FORGET * 2 <= FORGOTTEN_MAX);

/// How long the one lock there is may be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Not at all: nothing has happened then.
    None,
    /// As long as another program may need.
    Some,
}

impl Patience {
    fn time(self) -> Duration {
        match self {
            Patience::None => Duration::ZERO,
            Patience::Some => Duration::from_secs(10),
        }
    }
}

/// The connection, and what it knows.
pub(super) struct Sqlite {
    store: Store,
    /// Nothing after a failure: what was begun ended with the connection.
    connection: Option<Connection>,
    books: Books,
    /// Whether what is remembered is what the tables say.
    is_sure: bool,
    /// By which SQLite says whether others have written.
    version: i64,
    /// Since the last checkpoint.
    deeds: usize,
    /// Answers that were kept since some were let go of.
    told: usize,
}

impl Sqlite {
    pub(super) fn open(store: Store) -> Result<Sqlite, AccountsError> {
        let connection = Some(store.here()?);
        // With the first answer those go that an earlier process kept.
        let told = FORGET;
        Ok(Sqlite {
            store,
            connection,
            books: Books::advancing(),
            is_sure: false,
            version: 0,
            deeds: 0,
            told,
        })
    }

    /// Begins a request without writing anything, if its key has an advance, and nobody else has written.
    pub(super) fn part(&mut self, ask: &Ask) -> Option<Hold> {
        let connection = self.connection.as_ref().filter(|_| self.is_sure)?;
        if version(connection).ok()? != self.version {
            return None;
        }
        let part = self.books.part(ask)?;
        self.books.over(true);
        Some(part)
    }

    /// Advances that nobody has used for a while.
    pub(super) fn idle(&self, now_ms: i64) -> Vec<HoldId> {
        self.books.idle(now_ms)
    }

    /// Does deeds in one transaction. If it fails nothing of it has happened. Nothing, where another program writes and is not waited for.
    pub(super) fn write(
        &mut self,
        deeds: &[Deed],
        patience: Patience,
    ) -> Option<Result<Vec<Outcome>, AccountsError>> {
        let connection = match self.connection.take().map_or_else(|| self.store.here(), Ok) {
            Ok(connection) => connection,
            Err(e) => return Some(Err(e)),
        };
        if let Err(e) = connection.busy_timeout(patience.time()) {
            return Some(Err(e.into()));
        }
        // To begin as a reader and become a writer fails where another has written meanwhile.
        match run_here(&connection, Statement::new("BEGIN IMMEDIATE")) {
            Err(AccountsError::Sqlite(e))
                if patience == Patience::None && e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) =>
            {
                self.connection = Some(connection);
                return None;
            }
            Err(e) => return Some(Err(e)),
            Ok(_) => {}
        }
        // Whatever goes wrong, what is remembered may not be what the tables say.
        let was_sure = std::mem::take(&mut self.is_sure);
        let decided = self.decide(&connection, was_sure, deeds);
        self.books.over(decided.is_ok());
        Some(decided.inspect(|_| {
            (self.is_sure, self.connection) = (true, Some(connection));
        }))
    }

    /// Everything between a transaction's beginning and its end.
    fn decide(
        &mut self,
        connection: &Connection,
        is_sure: bool,
        deeds: &[Deed],
    ) -> Result<Vec<Outcome>, AccountsError> {
        let run = |statement| run_here(connection, statement);
        let (version, books) = (version(connection)?, &mut self.books);
        if !is_sure || version != self.version || books.rows() > REMEMBERED_MAX {
            self.version = version;
            for id in books.forget() {
                read_advance(&run, books, id)?;
            }
        }
        for (at, deed) in deeds.iter().enumerate() {
            read(&run, books, at, deed)?;
        }
        let outcomes = books.decide(deeds);
        let told = books.told();
        for statement in books.written(Engine::Sqlite) {
            run(statement)?;
        }
        if let Some((count, now_ms)) = told {
            self.told += count;
            if self.told >= FORGET {
                self.told = 0;
                run(forgetting(now_ms, Engine::Sqlite))?;
            }
        }
        run(Statement::new("COMMIT"))?;
        self.deeds += deeds.len();
        Ok(outcomes)
    }

    /// Whether the journal is long.
    pub(super) fn is_due(&self) -> bool {
        self.deeds >= CHECKPOINT
    }

    /// Writes the journal to the file. What fails is tried again.
    pub(super) fn checkpoint(&mut self) {
        let Some(connection) = &self.connection else { return };
        match run_here(connection, Statement::new("PRAGMA wal_checkpoint(PASSIVE)")) {
            Ok(_) => self.deeds = 0,
            Err(e) => {
                tracing::warn!(code = e.code(), reason = %e, "the journal of the books could not be written back");
            }
        }
    }
}

/// By which SQLite says whether others have written.
fn version(connection: &Connection) -> Result<i64, AccountsError> {
    let found = run_here(connection, Statement::new("PRAGMA data_version"))?;
    found.first().map_or(Ok(0), |row| row.number(0))
}

type Rows = Result<Vec<Row>, AccountsError>;

/// Reads what a deed concerns, as far as it is not known.
fn read(
    run: &impl Fn(Statement) -> Rows,
    books: &mut Books,
    at: usize,
    deed: &Deed,
) -> Result<(), AccountsError> {
    let hold = match deed {
        Deed::Reserve(ask) => {
            read_key(run, books, &ask.key)?;
            if ask.attempt == Attempt::Again
                && let Some(row) = run(answered(ask))?.first()
            {
                books.answered(at, row)?;
            }
            return Ok(());
        }
        Deed::Charge { hold, .. } | Deed::Release { hold } => hold,
    };
    if books.holder(hold).is_none() {
        let found = format!("SELECT {HOLD_COLUMNS} FROM holds WHERE id = ?");
        if let Some(row) = run(Statement::new(found).with([hold.0.as_str()]))?.first() {
            books.hold(row)?;
        }
    }
    match books.holder(hold) {
        Some(key) => read_key(run, books, &key),
        None => {
            let ended = Statement::new("SELECT id, amount FROM charges WHERE id = ?");
            match run(ended.with([hold.0.as_str()]))?.first() {
                Some(row) => books.ended(row),
                None => Ok(()),
            }
        }
    }
}

/// Reads what there is of an advance.
fn read_advance(
    run: &impl Fn(Statement) -> Rows,
    books: &mut Books,
    id: String,
) -> Result<(), AccountsError> {
    let found = run(Statement::new("SELECT amount FROM holds WHERE id = ?").with([id.as_str()]))?;
    books.advanced(&id, found.first())?;
    match books.holder(&HoldId(id)) {
        Some(key) => read_key(run, books, &key),
        None => Ok(()),
    }
}

/// Reads a key, what it has used, and what its account has.
fn read_key(run: &impl Fn(Statement) -> Rows, books: &mut Books, key: &KeyName) -> Result<(), AccountsError> {
    if books.knows_key(key) {
        return Ok(());
    }
    let (column, name) = key_column(key);
    let found = format!("SELECT {KEY_STATE_COLUMNS} FROM keys WHERE {column} = ?");
    let found = run(Statement::new(found).with([name]))?;
    let Some(row) = found.first() else { return Ok(()) };
    let [id, account] = books.key(row)?;
    let running = Statement::new("SELECT key_id, COUNT(*) FROM holds WHERE key_id = ? GROUP BY key_id");
    if let Some(row) = run(running.with([id]))?.first() {
        books.running(row)?;
    }
    if !books.knows_account(&account) {
        let balance = Statement::new("SELECT name, balance FROM accounts WHERE name = ?");
        if let Some(row) = run(balance.with([account]))?.first() {
            books.balance(row)?;
        }
    }
    Ok(())
}
