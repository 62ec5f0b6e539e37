//! What an auditor asks a provider for, and gets: the leaves of a posted batch, and the records of receipts that it was drawn to execute
//! (`docs/daemons.md`).
//!
//! `POST /v1/audits`: the body is a [`SignedAuditRequest`] in canonical bytes; the answer is an [`AuditAnswer`] in canonical bytes, sealed as orders are
//! ([`crate::relay`]) to a key that the request brings along and that the auditor draws for it alone. Invariant: only who signed the request can read the
//! answer. It says nothing of whether the auditor was drawn: that is for the provider to look up.

use std::time::Duration;

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot, NodeAddress, SealingKey, SignatureBytes};
use assay_core::signature::signer;
use borsh::{BorshDeserialize, BorshSerialize};

use crate::relay::seal::{Exchange, Unsealer};
use crate::server::now_s;

/// Most bytes of a request: [`RECORDS_ASKED_MAX`] numbers and what stands around them.
pub const AUDIT_REQUEST_BYTES_MAX: usize = 16 << 10;
/// Most bytes of a sealed answer: one record of the largest kind, or a page of smaller ones.
pub const AUDIT_ANSWER_BYTES_MAX: usize = 40 << 20;
/// Bytes of records after which a page ends.
pub const PAGE_BYTES: usize = 8 << 20;
/// Most leaves of one answer.
pub const LEAVES_MAX: u32 = 4096;
/// Most records that one request asks for.
pub const RECORDS_ASKED_MAX: usize = 1024;
/// By how much the clocks of auditor and provider may differ, in seconds.
pub const SKEW_S: u64 = 900;
/// Time in which a provider must accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time in which an answer must have come.
const ANSWER: Duration = Duration::from_secs(120);
/// Most bytes of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Wanted {
    /// The leaves of the batch from this sequence number on.
    Leaves {
        /// The first.
        from: u64,
    },
    /// Records, by rising sequence numbers.
    Records(Vec<u64>),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AuditRequest {
    /// Who is asked.
    pub provider: NodeAddress,
    /// Who asks.
    pub auditor: NodeAddress,
    /// Of which batch.
    pub epoch: u64,
    /// For what.
    pub wanted: Wanted,
    /// What the answer is sealed to.
    pub key: SealingKey,
    /// When it was signed, in seconds since 1970.
    pub time_s: u64,
}

impl Canonical for AuditRequest {
    const TAG: &'static str = "assay/audit-request/1";
    const BYTES_MAX: usize = AUDIT_REQUEST_BYTES_MAX;
}

/// A request with the auditor's signature over its canonical hash.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedAuditRequest {
    /// What was signed.
    pub request: AuditRequest,
    /// By the auditor's node key.
    pub signature: SignatureBytes,
}

impl Canonical for SignedAuditRequest {
    const TAG: &'static str = "assay/signed-audit-request/1";
    const BYTES_MAX: usize = AUDIT_REQUEST_BYTES_MAX;
}

/// What stands at a sequence number of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AuditLeaf {
    /// The epoch in which the receipt was signed.
    pub epoch: u64,
    /// Its fee.
    pub fee_micro_usd: u64,
    /// Its model.
    pub model_root: ModelRoot,
    /// What its signature signs.
    pub signing_hash: Hash,
}

/// An answer. It may have less than was asked for: who wants the rest asks again.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum AuditAnswer {
    /// Leaves, one for each number; none where nothing was signed.
    Leaves(Vec<Option<AuditLeaf>>),
    /// Canonical bytes of records, in the order in which they were asked for.
    Records(Vec<Vec<u8>>),
}

impl Canonical for AuditAnswer {
    const TAG: &'static str = "assay/audit-answer/1";
    const BYTES_MAX: usize = AUDIT_ANSWER_BYTES_MAX;
}

/// Why a request is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditRequestError {
    /// The body is no request.
    #[error("the body is no request for an audit: {reason}")]
    Malformed {
        /// What the reader says.
        reason: String,
    },
    /// It is for another provider.
    #[error("the request is to {got}, and this is {expected}")]
    OtherProvider {
        /// Who this is.
        expected: NodeAddress,
        /// Whom it is to.
        got: NodeAddress,
    },
    /// Its signature is not the auditor's.
    #[error("the request must be signed by the key of {auditor}")]
    Signature {
        /// Who asks.
        auditor: NodeAddress,
    },
    /// It was signed too long ago, or is from the future.
    #[error("the request was signed at {time_s}, and it is {now_s}: clocks may differ by {SKEW_S} seconds")]
    Time {
        /// When it was signed.
        time_s: u64,
        /// When it came.
        now_s: u64,
    },
    /// It asks for too much.
    #[error("the request asks for {got} records; at most {RECORDS_ASKED_MAX}, by rising numbers")]
    TooMany {
        /// How many.
        got: usize,
    },
}

impl AuditRequestError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            AuditRequestError::Malformed { .. } => "audit_malformed",
            AuditRequestError::OtherProvider { .. } => "audit_other_provider",
            AuditRequestError::Signature { .. } => "audit_signature",
            AuditRequestError::Time { .. } => "audit_time",
            AuditRequestError::TooMany { .. } => "audit_too_many",
        }
    }
}

