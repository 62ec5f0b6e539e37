//! Anthropic's surface over a real connection.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod compat_mock;

use std::time::Duration;

use assay_api::ServerOptions;
use assay_core::request::{Guide, Message, Prompt, Role};
use compat_mock::{RECEIPT, Served, hostile};
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";

async fn served() -> Served {
    Served::new(ServerOptions::default()).await
}

fn ask(content: &str) -> Value {
    json!({"model": "story", "max_tokens": 10, "messages": [{"role": "user", "content": content}]})
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

fn tools() -> Value {
    json!([{"name": "weather", "description": "Of a city", "input_schema": {"type": "object", "properties": {"city": {}}}},
           {"type": "custom", "name": "clock", "input_schema": {"type": "object"}}])
}

async fn error(response: reqwest::Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let id = response.headers()["request-id"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["type"], &body["request_id"]), (&json!("error"), &json!(id)), "{body}");
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    (status, text(&body["error"]["type"]), text(&body["error"]["message"]))
}

/// Names and data of a stream's events.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |e: &str| {
        let (name, data) = e.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    assert!(text.ends_with("\n\n"));
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn an_answer() {
    let s = served().await;
    let request = s.client.post(format!("{}{MESSAGES}", s.url)).json(&ask("hi"));
    let request = request.header("anthropic-version", "2023-06-01").header("x-api-key", "none");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-assay-receipt"], RECEIPT.to_string());
    assert_eq!(response.headers()["request-id"], response.headers()["x-request-id"]);
    let body: Value = response.json().await.unwrap();
    let usage = json!({"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                       "output_tokens": 2, "service_tier": "standard"});
    assert_eq!(
        body,
        json!({"id": "msg_cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "type": "message", "role": "assistant",
               "model": "story", "content": [{"type": "text", "text": "Hello", "citations": null}],
               "stop_reason": "end_turn", "stop_sequence": null, "usage": usage})
    );
}

#[tokio::test]
async fn why_answers_end() {
    let s = served().await;
    let stops = json!(["a", "b"]);
    for (script, reason, sequence) in [
        ("hi", "end_turn", Value::Null),
        ("length", "max_tokens", Value::Null),
        ("stop", "stop_sequence", json!("b")),
        ("call", "tool_use", Value::Null),
        ("cut", "max_tokens", Value::Null),
    ] {
        let body = with(ask(script), "stop_sequences", stops.clone());
        let whole: Value = s.post(MESSAGES, body.clone()).await.json().await.unwrap();
        assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!(reason), &sequence), "{script}");
        let text = s.post(MESSAGES, with(body, "stream", json!(true))).await.text().await.unwrap();
        let all = events(&text);
        let (_, delta) = &all[all.len() - 2];
        assert_eq!(delta["delta"], json!({"stop_reason": reason, "stop_sequence": sequence}), "{script}");
    }
}

