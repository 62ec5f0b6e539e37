//! Payments of callers without an account: what each of them is good for, and what came of it.
//!
//! A payment goes one way: *running*, then *answered*, then *settled*; or it is *failed* or *lapsed*; one whose request failed is forgotten, and can be used again. Its
//! id is that of what it can move once, so that nothing is answered twice for one payment. What was moved is credited to an account of the payer's, and
//! charged to it, in one transaction: that account's balance does not change, and its books agree at every moment.

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::store::{Engine, Store, make_account};
use super::{Accounts, AccountsError, Answered, MicroUsd, RETRY_WINDOW_MS, RequestKey};

/// Payments of one payer that may run at the same time, however many it has settled.
pub const CALLER_RUNNING_MAX: u32 = 16;
/// How long a payer is refused whose payment could not be settled, in milliseconds.
pub const BARRED_MS: i64 = 60 * 60 * 1000;

/// Where a payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its request is under way.
    Running,
    /// The answer is there, and is to be settled.
    Answered,
    /// The tokens were moved, or nothing had to be.
    Settled,
    /// They could not be moved, by the payer's doing.
    Failed,
    /// They could not be moved, by nobody's or the gateway's doing.
    Lapsed,
}

impl Stage {
    fn column(self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::Answered => "answered",
            Stage::Settled => "settled",
            Stage::Failed => "failed",
            Stage::Lapsed => "lapsed",
        }
    }

    fn from_column(text: &str) -> Stage {
        match text {
            "answered" => Stage::Answered,
            "settled" => Stage::Settled,
            "failed" => Stage::Failed,
            "lapsed" => Stage::Lapsed,
            _ => Stage::Running,
        }
    }
}

/// A payment that wants to be used for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pledge {
    /// Names what it can move once.
    pub id: String,
    /// The account that the payer has here.
    pub payer: String,
    /// Who is paid.
    pub receiver: String,
    /// What the request is.
    pub request: RequestKey,
    /// The most that it may move.
    pub most: MicroUsd,
    /// What the payer has, and may be moved.
    pub cover: u128,
    /// What was signed, to be settled after a crash.
    pub signed: String,
    /// The block from which on it may be settled.
    pub from_block: u64,
    /// Whether the client says that it has sent this request before.
    pub again: bool,
    /// Milliseconds since 1970.
    pub now_ms: i64,
}

/// A payment as the books have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerPayment {
    /// Names what it can move once.
    pub id: String,
    /// Where it stands.
    pub stage: Stage,
    /// The account that the payer has here.
    pub payer: String,
    /// What the request was, in hex.
    pub request: String,
    /// What was signed.
    pub signed: String,
    /// The block from which on it may be settled.
    pub from_block: u64,
    /// What the answer cost, or what was moved for it.
    pub amount: MicroUsd,
    /// The answer's receipt.
    pub receipt: String,
    /// What the caller was told, while it may ask again.
    pub told: Option<Vec<u8>>,
    /// The transaction, or why there is none.
    pub hash: String,
    /// When it ended, in milliseconds since 1970; 0 if it has not.
    pub ended_ms: i64,
}

/// What a payment is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pledged {
    /// Run the request.
    Run,
    /// It, or an earlier payment for the same request, is known: this is what came of it.
    Known(Box<CallerPayment>),
    /// The payer's other payments under way leave too little.
    Uncovered {
        /// What all of them and this one may move.
        needed: u128,
    },
    /// Too many are under way for what the payer has settled.
    Crowded {
        /// How many.
        running: u32,
    },
    /// One of the payer's could not be settled a while ago.
    Barred,
    /// The operator has revoked the payer's key.
    Revoked,
}

impl Accounts {
    /// Reserves a payment for a request, durably, if nothing speaks against it.
    pub async fn pledge(&self, pledge: &Pledge) -> Result<Pledged, AccountsError> {
        let mut tx = self.store.begin().await?;
        let pledged = begin(&mut tx, self.store.engine(), pledge).await?;
        tx.commit().await?;
        Ok(pledged)
    }

