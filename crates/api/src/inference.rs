//! What the HTTP surface asks of whoever answers.

use std::future::Future;
use std::sync::Arc;

use assay_core::answer::AnswerRecord;
use assay_core::authorization::Authorization;
use assay_core::embedding::{EmbeddingRecord, EmbeddingRequest, Record};
use assay_core::id::{ChannelId, ModelRoot, NodeAddress, Nonce, ReceiptId};
use assay_core::payment::Payment;
use assay_core::price::Price;
use assay_core::receipt::Domain;
use assay_core::request::{Prompt, Request};
use assay_core::text::TextOpening;
use assay_core::transcript::{StopReason, Usage};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use crate::Refusal;
use crate::payment::ChannelState;
use crate::verification::Class;
use crate::x402::callers::Settlement;

/// Something that answers requests: a node with an engine, or a gateway with a network.
pub trait Inference: Send + Sync + 'static {
    /// What can be asked.
    fn models(&self) -> Vec<ModelCard>;

    /// Starts an answer. Returns when it is queued; what keeps it from being queued is a refusal.
    fn generate(&self, order: Order) -> impl Future<Output = Result<Generation, Refusal>> + Send;

    /// Embeds texts.
    fn embed(
        &self,
        order: EmbeddingOrder,
    ) -> impl Future<Output = Result<Arc<EmbeddingRecord>, Refusal>> + Send;

    /// How many tokens a prompt has.
    fn count_tokens(
        &self,
        model: ModelRoot,
        prompt: Prompt,
    ) -> impl Future<Output = Result<u32, Refusal>> + Send;

    /// The record of an answer that was completed here, or of embeddings.
    fn receipt(&self, id: ReceiptId) -> impl Future<Output = Result<Option<Record>, Refusal>> + Send;

    /// What it is busy with.
    fn load(&self) -> Load;

    /// Adds what it counts itself to the server's metrics: OpenMetrics text without its end, under names that begin with `assay_`.
    fn metrics(&self, text: &mut String) {
        let _ = text;
    }

    /// The ledger by which it is paid by its clients, as its receipts name it; nothing if it asks them for no vouchers.
    fn settles(&self) -> Option<Domain> {
        None
    }

    /// What is known of a channel out of which it was paid.
    fn channel(&self, id: ChannelId) -> impl Future<Output = Option<ChannelState>> + Send {
        let _ = id;
        std::future::ready(None)
    }

    /// What came of a payment by signature that came with a request; nothing while that is not known.
    fn settlement(&self, payment: &Authorization) -> impl Future<Output = Option<Settlement>> + Send {
        let _ = payment;
        std::future::ready(None)
    }

    /// On whose behalf files are kept and batches run for this caller. Where there are no accounts, everyone shares them.
    fn owner(&self, caller: &Caller) -> impl Future<Output = Result<Owner, Refusal>> + Send {
        let _ = caller;
        std::future::ready(Ok(Owner::default()))
    }

    /// What a model's root says of text, for who knows the root alone.
    fn text(&self, model: ModelRoot) -> impl Future<Output = Option<TextOpening>> + Send {
        let _ = model;
        std::future::ready(None)
    }

    /// Models of which not everything is here yet. One that can be asked already is among [`Inference::models`] too.
    fn arriving(&self) -> Vec<Arriving> {
        Vec::new()
    }
}

/// A model on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arriving {
    /// The name it will have, or has.
    pub id: String,
    /// What it is, as its publisher says.
    pub root: ModelRoot,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes that it has.
    pub size: u64,
    /// Whether it can be asked already.
    pub listed: bool,
    /// Layers that the furthest pass over it has executed.
    pub layers_executed: u32,
    /// Layers that it has; 0 while that is not known.
    pub layers: u32,
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
    /// What it does.
    pub task: Task,
    /// Number of weights.
    pub parameters: u64,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// What its tokens cost; none if they are free.
    pub price: Option<Price>,
    /// What they cost where the client withholds its consent to audits. None: the same if they are free, else such requests are not taken.
    pub price_private: Option<Price>,
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Continues text.
    Generate,
    /// Makes vectors of this many numbers of texts.
    Embed {
        /// Numbers of a vector.
        dimensions: u32,
    },
}

