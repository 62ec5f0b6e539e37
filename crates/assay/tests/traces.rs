//! Traces by OpenTelemetry: one request through a gateway and a provider, as a collector sees it.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use harness::{MODEL, Node, chat, client, command};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// What no span may say.
const SECRET: &str = "Zanzibar";

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<Bytes>>>);

async fn take(State(collected): State<Collected>, body: Bytes) {
    collected.0.lock().unwrap().push(body);
}

/// A collector on a free port: its URL, and what it was sent.
async fn collector() -> (String, Collected) {
    let collected = Collected::default();
    let routes = Router::new().route("/v1/traces", post(take)).with_state(collected.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (url, collected)
}

/// A span with its service's name.
struct Seen {
    service: String,
    span: Span,
}

fn text(value: &Attribute) -> String {
    match value {
        Attribute::StringValue(text) => text.clone(),
        Attribute::IntValue(number) => number.to_string(),
        Attribute::BoolValue(yes) => yes.to_string(),
        other => panic!("{other:?}"),
    }
}

impl Seen {
    fn attributes(&self) -> BTreeMap<String, String> {
        let of = |a: &opentelemetry_proto::tonic::common::v1::KeyValue| {
            Some((a.key.clone(), text(a.value.as_ref()?.value.as_ref()?)))
        };
        self.span.attributes.iter().filter_map(of).collect()
    }

    fn attribute(&self, key: &str) -> String {
        self.attributes()
            .remove(key)
            .unwrap_or_else(|| panic!("{} has no {key}: {:?}", self.span.name, self.attributes()))
    }

    fn is_below(&self, above: &Seen) -> bool {
        self.span.parent_span_id == above.span.span_id && self.span.trace_id == above.span.trace_id
    }
}

impl Collected {
    fn spans(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        for body in self.0.lock().unwrap().iter() {
            let request = ExportTraceServiceRequest::decode(body.clone()).unwrap();
            for resource in request.resource_spans {
                let attributes = resource.resource.unwrap().attributes;
                let service = attributes.iter().find(|a| a.key == "service.name").unwrap().value.clone();
                let service = text(&service.unwrap().value.unwrap());
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                seen.extend(spans.map(|span| Seen { service: service.clone(), span }));
            }
        }
        seen
    }
}

fn traced(home: &Path, url: &str) -> Command {
    let mut command = command(home);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    command
}

/// Ends a process; it sends its last spans before.
fn stop(node: Node) {
    node.signal("TERM");
    assert!(node.exit().success());
}

#[tokio::test]
async fn a_request_is_one_trace_through_gateway_and_provider_without_its_words() {
    let (url, collected) = collector().await;
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut up = traced(homes[0].path(), &url);
    up.arg("up");
    let provider = Node::at(up, "127.0.0.1:0");
    let mut open = traced(homes[1].path(), &url);
    open.args(["gateway", "--open", "--provider", &provider.url]);
    let gateway = Node::at(open, "127.0.0.1:0");

    let asked = client()
        .post(gateway.chat_url())
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .header("authorization", "Bearer sk-very-secret")
        .json(&chat(&format!("Tell me of {SECRET}"), 7, 12));
    let answered = asked.send().await.unwrap();
    assert_eq!(answered.status(), 200);
    let receipt = answered.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
    let answer: Value = answered.json().await.unwrap();
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap().trim().to_owned();
    let usage = |key: &str| answer["usage"][key].as_u64().unwrap().to_string();
    // What is refused is traced too, by its code.
    let wrong = chat("hi", 1, 1).as_object().cloned().map(|mut body| {
        body.insert("model".into(), "no-such-model".into());
        body
    });
    assert_eq!(client().post(gateway.chat_url()).json(&wrong).send().await.unwrap().status(), 404);
    // What asks for no work is not.
    assert_eq!(client().get(format!("{}/health", gateway.url)).send().await.unwrap().status(), 200);
    let port = provider.url.rsplit(':').next().unwrap().to_owned();
    tokio::task::spawn_blocking(|| [gateway, provider].map(stop)).await.unwrap();

    let spans = collected.spans();
    let one = |service: &str, name: &str| {
        let of = |s: &&Seen| s.service == service && s.span.name == name && hex(&s.span.trace_id) == TRACE;
        let found: Vec<&Seen> = spans.iter().filter(of).collect();
        let names: Vec<_> = spans.iter().map(|s| (&s.service, &s.span.name)).collect();
        assert_eq!(found.len(), 1, "{service} {name}: {names:?}");
        found[0]
    };
    let chat_name = format!("chat {MODEL}");
    let request = one("assay-gateway", "POST /v1/chat/completions");
    let attempt = one("assay-gateway", &chat_name);
    let order = one("assay-provider", "POST /v1/orders");
    let execution = one("assay-provider", &chat_name);
    assert_eq!(hex(&request.span.parent_span_id), PARENT);
    assert!(attempt.is_below(request) && order.is_below(attempt) && execution.is_below(order));
    for part in ["queue", "prefill", "decode", "sign and store"] {
        let part = one("assay-provider", part);
        assert!(part.is_below(execution));
        assert!(part.span.start_time_unix_nano <= part.span.end_time_unix_nano);
    }
    for span in [request, attempt, execution] {
        assert_eq!(span.attribute("gen_ai.operation.name"), "chat");
        assert_eq!(span.attribute("gen_ai.provider.name"), "assay");
        assert_eq!(span.attribute("gen_ai.request.model"), MODEL);
        assert_eq!(span.attribute("gen_ai.request.max_tokens"), "12");
        assert_eq!(span.attribute("gen_ai.response.id"), receipt);
        assert_eq!(span.attribute("gen_ai.usage.input_tokens"), usage("prompt_tokens"));
        assert_eq!(span.attribute("gen_ai.usage.output_tokens"), usage("completion_tokens"));
        assert!(!span.attributes().contains_key("error.type"));
    }
    assert_eq!(request.attribute("http.response.status_code"), "200");
    assert_eq!(
        (attempt.attribute("server.address"), attempt.attribute("server.port")),
        ("127.0.0.1".to_owned(), port)
    );
    let refused = spans.iter().find(|s| s.attributes().contains_key("error.type")).unwrap();
    assert_eq!(refused.attribute("error.type"), "model_not_found");
    assert_eq!(refused.attribute("http.response.status_code"), "404");
    assert!(spans.iter().all(|s| !s.span.name.contains("health")));

    // Neither the question nor the answer nor the key is anywhere in what was sent.
    assert!(said.len() > 8, "{said}");
    for body in collected.0.lock().unwrap().iter() {
        for secret in [SECRET, "sk-very-secret", &said] {
            assert!(!body.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret}");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test]
async fn a_collector_that_is_gone_and_an_endpoint_that_is_none_fail_nothing() {
    let home = tempfile::tempdir().unwrap();
    // Nobody listens at port 1.
    for endpoint in ["http://127.0.0.1:1", "not a url"] {
        let mut up = traced(home.path(), endpoint);
        up.arg("up");
        let node = Node::at(up, "127.0.0.1:0");
        let answered = client().post(node.chat_url()).json(&chat("Hello", 1, 4)).send().await.unwrap();
        assert_eq!(answered.status(), 200, "{endpoint}");
        tokio::task::spawn_blocking(|| stop(node)).await.unwrap();
    }
}
