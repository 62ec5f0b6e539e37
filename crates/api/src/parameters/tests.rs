//! Any JSON is a request within all limits, or a refusal that a client is to blame for.

use assay_core::id::ModelRoot;
use assay_core::request::{Guide, Prompt};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{embeddings, responses};

const WORDS: [&str; 24] = [
    "user",
    "assistant",
    "tool",
    "text",
    "type",
    "role",
    "function",
    "auto",
    "required",
    "none",
    "json_object",
    "json_schema",
    "f",
    "{}",
    "message",
    "function_call",
    "function_call_output",
    "input_text",
    "output_text",
    "base64",
    "5",
    "disabled",
    "medium",
    "low",
];

const INNER: [&str; 28] = [
    "role",
    "content",
    "type",
    "text",
    "name",
    "include_usage",
    "x",
    "function",
    "arguments",
    "id",
    "tool_call_id",
    "tool_calls",
    "parameters",
    "description",
    "strict",
    "schema",
    "json_schema",
    "json",
    "regex",
    "choice",
    "grammar",
    "format",
    "verbosity",
    "call_id",
    "output",
    "5",
    "50256",
    "effort",
];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..200).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(WORDS.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let key = prop::sample::select(INNER.to_vec());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..5)
                .prop_map(|m| m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

const KEYS: [&str; 40] = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "n",
    "best_of",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "input",
    "instructions",
    "max_output_tokens",
    "text",
    "metadata",
    "reasoning",
    "encoding_format",
    "dimensions",
    "truncate",
    "functions",
];

fn all_within_limits(parsed: &Parsed) -> Result<(), TestCaseError> {
    let requests: Vec<_> = parsed.requests(ModelRoot::ZERO).collect();
    prop_assert!((1..=limits::CHOICES_MAX as usize).contains(&requests.len()));
    for request in requests {
        prop_assert!(request.check().is_ok(), "{:?}", request.check());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_json_is_a_request_or_a_refusal(
        fields in prop::collection::vec((prop::sample::select(KEYS.to_vec()), json_value()), 0..4),
    ) {
        let mut body = json!({"model": "m", "prompt": "p", "messages": [{"role": "user", "content": "c"}], "input": "i"});
        for (key, value) in fields {
            body[key] = value;
        }
        for route in [Route::Chat, Route::Completions] {
            match parse(route, body.to_string().as_bytes()) {
                Ok(parsed) => all_within_limits(&parsed)?,
                Err(refusal) => prop_assert_eq!(refusal.status().as_u16(), 400),
            }
        }
        if let Err(refusal) = embeddings::check(body.to_string().as_bytes()) {
            prop_assert_eq!(refusal.status().as_u16(), 400);
        }
        for key in ["messages", "prompt", "max_tokens"] {
            body.as_object_mut().unwrap().remove(key);
        }
        match responses::parse(body.to_string().as_bytes()) {
            Ok(asked) => all_within_limits(&asked.parsed)?,
            Err(refusal) => prop_assert_eq!(refusal.status().as_u16(), 400),
        }
    }

    #[test]
    fn noise_is_refused(body in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(parse(Route::Chat, &body).is_err());
        prop_assert!(responses::parse(&body).is_err());
        prop_assert!(embeddings::check(&body).is_err());
    }
}

fn chat(extra: Value) -> Result<Parsed, Refusal> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "c"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    parse(Route::Chat, body.to_string().as_bytes())
}

#[track_caller]
fn guide(extra: Value, expected: Option<Guide>) {
    assert_eq!(chat(extra).unwrap().guide, expected);
}

#[track_caller]
fn refused(extra: Value, param: &str, code: &str) {
    let e = chat(extra).unwrap_err().to_json();
    assert_eq!((&e["error"]["param"], &e["error"]["code"]), (&json!(param), &json!(code)), "{e}");
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "x": 1.5}}})
}

#[test]
fn tools_and_their_choice() {
    let one = json!([tool("f")]);
    let calls = |required, only: Option<&str>, parallel| {
        Some(Guide::Tools { required, only: only.map(str::to_owned), parallel })
    };
    guide(json!({"tools": one}), calls(false, None, true));
    guide(
        json!({"tools": one, "tool_choice": "auto", "parallel_tool_calls": false}),
        calls(false, None, false),
    );
    guide(json!({"tools": one, "tool_choice": "required"}), calls(true, None, true));
    let named = json!({"type": "function", "function": {"name": "f"}});
    guide(json!({"tools": one, "tool_choice": named}), calls(true, Some("f"), true));
    guide(json!({"tools": one, "tool_choice": "none"}), None);
    guide(json!({"tools": [], "tool_choice": "auto"}), None);
    let parsed = chat(json!({"tools": one, "tool_choice": "none"})).unwrap();
    let Prompt::Chat { tools, .. } = &parsed.prompts[0] else { panic!() };
    assert_eq!(tools[0].parameters, r#"{"type":"object","x":1.5}"#, "in the client's order");

    refused(json!({"tool_choice": "required"}), "tool_choice", "invalid_value");
    refused(
        json!({"tools": one, "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        "tool_choice",
        "invalid_value",
    );
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}});
    refused(json!({"tools": one, "tool_choice": allowed}), "tool_choice.type", "unsupported_value");
    refused(json!({"tools": [tool("f"), tool("f")]}), "tools[1]", "invalid_value");
    refused(json!({"tools": [tool("a b")]}), "tools[0].function.name", "invalid_value");
    refused(json!({"tools": [tool(&"x".repeat(65))]}), "tools[0].function.name", "invalid_value");
    refused(json!({"tools": [{"type": "custom"}]}), "tools[0].type", "unsupported_value");
    let form = json!({"type": "json_object"});
    refused(json!({"tools": one, "response_format": form}), "response_format", "unsupported_value");
    guide(json!({"tools": one, "tool_choice": "none", "response_format": form}), Some(Guide::JsonObject));
}

