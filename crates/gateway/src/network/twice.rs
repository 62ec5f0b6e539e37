//! Class `full`: two providers execute the same request, and the answer ends only if they agree to the bit.
//!
//! What the first says is told as it comes; its end waits for the second's. Invariant: an answer that ends was executed by two different providers,
//! with the same transcript and the same digests, and its client has paid both. Where they differ, one of them is wrong; which one it refuses to judge:
//! the client pays nothing, and both records are kept for whoever disputes one of them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use assay_api::relay::Work;
use assay_api::{Class, Event, Generation, Order, Refusal, Second, Source, Stop, traces};
use assay_core::answer::AnswerRecord;
use assay_core::digest::DIGEST_TOKENS;
use assay_core::embedding::Record;
use assay_core::id::{NodeAddress, Nonce};
use assay_core::keccak::keccak256;
use assay_core::price::Price;
use assay_core::transcript::StopReason;
use tokio::sync::mpsc;

use super::attempt::{Candidate, First, Question, race};
use super::money::{self, Purse};
use super::opening::Opening;
use super::resume::Told;
use super::telling::Telling;
use super::{Inner, Network, PIECES, may_wait, now_s, terms, want};
use crate::callers;
use crate::routing::{BUSY_MS, Outcome, Want};

/// How soon is looked again for someone whom the other execution has not taken.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// Whom each of the two executions may ask: nobody is asked for both.
#[derive(Default)]
struct Sides {
    held: [BTreeSet<NodeAddress>; 2],
    /// Whether it has begun, so that it holds nobody but who answers it.
    begun: [bool; 2],
}

/// One of two executions.
#[derive(Clone)]
pub(super) struct Leg {
    sides: Arc<Mutex<Sides>>,
    index: usize,
    fee: Arc<OnceLock<u64>>,
}

impl Leg {
    fn pair() -> [Leg; 2] {
        let sides = Arc::<Mutex<Sides>>::default();
        [0, 1].map(|index| Leg { sides: Arc::clone(&sides), index, fee: Arc::default() })
    }

    fn sides(&self) -> std::sync::MutexGuard<'_, Sides> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes of those that can be asked whom the other execution does not hold; of a list that nobody holds any of, every second one. None if there
    /// is nobody, and will be nobody.
    pub(super) fn take(&self, able: &[Candidate], most: usize) -> Option<Vec<Candidate>> {
        let (mine, other) = (self.index, 1 - self.index);
        let mut sides = self.sides();
        sides.held[mine].clear();
        let free = able.iter().filter(|candidate| !sides.held[other].contains(&candidate.provider));
        let step = if sides.held[other].is_empty() { 2 } else { 1 };
        let taken: Vec<Candidate> = free.step_by(step).take(most).copied().collect();
        if taken.is_empty() && sides.begun[other] {
            return None;
        }
        sides.held[mine] = taken.iter().map(|candidate| candidate.provider).collect();
        Some(taken)
    }

    /// Only this one answers: the others may be asked by the other execution.
    pub(super) fn begun(&self, provider: NodeAddress) {
        let mut sides = self.sides();
        sides.held[self.index] = BTreeSet::from([provider]);
        sides.begun[self.index] = true;
    }

    /// What its answer costs, which the client pays when both have ended.
    pub(super) fn concluded(&self, fee: u64) {
        // An execution is concluded once.
        let _ = self.fee.set(fee);
    }

    /// Whether this is the one that the client hears.
    pub(super) fn is_told(&self) -> bool {
        self.index == 0
    }
}

/// The first words of an execution. Dropped unused, they are taken back.
struct Begun<'a> {
    inner: &'a Arc<Inner>,
    want: &'a Want,
    first: Option<First>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(first) = self.first.take() {
            self.inner.ended(first.candidate.provider, self.want, Outcome::Neither);
        }
    }
}

/// Asks until somebody begins to answer whom the other execution does not have.
async fn begin<'a>(
    inner: &'a Arc<Inner>,
    leg: &Leg,
    asked: Question<'a>,
    until: Instant,
    nobody: impl Fn() -> Refusal,
) -> Result<Begun<'a>, Refusal> {
    let mut tried: BTreeSet<NodeAddress> = BTreeSet::new();
    loop {
        let mut able = inner.able(asked.want);
        able.retain(|candidate| !tried.contains(&candidate.provider));
        if able.is_empty() {
            return Err(nobody());
        }
        let taken = leg.take(&able, inner.options.attempts_max).ok_or_else(&nobody)?;
        if taken.is_empty() {
            if Instant::now() >= until {
                return Err(nobody());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        match race(inner, &taken, asked).await {
            Ok(first) => {
                leg.begun(first.candidate.provider);
                return Ok(Begun { inner, want: asked.want, first: Some(first) });
            }
            Err(Some(refusal)) if may_wait(&refusal) && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(BUSY_MS)).await;
            }
            Err(Some(refusal)) => return Err(refusal),
            Err(None) => tried.extend(taken.iter().map(|candidate| candidate.provider)),
        }
    }
}

