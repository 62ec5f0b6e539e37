//! Keys and credits: who may ask, what it may cost, what it did cost.
//!
//! An account has a balance that was paid in before; its keys spend it. A request *reserves* the most that it can cost, runs, and is then
//! *charged* what it did cost, or *released*. Invariant, to the unit and at every moment: what was credited to an account is its balance,
//! its holds and its charges ([`Accounts::books`]). A balance is never below zero.
//!
//! Everything is in one database: SQLite in a file, or Postgres for several gateways beside each other. What is remembered of SQLite's rows holds only as
//! long as SQLite says that nobody else has written. A gateway that dies leaves holds, which end by themselves when their time is over.
//!
//! It refuses to know who pays: credits come with the id of a payment that somebody else has checked.

mod advance;
mod batch;
mod books;
mod callers;
mod limits;
mod script;
mod secret;
mod sqlite;
mod store;
mod usage;
mod writer;

use std::fmt;

use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};

use self::batch::{Deed, Outcome};
pub use self::callers::{BARRED_MS, CALLER_RUNNING_MAX, CallerPayment, Pledge, Pledged, Stage};
pub use self::secret::{PREFIX, Secret, SecretError, SecretHash};
use self::store::Store;
pub use self::usage::{CSV_HEAD, Period, USAGE_PAGE_MAX, UsageTotal};
use self::writer::Writer;

/// Longest name of an account or a key, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most keys of an account.
pub const KEYS_MAX: i64 = 10_000;
/// Most that one credit may bring: a billion dollars. Sums of them stay far below what a column holds.
pub const CREDIT_MAX: MicroUsd = MicroUsd(1_000_000_000_000_000);
/// How long a repeated request is answered by what its first attempt has cost, in milliseconds.
pub const RETRY_WINDOW_MS: i64 = 15 * 60 * 1000;

/// Money: millionths of a US dollar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MicroUsd(pub u64);

impl MicroUsd {
    fn column(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    fn from_column(value: i64) -> MicroUsd {
        MicroUsd(u64::try_from(value).unwrap_or(0))
    }
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:06}", self.0 % 1_000_000);
        let shown = decimals.trim_end_matches('0').len().max(2);
        write!(f, "{}.{}", self.0 / 1_000_000, decimals.get(..shown).unwrap_or(&decimals))
    }
}

/// What a key may do; nothing that is absent is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests a minute; as many may come at once after a minute of silence.
    pub per_minute: Option<u32>,
    /// Requests that run at the same time.
    pub at_once: Option<u32>,
    /// Money a day (UTC), running requests included.
    pub per_day: Option<MicroUsd>,
}

/// A key as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Its name for machines.
    pub id: String,
    /// Whose balance it spends.
    pub account: String,
    /// Its name for people.
    pub name: String,
    /// How the secret begins.
    pub hint: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// Since when it is not taken any more.
    pub revoked_ms: Option<i64>,
    /// What it may do.
    pub limits: Limits,
}

/// An account as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// What is left, without holds.
    pub balance: MicroUsd,
}

/// By what a key is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// Who asks shows it.
    Secret(SecretHash),
    /// Its id: for batches, which go on when who made them has left.
    Id(String),
}

/// What a request asks of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whose request it is.
    pub key: KeyName,
    /// What the request is, for recognising it when it comes again: a hash of its route and body.
    pub request: RequestKey,
    /// The most that it can cost.
    pub amount: MicroUsd,
    /// Whether the client says that it has sent this request before.
    pub attempt: Attempt,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// When the hold ends by itself.
    pub expires_ms: i64,
}

/// Which attempt of a client at a request this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The first, or the client does not say.
    First,
    /// A repetition.
    Again,
}

/// Names a request among those of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey(pub [u8; 32]);

/// Names a hold, and the charge that comes out of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct HoldId(String);

impl fmt::Display for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a request may do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Run: this much is set aside.
    Held(Hold),
    /// An earlier attempt was answered and charged: give that answer again.
    Answered {
        /// What it cost.
        charge: Box<Charge>,
        /// What was told, if it was kept.
        told: Option<Vec<u8>>,
    },
}

/// Money set aside for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its name.
    pub id: HoldId,
    /// Whose request it is.
    pub key_id: String,
    /// How much.
    pub amount: MicroUsd,
}

