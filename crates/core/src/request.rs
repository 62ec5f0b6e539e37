//! What a client asked for, in the canonical form that is hashed, receipted and replayed.
//!
//! Every fraction is a whole number of millionths: the API layer converts the client's decimals once, and nothing
//! after it sees a float. What is not in a [`Request`] cannot influence the answer.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use crate::id::{ModelRoot, Nonce, RequestHash};
use crate::keccak::keccak256;
use crate::limits;

/// One generation request.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Root of the model that must answer.
    pub model: ModelRoot,
    /// What the model reads.
    pub prompt: Prompt,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Most tokens to generate; 0 for as many as the model's window holds.
    pub max_tokens: u32,
    /// Texts that end the answer; none is part of it. At most [`crate::limits::STOP_STRINGS_MAX`].
    pub stop: Vec<String>,
}

/// What the model reads.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Chat(Vec<Message>),
    /// Text, tokenised as it is, after the model's beginning-of-sequence token if it has one.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. Special tokens in it are plain text.
    pub content: String,
    /// Name of the speaker, if the client gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Who speaks. OpenAI's `developer` is [`Role::System`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// The name that chat templates expect.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// How the next token is chosen (`docs/semantics.md`, section on sampling).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Temperature in millionths; below 10 000 (0.01) the most likely token is taken.
    pub temperature_micro: u32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens up to this probability mass, in millionths; 1 000 000 keeps all.
    pub top_p_micro: u32,
    /// Drop tokens less likely than this share of the most likely one, in millionths; 0 drops none.
    pub min_p_micro: u32,
    /// The client's seed.
    pub seed: Option<u64>,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Sampling =
        Sampling { temperature_micro: 0, top_k: 0, top_p_micro: 1_000_000, min_p_micro: 0, seed: None };
}

impl Canonical for Request {
    const TAG: &'static str = "assay/request/1";
}

/// A request that asks for what no node may grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{param}` is {got}, but may be {expected}")]
pub struct RequestError {
    /// Name of the field, as the API calls it.
    pub param: &'static str,
    /// What it is.
    pub got: String,
    /// What it may be.
    pub expected: String,
}

impl Request {
    /// The hash that receipts carry.
    pub fn hash(&self) -> RequestHash {
        RequestHash::from_bytes(*self.canonical_hash().as_bytes())
    }

    /// Checks every field against [`limits`].
    pub fn check(&self) -> Result<(), RequestError> {
        let (param, got, most) = match &self.prompt {
            Prompt::Chat(m) => ("messages", m.len(), limits::MESSAGES_MAX),
            Prompt::Text(t) => ("prompt", t.len(), limits::PROMPT_BYTES_MAX),
            Prompt::Tokens(t) => ("prompt", t.len(), limits::TOKENS_MAX),
        };
        within(param, got, 0, most)?;
        if let Prompt::Chat(messages) = &self.prompt {
            let bytes = messages.iter().fold(0usize, |n, m| n.saturating_add(m.content.len()));
            within("messages", bytes, 0, limits::PROMPT_BYTES_MAX)?;
        }
        within("stop", self.stop.len(), 0, limits::STOP_STRINGS_MAX)?;
        for s in &self.stop {
            within("stop", s.len(), 1, limits::STOP_STRING_BYTES_MAX)?;
        }
        let s = &self.sampling;
        within("temperature", s.temperature_micro, 0, limits::TEMPERATURE_MICRO_MAX)?;
        within("top_p", s.top_p_micro, 1, limits::ONE_MICRO)?;
        within("min_p", s.min_p_micro, 0, limits::ONE_MICRO)
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    param: &'static str,
    got: T,
    least: T,
    most: T,
) -> Result<(), RequestError> {
    if got >= least && got <= most {
        return Ok(());
    }
    Err(RequestError { param, got: got.to_string(), expected: format!("{least} to {most}") })
}

/// Seed of the sampler: neither client nor provider chooses it alone.
pub fn sampler_seed(nonce: Nonce, request: RequestHash, model: ModelRoot) -> [u8; 32] {
    *keccak256(&[b"assay/seed/1", nonce.as_bytes(), request.as_bytes(), model.as_bytes()]).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            model: ModelRoot::ZERO,
            prompt: Prompt::Text("Once".into()),
            sampling: Sampling::GREEDY,
            max_tokens: 8,
            stop: vec![],
        }
    }

    #[test]
    fn limits_hold_at_the_limit_and_not_one_past() {
        let check = |change: &dyn Fn(&mut Request), ok: bool| {
            let mut r = request();
            change(&mut r);
            assert_eq!(r.check().is_ok(), ok, "{:?}", r.check());
        };
        check(&|r| r.stop = vec!["x".into(); limits::STOP_STRINGS_MAX], true);
        check(&|r| r.stop = vec!["x".into(); limits::STOP_STRINGS_MAX + 1], false);
        check(&|r| r.stop = vec!["x".repeat(limits::STOP_STRING_BYTES_MAX)], true);
        check(&|r| r.stop = vec!["x".repeat(limits::STOP_STRING_BYTES_MAX + 1)], false);
        check(&|r| r.stop = vec![String::new()], false);
        check(&|r| r.sampling.temperature_micro = limits::TEMPERATURE_MICRO_MAX, true);
        check(&|r| r.sampling.temperature_micro = limits::TEMPERATURE_MICRO_MAX + 1, false);
        check(&|r| r.sampling.top_p_micro = 0, false);
        check(&|r| r.sampling.top_p_micro = limits::ONE_MICRO + 1, false);
        check(&|r| r.sampling.min_p_micro = limits::ONE_MICRO + 1, false);
        check(&|r| r.prompt = Prompt::Text("x".repeat(limits::PROMPT_BYTES_MAX)), true);
        check(&|r| r.prompt = Prompt::Text("x".repeat(limits::PROMPT_BYTES_MAX + 1)), false);
        check(&|r| r.prompt = Prompt::Tokens(vec![0; limits::TOKENS_MAX + 1]), false);
        let message = Message { role: Role::User, content: "x".into(), name: None };
        check(&|r| r.prompt = Prompt::Chat(vec![message.clone(); limits::MESSAGES_MAX]), true);
        check(&|r| r.prompt = Prompt::Chat(vec![message.clone(); limits::MESSAGES_MAX + 1]), false);
    }

    #[test]
    fn canonical_bytes_have_one_form() {
        let r = request();
        let bytes = r.to_canonical_bytes();
        assert_eq!(Request::from_canonical_bytes(&bytes), Ok(r.clone()));
        for cut in 0..bytes.len() {
            assert!(Request::from_canonical_bytes(&bytes[..cut]).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Request::from_canonical_bytes(&longer).is_err());
        let mut other = bytes;
        other[1] ^= 1;
        assert!(Request::from_canonical_bytes(&other).is_err());
        assert_ne!(Request { max_tokens: 9, ..r.clone() }.hash(), r.hash());
    }
}
