//! One file that holds every block, every state, and the transactions that wait.
//!
//! Invariant: a commit is on the disk before anything that it holds is acknowledged, and is there as a whole or not at all.
//! Accounts and slots are kept by block: the last entry at or before a block is the value after it, so that the past can be read
//! as the present is. The changes of the last blocks are listed, so that they can be undone. It refuses files of another chain or
//! format, and files that another process has open.

use std::path::Path;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rlp::{Decodable, Encodable as _};
use redb::backends::InMemoryBackend;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition,
    WriteTransaction,
};

use crate::evm::DBErrorMarker;
use crate::limits;
use crate::records::{Before, Head, Kept, Mined, Undo};
use crate::state::{Account, Changes};

type Bytes2 = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Numbered = TableDefinition<'static, u64, &'static [u8]>;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const HEADS: Numbered = TableDefinition::new("heads");
const NUMBERS: TableDefinition<&[u8], u64> = TableDefinition::new("numbers");
/// Block and index → transaction.
const MINED: Bytes2 = TableDefinition::new("mined");
/// Hash → block and index.
const PLACES: Bytes2 = TableDefinition::new("places");
/// Address and block → account.
const ACCOUNTS: Bytes2 = TableDefinition::new("accounts");
/// Address, slot and block → value.
const STORAGE: Bytes2 = TableDefinition::new("storage");
/// Code is never undone: nothing refers to it then.
const CODE: Bytes2 = TableDefinition::new("code");
const UNDO: Numbered = TableDefinition::new("undo");
/// Arrival → a transaction that waits.
const POOL: Numbered = TableDefinition::new("pool");

const ACCOUNTS_TAG: u8 = 0;
const STORAGE_TAG: u8 = 1;

/// Why the store could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the file failed.
    #[error("database: {0}")]
    Database(std::sync::Arc<redb::Error>),
    /// The file holds something that this version never writes.
    #[error("the database holds a malformed {what}")]
    Malformed {
        /// What was malformed.
        what: &'static str,
    },
}

impl DBErrorMarker for StoreError {}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                StoreError::Database(std::sync::Arc::new(error.into()))
            }
        }
    )*};
}

from_redb!(
    redb::Error,
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// The file.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    pub(crate) fn open(file: &Path) -> Result<Self, StoreError> {
        Store::with_tables(Database::create(file)?)
    }

    pub(crate) fn in_memory() -> Result<Self, StoreError> {
        Store::with_tables(Database::builder().create_with_backend(InMemoryBackend::new())?)
    }

    fn with_tables(database: Database) -> Result<Self, StoreError> {
        let tx = database.begin_write()?;
        tx.open_table(META)?;
        tx.open_table(NUMBERS)?;
        for table in [HEADS, UNDO, POOL] {
            tx.open_table(table)?;
        }
        for table in [MINED, PLACES, ACCOUNTS, STORAGE, CODE] {
            tx.open_table(table)?;
        }
        tx.commit()?;
        Ok(Store { database })
    }

    /// Everything as it is now; later commits do not show in it.
    pub(crate) fn view(&self) -> Result<View, StoreError> {
        let tx = self.database.begin_read()?;
        Ok(View {
            accounts: tx.open_table(ACCOUNTS)?,
            storage: tx.open_table(STORAGE)?,
            heads: tx.open_table(HEADS)?,
            tx,
        })
    }

    pub(crate) fn write(&self) -> Result<Writing, StoreError> {
        Ok(Writing { tx: self.database.begin_write()? })
    }
}

