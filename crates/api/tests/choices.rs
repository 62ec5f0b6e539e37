//! Tools, probabilities and several choices on the wire, whole and in chunks.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod mock;

use assay_api::ServerOptions;
use assay_core::request::{Guide, Prompt};
use mock::{Served, receipt_id};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn served() -> Served {
    Served::new(ServerOptions::default()).await
}

fn chat(content: &str, extra: Value) -> Value {
    let body = json!({"model": "mock/story", "messages": [{"role": "user", "content": content}]});
    merged(body, extra)
}

fn merged(mut body: Value, extra: Value) -> Value {
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn whole(s: &Served, path: &str, body: Value) -> Value {
    let response = s.post(path, body).await;
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// The chunks of a stream that ends as it should.
async fn chunks(s: &Served, path: &str, body: Value) -> Vec<Value> {
    let text = s.post(path, merged(body, json!({"stream": true}))).await.text().await.unwrap();
    let text = text.strip_suffix("data: [DONE]\n\n").expect("the end is said");
    let events = text.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap());
    events.map(|e| serde_json::from_str(e).unwrap()).collect()
}

fn usage(prompt: u32, completion: u32) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
           "prompt_tokens_details": {"cached_tokens": 0}})
}

fn tools() -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    json!({"tools": [tool("f"), tool("g")]})
}

#[tokio::test]
async fn calls_whole() {
    let s = served().await;
    let body = whole(&s, CHAT, chat("call", tools())).await;
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls = json!([call("call_a", "f", "{\"x\":1}"), call("call_b", "g", "{}")]);
    let message = json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": calls});
    assert_eq!(
        body["choices"],
        json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": "tool_calls"}])
    );
    let order = s.mock.last.lock().unwrap().clone().unwrap();
    let Prompt::Chat { tools: seen, .. } = order.request.prompt else { panic!() };
    assert_eq!((seen.len(), seen[0].parameters.as_str()), (2, r#"{"type":"object","properties":{}}"#));
    assert_eq!(order.request.guide, Some(Guide::Tools { required: false, only: None, parallel: true }));

    let body = whole(&s, CHAT, chat("say and call", tools())).await;
    assert_eq!(body["choices"][0]["message"]["content"], "I look.");
    assert_eq!(body["choices"][0]["finish_reason"], "tool_calls");
    let body = whole(&s, CHAT, chat("call cut off", tools())).await;
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{\"x");
}

#[tokio::test]
async fn calls_streamed() {
    let s = served().await;
    let chunks = chunks(&s, CHAT, chat("call", tools())).await;
    let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    let begun = |index: u32, id: &str, name: &str| {
        let function = json!({"name": name, "arguments": ""});
        json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
    };
    let more =
        |index: u32, json: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": json}}]});
    let expected = [
        json!({"role": "assistant", "content": ""}),
        begun(0, "call_a", "f"),
        more(0, "{\"x\""),
        more(0, ":1}"),
        begun(1, "call_b", "g"),
        more(1, "{}"),
        json!({}),
    ];
    assert_eq!(deltas, expected.iter().collect::<Vec<_>>());
    let reasons: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["finish_reason"]).collect();
    assert_eq!(*reasons.last().unwrap(), "tool_calls");
    assert!(reasons.iter().rev().skip(1).all(|r| r.is_null()));
}

#[tokio::test]
async fn probabilities_on_chat() {
    let s = served().await;
    let asked = json!({"logprobs": true, "top_logprobs": 2});
    let body = whole(&s, CHAT, chat("hi", asked.clone())).await;
    let hel = json!({"token": "Hel", "bytes": [72, 101, 108], "logprob": -45_426.0 / 65_536.0});
    let a = json!({"token": "a", "bytes": [97], "logprob": -1.0});
    let entry = merged(hel.clone(), json!({"top_logprobs": [hel, a]}));
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!((&logprobs["content"][0], &logprobs["refusal"]), (&entry, &Value::Null));
    assert_eq!(logprobs["content"].as_array().unwrap().len(), 2);
    let chunks = chunks(&s, CHAT, chat("hi", asked)).await;
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["content"], json!([entry]));
    assert!(chunks[0]["choices"][0]["logprobs"].is_null());

    let body = whole(&s, CHAT, chat("half characters", json!({"logprobs": true}))).await;
    let content = &body["choices"][0]["logprobs"]["content"];
    assert_eq!(
        content[0],
        json!({"token": "\u{fffd}", "bytes": [195], "logprob": -45_426.0 / 65_536.0, "top_logprobs": []})
    );
    assert_eq!(body["choices"][0]["message"]["content"], "é!");
    let order = s.mock.last.lock().unwrap().clone().unwrap();
    assert_eq!(order.request.logprobs, Some(0));
}

