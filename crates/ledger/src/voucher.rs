//! Channels and vouchers off the chain: ids and the hashes that payers and providers sign, in the shape of x402's `batch-settlement`.

use alloy_primitives::{Address, B256, Bytes};
use alloy_sol_types::{Eip712Domain, SolStruct, eip712_domain, sol};

use crate::contracts::Channels;

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

/// A channel's id.
pub fn channel_id(config: &Channels::ChannelConfig, domain: &Eip712Domain) -> B256 {
    config.eip712_signing_hash(domain)
}

/// What the payer signs to let the receiver claim `max` units from a channel, all in all.
pub fn voucher_hash(channel: B256, max: u128, domain: &Eip712Domain) -> B256 {
    Voucher { channelId: channel, maxClaimableAmount: max }.eip712_signing_hash(domain)
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
