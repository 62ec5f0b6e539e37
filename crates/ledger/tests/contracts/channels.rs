//! Vouchers, claims, and both sides' exits.

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_sol_types::{Eip712Domain, SolStruct as _};
use assay_chain::scratch::CHAIN_ID;
use assay_ledger::contracts::{Channels, Vault};
use assay_ledger::voucher;

use crate::network::{Actor, DOLLAR, Network, PROVIDER};

#[test]
pub fn ids_and_vouchers_hash_as_the_contract_says() {
    let mut n = Network::new();
    let (payer, receiver) = (Actor::named("payer"), Actor::named("receiver"));
    let (channels, config) = (n.parts.at.channels, n.config(&payer, &receiver, 3));
    let domain = voucher::domain(CHAIN_ID, channels);
    let id = voucher::channel_id(&config, &domain);
    assert_eq!(n.chain.read(channels, &Channels::channelIdCall { config }).unwrap(), id);
    let hash = n.chain.read(channels, &Channels::voucherHashCall { id, maxClaimableAmount: 77 }).unwrap();
    assert_eq!(hash, voucher::voucher_hash(id, 77, &domain));
}

#[test]
pub fn claims_are_cumulative_partial_and_batched() {
    let mut n = Network::new();
    let channels = n.parts.at.channels;
    let payer = n.rich("payer", 100);
    let receiver = n.rich("receiver", 0);
    let lanes: Vec<_> = (0..3).map(|lane| n.config(&payer, &receiver, lane)).collect();
    for lane in &lanes {
        n.fund(&payer, lane, 10 * DOLLAR).unwrap();
    }
    let mut claims: Vec<_> = lanes.iter().map(|l| n.voucher(&payer, l, 6 * DOLLAR, 4 * DOLLAR)).collect();
    n.send(&receiver, channels, Channels::claimCall { claims: claims.clone() }).unwrap();
    // The same again claims nothing, less is refused, more is taken.
    n.send(&receiver, channels, Channels::claimCall { claims: claims.clone() }).unwrap();
    claims[1].totalClaimed = u128::from(4 * DOLLAR - 1);
    let less = n.send(&receiver, channels, Channels::claimCall { claims: claims.clone() }).unwrap_err();
    assert!(less.is::<Channels::ClaimTooLow>());
    claims[1].totalClaimed = u128::from(6 * DOLLAR + 1);
    let more = n.send(&receiver, channels, Channels::claimCall { claims: claims.clone() }).unwrap_err();
    assert!(more.is::<Channels::ClaimTooHigh>());
    claims[1].totalClaimed = u128::from(6 * DOLLAR);
    n.send(&receiver, channels, Channels::claimCall { claims }).unwrap();
    n.send(&payer, channels, Channels::settleCall { receiver: receiver.address }).unwrap();
    assert_eq!(n.balance(receiver.address), 14 * DOLLAR);
    n.check_money();
}

#[test]
pub fn a_voucher_pays_no_more_than_there_is_and_only_with_its_signature() {
    let mut n = Network::new();
    let channels = n.parts.at.channels;
    let payer = n.rich("payer", 100);
    let (receiver, thief) = (n.rich("receiver", 0), Actor::named("thief"));
    let config = n.config(&payer, &receiver, 0);
    n.fund(&payer, &config, 10 * DOLLAR).unwrap();
    let forged = vec![n.voucher(&thief, &config, DOLLAR, DOLLAR)];
    let refused = n.send(&receiver, channels, Channels::claimCall { claims: forged }).unwrap_err();
    assert!(refused.is::<Channels::BadVoucher>());
    let claims = vec![n.voucher(&payer, &config, 50 * DOLLAR, 11 * DOLLAR)];
    assert!(
        n.send(&receiver, channels, Channels::claimCall { claims })
            .unwrap_err()
            .is::<Channels::ClaimTooHigh>()
    );
    let claims = vec![n.voucher(&payer, &config, 50 * DOLLAR, 10 * DOLLAR)];
    let stolen = n.send(&thief, channels, Channels::claimCall { claims: claims.clone() }).unwrap_err();
    assert!(stolen.is::<Channels::NotReceiver>());
    n.send(&receiver, channels, Channels::claimCall { claims }).unwrap();
}

#[test]
pub fn the_payers_exit_leaves_the_receiver_time_to_claim() {
    let mut n = Network::new();
    let channels = n.parts.at.channels;
    let payer = n.rich("payer", 100);
    let receiver = n.rich("receiver", 0);
    let config = n.config(&payer, &receiver, 0);
    n.fund(&payer, &config, 100 * DOLLAR).unwrap();
    let start = Channels::startWithdrawalCall { config: config.clone(), amount: u128::MAX };
    assert!(n.send(&receiver, channels, start.clone()).unwrap_err().is::<Channels::NotPayer>());
    n.send(&payer, channels, start).unwrap();
    let withdraw = Channels::withdrawCall { config: config.clone() };
    assert!(n.send(&payer, channels, withdraw.clone()).unwrap_err().is::<Channels::TooSoon>());
    n.chain.mine(1, 899);
    let claims = vec![n.voucher(&payer, &config, 30 * DOLLAR, 30 * DOLLAR)];
    n.send(&receiver, channels, Channels::claimCall { claims }).unwrap();
    n.chain.mine(1, 1);
    n.send(&receiver, channels, withdraw.clone()).unwrap();
    assert_eq!(n.balance(payer.address), 70 * DOLLAR);
    assert!(n.send(&payer, channels, withdraw).unwrap_err().is::<Channels::NothingToDo>());
    n.check_money();
}

