//! What a fetch says: how far it is, what each peer did, and why it ended.

use std::fmt;
use std::time::Duration;

use crate::blob::BlobHash;
use crate::outboard::WrongTile;
use crate::peer::PeerAddress;
use crate::store::{Blob, StoreError};

/// Why a peer took part no longer, or failed once.
#[derive(Debug, thiserror::Error)]
pub enum PeerFault {
    /// No connection.
    #[error("it cannot be reached: {why}")]
    Unreachable {
        /// What the system says.
        why: String,
    },
    /// A connection ended before its time.
    #[error("the connection broke: {why}")]
    Broken {
        /// What the system says.
        why: String,
    },
    /// Nothing came for too long.
    #[error("it was silent for too long within an answer")]
    Stalled,
    /// 429, 503.
    #[error("it is busy (HTTP {status})")]
    Busy {
        /// The status.
        status: u16,
        /// Seconds after which it may be asked again, if it said so.
        retry_after_s: Option<u64>,
    },
    /// A failure of the peer's own.
    #[error("it failed (HTTP {status})")]
    Failed {
        /// The status.
        status: u16,
    },
    /// It does not have what was asked for.
    #[error("it does not have what was asked for (HTTP 404)")]
    HasNot,
    /// It does not want to.
    #[error("it refuses (HTTP {status})")]
    Refused {
        /// The status.
        status: u16,
    },
    /// A tile is not the blob's.
    #[error("{0}")]
    WrongTile(#[from] WrongTile),
    /// The outboard is not the blob's.
    #[error("its outboard is not the blob's: {why}")]
    WrongOutboard {
        /// What is wrong with it.
        why: String,
    },
    /// The size is not the blob's.
    #[error("it says that the blob has {got} bytes, not {expected}")]
    WrongSize {
        /// The size that was verified or given.
        expected: u64,
        /// What it says.
        got: u64,
    },
    /// An answer has another length or range than was asked for.
    #[error("asked for {expected}, it answers {got}")]
    WrongRange {
        /// What was asked for.
        expected: String,
        /// What it answered.
        got: String,
    },
    /// It answers elsewhere.
    #[error("it redirects, which is not followed")]
    Redirected,
    /// It encodes what was asked for as it is.
    #[error("it encodes the body, though only identity was accepted")]
    Encoded,
    /// An answer that is not understood.
    #[error("its answer is refused: {what}")]
    BadAnswer {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl PeerFault {
    /// A stable name.
    pub fn code(&self) -> &'static str {
        match self {
            PeerFault::Unreachable { .. } => "unreachable",
            PeerFault::Broken { .. } => "broken",
            PeerFault::Stalled => "stalled",
            PeerFault::Busy { .. } => "busy",
            PeerFault::Failed { .. } => "failed",
            PeerFault::HasNot => "has_not",
            PeerFault::Refused { .. } => "refused",
            PeerFault::WrongTile(_) => "wrong_tile",
            PeerFault::WrongOutboard { .. } => "wrong_outboard",
            PeerFault::WrongSize { .. } => "wrong_size",
            PeerFault::WrongRange { .. } => "wrong_range",
            PeerFault::Redirected => "redirected",
            PeerFault::Encoded => "encoded",
            PeerFault::BadAnswer { .. } => "bad_answer",
        }
    }

    pub(crate) fn broken(error: std::io::Error) -> PeerFault {
        PeerFault::Broken { why: error.to_string() }
    }
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Verified bytes that are there, those from before included.
    pub verified: u64,
    /// Bytes of the blob.
    pub size: u64,
    /// The peer that sent the last of them, by its place in the list.
    pub peer: Option<usize>,
}

/// What one peer did.
#[derive(Debug)]
pub struct PeerReport {
    /// The peer.
    pub address: PeerAddress,
    /// Verified bytes that it was the first to send.
    pub bytes: u64,
    /// Their tiles.
    pub tiles: u64,
    /// Requests that failed and were worth another try.
    pub retries: u64,
    /// Its last failure.
    pub fault: Option<PeerFault>,
    /// Whether it took part no longer because of it.
    pub dropped: bool,
}

/// What a fetch did.
#[derive(Debug)]
pub struct FetchReport {
    /// The peers, in the order in which they were named.
    pub peers: Vec<PeerReport>,
    /// Tiles that other blobs of the store had.
    pub local_tiles: u64,
    /// Tiles that were there from an earlier fetch.
    pub resumed_tiles: u64,
    /// Tiles that were asked of a second peer because the first was slow.
    pub stolen_tiles: u64,
    /// From the call to the whole blob, flushed.
    pub duration: Duration,
    /// From the call to the last verified tile in its file, which may not be flushed yet.
    pub arrived: Duration,
    /// From the call to the first tile that was verified.
    pub first_tile: Option<Duration>,
}

/// A blob that is whole, and how it came.
#[derive(Debug)]
pub struct Fetched {
    /// The blob.
    pub blob: Blob,
    /// How it came.
    pub report: FetchReport,
}

/// Why a blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody to ask.
    #[error("there is no peer to fetch {hash} from; name at least one")]
    NoPeers {
        /// The blob.
        hash: BlobHash,
    },
    /// More peers than the limit.
    #[error("{got} peers were named, at most {most} take part in a fetch")]
    TooManyPeers {
        /// How many were named.
        got: usize,
        /// How many may be.
        most: usize,
    },
    /// Everyone failed. What came stays, and the next fetch resumes.
    #[error(
        "no peer is left to fetch {hash} from; what came is kept, try again later or name others: {}",
        Reasons(peers)
    )]
    NoPeerLeft {
        /// The blob.
        hash: BlobHash,
        /// Why, for each peer.
        peers: Vec<PeerReport>,
    },
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The writing thread did not survive.
    #[error("the writer of the fetch ended unexpectedly; what it saved is kept")]
    WriterLost,
}

struct Reasons<'a>(&'a [PeerReport]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, peer) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}", peer.address)?;
            if let Some(fault) = &peer.fault {
                write!(f, " ({}): {fault}", fault.code())?;
            }
        }
        Ok(())
    }
}

impl FetchError {
    /// A stable name.
    pub fn code(&self) -> &'static str {
        match self {
            FetchError::NoPeers { .. } => "no_peers",
            FetchError::TooManyPeers { .. } => "too_many_peers",
            FetchError::NoPeerLeft { .. } => "no_peer_left",
            FetchError::Store(error) => error.code(),
            FetchError::WriterLost => "writer_lost",
        }
    }
}
