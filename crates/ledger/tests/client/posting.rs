//! An epoch from receipts to the ledger, with a crash between any two steps and a reorganisation on top.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256};
use alloy_signer::SignerSync as _;
use assay_core::id::{
    ChannelId, DigestRoot, ModelRoot, NodeAddress, Nonce, RequestHash, SignatureBytes, TranscriptRoot,
};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_ledger::amount::Amount;
use assay_ledger::contracts::{Channels, Epochs, b256, channel_id, node_address};
use assay_ledger::epochs::{Builder, Identity, Progress};
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::posting::{PostError, post};
use assay_ledger::sender::{Policy, SendError, Sender};
use assay_ledger::voucher;
use serde_json::json;

use crate::chains::{DOLLAR, Node, hash, on_both, parameters, policy};

const FEE: u64 = 1_000;

/// A provider with a pot, and its receipts.
struct Provider {
    sender: Sender,
    domain: Domain,
    channel: ChannelId,
}

impl Provider {
    async fn new(node: &Node, ledger: &Ledger) -> Provider {
        let payer = node.member(ledger, "payer").await;
        let sender = node.member(ledger, "provider").await;
        ledger.deposit(&payer, Amount(u128::from(50 * DOLLAR))).await.unwrap();
        let key = sender.key().clone();
        ledger.enrol(&sender, &key, Role::Provider as u8, String::new(), B256::ZERO).await.unwrap();
        let at = &ledger.parts().at;
        let config = Channels::ChannelConfig {
            payer: payer.account(),
            payerAuthorizer: Address::ZERO,
            receiver: sender.account(),
            receiverAuthorizer: Address::ZERO,
            token: at.token,
            withdrawDelay: alloy_primitives::aliases::U40::from(3_600),
            salt: hash("lane"),
        };
        let amount = u128::from(10 * DOLLAR);
        let deposit = Channels::depositCall { config: config.clone(), amount };
        payer.send("channel", at.channels, &deposit).await.unwrap();
        let domain = voucher::domain(node.client.chain_id(), at.channels);
        let id = voucher::channel_id(&config, &domain);
        let signed = voucher::sign(payer.key(), id, amount, &domain).unwrap();
        let claims = vec![voucher::claim(&config, amount, signed, amount)];
        sender.send("claim", at.channels, &Channels::claimCall { claims }).await.unwrap();
        let settle = Channels::settleCall { receiver: sender.account() };
        sender.send("settle", at.channels, &settle).await.unwrap();
        let contract = node_address(at.epochs);
        let domain = Domain { chain_id: node.client.chain_id(), contract };
        Provider { sender, domain, channel: channel_id(id) }
    }

    fn builder(&self, folder: &Path) -> Builder {
        let provider = NodeAddress::from_bytes(self.sender.account().into_array());
        Builder::open(folder, Identity { provider, domain: self.domain }).unwrap().0
    }

    fn receipt(&self, sequence: u64, epoch: u64) -> SignedReceipt {
        let some = |what: &str| hash(&format!("{what} {sequence}")).0;
        let receipt = Receipt {
            provider: NodeAddress::from_bytes(self.sender.account().into_array()),
            sequence,
            model_root: ModelRoot::from_bytes(hash("model").0),
            request_hash: RequestHash::from_bytes(some("request")),
            transcript_root: TranscriptRoot::from_bytes(some("transcript")),
            digest_root: DigestRoot::from_bytes(some("digest")),
            prompt_tokens: 3,
            completion_tokens: 4,
            fee_micro_usd: FEE,
            payer_channel: self.channel,
            client_nonce: Nonce::from_bytes(some("nonce")),
            epoch,
        };
        let signed = self.sender.key().sign_hash_sync(&b256(&receipt.signing_hash(&self.domain))).unwrap();
        let signature = SignatureBytes::from_bytes(signed.as_bytes());
        SignedReceipt { receipt, domain: self.domain, signature }
    }

    async fn batch(&self, ledger: &Ledger, epoch: u64) -> Epochs::Batch {
        let call = Epochs::batchOfCall { provider: self.sender.account(), epoch };
        ledger.client().read(ledger.parts().at.epochs, &call).await.unwrap()
    }
}

