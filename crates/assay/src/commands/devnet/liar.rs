//! `assay devnet liar`: a provider whose engine does something else than its receipts say.
//!
//! It is a provider in everything but what gateways order: another request is executed than was asked, or another token is signed than was drawn. The lie
//! is around the provider: nothing in it knows how to lie.

use std::sync::Arc;

use anyhow::Result;
use assay_api::relay::{OfferSigner, Relay, RelayOptions};
use assay_api::{
    ChannelState, EmbeddingOrder, Event, Generation, Inference, Load, ModelCard, Order, Refusal,
};
use assay_core::answer::AnswerRecord;
use assay_core::embedding::{EmbeddingRecord, Record};
use assay_core::id::{ChannelId, ModelRoot, ReceiptId};
use assay_core::receipt::{Domain, receipt_id};
use assay_core::request::{Prompt, Request};
use assay_core::text::TextOpening;
use assay_node::key::NodeKey;
use assay_node::provider::Provider;
use assay_node::store::Sequence;
use clap::Args;
use tokio::sync::{Mutex, mpsc};

use super::super::up::Server;
use super::fault::Kind;
use crate::home::{Home, built_in};

/// Events that wait for a slow reader.
const PIECES: usize = 64;

/// Serve like `assay up`, and lie to gateways.
#[derive(Args)]
pub struct Liar {
    /// How.
    #[arg(value_name = "KIND")]
    kind: Kind,
    #[command(flatten)]
    server: Server,
}

impl Liar {
    pub fn run(self, home: &Home) -> Result<()> {
        let (kind, key) = (self.kind, Arc::new(NodeKey::load_or_create(&home.key())?));
        let relay = |provider: &Arc<Provider>| {
            let options = RelayOptions { settles: provider.settles(), ..RelayOptions::default() };
            let signer = Arc::clone(&key);
            let sign: OfferSigner = Box::new(move |hash| signer.sign_hash(hash).ok());
            let address = provider.address();
            let lying = Lying { provider: Arc::clone(provider), key, kind, turn: Mutex::default() };
            Relay::new(Arc::new(Told(Arc::new(lying))), address, sign, options)
        };
        self.server.run(home, vec![built_in()?], None, Some(relay))
    }
}

struct Lying {
    provider: Arc<Provider>,
    key: Arc<NodeKey>,
    kind: Kind,
    /// Sequence numbers are set aside by one request at a time.
    turn: Mutex<()>,
}

/// What gateways are told instead.
struct Told(Arc<Lying>);

impl Lying {
    /// What is executed in place of a request.
    fn executed(&self, mut request: Request) -> Request {
        let sampling = &mut request.sampling;
        match self.kind {
            Kind::OtherTemperature => sampling.temperature_micro = 0,
            Kind::OtherSeed | Kind::LeftOutReceipt => {
                sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(1))
            }
            _ => {}
        }
        request
    }

    /// Signs for the request that was asked, and keeps that in place of the record of what was executed.
    fn sign(
        &self,
        mut record: AnswerRecord,
        asked: Request,
        held: &Sequence,
    ) -> Result<AnswerRecord, String> {
        let transcript = &mut record.transcript;
        if self.kind == Kind::SwappedToken {
            let middle = transcript.output_ids.len() / 2;
            if let Some(id) = transcript.output_ids.get_mut(middle) {
                *id = id.checked_sub(1).unwrap_or(1);
            }
        }
        transcript.request_hash = asked.hash();
        record.request = asked;
        let mut receipt = record.receipt.receipt.clone();
        if receipt.sequence != held.number() + 1 {
            return Err("another answer has taken the place of this one".into());
        }
        receipt.request_hash = transcript.request_hash;
        receipt.transcript_root = transcript.root();
        record.receipt = self.key.sign(receipt, record.receipt.domain).map_err(|e| e.to_string())?;
        // What is kept is posted; else it is the true receipt of what was executed, which stands.
        if self.kind != Kind::LeftOutReceipt {
            let stored = Record::Answer(Box::new(record.clone()));
            self.provider.store().put(&stored).map_err(|e| e.to_string())?;
        }
        Ok(record)
    }

    /// The end that a gateway hears. As long as `held` is, nothing from its number on is posted: what is posted is the lie.
    async fn end(self: Arc<Lying>, record: Arc<AnswerRecord>, asked: Request, held: Sequence) -> Event {
        let sign = move || self.sign(AnswerRecord::clone(&record), asked, &held);
        match tokio::task::spawn_blocking(sign).await {
            Ok(Ok(record)) => Event::End {
                stop: record.transcript.stop,
                usage: record.transcript.usage(),
                cached_tokens: 0,
                record: Arc::new(record),
            },
            Ok(Err(message)) => Event::Failed(Refusal::Internal { message }),
            Err(e) => Event::Failed(internal(e)),
        }
    }

    async fn pass(
        self: Arc<Lying>,
        mut from: mpsc::Receiver<Event>,
        to: mpsc::Sender<Event>,
        asked: Request,
        held: Sequence,
    ) {
        loop {
            let event = tokio::select! {
                biased;
                () = to.closed() => return,
                event = from.recv() => event,
            };
            match event {
                None => return,
                Some(Event::End { record, .. }) => {
                    let end = self.end(record, asked, held).await;
                    // Who is gone finds its receipt on the receipts route.
                    let _ = to.send(end).await;
                    return;
                }
                Some(event) => {
                    let _ = to.send(event).await;
                }
            }
        }
    }
}

fn internal(e: impl std::fmt::Display) -> Refusal {
    Refusal::Internal { message: e.to_string() }
}

impl Inference for Told {
    async fn generate(&self, order: Order) -> Result<Generation, Refusal> {
        let lying = Arc::clone(&self.0);
        let asked = order.request.clone();
        let order = Order { request: lying.executed(order.request), ..order };
        let turn = lying.turn.lock().await;
        let store = Arc::clone(lying.provider.store());
        let held = tokio::task::spawn_blocking(move || store.reserve_sequence()).await;
        let held = held.map_err(internal)?.map_err(internal)?;
        let generation = lying.provider.generate(order).await?;
        drop(turn);
        let receipt_id = receipt_id(lying.provider.address(), held.number() + 1, asked.hash());
        let (events, receiver) = mpsc::channel(PIECES);
        tokio::spawn(Arc::clone(&lying).pass(generation.events, events, asked, held));
        Ok(Generation { receipt_id, events: receiver, ..generation })
    }

    fn models(&self) -> Vec<ModelCard> {
        self.0.provider.models()
    }

    async fn embed(&self, order: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        self.0.provider.embed(order).await
    }

    async fn count_tokens(&self, model: ModelRoot, prompt: Prompt) -> Result<u32, Refusal> {
        self.0.provider.count_tokens(model, prompt).await
    }

    async fn receipt(&self, id: ReceiptId) -> Result<Option<Record>, Refusal> {
        self.0.provider.receipt(id).await
    }

    async fn text(&self, model: ModelRoot) -> Option<TextOpening> {
        self.0.provider.text(model).await
    }

    fn load(&self) -> Load {
        self.0.provider.load()
    }

    fn settles(&self) -> Option<Domain> {
        self.0.provider.settles()
    }

    async fn channel(&self, id: ChannelId) -> Option<ChannelState> {
        self.0.provider.channel(id).await
    }
}
