//! From OpenAI's JSON to canonical requests. A parameter is honoured, ignored because that changes nothing, or refused by
//! name; `docs/api.md` has the tables, and a test compares.

pub(crate) mod guide;
pub(crate) mod messages;
pub(crate) mod prompts;
pub(crate) mod refused;
pub(crate) mod sampling;
pub(crate) mod tools;

use assay_core::consent::Consent;
use assay_core::id::ModelRoot;
use assay_core::limits;
use assay_core::request::{Guide, Prompt, Request, RequestError, Sampling};
use serde_json::{Map, Value};

use crate::Refusal;

/// Tokens of a completion when the client says nothing: OpenAI's default.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;
/// Most likeliest tokens beside the chosen one on `/v1/completions`: OpenAI's limit there.
const COMPLETION_LOGPROBS_MAX: i64 = 5;

/// Which route the parameters came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// What a client asked for.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) model: String,
    /// One, but on completions up to [`limits::CHOICES_MAX`].
    pub(crate) prompts: Vec<Prompt>,
    /// Answers to each prompt. There are at most [`limits::CHOICES_MAX`] answers in all.
    pub(crate) n: u32,
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: u32,
    pub(crate) stop: Vec<String>,
    pub(crate) guide: Option<Guide>,
    pub(crate) logprobs: Option<u8>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl Parsed {
    /// One request for each choice, in order of their indices, for the model that the name stands for. Made one by one:
    /// what the first is refused for is never copied.
    pub(crate) fn requests(&self, model: ModelRoot) -> impl Iterator<Item = Request> + Send {
        self.prompts.iter().flat_map(move |p| (0..self.n).map(move |choice| self.request(model, p, choice)))
    }

    fn request(&self, model: ModelRoot, prompt: &Prompt, choice: u32) -> Request {
        Request {
            model,
            prompt: prompt.clone(),
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            choice,
            guide: self.guide.clone(),
            logprobs: self.logprobs,
            audit: Consent::Given,
        }
    }

    /// Holds every request against the limits of [`Request::check`].
    pub(crate) fn checked(self) -> Result<Parsed, Refusal> {
        for prompt in &self.prompts {
            self.request(ModelRoot::ZERO, prompt, 0).check().map_err(over_limit)?;
        }
        Ok(self)
    }
}

/// A request that core refuses, as a refusal.
pub(crate) fn over_limit(e: RequestError) -> Refusal {
    Refusal::Invalid { param: e.param.to_owned(), message: e.to_string() }
}

/// A JSON object whose values are parameters.
pub(crate) struct Object<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Object<'a> {
    /// A parameter that is there; null counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    /// A parameter that must be there.
    pub(crate) fn required(&self, name: &str) -> Result<&'a Value, Refusal> {
        self.get(name).ok_or_else(|| missing(name))
    }

    pub(crate) fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| wrong_type(name, expected)),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// A decimal as millionths, rounded half up.
    pub(crate) fn micro(&self, name: &str, min: f64, max: f64, default: u32) -> Result<u32, Refusal> {
        let micro = self.get(name).map(|v| micro(name, v, min, max)).transpose()?;
        // The range that the caller gives is not below zero.
        Ok(micro.map_or(default, |v| v as u32))
    }

    /// A decimal that may be negative as millionths, rounded half up.
    pub(crate) fn signed_micro(&self, name: &str, min: f64, max: f64) -> Result<i32, Refusal> {
        let micro = self.get(name).map(|v| micro(name, v, min, max)).transpose()?;
        Ok(micro.map_or(0, |v| v as i32))
    }

    /// A number of tokens: at least 1.
    pub(crate) fn tokens(&self, name: &str) -> Result<Option<u32>, Refusal> {
        let Some(v) = self.whole(name)? else { return Ok(None) };
        if v < 1 {
            return Err(out_of_range(name, "at least 1"));
        }
        Ok(Some(u32::try_from(v).unwrap_or(u32::MAX)))
    }

    /// A whole number; what is beyond 64 bits with a sign is the largest of them.
    pub(crate) fn whole(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.typed(name, "a whole number", |v| v.as_i64().or(v.as_u64().map(|_| i64::MAX)))
    }

    /// A whole number of a range.
    pub(crate) fn count(&self, name: &str, min: i64, max: i64) -> Result<Option<u32>, Refusal> {
        match self.whole(name)? {
            None => Ok(None),
            Some(v) if (min..=max).contains(&v) => Ok(u32::try_from(v).ok()),
            Some(_) => Err(out_of_range(name, &format!("{min} to {max}"))),
        }
    }
}

/// A JSON number as millionths, rounded half up.
fn micro(name: &str, v: &Value, min: f64, max: f64) -> Result<f64, Refusal> {
    let v = v.as_f64().ok_or_else(|| wrong_type(name, "a number"))?;
    let micro = (v * 1e6 + 0.5).floor();
    if (min * 1e6..=max * 1e6).contains(&micro) {
        Ok(micro)
    } else {
        Err(out_of_range(name, &format!("{min} to {max}")))
    }
}

