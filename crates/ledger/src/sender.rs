//! Transactions of one account: nonces, fees, and waiting until they are mined for good.
//!
//! Invariant: a transaction is on disk before any node has it, so that a crash at any moment neither loses one nor sends it twice under
//! another nonce. What a node forgot is given to it again; what is stuck is signed again with higher fees under the same
//! nonce, so that one of the signed forms is mined or none; what a reorganisation took back is waited for again. It
//! refuses to give up a nonce: who stops waiting leaves the transaction to the next [`Sender::resume`].

mod outbox;

use std::path::Path;
use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bytes, Log, TxKind, U256};
use alloy_provider::Provider as _;
use alloy_rpc_types_eth::TransactionReceipt;
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolCall;
use tokio::sync::Mutex;

pub use self::outbox::OutboxError;
use self::outbox::{Attempt, Outbox, Outgoing};
use crate::client::{Client, ClientError, request};
use crate::revert::Revert;

/// Gas that one transaction may use (EIP-7825).
pub const TRANSACTION_GAS_MAX: u64 = 1 << 24;
/// Transactions that may wait at once: nodes keep few of one account.
pub const WAITING_MAX: usize = 64;
/// Gas on top of an estimate, in percent: the state may change before the transaction is mined.
const GAS_MARGIN_PERCENT: u64 = 25;
/// By how much fees rise when a transaction is stuck, in percent. Nodes ask for 10 at least.
const BUMP_PERCENT: u128 = 25;
/// The tip that is offered where a node does not suggest one, in wei.
const TIP_DEFAULT: u128 = 1_000_000_000;
/// How often a nonce must be seen as used by a transaction that is not ours before it is believed.
const TAKEN_SEEN: u32 = 3;

/// How long to wait, and what to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Blocks on top of a transaction's before it counts as mined for good.
    pub confirmations: u64,
    /// After this time without being mined, fees rise.
    pub patience: Duration,
    /// After this time, [`SendError::Waiting`].
    pub deadline: Duration,
    /// Time between two questions to the node.
    pub poll: Duration,
    /// The highest fee per unit of gas, in wei.
    pub fee_max: u128,
}

impl Policy {
    /// For chains with value: reorganisations of a few blocks do not matter, and a transaction that costs more than 500 gwei waits.
    pub const PUBLIC: Policy = Policy {
        confirmations: 5,
        patience: Duration::from_secs(45),
        deadline: Duration::from_secs(900),
        poll: Duration::from_secs(2),
        fee_max: 500_000_000_000,
    };

    /// For development chains, which mine at once.
    pub const DEVELOPMENT: Policy = Policy {
        confirmations: 0,
        patience: Duration::from_secs(5),
        deadline: Duration::from_secs(60),
        poll: Duration::from_millis(20),
        fee_max: 10_000_000_000_000,
    };
}

/// Why a transaction did nothing, or what is not known yet.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The chain did not answer, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It would be refused, or was: the contract's reason. Nothing changed but, if `mined`, the gas paid.
    #[error("the contract refused: {reason}")]
    Reverted {
        /// Why.
        reason: Revert,
        /// The transaction, if it was mined all the same.
        mined: Option<B256>,
    },
    /// It is not mined yet. It goes on with the next start.
    #[error(
        "transaction {hash} ({purpose}) is not mined yet; it is kept and goes on when this is started again"
    )]
    Waiting {
        /// Its newest hash.
        hash: B256,
        /// What it is for.
        purpose: String,
    },
    /// Something else used its nonce.
    #[error(
        "another transaction of {account} took number {nonce}, so that this one can never be mined ({purpose}); is the key \
         used elsewhere?"
    )]
    NonceTaken {
        /// Whose.
        account: Address,
        /// Which.
        nonce: u64,
        /// What it was for.
        purpose: String,
    },
    /// The account cannot pay for gas.
    #[error(
        "{account} has {balance} wei, and this needs up to {needed} for gas; send it some of the chain's coin"
    )]
    NoGas {
        /// Whose.
        account: Address,
        /// What it has.
        balance: U256,
        /// What it needs.
        needed: U256,
    },
    /// It needs more gas than a transaction may use.
    #[error("this needs {gas} gas; a transaction may use {TRANSACTION_GAS_MAX}")]
    TooMuchGas {
        /// What was estimated.
        gas: u64,
    },
    /// Too much waits already.
    #[error("{WAITING_MAX} transactions of this account are waiting already")]
    TooManyWaiting,
    /// The outbox cannot be used.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The key could not sign.
    #[error("signing failed: {0}")]
    Signing(String),
}

