//! A chain with a ledger, a provider with a price, payers with wallets, and gateways that die as processes do: each has a runtime of its own.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{SolStruct as _, sol};
use assay_api::{ServerOptions, serve};
use assay_core::authorization::{Authorization, Scheme};
use assay_core::id::{AccountAddress, Hash, SignatureBytes};
use assay_gateway::accounts::{Accounts, Books, Charge, Period, Stage};
use assay_gateway::callers::Callers;
use assay_gateway::network::{Network, NetworkOptions};
use assay_gateway::queue::QueueOptions;
use assay_ledger::authorization::{PERMIT2, UPTO_PROXY, signing_hash, token_domain};
use assay_ledger::client::Client;
use assay_ledger::contracts::TestToken;
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::Sender;
use assay_ledger::voucher::account;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::chains::{Node, PURSE, parameters, policy};
use crate::permit2::{TestPermit2, place};
use crate::providers::{Manner, Provider};

/// 100 dollars for a million tokens: 10 read and 5 written cost 1500 millionths.
pub const PRICE: &str = "100/100";
pub const FEE: u64 = 1_500;
/// What [`ask`] may cost: a token for each of 5 bytes, 64 for the template around the message and 64 around all, and 8 to write.
pub const MOST: u64 = 100 * (5 + 64 + 64 + 8);
/// As the token calls itself.
const TOKEN: (&str, &str) = ("Assay test dollars", "1");

const QUICK: NetworkOptions = NetworkOptions {
    patience: Duration::from_millis(300),
    silence: Duration::from_secs(10),
    stopped: Duration::from_secs(10),
    attempts_max: 3,
    queue: QueueOptions { running_max: 64, waiting_max: 64, wait: Duration::from_secs(10) },
};

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

/// A request for an answer to a text of 5 bytes.
pub fn ask(text: &str) -> Value {
    assert_eq!(text.len(), 5, "{text}");
    json!({"model": "org/model", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0})
}

pub struct Market {
    pub chain: Node,
    pub ledger: Ledger,
    pub accounts: Accounts,
    pub provider: Provider,
    books: String,
    key: PrivateKeySigner,
    _home: tempfile::TempDir,
}

impl Market {
    pub async fn start() -> Market {
        Market::on(Node::embedded().await).await
    }

    pub async fn on(chain: Node) -> Market {
        let (home, books) = books();
        Market::kept(chain, home, &books, true).await
    }

    /// With its books there.
    pub async fn with(chain: Node, books: &str) -> Market {
        Market::kept(chain, tempfile::tempdir().unwrap(), books, true).await
    }

    /// On a chain without Permit2.
    pub async fn bare(chain: Node) -> Market {
        let (home, books) = books();
        Market::kept(chain, home, &books, false).await
    }

