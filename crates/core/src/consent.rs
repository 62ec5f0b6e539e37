//! The client's consent to audits: whether a request may be shown to auditors, and how that is shown without the request.
//!
//! The first leaf of a request's hash is its tag, the model root and the consent (`docs/protocol.md`, 4), so that receipts commit to it and the
//! leaf, which says nothing of the prompt, is shown alone. Invariant: under one request hash one consent can be shown. What an
//! opening does not say is anything about the prompt beyond hashes, which who guesses the whole prompt can check his guess by.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use crate::embedding::EmbeddingRequest;
use crate::id::{ModelRoot, RequestHash};
use crate::merkle::{self, Proof};
use crate::receipt::{ReceiptError, SignedReceipt};
use crate::request::Request;

/// Leaves of the hash of a request for an answer.
pub const REQUEST_LEAVES: u64 = 5;
/// Leaves of the hash of a request for vectors.
pub const EMBEDDING_REQUEST_LEAVES: u64 = 2;

/// What a client agrees to.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Consent {
    /// Nobody but the provider is to see the request.
    Withheld,
    /// Auditors that the beacon draws may see it, and execute it again.
    Given,
}

impl Consent {
    fn byte(self) -> u8 {
        match self {
            Consent::Withheld => 0,
            Consent::Given => 1,
        }
    }

    /// The first leaf of the hash of a request with `tag`, in bytes.
    pub(crate) fn item(self, tag: &str, model: ModelRoot) -> Vec<u8> {
        let mut item = tag.as_bytes().to_vec();
        item.extend_from_slice(model.as_bytes());
        item.push(self.byte());
        item
    }

    /// The model and the consent of a request with `tag`, from the first leaf of its hash; nothing if that is another one.
    pub(crate) fn read(item: &[u8], tag: &str) -> Option<(ModelRoot, Consent)> {
        let (last, rest) = item.strip_prefix(tag.as_bytes())?.split_last()?;
        let consent = match last {
            0 => Consent::Withheld,
            1 => Consent::Given,
            _ => return None,
        };
        Some((ModelRoot::from_bytes(rest.try_into().ok()?), consent))
    }

    /// Whether `proof` shows that the request with this hash, for this model, says so. The number of leaves says of which kind it is.
    pub fn is_shown(self, proof: &Proof, request: &RequestHash, model: ModelRoot) -> bool {
        let tag = match proof.count {
            REQUEST_LEAVES => Request::TAG,
            EMBEDDING_REQUEST_LEAVES => EmbeddingRequest::TAG,
            _ => return false,
        };
        let root = merkle::root_from(merkle::leaf(&self.item(tag, model)), proof);
        proof.index == 0 && root.is_some_and(|root| root.as_bytes() == request.as_bytes())
    }
}

/// What a provider shows an auditor of a receipt whose client withholds its consent, in place of the record.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct WithheldRecord {
    /// The signed receipt.
    pub receipt: SignedReceipt,
    /// The consent's place under the request hash.
    pub proof: Proof,
}

impl Canonical for WithheldRecord {
    const TAG: &'static str = "assay/withheld/1";
    /// A receipt, a signature, and a path of three hashes; with room to spare.
    const BYTES_MAX: usize = 4096;
}

/// Why a record is not taken for one without consent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WithheldError {
    /// The provider did not sign this receipt.
    #[error("signature: {0}")]
    Signature(#[from] ReceiptError),
    /// The client did not withhold it, or not as far as this shows.
    #[error("what is shown is not that the client withheld its consent under the receipt's request hash")]
    Opening,
}

impl WithheldRecord {
    /// Checks that the provider signed, and that the client withheld its consent.
    pub fn check(&self) -> Result<(), WithheldError> {
        let receipt = &self.receipt.receipt;
        self.receipt.verify()?;
        match Consent::Withheld.is_shown(&self.proof, &receipt.request_hash, receipt.model_root) {
            true => Ok(()),
            false => Err(WithheldError::Opening),
        }
    }
}
