//! What a provider asks for tokens.
//!
//! Invariant: a fee is the exact product rounded up once, in millionths of a dollar, and always fits: a price is at most a dollar a token.
//! It refuses fractions of a millionth of a dollar per million tokens.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::consent::Consent;

/// Tokens that a price is for.
pub const PRICED_TOKENS: u64 = 1_000_000;
/// Highest price, in millionths of a dollar for a million tokens: a dollar a token.
pub const PRICE_MAX: u64 = 1_000_000_000_000;

const DECIMALS: usize = 6;
/// Decimals of a price per token: six of a millionth of a dollar, six of a million tokens.
const TOKEN_DECIMALS: usize = 12;

/// Text or numbers that are no price.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// Not two decimal numbers.
    #[error(
        "a price is two amounts with a slash between: dollars for a million tokens of the prompt, and of the answer; got {got:?}"
    )]
    Form {
        /// What was given.
        got: String,
    },
    /// A part of a millionth.
    #[error("a price has at most six decimals; got {got:?}")]
    TooFine {
        /// What was given.
        got: String,
    },
    /// More than the limit.
    #[error("a price is at most 1000000 dollars for a million tokens")]
    TooHigh,
}

/// Millionths of a dollar for a million tokens.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, Serialize, Deserialize,
)]
#[serde(try_from = "Parts")]
pub struct Price {
    input: u64,
    output: u64,
}

/// What may be a price.
#[derive(BorshDeserialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    input: u64,
    output: u64,
}

impl TryFrom<Parts> for Price {
    type Error = PriceError;

    fn try_from(parts: Parts) -> Result<Price, PriceError> {
        Price::new(parts.input, parts.output)
    }
}

impl BorshDeserialize for Price {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Price> {
        Parts::deserialize_reader(reader)?.try_into().map_err(std::io::Error::other)
    }
}

impl Price {
    /// Millionths of a dollar for a million tokens of the prompt, and for a million of the answer.
    pub fn new(input: u64, output: u64) -> Result<Price, PriceError> {
        if input > PRICE_MAX || output > PRICE_MAX {
            return Err(PriceError::TooHigh);
        }
        Ok(Price { input, output })
    }

    /// Of a million tokens of the prompt, in millionths of a dollar.
    pub fn input(self) -> u64 {
        self.input
    }

    /// Of a million tokens of the answer, in millionths of a dollar.
    pub fn output(self) -> u64 {
        self.output
    }

    /// The fee of an answer in millionths of a dollar, rounded up once.
    pub fn fee(self, prompt_tokens: u32, completion_tokens: u32) -> u64 {
        let part = |price: u64, tokens: u32| u128::from(price).saturating_mul(tokens.into());
        let sum = part(self.input, prompt_tokens).saturating_add(part(self.output, completion_tokens));
        // At most 2 * 10^12 * 2^32 / 10^6, which fits.
        u64::try_from(sum.div_ceil(PRICED_TOKENS.into())).unwrap_or(u64::MAX)
    }

    /// Dollars for one token of the prompt, and for one of the answer, as decimal numbers without trailing zeros.
    pub fn per_token(self) -> (String, String) {
        (decimal(self.input, TOKEN_DECIMALS, 0), decimal(self.output, TOKEN_DECIMALS, 0))
    }

    /// Reads what [`Price::per_token`] writes.
    pub fn from_per_token(prompt: &str, completion: &str) -> Result<Price, PriceError> {
        Price::new(parse(prompt, TOKEN_DECIMALS)?, parse(completion, TOKEN_DECIMALS)?)
    }
}

/// What is asked for a request, by the consent of its client, where `price` is asked with it and `private` without it; no price is free. Nothing if
/// such a request is not taken: who is paid for what auditors may look at, and names no other price, does not answer what they may not.
pub fn asked(price: Option<Price>, private: Option<Price>, consent: Consent) -> Option<Option<Price>> {
    match (consent, price, private) {
        (Consent::Given, price, _) => Some(price),
        (Consent::Withheld, _, Some(private)) => Some(Some(private)),
        (Consent::Withheld, None, None) => Some(None),
        (Consent::Withheld, Some(_), None) => None,
    }
}

/// A number with so many decimals behind the point; at least `least` of them are shown.
fn decimal(units: u64, decimals: usize, least: usize) -> String {
    let digits = format!("{units:0>width$}", width = decimals.saturating_add(1));
    let (whole, part) = digits.split_at(digits.len().saturating_sub(decimals));
    let shown = part.trim_end_matches('0');
    let part = part.get(..shown.len().max(least)).unwrap_or(part);
    if part.is_empty() { whole.to_owned() } else { format!("{whole}.{part}") }
}

