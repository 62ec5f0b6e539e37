//! `docs/compatibility.md` is held to the server: every parameter's accepted and refused values.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod compat_mock;

use assay_api::{Refusal, ServerOptions};
use compat_mock::Served;
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../../../docs/compatibility.md");

/// Rows of the first table with this first heading in this section, cell by cell.
fn table(section: &str, first: &str) -> Vec<Vec<String>> {
    let section = DOCUMENT.split("\n## ").find(|s| s.starts_with(section)).unwrap();
    let lines = section.lines().skip_while(|l| !l.starts_with(&format!("| {first} |"))).skip(2);
    let rows: Vec<Vec<String>> = lines
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty());
    rows
}

/// JSON values between backticks.
fn values(cell: &str) -> Vec<Value> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.map(|v| serde_json::from_str(v).unwrap_or_else(|e| panic!("{v}: {e}"))).collect()
}

async fn hold(section: &str, first: &str, path: &str, body: impl Fn(&str, Value) -> Value) -> (usize, usize) {
    let s = Served::new(ServerOptions::default()).await;
    let (mut accepted, mut refused) = (0, 0);
    for row in table(section, first) {
        let [name, treatment, good, bad] = &row[..] else { panic!("{row:?}") };
        let name = name.trim_matches('`');
        for value in values(good) {
            let response = s.post(path, body(name, value.clone())).await;
            let status = response.status();
            assert_eq!(status, 200, "{path} {name} {value}: {}", response.text().await.unwrap());
            accepted += 1;
        }
        for value in values(bad) {
            let response = s.post(path, body(name, value.clone())).await;
            assert_eq!(response.status(), 400, "{path} {name} {value}");
            let text = response.text().await.unwrap();
            assert!(text.contains(name), "{path} {name} {value}: {text}");
            refused += 1;
        }
        let shown = !values(bad).is_empty() || treatment.starts_with("ignored") || name == "repeat_last_n";
        assert!(shown, "{name}: a refused value is shown");
    }
    (accepted, refused)
}

fn ask() -> Value {
    json!({"model": "story", "messages": [{"role": "user", "content": "hi"}]})
}

#[tokio::test]
async fn anthropic() {
    let body = |name: &str, value: Value| {
        let mut body = ask();
        body["max_tokens"] = json!(5);
        body[name] = value;
        body
    };
    let (accepted, refused) = hold("Anthropic: messages", "parameter", "/v1/messages", body).await;
    assert!(accepted > 20 && refused > 30, "{accepted} accepted, {refused} refused");
}

#[tokio::test]
async fn ollama() {
    let body = |name: &str, value: Value| {
        let mut body = ask();
        body["stream"] = json!(false);
        body[name] = value;
        body
    };
    let (accepted, refused) = hold("Ollama: chat", "parameter", "/api/chat", body).await;
    assert!(accepted > 20 && refused > 10, "{accepted} accepted, {refused} refused");
    let body = |name: &str, value: Value| {
        let mut body = ask();
        body["options"] = json!({name: value});
        body
    };
    let (accepted, refused) = hold("Ollama: chat", "option", "/api/chat", body).await;
    assert!(accepted > 25 && refused > 15, "{accepted} accepted, {refused} refused");
}

#[test]
fn errors() {
    let all = [Refusal::UnknownFile { asked: String::new() }, Refusal::UnknownBatch { asked: String::new() }];
    let rows = table("Batches", "code");
    assert_eq!(rows.len(), all.len());
    for (refusal, row) in all.iter().zip(rows) {
        let [code, status, kind, retry, _] = &row[..] else { panic!("{row:?}") };
        assert_eq!(code.trim_matches('`'), refusal.code());
        assert_eq!(*status, refusal.status().as_u16().to_string());
        assert_eq!(kind.trim_matches('`'), refusal.to_json()["error"]["type"]);
        assert_eq!(retry == "yes", refusal.may_retry(), "{code}");
    }
}
