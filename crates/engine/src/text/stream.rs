//! Ids to text, one at a time. The text of a sequence of ids *is* what this stream gives for them, so a streamed answer and
//! a whole one never differ.

use super::Tokenizer;

/// Tokens that may be held back while a character is incomplete; then they are shown as replacement characters.
const PENDING_MAX: usize = 16;

/// Turns ids into text one by one. The pieces never split a character; each costs two decodings of at most 32 ids.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Ids that matter for what comes next: some whose text is out already, then those still pending.
    ids: Vec<u32>,
    /// How many of `ids` are out.
    context: usize,
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        TextStream { tokenizer, ids: Vec::new(), context: 0 }
    }

    /// Text that the next id completes; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            return String::new();
        }
        self.ids.push(id);
        let text = self.pending();
        let whole = !text.is_empty() && !text.ends_with(char::REPLACEMENT_CHARACTER);
        if whole || self.ids.len() - self.context >= PENDING_MAX { self.release(text) } else { String::new() }
    }

    /// What is still pending, incomplete characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.pending();
        self.release(text)
    }

    fn pending(&self) -> String {
        // Some decoders strip or add a space at the start of a text: what comes after known text shows the difference.
        let before = self.tokenizer.decode_run(&self.ids[..self.context]);
        let all = self.tokenizer.decode_run(&self.ids);
        match all.strip_prefix(before.as_str()) {
            Some(text) => text.to_owned(),
            // Incomplete bytes can change how the bytes before them read, but that text is out already.
            None => self.tokenizer.decode_run(&self.ids[self.context..]),
        }
    }

    /// Hands out `text`; the ids it came from become the context. Ids without text are forgotten.
    fn release(&mut self, text: String) -> String {
        if text.is_empty() {
            self.ids.truncate(self.context);
        } else {
            self.ids.drain(..self.context);
            self.context = self.ids.len();
        }
        text
    }
}
