//! A host's duties on the ledger: it pledges what it keeps, answers what beacons ask of it, shows the silence of others, and collects.
//!
//! A round may be repeated after a crash at any step: everything it does on the ledger is done once, however often it is asked. An answer
//! is made from the bytes in the store; where they are gone or wrong there is none, and the pledge is lost with its stake.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use alloy_primitives::Address;
use assay_core::id::NodeAddress;
use assay_hub::blob::BlobHash;
use assay_hub::catalogue::Catalogue;
use assay_hub::keeping::{Kept, prove};
use assay_hub::peer::PeerAddress;
use assay_hub::release::{Release, Signed};
use assay_hub::replication::HostId;
use assay_hub::store::Store;
use assay_ledger::amount::Amount;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::node_address;
use assay_ledger::follow::FollowError;
use assay_ledger::ledger::Ledger;
use assay_ledger::retrieval::{
    Content, Listing, ListingId, Once, Open, Pledge, PledgeId, Questions, Roll, Time,
};
use assay_ledger::sender::{SendError, Sender};
use axum::Router;

use super::fetches::{Fetches, FetchesError, Held, Seen, Worth};
use super::{Event, Host, Listener};

/// How many epochs back questions are looked for. Longer than any beacon and answer window of sane parameters takes.
pub const EPOCHS_BACK: u64 = 16;
/// Bytes beyond what was counted that make a fetch receipt worth the gas of posting it: some 90 000 for the first of a provider, about
/// half of that for a later one.
pub const POST_BYTES: u64 = 1 << 30;
/// Epochs after which a fetch receipt is posted, however little it says.
pub const POST_AFTER_EPOCHS: u64 = 7;

/// How a host does its duties.
#[derive(Clone, Debug)]
pub struct DutyOptions {
    /// Folder of what is remembered between starts: names that the ledger logged, fetch receipts.
    pub folder: PathBuf,
    /// Collected when at least this much is there: collecting costs gas.
    pub collect_min: Amount,
    /// Which fetch receipts are posted.
    pub post: Worth,
}

impl DutyOptions {
    /// The defaults, in a folder.
    pub fn at(folder: PathBuf) -> DutyOptions {
        let post = Worth { bytes: POST_BYTES, epochs: POST_AFTER_EPOCHS };
        DutyOptions { folder, collect_min: Amount(assay_ledger::amount::DOLLAR), post }
    }
}

/// Why a round ended early. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum DutyError {
    /// The chain could not be read.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its log could not be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// Fetch receipts cannot be kept.
    #[error(transparent)]
    Fetches(#[from] FetchesError),
}

impl DutyError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            DutyError::Client(_) => "ledger_unread",
            DutyError::Follow(_) => "ledger_unfollowed",
            DutyError::Fetches(e) => e.code(),
        }
    }
}

/// What a host does on the ledger.
pub struct Duties {
    ledger: Ledger,
    sender: Sender,
    host: Address,
    roll: Roll,
    questions: Questions,
    /// What listings name, as they were read last.
    contents: BTreeMap<ListingId, Content>,
    fetches: Arc<Fetches>,
    store: Store,
    catalogue: Arc<Catalogue>,
    options: DutyOptions,
    listener: Listener,
}

impl Duties {
    /// The duties of `host`, whose transactions `sender` sends. Goes on with the names that an earlier start has read.
    pub async fn open(
        ledger: Ledger,
        sender: Sender,
        address: NodeAddress,
        host: &Host,
        options: DutyOptions,
    ) -> Result<Duties, DutyError> {
        let roll = Roll::open(ledger.clone(), &options.folder).await?;
        let address = Address::from(*address.as_bytes());
        let fetches = Fetches::open(&ledger, address, &options.folder.join("fetches"))?;
        Ok(Duties {
            ledger,
            sender,
            host: address,
            roll,
            questions: Questions::default(),
            contents: BTreeMap::new(),
            fetches: Arc::new(fetches),
            store: host.store().clone(),
            catalogue: Arc::clone(host.catalogue()),
            options,
            listener: Arc::clone(&host.listener),
        })
    }

    /// The host's address.
    pub fn address(&self) -> Address {
        self.host
    }

    /// What downloaders use: `POST /v1/fetches`.
    pub fn routes(&self) -> Router {
        self.fetches.routes()
    }

    /// Addresses of the other hosts that the ledger names and nobody struck, over HTTP or iroh.
    pub async fn hosts(&self) -> Result<Vec<String>, DutyError> {
        let hosts = self.roll.hosts().await?;
        let others = hosts.into_iter().filter(|h| h.node != self.host && !h.struck);
        // What is no address of a peer is asked by nobody.
        Ok(others.filter_map(|h| h.endpoint.parse::<PeerAddress>().ok()).map(|p| p.to_string()).collect())
    }

    /// Which artifacts a host's last question was about, where it ended with its silence. An answer to a later question ends that.
    pub fn failures(&self) -> BTreeMap<HostId, BTreeSet<BlobHash>> {
        let mut failures: BTreeMap<HostId, BTreeSet<BlobHash>> = BTreeMap::new();
        for pledge in self.roll.failures() {
            let blobs = self.releases(pledge.listing).map(|release| release.record.blob);
            failures.entry(HostId(pledge.host.into_array())).or_default().extend(blobs);
        }
        failures.retain(|_, blobs| !blobs.is_empty());
        failures
    }

