//! What the store keeps of blocks and transactions, and its bytes: RLP, since that is what their hashes are over.

use alloy_consensus::{
    Eip658Value, Header, Receipt, ReceiptEnvelope, ReceiptWithBloom, Transaction as _, TxEnvelope,
};
use alloy_eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy_primitives::{Address, B256, Bytes, Log};
use alloy_rlp::{RlpDecodable, RlpEncodable};

use crate::store::StoreError;

/// A header with what would take work to find again.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct Head {
    pub hash: B256,
    /// Bytes of the encoded block.
    pub size: u64,
    /// Number of transactions.
    pub count: u64,
    pub header: Header,
}

/// A transaction that is in a block.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct Mined {
    pub from: Address,
    pub gas_used: u64,
    pub success: bool,
    pub cumulative_gas: u64,
    /// How many logs the block has before its own.
    pub logs_before: u64,
    pub raw: Bytes,
    pub logs: Vec<Log>,
}

impl Mined {
    pub(crate) fn envelope(&self) -> Result<TxEnvelope, StoreError> {
        decoded(&self.raw)
    }

    /// The receipt that the block's root commits to.
    pub(crate) fn receipt(&self, tx: &TxEnvelope) -> ReceiptEnvelope<Log> {
        let receipt = Receipt {
            status: Eip658Value::Eip658(self.success),
            cumulative_gas_used: self.cumulative_gas,
            logs: self.logs.clone(),
        };
        ReceiptEnvelope::from_typed(tx.tx_type(), ReceiptWithBloom::from(receipt))
    }

    /// The contract that it created, if it did.
    pub(crate) fn created(&self, tx: &TxEnvelope) -> Option<Address> {
        tx.kind().is_create().then(|| self.from.create(tx.nonce()))
    }
}

/// A transaction that waits.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct Kept {
    pub from: Address,
    pub raw: Bytes,
}

/// A value before it was overwritten: where, and what was there (nothing, or one item).
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct Before {
    pub table: u8,
    pub key: Bytes,
    pub value: Vec<Bytes>,
}

/// How to undo a block or an edit.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct Undo {
    /// The block that was mined, or the last one when the state was edited.
    pub number: u64,
    /// Whether it is a block.
    pub block: bool,
    pub before: Vec<Before>,
}

/// A transaction from bytes that were written here.
pub(crate) fn decoded(raw: &[u8]) -> Result<TxEnvelope, StoreError> {
    TxEnvelope::decode_2718_exact(raw).map_err(|_| StoreError::Malformed { what: "transaction" })
}

/// A transaction's bytes, as its hash is over them.
pub(crate) fn encoded(tx: &TxEnvelope) -> Bytes {
    tx.encoded_2718().into()
}
