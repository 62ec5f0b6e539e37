//! The till: which payments a provider takes, and what it writes down for an answer.
//!
//! Invariant: before a request is executed, its voucher can be claimed: the payer signed it, the channel is this provider's and holds what was
//! charged before and the most that this request can cost, and nobody has announced to take that away. Charges never exceed a voucher, and one
//! request at a time runs on a channel. It refuses to move money: claiming is settlement's work, which reads what is written here
//! ([`ReceiptStore::claims`]).
//!
//! What was read of a channel is believed for [`FRESH`], and for [`BELIEVED_MAX`] while the chain does not answer; both are far below the shortest
//! withdrawal delay, so that there is time to claim.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes};
use alloy_sol_types::Eip712Domain;
use assay_api::{ChannelState, PaymentProblem, PaymentRefused, PaymentTerms, Refusal};
use assay_core::embedding::Record;
use assay_core::id::{ChannelId, NodeAddress, SignatureBytes};
use assay_core::payment::Payment;
use assay_core::receipt::Domain;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::Channels::{ChannelConfig, VoucherClaim};
use assay_ledger::contracts::{address, channel_id};
use assay_ledger::ledger::Ledger;
use assay_ledger::voucher;
use tokio::time::Instant;

use crate::store::ReceiptStore;

/// How long what was read of a channel is believed.
pub const FRESH: Duration = Duration::from_secs(60);
/// How long it is believed while the chain does not answer.
pub const BELIEVED_MAX: Duration = Duration::from_secs(300);
/// How often the chain is asked which epoch it is.
const EPOCH_EVERY: Duration = Duration::from_secs(3);
/// How long the chain may take to say what a channel holds.
const ANSWER: Duration = Duration::from_secs(10);
/// Channels of which something is remembered. It can be read again.
const CHANNELS_MAX: usize = 65_536;
/// The shortest withdrawal delay of a channel, in seconds: the contract's.
pub const WITHDRAW_DELAY_S_MIN: u64 = 900;
const _: () = assert!(BELIEVED_MAX.as_secs() * 2 < WITHDRAW_DELAY_S_MIN);

/// A provider's till.
pub struct Till {
    ledger: Ledger,
    store: Arc<ReceiptStore>,
    receiver: NodeAddress,
    /// In which receipts are signed.
    receipts: Domain,
    /// In which vouchers are signed.
    vouchers: Eip712Domain,
    token_domain: (String, String),
    epoch: AtomicU64,
    seen: Mutex<HashMap<B256, Seen>>,
    busy: Mutex<HashSet<B256>>,
}

/// What the chain says of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holds {
    /// What was deposited and has not left.
    pub balance: u64,
    /// What was claimed.
    pub claimed: u64,
    /// Whether its withdrawal was announced.
    pub closing: bool,
}

/// Why a voucher does not pay for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The channel's withdrawal was announced.
    Closing,
    /// The voucher allows less than is needed: so much was charged before.
    Stale {
        /// All in all.
        charged: u128,
    },
    /// The channel holds less than is needed.
    Unfunded {
        /// All in all.
        needed: u128,
    },
}

/// What the chain said of a channel, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    holds: Holds,
    at: Instant,
}

/// A payment that was taken for a request under way. Dropped, it frees the channel; nothing was charged then.
pub struct Ticket {
    config: ChannelConfig,
    id: B256,
    /// What was charged before.
    charged: u128,
    /// The most that may be charged now.
    most: u64,
    /// The highest voucher of the channel.
    voucher: (u128, Bytes),
    busy: Busy,
}

/// Marks a channel as busy for as long as it lives.
struct Busy {
    till: Arc<Till>,
    id: B256,
}

impl Busy {
    fn begin(till: &Arc<Till>, id: B256) -> Option<Busy> {
        let begun = lock(&till.busy).insert(id);
        begun.then(|| Busy { till: Arc::clone(till), id })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.till.busy).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Till {
    /// The till of `receiver`, which is paid on `ledger`, with what it has charged before in `store`.
    pub async fn open(
        ledger: Ledger,
        receiver: NodeAddress,
        store: Arc<ReceiptStore>,
    ) -> Result<Till, ClientError> {
        let chain_id = ledger.client().chain_id();
        let at = &ledger.parts().at;
        let receipts = ledger.receipt_domain();
        let vouchers = voucher::domain(chain_id, at.channels);
        let token_domain = ledger.token_domain().await?;
        let epoch = AtomicU64::new(ledger.epoch().await?);
        let (seen, busy) = (Mutex::default(), Mutex::default());
        Ok(Till { ledger, store, receiver, receipts, vouchers, token_domain, epoch, seen, busy })
    }

    /// The domain in which receipts are signed.
    pub fn receipts(&self) -> Domain {
        self.receipts
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The chain's epoch when it was last asked: never later than the one in which a receipt that names it is posted.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// Asks the chain which epoch it is.
    pub async fn look(&self) -> Result<(), ClientError> {
        self.epoch.store(self.ledger.epoch().await?, Relaxed);
        Ok(())
    }

    /// Keeps looking. While the chain does not answer, receipts name an epoch that is over, which they may.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(EPOCH_EVERY).await;
            if let Err(e) = self.look().await {
                tracing::warn!(reason = %e, "the chain does not say which epoch it is");
            }
        }
    }