    /// One round.
    pub async fn round(&mut self) -> Result<(), DutyError> {
        self.roll.update().await?;
        if let Err(e) = self.roll.store(&self.options.folder).await? {
            self.failed("storing what was read", e.code(), &e);
        }
        let listings = self.roll.listings().await?;
        self.contents = listings.iter().filter_map(|l| Some((l.id, l.content?))).collect();
        let pledges = self.roll.pledges_of(self.host).await?;
        let mut pledged: BTreeSet<ListingId> = pledges.iter().map(|p| p.id.listing).collect();
        for listing in listings.iter().filter(|l| !pledges.iter().any(|p| p.id.listing == l.id)) {
            if let Some(release) = self.kept(listing)
                && self.pledge(listing.id, &release).await
            {
                pledged.insert(listing.id);
            }
        }
        let epoch = self.ledger.epoch().await?;
        let providers = self.roll.names().providers.clone();
        self.fetches.see(Seen { epoch, providers, pledged });
        for open in self.questions.open(&self.roll, epoch.saturating_sub(EPOCHS_BACK)..=epoch).await? {
            match open.time {
                Time::Left if open.pledge.host == self.host => self.answer(open).await,
                Time::Left => {}
                Time::Over => self.show(open).await,
            }
        }
        self.post(epoch).await?;
        self.collect(&pledges).await
    }

    async fn show(&self, open: Open) {
        let Open { pledge, epoch, .. } = open;
        let shown = self.ledger.prove_failure(&self.sender, pledge, epoch).await;
        if self.done(&format!("showing that {} is silent", pledge.host), shown) {
            (self.listener)(Event::Shown { host: node_address(pledge.host), epoch });
        }
    }

    /// Has the fetch receipts counted that are worth it.
    async fn post(&self, epoch: u64) -> Result<(), DutyError> {
        for Held { receipt, .. } in self.fetches.worth(self.options.post, epoch) {
            let (pledge, downloader) = (receipt.pledge(), Address::from(*receipt.downloader.as_bytes()));
            if self.ledger.node(downloader).await?.is_none_or(|node| node.struck) {
                self.fetches.forget(downloader)?;
                continue;
            }
            let posted = self.ledger.post_fetch(&self.sender, &receipt.fetch(), receipt.signature()).await;
            let stands = posted.is_ok();
            if self.done(&format!("posting what {downloader} fetched"), posted) {
                (self.listener)(Event::Counted { downloader: receipt.downloader, bytes: receipt.bytes });
            }
            if stands {
                self.fetches.counted(pledge, downloader, receipt.bytes)?;
            }
        }
        Ok(())
    }

    async fn collect(&self, pledges: &[Pledge]) -> Result<(), DutyError> {
        let due = |amount: Amount| amount >= self.options.collect_min && amount > Amount(0);
        for pledge in pledges.iter().filter(|pledge| due(pledge.earned)) {
            let collected = self.ledger.collect_hosting(&self.sender, pledge.id).await;
            self.done("collecting", collected);
        }
        for served in self.roll.served(self.host).await?.into_iter().filter(|served| due(served.owed)) {
            let collected = self.ledger.collect_served(&self.sender, served.pledge, served.provider).await;
            self.done("collecting", collected);
        }
        Ok(())
    }

    /// The release behind a listing, if this host keeps what the listing names.
    fn kept(&self, listing: &Listing) -> Option<Signed<Release>> {
        let kept = Kept::of(&self.store).ok()?;
        self.releases(listing.id).find(|signed| kept.has(&signed.record))
    }

    /// Releases of a listing's owner with the content that it names.
    fn releases(&self, id: ListingId) -> impl Iterator<Item = Signed<Release>> {
        let publisher = node_address(id.owner);
        let content = self.contents.get(&id).copied();
        self.catalogue.of_root(id.model).into_iter().filter(move |signed| {
            let r = &signed.record;
            let same = |c: Content| r.content_root == c.root && r.chunks() == c.chunks;
            r.publisher == publisher && content.is_some_and(same)
        })
    }

    /// Whether the pledge stands.
    async fn pledge(&self, listing: ListingId, release: &Signed<Release>) -> bool {
        let id = PledgeId { host: self.host, listing };
        let pledged = self.ledger.pledge(&self.sender, id).await;
        let stands = pledged.is_ok();
        if self.done(&format!("pledging {}@{}", release.record.name, release.record.version), pledged) {
            (self.listener)(Event::Pledged { blob: release.record.blob });
        }
        stands
    }

    async fn answer(&self, open: Open) {
        let Open { pledge: id, epoch, chunk, .. } = open;
        let Some(release) = self.releases(id.listing).next() else { return };
        let (store, blob) = (self.store.clone(), release.record.blob);
        let proved = super::blocking(move || prove(&store, &release.record, chunk)).await;
        let proved = match proved {
            Ok(proved) => proved,
            Err(e) => return self.failed(&format!("answering for epoch {epoch}"), e.code(), &e),
        };
        let answered = self.ledger.answer(&self.sender, id, epoch, proved.chunk, &proved.proof).await;
        if self.done(&format!("answering for epoch {epoch}"), answered) {
            (self.listener)(Event::Answered { blob, epoch, chunk });
        }
    }

    /// Whether something was done now.
    fn done(&self, what: &str, done: Result<Once, SendError>) -> bool {
        match done {
            Ok(Once::Now(_)) => true,
            Ok(Once::Before) => false,
            Err(e) => {
                self.failed(what, "transaction_failed", &e);
                false
            }
        }
    }

    fn failed(&self, what: &str, code: &'static str, reason: &dyn std::fmt::Display) {
        (self.listener)(Event::Failed { what: what.to_owned(), code, reason: reason.to_string() });
    }
}
