//! Nodes, stakes, models, and the vault under them.

use alloy_primitives::{Address, B256, Bytes, U256};
use assay_ledger::contracts::{Audits, Registry, TestToken, Vault};

use crate::network::{AUDITOR, Actor, DOLLAR, Network, PROVIDER, some};

#[test]
pub fn nobody_enrols_anothers_key() {
    let mut n = Network::new();
    let registry = n.parts.at.registry;
    let (owner, key, thief) = (Actor::named("owner"), Actor::named("key"), Actor::named("thief"));
    let enrol = |signature: Bytes, roles: u8| Registry::enrolCall {
        node: key.address,
        roles,
        endpoint: String::new(),
        priceList: B256::ZERO,
        signature,
    };
    let domain = alloy_sol_types::eip712_domain! {
        name: "Assay Registry", version: "1", chain_id: 31_337, verifying_contract: registry,
    };
    alloy_sol_types::sol! { struct Enrol { address node; address owner; uint8 roles; } }
    let enrolled = Enrol { node: key.address, owner: owner.address, roles: PROVIDER };
    let signature = key.sign(alloy_sol_types::SolStruct::eip712_signing_hash(&enrolled, &domain));

    let refused = n.send(&thief, registry, enrol(signature.clone(), PROVIDER)).unwrap_err();
    assert!(refused.is::<Registry::KeyDidNotSign>());
    assert!(n.send(&owner, registry, enrol(signature.clone(), AUDITOR)).is_err());
    n.send(&owner, registry, enrol(signature.clone(), PROVIDER)).unwrap();
    assert_eq!(n.node(key.address).owner, owner.address);
    let again = n.send(&owner, registry, enrol(signature, PROVIDER)).unwrap_err();
    assert!(again.is::<Registry::AlreadyEnrolled>());
}

#[test]
pub fn stake_leaves_after_its_time_and_not_before() {
    let mut n = Network::new();
    let registry = n.parts.at.registry;
    let owner = n.rich("owner", 100);
    n.enrol(&owner, PROVIDER, 60 * DOLLAR);
    assert_eq!(n.balance(owner.address), 40 * DOLLAR);
    let node = owner.address;
    let unbond = |amount: u64| Registry::unbondCall { node, amount: U256::from(amount) };
    let withdraw = Registry::withdrawCall { node, nextOpen: 0 };

    let thief = Actor::named("thief");
    assert!(n.send(&thief, registry, unbond(1)).unwrap_err().is::<Registry::NotOwner>());
    assert!(n.send(&owner, registry, unbond(61 * DOLLAR)).unwrap_err().is::<Registry::StakeReserved>());
    n.send(&owner, registry, unbond(50 * DOLLAR)).unwrap();
    assert!(n.send(&thief, registry, withdraw.clone()).unwrap_err().is::<Registry::StillUnbonding>());
    let wait = u64::from(n.p.times.unbondSeconds);
    n.chain.mine(1, wait - 1);
    assert!(n.send(&thief, registry, withdraw.clone()).unwrap_err().is::<Registry::StillUnbonding>());
    n.chain.mine(1, 1);
    n.send(&thief, registry, withdraw).unwrap();
    assert_eq!(n.balance(owner.address), 90 * DOLLAR);
    n.check_money();
}

