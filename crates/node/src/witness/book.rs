//! What a witness must not forget: the receipts that it was given and what each was compared with, omissions that it found, and what it demanded in vain.
//!
//! One file for one key on one ledger. Every change is flushed when its call returns, and each is whole or absent, so that whoever starts again goes on: a receipt
//! is marked with the root that it was compared with, so that another root, after a reorganisation, has it compared again. It refuses receipts of another ledger, those that
//! their provider has not signed, and more than [`RECEIPTS_MAX`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256};
use alloy_sol_types::SolValue as _;
use assay_core::id::{Hash, SignatureBytes};
use assay_core::keccak::keccak256;
use assay_core::merkle::Proof;
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_hub::lasting::Lasting;
use assay_ledger::contracts::{Objections, address};
use assay_verify::receipts::conflict;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use crate::auditor::BatchId;
use crate::secret;

/// Most receipts of a book: some 600 MB. What comes when it is full is compared with nothing.
pub const RECEIPTS_MAX: u64 = 1 << 20;
/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 65;

/// Provider and sequence number: they stand in the order of numbers.
type Key = [u8; 28];

/// Receipts, as the contract takes them (ABI encoded), with their signature.
const GIVEN: TableDefinition<'_, &Key, &[u8]> = TableDefinition::new("given");
/// The roots that they were compared with.
const COMPARED: TableDefinition<'_, &Key, &[u8; 32]> = TableDefinition::new("compared");
/// What was asked with which nonce, to the number of the first receipt for it.
const ASKED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("asked");
/// Omissions (JSON).
const FOUND: TableDefinition<'_, &Key, &[u8]> = TableDefinition::new("found");
/// Two receipts of a provider that exclude each other.
const CONFLICTS: TableDefinition<'_, &[u8; 20], (&[u8], &[u8])> = TableDefinition::new("conflicts");
/// Provider and epoch of demands that were in vain, with the sequence number.
const VAIN: TableDefinition<'_, &Key, u64> = TableDefinition::new("vain");
const SECRETS: TableDefinition<'_, &str, &[u8; 32]> = TableDefinition::new("secrets");
const ORDER: &str = "order";

/// Why the book cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct BookError {
    path: PathBuf,
    reason: String,
}

/// That a batch has another leaf at a receipt's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Omission {
    /// Epoch of the batch.
    pub epoch: u64,
    /// Its root.
    pub root: B256,
    /// The leaf.
    pub leaf: Hash,
    /// Its proof.
    pub proof: Proof,
}

/// What became of receipts that were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// In the book now.
    pub kept: usize,
    /// Not in it: of another ledger, unsigned, or too many.
    pub refused: usize,
    /// Providers of whom the book now has two receipts that exclude each other.
    pub conflicting: BTreeSet<Address>,
}

/// The book.
pub struct Book {
    path: PathBuf,
    database: Lasting,
    domain: Domain,
    /// By which receipts are chosen, unknown to their providers.
    order: B256,
}

fn key(provider: Address, number: u64) -> Key {
    let mut key = [0; 28];
    key[..20].copy_from_slice(provider.as_slice());
    key[20..].copy_from_slice(&number.to_be_bytes());
    key
}

fn number(key: &Key) -> u64 {
    key.last_chunk().map_or(0, |last| u64::from_be_bytes(*last))
}

fn provider(key: &Key) -> Address {
    key.first_chunk::<20>().map_or(Address::ZERO, Address::from)
}

fn written(signed: &SignedReceipt) -> Vec<u8> {
    let mut bytes = Objections::Receipt::from(&signed.receipt).abi_encode();
    bytes.extend_from_slice(signed.signature.as_bytes());
    bytes
}

fn read(bytes: &[u8], domain: Domain) -> Option<SignedReceipt> {
    let (receipt, signature) = bytes.split_last_chunk::<SIGNATURE_BYTES>()?;
    let receipt = Receipt::from(&Objections::Receipt::abi_decode(receipt).ok()?);
    Some(SignedReceipt { receipt, domain, signature: SignatureBytes::from_bytes(*signature) })
}

/// What a receipt answers: of one provider, at most one answer of a length can be right.
fn asked(r: &Receipt) -> [u8; 32] {
    let parts = [
        b"assay/asked/1".as_slice(),
        r.provider.as_bytes(),
        r.model_root.as_bytes(),
        r.request_hash.as_bytes(),
        r.client_nonce.as_bytes(),
    ];
    *keccak256(&parts).as_bytes()
}

