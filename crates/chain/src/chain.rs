//! The chain: what it is opened with, what it holds, and who may write.
//!
//! Invariant: one writer at a time (`writer`; `terms`, `pool` and `filters` are locked within it and never around it), and the store is the truth: the pool, the filters and the snapshots are what a new
//! process would do without. It reads no clock but through [`Clock`].

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy_eips::eip2935::{HISTORY_STORAGE_ADDRESS, HISTORY_STORAGE_CODE};
use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_signer_local::PrivateKeySigner;

use crate::filters::Filters;
use crate::mining::Pace;
use crate::pool::{Pool, Waiting};
use crate::rewind::Snapshots;
use crate::state::{Account, Changes, StateAt};
use crate::store::{Store, StoreError, View};
use crate::{CHAIN_ID, block, development, limits, records};

/// The format of the file. A file of another is refused.
const FORMAT: u64 = 1;
const FILE: &str = "chain.redb";

/// When blocks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mining {
    /// As soon as a transaction can be executed: what waits together goes into one block.
    OnDemand,
    /// At intervals, with or without transactions.
    Every(Duration),
    /// When it is asked for.
    Manual,
}

/// What time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The machine's time, and what was added to it.
    System,
    /// The first block's time, and what was added to it: nothing moves it but requests. For simulations that repeat.
    Standing,
}

/// What a chain is opened with. The first block of a chain that exists already stays as it is: `genesis_time`, `seed` and
/// `accounts` count for new ones only.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its id; a folder with a chain of another id is refused.
    pub chain_id: u64,
    /// Unix seconds of the first block; now, if none.
    pub genesis_time: Option<u64>,
    /// From what each block's `prevRandao` is drawn; random, if none.
    pub seed: Option<B256>,
    /// When blocks are made.
    pub mining: Mining,
    /// What time it is.
    pub clock: Clock,
    /// Who has how many wei in the first block.
    pub accounts: Vec<(Address, U256)>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            chain_id: CHAIN_ID,
            genesis_time: None,
            seed: None,
            mining: Mining::OnDemand,
            clock: Clock::System,
            accounts: development::accounts(),
        }
    }
}

/// Why a chain was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder could not be made.
    #[error("the folder of the chain: {0}")]
    Folder(#[from] std::io::Error),
    /// The store failed, or holds what it should not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another process has it open.
    #[error("another process has this chain open")]
    InUse,
    /// The folder is another chain's.
    #[error("this is chain {found}, and chain {expected} was expected")]
    ChainId {
        /// The id that was asked for.
        expected: u64,
        /// The id in the file.
        found: u64,
    },
    /// The file was written by another version.
    #[error("the file has format {found}; this version reads format {expected}")]
    Format {
        /// The format of this version.
        expected: u64,
        /// The format of the file.
        found: u64,
    },
    /// Too much was asked for.
    #[error("{what}: {value} is beyond {max}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How much was asked for.
        value: u64,
        /// How much is possible.
        max: u64,
    },
}

/// On what terms the next block is made. Only who has the writer changes them; anyone reads them without waiting for the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub mining: Mining,
    /// What was added to the clock, in seconds.
    pub offset: i64,
    pub next_time: Option<u64>,
    pub next_base_fee: Option<u64>,
}

/// Whoever has it may write.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub snapshots: Snapshots,
}

/// A development chain.
#[derive(Debug)]
pub struct Chain {
    pub(crate) store: Store,
    pub(crate) id: u64,
    pub(crate) seed: B256,
    pub(crate) genesis_time: u64,
    pub(crate) clock: Clock,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) terms: Mutex<Terms>,
    pub(crate) pool: Mutex<Pool>,
    pub(crate) filters: Mutex<Filters>,
    pub(crate) signers: Vec<PrivateKeySigner>,
    pub(crate) impersonated: Mutex<HashSet<Address>>,
    pub(crate) pace: Arc<Pace>,
}

impl Chain {
    /// Opens the chain in a folder, or begins one there.
    pub fn open(folder: &Path, config: Config) -> Result<Arc<Self>, OpenError> {
        std::fs::create_dir_all(folder)?;
        let store = Store::open(&folder.join(FILE)).map_err(|error| match &error {
            StoreError::Database(inner) if matches!(**inner, redb::Error::DatabaseAlreadyOpen) => {
                OpenError::InUse
            }
            _ => error.into(),
        })?;
        Chain::over(store, config)
    }

    /// Begins a chain that is gone with the process.
    pub fn in_memory(config: Config) -> Result<Arc<Self>, OpenError> {
        Chain::over(Store::in_memory()?, config)
    }

