//! Hosts with a ledger: what is kept is pledged, beacons' questions are answered from the bytes, and a host that lost them is found out by
//! the others.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;

use std::sync::{Arc, Mutex};

use alloy_primitives::B256;
use assay_core::id::{ModelRoot, NodeAddress};
use assay_core::merkle;
use assay_hub::blob::{BlobHash, CHUNK_BYTES};
use assay_hub::exchange::Admission;
use assay_hub::fetch::FetchOptions;
use assay_hub::inbox::{Inbox, Parcel};
use assay_hub::release::{Release, Signed};
use assay_hub::replication::{HostId, Times};
use assay_hub::server::ServerOptions;
use assay_hub::store::Quota;
use assay_ledger::amount::Amount;
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::retrieval::{Content, ListingId, PledgeId, Question};
use assay_ledger::sender::Sender;
use assay_node::host::duties::{Duties, DutyOptions};
use assay_node::host::{Event, Host, HostOptions};
use chains::{DOLLAR, Node, parameters};

fn content() -> Vec<u8> {
    (0..40_000u32).flat_map(|i| i.to_le_bytes()).collect()
}

struct Keeper {
    host: Host,
    duties: Duties,
    events: Arc<Mutex<Vec<Event>>>,
    folder: tempfile::TempDir,
}

/// A host with stake for one pledge, that keeps the release.
async fn keeper(node: &Node, ledger: &Ledger, name: &str, release: &Signed<Release>) -> Keeper {
    let sender: Sender = node.member(ledger, name).await;
    let (key, amount) = (sender.key().clone(), Amount(u128::from(60 * DOLLAR)));
    ledger
        .enrol(&sender, &key, Role::Host as u8, format!("http://{name}.example"), B256::ZERO)
        .await
        .unwrap();
    ledger.deposit(&sender, amount).await.unwrap();
    ledger.stake(&sender, key.address(), amount).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let artifact = folder.path().join("artifact");
    std::fs::write(&artifact, content()).unwrap();
    let parcel = Parcel { release: release.clone(), label: None, artifact, cut: None };
    Inbox::at(&folder.path().join("inbox")).leave(&parcel).unwrap();
    let options = HostOptions {
        folder: folder.path().to_owned(),
        quota: Quota::bytes(8 << 20),
        peers: vec![],
        admission: Admission::Anyone,
        server: ServerOptions::default(),
        fetch: FetchOptions::default(),
        times: Times::DEFAULT,
        endpoint: None,
    };
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let address = NodeAddress::from_bytes(key.address().into_array());
    let mut host = Host::open(address, options, Arc::new(move |e| heard.lock().unwrap().push(e))).unwrap();
    host.round(1).await;
    let options = DutyOptions { collect_min: Amount(1), ..DutyOptions::at(folder.path().join("ledger")) };
    let duties = Duties::open(ledger.clone(), sender, address, &host, options).await.unwrap();
    Keeper { host, duties, events, folder }
}

impl Keeper {
    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|e| wanted(e)).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_lost_the_bytes_is_found_out_and_one_that_has_them_answers() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let node = Node::embedded().await;
    let mut p = parameters();
    p.rates.retrievalPpm = 1_000_000;
    let ledger = node.deploy(p).await;
    let author = node.member(&ledger, "author").await;
    let bytes = content();
    let record = Release {
        publisher: NodeAddress::from_bytes(author.account().into_array()),
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
    let listing = ListingId { model: release.record.root, owner: author.account() };

    let mut honest = keeper(&node, &ledger, "honest", &release).await;
    let mut careless = keeper(&node, &ledger, "careless", &release).await;
    for keeper in [&mut honest, &mut careless] {
        keeper.duties.round().await.unwrap();
        keeper.duties.round().await.unwrap();
        assert_eq!(keeper.count(|e| matches!(e, Event::Pledged { .. })), 1, "{:?}", keeper.events);
    }
    assert_eq!(honest.duties.hosts().await.unwrap(), ["http://careless.example"]);
    node.draw(&ledger, &author).await;
    // The careless one's disk loses what it promised to keep, but for the names.
    let data = careless.folder.path().join("store/data").join(format!("{}.blob", release.record.blob));
    std::fs::write(&data, vec![0; bytes.len()]).unwrap();
    let epoch = node.draw(&ledger, &author).await;
    for keeper in [&mut honest, &mut careless] {
        keeper.duties.round().await.unwrap();
        keeper.duties.round().await.unwrap();
    }
    let answered = |e: &Event| matches!(e, Event::Answered { epoch: of, .. } if *of == epoch);
    assert_eq!((honest.count(answered), careless.count(answered)), (1, 0));
    let damaged = |e: &Event| matches!(e, Event::Failed { code: "blob_damaged", .. });
    assert!(careless.count(damaged) > 0, "{:?}", careless.events);
    let pledge = |of: &Keeper| PledgeId { host: of.duties.address(), listing };
    let Question::Asked { until, .. } = ledger.question(pledge(&careless), epoch).await.unwrap() else {
        panic!("the careless one has not answered")
    };
    // When its time is over, the honest host shows it, and is paid for that.
    node.advance(until - node.now().await + 1).await;
    honest.duties.round().await.unwrap();
    assert_eq!(honest.count(|e| matches!(e, Event::Shown { .. })), 1, "{:?}", honest.events);
    // Whoever plans from now on knows who failed.
    assert!(honest.duties.failures().is_empty(), "it was shown after the log was read");
    honest.duties.round().await.unwrap();
    let failed = HostId(careless.duties.address().into_array());
    assert_eq!(honest.duties.failures(), [(failed, [release.record.blob].into())].into());
    assert_eq!(ledger.pledge_of(pledge(&careless)).await.unwrap(), None);
    assert!(ledger.pledge_of(pledge(&honest)).await.unwrap().is_some());
    let lost = ledger.node(pledge(&careless).host).await.unwrap().unwrap().stake;
    assert_eq!(u128::from(60 * DOLLAR) - lost, u128::from(ledger.parameters().stakes.pledgeStake));
    assert!(honest.host.store().blob(release.record.blob).unwrap().is_some());
}
