//! Hosts that do not have everything yet, and clients that have a part already.

use std::time::Duration;

use assay_hub::blob::TILE_BYTES;
use assay_hub::fetch::{FetchOptions, Progress, fetch};
use assay_hub::outboard::{Make, hash_bytes};
use assay_hub::peer::Dialer;
use assay_hub::server::ServerOptions;
use assay_hub::store::Arrival;

use super::hosts::{ask, content, host, store_with};
use super::{assert_whole, fresh, get};

fn tiles_of(bytes: &[u8], tiles: std::ops::Range<u64>) -> &[u8] {
    let end = (tiles.end * TILE_BYTES).min(bytes.len() as u64);
    &bytes[(tiles.start * TILE_BYTES) as usize..end as usize]
}

/// A store in which these tiles of a blob have arrived.
pub(crate) fn arriving(
    bytes: &[u8],
    tiles: std::ops::Range<u64>,
) -> (tempfile::TempDir, assay_hub::store::Store, Arrival) {
    let (folder, store) = fresh();
    let made = hash_bytes(bytes, Make::Outboard);
    let mut arrival = store.arrive(made.hash, bytes.len() as u64).expect("it begins");
    arrival.set_outboard(&made.outboard).expect("it is right");
    arrival.write(tiles.start, tiles_of(bytes, tiles)).expect("they are written");
    (folder, store, arrival)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_halves_make_a_whole() {
    let bytes = content(500 * TILE_BYTES + 11);
    let (_a, one, _first) = arriving(&bytes, 0..200);
    let (_b, two, last) = arriving(&bytes, 150..501);
    let one = host(one, ServerOptions::default()).await;
    let two = host(two, ServerOptions::default()).await;
    let have = format!("GET /v1/blobs/{}/have HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", last.hash());
    let (head, body) = ask(&one, &have).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let got: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(got, serde_json::json!({"size": bytes.len(), "whole": false, "tiles": [[0, 200]]}));
    let (_c, into) = fresh();
    let fetched = get(&into, last.hash(), &[one, two]).await.expect("together they have it");
    assert_whole(&fetched, &bytes);
    assert!(
        fetched.report.peers[0].tiles >= 150 && fetched.report.peers[1].tiles >= 301,
        "{:?}",
        fetched.report
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_is_served_on() {
    let bytes = content(300 * TILE_BYTES);
    let (_a, store, arrival) = arriving(&bytes, 0..100);
    let peers = [host(store, ServerOptions::default()).await];
    let (_c, into) = fresh();
    let (told, heard) = std::sync::mpsc::channel();
    let (hash, rest) = (arrival.hash(), tiles_of(&bytes, 100..300).to_vec());
    let writing = std::thread::spawn(move || {
        // The rest arrives only once the first part has been passed on.
        while heard.recv().expect("the fetch runs") < 100 * TILE_BYTES {}
        arrival.write(100, &rest).expect("they are written");
        arrival.finish().expect("it is whole")
    });
    let size = bytes.len() as u64;
    let mut progress = |it: Progress| told.send(it.verified).unwrap_or_default();
    let options = FetchOptions { have_again: Duration::from_millis(5), ..FetchOptions::default() };
    let fetched = fetch(&into, hash, Some(size), &peers, &Dialer::new(), &options, &mut progress).await;
    assert_whole(&fetched.expect("it comes"), &bytes);
    writing.join().expect("it was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_version_comes_as_what_differs() {
    let old = content(400 * TILE_BYTES + 5);
    let mut new = old.clone();
    for tile in [0, 17, 18, 300] {
        new[(tile * TILE_BYTES) as usize + 99] ^= 1;
    }
    let (_a, there, hash) = store_with(&new);
    let (_b, into, before) = store_with(&old);
    into.index(before).expect("its list is made");
    let peers = [host(there.clone(), ServerOptions::default()).await];
    there.index(hash).expect("its list is made");
    let fetched = get(&into, hash, &peers).await.expect("it comes");
    assert_whole(&fetched, &new);
    assert_eq!((fetched.report.local_tiles, fetched.report.peers[0].tiles), (397, 4));
    // One that lacks the list gives all of it.
    let (_c, into, before) = store_with(&old);
    into.index(before).expect("its list is made");
    let (_d, there, arrival) = arriving(&new, 0..401);
    arrival.finish().expect("it is whole");
    let peers = [host(there, ServerOptions::default()).await];
    let fetched = get(&into, hash, &peers).await.expect("it comes");
    assert_whole(&fetched, &new);
    assert_eq!((fetched.report.local_tiles, fetched.report.peers[0].tiles), (0, 401));
}
