//! API keys' secrets: shown once, kept as a hash.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{B256, keccak256};

/// What every secret begins with, so that scanners of leaked secrets know it.
pub const PREFIX: &str = "sk-assay-";
const DIGITS: usize = 64;

/// A secret as its owner sends it: `sk-assay-` and 64 hex digits, which are 32 random bytes. It is shown only by [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// The Keccak-256 of a secret: all that is stored. Secrets have 256 random bits, so that a slow hash would protect nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecretHash([u8; 32]);

/// Text that is no secret of ours. It does not repeat the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an API key is `{PREFIX}` and {DIGITS} hex digits")]
pub struct SecretError;

impl Secret {
    /// A new one.
    pub fn draw() -> Secret {
        Secret(B256::random().0)
    }

    /// The text for its owner.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", hex::encode(self.0))
    }

    /// Its hash.
    pub fn hash(&self) -> SecretHash {
        SecretHash(keccak256([b"assay/api-key/1".as_slice(), &self.0].concat()).0)
    }

    /// Enough for its owner to know it by.
    pub fn hint(&self) -> String {
        format!("{PREFIX}{}…", hex::encode(&self.0[..3]))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Secret, SecretError> {
        let digits = text.strip_prefix(PREFIX).filter(|d| d.len() == DIGITS).ok_or(SecretError)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| SecretError)?;
        Ok(Secret(bytes))
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_as_they_are_shown_and_never_printed() {
        let secret = Secret::draw();
        assert_eq!(secret.reveal().parse(), Ok(secret.clone()));
        assert_ne!(Secret::draw(), secret);
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert!(secret.reveal().starts_with(secret.hint().trim_end_matches('…')));
        let good = secret.reveal();
        for bad in [
            "",
            "sk-assay-",
            &good[1..],
            &good[..good.len() - 1],
            &format!("{good}0"),
            &good.replace("sk-assay", "sk-other"),
        ] {
            assert_eq!(bad.parse::<Secret>(), Err(SecretError), "{bad}");
        }
    }
}