/// What an answer was, for the books.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// The receipt's id.
    pub receipt: String,
    /// Who answered.
    pub provider: String,
    /// What was asked for.
    pub model: String,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
}

/// What an answer cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Charge {
    /// Its name.
    pub id: HoldId,
    /// Which key asked.
    pub key_id: String,
    /// Who paid.
    pub account: String,
    /// How much.
    pub amount: MicroUsd,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// What for.
    #[serde(flatten)]
    pub answer: Answered,
}

/// What came of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The hold ended now; this much of it was kept.
    Now(MicroUsd),
    /// It had ended before: charged this much, or nothing.
    Before(MicroUsd),
}

/// What becomes of a request that comes again when its answer was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It is told this, for [`RETRY_WINDOW_MS`]: it is kept with the charge.
    Told(Vec<u8>),
    /// It is recognised for as long; whoever has the answer tells it.
    Known,
    /// It is another request: the answer was stopped, and who asks again wants all of it.
    Anew,
}

/// Why a key may not begin a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such key.
    #[error("this API key is not known; check it, or ask for one")]
    UnknownKey,
    /// It was revoked.
    #[error("this API key was revoked")]
    Revoked,
    /// The balance does not cover it.
    #[error(
        "the request may cost up to {needed} dollars and the balance is {balance}; add credit, or ask for fewer tokens"
    )]
    Balance {
        /// What is there.
        balance: MicroUsd,
        /// What is needed.
        needed: MicroUsd,
    },
    /// Too many requests a minute.
    #[error("this key may ask {most} times a minute; try again in {wait_ms} ms")]
    PerMinute {
        /// Requests a minute.
        most: u32,
        /// When the next one is due.
        wait_ms: u64,
    },
    /// Too many at once.
    #[error("this key may have {most} requests running at once; wait for one to end")]
    AtOnce {
        /// Requests.
        most: u32,
    },
    /// Too much a day.
    #[error(
        "this key may spend {most} dollars a day, has spent or set aside {spent}, and the request may cost up to {needed}"
    )]
    PerDay {
        /// Money a day.
        most: MicroUsd,
        /// Spent and set aside today.
        spent: MicroUsd,
        /// What is needed.
        needed: MicroUsd,
        /// When the day ends.
        wait_ms: u64,
    },
}

impl Refused {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        match self {
            Refused::UnknownKey => "invalid_api_key",
            Refused::Revoked => "api_key_revoked",
            Refused::Balance { .. } => "insufficient_quota",
            Refused::PerMinute { .. } => "rate_limit_exceeded",
            Refused::AtOnce { .. } => "concurrency_limit_exceeded",
            Refused::PerDay { .. } => "spend_limit_exceeded",
        }
    }
}

/// Why the books could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// The request may not run.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The database failed.
    #[error("the database of keys and credits: {0}")]
    Database(#[from] sqlx::Error),
    /// SQLite failed.
    #[error("the database of keys and credits: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The transaction failed that a request shared with others.
    #[error("{reason}")]
    Batch {
        /// Why.
        reason: String,
    },
    /// A column is not what it should be.
    #[error("the database of keys and credits: column {at} of a row is of another kind")]
    Row {
        /// Which, from 0.
        at: usize,
    },
    /// There is no thread for the books.
    #[error("a thread for the books could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// Its tables could not be made or are of another version.
    #[error("the tables of keys and credits: {0}")]
    Tables(#[from] sqlx::migrate::MigrateError),
    /// Neither SQLite nor Postgres.
    #[error("`{got}` is no database of ours; give sqlite:PATH or postgres://USER@HOST/NAME")]
    Url {
        /// Its scheme.
        got: String,
    },
    /// A name is empty, too long, or has control characters.
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes and no control characters")]
    Name,
    /// No such key.
    #[error("there is no key {id}; `assay keys list` shows them")]
    UnknownKeyId {
        /// What was asked for.
        id: String,
    },
    /// The account has all the keys it may have.
    #[error("the account has {KEYS_MAX} keys already; revoke and remove some")]
    TooManyKeys,
    /// A credit of nothing, or of too much.
    #[error("a credit is above 0 and at most {CREDIT_MAX} dollars, not {got}")]
    Credit {
        /// What was given.
        got: MicroUsd,
    },
    /// A limit of nothing: revoke the key instead.
    #[error("a limit is at least 1; revoke the key to stop it")]
    Limit,
    /// The books' own task ended.
    #[error("the books are closed")]
    Closed,
}

impl AccountsError {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        match self {
            AccountsError::Refused(refused) => refused.code(),
            AccountsError::Database(_)
            | AccountsError::Sqlite(_)
            | AccountsError::Batch { .. }
            | AccountsError::Row { .. }
            | AccountsError::Thread(_) => "accounts_database",
            AccountsError::Tables(_) => "accounts_tables",
            AccountsError::Url { .. } => "accounts_url",
            AccountsError::Name => "accounts_name",
            AccountsError::UnknownKeyId { .. } => "key_unknown",
            AccountsError::TooManyKeys => "keys_too_many",
            AccountsError::Credit { .. } => "credit_amount",
            AccountsError::Limit => "limit_zero",
            AccountsError::Closed => "accounts_closed",
        }
    }
}

