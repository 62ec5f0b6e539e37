//! Ollama's surface over a real connection.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod compat_mock;

use std::time::Duration;

use assay_api::ServerOptions;
use assay_core::request::{Guide, Prompt, Role};
use compat_mock::{EMBEDDER, RECEIPT, ROOT, Served, hostile};
use serde_json::{Value, json};

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";

async fn served() -> Served {
    Served::new(ServerOptions::default()).await
}

fn ask(content: &str) -> Value {
    json!({"model": "story", "stream": false, "messages": [{"role": "user", "content": content}]})
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([{"type": "function", "function": {"name": "weather", "description": "d", "parameters": parameters}},
           {"type": "function", "function": {"name": "clock"}}])
}

async fn error(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    (status, body["error"].as_str().unwrap().to_owned())
}

fn lines(text: &str) -> Vec<Value> {
    assert!(text.ends_with('\n'));
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// A line without what differs from run to run.
fn still(mut line: Value) -> Value {
    let time = line["created_at"].take();
    assert!(time.as_str().is_some_and(|t| t.ends_with('Z') && t.starts_with("20")), "{time}");
    if line["done"] == true {
        assert!(line["total_duration"].take().as_u64().unwrap() > 0);
    }
    line
}

#[tokio::test]
async fn a_chat_answer() {
    let s = served().await;
    let response = s.post(CHAT, with(ask("hi"), "model", json!("mock/story:latest"))).await;
    assert_eq!(response.headers()["x-assay-receipt"], RECEIPT.to_string());
    let body = still(response.json().await.unwrap());
    assert_eq!(
        body,
        json!({"model": "mock/story:latest", "created_at": null, "message": {"role": "assistant", "content": "Hello"},
               "done": true, "done_reason": "stop", "total_duration": null, "load_duration": 0, "prompt_eval_count": 3,
               "prompt_eval_duration": 111, "eval_count": 2, "eval_duration": 222})
    );
    let request = s.mock.order().request;
    assert_eq!(request.max_tokens, 0);
    let sampling = request.sampling;
    assert_eq!(
        (sampling.temperature_micro, sampling.repetition_micro),
        (1_000_000, 1_000_000),
        "our defaults"
    );
    assert_eq!((sampling.top_k, sampling.top_p_micro, sampling.seed), (0, 1_000_000, None));
}

#[tokio::test]
async fn a_stream_is_the_default() {
    let s = served().await;
    let mut body = with(ask("call"), "tools", tools());
    body.as_object_mut().unwrap().remove("stream");
    let response = s.post(CHAT, body).await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let all: Vec<Value> = lines(&response.text().await.unwrap()).into_iter().map(still).collect();
    let piece =
        |message: Value| json!({"model": "story", "created_at": null, "message": message, "done": false});
    let call = |index: u32, name: &str, arguments: Value| {
        let function = json!({"index": index, "name": name, "arguments": arguments});
        json!({"role": "assistant", "content": "", "tool_calls": [{"id": format!("call_{index}"), "function": function}]})
    };
    let expected = [
        piece(json!({"role": "assistant", "content": "Let me look."})),
        piece(call(0, "weather", json!({"city": "Paris"}))),
        piece(call(1, "clock", json!({}))),
    ];
    let (last, rest) = all.split_last().unwrap();
    assert_eq!(rest, expected);
    assert_eq!(
        *last,
        json!({"model": "story", "created_at": null, "message": {"role": "assistant", "content": ""}, "done": true,
               "done_reason": "stop", "total_duration": null, "load_duration": 0, "prompt_eval_count": 3,
               "prompt_eval_duration": 111, "eval_count": 2, "eval_duration": 222})
    );
    let request = s.mock.order().request;
    assert_eq!(request.guide, Some(Guide::Tools { required: false, only: None, parallel: true }));
    let Prompt::Chat { tools, .. } = request.prompt else { panic!() };
    assert_eq!(tools[1].parameters, r#"{"type":"object","properties":{}}"#);
}

#[tokio::test]
async fn calls_in_whole_answers() {
    let s = served().await;
    let whole: Value = s.post(CHAT, with(ask("call"), "tools", tools())).await.json().await.unwrap();
    assert_eq!(whole["message"]["content"], "Let me look.");
    let names: Vec<&Value> =
        whole["message"]["tool_calls"].as_array().unwrap().iter().map(|c| &c["function"]["name"]).collect();
    assert_eq!(names, ["weather", "clock"]);
    let cut: Value = s.post(CHAT, with(ask("cut"), "tools", tools())).await.json().await.unwrap();
    assert_eq!((cut["message"].get("tool_calls"), &cut["done_reason"]), (None, &json!("length")));
}

#[tokio::test]
async fn generate() {
    let s = served().await;
    let body = json!({"model": "story", "prompt": "hi", "system": "be brief", "stream": false});
    let answer: Value = s.post(GENERATE, body.clone()).await.json().await.unwrap();
    assert_eq!((&answer["response"], &answer["done"]), (&json!("Hello"), &json!(true)));
    assert!(answer.get("message").is_none() && answer.get("context").is_none());
    let Prompt::Chat { messages, .. } = s.mock.order().request.prompt else { panic!() };
    let said: Vec<(Role, &str)> = messages.iter().map(|m| (m.role, m.content.as_str())).collect();
    assert_eq!(said, [(Role::System, "be brief"), (Role::User, "hi")]);

    for raw in
        [json!({"model": "story", "prompt": "hi", "raw": true}), json!({"model": "plain", "prompt": "hi"})]
    {
        let all = lines(&s.post(GENERATE, raw).await.text().await.unwrap());
        let text: String = all.iter().map(|l| l["response"].as_str().unwrap()).collect();
        assert_eq!(text, "Hello");
        assert_eq!(s.mock.order().request.prompt, Prompt::Text("hi".into()));
    }
    for (key, value) in [("template", "{{.}}"), ("suffix", "x")] {
        let (status, message) = error(s.post(GENERATE, with(body.clone(), key, json!(value))).await).await;
        assert!(status == 400 && message.contains(key), "{message}");
    }
    let (status, _) = error(s.post(GENERATE, with(body.clone(), "raw", json!(true))).await).await;
    assert_eq!(status, 400, "a raw prompt has no place for `system`");
    let (status, _) = error(s.post(GENERATE, with(body, "model", json!("plain"))).await).await;
    assert_eq!(status, 400, "nor has a model without a template");
}

#[tokio::test]
async fn a_request_without_a_prompt_loads() {
    let s = served().await;
    for (path, body) in
        [(GENERATE, json!({"model": "story"})), (CHAT, json!({"model": "story", "messages": []}))]
    {
        let answer: Value = s.post(path, body).await.json().await.unwrap();
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("load")));
    }
    assert!(s.mock.last.lock().unwrap().is_none());
}

