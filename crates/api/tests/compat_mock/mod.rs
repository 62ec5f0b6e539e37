//! An `Inference` without a model, for the other surfaces: what it does is what the last message says.
#![allow(dead_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assay_api::{
    EmbeddingOrder, Event, Generation, Inference, Load, ModelCard, Order, Refusal, ServerOptions, Stop, Task,
    serve,
};
use assay_core::answer::{AnswerRecord, Format, GenerationCost};
use assay_core::digest::ExecutionDigests;
use assay_core::embedding::{EmbeddingFormat, EmbeddingInput, EmbeddingRecord, EmbeddingTranscript, Record};
use assay_core::id::{
    ChannelId, DigestRoot, ModelRoot, NodeAddress, Nonce, ReceiptId, RequestHash, SignatureBytes,
    TranscriptRoot,
};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Prompt, Request};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

pub const ROOT: ModelRoot = ModelRoot::from_bytes([0xab; 32]);
pub const EMBEDDER: ModelRoot = ModelRoot::from_bytes([0xee; 32]);
pub const RECEIPT: ReceiptId = ReceiptId::from_bytes([0xcd; 32]);

pub struct Mock {
    pub last: Mutex<Option<Order>>,
    pub last_embedding: Mutex<Option<EmbeddingOrder>>,
    /// Scripts in the order in which they were taken.
    pub taken: Mutex<Vec<String>>,
    pub running: AtomicU32,
    pub running_most: AtomicU32,
    pub cancelled: AtomicU32,
    pub refused_once: AtomicBool,
    /// Scripts that begin with `wait` end when this is true.
    pub gate: watch::Sender<bool>,
}

impl Default for Mock {
    fn default() -> Self {
        Mock {
            last: Mutex::default(),
            last_embedding: Mutex::default(),
            taken: Mutex::default(),
            running: AtomicU32::new(0),
            running_most: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
            refused_once: AtomicBool::new(false),
            gate: watch::channel(false).0,
        }
    }
}

impl Mock {
    pub fn order(&self) -> Order {
        self.last.lock().unwrap().clone().expect("something was asked")
    }
}

fn receipt(model: ModelRoot, request_hash: RequestHash) -> SignedReceipt {
    let receipt = Receipt {
        provider: NodeAddress::from_bytes([1; 20]),
        sequence: 0,
        model_root: model,
        request_hash,
        transcript_root: TranscriptRoot::from_bytes([2; 32]),
        digest_root: DigestRoot::from_bytes([3; 32]),
        prompt_tokens: 3,
        completion_tokens: 2,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::ZERO,
        epoch: 0,
    };
    SignedReceipt { receipt, domain: Domain::DEVELOPMENT, signature: SignatureBytes::from_bytes([0; 65]) }
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
        receipt: receipt(request.model, request.hash()),
        request,
        transcript,
        digests: ExecutionDigests(vec![]),
        generation: Some(GenerationCost {
            prefill_ns: 111,
            decode_ns: 222,
            threads: 1,
            kernel: "mock".into(),
        }),
    }
}

fn script(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Chat { messages, .. } => messages.last().map(|m| m.content.clone()).unwrap_or_default(),
        Prompt::Text(t) => t.clone(),
        Prompt::Tokens(_) => String::new(),
    }
}

