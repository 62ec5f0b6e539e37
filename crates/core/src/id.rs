//! Identities: fixed-length byte strings that are never mixed up, written as `0x` and lowercase hex.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that is no identity of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: expected {bytes} bytes as {digits} hex digits (0x in front or not), got {got:?}")]
pub struct IdError {
    kind: &'static str,
    bytes: usize,
    digits: usize,
    got: String,
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
        pub struct $name([u8; $len]);

        impl $name {
            /// All bytes zero.
            pub const ZERO: $name = $name([0; $len]);

            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                $name(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first eight hex digits, for people.
            pub fn short(&self) -> String {
                hex::encode(self.0.first_chunk::<4>().unwrap_or(&[0; 4]))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "0x{}", hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(s: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $len];
                match hex::decode_to_slice(s.strip_prefix("0x").unwrap_or(s), &mut bytes) {
                    Ok(()) => Ok($name(bytes)),
                    Err(_) => Err(IdError {
                        kind: stringify!($name),
                        bytes: $len,
                        digits: $len * 2,
                        got: s.chars().take(80).collect(),
                    }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = <std::borrow::Cow<'de, str> as Deserialize>::deserialize(d)?;
                s.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identity!(/** Any Keccak-256 hash. */ Hash, 32);
identity!(/** Merkle root of a model's content: what exactly computes. */ ModelRoot, 32);
identity!(/** Hash of a canonical [`crate::request::Request`]. */ RequestHash, 32);
identity!(/** Merkle root of a [`crate::transcript::Transcript`]. */ TranscriptRoot, 32);
identity!(/** Merkle root of an answer's execution digests. */ DigestRoot, 32);
identity!(/** Names a receipt before its answer exists. */ ReceiptId, 32);
identity!(/** Bytes that a client chooses so that a provider cannot choose the answer. */ Nonce, 32);
identity!(/** A payment channel; zero when nothing is paid. */ ChannelId, 32);
identity!(/** Address of a node's key. */ NodeAddress, 20);
identity!(/** Address of an account or a contract on the ledger. */ AccountAddress, 20);
identity!(/** A provider's public key of X25519: orders are sealed to it. */ SealingKey, 32);
identity!(/** An ECDSA signature: r, s, and 27 or 28. */ SignatureBytes, 65);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_print_and_parse() {
        let id = ModelRoot::from_bytes([0xab; 32]);
        assert_eq!(id.to_string(), format!("0x{}", "ab".repeat(32)));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("ab".repeat(32).parse(), Ok(id));
        assert_eq!(id.short(), "abababab");
        for bad in ["", "0x", "0xab", &"ab".repeat(33), &"zz".repeat(32)] {
            assert!(bad.parse::<ModelRoot>().is_err(), "{bad}");
        }
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<ModelRoot>(&json).unwrap(), id);
    }
}
