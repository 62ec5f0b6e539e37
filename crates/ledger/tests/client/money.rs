//! Deposits, withdrawals, stakes: what commands do.

use alloy_primitives::{Address, B256, U256};
use assay_ledger::amount::Amount;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Registry, TestToken, Vault};
use assay_ledger::ledger::{Ledger, Phase, Role};
use assay_ledger::sender::SendError;

use crate::chains::{DOLLAR, PURSE, on_both, parameters};

fn dollars(n: u64) -> Amount {
    Amount(u128::from(n * DOLLAR))
}

#[test]
fn deposits_come_in_and_go_out() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let payer = node.member(&ledger, "payer").await;
        assert_eq!(ledger.deposit(&payer, dollars(25)).await.unwrap(), dollars(25));
        let has = ledger.holdings(payer.account()).await.unwrap();
        assert_eq!((has.wallet, has.vault), (Amount(u128::from(PURSE) - dollars(25).0), dollars(25)));
        let elsewhere = Address::repeat_byte(0x42);
        ledger.withdraw(&payer, elsewhere, dollars(5)).await.unwrap();
        assert_eq!(ledger.holdings(payer.account()).await.unwrap().vault, dollars(20));
        assert_eq!(ledger.holdings(elsewhere).await.unwrap().wallet, dollars(5));
        // What is refused is refused before it costs anything, with the contract's own reason.
        let error = ledger.withdraw(&payer, elsewhere, dollars(21)).await.unwrap_err();
        let SendError::Reverted { reason, mined: None } = &error else { panic!("{error}") };
        assert!(reason.is::<Vault::InsufficientBalance>(), "{reason}");
        assert!(error.to_string().contains("balance: 20000000, amount: 21000000"), "{error}");
        assert!(payer.waiting().await.is_empty());
    });
}

#[test]
fn a_deposit_says_what_arrived() {
    on_both(async |node| {
        let (ledger, _) = node.deploy_with_fee(parameters(), 10_000).await;
        let payer = node.member(&ledger, "payer").await;
        let arrived = ledger.deposit(&payer, dollars(100)).await.unwrap();
        assert_eq!(arrived, dollars(99));
        assert_eq!(ledger.holdings(payer.account()).await.unwrap().vault, arrived);
    });
}

#[test]
fn stake_goes_in_and_comes_out_after_its_time() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let owner = node.member(&ledger, "owner").await;
        let key = node.actor("key").await;
        assert!(ledger.node(key.address()).await.unwrap().is_none());
        let roles = Role::Provider as u8;
        ledger.enrol(&owner, &key, roles, "https://node.example".into(), B256::ZERO).await.unwrap();
        ledger.deposit(&owner, dollars(50)).await.unwrap();
        ledger.stake(&owner, key.address(), dollars(50)).await.unwrap();
        ledger.unstake(&owner, key.address(), dollars(20)).await.unwrap();
        let found = ledger.node(key.address()).await.unwrap().unwrap();
        assert_eq!((found.owner, found.stake, found.unbonding), (owner.account(), 30_000_000, 20_000_000));
        let error = ledger.collect_stake(&owner, key.address()).await.unwrap_err();
        let SendError::Reverted { reason, .. } = error else { panic!("{error}") };
        assert!(reason.is::<Registry::StillUnbonding>(), "{reason}");
        node.advance(86_401).await;
        ledger.collect_stake(&owner, key.address()).await.unwrap();
        assert_eq!(ledger.holdings(owner.account()).await.unwrap().vault, dollars(20));
    });
}

#[test]
fn epochs_pass_through_their_phases() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let anyone = node.member(&ledger, "anyone").await;
        let epoch = ledger.epoch().await.unwrap();
        assert_eq!(ledger.phase(epoch).await.unwrap(), Phase::Running);
        node.advance(3_600).await;
        assert_eq!(ledger.phase(epoch).await.unwrap(), Phase::Posting);
        node.advance(1_800).await;
        assert_eq!(ledger.phase(epoch).await.unwrap(), Phase::Closing);
        let close = assay_ledger::contracts::Epochs::closeCall { epoch };
        let closed = anyone.send("close", ledger.parts().at.epochs, &close).await.unwrap();
        assert_eq!(ledger.phase(epoch).await.unwrap(), Phase::Awaiting { block: closed.block + 4 });
        // Its header is not known before the block after it.
        node.mine(6).await;
        ledger.fix_beacon(&anyone, epoch).await.unwrap();
        for phase in [Phase::Committing, Phase::Revealing, Phase::Objecting, Phase::Final] {
            assert_eq!(ledger.phase(epoch).await.unwrap(), phase);
            node.advance(3_601).await;
        }
    });
}

#[test]
fn a_wrong_address_is_said_to_be_one() {
    on_both(async |node| {
        let nobody = Address::repeat_byte(9);
        let error = Ledger::at(node.client.clone(), nobody).await.unwrap_err();
        assert!(matches!(error, ClientError::NoContract(at) if at == nobody), "{error}");
        let ledger = node.deploy(parameters()).await;
        let token = ledger.parts().at.token;
        let error = Ledger::at(node.client.clone(), token).await.unwrap_err();
        assert!(matches!(error, ClientError::Reverted(_) | ClientError::Malformed(_)), "{error}");
    });
}

/// The gas of what commands do is the same on both chains, to the unit.
#[test]
fn gas_is_the_same_on_both_chains() {
    let seen = std::sync::Mutex::new(Vec::new());
    on_both(async |node| {
        let (ledger, mut gas) = node.deploy_with_fee(parameters(), 0).await;
        let at = ledger.parts().at.clone();
        let payer = node.member(&ledger, "payer").await;
        let amount = U256::from(100 * DOLLAR);
        let approve = TestToken::approveCall { spender: at.vault, value: amount };
        gas.push(("approve", payer.send("approve", at.token, &approve).await.unwrap().gas));
        let deposit = Vault::depositCall { account: payer.account(), amount };
        gas.push(("deposit", payer.send("deposit", at.vault, &deposit).await.unwrap().gas));
        let key = node.actor("key").await;
        let enrolled =
            ledger.enrol(&payer, &key, 1, "https://node.example".into(), B256::ZERO).await.unwrap();
        gas.push(("enrol", enrolled.gas));
        gas.push(("bond", ledger.stake(&payer, key.address(), dollars(50)).await.unwrap().gas));
        gas.push(("unbond", ledger.unstake(&payer, key.address(), dollars(20)).await.unwrap().gas));
        gas.push(("withdraw", ledger.withdraw(&payer, payer.account(), dollars(5)).await.unwrap().gas));
        seen.lock().unwrap().push(gas);
    });
    let seen = seen.into_inner().unwrap();
    for other in &seen[1..] {
        assert_eq!(&seen[0], other);
    }
    println!("{:?}", seen[0]);
}
