//! `/v1/responses` and `/v1/embeddings` on the wire.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod mock;

use assay_api::ServerOptions;
use assay_core::embedding::EmbeddingInput;
use assay_core::request::{Prompt, Role};
use mock::{ENCODER, RECEIPT, Served};
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";
const HEX: &str = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd";

async fn served() -> Served {
    Served::new(ServerOptions::default()).await
}

fn tools() -> Value {
    json!([{"type": "function", "name": "f"}, {"type": "function", "name": "g"}])
}

async fn whole(s: &Served, body: Value) -> Value {
    let response = s.post(RESPONSES, body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-assay-receipt"], RECEIPT.to_string());
    response.json().await.unwrap()
}

#[tokio::test]
async fn a_response() {
    let s = served().await;
    let asked = json!({"model": "story", "input": "hi", "instructions": "Be kind.", "temperature": 0.5,
                       "metadata": {"a": "b"}, "max_output_tokens": 7});
    let mut body = whole(&s, asked).await;
    assert!(body["created_at"].as_u64().unwrap() > 1_700_000_000);
    body["created_at"] = json!(0);
    let part = json!({"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []});
    assert_eq!(
        body,
        json!({"id": format!("resp_{HEX}"), "object": "response", "created_at": 0, "status": "incomplete",
               "completed_at": null, "error": null, "incomplete_details": {"reason": "max_output_tokens"},
               "output": [{"id": format!("msg_{HEX}00"), "type": "message", "status": "incomplete",
                           "role": "assistant", "content": [part]}],
               "usage": {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                         "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5},
               "model": "story", "instructions": "Be kind.", "metadata": {"a": "b"}, "parallel_tool_calls": true,
               "temperature": 0.5, "tool_choice": "auto", "tools": [], "top_p": 1.0, "max_output_tokens": 7,
               "text": {"format": {"type": "text"}, "verbosity": "medium"}, "previous_response_id": null,
               "conversation": null, "prompt": null, "max_tool_calls": null,
               "reasoning": {"effort": null, "summary": null}, "background": false, "store": false,
               "service_tier": "default", "top_logprobs": 0, "truncation": "disabled", "user": null,
               "safety_identifier": null, "prompt_cache_key": null, "prompt_cache_retention": null})
    );
    let order = s.mock.last.lock().unwrap().clone().unwrap();
    let Prompt::Chat { messages, .. } = order.request.prompt else { panic!() };
    let roles: Vec<Role> = messages.iter().map(|m| m.role).collect();
    assert_eq!(roles, [Role::System, Role::User]);
    assert_eq!((order.request.max_tokens, order.request.sampling.temperature_micro), (7, 500_000));
}

#[tokio::test]
async fn a_conversation_with_calls() {
    let s = served().await;
    let input = json!([
        {"role": "user", "content": "What?"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "4"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "call"}]},
    ]);
    let body = whole(&s, json!({"model": "story", "input": input, "tools": tools()})).await;
    let call = |i: usize, id: &str, name: &str, arguments: &str| {
        json!({"id": format!("fc_{HEX}{i:02}"), "type": "function_call", "status": "completed", "call_id": id,
               "name": name, "arguments": arguments})
    };
    assert_eq!(body["output"], json!([call(0, "call_a", "f", "{\"x\":1}"), call(1, "call_b", "g", "{}")]));
    assert_eq!((&body["status"], &body["incomplete_details"]), (&json!("completed"), &Value::Null));
    assert!(body["completed_at"].is_u64());
    let order = s.mock.last.lock().unwrap().clone().unwrap();
    let Prompt::Chat { messages, .. } = order.request.prompt else { panic!() };
    assert_eq!(messages.len(), 4);
    assert_eq!((messages[1].content.as_str(), messages[1].tool_calls.len()), ("I look.", 2));
    assert_eq!(messages[3].tool_call_id.as_deref(), Some("b"));
}

/// The events of a stream, whose names and numbers are right.
async fn events(s: &Served, input: &str) -> Vec<Value> {
    let body = json!({"model": "story", "input": input, "tools": tools(), "stream": true});
    let text = s.post(RESPONSES, body).await.text().await.unwrap();
    let mut all = Vec::new();
    for (number, event) in text.split_terminator("\n\n").enumerate() {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
        all.push(data);
    }
    all
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect()
}

#[tokio::test]
async fn text_in_events() {
    let s = served().await;
    let all = events(&s, "hi").await;
    assert_eq!(
        names(&all),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete"
        ]
    );
    assert_eq!(
        (&all[0]["response"]["status"], &all[0]["response"]["output"]),
        (&json!("in_progress"), &json!([]))
    );
    assert_eq!(all[2]["item"]["content"], json!([]));
    assert_eq!(
        all[4],
        json!({"type": "response.output_text.delta", "sequence_number": 4, "item_id": format!("msg_{HEX}00"),
               "output_index": 0, "content_index": 0, "delta": "Hel", "logprobs": []})
    );
    assert_eq!(all[6]["text"], "Hello");
    assert_eq!(all[7]["part"]["text"], "Hello");
    let last = &all[9]["response"];
    assert_eq!(last["output"], json!([all[8]["item"]]));
    assert_eq!(last["usage"]["total_tokens"], 5);
}

#[tokio::test]
async fn calls_in_events() {
    let s = served().await;
    let all = events(&s, "call").await;
    assert_eq!(
        names(&all),
        [
            "created",
            "in_progress",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed"
        ]
    );
    assert_eq!((&all[2]["item"]["arguments"], &all[2]["item"]["call_id"]), (&json!(""), &json!("call_a")));
    assert_eq!((&all[5]["arguments"], &all[5]["output_index"]), (&json!("{\"x\":1}"), &json!(0)));
    assert_eq!((&all[8]["output_index"], &all[8]["item_id"]), (&json!(1), &json!(format!("fc_{HEX}01"))));
    assert_eq!(all[11]["response"]["output"].as_array().unwrap().len(), 2);

    let all = events(&s, "say and call").await;
    assert_eq!(all.last().unwrap()["response"]["output"][0]["content"][0]["text"], "I look.");
    assert_eq!(all.last().unwrap()["response"]["output"][1]["name"], "f");
    let all = events(&s, "nothing").await;
    assert_eq!(all.last().unwrap()["response"]["output"][0]["content"][0]["text"], "");
}

#[tokio::test]
async fn a_stream_and_a_whole_response_say_the_same() {
    let s = served().await;
    for input in ["hi", "call", "say and call", "call cut off", "nothing"] {
        let streamed = events(&s, input).await.pop().unwrap()["response"].clone();
        let mut body = whole(&s, json!({"model": "story", "input": input, "tools": tools()})).await;
        for key in ["created_at", "completed_at"] {
            body[key] = streamed[key].clone();
        }
        assert_eq!(streamed, body, "{input}");
    }
}

#[tokio::test]
async fn a_failure_in_events() {
    let s = served().await;
    let all = events(&s, "fail after").await;
    let last = all.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error");
    let body = json!({"model": "story", "input": "fail before", "stream": true});
    assert_eq!(s.post(RESPONSES, body).await.status(), 500);
}

#[tokio::test]
async fn the_record_inlined() {
    let s = served().await;
    let send = |path: &str, body: Value| {
        let request =
            s.client.post(format!("{}{path}", s.url)).header("x-assay-receipt", "inline").json(&body);
        async move { request.send().await.unwrap() }
    };
    let body = json!({"model": "story", "input": "hi"});
    let whole: Value = send(RESPONSES, body.clone()).await.json().await.unwrap();
    assert_eq!(whole["assay_receipt"]["format"], "assay-answer/2");
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let text = send(RESPONSES, streamed).await.text().await.unwrap();
    assert_eq!(text.matches("assay_receipt").count(), 1, "in the last event alone");
    let body: Value =
        send(EMBEDDINGS, json!({"model": "mock/encoder", "input": "hi"})).await.json().await.unwrap();
    assert_eq!(body["assay_receipt"]["format"], "assay-embedding/2");
}

#[tokio::test]
async fn embeddings() {
    let s = served().await;
    let body = json!({"model": "mock/encoder", "input": ["ab", "c"]});
    let response = s.post(EMBEDDINGS, body).await;
    assert_eq!(response.status(), 200);
    let receipt = response.headers()["x-assay-receipt"].to_str().unwrap();
    assert!(receipt.starts_with("0x") && receipt.len() == 66);
    let text = response.text().await.unwrap();
    let numbers = "[0.5,-0.25,1.7881393432617188e-7,0.0]";
    assert!(text.contains(numbers), "shortest decimals that a float of 64 bits is read from: {text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    let vector: Value = serde_json::from_str(numbers).unwrap();
    let entry = |i: usize| json!({"object": "embedding", "index": i, "embedding": vector});
    assert_eq!(
        body,
        json!({"object": "list", "data": [entry(0), entry(1)], "model": "mock/encoder",
               "usage": {"prompt_tokens": 3, "total_tokens": 3}})
    );
    let order = s.mock.last_embedding.lock().unwrap().clone().unwrap();
    assert_eq!((order.request.model, order.request.truncate), (ENCODER, false));

    let asked = json!({"model": "mock/encoder", "input": [[1, 2], [3]], "encoding_format": "base64",
                       "dimensions": 2, "truncate": true});
    let body: Value = s.post(EMBEDDINGS, asked).await.json().await.unwrap();
    // 0.5 is 3f000000 and -0.25 is be800000; the lowest byte goes first.
    assert_eq!(body["data"][1]["embedding"], "AAAAPwAAgL4=");
    let order = s.mock.last_embedding.lock().unwrap().clone().unwrap();
    assert_eq!(order.request.inputs[0], EmbeddingInput::Tokens(vec![1, 2]));
    assert_eq!((order.request.dimensions, order.request.truncate), (Some(2), true));
    let metrics = s.get("/metrics").await.text().await.unwrap();
    let line = "vllm:request_success_total{model_name=\"mock/encoder\",finished_reason=\"stop\"} 2";
    assert!(metrics.contains(line), "{metrics}");
    assert_eq!(s.post(EMBEDDINGS, json!({"model": "mock/encoder", "input": "busy"})).await.status(), 429);
}

#[tokio::test]
async fn embeddings_at_the_limit_and_one_past() {
    let s = served().await;
    for (count, status) in [(2048, 200), (2049, 400)] {
        let body = json!({"model": "mock/encoder", "input": vec!["a"; count]});
        assert_eq!(s.post(EMBEDDINGS, body).await.status(), status, "{count}");
    }
}

#[tokio::test]
async fn a_model_is_asked_for_what_it_does() {
    let s = served().await;
    let cases = [
        (EMBEDDINGS, json!({"model": "mock/story", "input": "hi"})),
        (RESPONSES, json!({"model": "mock/encoder", "input": "hi"})),
        ("/v1/completions", json!({"model": "mock/encoder", "prompt": "hi"})),
        (
            "/v1/chat/completions",
            json!({"model": "mock/encoder", "messages": [{"role": "user", "content": "hi"}]}),
        ),
    ];
    for (path, body) in cases {
        let response = s.post(path, body).await;
        assert_eq!(response.status(), 400);
        let e: Value = response.json().await.unwrap();
        assert_eq!(
            (&e["error"]["code"], &e["error"]["param"]),
            (&json!("model_task"), &json!("model")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_was_executed_before_is_told() {
    let s = served().await;
    let asked = json!({"model": "story", "input": "known"});
    let body = whole(&s, asked.clone()).await;
    assert_eq!(body["usage"]["input_tokens_details"]["cached_tokens"], 2);
    let mut streamed = asked;
    streamed["stream"] = json!(true);
    let text = s.post(RESPONSES, streamed).await.text().await.unwrap();
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["response"]["usage"]["input_tokens_details"]["cached_tokens"], 2);
    assert_eq!(last["response"]["usage"]["input_tokens"], 3);
}