    /// The request failed: the payment may be used again.
    pub async fn withdraw_pledge(&self, id: &str) -> Result<(), AccountsError> {
        let delete = sqlx::query("DELETE FROM caller_payments WHERE id = $1 AND state = 'running'");
        delete.bind(id).execute(self.store.pool()).await?;
        Ok(())
    }

    /// The answer is there. From now on it is settled, whatever happens, and told again to whoever sends the payment again, unless it was stopped. `false`
    /// says that the payment does not run: another gateway has begun in this one's place.
    pub async fn pledge_answered(
        &self,
        id: &str,
        amount: MicroUsd,
        answer: &Answered,
        told: Option<&[u8]>,
    ) -> Result<bool, AccountsError> {
        let update = sqlx::query(
            "UPDATE caller_payments SET state = 'answered', amount = $2, receipt = $3, provider = $4, model = $5, prompt_tokens = $6, \
             completion_tokens = $7, told = $8 WHERE id = $1 AND state = 'running'",
        );
        let update = update.bind(id).bind(amount.column()).bind(&answer.receipt).bind(&answer.provider);
        let update = update.bind(&answer.model).bind(i64::from(answer.prompt_tokens));
        let update = update.bind(i64::from(answer.completion_tokens)).bind(told.map(hex::encode));
        Ok(update.execute(self.store.pool()).await?.rows_affected() == 1)
    }

    /// This much was moved, by this transaction: credits and charges it. Asked again, it does nothing.
    pub async fn pledge_settled(
        &self,
        id: &str,
        moved: MicroUsd,
        transaction: &str,
        now_ms: i64,
    ) -> Result<(), AccountsError> {
        let mut tx = self.store.begin().await?;
        book(&mut tx, id, moved, transaction, now_ms).await?;
        tx.commit().await?;
        self.store.flush().await
    }

    /// Nothing was moved, and nothing will be.
    pub async fn pledge_failed(
        &self,
        id: &str,
        stage: Stage,
        reason: &str,
        now_ms: i64,
    ) -> Result<(), AccountsError> {
        let update = sqlx::query(
            "UPDATE caller_payments SET state = $2, hash = $3, ended_ms = $4, told = NULL WHERE id = $1 AND state = 'answered'",
        );
        let update = update.bind(id).bind(stage.column()).bind(reason).bind(now_ms);
        update.execute(self.store.pool()).await?;
        Ok(())
    }

    /// A payment.
    pub async fn caller_payment(&self, id: &str) -> Result<Option<CallerPayment>, AccountsError> {
        let found = sqlx::query("SELECT * FROM caller_payments WHERE id = $1").bind(id);
        found.fetch_optional(self.store.pool()).await?.as_ref().map(payment_of).transpose()
    }

    /// Payments to a receiver that are to be settled, oldest first.
    pub async fn unsettled(&self, receiver: &str) -> Result<Vec<CallerPayment>, AccountsError> {
        let found = sqlx::query(
            "SELECT * FROM caller_payments WHERE receiver = $1 AND state = 'answered' ORDER BY began_ms, id",
        );
        let rows = found.bind(receiver).fetch_all(self.store.pool()).await?;
        rows.iter().map(payment_of).collect()
    }

    /// The receiver's gateway has started: what ran when it died can be used again. Says how many there were.
    pub async fn forget_running(&self, receiver: &str) -> Result<u64, AccountsError> {
        let delete = sqlx::query("DELETE FROM caller_payments WHERE receiver = $1 AND state = 'running'");
        Ok(delete.bind(receiver).execute(self.store.pool()).await?.rows_affected())
    }