impl Network {
    /// Keeps records that differ in this folder, one file for each: with the prompts that their clients let auditors see.
    pub fn keeping(mut self, folder: PathBuf) -> Network {
        Arc::get_mut(&mut self.inner).expect("nothing runs yet").differing = Some(folder);
        self
    }

    /// An answer that two providers execute.
    pub(super) async fn twice(&self, order: Order) -> Result<Generation, Refusal> {
        let inner = &self.inner;
        let Order { request, nonce, request_id, caller } = order;
        let mut want = want(request.model, request.audit, &caller, request.max_tokens, Some(&request.prompt));
        let model = inner.offered(request.model);
        let model = model.ok_or(Refusal::UnknownModel { asked: request.model.to_string() })?;
        let able = inner.able(&want);
        let nobody = || Refusal::NoSecondProvider { asked: model.name.clone(), terms: terms(&caller) };
        if able.is_empty() {
            return Err(Refusal::NoProvider { asked: model.name, terms: terms(&caller) });
        }
        if able.len() < 2 {
            return Err(nobody());
        }
        let price = able
            .iter()
            .filter_map(|candidate| candidate.price)
            .reduce(|a, b| Price::new(a.input().max(b.input()), a.output().max(b.output())).unwrap_or(a));
        let most = money::most(price, &request, model.context_length).saturating_mul(2);
        // One that was answered by one provider is another request.
        let twice = keccak256(&[b"assay/request-twice/1", request.hash().as_bytes()]);
        let key = money::request_key(twice.as_bytes(), nonce.as_ref());
        let purse = match self.purse(&caller, &mut want, key, most).await? {
            Opening::Purse(purse) => purse,
            Opening::Told(mut generation) => {
                generation.source.iter_mut().for_each(|source| source.class = Class::Full);
                return Ok(generation);
            }
        };
        // Without a seed both need the same nonce.
        let nonce =
            nonce.or_else(|| request.sampling.seed.is_none().then(|| Nonce::from_bytes(B256::random().0)));
        let work = Work::Generate { request: request.clone(), nonce };
        let window = model.context_length;
        let asked = Question { want: &want, request_id: &request_id, work: &work, window };
        let legs = Leg::pair();
        let began = async {
            let mut turn = inner.turn(&caller).await?;
            let until = Instant::now() + inner.options.queue.wait;
            let both = tokio::try_join!(
                begin(inner, &legs[0], asked, until, nobody),
                begin(inner, &legs[1], asked, until, nobody),
            )?;
            turn.answered();
            Ok((both, turn))
        };
        let ((mut one, mut two), turn) = match began.await {
            Ok(began) => began,
            Err(refusal) => {
                inner.metrics.refused.inc();
                if let Some(purse) = purse {
                    purse.release().await;
                }
                return Err(refusal);
            }
        };
        let (Some(one), Some(two)) = (one.first.take(), two.first.take()) else {
            return Err(Refusal::Internal { message: "an execution began and is not there".into() });
        };
        let (receipt_id, prompt_tokens) = (one.receipt_id, one.prompt_tokens);
        let second =
            Second { receipt: two.receipt_id, provider: two.candidate.provider, price: two.candidate.price };
        let Candidate { provider, price, .. } = one.candidate;
        let beside = second;
        let source = Some(Source { provider, price, class: Class::Full, second: Some(second) });
        let mut turn = Some(turn);
        let fees = legs.each_ref().map(|leg| Arc::clone(&leg.fee));
        let stops = [Stop::default(), Stop::default()];
        let told = [one, two].into_iter().zip(legs).zip(&stops).map(|((mut first, leg), stop)| {
            let (events, receiver) = mpsc::channel(PIECES);
            let telling = Telling {
                inner: Arc::clone(inner),
                want,
                request: request.clone(),
                work: work.clone(),
                request_id: request_id.clone(),
                window,
                model: model.name.clone(),
                purse: None,
                paying: first.paying.take(),
                named: first.receipt_id,
                told: Told::default(),
                kept: Vec::new(),
                leg: Some(leg),
                stop: stop.clone(),
                left: false,
                _turn: turn.take(),
            };
            // Owned by the pair below: it ends with the answer, or when the pair is gone.
            traces::current().spawn(telling.forward(first, events));
            receiver
        });
        let told: Vec<_> = told.collect();
        let Ok([first, second]) = <[mpsc::Receiver<Event>; 2]>::try_from(told) else {
            return Err(Refusal::Internal { message: "two executions are two".into() });
        };
        let (events, receiver) = mpsc::channel(PIECES);
        let stop = Stop::default();
        let pair = Pair {
            inner: Arc::clone(inner),
            first,
            second,
            fees,
            purse,
            heard: Vec::new(),
            model: model.name,
            stop: stop.clone(),
            stops,
            other: beside,
        };
        // Owned by the request: it ends with the answer, or when the client's receiver is gone.
        traces::current().spawn(pair.forward(events));
        Ok(Generation { receipt_id, prompt_tokens, source, stop, events: receiver })
    }
}

