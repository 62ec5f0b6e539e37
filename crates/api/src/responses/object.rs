//! The response object and its items.

use assay_core::request::ToolCall;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, End, inline};

/// What every state of a response repeats.
pub(crate) struct Frame {
    /// 32 hex digits of the receipt's id: ids of the response and of its items are made of them.
    pub(crate) hex: String,
    pub(crate) created: u64,
    /// Whether the record goes into the response.
    pub(crate) inline: bool,
    /// Keys that say what was asked.
    pub(crate) echo: Map<String, Value>,
}

/// What a response consists of.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// Text.
    Message(String),
    /// A call of a tool.
    Call(ToolCall),
}

impl Frame {
    /// Id of the item of this index.
    pub(crate) fn item_id(&self, item: &Item, index: usize) -> String {
        let prefix = match item {
            Item::Message(_) => "msg",
            Item::Call(_) => "fc",
        };
        format!("{prefix}_{}{index:02}", self.hex)
    }

    /// An item; one in progress has nothing in it.
    pub(crate) fn item(&self, item: &Item, index: usize, status: &str) -> Value {
        let id = self.item_id(item, index);
        match item {
            Item::Message(text) => {
                let content = if status == "in_progress" { json!([]) } else { json!([part(text)]) };
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Item::Call(call) => {
                let arguments = if status == "in_progress" { "" } else { &call.arguments };
                json!({"id": id, "type": "function_call", "status": status, "call_id": call.id,
                       "name": call.name, "arguments": arguments})
            }
        }
    }

    /// The response in a state.
    pub(crate) fn response(&self, status: &str, output: Vec<Value>) -> Value {
        let mut response = json!({
            "id": format!("resp_{}", self.hex), "object": "response", "created_at": self.created,
            "status": status, "completed_at": null, "error": null, "incomplete_details": null,
            "output": output, "usage": null,
        });
        for (key, value) in &self.echo {
            response[key] = value.clone();
        }
        response
    }

    /// The response at its end.
    pub(crate) fn ended(&self, output: Vec<Value>, end: &End) -> Value {
        let status = status(end);
        let mut response = self.response(status, output);
        if status == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        } else {
            response["completed_at"] = json!(crate::server::now_s());
        }
        response["usage"] = usage(end);
        if self.inline {
            inline(&mut response, std::iter::once(end));
        }
        response
    }

    /// The whole response of the one answer there is.
    pub(crate) fn whole(&self, answers: &[Answer]) -> Value {
        let Some(answer) = answers.first() else { return Value::Null };
        let mut items = Vec::new();
        if !answer.text.is_empty() || answer.calls.is_empty() {
            items.push(Item::Message(answer.text.clone()));
        }
        items.extend(answer.calls.iter().cloned().map(Item::Call));
        let last = items.len().saturating_sub(1);
        let status = |i: usize| if i == last { status(&answer.end) } else { "completed" };
        let output = items.iter().enumerate().map(|(i, item)| self.item(item, i, status(i)));
        self.ended(output.collect(), &answer.end)
    }
}

/// Whether the model ended the answer, or a limit did.
pub(crate) fn status(end: &End) -> &'static str {
    if end.stop.finish_reason() == "stop" { "completed" } else { "incomplete" }
}

/// The part of a message.
pub(crate) fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage(end: &End) -> Value {
    let usage = end.usage;
    let total = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
    json!({"input_tokens": usage.prompt_tokens,
           "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
           "output_tokens": usage.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
           "total_tokens": total})
}