/// One state of the store.
pub(crate) struct View {
    tx: ReadTransaction,
    accounts: ReadOnlyTable<&'static [u8], &'static [u8]>,
    storage: ReadOnlyTable<&'static [u8], &'static [u8]>,
    heads: ReadOnlyTable<u64, &'static [u8]>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl View {
    pub(crate) fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.tx.open_table(META)?.get(key)?.map(|v| v.value().to_vec()))
    }

    /// The last block; none before the first commit.
    pub(crate) fn last(&self) -> Result<Option<Head>, StoreError> {
        match self.heads.range::<u64>(..)?.next_back() {
            Some(entry) => Ok(Some(parsed(entry?.1.value(), "header")?)),
            None => Ok(None),
        }
    }

    /// The last block of a chain that has one.
    pub(crate) fn head(&self) -> Result<Head, StoreError> {
        self.last()?.ok_or(StoreError::Malformed { what: "chain without a block" })
    }

    pub(crate) fn header(&self, number: u64) -> Result<Option<Head>, StoreError> {
        self.heads.get(number)?.map(|v| parsed(v.value(), "header")).transpose()
    }

    /// The headers of a range of blocks, as far as there are any.
    pub(crate) fn heads(
        &self,
        from: u64,
        to: u64,
    ) -> Result<impl Iterator<Item = Result<Head, StoreError>> + use<>, StoreError> {
        Ok(self.heads.range(from..=to)?.map(|entry| parsed(entry?.1.value(), "header")))
    }

    pub(crate) fn number(&self, hash: B256) -> Result<Option<u64>, StoreError> {
        Ok(self.tx.open_table(NUMBERS)?.get(hash.as_slice())?.map(|v| v.value()))
    }

    /// The transactions of a block, in their order.
    pub(crate) fn mined_in(&self, number: u64) -> Result<Vec<Mined>, StoreError> {
        let table = self.tx.open_table(MINED)?;
        let (first, last) = (place(number, 0), place(number, u32::MAX));
        table
            .range(first.as_slice()..=last.as_slice())?
            .map(|entry| parsed(entry?.1.value(), "transaction"))
            .collect()
    }

    pub(crate) fn mined(&self, number: u64, index: u32) -> Result<Option<Mined>, StoreError> {
        let table = self.tx.open_table(MINED)?;
        table.get(place(number, index).as_slice())?.map(|v| parsed(v.value(), "transaction")).transpose()
    }

    /// Where a transaction is.
    pub(crate) fn place(&self, hash: B256) -> Result<Option<(u64, u32)>, StoreError> {
        let table = self.tx.open_table(PLACES)?;
        let Some(value) = table.get(hash.as_slice())? else { return Ok(None) };
        let place: &[u8; 12] =
            value.value().try_into().map_err(|_| StoreError::Malformed { what: "place" })?;
        let (number, index) = place.split_at(8);
        Ok(Some((
            u64::from_be_bytes(number.try_into().expect("eight of twelve bytes")),
            u32::from_be_bytes(index.try_into().expect("four of twelve bytes")),
        )))
    }

    /// An account after a block.
    pub(crate) fn account(&self, address: Address, number: u64) -> Result<Option<Account>, StoreError> {
        let (first, last) = (account_key(address, 0), account_key(address, number));
        match self.accounts.range(first.as_slice()..=last.as_slice())?.next_back() {
            Some(entry) => match entry?.1.value() {
                [] => Ok(None),
                bytes => Ok(Some(parsed(bytes, "account")?)),
            },
            None => Ok(None),
        }
    }

    /// A slot after a block.
    pub(crate) fn slot(&self, address: Address, slot: U256, number: u64) -> Result<U256, StoreError> {
        let (first, last) = (slot_key(address, slot, 0), slot_key(address, slot, number));
        match self.storage.range(first.as_slice()..=last.as_slice())?.next_back() {
            Some(entry) => {
                U256::try_from_be_slice(entry?.1.value()).ok_or(StoreError::Malformed { what: "slot" })
            }
            None => Ok(U256::ZERO),
        }
    }

    pub(crate) fn code(&self, hash: B256) -> Result<Bytes, StoreError> {
        let table = self.tx.open_table(CODE)?;
        let code =
            table.get(hash.as_slice())?.ok_or(StoreError::Malformed { what: "account without code" })?;
        Ok(Bytes::copy_from_slice(code.value()))
    }

    /// The transactions that wait, by arrival.
    pub(crate) fn pool(&self) -> Result<Vec<(u64, Kept)>, StoreError> {
        let table = self.tx.open_table(POOL)?;
        let entries = table.range::<u64>(..)?.map(|entry| {
            let (arrival, kept) = entry?;
            Ok((arrival.value(), parsed(kept.value(), "waiting transaction")?))
        });
        entries.collect()
    }

    /// How many blocks and edits there have been.
    pub(crate) fn undo_next(&self) -> Result<u64, StoreError> {
        let table = self.tx.open_table(UNDO)?;
        let last = table.range::<u64>(..)?.next_back().transpose()?;
        Ok(last.map_or(0, |(sequence, _)| sequence.value().saturating_add(1)))
    }

    pub(crate) fn undo(&self, sequence: u64) -> Result<Option<Undo>, StoreError> {
        self.tx.open_table(UNDO)?.get(sequence)?.map(|v| parsed(v.value(), "undo")).transpose()
    }
}

