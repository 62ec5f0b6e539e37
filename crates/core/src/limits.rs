//! Limits on what other parties may send, each with its reason. Tests stand at the limit and one past it.

/// Most bytes of one canonical value: a chat of [`PROMPT_BYTES_MAX`] with its ids and digests fits.
pub const CANONICAL_BYTES_MAX: usize = 16 << 20;
/// Most bytes of text in a prompt, all messages together.
pub const PROMPT_BYTES_MAX: usize = 4 << 20;
/// Most messages of a conversation.
pub const MESSAGES_MAX: usize = 4096;
/// Most token ids of a prompt or an answer.
pub const TOKENS_MAX: usize = 1 << 20;
/// Most stop strings: what OpenAI's clients may send.
pub const STOP_STRINGS_MAX: usize = 4;
/// Most bytes of a stop string: what a stream may have to hold back.
pub const STOP_STRING_BYTES_MAX: usize = 256;
/// Highest temperature, in millionths: OpenAI's range ends at 2.
pub const TEMPERATURE_MICRO_MAX: u32 = 2_000_000;
/// A whole, in millionths.
pub const ONE_MICRO: u32 = 1_000_000;
