//! Everything that can go wrong, as OpenAI's clients understand it. One table: code, status, type, whether to retry.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use borsh::{BorshDeserialize, BorshSerialize};
use serde_json::{Value, json};

use crate::payment::PaymentRefused;
use crate::x402::Demanded;
use crate::x402::callers::CallerRefused;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, thiserror::Error)]
pub enum Refusal {
    /// The body is no JSON object.
    #[error("the body is not a JSON object: {reason}")]
    InvalidJson {
        /// What the parser says.
        reason: String,
    },
    /// A required parameter is absent.
    #[error("`{param}` is required")]
    Missing {
        /// Which.
        param: String,
    },
    /// A parameter has the wrong type.
    #[error("`{param}` must be {expected}")]
    InvalidType {
        /// Which.
        param: String,
        /// What it must be.
        expected: String,
    },
    /// A parameter is out of range or contradicts another.
    #[error("{message}")]
    Invalid {
        /// Which.
        param: String,
        /// What is wrong with it.
        message: String,
    },
    /// A known parameter that this version cannot honour.
    #[error("`{param}` is not supported: {reason}")]
    Unsupported {
        /// Which.
        param: String,
        /// What is.
        reason: String,
    },
    /// The model does something else.
    #[error("model `{asked}` {does}; GET /v1/models tells the `task` of each model")]
    ModelTask {
        /// What was asked for.
        asked: String,
        /// What it does, and where.
        does: String,
    },
    /// The prompt leaves no room.
    #[error(
        "the prompt has {prompt} tokens, but the model's window holds {window} with the answer; shorten the messages"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: u32,
        /// Positions of the window.
        window: u32,
    },
    /// No such model.
    #[error("no model `{asked}` is served here; GET /v1/models lists those that are")]
    UnknownModel {
        /// What was asked for.
        asked: String,
    },
    /// The model can be asked in a moment.
    #[error("model `{asked}` is arriving; try again in {retry_after_s} s")]
    ModelArriving {
        /// What was asked for.
        asked: String,
        /// When to come back.
        retry_after_s: u32,
    },
    /// The model was served while it arrived, and did not arrive or is not what it says.
    #[error("model `{model}` was withdrawn, and its answer has no receipt: {reason}")]
    ModelWithdrawn {
        /// What it was called.
        model: String,
        /// What happened.
        reason: String,
    },
    /// No such receipt.
    #[error("no answer with receipt {asked} was completed here")]
    UnknownReceipt {
        /// What was asked for.
        asked: String,
    },
    /// No such file.
    #[error("there is no file {asked}")]
    UnknownFile {
        /// What was asked for.
        asked: String,
    },
    /// No such batch.
    #[error("there is no batch {asked}")]
    UnknownBatch {
        /// What was asked for.
        asked: String,
    },
    /// No such route.
    #[error("there is no route {path}; see GET /")]
    UnknownRoute {
        /// The path.
        path: String,
    },
    /// The route has other methods.
    #[error("this route does not take {method}; see GET /")]
    Method {
        /// The method.
        method: String,
    },
    /// The body does not come.
    #[error("the body did not come within {after_s} s")]
    BodyTimeout {
        /// Seconds waited.
        after_s: u64,
    },
    /// The body is too large.
    #[error("the body has more than the {limit} bytes allowed")]
    BodyTooLarge {
        /// Bytes allowed.
        limit: usize,
    },
    /// No key, or none that is taken.
    #[error("{message}")]
    Unauthorised {
        /// What is wrong with it.
        message: String,
    },
    /// The balance does not cover it.
    #[error("{message}")]
    Balance {
        /// What there is and what is needed.
        message: String,
    },
    /// A limit of the key is reached.
    #[error("{message}")]
    Limited {
        /// Which.
        message: String,
        /// When to come back.
        retry_after_s: u32,
    },
    /// What must be paid for is not.
    #[error(transparent)]
    Payment(Box<PaymentRefused>),
    /// Who could answer cannot be paid at this moment.
    #[error("providers of model `{asked}` are there, but no funded channel to them is free here; try again")]
    NoLane {
        /// The model.
        asked: String,
    },
    /// Nobody offers what is asked for at this price.
    #[error("no provider answers for model `{asked}`{terms}; try again, or ask with other terms")]
    NoProvider {
        /// The model.
        asked: String,
        /// What else was asked, or why those there are did not answer.
        terms: String,
    },
    /// Who is paid for what auditors may look at does not answer what they may not.
    #[error(
        "model `{asked}` is not answered here without consent to audits: send `x-assay-verification: sampled`, or ask a provider that has a price for private requests"
    )]
    ConsentRequired {
        /// The model.
        asked: String,
    },
    /// Nobody is there to execute it a second time.
    #[error(
        "class `full` takes two providers of model `{asked}`{terms}, and there are not two that answer; try again, or ask with other terms"
    )]
    NoSecondProvider {
        /// The model.
        asked: String,
        /// What else was asked.
        terms: String,
    },
    /// Two executions of the same request came to different answers.
    #[error(
        "two providers gave different answers, so one of them is wrong; this costs nothing. Their receipts are {first} and {second}"
    )]
    AnswersDiffer {
        /// The receipt of what was told.
        first: String,
        /// The other one.
        second: String,
    },
    /// The provider broke off in the middle.
    #[error("the provider broke off its answer, which costs nothing: {reason}")]
    ProviderLost {
        /// How.
        reason: String,
    },
    /// The queue is full.
    #[error("the server is busy; try again in {retry_after_s} s")]
    Busy {
        /// When to come back.
        retry_after_s: u32,
    },
    /// The server is going away.
    #[error("the server is shutting down; try again in a moment")]
    Draining,
    /// Our fault.
    #[error("{message}")]
    Internal {
        /// What happened.
        message: String,
    },
    /// What somebody without an account must pay for is not, or not yet.
    #[error(transparent)]
    Caller(Box<CallerRefused>),
}

