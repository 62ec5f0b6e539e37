//! The same requests to this chain and to anvil. Every answer is compared as a whole: the same fields, and the same values, but where
//! [`VOLATILE`] and [`DIFFERENCES`] say why not. Errors are compared by code and data; their words are the clients' business in
//! `words.rs`.
#![allow(clippy::unwrap_used)]

mod harness;
mod scenario;

use harness::Node;
use scenario::{Recorded, Script};
use serde_json::{Map, Value};

/// Fields whose values are each chain's own, with the reason.
const VOLATILE: &[(&str, &str)] = &[
    (
        "hash",
        "of a block: extra data, time and state root go into it; a transaction's hash is in transactionHash too",
    ),
    ("blockHash", "as hash"),
    ("parentHash", "as hash"),
    ("stateRoot", "a running hash here, a Merkle root there"),
    ("mixHash", "random"),
    ("timestamp", "the time of the test"),
    ("blockTimestamp", "the time of the test"),
    ("extraData", "this chain says what it is"),
    ("size", "extra data counts"),
];

/// Fields that one of the chains shows and the other does not: (field, in which answers, why).
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("blobGasPrice", "receipt", "anvil shows it for transactions without blobs; geth does not"),
    ("blockTimestamp", "receipt", "anvil adds it, as a number that is not hex; geth does not"),
    ("reward", "without percentiles", "anvil shows an empty list; geth shows none"),
];

/// Values that differ: (field, in which steps, why).
const VALUES: &[(&str, &str, &str)] = &[(
    "gasPrice",
    ": waiting",
    "anvil shows what would be paid now, this chain the most that may be paid, as geth does",
)];

/// Errors whose codes differ: (step, ours, anvil's, why).
const CODES: &[(&str, i64, i64, &str)] = &[(
    "too much gas (eth_sendRawTransaction)",
    -32003,
    -32000,
    "a refused transaction, as EIP-1474 numbers them",
)];

#[tokio::test(flavor = "multi_thread")]
async fn this_chain_answers_as_anvil_does() {
    let ours = scenario::run(&Node::chain().await).await;
    assert!(ours.steps.len() > 100, "the scenario has {} steps", ours.steps.len());
    let Some(anvil) = Node::anvil("conformance") else { return };
    let theirs = scenario::run(&anvil).await;
    let differences = compared(&ours, &theirs);
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}

fn compared(ours: &Script, theirs: &Script) -> Vec<String> {
    assert_eq!(ours.steps.len(), theirs.steps.len());
    let mut found = Vec::new();
    for (ours, theirs) in ours.steps.iter().zip(&theirs.steps) {
        assert_eq!(ours.name, theirs.name);
        let mut say = |at: &str, ours: &Value, theirs: &Value| {
            found.push(format!("{at}: ours {ours}, anvil's {theirs}"));
        };
        one(ours, theirs, &mut say);
    }
    found
}

fn one(ours: &Recorded, theirs: &Recorded, say: &mut impl FnMut(&str, &Value, &Value)) {
    match (&ours.answer, &theirs.answer) {
        (Ok(a), Ok(b)) => deep(&ours.name, &ours.name, a, b, say),
        (Err(a), Err(b)) => {
            let codes = (a["code"].as_i64().unwrap(), b["code"].as_i64().unwrap());
            let listed = CODES.iter().any(|(step, x, y, _)| *step == ours.name && codes == (*x, *y));
            if codes.0 != codes.1 && !listed {
                say(&ours.name, a, b);
            }
            deep(&format!("{} error data", ours.name), &ours.name, &a["data"], &b["data"], say);
        }
        (a, b) => say(&ours.name, &as_value(a), &as_value(b)),
    }
}

fn as_value(answer: &Result<Value, Value>) -> Value {
    match answer {
        Ok(value) => serde_json::json!({ "result": value }),
        Err(error) => serde_json::json!({ "error": error }),
    }
}

fn deep(at: &str, step: &str, ours: &Value, theirs: &Value, say: &mut impl FnMut(&str, &Value, &Value)) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => objects(at, step, a, b, say),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                deep(&format!("{at}[{index}]"), step, a, b, say);
            }
        }
        (a, b) if a == b => {}
        (a, b) => say(at, a, b),
    }
}

fn objects(
    at: &str,
    step: &str,
    ours: &Map<String, Value>,
    theirs: &Map<String, Value>,
    say: &mut impl FnMut(&str, &Value, &Value),
) {
    let transaction = ours.contains_key("nonce") && ours.contains_key("from");
    for key in ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key))) {
        let at = format!("{at}.{key}");
        match (ours.get(key), theirs.get(key)) {
            (Some(a), Some(b)) => {
                let volatile =
                    VOLATILE.iter().any(|(field, _)| field == key) && !(transaction && key == "hash");
                if VALUES.iter().any(|(field, r#in, _)| field == key && step.contains(r#in)) {
                    continue;
                }
                if volatile && a.is_null() == b.is_null() {
                    continue;
                }
                deep(&at, step, a, b, say);
            }
            (a, b) => {
                let listed = DIFFERENCES
                    .iter()
                    .any(|(field, r#in, _)| field == key && step.to_lowercase().contains(r#in));
                if !listed {
                    say(&at, a.unwrap_or(&Value::Null), b.unwrap_or(&Value::Null));
                }
            }
        }
    }
}
