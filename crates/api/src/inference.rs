//! What the HTTP surface asks of whoever answers.

use std::future::Future;
use std::sync::Arc;

use assay_core::answer::AnswerRecord;
use assay_core::id::{ModelRoot, Nonce, ReceiptId};
use assay_core::request::Request;
use assay_core::transcript::{StopReason, Usage};
use tokio::sync::mpsc;

use crate::Refusal;

/// Something that answers requests: a node with an engine, or a gateway with a network.
pub trait Inference: Send + Sync + 'static {
    /// What can be asked.
    fn models(&self) -> Vec<ModelCard>;

    /// Starts an answer. Returns when it is queued; what keeps it from being queued is a refusal.
    fn generate(&self, order: Order) -> impl Future<Output = Result<Generation, Refusal>> + Send;

    /// The record of an answer that was completed here.
    fn receipt(&self, id: ReceiptId) -> impl Future<Output = Result<Option<AnswerRecord>, Refusal>> + Send;

    /// What it is busy with.
    fn load(&self) -> Load;
}

/// A model as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// The name clients ask for; may contain `/`.
    pub id: String,
    /// What it is, exactly.
    pub root: ModelRoot,
    /// Seconds since 1970.
    pub created: u64,
    /// Who offers it.
    pub owned_by: String,
    /// Positions of the window.
    pub context_length: u32,
    /// Name of the arithmetic.
    pub profile: String,
    /// Size of the artifact.
    pub bytes: u64,
    /// Whether it came with a chat template.
    pub has_chat_template: bool,
    /// Other names it answers to.
    pub aliases: Vec<String>,
}

/// A request on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is asked.
    pub request: Request,
    /// The client's nonce, if it sent one.
    pub nonce: Option<Nonce>,
    /// Names the HTTP request in logs.
    pub request_id: String,
}

/// An answer under way. Dropping it cancels the work.
#[derive(Debug)]
pub struct Generation {
    /// The receipt that a complete answer will have.
    pub receipt_id: ReceiptId,
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// What happens; ends with [`Event::End`] or [`Event::Failed`].
    pub events: mpsc::Receiver<Event>,
}

/// A step of an answer.
#[derive(Clone, Debug)]
pub enum Event {
    /// More text, never empty.
    Delta(String),
    /// The answer is complete and its record is durable.
    End {
        /// Why it ended.
        stop: StopReason,
        /// Tokens read and written.
        usage: Usage,
        /// The record.
        record: Arc<AnswerRecord>,
    },
    /// The answer will not be completed.
    Failed(Refusal),
}

/// What an implementor is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests being executed.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Share of the cache memory in use, in millionths.
    pub kv_cache_used_ppm: u32,
    /// Whether requests are taken at all.
    pub ready: bool,
}
