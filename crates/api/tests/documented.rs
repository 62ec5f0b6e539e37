//! `docs/api.md` is held to the server: every parameter's accepted and refused values, every error's row.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod mock;

use assay_api::{
    CallerProblem, CallerRefused, CallerTerms, ChannelState, PaymentProblem, PaymentRefused, PaymentTerms,
    Refusal, ServerOptions,
};
use assay_core::id::{AccountAddress, ChannelId, NodeAddress};
use mock::Served;
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../../../docs/api.md");

/// Rows of the first table after a heading, cell by cell.
fn table(heading: &str) -> Vec<Vec<String>> {
    let mut lines =
        DOCUMENT.lines().skip_while(|l| *l != heading).skip_while(|l| !l.starts_with('|')).skip(2);
    let mut rows = Vec::new();
    while let Some(line) = lines.next().filter(|l| l.starts_with('|')) {
        let cells = line.strip_prefix('|').unwrap().strip_suffix('|').unwrap().split('|');
        rows.push(cells.map(|c| c.trim().to_owned()).collect());
    }
    assert!(!rows.is_empty(), "the table under `{heading}` is there");
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

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";

/// A request to which a parameter is added, with those that it needs beside it.
fn base(path: &str, parameter: &str) -> Value {
    let mut body = match path {
        COMPLETIONS => json!({"model": "mock/story", "prompt": "hi"}),
        RESPONSES => json!({"model": "mock/story", "input": "hi"}),
        EMBEDDINGS => json!({"model": "mock/encoder", "input": "hi"}),
        _ => json!({"model": "mock/story", "messages": [{"role": "user", "content": "hi"}]}),
    };
    match (path, parameter) {
        (CHAT, "tool_choice") => body["tools"] = json!([{"type": "function", "function": {"name": "f"}}]),
        (RESPONSES, "tool_choice") => body["tools"] = json!([{"type": "function", "name": "f"}]),
        (CHAT, "top_logprobs") => body["logprobs"] = json!(true),
        _ => {}
    }
    body
}

struct Parameter<'a> {
    name: &'a str,
    treatment: &'a str,
    good: &'a str,
    bad: &'a str,
    code: &'a str,
}

/// Sends every value of a row; returns how many were accepted and refused.
async fn row(s: &Served, path: &str, p: &Parameter<'_>) -> (u32, u32) {
    let (name, mut accepted, mut refused) = (p.name, 0, 0);
    let required = ["model", "messages", "prompt", "input"].contains(&name);
    let absent = (!required || (path, name) == (RESPONSES, "messages")).then_some(Value::Null);
    for value in values(p.good).into_iter().chain(absent) {
        let mut body = base(path, name);
        body[name] = value.clone();
        let response = s.post(path, body).await;
        let status = response.status();
        assert_eq!(status, 200, "{path} {name} {value}: {}", response.text().await.unwrap());
        accepted += 1;
    }
    for value in values(p.bad) {
        let mut body = base(path, name);
        body[name] = value.clone();
        let response = s.post(path, body).await;
        assert_eq!(response.status(), 400, "{path} {name} {value}");
        let e: Value = response.json().await.unwrap();
        assert!(e["error"]["param"].as_str().unwrap().starts_with(name), "{path} {name} {value}: {e}");
        assert_eq!(e["error"]["code"], p.code.trim_matches('`'), "{path} {name} {value}: {e}");
        refused += 1;
    }
    let ignored = p.treatment.starts_with("ignored");
    assert!(ignored || refused > 0, "{path} {name}: a refused value is shown");
    (accepted, refused)
}

#[tokio::test]
async fn parameters_of_chat_and_completions() {
    let s = Served::new(ServerOptions::default()).await;
    let mut count = (0, 0);
    for cells in table("### Chat and completions") {
        let [name, routes, treatment, good, bad, code] = &cells[..] else { panic!("{cells:?}") };
        let name = name.trim_matches('`');
        let paths: &[&str] = match routes.as_str() {
            "chat" => &[CHAT],
            "completions" => &[COMPLETIONS],
            "both" => &[CHAT, COMPLETIONS],
            _ => panic!("{cells:?}"),
        };
        for path in paths {
            let sent = row(&s, path, &Parameter { name, treatment, good, bad, code }).await;
            count = (count.0 + sent.0, count.1 + sent.1);
        }
    }
    assert!(count.0 > 200 && count.1 > 130, "{count:?}");
}