#[test]
fn guides() {
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let text = r#"{"type":"object","properties":{"b":{},"a":{}}}"#.to_owned();
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    guide(json!({"response_format": format}), Some(Guide::JsonSchema(text.clone())));
    guide(json!({"guided_json": schema}), Some(Guide::JsonSchema(text.clone())));
    guide(json!({"guided_json": text}), Some(Guide::JsonSchema(text.clone())));
    guide(json!({"structured_outputs": {"json": schema}}), Some(Guide::JsonSchema(text)));
    guide(json!({"guided_regex": "a+"}), Some(Guide::Regex("a+".into())));
    guide(json!({"guided_choice": ["a.b", "c|d", "é"]}), Some(Guide::Regex(r"a\.b|c\|d|é".into())));
    guide(json!({"guided_grammar": "start: \"x\""}), Some(Guide::Grammar("start: \"x\"".into())));
    guide(json!({"response_format": {"type": "text"}, "guided_regex": "a"}), Some(Guide::Regex("a".into())));
    refused(json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice", "invalid_value");
    refused(
        json!({"structured_outputs": {"json": {}, "regex": "a"}}),
        "structured_outputs.regex",
        "invalid_value",
    );
    refused(json!({"structured_outputs": {}}), "structured_outputs", "invalid_value");
    let most = limits::GUIDE_BYTES_MAX;
    assert!(chat(json!({"guided_regex": "x".repeat(most)})).is_ok());
    refused(json!({"guided_regex": "x".repeat(most + 1)}), "guided_regex", "invalid_value");
}

#[test]
fn biases_are_ordered_and_named_once() {
    let parsed = chat(json!({"logit_bias": {"10": 1.5, "9": -100, "50256": 0}})).unwrap();
    assert_eq!(parsed.sampling.bias, [(9, -100_000_000), (10, 1_500_000), (50_256, 0)]);
    for key in ["01", "+1", "x", "", "-1", "4294967296"] {
        refused(json!({"logit_bias": {key: 1}}), "logit_bias", "invalid_value");
    }
    let many = |n: usize| (0..n).map(|i| (i.to_string(), json!(1))).collect::<Value>();
    assert!(chat(json!({"logit_bias": many(limits::BIASES_MAX)})).is_ok());
    refused(json!({"logit_bias": many(limits::BIASES_MAX + 1)}), "logit_bias", "invalid_value");
}

#[test]
fn choices_of_several_prompts() {
    let completion = |prompts: usize, n: u32| {
        let body = json!({"model": "m", "prompt": vec!["a"; prompts], "n": n});
        parse(Route::Completions, body.to_string().as_bytes())
    };
    let requests: Vec<_> = completion(2, 3).unwrap().requests(ModelRoot::ZERO).map(|r| r.choice).collect();
    assert_eq!(requests, [0, 1, 2, 0, 1, 2]);
    assert!(completion(64, 2).is_ok() && completion(128, 1).is_ok());
    assert!(completion(43, 3).is_err() && completion(129, 1).is_err());
}

#[test]
fn calls_and_their_results() {
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}});
    let said = json!({"role": "assistant", "content": null, "tool_calls": [call]});
    let result = json!({"role": "tool", "content": "4", "tool_call_id": "a"});
    let parsed = chat(json!({"messages": [said, result]})).unwrap();
    let Prompt::Chat { messages, .. } = &parsed.prompts[0] else { panic!() };
    assert_eq!(messages[0].tool_calls[0].arguments, "{\"x\": 1}", "as the client wrote it");
    assert_eq!(messages[1].tool_call_id.as_deref(), Some("a"));
    let broken = |f: &dyn Fn(&mut Value)| {
        let mut said = said.clone();
        f(&mut said["tool_calls"][0]);
        json!({"messages": [said]})
    };
    let at = |field: &str| format!("messages[0].tool_calls[0].{field}");
    refused(broken(&|c| c["id"] = json!(null)), &at("id"), "missing_required_parameter");
    refused(broken(&|c| c["function"]["arguments"] = json!({})), &at("function.arguments"), "invalid_type");
    refused(
        broken(&|c| c["function"]["arguments"] = json!("[]")),
        &at("function.arguments"),
        "invalid_value",
    );
    refused(broken(&|c| c["type"] = json!("custom")), &at("type"), "unsupported_value");
    let lost = json!({"messages": [{"role": "tool", "content": "4"}]});
    refused(lost, "messages[0].tool_call_id", "missing_required_parameter");
}
