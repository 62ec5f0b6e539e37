//! The HTTP surface: OpenAI's wire format over one [`Inference`] trait.
//!
//! Knows nothing of engines and networks, and of money only how it is offered and refused: whoever implements the trait answers. `docs/api.md` is the normative
//! description; tests hold the server to its tables.
#![forbid(unsafe_code)]

mod answer;
pub mod audits;
mod batches;
mod dialect;
mod embeddings;
mod files;
mod inference;
pub mod leaves;
mod messages;
mod metrics;
mod ollama;
mod parameters;
mod payment;
mod refusal;
pub mod relay;
mod responses;
mod server;
pub mod traces;
mod verification;
mod x402;

pub use files::{FileOptions, FileStore, StorageError};
pub use inference::{
    ApiKey, Arriving, Caller, EmbeddingOrder, Event, Generation, Inference, Load, Logprob, ModelCard, Order,
    Owner, Second, Source, Stop, Task, TokenChance,
};
pub use metrics::OPENMETRICS;
pub use payment::{ChannelState, PaymentProblem, PaymentRefused, PaymentTerms};
pub use refusal::Refusal;
pub use server::{ServerOptions, router, serve, serve_with_files};
pub use verification::{Class, ClassError};
pub use x402::callers::{AUTHORIZED_S, CallerProblem, CallerRefused, CallerTerms, Settlement};