/// Two executions on their way to one client.
struct Pair {
    inner: Arc<Inner>,
    first: mpsc::Receiver<Event>,
    second: mpsc::Receiver<Event>,
    fees: [Arc<OnceLock<u64>>; 2],
    purse: Option<Purse>,
    /// What the client has heard, where it may have to be told again.
    heard: Vec<Event>,
    /// The model's name.
    model: String,
    /// The client has left.
    stop: Stop,
    /// What stops the executions.
    stops: [Stop; 2],
    /// What the client is told of the second.
    other: Second,
}

/// Why there is no end.
enum NoEnd {
    /// The client has left, or it was taken back, and there is nothing that it has to pay for.
    Gone,
    Refused(Refusal),
}

impl Pair {
    /// Tells the first execution, and its end when the second has the same.
    async fn forward(mut self, events: mpsc::Sender<Event>) {
        let ended = match self.ends(&events).await {
            Ok((end, other)) => self.conclude(end, &other).await.map_err(NoEnd::Refused),
            Err(no_end) => Err(no_end),
        };
        if let Some(purse) = self.purse.take() {
            purse.release().await;
        }
        let metrics = &self.inner.metrics;
        match &ended {
            Ok(Event::End { stop: StopReason::Cancelled, .. }) => metrics.left.inc(),
            Ok(_) => metrics.answered.inc(),
            Err(NoEnd::Refused(_)) => metrics.failed.inc(),
            Err(NoEnd::Gone) => metrics.left.inc(),
        };
        // Whoever left hears nothing.
        let _ = match ended {
            Ok(end) => events.send(end).await,
            Err(NoEnd::Refused(refusal)) => events.send(Event::Failed(refusal)).await,
            Err(NoEnd::Gone) => Ok(()),
        };
    }

    /// Waits for both ends. A client that leaves before the first is over has both stopped; one that leaves later has heard its answer. Either pays for both.
    async fn ends(&mut self, events: &mpsc::Sender<Event>) -> Result<(Event, Arc<AnswerRecord>), NoEnd> {
        let (mut end, mut other) = (None, None);
        let mut left = false;
        let ended = |left, refusal| if left { NoEnd::Gone } else { NoEnd::Refused(refusal) };
        loop {
            if let (Some(_), Some(_)) = (&end, &other) {
                break;
            }
            tokio::select! {
                biased;
                () = self.stop.asked(), if !left => {
                    left = true;
                    // Where a payment is the same for any answer, the client has paid for all of it.
                    if end.is_none() && !self.purse.as_ref().is_some_and(Purse::is_whole) {
                        self.stops.iter().for_each(Stop::ask);
                    }
                }
                () = events.closed(), if !left => return Err(NoEnd::Gone),
                event = self.first.recv(), if end.is_none() => match event.unwrap_or_else(stopped) {
                    Event::Failed(refusal) => return Err(ended(left, refusal)),
                    last @ Event::End { .. } => end = Some(last),
                    event => {
                        if self.purse.is_some() {
                            self.heard.push(event.clone());
                        }
                        // Who is gone is seen above.
                        let _ = events.send(event).await;
                    }
                },
                event = self.second.recv(), if other.is_none() => match event.unwrap_or_else(stopped) {
                    Event::Failed(refusal) => return Err(ended(left, refusal)),
                    Event::End { record, .. } => other = Some(record),
                    _ => {}
                },
            }
        }
        end.zip(other).ok_or(NoEnd::Gone)
    }

