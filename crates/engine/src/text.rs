//! Text to ids and back: tokenizer, chat template, streaming.
//!
//! Whatever a client writes is text: the name of a special token inside a message or prompt never becomes that token.
//! Only the model's chat template can write special tokens. Nothing here reads the clock, the environment or a file.

use std::collections::{BTreeMap, BTreeSet};

use assay_core::request::{Message, Prompt, Tool, ToolCall};
use tokenizers::normalizer::Range;
use tokenizers::{Model as _, OffsetType, PostProcessor as _, PreTokenizer as _};

use crate::artifact::TextModel;

pub(crate) mod charsmap;
pub mod guide;
mod special;
mod spelling;
mod stream;
pub mod template;
pub mod tools;

use special::Specials;
use spelling::Spelling;
pub use stream::TextStream;
pub use template::TemplateError;

/// Why text cannot become ids.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer's bytes are not a `tokenizer.json`.
    #[error("the tokenizer cannot be loaded: {0}")]
    Tokenizer(String),
    /// The tokenizer fails on a text.
    #[error("the tokenizer cannot encode this text: {0}")]
    Encode(String),
    /// The chat template does not take these messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The form that an answer must have cannot be followed.
    #[error("the form of the answer cannot be followed: {0}")]
    Guide(String),
}

impl TextError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            TextError::Tokenizer(_) => "text_tokenizer",
            TextError::Encode(_) => "text_encode",
            TextError::Template(_) => "text_template",
            TextError::Guide(_) => "text_guide",
        }
    }
}