fn parse(text: &str, decimals: usize) -> Result<u64, PriceError> {
    let got = || text.chars().take(80).collect();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || text.ends_with('.') {
        return Err(PriceError::Form { got: got() });
    }
    let part = part.trim_end_matches('0');
    if part.len() > decimals {
        return Err(PriceError::TooFine { got: got() });
    }
    format!("{whole}{part:0<decimals$}").parse().map_err(|_| PriceError::TooHigh)
}

impl FromStr for Price {
    type Err = PriceError;

    fn from_str(text: &str) -> Result<Price, PriceError> {
        let (input, output) =
            text.split_once('/').ok_or_else(|| PriceError::Form { got: text.chars().take(80).collect() })?;
        Price::new(parse(input, DECIMALS)?, parse(output, DECIMALS)?)
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cents are always shown.
        f.pad(&format!("{}/{}", decimal(self.input, DECIMALS, 2), decimal(self.output, DECIMALS, 2)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prices_are_read_and_shown() {
        for (text, input, output, shown, per_token) in [
            ("0.10/0.40", 100_000, 400_000, "0.10/0.40", ("0.0000001", "0.0000004")),
            ("0/0", 0, 0, "0.00/0.00", ("0", "0")),
            ("15/75.5", 15_000_000, 75_500_000, "15.00/75.50", ("0.000015", "0.0000755")),
            ("0.000001/1000000", 1, PRICE_MAX, "0.000001/1000000.00", ("0.000000000001", "1")),
            ("0.1000000/007", 100_000, 7_000_000, "0.10/7.00", ("0.0000001", "0.000007")),
        ] {
            let price: Price = text.parse().unwrap();
            assert_eq!((price.input(), price.output(), price.to_string().as_str()), (input, output, shown));
            let (prompt, completion) = price.per_token();
            assert_eq!((prompt.as_str(), completion.as_str()), per_token);
        }
        for text in [
            "", "1", "/", "1/", "/1", "1/2/3", "-1/1", "+1/1", "1e3/1", ".5/1", "1./1", " 1/1", "1,5/1",
            "½/1",
        ] {
            assert!(matches!(text.parse::<Price>(), Err(PriceError::Form { .. })), "{text}");
        }
        assert!(matches!("0.0000001/1".parse::<Price>(), Err(PriceError::TooFine { .. })));
        for text in ["1000000.000001/0", "0/1000001", "0/99999999999999999999999"] {
            assert_eq!(text.parse::<Price>(), Err(PriceError::TooHigh), "{text}");
        }
        assert!(Price::from_per_token("0.0000000000001", "0").is_err());
        assert_eq!(Price::new(PRICE_MAX + 1, 0), Err(PriceError::TooHigh));
    }

    #[test]
    fn a_fee_is_rounded_up_once() {
        let price = Price::new(1, 1).unwrap();
        assert_eq!(
            [price.fee(0, 0), price.fee(1, 0), price.fee(1, 1), price.fee(500_000, 500_000)],
            [0, 1, 1, 1]
        );
        assert_eq!(price.fee(500_000, 500_001), 2);
        let most = Price::new(PRICE_MAX, PRICE_MAX).unwrap();
        assert_eq!(most.fee(u32::MAX, u32::MAX), 2 * u64::from(u32::MAX) * 1_000_000);
    }

    #[test]
    fn without_consent_another_price_is_asked_or_none() {
        let [public, private] = ["1/2", "3/4"].map(|text| Some(text.parse::<Price>().unwrap()));
        for (price, other, given, withheld) in [
            (None, None, Some(None), Some(None)),
            (public, None, Some(public), None),
            (public, private, Some(public), Some(private)),
            (None, private, Some(None), Some(private)),
        ] {
            assert_eq!(asked(price, other, Consent::Given), given);
            assert_eq!(asked(price, other, Consent::Withheld), withheld);
        }
    }

    proptest! {
        #[test]
        fn prices_survive_their_texts(input in 0..=PRICE_MAX, output in 0..=PRICE_MAX) {
            let price = Price::new(input, output).unwrap();
            prop_assert_eq!(price.to_string().parse(), Ok(price));
            let (prompt, completion) = price.per_token();
            prop_assert_eq!(Price::from_per_token(&prompt, &completion), Ok(price));
        }

        #[test]
        fn a_fee_is_the_least_that_is_enough(input in 0..=PRICE_MAX, output in 0..=PRICE_MAX, p in any::<u32>(), c in any::<u32>()) {
            let fee = u128::from(Price::new(input, output).unwrap().fee(p, c)) * 1_000_000;
            let exact = u128::from(input) * u128::from(p) + u128::from(output) * u128::from(c);
            prop_assert!(fee >= exact && fee < exact + 1_000_000);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<Price>();
            let _ = Price::from_per_token(&text, &text);
        }
    }
}
