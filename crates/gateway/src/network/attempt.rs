//! Asking providers: one after the other, and the next one beside a slow one. What is left over is taken back.
//!
//! Each attempt at a provider that is paid has a lane of its own. It is free again when the attempt ends without an answer, and nothing is
//! known to have been charged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_api::relay::{Frame, RelayError, Running, Work};
use assay_api::traces::{self, Span, SpanKind};
use assay_api::{PaymentProblem, PaymentRefused, Refusal};
use assay_core::id::{ModelRoot, NodeAddress, ReceiptId};
use assay_core::price::Price;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::{Inner, money, order_id};
use crate::lanes::Mistrust;
use crate::lanes::payer::Paying;
use crate::routing::{Outcome, Want};

/// How long the last of those that can be asked is waited for: as long as it says that it is there.
const UNTIL_IT_ANSWERS: Duration = Duration::from_secs(24 * 3600);
/// Lanes that one attempt tries, where their provider says that they are busy.
const LANES_TRIED_MAX: u32 = 8;

/// A provider that can be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) provider: NodeAddress,
    /// What it offered to answer for.
    pub(super) price: Option<Price>,
    /// Whether that is paid by a lane.
    pub(super) paid: bool,
}

/// What is asked of providers.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) want: &'a Want,
    pub(super) request_id: &'a str,
    pub(super) work: &'a Work,
    /// Positions of the model's window.
    pub(super) window: u32,
}

impl Question<'_> {
    /// The most that it is expected to cost, and the most that it can ever cost.
    fn most(&self, price: Option<Price>) -> (u64, u64) {
        match self.work {
            Work::Generate { request, .. } => {
                let (most, ever) =
                    (money::most(price, request, self.window), money::most_ever(price, request, self.window));
                (most, ever)
            }
            Work::Embed { request } => {
                let texts = u32::try_from(request.inputs.len()).unwrap_or(u32::MAX);
                let ever = price.map_or(0, |price| price.fee(texts.saturating_mul(self.window), 0));
                (money::most_embedding(price, request, self.window), ever)
            }
            Work::CountTokens { .. } => (0, 0),
        }
    }
}

/// An answer that has begun.
pub(super) struct First {
    pub(super) candidate: Candidate,
    /// Out of which it is paid.
    pub(super) paying: Option<Paying>,
    pub(super) began: Instant,
    pub(super) first_ms: u64,
    pub(super) receipt_id: ReceiptId,
    pub(super) prompt_tokens: u32,
    pub(super) running: Running,
    /// The first frame that says something.
    pub(super) frame: Frame,
    pub(super) span: Span,
}

/// Whether nobody else would answer it either.
pub(super) fn is_the_requests(refusal: &Refusal) -> bool {
    // One of two clocks is wrong, and another provider's may be right.
    let of_the_order = matches!(refusal, Refusal::Invalid { param, .. } if param == "order");
    !of_the_order
        && !refusal.may_retry()
        && !matches!(
            refusal,
            Refusal::UnknownModel { .. }
                | Refusal::ModelWithdrawn { .. }
                | Refusal::Unauthorised { .. }
                | Refusal::Payment(_)
                | Refusal::ConsentRequired { .. }
        )
}

/// Tells the routing that an attempt ended, also when it is dropped.
struct Attempt {
    inner: Arc<Inner>,
    provider: NodeAddress,
    want: Want,
    outcome: Option<Outcome>,
    span: Span,
}

impl Attempt {
    fn begin(inner: &Arc<Inner>, provider: NodeAddress, asked: &Question<'_>) -> Attempt {
        inner.routing().began(provider);
        let span = span(inner, provider, asked);
        Attempt {
            inner: Arc::clone(inner),
            provider,
            want: *asked.want,
            outcome: Some(Outcome::Neither),
            span,
        }
    }
}

