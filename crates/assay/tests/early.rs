//! A model is served while it arrives. The host of these tests has only those tiles that a test gives it.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use alloy_signer_local::PrivateKeySigner;
use assay_core::id::NodeAddress;
use assay_core::request::{Message, Prompt, Role};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::matrix::Matrix;
use assay_engine::program::{Op, Program};
use assay_engine::text::Tokenizer;
use assay_hub::blob::{TILE_BYTES, tiles};
use assay_hub::catalogue::Catalogue;
use assay_hub::content::ContentTree;
use assay_hub::exchange::{Admission, Exchange, routes};
use assay_hub::keeping::keep;
use assay_hub::outboard::{Make, hash_bytes};
use assay_hub::release::{Release, Signed};
use assay_hub::server::{self, ServerOptions};
use assay_hub::store::{Arrival, Quota, Store};
use harness::{MODEL, Node, assay, chat, client, stderr};
use serde_json::Value;
use tokio::task::JoinHandle;

const STORY: &str = "Once upon a time there was a little dog";
const RELEASE: &str = "assay-stories@1.0.0";

fn built_in() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay")).unwrap()
}

/// A host that says it keeps a release, and gives of its artifact what a test gives it.
struct Host {
    url: String,
    bytes: Vec<u8>,
    arrival: Arrival,
    serving: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Host {
    /// Of a release of an artifact that calls itself what its header says.
    async fn start(bytes: Vec<u8>) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let artifact = Artifact::from_bytes("x", &bytes).unwrap();
        let made = hash_bytes(&bytes, Make::Outboard);
        let size = bytes.len() as u64;
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&bytes[at as usize..at as usize + out.len()]);
            Ok(())
        };
        let key = PrivateKeySigner::random();
        let release = Release {
            publisher: NodeAddress::from_bytes(key.address().into_array()),
            name: MODEL.parse().unwrap(),
            version: "1.0.0".parse().unwrap(),
            root: artifact.root(),
            blob: made.hash,
            size,
            content_root: ContentTree::of(size, 1, read, |_| ()).unwrap().root(),
            profile: artifact.profile().name().to_owned(),
            parameters: artifact.parameters(),
            context: artifact.program().program().context,
            licence: "MIT".to_owned(),
            royalty_ppm: 0,
            copies: 1,
            card: String::new(),
            sources: vec![],
            published_at: 1,
        };
        let catalogue = Arc::new(Catalogue::open(&folder.path().join("records")).unwrap());
        catalogue.add(Signed::by(&key, release.clone()).unwrap()).unwrap();
        // What it says of itself comes from a store that has everything, bytes from one that does not.
        let whole = Store::open(&folder.path().join("whole"), Quota::UNLIMITED).unwrap();
        let file = folder.path().join("x.assay");
        std::fs::write(&file, &bytes).unwrap();
        whole.add_file(&file, &mut |_, _| {}).unwrap();
        keep(&whole, &release, &whole.blob(made.hash).unwrap().unwrap()).unwrap();
        let part = Store::open(&folder.path().join("part"), Quota::UNLIMITED).unwrap();
        let mut arrival = part.arrive(made.hash, size).unwrap();
        arrival.set_outboard(&made.outboard).unwrap();
        let exchange = Exchange {
            catalogue,
            store: whole,
            address: NodeAddress::from_bytes([7; 20]),
            admission: RwLock::new(Admission::Anyone),
            leaving: RwLock::default(),
            endpoints: RwLock::default(),
        };
        let options = ServerOptions::default();
        let router = server::router(part, &options).merge(routes(Arc::new(exchange)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(server::serve(listener, router, options, std::future::pending()));
        Host { url, bytes, arrival, serving, _folder: folder }
    }

    fn all(&self) -> BTreeSet<u64> {
        (0..tiles(self.bytes.len() as u64)).collect()
    }

    fn give(&self, given: impl IntoIterator<Item = u64>) {
        for tile in given {
            let at = (tile * TILE_BYTES) as usize;
            let end = self.bytes.len().min(at + TILE_BYTES as usize);
            self.arrival.write(tile, &self.bytes[at..end]).unwrap();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Where an artifact's parts lie, in tiles.
struct Map {
    artifact: Artifact,
}

impl Map {
    fn of(bytes: &[u8]) -> Map {
        Map { artifact: Artifact::from_bytes("x", bytes).unwrap() }
    }

    fn program(&self) -> &Program {
        self.artifact.program().program()
    }

    fn tiles<T>(&self, part: &[T]) -> Range<u64> {
        let at = part.as_ptr() as u64 - self.artifact.bytes().as_ptr() as u64;
        at / TILE_BYTES..(at + size_of_val(part) as u64).div_ceil(TILE_BYTES)
    }

    fn matrix(&self, of: &dyn Fn(&Op) -> bool) -> Matrix<'_> {
        let op = self.program().ops.iter().rfind(|op| of(op)).unwrap();
        let (Op::Embed { table: t } | Op::MatMul { weights: t, .. }) = *op else { panic!("{op:?}") };
        self.artifact.matrix(t)
    }

    /// Everything before the constants: program, tokenizer, template.
    fn head(&self) -> Range<u64> {
        0..self.tiles(self.artifact.tokenizer_json()).end
    }

    /// What the last layers and the head need, and nothing before them.
    fn end(&self) -> Range<u64> {
        let of = |t: u16| self.tiles(self.artifact.matrix(t).tile(0));
        let products = self.program().ops.iter().filter_map(|op| match op {
            Op::MatMul { weights, .. } => Some(*weights),
            _ => None,
        });
        let products: Vec<u16> = products.collect();
        of(products[products.len() / 2]).end..u64::MAX
    }

    /// Tiles of embeddings that a conversation does not need for its first token.
    fn spare(&self, text: &str) -> BTreeSet<u64> {
        let tokenizer = Tokenizer::new(self.artifact.text(), self.artifact.tokenizer_json()).unwrap();
        let prompt = Prompt::Chat { messages: vec![Message::text(Role::User, text)], tools: vec![] };
        let w = self.matrix(&|op| matches!(op, Op::Embed { .. }));
        let mut spare: BTreeSet<u64> = (0..w.tiles()).flat_map(|t| self.tiles(w.tile(t))).collect();
        let scales = self.tiles(w.scales());
        for id in tokenizer.encode_prompt(&prompt).unwrap() {
            let needed = self.tiles(w.tile(id as usize / 64));
            spare.retain(|tile| !needed.contains(tile));
        }
        spare.retain(|tile| !scales.contains(tile));
        spare
    }
}

async fn get(url: &str) -> Value {
    client().get(url).send().await.unwrap().json().await.unwrap()
}

/// Asks until `is_so`, at most a minute.
async fn until(what: &str, url: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let answer = get(url).await;
        if is_so(&answer) {
            return answer;
        }
        assert!(std::time::Instant::now() < deadline, "{what}: {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A streamed answer, as far as it was read.
struct Stream {
    response: reqwest::Response,
    read: String,
}

impl Stream {
    async fn of(node: &Node, tokens: u32) -> Stream {
        let mut body = chat(STORY, 7, tokens);
        body["stream"] = true.into();
        let response = client().post(node.chat_url()).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        Stream { response, read: String::new() }
    }

    fn receipt(&self) -> String {
        self.response.headers()["x-assay-receipt"].to_str().unwrap().to_owned()
    }

    fn text(&self) -> String {
        let events = self.read.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|l| *l != "[DONE]");
        let text = |event: &str| {
            let event: Value = serde_json::from_str(event).unwrap();
            event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
        };
        events.map(text).collect()
    }

    /// Reads on until there is text.
    async fn first_text(&mut self) {
        while self.text().is_empty() {
            let chunk = self.response.chunk().await.unwrap().expect("text comes before the end");
            self.read.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn end(&mut self) {
        while let Some(chunk) = self.response.chunk().await.unwrap() {
            self.read.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_text_comes_before_the_last_tile_and_the_receipt_after_it() {
    let host = Host::start(built_in()).await;
    let map = Map::of(&host.bytes);
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), false, &[RELEASE, "--from", &host.url]);
    let health = format!("{}/health", node.url);

    // Nothing is here, and whoever asks hears when to come again.
    let begun = until("it is on its way", &health, |h| h["arriving"][0]["model"] == MODEL).await;
    assert_eq!((&begun["status"], &begun["arriving"][0]["listed"]), (&"not_ready".into(), &false.into()));
    let early = client().post(node.chat_url()).json(&chat(STORY, 7, 8)).send().await.unwrap();
    assert_eq!((early.status().as_u16(), &early.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(early.json::<Value>().await.unwrap()["error"]["code"], "model_arriving");

    // With the head the model is listed; with half of its layers, a pass comes as far as these.
    let (spare, end) = (map.spare(STORY), map.end());
    assert!(spare.len() > 2, "{spare:?}");
    host.give(map.head());
    until("it is listed", &health, |h| h["status"] == "ok" && h["arriving"][0]["listed"] == true).await;
    let models = get(&format!("{}/v1/models", node.url)).await;
    assert_eq!(models["data"][0]["id"], MODEL);
    let asking = async {
        let mut stream = Stream::of(&node, 12).await;
        stream.first_text().await;
        stream
    };
    let others = async {
        // Someone who does not wait for the answer leaves nothing behind.
        until("the first is under way", &health, |h| h["running"] == 1).await;
        let mut body = chat(STORY, 8, 12);
        body["stream"] = true.into();
        let leaving = tokio::spawn(client().post(node.chat_url()).json(&body).send());
        until("the second waits", &health, |h| h["waiting"] == 1).await;
        leaving.abort();
        until("the second is gone", &health, |h| h["waiting"] == 0).await;
        let now: Vec<u64> = host.all().difference(&spare).copied().filter(|t| !end.contains(t)).collect();
        host.give(now.into_iter().filter(|t| !map.head().contains(t)));
        let half = until("half of its layers are executed", &health, |h| {
            h["arriving"][0]["layers_executed"].as_u64().is_some_and(|n| n > 0)
        });
        let half = half.await;
        assert!(half["arriving"][0]["layers_executed"].as_u64() < half["arriving"][0]["layers"].as_u64());
        let metrics = client().get(format!("{}/metrics", node.url)).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        assert!(metrics.contains("assay_arriving_layer{model_name=\"assay-stories\"}"), "{metrics}");
        // Now everything that the first token needs, and not one tile more.
        host.give(host.all().difference(&spare).copied().filter(|t| end.contains(t)));
    };
    let (mut stream, ()) = tokio::join!(asking, others);
    assert_eq!(host.arrival.missing().count(), spare.len() as u64, "text came before the last tile");
    let receipt_url = format!("{}/v1/receipts/{}", node.url, stream.receipt());
    let receipt = client().get(&receipt_url).send().await.unwrap();
    assert_eq!(receipt.status(), 404, "nothing is signed yet");

    // The rest: the answer ends with its receipt, and equals that of the complete model.
    host.give(spare);
    stream.end().await;
    assert!(stream.read.ends_with("data: [DONE]\n\n"), "{}", stream.read);
    assert_eq!(client().get(&receipt_url).send().await.unwrap().status(), 200);
    let other = tempfile::tempdir().unwrap();
    let complete = Node::up(other.path(), false, &[]);
    let body = chat(STORY, 7, 12);
    let expected = client().post(complete.chat_url()).json(&body).send().await.unwrap();
    let expected: Value = expected.json().await.unwrap();
    assert_eq!(stream.text(), expected["choices"][0]["message"]["content"].as_str().unwrap());
    until("nothing is on its way any more", &health, |h| h["arriving"].is_null()).await;
    let checked = assay(home.path(), &["verify", &stream.receipt()]);
    assert!(checked.status.success(), "{}", stderr(&checked));

    // It is installed like one that was pulled.
    let installed = home.path().join("models").join(format!("{MODEL}.assay"));
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !installed.exists() {
        assert!(std::time::Instant::now() < deadline, "it is installed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(std::fs::read(&installed).unwrap(), host.bytes);
    node.signal("TERM");
    assert!(node.exit().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_is_not_what_its_release_says_signs_nothing() {
    let mut bytes = built_in();
    // A weight of the last matrix; the file's head says the root that the release says.
    let at = bytes.len() - 3000;
    bytes[at] ^= 1;
    let host = Host::start(bytes).await;
    let map = Map::of(&host.bytes);
    assert!(map.artifact.check_root(&|_| ()).is_err());
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), false, &[RELEASE, "--from", &host.url]);
    let health = format!("{}/health", node.url);
    let spare = map.spare(STORY);
    host.give(host.all().difference(&spare).copied());
    until("it is listed", &health, |h| h["arriving"][0]["listed"] == true).await;
    let mut stream = Stream::of(&node, 12).await;
    stream.first_text().await;
    host.give(spare);
    stream.end().await;
    assert!(stream.read.contains("\"model_withdrawn\""), "{}", stream.read);
    assert!(!stream.read.contains("\"usage\":{"), "{}", stream.read);
    let receipt = stream.receipt();
    // Without a model the node stops, and nothing of the answer is kept.
    assert!(!node.exit().success());
    let checked = assay(home.path(), &["verify", &receipt]);
    assert_eq!(checked.status.code(), Some(2), "{}", stderr(&checked));
    assert!(!home.path().join("models").join(format!("{MODEL}.assay")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_gives_no_more_ends_what_waits_for_it() {
    let host = Host::start(built_in()).await;
    let map = Map::of(&host.bytes);
    let home = tempfile::tempdir().unwrap();
    let node = Node::up(home.path(), false, &[RELEASE, "--from", &host.url]);
    let health = format!("{}/health", node.url);
    host.give(host.all().difference(&map.spare(STORY)).copied());
    until("it is listed", &health, |h| h["arriving"][0]["listed"] == true).await;
    let mut stream = Stream::of(&node, 40).await;
    stream.first_text().await;
    // From now on somebody else is there who refuses everything.
    let address = host.url.strip_prefix("http://").unwrap().to_owned();
    drop(host);
    let listener = loop {
        match tokio::net::TcpListener::bind(&address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let refusing = axum::Router::new().fallback(async || axum::http::StatusCode::FORBIDDEN);
    let refusing = tokio::spawn(axum::serve(listener, refusing).into_future());
    stream.end().await;
    assert!(stream.read.contains("\"model_withdrawn\""), "{}", stream.read);
    assert!(!node.exit().success());
    refusing.abort();
}
