//! Payment over HTTP by x402, version 2, on EVM: the headers by which a client that holds its own channel pays a node (scheme `batch-settlement`), and one
//! without an account pays a gateway ([`callers`]).
//!
//! A request without payment, or with one that is not taken, gets 402 and `PAYMENT-REQUIRED`; the body is the route's own error. A request carries its
//! payment in `PAYMENT-SIGNATURE`, and an answer says in `PAYMENT-RESPONSE` what was charged. Other schemes, deposits by signature and refunds are refused:
//! channels are filled on the ledger. What a client sends is bounded, and becomes a [`Sent`] or a refusal in one sentence.

pub(crate) mod callers;

use std::sync::Arc;

use assay_core::authorization::Authorization;
use assay_core::id::{AccountAddress, ChannelId, Hash, NodeAddress, ReceiptId, SignatureBytes};
use assay_core::payment::{ChannelTerms, Payment};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};

use self::callers::CallerRefused;
use crate::payment::{ChannelState, PaymentProblem, PaymentRefused};
use crate::{Inference, Refusal};

/// What must be paid.
pub(crate) const REQUIRED: HeaderName = HeaderName::from_static("payment-required");
/// A client's payment.
pub(crate) const SIGNATURE: HeaderName = HeaderName::from_static("payment-signature");
/// What came of it.
pub(crate) const RESPONSE: HeaderName = HeaderName::from_static("payment-response");
/// Most bytes of a payment's header.
const SIGNATURE_BYTES_MAX: usize = 8 << 10;
const VERSION: u64 = 2;
const SCHEME: &str = "batch-settlement";
/// Seconds within which an answer to a paid request is to be expected.
const TIMEOUT_S: u64 = 3600;

/// What a client sends; whatever else it sends is not needed.
#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "x402Version")]
    version: u64,
    accepted: Value,
    payload: Value,
}

/// A payment as it came, not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Out of a channel.
    Voucher(Box<Payment>),
    /// Out of a wallet.
    Authorization(Box<Authorization>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    #[serde(rename = "type")]
    kind: String,
    channel_config: Config,
    voucher: Voucher,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    payer: AccountAddress,
    payer_authorizer: AccountAddress,
    receiver: NodeAddress,
    receiver_authorizer: AccountAddress,
    token: AccountAddress,
    withdraw_delay: u64,
    salt: Hash,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Voucher {
    max_claimable_amount: String,
    signature: SignatureBytes,
}

/// The payment that came with a request, if one did. Whether it can be claimed says whoever is paid.
pub(crate) fn payment(headers: &HeaderMap) -> Result<Option<Sent>, Refusal> {
    let Some(value) = headers.get(SIGNATURE) else { return Ok(None) };
    let invalid = |message: String| Refusal::Invalid { param: SIGNATURE.as_str().into(), message };
    if value.len() > SIGNATURE_BYTES_MAX {
        return Err(invalid(format!("the header has more than {SIGNATURE_BYTES_MAX} bytes")));
    }
    let json = STANDARD.decode(value.as_bytes());
    let json = json.map_err(|_| invalid("the header must be JSON in base64".into()))?;
    let sent: Envelope = serde_json::from_slice(&json).map_err(|e| invalid(format!("the payment: {e}")))?;
    let Envelope { version, accepted, payload } = sent;
    let scheme = accepted.get("scheme").and_then(Value::as_str).unwrap_or_default().to_owned();
    if version == VERSION && matches!(scheme.as_str(), "exact" | "upto") {
        let read = callers::parse(&scheme, accepted, payload);
        return read.map(|read| Some(Sent::Authorization(Box::new(read)))).map_err(invalid);
    }
    if version != VERSION || scheme != SCHEME {
        let message = format!(
            "payments are taken by x402 version {VERSION}, scheme `{SCHEME}` by nodes, and `exact` and `upto` by gateways"
        );
        return Err(invalid(message));
    }
    let sent: Payload = serde_json::from_value(payload).map_err(|e| invalid(format!("`payload`: {e}")))?;
    if sent.kind != "voucher" {
        return Err(invalid(format!("the payload of `{SCHEME}` must be a `voucher`")));
    }
    let (config, voucher) = (sent.channel_config, sent.voucher);
    let max = decimal(&voucher.max_claimable_amount)
        .ok_or_else(|| invalid("`maxClaimableAmount` must be a whole number below 2^128".into()))?;
    let channel = ChannelTerms {
        payer: config.payer,
        payer_authorizer: config.payer_authorizer,
        receiver: config.receiver,
        receiver_authorizer: config.receiver_authorizer,
        token: config.token,
        withdraw_delay_s: config.withdraw_delay,
        salt: config.salt,
    };
    Ok(Some(Sent::Voucher(Box::new(Payment { channel, max, signature: voucher.signature }))))
}

/// A number in its one form: digits, and no zero in front.
fn decimal(text: &str) -> Option<u128> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten()
}