/// The span of an attempt, below the request's.
fn span(inner: &Inner, provider: NodeAddress, asked: &Question<'_>) -> Span {
    let above = traces::current();
    if !above.is_on() {
        return Span::default();
    }
    let operation = traces::operation(asked.work);
    let model = inner.offered(asked.want.model).map_or_else(|| asked.want.model.to_string(), |m| m.name);
    let span = above.child(SpanKind::Client, format!("{operation} {model}"));
    span.does(operation, &model);
    if let Work::Generate { request, .. } = asked.work {
        span.limited(request.max_tokens);
    }
    span.set("assay.provider", provider.to_string());
    if let Some(to) = inner.destination(provider) {
        span.server(&to.endpoint);
    }
    span
}

/// How an attempt ended, in its span.
pub(super) fn mark(span: &Span, outcome: Outcome) {
    match outcome {
        Outcome::Completed { .. } => {}
        Outcome::Failed => span.fail("provider_failed"),
        Outcome::Busy => span.fail("provider_busy"),
        Outcome::Neither => span.fail("unused"),
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome {
            mark(&self.span, outcome);
            self.inner.ended(self.provider, &self.want, outcome);
        }
    }
}

/// Why an attempt gave nothing.
pub(super) enum Nothing {
    /// The request's fault.
    Refused(Refusal),
    /// The provider has no place now, or is going away.
    Busy(Refusal),
    /// The provider's fault.
    Failed(String),
    /// Nobody's fault: it could not be paid at this moment.
    Unpaid(String),
    /// Nobody's fault: it asks for another price than it was chosen for.
    Repriced,
}

impl Nothing {
    fn by(refusal: Refusal) -> Nothing {
        match refusal {
            refusal if is_the_requests(&refusal) => Nothing::Refused(refusal),
            refusal @ (Refusal::Busy { .. } | Refusal::Draining) => Nothing::Busy(refusal),
            refusal => Nothing::Failed(refusal.to_string()),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Nothing::Refused(_) | Nothing::Unpaid(_) | Nothing::Repriced => Outcome::Neither,
            Nothing::Busy(_) => Outcome::Busy,
            Nothing::Failed(_) => Outcome::Failed,
        }
    }

    /// What is said of it, if nobody answers for this model.
    pub(super) fn said(self, model: ModelRoot) -> Option<Refusal> {
        match self {
            Nothing::Refused(refusal) | Nothing::Busy(refusal) => Some(refusal),
            Nothing::Unpaid(_) => Some(Refusal::NoLane { asked: model.to_string() }),
            Nothing::Failed(reason) => Some(Refusal::ProviderLost { reason }),
            Nothing::Repriced => None,
        }
    }
}

/// Sends an order. The price is what the provider offered when it was chosen: another one was not agreed to.
async fn send(
    inner: &Inner,
    candidate: &Candidate,
    paying: Option<&Paying>,
    asked: &Question<'_>,
) -> Result<Running, Nothing> {
    let provider = candidate.provider;
    let unknown = || Nothing::Failed(format!("no offer of {provider} is known"));
    let post = async |to| {
        let agreed = inner.price(provider, asked.want.model, asked.want.audit) == Some(candidate.price);
        if !agreed {
            return Err(Nothing::Repriced);
        }
        let payment = paying.map(|paying| paying.payment().clone());
        let (id, request_id) = (order_id(), asked.request_id.to_owned());
        Ok(inner.client.send(to, id, request_id, payment, asked.work.clone()).await)
    };
    let to = inner.destination(provider).ok_or_else(unknown)?;
    match post(&to).await? {
        // It was started again: its new offer has its new key.
        Err(RelayError::NotSealed { .. }) => {
            let again = inner.refresh(&to.endpoint).await;
            let to = again.ok().filter(|found| *found == provider).and_then(|_| inner.destination(provider));
            post(&to.ok_or_else(unknown)?).await?.map_err(|e| Nothing::Failed(e.to_string()))
        }
        sent => sent.map_err(|e| Nothing::Failed(e.to_string())),
    }
}

