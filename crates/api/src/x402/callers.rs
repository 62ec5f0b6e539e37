//! Callers without an account: payment by signature, schemes `exact` (EIP-3009) and `upto` (Permit2 with x402's witness), version 2.
//!
//! What a client sends becomes an [`Authorization`] or a refusal in one sentence; what it must pay, and what came of a payment, are told in x402's own
//! words. Whether a signature holds and is covered is not known here.

use assay_core::authorization::{Authorization, Scheme};
use assay_core::id::{AccountAddress, Hash, SignatureBytes};
use axum::http::StatusCode;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{VERSION, decimal, network};

/// Seconds for which an authorization is asked to be valid: an answer may take so long.
pub const AUTHORIZED_S: u64 = 1800;

/// On which terms somebody without an account is answered.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CallerTerms {
    /// The chain.
    pub chain_id: u64,
    /// The token.
    pub token: AccountAddress,
    /// What the token calls itself where it is signed for, and its version there.
    pub token_domain: (String, String),
    /// Who is paid, and settles.
    pub receiver: AccountAddress,
    /// Whether `exact` is taken.
    pub exact: bool,
    /// Whether `upto` is taken.
    pub upto: bool,
    /// The most that the request can cost, in units of the token.
    pub most: u64,
}

/// A payment by signature that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, thiserror::Error)]
#[error("{problem}; this request may cost up to {} millionths of a dollar", terms.most)]
pub struct CallerRefused {
    /// What is wrong.
    pub problem: CallerProblem,
    /// What would be right.
    pub terms: CallerTerms,
}

/// What is wrong with a payment by signature.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, thiserror::Error)]
pub enum CallerProblem {
    /// There is none.
    #[error(
        "send an API key, or a payment by x402 on the terms that the header `payment-required` names; nothing was charged"
    )]
    Required,
    /// It can never be settled here, or not for this request.
    #[error("the payment is not taken: {reason}; nothing was charged")]
    Invalid {
        /// x402's name of it.
        error: String,
        /// Why.
        reason: String,
    },
    /// Permit2 may not move the payer's tokens.
    #[error(
        "Permit2 may not move enough of the payer's tokens: approve it once, or pay by `exact`; nothing was charged"
    )]
    Allowance,
    /// The payer has less than it signed for and has signed for elsewhere here.
    #[error(
        "the payer has {balance} millionths of a dollar, and {needed} are needed with its other payments here; nothing was charged"
    )]
    Unfunded {
        /// What it has.
        balance: u128,
        /// What it signed for.
        needed: u128,
    },
    /// It was used for something else, or elsewhere.
    #[error("this payment was used already: {what}")]
    Used {
        /// For what.
        what: String,
    },
    /// Its request is under way.
    #[error("the request of this payment is under way; send it again for its answer")]
    Busy,
    /// Too many at once.
    #[error(
        "{running} payments of this payer are under way, and it has settled too few for more; wait for one to end"
    )]
    Crowded {
        /// How many.
        running: u32,
    },
    /// The answer is there and is kept back: the payment could not be settled.
    #[error("the payment could not be settled, and the answer is kept back: {reason}")]
    Failed {
        /// Why.
        reason: String,
    },
    /// An earlier payment of this payer could not be settled, or the operator refuses it.
    #[error("payments of this payer are refused for now: {reason}")]
    Barred {
        /// Why.
        reason: String,
    },
    /// The answer is there; the chain has not settled the payment yet.
    #[error(
        "the answer is ready, and its payment is being settled; send the request again with the same payment"
    )]
    Pending,
    /// The ledger did not say whether the payment is covered.
    #[error("the ledger cannot be asked now whether the payment is covered; nothing was charged")]
    Unverified,
}

