//! The till on a real ledger: which payments are taken, which are not, and what is written down.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;

use std::sync::Arc;

use alloy_primitives::aliases::U40;
use alloy_primitives::{Address, B256};
use alloy_signer_local::PrivateKeySigner;
use assay_api::{ChannelState, PaymentProblem, Refusal};
use assay_core::answer::{AnswerRecord, Format};
use assay_core::consent::Consent;
use assay_core::digest::ExecutionDigests;
use assay_core::embedding::Record;
use assay_core::id::{DigestRoot, Hash, ModelRoot, NodeAddress, Nonce, SignatureBytes, TranscriptRoot};
use assay_core::payment::Payment;
use assay_core::receipt::Receipt;
use assay_core::request::{Prompt, Request, Sampling};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use assay_ledger::amount::Amount;
use assay_ledger::client::Client;
use assay_ledger::contracts::Channels::{self, ChannelConfig};
use assay_ledger::contracts::channel_id;
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::sender::Sender;
use assay_ledger::voucher;
use assay_node::key::NodeKey;
use assay_node::store::ReceiptStore;
use assay_node::till::{Paid, Till};
use chains::{DOLLAR, Node, hash, parameters};

/// What a channel holds to begin with.
const FUNDS: u128 = 10 * DOLLAR as u128;

struct Shop {
    node: Node,
    ledger: Ledger,
    payer: Sender,
    key: NodeKey,
    store: Arc<ReceiptStore>,
    till: Arc<Till>,
    _folder: tempfile::TempDir,
}

async fn shop() -> Shop {
    let node = Node::embedded().await;
    let ledger = node.deploy(parameters()).await;
    let payer = node.member(&ledger, "payer").await;
    ledger.deposit(&payer, Amount(100 * FUNDS)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = NodeKey::load_or_create(&folder.path().join("key")).unwrap();
    let owner = node.member(&ledger, "owner").await;
    ledger.enrol(&owner, key.signer(), Role::Provider as u8, String::new(), B256::ZERO).await.unwrap();
    let store = Arc::new(ReceiptStore::open(&folder.path().join("receipts.redb")).unwrap());
    let till = Till::open(ledger.clone(), key.address(), Arc::clone(&store)).await.unwrap();
    Shop { node, ledger, payer, key, store, till: Arc::new(till), _folder: folder }
}

impl Shop {
    fn config(&self, lane: &str) -> ChannelConfig {
        ChannelConfig {
            payer: self.payer.account(),
            payerAuthorizer: Address::ZERO,
            receiver: self.key.signer().address(),
            receiverAuthorizer: Address::ZERO,
            token: self.ledger.parts().at.token,
            withdrawDelay: U40::from(900),
            salt: hash(lane),
        }
    }

    /// A channel that holds [`FUNDS`].
    async fn open(&self, lane: &str) -> ChannelConfig {
        let config = self.config(lane);
        self.fund(&config).await;
        config
    }

    async fn fund(&self, config: &ChannelConfig) {
        let call = Channels::depositCall { config: config.clone(), amount: FUNDS };
        self.payer.send("channel", self.ledger.parts().at.channels, &call).await.unwrap();
    }

    fn domain(&self) -> alloy_sol_types::Eip712Domain {
        voucher::domain(self.node.client.chain_id(), self.ledger.parts().at.channels)
    }

    fn id(&self, config: &ChannelConfig) -> B256 {
        voucher::channel_id(config, &self.domain())
    }

    fn voucher(&self, config: &ChannelConfig, max: u128) -> Payment {
        pay(config, max, self.payer.key(), &self.domain())
    }

    async fn problem(&self, payment: Option<&Payment>, most: u64) -> PaymentProblem {
        match self.till.admit(payment, most).await.map(|_| ()) {
            Err(Refusal::Payment(refused)) => {
                assert_eq!(refused.terms.most, most);
                refused.problem
            }
            other => panic!("{other:?}"),
        }
    }

    async fn code(&self, payment: &Payment, most: u64) -> &'static str {
        self.problem(Some(payment), most).await.code()
    }

    /// Takes a payment, answers, and writes down what it costs.
    async fn serve(&self, payment: &Payment, most: u64, fee: u64) -> AnswerRecord {
        let ticket = self.till.admit(Some(payment), most).await.unwrap();
        let paid = Paid::by(Some(&ticket), fee);
        let record = self.record(&paid);
        paid.store(&self.store, &Record::Answer(Box::new(record.clone()))).unwrap();
        record
    }

    fn record(&self, paid: &Paid) -> AnswerRecord {
        let request = Request {
            model: ModelRoot::from_bytes([1; 32]),
            prompt: Prompt::Text("hi".into()),
            sampling: Sampling::GREEDY,
            max_tokens: 1,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: None,
            audit: Consent::Given,
        };
        let receipt = Receipt {
            provider: self.key.address(),
            sequence: self.store.reserve_sequence().unwrap().number(),
            model_root: request.model,
            request_hash: request.hash(),
            transcript_root: TranscriptRoot::ZERO,
            digest_root: DigestRoot::ZERO,
            prompt_tokens: 1,
            completion_tokens: 1,
            fee_micro_usd: paid.fee,
            payer_channel: paid.channel,
            client_nonce: Nonce::ZERO,
            epoch: paid.epoch,
        };
        let transcript = Transcript {
            request_hash: request.hash(),
            nonce: Nonce::ZERO,
            nonce_source: NonceSource::Client,
            prompt_ids: vec![1],
            output_ids: vec![2],
            text: "x".into(),
            stop: StopReason::Length,
            logprobs: vec![],
        };
        let receipt = self.key.sign(receipt, paid.domain).unwrap();
        let digests = ExecutionDigests(vec![]);
        AnswerRecord { format: Format::V2, receipt, request, transcript, digests, generation: None }
    }
}

