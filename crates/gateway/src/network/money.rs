//! A request's money: what is set aside before it runs, and what is kept of it.

use std::time::Duration;

use assay_api::{Caller, Owner, Refusal};
use assay_core::embedding::{EmbeddingInput, EmbeddingRequest};
use assay_core::id::{NodeAddress, Nonce, ReceiptId};
use assay_core::keccak::keccak256;
use assay_core::price::Price;
use assay_core::receipt::SignedReceipt;
use assay_core::request::{Prompt, Request};
use futures_util::FutureExt as _;

use crate::accounts::{
    self, Accounts, AccountsError, Answered, Ask, Attempt, HoldId, KeyName, MicroUsd, Refused, RequestKey,
    Retried, Secret,
};
use crate::callers::{Reserved, Told};

/// A hold ends by itself after this long: longer than any answer takes.
const HOLD: Duration = Duration::from_secs(3600);
/// Bytes of an answer that the books keep to tell it again, at most. Larger ones are told by the gateway that gave them, while it has them.
const TOLD_BYTES_MAX: usize = 1 << 20;
/// Tokens that a template may put around a message.
const MESSAGE_TOKENS: usize = 64;

pub(super) fn now_ms() -> i64 {
    i64::try_from(super::now().as_millis()).unwrap_or(i64::MAX)
}

/// What requests have in common that are the same, sent again.
pub(super) fn request_key(request: &[u8; 32], nonce: Option<&Nonce>) -> RequestKey {
    let nonce = nonce.map_or(&[][..], |nonce| nonce.as_bytes());
    RequestKey(*keccak256(&[b"assay/request-key/1", request, nonce]).as_bytes())
}

/// The most that embedding texts is expected to cost: no token has less than a byte.
pub(super) fn most_embedding(price: Option<Price>, request: &EmbeddingRequest, window: u32) -> u64 {
    let Some(price) = price else { return 0 };
    let tokens = |input: &EmbeddingInput| {
        let tokens = match input {
            EmbeddingInput::Text(text) => text.len() + MESSAGE_TOKENS,
            EmbeddingInput::Tokens(ids) => ids.len(),
        };
        u32::try_from(tokens).unwrap_or(u32::MAX).min(window)
    };
    price.fee(request.inputs.iter().fold(0, |sum: u32, input| sum.saturating_add(tokens(input))), 0)
}

/// The most that a request can ever cost, whatever its prompt is: the window is full, and the answer as long as it may be.
pub(super) fn most_ever(price: Option<Price>, request: &Request, window: u32) -> u64 {
    let answer = if request.max_tokens == 0 { window } else { request.max_tokens.min(window) };
    price.map_or(0, |price| price.fee(window, answer))
}

/// The most that a request is expected to cost: no token has less than a byte of the prompt, and an answer ends with the window.
pub(super) fn most(price: Option<Price>, request: &Request, window: u32) -> u64 {
    let Some(price) = price else { return 0 };
    let bytes = match &request.prompt {
        Prompt::Tokens(ids) => ids.len(),
        Prompt::Text(text) => text.len() + MESSAGE_TOKENS,
        // Templates write tools in their own ways: with tools, the whole window counts.
        Prompt::Chat { tools, .. } if !tools.is_empty() => usize::MAX,
        Prompt::Chat { messages, .. } => {
            let of = |m: &assay_core::request::Message| {
                let calls: usize = m.tool_calls.iter().map(|c| c.name.len() + c.arguments.len()).sum();
                m.content.len() + calls + MESSAGE_TOKENS
            };
            messages.iter().map(of).sum::<usize>() + MESSAGE_TOKENS
        }
    };
    let prompt = u32::try_from(bytes).unwrap_or(u32::MAX).min(window);
    let answer = if request.max_tokens == 0 { window } else { request.max_tokens.min(window) };
    price.fee(prompt, answer)
}

/// Money set aside of an account's balance. Dropped, it goes back.
pub(super) struct Held {
    accounts: Accounts,
    hold: Option<HoldId>,
}