    /// Lets go of answers that cannot be asked for again.
    pub async fn forget_told(&self, now_ms: i64) -> Result<(), AccountsError> {
        let update = sqlx::query(
            "UPDATE caller_payments SET told = NULL WHERE ended_ms > 0 AND ended_ms < $1 AND told IS NOT NULL",
        );
        let before = now_ms.saturating_sub(RETRY_WINDOW_MS);
        update.bind(before).execute(self.store.pool()).await?;
        Ok(())
    }
}

/// The key that a payer's charges are listed under. Nobody has its secret: revoked, it bars the payer.
fn key_id(payer: &str) -> String {
    format!("key_{payer}")
}

/// Reserves a payment.
async fn begin(
    tx: &mut Transaction<'static, Any>,
    engine: Engine,
    pledge: &Pledge,
) -> Result<Pledged, AccountsError> {
    // One at a time of each payer.
    make_account(tx, &pledge.payer, pledge.now_ms).await?;
    if engine == Engine::Postgres {
        let account = sqlx::query("SELECT name FROM accounts WHERE name = $1 FOR UPDATE");
        account.bind(&pledge.payer).fetch_one(&mut **tx).await?;
    }
    let known = sqlx::query("SELECT * FROM caller_payments WHERE id = $1").bind(&pledge.id);
    if let Some(row) = known.fetch_optional(&mut **tx).await? {
        return Ok(Pledged::Known(Box::new(payment_of(&row)?)));
    }
    let revoked = sqlx::query("SELECT id FROM keys WHERE id = $1 AND revoked_ms IS NOT NULL");
    if revoked.bind(key_id(&pledge.payer)).fetch_optional(&mut **tx).await?.is_some() {
        return Ok(Pledged::Revoked);
    }
    let since_ms = pledge.now_ms.saturating_sub(BARRED_MS);
    let failed = sqlx::query(
        "SELECT id FROM caller_payments WHERE payer = $1 AND state = 'failed' AND ended_ms > $2 LIMIT 1",
    );
    if failed.bind(&pledge.payer).bind(since_ms).fetch_optional(&mut **tx).await?.is_some() {
        return Ok(Pledged::Barred);
    }
    if pledge.again {
        let earlier = sqlx::query(
            "SELECT * FROM caller_payments WHERE payer = $1 AND request = $2 AND \
             (state = 'answered' OR (state = 'settled' AND ended_ms >= $3 AND told IS NOT NULL)) ORDER BY began_ms DESC LIMIT 1",
        );
        let since_ms = pledge.now_ms.saturating_sub(RETRY_WINDOW_MS);
        let earlier = earlier.bind(&pledge.payer).bind(hex::encode(pledge.request.0)).bind(since_ms);
        if let Some(row) = earlier.fetch_optional(&mut **tx).await? {
            return Ok(Pledged::Known(Box::new(payment_of(&row)?)));
        }
    }
    let count = |what: &'static str| sqlx::query(what).bind(&pledge.payer);
    let running = count(
        "SELECT COUNT(*), CAST(COALESCE(SUM(most), 0) AS BIGINT) FROM caller_payments WHERE payer = $1 AND state IN ('running', 'answered')",
    );
    let row = running.fetch_one(&mut **tx).await?;
    let (running, pledged): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let settled =
        count("SELECT COUNT(*) FROM caller_payments WHERE payer = $1 AND state = 'settled' AND amount > 0");
    let settled: i64 = settled.fetch_one(&mut **tx).await?.try_get(0)?;
    let allowed = settled.saturating_add(1).min(i64::from(CALLER_RUNNING_MAX));
    if running >= allowed {
        return Ok(Pledged::Crowded { running: u32::try_from(running).unwrap_or(u32::MAX) });
    }
    let needed = u128::from(MicroUsd::from_column(pledged).0) + u128::from(pledge.most.0);
    if needed > pledge.cover {
        return Ok(Pledged::Uncovered { needed });
    }
    let insert = sqlx::query(
        "INSERT INTO caller_payments (id, payer, receiver, request, state, most, signed, from_block, began_ms, amount, receipt, provider, \
         model, prompt_tokens, completion_tokens, hash, ended_ms) \
         VALUES ($1, $2, $3, $4, 'running', $5, $6, $7, $8, 0, '', '', '', 0, 0, '', 0)",
    );
    let insert = insert.bind(&pledge.id).bind(&pledge.payer).bind(&pledge.receiver);
    let insert = insert.bind(hex::encode(pledge.request.0)).bind(pledge.most.column()).bind(&pledge.signed);
    let insert = insert.bind(i64::try_from(pledge.from_block).unwrap_or(i64::MAX)).bind(pledge.now_ms);
    insert.execute(&mut **tx).await?;
    Ok(Pledged::Run)
}

