//! Fetch receipts off the chain: what a provider signs for a host that served it, as `Retrieval.served` takes it.
//!
//! A receipt is cumulative, like a voucher: it says how many bytes the downloader has fetched of this listing from this host since ever, so
//! that a later one replaces the earlier ones and an old one counts for nothing.

use alloy_primitives::{Address, B256, Bytes};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{Eip712Domain, SolStruct as _, eip712_domain};
use assay_core::id::{ModelRoot, NodeAddress, SignatureBytes};
use serde::{Deserialize, Serialize};

use super::{ListingId, PledgeId};
pub use crate::contracts::Retrieval::Fetch;
use crate::contracts::node_address;
use crate::voucher::recover;

/// What one provider can sign for of one listing, all its hosts together: `Retrieval.FETCHED_BYTES_MAX`.
pub const FETCHED_BYTES_MAX: u64 = 1 << 56;

/// Why a fetch receipt is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The signature has another form than the contract takes: 65 bytes, the smaller `s`, `v` 27 or 28.
    #[error("the fetch receipt's signature is malformed; ask the downloader for another")]
    Malformed,
    /// Somebody else signed, or something else was signed.
    #[error(
        "the fetch receipt must be signed by {expected}, and is by {got}; ask the downloader for another"
    )]
    WrongSigner {
        /// The downloader that the receipt names.
        expected: Address,
        /// Whose signature it is.
        got: Address,
    },
    /// It says more than can be counted.
    #[error("the fetch receipt says {got} bytes, and the ledger counts at most {max}")]
    TooManyBytes {
        /// What it says.
        got: u64,
        /// What is counted.
        max: u64,
    },
    /// The key could not sign.
    #[error("the key cannot sign")]
    Unsigned,
}

impl FetchError {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        match self {
            FetchError::Malformed => "fetch_signature_malformed",
            FetchError::WrongSigner { .. } => "fetch_wrong_signer",
            FetchError::TooManyBytes { .. } => "fetch_too_many_bytes",
            FetchError::Unsigned => "fetch_unsigned",
        }
    }
}

/// The domain of fetch receipts of the `Retrieval` contract at `retrieval`.
pub fn domain(chain_id: u64, retrieval: Address) -> Eip712Domain {
    eip712_domain! {
        name: "Assay Retrieval",
        version: "1",
        chain_id: chain_id,
        verifying_contract: retrieval,
    }
}

/// What a downloader signs.
pub fn fetch_hash(fetch: &Fetch, domain: &Eip712Domain) -> B256 {
    fetch.eip712_signing_hash(domain)
}

/// Signs a receipt with the downloader's node key. Another key's signature is refused here rather than by the contract.
pub fn sign(key: &PrivateKeySigner, fetch: &Fetch, domain: &Eip712Domain) -> Result<Bytes, FetchError> {
    limited(fetch)?;
    if key.address() != fetch.downloader {
        return Err(FetchError::WrongSigner { expected: fetch.downloader, got: key.address() });
    }
    let signature = key.sign_hash_sync(&fetch_hash(fetch, domain)).map_err(|_| FetchError::Unsigned)?;
    Ok(signature.as_bytes().to_vec().into())
}

/// Checks a receipt as the contract will, but for what stands on the ledger: that the downloader is a provider, that the host has a
/// pledge, and that the receipt is newer than what was counted.
pub fn check(fetch: &Fetch, signature: &[u8], domain: &Eip712Domain) -> Result<(), FetchError> {
    limited(fetch)?;
    let got = recover(fetch_hash(fetch, domain), signature).ok_or(FetchError::Malformed)?;
    if got != fetch.downloader {
        return Err(FetchError::WrongSigner { expected: fetch.downloader, got });
    }
    Ok(())
}

fn limited(fetch: &Fetch) -> Result<(), FetchError> {
    if fetch.bytesFetched > FETCHED_BYTES_MAX {
        return Err(FetchError::TooManyBytes { got: fetch.bytesFetched, max: FETCHED_BYTES_MAX });
    }
    Ok(())
}

/// A receipt with its signature, as downloaders hand it to hosts in JSON. The JSON is never hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchReceipt {
    /// The provider that fetched, and signs.
    pub downloader: NodeAddress,
    /// From whom.
    pub host: NodeAddress,
    /// Which model.
    pub model: ModelRoot,
    /// Whose listing of it.
    pub listing: NodeAddress,
    /// How many bytes since ever.
    pub bytes: u64,
    /// The downloader's signature of the [`Fetch`].
    pub signature: SignatureBytes,
}

impl FetchReceipt {
    /// Signs that so many bytes were fetched since ever of what a pledge keeps.
    pub fn by(
        key: &PrivateKeySigner,
        pledge: PledgeId,
        bytes: u64,
        domain: &Eip712Domain,
    ) -> Result<FetchReceipt, FetchError> {
        let fetch = fetch_of(key.address(), pledge, bytes);
        let signature = sign(key, &fetch, domain)?;
        let signature = <[u8; 65]>::try_from(signature.as_ref()).map_err(|_| FetchError::Unsigned)?;
        Ok(FetchReceipt {
            downloader: NodeAddress::from_bytes(key.address().into_array()),
            host: node_address(pledge.host),
            model: pledge.listing.model,
            listing: node_address(pledge.listing.owner),
            bytes,
            signature: SignatureBytes::from_bytes(signature),
        })
    }

