//! Hosts on loopback: a release is kept by as many as was asked, and kept again when hosts disappear. Time is a number that the test
//! sets.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use alloy_primitives::keccak256;
use alloy_signer_local::PrivateKeySigner;
use assay_core::id::{ModelRoot, NodeAddress};
use assay_hub::blob::{BlobHash, CHUNK_BYTES};
use assay_hub::cold::Cold;
use assay_hub::cut::Cut;
use assay_hub::erasure::{Code, ShardSet, UNIT_BYTES, encode};
use assay_hub::exchange::Admission;
use assay_hub::fetch::FetchOptions;
use assay_hub::inbox::{Inbox, Parcel};
use assay_hub::keeping::{Kept, shard_tag};
use assay_hub::peer::{Dialer, Relays, SecretKey, address_of, endpoint};
use assay_hub::release::{Release, Signed};
use assay_hub::replication::{DEAD_AFTER_S, HostId, LEAVE_NOTICE_S, PATIENCE_S, Times};
use assay_hub::server::{ServerOptions, serve, serve_iroh};
use assay_hub::store::{Collect, Quota};
use assay_node::host::{Event, Host, HostOptions};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const MINUTE: u64 = 60;

fn key(name: &str) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(name)).unwrap()
}

fn address(key: &PrivateKeySigner) -> NodeAddress {
    NodeAddress::from_bytes(key.address().into_array())
}

struct Running {
    host: Host,
    /// Over HTTP, and over iroh if the world has it.
    servers: Vec<JoinHandle<()>>,
    events: Arc<Mutex<Vec<String>>>,
}

/// Over what hosts reach each other first. The other way is there in a world with iroh.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Http,
    HttpThenIroh,
    Iroh,
}

struct World {
    folder: tempfile::TempDir,
    urls: Vec<String>,
    hosts: Vec<Option<Running>>,
    now_s: u64,
    step_s: u64,
}

impl World {
    async fn of(count: usize) -> World {
        World::admitting(vec![Admission::Anyone; count]).await
    }

    /// Hosts by whose releases they take.
    async fn admitting(admissions: Vec<Admission>) -> World {
        World::build(admissions, Times::DEFAULT, Way::Http).await
    }

    async fn build(admissions: Vec<Admission>, times: Times, way: Way) -> World {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let (mut listeners, mut endpoints, mut urls) = (Vec::new(), Vec::new(), Vec::new());
        for _ in &admissions {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let bound = match way {
                Way::Http => None,
                _ => {
                    let at = ([127, 0, 0, 1], 0).into();
                    Some(endpoint(SecretKey::generate(), at, Relays::None).await.unwrap())
                }
            };
            urls.push(match (&bound, way) {
                (Some(bound), Way::Iroh) => address_of(bound).to_string(),
                _ => format!("http://{}", listener.local_addr().unwrap()),
            });
            listeners.push(listener);
            endpoints.push(bound);
        }
        let mut hosts = Vec::new();
        for (i, ((listener, endpoint), admission)) in
            listeners.into_iter().zip(endpoints).zip(admissions).enumerate()
        {
            let options = HostOptions {
                folder: folder.path().join(i.to_string()),
                quota: Quota::bytes(8 << 20),
                peers: urls.clone(),
                admission,
                server: ServerOptions::default(),
                fetch: FetchOptions::default(),
                times,
                endpoint: endpoint.clone(),
            };
            let events = Arc::new(Mutex::new(Vec::new()));
            let heard = Arc::clone(&events);
            let listener_of = Arc::new(move |event: Event| heard.lock().unwrap().push(format!("{event:?}")));
            let host = Host::open(address(&key(&format!("host {i}"))), options, listener_of).unwrap();
            let (router, options) = (host.router(), ServerOptions::default());
            let mut servers =
                vec![tokio::spawn(serve(listener, router.clone(), options.clone(), std::future::pending()))];
            if let Some(endpoint) = endpoint {
                servers.push(tokio::spawn(serve_iroh(endpoint, router, options, std::future::pending())));
            }
            hosts.push(Some(Running { host, servers, events }));
        }
        World { folder, urls, hosts, now_s: 1_000_000, step_s: MINUTE }
    }

