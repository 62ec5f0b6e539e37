//! Payers that are contracts (ERC-1271): what they say of a voucher concerns their own money alone. Payers that get code later (EIP-7702) say
//! nothing of what their key has signed.

use alloy_eips::eip7702::Authorization;
use alloy_primitives::{Address, Bytes, U256};
use alloy_signer::SignerSync as _;
use alloy_sol_types::{SolConstructor, sol};
use assay_chain::scratch::{CHAIN_ID, Failure};
use assay_ledger::contracts::Channels;
use assay_ledger::voucher;

use crate::network::{Actor, DOLLAR, Network};
use crate::tokens::{authorization, deposit_call};

sol!(
    #[allow(missing_docs)]
    TestWallet,
    "../../contracts/artifacts/TestWallet.json"
);

/// What it says, numbered as in its source.
#[derive(Clone, Copy)]
enum Way {
    Checks,
    Agrees,
    Denies,
    BurnsGas,
    Reverts,
    ReturnsNothing,
    WritesState,
}

struct Wallet {
    n: Network,
    owner: Actor,
    other: Actor,
    receiver: Actor,
    at: Address,
    /// Of the wallet and of an ordinary payer.
    configs: [Channels::ChannelConfig; 2],
}

fn wallet() -> Wallet {
    let mut n = Network::new();
    let (owner, other) = (n.rich("owner", 100), n.rich("other", 100));
    let receiver = n.rich("receiver", 0);
    let arguments = TestWallet::constructorCall { owner_: owner.address }.abi_encode();
    let code: Bytes = [TestWallet::BYTECODE.as_ref(), arguments.as_slice()].concat().into();
    let at = n.chain.create(Actor::named("deployer").address, code).unwrap();
    n.accounts.push(at);
    let of_wallet = Channels::ChannelConfig { payer: at, ..n.config(&owner, &receiver, 0) };
    let ordinary = n.config(&other, &receiver, 0);
    n.fund(&owner, &of_wallet, 10 * DOLLAR).unwrap();
    n.fund(&other, &ordinary, 10 * DOLLAR).unwrap();
    Wallet { n, owner, other, receiver, at, configs: [of_wallet, ordinary] }
}

impl Wallet {
    fn behave(&mut self, way: Way) {
        let call = TestWallet::behaveCall { way_: way as u8 };
        self.n.send(&self.owner.clone(), self.at, call).unwrap();
    }

    fn claim(&mut self, signer: &Actor, total: u64, with_ordinary: bool) -> Result<u64, Failure> {
        let channels = self.n.parts.at.channels;
        let mut claims = vec![self.n.voucher(signer, &self.configs[0], total, total)];
        if with_ordinary {
            claims.push(self.n.voucher(&self.other, &self.configs[1], total, total));
        }
        let call = Channels::claimCall { claims };
        self.n.send(&self.receiver.clone(), channels, call).map(|done| done.gas)
    }

    fn claimed(&mut self, which: usize) -> u64 {
        let (channels, id) = (self.n.parts.at.channels, self.n.channel_id(&self.configs[which]));
        self.n.chain.read(channels, &Channels::channelOfCall { id }).unwrap().claimed
    }
}

#[test]
pub fn a_wallet_that_checks_pays_by_its_owners_signature() {
    let mut w = wallet();
    let (owner, other) = (w.owner.clone(), w.other.clone());
    w.claim(&owner, DOLLAR, true).unwrap();
    assert!(w.claim(&other, 2 * DOLLAR, true).unwrap_err().is::<Channels::BadVoucher>());
    assert_eq!((w.claimed(0), w.claimed(1)), (DOLLAR, DOLLAR));
    w.n.check_money();
}

/// Which is its own loss, up to what was deposited for it.
#[test]
pub fn a_wallet_that_agrees_to_everything_loses_its_own_deposit_alone() {
    let mut w = wallet();
    let thief = Actor::named("thief");
    w.behave(Way::Agrees);
    w.claim(&thief, 10 * DOLLAR, false).unwrap();
    assert!(w.claim(&thief, 11 * DOLLAR, false).unwrap_err().is::<Channels::ClaimTooHigh>());
    assert_eq!((w.claimed(0), w.claimed(1)), (10 * DOLLAR, 0));
    w.n.check_money();
}

/// It may agree when it is asked before and deny when it counts, refuse, burn what gas there is, or try to write: the claim fails, as a
/// whole, and the receiver leaves that channel out.
#[test]
pub fn a_wallet_that_fails_stops_its_own_voucher() {
    let ways = [Way::Denies, Way::Reverts, Way::BurnsGas, Way::ReturnsNothing, Way::WritesState];
    for way in ways {
        let mut w = wallet();
        let (owner, other) = (w.owner.clone(), w.other.clone());
        w.behave(way);
        w.claim(&owner, DOLLAR, true).unwrap_err();
        assert_eq!((w.claimed(0), w.claimed(1)), (0, 0));
        assert_eq!(w.n.chain.read(w.at, &TestWallet::askedCall {}).unwrap().to::<u64>(), 0);
        let channels = w.n.parts.at.channels;
        let claims = vec![w.n.voucher(&other, &w.configs[1].clone(), DOLLAR, DOLLAR)];
        w.n.send(&w.receiver.clone(), channels, Channels::claimCall { claims }).unwrap();
        w.behave(Way::Checks);
        w.claim(&owner, DOLLAR, true).unwrap();
        assert_eq!((w.claimed(0), w.claimed(1)), (DOLLAR, DOLLAR));
        w.n.check_money();
    }
}

