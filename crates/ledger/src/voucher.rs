//! Channels and vouchers off the chain: ids and the hashes that payers and providers sign, in the shape of x402's `batch-settlement`.

use alloy_primitives::aliases::U40;
use alloy_primitives::{Address, B256, Bytes};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{Eip712Domain, SolStruct, eip712_domain, sol};
use assay_core::id::{AccountAddress, Hash, SignatureBytes};
use assay_core::payment::ChannelTerms;
use assay_core::signature::signer;

use crate::contracts::{Channels, node_address};

mod typed {
    #![allow(missing_docs)]
    use super::sol;
    sol! {
        /// What a payer signs.
        #[derive(Debug, PartialEq, Eq)]
        struct Voucher {
            bytes32 channelId;
            uint128 maxClaimableAmount;
        }
    }
}

pub use typed::Voucher;

/// The domain of channels and vouchers of the `Channels` contract at `channels`.
pub fn domain(chain_id: u64, channels: Address) -> Eip712Domain {
    eip712_domain! {
        name: "x402 Batch Settlement",
        version: "1",
        chain_id: chain_id,
        verifying_contract: channels,
    }
}

/// A channel as the contract has it. None for a delay beyond 40 bits, which no channel has.
pub fn config(terms: &ChannelTerms) -> Option<Channels::ChannelConfig> {
    let account = |account: &AccountAddress| Address::from(*account.as_bytes());
    Some(Channels::ChannelConfig {
        payer: account(&terms.payer),
        payerAuthorizer: account(&terms.payer_authorizer),
        receiver: Address::from(*terms.receiver.as_bytes()),
        receiverAuthorizer: account(&terms.receiver_authorizer),
        token: account(&terms.token),
        withdrawDelay: U40::try_from(terms.withdraw_delay_s).ok()?,
        salt: B256::from(*terms.salt.as_bytes()),
    })
}

/// The same channel as it travels with requests.
pub fn terms(config: &Channels::ChannelConfig) -> ChannelTerms {
    ChannelTerms {
        payer: account(config.payer),
        payer_authorizer: account(config.payerAuthorizer),
        receiver: node_address(config.receiver),
        receiver_authorizer: account(config.receiverAuthorizer),
        token: account(config.token),
        withdraw_delay_s: config.withdrawDelay.to(),
        salt: Hash::from_bytes(config.salt.0),
    }
}

/// An address of the ledger as it travels with requests.
pub fn account(address: Address) -> AccountAddress {
    AccountAddress::from_bytes(address.into_array())
}

/// A channel's id.
pub fn channel_id(config: &Channels::ChannelConfig, domain: &Eip712Domain) -> B256 {
    config.eip712_signing_hash(domain)
}

/// What the payer signs to let the receiver claim `max` units from a channel, all in all.
pub fn voucher_hash(channel: B256, max: u128, domain: &Eip712Domain) -> B256 {
    Voucher { channelId: channel, maxClaimableAmount: max }.eip712_signing_hash(domain)
}

/// Why a voucher is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoucherError {
    /// The signature has another form than the contract takes: 65 bytes, the smaller `s`, `v` 27 or 28.
    #[error("the voucher's signature is malformed")]
    Malformed,
    /// Somebody else signed, or something else was signed.
    #[error("the voucher must be signed by {expected}, and is by {got}")]
    WrongSigner {
        /// The payer, or its authorizer.
        expected: Address,
        /// Whose signature it is.
        got: Address,
    },
    /// The key could not sign.
    #[error("the key cannot sign")]
    Unsigned,
}

/// Signs a voucher for `max` units from a channel, all in all.
pub fn sign(
    key: &PrivateKeySigner,
    channel: B256,
    max: u128,
    domain: &Eip712Domain,
) -> Result<Bytes, VoucherError> {
    let hash = voucher_hash(channel, max, domain);
    let signature = key.sign_hash_sync(&hash).map_err(|_| VoucherError::Unsigned)?;
    Ok(signature.as_bytes().to_vec().into())
}

