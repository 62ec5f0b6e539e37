//! A gateway that pays a provider on a chain, with failures on the way: what was receipted is what was charged, and what the contract pays.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../chain/tests/anvil/mod.rs"]
mod anvil;
#[path = "../../ledger/tests/chains/mod.rs"]
mod chains;

use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use alloy_primitives::aliases::U40;
use alloy_primitives::{Address, B256, Bytes};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_api::relay::{OfferSigner, Relay, RelayOptions};
use assay_api::{
    Caller, Class, EmbeddingOrder, Event, Generation, Inference, Load, ModelCard, Order, Refusal,
    ServerOptions, router,
};
use assay_core::consent::Consent;
use assay_core::embedding::{EmbeddingInput, EmbeddingRecord, EmbeddingRequest, Record};
use assay_core::id::{ChannelId, ModelRoot, ReceiptId, SignatureBytes};
use assay_core::receipt::{Domain, SignedReceipt};
use assay_core::request::{Prompt, Request, Sampling};
use assay_core::transcript::StopReason;
use assay_engine::artifact::Artifact;
use assay_engine::batch::BatchLimits;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_gateway::lanes::LaneTerms;
use assay_gateway::lanes::payer::{Payer, PayerOptions, instance};
use assay_gateway::network::{Network, NetworkOptions};
use assay_ledger::amount::Amount;
use assay_ledger::contracts::{Channels, Epochs, Vault};
use assay_ledger::ledger::{Ledger, Role};
use assay_ledger::sender::Sender;
use assay_ledger::voucher;
use assay_node::key::NodeKey;
use assay_node::provider::Provider;
use assay_node::serving::ServedModel;
use assay_node::store::ReceiptStore;
use assay_node::till::Till;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chains::{DOLLAR, Node, parameters};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// 100 dollars for a million tokens.
const PRICE: &str = "100/100";
/// The same where the client withholds its consent to audits.
const PRIVATE: &str = "300/300";
const DEPOSITED: u128 = 50 * DOLLAR as u128;

static STORIES: &[u8] = include_bytes!("../../../models/stories-1.7m.assay");

/// A provider that is enrolled and served, until it is stopped.
struct Shop {
    provider: Arc<Provider>,
    url: String,
    serving: JoinHandle<()>,
}

/// A provider with the built-in model, that is paid by nobody yet.
fn node(home: &Path) -> Provider {
    let key = NodeKey::load_or_create(&home.join("key")).unwrap();
    let store = ReceiptStore::open(&home.join("receipts.redb")).unwrap();
    let artifact = Arc::new(Artifact::from_bytes("stories", STORIES).unwrap());
    let pool = Arc::new(Pool::new(1));
    let kernel = Kernel::from_environment().unwrap();
    let model = ServedModel::start(artifact, kernel, pool, BatchLimits::default(), None).unwrap();
    Provider::new(vec![model], key, store, 1, 1)
}

async fn shop(ledger: &Ledger, home: &Path) -> Shop {
    let provider = node(home);
    let till = Till::open(ledger.clone(), provider.address(), Arc::clone(provider.store())).await.unwrap();
    let provider = provider.settling(Arc::new(till), PRICE.parse().unwrap());
    let provider = Arc::new(provider.private(Some(PRIVATE.parse().unwrap())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = router(Arc::clone(&provider), ServerOptions::default()).merge(provider.relay());
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    Shop { provider, url, serving }
}

/// A way to a server on which connections break after so many bytes, different ones each time.
async fn bad_way(to: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, to) = (listener.local_addr().unwrap(), to.trim_start_matches("http://").to_owned());
    tokio::spawn(async move {
        let (mut open, mut draw) = (JoinSet::new(), 1u64);
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let Ok(far) = TcpStream::connect(&to).await else { continue };
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut left = 700 + (draw >> 40) % 12_000;
            open.spawn(async move {
                let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                    (near.into_split(), far.into_split());
                let forth = tokio::io::copy(&mut near_read, &mut far_write);
                let back = async {
                    let mut buffer = [0; 512];
                    while left > 0 {
                        let count = far_read.read(&mut buffer).await.unwrap_or(0);
                        if count == 0 || near_write.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                        left = left.saturating_sub(count as u64);
                    }
                };
                tokio::select! {
                    _ = forth => {}
                    () = back => {}
                }
            });
        }
    });
    format!("http://{at}")
}