pub(crate) fn missing(param: &str) -> Refusal {
    Refusal::Missing { param: param.to_owned() }
}

pub(crate) fn wrong_type(param: &str, expected: &str) -> Refusal {
    Refusal::InvalidType { param: param.to_owned(), expected: expected.to_owned() }
}

pub(crate) fn invalid(param: &str, message: &str) -> Refusal {
    Refusal::Invalid { param: param.to_owned(), message: message.to_owned() }
}

pub(crate) fn out_of_range(param: &str, expected: &str) -> Refusal {
    invalid(param, &format!("`{param}` must be {expected}"))
}

pub(crate) fn unsupported(param: &str, reason: &str) -> Refusal {
    Refusal::Unsupported { param: param.to_owned(), reason: reason.to_owned() }
}

/// The JSON object that a body is.
pub(crate) fn body_object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Refusal::InvalidJson { reason: "it is another JSON value".into() }),
        Err(e) => Err(Refusal::InvalidJson { reason: e.to_string() }),
    }
}

/// The model's name.
pub(crate) fn model(o: &Object<'_>) -> Result<String, Refusal> {
    o.required("model")?;
    Ok(o.typed("model", "a string", Value::as_str)?.unwrap_or_default().to_owned())
}

/// Reads a body.
pub(crate) fn parse(route: Route, body: &[u8]) -> Result<Parsed, Refusal> {
    let map = body_object(body)?;
    let o = Object(&map);
    refused::refuse(&refused::BOTH, &o)?;
    let model = model(&o)?;
    let mut guide = guide::guide(&o)?;
    let (prompts, logprobs) = match route {
        Route::Chat => {
            let messages = messages::messages(o.required("messages")?)?;
            let tools = tools::tools(o.get("tools"), tools::Form::Nested)?;
            let calls = tools::guide(&o, &tools, tools::Form::Nested)?;
            guide = tools::one_guide(guide, calls)?;
            (vec![Prompt::Chat { messages, tools }], chat_logprobs(&o)?)
        }
        Route::Completions => {
            refused::refuse(&refused::COMPLETIONS, &o)?;
            let logprobs = o.count("logprobs", 0, COMPLETION_LOGPROBS_MAX)?;
            (prompts::prompts(o.required("prompt")?)?, logprobs.and_then(|v| u8::try_from(v).ok()))
        }
    };
    let max_tokens = match (o.tokens("max_tokens")?, o.tokens("max_completion_tokens")?) {
        (Some(a), Some(b)) if a != b => {
            let message = "`max_completion_tokens` and `max_tokens` differ; give one of them";
            return Err(invalid("max_completion_tokens", message));
        }
        (a, b) => a.or(b),
    };
    let default = if route == Route::Chat { 0 } else { COMPLETION_TOKENS_DEFAULT };
    let stream = o.flag("stream")?;
    let n = choices(&o, prompts.len())?;
    let parsed = Parsed {
        model,
        prompts,
        n,
        sampling: sampling::sampling(&o)?,
        max_tokens: max_tokens.unwrap_or(default),
        stop: sampling::stop(&o)?,
        guide: guide.map(|(_, guide)| guide),
        logprobs,
        stream,
        include_usage: include_usage(&o)? && stream,
    };
    parsed.checked()
}

/// How many answers to each of so many prompts.
fn choices(o: &Object<'_>, prompts: usize) -> Result<u32, Refusal> {
    let most = limits::CHOICES_MAX;
    let n = o.count("n", 1, i64::from(most))?.unwrap_or(1);
    if u32::try_from(prompts).ok().and_then(|p| p.checked_mul(n)).is_none_or(|all| all > most) {
        let param = if n > 1 { "n" } else { "prompt" };
        return Err(out_of_range(param, &format!("so that there are at most {most} answers in all")));
    }
    match o.whole("best_of")? {
        None | Some(1) => Ok(n),
        Some(best) if best == i64::from(n) => Ok(n),
        Some(_) => Err(unsupported("best_of", "answers are not ranked; it may be 1 or equal `n`")),
    }
}

fn chat_logprobs(o: &Object<'_>) -> Result<Option<u8>, Refusal> {
    let top = o.count("top_logprobs", 0, i64::from(limits::TOP_LOGPROBS_MAX))?.unwrap_or(0);
    let top = u8::try_from(top).unwrap_or(limits::TOP_LOGPROBS_MAX);
    match (o.flag("logprobs")?, top) {
        (true, top) => Ok(Some(top)),
        (false, 0) => Ok(None),
        (false, _) => Err(invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true")),
    }
}

fn include_usage(o: &Object<'_>) -> Result<bool, Refusal> {
    let Some(options) = o.typed("stream_options", "an object", Value::as_object)? else { return Ok(false) };
    Object(options)
        .flag("include_usage")
        .map_err(|_| wrong_type("stream_options.include_usage", "true or false"))
}

#[cfg(test)]
mod tests;
