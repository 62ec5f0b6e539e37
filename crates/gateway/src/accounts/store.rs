//! The tables, in SQL that SQLite and Postgres both understand (`migrations/`).
//!
//! Rows are locked in one order, key before account before hold, so that transactions of Postgres wait for each other and never in a circle.
//! SQLite's take the one lock there is when they begin.
//!
//! Durability: SQLite's journal is flushed at checkpoints and after every credit, so that kill -9 loses nothing, and a power failure loses at most the last
//! moments' holds and charges, which is the gateway's loss and no client's. Postgres flushes each commit, unless it is told not to.

use alloy_primitives::B128;
use sqlx::any::{AnyPoolOptions, AnyRow, install_default_drivers};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AnyConnection, AnyPool, Connection as _, Row as _, SqlSafeStr as _, Transaction};

use super::limits::{Used, admit};
use super::usage::{Period, USAGE_PAGE_MAX, UsageTotal};
use super::{
    Account, AccountsError, Answered, Ask, Attempt, Books, Charge, Hold, HoldId, KEYS_MAX, Key, Limits,
    MicroUsd, RETRY_WINDOW_MS, Refused, RequestKey, Reserved, SecretHash, Settled,
};

const TABLES: &str = include_str!("../../migrations/0001_accounts.sql");
/// Connections that readers and writers share.
const CONNECTIONS_MAX: u32 = 16;

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
}

/// Everything in it happens, or nothing.
pub(super) struct Tx {
    tx: Transaction<'static, Any>,
    engine: Engine,
}

/// 16 random bytes in hex.
pub(super) fn random_id() -> String {
    hex::encode(B128::random())
}

impl RequestKey {
    fn column(&self) -> String {
        hex::encode(self.0)
    }
}

