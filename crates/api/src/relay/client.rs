//! A gateway's side: reads offers, seals orders, opens the frames of answers.

use std::sync::Arc;
use std::time::Duration;

use assay_core::canonical::Canonical as _;
use assay_core::id::{ModelRoot, NodeAddress, SealingKey};
use assay_core::offer::SignedOffer;
use assay_core::payment::Payment;
use assay_core::text::TextOpening;
use serde::de::DeserializeOwned;

use super::seal::{Exchanges, Frames, SALT_BYTES, STOP_BYTES, Sent};
use super::{
    FRAME_BYTES_MAX, Frame, OFFER_JSON_BYTES_MAX, ORDER_S_MAX, RelayOrder, STOP, TEXT_JSON_BYTES_MAX, Work,
};
use crate::server::now_s;
use crate::traces;

/// Most bytes of a refusal that is not sealed.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Time in which a provider must accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time in which an offer must have come.
const OFFER: Duration = Duration::from_secs(10);
/// Time in which a provider must have heard that an answer is to end.
const ASKED: Duration = Duration::from_secs(5);
/// For how long an order is sealed.
const ORDER_S: u64 = 300;
const _: () = assert!(ORDER_S <= ORDER_S_MAX);

/// Where a provider is, and whom it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its URL, without a slash at the end.
    pub endpoint: String,
    /// Its node.
    pub provider: NodeAddress,
    /// The key of its offer.
    pub sealing_key: SealingKey,
}

/// Why an order was not answered. What a provider itself refuses is a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// It cannot be reached.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// It answered with a status instead of frames.
    #[error("{endpoint} answered {status}: {message}")]
    Status {
        /// Who.
        endpoint: String,
        /// HTTP's status.
        status: u16,
        /// What it said, shortened.
        message: String,
    },
    /// It has another sealing key now.
    #[error("{endpoint} has another sealing key now; its offer must be read again")]
    NotSealed {
        /// Who.
        endpoint: String,
    },
    /// The answer ended without a last frame.
    #[error("{endpoint} broke off its answer: {reason}")]
    Broken {
        /// Who.
        endpoint: String,
        /// How.
        reason: String,
    },
    /// The answer is not sealed under the order's key, or is no frame.
    #[error("{endpoint} sent something else than an answer: {reason}")]
    Malformed {
        /// Who.
        endpoint: String,
        /// What.
        reason: String,
    },
}

impl RelayError {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        match self {
            RelayError::Unreachable { .. } => "provider_unreachable",
            RelayError::Status { .. } => "provider_status",
            RelayError::NotSealed { .. } => "provider_key_changed",
            RelayError::Broken { .. } => "provider_broke_off",
            RelayError::Malformed { .. } => "provider_malformed",
        }
    }
}

/// Sends orders.
#[derive(Clone, Debug)]
pub struct RelayClient {
    http: reqwest::Client,
    exchanges: Arc<Exchanges>,
}

impl Default for RelayClient {
    fn default() -> Self {
        RelayClient::new()
    }
}

/// An answer on its way. Dropping it ends it too: who has answered may charge for what it sent.
pub struct Running {
    http: reqwest::Client,
    endpoint: String,
    /// Names the order to its provider.
    stop: [u8; STOP_BYTES],
    response: reqwest::Response,
    /// What has come and is not read yet.
    buffer: Vec<u8>,
    state: State,
}

enum State {
    /// The salt has not come.
    Salt(Sent),
    Frames(Frames),
    Over,
}

fn reason(e: &reqwest::Error) -> String {
    let mut reason = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        reason = cause.to_string();
        source = cause.source();
    }
    reason
}

