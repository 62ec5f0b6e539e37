//! Fetch receipts from a provider that pulls, by way of hosts, to the money that follows them; with crashes in between and receipts that nobody
//! should take.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;

use std::path::Path;
use std::sync::Arc;

use alloy_primitives::{Address, B256};
use assay_core::id::{Hash, ModelRoot};
use assay_core::merkle;
use assay_hub::blob::{BlobHash, CHUNK_BYTES};
use assay_hub::exchange::{Admission, Records};
use assay_hub::fetch::{FetchOptions, fetch};
use assay_hub::inbox::{Inbox, Parcel};
use assay_hub::peer::{Dialer, PeerAddress};
use assay_hub::release::{Release, Signed};
use assay_hub::replication::Times;
use assay_hub::server::{ServerOptions, serve};
use assay_hub::store::{Quota, Store};
use assay_ledger::amount::Amount;
use assay_ledger::contracts::{Channels, Epochs, node_address};
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::retrieval::{Content, FetchReceipt, ListingId, PledgeId, Roll};
use assay_ledger::sender::Sender;
use assay_ledger::voucher;
use assay_node::fetched::{Account, Fetched};
use assay_node::host::duties::{Duties, DutyOptions};
use assay_node::host::fetches::{RECEIPT_JSON_BYTES_MAX, Worth};
use assay_node::host::{Host, HostOptions};
use axum::body::{Body, to_bytes};
use axum::http::Request;
use chains::{DOLLAR, Node, parameters};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

const FEES: u64 = 20 * DOLLAR;

fn content() -> Vec<u8> {
    (0..40_000u32).flat_map(|i| i.to_le_bytes()).collect()
}

