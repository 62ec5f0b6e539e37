//! Whether an API answer says what its record says: whoever keeps the answer reads its text, not the record's.

use assay_core::answer::AnswerRecord;
use assay_core::embedding::{EMBEDDING_FRAC, EmbeddingRecord, Record};
use assay_core::request::{Guide, Prompt};
use assay_core::transcript::StopReason;
use assay_core::verdict::{Check, Failure, FailureCode, Outcome, Verdict};
use assay_engine::text::tools::{CallFinder, Part, Syntax};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::commands::record::Around;

/// Compares an answer with the record that it carried. `syntax` is the model's, where it is known.
pub fn compare(around: Option<&Around>, record: &Record, syntax: Option<Syntax>, verdict: &mut Verdict) {
    let Some(around) = around else { return };
    let result = match record {
        Record::Answer(r) => answer(around, r, syntax),
        Record::Embedding(r) => embeddings(&around.json, r),
    };
    let (outcome, detail) = match result {
        Ok(what) => (Outcome::Passed, format!("{what} are the record's")),
        Err(message) => (Outcome::Failed, message),
    };
    verdict.checks.push(Check { name: "answer".into(), outcome, detail: detail.clone() });
    if outcome == Outcome::Failed {
        verdict.holds = false;
        verdict.failure.get_or_insert(Failure { code: FailureCode::Text, position: None, message: detail });
    }
}

/// Text and calls of an answer, as a client sees them.
fn told(record: &AnswerRecord, syntax: Option<Syntax>) -> (String, Vec<(String, String)>) {
    let whole = || (record.transcript.text.clone(), vec![]);
    let (Some(Guide::Tools { .. }), Prompt::Chat { tools, .. }, Some(syntax)) =
        (&record.request.guide, &record.request.prompt, syntax)
    else {
        return whole();
    };
    let mut finder = CallFinder::new(syntax, tools);
    let mut parts = finder.push(&record.transcript.text);
    parts.extend(finder.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(more) => text.push_str(&more),
            Part::Call { name, arguments } => calls.push((name, arguments)),
        }
    }
    (text, calls)
}

fn answer(around: &Around, record: &AnswerRecord, syntax: Option<Syntax>) -> Result<&'static str, String> {
    let (t, json) = (&record.transcript, &around.json);
    if t.stop == StopReason::Cancelled {
        return Err(
            "the answer was told to its end, and its record says that who ordered it had it stopped".into()
        );
    }
    let choice = &json["choices"][around.index];
    let (text, calls) = told(record, syntax);
    let said = choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("");
    if said != text {
        let at = said.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        return Err(format!("the text around the record differs from the record's, from byte {at} on"));
    }
    let none = Vec::new();
    let given = choice["message"]["tool_calls"].as_array().unwrap_or(&none);
    let same = given.len() == calls.len()
        && given.iter().zip(&calls).all(|(g, (name, arguments))| {
            g["function"]["name"] == name.as_str() && g["function"]["arguments"] == arguments.as_str()
        });
    if !same {
        return Err("the tool calls around the record are not the record's".into());
    }
    let ended = matches!(t.stop, StopReason::EndToken | StopReason::StopString(_));
    let finish = if ended && !calls.is_empty() { "tool_calls" } else { t.stop.finish_reason() };
    if choice["finish_reason"] != finish {
        return Err("the finish_reason around the record is not the record's".into());
    }
    let usage = t.usage();
    let several = json["choices"].as_array().is_some_and(|c| c.len() > 1);
    // The usage of several choices is their sum.
    if !several
        && (json["usage"]["prompt_tokens"] != usage.prompt_tokens
            || json["usage"]["completion_tokens"] != usage.completion_tokens)
    {
        return Err("the usage around the record is not the record's".into());
    }
    Ok(if several {
        "text, tool calls and finish_reason"
    } else {
        "text, tool calls, finish_reason and usage"
    })
}

fn embeddings(json: &Value, record: &EmbeddingRecord) -> Result<&'static str, String> {
    let one = (1u32 << EMBEDDING_FRAC) as f32;
    let none = Vec::new();
    let data = json["data"].as_array().unwrap_or(&none);
    if data.len() != record.transcript.vectors.len() {
        return Err("the answer has another number of embeddings than the record".into());
    }
    for (i, (given, vector)) in data.iter().zip(&record.transcript.vectors).enumerate() {
        // A 32-bit float holds every number of a vector: both forms are exact.
        let floats = vector.iter().map(|v| *v as f32 / one);
        let same = match &given["embedding"] {
            Value::Array(all) => {
                all.len() == vector.len()
                    && all.iter().zip(floats).all(|(g, v)| g.as_f64().map(|g| g as f32) == Some(v))
            }
            Value::String(text) => {
                let bytes: Vec<u8> = floats.flat_map(f32::to_le_bytes).collect();
                *text == STANDARD.encode(bytes)
            }
            _ => false,
        };
        if !same {
            return Err(format!("embedding {i} around the record is not the record's"));
        }
    }
    if json["usage"]["prompt_tokens"] != record.transcript.tokens() {
        return Err("the usage around the record is not the record's".into());
    }
    Ok("embeddings and usage")
}