    fn over(store: Store, config: Config) -> Result<Arc<Self>, OpenError> {
        let view = store.view()?;
        if view.last()?.is_none() {
            begin(&store, &config)?;
        }
        let view = store.view()?;
        let format = number(&view, "format")?;
        if format != FORMAT {
            return Err(OpenError::Format { expected: FORMAT, found: format });
        }
        let id = number(&view, "chain id")?;
        if id != config.chain_id {
            return Err(OpenError::ChainId { expected: config.chain_id, found: id });
        }
        let seed = view.meta("seed")?.and_then(|seed| B256::try_from(seed.as_slice()).ok());
        let genesis = view.header(0)?.ok_or(StoreError::Malformed { what: "chain without a first block" })?;
        let mut pool = Pool::default();
        for (arrival, kept) in view.pool()? {
            let tx = records::decoded(&kept.raw)?;
            pool.restore(Waiting { hash: keccak256(&kept.raw), from: kept.from, tx, arrival });
        }
        let terms = Terms {
            mining: config.mining,
            offset: number(&view, "offset")?.cast_signed(),
            next_time: None,
            next_base_fee: None,
        };
        let chain = Arc::new(Chain {
            store,
            id,
            seed: seed.ok_or(StoreError::Malformed { what: "seed" })?,
            genesis_time: genesis.header.timestamp,
            clock: config.clock,
            writer: Mutex::default(),
            terms: Mutex::new(terms),
            pool: Mutex::new(pool),
            filters: Mutex::default(),
            signers: development::KEYS.iter().filter_map(|k| PrivateKeySigner::from_bytes(k).ok()).collect(),
            impersonated: Mutex::default(),
            pace: Arc::new(Pace::new(config.mining)),
        });
        crate::mining::keep_pace(&chain)?;
        // What was acknowledged and not mined when the last process ended.
        chain.settle()?;
        Ok(chain)
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The chain's clock: Unix seconds.
    pub fn time(&self) -> u64 {
        self.now(&self.terms())
    }

    pub(crate) fn terms(&self) -> Terms {
        *locked(&self.terms)
    }

    pub(crate) fn now(&self, terms: &Terms) -> u64 {
        let base = match self.clock {
            Clock::System => unix_time(),
            Clock::Standing => self.genesis_time,
        };
        base.saturating_add_signed(terms.offset).min(limits::TIME_MAX)
    }

    /// The state after the last block, in a view.
    pub(crate) fn latest(view: &View) -> Result<StateAt<'_>, StoreError> {
        Ok(StateAt { view, number: view.head()?.header.number })
    }
}

/// Locks what a panic elsewhere cannot leave half changed: the store is the truth.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(view: &View, key: &'static str) -> Result<u64, StoreError> {
    let bytes = view.meta(key)?.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    bytes.map(u64::from_be_bytes).ok_or(StoreError::Malformed { what: key })
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes the first block.
fn begin(store: &Store, config: &Config) -> Result<(), OpenError> {
    if config.accounts.len() > limits::GENESIS_ACCOUNTS_MAX {
        let (value, max) = (config.accounts.len() as u64, limits::GENESIS_ACCOUNTS_MAX as u64);
        return Err(OpenError::Limit { what: "accounts of the first block", value, max });
    }
    let time = config.genesis_time.unwrap_or_else(unix_time);
    if time > limits::TIME_MAX {
        return Err(OpenError::Limit { what: "time of the first block", value: time, max: limits::TIME_MAX });
    }
    let seed = config.seed.unwrap_or_else(B256::random);
    let mut changes = Changes::default();
    for &(address, balance) in &config.accounts {
        changes.accounts.insert(address, Some(Account { balance, ..Account::default() }));
    }
    let code_hash = keccak256(&HISTORY_STORAGE_CODE);
    changes.code.insert(code_hash, HISTORY_STORAGE_CODE.clone());
    let history = Account { nonce: 1, balance: U256::ZERO, code_hash };
    changes.accounts.insert(HISTORY_STORAGE_ADDRESS, Some(history));
    let first = block::genesis(time, seed, changes);
    let writing = store.write()?;
    writing.block(&first.head, &first.mined, &first.changes)?;
    for (key, value) in [("format", FORMAT), ("chain id", config.chain_id), ("offset", 0)] {
        writing.set_meta(key, &value.to_be_bytes())?;
    }
    writing.set_meta("seed", seed.as_slice())?;
    writing.commit()?;
    Ok(())
}
