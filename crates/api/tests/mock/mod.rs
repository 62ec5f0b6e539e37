//! An `Inference` without a model: what it does is what the prompt says.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use assay_api::{
    Class, EmbeddingOrder, Event, Generation, Inference, Load, Logprob, ModelCard, Order, Refusal, Second,
    ServerOptions, Source, Stop, Task, TokenChance, serve,
};
use assay_core::answer::{AnswerRecord, Format};
use assay_core::digest::ExecutionDigests;
use assay_core::embedding::{EmbeddingFormat, EmbeddingInput, EmbeddingRecord, EmbeddingTranscript, Record};
use assay_core::id::{
    ChannelId, DigestRoot, ModelRoot, NodeAddress, Nonce, ReceiptId, RequestHash, SignatureBytes,
    TranscriptRoot,
};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Prompt, Request};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

#[derive(Default)]
pub struct Mock {
    pub cancelled: AtomicBool,
    /// An answer was asked to stop.
    pub stopped: AtomicBool,
    pub started: AtomicU32,
    pub not_ready: AtomicBool,
    pub last: std::sync::Mutex<Option<Order>>,
    pub last_embedding: std::sync::Mutex<Option<EmbeddingOrder>>,
}

pub const ROOT: ModelRoot = ModelRoot::from_bytes([0xab; 32]);
pub const ENCODER: ModelRoot = ModelRoot::from_bytes([0xee; 32]);
pub const RECEIPT: ReceiptId = ReceiptId::from_bytes([0xcd; 32]);
/// What every text is embedded as: in floats 0.5, -0.25, 3 / 2^24, 0.
pub const VECTOR: [i32; 4] = [1 << 23, -(1 << 22), 3, 0];

/// Id of the receipt of a choice.
pub fn receipt_id(choice: u32) -> ReceiptId {
    let mut bytes = [0xcd_u8; 32];
    bytes[31] = bytes[31].wrapping_add(choice as u8);
    ReceiptId::from_bytes(bytes)
}

fn record(request: Request, stop: StopReason) -> AnswerRecord {
    let transcript = Transcript {
        request_hash: request.hash(),
        nonce: Nonce::ZERO,
        nonce_source: NonceSource::Seed,
        prompt_ids: vec![1, 2, 3],
        output_ids: vec![4, 5],
        text: "Hello".into(),
        stop,
        logprobs: vec![],
    };
    AnswerRecord {
        format: Format::V2,
        receipt: receipt(request.model, request.hash(), 3, 2),
        request,
        transcript,
        digests: ExecutionDigests(vec![]),
        generation: None,
    }
}

fn receipt(model_root: ModelRoot, request_hash: RequestHash, prompt: u32, completion: u32) -> SignedReceipt {
    let receipt = Receipt {
        provider: NodeAddress::from_bytes([1; 20]),
        sequence: 0,
        model_root,
        request_hash,
        transcript_root: TranscriptRoot::from_bytes([2; 32]),
        digest_root: DigestRoot::from_bytes([3; 32]),
        prompt_tokens: prompt,
        completion_tokens: completion,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::ZERO,
        epoch: 0,
    };
    let signature = SignatureBytes::from_bytes([0; 65]);
    SignedReceipt { receipt, domain: Domain::DEVELOPMENT, signature }
}

fn text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Chat { messages, .. } => messages.last().map(|m| m.content.clone()).unwrap_or_default(),
        Prompt::Text(t) => t.clone(),
        Prompt::Tokens(_) => String::new(),
    }
}

/// Half as likely as a token that is certain, and the likeliest tokens beside it.
fn logprob(bytes: &[u8], top: u8) -> Logprob {
    let token = TokenChance { bytes: bytes.to_vec(), logprob: -45_426 };
    let other = |i| TokenChance { bytes: vec![b'a' + i], logprob: -65_536 * (i32::from(i) + 1) };
    Logprob {
        token: token.clone(),
        top: std::iter::once(token).chain((0..).map(other)).take(top.into()).collect(),
    }
}

pub struct SharedMock(pub Arc<Mock>);