#[tokio::test]
async fn a_call_of_a_tool() {
    let s = served().await;
    let whole: Value = s.post(MESSAGES, with(ask("call"), "tools", tools())).await.json().await.unwrap();
    assert_eq!(
        whole["content"],
        json!([{"type": "text", "text": "Let me look.", "citations": null},
               {"type": "tool_use", "id": "call_0", "name": "weather", "input": {"city": "Paris"}},
               {"type": "tool_use", "id": "call_1", "name": "clock", "input": {}}])
    );
    let cut: Value = s.post(MESSAGES, with(ask("cut"), "tools", tools())).await.json().await.unwrap();
    assert_eq!(cut["content"], json!([]), "half a call is nobody's to execute");
    let Prompt::Chat { tools, .. } = s.mock.order().request.prompt else { panic!() };
    assert_eq!((tools[0].name.as_str(), tools[0].description.as_deref()), ("weather", Some("Of a city")));
    assert_eq!(tools[0].parameters, r#"{"type":"object","properties":{"city":{}}}"#);
}

#[tokio::test]
async fn a_stream() {
    let s = served().await;
    let body = with(with(ask("call"), "stream", json!(true)), "tools", tools());
    let response = s.post(MESSAGES, body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.headers()["x-assay-receipt"], RECEIPT.to_string());
    let all = events(&response.text().await.unwrap());
    let usage = |out: u32| {
        json!({"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
               "output_tokens": out, "service_tier": "standard"})
    };
    let message = json!({"id": "msg_cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "type": "message", "role": "assistant",
                         "model": "story", "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage(0)});
    let start = |index: u32, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
    let delta =
        |index: u32, delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    let stop = |index: u32| json!({"type": "content_block_stop", "index": index});
    let expected = [
        json!({"type": "message_start", "message": message}),
        start(0, json!({"type": "text", "text": "", "citations": null})),
        json!({"type": "ping"}),
        delta(0, json!({"type": "text_delta", "text": "Let me look."})),
        stop(0),
        start(1, json!({"type": "tool_use", "id": "call_0", "name": "weather", "input": {}})),
        delta(1, json!({"type": "input_json_delta", "partial_json": "{\"city\":"})),
        delta(1, json!({"type": "input_json_delta", "partial_json": "\"Paris\"}"})),
        stop(1),
        start(2, json!({"type": "tool_use", "id": "call_1", "name": "clock", "input": {}})),
        stop(2),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": null}, "usage": usage(2)}),
        json!({"type": "message_stop"}),
    ];
    let all: Vec<Value> = all.into_iter().map(|(_, data)| data).collect();
    assert_eq!(all, expected);

    let text = s.post(MESSAGES, with(ask("silence"), "stream", json!(true))).await.text().await.unwrap();
    let names: Vec<String> = events(&text).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["message_start", "message_delta", "message_stop"]);
}

#[tokio::test]
async fn a_silent_stream_pings() {
    let options = ServerOptions { keep_alive: Duration::from_millis(50), ..ServerOptions::default() };
    let s = Served::new(options).await;
    let text = s.post(MESSAGES, with(ask("hesitate"), "stream", json!(true))).await.text().await.unwrap();
    let all = events(&text);
    assert_eq!(all[0].0, "message_start");
    assert!(all.iter().filter(|(name, _)| name == "ping").count() > 2, "{text}");
    assert_eq!(all.last().unwrap().0, "message_stop");
}

#[tokio::test]
async fn the_receipt_inline() {
    let s = served().await;
    let inline = |body: Value| {
        let request =
            s.client.post(format!("{}{MESSAGES}", s.url)).header("x-assay-receipt", "inline").json(&body);
        async move { request.send().await.unwrap() }
    };
    let whole: Value = inline(ask("hi")).await.json().await.unwrap();
    assert_eq!(whole["assay_receipt"]["format"], "assay-answer/2");
    let text = inline(with(ask("hi"), "stream", json!(true))).await.text().await.unwrap();
    let holders: Vec<String> = events(&text)
        .into_iter()
        .filter(|(_, data)| data.get("assay_receipt").is_some())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(holders, ["message_delta"]);
}

#[tokio::test]
async fn a_conversation_becomes_a_prompt() {
    let s = served().await;
    let messages = json!([
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "calling"},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"b": 1, "a": 2}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "rain", "is_error": true},
            {"type": "text", "text": "thanks"}]},
    ]);
    let mut body = with(ask(""), "messages", messages);
    body["system"] = json!([{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]);
    body["tools"] = tools();
    body["temperature"] = json!(0.5);
    body["top_p"] = json!(0.9);
    body["top_k"] = json!(7);
    body["stop_sequences"] = json!(["x"]);
    body["metadata"] = json!({"user_id": "u"});
    let response = s.post(MESSAGES, body).await;
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    let request = s.mock.order().request;
    let Prompt::Chat { messages, tools } = request.prompt else { panic!() };
    assert_eq!(tools.len(), 2);
    let text = |role, t: &str| Message::text(role, t);
    assert_eq!(messages[0], text(Role::System, "be\nbrief"));
    assert_eq!(messages[1], text(Role::User, "one\ntwo"));
    assert_eq!((messages[2].role, messages[2].content.as_str()), (Role::Assistant, "calling"));
    let call = &messages[2].tool_calls[0];
    assert_eq!((call.id.as_str(), call.arguments.as_str()), ("t1", r#"{"b":1,"a":2}"#), "order is kept");
    assert_eq!(messages[3], Message { tool_call_id: Some("t1".into()), ..text(Role::Tool, "sun") });
    assert_eq!(messages[4], Message { tool_call_id: Some("t2".into()), ..text(Role::Tool, "rain") });
    assert_eq!(messages[5], text(Role::User, "thanks"));
    assert_eq!(messages.len(), 6);
    assert_eq!(request.sampling.temperature_micro, 500_000);
    assert_eq!((request.sampling.top_p_micro, request.sampling.top_k), (900_000, 7));
    assert_eq!((request.max_tokens, request.stop), (10, vec!["x".to_owned()]));
    assert_eq!(request.guide, Some(Guide::Tools { required: false, only: None, parallel: true }));
}

#[tokio::test]
async fn what_guides_an_answer() {
    let s = served().await;
    let guide = |required, only: Option<&str>, parallel| {
        Some(Guide::Tools { required, only: only.map(str::to_owned), parallel })
    };
    for (choice, expected) in [
        (json!({"type": "auto"}), guide(false, None, true)),
        (json!({"type": "any", "disable_parallel_tool_use": true}), guide(true, None, false)),
        (json!({"type": "tool", "name": "clock"}), guide(true, Some("clock"), true)),
        (json!({"type": "none"}), None),
    ] {
        let body = with(with(ask("hi"), "tools", tools()), "tool_choice", choice);
        assert_eq!(s.post(MESSAGES, body).await.status(), 200);
        assert_eq!(s.mock.order().request.guide, expected);
    }
    let format = json!({"type": "json_schema", "schema": {"type": "object"}});
    for body in [
        with(ask("hi"), "output_config", json!({"format": format})),
        with(ask("hi"), "output_format", format.clone()),
    ] {
        assert_eq!(s.post(MESSAGES, body).await.status(), 200);
        assert_eq!(s.mock.order().request.guide, Some(Guide::JsonSchema(r#"{"type":"object"}"#.into())));
    }
}

#[tokio::test]
async fn tokens_are_counted() {
    let s = served().await;
    let mut body = ask("12345");
    body.as_object_mut().unwrap().remove("max_tokens");
    let response = s.post("/v1/messages/count_tokens", body).await;
    assert_eq!(response.json::<Value>().await.unwrap(), json!({"input_tokens": 5}));
    assert!(s.mock.last.lock().unwrap().is_none(), "nothing is generated");
    let (status, kind, _) = error(s.post("/v1/messages/count_tokens", json!({"model": "story"})).await).await;
    assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
}

#[tokio::test]
async fn what_asks_for_nothing_is_accepted() {
    let s = served().await;
    for (key, value) in [
        ("thinking", json!({"type": "disabled"})),
        ("service_tier", json!("auto")),
        ("service_tier", json!("standard_only")),
        ("mcp_servers", json!([])),
        ("container", Value::Null),
        ("metadata", json!({"user_id": "u"})),
        ("tool_choice", json!({"type": "auto"})),
        ("tool_choice", json!({"type": "none"})),
        ("tools", json!([])),
        ("system", json!("")),
        ("temperature", json!(1)),
        ("unknown_key", json!(1)),
    ] {
        let response = s.post(MESSAGES, with(ask("hi"), key, value)).await;
        assert_eq!(response.status(), 200, "{key}");
    }
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let s = served().await;
    let said = |role: &str, block: Value| json!([{"role": role, "content": [block]}]);
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}});
    for (key, value, named) in [
        ("max_tokens", Value::Null, "max_tokens"),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_tokens", json!("10"), "max_tokens"),
        ("model", json!(7), "model"),
        ("messages", json!([]), "messages"),
        ("messages", json!([{"role": "assistant", "content": "I"}]), "prefilled"),
        ("messages", json!([{"role": "system", "content": "I"}]), "messages[0].role"),
        ("messages", said("user", image), "messages[0].content[0].type"),
        ("messages", said("user", json!({"type": "document"})), "messages[0].content[0].type"),
        (
            "messages",
            said("assistant", json!({"type": "thinking", "thinking": ""})),
            "messages[0].content[0].type",
        ),
        ("messages", said("user", json!({"type": "text", "text": 1})), "messages[0].content[0].text"),
        ("messages", said("user", json!({"type": "tool_result"})), "messages[0].content[0].tool_use_id"),
        (
            "messages",
            said("user", json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]})),
            "messages[0].content[0].content[0].type",
        ),
        (
            "messages",
            said("user", json!({"type": "tool_use", "id": "a", "name": "b", "input": {}})),
            "tool_use",
        ),
        ("system", json!([{"type": "image"}]), "system[0].type"),
        ("temperature", json!(1.1), "temperature"),
        ("top_p", json!(0), "top_p"),
        ("top_k", json!(-1), "top_k"),
        ("stop_sequences", json!(["a", "b", "c", "d", "e"]), "stop_sequences"),
        ("stop_sequences", json!([""]), "stop_sequences"),
        ("stream", json!("yes"), "stream"),
        ("thinking", json!({"type": "enabled", "budget_tokens": 1024}), "thinking"),
        ("thinking", json!({"type": "adaptive"}), "thinking"),
        ("service_tier", json!("priority"), "service_tier"),
        ("container", json!("c"), "container"),
        ("mcp_servers", json!([{"type": "url"}]), "mcp_servers"),
        ("output_config", json!({"effort": "low"}), "output_config"),
        ("tools", json!([{"type": "web_search_20250305", "name": "web_search"}]), "tools[0].type"),
        ("tools", json!([{"name": "f"}]), "tools[0].input_schema"),
        ("tools", json!([{"name": "x".repeat(65), "input_schema": {}}]), "tools"),
        ("tool_choice", json!({"type": "any"}), "tool_choice"),
        ("tool_choice", json!({"type": "tool", "name": "f"}), "tool_choice.name"),
        ("tool_choice", json!({"type": "sometimes"}), "tool_choice.type"),
    ] {
        let (status, kind, message) =
            error(s.post(MESSAGES, with(ask("hi"), key, value.clone())).await).await;
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{key} {value}");
        assert!(message.contains(named), "{key} {value}: {message}");
    }
    let mut both = with(ask("hi"), "tools", tools());
    both["output_format"] = json!({"type": "json_schema", "schema": {}});
    assert_eq!(error(s.post(MESSAGES, both).await).await.0, 400);
}

