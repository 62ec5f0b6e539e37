//! What a client asked for, in the canonical form that is hashed, receipted and replayed.
//!
//! Every fraction is a whole number of millionths: the API layer converts the client's decimals once, and nothing
//! after it sees a float. What is not in a [`Request`] cannot influence the answer.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use crate::consent::Consent;
use crate::id::{Hash, ModelRoot, Nonce, RequestHash};
use crate::keccak::keccak256;
use crate::limits;
use crate::merkle::{self, Proof};

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
    /// Which one of several answers to the same question: each has another seed.
    #[serde(default)]
    pub choice: u32,
    /// What the answer must look like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guide: Option<Guide>,
    /// Record the probability of every token, and of so many likeliest ones beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
    /// Whether auditors may see it.
    pub audit: Consent,
}

/// What the model reads.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// What was said.
        messages: Vec<Message>,
        /// What the model may call.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tools: Vec<Tool>,
    },
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
    /// What the assistant called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call this is the result of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message that is only text.
    pub fn text(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), name: None, tool_calls: vec![], tool_call_id: None }
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments, as text.
    pub parameters: String,
}

/// A call that the assistant made.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// Names it to its result.
    pub id: String,
    /// The function.
    pub name: String,
    /// JSON object, as text.
    pub arguments: String,
}

/// What an answer must look like. Every token that would break it is left out before one is chosen.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guide {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema, given as text, allows.
    JsonSchema(String),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// Text that a context-free grammar in llguidance's variant of Lark produces.
    Grammar(String),
    /// Calls of the prompt's tools in the form that the model knows.
    Tools {
        /// Whether there must be a call; otherwise text may stand before or instead of it.
        required: bool,
        /// The one that must be called.
        only: Option<String>,
        /// Whether there may be several calls.
        parallel: bool,
    },
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
    /// Taken off the logits of tokens that the answer has, in millionths.
    #[serde(default)]
    pub presence_micro: i32,
    /// Taken off for every time that the answer has them, in millionths.
    #[serde(default)]
    pub frequency_micro: i32,
    /// What logits of tokens in prompt or answer are divided by (multiplied with, where negative), in millionths;
    /// 1 000 000 changes nothing.
    #[serde(default = "one_micro")]
    pub repetition_micro: u32,
    /// Added to the logits of tokens, in millionths; ids rise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bias: Vec<(u32, i32)>,
}

fn one_micro() -> u32 {
    limits::ONE_MICRO
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Sampling = Sampling {
        temperature_micro: 0,
        top_k: 0,
        top_p_micro: 1_000_000,
        min_p_micro: 0,
        seed: None,
        presence_micro: 0,
        frequency_micro: 0,
        repetition_micro: 1_000_000,
        bias: Vec::new(),
    };
}

impl Canonical for Request {
    const TAG: &'static str = "assay/request/2";
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

/// The part of a request that decides how its tokens are chosen, with what shows that it is the request's.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Terms {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The leaves of the request's hash.
    pub leaves: [Hash; LEAVES],
}

/// Leaves of a request's hash: the model with the consent, the prompt, the sampling parameters, the guide, the rest.
const LEAVES: usize = 5;

impl Terms {
    /// Whether the tokens of the request with this hash are chosen like this, and within the limits; if so, whether a guide
    /// leaves only some.
    pub fn verify(&self, request: &RequestHash) -> Option<bool> {
        let [_, _, sampling, guide, _] = &self.leaves;
        let holds = merkle::root(self.leaves).as_bytes() == request.as_bytes()
            && *sampling == merkle::leaf(&bytes(&self.sampling))
            && self.sampling.check().is_ok();
        holds.then(|| *guide != merkle::leaf(&bytes(&None::<Guide>)))
    }
}

fn bytes(part: &impl BorshSerialize) -> Vec<u8> {
    // borsh writes to memory, which cannot fail.
    borsh::to_vec(part).unwrap_or_default()
}

impl Request {
    /// The hash that receipts carry: a Merkle root, so that a contract can read how tokens are chosen, and anyone the consent, without the prompt.
    pub fn hash(&self) -> RequestHash {
        RequestHash::from_bytes(*merkle::root(self.leaves()).as_bytes())
    }

    /// How the tokens of this request are chosen, for those who know only its hash.
    pub fn terms(&self) -> Terms {
        Terms { sampling: self.sampling.clone(), leaves: self.leaves() }
    }

