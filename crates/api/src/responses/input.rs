//! Items of a response's input, as messages of a conversation.

use assay_core::request::{Message, Role, ToolCall};
use serde_json::Value;

use crate::Refusal;
use crate::parameters::messages::{arguments, content, role, text};
use crate::parameters::{Object, missing, out_of_range, unsupported, wrong_type};

const TEXTS: [&str; 3] = ["input_text", "output_text", "text"];

/// At least one message.
pub(crate) fn messages(v: &Value) -> Result<Vec<Message>, Refusal> {
    match v {
        Value::String(s) => Ok(vec![Message::text(Role::User, s.as_str())]),
        Value::Array(all) if all.is_empty() => Err(out_of_range("input", "a string or at least one item")),
        Value::Array(all) => {
            let mut messages = Vec::with_capacity(all.len());
            for (i, v) in all.iter().enumerate() {
                item(&format!("input[{i}]"), v, &mut messages)?;
            }
            Ok(messages)
        }
        _ => Err(wrong_type("input", "a string or an array of items")),
    }
}

/// Appends what an item says. A call belongs to what the assistant said just before, as it does in a chat.
fn item(path: &str, v: &Value, messages: &mut Vec<Message>) -> Result<(), Refusal> {
    let item = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object"))?);
    let at = |field: &str| format!("{path}.{field}");
    match item.get("type").map(Value::as_str) {
        None | Some(Some("message")) => {
            let role = role(&at("role"), item.get("role"))?;
            if role == Role::Tool {
                let reason = "the result of a call is an item of type `function_call_output`";
                return Err(unsupported(&at("role"), reason));
            }
            let v = item.get("content").ok_or_else(|| missing(&at("content")))?;
            messages.push(Message::text(role, content(&at("content"), v, &TEXTS)?));
        }
        Some(Some("function_call")) => {
            let required = |field| text(&at(field), item.get(field))?.ok_or_else(|| missing(&at(field)));
            let (id, name) = (required("call_id")?, required("name")?);
            let arguments = arguments(&at("arguments"), item.get("arguments"))?;
            let call = ToolCall { id, name, arguments };
            match messages.last_mut().filter(|m| m.role == Role::Assistant) {
                Some(said) => said.tool_calls.push(call),
                None => {
                    let mut said = Message::text(Role::Assistant, "");
                    said.tool_calls.push(call);
                    messages.push(said);
                }
            }
        }
        Some(Some("function_call_output")) => {
            let id = text(&at("call_id"), item.get("call_id"))?.ok_or_else(|| missing(&at("call_id")))?;
            let output = item.get("output").ok_or_else(|| missing(&at("output")))?;
            let mut result = Message::text(Role::Tool, content(&at("output"), output, &TEXTS)?);
            result.tool_call_id = Some(id);
            messages.push(result);
        }
        Some(Some(other)) => {
            let reason = format!("`{other}`: items are messages, function calls and their outputs");
            return Err(unsupported(&at("type"), &reason));
        }
        Some(None) => return Err(wrong_type(&at("type"), "a string")),
    }
    Ok(())
}