/// A gateway that pays, until it is dropped.
struct Gateway {
    network: Arc<Network>,
    payer: Weak<Payer>,
    deposits: JoinHandle<()>,
}

impl Gateway {
    async fn start(ledger: &Ledger, sender: Sender, home: &Path, lanes_max: usize, url: &str) -> Gateway {
        let instance = instance(&home.join("gateway/instance")).unwrap();
        // A few requests use a deposit up.
        let terms = LaneTerms { lanes_max, deposit: 20_000 };
        let options = PayerOptions { terms, wait: Duration::from_secs(20) };
        let (payer, deposits) = Payer::new(ledger.clone(), sender, instance, options);
        let options = NetworkOptions { patience: Duration::from_secs(30), ..NetworkOptions::default() };
        let (deposits, weak) = (tokio::spawn(deposits.run()), Arc::downgrade(&payer));
        let network = Arc::new(Network::new(None, options).paying(payer));
        // A bad way may break this too.
        while !network.refresh(&[url.to_owned()]).await.is_empty() {}
        Gateway { network, payer: weak, deposits }
    }

    /// Ends it, and what it knew of lanes is gone. Its account can be used again then.
    async fn dies(self) {
        self.deposits.abort();
        drop(self.network);
        // Answers under way end when their clients are gone.
        while self.payer.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn order(network: &Network, text: &str, max_tokens: u32) -> Order {
    let request = Request {
        model: network.models()[0].root,
        prompt: Prompt::Text(text.into()),
        sampling: Sampling::GREEDY,
        max_tokens,
        stop: vec![],
        choice: 0,
        guide: None,
        logprobs: None,
        audit: Consent::Given,
    };
    Order { request, nonce: None, request_id: "req".into(), caller: Caller::default() }
}

/// The fee of an answer, or why there is none.
async fn fee(network: &Network, order: Order) -> Result<u64, &'static str> {
    let mut generation = network.generate(order).await.map_err(|refusal| refusal.code())?;
    while let Some(event) = generation.events.recv().await {
        match event {
            Event::End { record, .. } => return Ok(record.receipt.receipt.fee_micro_usd),
            Event::Failed(refusal) => return Err(refusal.code()),
            _ => {}
        }
    }
    panic!("the answer just stopped")
}

struct Sums {
    receipts: u128,
    charged: u128,
}

fn sums(shop: &Shop) -> Sums {
    let store = shop.provider.store();
    let receipts = store.from_sequence(0, usize::MAX).unwrap();
    let receipts = receipts.iter().map(|r| u128::from(r.receipt().receipt.fee_micro_usd)).sum();
    let charged = store.claims().unwrap().iter().map(|claim| claim.totalClaimed).sum();
    Sums { receipts, charged }
}

/// A chain with a ledger, a payer with money on it, and a provider's home, enrolled.
struct Market {
    chain: Node,
    ledger: Ledger,
    payer: PrivateKeySigner,
    node_key: PrivateKeySigner,
    homes: [tempfile::TempDir; 2],
}

async fn market() -> Market {
    let chain = Node::embedded().await;
    let ledger = chain.deploy(parameters()).await;
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let payer = chain.member(&ledger, "payer").await;
    ledger.deposit(&payer, Amount(DEPOSITED)).await.unwrap();
    let owner = chain.member(&ledger, "owner").await;
    let node_key = NodeKey::load_or_create(&homes[0].path().join("key")).unwrap().signer().clone();
    ledger.enrol(&owner, &node_key, Role::Provider as u8, String::new(), B256::ZERO).await.unwrap();
    let payer = payer.key().clone();
    Market { chain, ledger, payer, node_key, homes }
}

impl Market {
    async fn gateway(&self, url: &str) -> Gateway {
        let sender = self.chain.sender(&self.payer).await;
        Gateway::start(&self.ledger, sender, self.homes[1].path(), 3, url).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_receipted_is_charged_and_paid_to_the_unit() {
    let market = market().await;
    let Market { chain, ledger, node_key, .. } = &market;
    let shop = shop(ledger, market.homes[0].path()).await;

    // Without a payer, nobody is asked who wants to be paid; and the provider refuses who does not pay.
    let unpaid = Network::new(None, NetworkOptions::default());
    assert_eq!(unpaid.refresh(std::slice::from_ref(&shop.url)).await, []);
    assert_eq!(fee(&unpaid, order(&unpaid, "Hello", 2)).await, Err("no_provider"));
    let direct = shop.provider.generate(order(&unpaid, "Hello", 2)).await;
    let Err(Refusal::Payment(refused)) = direct else { panic!("{direct:?}") };
    assert_eq!(refused.problem.code(), "payment_required");

    // One answer: its receipt says what it cost.
    let gateway = market.gateway(&shop.url).await;
    let network = &gateway.network;
    let asked = order(network, "Once upon a time", 8);
    let mut generation = network.generate(asked.clone()).await.unwrap();
    let record = loop {
        match generation.events.recv().await.unwrap() {
            Event::End { record, .. } => break record,
            Event::Failed(refusal) => panic!("{refusal}"),
            _ => {}
        }
    };
    let receipt = &record.receipt.receipt;
    assert_eq!(receipt.fee_micro_usd, 100 * u64::from(receipt.prompt_tokens + receipt.completion_tokens));
    assert_eq!(generation.receipt_id, receipt.id());
    // What the model does not do costs nothing, and says so.
    let vectors = EmbeddingRequest {
        model: asked.request.model,
        inputs: vec![EmbeddingInput::Text("hi".into())],
        dimensions: None,
        truncate: false,
        audit: Consent::Given,
    };
    let vectors = EmbeddingOrder { request: vectors, request_id: "req".into(), caller: Caller::default() };
    assert_eq!(network.embed(vectors).await.unwrap_err().code(), "invalid_value");

    // Many at a time, over a way that breaks; some clients leave. The gateway dies in between, and the next one knows nothing but the chain.
    gateway.dies().await;
    let way = bad_way(&shop.url).await;
    let (mut answered, mut failed) = (u128::from(receipt.fee_micro_usd), 0);
    for round in 0..3u32 {
        let gateway = market.gateway(&way).await;
        let mut asking = JoinSet::new();
        for client in 0..5u32 {
            let network = Arc::clone(&gateway.network);
            asking.spawn(async move {
                let (mut answered, mut failed) = (0u128, 0);
                for i in 0..6 {
                    let text = format!("Round {round}: client {client} asks {i}");
                    let asked = order(&network, &text, 1 + (i * 7 + client) % 24);
                    if (client + i) % 5 == 4 {
                        // Somebody leaves in the middle.
                        if let Ok(mut generation) = network.generate(asked).await {
                            let _ = generation.events.recv().await;
                        }
                        continue;
                    }
                    match fee(&network, asked).await {
                        Ok(fee) => answered += u128::from(fee),
                        Err("provider_lost" | "no_provider" | "no_lane") => failed += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
                (answered, failed)
            });
        }
        while let Some(done) = asking.join_next().await {
            let (more, lost) = done.unwrap();
            answered += more;
            failed += lost;
        }
        gateway.dies().await;
    }
    while shop.provider.load().running + shop.provider.load().waiting > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;

    // What was receipted is what was charged; what was answered is among it.
    let Sums { receipts, charged } = sums(&shop);
    assert_eq!(receipts, charged);
    assert!(answered > 0 && answered <= charged, "{answered} of {charged}, {failed} failed");
    println!("{answered} answered of {charged} charged; {failed} failed");

    // The same again on a good way: nothing more is lost, and every lane's state was recovered from the provider.
    let gateway = market.gateway(&shop.url).await;
    let mut last = 0;
    for i in 0..6 {
        let network = &gateway.network;
        last += u128::from(fee(network, order(network, &format!("At last {i}"), 4)).await.unwrap());
    }
    gateway.dies().await;
    let after = sums(&shop);
    assert_eq!((after.receipts, after.charged), (charged + last, charged + last));

    // The provider claims, and the contract pays exactly that; the rest is the payer's.
    let store = Arc::clone(shop.provider.store());
    let claims = store.claims().unwrap();
    let claimer = chain.sender(node_key).await;
    chain.ask("anvil_setBalance", json!([claimer.account(), "0x56bc75e2d63100000"])).await;
    let at = ledger.parts().at.clone();
    let lanes: Vec<B256> = claims
        .iter()
        .map(|c| {
            voucher::channel_id(&c.voucher.channel, &voucher::domain(chain.client.chain_id(), at.channels))
        })
        .collect();
    claimer.send("claim", at.channels, &Channels::claimCall { claims }).await.unwrap();
    let receiver = claimer.account();
    claimer.send("settle", at.channels, &Channels::settleCall { receiver }).await.unwrap();
    let pot = chain.client.read(at.epochs, &Epochs::accountOfCall { provider: receiver }).await.unwrap().pot;
    assert_eq!(pot, after.receipts);
    assert!(lanes.len() <= 3, "three lanes, whoever the gateway was: {lanes:?}");
    let left = ledger.holdings(market.payer.address()).await.unwrap().vault.0;
    let held = chain.client.read(at.vault, &Vault::balanceOfCall { account: at.channels }).await.unwrap();
    assert_eq!(left + u128::try_from(held).unwrap() + after.receipts, DEPOSITED);
    shop.serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paid_for_is_given_to_who_keeps_it_and_no_request_waits_for_that() {
    let market = market().await;
    let shop = shop(&market.ledger, market.homes[0].path()).await;
    let gateway = market.gateway(&shop.url).await;
    let (keeper, mut given) = tokio::sync::mpsc::channel(2);
    gateway.payer.upgrade().unwrap().give(keeper);
    // One more than there is room for.
    for i in 0..3 {
        fee(&gateway.network, order(&gateway.network, &format!("Answer {i}"), 3)).await.unwrap();
    }
    let mut text = String::new();
    gateway.network.metrics(&mut text);
    assert!(text.contains("assay_gateway_receipts_dropped_total 1\n"), "{text}");
    let signed = shop.provider.store().from_sequence(0, 9).unwrap();
    for record in signed.iter().take(2) {
        assert_eq!(given.recv().await.as_ref(), Some(record.receipt()));
    }
    gateway.dies().await;
    assert_eq!(given.recv().await, None);
    shop.serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_auditors_may_not_see_has_a_price_of_its_own_or_is_not_answered() {
    let market = market().await;
    let shop = shop(&market.ledger, market.homes[0].path()).await;
    let gateway = market.gateway(&shop.url).await;
    let network = &gateway.network;
    let asked = |class: Class| {
        let mut asked = order(network, "Once upon a time", 8);
        (asked.request.audit, asked.caller.class) = (class.consent(), class);
        asked
    };
    // The receipt's fee follows the consent, and so does the class that holds.
    for (class, each) in [(Class::Sampled, 100), (Class::None, 300)] {
        let mut generation = network.generate(asked(class)).await.unwrap();
        assert_eq!(generation.source.unwrap().class, class);
        let record = loop {
            match generation.events.recv().await.unwrap() {
                Event::End { record, .. } => break record,
                Event::Failed(refusal) => panic!("{refusal}"),
                _ => {}
            }
        };
        let receipt = &record.receipt.receipt;
        let tokens = u64::from(receipt.prompt_tokens + receipt.completion_tokens);
        assert_eq!((receipt.fee_micro_usd, record.request.audit), (each * tokens, class.consent()));
    }
    let Sums { receipts, charged } = sums(&shop);
    assert_eq!(receipts, charged);
    // A node is one provider.
    let twice = shop.provider.generate(asked(Class::Full)).await;
    assert_eq!(twice.unwrap_err().code(), "unsupported_value");

    // Who names no price for it refuses, and who is free takes everything.
    let folder = tempfile::tempdir().unwrap();
    let priced = node(folder.path()).advertising(Some(PRICE.parse().unwrap()));
    assert_eq!(priced.generate(asked(Class::None)).await.unwrap_err().code(), "audit_consent_required");
    let given = priced.generate(asked(Class::Sampled)).await.unwrap();
    assert_eq!(given.source.unwrap().class, Class::None, "it settles nowhere");
    let folder = tempfile::tempdir().unwrap();
    let free = node(folder.path()).generate(asked(Class::None)).await.unwrap();
    assert_eq!(free.source.unwrap().price, None);
    gateway.dies().await;
    shop.serving.abort();
}

/// What a header of x402 says.
fn said(response: &reqwest::Response, name: &str) -> Value {
    let header = response.headers().get(name).unwrap_or_else(|| panic!("{name} is there"));
    serde_json::from_slice(&STANDARD.decode(header).unwrap()).unwrap()
}

/// A client with a channel of its own.
struct Client<'a> {
    http: reqwest::Client,
    url: String,
    key: &'a PrivateKeySigner,
    config: Channels::ChannelConfig,
    domain: alloy_sol_types::Eip712Domain,
}

impl Client<'_> {
    async fn ask(&self, body: &Value, ceiling: Option<u128>) -> reqwest::Response {
        let mut request = self.http.post(format!("{}/v1/chat/completions", self.url)).json(body);
        if let Some(max) = ceiling {
            let id = voucher::channel_id(&self.config, &self.domain);
            let signature = voucher::sign(self.key, id, max, &self.domain).unwrap();
            let c = &self.config;
            let config = json!({
                "payer": c.payer, "payerAuthorizer": c.payerAuthorizer, "receiver": c.receiver,
                "receiverAuthorizer": c.receiverAuthorizer, "token": c.token,
                "withdrawDelay": c.withdrawDelay.to::<u64>(), "salt": c.salt,
            });
            let voucher =
                json!({"channelId": id, "maxClaimableAmount": max.to_string(), "signature": signature});
            let payment = json!({
                "x402Version": 2, "accepted": {"scheme": "batch-settlement"},
                "payload": {"type": "voucher", "channelConfig": config, "voucher": voucher},
            });
            request = request.header("payment-signature", STANDARD.encode(payment.to_string()));
        }
        request.send().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_channel_pays_a_node_by_x402() {
    let market = market().await;
    let shop = shop(&market.ledger, market.homes[0].path()).await;
    let http = reqwest::Client::new();
    let at = &market.ledger.parts().at;
    let domain = voucher::domain(market.chain.client.chain_id(), at.channels);
    let config = Channels::ChannelConfig::default();
    let mut client = Client { http, url: shop.url.clone(), key: &market.payer, config, domain };
    let mut body = json!({
        "model": shop.provider.models()[0].id, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "seed": 1,
    });

    // What must be paid, and how.
    let refused = client.ask(&body, None).await;
    assert_eq!(refused.status(), 402);
    let required = said(&refused, "payment-required");
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(
        (&refused["error"]["code"], &required["error"]),
        (&json!("payment_required"), &json!("payment_required"))
    );
    assert!(required["resource"]["url"].as_str().unwrap().ends_with("/v1/chat/completions"));
    let accepts = &required["accepts"][0];
    let address = |value: &Value| value.as_str().unwrap().parse::<Address>().unwrap();
    let extra = &accepts["extra"];
    assert_eq!((&accepts["network"], &extra["name"]), (&json!("eip155:31337"), &json!("Assay test dollars")));
    assert_eq!(address(&extra["verifyingContract"]), at.channels);
    let most: u128 = accepts["amount"].as_str().unwrap().parse().unwrap();

    // A channel by these terms, filled on the ledger.
    client.config = Channels::ChannelConfig {
        payer: market.payer.address(),
        payerAuthorizer: Address::ZERO,
        receiver: address(&accepts["payTo"]),
        receiverAuthorizer: address(&extra["receiverAuthorizer"]),
        token: address(&accepts["asset"]),
        withdrawDelay: U40::from(extra["withdrawDelay"].as_u64().unwrap()),
        salt: B256::ZERO,
    };
    let deposit = Channels::depositCall { config: client.config.clone(), amount: 1_000_000 };
    market.chain.sender(&market.payer).await.send("channel", at.channels, &deposit).await.unwrap();

    // The answer says what was charged, which is what its receipt says.
    let answered = client.ask(&body, Some(most)).await;
    assert_eq!(answered.status(), 200);
    let paid = said(&answered, "payment-response");
    let receipt: ReceiptId = answered.headers()["x-assay-receipt"].to_str().unwrap().parse().unwrap();
    let fee = async |receipt| {
        let record = shop.provider.receipt(receipt).await.unwrap().unwrap();
        u128::from(record.receipt().receipt.fee_micro_usd)
    };
    let charged = fee(receipt).await;
    assert!(charged > 0 && charged <= most);
    assert_eq!(paid["extra"]["chargedAmount"], charged.to_string());
    assert_eq!(paid["extra"]["channelState"]["chargedCumulativeAmount"], charged.to_string());
    assert_eq!(address(&paid["payer"]), market.payer.address());

    // A client that has lost its state is shown its own voucher, believes it, and goes on.
    let stale = client.ask(&body, Some(most)).await;
    assert_eq!(stale.status(), 402);
    let required = said(&stale, "payment-required");
    assert_eq!(required["error"], "invalid_batch_settlement_evm_cumulative_amount_mismatch");
    let extra = &required["accepts"][0]["extra"];
    let shown: u128 = extra["voucherState"]["signedMaxClaimable"].as_str().unwrap().parse().unwrap();
    let signature: Bytes = extra["voucherState"]["signature"].as_str().unwrap().parse().unwrap();
    assert_eq!(voucher::check(&client.config, shown, &signature, &client.domain), Ok(()));
    let before: u128 = extra["channelState"]["chargedCumulativeAmount"].as_str().unwrap().parse().unwrap();
    assert_eq!((before, shown), (charged, most));
    body["stream"] = true.into();
    let streamed = client.ask(&body, Some(before + most)).await;
    assert_eq!(streamed.status(), 200);
    // Of a stream the charge is in the receipt.
    assert_eq!(said(&streamed, "payment-response")["extra"], json!({}));
    let receipt = streamed.headers()["x-assay-receipt"].to_str().unwrap().parse().unwrap();
    assert!(streamed.text().await.unwrap().trim_end().ends_with("data: [DONE]"));
    let Sums { receipts, charged: all } = sums(&shop);
    assert_eq!((receipts, all), (before + fee(receipt).await, receipts));

    // What is no payment is said to be none, and two requests at once need two channels.
    let garbage = client.http.post(format!("{}/v1/chat/completions", shop.url)).json(&body);
    let garbage = garbage.header("payment-signature", "what?").send().await.unwrap();
    assert_eq!(garbage.status(), 400);
    body["n"] = 2.into();
    let two: Value = client.ask(&body, Some(500_000)).await.json().await.unwrap();
    assert_eq!(two["error"]["code"], "channel_busy");
    shop.serving.abort();
}

/// Answers of this model may be over before anybody is asked to stop them: as many are asked for as it takes.
const TRIES: u32 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_stopped_is_paid_stored_and_settled_like_any_other() {
    let market = market().await;
    let shop = shop(&market.ledger, market.homes[0].path()).await;
    let gateway = market.gateway(&shop.url).await;
    let network = &gateway.network;
    let mut paid = 0;
    let mut stopped = None;
    for i in 0..TRIES {
        let asked = order(network, &format!("Once upon a time {i}"), 200);
        let mut generation = network.generate(asked).await.unwrap();
        let (receipt, mut text) = (generation.receipt_id, String::new());
        generation.stop.ask();
        let record = loop {
            match generation.events.recv().await.unwrap() {
                Event::Text { text: more, .. } => text.push_str(&more),
                Event::End { record, .. } => break record,
                other => panic!("{other:?}"),
            }
        };
        let signed = &record.receipt.receipt;
        assert_eq!(
            (record.broken_bindings(), signed.id(), &record.transcript.text),
            (vec![], receipt, &text)
        );
        assert_eq!(signed.fee_micro_usd, 100 * u64::from(signed.prompt_tokens + signed.completion_tokens));
        paid += u128::from(signed.fee_micro_usd);
        // It is in the store that batches are posted from, and charged on its channel.
        let Some(Record::Answer(stored)) = shop.provider.receipt(receipt).await.unwrap() else { panic!() };
        assert_eq!(*stored, *record);
        assert_eq!(sums(&shop).receipts, paid);
        assert_eq!(sums(&shop).charged, paid);
        if record.transcript.stop == StopReason::Cancelled {
            assert!(signed.completion_tokens < 200);
            stopped = Some(receipt);
            break;
        }
    }
    let stopped = stopped.expect("one of them is stopped in time");
    let found = network.receipt(stopped).await.unwrap().unwrap();
    assert_eq!(found.receipt().receipt.id(), stopped);
    // Its place and its lane are free: the next one is answered, and paid on top.
    while shop.provider.load().running + shop.provider.load().waiting > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    paid += u128::from(fee(network, order(network, "And then", 4)).await.unwrap());
    assert_eq!((sums(&shop).receipts, sums(&shop).charged), (paid, paid));
    gateway.dies().await;

    // Who leaves the node itself pays likewise.
    let at = &market.ledger.parts().at;
    let domain = voucher::domain(market.chain.client.chain_id(), at.channels);
    let http = reqwest::Client::new();
    let config = Channels::ChannelConfig::default();
    let mut client = Client { http, url: shop.url.clone(), key: &market.payer, config, domain };
    let body = json!({
        "model": shop.provider.models()[0].id, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "stream": true,
    });
    let accepts = said(&client.ask(&body, None).await, "payment-required")["accepts"][0].clone();
    let address = |value: &Value| value.as_str().unwrap().parse::<Address>().unwrap();
    client.config = Channels::ChannelConfig {
        payer: market.payer.address(),
        payerAuthorizer: Address::ZERO,
        receiver: address(&accepts["payTo"]),
        receiverAuthorizer: address(&accepts["extra"]["receiverAuthorizer"]),
        token: address(&accepts["asset"]),
        withdrawDelay: U40::from(accepts["extra"]["withdrawDelay"].as_u64().unwrap()),
        salt: B256::ZERO,
    };
    let deposit = Channels::depositCall { config: client.config.clone(), amount: 10_000_000 };
    market.chain.sender(&market.payer).await.send("channel", at.channels, &deposit).await.unwrap();
    let most: u128 = accepts["amount"].as_str().unwrap().parse().unwrap();
    let mut of_this = 0;
    for _ in 0..TRIES {
        let mut answer = client.ask(&body, Some(of_this + most)).await;
        assert_eq!(answer.status(), 200);
        let receipt: ReceiptId = answer.headers()["x-assay-receipt"].to_str().unwrap().parse().unwrap();
        while !answer.chunk().await.unwrap().unwrap().starts_with(b"data: ") {}
        drop(answer);
        // Nobody waits for it, and it is stored all the same.
        let record = loop {
            match shop.provider.receipt(receipt).await.unwrap() {
                Some(Record::Answer(record)) => break record,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        of_this += u128::from(record.receipt.receipt.fee_micro_usd);
        assert_eq!((sums(&shop).receipts, sums(&shop).charged), (paid + of_this, paid + of_this));
        if record.transcript.stop == StopReason::Cancelled {
            shop.serving.abort();
            return;
        }
    }
    panic!("none of {TRIES} answers was left in time");
}

/// What is changed in a receipt before it is signed.
type Lie = fn(&mut SignedReceipt);

/// A provider that signs something else about money than was agreed.
struct Liar {
    honest: Arc<Provider>,
    key: NodeKey,
    lie: Mutex<Lie>,
}

impl Inference for Liar {
    fn models(&self) -> Vec<ModelCard> {
        self.honest.models()
    }

    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        let mut honest = self.honest.generate(order).await?;
        let (lie, key) = (*self.lie.lock().unwrap(), self.key.signer().clone());
        let (events, receiver) = mpsc::channel(64);
        let mut told = std::mem::replace(&mut honest.events, receiver);
        tokio::spawn(async move {
            while let Some(mut event) = told.recv().await {
                if let Event::End { record, .. } = &mut event {
                    let signed = &mut Arc::make_mut(record).receipt;
                    lie(signed);
                    let hash = signed.receipt.signing_hash(&signed.domain);
                    let signature = key.sign_hash_sync(&B256::from(*hash.as_bytes())).unwrap();
                    signed.signature = SignatureBytes::from_bytes(signature.as_bytes());
                }
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(honest)
    }

    async fn embed(&self, order: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        self.honest.embed(order).await
    }

    async fn count_tokens(&self, model: ModelRoot, prompt: Prompt) -> Result<u32, Refusal> {
        self.honest.count_tokens(model, prompt).await
    }

    async fn receipt(&self, id: ReceiptId) -> Result<Option<Record>, Refusal> {
        self.honest.receipt(id).await
    }

    fn load(&self) -> Load {
        self.honest.load()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_for_another_fee_channel_or_ledger_is_no_answer() {
    let market = market().await;
    let shop = shop(&market.ledger, market.homes[0].path()).await;
    let key = NodeKey::load_or_create(&market.homes[0].path().join("key")).unwrap();
    let address = key.address();
    let sign = key.signer().clone();
    let sign: OfferSigner = Box::new(move |hash| {
        let signature = sign.sign_hash_sync(&B256::from(*hash.as_bytes())).ok()?;
        Some(SignatureBytes::from_bytes(signature.as_bytes()))
    });
    let honest: Lie = |_| {};
    let liar = Arc::new(Liar { honest: Arc::clone(&shop.provider), key, lie: Mutex::new(honest) });
    let options = RelayOptions { settles: shop.provider.settles(), ..RelayOptions::default() };
    let relay = Relay::new(Arc::clone(&liar), address, sign, options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, relay.routes()).await.unwrap() });
    let gateway = market.gateway(&url).await;
    let network = &gateway.network;
    assert!(fee(network, order(network, "Hello", 3)).await.unwrap() > 0);
    let lies: [(&str, Lie); 5] = [
        ("more", |signed| signed.receipt.fee_micro_usd += 1),
        ("less", |signed| signed.receipt.fee_micro_usd -= 1),
        ("another channel", |signed| signed.receipt.payer_channel = ChannelId::from_bytes([7; 32])),
        ("no channel", |signed| signed.receipt.payer_channel = ChannelId::ZERO),
        ("another ledger", |signed| signed.domain = Domain::DEVELOPMENT),
    ];
    for (what, lie) in lies {
        *liar.lie.lock().unwrap() = lie;
        assert_eq!(fee(network, order(network, what, 3)).await, Err("provider_lost"), "{what}");
    }
    // It has failed as often as it lied. What it charged meanwhile it can prove, and is believed as far as that was signed for.
    let standing = || network.providers().remove(0).3;
    // Who asked hears of the end before it is counted.
    while standing().failed < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((standing().completed, standing().failed), (1, 5));
    *liar.lie.lock().unwrap() = honest;
    assert!(fee(network, order(network, "Hello again", 3)).await.is_ok());
    let Sums { receipts, charged } = sums(&shop);
    assert_eq!(receipts, charged);
    serving.abort();
}
