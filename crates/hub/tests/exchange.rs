//! Records between hosts: what is told, what is taken, and what is not believed.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, RwLock};

use alloy_primitives::keccak256;
use alloy_signer_local::PrivateKeySigner;
use assay_core::id::{Hash, ModelRoot, NodeAddress};
use assay_hub::blob::BlobHash;
use assay_hub::catalogue::Catalogue;
use assay_hub::exchange::{Admission, Exchange, ExchangeError, INDEX_PAGE, Records, routes};
use assay_hub::keeping::release_tag;
use assay_hub::release::{LabelRecord, Release, Signed};
use assay_hub::store::{Quota, Store};
use axum::Router;
use axum::routing::get;

fn key(name: &str) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(name)).unwrap()
}

fn address(key: &PrivateKeySigner) -> NodeAddress {
    NodeAddress::from_bytes(key.address().into_array())
}

fn release(by: &PrivateKeySigner, version: &str, blob: BlobHash) -> Signed<Release> {
    let record = Release {
        publisher: address(by),
        name: "stories".parse().unwrap(),
        version: version.parse().unwrap(),
        root: ModelRoot::from_bytes([7; 32]),
        blob,
        size: 5,
        content_root: Hash::ZERO,
        profile: "int8-v1".into(),
        parameters: 5,
        context: 256,
        licence: "MIT".into(),
        royalty_ppm: 0,
        copies: 1,
        card: String::new(),
        sources: vec![],
        published_at: 0,
    };
    Signed::by(by, record).unwrap()
}

fn records() -> Records {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Records::new()
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

struct Host {
    exchange: Arc<Exchange>,
    url: String,
    _folder: tempfile::TempDir,
}

async fn host(admission: Admission) -> Host {
    let folder = tempfile::tempdir().unwrap();
    let exchange = Arc::new(Exchange {
        catalogue: Arc::new(Catalogue::open(&folder.path().join("records")).unwrap()),
        store: Store::open(&folder.path().join("store"), Quota::bytes(1 << 20)).unwrap(),
        address: address(&key("host")),
        admission: RwLock::new(admission),
        leaving: RwLock::default(),
        endpoints: RwLock::default(),
    });
    let url = serve(routes(Arc::clone(&exchange))).await;
    Host { exchange, url, _folder: folder }
}

#[tokio::test]
async fn releases_and_labels_go_from_host_to_host() {
    let (first, second) = (host(Admission::Anyone).await, host(Admission::Anyone).await);
    let (author, records) = (key("author"), records());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"bytes").unwrap();
    let blob = first.exchange.store.add_file(file.path(), &mut |_, _| ()).unwrap().hash();
    let signed = release(&author, "1.0.0", blob);
    first.exchange.store.tag(&release_tag(&signed.record), blob).unwrap();
    let label = LabelRecord {
        publisher: address(&author),
        name: "stories".parse().unwrap(),
        label: "latest".parse().unwrap(),
        version: "1.0.0".parse().unwrap(),
        sequence: 1,
    };
    let label = Signed::by(&author, label).unwrap();
    // A label of what nobody has heard of is not taken.
    assert!(matches!(
        records.tell_label(&first.url, &label).await,
        Err(ExchangeError::Refused { status: 404, .. })
    ));
    for _ in 0..2 {
        records.tell(&first.url, &signed).await.unwrap();
        records.tell_label(&first.url, &label).await.unwrap();
    }
    let index = records.index(&first.url).await.unwrap();
    assert_eq!((index.len(), index[0].id, index[0].kept), (1, signed.id(), true));
    let card = records.card(&first.url).await.unwrap();
    assert_eq!((card.address, card.keeps), (address(&key("host")), vec![signed.id()]));
    assert!(card.bytes_free < card.bytes_total && card.bytes_total == 1 << 20);
    assert!(card.leaves.is_empty());
    first.exchange.leaving.write().unwrap().insert(blob);
    assert_eq!(records.card(&first.url).await.unwrap().leaves, vec![signed.id()]);
    // The second host learns it from the first.
    let learnt = records.release(&first.url, index[0].id).await.unwrap();
    records.tell(&second.url, &learnt).await.unwrap();
    for label in records.labels(&first.url).await.unwrap() {
        records.tell_label(&second.url, &label).await.unwrap();
    }
    let resolved = second.exchange.catalogue.resolve(&"stories".parse().unwrap()).unwrap();
    assert_eq!(resolved, signed);
    assert!(!records.index(&second.url).await.unwrap()[0].kept);
    // The same version cannot become another artifact.
    let other = release(&author, "1.0.0", BlobHash::of(b"other"));
    let refused = records.tell(&second.url, &other).await.unwrap_err();
    assert!(matches!(&refused, ExchangeError::Refused { status: 409, .. }), "{refused}");
}

#[tokio::test]
async fn a_host_takes_whom_it_admits_and_believes_signatures_only() {
    let (author, stranger, records) = (key("author"), key("stranger"), records());
    let host = host(Admission::Publishers([address(&author)].into())).await;
    let blob = BlobHash::of(b"bytes");
    let refused = records.tell(&host.url, &release(&stranger, "1", blob)).await.unwrap_err();
    assert!(matches!(refused, ExchangeError::Refused { status: 403, .. }), "{refused}");
    let mut forged = release(&author, "1", blob);
    forged.record.size += 1;
    let refused = records.tell(&host.url, &forged).await.unwrap_err();
    assert!(matches!(refused, ExchangeError::Refused { status: 400, .. }), "{refused}");
    records.tell(&host.url, &release(&author, "1", blob)).await.unwrap();
    assert_eq!(host.exchange.catalogue.releases().len(), 1);
}

#[tokio::test]
async fn long_indexes_come_in_pages() {
    let (author, records) = (key("author"), records());
    let host = host(Admission::Anyone).await;
    for i in 0..=INDEX_PAGE {
        host.exchange.catalogue.add(release(&author, &format!("1.{i}"), BlobHash::of(b"bytes"))).unwrap();
    }
    assert_eq!(records.index(&host.url).await.unwrap().len(), INDEX_PAGE + 1);
}

#[tokio::test]
async fn what_a_lying_host_says_is_not_believed() {
    let (author, records) = (key("author"), records());
    let (asked, told) =
        (release(&author, "1", BlobHash::of(b"a")), release(&author, "2", BlobHash::of(b"b")));
    let endless = || async {
        let parts = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 64 << 10]));
        axum::body::Body::from_stream(parts)
    };
    let moved = || async { axum::response::Redirect::temporary("http://127.0.0.1:1/elsewhere") };
    let router = Router::new()
        .route("/v1/releases/{id}", get(move || async move { axum::Json(told) }))
        .route("/v1/host", get(endless))
        .route("/v1/labels", get(moved));
    let url = serve(router).await;
    assert_eq!(records.release(&url, asked.id()).await.unwrap_err().code(), "host_malformed");
    assert_eq!(records.card(&url).await.unwrap_err().code(), "host_malformed");
    assert_eq!(records.labels(&url).await.unwrap_err().code(), "host_malformed");
    assert_eq!(records.index("http://127.0.0.1:1").await.unwrap_err().code(), "host_unreachable");
}
