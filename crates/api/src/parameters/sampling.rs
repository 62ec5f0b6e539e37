//! How the next token is chosen, and what ends the answer.

use assay_core::limits;
use assay_core::request::Sampling;
use serde_json::Value;

use super::{Object, invalid, micro, out_of_range, wrong_type};
use crate::Refusal;

/// Everything about sampling.
pub(crate) fn sampling(o: &Object<'_>) -> Result<Sampling, Refusal> {
    Ok(Sampling {
        temperature_micro: o.micro("temperature", 0.0, 2.0, 1_000_000)?,
        top_k: top_k(o)?,
        top_p_micro: o.micro("top_p", 0.000_001, 1.0, 1_000_000)?,
        min_p_micro: o.micro("min_p", 0.0, 1.0, 0)?,
        seed: seed(o)?,
        presence_micro: o.signed_micro("presence_penalty", -2.0, 2.0)?,
        frequency_micro: o.signed_micro("frequency_penalty", -2.0, 2.0)?,
        repetition_micro: o.micro("repetition_penalty", 0.01, 10.0, limits::ONE_MICRO)?,
        bias: bias(o)?,
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

/// Biases in rising order of ids. A key must be the one way to write its id, so that no id is named twice.
fn bias(o: &Object<'_>) -> Result<Vec<(u32, i32)>, Refusal> {
    let expected = "an object from token ids to numbers";
    let Some(map) = o.typed("logit_bias", expected, Value::as_object)? else { return Ok(vec![]) };
    if map.len() > limits::BIASES_MAX {
        return Err(out_of_range("logit_bias", &format!("up to {} ids", limits::BIASES_MAX)));
    }
    let mut all = Vec::with_capacity(map.len());
    for (key, value) in map {
        let id = key.parse::<u32>().ok().filter(|id| id.to_string() == *key);
        let message = "`logit_bias` must have token ids as keys, each in decimal digits";
        let id = id.ok_or_else(|| invalid("logit_bias", message))?;
        all.push((id, micro(&format!("logit_bias.{id}"), value, -100.0, 100.0)? as i32));
    }
    all.sort_unstable();
    Ok(all)
}

/// Texts that end the answer.
pub(crate) fn stop(o: &Object<'_>) -> Result<Vec<String>, Refusal> {
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
    let (most, bytes) = (limits::STOP_STRINGS_MAX, limits::STOP_STRING_BYTES_MAX);
    if strings.len() > most || strings.iter().any(|s| s.is_empty() || s.len() > bytes) {
        return Err(out_of_range("stop", &format!("up to {most} strings of 1 to {bytes} bytes")));
    }
    Ok(strings)
}
