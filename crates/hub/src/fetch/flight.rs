//! One conversation with a peer: a range of tiles, what it has, its outboard or tile list. What comes is judged here.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::http::{Connection, Head, Method};
use super::plan::{FlightId, Has, PeerId};
use super::runs::Runs;
use super::writer::Buffers;
use super::{FetchOptions, PeerFault};
use crate::blob::{BlobHash, TILE_BYTES, tiles};
use crate::limits::{DRAIN_BYTES_MAX, HAVE_RUNS_MAX, JSON_BYTES_MAX};
use crate::outboard::TileVerifier;
use crate::peer::{Dialer, PeerAddress};

/// Time after which verified tiles are reported although their buffer is not full.
const REPORT_AFTER: Duration = Duration::from_millis(50);

/// What conversations tell the session.
pub(crate) enum Event {
    Joined { peer: PeerId, answer: Result<(u64, Has), PeerFault> },
    Has { peer: PeerId, answer: Result<(u64, Has), PeerFault> },
    Verified { flight: FlightId, first_tile: u64, count: u64, buffer: Vec<u8> },
    Ended { peer: PeerId, flight: FlightId, result: Result<(), PeerFault>, connection: Option<Connection> },
}

/// What all conversations of a fetch share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) hash: BlobHash,
    pub(crate) dialer: Dialer,
    pub(crate) options: Arc<FetchOptions>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) buffers: Buffers,
}

fn judge_status(head: &Head) -> Result<(), PeerFault> {
    match head.status {
        200 | 206 => Ok(()),
        404 | 410 => Err(PeerFault::HasNot),
        status @ (429 | 503) => Err(PeerFault::Busy { status, retry_after_s: head.retry_after_s }),
        status @ 500.. => Err(PeerFault::Failed { status }),
        status => Err(PeerFault::Refused { status }),
    }
}

#[derive(Deserialize)]
struct HaveAnswer {
    size: u64,
    whole: bool,
    #[serde(default)]
    tiles: Vec<[u64; 2]>,
}

impl Context {
    async fn get(&self, address: &PeerAddress, path: &str, most: u64) -> Result<Vec<u8>, PeerFault> {
        let mut connection = Connection::open(&self.dialer, address, &self.options).await?;
        let head = connection.request(address, Method::Get, path, None, &self.options).await?;
        judge_status(&head)?;
        connection.body(most, &self.options).await
    }

    /// The size that a peer claims and which tiles it has. A plain file server knows no `have`: then a HEAD says both.
    pub(crate) async fn have(&self, address: &PeerAddress) -> Result<(u64, Has), PeerFault> {
        let path = format!("/v1/blobs/{}", self.hash);
        match self.get(address, &format!("{path}/have"), JSON_BYTES_MAX as u64).await {
            Ok(body) => {
                let refused = PeerFault::BadAnswer { what: "have is not as documented" };
                let Ok(answer) = serde_json::from_slice::<HaveAnswer>(&body) else { return Err(refused) };
                if answer.whole {
                    return Ok((answer.size, Has::All));
                }
                let all = tiles(answer.size);
                if answer.tiles.len() > HAVE_RUNS_MAX {
                    return Err(refused);
                }
                let mut runs = Runs::default();
                for [first, count] in answer.tiles {
                    let Some(end) = first.checked_add(count).filter(|end| *end <= all) else {
                        return Err(refused);
                    };
                    runs.insert(first..end);
                }
                Ok((answer.size, Has::Some(runs)))
            }
            Err(PeerFault::HasNot) => {
                let mut connection = Connection::open(&self.dialer, address, &self.options).await?;
                let head = connection.request(address, Method::Head, &path, None, &self.options).await?;
                judge_status(&head)?;
                let size = head.length.ok_or(PeerFault::BadAnswer { what: "no length" })?;
                Ok((size, Has::All))
            }
            Err(fault) => Err(fault),
        }
    }

    pub(crate) async fn outboard(&self, address: &PeerAddress, size: u64) -> Result<Vec<u8>, PeerFault> {
        let expected = (tiles(size) - 1) * 64;
        let body = self.get(address, &format!("/v1/blobs/{}/outboard", self.hash), expected).await?;
        if body.len() as u64 != expected {
            return Err(PeerFault::WrongOutboard { why: format!("{} bytes, not {expected}", body.len()) });
        }
        Ok(body)
    }

    /// A few tiles, on a connection of their own.
    pub(crate) async fn range(
        &self,
        address: &PeerAddress,
        bytes: Range<u64>,
        size: u64,
    ) -> Result<Vec<u8>, PeerFault> {
        let mut connection = Connection::open(&self.dialer, address, &self.options).await?;
        let (path, range) = (format!("/v1/blobs/{}", self.hash), Some((bytes.start, bytes.end - 1)));
        let head = connection.request(address, Method::Get, &path, range, &self.options).await?;
        judge_status(&head)?;
        judge_range(&head, bytes.start, bytes.end, size)?;
        connection.body(bytes.end - bytes.start, &self.options).await
    }

    pub(crate) async fn tile_list(&self, address: &PeerAddress, size: u64) -> Result<Vec<u8>, PeerFault> {
        self.get(address, &format!("/v1/blobs/{}/tiles", self.hash), tiles(size) * 32).await
    }
}