    /// Compares both, and charges the client for both.
    async fn conclude(&mut self, end: Event, other: &AnswerRecord) -> Result<Event, Refusal> {
        let Event::End { record, .. } = &end else {
            return Err(Refusal::Internal { message: "an answer ended without an end".into() });
        };
        let (one, two) = (&record.receipt.receipt, &other.receipt.receipt);
        if !agree(record, other) {
            let (first, second) = (one.id().to_string(), two.id().to_string());
            tracing::error!(first, second, of = %one.provider, and = %two.provider, code = "answers_differ", "two providers gave different answers");
            if let Some(folder) = &self.inner.differing {
                keep(folder.clone(), [(**record).clone(), other.clone()]).await;
            }
            return Err(Refusal::AnswersDiffer { first, second });
        }
        if let Some(purse) = self.purse.take() {
            let fee =
                self.fees.iter().filter_map(|fee| fee.get()).fold(0u64, |sum, fee| sum.saturating_add(*fee));
            let events = std::mem::take(&mut self.heard);
            // What was stopped is told to nobody again.
            let whole = [record.as_ref(), other].iter().all(|record| !is_stopped(record));
            let second = Some(self.other);
            let told =
                || callers::Told { events, record: Record::Answer(Box::new((**record).clone())), second };
            let told = || whole.then(told);
            purse.charge(fee, &record.receipt, one.provider, &self.model, told).await?;
        }
        Ok(end)
    }
}

fn is_stopped(record: &AnswerRecord) -> bool {
    record.transcript.stop == StopReason::Cancelled
}

/// Whether two executions came to the same; of those that were stopped, as far as both went.
fn agree(one: &AnswerRecord, two: &AnswerRecord) -> bool {
    let roots = |record: &AnswerRecord| {
        let receipt = &record.receipt.receipt;
        (receipt.transcript_root, receipt.digest_root)
    };
    if !is_stopped(one) && !is_stopped(two) {
        return roots(one) == roots(two);
    }
    let (a, b) = (&one.transcript, &two.transcript);
    let common = a.output_ids.len().min(b.output_ids.len());
    // The last token that was chosen was not executed.
    let executed = (a.prompt_ids.len() + common).saturating_sub(1);
    let digests = if a.output_ids.len() == b.output_ids.len() {
        one.digests == two.digests
    } else {
        let blocks = executed / DIGEST_TOKENS as usize;
        one.digests.0.get(..blocks) == two.digests.0.get(..blocks)
    };
    (a.request_hash, a.nonce, &a.prompt_ids) == (b.request_hash, b.nonce, &b.prompt_ids)
        && a.output_ids.get(..common) == b.output_ids.get(..common)
        && a.logprobs.iter().zip(&b.logprobs).all(|(a, b)| a == b)
        && digests
}

fn stopped() -> Event {
    Event::Failed(Refusal::ProviderLost { reason: "its answer stopped without an end".into() })
}

/// Keeps records for a dispute.
async fn keep(folder: PathBuf, records: [AnswerRecord; 2]) {
    let kept =
        tokio::task::spawn_blocking(move || records.iter().try_for_each(|record| write(&folder, record)));
    match kept.await.map_err(std::io::Error::other) {
        Ok(Ok(())) => {}
        Ok(Err(e)) | Err(e) => tracing::error!(reason = %e, "records that differ could not be kept"),
    }
}

/// One file for each record, as `assay verify` reads them; only their owner may.
fn write(folder: &Path, record: &AnswerRecord) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let name = format!("{}-{}.json", now_s(), record.receipt.receipt.id());
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(folder.join(name))?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(count: u8) -> Vec<Candidate> {
        let one = |n| Candidate { provider: NodeAddress::from_bytes([n; 20]), price: None, paid: false };
        (1..=count).map(one).collect()
    }

    fn names(taken: Option<Vec<Candidate>>) -> Option<Vec<u8>> {
        Some(taken?.iter().map(|candidate| candidate.provider.as_bytes()[0]).collect())
    }

    #[test]
    fn no_provider_is_asked_for_both() {
        let all = candidates(5);
        let [one, two] = Leg::pair();
        assert_eq!(names(one.take(&all, 3)), Some(vec![1, 3, 5]));
        assert_eq!(names(two.take(&all, 3)), Some(vec![2, 4]));
        // The first has its provider, and whom it does not need is free.
        one.begun(all[2].provider);
        assert_eq!(names(two.take(&all, 9)), Some(vec![1, 2, 4, 5]));
        two.begun(all[0].provider);
        // Who goes on with what one breaks off is not the other either.
        assert_eq!(names(one.take(&all[..2], 3)), Some(vec![2]));
        assert_eq!(names(one.take(&all[..1], 3)), None);
    }

    #[test]
    fn who_finds_nobody_waits_until_the_other_has_begun() {
        let all = candidates(2);
        let [one, two] = Leg::pair();
        assert_eq!(names(one.take(&all, 3)), Some(vec![1]));
        assert_eq!(names(two.take(&all[..1], 3)), Some(vec![]));
        one.begun(all[0].provider);
        assert_eq!(names(two.take(&all[..1], 3)), None);
        assert_eq!(names(two.take(&all, 3)), Some(vec![2]));
    }
}