    /// What the leaves below the hash are of, in order: with these a provider shows a contract the request of a receipt.
    pub fn items(&self) -> [Vec<u8>; LEAVES] {
        let model = self.audit.item(Request::TAG, self.model);
        let rest = (self.max_tokens, &self.stop, self.choice, self.logprobs);
        [model, bytes(&self.prompt), bytes(&self.sampling), bytes(&self.guide), bytes(&rest)]
    }

    /// The request of which [`Request::items`] are these; nothing if there is none.
    pub fn from_items(items: &[&[u8]]) -> Option<Request> {
        let [model, prompt, sampling, guide, rest] = items else { return None };
        let (model, audit) = Consent::read(model, Request::TAG)?;
        let (max_tokens, stop, choice, logprobs) = borsh::from_slice(rest).ok()?;
        Some(Request {
            model,
            prompt: borsh::from_slice(prompt).ok()?,
            sampling: borsh::from_slice(sampling).ok()?,
            max_tokens,
            stop,
            choice,
            guide: borsh::from_slice(guide).ok()?,
            logprobs,
            audit,
        })
    }

    /// The consent's place under the hash: it shows nothing of the rest.
    pub fn consent_proof(&self) -> Proof {
        // The first of five leaves has a place.
        merkle::prove(&self.leaves(), 0).unwrap_or(Proof { index: 0, count: 0, path: vec![] })
    }

    fn leaves(&self) -> [Hash; LEAVES] {
        self.items().map(|item| merkle::leaf(&item))
    }

    /// Checks every field against [`limits`].
    pub fn check(&self) -> Result<(), RequestError> {
        let (param, got, most) = match &self.prompt {
            Prompt::Chat { messages, .. } => ("messages", messages.len(), limits::MESSAGES_MAX),
            Prompt::Text(t) => ("prompt", t.len(), limits::PROMPT_BYTES_MAX),
            Prompt::Tokens(t) => ("prompt", t.len(), limits::TOKENS_MAX),
        };
        within(param, got, 0, most)?;
        if let Prompt::Chat { messages, tools } = &self.prompt {
            let sum = |all: &mut dyn Iterator<Item = usize>| all.fold(0usize, usize::saturating_add);
            let calls = |m: &Message| sum(&mut m.tool_calls.iter().map(|c| c.arguments.len()));
            let bytes = sum(&mut messages.iter().map(|m| m.content.len().saturating_add(calls(m))));
            within("messages", bytes, 0, limits::PROMPT_BYTES_MAX)?;
            within("tools", tools.len(), 0, limits::TOOLS_MAX)?;
            for tool in tools {
                within("tools", tool.name.len(), 1, limits::TOOL_NAME_BYTES_MAX)?;
            }
            let text =
                |t: &Tool| t.parameters.len().saturating_add(t.description.as_ref().map_or(0, String::len));
            within("tools", sum(&mut tools.iter().map(text)), 0, limits::GUIDE_BYTES_MAX)?;
        }
        within("stop", self.stop.len(), 0, limits::STOP_STRINGS_MAX)?;
        for s in &self.stop {
            within("stop", s.len(), 1, limits::STOP_STRING_BYTES_MAX)?;
        }
        within("n", self.choice, 0, limits::CHOICES_MAX.saturating_sub(1))?;
        within("top_logprobs", self.logprobs.unwrap_or(0), 0, limits::TOP_LOGPROBS_MAX)?;
        let guide = match &self.guide {
            Some(Guide::JsonSchema(s) | Guide::Regex(s) | Guide::Grammar(s)) => s.len(),
            _ => 0,
        };
        within("response_format", guide, 0, limits::GUIDE_BYTES_MAX)?;
        self.sampling.check()
    }
}

