//! `/v1/embeddings`: vectors of texts. A vector is integers over a power of two, each of which a 32-bit float holds exactly.

use std::sync::Arc;

use assay_core::consent::Consent;
use assay_core::embedding::{EMBEDDING_FRAC, EmbeddingInput, EmbeddingRequest};
use assay_core::id::{ModelRoot, ReceiptId};
use assay_core::limits;
use assay_core::transcript::Usage;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::answer::Meter;
use crate::metrics::Finish;
use crate::parameters::prompts::ids;
use crate::parameters::{Object, body_object, model, out_of_range, over_limit, unsupported, wrong_type};
use crate::server::{Shared, encoder, receive, with_receipts};
use crate::verification::with_class;
use crate::{Class, Inference, Refusal, traces};

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// JSON numbers.
    Float,
    /// 32-bit floats, the lowest byte first, in base64.
    Base64,
}

/// What a client asked for.
#[derive(Debug)]
struct Parsed {
    model: String,
    inputs: Vec<EmbeddingInput>,
    dimensions: Option<u32>,
    truncate: bool,
    encoding: Encoding,
}

impl Parsed {
    fn request(self, model: ModelRoot) -> EmbeddingRequest {
        let Parsed { inputs, dimensions, truncate, .. } = self;
        EmbeddingRequest { model, inputs, dimensions, truncate, audit: Consent::Given }
    }
}

fn parse(body: &[u8]) -> Result<Parsed, Refusal> {
    let map = body_object(body)?;
    let o = Object(&map);
    let model = model(&o)?;
    let inputs = inputs(o.required("input")?)?;
    let encoding = match o.typed("encoding_format", "a string", Value::as_str)? {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => return Err(unsupported("encoding_format", "it may be `float` or `base64`")),
    };
    Ok(Parsed { model, inputs, dimensions: o.tokens("dimensions")?, truncate: o.flag("truncate")?, encoding })
}

fn inputs(v: &Value) -> Result<Vec<EmbeddingInput>, Refusal> {
    let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let many = |all: &[Value]| {
        let most = limits::EMBEDDING_INPUTS_MAX;
        let fits = all.len() <= most;
        if fits { Ok(()) } else { Err(out_of_range("input", &format!("up to {most} inputs"))) }
    };
    match v {
        Value::String(_) => Ok(vec![text("input", v)?]),
        Value::Array(all) => match all.as_slice() {
            [Value::String(_), ..] => {
                many(all)?;
                all.iter().enumerate().map(|(i, v)| text(&format!("input[{i}]"), v)).collect()
            }
            [Value::Array(_), ..] => {
                many(all)?;
                let each = all.iter().enumerate();
                each.map(|(i, v)| ids(&format!("input[{i}]"), v).map(EmbeddingInput::Tokens)).collect()
            }
            _ => Ok(vec![EmbeddingInput::Tokens(ids("input", v)?)]),
        },
        _ => Err(wrong_type("input", expected)),
    }
}

fn text(path: &str, v: &Value) -> Result<EmbeddingInput, Refusal> {
    let text = v.as_str().ok_or_else(|| wrong_type(path, "a string like the first"))?;
    if text.is_empty() {
        return Err(out_of_range(path, "not empty"));
    }
    Ok(EmbeddingInput::Text(text.to_owned()))
}

/// `POST /v1/embeddings`.
pub(crate) async fn route<I: Inference>(
    State(s): State<Shared<I>>,
    request: Request,
) -> Result<Response, Refusal> {
    let received = receive(&s, request).await?;
    let parsed = parse(&received.body)?;
    let (card, dimensions) = encoder(s.inference.as_ref(), &parsed.model)?;
    if parsed.dimensions.is_some_and(|d| d > dimensions) {
        return Err(out_of_range(
            "dimensions",
            &format!("1 to {dimensions}, the length of the model's vectors"),
        ));
    }
    let (asked, encoding) = (parsed.model.clone(), parsed.encoding);
    let request = parsed.request(card.root);
    request.check().map_err(over_limit)?;
    traces::current().asks(&card.id);
    let mut meter = Meter::new(Arc::clone(&s.metrics), card.id, received.started);
    let record = match s.inference.embed(received.embedding_order(request)).await {
        Ok(record) => record,
        Err(refusal) => {
            meter.discard();
            return Err(refusal);
        }
    };
    let tokens = record.transcript.tokens();
    meter.finish(Finish::Stop);
    meter.tokens(Usage { prompt_tokens: tokens, completion_tokens: 0 });
    let data = record.transcript.vectors.iter().enumerate();
    let data =
        data.map(|(i, v)| json!({"object": "embedding", "index": i, "embedding": vector(v, encoding)}));
    let mut body = json!({"object": "list", "data": data.collect::<Vec<_>>(), "model": asked,
                          "usage": {"prompt_tokens": tokens, "total_tokens": tokens}});
    if received.inline {
        body["assay_receipt"] = json!(*record);
    }
    let id: ReceiptId = record.receipt.receipt.id();
    let class = Class::of(record.request.audit, &record.receipt);
    Ok(with_class(with_receipts(Json(body).into_response(), &[id]), class))
}

fn vector(v: &[i32], encoding: Encoding) -> Value {
    let one = f64::from(1u32 << EMBEDDING_FRAC);
    let exact = v.iter().map(|n| f64::from(*n) / one);
    match encoding {
        Encoding::Float => exact.collect(),
        Encoding::Base64 => {
            let bytes: Vec<u8> = exact.flat_map(|n| (n as f32).to_le_bytes()).collect();
            Value::String(STANDARD.encode(bytes))
        }
    }
}

/// Whether a body is a request within all limits.
#[cfg(test)]
pub(crate) fn check(body: &[u8]) -> Result<(), Refusal> {
    let request = parse(body)?.request(ModelRoot::ZERO);
    request.check().map_err(over_limit)
}
