//! Parameters of a response.

use assay_core::request::{Message, Prompt, Role};
use serde_json::{Map, Value, json};

use super::input;
use crate::Refusal;
use crate::parameters::guide::{self, format};
use crate::parameters::messages::text;
use crate::parameters::refused::{
    Row, is_default_tier, is_empty, is_false, is_one, is_passive, is_zero, never, refuse,
};
use crate::parameters::sampling::{sampling, stop};
use crate::parameters::{Object, Parsed, body_object, model, out_of_range, tools, unsupported, wrong_type};

/// What was asked, and what the response repeats of it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) parsed: Parsed,
    pub(crate) echo: Map<String, Value>,
}

/// Most pairs of metadata: OpenAI's limit.
const METADATA_MAX: usize = 16;

fn asks_for_no_reasoning(v: &Value) -> bool {
    let passive = |(key, v): (&String, &Value)| v.is_null() || (key == "effort" && v == "none");
    v.as_object().is_some_and(|o| o.iter().all(passive))
}

/// What cannot be honoured here.
const REFUSED: [Row; 35] = [
    ("previous_response_id", never, "no answer is stored: send the whole conversation as `input`"),
    ("conversation", never, "no conversation is stored: send the whole of it as `input`"),
    ("store", is_false, "nothing is stored but receipts"),
    ("background", is_false, "nothing is stored, so nothing can be fetched later"),
    ("include", is_empty, "answers have no further parts; /v1/chat/completions tells probabilities"),
    ("top_logprobs", is_zero, "/v1/chat/completions tells probabilities"),
    ("reasoning", asks_for_no_reasoning, "reasoning is not part of this version"),
    ("truncation", |v| *v == "disabled", "a conversation that is too long is refused, not cut"),
    ("context_management", is_empty, "a conversation that is too long is refused, not cut"),
    ("prompt", never, "no prompts are stored: send the text as `input`"),
    ("service_tier", is_default_tier, "there is one tier"),
    ("messages", is_empty, "send `input` instead"),
    ("max_tokens", never, "send `max_output_tokens` instead"),
    ("max_completion_tokens", never, "send `max_output_tokens` instead"),
    ("response_format", |v| v["type"] == "text", "send `text.format` instead"),
    ("functions", is_empty, "send `tools` instead"),
    ("function_call", is_passive, "send `tools` and `tool_choice` instead"),
    ("n", is_one, "one answer a request; /v1/chat/completions gives several"),
    ("best_of", is_one, "one answer a request"),
    ("logprobs", is_false, "/v1/chat/completions tells probabilities"),
    ("echo", is_false, "answers do not repeat the prompt"),
    ("suffix", is_empty, "text is continued, not filled in"),
    ("modalities", |v| *v == json!(["text"]), "models here write text"),
    ("audio", never, "models here write text"),
    ("web_search_options", never, "models here do not search"),
    ("reasoning_effort", |v| *v == "none", "reasoning is not part of this version"),
    ("verbosity", |v| *v == "medium", "there is one verbosity"),
    ("min_tokens", is_zero, "answers end where the model ends them"),
    ("ignore_eos", is_false, "answers end where the model ends them"),
    ("stop_token_ids", is_empty, "use stop strings"),
    ("guided_json", never, "send `text.format`"),
    ("guided_regex", never, "/v1/chat/completions takes it"),
    ("guided_choice", never, "/v1/chat/completions takes it"),
    ("guided_grammar", never, "/v1/chat/completions takes it"),
    ("structured_outputs", never, "send `text.format`, or use /v1/chat/completions"),
];

/// Reads a body.
pub(crate) fn parse(body: &[u8]) -> Result<Asked, Refusal> {
    let map = body_object(body)?;
    let o = Object(&map);
    refuse(&REFUSED, &o)?;
    let model = model(&o)?;
    let instructions = text("instructions", o.get("instructions"))?;
    let mut messages: Vec<Message> =
        instructions.iter().map(|text| Message::text(Role::System, text.as_str())).collect();
    messages.extend(input::messages(o.required("input")?)?);
    let tools = tools::tools(o.get("tools"), tools::Form::Flat)?;
    let calls = tools::guide(&o, &tools, tools::Form::Flat)?;
    let shape = shape(&o)?.map(|g| ("text.format", g));
    let guide = tools::one_guide(shape, calls)?;
    let max_tokens = o.tokens("max_output_tokens")?;
    let sampling = sampling(&o)?;
    if o.typed("stream_options", "an object", Value::as_object)?
        .is_some_and(|s| s.contains_key("include_usage"))
    {
        return Err(unsupported("stream_options.include_usage", "the last event always has the usage"));
    }
    let echo = echo(&o, &model, sampling.temperature_micro, sampling.top_p_micro)?;
    let parsed = Parsed {
        model,
        prompts: vec![Prompt::Chat { messages, tools }],
        n: 1,
        sampling,
        max_tokens: max_tokens.unwrap_or(0),
        stop: stop(&o)?,
        guide: guide.map(|(_, guide)| guide),
        logprobs: None,
        stream: o.flag("stream")?,
        include_usage: false,
    };
    Ok(Asked { parsed: parsed.checked().map_err(as_input)?, echo })
}