fn encoded(value: &Value) -> Option<HeaderValue> {
    HeaderValue::from_str(&STANDARD.encode(value.to_string())).ok()
}

fn network(chain_id: u64) -> String {
    format!("eip155:{chain_id}")
}

fn state(channel: &ChannelState) -> Value {
    json!({
        "channelId": channel.id, "balance": channel.balance.to_string(), "totalClaimed": channel.claimed.to_string(),
        "withdrawRequestedAt": 0, "refundNonce": "0", "chargedCumulativeAmount": channel.charged.to_string(),
    })
}

/// x402's name of what is wrong, where it has one.
fn error(problem: &PaymentProblem) -> &'static str {
    match problem {
        PaymentProblem::Stale(_) => "invalid_batch_settlement_evm_cumulative_amount_mismatch",
        PaymentProblem::Busy => "invalid_batch_settlement_evm_channel_busy",
        PaymentProblem::Unfunded { .. } => "invalid_batch_settlement_evm_cumulative_exceeds_balance",
        PaymentProblem::Unverified => "invalid_batch_settlement_evm_channel_state_read_failed",
        other => other.code(),
    }
}

/// What must be paid for a resource, with what the receiver knows of the channel if the client does not.
fn required(refused: &PaymentRefused, url: &str) -> Value {
    let terms = &refused.terms;
    let mut extra = json!({
        "receiverAuthorizer": terms.receiver, "withdrawDelay": terms.withdraw_delay_s, "name": terms.token_domain.0,
        "version": terms.token_domain.1, "verifyingContract": terms.channels,
    });
    if let PaymentProblem::Stale(channel) = &refused.problem {
        extra["channelState"] = state(channel);
        if let Some((max, signature)) = &channel.voucher {
            extra["voucherState"] = json!({"signedMaxClaimable": max.to_string(), "signature": signature});
        }
    }
    json!({
        "x402Version": VERSION, "error": error(&refused.problem), "resource": {"url": url},
        "accepts": [{
            "scheme": SCHEME, "network": network(terms.chain_id), "amount": terms.most.to_string(), "asset": terms.token,
            "payTo": terms.receiver, "maxTimeoutSeconds": TIMEOUT_S, "extra": extra,
        }],
    })
}

/// What came of a payment. Of a stream the charge is not known yet: its receipt says it.
fn settled(
    chain_id: u64,
    payer: &AccountAddress,
    charged: Option<u64>,
    channel: Option<&ChannelState>,
) -> Value {
    let mut extra = json!({});
    if let Some(charged) = charged {
        extra["chargedAmount"] = json!(charged.to_string());
    }
    if let Some(channel) = channel {
        extra["channelState"] = state(channel);
    }
    json!({
        "success": true, "transaction": "", "network": network(chain_id), "payer": payer, "amount": "", "extra": extra,
    })
}

/// Left on a response that refuses a payment, for its header.
#[derive(Clone)]
pub(crate) enum Demanded {
    /// By a node.
    Voucher(Box<PaymentRefused>),
    /// By a gateway.
    Authorization(Box<CallerRefused>),
}

/// What was asked for, and out of which it is paid.
pub(crate) struct Paid {
    url: String,
    sent: Option<Sent>,
}

impl Paid {
    /// Of a request.
    pub(crate) fn of<B>(request: &axum::http::Request<B>) -> Paid {
        let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        let path: String = request.uri().path().chars().take(256).collect();
        // What is no payment is refused by the route.
        Paid { url: format!("http://{host}{path}"), sent: payment(request.headers()).ok().flatten() }
    }