impl Held {
    /// Its name, for who ends it.
    fn end(mut self) -> Option<(Accounts, HoldId)> {
        let hold = self.hold.take()?;
        Some((self.accounts.clone(), hold))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (Some(hold), Ok(runtime)) = (self.hold.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let accounts = self.accounts.clone();
        runtime.spawn(async move { release(&accounts, hold).await });
    }
}

async fn release(accounts: &Accounts, hold: HoldId) {
    if let Err(e) = accounts.release(hold).await {
        // It ends by itself.
        tracing::warn!(code = e.code(), reason = %e, "a hold could not be released");
    }
}

/// Money for one request. Dropped without an end, it goes back.
pub(super) enum Purse {
    /// Set aside of an account's balance.
    Hold(Held),
    /// Out of the wallet of somebody without an account.
    Caller(Box<Reserved>),
}

/// What a key may do.
pub(super) enum Opened {
    /// Run the request with this.
    Purse(Purse),
    /// Its answer was paid for before, and the books tell it.
    Told(Box<Told>),
    /// Its answer was paid for before, and is too large for the books.
    Answered(ReceiptId),
}

fn unknown() -> Refusal {
    Refusal::Unauthorised {
        message: "a key is needed: send `Authorization: Bearer sk-assay-…`, as `assay keys create` prints it"
            .into(),
    }
}

fn secret(caller: &Caller) -> Result<Secret, Refusal> {
    let key = caller.key.as_ref().ok_or_else(unknown)?;
    key.reveal().parse().map_err(|_| unknown())
}

/// On whose behalf files are kept and batches run.
pub(super) async fn owner(accounts: &Accounts, caller: &Caller) -> Result<Owner, Refusal> {
    let key = accounts.key(secret(caller)?.hash()).await.map_err(refusal)?;
    Ok(Owner { account: key.account, key: key.id })
}

fn refusal(e: AccountsError) -> Refusal {
    let AccountsError::Refused(refused) = e else {
        tracing::error!(code = e.code(), reason = %e, "the books cannot be used");
        let message = "the gateway's books cannot be used now; nothing was charged".into();
        return Refusal::Internal { message };
    };
    let message = refused.to_string();
    match refused {
        Refused::UnknownKey | Refused::Revoked => Refusal::Unauthorised { message },
        Refused::Balance { .. } => Refusal::Balance { message },
        Refused::AtOnce { .. } => Refusal::Limited { message, retry_after_s: 1 },
        Refused::PerMinute { wait_ms, .. } | Refused::PerDay { wait_ms, .. } => {
            let retry_after_s = u32::try_from(wait_ms.div_ceil(1000)).unwrap_or(u32::MAX);
            Refusal::Limited { message, retry_after_s }
        }
    }
}

impl Purse {
    /// Asks the books whether the caller's key may begin this request.
    pub(super) async fn open(
        accounts: &Accounts,
        caller: &Caller,
        request: RequestKey,
        most: u64,
    ) -> Result<Opened, Refusal> {
        let key = match &caller.behalf {
            Some(owner) => KeyName::Id(owner.key.clone()),
            None => KeyName::Secret(secret(caller)?.hash()),
        };
        let now_ms = now_ms();
        let lasts = i64::try_from(HOLD.as_millis()).unwrap_or(i64::MAX);
        let ask = Ask {
            key,
            request,
            amount: MicroUsd(most),
            attempt: if caller.again { Attempt::Again } else { Attempt::First },
            now_ms,
            expires_ms: now_ms.saturating_add(lasts),
        };
        // A client that leaves meanwhile ends its request's future, but what was set aside for it goes back.
        let accounts = accounts.clone();
        let opening = async move {
            Ok(match accounts.reserve(ask).await? {
                accounts::Reserved::Held(hold) => {
                    Opened::Purse(Purse::Hold(Held { accounts, hold: Some(hold.id) }))
                }
                accounts::Reserved::Answered { charge, told } => {
                    match (told.as_deref().and_then(Told::read), charge.answer.receipt.parse()) {
                        (Some(told), _) => Opened::Told(Box::new(told)),
                        (None, Ok(receipt)) => Opened::Answered(receipt),
                        (None, Err(_)) => return Ok(None),
                    }
                }
            }
            .into())
        };
        let mut opening = Box::pin(opening);
        let opened = match (&mut opening).now_or_never() {
            Some(opened) => opened,
            None => {
                let opened = tokio::spawn(opening).await;
                opened.map_err(|e| Refusal::Internal { message: e.to_string() })?
            }
        };
        let none = || Refusal::Internal { message: "the books name a receipt that is none".into() };
        opened.map_err(refusal)?.ok_or_else(none)
    }

    /// Sets money aside for a request that was answered before, and is answered and charged once more.
    pub(super) async fn anew(
        accounts: &Accounts,
        caller: &Caller,
        request: RequestKey,
        most: u64,
    ) -> Result<Purse, Refusal> {
        let first = Caller { again: false, ..caller.clone() };
        match Purse::open(accounts, &first, request, most).await? {
            Opened::Purse(purse) => Ok(purse),
            Opened::Answered(_) | Opened::Told(_) => {
                Err(Refusal::Internal { message: "the books answer a first attempt".into() })
            }
        }
    }

    /// When an answer must have ended.
    pub(super) fn deadline(&self) -> Option<tokio::time::Instant> {
        match self {
            Purse::Hold(_) => None,
            Purse::Caller(reserved) => Some(reserved.deadline()),
        }
    }

    /// Whether what it pays is the same however much of an answer there is.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Purse::Hold(_) => false,
            Purse::Caller(reserved) => reserved.is_whole(),
        }
    }

    /// Keeps the fee, durably, before anybody hears that the answer ended. `told` is what who asks again is told; nothing of an answer that was stopped.
    pub(super) async fn charge(
        self,
        fee: u64,
        receipt: &SignedReceipt,
        provider: NodeAddress,
        model: &str,
        told: impl FnOnce() -> Option<Told>,
    ) -> Result<(), Refusal> {
        let answer = Answered {
            receipt: receipt.receipt.id().to_string(),
            provider: provider.to_string(),
            model: model.to_owned(),
            prompt_tokens: receipt.receipt.prompt_tokens,
            completion_tokens: receipt.receipt.completion_tokens,
        };
        match self {
            Purse::Hold(held) => {
                let Some((accounts, hold)) = held.end() else { return Ok(()) };
                let retried = match told().map(Told::bytes) {
                    Some(told) if told.len() <= TOLD_BYTES_MAX => Retried::Told(told),
                    Some(_) => Retried::Known,
                    None => Retried::Anew,
                };
                let charged = accounts.charge(hold, MicroUsd(fee), answer, retried, now_ms()).await;
                charged.map(drop).map_err(refusal)
            }
            Purse::Caller(reserved) => reserved.charge(fee, answer, told()).await,
        }
    }

    /// Gives everything back.
    pub(super) async fn release(self) {
        match self {
            Purse::Hold(held) => {
                if let Some((accounts, hold)) = held.end() {
                    release(&accounts, hold).await;
                }
            }
            Purse::Caller(reserved) => reserved.release().await,
        }
    }
}
