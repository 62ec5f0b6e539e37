//! Hosts for tests: honest ones, and liars that speak raw HTTP.

use assay_hub::blob::{BlobHash, TILE_BYTES};
use assay_hub::outboard::{Make, hash_bytes};
use assay_hub::peer::PeerAddress;
use assay_hub::server::{ServerOptions, router, serve};
use assay_hub::store::{Quota, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Bytes without two equal tiles.
pub(crate) fn content(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    blake3::Hasher::new().update(b"content").finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn store_with(bytes: &[u8]) -> (tempfile::TempDir, Store, BlobHash) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("store"), Quota::UNLIMITED).expect("a store");
    let path = folder.path().join("content");
    std::fs::write(&path, bytes).expect("it is written");
    let hash = store.add_file(&path, &mut |_, _| {}).expect("it is added").hash();
    (folder, store, hash)
}

pub(crate) async fn host(store: Store, options: ServerOptions) -> PeerAddress {
    mortal(store, options).await.0
}

/// A host that dies with its task.
pub(crate) async fn mortal(store: Store, options: ServerOptions) -> (PeerAddress, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    let task = tokio::spawn(serve(listener, router(store, &options), options, std::future::pending()));
    (address.parse().expect("an address"), task)
}

/// A host of one answer a connection: what `answer` makes of the head of a request. Then it ends, or is silent for ever.
pub(crate) async fn scripted(
    after: After,
    answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
) -> PeerAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    let answer = std::sync::Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let head = BufTcp { tcp: &tcp }.head().await?;
                tcp.write_all(&answer(&head)).await?;
                if after == After::Silence {
                    // Until the client hangs up.
                    tcp.read_to_end(&mut Vec::new()).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    address.parse().expect("an address")
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum After {
    End,
    Silence,
}

/// What a raw client gets: the head and the body.
pub(crate) async fn ask(peer: &PeerAddress, request: &str) -> (String, Vec<u8>) {
    let mut tcp = connect(peer).await;
    tcp.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = Vec::new();
    // A host that hangs up may reset the connection.
    let _ = tcp.read_to_end(&mut answer).await;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer.split_off(end))
}

pub(crate) async fn connect(peer: &PeerAddress) -> TcpStream {
    let address = peer.to_string();
    TcpStream::connect(address.trim_start_matches("http://")).await.expect("it listens")
}

/// The head of the answer to a request on a connection that stays open.
pub(crate) async fn head_of(tcp: &mut TcpStream, request: &str) -> String {
    tcp.write_all(request.as_bytes()).await.expect("it is sent");
    BufTcp { tcp }.head().await.expect("a head").to_lowercase()
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lie {
    Corrupt,
    Redirect,
    Gzip,
    Chunked,
    OtherRange,
    IgnoreRange,
    Size,
    Outboard,
    EndlessHead,
    Close,
}

pub(crate) async fn liar(lie: Lie, bytes: Vec<u8>) -> PeerAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    let bytes = std::sync::Arc::new(bytes);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let bytes = bytes.clone();
            // A client that hangs up is what the tests are about.
            tokio::spawn(async move {
                while speak(&mut BufTcp { tcp: &tcp }, lie, &bytes).await.is_ok() {}
                drop(tcp)
            });
        }
    });
    address.parse().expect("an address")
}

struct BufTcp<'a> {
    tcp: &'a TcpStream,
}

impl BufTcp<'_> {
    async fn head(&mut self) -> std::io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            self.tcp.readable().await?;
            let mut byte = [0];
            match self.tcp.try_read(&mut byte) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => head.push(byte[0]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    async fn send(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            self.tcp.writable().await?;
            match self.tcp.try_write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

async fn speak(tcp: &mut BufTcp<'_>, lie: Lie, bytes: &[u8]) -> std::io::Result<()> {
    let head = tcp.head().await?;
    let size = bytes.len() + usize::from(lie == Lie::Size) * TILE_BYTES as usize;
    let ok = |status: &str, extra: String, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    if head.contains("/have ") {
        let body = format!("{{\"size\":{size},\"whole\":true}}");
        return tcp.send(&ok("200 OK", String::new(), body.as_bytes())).await;
    }
    if head.contains("/outboard ") {
        let mut outboard = hash_bytes(bytes, Make::Outboard).outboard.to_vec();
        match lie {
            Lie::Outboard => outboard[100] ^= 1,
            Lie::Size => outboard.extend([0; 64]),
            _ => {}
        }
        return tcp.send(&ok("200 OK", String::new(), &outboard)).await;
    }
    let range = head.lines().find_map(|line| line.strip_prefix("Range: bytes=")).unwrap_or("0-0");
    let (from, to) = range.trim().split_once('-').expect("a range");
    let (from, to): (usize, usize) = (from.parse().expect("a number"), to.parse().expect("a number"));
    let mut body = bytes[from..=to.min(bytes.len() - 1)].to_vec();
    let at = format!("Content-Range: bytes {from}-{to}/{size}\r\n");
    let partial = "206 Partial Content";
    let answer = match lie {
        Lie::Corrupt => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
            ok(partial, at, &body)
        }
        Lie::Redirect => ok("302 Found", "Location: http://127.0.0.1:1/\r\n".into(), b""),
        Lie::Gzip => ok(partial, format!("{at}Content-Encoding: gzip\r\n"), &body),
        Lie::Chunked => format!("HTTP/1.1 {partial}\r\n{at}Transfer-Encoding: chunked\r\n\r\n").into_bytes(),
        Lie::OtherRange => {
            ok(partial, format!("Content-Range: bytes {}-{to}/{size}\r\n", from + 1), &body[1..])
        }
        Lie::IgnoreRange => ok("200 OK", String::new(), bytes),
        Lie::EndlessHead => format!("HTTP/1.1 {partial}\r\nX: {}", "x".repeat(1 << 20)).into_bytes(),
        Lie::Close => return Err(std::io::ErrorKind::ConnectionAborted.into()),
        Lie::Size | Lie::Outboard => ok(partial, at, &body),
    };
    tcp.send(&answer).await
}