    fn publish(&self, at: usize, content: &[u8], copies: u8) -> Signed<Release> {
        let artifact = self.folder.path().join(format!("artifact-{copies}-{}", content.len()));
        std::fs::write(&artifact, content).unwrap();
        let author = key("author");
        let leaves = content.chunks(CHUNK_BYTES as usize).map(assay_core::merkle::leaf);
        let release = Release {
            publisher: address(&author),
            name: format!("model-{}", content.len()).parse().unwrap(),
            version: "1".parse().unwrap(),
            root: ModelRoot::from_bytes([1; 32]),
            blob: BlobHash::of(content),
            size: content.len() as u64,
            content_root: assay_core::merkle::root(leaves),
            profile: "int8-v1".into(),
            parameters: 1,
            context: 1,
            licence: String::new(),
            royalty_ppm: 0,
            copies,
            card: String::new(),
            sources: vec![],
            published_at: 0,
        };
        let release = Signed::by(&author, release).unwrap();
        let inbox = Inbox::at(&self.folder.path().join(at.to_string()).join("inbox"));
        inbox.leave(&Parcel { release: release.clone(), label: None, artifact, cut: None }).unwrap();
        release
    }

    async fn round(&mut self) {
        for running in self.hosts.iter_mut().flatten() {
            running.host.round(self.now_s).await;
        }
        self.now_s += self.step_s;
    }

    async fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round().await;
        }
    }

    fn keepers(&self, blob: BlobHash) -> BTreeSet<usize> {
        let keeps = |running: &Running| running.host.store().blob(blob).unwrap().is_some();
        let numbered = self.hosts.iter().enumerate();
        numbered.filter(|(_, h)| h.as_ref().is_some_and(keeps)).map(|(i, _)| i).collect()
    }

    fn vanish(&mut self, host: usize) {
        let gone = self.hosts[host].take().unwrap();
        gone.servers.iter().for_each(JoinHandle::abort);
        drop(gone.host);
    }

    /// What hosts that are up have of a blob is what was published.
    fn assert_kept(&self, blob: BlobHash, bytes: &[u8]) {
        for host in self.keepers(blob) {
            let path = self.folder.path().join(format!("out-{host}"));
            self.hosts[host].as_ref().unwrap().host.store().materialise(blob, &path).unwrap();
            assert_eq!(read(&path), bytes);
        }
    }

    /// The lines of a metric, of the first host that is up.
    async fn metric(&self, name: &str) -> String {
        let router = self.hosts.iter().flatten().next().unwrap().host.router();
        let request = axum::http::Request::get("/metrics").body(axum::body::Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(router, request).await.unwrap();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>().join("\n")
    }

    fn heard(&self, host: usize) -> Vec<String> {
        self.hosts[host].as_ref().unwrap().events.lock().unwrap().clone()
    }
}

