//! A line to a provider that is slow, or breaks.

use std::net::SocketAddr;
use std::time::Duration;

use alloy_primitives::B256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Bytes that a slow line carries at once.
const PIECE: usize = 4096;

/// How it is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Manner {
    /// Waits before each piece.
    pub delay: Duration,
    /// Share of connections that break somewhere.
    pub drop: f64,
}

/// Carries connections for ever.
pub async fn carry(listener: TcpListener, to: SocketAddr, manner: Manner) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            // A line that breaks does so after up to 32 pieces either way.
            let breaks = drawn() < manner.drop;
            let pieces = if breaks { (drawn() * 32.0) as usize } else { usize::MAX };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Whichever way breaks first takes the other one along, unless it ended in order.
            tokio::select! {
                () = pass(from_client, to_server, manner.delay, pieces) => {}
                () = pass(from_server, to_client, manner.delay, pieces) => {}
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

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration, pieces: usize) {
    let mut piece = vec![0; PIECE];
    for _ in 0..pieces {
        let Ok(read @ 1..) = from.read(&mut piece).await else { break };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let Some(bytes) = piece.get(..read) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
