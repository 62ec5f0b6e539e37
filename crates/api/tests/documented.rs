//! `docs/api.md` is held to the server: every parameter's accepted and refused values, every error's row.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod mock;

use assay_api::{Refusal, ServerOptions};
use mock::Served;
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../../../docs/api.md");

/// Rows of the table whose first heading is `first`, cell by cell.
fn table(first: &str) -> Vec<Vec<String>> {
    let mut lines = DOCUMENT.lines().skip_while(|l| !l.starts_with(&format!("| {first} |"))).skip(2);
    let mut rows = Vec::new();
    while let Some(line) = lines.next().filter(|l| l.starts_with('|')) {
        let cells = line.trim_matches('|').split('|').map(|c| c.trim().to_owned());
        rows.push(cells.collect());
    }
    assert!(!rows.is_empty(), "the table of `{first}` is there");
    rows
}

/// JSON values between backticks.
fn values(cell: &str) -> Vec<Value> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(|v| serde_json::from_str(v).unwrap_or_else(|e| panic!("{v}: {e}")))
        .collect()
}

fn base(path: &str) -> Value {
    match path {
        "/v1/completions" => json!({"model": "mock/story", "prompt": "hi"}),
        _ => json!({"model": "mock/story", "messages": [{"role": "user", "content": "hi"}]}),
    }
}

#[tokio::test]
async fn parameters() {
    let s = Served::new(ServerOptions::default()).await;
    let (mut accepted, mut refused) = (0, 0);
    for row in table("parameter") {
        let [name, routes, treatment, good, bad, code] = &row[..] else { panic!("{row:?}") };
        let name = name.trim_matches('`');
        let paths: &[&str] = match routes.as_str() {
            "chat" => &["/v1/chat/completions"],
            "completions" => &["/v1/completions"],
            _ => &["/v1/chat/completions", "/v1/completions"],
        };
        for path in paths {
            for value in values(good).into_iter().chain([Value::Null]) {
                if value.is_null() && ["model", "messages", "prompt"].contains(&name) {
                    continue;
                }
                let mut body = base(path);
                body[name] = value.clone();
                let response = s.post(path, body).await;
                assert_eq!(
                    response.status(),
                    200,
                    "{path} {name} {value}: {}",
                    response.text().await.unwrap()
                );
                accepted += 1;
            }
            for value in values(bad) {
                let mut body = base(path);
                body[name] = value.clone();
                let response = s.post(path, body).await;
                assert_eq!(response.status(), 400, "{path} {name} {value}");
                let e: Value = response.json().await.unwrap();
                assert!(
                    e["error"]["param"].as_str().unwrap().starts_with(name),
                    "{path} {name} {value}: {e}"
                );
                assert_eq!(e["error"]["code"], code.trim_matches('`'), "{path} {name} {value}: {e}");
                refused += 1;
            }
        }
        let ignored = treatment.starts_with("ignored");
        assert!(ignored || !values(bad).is_empty(), "{name}: a refused value is shown");
    }
    assert!(accepted > 100 && refused > 60, "{accepted} accepted, {refused} refused");
}

#[test]
fn errors() {
    let text = String::new;
    let all = [
        Refusal::InvalidJson { reason: text() },
        Refusal::Missing { param: text() },
        Refusal::InvalidType { param: text(), expected: text() },
        Refusal::Invalid { param: text(), message: text() },
        Refusal::Unsupported { param: text(), reason: text() },
        Refusal::ContextExceeded { prompt: 1, window: 1 },
        Refusal::UnknownModel { asked: text() },
        Refusal::UnknownReceipt { asked: text() },
        Refusal::UnknownRoute { path: text() },
        Refusal::Method { method: text() },
        Refusal::BodyTimeout { after_s: 60 },
        Refusal::BodyTooLarge { limit: 1 },
        Refusal::Busy { retry_after_s: 1 },
        Refusal::Draining,
        Refusal::Internal { message: text() },
    ];
    let rows = table("code");
    assert_eq!(rows.len(), all.len());
    for (refusal, row) in all.iter().zip(rows) {
        let [code, status, kind, retry, _] = &row[..] else { panic!("{row:?}") };
        assert_eq!(code.trim_matches('`'), refusal.code());
        assert_eq!(*status, refusal.status().as_u16().to_string());
        assert_eq!(kind.trim_matches('`'), refusal.to_json()["error"]["type"]);
        assert_eq!(retry == "yes", refusal.may_retry(), "{code}");
    }
}

#[tokio::test]
async fn metrics() {
    let s = Served::new(ServerOptions::default()).await;
    s.post("/v1/chat/completions", base("")).await;
    let text = s.get("/metrics").await.text().await.unwrap();
    let section = DOCUMENT.split("## Metrics").nth(1).unwrap();
    let names: Vec<&str> = section.split('`').filter(|w| w.starts_with("vllm:")).collect();
    assert!(names.len() >= 9);
    for name in names {
        assert!(text.contains(name), "{name}");
    }
}
