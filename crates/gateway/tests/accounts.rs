//! The books, on SQLite and on Postgres: the same laws hold on both.
#![allow(clippy::unwrap_used)]

mod postgres;

use std::sync::Arc;

use assay_gateway::accounts::{
    Accounts, AccountsError, Answered, Ask, Attempt, CSV_HEAD, Hold, KeyName, Limits, MicroUsd, Period,
    RETRY_WINDOW_MS, Refused, RequestKey, Reserved, Retried, Secret, SecretHash, Settled,
};
use postgres::Postgres;

const NOW: i64 = 1_800_000_000_000;
const MINUTE: i64 = 60_000;

async fn open(url: &str) -> Accounts {
    Accounts::open(url).await.unwrap()
}

/// A key of an account with this much on it.
async fn key(books: &Accounts, account: &str, balance: u64, limits: Limits) -> SecretHash {
    if balance > 0 {
        assert!(
            books.credit(account, MicroUsd(balance), &format!("first of {account}"), "", NOW).await.unwrap()
        );
    }
    books.create_key(account, "test", limits, NOW).await.unwrap().1.hash()
}

fn ask(secret: SecretHash, request: u8, amount: u64) -> Ask {
    Ask {
        key: KeyName::Secret(secret),
        request: RequestKey([request; 32]),
        amount: MicroUsd(amount),
        attempt: Attempt::First,
        now_ms: NOW,
        expires_ms: NOW + MINUTE,
    }
}

async fn held(books: &Accounts, ask: Ask) -> Result<Hold, Refused> {
    match books.reserve(ask).await {
        Ok(Reserved::Held(hold)) => Ok(hold),
        Err(AccountsError::Refused(refused)) => Err(refused),
        other => panic!("{other:?}"),
    }
}

fn answered(receipt: &str) -> Answered {
    Answered {
        receipt: receipt.into(),
        provider: "0x11".into(),
        model: "org/model".into(),
        prompt_tokens: 10,
        completion_tokens: 5,
    }
}

async fn agree(books: &Accounts, account: &str) {
    let sums = books.books(account).await.unwrap();
    assert!(sums.agree(), "{account}: {sums:?}");
}

/// Reserve, run, charge the actual, give back the rest; each end happens once.
async fn an_answer_costs_what_it_costs(url: String) {
    let books = open(&url).await;
    let secret = key(&books, "a", 1_000, Limits::default()).await;
    let hold = held(&books, ask(secret, 1, 700)).await.unwrap();
    assert_eq!(books.account("a").await.unwrap().unwrap().balance, MicroUsd(300));
    assert_eq!(
        held(&books, ask(secret, 2, 301)).await.unwrap_err(),
        Refused::Balance { balance: MicroUsd(300), needed: MicroUsd(301) }
    );
    agree(&books, "a").await;
    let charge = || books.charge(hold.id.clone(), MicroUsd(250), answered("r1"), Retried::Known, NOW);
    assert_eq!(charge().await.unwrap(), Settled::Now(MicroUsd(250)));
    assert_eq!(charge().await.unwrap(), Settled::Before(MicroUsd(250)));
    assert_eq!(books.release(hold.id.clone()).await.unwrap(), Settled::Before(MicroUsd(250)));
    assert_eq!(books.account("a").await.unwrap().unwrap().balance, MicroUsd(750));
    // What fails costs nothing, also when somebody charges it later.
    let failed = held(&books, ask(secret, 3, 750)).await.unwrap();
    assert_eq!(books.release(failed.id.clone()).await.unwrap(), Settled::Now(MicroUsd(0)));
    let late = books.charge(failed.id, MicroUsd(750), answered("r2"), Retried::Known, NOW).await.unwrap();
    assert_eq!(late, Settled::Before(MicroUsd(0)));
    // No more than was set aside, whatever the answer cost.
    let small = held(&books, ask(secret, 4, 10)).await.unwrap();
    let charged =
        books.charge(small.id, MicroUsd(u64::MAX), answered("r3"), Retried::Known, NOW).await.unwrap();
    assert_eq!(charged, Settled::Now(MicroUsd(10)));
    // Free answers are counted too.
    let free = held(&books, ask(secret, 5, 0)).await.unwrap();
    assert_eq!(
        books.charge(free.id, MicroUsd(0), answered("r4"), Retried::Known, NOW).await.unwrap(),
        Settled::Now(MicroUsd(0))
    );
    agree(&books, "a").await;
    assert_eq!(books.books("a").await.unwrap().charged, MicroUsd(260));
}