impl Store {
    pub(super) async fn open(url: &str) -> Result<Store, AccountsError> {
        let scheme = url.split(':').next().unwrap_or_default();
        let (engine, url) = match scheme {
            "sqlite" => (Engine::Sqlite, made_if_absent(url)),
            "postgres" | "postgresql" => (Engine::Postgres, url.to_owned()),
            // Only the scheme: the rest may hold a password.
            _ => return Err(AccountsError::Url { got: scheme.chars().take(32).collect() }),
        };
        install_default_drivers();
        let options = AnyPoolOptions::new().max_connections(CONNECTIONS_MAX);
        let options = options.after_connect(move |connection, _| {
            Box::pin(async move {
                if engine == Engine::Sqlite {
                    for pragma in [
                        "PRAGMA busy_timeout = 10000",
                        "PRAGMA journal_mode = WAL",
                        "PRAGMA synchronous = NORMAL",
                    ] {
                        sqlx::query(pragma).execute(&mut *connection).await?;
                    }
                }
                Ok(())
            })
        });
        let pool = options.connect(&url).await?;
        let first = Migration::new(1, "accounts".into(), MigrationType::Simple, TABLES.into_sql_str(), false);
        Migrator::with_migrations(vec![first]).run(&pool).await?;
        Ok(Store { pool, engine })
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

    pub(super) async fn begin(&self) -> Result<Tx, AccountsError> {
        let tx = match self.engine {
            // To begin as a reader and become a writer fails where another has written meanwhile.
            Engine::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Engine::Postgres => self.pool.begin().await?,
        };
        Ok(Tx { tx, engine: self.engine })
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
        tx.make_account(account, now_ms).await?;
        let added = sqlx::query(
            "INSERT INTO credits (id, account, amount, note, at_ms) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        );
        let added = added.bind(payment).bind(account).bind(amount.column()).bind(note).bind(now_ms);
        let added = added.execute(&mut *tx.tx).await?.rows_affected() == 1;
        if added {
            tx.add(account, amount.column()).await?;
        }
        tx.commit().await?;
        if self.engine == Engine::Sqlite {
            sqlx::query("PRAGMA wal_checkpoint(FULL)").execute(&self.pool).await?;
        }
        Ok(added)
    }

    pub(super) async fn create_key(&self, key: &Key, secret: SecretHash) -> Result<(), AccountsError> {
        let mut tx = self.begin().await?;
        tx.make_account(&key.account, key.created_ms).await?;
        let count = sqlx::query("SELECT COUNT(*) FROM keys WHERE account = $1").bind(&key.account);
        if count.fetch_one(&mut *tx.tx).await?.try_get::<i64, _>(0)? >= KEYS_MAX {
            return Err(AccountsError::TooManyKeys);
        }
        let insert = sqlx::query(
            "INSERT INTO keys (id, account, name, secret_hash, hint, created_ms, per_minute, at_once, per_day, due_ms, day, day_spent) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, 0)",
        );
        let insert = insert.bind(&key.id).bind(&key.account).bind(&key.name).bind(secret.to_string());
        let insert = insert.bind(&key.hint).bind(key.created_ms);
        let [per_minute, at_once, per_day] = columns(key.limits);
        insert.bind(per_minute).bind(at_once).bind(per_day).execute(&mut *tx.tx).await?;
        tx.commit().await
    }

    pub(super) async fn key(&self, secret: SecretHash) -> Result<Option<Key>, AccountsError> {
        let found = sqlx::query("SELECT * FROM keys WHERE secret_hash = $1").bind(secret.to_string());
        found.fetch_optional(&self.pool).await?.as_ref().map(key_of).transpose()
    }

    pub(super) async fn keys(&self, account: Option<&str>) -> Result<Vec<Key>, AccountsError> {
        let rows = match account {
            None => sqlx::query("SELECT * FROM keys ORDER BY created_ms, id"),
            Some(account) => {
                sqlx::query("SELECT * FROM keys WHERE account = $1 ORDER BY created_ms, id").bind(account)
            }
        };
        rows.fetch_all(&self.pool).await?.iter().map(key_of).collect()
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

    pub(super) async fn expire(&self, now_ms: i64) -> Result<u64, AccountsError> {
        let over = sqlx::query("SELECT id FROM holds WHERE expires_ms <= $1").bind(now_ms);
        let mut count = 0;
        for row in over.fetch_all(&self.pool).await? {
            let mut tx = self.begin().await?;
            if let Settled::Now(_) = tx.release(&HoldId(row.try_get(0)?)).await? {
                count += 1;
            }
            tx.commit().await?;
        }
        Ok(count)
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
        let rows = sqlx::query(
            "SELECT * FROM charges WHERE at_ms >= $1 AND at_ms < $2 AND ($3 = '' OR account = $3) AND ($4 = '' OR key_id = $4) \
             ORDER BY at_ms, id LIMIT $5 OFFSET $6",
        );
        let rows = rows.bind(period.from_ms).bind(period.until_ms);
        let rows = rows.bind(period.account.as_deref().unwrap_or_default());
        let rows = rows.bind(period.key_id.as_deref().unwrap_or_default()).bind(USAGE_PAGE_MAX).bind(offset);
        rows.fetch_all(&self.pool).await?.iter().map(charge_of).collect()
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

impl Tx {
    pub(super) async fn commit(self) -> Result<(), AccountsError> {
        Ok(self.tx.commit().await?)
    }

    pub(super) async fn roll_back(self) {
        // A connection that cannot even do this is closed, with the same effect.
        let _ = self.tx.rollback().await;
    }

    async fn make_account(&mut self, name: &str, now_ms: i64) -> Result<(), AccountsError> {
        let insert = sqlx::query(
            "INSERT INTO accounts (name, balance, created_ms) VALUES ($1, 0, $2) ON CONFLICT DO NOTHING",
        );
        insert.bind(name).bind(now_ms).execute(&mut *self.tx).await?;
        Ok(())
    }

    async fn add(&mut self, account: &str, amount: i64) -> Result<(), AccountsError> {
        let update = sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE name = $1");
        update.bind(account).bind(amount).execute(&mut *self.tx).await?;
        Ok(())
    }

    pub(super) async fn reserve(&mut self, ask: &Ask) -> Result<Reserved, AccountsError> {
        let key = sqlx::query(match self.engine {
            Engine::Sqlite => "SELECT * FROM keys WHERE secret_hash = $1",
            Engine::Postgres => "SELECT * FROM keys WHERE secret_hash = $1 FOR UPDATE",
        });
        let row = key.bind(ask.secret.to_string()).fetch_optional(&mut *self.tx).await?;
        let row = row.ok_or(Refused::UnknownKey)?;
        let key = key_of(&row)?;
        if key.revoked_ms.is_some() {
            return Err(Refused::Revoked.into());
        }
        if ask.attempt == Attempt::Again
            && let Some(charge) = self.answered(&key.id, ask).await?
        {
            return Ok(Reserved::Answered(Box::new(charge)));
        }
        let running = sqlx::query("SELECT COUNT(*) FROM holds WHERE key_id = $1").bind(&key.id);
        let used = Used {
            due_ms: row.try_get("due_ms")?,
            day: row.try_get("day")?,
            day_spent: row.try_get("day_spent")?,
            running: running.fetch_one(&mut *self.tx).await?.try_get(0)?,
        };
        let after = admit(&key.limits, used, ask.amount, ask.now_ms)?;
        let taken =
            sqlx::query("UPDATE accounts SET balance = balance - $2 WHERE name = $1 AND balance >= $2");
        let taken = taken.bind(&key.account).bind(ask.amount.column()).execute(&mut *self.tx).await?;
        if taken.rows_affected() == 0 {
            let balance = sqlx::query("SELECT balance FROM accounts WHERE name = $1").bind(&key.account);
            let balance = MicroUsd::from_column(balance.fetch_one(&mut *self.tx).await?.try_get(0)?);
            return Err(Refused::Balance { balance, needed: ask.amount }.into());
        }
        let counted = sqlx::query("UPDATE keys SET due_ms = $2, day = $3, day_spent = $4 WHERE id = $1");
        let counted = counted.bind(&key.id).bind(after.due_ms).bind(after.day).bind(after.day_spent);
        counted.execute(&mut *self.tx).await?;
        let hold = Hold { id: HoldId(random_id()), key_id: key.id, amount: ask.amount };
        let insert = sqlx::query(
            "INSERT INTO holds (id, key_id, account, amount, request, day, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        );
        let insert = insert.bind(&hold.id.0).bind(&hold.key_id).bind(&key.account).bind(ask.amount.column());
        let insert = insert.bind(ask.request.column()).bind(after.day).bind(ask.expires_ms);
        insert.execute(&mut *self.tx).await?;
        Ok(Reserved::Held(hold))
    }

    /// What an earlier attempt at this request was charged, within the window.
    async fn answered(&mut self, key_id: &str, ask: &Ask) -> Result<Option<Charge>, AccountsError> {
        let found = sqlx::query(
            "SELECT * FROM charges WHERE key_id = $1 AND request = $2 AND at_ms >= $3 ORDER BY at_ms DESC LIMIT 1",
        );
        let since_ms = ask.now_ms.saturating_sub(RETRY_WINDOW_MS);
        let found = found.bind(key_id).bind(ask.request.column()).bind(since_ms);
        found.fetch_optional(&mut *self.tx).await?.as_ref().map(charge_of).transpose()
    }

    pub(super) async fn charge(
        &mut self,
        hold: &HoldId,
        amount: MicroUsd,
        answer: &Answered,
        now_ms: i64,
    ) -> Result<Settled, AccountsError> {
        let Some(held) = self.end(hold, amount).await? else { return self.before(hold).await };
        let insert = sqlx::query(
            "INSERT INTO charges (id, key_id, account, amount, request, at_ms, receipt, provider, model, prompt_tokens, completion_tokens) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        );
        let insert = insert.bind(&hold.0).bind(held.key_id).bind(held.account).bind(held.kept);
        let insert = insert.bind(held.request).bind(now_ms).bind(&answer.receipt).bind(&answer.provider);
        let insert = insert.bind(&answer.model).bind(i64::from(answer.prompt_tokens));
        insert.bind(i64::from(answer.completion_tokens)).execute(&mut *self.tx).await?;
        Ok(Settled::Now(MicroUsd::from_column(held.kept)))
    }

    pub(super) async fn release(&mut self, hold: &HoldId) -> Result<Settled, AccountsError> {
        match self.end(hold, MicroUsd(0)).await? {
            Some(_) => Ok(Settled::Now(MicroUsd(0))),
            None => self.before(hold).await,
        }
    }

    async fn before(&mut self, hold: &HoldId) -> Result<Settled, AccountsError> {
        let found = sqlx::query("SELECT amount FROM charges WHERE id = $1").bind(&hold.0);
        let charged = match found.fetch_optional(&mut *self.tx).await? {
            None => 0,
            Some(row) => row.try_get(0)?,
        };
        Ok(Settled::Before(MicroUsd::from_column(charged)))
    }

    /// Takes a hold away and gives back what of it is not kept.
    async fn end(&mut self, hold: &HoldId, amount: MicroUsd) -> Result<Option<Ended>, AccountsError> {
        let found = sqlx::query("SELECT key_id FROM holds WHERE id = $1").bind(&hold.0);
        let Some(row) = found.fetch_optional(&mut *self.tx).await? else { return Ok(None) };
        let key_id: String = row.try_get(0)?;
        if self.engine == Engine::Postgres {
            let key = sqlx::query("SELECT id FROM keys WHERE id = $1 FOR UPDATE").bind(&key_id);
            key.fetch_one(&mut *self.tx).await?;
        }
        let deleted = sqlx::query("DELETE FROM holds WHERE id = $1 RETURNING account, amount, request, day");
        // None where another has ended it meanwhile.
        let Some(row) = deleted.bind(&hold.0).fetch_optional(&mut *self.tx).await? else { return Ok(None) };
        let (account, held): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        let kept = amount.column().min(held);
        let back = held.saturating_sub(kept);
        // What was set aside on a day that is over counts no more.
        let counted = sqlx::query(
            "UPDATE keys SET day_spent = day_spent - (CASE WHEN day = $2 THEN $3 ELSE 0 END) WHERE id = $1",
        );
        let counted = counted.bind(&key_id).bind(row.try_get::<i64, _>(3)?).bind(back);
        counted.execute(&mut *self.tx).await?;
        self.add(&account, back).await?;
        Ok(Some(Ended { key_id, account, kept, request: row.try_get(2)? }))
    }
}

struct Ended {
    key_id: String,
    account: String,
    kept: i64,
    request: String,
}

fn columns(limits: Limits) -> [Option<i64>; 3] {
    [limits.per_minute.map(i64::from), limits.at_once.map(i64::from), limits.per_day.map(MicroUsd::column)]
}

fn key_of(row: &AnyRow) -> Result<Key, AccountsError> {
    let narrow = |column| {
        Ok::<_, AccountsError>(
            row.try_get::<Option<i64>, _>(column)?.map(|most| u32::try_from(most).unwrap_or(u32::MAX)),
        )
    };
    Ok(Key {
        id: row.try_get("id")?,
        account: row.try_get("account")?,
        name: row.try_get("name")?,
        hint: row.try_get("hint")?,
        created_ms: row.try_get("created_ms")?,
        revoked_ms: row.try_get("revoked_ms")?,
        limits: Limits {
            per_minute: narrow("per_minute")?,
            at_once: narrow("at_once")?,
            per_day: row.try_get::<Option<i64>, _>("per_day")?.map(MicroUsd::from_column),
        },
    })
}

fn account_of(row: &AnyRow) -> Result<Account, AccountsError> {
    Ok(Account { name: row.try_get(0)?, balance: MicroUsd::from_column(row.try_get(1)?) })
}

fn charge_of(row: &AnyRow) -> Result<Charge, AccountsError> {
    let tokens =
        |column| Ok::<_, AccountsError>(u32::try_from(row.try_get::<i64, _>(column)?).unwrap_or(u32::MAX));
    Ok(Charge {
        id: HoldId(row.try_get("id")?),
        key_id: row.try_get("key_id")?,
        account: row.try_get("account")?,
        amount: MicroUsd::from_column(row.try_get("amount")?),
        at_ms: row.try_get("at_ms")?,
        answer: Answered {
            receipt: row.try_get("receipt")?,
            provider: row.try_get("provider")?,
            model: row.try_get("model")?,
            prompt_tokens: tokens("prompt_tokens")?,
            completion_tokens: tokens("completion_tokens")?,
        },
    })
}
