//! What the router answers, byte by byte (docs/hub.md, Wire).

use assay_hub::blob::{BlobHash, TILE_BYTES};
use assay_hub::outboard::{Make, hash_bytes};
use assay_hub::peer::PeerAddress;
use assay_hub::server::ServerOptions;

use super::fresh;
use super::hosts::{ask, content, host, store_with};
use super::partial::arriving;

async fn got(peer: &PeerAddress, method: &str, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    let (head, body) = ask(peer, &request).await;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{head}")), head, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_answered_as_documented() {
    let bytes = content(3 * TILE_BYTES + 100);
    let (size, last) = (bytes.len(), bytes.len() - 1);
    let (_a, store, hash) = store_with(&bytes);
    let peer = host(store, ServerOptions::default()).await;
    let path = format!("/v1/blobs/{hash}");
    let tagged = |range: &str, tag: &str| format!("Range: {range}\r\nIf-Range: \"{tag}\"\r\n");
    let other = BlobHash::of(b"other").to_string();
    for (headers, expected) in [
        (String::new(), None),
        ("Range: bytes=0-0\r\n".into(), Some(0..1)),
        ("Range: bytes=100-40000\r\n".into(), Some(100..40001)),
        ("Range: bytes=40000-\r\n".into(), Some(40000..size)),
        ("Range: bytes=-7\r\n".into(), Some(size - 7..size)),
        (format!("Range: bytes={last}-{size}\r\n"), Some(last..size)),
        ("Range: bytes=0-18446744073709551615\r\n".into(), Some(0..size)),
        ("Range: bytes=0-1,5-6\r\n".into(), None),
        ("Range: tiles=0-1\r\n".into(), None),
        ("Range: bytes=9-3\r\n".into(), None),
        (tagged("bytes=1-2", &hash.to_string()), Some(1..3)),
        (tagged("bytes=1-2", &other), None),
    ] {
        for method in ["GET", "HEAD"] {
            let (status, head, body) = got(&peer, method, &path, &headers).await;
            let range = expected.clone().unwrap_or(0..size);
            assert_eq!(status, if expected.is_some() { 206 } else { 200 }, "{headers}");
            assert!(head.contains(&format!("content-length: {}\r\n", range.len())), "{headers}{head}");
            assert!(
                head.contains(&format!("etag: \"{hash}\"\r\n")) && head.contains("accept-ranges: bytes\r\n")
            );
            let line = format!("content-range: bytes {}-{}/{size}\r\n", range.start, range.end - 1);
            assert_eq!(head.contains(&line), expected.is_some(), "{headers}{head}");
            let sent = if method == "GET" { &bytes[range] } else { &[] };
            assert!(body == sent, "{method} {headers}: other bytes");
        }
    }
    for beyond in [format!("bytes={size}-"), "bytes=-0".into()] {
        let (status, head, body) = got(&peer, "GET", &path, &format!("Range: {beyond}\r\n")).await;
        assert_eq!(status, 416);
        assert!(head.contains(&format!("content-range: bytes */{size}\r\n")), "{head}");
        assert!(String::from_utf8_lossy(&body).contains("\"range_beyond\""));
    }
    let (status, _, body) = got(&peer, "GET", &path, &format!("If-None-Match: \"{hash}\"\r\n")).await;
    assert_eq!((status, body.len()), (304, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_beside_the_bytes() {
    let bytes = content(3 * TILE_BYTES + 100);
    let (_a, store, arrival) = arriving(&bytes, 0..4);
    let hash = arrival.finish().expect("it is whole").hash();
    let peer = host(store.clone(), ServerOptions::default()).await;
    let made = hash_bytes(&bytes, Make::OutboardAndList);
    let (status, _, body) = got(&peer, "GET", &format!("/v1/blobs/{hash}/outboard"), "").await;
    assert!(status == 200 && body == made.outboard);
    let refused = |path: String| async move {
        let (status, _, body) = got(&peer, "GET", &path, "").await;
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    for (path, expected, code) in [
        (format!("/v1/blobs/{hash}/tiles"), 404, "tiles_unknown"),
        (format!("/v1/blobs/{}", BlobHash::of(b"other")), 404, "blob_unknown"),
        (format!("/v1/blobs/{}/have", BlobHash::of(b"other")), 404, "blob_unknown"),
        (format!("/v1/blobs/{}", "A".repeat(64)), 400, "bad_hash"),
        ("/v1/blobs/00".to_owned(), 400, "bad_hash"),
    ] {
        let (status, body) = refused.clone()(path.clone()).await;
        assert_eq!(status, expected, "{path}");
        assert!(body.contains(&format!("\"{code}\"")), "{path}: {body}");
    }
    store.index(hash).expect("it is made");
    let peer = host(store, ServerOptions::default()).await;
    let (status, _, body) = got(&peer, "GET", &format!("/v1/blobs/{hash}/tiles"), "").await;
    assert!(status == 200 && body == made.tile_list);
    assert_eq!(got(&peer, "GET", "/health", "").await.0, 200);
    assert_eq!(got(&peer, "GET", "/v1/blobs", "").await.0, 404);
    assert_eq!(got(&peer, "POST", &format!("/v1/blobs/{hash}"), "Content-Length: 0\r\n").await.0, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_was_sent() {
    let bytes = content(2 * TILE_BYTES);
    let (_a, store, hash) = store_with(&bytes);
    let peer = host(store, ServerOptions::default()).await;
    got(&peer, "GET", &format!("/v1/blobs/{hash}"), "Range: bytes=0-99\r\n").await;
    got(&peer, "GET", &format!("/v1/blobs/{hash}/outboard"), "").await;
    let (status, _, body) = got(&peer, "GET", "/metrics", "").await;
    let text = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(status, 200);
    for line in ["hub_requests_total 2", "hub_requests_refused_total 0", "hub_bytes_total 164"] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_arrived_is_not_served() {
    let bytes = content(5 * TILE_BYTES + 9);
    let made = hash_bytes(&bytes, Make::Outboard);
    let (_a, store) = fresh();
    let peer = host(store.clone(), ServerOptions::default()).await;
    let mut arrival = store.arrive(made.hash, bytes.len() as u64).expect("it begins");
    let path = format!("/v1/blobs/{}", made.hash);
    let (status, _, body) = got(&peer, "GET", &format!("{path}/outboard"), "").await;
    assert!(status == 404 && String::from_utf8_lossy(&body).contains("\"outboard_unknown\""));
    arrival.set_outboard(&made.outboard).expect("it is right");
    let tile = TILE_BYTES as usize;
    arrival.write(1, &bytes[tile..3 * tile]).expect("they are written");
    for (range, there) in [
        (tile..3 * tile, true),
        (tile..3 * tile + 1, false),
        (tile - 1..2 * tile, false),
        (tile + 5..2 * tile + 5, true),
        (5 * tile..bytes.len(), false),
    ] {
        let headers = format!("Range: bytes={}-{}\r\n", range.start, range.end - 1);
        let (status, _, body) = got(&peer, "GET", &path, &headers).await;
        assert_eq!(status, if there { 206 } else { 404 }, "{headers}");
        if there {
            assert!(body == bytes[range]);
        } else {
            assert!(String::from_utf8_lossy(&body).contains("\"range_not_here\""));
        }
    }
}