impl SendError {
    /// Whether the same may succeed later.
    pub fn may_retry(&self) -> bool {
        match self {
            SendError::Client(error) => error.may_retry(),
            SendError::Waiting { .. } | SendError::TooManyWaiting | SendError::NoGas { .. } => true,
            _ => false,
        }
    }
}

/// A transaction that was mined.
#[derive(Clone, Debug)]
pub struct Mined {
    /// Its hash.
    pub hash: B256,
    /// Number of its block.
    pub block: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// Gas that it used.
    pub gas: u64,
    /// What was logged.
    pub logs: Vec<Log>,
    /// The contract that it created.
    pub created: Option<Address>,
}

/// Sends for one account on one chain.
#[derive(Debug)]
pub struct Sender {
    client: Client,
    key: PrivateKeySigner,
    policy: Policy,
    outbox: Mutex<Outbox>,
}

impl Sender {
    /// A sender whose waiting transactions are kept below `dir`, in a folder for this chain and account.
    pub async fn open(
        client: Client,
        key: PrivateKeySigner,
        dir: &Path,
        policy: Policy,
    ) -> Result<Sender, SendError> {
        let genesis = client.genesis().await?;
        let [a, b, c, d, ..] = genesis.0;
        let first = u32::from_be_bytes([a, b, c, d]);
        let name = format!("{}-{first:08x}-{:#x}", client.chain_id(), key.address());
        let outbox = Mutex::new(Outbox::open(&dir.join(name))?);
        Ok(Sender { client, key, policy, outbox })
    }

    /// Whose transactions.
    pub fn account(&self) -> Address {
        self.key.address()
    }

    /// The chain.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The account's key, for what is signed off the chain.
    pub fn key(&self) -> &PrivateKeySigner {
        &self.key
    }

    /// What waits from before: purposes, oldest first.
    pub async fn waiting(&self) -> Vec<String> {
        self.outbox.lock().await.waiting().map(|w| w.purpose.clone()).collect()
    }

    /// Waits for what was sent before, oldest first. Each item is its purpose and how it ended.
    pub async fn resume(&self) -> Vec<(String, Result<Mined, SendError>)> {
        let left: Vec<(u64, String)> =
            self.outbox.lock().await.waiting().map(|w| (w.nonce, w.purpose.clone())).collect();
        let mut ended = Vec::with_capacity(left.len());
        for (nonce, purpose) in left {
            let result = self.wait(nonce).await;
            ended.push((purpose, result));
        }
        ended
    }

    /// Calls a contract in a transaction, and waits until it is mined for good. `purpose` is for people.
    pub async fn send<C: SolCall>(&self, purpose: &str, to: Address, call: &C) -> Result<Mined, SendError> {
        self.send_data(purpose, to, call.abi_encode().into()).await
    }

    /// The same with the call as the contract takes it.
    pub async fn send_data(&self, purpose: &str, to: Address, data: Bytes) -> Result<Mined, SendError> {
        let nonce = self.submit(purpose, Some(to), data).await?;
        self.wait(nonce).await
    }

    /// Waits for what was sent for this purpose before and has not ended; nothing if there is none.
    pub async fn finish(&self, purpose: &str) -> Option<Result<Mined, SendError>> {
        let nonce = self.outbox.lock().await.waiting().find(|w| w.purpose == purpose)?.nonce;
        Some(self.wait(nonce).await)
    }

    /// Creates a contract.
    pub async fn create(&self, purpose: &str, code: Bytes) -> Result<Mined, SendError> {
        let nonce = self.submit(purpose, None, code).await?;
        self.wait(nonce).await
    }

    /// The number that the account's next transaction will have.
    pub async fn nonce(&self) -> Result<u64, SendError> {
        let outbox = self.outbox.lock().await;
        self.next_nonce(&outbox).await
    }

    async fn next_nonce(&self, outbox: &Outbox) -> Result<u64, SendError> {
        let pending = self.client.provider().get_transaction_count(self.account()).pending().await;
        let pending = pending.map_err(|e| self.client.failed(e))?;
        Ok(outbox.next().map_or(pending, |next| next.max(pending)))
    }

