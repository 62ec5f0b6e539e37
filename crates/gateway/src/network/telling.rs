//! Telling an answer: passes on what a provider says, and ends only when the record was checked, paid for and charged.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use assay_api::relay::{Frame, Running};
use assay_api::{Event, Refusal};
use assay_core::answer::AnswerRecord;
use assay_core::embedding::Record;
use assay_core::id::NodeAddress;
use assay_core::payment;
use assay_core::receipt::SignedReceipt;
use assay_core::request::Request;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::attempt::{Candidate, First};
use super::money::Purse;
use super::{Inner, Kept};
use crate::lanes::payer::Paying;
use crate::routing::{Outcome, Want};

/// How long an answer is waited for whose client has left. Its provider may have completed and charged it before it could know that: then it is
/// an answer, which the client finds when it asks again.
const GRACE: Duration = Duration::from_millis(500);

/// One answer on its way from a provider to a client.
pub(super) struct Telling {
    pub(super) inner: Arc<Inner>,
    pub(super) want: Want,
    pub(super) request: Request,
    /// The model's name.
    pub(super) model: String,
    /// Out of which the client pays.
    pub(super) purse: Option<Purse>,
    /// Out of which the provider is paid.
    pub(super) paying: Option<Paying>,
    pub(super) text: String,
    /// Whether the answer has calls of tools, whose text is told in another form.
    pub(super) called: bool,
    pub(super) told: Vec<Event>,
}

impl Telling {
    pub(super) async fn forward(mut self, first: First, events: mpsc::Sender<Event>) {
        let First { candidate, began, first_ms, mut running, frame, .. } = first;
        let Candidate { provider, price, .. } = candidate;
        let (mut next, mut until) = (Some(frame), None);
        let outcome = loop {
            let frame = match next.take() {
                Some(frame) => frame,
                None => match self.next(&mut running, &events, &mut until).await {
                    Next::Frame(frame) => frame,
                    Next::Gone => break Outcome::Neither,
                    Next::Lost(reason) => {
                        self.lost(&events, reason).await;
                        break Outcome::Failed;
                    }
                },
            };
            let event = match frame {
                Frame::Alive | Frame::Queued { .. } => continue,
                Frame::Text { text, logprobs } => {
                    self.text.push_str(&text);
                    Event::Text { text, logprobs }
                }
                Frame::Call { index, id, name } => {
                    self.called = true;
                    Event::Call { index, id, name }
                }
                Frame::Arguments { index, json } => Event::Arguments { index, json },
                Frame::Failed(refusal) => {
                    self.lost(&events, refusal.to_string()).await;
                    break Outcome::Failed;
                }
                Frame::Embedded(_) | Frame::Counted(_) => {
                    self.lost(&events, "it answered something else".into()).await;
                    break Outcome::Failed;
                }
                Frame::End { stop, record } => {
                    let record = Arc::new(*record);
                    let fee = payment::fee(price, &record.transcript);
                    if let Err(reason) = self.check(provider, fee, &record) {
                        self.lost(&events, reason).await;
                        break Outcome::Failed;
                    }
                    if let Some(paying) = self.paying.take() {
                        paying.settle(fee);
                    }
                    let usage = record.transcript.usage();
                    if let Some(purse) = self.purse.take()
                        && let Err(refusal) = purse.charge(fee, &record.receipt, provider, &self.model).await
                    {
                        let _ = events.send(Event::Failed(refusal)).await;
                        break Outcome::Neither;
                    }
                    let t = &record.transcript;
                    let bytes = 3 * t.text.len()
                        + (t.prompt_ids.len() + t.output_ids.len()) * 4
                        + (t.logprobs.len() + self.told.len()) * 256
                        + 8192;
                    let told = std::mem::take(&mut self.told);
                    let kept = Record::Answer(Box::new((*record).clone()));
                    let kept = Kept { record: kept, events: told, bytes };
                    self.inner.records().keep(record.receipt.receipt.id(), kept);
                    let _ = events.send(Event::End { stop, usage, record }).await;
                    let total_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    break Outcome::Completed {
                        first_ms,
                        rest_ms: total_ms.saturating_sub(first_ms),
                        tokens: usage.completion_tokens,
                    };
                }
            };
            if self.purse.is_some() {
                self.told.push(event.clone());
            }
            if events.send(event).await.is_err() {
                until.get_or_insert_with(|| Instant::now() + GRACE);
            }
        };
        if let Some(purse) = self.purse.take() {
            purse.release().await;
        }
        let now_ms = self.inner.clock_ms();
        self.inner.routing().ended(provider, &self.want, outcome, now_ms);
    }

    /// The next frame. When the client leaves, `until` is set: what ends by then is still an answer.
    async fn next(
        &self,
        running: &mut Running,
        events: &mpsc::Sender<Event>,
        until: &mut Option<Instant>,
    ) -> Next {
        loop {
            let left = *until;
            let (leaves, over) =
                (async { if left.is_none() { events.closed().await } else { pending().await } }, async {
                    if let Some(until) = left { sleep_until(until).await } else { pending().await }
                });
            tokio::select! {
                biased;
                () = over => return Next::Gone,
                () = leaves => *until = Some(Instant::now() + GRACE),
                frame = timeout(self.inner.options.silence, running.frame()) => return match frame {
                    Err(_) => Next::Lost("it says nothing any more".into()),
                    Ok(Err(e)) => Next::Lost(e.to_string()),
                    Ok(Ok(None)) => Next::Lost("it ended without an end".into()),
                    Ok(Ok(Some(frame))) => Next::Frame(frame),
                },
            }
        }
    }

    async fn lost(&self, events: &mpsc::Sender<Event>, reason: String) {
        tracing::warn!(%reason, "a provider broke off an answer");
        let _ = events.send(Event::Failed(Refusal::ProviderLost { reason })).await;
    }

    /// Whether the record is of this request, by this provider, of the text that the client has, and asks for the fee that was offered.
    fn check(&self, provider: NodeAddress, fee: u64, record: &AnswerRecord) -> Result<(), String> {
        if let Some(broken) = record.broken_bindings().first() {
            return Err(broken.to_string());
        }
        if record.request != self.request {
            return Err("its record is of another request".into());
        }
        if record.receipt.receipt.provider != provider {
            return Err("its receipt is another provider's".into());
        }
        if !self.called && record.transcript.text != self.text {
            return Err("its record has another text than it told".into());
        }
        agreed(self.paying.as_ref(), &record.receipt, fee)
    }
}

/// Whether a receipt asks for what was offered and signed for.
pub(super) fn agreed(paying: Option<&Paying>, receipt: &SignedReceipt, fee: u64) -> Result<(), String> {
    match paying {
        Some(paying) if !paying.covers(receipt, fee) => Err(format!(
            "its receipt asks for {} millionths of a dollar, and {fee} were offered, from this lane and on this ledger (provider_overcharged)",
            receipt.receipt.fee_micro_usd
        )),
        _ => Ok(()),
    }
}

enum Next {
    Frame(Frame),
    /// The client is gone.
    Gone,
    Lost(String),
}
