//! Whoever was given receipts compares them with what was posted: what was left out is proved and its provider struck, also when either side dies after every
//! step; an honest provider is never accused; one that shows garbage or nothing is asked on the ledger, at a bounded cost.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;
mod economy;
#[path = "../../verify/tests/honest/mod.rs"]
mod honest;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use alloy_primitives::{Address, B256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_api::audits::AuditError;
use assay_api::leaves::{LeavesClient, LeavesRequest};
use assay_core::id::{ChannelId, DigestRoot, ModelRoot, Nonce, RequestHash, SignatureBytes, TranscriptRoot};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_ledger::amount::Amount;
use assay_ledger::contracts::{b256, node_address};
use assay_ledger::epochs::{Leaf, leaf_hash};
use assay_ledger::ledger::Phase;
use assay_node::store::ReceiptStore;
use assay_node::witness::{Book, Endpoints, Event, Witness};
use axum::Router;
use axum::routing::post;
use chains::{DOLLAR, parameters, policy};
use economy::{Economy, Front, Provider};
use serde_json::json;

const STAKE: u64 = 20;
const PURSE: u64 = 60;
const STEPS_MAX: usize = 40;

/// Whoever was given receipts: its key and its folder.
struct Holder {
    key: PrivateKeySigner,
    account: Address,
    folder: PathBuf,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Holder {
    async fn new(e: &Economy) -> Holder {
        let sender = e.node.member(&e.ledger, "gateway").await;
        e.ledger.deposit(&sender, Amount(u128::from(PURSE * DOLLAR))).await.unwrap();
        Holder {
            key: sender.key().clone(),
            account: sender.account(),
            folder: e.folder.path().join("gateway"),
            events: Arc::default(),
        }
    }

    async fn live(&self, e: &Economy) -> Witness {
        let sender = e.node.sender_in(&self.folder, &self.key, policy()).await;
        let events = Arc::clone(&self.events);
        let listener: assay_node::witness::Listener =
            Arc::new(move |event| events.lock().unwrap().push(event));
        let folder = self.folder.join("receipts");
        Witness::open(e.ledger.clone(), Arc::new(sender), folder, listener).await.unwrap()
    }

    async fn take(&self, e: &Economy, receipts: &[SignedReceipt]) {
        self.live(e).await.take(receipts);
    }

    /// Does everything that is due, one duty in each life, until nothing is done.
    async fn steps(&self, e: &Economy) {
        for _ in 0..STEPS_MAX {
            if self.live(e).await.some(1).await.unwrap() == 0 {
                return;
            }
        }
        panic!("no end of steps: {:?}", self.events.lock().unwrap());
    }

    fn count(&self, kind: &str) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event.kind() == kind).count()
    }

    /// How many receipts were found to stand.
    fn compared(&self) -> usize {
        let receipts = |event: &Event| match event {
            Event::Compared { receipts, .. } => *receipts,
            _ => 0,
        };
        self.events.lock().unwrap().iter().map(receipts).sum()
    }

    fn accuses(&self) -> bool {
        let accusations = ["left_out", "conflicting", "proved_left_out", "proved_conflict", "silent"];
        accusations.iter().any(|kind| self.count(kind) > 0)
    }
}

/// The same receipt with another answer in it, which its provider has signed too.
fn another(provider: &Provider, signed: &SignedReceipt) -> SignedReceipt {
    let mut other = signed.clone();
    other.receipt.transcript_root = TranscriptRoot::from_bytes([7; 32]);
    sign(provider, other)
}

fn sign(provider: &Provider, mut signed: SignedReceipt) -> SignedReceipt {
    let hash = b256(&signed.receipt.signing_hash(&signed.domain));
    let signature = provider.sender_key.sign_hash_sync(&hash).unwrap();
    signed.signature = SignatureBytes::from_bytes(signature.as_bytes());
    signed
}

/// Begins a new epoch, and has the provider sign answers in it, which it will post.
async fn served(e: &Economy, provider: &Provider, seeds: std::ops::Range<u64>) -> Vec<SignedReceipt> {
    provider.steps(e).await;
    e.node.advance(3_600).await;
    let epoch = e.ledger.epoch().await.unwrap();
    let store: Arc<ReceiptStore> = provider.store();
    seeds.map(|seed| provider.serve(e, &store, epoch, seed).receipt).collect()
}

/// Ends the epoch that runs, has it posted, and its beacon fixed.
async fn posted(e: &Economy, provider: &Provider) -> u64 {
    let epoch = e.ledger.epoch().await.unwrap();
    e.node.advance(3_600).await;
    provider.steps(e).await;
    e.node.advance(1_800).await;
    provider.steps(e).await;
    e.node.mine(6).await;
    provider.steps(e).await;
    assert_eq!(e.ledger.phase(epoch).await.unwrap(), Phase::Committing, "{:?}", provider.events);
    epoch
}

