//! Fetches over real sockets on loopback, from honest hosts and from others.

mod faults;
mod full;
mod hosts;
mod limits;
mod partial;
mod tls;
mod wire;

use std::sync::Arc;

use assay_hub::blob::{BlobHash, TILE_BYTES};
use assay_hub::fetch::{FetchError, FetchOptions, Fetched, fetch};
use assay_hub::peer::{Dialer, PeerAddress, Relays, endpoint};
use assay_hub::rate::Rate;
use assay_hub::server::{ServerOptions, router, serve_iroh};
use assay_hub::store::{Quota, Store};

use iroh::SecretKey;

use hosts::{Lie, content, host, liar, store_with};

async fn get(into: &Store, hash: BlobHash, peers: &[PeerAddress]) -> Result<Fetched, FetchError> {
    fetch(into, hash, None, peers, &Dialer::new(), &FetchOptions::default(), &mut |_| {}).await
}

fn fresh() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path(), Quota::UNLIMITED).expect("a store");
    (folder, store)
}

fn assert_whole(fetched: &Fetched, expected: &[u8]) {
    let mut bytes = vec![0; fetched.blob.size() as usize];
    fetched.blob.read_at(0, &mut bytes).expect("it reads");
    assert!(bytes == expected, "the store has other bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_every_shape_come_from_two_hosts() {
    for size in [0, 1, TILE_BYTES, TILE_BYTES + 1, 100 * TILE_BYTES + 7, 700 * TILE_BYTES] {
        let bytes = content(size);
        let (_a, one, hash) = store_with(&bytes);
        let (_b, two, _) = store_with(&bytes);
        let peers = [host(one, ServerOptions::default()).await, host(two, ServerOptions::default()).await];
        let (_c, into) = fresh();
        let fetched = get(&into, hash, &peers).await.expect("it comes");
        assert_whole(&fetched, &bytes);
        let sum: u64 = fetched.report.peers.iter().map(|p| p.bytes).sum();
        assert_eq!(sum, size, "every byte was counted once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liars_are_dropped_by_name_and_the_blob_comes_all_the_same() {
    let bytes = content(600 * TILE_BYTES + 99);
    let (_a, honest, hash) = store_with(&bytes);
    for (lie, codes) in [
        (Lie::Corrupt, &["wrong_tile"][..]),
        (Lie::Redirect, &["redirected"]),
        (Lie::Gzip, &["encoded"]),
        (Lie::Chunked, &["bad_answer"]),
        (Lie::OtherRange, &["wrong_range"]),
        (Lie::IgnoreRange, &["wrong_range"]),
        (Lie::Size, &["wrong_size", "wrong_outboard"]),
        (Lie::Outboard, &["wrong_outboard"]),
        (Lie::EndlessHead, &["bad_answer"]),
        (Lie::Close, &["broken", "unreachable"]),
    ] {
        // Alone, a liar gives nothing and is named with its reason.
        let bad = liar(lie, bytes.clone()).await;
        let (_c, into) = fresh();
        match get(&into, hash, std::slice::from_ref(&bad)).await {
            Err(FetchError::NoPeerLeft { peers, .. }) => {
                let code = peers[0].fault.as_ref().map(|fault| fault.code());
                assert!(code.is_some_and(|code| codes.contains(&code)), "{lie:?}: {code:?}");
            }
            other => panic!("{lie:?}: {other:?}"),
        }
        // Beside an honest host it does no harm; the same store resumes.
        let good = host(honest.clone(), ServerOptions::default()).await;
        let fetched = get(&into, hash, &[bad, good]).await.unwrap_or_else(|e| panic!("{lie:?}: {e}"));
        assert_whole(&fetched, &bytes);
        assert!(!fetched.report.peers[1].dropped, "{lie:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_dropped_resumes() {
    let bytes = content(1024 * TILE_BYTES);
    let (_a, one, hash) = store_with(&bytes);
    let slow = ServerOptions { rate: Rate::bytes_per_second(4 << 20), ..ServerOptions::default() };
    let peers = [host(one.clone(), slow).await];
    let (_c, into) = fresh();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    {
        let (dialer, options) = (Dialer::new(), FetchOptions::default());
        let mut progress = |p: assay_hub::fetch::Progress| {
            let _ = told.send(p.verified);
        };
        tokio::select! {
            done = fetch(&into, hash, None, &peers, &dialer, &options, &mut progress) => panic!("too early: {done:?}"),
            _ = async { while heard.recv().await.is_some_and(|there| there < 20 * TILE_BYTES) {} } => {}
        }
    }
    let fetched = get(&into, hash, &[host(one, ServerOptions::default()).await]).await.expect("it resumes");
    assert!(fetched.report.resumed_tiles >= 20, "{:?}", fetched.report);
    assert_whole(&fetched, &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_and_iroh_give_one_blob_together() {
    let bytes = content(900 * TILE_BYTES);
    let (_a, one, hash) = store_with(&bytes);
    let endpoint = || async {
        let bound = endpoint(SecretKey::generate(), ([127, 0, 0, 1], 0).into(), Relays::None).await;
        bound.expect("an endpoint")
    };
    let (serving, asking) = (endpoint().await, endpoint().await);
    let at = PeerAddress::iroh(serving.id(), serving.bound_sockets());
    let options = ServerOptions::default();
    tokio::spawn(serve_iroh(serving, router(one.clone(), &options), options, std::future::pending()));
    let dialer = Dialer::new().with_iroh(asking);
    let alone = Arc::new(at.clone());
    let (_c, into) = fresh();
    let options = FetchOptions::default();
    let by_iroh = fetch(&into, hash, None, &[(*alone).clone()], &dialer, &options, &mut |_| {}).await;
    assert_whole(&by_iroh.expect("iroh alone"), &bytes);
    let (_d, into) = fresh();
    let peers = [at, host(one, ServerOptions::default()).await];
    let both = fetch(&into, hash, None, &peers, &dialer, &options, &mut |_| {}).await.expect("both");
    assert_whole(&both, &bytes);
    assert!(both.report.peers.iter().all(|peer| peer.fault.is_none()), "{:?}", both.report);
}