/// A request for tiles that is under way.
pub(crate) struct Flight {
    pub(crate) context: Context,
    pub(crate) verifier: TileVerifier,
    pub(crate) peer: PeerId,
    pub(crate) address: PeerAddress,
    pub(crate) id: FlightId,
    pub(crate) tiles: Range<u64>,
    /// The tile at which to stop; it may come closer.
    pub(crate) end: watch::Receiver<u64>,
    pub(crate) connection: Option<Connection>,
}

impl Flight {
    pub(crate) async fn run(mut self) {
        let mut kept = None;
        let result = self.receive(&mut kept).await;
        let connection = kept.filter(|c| result.is_ok() && c.is_reusable());
        let event = Event::Ended { peer: self.peer, flight: self.id, result, connection };
        drop(self.context.events.send(event).await);
    }

    async fn receive(&mut self, kept: &mut Option<Connection>) -> Result<(), PeerFault> {
        let options = self.context.options.clone();
        let path = format!("/v1/blobs/{}", self.context.hash);
        let size = self.verifier.size();
        let (from, to) = (self.tiles.start * TILE_BYTES, (self.tiles.end * TILE_BYTES).min(size));
        let range = Some((from, to - 1));
        let mut stop = self.end.clone();
        let ask = async {
            // A connection that was kept may have been closed meanwhile: then a fresh one is tried at once.
            if let Some(mut old) = self.connection.take() {
                match old.request(&self.address, Method::Get, &path, range, &options).await {
                    Ok(head) => return Ok((old, head)),
                    Err(PeerFault::Broken { .. }) => {}
                    Err(fault) => return Err(fault),
                }
            }
            let mut fresh = Connection::open(&self.context.dialer, &self.address, &options).await?;
            let head = fresh.request(&self.address, Method::Get, &path, range, &options).await?;
            Ok((fresh, head))
        };
        let start = self.tiles.start;
        let (connection, head) = tokio::select! {
            asked = ask => asked?,
            // All of it was given to someone else before anything came.
            _ = stop.wait_for(|end| *end <= start) => return Ok(()),
        };
        judge_status(&head)?;
        judge_range(&head, from, to, size)?;
        let connection = kept.insert(connection);

        let mut buffer = self.context.buffers.take();
        let (mut filled, mut checked) = (0_usize, 0_usize);
        let mut first = self.tiles.start;
        let mut reported = Instant::now();
        let result = loop {
            let next = first + (checked as u64).div_ceil(TILE_BYTES);
            if next >= *stop.borrow_and_update() || connection.body_left() == 0 {
                break Ok(());
            }
            let got = tokio::select! {
                got = connection.read(&mut buffer[filled..], &options) => got,
                _ = stop.changed() => continue,
            };
            match got {
                Ok(got) => {
                    filled += got;
                    options.rate.take(got as u64).await;
                }
                Err(fault) => break Err(fault),
            }
            let wrong = self.check(&buffer, first, &mut checked, filled);
            if let Err(fault) = wrong {
                break Err(fault);
            }
            if checked == buffer.len() || (checked > 0 && reported.elapsed() >= REPORT_AFTER) {
                let mut fresh = self.context.buffers.take();
                fresh[..filled - checked].copy_from_slice(&buffer[checked..filled]);
                let full = std::mem::replace(&mut buffer, fresh);
                first = self.report(first, checked, full).await;
                (filled, checked) = (filled - checked, 0);
                reported = Instant::now();
            }
        };
        // What came before a fault stands.
        if checked > 0 {
            self.report(first, checked, buffer).await;
        } else {
            self.context.buffers.give(buffer);
        }
        if result.is_ok() && connection.body_left() > 0 && connection.body_left() <= DRAIN_BYTES_MAX {
            drop(connection.body(DRAIN_BYTES_MAX, &options).await);
        }
        result
    }

    fn check(&self, buffer: &[u8], first: u64, checked: &mut usize, filled: usize) -> Result<(), PeerFault> {
        let size = self.verifier.size();
        loop {
            let tile = first + *checked as u64 / TILE_BYTES;
            let len = TILE_BYTES.min(size.saturating_sub(tile * TILE_BYTES)) as usize;
            if len == 0 || filled - *checked < len {
                return Ok(());
            }
            self.verifier.check(tile, &buffer[*checked..*checked + len])?;
            *checked += len;
            if (len as u64) < TILE_BYTES {
                return Ok(());
            }
        }
    }

    async fn report(&self, first_tile: u64, checked: usize, buffer: Vec<u8>) -> u64 {
        let count = (checked as u64).div_ceil(TILE_BYTES);
        let event = Event::Verified { flight: self.id, first_tile, count, buffer };
        drop(self.context.events.send(event).await);
        first_tile + count
    }
}

fn judge_range(head: &Head, from: u64, to: u64, size: u64) -> Result<(), PeerFault> {
    let expected = format!("bytes {from}-{}/{size}", to - 1);
    let whole = from == 0 && to == size;
    let right = match (head.status, &head.content_range) {
        (206, Some(range)) => *range == expected,
        (200, None) => whole,
        _ => false,
    };
    if right && head.length == Some(to - from) {
        return Ok(());
    }
    let length = head.length.map_or("no length".to_owned(), |l| format!("{l} bytes"));
    let range = head.content_range.as_deref().unwrap_or("no range");
    let got = format!("HTTP {}, {}, {length}", head.status, range.chars().take(80).collect::<String>());
    Err(PeerFault::WrongRange { expected, got })
}
