//! `x-assay-verification` on every route that answers: what is asked for, what reaches whoever answers, and what is said of the answer.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod mock;

use assay_api::{Class, ServerOptions};
use assay_core::consent::Consent;
use mock::{Served, receipt_id};
use serde_json::{Value, json};

const HEADER: &str = "x-assay-verification";

/// A request to every route that answers.
fn routes() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    vec![
        ("/v1/chat/completions", json!({"model": "mock/story", "messages": messages})),
        ("/v1/completions", json!({"model": "mock/story", "prompt": "hi"})),
        ("/v1/responses", json!({"model": "mock/story", "input": "hi"})),
        ("/v1/messages", json!({"model": "mock/story", "messages": messages, "max_tokens": 4})),
        ("/api/chat", json!({"model": "mock/story", "messages": messages})),
        ("/api/generate", json!({"model": "mock/story", "prompt": "hi"})),
    ]
}

async fn send(s: &Served, path: &str, body: &Value, class: Option<&str>) -> reqwest::Response {
    let request = s.client.post(format!("{}{path}", s.url)).json(body);
    let request = class.into_iter().fold(request, |request, class| request.header(HEADER, class));
    request.send().await.unwrap()
}

fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_class_decides_who_may_see_the_request() {
    let s = Served::new(ServerOptions::default()).await;
    for (path, body) in routes() {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = json!(stream);
            for (asked, class, consent) in [
                (None, Class::Sampled, Consent::Given),
                (Some("none"), Class::None, Consent::Withheld),
                (Some("sampled"), Class::Sampled, Consent::Given),
                (Some("full"), Class::Full, Consent::Given),
            ] {
                let response = send(&s, path, &body, asked).await;
                assert_eq!(response.status(), 200, "{path}");
                assert_eq!(header(&response, HEADER), Some(class.to_string()), "{path}");
                let second = format!("{} 0x{} 0.20/0.80", receipt_id(7), "02".repeat(20));
                let expected = (class == Class::Full).then_some(second);
                assert_eq!(header(&response, "x-assay-second"), expected, "{path}");
                // What stock clients and older scripts read names the answer that is told, and only that.
                assert_eq!(header(&response, "x-assay-receipt"), Some(receipt_id(0).to_string()));
                assert_eq!(header(&response, "x-assay-price").as_deref(), Some("0.10/0.40"));
                response.bytes().await.unwrap();
                let order = s.mock.last.lock().unwrap().clone().unwrap();
                assert_eq!((order.request.audit, order.caller.class), (consent, class), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_class_is_refused_before_anything_runs() {
    let s = Served::new(ServerOptions::default()).await;
    for (path, body) in routes() {
        for bad in ["", "None", "FULL", "all", "none, full", "sampled;q=1"] {
            let response = send(&s, path, &body, Some(bad)).await;
            assert_eq!(response.status(), 400, "{path} {bad:?}");
            let text = response.text().await.unwrap();
            assert!(text.contains("`none`, `sampled` or `full`"), "{path} {bad:?}: {text}");
        }
    }
    let (path, body) = &routes()[0];
    let error: Value = send(&s, path, body, Some("half")).await.json().await.unwrap();
    assert_eq!(
        (&error["error"]["code"], &error["error"]["param"]),
        (&json!("invalid_value"), &json!(HEADER))
    );
    assert!(s.mock.last.lock().unwrap().is_none());
}

#[tokio::test]
async fn the_operator_says_what_holds_without_a_word() {
    let s = Served::new(ServerOptions { class: Class::Full, ..ServerOptions::default() }).await;
    let (path, body) = &routes()[0];
    assert_eq!(header(&send(&s, path, body, None).await, HEADER).as_deref(), Some("full"));
    assert_eq!(header(&send(&s, path, body, Some("none")).await, HEADER).as_deref(), Some("none"));
}

#[tokio::test]
async fn every_choice_has_its_class() {
    let s = Served::new(ServerOptions::default()).await;
    let body = json!({"model": "mock/story", "prompt": "hi", "n": 2});
    let response = send(&s, "/v1/completions", &body, Some("full")).await;
    assert_eq!(header(&response, HEADER).as_deref(), Some("full, full"));
    let seconds = header(&response, "x-assay-second").unwrap();
    let receipts: Vec<&str> = seconds.split(", ").map(|one| one.split(' ').next().unwrap()).collect();
    assert_eq!(receipts, [receipt_id(7).to_string(), receipt_id(8).to_string()]);
}

#[tokio::test]
async fn vectors_have_a_class_too() {
    let s = Served::new(ServerOptions::default()).await;
    for (path, body) in [
        ("/v1/embeddings", json!({"model": "mock/encoder", "input": "hi"})),
        ("/api/embed", json!({"model": "mock/encoder", "input": "hi"})),
    ] {
        for (asked, consent) in [(None, Consent::Given), (Some("none"), Consent::Withheld)] {
            let response = send(&s, path, &body, asked).await;
            // The mock's receipts are of no ledger: nobody is drawn to check them.
            assert_eq!(
                (response.status().as_u16(), header(&response, HEADER).as_deref()),
                (200, Some("none"))
            );
            let order = s.mock.last_embedding.lock().unwrap().clone().unwrap();
            assert_eq!(order.request.audit, consent, "{path}");
        }
        assert_eq!(send(&s, path, &body, Some("some")).await.status(), 400);
    }
}