impl Book {
    /// Opens the book in `path`, making it if there is none. One process at a time may hold it.
    pub fn open(path: &Path, domain: Domain) -> Result<Book, BookError> {
        let fail = |reason: String| BookError { path: path.to_owned(), reason };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| fail(e.to_string()))?;
        }
        let database = Database::create(path).map_err(|e| fail(e.to_string()))?;
        let start = |database: &Database| -> Result<B256, redb::Error> {
            let write = database.begin_write()?;
            write.open_table(GIVEN)?;
            write.open_table(COMPARED)?;
            write.open_table(ASKED)?;
            write.open_table(FOUND)?;
            write.open_table(CONFLICTS)?;
            write.open_table(VAIN)?;
            let order = {
                let mut secrets = write.open_table(SECRETS)?;
                let kept = secrets.get(ORDER)?.map(|kept| *kept.value());
                let order = kept.unwrap_or_else(secret::draw);
                secrets.insert(ORDER, &order)?;
                order
            };
            write.commit()?;
            Ok(B256::from(order))
        };
        let order = start(&database).map_err(|e| fail(e.to_string()))?;
        let database = Lasting::new(path, database, |path| Ok(Database::open(path)?));
        Ok(Book { path: path.to_owned(), database, domain, order })
    }

    fn with<T>(&self, act: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, BookError> {
        let fail = |e: redb::Error| BookError { path: self.path.clone(), reason: e.to_string() };
        self.database.with(act).map_err(fail)
    }

    fn write<T>(
        &self,
        act: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, BookError> {
        self.with(|database| {
            let write = database.begin_write()?;
            let done = act(&write)?;
            write.commit()?;
            Ok(done)
        })
    }

    /// Keeps receipts, and notes which exclude each other. What is there already stays as it is.
    pub fn take(&self, receipts: &[SignedReceipt]) -> Result<Taken, BookError> {
        let own = |r: &&SignedReceipt| r.domain == self.domain && r.verify().is_ok();
        let own: Vec<&SignedReceipt> = receipts.iter().filter(own).collect();
        let mut taken = Taken { refused: receipts.len() - own.len(), ..Taken::default() };
        self.write(|write| {
            let (mut given, mut questions) = (write.open_table(GIVEN)?, write.open_table(ASKED)?);
            let mut conflicts = write.open_table(CONFLICTS)?;
            let mut room = RECEIPTS_MAX.saturating_sub(given.len()?);
            for signed in own {
                let of = address(&signed.receipt.provider);
                let at = key(of, signed.receipt.sequence);
                let first = questions.get(&asked(&signed.receipt))?.map(|first| key(of, first.value()));
                for other in [Some(at), first].into_iter().flatten() {
                    let other = given.get(&other)?.and_then(|bytes| read(bytes.value(), self.domain));
                    if let Some(other) = other
                        && matches!(conflict(&other, signed), Ok(Some(_)))
                    {
                        let (x, y) = (written(&other), written(signed));
                        conflicts.insert(&of.into_array(), (x.as_slice(), y.as_slice()))?;
                        taken.conflicting.insert(of);
                    }
                }
                if given.get(&at)?.is_some() {
                    continue;
                }
                if room == 0 {
                    taken.refused += 1;
                    continue;
                }
                room -= 1;
                given.insert(&at, written(signed).as_slice())?;
                if first.is_none() {
                    questions.insert(&asked(&signed.receipt), signed.receipt.sequence)?;
                }
                taken.kept += 1;
            }
            Ok(())
        })?;
        Ok(taken)
    }

    /// How many receipts are in it.
    pub fn count(&self) -> Result<u64, BookError> {
        self.with(|database| Ok(database.begin_read()?.open_table(GIVEN)?.len()?))
    }

    /// Whose receipts are in it.
    pub fn providers(&self) -> Result<BTreeSet<Address>, BookError> {
        self.with(|database| {
            let given = database.begin_read()?.open_table(GIVEN)?;
            let (mut found, mut from) = (BTreeSet::new(), None);
            // From one provider's receipts to the next one's, and not through all of them.
            loop {
                let after = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let Some(entry) = given.range::<&Key>((after, Bound::Unbounded))?.next() else { break };
                let of = provider(entry?.0.value());
                found.insert(of);
                from = Some(key(of, u64::MAX));
            }
            Ok(found)
        })
    }

    /// A receipt.
    pub fn receipt(&self, of: Address, sequence: u64) -> Result<Option<SignedReceipt>, BookError> {
        self.with(|database| {
            let given = database.begin_read()?.open_table(GIVEN)?;
            Ok(given.get(&key(of, sequence))?.and_then(|bytes| read(bytes.value(), self.domain)))
        })
    }

    /// Of the receipts with these numbers, `most` at most, those that were not compared with this root. Which they are where there are more, and their order,
    /// follow from a secret.
    pub fn left(
        &self,
        of: Address,
        numbers: Range<u64>,
        root: B256,
        most: usize,
    ) -> Result<Vec<u64>, BookError> {
        let place = |n: u64| *keccak256(&[self.order.as_slice(), of.as_slice(), &n.to_be_bytes()]).as_bytes();
        self.with(|database| {
            let read = database.begin_read()?;
            let (given, compared) = (read.open_table(GIVEN)?, read.open_table(COMPARED)?);
            let mut chosen = BTreeMap::new();
            for entry in given.range::<&Key>(&key(of, numbers.start)..&key(of, numbers.end))? {
                let n = number(entry?.0.value());
                chosen.insert(place(n), n);
                if chosen.len() > most {
                    chosen.pop_last();
                }
            }
            let mut left = Vec::new();
            for n in chosen.into_values() {
                if compared.get(&key(of, n))?.is_none_or(|with| B256::from(with.value()) != root) {
                    left.push(n);
                }
            }
            Ok(left)
        })
    }

    /// Notes that these receipts stand under this root.
    pub fn mark(&self, of: Address, numbers: &[u64], root: B256) -> Result<(), BookError> {
        self.write(|write| {
            let mut compared = write.open_table(COMPARED)?;
            for n in numbers {
                compared.insert(&key(of, *n), &root.0)?;
            }
            Ok(())
        })
    }

    /// Keeps what proves that a receipt was left out.
    pub fn find(&self, of: Address, sequence: u64, omission: &Omission) -> Result<(), BookError> {
        let bytes = serde_json::to_vec(omission).expect("numbers and hashes are JSON");
        self.write(|write| {
            write.open_table(FOUND)?.insert(&key(of, sequence), bytes.as_slice())?;
            Ok(())
        })
    }

    /// Omissions of a provider, by number.
    pub fn found(&self, of: Address) -> Result<Vec<(u64, Omission)>, BookError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(FOUND)?;
            let mut found = Vec::new();
            for entry in table.range::<&Key>(&key(of, 0)..=&key(of, u64::MAX))? {
                let (at, bytes) = entry?;
                let omission = serde_json::from_slice(bytes.value()).ok();
                found.extend(omission.map(|omission| (number(at.value()), omission)));
            }
            Ok(found)
        })
    }

    /// Providers of whom two receipts exclude each other, with these.
    pub fn conflicts(&self) -> Result<BTreeMap<Address, (SignedReceipt, SignedReceipt)>, BookError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(CONFLICTS)?;
            let mut found = BTreeMap::new();
            for entry in table.iter()? {
                let (of, both) = entry?;
                let (x, y) = both.value();
                if let (Some(x), Some(y)) = (read(x, self.domain), read(y, self.domain)) {
                    found.insert(Address::from(of.value()), (x, y));
                }
            }
            Ok(found)
        })
    }

    /// Notes that a demand was in vain: the provider showed on the ledger that this receipt stands in its batch, which has this root.
    pub fn note_vain(&self, id: BatchId, sequence: u64, root: B256) -> Result<(), BookError> {
        self.write(|write| {
            write.open_table(VAIN)?.insert(&key(id.provider, id.epoch), sequence)?;
            write.open_table(COMPARED)?.insert(&key(id.provider, sequence), &root.0)?;
            Ok(())
        })
    }

    /// Epochs of a provider for whose batches a demand was in vain, rising.
    pub fn vain(&self, of: Address) -> Result<Vec<u64>, BookError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(VAIN)?;
            let entries = table.range::<&Key>(&key(of, 0)..=&key(of, u64::MAX))?;
            entries.map(|entry| Ok(number(entry?.0.value()))).collect()
        })
    }

    /// Lets go of a provider's receipts with these numbers, and of what was noted of them.
    pub fn forget(&self, of: Address, numbers: Range<u64>) -> Result<(), BookError> {
        self.forgetting(&key(of, numbers.start), &key(of, numbers.end), |_| true)
    }

    /// Lets go of receipts that were signed before an epoch, posted or not.
    pub fn forget_before(&self, epoch: u64) -> Result<(), BookError> {
        self.forgetting(&[0; 28], &[u8::MAX; 28], |receipt| receipt.epoch < epoch)
    }

    /// Lets go of what was in vain before an epoch.
    pub fn forget_vain_before(&self, epoch: u64) -> Result<(), BookError> {
        self.write(|write| {
            write.open_table(VAIN)?.retain(|at, _| number(at) >= epoch)?;
            Ok(())
        })
    }

    fn forgetting(&self, from: &Key, to: &Key, old: impl Fn(&Receipt) -> bool) -> Result<(), BookError> {
        let domain = self.domain;
        self.write(|write| {
            let (mut given, mut compared) = (write.open_table(GIVEN)?, write.open_table(COMPARED)?);
            let (mut questions, mut found) = (write.open_table(ASKED)?, write.open_table(FOUND)?);
            let mut gone = Vec::new();
            for entry in given.range::<&Key>(from..to)? {
                let (at, bytes) = entry?;
                match read(bytes.value(), domain) {
                    Some(signed) if !old(&signed.receipt) => {}
                    signed => gone.push((*at.value(), signed)),
                }
            }
            for (at, signed) in gone {
                given.remove(&at)?;
                compared.remove(&at)?;
                found.remove(&at)?;
                if let Some(signed) = signed {
                    let question = asked(&signed.receipt);
                    let first = questions.get(&question)?.map(|first| first.value());
                    if first == Some(signed.receipt.sequence) {
                        questions.remove(&question)?;
                    }
                }
            }
            Ok(())
        })
    }
}