/// Checks a voucher as the contract will, which asks for the key first: who serves a request on it can claim it, as far as the channel has a
/// balance, even if the payer gets code later (EIP-7702). A payer that is a contract without an authorizer signs in its own way (ERC-1271),
/// which only the chain can check, and which is refused here.
pub fn check(
    config: &Channels::ChannelConfig,
    max: u128,
    signature: &[u8],
    domain: &Eip712Domain,
) -> Result<(), VoucherError> {
    let expected =
        if config.payerAuthorizer == Address::ZERO { config.payer } else { config.payerAuthorizer };
    let hash = voucher_hash(channel_id(config, domain), max, domain);
    let got = recover(hash, signature).ok_or(VoucherError::Malformed)?;
    if got == expected { Ok(()) } else { Err(VoucherError::WrongSigner { expected, got }) }
}

/// Who signed a hash, if the signature has the one form that contracts take.
pub(crate) fn recover(hash: B256, signature: &[u8]) -> Option<Address> {
    let signature = SignatureBytes::from_bytes(signature.try_into().ok()?);
    signer(&Hash::from_bytes(hash.0), &signature).map(|found| Address::from(*found.as_bytes()))
}

/// A claim of `total` units, all in all, by a voucher for `max`.
pub fn claim(
    config: &Channels::ChannelConfig,
    max: u128,
    signature: impl Into<Bytes>,
    total: u128,
) -> Channels::VoucherClaim {
    Channels::VoucherClaim {
        voucher: Channels::Voucher { channel: config.clone(), maxClaimableAmount: max },
        signature: signature.into(),
        totalClaimed: total,
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::keccak256;

    use super::*;

    #[test]
    fn channels_travel_unchanged() {
        let config = Channels::ChannelConfig {
            payer: Address::repeat_byte(1),
            payerAuthorizer: Address::repeat_byte(2),
            receiver: Address::repeat_byte(3),
            receiverAuthorizer: Address::repeat_byte(4),
            token: Address::repeat_byte(5),
            withdrawDelay: U40::MAX,
            salt: B256::repeat_byte(6),
        };
        let travelling = terms(&config);
        assert_eq!(super::config(&travelling), Some(config));
        let beyond = ChannelTerms { withdraw_delay_s: travelling.withdraw_delay_s + 1, ..travelling };
        assert_eq!(super::config(&beyond), None);
    }

    #[test]
    fn vouchers_are_checked_as_the_contract_does() {
        let key = PrivateKeySigner::from_bytes(&keccak256("payer")).unwrap();
        let domain = domain(31_337, Address::repeat_byte(5));
        let config = Channels::ChannelConfig { payer: key.address(), ..Default::default() };
        let id = channel_id(&config, &domain);
        let signed = sign(&key, id, 700, &domain).unwrap();
        assert_eq!(check(&config, 700, &signed, &domain), Ok(()));
        assert!(matches!(check(&config, 701, &signed, &domain), Err(VoucherError::WrongSigner { .. })));
        let another = Channels::ChannelConfig { salt: B256::repeat_byte(1), ..config.clone() };
        assert!(check(&another, 700, &signed, &domain).is_err());
        let authorised = Channels::ChannelConfig {
            payer: Address::ZERO,
            payerAuthorizer: key.address(),
            ..config.clone()
        };
        let own = sign(&key, channel_id(&authorised, &domain), 1, &domain).unwrap();
        assert_eq!(check(&authorised, 1, &own, &domain), Ok(()));
        // Other forms of the same signature, which the contract refuses.
        let (r, s, v) = (&signed[..32], alloy_primitives::U256::from_be_slice(&signed[32..64]), signed[64]);
        let order =
            alloy_primitives::uint!(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141_U256);
        let flipped = [r, &(order - s).to_be_bytes::<32>(), &[55 - v]].concat();
        let small = [&signed[..64], &[v - 27]].concat();
        for bad in [flipped.as_slice(), &small, &signed[..64], &[], &[0; 65], &[27; 65], &[0xff; 66]] {
            assert!(check(&config, 700, bad, &domain).is_err(), "{bad:?}");
        }
        assert_eq!(check(&config, 700, &flipped, &domain), Err(VoucherError::Malformed));
    }
}
