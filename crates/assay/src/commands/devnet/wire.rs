//! A line to a member or to the chain that is slow, breaks, or carries nothing for a while.

use std::net::SocketAddr;
use std::time::Duration;

use alloy_primitives::B256;
use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that a slow line carries at once.
const PIECE: usize = 4096;

/// How it is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Manner {
    /// Waits before each piece.
    pub delay: Duration,
    /// Share of connections that break somewhere.
    pub drop: f64,
    /// Carries nothing until it is mended: what was sent waits, as it does where packets are lost.
    pub cut: bool,
}

/// A line, whose manner may change.
pub struct Line {
    pub at: SocketAddr,
    pub manner: watch::Sender<Manner>,
}

/// A line from an address of its own. It lasts as long as `carrying`.
pub async fn line(to: SocketAddr, manner: Manner, carrying: &mut JoinSet<()>) -> Result<Line> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    let (manner, changes) = watch::channel(manner);
    carrying.spawn(carry(listener, to, changes));
    Ok(Line { at, manner })
}

/// Carries connections for ever.
async fn carry(listener: TcpListener, to: SocketAddr, manner: watch::Receiver<Manner>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let manner = manner.clone();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            // Pieces are small, and each is wanted at once.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // A line that breaks does so after up to 32 pieces either way.
            let breaks = drawn() < manner.borrow().drop;
            let pieces = if breaks { (drawn() * 32.0) as usize } else { usize::MAX };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Whichever way breaks first takes the other one along, unless it ended in order.
            tokio::select! {
                () = pass(from_client, to_server, manner.clone(), pieces) => {}
                () = pass(from_server, to_client, manner, pieces) => {}
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
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