#[test]
pub fn only_the_fixed_parts_slash_and_only_parts_move_balances() {
    let mut n = Network::new();
    let (registry, vault) = (n.parts.at.registry, n.parts.at.vault);
    let owner = n.rich("owner", 10);
    n.enrol(&owner, PROVIDER, 5 * DOLLAR);
    let thief = Actor::named("thief");
    let slash = Registry::slashCall {
        node: owner.address,
        amount: U256::from(1),
        beneficiary: thief.address,
        sharePpm: 1,
    };
    assert!(n.send(&thief, registry, slash).unwrap_err().is::<Registry::NotAuthorised>());
    let strike = Registry::strikeCall { node: owner.address, reporter: thief.address };
    assert!(n.send(&thief, registry, strike).unwrap_err().is::<Registry::NotAuthorised>());
    let reserve = Registry::reserveCall { node: owner.address, amount: U256::from(1) };
    assert!(n.send(&thief, registry, reserve).unwrap_err().is::<Registry::NotAuthorised>());
    let credit = Registry::creditCall { node: owner.address, amount: U256::from(1) };
    assert!(n.send(&thief, registry, credit).unwrap_err().is::<Registry::NotAuthorised>());
    let take = Vault::takeCall { from: owner.address, amount: U256::from(1) };
    assert!(n.send(&thief, vault, take).unwrap_err().is::<Vault::NotAPart>());
    let give = Vault::giveCall { to: thief.address, amount: U256::ZERO };
    assert!(n.send(&thief, vault, give).unwrap_err().is::<Vault::NotAPart>());
}

#[test]
pub fn what_is_slashed_goes_to_the_winner_and_the_treasury() {
    let mut n = Network::new();
    let registry = n.parts.at.registry;
    let owner = n.rich("owner", 100);
    n.enrol(&owner, PROVIDER, 30 * DOLLAR + 7);
    n.send(&owner, registry, Registry::unbondCall { node: owner.address, amount: U256::from(20 * DOLLAR) })
        .unwrap();
    let (winner, disputes) = (Address::repeat_byte(7), n.disputes.clone());
    n.accounts.push(winner);

    // A part: the stake first, then what is unbonding; shares round down.
    let slash = |amount: u64, sharePpm: u32| Registry::slashCall {
        node: owner.address,
        amount: U256::from(amount),
        beneficiary: winner,
        sharePpm,
    };
    let taken = n.send(&disputes, registry, slash(10 * DOLLAR + 8, 333_333)).unwrap().value;
    assert_eq!(taken, U256::from(10 * DOLLAR + 8));
    let share = (10 * DOLLAR + 8) * 333_333 / 1_000_000;
    assert_eq!(n.balance(winner), share);
    let treasury = n.treasury;
    assert_eq!(n.balance(treasury), 10 * DOLLAR + 8 - share);
    let node = n.node(owner.address);
    assert_eq!((node.stake, node.unbonding), (0, u128::from(20 * DOLLAR - 1)));

    // All of it, once.
    let strike = Registry::strikeCall { node: owner.address, reporter: winner };
    let taken = n.send(&disputes, registry, strike.clone()).unwrap().value;
    assert_eq!(taken, U256::from(20 * DOLLAR - 1));
    assert_eq!(n.balance(winner), share + (20 * DOLLAR - 1) / 10);
    assert_eq!(n.send(&disputes, registry, strike).unwrap().value, U256::ZERO);
    assert!(n.node(owner.address).struck);
    assert!(n.bond(&owner, 1).unwrap_err().is::<Registry::NodeStruck>());
    n.check_money();
}

#[test]
pub fn a_royalty_only_falls_and_a_root_belongs_to_no_one() {
    let mut n = Network::new();
    let registry = n.parts.at.registry;
    let (first, second) = (Actor::named("first"), Actor::named("second"));
    let list = |royaltyPpm: u32, content: &str| Registry::listCall {
        modelRoot: some("model").into(),
        royaltyPpm,
        contentRoot: some(content).into(),
        chunks: 3,
        manifest: "https://models.example".into(),
    };
    assert!(n.send(&first, registry, list(200_001, "a")).unwrap_err().is::<Registry::RoyaltyTooHigh>());
    n.send(&first, registry, list(50_000, "a")).unwrap();
    assert!(n.send(&first, registry, list(50_001, "a")).unwrap_err().is::<Registry::RoyaltyTooHigh>());
    n.send(&first, registry, list(10_000, "b")).unwrap();
    n.send(&second, registry, list(0, "c")).unwrap();
    let call = Registry::listingOfCall { modelRoot: some("model").into(), owner: first.address };
    let listing = n.chain.read(registry, &call).unwrap();
    assert_eq!((listing.royaltyPpm, listing.contentRoot), (10_000, some("a").into()));
}

