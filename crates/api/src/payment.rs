//! Why a payment is not taken, and on which terms one would be. Nothing of it was charged.

use assay_core::id::{AccountAddress, ChannelId, NodeAddress, SignatureBytes};
use axum::http::StatusCode;
use borsh::{BorshDeserialize, BorshSerialize};

/// What a receiver asks for an answer, and by which channels it is paid.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PaymentTerms {
    /// The chain.
    pub chain_id: u64,
    /// The contract that holds channels, in whose domain vouchers are signed.
    pub channels: AccountAddress,
    /// The token.
    pub token: AccountAddress,
    /// What the token calls itself where it is signed for, and its version there.
    pub token_domain: (String, String),
    /// Who is paid.
    pub receiver: NodeAddress,
    /// The shortest withdrawal delay of a channel, in seconds.
    pub withdraw_delay_s: u64,
    /// The most that the request can cost, in units of the token.
    pub most: u64,
}

/// A payment that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, thiserror::Error)]
#[error("{problem}; this request may cost up to {} millionths of a dollar, and nothing was charged", terms.most)]
pub struct PaymentRefused {
    /// What is wrong.
    pub problem: PaymentProblem,
    /// What would be right.
    pub terms: PaymentTerms,
}

/// What is wrong with a payment.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, thiserror::Error)]
pub enum PaymentProblem {
    /// There is none.
    #[error("answers of this node are paid for by vouchers")]
    Required,
    /// The voucher can never be claimed here.
    #[error("the voucher is not taken: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// There is not enough behind it.
    #[error("the channel holds {balance} millionths of a dollar, and {needed} are needed")]
    Unfunded {
        /// What the ledger says.
        balance: u128,
        /// What was charged, and the most that the request can cost.
        needed: u128,
    },
    /// The payer has announced that it takes its deposit back.
    #[error("the payer has announced that it withdraws from the channel")]
    Closing,
    /// Another request is under way on the channel.
    #[error(
        "another request is under way on this channel; wait for it, or open another one that differs in salt"
    )]
    Busy,
    /// The voucher does not cover what was charged and this request. A payer that does not know the state of its channel finds it here.
    #[error("the voucher must allow the {} millionths of a dollar that were charged, and this request", .0.charged)]
    Stale(ChannelState),
    /// The ledger did not say whether the channel holds what the voucher allows.
    #[error("the ledger cannot be asked now whether the channel holds what the voucher allows")]
    Unverified,
}

/// What a receiver knows of a channel.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChannelState {
    /// Which.
    pub id: ChannelId,
    /// What was charged, all in all.
    pub charged: u128,
    /// The highest ceiling that the payer signed, and its signature, which proves to the payer that the charges are within what it allowed; nothing if
    /// no voucher is known.
    pub voucher: Option<(u128, SignatureBytes)>,
    /// What was deposited and has not left.
    pub balance: u128,
    /// What was claimed of it on the chain.
    pub claimed: u128,
}

impl PaymentProblem {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            PaymentProblem::Required => "payment_required",
            PaymentProblem::Invalid { .. } => "voucher_invalid",
            PaymentProblem::Unfunded { .. } => "channel_unfunded",
            PaymentProblem::Closing => "channel_closing",
            PaymentProblem::Busy => "channel_busy",
            PaymentProblem::Stale(_) => "voucher_stale",
            PaymentProblem::Unverified => "ledger_unreachable",
        }
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            PaymentProblem::Unverified => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::PAYMENT_REQUIRED,
        }
    }

    /// Whether the same payment may be taken later.
    pub fn may_retry(&self) -> bool {
        matches!(self, PaymentProblem::Busy | PaymentProblem::Unverified)
    }
}
