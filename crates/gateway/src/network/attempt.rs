//! Asking providers: one after the other, and the next one beside a slow one. What is left over is taken back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_api::Refusal;
use assay_api::relay::{Frame, RelayError, Running, Work};
use assay_core::id::{NodeAddress, ReceiptId};
use assay_core::price::Price;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::{Inner, order_id};
use crate::routing::{Outcome, Want};

/// How long the last of those that can be asked is waited for: as long as it says that it is there.
const UNTIL_IT_ANSWERS: Duration = Duration::from_secs(24 * 3600);

/// An answer that has begun.
pub(super) struct First {
    pub(super) provider: NodeAddress,
    pub(super) price: Option<Price>,
    pub(super) began: Instant,
    pub(super) first_ms: u64,
    pub(super) receipt_id: ReceiptId,
    pub(super) prompt_tokens: u32,
    pub(super) running: Running,
    /// The first frame that says something.
    pub(super) frame: Frame,
}

/// Whether nobody else would answer it either.
pub(super) fn is_the_requests(refusal: &Refusal) -> bool {
    !refusal.may_retry()
        && !matches!(
            refusal,
            Refusal::UnknownModel { .. } | Refusal::ModelWithdrawn { .. } | Refusal::Unauthorised { .. }
        )
}

/// Tells the routing that an attempt ended, also when it is dropped.
struct Attempt {
    inner: Arc<Inner>,
    provider: NodeAddress,
    want: Want,
    outcome: Option<Outcome>,
}

impl Attempt {
    fn begin(inner: &Arc<Inner>, provider: NodeAddress, want: &Want) -> Attempt {
        inner.routing().began(provider);
        Attempt { inner: Arc::clone(inner), provider, want: *want, outcome: Some(Outcome::Neither) }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome {
            let now_ms = self.inner.clock_ms();
            self.inner.routing().ended(self.provider, &self.want, outcome, now_ms);
        }
    }
}

/// Why an attempt gave nothing.
enum Nothing {
    /// The request's fault.
    Refused(Refusal),
    /// The provider is busy or going away, and is left alone for a while like one that failed.
    Busy(Refusal),
    /// The provider's fault.
    Failed(String),
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
            Nothing::Refused(_) => Outcome::Neither,
            Nothing::Busy(_) | Nothing::Failed(_) => Outcome::Failed,
        }
    }
}

async fn send(
    inner: &Inner,
    provider: NodeAddress,
    request_id: &str,
    work: &Work,
) -> Result<Running, RelayError> {
    let unknown =
        || RelayError::Unreachable { endpoint: provider.to_string(), reason: "no offer is known".into() };
    let to = inner.destination(provider).ok_or_else(unknown)?;
    match inner.client.send(&to, order_id(), request_id.to_owned(), work.clone()).await {
        // It was started again: its new offer has its new key.
        Err(RelayError::NotSealed { .. }) => {
            let again = inner.refresh(&to.endpoint).await;
            let to = again.ok().filter(|found| *found == provider).and_then(|_| inner.destination(provider));
            let to = to.ok_or_else(unknown)?;
            inner.client.send(&to, order_id(), request_id.to_owned(), work.clone()).await
        }
        sent => sent,
    }
}

/// The next frame, unless the provider is silent.
async fn frame(inner: &Inner, running: &mut Running) -> Result<Frame, String> {
    let frame = tokio::time::timeout(inner.options.silence, running.frame()).await;
    let frame = frame.map_err(|_| "it says nothing".to_owned())?.map_err(|e| e.to_string())?;
    frame.ok_or_else(|| "it ended without an end".to_owned())
}

/// One provider's first words.
async fn first(
    inner: Arc<Inner>,
    provider: NodeAddress,
    price: Option<Price>,
    want: Want,
    request_id: String,
    work: Work,
) -> (Attempt, Result<First, Nothing>) {
    let mut attempt = Attempt::begin(&inner, provider, &want);
    let began = Instant::now();
    let words = async {
        let sent = send(&inner, provider, &request_id, &work).await;
        let mut running = sent.map_err(|e| Nothing::Failed(e.to_string()))?;
        let mut queued = None;
        loop {
            match frame(&inner, &mut running).await.map_err(Nothing::Failed)? {
                Frame::Alive => {}
                Frame::Queued { receipt_id, prompt_tokens } => queued = Some((receipt_id, prompt_tokens)),
                Frame::Failed(refusal) => return Err(Nothing::by(refusal)),
                frame => {
                    let untaken = || Nothing::Failed("it answered before it took the request".into());
                    let (receipt_id, prompt_tokens) = queued.ok_or_else(untaken)?;
                    let first_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    return Ok(First {
                        provider,
                        price,
                        began,
                        first_ms,
                        receipt_id,
                        prompt_tokens,
                        running,
                        frame,
                    });
                }
            }
        }
    };
    let words = words.await;
    if let Err(nothing) = &words {
        attempt.outcome = Some(nothing.outcome());
    }
    (attempt, words)
}

/// Asks the candidates until one begins to answer. `Err(None)` says that nobody did, `Err(Some)` why the request is refused.
pub(super) async fn race(
    inner: &Arc<Inner>,
    candidates: &[(NodeAddress, Option<Price>)],
    want: &Want,
    request_id: &str,
    work: &Work,
) -> Result<First, Option<Refusal>> {
    let mut left = candidates.iter();
    let mut running = FuturesUnordered::new();
    let mut busy = None;
    loop {
        let patience = match left.next() {
            Some((provider, price)) => {
                let request_id = request_id.to_owned();
                running.push(first(Arc::clone(inner), *provider, *price, *want, request_id, work.clone()));
                let least = u64::try_from(inner.options.patience.as_millis()).unwrap_or(u64::MAX);
                Duration::from_millis(inner.routing().patience_ms(*provider, least)).min(UNTIL_IT_ANSWERS)
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
                Err(Nothing::Busy(refusal)) => {
                    tracing::info!(provider = %attempt.provider, "is busy");
                    busy = Some(refusal);
                }
                Err(Nothing::Failed(reason)) => {
                    tracing::warn!(provider = %attempt.provider, %reason, "gave no answer");
                }
            },
            // The others go on; who is first answers.
            () = tokio::time::sleep(patience) => {}
        }
    }
}

/// The last frame of an order that has one only.
pub(super) async fn whole(
    inner: &Arc<Inner>,
    provider: NodeAddress,
    want: &Want,
    request_id: &str,
    work: Work,
) -> Result<Frame, String> {
    let mut attempt = Attempt::begin(inner, provider, want);
    let began = Instant::now();
    let words = async {
        let mut running = send(inner, provider, request_id, &work).await.map_err(|e| e.to_string())?;
        loop {
            let frame = frame(inner, &mut running).await?;
            if frame.is_last() {
                return Ok::<_, String>(frame);
            }
        }
    };
    let answered = words.await;
    attempt.outcome = Some(match &answered {
        Ok(Frame::Failed(refusal)) if is_the_requests(refusal) => Outcome::Neither,
        Ok(Frame::Failed(_)) | Err(_) => Outcome::Failed,
        Ok(_) => {
            let first_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            Outcome::Completed { first_ms, rest_ms: 0, tokens: 1 }
        }
    });
    answered
}
