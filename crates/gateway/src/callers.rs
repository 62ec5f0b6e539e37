//! Callers without an account: each answer is paid out of the caller's wallet by a signature that came with the request (x402's `exact` and `upto`).
//!
//! A payment's way: 1. what was signed is checked against what the gateway asks; 2. the chain is asked whether tokens are behind it, and the whole amount is
//! moved for trial; 3. it is reserved in the books, by the name of what it can move once; 4. the request runs; 5. the answer is kept in the books, with
//! what it cost; 6. the tokens are moved, and credited and charged; 7. only then does the answer end. From 5 on a gateway that dies settles when it starts
//! again, and who sends the payment again is told the same answer; before, nothing happened.
//!
//! It refuses to trust: who could not be settled with is refused for a while, and who has settled little may have little under way.

mod settle;
mod told;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy_primitives::Address;
use alloy_sol_types::Eip712Domain;
use assay_api::{AUTHORIZED_S, Caller, CallerProblem, CallerRefused, CallerTerms, Refusal, Settlement};
use assay_core::authorization::{Authorization, Scheme};
use assay_core::canonical::Canonical as _;
use assay_ledger::authorization::{UPTO_PROXY, is_signed, token_domain};
use assay_ledger::client::ClientError;
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::Sender;
use assay_ledger::voucher::account;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub(crate) use self::told::Told;
use crate::accounts::{
    Accounts, AccountsError, Answered, CREDIT_MAX, CallerPayment, MicroUsd, Pledge, Pledged, RequestKey,
    Stage,
};

/// Seconds for which a payment must still be valid when its request comes: less than clients are asked for, because clocks differ.
pub const VALID_S_MIN: u64 = AUTHORIZED_S / 3;
/// Seconds before a payment's end at which its answer is given up: as long as it takes to settle.
const SETTLE_S: u64 = 60;
/// How long the chain may take to say whether a payment is covered.
const ANSWER: Duration = Duration::from_secs(10);
/// Payments that the chain is asked about at the same time.
const CHECKS_MAX: usize = 32;

/// Why callers without an account cannot be answered here.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    /// The chain did not answer.
    #[error("the ledger cannot be asked what its token takes: {0}")]
    Ledger(#[from] ClientError),
    /// The books did not open.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    /// Neither scheme works.
    #[error(
        "callers cannot pay on this ledger: its token takes no `transferWithAuthorization`, and the chain has no Permit2 with x402's proxy for `upto`"
    )]
    NoScheme,
}

/// Who answers callers without an account, and settles with them.
pub struct Callers {
    ledger: Ledger,
    sender: Arc<Sender>,
    accounts: Accounts,
    /// What is asked of them, but for the amount.
    terms: CallerTerms,
    token: Eip712Domain,
    /// The receiver, as the books name it.
    receiver: String,
    /// Payments that somebody settles at this moment.
    settling: Mutex<HashSet<String>>,
    checks: Semaphore,
}

/// What a payment is good for.
pub(crate) enum Opened {
    /// Run the request.
    Reserved(Box<Reserved>),
    /// It was answered before.
    Told(Box<Told>),
}

/// A payment that is reserved for one request. Dropped before its answer is there, it can be used again.
pub(crate) struct Reserved {
    callers: Arc<Callers>,
    id: String,
    authorization: Authorization,
    /// What the request may cost.
    most: u64,
    /// When its answer is given up.
    deadline: Instant,
    ended: bool,
}

fn now_ms() -> i64 {
    i64::try_from(now().as_millis()).unwrap_or(i64::MAX)
}

fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// Why a payment is not taken, in x402's word and ours.
fn invalid(error: &str, reason: impl Into<String>) -> CallerProblem {
    CallerProblem::Invalid { error: error.into(), reason: reason.into() }
}

/// x402's word for `exact` or for `upto`.
fn either(scheme: Scheme, exact: &'static str, upto: &'static str) -> &'static str {
    match scheme {
        Scheme::Exact => exact,
        Scheme::Upto { .. } => upto,
    }
}

impl Callers {
    /// Callers pay `sender`'s account on this ledger. What ran when an earlier gateway of this account died can be used again; one runs at a time, as one
    /// process sends an account's transactions.
    pub async fn open(
        ledger: Ledger,
        sender: impl Into<Arc<Sender>>,
        accounts: Accounts,
    ) -> Result<Arc<Callers>, CallersError> {
        let sender = sender.into();
        let chain_id = ledger.client().chain_id();
        let at = ledger.parts().at.token;
        let (name, version) = ledger.token_domain().await?;
        let (exact, upto) = ledger.takes_authorizations().await?;
        // Clients sign for a token in a domain with a version.
        let exact = exact && !version.is_empty();
        if !exact && !upto {
            return Err(CallersError::NoScheme);
        }
        let token = token_domain(chain_id, at, &name, &version);
        let terms = CallerTerms {
            chain_id,
            token: account(at),
            token_domain: (name, version),
            receiver: account(sender.account()),
            exact,
            upto,
            most: 0,
        };
        let receiver = format!("eip155:{chain_id}:{}", terms.receiver);
        accounts.forget_running(&receiver).await?;
        let (settling, checks) = (Mutex::default(), Semaphore::new(CHECKS_MAX));
        Ok(Arc::new(Callers { ledger, sender, accounts, terms, token, receiver, settling, checks }))
    }

