//! From output ids to the answer's text and the reason it ended: a function of the ids and the request alone, so that a
//! verifier replays exactly what the provider did.

use assay_core::transcript::StopReason;

use crate::text::{TextStream, Tokenizer};

/// What ends an answer.
#[derive(Clone, Debug)]
pub struct StopRules {
    /// Ids that end it and are not part of its text.
    pub end_tokens: Vec<u32>,
    /// Texts that end it and are not part of it; none is empty.
    pub stop: Vec<String>,
    /// Most tokens; 0 for no limit but the window.
    pub max_tokens: u32,
    /// Positions of the model's window.
    pub context: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
}

/// An answer as it grows.
pub struct Transcriber<'a> {
    rules: StopRules,
    stream: TextStream<'a>,
    text: String,
    /// Bytes of `text` that were handed out.
    released: usize,
    tokens: u32,
    stopped: Option<StopReason>,
}

impl<'a> Transcriber<'a> {
    /// An empty answer.
    pub fn new(tokenizer: &'a Tokenizer, rules: StopRules) -> Self {
        Transcriber {
            rules,
            stream: tokenizer.stream(),
            text: String::new(),
            released: 0,
            tokens: 0,
            stopped: None,
        }
    }

    /// Takes the next id and says why the answer ends with it, if it does. After an end, ids are ignored.
    pub fn push(&mut self, id: u32) -> Option<StopReason> {
        if self.stopped.is_some() {
            return self.stopped;
        }
        self.tokens += 1;
        self.stopped = self.judge(id);
        if self.stopped.is_some() && !matches!(self.stopped, Some(StopReason::StopString(_))) {
            let rest = self.stream.finish();
            self.append(&rest);
        }
        self.stopped
    }

    /// Ends the answer here, unless it has ended: nothing more is held back. Why it ended.
    pub fn cancel(&mut self) -> StopReason {
        if let Some(stop) = self.stopped {
            return stop;
        }
        self.stopped = Some(StopReason::Cancelled);
        let rest = self.stream.finish();
        self.append(&rest);
        StopReason::Cancelled
    }

    fn judge(&mut self, id: u32) -> Option<StopReason> {
        if self.rules.end_tokens.contains(&id) {
            return Some(StopReason::EndToken);
        }
        let new = self.stream.push(id);
        if let Some(stop) = self.append(&new) {
            return Some(stop);
        }
        if self.rules.max_tokens != 0 && self.tokens >= self.rules.max_tokens {
            return Some(StopReason::Length);
        }
        (self.rules.prompt_tokens.saturating_add(self.tokens) >= self.rules.context)
            .then_some(StopReason::Window)
    }

    /// Appends text; cuts it at the first stop string, of several that start there the first listed.
    fn append(&mut self, new: &str) -> Option<StopReason> {
        if new.is_empty() {
            return None;
        }
        let longest = self.rules.stop.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(new);
        let tail = &self.text[from..];
        let found =
            self.rules.stop.iter().enumerate().filter_map(|(i, s)| tail.find(s.as_str()).map(|at| (at, i)));
        let (at, i) = found.min()?;
        self.text.truncate(from + at);
        Some(StopReason::StopString(i as u8))
    }

    /// Text that has become certain since the last call: what may be the beginning of a stop string is held back.
    pub fn take_text(&mut self) -> &str {
        let end = if self.stopped.is_some() { self.text.len() } else { self.certain() };
        let from = self.released;
        self.released = end.max(from);
        &self.text[from..self.released]
    }

    fn certain(&self) -> usize {
        let held = |s: &String| {
            let most = s.len().saturating_sub(1).min(self.text.len() - self.released);
            (1..=most).rev().find(|n| self.text.as_bytes().ends_with(&s.as_bytes()[..*n])).unwrap_or(0)
        };
        let mut end = self.text.len() - self.rules.stop.iter().map(held).max().unwrap_or(0);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        end
    }

    /// The whole text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why it ended, if it has.
    pub fn stopped(&self) -> Option<StopReason> {
        self.stopped
    }
}