/// The sums of an account, which must agree: `credited = balance + held + charged`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Books {
    /// Paid in.
    pub credited: MicroUsd,
    /// Left.
    pub balance: MicroUsd,
    /// Set aside.
    pub held: MicroUsd,
    /// Spent.
    pub charged: MicroUsd,
}

impl Books {
    /// Whether no unit is missing or too many.
    pub fn agree(&self) -> bool {
        let parts = [self.balance.0, self.held.0, self.charged.0];
        parts.into_iter().try_fold(0u64, u64::checked_add) == Some(self.credited.0)
    }
}

/// Keys and credits. Clones share the database.
#[derive(Clone, Debug)]
pub struct Accounts {
    store: Store,
    writer: Writer,
    tally: Tally,
}

/// What a process has had its books do since it began. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Times that money was set aside.
    pub(crate) holds: Counter,
    /// Holds that ended with a charge.
    pub(crate) charges: Counter,
    /// What was charged, in millionths of a dollar.
    pub(crate) charged: Counter,
    /// Holds that ended without a charge.
    pub(crate) releases: Counter,
}

fn named(name: &str) -> Result<(), AccountsError> {
    let sane = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if sane { Ok(()) } else { Err(AccountsError::Name) }
}

fn limited(limits: &Limits) -> Result<(), AccountsError> {
    let none =
        limits.per_minute == Some(0) || limits.at_once == Some(0) || limits.per_day == Some(MicroUsd(0));
    if none { Err(AccountsError::Limit) } else { Ok(()) }
}

impl Accounts {
    /// Opens the database, and makes its tables if there are none. `sqlite:PATH` (made if absent) or `postgres://…`. Must be called within
    /// a runtime, whose tasks do Postgres's writing until the last clone is gone.
    pub async fn open(url: &str) -> Result<Accounts, AccountsError> {
        let store = Store::open(url).await?;
        let writer = Writer::start(store.clone())?;
        Ok(Accounts { store, writer, tally: Tally::default() })
    }

    /// Looks at a database that is there: how many keys it has, and what SQLite finds wrong with its file, if anything. Makes and changes nothing.
    pub async fn examine(url: &str) -> Result<(i64, Option<String>), AccountsError> {
        Store::examine(url).await
    }

    /// What was asked of the books by this process.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Sets money aside for a request, if its key may begin it.
    pub async fn reserve(&self, ask: Ask) -> Result<Reserved, AccountsError> {
        match self.writer.hand(Deed::Reserve(ask)).await? {
            Outcome::Reserved(reserved) => {
                if let Ok(Reserved::Held(_)) = reserved {
                    self.tally.holds.inc();
                }
                Ok(reserved?)
            }
            Outcome::Settled(_) => Err(AccountsError::Closed),
        }
    }

    /// Ends a hold: `amount` of it is charged, or all of it if it is less; the rest goes back. Asked again, it says what happened then.
    pub async fn charge(
        &self,
        hold: HoldId,
        amount: MicroUsd,
        answer: Answered,
        retried: Retried,
        now_ms: i64,
    ) -> Result<Settled, AccountsError> {
        let deed = Deed::Charge { hold, amount, answer: Box::new(answer), retried, now_ms };
        let settled = self.settle(deed).await?;
        if let Settled::Now(charged) = settled {
            self.tally.charges.inc();
            self.tally.charged.inc_by(charged.0);
        }
        Ok(settled)
    }