    /// On which terms a request is taken.
    pub fn terms(&self, most: u64) -> PaymentTerms {
        let at = &self.ledger.parts().at;
        PaymentTerms {
            chain_id: self.receipts.chain_id,
            channels: voucher::account(at.channels),
            token: voucher::account(at.token),
            token_domain: self.token_domain.clone(),
            receiver: self.receiver,
            withdraw_delay_s: WITHDRAW_DELAY_S_MIN,
            most,
        }
    }

    fn refuse(&self, problem: PaymentProblem, most: u64) -> Refusal {
        Refusal::Payment(Box::new(PaymentRefused { problem, terms: self.terms(most) }))
    }

    /// Takes a payment for a request that can cost `most` at the most. Nothing is charged yet.
    pub async fn admit(self: &Arc<Self>, payment: Option<&Payment>, most: u64) -> Result<Ticket, Refusal> {
        let refuse = |problem| self.refuse(problem, most);
        let payment = payment.ok_or_else(|| refuse(PaymentProblem::Required))?;
        let readable = self.readable(payment);
        let (config, id) = readable.map_err(|reason| refuse(PaymentProblem::Invalid { reason }))?;
        let busy = Busy::begin(self, id).ok_or_else(|| refuse(PaymentProblem::Busy))?;
        let store = Arc::clone(&self.store);
        let known = tokio::task::spawn_blocking(move || store.claim(channel_id(id))).await;
        let known = known
            .map_err(|e| e.to_string())
            .and_then(|known| known.map_err(|e| e.to_string()))
            .map_err(|message| Refusal::Internal { message })?;
        let owed = known.as_ref().map_or(0, |claim| claim.totalClaimed);
        let enough = |seen: &Seen| u128::from(seen.holds.balance) >= needed(owed, &seen.holds, most);
        let seen = self.seen(id, enough).await.map_err(|reason| {
            tracing::warn!(channel = %id, reason, "the chain does not say what a channel holds");
            refuse(PaymentProblem::Unverified)
        })?;
        let charged = judge(payment.max, most, owed, &seen.holds).map_err(|doubt| {
            refuse(match doubt {
                Doubt::Closing => PaymentProblem::Closing,
                Doubt::Stale { charged } => {
                    PaymentProblem::Stale(state(id, charged, known.as_ref(), &seen.holds))
                }
                Doubt::Unfunded { needed } => {
                    PaymentProblem::Unfunded { balance: seen.holds.balance.into(), needed }
                }
            })
        })?;
        let shown = (payment.max, Bytes::copy_from_slice(payment.signature.as_bytes()));
        let known = known.map(|claim| (claim.voucher.maxClaimableAmount, claim.signature));
        let voucher = known.filter(|known| known.0 >= shown.0).unwrap_or(shown);
        Ok(Ticket { config, id, charged, most, voucher, busy })
    }

    /// What is known of a channel that has paid, as far as the chain was asked before.
    pub async fn channel(&self, id: ChannelId) -> Option<ChannelState> {
        let store = Arc::clone(&self.store);
        let claim = tokio::task::spawn_blocking(move || store.claim(id)).await.ok()?.ok()??;
        let id = B256::from(*id.as_bytes());
        let seen = lock(&self.seen).get(&id).copied()?;
        Some(state(id, claim.totalClaimed.max(seen.holds.claimed.into()), Some(&claim), &seen.holds))
    }

    fn readable(&self, payment: &Payment) -> Result<(ChannelConfig, B256), String> {
        readable(payment, address(&self.receiver), self.ledger.parts().at.token, &self.vouchers)
    }

    /// What is known of a channel: read again if that is old, or not `enough`.
    async fn seen(&self, id: B256, enough: impl Fn(&Seen) -> bool) -> Result<Seen, String> {
        let known = lock(&self.seen).get(&id).copied();
        if let Some(known) =
            known.filter(|seen| seen.at.elapsed() < FRESH && !seen.holds.closing && enough(seen))
        {
            return Ok(known);
        }
        let at = Instant::now();
        let read = tokio::time::timeout(ANSWER, self.ledger.channel(id)).await;
        let read = match read.map_err(|e| e.to_string()).and_then(|read| read.map_err(|e| e.to_string())) {
            Ok(read) => read,
            Err(reason) => {
                let believed =
                    |seen: &Seen| seen.at.elapsed() < BELIEVED_MAX && !seen.holds.closing && enough(seen);
                return known.filter(believed).ok_or(reason);
            }
        };
        let closing = read.leavesAt.to::<u64>() != 0;
        let seen = Seen { holds: Holds { balance: read.balance, claimed: read.claimed, closing }, at };
        let mut all = lock(&self.seen);
        if all.len() >= CHANNELS_MAX && !all.contains_key(&id) {
            all.clear();
        }
        // What holds nothing may be one of any number.
        if seen.holds.balance > 0 {
            all.insert(id, seen);
        } else {
            all.remove(&id);
        }
        Ok(seen)
    }
}

