//! Receipts: what a provider signs for every answer. Payment, audit and dispute all hang on this one struct.
//!
//! A receipt is EIP-712 typed data, so that a wallet can show it and a contract can check it:
//! `Receipt(address provider,uint64 sequence,bytes32 modelRoot,bytes32 requestHash,bytes32 transcriptRoot,bytes32 digestRoot,
//! uint32 promptTokens,uint32 completionTokens,uint64 feeMicroUsd,bytes32 payerChannel,bytes32 clientNonce,uint64 epoch)`
//! in the domain `Assay`, version `1`.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::id::{
    ChannelId, DigestRoot, Hash, ModelRoot, NodeAddress, Nonce, ReceiptId, RequestHash, SignatureBytes,
    TranscriptRoot,
};
use crate::keccak::keccak256;
use crate::signature::signer;

const DOMAIN_TYPE: &[u8] =
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
const RECEIPT_TYPE: &[u8] =
    b"Receipt(address provider,uint64 sequence,bytes32 modelRoot,bytes32 requestHash,\
bytes32 transcriptRoot,bytes32 digestRoot,uint32 promptTokens,uint32 completionTokens,uint64 feeMicroUsd,\
bytes32 payerChannel,bytes32 clientNonce,uint64 epoch)";

/// The contract that a signature is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// Chain.
    pub chain_id: u64,
    /// Contract on it.
    pub contract: NodeAddress,
}

impl Domain {
    /// No ledger: the development chain's number and no contract.
    pub const DEVELOPMENT: Domain = Domain { chain_id: 31_337, contract: NodeAddress::ZERO };

    fn separator(&self) -> Hash {
        keccak256(&[
            keccak256(&[DOMAIN_TYPE]).as_bytes(),
            keccak256(&[b"Assay"]).as_bytes(),
            keccak256(&[b"1"]).as_bytes(),
            &word(self.chain_id),
            &address_word(&self.contract),
        ])
    }
}

fn word(v: u64) -> [u8; 32] {
    let mut w = [0; 32];
    if let Some(last) = w.last_chunk_mut() {
        *last = v.to_be_bytes();
    }
    w
}

fn address_word(a: &NodeAddress) -> [u8; 32] {
    let mut w = [0; 32];
    if let Some(last) = w.last_chunk_mut() {
        *last = *a.as_bytes();
    }
    w
}

/// What a provider says about one answer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Who answered.
    pub provider: NodeAddress,
    /// The provider's count of requests; none is used twice.
    pub sequence: u64,
    /// The model.
    pub model_root: ModelRoot,
    /// The request.
    pub request_hash: RequestHash,
    /// The answer.
    pub transcript_root: TranscriptRoot,
    /// The execution.
    pub digest_root: DigestRoot,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
    /// What it costs, in millionths of a US dollar.
    pub fee_micro_usd: u64,
    /// The channel that pays; zero when nothing is paid.
    pub payer_channel: ChannelId,
    /// The nonce of the sampler's seed.
    pub client_nonce: Nonce,
    /// The epoch in which it was signed.
    pub epoch: u64,
}

/// Why a receipt's signature does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The bytes are no signature in its one accepted form.
    #[error("the signature is malformed (r, s in the lower half, and 27 or 28)")]
    Malformed,
    /// Another key signed.
    #[error("the signature is by {signer}, not by the provider {provider}")]
    Signer {
        /// Who signed.
        signer: NodeAddress,
        /// Who should have.
        provider: NodeAddress,
    },
}

impl Receipt {
    /// The receipt's name: known before the answer is, so that it can travel ahead of it.
    pub fn id(&self) -> ReceiptId {
        receipt_id(self.provider, self.sequence, self.request_hash)
    }

    /// What is signed in `domain`.
    pub fn signing_hash(&self, domain: &Domain) -> Hash {
        keccak256(&[&[0x19, 0x01], domain.separator().as_bytes(), self.struct_hash().as_bytes()])
    }

    fn struct_hash(&self) -> Hash {
        keccak256(&[
            keccak256(&[RECEIPT_TYPE]).as_bytes(),
            &address_word(&self.provider),
            &word(self.sequence),
            self.model_root.as_bytes(),
            self.request_hash.as_bytes(),
            self.transcript_root.as_bytes(),
            self.digest_root.as_bytes(),
            &word(u64::from(self.prompt_tokens)),
            &word(u64::from(self.completion_tokens)),
            &word(self.fee_micro_usd),
            self.payer_channel.as_bytes(),
            self.client_nonce.as_bytes(),
            &word(self.epoch),
        ])
    }
}

/// The name of the receipt that `provider` will give for its `sequence`-th request.
pub fn receipt_id(provider: NodeAddress, sequence: u64, request: RequestHash) -> ReceiptId {
    let hash =
        keccak256(&[b"assay/receipt-id/1", provider.as_bytes(), &sequence.to_be_bytes(), request.as_bytes()]);
    ReceiptId::from_bytes(*hash.as_bytes())
}

/// A receipt with a signature, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReceipt {
    /// What was signed.
    pub receipt: Receipt,
    /// Where the signature counts.
    pub domain: Domain,
    /// The signature.
    pub signature: SignatureBytes,
}

impl SignedReceipt {
    /// Who signed.
    pub fn signer(&self) -> Result<NodeAddress, ReceiptError> {
        signer(&self.receipt.signing_hash(&self.domain), &self.signature).ok_or(ReceiptError::Malformed)
    }

    /// Checks that the provider signed.
    pub fn verify(&self) -> Result<(), ReceiptError> {
        let (signer, provider) = (self.signer()?, self.receipt.provider);
        if signer == provider { Ok(()) } else { Err(ReceiptError::Signer { signer, provider }) }
    }
}