#[test]
pub fn reserved_stake_stays() {
    let mut n = Network::new();
    let (registry, audits) = (n.parts.at.registry, n.parts.at.audits);
    let auditor = n.rich("auditor", 1000);
    n.enrol(&auditor, AUDITOR, 250 * DOLLAR);
    let seats = |count: u64| Audits::takeSeatsCall {
        auditor: auditor.address,
        slots: (0..count).map(U256::from).collect(),
    };
    assert!(n.send(&auditor, audits, seats(3)).unwrap_err().is::<Registry::StakeReserved>());
    n.send(&auditor, audits, seats(2)).unwrap();
    let unbond =
        |dollars: u64| Registry::unbondCall { node: auditor.address, amount: U256::from(dollars * DOLLAR) };
    assert!(n.send(&auditor, registry, unbond(51)).unwrap_err().is::<Registry::StakeReserved>());
    let leave = Audits::leaveSeatsCall { auditor: auditor.address, slots: vec![U256::from(0)] };
    let thief = Actor::named("thief");
    assert!(n.send(&thief, audits, leave.clone()).unwrap_err().is::<Audits::NotNode>());
    n.send(&auditor, audits, leave).unwrap();
    n.send(&auditor, registry, unbond(150)).unwrap();
}

#[test]
pub fn a_token_that_takes_a_fee_breaks_nothing() {
    let mut n = Network::with(crate::network::parameters(), 10_000);
    let owner = n.rich("owner", 100);
    assert_eq!(n.balance(owner.address), 99 * DOLLAR);
    n.enrol(&owner, PROVIDER, 50 * DOLLAR);
    n.check_money();
    let (vault, token) = (n.parts.at.vault, n.parts.at.token);
    let amount = U256::from(49 * DOLLAR);
    n.send(&owner, vault, Vault::withdrawCall { to: owner.address, amount }).unwrap();
    let held = n.chain.read(token, &TestToken::balanceOfCall { account: owner.address }).unwrap();
    assert_eq!(held, U256::from(49 * DOLLAR * 99 / 100));
    n.check_money();
    let more = Vault::withdrawCall { to: owner.address, amount: U256::from(1) };
    assert!(n.send(&owner, vault, more).unwrap_err().is::<Vault::InsufficientBalance>());
}

#[test]
pub fn nodes_say_where_they_are() {
    let mut n = Network::new();
    let registry = n.parts.at.registry;
    let (node, thief) = (n.rich("node", 100), Actor::named("thief"));
    n.enrol(&node, AUDITOR, 10 * DOLLAR);
    let add = |roles: u8| Registry::addRolesCall { node: node.address, roles };
    assert!(n.send(&thief, registry, add(PROVIDER)).unwrap_err().is::<Registry::NotOwner>());
    assert!(n.send(&node, registry, add(8)).unwrap_err().is::<Registry::BadRoles>());
    n.send(&node, registry, add(PROVIDER)).unwrap();
    assert_eq!(n.node(node.address).roles, AUDITOR | PROVIDER);
    let describe = |endpoint: &str| Registry::describeCall {
        node: node.address,
        endpoint: endpoint.into(),
        priceList: B256::repeat_byte(1),
    };
    assert!(
        n.send(&thief, registry, describe("https://thief.example")).unwrap_err().is::<Registry::NotNode>()
    );
    assert!(n.send(&node, registry, describe(&"a".repeat(257))).unwrap_err().is::<Registry::TooLong>());
    n.send(&node, registry, describe("https://node.example")).unwrap();
    let heartbeat = Registry::heartbeatCall { node: node.address };
    assert!(n.send(&thief, registry, heartbeat.clone()).unwrap_err().is::<Registry::NotNode>());
    n.chain.mine(1, 100);
    n.send(&node, registry, heartbeat).unwrap();
    assert_eq!(n.node(node.address).heartbeat.to::<u64>(), n.chain.time());
}