impl CallerProblem {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            CallerProblem::Required => "payment_required",
            CallerProblem::Invalid { .. } => "payment_invalid",
            CallerProblem::Allowance => "permit2_allowance_required",
            CallerProblem::Unfunded { .. } => "payment_unfunded",
            CallerProblem::Used { .. } => "payment_used",
            CallerProblem::Busy => "payment_busy",
            CallerProblem::Crowded { .. } => "payer_busy",
            CallerProblem::Failed { .. } => "payment_failed",
            CallerProblem::Barred { .. } => "payer_refused",
            CallerProblem::Pending => "settlement_pending",
            CallerProblem::Unverified => "ledger_unreachable",
        }
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            CallerProblem::Allowance => StatusCode::PRECONDITION_FAILED,
            CallerProblem::Used { .. } | CallerProblem::Busy => StatusCode::CONFLICT,
            CallerProblem::Crowded { .. } => StatusCode::TOO_MANY_REQUESTS,
            CallerProblem::Pending | CallerProblem::Unverified => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::PAYMENT_REQUIRED,
        }
    }

    /// Whether the same payment may be taken later.
    pub fn may_retry(&self) -> bool {
        matches!(
            self,
            CallerProblem::Busy
                | CallerProblem::Crowded { .. }
                | CallerProblem::Pending
                | CallerProblem::Unverified
        )
    }

    /// x402's name of it, where it has one.
    fn error(&self) -> &str {
        match self {
            CallerProblem::Required => "PAYMENT-SIGNATURE header is required",
            CallerProblem::Invalid { error, .. } => error,
            CallerProblem::Unfunded { .. } => "insufficient_funds",
            other => other.code(),
        }
    }
}

/// What came of a payment by signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The chain.
    pub chain_id: u64,
    /// Who paid.
    pub payer: AccountAddress,
    /// What was moved, in units of the token, and by which transaction: an empty text if nothing had to be. Or why nothing could be.
    pub outcome: Result<(u128, String), String>,
}

/// What must be paid for a resource. `upto` comes first: clients take the first scheme that they have.
pub(super) fn required(refused: &CallerRefused, url: &str) -> Value {
    let terms = &refused.terms;
    let (name, version) = &terms.token_domain;
    let accept = |scheme: &str, extra: Value| {
        json!({
            "scheme": scheme, "network": network(terms.chain_id), "amount": terms.most.to_string(), "asset": terms.token,
            "payTo": terms.receiver, "maxTimeoutSeconds": AUTHORIZED_S, "extra": extra,
        })
    };
    let upto = terms.upto.then(|| {
        let extra = json!({"name": name, "version": version, "assetTransferMethod": "permit2", "facilitatorAddress": terms.receiver});
        accept("upto", extra)
    });
    let exact = terms.exact.then(|| {
        accept("exact", json!({"name": name, "version": version, "assetTransferMethod": "eip3009"}))
    });
    let accepts: Vec<Value> = upto.into_iter().chain(exact).collect();
    json!({
        "x402Version": VERSION, "error": refused.problem.error(),
        "resource": {"url": url, "description": "AI inference", "mimeType": "application/json"}, "accepts": accepts,
    })
}

/// What came of a payment.
pub(super) fn settled(settlement: &Settlement) -> Value {
    let (success, transaction, amount) = match &settlement.outcome {
        Ok((amount, transaction)) => (true, transaction.as_str(), *amount),
        Err(_) => (false, "", 0),
    };
    let mut said = json!({
        "success": success, "transaction": transaction, "network": network(settlement.chain_id), "payer": settlement.payer,
        "amount": amount.to_string(),
    });
    if let Err(reason) = &settlement.outcome {
        said["errorReason"] = json!(reason);
    }
    said
}

#[derive(Deserialize)]
struct Accepted {
    network: String,
    asset: AccountAddress,
}

