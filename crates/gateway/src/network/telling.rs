//! Telling an answer: passes on what a provider says, and ends only when the record was checked, paid for and charged.

use std::future::pending;
use std::sync::Arc;

use assay_api::relay::{Frame, Running, Work};
use assay_api::{Event, Refusal, Stop};
use assay_core::answer::AnswerRecord;
use assay_core::embedding::Record;
use assay_core::id::{NodeAddress, ReceiptId};
use assay_core::payment;
use assay_core::receipt::SignedReceipt;
use assay_core::request::Request;
use assay_core::transcript::{StopReason, Transcript};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::Inner;
use super::attempt::{Candidate, First, Question, mark, race};
use super::kept::Kept;
use super::money::Purse;
use super::resume::{self, Place};
use super::twice::Leg;
use crate::callers::Told;
use crate::lanes::payer::Paying;
use crate::queue::Turn;
use crate::routing::{Outcome, Want};

/// One answer on its way from providers to a client.
pub(super) struct Telling {
    pub(super) inner: Arc<Inner>,
    pub(super) want: Want,
    pub(super) request: Request,
    /// What providers are asked: another one is asked the same.
    pub(super) work: Work,
    pub(super) request_id: String,
    /// Positions of the model's window.
    pub(super) window: u32,
    /// The model's name.
    pub(super) model: String,
    /// Out of which the client pays.
    pub(super) purse: Option<Purse>,
    /// Out of which the provider is paid.
    pub(super) paying: Option<Paying>,
    /// The name that the client knows the answer by.
    pub(super) named: ReceiptId,
    /// What the client has heard.
    pub(super) told: resume::Told,
    /// The same, to be told again if it is asked for.
    pub(super) kept: Vec<Event>,
    /// Which of two executions it is, of an answer that has two.
    pub(super) leg: Option<Leg>,
    /// Its client leaves.
    pub(super) stop: Stop,
    /// It has left, and its provider was asked to stop: nobody goes on.
    pub(super) left: bool,
    /// Others wait until it ends.
    pub(super) _turn: Option<Turn>,
}

/// How one provider's part of an answer ended.
enum Ended {
    /// The client has all of it, or it was taken back, or the books failed.
    Over,
    /// The client left, and pays for what there is of it.
    Stopped,
    /// The provider broke off, or what it says cannot be taken.
    Lost(String),
}

impl Telling {
    /// Tells the answer to its end. Where a provider breaks off, another one goes on, and the client does not notice.
    pub(super) async fn forward(mut self, mut first: First, events: mpsc::Sender<Event>) {
        let mut lost = Vec::new();
        loop {
            let provider = first.candidate.provider;
            let until = self.purse.as_ref().and_then(Purse::deadline);
            let (span, prompt_tokens) = (first.span.clone(), first.prompt_tokens);
            span.responds(&first.receipt_id);
            let telling = self.tell(first, &events);
            let (ended, outcome) = match until {
                None => telling.await,
                Some(until) => match timeout_at(until, telling).await {
                    Ok(told) => told,
                    Err(_) => {
                        let reason = "it took longer than its payment is valid".into();
                        let _ = events.try_send(Event::Failed(Refusal::ProviderLost { reason }));
                        (Ended::Over, Outcome::Neither)
                    }
                },
            };
            if let Outcome::Completed { tokens, .. } = outcome {
                span.used(prompt_tokens, tokens);
            }
            mark(&span, outcome);
            self.inner.ended(provider, &self.want, outcome);
            let reason = match ended {
                Ended::Lost(reason) => reason,
                Ended::Over => {
                    self.count(outcome);
                    break;
                }
                Ended::Stopped => {
                    self.count(Outcome::Neither);
                    break;
                }
            };
            tracing::warn!(%provider, %reason, "a provider broke off an answer");
            lost.push(provider);
            // What was signed for it is free again, but for what it may have charged: it says so when it is paid next.
            drop(self.paying.take());
            match self.another(&lost, &events).await {
                Some(next) => {
                    self.inner.metrics.resumed.inc();
                    first = next;
                }
                None => {
                    self.count(outcome);
                    let _ = events.send(Event::Failed(Refusal::ProviderLost { reason })).await;
                    break;
                }
            }
        }
        if let Some(purse) = self.purse.take() {
            purse.release().await;
        }
    }

    /// Counts the answer. One of two executions is none by itself.
    fn count(&self, outcome: Outcome) {
        if self.leg.is_none() {
            self.inner.metrics.told(outcome);
        }
    }

