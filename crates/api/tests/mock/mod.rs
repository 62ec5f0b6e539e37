//! An `Inference` without a model: what it does is what the prompt says.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use assay_api::{Event, Generation, Inference, Load, ModelCard, Order, Refusal, ServerOptions, serve};
use assay_core::answer::{AnswerRecord, Format};
use assay_core::digest::ExecutionDigests;
use assay_core::id::{
    ChannelId, DigestRoot, ModelRoot, NodeAddress, Nonce, ReceiptId, SignatureBytes, TranscriptRoot,
};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Prompt, Request};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

#[derive(Default)]
pub struct Mock {
    pub cancelled: AtomicBool,
    pub started: AtomicU32,
    pub not_ready: AtomicBool,
    pub last: std::sync::Mutex<Option<Order>>,
}

pub const ROOT: ModelRoot = ModelRoot::from_bytes([0xab; 32]);
pub const RECEIPT: ReceiptId = ReceiptId::from_bytes([0xcd; 32]);

fn record(request: Request) -> AnswerRecord {
    let transcript = Transcript {
        request_hash: request.hash(),
        nonce: Nonce::ZERO,
        nonce_source: NonceSource::Seed,
        prompt_ids: vec![1, 2, 3],
        output_ids: vec![4, 5],
        text: "Hello".into(),
        stop: StopReason::Length,
    };
    let receipt = Receipt {
        provider: NodeAddress::from_bytes([1; 20]),
        sequence: 0,
        model_root: request.model,
        request_hash: request.hash(),
        transcript_root: TranscriptRoot::from_bytes([2; 32]),
        digest_root: DigestRoot::from_bytes([3; 32]),
        prompt_tokens: 3,
        completion_tokens: 2,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::ZERO,
        epoch: 0,
    };
    let signature = SignatureBytes::from_bytes([0; 65]);
    let receipt = SignedReceipt { receipt, domain: Domain::DEVELOPMENT, signature };
    AnswerRecord {
        format: Format::V1,
        receipt,
        request,
        transcript,
        digests: ExecutionDigests(vec![]),
        generation: None,
    }
}

fn text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Chat(m) => m.last().map(|m| m.content.clone()).unwrap_or_default(),
        Prompt::Text(t) => t.clone(),
        Prompt::Tokens(_) => String::new(),
    }
}

pub struct SharedMock(pub Arc<Mock>);

impl Inference for SharedMock {
    fn models(&self) -> Vec<ModelCard> {
        vec![ModelCard {
            id: "mock/story".into(),
            root: ROOT,
            created: 1_700_000_000,
            owned_by: "assay".into(),
            context_length: 64,
            profile: "int8-v1".into(),
            bytes: 1000,
            has_chat_template: true,
            aliases: vec!["story".into()],
        }]
    }

    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        let mock = Arc::clone(&self.0);
        *mock.last.lock().unwrap() = Some(order.clone());
        let (events, receiver) = mpsc::channel(4);
        let script = text(&order.request.prompt);
        match script.as_str() {
            "busy" => return Err(Refusal::Busy { retry_after_s: 3 }),
            "long" => return Err(Refusal::ContextExceeded { prompt: 100, window: 64 }),
            _ => {}
        }
        mock.started.fetch_add(1, SeqCst);
        tokio::spawn(async move {
            let fail = || Event::Failed(Refusal::Internal { message: "the mock fails".into() });
            let delta = |t: &str| Event::Delta(t.into());
            let end = |order: Order| {
                let record = Arc::new(record(order.request));
                Event::End { stop: StopReason::Length, usage: record.transcript.usage(), record }
            };
            match script.as_str() {
                "fail before" => drop(events.send(fail()).await),
                "fail after" => {
                    let _ = events.send(delta("Hel")).await;
                    let _ = events.send(fail()).await;
                }
                "break off" => drop(events.send(delta("Hel")).await),
                "endless" => {
                    while events.send(delta("la ")).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    mock.cancelled.store(true, SeqCst);
                }
                "hesitate" => {
                    let _ = events.send(delta("Hel")).await;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    let _ = events.send(delta("lo")).await;
                    let _ = events.send(end(order)).await;
                }
                _ => {
                    let _ = events.send(delta("Hel")).await;
                    let _ = events.send(delta("lo")).await;
                    let _ = events.send(end(order)).await;
                }
            }
        });
        Ok(Generation { receipt_id: RECEIPT, prompt_tokens: 3, events: receiver })
    }

    async fn receipt(&self, id: ReceiptId) -> Result<Option<AnswerRecord>, Refusal> {
        let last = self.0.last.lock().unwrap().clone();
        Ok(last.filter(|_| id == RECEIPT).map(|o| record(o.request)))
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
        Served { url, mock, client: reqwest::Client::new(), stop: Some(stop), task }
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
