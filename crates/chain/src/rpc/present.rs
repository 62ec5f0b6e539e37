//! Blocks, transactions and receipts as clients see them.

use alloy_consensus::transaction::{Recovered, TransactionInfo};
use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::{B256, Sealed, U256, keccak256};
use alloy_rpc_types_eth::{Block, BlockTransactions, Header, Transaction, TransactionReceipt};
use serde_json::Value;

use super::answer::{RpcError, value};
use crate::logs;
use crate::pool::Waiting;
use crate::records::{Head, Mined};

/// How a block shows its transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Hashes,
    Whole,
}

pub(super) fn block(head: Head, mined: &[Mined], show: Show) -> Result<Value, RpcError> {
    let transactions = match show {
        Show::Hashes => BlockTransactions::Hashes(mined.iter().map(|m| keccak256(&m.raw)).collect()),
        Show::Whole => {
            let all = (0u64..).zip(mined).map(|(index, mined)| transaction(&head, mined, index));
            BlockTransactions::Full(all.collect::<Result<_, _>>()?)
        }
    };
    let header = Sealed::new_unchecked(head.header, head.hash);
    value(Block {
        header: Header::from_consensus(header, Some(U256::ZERO), Some(U256::from(head.size))),
        uncles: Vec::new(),
        transactions,
        withdrawals: Some(Withdrawals::default()),
    })
}

pub(super) fn transaction(head: &Head, mined: &Mined, index: u64) -> Result<Transaction, RpcError> {
    let tx = mined.envelope()?;
    let info = TransactionInfo {
        hash: Some(*tx.tx_hash()),
        index: Some(index),
        block_hash: Some(head.hash),
        block_number: Some(head.header.number),
        base_fee: head.header.base_fee_per_gas,
        block_timestamp: Some(head.header.timestamp),
    };
    Ok(Transaction::from_transaction(Recovered::new_unchecked(tx, mined.from), info))
}

pub(super) fn waiting(waiting: &Waiting) -> Transaction {
    let recovered: Recovered<TxEnvelope> = Recovered::new_unchecked(waiting.tx.clone(), waiting.from);
    Transaction::from_transaction(recovered, TransactionInfo::default())
}

pub(super) fn receipt(
    head: &Head,
    mined: &Mined,
    hash: B256,
    index: u64,
) -> Result<TransactionReceipt, RpcError> {
    let tx = mined.envelope()?;
    let mut logs = logs::presented(head, mined, hash, index);

    Ok(TransactionReceipt {
        // As many logs come in as go out.
        inner: mined.receipt(&tx).map_logs(|_| logs.next().unwrap_or_default()),
        transaction_hash: hash,
        transaction_index: Some(index),
        block_hash: Some(head.hash),
        block_number: Some(head.header.number),
        gas_used: mined.gas_used,
        effective_gas_price: tx.effective_gas_price(head.header.base_fee_per_gas),
        blob_gas_used: None,
        blob_gas_price: None,
        from: mined.from,
        to: tx.to(),
        contract_address: mined.created(&tx),
    })
}
