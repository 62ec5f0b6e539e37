//! Pays providers out of lanes: opens and fills channels from the account's balance on the ledger, signs a voucher for each request.
//!
//! What is durable is the chain and an instance's id, from which the lanes' channels follow: lane `i` of an instance to a provider has the salt
//! `keccak("assay/lane/1" ‖ instance (16) ‖ i (8))`. Instances with the same account have lanes of their own.
//!
//! Shutdown: whoever drops the future of [`Deposits::run`] ends the deposits that are waited for; they are kept by the sender, and go on with the
//! next start.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use alloy_primitives::aliases::U40;
use alloy_primitives::{Address, B128, B256};
use alloy_sol_types::Eip712Domain;
use assay_api::ChannelState;
use assay_core::id::{ChannelId, NodeAddress, SignatureBytes};
use assay_core::keccak::keccak256;
use assay_core::payment::Payment;
use assay_core::receipt::{Domain, SignedReceipt};
use assay_ledger::amount::Amount;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Channels, address, b256, channel_id};
use assay_ledger::ledger::{Ledger, logged};
use assay_ledger::sender::{SendError, Sender};
use assay_ledger::voucher;
use futures_util::future::try_join_all;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Notify, OnceCell, mpsc};
use tokio::task::JoinSet;

use super::{Deposit, LaneTerms, Lanes, Mistrust, OnChain, REST_MS, Seen, Taken};

/// Bytes of an instance's id.
pub const INSTANCE_BYTES: usize = 16;
/// Seconds that a provider has to claim when a lane is withdrawn from.
pub const WITHDRAW_DELAY_S: u64 = 3600;
/// Transactions that are waited for at the same time.
const AT_ONCE: usize = 16;
/// Errands that may wait. A lane has one at a time.
const ERRANDS: usize = 4096;
/// How long the chain may take to say what channels hold.
const ANSWER: Duration = Duration::from_secs(10);

/// How a gateway pays.
#[derive(Clone, Copy, Debug)]
pub struct PayerOptions {
    /// Lanes to one provider, and what is put into each.
    pub terms: LaneTerms,
    /// How long a request waits for a lane.
    pub wait: Duration,
}

/// Why there is no lane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLane {
    /// All are busy, or hold too little, and none came in time.
    #[error("no funded lane to it was free in time")]
    InTime,
    /// The chain does not say what lanes hold.
    #[error("the chain does not say what the lanes to it hold: {0}")]
    Unknown(String),
    /// The key cannot sign.
    #[error("no voucher could be signed")]
    Unsigned,
}

/// An account that pays providers.
pub struct Payer {
    ledger: Ledger,
    sender: Arc<Sender>,
    vouchers: Eip712Domain,
    receipts: Domain,
    instance: [u8; INSTANCE_BYTES],
    options: PayerOptions,
    providers: Mutex<HashMap<NodeAddress, Arc<Way>>>,
    errands: mpsc::Sender<Errand>,
    /// Who keeps the receipts that were paid for.
    given: OnceLock<mpsc::Sender<SignedReceipt>>,
    /// Deposits that arrived, and that did not.
    pub(crate) deposits: Counter,
    pub(crate) deposits_failed: Counter,
    /// Receipts that nobody keeps.
    pub(crate) receipts_dropped: Counter,
    started: Instant,
}

/// The lanes to one provider.
struct Way {
    provider: NodeAddress,
    lanes: OnceCell<Mutex<Lanes>>,
    changed: Notify,
    waiting: AtomicUsize,
}

/// Something to be done on the chain.
struct Errand {
    way: Arc<Way>,
    what: What,
}

enum What {
    Deposit(Deposit),
    /// A provider knows something else of the lane.
    Read(usize),
}

/// The task that deposits.
pub struct Deposits {
    payer: Arc<Payer>,
    errands: mpsc::Receiver<Errand>,
}

/// A lane that is taken for one request. Dropped, it is free again, and nothing is known to have been charged.
pub struct Paying {
    payer: Arc<Payer>,
    way: Arc<Way>,
    config: Channels::ChannelConfig,
    id: B256,
    taken: Taken,
    payment: Payment,
    ended: bool,
}