/// The channel of a voucher that its payer signed and `receiver` can claim, in the token that it is paid in, or why it is none.
pub fn readable(
    payment: &Payment,
    receiver: Address,
    token: Address,
    vouchers: &Eip712Domain,
) -> Result<(ChannelConfig, B256), String> {
    let config = voucher::config(&payment.channel).ok_or("the withdrawal delay is beyond 40 bits")?;
    if config.receiver != receiver {
        return Err(format!("its receiver is {} and not {receiver}", config.receiver));
    }
    if config.token != token {
        return Err(format!("its token is {} and not {token}", config.token));
    }
    // Who may claim and refund besides this provider could leave it with nothing.
    if ![Address::ZERO, receiver].contains(&config.receiverAuthorizer) {
        return Err(format!("{} could claim and refund it too", config.receiverAuthorizer));
    }
    voucher::check(&config, payment.max, payment.signature.as_bytes(), vouchers)
        .map_err(|e| e.to_string())?;
    let id = voucher::channel_id(&config, vouchers);
    Ok((config, id))
}

/// Whether a voucher with the ceiling `max` pays for a request that can cost `most` at the most, on a channel that owes `owed`. What was charged
/// before, if so.
pub fn judge(max: u128, most: u64, owed: u128, holds: &Holds) -> Result<u128, Doubt> {
    let needed = needed(owed, holds, most);
    let charged = owed.max(holds.claimed.into());
    match () {
        () if holds.closing => Err(Doubt::Closing),
        () if max < needed => Err(Doubt::Stale { charged }),
        () if u128::from(holds.balance) < needed => Err(Doubt::Unfunded { needed }),
        () => Ok(charged),
    }
}

/// What a voucher must allow. What was claimed was charged, also if this provider's store has lost it.
fn needed(owed: u128, holds: &Holds, most: u64) -> u128 {
    owed.max(holds.claimed.into()).saturating_add(most.into())
}

fn state(id: B256, charged: u128, known: Option<&VoucherClaim>, holds: &Holds) -> ChannelState {
    let voucher = known.and_then(|claim| {
        let signature = <[u8; 65]>::try_from(claim.signature.as_ref()).ok()?;
        Some((claim.voucher.maxClaimableAmount, SignatureBytes::from_bytes(signature)))
    });
    let (balance, claimed) = (holds.balance.into(), holds.claimed.into());
    ChannelState { id: channel_id(id), charged, voucher, balance, claimed }
}

impl Ticket {
    /// The channel that pays.
    pub fn channel(&self) -> ChannelId {
        channel_id(self.id)
    }

    /// Whose till it is.
    pub fn till(&self) -> &Till {
        &self.busy.till
    }

    /// What the channel owes after an answer that costs `fee`, which is at most what was said before. To be stored with the answer's record.
    pub fn charge(&self, fee: u64) -> VoucherClaim {
        assert!(fee <= self.most, "an answer costs {fee}, and at most {} was taken for it", self.most);
        let (max, signature) = &self.voucher;
        voucher::claim(&self.config, *max, signature.clone(), self.charged + u128::from(fee))
    }
}

/// What a receipt says of money, and what is written down with it.
pub struct Paid {
    /// What the answer costs, in millionths of a dollar.
    pub fee: u64,
    /// The channel that pays.
    pub channel: ChannelId,
    /// The epoch that the receipt names.
    pub epoch: u64,
    /// The ledger that it is for.
    pub domain: Domain,
    claim: Option<VoucherClaim>,
}

impl Paid {
    /// An answer that costs `fee`, if it is paid for at all.
    pub fn by(ticket: Option<&Ticket>, fee: u64) -> Paid {
        match ticket {
            None => {
                Paid { fee: 0, channel: ChannelId::ZERO, epoch: 0, domain: Domain::DEVELOPMENT, claim: None }
            }
            Some(ticket) => Paid {
                fee,
                channel: ticket.channel(),
                epoch: ticket.till().epoch(),
                domain: ticket.till().receipts(),
                claim: Some(ticket.charge(fee)),
            },
        }
    }

    /// Stores the record and what its channel owes from now on, in one commit.
    pub fn store(&self, store: &ReceiptStore, record: &Record) -> Result<(), String> {
        let stored = match &self.claim {
            None => store.put(record),
            Some(claim) => store.put_paid(record, self.channel, claim),
        };
        stored.map_err(|e| e.to_string())
    }
}
