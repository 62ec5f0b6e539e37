//! What `/v1/completions` continues: one text, one list of token ids, or several of either.

use assay_core::request::Prompt;
use serde_json::Value;

use super::{out_of_range, wrong_type};
use crate::Refusal;

const EXPECTED: &str = "a string, an array of token ids, or an array of either";

/// At least one prompt.
pub(crate) fn prompts(v: &Value) -> Result<Vec<Prompt>, Refusal> {
    match v {
        Value::String(s) => Ok(vec![Prompt::Text(s.clone())]),
        Value::Array(all) => match all.as_slice() {
            [] => Err(out_of_range("prompt", "a string or at least one token id")),
            [Value::String(_), ..] => all.iter().enumerate().map(|(i, v)| text(i, v)).collect(),
            [Value::Array(_), ..] => {
                let each = all.iter().enumerate();
                each.map(|(i, v)| ids(&format!("prompt[{i}]"), v).map(Prompt::Tokens)).collect()
            }
            _ => Ok(vec![Prompt::Tokens(ids("prompt", v)?)]),
        },
        _ => Err(wrong_type("prompt", EXPECTED)),
    }
}

fn text(index: usize, v: &Value) -> Result<Prompt, Refusal> {
    let s = v.as_str().ok_or_else(|| wrong_type(&format!("prompt[{index}]"), "a string like the first"))?;
    Ok(Prompt::Text(s.to_owned()))
}

/// At least one token id.
pub(crate) fn ids(param: &str, v: &Value) -> Result<Vec<u32>, Refusal> {
    let all = v.as_array().ok_or_else(|| wrong_type(param, "an array of token ids"))?;
    if all.is_empty() {
        return Err(out_of_range(param, "at least one token id"));
    }
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    all.iter().map(id).collect::<Option<_>>().ok_or_else(|| wrong_type(param, "an array of token ids"))
}
