//! Settling: moves what an answer cost, and finds out what became of it.
//!
//! Invariant: at most one transaction waits for a payment, and a payment ends when the chain shows that the tokens were moved or never can be. What is not
//! known yet is asked again until the payment's time is over.

use std::time::Duration;

use assay_core::authorization::{Authorization, Scheme};
use assay_core::canonical::Canonical as _;
use assay_ledger::authorization::Moved;
use assay_ledger::client::ClientError;
use assay_ledger::sender::SendError;

use super::{Callers, now_ms};
use crate::accounts::{AccountsError, CallerPayment, MicroUsd, Stage};

/// How long a request waits for its payment to be settled.
const WAIT: Duration = Duration::from_secs(120);
/// How often what waits is tried again.
const EVERY: Duration = Duration::from_secs(5);

/// How a payment ended.
enum Ended {
    Moved(u128, String),
    /// By the payer's doing.
    Failed(&'static str),
    /// By nobody's, or the gateway's.
    Lapsed(&'static str),
    /// It has not.
    Waits,
}

/// Held by whoever settles a payment.
struct Settling<'a> {
    callers: &'a Callers,
    id: &'a str,
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.callers.settling().remove(self.id);
    }
}

impl Callers {
    /// Settles what waits, also from before, and lets go of answers that cannot be asked for again; until it is dropped.
    pub async fn run(&self) {
        loop {
            match self.accounts.unsettled(&self.receiver).await {
                Ok(waiting) => {
                    for payment in waiting {
                        if let Err(e) = self.settle(&payment).await {
                            tracing::warn!(code = e.code(), reason = %e, "a settlement could not be booked");
                        }
                    }
                }
                Err(e) => tracing::warn!(code = e.code(), reason = %e, "what is to be settled is not known"),
            }
            if let Err(e) = self.accounts.forget_told(now_ms()).await {
                tracing::warn!(code = e.code(), reason = %e, "old answers could not be let go");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Settles a payment whose answer is there, unless somebody does. Where it stands then, and why.
    pub(super) async fn settle(&self, payment: &CallerPayment) -> Result<(Stage, String), AccountsError> {
        if !self.settling().insert(payment.id.clone()) {
            return Ok((Stage::Answered, String::new()));
        }
        let _settling = Settling { callers: self, id: &payment.id };
        // Somebody may have settled it since it was read.
        match self.accounts.caller_payment(&payment.id).await? {
            Some(now) if now.stage == Stage::Answered => {}
            Some(now) => return Ok((now.stage, now.hash)),
            None => return Ok((Stage::Answered, String::new())),
        }
        let ended = match tokio::time::timeout(WAIT, self.moved(payment)).await {
            Ok(ended) => ended,
            Err(_) => Ended::Waits,
        };
        let id = &payment.id;
        Ok(match ended {
            Ended::Moved(arrived, transaction) => {
                let arrived = MicroUsd(u64::try_from(arrived).unwrap_or(u64::MAX));
                self.accounts.pledge_settled(id, arrived, &transaction, now_ms()).await?;
                (Stage::Settled, transaction)
            }
            Ended::Failed(reason) => {
                tracing::warn!(
                    payer = payment.payer,
                    amount = payment.amount.0,
                    reason,
                    "an answer was not paid"
                );
                self.accounts.pledge_failed(id, Stage::Failed, reason, now_ms()).await?;
                (Stage::Failed, reason.to_owned())
            }
            Ended::Lapsed(reason) => {
                tracing::error!(
                    payer = payment.payer,
                    amount = payment.amount.0,
                    reason,
                    "a payment was not settled in time"
                );
                self.accounts.pledge_failed(id, Stage::Lapsed, reason, now_ms()).await?;
                (Stage::Lapsed, reason.to_owned())
            }
            Ended::Waits => (Stage::Answered, String::new()),
        })
    }

    async fn moved(&self, payment: &CallerPayment) -> Ended {
        if payment.amount.0 == 0 {
            return Ended::Moved(0, String::new());
        }
        let signed = hex::decode(&payment.signed).ok();
        let signed = signed.and_then(|bytes| Authorization::from_canonical_bytes(&bytes).ok());
        // The books hold what was written into them.
        let Some(signed) = signed else { return Ended::Lapsed("unexpected_settle_error") };
        let purpose = format!("settle x402 payment {}", payment.id);
        let sent =
            self.ledger.move_authorized(&self.sender, &purpose, &signed, payment.amount.0.into()).await;
        let reverted = match sent {
            Ok(moved) => return of(&moved),
            Err(SendError::Reverted { reason, .. }) => {
                tracing::info!(id = payment.id, %reason, "a payment did not move");
                true
            }
            Err(e) => {
                tracing::warn!(id = payment.id, reason = %e, "a payment is not settled yet");
                false
            }
        };
        if self.sender.waiting().await.contains(&purpose) {
            // It is waited for again.
            return Ended::Waits;
        }
        match self.became(&signed, payment, reverted).await {
            Ok(ended) => ended,
            Err(e) => {
                tracing::warn!(id = payment.id, reason = %e, "whether a payment was settled is not known");
                Ended::Waits
            }
        }
    }

    /// What became of a payment whose transaction was refused, or is not known to have been mined.
    async fn became(
        &self,
        signed: &Authorization,
        payment: &CallerPayment,
        reverted: bool,
    ) -> Result<Ended, ClientError> {
        let cover = self.ledger.cover(signed).await?;
        if cover.used {
            // By a transaction of an earlier start, by somebody else's, or for nothing.
            return Ok(match self.ledger.moved_by(signed, payment.from_block).await? {
                Some(moved) => of(&moved),
                None => Ended::Failed("invalid_transaction_state"),
            });
        }
        if cover.time > signed.valid_before {
            return Ok(Ended::Lapsed("expired before it was settled"));
        }
        let amount = match signed.scheme {
            Scheme::Exact => signed.amount,
            Scheme::Upto { .. } => payment.amount.0.into(),
        };
        Ok(match reverted {
            true if cover.balance < amount || cover.allowance < amount => Ended::Failed("insufficient_funds"),
            // Refused by the state to come, or for a time.
            _ => Ended::Waits,
        })
    }
}

fn of(moved: &Moved) -> Ended {
    Ended::Moved(moved.arrived, format!("{:#x}", moved.transaction))
}
