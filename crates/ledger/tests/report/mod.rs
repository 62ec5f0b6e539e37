//! Measured numbers, merged into a file of JSON: what others have put there stays.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::path::Path;

use serde_json::{Map, Value};

/// Puts `value` under `key` in the file that `ASSAY_REPORT` names, from the workspace's root on; nowhere if it names none. Members of an object go
/// beside those that are there.
pub fn merge(key: &str, value: Value) {
    let Ok(path) = std::env::var("ASSAY_REPORT") else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    let mut all: Map<String, Value> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("the report is JSON"),
        Err(_) => Map::new(),
    };
    match (all.get_mut(key), value) {
        (Some(Value::Object(there)), Value::Object(new)) => there.extend(new),
        (_, value) => drop(all.insert(key.to_owned(), value)),
    }
    std::fs::write(&path, serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
}
