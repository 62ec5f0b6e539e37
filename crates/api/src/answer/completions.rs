//! How text completions look.

use serde_json::{Value, json};

use super::{
    Answer, End, Frame, Ready, Render, Tail, chance_map, data, finish_reason, logprob_json, token_text,
};
use crate::{Event, Logprob, Refusal};

/// The whole answer. `top` is how many likeliest tokens were asked for, if any probabilities were.
pub(crate) fn whole(frame: &Frame, top: Option<u8>, answers: &[Answer]) -> Value {
    let choices = answers.iter().enumerate().map(|(i, a)| {
        let logprobs = match top {
            Some(top) => logprobs_json(&a.logprobs, top, &mut 0),
            None => Value::Null,
        };
        let finish = finish_reason(a.end.stop, false);
        json!({"index": i, "text": a.text, "logprobs": logprobs, "finish_reason": finish})
    });
    frame.whole("text_completion", choices.collect(), answers)
}

/// `offset` is the number of characters that begin before the first of these tokens, and then after the last: bytes that do
/// not continue a character.
fn logprobs_json(all: &[Logprob], top: u8, offset: &mut usize) -> Value {
    let mut offsets = Vec::with_capacity(all.len());
    for l in all {
        offsets.push(*offset);
        *offset += l.token.bytes.iter().filter(|b| (**b & 0xc0) != 0x80).count();
    }
    let tokens: Vec<String> = all.iter().map(|l| token_text(&l.token.bytes)).collect();
    let chosen: Vec<Value> = all.iter().map(|l| logprob_json(l.token.logprob)).collect();
    // The chosen token is always told, so a map may have one entry more than was asked for.
    let maps = || all.iter().map(|l| chance_map(l.top.iter().chain([&l.token]))).collect::<Vec<_>>();
    let maps = if top == 0 { Value::Null } else { Value::Array(maps()) };
    json!({"tokens": tokens, "token_logprobs": chosen, "top_logprobs": maps, "text_offset": offsets})
}

/// The answer in chunks.
pub(crate) struct CompletionStream {
    tail: Tail,
    top: u8,
    /// Characters that each choice has begun.
    offsets: Vec<usize>,
}

impl CompletionStream {
    pub(crate) fn new(frame: Frame, top: Option<u8>, choices: usize) -> CompletionStream {
        let tail = Tail::new(frame, "text_completion", choices);
        CompletionStream { tail, top: top.unwrap_or(0), offsets: vec![0; choices] }
    }
}

impl Render for CompletionStream {
    fn begin(&mut self, _: &mut Ready) {}

    fn event(&mut self, choice: usize, event: Event, out: &mut Ready) {
        match event {
            Event::Text { text, logprobs } => {
                let logprobs = match self.offsets.get_mut(choice) {
                    Some(offset) if !logprobs.is_empty() => logprobs_json(&logprobs, self.top, offset),
                    _ => Value::Null,
                };
                let piece =
                    json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": null});
                out.push_back(data(&self.tail.chunk(piece)));
            }
            // There are no tools on this route.
            Event::Call { .. } | Event::Arguments { .. } => {}
            Event::End { stop, usage, cached_tokens, record } => {
                let last = json!({"index": choice, "text": "", "logprobs": null,
                                  "finish_reason": finish_reason(stop, false)});
                out.push_back(self.tail.last(choice, End { stop, usage, cached_tokens, record }, last));
            }
            Event::Failed(refusal) => self.failed(&refusal, out),
        }
    }

    fn end(&mut self, out: &mut Ready) {
        self.tail.done(out);
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Ready) {
        out.push_back(data(&refusal.to_json()));
    }
}
