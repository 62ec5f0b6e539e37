//! The tables, in SQL that SQLite and Postgres both understand (`migrations/`), but for how many trees a row stands in.
//!
//! What requests do while they run is in `batch`; here is what people do, and what is listed.
//!
//! Durability: SQLite's journal is flushed at checkpoints and after every credit, so that kill -9 loses nothing, and a power failure loses at most the last
//! moments' holds and charges, which is the gateway's loss and no client's. Postgres flushes each commit, unless it is told not to.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use alloy_primitives::B128;
use rusqlite::Connection;
use sqlx::any::{AnyPoolOptions, AnyRow, install_default_drivers};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Row as _, SqlSafeStr as _, Transaction,
};

use super::script::Row;
use super::usage::{Period, USAGE_PAGE_MAX, UsageTotal};
use super::{
    Account, AccountsError, Answered, Books, Charge, HoldId, KEYS_MAX, Key, Limits, MicroUsd, RequestKey,
    SecretHash,
};

const TABLES: &str = include_str!("../../migrations/0001_accounts.sql");
const CALLERS: &str = include_str!("../../migrations/0002_callers.sql");
const LEAN_SQLITE: &str = include_str!("../../migrations/0003_sqlite.sql");
const LEAN_POSTGRES: &str = include_str!("../../migrations/0003_postgres.sql");
const TOLD: &str = include_str!("../../migrations/0004_told.sql");
const BYTES_SQLITE: &str = include_str!("../../migrations/0005_sqlite.sql");
const BYTES_POSTGRES: &str = include_str!("../../migrations/0005_postgres.sql");
/// How SQLite is used, by whoever opens it. A checkpoint writes each page once, however often it changed: pages of holds change with every request.
const SQLITE_PRAGMAS: [(&str, &str); 5] = [
    ("busy_timeout", "10000"),
    ("journal_mode", "WAL"),
    ("synchronous", "NORMAL"),
    ("temp_store", "MEMORY"),
    ("wal_autocheckpoint", "8000"),
];
/// Statements that SQLite keeps prepared: all that requests need.
const PREPARED_MAX: usize = 64;
/// Connections that readers and writers share.
const CONNECTIONS_MAX: u32 = 16;
/// How long a connection to a file is waited for. Where the disk is full there is none, and requests must hear of it.
const SQLITE_WAIT: Duration = Duration::from_secs(2);

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Sqlite,
    Postgres,
}

/// The database.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pool: AnyPool,
    engine: Engine,
    /// SQLite's file; empty for Postgres.
    file: PathBuf,
}

/// 16 random bytes in hex.
pub(super) fn random_id() -> String {
    hex::encode(B128::random())
}

/// As many bytes in hex, in the order of time: what is written together stands together, on few pages.
pub(super) fn timely_id(now_ms: i64) -> String {
    let random = hex::encode(B128::random());
    format!("{:012x}{}", now_ms.clamp(0, (1 << 48) - 1), random.get(12..).unwrap_or_default())
}

impl RequestKey {
    pub(super) fn column(&self) -> String {
        hex::encode(self.0)
    }
}