#[tokio::test]
async fn probabilities_on_completions() {
    let s = served().await;
    let body =
        |prompt: &str, logprobs: u32| json!({"model": "mock/story", "prompt": prompt, "logprobs": logprobs});
    let answer = whole(&s, COMPLETIONS, body("half characters", 2)).await;
    let p = -45_426.0 / 65_536.0;
    let top = |token: &str| json!({token: p, "a": -1.0});
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({"tokens": ["\u{fffd}", "\u{fffd}", "!"], "token_logprobs": [p, p, p],
               "top_logprobs": [top("\u{fffd}"), top("\u{fffd}"), top("!")], "text_offset": [0, 1, 1]})
    );
    let answer = whole(&s, COMPLETIONS, body("hi", 0)).await;
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["Hel", "lo"]));
    assert!(answer["choices"][0]["logprobs"]["top_logprobs"].is_null());
    let chunks = chunks(&s, COMPLETIONS, body("hi", 1)).await;
    let offsets: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["logprobs"]["text_offset"]).collect();
    assert_eq!(offsets, [&json!([0]), &json!([3]), &Value::Null]);
}

#[tokio::test]
async fn several_choices_whole() {
    let s = served().await;
    let response = s.post(CHAT, chat("hi", json!({"n": 3}))).await;
    let receipts: Vec<String> = (0..3).map(|i| receipt_id(i).to_string()).collect();
    assert_eq!(response.headers()["x-assay-receipt"], receipts.join(", "));
    let body: Value = response.json().await.unwrap();
    let texts: Vec<&Value> =
        body["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert_eq!(texts, ["Hello", "Hel1", "Hel2"]);
    assert_eq!(body["choices"][2]["index"], 2);
    assert_eq!(body["usage"], usage(3, 6));

    let body = json!({"model": "mock/story", "prompt": ["a", "b"], "n": 2});
    let body = whole(&s, COMPLETIONS, body).await;
    let choices = body["choices"].as_array().unwrap();
    let seen: Vec<_> = choices.iter().map(|c| (c["index"].as_u64().unwrap(), &c["text"])).collect();
    assert_eq!(seen, [(0, &json!("Hello")), (1, &json!("Hel1")), (2, &json!("Hello")), (3, &json!("Hel1"))]);
    assert_eq!(body["usage"], usage(6, 8));
}

#[tokio::test]
async fn several_choices_streamed() {
    let s = served().await;
    let options = json!({"n": 3, "stream_options": {"include_usage": true}});
    let chunks = chunks(&s, CHAT, chat("hi", options)).await;
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["usage"], usage(3, 6));
    for (index, expected) in [(0, "Hello"), (1, "Hel1"), (2, "Hel2")] {
        let own: Vec<&Value> =
            rest.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        let text: String = own.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(text, expected);
        assert_eq!(own.last().unwrap()["finish_reason"], "length");
    }
    assert!(rest.iter().all(|c| c["choices"].as_array().unwrap().len() == 1 && c["id"] == last["id"]));
}

#[tokio::test]
async fn several_records_inlined() {
    let s = served().await;
    let send = |body: Value| {
        let request =
            s.client.post(format!("{}{CHAT}", s.url)).header("x-assay-receipt", "inline").json(&body);
        async move { request.send().await.unwrap() }
    };
    let choices = |records: &Value| -> Vec<u64> {
        let each = records.as_array().unwrap().iter();
        each.map(|r| r["request"]["choice"].as_u64().unwrap()).collect()
    };
    let body: Value = send(chat("hi", json!({"n": 3}))).await.json().await.unwrap();
    assert_eq!(choices(&body["assay_receipts"]), [0, 1, 2]);
    assert!(body.get("assay_receipt").is_none());
    let text = send(chat("hi", json!({"n": 3, "stream": true}))).await.text().await.unwrap();
    let with: Vec<&str> = text.split("\n\n").filter(|e| e.contains("assay_receipts")).collect();
    assert_eq!(with.len(), 1, "in one chunk alone");
    let chunk: Value = serde_json::from_str(with[0].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(choices(&chunk["assay_receipts"]), [0, 1, 2]);
    assert_eq!(chunk["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn one_failing_prompt_fails_all() {
    let s = served().await;
    for (prompt, status) in [("busy", 429), ("long", 400), ("fail before", 500), ("break off", 500)] {
        let response = s.post(COMPLETIONS, json!({"model": "mock/story", "prompt": ["hi", prompt]})).await;
        assert_eq!(response.status(), status, "{prompt}");
    }
}

/// Of each prompt's choices the first says what was known, as it says how long the prompt is.
#[tokio::test]
async fn what_was_executed_before_is_told_once_for_each_prompt() {
    let s = served().await;
    let told = |usage: &Value| {
        (usage["prompt_tokens"].clone(), usage["prompt_tokens_details"]["cached_tokens"].clone())
    };
    let body = whole(&s, CHAT, chat("known", json!({"n": 3}))).await;
    assert_eq!(told(&body["usage"]), (json!(3), json!(2)));
    let asked = json!({"model": "mock/story", "prompt": ["known", "new", "known"], "n": 2});
    let body = whole(&s, COMPLETIONS, asked.clone()).await;
    assert_eq!(told(&body["usage"]), (json!(9), json!(4)));
    let options = json!({"stream_options": {"include_usage": true}});
    let in_chunks = chunks(&s, COMPLETIONS, merged(asked, options.clone())).await;
    assert_eq!(told(&in_chunks.last().unwrap()["usage"]), (json!(9), json!(4)));
    let in_chunks = chunks(&s, CHAT, chat("known", options)).await;
    assert_eq!(told(&in_chunks.last().unwrap()["usage"]), (json!(3), json!(2)));
}
