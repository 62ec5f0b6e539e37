//! Hosts that die, are slow, are silent or are busy.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use assay_hub::blob::{BlobHash, TILE_BYTES};
use assay_hub::fetch::{FetchError, FetchOptions, Fetched, PeerReport, Progress, fetch};
use assay_hub::outboard::{Make, hash_bytes};
use assay_hub::peer::{Dialer, PeerAddress};
use assay_hub::rate::Rate;
use assay_hub::server::ServerOptions;
use assay_hub::store::Store;

use super::hosts::{After, content, host, mortal, scripted, store_with};
use super::{assert_whole, fresh, get};

fn at(bytes_per_second: u64) -> ServerOptions {
    ServerOptions { rate: Rate::bytes_per_second(bytes_per_second), ..ServerOptions::default() }
}

async fn impatient(into: &Store, hash: BlobHash, peers: &[PeerAddress]) -> Result<Fetched, FetchError> {
    let short = Duration::from_millis(100);
    let options = FetchOptions { head_timeout: short, stall_timeout: short, ..FetchOptions::default() };
    fetch(into, hash, None, peers, &Dialer::new(), &options, &mut |_| {}).await
}

fn codes(peers: &[PeerReport]) -> Vec<&'static str> {
    peers.iter().map(|peer| peer.fault.as_ref().map_or("", |fault| fault.code())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_dies_half_way_leaves_the_rest_to_another() {
    let bytes = content(1024 * TILE_BYTES);
    let (_a, store, hash) = store_with(&bytes);
    let (dying, task) = mortal(store.clone(), at(8 << 20)).await;
    let other = host(store, at(8 << 20)).await;
    let (_c, into) = fresh();
    let mut progress = |it: Progress| {
        if it.verified > it.size / 4 {
            task.abort();
        }
    };
    let (peers, options) = ([dying, other], FetchOptions::default());
    let fetched = fetch(&into, hash, None, &peers, &Dialer::new(), &options, &mut progress).await;
    let fetched = fetched.expect("the other has it too");
    assert_whole(&fetched, &bytes);
    let report = &fetched.report.peers;
    assert!(["broken", "unreachable"].contains(&codes(report)[0]), "{report:?}");
    assert_eq!(report.iter().map(|peer| peer.bytes).sum::<u64>(), bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_gave_before_it_died_is_kept() {
    let bytes = content(1024 * TILE_BYTES);
    let (_a, store, hash) = store_with(&bytes);
    let (dying, task) = mortal(store.clone(), at(8 << 20)).await;
    let (_c, into) = fresh();
    let mut there = 0;
    let mut progress = |it: Progress| {
        there = it.verified;
        if it.verified > it.size / 2 {
            task.abort();
        }
    };
    let (peers, options) = ([dying], FetchOptions::default());
    let failed = fetch(&into, hash, None, &peers, &Dialer::new(), &options, &mut progress).await;
    let Err(FetchError::NoPeerLeft { peers, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(codes(&peers), ["unreachable"]);
    let fetched = get(&into, hash, &[host(store, ServerOptions::default()).await]).await.expect("it resumes");
    assert_eq!(fetched.report.resumed_tiles, there / TILE_BYTES);
    assert_whole(&fetched, &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_crawls_is_not_waited_for() {
    let bytes = content(900 * TILE_BYTES + 3);
    let (_a, store, hash) = store_with(&bytes);
    // A byte a second: it is never silent, and would give its first tile after hours.
    let peers = [host(store.clone(), at(1)).await, host(store, ServerOptions::default()).await];
    let (_c, into) = fresh();
    let fetched = get(&into, hash, &peers).await.expect("the other gives everything");
    assert_whole(&fetched, &bytes);
    assert_eq!(fetched.report.peers[0].bytes, 0);
    assert!(!fetched.report.peers[0].dropped, "slow is no crime: {:?}", fetched.report);
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Answers as a host would until a range is asked for.
fn until_ranges(bytes: &[u8], head: &str) -> Option<Vec<u8>> {
    if head.contains("/have ") {
        let body = format!("{{\"size\":{},\"whole\":true}}", bytes.len());
        return Some(answer("200 OK", "", body.as_bytes()));
    }
    let outboard = || hash_bytes(bytes, Make::Outboard).outboard.to_vec();
    if head.contains("/outboard ") {
        return Some(answer("200 OK", "", &outboard()));
    }
    let last = (bytes.len() as u64 - 1) / TILE_BYTES * TILE_BYTES;
    let range = format!("{last}-{}", bytes.len() - 1);
    head.contains(&format!("bytes={range}")).then(|| {
        let range = format!("Content-Range: bytes {range}/{}\r\n", bytes.len());
        answer("206 Partial Content", &range, &bytes[last as usize..])
    })
}

fn range_of(head: &str) -> (usize, usize) {
    let range = head.lines().find_map(|line| line.strip_prefix("Range: bytes=")).expect("a range");
    let (from, to) = range.trim().split_once('-').expect("a range");
    (from.parse().expect("a number"), to.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_a_connection() {
    let cases = [
        ("no head of have", "broken"),
        ("no body of have", "stalled"),
        ("no head of a range", "broken"),
        ("half a tile of a range", "stalled"),
        ("no outboard", "stalled"),
    ];
    // Together, since each waits between its tries.
    futures_util::future::join_all(cases.map(|(case, code)| silence(case, code))).await;
}

async fn silence(case: &'static str, code: &str) {
    let bytes = content(300 * TILE_BYTES);
    let (_a, honest, hash) = store_with(&bytes);
    let served = bytes.clone();
    let silent = scripted(After::Silence, move |head| match case {
        "no head of have" => Vec::new(),
        "no body of have" => b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{".to_vec(),
        "no outboard" if head.contains("/outboard ") => {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 299 * 64).into_bytes()
        }
        _ => until_ranges(&served, head).unwrap_or_else(|| {
            if case == "no head of a range" {
                return Vec::new();
            }
            let (from, to) = range_of(head);
            let range = format!("Content-Range: bytes {from}-{to}/{}\r\n", served.len());
            let mut all = answer("206 Partial Content", &range, &served[from..=to]);
            all.truncate(all.len() - (to - from) + TILE_BYTES as usize / 2);
            all
        }),
    })
    .await;
    let (_c, into) = fresh();
    match impatient(&into, hash, std::slice::from_ref(&silent)).await {
        Err(FetchError::NoPeerLeft { peers, .. }) => assert_eq!(codes(&peers), [code], "{case}"),
        other => panic!("{case}: {other:?}"),
    }
    let good = host(honest.clone(), ServerOptions::default()).await;
    let fetched = impatient(&into, hash, &[silent, good]).await.unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_whole(&fetched, &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_end_are_not_read() {
    let bytes = content(300 * TILE_BYTES);
    let (_a, _, hash) = store_with(&bytes);
    for (case, code) in [("have", "bad_answer"), ("outboard", "bad_answer"), ("range", "wrong_range")] {
        let served = bytes.clone();
        let endless = scripted(After::Silence, move |head| {
            let endless = |headers: &str| {
                format!("HTTP/1.1 206 OK\r\n{headers}Content-Length: {}\r\n\r\n", u64::MAX).into_bytes()
            };
            if head.contains(&format!("/{case} ")) {
                return endless("");
            }
            until_ranges(&served, head).unwrap_or_else(|| {
                let (from, to) = range_of(head);
                endless(&format!("Content-Range: bytes {from}-{to}/{}\r\n", served.len()))
            })
        })
        .await;
        let (_c, into) = fresh();
        match get(&into, hash, &[endless]).await {
            Err(FetchError::NoPeerLeft { peers, .. }) => assert_eq!(codes(&peers), [code], "{case}"),
            other => panic!("{case}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_fail_at_first_are_asked_again() {
    let bytes = content(40 * TILE_BYTES);
    let hash = BlobHash::of(&bytes);
    for first in ["503 Service Unavailable", "429 Too Many Requests", "500 Internal Server Error", ""] {
        let (asked, served) = (AtomicUsize::new(0), bytes.clone());
        // The first three answers fail, whatever was asked for.
        let moody = scripted(After::End, move |head| {
            if asked.fetch_add(1, Ordering::SeqCst) < 3 {
                return if first.is_empty() { Vec::new() } else { answer(first, "Retry-After: 0\r\n", b"") };
            }
            until_ranges(&served, head).unwrap_or_else(|| {
                let (from, to) = range_of(head);
                let range = format!("Content-Range: bytes {from}-{to}/{}\r\n", served.len());
                answer("206 Partial Content", &range, &served[from..=to])
            })
        })
        .await;
        let (_c, into) = fresh();
        let fetched = get(&into, hash, &[moody]).await.unwrap_or_else(|e| panic!("{first}: {e}"));
        assert_whole(&fetched, &bytes);
        assert!(fetched.report.peers[0].retries >= 3, "{first}: {:?}", fetched.report);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lie_about_the_last_bytes_costs_nobody_else() {
    // The outboard of a blob is the same for all lengths of its last tile.
    let bytes = content(40 * TILE_BYTES + 9);
    let (_a, honest, hash) = store_with(&bytes);
    let served = [&bytes[..], &[0; 5]].concat();
    let outboard = hash_bytes(&bytes, Make::Outboard).outboard.to_vec();
    let liar = scripted(After::End, move |head| {
        if head.contains("/outboard ") {
            return answer("200 OK", "", &outboard);
        }
        until_ranges(&served, head).unwrap_or_else(|| answer("404 Not Found", "", b""))
    })
    .await;
    let (_c, into) = fresh();
    match get(&into, hash, std::slice::from_ref(&liar)).await {
        Err(FetchError::NoPeerLeft { peers, .. }) => assert_eq!(codes(&peers), ["wrong_tile"]),
        other => panic!("{other:?}"),
    }
    let good = host(honest, ServerOptions::default()).await;
    let fetched = get(&into, hash, &[liar, good]).await.expect("the honest one is believed");
    assert_whole(&fetched, &bytes);
    assert!(fetched.report.peers[0].dropped && !fetched.report.peers[1].dropped);
}