struct World {
    node: Node,
    ledger: Ledger,
    author: Sender,
    provider: Sender,
    release: Signed<Release>,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let node = Node::embedded().await;
        let mut p = parameters();
        // Nobody is asked anything: this is about bytes.
        p.rates.retrievalPpm = 0;
        let ledger = node.deploy(p).await;
        let author = node.member(&ledger, "author").await;
        let bytes = content();
        let record = Release {
            publisher: node_address(author.account()),
            name: "numbers".parse().unwrap(),
            version: "1".parse().unwrap(),
            root: ModelRoot::from_bytes([9; 32]),
            blob: BlobHash::of(&bytes),
            size: bytes.len() as u64,
            content_root: merkle::root(bytes.chunks(CHUNK_BYTES as usize).map(merkle::leaf)),
            profile: "int8-v1".into(),
            parameters: 40_000,
            context: 1,
            licence: "CC0-1.0".into(),
            royalty_ppm: 0,
            copies: 2,
            card: String::new(),
            sources: vec![],
            published_at: 0,
        };
        let release = Signed::by(author.key(), record).unwrap();
        let content = Content { root: release.record.content_root, chunks: release.record.chunks() };
        ledger.publish(&author, release.record.root, 0, Some(content), String::new()).await.unwrap();
        let provider = node.member(&ledger, "provider").await;
        let key = provider.key().clone();
        ledger.enrol(&provider, &key, Role::Provider as u8, String::new(), B256::ZERO).await.unwrap();
        World { node, ledger, author, provider, release, folder: tempfile::tempdir().unwrap() }
    }

    fn listing(&self) -> ListingId {
        ListingId { model: self.release.record.root, owner: self.author.account() }
    }

    /// A host that keeps the release, with its pledge.
    async fn keeper(&self, name: &str) -> Keeper {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let sender = self.node.member(&self.ledger, name).await;
        let (key, amount) = (sender.key().clone(), Amount(u128::from(60 * DOLLAR)));
        self.ledger.enrol(&sender, &key, Role::Host as u8, url.clone(), B256::ZERO).await.unwrap();
        self.ledger.deposit(&sender, amount).await.unwrap();
        self.ledger.stake(&sender, key.address(), amount).await.unwrap();
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let artifact = folder.join("artifact");
        std::fs::write(&artifact, content()).unwrap();
        let parcel = Parcel { release: self.release.clone(), label: None, cut: None, artifact };
        Inbox::at(&folder.join("inbox")).leave(&parcel).unwrap();
        let options = HostOptions {
            folder: folder.clone(),
            quota: Quota::bytes(8 << 20),
            peers: vec![],
            admission: Admission::Anyone,
            server: ServerOptions::default(),
            fetch: FetchOptions::default(),
            times: Times::DEFAULT,
            endpoint: None,
        };
        let mut host = Host::open(node_address(key.address()), options, Arc::new(|_| ())).unwrap();
        host.round(1).await;
        let mut keeper =
            Keeper { duties: self.duties(&host, sender, &folder).await, host, url, server: None, folder };
        keeper.serve(listener);
        keeper.duties.round().await.unwrap();
        keeper
    }

    async fn duties(&self, host: &Host, sender: Sender, folder: &Path) -> Duties {
        let address = node_address(sender.account());
        let options = DutyOptions {
            collect_min: Amount(1),
            post: Worth { bytes: 1, epochs: 1 },
            ..DutyOptions::at(folder.join("ledger"))
        };
        Duties::open(self.ledger.clone(), sender, address, host, options).await.unwrap()
    }

    async fn fetched(&self, folder: &str) -> Fetched {
        let (key, folder) = (self.provider.key().clone(), self.folder.path().join(folder));
        Fetched::open(self.ledger.clone(), key, &folder).await.unwrap().unwrap()
    }

    /// Fetches the artifact into an empty store. What each peer sent.
    async fn fetch(&self, keepers: &[&Keeper]) -> Vec<(PeerAddress, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
        let peers: Vec<PeerAddress> = keepers.iter().map(|k| k.url.parse().unwrap()).collect();
        let (blob, size) = (self.release.record.blob, Some(self.release.record.size));
        let options = FetchOptions::default();
        let fetched = fetch(&store, blob, size, &peers, &Dialer::new(), &options, &mut |_| ()).await.unwrap();
        fetched.report.peers.into_iter().map(|peer| (peer.address, peer.bytes)).collect()
    }

    async fn roll(&self) -> Roll {
        self.ledger.roll().await.unwrap()
    }

    /// Counts, signs and hands over. The codes of what failed.
    async fn settle(&self, fetched: &Fetched, sent: &[(PeerAddress, u64)]) -> Vec<&'static str> {
        let (roll, records) = (self.roll().await, Records::new());
        let failed = fetched.settle(&roll, &records, &self.release.record, sent).await.unwrap();
        failed.into_iter().map(|(_, e)| e.code()).collect()
    }

    /// The provider has fees of the model.
    async fn earn(&self) {
        let (node, ledger, at) = (&self.node, &self.ledger, &self.ledger.parts().at);
        let payer = node.member(ledger, "payer").await;
        ledger.deposit(&payer, Amount(u128::from(FEES))).await.unwrap();
        let config = Channels::ChannelConfig {
            payer: payer.account(),
            payerAuthorizer: Address::ZERO,
            receiver: self.provider.account(),
            receiverAuthorizer: Address::ZERO,
            token: at.token,
            withdrawDelay: alloy_primitives::aliases::U40::from(3_600),
            salt: chains::hash("lane"),
        };
        let amount = u128::from(FEES);
        let deposit = Channels::depositCall { config: config.clone(), amount };
        payer.send("channel", at.channels, &deposit).await.unwrap();
        let domain = voucher::domain(node.client.chain_id(), at.channels);
        let signed =
            voucher::sign(payer.key(), voucher::channel_id(&config, &domain), amount, &domain).unwrap();
        let claims = vec![voucher::claim(&config, amount, signed, amount)];
        self.provider.send("claim", at.channels, &Channels::claimCall { claims }).await.unwrap();
        let settle = Channels::settleCall { receiver: self.provider.account() };
        self.provider.send("settle", at.channels, &settle).await.unwrap();
    }

    /// Posts the fees as those of the epoch that runs, and has it settled and released. What hosts get of it.
    async fn release_epoch(&self) -> u64 {
        let (node, ledger, provider) = (&self.node, &self.ledger, self.provider.account());
        let (epochs, id) = (ledger.parts().at.epochs, self.listing());
        let epoch = ledger.epoch().await.unwrap();
        node.advance(3_600).await;
        let model = B256::from(*id.model.as_bytes());
        let share = Epochs::Share { modelRoot: model, listing: id.owner, total: FEES };
        let (root, tally) = (chains::hash("receipts"), chains::hash("tallies"));
        let post = Epochs::postCall {
            provider,
            epoch,
            root,
            tallyRoot: tally,
            first: 0,
            count: 1,
            shares: vec![share],
        };
        self.provider.send("post", epochs, &post).await.unwrap();
        node.advance(1_800).await;
        self.author.send("close", epochs, &Epochs::closeCall { epoch }).await.unwrap();
        node.mine(6).await;
        ledger.fix_beacon(&self.author, epoch).await.unwrap();
        node.advance(3 * 3_600 + 1).await;
        self.author.send("settle", epochs, &Epochs::settleCall { provider, epoch }).await.unwrap();
        let hosts = FEES * u64::from(ledger.parameters().split.hostsPpm) / 1_000_000;
        let leaf = Epochs::ShareLeaf { modelRoot: model, listing: id.owner, total: FEES, royalty: 0, hosts };
        let numbers = [FEES, 0, hosts].map(u64::to_be_bytes).concat();
        let hashed: Hash = merkle::leaf(&[model.as_slice(), id.owner.as_slice(), &numbers].concat());
        let proof = merkle::prove(&[hashed], 0).unwrap();
        let release = Epochs::releaseCall { provider, epoch, share: leaf, proof: (&proof).into() };
        self.author.send("release", epochs, &release).await.unwrap();
        hosts
    }

    async fn vault(&self, account: Address) -> u128 {
        self.ledger.holdings(account).await.unwrap().vault.0
    }
}

