//! What a client hears of tokens: text, calls of tools, probabilities. It changes nothing in what is signed.

use std::sync::Arc;

use assay_api::{Event, Logprob, TokenChance};
use assay_core::id::ReceiptId;
use assay_core::keccak::keccak256;
use assay_core::transcript::TokenLogprobs;
use assay_engine::text::Tokenizer;
use assay_engine::text::tools::{CallFinder, Part};

/// Turns tokens into what a client hears: text, calls of tools, probabilities.
pub(super) struct Teller {
    tokenizer: Arc<Tokenizer>,
    finder: Option<CallFinder>,
    calls: u32,
    receipt_id: ReceiptId,
}

impl Teller {
    /// `finder` tells calls from text, where tools may be called.
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        finder: Option<CallFinder>,
        receipt_id: ReceiptId,
    ) -> Teller {
        Teller { tokenizer, finder, calls: 0, receipt_id }
    }

    /// What a token with its text adds; nothing, while that may still become a call.
    pub(super) fn token(&mut self, id: u32, text: &str, logprobs: Option<TokenLogprobs>) -> Vec<Event> {
        let chance = |(id, logprob)| TokenChance { bytes: self.tokenizer.token_bytes(id), logprob };
        let told = logprobs
            .map(|p| Logprob { token: chance((id, p.chosen)), top: p.top.into_iter().map(chance).collect() });
        let logprobs: Vec<Logprob> = told.into_iter().collect();
        let Some(finder) = &mut self.finder else {
            let silent = text.is_empty() && logprobs.is_empty();
            let event = Event::Text { text: text.to_owned(), logprobs };
            return if silent { vec![] } else { vec![event] };
        };
        let parts = finder.push(text);
        let mut events = self.events(parts);
        if !logprobs.is_empty() {
            events.push(Event::Text { text: String::new(), logprobs });
        }
        events
    }

    /// What text adds that was held back when its token came.
    pub(super) fn rest(&mut self, text: String) -> Vec<Event> {
        match &mut self.finder {
            None => vec![Event::Text { text, logprobs: vec![] }],
            Some(finder) => {
                let parts = finder.push(&text);
                self.events(parts)
            }
        }
    }

    /// What was held back, after the last token.
    pub(super) fn finish(&mut self) -> Vec<Event> {
        let parts = self.finder.as_mut().map(CallFinder::finish).unwrap_or_default();
        self.events(parts)
    }

    fn events(&mut self, parts: Vec<Part>) -> Vec<Event> {
        let mut events = Vec::new();
        for part in parts {
            match part {
                Part::Text(text) => events.push(Event::Text { text, logprobs: vec![] }),
                Part::Call { name, arguments } => {
                    let index = self.calls;
                    self.calls += 1;
                    events.push(Event::Call { index, id: call_id(self.receipt_id, index), name });
                    events.push(Event::Arguments { index, json: arguments });
                }
            }
        }
        events
    }
}

/// Names a call: different for every call of every answer.
pub fn call_id(receipt: ReceiptId, index: u32) -> String {
    let hash = keccak256(&[b"assay/call/1", receipt.as_bytes(), &index.to_be_bytes()]);
    format!("call_{}", hex::encode(&hash.as_bytes()[..12]))
}
