//! A small economy on an embedded chain: a payer, an author, providers that were paid for answers of the built-in model, auditors; daemons that are
//! opened from disk, driven step by step, and dropped.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use alloy_primitives::{Address, B256};
use alloy_signer::SignerSync as _;
use assay_core::answer::AnswerRecord;
use assay_core::embedding::Record;
use assay_core::id::{ModelRoot, SignatureBytes};
use assay_core::receipt::Domain;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_ledger::amount::Amount;
use assay_ledger::contracts::Directory::Parameters;
use assay_ledger::contracts::{Audits, Channels, Epochs, Registry, Vault, b256, channel_id, node_address};
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::sender::Sender;
use assay_ledger::voucher;
use assay_node::auditor::{self, Auditor, AuditorOptions};
use assay_node::execution::{Installed, Library};
use assay_node::settlement::{self, Described, Settlement, SettlementOptions};
use assay_node::store::ReceiptStore;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::IntoResponse as _;
use tokio::net::TcpListener;
use tower::ServiceExt as _;

use crate::chains::{DOLLAR, Node, hash, policy};
use crate::honest;

pub const FEE: u64 = 250_000;
pub const ROYALTY_PPM: u32 = 50_000;
/// Steps of one daemon in one phase: more are a loop.
const STEPS_MAX: usize = 60;

pub struct Economy {
    pub node: Node,
    pub ledger: Ledger,
    pub model: Arc<honest::Node>,
    pub payer: Sender,
    pub author: Sender,
    pub folder: tempfile::TempDir,
}

impl Economy {
    pub async fn new(parameters: Parameters) -> Economy {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let node = Node::embedded().await;
        let ledger = node.deploy(parameters).await;
        let payer = node.member(&ledger, "payer").await;
        ledger.deposit(&payer, Amount(u128::from(500 * DOLLAR))).await.unwrap();
        let author = node.member(&ledger, "author").await;
        let model = Arc::new(honest::Node::new());
        ledger.publish(&author, model.artifact.root(), ROYALTY_PPM, None, String::new()).await.unwrap();
        Economy { node, ledger, model, payer, author, folder: tempfile::tempdir().unwrap() }
    }

    pub fn library(&self) -> Arc<Library> {
        let artifact = Arc::clone(&self.model.artifact);
        let installed: Installed =
            Arc::new(move |root| (root == artifact.root()).then(|| Arc::clone(&artifact)));
        Arc::new(Library::new(installed, Kernel::from_environment().unwrap(), Arc::new(Pool::new(1))))
    }

    pub fn model_root(&self) -> ModelRoot {
        self.model.artifact.root()
    }

    /// Somebody enrolled, with stake.
    pub async fn enrolled(&self, name: &str, role: Role, stake: u64, vault: u64) -> Sender {
        let sender = self.node.member(&self.ledger, name).await;
        let key = sender.key().clone();
        self.ledger.enrol(&sender, &key, role as u8, String::new(), B256::ZERO).await.unwrap();
        if stake + vault > 0 {
            self.ledger.deposit(&sender, Amount(u128::from((stake + vault) * DOLLAR))).await.unwrap();
        }
        if stake > 0 {
            self.ledger.stake(&sender, key.address(), Amount(u128::from(stake * DOLLAR))).await.unwrap();
        }
        sender
    }

    pub async fn vault(&self, account: Address) -> u128 {
        self.ledger.holdings(account).await.unwrap().vault.0
    }

    /// What a part of the ledger holds.
    pub async fn held(&self, account: Address) -> u128 {
        let call = Vault::balanceOfCall { account };
        Amount::from_word(self.ledger.client().read(self.ledger.parts().at.vault, &call).await.unwrap()).0
    }

    pub async fn node_of(&self, node: Address) -> Registry::Node {
        self.ledger.node(node).await.unwrap().unwrap()
    }

    pub async fn batch(&self, provider: Address, epoch: u64) -> Epochs::Batch {
        let call = Epochs::batchOfCall { provider, epoch };
        self.ledger.client().read(self.ledger.parts().at.epochs, &call).await.unwrap()
    }

    pub async fn member(&self, provider: Address, epoch: u64, member: u8) -> Audits::Member {
        let call = Audits::memberOfCall { provider, epoch, member: alloy_primitives::U256::from(member) };
        self.ledger.client().read(self.ledger.parts().at.audits, &call).await.unwrap()
    }