/// Limits of a conversation are named after what the client sent.
fn as_input(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Invalid { param, message } if param == "messages" => {
            Refusal::Invalid { param: "input".into(), message: message.replace("`messages`", "`input`") }
        }
        other => other,
    }
}

fn shape(o: &Object<'_>) -> Result<Option<assay_core::request::Guide>, Refusal> {
    let Some(text) = o.typed("text", "an object", Value::as_object)? else { return Ok(None) };
    let text = Object(text);
    if text.get("verbosity").is_some_and(|v| v != "medium") {
        return Err(unsupported("text.verbosity", "there is one verbosity"));
    }
    match text.get("format") {
        None => Ok(None),
        Some(v) => format("text.format", v, guide::Form::Flat),
    }
}

/// Keys of the response that say what was asked.
fn echo(
    o: &Object<'_>,
    model: &str,
    temperature_micro: u32,
    top_p_micro: u32,
) -> Result<Map<String, Value>, Refusal> {
    let mut echo = Map::new();
    let copy = |key: &str, absent: Value| o.get(key).cloned().unwrap_or(absent);
    let decimal = |micro: u32| json!(f64::from(micro) / 1e6);
    let format = o.get("text").and_then(|t| t.get("format")).filter(|f| !f.is_null()).cloned();
    echo.insert("model".into(), model.into());
    echo.insert("instructions".into(), copy("instructions", Value::Null));
    echo.insert("metadata".into(), metadata(o)?);
    echo.insert("parallel_tool_calls".into(), copy("parallel_tool_calls", json!(true)));
    echo.insert("temperature".into(), decimal(temperature_micro));
    echo.insert("tool_choice".into(), copy("tool_choice", json!("auto")));
    echo.insert("tools".into(), copy("tools", json!([])).as_array().map_or(json!([]), |t| whole_tools(t)));
    echo.insert("top_p".into(), decimal(top_p_micro));
    echo.insert("max_output_tokens".into(), copy("max_output_tokens", Value::Null));
    echo.insert(
        "text".into(),
        json!({"format": format.unwrap_or(json!({"type": "text"})), "verbosity": "medium"}),
    );
    for absent in ["previous_response_id", "conversation", "prompt", "max_tool_calls"] {
        echo.insert(absent.into(), Value::Null);
    }
    echo.insert("reasoning".into(), json!({"effort": null, "summary": null}));
    echo.insert("background".into(), json!(false));
    echo.insert("store".into(), json!(false));
    echo.insert("service_tier".into(), json!("default"));
    echo.insert("top_logprobs".into(), json!(0));
    echo.insert("truncation".into(), json!("disabled"));
    for label in ["user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"] {
        let value = text(label, o.get(label))?;
        echo.insert(label.into(), json!(value));
    }
    Ok(echo)
}

/// The tools with the keys that clients require.
fn whole_tools(tools: &[Value]) -> Value {
    let whole = |t: &Value| {
        let mut tool = t.clone();
        for (key, absent) in
            [("parameters", Value::Null), ("strict", Value::Null), ("description", Value::Null)]
        {
            if tool.get(key).is_none() {
                tool[key] = absent;
            }
        }
        tool
    };
    tools.iter().map(whole).collect()
}

fn metadata(o: &Object<'_>) -> Result<Value, Refusal> {
    let expected = "an object of strings";
    let Some(map) = o.typed("metadata", expected, Value::as_object)? else { return Ok(json!({})) };
    if map.len() > METADATA_MAX {
        return Err(out_of_range("metadata", &format!("up to {METADATA_MAX} pairs")));
    }
    if map.values().all(Value::is_string) { Ok(json!(map)) } else { Err(wrong_type("metadata", expected)) }
}
