//! The envelope of JSON-RPC 2.0: one request or a batch, ids of every kind, notifications.

use serde_json::{Map, Value, json};

use super::answer::RpcError;
use crate::chain::Chain;
use crate::limits;

/// Answers a body; nothing if it held notifications alone.
pub(crate) fn respond(chain: &Chain, body: &[u8]) -> Option<Vec<u8>> {
    let answer = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Array(batch)) => answer_batch(chain, batch),
        Ok(request) => answer_one(chain, request),
        Err(error) => {
            Some(wrong(Value::Null, RpcError::new(RpcError::PARSE, format!("parse error: {error}"))))
        }
    };
    answer.map(|answer| answer.to_string().into_bytes())
}

fn answer_batch(chain: &Chain, batch: Vec<Value>) -> Option<Value> {
    if batch.is_empty() {
        return Some(wrong(Value::Null, RpcError::new(RpcError::REQUEST, "empty batch")));
    }
    if batch.len() > limits::BATCH_MAX {
        let words = format!("batch of {} requests, limit {}", batch.len(), limits::BATCH_MAX);
        return Some(wrong(Value::Null, RpcError::new(RpcError::REQUEST, words)));
    }
    let (mut answers, mut bytes) = (Vec::new(), 0usize);
    for request in batch {
        let id = request.get("id").cloned();
        let answer = if bytes > limits::BATCH_ANSWER_BYTES_MAX {
            id.map(|id| wrong(id, RpcError::new(RpcError::LIMIT, "the batch's answers are too large")))
        } else {
            answer_one(chain, request)
        };
        if let Some(answer) = answer {
            bytes = bytes.saturating_add(size(&answer));
            answers.push(answer);
        }
    }
    (!answers.is_empty()).then_some(Value::Array(answers))
}

/// About how many bytes a value is.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len().saturating_add(2),
        Value::Array(values) => values.iter().map(size).sum::<usize>().saturating_add(2),
        Value::Object(fields) => {
            fields.iter().map(|(k, v)| k.len().saturating_add(size(v)).saturating_add(4)).sum()
        }
    }
}

fn answer_one(chain: &Chain, request: Value) -> Option<Value> {
    let refuse = |id: Value, words: &str| Some(wrong(id, RpcError::new(RpcError::REQUEST, words)));
    let Value::Object(mut fields) = request else {
        return refuse(Value::Null, "a request has to be an object");
    };
    let id = fields.remove("id");
    if let Some(id) = &id
        && !matches!(id, Value::Null | Value::String(_) | Value::Number(_))
    {
        return refuse(Value::Null, "an id has to be a string, a number or null");
    }
    let known = id.clone().unwrap_or(Value::Null);
    if fields.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return refuse(known, "jsonrpc has to be \"2.0\"");
    }
    let Some(Value::String(method)) = fields.remove("method") else {
        return refuse(known, "method has to be a string");
    };
    let result = chain.request(&method, fields.remove("params").unwrap_or(Value::Null));
    let id = id?; // A notification is carried out, and not answered.
    Some(match result {
        Ok(result) => {
            let mut answer = Map::new();
            answer.insert("jsonrpc".into(), "2.0".into());
            answer.insert("id".into(), id);
            answer.insert("result".into(), result);
            Value::Object(answer)
        }
        Err(error) => wrong(id, error),
    })
}

fn wrong(id: Value, error: RpcError) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": error})
}
