//! Verification classes over providers that answer, fail and lie: who is asked, what holds, and what is charged.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod books;
mod providers;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use assay_api::{ApiKey, Caller, Class, Event, Generation, Inference as _, Order, Refusal};
use assay_core::answer::AnswerRecord;
use assay_core::id::ReceiptId;
use assay_core::request::{Message, Prompt, Request, Role, Sampling};
use assay_gateway::accounts::{Accounts, Limits, MicroUsd, Period, Secret};
use assay_gateway::network::{Network, NetworkOptions};
use assay_gateway::queue::QueueOptions;
use books::Books;
use providers::{Manner, Provider, model};

/// 100 dollars for a million tokens: 10 read and 5 written cost 1500 millionths.
const PRICE: Option<&str> = Some("100/100");
const FEE: u64 = 1_500;
const CREDIT: u64 = 1_000_000;

const QUICK: NetworkOptions = NetworkOptions {
    patience: Duration::from_millis(300),
    silence: Duration::from_secs(10),
    stopped: Duration::from_secs(10),
    attempts_max: 3,
    queue: QueueOptions { running_max: 64, waiting_max: 64, wait: Duration::from_secs(10) },
};

struct Gateway {
    network: Network,
    accounts: Accounts,
    secret: Secret,
    folder: tempfile::TempDir,
}

/// What a client heard.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Whole(String, ReceiptId),
    Cut(String, &'static str),
}

impl Gateway {
    async fn over(providers: &[&Provider]) -> Gateway {
        Gateway::with(QUICK, providers).await
    }

    async fn with(options: NetworkOptions, providers: &[&Provider]) -> Gateway {
        let Books { folder, accounts, secret } = Books::with(CREDIT, Limits::default()).await;
        let network = Network::new(Some(accounts.clone()), options).keeping(folder.path().join("differing"));
        let endpoints: Vec<String> = providers.iter().map(|p| p.url.clone()).collect();
        assert_eq!(network.refresh(&endpoints).await, []);
        Gateway { network, accounts, secret, folder }
    }

    fn order(&self, class: Class) -> Order {
        let messages = vec![Message::text(Role::User, "hi")];
        let request = Request {
            model: model(),
            prompt: Prompt::Chat { messages, tools: vec![] },
            sampling: Sampling::GREEDY,
            max_tokens: 8,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: None,
            audit: class.consent(),
        };
        let key = Some(ApiKey::new(self.secret.reveal()));
        let caller = Caller { key, class, ..Caller::default() };
        Order { request, nonce: None, request_id: "req".into(), caller }
    }

    async fn ask(&self, class: Class) -> Result<(Generation, Told), Refusal> {
        self.ask_for(self.order(class)).await
    }

    async fn ask_for(&self, order: Order) -> Result<(Generation, Told), Refusal> {
        let mut generation = self.network.generate(order).await?;
        let mut all = String::new();
        while let Some(event) = generation.events.recv().await {
            match event {
                Event::Text { text, .. } => all.push_str(&text),
                Event::End { record, .. } => {
                    return Ok((generation, Told::Whole(all, record.receipt.receipt.id())));
                }
                Event::Failed(refusal) => return Ok((generation, Told::Cut(all, refusal.code()))),
                other => panic!("{other:?}"),
            }
        }
        panic!("the answer just stopped after {all:?}")
    }

    async fn refused(&self, class: Class) -> Refusal {
        self.ask(class).await.err().unwrap()
    }

