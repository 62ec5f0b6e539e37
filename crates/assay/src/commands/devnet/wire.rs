//! A line to a member or to the chain that is slow, breaks, carries nothing for a while, or says things twice.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy_primitives::B256;
use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::apart::Ground;

/// Bytes that a slow line carries at once.
const PIECE: usize = 4096;
/// How an auditor's request begins.
const AUDIT: &[u8] = b"POST /v1/audits";
/// Bytes of a request that are kept to be said again.
const SAID_MAX: usize = 1 << 20;
/// It is said again within this time.
const LATER: Duration = Duration::from_secs(5);
/// And so long the server may answer that.
const LISTENS: Duration = Duration::from_secs(10);

/// How it is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Manner {
    /// Waits before each piece.
    pub delay: Duration,
    /// Share of connections that break somewhere.
    pub drop: f64,
    /// Carries nothing until it is mended: what was sent waits, as it does where packets are lost.
    pub cut: bool,
    /// Says what it was told again, a while later and by another connection. Nobody hears the second answer.
    pub twice: bool,
    /// Breaks where an auditor asks.
    pub unaudited: bool,
}

/// A line, whose manner may change.
pub struct Line {
    pub at: SocketAddr,
    usual: Manner,
    manner: watch::Sender<Manner>,
    /// Requests that were said again.
    pub repeated: Arc<AtomicU64>,
}

impl Line {
    /// Makes it otherwise than it usually is.
    pub fn change(&self, change: impl FnOnce(&mut Manner)) {
        let mut manner = self.usual;
        change(&mut manner);
        self.manner.send_replace(manner);
    }
}

/// What a client said since the server spoke last: over HTTP/1.1 that is one request.
#[derive(Default)]
struct Said {
    bytes: Vec<u8>,
    /// It was longer than what is kept.
    lost: bool,
    answered: bool,
}

impl Said {
    fn hear(&mut self, piece: &[u8]) {
        if std::mem::take(&mut self.answered) {
            *self = Said::default();
        }
        self.lost |= self.bytes.len() + piece.len() > SAID_MAX;
        if self.lost {
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(piece);
        }
    }

    /// The whole of it, when the answer begins.
    fn answered(&mut self) -> Option<Vec<u8>> {
        let bytes = std::mem::take(&mut self.bytes);
        let first = !std::mem::replace(&mut self.answered, true);
        (first && !self.lost && !bytes.is_empty()).then_some(bytes)
    }
}

/// Says it again.
async fn again(to: SocketAddr, said: Vec<u8>) {
    tokio::time::sleep(LATER.mul_f64(drawn())).await;
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    if server.write_all(&said).await.is_err() {
        return;
    }
    let mut nobody = tokio::io::sink();
    let unheard = tokio::io::copy(&mut server, &mut nobody);
    let _ = tokio::time::timeout(LISTENS, unheard).await;
}

/// A line from an address of its own. It lasts as long as `carrying`.
pub async fn line(
    ground: &Ground,
    to: SocketAddr,
    manner: Manner,
    carrying: &mut JoinSet<()>,
) -> Result<Line> {
    let listener = TcpListener::bind(ground.free()?).await?;
    let at = listener.local_addr()?;
    let (sender, changes) = watch::channel(manner);
    let repeated = Arc::new(AtomicU64::new(0));
    carrying.spawn(carry(listener, to, changes, Arc::clone(&repeated)));
    Ok(Line { at, usual: manner, manner: sender, repeated })
}

/// Carries connections for ever.
async fn carry(
    listener: TcpListener,
    to: SocketAddr,
    manner: watch::Receiver<Manner>,
    repeated: Arc<AtomicU64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let (manner, repeated) = (manner.clone(), Arc::clone(&repeated));
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            // Pieces are small, and each is wanted at once.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // A line that breaks does so after up to 32 pieces either way.
            let breaks = drawn() < manner.borrow().drop;
            let pieces = if breaks { (drawn() * 32.0) as usize } else { usize::MAX };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let said = Mutex::new(Said::default());
            let lock = || said.lock().unwrap_or_else(PoisonError::into_inner);
            let now = manner.clone();
            let asked = |piece: &[u8]| {
                lock().hear(piece);
                !(now.borrow().unaudited && piece.starts_with(AUDIT))
            };
            let answered = |_: &[u8]| {
                if let Some(said) = lock().answered().filter(|_| now.borrow().twice) {
                    repeated.fetch_add(1, Relaxed);
                    tokio::spawn(again(to, said));
                }
                true
            };
            // Whichever way breaks first takes the other one along, unless it ended in order.
            tokio::select! {
                () = pass(from_client, to_server, manner.clone(), pieces, asked) => {}
                () = pass(from_server, to_client, manner, pieces, answered) => {}
            }
        });
    }
}

/// A number from 0 to below 1.
fn drawn() -> f64 {
    let bytes = B256::random();
    let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    f64::from(number) / (f64::from(u32::MAX) + 1.0)
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut manner: watch::Receiver<Manner>,
    pieces: usize,
    goes_on: impl Fn(&[u8]) -> bool,
) {
    let mut piece = vec![0; PIECE];
    for _ in 0..pieces {
        let Ok(read @ 1..) = from.read(&mut piece).await else { break };
        let Ok(Manner { delay, .. }) = manner.wait_for(|manner| !manner.cut).await.map(|manner| *manner)
        else {
            return;
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let Some(bytes) = piece.get(..read) else { return };
        if !goes_on(bytes) {
            return;
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_an_answer_is_one_request() {
        let mut said = Said::default();
        assert_eq!(said.answered(), None);
        said.hear(b"POST /");
        said.hear(b" one");
        assert_eq!(said.answered(), Some(b"POST / one".to_vec()));
        assert_eq!(said.answered(), None, "the answer goes on");
        said.hear(b"POST / two");
        assert_eq!(said.answered(), Some(b"POST / two".to_vec()));
        said.hear(&vec![0; SAID_MAX]);
        said.hear(b"1");
        assert_eq!(said.answered(), None, "it is too long to be said again whole");
        said.hear(&vec![7; SAID_MAX]);
        assert_eq!(said.answered().map(|said| said.len()), Some(SAID_MAX));
    }

    #[tokio::test]
    async fn a_line_says_twice_what_it_is_told_and_lets_no_auditor_ask() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to, ground) = (server.local_addr().unwrap(), Ground::common(std::path::Path::new("")));
        let mut wires = JoinSet::new();
        let usual = Manner { unaudited: true, ..Manner::default() };
        let line = line(&ground, to, usual, &mut wires).await.unwrap();
        line.change(|line| line.twice = true);
        let mut client = TcpStream::connect(line.at).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let (mut heard, mut connections) = ([0; 5], Vec::new());
        for _ in 0..2 {
            let (mut connection, _) = server.accept().await.unwrap();
            connection.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"hello");
            connection.write_all(b"yes").await.unwrap();
            connections.push(connection);
        }
        let mut answer = [0; 3];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!((&answer, line.repeated.load(Relaxed)), (b"yes", 1));
        line.change(|_| ());
        client.write_all(b"POST /v1/orders HTTP/1.1").await.unwrap();
        let mut order = [0; 24];
        connections[0].read_exact(&mut order).await.unwrap();
        client.write_all(b"POST /v1/audits HTTP/1.1").await.unwrap();
        assert!(matches!(client.read(&mut answer).await, Ok(0) | Err(_)), "the line breaks");
    }
}