impl Store {
    pub(super) async fn open(url: &str) -> Result<Store, AccountsError> {
        let scheme = url.split(':').next().unwrap_or_default();
        let (engine, url, file) = match scheme {
            "sqlite" => {
                let url = made_if_absent(url);
                let file = SqliteConnectOptions::from_str(&url)?.get_filename().to_owned();
                (Engine::Sqlite, url, file)
            }
            "postgres" | "postgresql" => (Engine::Postgres, url.to_owned(), PathBuf::new()),
            // Only the scheme: the rest may hold a password.
            _ => return Err(AccountsError::Url { got: scheme.chars().take(32).collect() }),
        };
        install_default_drivers();
        let options = AnyPoolOptions::new().max_connections(CONNECTIONS_MAX);
        let options = options.after_connect(move |connection, _| {
            Box::pin(async move {
                if engine == Engine::Sqlite {
                    for (pragma, value) in SQLITE_PRAGMAS {
                        let pragma = format!("PRAGMA {pragma} = {value}");
                        sqlx::query(AssertSqlSafe(pragma)).execute(&mut *connection).await?;
                    }
                }
                Ok(())
            })
        });
        let options = match engine {
            Engine::Sqlite => options.acquire_timeout(SQLITE_WAIT),
            Engine::Postgres => options,
        };
        let pool = options.connect(&url).await?;
        let (lean, bytes) = match engine {
            Engine::Sqlite => (LEAN_SQLITE, BYTES_SQLITE),
            Engine::Postgres => (LEAN_POSTGRES, BYTES_POSTGRES),
        };
        let tables = [
            (1, "accounts", TABLES),
            (2, "callers", CALLERS),
            (3, "lean", lean),
            (4, "told", TOLD),
            (5, "bytes", bytes),
        ];
        let tables = tables.map(|(number, name, sql)| {
            Migration::new(number, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        });
        Migrator::with_migrations(tables.into()).run(&pool).await?;
        Ok(Store { pool, engine, file })
    }

    /// How many keys a database that is there has, and what SQLite finds wrong with it. Makes and changes nothing.
    pub(super) async fn examine(url: &str) -> Result<(i64, Option<String>), AccountsError> {
        let scheme = url.split(':').next().unwrap_or_default();
        let (engine, url) = match scheme {
            "sqlite" => {
                let path = url.split('?').next().unwrap_or(url);
                (Engine::Sqlite, format!("{path}?mode=ro"))
            }
            "postgres" | "postgresql" => (Engine::Postgres, url.to_owned()),
            _ => return Err(AccountsError::Url { got: scheme.chars().take(32).collect() }),
        };
        install_default_drivers();
        let mut connection = AnyConnection::connect(&url).await?;
        let mut wrong = None;
        if engine == Engine::Sqlite {
            let found: String =
                sqlx::query("PRAGMA quick_check(1)").fetch_one(&mut connection).await?.try_get(0)?;
            wrong = (found != "ok").then_some(found);
        }
        let keys = sqlx::query("SELECT COUNT(*) FROM keys").fetch_one(&mut connection).await?.try_get(0)?;
        connection.close().await?;
        Ok((keys, wrong))
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    pub(super) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    pub(super) async fn begin(&self) -> Result<Transaction<'static, Any>, AccountsError> {
        Ok(match self.engine {
            // To begin as a reader and become a writer fails where another has written meanwhile.
            Engine::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Engine::Postgres => self.pool.begin().await?,
        })
    }

    pub(super) async fn credit(
        &self,
        account: &str,
        amount: MicroUsd,
        payment: &str,
        note: &str,
        now_ms: i64,
    ) -> Result<bool, AccountsError> {
        let mut tx = self.begin().await?;
        make_account(&mut tx, account, now_ms).await?;
        let added = sqlx::query(
            "INSERT INTO credits (id, account, amount, note, at_ms) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        );
        let added = added.bind(payment).bind(account).bind(amount.column()).bind(note).bind(now_ms);
        let added = added.execute(&mut *tx).await?.rows_affected() == 1;
        if added {
            let update = sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE name = $1");
            update.bind(account).bind(amount.column()).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        if self.engine == Engine::Sqlite {
            sqlx::query("PRAGMA wal_checkpoint(FULL)").execute(&self.pool).await?;
        }
        Ok(added)
    }

    pub(super) async fn create_key(&self, key: &Key, secret: SecretHash) -> Result<(), AccountsError> {
        let mut tx = self.begin().await?;
        make_account(&mut tx, &key.account, key.created_ms).await?;
        let count = sqlx::query("SELECT COUNT(*) FROM keys WHERE account = $1").bind(&key.account);
        if count.fetch_one(&mut *tx).await?.try_get::<i64, _>(0)? >= KEYS_MAX {
            return Err(AccountsError::TooManyKeys);
        }
        let insert = sqlx::query(
            "INSERT INTO keys (id, account, name, secret_hash, hint, created_ms, per_minute, at_once, per_day, due_ms, day, day_spent) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, 0)",
        );
        let insert = insert.bind(&key.id).bind(&key.account).bind(&key.name).bind(secret.to_string());
        let insert = insert.bind(&key.hint).bind(key.created_ms);
        let [per_minute, at_once, per_day] = columns(key.limits);
        insert.bind(per_minute).bind(at_once).bind(per_day).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }

    pub(super) async fn key(&self, secret: SecretHash) -> Result<Option<Key>, AccountsError> {
        let found = format!("SELECT {KEY_COLUMNS} FROM keys WHERE secret_hash = $1");
        let found = sqlx::query(AssertSqlSafe(found)).bind(secret.to_string());
        found.fetch_optional(&self.pool).await?.map(|row| key_of(&Row::of(&row)?)).transpose()
    }

    pub(super) async fn keys(&self, account: Option<&str>) -> Result<Vec<Key>, AccountsError> {
        let found =
            format!("SELECT {KEY_COLUMNS} FROM keys WHERE $1 = '' OR account = $1 ORDER BY created_ms, id");
        let rows = sqlx::query(AssertSqlSafe(found)).bind(account.unwrap_or_default());
        rows.fetch_all(&self.pool).await?.iter().map(|row| key_of(&Row::of(row)?)).collect()
    }

    pub(super) async fn accounts(&self) -> Result<Vec<Account>, AccountsError> {
        let rows = sqlx::query("SELECT name, balance FROM accounts ORDER BY name").fetch_all(&self.pool);
        rows.await?.iter().map(account_of).collect()
    }

    pub(super) async fn account(&self, name: &str) -> Result<Option<Account>, AccountsError> {
        let row = sqlx::query("SELECT name, balance FROM accounts WHERE name = $1").bind(name);
        row.fetch_optional(&self.pool).await?.as_ref().map(account_of).transpose()
    }

    pub(super) async fn limit(&self, key_id: &str, limits: Limits) -> Result<(), AccountsError> {
        let [per_minute, at_once, per_day] = columns(limits);
        let update = sqlx::query("UPDATE keys SET per_minute = $2, at_once = $3, per_day = $4 WHERE id = $1");
        let update = update.bind(key_id).bind(per_minute).bind(at_once).bind(per_day);
        match update.execute(&self.pool).await?.rows_affected() {
            0 => Err(AccountsError::UnknownKeyId { id: key_id.to_owned() }),
            _ => Ok(()),
        }
    }

    pub(super) async fn revoke(&self, key_id: &str, now_ms: i64) -> Result<bool, AccountsError> {
        let update = sqlx::query("UPDATE keys SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL");
        if update.bind(key_id).bind(now_ms).execute(&self.pool).await?.rows_affected() == 1 {
            return Ok(true);
        }
        let found = sqlx::query("SELECT id FROM keys WHERE id = $1").bind(key_id);
        match found.fetch_optional(&self.pool).await? {
            Some(_) => Ok(false),
            None => Err(AccountsError::UnknownKeyId { id: key_id.to_owned() }),
        }
    }

    /// A connection to SQLite that writes what requests do. Whoever uses it makes the checkpoints.
    pub(super) fn here(&self) -> Result<Connection, AccountsError> {
        let connection = Connection::open(&self.file)?;
        for (pragma, value) in SQLITE_PRAGMAS {
            connection.pragma_update(None, pragma, value)?;
        }
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.set_prepared_statement_cache_capacity(PREPARED_MAX);
        Ok(connection)
    }

    /// A connection to Postgres for a task that writes.
    pub(super) async fn connection(&self) -> Result<PoolConnection<Any>, AccountsError> {
        Ok(self.pool.acquire().await?)
    }

    /// Holds whose time is over.
    pub(super) async fn over(&self, now_ms: i64) -> Result<Vec<HoldId>, AccountsError> {
        let over = sqlx::query("SELECT id FROM holds WHERE expires_ms <= $1").bind(now_ms);
        let rows = over.fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok(HoldId(row.try_get(0)?))).collect()
    }

    /// Lets go of what was told before this.
    pub(super) async fn forget(&self, before_ms: i64) -> Result<(), AccountsError> {
        let delete = sqlx::query("DELETE FROM told WHERE at_ms < $1").bind(before_ms);
        delete.execute(&self.pool).await?;
        Ok(())
    }

    pub(super) async fn books(&self, account: &str) -> Result<Books, AccountsError> {
        let row = sqlx::query(
            "SELECT (SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM credits WHERE account = $1), \
             (SELECT CAST(COALESCE(SUM(balance), 0) AS BIGINT) FROM accounts WHERE name = $1), \
             (SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM holds WHERE account = $1), \
             (SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM charges WHERE account = $1)",
        );
        let row = row.bind(account).fetch_one(&self.pool).await?;
        let sum = |at: usize| Ok::<_, AccountsError>(MicroUsd::from_column(row.try_get(at)?));
        Ok(Books { credited: sum(0)?, balance: sum(1)?, held: sum(2)?, charged: sum(3)? })
    }

    pub(super) async fn charges(&self, period: &Period, offset: i64) -> Result<Vec<Charge>, AccountsError> {
        let found = format!(
            "SELECT {CHARGE_COLUMNS} FROM charges WHERE at_ms >= $1 AND at_ms < $2 AND ($3 = '' OR account = $3) \
             AND ($4 = '' OR key_id = $4) ORDER BY at_ms, id LIMIT $5 OFFSET $6",
        );
        let rows = sqlx::query(AssertSqlSafe(found));
        let rows = rows.bind(period.from_ms).bind(period.until_ms);
        let rows = rows.bind(period.account.as_deref().unwrap_or_default());
        let rows = rows.bind(period.key_id.as_deref().unwrap_or_default()).bind(USAGE_PAGE_MAX).bind(offset);
        rows.fetch_all(&self.pool).await?.iter().map(|row| charge_of(&Row::of(row)?)).collect()
    }

    pub(super) async fn totals(&self, period: &Period) -> Result<Vec<UsageTotal>, AccountsError> {
        let rows = sqlx::query(
            "SELECT key_id, model, COUNT(*), CAST(SUM(prompt_tokens) AS BIGINT), CAST(SUM(completion_tokens) AS BIGINT), \
             CAST(SUM(amount) AS BIGINT) FROM charges WHERE at_ms >= $1 AND at_ms < $2 AND ($3 = '' OR account = $3) \
             AND ($4 = '' OR key_id = $4) GROUP BY key_id, model ORDER BY key_id, model",
        );
        let rows = rows.bind(period.from_ms).bind(period.until_ms);
        let rows = rows.bind(period.account.as_deref().unwrap_or_default());
        let rows = rows.bind(period.key_id.as_deref().unwrap_or_default());
        let total = |row: &AnyRow| {
            let count =
                |at: usize| Ok::<_, AccountsError>(u64::try_from(row.try_get::<i64, _>(at)?).unwrap_or(0));
            Ok(UsageTotal {
                key_id: row.try_get(0)?,
                model: row.try_get(1)?,
                requests: count(2)?,
                prompt_tokens: count(3)?,
                completion_tokens: count(4)?,
                amount: MicroUsd(count(5)?),
            })
        };
        rows.fetch_all(&self.pool).await?.iter().map(total).collect()
    }
}

/// A file that is not there is made.
fn made_if_absent(url: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    if url.contains("mode=") { url.to_owned() } else { format!("{url}{joint}mode=rwc") }
}

pub(super) async fn make_account(
    tx: &mut Transaction<'static, Any>,
    name: &str,
    now_ms: i64,
) -> Result<(), AccountsError> {
    let insert = sqlx::query(
        "INSERT INTO accounts (name, balance, created_ms) VALUES ($1, 0, $2) ON CONFLICT DO NOTHING",
    );
    insert.bind(name).bind(now_ms).execute(&mut **tx).await?;
    Ok(())
}

fn columns(limits: Limits) -> [Option<i64>; 3] {
    [limits.per_minute.map(i64::from), limits.at_once.map(i64::from), limits.per_day.map(MicroUsd::column)]
}

/// A key's columns, in the order in which [`key_of`] reads them, and how many these are.
pub(super) const KEY_COLUMNS: &str =
    "id, account, name, hint, created_ms, revoked_ms, per_minute, at_once, per_day";
pub(super) const KEY_COLUMNS_COUNT: usize = 9;

/// The same, and what says whose it is and what it has used.
pub(super) const KEY_STATE_COLUMNS: &str = "id, account, name, hint, created_ms, revoked_ms, per_minute, at_once, per_day, secret_hash, due_ms, day, day_spent";

pub(super) fn key_of(row: &Row) -> Result<Key, AccountsError> {
    let narrow = |column| {
        Ok::<_, AccountsError>(row.number_if_any(column)?.map(|most| u32::try_from(most).unwrap_or(u32::MAX)))
    };
    Ok(Key {
        id: row.text(0)?,
        account: row.text(1)?,
        name: row.text(2)?,
        hint: row.text(3)?,
        created_ms: row.number(4)?,
        revoked_ms: row.number_if_any(5)?,
        limits: Limits {
            per_minute: narrow(6)?,
            at_once: narrow(7)?,
            per_day: row.number_if_any(8)?.map(MicroUsd::from_column),
        },
    })
}

fn account_of(row: &AnyRow) -> Result<Account, AccountsError> {
    Ok(Account { name: row.try_get(0)?, balance: MicroUsd::from_column(row.try_get(1)?) })
}

/// A charge's columns, in the order in which [`charge_of`] reads them.
pub(super) const CHARGE_COLUMNS: &str =
    "id, key_id, account, amount, at_ms, receipt, provider, model, prompt_tokens, completion_tokens";

/// How many these are.
pub(super) const CHARGE_COLUMNS_COUNT: usize = 10;

pub(super) fn charge_of(row: &Row) -> Result<Charge, AccountsError> {
    let tokens = |column| Ok::<_, AccountsError>(u32::try_from(row.number(column)?).unwrap_or(u32::MAX));
    Ok(Charge {
        id: HoldId(row.text(0)?),
        key_id: row.text(1)?,
        account: row.text(2)?,
        amount: MicroUsd::from_column(row.number(3)?),
        at_ms: row.number(4)?,
        answer: Answered {
            receipt: row.text(5)?,
            provider: row.text(6)?,
            model: row.text(7)?,
            prompt_tokens: tokens(8)?,
            completion_tokens: tokens(9)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever has had a gateway before loses no money by a new one.
    #[test]
    fn books_of_earlier_versions_are_kept() {
        let books = Connection::open_in_memory().unwrap();
        books.execute_batch(TABLES).unwrap();
        books.execute_batch(CALLERS).unwrap();
        books
            .execute_batch(
                "INSERT INTO accounts VALUES ('a', 70, 1);
                 INSERT INTO keys VALUES ('k', 'a', 'n', 's', 'h', 1, NULL, NULL, NULL, NULL, 0, 0, 0);
                 INSERT INTO holds VALUES ('h1', 'k', 'a', 10, 'r', 3, 4), ('h2', 'k', 'a', 11, 'r', 3, 5);
                 INSERT INTO charges VALUES ('c1', 'k', 'a', 12, 'r', 6, 'x', 'p', 'm', 7, 8);",
            )
            .unwrap();
        let all = |sql: &str| -> Vec<String> {
            let mut found = books.prepare(sql).unwrap();
            let columns = found.column_count();
            let row = |row: &rusqlite::Row<'_>| {
                (0..columns).map(|at| Ok(format!("{:?}", row.get_ref(at)?))).collect::<Result<String, _>>()
            };
            found.query_map([], row).unwrap().map(Result::unwrap).collect()
        };
        let (holds, charges) = ("SELECT * FROM holds ORDER BY id", "SELECT * FROM charges ORDER BY id");
        let before = (all(holds), all(charges));
        books.execute_batch(LEAN_SQLITE).unwrap();
        assert_eq!((all(holds), all(charges)), before);
        assert_eq!((before.0.len(), before.1.len()), (2, 1));
    }
}
