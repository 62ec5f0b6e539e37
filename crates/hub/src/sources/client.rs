//! Requests: redirects that are followed by rule, retries with patience, and a token that goes to one server only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::address::{PlainHttp, follow, is_loopback, permit, said};
use super::error::SourceError;

/// What a server may make us take in.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of a file.
    pub file_bytes_max: u64,
    /// Most bytes of a list of files.
    pub list_bytes_max: u64,
    /// Most redirects of a request.
    pub redirects_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { file_bytes_max: 1 << 40, list_bytes_max: 64 << 20, redirects_max: 8 }
    }
}

/// How patient a fetch is.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Attempts before giving up, unless bytes arrived in between.
    pub attempts_max: u32,
    /// Wait after the first failure; it doubles with each that follows.
    pub backoff: Duration,
    /// Longest wait between two attempts. A server that asks for a longer one is given up.
    pub wait_max: Duration,
    /// How long a connection may be silent.
    pub silence_max: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            attempts_max: 6,
            backoff: Duration::from_millis(500),
            wait_max: Duration::from_secs(120),
            silence_max: Duration::from_secs(60),
        }
    }
}

/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// Fetches from sources into folders below one folder.
pub struct Client {
    pub(super) pulls: PathBuf,
    pub(super) limits: Limits,
    pub(super) pace: Pace,
    pub(super) plain: PlainHttp,
    direct: reqwest::Client,
    proxied: reqwest::Client,
}

/// A request whose answer may come by redirects.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    /// Sent to the first server, and to nobody that it redirects to.
    pub(super) token: Option<&'a HeaderValue>,
}

/// The last answer, and the headers of every answer that the server asked gave on the way, the last one's included if it is its.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) headers: Vec<HeaderMap>,
    /// Whether another server than the one asked gave the last answer.
    pub(super) elsewhere: bool,
}

/// What went wrong with one attempt.
pub(super) enum Failure {
    /// Another attempt would go the same way.
    Lasting(SourceError),
    /// Another attempt may succeed.
    Passing(Passing),
}

/// A failure after which another attempt may succeed.
pub(super) struct Passing {
    pub(super) url: String,
    pub(super) status: Option<u16>,
    pub(super) reason: String,
    pub(super) wait: Option<Duration>,
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Failure {
        Failure::Lasting(error)
    }
}

impl Failure {
    /// A connection that could not be made, or broke.
    pub(super) fn broken(url: &Url, error: reqwest::Error) -> Failure {
        // The innermost cause is what happened; what is around it repeats the address.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure::passing(url, cause.to_string())
    }

    pub(super) fn passing(url: &Url, reason: String) -> Failure {
        Failure::Passing(Passing { url: said(url), status: None, reason, wait: None })
    }
}

