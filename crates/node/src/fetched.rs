//! What this node fetched from hosts, and its word for it: a provider signs, for each host that sent it a model's bytes, a receipt over all of
//! them since ever, and hands it over. The ledger directs a part of this provider's own fees by it.
//!
//! Invariant: what is signed is on disk before it leaves, and never becomes less; where the disk was lost it goes on at what the ledger has counted.
//! So a crash loses at most the word for bytes of the moment, and a receipt that was not handed over is handed over later. It
//! refuses to sign for a host that the ledger does not name at that URL, or that has not pledged to keep what was fetched.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use assay_hub::exchange::{ExchangeError, Records};
use assay_hub::peer::PeerAddress;
use assay_hub::release::Release;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::node_address;
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::retrieval::{EnrolledNode, FETCHED_BYTES_MAX, FetchError, FetchReceipt, PledgeId, Roll};
use serde::{Deserialize, Serialize};

use crate::host::fetches::{durable, ledger_folder};

/// Most bytes of a file of this folder.
const FILE_BYTES_MAX: u64 = 4 << 10;
/// Most receipts that are handed over after one fetch; the rest waits for the next.
pub const HANDED_MAX: usize = 64;

/// Why a receipt was not signed or not handed over.
#[derive(Debug, thiserror::Error)]
pub enum FetchedError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path} is damaged; remove it, and it goes on at what the ledger has counted")]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// The chain could not be read.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The key does not sign it.
    #[error(transparent)]
    Receipt(#[from] FetchError),
    /// The host did not take it.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

impl FetchedError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            FetchedError::Io { .. } => "fetched_io",
            FetchedError::Damaged { .. } => "fetched_damaged",
            FetchedError::Client(_) => "ledger_unread",
            FetchedError::Receipt(e) => e.code(),
            FetchedError::Exchange(e) => e.code(),
        }
    }
}

/// What was fetched of one pledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Which pledge.
    pub pledge: PledgeId,
    /// Bytes since ever.
    pub bytes: u64,
    /// Bytes of the last receipt that the host took.
    pub handed: u64,
}

/// A provider's accounts of what it fetched.
pub struct Fetched {
    ledger: Ledger,
    key: PrivateKeySigner,
    folder: PathBuf,
}

impl Fetched {
    /// The accounts of a key in `folder`, which is made if there is none; nothing if the ledger does not know the key as a provider, whose
    /// word alone counts.
    pub async fn open(
        ledger: Ledger,
        key: PrivateKeySigner,
        folder: &Path,
    ) -> Result<Option<Fetched>, FetchedError> {
        let node = ledger.node(key.address()).await?;
        if node.is_none_or(|node| node.struck || node.roles & Role::Provider as u8 == 0) {
            return Ok(None);
        }
        let folder = folder.join(ledger_folder(&ledger)).join(format!("{:x}", key.address()));
        std::fs::create_dir_all(&folder)
            .map_err(|source| FetchedError::Io { path: folder.clone(), source })?;
        Ok(Some(Fetched { ledger, key, folder }))
    }

    /// Counts what hosts sent of a release's artifact, and hands over what has not been, also from before. `sent` has what each peer was the
    /// first to send, verified. Says what failed; it is tried again the next time.
    pub async fn settle(
        &self,
        roll: &Roll,
        records: &Records,
        release: &Release,
        sent: &[(PeerAddress, u64)],
    ) -> Result<Vec<(PledgeId, FetchedError)>, FetchedError> {
        let hosts = roll.hosts().await?;
        let mut failed = Vec::new();
        for (peer, bytes) in sent.iter().filter(|(_, bytes)| *bytes > 0) {
            let Some(host) = host_at(&hosts, records, peer).await else { continue };
            let Some(pledge) = self.pledge(roll, host, release).await? else { continue };
            let counted = self.ledger.served(pledge, self.key.address()).await?.bytes;
            if let Err(e) = self.count(pledge, counted, *bytes) {
                failed.push((pledge, e));
            }
        }
        let waiting = self.accounts()?.into_iter().filter(|account| account.handed < account.bytes);
        for account in waiting.take(HANDED_MAX) {
            let host = hosts.iter().find(|host| host.node == account.pledge.host);
            let Some(peer) = host.and_then(|host| host.endpoint.parse::<PeerAddress>().ok()) else {
                continue;
            };
            if let Err(e) = self.hand_over(records, &peer, account).await {
                failed.push((account.pledge, e));
            }
        }
        Ok(failed)
    }