    /// Someone who goes on, if there is anyone and the client still listens.
    async fn another(&mut self, lost: &[NodeAddress], events: &mpsc::Sender<Event>) -> Option<First> {
        if self.left || lost.len() >= self.inner.options.attempts_max {
            return None;
        }
        let mut candidates = self.inner.candidates(&self.want);
        candidates.retain(|candidate| !lost.contains(&candidate.provider));
        if let Some(leg) = &self.leg {
            candidates = leg.take(&candidates, self.inner.options.attempts_max)?;
        }
        let asked = Question {
            want: &self.want,
            request_id: &self.request_id,
            work: &self.work,
            window: self.window,
        };
        let mut first = tokio::select! {
            () = events.closed() => return None,
            first = race(&self.inner, &candidates, asked) => first.ok()?,
        };
        self.paying = first.paying.take();
        if let Some(leg) = &self.leg {
            leg.begun(first.candidate.provider);
        }
        Some(first)
    }

    /// Tells what one provider says, but for what was told.
    async fn tell(&mut self, first: First, events: &mpsc::Sender<Event>) -> (Ended, Outcome) {
        let First { candidate, began, first_ms, mut running, frame, .. } = first;
        let Candidate { provider, price, .. } = candidate;
        let failed = |reason: String| (Ended::Lost(reason), Outcome::Failed);
        // Until when the end is waited for, if the provider was asked to stop.
        let (mut next, mut until) = (Some(frame), None);
        let mut place = Place::default();
        let mut cached = 0;
        loop {
            let frame = match next.take() {
                Some(frame) => frame,
                None => {
                    let next = self.next(&mut running, events, &mut until).await;
                    self.left = until.is_some();
                    match next {
                        Next::Frame(frame) => frame,
                        Next::Gone => return (Ended::Over, Outcome::Neither),
                        Next::Lost(reason) => return failed(reason),
                    }
                }
            };
            let event = match frame {
                Frame::Alive | Frame::Queued { .. } => continue,
                Frame::Cached(tokens) => {
                    cached = tokens;
                    continue;
                }
                Frame::Text { text, logprobs } => Event::Text { text, logprobs },
                Frame::Call { index, id, name } => Event::Call { index, id, name },
                Frame::Arguments { index, json } => Event::Arguments { index, json },
                Frame::Failed(refusal) => return failed(refusal.to_string()),
                Frame::Embedded(_) | Frame::Counted(_) => return failed("it answered something else".into()),
                Frame::End { record, .. } => {
                    let record = Arc::new(*record);
                    let stop = record.transcript.stop;
                    let cancelled = stop == StopReason::Cancelled;
                    if cancelled && !self.left {
                        return failed("it stopped an answer that nobody asked it to stop".into());
                    }
                    let fee = payment::fee(price, &record.transcript);
                    if let Err(reason) = self.check(provider, fee, &record) {
                        return failed(reason);
                    }
                    let usage = record.transcript.usage();
                    // Nobody proves it, but more than all of them is no answer.
                    let cached_tokens = cached.min(usage.prompt_tokens);
                    let end = Event::End { stop, usage, cached_tokens, record: Arc::clone(&record) };
                    // One that was stopped may end before what another provider had told.
                    if let (false, Err(differs)) = (cancelled, self.told.new_of(&mut place, end.clone())) {
                        return failed(differs.to_string());
                    }
                    let outcome = match self.conclude(provider, fee, &record).await {
                        Ok(()) => {
                            let _ = events.send(end).await;
                            let total_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                            let rest_ms = total_ms.saturating_sub(first_ms);
                            Outcome::Completed { first_ms, rest_ms, tokens: usage.completion_tokens }
                        }
                        Err(refusal) => {
                            let _ = events.send(Event::Failed(refusal)).await;
                            Outcome::Neither
                        }
                    };
                    return (if cancelled { Ended::Stopped } else { Ended::Over }, outcome);
                }
            };
            let event = match self.told.new_of(&mut place, event) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(differs) => return failed(differs.to_string()),
            };
            self.told.tell(&event);
            place = self.told.end();
            if self.purse.is_some() || self.leg.as_ref().is_some_and(Leg::is_told) {
                self.kept.push(event.clone());
            }
            // Who is gone is seen above.
            let _ = events.send(event).await;
        }
    }

    /// Pays the provider, charges the client, and keeps the answer.
    async fn conclude(
        &mut self,
        provider: NodeAddress,
        fee: u64,
        record: &AnswerRecord,
    ) -> Result<(), Refusal> {
        if let Some(paying) = self.paying.take() {
            paying.settle(fee, &record.receipt);
        }
        if let Some(leg) = &self.leg {
            leg.concluded(fee);
        }
        if let Some(purse) = self.purse.take() {
            // What was stopped is told to nobody again: who asks again wants all of it.
            let whole = record.transcript.stop != StopReason::Cancelled;
            let told = || Told {
                events: self.kept.clone(),
                record: Record::Answer(Box::new(record.clone())),
                second: None,
            };
            purse.charge(fee, &record.receipt, provider, &self.model, || whole.then(told)).await?;
        }
        let t = &record.transcript;
        let bytes = 3 * t.text.len()
            + (t.prompt_ids.len() + t.output_ids.len()) * 4
            + (t.logprobs.len() + self.kept.len()) * 256
            + 8192;
        let named = Some(self.named).filter(|named| *named != record.receipt.receipt.id());
        let events = std::mem::take(&mut self.kept);
        let kept = Kept { record: Record::Answer(Box::new(record.clone())), events, bytes, named };
        self.inner.records().keep(kept);
        Ok(())
    }

    /// The next frame. When the client leaves, the provider is asked to stop, and `until` is set: what ends by then is charged. Where a payment is the same
    /// for any answer, the client has paid for all of it, and finds it when it sends the payment again.
    async fn next(
        &self,
        running: &mut Running,
        events: &mpsc::Sender<Event>,
        until: &mut Option<Instant>,
    ) -> Next {
        loop {
            let left = *until;
            let whole = self.purse.as_ref().is_some_and(Purse::is_whole);
            let over = async {
                match left {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = over => return Next::Gone,
                () = self.stop.asked(), if left.is_none() && !whole => {
                    let end = *until.insert(Instant::now() + self.inner.options.stopped);
                    match timeout_at(end, running.stop()).await {
                        Ok(Ok(())) => {}
                        // It may have ended, which its next frame says.
                        Ok(Err(e)) => tracing::info!(code = e.code(), reason = %e, "a provider does not stop"),
                        Err(_) => return Next::Gone,
                    }
                }
                () = events.closed(), if left.is_none() && !whole => return Next::Gone,
                frame = timeout(self.inner.options.silence, running.frame()) => return match frame {
                    Err(_) => Next::Lost("it says nothing any more".into()),
                    Ok(Err(e)) => Next::Lost(e.to_string()),
                    Ok(Ok(None)) => Next::Lost("it ended without an end".into()),
                    Ok(Ok(Some(frame))) => Next::Frame(frame),
                },
            }
        }
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
        if !is_as_long_as_asked(record) {
            return Err("its record ends where its request does not end it".into());
        }
        let ends = self.inner.ends(self.request.model);
        if ends.is_some_and(|ends| !is_ended_as_its_model_does(&record.transcript, &ends)) {
            return Err("its record ends, or goes on, where its model does not".into());
        }
        let (text, told) = (&record.transcript.text, self.told.text());
        let same = match record.transcript.stop {
            StopReason::Cancelled => told.starts_with(text.as_str()),
            _ => *text == told,
        };
        if !self.told.called() && !same {
            return Err("its record has another text than it told".into());
        }
        agreed(self.paying.as_ref(), &record.receipt, fee)
    }
}

/// Whether an answer has no more tokens than were asked for, and says that it ended for what can have ended it. Whether the model would have gone on, only
/// its execution shows.
fn is_as_long_as_asked(record: &AnswerRecord) -> bool {
    let (most, tokens) = (record.request.max_tokens as usize, record.transcript.output_ids.len());
    let ends = match record.transcript.stop {
        StopReason::Length => most != 0 && tokens == most,
        StopReason::StopString(which) => usize::from(which) < record.request.stop.len(),
        StopReason::EndToken | StopReason::Window | StopReason::Cancelled => true,
    };
    ends && (most == 0 || tokens <= most)
}

/// Whether the first id that ends an answer is its last one, if it says that it ended for that; and whether it has none otherwise.
fn is_ended_as_its_model_does(transcript: &Transcript, ends: &[u32]) -> bool {
    let ids = &transcript.output_ids;
    let first = ids.iter().position(|id| ends.contains(id));
    match transcript.stop {
        StopReason::EndToken => first.is_some_and(|at| at + 1 == ids.len()),
        StopReason::Length | StopReason::StopString(_) | StopReason::Window | StopReason::Cancelled => {
            first.is_none()
        }
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