#[derive(Deserialize)]
struct Exact {
    signature: SignatureBytes,
    authorization: Transfer,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transfer {
    from: AccountAddress,
    to: AccountAddress,
    value: String,
    valid_after: String,
    valid_before: String,
    nonce: Hash,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Upto {
    signature: SignatureBytes,
    permit2_authorization: Permit,
}

#[derive(Deserialize)]
struct Permit {
    permitted: Permitted,
    from: AccountAddress,
    spender: AccountAddress,
    nonce: String,
    deadline: String,
    witness: Witness,
}

#[derive(Deserialize)]
struct Permitted {
    token: AccountAddress,
    amount: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Witness {
    to: AccountAddress,
    facilitator: AccountAddress,
    valid_after: String,
}

/// A payment of the scheme that the client has accepted; what else it sends is not needed.
pub(super) fn parse(scheme: &str, accepted: Value, payload: Value) -> Result<Authorization, String> {
    let accepted: Accepted = serde_json::from_value(accepted).map_err(|e| format!("`accepted`: {e}"))?;
    let chain_id = accepted.network.strip_prefix("eip155:").and_then(seconds);
    let chain_id = chain_id.ok_or("`accepted.network` must be `eip155:` and the chain's number")?;
    let of = |e: serde_json::Error| format!("`payload` of `{scheme}`: {e}");
    let amount = |text: &str| decimal(text).ok_or("the amount must be a whole number below 2^128");
    let time = |text: &str| seconds(text).ok_or("times must be whole seconds below 2^64");
    if scheme == "exact" {
        let Exact { signature, authorization: a } = serde_json::from_value(payload).map_err(of)?;
        return Ok(Authorization {
            scheme: Scheme::Exact,
            chain_id,
            token: accepted.asset,
            payer: a.from,
            pay_to: a.to,
            amount: amount(&a.value)?,
            nonce: a.nonce,
            valid_after: time(&a.valid_after)?,
            valid_before: time(&a.valid_before)?,
            signature,
        });
    }
    let Upto { signature, permit2_authorization: p } = serde_json::from_value(payload).map_err(of)?;
    Ok(Authorization {
        scheme: Scheme::Upto { spender: p.spender, facilitator: p.witness.facilitator },
        chain_id,
        token: p.permitted.token,
        payer: p.from,
        pay_to: p.witness.to,
        amount: amount(&p.permitted.amount)?,
        nonce: word(&p.nonce).ok_or("`nonce` must be a whole number below 2^256")?,
        valid_after: time(&p.witness.valid_after)?,
        valid_before: time(&p.deadline)?,
        signature,
    })
}

fn seconds(text: &str) -> Option<u64> {
    decimal(text).and_then(|n| u64::try_from(n).ok())
}

/// A number of up to 32 bytes: decimal digits, or hexadecimal after `0x`.
fn word(text: &str) -> Option<Hash> {
    let mut bytes = [0u8; 32];
    if let Some(hex) = text.strip_prefix("0x") {
        if hex.is_empty() || hex.len() > 64 {
            return None;
        }
        let padded = format!("{hex:0>64}");
        return padded.parse().ok();
    }
    if text.is_empty() || text.len() > 78 || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    for digit in text.bytes() {
        let mut carry = u32::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * 10 + carry;
            *byte = u8::try_from(value & 0xff).ok()?;
            carry = value >> 8;
        }
        if carry > 0 {
            return None;
        }
    }
    Some(Hash::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> AccountAddress {
        AccountAddress::from_bytes([n; 20])
    }

    fn accepted() -> Value {
        json!({"scheme": "any", "network": "eip155:84532", "amount": "5", "asset": address(1), "payTo": address(3)})
    }

    fn exact() -> Value {
        let signature = SignatureBytes::from_bytes([8; 65]);
        json!({"signature": signature, "authorization": {
            "from": address(2), "to": address(3), "value": "5", "validAfter": "0", "validBefore": "1740672154",
            "nonce": Hash::from_bytes([7; 32]),
        }})
    }

    fn upto() -> Value {
        let signature = SignatureBytes::from_bytes([8; 65]);
        json!({"signature": signature, "permit2Authorization": {
            "permitted": {"token": address(1), "amount": "5"}, "from": address(2), "spender": address(4),
            "nonce": "258", "deadline": "1740672154",
            "witness": {"to": address(3), "facilitator": address(3), "validAfter": "0"},
        }})
    }

    #[test]
    fn both_schemes_are_read() {
        let read = parse("exact", accepted(), exact()).unwrap();
        assert_eq!((read.chain_id, read.amount, read.valid_before), (84532, 5, 1_740_672_154));
        assert_eq!((read.token, read.payer, read.pay_to), (address(1), address(2), address(3)));
        assert_eq!((read.scheme, read.nonce), (Scheme::Exact, Hash::from_bytes([7; 32])));
        let read = parse("upto", accepted(), upto()).unwrap();
        let scheme = Scheme::Upto { spender: address(4), facilitator: address(3) };
        assert_eq!((read.scheme, read.token, read.pay_to), (scheme, address(1), address(3)));
        assert_eq!(read.nonce.as_bytes()[30..], [1, 2]);
    }

    #[test]
    fn nonces_are_numbers_of_32_bytes() {
        let most = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!(word(most), Some(Hash::from_bytes([0xff; 32])));
        assert_eq!(word(&most.replace("9935", "9936")), None);
        assert_eq!(word("0"), Some(Hash::ZERO));
        assert_eq!(word("0x102"), word("258"));
        assert_eq!(word(&format!("0x{}", "ff".repeat(32))), word(most));
        for bad in ["", "0x", "01", "-1", "1e3", "0xg", &format!("0x1{}", "00".repeat(32)), &"1".repeat(79)] {
            assert_eq!(word(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_no_payment_is_refused_in_one_sentence() {
        let with = |value: fn() -> Value, at: &str, to: Value| {
            let mut value = value();
            *value.pointer_mut(at).unwrap() = to;
            value
        };
        let bad = [
            ("exact", accepted(), json!({})),
            ("exact", accepted(), upto()),
            ("upto", accepted(), exact()),
            ("exact", json!([]), exact()),
            ("exact", with(accepted, "/network", json!("base")), exact()),
            ("exact", with(accepted, "/network", json!("eip155:01")), exact()),
            ("exact", with(accepted, "/asset", json!("0x01")), exact()),
            ("exact", accepted(), with(exact, "/authorization/value", json!(5))),
            ("exact", accepted(), with(exact, "/authorization/value", json!("05"))),
            ("exact", accepted(), with(exact, "/authorization/validBefore", json!("18446744073709551616"))),
            ("exact", accepted(), with(exact, "/authorization/nonce", json!("258"))),
            ("exact", accepted(), with(exact, "/signature", json!(format!("0x{}", "08".repeat(66))))),
            ("upto", accepted(), with(upto, "/permit2Authorization/nonce", json!("-1"))),
            ("upto", accepted(), with(upto, "/permit2Authorization/witness/facilitator", json!(null))),
            ("upto", accepted(), with(upto, "/permit2Authorization/permitted/amount", json!("1e3"))),
        ];
        for (scheme, accepted, payload) in bad {
            let refused = parse(scheme, accepted, payload).unwrap_err();
            assert!(refused.len() < 300, "{refused}");
        }
    }

    #[test]
    fn both_schemes_are_offered_the_metered_one_first() {
        let terms = CallerTerms {
            chain_id: 84532,
            token: address(1),
            token_domain: ("USDC".into(), "2".into()),
            receiver: address(3),
            exact: true,
            upto: true,
            most: 70,
        };
        let refused = CallerRefused { problem: CallerProblem::Required, terms };
        let said = required(&refused, "http://gateway/v1/x");
        assert_eq!(said["x402Version"], 2);
        let [upto, exact] = &said["accepts"].as_array().unwrap()[..] else { panic!("{said}") };
        assert_eq!((&upto["scheme"], &exact["scheme"]), (&json!("upto"), &json!("exact")));
        for accept in [upto, exact] {
            assert_eq!((&accept["network"], &accept["amount"]), (&json!("eip155:84532"), &json!("70")));
            assert_eq!((&accept["asset"], &accept["payTo"]), (&json!(address(1)), &json!(address(3))));
            assert_eq!(
                (&accept["extra"]["name"], &accept["extra"]["version"]),
                (&json!("USDC"), &json!("2"))
            );
        }
        assert_eq!(upto["extra"]["facilitatorAddress"], json!(address(3)));
    }

    #[test]
    fn what_came_of_it_is_told_in_x402s_words() {
        let mut settlement = Settlement { chain_id: 1, payer: address(2), outcome: Ok((7, "0xab".into())) };
        let said = settled(&settlement);
        assert_eq!(
            (&said["success"], &said["amount"], &said["transaction"]),
            (&json!(true), &json!("7"), &json!("0xab"))
        );
        settlement.outcome = Err("insufficient_funds".into());
        let said = settled(&settlement);
        assert_eq!(
            (&said["success"], &said["errorReason"], &said["transaction"]),
            (&json!(false), &json!("insufficient_funds"), &json!(""))
        );
    }
}
