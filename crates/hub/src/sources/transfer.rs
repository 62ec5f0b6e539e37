//! One file from one address: resumed where it ended, bounded, and compared with what was promised before it gets its name.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::task::{JoinHandle, spawn_blocking};

use super::address::said;
use super::client::{Answer, Client, Failure, Patience, Request};
use super::error::SourceError;
use super::part::{Identity, Part, Promise, digest_of};
use super::{Progress, Report};

/// Bytes that are hashed and written at once, while the next ones come.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes after which a connection that broke does not count as a failure.
const RENEWING_BYTES: u64 = 1 << 20;
/// Most bytes of an entity tag.
const ETAG_BYTES_MAX: usize = 1024;

/// A file that is wanted.
pub(super) struct Wanted<'a> {
    /// What messages call it.
    pub(super) name: String,
    pub(super) url: Url,
    pub(super) token: Option<&'a HeaderValue>,
    pub(super) promise: Promise,
    /// Where it arrives.
    pub(super) part: PathBuf,
    /// Where it lies when it is whole.
    pub(super) to: PathBuf,
    /// Checks what the server asked says on the way.
    pub(super) inspect: &'a (dyn Fn(&HeaderMap) -> Result<(), SourceError> + Sync),
    /// What it means that the server refuses.
    pub(super) refuse: &'a (dyn Fn(&Answer) -> SourceError + Sync),
}

/// Adds up what several files have.
pub(super) struct Meter<'a> {
    pub(super) done: AtomicU64,
    pub(super) total: Option<u64>,
    pub(super) report: Report<'a>,
}

impl Meter<'_> {
    fn add(&self, bytes: u64, total: Option<u64>) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.report)(Progress { done, total: self.total.or(total) });
    }

    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Fetches a file, unless it is there and right.
pub(super) async fn fetch(
    client: &Client,
    wanted: &Wanted<'_>,
    meter: &Meter<'_>,
) -> Result<(), SourceError> {
    if is_there(wanted).await? {
        meter.add(wanted.promise.size.unwrap_or(0), None);
        return Ok(());
    }
    let (path, promise) = (wanted.part.clone(), wanted.promise.clone());
    let mut part = blocking(move || Part::open(&path, promise)).await?;
    meter.add(part.written(), part.identity.total);
    let mut patience = Patience::new(&client.pace);
    // Whether some of the bytes came in another answer than the last ones.
    let mut pieced = part.written() > 0;
    loop {
        let before = part.written();
        let (back, outcome) = attempt(client, wanted, part, meter).await?;
        part = back;
        match outcome {
            Ok(()) => match settle(wanted, part).await? {
                None => return Ok(()),
                // An answer that begins in the middle can be right and what came before it wrong: once, all comes anew.
                Some((mut wrong, _)) if pieced => {
                    meter.take_back(wrong.written());
                    wrong.reset()?;
                    part = wrong;
                    pieced = false;
                }
                Some((mut wrong, error)) => {
                    wrong.reset()?;
                    return Err(error);
                }
            },
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(passing)) => {
                pieced |= part.written() > 0;
                if part.written() >= before + RENEWING_BYTES {
                    patience.renew();
                }
                patience.wait(passing).await?;
            }
        }
    }
}

/// Whether an earlier fetch brought the whole file. It is hashed again; without a digest it is fetched again.
async fn is_there(wanted: &Wanted<'_>) -> Result<bool, SourceError> {
    let (to, promise) = (wanted.to.clone(), wanted.promise.clone());
    blocking(move || {
        if !to.exists() {
            return Ok(false);
        }
        let digest = digest_of(&to, &promise)?;
        if digest.is_some() && digest == promise.digest {
            return Ok(true);
        }
        std::fs::remove_file(&to).map_err(SourceError::io(&to))?;
        Ok(false)
    })
    .await
}

/// Gives a right file its name; gives a wrong one back.
async fn settle(wanted: &Wanted<'_>, mut part: Part) -> Result<Option<(Part, SourceError)>, SourceError> {
    let got = part.digest();
    if let (Some(expected), Some(got)) = (&wanted.promise.digest, got)
        && *expected != got
    {
        let file = wanted.name.clone();
        let error = SourceError::WrongContent { file, expected: expected.to_string(), got: got.to_string() };
        return Ok(Some((part, error)));
    }
    let to = wanted.to.clone();
    blocking(move || part.finish(&to)).await?;
    Ok(None)
}

/// What an attempt made of a part, and how it ended. The outer error is this machine's.
type Attempt = Result<(Part, Result<(), Failure>), SourceError>;