alloy_sol_types::sol! {
    struct ClaimBatch { bytes32 claims; }
    struct Refund { bytes32 channelId; uint128 totalClaimed; uint128 amount; }
}

/// What a receiver's authorizer signs for claims of these totals.
pub fn claim_hash(claims: &[(B256, u64)], domain: &Eip712Domain) -> B256 {
    let one = |(id, total): &(B256, u64)| [id.as_slice(), &u128::from(*total).to_be_bytes()].concat();
    let packed: Vec<u8> = claims.iter().flat_map(one).collect();
    ClaimBatch { claims: keccak256(packed) }.eip712_signing_hash(domain)
}

/// What it signs for a refund from a channel of which `claimed` was claimed.
pub fn refund_hash(id: B256, claimed: u64, amount: u64, domain: &Eip712Domain) -> B256 {
    let refund = Refund { channelId: id, totalClaimed: claimed.into(), amount: amount.into() };
    refund.eip712_signing_hash(domain)
}

#[test]
pub fn authorizers_sign_claims_and_refunds() {
    let mut n = Network::new();
    let channels = n.parts.at.channels;
    let payer = n.rich("payer", 100);
    let (receiver, hub, courier) = (n.rich("receiver", 0), Actor::named("hub"), Actor::named("courier"));
    let mut config = n.config(&payer, &receiver, 0);
    config.receiverAuthorizer = hub.address;
    n.fund(&payer, &config, 20 * DOLLAR).unwrap();
    let (id, claims) = (n.channel_id(&config), vec![n.voucher(&payer, &config, 9 * DOLLAR, 5 * DOLLAR)]);
    let domain = voucher::domain(CHAIN_ID, channels);
    let hash = claim_hash(&[(id, 5 * DOLLAR)], &domain);
    let forged =
        Channels::claimWithSignatureCall { claims: claims.clone(), authorizerSignature: courier.sign(hash) };
    assert!(n.send(&courier, channels, forged).unwrap_err().is::<Channels::NotReceiver>());
    let call = Channels::claimWithSignatureCall { claims, authorizerSignature: hub.sign(hash) };
    n.send(&courier, channels, call).unwrap();

    let hash = refund_hash(id, 5 * DOLLAR, 15 * DOLLAR, &domain);
    let refund = |authorizerSignature| Channels::refundCall {
        config: config.clone(),
        amount: (15 * DOLLAR).into(),
        authorizerSignature,
    };
    assert!(
        n.send(&courier, channels, refund(courier.sign(hash))).unwrap_err().is::<Channels::NotReceiver>()
    );
    n.send(&courier, channels, refund(hub.sign(hash))).unwrap();
    assert_eq!(n.balance(payer.address), 95 * DOLLAR);
    n.check_money();
}

#[test]
pub fn a_providers_claims_go_to_its_escrow_and_others_to_their_balance() {
    let mut n = Network::new();
    let payer = n.rich("payer", 100);
    let (provider, gateway) = (n.rich("provider", 0), n.rich("gateway", 0));
    n.enrol(&provider, PROVIDER, 0);
    for receiver in [&provider, &gateway] {
        let config = n.config(&payer, receiver, 0);
        n.fund(&payer, &config, 10 * DOLLAR).unwrap();
        n.earn(&payer, receiver, &config, 10 * DOLLAR).unwrap();
    }
    let epochs = n.parts.at.epochs;
    assert_eq!((n.balance(provider.address), n.balance(gateway.address)), (0, 10 * DOLLAR));
    assert_eq!(n.balance(epochs), 10 * DOLLAR);
    n.check_money();
}

#[test]
pub fn a_deposit_needs_the_right_token_and_delay() {
    let mut n = Network::new();
    let payer = n.rich("payer", 100);
    let receiver = Actor::named("receiver");
    let mut config = n.config(&payer, &receiver, 0);
    config.token = Address::repeat_byte(1);
    assert!(n.fund(&payer, &config, 1).unwrap_err().is::<Channels::WrongToken>());
    for delay in [899u64, 30 * 86_400 + 1] {
        let mut config = n.config(&payer, &receiver, 0);
        config.withdrawDelay = alloy_primitives::Uint::from(delay);
        assert!(n.fund(&payer, &config, 1).unwrap_err().is::<Channels::BadWithdrawDelay>());
    }
    let config = n.config(&payer, &receiver, 0);
    assert!(n.fund(&payer, &config, 101 * DOLLAR).unwrap_err().is::<Vault::InsufficientBalance>());
    let vault = n.parts.at.vault;
    let all = Vault::withdrawCall { to: payer.address, amount: U256::from(100 * DOLLAR) };
    n.send(&payer, vault, all).unwrap();
    n.check_money();
}