    /// Estimates, signs, writes down and gives away. Returns the nonce.
    async fn submit(&self, purpose: &str, to: Option<Address>, data: Bytes) -> Result<u64, SendError> {
        // One at a time: nonces are given away in order, and an estimate sees what was sent before.
        let mut outbox = self.outbox.lock().await;
        if outbox.waiting().count() >= WAITING_MAX {
            return Err(SendError::TooManyWaiting);
        }
        let gas = self.estimate(to, data.clone()).await?;
        let (fee_max, tip) = self.fees().await?;
        let nonce = self.next_nonce(&outbox).await?;
        let mut outgoing =
            Outgoing { purpose: purpose.to_owned(), nonce, to, data, gas, attempts: Vec::with_capacity(1) };
        let attempt = self.sign(&outgoing, fee_max, tip)?;
        let raw = attempt.raw.clone();
        outgoing.attempts.push(attempt);
        outbox.put(outgoing)?;
        match self.give(&raw).await {
            Ok(()) => Ok(nonce),
            Err(ClientError::Refused { message, .. })
                if message.to_ascii_lowercase().contains("insufficient funds") =>
            {
                // No node took it, and none will: it is as if it had never been.
                outbox.remove(nonce)?;
                let needed = U256::from(gas).saturating_mul(U256::from(fee_max));
                let balance = self.client.coin(self.account(), BlockId::latest()).await?;
                Err(SendError::NoGas { account: self.account(), balance, needed })
            }
            // Whether a node has it is not known: waiting finds out.
            Err(error) => {
                tracing::warn!(purpose, nonce, %error, "a node did not take a transaction; it is given again");
                Ok(nonce)
            }
        }
    }

    async fn estimate(&self, to: Option<Address>, data: Bytes) -> Result<u64, SendError> {
        let request = request(self.account(), to, data);
        let pending = BlockId::Number(BlockNumberOrTag::Pending);
        let estimate = self.client.provider().estimate_gas(request).block(pending).await;
        let gas = match estimate.map_err(|e| self.client.failed(e)) {
            Ok(gas) => gas,
            Err(ClientError::Reverted(reason)) => return Err(SendError::Reverted { reason, mined: None }),
            Err(error) => return Err(error.into()),
        };
        if gas > TRANSACTION_GAS_MAX {
            return Err(SendError::TooMuchGas { gas });
        }
        Ok(gas.saturating_add(gas.saturating_mul(GAS_MARGIN_PERCENT) / 100).min(TRANSACTION_GAS_MAX))
    }

    /// What to offer now: the fee that the next few blocks cannot pass, and the tip that the node suggests.
    async fn fees(&self) -> Result<(u128, u128), SendError> {
        let base = u128::from(self.client.latest().await?.base_fee_per_gas.unwrap_or(0));
        let tip = self.client.provider().get_max_priority_fee_per_gas().await.unwrap_or(TIP_DEFAULT);
        let fee_max = base.saturating_mul(2).saturating_add(tip).min(self.policy.fee_max);
        Ok((fee_max, tip.min(fee_max)))
    }

    fn sign(&self, outgoing: &Outgoing, fee_max: u128, tip: u128) -> Result<Attempt, SendError> {
        let tx = TxEip1559 {
            chain_id: self.client.chain_id(),
            nonce: outgoing.nonce,
            gas_limit: outgoing.gas,
            max_fee_per_gas: fee_max,
            max_priority_fee_per_gas: tip,
            to: outgoing.to.map_or(TxKind::Create, TxKind::Call),
            value: U256::ZERO,
            access_list: Default::default(),
            input: outgoing.data.clone(),
        };
        let signature =
            self.key.sign_hash_sync(&tx.signature_hash()).map_err(|e| SendError::Signing(e.to_string()))?;
        let envelope = TxEnvelope::Eip1559(tx.into_signed(signature));
        Ok(Attempt { hash: *envelope.tx_hash(), raw: envelope.encoded_2718().into(), fee_max, tip })
    }

