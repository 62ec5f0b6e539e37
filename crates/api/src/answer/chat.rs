//! How chat completions look.

use serde_json::{Value, json};

use super::{Answer, End, Frame, Ready, Render, Tail, data, finish_reason, logprob_json, token_text};
use crate::{Event, Logprob, Refusal, TokenChance};

/// The whole answer.
pub(crate) fn whole(frame: &Frame, has_logprobs: bool, answers: &[Answer]) -> Value {
    let choices = answers.iter().enumerate().map(|(i, a)| {
        let mut message = json!({"role": "assistant", "content": a.text, "refusal": null});
        if !a.calls.is_empty() {
            if a.text.is_empty() {
                message["content"] = Value::Null;
            }
            let call = |c: &assay_core::request::ToolCall| {
                let function = json!({"name": c.name, "arguments": c.arguments});
                json!({"id": c.id, "type": "function", "function": function})
            };
            message["tool_calls"] = a.calls.iter().map(call).collect();
        }
        let logprobs = if has_logprobs { logprobs_json(&a.logprobs) } else { Value::Null };
        let finish = finish_reason(a.end.stop, !a.calls.is_empty());
        json!({"index": i, "message": message, "logprobs": logprobs, "finish_reason": finish})
    });
    frame.whole("chat.completion", choices.collect(), answers)
}

fn logprobs_json(all: &[Logprob]) -> Value {
    let chance = |c: &TokenChance| json!({"token": token_text(&c.bytes), "bytes": c.bytes, "logprob": logprob_json(c.logprob)});
    let content = all.iter().map(|l| {
        let mut token = chance(&l.token);
        token["top_logprobs"] = l.top.iter().map(chance).collect();
        token
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// The answer in chunks.
pub(crate) struct ChatStream {
    tail: Tail,
    /// Whether a choice has called a tool.
    has_calls: Vec<bool>,
}

impl ChatStream {
    pub(crate) fn new(frame: Frame, choices: usize) -> ChatStream {
        let tail = Tail::new(frame, "chat.completion.chunk", choices);
        ChatStream { tail, has_calls: vec![false; choices] }
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value) -> String {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null});
        data(&self.tail.chunk(choice))
    }
}

impl Render for ChatStream {
    fn begin(&mut self, out: &mut Ready) {
        for index in 0..self.has_calls.len() {
            out.push_back(self.delta(index, json!({"role": "assistant", "content": ""}), Value::Null));
        }
    }

    fn event(&mut self, choice: usize, event: Event, out: &mut Ready) {
        match event {
            Event::Text { text, logprobs } => {
                let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
                let logprobs = if logprobs.is_empty() { Value::Null } else { logprobs_json(&logprobs) };
                out.push_back(self.delta(choice, delta, logprobs));
            }
            Event::Call { index, id, name } => {
                if let Some(has_calls) = self.has_calls.get_mut(choice) {
                    *has_calls = true;
                }
                let function = json!({"name": name, "arguments": ""});
                let call = json!({"index": index, "id": id, "type": "function", "function": function});
                out.push_back(self.delta(choice, json!({"tool_calls": [call]}), Value::Null));
            }
            Event::Arguments { index, json } => {
                let call = json!({"index": index, "function": {"arguments": json}});
                out.push_back(self.delta(choice, json!({"tool_calls": [call]}), Value::Null));
            }
            Event::End { stop, usage, cached_tokens, record } => {
                let has_calls = self.has_calls.get(choice).copied().unwrap_or_default();
                let last = json!({"index": choice, "delta": {}, "logprobs": null,
                                  "finish_reason": finish_reason(stop, has_calls)});
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