/// Two gateways over one database, and many requests at once: nobody spends what another has spent.
async fn two_gateways_never_spend_a_balance_twice(url: String) {
    let gateways = [open(&url).await, open(&url).await];
    let secret = key(&gateways[0], "shared", 1_000, Limits::default()).await;
    let second = key(&gateways[1], "shared", 0, Limits::default()).await;
    let tasks = (0..120).map(|i| {
        let books = gateways[i % 2].clone();
        let secret = if i % 3 == 0 { second } else { secret };
        tokio::spawn(async move { held(&books, ask(secret, 1, 100)).await })
    });
    let mut holds = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(hold) => holds.push(hold),
            Err(refused) => assert!(matches!(refused, Refused::Balance { .. }), "{refused}"),
        }
    }
    assert_eq!(holds.len(), 10);
    agree(&gateways[0], "shared").await;
    // Both gateways end the same holds at the same time: each ends once.
    let ends =
        holds.iter().flat_map(|hold| gateways.iter().map(move |books| (books.clone(), hold.id.clone())));
    let ends = ends.enumerate().map(|(i, (books, id))| {
        tokio::spawn(async move {
            if i % 3 == 0 {
                books.release(id).await.unwrap()
            } else {
                books.charge(id, MicroUsd(40), answered("r"), Retried::Known, NOW).await.unwrap()
            }
        })
    });
    let mut ended = 0;
    for end in ends.collect::<Vec<_>>() {
        ended += usize::from(matches!(end.await.unwrap(), Settled::Now(_)));
    }
    assert_eq!(ended, 10);
    agree(&gateways[1], "shared").await;
    assert_eq!(gateways[0].books("shared").await.unwrap().held, MicroUsd(0));
}

/// Random reservations, ends, expiries and credits from many tasks at once, over two gateways.
async fn no_unit_is_lost(url: String) {
    at_random(url, 1).await;
}

/// The same of large accounts, which SQLite's gateways give advances of.
async fn no_unit_of_much_is_lost(url: String) {
    at_random(url, 1_000_003).await;
}