impl Refusal {
    fn row(&self) -> (&'static str, StatusCode, &'static str) {
        let request = "invalid_request_error";
        match self {
            Refusal::InvalidJson { .. } => ("invalid_json", StatusCode::BAD_REQUEST, request),
            Refusal::Missing { .. } => ("missing_required_parameter", StatusCode::BAD_REQUEST, request),
            Refusal::InvalidType { .. } => ("invalid_type", StatusCode::BAD_REQUEST, request),
            Refusal::Invalid { .. } => ("invalid_value", StatusCode::BAD_REQUEST, request),
            Refusal::Unsupported { .. } => ("unsupported_value", StatusCode::BAD_REQUEST, request),
            Refusal::ModelTask { .. } => ("model_task", StatusCode::BAD_REQUEST, request),
            Refusal::ContextExceeded { .. } => ("context_length_exceeded", StatusCode::BAD_REQUEST, request),
            Refusal::UnknownModel { .. } => ("model_not_found", StatusCode::NOT_FOUND, "not_found_error"),
            Refusal::ModelArriving { .. } => {
                ("model_arriving", StatusCode::SERVICE_UNAVAILABLE, "server_error")
            }
            Refusal::ModelWithdrawn { .. } => {
                ("model_withdrawn", StatusCode::SERVICE_UNAVAILABLE, "server_error")
            }
            Refusal::UnknownReceipt { .. } => ("receipt_not_found", StatusCode::NOT_FOUND, "not_found_error"),
            Refusal::UnknownFile { .. } => ("file_not_found", StatusCode::NOT_FOUND, "not_found_error"),
            Refusal::UnknownBatch { .. } => ("batch_not_found", StatusCode::NOT_FOUND, "not_found_error"),
            Refusal::UnknownRoute { .. } => ("unknown_route", StatusCode::NOT_FOUND, "not_found_error"),
            Refusal::Method { .. } => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, request),
            Refusal::BodyTimeout { .. } => ("body_timeout", StatusCode::REQUEST_TIMEOUT, request),
            Refusal::BodyTooLarge { .. } => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, request),
            Refusal::Unauthorised { .. } => {
                ("invalid_api_key", StatusCode::UNAUTHORIZED, "authentication_error")
            }
            Refusal::Balance { .. } => {
                ("insufficient_quota", StatusCode::PAYMENT_REQUIRED, "insufficient_quota")
            }
            Refusal::Limited { .. } => {
                ("rate_limit_exceeded", StatusCode::TOO_MANY_REQUESTS, "rate_limit_error")
            }
            Refusal::Payment(refused) => (refused.problem.code(), refused.problem.status(), "payment_error"),
            Refusal::Caller(refused) => (refused.problem.code(), refused.problem.status(), "payment_error"),
            Refusal::NoLane { .. } => ("no_lane", StatusCode::SERVICE_UNAVAILABLE, "server_error"),
            Refusal::NoProvider { .. } => ("no_provider", StatusCode::SERVICE_UNAVAILABLE, "server_error"),
            Refusal::ConsentRequired { .. } => ("audit_consent_required", StatusCode::BAD_REQUEST, request),
            Refusal::NoSecondProvider { .. } => {
                ("no_second_provider", StatusCode::SERVICE_UNAVAILABLE, "server_error")
            }
            Refusal::AnswersDiffer { .. } => ("answers_differ", StatusCode::BAD_GATEWAY, "server_error"),
            Refusal::ProviderLost { .. } => ("provider_lost", StatusCode::BAD_GATEWAY, "server_error"),
            Refusal::Busy { .. } => ("busy", StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            Refusal::Draining => ("draining", StatusCode::SERVICE_UNAVAILABLE, "server_error"),
            Refusal::Internal { .. } => ("internal_error", StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        }
    }