    pub fn domain(&self) -> Domain {
        let contract = node_address(self.ledger.parts().at.epochs);
        Domain { chain_id: self.node.client.chain_id(), contract }
    }
}

/// Serves whatever router is put into it, at one address, as a process that is killed and started again would.
#[derive(Clone)]
pub struct Front {
    pub url: String,
    router: Arc<RwLock<Option<Router>>>,
}

impl Front {
    pub async fn new() -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router: Arc<RwLock<Option<Router>>> = Arc::default();
        let current = Arc::clone(&router);
        let front = Router::new().fallback(move |request: Request<Body>| {
            let router = current.read().unwrap().clone();
            async move {
                match router {
                    Some(router) => router.oneshot(request).await.unwrap(),
                    None => StatusCode::BAD_GATEWAY.into_response(),
                }
            }
        });
        tokio::spawn(async move { axum::serve(listener, front).await.unwrap() });
        Front { url, router }
    }

    pub fn put(&self, router: Option<Router>) {
        *self.router.write().unwrap() = router;
    }
}

/// A provider: its key, what it was paid by, and its folder.
pub struct Provider {
    pub sender_key: alloy_signer_local::PrivateKeySigner,
    pub account: Address,
    pub front: Front,
    pub folder: PathBuf,
    pub config: Channels::ChannelConfig,
    channel: B256,
    owed: Mutex<u128>,
    pub events: Arc<Mutex<Vec<settlement::Event>>>,
    /// Whether auditors get what they ask for.
    pub answers: bool,
}

/// A provider's daemon while it lives.
pub struct Living {
    pub settlement: Settlement,
    pub store: Arc<ReceiptStore>,
    front: Front,
}

impl Drop for Living {
    /// Whoever still holds the routes holds the store.
    fn drop(&mut self) {
        self.front.put(None);
    }
}

impl Provider {
    pub async fn new(e: &Economy, name: &str, stake: u64) -> Provider {
        let sender = e.enrolled(name, Role::Provider, stake, 0).await;
        let at = &e.ledger.parts().at;
        let config = Channels::ChannelConfig {
            payer: e.payer.account(),
            payerAuthorizer: Address::ZERO,
            receiver: sender.account(),
            receiverAuthorizer: Address::ZERO,
            token: at.token,
            withdrawDelay: alloy_primitives::aliases::U40::from(3_600),
            salt: hash("lane"),
        };
        let deposit = Channels::depositCall { config: config.clone(), amount: u128::from(50 * DOLLAR) };
        e.payer.send("channel", at.channels, &deposit).await.unwrap();
        let domain = voucher::domain(e.node.client.chain_id(), at.channels);
        let channel = voucher::channel_id(&config, &domain);
        Provider {
            sender_key: sender.key().clone(),
            account: sender.account(),
            front: Front::new().await,
            folder: e.folder.path().join(name),
            config,
            channel,
            owed: Mutex::new(0),
            events: Arc::default(),
            answers: true,
        }
    }

    pub fn store(&self) -> Arc<ReceiptStore> {
        Arc::new(ReceiptStore::open(&self.folder.join("receipts.redb")).unwrap())
    }

    /// An answer of the model, signed for this ledger and paid by a voucher, as a till leaves it in the store.
    pub fn serve(&self, e: &Economy, store: &ReceiptStore, epoch: u64, seed: u64) -> AnswerRecord {
        let record = self.answer(e, store, epoch, seed);
        self.keep(e, store, record)
    }

    /// An answer that nobody has signed yet.
    pub fn answer(&self, e: &Economy, store: &ReceiptStore, epoch: u64, seed: u64) -> AnswerRecord {
        let mut request = e.model.request();
        request.sampling.seed = Some(seed);
        request.max_tokens = 8;
        let mut record = e.model.answer(request);
        let sequence = store.reserve_sequence().unwrap();
        let receipt = &mut record.receipt.receipt;
        receipt.sequence = sequence.number();
        receipt.epoch = epoch;
        receipt.fee_micro_usd = FEE;
        record
    }