/// A model's tokenizer and chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    text: TextModel,
    specials: Specials,
    spelling: Spelling,
    /// What stands for text that the vocabulary does not have: the only special token that text can become.
    unknown: Option<u32>,
    compiler: guide::Compiler,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From an artifact's parts.
    pub fn new(text: &TextModel, tokenizer_json: &[u8]) -> Result<Tokenizer, TextError> {
        // The tokenizers crate panics on some malformed JSON: only what parses as a whole reaches it.
        let json = serde_json::from_slice::<serde_json::Value>(tokenizer_json)
            .map_err(|e| TextError::Tokenizer(e.to_string()))?;
        charsmap::check_all(&json["normalizer"]).map_err(TextError::Tokenizer)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json)
            .map_err(|e| TextError::Tokenizer(e.to_string()))?;
        inner.set_encode_special_tokens(true);
        // Padding and truncation settings of training time have no place in serving.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TextError::Tokenizer(e.to_string()))?;
        let added: BTreeMap<_, _> = inner.get_added_tokens_decoder().into_iter().collect();
        let specials = Specials::new(added.into_iter().filter(|(_, t)| t.special))
            .map_err(|e| TextError::Tokenizer(e.to_string()))?;
        let model = &json["model"];
        let by_name = model["unk_token"].as_str().and_then(|name| inner.token_to_id(name));
        let unknown = by_name.or_else(|| model["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok()));
        let spelling = Spelling::new(inner.get_decoder());
        Ok(Tokenizer {
            inner,
            text: text.clone(),
            specials,
            spelling,
            unknown,
            compiler: guide::Compiler::default(),
        })
    }

    /// Number of ids that the tokenizer knows.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// One above the highest id that text can become.
    pub fn id_limit(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1))
    }

    /// The id of a token by name.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids of a prompt of any kind.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, TextError> {
        match prompt {
            Prompt::Chat { messages, tools } => self.encode_chat(messages, tools),
            Prompt::Text(text) => self.encode_text(text),
            Prompt::Tokens(ids) => Ok(ids.clone()),
        }
    }

    /// Ids of a text, after the beginning-of-sequence token if the model wants one.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids: Vec<u32> = self.text.bos.filter(|_| self.text.add_bos).into_iter().collect();
        self.encode_plain(text, &mut ids)?;
        Ok(ids)
    }

    /// Ids of a text for an encoder: with the special tokens that the tokenizer's post-processor puts around it (`[CLS]` and
    /// `[SEP]`, say), cut at its end so that there are at most `max`. Names of special tokens in the text are text.
    pub fn encode_for_embedding(&self, text: &str, max: usize) -> Result<Vec<u32>, TextError> {
        let around = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let room = max.checked_sub(around).ok_or_else(|| {
            TextError::Encode(format!(
                "{max} tokens are fewer than the {around} that stand around every text"
            ))
        })?;
        let mut ids = Vec::new();
        self.encode_plain(text, &mut ids)?;
        ids.truncate(room);
        let tokens = ids.into_iter().map(|id| tokenizers::Token::new(id, String::new(), (0, 0))).collect();
        let encoding = tokenizers::Encoding::from_tokens(tokens, 0);
        let whole = self.inner.post_process(encoding, None, true);
        Ok(whole.map_err(|e| TextError::Encode(e.to_string()))?.get_ids().to_vec())
    }

    /// The bytes that an id adds to a text; none for special tokens and ids that are no token. Where a text begins with a space
    /// that the tokenizer put there, the first token's bytes have it; a token that begins a word of a vocabulary of words
    /// begins with a space.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        if self.is_special(id) {
            return Vec::new();
        }
        let added = self.inner.get_added_vocabulary().simple_id_to_token(id);
        let token = added.or_else(|| self.inner.id_to_token(id));
        token.map(|t| self.spelling.bytes(&t)).unwrap_or_default()
    }

    /// Appends the ids of text in which nothing is special.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        if text.is_empty() {
            return Ok(());
        }
        let fail = |e: tokenizers::Error| TextError::Encode(e.to_string());
        let encoding = self.inner.encode_fast(text, false).map_err(fail)?;
        // A unigram model looks for every piece in a text, also for those that are no text. Its importer makes them the last
        // choice, but where a text has characters that the vocabulary does not have, the last choice may be left.
        let bytes = if self.is_unigram() { special::byte_names(text) } else { BTreeSet::new() };
        let forged = |id: &u32| {
            let named = || self.inner.id_to_token(*id).is_some_and(|name| bytes.contains(name.as_str()));
            (self.is_special(*id) && Some(*id) != self.unknown) || (!bytes.is_empty() && named())
        };
        if !encoding.get_ids().iter().any(forged) {
            ids.extend_from_slice(encoding.get_ids());
            return Ok(());
        }
        let cut = self.encode_cut(text).map_err(fail)?;
        ids.extend(cut.get_ids().iter().filter(|id| !self.is_special(**id) || Some(**id) == self.unknown));
        Ok(())
    }

    fn is_unigram(&self) -> bool {
        matches!(self.inner.get_model(), tokenizers::ModelWrapper::Unigram(_))
    }

    /// Encodes a text cut inside every name of a token that is no text, so that none is whole.
    fn encode_cut(&self, text: &str) -> tokenizers::Result<tokenizers::Encoding> {
        let added = self.inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        pieces.split(|_, piece| {
            let parts = self.specials.inside(piece.get());
            Ok(parts.into_iter().filter_map(move |part| piece.slice(Range::Normalized(part))))
        })?;
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
        pieces.into_encoding(None, 0, OffsetType::None)
    }

    /// The conversation as the model's template renders it.
    pub fn render_chat(&self, messages: &[Message], tools: &[Tool]) -> Result<String, TextError> {
        let token = |id: u32| self.inner.id_to_token(id).unwrap_or_default();
        let bos = self.text.bos.map(token).unwrap_or_default();
        let eos = self.text.end_tokens.first().copied().map(token).unwrap_or_default();
        let template = &self.text.chat_template;
        let calls = messages.iter().any(|m| !m.tool_calls.is_empty() || m.tool_call_id.is_some());
        if (calls || !tools.is_empty()) && !tools::template_knows_tools(template) {
            let plain = tools::in_words(messages, tools);
            return Ok(template::render(template, &plain, &[], &bos, &eos)?);
        }
        Ok(template::render(template, messages, tools, &bos, &eos)?)
    }

    /// How the model writes calls of tools.
    pub fn call_syntax(&self) -> tools::Syntax {
        tools::Syntax::of(&self.text.chat_template)
    }

    /// Ids of a conversation.
    pub fn encode_chat(&self, messages: &[Message], tools: &[Tool]) -> Result<Vec<u32>, TextError> {
        let disarm = |text: &str| self.specials.disarm(text);
        let plain: Vec<Message> = messages
            .iter()
            .map(|m| Message {
                role: m.role,
                content: disarm(&m.content),
                name: m.name.as_deref().map(disarm),
                tool_calls: m
                    .tool_calls
                    .iter()
                    .map(|c| ToolCall {
                        id: disarm(&c.id),
                        name: disarm(&c.name),
                        arguments: disarm(&c.arguments),
                    })
                    .collect(),
                tool_call_id: m.tool_call_id.as_deref().map(disarm),
            })
            .collect();
        let tools: Vec<Tool> = tools
            .iter()
            .map(|t| Tool {
                name: disarm(&t.name),
                description: t.description.as_deref().map(disarm),
                parameters: disarm(&t.parameters),
            })
            .collect();
        let rendered = self.render_chat(&plain, &tools)?;
        let mut ids = Vec::new();
        if !self.text.has_chat_template {
            ids.extend(self.text.bos.filter(|_| self.text.add_bos));
        }
        for piece in self.specials.split(&rendered) {
            self.encode_plain(&special::rearm(piece.text), &mut ids)?;
            ids.extend(piece.special);
        }
        Ok(ids)
    }

    /// Text of ids, special tokens left out: what a [`TextStream`] gives for them.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// A stream of ids that becomes text as soon as characters are complete.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    fn decode_run(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    fn is_special(&self, id: u32) -> bool {
        self.specials.contains(id)
    }
}
