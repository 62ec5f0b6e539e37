//! Models and times as Ollama shows them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use super::{Failure, find_tagged};
use crate::dialect;
use crate::parameters::{Object, unsupported};
use crate::server::Shared;
use crate::{Inference, ModelCard, Refusal, Task};

/// What `general.architecture` says: cards do not tell which family a program came from.
const ARCHITECTURE: &str = "assay";

/// A time as in RFC 3339.
pub(super) fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Howard Hinnant's `civil_from_days`: years begin in March, eras have 400 years.
    let z = days.saturating_add(719_468);
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

pub(super) fn now() -> String {
    time(SystemTime::now())
}

fn created(m: &ModelCard) -> String {
    time(UNIX_EPOCH.checked_add(Duration::from_secs(m.created)).unwrap_or(UNIX_EPOCH))
}

/// The id with a tag: Ollama's names always have one.
fn tagged(m: &ModelCard) -> String {
    if m.id.contains(':') { m.id.clone() } else { format!("{}:latest", m.id) }
}

/// A number of weights as people write it.
fn size(parameters: u64) -> String {
    let tenths = |unit: u64| {
        let v = parameters / (unit / 10);
        format!("{}.{}", v / 10, v % 10)
    };
    match parameters {
        1_000_000_000.. => format!("{}B", tenths(1_000_000_000)),
        1_000_000.. => format!("{}M", tenths(1_000_000)),
        1_000.. => format!("{}K", tenths(1_000)),
        _ => parameters.to_string(),
    }
}

fn details(m: &ModelCard) -> Value {
    json!({"parent_model": "", "format": "assay", "family": ARCHITECTURE, "families": [ARCHITECTURE],
           "parameter_size": size(m.parameters), "quantization_level": m.profile})
}

fn tag(m: &ModelCard) -> Value {
    let name = tagged(m);
    json!({"name": name, "model": name, "modified_at": created(m), "size": m.bytes,
           "digest": m.root.to_string().get(2..).unwrap_or_default(), "details": details(m)})
}

/// What is served.
pub(super) async fn tags<I: Inference>(State(s): State<Shared<I>>) -> Json<Value> {
    let models: Vec<Value> = s.inference.models().iter().map(tag).collect();
    Json(json!({"models": models}))
}

/// What is loaded: everything that is served.
pub(super) async fn running<I: Inference>(State(s): State<Shared<I>>) -> Json<Value> {
    let one = |m: &ModelCard| {
        let mut v = tag(m);
        // Models stay; clients want a time that is still to come.
        v["expires_at"] = json!("2318-01-01T00:00:00Z");
        v["size_vram"] = json!(0);
        v["context_length"] = json!(m.context_length);
        v
    };
    let models: Vec<Value> = s.inference.models().iter().map(one).collect();
    Json(json!({"models": models}))
}

/// One model.
pub(super) async fn show<I: Inference>(
    State(s): State<Shared<I>>,
    request: Request,
) -> Result<Json<Value>, Failure> {
    let received = dialect::receive(&s, request).await?;
    let body = dialect::object(&received.body)?;
    let o = Object(&body);
    for name in ["system", "template", "options"] {
        let asks = o.get(name).is_some_and(|v| *v != json!("") && *v != json!({}));
        if asks {
            return Err(unsupported(name, "a model is shown as it is").into());
        }
    }
    let name = match o.typed("model", "a string", Value::as_str)? {
        Some(name) => Some(name),
        None => o.typed("name", "a string", Value::as_str)?,
    };
    let name = name.ok_or_else(|| Refusal::Missing { param: "model".into() })?;
    let m = find_tagged(s.inference.as_ref(), name)?;
    let mut info = json!({"general.architecture": ARCHITECTURE, "general.parameter_count": m.parameters,
                          "general.basename": m.id, "general.root": m.root});
    info[format!("{ARCHITECTURE}.context_length")] = json!(m.context_length);
    let capabilities = match m.task {
        Task::Generate if m.has_chat_template => json!(["completion", "tools"]),
        Task::Generate => json!(["completion"]),
        Task::Embed { dimensions } => {
            info[format!("{ARCHITECTURE}.embedding_length")] = json!(dimensions);
            json!(["embedding"])
        }
    };
    Ok(Json(json!({"license": "", "modelfile": "", "parameters": "", "template": "", "details": details(&m),
                   "model_info": info, "capabilities": capabilities, "modified_at": created(&m)})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let check = |seconds: u64, expected: &str| {
            assert_eq!(time(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        };
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400, "2000-02-29T00:00:00.000000000Z");
        check(1_700_000_000, "2023-11-14T22:13:20.000000000Z");
        check(4_107_542_399, "2100-02-28T23:59:59.000000000Z");
        check(4_107_542_400, "2100-03-01T00:00:00.000000000Z");
        check(1_735_689_599, "2024-12-31T23:59:59.000000000Z");
    }

    #[test]
    fn sizes() {
        for (n, s) in [(7, "7"), (1500, "1.5K"), (260_000_000, "260.0M"), (7_241_732_096, "7.2B")] {
            assert_eq!(size(n), s);
        }
    }
}