    async fn kept(chain: Node, home: tempfile::TempDir, books: &str, permit2: bool) -> Market {
        let ledger = chain.deploy(parameters()).await;
        if permit2 {
            place(&chain.sender(&chain.actor("placer").await).await).await;
        }
        let key = chain.actor("gateway").await;
        let accounts = Accounts::open(books).await.unwrap();
        let provider = Provider::start(Manner::Honest, Some(PRICE)).await;
        Market { chain, ledger, accounts, provider, books: books.to_owned(), key, _home: home }
    }

    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(&[&self.provider]).await
    }

    pub async fn gateway_with(&self, providers: &[&Provider]) -> Gateway {
        let endpoints: Vec<String> = providers.iter().map(|p| p.url.clone()).collect();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (url, books, outbox) =
            (self.chain.url.clone(), self.books.clone(), self.chain.home.path().to_owned());
        let (key, directory) = (self.key.clone(), self.ledger.parts().directory);
        let started = runtime.spawn(async move {
            let client = Client::connect(&url).await.unwrap();
            let ledger = Ledger::at(client.clone(), directory).await.unwrap();
            let sender = Sender::open(client, key, &outbox, policy()).await.unwrap();
            sender.resume().await;
            let accounts = Accounts::open(&books).await.unwrap();
            let callers = Callers::open(ledger, sender, accounts.clone()).await.unwrap();
            let network = Network::new(Some(accounts), QUICK).calling(Arc::clone(&callers));
            assert_eq!(network.refresh(&endpoints).await, []);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let alive = Arc::downgrade(&callers);
            tokio::spawn(async move { callers.run().await });
            let never = std::future::pending();
            tokio::spawn(serve(listener, Arc::new(network), ServerOptions::default(), never));
            (url, alive)
        });
        let (url, alive) = started.await.unwrap();
        let client = reqwest::Client::new();
        Gateway { url, account: self.key.address(), client, alive, runtime: Some(runtime) }
    }

    /// What sends for the gateway's account while no gateway does.
    pub async fn gateway_sender(&self) -> Sender {
        self.chain.sender(&self.key).await
    }

    /// Somebody with tokens, who lets Permit2 move them.
    pub async fn payer(&self, name: &str) -> Payer {
        let payer = self.poor(name, PURSE).await;
        let call = TestToken::approveCall { spender: PERMIT2, value: U256::MAX };
        payer.sender.send("approve Permit2", payer.token, &call).await.unwrap();
        payer
    }

    /// Somebody with so many tokens.
    pub async fn poor(&self, name: &str, tokens: u64) -> Payer {
        let sender = self.chain.sender(&self.chain.actor(name).await).await;
        let token = self.ledger.parts().at.token;
        let payer = Payer {
            key: sender.key().clone(),
            sender,
            token,
            receiver: account(self.key.address()),
            ledger: self.ledger.clone(),
        };
        self.mint(payer.account(), tokens).await;
        payer
    }

    pub async fn mint(&self, to: Address, tokens: u64) {
        let minter = self.chain.sender(&self.chain.actor("minter").await).await;
        let call = TestToken::mintCall { to, amount: U256::from(tokens) };
        minter.send("mint", self.ledger.parts().at.token, &call).await.unwrap();
    }

    pub async fn wallet(&self, account: Address) -> u64 {
        u64::try_from(self.ledger.holdings(account).await.unwrap().wallet.0).unwrap()
    }

    /// A payer's account in the books.
    pub fn account(&self, payer: &Payer) -> String {
        format!("eip155:{}:{}", self.chain.client.chain_id(), payer.address())
    }

    pub async fn books(&self, payer: &Payer) -> Books {
        self.accounts.books(&self.account(payer)).await.unwrap()
    }

    pub async fn charges(&self) -> Vec<Charge> {
        let period = Period { from_ms: 0, until_ms: i64::MAX, account: None, key_id: None };
        self.accounts.charges(&period, 0).await.unwrap()
    }

    /// What was credited to everyone.
    pub async fn all_credits(&self) -> u64 {
        let mut sum = 0;
        for account in self.accounts.accounts().await.unwrap() {
            let books = self.accounts.books(&account.name).await.unwrap();
            assert!(books.agree(), "{books:?}");
            sum += books.credited.0;
        }
        sum
    }

    /// Waits until a payment is settled.
    pub async fn settled(&self, id: &str) {
        while self.accounts.caller_payment(id).await.unwrap().unwrap().stage != Stage::Settled {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the provider has begun so many answers.
    pub async fn started(&self, count: u32) {
        while self.provider.node.started.load(SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn books() -> (tempfile::TempDir, String) {
    let home = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", home.path().join("books.sqlite").display());
    (home, url)
}

pub struct Gateway {
    pub url: String,
    account: Address,
    client: reqwest::Client,
    alive: Weak<Callers>,
    runtime: Option<Runtime>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Gateway {
    pub fn account(&self) -> Address {
        self.account
    }

    /// Ends it as a signal that cannot be caught does: whatever it is doing is not done.
    pub async fn dies(mut self) {
        self.runtime.take().unwrap().shutdown_background();
        // Its account can be used again then.
        while self.alive.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn send(
        &self,
        body: &Value,
        payment: Option<String>,
        headers: &[(&str, &str)],
    ) -> reqwest::Response {
        let mut request = self.client.post(format!("{}/v1/chat/completions", self.url)).json(body);
        if let Some(payment) = payment {
            request = request.header("PAYMENT-SIGNATURE", payment);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub async fn ask(&self, body: &Value, payment: Option<&Authorization>) -> reqwest::Response {
        self.send(body, payment.map(header), &[]).await
    }

    /// Asks until a provider that failed is asked again.
    pub async fn until_answered(&self, body: &Value, payment: &Authorization) -> reqwest::Response {
        loop {
            let answer = self.ask(body, Some(payment)).await;
            if answer.status() == 200 {
                return answer;
            }
            assert!([409, 502, 503].contains(&answer.status().as_u16()), "{answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A payment as clients send it.
pub fn header(signed: &Authorization) -> String {
    let accepted = json!({
        "scheme": signed.scheme.name(), "network": format!("eip155:{}", signed.chain_id), "asset": signed.token,
        "amount": signed.amount.to_string(), "payTo": signed.pay_to, "maxTimeoutSeconds": 1800,
    });
    let (after, before) = (signed.valid_after.to_string(), signed.valid_before.to_string());
    let payload = match signed.scheme {
        Scheme::Exact => json!({"signature": signed.signature, "authorization": {
            "from": signed.payer, "to": signed.pay_to, "value": signed.amount.to_string(), "validAfter": after,
            "validBefore": before, "nonce": signed.nonce,
        }}),
        Scheme::Upto { spender, facilitator } => {
            json!({"signature": signed.signature, "permit2Authorization": {
                "permitted": {"token": signed.token, "amount": signed.amount.to_string()}, "from": signed.payer,
                "spender": spender, "nonce": U256::from_be_bytes(*signed.nonce.as_bytes()).to_string(), "deadline": before,
                "witness": {"to": signed.pay_to, "facilitator": facilitator, "validAfter": after},
            }})
        }
    };
    STANDARD.encode(json!({"x402Version": 2, "accepted": accepted, "payload": payload}).to_string())
}

/// Somebody who pays.
pub struct Payer {
    key: PrivateKeySigner,
    sender: Sender,
    token: Address,
    receiver: AccountAddress,
    ledger: Ledger,
}

impl Payer {
    pub fn account(&self) -> Address {
        self.key.address()
    }

    pub fn address(&self) -> AccountAddress {
        account(self.key.address())
    }

    pub fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    pub fn exact(&self, amount: u64) -> Authorization {
        self.authorization(Scheme::Exact, amount)
    }

    pub fn upto(&self, amount: u64) -> Authorization {
        self.authorization(Scheme::Upto { spender: account(UPTO_PROXY), facilitator: self.receiver }, amount)
    }

    fn authorization(&self, scheme: Scheme, amount: u64) -> Authorization {
        let mut authorization = Authorization {
            scheme,
            chain_id: self.ledger.client().chain_id(),
            token: account(self.token),
            payer: self.address(),
            pay_to: self.receiver,
            amount: amount.into(),
            nonce: Hash::from_bytes(B256::random().0),
            valid_after: 0,
            valid_before: self.now() + 1_800,
            signature: SignatureBytes::from_bytes([0; 65]),
        };
        self.sign(&mut authorization);
        authorization
    }

    fn signature(&self, hash: B256) -> SignatureBytes {
        SignatureBytes::from_bytes(self.key.sign_hash_sync(&hash).unwrap().as_bytes())
    }

    pub fn sign(&self, authorization: &mut Authorization) {
        let domain = token_domain(self.ledger.client().chain_id(), self.token, TOKEN.0, TOKEN.1);
        authorization.signature = self.signature(signing_hash(authorization, &domain));
    }

    pub fn header(&self, authorization: &Authorization) -> String {
        header(authorization)
    }

    pub async fn sends_away(&self, amount: u64) {
        let call = TestToken::transferCall { to: Address::repeat_byte(0x66), value: U256::from(amount) };
        self.sender.send("away", self.token, &call).await.unwrap();
    }

    /// Sends the transaction that the gateway would send.
    pub async fn moves_itself(&self, payment: &Authorization) {
        self.ledger.move_authorized(&self.sender, "itself", payment, payment.amount).await.unwrap();
    }

    /// Uses a nonce of Permit2 up.
    pub async fn cancels(&self, payment: &Authorization) {
        let nonce = U256::from_be_bytes(*payment.nonce.as_bytes());
        let mask = U256::from(1) << usize::from(nonce.byte(0));
        let call = TestPermit2::invalidateUnorderedNoncesCall { wordPos: nonce >> 8, mask };
        self.sender.send("cancel", PERMIT2, &call).await.unwrap();
    }

    /// Uses a nonce of the token for a payment to itself.
    pub async fn uses_nonce_for_itself(&self, payment: &Authorization) {
        let (own, nonce) = (self.account(), B256::from(*payment.nonce.as_bytes()));
        let (after, before) = (U256::ZERO, U256::from(payment.valid_before));
        let value = U256::from(payment.amount);
        let typed = ReceiveWithAuthorization {
            from: own,
            to: own,
            value,
            validAfter: after,
            validBefore: before,
            nonce,
        };
        let domain = token_domain(self.ledger.client().chain_id(), self.token, TOKEN.0, TOKEN.1);
        let signature = self.signature(typed.eip712_signing_hash(&domain));
        let call = TestToken::receiveWithAuthorizationCall {
            from: own,
            to: own,
            value,
            validAfter: after,
            validBefore: before,
            nonce,
            signature: Bytes::copy_from_slice(signature.as_bytes()),
        };
        self.sender.send("to itself", self.token, &call).await.unwrap();
    }
}

fn decoded(text: &str) -> Value {
    serde_json::from_slice(&STANDARD.decode(text).unwrap()).unwrap()
}

/// JSON in a header.
pub fn said(response: &reqwest::Response, header: &str) -> Value {
    decoded(response.headers()[header].to_str().unwrap())
}

/// What a response says came of its payment.
pub fn settled(response: &reqwest::Response) -> Value {
    said(response, "payment-response")
}

/// The code of an error.
pub async fn code(response: reqwest::Response) -> String {
    let body: Value = response.json().await.unwrap();
    body["error"]["code"].as_str().unwrap().to_owned()
}

/// The text of a stream, and what its comment says came of its payment.
pub fn streamed(text: &str) -> (String, Option<Value>) {
    let chunks = text.lines().filter_map(|line| line.strip_prefix("data: {"));
    let chunks = chunks.map(|json| serde_json::from_str::<Value>(&format!("{{{json}")).unwrap());
    let told =
        chunks.filter_map(|c| c["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
    let comment = text.lines().find_map(|line| line.strip_prefix(": payment-response "));
    (told, comment.map(decoded))
}