/// What is about to be committed.
pub(crate) struct Writing {
    tx: WriteTransaction,
}

impl Writing {
    pub(crate) fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.tx.open_table(META)?.insert(key, value)?;
        Ok(())
    }

    /// Appends a block with what it changes.
    pub(crate) fn block(
        &self,
        head: &Head,
        mined: &[(B256, Mined)],
        changes: &Changes,
    ) -> Result<(), StoreError> {
        let number = head.header.number;
        self.tx.open_table(HEADS)?.insert(number, alloy_rlp::encode(head).as_slice())?;
        self.tx.open_table(NUMBERS)?.insert(head.hash.as_slice(), number)?;
        let (mut records, mut places) = (self.tx.open_table(MINED)?, self.tx.open_table(PLACES)?);
        for (index, (hash, tx)) in (0u32..).zip(mined) {
            let place = place(number, index);
            records.insert(place.as_slice(), alloy_rlp::encode(tx).as_slice())?;
            places.insert(hash.as_slice(), place.as_slice())?;
        }
        drop((records, places));
        self.change(number, changes, true)
    }

    /// Changes the state after the last block.
    pub(crate) fn edit(&self, number: u64, changes: &Changes) -> Result<(), StoreError> {
        self.change(number, changes, false)
    }

    fn change(&self, number: u64, changes: &Changes, block: bool) -> Result<(), StoreError> {
        let mut before = Vec::with_capacity(changes.accounts.len() + changes.storage.len());
        let mut accounts = self.tx.open_table(ACCOUNTS)?;
        for (&address, account) in &changes.accounts {
            let key = account_key(address, number);
            let value = account.map(alloy_rlp::encode).unwrap_or_default();
            let old = accounts.insert(key.as_slice(), value.as_slice())?;
            before.push(overwritten(ACCOUNTS_TAG, &key, old.as_ref().map(|o| o.value())));
        }
        let mut storage = self.tx.open_table(STORAGE)?;
        for (&(address, slot), value) in &changes.storage {
            let key = slot_key(address, slot, number);
            let old = storage.insert(key.as_slice(), value.to_be_bytes_trimmed_vec().as_slice())?;
            before.push(overwritten(STORAGE_TAG, &key, old.as_ref().map(|o| o.value())));
        }
        let mut code = self.tx.open_table(CODE)?;
        for (hash, bytes) in &changes.code {
            code.insert(hash.as_slice(), bytes.as_ref())?;
        }
        let mut undo = self.tx.open_table(UNDO)?;
        let sequence = undo.last()?.map_or(0, |(last, _)| last.value().saturating_add(1));
        undo.insert(sequence, alloy_rlp::encode(Undo { number, block, before }).as_slice())?;
        if let Some(old) = sequence.checked_sub(limits::UNDO_MAX) {
            undo.remove(old)?;
        }
        Ok(())
    }

    /// Takes the last block or edit back; says which it was, or none if no more is known.
    pub(crate) fn undo_last(&self) -> Result<Option<Undo>, StoreError> {
        let mut table = self.tx.open_table(UNDO)?;
        let undo: Undo = match table.pop_last()? {
            Some((_, value)) => parsed(value.value(), "undo")?,
            None => return Ok(None),
        };
        let (mut accounts, mut storage) = (self.tx.open_table(ACCOUNTS)?, self.tx.open_table(STORAGE)?);
        for before in &undo.before {
            let table = if before.table == ACCOUNTS_TAG { &mut accounts } else { &mut storage };
            match before.value.first() {
                Some(value) => drop(table.insert(before.key.as_ref(), value.as_ref())?),
                None => drop(table.remove(before.key.as_ref())?),
            }
        }
        if undo.block {
            self.remove_block(undo.number)?;
        }
        Ok(Some(undo))
    }

    fn remove_block(&self, number: u64) -> Result<(), StoreError> {
        let mut heads = self.tx.open_table(HEADS)?;
        let Some(head) = heads.remove(number)? else { return Ok(()) };
        let head: Head = parsed(head.value(), "header")?;
        self.tx.open_table(NUMBERS)?.remove(head.hash.as_slice())?;
        let (mut records, mut places) = (self.tx.open_table(MINED)?, self.tx.open_table(PLACES)?);
        for index in 0..u32::try_from(head.count).unwrap_or(u32::MAX) {
            if let Some(value) = records.remove(place(number, index).as_slice())? {
                let mined: Mined = parsed(value.value(), "transaction")?;
                places.remove(alloy_primitives::keccak256(&mined.raw).as_slice())?;
            }
        }
        Ok(())
    }

    pub(crate) fn keep(&self, arrival: u64, kept: &Kept) -> Result<(), StoreError> {
        self.tx.open_table(POOL)?.insert(arrival, alloy_rlp::encode(kept).as_slice())?;
        Ok(())
    }

    pub(crate) fn forget(&self, arrival: u64) -> Result<(), StoreError> {
        self.tx.open_table(POOL)?.remove(arrival)?;
        Ok(())
    }

    /// Makes it durable.
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        Ok(self.tx.commit()?)
    }
}