/// The next frame, unless the provider is silent.
async fn frame(inner: &Inner, running: &mut Running) -> Result<Frame, Nothing> {
    let frame = tokio::time::timeout(inner.options.silence, running.frame()).await;
    let frame = frame.map_err(|_| "it says nothing".to_owned());
    let frame = frame.and_then(|frame| frame.map_err(|e| e.to_string()));
    frame.and_then(|frame| frame.ok_or_else(|| "it ended without an end".to_owned())).map_err(Nothing::Failed)
}

/// An order that was taken, or refused for another reason than its payment.
struct Asked {
    running: Running,
    paying: Option<Paying>,
    /// The first frame that says something.
    frame: Frame,
}

/// A lane to a provider that is paid; waits for one until the given time.
async fn lane(
    inner: &Inner,
    candidate: &Candidate,
    most: u64,
    until: tokio::time::Instant,
) -> Result<Option<Paying>, Nothing> {
    match (&inner.payer, candidate.paid) {
        (Some(payer), true) => {
            let lane = payer.lane(candidate.provider, most, until).await;
            lane.map(Some).map_err(|e| Nothing::Unpaid(e.to_string()))
        }
        _ => Ok(None),
    }
}

/// Asks a provider, with a voucher if it is paid. If it does not take that one, with the one that it must take, or out of another lane.
async fn ask(inner: &Inner, candidate: &Candidate, asked: &Question<'_>) -> Result<Asked, Nothing> {
    let (mut most, ever) = asked.most(candidate.price);
    let wait = inner.payer.as_ref().map(|payer| payer.wait()).unwrap_or_default();
    let until = tokio::time::Instant::now() + wait;
    let mut paying = lane(inner, candidate, most, until).await?;
    let mut corrected = false;
    for _ in 0..LANES_TRIED_MAX {
        let mut running = send(inner, candidate, paying.as_ref(), asked).await?;
        let refused = loop {
            match (frame(inner, &mut running).await?, &paying) {
                (Frame::Alive, _) => {}
                (Frame::Failed(Refusal::Payment(refused)), Some(_)) => break refused,
                (frame, _) => return Ok(Asked { running, paying, frame }),
            }
        };
        let PaymentRefused { problem, terms } = *refused;
        match (&problem, &mut paying) {
            (PaymentProblem::Stale(shown), Some(paying)) if !corrected => {
                match paying.correct(shown, terms.most.min(ever)) {
                    Ok(()) => {
                        corrected = true;
                        continue;
                    }
                    // Now it is known how little is left; another lane may hold enough.
                    Err(Mistrust::Short { .. }) => most = most.max(terms.most.min(ever)),
                    Err(mistrust) => return Err(Nothing::Failed(mistrust.to_string())),
                }
            }
            // What was under way there may not have ended yet.
            (PaymentProblem::Busy, _) => {}
            (PaymentProblem::Unfunded { .. } | PaymentProblem::Closing, Some(paying)) => paying.reread(),
            _ => return Err(Nothing::Failed(problem.to_string())),
        }
        // The lane rests, and another one is taken.
        drop(paying.take());
        corrected = false;
        paying = lane(inner, candidate, most, until).await?;
    }
    Err(Nothing::Unpaid("none of its lanes is taken".into()))
}

/// One provider's first words.
async fn first(
    inner: Arc<Inner>,
    candidate: Candidate,
    asked: Question<'_>,
) -> (Attempt, Result<First, Nothing>) {
    let mut attempt = Attempt::begin(&inner, candidate.provider, &asked);
    let span = attempt.span.clone();
    let began = Instant::now();
    let words = async {
        let Asked { mut running, paying, frame: taken } = ask(&inner, &candidate, &asked).await?;
        let (receipt_id, prompt_tokens) = match taken {
            Frame::Queued { receipt_id, prompt_tokens } => (receipt_id, prompt_tokens),
            Frame::Failed(refusal) => return Err(Nothing::by(refusal)),
            _ => return Err(Nothing::Failed("it answered before it took the request".into())),
        };
        loop {
            match frame(&inner, &mut running).await? {
                Frame::Alive | Frame::Queued { .. } => {}
                Frame::Failed(refusal) => return Err(Nothing::by(refusal)),
                frame => {
                    let first_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    return Ok(First {
                        candidate,
                        paying,
                        began,
                        first_ms,
                        receipt_id,
                        prompt_tokens,
                        running,
                        frame,
                        span: traces::current(),
                    });
                }
            }
        }
    };
    let words = span.within(words).await;
    if let Err(nothing) = &words {
        attempt.outcome = Some(nothing.outcome());
    }
    (attempt, words)
}

