//! As much of an HTTP/1.1 client as fetches and the exchange of records need: one request at a time on a connection, answers with a length, bodies read
//! straight into the caller's buffers. It refuses what it would have to guess about: chunked bodies, encodings, redirects, heads
//! beyond the limits.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{FetchOptions, PeerFault};
use crate::limits::{BODY_BYTES_PER_S_MIN, HEAD_BYTES_MAX, HEADERS_MAX, INTERIM_ANSWERS_MAX};
use crate::peer::{Dialer, Io, PeerAddress};

pub(crate) struct Connection {
    io: Box<dyn Io>,
    /// What came behind the head.
    rest: Vec<u8>,
    body_left: u64,
    reusable: bool,
}

/// The head of an answer.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) length: Option<u64>,
    pub(crate) content_range: Option<String>,
    pub(crate) retry_after_s: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
}

fn bad(what: &'static str) -> PeerFault {
    PeerFault::BadAnswer { what }
}

impl Connection {
    pub(crate) async fn open(
        dialer: &Dialer,
        address: &PeerAddress,
        options: &FetchOptions,
    ) -> Result<Connection, PeerFault> {
        let io = timeout(options.connect_timeout, dialer.dial(address)).await;
        let io = io.map_err(|_| PeerFault::Unreachable { why: "no connection in time".into() })?;
        let io = io.map_err(|why| PeerFault::Unreachable { why })?;
        Ok(Connection { io, rest: Vec::new(), body_left: 0, reusable: true })
    }

    /// Whether another request can follow.
    pub(crate) fn is_reusable(&self) -> bool {
        self.reusable && self.body_left == 0
    }

    pub(crate) fn body_left(&self) -> u64 {
        self.body_left
    }

    /// Sends a request and reads the head of its answer. `range` is a first and a last byte.
    pub(crate) async fn request(
        &mut self,
        address: &PeerAddress,
        method: Method,
        path: &str,
        range: Option<(u64, u64)>,
        options: &FetchOptions,
    ) -> Result<Head, PeerFault> {
        let range = range.map(|(a, b)| format!("Range: bytes={a}-{b}\r\n")).unwrap_or_default();
        self.exchange(address, method, path, &range, &[], options).await
    }

    /// Posts JSON and reads the head of the answer.
    pub(crate) async fn post(
        &mut self,
        address: &PeerAddress,
        path: &str,
        json: &[u8],
        options: &FetchOptions,
    ) -> Result<Head, PeerFault> {
        let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", json.len());
        self.exchange(address, Method::Post, path, &headers, json, options).await
    }

    async fn exchange(
        &mut self,
        address: &PeerAddress,
        method: Method,
        path: &str,
        headers: &str,
        body: &[u8],
        options: &FetchOptions,
    ) -> Result<Head, PeerFault> {
        self.reusable = false;
        let verb = match method {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
        };
        let request = format!(
            "{verb} {}{path} HTTP/1.1\r\nHost: {}\r\nAccept-Encoding: identity\r\nUser-Agent: assay\r\n{headers}\r\n",
            address.base(),
            address.authority(),
        );
        let exchange = async {
            self.io.write_all(request.as_bytes()).await.map_err(PeerFault::broken)?;
            self.io.write_all(body).await.map_err(PeerFault::broken)?;
            self.io.flush().await.map_err(PeerFault::broken)?;
            for _ in 0..=INTERIM_ANSWERS_MAX {
                let head = self.head().await?;
                if head.status == 101 {
                    return Err(bad("it changes the protocol"));
                }
                if head.status >= 200 {
                    return Ok(head);
                }
            }
            Err(bad("too many interim answers"))
        };
        let head = timeout(options.head_timeout, exchange).await;
        let head = head.map_err(|_| PeerFault::Broken { why: "no answer in time".into() })??;
        if (300..400).contains(&head.status) {
            return Err(PeerFault::Redirected);
        }
        self.body_left = match (method, head.length) {
            (Method::Head, _) => 0,
            (_, Some(length)) => length,
            (_, None) if head.status == 204 => 0,
            (_, None) => return Err(bad("no length")),
        };
        Ok(head)
    }

    async fn head(&mut self) -> Result<Head, PeerFault> {
        loop {
            if !self.rest.is_empty()
                && let Some((used, head, reusable)) = parse(&self.rest)?
            {
                self.rest.drain(..used);
                self.reusable = reusable;
                return Ok(head);
            }
            if self.rest.len() >= HEAD_BYTES_MAX {
                return Err(bad("the head is too long"));
            }
            let mut part = [0; 2048];
            let most = part.len().min(HEAD_BYTES_MAX - self.rest.len());
            let got = self.io.read(&mut part[..most]).await.map_err(PeerFault::broken)?;
            if got == 0 {
                return Err(PeerFault::Broken { why: "the connection ended before an answer".into() });
            }
            self.rest.extend_from_slice(&part[..got]);
        }
    }

    /// Reads some of the body into `buffer`; how much. An end before the length is an error.
    pub(crate) async fn read(
        &mut self,
        buffer: &mut [u8],
        options: &FetchOptions,
    ) -> Result<usize, PeerFault> {
        let most = buffer.len().min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..most];
        if buffer.is_empty() {
            return Ok(0);
        }
        let got = if self.rest.is_empty() {
            let got = timeout(options.stall_timeout, self.io.read(buffer)).await;
            got.map_err(|_| PeerFault::Stalled)?.map_err(PeerFault::broken)?
        } else {
            let got = self.rest.len().min(buffer.len());
            buffer[..got].copy_from_slice(&self.rest[..got]);
            self.rest.drain(..got);
            got
        };
        if got == 0 {
            return Err(PeerFault::Broken { why: "the connection ended within a body".into() });
        }
        self.body_left -= got as u64;
        Ok(got)
    }

    /// The whole body, if it has at most `most` bytes.
    pub(crate) async fn body(&mut self, most: u64, options: &FetchOptions) -> Result<Vec<u8>, PeerFault> {
        if self.body_left > most {
            return Err(bad("the body is longer than it may be"));
        }
        // One that sends a byte now and then is never silent.
        let limit = options.stall_timeout + Duration::from_secs(self.body_left / BODY_BYTES_PER_S_MIN);
        let whole = async {
            let mut body = vec![0; self.body_left as usize];
            let mut filled = 0;
            while filled < body.len() {
                filled += self.read(&mut body[filled..], options).await?;
            }
            Ok(body)
        };
        timeout(limit, whole).await.map_err(|_| PeerFault::Stalled)?
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(usize, Head, bool)>, PeerFault> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let used = match response.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(bad("it is not HTTP/1.1")),
    };
    let mut head = Head { status: response.code.unwrap_or_default(), ..Head::default() };
    let mut reusable = response.version == Some(1);
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| bad("a header is not text"))?.trim();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                let length = value.parse().ok().filter(|_| digits).ok_or(bad("its length is no number"))?;
                if head.length.replace(length).is_some_and(|other| other != length) {
                    return Err(bad("two lengths"));
                }
            }
            "transfer-encoding" => return Err(bad("a transfer encoding instead of a length")),
            "content-encoding" if !value.eq_ignore_ascii_case("identity") => return Err(PeerFault::Encoded),
            "content-range" => head.content_range = Some(value.to_owned()),
            "retry-after" => head.retry_after_s = value.parse().ok(),
            "connection" if value.to_ascii_lowercase().contains("close") => reusable = false,
            _ => {}
        }
    }
    Ok(Some((used, head, reusable)))
}

#[cfg(test)]
mod tests;