/// Counts an answer as running; as cancelled if it is dropped before its end.
struct Running {
    mock: Arc<Mock>,
    done: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.mock.running.fetch_sub(1, SeqCst);
        if !self.done {
            self.mock.cancelled.fetch_add(1, SeqCst);
        }
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
            parameters: 260_000_000,
            aliases: vec!["story".into()],
            price: None,
            price_private: None,
        };
        let plain = ModelCard {
            id: "plain".into(),
            root: ModelRoot::from_bytes([0xaa; 32]),
            has_chat_template: false,
            aliases: vec![],
            ..story.clone()
        };
        let embedder = ModelCard {
            id: "embedder:small".into(),
            root: EMBEDDER,
            task: Task::Embed { dimensions: 2 },
            aliases: vec![],
            ..story.clone()
        };
        vec![story, plain, embedder]
    }

    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        let mock = Arc::clone(&self.0);
        *mock.last.lock().unwrap() = Some(order.clone());
        let script = script(&order.request.prompt);
        match script.as_str() {
            "busy" => return Err(Refusal::Busy { retry_after_s: 3 }),
            "busy once" if !mock.refused_once.swap(true, SeqCst) => {
                return Err(Refusal::Busy { retry_after_s: 0 });
            }
            "draining" => return Err(Refusal::Draining),
            "long" => return Err(Refusal::ContextExceeded { prompt: 100, window: 64 }),
            _ => {}
        }
        mock.taken.lock().unwrap().push(script.clone());
        let now = mock.running.fetch_add(1, SeqCst) + 1;
        mock.running_most.fetch_max(now, SeqCst);
        let (events, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut running = Running { mock: Arc::clone(&mock), done: false };
            let (steps, stop) = steps(&script);
            for step in steps {
                if script == "hesitate" {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                if events.send(step).await.is_err() {
                    return;
                }
            }
            if script.starts_with("wait") {
                let mut gate = mock.gate.subscribe();
                tokio::select! {
                    _ = gate.wait_for(|open| *open) => {}
                    () = events.closed() => return,
                }
            }
            running.done = true;
            drop(running);
            if let Some(stop) = stop {
                let record = Arc::new(record(order.request, stop));
                let _ = events
                    .send(Event::End { stop, usage: record.transcript.usage(), cached_tokens: 0, record })
                    .await;
            }
        });
        let stop = Stop::default();
        Ok(Generation { receipt_id: RECEIPT, prompt_tokens: 3, source: None, stop, events: receiver })
    }

    async fn embed(&self, order: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        *self.0.last_embedding.lock().unwrap() = Some(order.clone());
        let request = order.request;
        let vector = |i: &EmbeddingInput| match i {
            EmbeddingInput::Text(t) if t == "second" => vec![0, 1 << 24],
            _ => vec![1 << 23, -(1 << 24)],
        };
        let transcript = EmbeddingTranscript {
            request_hash: request.hash(),
            input_ids: request.inputs.iter().map(|_| vec![1, 2]).collect(),
            vectors: request.inputs.iter().map(vector).collect(),
        };
        let receipt = receipt(request.model, request.hash());
        let digests = ExecutionDigests(vec![]);
        let format = EmbeddingFormat::V2;
        Ok(Arc::new(EmbeddingRecord { format, receipt, request, transcript, digests, generation: None }))
    }

    async fn count_tokens(&self, _: ModelRoot, prompt: Prompt) -> Result<u32, Refusal> {
        Ok(script(&prompt).len() as u32)
    }

    async fn receipt(&self, _: ReceiptId) -> Result<Option<Record>, Refusal> {
        Ok(None)
    }

    fn load(&self) -> Load {
        Load { running: 1, waiting: 2, kv_cache_used_ppm: 250_000, ready: true }
    }
}

fn steps(script: &str) -> (Vec<Event>, Option<StopReason>) {
    let text = |t: &str| Event::Text { text: t.into(), logprobs: vec![] };
    let call = |index: u32, name: &str| Event::Call { index, id: format!("call_{index}"), name: name.into() };
    let more = |index: u32, json: &str| Event::Arguments { index, json: json.into() };
    let fail = || Event::Failed(Refusal::Internal { message: "the mock fails".into() });
    match script {
        "fail before" => (vec![fail()], None),
        "fail after" => (vec![text("Hel"), fail()], None),
        "break off" => (vec![text("Hel")], None),
        "silence" => (vec![], Some(StopReason::EndToken)),
        "length" => (vec![text("Hello")], Some(StopReason::Length)),
        "stop" => (vec![text("Hello")], Some(StopReason::StopString(1))),
        "call" => {
            let calls = vec![
                text("Let me look."),
                call(0, "weather"),
                more(0, r#"{"city":"#),
                more(0, r#""Paris"}"#),
                call(1, "clock"),
            ];
            (calls, Some(StopReason::EndToken))
        }
        "cut" => (vec![call(0, "weather"), more(0, r#"{"ci"#)], Some(StopReason::Length)),
        _ => (vec![text("Hel"), text(""), text("lo")], Some(StopReason::EndToken)),
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
        let (listener, url) = listen().await;
        let mock = Arc::new(Mock::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let task = tokio::spawn(serve(listener, Arc::new(SharedMock(Arc::clone(&mock))), options, shutdown));
        Served { url, mock, client: client(), stop: Some(stop), task }
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn post(&self, path: &str, body: Value) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap()
    }

    pub async fn raw(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).body(body).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    pub async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }
}

pub async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// Bodies that nobody should send, made from a good one: every field replaced by every kind of value.
pub fn hostile(good: &Value) -> Vec<Value> {
    let odd = || {
        vec![
            Value::Null,
            Value::from(true),
            Value::from(-1),
            Value::from(u64::MAX),
            Value::from(1e300),
            Value::from(""),
            Value::from("\u{0}../\u{ffff}"),
            serde_json::json!([]),
            serde_json::json!([[]]),
            serde_json::json!([null, 1, "x", {}]),
            serde_json::json!({}),
            serde_json::json!({"type": {}, "text": [], "role": 7, "content": {"a": null}, "name": false}),
        ]
    };
    let mut all = odd();
    match good {
        Value::Object(map) => {
            for key in map.keys() {
                for value in hostile(&map[key]) {
                    let mut body = good.clone();
                    body[key] = value;
                    all.push(body);
                }
                let mut without = map.clone();
                without.remove(key);
                all.push(Value::Object(without));
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                for value in hostile(item) {
                    let mut body = good.clone();
                    body[i] = value;
                    all.push(body);
                }
            }
        }
        _ => {}
    }
    all
}

/// A client for HTTP. One that is built beside code that speaks TLS wants to know by which library, though it has no use for it.
fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