/// Counts who waits, for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads an instance's id in `path`, or draws one and keeps it there.
pub fn instance(path: &Path) -> std::io::Result<[u8; INSTANCE_BYTES]> {
    if !path.exists() {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let own = folder.join(format!("instance.{}", std::process::id()));
        let mut file = std::fs::File::create(&own)?;
        writeln!(file, "{}", hex::encode(B128::random()))?;
        file.sync_all()?;
        // Another process may have made one meanwhile: then that is the id.
        let linked = std::fs::hard_link(&own, path);
        std::fs::remove_file(&own)?;
        match linked {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    let mut id = [0; INSTANCE_BYTES];
    let text = std::fs::read_to_string(path)?;
    hex::decode_to_slice(text.trim(), &mut id).map_err(|_| {
        let what = format!("{} holds no instance's id ({} hex digits)", path.display(), 2 * INSTANCE_BYTES);
        std::io::Error::other(what)
    })?;
    Ok(id)
}

impl Payer {
    /// A payer whose account is the sender's, and the task without which it deposits nothing.
    pub fn new(
        ledger: Ledger,
        sender: impl Into<Arc<Sender>>,
        instance: [u8; INSTANCE_BYTES],
        options: PayerOptions,
    ) -> (Arc<Payer>, Deposits) {
        let sender = sender.into();
        let chain_id = ledger.client().chain_id();
        let at = &ledger.parts().at;
        let vouchers = voucher::domain(chain_id, at.channels);
        let receipts = ledger.receipt_domain();
        let (errands, inbox) = mpsc::channel(ERRANDS);
        let payer = Payer {
            ledger,
            sender,
            vouchers,
            receipts,
            instance,
            options,
            providers: Mutex::default(),
            errands,
            given: OnceLock::new(),
            deposits: Counter::default(),
            deposits_failed: Counter::default(),
            receipts_dropped: Counter::default(),
            started: Instant::now(),
        };
        let payer = Arc::new(payer);
        let deposits = Deposits { payer: Arc::clone(&payer), errands: inbox };
        (payer, deposits)
    }

    /// Gives every receipt that is paid for from now on to `keeper`, who compares it with what its provider posts. No request waits for that: what the
    /// keeper has no room for is dropped and counted. The first keeper stays.
    pub fn give(&self, keeper: mpsc::Sender<SignedReceipt>) {
        let _ = self.given.set(keeper);
    }

    fn given(&self, receipt: &SignedReceipt) {
        if let Some(keeper) = self.given.get()
            && keeper.try_send(receipt.clone()).is_err()
        {
            self.receipts_dropped.inc();
        }
    }

    /// The domain that receipts must be signed in.
    pub fn receipts(&self) -> Domain {
        self.receipts
    }

    /// All lanes, as they are shown.
    pub fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for way in lock(&self.providers).values() {
            seen.waiting += way.waiting.load(Relaxed);
            if let Some(lanes) = way.lanes.get() {
                lock(lanes).show(&mut seen);
            }
        }
        seen
    }

    /// Whose money it is.
    pub fn account(&self) -> Address {
        self.sender.account()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn way(&self, provider: NodeAddress) -> Arc<Way> {
        let new = || {
            let (lanes, changed, waiting) = (OnceCell::new(), Notify::new(), AtomicUsize::new(0));
            Arc::new(Way { provider, lanes, changed, waiting })
        };
        Arc::clone(lock(&self.providers).entry(provider).or_insert_with(new))
    }

    /// The channel of a lane, with its id.
    pub fn channel(&self, provider: NodeAddress, index: usize) -> (Channels::ChannelConfig, B256) {
        let number = u64::try_from(index).unwrap_or(u64::MAX).to_be_bytes();
        let salt = b256(&keccak256(&[b"assay/lane/1", &self.instance, &number]));
        let config = Channels::ChannelConfig {
            payer: self.sender.account(),
            payerAuthorizer: Address::ZERO,
            receiver: address(&provider),
            receiverAuthorizer: Address::ZERO,
            token: self.ledger.parts().at.token,
            withdrawDelay: U40::from(WITHDRAW_DELAY_S),
            salt,
        };
        let id = voucher::channel_id(&config, &self.vouchers);
        (config, id)
    }

    async fn on_chain(&self, provider: NodeAddress, index: usize) -> Result<OnChain, String> {
        let (_, id) = self.channel(provider, index);
        let read = tokio::time::timeout(ANSWER, self.ledger.channel(id)).await;
        let read = read.map_err(|e| e.to_string())?.map_err(|e: ClientError| e.to_string())?;
        let closing = read.leavesAt.to::<u64>() != 0;
        Ok(OnChain { balance: read.balance, claimed: read.claimed, closing })
    }

    /// What the chain says of all lanes to a provider.
    async fn discover(&self, provider: NodeAddress) -> Result<Mutex<Lanes>, String> {
        let terms = self.options.terms;
        let seen = try_join_all((0..terms.lanes_max).map(|index| self.on_chain(provider, index))).await?;
        Ok(Mutex::new(Lanes::new(terms, &seen)))
    }

    /// How long a request waits for lanes.
    pub fn wait(&self) -> Duration {
        self.options.wait
    }

    /// A lane to `provider` for a request that costs `most` at the most. Waits for one until the given time, if none is free, and has more opened.
    pub async fn lane(
        self: &Arc<Self>,
        provider: NodeAddress,
        most: u64,
        until: tokio::time::Instant,
    ) -> Result<Paying, NoLane> {
        let way = self.way(provider);
        way.waiting.fetch_add(1, Relaxed);
        let waiting = Waiting(&way.waiting);
        loop {
            let lanes =
                way.lanes.get_or_try_init(|| self.discover(provider)).await.map_err(NoLane::Unknown)?;
            let changed = way.changed.notified();
            let now_ms = self.now_ms();
            let (taken, deposit) = {
                let mut lanes = lock(lanes);
                let taken = lanes.take(most, now_ms);
                let others = waiting.0.load(Relaxed).saturating_sub(usize::from(taken.is_some()));
                (taken, lanes.deposit(most, others, now_ms))
            };
            if let Some(deposit) = deposit {
                self.deposit(&way, deposit);
            }
            if let Some(taken) = taken {
                drop(waiting);
                return self.paying(Arc::clone(&way), taken);
            }
            if tokio::time::Instant::now() >= until {
                return Err(NoLane::InTime);
            }
            // A lane that rests comes back without a word.
            let _ = tokio::time::timeout(Duration::from_millis(REST_MS), changed).await;
        }
    }

    fn deposit(&self, way: &Arc<Way>, deposit: Deposit) {
        let errand = Errand { way: Arc::clone(way), what: What::Deposit(deposit) };
        if self.errands.try_send(errand).is_err()
            && let Some(lanes) = way.lanes.get()
        {
            tracing::warn!(provider = %way.provider, "nobody deposits for its lanes");
            lock(lanes).deposit_failed(deposit.index, self.now_ms());
        }
    }

    fn signed(&self, config: &Channels::ChannelConfig, id: B256, max: u128) -> Option<Payment> {
        let signature = voucher::sign(self.sender.key(), id, max, &self.vouchers).ok()?;
        let signature = SignatureBytes::from_bytes(signature.as_ref().try_into().ok()?);
        Some(Payment { channel: voucher::terms(config), max, signature })
    }

    fn paying(self: &Arc<Self>, way: Arc<Way>, taken: Taken) -> Result<Paying, NoLane> {
        let (config, id) = self.channel(way.provider, taken.index);
        match self.signed(&config, id, taken.ceiling) {
            Some(payment) => {
                let payer = Arc::clone(self);
                Ok(Paying { payer, way, config, id, taken, payment, ended: false })
            }
            None => {
                way.change(|lanes| lanes.release(taken.index, self.now_ms()));
                Err(NoLane::Unsigned)
            }
        }
    }

    async fn do_errand(&self, errand: Errand) {
        let Errand { way, what } = errand;
        match what {
            What::Deposit(deposit) => match self.fund(way.provider, deposit).await {
                Ok(balance) => {
                    tracing::info!(provider = %way.provider, lane = deposit.index, balance, "a lane was funded");
                    self.deposits.inc();
                    way.change(|lanes| lanes.deposited(deposit.index, balance));
                }
                Err(e) => {
                    tracing::warn!(provider = %way.provider, lane = deposit.index, reason = %e, "a lane was not funded");
                    self.deposits_failed.inc();
                    way.change(|lanes| lanes.deposit_failed(deposit.index, self.now_ms()));
                }
            },
            What::Read(index) => match self.on_chain(way.provider, index).await {
                Ok(seen) => way.change(|lanes| lanes.read(index, seen)),
                Err(reason) => {
                    tracing::warn!(provider = %way.provider, lane = index, reason, "a lane is not known")
                }
            },
        }
    }

    /// Puts money of the account's balance into a lane. What it holds then.
    async fn fund(&self, provider: NodeAddress, deposit: Deposit) -> Result<u64, SendError> {
        let (config, id) = self.channel(provider, deposit.index);
        let channels = self.ledger.parts().at.channels;
        let call = Channels::depositCall { config, amount: deposit.amount.into() };
        let purpose =
            format!("deposit {} for lane {} to {provider}", Amount(deposit.amount.into()), deposit.index);
        let mined = self.sender.send(&purpose, channels, &call).await?;
        match logged::<Channels::Funded>(&mined, channels) {
            Some(funded) => Ok(u64::try_from(funded.balance).unwrap_or(u64::MAX)),
            None => Ok(self.ledger.channel(id).await?.balance),
        }
    }
}

impl Way {
    fn change(&self, change: impl FnOnce(&mut Lanes)) {
        if let Some(lanes) = self.lanes.get() {
            change(&mut lock(lanes));
            self.changed.notify_waiters();
        }
    }
}

impl Deposits {
    /// Deposits, until it is dropped.
    pub async fn run(mut self) {
        let mut under_way = JoinSet::new();
        loop {
            tokio::select! {
                errand = self.errands.recv(), if under_way.len() < AT_ONCE => match errand {
                    Some(errand) => {
                        let payer = Arc::clone(&self.payer);
                        under_way.spawn(async move { payer.do_errand(errand).await });
                    }
                    None => return,
                },
                Some(ended) = under_way.join_next() => {
                    if let Err(e) = ended {
                        tracing::error!(reason = %e, "a deposit ended badly");
                    }
                }
            }
        }
    }
}

impl Paying {
    /// The voucher.
    pub fn payment(&self) -> &Payment {
        &self.payment
    }

    /// The channel that receipts must name.
    pub fn channel(&self) -> ChannelId {
        channel_id(self.id)
    }

    /// Whether a receipt asks for what was agreed: this fee, which the voucher covers, from this channel, on this ledger.
    pub fn covers(&self, receipt: &SignedReceipt, fee: u64) -> bool {
        let SignedReceipt { receipt, domain, .. } = receipt;
        *domain == self.payer.receipts
            && receipt.payer_channel == self.channel()
            && receipt.fee_micro_usd == fee
            && fee <= self.taken.most
    }

    /// The provider refused the voucher and showed what it knows: signs another one, if that is proven. The request may cost `most`.
    pub fn correct(&mut self, shown: &ChannelState, most: u64) -> Result<(), Mistrust> {
        if shown.id != self.channel() {
            return Err(Mistrust::Contradicts);
        }
        let ours = shown.voucher.filter(|(max, signature)| {
            voucher::check(&self.config, *max, signature.as_bytes(), &self.payer.vouchers).is_ok()
        });
        let shown_max = ours.map(|(max, _)| max);
        let lanes = self.way.lanes.get().ok_or(Mistrust::Contradicts)?;
        let corrected = lock(lanes).correct(self.taken.index, shown.charged, shown_max, most);
        if let Err(Mistrust::Short { .. }) = corrected {
            self.reread();
        }
        self.taken = corrected?;
        let signed = self.payer.signed(&self.config, self.id, self.taken.ceiling);
        self.payment = signed.ok_or(Mistrust::Contradicts)?;
        Ok(())
    }

    /// Has the chain asked what the lane holds: its provider says something else.
    pub fn reread(&self) {
        let errand = Errand { way: Arc::clone(&self.way), what: What::Read(self.taken.index) };
        // If too much is to be done already, it is read when it is asked for next.
        let _ = self.payer.errands.try_send(errand);
    }

    /// The receipt was accepted: `fee` was charged, at most what the voucher was signed for.
    pub fn settle(mut self, fee: u64, receipt: &SignedReceipt) {
        self.ended = true;
        self.payer.given(receipt);
        self.way.change(|lanes| lanes.settle(self.taken.index, fee));
    }
}

impl Drop for Paying {
    fn drop(&mut self) {
        if !self.ended {
            let now_ms = self.payer.now_ms();
            self.way.change(|lanes| lanes.release(self.taken.index, now_ms));
        }
    }
}