    /// Ends a hold: everything goes back. A failed or empty answer costs nothing.
    pub async fn release(&self, hold: HoldId) -> Result<Settled, AccountsError> {
        let settled = self.settle(Deed::Release { hold }).await?;
        if let Settled::Now(_) = settled {
            self.tally.releases.inc();
        }
        Ok(settled)
    }

    /// Releases holds whose time is over: their gateway is gone. Says how many. Gives back what was set aside for requests that did not come, and lets go
    /// of answers that cannot be asked for again.
    pub async fn expire(&self, now_ms: i64) -> Result<u64, AccountsError> {
        self.store.forget(now_ms.saturating_sub(RETRY_WINDOW_MS)).await?;
        self.end_advances(now_ms).await?;
        let mut count = 0;
        for hold in self.store.over(now_ms).await? {
            if let Settled::Now(_) = self.release(hold).await? {
                count += 1;
            }
        }
        Ok(count)
    }

    /// Gives back what is set aside for requests to come. To be called when none come any more; without it, that ends by itself after about an hour.
    pub async fn close(&self) -> Result<(), AccountsError> {
        self.end_advances(i64::MAX).await
    }

    async fn end_advances(&self, now_ms: i64) -> Result<(), AccountsError> {
        for advance in self.writer.idle(now_ms) {
            self.settle(Deed::Release { hold: advance }).await?;
        }
        Ok(())
    }

    async fn settle(&self, deed: Deed) -> Result<Settled, AccountsError> {
        match self.writer.hand(deed).await? {
            Outcome::Settled(settled) => Ok(settled),
            Outcome::Reserved(_) => Err(AccountsError::Closed),
        }
    }

    /// Adds to an account, which is made if there is none. The same payment counts once: `false` says that it was counted before.
    pub async fn credit(
        &self,
        account: &str,
        amount: MicroUsd,
        payment: &str,
        note: &str,
        now_ms: i64,
    ) -> Result<bool, AccountsError> {
        named(account)?;
        named(payment)?;
        if amount.0 == 0 || amount > CREDIT_MAX {
            return Err(AccountsError::Credit { got: amount });
        }
        self.store.credit(account, amount, payment, note, now_ms).await
    }

    /// Makes a key of an account, which is made if there is none. The secret is given here and never again.
    pub async fn create_key(
        &self,
        account: &str,
        name: &str,
        limits: Limits,
        now_ms: i64,
    ) -> Result<(Key, Secret), AccountsError> {
        named(account)?;
        named(name)?;
        limited(&limits)?;
        let secret = Secret::draw();
        let key = Key {
            id: format!("key_{}", store::random_id()),
            account: account.to_owned(),
            name: name.to_owned(),
            hint: secret.hint(),
            created_ms: now_ms,
            revoked_ms: None,
            limits,
        };
        self.store.create_key(&key, secret.hash()).await?;
        Ok((key, secret))
    }

    /// The key of a secret that is known and not revoked.
    pub async fn key(&self, secret: SecretHash) -> Result<Key, AccountsError> {
        match self.store.key(secret).await? {
            None => Err(Refused::UnknownKey.into()),
            Some(key) if key.revoked_ms.is_some() => Err(Refused::Revoked.into()),
            Some(key) => Ok(key),
        }
    }

    /// All keys, or those of an account, oldest first.
    pub async fn keys(&self, account: Option<&str>) -> Result<Vec<Key>, AccountsError> {
        self.store.keys(account).await
    }

    /// All accounts.
    pub async fn accounts(&self) -> Result<Vec<Account>, AccountsError> {
        self.store.accounts().await
    }

    /// An account, if there is one.
    pub async fn account(&self, name: &str) -> Result<Option<Account>, AccountsError> {
        self.store.account(name).await
    }

    /// Changes what a key may do.
    pub async fn limit(&self, key_id: &str, limits: Limits) -> Result<(), AccountsError> {
        limited(&limits)?;
        self.store.limit(key_id, limits).await
    }

    /// A key is not taken any more. What it began goes on, and is charged. `false` says that it was revoked before.
    pub async fn revoke(&self, key_id: &str, now_ms: i64) -> Result<bool, AccountsError> {
        self.store.revoke(key_id, now_ms).await
    }

    /// An account's sums, all read at one moment.
    pub async fn books(&self, account: &str) -> Result<Books, AccountsError> {
        self.store.books(account).await
    }
}
