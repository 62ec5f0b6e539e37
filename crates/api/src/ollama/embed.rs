//! `/api/embed` and the older `/api/embeddings`.

use assay_core::consent::Consent;
use assay_core::embedding::{EMBEDDING_FRAC, EmbeddingInput, EmbeddingRecord, EmbeddingRequest};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};

use super::{Failure, find_tagged};
use crate::dialect::{self, Received};
use crate::parameters::{Object, unsupported, wrong_type};
use crate::server::Shared;
use crate::verification::with_class;
use crate::{Class, Inference, Refusal, Task};

struct Asked {
    model: String,
    texts: Vec<String>,
    dimensions: Option<u32>,
    truncate: bool,
}

/// Vectors of several texts.
pub(super) async fn many<I: Inference>(
    State(s): State<Shared<I>>,
    request: Request,
) -> Result<Response, Failure> {
    let received = dialect::receive(&s, request).await?;
    let body = dialect::object(&received.body)?;
    let o = Object(&body);
    let expected = "a string or an array of strings";
    let texts = match o.get("input") {
        None => return Err(Refusal::Missing { param: "input".into() }.into()),
        Some(Value::String(s)) if s.is_empty() => vec![],
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(all)) => {
            let all: Option<Vec<String>> = all.iter().map(|v| v.as_str().map(str::to_owned)).collect();
            all.ok_or_else(|| wrong_type("input", expected))?
        }
        Some(_) => return Err(wrong_type("input", expected).into()),
    };
    let asked = Asked { texts, dimensions: o.tokens("dimensions")?, ..common(&o)? };
    let mut answer = json!({"model": asked.model, "embeddings": []});
    let record = embed(&s, &received, asked).await?;
    if let Some(record) = &record {
        answer["embeddings"] = record.transcript.vectors.iter().map(|v| numbers(v)).collect();
    }
    answer["total_duration"] =
        json!(u64::try_from(received.started.elapsed().as_nanos()).unwrap_or(u64::MAX));
    answer["load_duration"] = json!(0);
    answer["prompt_eval_count"] = json!(record.as_ref().map_or(0, |r| r.transcript.tokens()));
    Ok(finish(answer, &received, record.as_deref()))
}

/// The vector of one text, as Ollama answered before.
pub(super) async fn one<I: Inference>(
    State(s): State<Shared<I>>,
    request: Request,
) -> Result<Response, Failure> {
    let received = dialect::receive(&s, request).await?;
    let body = dialect::object(&received.body)?;
    let o = Object(&body);
    let prompt = o.typed("prompt", "a string", Value::as_str)?.unwrap_or_default();
    let texts = if prompt.is_empty() { vec![] } else { vec![prompt.to_owned()] };
    let asked = Asked { texts, ..common(&o)? };
    let record = embed(&s, &received, asked).await?;
    let vector = record.as_ref().and_then(|r| r.transcript.vectors.first());
    let answer = json!({"embedding": vector.map_or(json!([]), |v| numbers(v))});
    Ok(finish(answer, &received, record.as_deref()))
}

fn common(o: &Object<'_>) -> Result<Asked, Refusal> {
    let model = o.typed("model", "a string", Value::as_str)?;
    let model = model.ok_or_else(|| Refusal::Missing { param: "model".into() })?.to_owned();
    if let Some(options) = o.typed("options", "an object", Value::as_object)? {
        hints_alone(options)?;
    }
    let truncate = o.typed("truncate", "true or false", Value::as_bool)?.unwrap_or(true);
    Ok(Asked { model, texts: vec![], dimensions: None, truncate })
}

/// Options speak of sampling and of the machine, neither of which changes a vector; the window does.
fn hints_alone(options: &Map<String, Value>) -> Result<(), Refusal> {
    if Object(options).get("num_ctx").is_some() {
        let reason = "a text is read with the window that the model has; see `truncate`";
        return Err(unsupported("options.num_ctx", reason));
    }
    Ok(())
}

async fn embed<I: Inference>(
    s: &Shared<I>,
    received: &Received,
    asked: Asked,
) -> Result<Option<std::sync::Arc<EmbeddingRecord>>, Refusal> {
    let card = find_tagged(s.inference.as_ref(), &asked.model)?;
    if !matches!(card.task, Task::Embed { .. }) {
        return Err(unsupported("model", "this model answers; it makes no vectors of texts"));
    }
    if asked.texts.is_empty() {
        return Ok(None);
    }
    let request = EmbeddingRequest {
        model: card.root,
        inputs: asked.texts.into_iter().map(EmbeddingInput::Text).collect(),
        dimensions: asked.dimensions,
        truncate: asked.truncate,
        audit: Consent::Given,
    };
    request.check().map_err(|e| dialect::invalid(&e))?;
    Ok(Some(s.inference.embed(received.embedding_order(request)).await?))
}

fn finish(mut answer: Value, received: &Received, record: Option<&EmbeddingRecord>) -> Response {
    let Some(record) = record else { return Json(answer).into_response() };
    if received.inline {
        answer["assay_receipt"] = json!(record);
    }
    let class = Class::of(record.request.audit, &record.receipt);
    with_class(dialect::with_receipt(Json(answer).into_response(), record.receipt.receipt.id()), class)
}

/// A vector in decimals. Whole numbers below 2^53 over a power of two are exact.
fn numbers(vector: &[i32]) -> Value {
    let scale = f64::from(1u32 << EMBEDDING_FRAC);
    vector.iter().map(|v| Value::from(f64::from(*v) / scale)).collect()
}