/// Asks the candidates until one begins to answer. `Err(None)` says that nobody did, `Err(Some)` why the request is refused.
pub(super) async fn race(
    inner: &Arc<Inner>,
    candidates: &[Candidate],
    asked: Question<'_>,
) -> Result<First, Option<Refusal>> {
    let mut left = candidates.iter();
    let mut running = FuturesUnordered::new();
    let mut busy = None;
    loop {
        let patience = match left.next() {
            Some(candidate) => {
                if !running.is_empty() {
                    inner.metrics.hedges.inc();
                }
                running.push(first(Arc::clone(inner), *candidate, asked));
                let least = u64::try_from(inner.options.patience.as_millis()).unwrap_or(u64::MAX);
                let patience_ms = inner.routing().patience_ms(candidate.provider, least);
                Duration::from_millis(patience_ms).min(UNTIL_IT_ANSWERS)
            }
            None if running.is_empty() => return Err(busy),
            None => UNTIL_IT_ANSWERS,
        };
        tokio::select! {
            Some((mut attempt, words)) = running.next() => match words {
                Ok(first) => {
                    // From now on whoever tells the answer says how it ended.
                    attempt.outcome = None;
                    return Ok(first);
                }
                Err(Nothing::Refused(refusal)) => return Err(Some(refusal)),
                Err(nothing @ Nothing::Busy(_)) => {
                    tracing::info!(provider = %attempt.provider, "is busy");
                    busy = nothing.said(asked.want.model);
                }
                Err(Nothing::Failed(reason)) => {
                    tracing::warn!(provider = %attempt.provider, %reason, "gave no answer");
                }
                Err(Nothing::Unpaid(reason)) => {
                    tracing::warn!(provider = %attempt.provider, %reason, "could not be paid");
                    busy = busy.or_else(|| Nothing::Unpaid(reason).said(asked.want.model));
                }
                Err(Nothing::Repriced) => tracing::info!(provider = %attempt.provider, "has another price now"),
            },
            // The others go on; who is first answers.
            () = tokio::time::sleep(patience) => {}
        }
    }
}

/// An order that was answered by one frame.
pub(super) struct Whole {
    /// What tells the routing how it ended.
    attempt: Attempt,
    pub(super) frame: Frame,
    /// Out of which it is paid.
    pub(super) paying: Option<Paying>,
}

impl Whole {
    /// What came is not what was asked for.
    pub(super) fn failed(mut self) {
        self.attempt.outcome = Some(Outcome::Failed);
    }
}

/// The last frame of an order that has one only, if it is no refusal.
pub(super) async fn whole(
    inner: &Arc<Inner>,
    candidate: Candidate,
    asked: Question<'_>,
) -> Result<Whole, Nothing> {
    let mut attempt = Attempt::begin(inner, candidate.provider, &asked);
    let span = attempt.span.clone();
    let began = Instant::now();
    let words = async {
        let Asked { mut running, paying, frame: mut last } = ask(inner, &candidate, &asked).await?;
        while !last.is_last() {
            last = frame(inner, &mut running).await?;
        }
        match last {
            Frame::Failed(refusal) => Err(Nothing::by(refusal)),
            last => {
                if let Frame::Embedded(record) = &last {
                    traces::current().used(record.transcript.tokens(), 0);
                }
                Ok((last, paying))
            }
        }
    };
    match span.within(words).await {
        Ok((frame, paying)) => {
            let first_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            attempt.outcome = Some(Outcome::Completed { first_ms, rest_ms: 0, tokens: 1 });
            Ok(Whole { attempt, frame, paying })
        }
        Err(nothing) => {
            attempt.outcome = Some(nothing.outcome());
            Err(nothing)
        }
    }
}
