//! The state as it was after a block, and what a block changes in it.
//!
//! Invariant: a state never changes once the block after it exists. The running hash over changes stands where Ethereum has a
//! Merkle root: it commits to all of history, and proves nothing to anyone who has not all of it.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, Keccak256, U256};
use alloy_rlp::{RlpDecodable, RlpEncodable};

use crate::evm::{AccountInfo, Bytecode, DatabaseRef, EvmState};
use crate::store::{StoreError, View};

/// What is kept of an account; its code is kept by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct Account {
    pub nonce: u64,
    pub balance: U256,
    pub code_hash: B256,
}

impl Default for Account {
    fn default() -> Self {
        Account { nonce: 0, balance: U256::ZERO, code_hash: KECCAK256_EMPTY }
    }
}

/// What one block changes, in the order of keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub accounts: BTreeMap<Address, Option<Account>>,
    pub storage: BTreeMap<(Address, U256), U256>,
    pub code: BTreeMap<B256, Bytes>,
}

impl Changes {
    /// Takes what a transaction changed.
    pub(crate) fn take(&mut self, state: &EvmState) {
        for (&address, account) in state.iter().filter(|(_, a)| a.is_touched()) {
            if account.is_selfdestructed() || account.is_empty() {
                // Only what the same transaction created can destroy itself: none of its storage was ever kept.
                self.accounts.insert(address, None);
                continue;
            }
            let info = &account.info;
            self.accounts.insert(
                address,
                Some(Account { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash }),
            );
            if account.original_info().code_hash != info.code_hash
                && let Some(code) = info.code.as_ref().filter(|c| !c.is_empty())
            {
                self.code.insert(info.code_hash, code.original_bytes());
            }
            for (&slot, value) in account.storage.iter().filter(|(_, v)| v.is_changed()) {
                self.storage.insert((address, slot), value.present_value);
            }
        }
    }

    /// The running hash after these changes.
    pub(crate) fn root(&self, before: B256) -> B256 {
        let mut hash = Keccak256::new();
        hash.update(b"assay-chain/state");
        hash.update(before);
        for (address, account) in &self.accounts {
            hash.update(address);
            hash.update([u8::from(account.is_some())]);
            let account = account.unwrap_or_default();
            hash.update(account.nonce.to_be_bytes());
            hash.update(account.balance.to_be_bytes::<32>());
            hash.update(account.code_hash);
        }
        hash.update([0xff]);
        for ((address, slot), value) in &self.storage {
            hash.update(address);
            hash.update(slot.to_be_bytes::<32>());
            hash.update(value.to_be_bytes::<32>());
        }
        hash.finalize()
    }
}

/// The state after one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateAt<'a> {
    pub view: &'a View,
    pub number: u64,
}

impl StateAt<'_> {
    pub(crate) fn account(&self, address: Address) -> Result<Option<Account>, StoreError> {
        self.view.account(address, self.number)
    }

    pub(crate) fn nonce(&self, address: Address) -> Result<u64, StoreError> {
        Ok(self.account(address)?.map_or(0, |a| a.nonce))
    }

    pub(crate) fn balance(&self, address: Address) -> Result<U256, StoreError> {
        Ok(self.account(address)?.map_or(U256::ZERO, |a| a.balance))
    }

    pub(crate) fn code(&self, address: Address) -> Result<Bytes, StoreError> {
        match self.account(address)? {
            Some(account) if account.code_hash != KECCAK256_EMPTY => self.view.code(account.code_hash),
            _ => Ok(Bytes::new()),
        }
    }

    pub(crate) fn slot(&self, address: Address, slot: U256) -> Result<U256, StoreError> {
        self.view.slot(address, slot, self.number)
    }
}

impl DatabaseRef for StateAt<'_> {
    type Error = StoreError;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, StoreError> {
        Ok(self.account(address)?.map(|account| AccountInfo {
            nonce: account.nonce,
            balance: account.balance,
            code_hash: account.code_hash,
            account_id: None,
            code: None,
        }))
    }

    fn code_by_hash_ref(&self, hash: B256) -> Result<Bytecode, StoreError> {
        if hash == KECCAK256_EMPTY {
            return Ok(Bytecode::default());
        }
        let code = self.view.code(hash)?;
        Bytecode::new_raw_checked(code).map_err(|_| StoreError::Malformed { what: "code" })
    }

    fn storage_ref(&self, address: Address, slot: U256) -> Result<U256, StoreError> {
        self.slot(address, slot)
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, StoreError> {
        Ok(self.view.header(number)?.map_or(B256::ZERO, |header| header.hash))
    }
}
