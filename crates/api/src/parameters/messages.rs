//! Messages of a conversation.

use assay_core::request::{Message, Role, ToolCall};
use serde_json::Value;

use super::{Object, invalid, missing, out_of_range, unsupported, wrong_type};
use crate::Refusal;

/// At least one message.
pub(crate) fn messages(v: &Value) -> Result<Vec<Message>, Refusal> {
    let all = v.as_array().ok_or_else(|| wrong_type("messages", "an array of messages"))?;
    if all.is_empty() {
        return Err(out_of_range("messages", "at least one message"));
    }
    all.iter().enumerate().map(|(i, m)| message(&format!("messages[{i}]"), m)).collect()
}

fn message(path: &str, v: &Value) -> Result<Message, Refusal> {
    let m = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with role and content"))?);
    let at = |field: &str| format!("{path}.{field}");
    let role = role(&at("role"), m.get("role"))?;
    for field in ["function_call", "audio"] {
        if m.get(field).is_some() {
            return Err(unsupported(&at(field), "messages have text and tool calls"));
        }
    }
    let tool_calls = match m.get("tool_calls") {
        None => vec![],
        Some(v) => tool_calls(&at("tool_calls"), v)?,
    };
    if role != Role::Assistant && !tool_calls.is_empty() {
        return Err(invalid(&at("tool_calls"), "only the assistant calls tools"));
    }
    let content = match m.get("content") {
        Some(v) => content(&at("content"), v, &["text"])?,
        // An assistant message may have said nothing.
        None if role == Role::Assistant => String::new(),
        None => return Err(missing(&at("content"))),
    };
    let name = text(&at("name"), m.get("name"))?;
    let tool_call_id = text(&at("tool_call_id"), m.get("tool_call_id"))?;
    match (role, &tool_call_id) {
        (Role::Tool, None) => return Err(missing(&at("tool_call_id"))),
        (Role::Tool, Some(_)) | (_, None) => {}
        (_, Some(_)) => return Err(invalid(&at("tool_call_id"), "only messages of a tool have it")),
    }
    Ok(Message { role, content, name, tool_calls, tool_call_id })
}

/// Who speaks. `developer` is what newer clients call the system.
pub(crate) fn role(path: &str, v: Option<&Value>) -> Result<Role, Refusal> {
    match v.ok_or_else(|| missing(path))?.as_str() {
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        Some("tool") => Ok(Role::Tool),
        Some(_) => Err(unsupported(path, "roles are developer, system, user, assistant and tool")),
        None => Err(wrong_type(path, "a string")),
    }
}

/// A string, or parts of text of these types, joined by line breaks.
pub(crate) fn content(path: &str, v: &Value, types: &[&str]) -> Result<String, Refusal> {
    match v {
        Value::String(s) => Ok(s.clone()),
        Value::Array(parts) => {
            let each = parts.iter().enumerate();
            let texts = each.map(|(i, p)| text_part(&format!("{path}[{i}]"), p, types));
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(wrong_type(path, "a string or an array of text parts")),
    }
}

fn text_part(path: &str, v: &Value, types: &[&str]) -> Result<String, Refusal> {
    let part = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with type and text"))?);
    match part.get("type").map(Value::as_str) {
        Some(Some(kind)) if types.contains(&kind) => {
            let path = format!("{path}.text");
            text(&path, part.get("text"))?.ok_or_else(|| missing(&path))
        }
        Some(Some(kind)) => {
            Err(unsupported(&format!("{path}.type"), &format!("`{kind}`: models here read text")))
        }
        Some(None) => Err(wrong_type(&format!("{path}.type"), "a string")),
        None => Err(missing(&format!("{path}.type"))),
    }
}

/// A string that may be absent.
pub(crate) fn text(path: &str, v: Option<&Value>) -> Result<Option<String>, Refusal> {
    v.map(|v| v.as_str().map(str::to_owned).ok_or_else(|| wrong_type(path, "a string"))).transpose()
}

fn tool_calls(path: &str, v: &Value) -> Result<Vec<ToolCall>, Refusal> {
    let all = v.as_array().ok_or_else(|| wrong_type(path, "an array of tool calls"))?;
    all.iter().enumerate().map(|(i, c)| tool_call(&format!("{path}[{i}]"), c)).collect()
}

fn tool_call(path: &str, v: &Value) -> Result<ToolCall, Refusal> {
    let call = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with id and function"))?);
    let at = |field: &str| format!("{path}.{field}");
    let id = text(&at("id"), call.get("id"))?.ok_or_else(|| missing(&at("id")))?;
    if call.get("type").is_some_and(|t| *t != "function") {
        return Err(unsupported(&at("type"), "tools here are functions"));
    }
    let function = call.get("function").ok_or_else(|| missing(&at("function")))?;
    let expected = "an object with name and arguments";
    let function = Object(function.as_object().ok_or_else(|| wrong_type(&at("function"), expected))?);
    let name = text(&at("function.name"), function.get("name"))?;
    let name = name.ok_or_else(|| missing(&at("function.name")))?;
    let arguments = arguments(&at("function.arguments"), function.get("arguments"))?;
    Ok(ToolCall { id, name, arguments })
}

/// JSON object as text, as the client wrote it. Nothing at all is what some models write for no arguments.
pub(crate) fn arguments(path: &str, v: Option<&Value>) -> Result<String, Refusal> {
    let arguments = text(path, v)?.ok_or_else(|| missing(path))?;
    if arguments.is_empty() {
        return Ok("{}".to_owned());
    }
    match serde_json::from_str(&arguments) {
        Ok(Value::Object(_)) => Ok(arguments),
        _ => Err(out_of_range(path, "a JSON object as text")),
    }
}