/// Who asks, and on which terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The bearer key that came with the request.
    pub key: Option<ApiKey>,
    /// Whether the client says that it has sent this request before.
    pub again: bool,
    /// The most that it wants to pay for a million tokens.
    pub ceiling: Option<Price>,
    /// Who is to check the answer besides it.
    pub class: Class,
    /// The voucher that came with the request, not checked.
    pub payment: Option<Box<Payment>>,
    /// The payment by signature that came with the request, not checked.
    pub authorization: Option<Box<Authorization>>,
    /// Whose batch asks. No request that comes from outside can say so.
    pub behalf: Option<Owner>,
}

/// Whose files and batches are whose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Who sees them.
    pub account: String,
    /// The public name of the key by which a batch's lines are asked.
    pub key: String,
}

/// A key as it came, not checked. It is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// From the header's text.
    pub fn new(text: impl Into<String>) -> ApiKey {
        ApiKey(text.into())
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// A request for embeddings on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingOrder {
    /// What is asked.
    pub request: EmbeddingRequest,
    /// Names the HTTP request in logs.
    pub request_id: String,
    /// Who asks.
    pub caller: Caller,
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
    /// Who asks.
    pub caller: Caller,
}

/// Asks for the end of an answer before its own: it ends with the token that it is at, and with the receipt of what there is of it. Clones ask for the
/// same answer's. To be asked once, and listened to by one task.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Notify>);

impl Stop {
    /// Asks.
    pub fn ask(&self) {
        self.0.notify_one();
    }

    /// Waits until it is asked. May be dropped while it waits.
    pub async fn asked(&self) {
        self.0.notified().await;
    }
}

/// An answer under way. Dropping it takes it back: the work is cancelled, and nobody pays for it. Whoever has heard some of it asks it to stop first.
#[derive(Debug)]
pub struct Generation {
    /// The receipt that a complete answer will have.
    pub receipt_id: ReceiptId,
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Who answers, if that is known.
    pub source: Option<Source>,
    /// Ends it early.
    pub stop: Stop,
    /// What happens; ends with [`Event::End`] or [`Event::Failed`].
    pub events: mpsc::Receiver<Event>,
}

/// Who answers, and what it asks for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The provider that signs the receipt.
    pub provider: NodeAddress,
    /// Its price; nothing if it is free.
    pub price: Option<Price>,
    /// Who checks the answer besides its client.
    pub class: Class,
    /// The other execution, of an answer that has two.
    pub second: Option<Second>,
}

/// An execution beside the one that is told, which must come to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second {
    /// The receipt that it will have.
    pub receipt: ReceiptId,
    /// Who signs it.
    pub provider: NodeAddress,
    /// Its price; nothing if it is free.
    pub price: Option<Price>,
}

/// A step of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More text, or probabilities that the client asked for, or both.
    Text {
        /// What has become certain; may be empty when there are probabilities.
        text: String,
        /// Of the tokens chosen since the last event, if the request asked for them.
        logprobs: Vec<Logprob>,
    },
    /// A call of a tool begins. Calls are numbered from 0 and come one after the other.
    Call {
        /// Its number.
        index: u32,
        /// Unique within the conversation.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a call's arguments, never empty; together they are a JSON object.
    Arguments {
        /// The call's number.
        index: u32,
        /// More of the JSON text.
        json: String,
    },
    /// The answer is complete and its record is durable.
    End {
        /// Why it ended.
        stop: StopReason,
        /// Tokens read and written.
        usage: Usage,
        /// Tokens of the prompt that were not executed for it, since an earlier request began with the same: at most all of them, 0 if nobody says. No
        /// price, hash or signature depends on them.
        cached_tokens: u32,
        /// The record.
        record: Arc<AnswerRecord>,
    },
    /// The answer will not be completed.
    Failed(Refusal),
}

/// A token's probability.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Logprob {
    /// The token.
    pub token: TokenChance,
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<TokenChance>,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct TokenChance {
    /// Its bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// Logarithm of its probability, in units of 2^-16 nats.
    pub logprob: i32,
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