    /// The host's pledge to keep this content: that of the publisher's listing, or else another's.
    async fn pledge(
        &self,
        roll: &Roll,
        host: Address,
        release: &Release,
    ) -> Result<Option<PledgeId>, FetchedError> {
        let publisher = Address::from(*release.publisher.as_bytes());
        let pledges = roll.pledges_of(host).await?;
        let mut of_model: Vec<PledgeId> =
            pledges.iter().map(|p| p.id).filter(|id| id.listing.model == release.root).collect();
        of_model.sort_by_key(|id| (id.listing.owner != publisher, id.listing.owner));
        for id in of_model {
            let listed = self.ledger.listing(id.listing).await?.and_then(|listing| listing.content);
            if listed.is_some_and(|c| c.root == release.content_root && c.chunks == release.chunks()) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Adds verified bytes to an account; it is durable on return. `counted` is what the ledger has.
    pub fn count(&self, pledge: PledgeId, counted: u64, bytes: u64) -> Result<Account, FetchedError> {
        self.change(pledge, |account| Account {
            bytes: account.bytes.max(counted).saturating_add(bytes).min(FETCHED_BYTES_MAX),
            handed: account.handed.max(counted),
            ..account
        })
    }

    /// Signs an account's receipt.
    pub fn receipt(&self, account: Account) -> Result<FetchReceipt, FetchError> {
        FetchReceipt::by(&self.key, account.pledge, account.bytes, &self.ledger.retrieval_domain())
    }

    async fn hand_over(
        &self,
        records: &Records,
        peer: &PeerAddress,
        account: Account,
    ) -> Result<(), FetchedError> {
        let receipt = self.receipt(account)?;
        records.post(&peer.to_string(), "/v1/fetches", &receipt).await?;
        let handed = |known: Account| Account { handed: known.handed.max(receipt.bytes), ..known };
        self.change(account.pledge, handed).map(drop)
    }

    /// All accounts, by pledge.
    pub fn accounts(&self) -> Result<Vec<Account>, FetchedError> {
        let io = |source| FetchedError::Io { path: self.folder.clone(), source };
        let mut accounts = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|e| e == "json")
                && let Some(account) = read(&path)?
            {
                accounts.insert(account.pledge, account);
            }
        }
        Ok(accounts.into_values().collect())
    }

    /// Changes an account, one process at a time: two that read the same and wrote each its own would sign less than before.
    fn change(&self, pledge: PledgeId, by: impl FnOnce(Account) -> Account) -> Result<Account, FetchedError> {
        let lock = self.folder.join("lock");
        let locked = File::create(&lock).and_then(|file| file.lock().map(|()| file));
        let _locked = locked.map_err(|source| FetchedError::Io { path: lock, source })?;
        let PledgeId { host, listing } = pledge;
        let path = self.folder.join(format!("{host:x}_{}_{:x}.json", listing.model, listing.owner));
        let account = by(read(&path)?.unwrap_or(Account { pledge, bytes: 0, handed: 0 }));
        durable(&path, &account).map_err(|source| FetchedError::Io { path, source })?;
        Ok(account)
    }
}

fn read(path: &Path) -> Result<Option<Account>, FetchedError> {
    let io = |source| FetchedError::Io { path: path.to_owned(), source };
    let damaged = || FetchedError::Damaged { path: path.to_owned() };
    match std::fs::metadata(path) {
        Ok(found) if found.len() > FILE_BYTES_MAX => return Err(damaged()),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| damaged())
}

/// Which host the ledger names at a peer's URL. Where it names several there, the peer itself says which of them it is.
async fn host_at(hosts: &[EnrolledNode], records: &Records, peer: &PeerAddress) -> Option<Address> {
    let named: Vec<Address> = hosts
        .iter()
        .filter(|host| !host.struck && host.endpoint.parse::<PeerAddress>().is_ok_and(|at| at == *peer))
        .map(|host| host.node)
        .collect();
    match named[..] {
        [] => None,
        [host] => Some(host),
        _ => {
            let card = records.card(&peer.to_string()).await.ok()?;
            let says = |host: &&Address| node_address(**host) == card.address;
            named.iter().find(says).copied()
        }
    }
}
