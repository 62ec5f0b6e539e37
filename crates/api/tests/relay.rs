//! Orders and their answers over real connections: what arrives, what an eavesdropper learns, what breaks.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod mock;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_api::Refusal;
use assay_api::relay::{
    Destination, Frame, OfferSigner, Relay, RelayClient, RelayError, RelayOptions, Running, Work,
};
use assay_core::consent::Consent;
use assay_core::id::{ModelRoot, NodeAddress, SealingKey, SignatureBytes};
use assay_core::request::{Message, Prompt, Request, Role, Sampling};
use assay_core::transcript::StopReason;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::any;
use mock::{Mock, ROOT, SharedMock};
use tokio::net::TcpListener;

const QUICK: RelayOptions = RelayOptions {
    offer_s: 3600,
    alive: Duration::from_millis(20),
    body: Duration::from_secs(10),
    settles: None,
};

async fn listen(routes: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

struct Provider {
    mock: Arc<Mock>,
    to: Destination,
    client: RelayClient,
}

fn signer(key: PrivateKeySigner) -> OfferSigner {
    Box::new(move |hash| {
        let signature = key.sign_hash_sync(&hash.as_bytes().into()).ok()?;
        Some(SignatureBytes::from_bytes(signature.as_bytes()))
    })
}

async fn provider() -> Provider {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = PrivateKeySigner::random();
    let address = NodeAddress::from_bytes(key.address().into_array());
    let mock = Arc::new(Mock::default());
    let relay = Relay::new(Arc::new(SharedMock(Arc::clone(&mock))), address, signer(key), QUICK);
    let endpoint = listen(relay.routes()).await;
    let client = RelayClient::new();
    let offer = client.offer(&endpoint).await.unwrap();
    let now_s = offer.offer.issued_s;
    let offer = offer.verified(now_s, 0).unwrap();
    assert_eq!((offer.provider, offer.models.len()), (address, 2));
    assert_eq!(offer.models[0].root, ROOT);
    Provider { mock, to: Destination { endpoint, provider: address, sealing_key: offer.sealing_key }, client }
}

fn ask(text: &str) -> Work {
    let prompt = Prompt::Chat { messages: vec![Message::text(Role::User, text)], tools: vec![] };
    let request = Request {
        model: ROOT,
        prompt,
        sampling: Sampling::GREEDY,
        max_tokens: 8,
        stop: vec![],
        choice: 0,
        guide: None,
        logprobs: None,
        audit: Consent::Given,
    };
    Work::Generate { request, nonce: None }
}

impl Provider {
    async fn send(&self, work: Work) -> Running {
        self.client.send(&self.to, rand_id(), "req-1".into(), None, work).await.unwrap()
    }
}

fn rand_id() -> [u8; 16] {
    PrivateKeySigner::random().to_bytes()[..16].try_into().unwrap()
}

/// All frames but those that only say that the provider is there.
async fn frames(mut running: Running) -> Result<Vec<Frame>, RelayError> {
    let mut frames = Vec::new();
    while let Some(frame) = running.frame().await? {
        if frame != Frame::Alive {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[tokio::test]
async fn an_answer_arrives_whole() {
    let p = provider().await;
    let frames = frames(p.send(ask("hi")).await).await.unwrap();
    let [
        Frame::Queued { prompt_tokens: 3, .. },
        Frame::Text { text: a, .. },
        Frame::Text { text: b, .. },
        last,
    ] = frames.as_slice()
    else {
        panic!("{frames:?}")
    };
    assert_eq!((a.as_str(), b.as_str()), ("Hel", "lo"));
    let Frame::End { stop: StopReason::Length, record } = last else { panic!("{last:?}") };
    assert_eq!(record.transcript.text, "Hello");
    // The provider saw the very request, and the gateway's name for it.
    let order = p.mock.last.lock().unwrap().clone().unwrap();
    assert_eq!(
        (Work::Generate { request: order.request, nonce: order.nonce }, order.request_id.as_str()),
        (ask("hi"), "req-1")
    );
}

/// What the provider was spared comes beside the end, and only if there is something to say.
#[tokio::test]
async fn what_was_executed_before_goes_before_the_end() {
    let p = provider().await;
    let frames = frames(p.send(ask("known")).await).await.unwrap();
    let [before @ .., Frame::Cached(2), Frame::End { .. }] = frames.as_slice() else { panic!("{frames:?}") };
    assert!(!before.iter().any(|frame| matches!(frame, Frame::Cached(_))));
}

#[tokio::test]
async fn refusals_and_failures_are_told_as_they_are() {
    let p = provider().await;
    let busy = frames(p.send(ask("busy")).await).await.unwrap();
    assert_eq!(busy, [Frame::Failed(Refusal::Busy { retry_after_s: 3 })]);
    let long = frames(p.send(ask("long")).await).await.unwrap();
    assert_eq!(long, [Frame::Failed(Refusal::ContextExceeded { prompt: 100, window: 64 })]);
    let failed = frames(p.send(ask("fail after")).await).await.unwrap();
    assert!(matches!(failed.last(), Some(Frame::Failed(Refusal::Internal { .. }))));
    // The engine that just stops is an answer that failed, not one that ended.
    let stopped = frames(p.send(ask("break off")).await).await.unwrap();
    assert!(matches!(stopped.last(), Some(Frame::Failed(Refusal::Internal { .. }))));
    let prompt = Prompt::Text("x".into());
    let counted = frames(p.send(Work::CountTokens { model: ROOT, prompt }).await).await.unwrap();
    assert_eq!(counted, [Frame::Counted(3)]);
}

#[tokio::test]
async fn who_waits_is_told_that_the_provider_is_there() {
    let p = provider().await;
    let mut running = p.send(ask("hesitate")).await;
    let mut alive = 0;
    while let Some(frame) = running.frame().await.unwrap() {
        alive += usize::from(frame == Frame::Alive);
    }
    assert!(alive > 0);
}

async fn happens(what: &std::sync::atomic::AtomicBool) {
    while !what.load(SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Who was told something pays for what there is of it; who goes before takes its order back.
#[tokio::test]
async fn who_goes_away_stops_what_it_heard_of() {
    let p = provider().await;
    let mut running = p.send(ask("endless")).await;
    while !matches!(running.frame().await.unwrap(), Some(Frame::Text { .. })) {}
    drop(running);
    happens(&p.mock.stopped).await;
    let p = provider().await;
    let mut running = p.send(ask("quiet")).await;
    while !matches!(running.frame().await.unwrap(), Some(Frame::Queued { .. })) {}
    drop(running);
    happens(&p.mock.cancelled).await;
    assert!(!p.mock.stopped.load(SeqCst));
}

#[tokio::test]
async fn an_order_is_stopped_by_who_sent_it_and_by_nobody_else() {
    let p = provider().await;
    let mut running = p.send(ask("endless")).await;
    while !matches!(running.frame().await.unwrap(), Some(Frame::Text { .. })) {}
    // Somebody who does not know its name, and says nothing, or too much.
    let post = async |body: Vec<u8>| {
        let url = format!("{}/v1/orders/stop", p.to.endpoint);
        let answer = reqwest::Client::new().post(url).body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let said: serde_json::Value = answer.json().await.unwrap();
        (status, said["error"]["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(post(vec![7; 32]).await, (404, "order_not_running".into()));
    for length in [0, 16, 31, 33, 4096] {
        assert_eq!(post(vec![0; length]).await, (400, "order_malformed".into()));
    }
    assert!(!p.mock.stopped.load(SeqCst));
    running.stop().await.unwrap();
    // Asked twice, it is stopped all the same.
    let again = running.stop().await;
    assert!(
        again.as_ref().map_err(|e| e.code()).err().is_none_or(|code| code == "provider_status"),
        "{again:?}"
    );
    let last = loop {
        match running.frame().await.unwrap().unwrap() {
            Frame::Alive | Frame::Text { .. } => {}
            last => break last,
        }
    };
    let Frame::End { stop: StopReason::Cancelled, record } = last else { panic!("{last:?}") };
    assert_eq!(record.transcript.stop, StopReason::Cancelled);
    assert!(p.mock.stopped.load(SeqCst));
    // It is over.
    let over = running.stop().await.unwrap_err();
    assert!(matches!(&over, RelayError::Status { status: 404, .. }), "{over:?}");
}

/// What happens to bytes between a gateway and a provider.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Listen,
    CutOff(usize),
    Alter(usize),
}

type Heard = Arc<Mutex<(Vec<u8>, Vec<u8>)>>;

/// Somebody between gateway and provider, who keeps what both said.
async fn between(to: &Destination, what: Between) -> (Destination, Heard) {
    let heard = Heard::default();
    let behind = to.endpoint.clone();
    let relay = async move |State(heard): State<Heard>, body: Bytes| {
        let answer =
            reqwest::Client::new().post(format!("{behind}/v1/orders")).body(body.clone()).send().await;
        let mut answer = answer.unwrap().bytes().await.unwrap().to_vec();
        *heard.lock().unwrap() = (body.to_vec(), answer.clone());
        match what {
            Between::Listen => {}
            Between::CutOff(bytes) => answer.truncate(answer.len() - bytes),
            Between::Alter(at) => answer[at] ^= 1,
        }
        Body::from(answer)
    };
    let endpoint = listen(Router::new().route("/v1/orders", any(relay)).with_state(Arc::clone(&heard))).await;
    (Destination { endpoint, ..to.clone() }, heard)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[tokio::test]
async fn who_listens_learns_nothing_and_can_repeat_nothing() {
    let p = provider().await;
    let (to, heard) = between(&p.to, Between::Listen).await;
    let running = p.client.send(&to, rand_id(), "req-secret".into(), None, ask("my diary")).await.unwrap();
    assert!(matches!(frames(running).await.unwrap().last(), Some(Frame::End { .. })));
    let (order, answer) = heard.lock().unwrap().clone();
    for text in ["diary", "req-secret", "Hel"] {
        assert!(!contains(&order, text) && !contains(&answer, text));
    }
    // The same order once more is refused, under another key: nothing is executed.
    let started = p.mock.started.load(SeqCst);
    let again = reqwest::Client::new().post(format!("{}/v1/orders", p.to.endpoint)).body(order).send().await;
    let again = again.unwrap().bytes().await.unwrap();
    assert_ne!(again[..32], answer[..32]);
    assert_eq!(p.mock.started.load(SeqCst), started);
}

#[tokio::test]
async fn what_was_cut_off_or_altered_is_no_answer() {
    let p = provider().await;
    for bytes in [1, 20, 200] {
        let (to, _) = between(&p.to, Between::CutOff(bytes)).await;
        let cut = frames(p.client.send(&to, rand_id(), String::new(), None, ask("hi")).await.unwrap()).await;
        assert_eq!(cut.unwrap_err().code(), "provider_broke_off");
    }
    // A byte of the salt, of a length, of a sealed frame.
    for at in [0, 31, 35, 36, 60] {
        let (to, _) = between(&p.to, Between::Alter(at)).await;
        let altered =
            frames(p.client.send(&to, rand_id(), String::new(), None, ask("hi")).await.unwrap()).await;
        let code = altered.unwrap_err().code();
        assert!(["provider_malformed", "provider_broke_off"].contains(&code), "byte {at}: {code}");
    }
}

#[tokio::test]
async fn another_key_is_noticed() {
    let p = provider().await;
    let other = provider().await;
    let stale = Destination { sealing_key: other.to.sealing_key, ..p.to.clone() };
    let refused = p.client.send(&stale, rand_id(), String::new(), None, ask("hi")).await;
    assert_eq!(refused.err().unwrap().code(), "provider_key_changed");
    // An endpoint that passes orders on to another provider cannot: they are sealed to one.
    let elsewhere = Destination { endpoint: other.to.endpoint.clone(), ..p.to.clone() };
    let refused = p.client.send(&elsewhere, rand_id(), String::new(), None, ask("hi")).await;
    assert_eq!(refused.err().unwrap().code(), "provider_key_changed");
    let no_key = Destination { sealing_key: SealingKey::ZERO, ..p.to.clone() };
    let refused = p.client.send(&no_key, rand_id(), String::new(), None, ask("hi")).await;
    assert_eq!(refused.err().unwrap().code(), "provider_malformed");
}

#[tokio::test]
async fn garbage_is_refused_in_one_sentence() {
    let p = provider().await;
    for body in [vec![], vec![0; 31], vec![7; 4096]] {
        let answer =
            reqwest::Client::new().post(format!("{}/v1/orders", p.to.endpoint)).body(body).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 400);
        let said: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(said["error"]["code"], "order_not_sealed");
    }
    let nobody = Destination { endpoint: "http://127.0.0.1:1".into(), ..p.to.clone() };
    let refused = p.client.send(&nobody, rand_id(), String::new(), None, ask("hi")).await;
    assert_eq!(refused.err().unwrap().code(), "provider_unreachable");
}

#[tokio::test]
async fn an_offer_is_its_providers_word() {
    let p = provider().await;
    let signed = p.client.offer(&p.to.endpoint).await.unwrap();
    let now_s = signed.offer.issued_s;
    let code =
        |signed: assay_core::offer::SignedOffer, now_s| signed.verified(now_s, 30).map_err(|e| e.code());
    assert!(code(signed.clone(), now_s).is_ok());
    assert!(code(signed.clone(), now_s - 30).is_ok());
    assert_eq!(code(signed.clone(), now_s - 31), Err("offer_time"));
    assert_eq!(code(signed.clone(), signed.offer.until_s + 31), Err("offer_time"));
    let mut altered = signed.clone();
    altered.offer.models[0].root = ModelRoot::ZERO;
    assert_eq!(code(altered, now_s), Err("offer_signer"));
    let mut unsigned = signed;
    unsigned.signature = SignatureBytes::from_bytes([0; 65]);
    assert_eq!(code(unsigned, now_s), Err("offer_malformed"));
}
