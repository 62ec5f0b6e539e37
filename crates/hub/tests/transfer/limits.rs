//! Limits of hosts and of fetches, at the limit and one past it.

use std::time::Duration;

use assay_hub::blob::{BlobHash, TILE_BYTES};
use assay_hub::fetch::{FetchError, FetchOptions, fetch};
use assay_hub::limits::{HAVE_RUNS_MAX, HEADERS_MAX, JSON_BYTES_MAX, PEERS_MAX};
use assay_hub::peer::{Dialer, PeerAddress};
use assay_hub::server::ServerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::hosts::{After, ask, connect, content, head_of, host, scripted, store_with};
use super::{assert_whole, fresh, get};

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

/// More than sockets hold, so that who does not read keeps the answer waiting.
fn large() -> Vec<u8> {
    content(4096 * TILE_BYTES)
}

fn all_of(hash: BlobHash) -> String {
    format!("GET /v1/blobs/{hash} HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_too_many_is_told_to_come_back() {
    let bytes = large();
    let (_a, store, hash) = store_with(&bytes);
    let peer = host(store, ServerOptions { requests_max: 2, ..ServerOptions::default() }).await;
    let (mut one, mut two) = (connect(&peer).await, connect(&peer).await);
    assert!(head_of(&mut one, &all_of(hash)).await.starts_with("http/1.1 200"));
    assert!(head_of(&mut two, &all_of(hash)).await.starts_with("http/1.1 200"), "the limit");
    let have = format!("GET /v1/blobs/{hash}/have HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (head, body) = ask(&peer, &have).await;
    assert!(head.starts_with("http/1.1 503") && head.contains("retry-after: 1\r\n"), "{head}");
    assert!(String::from_utf8_lossy(&body).contains("\"busy\""));
    // A fetch waits for its turn.
    let (_c, into) = fresh();
    let fetching = tokio::spawn(async move { get(&into, hash, &[peer]).await });
    drop((one, two));
    assert_whole(&fetching.await.expect("it ends").expect("it comes"), &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed() {
    let (_a, store, _) = store_with(b"x");
    let peer = host(store, ServerOptions { connections_max: 2, ..ServerOptions::default() }).await;
    let (mut one, mut two, mut three) = (connect(&peer).await, connect(&peer).await, connect(&peer).await);
    assert!(head_of(&mut one, HEALTH).await.starts_with("http/1.1 200"));
    assert!(head_of(&mut two, HEALTH).await.starts_with("http/1.1 200"), "the limit");
    let ended = three.read(&mut [0; 1]).await;
    assert!(ended.as_ref().map_or(true, |got| *got == 0), "{ended:?}");
    drop(one);
    // Its place is free once the host has seen it end.
    let close = HEALTH.replace("Host: x", "Host: x\r\nConnection: close");
    while !ask_or_nothing(&peer, &close).await.starts_with("http/1.1 200") {}
}

async fn ask_or_nothing(peer: &PeerAddress, request: &str) -> String {
    let mut tcp = connect(peer).await;
    let mut answer = Vec::new();
    // A host that is full resets what it did not accept.
    let _ = tcp.write_all(request.as_bytes()).await;
    let _ = tcp.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).to_lowercase()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_or_asks_nothing_is_let_go() {
    let bytes = large();
    let (_a, store, hash) = store_with(&bytes);
    let short = Duration::from_millis(50);
    let options = ServerOptions {
        requests_max: 1,
        send_stall_timeout: short,
        request_head_timeout: short,
        ..ServerOptions::default()
    };
    let peer = host(store, options).await;
    let mut idle = connect(&peer).await;
    idle.write_all(b"GET /health HTT").await.expect("it is sent");
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    let mut stuck = connect(&peer).await;
    assert!(head_of(&mut stuck, &all_of(hash)).await.starts_with("http/1.1 200"));
    // The one place for a request is free again without the client's doing anything.
    let have = format!("GET /v1/blobs/{hash}/have HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    while !ask(&peer, &have).await.0.starts_with("http/1.1 200") {}
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_have_few_headers() {
    let (_a, store, _) = store_with(b"x");
    let peer = host(store, ServerOptions::default()).await;
    for (headers, status) in [(HEADERS_MAX, "200"), (HEADERS_MAX + 1, "431")] {
        let more = "A: b\r\n".repeat(headers - 2);
        let request = format!("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
        let (head, _) = ask(&peer, &request).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{headers}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_has_so_many_peers() {
    let bytes = content(5 * TILE_BYTES);
    let (_a, store, hash) = store_with(&bytes);
    let peer = host(store, ServerOptions::default()).await;
    let (_c, into) = fresh();
    let many = vec![peer.clone(); PEERS_MAX + 1];
    let refused = get(&into, hash, &many).await;
    assert!(matches!(refused, Err(FetchError::TooManyPeers { got, .. }) if got == many.len()), "{refused:?}");
    assert_whole(&get(&into, hash, &many[1..]).await.expect("the limit"), &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_have_is_bounded() {
    // Whose answer is understood is asked for the outboard, which it does not have.
    let runs = |count: usize| {
        let runs: Vec<String> = (0..count).map(|i| format!("[{},1]", 2 * i)).collect();
        format!("{{\"size\":{},\"whole\":false,\"tiles\":[{}]}}", TILE_BYTES << 20, runs.join(","))
    };
    let long = |bytes: usize| {
        let answer = "{\"size\":5,\"whole\":true}";
        answer.to_owned() + &" ".repeat(bytes - answer.len())
    };
    let beyond =
        |tiles: u64| format!("{{\"size\":{},\"whole\":false,\"tiles\":[[0,{tiles}]]}}", 5 * TILE_BYTES);
    for (body, code) in [
        (runs(HAVE_RUNS_MAX), "has_not"),
        (runs(HAVE_RUNS_MAX + 1), "bad_answer"),
        (long(JSON_BYTES_MAX), "has_not"),
        (long(JSON_BYTES_MAX + 1), "bad_answer"),
        (beyond(5), "has_not"),
        (beyond(6), "bad_answer"),
        (format!("{{\"size\":{},\"whole\":true}}", u64::MAX), "bad_answer"),
        ("{\"size\":-1,\"whole\":true}".to_owned(), "bad_answer"),
    ] {
        let (case, len) = (body.chars().take(60).collect::<String>(), body.len());
        let peer = scripted(After::End, move |head| {
            let (status, body) =
                if head.contains("/have ") { ("200 OK", &body[..]) } else { ("404 Not Found", "") };
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
        })
        .await;
        let (_c, into) = fresh();
        let options = FetchOptions { have_again: Duration::from_millis(1), ..FetchOptions::default() };
        let (hash, dialer) = (BlobHash::of(b"far"), Dialer::new());
        match fetch(&into, hash, None, &[peer], &dialer, &options, &mut |_| {}).await {
            Err(FetchError::NoPeerLeft { peers, .. }) => {
                let got = peers[0].fault.as_ref().map(|fault| fault.code());
                assert_eq!(got, Some(code), "{case} ({len} bytes)");
            }
            other => panic!("{case}: {other:?}"),
        }
    }
}