    /// Says in the response's headers what must be paid, or what was charged. A stream begins before that is known: what came of a payment by signature
    /// is a comment at its end.
    pub(crate) async fn tell<I: Inference>(self, inference: &Arc<I>, response: &mut Response) {
        let demanded = match response.extensions().get::<Demanded>() {
            Some(Demanded::Voucher(refused)) => Some(required(refused, &self.url)),
            Some(Demanded::Authorization(refused)) => Some(callers::required(refused, &self.url)),
            None => None,
        };
        if let Some(value) = demanded.as_ref().and_then(encoded) {
            response.headers_mut().insert(REQUIRED, value);
        }
        match self.sent {
            Some(Sent::Voucher(payment)) if demanded.is_none() => {
                charged(payment.channel.payer, inference.as_ref(), response).await;
            }
            Some(Sent::Authorization(payment)) => moved(*payment, inference, response).await,
            _ => {}
        }
    }
}

/// Says what came of a payment by signature.
async fn moved<I: Inference>(payment: Authorization, inference: &Arc<I>, response: &mut Response) {
    if let Some(settlement) = inference.settlement(&payment).await {
        if let Some(value) = encoded(&callers::settled(&settlement)) {
            response.headers_mut().insert(RESPONSE, value);
        }
        return;
    }
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
        let inference = Arc::clone(inference);
        let last = async move {
            let settlement = inference.settlement(&payment).await?;
            let said = STANDARD.encode(callers::settled(&settlement).to_string());
            Some(Ok(Bytes::from(format!(": {RESPONSE} {said}\n\n"))))
        };
        let told = std::mem::take(response.body_mut()).into_data_stream();
        let last = stream::once(last).filter_map(std::future::ready);
        *response.body_mut() = Body::from_stream(told.chain(last));
    }
}

