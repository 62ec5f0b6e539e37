//! What gateways and providers say to each other: offers, sealed orders, frames of answers.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/offer` | the provider's [`SignedOffer`](assay_core::offer::SignedOffer) as JSON |
//! | `POST /v1/orders` | a sealed order in the body; the answer's salt, then frames: a length of four bytes, big-endian, and so many sealed bytes |
//! | `POST /v1/orders/stop` | 32 bytes that only who sealed an order and who opened it know: its answer ends with the token that it is at; 204, or 404 if it is not under way |
//!
//! An order is the canonical request itself and not a client's JSON, so that a gateway changes nothing that a provider signs for. Invariant: an
//! answer ends with a last frame, and everything else is an answer that broke.

mod client;
pub(crate) mod seal;
mod server;

use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical;
use assay_core::embedding::{EmbeddingRecord, EmbeddingRequest};
use assay_core::id::{ModelRoot, Nonce, ReceiptId};
use assay_core::payment::Payment;
use assay_core::request::{Prompt, Request};
use assay_core::transcript::StopReason;
use borsh::{BorshDeserialize, BorshSerialize};

pub use self::client::{Destination, RelayClient, RelayError, Running};
pub use self::server::{OfferSigner, Relay, RelayOptions};
use crate::Refusal;
use crate::inference::Logprob;

/// Where orders are sent.
pub(crate) const ORDERS: &str = "/v1/orders";
/// Where the end of an order's answer is asked for.
pub(crate) const STOP: &str = "/v1/orders/stop";
/// Most bytes of a sealed order: the largest request and what sealing adds.
pub const ORDER_BYTES_MAX: usize = 17 << 20;
/// Most bytes of a sealed frame: the largest record and what sealing adds.
pub const FRAME_BYTES_MAX: usize = 40 << 20;
/// Most bytes of an offer as JSON.
pub const OFFER_JSON_BYTES_MAX: usize = 4 << 20;
/// Most bytes of what is shown of a model's text, as JSON: a template, all of which may be escaped.
pub const TEXT_JSON_BYTES_MAX: usize = 2 << 20;
/// Longest time that an order may be taken after it was sealed, in seconds.
pub const ORDER_S_MAX: u64 = 3600;

/// A request on its way to a provider.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RelayOrder {
    /// Names the order; a provider takes none twice.
    pub id: [u8; 16],
    /// When it is not taken any more, in seconds since 1970.
    pub until_s: u64,
    /// Names the HTTP request in logs, on both sides.
    pub request_id: String,
    /// Out of which it is paid.
    pub payment: Option<Payment>,
    /// What is to be done.
    pub work: Work,
}

impl Canonical for RelayOrder {
    const TAG: &'static str = "assay/order/2";
    const BYTES_MAX: usize = ORDER_BYTES_MAX;
}

/// What an order asks for.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Work {
    /// An answer.
    Generate {
        /// To this.
        request: Request,
        /// The client's nonce, if it sent one.
        nonce: Option<Nonce>,
    },
    /// Vectors.
    Embed {
        /// Of this.
        request: EmbeddingRequest,
    },
    /// The number of a prompt's tokens.
    CountTokens {
        /// For this model.
        model: ModelRoot,
        /// Of this.
        prompt: Prompt,
    },
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Frame {
    /// Nothing yet; the provider is there.
    Alive,
    /// The request is queued.
    Queued {
        /// The receipt that a complete answer will have.
        receipt_id: ReceiptId,
        /// Tokens of the rendered prompt.
        prompt_tokens: u32,
    },
    /// More text, or probabilities, or both.
    Text {
        /// What has become certain.
        text: String,
        /// Of the tokens chosen since the last one.
        logprobs: Vec<Logprob>,
    },
    /// A call of a tool begins.
    Call {
        /// Its number.
        index: u32,
        /// Unique within the conversation.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// The call's number.
        index: u32,
        /// More of the JSON text.
        json: String,
    },
    /// The last frame of an answer that is complete; its record is durable.
    End {
        /// Why it ended.
        stop: StopReason,
        /// The record.
        record: Box<AnswerRecord>,
    },
    /// The last frame of an order for vectors.
    Embedded(Box<EmbeddingRecord>),
    /// The last frame of an order to count.
    Counted(u32),
    /// The last frame of an answer that will not be completed.
    Failed(Refusal),
    /// Comes before the end if it is not 0: tokens of the prompt that an earlier request had executed. It is the provider's word, on which nothing
    /// depends. Beside the end and not in it, since ends are kept in books.
    Cached(u32),
}

impl Frame {
    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Frame::End { .. } | Frame::Embedded(_) | Frame::Counted(_) | Frame::Failed(_))
    }
}

impl Canonical for Frame {
    const TAG: &'static str = "assay/frame/2";
    const BYTES_MAX: usize = FRAME_BYTES_MAX;
}