fn pay(
    config: &ChannelConfig,
    max: u128,
    key: &PrivateKeySigner,
    domain: &alloy_sol_types::Eip712Domain,
) -> Payment {
    let signature = voucher::sign(key, voucher::channel_id(config, domain), max, domain).unwrap();
    let signature = SignatureBytes::from_bytes(signature.as_ref().try_into().unwrap());
    Payment { channel: voucher::terms(config), max, signature }
}

/// A way to a server that can be cut, with all connections on it.
async fn way_to(url: &str) -> (String, tokio::task::JoinHandle<()>) {
    let (to, listener) = (
        url.trim_start_matches("http://").to_owned(),
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let at = format!("http://{}", listener.local_addr().unwrap());
    let way = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(&to).await.unwrap();
            open.spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    (at, way)
}

#[tokio::test]
async fn what_cannot_be_claimed_is_not_taken() {
    let shop = shop().await;
    let (node, config) = (&shop.node, shop.open("lane").await);
    let stranger = node.actor("stranger").await;
    let domain = shop.domain();
    assert_eq!(shop.problem(None, 5).await, PaymentProblem::Required);

    let with = |change: &dyn Fn(&mut ChannelConfig)| {
        let mut config = config.clone();
        change(&mut config);
        shop.voucher(&config, 100)
    };
    let other_chain = voucher::domain(1, shop.ledger.parts().at.channels);
    let other_contract = voucher::domain(node.client.chain_id(), Address::repeat_byte(7));
    let good = shop.voucher(&config, 100);
    let mut altered = good.clone();
    altered.max += 1;
    let mut cut = good.clone();
    cut.signature = SignatureBytes::ZERO;
    let mut slow = good.clone();
    slow.channel.withdraw_delay_s = 1 << 40;
    let mut salted = good.clone();
    salted.channel.salt = Hash::ZERO;
    let invalid = [
        ("another's signature", pay(&config, 100, &stranger, &domain)),
        ("another amount", altered),
        ("no signature", cut),
        ("another chain", pay(&config, 100, shop.payer.key(), &other_chain)),
        ("another contract", pay(&config, 100, shop.payer.key(), &other_contract)),
        ("another channel", salted),
        ("a delay beyond all", slow),
        ("another receiver", with(&|c| c.receiver = stranger.address())),
        ("another token", with(&|c| c.token = Address::repeat_byte(9))),
        ("another who may claim", with(&|c| c.receiverAuthorizer = stranger.address())),
        ("another who signs", with(&|c| c.payerAuthorizer = stranger.address())),
    ];
    for (what, payment) in &invalid {
        assert_eq!(shop.code(payment, 5).await, "voucher_invalid", "{what}");
    }
    // Signed well, and too low for the request, too high for the channel, or on one that holds nothing.
    assert_eq!(shop.code(&shop.voucher(&config, 4), 5).await, "voucher_stale");
    assert_eq!(shop.code(&shop.voucher(&config, 2 * FUNDS), FUNDS as u64 + 1).await, "channel_unfunded");
    assert_eq!(shop.code(&shop.voucher(&shop.config("empty"), 100), 5).await, "channel_unfunded");
    // None of them has left the channel busy, and what is right is taken, to the unit.
    let ticket = shop.till.admit(Some(&shop.voucher(&config, FUNDS)), FUNDS as u64).await.unwrap();
    assert_eq!(shop.code(&good, 5).await, "channel_busy");
    drop(ticket);
    assert!(shop.till.admit(Some(&shop.voucher(&config, 5)), 5).await.is_ok());
    // A key that the payer named signs for it.
    let named = ChannelConfig { payerAuthorizer: stranger.address(), ..shop.config("named") };
    shop.fund(&named).await;
    assert!(shop.till.admit(Some(&pay(&named, 5, &stranger, &domain)), 5).await.is_ok());
    // When the payer has announced that it leaves, nothing is taken any more. What was read before is believed for a minute.
    let leaving = shop.open("leaving").await;
    let call = Channels::startWithdrawalCall { config: leaving.clone(), amount: 1 };
    shop.payer.send("leave", shop.ledger.parts().at.channels, &call).await.unwrap();
    assert_eq!(shop.code(&shop.voucher(&leaving, 100), 5).await, "channel_closing");
}

#[tokio::test]
async fn charges_add_up_and_can_be_claimed() {
    let shop = shop().await;
    let config = shop.open("lane").await;
    let id = channel_id(shop.id(&config));
    // Three answers: one for less than was allowed, one for nothing, one for all.
    let first = shop.serve(&shop.voucher(&config, 100), 100, 60).await;
    assert_eq!((first.receipt.receipt.payer_channel, first.receipt.receipt.epoch), (id, shop.till.epoch()));
    assert_eq!(first.receipt.domain, shop.till.receipts());
    assert_eq!(
        first.receipt.domain.contract,
        NodeAddress::from_bytes(shop.ledger.parts().at.epochs.into_array())
    );
    shop.serve(&shop.voucher(&config, 90), 30, 0).await;
    // The higher voucher of the first stays the one that is claimed by.
    let claim = shop.store.claim(id).unwrap().unwrap();
    assert_eq!((claim.totalClaimed, claim.voucher.maxClaimableAmount), (60, 100));
    shop.serve(&shop.voucher(&config, 200), 140, 140).await;
    // A request that was taken and not answered leaves nothing.
    drop(shop.till.admit(Some(&shop.voucher(&config, 500)), 300).await.unwrap());
    // A payer that lost its state is shown its own voucher.
    let stale = shop.problem(Some(&shop.voucher(&config, 100)), 50).await;
    let PaymentProblem::Stale(ChannelState {
        id: of,
        charged,
        voucher: Some((max, signature)),
        balance,
        claimed,
    }) = stale
    else {
        panic!("{stale:?}")
    };
    assert_eq!((of, charged, max, balance, claimed), (id, 200, 200, FUNDS, 0));
    assert_eq!(voucher::check(&config, max, signature.as_bytes(), &shop.domain()), Ok(()));
    // What is written down is what the contract pays, to the unit.
    let channels = shop.ledger.parts().at.channels;
    let sender = shop.node.sender(shop.key.signer()).await;
    shop.node.ask("anvil_setBalance", serde_json::json!([sender.account(), "0x56bc75e2d63100000"])).await;
    let claims = shop.store.claims().unwrap();
    sender.send("claim", channels, &Channels::claimCall { claims }).await.unwrap();
    let seen = shop.ledger.channel(shop.id(&config)).await.unwrap();
    assert_eq!((seen.claimed, u128::from(seen.balance)), (200, FUNDS));
    // A provider that lost its store takes what was claimed for charged.
    let folder = tempfile::tempdir().unwrap();
    let empty = Arc::new(ReceiptStore::open(&folder.path().join("receipts.redb")).unwrap());
    let till = Arc::new(Till::open(shop.ledger.clone(), shop.key.address(), empty).await.unwrap());
    let Err(Refusal::Payment(refused)) = till.admit(Some(&shop.voucher(&config, 249)), 50).await.map(|_| ())
    else {
        panic!("it covers less")
    };
    let PaymentProblem::Stale(state) = refused.problem else { panic!("{refused}") };
    assert_eq!((state.charged, state.voucher), (200, None));
    assert!(till.admit(Some(&shop.voucher(&config, 250)), 50).await.is_ok());
}

#[tokio::test]
async fn deposits_that_came_since_are_seen_and_a_silent_chain_is_believed_for_a_while() {
    let shop = shop().await;
    let config = shop.open("lane").await;
    let beyond = shop.voucher(&config, FUNDS + 1);
    let most = FUNDS as u64 + 1;
    assert_eq!(shop.code(&beyond, most).await, "channel_unfunded");
    shop.fund(&config).await;
    assert!(shop.till.admit(Some(&beyond), most).await.is_ok());
    // The epoch is the chain's own.
    let before = shop.till.epoch();
    shop.node.advance(3_600).await;
    assert_eq!(shop.till.epoch(), before);
    shop.till.look().await.unwrap();
    assert_eq!(shop.till.epoch(), before + 1);
    // The way to the chain is cut: channels that were read are believed, others are not.
    let (url, way) = way_to(&shop.node.url).await;
    let client = Client::connect(&url).await.unwrap();
    let ledger = Ledger::at(client, shop.ledger.parts().directory).await.unwrap();
    let till = Arc::new(Till::open(ledger, shop.key.address(), Arc::clone(&shop.store)).await.unwrap());
    let (voucher, other) = (shop.voucher(&config, 100), shop.voucher(&shop.open("unread").await, 100));
    assert!(till.admit(Some(&voucher), 100).await.is_ok());
    way.abort();
    assert!(till.admit(Some(&voucher), 100).await.is_ok());
    let Err(Refusal::Payment(refused)) = till.admit(Some(&other), 100).await.map(|_| ()) else {
        panic!("nobody knows what it holds")
    };
    assert_eq!(refused.problem.code(), "ledger_unreachable");
}
