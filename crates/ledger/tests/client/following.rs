//! What contracts logged, through reorganisations.

use std::collections::BTreeMap;

use alloy_primitives::{B256, Log, U256};
use alloy_provider::Provider as _;
use alloy_rpc_types_eth::Filter;
use assay_ledger::contracts::TestToken;
use assay_ledger::follow::{Change, Cursor, DEPTH_MAX, FollowError, Follower};
use assay_ledger::sender::Sender;
use serde_json::json;

use crate::chains::{Node, on_both, parameters};

/// What a reader of changes knows.
#[derive(Default)]
struct Known(BTreeMap<u64, (B256, Vec<Log>)>);

impl Known {
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Applied(block) => {
                    assert!(self.0.last_key_value().is_none_or(|(last, _)| *last < block.number));
                    self.0.insert(block.number, (block.hash, block.logs));
                }
                Change::Undone { number, hash } => {
                    let (last, (was, _)) = self.0.pop_last().unwrap();
                    assert_eq!((last, was), (number, hash), "undone newest first");
                }
            }
        }
    }

    fn logs(&self) -> Vec<Log> {
        self.0.values().flat_map(|(_, logs)| logs.clone()).collect()
    }
}

async fn canonical(node: &Node, from: u64, contract: alloy_primitives::Address) -> Vec<Log> {
    if node.client.head().await.unwrap() < from {
        return Vec::new();
    }
    let filter = Filter::new().address(contract).from_block(from);
    let logs = node.client.provider().get_logs(&filter).await.unwrap();
    logs.into_iter().map(|log| log.inner).collect()
}

async fn mint(sender: &Sender, token: alloy_primitives::Address, amount: u64) {
    let call = TestToken::mintCall { to: sender.account(), amount: U256::from(amount) };
    sender.send("mint", token, &call).await.unwrap();
}

#[test]
fn following_ends_with_the_logs_of_the_chain_that_is_left() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let token = ledger.parts().at.token;
        let sender = node.member(&ledger, "minter").await;
        let from = node.client.head().await.unwrap() + 1;
        let mut follower = Follower::new(node.client.clone(), vec![token], Cursor::from(from));
        let mut known = Known::default();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut below = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        let mut undone = 0;
        for round in 0..12u64 {
            let fork = node.ask("evm_snapshot", json!([])).await;
            for i in 0..below(4) {
                mint(&sender, token, 1 + round * 10 + i).await;
            }
            known.apply(follower.poll().await.unwrap());
            if below(2) == 0 {
                node.ask("evm_revert", json!([fork])).await;
                for i in 0..below(5) {
                    mint(&sender, token, 1_000 + round * 10 + i).await;
                }
            }
            // Sometimes it is read twice, sometimes the process ended between, with its cursor stored.
            if below(3) > 0 {
                let changes = follower.poll().await.unwrap();
                undone += changes.iter().filter(|c| matches!(c, Change::Undone { .. })).count();
                known.apply(changes);
                assert_eq!(known.logs(), canonical(&node, from, token).await, "round {round}");
            }
            let cursor = serde_json::to_string(follower.cursor()).unwrap();
            follower =
                Follower::new(node.client.clone(), vec![token], serde_json::from_str(&cursor).unwrap());
        }
        known.apply(follower.poll().await.unwrap());
        assert_eq!(known.logs(), canonical(&node, from, token).await);
        assert!(undone > 0, "nothing was ever undone");
    });
}

#[test]
fn a_long_past_is_read_by_ranges() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let token = ledger.parts().at.token;
        let sender = node.member(&ledger, "minter").await;
        mint(&sender, token, 1).await;
        node.mine(2_300).await;
        mint(&sender, token, 2).await;
        node.mine(DEPTH_MAX as u64 + 3).await;
        mint(&sender, token, 3).await;
        let mut follower = Follower::new(node.client.clone(), vec![token], Cursor::from(0));
        let mut known = Known::default();
        let mut polls = 0;
        loop {
            let changes = follower.poll().await.unwrap();
            if changes.is_empty() {
                break;
            }
            polls += 1;
            known.apply(changes);
        }
        assert!(polls > 2, "{polls} polls");
        assert_eq!(known.logs(), canonical(&node, 0, token).await);
        assert_eq!(follower.cursor().next(), node.client.head().await.unwrap() + 1);
    });
}

#[test]
fn a_chain_that_is_another_one_is_said_to_be() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let token = ledger.parts().at.token;
        node.ask("anvil_mine", json!(["0x1"])).await;
        let fork = node.ask("evm_snapshot", json!([])).await;
        node.mine(DEPTH_MAX as u64 + 2).await;
        let mut follower = Follower::new(node.client.clone(), vec![token], Cursor::from(0));
        follower.poll().await.unwrap();
        node.ask("evm_revert", json!([fork])).await;
        // Time must differ, else the same empty blocks are made again.
        node.advance(1_000).await;
        node.mine(DEPTH_MAX as u64 + 2).await;
        assert!(matches!(follower.poll().await, Err(FollowError::TooDeep)));
    });
}