impl Sampling {
    /// Checks every parameter against [`limits`].
    pub fn check(&self) -> Result<(), RequestError> {
        let s = self;
        within("temperature", s.temperature_micro, 0, limits::TEMPERATURE_MICRO_MAX)?;
        within("top_p", s.top_p_micro, 1, limits::ONE_MICRO)?;
        within("min_p", s.min_p_micro, 0, limits::ONE_MICRO)?;
        let penalty = limits::PENALTY_MICRO_MAX;
        within("presence_penalty", s.presence_micro, penalty.saturating_neg(), penalty)?;
        within("frequency_penalty", s.frequency_micro, penalty.saturating_neg(), penalty)?;
        let repetition = limits::REPETITION_MICRO;
        within("repetition_penalty", s.repetition_micro, repetition.0, repetition.1)?;
        within("logit_bias", s.bias.len(), 0, limits::BIASES_MAX)?;
        let most = limits::BIAS_MICRO_MAX;
        for (_, bias) in &s.bias {
            within("logit_bias", *bias, most.saturating_neg(), most)?;
        }
        if s.bias.windows(2).any(|w| matches!(w, [(a, _), (b, _)] if a >= b)) {
            let expected = "a list of different ids in rising order".to_owned();
            return Err(RequestError { param: "logit_bias", got: "unordered".to_owned(), expected });
        }
        Ok(())
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
            choice: 0,
            guide: None,
            logprobs: None,
            audit: Consent::Given,
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
        let chat = |messages: usize, tools: usize| Prompt::Chat {
            messages: vec![Message::text(Role::User, "x"); messages],
            tools: vec![Tool { name: "f".into(), description: None, parameters: "{}".into() }; tools],
        };
        check(&|r| r.prompt = chat(limits::MESSAGES_MAX, 0), true);
        check(&|r| r.prompt = chat(limits::MESSAGES_MAX + 1, 0), false);
        check(&|r| r.prompt = chat(1, limits::TOOLS_MAX), true);
        check(&|r| r.prompt = chat(1, limits::TOOLS_MAX + 1), false);
        check(&|r| r.choice = limits::CHOICES_MAX, false);
        check(&|r| r.logprobs = Some(limits::TOP_LOGPROBS_MAX), true);
        check(&|r| r.logprobs = Some(limits::TOP_LOGPROBS_MAX + 1), false);
        check(&|r| r.guide = Some(Guide::Regex("x".repeat(limits::GUIDE_BYTES_MAX))), true);
        check(&|r| r.guide = Some(Guide::Regex("x".repeat(limits::GUIDE_BYTES_MAX + 1))), false);
        check(&|r| r.sampling.presence_micro = -limits::PENALTY_MICRO_MAX, true);
        check(&|r| r.sampling.presence_micro = limits::PENALTY_MICRO_MAX + 1, false);
        check(&|r| r.sampling.frequency_micro = -limits::PENALTY_MICRO_MAX - 1, false);
        check(&|r| r.sampling.repetition_micro = limits::REPETITION_MICRO.1, true);
        check(&|r| r.sampling.repetition_micro = limits::REPETITION_MICRO.0 - 1, false);
        check(&|r| r.sampling.bias = vec![(1, limits::BIAS_MICRO_MAX), (2, -5)], true);
        check(&|r| r.sampling.bias = vec![(1, limits::BIAS_MICRO_MAX + 1)], false);
        check(&|r| r.sampling.bias = vec![(2, 1), (2, 1)], false);
        check(&|r| r.sampling.bias = (0..=limits::BIASES_MAX as u32).map(|i| (i, 1)).collect(), false);
    }

    #[test]
    fn terms_show_how_tokens_are_chosen() {
        let plain = request();
        let guided = Request { guide: Some(Guide::JsonObject), ..request() };
        assert_eq!(plain.terms().verify(&plain.hash()), Some(false));
        assert_eq!(guided.terms().verify(&guided.hash()), Some(true));
        assert_eq!(plain.terms().verify(&guided.hash()), None);
        let mut other = plain.terms();
        other.sampling.top_k = 9;
        assert_eq!(other.verify(&plain.hash()), None);
        for i in 0..LEAVES {
            let mut other = plain.terms();
            other.leaves[i] = Hash::ZERO;
            assert_eq!(other.verify(&plain.hash()), None);
        }
        let hot =
            Request { sampling: Sampling { temperature_micro: u32::MAX, ..Sampling::GREEDY }, ..request() };
        assert_eq!(hot.terms().verify(&hot.hash()), None);
        let hashes = [
            Request { prompt: Prompt::Text("Twice".into()), ..request() }.hash(),
            Request { stop: vec!["x".into()], ..request() }.hash(),
            Request { choice: 1, ..request() }.hash(),
            Request { logprobs: Some(0), ..request() }.hash(),
            Request { model: ModelRoot::from_bytes([1; 32]), ..request() }.hash(),
            Request { audit: Consent::Withheld, ..request() }.hash(),
        ];
        assert!(hashes.iter().all(|h| *h != plain.hash()));
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