/// A wallet pays into a channel by what its owner signs, too.
#[test]
pub fn a_wallet_deposits_by_authorization() {
    let mut w = wallet();
    let (channels, token) = (w.n.parts.at.channels, w.n.parts.at.token);
    let (to, amount) = (w.at, U256::from(DOLLAR));
    w.n.send(&w.owner.clone(), token, assay_ledger::contracts::TestToken::mintCall { to, amount }).unwrap();
    let config = w.configs[0].clone();
    let signature = w.owner.sign(authorization(&w.n, w.at, &config, DOLLAR, 3, u64::MAX));
    let call = deposit_call(&config, DOLLAR, 3, u64::MAX, signature);
    w.n.send(&Actor::named("anyone"), channels, call).unwrap();
    let id = voucher::channel_id(&config, &voucher::domain(CHAIN_ID, channels));
    assert_eq!(w.n.chain.read(channels, &Channels::channelOfCall { id }).unwrap().balance, 11 * DOLLAR);
    w.n.check_money();
}

impl Wallet {
    /// Gives an account the wallet's code, as its key signs, and has it answer in this way.
    fn delegate(&mut self, account: &Actor, way: Way) {
        let nonce = self.n.chain.nonce(account.address);
        let authorization = Authorization { chain_id: U256::from(CHAIN_ID), address: self.at, nonce };
        let signature = account.key.sign_hash_sync(&authorization.signature_hash()).unwrap();
        let sponsor = Actor::named("anyone").address;
        self.n.chain.delegate(sponsor, authorization.into_signed(signature)).unwrap();
        let designator = [&[0xef, 0x01, 0x00], self.at.as_slice()].concat();
        assert_eq!(self.n.chain.code(account.address), Bytes::from(designator));
        self.n.send(account, account.address, TestWallet::behaveCall { way_: way as u8 }).unwrap();
        assert_eq!(self.n.chain.read(account.address, &TestWallet::wayCall {}).unwrap(), way as u8);
    }
}

/// Its key has signed, and that is enough: its code is not asked, whatever it would say.
#[test]
pub fn a_payer_that_gets_code_later_cannot_deny_its_vouchers() {
    let ways = [Way::Denies, Way::Reverts, Way::BurnsGas, Way::ReturnsNothing, Way::WritesState];
    for way in ways {
        let mut w = wallet();
        let (other, channels) = (w.other.clone(), w.n.parts.at.channels);
        let old = w.n.voucher(&other, &w.configs[1], 3 * DOLLAR, 3 * DOLLAR);
        w.delegate(&other, way);
        w.n.send(&w.receiver.clone(), channels, Channels::claimCall { claims: vec![old] }).unwrap();
        assert_eq!(w.claimed(1), 3 * DOLLAR);
        w.n.check_money();
    }
}

/// What its key has not signed is for its code to say, as with any contract.
#[test]
pub fn an_account_with_code_may_still_sign_in_its_own_way() {
    let mut w = wallet();
    let (owner, other, thief) = (w.owner.clone(), w.other.clone(), Actor::named("thief"));
    let (channels, receiver) = (w.n.parts.at.channels, w.receiver.clone());
    w.delegate(&other, Way::Checks);
    // The wallet's code at the payer's address asks for the owner's signature.
    for (signer, takes) in [(&thief, false), (&owner, true), (&other, true)] {
        let total = w.claimed(1) + DOLLAR;
        let claims = vec![w.n.voucher(signer, &w.configs[1], total, total)];
        let done = w.n.send(&receiver, channels, Channels::claimCall { claims });
        match takes {
            true => drop(done.unwrap()),
            false => assert!(done.unwrap_err().is::<Channels::BadVoucher>()),
        }
    }
    assert_eq!(w.claimed(1), 2 * DOLLAR);
    w.n.check_money();
}

/// Nor can whoever signs for a payer or a receiver, once it has code.
#[test]
pub fn authorizers_that_get_code_later_cannot_deny_what_they_signed() {
    let mut w = wallet();
    let (other, channels, anyone) = (w.other.clone(), w.n.parts.at.channels, Actor::named("anyone"));
    let (hand, clerk) = (Actor::named("hand"), Actor::named("clerk"));
    let config = Channels::ChannelConfig {
        payerAuthorizer: hand.address,
        receiverAuthorizer: clerk.address,
        ..w.configs[1].clone()
    };
    w.n.fund(&other, &config, 10 * DOLLAR).unwrap();
    let domain = voucher::domain(CHAIN_ID, channels);
    let id = voucher::channel_id(&config, &domain);
    let claims = vec![w.n.voucher(&hand, &config, DOLLAR, DOLLAR)];
    let authorizer = clerk.sign(crate::channels::claim_hash(&[(id, DOLLAR)], &domain));
    let refund = clerk.sign(crate::channels::refund_hash(id, DOLLAR, 2 * DOLLAR, &domain));
    w.delegate(&hand, Way::Denies);
    w.delegate(&clerk, Way::Denies);
    let call = Channels::claimWithSignatureCall { claims, authorizerSignature: authorizer };
    w.n.send(&anyone, channels, call).unwrap();
    let call =
        Channels::refundCall { config, amount: (2 * DOLLAR).into(), authorizerSignature: refund.clone() };
    w.n.send(&anyone, channels, call).unwrap();
    let channel = w.n.chain.read(channels, &Channels::channelOfCall { id }).unwrap();
    assert_eq!((channel.claimed, channel.balance), (DOLLAR, 8 * DOLLAR));
    w.n.check_money();
}
