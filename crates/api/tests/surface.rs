//! The wire format, byte by byte where clients depend on it, over a real connection.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod mock;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use assay_api::ServerOptions;
use mock::{RECEIPT, ROOT, Served};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn served() -> Served {
    Served::new(ServerOptions::default()).await
}

fn chat(content: &str) -> Value {
    json!({"model": "mock/story", "messages": [{"role": "user", "content": content}]})
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

async fn error(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let e = body["error"].clone();
    assert_eq!(body.as_object().unwrap().len(), 1);
    assert!(e["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
    assert!(e["type"].is_string() && e["code"].is_string() && e.as_object().unwrap().contains_key("param"));
    (status, e)
}

#[tokio::test]
async fn a_chat_answer() {
    let s = served().await;
    let response = s.post(CHAT, chat("hi")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-assay-receipt"], RECEIPT.to_string());
    assert!(response.headers()["x-request-id"].to_str().unwrap().starts_with("req-"));
    let mut body: Value = response.json().await.unwrap();
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    body["created"] = json!(0);
    assert_eq!(
        body,
        json!({"id": "chatcmpl-cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "object": "chat.completion", "created": 0,
               "model": "mock/story", "system_fingerprint": ROOT.to_string(),
               "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello", "refusal": null},
                            "logprobs": null, "finish_reason": "length"}],
               "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                         "prompt_tokens_details": {"cached_tokens": 0}}})
    );
}

#[tokio::test]
async fn a_text_completion() {
    let s = served().await;
    let body =
        json!({"model": "story", "prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0.7, "seed": -1});
    let response: Value = s.post(COMPLETIONS, body).await.json().await.unwrap();
    assert_eq!(response["object"], "text_completion");
    assert!(response["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        response["choices"],
        json!([{"index": 0, "text": "Hello", "logprobs": null, "finish_reason": "length"}])
    );
    let order = s.mock.last.lock().unwrap().clone().unwrap();
    assert_eq!(order.request.sampling.temperature_micro, 700_000);
    assert_eq!(order.request.sampling.seed, Some(u64::MAX), "a negative seed is its 64 bits");
    assert_eq!(order.request.max_tokens, 5);
    assert_eq!(order.request.model, ROOT);
}

#[tokio::test]
async fn a_stream() {
    let s = served().await;
    let response = s.post(CHAT, with(chat("hi"), "stream", json!(true))).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.headers()["x-assay-receipt"], RECEIPT.to_string());
    let text = response.text().await.unwrap();
    let events: Vec<&str> =
        text.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap()).collect();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    let expected = [
        choice(json!({"role": "assistant", "content": ""}), Value::Null),
        choice(json!({"content": "Hel"}), Value::Null),
        choice(json!({"content": "lo"}), Value::Null),
        choice(json!({}), json!("length")),
    ];
    assert_eq!(chunks.len(), expected.len());
    for (chunk, choices) in chunks.iter().zip(expected) {
        assert_eq!(chunk["choices"], choices);
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert_eq!(chunk["model"], "mock/story");
        assert!(chunk.get("usage").is_none(), "no usage key without include_usage");
    }
}

#[tokio::test]
async fn a_stream_with_usage() {
    let s = served().await;
    let mut body = with(chat("hi"), "stream", json!(true));
    body["stream_options"] = json!({"include_usage": true});
    let text = s.post(CHAT, body).await.text().await.unwrap();
    let chunks: Vec<Value> =
        text.split("\n\n").filter_map(|e| serde_json::from_str(e.strip_prefix("data: ")?).ok()).collect();
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 5);
    assert!(rest.iter().all(|c| c["usage"].is_null() && c.get("usage").is_some()));
}

#[tokio::test]
async fn the_receipt_inlined_and_fetched() {
    let s = served().await;
    let inline = |body: Value| {
        let request =
            s.client.post(format!("{}{CHAT}", s.url)).header("x-assay-receipt", "inline").json(&body);
        async move { request.send().await.unwrap() }
    };
    let whole: Value = inline(chat("hi")).await.json().await.unwrap();
    assert_eq!(whole["assay_receipt"]["format"], "assay-answer/2");
    let text = inline(with(chat("hi"), "stream", json!(true))).await.text().await.unwrap();
    let with_receipt: Vec<&str> = text.split("\n\n").filter(|e| e.contains("assay_receipt")).collect();
    assert_eq!(with_receipt.len(), 1, "in one chunk alone");
    assert!(with_receipt[0].contains("\"finish_reason\":\"length\""));

    let record: Value = s.get(&format!("/v1/receipts/{RECEIPT}")).await.json().await.unwrap();
    assert_eq!(record, whole["assay_receipt"]);
    for id in ["0x12", "nonsense", &format!("0x{}", "00".repeat(32))] {
        let (status, e) = error(s.get(&format!("/v1/receipts/{id}")).await).await;
        assert_eq!((status, &e["code"]), (404, &json!("receipt_not_found")));
    }
    let bad = s.client.post(format!("{}{CHAT}", s.url)).header("x-assay-receipt", "yes").json(&chat("hi"));
    let (status, e) = error(bad.send().await.unwrap()).await;
    assert_eq!((status, &e["param"]), (400, &json!("x-assay-receipt")));
}

#[tokio::test]
async fn the_clients_nonce() {
    let s = served().await;
    let send = |nonce: String| {
        let request =
            s.client.post(format!("{}{CHAT}", s.url)).header("x-assay-nonce", nonce).json(&chat("hi"));
        async move { request.send().await.unwrap() }
    };
    assert_eq!(send(format!("0x{}", "07".repeat(32))).await.status(), 200);
    let order = s.mock.last.lock().unwrap().clone().unwrap();
    assert_eq!(*order.nonce.unwrap().as_bytes(), [7; 32]);
    for bad in ["", "0x07", "zz"] {
        let (status, e) = error(send(bad.into()).await).await;
        assert_eq!((status, &e["param"]), (400, &json!("x-assay-nonce")));
    }
}

#[tokio::test]
async fn models() {
    let s = served().await;
    let list: Value = s.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
    let card = &list["data"][0];
    assert_eq!((&card["id"], &card["object"]), (&json!("mock/story"), &json!("model")));
    for name in ["mock/story", "mock%2Fstory", "story", &ROOT.to_string()] {
        let one: Value = s.get(&format!("/v1/models/{name}")).await.json().await.unwrap();
        assert_eq!(one, *card, "{name}");
    }
    assert_eq!((&card["task"], &card["parameters"]), (&json!("generate"), &json!(900)));
    assert_eq!(card["features"], json!(["tools", "structured_outputs", "logprobs"]));
    assert_eq!(card["pricing"], json!({"prompt": "0.0000001", "completion": "0.0000004"}));
    let encoder = &list["data"][1];
    assert_eq!(encoder.get("pricing"), None, "what is free has no price");
    assert_eq!((&encoder["task"], &encoder["dimensions"]), (&json!("embed"), &json!(4)));
    let (status, e) = error(s.get("/v1/models/other").await).await;
    assert_eq!((status, &e["code"], &e["type"]), (404, &json!("model_not_found"), &json!("not_found_error")));
    let (status, e) = error(s.post(CHAT, with(chat("hi"), "model", json!("other"))).await).await;
    assert_eq!((status, &e["param"]), (404, &json!("model")));
}

#[tokio::test]
async fn everything_wrong_is_an_error_object() {
    let s = served().await;
    let raw = |path: &str, body: &str| {
        let request = s.client.post(format!("{}{path}", s.url)).body(body.to_owned());
        async move { request.send().await.unwrap() }
    };
    for body in ["", "{", "[]", "null", "\"x\"", "{\"model\":\"\\ud800\"}", &"[".repeat(100_000)] {
        let (status, e) = error(raw(CHAT, body).await).await;
        assert_eq!((status, &e["code"]), (400, &json!("invalid_json")), "{body:.20}");
    }
    let (status, e) = error(raw(CHAT, "{}").await).await;
    assert_eq!(
        (status, &e["code"], &e["param"]),
        (400, &json!("missing_required_parameter"), &json!("model"))
    );
    let (status, e) = error(s.get("/v1/nothing").await).await;
    assert_eq!((status, &e["code"]), (404, &json!("unknown_route")));
    let response = s.get(CHAT).await;
    assert_eq!(response.headers()["allow"], "POST");
    let (status, e) = error(response).await;
    assert_eq!((status, &e["code"]), (405, &json!("method_not_allowed")));

    let response = s.post(CHAT, chat("busy")).await;
    assert_eq!(response.headers()["retry-after"], "3");
    assert_eq!(response.headers()["x-should-retry"], "true");
    let (status, e) = error(response).await;
    assert_eq!((status, &e["type"]), (429, &json!("rate_limit_error")));
    let response = s.post(CHAT, chat("long")).await;
    assert_eq!(response.headers()["x-should-retry"], "false");
    let (status, e) = error(response).await;
    assert_eq!((status, &e["code"]), (400, &json!("context_length_exceeded")));

    for stream in [false, true] {
        let (status, e) = error(s.post(CHAT, with(chat("fail before"), "stream", json!(stream))).await).await;
        assert_eq!(
            (status, &e["type"]),
            (500, &json!("server_error")),
            "a failure before the first byte has its status"
        );
    }
    let metrics = s.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("assay_requests_refused_total{code=\"busy\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_failure_after_the_first_byte_ends_the_stream_with_an_error() {
    let s = served().await;
    for script in ["fail after", "break off"] {
        let text = s.post(CHAT, with(chat(script), "stream", json!(true))).await.text().await.unwrap();
        let last = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
        let last: Value = serde_json::from_str(last).unwrap();
        assert_eq!(last["error"]["code"], "internal_error");
        assert!(text.contains("Hel") && !text.contains("[DONE]"));
        let (status, _) = error(s.post(CHAT, chat(script)).await).await;
        assert_eq!(status, 500);
    }
}

#[tokio::test]
async fn bodies_too_large_or_too_slow() {
    let options = ServerOptions { body_bytes_max: 1000, body_s: 1, ..ServerOptions::default() };
    let s = Served::new(options).await;
    let (status, e) = error(s.post(CHAT, chat(&"x".repeat(2000))).await).await;
    assert_eq!((status, &e["code"]), (413, &json!("body_too_large")));

    let mut connection =
        tokio::net::TcpStream::connect(s.url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"model\"";
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let n = connection.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
}

#[tokio::test]
async fn a_silent_stream_says_that_it_lives() {
    let keep_alive = Duration::from_millis(100);
    let s = Served::new(ServerOptions { keep_alive, ..ServerOptions::default() }).await;
    let text = s.post(CHAT, with(chat("hesitate"), "stream", json!(true))).await.text().await.unwrap();
    assert!(text.contains(": keep-alive\n\n"));
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_generation() {
    for stream in [true, false] {
        let s = served().await;
        let body = with(chat("endless"), "stream", json!(stream));
        let sent = s.client.post(format!("{}{CHAT}", s.url)).json(&body).timeout(Duration::from_millis(300));
        if stream {
            let mut response = sent.send().await.unwrap();
            response.chunk().await.unwrap().unwrap();
        } else {
            assert!(sent.send().await.unwrap_err().is_timeout());
        }
        happens(&s.mock.stopped).await;
        let metrics = s.get("/metrics").await.text().await.unwrap();
        assert!(metrics.contains("finished_reason=\"abort\"} 1"), "{metrics}");
    }
}

async fn happens(what: &std::sync::atomic::AtomicBool) {
    let happened = async {
        while !what.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), happened).await.expect("it happens");
}

#[tokio::test]
async fn every_route_stops_what_its_client_left() {
    for (path, rest) in [
        ("/v1/messages", json!({"max_tokens": 8})),
        ("/api/chat", json!({})),
        ("/v1/responses", json!({"input": "endless"})),
        ("/v1/completions", json!({"prompt": "endless"})),
    ] {
        let s = served().await;
        let mut body = with(chat("endless"), "stream", json!(true));
        for (name, value) in rest.as_object().unwrap() {
            body[name] = value.clone();
        }
        if path != "/v1/messages" && path != "/api/chat" {
            body.as_object_mut().unwrap().remove("messages");
        }
        let mut response = s.post(path, body).await;
        assert_eq!(response.status(), 200, "{path}");
        response.chunk().await.unwrap().unwrap();
        drop(response);
        happens(&s.mock.stopped).await;
    }
}

/// Who hears that one of its choices has failed did not leave the others.
#[tokio::test]
async fn choices_beside_one_that_fails_are_taken_back() {
    for stream in [true, false] {
        let s = served().await;
        let mut body = with(chat("the second fails"), "n", json!(2));
        body["stream"] = json!(stream);
        let answer = s.post(CHAT, body).await.text().await.unwrap();
        assert!(answer.contains("the mock fails"), "{answer}");
        happens(&s.mock.cancelled).await;
        assert!(!s.mock.stopped.load(SeqCst));
    }
}

#[tokio::test]
async fn shutdown_finishes_what_runs_and_takes_nothing_new() {
    let mut s = served().await;
    let body = with(chat("hesitate"), "stream", json!(true));
    let mut running = s.client.post(format!("{}{CHAT}", s.url)).json(&body).send().await.unwrap();
    let first = running.chunk().await.unwrap().unwrap();
    s.stop();
    let mut text = String::from_utf8(first.to_vec()).unwrap();
    while let Some(chunk) = running.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    tokio::time::timeout(Duration::from_secs(20), &mut s.task).await.unwrap().unwrap().unwrap();
    assert!(s.client.post(format!("{}{CHAT}", s.url)).json(&chat("hi")).send().await.is_err());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let mut s = Served::new(ServerOptions { drain_s: 1, ..ServerOptions::default() }).await;
    let body = with(chat("endless"), "stream", json!(true));
    let mut running = s.client.post(format!("{}{CHAT}", s.url)).json(&body).send().await.unwrap();
    running.chunk().await.unwrap().unwrap();
    s.stop();
    tokio::time::timeout(Duration::from_secs(20), &mut s.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn health_and_metrics() {
    let s = served().await;
    let response = s.get("/health").await;
    assert_eq!(response.status(), 200);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body, json!({"status": "ok", "running": 1, "waiting": 2}));
    s.mock.not_ready.store(true, SeqCst);
    assert_eq!(s.get("/health").await.status(), 503);

    s.post(CHAT, chat("hi")).await;
    let text = s.get("/metrics").await.text().await.unwrap();
    for line in [
        "vllm:num_requests_running{model_name=\"\"} 1",
        "vllm:num_requests_waiting{model_name=\"\"} 2",
        "vllm:kv_cache_usage_perc{model_name=\"\"} 0.25",
        "vllm:prompt_tokens_total{model_name=\"mock/story\"} 3",
        "vllm:generation_tokens_total{model_name=\"mock/story\"} 2",
        "vllm:request_success_total{model_name=\"mock/story\",finished_reason=\"length\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"mock/story\"} 1",
        "vllm:e2e_request_latency_seconds_count{model_name=\"mock/story\"} 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn the_hint_names_routes_of_every_surface_that_are_there() {
    let s = served().await;
    let hint = s.get("/").await.text().await.unwrap();
    assert!(hint.contains("assay verify"), "{hint}");
    let words: Vec<&str> = hint.split([' ', ',', '\n']).filter(|w| !w.is_empty()).collect();
    let mut named = Vec::new();
    for pair in words.windows(2) {
        let (method, path) = (pair[0], pair[1]);
        let response = match method {
            "GET" => s.get(path).await,
            "POST" => s.post(path, json!({})).await,
            _ => continue,
        };
        let status = response.status().as_u16();
        let missing = [404, 405].contains(&status) && !path.ends_with("/ID");
        assert!(!missing, "{method} {path}: {status}");
        named.push(path);
    }
    for path in [CHAT, "/v1/responses", "/v1/messages", "/api/chat", "/v1/files", "/v1/batches"] {
        assert!(named.contains(&path), "{path} is not in the hint:\n{hint}");
    }
}

#[tokio::test]
async fn request_ids_are_the_clients_if_sane() {
    let s = served().await;
    let send = |id: &'static str| {
        let request = s.client.get(format!("{}/health", s.url)).header("x-request-id", id);
        async move { request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned() }
    };
    assert_eq!(send("trace-1:a/b").await, "trace-1:a/b");
    assert!(send("has space").await.starts_with("req-"));
}
