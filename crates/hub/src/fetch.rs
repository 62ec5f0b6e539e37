//! Fetching a blob from many peers, none of whom is trusted ([docs/hub.md](../../../docs/hub.md), Fetching).
//!
//! Invariant: a byte reaches the store only after its tile was verified under the blob's name. A peer that sends a wrong one takes
//! no further part; what it sent before stands. Dropping the future at any moment leaves a partial that the next fetch resumes: the
//! drop waits for the writer, which saves what it has.

mod flight;
pub(crate) mod http;
mod plan;
mod report;
mod runs;
mod session;
mod writer;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use report::{FetchError, FetchReport, Fetched, PeerFault, PeerReport, Progress};
pub use session::fetch;

use crate::limits;
use crate::rate::Rate;

/// Which tiles of a blob are to come first; clones are the same list, which may change while a fetch is under way.
#[derive(Clone, Debug, Default)]
pub struct First(Arc<Mutex<Vec<Range<u64>>>>);

impl First {
    /// From now on these tiles are asked for before others, in this order. What was asked for stays asked for.
    pub fn set(&self, tiles: Vec<Range<u64>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = tiles;
    }

    fn get(&self) -> Vec<Range<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a fetch behaves.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Bytes a second from all peers together.
    pub rate: Rate,
    /// Connections to one peer.
    pub connections_per_peer: usize,
    /// Connections to all peers; each has at least one.
    pub connections_max: usize,
    /// Time in which a connection must stand.
    pub connect_timeout: Duration,
    /// Time in which the head of an answer must be there.
    pub head_timeout: Duration,
    /// Silence within a body after which a connection counts as broken.
    pub stall_timeout: Duration,
    /// Pause before a peer is asked again what it has.
    pub have_again: Duration,
    /// Bytes between two saves.
    pub save_bytes: u64,
    /// Time between two saves.
    pub save_time: Duration,
    /// What comes first; otherwise hosts that fetch the same blob at the same time begin in different places.
    pub first: First,
}

impl Default for FetchOptions {
    fn default() -> FetchOptions {
        FetchOptions {
            rate: Rate::UNLIMITED,
            connections_per_peer: limits::CONNECTIONS_PER_PEER,
            connections_max: limits::CONNECTIONS_MAX,
            connect_timeout: limits::CONNECT_TIMEOUT,
            head_timeout: limits::HEAD_TIMEOUT,
            stall_timeout: limits::STALL_TIMEOUT,
            have_again: limits::HAVE_AGAIN,
            save_bytes: limits::SAVE_BYTES,
            save_time: limits::SAVE_TIME,
            first: First::default(),
        }
    }
}
