//! Limits of the epoch builder, each with its reason. Tests stand at the limit and one past it.

/// Most models with fees in a batch: `Epochs.SHARES_MAX`.
pub const SHARES_MAX: usize = 16;
/// Most leaves of a batch: `Epochs.COUNT_MAX`. The panel of auditors may allow fewer, which the caller says
/// ([`super::Terms::count_max`]).
pub const COUNT_MAX: u32 = 1 << 24;
/// Most receipts of one [`super::Builder::append_many`]: they are written by one call and shared by one flush.
pub const GROUP_MAX: usize = 16_384;
/// From the end of the last batch, how far a sequence number may lie: one batch of the most leaves. It bounds the index in
/// memory at 4 bytes a number, 64 MiB.
pub const SPAN_MAX: u64 = COUNT_MAX as u64;
/// Largest sequence number, so that no sum of a number and a batch's length passes 64 bits.
pub const SEQUENCE_MAX: u64 = u64::MAX - 2 * SPAN_MAX;
/// Records after which a journal is full and the next one begins: what is no longer needed is removed by whole journals.
pub const JOURNAL_RECORDS: u32 = 65_536;
/// Most bytes of a journal: it may pass [`JOURNAL_RECORDS`] by less than one group.
pub const JOURNAL_BYTES_MAX: u64 =
    (JOURNAL_RECORDS as u64 + GROUP_MAX as u64) * super::record::RECORD_BYTES as u64;
/// Records that are read at once while sealing.
pub const WINDOW_RECORDS: u32 = 1024;
/// Such windows kept in memory, 100 KiB each: receipts that came within so many windows of each other are read once.
pub const WINDOWS_MAX: usize = 32;
/// Leaves of a block, a power of two: a proof reads one block and hashes it; nodes below its top are not stored.
pub const BLOCK_LEAVES: usize = 256;
/// Batches kept at once: years of days.
pub const BATCHES_MAX: usize = 1024;
/// Most bytes of the file of states.
pub const STATE_BYTES_MAX: u64 = 1 << 20;
/// Files held open.
pub const HANDLES_MAX: usize = 16;
