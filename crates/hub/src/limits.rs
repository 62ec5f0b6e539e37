//! Every limit of a transfer, in one place. Those that operators or tests set are defaults of [`FetchOptions`] and
//! [`ServerOptions`].
//!
//! [`FetchOptions`]: crate::fetch::FetchOptions
//! [`ServerOptions`]: crate::server::ServerOptions

use std::time::Duration;

/// Most peers of one fetch.
pub const PEERS_MAX: usize = 64;
/// Connections to one peer.
pub const CONNECTIONS_PER_PEER: usize = 4;
/// Connections of one fetch, over all peers; a peer always has one.
pub const CONNECTIONS_MAX: usize = 16;
/// Bytes of a buffer in which tiles are received, verified and written: small enough to stay in a core's cache.
pub const BUFFER_BYTES: usize = 256 << 10;
/// Verified buffers that wait for the writer.
pub const WRITES_WAITING_MAX: usize = 16;
/// Tiles of the first range that a peer is asked for.
pub const RANGE_TILES_FIRST: u64 = 64;
/// Most tiles of a range: 8 MiB.
pub const RANGE_TILES_MAX: u64 = 512;
/// Tiles under which a range is not shortened because the end is near.
pub const RANGE_TILES_MIN: u64 = 16;
/// What is to come first is asked for in ranges so many times shorter, so that a list that changes is soon followed.
pub const RANGE_FIRST_PARTS: u64 = 4;
/// Time that a range should take at the speed that a peer has shown.
pub const RANGE_TIME: Duration = Duration::from_millis(500);
/// What another peer still needs this long for is worth stealing.
pub const STEAL_AFTER: Duration = Duration::from_millis(200);
/// Failures in a row after which a peer is given up.
pub const RETRIES_MAX: u32 = 5;
/// Pauses in a row that a busy peer may ask for before it is given up.
pub const PAUSES_MAX: u32 = 100;
/// Pause after the first failure; it doubles with each.
pub const BACKOFF: Duration = Duration::from_millis(50);
/// Longest pause after a failure, and the longest that a peer may ask for.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Asks for what a peer has that may bring nothing in a row.
pub const HAVE_ASKS_MAX: u32 = 20;
/// Pause before a peer is asked again what it has; it doubles up to four times.
pub const HAVE_AGAIN: Duration = Duration::from_secs(1);
/// Most runs of tiles in an answer to `have`: what is beyond is left out, which is allowed.
pub const HAVE_RUNS_MAX: usize = 4096;
/// Most bytes of an answer to `have`, and of an error.
pub const JSON_BYTES_MAX: usize = 256 << 10;
/// Most bytes of the head of an answer.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most headers of an answer.
pub const HEADERS_MAX: usize = 64;
/// Most interim answers (1xx) before an answer.
pub const INTERIM_ANSWERS_MAX: usize = 4;
/// Time in which a connection must stand.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which the head of an answer must be there.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Silence after which a connection counts as broken.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Speed below which an outboard, a tile list or what a peer has is not waited for, beyond the time of a silence.
pub const BODY_BYTES_PER_S_MIN: u64 = 16 << 10;
/// Time after which the next peer is asked for an outboard or a tile list too, if the one before has not delivered it.
pub const ASK_NEXT_AFTER: Duration = Duration::from_millis(100);
/// Bytes between two saves of a partial.
pub const SAVE_BYTES: u64 = 256 << 20;
/// Time between two saves of a partial.
pub const SAVE_TIME: Duration = Duration::from_secs(10);
/// Rest of an answer that is read to keep its connection, instead of closing it.
pub const DRAIN_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a frame of a body that the server sends.
pub const FRAME_BYTES: u64 = 1 << 20;
/// Requests that a server answers at the same time; more get 503.
pub const REQUESTS_MAX: usize = 256;
/// Connections that a server holds; more are closed at once.
pub const SERVER_CONNECTIONS_MAX: usize = 1024;
/// Requests on one iroh connection at the same time.
pub const STREAMS_MAX: u32 = 64;
/// Seconds after which whoever got 503 may ask again.
pub const RETRY_AFTER_S: u64 = 1;
/// Time in which the head of a request must be there; an idle connection is closed after it too.
pub const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which a client may take nothing of an answer before its connection is closed.
pub const SEND_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes that a rate lets through at once after a pause, as time at that rate.
pub const RATE_BURST: Duration = Duration::from_millis(100);