    /// Stable code.
    pub fn code(&self) -> &'static str {
        self.row().0
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.row().1
    }

    /// Whether the same request may succeed later.
    pub fn may_retry(&self) -> bool {
        if let Refusal::Payment(refused) = self {
            return refused.problem.may_retry();
        }
        if let Refusal::Caller(refused) = self {
            return refused.problem.may_retry();
        }
        matches!(
            self,
            Refusal::BodyTimeout { .. }
                | Refusal::Busy { .. }
                | Refusal::ModelArriving { .. }
                | Refusal::Limited { .. }
                | Refusal::NoLane { .. }
                | Refusal::NoProvider { .. }
                | Refusal::NoSecondProvider { .. }
                | Refusal::AnswersDiffer { .. }
                | Refusal::ProviderLost { .. }
                | Refusal::Draining
                | Refusal::Internal { .. }
        )
    }

    fn param(&self) -> Option<&str> {
        match self {
            Refusal::Missing { param }
            | Refusal::InvalidType { param, .. }
            | Refusal::Invalid { param, .. }
            | Refusal::Unsupported { param, .. } => Some(param),
            Refusal::ContextExceeded { .. } => Some("messages"),
            Refusal::UnknownModel { .. } | Refusal::ModelTask { .. } => Some("model"),
            Refusal::ConsentRequired { .. } => Some("x-assay-verification"),
            _ => None,
        }
    }

    /// OpenAI's error object.
    pub fn to_json(&self) -> Value {
        let (code, _, kind) = self.row();
        json!({"error": {"message": self.to_string(), "type": kind, "param": self.param(), "code": code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        let retry = if self.may_retry() { "true" } else { "false" };
        headers.insert("x-should-retry", HeaderValue::from_static(retry));
        let after = match &self {
            Refusal::Busy { retry_after_s }
            | Refusal::Limited { retry_after_s, .. }
            | Refusal::ModelArriving { retry_after_s, .. } => Some(*retry_after_s),
            Refusal::Draining
            | Refusal::NoLane { .. }
            | Refusal::NoProvider { .. }
            | Refusal::NoSecondProvider { .. } => Some(1),
            Refusal::Caller(refused) if refused.problem.may_retry() => Some(1),
            _ => None,
        };
        if let Some(after) = after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after));
        }
        response.extensions_mut().insert(Refused(self.code()));
        match self {
            Refusal::Payment(refused) => drop(response.extensions_mut().insert(Demanded::Voucher(refused))),
            Refusal::Caller(refused) => {
                drop(response.extensions_mut().insert(Demanded::Authorization(refused)))
            }
            _ => {}
        }
        response
    }
}

/// Left on a response for the metrics.
#[derive(Clone, Copy)]
pub(crate) struct Refused(pub(crate) &'static str);
