//! A response as typed events. Items come one after the other: each is opened, filled and closed before the next.

use assay_core::request::ToolCall;
use serde_json::{Value, json};

use super::object::{Frame, Item, part, status};
use crate::answer::{End, Ready, Render};
use crate::{Event, Refusal};

/// The response in events.
pub(crate) struct ResponseStream {
    frame: Frame,
    /// Number of the next event.
    sequence: u64,
    /// Items that are closed.
    output: Vec<Value>,
    open: Option<Item>,
    end: Option<End>,
}

impl ResponseStream {
    pub(crate) fn new(frame: Frame) -> ResponseStream {
        ResponseStream { frame, sequence: 0, output: vec![], open: None, end: None }
    }

    fn send(&mut self, kind: &str, mut event: Value, out: &mut Ready) {
        event["type"] = kind.into();
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        out.push_back(format!("event: {kind}\ndata: {event}\n\n"));
    }

    /// Where the open item's parts are.
    fn place(&self, item: &Item) -> Value {
        let index = self.output.len();
        let mut place = json!({"item_id": self.frame.item_id(item, index), "output_index": index});
        if matches!(item, Item::Message(_)) {
            place["content_index"] = json!(0);
        }
        place
    }

    fn open(&mut self, item: Item, out: &mut Ready) {
        let index = self.output.len();
        let opened = self.frame.item(&item, index, "in_progress");
        self.send("response.output_item.added", json!({"output_index": index, "item": opened}), out);
        if matches!(item, Item::Message(_)) {
            let event = with(self.place(&item), "part", part(""));
            self.send("response.content_part.added", event, out);
        }
        self.open = Some(item);
    }

    fn close(&mut self, status: &str, out: &mut Ready) {
        let Some(item) = self.open.take() else { return };
        let place = self.place(&item);
        match &item {
            Item::Message(text) => {
                let event = with(with(place.clone(), "text", json!(text)), "logprobs", json!([]));
                self.send("response.output_text.done", event, out);
                self.send("response.content_part.done", with(place, "part", part(text)), out);
            }
            Item::Call(call) => {
                let event = with(place, "arguments", json!(call.arguments));
                let event = with(event, "name", json!(call.name));
                self.send("response.function_call_arguments.done", event, out);
            }
        }
        let index = self.output.len();
        let closed = self.frame.item(&item, index, status);
        self.send("response.output_item.done", json!({"output_index": index, "item": closed}), out);
        self.output.push(closed);
    }

    fn text(&mut self, text: &str, out: &mut Ready) {
        if !matches!(self.open, Some(Item::Message(_))) {
            self.close("completed", out);
            self.open(Item::Message(String::new()), out);
        }
        let Some(Item::Message(said)) = &mut self.open else { return };
        said.push_str(text);
        if let Some(item) = &self.open {
            let event = with(with(self.place(item), "delta", json!(text)), "logprobs", json!([]));
            self.send("response.output_text.delta", event, out);
        }
    }

    fn arguments(&mut self, json: &str, out: &mut Ready) {
        let Some(Item::Call(call)) = &mut self.open else { return };
        call.arguments.push_str(json);
        if let Some(item) = &self.open {
            let event = with(self.place(item), "delta", json!(json));
            self.send("response.function_call_arguments.delta", event, out);
        }
    }
}

fn with(mut event: Value, key: &str, value: Value) -> Value {
    event[key] = value;
    event
}

impl Render for ResponseStream {
    fn begin(&mut self, out: &mut Ready) {
        let response = self.frame.response("in_progress", vec![]);
        self.send("response.created", json!({"response": response}), out);
        self.send("response.in_progress", json!({"response": response}), out);
    }

    fn event(&mut self, _: usize, event: Event, out: &mut Ready) {
        match event {
            Event::Text { text, .. } if text.is_empty() => {}
            Event::Text { text, .. } => self.text(&text, out),
            Event::Call { id, name, .. } => {
                self.close("completed", out);
                self.open(Item::Call(ToolCall { id, name, arguments: String::new() }), out);
            }
            Event::Arguments { json, .. } => self.arguments(&json, out),
            Event::End { stop, usage, cached_tokens, record } => {
                let end = End { stop, usage, cached_tokens, record };
                if self.open.is_none() && self.output.is_empty() {
                    self.open(Item::Message(String::new()), out);
                }
                self.close(status(&end), out);
                self.end = Some(end);
            }
            Event::Failed(refusal) => self.failed(&refusal, out),
        }
    }

    fn end(&mut self, out: &mut Ready) {
        let Some(end) = self.end.take() else { return };
        let response = self.frame.ended(std::mem::take(&mut self.output), &end);
        let kind = if status(&end) == "completed" { "response.completed" } else { "response.incomplete" };
        self.send(kind, json!({"response": response}), out);
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Ready) {
        let mut response = self.frame.response("failed", std::mem::take(&mut self.output));
        response["error"] = json!({"code": "server_error", "message": refusal.to_string()});
        self.send("response.failed", json!({"response": response}), out);
    }
}