    /// Balance and what was charged, when nothing is held any more.
    async fn settled(&self) -> (u64, u64) {
        loop {
            let sums = self.accounts.books("a").await.unwrap();
            assert!(sums.agree(), "{sums:?}");
            if sums.held.0 == 0 {
                return (sums.balance.0, sums.charged.0);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn started(providers: &[&Provider]) -> Vec<u32> {
    providers.iter().map(|p| p.node.started.load(SeqCst)).collect()
}

/// The records that a gateway kept, by their receipts.
fn kept(folder: &Path) -> Vec<AnswerRecord> {
    let files = std::fs::read_dir(folder.join("differing")).unwrap();
    files.map(|file| serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn two_providers_that_agree_are_both_paid() {
    let [one, two] =
        [Provider::start(Manner::Honest, PRICE).await, Provider::start(Manner::Honest, PRICE).await];
    let gateway = Gateway::over(&[&one, &two]).await;
    let (generation, told) = gateway.ask(Class::Full).await.unwrap();
    assert_eq!(told, Told::Whole("Hello".into(), generation.receipt_id));
    let source = generation.source.unwrap();
    let second = source.second.unwrap();
    assert_eq!(source.class, Class::Full);
    assert_eq!(
        BTreeSet::from([source.provider, second.provider]),
        BTreeSet::from([one.node.address(), two.node.address()])
    );
    assert_eq!(second.price.map(|price| price.to_string()).as_deref(), Some("100.00/100.00"));
    assert_eq!(started(&[&one, &two]), [1, 1]);
    assert_eq!(gateway.settled().await, (CREDIT - 2 * FEE, 2 * FEE));
    // Both records are found, by the names that the client heard.
    for id in [generation.receipt_id, second.receipt] {
        assert_eq!(gateway.network.receipt(id).await.unwrap().unwrap().receipt().receipt.id(), id);
    }
    // One charge for both, under the receipt of the one that was told.
    let period = Period { from_ms: 0, until_ms: i64::MAX, account: None, key_id: None };
    let charges = gateway.accounts.charges(&period, 0).await.unwrap();
    let named: Vec<&str> = charges.iter().map(|charge| charge.answer.receipt.as_str()).collect();
    assert_eq!(named, [generation.receipt_id.to_string()]);
    assert!(gateway.network.providers().iter().all(|(.., standing)| standing.running == 0));
}

#[tokio::test]
async fn the_second_is_never_the_first() {
    let one = Provider::start(Manner::Honest, PRICE).await;
    let gateway = Gateway::over(&[&one]).await;
    let refusal = gateway.refused(Class::Full).await;
    assert_eq!((refusal.code(), refusal.status().as_u16()), ("no_second_provider", 503));
    assert_eq!((started(&[&one]), gateway.settled().await), (vec![0], (CREDIT, 0)));
    // Nor where the others are there and do not answer.
    let [gone, busy] =
        [Provider::start(Manner::Honest, PRICE).await, Provider::start(Manner::Busy, PRICE).await];
    let short = QueueOptions { wait: Duration::from_millis(1), ..QUICK.queue };
    let gateway = Gateway::with(NetworkOptions { queue: short, ..QUICK }, &[&one, &gone, &busy]).await;
    gone.dies().await;
    let refusal = gateway.refused(Class::Full).await;
    assert!(["no_second_provider", "busy"].contains(&refusal.code()), "{refusal:?}");
    assert_eq!(gateway.settled().await, (CREDIT, 0));
    assert!(gateway.network.providers().iter().all(|(.., standing)| standing.running == 0));
    // One sampled answer is still to be had.
    assert!(matches!(gateway.ask(Class::Sampled).await.unwrap().1, Told::Whole(..)));
}

#[tokio::test]
async fn a_second_that_becomes_free_in_time_executes() {
    let [one, two] =
        [Provider::start(Manner::Honest, PRICE).await, Provider::start(Manner::Busy, PRICE).await];
    let gateway = Gateway::over(&[&one, &two]).await;
    let frees = async {
        while one.node.started.load(SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        two.node.becomes(Manner::Honest);
    };
    let (answer, ()) = tokio::join!(gateway.ask(Class::Full), frees);
    assert!(matches!(answer.unwrap().1, Told::Whole(..)));
    assert_eq!(gateway.settled().await, (CREDIT - 2 * FEE, 2 * FEE));
}

#[tokio::test]
async fn different_answers_cost_nothing_and_are_kept() {
    // Other words, or the same words of another execution.
    for manner in [Manner::Another, Manner::OtherDigests] {
        let honest = Provider::start(Manner::Honest, PRICE).await;
        let other = Provider::start(manner, PRICE).await;
        let gateway = Gateway::over(&[&honest, &other]).await;
        let (generation, told) = gateway.ask(Class::Full).await.unwrap();
        let Told::Cut(_, code) = told else { panic!("{manner:?}: {told:?}") };
        assert_eq!(code, "answers_differ", "{manner:?}");
        assert_eq!(gateway.settled().await, (CREDIT, 0), "{manner:?}");
        let kept = kept(gateway.folder.path());
        let ids: BTreeSet<ReceiptId> = kept.iter().map(|record| record.receipt.receipt.id()).collect();
        let named = [generation.receipt_id, generation.source.unwrap().second.unwrap().receipt];
        assert_eq!(ids, BTreeSet::from(named), "{manner:?}");
        // Each is whole, so that it can be executed again and disputed.
        assert!(kept.iter().all(|record| record.broken_bindings().is_empty()));
    }
}

#[tokio::test]
async fn a_third_goes_on_where_one_of_two_breaks_off() {
    let [one, two] =
        [Provider::start(Manner::Honest, PRICE).await, Provider::start(Manner::Honest, PRICE).await];
    let bad = Provider::start(Manner::BreaksOff, PRICE).await;
    let gateway = Gateway::over(&[&bad, &one, &two]).await;
    // Whichever of the three are asked first, two that agree are found.
    for answers in 1..=3 {
        let (_, told) = gateway.ask(Class::Full).await.unwrap();
        assert!(matches!(&told, Told::Whole(text, _) if text == "Hello"), "{told:?}");
        assert_eq!(gateway.settled().await.1, answers * 2 * FEE);
    }
    // Without a third there is no second answer.
    let gateway = Gateway::over(&[&bad, &one]).await;
    match gateway.ask(Class::Full).await {
        Ok((_, Told::Cut(_, "provider_lost"))) => {}
        other => panic!("{:?}", other.map(|(_, told)| told)),
    }
    assert_eq!(gateway.settled().await, (CREDIT, 0));
}

#[tokio::test]
async fn an_answer_of_two_that_is_taken_back_costs_nothing() {
    let [one, two] =
        [Provider::start(Manner::Endless, PRICE).await, Provider::start(Manner::Endless, PRICE).await];
    let gateway = Gateway::over(&[&one, &two]).await;
    let mut generation = gateway.network.generate(gateway.order(Class::Full)).await.unwrap();
    assert!(generation.events.recv().await.is_some());
    drop(generation);
    assert_eq!(gateway.settled().await, (CREDIT, 0));
    for node in [&one.node, &two.node] {
        while !node.cancelled.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_after_the_first_is_over_has_its_answer() {
    let [one, two] =
        [Provider::start(Manner::Honest, PRICE).await, Provider::start(Manner::Honest, PRICE).await];
    let gateway = Gateway::over(&[&one, &two]).await;
    let mut generation = gateway.network.generate(gateway.order(Class::Full)).await.unwrap();
    let mut heard = String::new();
    while heard != "Hello" {
        let Some(Event::Text { text, .. }) = generation.events.recv().await else { panic!() };
        heard.push_str(&text);
    }
    generation.stop.ask();
    drop(generation);
    assert_eq!(gateway.settled().await, (CREDIT - 2 * FEE, 2 * FEE));
}

#[tokio::test]
async fn what_was_answered_twice_is_told_again_and_charged_once() {
    let [one, two] =
        [Provider::start(Manner::Honest, PRICE).await, Provider::start(Manner::Honest, PRICE).await];
    let gateway = Gateway::over(&[&one, &two]).await;
    let (first, told) = gateway.ask(Class::Full).await.unwrap();
    let again = |class| {
        let mut order = gateway.order(class);
        order.caller.again = true;
        order
    };
    let (second, retold) = gateway.ask_for(again(Class::Full)).await.unwrap();
    assert_eq!((first.receipt_id, told), (second.receipt_id, retold));
    assert_eq!(second.source, first.source, "the second execution, too");
    assert_eq!(gateway.settled().await, (CREDIT - 2 * FEE, 2 * FEE));
    // An answer of one provider is none of two, and the other way round.
    let (sampled, _) = gateway.ask_for(again(Class::Sampled)).await.unwrap();
    assert_ne!(sampled.receipt_id, first.receipt_id);
    assert_eq!(gateway.settled().await, (CREDIT - 3 * FEE, 3 * FEE));
}

#[tokio::test]
async fn a_balance_for_one_is_not_enough_for_two() {
    let [one, two] =
        [Provider::start(Manner::Honest, PRICE).await, Provider::start(Manner::Honest, PRICE).await];
    let gateway = Gateway::over(&[&one, &two]).await;
    // 2 bytes and 64 tokens of a template each for message and prompt, and 8 to write: 13 800 at the most, once.
    let most = 13_800;
    for (balance, enough) in [(2 * most - 1, false), (2 * most, true)] {
        let account = format!("with {balance}");
        gateway.accounts.credit(&account, MicroUsd(balance), &account, "", 0).await.unwrap();
        let (_, secret) = gateway.accounts.create_key(&account, "k", Limits::default(), 0).await.unwrap();
        let mut order = gateway.order(Class::Full);
        order.caller.key = Some(ApiKey::new(secret.reveal()));
        let asked = gateway.ask_for(order).await;
        match enough {
            true => assert!(matches!(asked.unwrap().1, Told::Whole(..))),
            false => assert_eq!(asked.err().unwrap().code(), "insufficient_quota"),
        }
    }
}

#[tokio::test]
async fn what_nobody_is_to_see_goes_to_those_that_take_it_at_their_price() {
    let public = Provider::start(Manner::Honest, PRICE).await;
    let gateway = Gateway::over(&[&public]).await;
    let refusal = gateway.refused(Class::None).await;
    assert_eq!((refusal.code(), started(&[&public])), ("no_provider", vec![0]));
    // 300 dollars instead of 100.
    let private = Provider::private("100/100", "300/300").await;
    let gateway = Gateway::over(&[&public, &private]).await;
    let (generation, told) = gateway.ask(Class::None).await.unwrap();
    assert!(matches!(told, Told::Whole(..)));
    let source = generation.source.unwrap();
    assert_eq!((source.provider, source.class), (private.node.address(), Class::None));
    assert_eq!(source.price.map(|price| price.to_string()).as_deref(), Some("300.00/300.00"));
    assert_eq!(gateway.settled().await, (CREDIT - 3 * FEE, 3 * FEE));
    let card = gateway.network.models().remove(0);
    assert_eq!(card.price_private.map(|price| price.to_string()).as_deref(), Some("300.00/300.00"));
    // A ceiling is held against the price that is asked.
    let mut order = gateway.order(Class::None);
    order.caller.ceiling = Some("200/200".parse().unwrap());
    assert_eq!(gateway.ask_for(order).await.err().unwrap().code(), "no_provider");
    // Who is free takes everything.
    let free = Provider::start(Manner::Honest, None).await;
    let gateway = Gateway::over(&[&public, &free]).await;
    let (generation, _) = gateway.ask(Class::None).await.unwrap();
    assert_eq!(generation.source.unwrap().provider, free.node.address());
    assert_eq!(gateway.settled().await, (CREDIT, 0));
}

#[tokio::test]
async fn an_answer_that_enters_no_lottery_is_not_called_sampled() {
    let provider = Provider::start(Manner::Honest, PRICE).await;
    let gateway = Gateway::over(&[&provider]).await;
    let (generation, told) = gateway.ask(Class::Sampled).await.unwrap();
    assert!(matches!(told, Told::Whole(..)));
    // It settles on no ledger.
    assert_eq!(generation.source.unwrap().class, Class::None);
}

#[tokio::test]
async fn a_provider_cannot_mark_a_request_private_that_its_client_did_not() {
    let provider = Provider::start(Manner::MarksPrivate, PRICE).await;
    let gateway = Gateway::over(&[&provider]).await;
    for class in [Class::Sampled, Class::Full] {
        let second = Provider::start(Manner::MarksPrivate, PRICE).await;
        let gateway = if class == Class::Full {
            Gateway::over(&[&provider, &second]).await
        } else {
            Gateway::over(&[&provider]).await
        };
        let (_, told) = gateway.ask(class).await.unwrap();
        assert_eq!(told, Told::Cut("Hello".into(), "provider_lost"), "{class}");
        assert_eq!(gateway.settled().await, (CREDIT, 0), "{class}");
    }
    // Where the client does withhold its consent, the record says what it said.
    let free = Provider::start(Manner::Honest, None).await;
    gateway.network.refresh(std::slice::from_ref(&free.url)).await;
    let (_, told) = gateway.ask(Class::None).await.unwrap();
    assert!(matches!(told, Told::Whole(..)));
}
