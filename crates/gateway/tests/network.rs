//! The gateway over providers that answer, fail, hesitate and lie: what clients see, and what is charged.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod books;
mod providers;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use assay_api::{ApiKey, Caller, Event, Inference as _, Order, Refusal};
use assay_core::consent::Consent;
use assay_core::id::{ModelRoot, ReceiptId};
use assay_core::request::{Message, Prompt, Request, Role, Sampling};
use assay_gateway::accounts::{Accounts, Limits, Period, Secret};
use assay_gateway::network::{Network, NetworkOptions};
use assay_gateway::queue::QueueOptions;
use books::Books;
use providers::{CACHED, Manner, Provider, model};

/// 100 dollars for a million tokens: 10 read and 5 written cost 1500 millionths.
const PRICE: Option<&str> = Some("100/100");
const FEE: u64 = 1_500;

const QUICK: NetworkOptions = NetworkOptions {
    patience: Duration::from_millis(300),
    silence: Duration::from_secs(10),
    stopped: Duration::from_secs(10),
    attempts_max: 3,
    queue: QueueOptions { running_max: 64, waiting_max: 64, wait: Duration::from_secs(10) },
};

fn order(text: &str, caller: Caller) -> Order {
    let prompt = Prompt::Chat { messages: vec![Message::text(Role::User, text)], tools: vec![] };
    let request = Request {
        model: model(),
        prompt,
        sampling: Sampling::GREEDY,
        max_tokens: 8,
        stop: vec![],
        choice: 0,
        guide: None,
        logprobs: None,
        audit: Consent::Given,
    };
    Order { request, nonce: None, request_id: "req".into(), caller }
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// The text, and the receipt.
    Whole(String, ReceiptId),
    /// What came before, and why no more came.
    Cut(String, &'static str),
}

async fn told(network: &Network, order: Order) -> Result<Told, Refusal> {
    let mut generation = network.generate(order).await?;
    let mut all = String::new();
    while let Some(event) = generation.events.recv().await {
        match event {
            Event::Text { text, .. } => all.push_str(&text),
            Event::End { record, .. } => {
                let id = record.receipt.receipt.id();
                // The name that the client heard first finds the record, whoever made it.
                let found = network.receipt(generation.receipt_id).await?.unwrap();
                assert_eq!(found.receipt().receipt.id(), id);
                return Ok(Told::Whole(all, id));
            }
            Event::Failed(refusal) => return Ok(Told::Cut(all, refusal.code())),
            other => panic!("{other:?}"),
        }
    }
    panic!("the answer just stopped after {all:?}")
}

async fn network(accounts: Option<Accounts>, providers: &[&Provider]) -> Network {
    network_with(QUICK, accounts, providers).await
}

async fn network_with(
    options: NetworkOptions,
    accounts: Option<Accounts>,
    providers: &[&Provider],
) -> Network {
    let network = Network::new(accounts, options);
    let endpoints: Vec<String> = providers.iter().map(|p| p.url.clone()).collect();
    assert_eq!(network.refresh(&endpoints).await, []);
    network
}

fn is_whole(told: &Result<Told, Refusal>) -> bool {
    matches!(told, Ok(Told::Whole(text, _)) if text == "Hello")
}

impl Books {
    fn url(&self) -> String {
        format!("sqlite:{}", self.folder.path().join("books.sqlite").display())
    }

    fn caller(&self) -> Caller {
        Caller { key: Some(ApiKey::new(self.secret.reveal())), ..Caller::default() }
    }

    /// Balance, held, charged.
    async fn sums(&self) -> (u64, u64, u64) {
        let sums = self.accounts.books("a").await.unwrap();
        assert!(sums.agree(), "{sums:?}");
        (sums.balance.0, sums.held.0, sums.charged.0)
    }

    /// Waits until nothing is held: what a client left behind is released by its own task.
    async fn settled(&self) -> (u64, u64, u64) {
        loop {
            let sums = self.sums().await;
            if sums.1 == 0 {
                return sums;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn an_answer_is_given_and_charged() {
    let provider = Provider::start(Manner::Honest, PRICE).await;
    let books = Books::with(1_000_000, Limits::default()).await;
    let network = network(Some(books.accounts.clone()), &[&provider]).await;
    let Ok(Told::Whole(text, receipt)) = told(&network, order("hi", books.caller())).await else { panic!() };
    assert_eq!(text, "Hello");
    assert_eq!(books.sums().await, (1_000_000 - FEE, 0, FEE));
    let period = Period { from_ms: 0, until_ms: i64::MAX, account: None, key_id: None };
    let charges = books.accounts.charges(&period, 0).await.unwrap();
    assert_eq!(charges[0].answer.receipt, receipt.to_string());
    assert_eq!(charges[0].answer.provider, provider.node.address().to_string());
    assert_eq!((charges[0].answer.prompt_tokens, charges[0].answer.completion_tokens), (10, 5));
    assert!(network.receipt(receipt).await.unwrap().is_some());
    let cards = network.models();
    assert_eq!((cards.len(), cards[0].id.as_str(), cards[0].root), (1, "org/model", model()));
}

/// What a provider was spared is its word alone: it is passed on as far as it can be true, and an answer that is told again says nothing of it.
#[tokio::test]
async fn what_a_provider_was_spared_is_passed_on() {
    for (manner, expected) in [(Manner::Honest, CACHED), (Manner::Boasts, 10)] {
        let provider = Provider::start(manner, PRICE).await;
        let network = network(None, &[&provider]).await;
        let mut generation = network.generate(order("hi", Caller::default())).await.unwrap();
        loop {
            match generation.events.recv().await.unwrap() {
                Event::End { cached_tokens, usage, .. } => {
                    assert_eq!((cached_tokens, usage.prompt_tokens), (expected, 10));
                    break;
                }
                Event::Failed(refusal) => panic!("{refusal}"),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn failures_before_the_first_word_are_not_seen() {
    for manner in [Manner::Busy, Manner::Silent] {
        let good = Provider::start(Manner::Honest, PRICE).await;
        let bad = Provider::before(&good, manner, PRICE).await;
        let books = Books::with(1_000_000, Limits::default()).await;
        let network = network(Some(books.accounts.clone()), &[&bad, &good]).await;
        for _ in 0..4 {
            assert!(is_whole(&told(&network, order("hi", books.caller())).await), "{manner:?}");
        }
        assert_eq!(books.settled().await, (1_000_000 - 4 * FEE, 0, 4 * FEE), "{manner:?}");
    }
    // One that is gone without a word.
    let good = Provider::start(Manner::Honest, PRICE).await;
    let dead = Provider::before(&good, Manner::Honest, PRICE).await;
    let network = network(None, &[&dead, &good]).await;
    dead.dies().await;
    for _ in 0..4 {
        assert!(is_whole(&told(&network, order("hi", Caller::default())).await));
    }
    let standing = |p: &Provider| {
        let known = network.providers().into_iter().find(|(id, ..)| *id == p.node.address());
        known.unwrap().3
    };
    assert_eq!((standing(&good).failed, standing(&good).running), (0, 0));
    assert_eq!((standing(&dead).failed > 0, standing(&dead).running), (true, 0));
}

#[tokio::test]
async fn a_silent_provider_is_taken_back_when_another_answers() {
    let good = Provider::start(Manner::Honest, None).await;
    let silent = Provider::before(&good, Manner::Silent, None).await;
    let network = network(None, &[&silent, &good]).await;
    assert!(is_whole(&told(&network, order("hi", Caller::default())).await));
    assert_eq!((silent.node.started.load(SeqCst), good.node.started.load(SeqCst)), (1, 1));
    while !silent.node.cancelled.load(SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_breaks_off_or_lies_costs_nothing() {
    for (manner, before) in [
        (Manner::BreaksOff, "Hel"),
        (Manner::OtherText, "Hello"),
        (Manner::Padded, "Hello"),
        (Manner::CutsShort, "Hello"),
        (Manner::EndsEarly, "Hello"),
        (Manner::GoesOn, "Hello"),
        (Manner::OtherRequest, "Hello"),
        (Manner::OtherKey, "Hello"),
    ] {
        let provider = Provider::start(manner, PRICE).await;
        let books = Books::with(1_000_000, Limits::default()).await;
        let network = network(Some(books.accounts.clone()), &[&provider]).await;
        let told = told(&network, order("hi", books.caller())).await.unwrap();
        assert_eq!(told, Told::Cut(before.into(), "provider_lost"), "{manner:?}");
        assert_eq!(books.settled().await, (1_000_000, 0, 0), "{manner:?}");
    }
}

/// Which ids end an answer stands under the model's root: any provider can show it, and what none of them shows is not known.
#[tokio::test]
async fn where_an_answer_ends_is_shown_by_any_provider_of_its_model() {
    let hides = Provider::start(Manner::EndsEarlyAndHides, PRICE).await;
    let alone = network(None, &[&hides]).await;
    assert!(is_whole(&told(&alone, order("hi", Caller::default())).await));
    let shows = Provider::start(Manner::Busy, PRICE).await;
    let both = network(None, &[&hides, &shows]).await;
    let cut = told(&both, order("hi", Caller::default())).await.unwrap();
    assert_eq!(cut, Told::Cut("Hello".into(), "provider_lost"));
    // Another one goes on with it.
    shows.node.becomes(Manner::Honest);
    let honest = network(None, &[&hides, &shows]).await;
    assert!(is_whole(&told(&honest, order("hi", Caller::default())).await));
}

#[tokio::test]
async fn an_answer_that_is_taken_back_costs_nothing_and_is_cancelled() {
    let provider = Provider::start(Manner::Endless, PRICE).await;
    let books = Books::with(1_000_000, Limits::default()).await;
    let network = network(Some(books.accounts.clone()), &[&provider]).await;
    let mut generation = network.generate(order("hi", books.caller())).await.unwrap();
    assert!(generation.events.recv().await.is_some());
    assert!(books.sums().await.1 > 0);
    drop(generation);
    assert_eq!(books.settled().await, (1_000_000, 0, 0));
    while !provider.node.cancelled.load(SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_request_that_comes_again_is_answered_and_charged_once() {
    let provider = Provider::start(Manner::Honest, PRICE).await;
    let books = Books::with(1_000_000, Limits::default()).await;
    let network = network(Some(books.accounts.clone()), &[&provider]).await;
    let first = told(&network, order("hi", books.caller())).await.unwrap();
    let again = || Caller { again: true, ..books.caller() };
    assert_eq!(told(&network, order("hi", again())).await.unwrap(), first);
    assert_eq!(provider.node.started.load(SeqCst), 1);
    assert_eq!(books.sums().await.2, FEE);
    assert!(is_whole(&told(&network, order("something else", again())).await));
    assert_eq!(books.sums().await.2, 2 * FEE);
}

/// What was charged is told again by whoever has the books: the gateway that lives next, and another one beside it.
#[tokio::test]
async fn a_request_that_comes_again_after_its_gateway_was_killed_is_charged_once() {
    let provider = Provider::start(Manner::Honest, PRICE).await;
    let books = Books::with(1_000_000, Limits::default()).await;
    let (url, order_of) = (books.url(), |again| order("hi", Caller { again, ..books.caller() }));
    // The first one is ended between the charge and the end of the answer: nobody reads further than the text.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (killed, at) = (url.clone(), provider.url.clone());
    let first = order_of(false);
    let begun = runtime.spawn(async move {
        let network = Network::new(Some(Accounts::open(&killed).await.unwrap()), QUICK);
        assert_eq!(network.refresh(&[at]).await, []);
        let generation = network.generate(first).await.unwrap();
        (network, generation)
    });
    let (network, generation) = begun.await.unwrap();
    while books.sums().await.2 == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    runtime.shutdown_background();
    let receipt = generation.receipt_id;
    drop((network, generation));

    let gateway = async || {
        let network = Network::new(Some(Accounts::open(&url).await.unwrap()), QUICK);
        assert_eq!(network.refresh(std::slice::from_ref(&provider.url)).await, []);
        network
    };
    let (next, beside) = (gateway().await, gateway().await);
    for network in [&next, &beside] {
        let mut again = network.generate(order_of(true)).await.unwrap();
        let mut told = String::new();
        let record = loop {
            match again.events.recv().await.unwrap() {
                Event::Text { text, .. } => told.push_str(&text),
                Event::End { record, .. } => break record,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            (told.as_str(), again.receipt_id, record.receipt.receipt.id()),
            ("Hello", receipt, receipt)
        );
        assert_eq!(record.broken_bindings(), []);
    }
    assert_eq!(provider.node.started.load(SeqCst), 1);
    assert_eq!(books.settled().await, (1_000_000 - FEE, 0, FEE));
    // Who does not say that it asks again is answered again, and pays.
    assert!(is_whole(&told(&next, order_of(false)).await));
    assert_eq!(books.settled().await, (1_000_000 - 2 * FEE, 0, 2 * FEE));
}

#[tokio::test]
async fn who_may_not_ask_is_told_why() {
    let provider = Provider::start(Manner::Honest, PRICE).await;
    let books = Books::with(2_000, Limits { at_once: Some(1), ..Limits::default() }).await;
    let network = network(Some(books.accounts.clone()), &[&provider]).await;
    let code = async |order: Order| told(&network, order).await.unwrap_err().code();
    assert_eq!(code(order("hi", Caller::default())).await, "invalid_api_key");
    let unknown = Caller { key: Some(ApiKey::new(Secret::draw().reveal())), ..Caller::default() };
    assert_eq!(code(order("hi", unknown)).await, "invalid_api_key");
    let garbage = Caller { key: Some(ApiKey::new("sk-other")), ..Caller::default() };
    assert_eq!(code(order("hi", garbage)).await, "invalid_api_key");
    // The most that it can cost is beyond the balance.
    assert_eq!(code(order("hi", books.caller())).await, "insufficient_quota");
    let cheap = Caller { ceiling: Some("1/1".parse().unwrap()), ..books.caller() };
    assert_eq!(code(order("hi", cheap)).await, "no_provider");
    let mut elsewhere = order("hi", books.caller());
    elsewhere.request.model = ModelRoot::ZERO;
    assert_eq!(code(elsewhere).await, "model_not_found");
    assert_eq!(provider.node.started.load(SeqCst), 0);
    assert_eq!(books.sums().await, (2_000, 0, 0));
}

#[tokio::test]
async fn a_request_that_nobody_can_answer_is_refused_once() {
    let providers =
        [Provider::start(Manner::Refuses, PRICE).await, Provider::start(Manner::Refuses, PRICE).await];
    let books = Books::with(1_000_000, Limits::default()).await;
    let network = network(Some(books.accounts.clone()), &[&providers[0], &providers[1]]).await;
    let refused = told(&network, order("hi", books.caller())).await.unwrap_err();
    assert_eq!(refused, Refusal::ContextExceeded { prompt: 9, window: 1 });
    // It is nobody's fault.
    assert!(network.providers().iter().all(|(.., standing)| standing.failed == 0));
    assert_eq!(books.settled().await, (1_000_000, 0, 0));
}

#[tokio::test]
async fn who_finds_everyone_busy_waits_and_is_refused_in_the_end() {
    let provider = Provider::start(Manner::Busy, PRICE).await;
    let books = Books::with(1_000_000, Limits::default()).await;
    let short = QueueOptions { wait: Duration::from_millis(1), ..QUICK.queue };
    let options = NetworkOptions { queue: short, ..QUICK };
    let network = network_with(options, Some(books.accounts.clone()), &[&provider]).await;
    let refused = told(&network, order("hi", books.caller())).await.unwrap_err();
    assert_eq!(refused, Refusal::Busy { retry_after_s: 7 });
    assert_eq!(books.settled().await, (1_000_000, 0, 0));
    // One that becomes free in time answers.
    let network = network_with(QUICK, Some(books.accounts.clone()), &[&provider]).await;
    let asked = told(&network, order("hi", books.caller()));
    let frees = async {
        while network.load().waiting == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        provider.node.becomes(Manner::Honest);
    };
    let (answer, ()) = tokio::join!(asked, frees);
    assert!(is_whole(&answer));
    assert_eq!(books.settled().await, (1_000_000 - FEE, 0, FEE));
    let standing = network.providers()[0].3;
    assert_eq!((standing.failed, standing.running), (0, 0));
}

#[tokio::test]
async fn another_provider_goes_on_where_one_breaks_off() {
    for manner in [
        Manner::BreaksOff,
        Manner::OtherText,
        Manner::Padded,
        Manner::CutsShort,
        Manner::OtherRequest,
        Manner::OtherKey,
    ] {
        let good = Provider::start(Manner::Honest, PRICE).await;
        let bad = Provider::before(&good, manner, PRICE).await;
        let books = Books::with(1_000_000, Limits::default()).await;
        let network = network(Some(books.accounts.clone()), &[&bad, &good]).await;
        assert!(is_whole(&told(&network, order("hi", books.caller())).await), "{manner:?}");
        let started = (bad.node.started.load(SeqCst), good.node.started.load(SeqCst));
        assert_eq!(started, (1, 1), "{manner:?}");
        // Whoever broke off is not paid; whoever went on is, for all of it.
        assert_eq!(books.settled().await, (1_000_000 - FEE, 0, FEE), "{manner:?}");
    }
}

#[tokio::test]
async fn another_answer_is_no_continuation() {
    let other = Provider::start(Manner::Another, PRICE).await;
    let bad = Provider::before(&other, Manner::BreaksOff, PRICE).await;
    let books = Books::with(1_000_000, Limits::default()).await;
    let network = network(Some(books.accounts.clone()), &[&bad, &other]).await;
    let told = told(&network, order("hi", books.caller())).await.unwrap();
    assert_eq!(told, Told::Cut("Hel".into(), "provider_lost"));
    assert_eq!(books.settled().await, (1_000_000, 0, 0));
}

#[tokio::test]
async fn a_provider_that_was_started_again_is_asked_with_its_new_key() {
    let mut provider = Provider::start(Manner::Honest, None).await;
    let network = network(None, &[&provider]).await;
    assert!(is_whole(&told(&network, order("hi", Caller::default())).await));
    provider.dies().await;
    provider.comes_back().await;
    assert!(is_whole(&told(&network, order("hi", Caller::default())).await));
    let prompt = Prompt::Text("x".into());
    assert_eq!(network.count_tokens(model(), prompt).await, Ok(10));
}