struct Keeper {
    host: Host,
    duties: Duties,
    url: String,
    server: Option<JoinHandle<()>>,
    folder: std::path::PathBuf,
}

impl Keeper {
    fn serve(&mut self, listener: TcpListener) {
        let router = self.host.router().merge(self.duties.routes());
        self.server = Some(tokio::spawn(async move {
            serve(listener, router, ServerOptions::default(), std::future::pending()).await;
        }));
    }

    async fn stop(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        let _ = server.await;
    }

    /// What `POST /v1/fetches` says: status and code.
    async fn post(&self, body: impl Into<Body>) -> (u16, String) {
        let request = Request::post("/v1/fetches").body(body.into()).unwrap();
        let answer = self.duties.routes().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        (status, said["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    fn pledge(&self, listing: ListingId) -> PledgeId {
        PledgeId { host: self.duties.address(), listing }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_providers_fees_follows_the_bytes_that_it_fetched() {
    let w = World::new().await;
    let (mut a, mut b) = (w.keeper("a").await, w.keeper("b").await);
    let fetched = w.fetched("provider").await;
    // Once from one, twice from the other, and once from both.
    for from in [vec![&a], vec![&b], vec![&b], vec![&a, &b]] {
        let sent = w.fetch(&from).await;
        assert_eq!(sent.iter().map(|(_, bytes)| bytes).sum::<u64>(), w.release.record.size);
        assert_eq!(w.settle(&fetched, &sent).await, <[&str; 0]>::default());
    }
    let size = w.release.record.size;
    let accounts = fetched.accounts().unwrap();
    let bytes = |of: &Keeper| {
        let account = accounts.iter().find(|account| account.pledge == of.pledge(w.listing())).unwrap();
        assert_eq!(account.handed, account.bytes);
        account.bytes
    };
    let (from_a, from_b) = (bytes(&a), bytes(&b));
    assert!(from_a >= size && from_b >= 2 * size && from_a + from_b == 4 * size, "{accounts:?}");

    // Hosts have it counted, once.
    for keeper in [&mut a, &mut b] {
        keeper.duties.round().await.unwrap();
        keeper.duties.round().await.unwrap();
    }
    for (keeper, bytes) in [(&a, from_a), (&b, from_b)] {
        let served = w.ledger.served(keeper.pledge(w.listing()), w.provider.account()).await.unwrap();
        assert_eq!((served.bytes, served.owed), (bytes, Amount(0)));
    }
    assert_eq!(w.roll().await.fetched().await.unwrap(), [(w.listing(), from_a + from_b)].into());

    w.earn().await;
    let hosts = w.release_epoch().await;
    let parts = u128::from(hosts * u64::from(w.ledger.parameters().split.fetchedPpm) / 1_000_000) << 56;
    let mut paid = 0;
    for (keeper, bytes) in [(&mut a, from_a), (&mut b, from_b)] {
        let owner = keeper.duties.address();
        let before = w.vault(owner).await;
        keeper.duties.round().await.unwrap();
        let got = w.vault(owner).await - before;
        assert_eq!(got, (parts / u128::from(from_a + from_b) * u128::from(bytes)) >> 56);
        assert!(got > 0);
        paid += got;
        keeper.duties.round().await.unwrap();
        assert_eq!(w.vault(owner).await - before, got, "paid once");
    }
    let all = parts >> 56;
    assert!(paid <= all && all - paid <= 2, "{paid} of {all}");
    // Demand is what was posted.
    let demand = w.ledger.demand(7).await.unwrap();
    let paid = &demand.paid[&w.listing().model];
    assert_eq!((paid.fees, paid.providers.clone()), (Amount(FEES.into()), [w.provider.account()].into()));
    assert_eq!(
        demand.a_day(&w.listing().model).unwrap().0,
        u128::from(FEES) * 86_400 / u128::from(demand.seconds)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_signing_and_handing_over_loses_nothing_and_signs_no_less() {
    let w = World::new().await;
    let mut a = w.keeper("a").await;
    let size = w.release.record.size;
    let sent = w.fetch(&[&a]).await;
    let at = a.url.trim_start_matches("http://").to_owned();
    // The host goes before the receipt is handed over, and then the downloader does.
    a.stop().await;
    let fetched = w.fetched("provider").await;
    assert_eq!(w.settle(&fetched, &sent).await, ["host_unreachable"]);
    drop(fetched);
    let fetched = w.fetched("provider").await;
    let pledge = a.pledge(w.listing());
    assert_eq!(fetched.accounts().unwrap(), [Account { pledge, bytes: size, handed: 0 }]);
    // Both are there again: it is handed over with the next pull, although that fetched nothing from this host.
    a.serve(TcpListener::bind(&at).await.unwrap());
    assert_eq!(w.settle(&fetched, &[]).await, <[&str; 0]>::default());
    assert_eq!(fetched.accounts().unwrap(), [Account { pledge, bytes: size, handed: size }]);

    // The host is killed after it answered and before the ledger has it.
    a.stop().await;
    let Keeper { host, duties, url, folder, .. } = a;
    drop(duties);
    let sender = w.node.sender(&w.node.actor("a").await).await;
    let duties = w.duties(&host, sender, &folder).await;
    let mut a = Keeper { host, duties, url, server: None, folder };
    a.duties.round().await.unwrap();
    let served = async || w.ledger.served(pledge, w.provider.account()).await.unwrap().bytes;
    assert_eq!(served().await, size);

    // The downloader's disk is lost: what it signs from now on is beyond what was counted.
    a.serve(TcpListener::bind(&at).await.unwrap());
    let other = w.fetched("new disk").await;
    let sent = w.fetch(&[&a]).await;
    assert_eq!(w.settle(&other, &sent).await, <[&str; 0]>::default());
    assert_eq!(other.accounts().unwrap(), [Account { pledge, bytes: 2 * size, handed: 2 * size }]);
    a.duties.round().await.unwrap();
    assert_eq!(served().await, 2 * size);
    // Counting at the same time, no byte is lost.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| assert!(other.count(pledge, 0, 10).is_ok())));
        }
    });
    assert_eq!(other.accounts().unwrap()[0].bytes, 2 * size + 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_that_nobody_should_take_are_refused_with_their_reason() {
    let w = World::new().await;
    let a = w.keeper("a").await;
    let domain = w.ledger.retrieval_domain();
    let key = w.provider.key();
    let pledge = a.pledge(w.listing());
    let json = |receipt: &FetchReceipt| serde_json::to_string(receipt).unwrap();
    let signed = |pledge, bytes| FetchReceipt::by(key, pledge, bytes, &domain).unwrap();
    let right = signed(pledge, 5_000);
    let refused = async |body: String, status: u16, code: &str| {
        assert_eq!(a.post(body).await, (status, code.to_owned()));
    };
    refused(json(&FetchReceipt { bytes: 5_001, ..right.clone() }), 400, "fetch_wrong_signer").await;
    let elsewhere = assay_ledger::retrieval::domain(31_337, Address::repeat_byte(1));
    let foreign = FetchReceipt::by(key, pledge, 5_000, &elsewhere).unwrap();
    refused(json(&foreign), 400, "fetch_wrong_signer").await;
    let other_host = PledgeId { host: Address::repeat_byte(7), ..pledge };
    refused(json(&signed(other_host, 5_000)), 400, "fetch_other_host").await;
    let other_model = ListingId { model: ModelRoot::from_bytes([1; 32]), ..w.listing() };
    refused(json(&signed(a.pledge(other_model), 5_000)), 404, "fetch_not_pledged").await;
    let stranger = w.node.actor("stranger").await;
    let strange = FetchReceipt::by(&stranger, pledge, 5_000, &domain).unwrap();
    refused(json(&strange), 403, "fetch_downloader_unknown").await;
    refused(json(&right).replace("5000", &u64::MAX.to_string()), 400, "fetch_too_many_bytes").await;
    refused("{}".into(), 400, "fetch_malformed").await;
    refused(json(&right).replace("\"bytes\"", "\"more\":1,\"bytes\""), 400, "fetch_malformed").await;
    refused(" ".repeat(RECEIPT_JSON_BYTES_MAX + 1), 413, "fetch_too_long").await;
    // Nothing of it was kept.
    assert_eq!(a.post(json(&right)).await, (201, String::new()));
    assert_eq!(a.post(json(&right)).await, (200, String::new()));
    refused(json(&signed(pledge, 4_999)), 409, "fetch_stale").await;
    assert_eq!(a.post(json(&signed(pledge, 6_000))).await, (201, String::new()));
    let mut a = a;
    a.duties.round().await.unwrap();
    assert_eq!(w.ledger.served(pledge, w.provider.account()).await.unwrap().bytes, 6_000);
    // Who is no provider signs for nothing.
    let nobody = Fetched::open(w.ledger.clone(), stranger, &w.folder.path().join("stranger")).await.unwrap();
    assert!(nobody.is_none() && !w.folder.path().join("stranger").exists());
}