#[tokio::test]
async fn options() {
    let s = served().await;
    let options = json!({"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": 42, "num_predict": 7,
                         "stop": ["a", "b"], "repeat_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 1.5,
                         "num_ctx": 64, "num_gpu": 1, "num_thread": 8, "repeat_last_n": -1, "unknown": {}});
    assert_eq!(s.post(CHAT, with(ask("hi"), "options", options)).await.status(), 200);
    let request = s.mock.order().request;
    let p = &request.sampling;
    assert_eq!((p.temperature_micro, p.top_k, p.top_p_micro, p.min_p_micro), (800_000, 40, 900_000, 50_000));
    assert_eq!((p.seed, p.repetition_micro), (Some(42), 1_100_000));
    assert_eq!((p.presence_micro, p.frequency_micro), (-500_000, 1_500_000));
    assert_eq!((request.max_tokens, request.stop), (7, vec!["a".to_owned(), "b".to_owned()]));

    for (key, value) in [
        ("num_predict", json!(-1)),
        ("num_predict", json!(-2)),
        ("num_ctx", json!(1)),
        ("seed", json!(-1)),
        ("mirostat", json!(0)),
        ("tfs_z", json!(1.0)),
        ("typical_p", json!(1.0)),
        ("penalize_newline", json!(true)),
        ("repeat_last_n", json!(64)),
        ("stop", json!("x")),
        ("top_k", json!(-1)),
    ] {
        assert_eq!(
            s.post(CHAT, with(ask("hi"), "options", json!({key: value}))).await.status(),
            200,
            "{key}"
        );
    }
    s.post(CHAT, with(ask("hi"), "options", json!({"seed": -1, "num_predict": -2}))).await;
    let request = s.mock.order().request;
    assert_eq!((request.sampling.seed, request.max_tokens), (None, 0));

    for (key, value) in [
        ("num_predict", json!(0)),
        ("num_predict", json!(-3)),
        ("num_ctx", json!(65)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("repeat_penalty", json!(0)),
        ("presence_penalty", json!(2.1)),
        ("frequency_penalty", json!(-2.1)),
        ("mirostat", json!(2)),
        ("tfs_z", json!(0.5)),
        ("typical_p", json!(0.5)),
        ("penalize_newline", json!(false)),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("seed", json!(1.5)),
    ] {
        let (status, message) =
            error(s.post(CHAT, with(ask("hi"), "options", json!({key: value}))).await).await;
        assert!(status == 400 && message.contains(key), "{key}: {message}");
    }
    let both = json!({"repeat_last_n": 64, "repeat_penalty": 1.1});
    assert_eq!(error(s.post(CHAT, with(ask("hi"), "options", both)).await).await.0, 400);
}

#[tokio::test]
async fn formats() {
    let s = served().await;
    for (format, expected) in [
        (json!(""), None),
        (Value::Null, None),
        (json!("json"), Some(Guide::JsonObject)),
        (json!({"type": "object"}), Some(Guide::JsonSchema(r#"{"type":"object"}"#.into()))),
    ] {
        assert_eq!(s.post(CHAT, with(ask("hi"), "format", format)).await.status(), 200);
        assert_eq!(s.mock.order().request.guide, expected);
    }
    let (status, _) = error(s.post(CHAT, with(ask("hi"), "format", json!("xml"))).await).await;
    assert_eq!(status, 400);
    let both = with(with(ask("hi"), "format", json!("json")), "tools", tools());
    assert_eq!(error(s.post(CHAT, both).await).await.0, 400);
}

#[tokio::test]
async fn calls_and_results_find_each_other() {
    let s = served().await;
    let call = |name: &str| json!({"function": {"name": name, "arguments": {"z": 1, "a": 2}}});
    let messages = json!([
        {"role": "user", "content": "hi", "images": []},
        {"role": "assistant", "content": "", "thinking": "", "tool_calls": [call("weather"), call("clock"), call("clock")]},
        {"role": "tool", "tool_name": "clock", "content": "noon"},
        {"role": "tool", "content": "sun"},
        {"role": "tool", "tool_call_id": "own", "content": "one"},
    ]);
    assert_eq!(s.post(CHAT, with(ask(""), "messages", messages)).await.status(), 200);
    let Prompt::Chat { messages, .. } = s.mock.order().request.prompt else { panic!() };
    let ids: Vec<&str> = messages[1].tool_calls.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(ids, ["call_1_0", "call_1_1", "call_1_2"]);
    assert_eq!(messages[1].tool_calls[0].arguments, r#"{"z":1,"a":2}"#);
    let results: Vec<Option<&str>> = messages[2..].iter().map(|m| m.tool_call_id.as_deref()).collect();
    assert_eq!(results, [Some("call_1_1"), Some("call_1_0"), Some("own")]);
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let s = served().await;
    let said = |m: Value| json!([m]);
    for (key, value, named) in [
        ("model", json!(7), "model"),
        ("think", json!(true), "think"),
        ("think", json!("high"), "think"),
        ("logprobs", json!(true), "logprobs"),
        ("stream", json!("no"), "stream"),
        ("messages", json!("hi"), "messages"),
        ("messages", said(json!({"role": "user", "content": "x", "images": ["AA=="]})), "messages[0].images"),
        ("messages", said(json!({"role": "developer", "content": "x"})), "messages[0].role"),
        (
            "messages",
            said(json!({"role": "assistant", "content": "x", "thinking": "hm"})),
            "messages[0].thinking",
        ),
        (
            "messages",
            said(
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}),
            ),
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("tools", json!([{"type": "web"}]), "tools[0].type"),
        ("tools", json!([{"type": "function", "function": {}}]), "tools[0].function.name"),
    ] {
        let (status, message) = error(s.post(CHAT, with(ask("hi"), key, value.clone())).await).await;
        assert!(status == 400 && message.contains(named), "{key} {value}: {message}");
    }
    for (key, value) in [
        ("think", json!(false)),
        ("keep_alive", json!("5m")),
        ("keep_alive", json!(-1)),
        ("truncate", json!(true)),
    ] {
        assert_eq!(s.post(CHAT, with(ask("hi"), key, value)).await.status(), 200, "{key}");
    }
    let (status, _) = error(s.post(CHAT, with(ask("hi"), "model", json!("other:latest"))).await).await;
    assert_eq!(status, 404);
    let (status, message) =
        error(s.post(CHAT, with(ask("hi"), "model", json!("embedder:small"))).await).await;
    assert!(status == 400 && message.contains("model"), "{message}");
}

#[tokio::test]
async fn models() {
    let s = served().await;
    let tags = s.json("/api/tags").await;
    let story = &tags["models"][0];
    assert_eq!(
        *story,
        json!({"name": "mock/story:latest", "model": "mock/story:latest", "modified_at": "2023-11-14T22:13:20.000000000Z",
               "size": 1000, "digest": &ROOT.to_string()[2..],
               "details": {"parent_model": "", "format": "assay", "family": "assay", "families": ["assay"],
                           "parameter_size": "260.0M", "quantization_level": "int8-v1"}})
    );
    assert_eq!(tags["models"][2]["name"], "embedder:small");
    let running = s.json("/api/ps").await;
    assert_eq!(running["models"].as_array().unwrap().len(), 3);
    assert_eq!(running["models"][0]["context_length"], 64);
    assert!(running["models"][0]["expires_at"].is_string());
    for name in ["mock/story:latest", "mock/story", "story", "story:latest"] {
        for key in ["model", "name"] {
            let shown: Value =
                s.post("/api/show", json!({key: name, "verbose": true})).await.json().await.unwrap();
            assert_eq!(shown["capabilities"], json!(["completion", "tools"]), "{name}");
            let info = &shown["model_info"];
            let architecture = info["general.architecture"].as_str().unwrap();
            assert_eq!(info[format!("{architecture}.context_length")], 64);
            assert_eq!(info["general.parameter_count"], 260_000_000);
            assert_eq!(shown["details"]["quantization_level"], "int8-v1");
        }
    }
    let shown: Value = s.post("/api/show", json!({"model": "embedder:small"})).await.json().await.unwrap();
    assert_eq!(shown["capabilities"], json!(["embedding"]));
    assert_eq!(shown["model_info"]["assay.embedding_length"], 2);
    let shown: Value = s.post("/api/show", json!({"model": "plain"})).await.json().await.unwrap();
    assert_eq!(shown["capabilities"], json!(["completion"]));
    assert_eq!(error(s.post("/api/show", json!({"model": "other"})).await).await.0, 404);
    assert_eq!(error(s.post("/api/show", json!({})).await).await.0, 400);
    assert_eq!(error(s.post("/api/show", json!({"model": "story", "system": "x"})).await).await.0, 400);
    let version = s.json("/api/version").await;
    assert!(version["version"].as_str().unwrap().split('.').all(|n| n.parse::<u32>().is_ok()), "{version}");
}

#[tokio::test]
async fn its_clients_find_it_running() {
    let s = served().await;
    let get = |agent: &'static str| {
        let request = s.client.get(format!("{}/", s.url)).header("user-agent", agent);
        async move { request.send().await.unwrap().text().await.unwrap() }
    };
    for agent in ["ollama/0.12.6 (amd64 linux) Go/go1.24", "ollama-python/0.6.0 (x86_64 linux) Python/3.12"] {
        assert_eq!(get(agent).await, "Ollama is running");
    }
    for agent in ["curl/8.5.0", "Mozilla/5.0"] {
        assert!(get(agent).await.contains("assay verify"));
    }
    let head = s.client.head(format!("{}/", s.url)).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.text().await.unwrap().as_str()), (200, ""));
}

#[tokio::test]
async fn models_are_not_managed_here() {
    let s = served().await;
    for path in ["pull", "push", "create", "copy"] {
        let (status, message) = error(s.post(&format!("/api/{path}"), json!({"model": "x"})).await).await;
        assert!(status == 501 && message.contains("assay import"), "{message}");
    }
    let deleted = s.client.delete(format!("{}/api/delete", s.url)).json(&json!({"model": "x"})).send();
    assert_eq!(error(deleted.await.unwrap()).await.0, 501);
    assert_eq!(error(s.get("/api/nothing").await).await.0, 404);
    assert_eq!(error(s.get(CHAT).await).await.0, 405);
}

#[tokio::test]
async fn vectors() {
    let s = served().await;
    let many = |body: Value| s.post("/api/embed", body);
    let response =
        many(json!({"model": "embedder:small", "input": ["first", "second"], "dimensions": 2})).await;
    assert!(response.headers()["x-assay-receipt"].to_str().unwrap().starts_with("0x"));
    let mut body: Value = response.json().await.unwrap();
    assert!(body["total_duration"].take().is_u64());
    assert_eq!(
        body,
        json!({"model": "embedder:small", "embeddings": [[0.5, -1.0], [0.0, 1.0]], "total_duration": null,
               "load_duration": 0, "prompt_eval_count": 4})
    );
    let asked = s.mock.last_embedding.lock().unwrap().clone().unwrap().request;
    assert_eq!((asked.model, asked.dimensions, asked.truncate), (EMBEDDER, Some(2), true));

    many(json!({"model": "embedder:small", "input": "first", "truncate": false})).await;
    let asked = s.mock.last_embedding.lock().unwrap().clone().unwrap().request;
    assert!(!asked.truncate && asked.inputs.len() == 1);
    for empty in [json!(""), json!([])] {
        let body: Value =
            many(json!({"model": "embedder:small", "input": empty})).await.json().await.unwrap();
        assert_eq!(body["embeddings"], json!([]));
    }
    let one: Value = s
        .post("/api/embeddings", json!({"model": "embedder:small", "prompt": "first"}))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(one, json!({"embedding": [0.5, -1.0]}));
    let inline = s.client.post(format!("{}/api/embed", s.url)).header("x-assay-receipt", "inline");
    let inline = inline.json(&json!({"model": "embedder:small", "input": "first"})).send().await.unwrap();
    assert_eq!(inline.json::<Value>().await.unwrap()["assay_receipt"]["format"], "assay-embedding/2");

    for (body, named) in [
        (json!({"model": "story", "input": "x"}), "model"),
        (json!({"model": "embedder:small"}), "input"),
        (json!({"model": "embedder:small", "input": [1]}), "input"),
        (json!({"model": "embedder:small", "input": 1}), "input"),
        (json!({"model": "embedder:small", "input": "x", "dimensions": 0}), "dimensions"),
        (json!({"model": "embedder:small", "input": "x", "truncate": "no"}), "truncate"),
        (json!({"model": "embedder:small", "input": "x", "options": {"num_ctx": 9}}), "options.num_ctx"),
        (json!({"model": "embedder:small", "input": vec!["x"; 2049]}), "input"),
    ] {
        let (status, message) = error(many(body).await).await;
        assert!(status == 400 && message.contains(named), "{named}: {message}");
    }
}

#[tokio::test]
async fn failures() {
    let options = ServerOptions {
        body_bytes_max: 4000,
        keep_alive: Duration::from_millis(50),
        ..ServerOptions::default()
    };
    let s = Served::new(options).await;
    assert_eq!(error(s.raw(CHAT, "{").await).await.0, 400);
    assert_eq!(error(s.raw(CHAT, vec![b'x'; 5000]).await).await.0, 413);
    let busy = s.post(CHAT, ask("busy")).await;
    assert_eq!(busy.headers()["retry-after"], "3");
    assert_eq!(error(busy).await.0, 429);
    assert_eq!(error(s.post(CHAT, ask("draining")).await).await.0, 503);
    for stream in [true, false] {
        let (status, message) =
            error(s.post(CHAT, with(ask("fail before"), "stream", json!(stream))).await).await;
        assert_eq!((status, message.as_str()), (500, "the mock fails"));
    }
    for script in ["fail after", "break off"] {
        let text = s.post(CHAT, with(ask(script), "stream", json!(true))).await.text().await.unwrap();
        let all = lines(&text);
        assert!(all.last().unwrap()["error"].is_string(), "{text}");
    }
    // A silent stream says that it lives, in lines that every client understands.
    let text = s.post(CHAT, with(ask("hesitate"), "stream", json!(true))).await.text().await.unwrap();
    let all = lines(&text);
    assert!(all.iter().filter(|l| l["message"]["content"] == "").count() > 3, "{text}");
    let said: String = all.iter().map(|l| l["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(said, "Hello");
}

#[tokio::test]
async fn the_receipt_inline() {
    let s = served().await;
    let inline = |body: Value| {
        let request =
            s.client.post(format!("{}{CHAT}", s.url)).header("x-assay-receipt", "inline").json(&body);
        async move { request.send().await.unwrap() }
    };
    let whole: Value = inline(ask("hi")).await.json().await.unwrap();
    assert_eq!(whole["assay_receipt"]["format"], "assay-answer/2");
    let all = lines(&inline(with(ask("hi"), "stream", json!(true))).await.text().await.unwrap());
    let (last, rest) = all.split_last().unwrap();
    assert!(last["assay_receipt"].is_object() && rest.iter().all(|l| l.get("assay_receipt").is_none()));
}

#[tokio::test]
async fn hostile_bodies_are_answered() {
    let s = served().await;
    let good = json!({
        "model": "story", "stream": false, "format": null, "tools": tools(),
        "options": {"temperature": 1, "stop": ["x"], "num_ctx": 1, "seed": 1, "num_predict": 1, "presence_penalty": 0},
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": {"name": "clock", "arguments": {}}}]},
            {"role": "tool", "tool_name": "clock", "content": "noon"},
        ],
    });
    assert_eq!(s.post(CHAT, good.clone()).await.status(), 200);
    let generate = json!({"model": "story", "prompt": "p", "system": "s", "raw": false, "stream": false});
    let embed = json!({"model": "embedder:small", "input": ["a"], "prompt": "p", "dimensions": 1, "truncate": true, "options": {}});
    let show = json!({"model": "story", "system": "", "options": {}});
    let mut count = 0;
    for (paths, good) in [
        (&[CHAT][..], good),
        (&[GENERATE], generate),
        (&["/api/embed", "/api/embeddings"], embed),
        (&["/api/show"], show),
    ] {
        for body in hostile(&good) {
            for path in paths {
                let status = s.post(path, body.clone()).await.status().as_u16();
                assert!([200, 400, 404].contains(&status), "{status} {path}: {body}");
                count += 1;
            }
        }
    }
    assert!(count > 500);
}