/// Says what was charged out of a channel.
async fn charged<I: Inference>(payer: AccountAddress, inference: &I, response: &mut Response) {
    let headers = response.headers();
    let receipt = headers.get(crate::server::RECEIPT_HEADER).and_then(|ids| ids.to_str().ok());
    let Some(receipt) = receipt.and_then(|ids| ids.parse::<ReceiptId>().ok()) else { return };
    let whole = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let record = if whole { inference.receipt(receipt).await.ok().flatten() } else { None };
    let said = match record {
        Some(record) => {
            let signed = record.receipt();
            let (channel, fee) = (signed.receipt.payer_channel, signed.receipt.fee_micro_usd);
            if channel == ChannelId::ZERO {
                return;
            }
            let state = inference.channel(channel).await;
            settled(signed.domain.chain_id, &payer, Some(fee), state.as_ref())
        }
        None => match inference.settles() {
            Some(domain) if !whole => settled(domain.chain_id, &payer, None, None),
            _ => return,
        },
    };
    if let Some(value) = encoded(&said) {
        response.headers_mut().insert(RESPONSE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::PaymentTerms;

    fn sent() -> Value {
        let address = |n: u8| format!("0x{}", format!("{n:02x}").repeat(20));
        json!({
            "x402Version": 2,
            "accepted": {"scheme": "batch-settlement", "network": "eip155:31337", "amount": "7"},
            "payload": {
                "type": "voucher",
                "channelConfig": {
                    "payer": address(1), "payerAuthorizer": address(2), "receiver": address(3),
                    "receiverAuthorizer": address(4), "token": address(5), "withdrawDelay": 900,
                    "salt": format!("0x{}", "06".repeat(32)),
                },
                "voucher": {
                    "channelId": format!("0x{}", "07".repeat(32)), "maxClaimableAmount": "5000",
                    "signature": format!("0x{}", "08".repeat(65)),
                },
            },
        })
    }

    fn read(value: &[u8]) -> Result<Option<Sent>, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(SIGNATURE, HeaderValue::from_bytes(value).unwrap());
        payment(&headers)
    }

    fn encode(value: &Value) -> Vec<u8> {
        STANDARD.encode(value.to_string()).into_bytes()
    }

    #[test]
    fn a_voucher_is_read() {
        let voucher = |sent: Value| match read(&encode(&sent)) {
            Ok(Some(Sent::Voucher(payment))) => *payment,
            other => panic!("{other:?}"),
        };
        let payment = voucher(sent());
        let expected = Payment {
            channel: ChannelTerms {
                payer: AccountAddress::from_bytes([1; 20]),
                payer_authorizer: AccountAddress::from_bytes([2; 20]),
                receiver: NodeAddress::from_bytes([3; 20]),
                receiver_authorizer: AccountAddress::from_bytes([4; 20]),
                token: AccountAddress::from_bytes([5; 20]),
                withdraw_delay_s: 900,
                salt: Hash::from_bytes([6; 32]),
            },
            max: 5000,
            signature: SignatureBytes::from_bytes([8; 65]),
        };
        assert_eq!(payment, expected);
        assert_eq!(super::payment(&HeaderMap::new()), Ok(None));
        let mut most = sent();
        most["payload"]["voucher"]["maxClaimableAmount"] = json!(u128::MAX.to_string());
        assert_eq!(voucher(most).max, u128::MAX);
    }

    #[test]
    fn what_is_no_voucher_is_refused_in_one_sentence() {
        let with = |at: &str, value: Value| {
            let mut sent = sent();
            *sent.pointer_mut(at).unwrap() = value;
            encode(&sent)
        };
        let amount = "/payload/voucher/maxClaimableAmount";
        let bad = [
            b"".to_vec(),
            b"{}".to_vec(),
            b"!!!".to_vec(),
            encode(&json!({})),
            encode(&json!([1])),
            with("/x402Version", json!(1)),
            with("/accepted/scheme", json!("exact")),
            with("/payload/type", json!("deposit")),
            with("/payload/channelConfig/payer", json!("0x01")),
            with("/payload/channelConfig/withdrawDelay", json!(-1)),
            with("/payload/voucher/signature", json!("0x")),
            with(amount, json!("")),
            with(amount, json!("-1")),
            with(amount, json!("+1")),
            with(amount, json!("007")),
            with(amount, json!("1e3")),
            with(amount, json!("340282366920938463463374607431768211456")),
            with(amount, json!(5000)),
            vec![b'A'; SIGNATURE_BYTES_MAX + 1],
            STANDARD.encode("[".repeat(3000)).into_bytes(),
        ];
        for value in bad {
            let refused = read(&value).unwrap_err();
            assert_eq!(refused.code(), "invalid_value", "{refused}");
            assert!(refused.to_string().len() < 300, "{refused}");
        }
    }

    #[test]
    fn a_client_without_its_state_is_shown_it() {
        let terms = PaymentTerms {
            chain_id: 31_337,
            channels: AccountAddress::from_bytes([9; 20]),
            token: AccountAddress::from_bytes([5; 20]),
            token_domain: ("Dollars".into(), "2".into()),
            receiver: NodeAddress::from_bytes([3; 20]),
            withdraw_delay_s: 900,
            most: 70,
        };
        let channel = ChannelState {
            id: ChannelId::from_bytes([7; 32]),
            charged: 3200,
            voucher: Some((3300, SignatureBytes::from_bytes([8; 65]))),
            balance: 100_000,
            claimed: 500,
        };
        let said = |problem| required(&PaymentRefused { problem, terms: terms.clone() }, "http://node/v1/x");
        let first = said(PaymentProblem::Required);
        assert_eq!((&first["x402Version"], &first["error"]), (&json!(2), &json!("payment_required")));
        let accepts = &first["accepts"][0];
        assert_eq!((&accepts["network"], &accepts["amount"]), (&json!("eip155:31337"), &json!("70")));
        assert_eq!(accepts["extra"].get("channelState"), None);
        let stale = said(PaymentProblem::Stale(channel.clone()));
        assert_eq!(stale["error"], "invalid_batch_settlement_evm_cumulative_amount_mismatch");
        let extra = &stale["accepts"][0]["extra"];
        assert_eq!(extra["channelState"]["chargedCumulativeAmount"], "3200");
        assert_eq!(extra["channelState"]["totalClaimed"], "500");
        assert_eq!(extra["voucherState"]["signedMaxClaimable"], "3300");
        let paid = settled(31_337, &AccountAddress::from_bytes([1; 20]), Some(70), Some(&channel));
        assert_eq!((&paid["success"], &paid["extra"]["chargedAmount"]), (&json!(true), &json!("70")));
    }
}