/// Credits and charges what was moved.
async fn book(
    tx: &mut Transaction<'static, Any>,
    id: &str,
    moved: MicroUsd,
    transaction: &str,
    now_ms: i64,
) -> Result<(), AccountsError> {
    let update = sqlx::query(
        "UPDATE caller_payments SET state = 'settled', amount = $2, hash = $3, ended_ms = $4 WHERE id = $1 AND state = 'answered'",
    );
    let update = update.bind(id).bind(moved.column()).bind(transaction).bind(now_ms);
    if update.execute(&mut **tx).await?.rows_affected() == 0 {
        return Ok(());
    }
    let found = sqlx::query("SELECT * FROM caller_payments WHERE id = $1").bind(id);
    let row = found.fetch_one(&mut **tx).await?;
    let payer: String = row.try_get("payer")?;
    make_account(tx, &payer, now_ms).await?;
    let key = sqlx::query(
        "INSERT INTO keys (id, account, name, secret_hash, hint, created_ms, due_ms, day, day_spent) \
         VALUES ($1, $2, 'x402', $3, 'x402', $4, 0, 0, 0) ON CONFLICT DO NOTHING",
    );
    // No hash of a secret reads like this.
    let key = key.bind(key_id(&payer)).bind(&payer).bind(format!("none: {payer}")).bind(now_ms);
    key.execute(&mut **tx).await?;
    if moved.0 > 0 {
        let credit =
            sqlx::query("INSERT INTO credits (id, account, amount, note, at_ms) VALUES ($1, $2, $3, $4, $5)");
        let credit = credit.bind(format!("x402:{id}")).bind(&payer).bind(moved.column());
        credit.bind(transaction).bind(now_ms).execute(&mut **tx).await?;
    }
    let charge = sqlx::query(
        "INSERT INTO charges (id, key_id, account, amount, request, at_ms, receipt, provider, model, prompt_tokens, completion_tokens) \
         SELECT $1, $2, payer, amount, request, ended_ms, receipt, provider, model, prompt_tokens, completion_tokens \
         FROM caller_payments WHERE id = $1",
    );
    charge.bind(id).bind(key_id(&payer)).execute(&mut **tx).await?;
    Ok(())
}

fn payment_of(row: &AnyRow) -> Result<CallerPayment, AccountsError> {
    let told: Option<String> = row.try_get("told")?;
    Ok(CallerPayment {
        id: row.try_get("id")?,
        stage: Stage::from_column(&row.try_get::<String, _>("state")?),
        payer: row.try_get("payer")?,
        request: row.try_get("request")?,
        signed: row.try_get("signed")?,
        from_block: u64::try_from(row.try_get::<i64, _>("from_block")?).unwrap_or(0),
        amount: MicroUsd::from_column(row.try_get("amount")?),
        receipt: row.try_get("receipt")?,
        told: told.and_then(|told| hex::decode(told).ok()),
        hash: row.try_get("hash")?,
        ended_ms: row.try_get("ended_ms")?,
    })
}

impl Store {
    /// What was written survives a power failure: SQLite's journal is flushed.
    async fn flush(&self) -> Result<(), AccountsError> {
        if self.engine() == Engine::Sqlite {
            sqlx::query("PRAGMA wal_checkpoint(FULL)").execute(self.pool()).await?;
        }
        Ok(())
    }
}
