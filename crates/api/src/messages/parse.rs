//! From Anthropic's JSON to a canonical request.

use assay_core::consent::Consent;
use assay_core::id::ModelRoot;
use assay_core::limits;
use assay_core::request::{Guide, Message, Prompt, Request, Role, Sampling, Tool, ToolCall};
use serde_json::{Map, Value};

use crate::Refusal;
use crate::parameters::{Object, out_of_range, unsupported, wrong_type};

/// What a client asked for.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) model: String,
    prompt: Prompt,
    sampling: Sampling,
    max_tokens: u32,
    pub(super) stop: Vec<String>,
    guide: Option<Guide>,
    pub(super) stream: bool,
}

impl Parsed {
    /// The request, for the model that the name stands for.
    pub(super) fn request(&self, model: ModelRoot) -> Request {
        Request {
            model,
            prompt: self.prompt.clone(),
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            choice: 0,
            guide: self.guide.clone(),
            logprobs: None,
            audit: Consent::Given,
        }
    }
}

fn missing(param: &str) -> Refusal {
    Refusal::Missing { param: param.to_owned() }
}

/// Reads the body of `/v1/messages`.
pub(super) fn message(map: &Map<String, Value>) -> Result<Parsed, Refusal> {
    let o = Object(map);
    let (model, prompt) = countable(map)?;
    let max_tokens = o.tokens("max_tokens")?.ok_or_else(|| missing("max_tokens"))?;
    let top_k = o.typed("top_k", "a whole number", Value::as_u64)?.unwrap_or(0);
    let sampling = Sampling {
        temperature_micro: o.micro("temperature", 0.0, 1.0, limits::ONE_MICRO)?,
        top_k: u32::try_from(top_k).unwrap_or(u32::MAX),
        top_p_micro: o.micro("top_p", 0.000_001, 1.0, limits::ONE_MICRO)?,
        ..Sampling::GREEDY
    };
    let tools = match &prompt {
        Prompt::Chat { tools, .. } => tools.as_slice(),
        _ => &[],
    };
    let guide = match (tool_guide(&o, tools)?, format_guide(&o)?) {
        (Some(_), Some(_)) => {
            return Err(unsupported(
                "output_config",
                "an answer is guided by tools or by a schema, not both",
            ));
        }
        (tools, format) => tools.or(format),
    };
    Ok(Parsed { model, prompt, sampling, max_tokens, stop: stop(&o)?, guide, stream: o.flag("stream")? })
}

/// Model and prompt: all of a body that counts for its tokens.
pub(super) fn countable(map: &Map<String, Value>) -> Result<(String, Prompt), Refusal> {
    let o = Object(map);
    refuse_unsupported(&o)?;
    let model = o.typed("model", "a string", Value::as_str)?.ok_or_else(|| missing("model"))?.to_owned();
    let mut messages = system(&o)?;
    let said = o.get("messages").ok_or_else(|| missing("messages"))?;
    let said = said.as_array().ok_or_else(|| wrong_type("messages", "an array of messages"))?;
    if said.is_empty() {
        return Err(out_of_range("messages", "at least one message"));
    }
    for (i, m) in said.iter().enumerate() {
        turn(&format!("messages[{i}]"), m, &mut messages)?;
    }
    if messages.last().is_some_and(|m| m.role == Role::Assistant) {
        return Err(unsupported(
            "messages",
            "the last one must not be the assistant's: answers are not prefilled",
        ));
    }
    Ok((model, Prompt::Chat { messages, tools: tools(&o)? }))
}

fn system(o: &Object<'_>) -> Result<Vec<Message>, Refusal> {
    let text = match o.get("system") {
        None => return Ok(vec![]),
        Some(v) => texts("system", v)?,
    };
    Ok(if text.is_empty() { vec![] } else { vec![Message::text(Role::System, text)] })
}

/// A string, or text blocks joined by a line break.
fn texts(path: &str, v: &Value) -> Result<String, Refusal> {
    match v {
        Value::String(s) => Ok(s.clone()),
        Value::Array(blocks) => {
            let all = blocks.iter().enumerate().map(|(i, b)| {
                let path = format!("{path}[{i}]");
                match kind(&path, b)? {
                    "text" => block_text(&path, b).map(str::to_owned),
                    other => Err(no_such_block(&path, other)),
                }
            });
            Ok(all.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(wrong_type(path, "a string or an array of text blocks")),
    }
}

fn kind<'a>(path: &str, block: &'a Value) -> Result<&'a str, Refusal> {
    let block = block.as_object().ok_or_else(|| wrong_type(path, "a block with a type"))?;
    let kind = Object(block).get("type").ok_or_else(|| missing(&format!("{path}.type")))?;
    kind.as_str().ok_or_else(|| wrong_type(&format!("{path}.type"), "a string"))
}