#[tokio::test]
async fn errors_have_anthropics_shape() {
    let s = Served::new(ServerOptions { body_bytes_max: 4000, ..ServerOptions::default() }).await;
    let check = async |response: reqwest::Response, status: u16, kind: &str| {
        let (got, got_kind, message) = error(response).await;
        assert_eq!((got, got_kind.as_str()), (status, kind), "{message}");
    };
    check(s.raw(MESSAGES, "{").await, 400, "invalid_request_error").await;
    check(s.raw(MESSAGES, "[]").await, 400, "invalid_request_error").await;
    check(s.post(MESSAGES, with(ask("hi"), "model", json!("other"))).await, 404, "not_found_error").await;
    check(s.post(MESSAGES, ask(&"x".repeat(5000))).await, 413, "request_too_large").await;
    let busy = s.post(MESSAGES, ask("busy")).await;
    assert_eq!(
        (&busy.headers()["retry-after"], &busy.headers()["x-should-retry"]),
        (&"3".parse().unwrap(), &"true".parse().unwrap())
    );
    check(busy, 429, "rate_limit_error").await;
    check(s.post(MESSAGES, ask("draining")).await, 503, "overloaded_error").await;
    check(s.post(MESSAGES, ask("long")).await, 400, "invalid_request_error").await;
    check(
        s.post(MESSAGES, with(ask("hi"), "model", json!("embedder:small"))).await,
        400,
        "invalid_request_error",
    )
    .await;
    for stream in [true, false] {
        check(s.post(MESSAGES, with(ask("fail before"), "stream", json!(stream))).await, 500, "api_error")
            .await;
    }
    check(s.get(MESSAGES).await, 405, "invalid_request_error").await;
    check(s.get("/v1/messages/batches").await, 404, "not_found_error").await;
    let metrics = s.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("assay_requests_refused_total{code=\"busy\"} 1"), "{metrics}");

    for script in ["fail after", "break off"] {
        let text = s.post(MESSAGES, with(ask(script), "stream", json!(true))).await.text().await.unwrap();
        let all = events(&text);
        let (name, last) = all.last().unwrap();
        assert_eq!((name.as_str(), &last["error"]["type"]), ("error", &json!("api_error")));
        assert!(last["request_id"].as_str().unwrap().starts_with("req-"));
    }
    // The other surface keeps its own shape.
    let body: Value = s.raw("/v1/chat/completions", "{").await.json().await.unwrap();
    assert_eq!(body["error"]["code"], "invalid_json");
}

#[tokio::test]
async fn hostile_bodies_are_answered() {
    let s = served().await;
    let good = json!({
        "model": "story", "max_tokens": 10, "stream": false, "temperature": 0.5, "stop_sequences": ["x"],
        "system": [{"type": "text", "text": "s"}], "tools": tools(), "tool_choice": {"type": "tool", "name": "clock"},
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "clock", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "x"}]}]},
        ],
    });
    assert_eq!(s.post(MESSAGES, good.clone()).await.status(), 200);
    let bodies = hostile(&good);
    assert!(bodies.len() > 300);
    for body in bodies {
        for path in [MESSAGES, "/v1/messages/count_tokens"] {
            let status = s.post(path, body.clone()).await.status().as_u16();
            assert!([200, 400, 404].contains(&status), "{status}: {body}");
        }
    }
}
