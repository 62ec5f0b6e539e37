//! Limits on what other parties may send, each with its reason. Tests stand at the limit and one past it.

/// Most bytes of one canonical value, unless its kind has another limit: a chat of [`PROMPT_BYTES_MAX`] with its ids and digests fits.
pub const CANONICAL_BYTES_MAX: usize = 16 << 20;
/// Most bytes of a light key: the largest models need tens of millions.
pub const LIGHT_KEY_BYTES_MAX: usize = 256 << 20;
/// Most bytes of a light opening: eight tokens of the largest models, with the keys and values of a few thousand positions.
pub const LIGHT_OPENING_BYTES_MAX: usize = 1 << 30;
/// Most tokens that one light audit opens.
pub const LIGHT_TOKENS_MAX: u32 = 64;
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
/// Most tools of a conversation: OpenAI's limit.
pub const TOOLS_MAX: usize = 128;
/// Most bytes of a tool's name: OpenAI's limit.
pub const TOOL_NAME_BYTES_MAX: usize = 64;
/// Most bytes of a schema, an expression, a grammar, or of all tools' descriptions and schemas together.
pub const GUIDE_BYTES_MAX: usize = 256 << 10;
/// Most answers to one question: OpenAI's limit.
pub const CHOICES_MAX: u32 = 128;
/// Most tokens whose probabilities are told beside the chosen one's: OpenAI's limit.
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// Largest presence and frequency penalty, in millionths: OpenAI's range.
pub const PENALTY_MICRO_MAX: i32 = 2_000_000;
/// Range of the repetition penalty, in millionths.
pub const REPETITION_MICRO: (u32, u32) = (10_000, 10_000_000);
/// Most tokens with a bias.
pub const BIASES_MAX: usize = 1024;
/// Largest bias, in millionths: OpenAI's range.
pub const BIAS_MICRO_MAX: i32 = 100_000_000;
/// Most texts that are embedded by one request: OpenAI's limit.
pub const EMBEDDING_INPUTS_MAX: usize = 2048;
/// Most bytes of the state at one layer boundary: 32 Ki positions of 8192 numbers.
pub const BOUNDARY_BYTES_MAX: usize = (1 << 30) + 64;
