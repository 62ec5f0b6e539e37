//! Money: units of a token with six decimals, millionths of a dollar where the token is worth one.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::U256;
use serde::{Deserialize, Serialize};

/// Units in a dollar.
pub const DOLLAR: u128 = 1_000_000;
const DECIMALS: usize = 6;

/// An amount of money, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Amount(pub u128);

/// Why a text is no amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not a decimal number.
    #[error("an amount is a number of dollars such as 25 or 0.5")]
    NotANumber,
    /// A part of a millionth.
    #[error("an amount has at most six decimals")]
    TooFine,
    /// More than any token has.
    #[error("this amount is too large")]
    TooLarge,
}

impl Amount {
    /// The amount as contracts take it.
    pub fn to_word(self) -> U256 {
        U256::from(self.0)
    }

    /// A contract's number, which is at most what the token's supply can be.
    pub fn from_word(word: U256) -> Amount {
        Amount(word.saturating_to())
    }

    /// The sum, or none if no token could have it.
    pub fn checked_add(self, other: Amount) -> Option<Amount> {
        self.0.checked_add(other.0).map(Amount)
    }

    /// What is left, or none.
    pub fn checked_sub(self, other: Amount) -> Option<Amount> {
        self.0.checked_sub(other.0).map(Amount)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:06}", self.0 % DOLLAR);
        let shown = decimals.trim_end_matches('0');
        // Cents are always shown.
        let shown = decimals.get(..shown.len().max(2)).unwrap_or(&decimals);
        f.pad(&format!("{}.{shown}", self.0 / DOLLAR))
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Amount, AmountError> {
        let text = text.strip_prefix('$').unwrap_or(text);
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(decimals) || text.ends_with('.') {
            return Err(AmountError::NotANumber);
        }
        if decimals.len() > DECIMALS {
            return Err(AmountError::TooFine);
        }
        let whole: u128 = whole.parse().map_err(|_| AmountError::TooLarge)?;
        let part: u128 = format!("{decimals:0<DECIMALS$}").parse().map_err(|_| AmountError::NotANumber)?;
        whole
            .checked_mul(DOLLAR)
            .and_then(|units| units.checked_add(part))
            .map(Amount)
            .ok_or(AmountError::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_shown() {
        for (text, units, shown) in [
            ("25", 25_000_000, "25.00"),
            ("0.5", 500_000, "0.50"),
            ("$1.000001", 1_000_001, "1.000001"),
            ("0", 0, "0.00"),
            ("007.10", 7_100_000, "7.10"),
        ] {
            let amount: Amount = text.parse().unwrap();
            assert_eq!((amount, amount.to_string().as_str()), (Amount(units), shown));
            assert_eq!(shown.parse(), Ok(amount));
        }
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,5", "1.2.3", " 1", "½"] {
            assert_eq!(text.parse::<Amount>(), Err(AmountError::NotANumber), "{text}");
        }
        assert_eq!("1.0000001".parse::<Amount>(), Err(AmountError::TooFine));
        assert_eq!(format!("{}", u128::MAX).parse::<Amount>(), Err(AmountError::TooLarge));
    }
}
