//! What an answer must look like: OpenAI's `response_format`, vLLM's `guided_*` and `structured_outputs`.

use assay_core::limits;
use assay_core::request::Guide;
use serde_json::Value;

use super::messages::text;
use super::{Object, invalid, missing, out_of_range, unsupported, wrong_type};
use crate::Refusal;

const VLLM: [&str; 4] = ["guided_json", "guided_regex", "guided_choice", "guided_grammar"];

/// The guide, if one is asked for, and the name of the parameter that does.
pub(crate) fn guide(o: &Object<'_>) -> Result<Option<(&'static str, Guide)>, Refusal> {
    let mut found = match o.get("response_format") {
        None => None,
        Some(v) => format("response_format", v, Form::Nested)?.map(|g| ("response_format", g)),
    };
    let mut take = |name: &'static str, guide: Guide| match &found {
        Some((first, _)) => {
            Err(invalid(name, &format!("an answer has one form: give either `{first}` or `{name}`")))
        }
        None => {
            found = Some((name, guide));
            Ok(())
        }
    };
    for name in VLLM {
        if let Some(v) = o.get(name) {
            take(name, guided(name, name.trim_start_matches("guided_"), v)?)?;
        }
    }
    if let Some(v) = o.get("structured_outputs") {
        take("structured_outputs", structured(v)?)?;
    }
    Ok(found)
}

/// How a schema is written in a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Under `json_schema`: chat.
    Nested,
    /// Beside the type: responses.
    Flat,
}

/// A `response_format`, or the `text.format` of responses; none for plain text.
pub(crate) fn format(path: &str, v: &Value, form: Form) -> Result<Option<Guide>, Refusal> {
    let format = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with a type"))?);
    let kind = format!("{path}.type");
    match format.get("type").map(Value::as_str) {
        Some(Some("text")) => Ok(None),
        Some(Some("json_object")) => Ok(Some(Guide::JsonObject)),
        Some(Some("json_schema")) if form == Form::Flat => json_schema(path, &format).map(Some),
        Some(Some("json_schema")) => {
            let path = format!("{path}.json_schema");
            let v = format.get("json_schema").ok_or_else(|| missing(&path))?;
            let v = v.as_object().ok_or_else(|| wrong_type(&path, "an object with a schema"))?;
            json_schema(&path, &Object(v)).map(Some)
        }
        Some(Some(other)) => {
            Err(unsupported(&kind, &format!("`{other}`: it may be text, json_object or json_schema")))
        }
        Some(None) => Err(wrong_type(&kind, "a string")),
        None => Err(missing(&kind)),
    }
}

/// The schema of a format. Its name and description say nothing to the model, and it is always held to, strict or not.
fn json_schema(path: &str, o: &Object<'_>) -> Result<Guide, Refusal> {
    let at = |field: &str| format!("{path}.{field}");
    text(&at("name"), o.get("name"))?;
    text(&at("description"), o.get("description"))?;
    if o.get("strict").is_some_and(|v| !v.is_boolean()) {
        return Err(wrong_type(&at("strict"), "true or false"));
    }
    match o.get("schema") {
        None => Err(missing(&at("schema"))),
        Some(v @ Value::Object(_)) => bounded(&at("schema"), v.to_string()).map(Guide::JsonSchema),
        Some(_) => Err(wrong_type(&at("schema"), "a JSON schema, which is an object")),
    }
}

/// One of vLLM's guides: the parameter `path`, which is of this kind.
fn guided(path: &str, kind: &str, v: &Value) -> Result<Guide, Refusal> {
    let string = || v.as_str().map(str::to_owned).ok_or_else(|| wrong_type(path, "a string"));
    match kind {
        "json" => match v {
            Value::Object(_) => bounded(path, v.to_string()).map(Guide::JsonSchema),
            Value::String(s) => match serde_json::from_str(s) {
                Ok(v @ Value::Object(_)) => bounded(path, v.to_string()).map(Guide::JsonSchema),
                _ => Err(out_of_range(path, "a JSON schema, which is an object")),
            },
            _ => Err(wrong_type(path, "a JSON schema as an object or as text")),
        },
        "regex" => bounded(path, string()?).map(Guide::Regex),
        "grammar" => bounded(path, string()?).map(Guide::Grammar),
        _ => {
            let expected = "an array of strings";
            let all = v.as_array().ok_or_else(|| wrong_type(path, expected))?;
            let all: Option<Vec<&str>> = all.iter().map(Value::as_str).collect();
            let all = all.ok_or_else(|| wrong_type(path, expected))?;
            if all.is_empty() || all.iter().any(|s| s.is_empty()) {
                return Err(out_of_range(path, "at least one string, none of them empty"));
            }
            let all: Vec<String> = all.into_iter().map(escaped).collect();
            bounded(path, all.join("|")).map(Guide::Regex)
        }
    }
}

fn structured(v: &Value) -> Result<Guide, Refusal> {
    let path = "structured_outputs";
    let o = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object"))?);
    let mut found = None;
    for (field, v) in o.0.iter().filter(|(_, v)| !v.is_null() && **v != false) {
        let name: String = field.chars().take(100).collect();
        let at = format!("{path}.{name}");
        if !["json", "regex", "choice", "grammar"].contains(&field.as_str()) {
            return Err(unsupported(&at, "it may have json, regex, choice or grammar"));
        }
        if found.replace(guided(&at, field, v)?).is_some() {
            return Err(invalid(&at, "an answer has one form: give one of json, regex, choice and grammar"));
        }
    }
    found
        .ok_or_else(|| invalid(path, "`structured_outputs` must have one of json, regex, choice and grammar"))
}

/// Text that a regular expression takes literally.
fn escaped(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn bounded(path: &str, text: String) -> Result<String, Refusal> {
    if text.is_empty() || text.len() > limits::GUIDE_BYTES_MAX {
        return Err(out_of_range(path, &format!("1 to {} bytes long", limits::GUIDE_BYTES_MAX)));
    }
    Ok(text)
}
