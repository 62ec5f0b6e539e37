//! The lines of a batch's input. All of them are checked before the first is answered.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most errors that are listed.
const ERRORS_MAX: usize = 100;
/// Most bytes of a line's own name.
const CUSTOM_ID_BYTES_MAX: usize = 512;

/// What is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LineError {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    /// Counted from 1; nothing when it is the whole file.
    pub(crate) line: Option<usize>,
}

/// One request.
pub(super) struct Line {
    pub(super) custom_id: String,
    /// JSON text of the body.
    pub(super) body: String,
}

/// Where the lines are that say something.
pub(super) fn places(input: &[u8]) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut start = 0usize;
    for line in input.split(|b| *b == b'\n') {
        let end = start.saturating_add(line.len());
        if !line.trim_ascii().is_empty() {
            places.push(start..end);
        }
        start = end.saturating_add(1);
    }
    places
}

fn error(code: &str, message: &str, param: Option<&str>) -> LineError {
    let own = str::to_owned;
    LineError { code: own(code), message: own(message), param: param.map(own), line: None }
}

/// One line, if it is a request for this endpoint.
pub(super) fn read(line: &[u8], endpoint: &str) -> Result<Line, LineError> {
    let Ok(Value::Object(mut map)) = serde_json::from_slice(line) else {
        return Err(error("invalid_json_line", "this line is not a JSON object", None));
    };
    let missing =
        |name: &str| error("missing_required_parameter", &format!("`{name}` is required"), Some(name));
    let custom_id = match map.remove("custom_id") {
        None | Some(Value::Null) => return Err(missing("custom_id")),
        Some(Value::String(s)) if (1..=CUSTOM_ID_BYTES_MAX).contains(&s.len()) => s,
        Some(_) => {
            let message = format!("`custom_id` must be a string of 1 to {CUSTOM_ID_BYTES_MAX} bytes");
            return Err(error("invalid_custom_id", &message, Some("custom_id")));
        }
    };
    match map.get("method") {
        None | Some(Value::Null) => return Err(missing("method")),
        Some(v) if v == "POST" => {}
        Some(_) => return Err(error("invalid_method", "`method` must be POST", Some("method"))),
    }
    match map.get("url") {
        None | Some(Value::Null) => return Err(missing("url")),
        Some(v) if v == endpoint => {}
        Some(_) => {
            let message = format!("`url` must be the batch's endpoint, {endpoint}");
            return Err(error("invalid_url", &message, Some("url")));
        }
    }
    let body = match map.remove("body") {
        None | Some(Value::Null) => return Err(missing("body")),
        Some(body) if body.is_object() => body,
        Some(_) => return Err(error("invalid_body", "`body` must be an object", Some("body"))),
    };
    if body.get("stream").is_some_and(|s| *s != Value::Bool(false) && !s.is_null()) {
        return Err(error("invalid_body", "answers of batches are not streamed", Some("body.stream")));
    }
    Ok(Line { custom_id, body: body.to_string() })
}

/// What is wrong with all of them.
pub(super) fn check(
    input: &[u8],
    places: &[Range<usize>],
    endpoint: &str,
    lines_max: usize,
) -> Vec<LineError> {
    if places.is_empty() {
        return vec![error("empty_file", "the input has no lines", None)];
    }
    if places.len() > lines_max {
        return vec![error("too_many_requests", &format!("the input has more than {lines_max} lines"), None)];
    }
    let mut seen = BTreeSet::new();
    let mut errors = Vec::new();
    for place in places {
        let bytes = input.get(place.clone()).unwrap_or_default();
        let found = match read(bytes, endpoint) {
            Ok(line) if seen.insert(line.custom_id.clone()) => continue,
            Ok(_) => error("duplicate_custom_id", "`custom_id` was used by a line before", Some("custom_id")),
            Err(e) => e,
        };
        // As editors count, empty lines included.
        let before = input.get(..place.start).unwrap_or_default();
        let line = before.iter().filter(|b| **b == b'\n').count().saturating_add(1);
        errors.push(LineError { line: Some(line), ..found });
        if errors.len() == ERRORS_MAX {
            break;
        }
    }
    errors
}
