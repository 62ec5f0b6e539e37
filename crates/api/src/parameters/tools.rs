//! What the model may call, and whether it must.

use assay_core::limits;
use assay_core::request::{Guide, Tool};
use serde_json::{Value, json};

use super::messages::text;
use super::{Object, invalid, missing, out_of_range, unsupported, wrong_type};
use crate::Refusal;

/// How a function is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `{"type":"function","function":{"name":…}}`: chat.
    Nested,
    /// `{"type":"function","name":…}`: responses.
    Flat,
}

/// The tools; none if the parameter is absent.
pub(crate) fn tools(v: Option<&Value>, form: Form) -> Result<Vec<Tool>, Refusal> {
    let Some(v) = v else { return Ok(vec![]) };
    let all = v.as_array().ok_or_else(|| wrong_type("tools", "an array of tools"))?;
    if all.len() > limits::TOOLS_MAX {
        return Err(out_of_range("tools", &format!("up to {} tools", limits::TOOLS_MAX)));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(all.len());
    for (i, v) in all.iter().enumerate() {
        let path = format!("tools[{i}]");
        let tool = tool(&path, v, form)?;
        if tools.iter().any(|t| t.name == tool.name) {
            return Err(invalid(&path, &format!("two tools are called `{}`", tool.name)));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn tool(path: &str, v: &Value, form: Form) -> Result<Tool, Refusal> {
    let tool = Object(v.as_object().ok_or_else(|| wrong_type(path, "an object with a type"))?);
    let kind = format!("{path}.type");
    match tool.get("type").map(Value::as_str) {
        Some(Some("function")) => {}
        Some(Some(other)) => return Err(unsupported(&kind, &format!("`{other}`: tools here are functions"))),
        Some(None) => return Err(wrong_type(&kind, "a string")),
        None => return Err(missing(&kind)),
    }
    if form == Form::Flat {
        return function(path, &tool);
    }
    let path = format!("{path}.function");
    let v = tool.get("function").ok_or_else(|| missing(&path))?;
    function(&path, &Object(v.as_object().ok_or_else(|| wrong_type(&path, "an object with a name"))?))
}

fn function(path: &str, f: &Object<'_>) -> Result<Tool, Refusal> {
    let at = |field: &str| format!("{path}.{field}");
    let name = text(&at("name"), f.get("name"))?.ok_or_else(|| missing(&at("name")))?;
    if !is_name(&name) {
        return Err(out_of_range(&at("name"), "1 to 64 letters, digits, `_` and `-`"));
    }
    let description = text(&at("description"), f.get("description"))?;
    let parameters = match f.get("parameters") {
        None => json!({"type": "object", "properties": {}}).to_string(),
        Some(v @ Value::Object(_)) => v.to_string(),
        Some(_) => return Err(wrong_type(&at("parameters"), "a JSON schema of an object")),
    };
    // Arguments are always held to the schema, strict or not.
    if f.get("strict").is_some_and(|v| !v.is_boolean()) {
        return Err(wrong_type(&at("strict"), "true or false"));
    }
    Ok(Tool { name, description, parameters })
}

/// Whether OpenAI allows a function to be called so.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=limits::TOOL_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What `tool_choice` and `parallel_tool_calls` make of the tools; none if nothing may be called.
pub(crate) fn guide(o: &Object<'_>, tools: &[Tool], form: Form) -> Result<Option<Guide>, Refusal> {
    let parallel = o.typed("parallel_tool_calls", "true or false", Value::as_bool)?.unwrap_or(true);
    let (may, required, only) = match o.get("tool_choice") {
        None => (!tools.is_empty(), false, None),
        Some(Value::String(s)) => match s.as_str() {
            "none" => (false, false, None),
            "auto" => (!tools.is_empty(), false, None),
            "required" => (true, true, None),
            _ => return Err(out_of_range("tool_choice", "`none`, `auto`, `required` or a function")),
        },
        Some(Value::Object(choice)) => (true, true, Some(named(&Object(choice), form)?)),
        Some(_) => return Err(wrong_type("tool_choice", "a string or an object")),
    };
    if may && tools.is_empty() {
        return Err(invalid("tool_choice", "`tool_choice` asks for a call, but there are no `tools`"));
    }
    if let Some(name) = only.as_ref().filter(|name| !tools.iter().any(|t| t.name == **name)) {
        return Err(invalid("tool_choice", &format!("`{name}` is not among the `tools`")));
    }
    Ok(may.then_some(Guide::Tools { required, only, parallel }))
}

fn named(choice: &Object<'_>, form: Form) -> Result<String, Refusal> {
    match choice.get("type").map(Value::as_str) {
        Some(Some("function")) => {}
        Some(Some(other)) => {
            return Err(unsupported(
                "tool_choice.type",
                &format!("`{other}`: only one function can be named"),
            ));
        }
        Some(None) => return Err(wrong_type("tool_choice.type", "a string")),
        None => return Err(missing("tool_choice.type")),
    }
    let name = match form {
        Form::Flat => choice.get("name"),
        Form::Nested => {
            let function = choice.get("function").ok_or_else(|| missing("tool_choice.function"))?;
            let expected = "an object with a name";
            let function =
                function.as_object().ok_or_else(|| wrong_type("tool_choice.function", expected))?;
            Object(function).get("name")
        }
    };
    let path = if form == Form::Flat { "tool_choice.name" } else { "tool_choice.function.name" };
    text(path, name)?.ok_or_else(|| missing(path))
}

/// An answer has one shape: either calls may stand in it, or a guide that a parameter of this name asks for.
pub(crate) fn one_guide(
    shape: Option<(&'static str, Guide)>,
    calls: Option<Guide>,
) -> Result<Option<(&'static str, Guide)>, Refusal> {
    match (shape, calls) {
        (Some((param, _)), Some(_)) => {
            let reason =
                "the answer cannot be held to a form while tools may be called; set `tool_choice` to none";
            Err(unsupported(param, reason))
        }
        (shape, calls) => Ok(shape.or(calls.map(|g| ("tools", g)))),
    }
}
