//! From OpenAI's JSON to a canonical request. A parameter is honoured, ignored because that changes nothing, or refused by
//! name; `docs/api.md` has the table, and a test compares.

use assay_core::id::ModelRoot;
use assay_core::request::{Message, Prompt, Request, Role, Sampling};
use serde_json::{Map, Value};

use crate::Refusal;

/// Tokens of a completion when the client says nothing: OpenAI's default.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// Which route the parameters came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// What a client asked for.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) model: String,
    pub(crate) prompt: Prompt,
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: u32,
    pub(crate) stop: Vec<String>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl Parsed {
    /// The request, for the model that the name stands for.
    pub(crate) fn request(&self, model: ModelRoot) -> Request {
        Request {
            model,
            prompt: self.prompt.clone(),
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
        }
    }
}

struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    /// A parameter that is there; null counts as absent.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| wrong_type(name, expected)),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, Refusal> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// A decimal as millionths, rounded half up.
    fn micro(&self, name: &str, min: f64, max: f64, default: u32) -> Result<u32, Refusal> {
        let Some(v) = self.typed(name, "a number", Value::as_f64)? else { return Ok(default) };
        let micro = (v * 1e6 + 0.5).floor();
        if !(min * 1e6..=max * 1e6).contains(&micro) {
            return Err(out_of_range(name, &format!("{min} to {max}")));
        }
        Ok(micro as u32)
    }

    fn tokens(&self, name: &str) -> Result<Option<u32>, Refusal> {
        let Some(v) = self.typed(name, "a whole number", |v| v.as_i64().or(v.as_u64().map(|_| i64::MAX)))?
        else {
            return Ok(None);
        };
        if v < 1 {
            return Err(out_of_range(name, "at least 1"));
        }
        Ok(Some(u32::try_from(v).unwrap_or(u32::MAX)))
    }
}

fn wrong_type(param: &str, expected: &str) -> Refusal {
    Refusal::InvalidType { param: param.to_owned(), expected: expected.to_owned() }
}

fn out_of_range(param: &str, expected: &str) -> Refusal {
    Refusal::Invalid { param: param.to_owned(), message: format!("`{param}` must be {expected}") }
}

fn unsupported(param: &str, reason: &str) -> Refusal {
    Refusal::Unsupported { param: param.to_owned(), reason: reason.to_owned() }
}

/// Reads a body.
pub(crate) fn parse(route: Route, body: &[u8]) -> Result<Parsed, Refusal> {
    let value: Value =
        serde_json::from_slice(body).map_err(|e| Refusal::InvalidJson { reason: e.to_string() })?;
    let Value::Object(map) = &value else {
        return Err(Refusal::InvalidJson { reason: "it is another JSON value".into() });
    };
    let o = Object(map);
    refuse_unsupported(&o)?;
    let missing = |param: &str| Refusal::Missing { param: param.to_owned() };
    let model = o.typed("model", "a string", Value::as_str)?.ok_or_else(|| missing("model"))?.to_owned();
    let prompt = match route {
        Route::Chat => Prompt::Chat(messages(o.get("messages").ok_or_else(|| missing("messages"))?)?),
        Route::Completions => text_prompt(o.get("prompt").ok_or_else(|| missing("prompt"))?)?,
    };
    let max_tokens = match (o.tokens("max_tokens")?, o.tokens("max_completion_tokens")?) {
        (Some(a), Some(b)) if a != b => {
            let message = "`max_completion_tokens` and `max_tokens` differ; give one of them".to_owned();
            return Err(Refusal::Invalid { param: "max_completion_tokens".into(), message });
        }
        (a, b) => a.or(b),
    };
    let default = if route == Route::Chat { 0 } else { COMPLETION_TOKENS_DEFAULT };
    let stream = o.flag("stream")?;
    Ok(Parsed {
        model,
        prompt,
        sampling: Sampling {
            temperature_micro: o.micro("temperature", 0.0, 2.0, 1_000_000)?,
            top_k: top_k(&o)?,
            top_p_micro: o.micro("top_p", 0.000_001, 1.0, 1_000_000)?,
            min_p_micro: o.micro("min_p", 0.0, 1.0, 0)?,
            seed: seed(&o)?,
        },
        max_tokens: max_tokens.unwrap_or(default),
        stop: stop(&o)?,
        stream,
        include_usage: include_usage(&o)? && stream,
    })
}