fn block_text<'a>(path: &str, block: &'a Value) -> Result<&'a str, Refusal> {
    block["text"].as_str().ok_or_else(|| wrong_type(&format!("{path}.text"), "a string"))
}

fn no_such_block(path: &str, kind: &str) -> Refusal {
    let kind: String = kind.chars().take(80).collect();
    unsupported(&format!("{path}.type"), &format!("`{kind}`: models here read text, calls and results"))
}

/// Appends what one message says. Turns of the same speaker that follow each other are one turn, as with Anthropic.
fn turn(path: &str, v: &Value, out: &mut Vec<Message>) -> Result<(), Refusal> {
    let m = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with role and content"))?);
    let at = |field: &str| format!("{path}.{field}");
    let role = match m.get("role").ok_or_else(|| missing(&at("role")))?.as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(_) => return Err(unsupported(&at("role"), "roles are user and assistant; see `system`")),
        None => return Err(wrong_type(&at("role"), "a string")),
    };
    let content = m.get("content").ok_or_else(|| missing(&at("content")))?;
    let blocks = match content {
        Value::String(s) => {
            say(out, role, s);
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        _ => return Err(wrong_type(&at("content"), "a string or an array of blocks")),
    };
    for (i, block) in blocks.iter().enumerate() {
        let path = format!("{path}.content[{i}]");
        match (kind(&path, block)?, role) {
            ("text", _) => say(out, role, block_text(&path, block)?),
            ("tool_use", Role::Assistant) => {
                let call = call(&path, block)?;
                speaker(out, role).tool_calls.push(call);
            }
            ("tool_result", Role::User) => out.push(result(&path, block)?),
            ("tool_use" | "tool_result", _) => {
                return Err(Refusal::Invalid {
                    param: format!("{path}.type"),
                    message: "`tool_use` is what the assistant says, `tool_result` what the user says".into(),
                });
            }
            (other, _) => return Err(no_such_block(&path, other)),
        }
    }
    Ok(())
}

/// The message that this speaker is in the middle of, or a new one.
fn speaker(out: &mut Vec<Message>, role: Role) -> &mut Message {
    let goes_on = out.last().is_some_and(|m| m.role == role);
    if !goes_on {
        out.push(Message::text(role, ""));
    }
    let last = out.len().saturating_sub(1);
    &mut out[last]
}

fn say(out: &mut Vec<Message>, role: Role, text: &str) {
    let content = &mut speaker(out, role).content;
    if !content.is_empty() {
        content.push('\n');
    }
    content.push_str(text);
}

fn call(path: &str, block: &Value) -> Result<ToolCall, Refusal> {
    let field = |name: &str| -> Result<String, Refusal> {
        let at = format!("{path}.{name}");
        let v = block.get(name).ok_or_else(|| missing(&at))?;
        Ok(v.as_str().ok_or_else(|| wrong_type(&at, "a string"))?.to_owned())
    };
    let input = block.get("input").ok_or_else(|| missing(&format!("{path}.input")))?;
    if !input.is_object() {
        return Err(wrong_type(&format!("{path}.input"), "an object"));
    }
    Ok(ToolCall { id: field("id")?, name: field("name")?, arguments: input.to_string() })
}

fn result(path: &str, block: &Value) -> Result<Message, Refusal> {
    let at = format!("{path}.tool_use_id");
    let id = block.get("tool_use_id").ok_or_else(|| missing(&at))?;
    let id = id.as_str().ok_or_else(|| wrong_type(&at, "a string"))?.to_owned();
    let content = match block.get("content").filter(|c| !c.is_null()) {
        None => String::new(),
        Some(v) => texts(&format!("{path}.content"), v)?,
    };
    Ok(Message { tool_call_id: Some(id), ..Message::text(Role::Tool, content) })
}

fn tools(o: &Object<'_>) -> Result<Vec<Tool>, Refusal> {
    let all = o.typed("tools", "an array of tools", Value::as_array)?;
    let Some(all) = all else { return Ok(vec![]) };
    all.iter().enumerate().map(|(i, t)| tool(&format!("tools[{i}]"), t)).collect()
}

fn tool(path: &str, v: &Value) -> Result<Tool, Refusal> {
    let at = |field: &str| format!("{path}.{field}");
    let t = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with name and input_schema"))?);
    match t.get("type").map(|k| k.as_str()) {
        None | Some(Some("custom")) => {}
        _ => return Err(unsupported(&at("type"), "this server runs no tools of its own; describe yours")),
    }
    let text = |v: &Value, field: &str| {
        v.as_str().map(str::to_owned).ok_or_else(|| wrong_type(&at(field), "a string"))
    };
    let name = text(t.get("name").ok_or_else(|| missing(&at("name")))?, "name")?;
    let description = t.get("description").map(|d| text(d, "description")).transpose()?;
    let schema = t.get("input_schema").ok_or_else(|| missing(&at("input_schema")))?;
    if !schema.is_object() {
        return Err(wrong_type(&at("input_schema"), "a JSON schema"));
    }
    Ok(Tool { name, description, parameters: schema.to_string() })
}