#[test]
fn an_epoch_is_posted_once_whatever_happens() {
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let mut provider = Provider::new(&node, &ledger).await;
        let key = provider.sender.key().clone();
        let folder = tempfile::tempdir().unwrap();
        let none = BTreeMap::new();
        let mut builder = provider.builder(folder.path());
        let receipts: Vec<_> = (0..5).map(|i| provider.receipt(i, 0)).collect();
        builder.append_many(&receipts).unwrap();
        // Too early: the contract says so, and nothing was sent.
        let early = post(&ledger, &provider.sender, &mut builder, 0, &none, None).await.unwrap_err();
        let PostError::Send(SendError::Reverted { reason, mined: None }) = &early else { panic!("{early}") };
        assert!(reason.is::<Epochs::NotPosting>(), "{reason}");
        node.advance(3_600).await;

        // A crash after sealing: the same batch is there at the next start.
        let sealed = builder.batches()[0].batch.clone();
        drop(builder);
        let mut builder = provider.builder(folder.path());

        // A crash after sending, before it is mined; the node forgets the transaction as well.
        node.ask("evm_setAutomine", json!([false])).await;
        drop(provider.sender);
        let impatient = Policy { deadline: Duration::ZERO, ..policy() };
        provider.sender = node.patient_sender(&key, impatient).await;
        let waiting = post(&ledger, &provider.sender, &mut builder, 0, &none, None).await.unwrap_err();
        let PostError::Send(SendError::Waiting { hash, .. }) = waiting else { panic!("{waiting}") };
        drop((builder, provider.sender));
        node.ask("anvil_dropTransaction", json!([hash])).await;
        node.ask("evm_setAutomine", json!([true])).await;
        let fork = node.ask("evm_snapshot", json!([])).await;
        provider.sender = node.sender(&key).await;
        let mut builder = provider.builder(folder.path());
        let posted = post(&ledger, &provider.sender, &mut builder, 0, &none, None).await.unwrap();
        assert_eq!(posted, sealed);
        assert_eq!(provider.batch(&ledger, 0).await.root, b256(&sealed.root));
        assert!(matches!(builder.batches()[0].progress, Progress::Posted(_)));

        // Posted already: nothing is sent again.
        let nonce = provider.sender.nonce().await.unwrap();
        post(&ledger, &provider.sender, &mut builder, 0, &none, None).await.unwrap();
        assert_eq!(provider.sender.nonce().await.unwrap(), nonce);

        // A reorganisation takes the posting back: the same batch is posted again.
        assert_eq!(node.ask("evm_revert", json!([fork])).await, json!(true));
        assert_eq!(provider.batch(&ledger, 0).await.root, B256::ZERO);
        post(&ledger, &provider.sender, &mut builder, 0, &none, None).await.unwrap();
        let there = provider.batch(&ledger, 0).await;
        assert_eq!((there.root, there.first, there.count), (b256(&sealed.root), 0, 5));
        assert_eq!(U256::from(there.total), U256::from(5 * FEE));

        // The next epoch goes on where this one ended.
        builder.append(&provider.receipt(6, 1)).unwrap();
        node.advance(3_600).await;
        let next = post(&ledger, &provider.sender, &mut builder, 1, &none, None).await.unwrap();
        assert_eq!((next.first, next.count, next.gaps), (5, 2, 1));

        // Who lost its folder, and posted meanwhile, is not mistaken.
        let elsewhere = tempfile::tempdir().unwrap();
        let mut other = provider.builder(elsewhere.path());
        other.append(&provider.receipt(7, 1)).unwrap();
        let another = post(&ledger, &provider.sender, &mut other, 1, &none, None).await.unwrap_err();
        assert!(matches!(another, PostError::Another { epoch: 1, .. }), "{another}");
    });
}

/// A provider with nothing at stake, all of whose receipts are audited, posts as many as a panel can audit, and the others with
/// the next epochs.
#[test]
fn what_no_panel_can_audit_waits() {
    on_both(async |node| {
        let mut p = parameters();
        p.rates.panelMax = 2;
        p.rates.auditsPerMember = 2;
        let ledger = node.deploy(p).await;
        let provider = Provider::new(&node, &ledger).await;
        let folder = tempfile::tempdir().unwrap();
        let mut builder = provider.builder(folder.path());
        let receipts: Vec<_> = (0..10).map(|i| provider.receipt(i, 0)).collect();
        builder.append_many(&receipts).unwrap();
        let none = BTreeMap::new();
        let mut counts = Vec::new();
        for epoch in 0..3 {
            node.advance(3_600).await;
            let batch = post(&ledger, &provider.sender, &mut builder, epoch, &none, None).await.unwrap();
            assert_eq!(provider.batch(&ledger, epoch).await.root, b256(&batch.root));
            counts.push(batch.count);
        }
        assert_eq!(counts, [4, 4, 2]);
        // With stake the rate falls, and a batch holds more.
        ledger.deposit(&provider.sender, Amount(u128::from(9 * FEE))).await.unwrap();
        ledger.stake(&provider.sender, provider.sender.account(), Amount(u128::from(FEE))).await.unwrap();
        let receipts: Vec<_> = (10..20).map(|i| provider.receipt(i, 3)).collect();
        builder.append_many(&receipts).unwrap();
        node.advance(3_600).await;
        let batch = post(&ledger, &provider.sender, &mut builder, 3, &none, None).await.unwrap();
        assert_eq!(batch.count, 8);
    });
}
