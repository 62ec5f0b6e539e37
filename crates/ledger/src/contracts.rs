//! The contracts' interfaces and bytecode, from the artifacts that `contracts/scripts/build.mjs` writes, and what the protocol's own types are
//! called in them.

#![allow(missing_docs)] // generated: the Solidity sources are documented

use alloy_primitives::{Address, B256};
use alloy_sol_types::sol;
use assay_core::id::{
    ChannelId, DigestRoot, Hash, ModelRoot, NodeAddress, Nonce, RequestHash, TranscriptRoot,
};
use assay_core::merkle::Proof;
use assay_core::receipt::Receipt;

sol!(
    #[sol(all_derives)]
    Directory,
    "../../contracts/artifacts/Directory.json"
);
sol!(
    #[sol(all_derives)]
    Vault,
    "../../contracts/artifacts/Vault.json"
);
sol!(
    #[sol(all_derives)]
    Registry,
    "../../contracts/artifacts/Registry.json"
);
sol!(
    #[sol(all_derives)]
    Channels,
    "../../contracts/artifacts/Channels.json"
);
sol!(
    #[sol(all_derives)]
    Epochs,
    "../../contracts/artifacts/Epochs.json"
);
sol!(
    #[sol(all_derives)]
    Objections,
    "../../contracts/artifacts/Objections.json"
);
sol!(
    #[sol(all_derives)]
    Audits,
    "../../contracts/artifacts/Audits.json"
);
sol!(
    #[sol(all_derives)]
    Retrieval,
    "../../contracts/artifacts/Retrieval.json"
);
sol!(
    #[sol(all_derives)]
    Disputes,
    "../../contracts/artifacts/Disputes.json"
);
sol!(
    #[sol(all_derives)]
    Referee,
    "../../contracts/artifacts/Referee.json"
);
sol!(
    #[sol(all_derives)]
    Adjudicator,
    "../../contracts/artifacts/Adjudicator.json"
);
sol!(
    #[sol(all_derives)]
    IMicroSteps,
    "../../contracts/artifacts/IMicroSteps.json"
);
sol!(
    #[sol(all_derives)]
    OperationSteps,
    "../../contracts/artifacts/OperationSteps.json"
);
sol!(
    #[sol(all_derives)]
    AttentionSteps,
    "../../contracts/artifacts/AttentionSteps.json"
);
sol!(
    #[sol(all_derives)]
    SamplingSteps,
    "../../contracts/artifacts/SamplingSteps.json"
);
sol!(
    #[sol(all_derives)]
    TestToken,
    "../../contracts/artifacts/TestToken.json"
);

/// A hash as the contracts have it.
pub fn b256(hash: &Hash) -> B256 {
    B256::from(*hash.as_bytes())
}

/// A node's address as the contracts have it.
pub fn address(node: &NodeAddress) -> Address {
    Address::from(*node.as_bytes())
}

/// An address of the contracts as the protocol's own types have it.
pub fn node_address(address: Address) -> NodeAddress {
    NodeAddress::from_bytes(address.into_array())
}

/// A channel's id as receipts have it.
pub fn channel_id(id: B256) -> ChannelId {
    ChannelId::from_bytes(id.0)
}

/// The same struct in the interface of each contract that takes or shows it.
macro_rules! same_receipt {
    ($($contract:ident),*) => {$(
        impl From<&Receipt> for $contract::Receipt {
            fn from(r: &Receipt) -> Self {
                Self {
                    provider: address(&r.provider),
                    sequence: r.sequence,
                    modelRoot: r.model_root.as_bytes().into(),
                    requestHash: r.request_hash.as_bytes().into(),
                    transcriptRoot: r.transcript_root.as_bytes().into(),
                    digestRoot: r.digest_root.as_bytes().into(),
                    promptTokens: r.prompt_tokens,
                    completionTokens: r.completion_tokens,
                    feeMicroUsd: r.fee_micro_usd,
                    payerChannel: r.payer_channel.as_bytes().into(),
                    clientNonce: r.client_nonce.as_bytes().into(),
                    epoch: r.epoch,
                }
            }
        }

        impl From<&$contract::Receipt> for Receipt {
            fn from(r: &$contract::Receipt) -> Self {
                Self {
                    provider: node_address(r.provider),
                    sequence: r.sequence,
                    model_root: ModelRoot::from_bytes(r.modelRoot.0),
                    request_hash: RequestHash::from_bytes(r.requestHash.0),
                    transcript_root: TranscriptRoot::from_bytes(r.transcriptRoot.0),
                    digest_root: DigestRoot::from_bytes(r.digestRoot.0),
                    prompt_tokens: r.promptTokens,
                    completion_tokens: r.completionTokens,
                    fee_micro_usd: r.feeMicroUsd,
                    payer_channel: channel_id(r.payerChannel),
                    client_nonce: Nonce::from_bytes(r.clientNonce.0),
                    epoch: r.epoch,
                }
            }
        }
    )*};
}

macro_rules! same_proof {
    ($($contract:ident),*) => {$(
        impl From<&Proof> for $contract::Proof {
            fn from(p: &Proof) -> Self {
                Self { index: p.index, count: p.count, path: p.path.iter().map(b256).collect() }
            }
        }
    )*};
}

same_receipt!(Epochs, Objections, Audits, Disputes);
same_proof!(Epochs, Objections, Audits, Retrieval, Disputes);
