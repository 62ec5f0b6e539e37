//! Payments: the voucher that travels with a request, with the channel it draws on, and what an answer costs.
//!
//! A voucher is cumulative: it says what the receiver may claim from the channel all in all. What is here is what was sent; whether the
//! signature holds, and whether there is a balance behind it, says the ledger (`docs/ledger.md`, 5).

use borsh::{BorshDeserialize, BorshSerialize};

use crate::id::{AccountAddress, Hash, NodeAddress, SignatureBytes};
use crate::price::Price;
use crate::transcript::{StopReason, Transcript};

/// Between whom a channel is, as its id commits to it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChannelTerms {
    /// Whose deposit it is.
    pub payer: AccountAddress,
    /// Whose key signs vouchers; zero for the payer's.
    pub payer_authorizer: AccountAddress,
    /// Who is paid.
    pub receiver: NodeAddress,
    /// Whose key signs claims besides the receiver's; zero for nobody's.
    pub receiver_authorizer: AccountAddress,
    /// The token that was deposited.
    pub token: AccountAddress,
    /// Seconds from the payer's announcement to its withdrawal, below 2^40.
    pub withdraw_delay_s: u64,
    /// What channels of the same two differ in.
    pub salt: Hash,
}

/// A voucher.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Payment {
    /// On this channel.
    pub channel: ChannelTerms,
    /// What may be claimed from it, all in all, in units of the token: millionths of a dollar.
    pub max: u128,
    /// The payer's, or its authorizer's.
    pub signature: SignatureBytes,
}

/// Whether an answer gave nothing: the model ended it at once, and nothing was told about that. Who asked cannot bring this about by cutting an
/// answer off.
pub fn is_empty(transcript: &Transcript) -> bool {
    transcript.stop == StopReason::EndToken
        && transcript.text.is_empty()
        && transcript.logprobs.is_empty()
        && transcript.output_ids.len() <= 1
}

/// What an answer costs at a price, in millionths of a dollar. An empty answer costs nothing.
pub fn fee(price: Option<Price>, transcript: &Transcript) -> u64 {
    let usage = transcript.usage();
    match price {
        Some(price) if !is_empty(transcript) => price.fee(usage.prompt_tokens, usage.completion_tokens),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::Canonical;
    use crate::id::{Nonce, RequestHash};
    use crate::transcript::{NonceSource, TokenLogprobs};

    fn transcript(text: &str, output: usize, stop: StopReason) -> Transcript {
        Transcript {
            request_hash: RequestHash::ZERO,
            nonce: Nonce::ZERO,
            nonce_source: NonceSource::Client,
            prompt_ids: vec![1; 10],
            output_ids: vec![2; output],
            text: text.into(),
            stop,
            logprobs: vec![],
        }
    }

    #[test]
    fn only_what_the_model_left_empty_is_free() {
        let price = Some(Price::new(1_000_000, 2_000_000).unwrap());
        let cases = [
            ("Hello", 3, StopReason::EndToken, 16),
            ("", 1, StopReason::EndToken, 0),
            ("", 0, StopReason::EndToken, 0),
            // Cut off by who asked: the model worked.
            ("", 1, StopReason::StopString(0), 12),
            ("", 1, StopReason::Length, 12),
            ("", 1, StopReason::Window, 12),
            ("", 1, StopReason::Cancelled, 12),
            // Tokens without text are tokens.
            ("", 2, StopReason::EndToken, 14),
        ];
        for (text, output, stop, expected) in cases {
            let transcript = transcript(text, output, stop);
            assert_eq!(fee(price, &transcript), expected, "{transcript:?}");
            assert_eq!(fee(None, &transcript), 0);
        }
        let mut told = transcript("", 1, StopReason::EndToken);
        told.logprobs = vec![TokenLogprobs { chosen: 0, top: vec![] }];
        assert_eq!(fee(price, &told), 12);
    }

    #[derive(BorshSerialize, BorshDeserialize)]
    struct Tagged(Payment);

    impl Canonical for Tagged {
        const TAG: &'static str = "test/payment";
    }

    #[test]
    fn payments_have_one_encoding() {
        let account = |n| AccountAddress::from_bytes([n; 20]);
        let payment = Payment {
            channel: ChannelTerms {
                payer: account(1),
                payer_authorizer: account(2),
                receiver: NodeAddress::from_bytes([3; 20]),
                receiver_authorizer: account(4),
                token: account(5),
                withdraw_delay_s: 900,
                salt: Hash::from_bytes([6; 32]),
            },
            max: u128::MAX,
            signature: SignatureBytes::from_bytes([7; 65]),
        };
        let bytes = Tagged(payment.clone()).to_canonical_bytes();
        // Five addresses, eight bytes, a hash, sixteen bytes, a signature.
        assert_eq!(bytes.len(), 13 + 5 * 20 + 8 + 32 + 16 + 65);
        assert_eq!(Tagged::from_canonical_bytes(&bytes).unwrap().0, payment);
        for cut in 0..bytes.len() {
            assert!(Tagged::from_canonical_bytes(&bytes[..cut]).is_err());
        }
        assert!(Tagged::from_canonical_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
}
