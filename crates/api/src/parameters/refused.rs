//! Parameters that this server knows and cannot honour, with the values that ask for nothing and are therefore accepted.

use serde_json::{Value, json};

use super::{Object, unsupported};
use crate::Refusal;

/// A parameter, whether a value of it asks for nothing, and the reason of the refusal.
pub(crate) type Row = (&'static str, fn(&Value) -> bool, &'static str);

pub(crate) fn never(_: &Value) -> bool {
    false
}

pub(crate) fn is_zero(v: &Value) -> bool {
    v.as_f64() == Some(0.0)
}

pub(crate) fn is_one(v: &Value) -> bool {
    v.as_f64() == Some(1.0)
}

pub(crate) fn is_false(v: &Value) -> bool {
    *v == Value::Bool(false)
}

pub(crate) fn is_empty(v: &Value) -> bool {
    match v {
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

pub(crate) fn is_passive(v: &Value) -> bool {
    matches!(v.as_str(), Some("none" | "auto"))
}

pub(crate) fn is_default_tier(v: &Value) -> bool {
    matches!(v.as_str(), Some("auto" | "default"))
}

/// On chat and completions.
pub(crate) const BOTH: [Row; 14] = [
    ("echo", is_false, "answers do not repeat the prompt"),
    ("suffix", is_empty, "text is continued, not filled in"),
    ("functions", is_empty, "send `tools` instead"),
    ("function_call", is_passive, "send `tools` and `tool_choice` instead"),
    ("modalities", |v| *v == json!(["text"]), "models here write text"),
    ("audio", never, "models here write text"),
    ("web_search_options", never, "models here do not search"),
    ("reasoning_effort", |v| *v == "none", "reasoning is not part of this version"),
    ("verbosity", |v| *v == "medium", "there is one verbosity"),
    ("service_tier", is_default_tier, "there is one tier"),
    ("store", is_false, "nothing is stored but receipts"),
    ("min_tokens", is_zero, "answers end where the model ends them"),
    ("ignore_eos", is_false, "answers end where the model ends them"),
    ("stop_token_ids", is_empty, "use stop strings"),
];

/// On completions alone.
pub(crate) const COMPLETIONS: [Row; 3] = [
    ("tools", is_empty, "tools need a conversation: use /v1/chat/completions"),
    ("tool_choice", is_passive, "tools need a conversation: use /v1/chat/completions"),
    ("top_logprobs", is_zero, "here `logprobs` is the number of likeliest tokens"),
];

/// Refuses what a table knows, unless the value asks for nothing.
pub(crate) fn refuse(table: &[Row], o: &Object<'_>) -> Result<(), Refusal> {
    for (name, harmless, reason) in table {
        if o.get(name).is_some_and(|v| !harmless(v)) {
            return Err(unsupported(name, reason));
        }
    }
    Ok(())
}