fn top_k(o: &Object<'_>) -> Result<u32, Refusal> {
    let v = o.typed("top_k", "a whole number", Value::as_i64)?.unwrap_or(0);
    match v {
        -1 => Ok(0),
        v => u32::try_from(v).map_err(|_| out_of_range("top_k", "-1 (off), 0 (off) or a positive number")),
    }
}

fn seed(o: &Object<'_>) -> Result<Option<u64>, Refusal> {
    match o.get("seed") {
        None => Ok(None),
        Some(v) => match v.as_i64() {
            Some(v) => Ok(Some(v.cast_unsigned())),
            None if v.is_u64() => Err(out_of_range("seed", "a whole number of 64 bits with a sign")),
            None => Err(wrong_type("seed", "a whole number")),
        },
    }
}

fn stop(o: &Object<'_>) -> Result<Vec<String>, Refusal> {
    let strings = match o.get("stop") {
        None => return Ok(vec![]),
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(all)) => all
            .iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong_type("stop", "a string or an array of strings"))?,
        Some(_) => return Err(wrong_type("stop", "a string or an array of strings")),
    };
    let (most, bytes) = (assay_core::limits::STOP_STRINGS_MAX, assay_core::limits::STOP_STRING_BYTES_MAX);
    if strings.len() > most || strings.iter().any(|s| s.is_empty() || s.len() > bytes) {
        return Err(out_of_range("stop", &format!("up to {most} strings of 1 to {bytes} bytes")));
    }
    Ok(strings)
}

fn include_usage(o: &Object<'_>) -> Result<bool, Refusal> {
    let Some(options) = o.typed("stream_options", "an object", Value::as_object)? else { return Ok(false) };
    Object(options)
        .flag("include_usage")
        .map_err(|_| wrong_type("stream_options.include_usage", "true or false"))
}

fn messages(v: &Value) -> Result<Vec<Message>, Refusal> {
    let all = v.as_array().ok_or_else(|| wrong_type("messages", "an array of messages"))?;
    if all.is_empty() {
        return Err(out_of_range("messages", "at least one message"));
    }
    all.iter().enumerate().map(|(i, m)| message(&format!("messages[{i}]"), m)).collect()
}

fn message(path: &str, v: &Value) -> Result<Message, Refusal> {
    let m = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with role and content"))?);
    let at = |field: &str| format!("{path}.{field}");
    let role = m.get("role").ok_or_else(|| Refusal::Missing { param: at("role") })?;
    let role = match role.as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some(_) => {
            return Err(unsupported(&at("role"), "roles are developer, system, user, assistant and tool"));
        }
        None => return Err(wrong_type(&at("role"), "a string")),
    };
    for field in ["tool_calls", "function_call", "audio"] {
        if m.get(field).is_some_and(|v| v.as_array().is_none_or(|a| !a.is_empty())) {
            return Err(unsupported(&at(field), "this version knows text alone"));
        }
    }
    let content = match m.get("content") {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(i, p)| text_part(&format!("{path}.content[{i}]"), p))
            .collect::<Result<Vec<_>, _>>()?
            .join("\n"),
        // An assistant message may have said nothing.
        None if role == Role::Assistant => String::new(),
        None => return Err(Refusal::Missing { param: at("content") }),
        Some(_) => return Err(wrong_type(&at("content"), "a string or an array of text parts")),
    };
    let name = match m.get("name") {
        None => None,
        Some(n) => Some(n.as_str().ok_or_else(|| wrong_type(&at("name"), "a string"))?.to_owned()),
    };
    Ok(Message { role, content, name })
}

fn text_part(path: &str, v: &Value) -> Result<String, Refusal> {
    match v["type"].as_str() {
        Some("text") => v["text"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| wrong_type(&format!("{path}.text"), "a string")),
        Some(other) => {
            Err(unsupported(&format!("{path}.type"), &format!("`{other}`: models here read text")))
        }
        None => Err(Refusal::Missing { param: format!("{path}.type") }),
    }
}

fn text_prompt(v: &Value) -> Result<Prompt, Refusal> {
    let expected = "a string or an array of token ids";
    match v {
        Value::String(s) => Ok(Prompt::Text(s.clone())),
        Value::Array(all) => match all.as_slice() {
            [] => Err(out_of_range("prompt", "a string or at least one token id")),
            [one @ (Value::String(_) | Value::Array(_))] => text_prompt(one),
            [Value::String(_) | Value::Array(_), ..] => {
                Err(unsupported("prompt", "send one prompt a request"))
            }
            ids => {
                let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
                let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
                ids.map(Prompt::Tokens).ok_or_else(|| wrong_type("prompt", expected))
            }
        },
        _ => Err(wrong_type("prompt", expected)),
    }
}