impl SignedAuditRequest {
    /// The request in a body, if it is to `provider`, of now, and signed by who asks.
    pub fn read(body: &[u8], provider: NodeAddress, now_s: u64) -> Result<AuditRequest, AuditRequestError> {
        let signed = SignedAuditRequest::from_canonical_bytes(body)
            .map_err(|e| AuditRequestError::Malformed { reason: e.to_string() })?;
        let request = signed.request;
        if request.provider != provider {
            return Err(AuditRequestError::OtherProvider { expected: provider, got: request.provider });
        }
        if request.time_s.abs_diff(now_s) > SKEW_S {
            return Err(AuditRequestError::Time { time_s: request.time_s, now_s });
        }
        if signer(&request.canonical_hash(), &signed.signature) != Some(request.auditor) {
            return Err(AuditRequestError::Signature { auditor: request.auditor });
        }
        if let Wanted::Records(numbers) = &request.wanted
            && (numbers.len() > RECORDS_ASKED_MAX
                || numbers.windows(2).any(|w| matches!(w, [a, b] if a >= b)))
        {
            return Err(AuditRequestError::TooMany { got: numbers.len() });
        }
        Ok(request)
    }
}

/// Seals an answer to the key of its request. `None` if that is no key.
pub fn seal_answer(request: &AuditRequest, answer: &AuditAnswer) -> Option<Vec<u8>> {
    let exchange = Exchange::begin(request.auditor, request.key).ok()?;
    Some(exchange.seal(&answer.to_canonical_bytes()).0)
}

/// Why a provider did not give what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The request could not be signed.
    #[error("the request could not be signed")]
    Signing,
    /// It cannot be reached.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// It refused.
    #[error("{endpoint} answered {status}: {message}")]
    Refused {
        /// Who.
        endpoint: String,
        /// HTTP's status.
        status: u16,
        /// What it said, shortened.
        message: String,
    },
    /// It sent something else.
    #[error("{endpoint} sent something else than an answer: {reason}")]
    Malformed {
        /// Who.
        endpoint: String,
        /// What.
        reason: String,
    },
}

impl AuditError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            AuditError::Signing => "audit_unsigned",
            AuditError::Unreachable { .. } => "provider_unreachable",
            AuditError::Refused { .. } => "provider_refused",
            AuditError::Malformed { .. } => "provider_malformed",
        }
    }
}

/// Asks providers.
#[derive(Clone, Debug)]
pub struct AuditClient {
    http: reqwest::Client,
}

impl Default for AuditClient {
    fn default() -> Self {
        AuditClient::new()
    }
}

impl AuditClient {
    /// Redirects are not followed. Needs a TLS provider to be installed.
    pub fn new() -> AuditClient {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER);
        AuditClient { http: http.build().expect("TLS is installed before anything is sent") }
    }

    /// Asks a provider at `endpoint`; `sign` signs a hash with the auditor's node key.
    pub async fn ask(
        &self,
        endpoint: &str,
        provider: NodeAddress,
        auditor: NodeAddress,
        epoch: u64,
        wanted: Wanted,
        sign: &(dyn Fn(&Hash) -> Option<SignatureBytes> + Sync),
    ) -> Result<AuditAnswer, AuditError> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let unsealer = Unsealer::draw(auditor);
        let request =
            AuditRequest { provider, auditor, epoch, wanted, key: unsealer.public(), time_s: now_s() };
        let signature = sign(&request.canonical_hash()).ok_or(AuditError::Signing)?;
        let body = SignedAuditRequest { request, signature }.to_canonical_bytes();
        let bytes = post(&self.http, &endpoint, "/v1/audits", body, AUDIT_ANSWER_BYTES_MAX).await?;
        let malformed = |reason: String| AuditError::Malformed { endpoint: endpoint.clone(), reason };
        let (answer, _) = unsealer.open(&bytes).map_err(|e| malformed(e.to_string()))?;
        AuditAnswer::from_canonical_bytes(&answer).map_err(|e| malformed(e.to_string()))
    }
}

/// What an endpoint without a slash at its end answers to a body, of at most so many bytes.
pub(crate) async fn post(
    http: &reqwest::Client,
    endpoint: &str,
    path: &str,
    body: Vec<u8>,
    bytes_max: usize,
) -> Result<Vec<u8>, AuditError> {
    let endpoint = endpoint.to_owned();
    let unreachable = |e: reqwest::Error| AuditError::Unreachable {
        endpoint: endpoint.clone(),
        reason: e.without_url().to_string(),
    };
    let sent = http.post(format!("{endpoint}{path}")).body(body).send().await;
    let mut response = sent.map_err(unreachable)?;
    let status = response.status();
    let most = if status.is_success() { bytes_max } else { REFUSAL_BYTES_MAX };
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if bytes.len() + chunk.len() > most {
            return Err(AuditError::Malformed { endpoint, reason: format!("more than {most} bytes") });
        }
        bytes.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        let said = serde_json::from_slice::<serde_json::Value>(&bytes).unwrap_or_default();
        let message = said["error"]["message"].as_str().unwrap_or_default().chars().take(500).collect();
        return Err(AuditError::Refused { endpoint, status: status.as_u16(), message });
    }
    Ok(bytes)
}
