//! From Ollama's JSON to a canonical request.

use std::collections::VecDeque;

use assay_core::consent::Consent;
use assay_core::limits;
use assay_core::request::{Guide, Message, Prompt, Request, Role, Sampling, Tool, ToolCall};
use serde_json::{Map, Value};

use crate::parameters::{Object, out_of_range, unsupported, wrong_type};
use crate::{ModelCard, Refusal};

/// Which route it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `/api/chat`
    Chat,
    /// `/api/generate`
    Generate,
}

/// What a client asked for.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) model: String,
    pub(super) stream: bool,
    said: Said,
    guide: Option<Guide>,
    options: Options,
}

#[derive(Debug)]
enum Said {
    Chat { messages: Vec<Message>, tools: Vec<Tool> },
    Prompt { system: Option<String>, prompt: String, raw: bool },
}

#[derive(Debug)]
struct Options {
    sampling: Sampling,
    max_tokens: u32,
    stop: Vec<String>,
    window: Option<u64>,
}

impl Parsed {
    /// Refuses what this model cannot do.
    pub(super) fn fits(&self, card: &ModelCard) -> Result<(), Refusal> {
        let most = u64::from(card.context_length);
        if self.options.window.is_some_and(|w| w > most) {
            return Err(out_of_range("options.num_ctx", &format!("at most {most}, the model's window")));
        }
        Ok(())
    }

    /// The request, or nothing where nothing is asked.
    pub(super) fn request(&self, card: &ModelCard) -> Result<Option<Request>, Refusal> {
        let prompt = match &self.said {
            Said::Chat { messages, .. } if messages.is_empty() => return Ok(None),
            Said::Chat { messages, tools } => {
                Prompt::Chat { messages: messages.clone(), tools: tools.clone() }
            }
            Said::Prompt { prompt, .. } if prompt.is_empty() => return Ok(None),
            Said::Prompt { system: Some(_), .. } if !card.has_chat_template => {
                return Err(unsupported("system", "this model has no chat template"));
            }
            Said::Prompt { system: None, prompt, raw } if *raw || !card.has_chat_template => {
                Prompt::Text(prompt.clone())
            }
            Said::Prompt { system, prompt, .. } => {
                let system = system.iter().map(|s| Message::text(Role::System, s.as_str()));
                let messages = system.chain([Message::text(Role::User, prompt.as_str())]).collect();
                Prompt::Chat { messages, tools: vec![] }
            }
        };
        Ok(Some(Request {
            model: card.root,
            prompt,
            sampling: self.options.sampling.clone(),
            max_tokens: self.options.max_tokens,
            stop: self.options.stop.clone(),
            choice: 0,
            guide: self.guide.clone(),
            logprobs: None,
            audit: Consent::Given,
        }))
    }
}

fn missing(param: &str) -> Refusal {
    Refusal::Missing { param: param.to_owned() }
}

fn string(path: &str, v: &Value) -> Result<String, Refusal> {
    v.as_str().map(str::to_owned).ok_or_else(|| wrong_type(path, "a string"))
}

/// Reads a body.
pub(super) fn parse(shape: Shape, map: &Map<String, Value>) -> Result<Parsed, Refusal> {
    let o = Object(map);
    refuse_unsupported(&o)?;
    let model = string("model", o.get("model").ok_or_else(|| missing("model"))?)?;
    let stream = o.typed("stream", "true or false", Value::as_bool)?.unwrap_or(true);
    let format = format(&o)?;
    let (said, tools_guide) = match shape {
        Shape::Chat => {
            let tools = tools(&o)?;
            let guide = Guide::Tools { required: false, only: None, parallel: true };
            let guide = (!tools.is_empty()).then_some(guide);
            (Said::Chat { messages: messages(&o)?, tools }, guide)
        }
        Shape::Generate => (prompt(&o)?, None),
    };
    let guide = match (format, tools_guide) {
        (Some(_), Some(_)) => {
            return Err(unsupported("format", "an answer is guided by tools or by a format, not both"));
        }
        (format, tools) => format.or(tools),
    };
    let none = Map::new();
    let options = o.typed("options", "an object", Value::as_object)?.unwrap_or(&none);
    let options = read_options(&Object(options)).map_err(within_options)?;
    Ok(Parsed { model, stream, said, guide, options })
}

