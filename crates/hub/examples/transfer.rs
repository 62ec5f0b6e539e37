//! Hosts and fetches on loopback, as `scripts/benchmarks/hub.py` measures them. Processes of their own, so that each has its own
//! time on the processor.
//!
//!     transfer make STORE MIB                    a store with one pseudo-random blob; prints its name
//!     transfer host STORE [BYTES_PER_SECOND]     serves a store; prints its address
//!     transfer publish FOLDER MIB COPIES         leaves a release of one pseudo-random blob in a host's inbox; prints file, id and blob
//!     transfer fetch STORE HASH save|end PEER…   fetches into a new store, saving as always or only at the end
//!
//! A fetch verifies and flushes. It prints `{"half": true}` when half has come, and what it did at the end.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use alloy_signer_local::PrivateKeySigner;
use assay_core::id::{ModelRoot, NodeAddress};
use assay_hub::blob::BlobHash;
use assay_hub::content::ContentTree;
use assay_hub::fetch::{FetchOptions, Progress, fetch};
use assay_hub::inbox::{Inbox, Parcel};
use assay_hub::outboard::{Make, hash_with};
use assay_hub::peer::{Dialer, PeerAddress};
use assay_hub::rate::Rate;
use assay_hub::release::{Release, Signed};
use assay_hub::server::{ServerOptions, router, serve};
use assay_hub::store::{Quota, Store};
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &arguments[..] {
        ["make", store, mib] => println!("{}", make(Path::new(store), mib.parse()?)?),
        ["publish", folder, mib, copies] => publish(Path::new(folder), mib.parse()?, copies.parse()?)?,
        ["host", store] => host(Path::new(store), Rate::UNLIMITED).await?,
        ["host", store, rate] => host(Path::new(store), Rate::bytes_per_second(rate.parse()?)).await?,
        ["fetch", store, hash, saves, peers @ ..] => {
            let peers = peers.iter().map(|peer| peer.parse()).collect::<Result<Vec<_>, _>>()?;
            get(Path::new(store), hash.parse()?, saves, &peers).await?;
        }
        _ => return Err("make STORE MIB | publish FOLDER MIB COPIES | host STORE [RATE] | fetch STORE HASH save|end PEER…".into()),
    }
    Ok(())
}

fn make(folder: &Path, mib: u64) -> Outcome<BlobHash> {
    let store = Store::open(folder, Quota::UNLIMITED)?;
    let path = folder.join("content");
    write(&path, mib)?;
    let hash = store.add_file(&path, &mut |_, _| {})?.hash();
    std::fs::remove_file(path)?;
    Ok(hash)
}

fn write(path: &Path, mib: u64) -> Outcome<()> {
    let mut file = std::fs::File::create(path)?;
    let mut random = blake3::Hasher::new().update(b"transfer").finalize_xof();
    let mut part = vec![0; 1 << 20];
    for _ in 0..mib {
        random.read_exact(&mut part)?;
        file.write_all(&part)?;
    }
    Ok(())
}

fn publish(folder: &Path, mib: u64, copies: u8) -> Outcome<()> {
    std::fs::create_dir_all(folder)?;
    let artifact = std::path::absolute(folder.join("content"))?;
    write(&artifact, mib)?;
    let file = std::fs::File::open(&artifact)?;
    let size = file.metadata()?.len();
    let read = |at: u64, out: &mut [u8]| std::os::unix::fs::FileExt::read_exact_at(&file, out, at);
    let blob = hash_with(size, Make::Outboard, &read, &mut |_| {})?.hash;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let content_root = ContentTree::of(size, threads, read, |_| ())?.root();
    let key = PrivateKeySigner::from_slice(&[7; 32])?;
    let release = Release {
        publisher: NodeAddress::from_bytes(key.address().into_array()),
        name: "transfer".parse()?,
        version: "1".parse()?,
        root: ModelRoot::from_bytes([0; 32]),
        blob,
        size,
        content_root,
        profile: String::new(),
        parameters: 0,
        context: 0,
        licence: String::new(),
        royalty_ppm: 0,
        copies,
        card: String::new(),
        sources: vec![],
        published_at: 0,
    };
    let release = Signed::by(&key, release)?;
    println!("{} {} {blob}", artifact.display(), release.id());
    Inbox::at(&folder.join("inbox")).leave(&Parcel { release, label: None, artifact, cut: None })?;
    Ok(())
}

async fn host(store: &Path, rate: Rate) -> Outcome<()> {
    let store = Store::open(store, Quota::UNLIMITED)?;
    let options = ServerOptions { rate, ..ServerOptions::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    serve(listener, router(store, &options), options, std::future::pending()).await;
    Ok(())
}

async fn get(folder: &Path, hash: BlobHash, saves: &str, peers: &[PeerAddress]) -> Outcome<()> {
    let store = Store::open(folder, Quota::UNLIMITED)?;
    let mut options = FetchOptions::default();
    match saves {
        "save" => {}
        "end" => (options.save_bytes, options.save_time) = (u64::MAX, Duration::MAX),
        _ => return Err("save or end".into()),
    }
    let mut half = false;
    let mut progress = |it: Progress| {
        if !half && it.verified * 2 >= it.size {
            half = true;
            println!("{}", json!({"half": true}));
        }
    };
    let fetched = fetch(&store, hash, None, peers, &Dialer::new(), &options, &mut progress).await?;
    let report = fetched.report;
    let peers = report.peers.iter().map(|peer| {
        let code = peer.fault.as_ref().map(|fault| fault.code());
        json!({"bytes": peer.bytes, "retries": peer.retries, "fault": code, "dropped": peer.dropped})
    });
    println!(
        "{}",
        json!({
            "seconds": report.duration.as_secs_f64(),
            "arrived_s": report.arrived.as_secs_f64(),
            "first_tile_s": report.first_tile.map(|t| t.as_secs_f64()),
            "stolen_tiles": report.stolen_tiles,
            "peers": peers.collect::<Vec<_>>(),
        })
    );
    Ok(())
}