async fn attempt(client: &Client, wanted: &Wanted<'_>, mut part: Part, meter: &Meter<'_>) -> Attempt {
    let total = wanted.promise.size.or(part.identity.total);
    if total == Some(part.written()) && part.written() > 0 {
        return Ok((part, Ok(())));
    }
    let mut headers = HeaderMap::new();
    if part.written() > 0 {
        let range = format!("bytes={}-", part.written());
        headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits are a header's value"));
        let tag = part.identity.etag.as_deref().and_then(|t| HeaderValue::from_str(t).ok());
        tag.map(|t| headers.insert(IF_RANGE, t));
    }
    let request = Request { method: Method::GET, url: &wanted.url, headers, token: wanted.token };
    let answer = match client.send(&request).await {
        Ok(answer) => answer,
        Err(failure) => return Ok((part, Err(failure))),
    };
    for headers in &answer.headers {
        if let Err(error) = (wanted.inspect)(headers) {
            return Ok((part, Err(error.into())));
        }
    }
    match begin(client, wanted, &part, &answer) {
        Ok(Beginning::GoOn(identity)) => part.identity = identity,
        Ok(Beginning::Anew(identity)) => {
            meter.take_back(part.written());
            part.reset()?;
            part.identity = identity;
        }
        Err(failure) => {
            if matches!(failure, Failure::Passing(_)) {
                meter.take_back(part.written());
                part.reset()?;
            }
            return Ok((part, Err(failure)));
        }
    }
    receive(client, wanted, part, answer.response, meter).await
}

/// Where the bytes of an answer belong.
enum Beginning {
    /// After those that are there.
    GoOn(Identity),
    /// At the start.
    Anew(Identity),
}

/// Reads an answer's head. A passing failure means that what is there does not fit what the server has.
fn begin(client: &Client, wanted: &Wanted<'_>, part: &Part, answer: &Answer) -> Result<Beginning, Failure> {
    let response = &answer.response;
    let url = response.url();
    let total = match response.status() {
        StatusCode::OK => response.content_length(),
        StatusCode::PARTIAL_CONTENT if part.written() > 0 => {
            let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
            let Some((from, total)) = range.and_then(content_range) else {
                let reason = "it sends a part of the file and does not say which".to_owned();
                return Err(SourceError::Answer { url: said(url), reason }.into());
            };
            if from != part.written() || part.identity.total.is_some_and(|t| t != total) {
                return Err(Failure::passing(url, "it sends another part than was asked for".into()));
            }
            Some(total)
        }
        StatusCode::RANGE_NOT_SATISFIABLE if part.written() > 0 => {
            return Err(Failure::passing(url, "it has less than came before".into()));
        }
        _ => return Err((wanted.refuse)(answer).into()),
    };
    if let (Some(expected), Some(got)) = (wanted.promise.size, total)
        && expected != got
    {
        let file = wanted.name.clone();
        return Err(SourceError::WrongLength { file, expected, got: got.to_string() }.into());
    }
    let limit = client.limits.file_bytes_max;
    if wanted.promise.size.or(total).is_some_and(|t| t > limit) {
        return Err(SourceError::TooLarge { file: wanted.name.clone(), limit, unit: "bytes" }.into());
    }
    let etag = response.headers().get(ETAG).and_then(|v| v.to_str().ok());
    let strong = |t: &&str| t.starts_with('"') && t.len() <= ETAG_BYTES_MAX;
    let identity = Identity { etag: etag.filter(strong).map(str::to_owned), total };
    Ok(match response.status() {
        StatusCode::OK => Beginning::Anew(identity),
        _ => Beginning::GoOn(identity),
    })
}

/// The first byte and the length of the whole in `bytes FROM-TO/TOTAL`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, total): (u64, u64, u64) = (from.parse().ok()?, to.parse().ok()?, total.parse().ok()?);
    (from <= to && to < total).then_some((from, total))
}

/// Takes in a body, while what came before it is hashed and written.
async fn receive(
    client: &Client,
    wanted: &Wanted<'_>,
    part: Part,
    response: Response,
    meter: &Meter<'_>,
) -> Attempt {
    let url = response.url().clone();
    let total = wanted.promise.size.or(part.identity.total);
    let limit = total.unwrap_or(client.limits.file_bytes_max);
    let mut came = part.written();
    let mut writing: JoinHandle<Result<Part, SourceError>> = spawn_blocking(move || Ok(part));
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut stream = response.bytes_stream();
    let outcome = loop {
        match stream.next().await {
            Some(Ok(bytes)) if bytes.len() as u64 > limit - came => {
                let file = wanted.name.clone();
                break Err(Failure::Lasting(match total {
                    Some(expected) => SourceError::WrongLength { file, expected, got: "more".into() },
                    None => SourceError::TooLarge { file, limit, unit: "bytes" },
                }));
            }
            Some(Ok(bytes)) => {
                came += bytes.len() as u64;
                meter.add(bytes.len() as u64, total);
                piece.extend_from_slice(&bytes);
            }
            Some(Err(error)) => break Err(Failure::broken(&url, error)),
            None if total.is_some_and(|t| came < t) => {
                break Err(Failure::passing(&url, format!("it ended after {came} of {limit} bytes")));
            }
            None => break Ok(()),
        }
        if piece.len() >= PIECE_BYTES {
            let part = joined(writing).await?;
            let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE_BYTES));
            writing = spawn_blocking(move || part.append(&full));
        }
    };
    let mut part = joined(writing).await?;
    part = blocking(move || part.append(&piece)).await?;
    if let Err(Failure::Lasting(_)) = &outcome {
        part.reset()?;
    }
    Ok((part, outcome))
}

async fn joined<T>(task: JoinHandle<Result<T, SourceError>>) -> Result<T, SourceError> {
    match task.await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    joined(spawn_blocking(work)).await
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for wrong in [
            "bytes 5-10/10",
            "bytes 9-5/10",
            "bytes 5-9/*",
            "bytes */10",
            "5-9/10",
            "bytes 5-9",
            "bytes -9/10",
        ] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