    async fn give(&self, raw: &[u8]) -> Result<(), ClientError> {
        match self.client.provider().send_raw_transaction(raw).await.map_err(|e| self.client.failed(e)) {
            Err(ClientError::Refused { message, .. }) if known(&message) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Waits for the transaction with this nonce, whichever of its forms is mined.
    async fn wait(&self, nonce: u64) -> Result<Mined, SendError> {
        let started = Instant::now();
        let mut last = started;
        let mut taken = 0;
        loop {
            let Some(outgoing) = self.outbox.lock().await.get(nonce).cloned() else {
                return Err(self.taken(nonce, "it is no longer kept"));
            };
            match self.look(&outgoing).await {
                Ok(Seen::Final(receipt)) => return self.end(&outgoing, *receipt).await,
                Ok(Seen::Mined) => last = Instant::now(),
                Ok(Seen::Taken) => {
                    taken += 1;
                    if taken >= TAKEN_SEEN {
                        self.outbox.lock().await.remove(nonce)?;
                        return Err(self.taken(nonce, &outgoing.purpose));
                    }
                }
                Ok(seen @ (Seen::Next | Seen::Queued)) => {
                    taken = 0;
                    if last.elapsed() >= self.policy.patience {
                        last = Instant::now();
                        self.push(outgoing.clone(), matches!(seen, Seen::Next)).await?;
                    }
                }
                Err(error) if error.may_retry() => tracing::debug!(%error, nonce, "asking again"),
                Err(error) => return Err(error.into()),
            }
            if started.elapsed() >= self.policy.deadline {
                let hash = outgoing.attempts.last().map(|a| a.hash).unwrap_or_default();
                return Err(SendError::Waiting { hash, purpose: outgoing.purpose });
            }
            tokio::time::sleep(self.policy.poll).await;
        }
    }

    fn taken(&self, nonce: u64, purpose: &str) -> SendError {
        SendError::NonceTaken { account: self.account(), nonce, purpose: purpose.to_owned() }
    }

    /// Where a transaction stands.
    async fn look(&self, outgoing: &Outgoing) -> Result<Seen, ClientError> {
        let provider = self.client.provider();
        for attempt in outgoing.attempts.iter().rev() {
            let found = provider.get_transaction_receipt(attempt.hash).await;
            let Some(receipt) = found.map_err(|e| self.client.failed(e))? else { continue };
            let Some(block) = receipt.block_number else { continue };
            let on_top = self.client.head().await?.saturating_sub(block);
            return Ok(if on_top >= self.policy.confirmations {
                Seen::Final(Box::new(receipt))
            } else {
                Seen::Mined
            });
        }
        let count = provider.get_transaction_count(self.account()).latest().await;
        Ok(match count.map_err(|e| self.client.failed(e))?.cmp(&outgoing.nonce) {
            std::cmp::Ordering::Greater => Seen::Taken,
            std::cmp::Ordering::Equal => Seen::Next,
            std::cmp::Ordering::Less => Seen::Queued,
        })
    }

    /// Gives a transaction to the node again; with higher fees if it is the account's next.
    async fn push(&self, mut outgoing: Outgoing, next: bool) -> Result<(), SendError> {
        let Some(newest) = outgoing.attempts.last().cloned() else { return Ok(()) };
        let raised = |v: u128| v.saturating_add(v.saturating_mul(BUMP_PERCENT) / 100).saturating_add(1);
        let raw = if next && newest.fee_max < self.policy.fee_max {
            let (fee_now, tip_now) = self.fees().await?;
            let fee_max = raised(newest.fee_max).max(fee_now).min(self.policy.fee_max);
            let tip = raised(newest.tip).max(tip_now).min(fee_max);
            let attempt = self.sign(&outgoing, fee_max, tip)?;
            tracing::info!(purpose = outgoing.purpose, nonce = outgoing.nonce, fee_max, "stuck: fees raised");
            let raw = attempt.raw.clone();
            outgoing.attempts.push(attempt);
            self.outbox.lock().await.put(outgoing)?;
            raw
        } else {
            newest.raw
        };
        if let Err(error) = self.give(&raw).await {
            tracing::debug!(%error, "the node does not take it");
        }
        Ok(())
    }

    async fn end(&self, outgoing: &Outgoing, receipt: TransactionReceipt) -> Result<Mined, SendError> {
        let (block, block_hash) = (receipt.block_number.unwrap_or(0), receipt.block_hash.unwrap_or_default());
        self.outbox.lock().await.remove(outgoing.nonce)?;
        if !receipt.status() {
            let reason = self.reason(outgoing, block).await;
            return Err(SendError::Reverted { reason, mined: Some(receipt.transaction_hash) });
        }
        Ok(Mined {
            hash: receipt.transaction_hash,
            block,
            block_hash,
            gas: receipt.gas_used,
            created: receipt.contract_address,
            logs: receipt.inner.logs().iter().map(|log| log.inner.clone()).collect(),
        })
    }

    /// Why a mined transaction was refused: the same call on the state before its block, which may know no reason.
    async fn reason(&self, outgoing: &Outgoing, block: u64) -> Revert {
        let call = request(self.account(), outgoing.to, outgoing.data.clone()).gas_limit(outgoing.gas);
        let before = BlockId::number(block.saturating_sub(1));
        match self.client.provider().call(call).block(before).await.map_err(|e| self.client.failed(e)) {
            Err(ClientError::Reverted(revert)) => revert,
            _ => Revert(Bytes::new()),
        }
    }
}

/// What a node says about a transaction.
enum Seen {
    /// Mined, and deep enough.
    Final(Box<TransactionReceipt>),
    /// Mined.
    Mined,
    /// Not mined, and nothing before it is missing.
    Next,
    /// Not mined, as others before it.
    Queued,
    /// Another transaction has its nonce.
    Taken,
}

/// What nodes say of a transaction that they have, or have mined.
fn known(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["already known", "already imported", "known transaction", "nonce too low", "already mined"]
        .iter()
        .any(|m| message.contains(m))
}