#[tokio::test]
async fn parameters_of_the_other_routes() {
    let s = Served::new(ServerOptions::default()).await;
    for (heading, path, least) in [("### Responses", RESPONSES, 70), ("### Embeddings", EMBEDDINGS, 14)] {
        let mut count = (0, 0);
        for cells in table(heading) {
            let [name, treatment, good, bad, code] = &cells[..] else { panic!("{cells:?}") };
            let name = name.trim_matches('`');
            let sent = row(&s, path, &Parameter { name, treatment, good, bad, code }).await;
            count = (count.0 + sent.0, count.1 + sent.1);
        }
        assert!(count.0 >= least && count.1 >= least, "{path}: {count:?}");
    }
}

#[test]
fn errors() {
    let text = String::new;
    let terms = PaymentTerms {
        chain_id: 1,
        channels: AccountAddress::ZERO,
        token: AccountAddress::ZERO,
        token_domain: (text(), text()),
        receiver: NodeAddress::ZERO,
        withdraw_delay_s: 900,
        most: 1,
    };
    let channel = ChannelState { id: ChannelId::ZERO, charged: 1, voucher: None, balance: 1, claimed: 1 };
    let payment = |problem| Refusal::Payment(Box::new(PaymentRefused { problem, terms: terms.clone() }));
    let caller_terms = CallerTerms {
        chain_id: 1,
        token: AccountAddress::ZERO,
        token_domain: (text(), text()),
        receiver: AccountAddress::ZERO,
        exact: true,
        upto: true,
        most: 1,
    };
    let caller = |problem| Refusal::Caller(Box::new(CallerRefused { problem, terms: caller_terms.clone() }));
    // What both kinds of payment have in common has one row.
    for (of_caller, of_voucher) in [
        (CallerProblem::Required, PaymentProblem::Required),
        (CallerProblem::Unverified, PaymentProblem::Unverified),
    ] {
        let (of_caller, of_voucher) = (caller(of_caller), payment(of_voucher));
        assert_eq!((of_caller.code(), of_caller.status()), (of_voucher.code(), of_voucher.status()));
        assert_eq!(of_caller.may_retry(), of_voucher.may_retry());
    }
    let all = [
        Refusal::InvalidJson { reason: text() },
        Refusal::Missing { param: text() },
        Refusal::InvalidType { param: text(), expected: text() },
        Refusal::Invalid { param: text(), message: text() },
        Refusal::Unsupported { param: text(), reason: text() },
        Refusal::ModelTask { asked: text(), does: text() },
        Refusal::ContextExceeded { prompt: 1, window: 1 },
        Refusal::UnknownModel { asked: text() },
        Refusal::ModelArriving { asked: text(), retry_after_s: 1 },
        Refusal::ModelWithdrawn { model: text(), reason: text() },
        Refusal::UnknownReceipt { asked: text() },
        Refusal::UnknownRoute { path: text() },
        Refusal::Method { method: text() },
        Refusal::BodyTimeout { after_s: 60 },
        Refusal::BodyTooLarge { limit: 1 },
        Refusal::Busy { retry_after_s: 1 },
        Refusal::Unauthorised { message: text() },
        Refusal::Balance { message: text() },
        Refusal::Limited { message: text(), retry_after_s: 1 },
        payment(PaymentProblem::Required),
        payment(PaymentProblem::Invalid { reason: text() }),
        payment(PaymentProblem::Unfunded { balance: 1, needed: 2 }),
        payment(PaymentProblem::Closing),
        payment(PaymentProblem::Busy),
        payment(PaymentProblem::Stale(channel)),
        payment(PaymentProblem::Unverified),
        caller(CallerProblem::Invalid { error: text(), reason: text() }),
        caller(CallerProblem::Allowance),
        caller(CallerProblem::Unfunded { balance: 1, needed: 2 }),
        caller(CallerProblem::Used { what: text() }),
        caller(CallerProblem::Busy),
        caller(CallerProblem::Crowded { running: 1 }),
        caller(CallerProblem::Failed { reason: text() }),
        caller(CallerProblem::Barred { reason: text() }),
        caller(CallerProblem::Pending),
        Refusal::NoLane { asked: text() },
        Refusal::NoProvider { asked: text(), terms: text() },
        Refusal::ConsentRequired { asked: text() },
        Refusal::NoSecondProvider { asked: text(), terms: text() },
        Refusal::AnswersDiffer { first: text(), second: text() },
        Refusal::ProviderLost { reason: text() },
        Refusal::Draining,
        Refusal::Internal { message: text() },
    ];
    let rows = table("## Errors");
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
    s.post(CHAT, base(CHAT, "")).await;
    let text = s.get("/metrics").await.text().await.unwrap();
    let section = DOCUMENT.split("## Metrics").nth(1).unwrap();
    let names: Vec<&str> = section.split('`').filter(|w| w.starts_with("vllm:")).collect();
    assert!(names.len() >= 9);
    for name in names {
        assert!(text.contains(name), "{name}");
    }
}