impl RelayClient {
    /// Connections are kept open between orders; redirects are not followed. Needs a TLS provider to be installed.
    pub fn new() -> RelayClient {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true);
        let http = http.build().expect("TLS is installed before anything is sent");
        RelayClient { http, exchanges: Arc::default() }
    }

    /// A provider's offer, not yet verified.
    pub async fn offer(&self, endpoint: &str) -> Result<SignedOffer, RelayError> {
        self.get(endpoint, "/v1/offer", OFFER_JSON_BYTES_MAX).await
    }

    /// What a provider shows of a model's text, not yet verified.
    pub async fn text(&self, endpoint: &str, root: ModelRoot) -> Result<TextOpening, RelayError> {
        self.get(endpoint, &format!("/v1/texts/{root}"), TEXT_JSON_BYTES_MAX).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        path: &str,
        most: usize,
    ) -> Result<T, RelayError> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let sent = self.http.get(format!("{endpoint}{path}")).timeout(OFFER).send().await;
        let mut response =
            sent.map_err(|e| RelayError::Unreachable { endpoint: endpoint.clone(), reason: reason(&e) })?;
        let bytes = bounded(&endpoint, &mut response, most).await?;
        if !response.status().is_success() {
            return Err(status(endpoint, response.status().as_u16(), &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|e| RelayError::Malformed { endpoint, reason: e.to_string() })
    }

    /// Sends an order, with the voucher out of which it is paid. The answer's frames come by [`Running::frame`].
    pub async fn send(
        &self,
        to: &Destination,
        id: [u8; 16],
        request_id: String,
        payment: Option<Payment>,
        work: Work,
    ) -> Result<Running, RelayError> {
        let endpoint = to.endpoint.clone();
        let until_s = now_s().saturating_add(ORDER_S);
        let order = RelayOrder { id, until_s, request_id, payment, work };
        let exchange = self.exchanges.with(to.provider, to.sealing_key).map_err(|_| {
            RelayError::Malformed { endpoint: endpoint.clone(), reason: "its sealing key is no key".into() }
        })?;
        let (sealed, sent) = exchange.seal(&order.to_canonical_bytes());
        let mut post = self.http.post(format!("{endpoint}/v1/orders")).body(sealed);
        if let Some(parent) = traces::current().traceparent() {
            post = post.header(traces::TRACEPARENT, parent);
        }
        let posted = post.send().await;
        let mut response =
            posted.map_err(|e| RelayError::Unreachable { endpoint: endpoint.clone(), reason: reason(&e) })?;
        if !response.status().is_success() {
            let bytes = bounded(&endpoint, &mut response, REFUSAL_BYTES_MAX).await?;
            return Err(status(endpoint, response.status().as_u16(), &bytes));
        }
        let (http, stop) = (self.http.clone(), sent.stop());
        Ok(Running { http, endpoint, stop, response, buffer: Vec::new(), state: State::Salt(sent) })
    }
}

async fn bounded(
    endpoint: &str,
    response: &mut reqwest::Response,
    most: usize,
) -> Result<Vec<u8>, RelayError> {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if bytes.len() + chunk.len() <= most => bytes.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                let reason = format!("more than {most} bytes");
                return Err(RelayError::Malformed { endpoint: endpoint.to_owned(), reason });
            }
            Ok(None) => return Ok(bytes),
            Err(e) => return Err(RelayError::Broken { endpoint: endpoint.to_owned(), reason: reason(&e) }),
        }
    }
}

fn status(endpoint: String, status: u16, body: &[u8]) -> RelayError {
    let said = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    if said["error"]["code"] == "order_not_sealed" {
        return RelayError::NotSealed { endpoint };
    }
    let message = said["error"]["message"].as_str().unwrap_or_default().chars().take(500).collect();
    RelayError::Status { endpoint, status, message }
}

impl Running {
    /// The next frame; nothing after the last. May be dropped while it waits, and called again.
    pub async fn frame(&mut self) -> Result<Option<Frame>, RelayError> {
        loop {
            if let Some(frame) = self.buffered()? {
                if frame.is_last() {
                    self.state = State::Over;
                }
                return Ok(Some(frame));
            }
            if matches!(self.state, State::Over) {
                return Ok(None);
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Err(self.broken("the connection ended".into())),
                Err(e) => return Err(self.broken(reason(&e))),
            }
        }
    }

    /// Asks the provider to end the answer with the token that it is at. Its frames go on until the last one, which is read like any other's.
    pub async fn stop(&self) -> Result<(), RelayError> {
        let endpoint = self.endpoint.clone();
        let post = self.http.post(format!("{endpoint}{STOP}")).body(self.stop.to_vec());
        let posted = post.timeout(ASKED).send().await;
        let mut response =
            posted.map_err(|e| RelayError::Unreachable { endpoint: endpoint.clone(), reason: reason(&e) })?;
        if response.status().is_success() {
            return Ok(());
        }
        let bytes = bounded(&endpoint, &mut response, REFUSAL_BYTES_MAX).await?;
        Err(status(endpoint, response.status().as_u16(), &bytes))
    }

    fn broken(&mut self, reason: String) -> RelayError {
        self.state = State::Over;
        RelayError::Broken { endpoint: self.endpoint.clone(), reason }
    }

    fn malformed(&mut self, reason: String) -> RelayError {
        self.state = State::Over;
        RelayError::Malformed { endpoint: self.endpoint.clone(), reason }
    }

    /// A frame of what has come, if it is all there.
    fn buffered(&mut self) -> Result<Option<Frame>, RelayError> {
        if let State::Salt(sent) = &self.state {
            let Some(salt) = self.buffer.first_chunk::<SALT_BYTES>() else { return Ok(None) };
            self.state = State::Frames(sent.frames(salt));
            self.buffer.drain(..SALT_BYTES);
        }
        let State::Frames(frames) = &mut self.state else { return Ok(None) };
        let Some((length, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(self.malformed(format!("a frame of {length} bytes")));
        }
        let Some(sealed) = rest.get(..length) else { return Ok(None) };
        let opened = frames.open(sealed);
        self.buffer.drain(..4 + length);
        let opened = opened.map_err(|e| self.malformed(e.to_string()))?;
        Frame::from_canonical_bytes(&opened).map(Some).map_err(|e| self.malformed(e.to_string()))
    }
}