/// Names a parameter by where it stands.
fn within_options(refusal: Refusal) -> Refusal {
    let at = |param: String| format!("options.{param}");
    match refusal {
        Refusal::InvalidType { param, expected } => Refusal::InvalidType { param: at(param), expected },
        Refusal::Invalid { param, message } => Refusal::Invalid { param: at(param), message },
        Refusal::Unsupported { param, reason } => Refusal::Unsupported { param: at(param), reason },
        other => other,
    }
}

fn prompt(o: &Object<'_>) -> Result<Said, Refusal> {
    let text = |name: &str| -> Result<Option<String>, Refusal> {
        Ok(o.typed(name, "a string", Value::as_str)?.filter(|s| !s.is_empty()).map(str::to_owned))
    };
    let (prompt, system, raw) = (text("prompt")?.unwrap_or_default(), text("system")?, o.flag("raw")?);
    if raw && system.is_some() {
        return Err(unsupported("system", "a raw prompt is read as it is"));
    }
    Ok(Said::Prompt { system, prompt, raw })
}

fn format(o: &Object<'_>) -> Result<Option<Guide>, Refusal> {
    match o.get("format") {
        None => Ok(None),
        Some(Value::String(s)) if s.is_empty() => Ok(None),
        Some(Value::String(s)) if s == "json" => Ok(Some(Guide::JsonObject)),
        Some(Value::Object(schema)) => Ok(Some(Guide::JsonSchema(Value::Object(schema.clone()).to_string()))),
        Some(_) => Err(out_of_range("format", "`json` or a JSON schema")),
    }
}

fn tools(o: &Object<'_>) -> Result<Vec<Tool>, Refusal> {
    let all = o.typed("tools", "an array of tools", Value::as_array)?;
    let Some(all) = all else { return Ok(vec![]) };
    all.iter().enumerate().map(|(i, t)| tool(&format!("tools[{i}]"), t)).collect()
}

fn tool(path: &str, v: &Value) -> Result<Tool, Refusal> {
    if v.get("type").is_some_and(|t| t != "function") {
        return Err(unsupported(&format!("{path}.type"), "tools are functions"));
    }
    let at = format!("{path}.function");
    let function = v.get("function").ok_or_else(|| missing(&at))?;
    let f = Object(function.as_object().ok_or_else(|| wrong_type(&at, "an object"))?);
    let name = string(&format!("{at}.name"), f.get("name").ok_or_else(|| missing(&format!("{at}.name")))?)?;
    let description = f.get("description").map(|d| string(&format!("{at}.description"), d)).transpose()?;
    let parameters = match f.get("parameters") {
        None => r#"{"type":"object","properties":{}}"#.to_owned(),
        Some(p) if p.is_object() => p.to_string(),
        Some(_) => return Err(wrong_type(&format!("{at}.parameters"), "a JSON schema")),
    };
    Ok(Tool { name, description, parameters })
}

fn messages(o: &Object<'_>) -> Result<Vec<Message>, Refusal> {
    let all = o.typed("messages", "an array of messages", Value::as_array)?;
    let Some(all) = all else { return Ok(vec![]) };
    let mut open = VecDeque::new();
    all.iter().enumerate().map(|(i, m)| message(i, m, &mut open)).collect()
}

