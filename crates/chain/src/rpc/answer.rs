//! Answers and errors, with the codes and words that clients know.

use alloy_primitives::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::call::CallError;
use crate::filters::FilterError;
use crate::logs::LogsError;
use crate::rewind::RewindError;
use crate::signing::SendError;
use crate::store::StoreError;
use crate::submit::SubmitError;

/// The error of a JSON-RPC answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// As EIP-1474 numbers them; 3 is a call that reverted.
    pub code: i64,
    /// What went wrong.
    pub message: String,
    /// The bytes with which a call reverted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    pub(super) const PARSE: i64 = -32700;
    pub(super) const REQUEST: i64 = -32600;
    pub(super) const METHOD: i64 = -32601;
    pub(super) const PARAMS: i64 = -32602;
    pub(super) const INTERNAL: i64 = -32603;
    pub(super) const SERVER: i64 = -32000;
    pub(super) const REJECTED: i64 = -32003;
    pub(super) const LIMIT: i64 = -32005;
    pub(super) const REVERTED: i64 = 3;

    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        RpcError { code, message: message.into(), data: None }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        RpcError::new(Self::PARAMS, message)
    }

    pub(super) fn unknown_method(method: &str) -> Self {
        let name: String = method.chars().take(100).collect();
        RpcError::new(Self::METHOD, format!("the method {name} does not exist/is not available"))
    }

    fn reverted(message: String, data: &Bytes) -> Self {
        RpcError { code: Self::REVERTED, message, data: Some(json!(data)) }
    }
}

/// A value as JSON.
pub(super) fn value(value: impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|e| RpcError::new(RpcError::INTERNAL, e.to_string()))
}

/// A number as Ethereum writes them.
pub(super) fn quantity(number: u128) -> Value {
    format!("{number:#x}").into()
}

impl From<StoreError> for RpcError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        RpcError::new(Self::INTERNAL, error.to_string())
    }
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> Self {
        let message = error.to_string();
        match error {
            CallError::Store(error) => error.into(),
            CallError::Reverted(data) => RpcError::reverted(message, &data),
            CallError::Override(_) | CallError::Request(_) => RpcError::invalid(message),
            CallError::Funds { .. } => RpcError::new(Self::REJECTED, message),
            CallError::Halted(_) | CallError::Allowance(_) | CallError::Invalid(_) => {
                RpcError::new(Self::SERVER, message)
            }
        }
    }
}

impl From<SubmitError> for RpcError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Store(error) => error.into(),
            SubmitError::Malformed(_) | SubmitError::Oversized(_) => RpcError::invalid(message),
            SubmitError::Intrinsic { .. } => RpcError::new(Self::SERVER, message),
            _ => RpcError::new(Self::REJECTED, message),
        }
    }
}

impl From<SendError> for RpcError {
    fn from(error: SendError) -> Self {
        let message = error.to_string();
        match error {
            SendError::Store(error) => error.into(),
            SendError::Submit(error) => error.into(),
            SendError::Call(error) => error.into(),
            SendError::Account(_) | SendError::From | SendError::Incomplete => RpcError::invalid(message),
        }
    }
}

impl From<LogsError> for RpcError {
    fn from(error: LogsError) -> Self {
        let message = error.to_string();
        match error {
            LogsError::Store(error) => error.into(),
            LogsError::UnknownBlock => RpcError::new(Self::SERVER, message),
            LogsError::Range | LogsError::Alternatives => RpcError::invalid(message),
            LogsError::TooManyBlocks | LogsError::TooMany => RpcError::new(Self::LIMIT, message),
        }
    }
}

impl From<FilterError> for RpcError {
    fn from(error: FilterError) -> Self {
        let message = error.to_string();
        match error {
            FilterError::Store(error) => error.into(),
            FilterError::Logs(error) => error.into(),
            FilterError::Unknown => RpcError::new(Self::SERVER, message),
            FilterError::TooMany => RpcError::new(Self::LIMIT, message),
            FilterError::BlockHash => RpcError::invalid(message),
        }
    }
}

impl From<RewindError> for RpcError {
    fn from(error: RewindError) -> Self {
        let message = error.to_string();
        match error {
            RewindError::Store(error) => error.into(),
            RewindError::Depth { .. } => RpcError::invalid(message),
            RewindError::Forgotten => RpcError::new(Self::LIMIT, message),
        }
    }
}