    /// The account that is paid.
    pub fn receiver(&self) -> Address {
        self.sender.account()
    }

    /// Whether `exact` is taken, and `upto`.
    pub fn schemes(&self) -> (bool, bool) {
        (self.terms.exact, self.terms.upto)
    }

    fn refusal(&self, problem: CallerProblem, most: u64) -> Refusal {
        let terms = CallerTerms { most, ..self.terms.clone() };
        Refusal::Caller(Box::new(CallerRefused { problem, terms }))
    }

    /// Reserves the payment that came with a request which may cost `most`, or finds its answer.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        caller: &Caller,
        request: RequestKey,
        most: u64,
    ) -> Result<Opened, Refusal> {
        let Some(authorization) = caller.authorization.as_deref() else {
            return Err(self.refusal(CallerProblem::Required, most));
        };
        // A client that leaves ends its request's future, but not in the middle of a reservation: what comes of it is given back when nobody takes it.
        let (callers, authorization, again) = (Arc::clone(self), authorization.clone(), caller.again);
        let opened =
            tokio::spawn(async move { callers.open_one(&authorization, again, request, most).await });
        match opened.await {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(Problem::Payment(problem))) => Err(self.refusal(problem, most)),
            Ok(Err(Problem::Books(e))) => Err(books(&e)),
            Err(e) => Err(Refusal::Internal { message: format!("a payment could not be reserved: {e}") }),
        }
    }

    async fn open_one(
        self: &Arc<Self>,
        authorization: &Authorization,
        again: bool,
        request: RequestKey,
        most: u64,
    ) -> Result<Opened, Problem> {
        self.is_for_us(authorization)?;
        let id = hex::encode(authorization.id().as_bytes());
        if let Some(known) = self.accounts.caller_payment(&id).await? {
            return self.known(known, request).await;
        }
        if authorization.amount < u128::from(most) {
            let error = either(
                authorization.scheme,
                "invalid_exact_evm_payload_authorization_value_mismatch",
                "permit2_amount_mismatch",
            );
            let reason = format!("it is for {}, and the request may cost {most}", authorization.amount);
            return Err(invalid(error, reason).into());
        }
        let signed_for = u64::try_from(authorization.amount).ok().filter(|amount| *amount <= CREDIT_MAX.0);
        let Some(signed_for) = signed_for else {
            return Err(invalid("invalid_payload", "it is for more than is taken at once").into());
        };
        let (cover, from_block) = self.covered(authorization).await?;
        let pledge = Pledge {
            id: id.clone(),
            payer: self.account_of(authorization),
            receiver: self.receiver.clone(),
            request,
            most: MicroUsd(signed_for),
            cover,
            signed: hex::encode(authorization.to_canonical_bytes()),
            from_block,
            again,
            now_ms: now_ms(),
        };
        match self.accounts.pledge(&pledge).await? {
            Pledged::Run => {
                let left = authorization.valid_before.saturating_sub(now().as_secs() + SETTLE_S);
                let deadline = Instant::now() + Duration::from_secs(left.min(AUTHORIZED_S));
                let authorization = authorization.clone();
                let callers = Arc::clone(self);
                let reserved = Reserved { callers, id, authorization, most, deadline, ended: false };
                Ok(Opened::Reserved(Box::new(reserved)))
            }
            Pledged::Known(known) => self.known(*known, request).await,
            Pledged::Uncovered { needed } => Err(CallerProblem::Unfunded { balance: cover, needed }.into()),
            Pledged::Crowded { running } => Err(CallerProblem::Crowded { running }.into()),
            Pledged::Barred => {
                let reason = "one of its payments could not be settled within the last hour";
                Err(CallerProblem::Barred { reason: reason.into() }.into())
            }
            Pledged::Revoked => {
                Err(CallerProblem::Barred { reason: "the operator has revoked it".into() }.into())
            }
        }
    }

    /// The account that a payer's payments are booked on.
    fn account_of(&self, authorization: &Authorization) -> String {
        format!("eip155:{}:{}", self.terms.chain_id, authorization.payer)
    }

    /// Whether it is a payment to this gateway, on its ledger, signed by its payer.
    fn is_for_us(&self, authorization: &Authorization) -> Result<(), CallerProblem> {
        let (a, terms) = (authorization, &self.terms);
        let word = |exact, upto| either(a.scheme, exact, upto);
        if a.chain_id != terms.chain_id {
            let error = word("invalid_exact_evm_network_mismatch", "invalid_upto_evm_network_mismatch");
            return Err(invalid(error, format!("it is on another chain than eip155:{}", terms.chain_id)));
        }
        let (taken, spender, facilitator) = match a.scheme {
            Scheme::Exact => (terms.exact, true, true),
            Scheme::Upto { spender, facilitator } => {
                (terms.upto, spender == account(UPTO_PROXY), facilitator == terms.receiver)
            }
        };
        if !taken {
            return Err(invalid("unsupported_scheme", format!("`{}` is not taken here", a.scheme.name())));
        }
        if a.token != terms.token {
            let error = word("invalid_exact_evm_token_mismatch", "permit2_token_mismatch");
            return Err(invalid(error, format!("the token must be {}", terms.token)));
        }
        if a.pay_to != terms.receiver {
            let error = word("invalid_exact_evm_recipient_mismatch", "invalid_permit2_recipient_mismatch");
            return Err(invalid(error, format!("the receiver must be {}", terms.receiver)));
        }
        if !spender {
            let reason = format!("the spender must be x402's proxy for `upto`, {UPTO_PROXY}");
            return Err(invalid("invalid_permit2_spender", reason));
        }
        if !facilitator {
            let reason = format!("the facilitator must be {}", terms.receiver);
            return Err(invalid("upto_facilitator_mismatch", reason));
        }
        if !is_signed(a, &self.token) {
            let error = word("invalid_exact_evm_signature", "invalid_permit2_signature");
            return Err(invalid(error, "its payer has not signed it"));
        }
        Ok(())
    }

    /// What the payer has behind a payment, if it is all there and in time, and the block that says so.
    async fn covered(&self, authorization: &Authorization) -> Result<(u128, u64), Problem> {
        let a = authorization;
        let Ok(_permit) = self.checks.acquire().await else { return Err(CallerProblem::Unverified.into()) };
        let unverified = |e: String| {
            tracing::warn!(reason = e, "a caller's payment could not be checked");
            CallerProblem::Unverified
        };
        let asked = tokio::time::timeout(ANSWER, self.ledger.cover(a)).await;
        let cover = asked.map_err(|e| unverified(e.to_string()))?.map_err(|e| unverified(e.to_string()))?;
        // A chain that mines on demand lags behind, and one for tests may run ahead.
        let now_s = cover.time.max(now().as_secs());
        if a.valid_before < now_s.saturating_add(VALID_S_MIN) {
            let error = either(
                a.scheme,
                "invalid_exact_evm_payload_authorization_valid_before",
                "permit2_deadline_expired",
            );
            let reason = format!(
                "it must be valid for {VALID_S_MIN} seconds more: until an answer is there and settled"
            );
            return Err(invalid(error, reason).into());
        }
        if a.valid_after >= now_s {
            let error = either(
                a.scheme,
                "invalid_exact_evm_payload_authorization_valid_after",
                "permit2_not_yet_valid",
            );
            return Err(invalid(error, "it is not valid yet").into());
        }
        if cover.used {
            return Err(CallerProblem::Used { what: "its nonce is used on the chain".into() }.into());
        }
        if cover.balance < a.amount {
            return Err(CallerProblem::Unfunded { balance: cover.balance, needed: a.amount }.into());
        }
        if cover.allowance < a.amount {
            return Err(CallerProblem::Allowance.into());
        }
        let tried = tokio::time::timeout(ANSWER, self.ledger.would_move(self.sender.account(), a)).await;
        match tried.map_err(|e| unverified(e.to_string()))? {
            Ok(()) => Ok((cover.balance.min(cover.allowance), cover.block)),
            Err(ClientError::Reverted(reason)) => {
                let error = either(
                    a.scheme,
                    "invalid_exact_evm_transaction_simulation_failed",
                    "permit2_simulation_failed",
                );
                Err(invalid(error, format!("the token would not move: {reason}")).into())
            }
            Err(e) => Err(unverified(e.to_string()).into()),
        }
    }

    /// What came of a payment that was sent before.
    async fn known(self: &Arc<Self>, known: CallerPayment, request: RequestKey) -> Result<Opened, Problem> {
        let same = known.request == hex::encode(request.0);
        let other = || CallerProblem::Used { what: "it is another request's".into() };
        let known = match known.stage {
            _ if !same => return Err(other().into()),
            Stage::Running => return Err(CallerProblem::Busy.into()),
            Stage::Answered => {
                self.settle(&known).await?;
                self.accounts.caller_payment(&known.id).await?.ok_or(CallerProblem::Pending)?
            }
            _ => known,
        };
        match (known.stage, known.told.as_deref().and_then(Told::read)) {
            (Stage::Settled, Some(told)) => Ok(Opened::Told(Box::new(told))),
            (Stage::Settled, None) => {
                let what = format!(
                    "it paid for the answer with receipt {}, which its client left, or which is told no more; its provider has it",
                    known.receipt
                );
                Err(CallerProblem::Used { what }.into())
            }
            (Stage::Failed | Stage::Lapsed, _) => Err(CallerProblem::Failed { reason: known.hash }.into()),
            _ => Err(CallerProblem::Pending.into()),
        }
    }

    /// What came of a payment.
    pub(crate) async fn settlement(&self, authorization: &Authorization) -> Option<Settlement> {
        let id = hex::encode(authorization.id().as_bytes());
        let known = self.accounts.caller_payment(&id).await.ok().flatten()?;
        let outcome = match known.stage {
            Stage::Settled => Ok((known.amount.0.into(), known.hash)),
            Stage::Failed | Stage::Lapsed => Err(known.hash),
            Stage::Running | Stage::Answered => return None,
        };
        let (chain_id, payer) = (self.terms.chain_id, authorization.payer);
        // Whose it is was signed; whoever else names the same nonce hears nothing.
        (known.payer == self.account_of(authorization) && is_signed(authorization, &self.token))
            .then_some(Settlement { chain_id, payer, outcome })
    }

    fn settling(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a payment is not reserved.
enum Problem {
    Payment(CallerProblem),
    Books(AccountsError),
}

impl From<CallerProblem> for Problem {
    fn from(problem: CallerProblem) -> Problem {
        Problem::Payment(problem)
    }
}

impl From<AccountsError> for Problem {
    fn from(e: AccountsError) -> Problem {
        Problem::Books(e)
    }
}

fn books(e: &AccountsError) -> Refusal {
    tracing::error!(code = e.code(), reason = %e, "the books of callers cannot be used");
    Refusal::Internal { message: "the gateway's books cannot be used now".into() }
}

impl Reserved {
    /// When an answer is given up: its payment ends soon after.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it moves the same for any answer.
    pub(crate) fn is_whole(&self) -> bool {
        self.authorization.scheme == Scheme::Exact
    }

    /// Keeps the answer, durably, and settles what it cost, before anybody hears that it ended.
    pub(crate) async fn charge(
        mut self,
        fee: u64,
        answer: Answered,
        told: Option<Told>,
    ) -> Result<(), Refusal> {
        let amount = match self.authorization.scheme {
            _ if fee == 0 => 0,
            // The scheme has no other amount.
            Scheme::Exact => u64::try_from(self.authorization.amount).unwrap_or(u64::MAX),
            // An answer by a dearer provider than was expected costs no more than was signed for.
            Scheme::Upto { .. } => fee.min(u64::try_from(self.authorization.amount).unwrap_or(u64::MAX)),
        };
        let told = told.map(Told::bytes);
        let accounts = &self.callers.accounts;
        let kept = accounts.pledge_answered(&self.id, MicroUsd(amount), &answer, told.as_deref()).await;
        if !kept.map_err(|e| books(&e))? {
            let message = "another gateway settles for this account; nothing was charged".into();
            return Err(Refusal::Internal { message });
        }
        self.ended = true;
        let callers = Arc::clone(&self.callers);
        let known = callers.accounts.caller_payment(&self.id).await.map_err(|e| books(&e))?;
        let Some(known) = known else { return Err(callers.refusal(CallerProblem::Pending, self.most)) };
        match callers.settle(&known).await.map_err(|e| books(&e))? {
            (Stage::Settled, _) => Ok(()),
            (Stage::Failed | Stage::Lapsed, reason) => {
                Err(callers.refusal(CallerProblem::Failed { reason }, self.most))
            }
            _ => Err(callers.refusal(CallerProblem::Pending, self.most)),
        }
    }

    /// Gives the payment back.
    pub(crate) async fn release(mut self) {
        self.ended = true;
        let (callers, id) = (Arc::clone(&self.callers), self.id.clone());
        withdraw(&callers, &id).await;
    }
}

async fn withdraw(callers: &Callers, id: &str) {
    if let Err(e) = callers.accounts.withdraw_pledge(id).await {
        // It can be used again when the gateway is started again.
        tracing::warn!(code = e.code(), reason = %e, "a caller's payment could not be given back");
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.ended {
            let (callers, id) = (Arc::clone(&self.callers), self.id.clone());
            runtime.spawn(async move { withdraw(&callers, &id).await });
        }
    }
}