/// Amounts are multiples of the unit.
async fn at_random(url: String, unit: u64) {
    let gateways = Arc::new([open(&url).await, open(&url).await]);
    let mut secrets = Vec::new();
    for account in ["a", "b", "c"] {
        for _ in 0..2 {
            secrets.push(key(&gateways[0], account, 0, Limits::default()).await);
        }
    }
    let secrets = Arc::new(secrets);
    let tasks = (0..12u64).map(|task| {
        let (gateways, secrets) = (Arc::clone(&gateways), Arc::clone(&secrets));
        tokio::spawn(async move {
            let mut state = task.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut draw = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let mut holds: Vec<Hold> = Vec::new();
            for step in 0..25 {
                let books = &gateways[draw(2) as usize];
                let secret = secrets[draw(6) as usize];
                match draw(6) {
                    0 => {
                        let account = ["a", "b", "c"][draw(3) as usize];
                        // Two tasks bring the same payment: it counts once.
                        let payment = format!("payment {} {step}", task / 2);
                        books
                            .credit(account, MicroUsd((1 + task / 2 * 100 + step) * unit), &payment, "", NOW)
                            .await
                            .unwrap();
                    }
                    1 | 2 => {
                        let mut asked = ask(secret, 1, draw(80) * unit);
                        asked.expires_ms = NOW + draw(3) as i64;
                        match held(books, asked).await {
                            Ok(hold) => holds.push(hold),
                            Err(refused) => assert!(matches!(refused, Refused::Balance { .. }), "{refused}"),
                        }
                    }
                    3 => {
                        if let Some(hold) = holds.pop() {
                            books
                                .charge(
                                    hold.id,
                                    MicroUsd(draw(100) * unit),
                                    answered("r"),
                                    Retried::Known,
                                    NOW,
                                )
                                .await
                                .unwrap();
                        }
                    }
                    4 => {
                        if let Some(hold) = holds.pop() {
                            books.release(hold.id).await.unwrap();
                        }
                    }
                    _ => {
                        books.expire(NOW).await.unwrap();
                    }
                }
                let sums = books.books(["a", "b", "c"][draw(3) as usize]).await.unwrap();
                assert!(sums.agree(), "task {task}, step {step}: {sums:?}");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for account in ["a", "b", "c"] {
        agree(&gateways[0], account).await;
    }
    // Whatever still runs ends with its time, and then nothing is set aside.
    for books in gateways.iter() {
        books.close().await.unwrap();
    }
    for books in gateways.iter() {
        books.expire(NOW + 24 * 60 * MINUTE).await.unwrap();
    }
    for account in ["a", "b", "c"] {
        let sums = gateways[0].books(account).await.unwrap();
        assert!(sums.agree() && sums.held == MicroUsd(0), "{account}: {sums:?}");
    }
}

/// A client that sends a request again, as the official ones do by themselves, pays once and has the answer of the first.
async fn a_retried_request_is_charged_once(url: String) {
    let books = open(&url).await;
    let secret = key(&books, "a", 1_000, Limits::default()).await;
    let hold = held(&books, ask(secret, 7, 100)).await.unwrap();
    let again = Ask { attempt: Attempt::Again, now_ms: NOW + 500, ..ask(secret, 7, 100) };
    // The first attempt has not been answered: the second runs, and the first is released by whoever ran it.
    let second = held(&books, again.clone()).await.unwrap();
    books.release(hold.id).await.unwrap();
    books.charge(second.id, MicroUsd(60), answered("r7"), Retried::Known, NOW + 1_000).await.unwrap();
    let Reserved::Answered { charge, told: None } = books.reserve(again.clone()).await.unwrap() else {
        panic!("it was answered")
    };
    assert_eq!((charge.amount, charge.answer.receipt.as_str()), (MicroUsd(60), "r7"));
    // Another request, another key, and a first attempt run and pay.
    assert!(held(&books, Ask { request: RequestKey([8; 32]), ..again.clone() }).await.is_ok());
    let other = key(&books, "a", 0, Limits::default()).await;
    assert!(held(&books, Ask { key: KeyName::Secret(other), ..again.clone() }).await.is_ok());
    assert!(held(&books, ask(secret, 7, 100)).await.is_ok());
    let late = Ask { now_ms: NOW + 1_001 + RETRY_WINDOW_MS, ..again };
    assert!(held(&books, late).await.is_ok());
    agree(&books, "a").await;
}

async fn keys_are_limited_and_revoked(url: String) {
    let books = open(&url).await;
    books.credit("a", MicroUsd(1_000_000), "p", "", NOW).await.unwrap();
    let limits = Limits { per_minute: Some(3), at_once: Some(2), per_day: Some(MicroUsd(500)) };
    let (listed, secret) = books.create_key("a", "limited", limits, NOW).await.unwrap();
    assert_eq!(books.keys(Some("a")).await.unwrap(), std::slice::from_ref(&listed));
    assert_eq!(books.key(secret.hash()).await.unwrap(), listed);
    let secret = secret.hash();
    let first = held(&books, ask(secret, 1, 200)).await.unwrap();
    let _second = held(&books, ask(secret, 2, 200)).await.unwrap();
    assert_eq!(held(&books, ask(secret, 3, 1)).await.unwrap_err(), Refused::AtOnce { most: 2 });
    books.charge(first.id, MicroUsd(50), answered("r"), Retried::Known, NOW).await.unwrap();
    // 50 are charged and 200 set aside.
    assert!(matches!(
        held(&books, ask(secret, 3, 251)).await.unwrap_err(),
        Refused::PerDay { spent: MicroUsd(250), .. }
    ));
    let third = held(&books, ask(secret, 3, 250)).await.unwrap();
    books.release(third.id).await.unwrap();
    assert_eq!(
        held(&books, ask(secret, 4, 1)).await.unwrap_err(),
        Refused::PerMinute { most: 3, wait_ms: 20_000 }
    );
    books.limit(&listed.id, Limits::default()).await.unwrap();
    held(&books, ask(secret, 4, 1)).await.unwrap();
    assert!(books.revoke(&listed.id, NOW).await.unwrap());
    assert!(!books.revoke(&listed.id, NOW).await.unwrap());
    assert_eq!(held(&books, ask(secret, 5, 1)).await.unwrap_err(), Refused::Revoked);
    assert!(matches!(books.key(secret).await, Err(AccountsError::Refused(Refused::Revoked))));
    assert_eq!(held(&books, ask(Secret::draw().hash(), 5, 1)).await.unwrap_err(), Refused::UnknownKey);
    for failed in [
        books.limit("key_none", Limits::default()).await.unwrap_err(),
        books.revoke("key_none", NOW).await.unwrap_err(),
    ] {
        assert_eq!(failed.code(), "key_unknown");
    }
    agree(&books, "a").await;
}

/// What was told is kept with its charge, by any gateway, as long as it may be asked for; what was stopped is not recognised.
async fn what_was_told_is_kept_for_a_while(url: String) {
    let books = open(&url).await;
    let secret = key(&books, "a", 10_000, Limits::default()).await;
    let told = |n: u8| vec![n; 5_000];
    for n in 1..=3 {
        let hold = held(&books, ask(secret, n, 100)).await.unwrap();
        let retried = if n == 3 { Retried::Anew } else { Retried::Told(told(n)) };
        books.charge(hold.id, MicroUsd(50), answered("r"), retried, NOW + i64::from(n)).await.unwrap();
    }
    drop(books);
    let books = open(&url).await;
    let again = |n, at_ms| Ask { attempt: Attempt::Again, now_ms: at_ms, ..ask(secret, n, 100) };
    for n in 1..=2 {
        let Reserved::Answered { told: kept, .. } = books.reserve(again(n, NOW + 10)).await.unwrap() else {
            panic!()
        };
        assert_eq!(kept, Some(told(n)));
    }
    assert!(held(&books, again(3, NOW + 10)).await.is_ok());
    // As others are kept, or the gateway looks after it, those go that nobody may ask for.
    let is_kept = async |n| match books.reserve(again(n, NOW + 10)).await.unwrap() {
        Reserved::Answered { told, .. } => told.is_some(),
        Reserved::Held(_) => panic!("it was charged"),
    };
    let hold = held(&books, ask(secret, 4, 100)).await.unwrap();
    let later = NOW + 2 + RETRY_WINDOW_MS;
    books.charge(hold.id, MicroUsd(50), answered("r"), Retried::Told(told(4)), later).await.unwrap();
    assert_eq!([is_kept(1).await, is_kept(2).await, is_kept(4).await], [false, true, true]);
    books.expire(later + 1).await.unwrap();
    assert_eq!([is_kept(2).await, is_kept(4).await], [false, true]);
    agree(&books, "a").await;
}

/// A gateway that died leaves holds; whoever lives gives them back when their time is over.
async fn what_a_dead_gateway_held_comes_back(url: String) {
    let dead = open(&url).await;
    let secret = key(&dead, "a", 100, Limits { at_once: Some(1), ..Limits::default() }).await;
    held(&dead, ask(secret, 1, 100)).await.unwrap();
    drop(dead);
    let books = open(&url).await;
    assert_eq!(books.expire(NOW + MINUTE - 1).await.unwrap(), 0);
    assert_eq!(books.expire(NOW + MINUTE).await.unwrap(), 1);
    assert_eq!(books.expire(NOW + MINUTE).await.unwrap(), 0);
    held(&books, ask(secret, 2, 100)).await.unwrap();
    agree(&books, "a").await;
}

async fn a_payment_counts_once(url: String) {
    let books = open(&url).await;
    assert!(books.credit("a", MicroUsd(5), "tx 1", "from chain", NOW).await.unwrap());
    assert!(!books.credit("a", MicroUsd(5), "tx 1", "again", NOW).await.unwrap());
    assert!(!books.credit("b", MicroUsd(5), "tx 1", "for another", NOW).await.unwrap());
    assert!(books.credit("a", MicroUsd(6), "tx 2", "", NOW).await.unwrap());
    assert_eq!(books.account("a").await.unwrap().unwrap().balance, MicroUsd(11));
    assert_eq!(books.credit("a", MicroUsd(0), "tx 3", "", NOW).await.unwrap_err().code(), "credit_amount");
    assert_eq!(books.credit("", MicroUsd(1), "tx 3", "", NOW).await.unwrap_err().code(), "accounts_name");
    let zero = Limits { at_once: Some(0), ..Limits::default() };
    assert_eq!(books.create_key("a", "k", zero, NOW).await.unwrap_err().code(), "limit_zero");
}

async fn usage_adds_up(url: String) {
    let books = open(&url).await;
    let secret = key(&books, "a", 1_000, Limits::default()).await;
    let other = key(&books, "b", 1_000, Limits::default()).await;
    for (i, secret) in [secret, secret, other].into_iter().enumerate() {
        let hold = held(&books, ask(secret, i as u8, 100)).await.unwrap();
        books
            .charge(hold.id, MicroUsd(10 + i as u64), answered("r"), Retried::Known, NOW + i as i64)
            .await
            .unwrap();
    }
    let all = Period { from_ms: NOW, until_ms: NOW + 10, account: None, key_id: None };
    let charges = books.charges(&all, 0).await.unwrap();
    assert_eq!(charges.iter().map(|c| c.amount.0).collect::<Vec<_>>(), [10, 11, 12]);
    assert_eq!(books.charges(&all, 2).await.unwrap().len(), 1);
    let of_a = Period { account: Some("a".into()), ..all.clone() };
    let totals = books.totals(&of_a).await.unwrap();
    assert_eq!(totals.len(), 1);
    assert_eq!((totals[0].requests, totals[0].amount, totals[0].prompt_tokens), (2, MicroUsd(21), 20));
    let until = Period { until_ms: NOW + 1, ..all };
    assert_eq!(books.charges(&until, 0).await.unwrap().len(), 1);
    let line = charges[0].csv();
    assert_eq!(line.split(',').count(), CSV_HEAD.split(',').count(), "{line}");
}

/// What another gateway, or a person, does to the same books counts from the next request on, whatever was read before.
async fn what_others_change_counts_at_once(url: String) {
    let (books, others) = (open(&url).await, open(&url).await);
    let secret = key(&books, "a", 100, Limits::default()).await;
    let id = books.keys(Some("a")).await.unwrap()[0].id.clone();
    let mine = held(&books, ask(secret, 1, 60)).await.unwrap();
    let theirs = held(&others, ask(secret, 2, 40)).await.unwrap();
    let refused = Refused::Balance { balance: MicroUsd(0), needed: MicroUsd(1) };
    assert_eq!(held(&books, ask(secret, 3, 1)).await.unwrap_err(), refused);
    others.release(theirs.id.clone()).await.unwrap();
    let more = held(&books, ask(secret, 3, 40)).await.unwrap();
    // A hold that another one has ended is ended.
    assert_eq!(others.release(mine.id.clone()).await.unwrap(), Settled::Now(MicroUsd(0)));
    let charged = books.charge(mine.id, MicroUsd(60), answered("r"), Retried::Known, NOW).await.unwrap();
    assert_eq!(charged, Settled::Before(MicroUsd(0)));
    others.credit("a", MicroUsd(1_000), "second", "", NOW).await.unwrap();
    assert!(held(&books, ask(secret, 4, 1_000)).await.is_ok());
    others.limit(&id, Limits { at_once: Some(2), ..Limits::default() }).await.unwrap();
    assert!(matches!(held(&books, ask(secret, 5, 1)).await.unwrap_err(), Refused::AtOnce { .. }));
    books.release(more.id).await.unwrap();
    assert!(held(&books, ask(secret, 5, 1)).await.is_ok());
    others.revoke(&id, NOW).await.unwrap();
    assert_eq!(held(&books, ask(secret, 6, 1)).await.unwrap_err(), Refused::Revoked);
    agree(&books, "a").await;
}

/// Two gateways that both set more aside than their requests need: together they hold no more than there is, and all of it can be had.
async fn nobody_spends_what_another_gateway_was_advanced(url: String) {
    const ALL: u64 = 20_000_000;
    let gateways = [open(&url).await, open(&url).await];
    let secrets = [
        key(&gateways[0], "a", ALL, Limits::default()).await,
        key(&gateways[1], "a", 0, Limits::default()).await,
    ];
    let tasks = (0..240).map(|i| {
        let (books, secret) = (gateways[i % 2].clone(), secrets[i % 3 % 2]);
        tokio::spawn(async move { held(&books, ask(secret, 1, 100_000)).await })
    });
    let mut holds = Vec::new();
    for (i, task) in tasks.collect::<Vec<_>>().into_iter().enumerate() {
        match task.await.unwrap() {
            Ok(hold) => holds.push((gateways[i % 2].clone(), hold)),
            Err(refused) => assert!(matches!(refused, Refused::Balance { .. }), "{refused}"),
        }
    }
    agree(&gateways[0], "a").await;
    // What one gateway has set aside for requests to come, the other one does not have before it is given back.
    assert!((195..=200).contains(&holds.len()), "{}", holds.len());
    for books in &gateways {
        books.close().await.unwrap();
    }
    while let Ok(hold) = held(&gateways[0], ask(secrets[0], 1, 100_000)).await {
        holds.push((gateways[0].clone(), hold));
    }
    assert_eq!(holds.len(), 200);
    for (i, (books, hold)) in holds.into_iter().enumerate() {
        let settled = match i % 3 {
            0 => books.release(hold.id).await.unwrap(),
            _ => books.charge(hold.id, MicroUsd(99_999), answered("r"), Retried::Known, NOW).await.unwrap(),
        };
        assert_eq!(settled, Settled::Now(MicroUsd(if i % 3 == 0 { 0 } else { 99_999 })));
    }
    for books in &gateways {
        books.close().await.unwrap();
    }
    let sums = gateways[1].books("a").await.unwrap();
    assert_eq!((sums.charged, sums.held), (MicroUsd(133 * 99_999), MicroUsd(0)));
    assert!(sums.agree());
}

async fn what_others_change_counts_at_once_beside_an_advance(url: String) {
    let (books, others) = (open(&url).await, open(&url).await);
    let secret = key(&books, "a", 100_000_000, Limits::default()).await;
    let id = books.keys(Some("a")).await.unwrap()[0].id.clone();
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(held(&books, ask(secret, 1, 1_000)).await.unwrap());
    }
    let limited = |limits| others.limit(&id, limits);
    limited(Limits { at_once: Some(3), ..Limits::default() }).await.unwrap();
    assert_eq!(held(&books, ask(secret, 1, 1)).await.unwrap_err(), Refused::AtOnce { most: 3 });
    books.charge(running.pop().unwrap().id, MicroUsd(7), answered("r"), Retried::Known, NOW).await.unwrap();
    running.push(held(&books, ask(secret, 1, 1_000)).await.unwrap());
    assert_eq!(held(&books, ask(secret, 1, 1)).await.unwrap_err(), Refused::AtOnce { most: 3 });
    // 7 are charged and 3000 set aside: nothing counts that is only there for requests to come.
    limited(Limits { per_day: Some(MicroUsd(3_107)), ..Limits::default() }).await.unwrap();
    let spent = Refused::PerDay {
        most: MicroUsd(3_107),
        spent: MicroUsd(3_007),
        needed: MicroUsd(101),
        wait_ms: 86_400_000 - NOW.rem_euclid(86_400_000).unsigned_abs(),
    };
    assert_eq!(held(&books, ask(secret, 1, 101)).await.unwrap_err(), spent);
    running.push(held(&books, ask(secret, 1, 100)).await.unwrap());
    limited(Limits::default()).await.unwrap();
    running.push(held(&books, ask(secret, 1, 1_000)).await.unwrap());
    running.push(held(&books, ask(secret, 1, 1_000)).await.unwrap());
    others.revoke(&id, NOW).await.unwrap();
    assert_eq!(held(&books, ask(secret, 1, 1)).await.unwrap_err(), Refused::Revoked);
    // What had begun goes on, and is charged.
    for hold in running {
        let charged = books.charge(hold.id, MicroUsd(10), answered("r"), Retried::Known, NOW).await.unwrap();
        assert_eq!(charged, Settled::Now(MicroUsd(10)));
    }
    books.close().await.unwrap();
    let sums = others.books("a").await.unwrap();
    assert_eq!((sums.charged, sums.held, sums.agree()), (MicroUsd(67), MicroUsd(0), true));
}

macro_rules! laws {
    ($($law:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $law() {
                let folder = tempfile::tempdir().unwrap();
                super::$law(format!("sqlite:{}", folder.path().join("books.sqlite").display())).await;
            })*
        }

        /// One server for all laws, a database for each.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn postgres_keeps_the_same_laws() {
            let Some(server) = Postgres::start() else { return };
            $(
                eprintln!("on Postgres: {}", stringify!($law));
                $law(server.database(stringify!($law))).await;
            )*
        }
    };
}

laws! {
    an_answer_costs_what_it_costs,
    two_gateways_never_spend_a_balance_twice,
    no_unit_is_lost,
    no_unit_of_much_is_lost,
    nobody_spends_what_another_gateway_was_advanced,
    what_others_change_counts_at_once_beside_an_advance,
    a_retried_request_is_charged_once,
    what_was_told_is_kept_for_a_while,
    keys_are_limited_and_revoked,
    what_a_dead_gateway_held_comes_back,
    a_payment_counts_once,
    usage_adds_up,
    what_others_change_counts_at_once,
}

/// A program that writes to the file is waited for, and a journal that has become long is written back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_busy_is_waited_for_and_its_journal_stays_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("books.sqlite");
    let books = open(&format!("sqlite:{}", path.display())).await;
    let secret = key(&books, "a", 1_000, Limits::default()).await;
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; UPDATE accounts SET balance = balance - 900").unwrap();
    let asking = tokio::spawn({
        let books = books.clone();
        async move { held(&books, ask(secret, 1, 200)).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!asking.is_finished());
    other.execute_batch("COMMIT").unwrap();
    let refused = Refused::Balance { balance: MicroUsd(100), needed: MicroUsd(200) };
    assert_eq!(asking.await.unwrap().unwrap_err(), refused);
    other.execute_batch("UPDATE accounts SET balance = balance + 900").unwrap();
    for _ in 0..3_000 {
        let hold = held(&books, ask(secret, 1, 200)).await.unwrap();
        books.release(hold.id).await.unwrap();
    }
    let journal = std::fs::metadata(path.with_extension("sqlite-wal")).unwrap().len();
    assert!(journal < 64 << 20, "{journal} bytes");
    agree(&books, "a").await;
}

/// A key of a large account begins most requests without a word to the file; its money is set aside there all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_advance_spares_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("books.sqlite");
    let url = format!("sqlite:{}", path.display());
    let books = open(&url).await;
    let secret = key(&books, "a", 100_000_000, Limits::default()).await;
    let first = held(&books, ask(secret, 1, 1_000)).await.unwrap();
    let watching = rusqlite::Connection::open(&path).unwrap();
    let version = || watching.query_one("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let before = version();
    let second = held(&books, ask(secret, 2, 1_000)).await.unwrap();
    let third = held(&books, ask(secret, 3, 1_000)).await.unwrap();
    assert_eq!(version(), before);
    let aside = books.books("a").await.unwrap();
    assert!(aside.agree() && aside.held >= MicroUsd(3_000), "{aside:?}");
    // More than is left of it, a time after it and another day need another one; who asks again may have been answered.
    held(&books, ask(secret, 4, 50_000_000)).await.unwrap();
    for asked in [
        Ask { now_ms: NOW + 10 * MINUTE, expires_ms: NOW + 70 * MINUTE, ..ask(secret, 5, 1) },
        Ask { now_ms: NOW + 1440 * MINUTE, expires_ms: NOW + 1500 * MINUTE, ..ask(secret, 6, 1) },
        Ask { attempt: Attempt::Again, ..ask(secret, 7, 1) },
    ] {
        let before = version();
        held(&books, asked).await.unwrap();
        assert_ne!(version(), before);
    }
    // Each ends once, and is charged no more than it was given.
    let charge =
        |hold: &Hold| books.charge(hold.id.clone(), MicroUsd(5_000), answered("r"), Retried::Known, NOW);
    assert_eq!(charge(&first).await.unwrap(), Settled::Now(MicroUsd(1_000)));
    assert_eq!(charge(&first).await.unwrap(), Settled::Before(MicroUsd(1_000)));
    assert_eq!(books.release(second.id.clone()).await.unwrap(), Settled::Now(MicroUsd(0)));
    assert_eq!(charge(&second).await.unwrap(), Settled::Before(MicroUsd(0)));
    agree(&books, "a").await;
    // A gateway that dies has charged what it has charged; what it had set aside comes back with its time.
    drop((books, third));
    let books = open(&url).await;
    let left = books.books("a").await.unwrap();
    assert!(left.agree() && left.held > MicroUsd(0) && left.charged == MicroUsd(1_000), "{left:?}");
    books.expire(NOW + 48 * 60 * MINUTE).await.unwrap();
    let left = books.books("a").await.unwrap();
    assert_eq!((left.balance, left.held), (MicroUsd(99_999_000), MicroUsd(0)));
}

/// Where the file cannot be written, nothing has happened, and what is remembered of advances is what the file has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_written_has_not_happened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("books.sqlite");
    let books = open(&format!("sqlite:{}", path.display())).await;
    let secret = key(&books, "a", 100_000_000, Limits::default()).await;
    let other = key(&books, "a", 0, Limits::default()).await;
    let hold = held(&books, ask(secret, 1, 1_000)).await.unwrap();
    let running = held(&books, ask(secret, 2, 1_000)).await.unwrap();
    let breaking = rusqlite::Connection::open(&path).unwrap();
    breaking.execute_batch("ALTER TABLE charges RENAME TO away").unwrap();
    let charge =
        |hold: &Hold| books.charge(hold.id.clone(), MicroUsd(600), answered("r"), Retried::Known, NOW);
    assert_eq!(charge(&hold).await.unwrap_err().code(), "accounts_database");
    breaking.execute_batch("ALTER TABLE away RENAME TO charges; ALTER TABLE holds RENAME TO away").unwrap();
    assert!(books.reserve(ask(other, 3, 1_000)).await.is_err());
    breaking.execute_batch("ALTER TABLE away RENAME TO holds").unwrap();
    agree(&books, "a").await;
    assert_eq!(charge(&running).await.unwrap(), Settled::Now(MicroUsd(600)));
    let late = held(&books, ask(other, 4, 1_000)).await.unwrap();
    assert_eq!(books.release(late.id).await.unwrap(), Settled::Now(MicroUsd(0)));
    books.close().await.unwrap();
    let sums = books.books("a").await.unwrap();
    assert_eq!((sums.charged, sums.held, sums.agree()), (MicroUsd(600), MicroUsd(0), true));
}

/// Whoever reads the file learns no secret.
#[tokio::test]
async fn secrets_are_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let books = open(&format!("sqlite:{}", folder.path().join("books.sqlite").display())).await;
    let (_, secret) = books.create_key("a", "k", Limits::default(), NOW).await.unwrap();
    let digits = secret.reveal().split_off(assay_gateway::accounts::PREFIX.len());
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(digits.len()).any(|w| w == digits.as_bytes()));
    }
}

#[tokio::test]
async fn other_databases_are_refused_without_their_passwords() {
    let refused = Accounts::open("mysql://root:hunter2@localhost/books").await.unwrap_err();
    assert_eq!(refused.code(), "accounts_url");
    assert!(!refused.to_string().contains("hunter2"));
}
