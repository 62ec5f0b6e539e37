//! Deposits by authorization, and tokens that misbehave: whatever a token does, nobody pays for another, and money is conserved.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::{SolCall, SolStruct, SolValue, eip712_domain, sol};
use assay_chain::scratch::{CHAIN_ID, Failure, Scratch};
use assay_ledger::contracts::{Channels, TestToken, Vault};

use crate::network::{Actor, DOLLAR, Network, START, parameters};

sol!(
    #[allow(missing_docs)]
    HostileToken,
    "../../contracts/artifacts/HostileToken.json"
);

/// How it misbehaves, numbered as in its source.
#[derive(Clone, Copy)]
enum Way {
    None,
    CallsBack,
    ChargesSender,
    ReturnsFalse,
    ReturnsNothing,
}

sol! {
    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// What an x402 client signs to put `amount` into a channel.
pub fn authorization(
    n: &Network,
    payer: Address,
    config: &Channels::ChannelConfig,
    amount: u64,
    salt: u64,
    before: u64,
) -> B256 {
    let nonce = keccak256((n.channel_id(config), U256::from(salt)).abi_encode());
    let domain = eip712_domain! {
        name: "Assay test dollars",
        version: "1",
        chain_id: CHAIN_ID,
        verifying_contract: n.parts.at.token,
    };
    let message = ReceiveWithAuthorization {
        from: payer,
        to: n.parts.at.vault,
        value: U256::from(amount),
        validAfter: U256::ZERO,
        validBefore: U256::from(before),
        nonce,
    };
    message.eip712_signing_hash(&domain)
}

pub fn deposit_call(
    config: &Channels::ChannelConfig,
    amount: u64,
    salt: u64,
    before: u64,
    signature: Bytes,
) -> Channels::depositWithAuthorizationCall {
    Channels::depositWithAuthorizationCall {
        config: config.clone(),
        amount: amount.into(),
        validAfter: U256::ZERO,
        validBefore: U256::from(before),
        salt: U256::from(salt),
        signature,
    }
}

const FOREVER: u64 = u64::MAX;

fn channel(n: &mut Network, config: &Channels::ChannelConfig) -> Channels::Channel {
    let (channels, id) = (n.parts.at.channels, n.channel_id(config));
    n.chain.read(channels, &Channels::channelOfCall { id }).unwrap()
}

/// A payer with tokens and nothing in the vault.
fn bare(n: &mut Network, name: &str, dollars: u64) -> Actor {
    let actor = n.rich(name, 0);
    let token = n.parts.at.token;
    n.send(&actor, token, TestToken::mintCall { to: actor.address, amount: U256::from(dollars * DOLLAR) })
        .unwrap();
    actor
}

#[test]
pub fn anyone_sends_what_a_payer_signed_and_can_do_nothing_else_with_it() {
    let mut n = Network::new();
    let channels = n.parts.at.channels;
    let (payer, receiver) = (bare(&mut n, "payer", 100), n.rich("receiver", 0));
    let (anyone, thief) = (n.rich("anyone", 0), n.rich("thief", 0));
    let config = n.config(&payer, &receiver, 0);
    let signature = payer.sign(authorization(&n, payer.address, &config, 10 * DOLLAR, 7, FOREVER));
    let call = deposit_call(&config, 10 * DOLLAR, 7, FOREVER, signature.clone());
    // Into no other channel, for no other amount, and not past the contracts.
    let others = [
        n.config(&payer, &thief, 0),
        n.config(&payer, &receiver, 1),
        Channels::ChannelConfig { payer: thief.address, ..config.clone() },
    ];
    for other in others {
        let call = Channels::depositWithAuthorizationCall { config: other, ..call.clone() };
        assert!(n.send(&thief, channels, call).unwrap_err().is::<TestToken::BadAuthorization>());
    }
    let more = Channels::depositWithAuthorizationCall { amount: (11 * DOLLAR).into(), ..call.clone() };
    assert!(n.send(&thief, channels, more).unwrap_err().is::<TestToken::BadAuthorization>());
    let (token, vault) = (n.parts.at.token, n.parts.at.vault);
    let nonce = keccak256((n.channel_id(&config), U256::from(7)).abi_encode());
    let past = TestToken::receiveWithAuthorizationCall {
        from: payer.address,
        to: vault,
        value: U256::from(10 * DOLLAR),
        validAfter: U256::ZERO,
        validBefore: U256::from(FOREVER),
        nonce,
        signature: signature.clone(),
    };
    assert!(n.send(&thief, token, past).unwrap_err().is::<TestToken::BadAuthorization>());
    let collect = Vault::collectCall {
        from: payer.address,
        amount: U256::from(10 * DOLLAR),
        validAfter: U256::ZERO,
        validBefore: U256::from(FOREVER),
        nonce,
        signature,
    };
    assert!(n.send(&thief, vault, collect).unwrap_err().is::<Vault::NotAPart>());
    // As it was signed, once.
    n.send(&anyone, channels, call.clone()).unwrap();
    assert_eq!(channel(&mut n, &config).balance, 10 * DOLLAR);
    assert!(n.send(&anyone, channels, call).unwrap_err().is::<TestToken::BadAuthorization>());
    n.check_money();
    // Not when its time is over.
    let before = START - 1;
    let late = payer.sign(authorization(&n, payer.address, &config, DOLLAR, 8, before));
    let call = deposit_call(&config, DOLLAR, 8, before, late);
    assert!(n.send(&anyone, channels, call).unwrap_err().is::<TestToken::BadAuthorization>());
    // What was deposited this way is claimed as any other.
    n.earn(&payer, &receiver, &config, 4 * DOLLAR).unwrap();
    assert_eq!(n.balance(receiver.address), 4 * DOLLAR);
    n.check_money();
}

#[test]
pub fn what_arrives_is_credited() {
    let mut n = Network::with(parameters(), 25_000);
    let channels = n.parts.at.channels;
    let (payer, receiver) = (bare(&mut n, "payer", 100), n.rich("receiver", 0));
    let config = n.config(&payer, &receiver, 0);
    let signature = payer.sign(authorization(&n, payer.address, &config, 40 * DOLLAR, 1, FOREVER));
    n.send(&receiver, channels, deposit_call(&config, 40 * DOLLAR, 1, FOREVER, signature)).unwrap();
    assert_eq!(channel(&mut n, &config).balance, 39 * DOLLAR);
    n.check_money();
}

/// A deployment over a token that misbehaves when it is told to.
fn hostile() -> (Network, Actor, Actor, Channels::ChannelConfig) {
    let mut chain = Scratch::new(START);
    let maker = Actor::named("deployer").address;
    let token = chain.create(maker, HostileToken::BYTECODE.clone()).unwrap();
    let mut n = Network::over(chain, token, parameters(), Some(Actor::named("disputes").address));
    n.accounts.push(token);
    let (payer, receiver) = (n.rich("payer", 100), n.rich("receiver", 0));
    n.send(&payer, token, HostileToken::mintCall { to: payer.address, amount: U256::from(1000 * DOLLAR) })
        .unwrap();
    let config = n.config(&payer, &receiver, 0);
    n.fund(&payer, &config, 50 * DOLLAR).unwrap();
    (n, payer, receiver, config)
}

fn behave<C: SolCall>(n: &mut Network, way: Way, target: Address, call: &C) {
    let token = n.parts.at.token;
    let call = HostileToken::behaveCall { way_: way as u8, target_: target, call_: call.abi_encode().into() };
    n.send(&Actor::named("deployer"), token, call).unwrap();
}

fn deposit(n: &mut Network, by: &Actor, amount: u64) -> Result<(), Failure> {
    let (vault, amount) = (n.parts.at.vault, U256::from(amount));
    n.send(by, vault, Vault::depositCall { account: by.address, amount }).map(|_| ())
}

fn withdraw(n: &mut Network, by: &Actor, amount: u64) -> Result<(), Failure> {
    let (vault, amount) = (n.parts.at.vault, U256::from(amount));
    n.send(by, vault, Vault::withdrawCall { to: by.address, amount }).map(|_| ())
}

/// How often the token's calls went well, and how often they failed.
fn called_back(n: &mut Network) -> (u64, u64) {
    let token = n.parts.at.token;
    let succeeded: u64 = n.chain.read(token, &HostileToken::succeededCall {}).unwrap().to();
    let failed: u64 = n.chain.read(token, &HostileToken::failedCall {}).unwrap().to();
    (succeeded, failed)
}

#[test]
pub fn a_token_that_calls_back_takes_nothing() {
    let (mut n, payer, receiver, config) = hostile();
    let (vault, channels, token) = (n.parts.at.vault, n.parts.at.channels, n.parts.at.token);
    // The token has an account of its own to take from, and what it calls about is there to be had.
    n.send(&payer, vault, Vault::depositCall { account: token, amount: U256::from(20 * DOLLAR) }).unwrap();
    let claims = vec![n.voucher(&payer, &config, 5 * DOLLAR, 5 * DOLLAR)];
    n.send(&receiver, channels, Channels::claimCall { claims }).unwrap();
    let again = Vault::withdrawCall { to: token, amount: U256::from(DOLLAR) };
    let into = Vault::depositCall { account: token, amount: U256::from(DOLLAR) };
    let settle = Channels::settleCall { receiver: receiver.address };
    let fund = Channels::depositCall { config: config.clone(), amount: DOLLAR.into() };
    let mut expected = (0, 0);
    for step in 0..3 {
        let mut all = |n: &mut Network, went: bool| {
            let signature = Bytes::new();
            match step {
                0 => deposit(n, &payer, DOLLAR).unwrap(),
                1 => withdraw(n, &payer, DOLLAR).unwrap(),
                _ => n
                    .send(&payer, channels, deposit_call(&config, DOLLAR, 1, FOREVER, signature))
                    .map(|_| ())
                    .unwrap(),
            }
            if went {
                expected.0 += 1
            } else {
                expected.1 += 1
            }
            assert_eq!(called_back(n), expected, "step {step}");
            n.check_money();
        };
        // Into the vault it does not come a second time; other parts move balances that are there.
        behave(&mut n, Way::CallsBack, vault, &again);
        all(&mut n, false);
        behave(&mut n, Way::CallsBack, vault, &into);
        all(&mut n, false);
        behave(&mut n, Way::CallsBack, channels, &settle);
        // There was something to settle once.
        all(&mut n, step == 0);
        behave(&mut n, Way::CallsBack, channels, &fund);
        all(&mut n, true);
    }
    let id = n.channel_id(&config);
    let c = n.chain.read(channels, &Channels::channelOfCall { id }).unwrap();
    // Three from the token's account, four from the payer's authorizations.
    assert_eq!((c.balance, c.claimed), (57 * DOLLAR, 5 * DOLLAR));
    assert_eq!(n.balance(token), 17 * DOLLAR);
    assert_eq!(n.balance(receiver.address), 5 * DOLLAR, "settled once");
}

#[test]
pub fn a_token_that_charges_the_sender_is_not_paid_by_others() {
    let (mut n, payer, _, _) = hostile();
    behave(&mut n, Way::ChargesSender, Address::ZERO, &Vault::totalCall {});
    deposit(&mut n, &payer, DOLLAR).unwrap();
    n.check_money();
    assert!(withdraw(&mut n, &payer, DOLLAR).unwrap_err().is::<Vault::TokenOvercharges>());
    n.check_money();
    behave(&mut n, Way::None, Address::ZERO, &Vault::totalCall {});
    withdraw(&mut n, &payer, DOLLAR).unwrap();
    n.check_money();
}

#[test]
pub fn a_token_that_refuses_moves_nothing_and_a_silent_one_works() {
    let (mut n, payer, _, config) = hostile();
    let channels = n.parts.at.channels;
    let held = n.balance(payer.address);
    behave(&mut n, Way::ReturnsFalse, Address::ZERO, &Vault::totalCall {});
    deposit(&mut n, &payer, DOLLAR).unwrap_err();
    withdraw(&mut n, &payer, DOLLAR).unwrap_err();
    // An authorization says nothing of how it went: what arrived does.
    let call = deposit_call(&config, DOLLAR, 1, FOREVER, Bytes::new());
    assert!(n.send(&payer, channels, call).unwrap_err().is::<Channels::NothingToDo>());
    assert_eq!(n.balance(payer.address), held);
    n.check_money();
    behave(&mut n, Way::ReturnsNothing, Address::ZERO, &Vault::totalCall {});
    deposit(&mut n, &payer, 2 * DOLLAR).unwrap();
    withdraw(&mut n, &payer, DOLLAR).unwrap();
    assert_eq!(n.balance(payer.address), held + DOLLAR);
    n.check_money();
}