/// Ollama's older clients name no calls: calls get names by their place, and results belong to calls in their order.
fn message(i: usize, v: &Value, open: &mut VecDeque<(String, String)>) -> Result<Message, Refusal> {
    let path = format!("messages[{i}]");
    let at = |field: &str| format!("{path}.{field}");
    let m = Object(v.as_object().ok_or_else(|| wrong_type(&path, "an object with role and content"))?);
    let role = match m.get("role").ok_or_else(|| missing(&at("role")))?.as_str() {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some(_) => return Err(unsupported(&at("role"), "roles are system, user, assistant and tool")),
        None => return Err(wrong_type(&at("role"), "a string")),
    };
    let is_empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty) || v.as_str() == Some("");
    for (field, reason) in [("images", "models here read text"), ("thinking", "models here do not think")] {
        if m.get(field).is_some_and(|v| !is_empty(v)) {
            return Err(unsupported(&at(field), reason));
        }
    }
    let content = m.get("content").map(|c| string(&at("content"), c)).transpose()?.unwrap_or_default();
    let mut message = Message::text(role, content);
    if let Some(calls) = m.get("tool_calls").filter(|c| !is_empty(c)) {
        if role != Role::Assistant {
            return Err(unsupported(&at("tool_calls"), "calls are what the assistant says"));
        }
        let calls = calls.as_array().ok_or_else(|| wrong_type(&at("tool_calls"), "an array of calls"))?;
        let named = |(j, c)| call(&format!("{path}.tool_calls[{j}]"), format!("call_{i}_{j}"), c);
        message.tool_calls = calls.iter().enumerate().map(named).collect::<Result<_, _>>()?;
        open.clear();
        open.extend(message.tool_calls.iter().map(|c| (c.id.clone(), c.name.clone())));
    }
    if role == Role::Tool {
        let name = m.get("tool_name").or_else(|| m.get("name"));
        message.name = name.map(|n| string(&at("tool_name"), n)).transpose()?;
        let id = m.get("tool_call_id").map(|v| string(&at("tool_call_id"), v)).transpose()?;
        message.tool_call_id = answered(open, id, message.name.as_deref());
    }
    Ok(message)
}

/// Takes the call that a result belongs to off the open ones: by its id, by its name, or the first.
fn answered(open: &mut VecDeque<(String, String)>, id: Option<String>, name: Option<&str>) -> Option<String> {
    let place = match (&id, name) {
        (Some(id), _) => open.iter().position(|(i, _)| i == id),
        (None, Some(name)) => open.iter().position(|(_, n)| n == name),
        (None, None) => Some(0),
    };
    let call = place.and_then(|p| open.remove(p));
    id.or(call.map(|(id, _)| id))
}

fn call(path: &str, default_id: String, v: &Value) -> Result<ToolCall, Refusal> {
    let function = v.get("function").ok_or_else(|| missing(&format!("{path}.function")))?;
    let at = |field: &str| format!("{path}.function.{field}");
    let name = string(&at("name"), function.get("name").ok_or_else(|| missing(&at("name")))?)?;
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(a) if a.is_object() => a.to_string(),
        Some(_) => return Err(wrong_type(&at("arguments"), "an object")),
    };
    let id = v.get("id").filter(|v| !v.is_null()).map(|v| string(&format!("{path}.id"), v)).transpose()?;
    Ok(ToolCall { id: id.filter(|id| !id.is_empty()).unwrap_or(default_id), name, arguments })
}

fn read_options(o: &Object<'_>) -> Result<Options, Refusal> {
    let whole = |name: &str| o.typed(name, "a whole number", Value::as_i64);
    let at_most = limits::PENALTY_MICRO_MAX;
    let sampling = Sampling {
        temperature_micro: o.micro("temperature", 0.0, 2.0, limits::ONE_MICRO)?,
        top_k: match whole("top_k")?.unwrap_or(0) {
            -1 => 0,
            k => u32::try_from(k).map_err(|_| out_of_range("top_k", "-1 (off), 0 (off) or more"))?,
        },
        top_p_micro: o.micro("top_p", 0.000_001, 1.0, limits::ONE_MICRO)?,
        min_p_micro: o.micro("min_p", 0.0, 1.0, 0)?,
        // Ollama's -1 is no seed.
        seed: whole("seed")?.filter(|s| *s != -1).map(i64::cast_unsigned),
        presence_micro: signed_micro(o, "presence_penalty", at_most)?,
        frequency_micro: signed_micro(o, "frequency_penalty", at_most)?,
        repetition_micro: o.micro("repeat_penalty", 0.01, 10.0, limits::ONE_MICRO)?,
        bias: vec![],
    };
    let max_tokens = match whole("num_predict")? {
        None | Some(-2 | -1) => 0,
        Some(n) if n >= 1 => u32::try_from(n).unwrap_or(u32::MAX),
        Some(_) => {
            return Err(out_of_range("num_predict", "at least 1, or -1 or -2 for the rest of the window"));
        }
    };
    let penalties = (sampling.presence_micro, sampling.frequency_micro, sampling.repetition_micro);
    let last_n = whole("repeat_last_n")?.unwrap_or(-1);
    if last_n != -1 && penalties != (0, 0, limits::ONE_MICRO) {
        return Err(unsupported("repeat_last_n", "penalties look at everything; send -1"));
    }
    refuse_options(o)?;
    let window = o.typed("num_ctx", "a whole number", Value::as_u64)?;
    Ok(Options { sampling, max_tokens, stop: stop(o)?, window })
}

