//! Everything that can go wrong, as OpenAI's clients understand it. One table: code, status, type, whether to retry.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
        does: &'static str,
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
    /// No such receipt.
    #[error("no answer with receipt {asked} was completed here")]
    UnknownReceipt {
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
            Refusal::UnknownReceipt { .. } => ("receipt_not_found", StatusCode::NOT_FOUND, "not_found_error"),
            Refusal::UnknownRoute { .. } => ("unknown_route", StatusCode::NOT_FOUND, "not_found_error"),
            Refusal::Method { .. } => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, request),
            Refusal::BodyTimeout { .. } => ("body_timeout", StatusCode::REQUEST_TIMEOUT, request),
            Refusal::BodyTooLarge { .. } => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, request),
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
        matches!(
            self,
            Refusal::BodyTimeout { .. } | Refusal::Busy { .. } | Refusal::Draining | Refusal::Internal { .. }
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
        let after = match self {
            Refusal::Busy { retry_after_s } => Some(retry_after_s),
            Refusal::Draining => Some(1),
            _ => None,
        };
        if let Some(after) = after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after));
        }
        response.extensions_mut().insert(Refused(self.code()));
        response
    }
}

/// Left on a response for the metrics.
#[derive(Clone, Copy)]
pub(crate) struct Refused(pub(crate) &'static str);