    /// Signs an answer, and stores it with what its channel owes from now on.
    pub fn keep(&self, e: &Economy, store: &ReceiptStore, mut record: AnswerRecord) -> AnswerRecord {
        let signed = &mut record.receipt;
        signed.receipt.provider = node_address(self.account);
        signed.receipt.payer_channel = channel_id(self.channel);
        signed.domain = e.domain();
        let hash = b256(&signed.receipt.signing_hash(&signed.domain));
        let signature = self.sender_key.sign_hash_sync(&hash).unwrap();
        signed.signature = SignatureBytes::from_bytes(signature.as_bytes());
        let mut owed = self.owed.lock().unwrap();
        *owed += u128::from(signed.receipt.fee_micro_usd);
        let domain = voucher::domain(e.node.client.chain_id(), e.ledger.parts().at.channels);
        let said = voucher::sign(e.payer.key(), self.channel, *owed, &domain).unwrap();
        let claim = voucher::claim(&self.config, *owed, said, *owed);
        let stored = Record::Answer(Box::new(record.clone()));
        store.put_paid(&stored, record.receipt.receipt.payer_channel, &claim).unwrap();
        record
    }

    pub async fn live(&self, e: &Economy) -> Living {
        let sender = e.node.sender_in(&self.folder, &self.sender_key, policy()).await;
        let store = self.store();
        let events = Arc::clone(&self.events);
        let options = SettlementOptions {
            folder: self.folder.join("epochs"),
            owners: [(e.model_root(), e.author.account())].into(),
            described: Described { endpoint: Some(self.front.url.clone()), price_list: None },
        };
        let listener: settlement::Listener = Arc::new(move |event| events.lock().unwrap().push(event));
        let opened =
            Settlement::open(e.ledger.clone(), sender, Arc::clone(&store), e.library(), options, listener)
                .await;
        let settlement = opened.unwrap();
        self.front.put(self.answers.then(|| settlement.routes()));
        Living { settlement, store, front: self.front.clone() }
    }

    /// Does everything that is due, one duty in each life: after every step the process dies and starts again.
    pub async fn steps(&self, e: &Economy) {
        for _ in 0..STEPS_MAX {
            let mut living = self.live(e).await;
            let done = living.settlement.some(1).await.unwrap();
            drop(living);
            if done == 0 {
                return;
            }
        }
        panic!("no end of steps: {:?}", self.events.lock().unwrap());
    }

    pub fn count(&self, kind: &str) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event.kind() == kind).count()
    }

    pub fn failures(&self) -> Vec<settlement::Event> {
        self.events.lock().unwrap().iter().filter(|event| event.kind() == "failed").cloned().collect()
    }
}

/// An auditor: its key and its folder.
pub struct Checker {
    pub key: alloy_signer_local::PrivateKeySigner,
    pub account: Address,
    pub folder: PathBuf,
    pub events: Arc<Mutex<Vec<auditor::Event>>>,
    pub seats: u64,
}

impl Checker {
    pub async fn new(e: &Economy, name: &str, seats: u64) -> Checker {
        let each = e.ledger.parameters().stakes.seatStake / DOLLAR;
        let sender = e.enrolled(name, Role::Auditor, seats * each, 60).await;
        Checker {
            key: sender.key().clone(),
            account: sender.account(),
            folder: e.folder.path().join(name),
            events: Arc::default(),
            seats,
        }
    }

    pub async fn live(&self, e: &Economy) -> Auditor {
        self.live_with(e, e.library()).await
    }

    pub async fn live_with(&self, e: &Economy, library: Arc<Library>) -> Auditor {
        std::fs::create_dir_all(&self.folder).unwrap();
        let sender = e.node.sender_in(&self.folder, &self.key, policy()).await;
        let events = Arc::clone(&self.events);
        let options =
            AuditorOptions { folder: self.folder.join("auditor"), seats: self.seats, executed_at_once: 3 };
        let listener: auditor::Listener = Arc::new(move |event| events.lock().unwrap().push(event));
        Auditor::open(e.ledger.clone(), sender, library, options, listener).await.unwrap()
    }

    /// Rounds until nothing is done.
    pub async fn rounds(&self, e: &Economy) {
        let mut living = self.live(e).await;
        // What one round sends for is there in the next one.
        let mut still = 0;
        for _ in 0..STEPS_MAX {
            let before = self.events.lock().unwrap().len();
            let done = living.round().await.unwrap();
            while living.worked().await {}
            still = if done == 0 && self.events.lock().unwrap().len() == before { still + 1 } else { 0 };
            if still == 2 {
                return;
            }
        }
        panic!("no end of rounds: {:?}", self.events.lock().unwrap());
    }

    pub fn count(&self, kind: &str) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event.kind() == kind).count()
    }

    pub fn failures(&self) -> Vec<auditor::Event> {
        self.events.lock().unwrap().iter().filter(|event| event.kind() == "failed").cloned().collect()
    }
}
