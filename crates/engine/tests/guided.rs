//! Guided decoding: whatever a model prefers, the answer has the form that was asked for, and a verifier finds the same
//! masks.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::sync::Arc;

use assay_core::request::{Guide, Sampling, Tool};
use assay_core::transcript::StopReason;
use assay_engine::artifact::Artifact;
use assay_engine::batch::{Answer, BatchLimits, Batcher, Event, Job};
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;
use assay_engine::text::tools::{CallFinder, Part};

fn model() -> Arc<Artifact> {
    let bytes = include_bytes!("../../../models/stories-1.7m.assay");
    Arc::new(Artifact::from_bytes("built in", bytes).unwrap())
}

fn answer(guide: &Guide, tools: &[Tool], seed: u8) -> Answer {
    let artifact = model();
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let executor = Executor::new(artifact.shared(), Kernel::available()[0], Arc::new(Pool::new(2)));
    let end_tokens = artifact.text().end_tokens.clone();
    let mut batcher = Batcher::new(executor, &tokenizer, end_tokens, BatchLimits::default());
    let job = Job {
        id: 1,
        prompt: tokenizer.encode_text("Once upon a time").unwrap(),
        sampling: Sampling { temperature_micro: 1_000_000, ..Sampling::GREEDY },
        seed: [seed; 32],
        max_tokens: 0,
        stop: vec![],
        guide: Some(tokenizer.guide(guide, tools).unwrap()),
        logprobs: Some(2),
    };
    batcher.submit(job).unwrap();
    let mut done = None;
    while !batcher.is_idle() {
        batcher.step(&mut |_, event| {
            if let Event::Done(answer) = event {
                done = Some(*answer);
            }
        });
    }
    done.unwrap()
}

const PERSON: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":0,"maximum":120},"tags":{"type":"array","items":{"enum":["a","b"]},"maxItems":3}},"required":["name","age","tags"],"additionalProperties":false}"#;

#[test]
fn answers_follow_a_schema() {
    for seed in 0..4 {
        let a = answer(&Guide::JsonSchema(PERSON.into()), &[], seed);
        assert_eq!(a.stop, StopReason::EndToken, "{}", a.text);
        let v: serde_json::Value = serde_json::from_str(&a.text).unwrap();
        assert!(
            v["name"].as_str().unwrap().chars().count() <= 12 && v["age"].as_u64().unwrap() <= 120,
            "{v}"
        );
        assert!(v["tags"].as_array().unwrap().iter().all(|t| t == "a" || t == "b"), "{v}");
        assert_eq!(a.logprobs.len(), a.output.len());
        assert!(a.logprobs.iter().all(|p| p.chosen <= 0 && p.top.len() == 2 && p.top[0].1 >= p.chosen));
    }
}

#[test]
fn answers_match_an_expression_or_a_grammar() {
    let a = answer(&Guide::Regex("(yes|no), [0-9]{3}!".into()), &[], 1);
    assert!(a.text.starts_with("yes, ") || a.text.starts_with("no, "), "{}", a.text);
    assert!(a.text.ends_with('!') && a.stop == StopReason::EndToken);
    let a = answer(&Guide::Grammar("start: \"red\" | \"green\"\n".into()), &[], 2);
    assert!(["red", "green"].contains(&a.text.as_str()), "{}", a.text);
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: &str| Tool {
        name: name.into(),
        description: None,
        parameters: parameters.into(),
    };
    vec![
        tool(
            "weather",
            r#"{"type":"object","properties":{"city":{"enum":["Rome","Oslo"]}},"required":["city"],"additionalProperties":false}"#,
        ),
        tool("time", r#"{"type":"object","properties":{},"additionalProperties":false}"#),
    ]
}

fn parts(a: &Answer) -> Vec<Part> {
    let artifact = model();
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let mut finder = CallFinder::new(tokenizer.call_syntax(), &tools());
    let mut parts = finder.push(&a.text);
    parts.extend(finder.finish());
    parts
}

#[test]
fn required_tools_are_called() {
    for seed in 0..4 {
        let guide = Guide::Tools { required: true, only: None, parallel: false };
        let a = answer(&guide, &tools(), seed);
        let parts = parts(&a);
        assert!(matches!(parts.as_slice(), [Part::Call { .. }]), "{}: {parts:?}", a.text);
        assert_eq!(a.stop, StopReason::EndToken);
    }
    let guide = Guide::Tools { required: true, only: Some("weather".into()), parallel: false };
    let called = parts(&answer(&guide, &tools(), 9));
    let [Part::Call { name, arguments }] = called.as_slice() else { panic!("{called:?}") };
    assert_eq!(name, "weather");
    assert!(["{\"city\": \"Rome\"}", "{\"city\": \"Oslo\"}"].contains(&arguments.as_str()), "{arguments}");
}

#[test]
fn tools_that_may_be_called_leave_text_alone() {
    let guide = Guide::Tools { required: false, only: None, parallel: true };
    let a = answer(&guide, &tools(), 3);
    assert!(a.text.len() > 40 && parts(&a).iter().all(|p| matches!(p, Part::Text(_))), "{}", a.text);
}

/// Whether a guide lets a text come into being, token by token, and then end.
fn allows(guide: &Guide, text: &str) -> bool {
    let artifact = model();
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let mut guided = tokenizer.guide(guide, &tools()).unwrap();
    let ids = [tokenizer.encode_text(text).unwrap(), artifact.text().end_tokens[..1].to_vec()].concat();
    let first = usize::from(artifact.text().add_bos);
    ids[first..].iter().all(|id| {
        let allowed = guided.mask().allows(*id as usize);
        guided.push(*id);
        allowed
    })
}

#[test]
fn calls_may_follow_text_and_each_other_in_their_form_alone() {
    let time = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
    let rome = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    let paris = rome.replace("Rome", "Paris");
    let auto = |parallel| Guide::Tools { required: false, only: None, parallel };
    let forced = |parallel| Guide::Tools { required: true, only: None, parallel };
    for (guide, text, allowed) in [
        (auto(true), "Only text, with < and > in it.".to_owned(), true),
        (auto(true), format!("Let me see. {time}"), true),
        (auto(true), format!("{time}\n{rome}"), true),
        (auto(false), rome.to_owned(), true),
        (auto(false), format!("{time}\n{rome}"), false),
        (auto(true), paris.clone(), false),
        (auto(true), format!("{time} and then?"), false),
        (forced(false), time.to_owned(), true),
        (forced(true), format!("{rome}\n{time}"), true),
        (forced(true), format!("Well. {time}"), false),
        (forced(true), paris, false),
    ] {
        assert_eq!(allows(&guide, &text), allowed, "{guide:?}: {text}");
    }
}

#[test]
fn forms_that_cannot_be_followed_are_refused() {
    let artifact = model();
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    for bad in [
        Guide::JsonSchema("{\"type\":\"nonsense\"}".into()),
        Guide::JsonSchema("not json".into()),
        Guide::Regex("(".into()),
        Guide::Grammar("start: nowhere".into()),
        Guide::Tools { required: true, only: Some("other".into()), parallel: false },
    ] {
        assert!(tokenizer.guide(&bad, &tools()).is_err(), "{bad:?}");
    }
}