/// A provider's route that shows what is nothing.
fn garbage() -> Router {
    Router::new().route("/v1/leaves", post(|| async { vec![7u8; 999] }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_that_is_left_out_is_proved_and_its_provider_struck() {
    let e = Economy::new(parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let holder = Holder::new(&e).await;
    let mut given = served(&e, &provider, 0..4).await;
    given[2] = another(&provider, &given[2]);
    holder.take(&e, &given).await;
    posted(&e, &provider).await;
    let living = provider.live(&e).await;
    holder.steps(&e).await;
    drop(living);
    assert_eq!((holder.count("proved_left_out"), holder.count("demanded")), (1, 0), "{:?}", holder.events);
    assert_eq!((holder.compared(), holder.count("failed")), (3, 0), "{:?}", holder.events);
    assert!(e.node_of(provider.account).await.struck);
    // A part of the stake, which the ledger names.
    let share = u64::from(e.ledger.parameters().split.reporterPpm) * STAKE;
    assert_eq!(e.vault(holder.account).await, u128::from(PURSE * DOLLAR + share));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_after_everything_is_settled_proves_it_all_the_same() {
    let e = Economy::new(parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let holder = Holder::new(&e).await;
    let given = served(&e, &provider, 0..2).await;
    posted(&e, &provider).await;
    for _ in 0..4 {
        e.node.advance(3_600).await;
        provider.steps(&e).await;
    }
    assert_eq!(provider.count("settled"), 1, "{:?}", provider.events);
    let living = provider.live(&e).await;
    let mut witness = holder.live(&e).await;
    witness.take(&[given[0].clone(), another(&provider, &given[1])]);
    // What is found is not forgotten by the end of the round that finds it.
    assert_eq!(witness.round().await.unwrap(), 1);
    assert_eq!((holder.count("left_out"), holder.compared()), (1, 1), "{:?}", holder.events);
    assert_eq!(witness.round().await.unwrap(), 1);
    drop((witness, living));
    holder.steps(&e).await;
    assert_eq!(holder.count("proved_left_out"), 1, "{:?}", holder.events);
    assert!(e.node_of(provider.account).await.struck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_provider_is_compared_once_and_never_accused() {
    let e = Economy::new(parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let holder = Holder::new(&e).await;
    let mut given = served(&e, &provider, 0..5).await;
    // One of another ledger, and one that nobody signed, are not kept.
    let mut foreign = given[0].clone();
    foreign.domain.chain_id += 1;
    let mut forged = given[1].clone();
    forged.receipt.sequence = 99;
    holder.take(&e, &[sign(&provider, foreign), forged]).await;
    holder.take(&e, &given).await;
    holder.take(&e, &given[..2]).await;
    e.node.advance(3_600).await;
    // Posted, but for what a reorganisation takes back: in the place of the batch comes another one with a receipt more.
    let before = e.node.ask("evm_snapshot", json!([])).await;
    provider.steps(&e).await;
    assert_eq!(provider.count("posted"), 1, "{:?}", provider.events);
    let living = provider.live(&e).await;
    holder.steps(&e).await;
    assert_eq!((holder.compared(), holder.count("not_shown")), (5, 0), "{:?}", holder.events);
    holder.steps(&e).await;
    assert_eq!(holder.compared(), 5);
    drop(living);
    e.node.ask("evm_revert", json!([before])).await;
    e.node.advance(3_600).await;
    let epoch = e.ledger.epoch().await.unwrap();
    {
        let store = provider.store();
        given.push(provider.serve(&e, &store, epoch, 5).receipt);
    }
    holder.take(&e, &given).await;
    holder.steps(&e).await;
    posted(&e, &provider).await;
    assert_eq!(e.batch(provider.account, epoch).await.count, 6);
    // One that was never posted is nobody's loss but its provider's.
    let mut unposted = given[0].clone();
    unposted.receipt.sequence = 1_000;
    unposted.receipt.client_nonce = Nonce::from_bytes([9; 32]);
    holder.take(&e, &[sign(&provider, unposted)]).await;
    let living = provider.live(&e).await;
    holder.steps(&e).await;
    assert_eq!(holder.compared(), 5 + 6, "{:?}", holder.events);
    drop(living);
    // Until everything is settled and forgotten, and with nobody to ask.
    for _ in 0..4 {
        e.node.advance(3_600).await;
        provider.steps(&e).await;
        holder.steps(&e).await;
    }
    assert!(!holder.accuses() && holder.count("demanded") == 0, "{:?}", holder.events);
    assert_eq!(e.vault(holder.account).await, u128::from(PURSE * DOLLAR));
    assert_eq!(provider.count("settled"), 1, "{:?}", provider.events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_garbage_is_asked_on_the_ledger_and_what_is_right_there_costs_a_bond() {
    let e = Economy::new(parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let holder = Holder::new(&e).await;
    let given = served(&e, &provider, 0..2).await;
    holder.take(&e, &given).await;
    posted(&e, &provider).await;
    provider.front.put(Some(garbage()));
    holder.steps(&e).await;
    assert_eq!((holder.count("demanded"), holder.compared()), (0, 0), "{:?}", holder.events);
    // A restart forgets what was not shown: the provider has all of its time again.
    e.node.advance(900).await;
    let mut witness = holder.live(&e).await;
    for _ in 0..3 {
        witness.round().await.unwrap();
    }
    drop(witness);
    assert_eq!(holder.count("demanded"), 1, "{:?}", holder.events);
    let bond = u128::from(e.ledger.parameters().stakes.demandBond);
    let purse = u128::from(PURSE * DOLLAR);
    assert_eq!(e.vault(holder.account).await, purse - bond);
    provider.steps(&e).await;
    assert_eq!(provider.count("answered"), 1, "{:?}", provider.events);
    provider.front.put(Some(garbage()));
    let mut witness = holder.live(&e).await;
    for _ in 0..3 {
        witness.round().await.unwrap();
    }
    drop(witness);
    assert_eq!((holder.count("in_vain"), holder.count("demanded")), (1, 1), "{:?}", holder.events);
    assert!(!holder.accuses(), "{:?}", holder.events);
    assert_eq!(e.vault(holder.account).await, purse - bond);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_is_asked_where_its_gateway_reaches_it() {
    let e = Economy::new(parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let holder = Holder::new(&e).await;
    let given = served(&e, &provider, 0..2).await;
    holder.take(&e, &given).await;
    posted(&e, &provider).await;
    let living = provider.live(&e).await;
    let elsewhere = Front::new().await;
    elsewhere.put(Some(living.settlement.routes()));
    provider.front.put(Some(garbage()));
    let (url, account) = (elsewhere.url.clone(), provider.account);
    let known: Endpoints = Arc::new(move |of| (of == account).then(|| url.clone()));
    assert_eq!(holder.live(&e).await.asking(known).round().await.unwrap(), 1);
    assert_eq!((holder.compared(), holder.count("not_shown")), (2, 0), "{:?}", holder.events);
    elsewhere.put(None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hides_what_it_left_out_shows_it_on_the_ledger_or_is_silent() {
    for silent in [false, true] {
        let e = Economy::new(parameters()).await;
        let provider = Provider::new(&e, "provider", STAKE).await;
        let holder = Holder::new(&e).await;
        let given = served(&e, &provider, 0..1).await;
        holder.take(&e, &[another(&provider, &given[0])]).await;
        posted(&e, &provider).await;
        // Once with a route that answers garbage, once with none.
        provider.front.put((!silent).then(garbage));
        e.node.advance(900).await;
        let mut witness = holder.live(&e).await;
        for _ in 0..3 {
            witness.round().await.unwrap();
        }
        drop(witness);
        assert_eq!(holder.count("demanded"), 1, "{:?}", holder.events);
        if silent {
            e.node.advance(1_801).await;
        } else {
            provider.steps(&e).await;
        }
        holder.steps(&e).await;
        let proved = if silent { "silent" } else { "proved_left_out" };
        assert_eq!((holder.count(proved), holder.count("failed")), (1, 0), "{:?}", holder.events);
        assert!(e.node_of(provider.account).await.struck);
        assert!(e.vault(holder.account).await >= u128::from(PURSE * DOLLAR) - u128::from(5 * DOLLAR));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_answers_to_one_request_and_nonce_are_proved() {
    let e = Economy::new(parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let holder = Holder::new(&e).await;
    let given = served(&e, &provider, 0..1).await;
    // A repetition is no conflict, nor is an answer that was stopped earlier.
    let mut again = given[0].clone();
    again.receipt.sequence += 1;
    let mut shorter = another(&provider, &given[0]);
    shorter.receipt.sequence += 2;
    shorter.receipt.completion_tokens -= 1;
    holder.take(&e, &given).await;
    holder.take(&e, &[sign(&provider, again), sign(&provider, shorter)]).await;
    assert_eq!(holder.count("conflicting"), 0, "{:?}", holder.events);
    let mut other = another(&provider, &given[0]);
    other.receipt.sequence += 3;
    holder.take(&e, &[sign(&provider, other)]).await;
    holder.steps(&e).await;
    assert_eq!(holder.count("proved_conflict"), 1, "{:?}", holder.events);
    assert!(e.node_of(provider.account).await.struck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_are_shown_of_posted_batches_alone() {
    let e = Economy::new(parameters()).await;
    let provider = Provider::new(&e, "provider", STAKE).await;
    let given = served(&e, &provider, 0..3).await;
    let (first, epoch) = (given[0].receipt.sequence, given[0].receipt.epoch);
    let asked = async |of: Address, epoch: u64, numbers: &[u64]| {
        let request = LeavesRequest { provider: node_address(of), epoch, numbers: numbers.to_vec() };
        match LeavesClient::new().ask(&provider.front.url, &request).await {
            Ok(leaves) => Ok(leaves.into_iter().map(|leaf| leaf.leaf).collect::<Vec<_>>()),
            Err(AuditError::Refused { status, .. }) => Err(status),
            Err(e) => panic!("{e}"),
        }
    };
    let living = provider.live(&e).await;
    assert_eq!(asked(provider.account, epoch, &[first]).await, Err(404));
    drop(living);
    posted(&e, &provider).await;
    let _living = provider.live(&e).await;
    let hashes: Vec<_> = given.iter().map(|signed| leaf_hash(Some(&Leaf::of(signed)))).collect();
    let all: Vec<u64> = (first..first + 3).collect();
    assert_eq!(asked(provider.account, epoch, &all).await, Ok(hashes));
    assert_eq!(asked(provider.account, epoch, &[first + 3]).await, Err(404));
    assert_eq!(asked(provider.account, epoch + 1, &[first]).await, Err(404));
    assert_eq!(asked(e.payer.account(), epoch, &[first]).await, Err(400));
    assert_eq!(asked(provider.account, epoch, &[first, first]).await, Err(400));
}

/// A receipt that its provider has signed.
fn signed(key: &PrivateKeySigner, sequence: u64, epoch: u64) -> SignedReceipt {
    let receipt = Receipt {
        provider: node_address(key.address()),
        sequence,
        model_root: ModelRoot::from_bytes([1; 32]),
        request_hash: RequestHash::from_bytes([2; 32]),
        transcript_root: TranscriptRoot::from_bytes([3; 32]),
        digest_root: DigestRoot::from_bytes([4; 32]),
        prompt_tokens: 5,
        completion_tokens: 6,
        fee_micro_usd: 7,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::from_bytes(chains::hash(&sequence.to_string()).0),
        epoch,
    };
    let domain = Domain::DEVELOPMENT;
    let signature = key.sign_hash_sync(&b256(&receipt.signing_hash(&domain))).unwrap();
    SignedReceipt { receipt, domain, signature: SignatureBytes::from_bytes(signature.as_bytes()) }
}

#[test]
fn a_book_keeps_what_it_took_and_chooses_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/book.redb");
    let open = || Book::open(&path, Domain::DEVELOPMENT).unwrap();
    let [one, other] = [1u8, 2].map(|n| PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap());
    let (root, later) = (B256::repeat_byte(7), B256::repeat_byte(8));
    let of = one.address();
    // The largest number hides nobody behind it.
    let mut given: Vec<_> = (0..40).map(|n| signed(&one, n, n / 10)).collect();
    given.extend([signed(&one, u64::MAX, 3), signed(&other, 5, 0), signed(&other, u64::MAX, 3)]);
    let chosen = {
        let book = open();
        let taken = book.take(&given).unwrap();
        assert_eq!((taken.kept, taken.refused, taken.conflicting.len()), (43, 0, 0));
        assert_eq!(book.take(&given).unwrap().kept, 0);
        assert_eq!(book.providers().unwrap(), [of, other.address()].into());
        let chosen = book.left(of, 10..30, root, 5).unwrap();
        assert!(chosen.len() == 5 && chosen.iter().all(|n| (10..30).contains(n)), "{chosen:?}");
        book.mark(of, &chosen[..2], root).unwrap();
        chosen
    };
    let book = open();
    assert_eq!(book.receipt(of, 12).unwrap().as_ref(), Some(&given[12]));
    // Of the same choice what is left; of another root all of it.
    assert_eq!(book.left(of, 10..30, root, 5).unwrap(), chosen[2..]);
    assert_eq!(book.left(of, 10..30, later, 5).unwrap(), chosen);
    assert_eq!(book.left(of, 10..30, root, 99).unwrap().len(), 18);
    book.forget(of, 10..30).unwrap();
    assert_eq!((book.count().unwrap(), book.left(of, 0..50, root, 99).unwrap().len()), (23, 20));
    book.forget_before(1).unwrap();
    assert_eq!(book.count().unwrap(), 12);
    // What was let go of is taken again, and conflicts with nothing.
    let taken = book.take(&given[..1]).unwrap();
    assert_eq!((taken.kept, taken.conflicting.len()), (1, 0));
    // Who chooses otherwise chooses other ones.
    let elsewhere = Book::open(&folder.path().join("other.redb"), Domain::DEVELOPMENT).unwrap();
    elsewhere.take(&given).unwrap();
    let all = |book: &Book| book.left(of, 30..40, root, 99).unwrap();
    assert!(all(&book).len() == 10 && all(&book) != all(&elsewhere));
}