fn overwritten(table: u8, key: &[u8], value: Option<&[u8]>) -> Before {
    let value = value.map(Bytes::copy_from_slice).into_iter().collect();
    Before { table, key: Bytes::copy_from_slice(key), value }
}

fn place(number: u64, index: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

fn account_key(address: Address, number: u64) -> [u8; 28] {
    let mut key = [0; 28];
    key[..20].copy_from_slice(address.as_slice());
    key[20..].copy_from_slice(&number.to_be_bytes());
    key
}

fn slot_key(address: Address, slot: U256, number: u64) -> [u8; 60] {
    let mut key = [0; 60];
    key[..20].copy_from_slice(address.as_slice());
    key[20..52].copy_from_slice(&slot.to_be_bytes::<32>());
    key[52..].copy_from_slice(&number.to_be_bytes());
    key
}

fn parsed<T: Decodable>(bytes: &[u8], what: &'static str) -> Result<T, StoreError> {
    alloy_rlp::decode_exact(bytes).map_err(|_| StoreError::Malformed { what })
}

/// Bytes of a block that has these transactions, and of its header.
pub(crate) fn block_size(header: &alloy_consensus::Header, transactions: usize) -> u64 {
    let list = |payload: usize| payload.saturating_add(alloy_rlp::length_of_length(payload));
    // Three lists: transactions, no uncles, no withdrawals.
    let payload = header.length().saturating_add(list(transactions)).saturating_add(2);
    u64::try_from(list(payload)).unwrap_or(u64::MAX)
}