fn content(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&bytes.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_kept_by_as_many_as_asked_and_again_when_two_of_five_vanish() {
    let mut world = World::of(5).await;
    let bytes = content(700_000);
    let release = world.publish(0, &bytes, 3);
    let blob = release.record.blob;
    world.rounds(4).await;
    let first = world.keepers(blob);
    assert!(first.contains(&0) && first.len() >= 3, "{first:?}: {:?}", world.heard(0));
    // Whoever has one copy too many leaves when its notice is over.
    let mut waited = 0;
    while world.keepers(blob).len() > 3 {
        world.now_s += LEAVE_NOTICE_S / 8;
        world.rounds(2).await;
        waited += 1;
        assert!(waited < 40, "{:?}", world.keepers(blob));
    }
    let settled = world.keepers(blob);
    assert_eq!(settled.len(), 3);
    // Two of those who keep it disappear. Nobody does anything before they count as dead.
    let gone: Vec<usize> = settled.iter().copied().take(2).collect();
    gone.iter().for_each(|host| world.vanish(*host));
    world.rounds(2).await;
    assert_eq!(world.keepers(blob).len(), 1);
    world.now_s += DEAD_AFTER_S;
    let mut rounds = 0;
    while world.keepers(blob).len() < 3 {
        world.now_s += PATIENCE_S / 4;
        world.rounds(2).await;
        rounds += 1;
        assert!(
            rounds < 40,
            "{:?}: {:?}",
            world.keepers(blob),
            world.heard(*world.keepers(blob).first().unwrap())
        );
    }
    world.assert_kept(blob, &bytes);
}

/// The times of a network of one's own: everything happens within some rounds of a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_short_times_two_of_five_are_replaced_within_some_rounds() {
    let times = Times::new(3, 4, 6).unwrap();
    let mut world = World::build(vec![Admission::Anyone; 5], times, Way::Http).await;
    world.step_s = 1;
    let bytes = content(300_000);
    let blob = world.publish(0, &bytes, 3).record.blob;
    for round in 0.. {
        assert!(round < 60, "{:?}", world.keepers(blob));
        world.round().await;
        if world.keepers(blob).len() == 3 {
            break;
        }
    }
    let gone: Vec<usize> = world.keepers(blob).into_iter().take(2).collect();
    gone.iter().for_each(|host| world.vanish(*host));
    // Nobody does anything before they count as dead.
    world.rounds(3).await;
    assert_eq!(world.keepers(blob).len(), 1);
    for round in 0.. {
        assert!(round < 60, "{:?}", world.keepers(blob));
        world.round().await;
        if world.keepers(blob).len() == 3 {
            break;
        }
    }
    world.assert_kept(blob, &bytes);
    let (asked, seen, lost) =
        (world.metric("hub_copies_asked").await, world.metric("hub_copies_seen").await, "state=\"lost\"} 0");
    assert!(asked.contains("@1\"} 3") && !seen.is_empty(), "{asked} {seen}");
    assert!(world.metric("hub_releases").await.contains(lost));
    assert!(world.metric("hub_peers").await.contains("state=\"silent\"} 2"));
    assert!(world.metric("hub_events").await.contains("kind=\"kept\"") && !world.urls.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_iroh_alone_a_release_reaches_as_many_as_asked() {
    let mut world = World::build(vec![Admission::Anyone; 3], Times::DEFAULT, Way::Iroh).await;
    assert!(world.urls.iter().all(|url| url.starts_with("iroh:")));
    for running in world.hosts.iter().flatten() {
        running.servers[0].abort();
    }
    let bytes = content(500_000);
    let blob = world.publish(1, &bytes, 3).record.blob;
    world.rounds(4).await;
    assert_eq!(world.keepers(blob), [0, 1, 2].into(), "{:?}", world.heard(0));
    world.assert_kept(blob, &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_silent_at_its_url_is_asked_at_the_other_address_it_told_of() {
    let mut world = World::build(vec![Admission::Anyone; 2], Times::DEFAULT, Way::HttpThenIroh).await;
    world.rounds(2).await;
    world.hosts[0].as_ref().unwrap().servers[0].abort();
    let bytes = content(400_000);
    let blob = world.publish(0, &bytes, 2).record.blob;
    world.rounds(4).await;
    assert_eq!(world.keepers(blob), [0, 1].into(), "{:?}", world.heard(1));
    assert!(world.heard(1).iter().any(|event| event.starts_with("Silent")), "{:?}", world.heard(1));
    world.assert_kept(blob, &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_failed_to_show_what_it_keeps_is_not_counted_for_it() {
    let mut world = World::of(3).await;
    let blob = world.publish(0, &content(90_000), 2).record.blob;
    world.rounds(3).await;
    let keepers = world.keepers(blob);
    let failed = *keepers.iter().find(|host| **host != 0).unwrap_or(keepers.first().unwrap());
    let id = HostId(*address(&key(&format!("host {failed}"))).as_bytes());
    for running in world.hosts.iter_mut().flatten() {
        running.host.set_failed([(id, [blob].into())].into());
    }
    world.rounds(4).await;
    assert!(world.keepers(blob).into_iter().filter(|host| *host != failed).count() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_spread_over_hosts_and_the_last_copy_stays() {
    let mut world = World::of(4).await;
    let releases: Vec<_> =
        (0..6).map(|i| world.publish(i % 4, &content(50_000 + i), 1 + (i % 2) as u8)).collect();
    world.rounds(4).await;
    for _ in 0..12 {
        world.now_s += LEAVE_NOTICE_S / 4;
        world.rounds(2).await;
        for release in &releases {
            let keepers = world.keepers(release.record.blob).len();
            assert!(keepers >= usize::from(release.record.copies), "{keepers} of {release:?}");
        }
    }
    for release in &releases {
        assert_eq!(world.keepers(release.record.blob).len(), usize::from(release.record.copies));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_whose_content_is_not_its_content_root_is_not_kept() {
    let mut world = World::of(2).await;
    let bytes = content(60_000);
    let mut release = world.publish(0, &bytes, 2).record;
    release.version = "2".parse().unwrap();
    release.content_root = assay_core::id::Hash::ZERO;
    let lying = Signed::by(&key("author"), release).unwrap();
    // One of which every release lies.
    let other = content(61_000);
    let alone = world.publish(0, &other, 2).record;
    let alone =
        Signed::by(&key("author"), Release { content_root: assay_core::id::Hash::ZERO, ..alone }).unwrap();
    std::fs::remove_dir_all(world.folder.path().join("0/inbox")).unwrap();
    world.publish(0, &bytes, 2);
    world.round().await;
    let store = world.hosts[0].as_ref().unwrap().host.store().clone();
    let file = world.folder.path().join("alone");
    std::fs::write(&file, &other).unwrap();
    store.add_file(&file, &mut |_, _| ()).unwrap();
    store.tag(&assay_hub::keeping::release_tag(&alone.record), alone.record.blob).unwrap();
    for host in world.hosts.iter().flatten() {
        host.host.catalogue().add(alone.clone()).unwrap();
    }
    world.hosts[1].as_ref().unwrap().host.catalogue().add(lying.clone()).unwrap();
    world.rounds(3).await;
    // The honest release is kept by both; nothing is tagged for the other.
    assert_eq!(world.keepers(lying.record.blob).len(), 2);
    for running in world.hosts.iter().flatten() {
        let tags = running.host.store().tags().unwrap();
        assert!(tags.iter().all(|(tag, _)| !tag.ends_with("@2")), "{tags:?}");
    }
    // What the first says it keeps, the second fetched once and found wrong. It keeps nothing of it and does not ask again.
    let wrong = |events: &[String]| events.iter().filter(|e| e.contains("content_root")).count();
    assert_eq!(wrong(&world.heard(1)), 2, "{:?}", world.heard(1));
    assert_eq!(world.keepers(alone.record.blob), [0].into());
    world.rounds(3).await;
    assert_eq!(wrong(&world.heard(1)), 2, "{:?}", world.heard(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_of_publishers_that_are_not_admitted_are_not_learnt_from_other_hosts() {
    let author = Admission::Publishers([address(&key("author"))].into());
    let nobody = Admission::Publishers([address(&key("nobody"))].into());
    let mut world = World::admitting(vec![Admission::Anyone, author, nobody]).await;
    let release = world.publish(0, &content(60_000), 3);
    world.rounds(3).await;
    assert_eq!(world.keepers(release.record.blob), [0, 1].into());
    assert!(world.hosts[2].as_ref().unwrap().host.catalogue().releases().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_stays_and_two_releases_of_one_artifact_go_together() {
    let mut world = World::of(3).await;
    let bytes = content(70_000);
    let first = world.publish(0, &bytes, 1);
    let blob = first.record.blob;
    world.round().await;
    let second = Release { version: "2".parse().unwrap(), ..first.record.clone() };
    let second = Signed::by(&key("author"), second).unwrap();
    // Everybody keeps it, under both names; one is asked to.
    for (i, running) in world.hosts.iter().flatten().enumerate() {
        let host = &running.host;
        let artifact = world.folder.path().join(format!("copy-{i}"));
        std::fs::write(&artifact, &bytes).unwrap();
        let kept = host.store().add_file(&artifact, &mut |_, _| ()).unwrap();
        for release in [&first, &second] {
            host.catalogue().add(release.clone()).unwrap();
            assay_hub::keeping::keep(host.store(), &release.record, &kept).unwrap();
        }
    }
    world.hosts[0].as_ref().unwrap().host.store().tag("pin/mine", blob).unwrap();
    for _ in 0..16 {
        world.now_s += LEAVE_NOTICE_S / 4;
        world.rounds(2).await;
    }
    let keepers = world.keepers(blob);
    assert!(keepers.contains(&0) && keepers.len() <= 2, "{keepers:?}");
    let dropped = |host: usize| world.heard(host).iter().filter(|e| e.starts_with("Dropped")).count();
    assert_eq!(dropped(0), 0);
    assert_eq!((1..3).map(dropped).sum::<usize>(), 3 - keepers.len());
}

impl World {
    /// Leaves a release at a host that is kept in `needed` of `shards` shards.
    fn publish_cold(&self, at: usize, content: &[u8], needed: u8, shards: u8) -> Signed<Cut> {
        let release = self.publish(at, content, 2);
        let inbox = Inbox::at(&self.folder.path().join(at.to_string()).join("inbox"));
        let folder = inbox.shards(release.id());
        std::fs::create_dir_all(&folder).unwrap();
        let artifact = self.folder.path().join(format!("artifact-2-{}", content.len()));
        let code = Code::new(needed, shards).unwrap();
        let set = encode(&artifact, release.record.blob, code, UNIT_BYTES, &folder).unwrap();
        let author = key("author");
        let cut = Cut { publisher: address(&author), release: release.id(), set };
        let cut = Signed::by(&author, cut).unwrap();
        inbox.leave(&Parcel { release, label: None, artifact, cut: Some(cut.clone()) }).unwrap();
        cut
    }

    /// Which host says that it keeps which shard.
    fn shards(&self, cut: &Cut) -> BTreeMap<u8, Vec<usize>> {
        let mut found = BTreeMap::<u8, Vec<usize>>::new();
        for (i, running) in self.hosts.iter().enumerate() {
            let Some(running) = running else { continue };
            let kept = Kept::of(running.host.store()).unwrap();
            kept.shards(&cut.set).for_each(|index| found.entry(index).or_default().push(i));
        }
        found
    }

    /// Rounds, with time that passes, until it is so.
    async fn until(&mut self, what: impl Fn(&World) -> bool) {
        for _ in 0..80 {
            if what(self) {
                return;
            }
            self.round().await;
        }
        let heard: Vec<_> =
            (0..self.hosts.len()).filter(|i| self.hosts[*i].is_some()).map(|i| self.heard(i)).collect();
        panic!("not within 80 rounds: {heard:#?}");
    }

    /// The artifact, restored from shards of hosts that are up.
    async fn restored(&self, cut: &Cut) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let store = assay_hub::store::Store::open(&folder.path().join("store"), Quota::UNLIMITED).unwrap();
        let parsed = |host: &usize| self.urls[*host].parse().unwrap();
        let sources = self
            .shards(cut)
            .iter()
            .map(|(index, hosts)| (*index, hosts.iter().map(parsed).collect()))
            .collect();
        let (dialer, options) = (Dialer::new(), FetchOptions::default());
        let cold = Cold { store: &store, dialer: &dialer, options: &options };
        let blob = cold.restore(&cut.set, &sources, &|_, _| ()).await.unwrap();
        let mut bytes = vec![0; blob.size() as usize];
        blob.read_at(0, &mut bytes).unwrap();
        bytes
    }
}

fn short() -> Times {
    Times::new(3, 4, 6).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_release_lies_in_one_shard_a_host_and_lost_shards_are_made_again() {
    let mut world = World::build(vec![Admission::Anyone; 7], short(), Way::Http).await;
    world.step_s = 1;
    let bytes = content(600_000);
    let cut = world.publish_cold(0, &bytes, 2, 4).record;
    let spread = |world: &World| {
        let shards = world.shards(&cut);
        shards.len() == 4 && shards.values().all(|hosts| hosts.len() == 1)
    };
    // The whole goes when every shard was shown to be kept.
    world.until(|world| world.keepers(cut.set.blob()).is_empty() && spread(world)).await;
    assert_eq!(world.restored(&cut).await, bytes);
    // Two of those with a shard vanish; no whole is left to cut. What they kept is made of the other two.
    let gone: Vec<usize> = world.shards(&cut).into_values().flatten().take(2).collect();
    gone.iter().for_each(|host| world.vanish(*host));
    assert_eq!(world.shards(&cut).len(), 2);
    world.until(spread).await;
    assert!(world.keepers(cut.set.blob()).is_empty());
    assert_eq!(world.restored(&cut).await, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_only_a_whole_can_give_is_cut_of_it() {
    let mut world = World::build(vec![Admission::Anyone; 4], short(), Way::Http).await;
    world.step_s = 1;
    let bytes = content(500_000);
    let cut = world.publish_cold(0, &bytes, 2, 3).record;
    world.hosts[0].as_mut().unwrap().host.round(world.now_s).await;
    // The publisher's machine lost its shards, and has the whole.
    let store = world.hosts[0].as_ref().unwrap().host.store().clone();
    for index in 0..3 {
        store.untag(&shard_tag(&cut.set, index)).unwrap();
    }
    store.gc(Collect::Delete, std::time::Duration::MAX).unwrap();
    assert!(world.shards(&cut).is_empty() && world.keepers(cut.set.blob()) == [0].into());
    world.until(|world| world.shards(&cut).len() == 3 && world.keepers(cut.set.blob()).is_empty()).await;
    assert_eq!(world.restored(&cut).await, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_stays_while_there_are_fewer_hosts_than_shards() {
    let mut world = World::build(vec![Admission::Anyone; 3], short(), Way::Http).await;
    world.step_s = 1;
    let bytes = content(200_000);
    let cut = world.publish_cold(0, &bytes, 2, 4).record;
    world.rounds(40).await;
    assert_eq!(world.keepers(cut.set.blob()), [0].into());
    // The others have what they can, the publisher all of it.
    assert_eq!(world.shards(&cut).len(), 4);
    assert!((1..3).all(|host| world.shards(&cut).values().any(|hosts| hosts.contains(&host))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_only_says_it_keeps_a_shard_makes_nobody_drop_the_whole() {
    let mut world = World::build(vec![Admission::Anyone; 4], short(), Way::Http).await;
    world.step_s = 1;
    let bytes = content(300_000);
    let cut = world.publish_cold(0, &bytes, 2, 3).record;
    let blob = cut.set.blob();
    world
        .until(|world| (1..4).all(|host| world.shards(&cut).values().any(|hosts| hosts.contains(&host))))
        .await;
    assert_eq!(world.keepers(blob), [0].into());
    // One of them has other bytes under the shard's name from now on, and says nothing of it.
    let liar = (1..4).next().unwrap();
    let store = world.hosts[liar].as_ref().unwrap().host.store().clone();
    let name = cut.set.name(*world.shards(&cut).iter().find(|(_, h)| h.contains(&liar)).unwrap().0).unwrap();
    let path = store.folder().join("data").join(format!("{name}.blob"));
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::write(&path, vec![0; length as usize]).unwrap();
    world.rounds(30).await;
    assert_eq!(world.keepers(blob), [0].into(), "{:?}", world.heard(0));
    assert!(world.heard(0).iter().any(|event| event.contains("host_unproved")), "{:?}", world.heard(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_does_not_make_its_release_is_found_out_once() {
    let mut world = World::build(vec![Admission::Anyone; 5], short(), Way::Http).await;
    world.step_s = 1;
    let (bytes, other) = (content(250_000), content(250_001));
    let honest = world.publish(0, &bytes, 1);
    // Right names of shards of something else, and one wrong: no shards make it.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other");
    std::fs::write(&file, &other[..bytes.len()]).unwrap();
    let code = Code::new(2, 4).unwrap();
    let made = encode(&file, BlobHash::of(&other[..bytes.len()]), code, UNIT_BYTES, folder.path()).unwrap();
    let mut names = made.names().to_vec();
    names[3] = BlobHash::of(b"nothing");
    let set = ShardSet::new(honest.record.blob, made.geometry(), names).unwrap();
    let author = key("author");
    let cut = Signed::by(&author, Cut { publisher: address(&author), release: honest.id(), set }).unwrap();
    std::fs::remove_dir_all(world.folder.path().join("0/inbox")).unwrap();
    for (i, running) in world.hosts.iter().flatten().enumerate() {
        let host = &running.host;
        host.catalogue().add(honest.clone()).unwrap();
        host.catalogue().add_cut(cut.clone()).unwrap();
        if i < 3 {
            let name = made.name(i as u8).unwrap();
            host.store().add_file(&folder.path().join(name.to_string()), &mut |_, _| ()).unwrap();
            host.store().tag(&shard_tag(&cut.record.set, i as u8), name).unwrap();
        }
    }
    world.rounds(30).await;
    let found = |host: usize| world.heard(host).iter().filter(|e| e.contains("restore_false_set")).count();
    let tries: Vec<usize> = (3..5).map(found).collect();
    assert!(
        tries.iter().sum::<usize>() >= 1 && tries.iter().all(|tries| *tries <= 1),
        "{tries:?}: {:?}",
        world.heard(3)
    );
    // Whoever restores it learns that it is not what was named.
    let (dialer, options) = (Dialer::new(), FetchOptions::default());
    let store = world.hosts[0].as_ref().unwrap().host.store().clone();
    let sources = (0..3).map(|i| (i as u8, vec![world.urls[i].parse().unwrap()])).collect();
    let cold = Cold { store: &store, dialer: &dialer, options: &options };
    let e = cold.restore(&cut.record.set, &sources, &|_, _| ()).await.unwrap_err();
    assert_eq!(e.code(), "restore_false_set");
}
