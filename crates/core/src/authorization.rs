//! What somebody without an account pays with: a signature that lets the receiver move tokens of its wallet, once (x402's `exact` and `upto` on EVM).
//!
//! What is here is what was sent; whether the signature holds and whether tokens are behind it says the ledger.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::canonical::Canonical;
use crate::id::{AccountAddress, Hash, SignatureBytes};
use crate::keccak::keccak256;

/// What a signature lets the receiver move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Scheme {
    /// The amount, no more and no less (EIP-3009, `transferWithAuthorization`).
    Exact,
    /// Up to the amount (Permit2, with x402's witness).
    Upto {
        /// The contract that may move the tokens.
        spender: AccountAddress,
        /// Who may call it.
        facilitator: AccountAddress,
    },
}

impl Scheme {
    /// As x402 calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Scheme::Exact => "exact",
            Scheme::Upto { .. } => "upto",
        }
    }
}

/// A payment that was signed and is not made yet.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Authorization {
    /// How much of the amount may be moved, and by what.
    pub scheme: Scheme,
    /// The chain.
    pub chain_id: u64,
    /// The token.
    pub token: AccountAddress,
    /// Whose tokens.
    pub payer: AccountAddress,
    /// Who receives them.
    pub pay_to: AccountAddress,
    /// Units of the token.
    pub amount: u128,
    /// A number that the payer uses once; 32 bytes, big-endian where it is a number.
    pub nonce: Hash,
    /// From when on, in seconds since 1970.
    pub valid_after: u64,
    /// Until when, in seconds since 1970.
    pub valid_before: u64,
    /// The payer's.
    pub signature: SignatureBytes,
}

impl Canonical for Authorization {
    const TAG: &'static str = "assay/authorization/1";
}

impl Authorization {
    /// Names the payment: what can be used once has one name, whatever else was signed with it.
    pub fn id(&self) -> Hash {
        let chain = self.chain_id.to_be_bytes();
        let (payer, nonce) = (self.payer.as_bytes(), self.nonce.as_bytes());
        let token: &[u8] = match self.scheme {
            Scheme::Exact => self.token.as_bytes(),
            // Nonces of Permit2 are the payer's, whatever the token.
            Scheme::Upto { .. } => &[],
        };
        keccak256(&[b"assay/authorization-id/1", self.scheme.name().as_bytes(), &chain, payer, nonce, token])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_has_one_name() {
        let address = |n: u8| AccountAddress::from_bytes([n; 20]);
        let exact = Authorization {
            scheme: Scheme::Exact,
            chain_id: 1,
            token: address(1),
            payer: address(2),
            pay_to: address(3),
            amount: 4,
            nonce: Hash::from_bytes([5; 32]),
            valid_after: 6,
            valid_before: 7,
            signature: SignatureBytes::from_bytes([8; 65]),
        };
        let of = |change: fn(&mut Authorization)| {
            let mut changed = exact.clone();
            change(&mut changed);
            changed.id()
        };
        // The same nonce with other terms is the same payment; the contract takes one of them.
        assert_eq!(exact.id(), of(|a| (a.amount, a.valid_before, a.valid_after) = (9, 9, 9)));
        assert_eq!(exact.id(), of(|a| a.signature = SignatureBytes::from_bytes([9; 65])));
        assert_ne!(exact.id(), of(|a| a.nonce = Hash::ZERO));
        assert_ne!(exact.id(), of(|a| a.payer = AccountAddress::from_bytes([9; 20])));
        assert_ne!(exact.id(), of(|a| a.token = AccountAddress::from_bytes([9; 20])));
        assert_ne!(exact.id(), of(|a| a.chain_id = 2));
        fn to_upto(a: &mut Authorization) {
            a.scheme = Scheme::Upto { spender: a.token, facilitator: a.pay_to };
        }
        assert_ne!(exact.id(), of(to_upto));
        let other_token = of(|a| {
            to_upto(a);
            a.token = AccountAddress::from_bytes([9; 20]);
        });
        assert_eq!(of(to_upto), other_token);
    }
}