/// A decimal of either sign as millionths, rounded half up.
fn signed_micro(o: &Object<'_>, name: &str, most: i32) -> Result<i32, Refusal> {
    let Some(v) = o.typed(name, "a number", Value::as_f64)? else { return Ok(0) };
    let micro = (v * 1e6 + 0.5).floor();
    if !(-f64::from(most)..=f64::from(most)).contains(&micro) {
        let most = most / 1_000_000;
        return Err(out_of_range(name, &format!("-{most} to {most}")));
    }
    Ok(micro as i32)
}

fn stop(o: &Object<'_>) -> Result<Vec<String>, Refusal> {
    let expected = "a string or an array of strings";
    let all = match o.get("stop") {
        None => return Ok(vec![]),
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(all)) => {
            let all: Option<Vec<String>> = all.iter().map(|v| v.as_str().map(str::to_owned)).collect();
            all.ok_or_else(|| wrong_type("stop", expected))?
        }
        Some(_) => return Err(wrong_type("stop", expected)),
    };
    let (most, bytes) = (limits::STOP_STRINGS_MAX, limits::STOP_STRING_BYTES_MAX);
    if all.len() > most || all.iter().any(|s| s.is_empty() || s.len() > bytes) {
        return Err(out_of_range("stop", &format!("up to {most} strings of 1 to {bytes} bytes")));
    }
    Ok(all)
}

type Table<'a> = &'a [(&'a str, &'a dyn Fn(&Value) -> bool, &'a str)];

fn refuse(o: &Object<'_>, table: Table<'_>) -> Result<(), Refusal> {
    for (name, harmless, reason) in table {
        if o.get(name).is_some_and(|v| !harmless(v)) {
            return Err(unsupported(name, reason));
        }
    }
    Ok(())
}

/// Refuses what cannot be honoured, unless the value asks for nothing.
fn refuse_unsupported(o: &Object<'_>) -> Result<(), Refusal> {
    let is_empty = |v: &Value| match v {
        Value::Array(a) => a.is_empty(),
        Value::String(s) => s.is_empty(),
        _ => false,
    };
    let is_false = |v: &Value| *v == Value::Bool(false);
    let is_zero = |v: &Value| v.as_f64() == Some(0.0);
    refuse(
        o,
        &[
            ("think", &is_false, "thinking is not part of this version"),
            ("template", &is_empty, "the model's own template is part of what is verified"),
            ("suffix", &is_empty, "text is continued, not filled in"),
            ("images", &is_empty, "models here read text"),
            ("context", &is_empty, "send the conversation to /api/chat"),
            ("logprobs", &is_false, "ask /v1/chat/completions for probabilities"),
            ("top_logprobs", &is_zero, "ask /v1/chat/completions for probabilities"),
        ],
    )
}

fn refuse_options(o: &Object<'_>) -> Result<(), Refusal> {
    let is_zero = |v: &Value| v.as_f64() == Some(0.0);
    let is_one = |v: &Value| v.as_f64() == Some(1.0);
    refuse(
        o,
        &[
            ("mirostat", &is_zero, "it is not part of this version"),
            ("tfs_z", &is_one, "it is not part of this version"),
            ("typical_p", &is_one, "it is not part of this version"),
            ("penalize_newline", &|v| *v == Value::Bool(true), "penalties make no exceptions"),
        ],
    )
}