    /// Whose pledge served the bytes.
    pub fn pledge(&self) -> PledgeId {
        let owner = Address::from(*self.listing.as_bytes());
        PledgeId {
            host: Address::from(*self.host.as_bytes()),
            listing: ListingId { model: self.model, owner },
        }
    }

    /// What was signed.
    pub fn fetch(&self) -> Fetch {
        fetch_of(Address::from(*self.downloader.as_bytes()), self.pledge(), self.bytes)
    }

    /// The signature as the contract takes it.
    pub fn signature(&self) -> Bytes {
        self.signature.as_bytes().to_vec().into()
    }

    /// See [`check`].
    pub fn check(&self, domain: &Eip712Domain) -> Result<(), FetchError> {
        check(&self.fetch(), self.signature.as_bytes(), domain)
    }
}

fn fetch_of(downloader: Address, pledge: PledgeId, bytes: u64) -> Fetch {
    let (host, modelRoot, listing) = pledge.parts();
    Fetch { downloader, host, modelRoot, listing, bytesFetched: bytes }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{b256, keccak256};

    use super::*;

    fn fetch(key: &PrivateKeySigner) -> Fetch {
        Fetch {
            downloader: key.address(),
            host: Address::repeat_byte(0x11),
            modelRoot: B256::repeat_byte(0x22),
            listing: Address::repeat_byte(0x33),
            bytesFetched: 4_368_439_584,
        }
    }

    /// Golden: a change here breaks every receipt that was signed. The contract's own hash is compared in `tests/contracts/serving.rs`.
    #[test]
    fn receipts_hash_as_written() {
        let key = PrivateKeySigner::from_bytes(&keccak256("downloader")).unwrap();
        let fetch = fetch(&key);
        assert_eq!(
            Fetch::eip712_root_type(),
            "Fetch(address downloader,address host,bytes32 modelRoot,address listing,uint64 bytesFetched)"
        );
        let domain = domain(31_337, Address::repeat_byte(0x44));
        assert_eq!(
            fetch_hash(&fetch, &domain),
            b256!("1b0a0ffc3e23ee60e57568ddc1a771430a1e8166c31c28c9a767b2f3acf43f68")
        );
        assert_eq!(
            keccak256(sign(&key, &fetch, &domain).unwrap()),
            b256!("aee7ef1af7af27eb7be94a601b147d68d37f71355d8d1787cef39f33300a4698")
        );
    }

    #[test]
    fn receipts_travel_as_json() {
        let key = PrivateKeySigner::from_bytes(&keccak256("downloader")).unwrap();
        let domain = domain(31_337, Address::repeat_byte(0x44));
        let listing =
            ListingId { model: ModelRoot::from_bytes([0x22; 32]), owner: Address::repeat_byte(0x33) };
        let pledge = PledgeId { host: Address::repeat_byte(0x11), listing };
        let receipt = FetchReceipt::by(&key, pledge, 4_368_439_584, &domain).unwrap();
        assert_eq!((receipt.fetch(), receipt.pledge()), (fetch(&key), pledge));
        assert_eq!(receipt.signature(), sign(&key, &fetch(&key), &domain).unwrap());
        let json = serde_json::to_string(&receipt).unwrap();
        assert_eq!(serde_json::from_str::<FetchReceipt>(&json).unwrap(), receipt);
        assert_eq!(receipt.check(&domain), Ok(()));
        let more = FetchReceipt { bytes: receipt.bytes + 1, ..receipt };
        assert_eq!(more.check(&domain).unwrap_err().code(), "fetch_wrong_signer");
        for bad in [
            "{}",
            &json.replace("bytes", "octets"),
            &json.replace("0x11", "0x1"),
            &json.replace("4368439584", "-1"),
        ] {
            assert!(serde_json::from_str::<FetchReceipt>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn receipts_are_checked_as_the_contract_does() {
        let key = PrivateKeySigner::from_bytes(&keccak256("downloader")).unwrap();
        let other = PrivateKeySigner::from_bytes(&keccak256("other")).unwrap();
        let (fetch, domain) = (fetch(&key), domain(31_337, Address::repeat_byte(0x44)));
        let signed = sign(&key, &fetch, &domain).unwrap();
        assert_eq!(check(&fetch, &signed, &domain), Ok(()));
        let more = Fetch { bytesFetched: fetch.bytesFetched + 1, ..fetch.clone() };
        assert!(matches!(check(&more, &signed, &domain), Err(FetchError::WrongSigner { .. })));
        let elsewhere = super::domain(31_337, Address::repeat_byte(0x45));
        assert!(check(&fetch, &signed, &elsewhere).is_err());
        assert!(matches!(sign(&other, &fetch, &domain), Err(FetchError::WrongSigner { .. })));
        for bad in [&signed[..64], &[], &[0; 65], &[27; 65], &[0xff; 66]] {
            assert!(check(&fetch, bad, &domain).is_err(), "{bad:?}");
        }
        let most = Fetch { bytesFetched: FETCHED_BYTES_MAX, ..fetch.clone() };
        assert_eq!(check(&most, &sign(&key, &most, &domain).unwrap(), &domain), Ok(()));
        let beyond = Fetch { bytesFetched: FETCHED_BYTES_MAX + 1, ..fetch };
        assert_eq!(sign(&key, &beyond, &domain).unwrap_err().code(), "fetch_too_many_bytes");
        assert_eq!(check(&beyond, &signed, &domain).unwrap_err().code(), "fetch_too_many_bytes");
    }
}
