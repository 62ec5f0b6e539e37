//! What whoever holds receipts asks their provider for: the leaf that it posted at a receipt's sequence number, and the path by which that stands under
//! the root on the ledger (`docs/daemons.md`).
//!
//! `POST /v1/leaves`: the body is a [`LeavesRequest`] in canonical bytes, the answer a [`LeavesAnswer`] likewise. Anyone may ask: a leaf is a hash, which says
//! nothing to who does not have its receipt. Neither is signed. Invariant: what an answer says is worth nothing until it was checked against the root that
//! the ledger has, and once it was, it is worth the same whoever brought it.

use std::time::Duration;

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, NodeAddress};
use borsh::{BorshDeserialize, BorshSerialize};

use crate::audits::{AuditError, post};

/// Most numbers of one request: each costs its provider a block of leaves that is read and hashed.
pub const NUMBERS_MAX: usize = 64;
/// Most nodes of a path that is taken: a batch has at most 2²⁴ leaves.
pub const PATH_MAX: usize = 24;
/// Most bytes of a request.
pub const LEAVES_REQUEST_BYTES_MAX: usize = 1 << 10;
/// Most bytes of an answer: [`NUMBERS_MAX`] leaves with paths of [`PATH_MAX`] nodes have less.
pub const LEAVES_ANSWER_BYTES_MAX: usize = 64 << 10;
/// Time in which a provider must accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time in which an answer must have come.
const ANSWER: Duration = Duration::from_secs(30);

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LeavesRequest {
    /// Who is asked.
    pub provider: NodeAddress,
    /// Of which batch.
    pub epoch: u64,
    /// Sequence numbers in it, 1 to [`NUMBERS_MAX`], rising.
    pub numbers: Vec<u64>,
}

impl Canonical for LeavesRequest {
    const TAG: &'static str = "assay/leaves-request/1";
    const BYTES_MAX: usize = LEAVES_REQUEST_BYTES_MAX;
}

/// A leaf with its path. Index and count of the proof follow from the batch on the ledger.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PostedLeaf {
    /// Its hash (protocol 11.2).
    pub leaf: Hash,
    /// Siblings from the leaf upwards.
    pub path: Vec<Hash>,
}

/// An answer: for each number, in the order in which they were asked for.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LeavesAnswer {
    /// The leaves.
    pub leaves: Vec<PostedLeaf>,
}

impl Canonical for LeavesAnswer {
    const TAG: &'static str = "assay/leaves-answer/1";
    const BYTES_MAX: usize = LEAVES_ANSWER_BYTES_MAX;
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeavesRequestError {
    /// The body is no request.
    #[error("the body is no request for leaves: {reason}")]
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
    /// It asks for nothing, for too much, or for the same twice.
    #[error("the request asks for {got} leaves; 1 to {NUMBERS_MAX}, by rising numbers")]
    Numbers {
        /// How many.
        got: usize,
    },
}

impl LeavesRequestError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            LeavesRequestError::Malformed { .. } => "leaves_malformed",
            LeavesRequestError::OtherProvider { .. } => "leaves_other_provider",
            LeavesRequestError::Numbers { .. } => "leaves_numbers",
        }
    }
}

impl LeavesRequest {
    /// The request in a body, if it is to `provider` and asks for as much as it may.
    pub fn read(body: &[u8], provider: NodeAddress) -> Result<LeavesRequest, LeavesRequestError> {
        let request = LeavesRequest::from_canonical_bytes(body)
            .map_err(|e| LeavesRequestError::Malformed { reason: e.to_string() })?;
        if request.provider != provider {
            return Err(LeavesRequestError::OtherProvider { expected: provider, got: request.provider });
        }
        let got = request.numbers.len();
        let rising = request.numbers.windows(2).all(|w| matches!(w, [a, b] if a < b));
        if got == 0 || got > NUMBERS_MAX || !rising {
            return Err(LeavesRequestError::Numbers { got });
        }
        Ok(request)
    }
}

/// Asks providers for leaves.
#[derive(Clone, Debug)]
pub struct LeavesClient {
    http: reqwest::Client,
}

impl Default for LeavesClient {
    fn default() -> Self {
        LeavesClient::new()
    }
}

impl LeavesClient {
    /// Redirects are not followed. Needs a TLS provider to be installed.
    pub fn new() -> LeavesClient {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER);
        LeavesClient { http: http.build().expect("TLS is installed before anything is sent") }
    }

    /// Asks a provider at `endpoint`. As many leaves as numbers, none with a longer path than any batch has; unchecked otherwise.
    pub async fn ask(&self, endpoint: &str, request: &LeavesRequest) -> Result<Vec<PostedLeaf>, AuditError> {
        let endpoint = endpoint.trim_end_matches('/');
        let body = request.to_canonical_bytes();
        let bytes = post(&self.http, endpoint, "/v1/leaves", body, LEAVES_ANSWER_BYTES_MAX).await?;
        let malformed = |reason: String| AuditError::Malformed { endpoint: endpoint.to_owned(), reason };
        let answer = LeavesAnswer::from_canonical_bytes(&bytes).map_err(|e| malformed(e.to_string()))?;
        let (got, expected) = (answer.leaves.len(), request.numbers.len());
        if got != expected {
            return Err(malformed(format!("{got} leaves for {expected} numbers")));
        }
        if answer.leaves.iter().any(|leaf| leaf.path.len() > PATH_MAX) {
            return Err(malformed("a path that no batch has".into()));
        }
        Ok(answer.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_at_their_limits_and_not_past_them() {
        let provider = NodeAddress::from_bytes([1; 20]);
        let of = |provider, count: u64| {
            let numbers = (0..count).collect();
            LeavesRequest { provider, epoch: 7, numbers }.to_canonical_bytes()
        };
        let code = |body: &[u8]| LeavesRequest::read(body, provider).map_err(|e| e.code());
        let most = NUMBERS_MAX as u64;
        assert_eq!(code(&of(provider, most)).unwrap().numbers.len(), NUMBERS_MAX);
        assert_eq!(code(&of(provider, most + 1)), Err("leaves_numbers"));
        assert_eq!(code(&of(provider, 0)), Err("leaves_numbers"));
        let twice = LeavesRequest { provider, epoch: 7, numbers: vec![3, 3] };
        assert_eq!(code(&twice.to_canonical_bytes()), Err("leaves_numbers"));
        assert_eq!(code(&of(NodeAddress::ZERO, 1)), Err("leaves_other_provider"));
        for cut in 0..of(provider, 2).len() {
            assert_eq!(code(&of(provider, 2)[..cut]), Err("leaves_malformed"), "{cut} bytes");
        }
    }

    #[test]
    fn the_largest_answer_fits() {
        let leaf = PostedLeaf { leaf: Hash::ZERO, path: vec![Hash::ZERO; PATH_MAX] };
        let bytes = LeavesAnswer { leaves: vec![leaf; NUMBERS_MAX] }.to_canonical_bytes();
        assert!(LeavesAnswer::from_canonical_bytes(&bytes).is_ok(), "{} bytes", bytes.len());
    }
}