impl Inference for SharedMock {
    fn models(&self) -> Vec<ModelCard> {
        let story = ModelCard {
            id: "mock/story".into(),
            root: ROOT,
            created: 1_700_000_000,
            owned_by: "assay".into(),
            context_length: 64,
            profile: "int8-v1".into(),
            bytes: 1000,
            has_chat_template: true,
            task: Task::Generate,
            parameters: 900,
            aliases: vec!["story".into()],
            price: Some("0.10/0.40".parse().unwrap()),
            price_private: None,
        };
        let encoder = ModelCard {
            id: "mock/encoder".into(),
            root: ENCODER,
            has_chat_template: false,
            task: Task::Embed { dimensions: 4 },
            aliases: vec![],
            price: None,
            ..story.clone()
        };
        vec![story, encoder]
    }

    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        let mock = Arc::clone(&self.0);
        *mock.last.lock().unwrap() = Some(order.clone());
        let choice = order.request.choice;
        let (events, receiver) = mpsc::channel(4);
        let stop = Stop::default();
        let asked = stop.clone();
        let script = text(&order.request.prompt);
        match script.as_str() {
            "busy" => return Err(Refusal::Busy { retry_after_s: 3 }),
            "long" => return Err(Refusal::ContextExceeded { prompt: 100, window: 64 }),
            _ => {}
        }
        mock.started.fetch_add(1, SeqCst);
        // What holds is what was asked for.
        let class = order.caller.class;
        let provider = NodeAddress::from_bytes([1; 20]);
        let second = (class == Class::Full).then(|| Second {
            receipt: receipt_id(7 + choice),
            provider: NodeAddress::from_bytes([2; 20]),
            price: Some("0.20/0.80".parse().unwrap()),
        });
        let source = Some(Source { provider, price: Some("0.10/0.40".parse().unwrap()), class, second });
        tokio::spawn(async move {
            let fail = || Event::Failed(Refusal::Internal { message: "the mock fails".into() });
            let top = order.request.logprobs;
            let delta = |t: &str| Event::Text {
                text: t.into(),
                logprobs: top.map(|top| logprob(t.as_bytes(), top)).into_iter().collect(),
            };
            let call = |index, id: &str, name: &str| Event::Call { index, id: id.into(), name: name.into() };
            let more = |index, json: &str| Event::Arguments { index, json: json.into() };
            let end_by = |stop| {
                let record = Arc::new(record(order.request.clone(), stop));
                let cached_tokens = if script == "known" { 2 } else { 0 };
                Event::End { stop, usage: record.transcript.usage(), cached_tokens, record }
            };
            let end = || end_by(StopReason::Length);
            let all = match script.as_str() {
                "fail before" => vec![fail()],
                "fail after" => vec![delta("Hel"), fail()],
                "break off" => vec![delta("Hel")],
                "call" => vec![
                    call(0, "call_a", "f"),
                    more(0, "{\"x\""),
                    more(0, ":1}"),
                    call(1, "call_b", "g"),
                    more(1, "{}"),
                    end_by(StopReason::EndToken),
                ],
                "say and call" => vec![
                    delta("I look."),
                    call(0, "call_a", "f"),
                    more(0, "{}"),
                    end_by(StopReason::EndToken),
                ],
                "call cut off" => vec![call(0, "call_a", "f"), more(0, "{\"x"), end()],
                "nothing" => vec![end_by(StopReason::EndToken)],
                "half characters" => {
                    let half = |text: &str, bytes: &[u8]| Event::Text {
                        text: text.into(),
                        logprobs: top.map(|top| logprob(bytes, top)).into_iter().collect(),
                    };
                    vec![half("", &[0xc3]), half("é", &[0xa9]), half("!", b"!"), end_by(StopReason::EndToken)]
                }
                "the second fails" if choice == 1 => vec![delta("Hel"), fail()],
                "endless" | "the second fails" => {
                    let on = async {
                        while events.send(delta("la ")).await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    };
                    tokio::select! {
                        biased;
                        () = asked.asked() => {
                            mock.stopped.store(true, SeqCst);
                            let _ = events.send(end_by(StopReason::Cancelled)).await;
                        }
                        () = on => mock.cancelled.store(true, SeqCst),
                    }
                    return;
                }
                // Nothing is told before it is over.
                "quiet" => {
                    tokio::select! {
                        biased;
                        () = asked.asked() => mock.stopped.store(true, SeqCst),
                        () = events.closed() => mock.cancelled.store(true, SeqCst),
                    }
                    return;
                }
                _ => vec![
                    delta("Hel"),
                    delta(&if choice == 0 { "lo".into() } else { choice.to_string() }),
                    end(),
                ],
            };
            for (i, event) in all.into_iter().enumerate() {
                if script == "hesitate" && i == 1 {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(Generation { receipt_id: receipt_id(choice), prompt_tokens: 3, source, stop, events: receiver })
    }

    async fn embed(&self, order: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        *self.0.last_embedding.lock().unwrap() = Some(order.clone());
        let request = order.request;
        let ids = |input: &EmbeddingInput| match input {
            EmbeddingInput::Text(t) => t.bytes().map(u32::from).collect(),
            EmbeddingInput::Tokens(t) => t.clone(),
        };
        if request.inputs.contains(&EmbeddingInput::Text("busy".into())) {
            return Err(Refusal::Busy { retry_after_s: 3 });
        }
        let input_ids: Vec<Vec<u32>> = request.inputs.iter().map(ids).collect();
        let vector = VECTOR[..request.dimensions.unwrap_or(4) as usize].to_vec();
        let transcript = EmbeddingTranscript {
            request_hash: request.hash(),
            vectors: vec![vector; input_ids.len()],
            input_ids,
        };
        Ok(Arc::new(EmbeddingRecord {
            format: EmbeddingFormat::V2,
            receipt: receipt(request.model, request.hash(), transcript.tokens(), 0),
            request,
            transcript,
            digests: ExecutionDigests(vec![]),
            generation: None,
        }))
    }

    async fn count_tokens(&self, _: ModelRoot, _: Prompt) -> Result<u32, Refusal> {
        Ok(3)
    }

    async fn receipt(&self, id: ReceiptId) -> Result<Option<Record>, Refusal> {
        let last = self.0.last.lock().unwrap().clone();
        let record = last.filter(|_| id == RECEIPT).map(|o| record(o.request, StopReason::Length));
        Ok(record.map(|r| Record::Answer(Box::new(r))))
    }

    fn load(&self) -> Load {
        let ready = !self.0.not_ready.load(SeqCst);
        Load { running: 1, waiting: 2, kv_cache_used_ppm: 250_000, ready }
    }
}

/// A server on loopback.
pub struct Served {
    pub url: String,
    pub mock: Arc<Mock>,
    pub client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    pub task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    pub async fn new(options: ServerOptions) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mock = Arc::new(Mock::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let task = tokio::spawn(serve(listener, Arc::new(SharedMock(Arc::clone(&mock))), options, shutdown));
        Served { url, mock, client: client(), stop: Some(stop), task }
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn post(&self, path: &str, body: serde_json::Value) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }
}

/// A client for HTTP. One that is built beside code that speaks TLS wants to know by which library, though it has no use for it.
fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