impl Client {
    /// A client that keeps what it fetches, and parts of it, below `pulls`.
    ///
    /// # Panics
    ///
    /// If no provider was installed for rustls.
    pub fn new(pulls: &Path, plain: PlainHttp, limits: Limits, pace: Pace) -> Client {
        let build = || {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_MAX)
                .read_timeout(pace.silence_max)
                .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
        };
        let built = "TLS has a provider, and nothing else of this can fail";
        Client {
            pulls: pulls.to_owned(),
            limits,
            direct: build().no_proxy().build().expect(built),
            proxied: build().build().expect(built),
            pace,
            plain,
        }
    }

    /// Sends a request and follows where it leads.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        permit(request.url, self.plain)?;
        let (mut url, mut headers, mut elsewhere) = (request.url.clone(), Vec::new(), false);
        for _ in 0..=self.limits.redirects_max {
            // No proxy leads to this machine.
            let client = if is_loopback(&url) { &self.direct } else { &self.proxied };
            let mut sent =
                client.request(request.method.clone(), url.clone()).headers(request.headers.clone());
            sent = sent.header(ACCEPT_ENCODING, "identity");
            if let Some(token) = request.token.filter(|_| !elsewhere) {
                sent = sent.header(AUTHORIZATION, token);
            }
            let response = sent.send().await.map_err(|e| Failure::broken(&url, e))?;
            if !elsewhere {
                headers.push(response.headers().clone());
            }
            let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = response.headers().get(LOCATION).filter(|_| redirects) else {
                return self.last(response, headers, elsewhere);
            };
            let to = follow(&url, location.to_str().unwrap_or("…"), self.plain)?;
            // A server that redirects back gets no token either: somebody else chose what is asked of it.
            elsewhere |= to.origin() != request.url.origin();
            url = to;
        }
        let reason = format!("more than {} redirects", self.limits.redirects_max);
        Err(SourceError::Redirect { from: said(request.url), to: said(&url), reason }.into())
    }

    /// Sorts out answers after which it may be tried again.
    fn last(&self, response: Response, headers: Vec<HeaderMap>, elsewhere: bool) -> Result<Answer, Failure> {
        let status = response.status();
        // A store that a Hub redirects to refuses signatures that became too old: the Hub gives out new ones.
        let stale = elsewhere && status == StatusCode::FORBIDDEN;
        if status.is_server_error() || matches!(status.as_u16(), 408 | 429) || stale {
            let asked =
                response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
            return Err(Failure::Passing(Passing {
                url: said(response.url()),
                status: Some(status.as_u16()),
                reason: format!("it answers {status}"),
                wait: asked.map(Duration::from_secs),
            }));
        }
        let coding = response.headers().get(CONTENT_ENCODING);
        if coding.is_some_and(|c| c != "identity") {
            let reason = "it compresses its answer though it was asked not to".to_owned();
            return Err(SourceError::Answer { url: said(response.url()), reason }.into());
        }
        Ok(Answer { response, headers, elsewhere })
    }

    /// A small answer as a whole, by as many attempts as patience allows. `refuse` says what a status above 399 means.
    pub(super) async fn small(
        &self,
        request: &Request<'_>,
        bytes_max: u64,
        refuse: &(dyn Fn(&Answer) -> SourceError + Sync),
    ) -> Result<(Vec<HeaderMap>, Vec<u8>), SourceError> {
        let mut patience = Patience::new(&self.pace);
        loop {
            let failure = match self.send(request).await {
                Ok(answer) if answer.response.status() != StatusCode::OK => return Err(refuse(&answer)),
                Ok(answer) => match whole(answer.response, bytes_max).await {
                    Ok(bytes) => return Ok((answer.headers, bytes)),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            match failure {
                Failure::Lasting(error) => return Err(error),
                Failure::Passing(passing) => patience.wait(passing).await?,
            }
        }
    }
}

async fn whole(response: Response, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let url = response.url().clone();
    let (mut bytes, mut stream) = (Vec::new(), response.bytes_stream());
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|e| Failure::broken(&url, e))?;
        if (bytes.len() + piece.len()) as u64 > bytes_max {
            let error = SourceError::TooLarge { file: said(&url), limit: bytes_max, unit: "bytes" };
            return Err(error.into());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// How often it is still tried.
pub(super) struct Patience<'a> {
    pace: &'a Pace,
    failures: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(pace: &'a Pace) -> Patience<'a> {
        Patience { pace, failures: 0 }
    }

    /// Bytes came: what failed before does not count.
    pub(super) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Waits for the next attempt, or gives up.
    pub(super) async fn wait(&mut self, passing: Passing) -> Result<(), SourceError> {
        self.failures += 1;
        let doubled = self.pace.backoff.saturating_mul(1 << (self.failures - 1).min(16));
        let wait = passing.wait.unwrap_or_default().max(doubled.min(self.pace.wait_max));
        if self.failures >= self.pace.attempts_max || wait > self.pace.wait_max {
            let Passing { url, status, reason, wait } = passing;
            return Err(match status {
                Some(status) => SourceError::Busy { url, status, wait },
                None => SourceError::Unreachable { url, reason, attempts: self.failures },
            });
        }
        tracing::debug!(url = passing.url, reason = passing.reason, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