/// Refuses what this version knows and cannot do, unless the value asks for nothing.
fn refuse_unsupported(o: &Object<'_>) -> Result<(), Refusal> {
    let is_one = |v: &Value| v.as_f64() == Some(1.0);
    let is_zero = |v: &Value| v.as_f64() == Some(0.0);
    let is_false = |v: &Value| *v == Value::Bool(false);
    let is_empty = |v: &Value| match v {
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
        Value::String(s) => s.is_empty(),
        _ => false,
    };
    let is_passive = |v: &Value| matches!(v.as_str(), Some("none" | "auto"));
    let never = |_: &Value| false;
    type Harmless<'a> = &'a dyn Fn(&Value) -> bool;
    let table: [(&str, Harmless<'_>, &str); 30] = [
        ("n", &is_one, "one answer a request"),
        ("best_of", &is_one, "one answer a request"),
        ("echo", &is_false, "answers do not repeat the prompt"),
        ("suffix", &is_empty, "text is continued, not filled in"),
        ("presence_penalty", &is_zero, "penalties are not part of this version"),
        ("frequency_penalty", &is_zero, "penalties are not part of this version"),
        ("repetition_penalty", &is_one, "penalties are not part of this version"),
        ("logit_bias", &is_empty, "biases are not part of this version"),
        ("logprobs", &is_false, "probabilities are not part of this version"),
        ("top_logprobs", &is_zero, "probabilities are not part of this version"),
        ("tools", &is_empty, "tools are not part of this version"),
        ("tool_choice", &is_passive, "tools are not part of this version"),
        ("functions", &is_empty, "functions are not part of this version"),
        ("function_call", &is_passive, "functions are not part of this version"),
        ("response_format", &|v| v["type"] == "text", "only text is guaranteed"),
        ("modalities", &|v| *v == serde_json::json!(["text"]), "models here write text"),
        ("audio", &never, "models here write text"),
        ("web_search_options", &never, "models here do not search"),
        ("reasoning_effort", &|v| *v == "none", "reasoning is not part of this version"),
        ("verbosity", &|v| *v == "medium", "there is one verbosity"),
        ("service_tier", &|v| *v == "auto" || *v == "default", "there is one tier"),
        ("store", &is_false, "nothing is stored but receipts"),
        ("min_tokens", &is_zero, "answers end where the model ends them"),
        ("ignore_eos", &is_false, "answers end where the model ends them"),
        ("stop_token_ids", &is_empty, "use stop strings"),
        ("structured_outputs", &never, "guided decoding is not part of this version"),
        ("guided_json", &never, "guided decoding is not part of this version"),
        ("guided_regex", &never, "guided decoding is not part of this version"),
        ("guided_choice", &never, "guided decoding is not part of this version"),
        ("guided_grammar", &never, "guided decoding is not part of this version"),
    ];
    for (name, harmless, reason) in table {
        if o.get(name).is_some_and(|v| !harmless(v)) {
            return Err(unsupported(name, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            prop::sample::select(vec!["user", "assistant", "text", "type", "role"]).prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let key =
                prop::sample::select(vec!["role", "content", "type", "text", "name", "include_usage", "x"]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..4)
                    .prop_map(|m| m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    const KEYS: [&str; 16] = [
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "n",
        "response_format",
        "tools",
    ];

    proptest! {
        /// Any JSON is either a request within all limits or a refusal that a client is to blame for.
        #[test]
        fn any_json_is_a_request_or_a_refusal(
            fields in prop::collection::vec((prop::sample::select(KEYS.to_vec()), json_value()), 0..4),
            chat in any::<bool>(),
        ) {
            let mut body = json!({"model": "m", "prompt": "p", "messages": [{"role": "user", "content": "c"}]});
            for (key, value) in fields {
                body[key] = value;
            }
            let route = if chat { Route::Chat } else { Route::Completions };
            match parse(route, body.to_string().as_bytes()) {
                Ok(parsed) => {
                    let checked = parsed.request(ModelRoot::ZERO).check();
                    prop_assert!(checked.is_ok(), "{:?}", checked);
                }
                Err(refusal) => prop_assert_eq!(refusal.status().as_u16(), 400),
            }
        }

        #[test]
        fn noise_is_refused(body in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(parse(Route::Chat, &body).is_err());
        }
    }
}