fn tool_guide(o: &Object<'_>, tools: &[Tool]) -> Result<Option<Guide>, Refusal> {
    let auto = Guide::Tools { required: false, only: None, parallel: true };
    let Some(choice) = o.typed("tool_choice", "an object with a type", Value::as_object)? else {
        return Ok((!tools.is_empty()).then_some(auto));
    };
    let c = Object(choice);
    let parallel = !c
        .flag("disable_parallel_tool_use")
        .map_err(|_| wrong_type("tool_choice.disable_parallel_tool_use", "true or false"))?;
    let (required, only) = match c.get("type").and_then(Value::as_str) {
        Some("none") => return Ok(None),
        Some("auto") if tools.is_empty() => return Ok(None),
        Some("auto") => (false, None),
        Some("any") => (true, None),
        Some("tool") => {
            let name = c.get("name").ok_or_else(|| missing("tool_choice.name"))?;
            let name = name.as_str().ok_or_else(|| wrong_type("tool_choice.name", "a string"))?;
            if !tools.iter().any(|t| t.name == name) {
                return Err(out_of_range("tool_choice.name", "the name of one of `tools`"));
            }
            (true, Some(name.to_owned()))
        }
        _ => return Err(out_of_range("tool_choice.type", "auto, any, tool or none")),
    };
    if tools.is_empty() {
        return Err(out_of_range("tool_choice", "auto or none where there are no tools"));
    }
    Ok(Some(Guide::Tools { required, only, parallel }))
}

/// The schema of `output_config.format`, or of `output_format` as it was called first.
fn format_guide(o: &Object<'_>) -> Result<Option<Guide>, Refusal> {
    let config = o.typed("output_config", "an object", Value::as_object)?;
    let (path, format) = match config.and_then(|c| Object(c).get("format")) {
        Some(format) => ("output_config.format", format),
        None => match o.get("output_format") {
            Some(format) => ("output_format", format),
            None => return Ok(None),
        },
    };
    if format["type"] != "json_schema" {
        return Err(unsupported(&format!("{path}.type"), "formats are `json_schema`"));
    }
    match format.get("schema") {
        Some(schema) if schema.is_object() => Ok(Some(Guide::JsonSchema(schema.to_string()))),
        _ => Err(wrong_type(&format!("{path}.schema"), "a JSON schema")),
    }
}

fn stop(o: &Object<'_>) -> Result<Vec<String>, Refusal> {
    let expected = "an array of strings";
    let Some(all) = o.typed("stop_sequences", expected, Value::as_array)? else { return Ok(vec![]) };
    let all: Option<Vec<String>> = all.iter().map(|v| v.as_str().map(str::to_owned)).collect();
    let all = all.ok_or_else(|| wrong_type("stop_sequences", expected))?;
    let (most, bytes) = (limits::STOP_STRINGS_MAX, limits::STOP_STRING_BYTES_MAX);
    if all.len() > most || all.iter().any(|s| s.is_empty() || s.len() > bytes) {
        return Err(out_of_range("stop_sequences", &format!("up to {most} strings of 1 to {bytes} bytes")));
    }
    Ok(all)
}

/// Refuses what cannot be honoured, unless the value asks for nothing.
fn refuse_unsupported(o: &Object<'_>) -> Result<(), Refusal> {
    let is_empty = |v: &Value| match v {
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
        _ => false,
    };
    let only_known = |v: &Value| v.as_object().is_some_and(|m| m.keys().all(|k| k == "format"));
    type Harmless<'a> = &'a dyn Fn(&Value) -> bool;
    let table: [(&str, Harmless<'_>, &str); 8] = [
        ("thinking", &|v| v["type"] == "disabled", "thinking is not part of this version"),
        ("service_tier", &|v| *v == "auto" || *v == "standard_only", "there is one tier"),
        ("container", &|_| false, "this server runs no tools of its own"),
        ("mcp_servers", &is_empty, "this server runs no tools of its own"),
        ("context_management", &is_empty, "prompts are never edited"),
        ("output_config", &only_known, "only `format` can be configured"),
        ("speed", &|v| *v == "standard", "there is one speed"),
        ("inference_geo", &|_| false, "answers come from this server"),
    ];
    for (name, harmless, reason) in table {
        if o.get(name).is_some_and(|v| !harmless(v)) {
            return Err(unsupported(name, reason));
        }
    }
    Ok(())
}
